"""Warm model workers: each served version in a process of its own, which can be stopped, killed and replaced."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import polars as pl

from palan import errors
from palan.core import Schema
from palan.engines import forks
from palan.engines.forks import Process
from palan.engines.worker import pack, unpack
from palan.errors import ModelFailed, PalanError
from palan.models.contract import Incumbent, Result, Violation

LOG_LINES = 200
LOG_WIDTH = 2000
POLL_SECONDS = 0.05
LOOK_SECONDS = 1.0
CHECK_SECONDS = 10.0
_ERRORS = {cls.__name__: cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, PalanError)}
# Linux ends a child when the *thread* that started it ends, so all are started by one thread that stays
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="palan-start")


class Worker:
    """One model in a child process. Thread-safe: calls queue up, one at a time.

    The child starts with the first call (or `open`), and again with the next call after it died or was killed.

    Args:
        folder: holds the model's code; it is first on the child's sys.path, and its working folder.
        entry: "file.py:Class", "file.py:function" or "table.csv", relative to the folder.
        kind: needed only where the verbs cannot tell.
        params: values of the model's parameters.
        state: files of a fitted model, as `fit` returned them.
        inputs: the columns of X, and
        outcome: the column y, for objects in scikit-learn's style.
        features: the file of the model's features, and the columns of rows and tables that they are made of, as `flows.packages.prepared` tells.
        watched: whether to note which files it reads, for `reads`: not for one that serves.
        env: variables to add to the child's environment.
        start_seconds: how long starting and loading the model may take.
        grace: seconds between SIGTERM and SIGKILL.
    """

    def __init__(
        self,
        folder: Path,
        entry: str,
        *,
        kind: str = "",
        params: Mapping[str, Any] | None = None,
        state: Mapping[str, bytes] | None = None,
        inputs: Sequence[str] = (),
        outcome: str = "",
        features: Mapping[str, Any] | None = None,
        watched: bool = False,
        env: Mapping[str, str] | None = None,
        start_seconds: float = 60.0,
        grace: float = 0.5,
    ) -> None:
        self.folder = Path(folder).absolute()
        self.entry = entry
        self.start_seconds = start_seconds
        self.grace = grace
        self._opening: dict[str, Any] = {"kind": kind, "params": dict(params or {}), "inputs": list(inputs), "outcome": outcome, "features": dict(features or {}), "watched": watched}
        self._state = dict(state or {})
        self._env = dict(env or {})
        self._lock = threading.RLock()
        self._process: Process | None = None
        self._buffer = bytearray()
        self._opened: dict[str, Any] = {}
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._reader: threading.Thread | None = None
        self._cancel = threading.Event()
        self._closed = False

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Worker({self.entry!r}, pid={self.pid})"

    @property
    def pid(self) -> int | None:
        """The child's process id, or None when there is none now."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def queued(self) -> float:
        """Return for how many seconds in all the child and this thread were ready to run and had no processor. 0 where only Linux would know."""
        try:
            files = [Path(f"/proc/{pid}/schedstat") for pid in (f"self/task/{threading.get_native_id()}", self.pid) if pid]
            return sum(int(each.read_bytes().split()[1]) for each in files) / 1e9
        except OSError:
            return 0.0

    @property
    def log(self) -> str:
        """The last lines that the model printed."""
        return "\n".join(self._log)

    def open(self) -> dict[str, Any]:
        """Start the child and load the model, unless that is done; return its `kind`, `name`, `verbs` and `params`.

        Raises:
            PalanError: the entry names no model, a parameter is unknown, a library is missing.
            ModelFailed: the user's file does not run, or the child died.
        """
        with self._lock:
            self._start()
            return dict(self._opened)

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Hold what an earlier `fit` returned; with nothing, be as new. A child that runs is kept: its imports are dear."""
        with self._lock:
            self._state = dict(state)
            if self.pid is not None and not self._closed:
                self._load()

    @property
    def kind(self) -> str:
        return str(self.open()["kind"])

    @property
    def verbs(self) -> list[str]:
        """The optional verbs that the model has: fit, check, score, objective, table, evaluate."""
        return list(self.open()["verbs"])

    def ping(self) -> None:
        self._call({"op": "ping"}, 5.0)

    def reads(self, root: Path, *known: Path) -> list[str]:
        """Return the files that the child has read, but for those of `known` folders, of Python, of libraries and of the system."""
        with self._lock:
            found: list[str] = [] if self.pid is None else self._call({"op": "reads", "root": str(root), "known": [str(self.folder), *map(str, known)]}, 10.0)
            return found

    def fit(self, data: pl.DataFrame | Sequence[Any], *, seed: int = 0, time_limit: float | None = None) -> dict[str, bytes]:
        """Let the model learn; return what it learnt as named files, which this worker keeps for its next child.

        Raises:
            PalanError: the model has no fit(), or learnt something that cannot be kept as data.
            ModelFailed: its code raised, the child died, or `time_limit` seconds were over (status "timeout").
        """
        with self._lock:
            files: dict[str, bytes] = self._call({"op": "fit", "data": pack(data), "seed": seed}, time_limit)
            self._state = files
            return dict(files)

    def decide(self, rows: pl.DataFrame, *, seed: int = 0, time_limit: float | None = None) -> pl.DataFrame:
        """Return the model's answers, a row each, in the order of the rows.

        Raises:
            ModelFailed: its code raised, the child died, or `time_limit` seconds were over (status "timeout").
        """
        answer = unpack(self._call({"op": "decide", "rows": pack(rows), "seed": seed}, time_limit))
        if not isinstance(answer, pl.DataFrame):
            raise ModelFailed(f"{self.entry} answered no columns", "build this version again")
        return answer

    def features(self, rows: pl.DataFrame | None = None) -> dict[str, Any]:
        """Return the lineage of the model's features, their constants, and what is slow about them: by how much on these rows."""
        told: dict[str, Any] = self._call({"op": "features", "rows": pack(rows)}, 30.0)
        return told

    def parity(self, rows: pl.DataFrame, *, time_limit: float | None = None) -> dict[str, Any]:
        """Compute all features of the rows as a batch and one by one; return where they differ."""
        found: dict[str, Any] = self._call({"op": "parity", "rows": pack(rows)}, time_limit)
        return found

    def transform(self, tables: Mapping[str, pl.DataFrame], *, time_limit: float | None = None) -> tuple[pl.DataFrame, dict[str, Any] | None]:
        """Return what a transformation (opened with kind `TRANSFORMATION`) makes of the named tables, and which of their columns
        each of its columns comes from: None where that cannot be known."""
        found = self._call({"op": "transform", "tables": {name: pack(table) for name, table in tables.items()}}, time_limit)
        made = unpack(found["made"])
        if not isinstance(made, pl.DataFrame):
            raise ModelFailed(f"{self.entry} made no table", "return a Polars DataFrame")
        return made, found["lineage"]

    def fetch(self, to: Path, *, since: str = "", kind: str = "", query: str = "", cursor: str = "", most: int | None = None) -> int:
        """Spool what a function (opened with kind `SOURCE`) gives from where a cursor of this type has come to, about so many
        rows at most; return how many.

        Raises:
            ModelFailed: its code raised, or it gave something that is no rows.
        """
        return int(self._call({"op": "fetch", "to": str(to), "since": since, "kind": kind, "query": query, "cursor": cursor, "most": most}, None))

    def check(self, input: Any, output: Any, *, time_limit: float | None = None) -> list[Violation]:
        """Return what must hold and does not; `input` and `output` are frames of rows, or instance and plan."""
        found = self._call({"op": "check", "input": pack(input), "output": pack(output)}, time_limit)
        return msgspec.convert(found, list[Violation])

    def score(self, outputs: Any, outcomes: Any, *, time_limit: float | None = None) -> list[float]:
        """Return the loss of each decision; for an instance a list of one.

        Args:
            outputs: the frame that `decide` returned, or a plan.
            outcomes: a series (or list) of as many outcomes, or the outcome of the plan.
        """
        scores: list[float] = self._call({"op": "score", "outputs": pack(outputs), "outcomes": pack(outcomes)}, time_limit)
        return scores

    def evaluate(self, episodes: int, *, seed: int = 0, time_limit: float | None = None) -> dict[str, list[float]]:
        """Return the returns of a policy and its baselines over seeded episodes in its environment."""
        returns: dict[str, list[float]] = self._call({"op": "evaluate", "episodes": episodes, "seed": seed}, time_limit)
        return returns

    def table(self, domain: Schema, *, time_limit: float | None = None) -> list[dict[str, Any]]:
        """Return a decision table's gaps, overlaps, shadowed and dead rules over the domain."""
        findings: list[dict[str, Any]] = self._call({"op": "table", "domain": msgspec.to_builtins(domain)}, time_limit)
        return findings

    def solve(
        self,
        instance: Any,
        *,
        seed: int = 0,
        time_limit: float | None = None,
        hard_limit: float | None = None,
        on_incumbent: Callable[[Incumbent], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """Return the answer to one instance.

        The child is told `time_limit`; at `hard_limit` (by default a quarter, and at least a second, later) it is
        killed. If it is killed or dies, its last streamed incumbent is checked and returned with status "feasible" and
        the reason in `evidence["degraded"]`; killed without an incumbent, the status is "timeout" or "cancelled".

        Args:
            on_incumbent: called with each better answer as it comes, in this thread.
            is_cancelled: asked about every 50 ms; when true the best answer so far is asked for.

        Raises:
            ModelFailed: its code raised, or the child died, before there was any incumbent.
        """
        hard = hard_limit if hard_limit is not None else None if time_limit is None else time_limit + max(1.0, time_limit / 4)
        streamed: list[Incumbent] = []

        def keep(message: Any) -> None:
            found = msgspec.convert(message, Incumbent)
            streamed.append(found)
            if on_incumbent is not None:
                on_incumbent(found)

        with self._lock:
            self._cancel.clear()
            self._start()
            began = monotonic()
            request = {"op": "solve", "instance": pack(instance), "seed": seed, "time_limit": time_limit}
            try:
                answer = self._call(request, hard, keep, lambda: self._cancel.is_set() or (is_cancelled is not None and is_cancelled()))
            except ModelFailed as failed:
                return self._rescue(failed, instance, streamed, monotonic() - began)
            return msgspec.convert(answer, Result)

    def cancel(self) -> None:
        """Ask the solve that runs now, in another thread, for its best answer so far."""
        self._cancel.set()

    def close(self) -> None:
        """End the child, also in the middle of a call, which then fails with status "cancelled"; twice does nothing."""
        self._closed = True
        if self._process is not None:
            self._kill(self._process)
        with self._lock:
            self._forget()

    def _rescue(self, failed: ModelFailed, instance: Any, streamed: list[Incumbent], seconds: float) -> Result:
        """Make the best of a solve that did not end: its last plan, checked by a fresh child, or an honest status."""
        light = tuple(Incumbent(found.seconds, found.objective, found.bound) for found in streamed)
        with_plan = [found for found in streamed if found.output is not None]
        if not with_plan:
            if failed.status in ("timeout", "cancelled"):
                return Result("timeout" if failed.status == "timeout" else "cancelled", evidence={"degraded": failed.what}, seconds=seconds, incumbents=light)
            raise failed
        best = with_plan[-1]
        evidence = {"degraded": f"{failed.what}; this is its best answer so far"}
        violations: list[Violation] = []
        if not self._closed:
            try:
                violations = self.check(instance, best.output, time_limit=CHECK_SECONDS)
            except PalanError as error:
                evidence["unchecked"] = error.what
        else:
            evidence["unchecked"] = "the worker was closed"
        return Result("feasible", best.output, best.objective, best.bound, evidence=evidence, violations=tuple(violations), seconds=seconds, incumbents=light)

    def _call(
        self,
        request: Mapping[str, Any],
        limit: float | None,
        on_incumbent: Callable[[Any], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> Any:
        with self._lock:
            self._start()
            return self._exchange(request, limit, on_incumbent, is_cancelled)

    def _start(self) -> None:
        if self._closed:
            raise ModelFailed(f"the worker of {self.entry} is closed", "open a new one", status="cancelled")
        if self._process is not None and self._process.poll() is None:
            return
        self._forget()
        self._log.clear()
        process = _starter.submit(self._spawn).result()
        self._process = process
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self._reader = threading.Thread(target=_read_log, args=(process, self._log), daemon=True, name="palan-log")
        self._reader.start()
        try:
            self._load()
        except PalanError:
            self._kill(process)
            self._forget()
            raise

    def _load(self) -> None:
        opening = {"op": "open", "folder": str(self.folder), "entry": self.entry, "state": self._state, **self._opening}
        self._opened = self._exchange(opening, self.start_seconds, None, None)

    def _spawn(self) -> Process:
        env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", **self._env}
        home = str(Path(errors.__file__).parents[1])
        if home not in env.get("PYTHONPATH", "").split(os.pathsep):
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [env.get("PYTHONPATH", ""), home]))
        if not self.folder.is_dir():
            raise errors.NotFound(f"no folder {self.folder}", "the model's code should be there; build the version again")
        files = [self.entry.partition(":")[0], *filter(None, [self._opening["features"].get("file")])]
        return forks.start(self.folder, files, env, self._env, self.start_seconds)

    def _exchange(
        self,
        request: Mapping[str, Any],
        limit: float | None,
        on_incumbent: Callable[[Any], None] | None,
        is_cancelled: Callable[[], bool] | None,
    ) -> Any:
        """Send one request and return its answer; kill the child at the limit, or when it ignores the wish to stop."""
        process = self._process
        answered = False
        try:
            message = self._answer(request, limit, on_incumbent, is_cancelled)
            answered = True
        finally:
            if not answered and process is not None:
                # an interrupted exchange leaves half a message in the pipes: only a fresh child can be trusted
                self._kill(process)
                self._forget()
        if "error" in message:
            raise _error(message["error"], self.log)
        return message["ok"]

    def _answer(
        self,
        request: Mapping[str, Any],
        limit: float | None,
        on_incumbent: Callable[[Any], None] | None,
        is_cancelled: Callable[[], bool] | None,
    ) -> Mapping[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        to_child, from_child = process.stdin.fileno(), process.stdout.fileno()
        pending = memoryview(_framed(request))
        poll = select.poll()
        poll.register(from_child, select.POLLIN)
        poll.register(to_child, select.POLLOUT)
        deadline = float("inf") if limit is None else monotonic() + limit
        cancelled = False
        while True:
            if is_cancelled is not None and not cancelled and is_cancelled():
                cancelled = True
                deadline = min(deadline, monotonic() + max(1.0, self.grace))
                pending = memoryview(bytes(pending) + _framed({"op": "cancel"}))
                poll.register(to_child, select.POLLOUT)
            left = deadline - monotonic()
            if left <= 0:
                self._kill(process)
                why = "did not stop when it was asked to" if cancelled else f"did not answer within {limit:g} s"
                raise ModelFailed(f"{self.entry} {why} and was killed", "give it more time, or make it look at ctx.cancelled()", status="cancelled" if cancelled else "timeout", log=self.log)
            ready = poll.poll(min(left, POLL_SECONDS if is_cancelled is not None else LOOK_SECONDS) * 1000)
            if not ready and process.poll() is not None:
                raise self._died(process)  # what it started itself may hold its pipes open
            for fd, _ in ready:
                if fd == to_child:
                    try:
                        pending = pending[os.write(to_child, pending[: 1 << 20]) :]
                    except BlockingIOError:
                        continue
                    except BrokenPipeError:
                        pending = pending[:0]  # it has died; what it said last, and why, comes out of the other pipe
                    if not pending:
                        poll.unregister(to_child)
                elif (message := self._receive(process, from_child)) is not None:
                    if on_incumbent is not None:
                        for found in message[:-1] if "incumbent" not in message[-1] else message:
                            on_incumbent(found["incumbent"])
                    if "incumbent" not in message[-1]:
                        return message[-1]

    def _receive(self, process: Process, from_child: int) -> list[dict[str, Any]] | None:
        """Read what is there; return the whole messages in it, or None when the next is not complete.

        Raises:
            ModelFailed: the child has died.
        """
        try:
            part = os.read(from_child, 1 << 20)
        except BlockingIOError:
            return None
        if not part:
            raise self._died(process)
        self._buffer += part
        messages = []
        while len(self._buffer) >= 4 and len(self._buffer) >= (end := 4 + int.from_bytes(self._buffer[:4], "big")):
            try:
                messages.append(msgspec.msgpack.decode(self._buffer[4:end]))
            except msgspec.DecodeError as error:
                raise ModelFailed(f"{self.entry} wrote into the pipe that its answers go through", "leave file descriptors that it did not open alone", log=self.log) from error
            del self._buffer[:end]
        return messages or None

    def _died(self, process: Process) -> ModelFailed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.grace)
        self._kill(process)  # its pipe is closed, so whatever is left is of no use
        code = process.wait()
        if self._reader is not None:
            self._reader.join(0.5)
        why = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        log = self.log
        self._forget()
        last = "; ".join([line for line in log.splitlines() if line.strip()][-3:])
        if self._closed:
            return ModelFailed(f"the worker of {self.entry} was closed", "open a new one", status="cancelled", log=log)
        return ModelFailed(f"the process of {self.entry} {why}{f': {last}' if last else ''}", "the next call starts a fresh one; palan --debug shows its last lines, and so does the log of a server", log=log)

    def _kill(self, process: Process) -> None:
        """SIGTERM to the child and what it started, SIGKILL after the grace."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.grace)
        if process.poll() is not None:
            # solvers that the model started itself may outlive it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    def _forget(self) -> None:
        process, self._process = self._process, None
        self._buffer.clear()
        if process is None:
            return
        if process.poll() is None:
            self._kill(process)
        if self._reader is not None:
            self._reader.join(0.5)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _framed(message: Mapping[str, Any]) -> bytes:
    try:
        data = msgspec.msgpack.encode(message)
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise PalanError(f"this cannot be sent to a worker: {error}", "keep whole numbers within 64 bits and nesting within reason") from error
    if len(data) >= 1 << 32:
        raise PalanError(f"{len(data) / 1e9:.1f} GB are too much for one call of a worker", "send fewer rows at a time (at most 4 GB)")
    return len(data).to_bytes(4, "big") + data


def _error(told: Mapping[str, Any], log: str) -> PalanError:
    kind = _ERRORS.get(str(told["type"]), PalanError)
    if kind is ModelFailed:
        return ModelFailed(told["what"], told["hint"], status=told["status"], log=f"{told['log']}\n{log}".strip())
    if kind is errors.Invalid:
        return errors.Invalid(told["what"], told["hint"], field=told["field"], value=told["value"])
    if kind is errors.MissingExtra:
        missing = PalanError(told["what"], told["hint"])
        return missing
    return kind(told["what"], told["hint"])


def _read_log(process: Process, log: deque[str]) -> None:
    """Keep the last lines of the child's stderr, so that its pipe never fills and its last words are known."""
    assert process.stderr is not None
    with process.stderr as stream:
        rest = b""
        while part := stream.read(65_536):
            *lines, rest = (rest + part).split(b"\n")
            rest = rest[-LOG_WIDTH:]
            log.extend(line[:LOG_WIDTH].decode(errors="replace") for line in lines)
        if rest:
            log.append(rest.decode(errors="replace"))
