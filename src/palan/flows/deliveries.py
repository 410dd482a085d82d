"""What no longer comes in: deliveries that fail, and requests that nobody makes. Asked without loading what takes them in."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from palan.flows.project import Project
from palan.runs.run import Run

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
