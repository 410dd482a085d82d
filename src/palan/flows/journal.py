"""Durable steps: a flow is plain Python that calls steps; run again from the top, recorded steps return their value.

A step's key is the digest of what it depends on (code closure, inputs, parameters, seed). A run holds a lease, renewed
by a thread; only its holder may record, so a process that was stopped and thawed cannot write over its successor.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from palan.core import canonical, digest_of, new_id, utcnow
from palan.errors import Conflict, Corrupt, LeaseLost, PalanError
from palan.flows.fold import number
from palan.flows.project import Project
from palan.runs.run import Run, Step, Value
from palan.stores.contract import Lease

T = TypeVar("T")

LEASE = timedelta(seconds=6)
"""How long a killed process's work waits before somebody else may take it over."""


def holder() -> str:
    """Name this process among all that share the store."""
    return f"{_machine()}:{os.getpid()}:{threading.get_ident()}"


@cache
def _machine() -> str:
    """Name what process numbers are unique in: the machine, and the container where there is one."""
    room = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{room.readlink().name.strip('pid:[]')}" if room.is_symlink() else socket.gethostname()


def _died(holder: str) -> bool:
    """Tell whether a holder was a process of this machine that is no more. False where nobody can know."""
    machine, pid, *_ = [*holder.split(":"), ""]
    if machine != _machine() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _zombie(pid)


def _zombie(pid: str) -> bool:
    """Tell whether a process has ended and only its parent was not told yet: with a parent that never asks, for ever."""
    try:
        stat = Path("/proc", pid, "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(") ")[2][:1] in ("Z", "X")  # the name before it may hold brackets itself


def recorded(step: Step) -> Any:
    """Return what a step recorded.

    Raises:
        Corrupt: it is not what was recorded.
    """
    kept = step.value
    if not isinstance(kept, dict) or "value" not in kept or digest_of(kept["value"]) != kept.get("digest"):
        raise Corrupt(f'the step "{step.name}" is damaged at value: it is not what was recorded', "restore palan.db from a backup")
    return kept["value"]


class Journal:
    """The steps of one run."""

    def __init__(self, project: Project, run: Run, lease: Lease) -> None:
        self.project = project
        self.run = run
        self.lease = lease
        self.executed: list[str] = []
        self.replayed: list[str] = []

    def step(self, name: str, parts: Mapping[str, Any], work: Callable[[], T]) -> T:
        """Return the recorded value of this step, or do the work and record what it returns (plain values only).

        `parts` name everything that the value depends on; their digest is the key.

        Raises:
            LeaseLost: another process has taken this run over; nothing was recorded.
        """
        key = digest_of([name, parts])
        records = self.project.store.records
        found = records.get(Step, key)
        if found is not None:
            self.replayed.append(name)
            return recorded(found)  # type: ignore[no-any-return]
        started = time.perf_counter()
        # As it will be read back: the first time gives what every later time gives.
        value: T = msgspec.json.decode(canonical(work()))
        seconds = time.perf_counter() - started
        with records.transaction():
            self.fence()
            new = records.add(Step(key, self.run.id, name, {"value": value, "digest": digest_of(value)}, dict(parts), self.project.clock(), seconds))
            if not new:  # another run did the same at the same time: what stands is what it recorded
                value = recorded(records.find(Step, id=key)[0])
        self.executed.append(name)
        return value

    def fence(self) -> None:
        """Extend the lease, or refuse: to be called in the transaction that records something."""
        mine = self.project.store.records.lease(self.lease.name, self.lease.holder, LEASE, now=utcnow())
        if mine is None or mine.token != self.lease.token:
            raise LeaseLost(f"{self.lease.name} was taken over by another process", "palan status")

    def note(self, **changes: Any) -> None:
        """Write parameters, metrics, tags or data versions into the run."""
        with self.project.store.records.transaction():
            self.fence()
            self.run = replace(self.run, **changes)
            self.project.store.records.put(self.run)


@contextmanager
def running(
    project: Project, flow: str, subject: str, *, exclusive: str = "", wait: float = 0.0, **fields: Any
) -> Iterator[Journal]:
    """Open a run under a lease on `exclusive` (default: the flow and its subject), and end it whatever happens.

    Raises:
        Conflict: another process works on the same thing (after waiting `wait` seconds).
    """
    records = project.store.records
    name = exclusive or f"{flow}:{subject}"
    me = f"{holder()}:{new_id(utcnow())}"
    _release_the_dead(project, flow, subject, name)
    lease = _take(project, name, me, wait)
    _bury(project, flow, subject)
    now = project.clock()
    run = Run(new_id(now), flow, subject, "running", now, holder=me, token=lease.token, **fields)
    with records.transaction():
        records.put(run)
    journal = Journal(project, run, lease)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(project, lease, stop), name=f"lease {name}", daemon=True)
    beat.start()
    try:
        yield journal
    except BaseException as error:
        _end(journal, "failed", f"{type(error).__name__}: {error}".splitlines()[0])
        raise
    else:
        _end(journal, "done", "")
    finally:
        stop.set()
        beat.join()
        records.free(lease)


def _take(project: Project, name: str, me: str, wait: float) -> Lease:
    deadline = time.monotonic() + wait
    while True:
        lease = project.store.records.lease(name, me, LEASE, now=utcnow())
        if lease is not None:
            return lease
        if time.monotonic() >= deadline:
            raise Conflict(
                f"another process is at work on {name}", f"wait for it, or if it was killed, {LEASE.seconds} s"
            )
        time.sleep(0.05)


def _release_the_dead(project: Project, flow: str, subject: str, name: str) -> None:
    """Free the lease of a process of this machine that was killed: nobody has to wait until it ends."""
    for run in project.store.records.find(Run, flow=flow, subject=subject, status="running"):
        if _died(run.holder):
            project.store.records.free(Lease(name, run.holder, run.token, run.time))


def _bury(project: Project, flow: str, subject: str) -> None:
    """Whoever holds the lease knows that earlier runs of the same thing are dead: say so."""
    for run in project.store.records.find(Run, flow=flow, subject=subject, status="running"):
        project.store.records.put(
            replace(run, status="killed", ended=project.clock(), reason="its process ended without a word")
        )


def _beat(project: Project, lease: Lease, stop: threading.Event) -> None:
    records = project.store.records
    while not stop.wait(LEASE.total_seconds() / 3):
        with suppress(PalanError):  # the store is locked or full: tried again at the next beat
            mine = records.lease(lease.name, lease.holder, LEASE, now=utcnow())
            if mine is not None and mine.token != lease.token:
                records.free(mine)  # it had passed on and was free again: not ours to take back
            if mine is None or mine.token != lease.token:
                return  # the next step finds out, and refuses


def _end(journal: Journal, status: str, reason: str) -> None:
    records = journal.project.store.records
    with records.transaction():
        stored = records.get(Run, journal.run.id)
        if stored is not None and stored.status == "running":  # a successor may have buried it
            ended = replace(journal.run, status=status, ended=journal.project.clock(), reason=reason)
            records.put(ended, *_values(ended))


def _values(run: Run) -> list[Value]:
    """Return what a run was given and measured as it is searched by, as of every run that somebody tracks."""
    ns = int((run.ended or run.time).timestamp() * 1e9)
    found = []
    for key, value in run.metrics.items():
        if isinstance(value, int | float):
            known = None if value != value else float(value)
            found.append(Value(run.id, "metric", key, "NaN" if known is None else None, known, known, known, 1, 0, ns))
    for key, value in run.params.items():
        text = value if isinstance(value, str) else canonical(value).decode()
        found.append(Value(run.id, "param", key, text, number(text), time=ns))
    return [*found, *(Value(run.id, "tag", key, str(value), number(str(value)), time=ns) for key, value in run.tags.items())]
