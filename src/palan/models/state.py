"""What a model has learnt, as data-only files and back: JSON, npy, Arrow, skops. Nothing that can run code is read."""

from __future__ import annotations

import base64
import dataclasses
import importlib
import inspect
import io
import math
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

import msgspec
import numpy as np
import polars as pl

from palan.errors import Corrupt, MissingExtra, PalanError

STATE = "state.json"
KEPT = "numbers, text, lists, dicts, sets, dates, numpy arrays, Polars frames and scikit-learn objects"
_TRUSTED_PACKAGES = ("sklearn.", "numpy.", "scipy.")
# A partial is only a holder: skops names the function inside it apart, and that one is judged here too. check_array,
# which scikit-learn puts before histogram trees with categories, only converts and refuses.
_TRUSTED_CALLABLES = ("functools.partial", "sklearn.utils.validation.check_array")


def learnt(model: Any) -> dict[str, Any]:
    """Return the attributes that are not parameters: what `fit` has set."""
    if not hasattr(model, "__dict__") or inspect.isfunction(model):
        return {}
    if dataclasses.is_dataclass(model):
        given = {field.name for field in dataclasses.fields(model)}
    else:
        given = set(inspect.signature(type(model)).parameters) if type(model).__init__ is not object.__init__ else set()
    return {name: value for name, value in vars(model).items() if name not in given and not name.startswith("__")}


def dump(model: Any) -> dict[str, bytes]:
    """Return the learnt attributes as named files: `state.json` and those that it mentions; empty when nothing was learnt.

    Raises:
        PalanError: an attribute holds something that cannot be kept without code; it is named.
    """
    files: dict[str, bytes] = {}
    if _from_sklearn(model):
        tree: Any = {"model": _encode(model, "model", files)}
    else:
        attributes = learnt(model)
        if not attributes:
            return {}
        tree = {"attributes": {name: _encode(value, name, files) for name, value in attributes.items()}}
    return {STATE: msgspec.json.format(msgspec.json.encode(tree), indent=1), **files}


def load(model: Any, files: Mapping[str, bytes]) -> Any:
    """Set the learnt attributes on the model (or replace a whole scikit-learn object) and return it.

    Raises:
        Corrupt: a file is missing or not what it should be.
        PalanError: a file names a type outside the trusted libraries.
    """
    if not files:
        return model
    if STATE not in files:
        raise Corrupt(f"the model's state has no {STATE}", "build this version again")
    try:
        tree = msgspec.json.decode(files[STATE])
        if "model" in tree:
            return _decode(tree["model"], files)
        for name, value in tree["attributes"].items():
            setattr(model, name, _decode(value, files))
    except (KeyError, ValueError, TypeError, OSError, pl.exceptions.PolarsError, msgspec.DecodeError) as error:
        raise Corrupt(f"the model's state cannot be read: {error}", "build this version again") from error
    return model


def _from_sklearn(value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "sklearn" and not inspect.isfunction(value)


def _encode(value: Any, name: str, files: dict[str, bytes]) -> Any:
    """Return the JSON tree of a value; what is no JSON becomes {"$": form, ...}, large parts become files."""
    if value is None or isinstance(value, bool) or type(value) in (int, str):
        return value
    if isinstance(value, float | np.floating):
        number = float(value)
        return number if math.isfinite(number) and type(value) is float else {"$": "float", "value": repr(number)}
    if isinstance(value, np.bool_ | np.integer | np.str_):
        return value.item()
    if type(value) is list:
        return [_encode(item, f"{name}.{i}", files) for i, item in enumerate(value)]
    if type(value) is dict:
        if all(type(key) is str and key != "$" for key in value):
            return {key: _encode(item, f"{name}.{key}", files) for key, item in value.items()}
        return {"$": "map", "items": [[_encode(key, f"{name}.key", files), _encode(item, f"{name}.{key}", files)] for key, item in value.items()]}
    if type(value) in (tuple, set, frozenset):
        items = sorted(value, key=repr) if type(value) is not tuple else value
        return {"$": type(value).__name__, "items": [_encode(item, f"{name}.{i}", files) for i, item in enumerate(items)]}
    if isinstance(value, datetime):
        return {"$": "time", "value": value.isoformat()}
    if isinstance(value, date):
        return {"$": "date", "value": value.isoformat()}
    if isinstance(value, bytes):
        return {"$": "bytes", "value": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return {"$": "objects", "shape": list(value.shape), "items": [_encode(item, name, files) for item in value.ravel().tolist()]}
        return _file("npy", name, _npy(value, name), files)
    if isinstance(value, pl.DataFrame | pl.Series):
        frame = value.to_frame() if isinstance(value, pl.Series) else value
        buffer = io.BytesIO()
        frame.write_ipc(buffer)
        return _file("series" if isinstance(value, pl.Series) else "frame", name, buffer.getvalue(), files)
    if _from_sklearn(value):
        data, types = _skops_dump(value, name)
        return {**_file("skops", name, data, files), "types": types}
    raise PalanError(
        f"what fit() kept in {name!r} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be kept as data",
        f"keep {KEPT}; or make it a field of the class if it is a parameter",
    )


def _file(form: str, name: str, data: bytes, files: dict[str, bytes]) -> dict[str, Any]:
    suffix = {"npy": "npy", "frame": "arrow", "series": "arrow", "skops": "skops"}[form]
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    path, count = f"{safe}.{suffix}", 1
    while path in files:
        count += 1
        path = f"{safe}-{count}.{suffix}"
    files[path] = data
    return {"$": form, "file": path}


def _npy(value: np.ndarray[Any, Any], name: str) -> bytes:
    buffer = io.BytesIO()
    try:
        np.save(buffer, value, allow_pickle=False)
    except ValueError as error:
        raise PalanError(f"what fit() kept in {name!r} is an array of Python objects", f"keep {KEPT}") from error
    return buffer.getvalue()


def _decode(tree: Any, files: Mapping[str, bytes]) -> Any:
    if isinstance(tree, list):
        return [_decode(item, files) for item in tree]
    if not isinstance(tree, dict):
        return tree
    match tree.get("$"):
        case None:
            return {key: _decode(item, files) for key, item in tree.items()}
        case "float":
            return float(tree["value"])
        case "map":
            return {_decode(key, files): _decode(item, files) for key, item in tree["items"]}
        case "tuple":
            return tuple(_decode(item, files) for item in tree["items"])
        case "set":
            return {_decode(item, files) for item in tree["items"]}
        case "frozenset":
            return frozenset(_decode(item, files) for item in tree["items"])
        case "time":
            return datetime.fromisoformat(tree["value"])
        case "date":
            return date.fromisoformat(tree["value"])
        case "bytes":
            return base64.b64decode(tree["value"])
        case "objects":
            array = np.empty(math.prod(tree["shape"]), dtype=object)
            array[:] = [_decode(item, files) for item in tree["items"]]
            return array.reshape(tree["shape"])
        case "npy":
            return np.load(io.BytesIO(files[tree["file"]]), allow_pickle=False)
        case "frame":
            return pl.read_ipc(io.BytesIO(files[tree["file"]]))
        case "series":
            return pl.read_ipc(io.BytesIO(files[tree["file"]])).to_series()
        case "skops":
            return _skops_load(files[tree["file"]], tree["file"])
        case form:
            raise ValueError(f"unknown form {form!r}")


def _skops_dump(value: Any, name: str) -> tuple[bytes, list[str]]:
    try:
        import skops.io
    except ImportError as error:
        raise MissingExtra("skops", "sklearn", "keeping a scikit-learn object") from error
    data = skops.io.dumps(value)
    types = skops.io.get_untrusted_types(data=data)
    foreign = [kind for kind in types if not _trusted(kind)]
    if foreign:
        raise PalanError(f"what fit() kept in {name!r} holds a {foreign[0]}, which is outside scikit-learn, numpy and scipy", f"keep {KEPT}")
    return data, sorted(types)


def _skops_load(data: bytes, file: str) -> Any:
    try:
        import skops.io
    except ImportError as error:
        raise MissingExtra("skops", "sklearn", "reading a scikit-learn object") from error
    types = skops.io.get_untrusted_types(data=data)
    foreign = [kind for kind in types if not _trusted(kind)]
    if foreign:
        raise PalanError(f"{file} holds a {foreign[0]}, which is outside scikit-learn, numpy and scipy: it is not loaded", "build this version again from its code")
    return skops.io.loads(data, trusted=types)


def _trusted(kind: str) -> bool:
    """Tell whether a name in a skops file is a class of a trusted library; functions are not, for they could do anything."""
    if kind in _TRUSTED_CALLABLES:
        return True
    if not kind.startswith(_TRUSTED_PACKAGES):
        return False
    module, _, name = kind.rpartition(".")
    try:
        return isinstance(getattr(importlib.import_module(module), name, None), type)
    except ImportError:
        return False


