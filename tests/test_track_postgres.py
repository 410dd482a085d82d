"""Keeping track of trials in a store that machines share: files take what is logged, and every machine sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from palan.flows.fold import KILLED, VOUCHED, fold, tracked
from palan.flows.gc import gc
from palan.flows.project import Project, open_project
from palan.flows.runs import curve, search
from palan.flows.track import start
from palan.stores.contract import Lease
from postgres import Database

pytest.importorskip("psycopg", reason='no psycopg: pip install "palan[postgres]"')
from palan.stores.postgres import PostgresRecords

SOURCES = Path(__file__).resolve().parent.parent / "src"


class Two:
    """Two machines: each has its folder, and the store is one."""

    def __init__(self, folder: Path, address: str) -> None:
        self.address = address
        self.here, self.there = (self._project(folder / name) for name in ("here", "there"))
        self.processes: list[subprocess.Popen[str]] = []

    def _project(self, folder: Path) -> Project:
        folder.mkdir()
        (folder / "palan.toml").write_text('[project]\nname = "routing"\n', encoding="utf-8")
        return open_project(folder)

    def python(self, code: str) -> subprocess.Popen[str]:
        """Run a script on the other machine."""
        environment = {**os.environ, "PYTHONPATH": str(SOURCES), "PALAN_STORE": self.address}
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], cwd=self.there.root, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.processes.append(process)
        return process

    def runs(self) -> list[dict[str, Any]]:
        """Return what the machine sees that tracks nothing."""
        return list(search(self.here)["runs"])

    def status(self) -> str:
        return ",".join(str(each["status"]) for each in self.runs())


@pytest.fixture
def two(postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    address = postgres.of(tmp_path)
    monkeypatch.setenv("PALAN_STORE", address)
    made = Two(tmp_path, address)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def eventually(holds: Callable[[], Any], seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def test_what_one_machine_logs_the_other_one_sees_when_the_run_ends(two: Two) -> None:
    with start("routes", project=two.there, lr=0.1) as run:
        for step in range(100):
            run.log(loss=float(step))
    assert [(each["run"], each["status"], each["metrics"]) for each in two.runs()] == [(run.id, "done", {"loss": 99.0})]
    assert curve(two.here, run.id, "loss")["values"] == [float(step) for step in range(100)]
    assert two.there.store.blocks.streams() == []  # the database has the records, and no copy of what was logged


def test_logging_waits_for_no_database_and_what_was_logged_without_it_is_read_later(two: Two, postgres: Database) -> None:
    client = two.python(
        """
        import palan, sys
        run = palan.start("routes")
        run.log(loss=0.0)
        print(flush=True)
        for step in range(1, 1000):
            run.log(loss=float(step))
            if step % 500 == 0:
                input()
        run.end()
        print(run.id)
        """
    )
    assert client.stdout is not None and client.stdin is not None
    client.stdout.readline()
    client.stdin.write("\n")
    client.stdin.flush()
    postgres.restart()
    run, _ = client.communicate("\n")
    fold(two.there)  # whoever looks on its machine reads what it had no time for
    assert curve(two.here, run.strip(), "loss")["values"] == [float(step) for step in range(1000)]
    assert two.status() == "done"


def test_a_process_that_others_cannot_see_counts_as_killed_until_it_is_heard_again(two: Two) -> None:
    client = two.python('import palan\nrun = palan.start("routes")\nrun.log(loss=1.0)\ninput()\nrun.log(loss=2.0)\ninput()\n')
    assert client.stdin is not None
    assert eventually(lambda: two.status() == "running")
    time.sleep(1.5)
    assert two.status() == "running"
    client.send_signal(signal.SIGSTOP)
    assert eventually(lambda: two.status() == "killed")
    client.send_signal(signal.SIGCONT)
    assert eventually(lambda: two.status() == "running")
    client.stdin.write("\n")
    client.stdin.flush()
    assert eventually(lambda: two.runs()[0]["metrics"] == {"loss": 2.0})
    assert len(two.here.store.records.find(Lease)) == 1
    client.communicate("\n")
    assert eventually(lambda: two.status() == "killed")  # it ended without a word, and says so itself
    assert two.here.store.records.find(Lease) == []
    run = two.runs()[0]
    assert curve(two.here, run["run"], "loss")["values"] == [1.0, 2.0] and run["reason"] == KILLED


def test_a_look_vouches_at_once_for_all_processes_of_its_machine_and_what_ended_is_swept(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    there, writers, put = replace(two.there, clock=lambda: now), {f"{number:026}": True for number in range(300)}, PostgresRecords.put
    told: list[int] = []
    monkeypatch.setattr(type(tracked(there)), "writers", lambda *_: writers)
    def counted(self: PostgresRecords, *nouns: object) -> None:
        if self is there.store.records:  # not what a thread of another test may still say
            told.append(len(nouns))
        put(self, *nouns)

    monkeypatch.setattr(PostgresRecords, "put", counted)
    for seconds in (0.0, 0.5, 2.0, 0.1):  # looks in quick succession say nothing new
        now += timedelta(seconds=seconds)
        fold(there)
    assert told == [300, 300]
    leases = two.here.store.records.find(Lease)
    assert len(leases) == 300 and {each.expires for each in leases} == {now - timedelta(seconds=0.1) + VOUCHED}
    writers.clear()
    put(two.here.store.records, Lease("build/m", "me", 7, now - timedelta(days=3)))  # a fence: its token rises for ever
    for hours, left in ((23, 301), (25, 1)):
        gc(replace(two.here, clock=lambda hours=hours: now + timedelta(hours=hours)))
        assert len(two.here.store.records.find(Lease)) == left
    assert two.here.store.records.find(Lease)[0].name == "build/m"
