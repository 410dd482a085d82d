"""Put a broken column right while it is broken, and take the repair off again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import polars as pl
from msgspec.structs import replace

from palan.data.nouns import Repair
from palan.data.verdict import read_time
from palan.errors import PalanError


def apply(frame: pl.DataFrame, repairs: Sequence[Repair], time: str, *, now: datetime | None = None) -> pl.DataFrame:
    """Return the rows with each repair's expression applied where `since <= time < until`, in order.

    Neighbouring repairs of different columns over the same period read the row as it came, so that two columns can be
    swapped. A whole-number column stays one: what the expression gives is rounded. Repairs of columns that the rows do
    not have are left out, since another table may carry them.

    Args:
        frame: rows, any height.
        repairs: what to apply.
        time: the column with the event time (times, dates or ISO 8601 text; naive is UTC).
        now: the time of every row where the rows have no such column, as in a request.

    Raises:
        PalanError: an expression that cannot be computed from these rows, or rows without any time.
    """
    present = [repair for repair in repairs if repair.column in frame.columns]
    for group in _together(present):
        active = _active(frame, group[0], time, now)
        if active is not None:
            frame = _set(frame, group, active)
    return frame


def invert(frame: pl.DataFrame, repairs: Sequence[Repair], time: str, *, now: datetime | None = None) -> pl.DataFrame:
    """Return the rows as they were before `apply`: the inverses, in reverse order."""
    return apply(frame, [inverted(repair) for repair in reversed(repairs)], time, now=now)


def inverted(repair: Repair) -> Repair:
    """Return the repair that undoes this one."""
    return replace(repair, expression=repair.inverse, inverse=repair.expression)


def _together(repairs: Sequence[Repair]) -> list[list[Repair]]:
    groups: list[list[Repair]] = []
    for repair in repairs:
        last = groups[-1] if groups else []
        joins = last and (last[0].since, last[0].until) == (repair.since, repair.until) and repair.column not in [other.column for other in last]
        if joins:
            last.append(repair)
        else:
            groups.append([repair])
    return groups


def _active(frame: pl.DataFrame, repair: Repair, time: str, now: datetime | None) -> pl.Expr | None:
    """Return which rows the repair is about, or None for none of them."""
    if time in frame.columns:
        at = read_time(time, frame.schema[time])
        active = at >= repair.since
        return active if repair.until is None else active & (at < repair.until)
    if now is None:
        raise PalanError(f'a repair of "{repair.column}" needs the time of each row, and there is no column "{time}"', f'keep "{time}" among the columns')
    return pl.lit(True) if repair.since <= now and (repair.until is None or now < repair.until) else None


def _set(frame: pl.DataFrame, repairs: Sequence[Repair], active: pl.Expr) -> pl.DataFrame:
    changed = []
    for repair in repairs:
        dtype = frame.schema[repair.column]
        try:
            # an integer column would round 39 °C before it becomes °F: the expression sees floats
            value = frame.with_columns(pl.col(pl.Int64, pl.Int32).cast(pl.Float64)).select(pl.sql_expr(repair.expression).alias(repair.column)).to_series()
            if value.len() == 1 and frame.height != 1:
                value = value.new_from_index(0, frame.height)
            value = (value.round() if dtype.is_integer() and value.dtype.is_float() else value).cast(dtype)
        except pl.exceptions.PolarsError as problem:
            raise PalanError(
                f'the repair "{repair.expression}" of "{repair.column}" cannot be computed: {str(problem).splitlines()[0]}',
                "take the repair off, or check the columns that it names",
            ) from problem
        changed.append(pl.when(active).then(value).otherwise(pl.col(repair.column)).alias(repair.column))
    return frame.with_columns(changed)
