"""Records in one SQLite file (WAL), written by many processes of one machine."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from palan.core import stamp
from palan.errors import Conflict, Corrupt, PalanError
from palan.stores import sql
from palan.stores.contract import Lease

if TYPE_CHECKING:
    pass

T = TypeVar("T")

WAIT_SECONDS = 30.0
"""How long a write waits for another program's lock before it says so."""
LOG_BYTES = 1000 * (4096 + 24)
"""How long the log of commits may get before it is taken into the database: 1,000 pages, each with its header."""


class SQLiteRecords(sql.SqlRecords):
    """One connection, shared by this process's threads under a lock.

    Commits survive any death of the process; `transaction(durable=True)` also survives a loss of power.
    """

    def __init__(self, path: Path, *, wait: float = WAIT_SECONDS) -> None:
        self.path = path
        self._log = path.with_name(f"{path.name}-wal")
        self._lock = threading.RLock()
        self._depth = 0
        self._durable = False
        self._sync = False  # a durable transaction within one that is not: its commit has to be taken to the disk
        self._explained = _Explained(path)
        refuse_network(path.parent)
        try:
            with self._explained:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._db = self._explained.db = _connect(path, wait)
                self._db.execute("pragma journal_mode = wal")
                self._db.execute("pragma wal_autocheckpoint = 0")  # see _shorten_log
                self._db.execute(f"pragma journal_size_limit = {LOG_BYTES:d}")  # what it has grown beyond that, it loses when it begins anew
                self._db.execute("pragma synchronous = normal")
                self._db.execute("pragma cache_size = -65536")  # 64 MB: what is searched often is read once
                self._db.execute("pragma case_sensitive_like = on")
                self._migrate()
        except PalanError as error:
            if type(error) is not PalanError:  # damaged, or locked: that is no reason to read past it
                raise
            if hasattr(self, "_db"):
                self._db.close()
            self._db = self._only_to_read(error, wait)
            self._explained.refused = error

    def _only_to_read(self, why: PalanError, wait: float) -> sqlite3.Connection:
        """Open what is there for the verbs that read: nothing more than that works on a full disk or one that may not be written."""
        try:
            if not self.path.exists():
                db = _connect(":memory:", wait)
                for statement in _schema(sql.migrations()):
                    db.execute(statement)
                db.execute(f"pragma user_version = {max(sql.migrations()):d}")
            else:
                db = self._as_it_stands(wait)
            db.execute("pragma query_only = on")
            if int(db.execute("pragma user_version").fetchone()[0]) == max(sql.migrations()):
                return db
        except (OSError, sqlite3.DatabaseError) as error:
            raise why from error
        raise why

    def _as_it_stands(self, wait: float) -> sqlite3.Connection:
        address = self.path.absolute().as_uri()
        if not self._log.exists() or not self._log.stat().st_size:
            return _connect(f"{address}?immutable=1", wait)  # without a log of commits nobody writes: the file needs no lock
        db = _connect(f"{address}?mode=ro", wait)
        try:
            db.execute("pragma user_version")
            return db
        except sqlite3.OperationalError:
            db.close()
        # The index of the log has no room: who has the store alone keeps it in memory, long enough to take a copy.
        db, copy = _connect(f"{address}?mode=rw", wait), _connect(":memory:", wait)
        try:
            db.execute("pragma locking_mode = exclusive")
            db.execute("select count(*) from sqlite_master").fetchone()  # takes the lock, or says why not: a backup would wait for ever
            db.backup(copy)
        finally:
            db.close()
        return copy

    def _migrate(self) -> None:
        migrations = sql.migrations()
        newest = max(migrations)
        if self._known() == newest:
            return
        with self.transaction(durable=True):
            known = self._known()  # another process may have migrated while this one waited
            if known > newest:
                raise PalanError(
                    f"the store {self.path} was written by a newer palan (schema {known}, this one knows {newest})",
                    "pip install --upgrade palan",
                )
            if 0 < known < newest:
                self._backup(known)
            for statement in _schema(migrations, known):
                self._db.execute(statement)
            self._db.execute(f"pragma user_version = {newest:d}")

    def _known(self) -> int:
        return int(self._db.execute("pragma user_version").fetchone()[0])

    def _backup(self, known: int) -> None:
        reader = sqlite3.connect(self.path)  # this connection holds the lock to write
        try:
            _copy(reader, self.path.with_suffix(f".schema-{known}.backup"))
        finally:
            reader.close()

    def copy_to(self, target: Path) -> None:
        """Write all that is committed, as of one moment, to another file, while other processes go on."""
        with self._lock, _Explained(self.path):  # a disk that refuses the copy says nothing of the store
            _copy(self._db, target)

    def put(self, *nouns: object) -> None:
        with self.transaction() if len(nouns) > 1 else nullcontext():
            for kind, some in groupby(nouns, type):
                of = sql.table(kind)
                with self._lock:
                    with self._explained:
                        self._db.executemany(of.replace, [of.row(each) for each in some])
                    self._shorten_log()

    def _read(self, statement: str, values: Sequence[Any]) -> list[Any]:
        with self._lock, self._explained:
            return self._db.execute(statement, values).fetchall()

    def _write(self, statement: str, values: Any) -> list[Any]:
        with self._lock:
            rows = self._read(statement, values)
            self._shorten_log()
            return rows

    def add(self, noun: object, *, under: Lease | None = None) -> bool:
        of = sql.table(type(noun))
        if under is not None:
            return self._run(of.insert_held.format(lock=""), [*of.row(noun), under.name, under.holder, under.token]).rowcount == 1
        return self._run(of.insert_new, of.row(noun)).rowcount == 1

    def remove(self, noun: type, key: Sequence[str | int]) -> None:
        self._run(sql.table(noun).delete, list(key))

    def verify(self) -> list[str]:
        try:
            with self._lock, self._explained:
                found = [str(text) for (text,) in self._db.execute("pragma integrity_check")]
        except Corrupt as error:
            return [error.what]
        return [f"the store {self.path} is damaged: {each}" for text in found for each in text.splitlines() if text != "ok"]

    def swap(self, noun: object, *, epoch: int) -> bool:
        of = sql.table(type(noun))
        row = of.row(noun)
        if epoch == 0:
            return self._run(of.insert_new, row).rowcount == 1
        return self._run(of.swap, [*row, row[0], epoch]).rowcount == 1

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[None]:
        with self._lock:
            if self._depth:
                self._sync |= durable and not self._durable
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                return
            try:
                with self._explained:
                    if durable:
                        self._db.execute("pragma synchronous = full")
                    self._db.execute("begin immediate")
                self._depth, self._durable, self._sync = 1, durable, False
                yield
                with self._explained:
                    self._db.execute("commit")
                    if self._sync:
                        self._sync_log()
            finally:
                self._depth = 0
                if self._db.in_transaction:  # something was raised: a full disk may have ended it already
                    self._db.execute("rollback")
                if durable:
                    self._db.execute("pragma synchronous = normal")
            self._shorten_log()

    def _shorten_log(self) -> None:
        """Take the log of commits into the database when it is long.

        SQLite would do this by itself, and keep it to itself when the disk refuses to take the log: the next durable commit would
        sync the log again, be told that all is well, and stand behind commits that are gone. The commits before it are no worse
        for a refusal, so it is not raised here: but this process writes no more.
        """
        with suppress(OSError):  # there is no log
            if not self._depth and self._log.stat().st_size > LOG_BYTES:
                with suppress(PalanError), self._explained:
                    self._db.execute("pragma wal_checkpoint(passive)").fetchone()

    def _sync_log(self) -> None:
        """Take the commits to the disk, as `synchronous = full` would have done: within a transaction it cannot be set."""
        log = os.open(self._log, os.O_RDONLY)
        try:
            os.fsync(log)
        except OSError as error:
            self._explained.refuse(_refused(self.path, error.strerror or "fsync"))
            raise
        finally:
            os.close(log)

    def lease(self, name: str, holder: str, ttl: timedelta, *, now: datetime) -> Lease | None:
        expires = now + ttl
        values = {"name": name, "holder": holder, "expires": stamp(expires), "now": stamp(now)}
        with self._lock, self._explained:
            row = self._db.execute(sql.TAKE_LEASE, values).fetchone()
        return Lease(name, holder, row[0], expires) if row else None

    def free(self, lease: Lease) -> None:
        self._run(sql.FREE_LEASE, {"name": lease.name, "token": lease.token})

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _run(self, statement: str, values: Any) -> sqlite3.Cursor:
        with self._lock:
            with self._explained:
                cursor = self._db.execute(statement, values)
            self._shorten_log()
            return cursor


_FUSED = ("sshfs", "ceph", "glusterfs", "davfs", "rclone", "s3fs", "goofys", "mountpoint-s3", "gcsfuse", "blobfuse", "blobfuse2", "juicefs", "seaweedfs", "mfs", "smbnetfs")
NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "afs", "beegfs", "gpfs", "orangefs", "pvfs2", "coda", "ncpfs", "davfs",
    *(f"fuse.{name}" for name in _FUSED),
})
"""File systems that other machines may write too, or whose files are copies of what lies elsewhere."""


def mounted(mountinfo: str, folder: str) -> tuple[str, str]:
    """Return the type of the file system that a folder is on, and where that is mounted, as /proc/self/mountinfo tells."""
    found = ("", "")
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split(" ", 5)[4])
        inside = folder == place or folder.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(found[1]):  # of two at one place the later one covers the other
            found = after.partition(" ")[0], place
    return found


def refuse_network(folder: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> None:
    """Refuse a folder that other machines can write.

    The processes that write a store agree through memory that they share and through locks: on one machine both hold, between
    two the one is missing and the other is often pretended, and what was acknowledged would be written over.
    """
    real = Path(os.path.realpath(folder))
    try:
        there = next(place for place in (real, *real.parents) if place.exists())
        if os.major(there.stat().st_dev):
            return  # a disk of this machine: network file systems have no device
        kind, place = mounted(mountinfo.read_text(encoding="utf-8", errors="surrogateescape"), str(real))
    except OSError:  # no Linux, or it may not be read: whoever opens it says so
        return
    if kind in NETWORK:
        raise PalanError(
            f"the store {folder} is on a network file system ({kind}, mounted at {place}), where processes of several machines would write over one another's records",
            'in palan.toml: [project] store = "/a/folder/of/this/machine", or "postgresql://user@host/database"',
        )


def _copy(reader: sqlite3.Connection, target: Path) -> None:
    copy = sqlite3.connect(target)
    try:
        reader.backup(copy)
    finally:
        copy.close()


def _connect(address: Path | str, wait: float) -> sqlite3.Connection:
    return sqlite3.connect(address, timeout=wait, isolation_level=None, check_same_thread=False, uri=str(address).startswith("file:"))


def _schema(migrations: dict[int, Path], known: int = 0) -> Iterator[str]:
    """Yield the statements that bring a store from schema `known` to the newest."""
    for number in range(known + 1, max(migrations) + 1):
        yield from _statements(sql.script(migrations[number], "sqlite"))


def _statements(script: str) -> Iterator[str]:
    """Split a script into statements, so that they all run in one transaction (executescript would commit)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


_WRITES = {"SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_SHMMAP", "SQLITE_IOERR_SHMOPEN", "SQLITE_IOERR_TRUNCATE"}
"""What SQLite says when the system takes no more bytes: a full disk or quota, a limit on the size of files, or a fault of the disk."""


def _is_limited(path: Path) -> bool:
    """Tell whether there is no room, or a limit on the size of files."""
    import resource

    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize < 1 << 20 or resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY


def _refused(path: Path, why: str) -> PalanError:
    return PalanError(f"the disk refused what was written to the store {path} ({why})", "put the disk right, then start palan again")


def _no_space(path: Path, name: str) -> PalanError:
    return PalanError(f"no space left for the store {path} ({name})", f"free some space (df {path.parent}) or lift the limit on files (ulimit -f), then repeat the command")


class _Explained:
    """Turns the database's own errors into ones that say where, and what to do. Entered at every statement, so it is no generator."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db: sqlite3.Connection | None = None
        self.refused: PalanError | None = None  # why this store can only be read, at all or from now on

    def refuse(self, why: PalanError) -> None:
        """Let nothing be written any more. A failed fsync is never retried: what the system dropped would count as written.

        When the last connection is closed SQLite does sync the log again. Nothing is acknowledged for that: it then reads what it
        takes into the database, and syncs that.
        """
        self.refused = why
        if self.db is not None:
            self.db.execute("pragma query_only = on")

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            return
        told = _told(self.path, error)
        if told is not None and getattr(error, "sqlite_errorname", "") == "SQLITE_IOERR_FSYNC":
            self.refuse(told)
        if told is not None:
            raise (self.refused if self.refused and type(told) is PalanError else told) from error


def _told(path: Path, error: BaseException) -> PalanError | None:
    """Return what to say of an error of the database, or of the system; None where it says enough itself."""
    if isinstance(error, PermissionError):
        return PalanError(f"the folder {path.parent} cannot be written", f"chmod u+rwx {path.parent}")
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return _no_space(path, error.strerror or "no space")
        if error.errno == errno.EROFS:
            return PalanError(f"the store {path} cannot be written: its disk is read-only", f"mount -o remount,rw, or copy the project elsewhere: df {path.parent.parent}")
        return PalanError(f"the store {path} cannot be opened: {error.strerror}", "check the disk and the path")
    if isinstance(error, sqlite3.OperationalError):
        text = str(error)
        if "locked" in text or "busy" in text:
            return Conflict(f"another program has locked {path} for too long", f"find it with: fuser {path}, then try again")
        if "readonly" in text or "unable to open" in text:
            return PalanError(f"the store {path} cannot be written", f"chmod -R u+rwX {path.parent}")
        name = str(getattr(error, "sqlite_errorname", ""))
        if "full" in text or (name in _WRITES and _is_limited(path)):
            return _no_space(path, name)
        if name == "SQLITE_IOERR_FSYNC":
            return _refused(path, name)
        if name.startswith("SQLITE_IOERR"):
            return PalanError(f"the disk refused to read or write the store {path} ({name})", f"df {path.parent}; dmesg: put the disk right, then repeat the command")
        return PalanError(f"the store {path} failed: {text}", "palan --debug status")
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
        return Corrupt(f"the store {path} is damaged: {error}", "restore it from a backup")
    return None
