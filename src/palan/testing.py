"""Conformance suites that palan's own parts pass and that yours can be put to. They need no more than pytest.

    from palan.testing import ModelSuite
    from delay import Delay

    class TestDelay(ModelSuite):
        make = Delay
        data = pl.read_parquet("departures.parquet")
        inputs = ["carrier", "origin", "temp"]
        outcome = "late"
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import SkipTest

import msgspec
import numpy as np
import polars as pl

from palan.errors import PalanError
from palan.models import user
from palan.models.adapt import Adapter, Heuristic, InstanceAdapter, Program, RowsAdapter, adapter
from palan.models.contract import KINDS, SHAPE, STATUSES, Context, Result, Violation
from palan.models.table import Table

# --- models ---


class ModelSuite:
    """What holds for a model of any kind. Set `make`, and what the model works on.

    `make` is the class, the finished object, the parsed decision table, or `staticmethod(function)`. Rows kinds need
    `data` (a frame; `inputs` names the columns that callers send, by default all but `outcome`), instance kinds
    `instances`. `fit` is given `data`. `outcome` (a column of `data`), or `outcomes` (one for each instance), lets `score` be
    checked.
    """

    make: Any = None
    kind: str = ""
    params: Mapping[str, Any] = {}
    data: Any = None
    inputs: Sequence[str] = ()
    outcome: str = ""
    instances: Sequence[Any] = ()
    outcomes: Sequence[Any] = ()
    seed: int = 7
    time_limit: float = 2.0

    def new(self) -> Adapter:
        """Return the model as palan calls it, nothing learnt yet."""
        return adapter(self.make, self.kind, self.params, inputs=self.inputs, outcome=self.outcome)

    def fitted(self) -> Adapter:
        """Return the model after fit(data), where it has a fit."""
        model = self.new()
        if "fit" in model.verbs and self.data is not None:
            model.fit(self.data)
        return model

    def rows(self) -> pl.DataFrame:
        """Return what callers send."""
        if not isinstance(self.data, pl.DataFrame):
            raise SkipTest("this kind answers instances")
        return self.data.select(self.inputs) if self.inputs else self.data.drop(self.outcome, strict=False) if self.outcome else self.data

    def for_rows(self) -> RowsAdapter:
        if isinstance(self.new(), Program | Heuristic):
            raise SkipTest("this kind answers instances")
        model = self.fitted()
        assert not isinstance(model, Program | Heuristic)
        return model

    def for_instances(self) -> InstanceAdapter:
        if not isinstance(self.new(), Program | Heuristic):
            raise SkipTest("this kind answers rows")
        model = self.fitted()
        assert isinstance(model, Program | Heuristic)
        assert self.instances, "set instances: documents that the model is to decide"
        return model

    def solve(self, model: InstanceAdapter, instance: Any) -> Result:
        return model.solve(instance, Context(seed=self.seed, time_limit=self.time_limit))

    def test_its_verbs_tell_its_kind(self) -> None:
        model = self.new()
        assert model.kind in KINDS
        assert SHAPE[model.kind] == ("instance" if isinstance(model, Program | Heuristic) else "rows")

    def test_an_unknown_parameter_is_refused_by_name(self) -> None:
        if not isinstance(self.make, type) and not user.bare(self.make):
            raise SkipTest("a finished object takes no parameters")
        try:
            adapter(self.make, self.kind, {**self.params, "no_such_parameter": 1})
        except PalanError as error:
            assert "no_such_parameter" in error.what
        else:
            raise AssertionError("an unknown parameter was taken without a word")

    def test_parameters_can_be_recorded(self) -> None:
        if isinstance(self.make, Table):
            raise SkipTest("a decision table has no parameters")
        params = self.new().params
        assert set(self.params) <= set(params)
        msgspec.json.encode(params)

    def test_each_row_has_one_answer(self) -> None:
        rows = self.rows()
        answers = self.for_rows().decide(rows)
        assert answers.height == rows.height
        assert answers.columns, "an answer has at least one column"

    def test_an_empty_batch_has_an_empty_answer(self) -> None:
        model, rows = self.for_rows(), self.rows()
        answers = model.decide(rows.clear())
        assert answers.height == 0
        assert answers.columns == model.decide(rows).columns

    def test_a_row_alone_has_the_same_answer_as_in_a_batch(self) -> None:
        model, rows = self.for_rows(), self.rows().head(5)
        together = model.decide(rows)
        alone = pl.concat([model.decide(rows[i]) for i in range(rows.height)], how="vertical_relaxed")
        assert same(alone.to_dict(as_series=False), together.to_dict(as_series=False))

    def test_the_same_seed_gives_the_same_answer(self) -> None:
        # a search that stops by the clock may get further on one day than on another: only the rest must repeat
        first, second = self.fitted(), self.fitted()
        if isinstance(first, Program | Heuristic) and isinstance(second, Program | Heuristic):
            for instance in self.instances:
                one, two = self.solve(first, instance), self.solve(second, instance)
                if one.status == two.status == "optimal" or max(one.seconds, two.seconds) < 0.5 * self.time_limit:
                    assert same(one.output, two.output), f"two plans for the same instance and seed: {one.output} and {two.output}"
        elif not isinstance(first, Program | Heuristic) and not isinstance(second, Program | Heuristic):
            rows = self.rows()
            assert same(first.decide(rows).to_dict(as_series=False), second.decide(rows).to_dict(as_series=False))

    def test_what_it_learnt_comes_back_from_its_files(self) -> None:
        before, after = self.fitted(), self.new()
        files = before.state()
        assert all(name.endswith((".json", ".npy", ".arrow", ".skops")) for name in files), "state is kept in data-only formats"
        after.restore(files)
        assert set(after.state()) == set(files)
        if isinstance(before, Program | Heuristic) or isinstance(after, Program | Heuristic):
            return
        rows = self.rows()
        assert same(before.decide(rows).to_dict(as_series=False), after.decide(rows).to_dict(as_series=False))

    def test_deciding_does_not_change_the_input(self) -> None:
        model = self.fitted()
        if isinstance(model, Program | Heuristic):
            for instance in self.instances:
                kept = copy.deepcopy(instance)
                self.solve(model, instance)
                assert instance == kept
        else:
            rows = self.rows()
            before = rows.clone()
            model.check(rows, model.decide(rows))
            assert rows.equals(before)

    def test_its_results_say_what_they_are(self) -> None:
        model = self.for_instances()
        for instance in self.instances:
            result = self.solve(model, instance)
            assert result.status in STATUSES
            assert (result.output is None) == (result.status not in ("optimal", "feasible"))
            msgspec.json.encode(user.plain(result))
            assert all(later.seconds >= earlier.seconds for earlier, later in zip(result.incumbents, result.incumbents[1:], strict=False))

    def test_no_bound_is_better_than_what_it_bounds(self) -> None:
        model = self.for_instances()
        for instance in self.instances:
            result = self.solve(model, instance)
            if result.objective is None or result.bound is None:
                continue
            slack = 1e-6 * max(1.0, abs(result.objective))
            better = result.bound - result.objective if result.sense == "minimize" else result.objective - result.bound
            assert better <= slack, f"objective {result.objective} is better than the bound {result.bound}"

    def test_the_reported_objective_is_that_of_the_plan(self) -> None:
        model = self.for_instances()
        for instance in self.instances:
            result = self.solve(model, instance)
            told = result.evidence.get("recomputed")
            if told is not None and result.objective is not None:
                assert math.isclose(told, result.objective, rel_tol=1e-6, abs_tol=1e-6)

    def test_a_deadline_is_kept(self) -> None:
        model = self.for_instances()
        for instance in self.instances:
            result = self.solve(model, instance)
            assert result.seconds <= self.time_limit * 1.25 + 1.0

    def test_a_cancelled_solve_ends_with_a_status(self) -> None:
        model = self.for_instances()
        result = model.solve(self.instances[0], Context(seed=self.seed, time_limit=self.time_limit, is_cancelled=lambda: True))
        assert result.status in STATUSES
        assert result.seconds <= self.time_limit * 1.25 + 1.0

    def test_its_checks_yield_violations(self) -> None:
        model = self.fitted()
        if "check" not in model.verbs:
            raise SkipTest("the model has no check")
        if isinstance(model, Program | Heuristic):
            for instance in self.instances:
                assert all(isinstance(v, Violation) for v in self.solve(model, instance).violations)
        else:
            rows = self.rows()
            assert all(isinstance(v, Violation) for v in model.check(rows, model.decide(rows)))

    def test_its_own_answers_break_none_of_its_rules(self) -> None:
        model = self.fitted()
        if isinstance(model, Program | Heuristic):
            for instance in self.instances:
                assert not self.solve(model, instance).violations
        else:
            rows = self.rows()
            assert not model.check(rows, model.decide(rows))

    def test_each_decision_has_one_finite_loss(self) -> None:
        model = self.fitted()
        if "score" not in model.verbs or not (self.outcome or self.outcomes):
            raise SkipTest("the model has no score, or no outcomes are given")
        if isinstance(model, Program | Heuristic):
            for instance, outcome in zip(self.instances, self.outcomes, strict=True):
                losses = model.score(self.solve(model, instance).output, outcome)
                assert len(losses) == 1
                assert math.isfinite(losses[0])
        else:
            rows = self.rows()
            losses = model.score(model.decide(rows), self.data[self.outcome])
            assert len(losses) == rows.height
            assert np.isfinite(losses).all()


def same(one: Any, two: Any) -> bool:
    """Tell whether two plain values are equal, floats to 1e-9 of each other and NaN to NaN."""
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(one) and math.isnan(two))
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


# --- stores ---
