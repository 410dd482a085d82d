"""Tracking of runs: `palan.start("routing", lr=1e-3)`, then `log`, `params`, `tags`, `artifact`.

A call appends one record to this process's own segment and is done: no lock of another process, no database. What was
logged when the process is killed is there; whoever looks at the runs finds it.
"""

from __future__ import annotations

import functools
import os
import struct
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import msgspec

from palan.core import new_id, utcnow
from palan.errors import Invalid, NotFound, PalanError
from palan.flows.fold import STREAM, fold
from palan.flows.project import Project, open_project
from palan.flows.root import find_root
from palan.flows.surroundings import surroundings
from palan.runs.points import Names, event
from palan.runs.run import Run

if TYPE_CHECKING:
    import polars as pl

P = ParamSpec("P")
R = TypeVar("R")

LONGEST = 16_384
"""Characters of a text value that are kept in a record; a longer one belongs in an artefact."""

_current: ContextVar[LiveRun | None] = ContextVar("current", default=None)
_projects: dict[Path, Project] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    _projects.clear()  # a child opens the store anew


os.register_at_fork(after_in_child=_after_fork)


def start(
    experiment: str = "",
    /,
    *,
    name: str = "",
    parent: LiveRun | str | None = None,
    resume: str = "",
    project: Project | Path | str | None = None,
    system: float | None = None,
    **params: Any,
) -> LiveRun:
    """Begin a run of an experiment, in the project around the current folder; use it in `with`, or call `end`.

    Args:
        experiment: what is tried; the project's name if it is empty.
        name: what to call this run.
        parent: the run that it is a part of; inside another one's `with` that one.
        resume: the id of a run to go on with instead.
        project: an open project, or its folder.
        system: log CPU and memory of this process every so many seconds.
        params: parameters, as `LiveRun.params` takes them.

    Raises:
        NotFound: there is no project, or no run with the id to resume.
    """
    where = project if isinstance(project, Project) else _open(project)
    if resume:
        known = _known(where, resume)
        run = LiveRun(where, known.id, known.subject)
        run._tell("resume", {})
    else:
        outer = parent.id if isinstance(parent, LiveRun) else parent or (current.id if (current := _current.get()) else "")
        run = LiveRun(where, new_id(utcnow()), experiment or where.config.name)
        about, files = _about(where)
        run._tell("start", {"experiment": run.experiment, "about": {"name": name, "parent": outer, **about}, "files": files})
    if params:
        run.params(**params)
    if system:
        run._sample(system)
    return run


def _open(folder: Path | str | None) -> Project:
    root = find_root(folder)
    with _lock:
        if root not in _projects:
            _projects[root] = open_project(root)
        return _projects[root]


def _known(project: Project, id: str) -> Run:
    fold(project)
    run = project.store.records.get(Run, id)
    if run is None:
        raise NotFound(f'no run "{id}"', "palan runs")
    return run


_surroundings: dict[Path, tuple[dict[str, Any], dict[str, tuple[str, int]]]] = {}


def _about(project: Project) -> tuple[dict[str, Any], dict[str, tuple[str, int]]]:
    """Return what a run is repeated with, found out once in a process: what it runs was loaded when it began."""
    if project.root not in _surroundings:
        _surroundings[project.root] = surroundings(project)
    return _surroundings[project.root]


class LiveRun:
    """A run that is going on. Every call is kept once it returns, whatever happens to the process."""

    def __init__(self, project: Project, id: str, experiment: str = "") -> None:
        self.project = project
        self.id = id
        self.experiment = experiment
        self.before_end: list[Callable[[], None]] = []
        self._id = id.encode()
        self._append = project.store.blocks.append
        self._step = 0
        self._names: dict[tuple[str, ...], Names] = {}
        self._stop: threading.Event | None = None
        self._token: Any = None

    def log(self, metrics: Mapping[str, float] | None = None, /, *, step: int | None = None, durable: bool = False, **values: float) -> None:
        """Log numbers at a step: `run.log(loss=.3)`, or `run.log({"val/loss": .3}, step=7)`.

        Args:
            step: a whole number; without it the one after the last.
            durable: wait until it is on the disk: it then survives a loss of power, not only the death of the process.

        Raises:
            Invalid: a value is no number.
        """
        ns = time.time_ns()
        if metrics is not None:
            values = {**metrics, **values}
        if step is None:
            step = self._step
        keys = tuple(values)
        names = self._names.get(keys)
        try:
            if names is not None:
                self._append(STREAM, (names.point(self._id, step, ns, values.values()),), durable=durable)
            else:
                names = _checked(keys)
                self._append(STREAM, (names.frame, names.point(self._id, step, ns, values.values())), durable=durable)
                self._names[keys] = names
            self._step = step + 1
        except (struct.error, TypeError, OverflowError):
            raise _no_number(values, step) from None

    def params(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Tell parameters: numbers, texts, booleans; anything else as JSON."""
        self._tell("param", _texts({**(values or {}), **more}))

    def tags(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Set tags; one that was set before is replaced, one that is None is removed."""
        given = {**(values or {}), **more}
        if gone := [key for key, value in given.items() if value is None]:
            self._tell("untag", gone)
        if kept := {key: value for key, value in given.items() if value is not None}:
            self._tell("tag", _texts(kept))

    def artifact(self, what: Path | str | bytes, path: str = "") -> str:
        """Keep a file, every file of a folder, or bytes (which need a `path` to be called by); return the digest of the last.

        Raises:
            NotFound: there is no such file.
        """
        if isinstance(what, bytes):
            if not path:
                raise PalanError("bytes need a path to be called by", 'run.artifact(data, "model.bin")')
            return self._keep(what, len(what), path)
        source = Path(what)
        if not source.is_dir():
            if not source.is_file():
                raise NotFound(f"there is no file {source}", "give the path of a file or a folder, or bytes")
            return self._keep(source, source.stat().st_size, path or source.name)
        digest = ""
        for each in sorted(file for file in source.rglob("*") if file.is_file()):
            digest = self._keep(each, each.stat().st_size, (Path(path or source.name) / each.relative_to(source)).as_posix())
        return digest

    def _keep(self, what: Path | bytes, size: int, path: str) -> str:
        if path.startswith("/") or ".." in Path(path).parts:
            raise Invalid(f'"{path}" leads out of the run', "give a path without .. that does not begin with /", field="path", value=path)
        digest = self.project.store.blobs.put(what)
        self._tell("artifact", {path: (digest, size)})
        return digest

    def table(self, rows: pl.DataFrame | Any, path: str = "table") -> str:
        """Keep a table (Polars, pandas, Arrow, or a list of dicts) as Parquet."""
        import io

        import polars as pl

        frame = rows if isinstance(rows, pl.DataFrame) else pl.DataFrame(rows)
        buffer = io.BytesIO()
        frame.write_parquet(buffer)
        return self.artifact(buffer.getvalue(), path if path.endswith(".parquet") else f"{path}.parquet")

    def figure(self, figure: Any, path: str = "figure") -> str:
        """Keep a figure: of Matplotlib as PNG, of Plotly and others that write HTML as HTML.

        Raises:
            Invalid: it is no figure that palan knows how to keep.
        """
        import io

        stem = path.rpartition(".")[0] or path
        if hasattr(figure, "savefig"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
            return self.artifact(buffer.getvalue(), f"{stem}.png")
        if hasattr(figure, "to_html"):
            return self.artifact(figure.to_html().encode(), f"{stem}.html")
        raise Invalid(f"{type(figure).__name__} is no figure", "give one of Matplotlib or Plotly, or write it to a file and use run.artifact")

    def end(self, status: str = "done", reason: str = "") -> None:
        """End the run: "done", "failed" or "killed". Ending it again changes status and reason."""
        if status not in ("done", "failed", "killed"):
            raise Invalid(f'"{status}" is no end of a run', "done, failed or killed", field="status", value=status)
        if self._stop is not None:
            self._stop.set()
        try:
            while self.before_end:
                self.before_end.pop()()
        except BaseException as error:
            status, reason = "failed", f"{type(error).__name__}: {error}"[:1000]
            raise
        finally:
            self._tell("end", {"status": status, "reason": reason})

    def __enter__(self) -> LiveRun:
        self._token = _current.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        _current.reset(self._token)
        if error is None:
            self.end()
        else:
            last = "".join(traceback.format_exception_only(kind, error)).strip().splitlines()[-1]
            self.end("killed" if isinstance(error, KeyboardInterrupt) else "failed", last[:1000])

    def __repr__(self) -> str:
        return f"<run {self.id}>"

    def _tell(self, verb: str, body: Any) -> None:
        self._append(STREAM, (event(self.id, time.time_ns(), verb, body),))

    def _sample(self, seconds: float) -> None:
        self._stop = threading.Event()
        thread = threading.Thread(target=_sampled, args=(self, seconds, self._stop), name="palan-system", daemon=True)
        thread.start()


def _sampled(run: LiveRun, seconds: float, stop: threading.Event) -> None:
    """Log the CPU (cores in use) and the resident memory (MB) of this process until the run ends."""
    page = os.sysconf("SC_PAGE_SIZE")
    step, before, since = 0, time.process_time(), time.monotonic()
    while not stop.wait(seconds):
        cpu, now = time.process_time(), time.monotonic()
        resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page if Path("/proc/self/statm").exists() else 0
        run.log({"system.cpu": (cpu - before) / (now - since), "system.memory": resident / 1e6}, step=step)
        step, before, since = step + 1, cpu, now


def _checked(keys: Sequence[str]) -> Names:
    for key in keys:
        if not isinstance(key, str) or not key or len(key) > 250 or not key.isprintable():
            raise Invalid(f"{key!r} is no name of a metric", "a text of 1 to 250 characters that can be printed", field="metrics", value=str(key)[:250])
    if not keys:
        raise Invalid("nothing is logged", "run.log(loss=0.3)", field="metrics")
    return Names(keys)


def _no_number(values: Mapping[str, Any], step: Any) -> Invalid:
    for key, value in values.items():
        try:
            struct.pack("<d", value)
        except (struct.error, TypeError, OverflowError):
            return Invalid(f"{key} is {value!r:.80}, which is no number", "run.tags and run.params keep text, run.artifact anything", field=key, value=repr(value)[:80])
    return Invalid(f"the step is {step!r:.80}", "a whole number below 2^63", field="step", value=repr(step)[:80])


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, value in values.items():
        if not isinstance(key, str) or not key:
            raise Invalid(f"{key!r} is no name", "a text that is not empty", field="name", value=repr(key)[:80])
        text = value if isinstance(value, str) else _as_text(value)
        if len(text) > LONGEST:
            raise Invalid(f"{key} has {len(text):,} characters, more than {LONGEST:,}", f'run.artifact(text.encode(), "{key}.txt")', field=key)
        found[key] = text
    return found


def _as_text(value: Any) -> str:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return repr(value + 0) if type(value) in (int, float) else str(value)
    try:
        return msgspec.json.encode(value, enc_hook=str).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        return repr(value)


def track(function: Callable[P, R] | None = None, /, *, experiment: str = "") -> Any:
    """Track every call of a function as a run: its arguments are the parameters, numbers of the dict that it returns metrics."""
    if function is None:
        return functools.partial(track, experiment=experiment)

    @functools.wraps(function)
    def tracked(*args: P.args, **kwargs: P.kwargs) -> R:
        import inspect

        given = inspect.signature(function).bind(*args, **kwargs)
        given.apply_defaults()
        with start(experiment or function.__name__) as run:
            run.params({name: value for name, value in given.arguments.items() if isinstance(value, str | int | float | bool | None)})
            result = function(*args, **kwargs)
            if isinstance(result, Mapping):
                if numbers := {str(key): value for key, value in result.items() if isinstance(value, int | float)}:
                    run.log(numbers)
            elif isinstance(result, int | float):
                run.log({"result": result})
            return result

    return tracked
