"""`palan log`: the ledger as sentences, and the proof that nobody changed it."""

from __future__ import annotations

import hmac
from typing import Any

from palan.core import Version, stamp
from palan.flows.project import Project, head_seal
from palan.ledger import Entry, Head, sentence
from palan.ledger import verify as walk


def log(project: Project, subject: str = "", *, limit: int = 50, verify: bool = False) -> dict[str, Any]:
    """Return the newest entries (about one subject when it is given), oldest first, and with `verify` every break.

    A break names an edited, removed or reordered entry.
    """
    records = project.store.records
    breaks: list[dict[str, Any]] = []
    total = 0
    if verify:
        entries = records.find(Entry)
        total = len(entries)
        head = records.get(Head, "ledger")
        breaks = [{"seq": each.seq, "what": each.what} for each in walk(entries, head)]
        if entries and (head is None or not hmac.compare_digest(head.seal, head_seal(project, head.seq, head.digest))):
            breaks.append({"seq": total, "what": "the note of where the ledger ends was not written by this project"})
        if not entries and head is None and records.find(Version, limit=1):
            breaks.append({"seq": 0, "what": "the whole ledger is gone: there are versions, but not the entries of their builds"})
        newest = list(reversed(entries))
    else:
        newest = records.find(Entry, order="-seq", limit=None if subject else limit)
        total = newest[0].seq if newest else 0
    chosen = [each for each in newest if _about(each, subject)][:limit]
    return {
        "entries": [as_dict(each) for each in reversed(chosen)],
        "total": total,
        "verified": verify,
        "breaks": breaks,
        "head": newest[0].digest if newest else "",
    }


def _about(entry: Entry, subject: str) -> bool:
    return not subject or entry.subject == subject or entry.subject.startswith((f"{subject}@", f"{subject} "))


def as_dict(entry: Entry) -> dict[str, Any]:
    """Return an entry as plain values, with its sentence."""
    return {
        "seq": entry.seq,
        "time": stamp(entry.time),
        "actor": entry.actor,
        "verb": entry.verb,
        "subject": entry.subject,
        "reason": entry.reason,
        "detail": dict(entry.detail),
        "digest": entry.digest,
        "sentence": sentence(entry),
    }
