"""What the pages of runs are given. Whatever a reader chooses (search, order, columns, runs) stands in the address."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, cast
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from palan.errors import PalanError
from palan.flows import runs
from palan.flows.fold import fold
from palan.flows.project import Project
from palan.runs.beside import asked, columns, value_of
from palan.runs.search import parse, parse_order
from palan.web import charts, views

FLOWS = ["track", "", "build", "check", "replay", "watch", "react", "ingest", "tick"]
ROWS = 50
SHOWN = 8
"""Columns of a list, beside what every run has, if none were chosen."""

CHOICES = 60
DRAWN = 6
"""Curves on one page; the others are asked for by their name."""

POINTS = 1500
"""Points of all lines together that the server draws in one chart; with JavaScript there are more."""

FINEST = 20
"""Points that a line has at the least, however many there are."""

FETCHED = 20_000
"""Points of all lines together that the browser asks for, for one chart."""

FEW = 20
"""Runs up to which a comparison draws all its curves; of more it draws one, the others when they are asked for."""

CELLS = 800
"""Cells of a comparison that a page holds; CSV and JSON have all."""

Query = Sequence[tuple[str, str]]


def runs_view(project: Project, frame: views.Frame, query: QueryParams) -> views.RunsPage:
    """Return the page of a search. One that cannot be read is shown with its mistake marked."""
    q, flow, chosen = query.get("q", "").strip(), query.get("flow", "track"), query.getlist("show")
    keys = _keys(query.getlist("order"))
    wrong, found = "", cast(dict[str, Any], {"runs": [], "next": "", "reading": False})
    try:
        found = runs.search(project, q, order=keys, after=query.get("after", ""), limit=ROWS, flow=flow)
    except PalanError as error:
        wrong = f"{error.what}\n\n{error.hint}"
    told = found["runs"]
    every = columns(told, asked(parse(q), parse_order(keys))) if told else []
    shown = [name for name in chosen if "." in name and name.partition(".")[0] in ("params", "metrics", "tags")] or every[:SHOWN]
    base = [("q", q), ("flow", flow), *(("show", name) for name in chosen)]
    ordered = [("order", key) for key in keys]
    state = [*base, *ordered]
    running = any(each["status"] == "running" for each in told)
    return {
        "frame": frame,
        "runs": [_line(each, shown) for each in told],
        "columns": [_column(name, keys, base) for name in shown],
        "choices": [{"value": name, "label": name, "chosen": name in shown} for name in dict.fromkeys([*shown, *every][:CHOICES])],
        "q": q,
        "order": ", ".join(keys),
        "flow": flow,
        "flows": list(dict.fromkeys([*FLOWS, flow])),
        "wrong": wrong,
        "reading": found["reading"],
        "next": f"/runs?{urlencode([*state, ('after', found['next'])])}" if found["next"] else "",
        "first": f"/runs?{urlencode(state)}" if query.get("after") else "",
        "compare": f"/runs/compare?{urlencode([('q', q), ('flow', flow), *ordered])}" if len(told) > 1 else "",
        "csv": f"/runs.csv?{urlencode(state)}",
        "json": f"/v1/runs?{urlencode([*state, ('limit', str(runs.MOST))])}",
        "poll": f"/runs/rows?{urlencode([('show', name) for name in shown])}" if running else "",
    }


def rows_view(project: Project, frame: views.Frame, query: QueryParams) -> views.RunsPage:
    """Return only the rows of the runs that are named, with the columns that are named."""
    ids = [id for id in query.getlist("run")[:ROWS] if id.isalnum()]
    shown = query.getlist("show")
    listed = ", ".join(f"'{id}'" for id in ids)
    told = runs.search(project, f"id IN ({listed})", flow="", limit=ROWS)["runs"] if ids else []
    return cast(views.RunsPage, {"frame": frame, "runs": [_line(each, shown) for each in told], "columns": [_column(name, [], []) for name in shown]})


def _keys(given: Iterable[str]) -> list[str]:
    """Return the keys to order by, also of several in one text: a comma inside quotes is part of a name."""
    found = [key.strip() for text in given for key in re.findall(r"""(?:"[^"]*"|`[^`]*`|[^,])+""", text)]
    return [key for key in found if key]


def _line(run: dict[str, Any], shown: Sequence[str]) -> views.RunLine:
    return {
        "run": run["run"],
        "name": run["name"],
        "experiment": run["experiment"],
        "status": run["status"],
        "started": run["started"],
        "values": [_shown(value_of(run, name)) if name.partition(".")[0] in ("params", "metrics", "tags") else None for name in shown],
    }


def _shown(value: Any) -> Any:
    """Return a value for a narrow column: a number with more digits than anybody reads is rounded as all numbers are."""
    if not isinstance(value, str) or len(value) <= 9:
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _column(name: str, keys: Sequence[str], base: Query) -> views.RunColumn:
    """Return a column with the address that orders by it: upwards first, then downwards."""
    kind, _, title = name.partition(".")
    key = name if re.fullmatch(r"[\w.]+", title) else f"{kind}.`{title}`"
    now = next((each for each in keys if each.removesuffix(" desc") == key), "")
    following = f"{key} desc" if now == key else key
    return {"name": name, "title": title, "order": f"/runs?{urlencode([*base, ('order', following)])}", "direction": "" if not now else "down" if now.endswith(" desc") else "up"}


def run_view(project: Project, frame: views.Frame, id: str, query: QueryParams) -> views.RunPage:
    """Return the page of one run.

    Raises:
        NotFound: there is no such run.
    """
    told = runs.run_page(project, id)
    run = told["run"]
    drawable = [each["metric"] for each in told["curves"] if each["points"] > 1]
    first = [name for name in query.getlist("metric") if name in drawable]
    names = [] if query.get("part") else list(dict.fromkeys([*first, *drawable]))
    return {
        "frame": frame,
        "run": told,
        "drawings": [_drawing(project, [run], [], name, place, [("run", run)]) for place, name in enumerate(names[:DRAWN])],
        "more": names[DRAWN:],
        "csv": f"/runs/{run}/values.csv",
        "json": f"/v1/runs/{run}",
        "poll": f"/runs/{run}?part=values" if told["status"] == "running" else "",
    }


def _drawing(project: Project, ids: Sequence[str], names: list[str], metric: str, place: int, state: Query) -> views.Drawing:
    found = [each for each in runs.curves(project, ids, metric, points=max(FINEST, POINTS // 4 // len(ids))) if each["count"]]
    with_curve = {each["run"] for each in found}
    return {
        "metric": metric,
        "svg": charts.curves(found, key=f"curve{place}", title=f"{metric[:80]} by step"),
        "source": f"/v1/runs/curves?{urlencode([*state, ('metric', metric), ('points', str(max(50, min(runs.DRAWN, FETCHED // len(ids)))))])}",
        "names": [name for id, name in zip(ids, names, strict=False) if id in with_curve],
    }


def _state(query: QueryParams) -> Query:
    """Return what says which runs are compared: their ids, or a search."""
    return [(name, value) for name, value in query.multi_items() if name == "run"] or [(name, value) for name, value in query.multi_items() if name in ("q", "order", "flow")]


def _chosen(project: Project, query: QueryParams) -> list[str]:
    return runs.chosen(project, query.getlist("run"), query.get("q", ""), order=_keys(query.getlist("order")), flow=query.get("flow", "track"))


def compare_view(project: Project, frame: views.Frame, query: QueryParams) -> views.ComparePage:
    """Return the page of a comparison.

    Raises:
        NotFound: no such run.
        Invalid: fewer than two runs, or too many.
    """
    told, state = runs.compare(project, _chosen(project, query)), _state(query)
    ids = [each["run"] for each in told["runs"]]
    left = max(4, CELLS // len(ids))
    sections, hidden = [], 0
    for part in ("params", "metrics", "tags", "about"):
        # of many runs some of each are more worth than all parameters
        room = min(left, 3) if len(ids) > FEW and part == "params" and told["differ"]["metrics"] else left
        rows = told["differ"][part]
        sections.append((part, {name: [_shown(value) for value in values] for name, values in list(rows.items())[:room]}))
        hidden += max(0, len(rows) - room)
        left = max(0, left - min(len(rows), room))
    metrics = list(dict.fromkeys([*query.getlist("metric"), *told["differ"]["metrics"], *told["same"]["metrics"]]))
    names = [each["name"] or each["run"][-runs.SHORT :] for each in told["runs"]]
    drawings: list[views.Drawing] = []
    for place, name in enumerate(metrics):
        if len(drawings) < (DRAWN if len(ids) <= FEW else 1):
            drawing = _drawing(project, ids, names, name, place, state)
            drawings += [drawing] if drawing["svg"] else []
    drawn = {each["metric"] for each in drawings}
    return {
        "frame": frame,
        "runs": told["runs"],
        "sections": [each for each in sections if each[1]],
        "left": hidden,
        "same": told["same"],
        "seeds": told["seeds"],
        "drawings": drawings,
        "more": [(name, f"/runs/compare?{urlencode([*state, ('metric', name)])}") for name in metrics if name not in drawn][:30],
        "csv": f"/runs/compare.csv?{urlencode(state)}",
        "json": f"/v1/runs/compare?{urlencode(state)}",
    }


# --- tables as CSV --------------------------------------------------------------------------------------------------


def runs_csv(project: Project, query: QueryParams) -> str:
    """Return what a search finds, every value of it, as CSV."""
    fold(project)
    told = runs.search(project, query.get("q", ""), order=_keys(query.getlist("order")), limit=runs.MOST, flow=query.get("flow", "track"))["runs"]
    own = ["run", "name", "flow", "experiment", "status", "started", "ended", "parent"]
    names = [*columns(told), *dict.fromkeys(f"tags.{key}" for each in told for key in each["tags"])]
    return _csv([[*own, *names], *([*(each[name] for name in own), *(value_of(each, name) for name in names)] for each in told)])


def compare_csv(project: Project, query: QueryParams) -> str:
    """Return a comparison as CSV: a row for each name, a column for each run, what differs first."""
    told = runs.compare(project, _chosen(project, query))
    rows: list[list[Any]] = [["", "", *(each["run"] for each in told["runs"])]]
    rows += [["run", name, *(each[name] for each in told["runs"])] for name in ("name", "experiment", "status", "started", "ended")]
    rows += [[part, name, *values] for part, names in told["differ"].items() for name, values in names.items()]
    rows += [[part, name, *[value] * len(told["runs"])] for part, names in told["same"].items() for name, value in names.items()]
    return _csv(rows)


def run_csv(project: Project, id: str) -> str:
    """Return what one run was given and measured as CSV."""
    told = runs.run_page(project, id)
    rows: list[list[Any]] = [["kind", "name", "value", "min", "max", "points"]]
    rows += [["param", name, value, None, None, None] for name, value in told["params"].items()]
    rows += [["tag", name, value, None, None, None] for name, value in told["tags"].items()]
    rows += [["metric", each["metric"], each["last"], each["min"], each["max"], each["points"]] for each in told["curves"]]
    return _csv(rows)


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([_safe(each) for each in row] for row in rows)
    return text.getvalue()


def _safe(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
