"""Put a broken column right while it is broken, and take the repair off again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
import polars as pl
from msgspec.structs import replace

from palan.data.nouns import Repair
from palan.data.verdict import read_time
from palan.errors import PalanError

if TYPE_CHECKING:
    from palan.data.doctor import Hypothesis

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


class Reshape(msgspec.Struct, frozen=True):
    """What is put right of a delivery as a whole: columns' names, columns too many, rows sent twice."""

    rename: Mapping[str, str] = {}  # as delivered -> as before
    drop: tuple[str, ...] = ()
    distinct: bool = False


def mend(frame: pl.DataFrame, found: Sequence[Hypothesis], time: str | None) -> pl.DataFrame:
    """Return a delivery with everything put right that hypotheses about it propose; rows without a repair stay as they are.

    Unlike `apply`, which keeps a stored column what it is, this also gives columns other names and other types.
    """
    for one in found:
        if one.reshape is not None:
            frame = frame.rename({new: old for new, old in one.reshape.rename.items() if new in frame.columns and old not in frame.columns})
            frame = frame.drop(*one.reshape.drop, strict=False)
            frame = frame.unique(maintain_order=True) if one.reshape.distinct else frame
    repairs = [repair for one in found for repair in one.repairs if repair.column in frame.columns]
    groups = _together(repairs)
    # a repair of the times themselves goes last: until then they tell which rows a repair is about
    for group in sorted(groups, key=lambda group: time in [repair.column for repair in group] and frame.schema[group[0].column].is_temporal()):
        timed = time is not None and time in frame.columns and frame.schema[time].is_temporal()
        active = None if group[0].since.year == 1 or not timed or time is None else _active(frame, group[0], time, None)
        frame = _set(frame, group, pl.lit(True) if active is None else active, retype=True)
    return frame


def invert(frame: pl.DataFrame, repairs: Sequence[Repair], time: str, *, now: datetime | None = None) -> pl.DataFrame:
    """Return the rows as they were before `apply`: the inverses, in reverse order."""
    return apply(frame, [inverted(repair) for repair in reversed(repairs)], time, now=now)


def inverted(repair: Repair) -> Repair:
    """Return the repair that undoes this one."""
    return replace(repair, expression=repair.inverse, inverse=repair.expression)


def but_for(repairs: Sequence[Repair], done: Sequence[Repair]) -> list[Repair]:
    """Return repairs without the spans in which others have put the same column right already."""
    left = list(repairs)
    for each in done:
        left = [part for one in left for part in (_around(one, each) if one.column == each.column else [one])]
    return left


def _around(one: Repair, done: Repair) -> list[Repair]:
    if (done.until is not None and done.until <= one.since) or (one.until is not None and one.until <= done.since):
        return [one]
    before = [replace(one, until=done.since)] if one.since < done.since else []
    after = [replace(one, since=done.until)] if done.until is not None and (one.until is None or one.until > done.until) else []
    return before + after


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


def _set(frame: pl.DataFrame, repairs: Sequence[Repair], active: pl.Expr, *, retype: bool = False) -> pl.DataFrame:
    changed = []
    for repair in repairs:
        dtype = frame.schema[repair.column]
        try:
            # an integer column would round 39 °C before it becomes °F: the expression sees floats
            value = frame.with_columns(pl.col(pl.Int64, pl.Int32).cast(pl.Float64)).select(pl.sql_expr(repair.expression).alias(repair.column)).to_series()
            if value.len() == 1 and frame.height != 1:
                value = value.new_from_index(0, frame.height)
            if retype and value.dtype == pl.Datetime("us"):
                value = value.dt.replace_time_zone("UTC")
            if not (retype and _is_other(dtype, value.dtype)):
                value = (value.round() if dtype.is_integer() and value.dtype.is_float() else value).cast(dtype)
        except pl.exceptions.PolarsError as problem:
            raise PalanError(
                f'the repair "{repair.expression}" of "{repair.column}" cannot be computed: {str(problem).splitlines()[0]}',
                "take the repair off, or check the columns that it names",
            ) from problem
        kept = pl.col(repair.column)
        changed.append((pl.lit(value) if value.dtype != dtype else pl.when(active).then(value).otherwise(kept)).alias(repair.column))
    return frame.with_columns(changed)


def _is_other(found: pl.DataType, read: pl.DataType) -> bool:
    """Tell whether a column was read as something else: text or a count of seconds as what it was before."""
    return (not found.is_numeric() or not read.is_numeric()) and found != read and not (found == pl.String and read == pl.Null)
