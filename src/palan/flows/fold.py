"""From the stream of runs to records: what was logged by any process becomes runs, values and curves that can be searched.

Whoever looks folds; nobody has to. What was read and where the reading stopped are written in one transaction, so a fold that
is killed is as if not begun, and one that is done twice adds nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from math import inf
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from palan.errors import Corrupt, PalanError
from palan.flows.project import Project, open_project
from palan.runs.mlflow import Experiment
from palan.runs.run import Artifact, Curve, Folded, Keyset, Part, Run, Value, number
from palan.stores.contract import Batch, Blocks, Lease
from palan.stores.segments import SegmentBlocks

if TYPE_CHECKING:
    from palan.runs.points import Block, Summary
    from palan.runs.points import Event as Told

STREAM = "runs"
TRACK = "track"
"""The flow of a run that somebody tracks."""

AT_ONCE = 4 << 20
"""Bytes of frames that one transaction takes."""

SEGMENTS = 500
"""Segments that one transaction takes at the most."""

PATIENCE = 0.5
"""Seconds after which somebody who looks is shown what there is."""

FOLLOWS = 2.0
"""Seconds between two folds of a server."""

FEW = 16
"""Curves up to which the last parts of each are asked for by themselves."""

KILLED = "its process ended without a word"

VOUCHED = timedelta(seconds=5)
"""How long another machine takes a process for alive that was vouched for."""


def fold(project: Project) -> int:
    """Bring records up to date with what was logged; return how many frames were new.

    What is damaged is passed over, so that one bad disk sector does not hide all runs; `palan verify` names it.
    """
    return _fold(project, inf)[0]


def look(project: Project) -> bool:
    """Fold for a moment; tell whether there is more, which the next look goes on with.

    Who has just waited does not wait again at once: a page asks for many things.
    """
    blocks = tracked(project)
    if monotonic() < _rests.get(blocks, 0.0):
        return True
    _, more = _fold(project, monotonic() + PATIENCE)
    _rests[blocks] = monotonic() + PATIENCE if more else 0.0
    return more


@contextmanager
def following(project: Project) -> Iterator[None]:
    """Fold beside whatever the block does, so that who looks has not to wait for it; on connections of its own."""
    own, done = open_project(project.root, clock=project.clock, actor=project.actor, tell=project.tell), Event()
    thread = Thread(target=_follow, args=(own, done), name="fold", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        own.store.records.close()


def _follow(project: Project, done: Event) -> None:
    pause = 0.0
    while not done.wait(pause):
        try:
            pause = 0.0 if _fold(project, monotonic() + PATIENCE)[1] else FOLLOWS
        except PalanError:  # who looks is told
            pause = FOLLOWS


def _fold(project: Project, until: float) -> tuple[int, bool]:
    records, blocks = project.store.records, tracked(project)

    def damaged(damage: Corrupt) -> None:
        project.tell(f"{damage.what}: passed over; palan verify")

    writers = blocks.writers(STREAM)  # first: of a process that ended later nothing is said yet
    if is_shared(project):
        _vouch(project, writers)
    known, count = _reached(project, blocks), 0
    sizes = blocks.sizes(STREAM)
    new = sorted(segment for segment, size in sizes.items() if size > known.get(segment, 0))
    while new:
        some = new[:SEGMENTS]
        places = _places(project, some)
        known.update(places)
        unread = [segment for segment in some if sizes[segment] > places.get(segment, 0)]
        batches, done = _gathered(blocks, unread, places, damaged)
        if batches:
            with records.transaction():
                if _places(project, some) != places:
                    continue  # somebody else was faster
                take(project, batches)
        count += sum(len(ends) for batch in batches for ends, _ in batch.tables)
        new = [*unread[done:], *new[len(some) :]]
        if monotonic() > until:
            break
    if not new:
        _bury(project, writers)
    return count, bool(new)


def _gathered(blocks: Blocks, segments: Sequence[str], places: Mapping[str, int], damaged: Callable[[Corrupt], None]) -> tuple[list[Batch], int]:
    """Return what one transaction takes of some segments, and how many of them are read to their end with it."""
    batches: list[Batch] = []
    size = 0
    for done, segment in enumerate(segments):
        for batch in blocks.read(STREAM, segment, places.get(segment, 0), damaged):
            batches.append(batch)
            size += sum(frames.size for _, frames in batch.tables)
            if size > AT_ONCE:
                return batches, done  # it may hold more
    return batches, len(segments)


_rests: weakref.WeakKeyDictionary[Blocks, float] = weakref.WeakKeyDictionary()
_known: weakref.WeakKeyDictionary[Blocks, dict[str, int]] = weakref.WeakKeyDictionary()


def _reached(project: Project, blocks: Blocks) -> dict[str, int]:
    """Return how far segments are known to be read: they may be read further, by others, but never less far."""
    if blocks not in _known:
        _known[blocks] = {each.segment: each.reached for each in project.store.records.find(Folded)}
    return _known[blocks]


def _places(project: Project, segments: Sequence[str]) -> dict[str, int]:
    return {each.segment: each.reached for each in project.store.records.find(Folded, segment=list(segments))}


def tracked(project: Project) -> Blocks:
    """Return where the stream of runs is: on the disk of this machine, so that to log is never a round trip to a database."""
    blocks = project.store.blocks
    return blocks if isinstance(blocks, SegmentBlocks) else _segments(project.folder / "blocks")


def is_shared(project: Project) -> bool:
    """Tell whether other machines bring their runs into the same records."""
    return tracked(project) is not project.store.blocks


@cache
def _segments(folder: Path) -> SegmentBlocks:
    return SegmentBlocks(folder)


def take(project: Project, batches: Sequence[Batch]) -> None:
    """Bring frames into the records; those that stand in no segment end at 0."""
    from palan.runs import points

    records = project.store.records
    parted = [(*points.parted(batch.tables), batch) for batch in batches]
    keysets = points.keysets(frame for _, others, _ in parted for frame in others)
    known = {bytes.fromhex(each.id): each.names for each in records.find(Keyset)} | keysets
    blocks, lost = points.read([table for tables, _, _ in parted for table in tables], known)
    if lost:
        project.tell(f"the names of {lost:,} points are lost: passed over; palan verify")
    events = [(event, batch.segment) for _, others, batch in parted for event in points.events(others)]
    runs = _runs(project, events)
    values = _values(project, [event for event, _ in events], blocks)
    nouns: list[Any] = [Keyset(digest.hex(), names) for digest, names in keysets.items()]
    nouns += [Folded(batch.segment, batch.end) for batch in {batch.segment: batch for batch in batches}.values() if batch.end]
    nouns += _experiments(project, [run for run in runs.values() if run.flow == TRACK])
    records.put(*nouns, *runs.values(), *values, *_artifacts(event for event, _ in events))
    for event, _ in events:
        if event.verb == "untag":
            for key in event.body:
                records.remove(Value, (event.run, "tag", key))
    kept, gone = _appended(project, {(run, digest.hex()): block for (run, digest), block in blocks.items()})
    records.put(*kept)
    for part in gone:
        records.remove(Curve, (part.run, part.keyset, part.part))


def _runs(project: Project, events: Sequence[tuple[Told, str]]) -> dict[str, Run]:
    """Return the runs that events change, as they are after them."""
    changing = [(event, segment) for event, segment in events if event.verb in ("start", "resume", "end", "name")]
    ids = list({event.run for event, _ in changing})
    runs = {run.id: run for some in _chunks(ids) for run in project.store.records.find(Run, id=some)}
    for event, segment in changing:
        time, holder = _time(event.time), segment.partition("_")[0]
        run = runs.get(event.run)
        if event.verb == "start":
            runs[event.run] = Run(event.run, TRACK, event.body["experiment"], "running", time, holder=holder, **event.body["about"])
        elif run is None:
            continue  # what was deleted for good, while its process went on
        elif event.verb == "resume":
            runs[event.run] = replace(run, status="running", ended=None, holder=holder, reason="")
        elif event.verb == "name":
            runs[event.run] = replace(run, name=event.body)
        else:
            runs[event.run] = replace(run, status=event.body["status"], ended=time, reason=event.body["reason"])
    return runs


def _experiments(project: Project, runs: Sequence[Run]) -> list[Experiment]:
    """Return the experiments that these runs are the first of."""
    first = {run.subject: run for run in reversed(runs)}
    known = {each.name for some in _chunks(list(first)) for each in project.store.records.find(Experiment, name=some)}
    last = project.store.records.find(Experiment, order="-number", limit=1)
    new = [run for run in reversed(first.values()) if run.subject not in known]
    return [Experiment(number, run.subject, run.time, run.time) for number, run in enumerate(new, last[0].number + 1 if last else 1)]


def _time(ns: int) -> datetime:
    return datetime.fromtimestamp(ns / 1e9, UTC)


def _chunks(ids: Sequence[str], size: int = 500) -> Iterable[list[str]]:
    for at in range(0, len(ids), size):
        yield list(ids[at : at + size])


def _values(project: Project, events: Sequence[Told], blocks: Mapping[tuple[str, bytes], Block]) -> list[Value]:
    from palan.runs import points

    found: dict[tuple[str, str], Value] = {}
    runs = list({run for run, _ in blocks})
    for some in _chunks(runs):
        found |= {(each.run, each.key): each for each in project.store.records.find(Value, run=some, kind="metric")}
    for (run, _), block in blocks.items():
        for summary in points.summaries(block):
            place = run, summary.name
            found[place] = _joined(run, found.get(place), summary)
    given = {}
    for event in events:
        if event.verb in ("param", "tag"):
            for key, value in event.body.items():
                given[event.run, event.verb, key] = Value(event.run, "param" if event.verb == "param" else "tag", key, value, number(value), time=event.time)
        elif event.verb == "untag":
            for key in event.body:
                given.pop((event.run, "tag", key), None)
    return [*found.values(), *given.values()]


def _joined(run: str, before: Value | None, new: Summary) -> Value:
    """Return what a metric comes to with further points: the last value is that of the largest (step, time, value)."""
    last = None if new.value != new.value else new.value
    text = "NaN" if last is None else None
    if before is None:
        return Value(run, "metric", new.name, text, last, new.least, new.largest, new.count, new.step, new.time)
    least = [each for each in (before.least, new.least) if each is not None]
    largest = [each for each in (before.largest, new.largest) if each is not None]
    joined = replace(before, least=min(least, default=None), largest=max(largest, default=None), count=before.count + new.count)
    lowest = float("-inf")
    if (before.step, before.time, lowest if before.number is None else before.number) > (new.step, new.time, lowest if last is None else last):
        return joined
    return replace(joined, text=text, number=last, step=new.step, time=new.time)


def _artifacts(events: Iterable[Told]) -> list[Artifact]:
    found = {}
    for event in events:
        files = event.body["files"] if event.verb == "start" else event.body if event.verb == "artifact" else {}
        for path, (blob, size) in files.items():
            found[event.run, path] = Artifact(event.run, path, blob, size, _time(event.time))
    return list(found.values())


def _appended(project: Project, blocks: Mapping[tuple[str, str], Block]) -> tuple[list[Curve], list[Part]]:
    """Return the parts of curves that points are added to, and those that are gone with it.

    The last parts are joined with the new one while they are no larger, as one adds in binary: a point is written again a
    few times at the most, and a curve has few parts that are not full.
    """
    from palan.runs import points

    kept: list[Curve] = []
    gone: list[Part] = []
    last = _last_parts(project, blocks)
    for (run, keyset), block in blocks.items():
        parts = last.get((run, keyset), [])
        count, joining = len(block), 0
        for part in parts:
            if part.points >= points.BLOCK or part.points > count:
                break
            count += part.points
            joining += 1
        joined = {part.part for part in parts[:joining]}
        before = project.store.records.find(Curve, run=run, keyset=keyset, part=sorted(joined)) if joined else []
        number = min(joined, default=parts[0].part + 1 if parts else 0)
        pieces = points.split(points.joined([*(points.unpack(each.data) for each in before), block]))
        kept += [Curve(run, keyset, number + place, len(piece), points.pack_outline(points.outline(piece)), points.pack(piece)) for place, piece in enumerate(pieces)]
        gone += [part for part in parts[:joining] if part.part >= number + len(pieces)]
    return kept, gone


def _last_parts(project: Project, blocks: Mapping[tuple[str, str], Block]) -> dict[tuple[str, str], list[Part]]:
    """Return the last parts of each curve, the last one first."""
    find = project.store.records.find
    if len(blocks) <= FEW:
        return {(run, keyset): find(Part, order="-part", limit=16, run=run, keyset=keyset) for run, keyset in blocks}
    found: dict[tuple[str, str], list[Part]] = {}
    for some in _chunks(list({run for run, _ in blocks})):
        for part in reversed(find(Part, run=some)):
            found.setdefault((part.run, part.keyset), []).append(part)
    return found


def _bury(project: Project, writers: Mapping[str, bool]) -> None:
    """Say of runs whose process is no more that they were killed, and when they were last heard of."""
    records = project.store.records
    lives: dict[str, bool] = {}
    for run in records.find(Run, flow=TRACK, status="running"):
        if run.holder not in lives:
            lives[run.holder] = _lives(project, run.holder, writers)
        if lives[run.holder]:
            continue
        heard = [each.time for each in records.find(Value, run=run.id)]
        ended = max(run.time, _time(max(heard, default=0)))
        with records.transaction():
            # Asked again: it may have come back, and revived its runs, since its segments were looked at.
            if records.get(Run, run.id) == run and not _lives(project, run.holder, tracked(project).writers(STREAM)):
                records.put(replace(run, status="killed", ended=ended, reason=KILLED))
                if is_shared(project):
                    records.remove(Lease, [_vouched(run.holder)])


def _lives(project: Project, holder: str, writers: Mapping[str, bool]) -> bool:
    """Tell whether a process may still log: one of this machine, or one that another machine vouches for."""
    if holder in writers or not is_shared(project):
        return writers.get(holder, True)
    vouched = project.store.records.get(Lease, _vouched(holder))
    return vouched is not None and vouched.expires > project.clock()


def _vouch(project: Project, writers: Mapping[str, bool]) -> None:
    """Tell other machines which processes of this one live, and let go on what they took for dead.

    Whoever takes one for dead removes its row. Looks in quick succession only read.
    """
    records, now = project.store.records, project.clock()
    living = {_vouched(name): name for name, alive in writers.items() if alive}
    if not living or sum(each.expires > now + 0.8 * VOUCHED for each in records.find(Lease, name=list(living))) == len(living):
        return
    with records.transaction():  # alone: nobody takes one for dead meanwhile
        known = {each.name for each in records.find(Lease, name=list(living))}
        records.put(*(Lease(name, holder, 1, now + VOUCHED) for name, holder in living.items()))
        for name in living.keys() - known:
            revive(project, living[name])


def _vouched(holder: str) -> str:
    return f"{STREAM}/{holder}"


def forget_vouched(project: Project, before: datetime) -> None:
    """Remove what vouched for processes that have ended since."""
    for each in list(project.store.records.walk(Lease)):
        if isinstance(each, Lease) and each.name.startswith(_vouched("")) and each.expires < before:
            project.store.records.remove(Lease, [each.name])


def revive(project: Project, holder: str) -> None:
    """Let the runs of a process go on that was taken for dead, and is heard again."""
    records = project.store.records
    if not records.find(Run, limit=1, flow=TRACK, status="killed", holder=holder, reason=KILLED):
        return
    with records.transaction():
        buried = records.find(Run, flow=TRACK, status="killed", holder=holder, reason=KILLED)
        records.put(*(replace(run, status="running", ended=None, reason="") for run in buried))
