"""A short crash campaign, each part once with a few blows: `make crash` is the long one. Kills of commands are in test_journal_resume."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crash.database import kills_of_postgresql
from crash.disk import full_disk
from crash.faults import built, faults
from crash.ingest import kills_of_ingest
from crash.locks import foreign_lock, foreign_lock_on_postgresql
from crash.migrations import kills_of_migrations, kills_of_migrations_on_postgresql
from crash.report import Found
from crash.server import kills_of_the_server
from crash.writers import kills_of_writers
from postgres import Database


def all_kept(found: Found, blows: int, *kinds: str) -> None:
    """Nothing is lost, as many blows fell as were asked for, and something of each kind was acknowledged in spite of them."""
    if found.skipped:
        pytest.skip(found.skipped)
    assert found.lost == []
    assert found.blows >= blows
    assert all(found.kept[kind] for kind in kinds), found.kept


def test_writers_and_readers_of_runs_are_killed(tmp_path: Path) -> None:
    all_kept(kills_of_writers(tmp_path, 11, 5, writers=4), 5, "points")


def test_the_server_is_killed(tmp_path: Path) -> None:
    all_kept(kills_of_the_server(tmp_path, 3, 1), 1, "decision", "batch")


def test_ingest_is_killed(tmp_path: Path) -> None:
    all_kept(kills_of_ingest(tmp_path, 5, 6), 6, "rows", "in quarantine")


def test_postgresql_is_restarted_and_killed(tmp_path: Path, postgres: Database) -> None:
    postgres.own()
    all_kept(kills_of_postgresql(tmp_path, 2, 2, postgres), 2, "put", "transaction", "claim", "frame")


def test_the_disk_is_full(tmp_path: Path) -> None:
    all_kept(full_disk(tmp_path, 7, 3), 3, "poured", "entry", "point")


def test_another_program_locks_the_database(tmp_path: Path) -> None:
    all_kept(foreign_lock(tmp_path, 1, 2), 1, "point", "entry")


def test_another_program_locks_the_tables_on_postgresql(tmp_path: Path, postgres: Database) -> None:
    all_kept(foreign_lock_on_postgresql(tmp_path, 1, 2, postgres), 1, "point", "entry")


def test_calls_of_the_system_fail(tmp_path: Path) -> None:
    all_kept(faults(tmp_path, 5, 3), 3, "open")


def test_a_migration_is_killed(tmp_path: Path) -> None:
    all_kept(kills_of_migrations(tmp_path, 6, 2), 4)


def test_a_migration_on_postgresql_is_killed(tmp_path: Path, postgres: Database) -> None:
    postgres.own()
    all_kept(kills_of_migrations_on_postgresql(tmp_path, 9, 3, postgres), 3)


LOGGED = """
import ctypes, errno, sys
from datetime import UTC, datetime
from pathlib import Path
from palan.errors import PalanError
from palan.runs.run import Run
from palan.stores import sqlite

sqlite.LOG_BYTES = 10 * 4120
shim = ctypes.CDLL(sys.argv[1])
refused = 0
for nth in range(1, 60):
    path = Path(sys.argv[2]) / str(nth) / "palan.db"
    records = sqlite.SQLiteRecords(path)
    shim.fault_arm(bytes(path) + b"-wal", ctypes.c_long(nth), 0, errno.EIO)
    for durable in [False] * 8 + [True]:
        try:
            with records.transaction(durable=durable):
                records.put(Run("r", "build", "x" * 20_000, "done", datetime.now(UTC)))
            assert not (durable and shim.fault_again(1)), f"call {nth}: acknowledged, with a log that the disk had refused"
        except PalanError as error:
            refused += durable and "start palan again" in error.what + error.hint
    shim.fault_arm(b"", ctypes.c_long(0), 0, 0)
    records.close()
print(refused)
"""


def test_nothing_durable_is_acknowledged_once_the_disk_refused_the_log_of_commits(tmp_path: Path) -> None:
    library = tmp_path / "faults.so"
    if not built(library):
        pytest.skip("there is no C compiler")
    done = subprocess.run([sys.executable, "-c", LOGGED, library, tmp_path], env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2  # at one call the durable commit itself was refused, at others a log that had grown long
