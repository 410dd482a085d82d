"""Alarms that are calibrated on what is normal here, with one knob: the budget of false pages.

What is normal is measured on the reference's own windows, of the same length as those that will be judged: how far each
lies from the rest, and how its loss varied. Thresholds are the bounds that a next window of the same kind exceeds with
the budgeted probability. A page needs harm (loss clearly above normal, by an amount that matters) or a data fault;
a moved column alone is news for the digest, however significant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec
import numpy as np

from palan.core import figure
from palan.drift.compare import distance
from palan.drift.profile import ColumnProfile, Profile, merge
from palan.errors import PalanError
from palan.gates.paired import serial_correlation, t_cdf, t_quantile

FEWEST_WINDOWS = 5
"""With fewer windows than this a threshold would be a guess: palan says that it is still learning."""

Lane = Literal["page", "digest", "none"]
Form = Literal["plain", "log", "logit"]
"""On which scale a figure varies evenly: as it is, by factors (losses, volumes), or as a share between 0 and 1."""


class Fault(Protocol):
    """A hypothesis of the data doctor, as far as judging needs it."""

    @property
    def confidence(self) -> float: ...
    @property
    def text(self) -> str: ...


class LossWindow(msgspec.Struct, frozen=True, kw_only=True):
    """The mean loss of one window: over `rows` decisions with known outcomes; `error` its standard error if known."""

    mean: float
    rows: int = 0
    error: float | None = None


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """What is normal for one figure, and how far the next value may lie from it.

    A value x, brought to the scale of `form`, is judged by t = (x - center) / scale with `freedom` degrees of freedom.
    `scale` includes the uncertainty of the center. `noise` is the usual sampling error contained in it. `upper` and
    `lower` are in the figure's own unit.
    """

    center: float
    scale: float
    freedom: float
    form: Form
    windows: int
    upper: float
    lower: float
    noise: float = 0.0

    @property
    def usual(self) -> float:
        return _back(self.center, self.form)


def _onto(value: float, form: Form) -> float:
    if form == "logit":
        return math.log(value / (1.0 - value))
    return math.log(value) if form == "log" else value


def _back(value: float, form: Form) -> float:
    if form == "logit":
        return 1.0 / (1.0 + math.exp(-max(value, -700.0)))
    return math.exp(min(value, 700.0)) if form == "log" else value


def _stretch(value: float, form: Form) -> float:
    """By how much a small error of the value counts on the scale of the form."""
    if form == "logit":
        return 1.0 / (value * (1.0 - value))
    return 1.0 / value if form == "log" else 1.0


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that judging a window needs. `budget` is the chance of a false page per window; `learning` says why
    (parts of) it cannot judge yet, or is empty."""

    profile: Profile | None
    columns: dict[str, Level]
    loss: Level | None
    rows: Level | None
    windows: int
    budget: float
    relevant: float
    least_move: float
    learning: str = ""


@dataclass(frozen=True, slots=True)
class ColumnShift:
    """How far one column lies from the reference: `distance` is the share of rows that moved, `p` its tail probability."""

    name: str
    distance: float
    threshold: float
    usual: float
    p: float
    changed: bool
    text: str


@dataclass(frozen=True, slots=True)
class Judged:
    """One window's verdict. `columns` are ranked, most unusual first; figures are None where nothing can be said."""

    lane: Lane
    text: str
    columns: tuple[ColumnShift, ...] = ()
    loss: float | None = None
    loss_usual: float | None = None
    loss_threshold: float | None = None
    loss_high: bool = False
    rows: int | None = None
    rows_usual: float | None = None
    volume_unusual: bool = False
    learning: str = ""

    @property
    def changed(self) -> tuple[ColumnShift, ...]:
        return tuple(column for column in self.columns if column.changed)


def level(
    values: Sequence[float], tail: float, *, errors: Sequence[float | None] = (), form: Form | None = None, least: float = 0.0, serial: bool = True
) -> Level:
    """Return the bounds which the next value of the series exceeds with probability `tail` (on each side).

    A prediction interval from Student's t (Hahn and Meeker 1991). It is honest with a dozen weeks: bounds widen as
    windows get fewer. With `serial`, weeks that resemble their neighbours tell less than their number: the degrees of
    freedom and the error of the mean follow Bayley and Hammersley (1946), the correlation is corrected for its
    small-sample bias (Kendall 1954).

    Args:
        values: one a window, oldest first.
        errors: their standard errors, where known.
        form: the scale; by default "log" where all values are positive, since a loss varies by factors.
        least: no smaller spread (on that scale) is believed: a handful of windows can agree by chance.

    Raises:
        PalanError: fewer than `FEWEST_WINDOWS` values, or one that is not finite.
    """
    if len(values) < FEWEST_WINDOWS:
        raise PalanError(f"{len(values)} windows are too few to know what is normal", f"wait for {FEWEST_WINDOWS} windows, or shorten the window")
    if not all(math.isfinite(value) for value in values):
        raise PalanError("the loss of a window is not a finite number", "make score() return a finite loss for every decision")
    scale_of: Form = form or ("log" if min(values) > 0.0 else "plain")
    series = np.array([_onto(value, scale_of) for value in values], dtype=np.float64)
    n = len(series)
    rho = serial_correlation(series) if serial else 0.0
    inflation = (1.0 + rho) / (1.0 - rho)
    understated = max(1.0 - (inflation - 1.0) / (n - 1.0), 0.3)
    center, spread = float(series.mean()), float(series.std(ddof=1)) / math.sqrt(understated)
    freedom = round(max(n * (1.0 - rho * rho) / (1.0 + rho * rho) - 1.0, 2.0), 1) if serial else n - 1.0
    scale = max(spread * math.sqrt(1.0 + inflation / n), least, 1e-9 * max(1.0, abs(center)))
    reach = t_quantile(1.0 - tail, freedom) * scale
    noises = [error * _stretch(value, scale_of) for error, value in zip(errors, values, strict=False) if error is not None]
    return Level(
        center=center,
        scale=scale,
        freedom=freedom,
        form=scale_of,
        windows=n,
        upper=_back(center + reach, scale_of),
        lower=_back(center - reach, scale_of),
        noise=float(np.median(noises)) if noises else 0.0,
    )


def calibrate(
    windows: Sequence[Profile],
    losses: Sequence[LossWindow | float] | None = None,
    *,
    budget: float,
    relevant: float = 0.05,
    least_move: float = 0.02,
) -> Thresholds:
    """Learn from the reference's own windows what is normal.

    Args:
        windows: profiles of consecutive windows of the reference, oldest first, each as long as those to be judged.
        losses: their mean losses where outcomes are known, oldest first, measured on decisions the model was not
            fitted on; None where there are none.
        budget: the chance of a false page per window: "1 per 180d" with windows of 7 days is 7 / 180.
        relevant: a loss pages only if it is also this fraction above its usual level.
        least_move: a column counts as changed only if at least this share of its rows moved.

    Columns are judged at budget / number of columns (Bonferroni), each on the log-odds of its windows' distances from
    all other windows together: a tail far beyond the few windows seen, extrapolated by the t distribution. Season
    within the reference counts as normal variation; a reference of a few months cannot know the other months.

    Raises:
        PalanError: the budget is not between 0 and 1, or the profiles do not belong together.
    """
    if not 0.0 < budget < 1.0:
        raise PalanError(f"a budget of {budget:g} false pages per window cannot be kept", "set false_pages below one per window, for example 1 per 180d")
    told = [item if isinstance(item, LossWindow) else LossWindow(mean=float(item)) for item in losses or ()]
    whole = merge(windows) if windows else None
    columns: dict[str, Level] = {}
    rows: Level | None = None
    if whole is not None and len(windows) >= FEWEST_WINDOWS:
        tail = budget / max(len(whole.columns), 1)
        columns = {name: _column_level(name, windows, whole, tail) for name in whole.columns}
        rows = level([max(window.rows, 1) for window in windows], budget / 2.0, least=0.05)
    loss = level([item.mean for item in told], budget, errors=[item.error for item in told]) if len(told) >= FEWEST_WINDOWS else None
    missing = [] if columns else [f"{len(windows)} of {FEWEST_WINDOWS} windows of inputs"]
    missing += [] if loss or losses is None else [f"{len(told)} of {FEWEST_WINDOWS} windows of outcomes"]
    return Thresholds(
        profile=whole,
        columns=columns,
        loss=loss,
        rows=rows,
        windows=len(windows),
        budget=budget,
        relevant=relevant,
        least_move=least_move,
        learning="seen " + " and ".join(missing) if missing else "",
    )


def _column_level(name: str, windows: Sequence[Profile], whole: Profile, tail: float) -> Level:
    together = whole.columns[name]
    apart = [_within(distance(_without(together, window.columns[name]), window.columns[name]), window) for window in windows]
    # Both ends of a drifting reference lie far from the rest: their likeness is no serial dependence.
    return level(apart, tail, form="logit", least=0.15, serial=False)


def _within(distance: float, window: Profile) -> float:
    """Keep a distance half a row away from 0 and 1, where log-odds have no value."""
    edge = 0.5 / max(window.rows, 1)
    return min(max(distance, edge), 1.0 - edge) if edge < 0.5 else 0.5


def _without(whole: ColumnProfile, part: ColumnProfile) -> ColumnProfile:
    """Take one window out of the sum again."""
    return ColumnProfile(
        n=whole.n - part.n,
        nulls=whole.nulls - part.nulls,
        counts=(np.asarray(whole.counts) - np.asarray(part.counts)).tolist(),
        sums=(np.asarray(whole.sums) - np.asarray(part.sums)).tolist() if whole.sums else [],
    )


def tail_probability(found: Level, value: float, *, error: float | None = None) -> float:
    """Probability that a normal window lies above `value`; a window noisier than usual (its `error`) is given more room."""
    if found.form != "plain" and value <= 0.0:
        return 1.0
    noise = 0.0 if error is None else error * _stretch(value, found.form)
    scale = math.sqrt(found.scale**2 + max(0.0, noise**2 - found.noise**2))
    return 1.0 - t_cdf((_onto(value, found.form) - found.center) / scale, found.freedom)


def judge(
    window: Profile | None,
    loss: LossWindow | None,
    thresholds: Thresholds,
    hypotheses: Sequence[Fault] = (),
    *,
    sure: float = 0.5,
    unit: str = "",
) -> Judged:
    """Judge one window: page, digest or none, with the reason in a sentence.

    page: the loss is above its threshold and at least `relevant` above its usual level, or a data fault is found with
    confidence `sure` or more. digest: a column moved, the volume is unusual, or the loss rose by too little to matter.
    `window` and `loss` are None where nothing was served or no outcome is known yet. `unit` is what the loss counts.
    """
    columns = _columns(window, thresholds) if window is not None and window.rows else ()
    moved = [column for column in columns if column.changed]
    faults = sorted((fault for fault in hypotheses if fault.confidence >= sure), key=lambda fault: -fault.confidence)
    figures: dict[str, Any] = {"columns": columns, "learning": thresholds.learning}
    said: list[str] = []
    lane: Lane = "none"
    if moved or faults:
        lane = "digest"
    if window is not None and thresholds.rows is not None:
        odd = not thresholds.rows.lower <= max(window.rows, 0.5) <= thresholds.rows.upper
        figures |= {"rows": window.rows, "rows_usual": thresholds.rows.usual, "volume_unusual": odd}
        if odd:
            lane = "digest"
            said.append(f"{window.rows:,} decisions where {thresholds.rows.usual:,.0f} are usual")
    if loss is not None and thresholds.loss is not None:
        high, harm, text = _loss(loss, thresholds, unit)
        figures |= {"loss": loss.mean, "loss_usual": thresholds.loss.usual, "loss_threshold": thresholds.loss.upper, "loss_high": high}
        lane = "page" if harm else "digest" if high else lane
        said.insert(0, text)
    elif loss is not None:
        figures["loss"] = loss.mean
    if faults:
        lane = "page"
        said.insert(0, faults[0].text)
    if moved:
        said.append(f"{len(moved)} of {len(columns)} columns moved, most {moved[0].text}")
    if not said:
        said.append(f"still learning what is normal: {thresholds.learning}" if thresholds.learning else "as usual")
    return Judged(lane=lane, text="; ".join(said), **figures)


def _loss(loss: LossWindow, thresholds: Thresholds, unit: str) -> tuple[bool, bool, str]:
    usual = thresholds.loss
    assert usual is not None
    p = tail_probability(usual, loss.mean, error=loss.error)
    high = p < thresholds.budget
    rise = loss.mean - usual.usual
    harm = high and rise >= thresholds.relevant * abs(usual.usual)
    text = f"{amount(loss.mean, unit)} a decision, {compared(loss.mean, usual.usual)} (limit {figure(usual.upper)})"
    if harm:
        return True, True, text
    return high, False, text + (": too small a rise to matter" if high else ": normal")


def amount(loss: float, unit: str) -> str:
    """Return a loss with its unit, if it has one: "loss 4,560 minutes"."""
    return f"loss {figure(loss)} {unit}".rstrip()


def compared(value: float, usual: float) -> str:
    """Say where a figure lies, as a positive number with a word: "37% above the usual 0.4879"."""
    change = abs(value - usual) / abs(usual) if usual else 0.0
    if usual and change < 0.005:
        return f"as usual ({figure(usual)})"
    apart = f"{change:,.0%}" if usual else figure(abs(value - usual))
    return f"{apart} {'above' if value > usual else 'below'} the usual {figure(usual)}"


def _columns(window: Profile, thresholds: Thresholds) -> tuple[ColumnShift, ...]:
    if thresholds.profile is None or not thresholds.columns:
        return ()
    if window.reference != thresholds.profile.reference:
        raise PalanError("this window was counted into other bins than the reference", "profile it again with the version's reference")
    typical = thresholds.profile.rows / max(thresholds.windows, 1)
    # Sampling noise of a distance falls with the root of the rows: a small window is not unusual for being rough.
    rough = math.sqrt(max(1.0, typical / max(window.rows, 1)))
    tail = thresholds.budget / max(len(thresholds.columns), 1)
    shifts = []
    for name, normal in thresholds.columns.items():
        before, after = thresholds.profile.columns[name], window.columns[name]
        moved = _within(distance(before, after), window)
        p = tail_probability(normal, moved / rough)
        changed = p < tail and moved >= thresholds.least_move
        shifts.append(ColumnShift(name, moved, min(max(normal.upper * rough, thresholds.least_move), 1.0), normal.usual, p, changed, _sentence(name, before, after, moved)))
    return tuple(sorted(shifts, key=lambda shift: (not shift.changed, shift.p, -shift.distance)))


def _sentence(name: str, before: ColumnProfile, after: ColumnProfile, moved: float) -> str:
    """What changed in a column, in the fewest words."""
    nulls = (before.nulls / max(before.n + before.nulls, 1), after.nulls / max(after.n + after.nulls, 1))
    if abs(nulls[1] - nulls[0]) >= 0.5 * moved:
        return f"{name} (empty in {nulls[0]:.1%} of the rows, now {nulls[1]:.1%})"
    if before.mean is not None and after.mean is not None:
        return f"{name} ({moved:.0%} of its rows; mean {figure(before.mean)}, now {figure(after.mean)})"
    return f"{name} ({moved:.0%} of its rows)"
