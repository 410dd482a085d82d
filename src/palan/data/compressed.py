"""A delivered file that is compressed: what it is, its first bytes say, and it expands while it is read, within bounds."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import PurePath
from typing import IO, TYPE_CHECKING, Any, cast

from palan.errors import PalanError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_zstd: Any = None
with suppress(ImportError):
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    _zstd = zstd

EXPANSION = 100
"""How many times its size a compressed file may expand."""

LEAST = 64 << 20
"""Bytes to which any compressed file may expand."""

PIECE = 1 << 20

_OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
if _zstd:
    _OPENERS["zstd"] = _zstd.open
_DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, *((_zstd.ZstdError,) if _zstd else ()))
_BEGINS = {"gzip": rb"\x1f\x8b", "bzip2": rb"BZh[1-9]1AY&SY", "xz": rb"\xfd7zXZ\x00", "zstd": rb"\x28\xb5\x2f\xfd"}


def suffix_of(name: str) -> str:
    """Return what a file is by its name: of a compressed one, what lies within."""
    return PurePath(re.sub(r"\.(gz|bz2|xz|zst)$", "", name.lower())).suffix


def expanded(file: IO[bytes], name: str, size: int) -> IO[bytes]:
    """Return a file of this name and size as it is to be read.

    Raises:
        PalanError: it is compressed with what this Python cannot read.
    """
    begins = file.read(10)
    file.seek(0)
    kind = next((kind for kind, pattern in _BEGINS.items() if re.match(pattern, begins)), "")
    if not kind:
        return file
    if kind not in _OPENERS:
        raise PalanError(f"{name} is compressed with zstd, which this Python cannot read", f'pip install "palan[zstd]", or deliver it expanded: zstd -d {name}')
    most = max(size * EXPANSION, LEAST)
    if kind == "gzip":  # its last bytes say how large the last of its members is: a bomb that says so costs nothing
        file.seek(max(size - 4, 0))
        if int.from_bytes(file.read(4), "little") > most:
            raise _too_large(kind, name, most)
        file.seek(0)
    return cast(IO[bytes], _Expanded(_OPENERS[kind](file), kind, name, most))


def _too_large(kind: str, name: str, most: int) -> PalanError:
    return PalanError(f"{name} expands to more than {most >> 20:,} MB, {EXPANSION} times its size", f"if it is no mistake, deliver it expanded: {kind} -d {name}")


class _Expanded(io.RawIOBase):
    """What is refused where it expands beyond all measure."""

    def __init__(self, within: IO[bytes], kind: str, name: str, most: int) -> None:
        self._within, self._kind, self._called, self._most = within, kind, name, most

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return b"".join(iter(lambda: self.read(PIECE), b""))
        try:
            text = self._within.read(size)
        except _DAMAGED as problem:
            raise PalanError(f"{self._called} is cut off or damaged: {problem}", "deliver it again, whole; nothing was taken in") from problem
        if self.tell() > self._most:
            raise _too_large(self._kind, self._called, self._most)
        return text

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        text = self.read(len(view))
        view[: len(text)] = text
        return len(text)

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            while self.read(PIECE):
                pass
            place += self.tell()
        return self._within.seek(place, io.SEEK_CUR if whence == io.SEEK_CUR else io.SEEK_SET)

    def tell(self) -> int:
        return self._within.tell()
