"""Frames of one length beside one another, as arrays: a million of them are read without an object for each.

That every frame is as it was written is proven by one checksum over all of them. A CRC is linear: the checksum of a whole
follows from those of its parts, so it is that of the bytes only where each frame's own one is right.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palan.stores.contract import Batch, Table
from palan.stores.segments import HEADER

_FEW = 32
"""Frames of one length in a row from which on they are read as an array, and how many others are read before the next attempt."""

_HEADED = 0x2144DF1C
"""The CRC-32 of any bytes with their own CRC-32 behind them: that of the header of a whole frame."""

_POLYNOMIAL = 0xEDB88320


def whole(segment: str, start: int, data: bytes) -> Batch | None:
    """Return the frames that `data` holds, which begins at byte `start` of a segment, up to the first that is not there to its end.

    Returns None where anything is not as it was written.
    """
    raw, size = np.frombuffer(data, np.uint8), len(data)
    tables: list[Table] = []
    loose: dict[int, tuple[list[int], list[bytes]]] = {}
    at = looked = 0
    while at + HEADER.size <= size:
        length, crc, header_crc = HEADER.unpack_from(data, at)
        step = HEADER.size + length
        if not length or at + step > size:
            if length and zlib.crc32(data[at : at + 8]) == header_crc:
                break  # its writer is not done, or the next piece of the segment has the rest
            if data[at:].strip(b"\0"):
                return None
            break  # room that a loss of power left empty
        if at >= looked:
            count = _alike(data, at, length, (size - at) // step)
            if count >= _FEW:
                if zlib.crc32(memoryview(data)[at : at + count * step]) != _told(data, at, length, count):
                    return None
                if length in loose:  # those of one length stay in order
                    tables.append(_table(*loose.pop(length)))
                frames = raw[at : at + count * step].reshape(count, step)[:, HEADER.size :]
                tables.append((start + at + step * np.arange(1, count + 1), frames))
                at += count * step
                continue
            looked = at + _FEW * step
        frame = data[at : at + step]
        if zlib.crc32(frame) != crc ^ _before(length):
            return None
        at += step
        ends, some = loose.setdefault(length, ([], []))
        ends.append(start + at)
        some.append(frame[HEADER.size :])
    return Batch(segment, start + at, [*tables, *(_table(ends, some) for ends, some in loose.values())])


def stacked(segment: str, end: int, frames: Iterable[tuple[int, bytes]]) -> Batch:
    """Return frames of a segment, each with the place where it ends; `end` is where the next one begins."""
    alike: dict[int, tuple[list[int], list[bytes]]] = {}
    for place, frame in frames:
        ends, some = alike.setdefault(len(frame), ([], []))
        ends.append(place)
        some.append(frame)
    return Batch(segment, end, [_table(ends, some) for ends, some in alike.values()])


def _table(ends: list[int], frames: list[bytes]) -> Table:
    return np.array(ends), np.frombuffer(b"".join(frames), np.uint8).reshape(len(frames), -1)


def _alike(data: bytes, at: int, length: int, most: int) -> int:
    """Return how many frames of this length follow one another, `most` at the most; fewer than `_FEW` are not counted to the end."""
    for many in (min(_FEW, most), most):
        lengths: NDArray[np.uint32] = np.ndarray((many,), "<u4", data, at, (HEADER.size + length,))
        other = lengths != length
        if other.any():
            return int(other.argmax())
    return most


def _told(data: bytes, at: int, length: int, count: int) -> int:
    """Return the checksum of `count` frames of one length, as it follows from the checksums in their headers."""
    crcs: NDArray[np.uint32] = np.ndarray((count,), "<u4", data, at + 4, (HEADER.size + length,))
    parts = np.zeros(1 << (count - 1).bit_length(), np.uint32)  # in front an empty part: it changes nothing
    parts[-count:] = crcs ^ np.uint32(_before(length))
    bits = _beyond(HEADER.size + length)
    while len(parts) > 1:
        parts = _moved(bits, parts[::2]) ^ parts[1::2]
        bits = _times(bits, bits)
    return int(parts[0])


@lru_cache(1024)
def _before(length: int) -> int:
    """Return the part that the header has in the checksum of a whole frame."""
    return _times(_beyond(length), _HEADED)


def _moved(by: int, crcs: Any) -> Any:
    """Return the part that checksums have in those of more bytes, which lie behind theirs."""
    tables = _tables(by)
    return tables[0][crcs & 255] ^ tables[1][crcs >> 8 & 255] ^ tables[2][crcs >> 16 & 255] ^ tables[3][crcs >> 24]


@lru_cache(1024)
def _tables(by: int) -> NDArray[np.uint32]:
    """Return what every byte of a checksum, at each of its four places, is multiplied to."""
    tables = np.zeros((4, 256), np.uint32)
    values = np.arange(256)
    for bit in range(32):
        tables[bit // 8] ^= np.where(values >> bit % 8 & 1, np.uint32(_times(by, 1 << bit)), np.uint32(0))
    return tables


@lru_cache(4096)
def _times(a: int, b: int) -> int:
    """Multiply two polynomials over GF(2), modulo that of CRC-32; the highest bit is the coefficient of 1."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@lru_cache(1024)
def _beyond(size: int) -> int:
    """Return the polynomial that moves a checksum beyond so many bytes: x to the power of their bits."""
    power, square = 1 << 31, 1 << 23  # 1, and x to the power of 8
    while size:
        if size & 1:
            power = _times(power, square)
        square = _times(square, square)
        size >>= 1
    return power
