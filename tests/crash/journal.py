"""`palan build`, `ingest` and `tick` are killed at random instants: no step is done twice or lost, and the next one goes on."""

from __future__ import annotations

import random
import signal
import subprocess
from collections import Counter
from pathlib import Path

from crash.report import Found, palan
from palan.core import Version
from palan.data.nouns import DataVersion
from palan.flows.ingest import ingest
from palan.flows.journal import retry
from palan.flows.log import log
from palan.flows.project import open_project
from palan.flows.tables import read
from palan.flows.verify import verify
from palan.runs.run import Step
from test_journal_resume import done, lay_out, side

LONGEST = {"build": 2.6, "ingest": 1.0, "tick": 1.2}


def kills_of_commands(root: Path, seed: int, count: int) -> Found:
    """Kill so many of them; new rows are delivered now and then, so that there is something to take in."""
    dice = random.Random(seed)
    project = open_project(lay_out(root / "rolls", seconds=0.05))
    ingest(project)
    found = Found()
    steps: set[str] = set()
    delivered, round = 120, 0
    while found.blows < count:
        verb = dice.choice(["build", "build", "ingest", "tick"])
        if verb != "build" and found.blows >= count // 2 and dice.random() < 0.5:
            rows = [f"{number},{number % 30},{number % 7 + 0.5}" for number in range(delivered, delivered + 50)]
            (project.root / "feed" / f"{delivered}.csv").write_text("\n".join(["id,warm,sold", *rows]) + "\n", encoding="utf-8")
            delivered += 50
        recorded, written = done(project), len(side(project))
        working = palan(project.root, verb, *(["rolls", "--param", f"round={round}"] if verb == "build" else []))
        try:
            _, errors = working.communicate(timeout=dice.uniform(0.1, LONGEST[verb]))
        except subprocess.TimeoutExpired:
            working.kill()
            _, errors = working.communicate()
            found.blows += 1
        if verb == "build" and delivered == 120:  # the notes of a step tell of its round and rows, which later data change
            found.lost += [f"after {found.blows} kills this was done again: {line}" for line in side(project)[written:] if line in recorded]
        now = {step.id for step in project.store.records.find(Step)}
        found.lost += [f"the step {id} is gone" for id in steps - now]
        steps = now
        if working.returncode == 0:
            found.kept[verb] += 1
            round += verb == "build"
        elif b"is dead after" in errors:  # it was killed too often in one step
            retry(project, named(errors))
        elif working.returncode != -signal.SIGKILL:
            found.lost.append(f"palan {verb} ended with {working.returncode}: {errors.decode()}")
    for verb in ("ingest", "build"):  # and once to the end
        words = [verb, "rolls", "--param", f"round={round}"] if verb == "build" else [verb]
        ended = palan(project.root, *words)
        _, errors = ended.communicate(timeout=120)
        while b"is dead after" in errors:
            retry(project, named(errors))
            ended = palan(project.root, *words)
            _, errors = ended.communicate(timeout=120)
        if ended.returncode:
            found.lost.append(f"at the end palan {verb} ended with {ended.returncode}: {errors.decode()}")
    found.kept["step"] = len(steps)
    tables = project.store.records.find(DataVersion, data="second", order="-number", limit=1)
    ids = sorted(read(project, tables[0])["id"].to_list()) if tables else []
    found.kept["row"] = len(ids)
    if ids != list(range(delivered)):
        found.lost.append(f"{delivered} rows were delivered, and {len(ids)} are there, {len(set(ids))} of them different")
    versions = project.store.records.find(Version, order="number")
    built = Counter(each["subject"] for each in log(project, limit=100_000)["entries"] if each["verb"] == "built")
    if built != Counter(version.ref for version in versions) or [version.number for version in versions] != list(range(1, len(versions) + 1)):
        found.lost.append(f"the ledger tells of {dict(built)}, and there are {[version.ref for version in versions]}")
    found.lost += [f"verify: {each['what']}" for each in verify(project)["findings"]]
    return found


def named(errors: bytes) -> str:
    """Return the step that was killed too often, as the hint names it."""
    return errors.decode().split('palan retry "')[1].split('"')[0]
