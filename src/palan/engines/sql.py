"""Tables made by SQL, in the worker: by Polars, or by DuckDB, which sees a folder of its own and nothing else."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from palan.data.sql import tokens
from palan.data.traced import Lineage, told, traced
from palan.errors import MissingExtra, ModelFailed, PalanError, nearest

Tables = Mapping[str, pl.DataFrame]

ENGINES = ("polars", "duckdb")


def made(query: str, file: str, engine: str, tables: Tables) -> tuple[pl.DataFrame, Lineage]:
    """Return what a query makes of the tables, and where its columns come from.

    Raises:
        ModelFailed: the query is wrong, with the line; or it found no way.
        MissingExtra: DuckDB is not installed.
        PalanError: there is no such engine.
    """
    if engine not in ENGINES:
        raise PalanError(f'there is no "{engine}" to run {file}', nearest(engine, ENGINES) or f'transform = "{file}", or "{file}:duckdb"')
    return _polars(query, file, tables) if engine == "polars" else _duckdb(query, file, tables)


def _polars(query: str, file: str, tables: Tables) -> tuple[pl.DataFrame, Lineage]:
    def make(frames: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
        return pl.SQLContext(frames=dict(frames), eager=False).execute(query)

    with _located(query, file, tables, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        lineage = traced(make, {name: table.schema for name, table in tables.items()})
        return make({name: table.lazy() for name, table in tables.items()}).collect(), lineage


def _duckdb(query: str, file: str, tables: Tables) -> tuple[pl.DataFrame, Lineage]:
    try:
        import duckdb
    except ImportError:
        raise MissingExtra("duckdb", "duckdb", f"{file}:duckdb") from None
    with tempfile.TemporaryDirectory(prefix="palan-duckdb-") as folder, _located(query, file, tables, duckdb.Error), _opened(folder) as database:
        statements = database.extract_statements(query)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise PalanError(f"{file} is not one SELECT", "one query that gives the rows of the table")
        for name, table in tables.items():
            table.write_parquet(path := Path(folder) / f"{len(list(Path(folder).iterdir()))}.parquet", compression="lz4")
            database.execute(f"CREATE VIEW {_quoted(name)} AS SELECT * FROM read_parquet('{path}')")
        _confine(database, folder)
        answer = Path(folder) / "answer.parquet"
        database.sql(query).write_parquet(str(answer))
        frame = pl.read_parquet(answer)
        with _opened(folder) as empty:
            for place, name in enumerate(tables):
                empty.execute(f"CREATE TABLE {_quoted(name)} AS SELECT * FROM read_parquet('{Path(folder) / f'{place}.parquet'}') LIMIT 0")
            empty.execute("SET disabled_optimizers = 'statistics_propagation,empty_result_pullup'")
            reads = partial(_reads, empty, query.rstrip().rstrip(";"), tables)
            return frame, told({column: reads(_quoted(column)) for column in frame.columns}, reads("count(*)"))


@contextmanager
def _opened(folder: str) -> Iterator[Any]:
    import duckdb

    # Nothing of this process is visible to it by its name, and nothing is fetched from elsewhere.
    config: dict[str, str | bool | int | float | list[str]] = {"python_enable_replacements": False, "autoinstall_known_extensions": False, "autoload_known_extensions": False, "temp_directory": folder}
    with duckdb.connect(":memory:", config=config) as database:
        database.execute("SET TimeZone = 'UTC'")
        yield database


def _confine(database: Any, folder: str) -> None:
    for setting in (f"allowed_directories = ['{folder}']", "enable_external_access = false", "lock_configuration = true"):
        database.execute(f"SET {setting}")


def _reads(database: Any, query: str, tables: Tables, column: str) -> set[str]:
    """Return the columns that DuckDB's plan reads for one column of a query."""
    ((_, plan),) = database.execute(f"EXPLAIN (FORMAT json) SELECT {column} FROM ({query}\n) AS palan_query").fetchall()
    names = {name.lower(): name for name in tables}
    found: set[str] = set()

    def walk(node: Mapping[str, Any]) -> None:
        about = node["extra_info"]
        table = names.get(str(about.get("Table", "")).rpartition(".")[2].strip('"').lower())
        if table is not None:
            asked = about.get("Projections", ())
            filters = str(about.get("Filters", ""))
            read = [asked] if isinstance(asked, str) else asked
            found.update(f"{table}.{each}" for each in tables[table].columns if each in read or re.search(rf"\b{re.escape(each)}\b", filters))
        for child in node["children"]:
            walk(child)

    for root in json.loads(plan):
        walk(root)
    return found


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def _located(query: str, file: str, tables: Tables, *errors: type[BaseException]) -> Iterator[None]:
    """Tell what is wrong with a query by its line, and by what was meant."""
    try:
        yield
    except errors as error:
        text = str(error)
        first = text.splitlines()[0].removeprefix("sql parser error: ").partition("; valid columns")[0]
        line = re.search(r"line:? (\d+)", text, re.IGNORECASE)
        first = re.sub(r" at Line: \d+, Column: \d+", "", first)
        quoted = re.search(r"[\"'`]([^\"'`]+)[\"'`]", first)
        named = next((each for each in tokens(query) if quoted and each.kind in ("word", "name") and each.plain.lower() == quoted.group(1).lower()), None)
        place = f" line {line.group(1)}" if line else f" line {named.line}" if named else ""
        known = [*tables, *(column for table in tables.values() for column in table.columns)]
        hint = nearest(named.plain, known) if named and named.plain not in known else ""
        raise ModelFailed(f"{file}{place}: {first[:300]}", hint or "put the query right", log=text) from None


def of_function(function: Callable[..., Any], tables: Tables) -> Lineage:
    """Return where the columns that a function of tables makes come from, as far as it takes tables that are not read yet."""
    return traced(lambda frames: function(**frames), {name: table.schema for name, table in tables.items()})
