"""Projects that a campaign begins with."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from crash.work import NOON, TOML
from palan.flows.project import open_project, record
from palan.runs.run import Run
from palan.stores import sql
from palan.stores.segments import SegmentBlocks


def project(folder: Path) -> None:
    """A project with a closed segment to compact, and an entry in its ledger."""
    folder.mkdir(parents=True)
    (folder / "palan.toml").write_text(TOML, encoding="utf-8")
    opened = open_project(folder)
    record(opened, "noted", "crash", "before")
    opened.store.records.put(Run("before", "noted", "crash", "done", NOON))
    for name in ("one", "two"):
        blocks = SegmentBlocks(folder / ".palan" / "blocks")
        blocks.append("crash", [f"{name} {number}".encode() for number in range(3)])
        blocks.close()
    opened.store.records.close()


def oldest(folder: Path) -> None:
    """The same, as a palan of the first schema left it."""
    project(folder)
    path = folder / ".palan" / "palan.db"
    newer = path.rename(path.with_suffix(".new"))
    migrations = sql.migrations()
    with sqlite3.connect(path) as db:
        db.execute("pragma journal_mode = wal")
        db.executescript(sql.script(migrations[min(migrations)], "sqlite"))
        db.execute("attach ? as newer", [str(newer)])
        for table in ("run", "entry", "head"):
            columns = ", ".join(row[1] for row in db.execute(f"pragma table_info({table})"))
            db.execute(f"insert into {table} select {columns} from newer.{table}")
        db.commit()
        db.execute(f"pragma user_version = {min(migrations)}")
    db.close()
    newer.unlink()
