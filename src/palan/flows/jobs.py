"""Long solves: submit, watch the incumbents, stop and keep the best; a job survives the process that works on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from palan.core import new_id, stamp, utcnow
from palan.data.inputs import Inputs, Request
from palan.decisions import log
from palan.decisions.nouns import Job
from palan.errors import Conflict, LeaseLost, ModelFailed, NotFound, PalanError
from palan.flows.decide import Answered, Lane, ask_instance, instance_decision, signature
from palan.flows.journal import LEASE, holder
from palan.flows.packages import find_version, open_worker
from palan.flows.project import Project, record
from palan.models.contract import Incumbent
from palan.releases.nouns import Release
from palan.stores.contract import Lease

POLL_SECONDS = 0.25
SHORT = 4096
"""Bytes of an output that lies in the job itself; a longer one is a blob."""

IDLE_SECONDS = 60.0
"""How long a worker is kept for the next job of the same version."""

_STOP = "asked to stop"


def submit(
    project: Project, model: str, body: bytes = b"", *, instance: Any = None, version: str = "", time_limit: float | None = None, idempotency_key: str = ""
) -> dict[str, Any]:
    """Queue one instance for a model and return its job. Submitting again under the same idempotency key returns the same job.

    Args:
        project: an open project.
        model: its name.
        body: JSON `{"instance": {...}, "key": "..."}`; the key is the caller's own name of it, for its outcome. Or
        instance: the instance as Python values.
        version: "gates@3"; without it the champion.
        time_limit: seconds for the solve; without it the model's own `time_limit`.
        idempotency_key: the caller's name for this request.

    Raises:
        NotFound: no such model or version, or none is released.
        Invalid: the instance does not fit.
        Conflict: the key was used for another instance.
    """
    project.model(model)
    records = project.store.records
    if not version and records.get(Release, model) is None:
        raise NotFound(f"{model} is not released", f"palan release {model}")
    chosen = find_version(project, version or model)
    schema = signature(chosen)
    if schema.shape != "instance":
        raise PalanError(f"{model} answers rows, which takes no job", f"POST /v1/models/{model}/decide")
    request = Inputs(schema).read(body) if instance is None else Inputs(schema).take(instance)
    if time_limit is not None and not 0 < time_limit <= 86_400:
        raise PalanError(f"time_limit is {time_limit:g} s", "between 0 and 86400 seconds")
    keys = list(request.keys or ())
    blob = project.store.blobs.put(msgspec.json.encode({"instance": request.instance, "time_limit": time_limit, "keys": keys}))
    now = project.clock()
    with records.transaction():
        known = records.find(Job, model=model, idempotency_key=idempotency_key, limit=1) if idempotency_key else []
        if known and known[0].request != blob:
            raise Conflict(f'the idempotency key "{idempotency_key}" was used for another instance: job {known[0].id}', "use a new key")
        job = known[0] if known else Job(new_id(now), model, chosen.ref, "queued", now, blob, idempotency_key=idempotency_key, result={"about": about(request.instance)})
        if not known:
            records.put(job)
    return line(project, job)


def jobs(project: Project, model: str = "", *, limit: int = 50) -> list[dict[str, Any]]:
    """Return the newest jobs, newest first."""
    found = project.store.records.find(Job, order="-id", limit=limit, **({"model": model} if model else {}))  # type: ignore[arg-type]
    return [line(project, each) for each in found]


def job(project: Project, id: str) -> dict[str, Any]:
    """Return one job with its incumbents, and its output once there is one.

    Raises:
        NotFound: no such job.
    """
    found = _get(project, id)
    result = dict(found.result)
    blob, answer = result.pop("output", ""), result.pop("answer", "")
    request = msgspec.json.decode(project.store.blobs.get(found.request))
    limit = project.model(found.model).time_limit if found.model in project.config.models else None
    return {
        **line(project, found),
        "started": stamp(found.started) if found.started else None,
        "ended": stamp(found.ended) if found.ended else None,
        "time_limit": request["time_limit"] or (limit.total_seconds() if limit else None),
        "incumbents": incumbents(project, id),
        "outputs": msgspec.json.decode(project.store.blobs.get(blob) if blob else answer or b"null"),
        "result": result,
        "decision": found.decision,
        "reason": found.reason,
    }


def line(project: Project, job: Job) -> dict[str, Any]:
    """Return a job as plain values, without what is long."""
    ended = job.ended or (project.clock() if job.fate == "running" else None)
    seconds = job.result.get("seconds") if job.ended else (ended - job.started).total_seconds() if ended and job.started else None
    gap = abs(job.objective - job.bound) / max(abs(job.objective), 1e-9) if job.objective is not None and job.bound is not None else None
    return {
        "id": job.id,
        "model": job.model,
        "version": job.version,
        "fate": job.fate,
        "status": job.status,
        "time": stamp(job.time),
        "seconds": seconds,
        "objective": job.objective,
        "bound": job.bound,
        "gap": gap,
        "about": str(job.result.get("about", "")),
    }


def incumbents(project: Project, id: str) -> list[dict[str, Any]]:
    """Return the best-so-far answers of a job's last attempt, in order: seconds, objective, bound."""
    found: list[dict[str, Any]] = []
    for frame in project.store.blocks.scan(f"jobs/{id}"):
        each = msgspec.msgpack.decode(frame.data)
        if each.get("attempt"):
            found = []
        else:
            found.append(each)
    return found


def stop(project: Project, id: str, reason: str = "") -> dict[str, Any]:
    """Ask a job to end with the best answer that it has; a queued one ends at once.

    Raises:
        NotFound: no such job.
        Conflict: it has ended already.
    """
    records = project.store.records
    with records.transaction(durable=True):
        found = _get(project, id)
        if found.fate not in ("queued", "running"):
            raise Conflict(f"job {id} is {found.fate} already", f"GET /v1/jobs/{id}")
        why = f"{project.actor} {_STOP}" + (f": {reason}" if reason else "")
        changes: dict[str, Any] = {"fate": "cancelled", "ended": project.clock()} if found.fate == "queued" else {}
        found = replace(found, reason=why, **changes)
        records.put(found)
        record(project, "stopped", f"job {id} of {found.model}", reason)
    return line(project, found)


def _get(project: Project, id: str) -> Job:
    found = project.store.records.get(Job, id)
    if found is None:
        raise NotFound(f'no job "{id}"', "GET /v1/jobs lists them")
    return found


class _Kept(msgspec.Struct):
    """A worker kept warm between jobs."""

    lane: Lane
    used: float


class _Watch(msgspec.Struct):
    """What the thread that solves and the one that keeps the lease tell each other."""

    stop: bool = False
    lost: bool = False
    done: threading.Event = msgspec.field(default_factory=threading.Event)


class Runner:
    """Works the queue: one job at a time per model, whichever process is first. Nothing is lost when it is killed.

    The right to work on a model's jobs is a lease. Whoever gets it knows that nobody else works on them, so a job that
    still says "running" belongs to a dead process and is queued again.
    """

    def __init__(self, project: Project, *, lease: float = LEASE.total_seconds()) -> None:
        self.project = project
        self._ttl = type(LEASE)(seconds=lease)
        self._me = f"{holder()}:{new_id(utcnow())}"
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._active: dict[str, threading.Thread] = {}
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    def start(self) -> None:
        """Begin to work, in threads."""
        self._thread.start()

    def wake(self) -> None:
        """Look at the queue now, because something was put there."""
        self._wake.set()

    def close(self) -> None:
        """Put jobs under way back into the queue and end the workers."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=20)
        with self._lock:
            threads = list(self._active.values())
        for thread in threads:
            thread.join(timeout=20)
        for kept in self._kept.values():
            kept.lane.worker.close()
        self._kept = {}

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                waiting = {each.model for each in self.project.store.records.find(Job, fate=("queued", "running"))}
            except PalanError as error:
                self.project.tell(f"the queue of jobs could not be read: {error.what}")
                waiting = set()
            with self._lock:
                for model in waiting & set(self.project.config.models):
                    if model not in self._active:
                        thread = threading.Thread(target=self._work, args=(model,), name=f"jobs {model}", daemon=True)
                        self._active[model] = thread
                        thread.start()
                self._drop_idle()
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _drop_idle(self) -> None:
        for ref, kept in list(self._kept.items()):
            if kept.lane.users == 0 and time.monotonic() - kept.used > IDLE_SECONDS:
                del self._kept[ref]
                kept.lane.worker.close()

    def _work(self, model: str) -> None:
        records = self.project.store.records
        try:
            lease = records.lease(f"jobs:{model}", self._me, self._ttl, now=utcnow())
            if lease is None:
                return
            try:
                for dead in records.find(Job, model=model, fate="running"):
                    records.put(replace(dead, fate="cancelled" if _STOP in dead.reason else "queued", started=None, ended=self.project.clock() if _STOP in dead.reason else None))
                while not self._stop.is_set() and (queued := records.find(Job, model=model, fate="queued", order="id", limit=1)):
                    self._try(queued[0], lease)
            finally:
                records.free(lease)
        except LeaseLost:
            self.project.tell(f"another process has taken over the jobs of {model}")
        except PalanError as error:
            self.project.tell(f"the jobs of {model} stand still: {error.what}")
        finally:
            with self._lock:
                self._active.pop(model, None)

    def _try(self, job: Job, lease: Lease) -> None:
        """Solve a job. One that cannot even be begun, or that palan stumbles over, has failed: others wait behind it."""
        try:
            self._solve(job, lease)
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - the last door of this thread: told, and kept as the job's reason
            reason = error.what if isinstance(error, PalanError) else f"palan failed on it: {type(error).__name__}: {error}"[:500]
            self.project.tell(f"job {job.id} of {job.model}: {reason}")
            self._record(lease, job.id, fate="failed", ended=self.project.clock(), status="error", reason=reason)

    def _solve(self, job: Job, lease: Lease) -> None:
        project = self.project
        stream = f"jobs/{job.id}"
        opening = [msgspec.msgpack.encode({"attempt": True})]

        def write(frame: dict[str, Any]) -> None:
            project.store.blocks.append(stream, [*opening, msgspec.msgpack.encode(frame)])
            opening.clear()

        # A job that was taken over begins again: what an earlier attempt found is not shown as this one's.
        if any(True for _ in project.store.blocks.scan(stream)):
            project.store.blocks.append(stream, opening)
            opening.clear()
        job = self._record(lease, job.id, fate="running", started=project.clock(), ended=None, objective=None, bound=None)
        watch = _Watch()
        keeper = threading.Thread(target=self._keep, args=(job.id, lease, watch), name=f"lease {lease.name}", daemon=True)
        keeper.start()
        best: list[Incumbent] = []

        def found(each: Incumbent) -> None:
            best.append(each)
            write({"seconds": each.seconds, "objective": each.objective, "bound": each.bound})

        request = msgspec.json.decode(project.store.blobs.get(job.request))
        try:
            lane = self._lane(job.version)
            try:
                answered = ask_instance(lane, request["instance"], self._limit(job.model, request["time_limit"]), found, lambda: watch.stop or watch.lost or self._stop.is_set())
            finally:
                with self._lock:
                    lane.users -= 1
        except PalanError as error:
            answered = Answered(job.version, getattr(error, "status", "error"), error=error if isinstance(error, ModelFailed) else ModelFailed(error.what, error.hint))
        finally:
            watch.done.set()
            keeper.join()
        if watch.lost:
            raise LeaseLost(f"{lease.name} was taken over by another process")
        if self._stop.is_set() and not watch.stop:
            self._record(lease, job.id, fate="queued", started=None)
            return
        asked = Request(rows=1, instance=request["instance"], keys=tuple(request["keys"]))
        self._finish(lease, job, asked, answered, write, stopped=watch.stop)

    def _finish(self, lease: Lease, job: Job, asked: Request, answered: Answered, write: Callable[[dict[str, Any]], None], *, stopped: bool) -> None:
        project = self.project
        now = project.clock()
        result: dict[str, Any] = {**job.result, **answered.result, "seconds": answered.seconds, "violations": [msgspec.to_builtins(each) for each in answered.violations]}
        result.pop("incumbents", None)  # they are in the job's own stream
        last = {"seconds": answered.seconds, "objective": answered.result.get("objective"), "bound": answered.result.get("bound")}
        seen = incumbents(project, job.id)
        if last["bound"] is not None and (not seen or {**seen[-1], "seconds": 0} != {**last, "seconds": 0}):
            # The proof often comes after the best answer: without this the chart would end with the gap still open.
            write(last)
        decision = ""
        if answered.outputs is not None:
            output = msgspec.json.encode(answered.outputs)
            result |= {"answer": output.decode()} if len(output) <= SHORT else {"output": project.store.blobs.put(output)}
            decision = new_id(now)
        fate = "failed" if answered.error else "cancelled" if stopped else "done"
        reason = answered.error.what if answered.error else answered.degraded
        # The log first: a decision whose job is lost does no harm, a job whose decision is lost would.
        if decision:
            release = project.store.records.get(Release, job.model)
            entry = instance_decision(
                decision, now, job.model, asked, answered.version, release.epoch if release else 0, "job", 1.0, answered.status, answered.outputs, answered.violations, answered.result, answered.degraded, answered.seconds, f"job {job.id}"
            )
            project.store.blocks.append(f"decisions/{job.model}", [log.encode(entry)])
        changes = {"reason": reason} if reason else {}
        self._record(lease, job.id, fate=fate, ended=now, status=answered.status, objective=answered.result.get("objective"), bound=answered.result.get("bound"), result=result, decision=decision, **changes)

    def _record(self, lease: Lease, id: str, **changes: Any) -> Job:
        records = self.project.store.records
        with records.transaction():
            mine = records.lease(lease.name, lease.holder, self._ttl, now=utcnow())
            if mine is None or mine.token != lease.token:
                raise LeaseLost(f"{lease.name} was taken over by another process")
            job = replace(_get(self.project, id), **changes)
            records.put(job)
            return job

    def _keep(self, id: str, lease: Lease, watch: _Watch) -> None:
        """Hold the lease while the solve runs, and hear when the job is asked to stop."""
        records = self.project.store.records
        renewed = time.monotonic()
        while not watch.done.wait(POLL_SECONDS):
            if time.monotonic() - renewed > self._ttl.total_seconds() / 3:
                mine = records.lease(lease.name, lease.holder, self._ttl, now=utcnow())
                if mine is None or mine.token != lease.token:
                    watch.lost = True
                    return
                renewed = time.monotonic()
            watch.stop = watch.stop or _STOP in _get(self.project, id).reason

    def _limit(self, model: str, asked: float | None) -> float | None:
        own = self.project.model(model).time_limit
        return asked if asked is not None else own.total_seconds() if own else None

    def _lane(self, ref: str) -> Lane:
        with self._lock:
            kept = self._kept.get(ref)
            if kept:
                kept.used = time.monotonic()
                kept.lane.users += 1
                return kept.lane
        version = find_version(self.project, ref)
        lane = Lane(version, signature(version), open_worker(self.project, version), users=1)
        with self._lock:
            self._kept[ref] = _Kept(lane, time.monotonic())
        return lane


def about(instance: Mapping[str, Any]) -> str:
    """Return an instance in a few words: its short top-level values, and how many items its lists hold."""
    words = [str(value) for value in instance.values() if isinstance(value, str) and len(value) <= 20]
    counts = [f"{len(value)} {name}" for name, value in instance.items() if isinstance(value, list)]
    return ", ".join([" ".join(words), *counts] if words else counts)[:120]
