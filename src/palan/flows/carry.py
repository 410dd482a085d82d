"""`palan runs export` and `palan runs import`: runs as one file, from one store to another; and the runs of an MLflow store.

The file is a zip: for each run the frames that would log it, the blobs that its artifacts name, and at the end a manifest with
the digest of each. What is imported goes the way of all that is logged, but in one transaction: an import that was killed is
as if not begun (blobs that it had stored are swept by `palan gc`), and a run that is there already is left as it is.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from palan import __version__
from palan.core import new_id
from palan.errors import Conflict, Corrupt, NotFound, PalanError
from palan.flows.fold import fold, take
from palan.flows.mlflow_store import Foreign, Group, Told, artifacts_of, id_of, is_mlflow, opened
from palan.flows.project import Project, record
from palan.flows.runs import search
from palan.runs.mlflow import Experiment, Input
from palan.runs.points import EVENT, KEYSET, POINT, Names, event, events, unpack
from palan.runs.run import Artifact, Curve, Keyset, Run, Value
from palan.stores.files import CHUNK, is_digest, sync_folder

FORMAT = 2  # since datasets go with the runs that read them
MANIFEST, RUNS, BLOBS = "manifest.json", "runs/", "blobs/"
SOURCE = "import"
"""The segment that imported frames are said to come from."""

AT_ONCE = 200_000
"""Frames that are taken at once."""

PAGE = 500
MS = 1_000_000
"""Nanoseconds in what MLflow counts."""

LATEST = (1 << 63) // MS - 1
"""The last millisecond that palan can tell: clients have logged nanoseconds for milliseconds, and MLflow lets them."""

_OLDEST = (1980, 1, 1, 0, 0, 0)  # all that a zip can say: the same runs make the same bytes


_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, UnicodeDecodeError, msgspec.DecodeError)
"""What reading a zip raises where bytes of it were changed."""


class Manifest(msgspec.Struct, frozen=True):
    """What a file of runs holds: name -> size and SHA-256."""

    format: int
    palan: str
    project: str
    files: dict[str, tuple[int, str]]


def export_runs(project: Project, file: Path | str, where: str = "") -> dict[str, Any]:
    """Write the runs that a search finds, and those within them, to one file; those that still go on are left out.

    Raises:
        Conflict: there is a file of this name.
        Corrupt: an artifact is damaged.
    """
    target = Path(file).absolute()
    if not target.parent.is_dir():
        raise NotFound(f"there is no folder {target.parent}", f"mkdir -p {target.parent}")
    if target.exists():
        raise Conflict(f"there is a file {target} already", "choose another name, such as runs-$(date +%F).zip")
    found = _with_children(project, _found(project, where))
    ended = [run for run in found if run.status != "running"]
    try:
        blobs, size = _write(project, target, ended)
    except OSError as error:
        raise PalanError(f"{error.filename or target} cannot be read or written: {error.strerror or error}", f"check space and rights: df {target.parent}") from error
    return {"file": str(target), "bytes": size, "runs": len(ended), "blobs": blobs, "running": len(found) - len(ended)}


def _found(project: Project, where: str) -> list[Run]:
    ids, after = list[str](), ""
    while True:
        page = search(project, where, after=after, limit=PAGE)
        ids += [each["run"] for each in page["runs"]]
        after = page["next"]
        if not after:
            return [run for at in range(0, len(ids), PAGE) for run in project.store.records.find(Run, id=ids[at : at + PAGE])]


def _with_children(project: Project, found: Sequence[Run]) -> list[Run]:
    every = {run.id: run for run in found}
    outer = list(every)
    while outer:
        inner = [run for at in range(0, len(outer), PAGE) for run in project.store.records.find(Run, parent=outer[at : at + PAGE]) if run.deleted is None]
        outer = [run.id for run in inner if run.id not in every]
        every |= {run.id: run for run in inner}
    return sorted(every.values(), key=lambda run: (run.time, run.id))


def _write(project: Project, target: Path, runs: Sequence[Run]) -> tuple[int, int]:
    """Write a whole file, or none; return how many blobs it holds, and its size."""
    keysets = {each.id: each.names for each in project.store.records.find(Keyset)}
    files: dict[str, tuple[int, str]] = {}
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    temp = Path(name)
    try:
        with os.fdopen(handle, "wb") as out:
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
                blobs = dict.fromkeys(each.blob for run in runs for each in project.store.records.find(Artifact, run=run.id))
                for digest in blobs:
                    files[BLOBS + digest] = _add_blob(project, packed, digest, temp.with_suffix(".blob"))
                for run in runs:
                    data = msgspec.msgpack.encode(_frames(project, run, keysets))
                    files[RUNS + run.id] = _add(packed, RUNS + run.id, [data])
                _add(packed, MANIFEST, [msgspec.json.encode(Manifest(FORMAT, __version__, project.config.name, files))])
            out.flush()
            os.fsync(out.fileno())
        os.link(temp, target)  # never over a file that came meanwhile
        sync_folder(target.parent)
    finally:
        temp.unlink(missing_ok=True)
    return len(blobs), target.stat().st_size


def _add(packed: zipfile.ZipFile, name: str, chunks: Iterable[bytes]) -> tuple[int, str]:
    sha, size = hashlib.sha256(), 0
    with packed.open(_entry(name), "w", force_zip64=True) as member:
        for chunk in chunks:
            sha.update(chunk)
            size += len(chunk)
            member.write(chunk)
    return size, sha.hexdigest()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _OLDEST)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o600 << 16
    return entry


def _add_blob(project: Project, packed: zipfile.ZipFile, digest: str, temp: Path) -> tuple[int, str]:
    try:
        project.store.blobs.get(digest, temp)
        with temp.open("rb") as file:
            return _add(packed, BLOBS + digest, iter(lambda: file.read(CHUNK), b""))
    finally:
        temp.unlink(missing_ok=True)


def _frames(project: Project, run: Run, keysets: Mapping[str, tuple[str, ...]]) -> list[bytes]:
    """Return the frames that log a run as it is known."""
    records = project.store.records
    about = {"name": run.name, "parent": run.parent, "code": run.code, "data": run.data, "environment": run.environment}
    frames = [event(run.id, _ns(run.time), "start", {"experiment": run.subject, "about": about, "files": {}})]
    for value in records.find(Value, run=run.id):
        if value.kind != "metric":
            frames.append(event(run.id, value.time, value.kind, {value.key: value.text}))
    for artifact in records.find(Artifact, run=run.id):
        frames.append(event(run.id, _ns(artifact.time), "artifact", {artifact.path: (artifact.blob, artifact.size)}))
    for read in records.find(Input, run=run.id):
        frames.append(event(run.id, _ns(run.time), "input", [read.kind, read.name, read.digest, read.about]))
    for keyset in dict.fromkeys(curve.keyset for curve in records.find(Curve, run=run.id)):
        names = Names(keysets[keyset])
        frames.append(names.frame)
        for curve in sorted(records.find(Curve, run=run.id, keyset=keyset), key=lambda each: each.part):
            block = unpack(curve.data)
            points = zip(block.steps.tolist(), block.times.tolist(), block.values.T.tolist(), strict=True)
            frames += [names.point(run.id.encode(), step, ns, values) for step, ns, values in points]
    return [*frames, event(run.id, _ns(run.ended or run.time), "end", {"status": run.status, "reason": run.reason})]


def _ns(time: datetime) -> int:
    return round(time.timestamp() * 1e6) * 1000


def import_runs(project: Project, source: Path | str) -> dict[str, Any]:
    """Bring in the runs of a file that `palan runs export` wrote, or of an MLflow store: `sqlite:///mlflow.db`, or its folder.

    Runs keep their ids; those that are here already are left as they are. Of an MLflow store, 32 hexadecimal digits become
    the 26 characters of the same number, and the tag `mlflow.runId` keeps them; runs that were deleted there stay behind.

    Raises:
        NotFound: there is no such file, folder or database.
        Corrupt: the file is no such file, or it was cut or changed: nothing is imported.
    """
    fold(project)
    if is_mlflow(str(source)):
        return _from_mlflow(project, str(source))
    path = Path(source).absolute()
    if not path.is_file():
        raise NotFound(f"there is no file {path}", "give what palan runs export wrote, or an MLflow store: sqlite:///mlflow.db, or its folder mlruns/")
    with _proving(path):
        packed = zipfile.ZipFile(path)
    with packed:
        return _from_file(project, path, packed)


@contextmanager
def _proving(path: Path) -> Iterator[None]:
    """Tell damage of the file from every other error: around what reads it, never around what writes the store."""
    try:
        yield
    except _DAMAGED as error:
        raise _no_runs(path, str(error) or type(error).__name__) from error


def _no_runs(path: Path, why: str) -> Corrupt:
    return Corrupt(f"{path} is no file of runs, or it was damaged: {why}", "export the runs again: palan runs export FILE")


def _from_file(project: Project, path: Path, packed: zipfile.ZipFile) -> dict[str, Any]:
    with _proving(path):
        manifest = _proven(path, packed)
    ids = [name.removeprefix(RUNS) for name in manifest.files if name.startswith(RUNS)]
    new = _unknown(project, ids)
    needed: set[str] = set()
    with _proving(path):
        for id in new:
            needed |= _checked(path, id, _read(packed, id), manifest)
    for digest in sorted(needed):
        _lay_down(project, packed, digest)

    def read(id: str) -> list[bytes]:
        with _proving(path):
            return _read(packed, id)

    taken = _take(project, new, read, path.name)
    return {"source": str(path), "runs": taken, "known": len(ids) - taken, "blobs": len(needed), "missing": 0, "deleted": 0}


def _lay_down(project: Project, packed: zipfile.ZipFile, digest: str) -> None:
    """Store a blob of the file; what an import that was killed left behind is swept by its name."""
    project.folder.mkdir(parents=True, exist_ok=True)
    temp = project.folder / f".{new_id(project.clock())}.tmp"
    try:
        with _proving(Path(packed.filename or "")), packed.open(BLOBS + digest) as member, temp.open("wb") as out:
            while chunk := member.read(CHUNK):
                out.write(chunk)
        project.store.blobs.put(temp)
    except OSError as error:
        raise PalanError(f"{temp.parent} cannot be written: {error.strerror or error}", f"check space and rights: df {temp.parent}") from error
    finally:
        temp.unlink(missing_ok=True)


def _proven(path: Path, packed: zipfile.ZipFile) -> Manifest:
    """Read every byte of the file against its manifest."""
    names = packed.namelist()
    if MANIFEST not in names:
        raise _no_runs(path, "its manifest is missing")
    manifest = msgspec.json.decode(packed.read(MANIFEST), type=Manifest)
    if manifest.format > FORMAT:
        raise PalanError(f"{path} was written by a newer palan ({manifest.palan})", "pip install --upgrade palan")
    if sorted(names) != sorted([*manifest.files, MANIFEST]):
        raise _no_runs(path, "it holds other files than its manifest says")
    for name, (size, digest) in manifest.files.items():
        sha, found = hashlib.sha256(), 0
        if packed.getinfo(name).flag_bits & 1:  # a changed byte can make it look encrypted
            raise _no_runs(path, f"{name} cannot be read")
        with packed.open(name) as member:
            while chunk := member.read(CHUNK):
                sha.update(chunk)
                found += len(chunk)
        if (found, sha.hexdigest()) != (size, digest) or (name.startswith(BLOBS) and digest != name.removeprefix(BLOBS)):
            raise _no_runs(path, f"{name} should be {size} bytes with digest {digest}, and is {found} with {sha.hexdigest()}")
    return manifest


def _read(packed: zipfile.ZipFile, id: str) -> list[bytes]:
    return msgspec.msgpack.decode(packed.read(RUNS + id), type=list[bytes])


def _checked(path: Path, id: str, frames: Sequence[bytes], manifest: Manifest) -> set[str]:
    """Return the blobs that a run needs; refuse frames that are about another one, or lead out of it."""
    blobs: set[str] = set()
    for frame in frames:
        if frame[:1] not in (KEYSET, POINT, EVENT) or (frame[:1] == POINT and frame[1:27] != id.encode()):
            raise _no_runs(path, f"{RUNS}{id} holds what is not of this run")
    for each in events(frames):
        if each.run != id or len(id) != 26 or each.verb not in ("start", "param", "tag", "artifact", "input", "end"):
            raise _no_runs(path, f"{RUNS}{id} holds what is not of this run")
        for place, (digest, _) in each.body.items() if each.verb == "artifact" else ():
            if place.startswith("/") or ".." in Path(place).parts or not is_digest(digest) or BLOBS + digest not in manifest.files:
                raise _no_runs(path, f"the artifact {place} of {id} is not in it")
            blobs.add(digest)
    return blobs


def _unknown(project: Project, ids: Sequence[str]) -> list[str]:
    known = {run.id for at in range(0, len(ids), PAGE) for run in project.store.records.find(Run, id=list(ids[at : at + PAGE]))}
    return [id for id in ids if id not in known]


def _take(project: Project, ids: Sequence[str], read: Callable[[str], list[bytes]], source: str, groups: Sequence[Group] = ()) -> int:
    """Take runs into the records, all or none; return how many are new."""
    with project.store.records.transaction(durable=True):
        _group(project, groups)
        new = _unknown(project, ids)  # somebody may have imported them meanwhile
        waiting: list[bytes] = []
        for id in new:
            waiting += read(id)
            if len(waiting) > AT_ONCE:
                _take_frames(project, waiting)
                waiting = []
        if waiting:
            _take_frames(project, waiting)
        if new:
            record(project, "import", source, runs=len(new))
    return len(new)


def _take_frames(project: Project, frames: Sequence[bytes]) -> None:
    from palan.stores.tables import stacked

    take(project, [stacked(SOURCE, 0, enumerate(frames))])
    project.store.records.put(*(Input(each.run, *each.body) for each in events(frames) if each.verb == "input"))


def _group(project: Project, groups: Sequence[Group]) -> None:
    """Make the experiments that are not here, and add tags to those that are; MLflow's "Default" is always the first."""
    records = project.store.records
    known = {each.name: each for each in records.find(Experiment)}
    last = max((each.number for each in known.values()), default=0)
    for group in groups:
        there = known.get(group.name)
        if there is None:
            first = group.name == "Default" and not any(each.number == 0 for each in known.values())
            last += not first
            there = known[group.name] = Experiment(0 if first else last, group.name, _when(group.made), _when(group.changed))
        records.put(replace(there, tags={**group.tags, **there.tags}))


def _when(ms: int) -> datetime:
    return datetime.fromtimestamp(min(ms, LATEST) / 1000, UTC)


def _from_mlflow(project: Project, source: str) -> dict[str, Any]:
    with closing(opened(source)) as store:
        every = store.runs()
        there = {run.id: run for run in every if not run.deleted}
        new = _unknown(project, list(there))
        project.tell(f"{len(new):,} new runs of {len(every):,}")
        files = {id: {place: (project.store.blobs.put(path), path.stat().st_size) for place, path in artifacts_of(there[id])} for id in new}
        taken = _take(project, new, lambda id: _foreign(there[id], store.told(there[id]), files[id]), Path(source).name, store.experiments())
    return {
        "source": source,
        "runs": taken,
        "known": len(there) - taken,
        "blobs": len({digest for each in files.values() for digest, _ in each.values()}),
        "missing": sum(there[id].artifacts is None for id in new),
        "deleted": len(every) - len(there),
    }


def _foreign(run: Foreign, told: Told, files: Mapping[str, tuple[str, int]]) -> list[bytes]:
    """Return the frames that would have logged a run of MLflow's."""
    started = _nanoseconds(run.started)
    parent = id_of(told.tags["mlflow.parentRunId"]) if told.tags.get("mlflow.parentRunId") else ""
    frames = [event(run.id, started, "start", {"experiment": run.experiment, "about": {"name": run.name, "parent": parent}, "files": {}})]
    frames += [event(run.id, started, verb, values) for verb, values in (("param", told.params), ("tag", {**told.tags, "mlflow.runId": run.foreign}), ("artifact", files)) if values]
    for about, tags in told.datasets:
        kept = {"dataset": about, "tags": [{"key": key, "value": value} for key, value in tags.items()]}
        frames.append(event(run.id, started, "input", ["dataset", about["name"], about["digest"], kept]))
    heard = started
    for key, points in told.points.items():
        names = Names([key])
        frames.append(names.frame)
        frames += [names.point(run.id.encode(), step, _nanoseconds(time), (value,)) for time, step, value in points]
        heard = max(heard, *(_nanoseconds(time) for time, _, _ in points))
    status = {"FINISHED": "done", "FAILED": "failed"}.get(run.status, "killed")
    reason = f"it was {run.status} when it was imported" if run.status in ("RUNNING", "SCHEDULED") else ""
    return [*frames, event(run.id, _nanoseconds(run.ended) if run.ended else heard, "end", {"status": status, "reason": reason})]


def _nanoseconds(ms: int) -> int:
    return max(0, min(ms, LATEST)) * MS
