"""`palan tick`: do whatever is due, once, however many machines call it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace

from palan.core import digest_of, stamp, unstamp
from palan.drift.nouns import Alarm
from palan.errors import Conflict, PalanError
from palan.flows.fetch import delivers
from palan.flows.journal import MOST, Journal, running
from palan.flows.project import Project
from palan.flows.windows import ANCHOR
from palan.releases.nouns import Release
from palan.runs.run import Attempt, Step

SLOT = timedelta(days=1)
"""The watch looks again at least this often, because outcomes come late; windows shorter than it set the pace."""

MADE_UP = 366
"""How many missed slots are made up for at the most."""


def tick(project: Project) -> list[dict[str, Any]]:
    """Ingest what was delivered, judge the windows that ended, judge canaries, answer open pages, and tell `[project] notify`.

    Each duty has a slot: what was done in it is recorded, so a second call, or a second machine, does it not again.
    A duty that fails is told of and does not keep the others from being done.

    Returns one line a duty that was done: {"what", "text"}. Empty when nothing is due, or while another tick is at work.
    """
    try:
        with running(project, "tick", project.config.name) as journal:
            return _due(project, journal)
    except Conflict:
        return []


def _due(project: Project, journal: Journal) -> list[dict[str, Any]]:
    from palan.flows.gc import tidy

    duties: list[dict[str, Any] | None] = []
    duties += [_ingest(project, name) for name, config in project.config.data.items() if config.source and delivers(project, name)]
    for name in project.config.models:
        if project.store.records.get(Release, name) is not None:
            duties += [*_watch(project, journal, name), _react(project, name)]
    duties.append(_told("tidy runs", lambda: tidy(project)))
    if project.config.notify:
        duties.append(_notify(project, journal))
    return [each for each in duties if each is not None and each["text"]]


def _ingest(project: Project, name: str) -> dict[str, Any]:
    from palan.flows.ingest import ingest

    def work() -> str:
        text = str(ingest(project, name)[0]["text"])
        return "" if text == "nothing new" else text

    return _told(f"ingest {name}", work)


def _watch(project: Project, journal: Journal, name: str) -> list[dict[str, Any]]:
    """Watch a model once in each slot that is due, whoever is first."""
    policy = project.config.models[name].watch
    newest = project.store.records.find(Step, order="-time", limit=MADE_UP, name=f"tick watch {name}")
    done = max((unstamp(each.parts["slot"]) for each in newest), default=None)
    due = slots(project.clock(), policy.every or min(policy.window, SLOT), policy.at, done, policy.missed)
    return [report for slot in due if (report := _watch_in(project, journal, name, slot))]


def _watch_in(project: Project, journal: Journal, name: str, slot: datetime) -> dict[str, Any] | None:
    """Watch a model in one slot; what fails is tried again at the next tick, and left when it is dead."""
    from palan.flows.watch import watch

    what, parts, records = f"tick watch {name}", {"model": name, "slot": stamp(slot)}, project.store.records
    key = digest_of([what, parts])
    attempt = records.get(Attempt, key)
    if records.get(Step, key) is not None or (attempt and attempt.count >= MOST):
        return None
    # A slot that is made up for sees what it would have seen, had anybody ticked in time.
    then = replace(project, clock=lambda: slot) if project.config.models[name].watch.missed == "all" else project
    return _told(f"watch {name}", lambda: journal.step(what, parts, lambda: _news(watch(then, name)[0])))


def slots(now: datetime, every: timedelta, at: timedelta, done: datetime | None, missed: str) -> list[datetime]:
    """Return the slots that are due, oldest first. They begin `at` after a Monday's midnight in UTC, and then `every` so often.

    Of those that nobody called for since the last that was `done`, `missed` says: "latest" does one for all, "all" each,
    "skip" none; a slot is missed once half of it has passed.
    """
    newest = ANCHOR + at + (now - ANCHOR - at) // every * every
    if done is not None and newest <= done:
        return []
    if missed == "skip":
        return [newest] if now - newest < every / 2 else []
    if missed == "latest" or done is None:
        return [newest]
    first = max(done + every, newest - MADE_UP * every)
    first = ANCHOR + at + -(-(first - ANCHOR - at) // every) * every  # `every` may have been another one
    return [first + place * every for place in range((newest - first) // every + 1)]


def _news(report: dict[str, Any]) -> str:
    """Return the sentence of a window that was judged for the first time, or an empty text."""
    return str(report["text"]) if any(each["first"] for each in report["windows"]) else ""


def _react(project: Project, name: str) -> dict[str, Any] | None:
    """Judge what is on trial and answer open pages, when there is any of either."""
    from palan.flows.react import react
    from palan.remedies.nouns import Remedy

    records = project.store.records
    release = records.get(Release, name)
    trial = release is not None and release.canary is not None
    pending = records.find(Remedy, order="-time", limit=1, model=name, status=["released", "approved"])
    pages = records.find(Alarm, model=name, lane="page", status="open")
    if not (trial or pending or pages):
        return None

    def answer() -> str:
        report = react(project, name)
        said = [f"{each['choice']}: {each['status']}" for each in (*report["settled"], *report["remedies"])]
        return "; ".join(said)

    return _told(f"react {name}", answer)


def _notify(project: Project, journal: Journal) -> dict[str, Any]:
    from palan.flows.notify import notify

    return _told("notify", lambda: "; ".join(notify(project, journal)))


def _told(what: str, work: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"what": what, "text": work()}
    except PalanError as error:
        return {"what": what, "text": f"failed: {error.what}", "hint": error.hint}
