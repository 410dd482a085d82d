"""`palan demo`: a recorded year of real flights, replayed through the whole loop under a simulated clock."""

from __future__ import annotations

import http.client
import importlib
import json
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from palan.core import stamp
from palan.decisions.nouns import Job
from palan.errors import PalanError
from palan.flows.journal import Journal, running
from palan.flows.project import Project, open_project
from palan.ledger import Entry
from palan.releases.nouns import Release

if TYPE_CHECKING:
    import polars as pl

    from palan.flows.serve import Server

MARK = ".palan-demo"
WHOLE = "a project made by `palan demo`; remove the whole folder to play it again\n"
FIRST = 4
"""Months that have arrived before anything is released."""

LATE = timedelta(days=2)
"""How long after a departure its outcome is told."""

AIRPORT = "LGA"
SOLVE_ON = 0
"""The weekday (Monday is 0) whose gates are planned, once a week."""

SINGLES = 1
"""Requests of one row a day, beside the batch."""


class SimulatedClock:
    """A clock that stands still until it is set."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


class _Stage(msgspec.Struct):
    """What the story plays on."""

    project: Project
    clock: SimulatedClock
    world: ModuleType
    journal: Journal
    tell: Callable[[str], None]


def demo(
    into: str | Path = "palan-demo",
    *,
    serve: bool = True,
    port: int | None = None,
    tell: Callable[[str], None] = print,
    done: Callable[[dict[str, Any]], None] = lambda summary: None,
) -> dict[str, Any]:
    """Play the year: ingest, build, check, release, answer over HTTP, watch, react; then sum up and keep the pages open.

    Every day is a recorded step: a demo that was killed goes on with the next one. A finished demo shows its summary at
    once; remove the folder to play it again.

    Raises:
        PalanError: the folder holds something else, a library of the example is missing, or the port is taken.
    """
    began = perf_counter()
    root = _prepare(Path(into).resolve())
    clock = SimulatedClock(datetime(2013, 1, 1, tzinfo=UTC))
    project = open_project(root, clock=clock, actor="palan demo")
    _needs("sklearn", "scikit-learn", "sklearn")
    _needs("highspy", "highspy", "highs")
    _needs("gymnasium", "gymnasium", "gym")
    with running(project, "demo", project.config.name) as journal:
        stage = _Stage(project, clock, _world(root), journal, tell)
        from palan.flows.serve import serving

        # Before anything is played: a port that is taken is told at once. Without the pages any port will do.
        with serving(project, port=0 if port is None and not serve else port) as server:
            tell(f"answering at {server.url}")
            _before(stage)
            server.deciders.refresh()
            _year(stage, server)
            summary = _summary(stage)
            summary["seconds"] = round(perf_counter() - began, 1)
            done(summary)
            if serve:
                tell(f"the pages are at {server.url} (Ctrl-C ends)")
                _wait()
    return summary


def _wait() -> None:
    """Wait until Ctrl-C or SIGTERM."""
    import signal

    ended = threading.Event()
    before = [(each, signal.signal(each, lambda *_: ended.set())) for each in (signal.SIGINT, signal.SIGTERM)]
    ended.wait()
    for each, handler in before:
        signal.signal(each, handler)


def _needs(module: str, library: str, extra: str) -> None:
    from importlib.util import find_spec

    from palan.errors import MissingExtra

    if find_spec(module) is None:
        raise MissingExtra(library, extra, "the demo")


def example() -> Path:
    """Return the flights example: beside the package in a wheel, at the repository's root in a checkout."""
    package = Path(__file__).parents[1]
    for place in (package / "_examples" / "flights", package.parents[1] / "examples" / "flights"):
        if (place / "palan.toml").is_file():
            return place
    raise PalanError("this installation of palan came without its example", "pip install --force-reinstall palan")


def _prepare(root: Path) -> Path:
    """Make the demo's project, or find the one that an earlier call began. A copy that was killed is begun again."""
    mark = root / MARK
    if mark.is_file() and mark.read_text() == WHOLE:
        return root
    if not mark.is_file() and root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise PalanError(f"{root} is there already, and is no demo of palan", "palan demo --into another-folder")
    try:
        root.mkdir(parents=True, exist_ok=True)
        mark.write_text("")  # before anything else: a folder that was left half-way is known as the demo's own
        shutil.copytree(example(), root, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".palan", "feed", "__pycache__"))
        mark.write_text(WHOLE)
    except OSError as error:
        raise PalanError(f"{root} cannot be written: {error.strerror}", "palan demo --into another-folder") from error
    return root


def _world(root: Path) -> ModuleType:
    sys.path.insert(0, str(root))
    try:
        return importlib.import_module("world")
    finally:
        sys.path.remove(str(root))


def _noon(day: date) -> datetime:
    return datetime.combine(day, time(12), UTC)


def _before(stage: _Stage) -> None:
    """Let the first months arrive, and build, check and release every model."""
    from palan.flows.build import build
    from palan.flows.check import check
    from palan.flows.release import release

    months = stage.world.months()
    for month in months[:FIRST]:
        _deliver(stage, month)
    project = stage.project

    def first(name: str) -> str:
        made = build(project, name, reason="the first one")
        report = check(project, made["version"])
        release(project, name, reason="the first one")
        told = ", ".join(f"{each['gate']} {each['verdict']}" for each in report["findings"])
        return f"{made['version']} ({made['kind']}): {report['verdict']}: {told}"

    missing = [name for name in project.config.models if project.store.records.get(Release, name) is None]
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="build") as pool:
        for line in pool.map(first, missing):
            stage.tell(line)


def _deliver(stage: _Stage, month: str) -> None:
    """A month's files arrive when it is over, and are taken in."""
    from palan.flows.ingest import ingest

    year, number = (int(part) for part in month.split("-"))
    stage.clock.now = datetime(year + number // 12, number % 12 + 1, 1, 6, tzinfo=UTC)

    def work() -> list[str]:
        stage.world.deliver(month, stage.project.root / "feed")
        return [f"{each['data']}: {each['text']}" for each in ingest(stage.project) if each["files"]]

    for line in stage.journal.step("demo month", {"month": month}, work):
        stage.tell(f"{month} {line}")


def _year(stage: _Stage, server: Server) -> None:
    """Play the days after the first months: callers ask, outcomes come late, files arrive, and palan ticks."""
    months = stage.world.months()
    year, number = (int(part) for part in months[FIRST].split("-"))
    day, last = date(year, number, 1), date(year + 1, 1, 1)
    while day < last:
        stage.clock.now = _noon(day)
        told = stage.journal.step("demo day", {"day": day.isoformat()}, partial(_day, stage, server, day))
        for line in told:
            stage.tell(line)
        tomorrow = day + timedelta(days=1)
        if tomorrow.month != day.month and tomorrow < last:
            _deliver(stage, f"{day:%Y-%m}")
        day = tomorrow


def _day(stage: _Stage, server: Server, day: date) -> list[str]:
    """One day: requests, outcomes of the days before, a plan of the gates once a week, and a tick."""
    from palan.flows.tick import tick

    world = stage.world
    client = _Client(server.url)
    requests = world.requests(day)
    probabilities = _ask_delay(stage, client, day, requests)
    if day.weekday() == SOLVE_ON:
        _submit_gates(stage, client, day, probabilities)
    past = day - LATE
    if past >= date(day.year, FIRST + 1, 1):
        known = world.outcomes(past)
        client.post("/v1/models/delay/outcomes", {"keys": known["id"].to_list(), "values": known["late"].to_list()})
        if past.weekday() == SOLVE_ON:
            client.post("/v1/models/gates/outcomes", {"keys": [_plan_key(past)], "values": [world.realised(past, AIRPORT)]})
    done = tick(stage.project)
    _solved(stage)
    server.deciders.refresh()  # tomorrow is a moment away: the server need not look for itself
    return [f"{day} {each['what']}: {each['text']}" for each in done] + _news(stage)


def _news(stage: _Stage) -> list[str]:
    """Say what today's alarms were taken for, and what each candidate remedy would have been worth."""
    from palan.drift.nouns import Alarm
    from palan.remedies.nouns import Remedy

    records = stage.project.store.records
    lines = []
    for alarm in records.find(Alarm, since=stage.clock.now, lane="page"):
        lines += [f"  alarm: {alarm.what}", f"    {alarm.diagnosis}: {alarm.evidence.get('because', alarm.what)}"]
    for remedy in records.find(Remedy, since=stage.clock.now):
        lines.append(f"  {'remedy':<26} {'gain a decision':>15} {'low':>9} {'high':>9} {'cost':>8}")
        for row in remedy.candidates:
            mark = "*" if row.get("chosen") else " "
            gains = "".join(f" {_figure(row.get(name)):>{width}}" for name, width in (("gain", 15), ("low", 9), ("high", 9)))
            lines.append(f" {mark}{row['name']:<26}{gains} {row['cost']:>8.4f}")
        lines.append(f"  {remedy.choice}: {remedy.reason}")
    return lines


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"


def _solved(stage: _Stage) -> None:
    """Wait for the plan that was asked for today: on a slow machine too it is of this day."""
    while any(job.fate in ("queued", "running") for job in stage.project.store.records.find(Job, order="-id", limit=1)):
        sleep(0.02)


def _plan_key(day: date) -> str:
    return f"{AIRPORT} {day}"


def _ask_delay(stage: _Stage, client: _Client, day: date, requests: pl.DataFrame) -> dict[str, float]:
    """Ask for the whole day at once, and for a few flights one by one, as callers do."""
    from palan.flows import history

    names = stage.project.config.models["delay"].inputs
    # A day that was killed half-way was answered already: it is not asked again.
    before = history.decisions(stage.project, "delay", since=stage.clock.now)
    keys = requests["id"].to_list()
    answered = {key: value for each in before for key, value in zip(each.keys or [], each.outputs["output"], strict=True)}
    columns = {name: requests[name].to_list() for name in names}
    if len(answered) < len(keys) - SINGLES:
        batch = {name: values[SINGLES:] for name, values in columns.items()}
        answer = client.post("/v1/models/delay/decide", {"rows": batch, "keys": keys[SINGLES:]})
        answered |= zip(keys[SINGLES:], answer["outputs"]["output"], strict=True)
    for place in range(min(SINGLES, len(keys))):
        if keys[place] not in answered:
            row = {name: values[place] for name, values in columns.items()}
            one = client.post("/v1/models/delay/decide", {"rows": [row], "keys": [keys[place]]})
            answered[keys[place]] = one["outputs"][0]
    return answered


def _submit_gates(stage: _Stage, client: _Client, day: date, probabilities: Mapping[str, float]) -> None:
    """Ask for a plan of one airport's gates as a job, as an airport would."""
    key = _plan_key(day)
    body = {"instance": stage.world.instance(day, AIRPORT, probabilities), "key": key}
    # Under its key a job is submitted once, also by a day that was killed and is played again.
    client.post("/v1/models/gates/jobs", body, {"Idempotency-Key": key})


class _Client:
    """Speaks JSON to the server, as any caller would."""

    def __init__(self, url: str) -> None:
        self.address = urlsplit(url)

    def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self.address.hostname or "127.0.0.1", self.address.port, timeout=120)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        finally:
            connection.close()
        if response.status >= 400:
            raise PalanError(f"{path} answered {response.status}: {answer.get('reason') or answer.get('error')}", answer.get("hint", ""))
        return answer


# -- the summary ---------------------------------------------------------------------------------------------------------


def _summary(stage: _Stage) -> dict[str, Any]:
    """Say what happened, what palan did and why, and what it was worth against two other policies."""
    from palan.drift.nouns import Alarm
    from palan.remedies.nouns import Remedy

    records = stage.project.store.records
    alarms = records.find(Alarm, order="time")
    remedies = records.find(Remedy, order="time")
    entries = records.find(Entry, order="-seq", verb=["confirmed", "rolled back"])
    policies = stage.journal.step("demo policies", {"remedies": [each.id for each in remedies]}, lambda: _policies(stage))
    story = []
    for alarm in alarms:
        if alarm.lane != "page":
            continue
        answers = [each for each in remedies if each.alarm == alarm.id]
        story.append(
            {
                "time": stamp(alarm.time),
                "since": stamp(alarm.since),
                "model": alarm.model,
                "diagnosis": alarm.diagnosis,
                "what": alarm.what,
                "because": alarm.evidence.get("because", ""),
                "remedies": [
                    {
                        "choice": each.choice,
                        "status": each.status,
                        "reason": each.reason,
                        "predicted": each.predicted,
                        "realised": each.realised,
                        "judged": next((entry.reason for entry in entries if entry.detail.get("remedy") == each.id), ""),
                    }
                    for each in answers
                ],
            }
        )
    digests = sum(1 for each in alarms if each.lane == "digest")
    summary = {"story": story, "digests": digests, "policies": policies}
    summary["text"] = _text(summary, stage.project.root)
    return summary


def _policies(stage: _Stage) -> list[dict[str, Any]]:
    """Replay the year under each policy: palan's (as it was answered), nothing at all, and retraining every month."""
    import polars as pl

    from palan.flows import history, packages, replay, watch
    from palan.remedies.nouns import Remedy

    project = stage.project
    version = packages.find_version(project, "delay@1")
    rows = history.frame(project, "delay", history.schema_of(version.manifest)).filter(pl.col("outcome").is_not_null()).sort("time")
    names = replay.output_columns(rows, version)
    worker = packages.warm_worker(project, version)
    logged = rows.select(names).rename({name: name.removeprefix("output.") for name in names})
    ours = replay.losses_of(worker, logged, rows["outcome"])
    never = replay.answer(worker, version, rows).losses
    months = {month: part for (month,), part in rows.group_by(pl.col("time").dt.truncate("1mo"), maintain_order=True)}

    def retrained(month: Any) -> pl.Series | None:
        with replay.learnt_until(project, stage.journal, version, month) as twin:
            return replay.answer(twin, version, months[month]).losses

    with ThreadPoolExecutor(max_workers=packages.LEARNERS, thread_name_prefix="month") as pool:
        monthly = [each for each in pool.map(retrained, months) if each is not None]
    assert ours is not None and never is not None
    changes = [each for each in project.store.records.find(Remedy, model="delay") if each.status in ("confirmed", "released", "rolled back")]
    watched = watch.frames(project, "delay")
    return [
        {"policy": "palan", "loss": ours.mean(), "deployments": len(changes), "decisions": rows.height, "windows": len(watched)},
        {"policy": "do nothing", "loss": never.mean(), "deployments": 0, "decisions": rows.height},
        {"policy": "retrain every month", "loss": pl.concat(monthly).mean(), "deployments": len(months) - 1, "decisions": rows.height},
    ]


def _text(summary: Mapping[str, Any], root: Path) -> str:
    lines = ["", "What happened in 2013, and what palan did:"]
    for each in summary["story"]:
        lines.append(f"  {each['model']}: {each['what']}: {each['diagnosis']}")
        for remedy in each["remedies"]:
            fate = remedy["status"] if remedy["status"] != "nothing" else "left as it was"
            lines.append(f"    {remedy['choice']}: {remedy['reason']}")
            lines.append(f"      {fate}" + remedy["judged"].removeprefix(remedy["choice"]))
    if not summary["story"]:
        lines.append("  nothing that harmed: no page was opened")
    digests = summary["digests"]
    lines.append(f"  {digests} digest{' tells' if digests == 1 else 's tell'} of change without harm")
    lines += ["", "What it was worth, in mean log loss a decision (lower is better):"]
    for each in summary["policies"]:
        changes = f"{each['deployments']} change{'' if each['deployments'] == 1 else 's'}"
        lines.append(f"  {each['policy']:<22}{each['loss']:.5f}   {changes:<10} {each['decisions']:,} decisions")
    here = root.name if root.parent == Path.cwd() else str(root)
    lines += ["", f"next: cd {shlex.quote(here)}", "      palan log delay    what was done, and why", "      palan why delay    what its version was made from, and what changed since"]
    return "\n".join(lines)
