"""Durable steps: a flow is plain Python that calls steps; run again from the top, recorded steps return their value.

A step's key is the digest of what it depends on (code closure, inputs, parameters, seed). A run holds a lease, renewed
by a thread; only its holder may record, so a process that was stopped and thawed cannot write over its successor.
"""

from __future__ import annotations

import os
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
from palan.errors import Conflict, Corrupt, LeaseLost, ModelFailed, NotFound, PalanError, nearest
from palan.flows.project import Project, record
from palan.runs.run import Attempt, Run, Step, Value, number
from palan.stores.contract import Lease

T = TypeVar("T")

MOST = 5
"""How often in a row a step is tried that fails, or dies with its process."""

DIED = "its process ended without a word"

LEASE = timedelta(seconds=6)
"""How long a killed process's work waits before somebody else may take it over."""


def holder() -> str:
    """Name this process among all that share the store."""
    return f"{_machine()}:{os.getpid()}:{threading.get_ident()}"


@cache
def _machine() -> str:
    """Name what process numbers are unique in: the machine, and the container where there is one."""
    room = Path("/proc/self/ns/pid")
    return f"{os.uname().nodename}/{room.readlink().name.strip('pid:[]')}" if room.is_symlink() else os.uname().nodename


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
        raise Corrupt(f'the step "{step.name}" is damaged at value: it is not what was recorded', "restore the records from a backup: palan restore FILE")
    return kept["value"]


def dead(project: Project) -> list[Attempt]:
    """Return the steps that are not tried any more, the newest first."""
    return [each for each in project.store.records.find(Attempt, order="-time", count=MOST) if not _is_tried_now(project, each)]


def _is_tried_now(project: Project, attempt: Attempt, mine: str = "") -> bool:
    """Tell whether another run than `mine` is at this attempt: it has neither failed nor died with its process."""
    if attempt.reason != DIED or attempt.run == mine:
        return False
    run = project.store.records.get(Run, attempt.run)
    return run is not None and run.status == "running" and not _died(run.holder)


def retry(project: Project, step: str) -> dict[str, Any]:
    """Let a dead step be tried again: its next attempt counts as the first.

    Raises:
        NotFound: no step of this name is dead.
    """
    given_up = dead(project)
    chosen = [each for each in given_up if each.name == step]
    if not chosen:
        raise NotFound(f'no step "{step}" is dead', nearest(step, [each.name for each in given_up]) or "palan status")
    with project.store.records.transaction(durable=True):
        for each in chosen:
            # Not removed: of an effect it says that it may have been done.
            project.store.records.put(replace(each, count=0))
        record(project, "retried", step, chosen[0].reason)
    return {"step": step, "reasons": [each.reason for each in chosen]}


def _plain(value: T) -> T:
    """Return a value as it will be read back: the first time gives what every later time gives."""
    again: T = msgspec.json.decode(canonical(value))
    return again


def _same(step: Step, value: Any) -> None:
    """Refuse a step that gives another value than the one it recorded."""
    before = recorded(step)
    if value == before:
        return
    where = ""
    if isinstance(value, dict) and isinstance(before, dict):
        where = " at " + ", ".join(sorted(str(key) for key in {*value, *before} if value.get(key) != before.get(key)))
    raise PalanError(
        f'the step "{step.name}" gives another value than it recorded{where}',
        "it depends on what palan does not know: time, chance without ctx.seed, a file that is no data of palan.toml",
    )


class Journal:
    """The steps of one run."""

    def __init__(self, project: Project, run: Run, lease: Lease, *, verify: float = 0.0, careful: bool = False) -> None:
        self.project = project
        self.run = run
        self.lease = lease
        self.verify = verify
        """The share of recorded steps that are done again, to see whether they give the same."""
        self.careful = careful
        """Whether each attempt is written down before it is made: the run before this one died, nobody knows in which step."""
        self._tried = {each.id for each in project.store.records.find(Attempt)}
        """What was begun before and has not ended: for all else there is nothing to look up before it is done."""
        self.executed: list[str] = []
        self.replayed: list[str] = []

    def step(self, name: str, parts: Mapping[str, Any], work: Callable[[], T]) -> T:
        """Return the recorded value of this step, or do the work and record what it returns (plain values only).

        `parts` name everything that the value depends on; their digest is the key.

        Raises:
            LeaseLost: another process has taken this run over; nothing was recorded.
            PalanError: it is dead: the model failed, or the process died, MOST times in a row.
        """
        key = digest_of([name, parts])
        records = self.project.store.records
        found = records.get(Step, key)
        if found is not None:
            self.replayed.append(name)
            if self.verify and int.from_bytes(os.urandom(7), "big") < self.verify * 2**56:
                _same(found, _plain(work()))
            return recorded(found)  # type: ignore[no-any-return]
        before, attempt = self._begin(key, name, write=self.careful)
        started = time.perf_counter()
        try:
            value: T = _plain(work())
        except ModelFailed as error:
            self._failed(attempt, error)
            raise
        except BaseException:  # what a user puts right, or Ctrl-C: no attempt of the step's own
            if before or self.careful:
                self._keep(before or replace(attempt, count=0))
            raise
        value = self._record(key, name, parts, value, time.perf_counter() - started, attempted=bool(before) or self.careful)
        self.executed.append(name)
        return value

    def effect(self, name: str, parts: Mapping[str, Any], do: Callable[[str], T], check: Callable[[str], T | None]) -> T:
        """Do something to the world outside once, whatever dies: note the intent, do it, record that it was done.

        `do` is given an idempotency key, to be sent along. An intent without its end is asked for by `check`: it
        returns what `do` would have returned, or None where it was not done.

        Raises:
            LeaseLost: another process has taken this run over; nothing was done.
            Conflict: another process is about to do it.
            PalanError: it is dead: it failed, or the process died, MOST times in a row.
        """
        key = digest_of([name, parts])
        records = self.project.store.records
        with records.transaction(durable=True):
            self.fence()
            found = records.get(Step, key)
            before, attempt = (None, None) if found else self._begin(key, name, write=True)
            if before is not None and _is_tried_now(self.project, before, self.run.id):
                raise Conflict(f'another process is at "{name}"', "wait for it: palan status")
        if attempt is None:
            self.replayed.append(name)
            return recorded(records.find(Step, id=key)[0])  # type: ignore[no-any-return]
        started = time.perf_counter()
        try:
            done = check(key) if before is not None else None
            value: T = _plain(do(key) if done is None else done)
        except Exception as error:  # whether it was done is open: the intent stays
            self._failed(attempt, error)
            raise
        value = self._record(key, name, parts, value, time.perf_counter() - started, attempted=True, durable=True)
        self.executed.append(name)
        return value

    def _begin(self, key: str, name: str, *, write: bool) -> tuple[Attempt | None, Attempt]:
        """Write down that this is tried, where it has to be; return the last attempt of it that did not come to its end, and this one."""
        records = self.project.store.records
        before = records.get(Attempt, key) if write or key in self._tried else None
        count = before.count if before else 0
        if before and count >= MOST:
            raise PalanError(f'the step "{name}" is dead after {count} attempts: {before.reason}', f'put that right, then: palan retry "{name}"')
        if not (before and _is_tried_now(self.project, before, self.run.id)):  # what another process does now has not failed
            count += 1
        attempt = Attempt(key, name, self.run.id, count, self.project.clock(), DIED)
        if before or write:
            self._keep(attempt)
        return before, attempt

    def _keep(self, attempt: Attempt) -> None:
        self._tried.add(attempt.id)
        self.project.store.records.put(attempt)

    def _failed(self, attempt: Attempt, error: Exception) -> None:
        reason = (error.what if isinstance(error, PalanError) else f"{type(error).__name__}: {error}")[:500]
        records = self.project.store.records
        if records.get(Attempt, attempt.id) in (None, attempt):  # a successor's own attempt is not ours to end
            self._keep(replace(attempt, reason=reason))
        if attempt.count >= MOST:
            self.project.tell(f'the step "{attempt.name}" is dead after {attempt.count} attempts; palan retry "{attempt.name}"')

    def _record(self, key: str, name: str, parts: Mapping[str, Any], value: T, seconds: float, *, attempted: bool, durable: bool = False) -> T:
        records = self.project.store.records
        step = Step(key, self.run.id, name, {"value": value, "digest": digest_of(value)}, dict(parts), self.project.clock(), seconds)
        if not attempted and not durable and records.add(step, under=self.lease):  # one statement, for nothing else is to be written
            return value
        with records.transaction(durable=durable):
            self.fence()
            new = records.add(step)
            if attempted:
                records.remove(Attempt, (key,))
            # Where another run did the same at the same time, what it recorded stands.
            return value if new else recorded(records.find(Step, id=key)[0])

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
    project: Project, flow: str, subject: str, *, exclusive: str = "", wait: float = 0.0, verify: float = 0.0, **fields: Any
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
    careful = _bury(project, flow, subject)
    now = project.clock()
    run = Run(new_id(now), flow, subject, "running", now, holder=me, token=lease.token, **fields)
    with records.transaction():
        records.put(run)
    journal = Journal(project, run, lease, verify=verify, careful=careful)
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


def _bury(project: Project, flow: str, subject: str) -> bool:
    """Whoever holds the lease knows that earlier runs of the same thing are dead: say so, and tell whether there were any."""
    found = project.store.records.find(Run, flow=flow, subject=subject, status="running")
    for run in found:
        project.store.records.put(
            replace(run, status="killed", ended=project.clock(), reason=DIED)
        )
    return bool(found)


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
