"""Whatever decides, it is called in the same way: one suite for all kinds, and what each of them refuses."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import highspy
import numpy as np
import polars as pl
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from palan.errors import Corrupt, ModelFailed, PalanError
from palan.models import state
from palan.models.adapt import adapter
from palan.models.contract import Context, Incumbent, Violation
from palan.models.policy import Policy
from palan.models.program import Program
from palan.models.table import parse
from palan.testing import ModelSuite

RNG = np.random.default_rng(3)
HOUSES = pl.DataFrame({"area": RNG.uniform(40, 200, 300), "rooms": RNG.integers(1, 7, 300)}).with_columns(
    price=pl.col("area") * 3 + pl.col("rooms") * 10
)


@dataclass
class Mean:
    """The mean of each group, and of all for a group never seen."""

    group: str = "rooms"

    def fit(self, data: pl.DataFrame) -> None:
        self.means = dict(data.group_by(self.group).agg(pl.col("price").mean()).iter_rows())
        self.overall = float(data["price"].mean())  # type: ignore[arg-type]

    def decide(self, rows: pl.DataFrame) -> np.ndarray[Any, Any]:
        return np.array([self.means.get(value, self.overall) for value in rows[self.group]], dtype=float)

    def check(self, rows: pl.DataFrame, decisions: pl.DataFrame) -> Any:
        if (decisions["output"] < 0).any():
            yield Violation("prices are positive")

    def score(self, decisions: pl.DataFrame, outcomes: Any) -> Any:
        return (decisions["output"].to_numpy() - np.asarray(outcomes)) ** 2


class TestAnEstimatorClass(ModelSuite):
    make = Mean
    data = HOUSES
    inputs = ("area", "rooms")
    outcome = "price"


class TestAPipelineAsItIs(ModelSuite):
    make = make_pipeline(StandardScaler(), LinearRegression()).fit(HOUSES.select("area", "rooms"), HOUSES["price"])
    data = HOUSES
    inputs = ("area", "rooms")
    outcome = "price"


class TestALearnersClass(ModelSuite):
    make = HistGradientBoostingClassifier
    params = {"max_iter": 5, "random_state": 0}
    data = HOUSES.with_columns(dear=pl.col("price") > 400).drop("price")
    inputs = ("area", "rooms")
    outcome = "dear"


@dataclass
class Knapsack:
    """Take the most valuable things that fit."""

    slack: float = 0.0

    def formulate(self, instance: dict[str, Any]) -> highspy.Highs:
        model = highspy.Highs()
        take = [model.addBinary(obj=-float(thing["value"]), name=thing["id"]) for thing in instance["things"]]
        model.addConstr(sum(thing["weight"] * var for thing, var in zip(instance["things"], take, strict=True)) <= instance["room"] + self.slack, name="room")
        for name, low in instance.get("at_least", {}).items():
            model.addConstr(sum(take) >= low, name=name)
        return model

    def interpret(self, instance: dict[str, Any], solution: Any) -> dict[str, Any]:
        return {"taken": [thing["id"] for thing, value in zip(instance["things"], solution.col_value, strict=True) if value > 0.5]}

    def objective(self, instance: dict[str, Any], plan: dict[str, Any]) -> float:
        return -float(sum(thing["value"] for thing in instance["things"] if thing["id"] in plan["taken"]))

    def check(self, instance: dict[str, Any], plan: dict[str, Any]) -> Any:
        weight = sum(thing["weight"] for thing in instance["things"] if thing["id"] in plan["taken"])
        if weight > instance["room"] + 1e-6:
            yield Violation("it fits", "room", weight - instance["room"])

    def score(self, plan: dict[str, Any], outcome: float) -> float:
        return outcome - len(plan["taken"])


def things(count: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    weights, values = rng.integers(5, 60, count), rng.integers(5, 60, count)
    return {"things": [{"id": f"t{i}", "weight": int(weights[i]), "value": int(values[i])} for i in range(count)], "room": int(weights.sum() // 3)}


class TestAProgram(ModelSuite):
    make = Knapsack
    instances = [things(12, 0), things(25, 1)]
    outcomes = [5.0, 9.0]


@dataclass
class Greedy(Knapsack):
    """Best value for its weight first, then random exchanges until there is no better for a while."""

    tries: int = 200
    formulate = None  # type: ignore[assignment]

    def decide(self, instance: dict[str, Any], ctx: Context) -> dict[str, Any]:
        order = sorted(instance["things"], key=lambda thing: -thing["value"] / thing["weight"])
        rng = np.random.default_rng(ctx.seed)
        best: dict[str, Any] = {"taken": []}
        for _ in range(self.tries):
            plan: dict[str, Any] = {"taken": []}
            room = instance["room"]
            for thing in order:
                if thing["weight"] <= room:
                    plan["taken"].append(thing["id"])
                    room -= thing["weight"]
            if not best["taken"] or self.objective(instance, plan) < self.objective(instance, best):
                best = plan
                ctx.incumbent(plan, self.objective(instance, plan))
            if ctx.cancelled():
                break
            i, j = rng.integers(0, len(order), 2)
            order[i], order[j] = order[j], order[i]
        return best


class TestAHeuristic(ModelSuite):
    make = Greedy
    kind = "heuristic"
    instances = TestAProgram.instances
    outcomes = TestAProgram.outcomes


class TestADecisionTable(ModelSuite):
    make = parse("area, rooms, -> offer\n< 60, -, small\n[60..120), <= 3, middle\n-, -, large\n")
    data = HOUSES.drop("price")


def by_area(rows: pl.DataFrame, limit: float = 100.0) -> pl.Series:
    return rows["area"] > limit


class TestRulesInPython(ModelSuite):
    make = staticmethod(by_area)
    params = {"limit": 80.0}
    data = HOUSES.drop("price")


class Corridor(gymnasium.Env[np.ndarray[Any, Any], int]):
    """Walk to the end of a corridor of a random length; each step costs one, walking back two."""

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(-20, 20, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.left, self.steps = int(self.np_random.integers(3, 10)), 0
        return np.array([self.left], dtype=float), {}

    def step(self, action: int) -> tuple[np.ndarray[Any, Any], float, bool, bool, dict[str, Any]]:
        self.left += -1 if action == 1 else 1
        self.steps += 1
        return np.array([self.left], dtype=float), -1.0 - (action == 0), self.left <= 0, self.steps >= 40, {}


@dataclass
class Walk:
    turn: float = 0.0

    def act(self, observation: np.ndarray[Any, Any]) -> int:
        return int(observation[0] > self.turn)

    def environment(self) -> Corridor:
        return Corridor()


class TestAPolicy(ModelSuite):
    make = Walk
    data = pl.DataFrame({"left": [3.0, 0.0, -2.0]})


def test_a_policy_is_compared_with_baselines_in_its_environment() -> None:
    model = adapter(Walk)
    assert isinstance(model, Policy)
    returns = model.evaluate(5, seed=1)
    assert set(returns) == {"policy", "random", "always 0", "always 1"}
    assert returns["policy"] == returns["always 1"]  # walking on is the best there is
    assert returns["policy"] == model.evaluate(5, seed=1)["policy"]
    assert all(mine > lost for mine, lost in zip(returns["policy"], returns["always 0"], strict=True))


def test_observations_are_dicts_where_a_column_is_text() -> None:
    @dataclass
    class Greet:
        def act(self, observation: dict[str, Any]) -> str:
            return f"{observation['name']}!"

    answer = adapter(Greet).decide(pl.DataFrame({"name": ["Ada", "Alan"]}))  # type: ignore[union-attr]
    assert answer["output"].to_list() == ["Ada!", "Alan!"]


# --- kinds and parameters ---


def test_a_mistyped_parameter_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(PalanError) as refused:
        adapter(Mean, params={"gruop": "rooms"})
    assert refused.value.hint == 'did you mean "group"?'


def test_a_class_without_verbs_is_told_what_it_lacks() -> None:
    class Nothing:
        pass

    with pytest.raises(PalanError, match="no model"):
        adapter(Nothing)
    with pytest.raises(PalanError, match="kind program but has no formulate"):
        adapter(Mean, "program")
    with pytest.raises(PalanError) as refused:
        adapter(Mean, "estimater")
    assert "estimator" in refused.value.hint


def test_what_a_model_raises_names_its_line() -> None:
    class Broken:
        def decide(self, rows: pl.DataFrame) -> list[float]:
            return [1 / 0]

    with pytest.raises(ModelFailed) as failed:
        adapter(Broken).decide(HOUSES)  # type: ignore[union-attr]
    assert "Broken.decide raised ZeroDivisionError: division by zero (test_models_conformance.py:" in failed.value.what
    assert "return [1 / 0]" in failed.value.what
    assert "Traceback" in failed.value.log


def test_answers_must_be_as_many_as_rows() -> None:
    class Short:
        def decide(self, rows: pl.DataFrame) -> list[float]:
            return [1.0]

    with pytest.raises(ModelFailed, match="returned 1 answers for 300 rows"):
        adapter(Short).decide(HOUSES)  # type: ignore[union-attr]


def test_an_answer_that_is_not_a_number_is_a_violation() -> None:
    class Lost:
        def fit(self, data: Any) -> None: ...

        def decide(self, rows: pl.DataFrame) -> list[float]:
            return [float("nan")] * rows.height

    model = adapter(Lost)
    rows = HOUSES.head(3)
    assert model.check(rows, model.decide(rows))[0].amount == 3  # type: ignore[union-attr]


def test_a_loss_for_each_decision_not_their_mean() -> None:
    class Averaging(Mean):
        def score(self, decisions: pl.DataFrame, outcomes: Any) -> Any:
            return super().score(decisions, outcomes).mean()

    model = adapter(Averaging)
    model.fit(HOUSES)
    with pytest.raises(ModelFailed, match="returned 1 losses for 300 decisions"):
        model.score(model.decide(HOUSES), HOUSES["price"])  # type: ignore[union-attr]


# --- what was learnt ---


@dataclass
class Holder:
    seed: int = 0
    kept: Any = field(default=None, init=False, repr=False)


def test_what_can_be_kept_comes_back_as_it_was() -> None:
    model = Holder()
    model.everything = {  # type: ignore[attr-defined]
        "plain": [1, 2.5, "ä", None, True],
        "odd": (float("inf"), {3, 1}, frozenset(["a"]), b"\x00"),
        "keys": {1: "a", (2, 3): "b"},
        "dollar": {"$": "not a form"},
        "when": [dt.datetime(2013, 5, 1, tzinfo=dt.UTC), dt.date(2013, 5, 1)],
    }
    model.array = np.arange(6, dtype=np.float32).reshape(2, 3)  # type: ignore[attr-defined]
    model.words = np.array(["a", None, "c"], dtype=object)  # type: ignore[attr-defined]
    model.frame = HOUSES  # type: ignore[attr-defined]
    files = state.dump(model)
    back: Any = state.load(Holder(), files)
    assert back.everything == model.everything  # type: ignore[attr-defined]
    assert back.array.dtype == np.float32
    assert np.array_equal(back.array, model.array)  # type: ignore[attr-defined]
    assert list(back.words) == ["a", None, "c"]
    assert back.frame.equals(HOUSES)
    assert files == state.dump(back)


@pytest.mark.parametrize("value", [lambda: 1, object(), Mean()], ids=["function", "object", "another model"])
def test_what_cannot_be_kept_is_named(value: Any) -> None:
    model: Any = Holder()
    model.tree = {"deep": [value]}
    with pytest.raises(PalanError, match=r"'tree\.deep\.0'"):
        state.dump(model)


def test_a_state_with_a_foreign_type_is_not_loaded() -> None:
    import io
    import json
    import zipfile

    model: Any = Holder()
    model.learner = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    files = state.dump(model)
    name = next(name for name in files if name.endswith(".skops"))
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(files[name])) as old, zipfile.ZipFile(changed, "w") as new:
        for item in old.namelist():
            data = old.read(item)
            if item == "schema.json":
                schema = json.loads(data)
                schema["__module__"], schema["__class__"] = "subprocess", "Popen"
                data = json.dumps(schema).encode()
            new.writestr(item, data)
    with pytest.raises(PalanError, match=r"subprocess\.Popen"):
        state.load(Holder(), {**files, name: changed.getvalue()})


def test_a_damaged_state_is_refused() -> None:
    model: Any = Holder()
    model.array = np.arange(3)
    files = state.dump(model)
    with pytest.raises(Corrupt):
        state.load(Holder(), {**files, "array.npy": files["array.npy"][:40]})
    with pytest.raises(Corrupt):
        state.load(Holder(), {"state.json": files["state.json"]})


# --- programs ---


def solve(model: Any, instance: Any, **options: Any) -> Any:
    found: list[Incumbent] = []
    result = Program(model).solve(instance, Context(on_incumbent=found.append, **options))
    return result, found


def test_an_optimum_is_proved_and_its_incumbents_were_streamed() -> None:
    result, found = solve(Knapsack(), things(40, 5), time_limit=10.0)
    assert result.status == "optimal"
    assert result.gap <= 1e-4
    assert result.evidence["recomputed"] == pytest.approx(result.objective)
    assert found
    plans = [incumbent for incumbent in found if incumbent.output is not None]
    assert plans[-1].objective == pytest.approx(result.objective)
    assert plans[-1].output == result.output


def test_an_infeasible_program_names_the_rows_that_clash() -> None:
    instance = {**things(10, 2), "at_least": {"most of them": 9, "one of them": 1}}
    result, _ = solve(Knapsack(), instance)
    assert result.status == "infeasible"
    assert result.output is None
    assert sorted(result.explain["iis"]) == ["most of them", "room"]
    assert result.explain["irreducible"]


def test_whole_numbers_alone_can_make_it_infeasible() -> None:
    class Half:
        def formulate(self, instance: Any) -> highspy.Highs:
            model = highspy.Highs()
            x, y = model.addBinary(name="x"), model.addBinary(name="y")
            model.addConstr(x + y <= 2, name="harmless")
            model.addConstr(x + y >= 1.2, name="more than one")
            model.addConstr(x + y <= 1.8, name="less than two")
            return model

    result, _ = solve(Half(), {})
    assert result.status == "infeasible"
    assert sorted(result.explain["iis"]) == ["less than two", "more than one"]


@pytest.mark.parametrize("where", ["cost", "infinite cost", "matrix", "bound", "instance"])
def test_numbers_that_no_solver_can_take_are_refused_before_it_runs(where: str) -> None:
    class Bad:
        def formulate(self, instance: Any) -> highspy.Highs:
            model = highspy.Highs()
            nan = float("nan")
            x = model.addVariable(lb=nan if where == "bound" else 0.0, ub=1.0, name="x")
            model.addConstr((nan if where == "matrix" else 1.0) * x + model.addVariable(name="y") >= 1.0)
            if where.endswith("cost"):
                model.changeColCost(0, nan if where == "cost" else float("inf"))
            return model

    result, _ = solve(Bad(), {"demand": float("nan") if where == "instance" else 1.0})
    assert result.status == "invalid_input"
    assert "nan" in result.evidence["faults"][0] or "inf" in result.evidence["faults"][0]


def test_an_unbounded_program_says_so() -> None:
    class Free:
        def formulate(self, instance: Any) -> highspy.Highs:
            model = highspy.Highs()
            model.addVariable(lb=0.0, obj=-1.0, name="x")
            return model

    assert solve(Free(), {})[0].status == "unbounded"


def test_without_interpret_the_plan_names_the_columns() -> None:
    class Plain:
        def formulate(self, instance: Any) -> highspy.Highs:
            model = highspy.Highs()
            model.addVariable(lb=2.0, obj=1.0, name="x")
            return model

    result, _ = solve(Plain(), {})
    assert (result.status, result.output, result.objective) == ("optimal", {"x": 2.0}, 2.0)


def test_a_model_of_another_solver_is_refused_by_name() -> None:
    class Other:
        def formulate(self, instance: Any) -> Any:
            return {"minimize": "x"}

    with pytest.raises(ModelFailed) as failed:
        solve(Other(), {})
    assert "highspy.Highs" in failed.value.hint


def test_an_error_in_interpret_comes_out_of_the_solver_unharmed() -> None:
    class Misread(Knapsack):
        def interpret(self, instance: dict[str, Any], solution: Any) -> dict[str, Any]:
            raise KeyError("no such thing")

    with pytest.raises(ModelFailed, match=r"Misread\.interpret raised KeyError"):
        solve(Misread(), things(20, 1))


def test_an_incumbent_is_what_it_was_when_it_was_published() -> None:
    class Mutating:
        def decide(self, instance: Any, ctx: Context) -> Any:
            plan: dict[str, list[int]] = {"steps": []}
            for step in range(3):
                plan["steps"].append(step)
                ctx.incumbent(plan, -float(step))
            return None

    result = adapter(Mutating).solve({}, Context())  # type: ignore[union-attr]
    assert [len(found.output["steps"]) for found in result.incumbents] == [1, 2, 3]
    assert result.output == {"steps": [0, 1, 2]}
    assert result.objective == -2.0


def shortest_first(jobs: dict[str, int]) -> list[str]:
    return sorted(jobs, key=lambda name: jobs[name])


def shortest_in_time(jobs: dict[str, int], ctx: Context, backwards: bool = False) -> list[str]:
    assert ctx.seed == 7
    return shortest_first(jobs)[:: -1 if backwards else 1]


def in_any_case(jobs: dict[str, int], backwards: bool = False) -> list[str]:
    return shortest_first(jobs)[:: -1 if backwards else 1]


class InAClass:
    def decide(self, instance: dict[str, int]) -> list[str]:
        return shortest_first(instance)


@pytest.mark.parametrize(
    ("entry", "params", "order"),
    [
        (shortest_first, {}, ["saw", "paint"]),
        (shortest_in_time, {}, ["saw", "paint"]),
        (shortest_in_time, {"backwards": True}, ["paint", "saw"]),
        (in_any_case, {}, ["saw", "paint"]),
        (in_any_case, {"backwards": True}, ["paint", "saw"]),
        (InAClass, {}, ["saw", "paint"]),
    ],
)
@pytest.mark.parametrize("kind", ["heuristic", ""])
def test_a_heuristic_takes_the_instance_with_or_without_a_context(entry: Any, params: dict[str, Any], order: list[str], kind: str) -> None:
    made = adapter(entry, kind, params)
    assert made.kind == "heuristic"
    assert made.solve({"paint": 3, "saw": 1}, Context(seed=7)).output == order  # type: ignore[union-attr]


def test_a_function_of_columns_is_not_taken_for_one_of_an_instance() -> None:
    with pytest.raises(PalanError, match=r"shortest_first\(jobs\) do not tell its kind") as refused:
        adapter(shortest_first, inputs=["hours"])
    assert "call its argument rows" in refused.value.hint


def emptiest(instance: Any) -> highspy.Highs:
    return highspy.Highs()


def by_way_of_another(instance: Any) -> highspy.Highs:
    return emptiest(instance)


def imported_inside(instance: Any) -> Any:
    from highspy import Highs

    return Highs()


@pytest.mark.parametrize("entry", [emptiest, by_way_of_another, imported_inside])
def test_a_function_that_works_with_a_solver_is_a_program(entry: Any) -> None:
    assert adapter(entry).kind == "program"


def test_a_function_of_the_other_kind_is_told_which() -> None:
    with pytest.raises(ModelFailed) as failed:
        adapter(shortest_first, "program").solve({"saw": 1}, Context())  # type: ignore[union-attr]
    assert 'kind = "heuristic"' in failed.value.hint
    with pytest.raises(ModelFailed) as failed:
        adapter(emptiest, "heuristic").solve({}, Context())  # type: ignore[union-attr]
    assert failed.value.hint == 'set kind = "program"'


def test_better_bounds_are_told_while_the_plan_stays() -> None:
    # a hard little problem: many ways to share equal weights out, so that the bound creeps
    class Share:
        def formulate(self, instance: Any) -> highspy.Highs:
            rng = np.random.default_rng(4)
            model = highspy.Highs()
            take = [model.addBinary(obj=-float(value)) for value in rng.integers(40, 60, 60)]
            for _ in range(12):
                weights = rng.integers(30, 70, 60)
                model.addConstr(sum(int(w) * x for w, x in zip(weights, take, strict=True)) <= int(weights.sum() // 2))
            return model

    result, found = solve(Share(), {}, time_limit=1.5)
    bounds = [incumbent.bound for incumbent in found if incumbent.bound is not None]
    assert result.status in ("optimal", "feasible")
    assert any(incumbent.output is None for incumbent in found)
    assert bounds == sorted(bounds), "a bound of a minimum only rises"
    assert bounds[-1] <= result.objective + 1e-6


def test_a_formulation_that_solves_something_itself_first_is_solved_too() -> None:
    class TwoStages:
        def formulate(self, instance: Any) -> highspy.Highs:
            first, second = highspy.Highs(), highspy.Highs()
            first.setOptionValue("threads", 2)
            first.addConstr(first.addBinary(obj=-1.0) + first.addBinary(obj=-2.0) <= 1)
            first.run()
            second.addConstr(second.addBinary(obj=first.getObjectiveValue(), name="x") <= 1)
            return second

    for _ in range(2):
        result, _ = solve(TwoStages(), {})
        assert (result.status, result.output) == ("optimal", {"x": 1.0})
