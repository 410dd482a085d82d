"""Every call that writes fails once: the n-th write, sync, rename, cut or removal, for n = 1 … N, and at each of them a kill.

A small library of C (faults.c) stands between the program and the system. One process loads palan under it and is forked for
each fault; the round of work runs in the fork, and is looked at in another one that no fault is given to.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from crash.report import SOURCES, TESTS, Found

ONCE, FROM_THEN_ON, HALF, KILL = range(4)
WAYS = {"EIO once": (ONCE, errno.EIO), "EIO from then on": (FROM_THEN_ON, errno.EIO), "no space, half written": (HALF, errno.ENOSPC), "kill": (KILL, 0)}


class Fault(msgspec.Struct, frozen=True):
    """What befell one round of work, and what was found after it."""

    way: str
    nth: int
    kept: dict[str, int]
    refused: int
    lost: list[str]


def built(library: Path) -> bool:
    """Compile what stands between a program and the system; False where it cannot be."""
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), "")
    if not compiler or not sys.platform.startswith("linux"):
        return False
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, TESTS / "crash" / "faults.c", "-ldl"], check=True)
    return True


def faults(root: Path, seed: int, count: int, made: str = "project") -> Found:
    """Let `count` calls fail, drawn from all of them in all ways; all of them if there are fewer.

    `made` is what the project is that the work begins with; with "oldest" only the calls of opening it fail: its migration.
    """
    library = root / "faults.so"
    if not built(library):
        return Found(skipped="there is no C compiler: apt-get install gcc")
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join([str(SOURCES), str(TESTS)]), "POLARS_MAX_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "crash.faults", library, root, made, str(seed), str(count)], env=environment, stdout=subprocess.PIPE, check=False)
    found = Found()
    for each in msgspec.json.decode(b"[" + b",".join(done.stdout.splitlines()) + b"]", type=list[Fault]):
        found.blows += 1
        found.acknowledged(each.kept)
        found.lost += [f"{made}, {each.way}, call {each.nth}: {what}" for what in each.lost]
    if done.returncode:
        found.lost.append(f"the program that injects faults ended with {done.returncode}")
    return found


def forked(act: str, *arguments: object) -> bytes:
    """Run one of the functions below in a fork, and return what it wrote."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            globals()[act](write, *arguments)
        except BaseException:  # noqa: BLE001  # whatever it was, this fork ends here
            import traceback

            os.write(write, msgspec.json.encode({"verb": "untold", "step": act, "what": traceback.format_exc()}) + b"\n")
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return told


def worked(out: int, library: ctypes.CDLL, root: Path, aside: Path, nth: int, kind: int, number: int) -> None:
    from crash.work import Told, say_to, work

    say, calls = say_to(out), [0]

    def counted(told: Told) -> None:
        if told.step == "open":
            calls[0] = library.fault_calls()
        say(told)
        if told.verb == "did" and told.step in ("entry", "swap") and library.fault_again(1):
            say(Told("untold", told.step, f"acknowledged by a sync of {os.fsdecode(library.fault_which())}, which the disk had refused before"))

    library.fault_arm(os.fsencode(root), nth, kind, number)
    work(root, "round 1", counted, aside)
    calls += [library.fault_calls()]
    if again := library.fault_again(0):
        say(Told("untold", "sync", f"{again} times a file was synced again although the disk had refused that, at last {os.fsdecode(library.fault_which())}"))
    library.fault_arm(b"", 0, ONCE, 0)
    say(Told("calls", *map(str, calls)))


def looked(out: int, root: Path, aside: Path, told: bytes) -> None:
    """Say what is missing, then let a second round of work go on where the first one was left, and look again."""
    from crash.work import Told, missing, parse, work

    said = parse(told)
    lost = missing(root, said, aside)
    more: list[Told] = []
    work(root, "round 2", more.append, aside)
    lost += [f"afterwards {each.step} is refused: {each.what}" for each in more if each.verb == "refused"]
    lost += [f"afterwards {what}" for what in missing(root, [*said, *more], aside) if what not in lost]
    os.write(out, msgspec.json.encode(lost) + b"\n")


def main(library: str, root: str, made: str, seed: str, count: str) -> None:
    import numpy  # noqa: F401  # loaded once here, and not in each fork
    import polars  # noqa: F401
    import polars.io.parquet  # noqa: F401

    from crash import origins
    from crash.work import parse
    from palan.flows.surroundings import surroundings  # noqa: F401
    from palan.runs import points  # noqa: F401
    from palan.stores import sqlite

    sqlite.LOG_BYTES = 20 * (4096 + 24)  # so short that it is taken into the database several times in each round
    shim = ctypes.CDLL(library)
    shim.fault_calls.restype = shim.fault_again.restype = ctypes.c_long
    shim.fault_which.restype = ctypes.c_char_p
    shim.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    origin = Path(root) / "origin"
    getattr(origins, made)(origin)

    def befall(nth: int, kind: int, number: int) -> tuple[bytes, list[str]]:
        with tempfile.TemporaryDirectory(dir=root) as folder:
            project = Path(shutil.copytree(origin, Path(folder) / "project"))
            aside = project / "aside"
            aside.mkdir()
            told = forked("worked", shim, project, aside, nth, kind, number)
            return told, msgspec.json.decode(forked("looked", project, aside, told).splitlines()[-1], type=list[str])

    told, lost = befall(0, ONCE, 0)
    last = parse(told)[-1]
    assert last.verb == "calls" and not lost, (told, lost)
    dice = random.Random(int(seed))
    chosen = [(way, nth) for nth in range(1, int(last.step if made == "oldest" else last.what) + 1) for way in WAYS]
    for way, nth in sorted(dice.sample(chosen, min(int(count), len(chosen))), key=lambda each: (each[1], each[0])):
        told, lost = befall(nth, *WAYS[way])
        kept: dict[str, int] = {}
        for each in parse(told):
            if each.verb == "did":
                kept[each.step] = kept.get(each.step, 0) + 1
        refused = [each for each in parse(told) if each.verb == "refused"]
        wrong = {errno.EIO: "no space", errno.ENOSPC: "Input/output error"}.get(WAYS[way][1], " nothing ")
        lost += [f"{each.step} was refused for another reason: {each.what}" for each in refused if wrong in each.what.partition("\n")[0]]
        print(msgspec.json.encode(Fault(way, nth, kept, len(refused), lost)).decode(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
