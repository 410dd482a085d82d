"""`palan why`: what changed, for a build step, a version, a decision or an alarm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palan.core import Version, is_whole, stamp
from palan.drift.nouns import Alarm
from palan.errors import NotFound, nearest
from palan.flows.project import Project
from palan.ledger import Entry
from palan.models.contract import SHAPE
from palan.remedies.nouns import Remedy
from palan.runs.run import Step


def why(project: Project, subject: str) -> dict[str, Any]:
    """Explain a subject: the id of an alarm or a decision, a version ("delay@3"), a model, or the name of a step.

    For a version or a step: which part of its key differs from the one before it. For an alarm: the diagnosis, and
    what was tried. For a decision: which version answered, under which release, with which inputs.

    Raises:
        NotFound: nothing is called so.
    """
    records = project.store.records
    alarm = _by_prefix(project, Alarm, subject)
    if alarm is not None:
        return _alarm(project, alarm)
    if "@" in subject or subject in project.config.models:
        return _version(project, subject)
    steps = records.find(Step, order="-time", name=subject, limit=2)
    if steps:
        return {"kind": "step", "step": subject, "runs": [each.run for each in steps], "changed": _changed(steps)}
    decision = _decision(project, subject)
    if decision is not None:
        return decision
    known = {step.name for step in records.find(Step, order="-time", limit=200)}
    raise NotFound(
        f'nothing here is called "{subject}"',
        nearest(subject, [*project.config.models, *known]) or "give a model, a version, a step, or the id of an alarm or a decision",
    )


def _by_prefix(project: Project, noun: type[Alarm], subject: str) -> Alarm | None:
    exact = project.store.records.get(noun, subject)
    if exact is not None or len(subject) < 6:
        return exact
    return next((each for each in project.store.records.find(noun, order="-time") if each.id.startswith(subject)), None)


def _alarm(project: Project, alarm: Alarm) -> dict[str, Any]:
    remedies = project.store.records.find(Remedy, order="-time", alarm=alarm.id)
    return {
        "kind": "alarm",
        "id": alarm.id,
        "model": alarm.model,
        "lane": alarm.lane,
        "status": alarm.status,
        "since": stamp(alarm.since),
        "until": stamp(alarm.until),
        "what": alarm.what,
        "diagnosis": alarm.diagnosis,
        "columns": list(alarm.columns),
        "evidence": dict(alarm.evidence),
        "remedies": [
            {"status": each.status, "choice": each.choice, "reason": each.reason, "candidates": list(each.candidates)}
            for each in remedies
        ],
    }


def _version(project: Project, subject: str) -> dict[str, Any]:
    from palan.flows.packages import find_version

    version = find_version(project, subject)
    before = project.store.records.find(Version, model=version.model, number=version.number - 1)
    entries = list(project.store.records.find(Entry, subject=version.ref))
    return {
        "kind": "version",
        "version": version.ref,
        "id": version.id,
        "built": stamp(version.time),
        "reason": next((each.reason for each in entries if each.verb == "built"), ""),
        "against": before[0].ref if before else "",
        "changed": _differences(before[0].manifest, version.manifest) if before else ["it is the first version"],
    }


def _differences(old: Any, new: Any) -> list[str]:
    """Say in which parts two manifests differ."""
    found = []
    for name in sorted({*old["closure"], *new["closure"]}):
        if old["closure"].get(name) != new["closure"].get(name):
            found.append(_said("code", name, old["closure"].get(name), new["closure"].get(name), show=False))
    for part in ("params", "environment"):
        for name in sorted({*old[part], *new[part]}):
            if old[part].get(name) != new[part].get(name):
                found.append(_said(part, name, old[part].get(name), new[part].get(name), show=True))
    if old["data"] != new["data"]:
        found.append(
            f"data: {old['data'].get('ref', 'none')}, {old['data'].get('rows', 0):,} rows"
            f" -> {new['data'].get('ref', 'none')}, {new['data'].get('rows', 0):,} rows"
        )
    for part in ("seed", "signature", "kind", "outcome", "key"):
        if old[part] != new[part]:
            found.append(f"{part} changed")
    if not found and old["state"] != new["state"]:
        found.append("only what it learnt differs: the same code and data version over other rows")
    return found


def _said(part: str, name: str, old: Any, new: Any, *, show: bool) -> str:
    if old is None:
        return f"{part}: {name} is new" + (f" ({new})" if show else "")
    if new is None:
        return f"{part}: {name} is gone"
    return f"{part}: {name} " + (f"{old} -> {new}" if show else "was edited")


def _changed(steps: list[Step]) -> list[str]:
    if len(steps) < 2:
        return ["it ran once"]
    new, old = steps
    return _unlike("", old.parts, new.parts) or ["nothing that it depends on"]


def _unlike(part: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            found += _unlike(name, before, after)
        else:  # of code the digests tell nothing; a version or a value does
            shown = part != "code" or name.startswith("distribution ")
            found.append(_said(part, name, before, after, show=shown) if part else f"{name}: {before!r} -> {after!r}")
    return found


def _decision(project: Project, subject: str) -> dict[str, Any] | None:
    from palan.flows import history
    from palan.flows.packages import find_version

    request, _, row = subject.rpartition("-")
    request, index = (request, int(row)) if request and is_whole(row) else (subject, 0)
    for model in project.config.models:
        for each in history.decisions(project, model):
            if each.id != request or index >= each.rows:
                continue
            # an instance may hold lists like columns; only the kind of what answered tells them apart
            rows = SHAPE[find_version(project, each.version).kind] == "rows"
            return {
                "kind": "decision",
                "id": f"{each.id}-{index}",
                "model": model,
                "version": each.version,
                "epoch": each.epoch,
                "arm": each.arm,
                "propensity": each.propensity,
                "time": stamp(each.time),
                "status": each.status,
                "degraded": each.degraded,
                "inputs": _row(each.inputs, index) if rows else each.inputs,
                "outputs": _row(each.outputs, index) if rows and each.outputs else each.outputs,
                "result": each.result,
                "violations": each.violations,
            }
    return None


def _row(columns: Mapping[str, Any], index: int) -> dict[str, Any]:
    return {name: values[index] for name, values in columns.items()}
