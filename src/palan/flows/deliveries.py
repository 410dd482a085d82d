"""What no longer comes in: deliveries that fail, and requests that nobody makes. Asked without loading what takes them in."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import msgspec

from palan.flows.project import Project
from palan.runs.run import Run
from palan.stores.files import write_atomically

REFUSED = "refused"
"""The verb in the ledger for a delivery that could not be taken in, and the tag of the run that met it."""

LOOKED = 20
"""How many of the newest runs are looked at for one that says something of the delivery."""


def failure(project: Project, data: str) -> Mapping[str, str]:
    """Return why the last ingest of a table failed (`what`, `hint`, `refused`: its digest); empty when it did not."""
    runs = project.store.records.find(Run, order="-time", flow="ingest", subject=data, status=["done", "failed"], limit=LOOKED)
    for run in sorted(runs, key=lambda run: -run.token):  # several may have the same time, where the clock is a replay's
        if run.status == "done" or REFUSED in run.tags:  # one that was interrupted says nothing of the delivery
            return run.tags
    return {}


def silence(usual: float, window: timedelta) -> str:
    """Say that a model was asked nothing for a window in which it usually is."""
    length = {timedelta(days=7): "a week", timedelta(days=1): "a day", timedelta(hours=1): "an hour"}.get(window, f"in {window}")
    return f"nobody asks it any more: 0 decisions where {usual:,.0f} {length} are usual"


SETTLED = 3_000_000_000
"""Nanoseconds that a file must have rested when it was looked at: one that is written later has another time then."""


class Seen(msgspec.Struct, frozen=True):
    """A delivered file as it was when its content was read: bytes, time of its last change, time of the look, digest, and
    what its server calls this state of it."""

    size: int
    changed: int
    looked: int
    content: str = ""
    etag: str = ""


def look(path: Path) -> Seen:
    """Look at a file from outside, without reading it."""
    found = path.stat()
    return Seen(found.st_size, found.st_mtime_ns, time.time_ns())


def unchanged(before: Seen | None, now: Seen, content: str) -> bool:
    """Tell whether a file still has the content that was taken in, as far as can be known without reading it."""
    if before is None or before.content != content:
        return False
    return (before.size, before.changed) == (now.size, now.changed) and before.changed < before.looked - SETTLED


def seen(project: Project, data: str) -> dict[str, Seen]:
    """Return how each file of a table was when it was last read. A note that is gone or damaged only costs reading anew."""
    try:
        return msgspec.json.decode(_note(project, data).read_bytes(), type=dict[str, Seen])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def keep(project: Project, data: str, found: Mapping[str, Seen]) -> None:
    """Keep the note, where it says something new."""
    if found and seen(project, data) != found:
        write_atomically(_note(project, data), msgspec.json.encode(found))


def _note(project: Project, data: str) -> Path:
    return project.folder / "delivered" / f"{data}.json"
