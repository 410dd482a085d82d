"""What a person does with rows in quarantine: pick some, change cells by expressions, know them when they are told again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from palan.core import Field
from palan.data.contract import Contract
from palan.data.reading import LINE, REASONS, first_line
from palan.data.verdict import as_text, asks_others, delivered_as, typed
from palan.errors import Invalid, PalanError, nearest

CAME = "came"
"""Under this name an expression finds the cells as they came, whatever they are: `came.temp` is text."""

class Pick(msgspec.Struct, frozen=True):
    """Which rows of a quarantine: all of these must hold. `where` is SQL over a row, `rule` what it breaks."""

    where: str = ""
    rule: str = ""
    lines: tuple[int, ...] = ()


def one_row(text: str) -> pl.Expr:
    """Return the expression that a piece of SQL over one row is.

    Raises:
        PalanError: it cannot be read, or it asks other rows, so that its answer would depend on how many are looked at.
    """
    try:
        expression = pl.sql_expr(text)
    except pl.exceptions.PolarsError as problem:
        raise PalanError(f'"{text}" cannot be read: {first_line(problem)}', 'write SQL over one row, such as "temp" / 10; texts stand in single quotes') from problem
    if asks_others(expression):
        raise PalanError(f'"{text}" is not about one row', "an aggregate or a window answers by other rows; write what can be told of one")
    return expression


def setting(text: str) -> tuple[str, str]:
    """Read `column = expression`.

    Raises:
        PalanError: there is no such column or expression in it.
    """
    name, sign, expression = text.partition("=")
    if not sign or not name.strip() or not expression.strip():
        raise PalanError(f'"{text}" is no column = expression', "--set 'temp = \"temp\" / 10'")
    return name.strip().strip('"'), expression.strip()


def picked(rows: pl.DataFrame, pick: Pick, contract: Contract) -> pl.DataFrame:
    """Return those of the quarantined rows that are meant. A question that nothing answers, for a value is missing, does not pick a row.

    Raises:
        PalanError: `where` cannot be asked of these rows.
    """
    wanted = pl.lit(True)
    if pick.lines:
        wanted &= pl.col(LINE).is_in(list(pick.lines))
    if pick.rule:
        wanted &= pl.col(REASONS).list.contains(pick.rule)
    rows = rows.filter(wanted)
    if not pick.where or not rows.height:
        return rows
    expression = one_row(pick.where)
    answer = _compute(_seen(rows, contract, [expression]), expression, pick.where, contract.name)
    if answer.dtype not in (pl.Boolean, pl.Null):
        raise PalanError(f'"{pick.where}" does not answer true or false', 'write a comparison, such as "temp > 500"')
    return rows.filter(answer.fill_null(False)) if answer.dtype == pl.Boolean else rows.clear()


def changed(rows: pl.DataFrame, sets: Sequence[tuple[str, str]], contract: Contract) -> pl.DataFrame:
    """Return the rows, to be judged, with these cells put right; each expression reads the row as it came.

    Raises:
        Invalid: a column that the rows do not have.
        PalanError: an expression that cannot be computed from these rows.
    """
    known = [name for name in dict.fromkeys([*contract.names, *rows.columns]) if name not in (LINE, REASONS)]
    expressions = [one_row(text) for _, text in sets]
    # an integer column would round 39 °C before it becomes °F: the expression sees floats
    view, columns = _seen(rows, contract, expressions).with_columns(pl.col(pl.Int64).exclude(LINE).cast(pl.Float64)), []
    for (name, text), expression in zip(sets, expressions, strict=True):
        if name not in known:
            raise Invalid(f'data "{contract.name}" has no column "{name}"', nearest(name, known) or f"one of {', '.join(known)}", field="set", value=name)
        columns.append(_compute(view, expression, text, contract.name).alias(name))
    return delivered_as(rows).with_columns(columns)


def _seen(rows: pl.DataFrame, contract: Contract, expressions: Sequence[pl.Expr]) -> pl.DataFrame:
    """Return quarantined rows as these expressions see them: values in their types where they can be read, other columns as text."""
    asked = {name for each in expressions for name in each.meta.root_names()}
    came = [name for name in rows.columns if name not in (LINE, REASONS)]
    read = typed(rows.select(name for name in came if name in asked), contract)
    raw = [rows.select(pl.struct(came).alias(CAME)).to_series()] if CAME in asked and CAME not in came else []
    missing = [pl.lit(None).alias(name) for name in contract.names if name not in came]
    return rows.drop(REASONS).with_columns(*read.iter_columns(), *missing, *raw)


def _compute(view: pl.DataFrame, expression: pl.Expr, text: str, data: str) -> pl.Series:
    try:
        value = view.select(expression.alias("palan_value")).to_series()
    except pl.exceptions.ColumnNotFoundError as problem:
        names = [name for name in view.columns if name != CAME]
        unknown = next((name for name in expression.meta.root_names() if name not in view.columns), "")
        raise PalanError(f'"{text}" names "{unknown}", which is no column of "{data}"', nearest(unknown, names) or f"one of {', '.join(names)}") from problem
    except pl.exceptions.PolarsError as problem:
        raise PalanError(f'"{text}" cannot be computed: {first_line(problem)}', "came.NAME is a cell as it came, as text; NAME is its value") from problem
    return value.new_from_index(0, view.height) if value.len() == 1 and view.height != 1 else value


def types_alone(contract: Contract) -> Contract:
    """Return a contract of nothing but what a column can hold, and of the key: what nobody can wave through."""
    columns = tuple(Field(field.name, field.type, field.nullable) for field in contract.columns)
    return Contract(contract.name, columns, contract.key, contract.time, source=contract.source, transform=contract.transform)


# --- rows that a person decided about, told again ------------------------------------------------------------------


class Told:
    """Leaves out of a delivery the rows that somebody decided about: each as often as it was decided about.

    Args:
        contract: how values are read: the same value may be written in another way.
        decided: frames of such rows, as quarantine keeps them.
    """

    def __init__(self, contract: Contract, decided: Iterable[pl.DataFrame]) -> None:
        self._contract = contract
        frames = [prints(rows, contract) for rows in decided]
        self._prints = np.concatenate(frames) if frames else np.zeros(0, _PRINT)
        self._known, self._counts = np.unique(self._prints, return_counts=True)
        self._met = np.zeros(len(self._known), np.int64)

    def _others(self, batch: pl.DataFrame) -> pl.DataFrame:
        """Return the rows of the next batch, as they came, that nobody decided about."""
        if not len(self._known) or not batch.height:
            return batch
        found = prints(batch, self._contract)
        place = np.minimum(np.searchsorted(self._known, found), len(self._known) - 1)
        rows = np.flatnonzero(self._known[place] == found)
        if not len(rows):
            return batch
        place = place[rows]
        copy = pl.DataFrame({"place": place}).select(pl.int_range(pl.len()).over("place")).to_series().to_numpy()
        again = self._met[place] + copy < self._counts[place]
        np.add.at(self._met, place[again], 1)
        keep = np.ones(batch.height, np.bool_)
        keep[rows[again]] = False
        return batch.filter(pl.Series(keep))

    def over(self, batches: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Yield what is left of a delivery that is read, again, from its beginning."""
        self._met[:] = 0
        for batch in batches:
            yield self._others(batch)

    @property
    def met(self) -> int:
        """How many rows were left out."""
        return int(self._met.sum())

    def missed(self) -> NDArray[np.bool_]:
        """Tell of each row that was decided about, in their order, whether it was not told again."""
        place = np.searchsorted(self._known, self._prints)
        copy = pl.DataFrame({"place": place}).select(pl.int_range(pl.len()).over("place")).to_series().to_numpy() if len(place) else np.zeros(0, np.int64)
        return np.asarray(copy >= self._met[place])


_PRINT = np.dtype([("first", np.uint64), ("second", np.uint64)])


def prints(rows: pl.DataFrame, contract: Contract) -> NDArray[Any]:
    """Return 128 bits of each row, of what it says: the values where they can be read, else the text. A missing column says nothing."""
    text = as_text(rows.select(name for name in rows.columns if not name.startswith("palan_")))
    values = {column.name: column for column in typed(rows, contract).iter_columns()}
    found = np.zeros(rows.height, _PRINT)
    for which, seed in (("first", 1), ("second", 2)):
        for column in text.iter_columns():
            value = values.get(column.name)
            said = column.hash(seed).to_numpy() if value is None else np.where(value.is_null().to_numpy(), column.hash(seed).to_numpy(), value.hash(seed).to_numpy())
            # each by its name, so that a column without a value changes nothing, wherever it stands
            by_name = np.uint64(pl.Series([column.name]).hash(seed)[0] | 1)
            found[which] += np.where(column.is_null().to_numpy(), np.uint64(0), said * by_name)
    return found
