"""How far two windows of one column lie apart, from their profiles alone.

KS and Wasserstein look at the values; PSI, Jensen-Shannon and chi-square at bins, with the nulls as one more bin.
With the frozen bins KS understates the exact statistic by at most the largest share of rows in one bin, and
Wasserstein moves each bin's rows at their own mean, exact where a bin holds one value.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from palan.drift.profile import ColumnProfile
from palan.errors import PalanError

Floats = npt.NDArray[np.float64]


def psi(a: ColumnProfile, b: ColumnProfile, *, groups: int = 10) -> float:
    """Population stability index: sum of (q - p) ln(q / p), in nats, over `groups` of about equal frequency in `a`.

    Ten groups are what the usual readings (0.1 some, 0.25 much) mean; half a row stands in an empty one.
    """
    first, second = _grouped(_with_nulls(a), _with_nulls(b), groups)
    if not first.sum() or not second.sum():
        return 0.0
    p = np.maximum(first, 0.5) / np.maximum(first, 0.5).sum()
    q = np.maximum(second, 0.5) / np.maximum(second, 0.5).sum()
    return float(((q - p) * np.log(q / p)).sum())


def jensen_shannon(a: ColumnProfile, b: ColumnProfile) -> float:
    """Jensen-Shannon distance (Endres and Schindelin 2003): the root of the divergence in bits, from 0 to 1."""
    p, q = _shares(_with_nulls(a)), _shares(_with_nulls(b))
    middle = (p + q) / 2.0
    return math.sqrt(max(0.0, (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2.0))


def _relative_entropy(p: Floats, q: Floats) -> float:
    seen = p > 0
    return float((p[seen] * np.log2(p[seen] / q[seen])).sum())


def ks(a: ColumnProfile, b: ColumnProfile) -> float:
    """Kolmogorov-Smirnov distance: the largest difference of the distribution functions, from 0 to 1, nulls apart."""
    _need_numbers(a, b)
    if not a.n or not b.n:
        return 0.0
    return float(np.abs(np.cumsum(_shares(_counts(a))) - np.cumsum(_shares(_counts(b)))).max())


def wasserstein(a: ColumnProfile, b: ColumnProfile) -> float:
    """Mean distance that values must travel from one window to the other, in the column's unit, nulls apart."""
    _need_numbers(a, b)
    if not a.n or not b.n:
        return 0.0
    (x, p), (y, q) = _points(a), _points(b)
    places = np.concatenate([x, y])
    order = np.argsort(places, kind="stable")
    ahead = np.cumsum(np.concatenate([p, -q])[order])
    return float(np.abs(ahead[:-1]) @ np.diff(places[order]))


def _points(column: ColumnProfile) -> tuple[Floats, Floats]:
    counts = _counts(column)
    seen = counts > 0
    return np.asarray(column.sums)[seen] / counts[seen], counts[seen] / counts.sum()


def chi_square(a: ColumnProfile, b: ColumnProfile) -> tuple[float, int, float]:
    """Pearson's test that both windows draw from one distribution: (statistic, degrees of freedom, p-value).

    Bins are joined with their neighbours until each expects at least five rows in both windows (Cochran 1954).
    With many rows it finds differences that matter to nobody: it ranks, it never raises an alarm.
    """
    first, second = _with_nulls(a), _with_nulls(b)
    n, m = first.sum(), second.sum()
    if not n or not m:
        return 0.0, 0, 1.0
    first, second = _joined(first, second, 5.0 * (n + m) / min(n, m))
    both = first + second
    expected = both * (n / (n + m))
    statistic = float(((first - expected) ** 2 / expected).sum() + ((second - (both - expected)) ** 2 / (both - expected)).sum())
    freedom = len(both) - 1
    return statistic, freedom, chi_square_tail(statistic, freedom)


def _joined(first: Floats, second: Floats, least: float) -> tuple[Floats, Floats]:
    """Join neighbouring bins until each holds at least `least` rows of both windows together."""
    starts, held, total = [0], 0.0, first + second
    left = float(total.sum())
    for i, count in enumerate(total):
        if held >= least and left >= least:
            starts.append(i)
            held = 0.0
        held += float(count)
        left -= float(count)
    if held < least and len(starts) > 1:
        starts.pop()
    return np.add.reduceat(first, starts), np.add.reduceat(second, starts)


def chi_square_tail(statistic: float, freedom: int) -> float:
    """Probability that chi-square exceeds the statistic: the upper incomplete gamma function (DLMF 8.11.4 and 8.9.2)."""
    if freedom <= 0 or statistic <= 0.0:
        return 1.0
    a, x = freedom / 2.0, statistic / 2.0
    front = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1.0:
        term = total = 1.0 / a
        step = a
        while term > total * 1e-16:
            step += 1.0
            term *= x / step
            total += term
        return max(0.0, 1.0 - front * total)
    b = x + 1.0 - a
    c, d = 1e300, 1.0 / b
    value = d
    for i in range(1, 1000):
        factor = -i * (i - a)
        b += 2.0
        d = 1.0 / (factor * d + b or 1e-300)
        c = b + factor / c or 1e-300
        value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return front * value


def distance(a: ColumnProfile, b: ColumnProfile) -> float:
    """The one distance by which columns are watched and ranked, 0 to 1: the share of rows that moved.

    Numbers: KS of the values; texts: total variation, half the sum of |p - q|. A change in the share of nulls counts
    in both: a sensor that stopped has moved too.
    """
    nulls = abs(_null_share(a) - _null_share(b))
    if a.sums and b.sums:
        return max(ks(a, b), nulls)
    return float(np.abs(_shares(_with_nulls(a)) - _shares(_with_nulls(b))).sum() / 2.0)


def _null_share(column: ColumnProfile) -> float:
    return column.nulls / max(column.n + column.nulls, 1)


def _counts(column: ColumnProfile) -> Floats:
    return np.asarray(column.counts, dtype=np.float64)


def _with_nulls(column: ColumnProfile) -> Floats:
    return np.append(_counts(column), float(column.nulls))


def _shares(counts: Floats) -> Floats:
    return counts / max(float(counts.sum()), 1.0)


def _grouped(a: Floats, b: Floats, groups: int) -> tuple[Floats, Floats]:
    """Sum bins into groups of about equal frequency in `a`; the nulls (last) stay a group of their own."""
    total = a[:-1].sum()
    group = np.minimum((np.cumsum(a[:-1]) - a[:-1] / 2.0) / max(total, 1.0) * groups, groups - 1).astype(np.int64)
    group = np.append(group, groups)
    first, second = np.zeros(groups + 1), np.zeros(groups + 1)
    np.add.at(first, group, a)
    np.add.at(second, group, b)
    used = (first + second) > 0
    return first[used], second[used]


def _need_numbers(a: ColumnProfile, b: ColumnProfile) -> None:
    if not a.sums or not b.sums:
        raise PalanError("texts have no order to measure by", "use psi, jensen_shannon or chi_square")
