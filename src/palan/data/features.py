"""Features are plain functions of Polars expressions, named by what they make: one definition for training, batch and one row."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import msgspec
import polars as pl

from palan.core import digest_of
from palan.data.past import Past
from palan.data.scalar import FALLBACK, Scalar, compile_rows, with_features
from palan.data.sql import Sql, with_floats
from palan.errors import PalanError, nearest

FeatureFunction = Callable[..., pl.Expr]
Constant = Any
"""A value that JSON can say: a number, a text, a list, a mapping."""


class Feature(msgspec.Struct, frozen=True):
    """One feature: what it is made of, down to the columns, and the digest of all that decides its value."""

    name: str
    about: str
    inputs: tuple[str, ...]  # columns and features, as the function names them
    columns: tuple[str, ...]  # the columns it comes from in the end
    constants: tuple[str, ...]  # the fitted constants that it or what it reads depends on
    digest: str


class Opaque(msgspec.Struct, frozen=True):
    """A step that is no expression: a function of a frame, or an object with `transform`, as scikit-learn's are.

    It reads columns and features; no feature reads what it gives. `digest` says which step it is: the caller knows
    where it came from (the digest of the file it was stored in, say).
    """

    inputs: tuple[str, ...]
    step: Any
    digest: str
    outputs: tuple[str, ...]
    about: str = ""

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the outputs for the frame's rows."""
        made = transformed(self.step, frame.select(self.inputs))
        if made.shape != (frame.height, len(self.outputs)):
            raise PalanError(f"an opaque step gave {made.height} rows of {made.width} columns", f"{frame.height} rows of {', '.join(self.outputs)}")
        return made.rename(dict(zip(made.columns, self.outputs, strict=True)))


def transformed(step: Any, rows: pl.DataFrame) -> pl.DataFrame:
    """Return what a function of a frame, or an object with `transform`, makes of rows."""
    found = step.transform(rows) if hasattr(step, "transform") else step(rows)
    found = found.toarray() if hasattr(found, "toarray") else found
    if hasattr(found, "iloc"):  # of pandas, which Polars reads with a library more
        found = found.to_numpy()
    return found if isinstance(found, pl.DataFrame) else found.to_frame() if isinstance(found, pl.Series) else pl.DataFrame(found)


class Features(msgspec.Struct, frozen=True):
    """All features of a model, in an order in which each can be computed."""

    schema: Mapping[str, pl.DataType]
    expressions: Mapping[str, pl.Expr]
    lineage: Mapping[str, Feature]
    constants: Mapping[str, Constant]
    opaque: Mapping[str, Opaque]
    scalar: Scalar

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.expressions, *(output for step in self.opaque.values() for output in step.outputs))

    @property
    def digest(self) -> str:
        return digest_of({name: feature.digest for name, feature in self.lineage.items()})

    def batch(self, frame: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
        """Return the rows with all features beside their columns."""
        made = with_features(frame.lazy(), self.expressions).collect()
        return pl.concat([made, *(step.apply(made) for step in self.opaque.values())], how="horizontal")

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return all features of one row."""
        found = self.scalar.row(row)
        if self.opaque:
            types = {**self.schema, **self.scalar.dtypes}
            known = {**row, **found}
            for step in self.opaque.values():
                found.update(step.apply(pl.DataFrame({name: [known[name]] for name in step.inputs}, schema={name: types[name] for name in step.inputs})).row(0, named=True))
        return found

    def costs(self, row: Mapping[str, Any], timer: Callable[[], float], *, repeat: int = 20) -> dict[str, float]:
        """Return what one row costs, in microseconds by the timer: the compiled function, Polars, and each opaque step.

        Args:
            row: a row as it comes.
            timer: seconds, such as `time.perf_counter`.
            repeat: how often each is run; the least counts.
        """

        def least(work: Callable[[], object]) -> float:
            found = math.inf
            for _ in range(repeat):
                start = timer()
                work()
                found = min(found, timer() - start)
            return found * 1e6

        costs = {"one row": least(lambda: self.scalar.row(row))}
        if self.opaque:
            frame = self.batch(pl.DataFrame({name: [row[name]] for name in self.schema if name in row}, schema={name: dtype for name, dtype in self.schema.items() if name in row}))
            costs.update({name: least(partial(step.apply, frame)) for name, step in self.opaque.items()})
        return costs

    def told(self, costs: Mapping[str, float] | None = None) -> list[str]:
        """Say what makes a row slow: one line for each feature that has no compiled form, and for each opaque step.

        With what `costs` measured these figures are told, else what it costs about.
        """
        row = costs["one row"] if costs else FALLBACK
        slow = [f"{name}: {why}; through Polars, some {row:,.0f} µs a row for all such features together" for name, why in self.scalar.refused.items()]
        return [*slow, *(f"{name}: an opaque step, a frame is made for each row" + (f": {costs[name]:,.0f} µs" if costs else "") for name in self.opaque)]


def features(
    functions: Mapping[str, FeatureFunction | Sql | str],
    schema: Mapping[str, pl.DataType],
    *,
    constants: Mapping[str, Constant] | None = None,
    opaque: Mapping[str, Opaque] | None = None,
    required: Sequence[str] = (),
) -> Features:
    """Order feature functions by what they read, and compile them.

    Args:
        functions: feature -> its function, whose arguments are columns, other features or constants; or Polars SQL.
        schema: the columns of a row and their types.
        constants: what a `fit` step found, passed by argument name.
        opaque: steps that are no expressions.
        required: columns that are never null.

    Raises:
        PalanError: an argument that is none of these, a circle, a name given twice, a function that makes no expression.
    """
    fitted = dict(constants or {})
    said = {name: Sql(each) if isinstance(each, str) else each for name, each in functions.items()}
    for name in [*said, *(opaque or {})]:
        if name in schema or name in fitted:
            raise PalanError(f'"{name}" is a feature and a {"column" if name in schema else "constant"}', "give the feature another name")
    inputs = {name: _inputs(name, function) for name, function in said.items()}
    ordered = _ordered(inputs, {*schema, *fitted})
    expressions: dict[str, pl.Expr] = {}
    lineage: dict[str, Feature] = {}
    for name in ordered:
        expressions[name] = _made(name, said[name], inputs[name], fitted)
        lineage[name] = _feature(name, said[name], inputs[name], expressions[name], lineage, schema, fitted)
    for name, step in (opaque or {}).items():
        _known(name, step.inputs, {*schema, *expressions}, what="step")
        taken = [output for output in step.outputs if output in schema or output in expressions]
        if taken:
            raise PalanError(f'the step "{name}" gives "{taken[0]}", which is there already', "give its output another name")
        lineage[name] = _traced(name, step.about, step.inputs, lineage, schema, fitted, step.digest)
    return Features(dict(schema), expressions, lineage, fitted, dict(opaque or {}), compile_rows(expressions, schema, required=required))


def functions_of(module: ModuleType) -> dict[str, FeatureFunction]:
    """Return the feature functions of a user's file: public, made there, and said to return a `pl.Expr`."""
    return {name: function for name, function in _public(module) if returns(module, function) is pl.Expr}


def steps_of(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Return the functions of a user's file that make a step: said to return a `pl.Series`, or what has `fit` and `transform`.

    The first is the step itself, the second makes one that is to be fitted.
    """
    return {name: function for name, function in _public(module) if (kind := returns(module, function)) is pl.Series or (hasattr(kind, "fit") and hasattr(kind, "transform"))}


def inputs_of(name: str, function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the columns, features and constants that a function names as its arguments.

    Raises:
        PalanError: an argument that names nothing, such as `*columns`.
    """
    parameters = inspect.signature(function).parameters.values()
    odd = [each.name for each in parameters if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD, each.POSITIONAL_ONLY)]
    if odd:
        raise PalanError(f'the feature "{name}" takes "{odd[0]}", which names no column', "name each column, feature or constant as an argument")
    return tuple(each.name for each in parameters)


def returns(module: ModuleType, function: Callable[..., Any]) -> Any:
    """Return what a function is said to return; an annotation that is kept as text is looked up in its file."""
    said = function.__annotations__.get("return")
    if not isinstance(said, str):
        return said
    found: Any = module
    for part in said.split("."):
        found = getattr(found, part, None)
    # Polars may be imported for type checkers alone.
    return getattr(pl, said.rpartition(".")[2], None) if found is None and said.startswith(("pl.", "polars.")) else found


def pasts_of(module: ModuleType) -> dict[str, Past]:
    """Return what the functions of a user's file that are said to return a `Past` look up.

    Raises:
        PalanError: one of them takes an argument, or returns something else.
    """
    found: dict[str, Past] = {}
    for name, function in _public(module):
        if returns(module, function) is Past:
            if inspect.signature(function).parameters:
                raise PalanError(f'"{name}" looks up the past, and takes an argument', f"def {name}() -> Past")
            found[name] = function()
            if not isinstance(found[name], Past):
                raise PalanError(f'"{name}" made {type(found[name]).__name__}, not a Past', "return before(...) or last(...) of palan")
    return found


def _public(module: ModuleType) -> list[tuple[str, Callable[..., Any]]]:
    return [(name, thing) for name, thing in vars(module).items() if inspect.isfunction(thing) and not name.startswith("_") and thing.__module__ == module.__name__]


def fitted(fit: Callable[[pl.DataFrame], Mapping[str, Constant]], frame: pl.DataFrame) -> dict[str, Constant]:
    """Return the named constants that a `fit` function finds, as JSON will give them back.

    Raises:
        PalanError: something that JSON cannot say, NaN and infinity among it.
    """
    found = fit(frame)
    for name, value in found.items():
        try:
            text = msgspec.json.encode(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise PalanError(f'the constant "{name}" cannot be written as JSON: {error}', "give numbers, texts, lists and mappings") from None
        if _infinite(value):
            raise PalanError(f'the constant "{name}" is not finite, or has a part that is not', "leave out what has no value, in fit")
        if msgspec.json.decode(text) != value:
            raise PalanError(f'the constant "{name}" would be read back as something else', "use texts as keys, and lists instead of tuples")
    return dict(found)


def _infinite(value: Constant) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    parts: Iterable[Constant] = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return any(_infinite(part) for part in parts)


def _inputs(name: str, function: FeatureFunction | Sql) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_sql(name, function).meta.root_names())) if isinstance(function, Sql) else inputs_of(name, function)


def _sql(name: str, sql: Sql) -> pl.Expr:
    try:
        return pl.sql_expr(with_floats(sql.text))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        where = f"{sql.place}: " if sql.place else ""
        raise PalanError(f'{where}the feature "{name}" is no SQL expression: {str(error).splitlines()[0].partition(" at Line:")[0].removeprefix("sql parser error: ")}', 'such as "delay > 15 AND origin = \'JFK\'"') from None


def _known(name: str, inputs: Iterable[str], known: set[str], *, what: str = "feature") -> None:
    for one in inputs:
        if one not in known:
            kinds = "column, feature or constant" if what == "feature" else "column or feature"
            raise PalanError(f'the {what} "{name}" reads "{one}", which is no {kinds}', nearest(one, known) or f"known: {', '.join(sorted(known))}")


def _ordered(inputs: Mapping[str, tuple[str, ...]], given: set[str]) -> list[str]:
    """Return the features so that each stands after what it reads."""
    done: dict[str, None] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise PalanError(f"features in a circle: {' -> '.join((*path[path.index(name) :], name))}", "let one of them read columns alone")
        if name in done or name in given:
            return
        _known(name, inputs[name], given | set(inputs))
        for one in inputs[name]:
            visit(one, (*path, name))
        done[name] = None

    for name in inputs:
        visit(name, ())
    return list(done)


def _made(name: str, function: FeatureFunction | Sql, inputs: tuple[str, ...], constants: Mapping[str, Constant]) -> pl.Expr:
    if isinstance(function, Sql):
        clash = [one for one in inputs if one in constants]
        if clash:
            raise PalanError(f'the feature "{name}" reads the constant "{clash[0]}" in SQL, which has columns and features alone', "write it as a function")
        return _sql(name, function)
    found = function(**{one: constants[one] if one in constants else pl.col(one) for one in inputs})
    if not isinstance(found, pl.Expr):
        raise PalanError(f'the feature "{name}" made {type(found).__name__}, not an expression', "return a pl.Expr")
    return found


def _feature(name: str, function: FeatureFunction | Sql, inputs: tuple[str, ...], expression: pl.Expr, lineage: Mapping[str, Feature], schema: Mapping[str, pl.DataType], constants: Mapping[str, Constant]) -> Feature:
    hidden = [root for root in expression.meta.root_names() if root not in inputs]
    if hidden:
        raise PalanError(f'the feature "{name}" reads "{hidden[0]}" without naming it', f"make {hidden[0]} an argument of {name}()")
    about = function.about or function.text if isinstance(function, Sql) else inspect.getdoc(function) or ""
    # JSON has no NaN, the text leaves out long lists: together they say all. Another Polars gives another digest.
    parts = [expression.meta.serialize(format="json"), str(expression), pl.__version__, {one: constants[one] for one in inputs if one in constants}]
    parts.append({one: lineage[one].digest if one in lineage else str(schema[one]) for one in inputs if one not in constants})
    return _traced(name, about, inputs, lineage, schema, constants, digest_of(parts))


def _traced(name: str, about: str, inputs: Sequence[str], lineage: Mapping[str, Feature], schema: Mapping[str, pl.DataType], constants: Mapping[str, Constant], digest: str) -> Feature:
    behind = [lineage[one] for one in inputs if one in lineage]
    columns = {column for each in behind for column in each.columns} | {one for one in inputs if one in schema}
    used = {one for each in behind for one in each.constants} | {one for one in inputs if one in constants}
    return Feature(name, about, tuple(inputs), tuple(each for each in schema if each in columns), tuple(each for each in constants if each in used), digest)
