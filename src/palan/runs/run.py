"""A run: one attempt, with everything needed to repeat it, what was measured in it, and its durable steps."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

import msgspec

Kind = Literal["param", "metric", "tag"]


Stamped = Annotated[str, datetime]
"""A time as it is stored, and as `stamp` writes it."""


class Run(msgspec.Struct, frozen=True):
    """One attempt of a flow, or one that somebody tracks: then `flow` is "track" and `subject` the experiment.

    `status` is running | done | failed | killed; `token` is the fence of its holder's lease. What it was given and
    measured lies in `Value`, `Curve` and `Artifact`.
    """

    id: str
    flow: str
    subject: str
    status: str
    time: datetime
    ended: datetime | None = None
    holder: str = ""
    token: int = 0
    params: Mapping[str, Any] = {}
    metrics: Mapping[str, float] = {}
    tags: Mapping[str, str] = {}
    code: str = ""
    data: Mapping[str, int] = {}
    environment: Mapping[str, str] = {}
    reason: str = ""
    name: str = ""
    parent: str = ""
    deleted: datetime | None = None  # put aside, until somebody restores it or palan gc frees it


class Listed(msgspec.Struct, frozen=True, gc=False):
    """What a list shows of a run. Its times stay as they are stored: fifty runs are told in the time of a few."""

    TABLE: ClassVar[str] = "run"

    id: str
    flow: str
    subject: str
    status: str
    time: Stamped
    ended: Stamped | None = None
    code: str = ""
    reason: str = ""
    name: str = ""
    parent: str = ""
    deleted: Stamped | None = None


class Value(msgspec.Struct, frozen=True, gc=False):
    """A parameter or a tag of a run, or what the points of a metric come to: its last value and its extremes.

    `text` is what was given; for a metric it is set where the last value is no number (NaN). `number` is the value as a
    number, where it is one. `time` is in nanoseconds since 1970.
    """

    KEY: ClassVar[tuple[str, ...]] = ("run", "kind", "key")

    run: str
    kind: Kind
    key: str
    text: str | None = None
    number: float | None = None
    least: float | None = None
    largest: float | None = None
    count: int = 0
    step: int = 0
    time: int = 0


class Shown(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a list of runs shows of a metric. It is laid out like a row, so that a thousand of them are made at once."""

    TABLE: ClassVar[str] = "value"
    KEY: ClassVar[tuple[str, ...]] = ("run", "kind", "key")

    run: str
    key: str
    number: float | None = None


class Curve(msgspec.Struct, frozen=True):
    """Points of one run and keyset, in the order of writing: `data` is a packed block, `outline` what is enough to draw it."""

    KEY: ClassVar[tuple[str, ...]] = ("run", "keyset", "part")

    run: str
    keyset: str
    part: int
    points: int
    outline: bytes
    data: bytes


class Drawn(msgspec.Struct, frozen=True):
    """A part of a curve without its points."""

    TABLE: ClassVar[str] = "curve"
    KEY: ClassVar[tuple[str, ...]] = ("run", "keyset", "part")

    run: str
    keyset: str
    part: int
    points: int
    outline: bytes


class Part(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """How many points a part of a curve has."""

    TABLE: ClassVar[str] = "curve"
    KEY: ClassVar[tuple[str, ...]] = ("run", "keyset", "part")

    run: str
    keyset: str
    part: int
    points: int


class Keyset(msgspec.Struct, frozen=True):
    """The names that points carry values for; `id` is the digest of them."""

    id: str
    names: tuple[str, ...]


class Folded(msgspec.Struct, frozen=True):
    """How far a segment of the stream of runs was read into records."""

    segment: str
    reached: int


class Artifact(msgspec.Struct, frozen=True):
    """A file that a run kept: its blob, by the path it is called."""

    KEY: ClassVar[tuple[str, ...]] = ("run", "path")

    run: str
    path: str
    blob: str
    size: int
    time: datetime


class Step(msgspec.Struct, frozen=True):
    """A recorded step. `id` is its content key; `parts` are the digests that made the key, so `why` can tell what changed."""

    id: str
    run: str
    name: str
    value: Any
    parts: Mapping[str, Any]
    time: datetime
    seconds: float


class Attempt(msgspec.Struct, frozen=True):
    """A step, or an effect, that was begun and has not ended: how often in a row, by which run last, and how that went.

    `id` is the step's key. It goes when the step is recorded; of an effect it is the intent.
    """

    id: str
    name: str
    run: str
    count: int
    time: datetime
    reason: str


def number(text: str) -> float | None:
    """Return what a text is as a number, where it is one."""
    try:
        found = float(text)
    except ValueError:
        return None
    return None if found != found else found
