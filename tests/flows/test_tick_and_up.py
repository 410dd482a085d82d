"""Doing what is due, once, whoever asks and whatever dies; and all of it in one process that can be stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from loop_project import LIVE, Loop, World, celsius, ledger, live, living, opened
from palan.core import Version, stamp, unstamp
from palan.errors import ModelFailed
from palan.flows import up as upping
from palan.flows.journal import MOST, running
from palan.flows.log import log
from palan.flows.tick import MADE_UP, slots, tick
from palan.flows.watch import frames
from palan.runs.run import Run, Step

DAYS = 15
HERE = Path(__file__).parent.parent

TICK = """
import json, sys, time
from datetime import datetime
from pathlib import Path
from loop_project import opened
from palan.flows.tick import MADE_UP, slots, tick
project = opened(Path(sys.argv[1]), datetime.fromisoformat(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps(tick(project)), flush=True)
"""


@pytest.fixture(scope="module")
def due(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after two weeks that nobody watched, the second one with a broken unit; and a file was delivered."""
    with live(tmp_path_factory.mktemp("due") / "p", built) as loop:
        loop.play(7)
        loop.play(DAYS - 7, feed=celsius)
        loop.world.day(LIVE).write_csv(loop.project.root / "feed" / "trips-05-04.csv", datetime_format="%Y-%m-%dT%H:%M:%SZ")
        return loop.project.root


@pytest.fixture
def loop(due: Path, tmp_path: Path) -> Iterator[Loop]:
    shutil.copytree(due, tmp_path / "p")
    with living(tmp_path / "p", DAYS) as loop:
        yield loop


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "PALAN_ACTOR": "test"}


@contextlib.contextmanager
def ticker(folder: Path, now: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that is about to tick: it waits for a line."""
    process = subprocess.Popen([sys.executable, "-c", TICK, str(folder), now], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def told(process: subprocess.Popen[str]) -> list[dict[str, str]]:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())  # type: ignore[no-any-return]


def children_of(pid: int) -> list[int]:
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (each / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid:
                    found += [int(each.name), *children_of(int(each.name))]
    return found


def gone(pids: list[int], seconds: float = 10) -> list[int]:
    """Wait until the processes are no more, and return those that still are."""
    deadline = time.monotonic() + seconds
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- tick ----------------------------------------------------------------------------------------------------------------


def test_a_tick_does_what_is_due_and_the_next_one_nothing(loop: Loop) -> None:
    done = {each["what"]: each["text"] for each in tick(loop.project)}
    assert list(done) == ["ingest trips", "watch eta"]  # the page waits for outcomes
    assert "150 good" in done["ingest trips"]
    assert "°C instead of °F" in done["watch eta"]
    before = len(ledger(loop.project))
    assert tick(loop.project) == []
    assert len(ledger(loop.project)) == before


def test_two_that_tick_at_the_same_time_do_each_duty_once(loop: Loop) -> None:
    loop.deciders.close()
    now = loop.project.clock().isoformat()
    with ticker(loop.project.root, now) as one, ticker(loop.project.root, now) as other:
        go(one)
        go(other)
        lines = [*told(one), *told(other)]
    assert sorted(each["what"] for each in lines) == ["ingest trips", "watch eta"]
    verbs = Counter(each.verb for each in ledger(loop.project))
    assert verbs["paged"] == 1
    assert verbs["ingested"] == 2  # the first delivery, and the one that was due
    assert len(frames(loop.project, "eta")) == len(list(loop.project.store.blocks.scan("watch/eta"))) == 2
    assert log(loop.project, verify=True)["breaks"] == []


@pytest.mark.parametrize(
    ("now", "done", "missed", "due"),
    [
        pytest.param("06-03T07:00", None, "latest", ["03"], id="the first time"),
        pytest.param("06-03T06:29", "02", "all", [], id="not yet"),
        pytest.param("06-03T06:30", "02", "skip", ["03"], id="at once"),
        pytest.param("06-03T18:00", "02", "skip", ["03"], id="late, in the first half"),
        pytest.param("06-03T18:30", "02", "skip", [], id="missed by half a day, and skipped"),
        pytest.param("06-06T07:00", "02", "latest", ["06"], id="the latest for all"),
        pytest.param("06-06T07:00", "02", "all", ["03", "04", "05", "06"], id="each"),
        pytest.param("06-06T07:00", "02", "skip", ["06"], id="only the one that is now"),
        pytest.param("06-06T07:00", "06", "all", [], id="done already"),
        pytest.param("06-01T07:00", "06", "all", [], id="a clock that was put back"),
    ],
)
def test_slots_that_nobody_called_for_obey_the_policy(now: str, done: str | None, missed: str, due: list[str]) -> None:
    at, day = timedelta(hours=6, minutes=30), timedelta(days=1)
    found = slots(unstamp(f"2026-{now}"), day, at, unstamp(f"2026-06-{done}T06:30") if done else None, missed)
    assert found == [unstamp(f"2026-06-{each}T06:30") for each in due]


def test_slots_go_on_when_their_pace_was_changed_and_not_for_ever_back() -> None:
    hours = timedelta(hours=6)
    found = slots(unstamp("2026-06-02T13:00"), hours, timedelta(0), unstamp("2026-06-01T06:30"), "all")
    assert [each.isoformat()[8:13] for each in found] == ["01T18", "02T00", "02T06", "02T12"]
    assert len(slots(unstamp("2026-06-02"), hours, timedelta(0), unstamp("2000-01-01"), "all")) == MADE_UP + 1


@pytest.mark.parametrize(("missed", "made_up"), [("latest", 1), ("all", 3), ("skip", 0)])
def test_a_tick_makes_up_for_missed_days_as_the_policy_says(loop: Loop, missed: str, made_up: int) -> None:
    project = loop.project
    model = project.config.models["eta"]
    project.config = replace(project.config, models={"eta": replace(model, watch=replace(model.watch, missed=missed))})

    def seen() -> list[str]:
        return sorted(each.parts["slot"] for each in project.store.records.find(Step, name="tick watch eta"))

    midnight = project.clock().replace(hour=0, minute=0)
    project.clock = lambda: midnight + timedelta(minutes=5)
    tick(project)
    first = seen()
    assert len(first) == 1
    project.clock = lambda: midnight + timedelta(days=3, hours=15)
    tick(project)
    assert len(seen()) == 1 + made_up
    assert tick(project) == [] and len(seen()) == 1 + made_up
    assert log(project, verify=True)["breaks"] == []


def test_a_watch_that_fails_too_often_is_left_until_its_next_slot(loop: Loop) -> None:
    project = loop.project
    slot = slots(project.clock(), timedelta(days=1), timedelta(0), None, "latest")[0]

    def fails() -> str:
        raise ModelFailed("score() raised")

    for _ in range(MOST):
        with pytest.raises(ModelFailed), running(project, "tick", project.config.name) as journal:
            journal.step("tick watch eta", {"model": "eta", "slot": stamp(slot)}, fails)
    assert [each["what"] for each in tick(project)] == ["ingest trips"]
    project.clock = lambda: slot + timedelta(days=1, minutes=5)
    assert [each["what"] for each in tick(project)] == ["watch eta"]


@pytest.mark.parametrize("after", [0.15, 0.6])
def test_a_killed_tick_is_continued_at_once(loop: Loop, after: float) -> None:
    loop.deciders.close()
    with ticker(loop.project.root, loop.project.clock().isoformat()) as process:
        go(process)
        time.sleep(after)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    began = time.monotonic()
    tick(loop.project)
    assert time.monotonic() - began < 25
    assert len(frames(loop.project, "eta")) == 2
    assert [each.lane for each in loop.alarms()] == ["page"]
    assert sum(each.verb == "ingested" for each in ledger(loop.project)) == 2  # the first delivery, and the one that was due
    assert loop.project.store.records.find(Run, status="running") == []
    assert log(loop.project, verify=True)["breaks"] == []


def test_a_duty_that_fails_is_told_and_stops_no_other_and_is_tried_again(loop: Loop) -> None:
    (loop.project.root / "feed" / "trips-broken.csv").write_bytes(b"\x00\x01\x02")
    blob = next(iter(loop.project.store.records.find(Version, model="eta")[0].manifest["state"].values()))
    place = next(loop.project.folder.rglob(blob))
    kept = place.read_bytes()
    place.chmod(0o600)
    place.write_bytes(b"damaged")
    shutil.rmtree(loop.project.folder / "cache", ignore_errors=True)
    done = {each["what"]: each for each in tick(loop.project)}
    assert done["ingest trips"]["text"].startswith("failed: ")
    assert done["watch eta"]["text"].startswith("failed: ")
    assert done["watch eta"]["hint"]
    assert loop.project.store.records.find(Step, name="tick watch eta") == []

    place.write_bytes(kept)
    (loop.project.root / "feed" / "trips-broken.csv").unlink()
    done = {each["what"]: each for each in tick(loop.project)}
    assert "°C instead of °F" in done["watch eta"]["text"]
    assert "failed" not in done.get("ingest trips", {"text": ""})["text"]


def test_a_day_later_the_watch_looks_again(loop: Loop) -> None:
    tick(loop.project)
    slots = len(loop.project.store.records.find(Step, name="tick watch eta"))
    loop.project.clock.now += timedelta(hours=1)  # type: ignore[attr-defined]
    tick(loop.project)
    assert len(loop.project.store.records.find(Step, name="tick watch eta")) == slots
    loop.project.clock.now += timedelta(days=1)  # type: ignore[attr-defined]
    tick(loop.project)
    assert len(loop.project.store.records.find(Step, name="tick watch eta")) == slots + 1


# -- up ------------------------------------------------------------------------------------------------------------------


def palan(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "palan.cli", "--project", str(folder), *words], capture_output=True, text=True, timeout=60, env=environment(), check=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def upped(folder: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "palan.cli", "--project", str(folder), "up", "--port", str(port), "--every", "0.5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("up at "):
                break
        else:
            raise AssertionError("it never came up")
        yield process, line.split()[2]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(url: str, rows: int = 1) -> dict[str, object]:
    row = {"temp": 50.0, "dewp": 40.0, "humid": 70.0, "wind": 5.0, "load": 40, "line": "A"}
    request = urllib.request.Request(f"{url}/v1/models/eta/decide", json.dumps({"rows": [row] * rows}).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.loads(response.read())  # type: ignore[no-any-return]


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_up_serves_and_ticks_beside_a_build_and_ends_when_told(built: Path, tmp_path: Path, ending: signal.Signals) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "p"))
    with upped(folder, free_port()) as (process, url):
        assert ask(url)["version"] == "eta@1"
        # A file that is delivered now is taken in by the tick of this very process.
        project = opened(folder)
        World().day(LIVE).write_csv(folder / "feed" / "late.csv", datetime_format="%Y-%m-%dT%H:%M:%SZ")
        deadline = time.monotonic() + 20
        while sum(each.verb == "ingested" for each in ledger(project)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert sum(each.verb == "ingested" for each in ledger(project)) == 2

        if ending == signal.SIGTERM:
            second = palan(folder, "up", "--port", str(free_port()))
            said = (second.stdout + second.stderr).strip().splitlines()
            assert second.returncode == 2
            assert len(said) <= 3
            assert "is up already" in said[0]
            assert any("hint" in line for line in said)

            built = palan(folder, "build", "eta", "--param", "extra=0.5")
            assert built.returncode == 0, built.stderr
            assert "eta@2" in built.stdout
            assert ask(url)["version"] == "eta@1"  # built, not released
        workers = children_of(process.pid)
        assert workers
        process.send_signal(ending)
        assert process.wait(timeout=15) == 0
        assert gone(workers) == []
    assert palan(folder, "status").returncode in (0, 1)
    assert log(opened(folder), verify=True)["breaks"] == []


def test_a_killed_up_leaves_no_worker_and_comes_up_again(built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "p"))
    port = free_port()
    with upped(folder, port) as (process, url):
        ask(url)
        workers = children_of(process.pid)
        process.kill()
        process.wait()
        assert gone(workers) == []
    with upped(folder, port) as (process, url):  # at once: the dead one's lease is not waited for
        assert ask(url, 3)["rows"] == 3
        process.terminate()
        assert process.wait(timeout=15) == 0
    assert sum(1 for _ in opened(folder).store.blocks.scan("decisions/eta")) == 2


def test_the_ticking_of_up_survives_a_mistake_of_palans_own(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "p"))
    calls: list[int] = []
    stop = threading.Event()

    def stumble(_project: object) -> list[dict[str, str]]:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError
        stop.set()
        return []

    monkeypatch.setattr(upping, "tick", stumble)
    upping._keep_ticking(opened(folder), 0.01, stop)
    assert len(calls) == 2
    assert "ZeroDivisionError" in caplog.text


def test_up_refuses_a_rhythm_that_is_none(built: Path) -> None:
    refused = palan(built, "up", "--every", "0")
    assert refused.returncode == 2
    assert "--every 60" in refused.stderr
    assert opened(built).store.records.find(Run, flow="up") == []


def test_a_tick_of_the_command_line_says_when_nothing_is_due(built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "p"))
    assert palan(folder, "tick").returncode == 0
    again = palan(folder, "tick")
    assert (again.returncode, again.stdout) == (0, "nothing is due\n")


def test_a_delivery_that_fails_shows_in_the_exit_code_the_status_and_once_in_the_ledger(built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "p"))
    rows = World().day(LIVE)
    rows.rename({"temp": "celsius"}).write_csv(folder / "feed" / "bad.csv", datetime_format="%Y-%m-%dT%H:%M:%SZ")
    rows.write_csv(folder / "feed" / "good.csv", datetime_format="%Y-%m-%dT%H:%M:%SZ")
    for _ in range(2):
        ticked = palan(folder, "tick")
        assert ticked.returncode == 1
        assert "ingest trips: failed: feed/bad.csv" in ticked.stdout
    shown = palan(folder, "status")
    assert shown.returncode == 1
    assert "feed/bad.csv" in shown.stdout
    assert "palan ingest trips" in shown.stdout
    assert sorted(each.verb for each in ledger(opened(folder)) if each.subject.startswith("trips"))[-3:] == ["ingested", "ingested", "refused"]
    (folder / "feed" / "bad.csv").unlink()
    assert palan(folder, "tick").returncode == 0
    assert palan(folder, "status").returncode == 0
