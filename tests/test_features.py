"""Feature functions: ordered, explained, fitted, computed for a batch and for one row; and the past without leakage."""

from __future__ import annotations

import math
import random
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from palan.data.features import Features, Opaque, features, fitted, functions_of
from palan.data.past import Known, Past, before, join_past, last, leaks
from palan.errors import PalanError

SCHEMA: dict[str, pl.DataType] = {"delay": pl.Float64(), "origin": pl.String(), "at": pl.Datetime("us", "UTC")}
ROW = {"delay": 30.0, "origin": "JFK", "at": datetime(2013, 1, 1, 5, tzinfo=UTC)}
FRAME = pl.DataFrame([ROW, {**ROW, "delay": None, "origin": "XXX"}, {**ROW, "delay": -10.0}], schema=SCHEMA)


def delay_log(delay: pl.Expr) -> pl.Expr:
    """How late, on a scale of factors."""
    return (delay + 60).log()


def delay_scaled(delay_log: pl.Expr, mean: float) -> pl.Expr:
    return delay_log - mean


def local_hour(at: pl.Expr) -> pl.Expr:
    return at.dt.convert_time_zone("America/New_York").dt.hour()


def origin_code(origin: pl.Expr, codes: dict[str, int]) -> pl.Expr:
    return origin.replace_strict(codes, default=-1)


FUNCTIONS = {"delay_scaled": delay_scaled, "delay_log": delay_log, "local_hour": local_hour, "origin_code": origin_code, "late": "delay > 15 AND origin = 'JFK'"}
CONSTANTS: dict[str, Any] = {"mean": 4.0, "codes": {"JFK": 1, "EWR": 2}}


def made(**changes: Any) -> Features:
    return features(FUNCTIONS, SCHEMA, constants={**CONSTANTS, **changes})


def test_a_feature_function_is_tested_by_calling_it() -> None:
    assert pl.select(delay_log(pl.lit(40.0))).item() == math.log(100)


def test_batch_and_row_are_one_definition() -> None:
    found = made()
    assert not found.scalar.refused
    batch = found.batch(FRAME).select(found.names).to_dicts()
    assert batch == [found.row(row) for row in FRAME.to_dicts()]
    assert batch[0] == {"delay_log": math.log(90), "delay_scaled": math.log(90) - 4.0, "local_hour": 0, "origin_code": 1, "late": True}


def test_lineage_leads_down_to_columns_and_constants() -> None:
    lineage = made().lineage
    assert lineage["delay_scaled"].inputs == ("delay_log", "mean")
    assert lineage["delay_scaled"].columns == ("delay",)
    assert lineage["delay_scaled"].constants == ("mean",)
    assert lineage["delay_log"].about == "How late, on a scale of factors."
    assert lineage["late"].columns == ("delay", "origin")


def test_another_constant_is_another_digest_of_what_depends_on_it_alone() -> None:
    one, other = made(), made(mean=4.5)
    changed = {name for name in one.lineage if one.lineage[name].digest != other.lineage[name].digest}
    assert changed == {"delay_scaled"}
    assert one.digest == made().digest != other.digest
    assert made(codes={"JFK": 1}).lineage["origin_code"].digest != one.lineage["origin_code"].digest


def test_another_formula_is_another_digest_of_all_that_reads_it() -> None:
    other = features({**FUNCTIONS, "delay_log": lambda delay: (delay + 61).log()}, SCHEMA, constants=CONSTANTS)
    assert {name for name, feature in made().lineage.items() if other.lineage[name].digest != feature.digest} == {"delay_log", "delay_scaled"}


@pytest.mark.parametrize(
    ("functions", "told"),
    [
        ({"x": lambda dealy: dealy}, 'did you mean "delay"'),
        ({"x": lambda y: y, "y": lambda z: z, "z": lambda x: x}, "x -> y -> z -> x"),
        ({"delay": lambda delay: delay}, "a feature and a column"),
        ({"mean": lambda delay: delay}, "a feature and a constant"),
        ({"x": lambda delay: 5}, "not an expression"),
        ({"x": lambda delay: delay + pl.col("origin").str.len_chars()}, "without naming it"),
        ({"x": lambda *delay: delay[0]}, "names no column"),
        ({"x": "SELECT FROM"}, "no SQL expression"),
        ({"x": "delay - mean"}, "reads the constant"),
        ({"x": lambda delay: delay.str.to_lowercase()}, "does not fit the columns"),
    ],
)
def test_a_mistake_is_told(functions: dict[str, Any], told: str) -> None:
    with pytest.raises(PalanError) as caught:
        features(functions, SCHEMA, constants=CONSTANTS)
    assert told in str(caught.value)


def test_functions_are_found_in_a_users_file() -> None:
    module = types.ModuleType("user_features")
    text = "import polars as pl\nfrom math import log\ndef ratio(a: pl.Expr, b: pl.Expr) -> pl.Expr:\n    return a / b\ndef _inner(a: pl.Expr) -> pl.Expr:\n    return a\ndef fit(frame: pl.DataFrame) -> dict:\n    return {}\n"
    exec(text, module.__dict__)
    assert list(functions_of(module)) == ["ratio"]


def test_fitted_constants_are_what_json_can_say() -> None:
    found = fitted(lambda frame: {"mean": frame["delay"].mean(), "codes": {name: code for code, name in enumerate(frame["origin"].unique().sort())}}, FRAME)
    assert found == {"mean": 10.0, "codes": {"JFK": 0, "XXX": 1}}
    for bad, told in [({"m": math.nan}, "not finite"), ({"m": object()}, "JSON"), ({"m": (1, 2)}, "read back"), ({"m": {"a": [math.inf]}}, "not finite")]:
        with pytest.raises(PalanError, match=told):
            fitted(lambda frame, bad=bad: bad, FRAME)


def test_a_scikit_learn_transformer_is_a_step_that_tells_its_cost() -> None:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(FRAME.select("delay").drop_nulls().to_numpy())
    step = Opaque(("delay", "delay_log"), lambda frame: pl.DataFrame(scaler.transform(frame.select("delay").to_numpy())), "scaler-1", ("standard",))
    found = features(FUNCTIONS, SCHEMA, constants=CONSTANTS, opaque={"scaled": step})
    assert found.lineage["scaled"].columns == ("delay",)
    assert found.row(ROW)["standard"] == pytest.approx(1.0)
    assert found.batch(FRAME)["standard"][2] == pytest.approx(-1.0)
    ticks = iter(range(10_000))
    assert found.costs(ROW, lambda: next(ticks) * 1e-6) == pytest.approx({"one row": 1.0, "scaled": 1.0})
    assert any("scaled: an opaque step" in line for line in found.told())


def test_what_goes_through_polars_says_what_that_costs() -> None:
    found = features({"day": lambda at: at.dt.strftime("%d")}, SCHEMA)
    assert "400 µs" in found.told()[0]
    assert found.row(ROW) == {"day": "01"}


# -- the past ---------------------------------------------------------------------------------------------------------

MONTH = Path(__file__).parents[1] / "examples" / "flights" / "data" / "flights-2013-01.parquet"


def flights() -> pl.DataFrame:
    """Departures of a fortnight, with their scheduled time and when the delay was known: when the aircraft had left."""
    frame = pl.read_parquet(MONTH).filter(pl.col("day") <= 14)
    scheduled = pl.datetime("year", "month", "day", "hour", "minute", time_zone="UTC")
    return frame.select("origin", "carrier", "dep_delay", scheduled=scheduled, left=scheduled + pl.duration(minutes=pl.col("dep_delay").fill_null(0)))


PASTS: dict[str, Past] = {
    "newest": last("flights", "dep_delay", by=["origin", "carrier"], time="left"),
    "newest_soon": last("flights", "dep_delay", by=["origin"], time="left", within=timedelta(minutes=20)),
    **{how: before(how, "flights", "dep_delay", by=["carrier"], time="left", within=timedelta(hours=2)) for how in ("mean", "sum", "min", "max", "count")},
    "ever": before("mean", "flights", "dep_delay", by=["origin"], time="left"),
}


def test_replayed_rows_answer_what_the_batch_answers() -> None:
    frame = flights()
    batch = join_past(frame, "scheduled", PASTS, {"flights": frame})
    # Events and questions in the order of time; at one moment the question comes after, and must not see the event.
    events = [(row["left"], 0, number) for number, row in enumerate(frame.iter_rows(named=True))]
    asks = [(row["scheduled"], 1, number) for number, row in enumerate(frame.iter_rows(named=True)) if number % 7 == 0]
    known = {name: Known(past) for name, past in PASTS.items()}
    rows, expected = frame.to_dicts(), batch.to_dicts()
    differ = []
    for step, (moment, asked, number) in enumerate(sorted([*events, *asks])):
        if not asked:
            for table in known.values():
                table.add(rows[number])
            continue
        if step % 50 == 0:
            for table in known.values():
                table.forget(moment)
        for name, table in known.items():
            found, wanted = table.ask(rows[number], moment), expected[number][name]
            if found != wanted and not (isinstance(found, float) and found == pytest.approx(wanted, rel=1e-9, abs=1e-9)):
                differ.append((name, number, found, wanted))
    assert batch["mean"].null_count() < len(batch) / 2
    assert differ[:5] == []


def test_rows_that_come_late_and_rows_without_a_key_are_answered_alike() -> None:
    chance = random.Random(5)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    events = pl.DataFrame([{"k": chance.choice(["a", "b", None]), "v": chance.choice([1.5, -2.0, None, 4.0]), "t": start + timedelta(minutes=chance.randrange(60))} for _ in range(80)])
    asks = pl.DataFrame({"k": [chance.choice(["a", "b", "c", None]) for _ in range(40)], "at": [start + timedelta(minutes=chance.randrange(90)) for _ in range(40)]})
    pasts = {how: before(how, "e", "v", by=["k"], time="t", within=timedelta(minutes=15)) for how in ("mean", "sum", "min", "max", "count")}
    pasts["last"] = last("e", "v", by=["k"], time="t", within=timedelta(minutes=10))
    batch = join_past(asks, "at", pasts, {"e": events})
    for name, past in pasts.items():
        table = Known(past)
        for row in events.iter_rows(named=True):
            table.add(row)
        for row, wanted in zip(asks.iter_rows(named=True), batch[name].to_list(), strict=True):
            found = table.ask(row, row["at"])
            assert found == wanted or found == pytest.approx(wanted, rel=1e-9), (name, row)


def test_a_leak_is_named_by_feature_and_row() -> None:
    frame = flights().sort("scheduled").head(400)

    def compute(rows: pl.DataFrame, tables: Any) -> pl.DataFrame:
        honest = join_past(rows, "scheduled", {"newest": PASTS["newest"]}, tables)
        return honest.select("newest", carrier_mean=pl.col("dep_delay").mean().over("carrier"), length=pl.col("carrier").str.len_chars())

    found = leaks(compute, frame, "scheduled", at=[10, 100, 390], tables={"flights": (frame, "left")})
    assert {leak.feature for leak in found} == {"carrier_mean"}
    assert {leak.row for leak in found} >= {10, 100}

    def careless(rows: pl.DataFrame, tables: Any) -> pl.DataFrame:
        # The scheduled time is not when a delay is known.
        wrong = last("flights", "dep_delay", by=["origin"], time="scheduled")
        return join_past(rows, "scheduled", {"newest": wrong}, tables).select("newest")

    assert leaks(careless, frame, "scheduled", at=range(50, 400, 25), tables={"flights": (frame, "left")})
