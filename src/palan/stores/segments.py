"""Blocks as framed segment files: length, CRC-32 of the data, CRC-32 of these two, data; one file per writing process and stream.

A frame is in the kernel when `append` returns, so no death of the process loses it; a background thread takes what was
written to the disk a few milliseconds later, or `durable=True` waits for that. Readers never lock.

Beside a segment that is closed stands an empty file `<segment>.<bytes>.end`: from then on a missing byte is a loss, and not
the torn tail of a writer that was killed. The segment of one that was killed is closed by the next writer of its stream.
A compacted file `<segment>.<digest>.parquet` has one note, `<segment>.<digest>.end`, of all segments that are in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import struct
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from operator import attrgetter
from pathlib import Path

import msgspec

from palan.core import new_id, utcnow
from palan.errors import Corrupt, PalanError
from palan.stores.contract import Batch, Blocks, Frame, Position, Verified, refuse
from palan.stores.files import sync_folder, write_atomically

_PREFIX = struct.Struct("<II")
HEADER = struct.Struct("<III")
SEGMENT_BYTES = 64 << 20
SYNC_SECONDS = 0.02
DIGITS = 64
"""How long a digest is as text: no length of a segment is."""
ENDS = "ends"
"""Under what a compacted file keeps where its segments ended: whoever has read so far need not read it again."""
SMALL = 4 << 20
"""Bytes below which a compacted file is compacted again, with others."""
SMALLS = 16
"""So many of them are."""
AT_ONCE = 500
"""Segments that one compaction takes at the most: it holds them all open."""
WINDOW = 4 << 20
"""How many bytes of a segment are read at a time."""
_TICK = 100_000_000  # nanoseconds: what changes a folder so soon after another change may leave its time as it is
_NAME = re.compile(r"[A-Za-z0-9_.@-]+(/[A-Za-z0-9_.@-]+)*")


class _Writer:
    """The one open segment of a stream in this process. Its file lock tells others that it is alive.

    Segments that one process writes after another have one name with a rising number, and sort in that order.
    """

    def __init__(self, folder: Path, before: _Writer | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name: str = before.name if before else new_id(utcnow())
        self.number: int = before.number + 1 if before else 0
        self.path = folder / f"{self.name}{f'_{self.number:06d}' if self.number else ''}.seg"
        # It gets its name once it is locked: a compaction must not take a new segment for one that nobody writes.
        unlocked = self.path.with_suffix(".new")
        self.fd = os.open(unlocked, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            unlocked.rename(self.path)
            sync_folder(folder)
        except OSError:
            os.close(self.fd)
            with suppress(OSError):  # the next attempt has the same name
                unlocked.unlink()
            raise
        self.size = 0
        self.dirty = False
        self.closed = False
        self.failed: OSError | None = None  # the disk refused to take what was written
        self._turn = threading.Lock()

    def sync(self) -> None:
        """Take what was written to the disk, unless it refused to before: then this raises what it said.

        A failed fsync is never retried, as the kernel may have dropped the pages; and it tells only one of those who ask of it
        at the same time, so they take turns.
        """
        with self._turn:
            if self.failed:
                raise self.failed
            if self.closed:  # by somebody who synced it
                return
            try:
                os.fsync(self.fd)
            except OSError as error:
                self.failed = error
                raise

    def close(self) -> None:
        """Take it to the disk, then note its length: never a length that the disk may not hold."""
        try:
            if not self.failed:
                self.sync()
                with suppress(FileNotFoundError):  # somebody removed the whole folder: there is nothing left to be read
                    _note_end(self.path, self.size)
        finally:
            with self._turn:
                self.closed = True
                os.close(self.fd)


class _Listing(msgspec.Struct, frozen=True):
    """What a stream's folder held at a time, in nanoseconds: the segments that may grow, where those end that are closed, and those
    that were compacted, and who wrote what is closed."""

    time: int
    open: list[str]
    ends: dict[str, int]
    moved: dict[str, int]
    closed: dict[str, int]
    writers: dict[str, bool]


_OPEN: weakref.WeakSet[SegmentBlocks] = weakref.WeakSet()


def _after_fork() -> None:
    for blocks in _OPEN:
        blocks.after_fork()


os.register_at_fork(after_in_child=_after_fork)


class SegmentBlocks(Blocks):
    """Streams below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._writers: dict[str, _Writer] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._failed: OSError | None = None
        self._syncer: threading.Thread | None = None
        self._pid = os.getpid()
        self._listed: dict[Path, _Listing] = {}
        weakref.finalize(self, _close_at_last, self._lock, self._writers, self._pid)
        _OPEN.add(self)

    def append(self, stream: str, frames: Sequence[bytes], *, durable: bool = False) -> int:
        if not all(frames):
            raise ValueError("a frame holds at least one byte")
        buffer = framed(frames[0]) if len(frames) == 1 else b"".join([framed(data) for data in frames])
        with self._lock:
            if self._failed:
                raise _refused(f"an earlier write of {self.root}", self._failed)
            writer = self._writers.get(stream)
            if writer is None or writer.size > SEGMENT_BYTES:
                writer = self._writers[stream] = self._open(self._folder(stream), writer)
            self._write(writer, buffer)
            if durable:
                self._sync(writer)
            elif not writer.dirty:
                writer.dirty = True
                self._wake_syncer()
            return writer.size

    def after_fork(self) -> None:
        """Leave the segments to the process that opened them: a fork shares the place in the file, not the right to write."""
        for writer in self._writers.values():
            os.close(writer.fd)  # else the lock would outlive its process in this one
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._writers, self._syncer, self._pid = {}, None, os.getpid()
        weakref.finalize(self, _close_at_last, self._lock, self._writers, self._pid)

    def _open(self, folder: Path, before: _Writer | None) -> _Writer:
        with self._explained(folder):
            writer = _Writer(folder, before)
        if before is not None:  # closed only now: at no time has this process no segment that is locked
            self._sync(before)
        with suppress(OSError):  # it is all on the disk: the next one to come notes where it ended
            if before is not None:
                before.close()
            _close_the_dead(folder)
        return writer

    @contextmanager
    def _explained(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PalanError(f"{folder} cannot be written: {error.strerror}", f"check its space and rights: df {self.root}") from error

    def _write(self, writer: _Writer, buffer: bytes) -> None:
        try:
            written = os.write(writer.fd, buffer)
            while written < len(buffer):
                written += os.write(writer.fd, memoryview(buffer)[written:])
        except OSError as error:
            try:  # the tail may be torn: cut it, so that the next frame stands where readers look for it
                os.ftruncate(writer.fd, writer.size)
            except OSError as also:
                self._failed = writer.failed = also  # nothing may follow a torn frame
            raise PalanError(
                f"{writer.path} cannot be written: {error.strerror}", "free some space, then repeat the command"
            ) from error
        writer.size += len(buffer)

    def _sync(self, writer: _Writer) -> None:
        try:
            writer.sync()
            writer.dirty = False
        except OSError as error:
            self._failed = error
            raise _refused(str(writer.path), error) from error

    def _wake_syncer(self) -> None:
        if self._syncer is None:
            self._syncer = threading.Thread(target=self._keep_syncing, name="palan-fsync", daemon=True)
            self._syncer.start()
        self._wake.set()

    def _keep_syncing(self) -> None:
        while True:
            self._wake.wait()
            time.sleep(SYNC_SECONDS)
            self._wake.clear()
            with self._lock:
                dirty = [writer for writer in self._writers.values() if writer.dirty]
                for writer in dirty:
                    writer.dirty = False
            for writer in dirty:  # outside the lock: an append never waits for the disk
                try:
                    writer.sync()
                except OSError as error:
                    self._failed = error

    def scan(self, stream: str, after: Position | None = None, damaged: Callable[[Corrupt], None] = refuse) -> Iterator[Frame]:
        folder = self._folder(stream)
        if not folder.is_dir():
            return
        after = after or {}
        try:
            yield from self._scan(folder, after, damaged)
        except OSError as error:
            raise PalanError(f"{error.filename or folder} cannot be read: {error.strerror}", f"chmod -R u+rX {self.root}") from error

    def _scan(self, folder: Path, after: Position, damaged: Callable[[Corrupt], None]) -> Iterator[Frame]:
        ends = _moved_ends(folder) | _ends(folder)  # first: a segment that is closed from now on is not judged
        # A compaction may move segments while we read. It writes its file before it removes theirs, so segments are
        # listed first, and for one that is gone the compacted files are looked at again.
        segments = sorted(folder.glob("*.seg"))
        read: set[Path] = set()
        done: set[str] = set()
        yield from self._compacted(folder, after, read, done)
        for path in segments:
            if path.stem in done:
                continue
            if after.get(path.stem, -1) >= ends.get(path.stem, after.get(path.stem, -1) + 1):
                done.add(path.stem)  # closed, and read to its end
                continue
            try:
                data = _bytes_past(path, after.get(path.stem, 0))
            except FileNotFoundError:
                yield from self._compacted(folder, after, read, done)
                continue
            done.add(path.stem)
            yield from past_damage(path, after.get(path.stem, 0), data, damaged)
            if path.stem in ends and (what := _shorter(path, ends[path.stem], after.get(path.stem, 0) + len(data))):
                damaged(Corrupt(what, "restore the file from a backup"))
        for name in sorted(ends.keys() - done):
            if what := _gone(folder, name, ends[name]):
                damaged(Corrupt(what, "restore the file from a backup"))

    def _compacted(self, folder: Path, after: Position, read: set[Path], done: set[str], only: str = "") -> Iterator[Frame]:
        """Yield what compacted files hold of segments that are not `done`, or only of one; the files go to `read`, the segments to `done`."""
        while new := sorted(set(folder.glob("*.parquet")) - read):
            read.update(new)
            for path in new:
                ends = _moved(path) if after or only else {}
                if only and ends and only not in ends:
                    continue
                if ends and all(after.get(segment, 0) >= end for segment, end in ends.items()):
                    done.update(ends)  # it was read to its end before
                    continue
                try:
                    frames = [frame for frame in _read_compacted(path) if frame.segment not in done]
                except FileNotFoundError:  # compacted again, into a file that is there now
                    continue
                done.update(frame.segment for frame in frames)
                yield from (frame for frame in frames if frame.end > after.get(frame.segment, 0))

    def sizes(self, stream: str) -> dict[str, int]:
        folder = self._folder(stream)
        found = self._listing(folder)
        # One that was compacted may have come back: a mirror whose process was away.
        return found.closed | {name: max(_size(folder / f"{name}.seg"), found.closed.get(name, 0)) for name in found.open}

    def _listing(self, folder: Path) -> _Listing:
        """Return what a folder holds, read again only after a name in it has changed."""
        try:
            time_ = folder.stat().st_mtime_ns
            known = self._listed.get(folder)
            if known is not None and known.time == time_:
                return known
            now = time.time_ns()
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries]
        except FileNotFoundError:
            return _Listing(0, [], {}, {}, {}, {})
        segments = [name.removesuffix(".seg") for name in names if name.endswith(".seg")]
        ends, moved = _ends(folder, names), _moved_ends(folder, names)
        found = _Listing(time_, [name for name in segments if name not in ends], ends, moved, moved | ends, {name.partition("_")[0]: False for name in segments})
        if now - time_ > _TICK:
            self._listed[folder] = found
        return found

    def read(self, stream: str, segment: str, start: int = 0, damaged: Callable[[Corrupt], None] = refuse) -> Iterator[Batch]:
        folder = self._folder(stream)
        path = folder / f"{segment}.seg"
        listing = self._listing(folder)  # first: a segment that is closed from now on is not judged
        try:
            with path.open("rb") as file:
                yield from batches(path, start, lambda at, window: _piece(file.fileno(), at, window), damaged)
                if what := _shorter(path, listing.ends.get(segment, 0), os.fstat(file.fileno()).st_size):
                    damaged(Corrupt(what, "restore the file from a backup"))
        except FileNotFoundError:
            frames = [frame for frame in self._compacted(folder, {}, set(), set(), segment) if frame.segment == segment]
            content = b"".join(framed(frame.data) for frame in frames)
            begin = frames[-1].end - len(content) if frames else 0
            if content:
                yield from batches(path, start, lambda at, window: content[at - begin : at - begin + window], damaged)
            elif what := _gone(folder, segment, listing.ends.get(segment, 0) or listing.moved.get(segment, 0)):
                damaged(Corrupt(what, "restore the file from a backup"))
        except OSError as error:
            raise PalanError(f"{path} cannot be read: {error.strerror}", f"chmod -R u+rX {self.root}") from error

    def streams(self) -> list[str]:
        return sorted({path.parent.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.suffix in (".seg", ".parquet")})

    def writers(self, stream: str) -> dict[str, bool]:
        folder = self._folder(stream)
        listing = self._listing(folder)
        return listing.writers | {name.partition("_")[0]: True for name in listing.open if _is_locked(folder / f"{name}.seg")}

    def blobs(self) -> set[str]:
        return set()

    def lost(self) -> list[str]:
        found = []
        for folder in sorted({path.parent for path in self.root.rglob("*.end")}):
            ends = _ends(folder)
            done: set[str] = set()
            for path in sorted(folder.glob("*.parquet")):
                try:
                    done.update(frame.segment for frame in _read_compacted(path))
                except Corrupt as error:
                    found.append(error.what)
            for name, size in sorted((_moved_ends(folder) | ends).items()):
                path = folder / f"{name}.seg"
                try:
                    what = _shorter(path, ends.get(name, 0), path.stat().st_size)
                except FileNotFoundError:
                    what = "" if name in done else _gone(folder, name, size)
                found += [what] if what else []
        return found

    def verify(self) -> Iterator[Verified]:
        for folder in sorted({path.parent for path in self.root.rglob("*") if path.suffix in (".seg", ".parquet")}):
            for path in sorted(folder.glob("*.seg")):
                try:
                    data = _bytes_past(path, 0)
                except FileNotFoundError:  # compacted meanwhile: the files of that are listed after the segments
                    continue
                yield read_past_damage(path, data)
            for path in sorted(folder.glob("*.parquet")):
                try:
                    yield Verified(str(path), len(_read_compacted(path)), path.stat().st_size, ())
                except Corrupt as error:
                    yield Verified(str(path), 0, path.stat().st_size, (error.what,))

    def files(self) -> Iterator[tuple[Path, int]]:
        """Yield every file, with as many of its bytes as a copy is to take; one may be gone when its turn comes.

        All that is there now is in the copy, while others append and compact: what was closed is listed first, so that nothing
        is missed of what is closed later, and compacted files last, when what they hold was copied or found gone.
        """
        folders = sorted({path.parent for path in self.root.rglob("*") if path.is_file()})
        notes = [path for folder in folders for path in sorted(folder.glob("*.end"))]
        yield from _sized(path for folder in folders for path in sorted(folder.glob("*.seg")))
        for folder in folders:
            done = set[Path]()
            while new := {path for path in folder.iterdir() if path.is_file() and path.suffix not in (".seg", ".end", ".new", ".tmp")} - done:
                yield from _sized(sorted(new))
                done |= new
        yield from _sized(notes)

    def compact(self, stream: str, only: Collection[str] | None = None) -> int:
        folder = self._folder(stream)
        with self._explained(folder), ExitStack() as stack:  # the locks are held to the end: two compactions never take the same segment
            ends, moved_before, closed, size = _ends(folder), _moved_ends(folder), list[Path](), 0
            for path in sorted(folder.glob("*.seg")):
                again = path.stem in moved_before and _size(path) != moved_before[path.stem]  # it came back, and grew
                if len(closed) < AT_ONCE and size < SEGMENT_BYTES and (only is None or path.stem in only) and not again and _claim(path, stack):
                    closed.append(path)
                    size += _size(path)
            frames: list[Frame] = []
            for path in list(closed):
                try:
                    frames += list(frames_in(path, 0, _bytes_past(path, 0)))
                except Corrupt:  # it stays as it is, for verify to name
                    closed.remove(path)
            moved = len(frames)
            small = [path for path in sorted(folder.glob("*.parquet")) if 0 <= _size(path) < SMALL and _claim(path, stack)]
            if len(small) < SMALLS:
                small = []
            done = {frame.segment for frame in frames}
            for path in small:
                frames += [frame for frame in _read_compacted(path) if frame.segment not in done]
                done = {frame.segment for frame in frames}
            if frames:
                frames.sort(key=attrgetter("segment", "end"))
                content = packed(frames)
                # The name holds the digest of the content: every read is checked against it.
                name = f"{frames[-1].segment}.{hashlib.sha256(content).hexdigest()}"
                write_atomically(folder / f"{name}.parquet", content)
                write_atomically(folder / f"{name}.end", msgspec.json.encode({frame.segment: frame.end for frame in frames}))
            for path in closed:
                path.unlink()
                (folder / f"{path.stem}.{ends.get(path.stem, 0)}.end").unlink(missing_ok=True)
            for path in small:
                path.unlink()
                path.with_suffix(".end").unlink(missing_ok=True)
        return moved

    def close(self) -> None:
        """Sync and close this process's segments; the end of the process does so as well."""
        with self._explained(self.root):
            try:
                _close_all(self._lock, self._writers, self._pid)
            except OSError as error:
                self._failed = error
                raise
        if self._failed:
            raise _refused(f"an earlier write of {self.root}", self._failed)

    def _folder(self, stream: str) -> Path:
        return self.root / named(stream)


def named(stream: str) -> str:
    """Return the name of a stream, or refuse one that could lead out of the store."""
    if not _NAME.fullmatch(stream) or ".." in stream:
        raise PalanError(f"{stream!r} is no name for a stream", "use letters, digits, . _ @ - and /")
    return stream


def _close_all(lock: threading.Lock, writers: dict[str, _Writer], pid: int) -> None:
    """Close the segments of the process that opened them; a fork of it has no right to."""
    if pid != os.getpid():
        return
    problems: list[OSError] = []
    with lock:
        while writers:
            try:
                writers.popitem()[1].close()
            except OSError as error:  # the others are closed all the same
                problems.append(error)
    if problems:
        raise problems[0]


def _close_at_last(lock: threading.Lock, writers: dict[str, _Writer], pid: int) -> None:
    """Close the segments when the program ends: there is nobody left to catch an error."""
    try:
        _close_all(lock, writers, pid)
    except OSError as error:
        sys.stderr.write(f"{_refused('what was written last', error)}\n")


def _refused(what: str, error: OSError) -> PalanError:
    return PalanError(f"the disk refused {what}: {error.strerror}", "put the disk right, then start palan again")


def _close_the_dead(folder: Path) -> None:
    """Note the length of segments whose writers ended without doing so: what is there now was not lost."""
    ends = _ends(folder)
    for path in folder.glob("*.seg"):
        with ExitStack() as stack:
            if path.stem not in ends and _claim(path, stack):
                _note_end(path, path.stat().st_size)


def _note_end(segment: Path, size: int) -> None:
    segment.with_name(f"{segment.stem}.{size}.end").touch()


def _ends(folder: Path, names: Iterable[str] | None = None) -> dict[str, int]:
    """Return the length of each closed segment of a stream, by name."""
    return {name: int(size) for name, size in _notes(folder, names) if len(size) < DIGITS}


def _moved_ends(folder: Path, names: Iterable[str] | None = None) -> dict[str, int]:
    """Return the length of each segment that is in a compacted file."""
    found: dict[str, int] = {}
    for name, digest in _notes(folder, names):
        if len(digest) == DIGITS:
            found |= {each: max(end, found.get(each, 0)) for each, end in _noted(folder / f"{name}.{digest}.end").items()}
    return found


def _notes(folder: Path, names: Iterable[str] | None) -> Iterator[tuple[str, str]]:
    for note in [path.name for path in folder.iterdir()] if names is None else names:
        if note.endswith(".end"):
            name, told, _ = note.split(".")
            yield name, told


@lru_cache(256)
def _noted(path: Path) -> dict[str, int]:
    """Return where the segments end that are in a compacted file, as its note says."""
    with suppress(msgspec.MsgspecError, FileNotFoundError):
        return msgspec.json.decode(path.read_bytes(), type=dict[str, int])
    return {}


def _sized(paths: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    for path, size in [(path, _size(path)) for path in paths]:
        if size >= 0:
            yield path, size


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _shorter(path: Path, size: int, found: int) -> str:
    return "" if found >= size else f"{path} was cut: it had {size} bytes when it was closed, and has {found}"


def _gone(folder: Path, name: str, size: int) -> str:
    # A compaction takes the note of an empty segment away with it: looked at again, the note says who was faster.
    return f"{folder / name}.seg is gone: it had {size} bytes when it was closed" if size and name in _moved_ends(folder) | _ends(folder) else ""


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _claim(path: Path, stack: ExitStack) -> bool:
    """Lock a segment that no process writes, until the stack ends; False if one does, or if it is gone."""
    try:
        file = stack.enter_context(path.open("rb"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return False
    return path.exists()  # another compaction may have finished with it while we opened it


def framed(data: bytes) -> bytes:
    """Return the data with what tells later whether it is whole: its length and the two checksums."""
    prefix = _PREFIX.pack(len(data), zlib.crc32(data))
    return prefix + zlib.crc32(prefix).to_bytes(4, "little") + data


def _piece(fd: int, at: int, window: int) -> bytes:
    return os.pread(fd, max(min(window, os.fstat(fd).st_size - at), 0), at)


def _bytes_past(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read()


def frames_in(path: Path, start: int, data: bytes) -> Iterator[Frame]:
    """Yield the frames that stand in `data`, which begins at byte `start` of the segment `path`; `scan` tells what is raised."""
    at = 0
    while at + HEADER.size <= len(data):
        length, crc, header_crc = HEADER.unpack_from(data, at)
        begin, end = at + HEADER.size, at + HEADER.size + length
        header = data[at : at + _PREFIX.size]
        if length == crc == header_crc == 0:
            if rest := data[at:].lstrip(b"\0"):
                raise Corrupt(
                    f"{path} is damaged at bytes {start + at} to {start + len(data) - len(rest)}: zeros, and frames after them",
                    "restore the file from a backup",
                )
            return  # room that a loss of power left empty: it was never on the disk
        if zlib.crc32(header) != header_crc:  # a length that cannot be trusted says nothing about the tail
            raise Corrupt(
                f"{path} is damaged at bytes {start + at} to {start + begin}: checksum {header_crc:08x} was written, "
                f"{zlib.crc32(header):08x} is there",
                "restore the file from a backup",
            )
        if end > len(data):
            return  # torn: it was never acknowledged
        payload = data[begin:end]
        if zlib.crc32(payload) != crc:
            raise Corrupt(
                f"{path} is damaged at bytes {start + at} to {start + end}: checksum {crc:08x} was written, "
                f"{zlib.crc32(payload):08x} is there",
                "restore the file from a backup",
            )
        yield Frame(path.stem, start + end, payload)
        at = end


def batches(path: Path, start: int, get: Callable[[int, int], bytes], damaged: Callable[[Corrupt], None]) -> Iterator[Batch]:
    """Yield the frames of a segment past `start`; `get` returns as many of its bytes as there are, from a place on."""
    from palan.stores.tables import stacked, whole

    at, window = start, WINDOW
    while True:
        data = get(at, window)
        found = whole(path.stem, at, data)
        if found is None:  # what is damaged is looked at frame by frame, to the end: there a frame may lie across two pieces
            rest = [(frame.end, frame.data) for frame in past_damage(path, at, get(at, 1 << 62), damaged)]
            if rest:
                yield stacked(path.stem, rest[-1][0], rest)
            return
        if found.tables:
            yield found
        if len(data) < window:
            return
        window = WINDOW if found.tables else 2 * window  # a frame is larger
        at = found.end


def past_damage(path: Path, start: int, data: bytes, damaged: Callable[[Corrupt], None]) -> Iterator[Frame]:
    """Yield the frames of `data`, which begins at byte `start` of the segment; those behind a damage if `damaged` lets it pass."""
    at = 0
    while True:
        try:
            for frame in frames_in(path, start + at, data[at:] if at else data):
                at = frame.end - start
                yield frame
            return
        except Corrupt as error:
            damaged(error)
            at = _next_whole(data, at)


def read_past_damage(path: Path, data: bytes) -> Verified:
    frames, at = 0, 0
    damage: list[str] = []
    while True:
        try:
            for frame in frames_in(path, at, data[at:]):
                frames, at = frames + 1, frame.end
            return Verified(str(path), frames, len(data), tuple(damage))
        except Corrupt:
            whole = _next_whole(data, at)
            damage.append(f"{path} is damaged at bytes {at} to {whole}: no frame can be read there")
            at = whole


def _next_whole(data: bytes, at: int) -> int:
    """Return where the first whole frame after the damage at `at` begins; the end of the data if there is none."""
    for begin in range(at + 1, len(data) - HEADER.size + 1):
        length, crc, header_crc = HEADER.unpack_from(data, begin)
        end = begin + HEADER.size + length
        if length and end <= len(data) and zlib.crc32(data[begin : begin + _PREFIX.size]) == header_crc and zlib.crc32(data[begin + HEADER.size : end]) == crc:
            return begin
    return len(data)


def _moved(path: Path) -> dict[str, int]:
    """Return where the segments end that a compacted file was made of, without reading it; nothing where it does not say so."""
    if ends := _noted(path.with_suffix(".end")):
        return ends
    import polars as pl

    try:
        return msgspec.json.decode(pl.read_parquet_metadata(path).get(ENDS, "{}"), type=dict[str, int])
    except (pl.exceptions.PolarsError, msgspec.MsgspecError, ValueError, FileNotFoundError):
        return {}  # then it is read, and what is wrong with it is told


def _read_compacted(path: Path) -> list[Frame]:
    content = path.read_bytes()
    written, found = path.stem.rpartition(".")[2], hashlib.sha256(content).hexdigest()
    if found != written:
        raise Corrupt(f"{path} is damaged: it should have digest {written}, and has {found}", "restore the file from a backup")
    return unpacked(content)


def packed(frames: Sequence[Frame]) -> bytes:
    """Return frames as a compressed file."""
    import polars as pl

    table = pl.DataFrame({"segment": [frame.segment for frame in frames], "end": [frame.end for frame in frames], "data": [frame.data for frame in frames]})
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd", metadata={ENDS: msgspec.json.encode({frame.segment: frame.end for frame in frames}).decode()})
    return buffer.getvalue()


def unpacked(content: bytes) -> list[Frame]:
    """Return the frames that were packed."""
    import polars as pl

    return [Frame(*row) for row in pl.read_parquet(content).iter_rows()]
