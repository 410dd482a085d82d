"""The other routes: the verbs with their own names, models, jobs, and the exact description of this project's models."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from functools import cache, partial
from importlib import import_module
from typing import Any

import msgspec
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from palan.core import Field, Schema, Version, stamp, utc, whole
from palan.data.inputs import check_plain
from palan.errors import Busy, Invalid, NotFound, PalanError, nearest
from palan.flows import jobs, runs
from palan.flows.decide import Serving
from palan.flows.project import Project
from palan.flows.release import summary
from palan.flows.serve import Site
from palan.http import inference
from palan.http.answers import answered, told
from palan.releases.nouns import Release

VERBS: Mapping[str, str] = {
    "ingest": "take in the files that a table's source has and the store has not",
    "accept": "take what is suspected of a table for what it means now",
    "build": "make a version of a model",
    "check": "judge a version by the model's gates",
    "release": "say which version answers",
    "replay": "run a version over recorded decisions",
    "watch": "compare what happens with what was normal",
    "react": "try remedies for an alarm and propose or release the best",
    "tick": "do whatever is due",
    "why": "explain an alarm, a decision, a version or a step",
}
"""`POST /v1/{verb}`: the flow of the same name, called with the fields of the body as its arguments."""

CENTURY = timedelta(days=36_525)

Work = Callable[[Request], Awaitable[Any]]


def answering(work: Work, status: int = 200) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that answers what the work returns as JSON, or its error."""

    async def endpoint(request: Request) -> Response:
        code, answer, headers = await answered(work(request), status)
        return Response(answer, code, {name.decode(): value.decode() for name, value in headers}, media_type="application/json")

    return endpoint


def routes(site: Site) -> list[Route]:
    """Return the API's routes for one project."""
    project = site.project

    async def health(_request: Request) -> Any:
        return {"status": "ok"}

    async def status(request: Request) -> Any:
        return await run_in_threadpool(_flow("status"), project)

    async def log(request: Request) -> Any:
        asked = request.query_params
        limit = whole(asked.get("limit", "50"), "limit", 1, 10_000)
        return await run_in_threadpool(_flow("log"), project, asked.get("subject", ""), limit=limit, verify=asked.get("verify", "") in ("1", "true", "yes"))

    async def models(_request: Request) -> Any:
        return {"models": [_model_line(site, name) for name in project.config.models]}

    async def model(request: Request) -> Any:
        return await run_in_threadpool(_model, site, request.path_params["model"])

    async def submit(request: Request) -> Any:
        name = request.path_params["model"]
        asked = request.query_params
        seconds = _seconds(asked["time_limit"]) if "time_limit" in asked else None
        priority = asked.get("priority", "0")
        rank = whole(priority.removeprefix("-"), "priority", 0, 1000) * (-1 if priority.startswith("-") else 1)
        more: dict[str, Any] = {"time_limit": seconds, "priority": rank, "queue": asked.get("queue", ""), "idempotency_key": request.headers.get("idempotency-key", "")}
        made = await run_in_threadpool(partial(jobs.submit, project, name, await request.body(), **more))
        site.runner.wake()
        return made

    async def list_jobs(request: Request) -> Any:
        asked = request.query_params
        limit = whole(asked.get("limit", "50"), "limit", 1, 1000)
        return {"jobs": await run_in_threadpool(partial(jobs.jobs, project, asked.get("model", ""), limit=limit))}

    async def job(request: Request) -> Any:
        return await run_in_threadpool(jobs.job, project, request.path_params["id"])

    async def stop(request: Request) -> Any:
        return await run_in_threadpool(jobs.stop, project, request.path_params["id"], request.query_params.get("reason", ""))

    async def list_runs(request: Request) -> Any:
        asked = request.query_params
        limit = whole(asked.get("limit", "50"), "limit", 1, runs.MOST)
        return await run_in_threadpool(partial(runs.search, project, asked.get("q", ""), order=asked.getlist("order"), after=asked.get("after", ""), limit=limit, flow=asked.get("flow", "track")))

    async def run(request: Request) -> Any:
        return await run_in_threadpool(runs.run_page, project, request.path_params["id"])

    async def compare(request: Request) -> Any:
        return await run_in_threadpool(lambda: runs.compare(project, _chosen(project, request)))

    async def curve(request: Request) -> Any:
        return await run_in_threadpool(partial(runs.curve, project, request.path_params["id"], **_range(request)))

    async def curves(request: Request) -> Any:
        return {"curves": await run_in_threadpool(lambda: runs.curves(project, _chosen(project, request)[: runs.COMPARED], **_range(request)))}

    async def artifact(request: Request) -> Response:
        try:
            file = await run_in_threadpool(runs.artifact, project, request.path_params["id"], request.path_params["path"])
        except PalanError as error:
            return JSONResponse(told(error)[1], told(error)[0])
        name = request.path_params["path"].rpartition("/")[2]
        # Whatever somebody kept is never shown as a page of this server: it is saved.
        return FileResponse(file, media_type="application/octet-stream", filename=name, background=BackgroundTask(file.unlink, missing_ok=True))

    async def verb(request: Request) -> Any:
        return await run_in_threadpool(call, site, request.path_params["verb"], await request.body())

    async def openapi(_request: Request) -> Any:
        return description(site)

    async def server(_request: Request) -> Any:
        return inference.server()

    async def live(_request: Request) -> Any:
        return {"live": True}

    async def ready(_request: Request) -> Any:
        if site.deciders.trouble:
            raise Busy(f"not every released model can answer: {', '.join(site.deciders.trouble)}", "GET /v1/models says why")
        return {"ready": True}

    async def infer(request: Request) -> Any:
        caller = request.client.host if request.client else ""
        return await inference.infer(site.deciders, request.path_params["model"], await request.body(), version=request.path_params.get("version", ""), caller=caller)

    async def tensors(request: Request) -> Any:
        return inference.metadata(site.deciders, request.path_params["model"], request.path_params.get("version", ""))

    async def model_ready(request: Request) -> Any:
        name = request.path_params["model"]
        inference.served(site.deciders, name, request.path_params.get("version", ""))
        return {"name": name, "ready": True}

    protocol = []
    for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        protocol += [
            Route(prefix, answering(tensors), methods=["GET"]),
            Route(f"{prefix}/ready", answering(model_ready), methods=["GET"]),
            Route(f"{prefix}/infer", answering(infer), methods=["POST"]),
        ]
    return [
        Route("/healthz", answering(health), methods=["GET"]),
        Route("/openapi.json", answering(openapi), methods=["GET"]),
        Route("/v1/status", answering(status), methods=["GET"]),
        Route("/v1/log", answering(log), methods=["GET"]),
        Route("/v1/models", answering(models), methods=["GET"]),
        Route("/v1/models/{model}", answering(model), methods=["GET"]),
        Route("/v1/models/{model}/jobs", answering(submit, 202), methods=["POST"]),
        Route("/v1/jobs", answering(list_jobs), methods=["GET"]),
        Route("/v1/jobs/{id}", answering(job), methods=["GET"]),
        Route("/v1/jobs/{id}/stop", answering(stop), methods=["POST"]),
        Route("/v1/runs", answering(list_runs), methods=["GET"]),
        Route("/v1/runs/compare", answering(compare), methods=["GET"]),
        Route("/v1/runs/curves", answering(curves), methods=["GET"]),
        Route("/v1/runs/{id}", answering(run), methods=["GET"]),
        Route("/v1/runs/{id}/curve", answering(curve), methods=["GET"]),
        Route("/v1/runs/{id}/artifacts/{path:path}", artifact, methods=["GET"]),
        Route("/v2", answering(server), methods=["GET"]),
        Route("/v2/health/live", answering(live), methods=["GET"]),
        Route("/v2/health/ready", answering(ready), methods=["GET"]),
        *protocol,
        Route("/v1/{verb}", answering(verb), methods=["POST"]),
    ]


def call(site: Site, verb: str, body: bytes) -> Any:
    """Call the flow of this name with the fields of a JSON body, then serve what it may have released.

    Raises:
        NotFound: no such verb.
        Invalid: an argument is missing, unknown or of another type.
    """
    if verb not in VERBS:
        raise NotFound(f'no verb "{verb}"', nearest(verb, VERBS) or f"POST /v1/ and one of {', '.join(VERBS)}")
    try:
        arguments = _arguments(verb).decode(body.strip() or b"{}")
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        known = _arguments(verb).type.__struct_fields__
        raise Invalid(f"{verb}: {what}", f"arguments: {', '.join(known) or 'none'}", field=place.strip("`$.") or "body") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the body is not JSON: {error}", 'send an object such as {"model": "..."}', field="body") from None
    given = {name: _sound(name, value) for name in arguments.__struct_fields__ if (value := getattr(arguments, name)) is not msgspec.UNSET}
    positional, named = _split(verb, given)
    answer = _flow(verb)(site.project, *positional, **named)
    site.deciders.refresh()
    return answer


def _sound(name: str, value: Any) -> Any:
    """Return an argument as flows may take it: times in UTC, nothing that overflows when it is added, stored or sent on.

    Raises:
        Invalid: a time outside the calendar, more than a century, a number beyond 64 bits, or deep nesting.
    """
    if isinstance(value, timedelta):
        if abs(value) > CENTURY:
            raise Invalid(f"{name} is {value.days:,} days", "a time of at most a hundred years", field=name, value=str(value))
        return value
    if isinstance(value, datetime):
        try:
            return utc(value)
        except ValueError as error:
            raise Invalid(f"{name}: {error}", 'a time such as "2013-05-01T14:00:00Z"', field=name, value=value.isoformat()) from None
    check_plain(value, name)
    return value


@cache
def _flow(verb: str) -> Callable[..., Any]:
    """Return the flow of a verb: module and function have its name. Loaded at first use, so that serving starts light."""
    return getattr(import_module(f"palan.flows.{verb}"), verb)  # type: ignore[no-any-return]


@cache
def _parameters(verb: str) -> dict[str, inspect.Parameter]:
    """Return the arguments of a flow that can come as JSON; paths and callbacks belong to whoever sits at the machine."""
    every = list(inspect.signature(_flow(verb), eval_str=True).parameters.values())[1:]
    return {each.name: each for each in every if _is_plain(each.annotation)}


def _is_plain(annotation: Any) -> bool:
    try:
        kind = msgspec.inspect.type_info(annotation)
    except TypeError:
        return False
    return not any(isinstance(part, msgspec.inspect.CustomType) for part in (getattr(kind, "types", None) or (kind,)))


@cache
def _arguments(verb: str) -> msgspec.json.Decoder[Any]:
    fields = [(each.name, each.annotation) if each.default is inspect.Parameter.empty else (each.name, each.annotation | msgspec.UnsetType, msgspec.UNSET) for each in _parameters(verb).values()]
    return msgspec.json.Decoder(msgspec.defstruct(verb, fields, kw_only=True, forbid_unknown_fields=True))


def _split(verb: str, given: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    kinds = _parameters(verb)
    only = [name for name in given if kinds[name].kind is inspect.Parameter.POSITIONAL_ONLY]
    return [given[name] for name in only], {name: value for name, value in given.items() if name not in only}


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Invalid(f'time_limit is "{text}"', "seconds, such as 30", field="time_limit", value=text) from None


def _chosen(project: Project, request: Request) -> list[str]:
    """Return the runs that a request names by `run`, or by a search."""
    asked = request.query_params
    return runs.chosen(project, asked.getlist("run"), asked.get("q", ""), order=asked.getlist("order"), flow=asked.get("flow", "track"))


def _range(request: Request) -> dict[str, Any]:
    """Return which part of which curve is asked for.

    Raises:
        Invalid: no metric is named, or a number is none.
    """
    asked = request.query_params
    if not asked.get("metric"):
        raise Invalid("no metric is named", "?metric=loss", field="metric")
    found: dict[str, Any] = {"metric": asked["metric"], "points": whole(asked.get("points", str(runs.DRAWN)), "points", 1, 100_000), "after": whole(asked.get("after", "0"), "after", 0, 2**62)}
    for name in ("low", "high"):
        if name in asked:
            sign = -1 if asked[name].startswith("-") else 1
            found[name] = sign * whole(asked[name].removeprefix("-"), name, 0, 2**62)
    return found


# --- models --------------------------------------------------------------------------------------------------------


def _model_line(site: Site, name: str) -> dict[str, Any]:
    serving = site.deciders.models.get(name)
    line: dict[str, Any] = {"name": name, "served": serving is not None, "champion": None, "canary": None, "kind": site.project.config.models[name].kind}
    if serving is not None:
        canary = serving.release.canary
        line |= {"champion": serving.champion.version.ref, "kind": serving.champion.version.kind, "canary": canary.version if canary else None}
    return {**line, "trouble": site.deciders.trouble.get(name, "")}


def _model(site: Site, name: str) -> dict[str, Any]:
    project = site.project
    project.model(name)
    release = project.store.records.get(Release, name)
    versions = project.store.records.find(Version, order="-number", model=name)
    serving = site.deciders.models.get(name)
    return {
        **_model_line(site, name),
        "release": summary(release) if release else None,
        "versions": [{"ref": each.ref, "id": each.id, "time": stamp(each.time), "kind": each.kind} for each in versions],
        "inputs": msgspec.to_builtins(serving.inputs.schema) if serving else None,
        "shed": site.deciders.shed.get(name, 0),
    }


# --- OpenAPI ---------------------------------------------------------------------------------------------------------


def description(site: Site) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of exactly the models that are served now."""
    paths: dict[str, Any] = {}
    for name, serving in sorted(site.deciders.models.items()):
        paths[f"/v1/models/{name}/decide"] = {"post": _operation(f"decide_{name}", f"Ask {name}", request_schema(serving), answer_schema(serving), example=example(serving.inputs.schema))}
        paths[f"/v1/models/{name}/outcomes"] = {"post": _operation(f"outcomes_{name}", f"Tell what became of decisions of {name}", _OUTCOMES, _TOLD)}
        if serving.inputs.schema.shape == "instance":
            paths[f"/v1/models/{name}/jobs"] = {"post": _operation(f"submit_{name}", f"Queue a solve of {name}", request_schema(serving), {"type": "object"}, status="202")}
    for verb, about in VERBS.items():
        paths[f"/v1/{verb}"] = {"post": _operation(verb, about[0].upper() + about[1:], _verb_schema(verb), {})}
    for path, about in _READ.items():
        parameters = [{"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string"}} for part in path.split("/") if part.startswith("{")]
        paths[path] = {"get": {"operationId": f"get{path.replace('/', '_').replace('{', '').replace('}', '').replace('.', '_')}", "summary": about, "parameters": parameters, "responses": {"200": {"description": "ok"}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": site.project.config.name, "version": inference.server()["version"]},
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR}},
    }


_READ = {
    "/healthz": "Whether the process answers",
    "/v1/status": "Is everything right, and if not, what to do",
    "/v1/log": "The ledger",
    "/v1/models": "The models",
    "/v1/models/{model}": "One model: release, versions, inputs",
    "/v1/jobs": "The newest jobs",
    "/v1/jobs/{id}": "One job with its incumbents",
    "/v1/runs": "Search runs: q, order, after, limit, flow",
    "/v1/runs/compare": "Runs side by side: run, given for each, or q, order, flow",
    "/v1/runs/curves": "One metric of many runs: metric, and what compare takes",
    "/v1/runs/{id}": "One run: params, metrics, files, how to repeat it",
    "/v1/runs/{id}/curve": "A curve: metric, points, low, high, after",
    "/v1/runs/{id}/artifacts/{path}": "A file that a run kept",
}
_ERROR = {
    "type": "object",
    "required": ["error", "code", "hint"],
    "properties": {
        "error": {"type": "string"},
        "code": {"type": "string"},
        "hint": {"type": "string"},
        "field": {"type": "string"},
        "value": {},
        "reason": {"type": "string"},
    },
}
_OUTCOMES = {
    "type": "object",
    "required": ["outcomes"],
    "properties": {
        "outcomes": {
            "type": "array",
            "items": {"type": "object", "required": ["value"], "properties": {"id": {"type": "string"}, "key": {"type": ["string", "integer"]}, "value": {}}, "additionalProperties": False},
        }
    },
}
_TOLD = {"type": "object", "properties": {"model": {"type": "string"}, "told": {"type": "integer"}}}


def _operation(id: str, summary: str, request: dict[str, Any], answer: dict[str, Any], status: str = "200", example: Any = None) -> dict[str, Any]:
    errors = {code: {"description": what, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}} for code, what in _FAILURES.items()}
    return {
        "operationId": id,
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": request, **({"example": example} if example else {})}}},
        "responses": {status: {"description": "ok", "content": {"application/json": {"schema": answer}}}, **errors},
    }


_FAILURES = {
    "404": "no such model, or it is not released",
    "409": "somebody else was first",
    "413": "the body is too large",
    "422": "the input does not fit: field, value and reason say where",
    "502": "the model failed",
    "503": "busy: try again",
    "504": "the model took too long",
}


def request_schema(serving: Serving) -> dict[str, Any]:
    """Return the JSON Schema of what `decide` takes for this model."""
    schema = serving.inputs.schema
    if schema.shape == "instance":
        return {
            "type": "object",
            "required": ["instance"],
            "properties": {"instance": _object(schema.fields), "key": {"type": ["string", "integer"]}},
            "additionalProperties": False,
        }
    key = serving.config.key
    own = {key: {"type": ["string", "integer", "null"], "description": "your own name of the row, for outcomes"}} if key and key not in schema.names else {}
    row = _object(schema.fields)
    row["properties"] |= own
    column = {each.name: {"type": "array", "items": json_schema(each)} for each in schema.fields} | {name: {"type": "array", "items": kind} for name, kind in own.items()}
    columns = {"type": "object", "required": row["required"], "properties": column, "additionalProperties": False}
    keys = {"type": "array", "items": {"type": ["string", "integer"]}}
    return {
        "type": "object",
        "required": ["rows"],
        "properties": {"rows": {"anyOf": [{"type": "array", "minItems": 1, "items": row}, columns]}, "keys": keys},
        "additionalProperties": False,
    }


def answer_schema(serving: Serving) -> dict[str, Any]:
    """Return the JSON Schema of what `decide` answers for this model."""
    properties: dict[str, Any] = {name: {"type": "string"} for name in ("decision", "model", "version", "arm", "status", "degraded")}
    properties |= {"propensity": {"type": "number"}, "violations": {"type": "array"}}
    if serving.inputs.schema.shape == "instance":
        number = {"type": ["number", "null"]}
        return {"type": "object", "properties": {**properties, "outputs": {}, "objective": number, "bound": number, "gap": number, "seconds": {"type": "number"}}}
    outputs = {name: json_schema(Field(name, kind, nullable=True)) for name, kind in serving.champion.outputs.items()}  # type: ignore[arg-type]
    one = outputs["output"] if list(outputs) == ["output"] else {"type": "object", "properties": outputs}
    return {"type": "object", "properties": {**properties, "rows": {"type": "integer"}, "outputs": {"anyOf": [{"type": "array", "items": one}, {"type": "object"}]}}}


def json_schema(each: Field) -> dict[str, Any]:
    """Return the JSON Schema of one field, with its range, set and unit."""
    found: dict[str, Any]
    names: dict[str, dict[str, Any]] = {
        "int": {"type": "integer"},
        "float": {"type": "number"},
        "bool": {"type": "boolean"},
        "str": {"type": "string"},
        "time": {"type": "string", "format": "date-time"},
        "date": {"type": "string", "format": "date"},
        "list": {"type": "array", **({"items": json_schema(each.item)} if each.item else {})},
        "any": {},
    }
    if each.type == "map":
        found = _object(each.fields) if each.fields else {"type": "object", **({"additionalProperties": json_schema(each.item)} if each.item else {})}
    else:
        found = dict(names[each.type])
    if each.values:
        found["enum"] = [int(value) for value in each.values] if each.type == "int" else list(each.values)
    for bound, word in ((each.minimum, "minimum"), (each.maximum, "maximum")):
        if bound is not None and each.type in ("int", "float"):
            found[word] = bound
    if each.pattern:
        found["pattern"] = each.pattern
    for count, word in zip(each.length, ("minLength", "maxLength"), strict=True):
        if count is not None:
            found[word] = count
    if each.unit:
        found["description"] = f"in {each.unit}"
    if each.nullable and "type" in found:
        found["type"] = [found["type"], "null"]
        if "enum" in found:
            found["enum"] = [*found["enum"], None]
    return found


def _object(fields: tuple[Field, ...]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [each.name for each in fields if not each.nullable],
        "properties": {each.name: json_schema(each) for each in fields},
        "additionalProperties": False,
    }


def _verb_schema(verb: str) -> dict[str, Any]:
    try:
        parameters = _parameters(verb)
    except ModuleNotFoundError:
        return {"type": "object"}
    plain: dict[Any, dict[str, Any]] = {str: {"type": "string"}, int: {"type": "integer"}, float: {"type": "number"}, bool: {"type": "boolean"}, datetime: {"type": "string", "format": "date-time"}, timedelta: {"type": "string", "format": "duration"}}
    return {
        "type": "object",
        "required": [each.name for each in parameters.values() if each.default is inspect.Parameter.empty],
        "properties": {each.name: plain.get(each.annotation, {}) for each in parameters.values()},
        "additionalProperties": False,
    }


def example(schema: Schema) -> Any:
    """Return a request that fits the schema: the middle of each range, the first value of each set."""
    one = {each.name: _example(each) for each in schema.fields}
    return {"instance": one} if schema.shape == "instance" else {"rows": [one]}


def _example(each: Field) -> Any:
    if each.values:
        return int(each.values[0]) if each.type == "int" else each.values[0]
    low, high = each.minimum, each.maximum
    number = (low + high) / 2 if low is not None and high is not None else low if low is not None else high if high is not None else 1.0
    match each.type:
        case "int":
            return int(number)
        case "float":
            return round(number, 3)
        case "bool":
            return True
        case "time":
            return "2026-01-01T12:00:00Z"
        case "date":
            return "2026-01-01"
        case "list":
            return [_example(each.item)] if each.item else []
        case "map":
            return {member.name: _example(member) for member in each.fields} if each.fields else {"key": _example(each.item)} if each.item else {}
        case _:
            return "text"
