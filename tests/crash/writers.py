"""Kill writers and readers of runs at random instants, many at once, and look whether anything acknowledged is lost.

A writer logs points, parameters, tags and artefacts, and tells each one through a pipe after the call returned. What was told
must be there; what is there must be whole, and a prefix of what was logged.
"""

from __future__ import annotations

import os
import random
import selectors
import signal
import time
from pathlib import Path
from typing import Any

from crash.report import Found, launched
from palan.flows.fold import fold
from palan.flows.project import Project, open_project
from palan.flows.runs import curve, find_run, run_page
from palan.runs.run import Curve, Run, Value

WRITER = """
import os, sys, random
from palan.flows.track import start
dice = random.Random(int(sys.argv[2]))
run = start("crash", project=sys.argv[1], seed=sys.argv[2])
say = lambda *words: os.write(1, (" ".join(str(word) for word in words) + "\\n").encode())
say("run", run.id)
points = params = files = 0
while True:
    for _ in range(dice.randrange(1, 200)):
        run.log(loss=float(points), twice=2.0 * points)
        points += 1
    say("points", points)
    if dice.random() < 0.3:
        run.params({f"p{params}": params})
        params += 1
        say("params", params)
    if dice.random() < 0.1:
        run.artifact(dice.randbytes(dice.randrange(1, 100_000)), f"file {files}")
        files += 1
        say("files", files)
"""

READER = """
import os, sys
from palan.flows.project import open_project
from palan.flows.fold import fold
project = open_project(sys.argv[1])
os.write(1, b"ready\\n")
while True:
    fold(project)
"""


class Writer:
    """One process that logs, and what it said of it."""

    def __init__(self, root: Path, seed: int) -> None:
        self.told: dict[str, Any] = {"points": 0, "params": 0, "files": 0}
        self.process = launched(WRITER, root, str(seed))
        self.rest = b""

    def listen(self) -> None:
        """Read what it said since."""
        assert self.process.stdout is not None
        data = self.rest + (os.read(self.process.stdout.fileno(), 1 << 20) if self.process.poll() is None else self.process.stdout.read() or b"")
        *lines, self.rest = data.split(b"\n")
        for line in lines:
            what, _, value = line.decode().partition(" ")
            self.told[what] = value if what == "run" else int(value)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.listen()


def kills_of_writers(root: Path, seed: int, kills: int, writers: int = 8) -> Found:
    """Kill so many writers, several of them alive at a time, and readers beside them."""
    (root / "palan.toml").write_text('[project]\nname = "crash"\n', encoding="utf-8")
    project = open_project(root)
    dice = random.Random(seed)
    alive = [Writer(root, seed * 1_000_000 + number) for number in range(min(writers, kills))]
    reader = launched(READER, root)
    dead: list[Writer] = []
    started, readers = len(alive), 0
    while alive:
        wait_a_moment(alive, dice.uniform(0.0, 0.1))
        ready = [each for each in alive if each.told["points"]]
        if not ready:
            continue
        victim = dice.choice(ready)
        victim.kill()
        alive.remove(victim)
        dead.append(victim)
        if started < kills:
            alive.append(Writer(root, seed * 1_000_000 + started))
            started += 1
        if dice.random() < 0.2:
            reader.kill()
            reader.wait()
            readers += 1
            reader = launched(READER, root)
    reader.kill()
    reader.wait()
    found = Found(blows=len(dead) + readers)
    fold(project)
    assert fold(project) == 0
    for each in dead:
        found.acknowledged({what: count for what, count in each.told.items() if what != "run"})
        if count := lost(project, each.told):
            found.lost.append(f"{count} of what {each.told} tells are gone")
    if {run.status for run in project.store.records.find(Run, subject="crash")} != {"killed"}:
        found.lost.append("a run whose process was killed is not told as killed")
    folded = {each.run: each.count for each in project.store.records.find(Value, kind="metric", key="loss")}
    kept: dict[str, int] = {}
    for part in project.store.records.find(Curve):
        kept[part.run] = kept.get(part.run, 0) + part.points
    if folded != kept:
        found.lost.append("values and curves tell of other points")
    return found


def wait_a_moment(writers: list[Writer], seconds: float) -> None:
    """Listen to all writers for so long."""
    until = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for each in writers:
            assert each.process.stdout is not None
            selector.register(each.process.stdout, selectors.EVENT_READ, each)
        while (left := until - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                key.data.listen()


def lost(project: Project, told: dict[str, Any]) -> int:
    """Return how much of what a writer was told to be kept is not there, or not as it was."""
    run = find_run(project, told["run"])
    kept = curve(project, run.id, "loss", points=10_000_000)["values"]
    missing: int = max(told["points"] - len(kept), 0) + sum(value != place for place, value in enumerate(kept))
    twice = curve(project, run.id, "twice", points=10_000_000)["values"]
    missing += sum(value != 2.0 * place for place, value in enumerate(twice)) + abs(len(kept) - len(twice))
    page = run_page(project, run.id)
    missing += sum(page["params"].get(f"p{number}") != str(number) for number in range(told["params"]))
    files = {each["path"]: each for each in page["artifacts"]}
    for number in range(told["files"]):
        each = files.get(f"file {number}")
        missing += each is None or len(project.store.blobs.get(each["blob"])) != each["size"]
    return missing
