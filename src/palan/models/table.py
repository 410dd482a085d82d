"""Decision tables: CSV in, answers for a batch out, and an exact check for gaps, overlaps and rules that never fire.

    # hit: first
    delay,       origin,   -> offer, -> amount
    >= 180,      ,         hotel,    250
    [15..180),   "EWR,JFK",voucher,  20
    -,           -,        nothing,  0

A cell of an input holds: empty or `-` (anything); `>= 15`, `> 15`, `<= 3`, `< 3`, `= 3`, `!= 3`; `[0..15)` with round
brackets for ends that do not belong; `EWR,JFK` (any of these); `not(EWR,JFK)`; `true`, `false`; `null` (no value).
A condition on a value that is null does not hold, unless it is `null` or `-`. Columns whose name begins with `#` are notes.

Hit policies (OMG, Decision Model and Notation 1.5, §8.2.10): `first` rule in order; `unique` (at most one may fire);
`any` (those that fire must agree); `priority` (the largest number in the column `priority`); `collect` (all, as lists,
or `collect sum`, `min`, `max`, `count` of them).
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from operator import or_
from typing import Any, Literal

import numpy as np
import polars as pl

from palan.core import Field, Schema
from palan.errors import PalanError, nearest
from palan.models.contract import Violation

HITS = ("first", "unique", "any", "priority", "collect")
AGGREGATES = ("sum", "min", "max", "count")
FIRED = "rule"
MOST_FINDINGS = 20
MOST_STEPS = 2_000_000  # about a second
GRAMMAR = "write -, >= 15, < 3, != 3, [0..15), EWR,JFK, not(EWR,JFK), true, false or null"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_COMPARISON = re.compile(r"(<=|>=|!=|<|>|=)\s*(.*)", re.DOTALL)
_INTERVAL = re.compile(rf"([\[(\]]?)\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*([\])\[]?)")
_NEGATION = re.compile(r"not\s*\((.*)\)", re.DOTALL)

Interval = tuple[float, bool, float, bool]
"""low, whether low belongs, high, whether high belongs."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One condition. Of `intervals`, `texts` and `flag` those are set that the cell can be read as."""

    any: bool = False
    null: bool = False
    flag: bool | None = None
    intervals: tuple[Interval, ...] | None = None
    texts: frozenset[str] | None = None
    negated: bool = False


ANY = Cell(any=True)


@dataclass(frozen=True, slots=True)
class Rule:
    line: int
    cells: tuple[Cell, ...]
    outputs: tuple[Any, ...]
    priority: float = 0.0


@dataclass(frozen=True, slots=True)
class Table:
    """A parsed decision table. Rules are numbered from 1 in their order in the file."""

    name: str
    hit: str
    aggregate: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rules: tuple[Rule, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.rules)


def parse(data: bytes | str, name: str = "table.csv") -> Table:
    """Read a decision table.

    Raises:
        PalanError: the file is empty or no table, or a cell cannot be read; line and column are named.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
    except UnicodeDecodeError as error:
        raise PalanError(f"{name} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from error
    hit, aggregate = "first", ""
    lines = text.splitlines(keepends=True)
    skipped = 0
    while lines and (not lines[0].strip(" \t\r\n,;") or lines[0].lstrip('" ').startswith("#")):
        head = lines.pop(0).strip(" \t\r\n,;\"")
        skipped += 1
        found = re.fullmatch(r"#\s*hit\s*:\s*(\w+)(?:\s+(\w+))?", head)
        if found:
            hit, aggregate = found[1].lower(), (found[2] or "").lower()
            if hit not in HITS:
                raise PalanError(f"{name} line {skipped}: unknown hit policy {found[1]!r}", nearest(hit, HITS) or f"one of {', '.join(HITS)}")
            if aggregate and (hit != "collect" or aggregate not in AGGREGATES):
                raise PalanError(f"{name} line {skipped}: {hit} cannot be followed by {aggregate!r}", f"collect may be followed by {', '.join(AGGREGATES)}")
    reader = csv.reader(io.StringIO("".join(lines)), skipinitialspace=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells) and not (rows and cells[0].startswith("#")):
                rows.append((skipped + reader.line_num, cells))
    except csv.Error as error:
        raise PalanError(f"{name} line {skipped + reader.line_num}: {error}", "close each quote") from error
    if not rows:
        raise PalanError(f"{name} is empty", "its first line names the inputs, then the outputs as -> name")
    header = rows[0][1]
    inputs, outputs, ranked = _columns(name, rows[0][0], header, hit)
    if len(rows) == 1:
        raise PalanError(f"{name} has no rule", "add a line below the header")
    for line, cells in rows[1:]:
        if len(cells) != len(header):
            raise PalanError(f"{name} line {line} has {len(cells)} cells, the header has {len(header)}", 'put a cell with commas in quotes: "EWR,JFK"')
    conditions = [_read_column(name, header[i], [(line, cells[i]) for line, cells in rows[1:]]) for i in inputs]
    answers = [_outputs([cells[i] for _, cells in rows[1:]]) for i in outputs]
    if aggregate in ("sum", "min", "max"):
        for i, column in zip(outputs, answers, strict=True):
            if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in column):
                raise PalanError(f"{name}: collect {aggregate} needs numbers in {header[i]!r}", "write a number in each cell, or use collect")
    rules = tuple(
        Rule(
            line,
            tuple(column[r] for column in conditions),
            tuple(column[r] for column in answers),
            _priority(name, line, cells[ranked]) if ranked is not None else 0.0,
        )
        for r, (line, cells) in enumerate(rows[1:])
    )
    return Table(name, hit, aggregate, tuple(header[i] for i in inputs), tuple(header[i][2:].strip() for i in outputs), rules)


def _columns(name: str, line: int, header: list[str], hit: str) -> tuple[list[int], list[int], int | None]:
    """Return which cells of a line are inputs, which outputs, and which the priority."""
    outputs = [i for i, cell in enumerate(header) if cell.startswith("->")]
    ranked = next((i for i, cell in enumerate(header) if cell == "priority"), None) if hit == "priority" else None
    inputs = [i for i, cell in enumerate(header) if i not in outputs and i != ranked and not cell.startswith("#")]
    if not outputs:
        raise PalanError(f"{name} line {line} names no output", "write at least one column as -> name")
    if hit == "priority" and ranked is None:
        raise PalanError(f"{name} has hit policy priority but no column of that name", "add the column priority with a number for each rule")
    names = [header[i] for i in inputs] + [header[i][2:].strip() for i in outputs]
    for i, column in enumerate(names):
        if not column:
            raise PalanError(f"{name} line {line} has a column without a name", "name each column, or begin a column of notes with #")
        if column in names[:i]:
            raise PalanError(f"{name} line {line} names {column!r} twice", "rename one of them")
    if FIRED in names[len(inputs) :]:
        raise PalanError(f"{name} line {line}: an output cannot be called {FIRED!r}", "that column tells which rule fired; choose another name")
    return inputs, outputs, ranked


def _priority(name: str, line: int, cell: str) -> float:
    if not re.fullmatch(_NUMBER, cell):
        raise PalanError(f"{name} line {line}, column priority: {cell!r} is not a number", "the largest number wins")
    return float(cell)


def _read_column(name: str, column: str, cells: Sequence[tuple[int, str]]) -> list[Cell]:
    read = []
    for line, cell in cells:
        try:
            read.append(read_cell(cell))
        except ValueError as error:
            raise PalanError(f"{name} line {line}, column {column}: {error}", GRAMMAR) from error
    conditions = [(line, text, cell) for (line, text), cell in zip(cells, read, strict=True) if not (cell.any or cell.null)]
    if any(all(getattr(cell, form) is not None for _, _, cell in conditions) for form in ("flag", "intervals", "texts")):
        return read
    by_number = [cell.intervals is not None for _, _, cell in conditions]
    odd = by_number.index(not by_number[0]) if len(set(by_number)) == 2 else 0
    line, text, _ = conditions[odd]
    raise PalanError(f"{name} line {line}, column {column}: {text!r} does not go with the other cells, which are {'numbers' if by_number[0] else 'text'}", GRAMMAR)


def read_cell(text: str) -> Cell:
    """Read one condition.

    Raises:
        ValueError: it cannot be read; the message says why.
    """
    if text in ("", "-"):
        return ANY
    if text == "null":
        return Cell(null=True)
    if text in ("true", "false"):
        return Cell(flag=text == "true", texts=frozenset([text]))
    if found := _INTERVAL.fullmatch(text):
        low, high = float(found[2]), float(found[3])
        closed = found[1] in ("[", ""), found[4] in ("]", "")
        if low > high or (low == high and not all(closed)):
            raise ValueError(f"{text!r} holds no number")
        return Cell(intervals=((low, closed[0], high, closed[1]),))
    if ".." in text and re.match(r"[\[\](]", text):
        raise ValueError(f"cannot read the interval {text!r}")
    if found := _COMPARISON.fullmatch(text):
        return _comparison(found[1], found[2].strip())
    if found := _NEGATION.fullmatch(text):
        return _negate(_literals(found[1]))
    return _literals(text)


def _comparison(sign: str, text: str) -> Cell:
    if sign in ("=", "!="):
        literal = _literals(text)
        return _negate(literal) if sign == "!=" else literal
    if not re.fullmatch(_NUMBER, text):
        raise ValueError(f"{text!r} after {sign} is not a number")
    number = float(text)
    high = sign in (">", ">=")
    return Cell(intervals=((number, sign == ">=", math.inf, False) if high else (-math.inf, False, number, sign == "<="),))


def _literals(text: str) -> Cell:
    try:
        literals = [word.strip() for words in csv.reader(text.splitlines(), skipinitialspace=True) for word in words]
    except csv.Error as error:
        raise ValueError(f"cannot read {text!r}: {error}") from error
    if not literals or not all(literals):
        raise ValueError(f"{text!r} has an empty word")
    if bad := next((word for word in literals if any(sign in word for sign in "<>=") or ".." in word), ""):
        raise ValueError(f"cannot read {bad!r}")
    numbers = all(re.fullmatch(_NUMBER, word) for word in literals)
    points = tuple((float(word), True, float(word), True) for word in literals) if numbers else None
    return Cell(intervals=points, texts=frozenset(literals))


def _negate(cell: Cell) -> Cell:
    intervals = None
    if cell.intervals is not None:
        points = sorted(low for low, _, _, _ in cell.intervals)
        edges = [-math.inf, *points, math.inf]
        intervals = tuple((a, False, b, False) for a, b in pairwise(edges))
    return Cell(intervals=intervals, texts=cell.texts, negated=True)


def _outputs(cells: Sequence[str]) -> list[Any]:
    """Return a column of outputs as numbers or booleans where all are; empty cells are null."""
    told = [cell for cell in cells if cell]
    if told and all(re.fullmatch(r"[-+]?\d+", cell) for cell in told):
        return [int(cell) if cell else None for cell in cells]
    if told and all(re.fullmatch(_NUMBER, cell) for cell in told):
        return [float(cell) if cell else None for cell in cells]
    if told and all(cell in ("true", "false") for cell in told):
        return [cell == "true" if cell else None for cell in cells]
    return [cell or None for cell in cells]


def condition(cell: Cell, column: str, dtype: pl.DataType, table: str = "the table") -> pl.Expr:
    """Return the Polars expression of a condition on a column of this type.

    Raises:
        PalanError: the cell cannot be a condition on this type.
    """
    value = pl.col(column)
    if cell.any:
        return pl.lit(True)
    if cell.null:
        return value.is_null()
    if dtype == pl.Boolean and cell.flag is not None:
        return (value == cell.flag).fill_null(False)
    if (dtype.is_numeric() or dtype == pl.Null) and cell.intervals is not None:
        parts = [
            (value >= low if low_in else value > low) & (value <= high if high_in else value < high)
            for low, low_in, high, high_in in cell.intervals
        ]
        # Polars orders NaN above every number, but it is no number at all
        numbers = value.is_not_nan() if dtype.is_float() else pl.lit(True)
        return (reduce(or_, parts) & numbers).fill_null(False)
    if (dtype in (pl.String, pl.Categorical, pl.Null) or isinstance(dtype, pl.Enum)) and cell.texts is not None:
        inside = value.cast(pl.String).is_in(sorted(cell.texts))
        return (~inside if cell.negated else inside).fill_null(False)
    wanted = "true or false" if cell.flag is not None else "a number" if cell.intervals is not None else "text"
    raise PalanError(f"{table} compares {column!r} with {wanted}, but the column is of type {dtype}", "correct the cells, or the type of the column in its contract")


def _fired(table: Table, rows: pl.DataFrame) -> Iterator[np.ndarray[Any, np.dtype[np.bool_]]]:
    """Yield for each rule in order which rows it fires for."""
    missing = [name for name in table.inputs if name not in rows.columns]
    if missing:
        raise PalanError(f"{table.name} needs the column {missing[0]!r}", nearest(missing[0], rows.columns) or f"the rows have {', '.join(rows.columns)}")
    keys = list(dict.fromkeys((name, cell) for rule in table.rules for name, cell in zip(table.inputs, rule.cells, strict=True) if not cell.any))
    # each distinct condition is computed once, however many rules share it
    columns = rows.select(condition(cell, name, rows.schema[name], table.name).alias(str(i)) for i, (name, cell) in enumerate(keys)) if keys else None
    holds = {key: columns[str(i)].to_numpy() for i, key in enumerate(keys)} if columns is not None else {}
    everywhere = np.ones(rows.height, dtype=np.bool_)
    for rule in table.rules:
        mask = everywhere
        for name, cell in zip(table.inputs, rule.cells, strict=True):
            if not cell.any:
                mask = mask & holds[name, cell]
        yield mask


def decide(table: Table, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the outputs of the rules that fire, a row each, and in the column `rule` which one (a list for collect).

    A row for which no rule fires, or more than one under `unique`, has nulls: see `unsettled`.

    Raises:
        PalanError: a column that the table needs is missing or of another type.
    """
    if table.hit == "collect":
        return _collect(table, rows)
    chosen = np.full(rows.height, -1, dtype=np.int64)
    clashes = np.zeros(rows.height, dtype=np.bool_)
    priority = np.array([rule.priority for rule in table.rules] + [-math.inf])
    for number, mask in enumerate(_fired(table, rows)):
        if table.hit == "priority":
            chosen[mask & (priority[chosen] < priority[number])] = number
        else:
            clashes |= mask & (chosen >= 0)
            chosen[mask & (chosen < 0)] = number
    if table.hit == "unique":
        chosen[clashes] = -1
    place = np.where(chosen < 0, len(table), chosen)
    outputs = {
        name: pl.Series(name, [rule.outputs[i] for rule in table.rules] + [None]).gather(place) for i, name in enumerate(table.outputs)
    }
    return pl.DataFrame({**outputs, FIRED: pl.Series(FIRED, [*range(1, len(table) + 1), None], dtype=pl.Int64).gather(place)})


def _collect(table: Table, rows: pl.DataFrame) -> pl.DataFrame:
    hits: list[list[int]] = [[] for _ in range(rows.height)]
    for number, mask in enumerate(_fired(table, rows)):
        for row in np.flatnonzero(mask):
            hits[row].append(number)
    columns: dict[str, pl.Series] = {}
    for i, name in enumerate(table.outputs):
        values = [rule.outputs[i] for rule in table.rules]
        dtype = pl.Series(values).dtype
        lists = pl.Series(name, [[values[h] for h in row] for row in hits], dtype=pl.List(dtype))
        columns[name] = _aggregated(lists, table.aggregate)
    return pl.DataFrame({**columns, FIRED: pl.Series(FIRED, [[h + 1 for h in row] for row in hits], dtype=pl.List(pl.Int64))})


def _aggregated(lists: pl.Series, how: str) -> pl.Series:
    if how == "sum":
        return lists.list.sum()
    if how == "min":
        return lists.list.min()
    if how == "max":
        return lists.list.max()
    return lists.list.len().cast(pl.Int64) if how == "count" else lists


def unsettled(table: Table, rows: pl.DataFrame) -> list[Violation]:
    """Return the rows that the table does not settle: no rule fires, or several where the hit policy forbids it."""
    count = np.zeros(rows.height, dtype=np.int64)
    first = np.full(rows.height, -1, dtype=np.int64)
    differ = np.zeros(rows.height, dtype=np.bool_)
    for number, mask in enumerate(_fired(table, rows)):
        agree = np.array([rule.outputs == table.rules[number].outputs for rule in table.rules] + [True])
        differ |= mask & ~agree[first]
        count += mask
        first[mask & (first < 0)] = number
    found = [_about("a rule fires for every row", count == 0, rows, table.inputs)] if table.hit != "collect" else []
    if table.hit == "unique":
        found.append(_about("only one rule fires for a row", count > 1, rows, table.inputs))
    if table.hit == "any":
        found.append(_about("rules that fire for the same row agree", differ, rows, table.inputs))
    return [violation for violation in found if violation is not None]


def _about(rule: str, broken: np.ndarray[Any, np.dtype[np.bool_]], rows: pl.DataFrame, inputs: Sequence[str]) -> Violation | None:
    if not broken.any():
        return None
    row = int(broken.argmax())
    example = ", ".join(f"{name}={value!r}" for name, value in rows.select(inputs).row(row, named=True).items()) if inputs else ""
    return Violation(rule, f"row {row}", float(broken.sum()), f"not for {int(broken.sum())} of {rows.height} rows, such as {example}")


# --- exact analysis: each input is cut into segments within which no condition changes ---


@dataclass(frozen=True, slots=True)
class _Axis:
    """One input of the domain: a sample value and a label of each segment, and which rules accept it (rules x segments)."""

    name: str
    samples: list[Any]
    labels: list[str]
    accepts: np.ndarray[Any, np.dtype[np.bool_]]


def check_table(table: Table, domain: Schema) -> list[dict[str, Any]]:
    """Return what is wrong with a table over the declared domain, exactly, each with an input that shows it.

    A finding is `{"kind", "rules", "lines", "example", "text"}`; `rules` are numbers from 1. Kinds are `gap` (no rule fires),
    `overlap` (unique: two fire; any, priority: two fire that disagree and neither outranks the other), `shadowed` (rules
    before it, or of higher priority, always win), `dead` (no input of the domain satisfies it) and `unknown` (a search
    was given up after two million steps). At most 20 of each kind are listed. An input that the domain does not
    name may hold anything that its cells can be compared with.

    Raises:
        PalanError: a cell cannot be compared with the type that the domain declares.
    """
    fields = {field.name: field for field in domain.fields}
    axes = [_axis(table, i, fields.get(name)) for i, name in enumerate(table.inputs)]
    findings: list[dict[str, Any]] = []
    alive = np.ones(len(table), dtype=np.bool_)
    for axis in axes:
        alive &= axis.accepts.any(axis=1)
    for r in np.flatnonzero(~alive)[:MOST_FINDINGS]:
        empty = next(axis.name for axis in axes if not axis.accepts[r].any())
        findings.append(_finding(table, "dead", [int(r)], {}, f"can never fire: no {empty} of the domain satisfies it"))
    if table.hit != "collect":
        findings += _gaps(table, axes)
    overlaps = _overlaps(axes, len(table)) & alive[:, None] & alive[None, :]
    findings += _clashes(table, axes, overlaps)
    if table.hit in ("first", "priority"):
        findings += _shadowed(table, axes, overlaps, alive)
    return findings


def _finding(table: Table, kind: str, rules: list[int], example: dict[str, Any], text: str) -> dict[str, Any]:
    lines = [table.rules[r].line for r in rules]
    who = " and ".join(f"rule {r + 1} (line {line})" for r, line in zip(rules, lines, strict=True))
    return {"kind": kind, "rules": [r + 1 for r in rules], "lines": lines, "example": example, "text": f"{who} {text}".strip()}


def _axis(table: Table, i: int, field: Field | None) -> _Axis:
    name = table.inputs[i]
    cells = [rule.cells[i] for rule in table.rules]
    kind = _kind(table, name, cells, field)
    nullable = field.nullable if field is not None else any(cell.null for cell in cells)
    if kind == "number":
        samples, labels = _number_segments(cells, field)
    elif kind == "flag":
        samples, labels = [False, True], ["false", "true"]
    else:
        samples, labels = _text_segments(cells, field)
    values = np.array(samples, dtype=float if kind == "number" else object)
    distinct = {cell: _accepts(cell, kind, values, nullable) for cell in dict.fromkeys(cells)}
    if nullable:
        samples, labels = [*samples, None], [*labels, "null"]
    return _Axis(name, samples, labels, np.stack([distinct[cell] for cell in cells]))


def _kind(table: Table, name: str, cells: Sequence[Cell], field: Field | None) -> Literal["number", "text", "flag"]:
    told = [cell for cell in cells if not (cell.any or cell.null)]
    as_flag, as_number, as_text = (all(getattr(cell, form) is not None for cell in told) for form in ("flag", "intervals", "texts"))
    declared = field.type if field is not None else ""
    possible: dict[str, tuple[bool, Literal["number", "text", "flag"]]] = {
        "int": (as_number, "number"),
        "float": (as_number, "number"),
        "bool": (as_flag, "flag"),
        "str": (as_text, "text"),
    }
    if declared in possible:
        fits, kind = possible[declared]
        if not fits:
            raise PalanError(f"{table.name} has cells in {name!r} that cannot be compared with its type {declared}", "correct the cells, or the type in the contract")
        return kind
    return "flag" if told and as_flag else "number" if as_number and told else "text"


def _number_segments(cells: Sequence[Cell], field: Field | None) -> tuple[list[Any], list[str]]:
    """Return a number in each piece of the line that the ends of all intervals cut, and a label of the piece."""
    low = field.minimum if field is not None and field.minimum is not None else -math.inf
    high = field.maximum if field is not None and field.maximum is not None else math.inf
    whole = field is not None and field.type == "int"
    ends = {end for cell in cells for interval in cell.intervals or () for end in (interval[0], interval[2])} | {low, high}
    cuts = sorted(end for end in ends if math.isfinite(end) and low <= end <= high)
    samples: list[Any] = []
    labels: list[str] = []

    def between(a: float, b: float) -> None:
        if whole:
            value = math.floor(a) + 1 if math.isfinite(a) else math.ceil(b) - 1 if math.isfinite(b) else 0
            if not a < value < b:
                return
            samples.append(int(value))
        else:
            samples.append((a + b) / 2 if math.isfinite(a) and math.isfinite(b) else a + 1.0 if math.isfinite(a) else b - 1.0 if math.isfinite(b) else 0.0)
        labels.append(f"({a:g}..{b:g})")

    edges = [*([low] if low == -math.inf else []), *cuts, *([high] if high == math.inf else [])]
    for place, edge in enumerate(edges):
        if math.isfinite(edge) and (not whole or edge == int(edge)):
            samples.append(int(edge) if whole else edge)
            labels.append(f"{edge:g}")
        if place + 1 < len(edges):
            between(edge, edges[place + 1])
    return samples, labels


def _text_segments(cells: Sequence[Cell], field: Field | None) -> tuple[list[Any], list[str]]:
    if field is not None and field.values:
        return list(field.values), list(field.values)
    named = sorted({text for cell in cells for text in cell.texts or ()})
    other = "other"
    while other in named:
        other += "_"
    return [*named, other], [*named, "anything else"]


def _accepts(cell: Cell, kind: str, values: np.ndarray[Any, Any], nullable: bool) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which segments, sorted by their sample values (and null, last, where it is allowed), satisfy the cell."""
    inside = np.zeros(len(values) + nullable, dtype=np.bool_)
    if cell.any or cell.null:
        inside[:] = cell.any
        inside[len(values) :] = True
    elif kind == "number":
        for low, low_in, high, high_in in cell.intervals or ():
            start = np.searchsorted(values, low, side="left" if low_in else "right")
            inside[start : np.searchsorted(values, high, side="right" if high_in else "left")] = True
    elif kind == "flag":
        inside[: len(values)] = values == cell.flag
    else:
        inside[: len(values)] = [(value in (cell.texts or ())) != cell.negated for value in values]
    return inside


def _masks(accepts: np.ndarray[Any, np.dtype[np.bool_]]) -> list[int]:
    """Return for each segment the rules that accept it, as the bits of one integer."""
    return [int.from_bytes(packed.tobytes(), "little") for packed in np.packbits(accepts.T, axis=1, bitorder="little")]


def _uncovered(choices: Sequence[dict[int, int]], active: int, spend: Callable[[int], bool]) -> list[int | None]:
    """Return a box (a segment for each axis, None where it does not matter) that none of the active rules accepts.

    One is found if there is any, unless `spend`, which is told the work of each step, says that it is too much; else
    the list is empty.

    `choices` gives for each axis its distinct masks of rules with a segment that has it. Axes are gone through in turn,
    the rules that still hold are a bit mask, and a rule that accepts all of what remains ends the search there.
    """
    open_ended = [0] * (len(choices) + 1)
    open_ended[-1] = -1
    for depth in range(len(choices) - 1, -1, -1):
        everywhere = open_ended[depth + 1]
        for mask in choices[depth]:
            everywhere &= mask
        open_ended[depth] = everywhere
    seen: set[tuple[int, int]] = set()

    def search(depth: int, left: int, path: list[int | None]) -> list[int | None]:
        if left & open_ended[depth] or (depth, left) in seen:
            return []
        seen.add((depth, left))
        if not left:
            return [*path, *[None] * (len(choices) - depth)]
        if not spend(len(choices[depth])):
            return []
        nexts: dict[int, int] = {}
        for mask, segment in choices[depth].items():
            nexts.setdefault(mask & left, segment)
        tried: list[int] = []
        for mask in sorted(nexts, key=int.bit_count):
            # what more rules accept is covered if what fewer of them accept is
            if any(few & mask == few for few in tried):
                continue
            tried.append(mask)
            if box := search(depth + 1, mask, [*path, nexts[mask]]):
                return box
        return []

    return search(0, active, [])


def _budget(most: int = MOST_STEPS) -> Callable[[int], bool]:
    """Return a function that is told of work done and says whether there may be more."""
    done = [0]

    def spend(steps: int) -> bool:
        done[0] += steps
        return done[0] <= most

    return spend


def _example(axes: Sequence[_Axis], segments: Sequence[int]) -> dict[str, Any]:
    return {axis.name: axis.samples[s] for axis, s in zip(axes, segments, strict=True)}


def _gaps(table: Table, axes: Sequence[_Axis]) -> list[dict[str, Any]]:
    """Find the gaps one by one, each as wide as it is: what was found is covered for the search of the next."""
    rules = masks = [_masks(axis.accepts) for axis in axes]
    # axes that tell few rules apart come first: the search then branches late
    order = sorted(range(len(axes)), key=lambda i: len(set(masks[i])))
    spend = _budget()
    findings: list[dict[str, Any]] = []
    while len(findings) < MOST_FINDINGS:
        choices = [{mask: s for s, mask in reversed(list(enumerate(masks[i])))} for i in order]
        box = _uncovered(choices, (1 << (len(table) + len(findings))) - 1, spend)
        if not box:
            break
        wide = _widen(rules, [box[order.index(i)] for i in range(len(axes))])
        where = [f"{axis.name} {_told(axis, places)}" for axis, places in zip(axes, wide, strict=True) if len(places) < len(axis.samples)]
        findings.append(_finding(table, "gap", [], _example(axes, [places[0] for places in wide]), f"no rule fires for {', '.join(where) or 'anything'}"))
        found = 1 << (len(table) + len(findings) - 1)
        masks = [[mask | found if s in places else mask for s, mask in enumerate(each)] for each, places in zip(masks, wide, strict=True)]
    if not findings and not spend(0):
        findings.append(_finding(table, "unknown", [], {}, f"the search for gaps was given up after {MOST_STEPS} steps: add a last rule of - only"))
    return findings


def _widen(masks: Sequence[Sequence[int]], box: Sequence[int | None]) -> list[list[int]]:
    """Return the segments of each axis to which an uncovered box reaches: no rule accepts any point of it."""
    wide = [list(range(len(each))) if s is None else [s] for each, s in zip(masks, box, strict=True)]
    for i, each in enumerate(masks):
        others = -1
        for j, places in enumerate(wide):
            if j != i:
                others &= reduce(or_, (masks[j][place] for place in places))
        wide[i] = [place for place, mask in enumerate(each) if not mask & others]
    return wide


def _told(axis: _Axis, places: Sequence[int]) -> str:
    """Name segments of an axis, numbers that touch as one stretch: "[15..20) or above 30"."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][-1] == place - 1 and all(type(axis.samples[each]) in (int, float) for each in (place, place - 1)):
            runs[-1].append(place)
        else:
            runs.append([place])
    return " or ".join(_stretch(axis.labels[run[0]], axis.labels[run[-1]]) for run in runs)


def _stretch(first: str, last: str) -> str:
    """Join the labels of the first and the last segment of a stretch."""
    if first == last and ".." not in first:
        return first
    low = first[: first.index("..")] if ".." in first else f"[{first}"
    high = last[last.index("..") + 2 :] if ".." in last else f"{last}]"
    if low == "(-inf":
        return f"{'up to' if high.endswith(']') else 'below'} {high[:-1]}"
    if high == "inf)":
        return f"{'from' if low.startswith('[') else 'above'} {low[1:]}"
    return f"{low}..{high}"


def _overlaps(axes: Sequence[_Axis], rules: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which pairs of rules share an input."""
    shared = np.ones((rules, rules), dtype=np.bool_)
    for axis in axes:
        accepts = axis.accepts.astype(np.float32)
        shared &= accepts @ accepts.T > 0
    return shared


def _clashes(table: Table, axes: Sequence[_Axis], overlaps: np.ndarray[Any, np.dtype[np.bool_]]) -> list[dict[str, Any]]:
    if table.hit not in ("unique", "any", "priority"):
        return []
    findings = []
    for a, b in np.argwhere(np.triu(overlaps, 1)):
        first, second = table.rules[a], table.rules[b]
        if table.hit != "unique" and first.outputs == second.outputs:
            continue
        if table.hit == "priority" and first.priority != second.priority:
            continue
        both = [int((axis.accepts[a] & axis.accepts[b]).argmax()) for axis in axes]
        text = {"unique": "both fire", "any": "both fire and disagree", "priority": "both fire with the same priority and disagree"}[table.hit]
        findings.append(_finding(table, "overlap", [int(a), int(b)], _example(axes, both), text))
        if len(findings) == MOST_FINDINGS:
            break
    return findings


def _shadowed(
    table: Table,
    axes: Sequence[_Axis],
    overlaps: np.ndarray[Any, np.dtype[np.bool_]],
    alive: np.ndarray[Any, np.dtype[np.bool_]],
) -> list[dict[str, Any]]:
    rank = sorted(range(len(table)), key=lambda r: (-table.rules[r].priority, r))
    place = np.empty(len(table), dtype=np.int64)
    place[rank] = np.arange(len(table))
    masks = [_masks(axis.accepts) for axis in axes]
    findings = []
    spend = _budget()
    for r in range(len(table)):
        before = np.flatnonzero(overlaps[r] & (place < place[r])) if alive[r] else np.empty(0, dtype=np.int64)
        if not len(before):
            continue
        inside = [np.flatnonzero(axis.accepts[r]) for axis in axes]
        alone = before
        for axis, segments in zip(axes, inside, strict=True):
            alone = alone[axis.accepts[np.ix_(alone, segments)].all(axis=1)]
        if len(alone):
            winners = [int(alone[0])]
        else:
            rivals = sum(1 << b for b in before.tolist())
            choices = [{mask[s] & rivals: s for s in segments.tolist()} for mask, segments in zip(masks, inside, strict=True)]
            if _uncovered(choices, rivals, spend):
                continue  # somewhere it is the first to hold
            if not spend(0):
                findings.append(_finding(table, "unknown", [r], {}, f"and those after it: the search for rules that never win was given up after {MOST_STEPS} steps"))
                break
            winners = [int(b) for b in before]
        example = _example(axes, [int(axis.accepts[r].argmax()) for axis in axes])
        names = ", ".join(str(w + 1) for w in winners[:5]) + (" ..." if len(winners) > 5 else "")
        findings.append(_finding(table, "shadowed", [r], example, f"never wins: rule {names} {'comes' if table.hit == 'first' else 'has priority'} before it wherever it holds"))
        if len(findings) == MOST_FINDINGS:
            break
    return findings
