"""What a table must hold: read from `[data.NAME]` in palan.toml, or inferred from rows that somebody trusts.

This file loads no data frame library, so that reading palan.toml stays quick: `infer` only asks a frame it is given.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from palan.core import Field, FieldType, Schema
from palan.errors import NotFound, PalanError, nearest

if TYPE_CHECKING:
    import polars as pl

TYPES: tuple[FieldType, ...] = ("int", "float", "bool", "str", "time", "date")
KEYS = ("source", "transform", "key", "time", "checks", "rows", "columns")
RESERVED = "palan_"  # columns that palan adds to a quarantined row

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)"
_RANGE = re.compile(rf"({_NUMBER})?\.\.({_NUMBER})?")


class Contract(msgspec.Struct, frozen=True):
    """What one table holds. `rows` is the band of rows in one delivered file, either end None when open."""

    name: str
    columns: tuple[Field, ...] = ()
    key: tuple[str, ...] = ()
    time: str = ""
    checks: tuple[str, ...] = ()
    rows: tuple[int | None, int | None] = (None, None)
    source: str = ""
    transform: str = ""

    @property
    def names(self) -> list[str]:
        return [field.name for field in self.columns]

    def field(self, name: str) -> Field:
        """Return the column of this name.

        Raises:
            NotFound: the contract has no such column; the nearest one is named.
        """
        for field in self.columns:
            if field.name == name:
                return field
        raise NotFound(f'data "{self.name}" has no column "{name}"', _one_of(name, self.names))


def parse(name: str, table: Mapping[str, Any]) -> Contract:
    """Read the contract of one `[data.NAME]` table.

    Raises:
        PalanError: an unknown key, a wrong type, or a column text that is not `type[?] [range | in values] [unit]`.
    """
    where = f"[data.{name}]"
    for key in table:
        if key not in KEYS:
            raise PalanError(f'{where} has no setting "{key}"', _one_of(key, KEYS))
    source, transform = _text(where, table, "source"), _text(where, table, "transform")
    if bool(source) == bool(transform):
        raise PalanError(
            f"{where} needs exactly one of source and transform",
            'source = "feed/*.csv" for delivered files, or transform = "features.py:function" for a computed table',
        )
    columns = table.get("columns", {})
    if not isinstance(columns, Mapping):
        raise PalanError(f"{where} columns must be a table", f'[data.{name}.columns] with lines such as temp = "float? -30..120 °F"')
    fields = tuple(parse_column(name, column, text) for column, text in columns.items())
    names = [field.name for field in fields]
    key_columns = _texts(where, table, "key")
    time = _text(where, table, "time")
    if fields:
        for column in [*key_columns, *([time] if time else [])]:
            if column not in names:
                raise PalanError(f'{where} names column "{column}", which is not among its columns', _one_of(column, names))
    time_type = next((field.type for field in fields if field.name == time), "time")
    if time_type not in ("time", "date"):
        raise PalanError(f'{where} time = "{time}" is a column of type {time_type}', f'{time} = "time" or "date" under [data.{name}.columns]')
    return Contract(
        name=name,
        columns=fields,
        key=key_columns,
        time=time,
        checks=_texts(where, table, "checks"),
        rows=_band(where, table.get("rows", "")),
        source=source,
        transform=transform,
    )


def parse_column(data: str, name: str, text: object) -> Field:
    """Read one column: `type[?] [range | in values] [unit]`, for example `float? -30..120 °F` or `str in EWR JFK LGA`.

    Raises:
        PalanError: names the column, the text, and the nearest word that would be right.
    """
    where = f'column "{name}" of data "{data}"'
    if name.startswith(RESERVED):
        raise PalanError(f"{where}: names that begin with {RESERVED} are palan's own", "choose another name for the column")
    if not isinstance(text, str) or not text.strip():
        raise PalanError(f"{where} needs a text, found {text!r}", f'{name} = "float? 0..100 km"')
    try:
        words = shlex.split(text)
    except ValueError as problem:
        raise PalanError(f'{where}: "{text}" has an open quote', 'write values with spaces as "str in \'New York\' Boston"') from problem
    kind, nullable = words[0].removesuffix("?"), words[0].endswith("?")
    if kind not in TYPES:
        raise PalanError(f'{where}: "{text}" begins with "{kind}", which is not a type', _one_of(kind, TYPES))
    field_type: FieldType = next(known for known in get_args(FieldType) if known == kind)
    rest = words[1:]
    if rest and rest[0] == "in":
        if field_type not in ("str", "int"):
            raise PalanError(f'{where}: "{text}" lists values, which only str and int can', "a range such as 0..100 bounds a float")
        if len(rest) == 1:
            raise PalanError(f'{where}: "{text}" lists no values after "in"', f'{name} = "{words[0]} in first second"')
        values = tuple(rest[1:])
        bad = next((value for value in values if field_type == "int" and not re.fullmatch(r"-?\d+", value)), None)
        if bad is not None:
            raise PalanError(f'{where}: "{bad}" in "{text}" is not a whole number', f'{name} = "str in ..." for text values')
        return Field(name, field_type, nullable, values=values)
    minimum = maximum = None
    if rest and ".." in rest[0]:
        if field_type not in ("int", "float"):
            raise PalanError(f'{where}: "{text}" gives a range to a {field_type}', "ranges bound int and float; list the values of a str with in")
        minimum, maximum = _range(where, text, rest.pop(0))
    if rest and field_type not in ("int", "float"):
        raise PalanError(f'{where}: "{text}" has "{rest[0]}" after the type {field_type}', f'{name} = "{words[0]} in {" ".join(rest)}" lists values')
    if rest and re.fullmatch(_NUMBER, rest[0]):
        raise PalanError(f'{where}: "{text}" has a lone number "{rest[0]}"', f"a range is written {rest[0]}.. or ..{rest[0]} or {rest[0]}..{rest[0]}")
    return Field(name, field_type, nullable, minimum, maximum, unit=" ".join(rest))


def column_text(field: Field) -> str:
    """Return the column as it is written in palan.toml: `parse_column` reads it back to the same field."""
    parts = [field.type + ("?" if field.nullable else "")]
    if field.values:
        parts += ["in", *(shlex.quote(value) for value in field.values)]
    if field.minimum is not None or field.maximum is not None:
        parts.append(f"{_plain(field.minimum)}..{_plain(field.maximum)}")
    if field.unit:
        parts.append(field.unit)
    return " ".join(parts)


def to_schema(contract: Contract, names: Sequence[str]) -> Schema:
    """Return the schema of a model that takes these columns of the table.

    Raises:
        NotFound: a name that is no column; the nearest one is named.
    """
    return Schema("rows", tuple(contract.field(name) for name in names))


def infer(frame: pl.DataFrame) -> str:
    """Return the lines of a `[data.NAME.columns]` table that these rows, and rows much like them, keep.

    Ranges are wider than what was seen (half the seen span on both sides, but not across zero where the values begin
    at it), because a contract that stops good rows is switched off; each line says in a comment what it rests on. A text column with few, often repeated values becomes a list of values.
    """
    if frame.height == 0 or frame.width == 0:
        raise PalanError("cannot infer a contract from a table without rows", "give a file with some rows that you trust")
    lines = [_infer_column(frame.get_column(name), frame.height) for name in frame.columns]
    width = max(len(line) for line, _ in lines)
    return "".join(f"{line:<{width}}  # {why}\n" for line, why in lines)


def infer_field(column: pl.Series) -> Field:
    """Return what `infer` says of one column, as a field.

    Raises:
        PalanError: a nested or binary column, which no contract describes.
    """
    dtype = column.dtype
    nulls = column.null_count() > 0
    if dtype.is_integer() or dtype.is_float() or dtype.is_decimal():
        kind: FieldType = "int" if dtype.is_integer() else "float"
        finite = column.drop_nulls() if dtype.is_integer() else column.drop_nulls().cast(float).filter(column.drop_nulls().cast(float).is_finite())
        if len(finite) == 0:
            return Field(column.name, kind, nulls)
        low, high = _tolerant(float(finite.min()), float(finite.max()), whole=kind == "int")  # type: ignore[arg-type]
        return Field(column.name, kind, nulls, low, high)
    name = str(dtype)
    if name == "Boolean":
        return Field(column.name, "bool", nulls)
    if name.startswith("Datetime"):
        return Field(column.name, "time", nulls)
    if name == "Date":
        return Field(column.name, "date", nulls)
    if name == "Null":
        return Field(column.name, "str", True)
    if name.startswith(("Categorical", "Enum")):
        column = column.cast(str)
    elif name != "String":
        raise PalanError(f'column "{column.name}" holds {dtype}, which a contract cannot describe', "keep plain values: numbers, text, true/false, times, dates")
    return _infer_text(column, nulls)


def _infer_text(column: pl.Series, nulls: bool) -> Field:
    present = column.drop_nulls()
    if len(present) and present.str.contains(r"^\d{4}-\d\d-\d\d$").all():
        return Field(column.name, "date", nulls)
    if len(present) and present.str.contains(r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d").all():
        return Field(column.name, "time", nulls)
    distinct = present.unique().sort()
    # a set is only worth writing down when every value came back often: otherwise tomorrow brings a new one
    if len(present) >= 100 and len(distinct) <= 20 and present.value_counts().get_column("count").min() >= 10:  # type: ignore[operator]
        return Field(column.name, "str", nulls, values=tuple(distinct.to_list()))
    return Field(column.name, "str", nulls)


def _infer_column(column: pl.Series, rows: int) -> tuple[str, str]:
    field = infer_field(column)
    why = []
    if field.minimum is not None or field.maximum is not None:
        numbers = column.drop_nulls().cast(float)
        finite = numbers.filter(numbers.is_finite())
        why.append(f"seen {_plain(float(finite.min()))} to {_plain(float(finite.max()))}, widened")  # type: ignore[arg-type]
    if field.values:
        why.append(f"{len(field.values)} values, each seen often")
    elif field.type == "str":
        why.append(f"{column.n_unique()} different values")
    nulls = column.null_count()
    why.append(f"{nulls} of {rows} missing" if nulls else "never missing")
    name = column.name if re.fullmatch(r"[A-Za-z0-9_-]+", column.name) else _quoted(column.name)
    return f"{name} = {_quoted(column_text(field))}", ", ".join(why)


def _tolerant(low: float, high: float, *, whole: bool) -> tuple[float, float]:
    """Widen what was seen by half its span, rounded outward to one significant digit of the span."""
    span = high - low or max(abs(high), 1.0)
    step = 10.0 ** math.floor(math.log10(span))
    wide_low, wide_high = (math.floor((low - span / 2) / step) * step, math.ceil((high + span / 2) / step) * step)
    # values that begin at zero are counts, amounts, distances: zero is their floor. 11 °F is just a cold night
    if 0 <= low <= 0.02 * span:
        wide_low = 0.0
    if -0.02 * span <= high <= 0:
        wide_high = 0.0
    digits = max(0, -math.floor(math.log10(step)))
    return (float(math.floor(wide_low)), float(math.ceil(wide_high))) if whole else (round(wide_low, digits), round(wide_high, digits))


def _range(where: str, text: str, word: str) -> tuple[float | None, float | None]:
    match = _RANGE.fullmatch(word)
    if not match or word == "..":
        raise PalanError(f'{where}: "{word}" in "{text}" is not a range', "write 0..100, 0.. or ..100")
    low, high = (float(end) if end is not None else None for end in match.groups())
    if low is not None and high is not None and low > high:
        raise PalanError(f'{where}: the range "{word}" in "{text}" is upside down', f"write {match.group(2)}..{match.group(1)}")
    return low, high


def _band(where: str, text: object) -> tuple[int | None, int | None]:
    if text == "":
        return None, None
    match = re.fullmatch(r"(\d+)?\.\.(\d+)?", text) if isinstance(text, str) else None
    if not match or text == "..":
        raise PalanError(f'{where} rows = {text!r} is not a band of row counts', 'rows = "500..4000", "500.." or "..4000"')
    low, high = (int(end) if end is not None else None for end in match.groups())
    if low is not None and high is not None and low > high:
        raise PalanError(f'{where} rows = "{text}" is upside down', f'rows = "{high}..{low}"')
    return low, high


def _text(where: str, table: Mapping[str, Any], key: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise PalanError(f"{where} {key} must be a text, found {value!r}", f'{key} = "..."')
    return value


def _texts(where: str, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise PalanError(f"{where} {key} must be a list of texts, found {value!r}", f'{key} = ["..."]')
    return tuple(value)


def _one_of(name: str, known: Sequence[str]) -> str:
    """Say the nearest valid word, and all of them while they fit on a line."""
    listed = f"one of {', '.join(known)}" if known and len(known) <= 20 else ""
    return "; ".join(part for part in (nearest(name, known), listed) if part)


def _plain(number: float | None) -> str:
    return "" if number is None else f"{number:.10g}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
