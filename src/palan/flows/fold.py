"""From the stream of runs to records: what was logged by any process becomes runs, values and curves that can be searched.

Whoever looks folds; nobody has to. What was read and where the reading stopped are written in one transaction, so a fold that
is killed is as if not begun, and one that is done twice adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from palan.errors import Corrupt
from palan.flows.project import Project
from palan.runs.mlflow import Experiment
from palan.runs.run import Artifact, Curve, Folded, Keyset, Run, Value, number
from palan.stores.contract import Frame

if TYPE_CHECKING:
    from palan.runs.points import Block, Event, Summary

STREAM = "runs"
TRACK = "track"
"""The flow of a run that somebody tracks."""

AT_ONCE = 200_000
"""Frames that one transaction takes."""

KILLED = "its process ended without a word"


def fold(project: Project) -> int:
    """Bring records up to date with what was logged; return how many frames were new.

    What is damaged is passed over, so that one bad disk sector does not hide all runs; `palan verify` names it.
    """
    store = project.store

    def damaged(damage: Corrupt) -> None:
        project.tell(f"{damage.what}: passed over; palan verify")

    writers = store.blocks.writers(STREAM)  # first: of a process that ended later nothing is said yet
    count = 0
    while True:
        if next(store.blocks.scan(STREAM, _places(project), damaged), None) is None:
            break
        with store.records.transaction():
            frames = list(islice(store.blocks.scan(STREAM, _places(project), damaged), AT_ONCE))
            take(project, frames)
        count += len(frames)
        if len(frames) < AT_ONCE:
            break
    _bury(project, {name for name, alive in writers.items() if not alive})
    return count


def _places(project: Project) -> dict[str, int]:
    return {each.segment: each.reached for each in project.store.records.find(Folded)}


def take(project: Project, frames: Sequence[Frame]) -> None:
    """Bring frames into the records; one that stands in no segment ends at 0."""
    from palan.runs import points

    records = project.store.records
    known = {bytes.fromhex(each.id): each.names for each in records.find(Keyset)}
    keysets, blocks = points.read((frame.data for frame in frames), known)
    events = [(points.events([frame.data])[0], frame.segment) for frame in frames if frame.data[:1] == points.EVENT]
    runs = _runs(project, events)
    values = _values(project, [event for event, _ in events], blocks)
    nouns: list[Any] = [Keyset(digest.hex(), names) for digest, names in keysets.items()]
    nouns += [Folded(segment, frame.end) for segment, frame in {frame.segment: frame for frame in frames}.items() if frame.end]
    nouns += _experiments(project, [run for run in runs.values() if run.flow == TRACK])
    records.put(*nouns, *runs.values(), *values, *_artifacts(event for event, _ in events))
    for event, _ in events:
        if event.verb == "untag":
            for key in event.body:
                records.remove(Value, (event.run, "tag", key))
    changes = [_append(project, run, digest.hex(), block) for (run, digest), block in blocks.items()]
    records.put(*(curve for kept, _ in changes for curve in kept))
    for _, gone in changes:
        for curve in gone:
            records.remove(Curve, (curve.run, curve.keyset, curve.part))


def _runs(project: Project, events: Sequence[tuple[Event, str]]) -> dict[str, Run]:
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


def _values(project: Project, events: Sequence[Event], blocks: Mapping[tuple[str, bytes], Block]) -> list[Value]:
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
                given[event.run, event.verb, key] = Value(event.run, event.verb, key, value, number(value), time=event.time)  # type: ignore[arg-type]
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


def _artifacts(events: Iterable[Event]) -> list[Artifact]:
    found = {}
    for event in events:
        files = event.body["files"] if event.verb == "start" else event.body if event.verb == "artifact" else {}
        for path, (blob, size) in files.items():
            found[event.run, path] = Artifact(event.run, path, blob, size, _time(event.time))
    return list(found.values())


def _append(project: Project, run: str, keyset: str, block: Block) -> tuple[list[Curve], list[Curve]]:
    """Return the parts of a curve that points are added to, and those that are gone with it.

    The last parts are joined with the new one while they are no larger, as one adds in binary: a point is written again a
    few times at the most, and a curve has few parts that are not full.
    """
    from palan.runs import points

    parts = project.store.records.find(Curve, order="-part", limit=16, run=run, keyset=keyset)
    number = parts[0].part + 1 if parts else 0
    joined = [block]
    count = len(block)
    for part in parts:
        if part.points >= points.BLOCK or part.points > count:
            break
        joined.insert(0, points.unpack(part.data))
        count += part.points
        number = part.part
    pieces = points.split(points.joined(joined))
    kept = [Curve(run, keyset, number + place, len(piece), points.pack_outline(points.outline(piece)), points.pack(piece)) for place, piece in enumerate(pieces)]
    return kept, [part for part in parts if part.part >= number + len(pieces)]


def _bury(project: Project, dead: set[str]) -> None:
    """Say of runs whose process is no more that they were killed, and when they were last heard of."""
    records = project.store.records
    for run in records.find(Run, flow=TRACK, status="running"):
        if run.holder in dead:
            heard = [each.time for each in records.find(Value, run=run.id)]
            ended = max(run.time, _time(max(heard, default=0)))
            with records.transaction():
                still = records.get(Run, run.id)
                if still == run:
                    records.put(replace(run, status="killed", ended=ended, reason=KILLED))
