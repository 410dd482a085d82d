"""`palan tick`: do whatever is due, once, however many machines call it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from palan.core import digest_of, stamp
from palan.drift.nouns import Alarm
from palan.errors import Conflict, PalanError
from palan.flows.journal import Journal, running
from palan.flows.project import Project
from palan.flows.windows import ANCHOR
from palan.releases.nouns import Release
from palan.runs.run import Step

SLOT = timedelta(days=1)
"""The watch looks again at least this often, because outcomes come late; windows shorter than it set the pace."""


def tick(project: Project) -> list[dict[str, Any]]:
    """Ingest what was delivered, judge the windows that ended, judge canaries, and answer open pages.

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
    duties: list[dict[str, Any] | None] = []
    duties += [_ingest(project, name) for name, config in project.config.data.items() if config.source and _delivered(project, name)]
    for name in project.config.models:
        if project.store.records.get(Release, name) is not None:
            duties += [_watch(project, journal, name), _react(project, name)]
    return [each for each in duties if each is not None and each["text"]]


def _ingest(project: Project, name: str) -> dict[str, Any]:
    from palan.flows.ingest import ingest

    def work() -> str:
        text = str(ingest(project, name)[0]["text"])
        return "" if text == "nothing new" else text

    return _told(f"ingest {name}", work)


def _watch(project: Project, journal: Journal, name: str) -> dict[str, Any] | None:
    """Watch a model once in each slot, whoever is first."""
    from palan.flows.watch import watch

    pace = min(project.config.models[name].watch.window, SLOT)
    slot = ANCHOR + (project.clock() - ANCHOR) // pace * pace
    what, parts = f"tick watch {name}", {"model": name, "slot": stamp(slot)}
    if project.store.records.get(Step, digest_of([what, parts])) is not None:
        return None
    report = _told(f"watch {name}", lambda: _news(watch(project, name)[0]))
    if "hint" not in report:  # what failed is tried again at the next tick
        journal.step(what, parts, lambda: report["text"])
    return report


def _news(report: dict[str, Any]) -> str:
    """Return the sentence of a window that was judged for the first time, or an empty text."""
    return str(report["text"]) if any(each["first"] for each in report["windows"]) else ""


def _delivered(project: Project, name: str) -> bool:
    return any(project.root.glob(project.config.data[name].source))


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


def _told(what: str, work: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"what": what, "text": work()}
    except PalanError as error:
        return {"what": what, "text": f"failed: {error.what}", "hint": error.hint}
