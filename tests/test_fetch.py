"""Rows that are asked of databases and functions: only new ones, each once, whatever dies, and nothing quietly left out."""

from __future__ import annotations

import gzip
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from palan.data.nouns import DataVersion
from palan.errors import ModelFailed, NotFound, PalanError
from palan.flows import contracts, quarantine, tables
from palan.flows.ingest import ingest
from palan.flows.project import Project, open_project
from palan.flows.tick import tick
from postgres import Database

SOURCES = Path(__file__).resolve().parent.parent / "src"

TOML = """
[project]
name = "shop"
[data.orders]
source = "sqlite:shop.db"
query = "SELECT * FROM orders -- all of them;"
cursor = "at"
lateness = "1h"
key = ["id"]
time = "at"
[data.orders.columns]
id = "int"
at = "time"
price = "float 0..100"
"""


@pytest.fixture
def shop(tmp_path: Path) -> sqlite3.Connection:
    (tmp_path / "palan.toml").write_text(TOML, encoding="utf-8")
    db = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, at, price)")
    return db


@pytest.fixture
def project(tmp_path: Path, shop: sqlite3.Connection) -> Iterator[Project]:
    opened = open_project(tmp_path)
    yield opened
    opened.store.records.close()


def _config(root: Path, **more: str) -> Project:
    text = TOML
    for old, new in more.items():
        text = text.replace(*new.split(" => ")) if " => " in new else text.replace('time = "at"\n', f'time = "at"\n{old} = {new}\n')
    (root / "palan.toml").write_text(text, encoding="utf-8")
    return open_project(root)


def _rows(project: Project, name: str = "orders") -> list[tuple[Any, ...]]:
    version = tables.latest(project, name)
    return sorted(tables.read(project, version).select("id", "price").rows()) if version else []


def _put(db: sqlite3.Connection, *rows: tuple[Any, ...]) -> None:
    db.executemany("INSERT OR REPLACE INTO orders VALUES (?, ?, ?)", rows)


def test_only_new_corrected_and_late_rows_are_taken_in_and_the_same_twice_adds_nothing(project: Project, shop: sqlite3.Connection) -> None:
    _put(shop, (1, "2024-03-01 10:00:00", 1), (2, "2024-03-01 11:00:00", 2), (3, "2024-03-01 12:00:00", 3))
    first = ingest(project, "orders")[0]
    assert (first["rows"], first["total"], first["late"]) == (3, 3, 0)
    again = ingest(project, "orders")[0]
    assert again["text"] == "nothing new" and again["version"] == first["version"]

    _put(shop, (4, "2024-03-01T13:00:00+00:00", 4), (5, "2024-03-01 11:30:00", 5), (1, "2024-03-01 13:30:00", 1.5))
    third = ingest(project, "orders")[0]
    assert (third["rows"], third["corrections"], third["late"], third["total"]) == (2, 1, 1, 5)
    assert _rows(project) == [(1, 1.5), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.0)]
    newest = tables.latest(project, "orders")
    assert newest is not None and dict(newest.sources) == {"sqlite:shop.db by at": "2024-03-01T13:30:00+00:00"}

    _put(shop, (6, "2024-03-01 09:00:00", 6))  # later than lateness allows: that is what lateness says
    assert ingest(project, "orders")[0]["text"] == "nothing new"
    with_room = _config(project.root, lateness='"1h" => "6h"')
    assert ingest(with_room, "orders")[0]["rows"] == 1


def test_a_row_in_quarantine_waits_once_and_is_resolved_when_it_comes_corrected(project: Project, shop: sqlite3.Connection) -> None:
    _put(shop, (1, "2024-03-01 10:00:00", 1), (2, "2024-03-01 10:30:00", 500))
    assert ingest(project, "orders")[0]["waiting"] == 1
    _put(shop, (3, "2024-03-01 10:40:00", 3))
    report = ingest(project, "orders")[0]
    assert (report["rows"], report["quarantined"], report["waiting"]) == (1, 0, 1)
    assert quarantine.drop(project, "orders", quarantine.Asked(all=True), reason="a test")["waiting"] == 0
    _put(shop, (4, "2024-03-01 10:45:00", 4), (5, "2024-03-01 10:46:00", 501))
    report = ingest(project, "orders")[0]
    assert (report["rows"], report["quarantined"], report["waiting"]) == (1, 1, 1)  # what was dropped does not come back
    _put(shop, (5, "2024-03-01 10:50:00", 50))
    report = ingest(project, "orders")[0]
    assert (report["waiting"], _rows(project)) == (0, [(1, 1.0), (3, 3.0), (4, 4.0), (5, 50.0)])


@pytest.mark.parametrize("unit", [1, 1000])
def test_times_that_are_numbers_are_compared_as_numbers(project: Project, shop: sqlite3.Connection, unit: int) -> None:
    begin = int(datetime(2024, 3, 1, tzinfo=UTC).timestamp())
    _put(shop, *((id, (begin + id * 3600) * unit, id) for id in range(10)))
    assert ingest(project, "orders")[0]["rows"] == 10
    _put(shop, (10, (begin + 10 * 3600) * unit, 10))
    project.store.records.close()
    report = ingest(open_project(project.root), "orders")[0]
    assert (report["rows"], report["total"]) == (1, 11)


def test_what_is_no_time_is_asked_for_until_it_is_one_and_the_future_is_no_mark(project: Project, shop: sqlite3.Connection) -> None:
    _put(shop, (1, "2024-03-01 10:00:00", 1), (2, "yesterday", 2), (3, None, 3), (4, "2099-01-01 00:00:00", 4))
    assert (ingest(project, "orders")[0]["total"], len(quarantine.waiting(project, "orders"))) == (2, 1)
    _put(shop, (5, datetime.now(UTC).isoformat(), 5), (6, "tomorrow", 6))
    report = ingest(project, "orders")[0]
    assert (report["rows"], report["quarantined"], report["waiting"]) == (1, 1, 3)
    shop.execute("UPDATE orders SET at = ? WHERE id IN (2, 3)", (datetime.now(UTC).isoformat(),))
    report = ingest(project, "orders")[0]
    assert (report["total"], report["waiting"]) == (5, 1)


def test_a_table_without_a_key_takes_a_row_twice_only_where_it_is_there_twice(tmp_path: Path, shop: sqlite3.Connection) -> None:
    shop.executescript("DROP TABLE orders; CREATE TABLE orders (id INTEGER, at, price)")
    project = _config(tmp_path, key='key = ["id"]\n => ')
    _put(shop, (1, "2024-03-01 10:00:00", 1), (1, "2024-03-01 10:00:00", 1))
    assert ingest(project, "orders")[0]["total"] == 2
    _put(shop, (1, "2024-03-01 10:00:00", 1), (2, "2024-03-01 10:30:00", 2))
    assert ingest(project, "orders")[0]["total"] == 4
    shop.execute("UPDATE orders SET price = 9 WHERE id = 2")
    with pytest.raises(PalanError, match="no key that tells its old rows from its new ones"):
        ingest(project, "orders")
    project.store.records.close()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"a": 'at = "time" => at = "time?"'}, "may be missing"),
        ({"a": 'cursor = "at" => cursor = "changed"'}, "none of its columns"),
        ({"a": "FROM orders => FROM order_lines"}, "no such table"),
        ({"a": "SELECT * => DELETE"}, "syntax error"),
        ({"a": "sqlite:shop.db => sqlite:shopp.db"}, "there is no database"),
        ({"a": "SELECT * => SELECT id, price"}, "no such column"),
        ({"a": "SELECT * FROM orders -- all of them; => orders.sql"}, "orders.sql"),
        ({"a": 'lateness = "1h" => lateness = "100"'}, "does not fit the cursor"),
    ],
)
def test_a_mistake_is_said_and_nothing_is_lost(tmp_path: Path, shop: sqlite3.Connection, change: dict[str, str], what: str) -> None:
    _put(shop, (1, "2024-03-01 10:00:00", 1))
    good = open_project(tmp_path)
    assert ingest(good, "orders")[0]["total"] == 1
    good.store.records.close()
    _put(shop, (2, "2024-03-01 11:00:00", 1))
    bad = _config(tmp_path, **change)
    with pytest.raises(PalanError, match=what) as error:
        ingest(bad, "orders")
    assert error.value.hint
    bad.store.records.close()
    mended = _config(tmp_path)
    assert ingest(mended, "orders")[0]["total"] == 2
    assert not list((tmp_path / ".palan" / "spool").iterdir())
    mended.store.records.close()


def test_whatever_a_source_does_the_table_holds_what_it_held(tmp_path: Path, shop: sqlite3.Connection) -> None:
    """Random changes against what must be there: the last state of each row that came within the lateness."""
    rng = random.Random(20240301)
    project = _config(tmp_path)
    now, truth, mark = datetime(2024, 3, 1, tzinfo=UTC), {}, datetime(1970, 1, 1, tzinfo=UTC)
    for _ in range(12):
        for _ in range(rng.randrange(4)):
            now += timedelta(minutes=rng.randrange(50))
            id, at = rng.randrange(30), now - timedelta(minutes=rng.choice([0, 0, 5, 55, 300]))
            price = float(rng.randrange(100))
            _put(shop, (id, at.strftime(rng.choice(["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"])), price))
        for id, at_, price in shop.execute("SELECT id, at, price FROM orders"):
            if datetime.fromisoformat(at_).replace(tzinfo=UTC) >= mark - timedelta(hours=1):
                truth[id] = price
        if ingest(project, "orders")[0]["rows"]:
            newest = tables.latest(project, "orders")
            assert newest is not None
            mark = datetime.fromisoformat(newest.sources["sqlite:shop.db by at"])
        assert dict(_rows(project)) == truth
    versions = project.store.records.find(DataVersion, data="orders")
    assert 5 < len(versions) == len({each.number for each in versions})
    project.store.records.close()


# --- functions -----------------------------------------------------------------------------------------------------

FUNCTION = """
[project]
name = "shop"
[data.orders]
source = "feeds.py:orders"
cursor = "id"
key = ["id"]
[data.orders.columns]
id = "int"
price = "float?"
"""


@pytest.mark.parametrize(
    "body",
    [
        "return [{'id': n, 'price': n} for n in range(5)]",
        "return {'id': list(range(5)), 'price': [0.0, 1, 2, 3, 4]}",
        "yield from ({'id': n, 'price': float(n)} for n in range(5))",
        "import polars as pl\n    yield pl.DataFrame({'id': [0, 1]}); yield pl.DataFrame({'id': [2, 3, 4], 'price': [2.0, 3, 4]})",
        "import polars as pl\n    return pl.LazyFrame({'id': range(5)}).with_columns(price=pl.col('id') * 1.0)",
        "import pandas\n    return pandas.DataFrame({'id': range(5), 'price': range(5)})",
        "yield [{'id': 0, 'price': '0'}, {'id': 1}]; yield {'id': 2, 'price': 2.5}; yield [{'id': 3}, {'id': 4}]",
        "from decimal import Decimal\n    return [{'id': n, 'price': Decimal(n)} for n in range(5)]",
    ],
)
def test_a_function_gives_rows_in_whatever_form_is_at_hand(tmp_path: Path, body: str) -> None:
    (tmp_path / "palan.toml").write_text(FUNCTION)
    (tmp_path / "feeds.py").write_text(f"def orders():\n    {body}\n")
    project = open_project(tmp_path)
    report = ingest(project, "orders")[0]
    assert (report["rows"], report["waiting"]) == (5, 0)
    assert [id for id, _ in _rows(project)] == [0, 1, 2, 3, 4]
    assert ingest(project, "orders")[0]["text"] == "nothing new"
    project.store.records.close()


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("return 3", "gave a int"),
        ("yield {'id': 1}; raise RuntimeError('the feed broke')", "the feed broke"),
        ("import os\n    yield {'id': 1}; os._exit(3)", "ended"),
        ("import a_library_that_nobody_has", "a_library_that_nobody_has"),
        ("return [{'price': 1.0}]", "no column of what came"),
    ],
)
def test_what_a_function_does_wrong_is_said_and_nothing_of_it_is_taken_in(tmp_path: Path, body: str, what: str) -> None:
    (tmp_path / "palan.toml").write_text(FUNCTION)
    (tmp_path / "feeds.py").write_text("def orders(since=None):\n    yield {'id': 1, 'price': 1}\n")
    project = open_project(tmp_path)
    ingest(project, "orders")
    (tmp_path / "feeds.py").write_text(f"def orders(since=None):\n    {body}\n")
    with pytest.raises((ModelFailed, NotFound, PalanError), match=what):
        ingest(project, "orders")
    assert _rows(project) == [(1, 1.0)]
    project.store.records.close()


def test_a_function_is_told_from_where_and_what_it_gives_besides_is_known(tmp_path: Path) -> None:
    (tmp_path / "palan.toml").write_text(FUNCTION.replace('cursor = "id"', 'cursor = "id"\nlateness = "1"\nstart = "2"'))
    (tmp_path / "feeds.py").write_text("from pathlib import Path\ndef orders(since):\n    Path('asked').write_text(repr(since))\n    return [{'id': n, 'price': n} for n in range(int(Path('upto').read_text()))]\n")
    (tmp_path / "upto").write_text("5")
    project = open_project(tmp_path)
    assert ingest(project, "orders")[0]["rows"] == 3
    assert (tmp_path / "asked").read_text() == "2"
    (tmp_path / "upto").write_text("7")
    told = tick(project)
    assert any(each["what"] == "ingest orders" and "4 good, 0 in quarantine, 2 as before" in each["text"] for each in told), told
    assert (tmp_path / "asked").read_text() == "3"
    project.store.records.close()


CONNECTION = {
    "DB-API": "import sqlite3\ndef orders():\n    return sqlite3.connect('shop.db')\n",
    "ADBC": "import adbc_driver_sqlite.dbapi\ndef orders():\n    return adbc_driver_sqlite.dbapi.connect('shop.db')\n",
}


@pytest.mark.parametrize("kind", CONNECTION)
def test_a_function_may_give_a_connection_that_the_query_is_asked_of(tmp_path: Path, shop: sqlite3.Connection, kind: str) -> None:
    if kind == "ADBC":
        pytest.importorskip("adbc_driver_sqlite", reason="no adbc-driver-sqlite")
    (tmp_path / "palan.toml").write_text(TOML.replace("sqlite:shop.db", "feeds.py:orders").replace('cursor = "at"', 'cursor = "id"').replace('lateness = "1h"\n', ""))
    (tmp_path / "feeds.py").write_text(CONNECTION[kind])
    _put(shop, (1, "2024-03-01 10:00:00", 1.5), (2, "2024-03-01 11:00:00", None))
    project = open_project(tmp_path)
    report = ingest(project, "orders")[0]
    assert (report["total"], report["waiting"]) == (1, 1)
    _put(shop, (3, "2024-03-01 10:00:00", 3.0))
    assert ingest(project, "orders")[0]["total"] == 2
    project.store.records.close()


# --- palan data add ------------------------------------------------------------------------------------------------


def test_a_source_is_looked_at_and_written_into_palan_toml(tmp_path: Path, shop: sqlite3.Connection) -> None:
    (tmp_path / "palan.toml").write_text('# ours\n[project]\nname = "shop"')
    _put(shop, *((id, f"2024-03-{1 + id // 24:02d} {id % 24:02d}:00:00", id % 7) for id in range(200)))
    project = open_project(tmp_path)
    said = {"source": "sqlite:shop.db", "query": 'SELECT id, at, price * 1.0 AS price, "so" AS note FROM orders', "cursor": "id", "key": ["id"]}
    tried = contracts.add(project, "orders", said, dry_run=True)
    assert not tried["written"] and (tmp_path / "palan.toml").read_text().endswith('name = "shop"')
    added = contracts.add(project, "orders", said)
    text = (tmp_path / "palan.toml").read_text()
    assert text.startswith('# ours\n[project]\nname = "shop"\n\n[data.orders]\nsource = "sqlite:shop.db"\n') and text.endswith(added["lines"])
    assert added["rows"] == 200 and 'time = "at"' in text and "rows =" not in text
    project.store.records.close()
    again = open_project(tmp_path)
    _put(shop, (1000, "2024-03-31 00:00:00", 3))
    report = ingest(again, "orders")[0]
    assert (report["total"], report["waiting"]) == (201, 0)
    assert contracts.infer(again, "orders")["rows"] == 201
    again.store.records.close()


def test_files_are_added_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "palan.toml").write_text("")
    for month in (1, 2, 3):
        lines = [f"{day:02d}.0{month}.2026;Köln {day % 4};1.2{day:02d},50;{'' if day == 7 else 'n/a' if day == 8 else 100 + day}" for day in range(1, 29)]
        text = "\n".join(["Datum;Filiale;Umsatz;Kunden", *lines]).encode("cp1252" if month == 2 else "utf-8")
        (tmp_path / f"u{month}.csv.gz").write_bytes(gzip.compress(text))
    project = open_project(tmp_path)
    lines = contracts.add(project, "sales", {"source": "u*.csv.gz"})["lines"]
    project.store.records.close()
    for line in ('time = "Datum"', 'Datum = "date"', 'Filiale = "str?', 'Umsatz = "float? 1', 'rows = "'):
        assert line in lines
    again = open_project(tmp_path)
    report = ingest(again, "sales")[0]
    assert (report["total"], report["waiting"]) == (84, 0)
    again.store.records.close()


@pytest.mark.parametrize(
    ("name", "said", "what"),
    [
        ("orders", {"source": "sqlite:shop.db", "query": "SELECT 1"}, "already"),
        ("two words", {"source": "feed/*.csv"}, "no name of a table"),
        ("more", {"source": "feed/*.csv"}, "nothing matches"),
        ("more", {"source": "sqlite:shop.db", "query": "SELECT * FROM orders"}, "gives no rows"),
        ("more", {"source": "sqlite:shop.db", "query": "SELECT * FROM orders", "cursor": "changed", "start": "2024-01-01"}, "no such column"),
        ("more", {"source": "feed/../../*.csv"}, "leads out of the project"),
        ("more", {"source": "sqlite:shop.db"}, "query says what to take"),
        ("more", {"source": "palan.toml.py:X"}, "no file"),
    ],
)
def test_what_cannot_be_added_changes_nothing(project: Project, name: str, said: dict[str, Any], what: str) -> None:
    before = (project.root / "palan.toml").read_text()
    with pytest.raises(PalanError, match=what) as error:
        contracts.add(project, name, said)
    assert error.value.hint and (project.root / "palan.toml").read_text() == before


# --- PostgreSQL ----------------------------------------------------------------------------------------------------


def test_postgresql_gives_each_type_as_it_is_and_only_new_rows(tmp_path: Path, postgres: Database) -> None:
    psycopg = pytest.importorskip("psycopg")
    address = postgres.of(tmp_path)
    with psycopg.connect(address, autocommit=True) as db:
        db.execute("CREATE TABLE sales (id bigint, at timestamptz, day date, price numeric(30,10), n int2, ok bool, note text, more jsonb, tag uuid, local timestamp, share float4)")
        insert = "INSERT INTO sales VALUES (%s, %s, '2024-03-01', 12345678901234567.25, 7, true, %s, '{\"a\": [1, 2.50]}', '6ba7b810-9dad-11d1-80b4-00c04fd430c8', '2024-03-01 10:00', 0.5)"
        db.execute(insert, (1, datetime(2024, 3, 1, 12, tzinfo=UTC), "100 % 'quoted', \"and\"\nmore"))
        db.execute(insert, (2, datetime(2024, 3, 1, 13, tzinfo=UTC), ""))
        (tmp_path / "palan.toml").write_text(
            f"""[data.sales]
source = "{address}"
query = "SELECT * FROM sales WHERE note NOT LIKE '%never%'"
cursor = "at"
key = ["id"]
[data.sales.columns]
id = "int"
at = "time"
"""
        )
        project = open_project(tmp_path)
        assert ingest(project, "sales")[0]["total"] == 2
        row = tables.read(project, tables.find_data_version(project, "sales")).sort("id").row(0, named=True)
        assert row["at"] == datetime(2024, 3, 1, 12, tzinfo=UTC) and str(row["day"]) == "2024-03-01" and str(row["local"]) == "2024-03-01 10:00:00"
        assert (row["price"], row["n"], row["ok"], row["share"]) == ("12345678901234567.2500000000", 7, True, 0.5)
        assert row["note"] == "100 % 'quoted', \"and\"\nmore" and row["more"] == '{"a":[1,2.5]}' and row["tag"].startswith("6ba7b810")
        db.execute(insert, (3, datetime(2024, 3, 1, 13, tzinfo=UTC), "x"))
        report = ingest(project, "sales")[0]
        assert (report["rows"], report["corrections"], report["total"]) == (1, 0, 3)
        db.execute("DROP TABLE sales")
        with pytest.raises(PalanError, match='relation "sales" does not exist') as error:
            ingest(project, "sales")
        assert "password" not in str(error.value)
    project.store.records.close()


# --- deaths --------------------------------------------------------------------------------------------------------


def test_killed_at_any_instant_the_next_ingest_has_each_row_once(tmp_path: Path, shop: sqlite3.Connection) -> None:
    shop.execute("PRAGMA journal_mode = WAL")
    rng, truth = random.Random(7), {}
    begin = datetime(2024, 3, 1, tzinfo=UTC)
    kills = 0
    for round_ in range(2):
        rows = [(id, (begin + timedelta(seconds=id)).isoformat(), float(rng.randrange(100))) for id in range(round_ * 5000, round_ * 5000 + 5000)]
        _put(shop, *rows)
        truth |= {id: price for id, _, price in rows}
        child = subprocess.Popen([sys.executable, "-c", "from palan.cli import main; main()", "ingest", "orders"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SOURCES)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.1, 0.2) if round_ else rng.uniform(0.3, 1.2))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
    project = open_project(tmp_path)
    ingest(project, "orders")
    assert dict(_rows(project)) == truth and kills
    assert ingest(project, "orders")[0]["text"] == "nothing new"
    assert not list((tmp_path / ".palan" / "spool").iterdir())
    project.store.records.close()


def test_rows_of_many_types_in_one_column_are_kept_as_text(tmp_path: Path) -> None:
    from palan.engines.spool import Spool, frame_of, spooled

    spool = Spool(tmp_path / "a.parquet")
    spooled(iter([{"a": 1, "b": 1}, pl.DataFrame({"a": ["x"], "b": [2.5]}), {"a": 2**70, "b": None}, {"a": b"\x00\xff", "c": datetime(2024, 3, 1, tzinfo=UTC)}]), spool)
    assert spool.close() == 4
    assert pl.read_parquet(tmp_path / "a.parquet").rows() == [("1", 1.0, None), ("x", 2.5, None), (str(2**70), None, None), ("00ff", None, datetime(2024, 3, 1, tzinfo=UTC))]
    assert frame_of([[2**53 + 1, 0.5]], ["a"])["a"].to_list() == ["9007199254740993", "0.5"]
    empty = Spool(tmp_path / "b.parquet")
    assert empty.close() == 0 and pl.read_parquet(tmp_path / "b.parquet").height == 0
