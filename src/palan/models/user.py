"""Calling somebody else's code: parameters checked by name, what it raises made readable, what it returns made plain."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import linecache
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import msgspec
import numpy as np
import polars as pl

from palan.errors import MissingExtra, ModelFailed, PalanError, nearest
from palan.models import state
from palan.models.contract import Violation

_PALAN = str(Path(__file__).parents[1])


def make(entry: Any, params: Mapping[str, Any]) -> Any:
    """Return the model that `entry` (a class, a function or a finished object) and the parameters make.

    Raises:
        PalanError: a parameter that the entry does not have, one that it needs and did not get, or a finished
            object that was given parameters.
    """
    if isinstance(entry, type):
        known = parameters(entry)
        _refuse_unknown(entry.__name__, params, known)
        missing = [name for name, default in known.items() if default is inspect.Parameter.empty and name not in params]
        if missing:
            raise PalanError(f"{entry.__name__} needs the parameter {missing[0]!r}", f"give it a default, or a value in params = {{ {missing[0]} = ... }}")
        with guarded(entry, "__init__"):
            return entry(**params)
    if isinstance(entry, FunctionType):
        known = parameters(entry)
        _refuse_unknown(entry.__name__, params, known)
        return functools.update_wrapper(functools.partial(entry, **params), entry) if params else entry
    if params:
        raise PalanError(f"a finished {type(entry).__name__} takes no parameters, but {', '.join(params)} came", "remove params, or name its class as the model")
    return entry


def parameters(entry: Any) -> dict[str, Any]:
    """Return the parameters of a class (its dataclass fields, or the arguments of __init__) or function, with defaults.

    A function's first arguments, those without a default, are its input and not parameters.
    """
    if isinstance(entry, type) and dataclasses.is_dataclass(entry):
        return {
            field.name: field.default
            if field.default is not dataclasses.MISSING
            else (field.default_factory() if field.default_factory is not dataclasses.MISSING else inspect.Parameter.empty)
            for field in dataclasses.fields(entry)
            if field.init
        }
    if isinstance(entry, type) and "__init__" not in {name for base in entry.__mro__[:-1] for name in vars(base)}:
        return {}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = {p.name: p.default for p in inspect.signature(entry).parameters.values() if p.kind in named}
    if isinstance(entry, type):
        return found
    return {name: default for name, default in found.items() if default is not inspect.Parameter.empty}


def _refuse_unknown(owner: str, params: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in params:
        if name not in known:
            hint = nearest(name, known) or (f"it has {', '.join(known)}" if known else "it has none: give its dataclass a field")
            raise PalanError(f"{owner} has no parameter {name!r}", hint)


def name_of(model: Any) -> str:
    """Return what a person would call the model: its class's or function's name."""
    return str(getattr(model, "__name__", "") or type(model).__name__)


@contextmanager
def guarded(model: Any, verb: str) -> Iterator[None]:
    """Turn whatever the user's code raises into ModelFailed that names the last line of theirs; the log has all of it."""
    try:
        yield
    except (ModelFailed, MissingExtra):
        raise
    except BaseException as error:  # a model may raise anything; it ends its answer, not the process
        # an exception's own words may raise in turn: Python's traceback reads them safely
        told = error.what if isinstance(error, PalanError) else str(traceback.TracebackException.from_exception(error))
        first = next(iter(told.splitlines()), "")[:500]
        where = _last_user_line(error)
        raise ModelFailed(
            f"{name_of(model)}.{verb} raised {type(error).__name__}{f': {first}' if first else ''}{f' ({where})' if where else ''}",
            getattr(error, "hint", "") or "correct the model's code; palan --debug shows the whole traceback",
            log="".join(traceback.format_exception(error)),
        ) from error


def _last_user_line(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((_PALAN, "<frozen"))]
    own = [f for f in frames if "site-packages" not in f.filename and f"{Path('lib')}/python" not in f.filename] or frames
    if not own:
        return ""
    last = own[-1]
    code = linecache.getline(last.filename, last.lineno or 0).strip()
    return f"{Path(last.filename).name}:{last.lineno}{f': {code}' if code else ''}"


def plain(value: Any, what: str = "the plan") -> Any:
    """Return the value as plain dicts, lists, text and numbers (numpy converted, keys as text), copied.

    Raises:
        ModelFailed: something in it is neither plain nor from numpy.
    """
    try:
        return msgspec.to_builtins(value, str_keys=True, enc_hook=_plain_leaf)
    except (TypeError, NotImplementedError, ValueError) as error:
        raise ModelFailed(f"{what} is not plain: {error}", "return dicts, lists, text, numbers and booleans") from error


def _plain_leaf(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | pl.Series):
        return value.tolist() if isinstance(value, np.ndarray) else value.to_list()
    if isinstance(value, pl.DataFrame):
        return value.to_dict(as_series=False)
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, ModuleType) or callable(value):
        raise NotImplementedError(f"it holds a {type(value).__name__}")
    raise NotImplementedError(f"it holds a value of type {type(value).__module__}.{type(value).__qualname__}")


def violations(found: Iterable[Any] | bool | None, model: Any) -> list[Violation]:
    """Return what a `check` yielded as violations; None and True mean that it found nothing.

    Raises:
        ModelFailed: it yielded something that is not a Violation.
    """
    if found is None or found is True:
        return []
    out = []
    for item in [found] if isinstance(found, Violation | bool) else found:
        if not isinstance(item, Violation):
            raise ModelFailed(f"{name_of(model)}.check yielded a {type(item).__name__}", "yield palan.Violation(rule, where, amount, message)")
        out.append(Violation(str(item.rule), str(item.where), float(item.amount), str(item.message)))
    return out


def frame_of(answer: Any, rows: int, model: Any, verb: str) -> pl.DataFrame:
    """Return a batch's answers as columns: one array becomes `output`, (n, k) becomes output_0 ..., a frame stays.

    Raises:
        ModelFailed: not one answer for each row.
    """
    with guarded(model, verb):
        if isinstance(answer, pl.LazyFrame):
            answer = answer.collect()
        if isinstance(answer, pl.DataFrame):
            frame = answer
        elif isinstance(answer, Mapping):
            frame = pl.DataFrame({str(name): _column(values) for name, values in answer.items()})
        elif isinstance(answer, pl.Series):
            frame = answer.rename("output").to_frame()
        elif hasattr(answer, "to_dict") and hasattr(answer, "columns"):  # a pandas frame, without importing pandas
            frame = pl.DataFrame({str(name): _column(np.asarray(answer[name])) for name in answer.columns})
        elif isinstance(answer, list | tuple) and answer and isinstance(answer[0], Mapping):
            frame = pl.DataFrame(answer)
        elif answer is None:
            raise ModelFailed(f"{name_of(model)}.{verb} returned None", "return one answer for each row: an array or a DataFrame")
        else:
            frame = _frame_of_array(answer)
        for name, dtype in frame.schema.items():
            if dtype in (pl.Object, pl.Int128):
                what = "Python objects" if dtype == pl.Object else "numbers of more than 64 bits"
                raise ModelFailed(f"{name_of(model)}.{verb} returned {what} in {name!r}", PLAIN_COLUMNS)
    if frame.height != rows:
        raise ModelFailed(f"{name_of(model)}.{verb} returned {frame.height} answers for {rows} rows", "return one answer for each row, in their order")
    return frame


PLAIN_COLUMNS = "return numbers, texts, booleans or times, one for each row"


def _frame_of_array(answer: Any) -> pl.DataFrame:
    if isinstance(answer, list | tuple):
        nested = bool(answer) and isinstance(answer[0], Sequence | np.ndarray) and not isinstance(answer[0], str)
        if not nested:
            return pl.DataFrame({"output": pl.Series("output", list(answer))})
        answer = np.asarray(answer)
    array = np.asanyarray(answer)
    if array.ndim == 0:
        return pl.DataFrame({"output": _column(array.reshape(1))})
    if array.ndim == 1:
        return pl.DataFrame({"output": _column(array)})
    if array.ndim == 2:
        return pl.DataFrame({f"output_{i}": _column(array[:, i]) for i in range(array.shape[1])})
    raise ModelFailed(f"an answer of {array.ndim} dimensions", "return one answer for each row: (n,) or (n, k)")


def _column(values: Any) -> Any:
    """Return the values of a column as Polars can read them; what is masked is missing.

    Raises:
        ModelFailed: Polars would show the bytes of such an array as if they were values.
    """
    if not isinstance(values, np.ndarray):
        return values
    if values.dtype.kind in "cV":
        raise ModelFailed(f"an answer of dtype {values.dtype}", PLAIN_COLUMNS)
    if np.ma.isMaskedArray(values) or values.dtype == object:
        return values.tolist()
    return values.astype(float) if values.dtype == np.longdouble else values


def outcomes_of(outcomes: Any) -> Any:
    """Return outcomes as the array that `score` is given: nulls become NaN, text stays text."""
    if isinstance(outcomes, pl.Series):
        return outcomes.to_numpy()
    return outcomes if isinstance(outcomes, Mapping) else np.asarray(outcomes)


class UserModel:
    """One model of the user's, ready to be called: the verbs that are the same for every kind.

    `verbs` names the optional ones that it has: fit, check, score, table, evaluate.
    """

    kind = ""

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def name(self) -> str:
        return name_of(self.model)

    @property
    def verbs(self) -> list[str]:
        extra = [verb for verb in ("table", "evaluate") if hasattr(self, verb)]
        return [verb for verb in ("fit", "check", "score", "objective", "propensity") if callable(getattr(self.model, verb, None))] + extra

    @property
    def params(self) -> dict[str, Any]:
        """The parameters with the values in use, as plain values."""
        own = bare(self.model)
        if isinstance(own, functools.partial):
            names = {**parameters(own.func), **own.keywords}
        else:
            names = parameters(type(self.model) if own is None else own)
        found = {name: getattr(self.model, name, default) for name, default in names.items()}
        return {name: _plain_or_text(value) for name, value in found.items()}

    def call(self, verb: str, *args: Any) -> Any:
        with guarded(self.model, verb):
            return getattr(self.model, verb)(*args)

    def fit(self, data: Any) -> None:
        """Let the model learn from the data.

        Raises:
            PalanError: it has no `fit`.
            ModelFailed: its code raised.
        """
        if not callable(getattr(self.model, "fit", None)):
            raise PalanError(f"{self.name} has nothing to learn: it has no fit()", "give it fit(self, data), or build it without data")
        self.call("fit", data)

    def check(self, input: Any, output: Any) -> list[Violation]:
        """Return what must hold and does not, by the model's own `check`; none when it has none."""
        if not callable(getattr(self.model, "check", None)):
            return []
        with guarded(self.model, "check"):
            return violations(self.model.check(input, output), self.model)

    def score(self, outputs: Any, outcomes: Any) -> list[float]:
        """Return the loss of each decision (one number for an instance) now that the outcomes are known.

        Raises:
            PalanError: the model has no `score`.
            ModelFailed: its code raised, or gave another number of losses than there are decisions.
        """
        if not callable(getattr(self.model, "score", None)):
            raise PalanError(f"{self.name} has no score(), so nothing can tell how good its decisions were", "give it score(self, decisions, outcomes)")
        told = outcomes_of(outcomes) if isinstance(outputs, pl.DataFrame) else outcomes
        with guarded(self.model, "score"):
            losses = np.atleast_1d(np.asarray(self.model.score(outputs, told), dtype=float))
        expected = outputs.height if isinstance(outputs, pl.DataFrame) else 1
        if losses.shape != (expected,):
            raise ModelFailed(f"{self.name}.score returned {losses.size} losses for {expected} decisions", "return the loss of each decision, not their mean")
        return [float(loss) for loss in losses]

    def state(self) -> dict[str, bytes]:
        """Return what was learnt as named, data-only files."""
        return state.dump(self.model)

    def restore(self, files: Mapping[str, bytes]) -> None:
        """Set what was learnt from the files of `state()`."""
        self.model = state.load(self.model, files)


def _plain_or_text(value: Any) -> Any:
    try:
        return plain(value)
    except ModelFailed:
        return str(value)


def bare(model: Any) -> Callable[..., Any] | None:
    """Return the model itself where it is a plain function, else None."""
    return model if isinstance(model, FunctionType | functools.partial) else None
