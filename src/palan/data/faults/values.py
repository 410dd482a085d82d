"""Values that are none: a default in the place of nulls, a sensor that stands still, decimals or letters cut off."""

from __future__ import annotations

import numpy as np
import polars as pl

from palan.data.doctor import Hypothesis
from palan.data.faults.delivery import BLOCKS, CATEGORIES, Delivery, Flags, literal, quoted
from palan.data.nouns import Repair
from palan.data.relations import Floats

CHANCE = 1e-6
"""How unlikely a thing has to be in healthy rows."""
RUN = 30
"""Rows with one value, below which a column is not said to be stuck."""


def defaults(delivery: Delivery, told: set[str]) -> list[Hypothesis]:
    """Nulls that always came have vanished, and one value comes more often by about as much."""
    found = []
    for name in [*delivery.numbers, *delivery.words]:
        if name in told:
            continue
        had, has = delivery.history[name], delivery.batch[name]
        usual = _block_shares(delivery, had.is_null())
        least, most = float(np.quantile(usual, 0.25)), float(usual.max())
        if usual.mean() < 0.003 or least <= 0:
            continue
        nulls = np.flatnonzero(has.is_null().to_numpy())
        start = int(nulls[-1]) + 1 if len(nulls) else 0
        tail = has[start:]
        longest = int(np.diff(np.flatnonzero(had.is_null().to_numpy())).max(initial=0))
        if tail.len() < max(RUN, 1.5 * longest) or (1 - least) ** tail.len() > CHANCE:
            continue
        counts = tail.value_counts(sort=True, name="palan_rows")
        best: tuple[float, object] | None = None
        for value, count in counts.head(20).iter_rows():
            worst = float(_block_shares(delivery, (had == value).fill_null(False)).max())
            excess = count / tail.len() - worst
            if 0.35 * least <= excess <= 2.5 * most and (best is None or excess > best[0]):
                best = (excess, value)
        if best is not None:
            found.append(_default(delivery, name, start, best[1], best[0], float(usual.mean())))
    return found


def _block_shares(delivery: Delivery, flags: pl.Series) -> Floats:
    counts = np.bincount(delivery.block, minlength=BLOCKS)
    shares: Floats = np.bincount(delivery.block[flags.to_numpy()], minlength=BLOCKS) / np.maximum(counts, 1)
    return shares


def _default(delivery: Delivery, name: str, start: int, value: object, excess: float, usual: float) -> Hypothesis:
    first = start + int(np.argmax((delivery.batch[name][start:] == value).fill_null(False).to_numpy()))
    since, column = delivery.since(first), quoted(name)
    written = literal(value) if isinstance(value, str) else repr(value)
    together = _null_together(delivery, name)
    if together is None:
        expression, inverse = f"NULLIF({column}, {written})", f"COALESCE({column}, {written})"
    else:
        expression = f"CASE WHEN {quoted(together)} IS NULL AND {column} = {written} THEN NULL ELSE {column} END"
        inverse = f"COALESCE({column}, {written})"
    repair = Repair(name, expression, inverse, since, None, f"{written} stands for a missing {name}")
    genuine = float((delivery.history[name] == value).mean() or 0.0)  # type: ignore[arg-type]
    text = f"{name} is never missing since {since:%Y-%m-%d %H:%M}, {usual:.1%} was before, and says {written} in as many rows more: it stands for a missing value"
    evidence = {"statistic": "share of missing values", "before": 0.0, "after": round(excess, 4), "threshold": usual, "value": value, "genuine": genuine}
    return Hypothesis("sentinel", (name,), since, 0.95 if genuine == 0 or together else 0.8, text, (repair,), evidence=evidence)


def _null_together(delivery: Delivery, name: str) -> str | None:
    """Return another column that has always been missing in the same rows, and still is."""
    gone = delivery.history[name].is_null()
    for other in delivery.history.columns:
        if other != name and other in delivery.batch.columns and delivery.batch[other].null_count() and float((delivery.history[other].is_null() != gone).mean() or 0.0) < 0.002 * float(gone.mean() or 1.0):  # type: ignore[arg-type]
            return other
    return None


def stuck(delivery: Delivery, told: set[str]) -> list[Hypothesis]:
    """A column says one value to the end of the delivery, in far more rows than ever before."""
    found = []
    for name in [*delivery.numbers, *delivery.words]:
        if name in told:
            continue
        has = delivery.batch[name]
        if has.len() < RUN or has[-1] is None:
            continue
        other = np.flatnonzero((has != has[-1]).fill_null(True).to_numpy())
        start = int(other[-1]) + 1 if len(other) else 0
        length = has.len() - start
        had = delivery.history[name]
        if length < RUN or had.n_unique() < 3:
            continue
        if had.dtype.is_numeric():
            had = had.cast(pl.Float64)
        runs = had.fill_null(strategy="forward").rle_id().to_numpy()
        longest = int(np.bincount(runs).max(initial=0))
        if length < 3 * longest:
            continue
        since = delivery.since(start)
        text = f"{name} is stuck at {has[-1]} since {since:%Y-%m-%d %H:%M}, for {length} rows; it never stood still for more than {longest}"
        repair = Repair(name, f"NULLIF({quoted(name)}, {quoted(name)})", quoted(name), since, None, f"{name} is stuck at {has[-1]}")
        evidence = {"statistic": "rows in a row with one value", "before": length, "after": None, "threshold": longest}
        found.append(Hypothesis("stuck", (name,), since, 0.97, text, (repair,), evidence=evidence))
    return found


def truncated(delivery: Delivery, told: set[str]) -> list[Hypothesis]:
    """Numbers have lost their decimals, or text its end: nothing can bring them back but a new delivery."""
    found = []
    for name in delivery.numbers:
        if name in told or not delivery.history[name].dtype.is_float():
            continue
        had, has = (frame[name].cast(pl.Float64).to_numpy() for frame in (delivery.history, delivery.batch))
        whole = _is_whole(had)
        known = np.isfinite(had) & (had != 0)
        blocks = [float(whole[known & (delivery.block == block)].mean()) for block in range(BLOCKS) if (known & (delivery.block == block)).sum() >= 20]
        if not blocks or max(blocks) > 0.7:
            continue
        broken = np.flatnonzero(np.isfinite(has) & ~_is_whole(has))
        start = int(broken[-1]) + 1 if len(broken) else 0
        tail = has[start:]
        different = np.unique(tail[np.isfinite(tail) & (tail != 0)])
        rows = int(np.isfinite(tail).sum())
        if rows < RUN or max(blocks) ** len(different) > CHANCE:
            continue
        # whole numbers of another unit are not those that cutting leaves
        left = np.unique(np.concatenate([cut(had[known]) for cut in (np.trunc, np.floor, np.round)]))
        near = different[(different >= left.min()) & (different <= left.max())]
        if len(near) < 0.5 * len(different) or float(np.isin(near, left).mean()) < 0.97:
            continue
        since = delivery.since(start)
        text = f"{name} has lost its decimals since {since:%Y-%m-%d %H:%M}: {np.mean(blocks):.0%} of its values were whole before, now all of {rows}"
        found.append(Hypothesis("truncated", (name,), since, 0.95, text, evidence={"statistic": "share of whole values", "before": 1.0, "after": None, "threshold": max(blocks)}))
    for name in delivery.words:
        if name not in told and delivery.history[name].n_unique() > CATEGORIES:
            found += _cut(delivery, name)
    return found


def _is_whole(values: Floats) -> Flags:
    whole: Flags = np.isfinite(values) & (values == np.round(values))
    return whole


def _cut(delivery: Delivery, name: str) -> list[Hypothesis]:
    had, has = (frame[name].cast(pl.String).str.len_chars().fill_null(0).to_numpy() for frame in (delivery.history, delivery.batch))
    top = int(has[-(len(has) // 4) :].max(initial=0))
    longer = np.flatnonzero(has > top)
    start = int(longer[-1]) + 1 if len(longer) else 0
    usual = _block_shares(delivery, pl.Series(had > top)).min()
    at_end, before = float(np.mean(has[start:] == top)), float(np.mean(had == top))
    if len(has) - start < RUN or usual < 0.05 or (1 - usual) ** (len(has) - start) > CHANCE or at_end < before + 0.5 * usual:
        return []
    since = delivery.since(start)
    text = f"{name} is cut after {top} characters since {since:%Y-%m-%d %H:%M}: {np.mean(had > top):.0%} of its values were longer before, none is now"
    return [Hypothesis("truncated", (name,), since, 0.95, text, evidence={"statistic": f"share of values longer than {top}", "before": 0.0, "after": None, "threshold": float(usual)})]
