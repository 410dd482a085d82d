"""A round of all that writes a store, each step told once it was acknowledged, and how to see afterwards that nothing of it is missing."""

from __future__ import annotations

import shutil
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from palan.errors import Corrupt, PalanError
from palan.flows.backup import backup, restore
from palan.flows.fold import fold
from palan.flows.project import Project, open_project, record
from palan.flows.runs import curves, run_page
from palan.flows.track import LiveRun, start
from palan.flows.verify import verify
from palan.ledger import Entry
from palan.runs.run import Run
from palan.stores.segments import SegmentBlocks

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
POINTS = 4
TOML = '[project]\nname = "crash"\n'


class Told(msgspec.Struct):
    """One thing that a process said: `what` it did, or that it was refused, and why."""

    verb: str  # did | refused | untold
    step: str
    what: str = ""


Say = Callable[[Told], None]


def parse(lines: bytes) -> list[Told]:
    """Return what was said; a line that a kill cut off was not."""
    return [msgspec.json.decode(line, type=Told) for line in lines.split(b"\n")[:-1]]


def work(root: Path, round: str, say: Say, aside: Path | None = None) -> None:
    """Do every step once, and tell of each. One that palan refuses is told, and the next one follows, as a user's would."""

    def do(step: str, act: Callable[[], Any]) -> Any:
        try:
            made = act()
        except PalanError as error:
            say(Told("refused", step, str(error)))
            return None
        except Exception:  # noqa: BLE001  # what no user should see: a finding
            say(Told("untold", step, traceback.format_exc()))
            return None
        say(Told("did", step, made if isinstance(made, str) else ""))
        return made

    project: Project | None = do("open", lambda: open_project(root)) or do("open", lambda: open_project(root))
    if project is None:
        return
    records, blocks, blobs = project.store.records, project.store.blocks, project.store.blobs
    do("entry", lambda: record(project, "noted", "crash", round).reason)
    do("pair", lambda: _pair(project, round))
    do("swap", lambda: _swap(project))
    run: LiveRun | None = do("run", lambda: start("crash", project=project, name=round))
    if run is not None:
        say(Told("did", "id", run.id))
        for number in range(POINTS):
            do("point", lambda n=number: run.log(loss=float(n), step=n, durable=n == 2) or f"{run.id} {n}")
        do("param", lambda: run.params(round=round) or f"{run.id} {round}")
        do("tag", lambda: run.tags(round=round) or f"{run.id} {round}")
        do("file", lambda: run.artifact(round.encode() * 1000, "bytes") and f"{run.id} bytes")
        do("file", lambda: run.artifact(root / "palan.toml", "toml") and f"{run.id} toml")
    do("blob", lambda: blobs.put(f"loose {round}".encode() * 3000))
    for number in range(3):
        do("frame", lambda n=number: blocks.append("crash", [f"{round} {n}".encode()]) and f"{round} {n}")
    do("fold", lambda: str(fold(project)))
    do("compact", lambda: str(SegmentBlocks(root / ".palan" / "blocks").compact("crash")))
    if run is not None:
        do("point", lambda: run.log(loss=float(POINTS), step=POINTS) or f"{run.id} {POINTS}")
        do("end", lambda: run.end() or run.id)
    do("backup", lambda: backup(project, (aside or root) / f"{round}.tar")["file"])
    do("entry", lambda: record(project, "noted", "crash", f"{round} again").reason)
    do("close", blocks.close)
    do("close", records.close)


def _pair(project: Project, round: str) -> str:
    with project.store.records.transaction():
        project.store.records.put(*(Run(f"{round}-{side}", "pair", "crash", "done", NOON) for side in "ab"))
        project.store.records.add(Run(f"{round}-c", "pair", "crash", "done", NOON))
    return round


def _swap(project: Project) -> str:
    records = project.store.records
    now = records.get(Run, "swapped") or Run("swapped", "swap", "crash", "done", NOON)
    with records.transaction(durable=True):
        records.put(replace(now, token=now.token + 1))
    return str(now.token + 1)


def missing(root: Path, told: list[Told], aside: Path | None = None) -> list[str]:
    """Return a sentence for each thing that was acknowledged and is not there, is there by half, or was refused without a reason."""
    by: dict[str, list[str]] = {}
    for each in told:
        if each.verb == "did":
            by.setdefault(each.step, []).append(each.what)
    found = [f"{each.step}: {each.what}" for each in told if each.verb == "untold"]
    found += [f"{each.step} was refused without a next command: {each.what}" for each in told if each.verb == "refused" and "\nhint: " not in each.what]
    try:
        project = open_project(root)
        fold(project)
        found += _lost(project, by)
        found += [f"verify: {each['what']}" for each in verify(project)["findings"]]
        found += _unlike(project, by, aside or root)
    except PalanError as error:
        return [*found, f"the store cannot be used any more: {error}"]
    project.store.blocks.close()
    project.store.records.close()
    return found


def _lost(project: Project, by: dict[str, list[str]]) -> list[str]:
    records, found = project.store.records, []
    reasons = Counter(each.reason for each in records.find(Entry))
    found += [f"the entry {reason} is there {reasons[reason]} times" for reason in by.get("entry", []) if reasons[reason] != 1]
    sides = Counter(run.id.rpartition("-")[0] for run in records.find(Run, flow="pair"))
    found += [f"of the transaction {round} {count} parts of 3 are there" for round, count in sides.items() if count != 3]
    found += [f"the transaction {round} is gone" for round in by.get("pair", []) if round not in sides]
    swapped = records.get(Run, "swapped")
    if by.get("swap") and (swapped is None or swapped.token < int(by["swap"][-1])):
        found.append(f"the swap {by['swap'][-1]} is gone")
    damage: list[Corrupt] = []
    frames = [frame.data.decode() for frame in project.store.blocks.scan("crash", None, damage.append)]
    found += [f"blocks: {each.what}" for each in damage]
    found += [f"the frame {name} is there {count} times" for name, count in Counter(frames).items() if count != 1]
    found += [f"the frame {name} is gone" for name in by.get("frame", []) if name not in frames]
    for key in by.get("blob", []):
        project.store.blobs.verify(key)
    return found


def _unlike(project: Project, by: dict[str, list[str]], aside: Path) -> list[str]:
    found = []
    for id in by.get("id", []):
        page = run_page(project, id)
        told = {what.partition(" ")[2] for what in by.get("point", []) if what.startswith(id)}
        (values,) = curves(project, [id], "loss", points=100_000)
        points = dict(zip(values["steps"], values["values"], strict=True))
        found += [f"the point {number} of {id} is {points.get(int(number))}" for number in told if points.get(int(number)) != float(number)]
        found += [f"the point {step} was never logged" for step, value in points.items() if value != float(step)]
        for kind, place in (("param", "params"), ("tag", "tags")):
            found += [f"the {kind} of {id} is {page[place]}" for what in by.get(kind, []) if what.startswith(id) and page[place].get("round") != what.partition(" ")[2]]
        files = {each["path"]: each for each in page["artifacts"]}
        for path in (what.partition(" ")[2] for what in by.get("file", []) if what.startswith(id)):
            if path not in files or len(project.store.blobs.get(files[path]["blob"])) != files[path]["size"]:
                found.append(f"the file {path} of {id} is gone")
        if id in by.get("end", []) and page["status"] != "done":
            found.append(f"{id} has ended, and is {page['status']}")
    for file in by.get("backup", []):
        back = aside / "back"
        findings = restore(file, back)["findings"]
        found += [f"the backup {file}: {each['what']}" for each in findings]
        shutil.rmtree(back)
    return found


def say_to(fd: int) -> Say:
    """Return what tells through a pipe, one line at a time, whole or not at all."""
    import os

    return lambda told: (os.write(fd, msgspec.json.encode(told) + b"\n"), None)[1]
