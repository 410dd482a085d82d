"""A short crash campaign, each part once with a few blows: `make crash` is the long one. Kills of commands are in test_journal_resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash.database import kills_of_postgresql
from crash.disk import full_disk
from crash.faults import faults
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
