"""`palan verify` reads everything, names every damage with its place and what to do, and is not stopped by any of them."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from loop_project import live, make, opened
from palan.core import Version
from palan.data.nouns import DataVersion
from palan.flows.backup import backup
from palan.flows.log import log
from palan.flows.project import record
from palan.flows.verify import NOUNS, verify
from palan.flows.watch import watch
from palan.runs.run import Run
from palan.stores import open_store, sql
from palan.stores.segments import HEADER, SegmentBlocks

SOURCES = Path(__file__).resolve().parent.parent / "src"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that went through the loop for two weeks."""
    folder = tmp_path_factory.mktemp("verify")
    with live(folder / "used", make(folder / "made")) as loop:
        loop.play(15)
        watch(loop.project)
        loop.project.store.blocks.close()  # as the end of its process does
    return folder / "used"


@pytest.fixture
def project(used: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(used, tmp_path / "project"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def found(folder: Path) -> list[dict[str, Any]]:
    findings: list[dict[str, Any]] = verify(opened(folder))["findings"]
    assert all(each["next"] and "\n" not in each["what"] for each in findings)
    return findings


def test_a_project_in_use_has_no_damage_and_names_all_its_blobs(used: Path) -> None:
    report = verify(opened(used))
    assert report["findings"] == [] and report["unnamed"] == 0
    assert min(report[name] for name in ("records", "entries", "files", "frames", "blobs", "bytes")) > 0


def test_every_table_of_the_store_is_walked(tmp_path: Path) -> None:
    open_store(".palan", tmp_path)
    tables = {name for (name,) in sqlite3.connect(tmp_path / ".palan" / "palan.db").execute("select name from sqlite_master where type = 'table'")}
    assert {sql.table(noun).name for noun in NOUNS} == tables - {"lease"}, "a noun that verify does not know is in the migrations: name it in NOUNS"


def test_each_damage_is_named_and_stops_nothing(project: Path) -> None:
    store = project / ".palan"
    db = sqlite3.connect(store / "palan.db")
    records = opened(project).store.records
    versions, other = records.find(Version), records.find(DataVersion)[0].parts[0]
    blob = next(iter(versions[0].manifest["code"].values()))
    records.close()
    (run,) = db.execute("select id from run order by id limit 1").fetchone()
    with db:
        db.execute("update run set params = '{damaged' where id = ?", (run,))
        db.execute("drop trigger entry_is_never_edited")
        db.execute("update entry set reason = 'another' where seq = 2")
    db.close()
    flip(store / "blobs" / blob[:2] / blob, 3)
    (store / "blobs" / other[:2] / other).unlink()
    segment = max(store.glob("blocks/decisions/*/*.seg"), key=lambda path: path.stat().st_size)
    flip(segment, HEADER.size + 2)  # the content of the first frame
    cut = min(store.glob("blocks/outcomes/*/*.seg"), key=lambda path: path.stat().st_size)
    cut.write_bytes(cut.read_bytes()[:-1])

    findings = found(project)
    texts = {each["what"]: each for each in findings}
    expected = {
        "records": f'the run "{run}" is damaged at params',
        "ledger": "entry 2 was edited: its content does not match its digest",
        "blocks": f"{segment} is damaged at bytes 0 to ",
        "blobs": f"{blob} is damaged: it should have digest {blob}, and has ",
    }
    for part, text in expected.items():
        (finding,) = [each for what, each in texts.items() if text in what]
        assert finding["part"] == part
    assert any(f"{cut} was cut: it had " in what for what in texts)
    assert any(what.startswith(f"blob {other} is not there, which trips@") for what in texts)
    assert any(f", which {versions[0].ref} needs" in what or ", which step" in what for what in texts if blob in what)
    assert len(findings) == 6


def test_a_ledger_without_its_end_is_walked_all_the_same(project: Path) -> None:
    db = sqlite3.connect(project / ".palan" / "palan.db")
    with db:
        db.execute("update head set seq = 'many'")
        db.execute("drop trigger entry_is_never_edited")
        db.execute("update entry set reason = 'another' where seq = 2")
    db.close()
    texts = [each["what"] for each in found(project)]
    assert 'the head "ledger" is damaged at seq: \'many\' is not int' in texts[0]
    assert texts[1].startswith("its end cannot be judged: ") and texts[2].startswith("entry 2 was edited") and len(texts) == 3


def test_every_damaged_range_of_a_segment_is_named_and_what_is_whole_is_counted(tmp_path: Path) -> None:
    blocks = SegmentBlocks(tmp_path)
    blocks.append("s", [b"frame %d" % number for number in range(10)])
    (path,) = tmp_path.glob("s/*.seg")
    size = HEADER.size + 7
    flip(path, 2 * size + HEADER.size + 1)  # content of the third
    flip(path, 5 * size + 1)  # length of the sixth
    flip(path, 6 * size + 9)  # checksum of the header of the seventh
    (read,) = blocks.verify()
    assert read.frames == 7 and read.bytes == 10 * size
    ranges = [text.split("bytes ")[1].split(":")[0] for text in read.damage]
    assert ranges == [f"{2 * size} to {3 * size}", f"{5 * size} to {7 * size}"]
    flip(path, 9 * size + 3)  # the length of the last
    (read,) = blocks.verify()
    assert f"at bytes {9 * size} to {10 * size}" in read.damage[-1]


def test_damaged_pages_of_the_database_are_told_and_the_rest_is_read(project: Path) -> None:
    records = opened(project).store.records
    with records.transaction():
        for number in range(500):
            records.put(Run(f"z{number}", "build", "eta", "done", NOON, params={"padding": "x" * 500}))
    records.close()
    path = project / ".palan" / "palan.db"
    data = bytearray(path.read_bytes())
    at = data.rindex(b"x" * 400) // 4096 * 4096
    data[at : at + 4096] = bytes(4096)
    path.write_bytes(bytes(data))
    report = verify(opened(project))
    assert report["blobs"] > 0 and report["frames"] > 0 and report["entries"] > 0
    assert {each["part"] for each in report["findings"]} == {"records"}
    assert any(each["what"].startswith("run: ") for each in report["findings"])


def test_a_blob_that_cannot_be_read_is_told_and_the_next_ones_are_read(project: Path) -> None:
    blobs = sorted((project / ".palan" / "blobs").glob("??/*"))
    blobs[0].unlink()
    blobs[0].mkdir()
    report = verify(opened(project))
    (finding,) = report["findings"]
    assert blobs[0].name in finding["what"] and "Is a directory" in finding["what"] and report["blobs"] == len(blobs)


WRITER = """
import sys
from palan.flows.project import open_project, record
project = open_project(sys.argv[1])
print("begun", flush=True)
while True:
    record(project, "noted", "eta", "again")
"""


def test_what_is_written_meanwhile_is_no_damage(project: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(project)], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "begun\n"
        for _ in range(3):
            assert found(project) == []
            assert log(opened(project), verify=True)["breaks"] == []
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()


def test_the_command_says_it_in_a_line_each_and_by_its_exit_code(project: Path) -> None:
    def palan(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "palan.cli", *words], cwd=project, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCES)})

    clean = palan("verify")
    assert clean.returncode == 0 and clean.stdout.endswith(": no findings\n") and "reading the blobs" in clean.stderr
    (path, *_) = sorted((project / ".palan" / "blobs").glob("??/*"))
    flip(path, 0)
    damaged = palan("verify")
    line, last = damaged.stdout.splitlines()
    assert damaged.returncode == 1 and str(path) in line and "palan restore" in line and last.endswith(": 1 finding")
    as_json = palan("verify", "--json")
    assert as_json.returncode == 1 and as_json.stderr == "" and [each["part"] for each in json.loads(as_json.stdout)["findings"]] == ["blobs"]
    (project / "palan.toml").unlink()
    assert palan("verify").returncode == 2


def test_a_store_in_a_database_is_read_as_well_and_its_backup_names_what_is_damaged(postgres: Any, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "palan.toml").write_text(f'[project]\nname = "p"\nstore = "{postgres.of(folder)}"\n')
    project = opened(folder)
    blob = project.store.blobs.put(b"a table")
    for number in range(3):
        project.store.records.put(Run(f"r{number}", "build", "eta", "done", NOON, tags={"blob": blob}))
        record(project, "noted", "eta", str(number))
    project.store.blocks.append("decisions/eta", [b"frame %d" % number for number in range(100)], durable=True)
    report = verify(project)
    assert report["findings"] == [] and (report["records"], report["entries"], report["frames"], report["blobs"]) == (7, 3, 100, 1)
    postgres.execute(folder, "update run set time = 'never' where id = 'r1'")
    postgres.execute(folder, "update block set frames = set_byte(frames, 30, 7)")
    told = {each["part"]: each for each in found(folder)}
    assert 'the run "r1" is damaged at time' in told["records"]["what"] and "pg_restore" in told["records"]["next"]
    assert "decisions/eta" in told["blocks"]["what"] and "is damaged at bytes" in told["blocks"]["what"]
    made = backup(project, tmp_path / "x.tar")
    assert sorted(("the run" in what, "decisions/eta" in what) for what in made["damaged"]) == [(False, True), (True, False)]
    project.store.records.close()
