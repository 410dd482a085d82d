"""Rows as they come from elsewhere, kept on this machine as one Parquet file: what is judged is read more than once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from palan.errors import PalanError

ROWS = 50_000
"""Rows that are asked of a cursor at a time."""

CHUNK = 64 << 20
"""Bytes of rows that are held before they are written."""

_EXACT = 2**53
"""The whole number from which a float no longer holds each."""


class Spool:
    """Takes rows in pieces and makes one file of them, in bounded memory. A column that changes its type is kept as text.

    Args:
        path: the file to be made. Its pieces lie beside it until then.
    """

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._path = path
        self._folder = path.with_suffix(".pieces")
        self._schemas: list[pl.Schema] = []
        self._held: list[pl.DataFrame] = []
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

    def add(self, rows: pl.DataFrame) -> None:
        if self._held and self._held[-1].schema != rows.schema:
            self._flush()
        self._held.append(rows)
        self.rows += rows.height
        if sum(each.estimated_size() for each in self._held) >= CHUNK:
            self._flush()

    def close(self) -> int:
        """Make the file, and return how many rows it has. It is there whole or not at all."""
        self._flush()
        temp = self._folder / "whole"
        names = list(dict.fromkeys(name for schema in self._schemas for name in schema))
        shared = pl.Schema({name: _shared([schema[name] for schema in self._schemas if name in schema]) for name in names})
        if all(schema == shared for schema in self._schemas) and len(self._schemas) == 1:
            temp = self._piece(0)
        else:
            scans = [pl.scan_parquet(self._piece(number)).select(_as(schema.get(name), dtype, name) for name, dtype in shared.items()) for number, schema in enumerate(self._schemas)]
            pl.concat(scans).sink_parquet(temp, compression="zstd", compression_level=1) if scans else pl.DataFrame().write_parquet(temp)
        with temp.open("rb") as file:
            os.fsync(file.fileno())
        temp.replace(self._path)
        self.drop()
        return self.rows

    def drop(self) -> None:
        """Leave nothing behind of what was not made a file."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _flush(self) -> None:
        if self._held:
            rows = pl.concat(self._held)
            rows.write_parquet(self._piece(len(self._schemas)), compression="zstd", compression_level=1)
            self._schemas.append(rows.schema)
            self._held = []

    def _piece(self, number: int) -> Path:
        return self._folder / f"{number:06d}"


def _shared(kinds: Sequence[pl.DataType]) -> pl.DataType:
    """Return the type that holds what came in these types, text where nothing else does."""
    found = {kind for kind in kinds if kind != pl.Null} or {pl.String()}
    if found == {pl.Int64(), pl.Float64()}:
        return pl.Float64()
    return found.pop() if len(found) == 1 else pl.String()


def _as(here: pl.DataType | None, dtype: pl.DataType, name: str) -> pl.Expr:
    if here is None:
        return pl.lit(None, dtype).alias(name)
    return pl.col(name) if here == dtype else pl.col(name).cast(dtype)


def spooled(made: object, spool: Spool, most: int | None = None) -> None:
    """Take whatever a function gave: a frame (of Polars, pandas, Arrow), a table of columns, rows as mappings, or batches of these;
    about so many rows at most.

    Raises:
        PalanError: something else is among it.
    """
    rows: list[Mapping[str, Any]] = []
    for each in [made] if _is_frame(made) or isinstance(made, Mapping) else made if isinstance(made, Iterable) and not isinstance(made, str | bytes) else [made]:
        if isinstance(each, Mapping) and not _is_frame(each) and not _is_columns(each):
            rows.append(each)
        else:
            _add_rows(rows, spool)
            rows = []
            for frame in _frames(each):
                spool.add(frame)
        if len(rows) >= ROWS:
            _add_rows(rows, spool)
            rows = []
        if most and spool.rows + len(rows) >= most:
            break
    _add_rows(rows, spool)


def _add_rows(rows: Sequence[Mapping[str, Any]], spool: Spool) -> None:
    if rows:
        names = list(dict.fromkeys(str(name) for row in rows for name in row))
        spool.add(frame_of(([row.get(name) for row in rows] for name in names), names))


def _is_frame(made: object) -> bool:
    return isinstance(made, pl.DataFrame | pl.LazyFrame) or hasattr(made, "__arrow_c_stream__")


def _is_columns(made: Mapping[Any, Any]) -> bool:
    return bool(made) and all(isinstance(each, list | tuple | pl.Series) or type(each).__module__ == "numpy" for each in made.values())


def _frames(made: object) -> Iterator[pl.DataFrame]:
    if isinstance(made, pl.LazyFrame):
        yield from made.collect_batches(chunk_size=ROWS, maintain_order=True)
    elif isinstance(made, pl.DataFrame):
        yield made
    elif isinstance(made, Mapping):
        yield frame_of(({name: list(column) for name, column in made.items()}).values(), [str(name) for name in made])
    elif hasattr(made, "__arrow_c_stream__"):
        yield pl.DataFrame(made)
    elif isinstance(made, list | tuple) and all(isinstance(row, Mapping) for row in made):
        names = list(dict.fromkeys(str(name) for row in made for name in row))
        yield frame_of(([row.get(name) for row in made] for name in names), names)
    else:
        raise PalanError(f"the function gave a {type(made).__name__}", "yield Polars, pandas or Arrow tables, or rows such as {'id': 1, 'price': 2.5}")


def frame_of(columns: Iterable[Sequence[Any]], names: Sequence[str]) -> pl.DataFrame:
    """Return columns of Python values as a frame: each in its own type where all its values share one, else as text, exactly.

    Raises:
        PalanError: two columns have one name.
    """
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise PalanError(f'two columns are named "{twice}"', f"name them: SELECT ... AS {twice}_2")
    return pl.DataFrame([_series(name, values) for name, values in zip(names, columns, strict=True)] if names else [])


def _series(name: str, values: Sequence[Any]) -> pl.Series:
    kinds = {type(value) for value in values} - {type(None)}
    dtype: pl.DataType | None = None
    if kinds == {bool}:
        dtype = pl.Boolean()
    elif kinds == {str}:
        dtype = pl.String()
    elif kinds == {int} or (kinds <= {int, float} and not any(type(value) is int and abs(value) > _EXACT for value in values)):
        dtype = pl.Int64() if kinds == {int} else pl.Float64() if kinds else pl.Null()
    elif kinds == {date}:
        dtype = pl.Date()
    elif kinds == {datetime}:
        zones = {value.tzinfo is not None for value in values if value is not None}
        dtype = None if len(zones) > 1 else pl.Datetime("us", "UTC") if zones.pop() else pl.Datetime("us")
    if dtype is not None:
        with suppress(OverflowError, pl.exceptions.PolarsError):
            return pl.Series(name, values, dtype=dtype)
    return pl.Series(name, [_text(value) for value in values], dtype=pl.String)


def _text(value: Any) -> str | None:
    """Return a value as text that says all of it."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, timedelta):
        return str(value.total_seconds())
    if isinstance(value, Mapping | list | tuple):
        return msgspec.json.encode(value, enc_hook=str).decode()
    return str(value)
