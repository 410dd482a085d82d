"""What was known before a row: as-of joins and windows for batches, a keyed table for one row, from one definition."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
import polars as pl

How = Literal["last", "mean", "sum", "min", "max", "count"]

_EVER = timedelta(days=365_000)


class Past(msgspec.Struct, frozen=True):
    """Of the rows of a table with the same keys, known before this row: one number.

    The window is `[t - within, t)`: never the row's own moment. Nulls of `column` count as not known.
    """

    table: str
    column: str
    how: How
    by: tuple[str, ...]
    time: str  # in the table: when its row became known, which may be later than when it happened
    within: timedelta | None = None  # None: ever


def last(table: str, column: str, *, by: Sequence[str], time: str, within: timedelta | None = None) -> Past:
    """The newest value known before."""
    return Past(table, column, "last", tuple(by), time, within)


def before(how: How, table: str, column: str, *, by: Sequence[str], time: str, within: timedelta | None = None) -> Past:
    """The mean, sum, min, max or count of the values known before."""
    return Past(table, column, how, tuple(by), time, within)


def join_past(frame: pl.DataFrame, time: str, pasts: Mapping[str, Past], tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Return the rows, in their order, with a column for each past.

    Args:
        frame: rows with the keys and a time.
        time: the column with the moment of each row.
        pasts: name of the new column -> what it is.
        tables: name -> rows, in any order.
    """
    for name, past in pasts.items():
        asks = frame.select(*past.by, _at=time).with_row_index("_row")
        known = tables[past.table].select(*past.by, _at=past.time, _value=past.column).drop_nulls()
        made = _last(asks, known, past) if past.how == "last" else _window(asks, known, past)
        frame = frame.with_columns(made.sort("_row")["_value"].alias(name))
    return frame


def _last(asks: pl.DataFrame, known: pl.DataFrame, past: Past) -> pl.DataFrame:
    ordered = known.sort("_at", maintain_order=True)
    return asks.sort("_at").join_asof(ordered, on="_at", by=list(past.by) or None, strategy="backward", allow_exact_matches=False, tolerance=past.within, check_sortedness=False)


def _window(asks: pl.DataFrame, known: pl.DataFrame, past: Past) -> pl.DataFrame:
    both = pl.concat([known.with_columns(_row=pl.lit(None, pl.UInt32)), asks.with_columns(_value=pl.lit(None, known.schema["_value"]))], how="diagonal").sort("_at", maintain_order=True)
    value, within = pl.col("_value"), past.within or _EVER
    rolled = {
        "mean": lambda: value.rolling_mean_by("_at", within, closed="left"),
        "sum": lambda: value.rolling_sum_by("_at", within, closed="left"),
        "min": lambda: value.rolling_min_by("_at", within, closed="left"),
        "max": lambda: value.rolling_max_by("_at", within, closed="left"),
        "count": lambda: value.is_not_null().cast(pl.Int64).rolling_sum_by("_at", within, closed="left"),
    }[past.how]()
    count = value.is_not_null().cast(pl.Int64).rolling_sum_by("_at", within, closed="left")
    rolled, count = (each.over(past.by) if past.by else each for each in (rolled, count))
    found = both.with_columns(_value=rolled, _count=count.fill_null(0)).filter(pl.col("_row").is_not_null())
    # A row without a key has no past, and a sum of nothing is not known, as little as its mean.
    unknown = pl.any_horizontal([pl.col(key).is_null() for key in past.by] or [pl.lit(False)]) | (pl.col("_count") == 0)
    nothing = pl.lit(0 if past.how == "count" else None)
    return found.with_columns(_value=pl.when(unknown).then(nothing).otherwise(value))


class Known:
    """The same past for one row at a time: rows of the table are added as they become known, in any order.

    Of each row its time (microseconds) and its value are kept, 8 bytes each where the value is a number.
    """

    def __init__(self, past: Past) -> None:
        self.past = past
        self.rows: dict[tuple[Any, ...], tuple[array[int], array[Any] | list[Any]]] = {}

    @classmethod
    def of(cls, past: Past, table: pl.DataFrame) -> Known:
        """Return what all rows of a table tell."""
        known = cls(past)
        rows = table.select(*past.by, _at=pl.col(past.time).cast(pl.Datetime("us")).to_physical(), _value=past.column).drop_nulls().sort("_at", maintain_order=True)
        kind = _stored(rows.schema["_value"])
        groups = rows.group_by(past.by, maintain_order=True) if past.by else [((), rows)]
        for key, group in groups:
            times = array("q", group["_at"].to_numpy().tobytes())
            values = array(kind, group["_value"].cast(pl.Float64 if kind == "d" else pl.Int64).to_numpy().tobytes()) if kind else group["_value"].to_list()
            if times:
                known.rows[key] = (times, values)
        return known

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in one row of the table."""
        key, time, value = tuple(row[name] for name in self.past.by), row[self.past.time], row[self.past.column]
        if value is None or time is None or None in key:
            return
        if key not in self.rows:
            self.rows[key] = (array("q"), array("d") if type(value) is float else [])
        times, values = self.rows[key]
        place = bisect_right(times, at := _microseconds(time))
        times.insert(place, at)
        values.insert(place, value)

    def ask(self, row: Mapping[str, Any], at: datetime) -> Any:
        """Return what was known before `at` for the keys of a row."""
        times, values = self.rows.get(tuple(row[name] for name in self.past.by), ((), ()))
        moment = _microseconds(at)
        end = bisect_left(times, moment)
        start = 0 if self.past.within is None else bisect_left(times, moment - self.past.within // _TICK, 0, end)
        if self.past.how == "count":
            return end - start
        if start == end:
            return None
        return values[end - 1] if self.past.how == "last" else _HOW[self.past.how](values[start:end])

    def forget(self, before: datetime) -> None:
        """Drop what no later question can reach: asks come at `before` or after it."""
        if self.past.within is None and self.past.how != "last":
            return
        moment = _microseconds(before)
        for key, (times, values) in list(self.rows.items()):
            start = bisect_left(times, moment) - 1 if self.past.within is None else bisect_left(times, moment - self.past.within // _TICK)
            if start > 0:
                del times[:start], values[:start]
            if not times:
                del self.rows[key]


_TICK = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _microseconds(time: datetime) -> int:
    """Return the microseconds since 1970; a time without a zone is taken as UTC."""
    return ((time.replace(tzinfo=UTC) if time.tzinfo is None else time) - _EPOCH) // _TICK


def _stored(dtype: pl.DataType) -> str:
    """Return how values are stored: "d" and "q" are 8 bytes each, "" a list of anything."""
    return "d" if dtype.is_float() else "q" if dtype.is_integer() and dtype != pl.UInt64 else ""


def kind_of(past: Past, column: str) -> str:
    """Return the type of the new column, where the table's column is of this type, as a contract names it.

    Raises:
        ValueError: there is no mean or sum of such a column.
    """
    if past.how == "count":
        return "int"
    if past.how in ("mean", "sum") and column not in ("int", "float"):
        raise ValueError(f"there is no {past.how} of a {column}")
    return "float" if past.how == "mean" else column


_HOW: dict[str, Callable[[Sequence[Any]], Any]] = {
    "mean": lambda values: math.fsum(values) / len(values),
    "sum": lambda values: math.fsum(values) if isinstance(values[0], float) else sum(values),
    "min": min,
    "max": max,
}


class Leak(msgspec.Struct, frozen=True):
    """A feature that is another when only what was known at the row's time is there."""

    feature: str
    row: int
    with_all: Any
    with_known: Any


Tables = Mapping[str, pl.DataFrame]


def leaks(compute: Callable[[pl.DataFrame, Tables], pl.DataFrame], frame: pl.DataFrame, time: str, *, at: Sequence[int], tables: Mapping[str, tuple[pl.DataFrame, str]] | None = None) -> list[Leak]:
    """Compute features of some rows from all data and from what was known at their time, and return every difference.

    Args:
        compute: rows and tables -> features, one row for each, in order.
        frame: the rows.
        time: the column with the moment of each row; rows of the same moment or before are known.
        at: the rows to look at, by number.
        tables: other tables and the column that says when each row became known: before, not at, the moment.
    """
    given = dict(tables or {})
    everything = compute(frame, {name: table for name, (table, _) in given.items()})
    found: list[Leak] = []
    for row in at:
        moment = frame[time][row]
        past = frame.with_row_index("_row").filter(pl.col(time) <= moment)
        place = past["_row"].to_list().index(row)
        part = compute(past.drop("_row"), {name: table.filter(pl.col(known) < moment) for name, (table, known) in given.items()})
        for name in everything.columns:
            one, other = everything[name][row], part[name][place]
            if not _alike(one, other):
                found.append(Leak(name, row, one, other))
    return found


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12) or (one != one and other != other)
    return bool(one == other) if one is not None and other is not None else one is other
