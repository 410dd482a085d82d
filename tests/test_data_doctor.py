"""A feed changes its meaning: the doctor says which column, since when, and how to put it right; and keeps quiet otherwise."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from palan.data.doctor import Hypothesis, hypotheses
from palan.data.faults.diagnose import diagnose
from palan.data.nouns import Repair
from palan.data.repair import apply, invert, mend
from palan.errors import PalanError

Fault = Callable[[pl.DataFrame], pl.DataFrame]
START = date(2023, 3, 1)


def plant(days: int, seed: int = 7) -> pl.DataFrame:
    """A heated hall: 24 readings a day of temperature, power (which follows from it), pressure, and a label."""
    random = np.random.default_rng(seed)
    hours = days * 24
    season = 15 + 4 * np.sin(np.arange(hours) / 24 / 20) + 3 * np.sin(np.arange(hours) / 24 * 2 * np.pi)
    temp = season + np.repeat(random.normal(0, 2, days), 24) + random.normal(0, 1, hours)
    return pl.DataFrame(
        {
            "time": [datetime(START.year, START.month, START.day, tzinfo=UTC) + timedelta(hours=hour) for hour in range(hours)],
            "temp": temp.round(1),
            "power": (80 - 3 * temp + random.normal(0, 1, hours)).round(1),
            "length": random.gamma(4, 100, hours).round(0),
            "load": np.where(random.random(hours) < 0.7, 0.0, random.gamma(2, 2, hours).round(1)),
            "line": random.choice(["north", "south", "east"], hours, p=[0.5, 0.3, 0.2]),
            "site": random.choice(["aa", "bb", "cc", "dd"], hours),
        }
    )


def cut(frame: pl.DataFrame, begin: date, days: int, time: str = "time") -> pl.DataFrame:
    start = datetime(begin.year, begin.month, begin.day, tzinfo=UTC)
    return frame.filter((pl.col(time) >= start) & (pl.col(time) < start + timedelta(days=days)))


def since_day(number: int, fault: Fault) -> Fault:
    """Break the rows from a day of the window on."""

    def broken(frame: pl.DataFrame) -> pl.DataFrame:
        at = frame["time"].min() + timedelta(days=number)  # type: ignore[operator]
        bad = fault(frame).select([pl.col(name).cast(dtype, strict=False) for name, dtype in frame.schema.items()])
        return pl.concat([frame.filter(pl.col("time") < at), bad.filter(pl.col("time") >= at)])

    return broken


def line(columns: Sequence[str], factor: float, shift: float = 0.0) -> Fault:
    return lambda frame: frame.with_columns(pl.col(list(columns)) * factor + shift)


def examine(fault: Fault, days: int = 10) -> list[Hypothesis]:
    frame = plant(42 + days)
    return hypotheses(cut(frame, START, 42), fault(cut(frame, START + timedelta(days=42), days)), time="time")


FAULTS: list[tuple[str, tuple[str, ...], Fault]] = [
    ("unit", ("temp",), line(["temp"], 1.8, 32)),
    ("scale", ("power",), line(["power"], 1000)),
    ("scale", ("length",), line(["length"], 0.1)),
    ("unit", ("length",), line(["length"], 1.609344)),
    ("scale", ("load",), line(["load"], 100)),
    ("sign", ("power",), line(["power"], -1)),
    ("sentinel", ("power",), lambda frame: frame.with_columns(power=pl.when(pl.int_range(pl.len()) % 9 == 4).then(-9999.0).otherwise("power"))),
    ("stuck", ("temp",), lambda frame: frame.with_columns(temp=pl.lit(14.2))),
    ("nulls", ("power",), lambda frame: frame.with_columns(power=pl.when(pl.int_range(pl.len()) % 4 == 0).then("power"))),
    ("categories", ("line",), lambda frame: frame.with_columns(pl.col("line").replace({"north": "N", "south": "S"}))),
    ("swap", ("temp", "power"), lambda frame: frame.with_columns(temp="power", power="temp")),
    ("swap", ("line", "site"), lambda frame: frame.with_columns(line="site", site="line")),
]


def same(one: pl.Series, other: pl.Series) -> bool:
    return one.equals(other) if one.dtype == pl.String else np.allclose(one.to_numpy(), other.to_numpy(), equal_nan=True)


@pytest.mark.parametrize(("kind", "columns", "fault"), FAULTS, ids=[f"{kind} {' '.join(columns)}" for kind, columns, _ in FAULTS])
def test_each_fault_is_named_dated_and_put_right(kind: str, columns: tuple[str, ...], fault: Fault) -> None:
    clean = cut(plant(52), START + timedelta(days=42), 10)
    broken = since_day(3, fault)(clean)
    found = examine(since_day(3, fault))
    assert [(one.kind, set(one.columns)) for one in found] == [(kind, set(columns))]
    assert found[0].since == datetime(2023, 4, 15, tzinfo=UTC)
    assert 0.5 <= found[0].confidence <= 1
    assert all(column in found[0].text for column in columns)
    assert {"statistic", "before", "after", "threshold"} <= found[0].evidence.keys() or kind == "swap"
    if kind in ("unit", "scale", "sign", "categories", "swap"):
        right = apply(broken, found[0].repairs, "time")
        assert all(same(right[column], clean[column]) for column in columns)
        back = invert(right, found[0].repairs, "time")
        assert all(same(back[column], broken[column]) for column in columns)
    if kind == "sentinel":
        assert apply(broken, found[0].repairs, "time")["power"].min() > -100  # type: ignore[operator]


def test_nothing_is_said_of_clean_days() -> None:
    for seed in range(6):
        frame = plant(56, seed)
        assert hypotheses(cut(frame, START, 42), cut(frame, START + timedelta(days=42), 14), time="time") == []


def test_a_fault_that_ended_has_an_end() -> None:
    def while_it_lasted(frame: pl.DataFrame) -> pl.DataFrame:
        late = frame["time"].min() + timedelta(days=6)  # type: ignore[operator]
        return pl.concat([since_day(2, line(["length"], 1000))(frame).filter(pl.col("time") < late), frame.filter(pl.col("time") >= late)])

    (found,) = examine(while_it_lasted)
    assert (found.since, found.until) == (datetime(2023, 4, 14, tzinfo=UTC), datetime(2023, 4, 18, tzinfo=UTC))


def test_a_short_history_and_an_empty_window_say_nothing() -> None:
    frame = plant(20)
    broken = line(["length"], 1000)(cut(frame, START + timedelta(days=6), 7))
    assert hypotheses(cut(frame, START, 6), broken, time="time") == []
    assert hypotheses(cut(frame, START, 14), frame.head(0), time="time") == []
    assert hypotheses(cut(frame, START, 14), frame.tail(48).with_columns(pl.lit(None, dtype=pl.Float64).alias("temp")), time="time", columns=["length"]) == []


def test_a_wrong_time_column_is_named() -> None:
    with pytest.raises(PalanError, match='no column "when"'):
        hypotheses(plant(10), plant(10), time="when")


class TestRepairing:
    frame = pl.DataFrame({"temp": [1.0, 2.0, 3.0], "dewp": [4.0, 5.0, 6.0], "n": [10, 20, 30], "t": ["2013-01-01T00:00:00Z", "2013-01-02T00:00:00Z", "2013-01-03T00:00:00Z"]})
    since, until = datetime(2013, 1, 2, tzinfo=UTC), datetime(2013, 1, 3, tzinfo=UTC)

    def test_only_rows_of_its_time_change(self) -> None:
        repair = Repair("temp", "temp * 9.0 / 5.0 + 32.0", "(temp - 32.0) * 5.0 / 9.0", self.since, self.until)
        assert apply(self.frame, [repair], "t")["temp"].to_list() == pytest.approx([1.0, 35.6, 3.0])
        assert apply(self.frame.drop("t"), [repair], "t", now=self.since)["temp"][0] == pytest.approx(33.8)
        assert apply(self.frame.drop("t"), [repair], "t", now=self.until).equals(self.frame.drop("t"))

    def test_two_columns_are_exchanged_at_once_and_one_column_in_order(self) -> None:
        swap = [Repair("temp", "dewp", "dewp", self.since), Repair("dewp", "temp", "temp", self.since)]
        swapped = apply(self.frame, swap, "t")
        assert (swapped["temp"].to_list(), swapped["dewp"].to_list()) == ([1.0, 5.0, 6.0], [4.0, 2.0, 3.0])
        assert invert(swapped, swap, "t").equals(self.frame)
        steps = [Repair("temp", "temp + 1.0", "temp - 1.0", self.since), Repair("temp", "temp * 2.0", "temp / 2.0", self.since)]
        assert apply(self.frame, steps, "t")["temp"].to_list() == [1.0, 6.0, 8.0]
        assert invert(apply(self.frame, steps, "t"), steps, "t").equals(self.frame)

    def test_a_whole_number_stays_one(self) -> None:
        fixed = apply(self.frame, [Repair("n", "n / 1.6", "n * 1.6", self.since)], "t")
        assert fixed["n"].to_list() == [10, 12, 19]

    def test_what_cannot_be_computed_is_said(self) -> None:
        with pytest.raises(PalanError, match=r'the repair "temp \* wind"'):
            apply(self.frame, [Repair("temp", "temp * wind", "temp", self.since)], "t")
        with pytest.raises(PalanError, match="needs the time of each row"):
            apply(self.frame.drop("t"), [Repair("temp", "temp", "temp", self.since)], "t")
        assert apply(self.frame, [Repair("wind", "wind * 2", "wind / 2", self.since)], "t").equals(self.frame), "another table may carry it"


# ---- a real year ------------------------------------------------------------------------------------------------------


@functools.cache
def departures() -> pl.DataFrame:
    """Every departure from New York in 2013 with the weather of its hour."""
    root = Path(os.environ.get("PALAN_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / "streams" / "flights.parquet").exists():
        pytest.skip(f"no flights data in {root}: set PALAN_TEST_DATA")
    weather = pl.read_parquet(root / "streams" / "weather.parquet", columns=["origin", "time_hour", "temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"])
    flights = pl.read_parquet(root / "streams" / "flights.parquet", columns=["origin", "dest", "carrier", "distance", "hour", "month", "time_hour"])
    joined = flights.join(weather, on=["origin", "time_hour"], how="left")
    return joined.with_columns(pl.col("distance").cast(pl.Float64), pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC")).rename({"time_hour": "time"})


def weeks(first: date, last: date) -> list[date]:
    return [first + timedelta(days=number) for number in range(0, (last - first).days - 6, 7)]


def judge(begin: date, fault: Fault = lambda frame: frame, active: Sequence[Repair] = ()) -> list[Hypothesis]:
    frame = departures()
    return hypotheses(cut(frame, begin - timedelta(days=42), 42), fault(cut(frame, begin, 7)), time="time", active=active)


CELSIUS = line(["temp", "dewp"], 1 / 1.8, -32 / 1.8)


def test_no_clean_week_of_a_year_raises_a_word() -> None:
    said = {begin: [one.text for one in judge(begin)] for begin in weeks(date(2013, 1, 29), date(2013, 12, 31))}
    assert len(said) >= 47
    assert {begin: texts for begin, texts in said.items() if texts} == {}


def test_celsius_for_fahrenheit_is_found_from_may_to_december() -> None:
    for begin in weeks(date(2013, 5, 1), date(2013, 12, 31))[::2]:
        clean = cut(departures(), begin, 7)
        (found,) = judge(begin, CELSIUS)
        assert (found.kind, set(found.columns), found.ends_repair) == ("unit", {"temp", "dewp"}, False), begin
        assert "°C instead of °F" in found.text
        right = apply(CELSIUS(clean), found.repairs, "time")
        assert np.allclose(right["temp"].to_numpy(), clean["temp"].to_numpy(), equal_nan=True), begin


def test_a_feed_that_is_right_again_ends_its_repair() -> None:
    for begin in weeks(date(2013, 5, 8), date(2013, 12, 31))[::3]:
        start = datetime(begin.year, begin.month, begin.day, tzinfo=UTC) - timedelta(days=20)
        active = [Repair(name, f'"{name}" * 9.0 / 5.0 + 32.0', f'("{name}" - 32.0) * 5.0 / 9.0', start) for name in ("temp", "dewp")]
        (found,) = judge(begin, lambda frame, active=active: apply(frame, active, "time"), active)  # type: ignore[misc]
        assert (found.kind, set(found.columns), found.ends_repair) == ("unit", {"temp", "dewp"}, True), begin
        assert "no longer needed" in found.evidence["note"]
        assert {one.expression for one in found.repairs} == {one.inverse for one in active}


# ---- one delivery as it came ------------------------------------------------------------------------------------------


@functools.cache
def deliveries() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Sixty days of the hall and the ten after them, with a name for each row's shift and gaps in the pressure."""
    frame = plant(70).with_columns(
        shift=pl.col("time").dt.hour().replace_strict({hour: ["night", "early", "late"][hour // 8] for hour in range(24)}, return_dtype=pl.String),
        length=pl.when(pl.int_range(pl.len()) % 11 != 3).then(pl.col("length")),
    )
    return frame[: 60 * 24], frame[60 * 24 :]


DELIVERED: list[tuple[str, tuple[str, ...], Fault]] = [
    ("added", ("batch",), lambda frame: frame.with_columns(batch=pl.lit(7))),
    ("removed", ("power",), lambda frame: frame.drop("power")),
    ("renamed", ("power",), lambda frame: frame.rename({"power": "Leistung"}).select(sorted([*frame.drop("power").columns, "Leistung"]))),
    ("retyped", ("temp",), lambda frame: frame.with_columns(pl.col("temp").cast(pl.String).str.replace(".", ",", literal=True))),
    ("retyped", ("time",), lambda frame: frame.with_columns(pl.col("time").dt.strftime("%d/%m/%Y %H:%M"))),
    ("retyped", ("time",), lambda frame: frame.with_columns(pl.col("time").dt.epoch("s"))),
    ("unit", ("temp",), line(["temp"], 1.8, 32)),
    ("scale", ("power",), line(["power"], 1000)),
    ("unit", ("temp",), lambda frame: frame.with_columns(temp=pl.when(pl.col("line") == "north").then(pl.col("temp") * 1.8 + 32).otherwise("temp"))),
    ("sign", ("power",), line(["power"], -1)),
    ("swap", ("power", "temp"), lambda frame: frame.with_columns(temp="power", power="temp")),
    ("swap", ("line", "site"), lambda frame: frame.with_columns(line="site", site="line")),
    ("clock", ("time",), lambda frame: frame.with_columns(pl.col("time") + timedelta(hours=6))),
    ("categories", ("line",), lambda frame: frame.with_columns(pl.col("line").str.to_uppercase())),
    ("categories", ("line",), lambda frame: frame.with_columns(pl.col("line").replace({"east": "1", "north": "2", "south": "3"}))),
    ("categories", ("line",), lambda frame: frame.with_columns(line=pl.when((pl.col("line") == "north") & (pl.int_range(pl.len()) % 3 == 0)).then(pl.lit("north - B")).otherwise(pl.col("line").replace("north", "north - A")))),
    ("sentinel", ("length",), lambda frame: frame.with_columns(pl.col("length").fill_null(-1))),
    ("stuck", ("power",), lambda frame: frame.with_columns(power=pl.lit(38.2))),
    ("truncated", ("temp",), lambda frame: frame.with_columns(pl.col("temp").floor())),
    ("truncated", ("shift",), lambda frame: frame.with_columns(pl.col("shift").str.slice(0, 4))),
    ("duplicated", (), lambda frame: pl.concat([frame, frame[100:]])),
    ("partial", ("line",), lambda frame: frame.filter(pl.col("line") != "south")),
    ("partial", ("time",), lambda frame: frame.filter(~pl.col("time").dt.hour().is_between(3, 8))),
]
LOST = ("removed", "stuck", "partial")  # and what was cut off: no repair can bring it back


@pytest.mark.parametrize(("kind", "columns", "fault"), DELIVERED, ids=[f"{number} {kind} {' '.join(columns)}" for number, (kind, columns, _) in enumerate(DELIVERED)])
def test_a_delivery_is_compared_with_what_came_before_it_and_put_right(kind: str, columns: tuple[str, ...], fault: Fault) -> None:
    history, clean = deliveries()
    broken = fault(clean)
    found = diagnose(history, broken, time="time")
    assert [(one.kind, set(one.columns)) for one in found] == [(kind, set(columns))]
    assert {"statistic", "before", "after", "threshold"} <= found[0].evidence.keys()
    if kind in LOST or (columns == ("temp",) and kind == "truncated"):
        assert not found[0].repairs or kind == "stuck"
    else:
        right = mend(broken, found, "time")
        assert set(right.columns) == set(clean.columns)
        for name in clean.columns:
            assert right[name].dtype == clean[name].dtype
            assert same(right[name], clean[name]) if clean[name].dtype.is_numeric() else right[name].equals(clean[name]), name


def test_of_clean_deliveries_nothing_is_said() -> None:
    history, clean = deliveries()
    assert diagnose(history, clean, time="time") == []
    for days in (1, 3):
        assert diagnose(history, clean[: days * 24], time="time") == []
    untimed = [frame.drop("time") for frame in (history, clean)]
    assert diagnose(*untimed) == []
    assert diagnose(history, clean.clear(), time="time") == []
    assert diagnose(history.clear(), clean, time="time") == []


def test_rows_before_a_fault_are_left_as_they_are() -> None:
    history, clean = deliveries()
    broken = since_day(4, line(["power"], 1000))(clean)
    (found,) = diagnose(history, broken, time="time")
    assert found.since == clean["time"][4 * 24]
    assert same(mend(broken, [found], "time")["power"], clean["power"])
