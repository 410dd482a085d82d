"""A batch in, a verdict out: rows that keep the contract, rows that do not and why, and what holds of the whole table.

Row rules and table rules are different things. A row rule sends the rows that break it to quarantine; a table rule
(how many rows, which columns) is news about the delivery and never touches a row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from palan.core import Field, FieldType, counted
from palan.data.bands import Bands, TableRule
from palan.data.contract import OPEN, Contract, Severity, band_text, row_rules
from palan.data.reading import BROKEN, LINE, REASONS, first_line
from palan.errors import PalanError, nearest

_RAW = "palan_raw:"
_TIME_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M%#z",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d",
)


class RowRule(msgspec.Struct, frozen=True):
    """A rule over single rows, and how many rows broke it. `example` is the first offending value, as it came.

    Rows that break a rule of severity `warn` are taken in; of a delivery with one that breaks a `stop`, nothing is.
    """

    rule: str
    column: str
    count: int
    example: str = ""
    severity: Severity = "quarantine"


class Verdict(msgspec.Struct, frozen=True):
    """What was delivered. Of the good rows, `unchanged` came in the same file before and say nothing new; `corrections`
    have a key that was already known and replace the older row."""

    data: str
    rows: int
    good: int
    bad: int
    corrections: int
    broken: tuple[RowRule, ...]
    table: tuple[TableRule, ...]
    unchanged: int = 0

    @property
    def warnings(self) -> list[str]:
        told = [f"{rule.count} x {rule.rule}, taken in" for rule in self.broken if rule.severity == "warn"]
        return told + [rule.text for rule in self.table if not rule.holds and rule.severity == "warn"]

    @property
    def stops(self) -> list[str]:
        """Why nothing of the delivery may be taken in."""
        told = [f"{rule.count} x {rule.rule}{f' ({rule.example})' if rule.example else ''}" for rule in self.broken if rule.severity == "stop"]
        return told + [rule.text for rule in self.table if not rule.holds and rule.severity == "stop"]

    @property
    def text(self) -> str:
        """One line for a person."""
        parts = [f"{self.rows} rows: {self.good} good, {self.bad} in quarantine"]
        if self.unchanged:
            parts[0] += f", {self.unchanged} as before"
        if self.corrections:
            parts[0] += f", {counted(self.corrections, 'correction')}"
        parts += [f"{rule.count} x {rule.rule}" for rule in self.broken if rule.severity == "quarantine"]
        return "; ".join(parts + [f"stop: {each}" for each in self.stops] + self.warnings)

    def to_dict(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "rows": self.rows,
            "good": self.good,
            "bad": self.bad,
            "corrections": self.corrections,
            "unchanged": self.unchanged,
            "broken": [
                {"rule": rule.rule, "column": rule.column, "count": rule.count, "example": rule.example, "severity": rule.severity}
                for rule in self.broken
            ],
            "table": [{"rule": rule.rule, "holds": rule.holds, "text": rule.text, "severity": rule.severity} for rule in self.table],
        }


class Checked(msgspec.Struct, frozen=True):
    """`good` has the rows to take in: the contract's columns in their types, then any others. `bad` has the values as they came, `palan_line` and `palan_reasons`."""

    good: pl.DataFrame
    bad: pl.DataFrame
    verdict: Verdict


class _Rule(msgspec.Struct, frozen=True):
    text: str
    column: str
    broken: pl.Expr
    severity: Severity = "quarantine"


Known = Mapping[str, pl.Series]
"""The values of columns of other tables, as `TABLE.COLUMN`, that a column of this one may have."""


class Judge:
    """Judges a delivery batch by batch, in memory that grows by a dozen bytes a row, and only where there is a key.

    A value that cannot be read as its column's type breaks its row; nothing becomes null silently. A check that gives
    null (because a value is missing) does not break a row, as in SQL. Rows of one key that are equal in every column
    keep the first; rows of one key that differ are all broken, because nothing tells which is right. Whether a key comes
    twice is known at the end: `repeated` names the lines that have to be looked at again, `settle` judges them. Where the
    keys could be read beforehand (`twice`), nothing has to be remembered of the others, or looked at again.

    Args:
        contract: what must hold.
        before: what the same file delivered before: good rows that only repeat it say nothing new, and are left out.
        open_columns: a later batch may have columns that the first does not.
        twice: what `keys_twice` found in all keys of the delivery.
        known: what the columns that others refer to hold.
        now: when the delivery came, to tell how new it is; None of one whose age says nothing.

    Raises:
        PalanError: the contract has no columns, a check that is not a yes/no question about one row, a pattern that
            cannot be read, or a reference to a column that is not known.
    """

    def __init__(
        self,
        contract: Contract,
        before: Before | None = None,
        *,
        open_columns: bool = False,
        twice: pl.Series | None = None,
        known: Known | None = None,
        now: datetime | None = None,
    ) -> None:
        if not contract.columns:
            raise PalanError(f'data "{contract.name}" has no columns to verify', f"[data.{contract.name}.columns] in palan.toml")
        self.contract = contract
        self.rows = self.bad = 0
        self.fine = 0  # rows that hold
        self.written = 0  # of these, the ones that are to be taken in
        self._checks = compile_checks(contract)
        _try_patterns(contract)
        self._known = _references(contract, known or {})
        self._bands = Bands(contract)
        self._now = now
        self._last: dict[str, Any] = {}  # value of each rising column in the row above
        self._unique = [each.name for each in contract.more if each.unique]
        self._hashes: dict[str, list[NDArray[np.uint64]]] = {name: [] for name in self._unique}
        self._before = before
        self._open_columns = open_columns
        self._columns: dict[str, None] = {}
        self._broken: dict[str, RowRule] = {}
        self._twice = None if self._unique else twice  # then what is unique is to be looked up at the end anyway
        self._keys: list[NDArray[np.uint64]] = []
        self._lines: list[NDArray[np.uint32 | np.int64]] = []
        self._places: list[NDArray[np.int64]] = []  # of the same rows, among those that are to be taken in; -1 where they are not
        self._held: list[pl.DataFrame] = []

    def take(self, batch: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Judge the next rows of the delivery: columns as they came (text from a CSV), any height.

        Returns:
            The rows to take in: the contract's columns in their types, then any others. And the broken ones: the values
            as they came, `palan_line` and `palan_reasons`.

        Raises:
            PalanError: a column that may not be missing is not there.
        """
        lined = _with_line(batch)
        here = [name for name in lined.columns if name not in (LINE, BROKEN)]
        self._columns.update(dict.fromkeys(here))
        if not self._open_columns:
            self._missing()
        key, declared = list(self.contract.key), set(self.contract.names)
        judged = _read_as_types(lined, self.contract)
        rules = _row_rules(self.contract, lined, judged, self._checks, self._known, self._last)
        for each in self.contract.more:
            if each.rising and (seen := judged[each.name].drop_nulls()).len():
                self._last[each.name] = seen[-1]
        if any(judged[name].null_count() for name in key):
            others = pl.any_horizontal(pl.lit(False), *(rule.broken.fill_null(False) for rule in rules if rule.severity != "warn"))
            rules.append(_Rule(f"key {', '.join(key)} is missing", key[0], pl.any_horizontal(pl.col(key).is_null()) & ~others))
        self.rows += batch.height
        bad, is_bad = self._set_apart(lined, judged, rules)
        judged = judged if is_bad is None else judged.filter(~is_bad)
        good = judged.select([*self.contract.names, *(name for name in here if name not in declared)])
        self.fine += good.height
        self._bands.add(good)
        kept = pl.repeat(True, good.height, eager=True) if self._before is None else ~self._before.has(good)
        if key or self._unique:
            for name in self._unique:
                self._hashes[name].append(np.where(good[name].is_null().to_numpy(), 0, good[name].hash().to_numpy()))
            keys = good.select(key).hash_rows() if key else pl.Series([], dtype=pl.UInt64)
            self._remember(keys, kept, lined if is_bad is None else lined.filter(~is_bad))
        good = good if self._before is None else good.filter(kept)
        self.written += good.height
        return good, bad

    def _remember(self, keys: pl.Series, kept: pl.Series, lined: pl.DataFrame) -> None:
        """Take note of the keys of rows that hold, and of where these rows are."""
        lines = lined[LINE].to_numpy()
        places = np.where(kept.to_numpy(), self.written + np.cumsum(kept.to_numpy()) - 1, -1)
        if self._twice is None:
            self._keys.append(keys.to_numpy())
            self._lines.append(lines.astype(np.uint32) if len(lines) and lines[-1] < 2**32 else lines)
            if self._before is not None:
                self._places.append(places)
            return
        again = keys.is_in(self._twice.implode())
        if again.any():
            self._held.append(lined.filter(again))
            self._lines.append(lines[again.to_numpy()])
            self._places.append(places[again.to_numpy()])

    @property
    def unread(self) -> bool:
        """Whether a value could not be read as the type of its column: it may be written in another way."""
        return any(f"{field.name} is not {_ARTICLES[field.type]}" in self._broken for field in self.contract.columns)

    def repeated(self) -> pl.Series:
        """Return the lines of rows that may have the key of another one, and are to be read again for `settle`."""
        lines = pl.Series(LINE, [], pl.Int64)
        for hashes in [*([self._keys] if self._twice is None and self.contract.key else []), *self._hashes.values()]:
            twice = keys_twice(hashes).replace(0, None).drop_nulls()  # 0 is no value
            if len(twice):
                again = pl.Series(np.concatenate(hashes)).is_in(twice.implode()).to_numpy()
                lines.append(pl.Series(LINE, np.concatenate(self._lines)[again].astype(np.int64)))
        return lines.unique().sort()

    def settle(self, rows: Sequence[pl.DataFrame] = ()) -> tuple[pl.DataFrame, NDArray[np.int64]]:
        """Judge by their keys the rows of the lines that `repeated` named, as they came, and those that were held back.

        Returns:
            The broken ones, as `take` does; and which of the rows that were to be taken in they are, counted from 0.
        """
        if not rows and not self._held:
            return pl.DataFrame(schema={LINE: pl.Int64, REASONS: pl.List(pl.String)}), np.zeros(0, np.int64)
        lined = _with_line(pl.concat([*rows, *self._held], how="diagonal_relaxed"))
        judged = _read_as_types(lined, self.contract)
        bad, is_bad = self._set_apart(lined, judged, _key_rules(judged, self.contract))
        if is_bad is not None:
            self._bands.add(judged.filter(is_bad), gone=True)
        gone = np.isin(np.concatenate(self._lines), bad[LINE].to_numpy())
        places = np.concatenate(self._places)[gone] if self._places else np.flatnonzero(gone)
        self.fine -= bad.height
        self.written -= int((places >= 0).sum())
        return bad, places[places >= 0]

    def verdict(self, corrections: int) -> Verdict:
        """Return what was found in all, of which so many good rows have a key that was known.

        Raises:
            PalanError: a column that may not be missing was in no batch.
        """
        missing = self._missing()
        extra = [name for name in self._columns if name not in set(self.contract.names)]
        texts = [*sorted(text for text, rule in self._broken.items() if not rule.column and not text.startswith("check ")), *_rule_texts(self.contract)]
        broken = tuple(self._broken[text] for text in dict.fromkeys(texts) if text in self._broken)
        table = (*_table_rules(self.contract, self.rows, missing, extra), *(self._bands.rules(self._now) if self.rows else ()))
        return Verdict(self.contract.name, self.rows, self.fine, self.bad, corrections, broken, table, self.fine - self.written)

    def _missing(self) -> list[Field]:
        """Return the columns that the delivery does not have, and need not."""
        missing = [field for field in self.contract.columns if field.name not in self._columns]
        needed = next((field.name for field in missing if not field.nullable), None)
        if needed is not None:
            extra = [name for name in self._columns if name not in set(self.contract.names)]
            raise PalanError(f'data "{self.contract.name}": the delivery has no column "{needed}"', _missing_hint(needed, extra, list(self._columns)))
        return missing

    def _set_apart(self, lined: pl.DataFrame, judged: pl.DataFrame, rules: Sequence[_Rule]) -> tuple[pl.DataFrame, pl.Series | None]:
        """Count what each rule finds; return the broken rows as they came, and which ones they are."""
        flags = judged.lazy().select(rule.broken.fill_null(False).alias(str(number)) for number, rule in enumerate(rules)).collect()
        found = [(flag, rule) for flag, rule in zip(flags.iter_columns(), rules, strict=True) if flag.any()]
        if not found:
            return _quarantine(lined.clear(), []), None
        for flag, rule in found:
            before = self._broken.get(rule.text)
            example = before.example if before else _example(lined, flag, rule.column)
            self._broken[rule.text] = RowRule(rule.text, rule.column, int(flag.sum()) + (before.count if before else 0), example, rule.severity)
        found = [(flag, rule) for flag, rule in found if rule.severity != "warn"]
        if not found:
            return _quarantine(lined.clear(), []), None
        is_bad = flags.select(pl.any_horizontal(flag.name for flag, _ in found)).to_series()
        reasons = pl.concat_list(pl.when(pl.col(flag.name)).then(pl.lit(rule.text)) for flag, rule in found)
        bad = _quarantine(lined.filter(is_bad), flags.filter(is_bad).select(reasons.list.drop_nulls()).to_series())
        self.bad += bad.height
        return bad, is_bad


def keys_twice(keys: Iterable[NDArray[np.uint64]]) -> pl.Series:
    """Return the hashes that come more than once."""
    ordered = pl.Series(np.concatenate([np.zeros(0, np.uint64), *keys])).sort()
    return ordered.filter(ordered == ordered.shift(1)).unique()


def key_hashes(rows: pl.DataFrame, contract: Contract) -> NDArray[np.uint64]:
    """Return a hash of the key of each row, whether it holds or not."""
    return _read_as_types(rows, msgspec.structs.replace(contract, columns=tuple(contract.field(name) for name in contract.key))).select(contract.key).hash_rows().to_numpy()


class Before:
    """What a file delivered before, as 128 bits of each row: enough to tell which rows of it are new.

    Args:
        contract: what the rows were verified by.
        frames: yields the earlier rows, of each key the one that was delivered last.
    """

    def __init__(self, contract: Contract, frames: Callable[[], Iterator[pl.DataFrame]]) -> None:
        self.contract = contract
        self._frames = frames
        self._known: dict[str, _Prints] = {}
        self._heard: list[_Prints] = []
        self._schema = pl.Schema()
        self._old = pl.Series(dtype=pl.Boolean)
        self._asked = 0

    def has(self, rows: pl.DataFrame) -> pl.Series:
        """Tell of each row whether it came before; without a key, of the rows that were heard, in their order."""
        if not self.contract.key:
            asked, self._asked = self._asked, self._asked + rows.height
            return self._old[asked : self._asked]
        known, prints = self._earlier(rows.schema), _prints(rows)
        if not len(known[0]):
            return pl.repeat(False, rows.height, eager=True)
        place = np.minimum(np.searchsorted(known[0], prints[0]), len(known[0]) - 1)
        return pl.Series((known[0][place] == prints[0]) & (known[1][place] == prints[1]))

    def hear(self, rows: pl.DataFrame) -> None:
        """Take note of the next rows of a table without a key."""
        self._schema = self._schema or rows.schema
        self._heard.append(_prints(rows))

    def compare(self) -> None:
        """Find out which of the rows that were heard are old ones; the same row twice is two rows.

        Raises:
            PalanError: a row of before is not among them.
        """
        heard = tuple(np.concatenate([each[number] for each in self._heard]) for number in (0, 1))
        by = ["first", "second"]
        old, new = (
            pl.DataFrame(dict(zip(by, prints, strict=True))).with_columns(pl.int_range(pl.len()).over(by).alias("copy")) for prints in (self._earlier(self._schema), heard)
        )
        by.append("copy")
        if old.join(new, on=by, how="anti").height:
            raise PalanError(
                f'the file was taken in before and rows of it have changed, but data "{self.contract.name}" has no key that tells its old rows from its new ones',
                f'[data.{self.contract.name}] key = ["..."], or deliver the new rows in a file of their own',
            )
        numbered = new.with_row_index("palan_row")
        self._old = numbered["palan_row"].is_in(numbered.join(old, on=by, how="semi")["palan_row"].implode())

    def _earlier(self, schema: pl.Schema) -> _Prints:
        """Return the prints of the earlier rows, taken as rows of this schema, in ascending order."""
        known = self._known.get(repr(schema))
        if known is None:
            found = [_prints(_in_schema(frame, schema, self.contract)) for frame in self._frames()]
            first, second = (np.concatenate([np.zeros(0, np.uint64), *(each[number] for each in found)]) for number in (0, 1))
            order = np.argsort(first)
            known = self._known[repr(schema)] = (first[order], second[order])
        return known


_Prints = tuple[NDArray[np.uint64], NDArray[np.uint64]]


def _prints(frame: pl.DataFrame) -> _Prints:
    odd = (pl.Object, pl.Binary, pl.Null)
    plain = frame.select(_text_of(column) if column.dtype.is_nested() or column.dtype in odd else column for column in frame.iter_columns())
    return plain.hash_rows(seed=1).to_numpy(), plain.hash_rows(seed=2).to_numpy()


def _in_schema(frame: pl.DataFrame, schema: pl.Schema, contract: Contract) -> pl.DataFrame:
    """Return earlier rows with these columns in these types: what they did not have is missing, what is not asked for must be."""
    fields = {field.name: field for field in contract.columns}
    columns = []
    for name, dtype in schema.items():
        here = frame.schema.get(name)
        if here is None:
            columns.append(pl.lit(None, dtype).alias(name))
        elif here == dtype or here.is_nested() or dtype.is_nested():
            columns.append(pl.col(name))
        else:
            columns.append((_cast(fields[name], here) if name in fields else pl.col(name).cast(dtype, strict=False)).alias(name))
    gone = [name for name in frame.columns if name not in schema]
    return frame.filter(pl.all_horizontal(pl.col(gone).is_null()) if gone else pl.lit(True)).select(columns)


def verify(
    frame: pl.DataFrame | pl.LazyFrame,
    contract: Contract,
    known_keys: pl.DataFrame | None = None,
    earlier: pl.DataFrame | None = None,
    *,
    known: Known | None = None,
    now: datetime | None = None,
) -> Checked:
    """Judge every row of a delivery that is in memory, as `Judge` does.

    Args:
        frame: the delivery, any height; columns as they came (text from a CSV). A LazyFrame is collected: a promise of rows
            cannot be judged.
        contract: what must hold.
        known_keys: the key columns of rows that the table already holds: they make corrections, not faults.
        earlier: the rows, verified, that the same file delivered before, one of each key. What it only repeats is left
            out of `good`: another file may have corrected it since.
        known: what the columns that others refer to hold, as `TABLE.COLUMN`.
        now: when the delivery came, to tell how new it is.

    Raises:
        PalanError: a column that may not be missing is not there, a check is not a yes/no question about one row, or
            the contract has no columns; or rows without a key are not those of before and more.
    """
    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    if not isinstance(frame, pl.DataFrame):
        raise PalanError(f'data "{contract.name}": a {type(frame).__name__} is no Polars frame', "verify(pl.DataFrame(rows), contract)")
    lined = _with_line(frame)
    before = None if earlier is None else Before(contract, lambda: iter([earlier]))
    if before is not None and not contract.key:
        before.hear(Judge(contract, known=known).take(lined)[0])
        before.compare()
    judge = Judge(contract, before, known=known, now=now)
    good, bad = judge.take(lined)
    if len(lines := judge.repeated()):
        more, places = judge.settle([lined.filter(pl.col(LINE).is_in(lines.implode()))])
        bad = pl.concat([bad, more]).sort(LINE)
        good = good.filter(~pl.int_range(pl.len(), dtype=pl.Int64).is_in(pl.Series(places).implode()))
    corrections = 0
    if known_keys is not None and contract.key and known_keys.height:
        keys = alike([known_keys.select(contract.key), good.select(contract.key)], contract)[0]
        corrections = good.select(contract.key).join(keys.unique(), on=contract.key, how="semi").height
    return Checked(good, bad, judge.verdict(corrections))


def alike(parts: Sequence[pl.DataFrame], contract: Contract) -> list[pl.DataFrame]:
    """Return the verified tables with each column of the contract in the type that it has in the newest, the last of them."""
    return [part.with_columns(casts) if casts else part for part, casts in zip(parts, alike_casts([part.schema for part in parts], contract), strict=True)]


def alike_casts(schemas: Sequence[pl.Schema], contract: Contract) -> list[list[pl.Expr]]:
    """Return what has to be read as another type in each table, so that all are alike."""
    newest = {name: dtype for schema in schemas for name, dtype in schema.items()}
    kinds = {dtype: kind for kind, dtype in _DTYPES.items()}
    fields = {name: Field(name, kinds[newest[name]]) for name in contract.names if newest.get(name) in kinds}  # type: ignore[arg-type]
    return [[_cast(field, schema[name]).alias(name) for name, field in fields.items() if schema.get(name, newest[name]) != newest[name]] for schema in schemas]


def again(batches: Iterable[pl.DataFrame], contract: Contract, known: Known | None = None) -> tuple[Verdict, list[str]]:
    """Judge rows that were verified under an older contract by this one: what breaks it, and the columns whose values
    cannot even be read as their new type."""
    judge = Judge(msgspec.structs.replace(row_rules(contract), key=()), known=known)
    for stored in batches:
        judge.take(stored.with_columns(pl.lit(None, pl.Null).alias(name) for name in contract.names if name not in stored.columns))
    verdict = judge.verdict(0)
    unread = {f"{field.name} is not {_ARTICLES[field.type]}" for field in contract.columns}
    return verdict, [rule.column for rule in verdict.broken if rule.rule in unread]


def typed(frame: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """Return the contract's columns in their types, as far as the rows have them, whether they hold or not: what cannot be read is null."""
    return frame.select(_cast(field, frame.schema[field.name]).alias(field.name) for field in contract.columns if field.name in frame.columns)


def of_others(contract: Contract) -> list[str]:
    """Return the rules that a row breaks because of other rows of its delivery: asked of it alone, it would hold."""
    asked = [text for each in contract.more for text, here in ((f"{each.name} is not unique", each.unique), (f"{each.name} is not rising", each.rising)) if here]
    return [f"key {', '.join(contract.key)} repeats an earlier row", *asked]


def once_more(bad: pl.DataFrame, contract: Contract, known: Known | None = None) -> Checked | None:
    """Judge rows of one quarantine, as `verify` set them apart, by a contract that may have changed; None where it cannot be asked of them.

    A line that had no readable form, a copy of a row that was taken, and what broke a rule about the rows around it stay
    what they were.
    """
    copies = bad.select(pl.col(REASONS).list.set_intersection(pl.lit(of_others(contract))).list.len() > 0).to_series()
    delivered = delivered_as(bad.filter(~copies))
    try:
        checked = verify(delivered, row_rules(contract), known=known)
    except PalanError:  # a column that the delivery does not have is asked for now
        return None
    rest = pl.concat([as_text(checked.bad.drop(LINE, REASONS)).with_columns(checked.bad[LINE], checked.bad[REASONS]), bad.filter(copies)], how="diagonal_relaxed")
    return msgspec.structs.replace(checked, bad=rest.sort(LINE))


def delivered_as(bad: pl.DataFrame) -> pl.DataFrame:
    """Return quarantined rows as they were delivered, to be judged."""
    unreadable = pl.col(REASONS).list.eval(pl.element().filter(pl.element().str.starts_with("line "))).list.first()
    return bad.with_columns(unreadable.alias(BROKEN)).drop(REASONS)


def concerned(reason: str, contract: Contract, columns: Sequence[str]) -> list[str]:
    """Return the columns that a reason in quarantine is about."""
    if reason.startswith("check "):
        try:
            return [name for name in dict.fromkeys(pl.sql_expr(reason.removeprefix("check ")).meta.root_names()) if name in columns]
        except pl.exceptions.PolarsError:
            return []
    if reason.startswith("key "):
        return [name for name in contract.key if name in columns]
    named = [name for name in columns if reason.startswith(f"{name} is ")]
    return [max(named, key=len)] if named else []


def compile_checks(contract: Contract) -> list[pl.Expr]:
    """Return the contract's checks as expressions, each proved to be a yes/no question about one row.

    Raises:
        PalanError: SQL that cannot be read, an unknown column, an aggregate, or an answer that is not true or false.
    """
    # three rows of nulls: an aggregate answers with one value where a row rule answers with three
    probe = pl.DataFrame({field.name: pl.Series([None] * 3, dtype=_DTYPES[field.type]) for field in contract.columns})
    checks = []
    for text in contract.checks:
        where = f'check "{text}" of data "{contract.name}"'
        try:
            expression = pl.sql_expr(text)
            answer = probe.select(expression.alias("answer"))
        except pl.exceptions.ColumnNotFoundError as problem:
            unknown = next((name for name in pl.sql_expr(text).meta.root_names() if name not in contract.names), "")
            raise PalanError(f'{where} names "{unknown}", which is no column', nearest(unknown, contract.names)) from problem
        except pl.exceptions.PolarsError as problem:
            raise PalanError(f"{where} cannot be read: {first_line(problem)}", 'a check is SQL over one row, such as "dewp <= temp + 1"') from problem
        if answer.height != probe.height or not expression.meta.root_names() or asks_others(expression):
            raise PalanError(f"{where} is not about one row", "checks compare columns of the same row; aggregates are not row rules")
        if answer.schema["answer"] not in (pl.Boolean, pl.Null):
            raise PalanError(f"{where} does not answer true or false", 'write a comparison, such as "dewp <= temp + 1"')
        checks.append(expression)
    return checks


def _try_patterns(contract: Contract) -> None:
    for field in contract.columns:
        try:
            pl.Series([""]).str.contains(field.pattern)
        except pl.exceptions.PolarsError as problem:
            raise PalanError(f'column "{field.name}" of data "{contract.name}": {field.pattern} cannot be read: {first_line(problem)}', "write it with classes, groups and repetitions: '^[A-Z]{3}$'") from problem


_OF_MANY = {"Agg", "Over", "Window", "Quantile", "Correlation", "Unique", "Len", "Sort", "SortBy", "Gather", "Slice", "Filter", "Explode"}
"""Nodes of a Polars expression that look at more rows than one."""


def asks_others(expression: pl.Expr) -> bool:
    """Tell whether the answer for one row depends on others: then it would depend on how many are looked at at a time."""

    def nodes(tree: Any) -> Iterator[str]:
        for name, each in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield str(name)
            if isinstance(each, dict | list):
                yield from nodes(each)
            elif each == "Len" and name != "Column":
                yield "Len"

    return not _OF_MANY.isdisjoint(nodes([json.loads(expression.meta.serialize(format="json"))]))


_DTYPES: dict[str, pl.DataType] = {
    "int": pl.Int64(),
    "float": pl.Float64(),
    "bool": pl.Boolean(),
    "str": pl.String(),
    "time": pl.Datetime("us", "UTC"),
    "date": pl.Date(),
}


def dtype_of(field: Field) -> pl.DataType:
    """Return the Polars type that a column of the contract has once verified.

    Raises:
        KeyError: the field is not a plain column (a list, a map).
    """
    return _DTYPES[field.type]


def read_time(name: str, dtype: pl.DataType) -> pl.Expr:
    """Return the column read as UTC times, whether it holds times, dates or ISO 8601 text; null where it cannot be read."""
    return _cast(Field(name, "time"), dtype)


def read_as(kind: FieldType, column: pl.Series) -> pl.Series:
    """Return the values read as this type, null where one cannot be."""
    return column.to_frame().select(_cast(Field(column.name, kind), column.dtype).alias(column.name)).to_series()


def as_text(frame: pl.DataFrame) -> pl.DataFrame:
    """Return every column as text, whatever it holds: for people to read, and for rows of several files to lie together."""
    return frame.with_columns(_text_of(column) for column in frame.iter_columns())


def _text_of(column: pl.Series) -> pl.Series:
    if isinstance(column.dtype, pl.Duration):
        return column.dt.to_string("polars")
    if not column.dtype.is_nested() and column.dtype not in (pl.Binary, pl.Object):
        return column.cast(pl.String, strict=False)
    words = [value.decode(errors="backslashreplace") if isinstance(value, bytes) else None if value is None else str(value) for value in column]
    return pl.Series(column.name, words, dtype=pl.String)


def empty(contract: Contract) -> pl.DataFrame:
    """Return the verified table without rows."""
    return pl.DataFrame(schema={field.name: dtype_of(field) for field in contract.columns})


def _with_line(frame: pl.DataFrame) -> pl.DataFrame:
    if LINE not in frame.columns:
        frame = frame.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(LINE))
    if BROKEN not in frame.columns:
        frame = frame.with_columns(pl.lit(None, dtype=pl.String).alias(BROKEN))
    return frame


def _read_as_types(lined: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """Return the rows with each column of the contract in its type; as it came, under `palan_raw:`, where that is another."""
    columns = []
    for field in contract.columns:
        dtype = lined.schema.get(field.name)
        if dtype is None:
            columns.append(pl.lit(None, dtype=_DTYPES[field.type]).alias(field.name))
        elif dtype != _DTYPES[field.type]:
            columns += [pl.col(field.name).alias(_RAW + field.name), _cast(field, dtype).alias(field.name)]
    return lined.lazy().with_columns(columns).collect() if columns else lined


def _references(contract: Contract, known: Known) -> dict[str, pl.Series]:
    """Return of each column that refers to another table the values that it may have.

    Raises:
        PalanError: nobody said what the other table holds.
    """
    found = {}
    for each in contract.more:
        if each.of and each.of not in known:
            raise PalanError(f'column "{each.name}" of data "{contract.name}" is of {each.of}, of which nothing is known here', f'verify(rows, contract, known={{"{each.of}": values}})')
        if each.of:
            found[each.name] = read_as(contract.field(each.name).type, known[each.of]).drop_nulls().unique()
    return found


def _row_rules(
    contract: Contract, lined: pl.DataFrame, judged: pl.DataFrame, checks: Sequence[pl.Expr], known: Mapping[str, pl.Series], last: Mapping[str, Any]
) -> list[_Rule]:
    """Return the rules that some of these rows may break: what a glance at a whole column rules out is not asked of each row."""
    rules = [_Rule(text, "", pl.col(BROKEN) == text) for text in lined[BROKEN].drop_nulls().unique().sort().to_list()]
    readable = pl.col(BROKEN).is_null()
    for field in contract.columns:
        name, value, column = field.name, pl.col(field.name), judged[field.name]
        more = contract.told(name)
        how = more.severity.get
        if column.null_count():
            # raw text of spaces is a missing value, for every type but text itself
            came = _blank_as_null(field, lined.schema[name]) if _RAW + name in judged.columns else value
            if _RAW + name in judged.columns:
                rules.append(_Rule(f"{name} is not {_ARTICLES[field.type]}", name, readable & came.is_not_null() & value.is_null(), how("type", "quarantine")))
            if not field.nullable:
                rules.append(_Rule(f"{name} is missing", name, readable & came.is_null(), how("missing", "quarantine")))
        if column.null_count() == judged.height:
            continue
        if field.type == "float" and not math.isfinite(column.sum()):
            rules.append(_Rule(f"{name} is not finite", name, ~value.is_finite(), how("type", "quarantine")))
        if field.type in ("time", "date") and not _within(column.to_physical(), *_counted_years(field)):
            first, latest = _YEARS if field.type == "time" else (each.date() for each in _YEARS)
            rules.append(_Rule(f"{name} is outside the years 1 to 9999", name, ~value.is_between(first, latest), how("type", "quarantine")))
        if (field.minimum is not None or field.maximum is not None) and not _within(column, field.minimum, field.maximum):
            bounds = [value < field.minimum] if field.minimum is not None else []
            bounds += [value > field.maximum] if field.maximum is not None else []
            finite = value.is_finite() if field.type == "float" else pl.lit(True)
            rules.append(_Rule(_range_text(field), name, finite & pl.any_horizontal(bounds), how("range", "quarantine")))
        if field.values:
            rules.append(_Rule(_values_text(field), name, ~value.cast(pl.String).is_in(list(field.values)), how("in", "quarantine")))
        if field.length != OPEN:
            low, high = field.length
            size = value.str.len_chars()
            rules.append(_Rule(_length_text(field), name, ~size.is_between(low or 0, 2**32 - 1 if high is None else high), how("length", "quarantine")))
        if field.pattern:
            rules.append(_Rule(_pattern_text(field), name, ~value.str.contains(field.pattern), how("matches", "quarantine")))
        if name in known:
            rules.append(_Rule(f"{name} is not in {more.of}", name, ~value.is_in(known[name].implode()), how("of", "quarantine")))
        if more.rising:
            above = value.forward_fill().shift(1).fill_null(pl.lit(last.get(name), dtype=_DTYPES[field.type]))
            rules.append(_Rule(f"{name} is not rising", name, value < above, how("rising", "quarantine")))
    return rules + [_Rule(f"check {text}", "", ~check, contract.severity.get(text, "quarantine")) for text, check in zip(contract.checks, checks, strict=True)]


def _rule_texts(contract: Contract) -> list[str]:
    """Return what the rules of a contract say of a row that breaks them, in its order."""
    texts = []
    for field in contract.columns:
        name = field.name
        texts += [f"{name} is not {_ARTICLES[field.type]}", f"{name} is missing", f"{name} is not finite", f"{name} is outside the years 1 to 9999"]
        texts += [_range_text(field)] if field.minimum is not None or field.maximum is not None else []
        texts += [_values_text(field)] if field.values else []
        texts += [_length_text(field)] if field.length != OPEN else []
        texts += [_pattern_text(field)] if field.pattern else []
        more = contract.told(name)
        texts += [text for text, asked in ((f"{name} is not in {more.of}", more.of), (f"{name} is not rising", more.rising), (f"{name} is not unique", more.unique)) if asked]
    key = ", ".join(contract.key)
    return [*texts, *(f"check {text}" for text in contract.checks), f"key {key} is missing", f"key {key} repeats an earlier row", f"key {key} is on rows that differ"]


def _range_text(field: Field) -> str:
    return f"{field.name} is {_beyond(band_text((field.minimum, field.maximum)))}"


def _length_text(field: Field) -> str:
    return f"{field.name} is {_beyond(band_text(field.length))} characters long"


def _pattern_text(field: Field) -> str:
    return f"{field.name} is no match of {field.pattern}"


def _values_text(field: Field) -> str:
    return f"{field.name} is not one of {' '.join(field.values) if len(field.values) <= 8 else f'the {len(field.values)} listed values'}"


def _within(column: pl.Series, low: float | None, high: float | None) -> bool:
    """Tell whether all of a column that is not wholly null lies within these bounds."""
    least, most = column.min(), column.max()
    return bool((low is None or least >= low) and (high is None or most <= high))  # type: ignore[operator]


def _counted_years(field: Field) -> tuple[int, int]:
    """Return the bounds of a time as Polars counts it, in microseconds or days since 1970."""
    first, last = (each.toordinal() - datetime(1970, 1, 1, tzinfo=UTC).toordinal() for each in _YEARS)
    return (first, last) if field.type == "date" else (first * 86_400_000_000, (last + 1) * 86_400_000_000 - 1)


def _key_rules(judged: pl.DataFrame, contract: Contract) -> list[_Rule]:
    """Return the rules about rows that say the same among those that break no other: a broken row takes nothing from a good one."""
    row = pl.int_range(pl.len(), dtype=pl.UInt32)
    rules, rest = [], judged.with_row_index("palan_row")
    # typed values decide: "1.0" and "1.00" are the same row told twice
    told = pl.struct(column for column in judged.columns if not column.startswith("palan_"))
    if contract.key:
        key, name = list(contract.key), ", ".join(contract.key)
        twice = rest.filter(pl.struct(key).is_duplicated())
        same = twice.with_columns(told.n_unique().over(key).alias("palan_kinds"), pl.int_range(pl.len()).over(key).alias("palan_copy"))
        repeats = same.filter((pl.col("palan_kinds") == 1) & (pl.col("palan_copy") > 0))["palan_row"]
        conflicts = same.filter(pl.col("palan_kinds") > 1)["palan_row"]
        rules.append(_Rule(f"key {name} repeats an earlier row", key[0], row.is_in(repeats.implode())))
        rules.append(_Rule(f"key {name} is on rows that differ", key[0], row.is_in(conflicts.implode())))
        rest = rest.filter(~pl.col("palan_row").is_in(repeats.implode()))  # a copy says nothing new
    for each in contract.more:
        if each.unique:
            again = rest.filter(pl.col(each.name).is_not_null() & pl.col(each.name).is_duplicated())["palan_row"]
            rules.append(_Rule(f"{each.name} is not unique", each.name, row.is_in(again.implode()), each.severity.get("unique", "quarantine")))
    return rules


def _quarantine(bad: pl.DataFrame, reasons: pl.Series | Sequence[str]) -> pl.DataFrame:
    """Return the broken rows as they came, with their line and the rules that they broke."""
    return bad.drop(LINE, BROKEN).with_columns(bad[LINE], pl.Series(REASONS, reasons, dtype=pl.List(pl.String)))


def _example(lined: pl.DataFrame, flag: pl.Series, column: str) -> str:
    first = lined.filter(flag).head(1)
    if column not in lined.columns:
        return f"line {first[LINE][0]}"
    value = _text_of(first[column])[0]
    return "" if value is None else str(value)[:80]


def _table_rules(contract: Contract, rows: int, missing: Sequence[Field], extra: Sequence[str]) -> tuple[TableRule, ...]:
    low, high = contract.rows
    how: Literal["warn", "stop"] = "stop" if contract.severity.get("rows") == "stop" else "warn"
    rules = []
    if rows == 0:
        rules.append(TableRule("rows", False, "the delivery has no rows", how))
    elif low is not None or high is not None:
        holds = (low is None or rows >= low) and (high is None or rows <= high)
        band = f"{'' if low is None else f'{low:,}'}..{'' if high is None else f'{high:,}'}"
        said = f"within {band}" if holds else _beyond(band)
        rules.append(TableRule("rows", holds, f"{rows:,} {'row' if rows == 1 else 'rows'}, {said}", how))
    rules += [TableRule("missing column", False, f'column "{field.name}" is not in the delivery and was taken as missing values') for field in missing]
    if extra:  # kept as they came: a contract says what it needs, not all that a supplier may send
        rules.append(TableRule("extra columns", True, f"not in the contract, kept as they came: {_listed(extra)}"))
    return tuple(rules)


def _beyond(band: str) -> str:
    """Say where a value lies that is not in a band: `outside 0..10`, and of one that is open `below 50`."""
    if band.endswith(".."):
        return f"below {band[:-2]}"
    return f"above {band[2:]}" if band.startswith("..") else f"outside {band}"


def _missing_hint(name: str, extra: Sequence[str], delivered: Sequence[str]) -> str:
    close = nearest(name, extra)
    if close:
        return f"the file has an unknown column of a similar name: {close}"
    return f"it has {_listed(delivered)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12:,} more" if len(names) > 12 else "")


_YEARS = (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC))
"""What a time may be in UTC: beyond, no calendar but this library's knows it."""

_ARTICLES = {"int": "an int", "float": "a float", "bool": "true or false", "str": "text", "time": "a time", "date": "a date"}


def _blank_as_null(field: Field, dtype: pl.DataType) -> pl.Expr:
    raw = pl.col(_RAW + field.name)
    if dtype == pl.String and field.type != "str":
        return pl.when(raw.str.strip_chars() != "").then(raw)
    return raw


def _cast(field: Field, dtype: pl.DataType) -> pl.Expr:
    """Read a column as its type; what cannot be read exactly becomes null here, and `_row_rules` tells it from a null."""
    column = pl.col(field.name)
    target = _DTYPES[field.type]
    nothing = pl.lit(None, dtype=target)
    if dtype == pl.Null:
        return nothing
    if isinstance(dtype, pl.Categorical | pl.Enum):
        column, dtype = column.cast(pl.String), pl.String()
    if dtype == pl.String:
        return _cast_text(field, column)
    casts: dict[str, tuple[bool, pl.Expr]] = {
        "int": (dtype.is_integer() or dtype.is_float() or dtype.is_decimal(), _whole(column.cast(pl.Float64), column.cast(pl.Int64, strict=False), dtype)),
        "float": (dtype.is_numeric(), column.cast(pl.Float64, strict=False)),
        "bool": (dtype == pl.Boolean or dtype.is_integer(), pl.when(column.cast(pl.Int64, strict=False).is_in([0, 1])).then(column.cast(pl.Boolean))),
        "str": (dtype.is_integer() or dtype == pl.Boolean or (dtype.is_temporal() and dtype != pl.Duration), column.cast(pl.String)),
        "time": (isinstance(dtype, pl.Datetime) or dtype == pl.Date, _as_utc(column, dtype)),
        "date": (isinstance(dtype, pl.Datetime) or dtype == pl.Date, pl.when(column.cast(pl.Date).cast(pl.Datetime("us")) == _naive(column, dtype)).then(column.cast(pl.Date))),
    }
    fits, expression = casts[field.type]
    return expression if fits else nothing


def _cast_text(field: Field, column: pl.Expr) -> pl.Expr:
    if field.type == "str":
        return column
    text = column.str.strip_chars()
    if field.type == "float":
        return text.cast(pl.Float64, strict=False)
    if field.type == "int":
        # "3.0" is how other tools write a whole number in a column that had a gap
        return pl.coalesce(text.cast(pl.Int64, strict=False), _whole(text.cast(pl.Float64, strict=False), text.cast(pl.Float64, strict=False).cast(pl.Int64, strict=False), pl.Float64()))
    if field.type == "bool":
        word = text.str.to_lowercase()
        return pl.when(word.is_in(["true", "t", "yes", "1"])).then(True).when(word.is_in(["false", "f", "no", "0"])).then(False)
    if field.type == "date":
        return text.str.to_date("%Y-%m-%d", strict=False)
    return column.map_batches(_times, return_dtype=pl.Datetime("us", "UTC"), is_elementwise=True)


def _times(column: pl.Series) -> pl.Series:
    """Read ISO 8601 text, each row by the first form that fits: a column has one, as a rule, and the others are not tried."""
    text = column.str.strip_chars()
    if text.str.contains(" ", literal=True).any():
        text = text.str.replace(r"^(\d{4}-\d\d-\d\d) +", "${1}T", literal=False).str.replace(r" +([+-]\d\d:?\d\d)$", "${1}", literal=False)
    text = text.str.replace(r"[zZ]$", "+00:00", literal=False)
    found = pl.Series(column.name, [None], dtype=pl.Datetime("us", "UTC")).new_from_index(0, len(text))
    rest = text.is_not_null()
    for form in _TIME_FORMATS:
        if not rest.any():
            break
        read = text.filter(rest).str.to_datetime(form, strict=False, time_zone="UTC", time_unit="us")
        found = read.alias(column.name) if rest.all() else found.scatter(rest.arg_true(), read)
        rest = found.is_null() & text.is_not_null()
    return found


def _whole(number: pl.Expr, integer: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Take a float as an int only where nothing is lost: no fraction, and below 2**53."""
    return integer if dtype.is_integer() else pl.when((number == number.floor()) & (number.abs() <= 2.0**53)).then(integer)


def _as_utc(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        return column.dt.convert_time_zone("UTC").dt.cast_time_unit("us")
    return column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _naive(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        return column.dt.replace_time_zone(None).cast(pl.Datetime("us"))
    return column.cast(pl.Datetime("us"))
