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
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from operator import eq, ge, gt, le, lt, ne
from pathlib import Path
from random import Random
from typing import Any
from unittest import SkipTest

import msgspec
import numpy as np
import polars as pl
from msgspec.structs import replace

from palan.core import digest
from palan.decisions.nouns import Job
from palan.errors import Corrupt, NotFound, PalanError
from palan.ledger import Entry, link
from palan.models import user
from palan.models.adapt import Adapter, Heuristic, InstanceAdapter, Program, RowsAdapter, adapter
from palan.models.contract import KINDS, SHAPE, STATUSES, Context, Result, Violation
from palan.models.table import Table
from palan.releases.nouns import Arm, Release
from palan.runs.run import Curve, Drawn, Keyset, Run, Step, Value
from palan.runs.search import Both, Condition, Field, Not, Order, parse, parse_order
from palan.stores.contract import Blobs, Blocks, Records

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


# --- stores ---

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


SEARCHES = [
    "", "metrics.loss < 1", "metrics.loss >= 1.5 and params.model = 'trees'", "params.lr > 0.05 or tags.stage = 'draft'", "params.lr = '0.1'", "params.lr = 0.1",
    "not metrics.loss < 1", "metrics.loss is null", "params.model in ('trees', 'Net') and not (status = 'failed' or experiment = 'a')", "params.lr in (0.1, 10)",
    "params.model like 'a\\_%'", "params.model like '%n%'", "params.model ilike '%N%'", "params.model not in ('trees')", "name like '%3%'", "max(metrics.loss) > 40",
    "tags.stage != 'draft'", "metrics.gap > 0", "ended is null", "ended > '2026-03-01T12:00:30'", "not ended > '2026-03-01T12:00:30'", "time <= '2026-03-01T12:00:05'", "id in ('r001', 'r002', 'none')",
    "metrics.none = 1", "params.model like '50\\%'",
]  # fmt: skip
ORDERS = [[], ["metrics.loss"], ["metrics.loss desc", "params.lr"], ["tags.stage", "name desc"], ["ended desc"], ["params.model desc"], ["max(metrics.loss) desc"], ["metrics.none"]]


def _holds(where: Condition, run: Run, values: Mapping[tuple[str, str], Value]) -> bool:
    """Look whether a run fits a search, as the language says it."""
    if isinstance(where, Not):
        return not _holds(where.item, run, values)
    if isinstance(where, Both):
        return (all if where.every else any)(_holds(each, run, values) for each in where.items)
    given = _told(where.field, run, values, number=isinstance((where.values or ("",))[0], float))
    if where.op == "null":
        return given in (None, "") if where.field.kind == "attribute" else (where.field.kind, where.field.key) not in values
    if where.op == "in":
        return any(_told(where.field, run, values, number=isinstance(each, float)) == each for each in where.values)
    if given is None:
        return False
    if where.op in ("like", "ilike"):
        pattern, flags = str(where.values[0]), 0 if where.op == "like" else re.IGNORECASE
        parts = re.split(r"(\\.|%|_)", pattern)
        made = "".join({"%": ".*", "_": "."}.get(part, re.escape(part[1:] if part.startswith("\\") else part)) for part in parts)
        return re.fullmatch(made, str(given), flags) is not None
    return bool({"=": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}[where.op](given, where.values[0]))


def _told(field: Field, run: Run, values: Mapping[tuple[str, str], Value], *, number: bool) -> Any:
    if field.kind == "attribute":
        return getattr(run, field.key)
    value = values.get((field.kind, field.key))
    if value is None:
        return None
    return {"last": value.number, "min": value.least, "max": value.largest}[field.stat] if number or field.kind == "metric" else value.text


def _place(run: Run, values: Mapping[tuple[str, str], Value], order: Sequence[Order]) -> list[Any]:
    found: list[Any] = []
    for each in order:
        told = [_told(each.field, run, values, number=True), _told(each.field, run, values, number=False)] if each.field.kind == "param" else [_told(each.field, run, values, number=False)]
        found += [(value is None, _Falling(value) if each.descending and value is not None else value) for value in told]
    return [*found, _Falling(run.time), run.id]


class _Falling:
    """A value that sorts the other way round."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: _Falling) -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Falling) and self.value == other.value

    __hash__ = None  # type: ignore[assignment]


class RecordsSuite:
    """What holds for records of any kind of store. Give `open`: each call opens the same store once more.

        class TestMine(RecordsSuite):
            def open(self, folder): return MyRecords(folder / "mine.db")
    """

    def open(self, folder: Path) -> Records:
        """Open the store that lives at `folder`, a folder of the one test."""
        raise SkipTest("give open(folder)")

    def test_a_noun_comes_back_as_it_was_put(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)
        run = Run("r1", "build", "delay", "done", NOON, ended=NOON + SECOND, params={"rate": 0.1, "deep": {"é": [1, None]}}, data={"w": 3})
        assert records.get(Run, "r1") is None
        records.put(run)
        assert records.get(Run, "r1") == run
        assert self.open(tmp_path).get(Run, "r1") == run
        records.put(replace(run, status="failed"))
        assert records.find(Run) == [replace(run, status="failed")]

    def test_add_never_replaces(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)
        step = Step("s1", "r1", "fit", {"rows": 3}, {}, NOON, 0.5)
        assert records.add(step)
        assert not records.add(replace(step, value=None))
        assert records.get(Step, "s1") == step

    def test_find_by_fields_time_order_and_limit(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)
        for number in range(6):
            records.put(Run(f"r{number}", "build", "ab"[number % 2], "done", NOON + number * SECOND, ended=NOON if number == 3 else None))

        def ids(**where: Any) -> list[str]:
            return [run.id for run in records.find(Run, **where)]

        assert ids() == ["r0", "r1", "r2", "r3", "r4", "r5"]
        assert ids(subject="b") == ["r1", "r3", "r5"]
        assert ids(subject="b", ended=None) == ["r1", "r5"]
        assert ids(id=["r4", "r0", "none"]) == ["r0", "r4"]
        assert ids(id=()) == []
        assert ids(order="-time", limit=2) == ["r5", "r4"]
        assert ids(since=NOON + SECOND, until=NOON + 3 * SECOND) == ["r1", "r2"]

    def test_a_walk_meets_every_noun_in_the_order_of_its_key(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)
        assert list(records.walk(Run)) == [] and records.verify() == []
        with records.transaction():
            for number in range(1200):
                records.put(Run(f"r{number:04d}", "build", "delay", "done", NOON))
        records.add(link(None, time=NOON, actor="ada", verb="built", subject="delay@1", reason="first"))
        found = list(records.walk(Run))
        assert found == records.find(Run) and len(found) == 1200
        assert list(records.walk(Entry)) == records.find(Entry)
        assert records.verify() == []

    def test_many_nouns_go_in_together_or_not_at_all(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)
        values = [Value("r1", "metric", f"m{number}", number=number / 2) for number in range(30)]
        records.put(Run("r1", "track", "a", "done", NOON), *values, Keyset("k", ("loss",)))
        records.put(replace(values[3], number=7.0), Value("r1", "param", "m3", "text"))
        assert records.find(Value, run="r1", kind="metric", key="m3") == [replace(values[3], number=7.0)]
        assert len(records.find(Value)) == 31 and list(records.walk(Value)) == records.find(Value)
        records.remove(Value, ("r1", "metric", "m3"))
        records.remove(Value, ("r1", "metric", "none"))
        assert len(records.find(Value)) == 30
        with suppress(Exception):  # each database has its own word for it
            records.put(Run("r2", "track", "a", "done", NOON), Run("r3", "track", None, "done", NOON))  # type: ignore[arg-type]
        assert records.get(Run, "r2") is None
        records.put(Curve("r1", "k", 0, 2, b"", bytes(range(256))))
        assert records.find(Curve)[0].data == bytes(range(256)) and records.find(Drawn)[0].points == 2

    def test_a_search_finds_what_a_plain_look_at_everything_finds(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)
        random = Random(7)
        runs: dict[str, Run] = {}
        values: dict[str, dict[tuple[str, str], Value]] = {}
        for number in range(80):
            id = f"r{number:03d}"
            ended = NOON + number * SECOND if number % 3 else None
            runs[id] = Run(id, "track", "ab"[number % 2], random.choice(["done", "failed"]), NOON + random.randrange(20) * SECOND, ended=ended, name=f"Run_{number % 7}%")
            some = [Value(id, "metric", "loss", number=random.randrange(8) / 4, least=-1.0, largest=float(number)), Value(id, "metric", "gap", text="NaN")]
            some += [Value(id, "param", "lr", text=text, number=float(text)) for text in [random.choice(["0.1", "0.01", "10"])]]
            some += [Value(id, "param", "model", text=random.choice(["trees", "Net", "a_b", "50%"])), Value(id, "tag", "stage", text=random.choice(["draft", "final"]))]
            values[id] = {(each.kind, each.key): each for each in some if random.random() < 0.8}
        records.put(*runs.values(), *(each for some in values.values() for each in some.values()))
        for text in SEARCHES:
            where = parse(text)
            expected = {id for id, run in runs.items() if where is None or _holds(where, run, values[id])}
            for order in ORDERS:
                keys = parse_order(order)
                found = [run for run, _ in records.search(Run, where, keys, limit=1000)]
                assert {run.id for run in found} == expected and len(found) == len(expected), text
                assert found == sorted(found, key=lambda run: _place(run, values[run.id], keys)), (text, order)
                paged: list[Run] = []
                after: list[Any] = []
                while page := records.search(Run, where, keys, after=after, limit=7):
                    paged += [run for run, _ in page]
                    after = page[-1][1]
                assert paged == found, (text, order)

    def test_texts_come_by_the_beginning_of_their_key(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)
        given: dict[str, str | None] = {"é \"'\\ key": 'said "é" \\ {"a": [1]}\n\t\u2028\x01\U0001f600', "b": None, "B": "null", "a": "", "rate": "0.10", "z": "9007199254740993"}
        values = [Value(run, "param", key, text) for run in ("r2", "r1") for key, text in reversed(given.items())]
        records.put(*values, Value("r1", "tag", "a", "1e400"), Value("r1", "metric", "a", "NaN"), Value("r3", "param", "a", "of another"))
        found = records.texts(Value, "text", run=["r1", "r2", "none"], kind=["param", "tag"])
        assert found == {("r1", "param"): given, ("r1", "tag"): {"a": "1e400"}, ("r2", "param"): given}
        assert [list(each) for each in found.values() if len(each) > 1] == [sorted(given)] * 2
        assert records.texts(Value, "text", run=()) == {}

    def test_a_transaction_is_all_or_nothing(self, tmp_path: Path) -> None:
        records, other = self.open(tmp_path), self.open(tmp_path)
        run = Run("r1", "build", "delay", "done", NOON)
        try:
            with records.transaction():
                records.put(run)
                with records.transaction(durable=True):
                    records.put(replace(run, id="r2"))
                assert other.find(Run) == []
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        assert records.find(Run) == other.find(Run) == []
        with records.transaction(durable=True):
            records.put(run)
        assert other.find(Run) == [run]

    def test_swap_succeeds_for_one_of_many(self, tmp_path: Path) -> None:
        first = Release("delay", 1, NOON, (Arm("delay@1", "champion", 1.0),))
        stores = [self.open(tmp_path) for _ in range(8)]
        assert stores[0].swap(first, epoch=0)
        assert not stores[1].swap(first, epoch=0)
        assert not stores[1].swap(replace(first, epoch=3), epoch=2)
        won: list[list[int]] = [[] for _ in stores]
        start = threading.Barrier(len(stores))

        def compete(place: int) -> None:
            start.wait()
            for epoch in range(1, 11):
                if stores[place].swap(replace(first, epoch=epoch + 1, reason=str(place)), epoch=epoch):
                    won[place].append(epoch)

        threads = [threading.Thread(target=compete, args=(place,)) for place in range(len(stores))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(epoch for each in won for epoch in each) == list(range(1, 11))
        found = stores[0].get(Release, "delay")
        assert found is not None and found.epoch == 11

    def test_what_is_claimed_goes_to_one_alone_and_in_order(self, tmp_path: Path) -> None:
        stores = [self.open(tmp_path) for _ in range(4)]
        jobs = [Job(f"j{number:02d}", "ab"[number % 2], "a@1", "queued", NOON, "{}", priority=number % 3, queue=f"q{number % 4}") for number in range(60)]
        stores[0].put(*jobs)
        turn = sorted((each for each in jobs if each.model == "a"), key=lambda job: (-job.priority, job.id))

        def claim(records: Records, limit: int, **more: Any) -> list[Job]:
            return records.claim(Job, {"fate": "running", "holder": "me", "expires": NOON}, order=("-priority", "id"), limit=limit, model="a", fate="queued", **more)

        first = claim(stores[0], 3)
        assert {each.id for each in first} == {each.id for each in turn[:3]}
        assert {(each.fate, each.holder, each.expires) for each in first} == {("running", "me", NOON)}
        assert stores[1].get(Job, first[0].id) == first[0]
        assert claim(stores[1], 5, but={"queue": ["q0", "q2"]}) == [] and claim(stores[1], 5, id=first[0].id) == []
        with stores[2].transaction():
            (inside,) = claim(stores[2], 1)
        taken: list[list[str]] = [[] for _ in stores]

        def compete(place: int) -> None:
            while some := claim(stores[place], 2):
                taken[place] += [each.id for each in some]

        threads = [threading.Thread(target=compete, args=(place,)) for place in range(len(stores))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(id for each in taken for id in each) == sorted(each.id for each in turn if each.id not in {inside.id, *(one.id for one in first)})
        assert len(stores[3].find(Job, fate="queued")) == 30

    def test_what_is_added_under_a_lease_needs_the_lease(self, tmp_path: Path) -> None:
        one, two = self.open(tmp_path), self.open(tmp_path)
        mine = one.lease("build", "a", 5 * SECOND, now=NOON)
        assert mine is not None
        steps = [Step(f"s{number}", "r1", "fit", {"value": number}, {}, NOON, 0.5) for number in range(4)]
        assert one.add(steps[0], under=mine)
        assert not one.add(replace(steps[0], name="other"), under=mine)  # the key is taken
        taken = two.lease("build", "b", 5 * SECOND, now=NOON + 7 * SECOND)
        assert taken is not None
        assert not one.add(steps[1], under=mine)
        assert two.add(steps[2], under=taken)
        two.free(taken)
        assert not two.add(steps[3], under=taken)
        assert [step.name for step in sorted(one.find(Step), key=lambda step: step.id)] == ["fit", "fit"]

    def test_a_lease_is_not_taken_over_in_the_middle_of_what_is_added_under_it(self, tmp_path: Path) -> None:
        one, two = self.open(tmp_path), self.open(tmp_path)
        mine = one.lease("build", "a", SECOND, now=NOON)
        assert mine is not None
        seen: list[list[Step]] = []

        def take() -> None:
            assert two.lease("build", "b", SECOND, now=NOON + 2 * SECOND) is not None
            seen.append(two.find(Step))

        taker = threading.Thread(target=take)
        with one.transaction():
            assert one.add(Step("s1", "r1", "fit", 1, {}, NOON, 0.5), under=mine)
            taker.start()
            taker.join(0.1)
            assert not seen  # it waits
        taker.join()
        assert [step.id for step in seen[0]] == ["s1"]  # a successor sees all that was recorded before it

    def test_a_lease_has_one_holder_and_its_token_rises(self, tmp_path: Path) -> None:
        one, two = self.open(tmp_path), self.open(tmp_path)
        ttl = 5 * SECOND
        lease = one.lease("build", "a", ttl, now=NOON)
        assert lease is not None and lease.expires == NOON + ttl
        assert two.lease("build", "b", ttl, now=NOON + SECOND) is None
        again = one.lease("build", "a", ttl, now=NOON + 2 * SECOND)
        assert again is not None and again.token == lease.token
        assert two.lease("build", "b", ttl, now=NOON + 6 * SECOND) is None  # it was extended
        taken = two.lease("build", "b", ttl, now=NOON + 7 * SECOND)
        assert taken is not None and taken.token > lease.token
        assert one.lease("build", "a", ttl, now=NOON + 8 * SECOND) is None
        one.free(lease)  # not its own any more: nothing happens
        assert one.lease("build", "a", ttl, now=NOON + 8 * SECOND) is None
        two.free(taken)
        back = one.lease("build", "a", ttl, now=NOON + 8 * SECOND)
        assert back is not None and back.token > taken.token

    def test_the_ledger_only_grows(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)
        entry = link(None, time=NOON, actor="ada", verb="built", subject="delay@1", reason="first")
        assert records.add(entry) and not records.add(entry)
        refused = False
        try:
            records.put(replace(entry, reason="edited"))
        except Exception:  # noqa: BLE001  # each store refuses in its own words
            refused = True
        assert refused and records.find(type(entry)) == [entry]

    def test_close_twice(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)
        records.close()
        records.close()


class BlocksSuite:
    """What holds for blocks of any kind of store. Give `open`: each call opens the same store once more."""

    def open(self, folder: Path) -> Blocks:
        """Open the store that lives at `folder`, a folder of the one test."""
        raise SkipTest("give open(folder)")

    def test_frames_come_back_whole_and_in_order(self, tmp_path: Path) -> None:
        blocks = self.open(tmp_path)
        frames = [b"a", b"\0" * 9, bytes(range(256)) * 300]
        assert list(blocks.scan("decisions/delay")) == []
        blocks.append("decisions/delay", frames[:1])
        blocks.append("decisions/delay", frames[1:], durable=True)
        blocks.append("decisions/other", [b"else"])
        assert [frame.data for frame in blocks.scan("decisions/delay")] == frames
        assert [frame.data for frame in self.open(tmp_path).scan("decisions/delay")] == frames

    def test_a_scan_goes_on_where_the_last_one_ended(self, tmp_path: Path) -> None:
        one, two = self.open(tmp_path), self.open(tmp_path)
        position: dict[str, int] = {}
        seen: list[bytes] = []
        for number in range(6):
            (one, two)[number % 2].append("s", [b"%d" % number, b"!"])
            for frame in one.scan("s", position):
                seen.append(frame.data)
                position[frame.segment] = frame.end
        assert seen == [part for number in range(6) for part in (b"%d" % number, b"!")]

    def test_who_may_still_write_is_known(self, tmp_path: Path) -> None:
        one, two = self.open(tmp_path), self.open(tmp_path)
        assert one.writers("s") == {}
        one.append("s", [b"x"])
        two.append("s", [b"y"])
        known = {frame.segment.partition("_")[0]: frame.data for frame in one.scan("s")}
        assert one.writers("s") == two.writers("s") == dict.fromkeys(known, True)
        getattr(two, "close", lambda: None)()
        assert {known[name]: alive for name, alive in one.writers("s").items()} == {b"x": True, b"y": False}

    def test_an_empty_frame_is_refused(self, tmp_path: Path) -> None:
        blocks = self.open(tmp_path)
        for frames in ([b""], [b"a", b""]):
            try:
                blocks.append("s", frames)
            except ValueError:
                continue
            raise AssertionError("an empty frame was taken")
        assert list(blocks.scan("s")) == []

    def test_names_that_would_leave_the_store_are_refused(self, tmp_path: Path) -> None:
        blocks = self.open(tmp_path)
        for stream in ("", "/etc", "../up", "a/../b", "a//b", "a b", "a\0b"):
            try:
                blocks.append(stream, [b"x"])
            except PalanError:
                continue
            raise AssertionError(f"{stream!r} was taken as the name of a stream")

    def test_nothing_is_lost_that_was_closed(self, tmp_path: Path) -> None:
        blocks = self.open(tmp_path)
        assert blocks.lost() == [] and blocks.streams() == []
        blocks.append("a", [b"one"])
        blocks.append("b/c", [b"two", b"three"])
        assert blocks.streams() == ["a", "b/c"]
        assert blocks.lost() == []
        getattr(blocks, "close", lambda: None)()
        assert blocks.lost() == self.open(tmp_path).lost() == []
        blocks.append("a", [b"four"])
        assert blocks.compact("b/c") == 2
        assert blocks.streams() == ["a", "b/c"]
        assert blocks.lost() == [] and [frame.data for frame in blocks.scan("b/c")] == [b"two", b"three"]

    def test_all_that_is_whole_is_verified(self, tmp_path: Path) -> None:
        blocks = self.open(tmp_path)
        assert list(blocks.verify()) == []
        blocks.append("a", [b"one", b"two"])
        getattr(blocks, "close", lambda: None)()
        blocks.append("b/c", [b"three"])
        blocks.compact("a")
        found = list(blocks.verify())
        assert sum(each.frames for each in found) == 3 and all(each.bytes > 0 and not each.damage for each in found)

    def test_what_is_read_many_frames_at_a_time_is_what_a_scan_yields(self, tmp_path: Path) -> None:
        one, two = self.open(tmp_path), self.open(tmp_path)
        assert one.sizes("s") == {}
        one.append("s", [bytes([number % 7]) * (20 + number // 60) for number in range(200)])
        one.append("s", [b"x" * 30_000 for _ in range(90)])
        two.append("s", [b"two", b"last"])

        def told(blocks: Blocks, after: Mapping[str, int]) -> list[tuple[str, int, bytes]]:
            found = []
            for segment, size in blocks.sizes("s").items():
                end = after.get(segment, 0)
                for batch in blocks.read("s", segment, end):
                    assert batch.segment == segment and batch.end > end
                    end = batch.end
                    found += [(segment, int(place), bytes(frame)) for ends, frames in batch.tables for place, frame in zip(ends, frames, strict=True)]
                assert end == size
            return sorted(found)

        every = sorted((frame.segment, frame.end, frame.data) for frame in one.scan("s"))
        middle = {segment: end for segment, end, _ in every[:100]}
        assert told(one, {}) == every and len(every) == 292
        assert told(one, middle) == [each for each in every if each[1] > middle.get(each[0], 0)]
        getattr(one, "close", lambda: None)()
        sizes = two.sizes("s")
        while not two.compact("s"):
            time.sleep(0.01)  # its end is seen in a moment
        assert two.sizes("s") == sizes
        assert told(two, {}) == every and told(two, middle) == [each for each in every if each[1] > middle.get(each[0], 0)]
        assert told(self.open(tmp_path), sizes) == []

    def test_compaction_changes_nothing_that_is_read(self, tmp_path: Path) -> None:
        old, live = self.open(tmp_path), self.open(tmp_path)
        old.append("s", [b"%d" % number for number in range(50)])
        position = {frame.segment: frame.end for frame in list(old.scan("s"))[:20]}
        getattr(old, "close", lambda: None)()  # its process ends
        live.append("s", [b"live"])
        before = sorted(frame.data for frame in live.scan("s"))
        assert live.compact("s") == 50
        assert live.compact("s") == 0
        live.append("s", [b"later"])
        assert sorted(frame.data for frame in live.scan("s")) == sorted([*before, b"later"])
        assert sorted(frame.data for frame in live.scan("s", position)) == sorted([*(b"%d" % number for number in range(20, 50)), b"live", b"later"])


class BlobsSuite:
    """What holds for blobs of any kind of store. Give `open`; `damage` makes one stored blob differ from what was put."""

    def open(self, folder: Path) -> Blobs:
        """Open the store that lives at `folder`, a folder of the one test."""
        raise SkipTest("give open(folder)")

    def damage(self, folder: Path, key: str) -> None:
        """Change the stored bytes of a blob behind the store's back."""
        raise SkipTest("give damage(folder, key)")

    def test_bytes_come_back_under_their_digest(self, tmp_path: Path) -> None:
        blobs = self.open(tmp_path)
        for data in (b"", b"plan", bytes(range(256)) * 9000):
            key = blobs.put(data)
            assert key == digest(data) == blobs.put(data)
            assert blobs.has(key) and blobs.get(key) == data
            now = datetime.now(UTC)
            assert blobs.touch(key) and blobs.remove(key, now - timedelta(minutes=1)) is None and not list(blobs.unused(now - timedelta(minutes=1)))
            assert dict(blobs.unused(now + timedelta(days=1)))[key] == len(data)
            assert self.open(tmp_path).get(key) == data
        assert not blobs.touch(digest(b"never put"))

    def test_files_are_streamed_in_and_out(self, tmp_path: Path) -> None:
        blobs = self.open(tmp_path / "store")
        given, back = tmp_path / "given", tmp_path / "deep" / "back"
        given.write_bytes(b"x" * 3_000_001)
        key = blobs.put(given)
        assert blobs.get(key, back) == b"" and back.read_bytes() == given.read_bytes()
        try:
            blobs.put(tmp_path / "none")
        except NotFound:
            return
        raise AssertionError("a file that is not there was put")

    def test_every_blob_can_be_listed_and_verified(self, tmp_path: Path) -> None:
        blobs = self.open(tmp_path)
        assert list(blobs.names()) == []
        sizes = {blobs.put(bytes(size)): size for size in (0, 5, 3_000_001)}
        assert sorted(blobs.names()) == sorted(sizes)
        assert {key: blobs.verify(key) for key in sizes} == sizes

    def test_what_is_not_there_is_not_found(self, tmp_path: Path) -> None:
        blobs = self.open(tmp_path)
        for key in ("0" * 64, "", "../../etc/passwd", "A" * 64):
            try:
                assert not blobs.has(key)
            except NotFound:
                continue
            for read in (blobs.get, blobs.verify):
                try:
                    read(key)
                except NotFound:
                    continue
                raise AssertionError(f"{key!r} was found")

    def test_damage_is_refused_with_both_digests_and_healed_by_a_put(self, tmp_path: Path) -> None:
        blobs = self.open(tmp_path)
        key = blobs.put(b"a model")
        self.damage(tmp_path, key)
        into = tmp_path / "into"
        reads = (blobs.get, lambda key: blobs.get(key, into), blobs.verify)
        for read in reads:
            try:
                read(key)
            except Corrupt as error:
                found = [word for word in error.what.replace(",", " ").split() if len(word) == 64]
                assert key in found and len(set(found)) == 2, error.what
                continue
            raise AssertionError("damaged bytes were returned")
        assert not into.exists()
        blobs.put(b"a model")
        assert blobs.get(key) == b"a model"
