"""The recorded year replayed as the outside world: files that arrive, questions that callers ask, what came true.

Nothing here is part of a palan project of your own: there, files, callers and outcomes come by themselves.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from apron import COSTS, HOMES, occupancy, stands
from features import CATEGORIES, NUMBERS, UTC_TIME, departures

DATA = Path(__file__).parent / "data"

# In this month the weather feed reports temperature and dew point in °C where it used to say °F. It is the one thing
# in this example that did not happen; all other oddities are as they were recorded.
FAULT = {"month": "2013-11", "data": "weather", "columns": ["temp", "dewp"], "kind": "unit", "from": "°F", "to": "°C"}

UNKNOWN = 0.22  # probability of a late departure where nobody has said: the share of January to April


def months() -> list[str]:
    """Return the months of the recorded year, `2013-01` to `2013-12`."""
    return sorted(path.stem.removeprefix("flights-") for path in DATA.glob("flights-*.parquet"))


def deliver(month: str, feed: Path) -> list[Path]:
    """Write the files that arrive for one month: flights, weather and the aircraft register.

    A file appears whole or not at all, and delivering again writes the same bytes.
    """
    feed.mkdir(parents=True, exist_ok=True)
    flights, planes, weather = feed / f"flights-{month}.parquet", feed / "planes.parquet", feed / f"weather-{month}.csv"
    _write(flights, lambda path: shutil.copyfile(DATA / flights.name, path))
    _write(planes, lambda path: shutil.copyfile(DATA / planes.name, path))
    _write(weather, lambda path: _feed(month).write_csv(path))
    return [flights, weather, planes]


def requests(day: date) -> pl.DataFrame:
    """Return what callers send to the model `delay` on a local day: its inputs, with `id` and `scheduled`.

    Callers read the same weather feed as everybody else, so in the month of the fault they send what it says.
    """
    return _day(day).select("id", "scheduled", *CATEGORIES, *NUMBERS)


def outcomes(day: date) -> pl.DataFrame:
    """Return what came true for a local day's departures: `id`, `late` (0 or 1) and `dep_delay` (null if cancelled)."""
    return _day(day).select("id", "late", "dep_delay")


def instance(day: date, airport: str, probabilities: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return one airport-day for the models `gates` and `gates_fast`; times are minutes since local midnight.

    Args:
        probabilities: flight id -> probability of leaving late, as the model `delay` says.
    """
    known = probabilities or {}
    flights = [
        {
            "id": row["id"],
            "carrier": row["carrier"],
            "home": HOMES[airport].get(row["carrier"], HOMES[airport][""]),
            "ready": 60 * row["hour"] + row["minute"] - occupancy(row["seats"]),
            "scheduled": 60 * row["hour"] + row["minute"],
            "delay_probability": round(known.get(row["id"], UNKNOWN), 4),
        }
        for row in _day(day).filter(pl.col("origin") == airport).iter_rows(named=True)
    ]
    return {"airport": airport, "day": day.isoformat(), "gates": stands(airport), "costs": COSTS, "flights": flights}


def realised(day: date, airport: str) -> dict[str, int | None]:
    """Return the minutes by which each departure of an airport-day left late (negative: early; None: cancelled)."""
    rows = _day(day).filter(pl.col("origin") == airport)
    return dict(zip(rows["id"], rows["dep_delay"], strict=True))


def _feed(month: str) -> pl.DataFrame:
    """Return the weather of a month as the feed delivers it, the fault included."""
    weather = pl.read_parquet(DATA / f"weather-{month}.parquet")
    if month != FAULT["month"]:
        return weather
    return weather.with_columns(((pl.col(column) - 32) / 1.8).round(2) for column in FAULT["columns"])


@cache
def _days() -> dict[date, pl.DataFrame]:
    """Return the year's departures by local day, as callers and the airport see them."""
    time = pl.col("time_hour").str.to_datetime(time_zone="UTC").cast(UTC_TIME)
    flights = pl.concat(pl.read_parquet(DATA / f"flights-{month}.parquet") for month in months()).with_columns(time)
    weather = pl.concat(_feed(month) for month in months()).with_columns(time)
    # the one impossible reading of the year (1048 mph) would make a caller's request invalid: they have a null there
    weather = weather.with_columns(wind_speed=pl.when(pl.col("wind_speed") < 150).then("wind_speed"))
    year = departures(flights, weather, pl.read_parquet(DATA / "planes.parquet"))
    local = pl.col("scheduled").dt.convert_time_zone("America/New_York").dt.date()
    days = year.with_columns(day=local).partition_by("day", as_dict=True, include_key=False)
    return {day: rows for (day,), rows in days.items()}


def _day(day: date) -> pl.DataFrame:
    return _days()[day]


def _write(path: Path, write: Callable[[Path], object]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    write(Path(temporary))
    Path(temporary).replace(path)
