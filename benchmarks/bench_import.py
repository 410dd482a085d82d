"""What does it cost to bring in the runs of an MLflow store, and do MLflow's own searches find the same runs in the same order?

The store is written by MLflow itself (`old_store.py`, in the environment that `make peers` makes), with whatever it lets in. It
takes minutes for thousands of runs; --store keeps it for the next time.

    python benchmarks/bench_import.py [--runs 500] [--seed 1] [--folder] [--store DIRECTORY]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import process_time
from typing import Any

from measure import machine, report

from palan.flows.carry import import_runs
from palan.flows.mlflow import Tracking
from palan.flows.project import Project, open_project
from palan.runs.mlflow import Experiment
from palan.runs.run import Run, Value

QUIET = {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--runs", type=int, default=500)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--folder", action="store_true")
    asked.add_argument("--store", type=Path)
    asked.add_argument("--json", action="store_true")
    options = asked.parse_args()
    peers = os.environ.get("PEERS")
    if not peers:
        print("  not measured: make peers, then make bench")
        return
    machine()
    with tempfile.TemporaryDirectory() as made:
        store = (options.store or Path(made) / "store").absolute()
        source, address = (str(store / "mlruns"), f"file://{store}/mlruns") if options.folder else 2 * (f"sqlite:///{store}/mlflow.db",)
        if not (store / "answers.json").exists():
            store.mkdir(parents=True, exist_ok=True)
            writer = Path(__file__).absolute().with_name("old_store.py")
            subprocess.run([peers, writer, address, str(options.runs), str(options.seed), "answers.json"], cwd=store, env={**os.environ, **QUIET}, check=True, capture_output=not sys.stderr.isatty())
        theirs = json.loads((store / "answers.json").read_text(encoding="utf-8"))
        project = _project(Path(made) / "project")
        began = process_time()
        told = import_runs(project, source)
        report(f"{told['runs']:,} runs of MLflow's brought in: CPU", [process_time() - began], "s")
        report("the most memory that took", [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024], "MB")
        again = import_runs(project, source)
        wrong = [*_wrong_searches(project, theirs["searches"]), *_wrong_runs(project, theirs["runs"]), *(["the second import added runs"] if again["runs"] else [])]
        report(f"of {len(theirs['searches'])} searches, other runs or another order than MLflow's", [len([each for each in wrong if each.startswith("search")])], "searches")
        for each in wrong[:20]:
            print(f"    {each}")
    sys.exit(bool(wrong))


def _project(folder: Path) -> Project:
    folder.mkdir()
    (folder / "palan.toml").write_text('[project]\nname = "import"\n', encoding="utf-8")
    return open_project(folder)


def _tags(project: Project) -> dict[str, str]:
    return {each.run: str(each.text) for each in project.store.records.find(Value, kind="tag", key="mlflow.runId")}


def _wrong_searches(project: Project, searches: list[tuple[str, list[str], list[str]]]) -> list[str]:
    wire, foreign = Tracking(project), _tags(project)
    groups = [str(each.number) for each in project.store.records.find(Experiment)]
    wrong = []
    for where, order, expected in searches:
        found: list[str] = []
        token = ""
        while True:
            runs, token = wire.search(groups, where, "ACTIVE_ONLY", 1000, order, token)
            found += [foreign[run.id] for run in runs]
            if not token:
                break
        if found != expected:
            wrong.append(f"search {where!r} by {order}: {len(found)} runs for {len(expected)}, {'other ones' if set(found) != set(expected) else 'in another order'}")
    return wrong


def _wrong_runs(project: Project, theirs: dict[str, dict[str, Any]]) -> list[str]:
    wire, foreign = Tracking(project), _tags(project)
    mine = {foreign[run.id]: run for run in project.store.records.find(Run, flow="track")}
    wrong = [f"run {id} is missing" for id, run in theirs.items() if run["stage"] == "active" and id not in mine]
    for id, run in theirs.items():
        if id not in mine:
            continue
        values = project.store.records.find(Value, run=mine[id].id)
        told = {kind: {each.key: each.text for each in values if each.kind == kind and each.key != "mlflow.runId"} for kind in ("param", "tag")}
        # A zero has no sign in a database.
        metrics = {each.key: "nan" if each.number is None else repr(each.number + 0.0) for each in values if each.kind == "metric"}
        expected = {key: "0.0" if value == "-0.0" else value for key, value in run["metrics"].items()}
        wrong += [f"run {id}: other {what}" for what, same in (("params", told["param"] == run["params"]), ("tags", told["tag"] == run["tags"]), ("metrics", metrics == expected)) if not same]
        for key, points in run["histories"].items():
            history = {(time, step, repr(value)) for time, step, value in wire.history(mine[id].id, key)}
            if history != {(time, step, value) for time, step, value in points}:
                wrong.append(f"run {id}: another history of {key}")
    return wrong


if __name__ == "__main__":
    main()
