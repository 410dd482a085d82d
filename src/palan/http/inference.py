"""The Open Inference Protocol v2 (REST, JSON tensors) for models of rows: one named input per column.

Source: https://github.com/open-inference/open-inference-protocol (specification/protocol/inference_rest.md). A column of
n rows is a tensor of shape [n] or [n, 1]. JSON null stands for a value that is not known, where the column allows it.
"""

from __future__ import annotations

from importlib import metadata as distributions
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool

from palan.core import Field
from palan.errors import Invalid, NotFound, PalanError, nearest
from palan.flows.decide import Deciders, Serving

_DATATYPES = {"int": "INT64", "float": "FP64", "bool": "BOOL", "str": "BYTES", "time": "BYTES", "date": "BYTES"}
_INTS = {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
_FLOATS = {"FP16", "FP32", "FP64", "BF16"}
_ACCEPTED = {"int": _INTS, "float": _FLOATS | _INTS, "bool": {"BOOL"}, "str": {"BYTES"}, "time": {"BYTES"}, "date": {"BYTES"}}


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] = {}


class _Wanted(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Infer(msgspec.Struct):
    inputs: list[_Tensor]
    id: str = ""
    outputs: list[_Wanted] = []
    parameters: dict[str, Any] = {}


_decoder = msgspec.json.Decoder(_Infer)


def server() -> dict[str, Any]:
    """Return the server's metadata."""
    return {"name": "palan", "version": distributions.version("palan"), "extensions": []}


def metadata(deciders: Deciders, model: str, version: str = "") -> dict[str, Any]:
    """Return a model's metadata: its inputs and outputs as tensors.

    Raises:
        NotFound: no such model or version is served.
    """
    serving = served(deciders, model, version)
    return {
        "name": model,
        "versions": sorted({lane.version.ref.partition("@")[2] for lane in serving.lanes.values()}, key=int),
        "platform": "palan",
        "inputs": [{"name": each.name, "datatype": _DATATYPES.get(each.type, "BYTES"), "shape": [-1]} for each in serving.inputs.schema.fields],
        "outputs": [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in outputs_of(serving)],
    }


def outputs_of(serving: Serving) -> list[tuple[str, str]]:
    """Return the names and datatypes of what the champion answers."""
    return [(name, _DATATYPES.get(kind, "BYTES")) for name, kind in serving.champion.outputs.items()] or [("output", "FP64")]


def served(deciders: Deciders, model: str, version: str = "") -> Serving:
    """Return what serves a rows model now.

    Raises:
        NotFound: no such model or version is served.
        Invalid: the model takes instances.
    """
    deciders.project.model(model)
    serving = deciders.models.get(model)
    if serving is None:
        raise NotFound(f"{model} is not released", f"palan release {model}")
    if version and f"{model}@{version}" not in serving.lanes:
        raise NotFound(f"{model}@{version} is not served", f"served now: {', '.join(serving.lanes)}")
    if serving.inputs.schema.shape == "instance":
        raise Invalid(f"{model} takes an instance, which is no set of tensors", f"POST /v1/models/{model}/decide", field="model", value=model)
    return serving


async def infer(deciders: Deciders, model: str, body: bytes, *, version: str = "", caller: str = "") -> dict[str, Any]:
    """Answer one inference request; it is routed, repaired and logged like any other decision.

    Raises:
        NotFound: the model is not served.
        Invalid: a tensor has a wrong name, shape, datatype or value.
        PalanError: a version is asked for that does not answer alone.
    """
    serving = served(deciders, model, version)
    if version and serving.release.champion.version != f"{model}@{version}":
        # The release decides who answers; a caller who could choose would break the experiment.
        raise PalanError(f"{model}@{version} is not the champion, and the release decides which version answers", f"POST /v2/models/{model}/infer")
    # As many values as one body may hold take a second to read: in a thread, so that everybody else is answered meanwhile.
    request, columns, keys = await run_in_threadpool(_read, body, serving)
    answer = await deciders.answer_value(model, columns, keys, caller=caller)
    return _response(request, answer)


def _read(body: bytes, serving: Serving) -> tuple[_Infer, dict[str, list[Any]], list[str] | None]:
    try:
        request = _decoder.decode(body)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        raise Invalid(what, "see https://github.com/open-inference/open-inference-protocol", field=place.strip("`$.") or "body") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the body is not JSON: {error}", "the binary extension is not supported", field="body") from None
    return request, *_columns(request, serving)


def _columns(request: _Infer, serving: Serving) -> tuple[dict[str, list[Any]], list[str] | None]:
    fields = {each.name: each for each in serving.inputs.schema.fields}
    key = serving.config.key
    columns: dict[str, list[Any]] = {}
    keys: list[str] | None = None
    rows = -1
    for index, tensor in enumerate(request.inputs):
        path = f"inputs[{index}]"
        each = fields.get(tensor.name)
        is_key = bool(key) and tensor.name == key
        if each is None and not is_key:
            raise Invalid(f"{path} is named {tensor.name}, which is no input of this model", nearest(tensor.name, fields) or f"inputs: {', '.join(fields)}", field=f"{path}.name", value=tensor.name)
        if tensor.name in columns or (is_key and keys is not None):
            raise Invalid(f"{path}.name {tensor.name} came before already", "send each input once", field=f"{path}.name", value=tensor.name)
        values = _flat(tensor, path)
        if rows not in (-1, len(values)):
            raise Invalid(f"{path} has {len(values)} rows, another input has {rows}", "all inputs need the same first dimension", field=f"{path}.shape", value=tensor.shape)
        rows = len(values)
        if each is not None:
            _check_datatype(tensor, each, path)
            columns[tensor.name] = values
        if is_key:
            wrong = next((index for index, value in enumerate(values) if not isinstance(value, str | int)), None)
            if wrong is not None:
                raise Invalid(f"{path}.data holds a key that is neither text nor a whole number", "send text", field=f"{path}.data[{wrong}]")
            keys = [str(value) for value in values]
    if len(request.outputs) > 0:
        known = [name for name, _ in outputs_of(serving)]
        for index, wanted in enumerate(request.outputs):
            # A model that could not answer an empty batch has not told its names: the response then holds what there is.
            if serving.champion.outputs and wanted.name not in known:
                raise Invalid(f"outputs[{index}] is named {wanted.name}, which is no output of this model", f"outputs: {', '.join(known)}", field=f"outputs[{index}].name", value=wanted.name)
    return columns, keys


def _flat(tensor: _Tensor, path: str) -> list[Any]:
    if len(tensor.shape) not in (1, 2) or any(size < 0 for size in tensor.shape) or (len(tensor.shape) == 2 and tensor.shape[1] != 1):
        raise Invalid(f"{path}.shape is {tensor.shape}, not [n] or [n, 1]", "a column has one value a row", field=f"{path}.shape", value=tensor.shape)
    values = tensor.data
    if len(tensor.shape) == 2 and values and all(isinstance(value, list) and len(value) == 1 for value in values):
        values = [value[0] for value in values]
    if len(values) != tensor.shape[0]:
        raise Invalid(f"{path}.data has {len(values)} values, its shape says {tensor.shape[0]}", "shape and data have to agree", field=f"{path}.data", value=len(values))
    return values


def _check_datatype(tensor: _Tensor, each: Field, path: str) -> None:
    accepted = _ACCEPTED.get(each.type)
    if accepted is not None and tensor.datatype not in accepted:
        raise Invalid(f"{path}.datatype of {tensor.name} is {tensor.datatype}, not {_DATATYPES[each.type]}", f"send {_DATATYPES[each.type]}", field=f"{path}.datatype", value=tensor.datatype)


def _response(request: _Infer, answer: dict[str, Any]) -> dict[str, Any]:
    columns = answer["outputs"]
    wanted = [each.name for each in request.outputs] or list(columns)
    parameters = {name: answer[name] for name in ("decision", "arm", "propensity", "status", "degraded") if name in answer}
    return {
        "model_name": answer["model"],
        "model_version": answer["version"].partition("@")[2],
        "id": request.id or answer["decision"],
        "parameters": parameters,
        "outputs": [{"name": name, "datatype": datatype(columns[name]), "shape": [len(columns[name])], "data": columns[name]} for name in wanted if name in columns],
    }


def datatype(values: list[Any]) -> str:
    """Return the tensor datatype of a column of Python values."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "BOOL"
    if kinds == {int}:
        return "INT64"
    return "FP64" if kinds and kinds <= {int, float} else "BYTES"
