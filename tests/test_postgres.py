"""A store on PostgreSQL keeps what it acknowledged: the suites, restarts and kills of the server, migrations, a whole project."""

from __future__ import annotations

from pathlib import Path

import pytest

from postgres import Database

pytest.importorskip("psycopg", reason='no psycopg: pip install "palan[postgres]"')

from palan.stores.postgres import PostgresBlocks, PostgresRecords, Server
from palan.testing import BlocksSuite, RecordsSuite


class TestRecords(RecordsSuite):
    @pytest.fixture(autouse=True)
    def on(self, postgres: Database) -> None:
        self.postgres = postgres

    def open(self, folder: Path) -> PostgresRecords:
        return PostgresRecords(Server(self.postgres.of(folder)))


class TestBlocks(BlocksSuite):
    @pytest.fixture(autouse=True)
    def on(self, postgres: Database) -> None:
        self.postgres = postgres

    def open(self, folder: Path) -> PostgresBlocks:
        return PostgresBlocks(Server(self.postgres.of(folder)))
