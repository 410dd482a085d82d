"""What a store must do. Three small contracts, all abstract; `palan.testing` holds the suite that every one passes.

A store knows no nouns: a noun is a frozen `msgspec.Struct` with an `id` (or a first field that is its key), and the store
keeps it in the table of the same name. Fields are text, numbers, booleans, aware datetimes, or plain values kept as JSON.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from palan.errors import Corrupt

if TYPE_CHECKING:
    from palan.runs.search import Condition, Order

T = TypeVar("T")

Position = Mapping[str, int]
"""How far a stream was read: the end offset in each of its segments."""


class Lease(msgspec.Struct, frozen=True):
    """The right to work on `name` until `expires`. `token` rises at each change of holder: the fence."""

    name: str
    holder: str
    token: int
    expires: datetime


class Frame(msgspec.Struct, frozen=True):
    """One appended record of a stream, and the place where the next one begins."""

    segment: str
    end: int
    data: bytes


Table = tuple[Any, Any]
"""Frames of one length: where each ends, shape (n,), and their bytes, shape (n, length)."""


class Batch(msgspec.Struct, frozen=True):
    """Some frames of one segment, those of one length in order, and the place where the next one begins."""

    segment: str
    end: int
    tables: list[Table]


class Verified(msgspec.Struct, frozen=True):
    """One file of blocks that was read through: what it holds, and what of it is damaged, a sentence for each byte range."""

    name: str
    frames: int
    bytes: int
    damage: tuple[str, ...]


def refuse(damage: Corrupt) -> None:
    """Raise: whoever did not say that damage is passed over gets nothing from behind it."""
    raise damage


class Records(ABC):
    """Few, related, transactional: runs, versions, releases, alarms, jobs, the ledger."""

    @abstractmethod
    def put(self, *nouns: object) -> None:
        """Insert nouns, or replace those with the same key; many of one kind go in at once."""

    @abstractmethod
    def add(self, noun: object, *, under: Lease | None = None) -> bool:
        """Insert the noun; return False, and change nothing, if its key is taken, or if the lease `under` was taken over."""

    @abstractmethod
    def remove(self, noun: type, key: Sequence[str | int]) -> None:
        """Remove the noun with this key (a value for each field of it), if it is there."""

    @abstractmethod
    def get(self, noun: type[T], key: str | int) -> T | None:
        """Return the noun with this key, or None."""

    @abstractmethod
    def find(
        self,
        noun: type[T],
        *,
        order: str = "",
        limit: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        **where: object,
    ) -> list[T]:
        """Return the nouns whose fields equal `where` (a list or tuple means any of; None means null).

        `since` (inclusive) and `until` (exclusive) bound the field `time`. `order` names a field, with a leading `-`
        for descending; without it the order is that of the key.
        """

    @abstractmethod
    def texts(self, noun: type, field: str, **where: object) -> dict[tuple[str, ...], dict[str, str | None]]:
        """Return a field of text by the last part of the key, in its order, for each beginning of the key; `where` as in `find`."""

    @abstractmethod
    def walk(self, noun: type[T]) -> Iterator[T | Corrupt]:
        """Yield every noun in the order of its key, a few in memory at a time; in the place of one that cannot be read, why."""

    @abstractmethod
    def verify(self) -> list[str]:
        """Say, a sentence each, what of the database itself is damaged, whatever its rows hold."""

    @abstractmethod
    def search(
        self, noun: type[T], where: Condition | None = None, order: Sequence[Order] = (), *, after: Sequence[Any] = (), limit: int
    ) -> list[tuple[T, list[Any]]]:
        """Return the nouns that a search finds, each with its place: given as `after` it continues there.

        What a condition or an order says of parameters, metrics and tags is looked up in the `value`s of the noun. What
        lacks a key of the order comes last; at the end they are ordered by time, the newest first.
        """

    @abstractmethod
    def swap(self, noun: object, *, epoch: int) -> bool:
        """Replace the noun if the stored one still has this `epoch` (0: none is stored yet); else return False."""

    @abstractmethod
    def claim(
        self, noun: type[T], changes: Mapping[str, object], *, order: Sequence[str], limit: int, but: Mapping[str, Sequence[str]] | None = None, **where: object
    ) -> list[T]:
        """Change the first `limit` nouns whose fields equal `where`, and none of `but`; return them as they are now, in no order.

        Each goes to one caller alone, and nobody waits for another one's. `order` names fields, as `find` does.
        """

    @abstractmethod
    def transaction(self, *, durable: bool = False) -> AbstractContextManager[None]:
        """All or nothing, and alone: writes of other processes wait. Nested calls join the outer one.

        A commit survives the death of the process; with `durable`, asked for here or in a nested call, a loss of power too.
        """

    @abstractmethod
    def lease(self, name: str, holder: str, ttl: timedelta, *, now: datetime) -> Lease | None:
        """Take the lease, or extend it if `holder` has it; None while somebody else does.

        A lease that ran out passes to whoever asks, with a higher token. Inside a transaction this is also the fence:
        whoever gets its own token back may record.
        """

    @abstractmethod
    def free(self, lease: Lease) -> None:
        """Give the lease back if it is still the holder's."""

    @abstractmethod
    def close(self) -> None:
        """Release files and connections; calling it twice does nothing."""


class Blocks(ABC):
    """Many, append-only: decisions, outcomes, curves, profiles."""

    @abstractmethod
    def append(self, stream: str, frames: Sequence[bytes], *, durable: bool = False) -> int:
        """Write all frames (one byte each at least), in the kernel before it returns; with `durable`, on the disk. Return the offset."""

    @abstractmethod
    def scan(self, stream: str, after: Position | None = None, damaged: Callable[[Corrupt], None] = refuse) -> Iterator[Frame]:
        """Yield whole frames past `after`, each segment in order of writing.

        The torn tail of a segment whose writer was killed ends it silently. `damaged` is told of what cannot be read: it
        raises, or what is whole behind the damage comes next.

        Raises:
            Corrupt: a frame before the tail does not match its checksum; the byte range is named. Or a closed segment is
                gone or shorter than it was, told after the whole frames.
        """

    @abstractmethod
    def sizes(self, stream: str) -> dict[str, int]:
        """Return how many bytes each segment of a stream holds: cheap, however often it is asked."""

    @abstractmethod
    def read(self, stream: str, segment: str, start: int = 0, damaged: Callable[[Corrupt], None] = refuse) -> Iterator[Batch]:
        """Yield what one segment holds past `start`, some whole frames at a time, as `scan` does."""

    @abstractmethod
    def streams(self) -> list[str]:
        """Return the names of all streams that hold anything, in order."""

    @abstractmethod
    def writers(self, stream: str) -> dict[str, bool]:
        """Tell of each process that wrote the stream whether it may still do so. Its name begins those of its segments,
        up to a `_`. One whose segments were all compacted is left out."""

    @abstractmethod
    def blobs(self) -> set[str]:
        """Return the digests of the blobs that compacted segments lie in."""

    @abstractmethod
    def lost(self) -> list[str]:
        """Say, a sentence each, which parts of any stream are gone or shorter than when they were closed.

        What a process that was killed had not finished is not lost: it was never acknowledged.
        """

    @abstractmethod
    def verify(self) -> Iterator[Verified]:
        """Read everything there is, past any damage, file by file."""

    @abstractmethod
    def compact(self, stream: str, only: Collection[str] | None = None) -> int:
        """Rewrite segments that no process writes any more, all or some, as one compressed file; return the frames moved."""


class Blobs(ABC):
    """Large, immutable, named by their SHA-256."""

    @abstractmethod
    def put(self, data: bytes | Path) -> str:
        """Store the bytes (or the file, streamed) durably, once, and return their digest."""

    @abstractmethod
    def get(self, key: str, into: Path | None = None) -> bytes:
        """Return the bytes, or stream them to the file `into` and return b"".

        Raises:
            NotFound: no such blob.
            Corrupt: the stored bytes have another digest; both are named, and `into` is not written.
        """

    def path(self, key: str) -> Path | None:
        """Return the file that is this blob, once it was found whole; None where blobs are no files. It is not to be changed.

        Raises:
            NotFound, Corrupt: as `get`.
        """
        return None

    @abstractmethod
    def has(self, key: str) -> bool:
        """Tell whether the blob is there."""

    @abstractmethod
    def names(self) -> Iterator[str]:
        """Yield the digest of every blob that is there."""

    @abstractmethod
    def touch(self, key: str) -> bool:
        """Tell whether the blob is there and counts as put now: else whoever is about to name it has to put it."""

    @abstractmethod
    def unused(self, before: datetime) -> Iterator[tuple[str, int]]:
        """Yield the digest and the size of every blob that was last put before then; putting one that is there counts."""

    @abstractmethod
    def remove(self, key: str, before: datetime) -> int | None:
        """Remove a blob that nothing names, unless it was put since `before`; return how many bytes are gone, None if it stays."""

    def settle(self, named: Collection[str], before: datetime) -> None:
        """Forget for good what was removed before then, and bring back what is named all the same: where removing takes two steps."""
        return None

    @abstractmethod
    def verify(self, key: str) -> int:
        """Read the blob through, a piece at a time, and return its size; raise as `get` does."""


class Store(msgspec.Struct, frozen=True):
    """The three together, as one address opens them."""

    records: Records
    blocks: Blocks
    blobs: Blobs
