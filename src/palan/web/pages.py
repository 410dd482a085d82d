"""The pages: pure functions from a view (see `views.py`) to HTML. No page needs JavaScript, or anything from elsewhere."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.filters import do_forceescape, do_mark_safe

from palan.core import canonical, unstamp
from palan.web import charts, drawn
from palan.web.charts import number
from palan.web.views import (
    AlarmPage,
    ComparePage,
    Confirm,
    DataLine,
    DeadStep,
    EntryLine,
    Frame,
    Home,
    JobPage,
    JobsPage,
    LedgerPage,
    Loss,
    ModelLine,
    ModelPage,
    RegisteredPage,
    RunPage,
    RunsPage,
)


class Asset(msgspec.Struct, frozen=True):
    """A static file. Its name holds its digest, so it may be cached for ever."""

    name: str
    type: str
    data: bytes


def _asset(file: str, kind: str) -> Asset:
    data = (files("palan.web") / "static" / file).read_bytes()
    stem, _, suffix = file.partition(".")
    return Asset(f"{stem}-{sha256(data).hexdigest()[:10]}.{suffix}", kind, data)


_ASSETS = {
    "style": _asset("palan.css", "text/css; charset=utf-8"),
    "script": _asset("live.js", "text/javascript; charset=utf-8"),
    "icon": _asset("icon.svg", "image/svg+xml"),
    "runs": _asset("runs.js", "text/javascript; charset=utf-8"),
    "uplot": _asset("uplot.js", "text/javascript; charset=utf-8"),
    "uplot_style": _asset("uplot.css", "text/css; charset=utf-8"),
}
STATIC: Mapping[str, Asset] = {asset.name: asset for asset in _ASSETS.values()}
"""Name -> file, for `/static/{name}`."""

_VERDICTS = ("wrong", "attention", "learning", "not released", "right", "not asked")  # the worst first
MANY = 8
"""Members of a plain value that are still listed."""

_WORDS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")


def count(amount: int, one: str, many: str = "") -> str:
    """Return `1 model`, `5 models`."""
    return f"{number(amount)} {one if amount == 1 else many or one + 's'}"


def percent(value: float | None) -> str:
    """Return a share for a person, never rounded to a false 0 % or 100 %."""
    if value is None or not math.isfinite(value):
        return "–"
    if 0 < abs(value) < 0.0005:
        return "< 0.1%"
    if 0.9995 < value < 1:
        return "> 99.9%"
    text = f"{value * 100:.0f}" if abs(value) >= 0.1 or value == 0 else f"{value * 100:.1f}"
    return text.removesuffix(".0").replace("-", "\u2212") + "%"


def duration(seconds: float | None) -> str:
    """Return `0.8 ms`, `45 ms`, `3.2 s`, `4 min`, `2 h`, `5 days`."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{number(seconds * 1000, 2)} ms"
    for size, unit in ((86400, "day"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (seconds >= size and unit == "h"):
            whole = math.floor(seconds / size)
            return f"{whole} {unit}{'s' if unit == 'day' and whole != 1 else ''}"
    return f"{number(seconds, 2)} s"


def ago(time: str, now: str) -> str:
    """Return how long before `now` the time was, or how long after it will be; the day itself when that is far."""
    seconds = (unstamp(now) - unstamp(time)).total_seconds()
    if abs(seconds) > 45 * 86400:
        return day(time, now)
    if abs(seconds) < 5:
        return "just now"
    far = duration(round(abs(seconds)))
    return f"{far} ago" if seconds > 0 else f"in {far}"


def moment(time: str) -> str:
    """Return `1 Sep 2013, 06:00`: in UTC, as everything in palan."""
    at = unstamp(time)
    return f"{_day(at)}, {at:%H:%M}"


def day(time: str, now: str = "") -> str:
    """Return `1 Sep 2013`; within the year of `now`, `1 Sep`."""
    at = unstamp(time)
    return f"{at.day} {at:%b}" if now and unstamp(now).year == at.year else _day(at)


def _day(at: datetime) -> str:
    return f"{at.day} {at:%b %Y}"


def short(text: str, size: int = 8) -> str:
    """Return the end of an id (where ids of one moment differ) or the beginning of a digest."""
    if len(text) <= size:
        return text
    return text[:size] if re.fullmatch(r"[0-9a-f]{64}", text) else "…" + text[-size:]


def value(thing: Any, size: int = 60) -> str:
    """Return any plain value in a few words."""
    if thing is None:
        return "–"
    if isinstance(thing, bool):
        return "yes" if thing else "no"
    if isinstance(thing, int | float):
        return number(thing)
    if isinstance(thing, str):
        return thing if len(thing) <= size else thing[: size - 1] + "…"
    if isinstance(thing, Mapping):
        if len(thing) > MANY:
            return count(len(thing), "value")
        return cut(", ".join(f"{name} {value(item, 24)}" for name, item in thing.items()), size)
    if isinstance(thing, Sequence):
        if any(isinstance(item, Mapping | list | tuple) for item in thing):
            return count(len(thing), "entry", "entries")
        return cut(", ".join(value(item, 24) for item in thing), size)
    return cut(str(thing), size)


def cut(text: str, size: int) -> str:
    """Return the text, or its beginning up to a whole word."""
    if len(text) <= size:
        return text
    words = text[:size].rpartition(" ")[0] or text[: size - 1]
    return words.rstrip(" ,;:(") + "…"


def breakable(text: str) -> str:
    """Return a name that a narrow column breaks after a sign rather than within a word."""
    return do_mark_safe(re.sub(r"(?<=[_/.:-])(?=[^_/.:-])", "<wbr>", str(do_forceescape(text))))


def document(thing: Any, lines: int = 40) -> str:
    """Return a plan as indented text, cut after `lines` lines with a note of how many follow."""
    text = _indent(thing, 0)
    rows = text.splitlines()
    if len(rows) <= lines:
        return text
    return "\n".join([*rows[:lines], f"… and {len(rows) - lines} more lines"])


def _indent(thing: Any, depth: int) -> str:
    pad = "  " * depth
    if isinstance(thing, Mapping) and thing:
        flat = canonical(thing).decode()
        if len(flat) + len(pad) <= 72:
            return flat
        inside = ",\n".join(f"{pad}  {canonical(str(name)).decode()}: {_indent(item, depth + 1)}" for name, item in thing.items())
        return f"{{\n{inside}\n{pad}}}"
    if isinstance(thing, list | tuple) and thing:
        flat = canonical(thing).decode()
        if len(flat) + len(pad) <= 72:
            return flat
        inside = ",\n".join(f"{pad}  {_indent(item, depth + 1)}" for item in thing)
        return f"[\n{inside}\n{pad}]"
    return canonical(thing).decode()


def latest(values: Sequence[float | None]) -> float | None:
    return next((item for item in reversed(values) if item is not None), None)


def known(series: Loss) -> list[tuple[str, float]]:
    """Return the (time, value) pairs of a series that have a value."""
    return [(time, item) for time, item in zip(series["times"], series["values"], strict=True) if item is not None]


def headline(models: Sequence[ModelLine], data: Sequence[DataLine] = (), dead: Sequence[DeadStep] = ()) -> tuple[str, str]:
    """Answer "is everything right in production?": the worst verdict, and a sentence."""
    if dead:
        worst, text = headline(models, data)
        given_up = _names([each["step"] for each in dead])
        return "wrong", f"{given_up} failed too often, and {'is' if len(dead) == 1 else 'are'} not tried any more. {'The models are right.' if worst == 'right' else text}"
    failed = [line["name"] for line in data if line["verdict"] == "wrong"]
    if failed:
        worst, text = headline(models)
        return "wrong", f"The newest delivery of {_names(failed)} could not be taken in. {'The models are right.' if worst == 'right' else text}"
    if not models:
        return "not released", "No model yet."
    by_verdict = {verdict: [model["name"] for model in models if model["verdict"] == verdict] for verdict in _VERDICTS}
    worst = next(verdict for verdict in _VERDICTS if by_verdict[verdict])
    idle = by_verdict["not asked"]
    if worst == "right":
        return worst, f"Everything that is asked is right; {_names(idle)} {'is' if len(idle) == 1 else 'are'} not asked." if idle else "Everything is right."
    if worst == "not asked":
        return worst, "No model is asked at present."
    said = []
    for verdict, words in (("wrong", "wrong"), ("attention", "asking for attention"), ("learning", "still learning"), ("not released", "not released")):
        names = by_verdict[verdict]
        if names:
            said.append(f"{_names(names)} {'is' if len(names) == 1 else 'are'} {words}")
    text = "; ".join(said) + "."
    right = len(by_verdict["right"])
    rest = f" The other {_WORDS[right].lower() if 0 < right < len(_WORDS) else right} {'is' if right == 1 else 'are'} right." if right else ""
    return worst, text[0].upper() + text[1:] + rest if len(by_verdict[worst]) > 3 else text + rest


def worst_first(models: Sequence[ModelLine]) -> list[ModelLine]:
    """Return the models in the order in which they need a person."""
    return sorted(models, key=lambda model: _VERDICTS.index(model["verdict"]))


def _names(names: Sequence[str]) -> str:
    if len(names) > 3:
        return f"{_WORDS[len(names)].lower() if len(names) < len(_WORDS) else len(names)} models"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def told(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures that say something: what is empty or unknown is left out, findings say their sentence."""
    known = {name: item for name, item in figures.items() if item is not None and item != "" and item != [] and item != () and item != {}}
    return {name: "; ".join(str(each["text"]) for each in item) if _findings(item) else item for name, item in known.items()}


def _findings(item: Any) -> bool:
    return isinstance(item, list | tuple) and all(isinstance(each, Mapping) and "text" in each for each in item)


def gaps(loss: Loss) -> bool:
    """Tell whether the line of a loss is broken: nothing is known between two values."""
    values = loss["values"]
    known = [place for place, item in enumerate(values) if item is not None]
    return bool(known) and known[-1] - known[0] + 1 > len(known)


def spell(window: str) -> str:
    """Return `7d` as `7 days`."""
    amount, unit = re.sub(r"[^0-9.]", "", window), re.sub(r"[0-9.]", "", window)
    return f"{amount} {'day' if amount == '1' else 'days'}" if unit == "d" else f"{amount} {unit}".strip()


def gain(amount: float, unit: str) -> str:
    """Return `a gain of 12 minutes`, `a loss of 0.004`."""
    return f"a {'gain' if amount >= 0 else 'loss'} of {number(abs(amount))}{f' {unit}' if unit != 'loss' else ''}"


def against(figure: float, usual: float) -> str:
    """Say where a figure lies against the usual one: `12% above the usual 0.488`."""
    if not usual:
        return f"usual {number(usual)}"
    apart = abs(figure - usual) / abs(usual)
    if apart < 0.005:
        return f"as usual ({number(usual)})"
    return f"{percent(apart)} {'above' if figure > usual else 'below'} the usual {number(usual)}"


def given(item: Any, size: int = 60) -> str:
    """Return what somebody gave as they gave it: a year or a seed has no comma between its thousands."""
    return str(item) if isinstance(item, int) and not isinstance(item, bool) else value(item, size)


def by_day(entries: Sequence[EntryLine]) -> list[tuple[str, list[EntryLine]]]:
    """Group entries (in their order) under their day."""
    groups: list[tuple[str, list[EntryLine]]] = []
    for entry in entries:
        title = day(entry["time"])
        if not groups or groups[-1][0] != title:
            groups.append((title, []))
        groups[-1][1].append(entry)
    return groups


def prose(text: str, *names: str) -> str:
    """Return the text as a sentence: a capital and a full stop. A name at its beginning stays as it is written."""
    first = text.split(" ", 1)[0]
    if first.rstrip(":,").isalpha() and first.rstrip(":,") not in names:
        text = text[0].upper() + text[1:]
    return text if not text or text.rstrip("`")[-1:] in ".!?:" else f"{text}."


def command_parts(sentence: str) -> list[tuple[bool, str]]:
    """Split a sentence into plain parts and `code in backquotes` (True), so that texts may name commands.

    A day in a plain part is written as everywhere on the pages; one inside a name (of a file, of a key) stays.
    """
    parts = [(index % 2 == 1, part) for index, part in enumerate(sentence.split("`")) if part]
    return [(code, part if code else _DAY.sub(_spelt, part)) for code, part in parts]


_DAY = re.compile(r"(?<![\w./-])\d{4}-\d\d-\d\d(?![\w/-])(?!\.\w)")


def _spelt(found: re.Match[str]) -> str:
    try:
        return _day(datetime.fromisoformat(found.group())).replace(" ", "\u00a0")
    except ValueError:  # digits of that form that are no day
        return found.group()


_environment = Environment(
    loader=PackageLoader("palan.web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.tests["numeric"] = lambda item: isinstance(item, int | float) or (isinstance(item, str) and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", item) is not None)
_environment.filters.update(
    {
        "number": number,
        "breakable": breakable,
        "line_class": charts.line_class,
        "percent": percent,
        "duration": duration,
        "moment": moment,
        "day": day,
        "short": short,
        "value": value,
        "document": document,
        "latest": latest,
        "fixed": charts.fixed,
        "known": known,
        "told": told,
        "gaps": gaps,
        "spell": spell,
        "gain": gain,
        "against": against,
        "given": given,
        "cut": cut,
        "prose": prose,
        "worst_first": worst_first,
        "by_day": by_day,
        "parts": command_parts,
        "cell": lambda item: cell(item),
        "path": lambda text: quote(str(text), safe="@"),
    }
)
_environment.globals.update({"ago": ago, "count": count, "charts": charts, "lineage_chart": drawn.lineage, "asset": {key: item.name for key, item in _ASSETS.items()}, "headline": headline})


def _page(template: str, view: Mapping[str, Any]) -> str:
    return _environment.get_template(template).render(view)


def home(view: Home) -> str:
    """Is everything right in production, and if not, what should I do?"""
    return _page("home.html", view)


def model(view: ModelPage) -> str:
    """One model: how it does, which versions answer, what was decided, how to call it."""
    return _page("model.html", view)


def registered(view: RegisteredPage) -> str:
    """A model that an MLflow client registered: its versions, and where they came from."""
    return _page("registered.html", view)


def alarm(view: AlarmPage) -> str:
    """One alarm: what changed, why, which remedies were tried, and which one won."""
    return _page("alarm.html", view)


def ledger(view: LedgerPage) -> str:
    """Every change and its reason, and whether the chain holds."""
    return _page("ledger.html", view)


def jobs(view: JobsPage) -> str:
    """The long solves."""
    return _page("jobs.html", view)


def job(view: JobPage) -> str:
    """One solve: its best answers so far, its bound, its plan."""
    return _page("job.html", view)


def runs(view: RunsPage) -> str:
    """Every run that a search finds."""
    return _page("runs.html", view)


def run_rows(view: RunsPage) -> str:
    """The rows of some runs, for a list that is open."""
    return _page("run_rows.html", view)


def run(view: RunPage) -> str:
    """One run: what it was given, what it measured, what it made, how to repeat it."""
    return _page("run.html", view)


def compare(view: ComparePage) -> str:
    """Runs side by side, what differs first."""
    return _page("compare.html", view)


def data(view: Mapping[str, Any]) -> str:
    """Every table."""
    return _page("data.html", view)


def table(view: Mapping[str, Any]) -> str:
    """One table: what is promised of it, what each version brought, what waits, what is suspected."""
    return _page("table.html", view)


def version(view: Mapping[str, Any]) -> str:
    """One version of a table, beside what was there before it."""
    return _page("version.html", view)


def diff(view: Mapping[str, Any]) -> str:
    """What lies between two versions of a table."""
    return _page("diff.html", view)


def quarantine(view: Mapping[str, Any]) -> str:
    """Rows that wait, with the cells that break a rule."""
    return _page("quarantine.html", view)


def lineage(view: Mapping[str, Any]) -> str:
    """Where each column comes from, drawn and as a table."""
    return _page("lineage.html", view)


def cell(item: Any) -> str:
    """Return what a run has, in a table: a parameter stays as it was given."""
    return number(item, 4) if isinstance(item, float) else "–" if item is None else value(str(item), 40)


def confirm(view: Confirm) -> str:
    """Ask before something is done."""
    return _page("confirm.html", view)


def error(code: int, what: str, hint: str = "", frame: Frame | None = None) -> str:
    """Say what is wrong and what to do next. Without a frame (no project could be opened) the page stands alone."""
    return _page("error.html", {"code": code, "what": what, "hint": hint, "frame": frame})
