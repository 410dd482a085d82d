"""Asking databases for rows: SQLite, PostgreSQL, and whatever gives a DB-API or ADBC connection."""

from __future__ import annotations

import importlib.util
import re
import sqlite3
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from datetime import date, datetime
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from palan.data.sources import SINCE, Mark
from palan.engines.spool import ROWS, frame_of
from palan.errors import MissingExtra, PalanError

_MARKERS: Mapping[str, str] = {"qmark": "?", "numeric": ":1", "named": ":since", "format": "%s", "pyformat": "%(since)s"}

WAIT = 30.0
"""Seconds for which another's lock, or a server that does not answer, is waited for."""


class Cursor(Protocol):
    """What PEP 249 says of a cursor, as far as it is asked here."""

    @property
    def description(self) -> Any: ...
    def fetchmany(self, size: int, /) -> Any: ...


def asked(query: str, cursor: str, *, since: bool, marker: str, compare: str = "") -> str:
    """Return the query that asks for rows from where the cursor has come to, with the marker of a driver in its place."""
    text = query.strip().rstrip(";").rstrip()
    doubled = text.replace("%", "%%") if marker.startswith("%") and since else text
    if SINCE in text:
        return doubled.replace(SINCE, marker)
    if not since:
        return text
    name = cursor if re.fullmatch(r"[a-z_][a-z0-9_]*", cursor) else '"' + cursor.replace('"', '""') + '"'
    condition = compare or f"palan_rows.{name} >= {marker} OR palan_rows.{name} IS NULL"
    return _around(f"{doubled}\n) AS palan_rows", f"WHERE {condition}")


def _around(query: str, rest: str, what: str = "*") -> str:
    """Return what asks a query for a part of its rows; it may end in a comment."""
    return "\n".join(["SELECT", what, "FROM (", query, rest])


def sqlite(path: Path, query: str, cursor: str, since: Mark | None) -> Generator[pl.DataFrame]:
    """Yield the rows of a query, read from a database file that is not written to.

    Raises:
        PalanError: no such file, no SQLite, or a query that it does not understand.
    """
    if not path.is_file():
        raise PalanError(f"there is no database {path}", 'source = "sqlite:FILE"')
    from urllib.parse import quote

    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=WAIT)) as db:
            bound, compare = _bound(db, query, cursor, since)
            text = asked(query, cursor, since=since is not None, marker=":since", compare=compare)
            yield from _rows(_executed(db.cursor(), text, {"since": bound} if since is not None else {}))
    except sqlite3.Error as error:
        raise PalanError(f"{path.name}: {error}", "put query right; sqlite3 shows what the database has: .schema") from error


def _bound(db: sqlite3.Connection, query: str, cursor: str, since: Mark | None) -> tuple[Any, str]:
    """Return a time as this database writes it, and how it is compared: SQLite has no type for it, but text and numbers."""
    if not isinstance(since, date) or SINCE in query:
        return (since.isoformat(" ") if isinstance(since, datetime) else str(since) if isinstance(since, date) else since), ""
    name = '"' + cursor.replace('"', '""') + '"'
    one = _around(f"{query.strip().rstrip(';').rstrip()}\n)", f"WHERE {name} IS NOT NULL LIMIT 1", f"typeof({name}), {name}")
    found = db.execute(one).fetchone()
    if found and found[0] in ("integer", "real"):
        seconds = since.timestamp() if isinstance(since, datetime) else (since - date(1970, 1, 1)).days * 86400.0
        return seconds * (1000 if abs(found[1]) >= 1e11 else 1), ""
    column = f"palan_rows.{name}"
    # a text that is no time is asked for again and again rather than never
    early = f"julianday({column}) >= julianday(:since) - 0.00001"
    return since.isoformat(), f"{early} OR julianday({column}) IS NULL"


def postgresql(address: str, query: str, cursor: str, since: Mark | None) -> Generator[pl.DataFrame]:
    """Yield the rows of a query, asked in a read-only transaction whose times are in UTC.

    Raises:
        MissingExtra: psycopg is not installed.
        PalanError: the server does not answer, or does not understand the query.
    """
    try:
        import psycopg
    except ImportError:
        raise MissingExtra("psycopg", "postgres", "a source on PostgreSQL") from None
    try:
        with psycopg.connect(address, connect_timeout=int(WAIT), application_name="palan") as db:
            db.execute("SET TIME ZONE 'UTC'")
            db.commit()
            db.isolation_level, db.read_only = psycopg.IsolationLevel.REPEATABLE_READ, True
            with db.cursor(name="palan", binary=True) as rows:
                rows.itersize = ROWS
                text = asked(query, cursor, since=since is not None, marker="%(since)s")
                rows.execute(text.encode(), {"since": since} if since is not None else None)
                yield from _rows(rows)
    except psycopg.Error as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise PalanError(f"PostgreSQL: {said[0]}", "put source or query right; psql shows what the server has") from error


def of_connection(connection: Any, query: str, cursor: str, since: Mark | None) -> Generator[pl.DataFrame]:
    """Yield the rows of a query on a connection as PEP 249 or ADBC has it, and close it."""
    style = _style(connection)
    marker = _MARKERS[style]
    values: Any = {"since": since} if style in ("named", "pyformat") else (since,)
    text = asked(query, cursor, since=since is not None, marker=marker)
    with closing(connection):
        made = connection.cursor()
        try:
            done = _executed(made, text, values if since is not None else None)
            if hasattr(done, "fetch_arrow"):
                yield from _arrow(done)
                return
            yield from _rows(done)
        finally:
            made.close()


def _arrow(cursor: Any) -> Iterator[pl.DataFrame]:
    """Yield what ADBC gives: batch by batch where pyarrow can part them, else at once."""
    if importlib.util.find_spec("pyarrow") is None:
        yield pl.DataFrame(cursor.fetch_arrow())
        return
    empty = True
    reader = cursor.fetch_record_batch()
    for batch in reader:
        found, empty = pl.from_arrow(batch), False
        yield found if isinstance(found, pl.DataFrame) else found.to_frame()
    if empty:
        yield pl.DataFrame(reader.schema.empty_table())


def _style(connection: Any) -> str:
    """Return how the driver of a connection marks a parameter."""
    parts = type(connection).__module__.split(".")
    for end in range(len(parts), 0, -1):
        for name in (".".join(parts[:end]), ".".join([*parts[:end], "dbapi"])):
            style = getattr(sys.modules.get(name), "paramstyle", "")
            if style in _MARKERS:
                return str(style)
    return "qmark"


def _executed(cursor: Any, text: str, values: Any) -> Any:
    if values:
        cursor.execute(text, values)
    else:
        cursor.execute(text)
    return cursor


def _rows(cursor: Cursor) -> Iterator[pl.DataFrame]:
    if cursor.description is None:
        raise PalanError("the query gives no rows", 'query = "SELECT ..."')
    names = [str(each[0]) for each in cursor.description]
    empty = True
    while rows := cursor.fetchmany(ROWS):
        empty = False
        yield frame_of(zip(*rows, strict=True), names)
    if empty:
        yield frame_of([[] for _ in names], names)
