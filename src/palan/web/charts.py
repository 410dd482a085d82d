"""Charts as SVG text, drawn on the server: no script, no inline style, readable at any width.

Each chart is an outer `<svg>` of full width and fixed height whose texts sit at percentages, so they keep their size on
a telephone, around an inner `<svg>` that stretches, whose strokes do not. Colours come from the style sheet by class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from html import escape
from itertools import pairwise
from typing import Any

from palan.core import figure, unstamp
from palan.web.views import IncumbentLine, Loss, Mark, Series

_WIDTH = 1000  # of the inner drawing, in its own units
_HIGHEST = 1e300  # beyond, the span of a chart would be infinite
_FEW = 20  # lines up to which each is drawn with its extremes
_LANE = 16  # pixels of one line of labels over a chart
_LANES = 5
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def number(value: float | int | None, digits: int = 3) -> str:
    """Return a figure as the sentences have it (see `core.figure`), with a true minus; `–` where nothing is known."""
    if value is None or not math.isfinite(value):
        return "–"
    return figure(value, digits).replace("-", "\u2212")


def fixed(value: float | None, scale: tuple[float, float]) -> str:
    """Return a figure with the decimals that a column of this scale needs, so that its points stand in one line."""
    if value is None or not math.isfinite(value):
        return "–"
    largest = max(abs(scale[0]), abs(scale[1]))
    decimals = min(8, max(0, 2 - math.floor(math.log10(largest)))) if largest > 0 else 0
    text = f"{value:,.{decimals}f}"
    return "0" if not float(text.replace(",", "")) else text.replace("-", "\u2212")


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round values inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = min((power * factor for factor in (1, 2, 2.5, 5, 10)), key=lambda candidate: abs(candidate - raw))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def time_ticks(first: datetime, last: datetime) -> list[tuple[datetime, str]]:
    """Return at most seven moments between the two, with their labels: hours, days, or months."""
    span = last - first
    if span <= timedelta(days=2):
        step = next((hours for hours in (1, 2, 3, 6, 12) if span <= timedelta(hours=hours * 6)), 12)
        moment = first.replace(minute=0, second=0, microsecond=0)
        moments = [moment + timedelta(hours=step * index) for index in range(9)]
        return [(at, f"{at:%H:%M}") for at in moments if first <= at <= last]
    if span <= timedelta(days=75):
        step = next(days for days in (1, 2, 3, 4, 5, 7, 14) if span <= timedelta(days=days * 6))
        moment = first.replace(hour=0, minute=0, second=0, microsecond=0)
        moments = [moment + timedelta(days=step * index) for index in range(9)]
        return [(at, f"{at.day} {_MONTHS[at.month - 1]}") for at in moments if first <= at <= last]
    months = span.days / 30.44
    step = next((size for size in (1, 2, 3, 6, 12, 24, 60) if months <= size * 6), 120)
    index = first.year * 12 + first.month - 1
    index -= index % step
    found = []
    while (at := datetime(index // 12, index % 12 + 1, 1, tzinfo=UTC)) <= last:
        label = str(at.year) if at.month == 1 else _MONTHS[at.month - 1]
        found.append((at, label))
        index += step
    return [(max(at, first), label) for at, label in found if at >= first - span * 0.01]


def _paths(points: Sequence[tuple[float, float] | None], digits: int = 1) -> list[str]:
    """Return one path per unbroken stretch; a lonely point becomes a dash that can be seen."""
    paths: list[str] = []
    stretch: list[tuple[float, float]] = []
    for point in [*points, None]:
        if point is not None:
            stretch.append(point)
        elif stretch:
            if len(stretch) == 1:
                x, y = stretch[0]
                stretch = [(x - 1, y), (x + 1, y)]
            paths.append("M" + "L".join(f"{x:.{digits}f} {y:.{digits}f}" for x, y in stretch))
            stretch = []
    return paths


def _draw(paths: Iterable[str], css: str, clip: str = "") -> str:
    data = "".join(paths)
    extra = f' clip-path="url(#{clip})"' if clip else ""
    return f'<path class="{css}" d="{data}" vector-effect="non-scaling-stroke"{extra}/>' if data else ""


def _open(css: str, height: int, key: str, title: str, description: str = "") -> str:
    more = f'<desc id="{key}-d">{escape(description)}</desc>' if description else ""
    ids = f"{key}-t {key}-d" if description else f"{key}-t"
    return (
        f'<svg class="chart {css}" width="100%" height="{height}" role="img" aria-labelledby="{ids}">'
        f'<title id="{key}-t">{escape(title)}</title>{more}'
    )


def _axis(marks: Iterable[tuple[float, str]], height: int) -> str:
    """Return the column of figures that stands left of a chart."""
    texts = "".join(f'<text class="tick" x="100%" dx="-8" y="{y + 4:.1f}" text-anchor="end">{label}</text>' for y, label in marks)
    return f'<svg class="chart axis" width="100%" height="{height}" aria-hidden="true">{texts}</svg>'


def _inner(y: float, height: float, content: str) -> str:
    return (
        f'<svg x="0" y="{y:g}" width="100%" height="{height:g}" viewBox="0 0 {_WIDTH} {height:g}" '
        f'preserveAspectRatio="none" overflow="visible">{content}</svg>'
    )


def bars(series: Series, *, key: str, title: str, height: int = 30) -> str:
    """Return a small bar for each value, from zero; what is not known leaves a gap."""
    values = series["values"]
    known = [value for value in values if value is not None]
    if not known:
        return ""
    top, slot = max(known) or 1.0, _WIDTH / len(values)
    rects = "".join(
        f'<rect x="{index * slot + slot * 0.12:.1f}" y="{height - max(1.0, value / top * height):.1f}" '
        f'width="{slot * 0.76:.1f}" height="{max(1.0, value / top * height):.1f}"/>'
        for index, value in enumerate(values)
        if value is not None
    )
    return f"{_open('spark bars', height, key, title)}{_inner(0, height, rects)}</svg>"


def shares(values: Sequence[float], *, key: str, title: str, height: int = 26) -> str:
    """Return how values lie: a bar for the share of each of their equal bins."""
    return bars({"times": [], "values": list(values)}, key=key, title=title, height=height).replace("spark bars", "shares", 1)


def trend(loss: Loss, *, key: str, title: str, height: int = 30) -> str:
    """Return the loss as a small line with its threshold; what lies above the threshold is drawn as harm."""
    values, threshold = loss["values"], loss["threshold"]
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = _range([*known, *([threshold] if threshold is not None else [])], 0.1)
    step = _WIDTH / max(1, len(values) - 1)
    points = [(index * step, _y(value, low, high, height)) if value is not None else None for index, value in enumerate(values)]
    paths = _paths(points)
    inner = _draw(paths, "line")
    outer = ""
    if threshold is not None:
        y = _y(threshold, low, high, height)
        clip = f"{key}-c"
        inner = (
            f'<clipPath id="{clip}"><rect x="-5" y="-9" width="{_WIDTH + 10}" height="{y + 9:.1f}"/></clipPath>'
            f"{inner}{_draw(paths, 'line harm', clip)}"
        )
        outer = f'<line class="limit" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
    last = next(index for index in range(len(values) - 1, -1, -1) if values[index] is not None)
    value = values[last] or 0.0
    css = "dot harm" if threshold is not None and value > threshold else "dot"
    outer += f'<circle class="{css}" cx="{last * step / _WIDTH:.2%}" cy="{_y(value, low, high, height):.1f}" r="2.5"/>'
    return f"{_open('spark', height, key, title)}{_inner(0, height, inner)}{outer}</svg>"


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = (high - low) * margin or abs(high) * margin or 1.0
    return low - pad, high + pad


def _y(value: float, low: float, high: float, height: float) -> float:
    return height - (value - low) / (high - low) * height


def lanes(marks: Sequence[tuple[float, str]]) -> list[int | None]:
    """Give each label (at x from 0 to 1, in order) the lowest line where it covers no other; None where there is no room.

    A character takes 2.1 % of the narrowest chart that we promise to be readable (330 px).
    """
    ends = [-1.0] * _LANES
    found: list[int | None] = []
    for x, label in marks:
        width = (len(label) + 2) * 0.021
        start = x - width if x + width > 1 else x
        lane = next((index for index, end in enumerate(ends) if end <= start), None)
        found.append(lane)
        if lane is not None:
            ends[lane] = start + width
    return found


def line(loss: Loss, *, key: str, title: str, height: int = 190) -> str:
    """Return the loss over time with interval, threshold, and the moments when something was done."""
    values = loss["values"]
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return ""
    times = [unstamp(time) for time in loss["times"]]
    first, last = times[0], times[-1]
    seconds = (last - first).total_seconds() or 1.0
    threshold = loss["threshold"]
    low_side, high_side = loss.get("low", []), loss.get("high", [])
    shown = [*known, *(value for value in [*low_side, *high_side, threshold] if value is not None)]
    low, high = _range(shown, 0.08)

    def x(time: datetime) -> float:
        return (time - first).total_seconds() / seconds

    marks = sorted(((x(unstamp(mark["time"])), mark) for mark in loss["marks"]), key=lambda pair: pair[0])
    marks = [(at, mark) for at, mark in marks if 0 <= at <= 1]
    rows = lanes([(at, mark["label"]) for at, mark in marks])
    top = 6 + _LANE * (1 + max((row for row in rows if row is not None), default=-1))

    def y(value: float) -> float:
        return _y(value, low, high, height)

    levels = ticks(low, high)
    grid = "".join(f'<line class="grid" x1="0" x2="100%" y1="{top + y(tick):.1f}" y2="{top + y(tick):.1f}"/>' for tick in levels)
    axis = "".join(
        f'<text class="tick" x="{x(at):.2%}" y="{top + height + 16}" text-anchor="{_anchor(x(at))}">{label}</text>'
        f'<line class="notch" x1="{x(at):.2%}" x2="{x(at):.2%}" y1="{top + height}" y2="{top + height + 4}"/>'
        for at, label in time_ticks(first, last)
    )
    points = [(x(time) * _WIDTH, y(value)) if value is not None else None for time, value in zip(times, values, strict=True)]
    paths = _paths(points)
    sides = zip(times, low_side, high_side, strict=True) if low_side and high_side else ()
    inner = _band([(x(time) * _WIDTH, y(a), y(b)) if a is not None and b is not None else None for time, a, b in sides]) + _draw(paths, "line")
    over = ""
    if threshold is not None:
        clip = f"{key}-c"
        inner = (
            f'<clipPath id="{clip}"><rect x="-5" y="-99" width="{_WIDTH + 10}" height="{y(threshold) + 99:.1f}"/></clipPath>'
            f"{inner}{_draw(paths, 'line harm', clip)}"
        )
        over = (
            f'<line class="limit" x1="0" x2="100%" y1="{top + y(threshold):.1f}" y2="{top + y(threshold):.1f}"/>'
            f'<text class="limit-label" x="0" dx="4" y="{top + y(threshold) - 5:.1f}">alarm above {number(threshold)}</text>'
        )
    flags = "".join(_flag(at, mark, row, top, height) for (at, mark), row in zip(marks, rows, strict=True))
    description = f"{len(known)} values from {first:%Y-%m-%d} to {last:%Y-%m-%d}, between {number(min(known))} and {number(max(known))} {loss['unit']}, the last {number(known[-1])}."
    if threshold is not None:
        description += f" An alarm opens above {number(threshold)}; {sum(value > threshold for value in known)} values lie above it."
    scale = _axis([(top + y(tick), label) for tick, label in zip(levels, labels(levels), strict=True)], top + height + 22)
    return f"<div class=\"plot-area\">{scale}{_open('line-chart', top + height + 22, key, title, description)}{grid}{flags}{_inner(top, height, inner)}{over}{axis}</svg></div>"


def labels(values: Sequence[float]) -> list[str]:
    """Return the texts of an axis: all with the fewest decimals that tell them apart exactly."""
    decimals = next((digits for digits in range(8) if all(abs(round(value, digits) - value) < 1e-9 + abs(value) * 1e-6 for value in values)), 8)
    return [f"{value:,.{decimals}f}".replace("-", "\u2212") if value else "0" for value in values]


def _anchor(x: float) -> str:
    return "start" if x < 0.03 else "end" if x > 0.96 else "middle"


def _flag(x: float, mark: Mark, row: int | None, top: int, height: int) -> str:
    css = mark["kind"].replace(" ", "-")
    start = 0 if row is None else top - 6 - _LANE * row - _LANE + 4
    text = ""
    if row is not None:
        end = x + (len(mark["label"]) + 2) * 0.021 > 1
        shift, anchor = (-5, "end") if end else (5, "start")
        text = f'<text class="flag {css}" x="{x:.2%}" dx="{shift}" y="{start + 9}" text-anchor="{anchor}">{escape(mark["label"])}</text>'
    else:
        start = top
    return (
        f'<g><title>{escape(mark["kind"])} {escape(mark["label"])} {escape(mark["time"][:10])}</title>'
        f'<line class="mark-line {css}" x1="{x:.2%}" x2="{x:.2%}" y1="{start}" y2="{top + height}"/>{text}</g>'
    )


def _band(points: Sequence[tuple[float, float, float] | None]) -> str:
    """Return the area between (x, low, high) points, broken where one is not known."""
    found, stretch = "", []
    for point in [*points, None]:
        if point is not None:
            stretch.append(point)
            continue
        if len(stretch) > 1:
            ahead = [f"{x:.1f} {high:.1f}" for x, _, high in stretch]
            back = [f"{x:.1f} {low:.1f}" for x, low, _ in reversed(stretch)]
            found += f"M{'L'.join([*ahead, *back])}Z"
        stretch = []
    return f'<path class="band" d="{found}"/>' if found else ""


def steps(incumbents: Sequence[IncumbentLine], *, sense: str, key: str, title: str, end: float | None = None, height: int = 190) -> str:
    """Return the best answer so far and its bound over the seconds of a solve; the space between them is the gap.

    A first answer far off the others would flatten the rest, so the axis ends near the others and says what lies beyond.
    """
    found = [line for line in incumbents if line["objective"] is not None]
    if not found:
        return ""
    objectives = [(line["seconds"], line["objective"] or 0.0) for line in found]
    bounds = [(line["seconds"], line["bound"]) for line in incumbents if line["bound"] is not None]
    last = max(end or 0.0, *(line["seconds"] for line in incumbents)) or 1e-3
    best = objectives[-1][1]
    span = max((abs(value - best) for _, value in objectives[len(objectives) // 3 :]), default=0.0)
    span = max(span, abs(best - bounds[-1][1]) if bounds else 0.0, abs(best) * 1e-3, 1e-9) * 1.6
    inside = [value for _, value in [*objectives, *bounds] if abs(value - best) <= span]
    low, high = _range(inside, 0.12)
    hidden = [value for _, value in objectives if not low <= value <= high]

    def x(seconds: float) -> float:
        return seconds / last * _WIDTH

    def y(value: float) -> float:
        return _y(min(max(value, low), high), low, high, height)

    top = 18
    levels = ticks(low, high)
    grid = "".join(f'<line class="grid" x1="0" x2="100%" y1="{top + y(tick):.1f}" y2="{top + y(tick):.1f}"/>' for tick in levels)
    moments = ticks(0, last, 4)
    axis = "".join(
        f'<text class="tick" x="{tick / last:.2%}" y="{top + height + 16}" text-anchor="{_anchor(tick / last)}">{label} s</text>'
        f'<line class="notch" x1="{tick / last:.2%}" x2="{tick / last:.2%}" y1="{top + height}" y2="{top + height + 4}"/>'
        for tick, label in zip(moments, labels(moments), strict=True)
    )
    upper = _stairs([(x(at), y(value)) for at, value in objectives])
    lower = _stairs([(x(at), y(value)) for at, value in bounds])
    inner = ""
    if lower:
        start = max(upper[0][0], lower[0][0])
        ahead = [point for point in upper if point[0] >= start]
        back = [point for point in reversed(lower) if point[0] >= start]
        inner = f'<path class="gap" d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in [*ahead, *back])}Z"/>'
    inner += _draw(_paths(lower), "line bound") + _draw(_paths(upper), "line objective")
    dots = "".join(f'<circle class="dot" cx="{at / last:.2%}" cy="{top + y(value):.1f}" r="2.5"/>' for at, value in objectives if low <= value <= high)
    texts = _end(f"best {number(best, 4)}", "objective", [top + py for px, py in upper if px >= _WIDTH * 0.7], above=sense != "maximize")
    if bounds:
        # A proof often comes with the last moment: then the line's name stands where the line ends, not where it came from.
        proved = abs(bounds[-1][1] - best) <= 1e-6 * max(1.0, abs(best))
        passed = [top + py for px, py in (lower[-1:] if proved else lower) if px >= _WIDTH * 0.7]
        texts += _end(f"bound {number(bounds[-1][1], 4)}", "bound", passed, above=sense == "maximize")
    if hidden:
        arrow = "↑" if hidden[0] > best else "↓"
        edge = top - 6 if hidden[0] > best else top + height - 6
        texts += f'<text class="tick" x="{objectives[0][0] / last:.2%}" dx="6" y="{edge}">{arrow} first answer {number(hidden[0], 4)}</text>'
    description = f"{len(objectives)} answers in {number(last)} seconds, from {number(objectives[0][1], 4)} to {number(best, 4)}" + (f", bound {number(bounds[-1][1], 4)}." if bounds else ", no bound.")
    scale = _axis([(top + y(tick), label) for tick, label in zip(levels, labels(levels), strict=True)], top + height + 22)
    return f"<div class=\"plot-area\">{scale}{_open('line-chart', top + height + 22, key, title, description)}{grid}{_inner(top, height, inner)}{dots}{texts}{axis}</svg></div>"


def _end(text: str, css: str, heights: Sequence[float], *, above: bool) -> str:
    """Return the name of a line at its right end, clear of where the line passes there."""
    y = min(heights) - 8 if above else max(heights) + 16
    return f'<text class="end {css}" x="100%" y="{y:.1f}" text-anchor="end">{text}</text>'


def _stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the corners of a step line that holds each value until the next, and the last to the end."""
    if not points:
        return []
    corners = [points[0]]
    for (_, before), (at, after) in pairwise(points):
        corners += [(at, before), (at, after)]
    return [*corners, (float(_WIDTH), points[-1][1])]


def curves(found: Sequence[Mapping[str, Any]], *, key: str, title: str, height: int = 150) -> str:
    """Return curves over steps, each {"steps", "values"} or {"steps", "least", "largest"}; lines beyond the eighth share colours, and are dashed or dotted."""
    lines = [[(step, _drawable(value)) for step, value in (_zigzag(each) if len(found) < _FEW else _middle(each))] for each in found]
    known = [value for line in lines for _, value in line if value is not None]
    if not known:
        return ""
    every = [step for line in lines for step, _ in line]
    first, last = min(every), max(every)
    low, high = _range([min(known), max(known)], 0.06)

    def x(step: float) -> float:
        return (step - first) / ((last - first) or 1.0)

    levels, moments = ticks(low, high, 3), ticks(first, last, 4)
    grid = "".join(f'<line class="grid" x1="0" x2="100%" y1="{8 + _y(tick, low, high, height):.1f}" y2="{8 + _y(tick, low, high, height):.1f}"/>' for tick in levels)
    axis = "".join(f'<text class="tick" x="{x(tick):.2%}" y="{height + 24}" text-anchor="{_anchor(x(tick))}">{label}</text>' for tick, label in zip(moments, labels(moments), strict=True))
    css: dict[str, list[str]] = {}
    for place, line in enumerate(lines):
        points = [None if value is None else (x(step) * _WIDTH, _y(value, low, high, height)) for step, value in line]
        css.setdefault(line_class(place), []).extend(_paths(points, 1 if len(lines) < _FEW else 0))
    paths = [_draw(each, name) for name, each in css.items()]
    description = f"{len(lines)} curves" if len(lines) > 1 else "A curve"
    description += f" over the steps {number(first)} to {number(last)}, between {number(min(known))} and {number(max(known))}."
    scale = _axis([(8 + _y(tick, low, high, height), label) for tick, label in zip(levels, labels(levels), strict=True)], height + 30)
    return f"<div class=\"plot-area\">{scale}{_open('line-chart', height + 30, key, title, description)}{grid}{_inner(8, height, ''.join(paths))}{axis}</svg></div>"


def _drawable(value: float | None) -> float | None:
    """Return a value that has a place in a chart: an infinite one is a gap, as one that is no number."""
    return value if value is not None and abs(value) < _HIGHEST else None


def line_class(place: int) -> str:
    """Return how a line looks: eight colours, then the same dashed, then dotted."""
    return f"line c{place % 8}" + ("", " dashed", " dotted")[place // 8 % 3]


def _zigzag(curve: Mapping[str, Any]) -> list[tuple[float, float | None]]:
    """Return a curve as points; of a stretch its least and its largest."""
    if "values" in curve:
        return list(zip(curve["steps"], curve["values"], strict=True))
    return [(step, value) for step, low, high in zip(curve["steps"], curve["least"], curve["largest"], strict=True) for value in (low, high)]


def _middle(curve: Mapping[str, Any]) -> list[tuple[float, float | None]]:
    """Return a curve as points; of a stretch the middle between its least and its largest: among many lines no extreme is seen."""
    if "values" in curve:
        return _zigzag(curve)
    both = zip(curve["steps"], curve["least"], curve["largest"], strict=True)
    return [(step, None if low is None or high is None else (low + high) / 2) for step, low, high in both]


def span(values: Iterable[float | None]) -> tuple[float, float]:
    """Return the common scale of a table of intervals: zero is inside, with room at both ends."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min([0.0, *known]), max([0.0, *known])
    pad = (high - low) * 0.06 or 1.0
    return low - pad, high + pad


def zero(scale: tuple[float, float]) -> str:
    """Return the head of a table of intervals: which side of zero is which."""
    share = -scale[0] / (scale[1] - scale[0])
    worse = f'<text class="tick" x="{share:.2%}" dx="-9" y="12" text-anchor="end">worse</text>' if share > 0.2 else ""
    better = f'<text class="tick" x="{share:.2%}" dx="9" y="12">better</text>' if share < 0.8 else ""
    return f'<svg class="chart" width="100%" height="16" aria-hidden="true">{worse}<text class="tick" x="{share:.2%}" y="12" text-anchor="middle">0</text>{better}</svg>'


def interval(low: float | None, middle: float | None, high: float | None, *, net: float | None, scale: tuple[float, float], key: str, title: str) -> str:
    """Return one row of a table of intervals: the whisker, its middle, zero, and a tick where the benefit after cost surely lies."""
    height, centre = 26, 13

    def x(value: float) -> str:
        return f"{(value - scale[0]) / (scale[1] - scale[0]):.2%}"

    parts = [f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="0" y2="{height}"/>']
    css = "gain" if net is not None and net > 0 else "harm" if high is not None and high < 0 else "unsure"
    if low is not None and high is not None:
        parts.append(f'<line class="whisker {css}" x1="{x(low)}" x2="{x(high)}" y1="{centre}" y2="{centre}"/>')
    if net is not None:
        parts.append(f'<line class="net {css}" x1="{x(net)}" x2="{x(net)}" y1="{centre - 6}" y2="{centre + 6}"/>')
    if middle is not None:
        parts.append(f'<circle class="point {css}" cx="{x(middle)}" cy="{centre}" r="4.5"/>')
    return f"{_open('interval', height, key, title)}{''.join(parts)}</svg>"
