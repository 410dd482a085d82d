"""Paired statistics: two versions judged on the same decisions, with days as blocks.

Everything works on the differences `candidate - champion` of a loss, so negative is better. Decisions of one day share
its weather, its news and its bugs: they are not independent. Means are therefore judged by how much they vary from
block to block, and days are allowed to resemble their neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from palan.core import figure
from palan.errors import PalanError
from palan.gates.nouns import Verdict

Floats = npt.NDArray[np.float64]
FEWEST_BLOCKS = 3
"""Below this many blocks no interval is worth printing: the verdict is "cannot tell"."""


class Interval(msgspec.Struct, frozen=True):
    """A mean and the bounds that hold it with probability `confidence` (two-sided). Infinite when nothing can be said."""

    mean: float
    low: float
    high: float
    confidence: float
    rows: int
    blocks: int
    error: float  # standard error of the mean
    method: str
    freedom: float = 1.0  # degrees of freedom behind the error


class Judgement(msgspec.Struct, frozen=True):
    """Whether the candidate is at most `margin` worse, with the one-sided bound that says so."""

    verdict: Verdict
    interval: Interval
    margin: float
    text: str


class Segment(msgspec.Struct, frozen=True):
    """One segment's difference. `harm` is its Holm-adjusted p-value of being worse than the margin."""

    name: str
    interval: Interval
    harm: float
    worse: bool


# --- distributions ------------------------------------------------------------------------------------------------
# scipy is no dependency of palan: the two distributions that are needed stand here, and a test compares them with it.


def beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function by its continued fraction, evaluated with Lentz's method (DLMF 8.17.22)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):  # the fraction converges fast only on this side of the mean
        return 1.0 - beta_cdf(1.0 - x, b, a)
    tiny, c, d, value = 1e-300, 1.0, 0.0, 1.0
    for step in range(400):
        m = step // 2
        if step == 0:
            factor = 1.0
        elif step % 2 == 0:
            factor = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            factor = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1.0 / _away(1.0 + factor * d, tiny)
        c = _away(1.0 + factor / c, tiny)
        value *= c * d
        if step and abs(1.0 - c * d) < 1e-14:
            break
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    return front * (value - 1.0) / a


def _away(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny


def t_cdf(t: float, freedom: float) -> float:
    """Probability that Student's t with this many degrees of freedom is at most `t`."""
    if math.isinf(t):
        return 0.0 if t < 0 else 1.0
    tail = 0.5 * beta_cdf(freedom / (freedom + t * t), freedom / 2.0, 0.5)
    return tail if t < 0 else 1.0 - tail


@lru_cache(maxsize=4096)
def t_quantile(p: float, freedom: float) -> float:
    """Inverse of `t_cdf`, by bisection."""
    if not 0.0 < p < 1.0:
        return -math.inf if p <= 0.0 else math.inf
    if p < 0.5:
        return -t_quantile(1.0 - p, freedom)
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < p and high < 1e12:
        low, high = high, high * 4.0
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if t_cdf(middle, freedom) < p else (low, middle)
    return (low + high) / 2.0


def binomial_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact bounds of a share (Clopper and Pearson 1934); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if successes == 0 else _beta_quantile(tail, successes, trials - successes + 1)
    high = 1.0 if successes == trials else _beta_quantile(1.0 - tail, successes + 1, trials - successes)
    return low, high


def _beta_quantile(p: float, a: float, b: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (middle, high) if beta_cdf(middle, a, b) < p else (low, middle)
    return (low + high) / 2.0


def sign_test(differences: npt.ArrayLike) -> float:
    """Exact one-sided p-value that negative differences (the candidate better) are no more frequent than positive ones.

    Ties are left out (Dixon and Mood 1946). It needs no scale: right for a handful of instances with wild objectives.
    """
    values = _finite(differences)
    better, worse = int((values < 0).sum()), int((values > 0).sum())
    # P(at least `better` heads in better + worse fair tosses) is a beta probability.
    return 1.0 if better == 0 else beta_cdf(0.5, better, worse + 1)


# --- serial dependence --------------------------------------------------------------------------------------------


def serial_correlation(values: Floats) -> float:
    """Correlation of neighbours, corrected for its small-sample bias (Kendall 1954) and held within [0, 0.8].

    Short series understate it by about (1 + 3 rho) / n; a negative value would narrow intervals, so it counts as none.
    """
    n = len(values)
    centred = values - values.mean() if n else values
    spread = float(centred @ centred)
    if n < 5 or spread <= 0.0:
        return 0.0
    raw = float(centred[1:] @ centred[:-1]) / spread
    return min(max((n * raw + 1.0) / (n - 3.0), 0.0), 0.8)


def serial_widening(values: Floats) -> tuple[float, float]:
    """Return the factor on the standard error of a mean of neighbouring values, and the degrees of freedom left.

    Means of correlated values vary as those of n (1 - rho) / (1 + rho) independent ones, and their variance is known
    from n (1 - rho^2) / (1 + rho^2) (Bayley and Hammersley 1946). rho is taken half its standard error above its
    estimate: in simulations with AR(1) days (rho 0 to 0.3, 5 to 60 days) this is what keeps the error rates nominal.
    """
    n = len(values)
    rho = serial_correlation(values)
    rho = min(rho + 0.5 * math.sqrt((1.0 - rho * rho) / n), 0.8)
    inflation = (1.0 + rho) / (1.0 - rho)
    understated = max(1.0 - (inflation - 1.0) / (n - 1.0), 0.3)  # the sample variance of correlated values is too small
    freedom = max(n * (1.0 - rho * rho) / (1.0 + rho * rho) - 1.0, 2.0)
    return math.sqrt(inflation / understated), round(freedom, 1)


# --- intervals ----------------------------------------------------------------------------------------------------


def interval(
    differences: npt.ArrayLike,
    blocks: Sequence[Any] | npt.NDArray[Any] | None = None,
    *,
    confidence: float = 0.95,
    serial: bool = False,
    method: str = "t",
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the mean of paired differences with its confidence interval.

    Args:
        differences: shape (n,), one per decision, finite, in the unit of the loss.
        blocks: shape (n,), the day (or instance) of each; None makes every decision its own block.
        serial: blocks are ordered in time and neighbours may resemble each other: see `serial_widening`.
        method: "t" (linearised ratio of block sums, Cochran 1977, with blocks - 1 degrees of freedom),
            "bootstrap" (studentised bootstrap over blocks, Hall 1992; `resamples` and `seed` make it repeatable), or
            "exact" (differences in {-1, 0, 1}: Clopper-Pearson on the decisions that differ; ignores blocks).

    Raises:
        PalanError: a difference is not finite, or the two lengths differ.
    """
    values = _finite(differences)
    if method == "exact":
        return _exact(values, confidence)
    sums, counts = _by_block(values, blocks)
    n, b = len(values), len(sums)
    mean = float(values.mean()) if n else 0.0
    if b < FEWEST_BLOCKS:
        return Interval(mean, -math.inf, math.inf, confidence, n, b, math.inf, method)
    error = _error(sums, counts)
    factor, freedom = serial_widening((sums - mean * counts) / counts.mean()) if serial else (1.0, b - 1.0)
    error *= factor
    tail = (1.0 - confidence) / 2.0
    if method == "t" or error == 0.0:
        reach = t_quantile(1.0 - tail, freedom) * error
        return Interval(mean, mean - reach, mean + reach, confidence, n, b, error, "t", freedom)
    if method != "bootstrap":
        raise PalanError(f'no method "{method}" for an interval', "use t, bootstrap or exact")
    scores = _bootstrap_scores(sums, counts, mean, resamples, seed)
    low, high = np.quantile(scores, [tail, 1.0 - tail])
    return Interval(mean, mean - float(high) * error, mean - float(low) * error, confidence, n, b, error, method, freedom)


def _finite(differences: npt.ArrayLike) -> Floats:
    values = np.asarray(differences, dtype=np.float64).reshape(-1)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise PalanError(f"{bad} of {len(values)} paired losses are not finite numbers", "make score() return a finite loss for every decision")
    return values


def _by_block(values: Floats, blocks: Sequence[Any] | npt.NDArray[Any] | None) -> tuple[Floats, Floats]:
    if blocks is None:
        return values, np.ones_like(values)
    labels = np.asarray(blocks)
    if len(labels) != len(values):
        raise PalanError(f"{len(values)} losses but {len(labels)} blocks", "give one block for each decision")
    _, codes = np.unique(labels, return_inverse=True)
    codes = codes.reshape(-1)
    return np.bincount(codes, weights=values).astype(np.float64), np.bincount(codes).astype(np.float64)


def _error(sums: Floats, counts: Floats) -> float:
    """Standard error of a mean whose rows come in blocks of unequal size."""
    b, n = len(sums), counts.sum()
    residual = sums - sums.sum() / n * counts
    return math.sqrt(b / (b - 1.0) * float(residual @ residual)) / float(n)


def _bootstrap_scores(sums: Floats, counts: Floats, mean: float, resamples: int, seed: int) -> Floats:
    b = len(sums)
    drawn = np.random.default_rng(seed).integers(0, b, size=(resamples, b))
    s, c = sums[drawn], counts[drawn]
    total = c.sum(axis=1)
    means = s.sum(axis=1) / total
    residual = s - means[:, None] * c
    errors = np.sqrt(b / (b - 1.0) * (residual**2).sum(axis=1)) / total
    return (means - mean) / np.maximum(errors, 1e-300)  # type: ignore[no-any-return]


def _exact(values: Floats, confidence: float) -> Interval:
    if not np.isin(values, (-1.0, 0.0, 1.0)).all():
        raise PalanError("an exact interval needs losses of 0 or 1", "use the t method for other losses")
    n, worse, better = len(values), int((values > 0).sum()), int((values < 0).sum())
    differ = worse + better
    if n == 0:
        return Interval(0.0, -math.inf, math.inf, confidence, 0, 0, math.inf, "exact")
    low, high = binomial_interval(worse, differ, confidence)
    share = differ / n if differ else binomial_interval(0, n, confidence)[1]
    mean = (worse - better) / n
    error = math.sqrt(max(differ / n - mean * mean, 0.0) / n)
    return Interval(mean, (2 * low - 1) * share, (2 * high - 1) * share, confidence, n, n, error, "exact", max(n - 1.0, 1.0))


# --- verdicts -----------------------------------------------------------------------------------------------------


def non_inferior(
    candidate: npt.ArrayLike,
    champion: npt.ArrayLike,
    *,
    margin: float = 0.0,
    blocks: Sequence[Any] | npt.NDArray[Any] | None = None,
    confidence: float = 0.95,
    serial: bool = False,
) -> Judgement:
    """Judge whether the candidate's mean loss is at most `margin` above the champion's.

    pass: the upper one-sided bound of the difference is within the margin. With margin 0 a candidate that is as good
    as the champion passes in at most 1 - confidence of all trials; a negative margin asks it to be better by that much.
    fail: the lower bound is beyond the margin. Otherwise: cannot tell.

    Args:
        candidate, champion: shape (n,), the losses on the same decisions in the same order.
    """
    first, second = np.asarray(candidate, dtype=np.float64), np.asarray(champion, dtype=np.float64)
    if first.shape != second.shape:
        raise PalanError(f"{first.size} losses of the candidate but {second.size} of the champion", "replay both over the same decisions")
    differences = _finite(first - second)
    # One-sided at `confidence` is two-sided at twice the tail.
    method = "exact" if blocks is None and len(differences) and _binary(first) and _binary(second) else "t"
    found = interval(differences, blocks, confidence=2 * confidence - 1, serial=serial, method=method)
    verdict, text = _verdict(found, differences, margin)
    return Judgement(verdict, found, margin, text)


def gained(value: float, unit: str = "", digits: int = 3) -> str:
    """Say a gain as a positive number with its verb: "gained 0.016", "lost 0.004"."""
    return f"{'gained' if value >= 0 else 'lost'} {figure(abs(value), digits)} {unit}".rstrip()


def between(low: float, high: float) -> str:
    """Say an interval of gains in positive numbers."""
    if low >= 0:
        return f"a gain of {figure(low, 3)} to {figure(high, 3)}"
    if high <= 0:
        return f"a loss of {figure(-high, 3)} to {figure(-low, 3)}"
    return f"a loss of {figure(-low, 3)} to a gain of {figure(high, 3)}"


def told(low: float, gain: float, high: float, against: str, unit: str = "") -> str:
    """Say what something gained or lost a decision against something else, with its 90% interval."""
    if not math.isfinite(low) or not math.isfinite(high):
        return f"{gained(gain, unit)} a decision against {against}, over too few days to tell it from chance"
    if low <= 0 <= high:
        return f"no measurable difference from {against}: {gained(gain, unit)} a decision by the estimate (90% interval: {between(low, high)})"
    return f"{gained(gain, unit)} a decision against {against} (90% interval: {between(low, high)})"


def _binary(values: Floats) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _verdict(found: Interval, differences: Floats, margin: float) -> tuple[Verdict, str]:
    if found.blocks < FEWEST_BLOCKS:
        return "cannot tell", f"{found.blocks} blocks of outcomes are too few to compare (at least {FEWEST_BLOCKS})"
    if not differences.any():
        same: Verdict = "pass" if margin >= 0 else "fail"
        return same, f"the same loss on all {found.rows} decisions"
    spread = f"{gained(-found.mean)} a decision ({between(-found.high, -found.low)})"
    if found.high <= margin:
        return "pass", f"{'better than' if found.high < 0 else 'not worse than'} the champion: {spread}"
    if found.low > margin:
        return "fail", f"worse than the champion by more than the margin {margin:g}: {spread}"
    return "cannot tell", f"the evidence allows both sides of the margin {margin:g}: {spread}"


def by_segment(
    differences: npt.ArrayLike,
    segments: Sequence[Any] | npt.NDArray[Any],
    *,
    margin: float = 0.0,
    blocks: Sequence[Any] | npt.NDArray[Any] | None = None,
    confidence: float = 0.95,
    serial: bool = False,
) -> list[Segment]:
    """Judge each segment's mean difference, worst first; `worse` where harm beyond the margin is shown.

    Many segments give many chances to look bad by luck: p-values are adjusted by Holm (1979), so the chance of naming
    any harmless segment stays below 1 - confidence. Segments with too few blocks are listed but never named.
    """
    values = _finite(differences)
    labels = np.array([str(name) for name in segments], dtype=str)
    days = None if blocks is None else np.asarray(blocks)
    found: list[tuple[str, Interval, float]] = []
    for label in np.unique(labels).tolist():
        here = labels == label
        part = interval(values[here], None if days is None else days[here], confidence=2 * confidence - 1, serial=serial)
        found.append((label, part, _harm(part, margin)))
    adjusted = holm([harm for _, _, harm in found])
    judged = [Segment(label, part, p, p < 1.0 - confidence) for (label, part, _), p in zip(found, adjusted, strict=True)]
    return sorted(judged, key=lambda segment: (segment.harm, -segment.interval.mean))


def _harm(part: Interval, margin: float) -> float:
    """One-sided p-value that the mean is not above the margin."""
    if part.blocks < FEWEST_BLOCKS:
        return 1.0
    if part.error == 0.0:
        return 0.0 if part.mean > margin else 1.0
    return 1.0 - t_cdf((part.mean - margin) / part.error, part.freedom)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that the chance of any false rejection is held (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


# --- sizes and times ----------------------------------------------------------------------------------------------


def shifted_geometric_mean(values: npt.ArrayLike, shift: float = 1.0) -> float:
    """exp(mean(log(v + shift))) - shift: neither the tiny nor the huge instances decide alone (Achterberg 2007).

    Raises:
        PalanError: no values, or a value that is not above -shift.
    """
    array = _finite(values)
    if not len(array) or array.min() <= -shift:
        raise PalanError(f"a shifted geometric mean needs values above {-shift:g}", "use a larger shift")
    return float(np.exp(np.log(array + shift).mean()) - shift)


def geometric_ratio(candidate: npt.ArrayLike, champion: npt.ArrayLike, *, shift: float = 1.0, confidence: float = 0.95) -> Interval:
    """Return by what factor the candidate's values (seconds, gaps) are larger, paired over instances, with an interval."""
    first, second = _finite(candidate), _finite(champion)
    if min(first.min(initial=0.0), second.min(initial=0.0)) <= -shift:
        raise PalanError(f"a geometric ratio needs values above {-shift:g}", "use a larger shift")
    logs = interval(np.log(first + shift) - np.log(second + shift), confidence=confidence)
    return Interval(math.exp(logs.mean), math.exp(logs.low), math.exp(min(logs.high, 700.0)), confidence, logs.rows, logs.blocks, logs.error, "log t", logs.freedom)
