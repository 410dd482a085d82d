"""The five models of the flights example, as plain Python on the year that was recorded."""

from __future__ import annotations

import csv
import itertools
import json
import sys
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "flights"
sys.path.insert(0, str(EXAMPLE))

import apron  # noqa: E402
import delay  # noqa: E402
import features  # noqa: E402
import gates  # noqa: E402
import gates_fast  # noqa: E402
import hold  # noqa: E402
import world  # noqa: E402
from palan.core import Field, Schema  # noqa: E402
from palan.data import contract, reading, verdict  # noqa: E402
from palan.flows.config import load  # noqa: E402
from palan.models import state, table  # noqa: E402
from palan.models.adapt import adapter  # noqa: E402
from palan.models.contract import Context  # noqa: E402

# Everything that the airport learns only when, or after, a flight leaves.
KNOWN_LATER = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "late", "cancelled"}
INPUTS = [*features.CATEGORIES, *features.NUMBERS]


def raw(name: str, months: list[str]) -> pl.DataFrame:
    frame = pl.concat(pl.read_parquet(world.DATA / f"{name}-{month}.parquet") for month in months)
    return frame.with_columns(pl.col("time_hour").str.to_datetime(time_zone="UTC").cast(features.UTC_TIME))


def recorded(months: list[str]) -> pl.DataFrame:
    return features.departures(raw("flights", months), raw("weather", months), pl.read_parquet(world.DATA / "planes.parquet"))


@pytest.fixture(scope="module")
def winter() -> pl.DataFrame:
    return recorded(["2013-01", "2013-02", "2013-03", "2013-04"])


@pytest.fixture(scope="module")
def fitted(winter: pl.DataFrame) -> delay.Delay:
    model = delay.Delay()
    model.fit(winter)
    return model


def loss(model: delay.Delay, rows: pl.DataFrame) -> float:
    return float(model.score(pl.DataFrame({"output": model.decide(rows)}), rows["late"]).mean())


# --- the project file, the feed and the world --------------------------------------------------------------------


def test_the_project_file_is_short_and_right() -> None:
    text = (EXAMPLE / "palan.toml").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    config = load(EXAMPLE / "palan.toml", {})
    assert set(config.models) == {"delay", "gates", "gates_fast", "care", "hold"}
    for name, found in tomllib.loads(text)["data"].items():
        contract.parse(name, found)
    assert list(config.models["delay"].inputs) == INPUTS
    assert list(config.models["hold"].inputs) == hold.OBSERVED


def test_the_data_in_the_repository_stays_small() -> None:
    sizes = [path.stat().st_size for path in world.DATA.iterdir()]
    assert sum(sizes) < 6_000_000
    assert max(sizes) < 1_400_000


def test_a_month_arrives_whole_and_the_same_again(tmp_path: Path) -> None:
    first = {path.name: path.read_bytes() for path in world.deliver("2013-02", tmp_path)}
    assert sorted(first) == ["flights-2013-02.parquet", "planes.parquet", "weather-2013-02.csv"]
    assert {path.name: path.read_bytes() for path in world.deliver("2013-02", tmp_path)} == first
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(first), "no temporary file is left"


def test_the_feed_keeps_its_contract_but_for_what_was_really_odd(tmp_path: Path) -> None:
    tables = tomllib.loads((EXAMPLE / "palan.toml").read_text(encoding="utf-8"))["data"]
    bad = {}
    for month in ["2013-01", "2013-02", "2013-07", world.FAULT["month"]]:
        for path in world.deliver(month, tmp_path):
            name = path.stem.split("-")[0]
            rules = contract.parse(name, tables[name])
            checked = verdict.verify(reading.parse_file(path.read_bytes(), path.suffix, rules), rules)
            for reasons in checked.bad["palan_reasons"]:
                bad.setdefault(path.name, []).extend(reasons)
    # a wind of 1048 mph, and a flight of 17 miles: both are in the public data
    assert bad == {"weather-2013-02.csv": ["wind_speed is outside 0..150"], "flights-2013-07.parquet": ["distance is below 50"]}


def test_only_the_month_of_the_fault_is_in_another_unit(tmp_path: Path) -> None:
    for month in ["2013-10", "2013-11", "2013-12"]:
        sent = pl.read_csv(next(path for path in world.deliver(month, tmp_path) if path.suffix == ".csv"))
        true = pl.read_parquet(world.DATA / f"weather-{month}.parquet")
        assert sent.height == true.height
        for column in ["temp", "dewp"]:
            expected = (true[column] - 32) / 1.8 if month == "2013-11" else true[column]
            assert np.allclose(sent[column].to_numpy(), expected.to_numpy(), atol=0.006)


def test_callers_ask_with_the_feed_of_their_day_and_outcomes_come_later() -> None:
    for day in [date(2013, 6, 3), date(2013, 11, 5)]:
        asked, told = world.requests(day), world.outcomes(day)
        true = recorded([day.isoformat()[:7]]).filter(pl.col("id").str.starts_with(day.isoformat()))
        assert asked.columns == ["id", "scheduled", *INPUTS]
        assert sorted(asked["id"]) == sorted(told["id"]) == sorted(true["id"])
        joined = asked.join(true, on="id", suffix="_true").drop_nulls("temp_true")
        expected = (joined["temp_true"] - 32) / 1.8 if day.month == 11 else joined["temp_true"]
        assert np.allclose(joined["temp"], expected, atol=0.006)
        assert joined["visib"].equals(joined["visib_true"].alias("visib"))
        cancelled = told.filter(pl.col("dep_delay").is_null())
        assert (cancelled["late"] == 1).all()
        assert told["late"].sum() == cancelled.height + (told["dep_delay"] > 15).sum()


# --- estimator: no leakage, better than the base rate, always the same -------------------------------------------


def test_nothing_that_is_known_later_is_an_input(winter: pl.DataFrame) -> None:
    assert KNOWN_LATER.isdisjoint(INPUTS)
    assert set(winter.columns) - set(INPUTS) == {"id", "scheduled", "dep_delay", "late"}


def test_inputs_do_not_move_when_what_happened_later_is_changed() -> None:
    flights, weather, planes = raw("flights", ["2013-01"]), raw("weather", ["2013-01"]), pl.read_parquet(world.DATA / "planes.parquet")
    measured = [column for column in flights.columns if column in KNOWN_LATER]
    assert len(measured) == 5
    otherwise = flights.with_columns(pl.col(column).reverse() for column in measured)
    before, after = (features.departures(each, weather, planes).select("id", *INPUTS) for each in (flights, otherwise))
    assert before.equals(after)


def test_inputs_of_a_day_do_not_depend_on_the_days_after_it() -> None:
    flights, weather, planes = raw("flights", ["2013-01"]), raw("weather", ["2013-01"]), pl.read_parquet(world.DATA / "planes.parquet")
    until = pl.datetime(2013, 1, 11, 5, time_zone="UTC")
    month = features.departures(flights, weather, planes).filter(pl.col("scheduled") < until)
    ten_days = features.departures(flights.filter(pl.col("time_hour") < until), weather.filter(pl.col("time_hour") < until), planes)
    assert ten_days.equals(month)
    assert ten_days.height > 8000


def test_delay_is_better_than_the_base_rate_in_every_later_month(fitted: delay.Delay, winter: pl.DataFrame) -> None:
    base = float(winter["late"].mean())  # type: ignore[arg-type]
    for month in ["2013-05", "2013-07", "2013-09", "2013-12"]:
        rows = recorded([month])
        late, probability = rows["late"].to_numpy(), fitted.decide(rows)
        base_loss = -np.mean(np.where(late == 1, np.log(base), np.log(1 - base)))
        assert loss(fitted, rows) < base_loss - 0.02, month
        assert np.mean((probability - late) ** 2) < np.mean((base - late) ** 2), month
        order = probability.argsort().argsort() + 1  # the area under the ROC curve, from ranks
        positives = late.sum()
        area = (order[late == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(late) - positives))
        assert area > 0.68, month


def test_delay_decides_the_same_after_a_second_fit_and_after_being_stored(winter: pl.DataFrame) -> None:
    rows, january = winter.sample(2000, seed=1), winter.head(27_000)
    first, again, back = delay.Delay(iterations=20), delay.Delay(iterations=20), delay.Delay()
    first.fit(january)
    again.fit(january)
    answers = first.decide(rows)
    assert np.array_equal(again.decide(rows), answers)
    state.load(back, state.dump(first))
    assert np.array_equal(back.decide(rows), answers)


def test_delay_answers_rows_like_none_that_it_saw(fitted: delay.Delay, winter: pl.DataFrame) -> None:
    row = winter.select(INPUTS).head(1)
    strange = row.with_columns(carrier=pl.lit("ZZ"), dest=pl.lit("XXX"), **{name: pl.lit(None, pl.Float64) for name in features.WEATHER})
    nothing = strange.with_columns(pl.lit(None).alias("age"), pl.lit(None).alias("seats"))  # a column without a type
    for rows in (strange, nothing):
        answer = fitted.decide(rows)
        assert answer.shape == (1,)
        assert 0 < answer[0] < 1
    assert fitted.decide(row.clear()).shape == (0,)


def test_delay_checks_its_answers(fitted: delay.Delay, winter: pl.DataFrame) -> None:
    rows = winter.head(3)
    assert not list(fitted.check(rows, pl.DataFrame({"output": fitted.decide(rows)})))
    found = list(fitted.check(rows, pl.DataFrame({"output": [0.5, 1.5, float("nan")]})))
    assert [violation.where for violation in found] == ["row 1", "row 2"]
    assert list(fitted.check(rows, pl.DataFrame({"output": [0.5]})))


def test_delay_keeps_its_golden_cases(fitted: delay.Delay, winter: pl.DataFrame) -> None:
    cases = json.loads((EXAMPLE / "golden" / "delay.json").read_text(encoding="utf-8"))
    rows = pl.DataFrame([case["input"] for case in cases], schema={name: winter.schema[name] for name in INPUTS})
    for answer, case in zip(fitted.decide(rows), cases, strict=True):
        assert abs(answer - case["output"]) <= case["tolerance"], case["input"]


def test_the_fault_of_the_feed_does_harm(fitted: delay.Delay) -> None:
    rows = recorded([world.FAULT["month"]])
    broken = rows.with_columns((pl.col(column) - 32) / 1.8 for column in world.FAULT["columns"])
    assert loss(fitted, broken) > loss(fitted, rows) + 0.01


# --- program and heuristic: feasible, priced right, close to each other ------------------------------------------


def day_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


INSTANCES = sorted((EXAMPLE / "instances").glob("*.json"))


def tiny(flights: list[tuple[int, int, float, str]], gate_groups: str = "AB") -> dict[str, Any]:
    return {
        "airport": "EWR",
        "day": "2013-01-01",
        "gates": [{"id": f"{group}{i}", "group": group} for i, group in enumerate(gate_groups)],
        "costs": apron.COSTS,
        "flights": [
            {"id": f"f{i}", "carrier": "XX", "home": home, "ready": ready, "scheduled": scheduled, "delay_probability": probability}
            for i, (ready, scheduled, probability, home) in enumerate(flights)
        ],
    }


@pytest.mark.parametrize("path", INSTANCES, ids=lambda path: path.stem)
def test_real_days_are_planned_by_both_and_the_bound_holds(path: Path) -> None:
    instance = day_of(path)
    solved = adapter(gates.Gates).solve(instance, Context(time_limit=20))
    assert solved.status in ("optimal", "feasible", "timeout")
    assert solved.violations == ()
    assert solved.objective is not None and solved.bound is not None
    assert solved.bound <= solved.objective + 1e-6 * abs(solved.objective)
    assert solved.objective == pytest.approx(solved.output["objective"], rel=1e-6)
    if solved.status == "optimal":
        assert solved.gap is not None and solved.gap <= 1e-3
    fast = adapter(gates_fast.GatesFast).solve(instance, Context(seed=1))
    assert fast.violations == ()
    assert fast.objective == pytest.approx(fast.output["objective"])
    assert solved.bound * (1 - 1e-6) <= fast.output["objective"] <= 1.12 * solved.objective
    published = [incumbent.objective for incumbent in fast.incumbents]
    assert len(published) >= 3
    assert published == sorted(published, reverse=True)
    outcome = world.realised(date.fromisoformat(instance["day"]), instance["airport"])
    assert set(outcome) == set(solved.output["assignments"])
    assert gates.Gates().score(solved.output, outcome) > 0


def test_the_program_finds_the_cheapest_plan_of_all() -> None:
    instance = tiny([(0, 60, 0.3, "A"), (65, 120, 0.6, "A"), (30, 100, 0.1, "B"), (110, 170, 0.9, "B"), (115, 180, 0.2, "A")])
    places = [*(gate["id"] for gate in instance["gates"]), apron.REMOTE]
    cheapest = float("inf")
    for choice in itertools.product(places, repeat=5):
        assignments = {f"f{i}": place for i, place in enumerate(choice)}
        orders = apron.sequences(instance, assignments).values()
        if all(one["scheduled"] <= two["ready"] for order in orders for one, two in itertools.pairwise(order)):
            cheapest = min(cheapest, apron.price(instance, assignments, apron.widest_buffers(instance, assignments))["objective"])
    solved = adapter(gates.Gates).solve(instance, Context())
    assert solved.status == "optimal"
    assert solved.objective == pytest.approx(cheapest)
    assert gates_fast.GatesFast(moves=3000).decide(instance, Context())["objective"] == pytest.approx(cheapest)


def test_a_day_without_gates_or_without_flights_is_planned_too() -> None:
    for instance in (tiny([(0, 60, 0.3, "A")], gate_groups=""), tiny([])):
        for model in (gates.Gates, gates_fast.GatesFast):
            solved = adapter(model).solve(instance, Context())
            assert solved.status in ("optimal", "feasible"), model
            assert solved.violations == ()
            assert set(solved.output["assignments"].values()) <= {apron.REMOTE}


def test_the_search_is_the_same_for_a_seed_and_stops_in_time() -> None:
    instance, model = day_of(INSTANCES[0]), gates_fast.GatesFast(moves=5000)
    assert model.decide(instance, Context(seed=3)) == model.decide(instance, Context(seed=3))
    hurried = Context(time_limit=0.0)
    assert not list(model.check(instance, gates_fast.GatesFast(moves=10**9).decide(instance, hurried)))


def test_the_running_cost_of_the_search_is_the_price_of_its_plan() -> None:
    instance = day_of(INSTANCES[-1])
    plan, chance = gates_fast.Apron(instance), gates_fast.Random(5)
    for warmth in [200.0, 20.0, 2.0]:
        for _ in range(3000):
            plan.try_move(chance, warmth)
        found = gates_fast.planned(instance, plan.assignments())
        assert plan.cost == pytest.approx(found["objective"])
        assert not list(apron.violations(instance, found))


def test_every_way_in_which_a_plan_can_be_wrong_is_found() -> None:
    instance = tiny([(0, 60, 0.3, "A"), (70, 130, 0.6, "A")])
    good = apron.plan_of(instance, {"f0": "A0", "f1": "A0"}, {"f0": 10, "f1": 90})
    assert not list(apron.violations(instance, good))

    def rules(assignments: dict[str, str], buffers: dict[str, int], **changed: Any) -> set[str]:
        return {found.rule for found in apron.violations(instance, {**good, "assignments": assignments, "buffers": buffers, **changed})}

    assert "every flight has a place" in rules({"f0": "A0"}, {})
    assert "only flights of the day" in rules({"f0": "A0", "f1": "A0", "f9": "A0"}, {"f0": 10, "f1": 90})
    assert "a gate of this airport" in rules({"f0": "Z9", "f1": "A0"}, {})
    assert "one aircraft at a gate" in rules({"f0": "A0", "f1": "A0"}, {"f0": 20, "f1": 90})
    assert "a buffer that can be priced" in rules({"f0": "A0", "f1": "A0"}, {"f0": -30, "f1": 90})
    assert rules(good["assignments"], good["buffers"], objective=good["objective"] - 1) == {"the stated objective"}
    late = tiny([(0, 60, 0.3, "A"), (50, 130, 0.6, "A")])
    assert "one aircraft at a gate" in {found.rule for found in apron.violations(late, apron.plan_of(late, {"f0": "A0", "f1": "A0"}, {}))}


def test_a_plan_is_priced_again_when_the_delays_are_known() -> None:
    instance = tiny([(0, 60, 0.3, "A"), (70, 130, 0.6, "A"), (140, 200, 0.5, "A"), (0, 50, 0.1, "A"), (0, 55, 0.1, "A")])
    plan = apron.plan_of(instance, {"f0": "A0", "f1": "A0", "f2": "A0", "f3": "B1", "f4": apron.REMOTE}, {"f0": 10, "f1": 10, "f2": 90, "f3": 90})
    fixed = apron.COSTS["other_group"] + apron.COSTS["remote"]
    assert apron.realised_cost(plan, {"f0": 5, "f1": 10, "f2": 300, "f3": -3, "f4": 500}) == fixed
    assert apron.realised_cost(plan, {"f0": 25, "f1": 500, "f2": 0, "f3": None, "f4": None}) == fixed + 15 + 60


def test_what_waiting_is_expected_to_cost_is_what_winter_recorded(winter: pl.DataFrame) -> None:
    for name, late in [("wait_if_late", 1), ("wait_if_punctual", 0)]:
        minutes = winter.filter(pl.col("late") == late)["dep_delay"].fill_null(0)
        for buffer, stated in zip(apron.BUFFERS[:-1], apron.COSTS[name], strict=False):
            assert (minutes - buffer).clip(0, 60).mean() == pytest.approx(stated, abs=0.06)


# --- rules ---------------------------------------------------------------------------------------------------------


def test_care_gives_its_examples() -> None:
    rules = table.parse((EXAMPLE / "care.csv").read_bytes(), "care.csv")
    cases = json.loads((EXAMPLE / "golden" / "care.json").read_text(encoding="utf-8"))
    answers = table.decide(rules, pl.DataFrame([case["input"] for case in cases]))
    assert answers.select("offer", "amount_eur").to_dicts() == [case["output"] for case in cases]


def test_care_has_one_answer_for_every_case_that_can_come() -> None:
    rules = table.parse((EXAMPLE / "care.csv").read_bytes(), "care.csv")
    domain = Schema(
        "rows",
        (Field("cancelled", "bool"), Field("overnight", "bool"), Field("delay_minutes", "int", minimum=0), Field("distance_km", "int", minimum=0)),
    )
    assert table.check_table(rules, domain) == []
    with (EXAMPLE / "care.csv").open(encoding="utf-8") as lines:
        shorter = "".join(line for number, line in enumerate(lines) if number != 9)
    assert [found["kind"] for found in table.check_table(table.parse(shorter, "care.csv"), domain)] == ["gap"]


def test_care_answers_a_month_of_recorded_cases() -> None:
    cases = features.cases(raw("flights", ["2013-02"]))
    answers = table.decide(table.parse((EXAMPLE / "care.csv").read_bytes(), "care.csv"), cases)
    assert answers.height == cases.height > 5000
    assert answers.null_count().sum_horizontal().item() == 0
    beds = cases.with_columns(answers).filter(pl.col("offer") == "hotel")
    assert beds["overnight"].all()
    assert 0.02 < beds.height / cases.height < 0.5
    with (EXAMPLE / "care.csv").open(encoding="utf-8") as lines:
        offers = {row[4] for row in itertools.islice(csv.reader(lines), 2, None)}
    assert set(answers["offer"].unique()) == offers, "every offer is made to somebody"


# --- policy --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def holding() -> hold.Hold:
    model = hold.Hold()
    model.fit(features.connections(raw("flights", ["2013-01", "2013-02", "2013-03", "2013-04"])))
    return model


def test_hold_beats_every_baseline_on_connections_that_it_never_saw(holding: hold.Hold) -> None:
    returns = adapter(holding, "policy").evaluate(1500, 0)
    policy = np.array(returns.pop("policy"))
    assert {"always 0", "always 1", "random", "hold up to 15 minutes", "hold if expected within 15 minutes"} == set(returns)
    for name, baseline in returns.items():
        difference = policy - np.array(baseline)
        assert difference.mean() - 1.96 * difference.std() / len(difference) ** 0.5 > 0, name


def test_hold_learns_and_is_judged_on_different_weeks() -> None:
    data = features.connections(raw("flights", ["2013-01"]))
    odd = pl.col("scheduled").dt.week() % 2 == 1
    one, two = hold.Hold(), hold.Hold()
    one.fit(data)
    two.fit(data.with_columns(arr_delay=pl.when(odd).then(pl.col("arr_delay") + 500).otherwise("arr_delay")))
    assert np.array_equal(one.made_up_, two.made_up_)
    assert not np.array_equal(one.kept_back_, two.kept_back_)


def test_hold_does_what_a_dispatcher_would_expect(holding: hold.Hold) -> None:
    def act(**changed: float) -> int:
        usual = {"waited": 0, "inbound_delay": 40, "change_minutes": 30, "transferring": 12, "aboard": 60, "next_service": 240}
        return holding.act(np.array([{**usual, **changed}[name] for name in hold.OBSERVED], dtype=float))

    assert act() == hold.HOLD
    assert act(transferring=0) == hold.LEAVE
    assert act(inbound_delay=300) == hold.LEAVE
    assert act(next_service=5, transferring=1) == hold.LEAVE
    assert act(waited=60) == hold.LEAVE
    rows = pl.DataFrame({name: [0, 60] for name in hold.OBSERVED})
    assert [found.rule for found in holding.check(rows, pl.DataFrame({"output": [1, 1]}))] == ["at most an hour"]
    assert [found.rule for found in holding.check(rows, pl.DataFrame({"output": [2, 0]}))] == ["hold or leave"]


def test_one_connection_is_counted_in_passenger_hours() -> None:
    # waited, inbound_delay, change, transferring, aboard, next service, arrival delay: twelve minutes late at the gate
    env = hold.Connections(np.array([[0, 40, 30, 10, 60, 120, 42]]))
    env.reset(seed=0)
    assert env.step(hold.LEAVE)[1:3] == (-10 * 120 / 60, True)
    env.reset(seed=0)
    rewards = [env.step(hold.HOLD) for _ in range(3)]
    assert [reward[1] for reward in rewards] == pytest.approx([-5.0, -5.0, -2.0])
    assert [reward[2] for reward in rewards] == [False, False, True]
    env = hold.Connections(np.array([[55, 90, 30, 10, 60, 120, 100]]))
    env.reset(seed=0)
    assert env.step(hold.HOLD)[1:3] == (-(60 * 5 + 10 * 120) / 60, True)
