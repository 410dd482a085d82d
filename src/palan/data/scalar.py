"""Compile Polars expressions to one plain Python function of one row, which answers what the batch answers.

A name stands for a number of a row as Polars keeps it: a date is its days, a time its units since 1970, so that the
arithmetic is that of the batch. Types come from Polars itself, which is asked for the type of every node.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from ctypes import c_float
from datetime import UTC, date, datetime, timedelta
from typing import Any, NoReturn
from zoneinfo import ZoneInfo

import msgspec
import polars as pl

from palan.errors import PalanError

Node = Any
"""One node of an expression as Polars writes it in JSON."""

FALLBACK = 400.0
"""About what one row through Polars costs, in microseconds."""

BATCH = 2_000
"""From as many rows on Polars itself is used: below, one row after the other was quicker in benchmarks/bench_features.py."""

_EPOCH = date(1970, 1, 1).toordinal()
_AWARE = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE = _AWARE.replace(tzinfo=None)  # Polars has times without a zone
_SECOND = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
# What Unicode calls white space: str.strip() would take four control characters more.
_WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
_NEWLY_CASED = "\u019b\u0264\ua7d3\ua7d5"  # letters that got a capital after Unicode 14, which Python 3.11 has
_COMPARE = {"Eq": "==", "NotEq": "!=", "Lt": "<", "LtEq": "<=", "Gt": ">", "GtEq": ">="}
_ARITHMETIC = {"Plus": "+", "Minus": "-", "Multiply": "*"}
_INTEGER = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# Only what Python's re and the Rust crate regex read alike; on text beyond ASCII Polars is asked anyway.
_PLAIN_PATTERN = re.compile(r"(?:[A-Za-z0-9 _,:;=<>@/%!'\"-]|\\[dDwW.\\^$|()\[\]{}*+?-]|\[\^?(?:[A-Za-z0-9_ .,:;]|[a-z]-[a-z]|[0-9]-[0-9]|[A-Z]-[A-Z])+\]|\.|\^|\$|\((?!\?)|\)|\||[*+?](?![*+])|\{[0-9]+(?:,[0-9]*)?\})*")


class Deviates(Exception):
    """This one row leaves what Python computes as Polars does: Polars is asked."""


class Refused(Exception):
    """A node that has no compiled form: its name, and why."""

    def __init__(self, node: str, why: str = "has no compiled form") -> None:
        super().__init__(f"{node} {why}")
        self.node = node


class _Value(msgspec.Struct, frozen=True):
    code: str
    dtype: pl.DataType
    nullable: bool
    constant: bool = False
    value: Any = None


class Scalar(msgspec.Struct, frozen=True):
    """Several expressions as one function of a row.

    `row` always answers: what is in `refused` (name -> why) goes through Polars, at some 400 µs a row.
    """

    expressions: Mapping[str, pl.Expr]
    schema: Mapping[str, pl.DataType]
    dtypes: Mapping[str, pl.DataType]
    columns: tuple[str, ...]  # what a row must have
    refused: Mapping[str, str]
    source: str
    function: Callable[[Mapping[str, Any]], dict[str, Any]]

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the value of each expression for one row (name -> plain Python value of the schema's type)."""
        try:
            found = self.function(row)
        except (Deviates, ArithmeticError, ValueError):
            return self._asked(row, 4)
        except (KeyError, TypeError, AttributeError) as error:
            missing = [name for name in self.columns if name not in row]
            if missing:
                raise PalanError(f'the row has no column "{missing[0]}"', f"the features need {', '.join(self.columns)}") from None
            raise PalanError(f"the row does not fit the schema: {error}", "give each column the type that the schema says") from None
        if not self.refused:
            return found
        asked = self._asked(row, 1)
        return {name: asked[name] if name in self.refused else found[name] for name in self.expressions}

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the values of many rows: from `BATCH` on, or where one goes through Polars anyway, as a batch."""
        if len(rows) < (2 if self.refused else BATCH):
            return [self.row(row) for row in rows]
        frame = pl.DataFrame([[row[name] for row in rows] for name in self.columns], schema={name: self.schema[name] for name in self.columns}, orient="col")
        return self.batch(frame.lazy()).select(list(self.expressions)).collect().to_dicts()

    def batch(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """Return the frame with a column for each expression."""
        return with_features(frame, self.expressions)

    def _asked(self, row: Mapping[str, Any], copies: int) -> dict[str, Any]:
        try:
            frame = pl.DataFrame({name: [row[name]] * copies for name in self.columns}, schema={name: self.schema[name] for name in self.columns})
            return self.batch(frame.lazy()).select(list(self.expressions)).collect().row(0, named=True)
        except (pl.exceptions.PolarsError, TypeError, OverflowError) as error:
            raise PalanError(f"a feature cannot be computed from this row: {str(error).splitlines()[0]}", "see the row's values") from None


def with_features(frame: pl.LazyFrame, expressions: Mapping[str, pl.Expr]) -> pl.LazyFrame:
    """Return the frame with the expressions as columns, each of which may read those before it."""
    group: dict[str, pl.Expr] = {}
    for name, expression in expressions.items():
        if set(expression.meta.root_names()) & set(group):
            frame, group = frame.with_columns(**group), {}
        group[name] = expression
    return frame.with_columns(**group)


def compile_rows(expressions: Mapping[str, pl.Expr], schema: Mapping[str, pl.DataType], *, required: Sequence[str] = (), strict: bool = False) -> Scalar:
    """Compile expressions, of which each may read those before it by name, into one function of a row.

    Args:
        expressions: name -> expression, in order.
        schema: the columns of a row and their types.
        required: columns that are never null, which makes the function shorter.
        strict: raise for what cannot be compiled, instead of leaving it to Polars.

    Raises:
        PalanError: an expression that Polars refuses; with `strict` one that has no compiled form.
    """
    compiler = _Compiler(schema, frozenset(required))
    for name, expression in expressions.items():
        try:
            compiler.feature(name, expression)
        except Refused as refused:
            if strict:
                raise PalanError(f'the feature "{name}" cannot be compiled: {refused}', f"write it without {refused.node}, or let it go through Polars: some {FALLBACK:.0f} µs a row") from None
            compiler.refused[name] = str(refused)
    columns = tuple(name for name in schema if any(name in expression.meta.root_names() for expression in expressions.values()))
    source, function = compiler.finish()
    return Scalar(dict(expressions), dict(schema), dict(compiler.dtypes), columns, dict(compiler.refused), source, function)


class _Compiler:
    """Writes one line for each distinct node: the same sub-expression twice is one name."""

    def __init__(self, schema: Mapping[str, pl.DataType], required: frozenset[str]) -> None:
        self.schema: dict[str, pl.DataType] = {name: dtype() if isinstance(dtype, type) else dtype for name, dtype in schema.items()}
        self.required = required
        self.lines: list[str] = []
        self.known: dict[str, _Value] = {}
        self.features: dict[str, _Value] = {}
        self.dtypes: dict[str, pl.DataType] = {}
        self.refused: dict[str, str] = {}
        self.names: dict[str, Any] = dict(_HELPERS)
        self.types: dict[str, pl.DataType] = {}

    def feature(self, name: str, expression: pl.Expr) -> None:
        try:
            dtype = pl.LazyFrame(schema=self.schema).select(expression.alias(name)).collect().schema[name]
        except pl.exceptions.PolarsError as error:
            raise PalanError(f'the feature "{name}" does not fit the columns: {str(error).splitlines()[0]}', f"columns: {', '.join(self.schema)}") from None
        self.schema[name] = self.dtypes[name] = dtype
        before = len(self.lines), dict(self.known)
        try:
            self.features[name] = self.fit(self.value(_read(expression)), dtype)
        except Refused:
            del self.lines[before[0] :]
            self.known = before[1]
            raise

    def finish(self) -> tuple[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        answers = ", ".join(f"{name!r}: {self.shown(value)}" for name, value in self.features.items())
        source = "\n    ".join(["def row(r):", *self.lines, f"return {{{answers}}}"]) + "\n"
        exec(compile(source, "<features>", "exec"), self.names)
        return source, self.names["row"]

    # -- naming -------------------------------------------------------------------------------------------------------

    def let(self, code: str, dtype: pl.DataType, nullable: bool) -> _Value:
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {code}")
        return _Value(name, dtype, nullable)

    def bind(self, thing: Any) -> str:
        """Give a constant that is no literal a name that the function reads."""
        name = f"k{len(self.names)}"
        self.names[name] = thing
        return name

    def map(self, dtype: pl.DataType, code: str, *inputs: _Value, nulls: bool = False) -> _Value:
        """Null where an input is null, else the code; `nulls` when the code may give null as well."""
        tests = [f"{each.code} is None" for each in inputs if each.nullable]
        return self.let(f"None if {' or '.join(tests)} else {code}" if tests else code, dtype, bool(tests) or nulls)

    def shown(self, value: _Value) -> str:
        """Write the code that makes a Python value of Polars' own number."""
        kind = value.dtype
        if kind == pl.Date:
            code = f"_date({value.code} + {_EPOCH})"
        elif isinstance(kind, pl.Datetime):
            code = f"_time({value.code}{_micro(kind.time_unit)}{'' if kind.time_zone is None else f', {self.bind(ZoneInfo(kind.time_zone))}'})"
        elif isinstance(kind, pl.Duration):
            code = f"_delta({value.code}{_micro(kind.time_unit)})"
        else:
            return value.code
        return f"None if {value.code} is None else {code}" if value.nullable else code

    # -- nodes --------------------------------------------------------------------------------------------------------

    def dtype(self, node: Node) -> pl.DataType:
        key = _text(node)
        if key not in self.types:
            try:
                typed = pl.LazyFrame(schema=self.schema).select(_expression(node).alias("x"))
                self.types[key] = typed.collect_schema()["x"]
                if typed.collect().schema["x"] != self.types[key]:  # a constant over a Float32 column, in 2.1
                    raise Refused(_name(node), "has one type in Polars' plan and another in its answer")
            except (pl.exceptions.PolarsError, ValueError) as error:
                raise Refused(_name(node), f"is not typed by Polars: {str(error).splitlines()[0]}") from None
        return self.types[key]

    def value(self, node: Node) -> _Value:
        if isinstance(node, dict) and "Alias" in node:
            return self.value(node["Alias"][0])
        key = _text(node)
        if key not in self.known:
            self.known[key] = self.make(node)
        return self.known[key]

    def make(self, node: Node) -> _Value:
        kind, body = _function(node)
        if kind == "Column":
            return self.column(body)
        if kind == "Literal":
            return self.literal(node, body)
        if kind == "BinaryExpr":
            return self.folded(node, [self.value(body["left"]), self.value(body["right"])]) or self.binary(node, body["op"], self.value(body["left"]), self.value(body["right"]))
        if kind == "Ternary":
            return self.ternary(node, body)
        if kind == "Cast":
            return self.cast(self.value(body["expr"]), self.dtype(node), body["options"])
        if kind == "Function":
            return self.call(node, body)
        raise Refused(_name(node))

    def column(self, name: str) -> _Value:
        if name in self.features:
            return self.features[name]
        if name in self.refused:
            raise Refused(f'the feature "{name}"', "goes through Polars itself")
        dtype = self.schema[name]
        reads = _reader(dtype)
        if reads is None:
            raise Refused(f'the column "{name}"', f"has the type {dtype}")
        raw = self.let(f"r[{name!r}]", dtype, name not in self.required)
        missing = "" if name in self.required else f" and {raw.code} is not None"
        plain, read = reads
        if plain:
            # One comparison where the value is as it should be; a whole number in a float column is made one.
            self.lines.append(f"if {raw.code}.__class__ is not {plain}{missing}: {raw.code} = {read}({raw.code})")
        else:
            self.lines.append(f"if {raw.code} is not None: {raw.code} = {read}({raw.code})")
        return raw

    def literal(self, node: Node, body: Node) -> _Value:
        dyn = body.get("Dyn") if isinstance(body, dict) else None
        dtype = self.dtype(node)
        if dyn is not None:
            value = dyn.get("Int", dyn.get("Float", dyn.get("Str")))
            value = float(value) if "Float" in dyn else value
        else:
            if not isinstance(body, dict) or "Scalar" not in body:
                raise Refused("Literal", "of this form has no compiled form")
            name, raw = _function(body["Scalar"])
            if name in {"Date", "Datetime", "Duration"}:
                value = raw if name == "Date" else raw[0]
            else:
                value = pl.select(_expression(node)).item()
        return self.constant(value, dtype)

    def constant(self, value: Any, dtype: pl.DataType) -> _Value:
        if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
            code = f"({value!r})" if isinstance(value, (int, float)) and not isinstance(value, bool) and str(value).startswith("-") else repr(value)
        else:
            code = self.bind(value)
        return _Value(code, dtype, value is None, True, value)

    def folded(self, node: Node, inputs: Sequence[_Value]) -> _Value | None:
        if not all(each.constant for each in inputs):
            return None
        dtype = self.dtype(node)
        if not (dtype.is_numeric() or dtype in (pl.String, pl.Boolean)):
            raise Refused(_name(node), f"of constants gives {dtype}")
        return self.constant(pl.select(_expression(node)).item(), dtype)

    # -- types --------------------------------------------------------------------------------------------------------

    def fit(self, value: _Value, dtype: pl.DataType) -> _Value:
        """Convert as Polars does before it computes: never with a loss but that of a float's digits."""
        have = value.dtype
        if value.constant:
            return self.fit_constant(value, dtype)
        if have == dtype or (have.is_integer() and dtype.is_integer() and _within(have, dtype)) or (have == pl.Float32 and dtype == pl.Float64):
            return _Value(value.code, dtype, value.nullable)
        if have == pl.Boolean and dtype.is_integer():
            return self.map(dtype, f"_int({value.code})", value)
        if dtype == pl.Float64 and (have.is_integer() or have == pl.Boolean):
            return self.map(dtype, f"_float({value.code})", value)
        if dtype == pl.Float32 and (have.is_numeric() or have == pl.Boolean):
            return self.map(dtype, f"{'_single' if have == pl.Float64 else '_single_int'}({value.code})", value)
        raise Refused("conversion", f"from {have} to {dtype} has no compiled form")

    def fit_constant(self, value: _Value, dtype: pl.DataType) -> _Value:
        raw = value.value
        if raw is None or value.dtype == dtype:
            return self.constant(raw, dtype)
        if dtype.is_integer() and isinstance(raw, (int, bool)):
            low, high = _bounds(dtype)
            if not low <= raw <= high:
                raise Refused("Literal", f"{raw} does not fit {dtype}")
            return self.constant(int(raw), dtype)
        if dtype.is_float() and isinstance(raw, (int, float)):
            return self.constant(_single(float(raw)) if dtype == pl.Float32 else float(raw), dtype)
        raise Refused("Literal", f"of {value.dtype} is not read as {dtype}")

    # -- operators ----------------------------------------------------------------------------------------------------

    def binary(self, node: Node, op: str, left: _Value, right: _Value) -> _Value:
        dtype = self.dtype(node)
        if op in _COMPARE:
            return self.compare(node, op, left, right)
        if op in {"And", "Or", "LogicalAnd", "LogicalOr", "Xor"}:
            return self.logic(op, left, right)
        if dtype == pl.String and op == "Plus":
            return self.map(dtype, f"{left.code} + {right.code}", self.text(left), self.text(right))
        if dtype.is_integer():
            return self.whole(op, dtype, self.fit(left, dtype), self.fit(right, dtype))
        if dtype.is_float():
            return self.real(op, dtype, self.fit(left, dtype), self.fit(right, dtype))
        return self.times(op, dtype, left, right)

    def compare(self, node: Node, op: str, left: _Value, right: _Value) -> _Value:
        kinds = (left.dtype, right.dtype)
        sign = _COMPARE[op]
        if any(each.constant and each.value is None for each in (left, right)):
            return self.constant(None, pl.Boolean())
        if any(kind.is_float() for kind in kinds):
            common = self.dtype({"BinaryExpr": {**node["BinaryExpr"], "op": "Plus"}})
            return self.compare_real(sign, self.fit(left, common), self.fit(right, common))
        whole = all(kind.is_integer() for kind in kinds) and (pl.UInt64 not in kinds or kinds[0] == kinds[1])
        if not whole and (kinds[0] != kinds[1] or _reader(kinds[0]) is None):
            raise Refused(f"{kinds[0]} {sign} {kinds[1]}")
        return self.map(pl.Boolean(), f"{left.code} {sign} {right.code}", left, right)

    def compare_real(self, sign: str, left: _Value, right: _Value) -> _Value:
        """Compare in Polars' order, in which NaN equals itself and stands above all."""
        a, b = left.code, right.code
        if sign in {">", ">="}:
            left, right, a, b, sign = right, left, b, a, {">": "<", ">=": "<="}[sign]
        known_a, known_b = (each.constant and each.value == each.value for each in (left, right))
        if sign in {"==", "!="}:
            code = f"{a} == {b}" if known_a or known_b else f"({a} == {b} or ({a} != {a} and {b} != {b}))"
            code = f"not {code}" if sign == "!=" else code
        elif sign == "<":
            code = f"{a} < {b}" if known_b else f"not {b} <= {a}" if known_a else f"({a} < {b} or ({b} != {b} and {a} == {a}))"
        else:
            code = f"{a} <= {b}" if known_b else f"not {b} < {a}" if known_a else f"({a} <= {b} or {b} != {b})"
        return self.map(pl.Boolean(), code, left, right)

    def logic(self, op: str, left: _Value, right: _Value) -> _Value:
        if any(each.dtype not in (pl.Boolean, pl.Null) for each in (left, right)):
            raise Refused(op, "of numbers has no compiled form")
        a, b = left.code, right.code
        if op == "Xor":
            return self.map(pl.Boolean(), f"{a} is not {b}", left, right)
        nullable = left.nullable or right.nullable
        if not nullable:
            return self.let(f"{a} {'and' if 'And' in op else 'or'} {b}", pl.Boolean(), False)
        ends = "False" if "And" in op else "True"
        other = "True" if "And" in op else "False"
        return self.let(f"{ends} if {a} is {ends} or {b} is {ends} else None if {a} is None or {b} is None else {other}", pl.Boolean(), True)

    def whole(self, op: str, dtype: pl.DataType, left: _Value, right: _Value) -> _Value:
        if op in _ARITHMETIC:
            return self.wrapped(self.map(dtype, f"{left.code} {_ARITHMETIC[op]} {right.code}", left, right))
        sign = {"FloorDivide": "//", "Modulus": "%"}.get(op)
        if sign is None:
            raise Refused(op)
        if right.constant and right.value:
            return self.wrapped(self.map(dtype, f"{left.code} {sign} {right.code}", left, right))
        return self.wrapped(self.map(dtype, f"{left.code} {sign} {right.code} if {right.code} else None", left, right, nulls=True))

    def wrapped(self, value: _Value) -> _Value:
        """Bring a whole number back into its type, as a machine's overflow does."""
        low, high = _bounds(value.dtype)
        test = f"{value.code} is not None and " if value.nullable else ""
        self.lines.append(f"if {test}not {low} <= {value.code} <= {high}: {value.code} = ({value.code} - {low}) % {high - low + 1} + {low}")
        return value

    def real(self, op: str, dtype: pl.DataType, left: _Value, right: _Value) -> _Value:
        a, b = left.code, right.code
        if op in _ARITHMETIC:
            code = f"{a} {_ARITHMETIC[op]} {b}"
        elif op in {"TrueDivide", "FloorDivide", "Modulus", "Divide"} and right.constant and right.value is not None:
            # Polars multiplies a column by the reciprocal of a constant, once for each.
            inverse = _divide(1.0, right.value)
            share = f"{a} * {self.constant(_single(inverse) if dtype == pl.Float32 else inverse, dtype).code}"
            share = f"_single({share})" if dtype == pl.Float32 and op != "TrueDivide" else share
            product = f"{b} * _floor({share})"
            code = {"FloorDivide": f"_floor({share})", "Modulus": f"{a} - {f'_single({product})' if dtype == pl.Float32 else product}"}.get(op, share)
        elif op in {"TrueDivide", "Divide"}:
            code = f"({a} / {b} if {b} else _divide({a}, {b}))"
        elif op in {"FloorDivide", "Modulus"}:
            share = f"_single(_divide({a}, {b}))" if dtype == pl.Float32 else f"_divide({a}, {b})"
            product = f"{b} * _floor({share})"
            code = f"_floor({share})" if op == "FloorDivide" else f"{a} - {f'_single({product})' if dtype == pl.Float32 else product}"
        else:
            raise Refused(op)
        return self.map(dtype, self.rounded(code, dtype), left, right)

    def rounded(self, code: str, dtype: pl.DataType) -> str:
        return f"_single({code})" if dtype == pl.Float32 else code

    def times(self, op: str, dtype: pl.DataType, left: _Value, right: _Value) -> _Value:
        kinds = (left.dtype, right.dtype)
        same = all(isinstance(kind, (pl.Datetime, pl.Duration)) and kind.time_unit == getattr(dtype, "time_unit", None) for kind in kinds)
        if op in {"Plus", "Minus"} and same:
            return self.map(dtype, f"_long({left.code} {_ARITHMETIC[op]} {right.code})", left, right)
        if op == "Minus" and left.dtype == pl.Date and right.dtype == pl.Date and isinstance(dtype, pl.Duration):
            return self.map(dtype, f"({left.code} - {right.code}) * {86400 * _SECOND[dtype.time_unit]}", left, right)
        raise Refused(f"{kinds[0]} {op} {kinds[1]}")

    def ternary(self, node: Node, body: Node) -> _Value:
        dtype = self.dtype(node)
        test = self.value(body["predicate"])
        if test.dtype != pl.Boolean:
            raise Refused("Ternary", "on something that is not true or false has no compiled form")
        yes, no = self.fit(self.value(body["truthy"]), dtype), self.fit(self.value(body["falsy"]), dtype)
        return self.let(f"{yes.code} if {test.code} else {no.code}", dtype, yes.nullable or no.nullable)

    def cast(self, value: _Value, dtype: pl.DataType, options: Node) -> _Value:
        have, v = value.dtype, value.code
        if options not in ("Strict", "NonStrict"):
            raise Refused("Cast", f"with {options} has no compiled form")
        if value.constant and have != dtype:
            raise Refused("Cast", "of a constant has no compiled form: write it with its type")
        bad = "_deviate()" if options == "Strict" else "None"
        nulls = options != "Strict"
        if have == dtype or (dtype.is_float() and (have.is_numeric() or have == pl.Boolean)) or (have == pl.Boolean and dtype.is_integer()):
            return self.fit(value, dtype)
        if have.is_integer() and dtype.is_integer():
            low, high = _bounds(dtype)
            return self.fit(value, dtype) if _within(have, dtype) else self.map(dtype, f"{v} if {low} <= {v} <= {high} else {bad}", value, nulls=nulls)
        if have.is_float() and dtype.is_integer():
            low, high = _bounds(dtype)
            return self.map(dtype, f"_int({v}) if {low - 1}.0 < {v} < {high + 1}.0 or {low}.0 == {v} else {bad}", value, nulls=nulls)
        if have.is_numeric() and dtype == pl.Boolean:
            return self.map(dtype, f"{v} != 0", value)
        if dtype == pl.String and (have.is_integer() or have == pl.Boolean):
            return self.map(dtype, f"str({v})" if have.is_integer() else f'"true" if {v} else "false"', value)
        if have == pl.String and dtype.is_integer():
            low, high = _bounds(dtype)
            return self.map(dtype, f"_parsed({v}, {low}, {high}, {not nulls})", value, nulls=nulls)
        if have == pl.String and dtype == pl.Float64:
            return self.map(dtype, f"_decimal({v})", value)
        if have == pl.Date and isinstance(dtype, pl.Datetime) and dtype.time_zone is None:
            return self.map(dtype, f"{v} * {86400 * _SECOND[dtype.time_unit]}", value)
        if isinstance(have, pl.Datetime) and have.time_zone is None and dtype == pl.Date:
            return self.map(dtype, f"{v} // {86400 * _SECOND[have.time_unit]}", value)
        if dtype == pl.Int64 and have.is_temporal() and have != pl.Time:
            return _Value(v, dtype, value.nullable)
        raise Refused("Cast", f"from {have} to {dtype} has no compiled form")

    # -- functions ----------------------------------------------------------------------------------------------------

    def call(self, node: Node, body: Node) -> _Value:
        family, option = _function(body["function"])
        if family in {"Boolean", "StringExpr", "TemporalExpr", "Trigonometry", "Pow"}:
            name, option = _function(option)
        else:
            name, family = family, ""
        if name == "Sql":
            return self.sql(node, [self.value(each) for each in body["input"]], option)
        whole = f"{family}.{name}" if family else name
        make = _FUNCTIONS.get(whole)
        if make is None:
            raise Refused(whole)
        inputs = [self.value(each) for each in body["input"]]
        if inputs and inputs[0].constant and name not in {"Coalesce", "MaxHorizontal", "MinHorizontal", "SumHorizontal", "ConcatHorizontal", "AllHorizontal", "AnyHorizontal"}:
            raise Refused(whole, "of a constant has no compiled form")
        return make(self, node, inputs, option)

    def sql(self, node: Node, inputs: list[_Value], option: Node) -> _Value:
        """What SQL computes by rules of its own: the rest of a division has the sign of what is divided."""
        name, what = _function(option)
        if name == "Round":
            return _rounds(self, node, inputs, {**what, "mode": "HalfToEven"})
        if name != "Binary" or what not in ("Mul", "Div", "Rem"):
            raise Refused(f"Sql.{name}")
        folded, dtype = self.folded(node, inputs), self.dtype(node)
        if folded is not None or not dtype.is_numeric():
            return folded or self.binary(node, what, *inputs)
        if what != "Rem":
            return self.binary(node, {"Mul": "Multiply", "Div": "TrueDivide"}[what], *inputs)
        left, right = (self.fit(each, dtype) for each in inputs)
        if dtype == pl.Float64:
            return self.map(dtype, f"_fmod({left.code}, {right.code})", left, right)
        if not dtype.is_integer():
            raise Refused("Sql.Rem", f"of {dtype} has no compiled form")
        return self.map(dtype, f"_rest({left.code}, {right.code}) if {right.code} else None", left, right, nulls=True)

    def text(self, value: _Value) -> _Value:
        if value.dtype != pl.String:
            raise Refused("text", f"of {value.dtype} has no compiled form")
        return value


def _known(value: _Value, what: str) -> Any:
    if not value.constant:
        raise Refused(what, "needs a constant to be compiled")
    return value.value


_Function = Callable[[_Compiler, Node, list[_Value], Node], _Value]


# -- functions by the name that Polars gives them ---------------------------------------------------------------------


def _test(code: str, *, real: str = "") -> _Function:
    """Tell something of a number: `real` where only a float can be other than the code says."""

    def make(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
        (value,) = inputs
        if not value.dtype.is_numeric():
            raise Refused(_name(node), f"of {value.dtype} has no compiled form")
        return self.map(pl.Boolean(), (real if value.dtype.is_float() else code).format(value.code), value)

    return make


def _null(word: str) -> _Function:
    def make(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
        return self.let(f"{inputs[0].code} {word} None", pl.Boolean(), False)

    return make


def _not(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    if inputs[0].dtype != pl.Boolean:
        raise Refused("Boolean.Not", "of numbers has no compiled form")
    return self.map(pl.Boolean(), f"not {inputs[0].code}", inputs[0])


def _is_in(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    value, members = inputs[0], _known(inputs[1], "is_in")
    if option.get("nulls_equal") or not isinstance(members, pl.Series) or (members.dtype != value.dtype and not (members.dtype.is_integer() and value.dtype.is_integer())):
        raise Refused("Boolean.IsIn", "compares values of other types")
    if value.dtype not in (pl.String, pl.Boolean) and not value.dtype.is_numeric():
        raise Refused("Boolean.IsIn", f"of {value.dtype} has no compiled form")
    present = [each for each in members.to_list() if each is not None]
    odd = f" or {value.code} != {value.code}" if any(each != each for each in present) else ""
    return self.map(pl.Boolean(), f"{value.code} in {self.bind(frozenset(present))}{odd}", value)


def _between(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    left, right = {"Both": ("GtEq", "LtEq"), "Left": ("GtEq", "Lt"), "Right": ("Gt", "LtEq"), "None": ("Gt", "Lt")}[option["closed"]]
    value, low, high = node["Function"]["input"]
    sides = [{"BinaryExpr": {"left": value, "op": op, "right": bound}} for op, bound in ((left, low), (right, high))]
    return self.value({"BinaryExpr": {"left": sides[0], "op": "And", "right": sides[1]}})


def _coalesce(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    dtype = self.dtype(node)
    found, *others = [self.fit(each, dtype) for each in inputs]
    for other in others:
        if not found.nullable:
            break
        found = self.let(f"{other.code} if {found.code} is None else {found.code}", dtype, other.nullable)
    return found


def _all_any(word: str) -> _Function:
    def make(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
        found, *others = inputs
        for other in others:
            found = self.logic(word, found, other)
        return found if others else self.fit(found, pl.Boolean())

    return make


def _numeric(whole: str, real: str, *, wraps: bool = False) -> _Function:
    """Compute number by number; the type stays."""

    def make(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
        dtype = self.dtype(node)
        value = inputs[0]
        if value.dtype != dtype or not dtype.is_numeric():
            raise Refused(_name(node), f"of {value.dtype} has no compiled form")
        if dtype.is_float():
            return self.map(dtype, real.format(value.code), value)
        found = self.map(dtype, whole.format(value.code), value)
        return self.wrapped(found) if wraps else found

    return make


def _on_floats(code: str) -> _Function:
    """Compute on floats; whole numbers become floats first."""

    def make(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
        dtype = self.dtype(node)
        if dtype == pl.Float32 and "_sqrt" not in code:
            raise Refused(_name(node), "of Float32 is computed in single precision, which Python has not")
        value = self.fit(inputs[0], dtype)
        return self.map(dtype, self.rounded(code.format(value.code), dtype), value)

    return make


def _rounds(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    value, digits = inputs[0], option["decimals"]
    if value.dtype.is_integer():
        return value
    if value.dtype != pl.Float64 or option["mode"] != "HalfToEven":
        raise Refused("Round", f"of {value.dtype}, {option['mode']}, has no compiled form")
    return self.map(value.dtype, f"_rint({value.code})" if digits == 0 else f"_round({value.code}, {10.0**digits!r})", value)


def _clip(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    value, *bounds = inputs
    low = bounds.pop(0) if option["has_min"] else None
    high = bounds.pop(0) if option["has_max"] else None
    code = value.code
    for bound, sign in ((high, ">"), (low, "<")):
        if bound is not None:
            limit = _known(bound, "clip")
            if limit is None or limit != limit or not value.dtype.is_numeric() or (isinstance(limit, float) and value.dtype.is_integer()):
                raise Refused("Clip", "with such a bound has no compiled form")
            text = self.fit_constant(bound, value.dtype).code
            code = f"({text} if {value.code} {sign} {text} else {code})"
    if low is not None and high is not None and low.value > high.value:
        raise Refused("Clip", "with its bounds crossed has no compiled form")
    return self.map(value.dtype, code, value)


def _log(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    dtype, base = self.dtype(node), _known(inputs[1], "log")
    if not isinstance(base, (int, float)) or not 0 < base < math.inf or base == 1 or dtype != pl.Float64:
        raise Refused("Log", "with this base has no compiled form")
    value = self.fit(inputs[0], dtype)
    return self.map(dtype, f"_ln({value.code})" if base == math.e else f"_ln({value.code}) / {math.log(base)!r}", value)


def _power(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    dtype, (base, exponent) = self.dtype(node), inputs
    if dtype.is_integer():
        by = _known(exponent, "pow of whole numbers")
        if not isinstance(by, int) or not 0 <= by <= 64 or base.dtype != dtype:
            raise Refused("Pow.Generic", "of whole numbers needs a small constant exponent")
        return self.wrapped(self.map(dtype, f"{base.code} ** {by}", base))
    if dtype != pl.Float64:
        raise Refused("Pow.Generic", f"of {dtype} has no compiled form")
    base, exponent = self.fit(base, dtype), self.fit(exponent, dtype)
    if exponent.constant and exponent.value == 0.5:
        return self.map(dtype, f"_sqrt({base.code})", base)  # as Polars does: of -inf it is NaN, not inf
    if exponent.constant and exponent.value in (1.0, 2.0, 3.0):
        return self.map(dtype, " * ".join([base.code] * int(exponent.value)), base)
    if exponent.constant and exponent.value is not None and 3 < exponent.value < 10 and exponent.value == int(exponent.value):
        raise Refused("Pow.Generic", f"to the power {int(exponent.value)} is multiplied out by Polars in an order of its own")
    return self.map(dtype, f"_pow({base.code}, {exponent.code})", base, exponent)


def _extreme(sign: str) -> _Function:
    def make(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
        dtype = self.dtype(node)
        if not dtype.is_numeric():
            raise Refused(_name(node), f"of {dtype} has no compiled form")
        found, *others = [self.fit(each, dtype) for each in inputs]
        for other in others:
            a, b = found.code, other.code
            odd = f" or {a} != {a}" if dtype.is_float() else ""
            kept = f"{a} if {a} or {b} else _zero({a}, {b})" if dtype.is_float() else a
            better = f"{b} if {b} {sign} {a}{odd} else {kept}"
            if other.nullable:
                better = f"{a} if {b} is None else {better}"
            if found.nullable:
                better = f"{b} if {a} is None else {better}"
            found = self.let(better, dtype, found.nullable and other.nullable)
        return found

    return make


def _sum(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    dtype = self.dtype(node)
    if not dtype.is_numeric() or not option["ignore_nulls"]:
        raise Refused("SumHorizontal", f"of {dtype} has no compiled form")
    zero = "0.0" if dtype.is_float() else "0"
    fits = [self.fit(each, dtype) for each in inputs]
    terms = [f"({zero} if {each.code} is None else {each.code})" if each.nullable else each.code for each in fits]
    found = self.let(terms[0], dtype, False)
    for term in terms[1:]:
        found = self.let(self.rounded(f"{found.code} + {term}", dtype), dtype, False)
    return found if dtype.is_float() else self.wrapped(found)


def _text_map(code: str, kind: type[pl.DataType] | None = None) -> _Function:
    def make(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
        texts = [self.text(each) for each in inputs]
        return self.map(self.dtype(node), code.format(*(each.code for each in texts)), *texts)

    return make


def _strip(method: str) -> _Function:
    def make(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
        value, what = self.text(inputs[0]), _known(inputs[1], "strip_chars")
        if what == "":
            raise Refused("StringExpr.StripChars", "of no characters has no compiled form")
        return self.map(value.dtype, f"{value.code}.{method}({self.bind(_WHITE if what is None else what)})", value)

    return make


def _pattern(text: Any) -> str:
    """Return a pattern of the Rust crate regex for Python's re, where both give one answer."""
    if not isinstance(text, str) or not _PLAIN_PATTERN.fullmatch(text):
        raise Refused("regular expression", f"{text!r} may mean something else to Python")
    return re.sub(r"(\\.)|(\[[^\]]*\])|\$", lambda found: found.group(1) or found.group(2) or r"\Z", text)


def _contains(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    value, what = self.text(inputs[0]), _known(inputs[1], "contains")
    if not isinstance(what, str):
        raise Refused("StringExpr.Contains", "of null has no compiled form")
    if option["literal"]:
        return self.map(pl.Boolean(), f"{self.bind(what)} in {value.code}", value)
    return self.map(pl.Boolean(), f"{self.bind(re.compile(_pattern(what), re.ASCII).search)}(_ascii({value.code})) is not None", value)


def _text_replace(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    value, what, by = self.text(inputs[0]), _known(inputs[1], "replace"), _known(inputs[2], "replace")
    if not isinstance(what, str) or not isinstance(by, str) or option["n"] not in (1, -1) or not what:
        raise Refused("StringExpr.Replace", "of such a text has no compiled form")
    if option["literal"]:
        return self.map(value.dtype, f"{value.code}.replace({self.bind(what)}, {self.bind(by)}, {option['n']})", value)
    pattern = re.compile(_pattern(what), re.ASCII)
    if pattern.match("") or "$" in by or "\\" in by or "^" in what:
        raise Refused("StringExpr.Replace", f"of {what!r} by {by!r} may mean something else to Python")
    return self.map(value.dtype, f"{self.bind(pattern.sub)}({self.bind(by)}, _ascii({value.code}), {max(option['n'], 0)})", value)


def _slice(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    value, start, count = self.text(inputs[0]), _known(inputs[1], "slice"), _known(inputs[2], "slice")
    if start is None or (count is not None and count < 0):
        raise Refused("StringExpr.Slice", "of null has no compiled form")
    if start >= 0:
        code = f"{value.code}[{start}:{'' if count is None else start + count}]"
    else:
        stop = "" if count is None else f"_not_below_0(len({value.code}) - {-start - count})"
        code = f"{value.code}[_not_below_0(len({value.code}) - {-start}):{stop}]"
    return self.map(value.dtype, code, value)


def _head(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    value, count = self.text(inputs[0]), _known(inputs[1], "head")
    return self.map(value.dtype, f"{value.code}[:{count}]", value)


def _tail(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    value, count = self.text(inputs[0]), _known(inputs[1], "tail")
    return self.map(value.dtype, f"{value.code}[{-count}:]" if count else '""', value)


def _concat(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    texts = [self.text(each) for each in inputs]
    by = self.bind(option["delimiter"])
    if option["ignore_nulls"] and any(each.nullable for each in texts):
        return self.let(f"{by}.join([t for t in ({', '.join(each.code for each in texts)},) if t is not None])", pl.String(), False)
    return self.map(pl.String(), f"{by}.join(({', '.join(each.code for each in texts)},))", *texts)


def _mapped(strict: bool) -> _Function:
    def make(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
        dtype, value = self.dtype(node), inputs[0]
        old, new = _known(inputs[1], "replace"), _known(inputs[2], "replace")
        name = "ReplaceStrict" if strict else "Replace"
        if not isinstance(old, pl.Series) or not isinstance(new, pl.Series) or not (value.dtype.is_integer() or value.dtype == pl.String):
            raise Refused(name, f"of {value.dtype} has no compiled form")
        if not (old.dtype == value.dtype or (old.dtype.is_integer() and value.dtype.is_integer())) or not (dtype.is_numeric() or dtype in (pl.String, pl.Boolean)):
            raise Refused(name, f"of {old.dtype} in {value.dtype} has no compiled form")
        answers = new.cast(dtype).to_list()
        table = self.bind(dict(zip(old.to_list(), answers * len(old) if len(answers) == 1 else answers, strict=True)))
        if not strict:
            return self.let(f"{table}.get({value.code}, {value.code})", dtype, True)
        if len(inputs) > 3:
            return self.let(f"{table}.get({value.code}, {self.fit(inputs[3], dtype).code})", dtype, True)
        return self.let(f"{table}[{value.code}] if {value.code} in {table} else _deviate()", dtype, True)

    return make


def _local(self: _Compiler, value: _Value) -> tuple[_Value, int]:
    """Return a time as its units on the clock of its zone, and how many units a second has."""
    if not isinstance(value.dtype, pl.Datetime):
        raise Refused("TemporalExpr", f"of {value.dtype} has no compiled form")
    second = _SECOND[value.dtype.time_unit]
    if value.dtype.time_zone in (None, "UTC"):
        return value, second
    key = f"local {value.code}"
    if key not in self.known:
        self.known[key] = self.map(value.dtype, f"_wall({value.code}, {second}, {self.bind(ZoneInfo(value.dtype.time_zone))})", value)
    return self.known[key], second


def _clock(code: str) -> _Function:
    def make(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
        value, second = _local(self, inputs[0])
        return self.map(self.dtype(node), code.format(value.code, second, 60 * second, 3600 * second), value)

    return make


def _calendar(code: str) -> _Function:
    def make(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
        if inputs[0].dtype == pl.Date:
            day = inputs[0]
        else:
            value, second = _local(self, inputs[0])
            key = f"day {value.code}"
            if key not in self.known:
                self.known[key] = self.map(pl.Date(), f"{value.code} // {86400 * second}", value)
            day = self.known[key]
        if "{d" not in code:
            return self.map(self.dtype(node), code.format(day.code), day)
        key = f"date {day.code}"
        if key not in self.known:
            self.known[key] = self.map(pl.Object(), f"_date({day.code} + {_EPOCH})", day)
        return self.map(self.dtype(node), code.format(d=self.known[key].code), day)

    return make


def _total(seconds: float) -> _Function:
    def make(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
        value = inputs[0]
        if not isinstance(value.dtype, pl.Duration) or option["fractional"]:
            raise Refused(_name(node), f"of {value.dtype} has no compiled form")
        units = seconds * _SECOND[value.dtype.time_unit]
        if units < 1 or units != int(units):
            return self.map(self.dtype(node), f"_long({value.code} * {int(1 / units)})", value)
        return self.map(self.dtype(node), f"_toward_0({value.code}, {int(units)})", value)

    return make


def _truncate(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    value, every = inputs[0], _known(inputs[1], "truncate")
    found = re.fullmatch(r"([1-9][0-9]{0,5})(s|m|h|d|w)", str(every))
    if not isinstance(value.dtype, pl.Datetime) or value.dtype.time_zone not in (None, "UTC") or found is None:
        raise Refused("TemporalExpr.Truncate", f"of {value.dtype} to {every!r} has no compiled form")
    second = _SECOND[value.dtype.time_unit]
    size = int(found.group(1)) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[found.group(2)] * second
    if found.group(2) == "w" and found.group(1) != "1":
        raise Refused("TemporalExpr.Truncate", "to several weeks has no compiled form")
    # 1970 began on a Thursday; weeks begin on Monday.
    shift = f"({value.code} + {3 * 86400 * second})" if found.group(2) == "w" else value.code
    return self.map(value.dtype, f"{value.code} - {shift} % {size}", value)


def _zone(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    value, dtype = inputs[0], self.dtype(node)
    if not isinstance(value.dtype, pl.Datetime) or value.dtype.time_zone is None:
        raise Refused("TemporalExpr.ConvertTimeZone", f"of {value.dtype} has no compiled form")
    return _Value(value.code, dtype, value.nullable)


def _replace_zone(self: _Compiler, node: Node, inputs: list[_Value], option: Node) -> _Value:
    value, dtype = inputs[0], self.dtype(node)
    if not isinstance(dtype, pl.Datetime) or dtype.time_zone not in (None, "UTC") or not isinstance(value.dtype, pl.Datetime):
        raise Refused("TemporalExpr.ReplaceTimeZone", f"to {dtype} has no compiled form: an hour may be there twice")
    wall, _ = _local(self, value)
    return _Value(wall.code, dtype, wall.nullable)




_FUNCTIONS: dict[str, _Function] = {
    "Boolean.IsNull": _null("is"),
    "Boolean.IsNotNull": _null("is not"),
    "Boolean.IsNan": _test("False", real="{0} != {0}"),
    "Boolean.IsNotNan": _test("True", real="{0} == {0}"),
    "Boolean.IsFinite": _test("True", real="{0} - {0} == 0"),
    "Boolean.IsInfinite": _test("False", real="({0} == _inf or {0} == -_inf)"),
    "Boolean.Not": _not,
    "Boolean.IsIn": _is_in,
    "Boolean.IsBetween": _between,
    "Boolean.AllHorizontal": _all_any("And"),
    "Boolean.AnyHorizontal": _all_any("Or"),
    "FillNull": _coalesce,
    "Coalesce": _coalesce,
    "Abs": _numeric("abs({0})", "abs({0})", wraps=True),
    "Negate": _numeric("-{0}", "-{0}", wraps=True),
    "Floor": _numeric("{0}", "_floor({0})"),
    "Ceil": _numeric("{0}", "_ceil({0})"),
    "Sign": _numeric("({0} > 0) - ({0} < 0)", "(1.0 if {0} > 0.0 else -1.0 if {0} < 0.0 else {0})"),
    "Round": _rounds,
    "Clip": _clip,
    "Log": _log,
    "Log1p": _on_floats("_log1p({0})"),
    "Exp": _on_floats("_exp({0})"),
    "Pow.Generic": _power,
    "Pow.Sqrt": _on_floats("_sqrt({0})"),
    "Trigonometry.Sin": _on_floats("_sin({0})"),
    "Trigonometry.Cos": _on_floats("_cos({0})"),
    "Trigonometry.Tanh": _on_floats("_tanh({0})"),
    "MaxHorizontal": _extreme(">"),
    "MinHorizontal": _extreme("<"),
    "SumHorizontal": _sum,
    "StringExpr.Lowercase": _text_map("({0}.lower() if {0}.isascii() else _cased({0}).lower())"),
    "StringExpr.Uppercase": _text_map("({0}.upper() if {0}.isascii() else _cased({0}).upper())"),
    "StringExpr.LenChars": _text_map("len({0})"),
    "StringExpr.LenBytes": _text_map("len({0}.encode())"),
    "StringExpr.StartsWith": _text_map("{0}.startswith({1})"),
    "StringExpr.EndsWith": _text_map("{0}.endswith({1})"),
    "StringExpr.StripChars": _strip("strip"),
    "StringExpr.StripCharsStart": _strip("lstrip"),
    "StringExpr.StripCharsEnd": _strip("rstrip"),
    "StringExpr.Contains": _contains,
    "StringExpr.Replace": _text_replace,
    "StringExpr.Slice": _slice,
    "StringExpr.Head": _head,
    "StringExpr.Tail": _tail,
    "StringExpr.ConcatHorizontal": _concat,
    "Replace": _mapped(False),
    "ReplaceStrict": _mapped(True),
    "TemporalExpr.Year": _calendar("{d}.year"),
    "TemporalExpr.Month": _calendar("{d}.month"),
    "TemporalExpr.Day": _calendar("{d}.day"),
    "TemporalExpr.Quarter": _calendar("({d}.month + 2) // 3"),
    "TemporalExpr.OrdinalDay": _calendar("{d}.timetuple().tm_yday"),
    "TemporalExpr.WeekDay": _calendar("({0} + 3) % 7 + 1"),
    "TemporalExpr.Date": _calendar("{0}"),
    "TemporalExpr.Hour": _clock("{0} // {3} % 24"),
    "TemporalExpr.Minute": _clock("{0} // {2} % 60"),
    "TemporalExpr.Second": _clock("{0} // {1} % 60"),
    "TemporalExpr.TotalDays": _total(86400),
    "TemporalExpr.TotalHours": _total(3600),
    "TemporalExpr.TotalMinutes": _total(60),
    "TemporalExpr.TotalSeconds": _total(1),
    "TemporalExpr.Truncate": _truncate,
    "TemporalExpr.ConvertTimeZone": _zone,
    "TemporalExpr.ReplaceTimeZone": _replace_zone,
}


# -- what the function of a row calls ---------------------------------------------------------------------------------


def _deviate() -> NoReturn:
    raise Deviates


def _rest(left: int, right: int) -> int:
    rest = abs(left) % abs(right)
    return rest if left >= 0 else -rest


def _single(value: float) -> float:
    return c_float(value).value


def _single_int(value: int) -> float:
    if not -9007199254740992 <= value <= 9007199254740992:
        raise Deviates  # rounded twice, to a double and to a single
    return c_float(value).value


def _divide(left: float, right: float) -> float:
    if right:
        return left / right
    return left * math.copysign(math.inf, right)


def _floor(value: float) -> float:
    return float(math.floor(value)) if value and -4503599627370496.0 < value < 4503599627370496.0 else value


def _zero(one: float, other: float) -> float:
    if math.copysign(1.0, one) != math.copysign(1.0, other):
        raise Deviates  # which of 0.0 and -0.0 is larger, Polars may say
    return one


def _ceil(value: float) -> float:
    return math.copysign(math.ceil(value), value) if value and -4503599627370496.0 < value < 4503599627370496.0 else value


def _rint(value: float) -> float:
    return math.copysign(round(value), value) if value and -4503599627370496.0 < value < 4503599627370496.0 else value


def _round(value: float, scale: float) -> float:
    scaled = value * scale
    return _rint(scaled) / scale if -math.inf < scaled < math.inf else value


def _ln(value: float) -> float:
    return math.log(value) if value > 0.0 else -math.inf if value == 0.0 else math.nan


def _log1p(value: float) -> float:
    return math.log1p(value) if value > -1.0 else -math.inf if value == -1.0 else math.nan


def _exp(value: float) -> float:
    return math.exp(value) if value < 709.0 or value != value else math.inf if value > 710.0 else _deviate()


def _sqrt(value: float) -> float:
    return math.sqrt(value) if value >= 0.0 else math.nan


def _sin(value: float) -> float:
    return math.sin(value) if value - value == 0.0 else math.nan


def _cos(value: float) -> float:
    return math.cos(value) if value - value == 0.0 else math.nan


def _cased(value: str) -> str:
    """Let pass text whose letters Python knows: a newer Unicode may give a case to the others."""
    if any(each in _NEWLY_CASED or unicodedata.category(each) == "Cn" for each in value):
        raise Deviates
    return value


def _ascii(value: str) -> str:
    if value.isascii():
        return value
    raise Deviates


def _not_below_0(value: int) -> int:
    return value if value > 0 else 0


def _parsed(value: str, low: int, high: int, strict: bool) -> int | None:
    if _INTEGER.fullmatch(value) and len(value) < 25 and not (low == 0 and value[0] == "-"):
        number = int(value)
        if low <= number <= high:
            return number
    if strict or (low == 0 and value[:1] == "-"):
        raise Deviates
    return None


def _decimal(value: str) -> float:
    if _DECIMAL.fullmatch(value):
        return float(value)
    raise Deviates


def _days(value: date) -> int:
    return value.toordinal() - _EPOCH


def _micros(value: datetime) -> int:
    since = value - _NAIVE
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds


def _micros_aware(value: datetime) -> int:
    since = value - _AWARE
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds


def _micros_of(value: timedelta) -> int:
    return (value.days * 86400 + value.seconds) * 1_000_000 + value.microseconds


def _time(micros: int, zone: ZoneInfo | None = None) -> datetime:
    if zone is None:
        return _NAIVE + timedelta(microseconds=micros)
    return (_AWARE + timedelta(microseconds=micros)).astimezone(zone)


def _delta(micros: int) -> timedelta:
    return timedelta(microseconds=micros)


def _long(value: int) -> int:
    if -9223372036854775808 <= value <= 9223372036854775807:
        return value
    raise Deviates


def _toward_0(value: int, size: int) -> int:
    return value // size if value >= 0 else -(-value // size)


def _wall(value: int, second: int, zone: ZoneInfo) -> int:
    # The tables of zones differ between libraries before 1970 and after 2037.
    if not 0 <= value < 2145916800 * second:
        raise Deviates
    offset = datetime.fromtimestamp(value // second, zone).utcoffset()
    return value if offset is None else value + (offset.days * 86400 + offset.seconds) * second


def _raised(base: float, exponent: float) -> float:
    try:
        return math.pow(base, exponent)
    except ValueError:
        if base:
            return math.nan
        return -math.inf if math.copysign(1.0, base) < 0 and exponent % 2 == 1 else math.inf
    except OverflowError:
        return -math.inf if base < 0 and exponent % 2 == 1 else math.inf


_HELPERS: dict[str, Any] = {
    "Deviates": Deviates, "_deviate": _deviate, "_inf": math.inf, "_int": int, "_float": float, "_bool": bool, "_str": str,
    "_single": _single, "_single_int": _single_int, "_divide": _divide, "_floor": _floor, "_zero": _zero, "_ceil": _ceil, "_rint": _rint, "_round": _round,
    "_ln": _ln, "_log1p": _log1p, "_exp": _exp, "_sqrt": _sqrt, "_sin": _sin, "_cos": _cos, "_tanh": math.tanh, "_fmod": math.fmod, "_rest": _rest, "_pow": _raised,
    "_cased": _cased, "_ascii": _ascii, "_not_below_0": _not_below_0, "_parsed": _parsed, "_decimal": _decimal,
    "_days": _days, "_micros": _micros, "_micros_aware": _micros_aware, "_micros_of": _micros_of,
    "_date": date.fromordinal, "_time": _time, "_delta": _delta, "_long": _long, "_toward_0": _toward_0, "_wall": _wall,
}  # fmt: skip


# -- reading Polars' JSON ---------------------------------------------------------------------------------------------


def _read(expression: pl.Expr) -> Node:
    """Return an expression as nodes. The format belongs to the installed Polars and is never stored.

    JSON has no NaN: Polars writes null for it. What stood there is read from the expression's text.
    """
    try:
        tree = json.loads(expression.meta.serialize(format="json"))
    except (pl.exceptions.PolarsError, ValueError, TypeError) as error:
        raise Refused("expression", f"cannot be written down: {str(error).splitlines()[0]}") from None
    lost = json.dumps(tree).count('{"Float": null}')
    if lost:
        odd = re.findall(r"dyn float: (NaN|-?inf)", str(expression))
        if len(odd) != lost or len(set(odd)) != 1:
            raise Refused("Literal", "that is not finite cannot be read")
        tree = _with_float(tree, {"NaN": "nan"}.get(odd[0], odd[0]))
    return tree


def _with_float(node: Node, text: str) -> Node:
    if isinstance(node, dict):
        return {"Float": text} if node == {"Float": None} else {key: _with_float(each, text) for key, each in node.items()}
    return [_with_float(each, text) for each in node] if isinstance(node, list) else node


def _text(node: Node) -> str:
    return json.dumps(node, sort_keys=True)


def _expression(node: Node) -> pl.Expr:
    finite = re.sub(r'\{"Float": "(nan|-?inf)"\}', '{"Float": 0.5}', json.dumps(node))
    return pl.Expr.deserialize(finite.encode(), format="json")


def _function(node: Node) -> tuple[str, Node]:
    if isinstance(node, dict):
        ((name, option),) = node.items()
        return str(name), option
    return str(node), {}


def _name(node: Node) -> str:
    """Return the name of a node as a person would look for it."""
    if not isinstance(node, dict):
        return str(node)
    ((kind, body),) = node.items()
    if kind == "Function":
        names: list[str] = []
        inner: Node = body["function"]
        while isinstance(inner, dict) and len(inner) == 1 and len(names) < 2:
            ((name, inner),) = inner.items()
            names.append(str(name))
        return ".".join([*names, inner] if isinstance(inner, str) else names)
    if kind == "Agg":
        return f"Agg.{next(iter(body))}"
    return {"AnonymousFunction": "a Python function (map_elements, map_batches)", "Over": "a window (over)"}.get(kind, str(kind))


def _bounds(dtype: pl.DataType) -> tuple[int, int]:
    found = re.fullmatch(r"U?Int(8|16|32|64)", str(dtype))
    if found is None:
        raise Refused(str(dtype))
    bits = int(found.group(1))
    return (0, 2**bits - 1) if dtype.is_unsigned_integer() else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _within(inner: pl.DataType, outer: pl.DataType) -> bool:
    return _bounds(outer)[0] <= _bounds(inner)[0] and _bounds(inner)[1] <= _bounds(outer)[1]


def _micro(unit: str) -> str:
    return {"us": "", "ms": " * 1000", "ns": " // 1000"}[unit]


def _reader(dtype: pl.DataType) -> tuple[str, str] | None:
    """Return how a value of a row is read: the class that needs nothing (or none), and the function else."""
    if dtype.is_integer():
        _bounds(dtype)
        return "_int", "_int"
    if dtype == pl.Float64:
        return "_float", "_float"
    if dtype == pl.Float32:
        return "", "_single"
    if dtype == pl.Boolean:
        return "_bool", "_bool"
    if dtype == pl.String:
        return "_str", "_str"
    if dtype == pl.Date:
        return "", "_days"
    if isinstance(dtype, pl.Datetime) and dtype.time_unit == "us":
        return "", "_micros" if dtype.time_zone is None else "_micros_aware"
    if isinstance(dtype, pl.Duration) and dtype.time_unit == "us":
        return "", "_micros_of"
    return None
