"""What does a durable step cost: recorded the first time, and found the second?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
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


def main() -> None:
    machine()
    with TemporaryDirectory() as folder:
        (Path(folder) / "palan.toml").write_text('[project]\nname = "bench"\n')
        project = open_project(folder)
        with running(project, "bench", "steps") as journal:
            for what, fresh in (("a step that is done and recorded", True), ("a step that is found", False)):
                cpu, wall = costs(lambda first: walk(journal, first), fresh=fresh)
                report(f"{what}: CPU", cpu, "ms")
                report(f"{what}: wall", wall, "ms")


if __name__ == "__main__":
    main()
