"""Which columns each column of a made table comes from: asked of Polars' own plan, on tables without rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

Lineage = dict[str, Any]
"""`columns`: made column -> the columns "table.column" that its value comes from; `rows`: those that decide which rows there are."""


def traced(make: Callable[[Mapping[str, pl.LazyFrame]], pl.LazyFrame], schemas: Mapping[str, Mapping[str, pl.DataType]]) -> Lineage:
    """Return which columns of these tables are read for each column of what is made of them.

    The optimiser asks each table for what a column needs and for nothing more. What filters and joins read decides the rows
    and is told apart, unless nothing else is read for a column.
    """
    read: set[str] = set()

    def scan(name: str, wanted: list[str] | None, _predicate: pl.Expr | None, rows: int | None, size: int | None) -> Iterator[pl.DataFrame]:
        schema = schemas[name] if wanted is None else {column: schemas[name][column] for column in wanted}
        read.update(f"{name}.{column}" for column in schema)
        yield pl.DataFrame(schema=dict(schema))

    def reads(frame: pl.LazyFrame) -> set[str]:
        read.clear()
        frame.collect()
        return set(read)

    made = make({name: register_io_source(partial(scan, name), schema=dict(schema)) for name, schema in schemas.items()})
    return told({column: reads(made.select(column)) for column in made.collect_schema()}, reads(made.select(pl.len())))


def told(columns: Mapping[str, set[str]], rows: set[str]) -> Lineage:
    """Part what a column's value comes from and what decides the rows: that is read for every column."""
    rows = rows.intersection(*columns.values())  # a count alone reads any column

    def values(column: str, read: set[str]) -> set[str]:
        return read - rows or {each for each in read if each.partition(".")[2] == column} or read

    return {"columns": {column: sorted(values(column, read)) for column, read in columns.items()}, "rows": sorted(rows)}
