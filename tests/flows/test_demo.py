"""The demo, killed where it hurts: what is left is a project that every command works on, and that goes on."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from palan.core import Version
from palan.errors import PalanError
from palan.flows import demo, history
from palan.flows.project import Project, open_project
from palan.releases.nouns import Release
from palan.runs.run import Run, Step


@contextlib.contextmanager
def playing(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "palan.cli", "demo", "--no-serve", "--into", str(folder), "--port", str(port)]
    with (folder.parent / "told.txt").open("ab") as told:
        process = subprocess.Popen(words, stdout=told, stderr=told, env=environment())
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def palan(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "palan.cli", "--project", str(folder), *words], capture_output=True, text=True, timeout=60, env=environment(), check=False)


def wait(process: subprocess.Popen[bytes], until: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert process.poll() is None, f"the demo ended by itself with {process.returncode}"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)


def works(folder: Path) -> None:
    """Every command that somebody would type now does what it always does."""
    ingested = palan(folder, "ingest")
    assert ingested.returncode == 0, ingested.stderr
    verified = palan(folder, "log", "--verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "0 breaks" in verified.stdout
    state = palan(folder, "status")
    assert state.returncode in (0, 1)
    assert "Traceback" not in state.stderr
    for name in ("delay", "gates", "gates_fast", "care", "hold"):
        assert name in state.stdout


def days(project: Project) -> list[str]:
    return sorted(each.parts["day"] for each in project.store.records.find(Step, name="demo day"))


def test_a_killed_demo_leaves_a_project_that_goes_on(tmp_path: Path) -> None:
    for library in ("sklearn", "highspy", "gymnasium"):
        pytest.importorskip(library)
    folder = tmp_path / "demo"
    chance = random.Random(20130913)
    for longest in (1.5, 6.0):
        with playing(folder) as process:
            wait(process, (folder / ".palan" / "palan.db").is_file, 60)
            time.sleep(chance.uniform(0.1, longest))
            process.kill()
        works(folder)

    with playing(folder) as process:
        project = open_project(folder)
        wait(process, lambda: len(days(project)) >= 2, 180)
        process.kill()
    played, first = days(project), project.store.records.find(Version, order="number", model="delay")
    assert played[:2] == ["2013-05-01", "2013-05-02"]
    assert len(first) == 1
    assert len(project.store.records.find(Release)) == 5
    assert Counter(each.parts["month"] for each in project.store.records.find(Step, name="demo month")) == {f"2013-0{month}": 1 for month in range(1, 5)}

    with playing(folder) as process:
        wait(process, lambda: len(days(project)) >= len(played) + 1, 180)
        process.kill()
    after = days(project)
    assert after[: len(played)] == played
    assert len(set(after)) == len(after)
    assert project.store.records.find(Version, order="number", model="delay") == first  # nothing was built again
    asked = Counter(key for each in history.decisions(project, "delay") for key in each.keys or [])
    assert max(asked.values()) == 1  # nobody was answered twice, not even on the day of the kill
    assert {each.time.date().isoformat() for each in history.decisions(project, "delay")} >= set(after)
    works(folder)
    assert [each.status for each in project.store.records.find(Run, flow="demo", order="time")].count("done") == 0


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(PalanError, match="is no demo of palan") as refused:
        demo.demo(tmp_path)
    assert "--into" in refused.value.hint
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(PalanError, match="is no demo of palan"):
        demo.demo(tmp_path / "thesis.txt")


def test_a_demo_killed_while_its_folder_was_made_is_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    copied = []

    def copy(source: str, target: str) -> str:
        copied.append(target)
        if len(copied) == 5:
            Path(target).write_bytes(b"half of it")
            raise Killed
        return str(shutil.copyfile(source, target))

    folder = tmp_path / "demo"
    whole = shutil.copytree

    def partly(*words: Any, **options: Any) -> Any:  # it calls itself for each folder, with the function in its place
        return whole(*words, **options) if len(words) > 2 else whole(*words, copy_function=copy, **options)

    with monkeypatch.context() as patch:
        patch.setattr(demo.shutil, "copytree", partly)
        with pytest.raises(Killed):
            demo._prepare(folder)
    demo._prepare(folder)
    source = demo.example()
    for each in copied:
        assert Path(each).read_bytes() == (source / Path(each).relative_to(folder)).read_bytes()
    assert (folder / "palan.toml").is_file()

    (folder / "care.csv").write_text("changed by its owner")
    demo._prepare(folder)  # whole: what is in it is the owner's
    assert (folder / "care.csv").read_text() == "changed by its owner"


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (demo._prepare(tmp_path / "empty") / "palan.toml").is_file()
