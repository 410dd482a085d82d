"""Blobs as files named by their SHA-256."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

from palan.core import is_whole, new_id, utcnow
from palan.errors import Corrupt, NotFound, PalanError
from palan.stores.contract import Blobs

CHUNK = 1 << 20
WHOLE = timedelta(days=1)
"""How long a file that was found whole, and that nobody wrote since, is taken to be whole: what is scanned often is hashed once a day."""


def write_atomically(path: Path, data: bytes) -> None:
    """Temp, fsync, rename, fsync of the folder: the file is there whole, or not at all."""
    _make_folder(path.parent)
    temp = path.with_name(f".{new_id(utcnow())}.tmp")
    try:
        with temp.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _settle(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def _settle(temp: Path, path: Path) -> None:
    temp.replace(path)
    sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Take the names in a folder to the disk: without this a new file may be lost although its bytes are not."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def is_digest(key: str) -> bool:
    return len(key) == 64 and set(key) <= set("0123456789abcdef")


def chunks(path: Path, size: int = CHUNK) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(size):
            yield chunk


def proven(key: str, data: Iterable[bytes], where: str) -> Iterator[bytes]:
    """Pass on what `where` holds, piece by piece.

    Raises:
        Corrupt: after the last piece, when all of them together have another digest than `key`.
    """
    sha = hashlib.sha256()
    for chunk in data:
        sha.update(chunk)
        yield chunk
    if (found := sha.hexdigest()) != key:
        raise Corrupt(f"{where} is damaged: it should have digest {key}, and has {found}", "restore it from a backup")


def lay_out(data: Iterable[bytes], into: Path) -> None:
    """Write the pieces to a file, which is there once all of them are, or as it was before."""
    into.parent.mkdir(parents=True, exist_ok=True)
    temp = into.with_name(f".{new_id(utcnow())}.tmp")
    try:
        with temp.open("wb") as file:
            for chunk in data:
                file.write(chunk)
        temp.replace(into)
    finally:
        temp.unlink(missing_ok=True)


def is_sound(blobs: Blobs, key: str) -> bool:
    """Tell whether the blob is there and whole: one that was damaged is written again."""
    try:
        blobs.verify(key)
    except (NotFound, Corrupt):
        return False
    return True


class FileBlobs(Blobs):
    """Blobs below one folder, in 256 sub-folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._whole: dict[str, list[int]] | None = None  # what was found whole: inode, size and times of the file

    def path(self, key: str) -> Path:
        """Return the file; one that was found whole within a day, and that nobody wrote since, is not read again."""
        path = self.place(key)
        with self._explained(key):
            found = path.stat()
            state = [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
            if self._whole is None:
                self._whole = self._noted()
            if self._whole.get(key) != state:
                self.verify(key)
                self._note(key, state)
                self._whole[key] = state
        return path

    def _noted(self) -> dict[str, list[int]]:
        """Return what processes of the last day found whole."""
        since, found = int((utcnow() - WHOLE).timestamp()), {}
        with suppress(OSError):
            lines = (self.root / ".whole").read_text(encoding="ascii", errors="replace").splitlines()
            for line in lines:
                key, *numbers = line.split()
                if len(numbers) == 5 and all(map(is_whole, numbers)) and int(numbers[4]) >= since:
                    found[key] = [int(each) for each in numbers[:4]]
            if len(lines) > 2 * len(found) + 1000:
                (self.root / ".whole").unlink()  # of others they are found again
        return found

    def _note(self, key: str, state: list[int]) -> None:
        with suppress(OSError), (self.root / ".whole").open("a", encoding="ascii") as file:  # one append: lines of several processes do not mix
            file.write(f"{key} {' '.join(map(str, state))} {int(utcnow().timestamp())}\n")

    def place(self, key: str) -> Path:
        if not is_digest(key):
            raise NotFound(f"{key!r} is not the name of a blob", "a blob is named by its SHA-256 in hex")
        return self.root / key[:2] / key

    def put(self, data: bytes | Path) -> str:
        if isinstance(data, Path) and not data.is_file():
            raise NotFound(f"there is no file {data}", "give the path of a file")
        try:
            return self._put(data)
        except OSError as error:
            raise PalanError(
                f"{self.root} cannot be written: {error.strerror}", f"check its space and rights: df {self.root}"
            ) from error

    def _put(self, data: bytes | Path) -> str:
        if isinstance(data, bytes):
            key = hashlib.sha256(data).hexdigest()
            self._keep(key, lambda: write_atomically(self.place(key), data))
            return key
        self.root.mkdir(parents=True, exist_ok=True)
        temp = self.root / f".{new_id(utcnow())}.tmp"
        sha = hashlib.sha256()
        try:
            with temp.open("wb") as file:
                for chunk in chunks(data):
                    sha.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            path = self.place(sha.hexdigest())
            _make_folder(path.parent)
            self._keep(sha.hexdigest(), lambda: _settle(temp, path))
        finally:
            temp.unlink(missing_ok=True)
        return sha.hexdigest()

    def _keep(self, key: str, write: Callable[[], None]) -> None:
        """Write the blob, or have it count as put now: whoever puts one that is there is not yet heard of, but about to name it."""
        with self._locked(fcntl.LOCK_SH):
            if is_sound(self, key):
                with suppress(PermissionError):  # another user's: it is written anew, as one's own
                    os.utime(self.place(key))
                    sync_folder(self.place(key).parent)  # it may have its name from somebody who is about to do this, or could not
                    return
            write()

    def touch(self, key: str) -> bool:
        with self._locked(fcntl.LOCK_SH), suppress(FileNotFoundError, PermissionError):  # another user's is to be put anew
            os.utime(self.place(key))
            sync_folder(self.place(key).parent)
            return True
        return False

    def held(self) -> AbstractContextManager[None]:
        """Let no blob be removed meanwhile: whoever wants to waits."""
        return self._locked(fcntl.LOCK_SH)

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Hold the blobs: shared by those who put one, alone to remove one."""
        _make_folder(self.root)
        lock = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, how)
            yield
        finally:
            os.close(lock)

    def unused_since(self, key: str, before: datetime) -> int | None:
        """Return the size of a blob that was last put before then, None of one that was put since, or is gone."""
        try:
            found = self.place(key).stat()
        except FileNotFoundError:
            return None
        return found.st_size if found.st_mtime < before.timestamp() else None

    def unused(self, before: datetime) -> Iterator[tuple[str, int]]:
        return ((key, size) for key in self.names() if (size := self.unused_since(key, before)) is not None)

    def remove(self, key: str, before: datetime) -> int | None:
        with self._locked(fcntl.LOCK_EX):  # nobody is about to put it
            size = self.unused_since(key, before)
            if size is not None:
                self.place(key).unlink()
        return size

    def get(self, key: str, into: Path | None = None) -> bytes:
        with self._explained(key, into):
            if into is None:
                path = self.place(key)
                return b"".join(proven(key, [path.read_bytes()], str(path)))
            lay_out(self._read(key), into)
            return b""

    @contextmanager
    def _explained(self, key: str, into: Path | None = None) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(f"blob {key[:12]} is not in {self.root}", "restore it from a backup") from error
        except OSError as error:
            verb = "read" if error.errno == errno.EACCES and into is None else "read or laid out"
            raise PalanError(f"{error.filename or self.place(key)} cannot be {verb}: {error.strerror}", f"check its space and rights: df {self.root}") from error

    def _read(self, key: str) -> Iterator[bytes]:
        return proven(key, chunks(self.place(key)), str(self.place(key)))

    def has(self, key: str) -> bool:
        return self.place(key).is_file()

    def names(self) -> Iterator[str]:
        for folder in sorted(self.root.glob("[0-9a-f][0-9a-f]")):
            yield from sorted(path.name for path in folder.iterdir() if is_digest(path.name))

    def verify(self, key: str) -> int:
        with self._explained(key):
            return sum(len(chunk) for chunk in self._read(key))
