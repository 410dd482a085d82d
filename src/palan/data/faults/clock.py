"""Times that were shifted: another time zone, or daylight saving applied where it was not."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from palan.data.doctor import Hypothesis
from palan.data.faults.delivery import BLOCKS, Delivery, best_start, quoted
from palan.data.nouns import Repair
from palan.data.relations import Floats

Hours = NDArray[np.int64]

ZONES = ("UTC", "America/New_York", "America/Chicago", "America/Denver", "America/Los_Angeles", "America/Sao_Paulo", "Europe/London", "Europe/Berlin", "Europe/Helsinki", "Europe/Istanbul",
         "Asia/Dubai", "Asia/Kolkata", "Asia/Shanghai", "Asia/Tokyo", "Australia/Sydney", "Pacific/Auckland")  # fmt: skip
"""Where summer time begins and ends: a change that one of these zones explains is the calendar's."""
SHIFTS = [hours for hours in range(-12, 13) if hours]
CERTAIN = 0.9


def shifted(delivery: Delivery) -> list[Hypothesis]:
    """A clock is shifted where another column tells the hour, or where all of the day's profile has moved along."""
    if delivery.time is None or delivery.batch.height < 24:
        return []
    told = _by_hour_column(delivery)
    return told if told is not None else _by_profile(delivery)


def _hours(frame: pl.DataFrame, time: str) -> Hours:
    hours: Hours = frame[time].dt.hour().to_numpy().astype(np.int64)
    return hours


def _by_hour_column(delivery: Delivery) -> list[Hypothesis] | None:
    """Compare with a column that says the hour; None where there is none."""
    assert delivery.time is not None
    for name in delivery.numbers:
        columns = [frame[name].fill_null(-1).to_numpy() for frame in (delivery.history, delivery.batch)]
        if not all(np.issubdtype(column.dtype, np.integer) for column in columns) or columns[0].min() < 0 or columns[0].max() > 23 or len(np.unique(columns[0])) < 12:
            continue
        zone, right, apart = _zone(delivery, columns)
        if zone is None:
            continue
        odd = np.where(apart == right, -1.0, 1.0)
        start, gain = best_start(odd)
        if gain < 24 or gain < 0.8 * (len(odd) - start):
            return []
        hours = int((right - np.bincount(apart[start:], minlength=24).argmax() + 12) % 24 - 12)
        evidence: dict[str, object] = {"statistic": f"share of rows in which {name} and the time agree", "before": 0.0, "after": 1.0, "threshold": 0.5, "zone": zone}
        return [_hypothesis(delivery, start, hours, f"as {name} tells", evidence)]
    return None


def _zone(delivery: Delivery, columns: Sequence[Hours]) -> tuple[str | None, int, Hours]:
    """Return the zone in which the column has always told the hour, how far they are apart there, and how far they are now.

    Summer time is no fault: of the zones that explain the history the one that explains most of the delivery counts.
    """
    assert delivery.time is not None
    best: tuple[float, str | None, int, Hours] = (-1.0, None, 0, columns[1])
    for zone in ZONES:
        before, after = ((told - frame[delivery.time].dt.convert_time_zone(zone).dt.hour().to_numpy().astype(np.int64)) % 24 for told, frame in zip(columns, (delivery.history, delivery.batch), strict=True))
        right = int(np.bincount(before, minlength=24).argmax())
        explains = float(np.mean(after == right))
        if np.mean(before == right) > 0.98 and explains > best[0]:
            best = (explains, zone, right, after)
    return best[1:]


def _by_profile(delivery: Delivery) -> list[Hypothesis]:
    """Compare each column's course over the day, and that of the number of rows, with the history's, shifted by whole hours."""
    time = delivery.time
    assert time is not None
    past, now = _hours(delivery.history, time), _hours(delivery.batch, time)
    best: tuple[float, int, int] | None = None
    for name in [*delivery.numbers]:
        old, new = (frame[name].cast(pl.Float64).to_numpy() for frame in (delivery.history, delivery.batch))
        low, high = np.nanquantile(old, [0.01, 0.99])
        if not high > low:
            continue
        old, new = np.clip(old, low, high), np.clip(new, low, high)
        blocks = [_profile(old[delivery.block == block], past[delivery.block == block]) for block in range(BLOCKS)]
        usual = _profile(old, past)
        # only a column that the hour of the day tells something about, in each stretch of the history
        strengths = [_alike(block, usual, 0) for block in blocks]
        if min(strengths) < CERTAIN or max(abs(_shift(block, usual)[0]) for block in blocks) > 0:
            continue
        level = np.nanmean(new) - np.nanmean(usual)
        for hours in SHIFTS:
            gain = np.abs(new - level - usual[now]) - np.abs(new - level - usual[(now - hours) % 24])
            start, total = _at_a_jump(delivery, np.nan_to_num(gain), hours)
            if total <= 0:
                continue
            length = len(new) - start
            if length < max(168, 0.1 * len(new)) or len(np.unique(now[start:])) < 24:
                continue
            found = _profile(new[start:], now[start:])
            right, wrong = _alike(found, usual, hours), _alike(found, usual, 0)
            if right >= min(strengths) - 0.03 and right - wrong > 0.02 + max(0.0, _doubt(old, past, usual, length)) and (best is None or right * 1e6 + total > best[0]):
                best = (right * 1e6 + total, hours, start)
    if best is None:
        return []
    _, hours, start = best
    return [_hypothesis(delivery, start, hours, "as the course of the day tells", {"statistic": "likeness of the day's course", "before": None, "after": None, "threshold": CERTAIN})]


def _at_a_jump(delivery: Delivery, gain: Floats, hours: int) -> tuple[int, float]:
    """Return where the shift begins, and its gain: a clock that is put forward leaves a gap behind it, one put back goes over hours again."""
    assert delivery.time is not None
    last = delivery.history[delivery.time].max()
    times = pl.concat([pl.Series([last], dtype=delivery.batch.schema[delivery.time]), delivery.batch[delivery.time]])
    steps = times.diff()[1:].dt.total_seconds().to_numpy() / 3600
    usual = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
    jumps = (steps >= hours + 0.9 * usual) & (steps <= hours + 12) if hours > 0 else steps <= usual + hours + 0.1
    sums = np.cumsum(gain[::-1])[::-1]
    _, most = best_start(gain)
    places = np.flatnonzero(jumps & (sums >= 0.8 * most))
    if not len(places):
        return 0, 0.0
    start = 0 if jumps[0] and sums[0] >= 0.85 * most else int(places[np.argmax(sums[places])])
    return start, float(sums[start])


def _profile(values: Floats, hours: Hours) -> Floats:
    known = np.isfinite(values)
    sums = np.bincount(hours[known], weights=values[known], minlength=24)
    profile: Floats = sums / np.maximum(np.bincount(hours[known], minlength=24), 1)
    return profile


def _alike(found: Floats, usual: Floats, hours: int) -> float:
    """Return the correlation of two courses of the day, the first one shifted back by some hours."""
    back = np.roll(found, -hours)
    if back.std() == 0 or usual.std() == 0:
        return 0.0
    return float(np.corrcoef(back, usual)[0, 1])


def _shift(found: Floats, usual: Floats) -> tuple[int, float]:
    return max(((hours, _alike(found, usual, hours)) for hours in (0, *SHIFTS)), key=lambda pair: pair[1])


def _doubt(values: Floats, hours: Hours, usual: Floats, length: int) -> float:
    """Return the largest margin by which a wrong shift is best in any stretch of the history of this length."""
    starts = np.linspace(0, max(0, len(values) - length), 30).astype(int)
    return max(_margin(_profile(values[start : start + length], hours[start : start + length]), usual) for start in starts)


def _margin(found: Floats, usual: Floats) -> float:
    """Return how much better the best wrong shift is than none: negative where none is best."""
    return max(_alike(found, usual, hours) for hours in SHIFTS) - _alike(found, usual, 0)


def _hypothesis(delivery: Delivery, start: int, hours: int, how: str, evidence: dict[str, object]) -> Hypothesis:
    assert delivery.time is not None
    since, name = delivery.since(start), quoted(delivery.time)
    words = f"{abs(hours)} hour{'s' if abs(hours) > 1 else ''} {'late' if hours > 0 else 'early'}"
    there, back = (f"{name} {'-' if (hours > 0) == right else '+'} INTERVAL '{abs(hours)} hours'" for right in (True, False))
    repair = Repair(delivery.time, there, back, since, None, f"{delivery.time} is {words}")
    return Hypothesis("clock", (delivery.time,), since, 0.95, f"{delivery.time} is {words} since {since:%Y-%m-%d %H:%M}, {how}", (repair,), evidence={**evidence, "hours": hours, "shift": str(timedelta(hours=hours))})
