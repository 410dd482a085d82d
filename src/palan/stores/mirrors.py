"""Segments that processes on other machines write, byte for byte the same here.

A mirror is locked, like a segment of one's own, for as long as its process is heard, so whoever looks sees that it lives. It
counts as closed, and what it lacks as lost, only when its process said that it is whole.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path

from palan.errors import Busy, Conflict, Corrupt, NotFound
from palan.stores.files import sync_folder
from palan.stores.segments import frames_in

SILENT_SECONDS = 5.0
"""How long a process on another machine may say nothing before it counts as gone."""
_NAME = re.compile(r"[0-9a-hjkmnp-tv-z]{26}(_[0-9]{6})?")


class _Mirror:
    """A segment of another machine, as far as its bytes came; locked like one's own for as long as its process is heard."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.lock = threading.Lock()
        self.heard = time.monotonic()
        self.closed = False
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for note in path.parent.glob(f"{path.stem}.*.end"):  # made while its process was not heard: it goes on after all
                if note.name.split(".")[1].isdigit():  # others are of what was compacted
                    note.unlink()
            # What is not whole, cut by a kill or emptied by a loss of power, comes again: its sender keeps all until the end.
            whole = [0]
            with suppress(Corrupt):
                whole.extend(frame.end for frame in frames_in(path, 0, path.read_bytes()))
            self.size = whole[-1]
            os.ftruncate(self.fd, self.size)
        except BaseException:
            os.close(self.fd)
            raise

    def append(self, at: int, data: bytes) -> int:
        """Add what of the data is not there yet, unless bytes before it are missing; return how many are there now."""
        known = min(self.size - at, len(data))
        if known > 0 and os.pread(self.fd, known, at) != data[:known]:
            raise Conflict(f"{self.path.name} holds other bytes than those that are sent", "palan verify   (on the server)")
        rest = memoryview(data)[known:] if known >= 0 else memoryview(b"")
        while rest:
            written = os.pwrite(self.fd, rest, self.size)  # a part of it is no harm: the rest comes again
            self.size += written
            rest = rest[written:]
        return self.size

    def end(self) -> None:
        try:
            os.fsync(self.fd)
        except OSError:  # what the disk refused may be gone, and a second fsync would not tell: all of it has to come again
            self.size = 0
            os.ftruncate(self.fd, 0)
            raise
        sync_folder(self.path.parent)
        self.path.with_name(f"{self.path.stem}.{self.size}.end").touch()

    def close(self) -> None:
        self.closed = True
        os.close(self.fd)


class Mirrors:
    """The mirrors of one stream, in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, _Mirror] = {}
        self._lock = threading.Lock()
        self._releaser: threading.Thread | None = None

    def append(self, name: str, at: int, data: bytes, *, ended: bool = False) -> tuple[int, bool]:
        """Add bytes that stand at `at` in the segment: those that are not here yet; none if some before them are missing.

        With `ended` the segment is whole with them, and on the disk when this returns. Return how many bytes are here, and
        whether its process had not been heard of before.

        Raises:
            Busy: the disk is full, or another process still has the segment.
            Conflict: other bytes are here already.
        """
        if not _NAME.fullmatch(name):
            raise NotFound(f"{name!r:.80} is no name of a segment", "26 letters and digits, and a number")
        try:
            while True:
                mirror, is_new = self._mirror(name)
                with mirror.lock:
                    if mirror.closed:
                        continue
                    mirror.heard = max(mirror.heard, time.monotonic())
                    size = mirror.append(at, data)
                    if ended and size == at + len(data):
                        mirror.end()
                    return size, is_new
        except BlockingIOError as error:
            raise Busy(f"the segment {name} is still held by another process", "try again in a moment") from error
        except OSError as error:
            raise Busy(f"{self.folder} cannot be written: {error.strerror}", "free some space on the server: what was sent is kept where it came from, and sent again") from error

    def hear(self, name: str, seconds: float = 0.0) -> None:
        """Note that the process of a segment lives, for further `seconds` too although it says nothing."""
        with self._lock:
            if mirror := self._open.get(name):
                mirror.heard = time.monotonic() + seconds

    def close(self) -> None:
        """Hold no segment any more."""
        self._release(float("inf"))

    def _mirror(self, name: str) -> tuple[_Mirror, bool]:
        with self._lock:
            mirror = self._open.get(name)
            if mirror is not None and not mirror.closed:
                return mirror, False
            mirror = self._open[name] = _Mirror(self.folder / f"{name}.seg")
            if self._releaser is None:
                self._releaser = threading.Thread(target=self._keep_releasing, name="palan-mirrors", daemon=True)
                self._releaser.start()
            return mirror, True

    def _keep_releasing(self) -> None:
        while self._release(time.monotonic() - SILENT_SECONDS):
            time.sleep(1)

    def _release(self, before: float) -> bool:
        """Let go of segments that were not heard since; tell whether any is left."""
        with self._lock:
            for name in [name for name, mirror in self._open.items() if mirror.heard < before]:
                mirror = self._open.pop(name)
                with mirror.lock:
                    mirror.close()
            if not self._open:
                self._releaser = None
            return bool(self._open)

