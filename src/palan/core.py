"""Values that every room shares: ids, time, digests, schemas, versions. No I/O, no heavy imports."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import floor, isfinite, log10
from typing import Any, Literal

import msgspec

from palan.errors import Invalid

Clock = Callable[[], datetime]
"""Tells the time, always aware and in UTC. Time comes in as an argument; only the edges call `utcnow`."""

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_canonical = msgspec.json.Encoder(order="deterministic")


def utcnow() -> datetime:
    return datetime.now(UTC)


def new_id(time: datetime, random: Callable[[int], bytes] = os.urandom) -> str:
    """Return 26 characters that sort by time: 48 bits of milliseconds and 80 random bits (the ULID layout)."""
    return id_from(int(time.timestamp() * 1000) << 80 | int.from_bytes(random(10), "big"))


def id_from(number: int) -> str:
    """Return 128 bits as the 26 characters of an id."""
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def utc(time: datetime) -> datetime:
    """Return the time in UTC; without an offset it is taken as UTC.

    Raises:
        ValueError: in UTC it lies outside the years 1 to 9999, which is all that a time can say.
    """
    try:
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{time.isoformat()} lies outside the years 1 to 9999 in UTC") from None


def stamp(time: datetime) -> str:
    """Return the one text form of a time that palan stores: UTC, microseconds, sortable as text."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def unstamp(text: str) -> datetime:
    """Read any ISO 8601 time; without an offset it is taken as UTC.

    Raises:
        ValueError: it is no time, or one that `utc` refuses.
    """
    return utc(datetime.fromisoformat(text))


def is_whole(text: str) -> bool:
    """Tell whether int() may read it: isdigit() alone lets "²" through, and int() refuses thousands of digits."""
    return text.isascii() and text.isdigit() and len(text) < 20


def whole(text: str, name: str, low: int, high: int) -> int:
    """Read a whole number that somebody wrote: ASCII digits and nothing else.

    Raises:
        Invalid: it is none, or lies outside `low` to `high`; `name` is what it was given for.
    """
    if is_whole(text) and low <= int(text) <= high:
        return int(text)
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    raise Invalid(f'{name} is "{shown}"', f"a whole number from {low} to {high}", field=name, value=shown)


def figure(value: float, digits: int = 4) -> str:
    """Return a number as a person reads it: as many digits as count, thousands set apart, and no exponent."""
    if not isfinite(value) or not value:
        return f"{value:g}"
    place = digits - 1 - floor(log10(abs(value)))
    shown = f"{value:,.{min(max(place, 0), 12)}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def natural(name: str) -> list[str | int]:
    """Return a key to sort names as people do: option_2 before option_10."""
    return [int(part) if place % 2 else part.casefold() for place, part in enumerate(re.split(r"([0-9]{1,18})", name))]


def counted(number: int, one: str) -> str:
    """Return a count with its noun: "1 file", "2,000 files"."""
    return f"{number:,} {one}" + ("" if number == 1 else "s")


def digest(data: bytes) -> str:
    """Return the SHA-256 of the bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def canonical(value: object) -> bytes:
    """Return the one JSON encoding of plain values (sorted keys, no spaces), for digests and signatures."""
    return _canonical.encode(value)


def digest_of(value: object) -> str:
    return digest(canonical(value))


FieldType = Literal["int", "float", "bool", "str", "time", "date", "list", "map", "any"]


class Field(msgspec.Struct, frozen=True):
    """One named value of an input: its type and what it may hold.

    `item` describes the elements of a list, `fields` the members of a map. `minimum` and `maximum` are inclusive,
    and so is `length`, in characters; a text matches `pattern` where the expression is found anywhere in it.
    """

    name: str
    type: FieldType
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    values: tuple[str, ...] = ()
    unit: str = ""
    item: Field | None = None
    fields: tuple[Field, ...] = ()
    pattern: str = ""
    length: tuple[int | None, int | None] = (None, None)


class Schema(msgspec.Struct, frozen=True):
    """What a model takes: `rows` (columns of one batch) or one `instance` (a structured document)."""

    shape: Literal["rows", "instance"]
    fields: tuple[Field, ...]

    @property
    def names(self) -> list[str]:
        return [field.name for field in self.fields]


class Version(msgspec.Struct, frozen=True):
    """An immutable model package: `id` is the digest of its manifest, `number` counts versions of one model."""

    id: str
    model: str
    number: int
    kind: str
    manifest: Mapping[str, Any]
    run: str
    time: datetime

    @property
    def ref(self) -> str:
        return f"{self.model}@{self.number}"
