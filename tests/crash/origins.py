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
    folder.mkdir(parents=True)
    (folder / "palan.toml").write_text(TOML, encoding="utf-8")
    (folder / ".palan").mkdir()
    migrations = sql.migrations()
    with sqlite3.connect(folder / ".palan" / "palan.db") as db:
        db.execute("pragma journal_mode = wal")
        db.executescript(sql.script(migrations[min(migrations)], "sqlite"))
        db.execute(f"pragma user_version = {min(migrations)}")
    db.close()
