"""`palan verify`: everything that the store holds is read, and each damage is named, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from palan.core import Version
from palan.data.nouns import DataVersion, Quarantine
from palan.decisions.nouns import Job
from palan.drift.nouns import Alarm
from palan.errors import Corrupt, NotFound, PalanError
from palan.flows.fold import is_shared, tracked
from palan.flows.log import ledger_breaks, unlike_the_ledger
from palan.flows.project import Project
from palan.gates.nouns import Evidence
from palan.ledger import Entry, Head
from palan.ledger import verify as walk
from palan.releases.nouns import Release
from palan.remedies.nouns import Remedy
from palan.runs.mlflow import Experiment, Input, LoggedModel
from palan.runs.registered import ModelVersion, RegisteredModel
from palan.runs.run import Artifact, Attempt, Curve, Folded, Keyset, Run, Step, Value
from palan.stores import sql
from palan.stores.files import is_digest

NOUNS: tuple[type, ...] = (Run, Step, DataVersion, Quarantine, Version, Evidence, Release, Job, Alarm, Remedy, Entry, Head, Value, Curve, Keyset, Folded, Artifact, Experiment, Input, RegisteredModel, ModelVersion, LoggedModel, Attempt)
"""All that is kept as records, but for the leases."""

_ONE = {"blob", "reference", "request", "output"}
_MANY = {"blobs", "parts", "masks", "state", "code"}
"""Fields that hold the digest of a blob, and those that hold a list or a table of them. Other digests name no blobs."""

_TOLD = 1 << 30  # bytes between two lines of progress
_IN_A_ROW = 3  # blobs that cannot be read, until it is the whole store that cannot


class Finding(msgspec.Struct, frozen=True):
    """What is wrong, in which part of the store, and the next thing to type."""

    part: str  # records | ledger | blocks | blobs
    what: str
    next: str


def verify(project: Project) -> dict[str, Any]:
    """Read all records, the ledger, every block and every blob; return what is damaged, missing or changed.

    Damage does not end the walk. What cannot be judged at all, such as a server that does not answer, raises.
    """
    named = dict.fromkeys(project.store.blocks.blobs(), "compacted segments")
    report: dict[str, Any] = {"records": 0, "entries": 0, "files": 0, "frames": 0, "blobs": 0, "unnamed": 0, "bytes": 0}
    findings = [*_records(project, named, report), *_ledger(project, report), *_blocks(project, report), *_blobs(project, named, report)]
    unique = list(dict.fromkeys(findings))  # the walk and the notes of what was closed may meet the same damage
    return {**report, "findings": [msgspec.to_builtins(each) for each in unique]}


def _restore(project: Project) -> str:
    if "://" in project.config.store:
        return "take it from the database's own backup (pg_restore)"
    return "palan restore FILE --into FOLDER, and take it from there"


def _records(project: Project, named: dict[str, str], report: dict[str, Any]) -> Iterator[Finding]:
    """Read every row; `named` gets the digest of each blob that one names, and which one."""
    records = project.store.records
    project.tell("reading the records")
    for what in records.verify():
        yield Finding("records", what, _restore(project))
    for noun in sorted(NOUNS, key=lambda noun: noun is Step):  # a blob is better known by what it is than by the step that made it
        for each in records.walk(noun):
            report["records"] += 1
            if isinstance(each, Corrupt):
                yield Finding("records", each.what, _restore(project))
                continue
            for key in blobs_of(each):
                named.setdefault(key, _title(each))


def _title(noun: object) -> str:
    first = str(getattr(noun, sql.table(type(noun)).key))
    return str(getattr(noun, "ref", f"{type(noun).__name__.lower()} {first[:26]}"))


def blobs_of(noun: object) -> set[str]:
    """Return the digests of the blobs that a noun names."""
    fields = msgspec.to_builtins(noun)
    return set(_digests({name: value for name, value in fields.items() if not (isinstance(noun, Step) and name == "parts")}, False))


def _digests(value: object, held: bool) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _digests(each, held or name in _ONE or (name in _MANY and not isinstance(each, str)))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _digests(each, held)
    elif held and isinstance(value, str) and is_digest(value):
        yield value


def _ledger(project: Project, report: dict[str, Any]) -> Iterator[Finding]:
    project.tell("reading the ledger")
    told = "palan log --verify, and compare with a backup"

    def whole(noun: type[Any]) -> list[Any]:  # what is damaged was found with the records
        return [each for each in project.store.records.walk(noun) if not isinstance(each, Corrupt)]

    try:
        entries, breaks = ledger_breaks(project, whole)
    except Corrupt as error:  # the note of where it ends
        yield Finding("ledger", f"its end cannot be judged: {error.what}", told)
        entries = whole(Entry)
        breaks = [*walk(entries), *unlike_the_ledger(entries, whole(Release), whole(Version), whole(Evidence))]
    report["entries"] = len(entries)
    for each in breaks:
        yield Finding("ledger", each.what, told)


def _blocks(project: Project, report: dict[str, Any]) -> Iterator[Finding]:
    project.tell("reading the blocks")
    size = 0
    places = (project.store.blocks, tracked(project)) if is_shared(project) else (project.store.blocks,)
    for each in (found for place in places for found in place.verify()):
        report["files"] += 1
        report["frames"] += each.frames
        report["bytes"] += each.bytes
        size += each.bytes
        if size // _TOLD > (size - each.bytes) // _TOLD:
            project.tell(f"  {size >> 30} GB of blocks")
        for what in each.damage:
            yield Finding("blocks", what, _restore(project))
    for what in (found for place in places for found in place.lost()):
        yield Finding("blocks", what, _restore(project))


def _blobs(project: Project, named: dict[str, str], report: dict[str, Any]) -> Iterator[Finding]:
    blobs = project.store.blobs
    project.tell(f"reading the blobs, {len(named):,} are named by records")
    missing, size, unreadable = dict(named), 0, 0
    for key in blobs.names():
        missing.pop(key, None)
        report["blobs"] += 1
        report["unnamed"] += key not in named
        try:
            found = blobs.verify(key)
        except PalanError as error:
            unreadable = 0 if isinstance(error, Corrupt | NotFound) else unreadable + 1
            if unreadable > _IN_A_ROW:
                raise
            yield Finding("blobs", f"{error.what}{f', which {named[key]} needs' if key in named else ''}", _restore_blob(project, key))
            continue
        unreadable = 0
        report["bytes"] += found
        size += found
        if size // _TOLD > (size - found) // _TOLD:
            project.tell(f"  {size >> 30} GB of blobs")
    for key, noun in missing.items():
        yield Finding("blobs", f"blob {key} is not there, which {noun} needs", _restore_blob(project, key))


def _restore_blob(project: Project, key: str) -> str:
    if project.config.blobs:
        return f"take an older version of {project.config.blobs}/{key} from the bucket"
    return f"palan restore FILE --into FOLDER, and take blobs/{key[:2]}/{key} from its store"
