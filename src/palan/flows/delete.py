"""`palan runs delete` and `palan runs restore`: put runs aside, and take them back; `palan gc` frees what was put aside for long.

A run that is put aside stays as it is: no search finds it that does not ask for deleted ones, whether palan's or MLflow's. The
ledger says who put it aside and why, and what was freed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from palan.errors import Invalid
from palan.flows.fold import TRACK, fold
from palan.flows.project import Project, record
from palan.flows.runs import find_run
from palan.runs.mlflow import Input
from palan.runs.run import Artifact, Drawn, Run, Value


def delete(project: Project, ids: Sequence[str], *, reason: str = "") -> dict[str, Any]:
    """Put runs aside, with the runs within them; whoever still logs to one is not disturbed.

    Raises:
        NotFound: there is no such run.
        Invalid: it is no run that somebody tracks, but part of how a version came to be.
    """
    return _marked(project, ids, "delete", project.clock(), reason)


def restore(project: Project, ids: Sequence[str], *, reason: str = "") -> dict[str, Any]:
    """Take back runs that were put aside, with the runs within them.

    Raises:
        NotFound: there is no such run, or `palan gc` has freed it.
    """
    return _marked(project, ids, "restore", None, reason)


def _marked(project: Project, ids: Sequence[str], verb: str, when: datetime | None, reason: str) -> dict[str, Any]:
    named = [find_run(project, id) for id in ids]
    if kept := next((run for run in named if run.flow != TRACK), None):
        raise Invalid(f"{kept.id} is a {kept.flow}, which says how {kept.subject or 'the project'} came to be", 'palan runs lists what can be deleted', field="run", value=kept.id)
    with project.store.records.transaction(durable=True):
        changed = [run for run in _within(project, named) if (run.deleted is None) != (when is None)]
        project.store.records.put(*(replace(run, deleted=when) for run in changed))
        if changed:
            subject = changed[0].id if len(changed) == 1 else f"{len(changed)} runs"
            record(project, verb, subject, reason, runs=[run.id for run in changed])
    return {"runs": [{"run": run.id, "name": run.name, "experiment": run.subject} for run in changed], "reason": reason}


def _within(project: Project, outer: Sequence[Run]) -> list[Run]:
    """Return the runs, as they are now, and all that are nested in them."""
    every: dict[str, Run] = {}
    wanted = project.store.records.find(Run, id=[run.id for run in outer])
    while wanted:
        every |= {run.id: run for run in wanted}
        ids = [run.id for run in wanted]
        inner = [run for at in range(0, len(ids), 500) for run in project.store.records.find(Run, parent=ids[at : at + 500])]
        wanted = [run for run in inner if run.id not in every]
    return list(every.values())


def free(project: Project, before: datetime, *, dry_run: bool) -> list[str]:
    """Remove for good what was put aside before then, and does not go on; return the ids. Blobs that only they named are then loose."""
    fold(project)
    records = project.store.records
    gone = [run for run in records.find(Run, flow=TRACK) if _is_over(run, before)]
    for run in gone if not dry_run else ():
        with records.transaction():
            now = records.get(Run, run.id)
            if now is None or not _is_over(now, before):
                continue  # somebody took it back
            for value in records.find(Value, run=run.id):
                records.remove(Value, (run.id, value.kind, value.key))
            for drawn in records.find(Drawn, run=run.id):
                records.remove(Drawn, (run.id, drawn.keyset, drawn.part))
            for artifact in records.find(Artifact, run=run.id):
                records.remove(Artifact, (run.id, artifact.path))
            for read in records.find(Input, run=run.id):
                records.remove(Input, (run.id, read.kind, read.name, read.digest))
            records.remove(Run, (run.id,))
    return [run.id for run in gone]


def _is_over(run: Run, before: datetime) -> bool:
    return run.deleted is not None and run.deleted < before and run.status != "running"
