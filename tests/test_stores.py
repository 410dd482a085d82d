"""What is kept is kept: the suites on what palan ships, then damage, kills, many processes, locks and migrations."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from palan.core import Version
from palan.data.nouns import DataVersion
from palan.errors import Conflict, Corrupt, PalanError
from palan.ledger import Entry, link
from palan.releases.nouns import Arm, Release
from palan.runs.run import Run, Step
from palan.stores import open_store
from palan.stores.files import FileBlobs
from palan.stores.segments import HEADER, SYNC_SECONDS, SegmentBlocks, framed, past_damage
from palan.stores.sqlite import SQLiteRecords
from palan.stores.tables import whole
from palan.testing import BlobsSuite, BlocksSuite, RecordsSuite

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SOURCES = Path(__file__).resolve().parent.parent / "src"


class TestSQLite(RecordsSuite):
    def open(self, folder: Path) -> SQLiteRecords:
        return SQLiteRecords(folder / "palan.db")


class TestSegments(BlocksSuite):
    def open(self, folder: Path) -> SegmentBlocks:
        return SegmentBlocks(folder / "blocks")


class TestFiles(BlobsSuite):
    def open(self, folder: Path) -> FileBlobs:
        return FileBlobs(folder / "blobs")

    def damage(self, folder: Path, key: str) -> None:
        flip(folder / "blobs" / key[:2] / key, 3)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


# --- damage ---


def test_every_flipped_byte_of_a_segment_is_found(tmp_path: Path) -> None:
    blocks = SegmentBlocks(tmp_path)
    frames = [b"first", b"second frame", b"third"]
    blocks.append("s", frames)
    (path,) = tmp_path.glob("s/*.seg")
    whole = path.read_bytes()
    for at in range(len(whole)):
        flip(path, at)
        with pytest.raises(Corrupt) as refused:
            list(SegmentBlocks(tmp_path).scan("s"))
        first, last = [int(word.rstrip(":")) for word in refused.value.what.split("bytes ")[1].split()[0:3:2]]
        assert first <= at < last and path.name in refused.value.what
        path.write_bytes(whole)


def test_frames_read_as_arrays_are_those_that_are_read_one_by_one(tmp_path: Path) -> None:
    dice, path = random.Random(5), tmp_path / "x.seg"
    for _ in range(60):
        some = [dice.randbytes(length) for _ in range(dice.randrange(1, 12)) for length in [dice.choice((1, 30, 47))] * dice.choice((1, 3, 40, 90))]
        data = b"".join(framed(frame) for frame in some)
        data = data[: dice.randrange(len(data) + 1)] + dice.choice((b"", bytes(20)))
        single = list(past_damage(path, 7, data, lambda damage: None))
        wanted = [(frame.end, frame.data) for frame in single]
        found = whole("x", 7, data)
        if found is None:  # a torn frame, and zeros behind it
            continue
        told = [(int(end), bytes(frame)) for ends, table in found.tables for end, frame in zip(ends, table, strict=True)]
        assert sorted(told) == wanted and found.end == (wanted[-1][0] if wanted else 7)
        for length in (1, 30, 47):  # in order, though they lie in several tables
            assert [each for each in told if len(each[1]) == length] == [each for each in wanted if len(each[1]) == length]
        for place in dice.sample(range(found.end - 7), min(20, found.end - 7)):
            flipped = data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]
            after = whole("x", 7, flipped)
            assert after is None or after.end <= 7 + place


def test_whole_frames_before_the_damage_are_still_given(tmp_path: Path) -> None:
    SegmentBlocks(tmp_path).append("s", [b"good", b"bad", b"after"])
    (path,) = tmp_path.glob("s/*.seg")
    flip(path, HEADER.size + 4 + HEADER.size + 1)
    scan = SegmentBlocks(tmp_path).scan("s")
    assert next(scan).data == b"good"
    with pytest.raises(Corrupt):
        next(scan)


def test_a_torn_tail_is_left_out_wherever_it_was_torn(tmp_path: Path) -> None:
    SegmentBlocks(tmp_path).append("s", [b"first", b"second"])
    (path,) = tmp_path.glob("s/*.seg")
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        expected = [b"first"] if size >= HEADER.size + 5 else []
        assert [frame.data for frame in SegmentBlocks(tmp_path).scan("s")] == expected
    path.write_bytes(whole + bytes(100))  # room that a loss of power left empty
    assert [frame.data for frame in SegmentBlocks(tmp_path).scan("s")] == [b"first", b"second"]


def test_a_damaged_compacted_file_names_both_digests(tmp_path: Path) -> None:
    blocks = SegmentBlocks(tmp_path)
    blocks.append("s", [b"%d" % number for number in range(100)])
    blocks.close()
    assert blocks.compact("s") == 100
    (path,) = tmp_path.glob("s/*.parquet")
    whole = path.read_bytes()
    for at in random.Random(5).sample(range(len(whole)), 40):
        flip(path, at)
        with pytest.raises(Corrupt, match=r"digest [0-9a-f]{64}, and has [0-9a-f]{64}"):
            list(blocks.scan("s"))
        path.write_bytes(whole)
    path.write_bytes(whole[:-7])
    with pytest.raises(Corrupt, match=path.stem.rpartition(".")[2]):
        list(blocks.scan("s"))


def test_a_truncated_blob_names_both_digests(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path)
    key = blobs.put(b"0123456789")
    (tmp_path / key[:2] / key).write_bytes(b"01234")
    with pytest.raises(Corrupt, match=rf"{key}, and has [0-9a-f]{{64}}"):
        blobs.get(key)


def test_a_file_that_was_found_whole_is_hashed_again_when_it_changed_or_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    verify = FileBlobs.verify
    monkeypatch.setattr(FileBlobs, "verify", lambda self, key: hashed.append(key) or verify(self, key))
    key = FileBlobs(tmp_path).put(b"rows" * 100)
    hashed.clear()

    def looks() -> int:
        before = len(hashed)
        assert FileBlobs(tmp_path).path(key).read_bytes() == b"rows" * 100  # as another process
        return len(hashed) - before

    note = tmp_path / ".whole"
    assert [looks(), looks()] == [1, 0]
    old = " ".join([*note.read_text().split()[:5], str(int(time.time()) - 90_000)])
    for text in (f"{old}\n", "\x00torn 12 \xff\n", f"{key} 1 2\n"):
        note.write_text(text, encoding="latin-1")
        assert [looks(), looks()] == [1, 0]
    note.write_text(f"{old}\n" * 5000)
    assert [looks(), looks()] == [1, 0] and len(note.read_text().splitlines()) == 1  # what is old is swept
    path = FileBlobs(tmp_path).path(key)
    held = path.stat()
    flip(path, 3)
    os.utime(path, ns=(held.st_atime_ns, held.st_mtime_ns))
    with pytest.raises(Corrupt):
        FileBlobs(tmp_path).path(key)
    flip(path, 3)
    note.chmod(0o400)
    assert looks() == 1


def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "palan.db"
    records = SQLiteRecords(path)
    with records.transaction():
        for number in range(200):
            records.put(Run(f"r{number}", "build", "delay", "done", NOON, params={"padding": "x" * 200}))
    records.close()
    whole = path.read_bytes()
    path.write_bytes(b"not a database at all" + whole[21:])
    with pytest.raises(Corrupt, match=r"palan\.db is damaged"):
        SQLiteRecords(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Corrupt, match=r"palan\.db is damaged"):
        SQLiteRecords(path).find(Run)


def test_a_failed_write_leaves_no_torn_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = SegmentBlocks(tmp_path)
    blocks.append("s", [b"before"])
    real = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) > 20:
            return real(fd, bytes(data)[:20])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(PalanError, match="No space left"):
            blocks.append("s", [b"x" * 100])
    blocks.append("s", [b"after"])
    assert [frame.data for frame in SegmentBlocks(tmp_path).scan("s")] == [b"before", b"after"]


def test_after_a_failed_fsync_nothing_is_acknowledged_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = SegmentBlocks(tmp_path)
    blocks.append("s", [b"before"])

    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(PalanError, match="Input/output error"):
            blocks.append("s", [b"lost"], durable=True)
    with pytest.raises(PalanError, match="refused an earlier write"):
        blocks.append("s", [b"later"])


def test_a_segment_that_the_disk_refused_is_never_synced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals: list[str] = []
    real = os.fsync

    def once(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.suffix == ".seg" and path.is_relative_to(tmp_path):  # others may still be closing theirs
            refusals.append(path.name)
            if len(refusals) == 1:
                raise OSError(5, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fsync", once)
    blocks = SegmentBlocks(tmp_path)
    blocks.append("s", [b"to be synced in a while"])
    with pytest.raises(PalanError, match="Input/output error"):
        blocks.append("s", [b"durable"], durable=True)
    time.sleep(5 * SYNC_SECONDS)  # the thread that syncs in the background has had its turn
    with pytest.raises(PalanError, match="refused an earlier write"):
        blocks.close()
    assert len(refusals) == 1
    assert not list(tmp_path.glob("s/*.end"))  # nor is its length noted as if it were whole


def test_a_durable_frame_is_not_acknowledged_when_the_disk_refused_at_that_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells one of two that sync at once; the other is told that all is well."""
    began, go, told = threading.Event(), threading.Event(), list[str]()
    real = os.fsync

    def once(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.suffix == ".seg" and path.is_relative_to(tmp_path) and not began.is_set():
            began.set()
            go.wait(30)
            raise OSError(5, "Input/output error")
        real(fd)

    def durably() -> None:
        try:
            blocks.append("s", [b"durable"], durable=True)
            told.append("acknowledged")
        except PalanError as error:
            told.append(error.what)

    monkeypatch.setattr(os, "fsync", once)
    blocks = SegmentBlocks(tmp_path)
    blocks.append("s", [b"before"])
    assert began.wait(30)
    other = threading.Thread(target=durably)
    other.start()
    other.join(0.2)
    go.set()
    other.join(30)
    assert len(told) == 1 and "Input/output error" in told[0]


@pytest.mark.parametrize("zeros", [HEADER.size, HEADER.size + 5, 40])
def test_zeros_before_frames_are_damage_and_no_tail(tmp_path: Path, zeros: int) -> None:
    SegmentBlocks(tmp_path).append("s", [b"frame %d" % number for number in range(10)])
    (path,) = tmp_path.glob("s/*.seg")
    at = 3 * (HEADER.size + 7)
    data = bytearray(path.read_bytes())
    data[at : at + zeros] = bytes(zeros)
    path.write_bytes(bytes(data))
    scan = SegmentBlocks(tmp_path).scan("s")
    assert [next(scan).data for _ in range(3)] == [b"frame 0", b"frame 1", b"frame 2"]
    with pytest.raises(Corrupt, match=rf"is damaged at bytes {at} to \d+: zeros, and frames after them"):
        next(scan)


def test_a_cut_is_found_after_the_end_of_a_process_but_is_a_torn_tail_after_a_kill(tmp_path: Path) -> None:
    for how, lost in (("pass", True), ("os.kill(os.getpid(), 9)", False)):
        folder = tmp_path / how[:2]
        code = f"import os, sys\nfrom pathlib import Path\nfrom palan.stores.segments import SegmentBlocks\nSegmentBlocks(Path(sys.argv[1])).append('s', [b'first', b'second', b'third'])\n{how}"
        python(code, folder).communicate(timeout=30)
        (path,) = folder.glob("s/*.seg")
        path.write_bytes(path.read_bytes()[:-20])
        reader = SegmentBlocks(folder)
        scan = reader.scan("s")
        assert next(scan).data == b"first"
        if lost:
            with pytest.raises(Corrupt, match="was cut: it had 52 bytes when it was closed, and has 32"):
                list(scan)
        else:
            assert list(scan) == []
        assert len(reader.lost()) == lost


def test_the_segment_of_a_killed_writer_is_closed_by_the_next_one(tmp_path: Path) -> None:
    killed = python("import os, sys\nfrom pathlib import Path\nfrom palan.stores.segments import SegmentBlocks\nSegmentBlocks(Path(sys.argv[1])).append('s', [b'first', b'second'])\nos.kill(os.getpid(), 9)", tmp_path)
    killed.communicate(timeout=30)
    (path,) = tmp_path.glob("s/*.seg")
    path.write_bytes(path.read_bytes()[:-1])  # torn by the kill
    writer = SegmentBlocks(tmp_path)
    writer.append("s", [b"third"])
    assert [frame.data for frame in writer.scan("s")] == [b"first", b"third"] and writer.lost() == []
    path.write_bytes(path.read_bytes()[:-1])
    (what,) = writer.lost()
    assert what == f"{path} was cut: it had {2 * HEADER.size + 10} bytes when it was closed, and has {2 * HEADER.size + 9}"


def test_a_fork_closes_no_segment_of_its_parent(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from palan.stores.segments import SegmentBlocks
blocks = SegmentBlocks(Path(sys.argv[1]))
blocks.append("s", [b"first"])
if os.fork() == 0:
    sys.exit(0)
os.wait()
assert not list(Path(sys.argv[1]).glob("s/*.end"))
blocks.append("s", [b"second"])
"""
    parent = python(code, tmp_path)
    _, errors = parent.communicate(timeout=30)
    assert parent.returncode == 0, errors
    reader = SegmentBlocks(tmp_path)
    assert [frame.data for frame in reader.scan("s")] == [b"first", b"second"] and reader.lost() == []


@pytest.mark.parametrize("compacted", [False, True])
def test_a_segment_that_is_gone_is_missed(tmp_path: Path, compacted: bool) -> None:
    for number in range(2):
        blocks = SegmentBlocks(tmp_path)
        blocks.append("s", [b"%d" % number])
        blocks.close()
    if compacted:
        assert blocks.compact("s") == 2
    assert blocks.lost() == [] and len(list(blocks.scan("s"))) == 2
    sorted(tmp_path.glob("s/*.parquet" if compacted else "s/*.seg"))[-1].unlink()
    assert len(blocks.lost()) == (2 if compacted else 1) and "is gone: it had 13 bytes when it was closed" in blocks.lost()[0]
    with pytest.raises(Corrupt, match="is gone"):
        list(blocks.scan("s"))


# --- kills and many processes ---

WRITER = """
import sys
from pathlib import Path
from palan.stores.segments import SegmentBlocks
blocks = SegmentBlocks(Path(sys.argv[1]))
name = sys.argv[2]
for number in range(10**9):
    data = f"{name}:{number}:".encode() * (1 + number % 50)
    blocks.append("s", [data], durable=number % 100 == 0)
    print(number, flush=True)
"""


def test_a_killed_writer_loses_no_acknowledged_frame(tmp_path: Path) -> None:
    chance = random.Random(11)
    expected: set[bytes] = set()
    for round in range(6):
        writer = python(WRITER, tmp_path, round)
        assert writer.stdout is not None
        last = int(writer.stdout.readline())
        time.sleep(chance.uniform(0.0, 0.05))
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout:
            last = int(line)  # acknowledged before the kill
        writer.wait()
        expected |= {f"{round}:{number}:".encode() * (1 + number % 50) for number in range(last + 1)}
        reader = SegmentBlocks(tmp_path)
        found = [frame.data for frame in reader.scan("s")]
        assert expected <= set(found) and len(found) <= len(expected) + round + 1  # at most one written, not acknowledged
        if round % 2:
            reader.compact("s")
            assert sorted(frame.data for frame in reader.scan("s")) == sorted(found)


TOGETHER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from palan.runs.run import Run
from palan.stores import open_store
store, name = open_store(".palan", Path(sys.argv[1])), sys.argv[2]
for number in range(40):
    store.records.put(Run(f"{name}-{number}", "build", name, "done", datetime(2026, 3, 1, tzinfo=UTC)))
    store.blocks.append("s", [f"{name}-{number}".encode()])
    store.blobs.put(f"shared {number}".encode())
    if number % 10 == 0:
        store.blocks.compact("s")
"""


def test_processes_open_a_new_store_and_write_it_at_once(tmp_path: Path) -> None:
    writers = [python(TOGETHER, tmp_path, name) for name in "abcd"]
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
    store = open_store(".palan", tmp_path)
    names = sorted(f"{name}-{number}" for name in "abcd" for number in range(40))
    assert sorted(run.id for run in store.records.find(Run)) == names
    assert sorted(frame.data.decode() for frame in store.blocks.scan("s")) == names


SWAPPER = """
import sys
from msgspec.structs import replace
from pathlib import Path
from palan.releases.nouns import Release
from palan.stores.sqlite import SQLiteRecords
from palan.stores.tables import whole
records, won = SQLiteRecords(Path(sys.argv[1])), 0
while (now := records.get(Release, "delay")).epoch < 60:
    won += records.swap(replace(now, epoch=now.epoch + 1), epoch=now.epoch)
print(won)
"""


def test_swap_is_a_compare_and_set_between_processes(tmp_path: Path) -> None:
    path = tmp_path / "palan.db"
    SQLiteRecords(path).put(Release("delay", 1, NOON, (Arm("delay@1", "champion", 1.0),)))
    swappers = [python(SWAPPER, path) for _ in range(4)]
    won = [int(swapper.communicate(timeout=60)[0]) for swapper in swappers]
    assert sum(won) == 59  # each epoch was won once


def test_a_scan_during_a_compaction_misses_nothing(tmp_path: Path) -> None:
    for number in range(5):
        blocks = SegmentBlocks(tmp_path)
        blocks.append("s", [b"%d" % number])
        blocks.close()
    scan = SegmentBlocks(tmp_path).scan("s")
    seen = [next(scan).data]
    assert SegmentBlocks(tmp_path).compact("s") == 5
    seen += [frame.data for frame in scan]
    assert sorted(seen) == [b"%d" % number for number in range(5)]


def test_what_an_interrupted_compaction_left_behind_is_read_once(tmp_path: Path) -> None:
    blocks = SegmentBlocks(tmp_path)
    blocks.append("s", [b"a", b"b"])
    blocks.close()
    (path,) = tmp_path.glob("s/*.seg")
    copy = path.read_bytes()
    blocks.compact("s")
    path.write_bytes(copy)  # it was killed before it removed the segment
    assert [frame.data for frame in blocks.scan("s")] == [b"a", b"b"]


# --- locks, migrations, rights ---


def test_a_foreign_lock_is_told_with_the_command_that_finds_it(tmp_path: Path) -> None:
    path = tmp_path / "palan.db"
    records = SQLiteRecords(path, wait=0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin exclusive")
    with pytest.raises(Conflict, match=r"locked .*palan\.db") as refused:
        records.put(Run("r1", "build", "delay", "done", NOON))
    assert refused.value.hint.startswith(f"find it with: fuser {path}")
    with pytest.raises(Conflict), records.transaction(durable=True):
        pass
    other.execute("rollback")
    records.put(Run("r1", "build", "delay", "done", NOON))
    assert records.get(Run, "r1") is not None


def test_a_newer_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "palan.db"
    SQLiteRecords(path).close()
    with sqlite3.connect(path) as db:
        db.execute("pragma user_version = 99")
    before = path.read_bytes()
    with pytest.raises(PalanError, match="newer palan \\(schema 99") as refused:
        SQLiteRecords(path)
    assert refused.value.hint == "pip install --upgrade palan"
    assert path.read_bytes() == before


def test_a_migration_keeps_a_copy_of_the_store_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from palan.stores import sql

    path = tmp_path / "palan.db"
    first = SQLiteRecords(path)
    run = Run("r1", "build", "delay", "done", NOON)
    first.put(run)
    first.close()
    newest = max(sql.migrations())
    good, bad = tmp_path / "good.sql", tmp_path / "bad.sql"
    good.write_text("create table later (id text primary key);\ninsert into later values ('x');\n")
    bad.write_text("create table later (id text primary key);\nthis is no sql;\n")
    later, broken = {**sql.migrations(), newest + 1: good}, {**sql.migrations(), newest + 1: bad}
    monkeypatch.setattr(sql, "migrations", lambda: broken)
    with pytest.raises(PalanError):
        SQLiteRecords(path)
    monkeypatch.setattr(sql, "migrations", lambda: later)  # half of the broken one is not there
    assert SQLiteRecords(path).get(Run, "r1") == run
    with sqlite3.connect(path) as db:
        assert db.execute("select id from later").fetchall() == [("x",)]
    copy = path.with_suffix(f".schema-{newest}.backup")
    with sqlite3.connect(copy) as db:
        assert db.execute("pragma user_version").fetchone() == (newest,)
        assert db.execute("select id from run").fetchall() == [("r1",)]


READER = """
import sys
from pathlib import Path
from palan.errors import PalanError
from palan.stores import open_store
from palan.runs.run import Run
from datetime import UTC, datetime
try:
    store = open_store(".palan", Path(sys.argv[1]))
    store.records.put(Run("r", "f", "s", "done", datetime.now(UTC)))
except PalanError as error:
    print(error.what, "|", error.hint)
try:
    from palan.stores.files import FileBlobs
    FileBlobs(Path(sys.argv[1]) / "blobs").put(b"x")
except PalanError as error:
    print(error.what, "|", error.hint)
"""


@pytest.mark.parametrize("made_before", [False, True])
def test_a_folder_that_may_not_be_written(tmp_path: Path, made_before: bool) -> None:
    if made_before:
        open_store(".palan", tmp_path).records.close()
    for path in [*tmp_path.rglob("*"), tmp_path]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    command = [sys.executable, "-c", READER, str(tmp_path)]
    if os.getuid() == 0:  # the superuser may write anything: give that right up
        if not shutil.which("setpriv"):
            pytest.skip("root writes everywhere, and there is no setpriv")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search", *command]
    made = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCES)}, check=True)
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o755)
    records, blobs = made.stdout.splitlines()
    assert "cannot be written" in records and "| chmod" in records
    assert "cannot be written" in blobs


@pytest.mark.parametrize("outer", [False, True])
def test_a_durable_transaction_within_another_is_on_the_disk_when_the_outer_one_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outer: bool) -> None:
    records = SQLiteRecords(tmp_path / "palan.db")
    synced: list[str] = []
    real = os.fsync

    def note(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        real(fd)

    monkeypatch.setattr(os, "fsync", note)
    with records.transaction():
        records.put(Run("r1", "build", "delay", "done", NOON))
    assert synced == []  # what is not asked for is not paid for
    with records.transaction(durable=outer):
        levels = [records._db.execute("pragma synchronous").fetchone()[0]]
        with records.transaction(durable=True):
            records.put(Run("r2", "build", "delay", "done", NOON))
        assert synced == []
    assert (levels, synced) == (([2], []) if outer else ([1], ["palan.db-wal"]))  # SQLite syncs its log itself, or we do
    with records.transaction():
        records.put(Run("r3", "build", "delay", "done", NOON))
    assert len(synced) == (0 if outer else 1)


# --- disks that take nothing more ---


LIMITED = """
import resource, sys
from datetime import UTC, datetime
from pathlib import Path
from palan.errors import PalanError
from palan.runs.run import Run
from palan.stores import open_store
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))  # no file may grow any more
store = open_store(".palan", Path(sys.argv[1]))
print(sorted(run.id for run in store.records.find(Run)), [frame.data for frame in store.blocks.scan("s")], store.blobs.get(sys.argv[2]))
for write in (lambda: store.records.put(Run("r9", "f", "s", "done", datetime.now(UTC))), lambda: store.blocks.append("s", [b"x"]), lambda: store.blobs.put(b"more")):
    try:
        write()
    except PalanError as error:
        print(error.what.splitlines()[0], "|", error.hint)
"""


@pytest.mark.parametrize("left", ["closed", "killed"])
def test_what_is_there_can_be_read_where_nothing_more_can_be_written(tmp_path: Path, left: str) -> None:
    store = open_store(".palan", tmp_path)
    store.records.put(Run("r1", "f", "s", "done", NOON))
    store.blocks.append("s", [b"first"])
    key = store.blobs.put(b"a model")
    if left == "closed":
        store.records.close()
    reader = python(LIMITED, tmp_path, key)
    out, errors = reader.communicate(timeout=30)
    assert reader.returncode == 0, errors
    read, records, blocks, blobs = out.splitlines()
    assert read == "['r1'] [b'first'] b'a model'"
    assert "no space left for the store" in records and "| free some space (df " in records and "ulimit -f" in records
    assert "cannot be written: File too large" in blocks and "cannot be written: File too large" in blobs


def test_a_store_that_was_never_made_is_empty_where_none_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    records = SQLiteRecords(tmp_path / "new" / "palan.db")
    assert records.find(Run) == []
    with pytest.raises(PalanError, match=r"no space left for the store .*palan\.db \(No space left on device\)"):
        records.put(Run("r1", "f", "s", "done", NOON))
    assert records.find(Run) == [] and list(tmp_path.iterdir()) == []


# --- damaged records ---


@pytest.mark.parametrize(
    ("statement", "column"),
    [
        ("update version set manifest = 'not json'", "manifest"),
        ("update version set manifest = '[]'", "manifest"),
        ("update version set number = 7.5", "number"),
        ("update version set number = 'x'", "number"),
        ("update version set time = 'x'", "time"),
        ("update version set model = x'ff00'", "model"),
        ("update release set arms = '[]'", "a release has one champion"),
        ("update release set arms = 'x'", "arms"),
        ("update release set arms = 'null'", "arms"),
        ("update release set time = 'garbage'", "time"),
        ("update step set value = 'x'", "value"),
        ("update step set parts = 'x'", "parts"),
        ("update step set parts = '[1]'", "parts"),
        ("update data_version set time = 'x'", "time"),
        ("update data_version set parts = '{}'", "parts"),
    ],
)
def test_a_damaged_record_is_named_with_its_column(tmp_path: Path, statement: str, column: str) -> None:
    records = SQLiteRecords(tmp_path / "palan.db")
    nouns = {
        "version": Version("v1", "delay", 1, "rules", {"a": 1}, "r1", NOON),
        "release": Release("delay", 1, NOON, (Arm("delay@1", "champion", 1.0),)),
        "step": Step("s1", "r1", "fit", 1, {}, NOON, 0.5),
        "data_version": DataVersion("d1", "weather", 1, NOON, ("p",), 1, 1, "r1"),
    }
    name = statement.split()[1]
    records.put(nouns[name])
    records._db.execute(statement)
    with pytest.raises(Corrupt, match=f'the {name} "[a-z0-9]+" is damaged') as refused:
        records.find(type(nouns[name]))
    assert column in refused.value.what and refused.value.hint == "restore palan.db from a backup"


# --- the ledger's own table ---


def test_the_database_itself_refuses_to_change_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "palan.db"
    records = SQLiteRecords(path)
    entry = link(None, time=NOON, actor="ada", verb="built", subject="delay@1", reason="first")
    records.add(entry)
    db = sqlite3.connect(path, isolation_level=None)
    for statement in ("update entry set reason = 'x'", "delete from entry", "update entry set seq = 7"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(statement)
    with pytest.raises(sqlite3.IntegrityError):
        records.put(replace(entry, reason="x"))
    assert records.find(Entry) == [entry]


def test_a_lease_that_ran_out_passes_on_between_processes_with_one_holder(tmp_path: Path) -> None:
    stores = [SQLiteRecords(tmp_path / "palan.db") for _ in range(3)]
    ttl = timedelta(seconds=1)
    for minute in range(20):
        now = NOON + timedelta(minutes=minute)
        held = [store.lease("x", str(place), ttl, now=now) for place, store in enumerate(stores)]
        assert sum(lease is not None for lease in held) == 1


def test_what_could_not_be_read_back_is_refused_at_once(tmp_path: Path) -> None:
    records = SQLiteRecords(tmp_path / "palan.db")
    with pytest.raises(ValueError, match="Expected `float`, got `null`"):
        records.put(Run("r1", "build", "delay", "done", NOON, metrics={"loss": float("nan")}))
    assert records.find(Run) == []
