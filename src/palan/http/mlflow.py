"""The MLflow wire: MLflow's REST routes, so that its own client keeps runs and models here, unmodified.

Every route is a struct that its body or its query is read into, and a function from that to the answer. Errors have MLflow's
form, codes and, where clients look at it, text. https://mlflow.org/docs/latest/rest-api.html describes the protocol.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from palan.errors import Busy, Conflict, Corrupt, Invalid, NotFound, PalanError
from palan.flows import mlflow_artifacts as artifacts
from palan.flows.mlflow import (
    LONGEST_DIGEST,
    LONGEST_NAME,
    MOST_RUNS,
    UNKNOWN,
    Metric,
    Pair,
    Tracking,
    invalid,
    millis,
    missing,
    page_place,
    page_token,
)
from palan.flows.mlflow_registry import Registry
from palan.http import mlflow_artifacts, mlflow_models
from palan.http.answers import respond, told
from palan.http.guard import body
from palan.runs.mlflow import Experiment, Input
from palan.runs.run import Run, Value

MOST_POINTS = 25_000
PREFIX = re.compile(r"/(?:ajax-)?api/[23]\.0/mlflow(?=/)")
PREFIXES = ("/api/2.0/mlflow", "/ajax-api/2.0/mlflow", "/api/3.0/mlflow", "/ajax-api/3.0/mlflow")


def is_mlflow(path: str) -> bool:
    """Tell whether a path is one of MLflow's."""
    return path.startswith(("/api/", "/ajax-api/")) and (PREFIX.match(path) is not None or mlflow_artifacts.OTHER.match(path) is not None)


Answer = Mapping[str, Any]
Work = Callable[[Any], Answer]


class Route(msgspec.Struct, frozen=True):
    """How one method of one path is answered; `quick` ones need no database once their run is known."""

    read: msgspec.json.Decoder[Any]
    work: Work
    needed: tuple[str, ...] = ()
    quick: bool = False


def route(asked: type, work: Work, *needed: str, quick: bool = False) -> Route:
    return Route(msgspec.json.Decoder(asked, strict=False), work, needed, quick)


class Fields(msgspec.Struct, gc=False):
    """Every field that a request about experiments and runs may have."""

    experiment_id: str = ""
    experiment_name: str = ""
    name: str = ""
    new_name: str = ""
    run_id: str = ""
    run_uuid: str = ""
    run_name: str = ""
    user_id: str = ""
    status: str | int = ""
    start_time: int = 0
    end_time: int = 0
    key: str = ""
    value: str = ""
    path: str = ""
    tags: list[Pair] = []


class OneMetric(Metric, gc=False):
    run_id: str = ""
    run_uuid: str = ""


class Batch(msgspec.Struct, gc=False):
    run_id: str = ""
    metrics: list[Metric] = []
    params: list[Pair] = []
    tags: list[Pair] = []


class Search(msgspec.Struct, gc=False):
    filter: str = ""
    max_results: int | None = None
    order_by: list[str] = []
    page_token: str = ""
    experiment_ids: list[str] = []
    run_view_type: str | int = "ACTIVE_ONLY"
    view_type: str | int = "ACTIVE_ONLY"


class History(msgspec.Struct, gc=False):
    run_id: str = ""
    run_ids: list[str] = []
    metric_key: str = ""
    max_results: int | None = None
    page_token: str = ""
    start_step: int | None = None
    end_step: int | None = None


class Histories(msgspec.Struct, gc=False):
    run_id: list[str] = []
    metric_key: str = ""
    max_results: int = MOST_POINTS


class Dataset(msgspec.Struct, gc=False, omit_defaults=True):
    name: str = ""
    digest: str = ""
    source_type: str = ""
    source: str = ""
    schema: str = ""
    profile: str = ""


class DatasetInput(msgspec.Struct, gc=False):
    dataset: Dataset
    tags: list[Pair] = []


class ModelInput(msgspec.Struct, gc=False):
    model_id: str = ""
    step: int = 0


class Inputs(msgspec.Struct, gc=False):
    run_id: str = ""
    datasets: list[DatasetInput] = []
    models: list[ModelInput] = []


class Wire:
    """The routes of one project, and how a request finds its own."""

    def __init__(self, tracking: Tracking) -> None:
        self.tracking = tracking
        models = {at: route(asked, work, *needed) for at, (asked, work, needed) in mlflow_models.routes(Registry(tracking)).items()}
        self.routes = {**_tracking(tracking), **models}
        self.paths = {(method, f"{start}{path}"): each for start in PREFIXES for (method, path), each in self.routes.items()}
        self.patterns = [(method, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)), each) for (method, path), each in self.routes.items() if "{" in path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request of which `is_mlflow` says that it is one."""
        method, path = scope["method"], scope["path"]
        if mlflow_artifacts.OTHER.match(path):
            try:
                await mlflow_artifacts.proxy(self.tracking.project, scope, receive, send)
            except Exception as error:  # noqa: BLE001 - as below
                await refuse(send, error)
            return
        found, named = self._find(method, path)
        if found is None:
            status, code = (405, "BAD_REQUEST") if self._is_other_method(path) else (404, "ENDPOINT_NOT_FOUND")
            await respond(send, status, _error(code, f"{method} {path} is not answered here: see docs/reference/http.md"))
            return
        try:
            asked = read(found, method, scope["query_string"], await body(receive), named)
            if found.quick:
                params = isinstance(asked, Fields) or (isinstance(asked, Batch) and bool(asked.params))
                if not self.tracking.knows(asked.run_id, params=params):
                    await run_in_threadpool(self.tracking.known, asked.run_id, params=params)
                answer = found.work(asked)
            else:
                answer = await run_in_threadpool(found.work, asked)
            await respond(send, 200, encode(answer))
        except Exception as error:  # noqa: BLE001 - the last door before the network: logged whole, told as an id
            await refuse(send, error)

    def _find(self, method: str, path: str) -> tuple[Route | None, Mapping[str, str]]:
        if found := self.paths.get((method, path)):
            return found, {}
        short = PREFIX.sub("", path, count=1)
        for verb, pattern, each in self.patterns:
            if verb == method and (match := pattern.fullmatch(short)):
                return each, match.groupdict()
        return None, {}

    def _is_other_method(self, path: str) -> bool:
        return any(self._find(method, path)[0] for method in ("GET", "POST", "PATCH", "DELETE"))


def read(of: Route, method: str, query: bytes, content: bytes, named: Mapping[str, str]) -> Any:
    """Return what a client asks, from body, query and path.

    Raises:
        Invalid: a field has another type, or is missing.
    """
    given: dict[str, Any] = {}
    try:
        if method == "GET" or (not content and query):
            lists = {each.name for each in msgspec.structs.fields(of.read.type) if str(each.type).startswith("list")}
            for name, values in parse_qs(query.decode("latin-1"), keep_blank_values=True).items():
                given[name] = values if name in lists else values[-1]
            asked = msgspec.convert(given, of.read.type, strict=False)
        else:
            asked = _decoded(of.read, content.strip() or b"{}")
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        field = place.strip("`$.") or "body"
        value = _at(given if method == "GET" else msgspec.json.decode(content), field)
        raise invalid(
            f"Invalid value {value} for parameter '{field}' supplied: {what}. See the API docs for more information about request parameters.", field
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"Malformed JSON: {error}") from None
    for name, value in named.items():
        setattr(asked, name, unquote(value))
    if isinstance(asked, Fields | OneMetric) and not asked.run_id:
        asked.run_id = asked.run_uuid
    for name in of.needed:
        if getattr(asked, name) in ("", None, []):
            raise missing(name)
    return asked


def _decoded(read: msgspec.json.Decoder[Any], content: bytes) -> Any:
    """Return what a body says: a null says nothing, and old clients send a text with the body in it."""
    try:
        return read.decode(content)
    except msgspec.ValidationError:
        given = msgspec.json.decode(content)
        plain = msgspec.json.decode(given) if isinstance(given, str) else given
        return msgspec.convert(_without_nulls(plain), read.type, strict=False)


def _without_nulls(given: Any) -> Any:
    if isinstance(given, dict):
        return {name: _without_nulls(each) for name, each in given.items() if each is not None}
    return [_without_nulls(each) for each in given if each is not None] if isinstance(given, list) else given


def _at(given: Any, place: str) -> str:
    """Return what a request has at a place such as `metrics[0].value`, as JSON."""
    for part in re.findall(r"\w+", place):
        try:
            given = given[int(part)] if isinstance(given, list) else given[part]
        except (LookupError, TypeError, ValueError):
            return ""
    return msgspec.json.encode(given).decode()[:200]


def _dataset(given: Dataset) -> tuple[str, str]:
    """Return the name and the digest of a dataset.

    Raises:
        Invalid: one is missing, or too long.
    """
    for name, value, most in (("name", given.name, LONGEST_NAME), ("digest", given.digest, LONGEST_DIGEST)):
        if not value:
            raise missing(name)
        if len(value) > most:
            raise invalid(f"'{name}' exceeds the maximum length of {most} characters", name)
    return given.name, given.digest


def encode(answer: Answer) -> bytes:
    """Return the answer as JSON without what is empty, as MLflow's messages are: numbers of 64 bits stay numbers, NaN is a text."""
    return msgspec.json.encode({name: value for name, value in answer.items() if value not in (None, [], ())})


def number(value: float) -> float | str:
    """Return a number as JSON can hold it."""
    if value != value:
        return "NaN"
    return value if abs(value) != float("inf") else "Infinity" if value > 0 else "-Infinity"


async def refuse(send: Send, error: Exception) -> None:
    status, code = _code(error)
    message = error.what if isinstance(error, PalanError) else f"{told(error)[1]['error']}, {told(error)[1]['hint']}"
    await respond(send, status, _error(code, message))


def _error(code: str, message: str) -> bytes:
    return msgspec.json.encode({"error_code": code, "message": message})


def _code(error: Exception) -> tuple[int, str]:
    match error:
        case NotFound():
            return 404, "RESOURCE_DOES_NOT_EXIST"
        case Invalid():
            return 400, "INVALID_PARAMETER_VALUE"
        case Conflict():
            return 400, "RESOURCE_ALREADY_EXISTS"
        case Busy():
            return 503, "TEMPORARILY_UNAVAILABLE"
        case Corrupt():
            return 500, "DATA_LOSS"
        case PalanError():
            return 400, "INVALID_PARAMETER_VALUE"
    return 500, "INTERNAL_ERROR"


# -- runs and experiments ------------------------------------------------------------------------------------------------


def _tracking(tracking: Tracking) -> dict[tuple[str, str], Route]:
    """Return the routes of experiments and runs."""

    def log_metric(asked: OneMetric) -> Answer:
        tracking.log(asked.run_id, [asked], batch=False)
        return {}

    def log_param(asked: Fields) -> Answer:
        tracking.log(asked.run_id, (), [Pair(asked.key, asked.value)], batch=False)
        return {}

    def log_batch(asked: Batch) -> Answer:
        tracking.log(asked.run_id, asked.metrics, asked.params, asked.tags)
        return {}

    def set_tag(asked: Fields) -> Answer:
        tracking.log(asked.run_id, (), (), [Pair(asked.key, asked.value)], batch=False)
        return {}

    def delete_tag(asked: Fields) -> Answer:
        tracking.untag(asked.run_id, asked.key)
        return {}

    def create_run(asked: Fields) -> Answer:
        run = tracking.create_run(asked.experiment_id or "0", asked.run_name, asked.start_time, asked.user_id, asked.tags)
        values = [Value(run.id, "tag", key, value) for key, value in run.tags.items()]
        return {"run": run_told(run, int(asked.experiment_id or 0), values, ())}

    def update_run(asked: Fields) -> Answer:
        status = asked.status if isinstance(asked.status, str) else dict(enumerate(("", "RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"))).get(asked.status, "")
        run = tracking.update_run(asked.run_id, status, asked.end_time, asked.run_name)
        return {"run_info": _info(run, tracking.experiment_named(run.subject).number, _user(tracking.values([run.id]).get(run.id, [])))}

    def get_run(asked: Fields) -> Answer:
        run = tracking.run(asked.run_id)
        return {"run": _runs([run])[0]}

    def _runs(runs: Sequence[Run]) -> list[Answer]:
        numbers = {each.name: each.number for each in tracking.experiments()}
        ids = [run.id for run in runs]
        values, inputs = tracking.values(ids), tracking.inputs(ids)
        return [run_told(run, numbers[run.subject], values.get(run.id, ()), inputs.get(run.id, ())) for run in runs]

    def search_runs(asked: Search) -> Answer:
        most = 1000 if asked.max_results is None else asked.max_results
        if not 0 < most <= MOST_RUNS:
            rule = f"It must be at most {MOST_RUNS}" if most > 0 else "It must be a positive integer"
            raise invalid(f"Invalid value {most} for parameter 'max_results' supplied. {rule}", "max_results")
        runs, following = tracking.search(asked.experiment_ids, asked.filter, _view(asked.run_view_type), most, asked.order_by, asked.page_token)
        return {"runs": _runs(runs), "next_page_token": following or None}

    def delete_run(asked: Fields) -> Answer:
        tracking.put_aside(asked.run_id, deleted=True)
        return {}

    def restore_run(asked: Fields) -> Answer:
        tracking.put_aside(asked.run_id, deleted=False)
        return {}

    def history(asked: History) -> Answer:
        points = tracking.history(asked.run_id, asked.metric_key)
        if asked.max_results is not None and asked.max_results <= 0:
            raise invalid(f"Invalid value {asked.max_results} for parameter 'max_results' supplied. It must be a positive integer.", "max_results")
        begin = int(_offset(asked.page_token))
        end = len(points) if asked.max_results is None else begin + asked.max_results
        told = [{"key": asked.metric_key, "value": number(value), "timestamp": ms, "step": step} for ms, step, value in points[begin:end]]
        return {"metrics": told, "next_page_token": _token(end) if end < len(points) else None}

    def histories(asked: Histories) -> Answer:
        if len(asked.run_id) > 100:
            raise invalid(f"GetMetricHistoryBulk request cannot specify more than 100 run_ids. Received {len(asked.run_id)} run_ids.", "run_id")
        found = ((run, *point) for run in sorted(set(asked.run_id)) for point in tracking.history(run, asked.metric_key))
        shown = islice(found, max(min(asked.max_results, MOST_POINTS), 0))
        return {"metrics": [{"key": asked.metric_key, "value": number(value), "timestamp": ms, "step": step, "run_id": run} for run, ms, step, value in shown]}

    def interval(asked: History) -> Answer:
        if len(asked.run_ids) > 100:
            raise invalid(f"GetMetricHistoryBulkInterval request must specify at most 100 run_ids. Received {len(asked.run_ids)} run_ids.", "run_ids")
        if (asked.start_step is None) != (asked.end_step is None):
            raise invalid("If either start step or end step are specified, both must be specified.", "start_step")
        if asked.start_step is not None and asked.end_step is not None and asked.start_step > asked.end_step:
            raise invalid(f"end_step must be greater than start_step. Found start_step={asked.start_step} and end_step={asked.end_step}.", "end_step")
        most = 2500 if asked.max_results is None else asked.max_results
        if not 1 <= most <= 2500:
            raise invalid("max_results must be between 1 and 2500.", "max_results")
        found = tracking.sampled(asked.run_ids, asked.metric_key, asked.start_step, asked.end_step, most)
        return {"metrics": [{"key": asked.metric_key, "value": number(value), "timestamp": ms, "step": step, "run_id": run} for run, ms, step, value in found]}

    def log_inputs(asked: Inputs) -> Answer:
        datasets = [
            Input(asked.run_id, "dataset", *_dataset(each.dataset), {"dataset": msgspec.to_builtins(each.dataset), "tags": msgspec.to_builtins(each.tags)})
            for each in asked.datasets
        ]
        tracking.put_inputs(asked.run_id, [*datasets, *(Input(asked.run_id, "model", each.model_id, "") for each in asked.models)])
        return {}

    def log_outputs(asked: Inputs) -> Answer:
        tracking.put_inputs(asked.run_id, [Input(asked.run_id, "output", each.model_id, "", {"step": each.step}) for each in asked.models])
        return {}

    def log_model(asked: Fields) -> Answer:
        tracking.writable(asked.run_id)  # what MLflow 2 told here is in the model's own folder too
        return {}

    def create_experiment(asked: Fields) -> Answer:
        return {"experiment_id": str(tracking.create_experiment(asked.name, asked.tags).number)}

    def get_experiment(asked: Fields) -> Answer:
        return {"experiment": _experiment(tracking.experiment(asked.experiment_id))}

    def get_by_name(asked: Fields) -> Answer:
        return {"experiment": _experiment(tracking.experiment_named(asked.experiment_name))}

    def update_experiment(asked: Fields) -> Answer:
        tracking.rename_experiment(asked.experiment_id, asked.new_name)
        return {}

    def delete_experiment(asked: Fields) -> Answer:
        tracking.put_experiment_aside(asked.experiment_id, deleted=True)
        return {}

    def restore_experiment(asked: Fields) -> Answer:
        tracking.put_experiment_aside(asked.experiment_id, deleted=False)
        return {}

    def tag_experiment(asked: Fields) -> Answer:
        tracking.tag_experiment(asked.experiment_id, asked.key, asked.value)
        return {}

    def untag_experiment(asked: Fields) -> Answer:
        tracking.tag_experiment(asked.experiment_id, asked.key, None)
        return {}

    def search_experiments(asked: Search) -> Answer:
        if not asked.max_results or asked.max_results < 0:
            raise invalid(f"Invalid value {asked.max_results or 0} for parameter 'max_results' supplied. It must be a positive integer", "max_results")
        if asked.max_results > MOST_RUNS:
            raise invalid(f"Invalid value {asked.max_results} for parameter 'max_results' supplied. It must be at most {MOST_RUNS}", "max_results")
        found, following = tracking.search_experiments(asked.filter, _view(asked.view_type), asked.max_results, asked.order_by, asked.page_token)
        return {"experiments": [_experiment(each) for each in found], "next_page_token": following or None}

    def list_artifacts(asked: Fields) -> Answer:
        run = tracking.run(asked.run_id)
        path = artifacts.sound(asked.path)
        root = artifact_uri(tracking.experiment_named(run.subject).number, run.id)
        return {"root_uri": root, "files": mlflow_artifacts.files(artifacts.listed(tracking.project, run.id, path))}

    def info(_asked: Fields) -> Answer:
        return {"store_type": "SqlStore", "workspaces_enabled": False, "multipart_uploads_enabled": False, "multipart_downloads_enabled": False}

    return {
        ("POST", "/experiments/create"): route(Fields, create_experiment, "name"),
        ("GET", "/experiments/get"): route(Fields, get_experiment, "experiment_id"),
        ("GET", "/experiments/get-by-name"): route(Fields, get_by_name, "experiment_name"),
        ("POST", "/experiments/update"): route(Fields, update_experiment, "experiment_id", "new_name"),
        ("POST", "/experiments/delete"): route(Fields, delete_experiment, "experiment_id"),
        ("POST", "/experiments/restore"): route(Fields, restore_experiment, "experiment_id"),
        ("POST", "/experiments/set-experiment-tag"): route(Fields, tag_experiment, "experiment_id", "key"),
        ("POST", "/experiments/delete-experiment-tag"): route(Fields, untag_experiment, "experiment_id", "key"),
        ("POST", "/experiments/search"): route(Search, search_experiments),
        ("GET", "/experiments/search"): route(Search, search_experiments),
        ("POST", "/runs/create"): route(Fields, create_run),
        ("POST", "/runs/update"): route(Fields, update_run, "run_id"),
        ("GET", "/runs/get"): route(Fields, get_run, "run_id"),
        ("POST", "/runs/delete"): route(Fields, delete_run, "run_id"),
        ("POST", "/runs/restore"): route(Fields, restore_run, "run_id"),
        ("POST", "/runs/search"): route(Search, search_runs),
        ("POST", "/runs/log-metric"): route(OneMetric, log_metric, "run_id", "key", "value", "timestamp", quick=True),
        ("POST", "/runs/log-parameter"): route(Fields, log_param, "run_id", "key", quick=True),
        ("POST", "/runs/set-tag"): route(Fields, set_tag, "run_id", "key", quick=True),
        ("POST", "/runs/log-batch"): route(Batch, log_batch, "run_id", quick=True),
        ("POST", "/runs/delete-tag"): route(Fields, delete_tag, "run_id", "key"),
        ("POST", "/runs/log-inputs"): route(Inputs, log_inputs, "run_id"),
        ("POST", "/runs/outputs"): route(Inputs, log_outputs, "run_id"),
        ("POST", "/runs/log-model"): route(Fields, log_model, "run_id"),
        ("GET", "/metrics/get-history"): route(History, history, "run_id", "metric_key"),
        ("GET", "/metrics/get-history-bulk"): route(Histories, histories, "run_id", "metric_key"),
        ("GET", "/metrics/get-history-bulk-interval"): route(History, interval, "run_ids", "metric_key"),
        ("GET", "/artifacts/list"): route(Fields, list_artifacts, "run_id"),
        ("GET", "/server-info"): route(Fields, info),
    }


def _offset(token: str) -> int:
    place = page_place(token)
    return place[0] if place and isinstance(place[0], int) and place[0] >= 0 else 0


def _token(offset: int) -> str:
    return page_token([offset])


def _view(view: str | int) -> str:
    return view if isinstance(view, str) else {2: "DELETED_ONLY", 3: "ALL"}.get(view, "ACTIVE_ONLY")


def _experiment(each: Experiment) -> Answer:
    return {
        "experiment_id": str(each.number),
        "name": each.name,
        "artifact_location": f"mlflow-artifacts:/{each.number}",
        "lifecycle_stage": "deleted" if each.deleted else "active",
        "last_update_time": millis(each.updated),
        "creation_time": millis(each.time),
        "tags": pairs(each.tags),
    }


def pairs(values: Mapping[str, str]) -> list[Answer]:
    return [{"key": key, "value": value} for key, value in values.items()]


_WORDS = {"running": "RUNNING", "done": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


def artifact_uri(experiment: int, run: str) -> str:
    return f"mlflow-artifacts:/{experiment}/{run}/artifacts"


def _user(values: Sequence[Value]) -> str:
    return next((each.text or "" for each in values if each.kind == "tag" and each.key == "mlflow.user"), UNKNOWN)


def _info(run: Run, experiment: int, user: str) -> Answer:
    return {
        "run_uuid": run.id,
        "run_id": run.id,
        "experiment_id": str(experiment),
        "run_name": run.name,
        "user_id": user,
        "status": _WORDS.get(run.status, "RUNNING"),
        "start_time": millis(run.time),
        **({"end_time": millis(run.ended)} if run.ended else {}),
        "artifact_uri": artifact_uri(experiment, run.id),
        "lifecycle_stage": "deleted" if run.deleted else "active",
    }


def run_told(run: Run, experiment: int, values: Sequence[Value], inputs: Sequence[Input]) -> Answer:
    """Return a run in MLflow's form."""
    tags = {each.key: each.text or "" for each in values if each.kind == "tag"}
    if run.name:
        tags.setdefault("mlflow.runName", run.name)
    if run.parent:
        tags.setdefault("mlflow.parentRunId", run.parent)
    metrics = [
        {"key": each.key, "value": "NaN" if each.number is None else number(each.number), "timestamp": each.time // 1_000_000, "step": each.step}
        for each in values
        if each.kind == "metric"
    ]
    used = {
        "dataset_inputs": [each.about for each in inputs if each.kind == "dataset"],
        "model_inputs": [{"model_id": each.name} for each in inputs if each.kind == "model"],
    }
    made = [{"model_id": each.name, "step": each.about.get("step", 0)} for each in inputs if each.kind == "output"]
    return {
        "info": _info(run, experiment, tags.get("mlflow.user", UNKNOWN)),
        "data": {"metrics": metrics, "params": [{"key": each.key, "value": each.text or ""} for each in values if each.kind == "param"], "tags": pairs(tags)},
        "inputs": {name: each for name, each in used.items() if each},
        **({"outputs": {"model_outputs": made}} if made else {}),
    }
