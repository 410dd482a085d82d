"""A disk of a few megabytes is full: in the middle of a round of work, of a long log, and of a migration."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crash import origins
from crash.report import Found
from crash.work import Told, missing, work
from palan.errors import PalanError
from palan.flows.fold import fold
from palan.flows.project import open_project
from palan.flows.runs import curves
from palan.flows.track import start


class NoMount(Exception):
    """Nobody may mount a disk here."""


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place], capture_output=True, text=True, check=False) if shutil.which("mount") else None
    if done is None or done.returncode:
        raise NoMount(done.stderr.strip() if done else "there is no mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def full_disk(root: Path, seed: int, count: int) -> Found:
    """Fill it so many times, each time with another amount of room left, half of them before a migration."""
    dice = random.Random(seed)
    found = Found()
    for number in range(count):
        origin = ("project", "oldest")[number % 2]
        room = int(4096 * 2 ** dice.uniform(2.0, 8.6))
        try:
            with small_disk(root / f"disk {number}", 8) as disk:
                told, lost = filled(disk, origin, room, dice.random() < 0.3)
        except NoMount as error:
            return Found(skipped=f"no small disk can be mounted: {error}")
        found.blows += 1
        found.acknowledged(Counter(each.step for each in told if each.verb == "did"))
        found.lost += [f"{origin} with {room} bytes of room: {what}" for what in lost]
    return found


def filled(disk: Path, origin: str, room: int, pour: bool) -> tuple[list[Told], list[str]]:
    getattr(origins, origin)(disk / "project")
    root = disk / "project"
    (disk / "aside").mkdir()
    ballast, points, run = disk / "ballast", 0, None
    with ballast.open("wb") as file:
        left = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - room
        for _ in range(max(0, left) // 4096):
            file.write(bytes(4096))
    told: list[Told] = []
    lost: list[str] = []
    if pour:  # one process logs until there is no room, and goes on when there is some
        try:
            project = open_project(root)
            run = start("poured", project=project)
            while points < 200_000:
                run.log(loss=float(points), step=points)
                points += 1
            lost.append("the disk was never full")
        except PalanError as error:
            told.append(Told("refused", "pour", str(error)))
    work(root, "round 1", told.append, disk / "aside")
    lost += [f"{each.step} was refused for another reason: {each.what}" for each in told if each.verb == "refused" and "space" not in each.what]
    ballast.unlink()
    lost += missing(root, told, disk / "aside")
    if run is not None:
        for number in range(points, points + 10):
            run.log(loss=float(number), step=number)
        run.end()
        fold(project)
        (drawn,) = curves(project, [run.id], "loss", points=10_000_000)
        if drawn["steps"] != list(range(points + 10)) or drawn["values"] != [float(step) for step in drawn["steps"]]:
            lost.append(f"of {points + 10} points {len(drawn['steps'])} are there")
        told += [Told("did", "poured")] * points
        project.store.records.close()
        project.store.blocks.close()
    more: list[Told] = []
    work(root, "round 2", more.append, disk / "aside")
    lost += [f"with room again {each.step} is refused: {each.what}" for each in more if each.verb != "did"]
    lost += [f"with room again {what}" for what in missing(root, [*told, *more], disk / "aside") if what not in lost]
    return told, lost
