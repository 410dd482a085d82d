"""What kind of change it is: data fault, release change, input shift, concept change, volume change.

In that order, because the remedies differ and the first ones are cheap to undo: a broken feed is repaired, a bad release
is rolled back; only a world that changed is worth learning again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from palan.core import figure
from palan.drift.calibrate import Judged, LossWindow, amount, compared
from palan.drift.profile import Profile
from palan.errors import PalanError
from palan.gates.paired import t_quantile
from palan.releases.nouns import Release

Floats = npt.NDArray[np.float64]

TITLE = 80
"""How long a title may be: one line of a terminal."""


class Hypothesis(Protocol):
    """A data fault as the doctor proposes it (data.doctor.Hypothesis)."""

    @property
    def kind(self) -> str: ...
    @property
    def columns(self) -> Sequence[str]: ...
    @property
    def text(self) -> str: ...
    @property
    def confidence(self) -> float: ...
    @property
    def since(self) -> datetime: ...


@dataclass(frozen=True, slots=True)
class Split:
    """A change of mean loss in two parts that add up to it, per decision.

    `inputs`: the old relation of inputs to loss on the new mix of inputs. `concept`: another loss for the same inputs,
    with its 90 % interval. `shared` is the overlap of the two mixes (1: the same); where it is small, the split is
    uncertain however narrow the interval. `cells` are the places whose loss rose most, worst first.
    """

    total: float
    inputs: float
    concept: float
    concept_low: float
    concept_high: float
    shared: float
    columns: tuple[str, ...]
    cells: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What it looks like, in a sentence. `kind` is one of drift.nouns.DIAGNOSES; `since` when it began, if that shows."""

    kind: str
    text: str
    since: datetime | None
    columns: tuple[str, ...]
    evidence: Mapping[str, Any] = field(default_factory=dict)


def diagnose(
    *,
    judged: Judged,
    hypotheses: Sequence[Hypothesis] = (),
    loss_by_day: Mapping[date, LossWindow] | None = None,
    profiles_by_day: Mapping[date, Profile] | None = None,
    releases_since: Sequence[Release] = (),
    volume: Mapping[date, int] | None = None,
    split: Split | None = None,
    sure: float = 0.5,
    unit: str = "",
) -> Diagnosis:
    """Say what a judged window suffers from.

    Args:
        judged: the window's verdict.
        hypotheses: what the data doctor found; those with confidence `sure` or more count.
        loss_by_day, profiles_by_day, volume: the window's days and some weeks before, to find when it began.
        releases_since: releases in those days. One is blamed if the loss rose on its day or the day after.
        split: `split_loss` of the window against the reference, where outcomes are known.
        unit: what the loss counts, such as minutes.
    """
    daily = {day: (item.mean, max(item.rows, 1)) for day, item in (loss_by_day or {}).items()}
    began = break_day(daily)
    moved = judged.changed
    columns = tuple(shift.name for shift in moved)
    evidence: dict[str, Any] = {
        "loss": judged.loss,
        "loss_usual": judged.loss_usual,
        "loss_threshold": judged.loss_threshold,
        "columns": [{"name": shift.name, "distance": shift.distance, "threshold": shift.threshold} for shift in judged.columns[:10]],
    }
    if split is not None:
        evidence["split"] = {"total": split.total, "inputs": split.inputs, "concept": split.concept, "low": split.concept_low, "high": split.concept_high, "shared": split.shared, "columns": list(split.columns), "cells": [dict(cell) for cell in split.cells]}

    faults = sorted((fault for fault in hypotheses if fault.confidence >= sure), key=lambda fault: -fault.confidence)
    if faults:
        first = faults[0]
        evidence["faults"] = [{"kind": fault.kind, "columns": list(fault.columns), "confidence": fault.confidence, "text": fault.text} for fault in faults]
        named = tuple(dict.fromkeys(column for fault in faults for column in fault.columns))
        return Diagnosis("data fault", first.text, min(fault.since for fault in faults), named, evidence)

    if judged.loss_high:
        blamed = _blamed(releases_since, began)
        if blamed is not None:
            evidence["release"] = {"version": blamed.champion.version, "epoch": blamed.epoch, "time": blamed.time.isoformat()}
            text = f"the loss rose when {blamed.champion.version} was released: {_rise(judged, unit)}"
            return Diagnosis("release change", text, blamed.time, columns, evidence)
        moved_at = _inputs_began(profiles_by_day, columns)
        kind, text = _shift_or_concept(judged, split, unit)
        since = (moved_at if kind == "input shift" else None) or _midnight(began)
        return Diagnosis(kind, text, since, columns, evidence)
    if moved:
        harm = "whether it hurts is not known yet"
        if judged.loss is not None and judged.loss_usual is not None:
            harm = f"the loss stays within its normal range ({figure(judged.loss)}, usually {figure(judged.loss_usual)})"
        text = f"{', '.join(columns[:3])} moved; {harm}"
        return Diagnosis("input shift", text, _inputs_began(profiles_by_day, columns), columns, evidence)
    if judged.volume_unusual:
        counts = {day: (float(rows), 1) for day, rows in (volume or {}).items()}
        text = f"{judged.rows:,} decisions where {judged.rows_usual or 0:,.0f} are usual"
        return Diagnosis("volume change", text, _midnight(break_day(counts)), (), evidence)
    return Diagnosis("unknown", judged.text, None, (), evidence)


def _shift_or_concept(judged: Judged, split: Split | None, unit: str) -> tuple[str, str]:
    names = [shift.name for shift in judged.changed]
    listed = ", ".join(names[:3])
    if split is None:
        if names:
            return "input shift", f"{listed} moved and {_rise(judged, unit)}; without the raw rows the two cannot be told apart further"
        return "concept change", f"{_rise(judged, unit)}, while no input moved: the same inputs now have other outcomes"
    within = ", ".join(split.columns) or "all inputs"
    if split.total <= 0:
        # Against these reference rows nothing rose: the alarm compares with other windows, so only the inputs can tell.
        kind = "input shift" if names else "unknown"
        return kind, f"{_rise(judged, unit)}, but not against the reference rows by {within}"
    share = split.concept / split.total
    low, high = split.concept_low, split.concept_high
    bounds = f"{figure(low, 3)} to {figure(high, 3)}" if low >= 0 else f"{_moved(low)} to {_moved(high)}"
    explained = f"{_moved(split.concept)} of {figure(split.total, 3)} a decision in all (90% interval: {bounds})"
    if share >= 0.5 and split.concept_low > 0:
        return "concept change", f"the same inputs ({within}) now have a higher loss: {explained}"
    if share < 0.5:
        return "input shift", f"{max(0.0, 1 - share):.0%} of the rise comes from other inputs ({within}); for equal inputs {explained}"
    return "concept change", f"probably other outcomes for the same inputs ({within}), though it may be chance: {explained}"


def _moved(change: float) -> str:
    """Say which way a loss moved, as a positive number with a word."""
    return f"a {'rise' if change >= 0 else 'fall'} of {figure(abs(change), 3)}"


def _rise(judged: Judged, unit: str) -> str:
    if judged.loss is None or not judged.loss_usual:
        return "the loss rose"
    return f"the {amount(judged.loss, unit)} a decision is {compared(judged.loss, judged.loss_usual)}"


def when(since: datetime, seen: datetime) -> str:
    """Say since when something is so, and when it was seen, where that is another day."""
    return f"since {since:%Y-%m-%d}" + (f" (seen {seen:%Y-%m-%d})" if seen.date() != since.date() else "")


def title(judged: Judged, found: Diagnosis, since: datetime, seen: datetime) -> str:
    """Say in one line what changed, where, and since when; of what does not fit the columns go first."""
    began = when(since, seen)
    names = found.columns
    rest = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else ", ".join(names)
    ways: list[str] = []
    if found.kind == "data fault":
        ways = [re.split(r" since |, and |[:;] ", found.text)[0], f"data fault in {', '.join(names)}", f"data fault in {rest}", found.kind]
    elif judged.loss_high and judged.loss is not None and judged.loss_usual is not None:
        rise = judged.loss - judged.loss_usual
        what = f"loss {rise / abs(judged.loss_usual):,.0%} above usual" if judged.loss_usual else f"loss {figure(rise)} above usual"
        ways = [f"{what}, {rest} moved,", what] if names else [what]
    elif names:
        ways = [f"{', '.join(names)} moved", f"{rest} moved", f"{len(names)} columns moved"]
    else:
        ways = [found.text, found.kind]
    short = next((way for way in ways if len(way) + 1 + len(began) <= TITLE), f"{ways[-1][: TITLE - len(began) - 2]}…")
    return f"{short} {began}"


def _blamed(releases: Sequence[Release], began: date | None) -> Release | None:
    """The last release within a day before the loss rose."""
    if began is None:
        return None
    near = [release for release in releases if timedelta(0) <= began - release.time.astimezone(UTC).date() <= timedelta(days=1)]
    return max(near, key=lambda release: release.time, default=None)


def _midnight(day: date | None) -> datetime | None:
    return None if day is None else datetime(day.year, day.month, day.day, tzinfo=UTC)


# --- when it began ------------------------------------------------------------------------------------------------


def break_day(daily: Mapping[date, tuple[float, int]]) -> date | None:
    """Return the first day of the second of two levels that fit the days best (least squares, weights are rows).

    None with fewer than four days, or where two levels explain no more than chance would: the t statistic of the best
    split must exceed its 90 % point, with Bonferroni over the places where a split may be (Worsley 1979).
    """
    days = sorted(daily)
    if len(days) < 4:
        return None
    values = np.array([daily[day][0] for day in days], dtype=np.float64)
    weights = np.array([daily[day][1] for day in days], dtype=np.float64)
    left, right = np.cumsum(weights)[:-1], np.cumsum(weights[::-1])[::-1][1:]
    sums = np.cumsum(values * weights)
    first, second = sums[:-1] / left, (sums[-1] - sums[:-1]) / right
    gains = left * right / (left + right) * (second - first) ** 2
    at = int(np.argmax(gains))
    fitted = np.where(np.arange(len(days)) <= at, first[at], second[at])
    variance = float((weights * (values - fitted) ** 2).sum()) / max(len(days) - 2, 1)
    if gains[at] <= t_quantile(1.0 - 0.05 / (len(days) - 1), len(days) - 2) ** 2 * variance:
        return None
    return days[at + 1]


def _inputs_began(profiles_by_day: Mapping[date, Profile] | None, columns: Sequence[str]) -> datetime | None:
    if not profiles_by_day or not columns:
        return None
    return _midnight(shift_day(profiles_by_day, columns[0]))


def shift_day(profiles_by_day: Mapping[date, Profile], column: str) -> date | None:
    """Return the day on which a column's distribution changed most: the split of the days with the largest distance
    between its two sides, weighted by their rows as in the two-sample KS statistic. None with fewer than four days."""
    days = sorted(day for day, seen in profiles_by_day.items() if column in seen.columns and seen.rows)
    if len(days) < 4:
        return None
    parts = [profiles_by_day[day].columns[column] for day in days]
    counts = np.array([[*part.counts, part.nulls] for part in parts], dtype=np.float64)
    before = np.cumsum(counts, axis=0)[:-1]
    after = counts.sum(axis=0) - before
    n, m = before.sum(axis=1), after.sum(axis=1)
    apart = before / n[:, None] - after / m[:, None]
    if parts[0].sums:
        apart = np.maximum(np.abs(np.cumsum(apart[:, :-1], axis=1)).max(axis=1), np.abs(apart[:, -1]))
    else:
        apart = np.abs(apart).sum(axis=1) / 2.0
    return days[int(np.argmax(apart * np.sqrt(n * m / (n + m)))) + 1]


# --- inputs or concept --------------------------------------------------------------------------------------------


def split_loss(
    reference: pl.DataFrame,
    reference_losses: npt.ArrayLike,
    window: pl.DataFrame,
    window_losses: npt.ArrayLike,
    columns: Sequence[str],
    *,
    days: Sequence[Any] | npt.NDArray[Any] | None = None,
    groups: int = 6,
    shown: int = 5,
) -> Split:
    """Split a change of mean loss into what other inputs explain and what they do not.

    Both samples are cut into joint cells of the (at most three) named columns. On the inputs that they share, with
    density proportional to p q / (p + q), the loss for equal inputs is compared: that is the concept part; what
    remains is the way from each sample to the shared one (DISDE: Cai, Namkoong and Yadlowsky 2023, "Diagnosing Model
    Performance Under Distribution Shift"; here with cells in place of a fitted regression). What moves within a cell,
    or in a column that is not named, counts as concept.

    Args:
        reference, window: rows of inputs; the losses have shapes (n,) and (m,).
        days: shape (m,), the day of each row of the window; rows of one day are then not taken as independent.
        groups: numeric columns are cut at this many quantiles of both samples together.

    Raises:
        PalanError: no rows with losses in one of the samples, or lengths that differ.
    """
    before, after = np.asarray(reference_losses, dtype=np.float64), np.asarray(window_losses, dtype=np.float64)
    if len(before) != reference.height or len(after) != window.height:
        raise PalanError("each row needs one loss", f"got {reference.height} and {window.height} rows, {len(before)} and {len(after)} losses")
    if not len(before) or not len(after):
        raise PalanError("a split needs losses on both sides", "wait for outcomes")
    named = tuple(columns[:3])
    cells, labels = _cells(reference, window, named, groups)
    size = len(labels)
    a, b = cells[: len(before)], cells[len(before) :]
    n, m = np.bincount(a, minlength=size).astype(np.float64), np.bincount(b, minlength=size).astype(np.float64)
    p, q = n / n.sum(), m / m.sum()
    overlap = np.divide(p * q, p + q, out=np.zeros(size), where=(p + q) > 0)
    mean_before = np.divide(np.bincount(a, weights=before, minlength=size), n, out=np.zeros(size), where=n > 0)
    mean_after = np.divide(np.bincount(b, weights=after, minlength=size), m, out=np.zeros(size), where=m > 0)
    total = float(after.mean() - before.mean())
    if overlap.sum() <= 0.0:
        return Split(total, total, 0.0, -np.inf, np.inf, 0.0, named)
    s = overlap / overlap.sum()
    rise = mean_after - mean_before
    concept = float(s @ rise)
    # Each row's pull on the concept part: its distance from its cell's mean, times how much the shared sample wants it.
    pull_after = (after - mean_after[b]) * s[b] / np.maximum(m[b], 1.0)
    pull_before = (before - mean_before[a]) * s[a] / np.maximum(n[a], 1.0)
    variance, freedom = float(pull_after @ pull_after), float(len(after) - 1)
    if days is not None:
        _, code = np.unique(np.asarray(days), return_inverse=True)
        by_day = np.bincount(code.reshape(-1), weights=pull_after)
        k = len(by_day)
        variance, freedom = float(by_day @ by_day) * k / max(k - 1, 1), float(max(k - 1, 1))
    variance += float(pull_before @ pull_before)
    reach = t_quantile(0.95, max(freedom, 1.0)) * variance**0.5
    worst = np.argsort(-np.where((n > 0) & (m > 0), q * rise, -1e300), kind="stable")[:shown]
    top = tuple({"where": labels[i], "rows": int(m[i]), "before": float(mean_before[i]), "after": float(mean_after[i])} for i in worst if n[i] and m[i] and rise[i] > 0)
    shared = float(np.minimum(p, q).sum())
    return Split(total, total - concept, concept, concept - reach, concept + reach, shared, named, top)


def _cells(reference: pl.DataFrame, window: pl.DataFrame, columns: Sequence[str], groups: int) -> tuple[npt.NDArray[np.intp], list[str]]:
    """Return the cell of each row (reference first) and a readable label of each cell."""
    both = pl.concat([reference.select(columns), window.select(columns)], how="vertical_relaxed")
    if not columns:
        return np.zeros(reference.height + window.height, dtype=np.intp), ["everything"]
    coded = both.select(_coarse(both[name], groups) for name in columns)
    joint = coded.select(pl.concat_str([pl.lit(f"{name} ") + pl.col(name) for name in columns], separator=", ")).to_series()
    labels = joint.unique().sort()
    cells = joint.to_frame("label").join(labels.to_frame("label").with_row_index("cell"), on="label", how="left", maintain_order="left")["cell"]
    return cells.to_numpy().astype(np.intp), labels.to_list()


def _coarse(series: pl.Series, groups: int) -> pl.Series:
    """Cut a column into a few readable parts; empty is one of them."""
    if series.dtype.is_numeric():
        numbers = series.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        known = numbers[np.isfinite(numbers)]
        inner = np.quantile(known, np.arange(1, groups) / groups, method="inverted_cdf") if len(known) else known
        cuts = np.unique(inner)
        names = ["any"] if not len(cuts) else [f"< {cuts[0]:g}", *(f"{low:g} to {high:g}" for low, high in pairwise(cuts)), f">= {cuts[-1]:g}"]
        # NaN sorts past every cut: it is told apart before its group is looked up.
        place = np.where(np.isnan(numbers), len(names), np.searchsorted(cuts, numbers, side="right"))
        return pl.Series(series.name, [*names, "empty"]).gather(place)
    text = series.cast(pl.String)
    kept = text.drop_nulls().value_counts(sort=True).head(2 * groups)[series.name].to_list()
    return pl.select(pl.when(text.is_null()).then(pl.lit("empty")).when(text.is_in(kept)).then(text).otherwise(pl.lit("other")).alias(series.name)).to_series()
