"""Features of a model, made of its rows before it sees them: in learning, in a batch and for one row alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar

import msgspec
import polars as pl

from palan.data.features import Features, features, fitted, functions_of, pasts_of
from palan.data.inputs import DTYPES
from palan.data.past import Past, kind_of
from palan.errors import PalanError, nearest
from palan.models.user import guarded

T = TypeVar("T")

SHOWN = 20
"""Differences that are told with their row; all are counted."""


class Prepared:
    """The feature functions of one file, put together over the columns that a caller sends.

    Args:
        module: the user's file: functions that return a `pl.Expr`, and perhaps `fit(frame)`, which returns named constants.
        columns: the type of each column that a caller sends, as a contract names it.
        tables: the same of the columns of each table that may be looked into.

    Raises:
        PalanError: the file has no such function, or they do not fit together.
        ModelFailed: one of them raised.
    """

    FILE = "features.json"
    """What a model learnt has its fitted constants under this name."""

    def __init__(self, module: ModuleType, columns: Mapping[str, str], tables: Mapping[str, Mapping[str, str]]) -> None:
        self.module = module
        self.functions = functions_of(module)
        self.pasts: list[dict[str, Any]] = []
        for name, past in self._run(lambda: pasts_of(module)).items():
            self.pasts.append({"name": name, "type": _looked_up(name, past, columns, tables), "past": msgspec.to_builtins(past)})
        self.schema = {name: DTYPES[kind] for name, kind in columns.items()} | {each["name"]: DTYPES[each["type"]] for each in self.pasts}
        if not self.functions and not self.pasts:
            raise PalanError(f"{module.__name__}.py has no feature functions", "such as: def late(delay: pl.Expr) -> pl.Expr: return delay > 15")
        self.fit = getattr(module, "fit", None)
        self.made: Features | None = None
        if self.fit is None:
            self._make({})

    def learn(self, data: pl.DataFrame) -> pl.DataFrame:
        """Fit the constants, where the file has fit(); return the rows with their features."""
        if self.fit is not None:
            with guarded(self.module, "fit"):
                constants = fitted(self.fit, data)
            self._make(constants)
        return self.rows(data)

    def rows(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the rows with a column for each feature: one row by the compiled function, more of them by Polars."""
        made = self._ready()
        rows = self._typed(rows)
        if rows.height != 1:
            return made.batch(rows)
        found = made.row(rows.row(0, named=True))
        return rows.hstack([pl.Series(name, [found[name]], dtype=dtype) for name, dtype in made.scalar.dtypes.items()])

    def parity(self, rows: pl.DataFrame) -> dict[str, Any]:
        """Compute all features both ways; return how many values there are, how many differ, and the first of these.

        Floats are the same to the last digit but one. A feature that looks at other rows than its own (a mean of the
        column) differs, because one row that is asked has no others.
        """
        made = self._ready()
        rows = self._typed(rows)
        batch = made.batch(rows).select(list(made.scalar.dtypes))
        shown: list[dict[str, Any]] = []
        different = 0
        for place, (row, many) in enumerate(zip(rows.iter_rows(named=True), batch.iter_rows(named=True), strict=True)):
            one = made.row(row)
            for name, value in many.items():
                if not _alike(value, one[name]):
                    different += 1
                    if len(shown) < SHOWN:
                        shown.append({"feature": name, "row": place, "batch": _told(value), "one": _told(one[name])})
        return {"values": batch.height * batch.width, "different": different, "shown": shown}

    def told(self) -> dict[str, Any]:
        """Return each feature's lineage, the constants, and what is slow: plain values for the version's manifest."""
        made = self._ready()
        lineage = {name: {**msgspec.to_builtins(each), "about": each.about.partition("\n")[0]} for name, each in made.lineage.items()}
        return {"made": lineage, "pasts": self.pasts, "constants": dict(made.constants), "slow": made.told()}

    def state(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self._ready().constants, order="sorted"))

    def restore(self, state: bytes) -> None:
        self._make(msgspec.json.decode(state))

    def _ready(self) -> Features:
        if self.made is None:
            raise PalanError(f"{self.module.__name__}.py has fit(), and it was not called yet", "palan build")
        return self.made

    def _make(self, constants: Mapping[str, Any]) -> None:
        self.made = self._run(lambda: features(self.functions, self.schema, constants=constants))

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
        missing = [name for name in self._ready().scalar.columns if name not in rows.columns]
        if missing:
            raise PalanError(f'the rows have no column "{missing[0]}", which the features of {self.module.__name__}.py read', "send it, or build the model again")
        odd = {name: self.schema[name] for name, dtype in rows.schema.items() if name in self.schema and dtype != self.schema[name]}
        return rows.cast(odd) if odd else rows  # type: ignore[arg-type]


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


def _told(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
