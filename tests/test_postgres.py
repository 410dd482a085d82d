"""A store on PostgreSQL keeps what it acknowledged: the suites, restarts and kills of the server, lost answers, migrations, rights."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from palan.cli import main
from palan.core import Version
from palan.errors import Busy, Conflict, Corrupt, PalanError
from palan.flows.project import open_project, record
from palan.ledger import Entry, link
from palan.releases.nouns import Arm, Release
from palan.runs.run import Run, Step
from palan.stores import open_store, sql
from palan.stores.files import FileBlobs
from palan.stores.sqlite import SQLiteRecords
from palan.testing import BlocksSuite, RecordsSuite
from postgres import Database, Wire

pytest.importorskip("psycopg", reason='no psycopg: pip install "palan[postgres]"')

from palan.stores import postgres as stores
from palan.stores.postgres import PostgresBlocks, PostgresRecords, Server

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SOURCES = Path(__file__).resolve().parent.parent / "src"
RUN = Run("r1", "build", "delay", "done", NOON)


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


class TestShippedBlocks(TestBlocks):
    """Compacted segments lie in the blobs."""

    def open(self, folder: Path) -> PostgresBlocks:
        return PostgresBlocks(Server(self.postgres.of(folder)), FileBlobs(folder / "blobs"))


@pytest.fixture
def server(postgres: Database, tmp_path: Path) -> Iterator[Server]:
    opened = Server(postgres.of(tmp_path))
    yield opened
    opened.close()


@pytest.fixture
def wire(postgres: Database, tmp_path: Path) -> Iterator[Wire]:
    made = Wire(postgres, tmp_path)
    yield made
    made.close()


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def data(blocks: PostgresBlocks, stream: str = "s") -> list[bytes]:
    return [frame.data for frame in blocks.scan(stream)]


# --- as on SQLite ---


def test_both_databases_have_the_same_tables(server: Server, postgres: Database, tmp_path: Path) -> None:
    lite = SQLiteRecords(tmp_path / "palan.db")
    kinds = {"text": "text", "integer": "bigint", "real": "double precision", "blob": "bytea"}
    for table, columns in {
        table: lite._db.execute(f"pragma table_info({table})").fetchall() for (table,) in lite._db.execute("select name from sqlite_master where type = 'table'").fetchall()
    }.items():
        found = postgres.execute(tmp_path, f"select column_name, data_type, is_nullable, collation_name from information_schema.columns where table_schema = current_schema() and table_name = '{table}' order by ordinal_position")
        expected = [(name, kinds[kind.lower()], "NO" if needed or key else "YES", "C" if kind.lower() == "text" else None) for _, name, kind, needed, _, key in columns]
        assert found == expected, table
    indexes = "select indexname from pg_indexes where schemaname = current_schema() and indexname like '%\\_by\\_%' and tablename <> 'segment'"
    assert {name for (name,) in postgres.execute(tmp_path, indexes)} == {name for (name,) in lite._db.execute("select name from sqlite_master where type = 'index' and name like '%\\_by\\_%' escape '\\'")}


def test_both_databases_find_the_same_in_the_same_order(server: Server, tmp_path: Path) -> None:
    both = PostgresRecords(server), SQLiteRecords(tmp_path / "palan.db")
    names = ["b", "B", "é", "e", "z", "Z", "_", "-", "a b", "aB", "日", "😀", ""]
    for records in both:
        for number, name in enumerate(names):
            records.put(Run(f"r{number}", "build", name, "done", NOON, ended=None if number % 3 else NOON - timedelta(hours=number)))
    for order in ("subject", "-subject", "ended", "-ended", "", "-id"):
        found = [[run.id for run in records.find(Run, order=order)] for records in both]
        assert found[0] == found[1], order
    assert len(found[0]) == len(names)


def test_the_database_itself_refuses_to_change_the_ledger(server: Server, postgres: Database, tmp_path: Path) -> None:
    import psycopg

    records = PostgresRecords(server)
    entry = link(None, time=NOON, actor="ada", verb="built", subject="delay@1", reason="first")
    records.add(entry)
    for statement in ("update entry set reason = 'x'", "delete from entry", "update entry set seq = 7", "truncate entry"):
        with pytest.raises(psycopg.IntegrityError, match="append-only"):
            postgres.execute(tmp_path, statement)
    assert records.find(Entry) == [entry]


def test_what_text_cannot_hold_is_refused_and_nothing_else_is_lost(server: Server) -> None:
    records = PostgresRecords(server)
    with pytest.raises(PalanError, match="cannot keep a value"):
        records.put(replace(RUN, reason="a\0b"))
    records.put(replace(RUN, params={"in JSON": "a\0b"}))
    assert records.find(Run) == [replace(RUN, params={"in JSON": "a\0b"})]


def test_a_transaction_in_which_a_statement_failed_records_nothing(server: Server) -> None:
    records = PostgresRecords(server)
    with pytest.raises(PalanError, match="recorded nothing of it"), records.transaction():
        records.put(RUN)
        with pytest.raises(PalanError):
            records.put(replace(RUN, id="r2", reason="\0"))
            records.put(replace(RUN, token=2**70))
        with pytest.raises(Exception, match="division by zero"):
            records._read("select 1 / 0", ())
    assert records.find(Run) == []


# --- side by side ---


def test_a_transaction_is_alone_and_single_writes_wait_for_it(server: Server, postgres: Database, tmp_path: Path) -> None:
    records, seen = PostgresRecords(server), []

    def write() -> None:
        PostgresRecords(Server(postgres.of(tmp_path))).put(replace(RUN, id="r2"))
        seen.append("written")

    with records.transaction():
        writer = threading.Thread(target=write)
        writer.start()
        while not postgres.execute(tmp_path, "select 1 from pg_locks where locktype = 'advisory' and not granted"):
            time.sleep(0.01)
        assert seen == [] and records.find(Run) == []
        records.put(RUN)
    writer.join()
    assert sorted(run.id for run in records.find(Run)) == ["r1", "r2"]


def test_a_foreign_lock_is_told_with_the_command_that_finds_it(server: Server, postgres: Database, tmp_path: Path) -> None:
    impatient = PostgresRecords(Server(postgres.of(tmp_path), wait=0.05))
    with PostgresRecords(server).transaction():
        with pytest.raises(Conflict, match="another program has locked the store") as refused:
            impatient.put(RUN)
        with pytest.raises(Conflict), impatient.transaction():
            pass
    assert refused.value.hint.startswith("find it with: psql -h ")
    impatient.put(RUN)
    assert impatient.get(Run, "r1") == RUN


TOGETHER = """
import sys
from datetime import UTC, datetime
from msgspec.structs import replace
from pathlib import Path
from palan.releases.nouns import Arm, Release
from palan.runs.run import Run
from palan.stores import open_store
noon = datetime(2026, 3, 1, tzinfo=UTC)
store, name, won = open_store(sys.argv[1], Path(sys.argv[2])), sys.argv[3], 0
store.records.add(Release("delay", 1, noon, (Arm("delay@1", "champion", 1.0),)))
for number in range(25):
    store.records.put(Run(f"{name}-{number}", "build", name, "done", noon))
    store.blocks.append("s", [f"{name}-{number}".encode()])
    with store.records.transaction():
        count = store.records.get(Run, "count") or Run("count", "count", "", "done", noon)
        store.records.put(replace(count, token=count.token + 1))
    if number % 10 == 0:
        store.blocks.compact("s")
while (now := store.records.get(Release, "delay")).epoch < 60:
    won += store.records.swap(replace(now, epoch=now.epoch + 1), epoch=now.epoch)
print(won)
"""


def test_processes_open_a_new_store_and_write_it_at_once(postgres: Database, tmp_path: Path) -> None:
    writers = [python(TOGETHER, postgres.of(tmp_path), tmp_path, name) for name in "abc"]
    won = 0
    for writer in writers:
        out, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
        won += int(out)
    assert won == 59  # each epoch was won once
    store = open_store(postgres.of(tmp_path), tmp_path)
    names = sorted(f"{name}-{number}" for name in "abc" for number in range(25))
    assert sorted(run.id for run in store.records.find(Run, flow="build")) == names
    assert sorted(frame.data.decode() for frame in store.blocks.scan("s")) == names
    assert store.records.find(Run, id="count")[0].token == 75  # no update was lost
    assert store.blocks.lost() == [] and store.records.verify() == []


FORK = """
import os, sys
from datetime import UTC, datetime
from palan.stores import postgres
from palan.stores.postgres import PostgresBlocks, PostgresRecords, Server
from palan.runs.run import Run
postgres.STAY_SECONDS = 0
server = Server(sys.argv[1])
records, blocks = PostgresRecords(server), PostgresBlocks(server)
blocks.append("s", [b"parent"])
with records.transaction():
    records.put(Run("r1", "f", "s", "done", datetime.now(UTC)))
    if os.fork() == 0:
        blocks.append("s", [b"child"])
        assert records.find(Run) == []
        os._exit(0)
    assert os.wait()[1] == 0
    records.remove(Run, ["r1"])
blocks.append("s", [b"parent again"])
assert records.find(Run) == []
print([frame.data.decode() for frame in blocks.scan("s")], len({frame.segment for frame in blocks.scan("s")}))
"""


def test_a_fork_has_connections_of_its_own(postgres: Database, tmp_path: Path) -> None:
    parent = python(FORK, postgres.of(tmp_path))
    try:
        out, errors = parent.communicate(timeout=30)
    finally:
        parent.kill()
    assert out == "['parent', 'parent again', 'child'] 2\n", errors


# --- restarts, kills and lost answers ---


def test_a_restart_of_the_server_loses_nothing_that_was_acknowledged(server: Server, postgres: Database) -> None:
    postgres.own()
    records, blocks = PostgresRecords(server), PostgresBlocks(server)
    acknowledged: list[int] = []
    stop = threading.Event()
    problems: list[BaseException] = []

    def write() -> None:
        try:
            for number in range(10**6):
                records.put(Run(f"r{number:06d}", "build", "delay", "done", NOON))
                assert records.add(Step(f"s{number}", "r", "fit", number, {}, NOON, 0.5))
                assert records.swap(Release("delay", number + 1, NOON, (Arm("delay@1", "champion", 1.0),)), epoch=number)
                blocks.append("s", [b"%d" % number, b"!"])
                acknowledged.append(number)
                if stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001
            problems.append(error)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    for act in (postgres.restart, postgres.kill, postgres.restart):
        before = len(acknowledged)
        while len(acknowledged) < before + 20 and writer.is_alive():
            time.sleep(0.01)
        act()
    after = len(acknowledged)
    while len(acknowledged) < after + 20 and writer.is_alive():  # it goes on
        time.sleep(0.01)
    stop.set()
    writer.join()
    assert problems == []
    assert data(blocks) == [part for number in acknowledged for part in (b"%d" % number, b"!")]  # none lost, none twice
    assert [run.id for run in records.find(Run)] == [f"r{number:06d}" for number in acknowledged]
    assert len(records.find(Step)) == len(acknowledged)
    assert blocks.lost() == [] and records.verify() == []


@pytest.mark.parametrize("end", ["restart", "terminate", "idle"])
def test_a_transaction_whose_connection_ends_leaves_nothing(server: Server, postgres: Database, tmp_path: Path, end: str) -> None:
    records = PostgresRecords(server)
    with pytest.raises(Busy, match="went away within a transaction: nothing of it was recorded") as refused, records.transaction():
        records.put(RUN)
        ((pid,),) = records._read("select pg_backend_pid()", ())
        if end == "restart":
            postgres.restart()
        elif end == "terminate":
            postgres.execute(tmp_path, f"select pg_terminate_backend({pid})")
        else:
            records._read("select set_config('idle_in_transaction_session_timeout', '1ms', false)", ())
        while postgres.execute(tmp_path, f"select 1 from pg_stat_activity where pid = {pid} and state <> ''"):
            time.sleep(0.01)
        records.put(replace(RUN, id="r2"))
    assert refused.value.hint == "repeat the command"
    assert records.find(Run) == []
    with records.transaction():
        records.put(RUN)
    assert records.find(Run) == [RUN]


def test_a_lost_answer_is_no_second_record(wire: Wire) -> None:
    server = Server(wire.address)
    records, blocks = PostgresRecords(server), PostgresBlocks(server)
    first = Release("delay", 1, NOON, (Arm("delay@1", "champion", 1.0),))
    step = Step("s1", "r1", "fit", 1, {}, NOON, 0.5)
    many = [replace(RUN, id=f"m{number}") for number in range(3)]
    for write in (lambda: records.put(RUN) is None, lambda: records.put(*many) is None, lambda: records.add(step), lambda: records.swap(first, epoch=0), lambda: records.swap(replace(first, epoch=2), epoch=1)):
        wire.cut_at(b"commit")
        assert write()
    assert not records.add(replace(step, value=2)) and not records.swap(replace(first, epoch=2, reason="another"), epoch=1)
    for number in range(8):  # by the sixth it is a prepared statement
        wire.cut_at(b"payload %d" % number)
        assert blocks.append("s", [b"payload %d" % number]) == 21 * (number + 1)
    assert wire.cuts == 13 and len(records.find(Run)) == 4
    assert data(blocks) == [b"payload %d" % number for number in range(8)]
    token = records.lease("x", "me", timedelta(seconds=9), now=NOON)
    wire.cut_at(b"commit")
    assert records.lease("x", "me", timedelta(seconds=9), now=NOON) == token


def test_of_a_transaction_whose_answer_was_lost_nobody_says_that_it_failed(wire: Wire) -> None:
    records = PostgresRecords(Server(wire.address))
    with pytest.raises(Busy, match="went away while it recorded: whether it did is not known"), records.transaction(durable=True):
        records.put(RUN)
        wire.cut_at(b"commit")
    assert records.find(Run) == [RUN]


def test_a_server_that_stays_away_is_waited_for_once(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    server, pauses, real = Server(wire.address, wait=0.5), [], time.sleep
    records, blocks = PostgresRecords(server), PostgresBlocks(server)
    records.put(RUN)
    wire.close()
    monkeypatch.setattr(time, "sleep", lambda seconds: (pauses.append(seconds), real(seconds)))
    for ask in (lambda: records.get(Run, "r1"), lambda: blocks.append("s", [b"x"]), lambda: records.put(RUN), lambda: records.transaction().__enter__()):
        before = len(pauses)
        with pytest.raises(Busy, match="does not answer") as refused:
            ask()
        assert refused.value.hint.startswith("pg_isready -h ")
        assert (len(pauses) > before) == (before == 0)


def test_an_append_that_was_given_up_is_not_taken_for_the_next_one(wire: Wire) -> None:
    blocks = PostgresBlocks(Server(wire.address, wait=0))
    blocks.append("s", [b"first"])
    wire.cut_at(b"given up")
    with pytest.raises(Busy):
        blocks.append("s", [b"given up"])
    blocks.append("s", [b"the next"])  # as long as the one before
    assert data(blocks) == [b"first", b"given up", b"the next"]  # not acknowledged, but there: it was written


WRITER = """
import sys
from palan.stores.postgres import PostgresBlocks, Server
blocks = PostgresBlocks(Server(sys.argv[1]))
for number in range(10**9):
    blocks.append("s", [f"{sys.argv[2]}:{number}:".encode() * (1 + number % 50)])
    print(number, flush=True)
"""


def test_a_killed_writer_loses_nothing_and_its_segment_can_be_compacted(server: Server, postgres: Database, tmp_path: Path) -> None:
    chance, reader = random.Random(11), PostgresBlocks(server)
    expected: set[bytes] = set()
    for round in range(3):
        writer = python(WRITER, postgres.of(tmp_path), round)
        assert writer.stdout is not None
        last = int(writer.stdout.readline())
        time.sleep(chance.uniform(0.0, 0.1))
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout:
            last = int(line)  # acknowledged before the kill
        writer.wait()
        expected |= {f"{round}:{number}:".encode() * (1 + number % 50) for number in range(last + 1)}
        found = data(reader)
        assert expected <= set(found) and len(found) == len(set(found)) <= len(expected) + round + 1
    while not (moved := reader.compact("s")):  # the server takes a moment to see that a process is no more
        time.sleep(0.05)
    while moved < len(found):
        moved += reader.compact("s")
    assert data(reader) == found and reader.lost() == []


def test_a_writer_goes_on_after_its_segment_was_compacted(server: Server, postgres: Database) -> None:
    writer, other = PostgresBlocks(server), PostgresBlocks(server)
    writer.append("s", [b"first"])
    assert other.compact("s") == 0  # it is being written
    position = {frame.segment: frame.end for frame in other.scan("s")}
    postgres.restart()
    assert other.compact("s") == 1  # the server has forgotten who writes
    writer.append("s", [b"second"])
    assert data(other) == [b"first", b"second"]
    assert [frame.data for frame in other.scan("s", position)] == [b"second"]
    writer.append("s", [b"third"])
    assert len({frame.segment for frame in other.scan("s")}) == 2


def test_many_frames_go_in_together_and_a_page_at_a_time(server: Server, postgres: Database, tmp_path: Path) -> None:
    writer, frames = PostgresBlocks(server), [random.Random(number).randbytes(500) for number in range(10_000)]
    writer.append("s", frames[:10])
    end = writer.append("s", frames[10:])
    assert data(PostgresBlocks(server)) == frames and list(writer.sizes("s").values()) == [end]
    with Server(postgres.of(tmp_path)).connect() as db:
        sizes = [size for (size,) in db.execute("select length(frames) from block order by ends").fetchall()]
    assert 4 < len(sizes) < 10 and max(sizes) < 2 << 20 and sum(sizes) == end


def test_many_streams_hold_one_lock(server: Server, postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MOST_OPEN", 3)
    blocks = PostgresBlocks(server)
    for number in range(8):
        blocks.append("busy", [b"%d" % number])
        blocks.append(f"jobs/{number}", [b"x"])
    blocks.append("jobs/0", [b"y"])
    held = "select count(*) from pg_locks where locktype = 'advisory' and classid = hashtext('palan ' || current_schema())::bit(32)::bigint::oid"
    assert postgres.execute(tmp_path, held) == [(1,)]
    assert data(blocks, "busy") == [b"%d" % number for number in range(8)] and len({frame.segment for frame in blocks.scan("busy")}) == 1
    assert data(blocks, "jobs/0") == [b"x", b"y"] and len({frame.segment for frame in blocks.scan("jobs/0")}) == 2
    blocks.close()
    assert blocks.compact("jobs/0") == 2


def test_after_a_restart_a_silent_writer_still_counts_as_alive(server: Server, postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "STAY_SECONDS", 0.05)
    held = "select 1 from pg_locks where locktype = 'advisory' and classid = hashtext('palan ' || current_schema())::bit(32)::bigint::oid"
    writer, reader = PostgresBlocks(server), PostgresBlocks(server)
    writer.append("s", [b"first"])
    (name,) = reader.writers("s")
    postgres.restart()
    assert reader.writers("s") == {name: True}  # nobody can know yet
    while not postgres.execute(tmp_path, held):  # it comes back by itself
        time.sleep(0.01)
    monkeypatch.setattr(sql, "WRITERS", sql.WRITERS.replace("10 s", "0 s"))
    assert reader.writers("s") == {name: True}
    writer.close()
    assert reader.writers("s") == {name: False}


# --- damage ---


def test_damage_is_named_by_its_bytes(server: Server, postgres: Database, tmp_path: Path) -> None:
    blocks = PostgresBlocks(server)
    for word in (b"first", b"second", b"third"):
        blocks.append("s", [word])
    postgres.execute(tmp_path, "update block set frames = set_byte(frames, 14, 0) where begins = 17")
    scan = blocks.scan("s")
    assert next(scan).data == b"first"
    with pytest.raises(Corrupt, match=r"/s/1_1 is damaged at bytes 17 to 35: checksum"):
        next(scan)
    (found,) = blocks.verify()
    assert found.frames == 2 and found.damage == (f"{server.name}/s/1_1 is damaged at bytes 17 to 35: no frame can be read there",)
    blocks.close()
    with pytest.raises(Corrupt):
        blocks.compact("s")
    assert list(blocks.verify()) == [found]  # it changed nothing


def test_a_page_that_the_server_finds_wrong_is_named(server: Server, postgres: Database, tmp_path: Path) -> None:
    records, blocks = PostgresRecords(server), PostgresBlocks(server)
    records.put(RUN)
    records.add(Step("s1", "r1", "fit", 1, {}, NOON, 0.5))
    blocks.append("s", [b"first"])
    assert records.verify() == [] and blocks.lost() == []
    postgres.execute(tmp_path, "checkpoint")
    for table in ("run", "block"):
        ((path,),) = postgres.execute(tmp_path, f"select pg_relation_filepath('{table}')")
        file = postgres.own().server.pgdata / path
        whole = bytearray(file.read_bytes())
        whole[5000] ^= 0x10
        file.write_bytes(whole)
    postgres.restart()  # it reads its files again
    (what,) = records.verify()
    assert what.startswith(f"run: the store at {server.name} is damaged: invalid page in block 0")
    (found,) = blocks.verify()
    assert "invalid page in block 0" in found.damage[0]
    for read in (lambda: records.find(Run), lambda: data(blocks)):
        with pytest.raises(Corrupt, match="is damaged: invalid page in block 0"):
            read()
    assert [type(each) for each in records.walk(Run)] == [Corrupt] and len(records.find(Step)) == 1


@pytest.mark.parametrize(("gone", "before", "range"), [(0, [], "0 to 17"), (17, [b"first"], "17 to 35"), (35, [b"first", b"second"], "35 to 52")])
def test_a_row_that_is_gone_is_missed(server: Server, postgres: Database, tmp_path: Path, gone: int, before: list[bytes], range: str) -> None:
    blocks = PostgresBlocks(server)
    for word in (b"first", b"second", b"third"):
        blocks.append("s", [word])
    assert blocks.lost() == []
    postgres.execute(tmp_path, f"delete from block where begins = {gone}")
    (lost,) = blocks.lost()
    assert "/s/1_1 was cut: 52 bytes were appended" in lost
    seen = []
    with pytest.raises(Corrupt, match=f"is damaged at bytes {range}: they are gone"):
        seen.extend(frame.data for frame in blocks.scan("s"))  # pragma: no branch
    (found,) = blocks.verify()
    assert len(found.damage) == 1 and range in found.damage[0] and found.frames == 2


def test_a_damaged_record_is_named_with_its_column(server: Server, postgres: Database, tmp_path: Path) -> None:
    records = PostgresRecords(server)
    records.put(RUN)
    records.put(replace(RUN, id="r2"))
    postgres.execute(tmp_path, "update run set params = 'not json' where id = 'r1'")
    with pytest.raises(Corrupt, match='the run "r1" is damaged at params') as refused:
        records.find(Run)
    assert refused.value.hint == f"restore {server.name} from a backup"
    assert [type(each) for each in records.walk(Run)] == [Corrupt, Run]


# --- migrations ---


MIGRATE = """
import sys
from pathlib import Path
from palan.stores import sql
from palan.stores.postgres import Server
known = sql.migrations()
sql.migrations = lambda: {**known, max(known) + 1: Path(sys.argv[2])}
Server(sys.argv[1])
print("migrated")
"""


def test_a_migration_that_is_killed_is_as_if_not_begun(server: Server, postgres: Database, tmp_path: Path) -> None:
    records, newest = PostgresRecords(server), max(sql.migrations())
    records.put(RUN)
    later = tmp_path / "later.sql"
    later.write_text("create table later (id text primary key);\ninsert into later values ('x');\n")
    slow = tmp_path / "slow.sql"
    slow.write_text("create table later (id text primary key);\nalter table run add column more text;\nselect pg_sleep(0.5);\n")
    killed = python(MIGRATE, postgres.of(tmp_path), slow)
    while not postgres.execute(tmp_path, "select 1 from pg_stat_activity where wait_event = 'PgSleep'"):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert records.find(Run) == [RUN]
    for name in ("later", "broken"):
        if name == "broken":
            (tmp_path / "broken.sql").write_text("create table other (id text primary key);\nthis is no sql;\n")
        made = python(MIGRATE.replace("max(known) + 1", f"max(known) + {1 if name == 'later' else 2}").replace("{**known,", "{**known, max(known) + 1: Path(sys.argv[3]),"), postgres.of(tmp_path), tmp_path / f"{name}.sql", later)
        out, errors = made.communicate(timeout=30)
        assert (out == "migrated\n") == (name == "later"), errors
    assert postgres.execute(tmp_path, "select id from later") == [("x",)]
    assert postgres.execute(tmp_path, "select max(number), to_regclass('other')::text from palan_migration") == [(newest + 1, None)]


def test_a_newer_store_is_refused_and_left_alone(server: Server, postgres: Database, tmp_path: Path) -> None:
    postgres.execute(tmp_path, "insert into palan_migration (number) values (99)")
    with pytest.raises(PalanError, match=r"was written by a newer palan \(schema 99") as refused:
        Server(postgres.of(tmp_path))
    assert refused.value.hint == "pip install --upgrade palan"


# --- a project ---


@pytest.fixture
def rentals(postgres: Database, tmp_path: Path) -> Path:
    """What `palan init` makes, with its store on the server."""
    project = tmp_path / "rentals"
    asked = python(PALAN, "init", "--into", project)
    assert asked.communicate(timeout=60) and asked.returncode == 0
    file = project / "palan.toml"
    file.write_text(file.read_text().replace("[project]\n", f'[project]\nstore = "{postgres.of(tmp_path)}"\n'))
    return project


PALAN = "import sys; from palan.cli import main; main()"


def test_a_whole_project_on_postgresql(rentals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def palan(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["--project", str(rentals), *arguments])
        printed = capsys.readouterr()
        assert ended.value.code == 0, printed.err
        return printed.out

    assert "@1: 365 new rows" in palan("ingest")
    assert "nothing new" in palan("ingest")
    palan("build", "rentals")
    palan("check", "rentals@1")
    palan("release", "rentals@1", "--reason", "first")
    before = len(list(open_project(rentals).store.blocks.scan("decisions/rentals")))
    palan("decide", "rentals", "--input", str(rentals / "example.json"))
    project = open_project(rentals)
    assert len(list(project.store.blocks.scan("decisions/rentals"))) == before + 1
    told = palan("log", "--verify")
    assert "0 breaks" in told and "released rentals@1: " in told
    kept = {path.name for path in (rentals / ".palan").iterdir()}
    assert {"blobs", "key"} <= kept and not {"palan.db", "blocks"} & kept
    assert [version.ref for version in project.store.records.find(Version)] == ["rentals@1"]
    project.store.records.close()


def test_an_empty_database_where_a_ledger_should_be_is_no_new_beginning(rentals: Path, postgres: Database, tmp_path: Path) -> None:
    project = open_project(rentals)
    record(project, "noted", "rentals")
    (schema,) = postgres.execute(tmp_path, "select current_schema()")[0]
    postgres.execute(tmp_path, f"drop schema {schema} cascade; create schema {schema}")
    with pytest.raises(Corrupt, match="is empty, with no ledger, but a key, blobs or records of this project lie in"):
        open_project(rentals)
    (rentals / ".palan").rename(rentals / ".palan.old")
    assert open_project(rentals).store.records.find(Entry) == []


def test_no_password_is_kept_or_shown(rentals: Path, postgres: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = rentals / "palan.toml"
    whole, address = file.read_text(), postgres.address.replace("postgres@", "postgres:very-secret@")
    file.write_text(whole.replace("postgres@", "postgres:very-secret@"))
    with pytest.raises(PalanError, match=r"palan.toml line \d+: \[project\] store: has a password in it") as refused:
        open_project(rentals)
    assert "secret" not in str(refused.value) and "PGPASSWORD" in refused.value.hint
    file.write_text(whole)
    monkeypatch.setenv("PALAN_STORE", address)
    for arguments in (["config"], ["config", "--json"]):
        with pytest.raises(SystemExit):
            main(["--project", str(rentals), *arguments])
        told = capsys.readouterr().out
        assert "secret" not in told and "postgres:***@" in told


# --- what can be wrong with an address ---


@pytest.fixture
def roles(postgres: Database, tmp_path: Path) -> Iterator[str]:
    """Two users of the server's: one who may only read, and one who has to give a password."""
    postgres.own()
    rules = postgres.server.pgdata / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"local all palan_asker scram-sha-256\n{before}")
    schema = postgres.execute(tmp_path, "select current_schema()")[0][0]
    postgres.execute(tmp_path, f"create role palan_asker login password 'right'; create role palan_reader login; grant usage on schema {schema} to palan_asker, palan_reader; select pg_reload_conf()")
    yield schema
    rules.write_text(before)
    postgres.execute(tmp_path, "drop owned by palan_asker, palan_reader; drop role palan_asker; drop role palan_reader; select pg_reload_conf()")


def test_a_wrong_password_is_refused_and_no_password_is_shown(roles: str, postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = postgres.of(tmp_path)
    for given, environment in (("palan_asker", None), ("palan_asker:wrong-secret", None), ("palan_asker", "wrong-secret")):
        if environment:
            monkeypatch.setenv("PGPASSWORD", environment)
        with pytest.raises(PalanError, match="refused the password of palan_asker") as refused:
            Server(address.replace("postgres@", f"{given}@"))
        assert "PGPASSWORD" in refused.value.hint and "secret" not in str(refused.value) and str(refused.value).count("\n") <= 2


def test_who_may_only_read_reads(roles: str, postgres: Database, tmp_path: Path) -> None:
    address = postgres.of(tmp_path)
    reader = address.replace("postgres@", "palan_reader@")
    with pytest.raises(PalanError, match="cannot be written as palan_reader: permission denied for schema"):
        Server(reader)  # it would have to make the tables
    PostgresRecords(Server(address)).put(RUN)
    postgres.execute(tmp_path, f"grant select on all tables in schema {roles} to palan_reader")
    server = Server(reader)
    records, blocks = PostgresRecords(server), PostgresBlocks(server)
    assert records.find(Run) == [RUN] and data(blocks) == []
    for write in (lambda: records.put(RUN), lambda: blocks.append("s", [b"x"])):
        with pytest.raises(PalanError, match="cannot be written as palan_reader: permission denied for table") as refused:
            write()
        assert refused.value.hint.startswith("let its owner grant that: psql -h ")


@pytest.mark.parametrize(
    ("address", "what", "hint"),
    [
        ("postgresql://ada@127.0.0.1:9/db", "the store at 127.0.0.1:9/db does not answer: Connection refused", "pg_isready -h 127.0.0.1 -p 9"),
        ("postgresql:///db?host=/no/such/folder", "the store at /no/such/folder/db does not answer: No such file or directory", "pg_isready -h /no/such/folder -p 5432"),
        ("postgresql://ada:secret@[wo/db", "the store's address cannot be read", 'write it as "postgresql://user@host:5432/database"'),
        ("postgresql://ada:secret@host/db?no=1", "the store's address cannot be read", 'write it as "postgresql://user@host:5432/database"'),
        ("mysql://ada:secret@host/db", 'the store "mysql://ada:***@host/db" is of an unknown kind', 'in palan.toml: [project] store = ".palan", or "postgresql://user@host/database"'),
    ],
)
def test_an_address_where_nothing_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, what: str, hint: str) -> None:
    monkeypatch.setenv("PGPORT", "5432")
    started = time.monotonic()
    with pytest.raises(PalanError) as refused:
        open_store(address, tmp_path)
    assert (refused.value.what, refused.value.hint) == (what, hint)
    assert "secret" not in repr(refused.value.__cause__) and time.monotonic() - started < 10


def test_a_database_that_cannot_be_used(postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = postgres.own().address
    with pytest.raises(PalanError, match="there is no database nowhere for the store at") as refused:
        Server(address.replace("/postgres?", "/nowhere?"))
    assert refused.value.hint.startswith("createdb -h ") and refused.value.hint.endswith(" nowhere")
    postgres.execute(tmp_path, "drop database if exists palan_latin")
    postgres.execute(tmp_path, "create database palan_latin encoding 'LATIN1' template template0 locale 'C'")
    with pytest.raises(PalanError, match="keeps its text as LATIN1"):
        Server(address.replace("/postgres?", "/palan_latin?"))
    with pytest.raises(PalanError, match="has no schema of the name"):
        Server(f"{address}&options=-csearch_path%3Dnowhere")
    monkeypatch.setattr(stores, "OLDEST", 990000)
    with pytest.raises(PalanError, match=r"is on PostgreSQL \d+, which is too old"):
        Server(postgres.of(tmp_path))


def test_without_the_library_the_extra_is_named(tmp_path: Path) -> None:
    code = "import sys; sys.modules['psycopg'] = None; from palan.cli import main; main(['--project', sys.argv[1], 'status'])"
    (tmp_path / "palan.toml").write_text('[project]\nname = "x"\nstore = "postgresql://ada@host/db"\n')
    asked = python(code, tmp_path)
    out, errors = asked.communicate(timeout=30)
    assert asked.returncode == 2 and out == ""
    assert errors == 'a store on PostgreSQL needs psycopg, which is not installed\nhint: pip install "palan[postgres]"\n'
