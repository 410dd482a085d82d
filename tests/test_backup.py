"""`palan backup` while others write, `palan restore` byte for byte, and what becomes of either when it is killed or wrong."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from loop_project import live, make, opened
from palan.errors import Conflict, Corrupt, NotFound, PalanError
from palan.flows.backup import backup, restore
from palan.flows.project import open_project
from palan.flows.verify import NOUNS, verify
from palan.runs.run import Run
from postgres import Database

SOURCES = Path(__file__).resolve().parent.parent / "src"


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that answered for two days. To be read, not to be changed."""
    folder = tmp_path_factory.mktemp("backup")
    with live(folder / "used", make(folder / "made")) as loop:
        loop.play(3)
        loop.project.store.blocks.close()
    return folder / "used"


@pytest.fixture(scope="module")
def saved(used: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("saved") / "palan.tar"
    backup(opened(used), file)
    return file


def kept(folder: Path) -> dict[str, Any]:
    """All that a store holds, as its readers see it."""
    store = opened(folder).store
    return {
        "records": {noun.__name__: store.records.find(noun) for noun in NOUNS},
        "blocks": {stream: [frame.data for frame in store.blocks.scan(stream)] for stream in store.blocks.streams()},
        "blobs": {name: store.blobs.get(name) for name in store.blobs.names()},
    }


def everything(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def palan(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "palan.cli", *map(str, words)], cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCES)})


def test_what_was_backed_up_comes_back_as_it_was(used: Path, tmp_path: Path) -> None:
    saved, back = tmp_path / "palan.tar", tmp_path / "back"
    made = palan(used, "backup", saved)
    assert made.returncode == 0 and "keep it as secret as the project" in made.stdout, made.stderr
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    done = palan(tmp_path, "restore", saved, "--into", back)
    assert done.returncode == 0 and f"{back}/.palan: " in done.stdout, done.stderr
    assert kept(back) == kept(used)
    assert stat.S_IMODE((back / ".palan" / "key").stat().st_mode) == 0o600
    assert (back / ".palan" / "key").read_bytes() == (used / ".palan" / "key").read_bytes()
    assert {path.name for path in back.iterdir()} == {".palan", "palan.toml", "eta.py", "pack.py", "golden.json"}
    assert palan(back, "verify").returncode == 0 and palan(back, "status").returncode == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_is_a_project_gets_the_store_alone(used: Path, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(used, tmp_path / "clone", ignore=shutil.ignore_patterns(".palan"))
    (tmp_path / "clone" / "eta.py").write_text((used / "eta.py").read_text() + "\n# mine\n")
    before = everything(tmp_path / "clone")
    done = palan(tmp_path / "clone", "restore", saved)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "clone").rglob("*") if ".palan" not in path.parts) == before
    assert "# mine" in (tmp_path / "clone" / "eta.py").read_text()
    assert kept(tmp_path / "clone") == kept(used)


WRITER = """
import sys
from palan.flows.project import open_project, record
from palan.core import utcnow
from palan.runs.run import Run
project = open_project(sys.argv[1])
store = project.store
for number in range(10**9):
    blob = store.blobs.put(f"blob {number}".encode() * 1000)
    store.records.put(Run(f"load-{number:06d}", "load", "eta", "done", utcnow(), tags={"blob": blob}))
    store.blocks.append("load", [f"frame {number}".encode() * 100])
    if number % 50 == 0:
        record(project, "noted", "eta", str(number))
    if number % 200 == 100:
        store.blocks.close()
        store.blocks.compact("load")
    print(number, flush=True)
"""


def test_a_backup_under_load_holds_all_that_was_acknowledged_before(used: Path, tmp_path: Path) -> None:
    busy = Path(shutil.copytree(used, tmp_path / "busy"))
    writers = [python(WRITER, busy)]
    try:
        for turn in range(3):
            (writer,) = writers
            assert writer.stdout is not None
            for line in writer.stdout:
                last = int(line)
                if last >= 300 * (turn + 1):
                    break
            backup(open_project(busy), tmp_path / f"{turn}.tar")
            assert writer.poll() is None
            report = restore(tmp_path / f"{turn}.tar", tmp_path / f"back-{turn}")
            assert report["findings"] == []
            store = open_project(tmp_path / f"back-{turn}").store
            runs = {run.id: run.tags["blob"] for run in store.records.find(Run, flow="load")}
            frames = {frame.data for frame in store.blocks.scan("load")}
            assert len(frames) >= last + 1
            for number in range(last + 1):
                assert store.blobs.get(runs[f"load-{number:06d}"]) == f"blob {number}".encode() * 1000
                assert f"frame {number}".encode() * 100 in frames
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert verify(open_project(busy))["findings"] == []


KILLED = """
import os, sys
from palan.flows import backup
from palan.flows.project import open_project
what, nth, project, file, into = sys.argv[1:]
owner = {"_write": backup._Packer, "_lay_down": backup, "sync_folder": backup}[what]
real, calls = getattr(owner, what), []
def counted(*arguments):
    calls.append(what)
    if len(calls) == int(nth):
        os.kill(os.getpid(), 9)
    return real(*arguments)
setattr(owner, what, counted)
backup.restore(file, into) if into else backup.backup(open_project(project), file)
"""


@pytest.mark.parametrize("nth", [1, 5, 7, 12])
def test_a_backup_that_was_killed_is_no_file(used: Path, tmp_path: Path, nth: int) -> None:
    target = tmp_path / "palan.tar"
    killed = python(KILLED, "_write", nth, used, target, "")
    _, errors = killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL, errors
    assert not target.exists()
    backup(opened(used), target)
    assert everything(tmp_path) == ["palan.tar"]
    assert restore(target, tmp_path / "back")["findings"] == []


@pytest.mark.parametrize(("what", "nth"), [("_lay_down", 1), ("_lay_down", 6), ("_lay_down", 9), ("sync_folder", 1)])
def test_a_restore_that_was_killed_is_as_if_not_begun(used: Path, saved: Path, tmp_path: Path, what: str, nth: int) -> None:
    back = tmp_path / "back"
    killed = python(KILLED, what, nth, used, saved, back)
    _, errors = killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL, errors
    assert not (back / ".palan").exists()
    assert restore(saved, back)["findings"] == []
    assert kept(back) == kept(used) and [path.name for path in back.iterdir() if path.name.startswith(".")] == [".palan"]


def test_a_store_or_a_file_that_is_there_is_never_touched(used: Path, saved: Path, tmp_path: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(Conflict, match=f"there is a file {saved} already"):
        backup(opened(used), saved)
    project = Path(shutil.copytree(used, tmp_path / "project"))
    (project / ".palan" / "palan.db").write_bytes(b"mine")
    with pytest.raises(Conflict, match="there is a store already") as refused:
        restore(saved, project)
    assert f"mv {project}/.palan {project}/.palan.old" in refused.value.hint
    assert (project / ".palan" / "palan.db").read_bytes() == b"mine" and saved.read_bytes() == before
    wrong = palan(project, "restore", saved)
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 2


def test_a_backup_that_was_cut_or_changed_is_refused_and_nothing_is_left(saved: Path, tmp_path: Path) -> None:
    whole, chance = saved.read_bytes(), random.Random(3)
    with tarfile.open(saved) as tar:
        end = max(member.offset_data + member.size for member in tar)  # what follows is padding
        starts = [member.offset for member in tar]
    copy = tmp_path / "copy.tar"
    for size in [0, 100, *starts[1:4], starts[-1], *(chance.randrange(end) for _ in range(6))]:
        copy.write_bytes(whole[:size])
        with pytest.raises(Corrupt):
            restore(copy, tmp_path / "back")
        assert everything(tmp_path) == ["copy.tar"]
    for at in [chance.randrange(end) for _ in range(12)]:
        changed = bytearray(whole)
        changed[at] ^= 0x10
        copy.write_bytes(bytes(changed))
        try:
            restore(copy, tmp_path / "back")
        except (Corrupt, PalanError):
            assert everything(tmp_path) == ["copy.tar"]
            continue
        with tarfile.open(saved) as tar:  # what no reader looks at: padding, owners, times
            assert not any(member.offset_data <= at < member.offset_data + member.size for member in tar), at
        shutil.rmtree(tmp_path / "back")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "store/../../evil", "elsewhere/evil"])
def test_a_tar_that_palan_did_not_write_is_refused(saved: Path, tmp_path: Path, name: str) -> None:
    forged = tmp_path / "in" / "forged.tar"
    forged.parent.mkdir()
    with tarfile.open(forged, "w") as tar:
        for each in ("project/palan.toml", name):
            member = tarfile.TarInfo(each)
            member.size = 0
            tar.addfile(member, io.BytesIO())
    with pytest.raises(Corrupt, match=f"it holds {name}"):
        restore(forged, tmp_path / "in" / "back")
    assert everything(tmp_path) == ["forged.tar", "in"] and not Path("/tmp/evil").exists()


def test_what_cannot_be_done_is_said(used: Path, saved: Path, tmp_path: Path) -> None:
    project = opened(used)
    with pytest.raises(NotFound, match="there is no folder"):
        backup(project, tmp_path / "none" / "x.tar")
    with pytest.raises(NotFound, match="there is no file"):
        restore(tmp_path / "none.tar", tmp_path / "back")
    (tmp_path / "palan.toml").write_text('[project]\nname = "p"\nstore = "postgresql://127.0.0.1:9/palan"\n')
    with pytest.raises(PalanError, match="does not answer"):
        restore(saved, tmp_path)
    assert everything(tmp_path) == ["palan.toml"]
    outside = palan(tmp_path.parent, "restore", saved)
    assert outside.returncode == 2 and "there is no palan project" in outside.stderr


def test_a_full_disk_costs_a_backup_or_a_restore_and_nothing_else(used: Path, saved: Path, tmp_path: Path) -> None:
    size = saved.stat().st_size // 1024
    for blocks in (20, 150, size // 2):  # while the records are copied, and later
        limited = subprocess.run(
            ["bash", "-c", f'ulimit -f {blocks}; exec "$0" "$@"', sys.executable, "-m", "palan.cli", "backup", str(tmp_path / "palan.tar")],
            cwd=used, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCES)},
        )
        assert limited.returncode == 2 and f"df {tmp_path}" in limited.stderr, limited.stderr
        assert everything(tmp_path) == []
    limited = subprocess.run(
        ["bash", "-c", 'ulimit -f 50; exec "$0" "$@"', sys.executable, "-m", "palan.cli", "restore", str(saved), "--into", str(tmp_path / "back")],
        cwd=used, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCES)},
    )
    assert limited.returncode == 2 and f"df {tmp_path}/back" in limited.stderr and everything(tmp_path) == []
    assert verify(opened(used))["findings"] == []


def test_what_a_killed_backup_left_behind_harms_no_later_one(used: Path, tmp_path: Path) -> None:
    for name in (".palan.tar.part", ".palan.tar.db", ".palan.tar.db-journal"):
        (tmp_path / name).write_bytes(os.urandom(100_000))
    backup(opened(used), tmp_path / "palan.tar")
    assert everything(tmp_path) == ["palan.tar"] and restore(tmp_path / "palan.tar", tmp_path / "back")["findings"] == []


def test_two_backups_into_one_file_do_not_mix(used: Path, tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / ".palan.tar.part").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="another backup writes"):
            backup(opened(used), tmp_path / "palan.tar")
    backup(opened(used), tmp_path / "palan.tar")
    assert everything(tmp_path) == ["palan.tar"]


def test_what_was_damaged_before_is_told_when_it_is_saved_and_when_it_comes_back(used: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(used, tmp_path / "project"))
    blob = sorted((project / ".palan" / "blobs").glob("??/*"))[0]
    blob.write_bytes(b"another")
    made = palan(project, "backup", tmp_path / "palan.tar")
    assert made.returncode == 1 and blob.name in made.stdout
    back = palan(tmp_path, "restore", "palan.tar", "--into", "back")
    assert back.returncode == 1 and f"{tmp_path}/back/.palan/blobs/{blob.name[:2]}/{blob.name} is damaged" in back.stdout


# --- a store on a server ---


def moved(used: Path, folder: Path, address: str) -> Path:
    """Return a clone of the project whose store is to be on a server."""
    shutil.copytree(used, folder, ignore=shutil.ignore_patterns(".palan"))
    file = folder / "palan.toml"
    file.write_text(file.read_text().replace("[project]\n", f'[project]\nstore = "{address}"\n'))
    return folder


def test_a_store_moves_to_a_server_and_back(used: Path, saved: Path, postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    team = moved(used, tmp_path / "team", postgres.of(tmp_path))
    done = palan(team, "restore", saved)
    assert done.returncode == 0, done.stderr
    assert kept(team) == kept(used)
    assert {path.name for path in (team / ".palan").iterdir()} >= {"key", "blobs"} and not (team / ".palan" / "palan.db").exists()
    assert palan(team, "log", "--verify").returncode == 0 and palan(team, "verify").returncode == 0
    writer = python(WRITER, team)
    try:
        assert writer.stdout is not None
        before = 0
        while before < 250:
            before = int(writer.stdout.readline())
        made = backup(opened(team), tmp_path / "palan.tar")
    finally:
        writer.kill()
        writer.wait()
    assert made["damaged"] == []
    again = palan(team, "restore", tmp_path / "palan.tar", "--into", tmp_path / "another")
    assert again.returncode == 2 and "is not empty" in again.stderr and "PALAN_STORE=.palan" in again.stderr
    monkeypatch.setenv("PALAN_STORE", ".palan")
    found = restore(tmp_path / "palan.tar", tmp_path / "back")
    assert found["findings"] == []
    store = opened(tmp_path / "back").store
    runs = {run.id for run in store.records.find(Run, flow="load")}
    assert runs >= {f"load-{number:06d}" for number in range(before)}
    assert [frame.data for frame in store.blocks.scan("load")][:before] == [f"frame {number}".encode() * 100 for number in range(before)]
    assert all(store.blobs.has(str(run.tags["blob"])) for run in store.records.find(Run, flow="load"))
    now, then = kept(tmp_path / "back"), kept(used)
    assert {stream: frames for stream, frames in now["blocks"].items() if stream != "load"} == then["blocks"]
    assert now["records"]["Version"] == then["records"]["Version"] and now["records"]["Entry"][: len(then["records"]["Entry"])] == then["records"]["Entry"]
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


def test_what_a_server_has_lost_is_said_by_the_backup_and_again_when_it_comes_back(used: Path, saved: Path, postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    team = moved(used, tmp_path / "team", postgres.of(tmp_path))
    restore(saved, team)
    store = opened(team).store
    for number in range(3):
        store.blocks.append("load", [f"frame {number}".encode() * 100])
    lost = "delete from block where (segment, begins) in (select segment, begins from block join segment on segment.id = block.segment where stream = 'load' and begins > 0 order by begins limit 1)"
    postgres.execute(tmp_path, lost)
    made = backup(opened(team), tmp_path / "palan.tar")
    assert len(made["damaged"]) == 1 and "they are gone" in made["damaged"][0] and "load" in made["damaged"][0]
    monkeypatch.setenv("PALAN_STORE", ".palan")
    found = restore(tmp_path / "palan.tar", tmp_path / "back")
    assert [each["part"] for each in found["findings"]] == ["blocks"] and "load" in found["findings"][0]["what"]
    blocks = opened(tmp_path / "back").store.blocks
    assert [frame.data for frame in blocks.scan("load", damaged=lambda _: None)] == [b"frame 0" * 100, b"frame 2" * 100]
