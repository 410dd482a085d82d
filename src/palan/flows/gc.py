"""`palan gc`: sweep what nothing names, left-over temporary files, and small segments into large ones.

A blob is put before the record that names it, so one that nothing names may belong to work that still goes on: only those
that were last put longer ago than a grace time are swept. Putting one that is there counts, and none is removed while another
process puts one; in a bucket they go in two steps. Runs that were deleted longer ago than that are freed, with what only
they named. Each removal stands alone: a sweep that was killed has removed less.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from palan.errors import Corrupt
from palan.flows.delete import free
from palan.flows.fold import STREAM, TRACK, fold, forget_vouched, tracked
from palan.flows.project import Project, record
from palan.flows.verify import NOUNS, blobs_of
from palan.runs.run import Curve, Drawn, Folded, Keyset, Run
from palan.stores.contract import Blobs, Blocks
from palan.stores.segments import SegmentBlocks

GRACE = timedelta(days=1)
"""How long ago a blob must have been put; longer than the longest build lasts."""

WRITING = timedelta(hours=1)
"""How long a temporary file may stand unchanged while somebody writes it."""

SEGMENTS = 16
"""Closed segments of a stream that are worth a compaction."""

MANY = 256
"""Processes that tracked runs after which a tick compacts what is left of them."""

_DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_WITHOUT = (Curve, Drawn, Keyset, Folded)  # numbers and names of metrics


def gc(project: Project, *, dry_run: bool = False, older_than: timedelta = GRACE) -> dict[str, Any]:
    """Sweep the store, beside whoever works with it; with `dry_run` say what would go.

    Raises:
        Corrupt: records are damaged: what they name cannot be known, and nothing is swept.
    """
    now = project.clock()
    before = now - older_than
    blobs = project.store.blobs
    freed = free(project, before, dry_run=dry_run)  # first: then nothing names their blobs
    swept = _blobs(project, blobs, before, dry_run)
    files = _files(project.folder, min(before, now - WRITING), dry_run)
    streams = _streams(project, before, dry_run)
    if not dry_run:
        forget_vouched(project, before)
    found = {
        "dry_run": dry_run,
        "runs": freed,
        "blobs": [{"blob": key, "bytes": size} for key, size in swept.items()],
        "files": [{"file": str(path), "bytes": size} for path, size in files.items()],
        "streams": [{"stream": name, "segments": segments, "frames": frames} for name, segments, frames in streams],
        "bytes": sum(swept.values()) + sum(files.values()),
    }
    if not dry_run and (freed or swept or files or streams):
        told: dict[str, Any] = {"blobs": len(swept), "files": len(files), "bytes": found["bytes"], "segments": sum(segments for _, segments, _ in streams)}
        told |= {"runs": freed} if freed else {}
        record(project, "gc", "store", f"nothing named them for {older_than.total_seconds() / 3600:g} hours", **told)
    return found


def _blobs(project: Project, blobs: Blobs, before: datetime, dry_run: bool) -> dict[str, int]:
    old = dict(blobs.unused(before))
    fold(project)  # what processes logged names blobs too
    named = _named(project)  # after the blobs were listed: whatever was named meanwhile is seen
    loose = {key: size for key, size in old.items() if key not in named}
    if dry_run:
        return loose
    blobs.settle(named, before)
    project.tell(f"{len(loose):,} of {len(old):,} blobs are named by nothing")
    return {key: size for key in loose if (size := blobs.remove(key, before)) is not None}


def _named(project: Project) -> set[str]:
    """Return every digest that stands anywhere in the records: rather keep a blob too many."""
    named = project.store.blocks.blobs()
    for noun in NOUNS:
        for each in project.store.records.walk(noun) if noun not in _WITHOUT else ():
            if isinstance(each, Corrupt):
                raise Corrupt(f"nothing was swept, for it cannot be known what is needed: {each.what}", "palan verify")
            named |= blobs_of(each) | {found.decode() for found in _DIGEST.findall(msgspec.json.encode(each))}
    return named


def _files(folder: Path, before: datetime, dry_run: bool) -> dict[Path, int]:
    """Sweep what processes that were killed had begun to write: `.….tmp`, and segments that never got their name."""
    found = {}
    for path in [*folder.rglob(".*.tmp"), *(folder / "blocks").rglob("*.new")]:
        try:
            about = path.stat()
            if path.is_file() and about.st_mtime < before.timestamp():
                found[path] = about.st_size
                if not dry_run:
                    path.unlink()
        except FileNotFoundError:  # its writer was faster
            found.pop(path, None)
    return found


def _streams(project: Project, before: datetime, dry_run: bool) -> list[tuple[str, int, int]]:
    """Compact streams with many closed segments; return for each how many, and the frames that were moved."""
    blocks, here = project.store.blocks, tracked(project)
    found = []
    ended = _closed(blocks.root) if isinstance(blocks, SegmentBlocks) else ((stream, sum(not alive for alive in blocks.writers(stream).values())) for stream in blocks.streams())
    for stream, segments in ended:
        if stream != STREAM and segments >= SEGMENTS:
            found.append((stream, segments, 0 if dry_run else _compact(blocks, stream, None)))
    settled = _settled(project, here, before) if isinstance(here, SegmentBlocks) else set()
    if len(settled) >= SEGMENTS:
        found.append((STREAM, len(settled), 0 if dry_run else _compact(here, STREAM, settled)))
    return found


def tidy(project: Project, *, older_than: timedelta = GRACE) -> str:
    """Compact what is left of many processes that tracked runs; say how many segments that were, or nothing."""
    here = tracked(project)
    if not isinstance(here, SegmentBlocks) or len(here.writers(STREAM)) < MANY:
        return ""
    settled = _settled(project, here, project.clock() - older_than)
    if len(settled) < MANY:
        return ""
    return f"{len(settled):,} segments, {_compact(here, STREAM, settled):,} frames"


def _settled(project: Project, blocks: SegmentBlocks, before: datetime) -> set[str]:
    """Return the segments of the stream of runs that hold only what records hold, and whose process will not come back.

    While one of its runs goes on a segment stays: it tells whether its process lives. So do young ones, which a process on
    another machine that was not heard for a while may go on with.
    """
    fold(project)
    records, writers = project.store.records, blocks.writers(STREAM)
    at_work = {run.holder for run in records.find(Run, flow=TRACK, status="running")}
    reached = {each.segment: each.reached for each in records.find(Folded)}
    found = set()
    for segment, size in blocks.sizes(STREAM).items():
        holder = segment.partition("_")[0]
        if not writers.get(holder, True) and holder not in at_work and reached.get(segment, 0) >= size and _age(blocks.root / STREAM / f"{segment}.seg") < before.timestamp():
            found.add(segment)
    return found


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _compact(blocks: Blocks, stream: str, only: set[str] | None) -> int:
    moved = 0
    while some := blocks.compact(stream, only):
        moved += some
    return moved


def _closed(root: Path) -> Iterator[tuple[str, int]]:
    for folder in sorted({path.parent for path in root.rglob("*.end")}):
        ends = {path.name.partition(".")[0] for path in folder.glob("*.end")}
        yield folder.relative_to(root).as_posix(), sum(path.stem in ends for path in folder.glob("*.seg"))
