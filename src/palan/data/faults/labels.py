"""Categories under other names, split, merged or cut, and columns of words that exchanged their values."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray

from palan.data.doctor import Hypothesis
from palan.data.faults.delivery import BLOCKS, CATEGORIES, Delivery, Flags, best_start, mapping, quoted
from palan.data.nouns import Repair
from palan.data.relations import Floats

WEIGHT = 0.01
"""Share of rows under new names, below which they are news and no fault."""
BINS = 10
MANY = 60
"""Values of a column, and more than this it is no company that a category could be told by."""


def relabelled(delivery: Delivery, told: set[str]) -> list[Hypothesis]:
    """Values that always came have vanished, and others stand in their place."""
    found = []
    for name in delivery.words:
        if name in told:
            continue
        had = dict(delivery.history[name].cast(pl.String).drop_nulls().value_counts(name="palan_rows").iter_rows())
        has = delivery.batch[name].cast(pl.String)
        if not had or len(had) > CATEGORIES:
            continue
        strange = (has.is_not_null() & ~has.is_in(list(had))).to_numpy()
        if not strange.any():
            continue
        start = _start(strange)
        since = has[start:].drop_nulls().value_counts(name="palan_rows")
        now = dict(since.iter_rows())
        rows = sum(now.values())
        new = {value: count for value, count in now.items() if value not in had}
        missed = {value: count for value, count in had.items() if value not in now}
        least = _least_shares(delivery, name)
        strong = [value for value in missed if least[value] * rows >= 10]
        if sum(new.values()) < WEIGHT * rows or not (strong or _spelled_out(had, new, missed) * rows >= 5):
            continue
        found += _named(delivery, name, start, had, new, missed, strong)
    return found


def _spelled_out(had: Mapping[str, int], new: Mapping[str, int], missed: Mapping[str, int]) -> float:
    """Return the share that the old names had which the new ones are spelled after: these need not have come every day."""
    olds = {old for value in new for old in _parts(value, missed)}
    for _, _, pairs in _by_text(had, new, missed):
        if sum(new[value] for value in pairs) >= 0.9 * sum(new.values()):
            olds |= set(pairs.values()) & set(missed)
    return sum(had[old] for old in olds) / sum(had.values())


def _start(strange: Flags) -> int:
    """Return the row from which on new names come regularly: a lone one before is news."""
    last = strange[-max(30, len(strange) // 4) :]
    start, _ = best_start(np.where(strange, 1.0, 0.0) - 0.5 * max(float(last.mean()), 1e-3))
    return start + int(np.argmax(strange[start:]))


def _least_shares(delivery: Delivery, name: str) -> dict[str, float]:
    """Return each value's share of the rows in the stretch of the history that had it least."""
    counted = delivery.history.select(pl.col(name).cast(pl.String).alias("value"), block=delivery.block).drop_nulls().group_by("value", "block").len()
    least = counted.group_by("value").agg(pl.when(pl.len() == BLOCKS).then(pl.col("len").min()).otherwise(0).alias("least"))
    return {value: count * BLOCKS / delivery.history.height for value, count in least.iter_rows()}


def _named(delivery: Delivery, name: str, start: int, had: Mapping[str, int], new: Mapping[str, int], missed: Mapping[str, int], strong: Sequence[str]) -> list[Hypothesis]:
    since, rows = delivery.since(start), sum(new.values())
    weight = rows / max(delivery.batch.height - start, 1)
    evidence = {"statistic": "share of rows under new names", "before": round(weight, 4), "after": 0.0, "threshold": WEIGHT}
    shown = ", ".join(sorted(new, key=lambda value: -new[value])[:3])
    for kind, words, pairs in _by_text(had, new, missed):
        if sum(new[value] for value in pairs) >= 0.9 * rows:
            told = ", ".join(f"{old} is now {value}" for value, old in sorted(pairs.items(), key=lambda pair: -new[pair[0]])[:3])
            ambiguous = kind == "truncated" and any(sum(old.startswith(value) for old in had) > 1 for value in pairs)
            repairs = () if ambiguous else (_in_one_case(name, had, pairs, since, told) or mapping(name, list(pairs.items()), since, told),)
            return [Hypothesis(kind, (name,), since, 0.97, f"{name} {words} since {since:%Y-%m-%d %H:%M}: {told}", repairs, evidence={**evidence, "mapping": pairs})]  # type: ignore[arg-type]
    merged = sorted({old for value in new for old in _parts(value, missed)})
    if merged and all(len(_parts(value, missed)) > 1 for value in new):
        strong = merged
    if len(new) < len(strong):
        text = f"{name} has {len(new)} new names ({shown}) for {len(strong)} old ones ({', '.join(strong[:3])}): which row was which cannot be told"
        return [Hypothesis("categories", (name,), since, 0.85, text, evidence=evidence)]
    pairs, certain = _by_company(delivery, name, start, new, missed)
    told = ", ".join(f"{old} is now {value}" for value, old in list(pairs.items())[:3])
    repairs = (mapping(name, list(pairs.items()), since, told),) if certain else ()
    text = f"{name} has new names for old values since {since:%Y-%m-%d %H:%M}: {told if certain else shown}"
    return [Hypothesis("categories", (name,), since, 0.9 if certain else 0.7, text, repairs, evidence={**evidence, "mapping": pairs})]


def _in_one_case(name: str, had: Mapping[str, int], pairs: Mapping[str, str], since: datetime, told: str) -> Repair | None:
    """Return the repair by the case that every old name had: it is right for names, too, that have never come before."""
    for way, there, back in ((str.upper, "UPPER", "LOWER"), (str.lower, "LOWER", "UPPER")):
        if all(way(old) == old for old in had) and all(way(new) == old for new, old in pairs.items()):
            return Repair(name, f"{there}({quoted(name)})", f"{back}({quoted(name)})", since, None, told)
    return None


# ---- by what the names look like ------------------------------------------------------------------------------------------


def _by_text(had: Mapping[str, int], new: Mapping[str, int], missed: Mapping[str, int]) -> list[tuple[str, str, dict[str, str]]]:
    """Return how new names could come from old ones, each with kind, words and the pairs that it explains."""
    ways: list[tuple[str, str, dict[str, str]]] = []
    for words, key in KEYS.items():
        olds: dict[str, str] = {}
        for old in sorted(had, key=lambda value: (value in missed, had[value])):
            olds[key(old)] = old  # of several the missed one, and of these the most frequent
        ways.append(("categories", words, {value: olds[key(value)] for value in new if key(value) in olds}))
    ways.append(("truncated", "is cut short", _cut(new, missed)))
    ways.append(("categories", "is split", _split(new, missed)))
    return sorted(ways, key=lambda way: way[0] != "categories" or way[1] == "is split")


def _folded(text: str) -> str:
    return text.strip().casefold()


def _decoded(text: str) -> str:
    for encoding in ("latin-1", "cp1252"):
        try:
            return text.encode(encoding).decode()
        except UnicodeError:
            continue
    return text


def _bare(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", plain.casefold()) or text


KEYS: Mapping[str, Callable[[str], str]] = {"is in another case": _folded, "was read in a wrong encoding": _decoded, "is spelled in another way": _bare}


def _cut(new: Mapping[str, int], missed: Mapping[str, int]) -> dict[str, str]:
    size = max(len(value) for value in new)
    pairs = {}
    for value in new:
        longer = [old for old in missed if old[:size].rstrip() == value.rstrip() and len(old) > len(value)]
        if longer and len(value) >= size - 1:
            pairs[value] = max(longer, key=lambda old: missed[old])
    return pairs


def _parts(value: str, missed: Mapping[str, int]) -> list[str]:
    """Return the old names that a new one is put together from, where it is."""
    parts = [part.strip() for part in re.split(r"[/|+&,;]", value)]
    return parts if len(parts) > 1 and all(part in missed for part in parts) else []


def _split(new: Mapping[str, int], missed: Mapping[str, int]) -> dict[str, str]:
    pairs = {}
    for value in new:
        parts = [old for old in missed if len(old) >= 1 and old in re.split(r"\s*[-/:_(),]\s*|\s{2,}", value)] or [old for old in missed if len(old) >= 2 and value.startswith(old)]
        if parts:
            pairs[value] = max(parts, key=len)
    return pairs if len(set(pairs.values())) < len(pairs) else {}


# ---- by the company that they keep --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Company:
    """Another column, its values numbered, in the history and in the rows in question."""

    past: NDArray[np.int64]
    now: NDArray[np.int64]
    size: int


def _companies(delivery: Delivery, besides: Sequence[str], start: int) -> list[_Company]:
    found = []
    batch = delivery.batch[start:]
    for name in delivery.words:
        if name in besides or not 2 <= delivery.history[name].n_unique() <= 4 * MANY:
            continue
        values = delivery.history[name].cast(pl.String).drop_nulls().value_counts(sort=True, name="palan_rows")[name][:MANY].to_list()
        past, now = (numbered(frame[name], values) for frame in (delivery.history, batch))
        found.append(_Company(past, now, len(values) + 1))
    for name in delivery.numbers:
        if name in besides:
            continue
        old, new = (frame[name].cast(pl.Float64).to_numpy() for frame in (delivery.history, batch))
        known = old[np.isfinite(old)]
        edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1])) if len(known) else np.array([])
        if not len(edges) or not len(new):
            continue
        past, now = (np.where(np.isfinite(values), np.searchsorted(edges, values), len(edges) + 1) for values in (old, new))
        found.append(_Company(past, now, len(edges) + 2))
    if delivery.time is not None:
        hours = [frame[delivery.time].dt.hour().fill_null(0).cast(pl.Int64).to_numpy() for frame in (delivery.history, batch)]
        found.append(_Company(hours[0], hours[1], 24))
    return found


def numbered(column: pl.Series, values: Sequence[str]) -> NDArray[np.int64]:
    """Return each value's place among the values, and their count for any other."""
    return column.cast(pl.String).replace_strict(list(values), list(range(len(values))), default=len(values), return_dtype=pl.Int64).to_numpy()


def table(one: NDArray[np.int64], other: NDArray[np.int64], shape: tuple[int, int]) -> Floats:
    counts: Floats = np.bincount(one * shape[1] + other, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
    return counts


def _by_company(delivery: Delivery, name: str, start: int, new: Mapping[str, int], missed: Mapping[str, int]) -> tuple[dict[str, str], bool]:
    """Pair new names with old ones by how often they come, by what stands beside them in the other columns, and by their spelling."""
    olds = sorted(missed)
    news = sorted(new, key=_natural)
    past, now = numbered(delivery.history[name], olds), numbered(delivery.batch[name][start:], news)
    rows = np.array([new[value] for value in news], dtype=np.float64)
    seen = np.array([missed[value] for value in olds], dtype=np.float64)
    total, came = float(delivery.history.height), float(delivery.batch.height - start)
    fits = np.zeros((len(news), len(olds)))
    companies = _companies(delivery, [name], start)
    for company in companies:
        before = table(past, company.past, (len(olds) + 1, company.size))[:-1]
        after = table(now, company.now, (len(news) + 1, company.size))[:-1]
        usual = np.bincount(company.past, minlength=company.size) / total + 1e-4
        drift = np.clip((np.bincount(company.now, minlength=company.size) / came + 1e-4) / usual, 0.05, 20)
        shares = (before + 2 * usual) / (before.sum(axis=1, keepdims=True) + 2) * drift
        shares = np.maximum(shares / shares.sum(axis=1, keepdims=True), 1e-4)
        fits += (after / rows[:, None]) @ np.log(shares).T
    fits *= np.minimum(rows, 200)[:, None] / max(1.0, len(companies) ** 0.5)
    often = np.log((rows / came)[:, None]) - np.log((seen / total)[None, :])
    fits -= often**2 / (2 * (0.15 + 1 / rows[:, None] + 1 / seen[None, :]))
    codes = all(re.fullmatch(r"\d+|[A-Za-z]", value) for value in news)
    if not codes:
        fits += 20 * np.array([[_spelled(value, old) for old in olds] for value in news])
    chosen = assigned(fits)
    if codes and len(news) <= len(olds):
        # codes are mostly given in the order of the names
        ordered = _in_order(fits)
        if _worth(fits, ordered) >= _worth(fits, chosen) - 6 * len(news):
            return {value: olds[ordered[place]] for place, value in enumerate(news)}, True
    certain = all(_surer(fits, chosen, place) > 2 for place in range(len(news)))
    return {value: olds[chosen[place]] for place, value in enumerate(news)}, certain


def _natural(value: str) -> tuple[int, str]:
    return (int(value), "") if value.isdigit() else (0, value)


def _spelled(one: str, other: str) -> float:
    """Return how much one name looks like the other, or like an abbreviation of it."""
    short, long = sorted((one.lower(), other.lower()), key=len)
    letters = iter(long)
    abbreviated = len(short) >= 2 and all(letter in letters for letter in short)
    return max(difflib.SequenceMatcher(None, short, long).ratio(), 0.4 * abbreviated + 0.3 * (abbreviated and short[0] == long[0]))


def assigned(fits: Floats) -> list[int]:
    """Return for each row a column of its own, by and large with the best sum: greedy, then exchanges while they help."""
    count, width = fits.shape
    if count > width:  # split categories: several new names for one old value
        return [int(place) for place in fits.argmax(axis=1)]
    chosen, free = [-1] * count, set(range(width))
    for place in np.argsort(-(np.sort(fits, axis=1)[:, -1] - (np.sort(fits, axis=1)[:, -2] if width > 1 else 0)), kind="stable"):
        chosen[place] = max(free, key=lambda column: fits[place, column])
        free.discard(chosen[place])
    improved = True
    while improved:
        improved = False
        for one in range(count):
            for other in range(one):
                gain = fits[one, chosen[other]] + fits[other, chosen[one]] - fits[one, chosen[one]] - fits[other, chosen[other]]
                if gain > 1e-9:
                    chosen[one], chosen[other] = chosen[other], chosen[one]
                    improved = True
            best = max(free, key=lambda column: fits[one, column], default=chosen[one])
            if fits[one, best] > fits[one, chosen[one]] + 1e-9:
                free.add(chosen[one])
                free.discard(best)
                chosen[one] = best
                improved = True
    return chosen


def _in_order(fits: Floats) -> list[int]:
    """Return the best choice of columns that keeps their order."""
    count, width = fits.shape
    best = np.full((count + 1, width + 1), -np.inf)
    best[0] = 0.0
    for row in range(1, count + 1):
        for column in range(row, width + 1):
            best[row, column] = max(best[row, column - 1], best[row - 1, column - 1] + fits[row - 1, column - 1])
    chosen, column = [0] * count, width
    for row in range(count, 0, -1):
        while best[row, column] == best[row, column - 1]:
            column -= 1
        column -= 1
        chosen[row - 1] = column
    return chosen


def _worth(fits: Floats, chosen: Sequence[int]) -> float:
    return float(sum(fits[row, column] for row, column in enumerate(chosen)))


def _surer(fits: Floats, chosen: Sequence[int], row: int) -> float:
    """Return by how much the choice for a row is better than the best exchange."""
    now = fits[row, chosen[row]]
    others = [now + fits[other, chosen[other]] - fits[row, chosen[other]] - fits[other, chosen[row]] for other in range(len(chosen)) if other != row]
    others += [now - fits[row, column] for column in range(fits.shape[1]) if column not in chosen]
    return float(min(others, default=np.inf))


# ---- columns that exchanged their values ---------------------------------------------------------------------------------------


def exchanged(delivery: Delivery, told: set[str]) -> list[Hypothesis]:
    """Two columns of words hold what the other one held: as often, and beside the same values of other columns."""
    names = [name for name in delivery.words if name not in told and delivery.history[name].n_unique() <= CATEGORIES and delivery.history[name].n_unique() > 1]
    found: list[tuple[float, Hypothesis]] = []
    values = {name: delivery.history[name].cast(pl.String).drop_nulls().value_counts(sort=True, name="palan_rows")[name].to_list() for name in names}
    worded = _worded(delivery, names)
    for place, one in enumerate(names):
        for other in names[:place]:
            gain = _swap_gain(worded[one], worded[other])
            start, total = best_start(gain)
            if total < 20 or float(gain[start:].mean()) <= 0:
                continue
            start += int(np.argmax(gain[start:] > 0))
            if not _like_before(worded[one], worded[other], start):
                continue
            beside = _told_by_company(delivery, one, other, values, start)
            if beside is None or beside <= 10:
                continue
            since = delivery.since(start)
            reason = f"{one} and {other} are exchanged"
            repairs = tuple(Repair(left, quoted(right), quoted(right), since, None, reason) for left, right in ((one, other), (other, one)))
            evidence = {"statistic": "gain in log likelihood of the values and of those beside them", "before": 0.0, "after": round(total, 1), "threshold": 20.0, "beside others": round(beside, 1)}
            found.append((total, Hypothesis("swap", (one, other), since, 0.97, f"{reason} since {since:%Y-%m-%d %H:%M}", repairs, evidence=evidence)))
    kept: list[Hypothesis] = []
    for _, each in sorted(found, key=lambda one: -one[0]):
        if not any(set(each.columns) & set(before.columns) for before in kept):
            kept.append(each)
    return kept


@dataclass(frozen=True, slots=True)
class _Worded:
    """One column of words among others, all their values numbered alike."""

    logs: Floats  # log share of each value in the history
    now: NDArray[np.int64]


def _worded(delivery: Delivery, names: Sequence[str]) -> dict[str, _Worded]:
    every = sorted({value for name in names for frame in (delivery.history, delivery.batch) for value in frame[name].cast(pl.String).drop_nulls().unique()})
    found = {}
    for name in names:
        shares = np.bincount(numbered(delivery.history[name], every), minlength=len(every) + 1) + 0.5
        found[name] = _Worded(np.log(shares / shares.sum()), numbered(delivery.batch[name], every))
    return found


def _swap_gain(one: _Worded, other: _Worded) -> Floats:
    """Return for each row of the batch how much likelier its two values are the other way round."""
    gain: Floats = np.clip(one.logs[other.now] + other.logs[one.now] - one.logs[one.now] - other.logs[other.now], -5, 5)
    return gain


def _like_before(one: _Worded, other: _Worded, start: int) -> bool:
    """Tell whether each, put right, has its values about as often as before: rows of another sort have not."""
    for own, else_ in ((one, other), (other, one)):
        was = np.exp(own.logs)
        found, right = (float(np.abs(np.bincount(values[start:], minlength=len(was)) / max(len(values) - start, 1) - was).sum()) / 2 for values in (own.now, else_.now))
        if right > 0.5 * found:
            return False
    return True


def _told_by_company(delivery: Delivery, one: str, other: str, values: Mapping[str, Sequence[str]], start: int) -> float | None:
    """Return the mean gain, over the other columns, in log likelihood when the two are put right; foreign values count as they are."""
    batch = delivery.batch[start:]
    gains = []
    for company in _companies(delivery, [one, other], start):
        total = 0.0
        for name, elsewhere in ((one, other), (other, one)):
            shape = (len(values[name]) + 1, company.size)
            joint = np.log((table(numbered(delivery.history[name], values[name]), company.past, shape) + 0.2) / (delivery.history.height + 0.2 * shape[0] * shape[1]))
            as_found, put_right = (table(numbered(batch[column], values[name]), company.now, shape) for column in (name, elsewhere))
            total += float(((put_right - as_found) * joint).sum())
        gains.append(total)
    return float(np.mean(gains)) if gains else None
