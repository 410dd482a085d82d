"""MLflow's own client, unmodified, against a real server: what it logs is kept here, and found by both."""

from __future__ import annotations

import http.client
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from palan.errors import Corrupt, Invalid
from palan.flows import registered
from palan.flows.mlflow import FRESH, Pair, Tracking
from palan.flows.mlflow import Metric as Point
from palan.flows.project import Project, open_project
from palan.flows.runs import run_page, search
from palan.flows.track import start
from palan.http.mlflow import Wire
from palan.runs.run import Artifact, Value

pytest.importorskip("mlflow", reason="no client of MLflow: pip install mlflow-skinny")
pytest.importorskip("pandas", reason="MLflow's models need pandas: pip install pandas")

os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"  # a refusal is told at once, not after a minute
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["GIT_PYTHON_REFRESH"] = "quiet"

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

SOURCES = Path(__file__).parents[1] / "src"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("wire")
    (folder / "palan.toml").write_text('[project]\nname = "routing"\n', encoding="utf-8")
    return open_project(folder)


@pytest.fixture(scope="module")
def server(project: Project) -> Iterator[str]:
    with serving(project.root) as url:
        yield url


class serving:
    """A server of a project as a process of its own, while the block runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> str:
        environment = {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "palan.cli", "--project", str(self.folder), "serve", "--port", "0"]
        self.process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert self.process.stdout
        for line in self.process.stdout:
            if " at http" in line:
                return line.rpartition(" ")[2].strip()
        raise AssertionError("it never came up")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture
def client(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowClient]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    mlflow.set_tracking_uri(server)
    yield MlflowClient(server, server)
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)


pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:Starting with pandas")


def refused(work: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(MlflowException) as caught:
        work()
    return caught.value.error_code, caught.value.message


# -- runs


def test_what_the_fluent_interface_logs_is_found_by_both(client: MlflowClient, project: Project) -> None:
    mlflow.set_experiment("routes")
    with mlflow.start_run(run_name="outer", tags={"team": "north"}) as outer:
        mlflow.log_params({"lr": 0.1, "model": "trees"})
        for step in range(5):
            mlflow.log_metric("loss", 1 / (step + 1), step=step)
        mlflow.log_metrics({"gap": 0.5, "val/loss": 2.0}, step=7)
        mlflow.set_tag("stage", "draft")
        with mlflow.start_run(run_name="inner", nested=True) as inner:
            mlflow.log_param("depth", 3)
    found = mlflow.get_run(outer.info.run_id)
    assert (found.info.status, found.info.run_name, found.data.tags["mlflow.runName"], found.data.tags["team"]) == ("FINISHED", "outer", "outer", "north")
    assert found.data.params == {"lr": "0.1", "model": "trees"}
    assert found.data.metrics == {"loss": 0.2, "gap": 0.5, "val/loss": 2.0}
    assert [(each.step, each.value) for each in client.get_metric_history(outer.info.run_id, "loss")] == [(step, 1 / (step + 1)) for step in range(5)]
    children = mlflow.search_runs(search_all_experiments=True, filter_string=f"tags.`mlflow.parentRunId` = '{outer.info.run_id}'", output_format="list")
    assert [each.info.run_id for each in children] == [inner.info.run_id]
    page = run_page(project, outer.info.run_id)
    assert (page["experiment"], page["status"], page["params"]["model"], page["metrics"]["loss"]) == ("routes", "done", "trees", 0.2)
    assert page["children"] == [{"run": inner.info.run_id, "name": "inner", "status": "done"}]


def test_what_palan_tracks_is_found_by_the_client(client: MlflowClient, project: Project) -> None:
    with start("own", name="mine", project=project, lr=0.5) as run:
        run.log(loss=0.25)
        run.artifact(b"hello", "notes/a.txt")
    experiment = client.get_experiment_by_name("own")
    (found,) = client.search_runs([experiment.experiment_id], "params.lr = '0.5' and metrics.loss < 0.3")
    assert (found.info.run_id, found.info.run_name, found.data.params["lr"], found.data.metrics["loss"]) == (run.id, "mine", "0.5", 0.25)
    assert [each.path for each in client.list_artifacts(run.id, "notes")] == ["notes/a.txt"]
    assert Path(client.download_artifacts(run.id, "notes/a.txt")).read_bytes() == b"hello"


def test_a_batch_keeps_every_point_and_the_last_value_is_that_of_the_largest_step(client: MlflowClient) -> None:
    run = client.create_run(client.create_experiment("batches")).info.run_id
    client.log_batch(run, [Metric("m", float(step), 1000 + step, step) for step in range(1000)], [Param("p", "1")], [RunTag("t", "v")])
    client.log_batch(run, [Metric("m", -1.0, 5, 10), Metric("m", math.nan, 6, 11), Metric("n", math.inf, 1, 0), Metric("m", 7.0, 1999, 999)])
    data = client.get_run(run).data
    assert (data.metrics, data.params, data.tags["t"]) == ({"m": 999.0, "n": math.inf}, {"p": "1"}, "v")
    history = client.get_metric_history(run, "m")
    assert len(history) == 1003 and math.isnan(history[1].value) and history[0].timestamp == 5
    assert [(each.timestamp, each.step) for each in history] == sorted((each.timestamp, each.step) for each in history)
    page = client._tracking_client.store.get_metric_history(run, "m", max_results=10, page_token=None)
    following = client._tracking_client.store.get_metric_history(run, "m", max_results=2000, page_token=page.token)
    assert len(page) == 10 and [*page, *following][3:] == history[3:] and following.token is None


def test_a_deleted_run_takes_nothing_and_comes_back(client: MlflowClient, project: Project) -> None:
    experiment = client.create_experiment("deleted")
    run = client.create_run(experiment).info.run_id
    client.log_metric(run, "m", 1.0)
    client.delete_run(run)
    code, message = refused(lambda: client.log_metric(run, "m", 2.0))
    assert code == "INVALID_PARAMETER_VALUE" and message.endswith(f"The run {run} must be in the 'active' state. Current state is deleted.")
    assert run not in {each["run"] for each in search(project)["runs"]}
    assert client.search_runs([experiment]) == []
    assert [each.info.lifecycle_stage for each in client.search_runs([experiment], run_view_type=ViewType.DELETED_ONLY)] == ["deleted"]
    client.restore_run(run)
    client.log_metric(run, "m", 3.0, step=1)
    assert client.get_run(run).data.metrics == {"m": 3.0}
    client.delete_experiment(experiment)
    assert client.get_run(run).info.lifecycle_stage == "deleted" and client.get_experiment(experiment).lifecycle_stage == "deleted"
    assert "must be in the 'active' state" in refused(lambda: client.create_run(experiment))[1]
    client.restore_experiment(experiment)
    assert client.get_run(run).info.lifecycle_stage == "active"


def test_the_first_calls_of_several_clients_at_once_find_the_default_experiment(tmp_path: Path) -> None:
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "palan.toml").write_text("", encoding="utf-8")
        tracking = Tracking(open_project(folder))
        with ThreadPoolExecutor(8) as pool:
            assert {each.name for each in pool.map(tracking.experiment, ["0"] * 8)} == {"Default"}
        tracking.project.store.records.close()


def test_a_renamed_experiment_keeps_its_runs_and_tags(client: MlflowClient) -> None:
    experiment = client.create_experiment("before", tags={"a": "b"})
    run = client.create_run(experiment).info.run_id
    client.rename_experiment(experiment, "after")
    client.set_experiment_tag(experiment, "c", "d")
    found = client.get_experiment_by_name("after")
    assert (found.experiment_id, found.tags) == (experiment, {"a": "b", "c": "d"}) and client.get_experiment_by_name("before") is None
    assert [each.info.run_id for each in client.search_runs([experiment])] == [run]
    assert [each.name for each in client.search_experiments(filter_string="name LIKE 'aft%' AND tags.c = 'd'")] == ["after"]
    every = client.search_experiments(max_results=1)
    assert len(every) == 1 and every.token and len(client.search_experiments(max_results=100, page_token=every.token)) >= 1


def test_errors_have_mlflows_codes_and_messages(client: MlflowClient) -> None:
    experiment = client.create_experiment("errors")
    run = client.create_run(experiment).info.run_id
    client.log_param(run, "p", "1")
    client.log_param(run, "p", "1")
    assert "Changing param values is not allowed" in refused(lambda: client.log_param(run, "p", "2"))[1]
    assert refused(lambda: client.create_experiment("errors"))[0] == "RESOURCE_ALREADY_EXISTS"
    assert refused(lambda: client.get_run("f" * 32)) == ("RESOURCE_DOES_NOT_EXIST", "RESOURCE_DOES_NOT_EXIST: Run with id=" + "f" * 32 + " not found")
    assert refused(lambda: client.get_experiment("999"))[0] == "RESOURCE_DOES_NOT_EXIST"
    assert "No tag with name: none" in refused(lambda: client.delete_tag(run, "none"))[1]
    code, message = refused(lambda: client.search_runs([experiment], "metrics.loss <"))
    assert code == "INVALID_PARAMETER_VALUE" and "at character 15" in message
    assert refused(lambda: client.search_runs([experiment], page_token="bogus"))[0] == "INVALID_PARAMETER_VALUE"
    client.log_param(run, "long", "x" * 6001)
    assert len(client.get_run(run).data.params["long"]) == 6001


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("runs/log-batch", {"metrics": [{"key": "m", "value": 1, "timestamp": 1}] * 950, "tags": [{"key": f"t{n}", "value": ""} for n in range(51)]}, "at most 1000 metrics, params, and tags. Got 1001"),
        ("runs/log-batch", {"params": [{"value": "1"}]}, "Missing value for required parameter 'params[0].key'."),
        ("runs/log-parameter", {"key": "k" * 251, "value": "1"}, "'Param key' exceeds the maximum length of 250 characters"),
        ("runs/log-parameter", {"key": "p", "value": 5}, "Invalid value 5 for parameter 'value' supplied"),
        ("runs/log-inputs", {"datasets": [{"dataset": {"name": "a", "digest": "b" * 37}}]}, "'digest' exceeds the maximum length of 36 characters"),
        ("runs/search", {"experiment_ids": ["abc"]}, "Invalid experiment ID 'abc'. Experiment ID must be a valid integer."),
        ("runs/search", {"experiment_ids": ["0"], "filter": "start_time LIKE '1%'"}, "LIKE is for text"),
        ("experiments/create", {"name": "n" * 501}, "'name' exceeds the maximum length of 500 characters"),
        ("experiments/create", {"name": "n", "tags": [{"key": "a\nb", "value": "1"}]}, "Names may only contain alphanumerics"),
        ("runs/log-metric", {"key": "m", "value": 1}, "Missing value for required parameter 'timestamp'."),
        ("runs/log-metric", {"key": "a\nb", "value": 1, "timestamp": 1}, "Names may only contain alphanumerics"),
        ("runs/log-metric", {"key": "../m", "value": 1, "timestamp": 1}, "This name would resolve to '../m'"),
        ("runs/log-metric", {"key": "m" * 251, "value": 1, "timestamp": 1}, "exceeds the maximum length of 250 characters"),
        ("runs/log-metric", {"key": "m", "value": 1, "timestamp": -1}, "Timestamp must be a nonnegative long (64-bit integer)"),
        ("runs/log-batch", {"metrics": [{"key": "m", "value": 1, "timestamp": 1}] * 1001}, "at most 1000 metrics. Got 1001 metrics"),
        ("runs/log-batch", {"params": [{"key": f"p{n}", "value": "1"} for n in range(101)]}, "at most 100 params. Got 101 params"),
        ("runs/log-batch", {"tags": [{"key": f"p{n}", "value": "1"} for n in range(101)]}, "at most 100 tags. Got 101 tags"),
        ("runs/log-batch", {"params": [{"key": "q", "value": "1"}, {"key": "q", "value": "2"}]}, "Duplicate parameter keys have been submitted: ['q']."),
        ("runs/log-batch", {"metrics": [{"key": "m"}]}, "Missing value for required parameter 'metrics[0].value'."),
        ("runs/create", {"experiment_id": "0", "run_name": "a", "tags": [{"key": "mlflow.runName", "value": "b"}]}, "Both 'run_name' argument and 'mlflow.runName' tag"),
        ("runs/log-metric", {"key": "m", "value": "abc", "timestamp": 1}, "for parameter 'value' supplied"),
    ],
)
def test_what_a_body_may_not_hold(client: MlflowClient, server: str, path: str, body: dict[str, Any], message: str) -> None:
    run = client.create_run("0").info.run_id
    status, answer = call(server, "POST", f"/ajax-api/2.0/mlflow/{path}", {"run_id": run, **body})
    assert (status, answer["error_code"]) == (400, "INVALID_PARAMETER_VALUE") and message in answer["message"]
    assert client.get_run(run).data.metrics == {} and client.get_run(run).data.params == {}


def call(server: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(server.removeprefix("http://"))
    try:
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body) if body is not None else None, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if content[:1] == b"{" else content
    finally:
        connection.close()


def test_numbers_may_come_as_texts_and_both_prefixes_answer(client: MlflowClient, server: str) -> None:
    run = client.create_run("0").info.run_id
    assert call(server, "POST", "/api/2.0/mlflow/runs/log-metric", {"run_uuid": run, "key": "m", "value": "NaN", "timestamp": "5", "step": "3"}) == (200, {})
    status, answer = call(server, "GET", f"/ajax-api/2.0/mlflow/runs/get?run_id={run}")
    info = answer["run"]["info"]
    assert (status, info["run_uuid"], info["run_id"]) == (200, run, run)
    assert answer["run"]["data"]["metrics"] == [{"key": "m", "value": "NaN", "timestamp": 5, "step": 3}]
    for step in range(50):
        client.log_metric(run, "curve", float(step), step=step)
    _, answer = call(server, "GET", f"/api/2.0/mlflow/metrics/get-history-bulk-interval?run_ids={run}&metric_key=curve&max_results=10")
    steps = [each["step"] for each in answer["metrics"]]
    assert len(steps) == 11 and (steps[0], steps[-1]) == (0, 49) and {each["run_id"] for each in answer["metrics"]} == {run}
    assert call(server, "GET", "/api/2.0/mlflow/nothing")[0] == 404 and call(server, "GET", "/api/2.0/mlflow/runs/create")[0] == 405
    assert call(server, "POST", "/api/2.0/mlflow/runs/search", {}, {"Origin": "http://evil.example"})[0] == 403


def test_datasets_are_kept_with_the_run(client: MlflowClient) -> None:
    import pandas as pd

    with mlflow.start_run() as run:
        mlflow.log_input(mlflow.data.from_pandas(pd.DataFrame({"x": [1.0, 2.0]}), name="flights"), context="training")
    (used,) = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    assert used.dataset.name == "flights" and [(each.key, each.value) for each in used.tags] == [("mlflow.data.context", "training")]
    found = {where: [each.info.run_id for each in client.search_runs([run.info.experiment_id], where)] for where in ("dataset.name = 'flights' AND datasets.context LIKE 'train%'", "dataset.name = 'ships'")}
    assert list(found.values()) == [[run.info.run_id], []]


def test_a_body_may_be_sloppy_where_mlflow_lets_it(client: MlflowClient, server: str) -> None:
    run = client.create_run("0").info.run_id
    point = {"run_id": run, "key": "m", "value": 1, "timestamp": 1700000000000.7, "step": None}
    assert call(server, "POST", "/api/2.0/mlflow/runs/log-metric", point) == (200, {})
    assert call(server, "POST", "/api/2.0/mlflow/runs/log-metric", json.dumps(json.dumps({**point, "key": "n"})).encode()) == (200, {})
    assert [each.timestamp for key in "mn" for each in client.get_metric_history(run, key)] == [1700000000000] * 2
    status, answer = call(server, "POST", f"/api/2.0/mlflow-artifacts/mpu/create/0/{run}/artifacts/big", {"path": "big", "num_parts": 2})
    assert (status, answer["error_code"]) == (501, "NOT_IMPLEMENTED")


def test_a_run_goes_on_after_the_server_was_restarted(tmp_path: Path) -> None:
    (tmp_path / "palan.toml").write_text('[project]\nname = "again"\n', encoding="utf-8")
    with serving(tmp_path) as url:
        run = MlflowClient(url).create_run("0").info.run_id
        MlflowClient(url).log_param(run, "p", "1")
    with serving(tmp_path) as url:
        client = MlflowClient(url)
        assert client.get_run(run).info.status == "KILLED"
        client.log_metric(run, "m", 1.0)
        assert "Changing param values" in refused(lambda: client.log_param(run, "p", "2"))[1]
        assert client.get_run(run).info.status == "RUNNING"
        client.set_terminated(run, "FAILED", 5_000_000_000_000)
        assert (client.get_run(run).info.status, client.get_run(run).info.end_time) == ("FAILED", 5_000_000_000_000)


# -- the same answers as MLflow's own store

FILTERS = [
    "", "metrics.loss < 0.5", "metrics.loss >= 0.2 and params.model = 'trees'", "params.model != 'trees'", "params.model LIKE 'tr%'",
    "params.model ILIKE 'TR%'", "tags.team = 'north'", "tags.team != 'north'",
    "attributes.status = 'FINISHED'", "status != 'FINISHED'", "status LIKE 'FIN%'", "user_id = 'ann'", "user_id != 'ann' and metrics.loss > 0.3", "run_name LIKE 'run 1%'", "start_time > 1005", "metrics.`a b` > 0", "tags.`x.y` = 'z'",
    "metrics.rare = 1 and params.depth = '3'",
]  # fmt: skip
ORDERS: list[list[str]] = [
    [], ["metrics.loss ASC"], ["metrics.loss DESC"], ["metrics.rare DESC", "metrics.loss ASC"], ["params.model ASC", "start_time ASC"], ["tags.team DESC", "metrics.loss ASC"], ["start_time ASC"], ["run_name DESC"],
]  # fmt: skip


def test_searches_find_what_mlflows_own_store_finds(client: MlflowClient, tmp_path: Path) -> None:
    pytest.importorskip("alembic", reason="MLflow's own store needs alembic: pip install alembic")
    own = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    both = [(each, each.create_experiment("searched")) for each in (client, own)]
    for each, experiment in both:
        for n in range(25):
            run = each.create_run(experiment, start_time=1000 + n, run_name=f"run {n}", tags={"mlflow.user": "ann" if n % 2 else "bob"}).info.run_id
            metrics = [Metric("loss", (n * 7 % 13) / 13, 1, 0), *([Metric("rare", 1.0, 1, 0)] if n % 5 == 0 else []), *([Metric("a b", n - 10.0, 1, 0)] if n % 2 else [])]
            tags = [*([RunTag("team", "north" if n % 2 else "south")] if n % 3 else []), RunTag("x.y", "z" if n > 20 else "w")]
            each.log_batch(run, metrics, [Param("model", "trees" if n % 4 else "net"), Param("depth", str(n % 4))], tags)
            if n % 3 == 0:
                each.set_terminated(run, "FINISHED" if n % 2 else "FAILED", end_time=2000)
    for where in FILTERS:
        for order in ORDERS:
            ours, theirs = ([run.info.run_name for run in pages(each, experiment, where, order)] for each, experiment in both)
            assert ours == theirs, (where, order)


LOGGED: list[dict[str, Any]] = [
    {}, {"filter_string": "metrics.acc > 0.5"}, {"filter_string": "metrics.acc < 0.5 and params.depth = '1'"}, {"filter_string": "name = 'net-2'"},
    {"datasets": [{"dataset_name": "train"}]}, {"datasets": [{"dataset_name": "test", "dataset_digest": "d2"}]},
    {"datasets": [{"dataset_name": "train"}, {"dataset_name": "test"}], "filter_string": "metrics.acc > 0.5"}, {"datasets": [{"dataset_name": "test"}], "filter_string": "metrics.acc < 0.2"},
    {"order_by": [{"field_name": "metrics.acc", "ascending": False}]}, {"order_by": [{"field_name": "metrics.acc", "dataset_name": "test"}, {"field_name": "name"}]},
    {"order_by": [{"field_name": "metrics.acc", "dataset_name": "test", "dataset_digest": "d1"}, {"field_name": "name", "ascending": False}]},
]  # fmt: skip


def test_logged_models_are_found_by_what_was_measured_on_a_dataset_as_by_mlflows_own_store(client: MlflowClient, tmp_path: Path) -> None:
    pytest.importorskip("alembic", reason="MLflow's own store needs alembic: pip install alembic")
    own = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    both = [(each, each.create_experiment("measured")) for each in (client, own)]
    for each, experiment in both:
        for n in range(6):
            run = each.create_run(experiment).info.run_id
            model = each.create_logged_model(experiment, name=f"net-{n}", source_run_id=run, params={"depth": str(n % 2)}).model_id
            for at, (dataset, digest) in enumerate([("train", "d0"), *([("test", f"d{n % 3}")] if n else [])]):
                each.log_metric(run, "acc", n / 10 + 0.4 * at, timestamp=1000 + at, dataset_name=dataset, dataset_digest=digest, model_id=model)
    for asked in LOGGED:
        ours, theirs = ([model.name for model in each.search_logged_models([experiment], **asked)] for each, experiment in both)
        assert ours == theirs, asked
    (code, ours), (own_code, theirs) = (refused(partial(each.search_logged_models, [experiment], datasets=[{"dataset_name": ""}])) for each, experiment in both)
    assert code == own_code and ours.endswith(theirs)


def test_a_run_is_found_by_the_place_of_its_artefacts_and_curves_come_together(client: MlflowClient, server: str) -> None:
    experiment = client.create_experiment("placed")
    first, other = (client.create_run(experiment).info for _ in range(2))
    found = client.search_runs([experiment], f"attributes.artifact_uri = '{first.artifact_uri}'")
    assert [run.info.run_id for run in found] == [first.run_id]
    assert [run.info.run_id for run in client.search_runs([experiment], f"artifact_uri != '{first.artifact_uri}'")] == [other.run_id]
    assert client.search_runs([experiment], "artifact_uri = 's3://bucket/elsewhere'") == []
    assert refused(lambda: client.search_runs([experiment], "artifact_uri LIKE '%x'"))[0] == "INVALID_PARAMETER_VALUE"
    for step, value in enumerate((0.5, 0.25)):
        for info in (other, first):
            client.log_metric(info.run_id, "loss", value, timestamp=1000 + step, step=step)
    path = f"/ajax-api/2.0/mlflow/metrics/get-history-bulk?run_id={other.run_id}&run_id={first.run_id}&metric_key=loss"
    status, told = call(server, "GET", path)
    assert status == 200 and [(each["run_id"], each["step"], each["value"]) for each in told["metrics"]] == [(run, *point) for run in sorted((first.run_id, other.run_id)) for point in ((0, 0.5), (1, 0.25))]
    assert len(call(server, "GET", f"{path}&max_results=3")[1]["metrics"]) == 3
    status, told = call(server, "GET", "/api/2.0/mlflow/metrics/get-history-bulk?metric_key=loss")
    assert (status, told["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


def pages(client: MlflowClient, experiment: str, where: str, order: list[str]) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs([experiment], where, order_by=order, max_results=7, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


# -- artefacts


def test_artefacts_go_in_and_come_out(client: MlflowClient, project: Project, tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "one.txt").write_text("one", encoding="utf-8")
    (tmp_path / "d" / "e" / "two.bin").write_bytes(os.urandom(3 << 20))
    run = client.create_run("0").info.run_id
    client.log_artifacts(run, str(tmp_path / "d"), "all")
    client.log_text(run, "hello", "notes/a b.txt")
    client.log_dict(run, {"a": 1}, "config.json")
    assert {each.path: each.is_dir for each in client.list_artifacts(run)} == {"all": True, "config.json": False, "notes": True}
    assert [each.path for each in client.list_artifacts(run, "all")] == ["all/e", "all/one.txt"]
    back = Path(client.download_artifacts(run, ""))
    assert (back / "all" / "e" / "two.bin").read_bytes() == (tmp_path / "d" / "e" / "two.bin").read_bytes()
    assert (back / "notes" / "a b.txt").read_text(encoding="utf-8") == "hello"
    assert {each["path"] for each in run_page(project, run)["artifacts"]} == {"all/one.txt", "all/e/two.bin", "notes/a b.txt", "config.json"}


@pytest.mark.parametrize("path", ["0/{run}/artifacts/../x", "0/{run}/artifacts/%2e%2e/x", "0/{run}/artifacts/%252e%252e/x", "/etc/passwd", "0/{run}/artifacts/a%5C..%5Cb", "0/{run}/artifacts"])
def test_a_path_that_leads_elsewhere_is_refused(client: MlflowClient, server: str, path: str) -> None:
    run = client.create_run("0").info.run_id
    status, answer = call(server, "PUT", f"/api/2.0/mlflow-artifacts/artifacts/{path.format(run=run)}", b"x")
    assert (status, answer["message"]) == (400, "Invalid path")


def test_a_damaged_artefact_is_not_given_out(client: MlflowClient, server: str, project: Project) -> None:
    run = client.create_run("0").info.run_id
    client.log_text(run, "the truth", "a.txt")
    client.list_artifacts(run)
    (kept,) = project.store.records.find(Artifact, run=run)
    place = project.store.blobs.place(kept.blob)  # type: ignore[attr-defined]
    place.chmod(0o644)
    place.write_bytes(b"the trutH")
    with pytest.raises(Corrupt):
        project.store.blobs.get(kept.blob)
    status, answer = call(server, "GET", f"/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/a.txt")
    assert status == 500 and "is damaged" in answer["message"]


def test_an_artefact_is_deleted(client: MlflowClient, server: str) -> None:
    run = client.create_run("0").info.run_id
    client.log_text(run, "x", "d/a.txt")
    client.log_text(run, "x", "b.txt")
    assert call(server, "DELETE", f"/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/d") == (200, {})
    assert [each.path for each in client.list_artifacts(run)] == ["b.txt"]


# -- models


def test_autolog_logs_a_fit_and_its_model_loads_again(client: MlflowClient) -> None:
    np = pytest.importorskip("numpy")
    linear = pytest.importorskip("sklearn.linear_model")
    X, y = np.arange(20.0).reshape(-1, 1), np.arange(20.0) * 2 + 1
    mlflow.set_experiment("autolog")
    mlflow.sklearn.autolog(silent=True, log_datasets=False)
    try:
        with mlflow.start_run() as run:
            linear.Ridge(alpha=0.5).fit(X, y)
    finally:
        mlflow.sklearn.autolog(disable=True)
    found = mlflow.get_run(run.info.run_id)
    assert found.data.params["alpha"] == "0.5" and found.data.metrics["training_r2_score"] > 0.9
    (made,) = found.outputs.model_outputs
    model = mlflow.get_logged_model(made.model_id)
    assert str(model.status) == "READY" and model.source_run_id == run.info.run_id
    loaded = mlflow.pyfunc.load_model(model.model_uri)
    assert float(loaded.predict(X)[3]) == pytest.approx(7, abs=0.5)
    registered = mlflow.register_model(model.model_uri, "ridge")
    assert registered.version == "1"
    client.set_registered_model_alias("ridge", "best", 1)
    assert float(mlflow.pyfunc.load_model("models:/ridge@best").predict(X)[3]) == pytest.approx(7, abs=0.5)
    assert [each.model_id for each in mlflow.search_logged_models([found.info.experiment_id], filter_string="params.alpha = '0.5'", output_format="list")] == [made.model_id]


def test_a_registered_model_has_versions_aliases_tags_and_stages(client: MlflowClient) -> None:
    run = client.create_run("0").info
    client.create_registered_model("prices", {"a": "b"}, "what it is")
    assert refused(lambda: client.create_registered_model("prices"))[0] == "RESOURCE_ALREADY_EXISTS"
    source = f"{run.artifact_uri}/model"
    first = client.create_model_version("prices", source, run.run_id, tags={"q": "1"}, description="one")
    second = client.create_model_version("prices", source, run.run_id)
    assert (first.version, second.version, second.status, first.tags) == ("1", "2", "READY", {"q": "1"})
    client.set_registered_model_alias("prices", "champion", "1")
    client.set_registered_model_alias("prices", "champion", "2")
    assert client.get_model_version_by_alias("prices", "champion").version == "2" and client.get_registered_model("prices").aliases == {"champion": "2"}
    assert "'latest' alias name (case insensitive) is reserved." in refused(lambda: client.set_registered_model_alias("prices", "latest", "1"))[1]
    assert "is reserved" in refused(lambda: client.set_registered_model_alias("prices", "v1", "1"))[1]
    client.transition_model_version_stage("prices", "1", "Production")
    client.transition_model_version_stage("prices", "2", "Production", archive_existing_versions=True)
    assert [client.get_model_version("prices", number).current_stage for number in "12"] == ["Archived", "Production"]
    client.set_model_version_tag("prices", "2", "ready", "yes")
    assert [each.version for each in client.search_model_versions("name = 'prices' and tags.ready = 'yes'")] == ["2"]
    assert [each.version for each in client.search_model_versions("name = 'prices'", order_by=["version_number ASC"])] == ["1", "2"]
    client.rename_registered_model("prices", "costs")
    assert client.get_model_version_download_uri("costs", "1") == source
    client.delete_model_version("costs", "2")
    assert client.get_registered_model("costs").aliases == {} and refused(lambda: client.get_model_version("costs", "2"))[0] == "RESOURCE_DOES_NOT_EXIST"
    assert [each.name for each in client.search_registered_models("name LIKE 'cos%'")] == ["costs"]
    client.delete_registered_model("costs")
    assert "Registered Model with name=costs not found" in refused(lambda: client.get_registered_model("costs"))[1]


@pytest.mark.parametrize("source", ["/etc/passwd", "file:///etc/passwd", "mlflow-artifacts:/0/other/artifacts/model", "s3://bucket/../x"])
def test_a_version_may_not_lie_just_anywhere(client: MlflowClient, server: str, source: str) -> None:
    call(server, "POST", "/api/2.0/mlflow/registered-models/create", {"name": "anywhere"})
    status, answer = call(server, "POST", "/api/2.0/mlflow/model-versions/create", {"name": "anywhere", "source": source})
    assert status == 400 and "Invalid model version source" in answer["message"]


def test_versions_that_are_registered_at_the_same_time_have_different_numbers(client: MlflowClient, project: Project, server: str) -> None:
    client.create_registered_model("raced")
    run = client.create_run("0").info
    with serving(project.root) as other, ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: MlflowClient((server, other)[n % 2]).create_model_version("raced", f"{run.artifact_uri}/m", run.run_id).version, range(24)))
    assert sorted(map(int, made)) == list(range(1, 25))


def test_what_one_server_deletes_the_other_does_not_write_to(client: MlflowClient, project: Project, server: str) -> None:
    with serving(project.root) as url:
        other = MlflowClient(url, url)
        run = client.create_run("0").info.run_id
        other.log_metric(run, "m", 1.0)
        client.log_param(run, "p", "1")
        client.delete_run(run)
        time.sleep(2 * FRESH)
        assert "Current state is deleted" in refused(lambda: other.log_metric(run, "m", 2.0))[1]
        other.restore_run(run)
        assert "Changing param values is not allowed" in refused(lambda: other.log_param(run, "p", "2"))[1]
        time.sleep(2 * FRESH)
        client.log_metric(run, "m", 3.0, step=1)
        assert other.get_run(run).data.metrics == {"m": 3.0} and other.get_run(run).data.params == {"p": "1"}


def test_who_logs_metrics_waits_for_no_fold_and_who_logs_parameters_is_told_of_others(tmp_path: Path) -> None:
    (tmp_path / "palan.toml").write_text('[project]\nname = "quick"\n', encoding="utf-8")
    one, other = (Tracking(open_project(tmp_path)) for _ in range(2))
    run = one.create_run("0", "", 0, "", []).id
    for each in (one, other):
        each.log(run, [Point("m", 1.0, 1000)])
    one.log(run, (), [Pair("p", "1")])
    time.sleep(1.1 * FRESH)
    other.log(run, [Point("m", 2.0, 2000, 1)])
    assert not one.records.find(Value, run=run, key="m", step=1)
    assert not one.records.find(Value, run=run, kind="param")
    with pytest.raises(Invalid, match="already logged with value='1'"):
        other.log(run, (), [Pair("p", "2")], batch=False)
    assert one.records.find(Value, run=run, key="m", step=1)


def test_the_number_of_a_deleted_version_is_not_given_again(client: MlflowClient) -> None:
    client.create_registered_model("numbered")
    for number in "12":
        assert client.create_model_version("numbered", "s3://bucket/model").version == number
    client.delete_model_version("numbered", "2")
    assert client.create_model_version("numbered", "s3://bucket/model").version == "3"
    assert [each.version for each in client.search_model_versions("name = 'numbered'")] == ["3", "1"]
    assert refused(lambda: client.delete_model_version("numbered", "2"))[0] == "RESOURCE_DOES_NOT_EXIST"
    assert client.copy_model_version("models:/numbered/1", "copies").version == "1"
    assert client.get_model_version_download_uri("copies", "1") == "s3://bucket/model"


def test_prompts_are_kept_apart_from_models(client: MlflowClient, project: Project) -> None:
    client.register_prompt("greet", "Say {{what}}", commit_message="first")
    assert client.register_prompt("greet", "Say {{what}} twice").version == 2
    client.set_prompt_alias("greet", "prod", 1)
    assert client.load_prompt("prompts:/greet@prod").format(what="hello") == "Say hello"
    assert [each.name for each in client.search_prompts()] == ["greet"]
    assert "greet" not in [each.name for each in client.search_registered_models()]
    assert "greet" not in [each["name"] for each in registered.models(project)]
    assert refused(lambda: client.create_model_version("greet", "dummy-source"))[0] == "INVALID_PARAMETER_VALUE"


def test_a_model_that_failed_is_told_so(client: MlflowClient) -> None:
    made = client.create_logged_model("0", name="broken")
    assert client.finalize_logged_model(made.model_id, "FAILED").status == "FAILED"


def test_every_route_is_documented(project: Project) -> None:
    reference = (Path(__file__).parents[1] / "docs" / "reference" / "http.md").read_text(encoding="utf-8")
    for method, path in Wire(Tracking(project)).routes:
        assert any(f"`/mlflow{path}`" in line and method in line for line in reference.splitlines()), (method, path)
