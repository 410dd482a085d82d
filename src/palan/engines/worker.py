"""The child process that serves one model (started by `engines.forks`): frames over stdin and stdout.

A frame is 4 bytes of length (big-endian) and msgpack. One request at a time; a solve streams its incumbents before its
answer. Whatever the model prints goes to stderr. The process ends when its stdin closes or its parent dies.
"""

from __future__ import annotations

import ctypes
import importlib.util
import inspect
import io
import os
import random
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl

from palan.core import Schema
from palan.data.sql import expressions
from palan.errors import Invalid, ModelFailed, NotFound, PalanError, nearest
from palan.models import adapt
from palan.models.contract import Context, Incumbent
from palan.models.table import parse as parse_table
from palan.models.user import guarded, plain

if TYPE_CHECKING:
    from palan.models.prepared import Prepared

PR_SET_PDEATHSIG = 1
TRANSFORMATION = "transformation"  # not a kind of model: a function from tables to a table
SOURCE = "source"  # nor this: a function that gives rows, or a connection to ask for them
TOP_LEVEL = 'palan imports the file in another folder, and learns by itself: put reading and fitting below if __name__ == "__main__":, and declare the file that it reads as [data.NAME] in palan.toml'


def load(folder: Path, entry: str) -> Any:
    """Return what `entry` ("file.py:Name" or "table.csv") names in the folder.

    Raises:
        NotFound: no such file or name in it.
        PalanError: the file needs a library that is not installed.
        ModelFailed: the file does not run.
    """
    file, _, name = entry.partition(":")
    path = folder / file
    if path.suffix == ".csv" and path.is_file():
        return parse_table(path.read_bytes(), file)
    if path.suffix != ".py" or not name:
        raise PalanError(f"{entry!r} does not name a model", 'write model = "file.py:Class", "file.py:function" or "table.csv"')
    module = load_module(folder, file)
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if not key.startswith("_") and getattr(value, "__module__", "") == module.__name__]
        raise NotFound(f"no {name!r} in {file}", nearest(name, public) or f"it has {', '.join(public) or 'nothing public'}")
    return getattr(module, name)


def text_of(folder: Path, file: str) -> str:
    try:
        return (folder / file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PalanError(f"{file} is not UTF-8 text: {error.reason}", "save it as UTF-8") from None


def transformation(folder: Path, entry: str) -> Callable[[Mapping[str, pl.DataFrame]], tuple[pl.DataFrame, Any]]:
    """Return what makes a table of tables, and tells which columns come from which: a function "file.py:name" or a query "file.sql"."""
    from palan.engines import sql

    file, _, name = entry.partition(":")
    if file.endswith(".sql"):
        query = text_of(folder, file)
        return lambda tables: sql.made(query, file, name or "polars", tables)
    function = load(folder, entry)

    def run(tables: Mapping[str, pl.DataFrame]) -> tuple[pl.DataFrame, Any]:
        lazy = {each.name for each in inspect.signature(function).parameters.values() if "LazyFrame" in str(each.annotation)}
        with guarded(function, name):
            made = function(**{each: table.lazy() if each in lazy else table for each, table in tables.items()})
            if isinstance(made, pl.LazyFrame):
                made = made.collect()
        if not isinstance(made, pl.DataFrame):
            raise PalanError(f"a transformation returns a Polars DataFrame, not a {type(made).__name__}", "return one frame of rows")
        lineage = None
        if lazy >= tables.keys():  # else it is called with rows, and nothing is called twice that may take long
            with suppress(ModelFailed), guarded(function, name), redirect_stdout(sys.stderr):
                lineage = sql.of_function(function, tables)
        return made, lineage

    return run


def load_module(folder: Path, file: str) -> ModuleType:
    """Return a file of the folder as the module that its other files import.

    Raises:
        NotFound: there is no such file.
        PalanError: it needs a library that is not installed.
        ModelFailed: it does not run.
    """
    path = folder / file
    if not path.is_file():
        raise NotFound(f"no file {file!r} for the model", nearest(file, [p.name for p in folder.glob("*.*")]) or "correct model in palan.toml")
    module_name = ".".join(Path(file).with_suffix("").parts)
    for place in dict.fromkeys([path.parent, folder]):
        _refuse_shadows(place, module_name)
        if str(place) not in sys.path:
            sys.path.insert(0, str(place))
    module = sys.modules.get(module_name)
    if module is None or getattr(module, "__file__", None) != str(path):
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise PalanError(f"{file} cannot be imported", "give it an ordinary name that ends in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            with guarded(module, "import"):
                spec.loader.exec_module(module)
        except ModelFailed as failed:
            missing = failed.__cause__
            if isinstance(missing, ModuleNotFoundError):
                raise PalanError(f"{file} needs {missing.name}, which is not installed", f"pip install {missing.name}") from missing
            if isinstance(missing, FileNotFoundError):
                raise ModelFailed(failed.what, TOP_LEVEL, log=failed.log) from missing
            raise
    return module


def _refuse_shadows(folder: Path, entry: str) -> None:
    """Refuse files that nobody could import: Python would give the module of that name that it has already."""
    for path in (*folder.glob("*.py"), *folder.glob("*/__init__.py")):
        name = path.parent.name if path.name == "__init__.py" else path.stem
        taken = sys.modules.get(name)
        if name != entry and taken is not None and getattr(taken, "__file__", None) != str(path):
            owner = "Python's own" if name in sys.stdlib_module_names else "a library's"
            raise PalanError(f"{path.relative_to(folder)} has the name of {owner} {name}, which would be imported in its place", f"rename it, for example to my_{name}.py")


class Served:
    """The one model of this process, and the operations that the parent may ask for."""

    def __init__(self, send: Callable[[Mapping[str, Any]], None], is_cancelled: Callable[[], bool]) -> None:
        self.send = send
        self.is_cancelled = is_cancelled
        self.model: adapt.Adapter | None = None
        self.opened: Mapping[str, Any] = {}
        self.prepared: Prepared | None = None
        self.transformation: Callable[..., tuple[pl.DataFrame, Any]] | None = None
        self.source: Callable[..., object] | None = None

    def answer(self, request: Mapping[str, Any]) -> Any:
        op = request["op"]
        if op == "ping":
            return "pong"
        if op == "open":
            return self.open(request)
        if op == "reads":
            from palan.engines import reads

            return reads.unknown(Path(request["root"]), [Path(each) for each in request["known"]])
        if op == "transform":
            return self.transform(request)
        if op == "fetch":
            return self.fetch(request)
        model = self.model
        if model is None:
            raise PalanError("no model is open in this worker", "open one first")
        if "seed" in request:
            # a model that forgets ctx.seed is still the same from run to run
            random.seed(request["seed"])
            np.random.seed(request["seed"] % 2**32)
        match op:
            case "fit":
                # Each learning begins anew: a fit() that adds to what it knows would carry one trial's rows into the next.
                model, prepared = self.fresh(self.opened)
                data = unpack(request["data"])
                if prepared is not None:
                    data = prepared.learn(data)
                    if isinstance(model, adapt.Estimator):
                        model.inputs = prepared.names  # X of an object in scikit-learn's style is the features alone
                if prepared is None or "fit" in model.verbs:
                    model.fit(data)
                self.model, self.prepared = model, prepared
                return {**model.state(), **(prepared.state() if prepared is not None else {})}
            case "decide":
                rows = unpack(request["rows"])
                return pack(self._rows(model).decide(rows if self.prepared is None else self.prepared.rows(rows)))
            case "features" | "parity":
                if self.prepared is None:
                    raise PalanError(f"{model.name} has no features", 'in palan.toml: [models.NAME] features = "features.py"')
                rows = unpack(request["rows"])
                return self.prepared.told(rows, time.perf_counter) if op == "features" else self.prepared.parity(rows)
            case "solve":
                return self.solve(model, request)
            case "check":
                return model.check(unpack(request["input"]), unpack(request["output"]))
            case "score":
                return model.score(unpack(request["outputs"]), unpack(request["outcomes"]))
            case "evaluate":
                if not isinstance(model, adapt.Policy):
                    raise PalanError(f"only a policy can be judged in an environment, and this is of kind {model.kind}", "leave evaluate out")
                return model.evaluate(request["episodes"], request["seed"])
            case "table":
                if not isinstance(model, adapt.Rules):
                    raise PalanError(f"only rules have a table, and this is of kind {model.kind}", "leave table out")
                return model.table(msgspec.convert(request["domain"], Schema))
            case _:
                raise PalanError(f"a worker cannot {op!r}", "fit decide solve check score evaluate table ping")

    def open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if request.get("watched"):
            from palan.engines import reads  # a worker that serves watches nothing

            reads.watch()
        if request["kind"] == SOURCE:
            self.source = load(Path(request["folder"]), request["entry"])
            if not callable(self.source):
                raise PalanError(f"{request['entry']} is {self.source!r:.40}, not a function", "name a function that returns rows, or a connection to a database")
            return {"kind": SOURCE, "name": request["entry"], "verbs": [], "params": {}}
        if request["kind"] == TRANSFORMATION:
            self.transformation = transformation(Path(request["folder"]), request["entry"])
            return {"kind": TRANSFORMATION, "name": request["entry"], "verbs": [], "params": {}}
        model, prepared = self.fresh(request)
        state = dict(request["state"])
        if prepared is not None and prepared.learns:
            own = [name for name in state if name == prepared.FILE or name.startswith(prepared.STEPS)]
            fitted = {name: state.pop(name) for name in own}
            if fitted:
                prepared.restore(fitted)
        if state:
            model.restore(state)
        self.model, self.prepared, self.opened = model, prepared, request
        verbs = model.verbs
        if prepared is not None and prepared.learns and "fit" not in verbs:
            verbs = ["fit", *verbs]
        told = {"kind": model.kind, "name": model.name, "verbs": verbs, "params": {} if model.name == "the decision table" else model.params}
        return told if prepared is None else {**told, "pasts": prepared.pasts}

    @staticmethod
    def fresh(request: Mapping[str, Any]) -> tuple[adapt.Adapter, Prepared | None]:
        """Return the model as it is before it has learnt anything, and what makes its features."""
        folder, inputs, features = Path(request["folder"]), request["inputs"], request["features"]
        prepared = None
        if features:
            from palan.models.prepared import Prepared  # what compiles expressions is loaded where there are any

            file = features["file"]
            source = expressions(text_of(folder, file), file) if file.endswith(".sql") else load_module(folder, file)
            prepared = Prepared(file, source, features["columns"], features["tables"])
        model = adapt.adapter(load(folder, request["entry"]), request["kind"], request["params"], inputs=inputs, outcome=request["outcome"])
        if prepared is not None and not isinstance(model, adapt.RowsAdapter):
            raise PalanError(f"{model.name} is of kind {model.kind}: features are made of rows, and it solves an instance", "leave features out")
        return model, prepared

    def transform(self, request: Mapping[str, Any]) -> Any:
        function = self.transformation
        if function is None:
            raise PalanError("no transformation is open in this worker", "open one first")
        made, lineage = function({name: unpack(table) for name, table in request["tables"].items()})
        return {"made": pack(made), "lineage": lineage}

    def fetch(self, request: Mapping[str, Any]) -> int:
        """Spool the rows that a function gives, or that its connection answers a query with; return how many."""
        from contextlib import closing

        from palan.data import sources
        from palan.engines import queries
        from palan.engines.spool import Spool, spooled

        function = self.source
        if function is None:
            raise PalanError("no source is open in this worker", "open one first")
        since = sources.mark(request["since"], request["kind"]) if request["since"] else None
        spool = Spool(Path(request["to"]))
        try:
            with guarded(function, getattr(function, "__name__", "fetch")):
                made = function(**({"since": since} if "since" in inspect.signature(function).parameters else {}))
                if not (hasattr(made, "cursor") and hasattr(made, "close")):
                    spooled(made, spool, request["most"])
                    return spool.close()
            if not request["query"]:
                raise PalanError("the function gives a connection, of which query says what to take", 'query = "SELECT * FROM orders"')
            with guarded(function, "query"), closing(queries.of_connection(made, request["query"], request["cursor"], since)) as batches:
                for rows in batches:
                    spool.add(rows)
                    if request["most"] and spool.rows >= request["most"]:
                        break
            return spool.close()
        finally:
            spool.drop()

    def solve(self, model: adapt.Adapter, request: Mapping[str, Any]) -> Any:
        if not isinstance(model, adapt.Program | adapt.Heuristic):
            raise PalanError(f"{model.name} is of kind {model.kind}: it decides rows, not an instance", "send rows")

        def stream(found: Incumbent) -> None:
            self.send({"incumbent": plain(found, "the incumbent")})

        ctx = Context(seed=request["seed"], time_limit=request["time_limit"], on_incumbent=stream, is_cancelled=self.is_cancelled)
        result = plain(model.solve(request["instance"], ctx), "the result")
        for found in result["incumbents"]:
            found["output"] = None  # each was streamed with its plan; the answer carries only the last
        return result

    @staticmethod
    def _rows(model: adapt.Adapter) -> adapt.RowsAdapter:
        if isinstance(model, adapt.Program | adapt.Heuristic):
            raise PalanError(f"{model.name} is of kind {model.kind}: it solves an instance, not rows", "send an instance")
        return model


def pack(value: Any) -> Any:
    """Return the value ready for a frame: frames and series of Polars become Arrow bytes, anything else is plain."""
    if isinstance(value, pl.DataFrame | pl.Series):
        buffer = io.BytesIO()
        (value.to_frame() if isinstance(value, pl.Series) else value).write_ipc_stream(buffer)
        return {"$arrow": buffer.getvalue(), "series": isinstance(value, pl.Series)}
    return plain(value, "what was sent")


def unpack(value: Any) -> Any:
    if isinstance(value, dict) and "$arrow" in value:
        frame = pl.read_ipc_stream(io.BytesIO(value["$arrow"]))
        return frame.to_series() if value["series"] else frame
    return value


def described(error: PalanError) -> dict[str, Any]:
    """Return an error as plain values for the parent, which raises it again."""
    told: dict[str, Any] = {"type": type(error).__name__, "what": error.what, "hint": error.hint}
    if isinstance(error, ModelFailed):
        told |= {"status": error.status, "log": error.log[-20_000:]}
    if isinstance(error, Invalid):
        told |= {"field": error.field, "value": str(error.value)}
    return {name: text.encode(errors="replace").decode() for name, text in told.items()}  # half a character cannot be sent


def read_exactly(fd: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            os._exit(0)  # the parent has gone: nobody waits for this answer
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def die_with(parent: int) -> None:
    """End this process when the one that started it ends, even in the middle of a computation."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _die_with_caller(requests: int) -> None:
    """End this process when nobody can ask it any more, whoever started it."""

    def watch() -> None:
        poll = select.poll()
        poll.register(requests, 0)  # reports only that the other end is closed, and takes nothing from the pipe
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, daemon=True, name="palan-parent").start()


def main(parent: int) -> None:
    """Answer requests until stdin closes or the process `parent`, which started this one, ends."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    die_with(parent)
    _die_with_caller(requests)
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    asked = {"at": 0.0, "cancel": False}

    def is_cancelled() -> bool:
        # while a request is worked on, the only thing that can come in is the wish to stop it
        now = time.monotonic()
        if not asked["cancel"] and now - asked["at"] > 0.005:
            asked["at"] = now
            asked["cancel"] = bool(poll.poll(0))
        return bool(asked["cancel"])

    def send(message: Mapping[str, Any]) -> None:
        try:
            data = msgspec.msgpack.encode(message)
        except (OverflowError, RecursionError, TypeError, ValueError) as error:
            raise ModelFailed(f"what the model answered cannot be passed on: {error}", "keep whole numbers within 64 bits and nesting within reason") from error
        write_all(answers, len(data).to_bytes(4, "big") + data)

    served = Served(send, is_cancelled)
    while True:
        request = msgspec.msgpack.decode(read_exactly(requests, int.from_bytes(read_exactly(requests, 4), "big")))
        if request["op"] == "cancel":
            continue
        asked["cancel"] = False
        try:
            send({"ok": served.answer(request)})
        except PalanError as error:
            send({"error": described(error)})


if __name__ == "__main__":
    main(int(sys.argv[1]))
