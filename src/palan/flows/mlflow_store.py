"""What lies in an MLflow store, read without MLflow: its database (SQLite), or its folder `mlruns/`."""

from __future__ import annotations

import ast
import hashlib
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import msgspec

from palan.core import id_from
from palan.errors import Busy, Corrupt, NotFound, PalanError

Points = Sequence[tuple[int, int, float]]
"""Time in milliseconds, step, value."""

SQLITE = "sqlite:///"
_STATUS = {1: "RUNNING", 2: "SCHEDULED", 3: "FINISHED", 4: "FAILED", 5: "KILLED"}


class Foreign(msgspec.Struct, frozen=True):
    """A run of MLflow's. Times are milliseconds since 1970; `artifacts` is None where they lie out of reach."""

    id: str
    foreign: str
    name: str
    experiment: str
    status: str
    started: int
    ended: int | None
    deleted: bool
    artifacts: Path | None


class Group(msgspec.Struct, frozen=True):
    """An experiment of MLflow's that was not deleted."""

    name: str
    made: int
    changed: int
    tags: Mapping[str, str]


Dataset = tuple[Mapping[str, str], Mapping[str, str]]
"""What MLflow says of a dataset that a run read (name, digest, source_type, source, schema, profile), and its tags."""

_DATASET = ("name", "digest", "source_type", "source", "schema", "profile")


class Told(msgspec.Struct, frozen=True):
    """What was logged in a run."""

    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: Mapping[str, Points]
    datasets: Sequence[Dataset]


class MlflowStore(Protocol):
    """A database or a folder."""

    def experiments(self) -> list[Group]: ...

    def runs(self) -> list[Foreign]: ...

    def told(self, run: Foreign) -> Told: ...

    def close(self) -> None: ...


def is_mlflow(source: str) -> bool:
    """Tell whether this is the address of an MLflow store."""
    return source.startswith(SQLITE) or Path(source).is_dir()


def opened(source: str) -> MlflowStore:
    """Open an MLflow store to read it. What it then tells raises Corrupt where it is damaged.

    Raises:
        NotFound: there is nothing.
        PalanError: it is something else.
    """
    return _Database(source) if source.startswith(SQLITE) else _Folder(Path(source))


def id_of(foreign: str) -> str:
    """Return palan's id of a run of MLflow's: the same 128 bits in other characters."""
    try:
        number = int(foreign, 16) if len(foreign) == 32 else None
    except ValueError:
        number = None
    return id_from(int(hashlib.sha256(foreign.encode()).hexdigest()[:32], 16) if number is None else number)


def artifacts_of(run: Foreign) -> Iterator[tuple[str, Path]]:
    """Yield each file that a run kept, by its path."""
    for path in sorted(run.artifacts.rglob("*")) if run.artifacts else ():
        if path.is_file() and not path.is_symlink():
            yield path.relative_to(run.artifacts or path).as_posix(), path


def _reach(address: str, beside: Path) -> Path | None:
    """Return the folder of a run's artifacts, if they are on this machine. A server's own (`mlflow-artifacts:`) lie in `mlartifacts` by default.

    MLflow makes it with the first file: where only what it would lie in is there, `…/EXPERIMENT/RUN/artifacts`, the run kept none.
    """
    scheme, _, path, _, _ = urlsplit(address)
    places = {
        "": [Path(address), beside / address] if address else [],
        "file": [Path(unquote(path))],
        "mlflow-artifacts": [beside / "mlartifacts" / unquote(path).lstrip("/"), beside / "mlruns" / unquote(path).lstrip("/")],
    }
    there = [place for place in places.get(scheme, []) if place.is_absolute()]
    return next((place for place in there if place.is_dir()), None) or next((place for place in there if len(place.parts) > 4 and place.parents[2].is_dir()), None)


class _Database:
    def __init__(self, source: str) -> None:
        self.path = Path(source.removeprefix(SQLITE)).absolute()
        if not self.path.is_file():
            raise NotFound(f"there is no database {self.path}", "sqlite:///mlflow.db, or with four slashes the whole path: sqlite:////srv/mlflow.db")
        with self._explained():
            self.db = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True, isolation_level=None)
            self.db.execute("begin")  # all that is read is of one moment, though a server goes on writing

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:  # the last two: a column holds what MLflow never writes
            told = f"{error!s:.100}"
            if told == "database is locked":
                raise Busy(f"{self.path} is locked by another program", "stop it, or give a copy that it made: sqlite3 mlflow.db '.backup copy.db'") from error
            if isinstance(error, sqlite3.OperationalError) and "decode" not in told:
                raise PalanError(f"{self.path} cannot be read as an MLflow store: {told}", "give the database that MLflow's server writes, brought up to date: mlflow db upgrade") from error
            raise Corrupt(f"{self.path} is no database, or it is damaged: {told}", "restore it from a backup") from error

    def experiments(self) -> list[Group]:
        with self._explained():
            tags: dict[int, dict[str, str]] = {}
            for id, key, value in self.db.execute("select experiment_id, key, value from experiment_tags"):
                tags.setdefault(id, {})[key] = value or ""
            rows = self.db.execute("select experiment_id, name, creation_time, last_update_time from experiments where lifecycle_stage <> 'deleted' order by experiment_id").fetchall()
            return [Group(name, int(made or 0), int(changed or made or 0), tags.get(id, {})) for id, name, made, changed in rows]

    def runs(self) -> list[Foreign]:
        with self._explained():
            rows = self.db.execute(
                "select run_uuid, r.name, e.name, status, start_time, end_time, r.lifecycle_stage = 'deleted' or e.lifecycle_stage = 'deleted', artifact_uri"
                " from runs r join experiments e on e.experiment_id = r.experiment_id order by start_time, run_uuid"
            ).fetchall()
            return [
                Foreign(id_of(uuid), uuid, name or "", experiment, status or "", int(start or 0), None if end is None else int(end), bool(deleted), _reach(address or "", self.path.parent))
                for uuid, name, experiment, status, start, end, deleted, address in rows
            ]

    def told(self, run: Foreign) -> Told:
        points: dict[str, list[tuple[int, int, float]]] = {}
        with self._explained():
            params = dict(self.db.execute("select key, value from params where run_uuid = ?", [run.foreign]))
            tags = {key: value or "" for key, value in self.db.execute("select key, value from tags where run_uuid = ?", [run.foreign])}
            rows = self.db.execute("select key, timestamp, step, value, is_nan from metrics where run_uuid = ? order by key, timestamp, step", [run.foreign])
            for key, time, step, value, is_nan in rows:
                points.setdefault(key, []).append((int(time), int(step), float("nan") if is_nan else float(value)))
            return Told(params, tags, points, self._datasets(run))

    def close(self) -> None:
        self.db.close()

    def _datasets(self, run: Foreign) -> list[Dataset]:
        rows = self.db.execute(
            "select i.input_uuid, d.name, d.digest, d.dataset_source_type, d.dataset_source, d.dataset_schema, d.dataset_profile from inputs i"
            " join datasets d on d.dataset_uuid = i.source_id where i.source_type = 'DATASET' and i.destination_type = 'RUN' and i.destination_id = ?",
            [run.foreign],
        ).fetchall()
        return [(dict(zip(_DATASET, (each or "" for each in about), strict=True)), dict(self.db.execute("select name, value from input_tags where input_uuid = ?", [id]))) for id, *about in rows]


class _Folder:
    """`<experiment>/<run>/` with meta.yaml, params/, metrics/, tags/ and artifacts/; what was deleted lies in `.trash`."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        if not any(self.root.glob("*/meta.yaml")):
            raise PalanError(f"{self.root} is no MLflow store: no folder in it has a meta.yaml", "give the folder mlruns/, or the database: sqlite:///mlflow.db")

    def experiments(self) -> list[Group]:
        found = []
        for folder in self._folders(self.root, r"\d+"):
            about = _meta(folder, "name")
            if about.get("lifecycle_stage") != "deleted":
                tags = {key: _text(path) for key, path in _values(folder / "tags")}
                made = _number(folder, about, "creation_time") or 0
                found.append(Group(about["name"], made, _number(folder, about, "last_update_time") or made, tags))
        return found

    def runs(self) -> list[Foreign]:
        found = []
        for folder in self._folders(self.root, r"\d+"):
            experiment = _meta(folder, "name")
            found += [self._run(place, _meta(place, "start_time", "status", "user_id"), experiment) for place in self._folders(folder, "[0-9a-f]{32}")]
        return sorted(found, key=lambda run: (run.started, run.foreign))

    def _folders(self, root: Path, pattern: str) -> list[Path]:
        """Return the folders with a `meta.yaml`: all but those of MLflow's own that lie beside them, such as `.trash` and `models`."""
        found = sorted(path for path in root.iterdir() if path.is_dir() and ((path / "meta.yaml").is_file() or re.fullmatch(pattern, path.name)))
        for path in found:
            if not (path / "meta.yaml").is_file() and any(path.iterdir()):
                raise Corrupt(f"{path} has no meta.yaml: what it is cannot be known", f"restore that file, or leave the folder out: mv {path} ELSEWHERE")
        return [path for path in found if (path / "meta.yaml").is_file()]

    def _run(self, folder: Path, about: Mapping[str, str], experiment: Mapping[str, str]) -> Foreign:
        id, status = about.get("run_id") or about.get("run_uuid") or folder.name, about.get("status", "")
        return Foreign(
            id_of(id),
            id,
            _text(folder / "tags" / "mlflow.runName") or about.get("run_name", ""),
            experiment["name"],
            _STATUS.get(int(status), status) if status.isdecimal() else status,
            _number(folder, about, "start_time") or 0,
            _number(folder, about, "end_time"),
            "deleted" in (about.get("lifecycle_stage"), experiment.get("lifecycle_stage")),
            folder / "artifacts" if (folder / "artifacts").is_dir() else _reach(about.get("artifact_uri", ""), self.root.parent),
        )

    def told(self, run: Foreign) -> Told:
        (folder,) = [place for place in self.root.glob(f"*/{run.foreign}") if (place / "meta.yaml").is_file()]
        points = {}
        for key, path in _values(folder / "metrics"):
            try:
                points[key] = sorted(_point(line) for line in path.read_text(encoding="utf-8").splitlines() if line)
            except ValueError as error:
                raise Corrupt(f"{path} is damaged: {error}", "put that line right, or remove the file") from error
        return Told(
            {key: _text(path) for key, path in _values(folder / "params")},
            {key: _text(path) for key, path in _values(folder / "tags")},
            {key: each for key, each in points.items() if each},
            [self._dataset(folder, place) for place in sorted((folder / "inputs").glob("*")) if (place / "meta.yaml").is_file() and _meta(place).get("source_type") == "DATASET"],
        )

    def close(self) -> None:
        """Nothing is held."""

    def _dataset(self, folder: Path, read: Path) -> Dataset:
        about = _meta(folder.parent / "datasets" / _meta(read, "source_id")["source_id"], "name", "digest")
        return {name: about.get(name, "") for name in _DATASET}, _tags(read)


def _point(line: str) -> tuple[int, int, float]:
    time, value, *step = line.split(" ")
    return int(time), int(step[0]) if step else 0, float(value)


def _values(folder: Path) -> list[tuple[str, Path]]:
    """Return the name and the file of each value: a name with a slash is a file in a folder."""
    return [(path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")) if path.is_file()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except ValueError as error:
        raise Corrupt(f"{path} is damaged: {error}", "restore it from a backup, or remove the file") from error


def _meta(folder: Path, *needed: str) -> dict[str, str]:
    """Read the little of YAML that MLflow writes: one `name: value` a line, text in quotes where it must be."""
    found, last = dict[str, str](), ""
    path = folder / "meta.yaml"
    if not path.is_file():
        raise Corrupt(f"{path} is not there, which a run names", "restore it from a backup")
    for line in _text(path).splitlines():
        name, colon, value = line.partition(":")
        if line[:1].isspace() and last:  # a long text goes on
            found[last] = found[last][:-1] + line.strip().removeprefix("\\") if found[last].endswith("\\") else f"{found[last]} {line.strip()}"
        elif colon:
            last, found[name] = name, value.strip()
    if lacking := [name for name in needed if name not in found]:
        raise Corrupt(f"{path} is damaged: it does not say {lacking[0]}", f"restore it from a backup, or leave the folder out: mv {folder} ELSEWHERE")
    return {name: _scalar(value) for name, value in found.items()}


def _number(folder: Path, about: Mapping[str, str], name: str) -> int | None:
    try:
        return int(about[name]) if about.get(name) else None
    except ValueError as error:
        raise Corrupt(f"{folder / 'meta.yaml'} is damaged: {name} is no number", "restore it from a backup") from error


def _tags(folder: Path) -> dict[str, str]:
    """Read the tags of a dataset: below `tags:`, each on a line of its own."""
    lines = iter(_text(folder / "meta.yaml").splitlines())
    pairs = [line.strip().partition(": ") for line in lines if line == "tags:" for line in takewhile(lambda each: each[:1].isspace(), lines)]
    return {_scalar(name): _scalar(value) for name, _, value in pairs}


def _scalar(text: str) -> str:
    if text in ("null", "~"):
        return ""
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(ast.literal_eval(text))  # its escapes are Python's, but for a few that MLflow has no use for
        except (SyntaxError, ValueError):
            return text[1:-1]
    return text
