"""What lies in an MLflow store, read without MLflow: its database (SQLite), or its folder `mlruns/`."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import msgspec

from palan.core import id_from
from palan.errors import Corrupt, NotFound, PalanError

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


class Told(msgspec.Struct, frozen=True):
    """What was logged in a run."""

    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: Mapping[str, Points]


class MlflowStore(Protocol):
    """A database or a folder."""

    def runs(self) -> list[Foreign]: ...

    def told(self, run: Foreign) -> Told: ...


def is_mlflow(source: str) -> bool:
    """Tell whether this is the address of an MLflow store."""
    return source.startswith(SQLITE) or Path(source).is_dir()


def opened(source: str) -> MlflowStore:
    """Open an MLflow store to read it.

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
    """Return the folder of artifacts, if it is on this machine. A server's own (`mlflow-artifacts:`) lie in `mlartifacts` by default."""
    scheme, _, path, _, _ = urlsplit(address)
    places = {
        "": [Path(address), beside / address],
        "file": [Path(unquote(path))],
        "mlflow-artifacts": [beside / "mlartifacts" / unquote(path).lstrip("/"), beside / "mlruns" / unquote(path).lstrip("/")],
    }
    return next((place for place in places.get(scheme, []) if place.is_dir()), None)


class _Database:
    def __init__(self, source: str) -> None:
        self.path = Path(source.removeprefix(SQLITE)).absolute()
        if not self.path.is_file():
            raise NotFound(f"there is no database {self.path}", "sqlite:///mlflow.db, or with four slashes the whole path: sqlite:////srv/mlflow.db")
        with self._explained():
            self.db = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise PalanError(f"{self.path} cannot be read as an MLflow store: {error}", "give the database that MLflow's server writes, brought up to date: mlflow db upgrade") from error
        except sqlite3.DatabaseError as error:
            raise Corrupt(f"{self.path} is no database, or it is damaged: {error}", "restore it from a backup") from error

    def runs(self) -> list[Foreign]:
        with self._explained():
            rows = self.db.execute(
                "select run_uuid, r.name, e.name, status, start_time, end_time, r.lifecycle_stage, artifact_uri"
                " from runs r join experiments e on e.experiment_id = r.experiment_id order by start_time, run_uuid"
            ).fetchall()
        return [
            Foreign(id_of(uuid), uuid, name or "", experiment, status, start or 0, end, stage == "deleted", _reach(address or "", self.path.parent))
            for uuid, name, experiment, status, start, end, stage, address in rows
        ]

    def told(self, run: Foreign) -> Told:
        points: dict[str, list[tuple[int, int, float]]] = {}
        with self._explained():
            params = dict(self.db.execute("select key, value from params where run_uuid = ?", [run.foreign]))
            tags = dict(self.db.execute("select key, value from tags where run_uuid = ?", [run.foreign]))
            rows = self.db.execute("select key, timestamp, step, value, is_nan from metrics where run_uuid = ? order by key, timestamp, step", [run.foreign])
            for key, time, step, value, is_nan in rows:
                points.setdefault(key, []).append((time, step, float("nan") if is_nan else float(value)))
        return Told(params, tags, points)


class _Folder:
    """`<experiment>/<run>/` with meta.yaml, params/, metrics/, tags/ and artifacts/; what was deleted lies in `.trash`."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        if not any(self.root.glob("*/meta.yaml")):
            raise PalanError(f"{self.root} is no MLflow store: no folder in it has a meta.yaml", "give the folder mlruns/, or the database: sqlite:///mlflow.db")

    def runs(self) -> list[Foreign]:
        found = []
        for meta in sorted(self.root.glob("*/meta.yaml")):
            experiment = _meta(meta).get("name", meta.parent.name)
            for place in sorted(meta.parent.glob("*/meta.yaml")):
                about = _meta(place)
                if id := about.get("run_id") or about.get("run_uuid"):  # models and traces lie beside runs
                    found.append(self._run(id, place.parent, about, experiment))
        return sorted(found, key=lambda run: (run.started, run.foreign))

    def _run(self, id: str, folder: Path, about: Mapping[str, str], experiment: str) -> Foreign:
        status, ended = about.get("status", ""), about.get("end_time", "")
        return Foreign(
            id_of(id),
            id,
            about.get("run_name") or _text(folder / "tags" / "mlflow.runName"),
            experiment,
            _STATUS.get(int(status), status) if status.isdigit() else status,
            int(about.get("start_time") or 0),
            int(ended) if ended.isdigit() else None,
            about.get("lifecycle_stage") == "deleted",
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
        )


def _point(line: str) -> tuple[int, int, float]:
    time, value, *step = line.split(" ")
    return int(time), int(step[0]) if step else 0, float(value)


def _values(folder: Path) -> list[tuple[str, Path]]:
    """Return the name and the file of each value: a name with a slash is a file in a folder."""
    return [(path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")) if path.is_file()]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _meta(path: Path) -> dict[str, str]:
    """Read the little of YAML that MLflow writes: one `name: value` a line, text in quotes where it must be."""
    found, last = dict[str, str](), ""
    for line in path.read_text(encoding="utf-8").splitlines():
        name, colon, value = line.partition(":")
        if line[:1].isspace() and last:  # a long text goes on
            found[last] += f" {line.strip()}"
        elif colon:
            last, found[name] = name, value.strip()
    return {name: _scalar(value) for name, value in found.items()}


def _scalar(text: str) -> str:
    if text in ("null", "~"):
        return ""
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return msgspec.json.decode(text, type=str)
        except msgspec.DecodeError:
            return text[1:-1]
    return text
