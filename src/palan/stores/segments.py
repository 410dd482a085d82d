"""Blocks as framed segment files: length, CRC-32, data; one file per writing process and stream.

A frame is in the kernel when `append` returns, so no death of the process loses it; a background thread takes what was
written to the disk a few milliseconds later, or `durable=True` waits for that. Readers never lock.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from palan.core import new_id, utcnow
from palan.errors import Corrupt, PalanError
from palan.stores.contract import Blocks, Frame, Position
from palan.stores.files import write_atomically

HEADER = struct.Struct("<II")
SEGMENT_BYTES = 64 << 20
SYNC_SECONDS = 0.02
_NAME = re.compile(r"[A-Za-z0-9_.@-]+(/[A-Za-z0-9_.@-]+)*")


class _Writer:
    """The one open segment of a stream in this process. Its file lock tells others that it is alive."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{new_id(utcnow())}.seg"
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        self.size = 0
        self.dirty = False


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

    def append(self, stream: str, frames: Sequence[bytes], *, durable: bool = False) -> int:
        folder = self._folder(stream)
        buffer = b"".join(HEADER.pack(len(data), zlib.crc32(data)) + data for data in frames)
        with self._lock:
            if self._failed:
                raise PalanError(
                    f"the disk refused an earlier write of {self.root}: {self._failed.strerror}",
                    "put the disk right, then start palan again",
                )
            if self._pid != os.getpid():  # a fork shares the file offset, not the right to write
                self._writers, self._syncer, self._pid = {}, None, os.getpid()
            writer = self._writers.get(stream)
            if writer is None or writer.size > SEGMENT_BYTES:
                if writer:
                    self._sync(writer)
                    os.close(writer.fd)
                writer = self._writers[stream] = _Writer(folder)
            self._write(writer, buffer)
            if durable:
                self._sync(writer)
            else:
                writer.dirty = True
                self._wake_syncer()
            return writer.size

    def _write(self, writer: _Writer, buffer: bytes) -> None:
        try:
            written = os.write(writer.fd, buffer)
            while written < len(buffer):
                written += os.write(writer.fd, memoryview(buffer)[written:])
        except OSError as error:
            # The tail may be torn: cut it, so that the next frame stands where readers look for it.
            os.ftruncate(writer.fd, writer.size)
            raise PalanError(
                f"{writer.path} cannot be written: {error.strerror}", "free some space, then repeat the command"
            ) from error
        writer.size += len(buffer)

    def _sync(self, writer: _Writer) -> None:
        try:
            os.fsync(writer.fd)
            writer.dirty = False
        except OSError as error:
            self._failed = error  # a failed fsync is never retried: the kernel may have dropped the pages
            raise

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
                dirty = [(writer, os.dup(writer.fd)) for writer in self._writers.values() if writer.dirty]
                for writer, _ in dirty:
                    writer.dirty = False
            for _, fd in dirty:  # outside the lock: an append never waits for the disk
                try:
                    os.fsync(fd)
                except OSError as error:
                    self._failed = error
                finally:
                    os.close(fd)

    def scan(self, stream: str, after: Position | None = None) -> Iterator[Frame]:
        folder = self._folder(stream)
        if not folder.is_dir():
            return
        after = after or {}
        compacted: set[str] = set()
        for path in sorted(folder.glob("*.parquet")):
            frames = _read_compacted(path)
            compacted.update(frame.segment for frame in frames)
            yield from (frame for frame in frames if frame.end > after.get(frame.segment, 0))
        for path in sorted(folder.glob("*.seg")):
            if path.stem not in compacted:
                yield from _read_segment(path, after.get(path.stem, 0))

    def compact(self, stream: str) -> int:
        import polars as pl

        folder = self._folder(stream)
        closed = [path for path in sorted(folder.glob("*.seg")) if _is_closed(path)]
        frames = [frame for path in closed for frame in _read_segment(path, 0)]
        if frames:
            table = pl.DataFrame(
                {
                    "segment": [frame.segment for frame in frames],
                    "end": [frame.end for frame in frames],
                    "crc": [zlib.crc32(frame.data) for frame in frames],
                    "data": [frame.data for frame in frames],
                }
            )
            buffer = io.BytesIO()
            table.write_parquet(buffer, compression="zstd")
            write_atomically(folder / f"{closed[-1].stem}.parquet", buffer.getvalue())
        for path in closed:
            path.unlink()
        return len(frames)

    def close(self) -> None:
        """Sync and close this process's segments."""
        with self._lock:
            for writer in self._writers.values():
                self._sync(writer)
                os.close(writer.fd)
            self._writers = {}

    def _folder(self, stream: str) -> Path:
        if not _NAME.fullmatch(stream) or ".." in stream:
            raise PalanError(f"{stream!r} is no name for a stream", "use letters, digits, . _ @ - and /")
        return self.root / stream


def _is_closed(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _read_segment(path: Path, start: int) -> Iterator[Frame]:
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read()
    except FileNotFoundError:  # compacted while we listed: the next scan reads it from there
        return
    at = 0
    while at + HEADER.size <= len(data):
        length, crc = HEADER.unpack_from(data, at)
        begin, end = at + HEADER.size, at + HEADER.size + length
        if length == 0 or end > len(data):
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


def _read_compacted(path: Path) -> list[Frame]:
    import polars as pl

    try:
        table = pl.read_parquet(path.read_bytes())
    except pl.exceptions.PolarsError as error:
        raise Corrupt(f"{path} is damaged: {error}", "restore the file from a backup") from error
    frames = []
    for segment, end, crc, data in table.iter_rows():
        if zlib.crc32(data) != crc:
            raise Corrupt(
                f"{path} is damaged: frame {segment} ending at {end} has checksum {zlib.crc32(data):08x}, "
                f"{crc:08x} was written",
                "restore the file from a backup",
            )
        frames.append(Frame(segment, end, data))
    return frames
