"""Tracking runs: points a second, the time of one call, many processes with somebody looking, search, and drawing a long curve.

With `PEERS=/path/to/python` of an environment that has mlflow and trackio, they do the same work in the same run, as their
users would write it, and the ratio is printed. What is compared survives the death of the process on our side and on
MLflow's; trackio's rate is that of its queue, flushed at the end.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from time import perf_counter, perf_counter_ns, process_time

from measure import machine, rate, report, times

from palan.core import new_id, utcnow
from palan.flows.fold import fold
from palan.flows.gc import tidy
from palan.flows.project import Project, open_project
from palan.flows.runs import curve, search
from palan.flows.track import start
from palan.runs.points import Names, event
from palan.runs.run import Curve, Value
from palan.stores.segments import framed

PEERS = os.environ.get("PEERS", "")
NAMES = 10
MANY = 5_000 if "--small" in sys.argv else 100_000

WRITER = """
import sys, time
from palan.flows.track import start
run = start("many", project=sys.argv[1])
values = {f"m{number}": float(number) for number in range(10)}
print("ready", flush=True)
sys.stdin.readline()
until, count = time.monotonic() + float(sys.argv[2]), 0
while time.monotonic() < until:
    for _ in range(100):
        run.log(values)
    count += 100
run.end()
print(count)
"""

MLFLOW = """
import sys, time, json, logging, random
logging.disable(logging.CRITICAL)
import mlflow
from mlflow.entities import Metric, Param
folder = sys.argv[1]
mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
mlflow.set_experiment("bench")
client = mlflow.MlflowClient()
found = {}
with mlflow.start_run() as run:
    mlflow.log_metric("warm", 1.0)
    started, count = time.perf_counter(), 0
    each = []
    while time.perf_counter() - started < 4:
        before = time.perf_counter(); mlflow.log_metric("loss", float(count), step=count); each.append(time.perf_counter() - before); count += 1
    found["one"] = count / (time.perf_counter() - started)
    found["p99"] = sorted(each)[int(len(each) * .99)]
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 4:
        mlflow.log_metrics({f"m{number}": 1.0 for number in range(10)}, step=count); count += 10
    found["ten"] = count / (time.perf_counter() - started)
started = time.perf_counter()
for number in range(20):
    with mlflow.start_run():
        mlflow.log_params({f"p{each}": each * number for each in range(50)})
        mlflow.log_metrics({f"m{each}": each * .1 for each in range(50)})
found["run"] = (time.perf_counter() - started) / 20
for number in range(300):
    made = client.create_run(run.info.experiment_id)
    client.log_batch(made.info.run_id, [Metric(f"m{each}", random.random(), 0, 0) for each in range(10)], [Param(f"p{each}", str(number % 10)) for each in range(10)])
each = []
for _ in range(7):
    started = time.perf_counter(); client.search_runs([run.info.experiment_id], "metrics.m1 < 0.5", order_by=["metrics.m2 DESC"], max_results=50); each.append(time.perf_counter() - started)
found["search"] = sorted(each)[3]
print(json.dumps(found))
"""

TRACKIO = """
import sys, time, json, os, logging
os.environ.update(TRACKIO_DIR=sys.argv[1], HF_HUB_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False")
logging.disable(logging.CRITICAL)
import trackio
trackio.init(project="bench", auto_log_gpu=False) if "auto_log_gpu" in trackio.init.__code__.co_varnames else trackio.init(project="bench")
values = {f"m{number}": float(number) for number in range(10)}
started = time.perf_counter()
for step in range(10000):
    trackio.log(values)
trackio.finish()
print(json.dumps({"ten": 10000 * 10 / (time.perf_counter() - started)}), file=sys.stderr)
"""


def main() -> None:
    machine("numpy", "msgspec")
    with tempfile.TemporaryDirectory() as folder:
        project = made(Path(folder) / "one")
        ten, one, p99 = writing(project)
        sending(Path(folder))
        many(Path(folder))
        run = small_runs(made(Path(folder) / "small"))
        found = searching(made(Path(folder) / "search"))
        ended(made(Path(folder) / "ended"))
        drawing(made(Path(folder) / "long"))
        if PEERS:
            beside(Path(folder), ten, one, p99, run, found)


def made(folder: Path) -> Project:
    folder.mkdir()
    (folder / "palan.toml").write_text('[project]\nname = "bench"\n', encoding="utf-8")
    return open_project(folder)


def writing(project: Project) -> tuple[float, float, float]:
    run = start("points", project=project)
    ten = {f"m{number}": float(number) for number in range(NAMES)}

    def calls(values: dict[str, float], count: int = 50_000) -> Callable[[], None]:
        def work() -> None:
            for _ in range(count):
                run.log(values)

        return work

    print("one process")
    found = times(calls(ten))
    rate("points, 10 names a call", 50_000 * NAMES, found, "points/s")
    single = times(calls({"loss": 0.5}))
    rate("points, one a call", 50_000, single, "calls/s")
    each = []
    for _ in range(50_000):
        before = perf_counter_ns()
        run.log(loss=0.5)
        each.append((perf_counter_ns() - before) / 1000)
    each.sort()
    report("one call, median", [each[len(each) // 2]], "µs")
    report("one call, p99", [each[int(len(each) * 0.99)]], "µs")
    durable = times(lambda: run.log(loss=0.5, durable=True), repeat=50)
    report("one call, on the disk before it returns", [1e3 * value for value in durable], "ms")
    before = process_time()
    fold(project)
    took = process_time() - before
    points: int = sum(each.count for each in project.store.records.find(Value, run=run.id))
    report("folded afterwards, in processor time", [points / took], "points/s")
    run.end()
    return 50_000 * NAMES / statistics.median(found), 50_000 / statistics.median(single), each[int(len(each) * 0.99)]


def sending(folder: Path) -> None:
    print("one process, for a server in another one")
    project = made(folder / "sent")
    os.environ["XDG_STATE_HOME"] = str(folder)
    server = subprocess.Popen([sys.executable, "-m", "palan.cli", "serve", "--port", "0"], cwd=project.root, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        run = start("sent", server=server.stdout.readline().split()[-1])
        ten = {f"m{number}": float(number) for number in range(NAMES)}

        def work() -> None:
            for _ in range(50_000):
                run.log(ten)

        found = times(work)
        rate("points, 10 names a call", 50_000 * NAMES, found, "points/s")
        before = perf_counter()
        run.end()
        report("until the server has the last one", [1e3 * (perf_counter() - before)], "ms")
        fold(project)
        assert curve(project, run.id, "m1", points=10)["count"] % 50_000 == 0
    finally:
        server.terminate()
        server.communicate()


def many(folder: Path, writers: int = 8, seconds: float = 4.0) -> None:
    print(f"{writers} processes, one store, somebody looks all the time")
    project = made(folder / "many")
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, str(project.root), str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(writers)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    begun, looks, slowest = perf_counter(), 0, 0.0
    while perf_counter() - begun < seconds:
        before = perf_counter()
        search(project, order=["metrics.m1 desc"])
        looks, slowest = looks + 1, max(slowest, perf_counter() - before)
    counts = [int(process.communicate()[0]) for process in processes]
    errors = sum(process.returncode != 0 for process in processes)
    rate("points of all, 10 names a call", sum(counts) * NAMES, [seconds], "points/s")
    report("errors", [float(errors)], "")
    report("looks meanwhile", [float(looks)], "")
    report("slowest look", [slowest], "s")
    before = perf_counter()
    fold(project)
    report("what was left to fold", [perf_counter() - before], "s")
    kept = sum(each["metrics"]["m1"] == 1.0 for each in search(project)["runs"])
    points = sum(curve(project, each["run"], "m1", points=10)["count"] for each in search(project)["runs"])
    assert kept == writers and points == sum(counts), (points, sum(counts))


def small_runs(project: Project) -> float:
    print("200 runs of 50 parameters and 50 metrics")
    with start("warm", project=project):
        pass

    def work() -> None:
        for number in range(200):
            with start("small", project=project) as run:
                run.params({f"p{each}": each * number for each in range(50)})
                run.log({f"m{each}": each * 0.1 + number for each in range(50)})

    logged = times(work, repeat=3)
    report("logging one", [1e3 * each / 200 for each in logged], "ms")
    before = process_time()
    fold(project)
    folded = (process_time() - before) / 800
    report("folding one, in processor time", [1e3 * folded], "ms")
    return statistics.median(logged) / 200 + folded


def searching(project: Project) -> float:
    """Return the seconds of a search among the fewer runs."""
    dice, first = random.Random(1), 0.0
    for total, title in ((5_000, "5,000 runs"), (MANY, f"{MANY:,} runs")):
        print(f"search among {title} of 10 parameters and 10 metrics")
        for number in range(fold_count(project), total):
            with start(f"experiment {number % 3}", project=project) as run:
                run.params({f"p{each}": dice.randrange(10) for each in range(10)})
                run.log({f"m{each}": dice.random() for each in range(10)})
        fold(project)
        seconds = found(project)
        first = first or seconds
    return first


def found(project: Project) -> float:
    wanted = "experiment = 'experiment 1' and metrics.m1 < 0.5"
    seconds = times(lambda: search(project, wanted, order=["metrics.m2 desc"]), repeat=15)
    report("filter, order by a metric, 50 whole runs", [1e3 * each for each in seconds], "ms")
    report("the newest 50", [1e3 * each for each in times(lambda: search(project))], "ms")
    report("three filters, newest first", [1e3 * each for each in times(lambda: search(project, f"{wanted} and params.p1 = '3'"))], "ms")
    report("a rare match", [1e3 * each for each in times(lambda: search(project, "metrics.m1 < 0.0005 and metrics.m2 > 0.5", order=["metrics.m3"]))], "ms")
    return statistics.median(seconds)


def ended(project: Project, total: int = 2_000 if "--small" in sys.argv else 10_000) -> None:
    """Look where many processes tracked one run each and ended."""
    print(f"{total:,} processes tracked a run each, and ended")
    folder = project.folder / "blocks" / "runs"
    folder.mkdir(parents=True)
    names = Names(("loss", "gap"))
    for number in range(total):
        segment, run = new_id(utcnow()), new_id(utcnow())
        told = [event(run, 1, "start", {"experiment": "many", "about": {}, "files": {}}), event(run, 1, "param", {"lr": str(number)}), names.frame]
        told += [names.point(run.encode(), step, step, (0.1 * step, number)) for step in range(20)]
        data = b"".join(framed(frame) for frame in [*told, event(run, 30, "end", {"status": "done", "reason": ""})])
        (folder / f"{segment}.seg").write_bytes(data)
        (folder / f"{segment}.{len(data)}.end").touch()
    before = process_time()
    fold(project)
    report("folding one, in processor time", [1e3 * (process_time() - before) / total], "ms")
    report("a look, of the same process", [1e3 * each for each in times(lambda: fold(project))], "ms")
    report("a look, of a new one", [1e3 * each for each in times(lambda: fold(open_project(project.root)))], "ms")
    before = perf_counter()
    tidy(project, older_than=timedelta(seconds=-1))
    report("joining them into one file", [perf_counter() - before], "s")
    report("a look, of the same process", [1e3 * each for each in times(lambda: fold(project))], "ms")
    report("a look, of a new one", [1e3 * each for each in times(lambda: fold(open_project(project.root)))], "ms")


def fold_count(project: Project) -> int:
    from palan.runs.run import Run

    return len(project.store.records.find(Run))


def drawing(project: Project, points: int = 1_000_000) -> None:
    print("a curve of a million points, a random walk")
    dice = random.Random(2)
    with start("long", project=project) as run:
        value = 0.0
        for step in range(points):
            value += dice.gauss(0, 1)
            run.log({"loss": value}, step=step)
        before = perf_counter()
        search(project)
        report("first look after a million points", [perf_counter() - before], "s")
        before = perf_counter()
        fold(project)
        report("what it left to read", [perf_counter() - before], "s")
        report("request to JSON", [1e3 * each for each in times(lambda: json.dumps(curve(project, run.id, "loss")))], "ms")
        kept = project.store.records.find(Curve, run=run.id)
        report("bytes a stored point", [sum(len(each.data) + len(each.outline) for each in kept) / points], "")
        run.log({"loss": 0.0}, step=points)
        fold(project)
        report("a live poll of one new point", [1e3 * each for each in times(lambda: curve(project, run.id, "loss", after=points))], "ms")


def beside(folder: Path, ten: float, one: float, p99: float, run: float, found: float) -> None:
    print("beside the peers")
    done = subprocess.run([PEERS, "-c", MLFLOW, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        theirs = json.loads(done.stdout.splitlines()[-1])
        report("MLflow on SQLite, points, 10 names a call", [theirs["ten"]], "points/s")
        report("  palan, times as many", [ten / theirs["ten"]], "x")
        report("MLflow on SQLite, one a call", [theirs["one"]], "calls/s")
        report("  palan, times as many", [one / theirs["one"]], "x")
        report("MLflow, one call, p99", [1e6 * theirs["p99"]], "µs")
        report("  palan, times as fast", [1e6 * theirs["p99"] / p99], "x")
        report("MLflow, a run of 50 + 50", [1e3 * theirs["run"]], "ms")
        report("  palan, times as fast", [theirs["run"] / run], "x")
        report("MLflow, search of 300 runs, filter and order, 50 runs", [1e3 * theirs["search"]], "ms")
        report("  palan, of 5,000, times as fast", [theirs["search"] / found], "x")
    else:
        print("  mlflow failed:", done.stderr.strip().splitlines()[-1:])
    (folder / "trackio").mkdir()
    done = subprocess.run([PEERS, "-c", TRACKIO, str(folder / "trackio")], capture_output=True, text=True, check=False)
    told = [line for line in done.stderr.splitlines() if line.startswith("{")]
    if told:
        theirs = json.loads(told[-1])
        report("trackio, points, 10 names a call, flushed", [theirs["ten"]], "points/s")
        report("  palan, times as many", [ten / theirs["ten"]], "x")
    else:
        print("  trackio failed:", done.stderr.strip().splitlines()[-1:])


if __name__ == "__main__":
    main()
