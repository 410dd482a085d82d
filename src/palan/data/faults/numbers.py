"""Numbers in another unit, with their sign turned, or in the place of another column's.

A change is proposed where the values as found cannot be: they lie between the steps of the instrument, outside all that
was ever seen, against a relation with other columns or against an order of two columns that always held; and where
putting it right heals every one of these. A season heals none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from palan.data.doctor import CHANGES, Change, Hypothesis, unit_change
from palan.data.faults.delivery import BLOCKS, Delivery, Flags, best_start, literal, matrix, quoted
from palan.data.nouns import Repair
from palan.data.relations import GRID, Floats, Relation, features, find_relations

UNITS: tuple[Change, ...] = (
    *CHANGES,
    Change("unit", "is in °F instead of K", 5 / 9, 459.67 * 5 / 9, "({} + 459.67) * 5.0 / 9.0", "{} * 9.0 / 5.0 - 459.67"),
    Change("unit", "is in K instead of °F", 9 / 5, -459.67, "{} * 9.0 / 5.0 - 459.67", "({} + 459.67) * 5.0 / 9.0"),
    *unit_change("hours|days", 24.0),
    *unit_change("days|weeks", 7.0),
    *unit_change("months|years", 12.0),
)

SAMPLE = 12_000
"""Rows of the history that relations are learnt from."""
SEASON = 0.5
"""How far beyond all that was seen, in its spread, a column may be put right where what it has to do with others speaks for it."""
ROWS = 20
FEW = 8
DIFFERENT = 3
"""Values, below which several units fit them equally well."""
GLANCE = 1500
"""Rows that are enough to see whether a change is worth a closer look."""
GROUPS = 20
"""Values of a text column that could be suppliers."""


@dataclass(frozen=True, slots=True)
class _Steps:
    """The values that a column takes, where it takes few enough to be told from others."""

    values: Floats
    reach: float
    usual: float

    gap: float = 0.0

    def on(self, found: Floats, rounded: float = 0.0) -> Flags:
        """Tell which values are among them, give or take what a supplier's rounding has lost."""
        place = np.clip(np.searchsorted(self.values, found), 1, len(self.values) - 1)
        apart = np.minimum(np.abs(found - self.values[place - 1]), np.abs(found - self.values[place]))
        on: Flags = apart <= max(self.reach, min(rounded, 0.45 * self.gap))
        return on


def _steps(had: Floats) -> _Steps | None:
    known = np.isfinite(had) & (had != 0)
    values = had[known]
    if len(values) < 100:
        return None
    cut = len(values) * 4 // 5
    early, late = np.unique(values[:cut]), values[cut:]
    if not 3 <= len(early) <= 20_000:
        return None
    gaps = np.diff(early)
    reach = 0.12 * float(np.quantile(gaps, 0.1))
    usual = float(_Steps(early, reach, 1.0).on(late).mean())
    every = np.unique(values)
    return _Steps(every, reach, usual, reach / 0.12) if usual >= 0.85 else None


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    steps: _Steps | None
    low: float
    high: float
    quantiles: Floats  # blocks x grid
    spread: float
    limit: float  # how far two stretches of the history are from one another
    zeros: bool  # mostly zero, which is zero in every unit

    def inside(self, found: Floats, beyond: float = 0.0) -> Flags:
        """Tell which values are within the range of the history, or this much of its spread beyond."""
        flags: Flags = (found >= self.low - beyond * self.spread) & (found <= self.high + beyond * self.spread)
        return flags

    def distance(self, found: Floats) -> float:
        """Return how far the values are from the nearest stretch of the history, in the largest distance of neighbours there."""
        if len(found) == 0:
            return 0.0
        apart = np.abs(self.quantiles - np.quantile(found, GRID)).mean(axis=1)
        return float(apart.min()) / self.spread / self.limit


def _column(name: str, had: Floats, block: np.ndarray) -> _Column | None:
    known = np.isfinite(had)
    if known.sum() < 100 or len(np.unique(had[known])) < 3:
        return None
    zeros = float(np.mean(had[known] == 0)) > 0.3
    use = known & ((had != 0) | (not zeros))
    if use.sum() < 30:
        return None
    low, high = np.quantile(had[use], [0.002, 0.998])
    spread = max(float(np.quantile(had[use], 0.95) - np.quantile(had[use], 0.05)), 1e-12)
    quantiles = np.array([np.quantile(had[use & (block == number)], GRID) for number in range(BLOCKS) if (use & (block == number)).sum() >= 5])
    if len(quantiles) < 2:
        return None
    apart = np.abs(quantiles[:, None, :] - quantiles[None, :, :]).mean(axis=2) / spread
    medians = quantiles[:, len(GRID) // 2]
    moves = np.diff(medians)
    if np.any(moves != 0) and (np.all(moves >= 0) or np.all(moves <= 0)) and (np.diff(quantiles[:, 0]) >= 0).all():
        return None  # it counts up: a number, a date
    reach = 0.1 * spread
    return _Column(name, _steps(had), float(low) - reach, float(high) + reach, quantiles, spread, max(float(apart.max()), 0.1), zeros)


@dataclass(frozen=True)
class _Past:
    """What the history says of the numbers."""

    delivery: Delivery
    names: tuple[str, ...]

    @cached_property
    def rows(self) -> Floats:
        return matrix(self.delivery.history, self.names)

    @cached_property
    def columns(self) -> list[_Column | None]:
        return [_column(name, self.rows[:, place], self.delivery.block) for place, name in enumerate(self.names)]

    @cached_property
    def relations(self) -> list[Relation]:
        rows = self.rows[:: max(1, len(self.rows) // SAMPLE)]
        return find_relations(rows, np.arange(len(rows)) * BLOCKS // max(len(rows), 1), BLOCKS)

    @cached_property
    def limits(self) -> list[float]:
        """How far off each relation is, at most, in a stretch of the history."""
        return [float(max(np.nanmax(relation.daily), 1.0)) for relation in self.relations]

    @cached_property
    def ordered(self) -> list[tuple[int, int]]:
        """The pairs of columns of which the first was never the larger one, though it could have been."""
        pairs = []
        rows = self.rows[:: max(1, len(self.rows) // SAMPLE)]
        for one, first in enumerate(self.columns):
            for other, second in enumerate(self.columns):
                if one == other or first is None or second is None:
                    continue
                overlap = min(first.high, second.high) - max(first.low, second.low)
                if overlap < 0.5 * min(first.spread, second.spread):
                    continue
                left, right = rows[:, one], rows[:, other]
                known = np.isfinite(left) & np.isfinite(right)
                if known.sum() >= 200 and np.mean(left[known] > right[known]) < 0.0005 and np.corrcoef(left[known], right[known])[0, 1] > 0.5:
                    pairs.append((one, other))
        return pairs


@dataclass(frozen=True)
class Table:
    """The numbers of a delivery beside those of its history."""

    past: _Past
    delivery: Delivery
    now: Floats

    @property
    def names(self) -> tuple[str, ...]:
        return self.past.names

    @property
    def columns(self) -> list[_Column | None]:
        return self.past.columns

    @property
    def relations(self) -> list[Relation]:
        return self.past.relations

    @property
    def limits(self) -> list[float]:
        return self.past.limits

    @property
    def ordered(self) -> list[tuple[int, int]]:
        return self.past.ordered

    @cached_property
    def found(self) -> list[Floats]:
        """How far each row as found is off each relation."""
        return [self.off(relation, self.now) for relation in self.relations]

    def odd(self) -> set[int]:
        """Return the columns of which the last rows say what the history never did: only these are looked into."""
        last = self.now[-max(ROWS, len(self.now) // 4) :]
        found: set[int] = set()
        for place, column in enumerate(self.columns):
            values = last[:, place][np.isfinite(last[:, place])]
            if column is None:
                continue
            if column.zeros:
                values = self.now[:, place][np.isfinite(self.now[:, place]) & (self.now[:, place] != 0)]
            if len(values) and (np.mean(column.inside(values)) < 0.9 or (column.steps is not None and np.mean(column.steps.on(values)) < 0.95 * column.steps.usual)):
                found.add(place)
        for number, relation in enumerate(self.relations):
            off = self.off(relation, last)
            if np.isfinite(off).any() and float(np.nanmedian(off)) > 2 * self.limits[number]:
                found |= {relation.target, *relation.inputs}
        for one, other in self.ordered:
            if np.mean(last[:, one] > last[:, other]) > 0.02:
                found |= {one, other}
        return found

    def off(self, relation: Relation, rows: Floats) -> Floats:
        """Return how far each row is off a relation, in its usual residual."""
        columns = [*relation.inputs, relation.target]
        standard = (rows[:, columns] - relation.center[columns]) / relation.scale[columns]
        residual: Floats = np.abs(features(standard[:, :-1]) @ relation.weights - standard[:, -1]) / relation.usual
        return residual


@dataclass(frozen=True, slots=True)
class _Case:
    """One way to put rows right: what speaks against them as found, and how well they fit after."""

    places: tuple[int, ...]
    start: int
    score: float
    broken: tuple[str, ...]
    before: float
    after: float


def examine(delivery: Delivery, without: set[str]) -> list[Hypothesis]:
    """Return the columns in another unit, with another sign or in another's place, of those that nothing else explains."""
    names = tuple(name for name in delivery.numbers if name not in without)
    if not names or not delivery.batch.height:
        return []
    past = _Past(delivery, names)
    table = Table(past, delivery, matrix(delivery.batch, names))
    thin = max(1, len(table.now) // GLANCE)
    found: list[Hypothesis] = []
    taken: set[int] = set()
    while len(found) < 5:
        best = max(_cases(table, thin, taken), key=lambda each: each[0].score, default=None)
        if best is None:
            break
        case, hypothesis, rows = best
        taken |= set(case.places)
        found.append(hypothesis)
        # what one fault does to relations is not to be laid at another column's door
        table = Table(past, delivery, rows)
    return found


def _cases(table: Table, thin: int, taken: set[int]) -> list[tuple[_Case, Hypothesis, Floats]]:
    """Return all that could be said of the columns that are not explained yet, each with the rows put right."""
    glance = Table(table.past, table.delivery, table.now[::thin])
    odd = table.odd() - taken
    cases: list[tuple[_Case, Hypothesis, Floats]] = []
    for place, column in enumerate(table.columns):
        if column is None or place not in odd:
            continue
        best = _best_change(glance, place, np.ones(len(glance.now), dtype=bool), UNITS)
        best = best and _best_change(table, place, np.ones(len(table.now), dtype=bool), [best[1]])
        if best is not None:
            cases.append((best[0], _unit_hypothesis(table, best[0], best[1], None), best[2]))
        else:
            cases += _in_a_group(table, place)
    cases += _together(table, glance, odd)
    for one in range(len(table.names)):
        for other in range(one):
            if odd & {one, other} and not taken & {one, other} and _swap(glance, one, other) is not None:
                swapped = _swap(table, one, other)
                cases += [(swapped[0], _swap_hypothesis(table, swapped[0]), swapped[1])] if swapped is not None else []
    return cases


def _together(table: Table, glance: Table, odd: set[int]) -> list[tuple[_Case, Hypothesis, Floats]]:
    """Look for columns that changed their unit together: put right alone, each of them would break its relation to the others."""
    found: list[tuple[_Case, Hypothesis, Floats]] = []
    for change in UNITS:
        places = tuple(place for place in sorted(odd) if change.kind == "unit" and _is_told(glance, place, change))
        if len(places) < 2 or not any(set(places) <= {relation.target, *relation.inputs} for relation in table.relations):
            continue
        for view in (glance, table):
            rows = view.now.copy()
            for place in places:
                moved = (view.now[:, place] != 0) | (change.shift != 0)
                rows[moved, place] = view.now[moved, place] * change.factor + change.shift
            known = np.isfinite(view.now[:, list(places)].sum(axis=1))
            case = _judge(view, places, rows, known, rounded=max(_rounded(view.now[:, place]) for place in places) * abs(change.factor), exchanged=False)
            if case is None:
                break
        if case is not None:
            found.append((case, _unit_hypothesis(table, case, change, None), _from(table, rows, case.start)))
    return found


def _is_told(table: Table, place: int, change: Change) -> bool:
    """Tell whether the last values of a column cannot be as they are, and can be once they are changed."""
    column = table.columns[place]
    last = table.now[-max(ROWS, len(table.now) // 4) :, place]
    last = last[np.isfinite(last)]
    if column is None:
        return False
    right = last * change.factor + change.shift
    if len(np.unique(last)) < FEW or np.mean(column.inside(right, SEASON)) < 0.9:
        return False
    off = column.steps is not None and np.mean(column.steps.on(last)) < 0.5 * column.steps.usual
    return bool(np.mean(column.inside(last)) < 0.5 or off)


def _best_change(table: Table, place: int, among: Flags, changes: Sequence[Change], had: Floats | None = None) -> tuple[_Case, Change, Floats] | None:
    best: tuple[_Case, Change, Floats] | None = None
    rounded = _rounded(table.now[among, place])
    for change in changes:
        rows = table.now.copy()
        moved = among & ((table.now[:, place] != 0) | (change.shift != 0))
        rows[moved, place] = table.now[moved, place] * change.factor + change.shift
        case = _judge(table, (place,), rows, moved & np.isfinite(table.now[:, place]), rounded=rounded * abs(change.factor), had=had)
        if case is not None and (best is None or case.score > best[0].score):
            best = (case, change, _from(table, rows, case.start))
    return best


def _rounded(found: Floats) -> float:
    """Return how much the rounding to the decimals of the values may have taken from them."""
    values = found[np.isfinite(found)][:2000]
    for places in range(5):
        if np.mean(np.abs(values - np.round(values, places)) < 1e-7) > 0.99:
            return 0.51 * 10.0**-places
    return 0.0


def _judge(table: Table, places: tuple[int, ...], rows: Floats, moved: Flags, hint: Floats | None = None, *, rounded: float = 0.0, had: Floats | None = None, exchanged: bool = True) -> _Case | None:
    """Return the stretch to the end in which the rows put right fit and those found do not, or None."""
    known = np.flatnonzero(moved)
    if len(known) < FEW:
        return None
    gain = np.zeros(len(rows)) if hint is None else hint.copy()
    last = known[-max(FEW, len(known) // 4) :]  # a fault lasts to the end
    related = [(number, relation) for number, relation in enumerate(table.relations) if relation.touches(places)]
    beyond = SEASON if _is_healed(table, related, rows, last) else 0.0
    for place in places:
        column = table.columns[place]
        assert column is not None
        if np.mean(column.inside(rows[last, place], beyond)) < 0.8:
            return None
        was, right = table.now[known, place], rows[known, place]
        gain[known] += column.inside(right, beyond).astype(float) - column.inside(was)
        if column.steps is not None:
            gain[known] += column.steps.on(right, rounded).astype(float) - column.steps.on(was)
    misfits = []
    for number, relation in related:
        was, right = table.found[number], table.off(relation, rows)
        misfits.append((number, was, right))
        gain += np.nan_to_num(np.clip(np.log((was + 1) / (right + 1)), -1, 1)) * moved / len(related)
    for one, other in table.ordered:
        if one in places or other in places:
            gain += moved * ((table.now[:, one] > table.now[:, other]).astype(float) - (rows[:, one] > rows[:, other]))
    start, total = best_start(gain)
    segment = known[known >= start]
    if len(segment) < FEW or total < 0.15 * len(segment) or total < 5:
        return None
    if any(len(np.unique(table.now[segment, place])) < DIFFERENT for place in places):
        return None  # one odd day is weather
    broken, score, distances = [], 0.0, []
    for place in places:
        column = table.columns[place]
        assert column is not None
        was, right = table.now[segment, place], rows[segment, place]
        befores, afters = np.unique(was), np.unique(right)
        inside = float(np.mean(column.inside(was))), float(np.mean(column.inside(right, beyond)))
        if inside[1] < 0.9:
            return None
        if inside[0] < 0.5 or (len(places) == 2 and exchanged and inside[0] < 0.95 and inside[1] > 0.985):
            broken.append(f"{table.names[place]} outside its range")
        if column.steps is not None:
            on = float(np.mean(column.steps.on(befores))), float(np.mean(column.steps.on(afters, rounded)))
            if on[1] < 0.8 * column.steps.usual:
                return None
            if on[0] < (0.5 if len(befores) >= 12 else 0.2) * column.steps.usual and len(befores) >= 6:
                broken.append(f"{table.names[place]} between its steps")
            score += on[1] - on[0]
        distance = column.distance(right) if had is None else float(np.abs(np.quantile(had, GRID) - np.quantile(right, GRID)).mean()) / column.spread / column.limit / 2
        if distance > (3.0 if beyond else 1.5):
            return None
        distances.append((column.distance(was), distance))
        score += 0.5 * (inside[1] - inside[0]) - distance
    for number, was, right in misfits:
        here = [float(np.nanmedian(values[segment])) if np.isfinite(values[segment]).any() else np.nan for values in (was, right)]
        if not np.isfinite(here).all():
            continue
        limit = table.limits[number]
        if here[1] > 2 * limit and here[1] > 0.5 * here[0]:
            return None
        if here[0] > 3 * limit and here[1] < 1.5 * limit:
            broken.append(f"{table.names[table.relations[number].target]} against {', '.join(table.names[place] for place in table.relations[number].inputs)}")
        score += float(np.clip(np.log((here[0] + 0.5) / (here[1] + 0.5)), -2, 2)) / len(related)
    for one, other in table.ordered:
        if one in places or other in places:
            wrong = [float(np.nanmean(values[segment, one] > values[segment, other])) for values in (table.now, rows)]
            if wrong[1] > 0.01:
                return None
            if wrong[0] > 0.05:
                broken.append(f"{table.names[one]} above {table.names[other]}")
                score += 1.0
    if len(places) == 2 and exchanged and min(before for before, _ in distances) > 1.0 and max(after for _, after in distances) < 0.5 * min(before for before, _ in distances):
        broken.append(f"each like the other's history: {' and '.join(table.names[place] for place in places)}")
    if not broken and len(rows) == len(table.delivery.batch):  # at a glance no more is asked than that it fits
        return None
    sure = np.flatnonzero(gain[start:] > 0.3)
    first = start + int(sure[0]) if len(sure) else segment[0]
    return _Case(places, int(first), score, tuple(broken), max(before for before, _ in distances), max(after for _, after in distances))


def _is_healed(table: Table, related: Sequence[tuple[int, Relation]], rows: Floats, last: NDArray[np.int64]) -> bool:
    """Tell whether relations that the last rows break as found hold once they are put right, and none breaks then."""
    before, after = ([float(np.nanmedian(off[last])) if np.isfinite(off[last]).any() else np.nan for off in offs] for offs in ([table.found[number] for number, _ in related], [table.off(relation, rows) for _, relation in related]))
    limits = [table.limits[number] for number, _ in related]
    return any(was > 3 * limit and now < 1.5 * limit for was, now, limit in zip(before, after, limits, strict=True)) and not any(now > 1.5 * limit for now, limit in zip(after, limits, strict=True))


def _in_a_group(table: Table, place: int) -> list[tuple[_Case, Hypothesis, Floats]]:
    """Look for one supplier only whose rows are in another unit."""
    column = table.columns[place]
    assert column is not None
    values = table.now[:, place]
    known = np.isfinite(values) & (values != 0)
    odd = known & ~column.inside(values)
    if column.steps is not None:
        odd |= known & ~column.steps.on(values)
    usual = 1 - column.steps.usual if column.steps is not None else 0.001
    if known.sum() < ROWS or odd.sum() / known.sum() < usual + 0.03:
        return []
    best: tuple[_Case, Change, Floats, str, str] | None = None
    for name in table.delivery.words:
        named = table.delivery.batch[name].cast(pl.String)
        counts = named.drop_nulls().value_counts(sort=True, name="palan_rows")
        if not 2 <= counts.height <= GROUPS:
            continue
        for value, count in counts.head(8).iter_rows():
            mine = (named == value).fill_null(False).to_numpy()
            if count < ROWS or odd.sum() == 0 or odd[mine].sum() < 0.9 * odd.sum() or odd[mine & known].mean() < 0.3:
                continue
            past = table.past.rows[(table.delivery.history[name].cast(pl.String) == value).fill_null(False).to_numpy(), place]
            found = _best_change(table, place, mine, UNITS, past[np.isfinite(past)])
            if found is not None and (best is None or (odd[mine & known].mean(), found[0].score) > (odd[_mine(table, best[3], best[4]) & known].mean(), best[0].score)):
                best = (*found, name, value)
    if best is None:
        return []
    case, change, rows, name, value = best
    return [(case, _unit_hypothesis(table, case, change, (name, value)), rows)]


def _mine(table: Table, name: str, value: str) -> Flags:
    mine: Flags = (table.delivery.batch[name].cast(pl.String) == value).fill_null(False).to_numpy()
    return mine


def _unit_hypothesis(table: Table, case: _Case, change: Change, group: tuple[str, str] | None) -> Hypothesis:
    names = tuple(table.names[place] for place in case.places)
    since = table.delivery.since(case.start)
    where = "" if group is None else f" where {group[0]} is {group[1]}"
    repairs = []
    for name in names:
        column = quoted(name)
        there, back = change.expression.format(column), change.inverse.format(column)
        if group is not None:
            condition = f"{quoted(group[0])} = {literal(group[1])}"
            there, back = (f"CASE WHEN {condition} THEN {expression} ELSE {column} END" for expression in (there, back))
        repairs.append(Repair(name, there, back, since, None, f"{name} {change.words}{where}"))
    words = change.words.replace("is in", "are in", 1) if len(names) > 1 else change.words
    fits = "they fit" if len(names) > 1 else "it fits"
    text = f"{' and '.join(names)} {words}{where} since {since:%Y-%m-%d %H:%M}: {', '.join(case.broken[:3])}; put right, {fits} the history"
    return Hypothesis(change.kind, names, since, _confidence(case), text, tuple(repairs), evidence=_evidence(case))


def _swap_hypothesis(table: Table, case: _Case) -> Hypothesis:
    one, other = (table.names[place] for place in case.places)
    since, reason = table.delivery.since(case.start), f"{one} and {other} are exchanged"
    repairs = tuple(Repair(left, quoted(right), quoted(right), since, None, reason) for left, right in ((one, other), (other, one)))
    text = f"{reason} since {since:%Y-%m-%d %H:%M}: {', '.join(case.broken[:3])}; put right, they fit the history"
    return Hypothesis("swap", (one, other), since, _confidence(case), text, repairs, evidence=_evidence(case))


def _confidence(case: _Case) -> float:
    return round(min(0.99, 0.8 + 0.05 * len(case.broken) + 0.1 * max(0.0, 1 - case.after)), 3)


def _evidence(case: _Case) -> dict[str, object]:
    return {"statistic": "distance from the nearest stretch of the history, in that of its own stretches", "before": round(case.before, 3), "after": round(case.after, 3), "threshold": 1.5, "broken": list(case.broken)}


def _swap(table: Table, one: int, other: int) -> tuple[_Case, Floats] | None:
    if table.columns[one] is None or table.columns[other] is None:
        return None
    rows = table.now.copy()
    rows[:, [one, other]] = rows[:, [other, one]]
    moved = np.isfinite(table.now[:, one]) & np.isfinite(table.now[:, other])
    # a gust is mostly missing, a wind is not: which of the two is missing tells as well
    past = table.past.rows[:, [one, other]]
    missing = [float(np.mean(np.isnan(past[:, here]) & ~np.isnan(past[:, there]))) + 1e-4 for here, there in ((0, 1), (1, 0))]
    told = float(np.clip(np.log(missing[1] / missing[0]), -1, 1))
    gain = told * (np.isnan(table.now[:, one]).astype(float) - np.isnan(table.now[:, other]))
    case = _judge(table, (one, other), rows, moved, gain)
    return None if case is None else (case, _from(table, rows, case.start))


def _from(table: Table, rows: Floats, start: int) -> Floats:
    """Return the rows put right from a row on."""
    return np.concatenate([table.now[:start], rows[start:]])
