"""Writes an MLflow store with everything that MLflow itself lets in, and what MLflow answers about it.

It runs where mlflow is installed, with the store's address, the number of runs, a seed and the file for the answers. What it
logs goes through MLflow's own client; ties of times and values are wanted, for an order shows there.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, ViewType

BEGAN = 1_700_000_000_000
SEARCHES: list[tuple[str, list[str]]] = [
    ("", []),
    ("metrics.loss < 0.2", []),
    ("metrics.loss < 0.2 and params.model = 'trees'", ["metrics.loss ASC"]),
    ("metrics.loss >= 0.5", ["metrics.loss DESC", "params.depth ASC"]),
    ("metrics.`val/acc at 5` > 0.3 and tags.stage != 'draft'", ["metrics.`val/acc at 5` DESC"]),
    ("params.depth = '3'", ["attributes.run_name ASC"]),
    ("params.model LIKE 'tre%'", ["start_time ASC"]),
    ("params.model ILIKE 'TRE%'", ["tags.stage DESC", "start_time ASC"]),
    ("tags.`naïve key` = 'é ü 漢字 🙂'", []),
    ("attributes.run_name LIKE '%7%'", ["attributes.run_name DESC"]),
    ("attributes.status = 'FAILED'", ["end_time DESC"]),
    ("attributes.status != 'FAILED'", ["metrics.odd ASC"]),
    ("attributes.start_time > 1700000002000 and attributes.start_time <= 1700000900000", ["metrics.odd DESC"]),
    ("tags.mlflow.parentRunId LIKE '%'", ["params.model DESC", "metrics.loss ASC"]),
    ("metrics.Loss > 0.5", ["metrics.Loss DESC"]),
    ("metrics.loss != 0.25", ["metrics.loss ASC", "attributes.run_name DESC"]),
    ("params.`a/b c.d-e_f` = \"it's\"", []),
    ("dataset.name = 'flights'", ["metrics.loss ASC"]),
    ("dataset.digest = 'd1' and metrics.loss < 0.5", []),
    ("", ["params.depth DESC", "metrics.loss ASC"]),
    ("attributes.status = 'FINISHED'", ["tags.team ASC", "attributes.end_time DESC"]),
]


def main(address: str, count: int, seed: int, answers: Path) -> None:
    mlflow.set_tracking_uri(address)
    client, dice = MlflowClient(), random.Random(seed)
    names = ["plain", "exp: é, # 1", 'say "twice"', "with/slash", "gone with its runs", "empty"]
    experiments = [client.create_experiment(name, tags={"mlflow.note.content": f"about {name}\nin two lines"}) for name in names]
    runs: list[str] = []
    for number in range(count):
        runs.append(one(client, dice, experiments[number % 5], number, runs))
    for run in runs[::37]:
        client.delete_run(run)
    client.delete_experiment(experiments[4])
    registered(client, runs)
    told(client, answers)


def one(client: MlflowClient, dice: random.Random, experiment: str, number: int, runs: list[str]) -> str:
    began = BEGAN + number // 3 * 1000  # three at a time begin together
    tags = {"stage": dice.choice(["draft", "final"]), "naïve key": "é ü 漢字 🙂", "mlflow.user": "somebody"}
    tags |= {"team": dice.choice(["north", "south"])} if number % 3 else {}
    tags |= {"note": "two\nlines\n"} if number % 11 == 0 else {}
    tags |= {"mlflow.parentRunId": runs[number - 5]} if number % 10 == 9 else {}
    run = client.create_run(experiment, start_time=began, tags=tags, run_name=f"run {number % 500}" if number % 13 else "").info.run_id
    params = {"model": dice.choice(["trees", "Trees", "linear"]), "a/b c.d-e_f": "it's", "seed": str(number)}
    params |= {"depth": dice.choice(["3", "10", "deep", ""])} if number % 4 else {}
    params |= {"long": "é" * 6000} if number % 50 == 0 else {}
    metrics = [Metric("loss", round(1 / (step + 1 + number % 40), 2), began + step, step) for step in range(dice.choice([1, 3, 20]))]
    dice.shuffle(metrics)  # out of order
    odd = dice.choice([[0.0], [-0.0], [float("nan")], [float("inf")], [float("-inf")], [1.0, float("nan")], [float("nan"), 1.0], [1e308, 5e-324], []])
    if mlflow.get_tracking_uri().startswith("file"):
        odd = odd[:1]  # which of NaN and a number is the last value depends, in a folder, on the order of their lines
    metrics += [Metric("odd", value, began, 0) for value in odd]  # one step, several times
    metrics += [Metric("val/acc at 5", dice.randrange(10) / 10, began + 1, -number)] if number % 2 else []
    metrics += [Metric("Loss", dice.random(), began, 2**40), Metric("twice", 1.0, began, 0), Metric("twice", 1.0, began, 0), Metric("twice", 0.5, began, 0)]
    if number % 1000 == 500:
        metrics += [Metric("curve", dice.random(), began + step, step) for step in range(950)]
    for at in range(0, len(metrics), 900):
        client.log_batch(run, metrics[at : at + 900], [Param(*each) for each in params.items()] if at == 0 else [])
    if number % 6 == 0:
        data = Dataset(dice.choice(["flights", "rentals"]), dice.choice(["d1", "d2"]), "local", json.dumps({"uri": "x"}), json.dumps({"columns": []}), "{}")
        client.log_inputs(run, datasets=[DatasetInput(data, [InputTag("mlflow.data.context", "training")])])
    if number % 20 == 0:
        client.log_text(run, f"weights {number % 200}", "model/weights é.txt")
        client.log_text(run, "", "empty")
    if number % 29:
        client.set_terminated(run, "FAILED" if number % 7 == 0 else "KILLED" if number % 17 == 0 else "FINISHED", began + dice.randrange(5) * 1000)
    return run


def registered(client: MlflowClient, runs: list[str]) -> None:
    for name in ("pricing", "naïve model"):
        client.create_registered_model(name, {"owner": "é"}, f"about {name}")
        for number in range(3):
            address = client.get_run(runs[number * 20 + 1]).info.artifact_uri
            client.create_model_version(name, f"{address}/model", runs[number * 20 + 1], {"tested": str(number)}, description=f"version {number + 1}")
        client.set_registered_model_alias(name, "champion", "2")
    client.delete_model_version("pricing", "3")


def told(client: MlflowClient, answers: Path) -> None:
    every = [each.experiment_id for each in client.search_experiments()]

    def found(where: str, order: list[str], view: int = ViewType.ACTIVE_ONLY) -> list[str]:
        ids, token = [], None
        while True:
            page = client.search_runs(every, where, view, 1000, order, token)
            ids += [each.info.run_id for each in page]
            token = page.token
            if not token:
                return ids

    about = {}
    for id in found("", [], ViewType.ALL):
        run = client.get_run(id)
        histories = {key: [[p.timestamp, p.step, repr(p.value)] for p in client.get_metric_history(id, key)] for key in run.data.metrics}
        about[id] = {
            "name": run.info.run_name, "status": run.info.status, "start": run.info.start_time, "end": run.info.end_time, "stage": run.info.lifecycle_stage,
            "params": run.data.params, "tags": run.data.tags, "metrics": {key: repr(value) for key, value in run.data.metrics.items()}, "histories": histories,
            "datasets": sorted([each.dataset.name, each.dataset.digest] for each in run.inputs.dataset_inputs),
        }  # fmt: skip
    experiments = [{"name": each.name, "stage": each.lifecycle_stage, "tags": each.tags} for each in client.search_experiments(ViewType.ALL)]
    models = [{
        "name": each.name, "description": each.description, "tags": each.tags, "aliases": each.aliases,
        "versions": [[v.version, v.run_id, v.description, v.tags, v.current_stage] for v in sorted(client.search_model_versions(f"name = '{each.name}'"), key=lambda v: int(v.version))],
    } for each in client.search_registered_models()]  # fmt: skip
    searches = [[where, order, found(where, order)] for where, order in SEARCHES]
    answers.write_text(json.dumps({"runs": about, "experiments": experiments, "models": models, "searches": searches}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
