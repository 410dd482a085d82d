"""`palan status`: is everything right in production, and if not, what to do? The pages show the same plain dicts.

`web/views.py` says what is in each dict; this room stands below it and builds them without importing it. Nothing here
loads a data frame library: the log is counted, never laid out as a table.
"""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from palan.core import Field, Schema, Version, canonical, counted, digest_of, is_whole, stamp, unstamp, utcnow
from palan.data.nouns import DataVersion, Quarantine
from palan.decisions.nouns import Decision, Job, Outcome
from palan.drift.nouns import Alarm
from palan.errors import Corrupt, NotFound, PalanError
from palan.flows import registered
from palan.flows.address import address
from palan.flows.config import ModelConfig
from palan.flows.deliveries import REFUSED, failure, silence
from palan.flows.journal import dead
from palan.flows.log import as_dict, chain
from palan.flows.project import Project
from palan.flows.windows import MUCH, ended_windows, first_window
from palan.gates.nouns import Evidence
from palan.ledger import Entry
from palan.models.contract import SHAPE
from palan.releases.nouns import Arm, Release
from palan.releases.route import REPAIR_ENDED, REPAIRED
from palan.remedies.nouns import Remedy
from palan.stores.contract import Blocks
from palan.stores.files import write_atomically

DAYS = 28
"""Days of traffic that are shown."""

WALKED = 1000
"""The ledger is walked for every page up to this many entries; beyond, `palan log --verify` does it when asked."""

SAVED_AFTER = 1 << 20
"""Bytes of log after which the count of it is kept in the cache folder."""

LONG_AGO = 8
"""Windows after which a silence is no longer news: then nobody asks the model, and nothing is to be done about it."""

LATELY = 8
RECENT_ENTRIES = 500
RECENT_REQUESTS = 20
RECENT_DECISIONS = 12
VERSIONS = 20
UNIT = "loss"
"""What a loss is called whose unit the project does not tell (`watch.unit`)."""

_NO_ANSWER = ("error", "licence", "timeout", "no_solution", "cancelled")
_RELEASES = ("released", "promoted", "rolled back", REPAIRED, REPAIR_ENDED)
_NIL = b"\xc0"


def status(project: Project, url: str = "") -> dict[str, Any]:
    """Return the first screen: every model with its verdict and the next step, the data, and what was done lately.

    `url` is the address of the server that asks; without it, of the one that is known to run.
    """
    url, newest = url or address(project), _newest_entries(project)
    empty = [name for name, each in project.config.data.items() if each.source and not _latest_data(project, name)]
    command = "palan ingest" if empty else ""
    return {
        "frame": frame(project),
        "models": _without_idle_steps([_model_line(project, each, newest, url) for each in project.config.models.values()]),
        "registered": registered.models(project),
        "data": [data_line(project, name) for name in project.config.data],
        "ledger": [_entry_line(each) for each in newest[:LATELY]],
        "dead": [{"step": each.name, "why": each.reason, "attempts": each.count, "command": f'palan retry "{each.name}"'} for each in dead(project)],
        "command": command if project.config.models else "palan init --into my-project",
    }


def _without_idle_steps(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask for a first request while no model has had one; once one works, the others are asked when somebody needs them."""
    begun = any(each["verdict"] not in ("not asked", "not released") or (each["verdict"] == "not asked" and not each["next"]) for each in models)
    return [{**each, "next": None} if begun and each["verdict"] == "not asked" else each for each in models]


def frame(project: Project) -> dict[str, Any]:
    """Return what stands around every page: project, clock, the ledger's state, open pages (a note asks for nothing)."""
    newest = project.store.records.find(Entry, order="-seq", limit=1)
    total = newest[0].seq if newest else 0
    walked = total <= WALKED
    return {
        "project": project.config.name,
        "now": stamp(project.clock()),
        "simulated": project.clock is not utcnow,
        "ledger_ok": not chain(project, project.store.records.find(Entry)) if walked else None,
        "ledger_entries": total,
        "open_alarms": len(project.store.records.find(Alarm, status="open", lane="page")),
    }


def model_page(project: Project, name: str, url: str = "") -> dict[str, Any]:
    """Return everything about one model: versions and their evidence, releases, alarms, decisions, how to call it.

    `url` is the address of the server that asks; without it, of the one that is known to run.

    Raises:
        NotFound: no such model.
    """
    config, url = project.model(name), url or address(project)
    records = project.store.records
    entries = [each for each in records.find(Entry, order="-seq") if _model_of(each) == name]
    release = records.get(Release, name)
    versions = records.find(Version, order="-number", limit=VERSIONS, model=name)
    version = _served(project, release) or (versions[0] if versions else None)
    schema = msgspec.convert(version.manifest["signature"], Schema) if version else None
    decisions = _last_decisions(project, name, RECENT_DECISIONS)
    line = _model_line(project, config, entries, url)
    return {
        "frame": frame(project),
        "model": {**line, "next": None} if line["verdict"] == "not asked" else line,  # how to call it stands below
        "about": _first_line(project, config, version),
        "arms": [_share(each, release) for each in release.arms] if release else [],
        "repairs": [_repair_line(each) for each in release.repairs] if release else [],
        "versions": [_version_line(project, each, release, entries) for each in versions],
        "registered": registered.versions(project, name),
        "releases": [_release_line(each, before) for each, before in _routings(entries)],
        "alarms": [_alarm_line(project, each) for each in records.find(Alarm, order="-time", limit=50, model=name)],
        "means": _first_line(project, config, version, "score").removeprefix("Return ").partition(", shape")[0].rstrip("."),
        "decisions": decisions,
        "jobs": _jobs(project, name),
        "signature": [line for each in schema.fields for line in _field_lines(each)] if schema else [],
        "shape": schema.shape if schema else SHAPE.get(kind_of(project, config), "rows"),
        **_calls(project, config, schema, decisions, url),
        "actions": _roll_back(name, release),
    }


def registered_page(project: Project, name: str) -> dict[str, Any]:
    """Return a model that MLflow's clients registered, with its versions.

    Raises:
        NotFound: no such model.
    """
    return {"frame": frame(project), "model": registered.model(project, name)}


def alarm_page(project: Project, id: str) -> dict[str, Any]:
    """Return one alarm (by its id, or the beginning of it): what changed, the diagnosis, what was tried, what was done.

    Raises:
        NotFound: no such alarm.
    """
    records = project.store.records
    alarm = records.get(Alarm, id)
    if alarm is None and len(id) >= 6:
        alarm = next((each for each in records.find(Alarm, order="-time") if each.id.startswith(id)), None)
    if alarm is None:
        raise NotFound(f'no alarm "{id}"', "palan status")
    remedies = records.find(Remedy, order="-time", limit=1, alarm=alarm.id)
    remedy = remedies[0] if remedies else None
    names = {alarm.id, remedy.id if remedy else alarm.id}
    entries = records.find(Entry, since=alarm.time - timedelta(days=1))
    evidence = dict(alarm.evidence)
    window = project.config.models[alarm.model].watch.window if alarm.model in project.config.models else timedelta(days=7)
    return {
        "frame": frame(project),
        "id": alarm.id,
        "model": alarm.model,
        "time": stamp(alarm.time),
        "lane": alarm.lane,
        "status": alarm.status,
        "since": stamp(alarm.since),
        "until": stamp(alarm.until),
        "what": alarm.what,
        "diagnosis": alarm.diagnosis,
        "because": str(evidence.pop("because", "")),
        "columns": _shifts(project, alarm),
        "evidence": {name: value for name, value in evidence.items() if name not in ("columns", "faults", "split", "silent", "ends_repair")},
        "loss": _loss(project, alarm.model, _frames(project, alarm.model), records.find(Entry), since=alarm.since - 12 * window, until=alarm.until + 8 * window),
        "remedy": remedy.id if remedy else None,
        "remedy_status": remedy.status if remedy else "",
        "candidates": [_candidate(each, remedy) for each in remedy.candidates] if remedy else [],
        "choice": remedy.choice if remedy else "",
        "reason": remedy.reason if remedy else "",
        "predicted": remedy.predicted if remedy else None,
        "realised": remedy.realised if remedy else None,
        "judged": next((each.reason for each in entries if remedy and each.verb in ("confirmed", "rolled back") and each.detail.get("remedy") == remedy.id), ""),
        "unit": _unit(project, alarm.model),
        "next": _alarm_step(project, alarm),
        "history": [_entry_line(each) for each in entries if names & {str(each.detail.get("alarm", "")), str(each.detail.get("remedy", ""))}],
    }


# -- one model's line ------------------------------------------------------------------------------------------------


def _model_line(project: Project, config: ModelConfig, entries: Sequence[Entry], url: str) -> dict[str, Any]:
    own = [each for each in entries if _model_of(each) == config.name]
    release = project.store.records.get(Release, config.name)
    now = project.clock()
    try:
        traffic, frames = _traffic(project, config.name), _frames(project, config.name)
        loss = _loss(project, config.name, frames, own)
        verdict, why, alarm, step = _verdict(project, config, release, traffic, frames, own, url)
    except Corrupt as error:  # one damaged log must not hide the other models
        traffic, loss = _Traffic(), _no_loss()
        verdict, why, alarm, step = "wrong", error.what, None, _step(error.hint, error.what, f"palan status {config.name}")
    counts = traffic.since(now - config.watch.window, now)
    return {
        "name": config.name,
        "kind": kind_of(project, config),
        "verdict": verdict,
        "why": why,
        "champion": release.champion.version if release else None,
        "champion_since": _champion_since(release, own) if release else None,
        "canary": _share(release.canary, release) if release and release.canary else None,
        "decisions": counts.decisions,
        "window": _span(config.watch.window),
        "degraded": counts.degraded,
        "violations": counts.violations,
        "traffic": traffic.daily(now) if release else {"times": [], "values": []},
        "loss": loss,
        "alarm": alarm,
        "notes": len(_notes(project, release)) if release else 0,
        "last": next((_done(each) for each in own if each.verb != "noted"), None),
        "next": step,
    }


Frame = Mapping[str, Any]
"""What the watch said of one window, as `flows.watch` logs it."""

Verdict = tuple[str, str, str | None, dict[str, Any] | None]
"""The verdict, why, the alarm that it is about, and the next step."""


def _verdict(
    project: Project,
    config: ModelConfig,
    release: Release | None,
    traffic: _Traffic,
    frames: Sequence[Frame],
    entries: Sequence[Entry],
    url: str,
) -> Verdict:
    """Judge a model by what was recorded, the worst first."""
    name, records = config.name, project.store.records
    newest = records.find(Version, order="-number", limit=1, model=name)
    if release is None:
        why, step = _to_release(project, config, newest[0] if newest else None)
        return "not released", why, None, step
    pages = records.find(Alarm, order="-time", model=name, status="open", lane="page")
    if pages:
        return "wrong", pages[0].what, pages[0].id, _alarm_step(project, pages[0])
    if trouble := _trouble(project, release):
        return "wrong", trouble[0], None, trouble[1]
    if failing := traffic.failing(project.clock() - config.watch.window):
        return "wrong", failing, None, _step("See what it was asked, and why it failed", failing, f"palan status {name}")
    last = max(traffic.hours, default=None)
    idle = last is not None and project.clock() - last >= LONG_AGO * config.watch.window
    if not idle and (quiet := traffic.silent(project.clock(), config.watch.window)):
        since, usual = quiet
        step = _step("Ask the callers why they stopped", f"its last decision is of {since:%Y-%m-%d}", f"palan log {name}")
        return "wrong", silence(usual, config.watch.window), None, step
    proposed = records.find(Remedy, order="-time", limit=1, model=name, status="proposed")
    if proposed:
        alarm = records.get(Alarm, proposed[0].alarm)
        why = f"a remedy waits for a person: {proposed[0].choice}"
        return "attention", why, alarm.id if alarm else None, _approve(proposed[0])
    canary = release.canary
    if canary and release.until and release.until <= project.clock():
        why = f"the canary {canary.version} was to be judged by {release.until:%Y-%m-%d}"
        return "attention", why, None, _step(f"Judge the canary {canary.version}", why, "palan tick")
    fresh = _fresh(project, release, newest[0] if newest else None, entries)
    if not traffic.hours:
        why = "it is released, and nothing was asked yet"
        return "not asked", why + _tried(canary), None, _to_ask(project, config, release, why, url)
    if idle:
        return "not asked", f"nobody has asked it since {last:%Y-%m-%d}", None, fresh
    verdict, why, due = _watched(project, config, traffic, frames)
    return verdict, why + _tried(canary), None, due or fresh


def _notes(project: Project, release: Release) -> list[Alarm]:
    """Return the digests that still tell something: of the last `DAYS`, and of the release that answers now, newest first."""
    since = max(release.time, project.clock() - timedelta(days=DAYS))
    found = project.store.records.find(Alarm, order="-time", model=release.model, lane="digest", status="open")
    return [each for each in found if each.until > since]


def _tried(canary: Arm | None) -> str:
    return f"; {canary.version} is tried on {canary.share:.0%} of the requests" if canary else ""


def _to_ask(project: Project, config: ModelConfig, release: Release, why: str, url: str) -> dict[str, Any]:
    """Return the step towards a model's first decision: a server, or where one runs, a request."""
    version = _served(project, release)
    if not url or version is None:
        return _step("Let it answer", why, "palan serve")
    schema = msgspec.convert(version.manifest["signature"], Schema)
    return _step("Ask it once", why, _calls(project, config, schema, [], url)["curl"])


def _to_release(project: Project, config: ModelConfig, version: Version | None) -> tuple[str, dict[str, Any]]:
    """Return why a model is not released yet, and the next step towards it."""
    if version is None:
        empty = [name for name, each in project.config.data.items() if each.source and not _latest_data(project, name)]
        if config.data and empty:
            why = f"its data is empty: nothing of {empty[0]} was ingested yet"
            return why, _step("Take in the data", why, "palan ingest")
        why = "no version of it was built yet"
        return why, _step(f"Build {config.name}", why, f"palan build {config.name}")
    return _to_admit(project, version)


def _to_admit(project: Project, version: Version) -> tuple[str, dict[str, Any]]:
    found = _evidence(project, version.ref)
    failed = [each for each in found if each.verdict == "fail"]
    if not found:
        why = f"{version.ref} is built and was not checked yet"
        return why, _step(f"Check {version.ref}", why, f"palan check {version.ref}")
    if failed:
        why = f"{version.ref} fails its gate {failed[0].gate}: {failed[0].text}"
        return why, _step(f"Put {version.model} right and build it again", why, f"palan build {version.model}")
    why = f"{version.ref} passes its gates and is not released yet"
    return why, _step(f"Release {version.ref}", why, f"palan release {version.ref}")


def _fresh(project: Project, release: Release, newest: Version | None, entries: Sequence[Entry]) -> dict[str, Any] | None:
    """Return the step for a version newer than the champion that was never let out; None where there is none."""
    known = {release.previous, *(arm.version for arm in release.arms)}
    if newest is None or newest.ref in known or newest.number < int(release.champion.version.partition("@")[2]):
        return None
    if any(_is_release(each) and each.subject.partition(" ")[0] == newest.ref for each in entries):
        return None  # it was tried and taken back: that is decided
    if any(each.verdict == "fail" for each in _evidence(project, newest.ref)):
        return None
    return _to_admit(project, newest)[1]


def _watched(
    project: Project, config: ModelConfig, traffic: _Traffic, frames: Sequence[Frame]
) -> tuple[str, str, dict[str, Any] | None]:
    """Judge by the newest window that the watch looked at."""
    name, now, window = config.name, project.clock(), config.watch.window
    ended = ended_windows(min(traffic.hours), window, now)
    due = _step("Watch it", "a window has ended that was not looked at", f"palan watch {name}")
    if not frames:
        why = "no window of its decisions was looked at yet"
        if ended:
            return "learning", why, due
        ends = first_window(min(traffic.hours), window) + window
        return "learning", f"its first window of {_span(window)} ends around {ends:%Y-%m-%d}", None
    newest = frames[-1]
    late = due if ended and ended[-1] + window > unstamp(newest["until"]) else None
    if newest["lane"] == "learning":
        return "learning", newest["text"] or "too little history to say what is normal", late
    return "right", newest["text"] or "as usual", late


def _trouble(project: Project, release: Release) -> tuple[str, dict[str, Any]] | None:
    """Say why the champion could not be opened, by all that can be told without opening it."""
    from palan.flows import packages

    ref = release.champion.version
    version = _served(project, release)
    again = _step(f"Build {release.model} again", "", f"palan build {release.model}")
    if version is None:
        return f"{ref} answers, but is not in the store", again
    manifest = dict(version.manifest)
    signed = manifest.pop("signed", "")
    if digest_of(manifest) != version.id or packages.sign(project, manifest) != signed:
        return f"{ref} was changed after it was built: its manifest does not match its signature", again
    if missing := [name for name, blob in {**manifest["code"], **manifest["state"]}.items() if not project.store.blobs.has(blob)]:
        return f"{ref} lacks a file of its own in the store: {missing[0]}", again
    try:
        packages.same_environment(version)
    except PalanError as error:
        return error.what, _step("Install what it was built with", error.what, error.hint)
    return None


def _served(project: Project, release: Release | None) -> Version | None:
    if release is None:
        return None
    name, _, number = release.champion.version.partition("@")
    found = project.store.records.find(Version, model=name, number=int(number))
    return found[0] if found else None


def _step(text: str, reason: str, command: str, actions: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {"text": text, "reason": reason, "command": command, "actions": list(actions)}


def _approve(remedy: Remedy) -> dict[str, Any]:
    actions = [{"do": "approve", "subject": remedy.id, "label": "Approve"}, {"do": "reject", "subject": remedy.id, "label": "Reject"}]
    return _step(remedy.choice[:1].upper() + remedy.choice[1:], remedy.reason, f"palan react {remedy.model} --approve", actions)


def _alarm_step(project: Project, alarm: Alarm) -> dict[str, Any] | None:
    """Return what to do about an alarm: approve what is proposed, or have remedies tried; None once that is settled."""
    remedies = project.store.records.find(Remedy, order="-time", limit=1, alarm=alarm.id)
    if remedies and remedies[0].status == "proposed":
        return _approve(remedies[0])
    if remedies or alarm.status != "open":
        return None
    if alarm.lane == "digest":
        return None  # ranked news: it asks for nothing
    return _step("Try the remedies", f"{alarm.diagnosis}, and nothing was tried yet", f"palan react {alarm.model}")


def _champion_since(release: Release, entries: Sequence[Entry]) -> str:
    """Return when the champion became it; `entries` come newest first."""
    since = stamp(release.time)
    for each in entries:
        if _is_release(each):
            if not any(arm["role"] == "champion" and arm["version"] == release.champion.version for arm in each.detail["arms"]):
                break
            since = stamp(each.time)
    return since


def _share(arm: Arm, release: Release | None) -> dict[str, Any]:
    until = release.until if release and arm.role == "canary" else None
    return {"version": arm.version, "role": arm.role, "share": arm.share, "until": stamp(until) if until else None}


def _done(entry: Entry) -> dict[str, Any]:
    # What is done to a version says itself; what is done to a model (an alarm, a remedy) says it in the reason.
    reason = f": {entry.reason}" if entry.reason and "@" not in entry.subject else ""
    return {"time": stamp(entry.time), "text": f"{entry.verb} {entry.subject}{reason}", "actor": entry.actor}


def _span(length: timedelta) -> str:
    seconds = length.total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:g}s"


def kind_of(project: Project, config: ModelConfig) -> str:
    """Return a model's kind: of its newest version, else as declared, else as its code reads; "" where nothing tells."""
    found = project.store.records.find(Version, order="-number", limit=1, model=config.name)
    if found or config.kind:
        return found[0].kind if found else config.kind
    if config.model.endswith(".csv"):
        return "rules"
    from palan.flows.init import found_in

    file, _, name = config.model.partition(":")
    try:
        return next((each.kind for each in found_in((project.root / file).read_text(encoding="utf-8")) if each.name == name), "")
    except (OSError, UnicodeDecodeError, SyntaxError):
        return ""


# -- traffic: the log, counted ---------------------------------------------------------------------------------------


class _Where(msgspec.Struct):
    where: str = ""


class _Glance(msgspec.Struct):
    """The part of a logged decision that is counted. Its inputs are skipped as bytes, which is what makes this quick."""

    id: str
    time: datetime
    arm: str
    rows: int
    outputs: msgspec.Raw
    status: str = "ok"
    violations: list[_Where] = []
    degraded: str = ""


_glance = msgspec.msgpack.Decoder(_Glance)


class _Counts(msgspec.Struct):
    decisions: int = 0
    degraded: int = 0
    violations: int = 0


class _Request(msgspec.Struct, frozen=True):
    """One logged request, and where it stands in the log."""

    time: datetime
    id: str
    rows: int
    answered: bool
    status: str
    segment: str
    begin: int
    end: int


class _Traffic(msgspec.Struct):
    """One model's decisions by the hour, and its newest requests, oldest first."""

    position: dict[str, int] = {}
    hours: dict[datetime, _Counts] = {}
    newest: list[_Request] = []
    unsaved: int = 0  # bytes that were read since the count was last kept

    def add(self, segment: str, end: int, data: bytes) -> None:
        begin, self.position[segment] = self.position.get(segment, 0), end
        self.unsaved += end - begin
        each = _glance.decode(data)
        if each.arm == "shadow":
            return
        counts = self.hours.setdefault(each.time.astimezone(UTC).replace(minute=0, second=0, microsecond=0), _Counts())
        counts.decisions += each.rows
        counts.degraded += each.rows if each.degraded else 0
        counts.violations += min(len({violation.where for violation in each.violations}), each.rows)
        answered = each.status not in _NO_ANSWER or bytes(each.outputs) != _NIL
        self.newest.append(_Request(each.time, each.id, each.rows, answered, each.status, segment, begin, end))
        if len(self.newest) > 4 * RECENT_REQUESTS:
            self.newest = sorted(self.newest, key=lambda each: (each.time, each.id))[-RECENT_REQUESTS:]

    def last(self, count: int) -> list[_Request]:
        return sorted(self.newest, key=lambda each: (each.time, each.id))[-count:]

    def since(self, since: datetime, until: datetime) -> _Counts:
        first = since.replace(minute=0, second=0, microsecond=0)
        chosen = [counts for hour, counts in self.hours.items() if first <= hour <= until]
        return _Counts(sum(each.decisions for each in chosen), sum(each.degraded for each in chosen), sum(each.violations for each in chosen))

    def daily(self, now: datetime) -> dict[str, Any]:
        """Return decisions a day of the last `DAYS`, from the first day on which there were any."""
        days: dict[datetime, int] = {}
        for hour, counts in self.hours.items():
            days[hour.replace(hour=0)] = days.get(hour.replace(hour=0), 0) + counts.decisions
        today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        shown = [today - timedelta(days=back) for back in range(DAYS - 1, -1, -1)]
        first = min(days, default=today + timedelta(days=1))
        shown = [day for day in shown if day >= first]
        return {"times": [stamp(day) for day in shown], "values": [float(days.get(day, 0)) for day in shown]}

    def silent(self, now: datetime, window: timedelta) -> tuple[datetime, int] | None:
        """Return the hour of the last decision and what was usual a window, where there was much and a whole window has none."""
        if not self.hours or max(self.hours) + timedelta(hours=1) + window > now:
            return None
        hour = timedelta(hours=1)
        first, end = min(self.hours), max(self.hours) + hour
        starts = [end - place * window for place in (1, 2, 3, 4) if end - place * window >= first]
        counts = sorted(self.since(start, start + window - hour).decisions for start in starts)
        return (end - hour, counts[len(counts) // 2]) if counts and counts[len(counts) // 2] >= MUCH else None

    def failing(self, since: datetime) -> str:
        """Say so when half of the newest requests (three at the least) got no answer at all."""
        tried = [each for each in self.last(RECENT_REQUESTS) if each.time >= since]
        failed = [each for each in tried if not each.answered]
        if len(failed) < 3 or 2 * len(failed) < len(tried):
            return ""
        return f"{len(failed)} of its last {len(tried)} requests got no answer ({failed[-1].status.replace('_', ' ')})"


_cache: WeakKeyDictionary[Blocks, dict[str, _Traffic]] = WeakKeyDictionary()
_lock = threading.Lock()


def _traffic(project: Project, model: str) -> _Traffic:
    """Return the model's traffic; only what was logged since the last call, also of another process, is read."""
    with _lock:
        known = _cache.setdefault(project.store.blocks, {})
        if model not in known:
            known[model] = _kept(project, model)
        found = known[model]
        for each in project.store.blocks.scan(f"decisions/{model}", found.position):
            found.add(each.segment, each.end, each.data)
        if found.unsaved > SAVED_AFTER:
            _keep(project, model, found)
        return found


def _kept(project: Project, model: str) -> _Traffic:
    """Return the count that an earlier process kept, so that a command need not read the whole log; else an empty one."""
    try:
        return msgspec.msgpack.decode((project.folder / "cache" / "traffic" / model).read_bytes(), type=_Traffic)
    except (OSError, msgspec.DecodeError):
        return _Traffic()


def _keep(project: Project, model: str, traffic: _Traffic) -> None:
    traffic.unsaved = 0
    with suppress(OSError):  # a full or read-only disk: it is counted again next time
        write_atomically(project.folder / "cache" / "traffic" / model, msgspec.msgpack.encode(traffic))


def _last_decisions(project: Project, model: str, count: int) -> list[dict[str, Any]]:
    """Return the newest decided rows, newest first: only the frames that hold them are decoded whole."""
    traffic = _traffic(project, model)
    wanted, rows = [], 0
    for request in reversed(traffic.last(RECENT_REQUESTS)):
        wanted.append(request)
        rows += request.rows
        if rows >= count:
            break
    # Start at the first wanted frame of each segment; segments without one are passed over.
    after = dict(traffic.position)
    for request in wanted:
        after[request.segment] = min(after[request.segment], request.begin)
    places = {(request.segment, request.end) for request in wanted}
    decode = msgspec.msgpack.Decoder(Decision).decode
    frames = [decode(each.data) for each in project.store.blocks.scan(f"decisions/{model}", after) if (each.segment, each.end) in places]
    lines = [line for each in sorted(frames, key=lambda each: (each.time, each.id), reverse=True) for line in _decision_lines(each)][:count]
    return _with_outcomes(project, model, lines)


def _decision_lines(decision: Decision) -> list[dict[str, Any]]:
    """Return the rows of one request, last first."""
    spread: dict[int, int] = {}
    for violation in decision.violations:
        digits = "".join(each for each in str(violation.get("where", "")) if each.isdigit())
        row = int(digits) if is_whole(digits) and int(digits) < decision.rows else 0
        spread[row] = spread.get(row, 0) + 1
    columnar = bool(decision.inputs) and all(isinstance(each, list) and len(each) == decision.rows for each in decision.inputs.values())
    rows = columnar and not decision.result
    lines = []
    for row in range(decision.rows - 1, max(-1, decision.rows - 1 - RECENT_DECISIONS), -1):
        scalars = {name: each for name, each in decision.inputs.items() if not isinstance(each, dict | list)}
        outputs: Any = decision.outputs
        if rows and isinstance(outputs, dict):
            outputs = {name: values[row] for name, values in outputs.items()}
            outputs = outputs["output"] if list(outputs) == ["output"] else outputs
        elif not rows and decision.result.get("objective") is not None:
            outputs = {"objective": decision.result["objective"], **(decision.result.get("kpis") or {})}
        lines.append(
            {
                "id": f"{decision.id}-{row}",
                "time": stamp(decision.time),
                "key": decision.keys[row] if decision.keys else "",
                "version": decision.version,
                "arm": decision.arm,
                "status": decision.status,
                "inputs": {name: values[row] for name, values in decision.inputs.items()} if rows else scalars,
                "outputs": outputs,
                "outcome": None,
                "degraded": decision.degraded,
                "violations": spread.get(row, 0),
            }
        )
    return lines


def _with_outcomes(project: Project, model: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ids = {line["id"]: line for line in lines}
    keys: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line["key"]:
            keys.setdefault(line["key"], []).append(line)
    if not lines:
        return lines
    decode = msgspec.msgpack.Decoder(Outcome).decode
    told = [decode(each.data) for each in project.store.blocks.scan(f"outcomes/{model}")]
    for each in sorted(told, key=lambda each: each.time):
        named, keyed = ids.keys() & set(each.ids), keys.keys() & set(each.keys)
        if named or keyed:
            for place, value in enumerate(each.values):
                if each.ids and each.ids[place] in named:
                    ids[each.ids[place]]["outcome"] = value
                if each.keys and each.keys[place] in keyed:
                    for line in keys[each.keys[place]]:
                        line["outcome"] = value
    return lines


# -- what the watch saw ----------------------------------------------------------------------------------------------


def _frames(project: Project, model: str) -> list[dict[str, Any]]:
    """Return the newest judgement of each watched window, oldest window first."""
    found = {}
    for each in project.store.blocks.scan(f"watch/{model}"):
        seen = msgspec.msgpack.decode(each.data)
        found[seen["since"]] = seen
    return [found[since] for since in sorted(found)]


def _loss(
    project: Project,
    model: str,
    frames: Sequence[Frame],
    entries: Sequence[Entry],
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> dict[str, Any]:
    """Return the loss of each watched window with the newest threshold, and what was done meanwhile as marks."""
    frames = [
        each
        for each in frames
        if (since is None or unstamp(each["since"]) >= since) and (until is None or unstamp(each["until"]) <= until)
    ]
    known = [place for place, each in enumerate(frames) if each["loss"] is not None]
    if not known:
        return {**_no_loss(), "unit": _unit(project, model)}
    frames = frames[: known[-1] + 1 + LONG_AGO]  # a silence of years would press all that was before it into a corner
    thresholds = [each["threshold"] for each in frames if each["threshold"] is not None]
    usual = [each["usual"] for each in frames if each.get("usual") is not None]
    begin, end = frames[0]["since"], frames[-1]["until"]
    own = sorted((each for each in entries if _model_of(each) == model), key=lambda each: -each.seq)
    marks = [_mark(each, before) for each, before in reversed(_routings(own))]
    for alarm in project.store.records.find(Alarm, model=model, lane="page"):
        kind = "fault" if alarm.diagnosis == "data fault" else "alarm"
        marks.append({"time": stamp(alarm.since), "kind": kind, "label": alarm.diagnosis})
    return {
        "times": [each["since"] for each in frames],
        "values": [each["loss"] for each in frames],
        "threshold": thresholds[-1] if thresholds else None,
        "usual": usual[-1] if usual else None,
        "unit": _unit(project, model),
        "marks": sorted((each for each in marks if begin <= each["time"] <= end), key=lambda each: each["time"]),
    }


def _unit(project: Project, model: str) -> str:
    return (project.config.models[model].watch.unit if model in project.config.models else "") or UNIT


def _no_loss() -> dict[str, Any]:
    return {"times": [], "values": [], "threshold": None, "usual": None, "unit": UNIT, "marks": []}


def _mark(entry: Entry, before: Entry | None) -> dict[str, Any]:
    arms = {arm["role"]: arm["version"] for arm in entry.detail["arms"]}
    champion, canary = arms["champion"], arms.get("canary", "")
    if entry.verb in (REPAIRED, REPAIR_ENDED):
        ends = _repaired(entry, before).startswith("end ")
        return {"time": stamp(entry.time), "kind": "repair", "label": "repair ends" if ends else "repair begins"}
    if entry.verb == "rolled back":
        return {"time": stamp(entry.time), "kind": "roll back", "label": champion}
    return {"time": stamp(entry.time), "kind": "canary" if canary else "release", "label": f"canary {canary}" if canary else champion}


def _shifts(project: Project, alarm: Alarm) -> list[dict[str, Any]]:
    """Return how far each column had moved in the newest window of an alarm."""
    frames = [each for each in _frames(project, alarm.model) if each["columns"] and unstamp(each["until"]) <= alarm.until]
    if told := alarm.evidence.get("columns"):
        # As they were when it was raised: under another repair the same window looks unlike.
        texts = {(each["column"], each["distance"]): _bare(each["text"], each["column"]) for frame in frames for each in frame["columns"]}
        return [
            {
                "column": each["name"],
                "distance": each["distance"],
                "threshold": each["threshold"],
                "changed": each["threshold"] is not None and each["distance"] > each["threshold"],
                "text": texts.get((each["name"], each["distance"]), ""),
            }
            for each in told
        ]
    if not frames:
        return []
    names = ("column", "distance", "threshold", "changed")
    return [{**{name: each[name] for name in names}, "text": _bare(each["text"], each["column"])} for each in frames[-1]["columns"]]


def _bare(text: str, column: str) -> str:
    """Return what is said of a column without its name, which stands beside it."""
    inside = text.removeprefix(f"{column} ")
    return inside[1:-1] if inside.startswith("(") and inside.endswith(")") else inside


def _candidate(tried: Mapping[str, Any], remedy: Remedy) -> dict[str, Any]:
    figures = {name: tried.get(name) for name in ("gain", "low", "high", "net_low")}
    chosen = bool(tried.get("chosen", tried["name"] == remedy.choice))
    return {"name": tried["name"], "action": tried.get("action", ""), **figures, "cost": tried.get("cost") or 0.0, "verdict": tried.get("verdict", ""), "chosen": chosen}


# -- data, ledger, versions ------------------------------------------------------------------------------------------


def _latest_data(project: Project, name: str) -> DataVersion | None:
    found = project.store.records.find(DataVersion, order="-number", limit=1, data=name)
    return found[0] if found else None


def data_line(project: Project, name: str) -> dict[str, Any]:
    """Return how a table is: its newest version, whether it is right, why, and what to type."""
    config, version = project.config.data[name], _latest_data(project, name)
    waiting = project.store.records.find(Quarantine, data=name, status="open")
    quarantined = sum(each.rows for each in waiting)
    users = [model.name for model in project.config.models.values() if model.data == name]
    command, verdict = "", "right"
    failed = failure(project, name).get("what")
    if failed:
        verdict, why, command = "wrong", failed, f"palan ingest {name}"
    elif version is None:
        verdict = "empty"
        why = "nothing was ingested yet" if config.source else f"{config.transform} makes it when a model needs it"
        command = f"palan ingest {name}" if config.source else f"palan build {users[0]}" if users else ""
    elif odd := _odd(version):
        verdict, why, command = "attention", odd, f"palan why {name}"
    else:
        why = f"all {counted(version.rows, 'row')} hold" if version.rows != 1 else "its one row holds"
    if quarantined and not failed:
        # What was put aside long ago is in the ledger; it says nothing of what comes in now.
        news = [each for each in waiting if each.time > project.clock() - timedelta(days=DAYS)]
        verdict, command = ("attention", f"palan why {name}") if news else (verdict, command)
        why = f"{_aside(waiting)}; {why}" if news else f"{why}; {_aside(waiting)}"
    return {
        "name": name,
        "version": version.number if version else None,
        "rows": version.rows if version else 0,
        "added": version.added if version else 0,
        "time": stamp(version.time) if version else None,
        "quarantined": quarantined,
        "verdict": verdict,
        "why": why,
        "command": command,
    }


def _aside(waiting: Sequence[Quarantine]) -> str:
    """Say how many rows are in quarantine, and what most of them break."""
    reasons: dict[str, int] = {}
    for each in waiting:
        for reason, count in each.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    rows = sum(each.rows for each in waiting)
    most = max(reasons, key=lambda reason: reasons[reason], default="")
    said = f"{counted(rows, 'row')} {'is' if rows == 1 else 'are'} in quarantine"
    return f"{said}, {'most because' if len(reasons) > 1 else 'because'} {most}" if most else said


def _odd(version: DataVersion) -> str:
    """Return the rule about the whole table that the newest delivery breaks, "" when there is none.

    Raises:
        Corrupt: what is stored of the delivery is no verdict.
    """
    try:
        reports = version.verdict.get("files", [version.verdict])
        return next((str(rule["text"]) for report in reversed(reports) for rule in report.get("table", []) if not rule["holds"]), "")
    except (AttributeError, KeyError, TypeError):
        raise Corrupt(f"the verdict that is stored of {version.ref} is damaged", "restore the store from a backup") from None


def _newest_entries(project: Project) -> list[Entry]:
    return project.store.records.find(Entry, order="-seq", limit=RECENT_ENTRIES)


def _entry_line(entry: Entry) -> dict[str, Any]:
    return {name: value for name, value in as_dict(entry).items() if name != "sentence"}


def _model_of(entry: Entry) -> str:
    """Return the model that an entry is about, "" for one about data."""
    if entry.verb in ("ingested", REFUSED):
        return ""
    if entry.subject.startswith("job "):
        return entry.subject.rpartition(" ")[2]
    return entry.subject.partition(" ")[0].partition("@")[0]


def _is_release(entry: Entry) -> bool:
    """Tell a change of the routing from the end of a remedy, which may have the same verb."""
    return entry.verb in _RELEASES and "arms" in entry.detail


def _evidence(project: Project, ref: str) -> list[Evidence]:
    """Return the newest finding of each gate on a version."""
    newest: dict[str, Evidence] = {}
    for each in project.store.records.find(Evidence, order="time", version=ref):
        newest[each.gate] = each
    return list(newest.values())


def _version_line(project: Project, version: Version, release: Release | None, entries: Sequence[Entry]) -> dict[str, Any]:
    roles = {arm.version: arm.role for arm in release.arms} if release else {}
    role = roles.get(version.ref) or ("previous" if release and release.previous == version.ref else "")
    manifest = version.manifest
    return {
        "ref": version.ref,
        "number": version.number,
        "id": version.id,
        "time": stamp(version.time),
        "role": role,
        "data": manifest["data"].get("ref", ""),
        "params": dict(manifest["params"]),
        "metrics": dict(manifest["metrics"]),
        "reason": next((each.reason for each in entries if each.verb == "built" and each.subject == version.ref), ""),
        "gates": [
            {"gate": each.gate, "verdict": each.verdict, "text": each.text, "against": each.against, "figures": dict(each.figures)}
            for each in _evidence(project, version.ref)
        ],
    }


def _routings(entries: Sequence[Entry]) -> list[tuple[Entry, Entry | None]]:
    """Return the changes of one model's routing (entries come newest first), each with the one before it."""
    found = [each for each in entries if _is_release(each)]
    return list(zip(found, [*found[1:], None], strict=False))


def _repaired(entry: Entry, before: Entry | None) -> str:
    """Say which repairs began with an entry, and which ended."""

    def active(of: Entry | None) -> list[str]:
        return [repair["column"] for repair in of.detail.get("repairs", []) if repair["until"] is None] if of else []

    then, now = active(before), active(entry)
    began, ended = [each for each in now if each not in then], [each for each in then if each not in now]
    parts = [f"{words} {', '.join(columns)}" for words, columns in (("repair of", began), ("end of repair of", ended)) if columns]
    return "; ".join(parts) or "repairs as before"


def _release_line(entry: Entry, before: Entry | None) -> dict[str, Any]:
    arms = {arm["role"]: arm for arm in entry.detail["arms"]}
    champion, canary = arms["champion"]["version"], arms.get("canary")
    text = f"{champion} is champion"
    if entry.verb == "rolled back":
        text = f"rolled back to {champion}"
    elif entry.verb in (REPAIRED, REPAIR_ENDED):
        text = _repaired(entry, before)
    elif canary:
        text = f"canary {canary['version']} takes {canary['share']:.0%}"
    return {"epoch": int(entry.detail.get("epoch", 0)), "time": stamp(entry.time), "text": text, "reason": entry.reason, "actor": entry.actor}


def _repair_line(repair: Any) -> dict[str, Any]:
    until = stamp(repair.until) if repair.until else None
    return {"column": repair.column, "expression": repair.expression, "since": stamp(repair.since), "until": until, "reason": repair.reason}


def _alarm_line(project: Project, alarm: Alarm) -> dict[str, Any]:
    remedies = project.store.records.find(Remedy, order="-time", limit=1, alarm=alarm.id)
    return {
        "id": alarm.id,
        "time": stamp(alarm.time),
        "since": stamp(alarm.since),
        "model": alarm.model,
        "lane": alarm.lane,
        "status": alarm.status,
        "what": alarm.what,
        "diagnosis": alarm.diagnosis,
        "remedy": _settled(remedies[0]) if remedies else "",
    }


def _settled(remedy: Remedy) -> str:
    return "nothing had to be done" if remedy.status == "nothing" else f"{remedy.choice} ({remedy.status})"


def _jobs(project: Project, model: str) -> list[dict[str, Any]]:
    if not project.store.records.find(Job, limit=1, model=model):
        return []
    from palan.flows.jobs import jobs

    return jobs(project, model, limit=5)


def _roll_back(name: str, release: Release | None) -> list[dict[str, Any]]:
    if release is None or not (release.canary or release.previous):
        return []
    label = f"Take {release.canary.version} off" if release.canary else f"Roll back to {release.previous}"
    return [{"do": "rollback", "subject": name, "label": label}]


# -- how to call it --------------------------------------------------------------------------------------------------


def _first_line(project: Project, config: ModelConfig, version: Version | None, verb: str = "") -> str:
    """Return the first line of what the model (or a verb of it) says of itself, as it was built, else as it stands in the folder."""
    import ast

    file, _, name = config.model.partition(":")
    if not name:
        return ""
    try:
        built = version.manifest["code"].get(file) if version else None
        code = project.store.blobs.get(built) if built else (project.root / file).read_bytes()
        body = ast.parse(code).body
    except (OSError, SyntaxError, ValueError, PalanError):
        return ""  # what is wrong with the file is told where it is built, not here
    for wanted in (name, verb) if verb else (name,):
        found = next((node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == wanted), None)
        if found is None:
            return ""
        body = found.body
    return (ast.get_docstring(found) or "").partition("\n")[0] if found else ""


def _field_lines(each: Field, prefix: str = "") -> list[dict[str, Any]]:
    """Return an input and, below it, what is nested in it."""
    name = prefix + each.name
    rule = ""
    if each.values:
        rule = "one of " + ", ".join(each.values)
    elif each.minimum is not None and each.maximum is not None:
        rule = f"{each.minimum:,g} to {each.maximum:,g}"
    elif each.minimum is not None:
        rule = f"at least {each.minimum:,g}"
    elif each.maximum is not None:
        rule = f"at most {each.maximum:,g}"
    lines = [{"name": name, "type": each.type + ("?" if each.nullable else ""), "rule": rule, "unit": each.unit}]
    for inner in each.fields:
        lines += _field_lines(inner, f"{name}.")
    if each.item and each.item.fields:
        for inner in each.item.fields:
            lines += _field_lines(inner, f"{name}[].")
    return lines


def _calls(project: Project, config: ModelConfig, schema: Schema | None, decisions: Sequence[Mapping[str, Any]], url: str) -> dict[str, str]:
    """Return commands that ask the model once, by palan's own protocol and by the Open Inference Protocol."""
    host = url or f"http://127.0.0.1:{os.environ.get('PALAN_PORT', '7070')}"
    url = f"{host}/v1/models/{config.name}/decide"
    if schema is None:
        return {"curl": f"palan build {config.name}", "infer": ""}
    if schema.shape == "instance":
        files = sorted(project.root.glob(config.instances)) if config.instances else []
        where = shlex.quote(files[0].relative_to(project.root).as_posix()) if files else "instance.json"
        wrapped = "'{\"instance\": %s}'"
        return {"curl": f'printf {wrapped} "$(cat {where})" | curl {url} -d @-', "infer": ""}
    row = _example(project, config, schema, decisions)
    inputs = [
        {"name": each.name, "shape": [1], "datatype": _DATATYPES.get(each.type, "BYTES"), "data": [row[each.name]]}
        for each in schema.fields
        if row.get(each.name) is not None
    ]
    infer = f"curl {host}/v2/models/{config.name}/infer -d {_quoted({'inputs': inputs})}"
    return {"curl": f"curl {url} -d {_quoted({'rows': [row]})}", "infer": infer}


_DATATYPES = {"int": "INT64", "float": "FP64", "bool": "BOOL", "str": "BYTES", "time": "BYTES", "date": "BYTES"}


def _quoted(body: Any) -> str:
    return shlex.quote(msgspec.json.encode(body).decode())


def _example(project: Project, config: ModelConfig, schema: Schema, decisions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a row that fits: the last one that was asked, else a golden case, else one made from the ranges."""
    if decisions and set(schema.names) <= set(decisions[0]["inputs"]):
        known = msgspec.json.decode(canonical(decisions[0]["inputs"]))
        return {name: known[name] for name in schema.names}
    from palan.flows.build import golden_cases

    made = {each.name: _some(each) for each in schema.fields}
    try:
        cases = golden_cases(project, config)
    except PalanError:
        return made
    return {**made, **{name: cases[0]["input"][name] for name in schema.names if name in cases[0]["input"]}} if cases else made


def _some(each: Field) -> Any:
    low, high = each.minimum, each.maximum
    number = low if low is not None else high if high is not None else 1.0
    plain: Mapping[str, Callable[[], Any]] = {
        "int": lambda: int(each.values[0]) if each.values else int(number),
        "float": lambda: float(number),
        "bool": lambda: False,
        "str": lambda: each.values[0] if each.values else "text",
        "time": lambda: "2025-01-01T00:00:00Z",
        "date": lambda: "2025-01-01",
        "list": list,
        "map": dict,
        "any": lambda: None,
    }
    return plain[each.type]()
