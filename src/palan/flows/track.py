"""Tracking of runs: `palan.start("routing", lr=1e-3)`, then `log`, `params`, `tags`, `artifact`.

A call appends one record to this process's own segment and is done: no lock of another process, no database, no network. What
was logged when the process is killed is there; whoever looks at the runs finds it. What is tracked for a server, or in a
database, a thread carries there meanwhile.
"""

from __future__ import annotations

import atexit
import functools
import os
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import msgspec

from palan.core import new_id, utcnow
from palan.errors import Invalid, NotFound, PalanError
from palan.flows.config import load
from palan.flows.courier import Courier
from palan.flows.fold import STREAM, fold, is_shared, tracked
from palan.flows.project import Project, open_project
from palan.flows.root import FILE, find_root
from palan.flows.send import Address, Sender, address, asked, send
from palan.flows.surroundings import surroundings
from palan.runs.points import Names, event
from palan.runs.run import Run
from palan.stores.contract import Blobs, Blocks
from palan.stores.files import FileBlobs
from palan.stores.segments import SegmentBlocks

if TYPE_CHECKING:
    import polars as pl

P = ParamSpec("P")
R = TypeVar("R")

LONGEST = 16_384
"""Characters of a text value that are kept in a record; a longer one belongs in an artefact."""

SETTLE_SECONDS = 3.0
"""How long the end of a run, and of its process, waits at the most until what was logged has arrived elsewhere."""


class Place(msgspec.Struct, frozen=True):
    """Where runs are tracked: what a call appends to, on this machine, and who carries it to where it belongs, if that is elsewhere."""

    experiment: str
    root: Path
    blocks: Blocks
    blobs: Blobs
    project: Project | None = None
    to: Address | None = None
    courier: Courier | None = None


_current: ContextVar[LiveRun | None] = ContextVar("current", default=None)
_projects: dict[Path, Project] = {}
_couriers: dict[Path, Courier] = {}
_remote: dict[str, Place] = {}
_lock = threading.RLock()


def _after_fork() -> None:
    _projects.clear()  # a child opens the store anew
    _couriers.clear()


os.register_at_fork(after_in_child=_after_fork)


def start(
    experiment: str = "",
    /,
    *,
    name: str = "",
    parent: LiveRun | str | None = None,
    resume: str = "",
    project: Project | Path | str | None = None,
    server: str = "",
    system: float | None = None,
    **params: Any,
) -> LiveRun:
    """Begin a run of an experiment, in the project around the current folder; use it in `with`, or call `end`.

    Args:
        experiment: what is tried; the project's name if it is empty.
        name: what to call this run.
        parent: the run that it is a part of, and is kept beside; inside another one's `with` that one.
        resume: the id of a run to go on with instead.
        project: an open project, or its folder.
        server: the address of a `palan up` on another machine, which it is for: argument, else PALAN_SERVER. The token is
            PALAN_TOKEN. What is logged is kept here until the server has it, whether that is there or not.
        system: log CPU and memory of this process every so many seconds.
        params: parameters, as `LiveRun.params` takes them.

    Raises:
        NotFound: there is no project, or no run with the id to resume.
        PalanError: the address of the server is none, or what is for it cannot be kept here.
    """
    outer = parent if isinstance(parent, LiveRun) else None if parent else _current.get()
    place = _place(project, server, outer)
    if resume:
        id, of = _known(place, resume)
        run = LiveRun(place, id, of)
        run._tell("resume", {})
    else:
        above = outer.id if outer is not None else parent or ""
        run = LiveRun(place, new_id(utcnow()), experiment or place.experiment)
        about, files = _about(place)
        run._tell("start", {"experiment": run.experiment, "about": {"name": name, "parent": above, **about}, "files": files})
    if params:
        run.params(**params)
    if system:
        run._sample(system)
    return run


def _place(project: Project | Path | str | None, server: str, outer: LiveRun | None) -> Place:
    if project is not None and server:
        raise PalanError("a run is tracked in a project or for a server, not both", "leave out project= or server=")
    if project is not None:
        return _here(project if isinstance(project, Project) else _open(project))
    if not server and outer is not None:
        return outer.place
    server = server or os.environ.get("PALAN_SERVER", "")
    return _there(address(server)) if server else _here(_open(None))


run = start
"""The same, for `with palan.run("routes"):`, where the block is the run."""


def _open(folder: Path | str | None) -> Project:
    root = find_root(folder)
    with _lock:
        if root not in _projects:
            _projects[root] = open_project(root)
        return _projects[root]


def _here(project: Project) -> Place:
    courier = None
    if is_shared(project):
        with _lock:
            courier = _couriers.get(project.root)
            if courier is None:
                note = f"; what is logged waits in {project.folder / 'blocks'}, and is read when that is put right"
                read: dict[str, int] = {}
                courier = _couriers[project.root] = Courier(lambda: _read(project, read), "palan-fold", every=1.0, note=note)
                atexit.register(_last_fold, courier, project, read)
    return Place(project.config.name, project.root, tracked(project), project.store.blobs, project, courier=courier)


def _read(project: Project, read: dict[str, int]) -> None:
    """Bring what was logged into records, and note how far every segment was, at least, that is read now."""
    sizes = tracked(project).sizes(STREAM)
    fold(project)
    read.update(sizes)


def _last_fold(courier: Courier, project: Project, read: Mapping[str, int]) -> None:
    if not courier.settle(SETTLE_SECONDS, last=True):
        left = sum(size - read.get(segment, 0) for segment, size in tracked(project).sizes(STREAM).items())
        if left:
            sys.stderr.write(f"palan: {left:,} bytes of runs wait in {project.folder / 'blocks'}: {courier.why or 'the store is slow'}; to read them: palan runs\n")


def _there(to: Address) -> Place:
    with _lock:
        if to.url not in _remote:
            token = os.environ.get("PALAN_TOKEN", "")
            sender = Sender.begun(to, token)
            root = _root()
            courier = Courier(sender.send, "palan-send", note=f"; what is logged waits in {sender.folder}, and is sent when that is put right")
            left = Courier(lambda: send(to.url, token=token), "palan-left", every=30.0)
            place = Place(_named(root), root, SegmentBlocks(sender.folder), FileBlobs(sender.folder / "blobs"), to=to, courier=courier)
            _remote[to.url] = place
            left.begin()
            atexit.register(_last_send, place, sender)
        return _remote[to.url]


def _last_send(place: Place, sender: Sender) -> None:
    """Close what this process wrote, which is then whole, and wait a little until it has arrived."""
    if place.courier is None or not isinstance(place.blocks, SegmentBlocks):
        return
    try:
        place.blocks.close()
    except PalanError as error:
        sys.stderr.write(f"{error}\n")
    place.courier.settle(SETTLE_SECONDS, last=True)
    if size := sender.unsent():
        sys.stderr.write(f"palan: {size:,} bytes of runs wait in {sender.folder}: {place.courier.why or 'the server is slow'}; to send them: palan send\n")


def _root() -> Path:
    """Return the folder of the project around the current folder; where there is none, the folder of the script."""
    with suppress(NotFound):
        return find_root()
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(script).resolve().parent if script else Path.cwd()


def _named(root: Path) -> str:
    with suppress(PalanError):
        return load(root / FILE).name
    return root.name


def _known(place: Place, id: str) -> tuple[str, str]:
    """Return the id and the experiment of a run to go on with; a server that does not answer is taken at the user's word."""
    if place.project is None:
        return id, asked(place.to, id, os.environ.get("PALAN_TOKEN", "")) if place.to else ""
    fold(place.project)
    run = place.project.store.records.get(Run, id)
    if run is None:
        raise NotFound(f'no run "{id}"', "palan runs")
    return run.id, run.subject


_surroundings: dict[tuple[Path, str], tuple[dict[str, Any], dict[str, tuple[str, int]]]] = {}


def _about(place: Place) -> tuple[dict[str, Any], dict[str, tuple[str, int]]]:
    """Return what a run is repeated with, found out once in a process: what it runs was loaded when it began."""
    key = place.root, place.to.url if place.to else ""
    if key not in _surroundings:
        _surroundings[key] = surroundings(place.root, place.blobs, place.project.store.records if place.project else None)
    return _surroundings[key]


class LiveRun:
    """A run that is going on. Every call is kept once it returns, whatever happens to the process."""

    def __init__(self, place: Place, id: str, experiment: str = "") -> None:
        self.place = place
        self.id = id
        self.experiment = experiment
        self.before_end: list[Callable[[], None]] = []
        self._id = id.encode()
        self._append = place.blocks.append
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
        digest = self.place.blobs.put(what)
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
            if self.place.courier is not None:
                self.place.courier.settle(SETTLE_SECONDS)

    def __enter__(self) -> LiveRun:
        self._token = _current.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        _current.reset(self._token)
        if error is None:
            self.end()
        else:
            said = " ".join("".join(traceback.format_exception_only(kind, error)).split())  # of many lines the first says most
            self.end("killed" if isinstance(error, KeyboardInterrupt) else "failed", said[:1000])

    def __repr__(self) -> str:
        return f"<run {self.id}>"

    def _tell(self, verb: str, body: Any) -> None:
        self._append(STREAM, (event(self.id, time.time_ns(), verb, body),))
        if self.place.courier is not None:
            self.place.courier.begin()

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
