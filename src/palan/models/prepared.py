"""Features of a model, made of its rows before it sees them: in learning, in a batch and for one row alike."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar

import msgspec
import numpy as np
import polars as pl

from palan.core import digest_of
from palan.data.features import (
    Features,
    Opaque,
    features,
    fitted,
    functions_of,
    inputs_of,
    pasts_of,
    returns,
    steps_of,
    transformed,
)
from palan.data.inputs import DTYPES
from palan.data.past import Past, kind_of
from palan.data.sql import Sql
from palan.errors import PalanError, nearest
from palan.models import state
from palan.models.user import guarded

T = TypeVar("T")

SHOWN = 20
"""Differences that are told with their row; all are counted."""

ALONE = 50
"""Rows that opaque steps are given one by one to be compared: each may take milliseconds."""


class Prepared:
    """The features of one file, put together over the columns that a caller sends.

    Args:
        file: the file's name, for messages.
        source: the user's Python file: functions that return a `pl.Expr`, steps, and perhaps `fit(frame)`, which returns
            named constants; or the expressions of a file of SQL.
        columns: the type of each column that a caller sends, as a contract names it.
        tables: the same of the columns of each table that may be looked into.

    Raises:
        PalanError: the file has no such function, or they do not fit together.
        ModelFailed: one of them raised.
    """

    FILE = "features.json"
    """What a model learnt has its fitted constants under this name."""

    STEPS = "features/"
    """And what a step learnt under names that begin so."""

    def __init__(self, file: str, source: ModuleType | Mapping[str, Sql], columns: Mapping[str, str], tables: Mapping[str, Mapping[str, str]]) -> None:
        self.file = file
        self.module = module = source if isinstance(source, ModuleType) else ModuleType(file)
        self.functions: Mapping[str, Any] = functions_of(module) if isinstance(source, ModuleType) else source
        self.steps = {name: (inputs_of(name, function), function) for name, function in steps_of(module).items()}
        self.pasts: list[dict[str, Any]] = []
        for name, past in self._run(lambda: pasts_of(module)).items():
            self.pasts.append({"name": name, "type": _looked_up(name, past, columns, tables), "past": msgspec.to_builtins(past)})
        self.schema = {name: DTYPES[kind] for name, kind in columns.items()} | {each["name"]: DTYPES[each["type"]] for each in self.pasts}
        if not self.functions and not self.pasts and not self.steps:
            raise PalanError(f"{file} has no feature functions", "such as: def late(delay: pl.Expr) -> pl.Expr: return delay > 15" if isinstance(source, ModuleType) else "such as: delay > 15 AS late")
        self.fit = getattr(module, "fit", None)
        self.fits = {name for name, (_, function) in self.steps.items() if not _is_series(module, function)}
        for name, function in self.functions.items():
            if made := [each for each in ([] if isinstance(function, Sql) else inputs_of(name, function)) if each in self.steps]:
                raise PalanError(f'the feature "{name}" reads "{made[0]}", which a step makes', "steps come after all features: let the step do it, or the model")
        self.made: Features | None = None
        if not self.learns:
            self._make({}, self._plain())

    @property
    def learns(self) -> bool:
        """Tell whether there is anything to be fitted: constants, or steps."""
        return self.fit is not None or bool(self.fits)

    @property
    def names(self) -> list[str]:
        """The columns that an object in scikit-learn's style is given: what is looked up, the features, and what steps make."""
        known = self._ready()
        return [*(each["name"] for each in self.pasts), *self.functions, *(output for step in known.opaque.values() for output in step.outputs)]

    def learn(self, data: pl.DataFrame) -> pl.DataFrame:
        """Fit the constants, where the file has fit(), and the steps; return the rows with their features."""
        if self.learns:
            constants = {}
            if self.fit is not None:
                with guarded(self.module, "fit"):
                    constants = fitted(self.fit, data)
            self._make(constants, {})
            rows = self._ready().batch(self._typed(data)) if self.steps else data
            made = self._plain()
            for name in self.fits:
                made[name] = self._fitted(name, rows)
            self._make(constants, made)
        return self.rows(data)

    def _fitted(self, name: str, rows: pl.DataFrame) -> Opaque:
        """Let a step learn from rows with their features."""
        inputs, function = self.steps[name]
        missing = [each for each in inputs if each not in rows.columns]
        if missing:
            raise PalanError(f'the step "{name}" reads "{missing[0]}", which is no column or feature', nearest(missing[0], rows.columns) or f"known: {', '.join(rows.columns)}")
        with guarded(self.module, name):
            step = function(*inputs)  # the names, for a step that says which column it treats how
            if not (hasattr(step, "fit") and hasattr(step, "transform")):
                raise PalanError(f'"{name}" made {type(step).__name__}, which has no fit and transform', "return a scikit-learn transformer or pipeline")
            step.fit(rows.select(inputs))
            made = transformed(step, rows.select(inputs).head(2))
        return Opaque(inputs, step, _digest(step), _outputs(name, step, made.width), (inspect.getdoc(function) or "").partition("\n")[0])

    def _plain(self) -> dict[str, Opaque]:
        """Return the steps that have nothing to learn: functions of series, each of which makes one column."""
        return {name: Opaque(inputs, _of_frame(function), digest_of(inspect.getsource(function)), (name,), (inspect.getdoc(function) or "").partition("\n")[0]) for name, (inputs, function) in self.steps.items() if name not in self.fits}

    def rows(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the rows with a column for each feature: one row by the compiled function, more of them by Polars."""
        made = self._ready()
        rows = self._typed(rows)
        if rows.height != 1:
            return self._run(lambda: made.batch(rows))
        found = made.scalar.row(rows.row(0, named=True))
        one = rows.hstack([pl.Series(name, [found[name]], dtype=dtype) for name, dtype in made.scalar.dtypes.items()])
        return self._run(lambda: pl.concat([one, *(step.apply(one) for step in made.opaque.values())], how="horizontal")) if made.opaque else one

    def parity(self, rows: pl.DataFrame) -> dict[str, Any]:
        """Compute all features both ways; return how many values there are, how many differ, and the first of these.

        Floats are the same to the last digit but one, those of opaque steps to nine digits. A feature that looks at other
        rows than its own (a mean of the column) differs, because one row that is asked has no others.
        """
        made = self._ready()
        rows = self._typed(rows)
        batch = self._run(lambda: made.batch(rows))
        shown: list[dict[str, Any]] = []
        values = different = 0

        def compare(place: int, name: str, many: Any, one: Any, alike: Callable[[Any, Any], bool]) -> None:
            nonlocal values, different
            values += 1
            if not alike(many, one):
                different += 1
                if len(shown) < SHOWN:
                    shown.append({"feature": name, "row": place, "batch": _told(many), "one": _told(one)})

        expected = batch.select(list(made.scalar.dtypes))
        for place, (row, many) in enumerate(zip(rows.iter_rows(named=True), expected.iter_rows(named=True), strict=True)):
            one = made.scalar.row(row)
            for name, value in many.items():
                compare(place, name, value, one[name], _alike)
        outputs = [output for step in made.opaque.values() for output in step.outputs]
        for place in range(min(rows.height, ALONE) if outputs else 0):
            alone = self.rows(rows[place]).row(0, named=True)
            for name in outputs:
                compare(place, name, batch[name][place], alone[name], _about)
        return {"values": values, "different": different, "shown": shown}

    def told(self, rows: pl.DataFrame | None = None, timer: Callable[[], float] | None = None) -> dict[str, Any]:
        """Return each feature's lineage, the constants, and what is slow: plain values for the version's manifest.

        What slow features cost is measured on the first of the rows by the timer (seconds), where both are given.
        """
        made = self._ready()
        costs = None
        if timer is not None and rows is not None and rows.height and (made.scalar.refused or made.opaque):
            row, clock = self._typed(rows).row(0, named=True), timer
            costs = self._run(lambda: made.costs(row, clock, repeat=5))
        lineage = {name: {**msgspec.to_builtins(each), "about": each.about.partition("\n")[0]} for name, each in made.lineage.items()}
        return {"made": lineage, "pasts": self.pasts, "constants": dict(made.constants), "slow": made.told(costs)}

    def state(self) -> dict[str, bytes]:
        """Return what was fitted, as files without code: the constants, and each step."""
        made = self._ready()
        files = {self.FILE: msgspec.json.format(msgspec.json.encode(made.constants, order="sorted"))} if self.fit is not None else {}
        return files | {f"{self.STEPS}{name}/{file}": data for name in self.fits for file, data in _kept(name, made.opaque[name]).items()}

    def restore(self, files: Mapping[str, bytes]) -> None:
        """Set what was fitted from the files of `state()`; others are left alone."""
        constants = msgspec.json.decode(files[self.FILE]) if self.FILE in files else {}
        made = self._plain()
        for name in self.fits:
            start = f"{self.STEPS}{name}/"
            own = {file.removeprefix(start): data for file, data in files.items() if file.startswith(start)}
            if not own:
                return  # it is opened to learn
            kept = state.load(_Kept(), own)
            inputs, function = self.steps[name]
            made[name] = Opaque(inputs, kept.step, _digest(kept.step), tuple(kept.outputs), (inspect.getdoc(function) or "").partition("\n")[0])
        self._make(constants, made)

    def _ready(self) -> Features:
        if self.made is None:
            raise PalanError(f"{self.file} has something to fit, and it was not fitted yet", "palan build")
        return self.made

    def _make(self, constants: Mapping[str, Any], steps: Mapping[str, Opaque]) -> None:
        self.made = self._run(lambda: features(self.functions, self.schema, constants=constants, opaque=steps))

    def _run(self, work: Callable[[], T]) -> T:
        """Run what calls the user's functions: what they raise is theirs."""
        try:
            return work()
        except PalanError:
            raise
        except Exception:
            with guarded(self.module, "features"):
                raise

    def _typed(self, rows: pl.DataFrame) -> pl.DataFrame:
        needed = dict.fromkeys([*self._ready().scalar.columns, *(each for step in self._ready().opaque.values() for each in step.inputs if each in self.schema)])
        missing = [name for name in needed if name not in rows.columns]
        if missing:
            raise PalanError(f'the rows have no column "{missing[0]}", which the features of {self.file} read', "send it, or build the model again")
        odd = {name: self.schema[name] for name, dtype in rows.schema.items() if name in self.schema and dtype != self.schema[name]}
        return rows.cast(odd) if odd else rows  # type: ignore[arg-type]


class _Kept:
    """What is kept of a fitted step."""

    step: Any = None
    outputs: Any = ()


def _kept(name: str, step: Opaque) -> dict[str, bytes]:
    holder = _Kept()
    holder.step, holder.outputs = step.step, list(step.outputs)
    try:
        return state.dump(holder)
    except PalanError as error:
        raise PalanError(f'the step "{name}": {error.what}', error.hint) from None


def _digest(step: Any) -> str:
    """Return which step this is, fitted: the digest of all that it holds. The file that it is kept as has the day in it."""
    return digest_of(_held(step))


def _held(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), _held(value.tolist()) if value.dtype == object else value.tobytes().hex()]
    if isinstance(value, Mapping):
        return [[_held(key), _held(each)] for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [_held(each) for each in value]
    if hasattr(value, "__dict__") and not callable(value):
        return [type(value).__qualname__, _held(vars(value))]
    return getattr(value, "__qualname__", None) or repr(value)


def _is_series(module: ModuleType, function: Callable[..., Any]) -> bool:
    return returns(module, function) is pl.Series


def _of_frame(function: Callable[..., Any]) -> Callable[[pl.DataFrame], Any]:
    return lambda frame: function(*frame.get_columns())


def _outputs(name: str, step: Any, width: int) -> tuple[str, ...]:
    """Name what a step makes after the step; of several columns each by the step's own name for it, where it has one."""
    if width == 1:
        return (name,)
    try:
        own = [re.sub(r"\W+", "_", str(each)) for each in step.get_feature_names_out()]
    except (AttributeError, ValueError, TypeError):
        own = []
    return tuple(f"{name}_{each}" for each in (own if len(set(own)) == width else range(width)))


def _looked_up(name: str, past: Past, columns: Mapping[str, str], tables: Mapping[str, Mapping[str, str]]) -> str:
    """Return the type of a column that is looked up.

    Raises:
        PalanError: it cannot be looked up like this: the table, a column of it, or a key that the caller does not send.
    """
    table = tables.get(past.table)
    if table is None:
        raise PalanError(f'"{name}" looks into "{past.table}", which is no data with columns', nearest(past.table, tables) or f"[data.{past.table}.columns]")
    for column in dict.fromkeys([*past.by, past.time, past.column]):
        if column not in table:
            raise PalanError(f'"{name}" looks up "{column}" in {past.table}, which has no such column', nearest(column, table) or f"it has {', '.join(table)}")
    for key in past.by:
        if columns.get(key) != table[key]:
            told = f"{columns[key]} there and {table[key]} in {past.table}" if key in columns else "not sent by callers"
            raise PalanError(f'"{name}" is looked up by "{key}", which is {told}', "name inputs that both have")
    if table[past.time] not in ("time", "date"):
        raise PalanError(f'"{name}" looks up by the time "{past.time}" of {past.table}, which is a {table[past.time]}', "name the column that says when a row became known")
    try:
        return kind_of(past, table[past.column])
    except ValueError as error:
        raise PalanError(f'"{name}": {error}', "how: last, mean, sum, min, max or count") from None


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (one != one and other != other) or abs(one - other) <= math.ulp(max(abs(one), abs(other)))
    return type(one) is type(other) and bool(one == other)


def _about(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12) or (one != one and other != other)
    return bool(one == other)


def _told(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
