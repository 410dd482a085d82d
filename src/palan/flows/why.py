"""`palan why`: what changed, for a build step, a version, a decision or an alarm; of a data version what came, and what waits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from palan.core import Version, digest_of, figure, is_whole, stamp
from palan.data.nouns import DataVersion
from palan.drift.nouns import Alarm
from palan.errors import NotFound, PalanError, nearest
from palan.flows.journal import MOST
from palan.flows.project import Project
from palan.ledger import Entry
from palan.models.contract import SHAPE
from palan.releases.nouns import Release
from palan.remedies.nouns import Remedy
from palan.runs.run import Attempt, Step

ALIKE = 50
"""Among how many of its newest records a step is compared with the one that is most alike."""


def why(project: Project, subject: str) -> dict[str, Any]:
    """Explain a subject: the id of an alarm or a decision, a version ("delay@3"), a model, data, or the name of a step.

    For a version: which part of it differs from the one before it. For a step: from the recorded one that is most alike,
    how often it failed, and whether it is given up. For a model also what its version
    depends on, and what a build of now would find changed. For an alarm: the diagnosis, and
    what was tried. For a decision: which version answered, under which release, with which inputs.

    For data ("weather", "weather@5"): the files that it came from, what is suspected of it, and every row in quarantine.

    Raises:
        NotFound: nothing is called so.
    """
    records = project.store.records
    alarm = _by_prefix(project, Alarm, subject)
    if alarm is not None:
        return _alarm(project, alarm)
    name = subject.partition("@")[0]
    if name in project.config.data and name not in project.config.models:
        from palan.flows.quarantine import explain

        return explain(project, subject)
    if "@" in subject or subject in project.config.models:
        return _version(project, subject)
    steps = records.find(Step, order="-time", name=subject, limit=ALIKE)
    attempts = records.find(Attempt, order="-time", name=subject)
    if steps or attempts:
        return _step(project, subject, steps, attempts)
    decision = _decision(project, subject)
    if decision is not None:
        return decision
    known = {step.name for step in records.find(Step, order="-time", limit=200)}
    raise NotFound(
        f'nothing here is called "{subject}"',
        nearest(subject, [*project.config.models, *project.config.data, *known]) or "give a model, data, a version, a step, or the id of an alarm or a decision",
    )


def _by_prefix(project: Project, noun: type[Alarm], subject: str) -> Alarm | None:
    exact = project.store.records.get(noun, subject)
    if exact is not None or len(subject) < 6:
        return exact
    return next((each for each in project.store.records.find(noun, order="-time") if each.id.startswith(subject)), None)


def _alarm(project: Project, alarm: Alarm) -> dict[str, Any]:
    remedies = project.store.records.find(Remedy, order="-time", alarm=alarm.id)
    unit = project.config.models[alarm.model].watch.unit if alarm.model in project.config.models else ""
    entries = project.store.records.find(Entry, order="seq", since=alarm.time)
    found = {
        "kind": "alarm",
        "id": alarm.id,
        "model": alarm.model,
        "lane": alarm.lane,
        "status": alarm.status,
        "since": stamp(alarm.since),
        "seen": stamp(alarm.time),
        "until": stamp(alarm.until),
        "what": alarm.what,
        "diagnosis": alarm.diagnosis,
        "because": str(alarm.evidence.get("because", "")),
        "columns": list(alarm.columns),
        "evidence": {name: value for name, value in alarm.evidence.items() if name != "because"},
        "remedies": [
            {
                "status": each.status,
                "choice": each.choice,
                "reason": each.reason,
                "candidates": list(each.candidates),
                "judged": next((entry.reason for entry in entries if entry.verb == each.status and entry.detail.get("remedy") == each.id), ""),
            }
            for each in remedies
        ],
    }
    return {**found, "text": "\n".join(_alarm_lines(found, unit))}


def _alarm_lines(alarm: Mapping[str, Any], unit: str) -> Iterator[str]:
    """Tell an alarm as a person reads it: what, why, which figures, what was tried, and what came of it."""
    yield f"{alarm['model']}: {alarm['what']}"
    yield f"  {alarm['lane']}, {alarm['status']}; the newest window that it tells of ends on {alarm['until'][:10]}"
    if alarm["because"] not in ("", alarm["what"]):
        yield f"  {alarm['diagnosis']}: {alarm['because']}"
    evidence = alarm["evidence"]
    moved = [each for each in evidence.get("columns", []) if each["name"] in alarm["columns"]]
    if moved:
        yield "  columns, by the share of rows that moved:"
        for each in moved:
            usual = f", seldom more than {each['threshold']:.0%}"
            yield f"    {each['name']} {each['distance']:.0%}{usual if each['distance'] > each['threshold'] else ''}"
    cells = (evidence.get("split") or {}).get("cells") or []
    if cells:
        yield "  where equal inputs lose more:"
        for each in cells:
            yield f"    {each['where']}: loss {figure(each['after'], 3)} {unit}".rstrip() + f" where it was {figure(each['before'], 3)} ({each['rows']:,} decisions)"
    for fault in evidence.get("faults", [])[1:]:
        yield f"  also: {fault['text']} ({fault['confidence']:.0%} sure)"
    for remedy in alarm["remedies"]:
        yield "  tried, gain a decision:"
        for row in remedy["candidates"]:
            yield f"   {'*' if row.get('chosen') else ' '}{row['name']}: {_trial(row)}"
        yield f"  {remedy['choice']}: {remedy['reason']}"
        yield f"  {remedy['status']}" + (f": {remedy['judged']}" if remedy["judged"] else "")
    if alarm["lane"] == "page" and not alarm["remedies"]:
        yield f"  nothing was tried yet: palan react {alarm['model']}"


def _trial(row: Mapping[str, Any]) -> str:
    if row["gain"] is None:
        return str(row["verdict"])
    interval = "" if row["low"] is None else f" ({row['low']:+.4f} to {row['high']:+.4f})"
    return f"{row['gain']:+.4f}{interval}, cost {figure(row['cost'], 3)}: {row['verdict']}"


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
        "depends on": _basis(version.manifest),
        "changed since": _since(project, version) if subject == version.model else [],
    }


def _basis(manifest: Mapping[str, Any]) -> list[str]:
    """Say what a version was made of."""
    data = manifest["data"]
    learnt = f"data: {data['ref']}, {data['rows']:,} rows" + (f" until {data['until'][:10]}" if data["until"] else "") if data else ""
    return [
        f"code: {', '.join(sorted({name.partition(':')[0] for name in manifest['closure']}))}",
        *(f"params: {name} = {value}" for name, value in sorted(manifest["params"].items())),
        *(f"feature: {name} of {', '.join([*each['inputs']]) or 'nothing'}" + (f": {each['about']}" if each["about"] else "") for name, each in _features(manifest).items()),
        *([learnt] if learnt else []),
        f"environment: {', '.join(f'{name} {version}' for name, version in sorted(manifest['environment'].items()))}",
    ]


def _features(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    return manifest.get("features", {}).get("made", {})  # type: ignore[no-any-return]


def _since(project: Project, version: Version) -> list[str]:
    """Say what a build of today would find changed since a version was built: code, parameters, libraries, data."""
    from palan.flows import packages, tables

    config, old = project.model(version.model), version.manifest
    try:
        code = packages.code_of(project, config.model, config.features)
        newest = tables.latest(project, config.data) if config.data else None
        stale = _stale(project, config.data) if config.data else []
    except PalanError as error:
        return [f"code: {error.what}"]
    data = old["data"]
    if newest is not None and data and newest.id != data["id"]:
        data = {**data, "ref": newest.ref, "rows": newest.rows}
    now = {
        **old,
        "closure": dict(code.parts),
        "params": {**old["params"], **config.params},
        "environment": packages.environment(code),
        "data": data,
        "outcome": config.outcome,
        "key": config.key,
    }
    found = [*_differences(old, now), *_learnt_otherwise(project, version), *stale]
    return found or ["nothing: a build now would make the same version again"]


def _learnt_otherwise(project: Project, version: Version) -> list[str]:
    """Say what a fit of today would be given otherwise, by the key of the one that the version was built by."""
    fits = project.store.records.find(Step, order="-time", name=f"fit {version.model}", run=version.run, limit=1)
    if not fits:
        return []
    config, release = project.model(version.model), project.store.records.get(Release, version.model)
    parts = {
        "repairs": (digest_of(release.repairs if release else ()), "other ones are in force"),
        "inputs": (list(config.inputs), "palan.toml names other columns"),
        "contract": (digest_of(project.data(config.data).table), f"other rules hold for {config.data}"),
    }
    return [f"{name}: {said}" for name, (now, said) in parts.items() if fits[0].parts.get(name) != now]


def _stale(project: Project, data: str) -> list[str]:
    """Say what changed since a table was made by its transformation: its code, and the tables that it is made from."""
    from palan.flows import packages, tables

    transform = project.data(data).transform
    made = project.store.records.find(Step, order="-time", name=f"transform {data}", limit=1) if transform else []
    if not made:
        return []
    parts = made[0].parts
    found = _unlike("code", parts["code"], packages.code_of(project, transform).to_dict())
    for name, id in parts["inputs"].items():
        newest = tables.latest(project, name)
        if newest is not None and newest.id != id:
            found.append(f"data: {newest.ref} came since {data} was made from {name}")
        found += _stale(project, name)
    return found


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
    before, after = _features(old), _features(new)
    for name in sorted({*before, *after}):
        if (was := before.get(name, {}).get("digest")) != (now := after.get(name, {}).get("digest")):
            found.append(_said("feature", name, was, now, show=False).replace("was edited", "gives another value"))
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


def _step(project: Project, name: str, steps: Sequence[Step], attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Say why a step was done and not taken as it was recorded: how it differs from the one before it that is most alike."""
    found: dict[str, Any] = {"kind": "step", "step": name}
    if steps:
        new, *earlier = [{**each.parts, **_named(project, each.parts)} for each in steps]
        changes = [_unlike("", each, new) for each in earlier]
        nearest = min(range(len(changes)), key=lambda place: len(changes[place]), default=None)
        found["runs"] = [steps[0].run] + ([] if nearest is None else [steps[nearest + 1].run])
        found["changed"] = ["it ran once"] if nearest is None else changes[nearest]
    if attempts:
        last = attempts[0]
        found["tried"] = f"{last.count} times in a row without an end, last at {stamp(last.time)}: {last.reason}" if last.count else f"let go on by palan retry; before: {last.reason}"
        if last.count >= MOST:
            found["to do"] = f'it is not tried any more; put that right, then: palan retry "{name}"'
    return found


def _named(project: Project, parts: Mapping[str, Any]) -> dict[str, str]:
    """Return the parts that are the id of a data version or a version by the name that a person knows."""
    find, given = project.store.records.find, {name: value for name, value in parts.items() if isinstance(value, str)}
    known: dict[str, list[DataVersion] | list[Version]] = {name: find(DataVersion, id=given[name]) for name in ("data", "rows") if name in given}
    known |= {"version": find(Version, id=given["version"])} if "version" in given else {}
    return {name: found[0].ref for name, found in known.items() if found}


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
            told = part or all(len(str(each)) < 60 for each in (before, after))
            found.append(_said(part, name, before, after, show=shown) if part else f"{name}: {before} -> {after}" if told else f"{name}: was edited")
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
