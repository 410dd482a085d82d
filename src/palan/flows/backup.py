"""`palan backup` and `palan restore`: a whole store as one file, taken while others write, and proven when it comes back.

The file is a tar: the project's own files below `project/`, the store below `store/`, and at its end `manifest.json` with the
size and the digest of each. A file without its manifest is no backup, so one that was cut is never taken for whole.

It holds a store as it lies in one folder, wherever the project keeps its own: what comes from a database and a bucket goes
back into these, or into a folder, and the other way round.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import tarfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

import msgspec

from palan import __version__
from palan.core import Clock, stamp, utcnow
from palan.errors import Conflict, Corrupt, NotFound, PalanError
from palan.flows.config import Config
from palan.flows.fold import STREAM
from palan.flows.packages import sources
from palan.flows.project import Project, Tell, silent
from palan.flows.root import FILE, find_root
from palan.flows.verify import NOUNS, verify
from palan.stores import folder_of, open_store, shown
from palan.stores.contract import Frame, Records, Store
from palan.stores.files import CHUNK, FileBlobs, sync_folder, write_atomically
from palan.stores.segments import SegmentBlocks, framed
from palan.stores.sqlite import SQLiteRecords

PROJECT, STORE, MANIFEST = "project", "store", "manifest.json"
T = TypeVar("T")

_LEFT_OUT = ("cache", "blocks", "blobs")  # the first is made again; the others have an order of their own
_TOLD = 1 << 30
BATCH = 500
"""Records, or frames, that are carried from one store to another at once."""


class Manifest(msgspec.Struct, frozen=True):
    """What a backup holds: name -> size and SHA-256."""

    project: str
    time: datetime
    palan: str
    files: dict[str, tuple[int, str]]


def backup(project: Project, file: Path | str) -> dict[str, Any]:
    """Write the project's store to `file`, as of now, while others go on; return what is in it.

    All that was acknowledged before is in the backup. It holds the key that signs versions and ledger, without which neither
    could be proven again: whoever has the file can sign as this project.
    """
    target = Path(file).absolute()
    if not target.parent.is_dir():
        raise NotFound(f"there is no folder {target.parent}", f"mkdir -p {target.parent}")
    try:
        with _written(target) as out:
            packer = _Packer(out, project, target)
            packer.pack()
    except OSError as error:
        raise PalanError(f"{error.filename or target} cannot be read or written: {error.strerror or error}", f"check space and rights: df {target.parent}") from error
    blobs = {name: digest for name, (_, digest) in packer.files.items() if name.startswith(f"{STORE}/blobs/")}
    return {
        "file": str(target),
        "bytes": target.stat().st_size,
        "files": len(packer.files),
        "blobs": len(blobs),
        "key": f"{STORE}/key" in packer.files,
        "damaged": [*packer.damaged, *(f"{name.removeprefix(f'{STORE}/')} is damaged: it has digest {digest}" for name, digest in blobs.items() if not name.endswith(digest))],
        "next": f"palan restore {target} --into FOLDER",
    }


@contextmanager
def _written(target: Path) -> Iterator[IO[bytes]]:
    """Give a file that has its name once it is whole. What a process that was killed left behind, the next one writes over."""
    temp = target.with_name(f".{target.name}.part")
    with os.fdopen(os.open(temp, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as out:
        _alone(out.fileno(), temp, "backup")
        try:
            _refuse(target)
            out.truncate(0)
            yield out
            out.flush()
            os.fsync(out.fileno())
            _refuse(target)
            temp.replace(target)
            sync_folder(target.parent)
        finally:
            temp.unlink(missing_ok=True)


def _refuse(target: Path) -> None:
    if target.exists():
        raise Conflict(f"there is a file {target} already", "choose another name, such as palan-$(date +%F).tar")


def _alone(fd: int, path: Path, what: str) -> None:
    """Lock what is to be written, or say that another process writes it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), path.stat()):  # else it was finished, and named, since we opened it
            return
    except (BlockingIOError, FileNotFoundError):
        pass
    raise Conflict(f"another {what} writes {path}", "wait for it")


class _Packer:
    """Puts a store into a tar, and notes what it read."""

    def __init__(self, out: IO[bytes], project: Project, target: Path) -> None:
        self.project, self.target = project, target
        self.tar = tarfile.TarFile(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, copybufsize=CHUNK)
        self.time = project.clock()
        self.files: dict[str, tuple[int, str]] = {}
        self.damaged: list[str] = []

    def pack(self) -> None:
        blobs = self.project.store.blobs
        with blobs.held() if isinstance(blobs, FileBlobs) else nullcontext():  # else a sweep may remove what the records, as copied, still name
            self._pack()

    def _pack(self) -> None:
        project = self.project
        for name in (FILE, *_own(project)):
            self._add(f"{PROJECT}/{name}", project.root / name)
        self._records()
        self._blocks()
        for path in _others(project.folder):
            self._add(self._name(path), path)
        self._blobs()  # at last: each is there before the record that names it
        manifest = msgspec.json.encode(Manifest(project.config.name, self.time, __version__, self.files))
        self._write(MANIFEST, io.BytesIO(manifest), len(manifest))
        self.tar.close()

    def _records(self) -> None:
        self.project.tell("copying the records")
        database = self._passing("db")
        # In this order: the journal of one that was killed would be rolled back into this one.
        passing = [*(database.with_name(f"{database.name}-{kind}") for kind in ("journal", "wal", "shm")), database]
        try:
            for path in passing:
                path.unlink(missing_ok=True)
            records = self.project.store.records
            if isinstance(records, SQLiteRecords):
                records.copy_to(database)
            else:
                self._from_server(records, database)
            self._add(f"{STORE}/palan.db", database)
        except PalanError as error:
            if type(error) is not PalanError:  # the store is damaged, or locked
                raise
            raise PalanError(f"the records cannot be copied into {database.parent}: {error.what}", f"check space and rights: df {database.parent}") from error
        finally:
            for path in passing:
                path.unlink(missing_ok=True)

    def _from_server(self, records: Records, database: Path) -> None:
        from palan.stores.postgres import PostgresRecords

        copy = SQLiteRecords(database)
        try:
            with _of(records, PostgresRecords).snapshot(), copy.transaction():
                _carry(records, copy, self.damaged.append)
        finally:
            copy.close()

    def _blocks(self) -> None:
        self.project.tell("copying the blocks")
        blocks, here = self.project.store.blocks, SegmentBlocks(self.project.folder / "blocks")
        for path, size in here.files():
            try:
                self._add(self._name(path), path, size)
            except FileNotFoundError:  # compacted meanwhile: what of it follows
                continue
        if not isinstance(blocks, SegmentBlocks):
            for stream in sorted({*blocks.streams()} - {*here.streams()}):
                for segment, frames in groupby(blocks.scan(stream, damaged=lambda error: self.damaged.append(error.what)), key=attrgetter("segment")):
                    content = _segment(frames)
                    ordered = "_".join(part.zfill(10) for part in segment.split("_"))  # files are read in the order of their names
                    name = f"{STORE}/blocks/{stream}/{ordered}.seg"
                    self.files[name] = (len(content), self._write(name, io.BytesIO(content), len(content)))

    def _blobs(self) -> None:
        self.project.tell("copying the blobs")
        blobs = self.project.store.blobs
        for key in blobs.names():
            name = f"{STORE}/blobs/{key[:2]}/{key}"
            if isinstance(blobs, FileBlobs):
                self._add(name, blobs.place(key))
                continue
            passing = self._passing("blob")
            try:
                blobs.get(key, into=passing)
                self._add(name, passing)
            except (Corrupt, NotFound) as error:
                self.damaged.append(error.what)
            finally:
                passing.unlink(missing_ok=True)

    def _passing(self, kind: str) -> Path:
        """Name a file beside the target that is gone when the backup is done."""
        return self.target.with_name(f".{self.target.name}.{kind}")

    def _name(self, path: Path) -> str:
        return f"{STORE}/{path.relative_to(self.project.folder).as_posix()}"

    def _add(self, name: str, path: Path, size: int | None = None) -> None:
        """Add the first `size` bytes of a file, all of them by default."""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size if size is None else size
            self.files[name] = (size, self._write(name, file, size))

    def _write(self, name: str, file: IO[bytes], size: int) -> str:
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = size, 0o600, int(self.time.timestamp())
        read, before = _Hashed(file), self.tar.offset
        self.tar.addfile(member, read)  # type: ignore[arg-type]  # all that is asked of it is to read
        if self.tar.offset // _TOLD > before // _TOLD:
            self.project.tell(f"  {self.tar.offset >> 30} GB")
        return read.sha.hexdigest()


class _Hashed:
    """A file that is hashed while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha = file, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.sha.update(data)
        return data


def _carry(source: Records, target: Records, damaged: Callable[[str], None]) -> None:
    """Put every record of one store into another, in its transaction."""
    for noun in NOUNS:
        batch: list[object] = []
        for each in source.walk(noun):
            if isinstance(each, Corrupt):
                damaged(each.what)
                continue
            batch.append(each)
            if len(batch) == BATCH:
                target.put(*batch)
                batch = []
        target.put(*batch)


def _segment(frames: Iterable[Frame]) -> bytes:
    """Return frames as their segment's file holds them. What was lost between them is a hole, which verify names again."""
    content = bytearray()
    for frame in frames:
        whole = framed(frame.data)
        content += bytes(frame.end - len(whole) - len(content)) + whole
    return bytes(content)


def _of(part: object, kind: type[T]) -> T:
    assert isinstance(part, kind)  # as the store's address says
    return part


def _own(project: Project) -> list[str]:
    """Return the files that the project is made of, without what it takes in: code, tables, golden cases."""
    models, data = project.config.models.values(), project.config.data.values()
    named = {file.partition(":")[0] for file in [*(each.model for each in models), *(each.golden for each in models), *(each.transform for each in data)]}
    inside = {name for name in named if name and (project.root / name).resolve().is_relative_to(project.root.resolve())}
    return sorted(name for name in {*inside, *sources(project.root)} if (project.root / name).is_file())


def _others(folder: Path) -> Iterator[Path]:
    """Yield what lies beside records, blocks and blobs: the key, and notes of what was taken in."""
    for top in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not (top.name in _LEFT_OUT or top.name.startswith((".", "palan."))):
            yield from (path for path in sorted([top, *top.rglob("*")]) if path.is_file() and not path.name.startswith("."))


def restore(file: Path | str, into: Path | str = "", *, clock: Clock = utcnow, tell: Tell = silent) -> dict[str, Any]:
    """Bring a backup back as the store of the project in `into` (by default the one around the current folder).

    A folder without a palan.toml gets the project's own files too. Every byte is proven before the store has its name; a store
    that is there is never touched, and a restore that was killed is as if it had not begun. Where palan.toml names a database
    or a bucket, these are filled, the records at last and at once; a database has to be empty, and one that a killed restore
    began to fill is not.
    """
    source = Path(file).absolute()
    root = Path(into).absolute() if into else find_root()
    own = root / FILE
    address, bucket = _addresses(own.read_bytes() if own.is_file() else _toml(source), root)
    store = folder_of(address, root)
    if store.exists():
        raise Conflict(f"there is a store already: {store}", f"mv {store} {store}.old   (or: palan restore {file} --into FOLDER)")
    server = open_store(address, root, bucket) if "://" in address else None
    if server is not None:
        _refuse_full(server, address, file)  # before the work of unpacking
    try:
        with _staged(store) as staging:
            manifest = _unpack(source, staging, tell)
            findings = _verified(staging / STORE, store, manifest, clock, tell)
            if server is not None or bucket:
                tell(f"filling {' and '.join([shown(address)] * bool(server) + [bucket] * bool(bucket))}")
                _fill(server or open_store(str(staging / STORE), staging, bucket), staging / STORE)
            if not own.is_file():
                _settle(staging / PROJECT, root)
    except (tarfile.TarError, EOFError) as error:
        raise _no_backup(source, str(error)) from error
    except OSError as error:
        raise PalanError(f"{error.filename or store} cannot be read or written: {error.strerror or error}", f"check space and rights: df {store.parent}") from error
    return {
        "store": str(store) if server is None else shown(address),
        "project": manifest.project,
        "time": stamp(manifest.time),
        "files": len(manifest.files),
        "bytes": sum(size for size, _ in manifest.files.values()),
        "findings": findings,
        "next": f"palan --project {root} status",
    }


def _addresses(toml: bytes, root: Path) -> tuple[str, str]:
    """Return where a project keeps its store, and where its blobs if elsewhere."""
    try:
        project = tomllib.loads(toml.decode()).get("project", {})
        return os.environ.get("PALAN_STORE") or str(project.get("store", ".palan")), str(project.get("blobs", ""))
    except (ValueError, AttributeError) as error:
        raise PalanError(f"{root / FILE} is not TOML: {error}", "put that line right") from error


def _refuse_full(store: Store, address: str, file: Path | str) -> None:
    """Refuse a database that holds anything: a backup is brought back whole, and mixed with nothing."""
    full = [noun.__name__.lower() for noun in NOUNS if store.records.find(noun, limit=1)] or store.blocks.streams()
    if full:
        raise Conflict(
            f"the database {shown(address)} is not empty: it holds {full[0]}",
            f"give an empty one, or an empty schema; or, into one folder: PALAN_STORE=.palan palan restore {file} --into FOLDER",
        )


def _fill(store: Store, folder: Path) -> None:
    """Move what lies in a folder, and belongs elsewhere, to where it belongs; the records at last, all at once."""
    blobs, blocks = FileBlobs(folder / "blobs"), SegmentBlocks(folder / "blocks")
    if not isinstance(store.blobs, FileBlobs):
        for key in blobs.names():
            store.blobs.put(blobs.place(key))
        shutil.rmtree(blobs.root, ignore_errors=True)
    if isinstance(store.records, SQLiteRecords):
        store.records.close()
        return
    for stream in blocks.streams():
        if stream != STREAM:  # runs are logged, and read, on the machine that they ran on
            frames = blocks.scan(stream, damaged=_passed_over)
            while some := [frame.data for frame in islice(frames, BATCH)]:
                store.blocks.append(stream, some)
            shutil.rmtree(blocks.root / stream)
    source = SQLiteRecords(folder / "palan.db")
    try:
        with store.records.transaction(durable=True):
            _carry(source, store.records, _passed_over)
    finally:
        source.close()
    for path in folder.glob("palan.db*"):
        path.unlink()


def _passed_over(_damage: object) -> None:
    """Say nothing: the damage is among what was found when the backup was read through."""


@contextmanager
def _staged(store: Path) -> Iterator[Path]:
    """Give a folder whose part `store` becomes the store when all went well. What a killed restore left in it is removed."""
    staging = store.with_name(f".{store.name.lstrip('.')}.restoring")
    made = not store.parent.exists()
    staging.mkdir(parents=True, exist_ok=True)
    fd = os.open(staging, os.O_RDONLY)
    try:
        _alone(fd, staging, "restore")
        try:
            for left in staging.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield staging
            for folder in [path for path in staging.rglob("*") if path.is_dir()]:
                sync_folder(folder)
            (staging / STORE).rename(store)
            sync_folder(store.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            if made and not store.exists():
                with suppress(OSError):  # somebody put something there meanwhile
                    store.parent.rmdir()
    finally:
        os.close(fd)


def _settle(files: Path, root: Path) -> None:
    """Put the project's own files where none are; palan.toml at last: with it the folder is a project, and is left as it is."""
    for path in sorted((path for path in files.rglob("*") if path.is_file()), key=lambda path: path.name == FILE):
        place = root / path.relative_to(files)
        if not place.exists():
            write_atomically(place, path.read_bytes())


def _no_backup(source: Path, why: str) -> Corrupt:
    return Corrupt(f"{source} is no backup of palan's, or it was cut: {why}", "take another backup")


def _members(source: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield name, size and content of each file in a backup.

    Raises:
        Corrupt: it is no tar, it is cut, or it holds what no backup does.
    """
    try:
        with tarfile.open(source, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                if content is None or ".." in PurePosixPath(member.name).parts or member.name.startswith("/"):
                    raise _no_backup(source, f"it holds {member.name}")
                yield member.name, member.size, content
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {source}", "give the file that palan backup wrote") from error
    except (tarfile.TarError, EOFError) as error:
        raise _no_backup(source, str(error)) from error


def _toml(source: Path) -> bytes:
    name, _, content = next(_members(source), ("", 0, io.BytesIO()))
    if name != f"{PROJECT}/{FILE}":
        raise _no_backup(source, f"it does not begin with {PROJECT}/{FILE}")
    return content.read()


def _unpack(source: Path, staging: Path, tell: Tell) -> Manifest:
    """Lay the backup's store out, and prove every file of it by the manifest at its end."""
    tell(f"unpacking {source}")
    found: dict[str, tuple[int, str]] = {}
    for name, size, content in _members(source):
        if name == MANIFEST:
            try:
                manifest = msgspec.json.decode(content.read(), type=Manifest)
            except msgspec.DecodeError as error:
                raise Corrupt(f"{source} is damaged: its manifest cannot be read: {error}", "take another backup") from error
            wrong = sorted(each for each in {*manifest.files, *found} if manifest.files.get(each) != found.get(each))
            if wrong:
                raise Corrupt(f"{source} is damaged: {wrong[0]} should be {_said(manifest.files, wrong[0])}, and is {_said(found, wrong[0])}", "take another backup")
            return manifest
        if name in found or not name.startswith((f"{STORE}/", f"{PROJECT}/")):
            raise _no_backup(source, f"it holds {name}")
        found[name] = (size, _lay_down(content, staging / name))
    raise Corrupt(f"{source} was cut: its manifest is missing", "take another backup")


def _said(files: Mapping[str, tuple[int, str]], name: str) -> str:
    return f"{files[name][0]} bytes with digest {files[name][1]}" if name in files else "missing"


def _lay_down(content: IO[bytes], place: Path) -> str:
    """Write a file durably, readable by its owner alone where it is the key; return its digest."""
    read = _Hashed(content)
    place.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if place.name == "key" else 0o666), "wb") as out:
        while data := read.read(CHUNK):
            out.write(data)
        out.flush()
        os.fsync(out.fileno())
    return read.sha.hexdigest()


def _verified(staging: Path, store: Path, manifest: Manifest, clock: Clock, tell: Tell) -> list[dict[str, Any]]:
    """Read the store through where it lies: what was damaged when it was backed up is damaged now."""
    config = Config(manifest.project, str(staging), "", {}, {}, ())
    opened = open_store(str(staging), staging)
    try:
        found = verify(Project(staging, config, opened, clock, "restore", tell))["findings"]
    finally:
        opened.records.close()
    return [{**each, "what": each["what"].replace(str(staging), str(store))} for each in found]
