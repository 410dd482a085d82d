"""Records and blocks in a PostgreSQL database, written by many processes of many machines.

A commit is on the server's disk when it is acknowledged, at either level of durability: what a server that is killed had only
in memory would be lost with it. A connection that is lost is made again, for as long as a restart takes; what may be done
twice is done again, and what may not is refused with what is known of it.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from palan.core import stamp
from palan.errors import Busy, Conflict, Corrupt, MissingExtra, NotFound, PalanError
from palan.stores import sql
from palan.stores.contract import Batch, Blobs, Blocks, Frame, Lease, Position, Verified, refuse
from palan.stores.segments import (
    SEGMENT_BYTES,
    framed,
    frames_in,
    named,
    packed,
    past_damage,
    read_past_damage,
    unpacked,
)

try:
    import psycopg
    from psycopg import conninfo, errors
    from psycopg.pq import TransactionStatus
    from psycopg.types.numeric import Int8Dumper
except ImportError as error:
    raise MissingExtra("psycopg", "postgres", "a store on PostgreSQL") from error

if TYPE_CHECKING:
    pass

T = TypeVar("T")
Connection = psycopg.Connection[tuple[Any, ...]]

OLDEST = 130000
"""The oldest server that is taken, as it writes its own version."""
WAIT_SECONDS = 30.0
"""How long a write waits for another program's lock, and anything for a server that went away, before it says so."""
WINDOW = 4 << 20
"""How many bytes of a segment a scan holds in memory at a time."""
MOST_OPEN = 1000
"""How many segments a process remembers to go on with."""
MANY = 10_000
"""How many frames are read at once."""
STAY_SECONDS = 2.0
"""How often a process makes sure that others can see that it lives."""
MERGED = 1 << 20
"""The size of the rows that a compaction makes of small ones."""


_forked: weakref.WeakSet[Server | PostgresRecords | PostgresBlocks] = weakref.WeakSet()
"""All that a fork has to begin anew with: it shares the sockets of its parent, not the right to talk."""


def _begin_all() -> None:
    for each in list(_forked):
        each.begin()


os.register_at_fork(after_in_child=_begin_all)


class Server:
    """Connections to one database. Each is one thread's for as long as it needs it, and then waits for the next."""

    def __init__(self, address: str, *, may_begin: bool = True, wait: float = WAIT_SECONDS) -> None:
        """Connect, and bring the schema up to date.

        Raises:
            PalanError: that cannot be done: in at most three lines why, without the password.
            Corrupt: the database is empty, and `may_begin` says that it should not be.
        """
        try:
            given = conninfo.conninfo_to_dict(address)
        except psycopg.ProgrammingError:  # its text would show the address, with a password that stands in it
            raise PalanError("the store's address cannot be read", 'write it as "postgresql://user@host:5432/database"') from None
        self._conninfo = conninfo.make_conninfo("", **{"connect_timeout": 10, "keepalives_idle": 10, "tcp_user_timeout": 30_000, "application_name": "palan", **given})
        host, port = given.get("host") or os.environ.get("PGHOST", "localhost"), given.get("port") or os.environ.get("PGPORT", "5432")
        database = given.get("dbname") or os.environ.get("PGDATABASE") or given.get("user") or os.environ.get("PGUSER", "postgres")
        self.name = f"{host}{'' if port == '5432' else f':{port}'}/{database}"
        self._at = f"-h {host} -p {port}"
        self._psql = f"psql {self._at} {database}"
        self._database, self._user = str(database), str(given.get("user") or os.environ.get("PGUSER", ""))
        self._wait = wait
        self._away = 0.0  # since when it does not answer
        self.begin()
        self.give(self.connect())  # a server that was never there is not waited for
        self._migrate(may_begin)

    def begin(self) -> None:
        """Begin with no connections, as a process that was just made."""
        _forked.add(self)
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._finish = weakref.finalize(self, _close_all, self._idle, os.getpid())

    def run(self, work: Callable[[Connection], T], *, keep: bool = False) -> T:
        """Do the work on a connection; once more, on another one, if the server went away: only for what may be done twice.

        With `keep` the connection stays the caller's, to be given back.
        """

        def once() -> T:
            db = self._take()
            try:
                with self.explained(db):
                    made = work(db)
            except BaseException:
                self.give(db)
                raise
            if not keep:
                self.give(db)
            return made

        return self.persist(once)

    def persist(self, work: Callable[[], T]) -> T:
        """Do the work, again and again while the server is away (which is what Busy says here), but not for ever.

        Once it has been away for so long, nobody else waits for it either, until it has answered again.
        """
        since, pause = 0.0, 0.02
        while True:
            try:
                made = work()
                self._away = 0.0
                return made
            except Busy:
                now = time.monotonic()
                self._away = self._away or now
                since = since or self._away
                if now >= since + self._wait:
                    raise
                self._forget()  # the others are lost as well
                time.sleep(pause)
                pause = min(2 * pause, 0.5)

    def connect(self) -> Connection:
        """Open one more connection, which is the caller's."""
        with self._refused():
            db = psycopg.connect(self._conninfo, autocommit=True)
        try:
            if db.info.server_version < OLDEST:
                raise PalanError(f"the store at {self.name} is on PostgreSQL {db.info.server_version // 10000}, which is too old", f"move it to a server of version {OLDEST // 10000} or newer")
            db.adapters.register_dumper(int, Int8Dumper)  # one type for all numbers, so one prepared statement
            with self.explained(db):
                db.execute(sql.bound(sql.SESSION), prepare=False)
                db.execute(sql.bound(sql.LOCK_TIMEOUT), {"wait": f"{self._wait:g}s"})
        except BaseException:
            db.close()
            raise
        return db

    def _take(self) -> Connection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self.connect()

    def give(self, db: Connection) -> None:
        """Take a connection back; what it had begun is undone."""
        with suppress(psycopg.Error):
            if db.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                db.execute(sql.bound(sql.ROLLBACK), prepare=False)
            if db.info.transaction_status == TransactionStatus.IDLE and not self._closed:
                with self._lock:
                    self._idle.append(db)
                return
        db.close()

    @property
    def _closed(self) -> bool:
        return not self._finish.alive

    def _forget(self) -> None:
        with self._lock:
            lost, self._idle[:] = list(self._idle), []
        for db in lost:
            db.close()

    def close(self) -> None:
        self._finish()

    def _migrate(self, may_begin: bool) -> None:
        def known(db: Connection) -> int:
            return int(_one(db, sql.NEWEST_MIGRATION)) if _one(db, sql.IS_MIGRATED) else 0

        def migrate(db: Connection) -> None:
            migrations = sql.migrations()
            newest = max(migrations)
            if (found := known(db)) == newest:
                return
            encoding, schema = db.execute(sql.bound(sql.SERVER)).fetchall()[0]
            if encoding != "UTF8":
                raise PalanError(f"the database {self.name} keeps its text as {encoding}", f"make another one: createdb {self._at} --encoding UTF8 --template template0 palan")
            if schema is None:
                raise PalanError(f"the database {self.name} has no schema of the name that the address asks for", "create it: create schema ...")
            db.execute(sql.bound(sql.BEGIN_ALONE), prepare=False)
            found = known(db)  # another process may have migrated while this one waited
            if found > newest:
                raise PalanError(f"the store at {self.name} was written by a newer palan (schema {found}, this one knows {newest})", "pip install --upgrade palan")
            if not found:
                if not may_begin:
                    raise Corrupt(f"the database {self.name} is empty, with no ledger, but a key, blobs or records of this project lie in .palan", "restore it from a backup; or, to begin anew: mv .palan .palan.old")
                db.execute(sql.bound(sql.MIGRATIONS))
            for number in range(found + 1, newest + 1):
                db.execute(sql.script(migrations[number], "postgres").encode(), prepare=False)
                db.execute(sql.bound(sql.MIGRATED), {"number": number})
            db.execute(sql.bound(sql.COMMIT), prepare=False)

        self.run(migrate)

    # --- errors ---

    @contextmanager
    def _refused(self) -> Iterator[None]:
        """Turn a refused connection into an error that says by whom, and what to do."""
        try:
            yield
        except psycopg.OperationalError as error:
            text = str(error).strip()
            told = text.partition("FATAL:")[2].strip().splitlines()
            if "no password supplied" in text or "password authentication failed" in text:
                raise PalanError(f"the store at {self.name} refused the password of {self._user or 'its user'}", "export PGPASSWORD=..., or write it into ~/.pgpass") from error
            if not told or "starting up" in text or "shutting down" in text or "recovery" in text or "too many" in text or "terminating connection" in text:
                why = told[0] if told else text.splitlines()[0].rpartition(" failed: ")[2]
                raise Busy(f"the store at {self.name} does not answer: {why}", f"pg_isready {self._at}") from error
            if f'database "{self._database}" does not exist' in text:
                raise PalanError(f"there is no database {self._database} for the store at {self.name}", f"createdb {self._at} --encoding UTF8 --template template0 {self._database}") from error
            raise PalanError(f"the store at {self.name} refused the connection: {told[0]}", f"try it by hand: {self._psql}") from error

    @contextmanager
    def explained(self, db: Connection) -> Iterator[None]:
        """Turn the database's own errors into ones that say where, and what to do. A statement that is wrong stays one."""
        try:
            yield
        except psycopg.Error as error:
            if db.closed or isinstance(error, _LAST_WORDS):
                db.close()
                raise Busy(f"the store at {self.name} does not answer", f"pg_isready {self._at}") from error
            if isinstance(error, psycopg.ProgrammingError | psycopg.IntegrityError) and not isinstance(error, errors.InsufficientPrivilege):
                raise
            raise self._told(db, error) from error

    def _told(self, db: Connection, error: psycopg.Error) -> PalanError:
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, errors.LockNotAvailable | errors.DeadlockDetected):
            return Conflict(f"another program has locked the store at {self.name}{'' if isinstance(error, errors.DeadlockDetected) else ' for too long'}", f'find it with: {self._psql} -c "table pg_stat_activity", then try again')
        if isinstance(error, errors.InsufficientPrivilege | errors.ReadOnlySqlTransaction):
            return PalanError(f"the store at {self.name} cannot be written as {db.info.user}: {what}", f"let its owner grant that: {self._psql}")
        if isinstance(error, errors.DiskFull):
            return PalanError(f"no space left on the server of the store at {self.name}", "free some space there, then repeat the command")
        if isinstance(error, errors.DataCorrupted | errors.IndexCorrupted):
            return Corrupt(f"the store at {self.name} is damaged: {what}", "restore it from a backup")
        if isinstance(error, psycopg.DataError):
            return PalanError(f"the store at {self.name} cannot keep a value: {what}", "PostgreSQL takes no zero bytes in text, and no whole number beyond 64 bits")
        return PalanError(f"the store at {self.name} failed: {what}", "palan --debug status")


_LAST_WORDS = (errors.AdminShutdown, errors.CrashShutdown, errors.CannotConnectNow, errors.IdleInTransactionSessionTimeout, errors.IdleSessionTimeout)
"""What a server says before it ends a connection."""


def _one(db: Connection, statement: str) -> Any:
    return db.execute(sql.bound(statement)).fetchall()[0][0]


def _close_all(connections: list[Connection], pid: int) -> None:
    """Say good-bye to the server; a fork has no right to."""
    while connections and pid == os.getpid():
        connections.pop().close()


class PostgresRecords(sql.SqlRecords):
    """A transaction holds the store's one lock, so it is alone; a write outside of any shares that lock with its like."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.begin()

    def begin(self) -> None:
        """Begin outside of any transaction."""
        _forked.add(self)
        self.kept_in = self._server.name
        self._mine = threading.local()  # the connection of the transaction that this thread is in

    packed = "json_object_agg({key}, {field} order by {key})::text"
    lock = "for update skip locked"

    def put(self, *nouns: object) -> None:
        def put(db: Connection) -> None:
            for kind, some in groupby(nouns, type):
                of = sql.table(kind)
                rows = [of.row(each) for each in some]
                if len(rows) == 1:
                    db.execute(sql.bound(of.replace), rows[0])
                else:
                    db.cursor().executemany(sql.bound(of.replace), rows)

        if nouns:
            self._do(put)

    def remove(self, noun: type, key: Sequence[str | int]) -> None:
        self._write(sql.table(noun).delete, list(key))

    def add(self, noun: object, *, under: Lease | None = None) -> bool:
        of = sql.table(type(noun))
        if under is not None:  # who takes the lease over waits for the end of this, or is waited for
            return self._changed(of.insert_held.format(lock=" for share"), noun, under.name, under.holder, under.token)
        return self._changed(of.insert_new, noun)

    def verify(self) -> list[str]:
        """As the contract says. Blocks are left to their own verify, which reads them anyway."""
        found = [f"the index {name} of the store at {self._server.name} is not valid" for (name,) in self._read(sql.INDEXES, ())]
        for (table,) in self._read(sql.TABLES, ()):
            try:
                self._read(f'select count(whole::text) from "{table}" whole', ())  # noqa: S608  # its checksums are looked at as it is read
            except Corrupt as error:
                found.append(f"{table}: {error.what}")
        return found

    def swap(self, noun: object, *, epoch: int) -> bool:
        of = sql.table(type(noun))
        return self._changed(of.swap, noun, of.row(noun)[0], epoch) if epoch else self._changed(of.insert_new, noun)

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[None]:
        if self._held() is not None:
            yield
            return
        db = self._server.run(_begin, keep=True)
        self._mine.db = db
        try:
            yield
            if db.info.transaction_status == TransactionStatus.INERROR:
                raise PalanError(f"a statement of the transaction failed, so the store at {self._server.name} recorded nothing of it", "palan --debug status")
            with self._within("while it recorded: whether it did is not known", "look with palan log, then repeat the command"), self._server.explained(db):
                db.execute(sql.bound(sql.COMMIT), prepare=False)
        finally:
            self._mine.db = None
            self._server.give(db)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read the records as of one moment, while others go on writing them. It ends with the connection."""
        db = self._server.run(_freeze, keep=True)
        self._mine.db = db
        try:
            yield
        finally:
            self._mine.db = None
            self._server.give(db)

    def lease(self, name: str, holder: str, ttl: timedelta, *, now: datetime) -> Lease | None:
        expires = now + ttl
        rows = self._write(sql.TAKE_LEASE, {"name": name, "holder": holder, "expires": stamp(expires), "now": stamp(now)})
        return Lease(name, holder, rows[0][0], expires) if rows else None

    def free(self, lease: Lease) -> None:
        self._write(sql.FREE_LEASE, {"name": lease.name, "token": lease.token})

    def close(self) -> None:
        self._server.close()

    def _held(self) -> Connection | None:
        return getattr(self._mine, "db", None)

    @contextmanager
    def _within(self, when: str = "within a transaction: nothing of it was recorded", hint: str = "repeat the command") -> Iterator[None]:
        try:
            yield
        except Busy as error:
            raise Busy(f"the store at {self._server.name} went away {when}", hint) from error

    def _read(self, statement: str, values: Any) -> list[tuple[Any, ...]]:
        def once(db: Connection) -> list[tuple[Any, ...]]:
            return db.execute(sql.bound(statement), values).fetchall()

        held = self._held()
        if held is None:
            return self._server.run(once)
        with self._within(), self._server.explained(held):
            return once(held)

    def _changed(self, statement: str, noun: object, *more: int | str) -> bool:
        """Write the noun where that is still right, and tell whether it was."""
        of = sql.table(type(noun))
        row = of.row(noun)
        values = [*row, *more] if more else row
        count, tries = self._do(lambda db: db.execute(sql.bound(statement), values).rowcount)
        # When the first try lost its answer, the row that is in the way may be the one that it wrote.
        return count == 1 or (tries > 1 and self.get(type(noun), row[0]) == noun)

    def _write(self, statement: str, values: Any) -> Sequence[tuple[Any, ...]]:
        def write(db: Connection) -> Sequence[tuple[Any, ...]]:
            cursor = db.execute(sql.bound(statement), values)
            return cursor.fetchall() if cursor.description else ()

        return self._do(write)[0]

    def _do(self, work: Callable[[Connection], T]) -> tuple[T, int]:
        """Write in the transaction that this thread is in, or in one beside others; return also how often it had to be tried."""
        held, tries = self._held(), 0

        def beside(db: Connection) -> T:
            nonlocal tries
            tries += 1
            db.execute(sql.bound(sql.BEGIN_BESIDE), prepare=False)
            made = work(db)
            db.execute(sql.bound(sql.COMMIT), prepare=False)
            return made

        if held is None:
            return self._server.run(beside), tries
        with self._within(), self._server.explained(held):
            return work(held), 1


def _freeze(db: Connection) -> Connection:
    db.execute(sql.bound(sql.BEGIN_SNAPSHOT), prepare=False)
    return db


def _begin(db: Connection) -> Connection:
    db.execute(sql.bound(sql.BEGIN_ALONE), prepare=False)
    return db


class PostgresBlocks(Blocks):
    """One row for each append, its frames as a segment file holds them; a segment is known by the numbers of its writer and its own.

    An append names the offset at which it begins, so the one that is sent again after a lost answer is not written twice.
    A process is a writer, and holds a lock that says so; a compaction that takes its segment all the same makes it begin another.
    """

    def __init__(self, server: Server, blobs: Blobs | None = None) -> None:
        """Keep blocks on a server; with `blobs`, which every machine reads, compacted segments are shipped there."""
        self._server = server
        self._shipped_to = blobs
        self._fetched: tuple[str, dict[str, list[Frame]]] = "", {}  # the blob that was read last
        self.begin()

    def begin(self) -> None:
        """Begin with nothing written yet."""
        _forked.add(self)
        self._lock = threading.Lock()
        self._writer = 0
        self._db: list[Connection] = []  # one at most, of this process: a scan never waits for an append
        self._open: dict[str, tuple[int, int]] = {}  # the number and the size of the segment of each stream, the last used last
        weakref.finalize(self, _close_all, self._db, os.getpid())

    def append(self, stream: str, frames: Sequence[bytes], *, durable: bool = False) -> int:
        named(stream)
        if not all(frames):
            raise ValueError("a frame holds at least one byte")
        whole = [framed(data) for data in frames]
        with self._lock:
            try:
                return self._server.persist(lambda: self._append(stream, whole))
            except BaseException:
                self._open.pop(stream, None)  # it may have grown all the same: the next append must not take that for its own
                raise

    def _append(self, stream: str, frames: Sequence[bytes]) -> int:
        db = self._connected()
        with self._server.explained(db):
            while True:
                id, size = self._segment(db, stream)
                end = size + sum(map(len, frames))
                if _grown(db, id, size, frames) or _size(db, id) == end:
                    self._open[stream] = id, end
                    return end
                del self._open[stream]  # a compaction has taken it: nothing was appended

    def _connected(self) -> Connection:
        """Return the connection that appends, with the lock that says that this writer lives."""
        if self._db and not self._db[0].closed:
            return self._db[0]
        self._db[:] = [self._server.connect()]
        with self._server.explained(self._db[0]):
            if not self._writer:
                self._writer = int(_one(self._db[0], sql.NEW_WRITER))
                threading.Thread(target=_stay, args=(weakref.ref(self), self._writer), name="palan-writer", daemon=True).start()
            self._db[0].execute(sql.bound(sql.LOCK_WRITER), {"writer": self._writer})
        return self._db[0]

    def stay(self, writer: int) -> bool:
        """Come back to a server that was restarted, though there is nothing to append: others ask whether this writer lives."""
        with self._lock:
            if self._writer != writer:
                return False
            with suppress(PalanError):  # tried again in a moment
                db = self._connected()
                with self._server.explained(db):
                    db.execute(b"select")
            return True

    def _segment(self, db: Connection, stream: str) -> tuple[int, int]:
        """Return this writer's segment of the stream, and its size."""
        known = self._open.pop(stream, None)
        if known is None or known[1] > SEGMENT_BYTES:
            if len(self._open) >= MOST_OPEN:
                del self._open[next(iter(self._open))]
            known = db.execute(sql.bound(sql.OPEN_SEGMENT), {"writer": self._writer, "stream": stream}).fetchall()[0][0], 0
        self._open[stream] = known
        return known

    def scan(self, stream: str, after: Position | None = None, damaged: Callable[[Corrupt], None] = refuse) -> Iterator[Frame]:
        after = after or {}
        for writer, id, size, blob in self._rows(sql.SEGMENTS, {"stream": named(stream)}):
            path = self._path(stream, writer, id)
            yield from self._frames(path, id, after.get(path.stem, 0), size, blob, damaged)

    def _frames(self, path: Path, id: int, at: int, size: int, blob: str, damaged: Callable[[Corrupt], None]) -> Iterator[Frame]:
        """Yield the frames of a segment that end after `at`."""
        if blob:
            yield from self._fetch(path, at, size, blob, damaged)
            return
        for begins, ends, data in self._blocks(id, at, size):
            if begins > at:
                damaged(Corrupt(_gap(path, at, begins), "restore the store from a backup"))
            for frame in past_damage(path, begins, data, damaged):
                begins = frame.end
                if frame.end > at:
                    yield frame
            if begins != ends:
                damaged(Corrupt(_gap(path, begins, ends), "restore the store from a backup"))
            at = ends
        if at < size:
            damaged(Corrupt(_gap(path, at, size), "restore the store from a backup"))

    def _fetch(self, path: Path, at: int, size: int, blob: str, damaged: Callable[[Corrupt], None]) -> Iterator[Frame]:
        """Yield the frames of a segment that was shipped."""
        if at >= size:
            return
        try:
            frames = self._read_blob(blob).get(path.stem, [])
        except (Corrupt, NotFound) as error:
            damaged(Corrupt(f"{path} cannot be read: {error.what}", error.hint))
            return
        yield from (frame for frame in frames if frame.end > at)
        if (end := frames[-1].end if frames else 0) < size:
            damaged(Corrupt(_gap(path, end, size), "restore the store from a backup"))

    def _read_blob(self, blob: str) -> dict[str, list[Frame]]:
        if self._fetched[0] != blob:
            if self._shipped_to is None:
                raise NotFound(f"blob {blob} is where the blobs of the project are", 'in palan.toml: [project] blobs = "s3://bucket/prefix"')
            found: dict[str, list[Frame]] = {}
            for frame in unpacked(self._shipped_to.get(blob)):
                found.setdefault(frame.segment, []).append(frame)
            self._fetched = blob, found
        return self._fetched[1]

    def _blocks(self, id: int, at: int, size: int) -> Iterator[tuple[int, int, bytes]]:
        """Yield the rows of a segment that end after `at`, in order, a few in memory at a time."""
        while at < size:
            rows = self._rows(sql.BLOCKS, {"id": id, "after": at, "window": WINDOW})
            yield from rows
            at = rows[-1][1] if rows else at + WINDOW

    def sizes(self, stream: str) -> dict[str, int]:
        return {self._path(stream, writer, id).stem: size for writer, id, size, _ in self._rows(sql.SEGMENTS, {"stream": named(stream)})}

    def read(self, stream: str, segment: str, start: int = 0, damaged: Callable[[Corrupt], None] = refuse) -> Iterator[Batch]:
        from palan.stores.tables import stacked

        path, id = self._path(stream, *segment.split("_")), int(segment.partition("_")[2])
        for size, blob in self._rows(sql.SEGMENT, {"id": id}):
            frames = self._frames(path, id, start, size, blob, damaged)
            while some := [(frame.end, frame.data) for frame in islice(frames, MANY)]:
                yield stacked(segment, some[-1][0], some)

    def streams(self) -> list[str]:
        return [str(stream) for (stream,) in self._rows(sql.STREAMS, {})]

    def writers(self, stream: str) -> dict[str, bool]:
        return {str(writer): bool(alive) for writer, alive in self._rows(sql.WRITERS, {"stream": named(stream)})}

    def blobs(self) -> set[str]:
        return {str(blob) for (blob,) in self._rows(sql.SHIPPED, {})}

    def lost(self) -> list[str]:
        rows = self._rows(sql.SHORT_SEGMENTS, {})
        gone = [blob for blob in sorted(self.blobs()) if self._shipped_to is None or not self._shipped_to.has(blob)]
        return [
            *(f"{self._path(*place)} was cut: {size} bytes were appended, and {found} are there" for *place, size, found in rows),
            *(f"{self._server.name}: blob {blob} is gone, which compacted segments lie in" for blob in gone),
        ]

    def verify(self) -> Iterator[Verified]:
        for stream, writer, id, size, blob in self._rows(sql.ALL_SEGMENTS, {}):
            path, whole, last = self._path(stream, writer, id), bytearray(0 if blob else size), 0
            if blob:
                damage: list[str] = []
                frames = list(self._fetch(path, 0, size, blob, _noting(damage)))
                yield Verified(str(path), len(frames), frames[-1].end if frames else 0, tuple(damage))
                continue
            try:
                for begins, ends, data in self._blocks(id, 0, size):
                    whole[begins:ends] = data.ljust(ends - begins, b"\0")[: ends - begins]
                    last = begins + len(data)
            except Corrupt as error:  # pages of the table, and nobody knows which rows were on them
                yield Verified(str(path), 0, 0, (error.what,))
                continue
            found = read_past_damage(path, bytes(whole[:last]))
            missing = (_gap(path, last, size),) if last < size else ()
            yield Verified(found.name, found.frames, last, (*found.damage, *missing))

    def compact(self, stream: str, only: Collection[str] | None = None) -> int:
        def compact(db: Connection) -> int:
            moved: list[Frame] = []
            ids = []
            taken = 0
            with db.transaction():
                for writer, id, size in db.execute(sql.bound(sql.CLOSED_SEGMENTS), {"stream": stream}).fetchall():
                    path = self._path(stream, writer, id)
                    if taken > SEGMENT_BYTES or not (only is None or path.stem in only):
                        continue
                    if not size:
                        db.execute(sql.bound(sql.DROP_SEGMENT), {"id": id})
                        continue
                    frames = _whole(db, path, id, size)
                    moved += frames
                    taken += size
                    db.execute(sql.bound(sql.CLEAR_BLOCKS), {"id": id})
                    if self._shipped_to is None:
                        _copy(db, id, 0, [framed(frame.data) for frame in frames])
                        db.execute(sql.bound(sql.SEAL_SEGMENT), {"id": id})
                    else:
                        ids.append(id)
                if ids and self._shipped_to is not None:
                    blob = self._shipped_to.put(packed(moved))  # before what names it: a loose blob is no harm
                    for id in ids:
                        db.execute(sql.bound(sql.SHIP_SEGMENT), {"id": id, "blob": blob})
            return len(moved)

        named(stream)
        return self._server.run(compact)

    def close(self) -> None:
        """End as a writer; the end of the process does so as well."""
        with self._lock:
            for db in self._db:
                with suppress(psycopg.Error):  # gone already, and its lock with it
                    db.execute(sql.bound(sql.FREE_WRITER))
            _close_all(self._db, os.getpid())
            self._open.clear()
            self._writer = 0

    def _rows(self, statement: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        return self._server.run(lambda db: db.cursor(binary=True).execute(sql.bound(statement), values).fetchall())

    def _path(self, stream: str, writer: int | str, id: int | str) -> Path:
        """Name a segment as a file of the server's would be."""
        return Path(self._server.name, stream, f"{writer}_{id}")


def _grown(db: Connection, id: int, begins: int, frames: Sequence[bytes]) -> bool:
    """Append frames to a segment, if it is as long as the writer takes it for: a few as one row, many by COPY."""
    ends = begins + sum(map(len, frames))
    if ends - begins <= MERGED:
        return db.execute(sql.bound(sql.APPEND), {"id": id, "begins": begins, "ends": ends, "frames": b"".join(frames)}).rowcount == 1
    with db.transaction():
        grown = db.execute(sql.bound(sql.GROW), {"id": id, "begins": begins, "ends": ends}).rowcount == 1
        if grown:
            _copy(db, id, begins, frames)
    return grown


def _copy(db: Connection, id: int, begins: int, frames: Sequence[bytes]) -> None:
    """Write frames as rows of about a megabyte, which PostgreSQL compresses."""
    with db.cursor() as cursor, cursor.copy(sql.bound(sql.COPY_BLOCKS)) as copy:
        copy.set_types(["int4", "int8", "int8", "bytea"])
        row: list[bytes] = []
        size = 0
        for place, frame in enumerate(frames):
            row.append(frame)
            size += len(frame)
            if size >= MERGED or place == len(frames) - 1:
                copy.write_row((id, begins, begins + size, b"".join(row)))
                row, begins, size = [], begins + size, 0


def _whole(db: Connection, path: Path, id: int, size: int) -> list[Frame]:
    """Return all frames of a segment; one that is damaged is not compacted."""
    rows = db.execute(sql.bound(sql.BLOCKS), {"id": id, "after": 0, "window": size}).fetchall()
    frames = list(frames_in(path, 0, b"".join(data for _, _, data in rows)))
    if not frames or frames[-1].end != size:
        raise Corrupt(_gap(path, frames[-1].end if frames else 0, size), "restore the store from a backup")
    return frames


def _stay(of: weakref.ref[PostgresBlocks], writer: int) -> None:
    """Let a writer look after its lock for as long as it is there."""
    while (blocks := of()) is not None and blocks.stay(writer):
        del blocks  # it may go meanwhile
        time.sleep(STAY_SECONDS)


def _size(db: Connection, id: int) -> int:
    rows = db.execute(sql.bound(sql.SEGMENT_SIZE), {"id": id}).fetchall()
    return int(rows[0][0]) if rows else -1


def _noting(damage: list[str]) -> Callable[[Corrupt], None]:
    return lambda error: damage.append(error.what)


def _gap(path: Path, begin: int, end: int) -> str:
    return f"{path} is damaged at bytes {begin} to {end}: they are gone"
