"""Seeded faults put into real data, each with its right answer: class, columns, first time, and what the repair has to give back.

Written before, and without a look at, the detector that they judge.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

ROOT = Path(os.environ.get("PALAN_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")) / "streams"


class Unit(msgspec.Struct, frozen=True):
    """A column that another unit can be written in: `new = old * factor + offset`, rounded as a supplier would."""

    kind: str
    column: str
    factor: float
    offset: float = 0.0
    digits: int = 2


class Table(msgspec.Struct, frozen=True):
    """What of a table's meaning an injector needs to know; the detector is told none of it."""

    name: str
    frame: pl.DataFrame
    batches: list[tuple[int, int]]
    time: str | None = None
    supplier: str | None = None
    units: list[Unit] = []
    plain: list[str] = []
    signed: list[str] = []
    decimals: list[str] = []
    thousands: list[str] = []
    holes: list[str] = []
    swaps: list[tuple[str, str]] = []
    labels: list[str] = []
    words: dict[str, dict[str, str]] = {}
    accents: tuple[str, dict[str, str]] | None = None
    removable: list[str] = []


class Fault(msgspec.Struct, frozen=True):
    """A broken batch and the truth about it. `clean` is what the exact inverse gives back; None where no inverse exists."""

    kind: str
    columns: frozenset[str]
    first: datetime | None
    history: pl.DataFrame
    batch: pl.DataFrame
    clean: pl.DataFrame | None
    tolerance: dict[str, float] = {}


class Scene(msgspec.Struct, frozen=True):
    """One place to put a fault: a batch, what came before it, and the seed's own randomness."""

    table: Table
    history: pl.DataFrame
    batch: pl.DataFrame
    random: np.random.Generator
    late: bool  # the fault begins within the batch

    def pick(self, among: list[str]) -> str:
        return among[int(self.random.integers(len(among)))]

    def start(self) -> tuple[pl.Series, datetime | None]:
        """Which rows are at fault, and since when: all of them, or those from a moment within the batch on."""
        time = self.table.time
        if time is None:
            return pl.Series([True] * self.batch.height), None
        times = self.batch[time]
        first: datetime = times.min()  # type: ignore[assignment]
        if self.late:
            last: datetime = times.max()  # type: ignore[assignment]
            first += timedelta(hours=round((last - first) / timedelta(hours=1) * self.random.uniform(0.25, 0.6)))
        return times >= first, times.filter(times >= first).min()  # type: ignore[return-value]


# --- the tables ---------------------------------------------------------------------------------------------------------

SKY = {
    "Clouds": "Nuages", "Clear": "Clair", "Mist": "Brume", "Rain": "Pluie", "Snow": "Neige", "Drizzle": "Bruine",
    "Haze": "Voile", "Thunderstorm": "Orage", "Fog": "Brouillard", "Smoke": "Fumée", "Squall": "Grain",
}  # fmt: skip
DEGREES = {
    "sky is clear": "ciel dégagé", "Sky is Clear": "ciel dégagé ", "scattered clouds": "nuages épars", "broken clouds": "nuages fragmentés", "overcast clouds": "ciel couvert",
    "mist": "brume légère", "light rain": "pluie légère", "moderate rain": "pluie modérée", "light snow": "neige légère",
}  # fmt: skip
MARRIED = {"1": "Married", "2": "Widowed", "3": "Divorced", "4": "Separated", "5": "Never married"}
ETAT = {"Married": "Marié", "Widowed": "Veuf", "Divorced": "Divorcé", "Separated": "Séparé", "Never married": "Célibataire"}
CITIZEN = {"1": "Born in the US", "2": "Born in Puerto Rico", "3": "Born abroad of American parents", "4": "Naturalized", "5": "Not a citizen"}


def read(name: str) -> pl.DataFrame:
    return pl.read_parquet(ROOT / f"{name}.parquet")


def months(frame: pl.DataFrame, time: str) -> list[tuple[int, int]]:
    """Where each calendar month begins and ends, in rows; months nearly without rows are left out."""
    counted = frame.with_row_index("row").group_by(pl.col(time).dt.truncate("1mo"), maintain_order=True).agg(pl.col("row").min().alias("from"), pl.col("row").max().alias("to"))
    return [(row["from"], row["to"] + 1) for row in counted.iter_rows(named=True) if row["to"] - row["from"] > 300]


def timed(frame: pl.DataFrame, time: str, form: str) -> pl.DataFrame:
    return frame.with_columns(pl.col(time).str.to_datetime(form, time_unit="us").dt.replace_time_zone("UTC")).sort(time, maintain_order=True)


def weather() -> Table:
    frame = timed(read("weather"), "time_hour", "%Y-%m-%dT%H:%M:%SZ")
    units = [Unit("fahrenheit_celsius", each, 5 / 9, -160 / 9) for each in ("temp", "dewp")]
    units += [Unit("miles_km", "visib", 1.609344), Unit("speed", "wind_speed", 1.609344), Unit("speed", "wind_speed", 0.44704), Unit("speed", "wind_gust", 1.609344)]
    return Table(
        "weather", frame, months(frame, "time_hour"), time="time_hour", supplier="origin", units=units,
        plain=["temp", "dewp", "humid", "pressure", "wind_speed"], signed=["temp", "dewp", "humid", "pressure"], decimals=["temp", "humid", "wind_speed", "pressure"],
        thousands=["pressure"], holes=["wind_gust", "pressure", "wind_dir"], swaps=[("temp", "dewp"), ("wind_speed", "wind_gust"), ("temp", "humid")],
        labels=["origin"], words={"origin": {"EWR": "Newark", "JFK": "Kennedy", "LGA": "LaGuardia"}},
        accents=("origin", {"EWR": "Aéroport Newark", "JFK": "Aéroport Kennedy", "LGA": "Aéroport LaGuardia"}),
        removable=["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib", "origin"],
    )  # fmt: skip


def flights() -> Table:
    frame = timed(read("flights"), "time_hour", "%Y-%m-%dT%H:%M:%SZ")
    airlines = read("airlines")
    units = [Unit("miles_km", "distance", 1.609344), Unit("minutes_hours", "air_time", 1 / 60, digits=3)]
    return Table(
        "flights", frame, months(frame, "time_hour"), time="time_hour", supplier="carrier", units=units,
        plain=["distance", "air_time", "dep_delay", "arr_delay"], signed=["dep_delay", "arr_delay", "distance"], decimals=[], thousands=["distance"],
        holes=["dep_delay", "air_time", "arr_delay", "dep_time"], swaps=[("dep_delay", "arr_delay"), ("sched_dep_time", "sched_arr_time"), ("origin", "dest"), ("dep_time", "arr_time")],
        labels=["origin", "carrier", "dest"], words={"origin": {"EWR": "Newark", "JFK": "Kennedy", "LGA": "LaGuardia"}, "carrier": dict(airlines.iter_rows())},
        accents=("origin", {"EWR": "Aéroport Newark", "JFK": "Aéroport Kennedy", "LGA": "Aéroport LaGuardia"}),
        removable=["dep_time", "dep_delay", "arr_delay", "carrier", "tailnum", "origin", "dest", "air_time", "distance"],
    )  # fmt: skip


def bikes() -> Table:
    frame = timed(read("bikes").drop("date"), "ts", "%Y-%m-%d %H:%M:%S")
    units = [Unit("fahrenheit_celsius", each, 9 / 5, 32.0) for each in ("tmin", "tmax")] + [Unit("miles_km", "pn", 1 / 25.4, digits=3)]
    return Table(
        "bikes", frame, months(frame, "ts"), time="ts", units=units, plain=["count", "tmin", "tmax", "pn"], signed=["count", "tmin", "tmax"], decimals=["tmin", "tmax"],
        thousands=["count"], holes=["count", "tmax"], swaps=[("tmin", "tmax"), ("count", "pn")], removable=["count", "tmin", "tmax", "pn"],
    )  # fmt: skip


def traffic() -> Table:
    frame = timed(read("traffic"), "date_time", "%Y-%m-%d %H:%M:%S")
    units = [Unit("fahrenheit_celsius", "temp", 1.0, -273.15), Unit("fahrenheit_celsius", "temp", 9 / 5, -459.67), Unit("miles_km", "rain_1h", 1 / 25.4, digits=4)]
    return Table(
        "traffic", frame, months(frame, "date_time"), time="date_time", units=units, plain=["temp", "traffic_volume", "clouds_all", "rain_1h"], signed=["temp", "traffic_volume", "clouds_all"],
        decimals=["temp"], thousands=["traffic_volume"], holes=["temp", "traffic_volume", "clouds_all"], swaps=[("temp", "clouds_all"), ("clouds_all", "rain_1h"), ("weather_main", "weather_description")],
        labels=["weather_main", "weather_description"], words={"weather_main": SKY}, accents=("weather_description", DEGREES), removable=["temp", "rain_1h", "clouds_all", "weather_main", "traffic_volume"],
    )  # fmt: skip


def census() -> Table:
    both = pl.concat([read("acs_ma_reference").drop("employed"), read("acs_ma_analysis")], how="vertical_relaxed")
    frame = both.drop("prediction").with_columns(pl.col(pl.Categorical).cast(pl.String))
    frame = frame.with_columns(
        pl.col("SEX").replace_strict({"1": "Male", "2": "Female"}), pl.col("MAR").replace_strict(MARRIED), pl.col("CIT").replace_strict(CITIZEN), pl.col("RAC1P").cast(pl.Int64)
    )
    size = 5000
    return Table(
        "census", frame, [(at, at + size) for at in range(0, frame.height - size + 1, size)], supplier="SEX", units=[Unit("years_months", "AGEP", 12.0, digits=0)],
        plain=["AGEP", "predicted_probability"], signed=["AGEP", "predicted_probability"], decimals=["predicted_probability"], thousands=["id"], holes=["AGEP", "predicted_probability"],
        swaps=[("AGEP", "predicted_probability"), ("DEAR", "DEYE"), ("MAR", "CIT"), ("MIL", "ANC")], labels=["SEX", "MAR", "CIT", "RELP"],
        words={"SEX": {"Male": "Homme", "Female": "Femme"}, "MAR": ETAT}, accents=("MAR", ETAT), removable=["AGEP", "SCHL", "MAR", "SEX", "MIL", "predicted_probability"],
    )  # fmt: skip


TABLES: dict[str, Callable[[], Table]] = {"weather": weather, "flights": flights, "bikes": bikes, "traffic": traffic, "census": census}


# --- the injectors: each answers a broken batch with its truth, or None where its table has nothing to break so ---------------


def put(scene: Scene, kind: str, column: str, made: pl.Series, *, exact: bool = True, tolerance: float = 0.0, history: pl.DataFrame | None = None, clean: pl.DataFrame | None = None) -> Fault:
    """A fault of one column from the scene's start on: `made` holds its broken values, one for every row of the batch."""
    rows, first = scene.start()
    clean = scene.batch if clean is None else clean
    old = clean[column]
    if made.dtype != old.dtype and old.dtype.is_numeric() and made.dtype.is_numeric():
        old, made = old.cast(pl.Float64), made.cast(pl.Float64)
    elif made.dtype != old.dtype:
        old, made = old.cast(pl.String), made.cast(pl.String)
    mixed = pl.select(pl.when(rows).then(made).otherwise(old).alias(column)).to_series()
    changed = np.flatnonzero(mixed.ne_missing(old).to_numpy())
    if first is not None and len(changed):  # the rows before that one look as they always did
        first = clean[scene.table.time][int(changed[0])]
    return Fault(kind, frozenset({column}), first, scene.history if history is None else history, clean.with_columns(mixed), clean if exact else None, {column: tolerance})


def column_added(scene: Scene) -> Fault:
    height = scene.batch.height
    made = [
        pl.Series("batch_id", scene.random.integers(0, 10**6, height)),
        pl.Series("score", scene.random.normal(size=height)),
        pl.Series("source", ["v2"] * height),
        pl.Series("quality", scene.random.choice(["good", "fair", "poor"], height)),
    ][int(scene.random.integers(4))]
    broken = scene.batch.insert_column(int(scene.random.integers(scene.batch.width)), made)
    clean = scene.batch.drop(made.name)  # insert_column works in place
    return Fault("column_added", frozenset({made.name}), beginning(scene), scene.history, broken, clean)


def beginning(scene: Scene) -> datetime | None:
    return scene.batch[scene.table.time].min() if scene.table.time else None  # type: ignore[return-value]


def column_removed(scene: Scene) -> Fault:
    gone = scene.pick(scene.table.removable)
    return Fault("column_removed", frozenset({gone}), beginning(scene), scene.history, scene.batch.drop(gone), None)


def column_renamed(scene: Scene) -> Fault:
    old = scene.pick(scene.table.removable)
    parts = old.split("_")
    new = [old.upper() if old != old.upper() else old.lower(), "".join(part.title() for part in parts) + "Value", f"f_{old}", f"col_{scene.random.integers(10, 99)}", f"x{old[:2]}{old[-1:]}"][int(scene.random.integers(5))]
    broken = scene.batch.rename({old: new})
    broken = broken.select(sorted(broken.columns, key=lambda name: zlib.crc32(name.encode())))
    return Fault("column_renamed", frozenset({old}), beginning(scene), scene.history, broken, scene.batch)


def decimal_comma(scene: Scene) -> Fault | None:
    among = scene.table.decimals or [unit.column for unit in scene.table.units if scene.batch[unit.column].dtype.is_float()]
    if not among:
        return None
    column = scene.pick(among)
    text = scene.batch[column].cast(pl.String).str.replace(".", ",", literal=True)
    return Fault("decimal_comma", frozenset({column}), beginning(scene), scene.history, scene.batch.with_columns(text.alias(column)), scene.batch, {column: 1e-9})


def thousands(scene: Scene) -> Fault | None:
    if not scene.table.thousands:
        return None
    column, mark = scene.pick(scene.table.thousands), scene.pick([",", " ", "\u202f", "'"])
    text = pl.Series(column, [None if value is None else f"{value:,}".replace(",", mark) for value in scene.batch[column]])
    return Fault("thousands", frozenset({column}), beginning(scene), scene.history, scene.batch.with_columns(text), scene.batch, {column: 1e-9})


def date_format(scene: Scene) -> Fault | None:
    if scene.table.time is None:
        return None
    column = scene.table.time
    way = int(scene.random.integers(5))
    times = scene.batch[column]
    made = times.dt.epoch("s") if way == 4 else times.dt.strftime(["%d/%m/%Y %H:%M", "%m/%d/%Y %I:%M %p", "%d.%m.%Y %H:%M:%S", "%Y%m%d%H%M%S"][way])
    return Fault("date_format", frozenset({column}), beginning(scene), scene.history, scene.batch.with_columns(made.alias(column)), scene.batch)


def times_thousand(scene: Scene) -> Fault:
    column = scene.pick(scene.table.plain)
    factor = 1000 if scene.random.random() < 0.7 or scene.batch[column].dtype.is_integer() else 0.001
    return put(scene, "times_thousand", column, scene.batch[column] * factor, tolerance=1e-6)


def cents(scene: Scene) -> Fault:
    column = scene.pick(scene.table.plain)
    return put(scene, "cents", column, scene.batch[column] * 100, tolerance=1e-6)


def unit(scene: Scene, kind: str) -> Fault | None:
    among = [each for each in scene.table.units if each.kind == kind]
    if not among:
        return None
    each = among[int(scene.random.integers(len(among)))]
    return put(scene, kind, each.column, converted(scene.batch[each.column], each), tolerance=rounding(each))


def converted(values: pl.Series, unit: Unit) -> pl.Series:
    return (values * unit.factor + unit.offset).round(unit.digits)


def rounding(unit: Unit) -> float:
    """How far a value may be from the original after the inverse: what the supplier's own rounding has lost."""
    return 0.51 * 10**-unit.digits / abs(unit.factor) + 1e-6


def one_supplier_unit(scene: Scene) -> Fault | None:
    if scene.table.supplier is None:
        return None
    each = scene.table.units[int(scene.random.integers(len(scene.table.units)))]
    named = scene.batch[scene.table.supplier]
    common = named.value_counts(sort=True)[scene.table.supplier].to_list()[:3]
    mine = named == scene.pick(common)
    made = pl.select(pl.when(mine).then(converted(scene.batch[each.column], each)).otherwise(scene.batch[each.column].cast(pl.Float64)).alias(each.column)).to_series()
    return put(scene, "one_supplier_unit", each.column, made, tolerance=rounding(each))


def shifted(scene: Scene, kind: str, hours: int) -> Fault | None:
    if scene.table.time is None:
        return None
    column, (rows, first) = scene.table.time, scene.start()
    made = pl.select(pl.when(rows).then(scene.batch[column] + timedelta(hours=hours)).otherwise(scene.batch[column]).alias(column)).to_series()
    return Fault(kind, frozenset({column}), first, scene.history, scene.batch.with_columns(made), scene.batch)


def time_zone(scene: Scene) -> Fault | None:
    return shifted(scene, "time_zone", int(scene.random.choice([-8, -6, -5, -4, 2, 4, 5, 6, 9])))


def daylight_saving(scene: Scene) -> Fault | None:
    return shifted(scene, "daylight_saving", int(scene.random.choice([-1, 1])))


def relabelled(scene: Scene, kind: str, column: str, renamed: dict[object, str], *, exact: bool = True) -> Fault:
    made = scene.batch[column].replace_strict(renamed, default=scene.batch[column], return_dtype=pl.String)
    return put(scene, kind, column, made, exact=exact)


def kinds_of(scene: Scene, column: str) -> list[str]:
    """The column's categories, the most frequent one first."""
    return scene.batch[column].drop_nulls().value_counts(sort=True)[column].to_list()


def case(scene: Scene) -> Fault | None:
    among = [name for name in scene.table.labels if scene.batch[name].str.contains("[A-Za-z]").any()]
    if not among:
        return None
    column = scene.pick(among)
    ways: list[Callable[[str], str]] = [str.upper, str.lower, str.title]
    for at in scene.random.permutation(3):
        changed = {name: ways[at](name) for name in kinds_of(scene, column)}
        if len(set(changed.values())) == len(changed) and sum(old != new for old, new in changed.items()) * 2 > len(changed):
            return relabelled(scene, "case", column, {**changed})
    return None


def codes(scene: Scene) -> Fault | None:
    among = [name for name in scene.table.labels if scene.batch[name].n_unique() <= 20 and scene.batch[name].str.contains("[A-Za-z]").any()]
    if not among:
        return None
    column = scene.pick(among)
    names = sorted(kinds_of(scene, column))
    return relabelled(scene, "codes", column, {name: str(at + 1) for at, name in enumerate(names)})


def translation(scene: Scene) -> Fault | None:
    if not scene.table.words:
        return None
    column = scene.pick(sorted(scene.table.words))
    return relabelled(scene, "translation", column, {**scene.table.words[column]})


def split(scene: Scene) -> Fault | None:
    if not scene.table.labels:
        return None
    column = scene.pick(scene.table.labels)
    old = scene.pick(kinds_of(scene, column)[:3])
    parts = scene.random.choice([f"{old} - A", f"{old} - B"], scene.batch.height, p=[0.6, 0.4])
    made = pl.select(pl.when(scene.batch[column] == old).then(pl.Series(parts)).otherwise(scene.batch[column]).alias(column)).to_series()
    return put(scene, "split", column, made)


def merge(scene: Scene) -> Fault | None:
    among = [name for name in scene.table.labels if scene.batch[name].n_unique() >= 3]
    if not among:
        return None
    column = scene.pick(among)
    one, two = kinds_of(scene, column)[:2]
    return relabelled(scene, "merge", column, {one: f"{one}/{two}", two: f"{one}/{two}"}, exact=False)


def mojibake(scene: Scene) -> Fault | None:
    if scene.table.accents is None:
        return None
    column, words = scene.table.accents
    history, clean = (frame.with_columns(pl.col(column).replace(words)) for frame in (scene.history, scene.batch))
    made = pl.Series(column, [None if value is None else value.encode().decode("latin-1") for value in clean[column]])
    return put(scene, "mojibake", column, made, history=history, clean=clean)


def default_for_null(scene: Scene) -> Fault:
    column = scene.pick(scene.table.holes)
    history, clean = (with_holes(frame, column, scene.random) for frame in (scene.history, scene.batch))
    mean = clean[column].mean()
    whole = clean[column].dtype.is_integer() or clean[column].drop_nulls().map_elements(lambda value: value == round(value), return_dtype=pl.Boolean).all()
    filler = [0, -1, 999, -999, round(mean) if whole else round(mean, 1)][int(scene.random.integers(5))]  # type: ignore[arg-type]
    return put(scene, "default_for_null", column, clean[column].fill_null(filler), history=history, clean=clean)


def with_holes(frame: pl.DataFrame, column: str, random: np.random.Generator) -> pl.DataFrame:
    """Where a column of the real data has no nulls, one value in twenty is taken out, in the history too."""
    if frame[column].null_count() > 0.005 * frame.height:
        return frame
    gone = pl.Series(random.random(frame.height) < 0.05)
    return frame.with_columns(pl.when(gone).then(None).otherwise(pl.col(column)).alias(column))


def stuck(scene: Scene) -> Fault:
    column = scene.pick(scene.table.plain)
    rows, _ = scene.start()
    value = scene.batch[column].filter(rows).drop_nulls()[0]
    return put(scene, "stuck", column, pl.Series(column, [value] * scene.batch.height, dtype=scene.batch[column].dtype), exact=False)


def decimals_cut(scene: Scene) -> Fault | None:
    if not scene.table.decimals:
        return None
    column = scene.pick(scene.table.decimals)
    return put(scene, "decimals_cut", column, scene.batch[column].cast(pl.Int64).cast(pl.Float64), exact=False)


def text_cut(scene: Scene) -> Fault | None:
    among = [name for name in scene.table.labels if (scene.batch[name].str.len_chars().max() or 0) > 6]  # type: ignore[operator]
    if scene.table.name == "flights":
        among = ["tailnum"]
    if not among:
        return None
    column = scene.pick(among)
    values = scene.batch[column]
    size = 5 if scene.table.name == "flights" else int(scene.random.integers(4, 7))
    whole = set(scene.history[column].drop_nulls()) | set(values.drop_nulls())
    unique = len({name[:size] for name in whole}) == len(whole)
    return put(scene, "text_cut", column, values.str.slice(0, size), exact=unique)


def duplicated(scene: Scene) -> Fault:
    rows, first = scene.start()
    clean = scene.batch.unique(maintain_order=True)
    sent = scene.batch.filter(rows).unique(maintain_order=True)
    return Fault("duplicated", frozenset(), first, scene.history, pl.concat([clean, sent]), clean)


def sign_flip(scene: Scene) -> Fault:
    column = scene.pick(scene.table.signed)
    return put(scene, "sign_flip", column, -scene.batch[column], tolerance=1e-9)


def swapped(scene: Scene) -> Fault:
    one, two = scene.table.swaps[int(scene.random.integers(len(scene.table.swaps)))]
    rows, first = scene.start()
    both = [scene.batch[one], scene.batch[two]]
    if both[0].dtype != both[1].dtype:
        both = [each.cast(pl.Float64) for each in both]
    broken = scene.batch.with_columns(
        pl.select(pl.when(rows).then(both[1]).otherwise(both[0]).alias(one)).to_series(), pl.select(pl.when(rows).then(both[0]).otherwise(both[1]).alias(two)).to_series()
    )
    return Fault("swapped", frozenset({one, two}), first, scene.history, broken, scene.batch)


def partial(scene: Scene) -> Fault:
    """A supplier's rows, or some hours of each day, have not come."""
    rows, first = scene.start()
    if scene.table.supplier is not None and (scene.table.time is None or scene.random.random() < 0.6):
        named = scene.batch[scene.table.supplier]
        gone = rows & (named == scene.pick(kinds_of(scene, scene.table.supplier)[:3]))
        columns = frozenset({scene.table.supplier})
    else:
        assert scene.table.time is not None
        hour, since = scene.batch[scene.table.time].dt.hour(), int(scene.random.integers(24))
        gone = rows & ((hour - since) % 24 < int(scene.random.integers(4, 9)))
        columns = frozenset({scene.table.time})
    return Fault("partial", columns, first, scene.history, scene.batch.filter(~gone), None)


INJECTORS: dict[str, Callable[[Scene], Fault | None]] = {
    "column_added": column_added,
    "column_removed": column_removed,
    "column_renamed": column_renamed,
    "decimal_comma": decimal_comma,
    "thousands": thousands,
    "date_format": date_format,
    "times_thousand": times_thousand,
    "cents": cents,
    "fahrenheit_celsius": lambda scene: unit(scene, "fahrenheit_celsius"),
    "miles_km": lambda scene: unit(scene, "miles_km"),
    "speed": lambda scene: unit(scene, "speed"),
    "minutes_hours": lambda scene: unit(scene, "minutes_hours"),
    "years_months": lambda scene: unit(scene, "years_months"),
    "one_supplier_unit": one_supplier_unit,
    "time_zone": time_zone,
    "daylight_saving": daylight_saving,
    "case": case,
    "codes": codes,
    "translation": translation,
    "split": split,
    "merge": merge,
    "mojibake": mojibake,
    "default_for_null": default_for_null,
    "stuck": stuck,
    "decimals_cut": decimals_cut,
    "text_cut": text_cut,
    "duplicated": duplicated,
    "sign_flip": sign_flip,
    "swapped": swapped,
    "partial": partial,
}

HISTORY = 60_000  # rows before a batch that the detector is shown, at most


def scene(table: Table, kind: str, seed: int) -> Scene:
    """The place of one case: batches of the last two thirds, so that each has a history."""
    random = np.random.default_rng(zlib.crc32(f"{table.name}/{kind}/{seed}".encode()))
    start, end = table.batches[int(random.integers(len(table.batches) // 3, len(table.batches)))]
    return Scene(table, table.frame[max(0, start - HISTORY) : start], table.frame[start:end].clone(), random, late=seed % 5 in (1, 2))


def cases(table: Table, seeds: range, kinds: Sequence[str] = ()) -> Iterator[tuple[str, int, Fault]]:
    for kind, inject in ((kind, inject) for kind, inject in INJECTORS.items() if not kinds or kind in kinds):
        for seed in seeds:
            fault = inject(scene(table, kind, seed))
            # a thousandfold of no rain at all is no fault
            if fault is not None and (fault.clean is None or not fault.batch.equals(fault.clean)):
                yield kind, seed, fault


def clean_pairs(table: Table) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Everything consecutive in the data: each batch with what came before it."""
    for start, end in table.batches[1:]:
        yield table.frame[max(0, start - HISTORY) : start], table.frame[start:end]
