"""Points of curves: frames as they are written, one a call, and the column blocks that they are folded into.

A point is one step of a run with a value for each of some names: its keyset. A frame carries the run and the digest of the
keyset, so that every frame means the same wherever it is read; the names of a keyset are written once, before its first
use. Blocks keep steps and times once for all names of a keyset, and the least and the largest of every 64 points, so that
a curve of a million points is drawn without reading it.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

KEYSET, POINT, EVENT = b"K", b"P", b"E"
_HEAD = "<c26s8sqq"
_WHOSE, _VALUES = 35, 51
"""Where in the frame of a point run and keyset end, and where the values begin."""

BUCKET = 64
"""Points behind one pair of least and largest."""

BLOCK = 4096
"""Points that one block holds at the most."""


FEW = 16
"""Points below which a block is not deflated: nothing would be gained."""


class Names:
    """Some names in their order, and how a point of them is written."""

    __slots__ = ("digest", "frame", "names", "pack")

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        encoded = msgspec.msgpack.encode(self.names)
        self.digest = hashlib.sha256(encoded).digest()[:8]
        self.frame = KEYSET + encoded
        self.pack = struct.Struct(f"{_HEAD}{len(self.names)}d").pack

    def point(self, run: bytes, step: int, ns: int, values: Iterable[float]) -> bytes:
        """Return the frame of one point.

        Args:
            run: the 26 characters of the run's id.
            ns: nanoseconds since 1970.
            values: one for each name.
        """
        return self.pack(POINT, run, self.digest, step, ns, *values)


class Event(msgspec.Struct, frozen=True, array_like=True):
    """Anything else that happens to a run, and when (nanoseconds since 1970).

    `verb` is start | resume | param | tag | untag | artifact | end, `body` what it is about.
    """

    run: str
    time: int
    verb: str
    body: Any


def event(run: str, ns: int, verb: str, body: Any) -> bytes:
    """Return the frame of an event."""
    return EVENT + msgspec.msgpack.encode(Event(run, ns, verb, body))


def events(frames: Iterable[bytes]) -> list[Event]:
    """Return the events among the frames, in their order."""
    return [msgspec.msgpack.decode(frame[1:], type=Event) for frame in frames if frame[:1] == EVENT]


class Block(msgspec.Struct, frozen=True):
    """Points of one run and keyset, in the order of writing: `values` has a row for each name, shape (names, n)."""

    names: tuple[str, ...]
    steps: Any  # Ints, shape (n,)
    times: Any  # Ints, shape (n,), nanoseconds since 1970
    values: Any  # Floats, shape (names, n)

    def __len__(self) -> int:
        return len(self.steps)


def keysets(frames: Iterable[bytes]) -> dict[bytes, tuple[str, ...]]:
    """Return the keysets that the frames define, by their digests."""
    return {hashlib.sha256(frame[1:]).digest()[:8]: msgspec.msgpack.decode(frame[1:], type=tuple[str, ...]) for frame in frames if frame[:1] == KEYSET}


Table = tuple[Any, Any]
"""Frames of one length: where each ends, shape (n,), and their bytes, shape (n, length)."""


def parted(tables: Iterable[Table]) -> tuple[list[Any], list[bytes]]:
    """Return the frames of points, as arrays of bytes, and all others in the order of writing."""
    points: list[Any] = []
    others: list[tuple[int, bytes]] = []
    for ends, frames in tables:
        is_point = frames[:, 0] == POINT[0]
        if is_point.all():
            points.append(frames)
            continue
        points += [frames[is_point]] if is_point.any() else []
        others += zip(ends[~is_point].tolist(), map(bytes, frames[~is_point]), strict=True)
    return points, [frame for _, frame in sorted(others, key=itemgetter(0))]


def read(tables: Iterable[Any], known: Mapping[bytes, tuple[str, ...]]) -> tuple[dict[tuple[str, bytes], Block], int]:
    """Return the points as one block for each run and keyset, and how many were left out because nobody knows their names.

    Args:
        tables: frames of points as bytes, shape (n, length).
        known: the names of each keyset.
    """
    found: dict[bytes, list[Any]] = {}
    for frames in tables:
        whose = frames[:, 1:_WHOSE]
        if (whose == whose[0]).all():
            found.setdefault(whose[0].tobytes(), []).append(frames)
            continue
        _, first, group = np.unique(np.ascontiguousarray(whose).view(f"S{_WHOSE - 1}")[:, 0], return_index=True, return_inverse=True)
        parts = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
        for place, part in zip(first, parts, strict=True):
            found.setdefault(whose[place].tobytes(), []).append(frames[part])
    blocks, lost = {}, 0
    for key, parts in found.items():
        run, digest = key[:26], key[26:]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        names = known.get(digest, ())
        if rows.shape[1] != _VALUES + 8 * len(names) or not names:
            lost += len(rows)
            continue
        steps, times = (np.ascontiguousarray(rows[:, at : at + 8]).view("<i8")[:, 0] for at in (_WHOSE, _WHOSE + 8))
        values = np.ascontiguousarray(rows[:, _VALUES:]).view("<f8")
        blocks[run.decode(), digest] = Block(names, steps, times, np.ascontiguousarray(values.T))
    return blocks, lost


def joined(blocks: Sequence[Block]) -> Block:
    """Return blocks of one keyset as one."""
    if len(blocks) == 1:
        return blocks[0]
    return Block(
        blocks[0].names,
        np.concatenate([each.steps for each in blocks]),
        np.concatenate([each.times for each in blocks]),
        np.concatenate([each.values for each in blocks], axis=1),
    )


def split(block: Block, size: int = BLOCK) -> list[Block]:
    """Return a block in pieces of `size` points, the last one of what is left."""
    cuts = range(0, len(block), size)
    return [Block(block.names, block.steps[at : at + size], block.times[at : at + size], block.values[:, at : at + size]) for at in cuts]


def pack(block: Block) -> bytes:
    """Return a block as bytes: differences of steps and times, and the values, their bytes sorted by weight, deflated."""
    parts = [_deflated(each) for each in (_differences(block.steps), _differences(block.times), *block.values)]
    return msgspec.msgpack.encode((len(block), block.names, parts))


def _differences(numbers: Ints) -> Ints:
    found = numbers.copy()
    found[1:] -= numbers[:-1]
    return found


def unpack(data: bytes, names: Sequence[str] | None = None) -> Block:
    """Return the block that was packed, of all names or of some."""
    count, every, parts = msgspec.msgpack.decode(data, type=tuple[int, tuple[str, ...], list[bytes]])
    wanted = every if names is None else tuple(names)
    steps, times = (np.cumsum(_inflated(each, np.dtype("<i8"), count)) for each in parts[:2])
    values = np.empty((len(wanted), count))
    for row, name in enumerate(wanted):
        values[row] = _inflated(parts[2 + every.index(name)], np.dtype("<f8"), count)
    return Block(wanted, steps, times, values)


def _deflated(values: NDArray[Any]) -> bytes:
    """Return numbers as bytes: how many of the heaviest bytes of each are deflated, how long the others are, and both.

    The light bytes of measurements are noise, which deflating would take most of its time for and not make smaller.
    """
    if len(values) < FEW:
        return np.ascontiguousarray(values).tobytes()
    planes = np.ascontiguousarray(np.ascontiguousarray(values).view(np.uint8).reshape(len(values), 8).T)
    noise = next((place for place, plane in enumerate(planes) if not _is_noise(plane)), 8)
    return bytes([8 - noise]) + planes[:noise].tobytes() + zlib.compress(planes[noise:].tobytes(), 1)


def _is_noise(plane: NDArray[np.uint8]) -> bool:
    """Tell whether the bytes are spread as chance does it: then the sum of squares of their counts is about n + n * n / 256."""
    count = len(plane)
    squares = int(np.square(np.bincount(plane, minlength=256)).sum())
    return squares < 1.5 * count + count * count / 256 and count >= 256


def _inflated(data: bytes, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    if count < FEW:
        return np.frombuffer(data, dtype)
    noise = (8 - data[0]) * count
    planes = data[1 : 1 + noise] + zlib.decompress(data[1 + noise :]) if data[0] <= 8 else zlib.decompress(data)  # as they were kept at first
    sorted_bytes = np.frombuffer(planes, np.uint8).reshape(8, count)
    return np.ascontiguousarray(sorted_bytes.T).view(dtype).reshape(count)


class Outline(msgspec.Struct, frozen=True):
    """What of a block is enough to draw it: for every `BUCKET` points the first step and time, the least and the largest."""

    names: tuple[str, ...]
    steps: Any  # Ints, shape (buckets,)
    times: Any  # Ints, shape (buckets,), nanoseconds since 1970
    extremes: Any  # Floats, shape (names, buckets, 2), NaN where there is no number


def outline(block: Block, bucket: int = BUCKET) -> Outline:
    """Return the outline of a block."""
    buckets = -(-len(block) // bucket)
    padded = np.full((len(block.names), buckets * bucket), np.nan)
    padded[:, : len(block)] = block.values
    shaped = padded.reshape(len(block.names), buckets, bucket)
    # fmin and fmax pass over NaN, and give it only where there is nothing else
    extremes = np.stack([np.fmin.reduce(shaped, axis=2), np.fmax.reduce(shaped, axis=2)], axis=2)
    return Outline(block.names, np.asarray(block.steps[::bucket]), np.asarray(block.times[::bucket]), extremes)


def pack_outline(drawn: Outline) -> bytes:
    """Return an outline as bytes: steps, times, extremes."""
    return b"".join([drawn.steps.tobytes(), drawn.times.tobytes(), drawn.extremes.tobytes()])


def unpack_outline(data: bytes, names: Sequence[str]) -> Outline:
    """Return the outline that was packed; `names` are those of its block."""
    buckets = len(data) // (8 * (2 + 2 * len(names)))
    steps, times = np.frombuffer(data[: 16 * buckets], np.int64).reshape(2, buckets)
    return Outline(tuple(names), steps, times, np.frombuffer(data[16 * buckets :], np.float64).reshape(len(names), buckets, 2))


def coarser(drawn: Outline, buckets: int) -> Outline:
    """Return an outline of at most so many buckets, which keeps the least and the largest of all."""
    factor = -(-len(drawn.steps) // buckets)
    if factor <= 1:
        return drawn
    count = -(-len(drawn.steps) // factor)
    padded = np.full((len(drawn.names), count * factor, 2), np.nan)
    padded[:, : len(drawn.steps)] = drawn.extremes
    shaped = padded.reshape(len(drawn.names), count, factor, 2)
    extremes = np.stack([np.fmin.reduce(shaped[..., 0], axis=2), np.fmax.reduce(shaped[..., 1], axis=2)], axis=2)
    return Outline(drawn.names, drawn.steps[::factor], drawn.times[::factor], extremes)


class Summary(msgspec.Struct, frozen=True):
    """What one name's points come to. The last value is that of the largest (step, time, value), as MLflow has it."""

    name: str
    value: float
    step: int
    time: int  # nanoseconds since 1970
    least: float | None
    largest: float | None
    count: int


def summaries(block: Block) -> list[Summary]:
    """Return a summary of each name of a block that is not empty."""
    step = block.steps.max()
    same = np.flatnonzero(block.steps == step)
    time = block.times[same].max()
    same = same[block.times[same] == time]
    # among equals the largest is the last; fmin and fmax pass over NaN, and give it only where there is nothing else
    last = np.fmax.reduce(block.values[:, same], axis=1).tolist()
    least = np.fmin.reduce(block.values, axis=1).tolist()
    largest = np.fmax.reduce(block.values, axis=1).tolist()
    return [
        Summary(name, value, int(step), int(time), low if low == low else None, high if high == high else None, len(block))
        for name, value, low, high in zip(block.names, last, least, largest, strict=True)
    ]
