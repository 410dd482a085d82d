"""Long solves: submit, watch the incumbents, stop and keep the best; a job survives the process that works on it."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import msgspec
from msgspec.structs import replace

from palan.core import counted, new_id, stamp, utcnow
from palan.data.inputs import Inputs, Request
from palan.decisions import log
from palan.decisions.nouns import Decision, Job
from palan.errors import Conflict, ModelFailed, NotFound, PalanError
from palan.flows import history
from palan.flows.decide import Answered, Lane, ask_instance, instance_decision, signature
from palan.flows.journal import DIED, LEASE, MOST, holder
from palan.flows.packages import find_version, open_worker
from palan.flows.project import Project, record
from palan.models.contract import Violation
from palan.releases.nouns import Release

POLL_SECONDS = 0.25
SHORT = 4096
"""Bytes of a request or an output that lie in the job itself; a longer one is a blob."""

BATCH_SECONDS = 0.2
"""For how long a process takes jobs at a time, as long as the last ones took: what is quick is taken, and recorded, by the dozen."""

MOST_TAKEN = 64
TOLD_SECONDS = 0.05
"""How long the answer of a quick job may wait for the next one's, to be recorded with it."""

TURN = ("-priority", "id")
"""The order of the queue: the highest priority first, and of equal ones the oldest. Who is always outranked waits for ever."""

IDLE_SECONDS = 60.0
"""How long a worker is kept for the next job of the same version."""

_STOP = "asked to stop"
_ATTEMPT = msgspec.msgpack.encode({"attempt": True})


def submit(
    project: Project, model: str, body: bytes = b"", *, instance: Any = None, version: str = "", time_limit: float | None = None, idempotency_key: str = "", priority: int = 0, queue: str = ""
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
        priority: jobs with a higher one are begun first; of equal ones the oldest is.
        queue: a name of jobs that share the limit `per_queue` of `[models.NAME.jobs]`: a customer, a site, a licence.

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
    if not -1000 <= priority <= 1000:
        raise PalanError(f"priority is {priority}", "a whole number from -1000 to 1000; 0 is usual, the highest goes first")
    if len(queue) > 200:
        raise PalanError("the name of the queue is longer than 200 characters", "a short name, such as that of a site")
    asked = msgspec.json.encode({"instance": request.instance, "time_limit": time_limit, "keys": list(request.keys or ())})
    kept = asked.decode() if len(asked) <= SHORT else project.store.blobs.put(asked)
    now = project.clock()
    job = Job(new_id(now), model, chosen.ref, "queued", now, kept, idempotency_key=idempotency_key, result={"about": about(request.instance)}, priority=priority, queue=queue)
    if not idempotency_key:
        records.put(job)
        return line(project, job)
    with records.transaction():
        known = records.find(Job, model=model, idempotency_key=idempotency_key, limit=1)
        if not known:
            records.put(job)
        elif known[0].request != kept:
            raise Conflict(f'the idempotency key "{idempotency_key}" was used for another instance: job {known[0].id}', "use a new key")
    return line(project, known[0] if known else job)


def _asked(project: Project, job: Job) -> dict[str, Any]:
    """Return what was asked: the instance, its keys and its time limit."""
    found: dict[str, Any] = msgspec.json.decode(job.request if job.request.startswith("{") else project.store.blobs.get(job.request))
    return found


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
    request = _asked(project, found)
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
        "priority": job.priority,
        "queue": job.queue,
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
            raise Conflict(f"job {id} is {found.fate} already", f"palan jobs show {id}")
        why = f"{project.actor} {_STOP}" + (f": {reason}" if reason else "")
        changes: dict[str, Any] = {"fate": "cancelled", "ended": project.clock()} if found.fate == "queued" else {}
        found = replace(found, reason=why, **changes)
        records.put(found)
        record(project, "stopped", f"job {id} of {found.model}", reason)
    return line(project, found)


def _get(project: Project, id: str) -> Job:
    found = project.store.records.get(Job, id)
    if found is None:
        raise NotFound(f'no job "{id}"', "palan jobs")
    return found


def work(project: Project, *, until_empty: bool = False) -> dict[str, Any]:
    """Work the queue until SIGTERM or Ctrl-C, which put jobs under way back; or until no job is left. Return how many were `worked`."""
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    runner = Runner(project)
    runner.start()
    try:
        project.tell(f"works the jobs of {project.config.name}")
        while not ended.wait(POLL_SECONDS) and not (until_empty and not project.store.records.find(Job, fate=("queued", "running"), limit=1)):
            pass
    finally:
        runner.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    return {"worked": runner.worked}


class _Kept(msgspec.Struct):
    """A worker kept warm between jobs, and whether one is worked with it now."""

    lane: Lane
    used: float = 0.0
    busy: bool = True


class _Held(msgspec.Struct):
    """A job that this process has taken, and what it has heard of it since."""

    job: Job
    since: float
    stop: bool
    begun: bool = False
    wrote: bool = False
    lost: bool = False


class _Solved(msgspec.Struct, frozen=True):
    """What became of a job, and the decision for the log where there is an answer: not recorded yet."""

    job: Job
    changes: Mapping[str, Any]
    decision: bytes


class Runner:
    """Works the queue, beside any number of processes that do the same. Nothing is lost when one is killed, or stopped and thawed.

    A process takes jobs with its name on them, until a time that it puts off as long as it lives. What is still taken when
    that time has passed belongs to a dead process: whoever sees it first puts it back. Only who is named may record an answer.
    """

    def __init__(self, project: Project, *, lease: float = LEASE.total_seconds()) -> None:
        self.project = project
        self._ttl = timedelta(seconds=lease)
        self._me = f"{holder()}:{new_id(utcnow())}"
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._crew: dict[str, set[threading.Thread]] = {}
        self._held: dict[str, _Held] = {}
        self._kept: dict[str, list[_Kept]] = {}
        self._lock = threading.Lock()
        self._renewed = 0.0
        self.worked = 0
        """Jobs that this process has ended."""
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
            threads = [each for crew in self._crew.values() for each in crew]
        for thread in threads:
            thread.join(timeout=20)
        for kept in [each for some in self._kept.values() for each in some]:
            kept.lane.worker.close()
        self._kept = {}

    def _run(self) -> None:
        told = ""
        while not self._stop.is_set():
            try:
                self._look_after()
                if self.project.store.records.find(Job, fate="queued", order="time", limit=1):
                    for model, config in self.project.config.models.items():
                        self._call_up(model, config.jobs.per_process)
                told = ""
            except PalanError as error:
                if error.what != told:
                    self.project.tell(f"the queue of jobs could not be read: {error.what}")
                told = error.what
            self._drop_idle()
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _call_up(self, model: str, most: int) -> None:
        """Let more threads work the jobs of a model, each beginning with one that was taken for it."""
        crew = self._crew.setdefault(model, set())
        while len(crew) < most and (taken := self._take(model, 1)):
            thread = threading.Thread(target=self._work, args=(model, taken), name=f"jobs {model}", daemon=True)
            with self._lock:
                crew.add(thread)
            thread.start()

    # -- what was taken, by this process and by dead ones --

    def _look_after(self) -> None:
        """Put off the time until which jobs are this process's, hear which are to stop, and put back those of dead processes."""
        records = self.project.store.records
        with self._lock:
            held = dict(self._held)
        for job in records.find(Job, id=list(held)) if held else []:
            held[job.id].stop |= _STOP in job.reason
            held[job.id].lost |= not _is(job, held[job.id].job)
        for each in held.values():
            if not each.begun and time.monotonic() - each.since > 5 * BATCH_SECONDS:  # the one before it takes longer than was thought
                self._put_back(each)
        if time.monotonic() - self._renewed < self._ttl.total_seconds() / 3:
            return
        now = utcnow()
        if held:
            records.claim(Job, {"expires": now + self._ttl}, order=("id",), limit=len(held), id=list(held), holder=self._me, fate="running")
        self._renewed = time.monotonic()
        for job in records.find(Job, fate="running"):
            if job.expires is None or job.expires < now:
                self._take_over(job)

    def _take_over(self, job: Job) -> None:
        """Put a job of a dead process back; after too many of them it has failed. One that was answered already is done."""
        project = self.project
        answer = next((each for each in history.decisions(project, job.model, since=job.started) if each.id == job.id), None)
        if answer is None and any(True for _ in project.store.blocks.scan(f"jobs/{job.id}")):
            project.store.blocks.append(f"jobs/{job.id}", [_ATTEMPT])
        with project.store.records.transaction():
            now = project.store.records.get(Job, job.id)
            if now is None or now.expires != job.expires or not _is(now, job):
                return  # it lives, or another process was first
            died = replace(now, fate="queued", started=None, holder="", expires=None, died=now.died + 1)
            ended = replace(died, started=now.started, ended=project.clock())
            if answer is not None:
                died = replace(ended, fate="cancelled" if _STOP in now.reason else "done", **_told(project, job, _answered(answer)))
            elif _STOP in now.reason:
                died = replace(ended, fate="cancelled")
            elif died.died >= MOST:
                died = replace(ended, fate="failed", status="error", reason=f"given up: {MOST} times in a row {DIED}")
            project.store.records.put(died)
        project.tell(f"job {job.id} of {job.model} is {died.fate}: {DIED}")

    # -- working --

    def _work(self, model: str, taken: list[_Held]) -> None:
        size = 1
        try:
            while taken:
                began = time.monotonic()
                self._do(model, taken)
                each = max(time.monotonic() - began, 1e-6) / len(taken)
                size = max(1, min(2 * size, MOST_TAKEN, int(BATCH_SECONDS / each)))
                taken = [] if self._stop.is_set() else self._take(model, size)
        except PalanError as error:
            self.project.tell(f"the jobs of {model} stand still: {error.what}")
        finally:
            with self._lock:
                self._crew[model].discard(threading.current_thread())

    def _take(self, model: str, most: int) -> list[_Held]:
        """Take the next jobs of a model: several at a time only where nothing limits how many are worked at once."""
        records, limits = self.project.store.records, self.project.config.models[model].jobs
        mine = {"fate": "running", "holder": self._me, "expires": utcnow() + self._ttl, "started": self.project.clock(), "ended": None, "objective": None, "bound": None}
        if limits.at_once is None and limits.per_queue is None:
            found = records.claim(Job, mine, order=TURN, limit=most, model=model, fate="queued")
        else:
            with records.transaction():
                running = records.find(Job, model=model, fate="running")
                queues = Counter(each.queue for each in running if each.queue)
                full = [name for name, count in queues.items() if limits.per_queue and count >= limits.per_queue]
                if limits.at_once and len(running) >= limits.at_once:
                    return []
                found = records.claim(Job, mine, order=TURN, limit=1, but={"queue": full} if full else {}, model=model, fate="queued")
        held = [_Held(each, time.monotonic(), _STOP in each.reason) for each in sorted(found, key=lambda job: (-job.priority, job.id))]
        with self._lock:
            self._held |= {each.job.id: each for each in held}
        return held

    def _do(self, model: str, taken: Sequence[_Held]) -> None:
        """Work what was taken, in turn, and record it; what was not worked is put back."""
        solved: list[_Solved] = []
        told = time.monotonic()
        try:
            release = self.project.store.records.get(Release, model)
            for each in taken:
                with self._lock:
                    each.begun = each.job.id in self._held  # else it was put back meanwhile
                if not each.begun or (found := self._try(each, release.epoch if release else 0)) is None:
                    continue
                solved.append(found)
                if time.monotonic() - told > TOLD_SECONDS:
                    self._record(model, solved)
                    solved, told = [], time.monotonic()
            self._record(model, solved)
        finally:
            for each in taken:
                self._put_back(each)

    def _put_back(self, held: _Held) -> None:
        """Let another process work a job that this one has not ended."""
        with self._lock:
            if self._held.pop(held.job.id, None) is None:
                return
        if held.wrote:
            self.project.store.blocks.append(f"jobs/{held.job.id}", [_ATTEMPT])
        records = self.project.store.records
        with records.transaction():
            now = records.get(Job, held.job.id)
            if now is not None and _is(now, held.job):
                records.put(replace(now, fate="queued", started=None, holder="", expires=None))

    def _try(self, held: _Held, epoch: int) -> _Solved | None:
        """Solve a job; None where this process is to end. One that palan itself stumbles over has failed: others wait behind it."""
        if self._stop.is_set():
            return None
        project, job = self.project, held.job
        try:
            asked = _asked(project, job)
            answered = self._solve(held, asked)
            if self._stop.is_set() and not held.stop:
                return None
            now = project.clock()
            fate = "failed" if answered.error else "cancelled" if held.stop else "done"
            reason = answered.error.what if answered.error else answered.degraded
            changes = {"fate": fate, "ended": now, **_told(project, job, answered), **({"reason": reason} if reason else {})}
            if answered.outputs is None:
                return _Solved(job, changes, b"")
            request = Request(rows=1, instance=asked["instance"], keys=tuple(asked["keys"]))
            entry = instance_decision(
                job.id, now, job.model, request, answered.version, epoch, "job", 1.0, answered.status, answered.outputs, answered.violations, answered.result, answered.degraded, answered.seconds, f"job {job.id}"
            )
            return _Solved(job, changes, log.encode(entry))
        except Exception as error:  # noqa: BLE001 - the last door of this thread: told, and kept as the job's reason
            reason = error.what if isinstance(error, PalanError) else f"palan failed on it: {type(error).__name__}: {error}"[:500]
            project.tell(f"job {job.id} of {job.model}: {reason}")
            return _Solved(job, {"fate": "failed", "ended": project.clock(), "status": "error", "reason": reason}, b"")

    def _solve(self, held: _Held, asked: Mapping[str, Any]) -> Answered:
        project, job = self.project, held.job
        last: dict[str, Any] = {}

        def write(objective: float | None, bound: float | None, seconds: float) -> None:
            if last == {"objective": objective, "bound": bound}:
                return
            frame = msgspec.msgpack.encode({"seconds": seconds, "objective": objective, "bound": bound})
            project.store.blocks.append(f"jobs/{job.id}", [frame] if held.wrote else [_ATTEMPT, frame])
            held.wrote = True
            last.update(objective=objective, bound=bound)

        own = project.model(job.model).time_limit
        limit = asked["time_limit"] if asked["time_limit"] is not None else own.total_seconds() if own else None
        try:
            with self._lane(job.version) as lane:
                answered = ask_instance(
                    lane, asked["instance"], limit, lambda found: write(found.objective, found.bound, found.seconds), lambda: held.stop or held.lost or self._stop.is_set()
                )
        except PalanError as error:
            return Answered(job.version, getattr(error, "status", "error"), error=error if isinstance(error, ModelFailed) else ModelFailed(error.what, error.hint))
        if answered.result.get("bound") is not None:
            # The proof often comes after the best answer: without this the chart would end with the gap still open.
            write(answered.result.get("objective"), answered.result["bound"], answered.seconds)
        return answered

    def _record(self, model: str, solved: Sequence[_Solved]) -> None:
        """Record what is still this process's to record, all at once: the decisions in the log, then that the jobs have ended."""
        if not solved:
            return
        records = self.project.store.records
        with records.transaction():
            now = {each.id: each for each in records.find(Job, id=[each.job.id for each in solved])}
            mine = [each for each in solved if each.job.id in now and _is(now[each.job.id], each.job)]
            decisions = [each.decision for each in mine if each.decision]
            # The log first: whoever takes over a job looks for its decision there.
            if decisions:
                self.project.store.blocks.append(f"decisions/{model}", decisions)
            records.put(*(replace(now[each.job.id], holder="", expires=None, **each.changes) for each in mine))
        if len(mine) < len(solved):
            self.project.tell(f"{counted(len(solved) - len(mine), 'job')} of {model} had been taken over by another process")
        with self._lock:
            self.worked += len(mine)
            for each in solved:
                self._held.pop(each.job.id, None)

    @contextmanager
    def _lane(self, ref: str) -> Iterator[Lane]:
        with self._lock:
            kept = next((each for each in self._kept.get(ref, []) if not each.busy), None)
            if kept is not None:
                kept.busy = True
        if kept is None:
            version = find_version(self.project, ref)
            kept = _Kept(Lane(version, signature(version), open_worker(self.project, version)))
            with self._lock:
                self._kept.setdefault(ref, []).append(kept)
        try:
            yield kept.lane
        finally:
            with self._lock:
                kept.busy, kept.used = False, time.monotonic()

    def _drop_idle(self) -> None:
        with self._lock:
            old = [(ref, each) for ref, some in self._kept.items() for each in some if not each.busy and time.monotonic() - each.used > IDLE_SECONDS]
            for ref, each in old:
                self._kept[ref].remove(each)
        for _, each in old:
            each.lane.worker.close()


def _is(job: Job, taken: Job) -> bool:
    """Tell whether a job is as it was taken: nobody has put it back, or taken it, since."""
    return job.fate == "running" and (job.holder, job.died) == (taken.holder, taken.died)


def _told(project: Project, job: Job, answered: Answered) -> dict[str, Any]:
    """Return what a job keeps of its answer; a long one is put into a blob. The decision of a job has its id."""
    result: dict[str, Any] = {**job.result, **answered.result, "seconds": answered.seconds, "violations": [msgspec.to_builtins(each) for each in answered.violations]}
    result.pop("incumbents", None)  # they are in the job's own stream
    if answered.outputs is not None:
        output = msgspec.json.encode(answered.outputs)
        result |= {"answer": output.decode()} if len(output) <= SHORT else {"output": project.store.blobs.put(output)}
    decision = "" if answered.outputs is None else job.id
    return {"status": answered.status, "objective": answered.result.get("objective"), "bound": answered.result.get("bound"), "result": result, "decision": decision}


def _answered(decision: Decision) -> Answered:
    """Return the answer that a decision of the log tells of."""
    violations = tuple(msgspec.convert(each, Violation) for each in decision.violations)
    return Answered(decision.version, decision.status, decision.outputs, violations, decision.result, decision.degraded, decision.seconds)


def about(instance: Mapping[str, Any]) -> str:
    """Return an instance in a few words: its short top-level values, and how many items its lists hold."""
    words = [str(value) for value in instance.values() if isinstance(value, str) and len(value) <= 20]
    counts = [f"{len(value)} {name}" for name, value in instance.items() if isinstance(value, list)]
    return ", ".join([" ".join(words), *counts] if words else counts)[:120]
