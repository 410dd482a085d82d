"""`palan log`: the ledger as sentences, and the proof that nobody changed it, nor what it tells of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import msgspec

from palan.core import Version, digest_of, stamp
from palan.data.nouns import DataVersion
from palan.errors import Corrupt
from palan.flows.project import Project, is_sealed
from palan.gates.nouns import Evidence
from palan.ledger import Break, Entry, Head, loose_end, sentence
from palan.ledger import verify as walk
from palan.releases.nouns import Release


def log(project: Project, subject: str = "", *, limit: int = 50, verify: bool = False) -> dict[str, Any]:
    """Return the newest entries (about one subject when it is given), oldest first, and with `verify` every break.

    A break names an edited, removed or reordered entry; a release, a version or evidence that is not what the ledger
    tells; or a closed segment of a log that is gone or shorter than it was.
    """
    records = project.store.records
    breaks: list[Break] = []
    if verify:
        entries, found = ledger_breaks(project, records.find)
        total = len(entries)
        breaks = [*found, *(Break(0, what) for what in project.store.blocks.lost())]
        newest = list(reversed(entries))
    else:
        newest = records.find(Entry, order="-seq", limit=None if subject else limit)
        total = newest[0].seq if newest else 0
    chosen = [each for each in newest if _about(each, subject)][:limit]
    return {
        "entries": [as_dict(each) for each in reversed(chosen)],
        "total": total,
        "verified": verify,
        "breaks": [{"seq": each.seq, "what": each.what} for each in breaks],
        "head": newest[0].digest if newest else "",
    }


Find = Callable[[type[Any]], list[Any]]


def ledger_breaks(project: Project, find: Find) -> tuple[list[Entry], list[Break]]:
    """Return all entries, and every break of the ledger and of what it tells of, as `find` reads them.

    Others may write meanwhile: it is read again until its end has stayed where it was, and at last while they wait.
    """
    records = project.store.records
    for last in (False, False, False, True):
        with records.transaction() if last else nullcontext():
            head = records.get(Head, "ledger")
            entries: list[Entry] = find(Entry)
            breaks = [*chain(project, entries), *unlike_the_ledger(entries, find(Release), find(Version), find(Evidence))]
            if not breaks or head == records.get(Head, "ledger"):
                break
    return entries, breaks


def chain(project: Project, entries: Sequence[Entry]) -> list[Break]:
    """Name every break of the ledger itself, given all of its entries in order."""
    records = project.store.records
    head = records.get(Head, "ledger")
    if not entries and head is None:
        lived = any(records.find(noun, limit=1) for noun in (Version, DataVersion, Release, Evidence))
        return [Break(0, "the whole ledger is gone: what it told of is there, but no entry")] if lived else []
    breaks = walk(entries)
    try:
        end = loose_end(entries[-1] if entries else None, head, sealed=head is None or is_sealed(project, head))
    except Corrupt as error:  # the key is gone or damaged
        end = error.what
    return [*breaks, Break(len(entries), end)] if end else breaks


def told(entry: Entry) -> Release | None:
    """Return the release that an entry tells, None when it tells of something else."""
    with suppress(msgspec.ValidationError):
        if "arms" in entry.detail:
            return msgspec.convert({**entry.detail, "reason": entry.detail.get("because", "")}, Release)
    return None


def last_told(project: Project, model: str, stored: Release | None) -> Release | None:
    """Return the release of a model as the ledger tells it last. What is stored says where to look first, and no more."""
    for since in [stored.time, None] if stored else [None]:
        entries = project.store.records.find(Entry, order="-seq", since=since)
        known = next((release for entry in entries if (release := told(entry)) and release.model == model), None)
        if known == stored:
            break
    return known


def forged(project: Project, release: Release) -> str:
    """Say how the stored release differs from what the ledger tells, "" when it does not: only palan changes both."""
    known = last_told(project, release.model, release)
    if project.store.records.get(Release, release.model) != release:  # it has moved on meanwhile: not the one to judge
        return ""
    return unlike(release.model, release, known)


def unlike(model: str, stored: Release | None, known: Release | None) -> str:
    """Say how the stored release of a model differs from the `known` one, which the ledger tells; "" when it does not."""
    if stored == known:
        return ""
    there, said = _routing(stored), _routing(known)
    if there == said:
        return f"the release of {model} was changed behind palan's back: it differs from what the ledger tells"
    return f"the release of {model} was changed behind palan's back: {there} is stored, the ledger tells {said}"


def _routing(release: Release | None) -> str:
    return " and ".join(f"{arm.version} as {arm.role} of {arm.share:.0%}" for arm in release.arms) if release else "none"


def evidence_digest(finding: Evidence) -> str:
    """Return the digest of a finding that the entry of its check keeps."""
    return digest_of(msgspec.json.decode(msgspec.json.encode(finding)))  # as it is read back: figures may hold tuples and sets


def evidence_told(entry: Entry) -> Mapping[str, str]:
    """Return what a `checked` entry keeps of its evidence: id -> digest."""
    kept = entry.detail.get("evidence") if entry.verb == "checked" else None
    return kept if isinstance(kept, dict) else {}


def unlike_the_ledger(entries: Sequence[Entry], releases: Sequence[Release], versions: Sequence[Version], evidence: Sequence[Evidence]) -> Iterator[Break]:
    """Name what the ledger tells otherwise: releases, versions and evidence that nobody but palan may write."""
    if not entries:
        return
    stored = {each.model: each for each in releases}
    known = {release.model: release for entry in entries if (release := told(entry))}
    for model in sorted({*stored, *known}):
        if what := unlike(model, stored.get(model), known.get(model)):
            yield Break(0, what)
    yield from _versions(versions, {each.detail["id"]: each for each in entries if each.verb == "built" and "id" in each.detail})
    said = {id: (digest, each) for each in entries for id, digest in evidence_told(each).items()}
    for finding in evidence:
        digest, _ = said.pop(finding.id, ("", None))
        if digest != evidence_digest(finding):
            yield Break(0, f"the evidence of {finding.version} about its gate {finding.gate} is not what its check wrote down")
    for _, entry in said.values():
        yield Break(entry.seq, f"evidence of {entry.subject}, which entry {entry.seq} tells of, is not there")


def _versions(versions: Sequence[Version], built: Mapping[str, Entry]) -> Iterator[Break]:
    for version in versions:
        entry = built.get(version.id)
        if not is_whole(version):
            yield Break(0, f"{version.ref} was edited: its manifest does not match its id")
        elif entry is None:
            yield Break(0, f"{version.ref} is stored, but the ledger does not tell of its build")
        elif (entry.subject, entry.detail.get("run")) != (version.ref, version.run):
            yield Break(entry.seq, f"{version.ref} was edited: entry {entry.seq} tells of it as {entry.subject}")
    for id in built.keys() - {each.id for each in versions}:
        yield Break(built[id].seq, f"{built[id].subject}, which entry {built[id].seq} tells of, is not there")


def is_whole(version: Version) -> bool:
    """Tell whether a version is what its id names: the digest of its manifest."""
    manifest = {name: value for name, value in version.manifest.items() if name != "signed"}
    return digest_of(manifest) == version.id and (manifest.get("model"), manifest.get("kind")) == (version.model, version.kind)


def _about(each: Entry, subject: str) -> bool:
    return not subject or each.subject == subject or each.subject.startswith((f"{subject}@", f"{subject} "))


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
