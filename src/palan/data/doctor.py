"""Find out what is wrong with delivered data, and how to put it right.

A data fault is a step in time: until some day a column meant one thing, since then another. The doctor compares each
day of a new window with recent healthy days, under every way in which columns commonly break. It speaks only where
three things hold together: the rows as they are do not fit what history itself did from week to week, the rows with
the fault taken back do fit, and relations between columns (temperature, dew point and humidity, say) are restored
rather than harmed. Season fails the second test, a storm fails the third.

Distances are mean differences of daily quantile functions in units of the history's spread (the 1-Wasserstein distance
of the average day), on the plain and on the logarithmic scale. Every threshold is the largest distance that the history
shows between its own stretches of the same length, widened by a stated factor.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from datetime import time as clock
from itertools import chain
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from palan.data.nouns import Repair
from palan.data.relations import Floats, Relation, block_means, find_relations, mean_of, quantiles_of
from palan.data.repair import Reshape
from palan.data.verdict import read_time
from palan.errors import PalanError

Kind = Literal[
    "unit", "scale", "sign", "sentinel", "stuck", "nulls", "categories", "swap",
    "added", "removed", "renamed", "retyped", "clock", "truncated", "duplicated", "partial",
]  # fmt: skip

MIN_DAYS = 7  # a history of fewer days says nothing about its own variation
ROWS_A_DAY = 150  # a day's quantiles need no more
MARGIN = 1.2  # how far beyond its own largest distance the history must be left
SUPPORTED = 1.6  # a cold snap may end outside the history: allowed, in limits, where steps or relations speak for the change


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One thing that may have happened to the data, and its repair where there is one.

    `since` is the day on which it began. `repairs` holds one repair a column: none for values that went missing, and for
    a stuck column one that empties it, which its inverse cannot undo. With `ends_repair` the feed is right again and the
    repair in force now does the harm.
    """

    kind: Kind
    columns: tuple[str, ...]
    since: datetime
    confidence: float
    text: str
    repairs: tuple[Repair, ...] = ()
    until: datetime | None = None
    ends_repair: bool = False
    evidence: Mapping[str, Any] = field(default_factory=dict)
    reshape: Reshape | None = None  # of a delivery as a whole

    @property
    def repair(self) -> Repair | None:
        return self.repairs[0] if self.repairs else None


@dataclass(frozen=True, slots=True)
class Change:
    """A repair as a line: right value = factor * value found + shift."""

    kind: Kind
    words: str  # what happened to the feed
    factor: float
    shift: float
    expression: str  # with {} for the quoted column
    inverse: str
    ends: bool = False


def unit_change(words: str, factor: float) -> list[Change]:
    """Both directions of a unit that differs by a factor: "from a to b" means b = a / factor."""
    one, other = words.split("|")
    number = f"{factor!r}"
    times, over = f"{{}} * {number}", f"{{}} / {number}"
    return [
        Change("unit", f"is in {other} instead of {one}", factor, 0.0, times, over),
        Change("unit", f"is in {one} instead of {other}", 1 / factor, 0.0, over, times),
    ]


def _scale(power: int) -> list[Change]:
    number = f"{float(10**power)!r}"
    times, over = f"{{}} * {number}", f"{{}} / {number}"
    return [
        Change("scale", f"is {10**power} times too small", float(10**power), 0.0, times, over),
        Change("scale", f"is {10**power} times too large", 10.0**-power, 0.0, over, times),
    ]


_TO_F, _TO_C = "{} * 9.0 / 5.0 + 32.0", "({} - 32.0) * 5.0 / 9.0"
CHANGES: tuple[Change, ...] = (
    Change("unit", "is in °C instead of °F", 1.8, 32.0, _TO_F, _TO_C),
    Change("unit", "is in °F instead of °C", 1 / 1.8, -32 / 1.8, _TO_C, _TO_F),
    Change("unit", "is in K instead of °C", 1.0, -273.15, "{} - 273.15", "{} + 273.15"),
    Change("unit", "is in °C instead of K", 1.0, 273.15, "{} + 273.15", "{} - 273.15"),
    *unit_change("km|miles", 1.609344),
    *unit_change("feet|metres", 3.28084),
    *unit_change("km/h|m/s", 3.6),
    *unit_change("mph|m/s", 2.236936),
    *unit_change("mph|knots", 1.150779),
    *unit_change("km/h|knots", 1.852),
    *unit_change("lb|kg", 2.2046226),
    *unit_change("inches|cm", 1 / 2.54),
    *unit_change("inches|mm", 1 / 25.4),
    *unit_change("hPa|inches of mercury", 33.86389),
    *unit_change("minutes|hours", 60.0),
    *unit_change("seconds|hours", 3600.0),
    *_scale(1),
    *_scale(2),
    *_scale(3),
    *_scale(6),
    Change("sign", "has its sign turned", -1.0, 0.0, "-1.0 * {}", "-1.0 * {}"),
)


def hypotheses(
    history: pl.DataFrame,
    window: pl.DataFrame,
    *,
    time: str,
    columns: Sequence[str] | None = None,
    active: Sequence[Repair] = (),
) -> list[Hypothesis]:
    """Return what may be wrong with the window's data, most credible first; usually nothing.

    Args:
        history: healthy rows before the window, best four to eight weeks of them; active repairs already applied.
        window: the rows in question, days to weeks, in the same columns; active repairs already applied.
        time: the column with the event time (times, dates or ISO 8601 text).
        columns: what to examine; default: every number and text column but the time.
        active: repairs in force, so that a feed that became right again is told from a new fault.

    Raises:
        PalanError: no such time column.
    """
    for frame in (history, window):
        if time not in frame.columns:
            raise PalanError(f'there is no column "{time}" to tell the days by', f"it has {', '.join(frame.columns[:12])}")
    names = [name for name in (columns if columns is not None else window.columns) if name != time and name in history.columns and name in window.columns]
    history, window = dated(history, time), dated(window, time)
    past, now = days_of(history), days_of(window)
    if len(past) < MIN_DAYS or not now:
        return []
    numeric = [name for name in names if _is_number(history.schema[name]) and _is_number(window.schema[name])]
    words = [name for name in names if _is_text(history.schema[name]) and _is_text(window.schema[name])]
    found = _nulls(history, window, names, past, now)
    found += _categories(history, window, words, past, now)
    sentinels, window = _sentinels(history, window, numeric)
    found += sentinels
    stuck = _stuck(history, window, [name for name in numeric if name not in _columns_of(found, "nulls")], past, now)
    found += stuck
    lost = _columns_of(found, "nulls") | _columns_of(stuck, "stuck")
    found += _numbers(history, window, [name for name in numeric if name not in lost], past, now, active)
    return sorted(found, key=lambda one: -one.confidence)


# ---- days ------------------------------------------------------------------------------------------------------------

DAY = "palan_day"


def dated(frame: pl.DataFrame, time: str) -> pl.DataFrame:
    """Return the rows that have a time, with the day of it."""
    return frame.with_columns(read_time(time, frame.schema[time]).dt.date().alias(DAY)).drop_nulls(DAY)


def days_of(frame: pl.DataFrame) -> list[date]:
    """Return the days with enough rows to count as a day: a stray row at midnight is none."""
    counts = frame.group_by(DAY).len().sort(DAY)
    enough = float(np.median(counts["len"].to_numpy())) * 0.2 if counts.height else 0.0
    return counts.filter(pl.col("len") >= enough)[DAY].to_list()


def _start(day: date) -> datetime:
    return datetime.combine(day, clock(), UTC)


def _run(gain: Floats) -> tuple[int, int]:
    """Return the stretch [begin, end) with the largest sum (Kadane), begin == end where no day gains."""
    best, begin, end, total, start = 0.0, 0, 0, 0.0, 0
    for number, value in enumerate(np.nan_to_num(gain)):
        if total <= 0:
            total, start = 0.0, number
        total += float(value)
        if total > best:
            best, begin, end = total, start, number + 1
    return begin, end


def _shortest(days: Sequence[date]) -> int:
    """A single odd day is weather or a holiday: a fault shows on two days, or on the whole of a shorter window."""
    return min(2, len(days))


def _until(end: int, days: Sequence[date]) -> datetime | None:
    return _start(days[end]) if end < len(days) else None


def _is_number(dtype: pl.DataType) -> bool:
    return dtype.is_numeric()


def _is_text(dtype: pl.DataType) -> bool:
    return dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum)


def _columns_of(found: Iterable[Hypothesis], kind: Kind) -> set[str]:
    return {name for one in found if one.kind == kind for name in one.columns}


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _value(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# ---- values that are not there -----------------------------------------------------------------------------------------


def _nulls(history: pl.DataFrame, window: pl.DataFrame, names: Sequence[str], past: Sequence[date], now: Sequence[date]) -> list[Hypothesis]:
    """A column is missing far more often than any stretch of the history had it."""
    found = []
    names = [name for name in names if window[name].null_count()]
    before, after = (_daily(frame, [pl.col(name).is_null().mean().alias(name) for name in names], days) for frame, days in ((history, past), (window, now)))
    for name in names:
        usual, share = before[name].to_numpy().astype(float), after[name].to_numpy().astype(float)
        worst = float(np.nanmax(block_means(usual, _shortest(now))))
        limit = worst + max(0.15, 0.5 * (1 - worst))
        begin, end = _run(share - limit)
        if end - begin < _shortest(now) or limit >= 1:
            continue
        level = float(np.mean(share[begin:end]))
        found.append(
            Hypothesis(
                "nulls",
                (name,),
                _start(now[begin]),
                _confidence((level - worst) / (limit - worst), 0.0),
                f"{name} is missing in {level:.0%} of the rows since {now[begin]}; before it never was in more than {worst:.0%}",
                until=_until(end, now),
                evidence={"statistic": "share of missing values", "before": level, "after": None, "threshold": limit, "usual": float(np.nanmean(usual))},
            )
        )
    return found


def _sentinels(history: pl.DataFrame, window: pl.DataFrame, names: Sequence[str]) -> tuple[list[Hypothesis], pl.DataFrame]:
    """One exact value, far outside everything seen before, stands for "missing". Its rows are emptied for what follows."""
    found: list[Hypothesis] = []
    if not names:
        return found, window
    lowest, highest = history.select(pl.col(names).min()).row(0), history.select(pl.col(names).max()).row(0)
    ranges = {name: (float(low), float(high)) for name, low, high in zip(names, lowest, highest, strict=True) if low is not None}
    odd_rows = window.select(_outside(name, *ends).sum().alias(name) for name, ends in ranges.items())
    for name, (low, high) in ranges.items():
        if odd_rows[name][0] < 3 or odd_rows[name][0] == window[name].count():
            continue  # a column that is odd in every row has changed its unit: a sentinel stands among values
        odd = window.filter(_outside(name, low, high))
        top = odd[name].value_counts(sort=True).row(0)
        value, count = float(top[0]), int(top[1])
        # one value for all that is odd, and one that a person would choose: -9999, 999, -1
        if count < 0.9 * odd.height or count < 3 or value != round(value) or not _looks_chosen(value):
            continue
        since = min(odd[DAY].to_list())
        number = f"{value!r}"
        repair = Repair(name, f"NULLIF({_name(name)}, {number})", f"COALESCE({_name(name)}, {number})", _start(since), None, f"{value:g} stands for a missing value")
        found.append(
            Hypothesis(
                "sentinel",
                (name,),
                _start(since),
                0.99 if count >= 10 else 0.9,
                f"{name} says {value:g} in {count} rows since {since}, which stands for a missing value; before it lay between {low:g} and {high:g}",
                (repair,),
                evidence={"statistic": "rows with one value outside all history", "before": count, "after": 0, "threshold": 3, "value": value, "range": [low, high]},
            )
        )
        window = window.with_columns(pl.when(pl.col(name).cast(pl.Float64) != value).then(pl.col(name)).alias(name))
    return found, window


def _outside(name: str, low: float, high: float) -> pl.Expr:
    column, reach = pl.col(name).cast(pl.Float64), max(high - low, abs(high) * 0.1, 1e-9)
    return (column < low - reach) | (column > high + reach)


def _looks_chosen(value: float) -> bool:
    digits = f"{abs(value):.0f}"
    return value == -1 or set(digits) == {"9"} or digits in ("32767", "32768", "65535", "2147483647", "2147483648") or abs(value) >= 1e15


def _stuck(history: pl.DataFrame, window: pl.DataFrame, names: Sequence[str], past: Sequence[date], now: Sequence[date]) -> list[Hypothesis]:
    """A column repeats the same few values day after day, as no stretch of the history did."""
    found = []
    rows = _daily(window, [pl.len().alias("rows")], now)["rows"].to_numpy()
    if names and float(np.median(rows)) < 5:
        return []
    after = _few_values(window, names, now)
    names = [name for name in names if any(len(values) <= 6 for values in after[name] if values is not None)]
    before = _few_values(history, names, past)
    for name in names:
        then, later = before[name], after[name]
        usual, values = _repeats(then), _repeats(later)
        if then[-1] and later[0]:
            values[0] = set(later[0]) <= set(then[-1]) or (len(values) > 1 and values[1])
        chance = (sum(usual) + 0.5) / (len(usual) + 1)
        begin, end = _run(np.where(values, 1.0, -len(values)))
        length = end - begin
        # clear skies come in runs: a value that has stood still before may stand still for longer
        if length < _shortest(now) or chance**length > 1e-3 or length <= 3 * _longest(usual):
            continue
        kept = later[begin]
        if begin > 0 and set(later[begin - 1] or ()) == set(kept):
            begin -= 1  # the day that brought the value is the first day of it
        shown = ", ".join(f"{value:g}" for value in kept[:4])
        repair = Repair(name, f"NULLIF({_name(name)}, {_name(name)})", _name(name), _start(now[begin]), _until(end, now), f"{name} is stuck at {shown}")
        found.append(
            Hypothesis(
                "stuck",
                (name,),
                _start(now[begin]),
                _confidence(np.log(chance**length) / np.log(1e-3), 0.0),
                f"{name} is stuck at {shown} since {now[begin]}, for {length} days; its longest such stretch before was {_longest(usual)} days",
                (repair,),
                until=_until(end, now),
                evidence={"statistic": "days in a row with the same values", "before": length, "after": None, "threshold": _longest(usual), "chance": float(chance**length), "values": len(kept)},
            )
        )
    return found


def _few_values(frame: pl.DataFrame, names: Sequence[str], days: Sequence[date]) -> dict[str, list[Any]]:
    """Return each day's values of each column, sorted, or the first seven of them."""
    return _daily(frame, [pl.col(name).drop_nulls().unique().sort().head(7).implode().alias(name) for name in names], days).drop(DAY).to_dict(as_series=False)


def _repeats(daily: Sequence[Sequence[float] | None]) -> list[bool]:
    """Tell of each day whether it holds at most six values, none of them new since the day before."""
    return [bool(one and other) and len(one) <= 6 and set(one) <= set(other) for one, other in zip(daily, [None, *daily[:-1]], strict=True)]  # type: ignore[arg-type]


def _longest(flags: Sequence[bool]) -> int:
    best = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        best = max(best, run)
    return best


def _daily(frame: pl.DataFrame, expressions: Sequence[pl.Expr], days: Sequence[date]) -> pl.DataFrame:
    """Return one row a day, in order."""
    return pl.DataFrame({DAY: pl.Series(days, dtype=pl.Date)}).join(frame.group_by(DAY).agg(expressions), on=DAY, how="left", maintain_order="left")


# ---- words -------------------------------------------------------------------------------------------------------------


def _categories(history: pl.DataFrame, window: pl.DataFrame, names: Sequence[str], past: Sequence[date], now: Sequence[date]) -> list[Hypothesis]:
    """Values that came every day vanish while new ones take their place; or two columns exchanged their values."""
    found: list[Hypothesis] = []
    usual = {name: _shares(history, name, past) for name in names}
    share = {name: _shares(window, name, now) for name in names}
    swapped: set[str] = set()
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            begin, end = _run(np.minimum(_foreign(share[one], usual[one], usual[other]), _foreign(share[other], usual[other], usual[one])) - 0.5)
            if end - begin >= _shortest(now) and not {one, other} & swapped:
                swapped |= {one, other}
                found.append(_swap(one, other, now, begin, end, {"statistic": "share of values of the other column", "before": 1.0, "after": 0.0, "threshold": 0.5}, 0.98))
    for name in names:
        if name not in swapped:
            found += _renamed(name, usual[name], share[name], now)
    return found


@dataclass(frozen=True, slots=True)
class _Shares:
    values: dict[str, int]  # and their place, most frequent first
    daily: Floats  # days x values
    rows: Floats  # days

    def of(self, value: str) -> Floats:
        zeros: Floats = np.zeros(len(self.rows))
        return self.daily[:, self.values[value]] if value in self.values else zeros


def _shares(frame: pl.DataFrame, name: str, days: Sequence[date], limit: int = 500) -> _Shares:
    counted = frame.group_by(DAY, pl.col(name).cast(pl.String).alias("value")).len().drop_nulls()
    totals = counted.group_by("value").agg(pl.col("len").sum()).sort("len", "value", descending=[True, False])
    values = {value: place for place, value in enumerate(totals["value"].head(limit))}
    rows_of = pl.DataFrame({DAY: pl.Series(days, dtype=pl.Date), "row": range(len(days))})
    counts, rows = np.zeros((len(days), len(values))), np.zeros(len(days))
    placed = counted.join(rows_of, on=DAY).join(totals.head(limit).select("value").with_row_index("place"), on="value", how="left")
    np.add.at(rows, placed["row"].to_numpy(), placed["len"].to_numpy())
    known = placed.drop_nulls("place")
    counts[known["row"].to_numpy(), known["place"].to_numpy()] = known["len"].to_numpy()
    return _Shares(values, counts / np.maximum(rows, 1)[:, None], rows)


def _foreign(share: _Shares, own: _Shares, other: _Shares) -> Floats:
    """Return per day the share of values that this column never had and the other one had."""
    strangers = [number for value, number in share.values.items() if value not in own.values and value in other.values]
    foreign: Floats = share.daily[:, strangers].sum(axis=1)
    return foreign


def _renamed(name: str, usual: _Shares, share: _Shares, now: Sequence[date]) -> list[Hypothesis]:
    new = [value for value in share.values if value not in usual.values]
    # a value that is missed: it came on nearly every day, and often enough that a day without it is no chance
    if not new or len(usual.values) >= 500:
        return []
    steady = [value for value, number in usual.values.items() if np.mean(usual.daily[:, number] > 0) >= 0.9 and np.median(usual.daily[:, number] * usual.rows) >= 5]
    pairs: dict[str, str] = {}
    runs: list[tuple[int, int]] = []
    for old in steady:
        if any(share.of(old)[-1:] > 0) and not np.any(share.of(old) == 0):
            continue
        level = float(np.mean(usual.of(old)))
        options = []
        for value in new:
            begin, end = _run(np.where((share.of(value) > 0) & (share.of(old) == 0), 1.0, -2.0))
            length = end - begin
            if length < _shortest(now) or value in pairs:
                continue
            ratio = float(np.mean(share.of(value)[begin:end])) / level
            alike = difflib.SequenceMatcher(None, _plain(old), _plain(value)).ratio()
            usual_ratio = block_means(usual.of(old), length) / level
            fits = usual_ratio.min() / 1.3 <= ratio <= usual_ratio.max() * 1.3
            if fits or (alike >= 0.8 and 0.4 <= ratio <= 2.5):
                options.append((alike - abs(np.log(ratio)), value, begin, end))
        if options:
            _, value, begin, end = max(options)
            pairs[value] = old
            runs.append((begin, end))
    if not pairs:
        return []
    begin, end = min(run[0] for run in runs), max(run[1] for run in runs)
    weight = float(np.mean(sum(share.of(value)[begin:end] for value in pairs)))
    if weight < 0.01:
        return []
    cases = " ".join(f"WHEN {_value(new_value)} THEN {_value(old)}" for new_value, old in pairs.items())
    back = " ".join(f"WHEN {_value(old)} THEN {_value(new_value)}" for new_value, old in pairs.items())
    shown = ", ".join(f"{old} is now {value}" for value, old in list(pairs.items())[:3]) + (" ..." if len(pairs) > 3 else "")
    repair = Repair(name, f"CASE {_name(name)} {cases} ELSE {_name(name)} END", f"CASE {_name(name)} {back} ELSE {_name(name)} END", _start(now[begin]), _until(end, now), shown)
    alike = float(np.mean([difflib.SequenceMatcher(None, _plain(old), _plain(value)).ratio() for value, old in pairs.items()]))
    return [
        Hypothesis(
            "categories",
            (name,),
            _start(now[begin]),
            min(0.98, 0.6 + 0.2 * alike + 0.2 * min(1.0, weight * 4)),
            f"{name} has new names for old values since {now[begin]}: {shown} ({weight:.0%} of the rows)",
            (repair,),
            until=_until(end, now),
            evidence={"statistic": "share of rows under new names", "before": weight, "after": 0.0, "threshold": 0.01, "mapping": dict(pairs)},
        )
    ]


def _plain(text: str) -> str:
    return text.strip().lower()


# ---- numbers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shape:
    """One column over the days: quantile functions of history and window, on one scale of measurement."""

    past: Floats  # days x grid
    now: Floats
    reference: Floats  # grid: the average recent day
    spread: float
    unit: float  # 0: the plain scale; else logarithmic beyond this value

    def distance(self, quantiles: Floats) -> Floats:
        """Return the distance of each quantile function (last axis) to the reference, in spreads."""
        apart: Floats = np.abs(quantiles - self.reference).mean(axis=-1) / self.spread
        return apart

    def limit(self, length: int) -> float:
        """Return the largest distance between any two stretches of this many days of the history, widened."""
        blocks = block_means(self.past, length)
        blocks = blocks[np.isfinite(blocks).all(axis=1)]
        if len(blocks) == 0:
            return float("inf")
        blocks = blocks[:: max(1, len(blocks) // 40)]
        apart = np.abs(blocks[:, None, :] - blocks[None, :, :]).mean(axis=-1).max() / self.spread
        thin = 2.0 if len(self.past) < 14 else 1.0
        return float(max(apart, 0.05)) * MARGIN * thin


@dataclass(frozen=True, slots=True)
class _Fit:
    """How one change does on one column: the stretch of days that it would explain, distances before and after."""

    column: int
    change: Change
    begin: int
    end: int
    before: float  # in thresholds: above 1 is outside all that history did
    after: float
    steps: tuple[float, float] | None  # share of values on the column's lattice, before and after

    @property
    def on_lattice(self) -> bool:
        """True when the values fall between the instrument's steps as found, and on them once put right."""
        return self.steps is not None and self.steps[0] < 0.4 and self.steps[1] > 0.6

    @property
    def alone(self) -> float:
        """How far the column by itself says that something is wrong: 1 is the limit.

        Without a lattice a windy fortnight can look like miles for kilometres, so more is asked.
        """
        return max(self.before, 1.5) if self.on_lattice else self.before / 1.25


def _numbers(
    history: pl.DataFrame, window: pl.DataFrame, names: Sequence[str], past: Sequence[date], now: Sequence[date], active: Sequence[Repair]
) -> list[Hypothesis]:
    calendar = _calendar(history, names, past)
    names = [name for name in names if name not in calendar]
    if not names:
        return []
    old, old_day = _matrix(history, names, past)
    new, new_day = _matrix(window, names, now)
    lattices = [_lattice(old[:, number], old_day, len(past)) for number in range(len(names))]
    # rain is mostly zero, and zero is zero in every unit: such a column is judged by its other values
    idle = [number for number in range(len(names)) if np.mean(old[:, number] == 0) >= 0.2]
    past_quantiles, now_quantiles = (quantiles_of(_without_zeros(rows, idle), day, count) for rows, day, count in ((old, old_day, len(past)), (new, new_day, len(now))))
    shapes = {number: _shapes(past_quantiles[:, number], now_quantiles[:, number], len(now)) for number in range(len(names))}
    relations = find_relations(old, old_day, len(past))
    misfit = [relation.misfit(new, new_day, len(now)) for relation in relations]
    broken_relations = [number for number, relation in enumerate(relations) if _is_broken(misfit[number], relation, now)]
    columns = [_Column(number, name, shapes[number], now_quantiles[:, number], lattices[number], new[:, number]) for number, name in enumerate(names)]
    fits = _fits(columns, new_day, now, active)
    if not broken_relations and not any(fit.alone > 1 for fit in fits):
        return []
    judge = _Judge(names, new, new_day, now, relations, misfit, shapes, now_quantiles, lattices)
    accepted = [judged for judged in (judge.change(group) for group in _groups(fits)) if judged]
    suspects = {column for number in broken_relations for column in (relations[number].target, *relations[number].inputs)}
    suspects |= {number for number in range(len(names)) if any(shape.distance(mean_of(shape.now)) > shape.limit(len(now)) for shape in shapes[number])}
    pairs = [(one, other) for one in sorted(suspects) for other in sorted(suspects) if one < other]
    accepted += [judged for judged in (judge.swap(one, other) for one, other in pairs[:60]) if judged]
    return _best(accepted)


def _calendar(history: pl.DataFrame, names: Sequence[str], past: Sequence[date]) -> set[str]:
    """Return the columns that only restate the date or count rows up: a new month there is no fault."""
    each = [(pl.col(name).drop_nulls().n_unique().alias(f"values {name}"), pl.col(name).cast(pl.Float64).median().alias(f"level {name}")) for name in names]
    daily = _daily(history, [pl.len().alias("rows"), *chain.from_iterable(each)], past)
    busy = float(daily["rows"].median() or 0) >= 5  # type: ignore[arg-type]
    found = set()
    for name in names:
        level = daily[f"level {name}"]
        if busy and float((daily[f"values {name}"] == 1).mean() or 0) >= 0.8 and level.n_unique() > 1:  # type: ignore[arg-type]
            found.add(name)
        steps = np.diff(level.drop_nulls().to_numpy())
        if len(steps) >= MIN_DAYS - 1 and np.any(steps != 0) and (np.all(steps >= 0) or np.all(steps <= 0)):
            found.add(name)
    return found


def _matrix(frame: pl.DataFrame, names: Sequence[str], days: Sequence[date]) -> tuple[Floats, NDArray[np.int64]]:
    """Return rows x columns of floats and the day number of each row, thinned evenly within busy days."""
    index = pl.DataFrame({DAY: pl.Series(days, dtype=pl.Date), "palan_number": range(len(days))})
    rows = frame.select([DAY, *(pl.col(name).cast(pl.Float64) for name in names)]).join(index, on=DAY, how="inner", maintain_order="left")
    stride = (pl.len().over(DAY) / ROWS_A_DAY).ceil().clip(1)
    rows = rows.filter(pl.int_range(pl.len()).over(DAY) % stride.cast(pl.Int64) == 0)
    matrix = rows.select(names).to_numpy().astype(np.float64)
    matrix[~np.isfinite(matrix)] = np.nan
    return matrix, rows["palan_number"].to_numpy().astype(np.int64)


def _without_zeros(rows: Floats, columns: Sequence[int]) -> Floats:
    rows = rows.copy()
    for column in columns:
        rows[rows[:, column] == 0, column] = np.nan
    return rows


@dataclass(frozen=True, slots=True)
class _Lattice:
    """The values that a measured column can take: an instrument counts in steps, and another unit falls between them.

    They are the `values` seen (sorted), or, for a column seldom other than zero, the multiples of `step`.
    """

    values: Floats
    reach: float
    usual: float  # share of held-out history that is among the values
    step: float = 0.0

    def share(self, found: Floats) -> float:
        """Return the share of the values other than zero that are on the lattice, in the usual share."""
        found = found[np.isfinite(found) & (found != 0)]
        if len(found) == 0:
            return 0.0
        if self.step:
            apart = np.abs(found / self.step - np.round(found / self.step)) * self.step
        else:
            place = np.clip(np.searchsorted(self.values, found), 1, len(self.values) - 1)
            apart = np.minimum(np.abs(found - self.values[place - 1]), np.abs(found - self.values[place]))
        return float(np.mean(apart <= self.reach)) / self.usual


def _lattice(values: Floats, day: NDArray[np.int64], days: int) -> _Lattice | None:
    """Return the lattice of a column, or None where its values are as good as continuous."""
    present = np.isfinite(values) & (values != 0)
    early, late = values[present & (day < days * 3 // 4)], values[present & (day >= days * 3 // 4)]
    if len(early) < 10:
        return None
    low, high = np.percentile(values[present], [5, 95])
    distinct = np.unique(values[present])
    reach = 1e-4 * float(high - low)
    if len(early) >= 100 and len(late) >= 30 and len(np.unique(early)) >= 3 and len(distinct) * 2 * reach <= 0.3 * float(high - low):
        usual = _Lattice(np.unique(early), reach, 1.0).share(late)
        if usual >= 0.8:
            return _Lattice(distinct, reach, usual)
    decimals = next((places for places in range(4) if np.mean(np.abs(distinct - np.round(distinct, places)) < 1e-9 * np.maximum(1, np.abs(distinct))) >= 0.98), None)
    if decimals is None or high - low > 2000 * 10.0**-decimals:
        return None
    return _Lattice(distinct, 1e-3 * 10.0**-decimals, 1.0, step=10.0**-decimals)


def _shapes(past: Floats, now: Floats, length: int) -> tuple[_Shape, ...]:
    """Return the column on the plain scale, and on the logarithmic one where zero means something."""
    levels = past[np.isfinite(past)]
    if len(levels) == 0:
        return ()
    small = max(0.1 * float(np.median(np.abs(levels))), 1e-3 * float(np.max(np.abs(levels))), 1e-12)
    recent = slice(-max(14, min(2 * length, len(past))), None)
    shapes = []
    for unit in (0.0, small):
        before = _scaled(past, unit)
        days = before[recent]
        days = days[np.isfinite(days).all(axis=1)]
        if len(days) == 0:
            return ()
        flat = before[np.isfinite(before)]
        spread = float(np.subtract(*np.percentile(flat, [75, 25]))) or float(np.std(flat)) or abs(float(np.median(flat))) * 0.05 or 1.0
        shapes.append(_Shape(before, _scaled(now, unit), days.mean(axis=0), spread, unit))
    return tuple(shapes)


@dataclass(frozen=True, slots=True)
class _Column:
    """One column of the window, and what the history says of it."""

    number: int
    name: str
    shapes: tuple[_Shape, ...]
    quantiles: Floats  # days x grid
    lattice: _Lattice | None
    values: Floats  # rows
    limits: dict[int, list[float]] = field(default_factory=dict)

    def limit(self, length: int) -> list[float]:
        if length not in self.limits:
            self.limits[length] = [shape.limit(length) for shape in self.shapes]
        return self.limits[length]


def _fits(columns: Sequence[_Column], day: NDArray[np.int64], now: Sequence[date], active: Sequence[Repair]) -> list[_Fit]:
    """Return every change that would explain a stretch of days of a column."""
    tried = [(column, changes, _lines(column, changes)) for column in columns if column.shapes for changes in [[*CHANGES, *_ends(column.name, active)]]]
    fits: dict[tuple[int, str, int, int], _Fit] = {}
    for column, changes, lines in tried:
        gains: Floats = np.min([shape.distance(shape.now) - shape.distance(line) for shape, line in zip(column.shapes, lines, strict=True)], axis=0)
        for number in np.flatnonzero((gains > 0).any(axis=1)).tolist():  # most changes bring no day nearer
            begin, end = _run(gains[number])
            if end - begin >= _shortest(now) and np.isfinite(gains[number, begin:end]).sum() >= _shortest(now):
                fit = _fit(column, changes[number], [line[number] for line in lines], begin, end, day, 0.7)
                if fit:
                    fits[column.number, _key(fit.change), begin, end] = fit
    # a feed changes its units as a whole: where one column tells it plainly, look at the others over the same days
    for plain in [fit for fit in fits.values() if fit.alone > 1]:
        for column, changes, lines in tried:
            for number, change in enumerate(changes):
                place = (column.number, _key(change), plain.begin, plain.end)
                if _key(change) == _key(plain.change) and place not in fits:
                    fit = _fit(column, change, [line[number] for line in lines], plain.begin, plain.end, day, 1.0)
                    if fit:
                        fits[place] = fit
    return list(fits.values())


def _key(change: Change) -> str:
    return "ends" if change.ends else change.words


def _lines(column: _Column, changes: Sequence[Change]) -> list[Floats]:
    """Return the quantile functions that each change would put right, on each scale: changes x days x grid."""
    factor, shift = np.array([change.factor for change in changes]), np.array([change.shift for change in changes])
    lines = factor[:, None, None] * column.quantiles + shift[:, None, None]
    lines[factor < 0] = lines[factor < 0, :, ::-1]  # a negative factor turns a quantile function round
    return [_scaled(lines, shape.unit) for shape in column.shapes]


def _fit(column: _Column, change: Change, lines: Sequence[Floats], begin: int, end: int, day: NDArray[np.int64], better: float) -> _Fit | None:
    limits = column.limit(end - begin)
    right = max(float(shape.distance(mean_of(line[begin:end]))) / limit for shape, line, limit in zip(column.shapes, lines, limits, strict=True))
    if not right <= SUPPORTED:
        return None
    found = max(float(shape.distance(mean_of(shape.now[begin:end]))) / limit for shape, limit in zip(column.shapes, limits, strict=True))
    if not right < better * found:
        return None
    steps = None
    if column.lattice is not None:
        values = column.values[(day >= begin) & (day < end)]
        steps = (column.lattice.share(values), column.lattice.share(change.factor * values + change.shift))
        if steps[1] < 0.8 * steps[0]:
            return None  # the values are ones that the instrument gives as it always did
    return _Fit(column.number, change, begin, end, found, right, steps)


def _scaled(values: Floats, unit: float) -> Floats:
    """Return the values as they are, or on a scale that is logarithmic beyond `unit` and keeps the sign."""
    scaled: Floats = np.arcsinh(values / unit) if unit else values
    return scaled


def _ends(name: str, active: Sequence[Repair]) -> list[Change]:
    """Return the inverses of the repairs in force on this column, where they are lines."""
    changes = []
    for repair in active:
        if repair.column != name:
            continue
        probe = pl.DataFrame({name: [0.0, 1.0, 2.0]})
        try:
            zero, one, two = probe.select(pl.sql_expr(repair.inverse).cast(pl.Float64).alias("value"))["value"].to_list()
        except (pl.exceptions.PolarsError, ValueError):
            continue  # it names other columns or other types: a swap finds itself
        if None not in (zero, one, two) and abs(two - 2 * one + zero) < 1e-6 * max(1.0, abs(two)) and one != zero:
            words = f"is right again in the feed, and the repair {repair.expression} does the harm"
            changes.append(Change("unit", words, one - zero, zero, repair.inverse, repair.expression, ends=True))
    return changes


def _groups(fits: Sequence[_Fit]) -> list[tuple[_Fit, ...]]:
    """Return each fit alone, and the fits of one change over about the same days together: a feed changes its units as a whole."""
    by_change: dict[str, list[_Fit]] = {}
    for fit in fits:
        by_change.setdefault(_key(fit.change), []).append(fit)
    groups: list[tuple[_Fit, ...]] = [(fit,) for fit in fits]
    for members in by_change.values():
        for first in members:
            together = tuple(fit for fit in members if abs(fit.begin - first.begin) <= 1 and abs(fit.end - first.end) <= 1)
            if len(together) > 1:
                groups.append(together)
                groups += [(one, other) for number, one in enumerate(together) for other in together[number + 1 :] if len(together) > 2]
    return list(dict.fromkeys(groups))


@dataclass(frozen=True, slots=True)
class _Accepted:
    columns: frozenset[int]
    score: float
    hypothesis: Hypothesis


@dataclass(frozen=True, slots=True)
class _Judge:
    """Weighs a possible change against the relations between columns."""

    names: Sequence[str]
    rows: Floats
    day: NDArray[np.int64]
    now: Sequence[date]
    relations: Sequence[Relation]
    misfit: Sequence[Floats]
    shapes: Mapping[int, Sequence[_Shape]]
    quantiles: Floats
    lattices: Sequence[_Lattice | None]

    def change(self, group: Sequence[_Fit]) -> _Accepted | None:
        begin, end = min(fit.begin for fit in group), max(fit.end for fit in group)
        rows = self.rows.copy()
        for fit in group:
            rows[:, fit.column] = fit.change.factor * rows[:, fit.column] + fit.change.shift
        columns = [fit.column for fit in group]
        begin, end = self._extended(group, rows, begin, end)
        related = self._related(rows, columns, begin, end)
        if any(_unhealed(before, after) for _, before, after in related):
            return None
        for fit in group:
            broken = max((before for relation, before, _ in related if relation.touches([fit.column])), default=0.0)
            if max(fit.alone, broken) <= 1 or (fit.after > 1 and broken <= 1 and not fit.on_lattice):
                return None
        before = min(max([fit.alone, *(one for relation, one, _ in related if relation.touches([fit.column]))]) for fit in group)
        after = max([fit.after for fit in group] + [one for _, _, one in related])
        score = sum(np.log(fit.before / max(fit.after, 0.05)) + (3 * (fit.steps[1] - fit.steps[0]) if fit.steps else 0) for fit in group)
        score += sum(np.log(one / max(other, 0.05)) for _, one, other in related)
        since, until = self.now[begin], _until(end, self.now)
        names = [self.names[column] for column in columns]
        change = group[0].change
        plural = change.words.replace("is ", "are ", 1).replace("has its", "have their", 1) if len(names) > 1 and change.words.startswith(("is ", "has ")) else change.words
        text = f"{' and '.join(names)} {plural} since {since}: put right, the days fit the history (distance {max(fit.before for fit in group):.1f} before, {after:.1f} after, limit 1)"
        repairs = tuple(
            Repair(
                name,
                fit.change.expression.format(_name(name)) if not fit.change.ends else fit.change.expression,
                fit.change.inverse.format(_name(name)) if not fit.change.ends else fit.change.inverse,
                _start(since),
                until,
                f"{name} {fit.change.words}",
            )
            for name, fit in zip(names, group, strict=True)
        )
        evidence: dict[str, Any] = {
            "statistic": "distance of daily quantiles from the recent history, in thresholds",
            "before": {name: round(fit.before, 3) for name, fit in zip(names, group, strict=True)},
            "after": {name: round(fit.after, 3) for name, fit in zip(names, group, strict=True)},
            "threshold": 1.0,
            "lattice": {name: [round(share, 3) for share in fit.steps] for name, fit in zip(names, group, strict=True) if fit.steps},
            "relations": self._told(related),
        }
        if change.ends:
            evidence["note"] = f"the repair of {' and '.join(names)} is no longer needed"
        hypothesis = Hypothesis(change.kind, tuple(names), _start(since), _confidence(before, after), text, repairs, until, change.ends, evidence)
        return _Accepted(frozenset(columns), float(score) + (0.5 if change.ends else 0.0), hypothesis)

    def _extended(self, group: Sequence[_Fit], rows: Floats, begin: int, end: int) -> tuple[int, int]:
        """Return the stretch with the neighbouring days that relations or instrument steps also tell to be broken.

        On a day of unusual weather the level alone can hide a change that these show plainly.
        """
        columns = [fit.column for fit in group]
        told = np.zeros(len(self.now))
        for relation, found in zip(self.relations, self.misfit, strict=True):
            if relation.touches(columns):
                told += np.nan_to_num(np.log(np.maximum(found, 0.2) / np.maximum(relation.misfit(rows, self.day, len(self.now)), 0.2)))
        for fit in group:
            lattice = self.lattices[fit.column]
            if lattice is not None and fit.on_lattice:
                for day in range(len(self.now)):
                    here = self.day == day
                    told[day] += 2 * (lattice.share(rows[here, fit.column]) - lattice.share(self.rows[here, fit.column]))
        while begin > 0 and told[begin - 1] > 0.5:
            begin -= 1
        while end < len(told) and told[end] > 0.5:
            end += 1
        return begin, end

    def swap(self, one: int, other: int) -> _Accepted | None:
        if not self.shapes[one] or not self.shapes[other]:
            return None
        rows = self.rows.copy()
        rows[:, [one, other]] = rows[:, [other, one]]
        begin, end = _run(self._swap_gain(rows, one, other))
        if end - begin < _shortest(self.now):
            return None
        related = self._related(rows, [one, other], begin, end)
        befores, afters = [], []
        for column, source in ((one, other), (other, one)):
            plain = self.shapes[column][0]
            limit = plain.limit(end - begin)
            befores.append(float(plain.distance(mean_of(self.quantiles[begin:end, column]))) / limit)
            afters.append(float(plain.distance(mean_of(self.quantiles[begin:end, source]))) / limit)
        if max(afters) > 1 or any(_unhealed(before, after) for _, before, after in related):
            return None
        broken = max([before for _, before, _ in related], default=0.0)
        if broken <= 1 and min(befores) <= 1:
            return None
        score = sum(np.log(max(before, 0.05) / max(after, 0.05)) for before, after in zip(befores, afters, strict=True))
        score += sum(np.log(before / max(after, 0.05)) for _, before, after in related)
        evidence = {
            "statistic": "distance of daily quantiles from the recent history of the other column, in thresholds",
            "before": dict(zip((self.names[one], self.names[other]), np.round(befores, 3).tolist(), strict=True)),
            "after": dict(zip((self.names[one], self.names[other]), np.round(afters, 3).tolist(), strict=True)),
            "threshold": 1.0,
            "relations": self._told(related),
        }
        confidence = _confidence(max([*befores, broken]), max([*afters, *(after for _, _, after in related)]))
        return _Accepted(frozenset((one, other)), float(score), _swap(self.names[one], self.names[other], self.now, begin, end, evidence, confidence))

    def _swap_gain(self, rows: Floats, one: int, other: int) -> Floats:
        """Return per day how much better the columns are the other way round.

        Relations tell it from day to day where there are any: on a damp day dew point and temperature look alike.
        """
        told = [
            np.log(np.maximum(found, 0.2) / np.maximum(relation.misfit(rows, self.day, len(self.now)), 0.2))
            for relation, found in zip(self.relations, self.misfit, strict=True)
            if relation.touches([one, other])
        ]
        if told:
            best: Floats = np.max(np.nan_to_num(told), axis=0) - 0.5
            return best
        gain: Floats = np.full(len(self.now), np.inf)
        for column, source in ((one, other), (other, one)):
            plain = self.shapes[column][0]
            gain = np.minimum(gain, plain.distance(self.quantiles[:, column]) - plain.distance(self.quantiles[:, source]))
        return gain

    def _related(self, rows: Floats, columns: Sequence[int], begin: int, end: int) -> list[tuple[Relation, float, float]]:
        """Return the relations with these columns, and their misfit, in thresholds, as found and put right."""
        related = []
        for relation, found in zip(self.relations, self.misfit, strict=True):
            if relation.touches(columns):
                limit = relation.limit(end - begin)
                right = relation.misfit(rows, self.day, len(self.now))
                before, after = mean_of(found[begin:end]), mean_of(right[begin:end])
                if np.isfinite(before) and np.isfinite(after):
                    related.append((relation, float(before) / limit, float(after) / limit))
        return related

    def _told(self, related: Sequence[tuple[Relation, float, float]]) -> list[dict[str, Any]]:
        return [
            {"column": self.names[relation.target], "from": [self.names[column] for column in relation.inputs], "before": round(before, 3), "after": round(after, 3)}
            for relation, before, after in related
        ]


def _is_broken(misfit: Floats, relation: Relation, now: Sequence[date]) -> bool:
    begin, end = _run(misfit - relation.limit(_shortest(now)))
    return end - begin >= _shortest(now) and float(mean_of(misfit[begin:end])) > relation.limit(end - begin)


def _unhealed(before: float, after: float) -> bool:
    """Tell whether a change leaves a relation broken; a season that the fit never saw may bend it a little."""
    return after > 1 and not (after <= SUPPORTED and after < 0.2 * before)


def _swap(one: str, other: str, now: Sequence[date], begin: int, end: int, evidence: Mapping[str, Any], confidence: float) -> Hypothesis:
    since, until = _start(now[begin]), _until(end, now)
    reason = f"{one} and {other} are exchanged"
    repairs = tuple(Repair(left, _name(right), _name(right), since, until, reason) for left, right in ((one, other), (other, one)))
    return Hypothesis("swap", (one, other), since, confidence, f"{reason} since {now[begin]}", repairs, until, False, evidence)


def _best(accepted: Sequence[_Accepted]) -> list[Hypothesis]:
    """Keep, for each column, the account that explains most."""
    taken: set[int] = set()
    kept = []
    for one in sorted(accepted, key=lambda judged: -judged.score):
        if not one.columns & taken:
            taken |= one.columns
            kept.append(one.hypothesis)
    return kept


def _confidence(before: float, after: float) -> float:
    """Map misfits in thresholds to 0.5..1: how far outside the history as found, how far inside once put right."""
    outside = 1 - 1 / max(float(before), 1.0)
    inside = 1 - min(float(after), 1.0) / 2
    return round(0.5 + 0.5 * outside * inside, 3)
