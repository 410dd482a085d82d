"""How the columns of a table depend on one another, and how their values are spread over stretches of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GRID = np.linspace(0.025, 0.975, 20)


def block_means(daily: Floats, length: int) -> Floats:
    """Return the means of every stretch of `length` days (axis 0), ignoring days without a value."""
    length = max(1, min(length, len(daily)))
    known = np.isfinite(daily)
    sums = np.cumsum(np.concatenate([np.zeros((1, *daily.shape[1:])), np.where(known, daily, 0.0)]), axis=0)
    counts = np.cumsum(np.concatenate([np.zeros((1, *daily.shape[1:])), known.astype(float)]), axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Floats = (sums[length:] - sums[:-length]) / (counts[length:] - counts[:-length])
    return means


def mean_of(daily: Floats) -> Floats:
    """Return the mean over the days that have a value, NaN where none has."""
    known = np.isfinite(daily)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Floats = np.where(known, daily, 0.0).sum(axis=0) / known.sum(axis=0)
    return mean


def quantiles_of(rows: Floats, day: NDArray[np.int64], days: int) -> Floats:
    """Return days x columns x grid; NaN where a day has no values of a column."""
    order = np.argsort(day, kind="stable")
    counts = np.bincount(day, minlength=days)
    place = np.arange(len(day)) - np.repeat(np.cumsum(counts) - counts, counts)
    padded = np.full((days, max(1, int(counts.max(initial=1))), rows.shape[1]), np.nan)
    padded[day[order], place] = rows[order]
    padded.sort(axis=1)  # NaN last
    known = np.isfinite(padded).sum(axis=1)
    position = GRID[None, None, :] * np.maximum(known - 1, 0)[:, :, None]
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(known - 1, 0)[:, :, None])
    by_column = np.moveaxis(padded, 1, 2)
    below, above = np.take_along_axis(by_column, low, axis=2), np.take_along_axis(by_column, high, axis=2)
    result: Floats = below + (position - low) * (above - below)
    return result


@dataclass(frozen=True, slots=True)
class Relation:
    """A column as a quadratic function of up to three others, and how far off it is, day by day, in history held out."""

    target: int
    inputs: tuple[int, ...]
    weights: Floats
    center: Floats
    scale: Floats
    usual: float
    daily: Floats

    def misfit(self, rows: Floats, day: NDArray[np.int64], days: int) -> Floats:
        """Return per day the median absolute residual in units of the usual one."""
        columns = [*self.inputs, self.target]
        standard = (rows[:, columns] - self.center[columns]) / self.scale[columns]
        residual = np.abs(features(standard[:, :-1]) @ self.weights - standard[:, -1])
        return daily_median(residual, day, days) / self.usual

    def limit(self, length: int) -> float:
        blocks = block_means(self.daily, length)
        return float(max(np.nanmax(blocks) * 1.5, 2.0)) if np.isfinite(blocks).any() else float("inf")

    def touches(self, columns: Iterable[int]) -> bool:
        return bool({self.target, *self.inputs} & set(columns))


def find_relations(rows: Floats, day: NDArray[np.int64], days: int) -> list[Relation]:
    """Find the columns that others determine, and how well in weeks that the fit did not see.

    Forward selection of at most three inputs, a quadratic ridge fit, cross-validated over contiguous stretches of days.
    """
    columns = rows.shape[1]
    usable = [number for number in range(columns) if np.isfinite(rows[:, number]).mean() >= 0.5]
    thin = max(1, len(rows) // 3000)
    sample, sample_day = rows[::thin], day[::thin]
    center, scale = np.zeros(columns), np.ones(columns)
    for number in usable:
        values = sample[:, number][np.isfinite(sample[:, number])]
        low, center[number], high = np.percentile(values, [0.5, 50, 99.5])
        scale[number] = float(np.std(np.clip(values, low, high)))
    usable = [number for number in usable if scale[number] > 0]
    order = np.argsort(sample_day, kind="stable")
    sample, sample_day = sample[order], sample_day[order]
    standard = np.clip((sample - center) / np.where(scale > 0, scale, 1), -6, 6)
    relations = []
    for target, inputs in _inputs(standard, usable).items():
        known = np.isfinite(standard[:, [target, *inputs]]).all(axis=1)
        if not inputs or known.sum() < 100:
            continue
        table = np.column_stack([features(standard[known][:, inputs]), standard[known, target]])
        ends = np.searchsorted(np.minimum(sample_day[known] * 5 // max(days, 1), 4), range(6))
        products = [table[begin:end].T @ table[begin:end] for begin, end in pairwise(ends)]
        whole = np.sum(products, axis=0)
        held_out = np.full(len(table), np.nan)
        for begin, end, product in zip(ends[:-1], ends[1:], products, strict=True):
            rest = len(table) - (end - begin)
            if rest >= 50:
                held_out[begin:end] = np.abs(_errors(table[begin:end], _ridge(whole - product, rest)))
        usual, goal = float(np.nanmedian(held_out)), table[:, -1]
        # a relation is worth listening to when it leaves a third of the spread at most, in weeks it has not seen
        if usual > 0.35 * float(np.median(np.abs(goal - np.median(goal)))) or not np.isfinite(usual):
            continue
        usual = max(usual, 1e-3)
        daily = daily_median(held_out, sample_day[known], days) / usual
        relations.append(Relation(target, tuple(inputs), _ridge(whole, len(table)), center, np.where(scale > 0, scale, 1), usual, daily))
    return relations


def _inputs(standard: Floats, usable: Sequence[int]) -> dict[int, list[int]]:
    """Return for each column up to three others, each of which goes along best with what those before it leave open."""
    chosen: dict[int, list[int]] = {target: [] for target in usable}
    residual, growing = standard.copy(), set(usable)
    unusable = [number for number in range(standard.shape[1]) if number not in growing]
    for _ in range(3):
        strength = _correlations(standard, residual)
        strength[unusable] = 0.0
        for target in sorted(growing):
            strength[[target, *chosen[target]], target] = 0.0
            best = int(strength[:, target].argmax())
            known = np.isfinite(standard[:, [target, best, *chosen[target]]]).all(axis=1)
            if strength[best, target] < 0.1 or known.sum() < 100:
                growing.remove(target)
                continue
            chosen[target].append(best)
            table = np.column_stack([np.ones(int(known.sum())), standard[known][:, [*chosen[target], target]]])
            residual[:, target] = np.nan
            residual[known, target] = _errors(table, _ridge(table.T @ table, len(table)))
    return chosen


def _correlations(columns: Floats, others: Floats) -> Floats:
    """Return how closely each column goes along with each of the others, from 0 to 1, over the rows that both have."""
    one, two = np.isfinite(columns).astype(float), np.isfinite(others).astype(float)
    left, right = np.where(one, columns, 0.0), np.where(two, others, 0.0)
    count = np.maximum(one.T @ two, 1)
    lefts, rights = left.T @ two, one.T @ right
    one_squares, two_squares = (left * left).T @ two, one.T @ (right * right)
    one_spread, two_spread = one_squares - lefts**2 / count, two_squares - rights**2 / count
    # what remains of a difference of two equal numbers is rounding, not spread
    known = (count >= 100) & (one_spread > 1e-12 * one_squares) & (two_spread > 1e-12 * two_squares)
    strength: Floats = np.where(known, np.abs(left.T @ right - lefts * rights / count), 0.0) / np.sqrt(np.where(known, one_spread * two_spread, 1.0))
    return strength.round(9)  # so that of two columns that say the same the first is taken


def features(inputs: Floats) -> Floats:
    """Return 1, the inputs, and their squares and products."""
    width = inputs.shape[1]
    squares = [inputs[:, one] * inputs[:, other] for one in range(width) for other in range(one, width)]
    return np.column_stack([np.ones(len(inputs)), inputs, *squares])


def _ridge(products: Floats, rows: int) -> Floats:
    """Return the weights of a ridge fit, from the products of all columns of its table; the last column is the goal."""
    penalty = 1e-5 * rows * np.eye(len(products) - 1)
    return np.asarray(np.linalg.solve(products[:-1, :-1] + penalty, products[:-1, -1]), dtype=np.float64)


def _errors(table: Floats, weights: Floats) -> Floats:
    errors: Floats = table[:, -1] - table[:, :-1] @ weights
    return errors


def daily_median(values: Floats, day: NDArray[np.int64], days: int) -> Floats:
    # the two middle points of the grid lie on either side of the median
    quantiles = quantiles_of(values[:, None], day, days)
    medians: Floats = (quantiles[:, 0, 9] + quantiles[:, 0, 10]) / 2
    return medians
