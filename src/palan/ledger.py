"""The append-only account of every change and why, each entry chained to the one before by its digest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from palan.core import digest_of, stamp

GENESIS = "0" * 64

BROKEN = "broken"
"""The verb of the entry that says: the end of the ledger was not as palan left it. It stays a break for ever."""


class Entry(msgspec.Struct, frozen=True):
    """Who did what to which subject, and why. `detail` holds plain values only."""

    seq: int
    time: datetime
    actor: str
    verb: str
    subject: str
    reason: str
    detail: Mapping[str, Any]
    prev: str
    digest: str


class Head(msgspec.Struct, frozen=True):
    """Where the ledger ends, kept beside it: a cut tail shows. `seal` is an HMAC of seq and digest by the project's key."""

    id: str
    seq: int
    digest: str
    seal: str


def seal(entry: Entry) -> str:
    """Return the digest that binds an entry's content and its place in the chain."""
    return digest_of(
        [
            entry.seq,
            stamp(entry.time),
            entry.actor,
            entry.verb,
            entry.subject,
            entry.reason,
            entry.detail,
            entry.prev,
        ]
    )


def link(
    last: Entry | None,
    *,
    time: datetime,
    actor: str,
    verb: str,
    subject: str,
    reason: str,
    detail: Mapping[str, Any] | None = None,
) -> Entry:
    """Return the entry that follows `last` (None for the first one)."""
    entry = Entry(
        seq=last.seq + 1 if last else 1,
        time=time,
        actor=actor,
        verb=verb,
        subject=subject,
        reason=reason,
        detail=dict(detail or {}),
        prev=last.digest if last else GENESIS,
        digest="",
    )
    return replace(entry, digest=seal(entry))


class Break(msgspec.Struct, frozen=True):
    """Where the chain does not hold, and what was found there."""

    seq: int
    what: str


def loose_end(last: Entry | None, head: Head | None, *, sealed: bool = True) -> str:
    """Say what is wrong with the end of the ledger, "" when it ends where its note says.

    `sealed` tells whether the note bears the seal of the project's key.
    """
    if head is None and last is None:
        return ""
    if head is None or not sealed:
        return "the note of where the ledger ends was not written by this project"
    seq, digest = (last.seq, last.digest) if last else (0, GENESIS)
    if (seq, digest) == (head.seq, head.digest):
        return ""
    if seq == head.seq:
        return f"the ledger ended with another entry {seq} than the one that is stored"
    return f"the ledger ended at entry {head.seq}, but what is stored ends at {seq}"


def verify(entries: Iterable[Entry], head: Head | None = None) -> list[Break]:
    """Walk the chain and name every edited, removed or reordered entry, and every break that was met before; with `head` a cut tail too."""
    breaks: list[Break] = []
    expected, prev = 1, GENESIS
    last: Entry | None = None
    for entry in entries:
        if entry.seq != expected:
            breaks.append(Break(expected, f"entry {expected} is missing or out of order: found {entry.seq} in its place"))
        elif entry.prev != prev:
            breaks.append(Break(entry.seq, f"entry {entry.seq} does not follow the one before it"))
        if seal(entry) != entry.digest:
            breaks.append(Break(entry.seq, f"entry {entry.seq} was edited: its content does not match its digest"))
        if entry.verb == BROKEN:
            breaks.append(Break(entry.seq, f"entry {entry.seq} tells of a break before it: {entry.reason}"))
        expected, prev, last = entry.seq + 1, entry.digest, entry
    if head and (end := loose_end(last, head)):
        breaks.append(Break(head.seq, end))
    return breaks


def sentence(entry: Entry) -> str:
    """Return the entry as one line that a person reads."""
    reason = f": {entry.reason}" if entry.reason else ""
    return f"{entry.time:%Y-%m-%d %H:%M} {entry.actor} {entry.verb} {entry.subject}{reason}"
