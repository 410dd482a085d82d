"""`palan runs`: search all runs, look at one, compare some."""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from palan.core import figure, natural, stamp
from palan.errors import Invalid, NotFound
from palan.flows.fold import fold, look
from palan.flows.project import Project
from palan.runs.beside import columns, fields_of, repeated
from palan.runs.run import Artifact, Curve, Drawn, Keyset, Listed, Run, Shown, Value
from palan.runs.search import Both, Compare, Condition, Field, parse, parse_order

if TYPE_CHECKING:
    from palan.runs.points import Outline

DRAWN = 1000
"""Points of a curve, or pairs of least and largest, that are sent if no other number is asked for."""

SHORT = 8
"""Characters at the end of an id that a run is shown and found by: there ids of one moment differ."""

CONFIDENCE = 0.95

MOST = 10_000
"""Runs that one answer holds at the most."""

COMPARED = 200
"""Runs that are put side by side at the most."""


def search(project: Project, where: str = "", *, order: Sequence[str] = (), after: str = "", limit: int = 50, flow: str = "track") -> dict[str, Any]:
    """Search runs: `where` is a text such as "metrics.loss < 0.3 AND params.model = 'trees'", `order` keys such as "metrics.loss".

    Returns {"runs": [...], "next", "reading"}: each run with its params, metrics (last values) and tags; `next`, given as
    `after`, continues, and is empty at the end. `reading` says that more was logged than could be read in the time that
    somebody waits: the next search goes on with it. `flow` is what kind of run: "track" (what somebody tracks), "build", ...; empty for all.

    Raises:
        PalanError: the search or an order cannot be read; the character is marked.
        Invalid: `after` is no place that was given out.
    """
    reading = look(project)
    told = parse(where)
    aside = Field("attribute", "deleted")
    parts: list[Condition] = [] if aside in fields_of(told) else [Compare(aside, "null")]  # nothing that was deleted, unless asked for
    parts += [Compare(Field("attribute", "flow"), "=", (flow,))] if flow else []
    parts += [told] if told else []
    found = project.store.records.search(Listed, Both(tuple(parts), every=True), parse_order(order), after=_place(after), limit=limit + 1)
    shown = found[:limit]
    values = _values(project, [run.id for run, _ in shown])
    return {
        "runs": [told_of(run, values[run.id]) for run, _ in shown],
        "next": _token(shown[-1][1]) if len(found) > limit else "",
        "reading": reading,
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


Held = Mapping[str, Mapping[str, Any]]
"""What is shown of the values of a run: its params, its metrics (last values) and its tags."""


def _values(project: Project, ids: Sequence[str]) -> dict[str, Held]:
    found: dict[str, dict[str, dict[str, Any]]] = {id: {"params": {}, "metrics": {}, "tags": {}} for id in ids}
    for at in range(0, len(ids), 500):
        some = list(ids[at : at + 500])
        for (run, kind), texts in project.store.records.texts(Value, "text", run=some, kind=["param", "tag"]).items():
            found[run][f"{kind}s"] = texts
        for each in project.store.records.find(Shown, run=some, kind="metric"):
            found[each.run]["metrics"][each.key] = each.number
    return {**found}


def told_of(run: Run | Listed, values: Held) -> dict[str, Any]:
    """Return a run as plain values."""
    return {
        "run": run.id,
        "name": run.name,
        "flow": run.flow,
        "experiment": run.subject,
        "status": run.status,
        "started": _stamped(run.time),
        "ended": _stamped(run.ended) if run.ended else None,
        "parent": run.parent,
        "deleted": _stamped(run.deleted) if run.deleted else None,
        "reason": run.reason,
        **values,
    }


def _stamped(time: datetime | str) -> str:
    return time if isinstance(time, str) else stamp(time)


def find_run(project: Project, id: str) -> Run:
    """Return a run by its id, the beginning or the end of one, or its name.

    Raises:
        NotFound: there is none, or more than one.
    """
    return _looked(project, id)[0]


def _looked(project: Project, id: str) -> tuple[Run, bool]:
    """Return a run, and whether more was logged than is read."""
    reading = look(project)
    try:
        return _found(project, id), reading
    except NotFound:
        if not reading:
            raise
    fold(project)
    return _found(project, id), False


def _found(project: Project, id: str) -> Run:
    records = project.store.records
    exact = records.get(Run, id)
    if exact is not None:
        return exact
    end = f" or id like {_quoted('%' + _literal(id))}" if len(id) >= SHORT else ""
    wanted = parse(f"name = {_quoted(id)} or id like {_quoted(_literal(id) + '%')}{end}")
    found = records.search(Run, wanted, limit=2) if id else []
    if len(found) == 1:
        return found[0][0]
    if found:
        raise NotFound(f'more than one run is called "{id}", or has it in its id', f"give more of its id: {found[0][0].id} or {found[1][0].id}")
    raise NotFound(f'no run "{id}"', "palan runs")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _literal(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def run_page(project: Project, id: str) -> dict[str, Any]:
    """Return everything that is known of one run: values with their extremes, artefacts, children, surroundings.

    `reading` says that more was logged than could be read in the time that somebody waits.

    Raises:
        NotFound: there is no such run.
    """
    run, reading = _looked(project, id)
    records = project.store.records
    values = _values(project, [run.id])[run.id]
    return {
        **told_of(run, {kind: dict(sorted(held.items(), key=lambda each: natural(each[0]))) for kind, held in values.items()}),
        "curves": [
            {"metric": each.key, "last": each.number, "min": each.least, "max": each.largest, "points": each.count, "step": each.step}
            for each in sorted(records.find(Value, run=run.id, kind="metric"), key=lambda each: natural(each.key))
        ],
        "artifacts": [{"path": each.path, "blob": each.blob, "size": each.size} for each in sorted(records.find(Artifact, run=run.id), key=lambda each: natural(each.path))],
        "children": [{"run": each.id, "name": each.name, "status": each.status} for each in records.find(Run, parent=run.id, order="time")],
        "code": run.code,
        "data": dict(run.data),
        "environment": dict(run.environment),
        "reading": reading,
    }


def artifact(project: Project, id: str, path: str) -> Path:
    """Return a file that a run kept as a new file of the temporary folder, proven; whoever asks removes it.

    Raises:
        NotFound: no such run, or it kept no file of this path.
        Corrupt: the bytes are not those that were kept.
    """
    run = find_run(project, id)
    found = project.store.records.find(Artifact, run=run.id, path=path)
    if not found:
        raise NotFound(f'run {run.id} kept no file "{path}"', f"palan runs show {run.id}")
    handle, name = tempfile.mkstemp(prefix="palan-")
    os.close(handle)
    file = Path(name)
    try:
        project.store.blobs.get(found[0].blob, into=file)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return file


def curve(project: Project, id: str, metric: str, *, points: int = DRAWN, after: int = 0, low: int | None = None, high: int | None = None) -> dict[str, Any]:
    """Return a metric's curve: {"steps", "values"} with every point where there are no more than `points`; else {"steps", "least",
    "largest"} of equal stretches, which keep every extreme. `low` and `high` are the first and the last step that are asked for.
    `count` is how many points there are in all: given as `after`, only newer ones come, each of them.

    Raises:
        NotFound: no such run, or it has no such metric.
    """
    found = curves(project, [id], metric, points=points, after=after, low=low, high=high)[0]
    if not found["count"]:
        raise NotFound(f'run {found["run"]} has no metric "{metric}"', f"palan runs show {found['run']}")
    return found


def curves(project: Project, ids: Sequence[str], metric: str, *, points: int = DRAWN, after: int = 0, low: int | None = None, high: int | None = None) -> list[dict[str, Any]]:
    """Return the curves of one metric of many runs, as `curve` has them; of a run without it an empty one.

    Raises:
        NotFound: no such run.
    """
    look(project)
    having = {each.id: each for each in project.store.records.find(Keyset) if metric in each.names}
    return [_curve(project, _found(project, id).id, metric, having, points, after, low, high) for id in ids]


def _curve(project: Project, run: str, metric: str, having: Mapping[str, Keyset], points: int, after: int, low: int | None, high: int | None) -> dict[str, Any]:
    import numpy as np

    from palan.runs.points import Block, coarser, outline

    keysets = _keysets(project, run, having)
    total = sum(part.points for parts in keysets.values() for part in parts)
    told = {"run": run, "metric": metric, "count": total}
    if not after:  # whoever follows a curve has drawn it before
        drawn = _outline(keysets, metric, low, high)
        if len(drawn.steps) > points:
            return told | _stretches(coarser(drawn, points))
    blocks = []
    for keyset, parts in keysets.items():
        within = parts if after or low is None or high is None else _within(parts, keyset, low, high)
        blocks += _blocks(project, run, keyset, within, metric, after if len(keysets) == 1 else 0)
    steps, times, values = (np.concatenate([getattr(each, what) for each in blocks], axis=-1) if blocks else np.empty((1, 0)) for what in ("steps", "times", "values"))
    steps, times, numbers = steps.reshape(-1), times.reshape(-1), values.reshape(-1)
    order = np.argsort(steps, kind="stable")
    order = order[after:] if len(keysets) > 1 else order
    if low is not None and high is not None:
        order = order[(steps[order] >= low) & (steps[order] <= high)]
    if len(order) > points and not after:
        return told | _stretches(outline(Block((metric,), steps[order], times[order], numbers[order][None]), -(-len(order) // points)))
    return told | {"steps": steps[order].tolist(), "times": times[order].tolist(), "values": _plain(numbers[order])}


def _stretches(drawn: Outline) -> dict[str, Any]:
    return {"steps": drawn.steps.tolist(), "times": drawn.times.tolist(), "least": _plain(drawn.extremes[0, :, 0]), "largest": _plain(drawn.extremes[0, :, 1])}


def _plain(numbers: Any) -> list[float | None]:
    """Return numbers for JSON, which has no NaN and no infinity."""
    import numpy as np

    return [value if finite else None for value, finite in zip(numbers.tolist(), np.isfinite(numbers).tolist(), strict=True)]


Parts = Sequence[Drawn]


def _keysets(project: Project, run: str, having: Mapping[str, Keyset]) -> dict[Keyset, Parts]:
    """Return the keysets of a run that have the metric, with the parts of their curves."""
    found: dict[Keyset, list[Drawn]] = {}
    for at in range(0, len(having), 500):
        for part in project.store.records.find(Drawn, run=run, keyset=list(having)[at : at + 500]):
            found.setdefault(having[part.keyset], []).append(part)
    return {keyset: sorted(parts, key=lambda each: each.part) for keyset, parts in found.items()}


def _within(parts: Parts, keyset: Keyset, low: int, high: int) -> Parts:
    """Return the parts that may hold points from `low` to `high`: all of them where the steps do not only rise."""
    import numpy as np

    from palan.runs.points import unpack_outline

    steps = [unpack_outline(each.outline, keyset.names).steps for each in parts]
    if (np.diff(np.concatenate(steps)) < 0).any():
        return parts
    begins = [each[0] for each in steps]
    ends = [*begins[1:], np.inf]
    return [part for part, begin, end in zip(parts, begins, ends, strict=True) if begin <= high and end >= low]


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


def _outline(keysets: dict[Keyset, Parts], metric: str, low: int | None, high: int | None) -> Outline:
    """Return the outline of a metric as it is kept, or the part of it that may hold points from `low` to `high`."""
    import numpy as np

    from palan.runs import points

    drawn = []
    for keyset, parts in keysets.items():
        row = keyset.names.index(metric)
        drawn += [(each, row) for each in (points.unpack_outline(part.outline, keyset.names) for part in parts)]
    if not drawn:
        return points.Outline((metric,), np.empty(0, np.int64), np.empty(0, np.int64), np.empty((1, 0, 2)))
    steps = np.concatenate([each.steps for each, _ in drawn])
    order = np.argsort(steps, kind="stable")
    times = np.concatenate([each.times for each, _ in drawn])[order]
    extremes = np.concatenate([each.extremes[row] for each, row in drawn])[order]
    kept = slice(None)
    if low is not None and high is not None:  # a stretch is known by its first step: the one before may reach into the range
        kept = slice(max(0, int(np.searchsorted(steps[order], low, "right")) - 1), int(np.searchsorted(steps[order], high, "right")))
    return points.Outline((metric,), steps[order][kept], times[kept], extremes[kept][None])


def chosen(project: Project, ids: Sequence[str], where: str = "", *, order: Sequence[str] = (), flow: str = "track") -> list[str]:
    """Return the runs to put side by side: those that are named, or else the first that a search finds."""
    if not ids:
        fold(project)
    return list(ids) or [each["run"] for each in search(project, where, order=order, limit=COMPARED, flow=flow)["runs"]]


def compare(project: Project, ids: Sequence[str]) -> dict[str, Any]:
    """Put runs side by side: {"runs", "differ": {"params", "metrics", "tags", "about"}, "same": {...}, "seeds"}, what differs first.

    Each name has a value for each run, None where a run lacks it. Runs that share all parameters but `seed` are a group; where
    there are several, "seeds" says for each metric how much a group's differs from the first one's, paired by seed.

    Raises:
        NotFound: no such run.
        Invalid: fewer than two runs.
    """
    fold(project)
    found = list({run.id: run for run in (_found(project, id) for id in ids)}.values())
    if len(found) > COMPARED:
        raise Invalid(f"{len(found)} runs are too many to compare", f"at most {COMPARED}; palan runs --order metrics.loss --limit {COMPARED}", field="runs", value=len(found))
    if len(found) < 2:
        raise Invalid("one run cannot be compared", "palan runs compare RUN RUN", field="runs", value=list(ids))
    values = _values(project, [run.id for run in found])
    told = [{**told_of(run, values[run.id]), "about": {"code": run.code, **{f"data.{name}": number for name, number in run.data.items()}, **run.environment}} for run in found]
    differ: dict[str, dict[str, list[Any]]] = {}
    same: dict[str, dict[str, Any]] = {}
    for part in ("params", "metrics", "tags", "about"):
        differ[part], same[part] = {}, {}
        for name in sorted({name for each in told for name in each[part]}, key=natural):
            row = [each[part].get(name) for each in told]
            if any(value != row[0] for value in row):
                differ[part][name] = row
            else:
                same[part][name] = row[0]
    return {
        "runs": [{name: each[name] for name in ("run", "name", "experiment", "status", "started", "ended")} for each in told],
        "differ": differ,
        "same": same,
        "seeds": by_seed(told),
    }


def by_seed(told: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return how the metrics of repeated runs differ between groups, paired by the seeds that both have.

    Each is {"metric", "group", "against", "seeds", "mean", "low", "high", "p", "text"}: the parameters that tell the group from the
    one it is held against, the mean difference with its interval, and the chance of one as large by luck, adjusted for how many
    are compared (Holm). What is sure comes first. `low` and `high` are None with too few seeds.
    """
    groups = repeated(told)
    if len(groups) < 2:
        return []
    from math import isfinite

    from palan.gates.paired import FEWEST_BLOCKS, holm, interval, t_cdf

    found: list[dict[str, Any]] = []
    first = groups[0]
    for group in groups[1:]:
        seeds = [seed for seed in group.runs if seed in first.runs]
        if len(seeds) < 2:
            continue
        names = [name.removeprefix("metrics.") for name in columns([run for seed in seeds for run in (group.runs[seed], first.runs[seed])]) if name.startswith("metrics.")]
        for name in names:
            pairs = [(group.runs[seed]["metrics"].get(name), first.runs[seed]["metrics"].get(name)) for seed in seeds]
            differences = [a - b for a, b in pairs if a is not None and b is not None and isfinite(a) and isfinite(b)]
            if len(differences) < 2:
                continue
            apart = interval(differences, confidence=CONFIDENCE)
            enough = len(differences) >= FEWEST_BLOCKS
            p = 1.0 if not enough else float(apart.mean == 0) if apart.error == 0 else 2 * (1 - t_cdf(abs(apart.mean) / apart.error, apart.freedom))
            apart_by = [key for key in group.params if group.params[key] != first.params[key]]
            found.append({
                "metric": name, "group": {key: group.params[key] for key in apart_by}, "against": {key: first.params[key] for key in apart_by}, "seeds": len(differences), "mean": apart.mean,
                "low": apart.low if enough else None, "high": apart.high if enough else None, "p": p,
            })  # fmt: skip
    for each, p in zip(found, holm([each["p"] for each in found]), strict=True):
        each["p"] = p
        each["text"] = _difference(each)
    return sorted(found, key=lambda each: each["p"] >= 1 - CONFIDENCE)  # what is sure first


def _difference(each: Mapping[str, Any]) -> str:
    """Say a difference: "lower by 0.012 (0.004 to 0.02) over 5 seeds"."""
    over = f"over {each['seeds']} seeds"
    way = "lower" if each["mean"] < 0 else "higher"
    if each["low"] is None:
        return f"{way} by {figure(abs(each['mean']))} {over}: too few seeds to tell it from chance"
    if each["mean"] == each["low"] == each["high"] == 0:
        return f"the same {over}"
    low, high = sorted((each["low"], each["high"]), key=abs) if each["low"] * each["high"] > 0 else (each["low"], each["high"])
    if each["p"] < 1 - CONFIDENCE:
        return f"{way} by {figure(abs(each['mean']))} ({figure(abs(low))} to {figure(abs(high))}) {over}"
    return f"no sure difference {over}: {figure(each['mean'])} ({figure(each['low'])} to {figure(each['high'])})"
