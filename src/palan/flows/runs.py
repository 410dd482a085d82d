"""`palan runs`: search all runs, look at one, compare some."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from palan.core import stamp
from palan.errors import Invalid, NotFound
from palan.flows.fold import fold
from palan.flows.project import Project
from palan.runs.run import Artifact, Curve, Drawn, Keyset, Run, Value
from palan.runs.search import Both, Compare, Condition, Field, parse, parse_order

if TYPE_CHECKING:
    from palan.runs.points import Outline

DRAWN = 1000
"""Points of a curve, or pairs of least and largest, that are sent if no other number is asked for."""


def search(project: Project, where: str = "", *, order: Sequence[str] = (), after: str = "", limit: int = 50, flow: str = "track") -> dict[str, Any]:
    """Search runs: `where` is a text such as "metrics.loss < 0.3 AND params.model = 'trees'", `order` keys such as "metrics.loss".

    Returns {"runs": [...], "next"}: each run with its params, metrics (last values) and tags; `next`, given as `after`,
    continues, and is empty at the end. `flow` is what kind of run: "track" (what somebody tracks), "build", ...; empty for all.

    Raises:
        PalanError: the search or an order cannot be read; the character is marked.
        Invalid: `after` is no place that was given out.
    """
    fold(project)
    told = parse(where)
    kind = Compare(Field("attribute", "flow"), "=", (flow,)) if flow else None
    both: Condition | None = Both((kind, told), every=True) if kind and told else kind or told
    found = project.store.records.search(Run, both, parse_order(order), after=_place(after), limit=limit + 1)
    shown = found[:limit]
    values = _values(project, [run.id for run, _ in shown])
    return {
        "runs": [told_of(run, values.get(run.id, ())) for run, _ in shown],
        "next": _token(shown[-1][1]) if len(found) > limit else "",
    }


def _place(token: str) -> list[Any]:
    if not token:
        return []
    try:
        found = msgspec.json.decode(base64.urlsafe_b64decode(token.encode()), type=list[str | int | float | None])
    except (binascii.Error, msgspec.DecodeError, UnicodeError, ValueError):
        found = []
    if len(found) < 2:
        raise Invalid(f'"{token[:40]}" is no place in a search', "give `next` of the page before, with the same order", field="after", value=token[:40])
    return list(found)


def _token(place: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(list(place))).decode()


def _values(project: Project, ids: Sequence[str]) -> dict[str, list[Value]]:
    found: dict[str, list[Value]] = {}
    for at in range(0, len(ids), 500):
        for each in project.store.records.find(Value, run=list(ids[at : at + 500])):
            found.setdefault(each.run, []).append(each)
    return found


def told_of(run: Run, values: Sequence[Value]) -> dict[str, Any]:
    """Return a run as plain values."""
    return {
        "run": run.id,
        "name": run.name,
        "flow": run.flow,
        "experiment": run.subject,
        "status": run.status,
        "started": stamp(run.time),
        "ended": stamp(run.ended) if run.ended else None,
        "parent": run.parent,
        "reason": run.reason,
        "params": {each.key: each.text for each in values if each.kind == "param"},
        "metrics": {each.key: each.number for each in values if each.kind == "metric"},
        "tags": {each.key: each.text for each in values if each.kind == "tag"},
    }


def find_run(project: Project, id: str) -> Run:
    """Return a run by its id, the beginning of one, or its name.

    Raises:
        NotFound: there is none, or more than one.
    """
    fold(project)
    records = project.store.records
    exact = records.get(Run, id)
    if exact is not None:
        return exact
    wanted = parse(f"name = {_quoted(id)} or id like {_quoted(_literal(id) + '%')}")
    found = records.search(Run, wanted, limit=2) if id else []
    if len(found) == 1:
        return found[0][0]
    if found:
        raise NotFound(f'more than one run is called or begins with "{id}"', f"give more of its id: {found[0][0].id} or {found[1][0].id}")
    raise NotFound(f'no run "{id}"', "palan runs")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _literal(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def run_page(project: Project, id: str) -> dict[str, Any]:
    """Return everything that is known of one run: values with their extremes, artefacts, children, surroundings.

    Raises:
        NotFound: there is no such run.
    """
    run = find_run(project, id)
    records = project.store.records
    values = records.find(Value, run=run.id)
    return {
        **told_of(run, values),
        "curves": [
            {"metric": each.key, "last": each.number, "min": each.least, "max": each.largest, "points": each.count, "step": each.step}
            for each in values
            if each.kind == "metric"
        ],
        "artifacts": [{"path": each.path, "blob": each.blob, "size": each.size} for each in records.find(Artifact, run=run.id)],
        "children": [{"run": each.id, "name": each.name, "status": each.status} for each in records.find(Run, parent=run.id, order="time")],
        "code": run.code,
        "data": dict(run.data),
        "environment": dict(run.environment),
    }


def curve(project: Project, id: str, metric: str, *, points: int = DRAWN, after: int = 0) -> dict[str, Any]:
    """Return a metric's curve: {"steps", "values"} with every point where there are no more than `points`; else {"steps", "least",
    "largest"} of equal stretches, which keep every extreme. `count` is how many points there are: given as `after`, only
    newer ones come, each of them.

    Raises:
        NotFound: no such run, or it has no such metric.
    """
    import numpy as np

    run = find_run(project, id)
    keysets = _keysets(project, run.id, metric)
    total = sum(part.points for parts in keysets.values() for part in parts)
    if not total:
        raise NotFound(f'run {run.id} has no metric "{metric}"', f"palan runs show {run.id}")
    if total - after <= points or after:
        blocks = [block for keyset, parts in keysets.items() for block in _blocks(project, run.id, keyset, parts, metric, after if len(keysets) == 1 else 0)]
        steps, times, values = (np.concatenate([getattr(each, what) for each in blocks], axis=-1) if blocks else np.empty(0) for what in ("steps", "times", "values"))
        order = np.argsort(steps, kind="stable")
        fresh = order[after:] if len(keysets) > 1 else order
        numbers = values[0][fresh] if blocks else values
        return {"run": run.id, "metric": metric, "count": total, "steps": steps[fresh].tolist(), "times": times[fresh].tolist(), "values": _plain(numbers)}
    drawn = _outline(keysets, metric, points)
    return {
        "run": run.id,
        "metric": metric,
        "count": total,
        "steps": drawn.steps.tolist(),
        "times": drawn.times.tolist(),
        "least": _plain(drawn.extremes[0, :, 0]),
        "largest": _plain(drawn.extremes[0, :, 1]),
    }


def _plain(numbers: Any) -> list[float | None]:
    """Return numbers for JSON, which has no NaN and no infinity."""
    import numpy as np

    return [value if finite else None for value, finite in zip(numbers.tolist(), np.isfinite(numbers).tolist(), strict=True)]


Parts = Sequence[Drawn]


def _keysets(project: Project, run: str, metric: str) -> dict[Keyset, Parts]:
    """Return the keysets of a run that have the metric, with the parts of their curves."""
    records = project.store.records
    having = {each.id: each for each in records.find(Keyset) if metric in each.names}
    found: dict[Keyset, list[Drawn]] = {}
    for at in range(0, len(having), 500):
        for part in records.find(Drawn, run=run, keyset=list(having)[at : at + 500]):
            found.setdefault(having[part.keyset], []).append(part)
    return {keyset: sorted(parts, key=lambda each: each.part) for keyset, parts in found.items()}


def _blocks(project: Project, run: str, keyset: Keyset, parts: Parts, metric: str, after: int) -> list[Any]:
    """Return the points of a metric past the first `after` ones."""
    from palan.runs import points

    wanted, passed, skip = [], 0, 0
    for part in parts:
        if passed + part.points > after:
            wanted.append(part.part)
            skip = skip if len(wanted) > 1 else after - passed
        passed += part.points
    found = []
    for at in range(0, len(wanted), 100):
        for curve in sorted(project.store.records.find(Curve, run=run, keyset=keyset.id, part=wanted[at : at + 100]), key=lambda each: each.part):
            found.append(points.unpack(curve.data, [metric]))
    if found and skip:
        first = found[0]
        found[0] = points.Block(first.names, first.steps[skip:], first.times[skip:], first.values[:, skip:])
    return found


def _outline(keysets: dict[Keyset, Parts], metric: str, buckets: int) -> Outline:
    import numpy as np

    from palan.runs import points

    drawn = []
    for keyset, parts in keysets.items():
        row = keyset.names.index(metric)
        drawn += [(each, row) for each in (points.unpack_outline(part.outline, keyset.names) for part in parts)]
    steps = np.concatenate([each.steps for each, _ in drawn])
    order = np.argsort(steps, kind="stable")
    times = np.concatenate([each.times for each, _ in drawn])[order]
    extremes = np.concatenate([each.extremes[row] for each, row in drawn])[order]
    return points.coarser(points.Outline((metric,), steps[order], times, extremes[None]), buckets)


def compare(project: Project, ids: Sequence[str]) -> dict[str, Any]:
    """Put runs side by side: {"runs", "differ": {"params", "metrics", "tags", "about"}, "same": {...}}, what differs first.

    Each name has a value for each run, None where a run lacks it.

    Raises:
        NotFound: no such run.
        Invalid: fewer than two runs.
    """
    found = [find_run(project, id) for id in dict.fromkeys(ids)]
    if len(found) < 2:
        raise Invalid("one run cannot be compared", "palan runs compare RUN RUN", field="runs", value=list(ids))
    values = _values(project, [run.id for run in found])
    told = [{**told_of(run, values.get(run.id, ())), "about": {"code": run.code, **{f"data.{name}": number for name, number in run.data.items()}, **run.environment}} for run in found]
    differ: dict[str, dict[str, list[Any]]] = {}
    same: dict[str, dict[str, Any]] = {}
    for part in ("params", "metrics", "tags", "about"):
        differ[part], same[part] = {}, {}
        for name in dict.fromkeys(name for each in told for name in each[part]):
            row = [each[part].get(name) for each in told]
            if any(value != row[0] for value in row):
                differ[part][name] = row
            else:
                same[part][name] = row[0]
    return {"runs": [{name: each[name] for name in ("run", "name", "experiment", "status", "started", "ended")} for each in told], "differ": differ, "same": same}
