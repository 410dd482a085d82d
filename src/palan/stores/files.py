"""Blobs as files named by their SHA-256."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from palan.core import new_id, utcnow
from palan.errors import Corrupt, NotFound, PalanError
from palan.stores.contract import Blobs

CHUNK = 1 << 20


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


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


class FileBlobs(Blobs):
    """Blobs below one folder, in 256 sub-folders."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, key: str) -> Path:
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
            if not self._sound(key):
                write_atomically(self._path(key), data)
            return key
        self.root.mkdir(parents=True, exist_ok=True)
        temp = self.root / f".{new_id(utcnow())}.tmp"
        sha = hashlib.sha256()
        try:
            with temp.open("wb") as file:
                for chunk in _chunks(data):
                    sha.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            path = self._path(sha.hexdigest())
            if not self._sound(sha.hexdigest()):
                _make_folder(path.parent)
                _settle(temp, path)
        finally:
            temp.unlink(missing_ok=True)
        return sha.hexdigest()

    def _sound(self, key: str) -> bool:
        """Tell whether the blob is there and whole: one that was damaged is written again."""
        try:
            self.verify(key)
        except (NotFound, Corrupt):
            return False
        return True

    def get(self, key: str, into: Path | None = None) -> bytes:
        path = self._path(key)
        with self._explained(key, path, into):
            return self._get(key, path, into)

    @contextmanager
    def _explained(self, key: str, path: Path, into: Path | None = None) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(f"blob {key[:12]} is not in {self.root}", "restore it from a backup") from error
        except OSError as error:
            verb = "read" if error.errno == errno.EACCES and into is None else "read or laid out"
            raise PalanError(f"{error.filename or path} cannot be {verb}: {error.strerror}", f"check its space and rights: df {self.root}") from error

    def _get(self, key: str, path: Path, into: Path | None) -> bytes:
        if into is None:
            data = path.read_bytes()
            self._verify(key, hashlib.sha256(data).hexdigest(), path)
            return data
        into.parent.mkdir(parents=True, exist_ok=True)
        temp = into.with_name(f".{new_id(utcnow())}.tmp")
        sha = hashlib.sha256()
        try:
            with temp.open("wb") as file:
                for chunk in _chunks(path):
                    sha.update(chunk)
                    file.write(chunk)
            self._verify(key, sha.hexdigest(), path)
            temp.replace(into)
        finally:
            temp.unlink(missing_ok=True)
        return b""

    def _verify(self, key: str, found: str, path: Path) -> None:
        if found != key:
            raise Corrupt(f"{path} is damaged: it should have digest {key}, and has {found}", "restore it from a backup")

    def has(self, key: str) -> bool:
        return self._path(key).is_file()

    def keys(self) -> Iterator[str]:
        for folder in sorted(self.root.glob("[0-9a-f][0-9a-f]")):
            yield from sorted(path.name for path in folder.iterdir() if is_digest(path.name))

    def verify(self, key: str) -> int:
        path, sha, size = self._path(key), hashlib.sha256(), 0
        with self._explained(key, path):
            for chunk in _chunks(path):
                sha.update(chunk)
                size += len(chunk)
        self._verify(key, sha.hexdigest(), path)
        return size
