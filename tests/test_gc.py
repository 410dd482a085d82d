"""Sweeping the store: what nothing names goes, after a grace time; what anybody may still need stays, whatever is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

import palan.stores.files as files
from palan.cli import main
from palan.core import Version, digest
from palan.errors import Corrupt
from palan.flows.backup import _Packer, backup, restore
from palan.flows.delete import delete
from palan.flows.fold import fold
from palan.flows.gc import SEGMENTS, gc
from palan.flows.log import log
from palan.flows.project import Project, open_project, record
from palan.flows.receive import Receiver
from palan.flows.runs import search
from palan.flows.track import start
from palan.flows.verify import verify
from palan.runs.points import event
from palan.runs.run import Artifact, Run, Step
from palan.stores.files import FileBlobs
from palan.stores.segments import SMALLS, SegmentBlocks, framed

DAY = timedelta(days=1)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "palan.toml").write_text('[project]\nname = "sweep"\n', encoding="utf-8")
    return open_project(tmp_path)


def blobs(project: Project) -> FileBlobs:
    assert isinstance(project.store.blobs, FileBlobs)
    return project.store.blobs


def old(path: Path, days: float = 3) -> Path:
    """Let a file be as if it had been written days ago."""
    then = path.stat().st_mtime - days * 86400
    os.utime(path, (then, then))
    return path


def put(project: Project, data: bytes, days: float = 3) -> str:
    key = project.store.blobs.put(data)
    old(blobs(project).place(key), days)
    return key


def keys(project: Project) -> set[str]:
    return set(project.store.blobs.names())


def test_only_what_nothing_names_is_swept_and_only_after_the_grace_time(project: Project) -> None:
    with start("x", project=project) as run:
        run.artifact(b"weights", "model.bin")
        run.log(loss=1.0)
    for key in keys(project):
        old(blobs(project).place(key))
    named = keys(project)
    project.store.records.put(Step("s", run.id, "fit", {"anything": [{"deep": digest(b"deep")}]}, {}, datetime.now(UTC), 1.0))
    deep, loose, young = put(project, b"deep"), put(project, b"loose"), put(project, b"young", days=0.5)
    told = gc(project, dry_run=True)
    assert told["blobs"] == [{"blob": loose, "bytes": 5}]
    assert keys(project) == {*named, deep, loose, young}
    assert log(project)["total"] == 0
    assert gc(project)["blobs"] == told["blobs"]
    assert keys(project) == {*named, deep, young}
    assert gc(project, older_than=timedelta(hours=6))["blobs"] == [{"blob": young, "bytes": 5}]
    assert gc(project)["blobs"] == []
    first, _ = log(project, verify=True)["entries"]
    assert (first["verb"], first["detail"]["blobs"], first["detail"]["bytes"]) == ("gc", 1, 5)
    assert log(project, verify=True)["breaks"] == []
    assert verify(project)["findings"] == []


def test_what_a_process_logged_and_nobody_has_looked_at_yet_is_named(project: Project) -> None:
    run = start("x", project=project)
    key = run.artifact(b"weights", "model.bin")
    old(blobs(project).place(key))
    assert gc(project)["blobs"] == []
    run.end()
    assert project.store.blobs.get(key) == b"weights"


def test_a_blob_that_a_running_process_has_put_and_not_yet_named_stays(project: Project) -> None:
    stale = put(project, b"the same again")  # nothing names it any more
    code = """
    import sys, palan
    from palan.flows.project import open_project
    project = open_project(".")
    run = palan.start("slow", project=project)
    keys = [project.store.blobs.put(data) for data in (b"fresh", b"the same again")]
    print("put", flush=True)
    sys.stdin.readline()
    for key, data in zip(keys, (b"fresh", b"the same again")):
        run._tell("artifact", {f"kept/{key[:4]}": (key, len(data))})
    run.end()
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=project.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as slow:
        assert slow.stdout and slow.stdout.readline() == "put\n"
        assert gc(project)["blobs"] == []
        slow.communicate("go on\n")
    assert slow.returncode == 0
    assert gc(project)["blobs"] == []
    (found,) = search(project)["runs"]
    kept = {each.blob for each in project.store.records.find(Artifact, run=found["run"]) if each.path.startswith("kept/")}
    assert kept == {stale, digest(b"fresh")}
    assert verify(project)["findings"] == []


def test_nothing_is_removed_between_looking_for_a_blob_and_having_put_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    key = put(project, b"contended")
    before = datetime.now(UTC) - DAY
    removed: list[int | None] = []
    sweep = threading.Thread(target=lambda: removed.append(FileBlobs(blobs(project).root).remove(key, before)))
    looked = files.is_sound

    def looking(store: FileBlobs, wanted: str) -> bool:
        sound = looked(store, wanted)
        sweep.start()  # it comes in the worst moment, and has to wait
        sweep.join(0.2)
        assert removed == []
        return sound

    monkeypatch.setattr(files, "is_sound", looking)
    assert project.store.blobs.put(b"contended") == key
    sweep.join()
    assert removed == [None]
    assert project.store.blobs.get(key) == b"contended"


def test_a_server_says_of_no_blob_that_it_has_it_which_goes_at_that_moment(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    key = put(project, b"contended")
    receiver = Receiver(project)
    told: list[bool] = []
    asking = threading.Thread(target=lambda: told.append(receiver.has(key)))
    unused = FileBlobs.unused_since

    def looking(store: FileBlobs, wanted: str, before: datetime) -> int | None:
        size = unused(store, wanted, before)
        asking.start()  # it comes when the blob was found old, and has to wait
        asking.join(0.2)
        return size

    with monkeypatch.context() as patched:
        patched.setattr(FileBlobs, "unused_since", looking)
        assert blobs(project).remove(key, datetime.now(UTC) - DAY) == 9
    asking.join()
    assert told == [False]
    put(project, b"contended")
    assert receiver.has(key) and blobs(project).remove(key, datetime.now(UTC) - DAY) is None


def test_what_a_backup_has_copied_the_records_of_stays_until_it_has_the_blobs(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start("x", project=project) as run:
        run.artifact(b"weights", "model.bin")
    for key in keys(project):
        old(blobs(project).place(key))
    delete(replace(project, clock=lambda: datetime.now(UTC) - 2 * DAY), [run.id])
    sweep = threading.Thread(target=lambda: gc(open_project(project.root)))
    copied = _Packer._records

    def copying(packer: _Packer) -> None:
        copied(packer)
        sweep.start()  # the run goes for good, and all that only it named
        sweep.join(1)

    monkeypatch.setattr(_Packer, "_records", copying)
    saved = backup(project, tmp_path / "saved.tar")
    sweep.join()
    assert project.store.records.find(Run) == [] and not keys(project)
    assert saved["damaged"] == []
    restore(saved["file"], tmp_path / "back")
    back = open_project(tmp_path / "back")
    assert back.store.records.find(Run)[0].id == run.id and verify(back)["findings"] == []


def test_left_over_files_of_killed_processes_are_swept(project: Project) -> None:
    start("x", project=project).end()
    project.store.blobs.put(b"here")
    folder = project.folder
    left = [old(_file(folder / place)) for place in ("blobs/.01abc.tmp", "blobs/ab/.01abd.tmp", "blocks/runs/01abe.new", ".key-12.tmp")]
    young = [_file(folder / "blobs" / ".02abc.tmp"), old(_file(folder / "blobs" / ".03abc.tmp"), 0.02)]
    before = {path for path in folder.rglob("*") if path.is_file()}
    told = gc(project, dry_run=True)
    assert {each["file"] for each in told["files"]} == {str(path) for path in left}
    gc(project, older_than=timedelta(0))
    gone = before - {path for path in folder.rglob("*") if path.is_file()}
    assert {path for path in gone if path.suffix in (".tmp", ".new")} == set(left)
    assert all(path.exists() for path in young)


def _file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"torn")
    return path


def test_many_small_segments_become_one_file_and_nothing_of_them_is_lost(project: Project) -> None:
    record(project, "build", "m@1")
    assert isinstance(project.store.blocks, SegmentBlocks)
    for number in range(SEGMENTS):
        for stream in ("profiles/a", *(["profiles/few"] if number else [])):
            writer = SegmentBlocks(project.store.blocks.root)
            writer.append(stream, [f"{number}".encode()])
            writer.close()
    live = project.store.blocks
    live.append("profiles/a", [b"open"])
    assert gc(project, dry_run=True)["streams"] == [{"stream": "profiles/a", "segments": SEGMENTS, "frames": 0}]
    assert gc(project)["streams"] == [{"stream": "profiles/a", "segments": SEGMENTS, "frames": SEGMENTS}]
    assert sorted(frame.data for frame in live.scan("profiles/a")) == sorted([b"open", *(str(number).encode() for number in range(SEGMENTS))])
    place = {frame.segment: frame.end for frame in live.scan("profiles/a")}
    live.append("profiles/a", [b"more"])
    (compacted,) = (live.root / "profiles" / "a").glob("*.parquet")
    data = compacted.read_bytes()
    compacted.write_bytes(data[:8] + b"!" + data[9:])
    assert [frame.data for frame in live.scan("profiles/a", place)] == [b"more"]  # what was read is not read again
    with pytest.raises(Corrupt):
        list(live.scan("profiles/a"))
    compacted.write_bytes(data)
    assert gc(project)["streams"] == []
    assert verify(project)["findings"] == []


def ended(project: Project, number: int) -> None:
    """Track a run as a process of its own does, which is at its end."""
    with start("many", project=project, number=number) as run:
        run.log(loss=number / 2)
    assert isinstance(project.store.blocks, SegmentBlocks)
    project.store.blocks.close()
    for path in (project.folder / "blocks" / "runs").glob("*.seg"):
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # what takes it to the disk may hold it for a moment


def test_what_ended_processes_tracked_becomes_one_file_and_is_found_as_before(project: Project, tmp_path: Path) -> None:
    folder = project.folder / "blocks" / "runs"
    for number in range(SMALLS + 1):
        for each in range(SEGMENTS if number == SMALLS else 1):
            ended(project, SEGMENTS * number + each)
        if number < SMALLS:
            assert project.store.blocks.compact("runs") > 0  # each small file would be one more to read, for ever
    going = start("on", project=project)
    before = search(project)
    assert gc(project)["streams"] == []  # a process on another machine may still come back to them
    for path in folder.glob("*.seg"):
        old(path)
    running = next(path for path in folder.glob("*.seg") if not list(folder.glob(f"{path.stem}.*.end")))
    (found,) = gc(project)["streams"]
    assert (found["stream"], found["segments"]) == ("runs", SEGMENTS)
    assert {path.suffix for path in folder.iterdir()} == {".seg", ".parquet", ".end"} and len(list(folder.iterdir())) == 3
    assert list(folder.glob("*.seg")) == [running]
    going.log(loss=1.0)
    going.end()
    assert search(project, "experiment = 'many'")["runs"] == [each for each in before["runs"] if each["experiment"] == "many"]
    assert fold(project) == 0 and verify(project)["findings"] == []

    restore(backup(project, tmp_path / "saved.tar")["file"], tmp_path / "back")
    back = open_project(tmp_path / "back")
    assert fold(back) == 0 and search(back) == search(project)

    again = tmp_path / "again"  # all that is known of runs can be had from the stream alone
    again.mkdir()
    (again / "palan.toml").write_text('[project]\nname = "sweep"\n', encoding="utf-8")
    anew = open_project(again)
    shutil.copytree(project.folder / "blocks", anew.folder / "blocks")
    assert fold(anew) > 2 * SEGMENTS and search(anew)["runs"] == search(project)["runs"]

    (file,) = folder.glob("*.parquet")
    file.unlink()
    assert "is gone" in verify(project)["findings"][0]["what"]


def test_a_segment_that_was_compacted_and_goes_on_is_read_on(project: Project) -> None:
    ended(project, 1)
    fold(project)
    folder = project.folder / "blocks" / "runs"
    (segment,) = folder.glob("*.seg")
    content = segment.read_bytes()
    run = search(project)["runs"][0]["run"]
    assert project.store.blocks.compact("runs") > 0 and not segment.exists()
    more = content + framed(event(run, 1, "tag", {"back": "yes"}))
    for place in (10, len(content), len(more)):  # its process sends it again from the beginning
        segment.write_bytes(more[:place])
        assert fold(project) == (place == len(more))
    assert search(project)["runs"][0]["tags"] == {"back": "yes"}
    assert project.store.blocks.compact("runs") == 0 and segment.exists()


def test_a_sweep_that_is_killed_has_swept_less_and_lost_nothing(project: Project) -> None:
    with start("x", project=project) as run:
        kept = run.artifact(b"weights", "model.bin")
    old(blobs(project).place(kept))
    loose = {put(project, bytes([number])) for number in range(8)}
    code = """
    import os, signal
    from palan.flows.gc import gc
    from palan.flows.project import open_project
    from pathlib import Path
    unlink, count = Path.unlink, []
    def killing(path, missing_ok=False):
        unlink(path, missing_ok)
        count.append(path)
        if len(count) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    Path.unlink = killing
    gc(open_project("."))
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=project.root, check=False, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(loose & keys(project)) == 5
    assert verify(project)["findings"] == []
    assert len(gc(project)["blobs"]) == 5
    assert not loose & keys(project)
    assert project.store.blobs.get(kept) == b"weights"
    assert log(project, verify=True)["breaks"] == []


def test_nothing_is_swept_where_records_are_damaged(project: Project) -> None:
    import sqlite3

    loose = put(project, b"loose")
    project.store.records.put(Version("v", "m", 1, "rules", {}, "r", datetime.now(UTC)))
    with sqlite3.connect(project.folder / "palan.db") as db:
        db.execute("update version set manifest = '{torn'")
    db.close()
    with pytest.raises(Corrupt, match="nothing was swept"):
        gc(project)
    assert loose in keys(project)


def test_the_command_lists_and_sweeps(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    def palan(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["--project", str(project.root), "gc", *arguments])
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out + told.err

    loose = put(project, b"loose")
    code, told = palan("--dry-run")
    assert (code, loose in told, "1 blob and 0 temporary files would go: 5 bytes" in told) == (0, True, True)
    assert palan("--older-than", "7d")[1].startswith("0 blobs")
    code, told = palan("--older-than", "soon")
    assert (code, "hint: palan gc --help" in told) == (2, True)
    assert "1 blob and 0 temporary files gone" in palan()[1]
    assert loose not in keys(project)
