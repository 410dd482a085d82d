"""A build that is killed goes on where it was: nothing recorded is done again, nothing is recorded by two."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from palan.cli import main
from palan.core import Version, utcnow
from palan.errors import Conflict, LeaseLost
from palan.flows import journal as journals
from palan.flows.build import FOLDS
from palan.flows.ingest import ingest
from palan.flows.journal import recorded, retry, running
from palan.flows.log import log
from palan.flows.project import Project, open_project
from palan.flows.why import why
from palan.runs.run import Run, Step

SOURCES = Path(__file__).resolve().parent.parent / "src"

TOML = """
[project]
name = "rolls"

[data.sales]
source = "feed/*.csv"
key = ["id"]
columns = { id = "int", warm = "float", sold = "float" }

[data.first]
transform = "steps.py:first"
key = ["id"]
columns = { id = "int", warm = "float", sold = "float" }

[data.second]
transform = "steps.py:second"
key = ["id"]
columns = { id = "int", warm = "float", sold = "float" }

[models.rolls]
model = "rolls.py:Rolls"
data = "second"
inputs = ["warm"]
outcome = "sold"
key = "id"
"""

STEPS = '''
from notes import note


def first(sales):
    note("transform first")
    return sales


def second(first):
    note("transform second")
    return first
'''

ROLLS = '''
from dataclasses import dataclass

from notes import note

FLOOR = 0.0


def middle(values):
    # the mean
    return values.mean()


@dataclass
class Rolls:
    round: int = 0

    def fit(self, data):
        note(f"fit {self.round} {data.height}")
        self.level = float(middle(data["sold"]))

    def decide(self, rows):
        return (rows["warm"] * 0 + max(self.level, FLOOR)).to_numpy()

    def score(self, decisions, outcomes):
        return abs(decisions["output"].to_numpy() - outcomes)
'''

NOTES = '''
import os
import time


def note(text):
    fd = os.open({side!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, (text + "\\n").encode())
    os.close(fd)
    time.sleep({seconds})
'''


def lay_out(folder: Path, *, seconds: float = 0.0, store: str = ".palan") -> Path:
    (folder / "feed").mkdir(parents=True)
    (folder / "palan.toml").write_text(TOML.replace("[project]", f'[project]\nstore = "{store}"'), encoding="utf-8")
    (folder / "steps.py").write_text(STEPS, encoding="utf-8")
    (folder / "rolls.py").write_text(ROLLS, encoding="utf-8")
    (folder / "notes.py").write_text(NOTES.format(side=str(folder / "side.txt"), seconds=seconds), encoding="utf-8")
    rows = [f"{number},{number % 30},{number % 7 + 0.5}" for number in range(120)]
    (folder / "feed" / "sales.csv").write_text("\n".join(["id,warm,sold", *rows]) + "\n", encoding="utf-8")
    return folder


def address(store: str, request: pytest.FixtureRequest, folder: Path) -> str:
    return request.getfixturevalue("postgres").of(folder) if store == "postgres" else ".palan"


on_both = pytest.mark.parametrize("project", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    opened = open_project(lay_out(tmp_path / "rolls", store=address(getattr(request, "param", "sqlite"), request, tmp_path)))
    ingest(opened)
    yield opened
    opened.store.records.close()


def side(project: Project) -> list[str]:
    path = project.root / "side.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def palan(project: Project, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Run the command in this process and return what it prints as JSON."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["--project", str(project.root), *arguments, "--json"])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    made: dict[str, Any] = json.loads(printed.out)
    return made


def process(project: Project, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    command = [sys.executable, "-m", "palan.cli", "--project", str(project.root), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


ALL = ["transform first", "transform second", "look at rolls", "fit rolls", "reference rolls"]


# --- kills ---


def done(project: Project) -> set[str]:
    """Return what the recorded steps write into the side file: it may never be written again."""
    found = set()
    for step in project.store.records.find(Step):
        round = step.parts.get("params", {}).get("round", 0)
        found.add({"fit rolls": f"fit {round} 120", "reference rolls": f"fit {round} 90"}.get(step.name, step.name))
    return found


@pytest.mark.parametrize(("store", "most"), [("sqlite", 15), ("postgres", 5)])
def test_killed_at_any_instant_another_process_finishes_it(tmp_path: Path, request: pytest.FixtureRequest, store: str, most: int) -> None:
    chance = random.Random(2013)
    project = open_project(lay_out(tmp_path / "rolls", seconds=0.12, store=address(store, request, tmp_path)))
    ingest(project)
    kills = round = finished = 0
    while kills < most or not finished:
        recorded, written = done(project), len(side(project))
        building = process(project, "build", "rolls", "--param", f"round={round}", "--json")
        instant = chance.uniform(0.1, 2.6) if kills < most else 60
        try:
            out, errors = building.communicate(timeout=instant)
        except subprocess.TimeoutExpired:
            building.send_signal(signal.SIGKILL)
            out, errors = building.communicate()
            kills += 1
        again = [line for line in side(project)[written:] if line in recorded]
        assert not again, f"after {kills} kills these were done again: {again}"
        if building.returncode == 0:
            steps = json.loads(out)["steps"]
            assert sorted([*steps["executed"], *steps["replayed"]]) == sorted(ALL)
            round += 1
            finished += 1
        elif "is dead after" in errors:  # it was killed too often in one step
            retry(project, errors.split('palan retry "')[1].split('"')[0])
        else:
            assert building.returncode == -signal.SIGKILL, errors
    versions = project.store.records.find(Version, order="number")
    assert [version.number for version in versions] == list(range(1, len(versions) + 1)) and len(versions) >= finished
    entries = log(project, limit=1000, verify=True)
    assert entries["breaks"] == []
    built = [entry["subject"] for entry in entries["entries"] if entry["verb"] == "built"]
    assert built == [version.ref for version in versions]  # each once, none without its entry
    runs = project.store.records.find(Run, flow="build")
    assert sum(run.status == "done" for run in runs) >= finished
    assert sum(run.status == "running" for run in runs) <= 1  # the last one may have been killed


# --- what invalidates ---


@on_both
def test_steps_are_recorded_once(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    first = palan(project, capsys, "build", "rolls")
    assert first["steps"] == {"executed": ALL, "replayed": []} and first["new"]
    notes = side(project)
    assert notes == ["transform first", "transform second", "fit 0 120", *["fit 0 80"] * FOLDS]
    again = palan(project, capsys, "build", "rolls")
    assert again["steps"] == {"executed": [], "replayed": ALL} and not again["new"]
    assert (again["version"], again["id"]) == (first["version"], first["id"])
    assert side(project) == notes


def test_a_helper_and_a_constant_invalidate_and_a_comment_does_not(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    palan(project, capsys, "build", "rolls")
    path = project.root / "rolls.py"

    def edit(old: str, new: str) -> dict[str, Any]:
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")
        made: dict[str, Any] = palan(project, capsys, "build", "rolls")
        return made

    assert why(project, "rolls")["changed since"] == ["nothing: a build now would make the same version again"]
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace("values.mean()", "values.median()"), encoding="utf-8")
    assert why(project, "rolls")["changed since"] == ["code: rolls.py:middle was edited"]
    path.write_text("def (", encoding="utf-8")
    assert why(project, "rolls")["changed since"][0].startswith("code: ")
    path.write_text(before, encoding="utf-8")

    comment = edit("# the mean", "# the mean of all rows")
    assert comment["steps"] == {"executed": [], "replayed": ALL}
    helper = edit("values.mean()", "values.median()")
    assert helper["steps"] == {"executed": ALL[2:], "replayed": ALL[:2]} and helper["new"]
    told = why(project, "fit rolls")["changed"]
    assert told == ["code: rolls.py:middle was edited"]
    constant = edit("FLOOR = 0.0", "FLOOR = 1.0")
    assert constant["steps"] == {"executed": ALL[2:], "replayed": ALL[:2]} and constant["new"]
    assert why(project, "fit rolls")["changed"] == ["code: rolls.py:FLOOR was edited"]
    back = edit("FLOOR = 1.0", "FLOOR = 0.0")
    assert back["steps"] == {"executed": [], "replayed": ALL} and back["id"] == helper["id"]


def test_new_rows_do_over_only_what_reads_them(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    palan(project, capsys, "build", "rolls")
    (project.root / "feed" / "more.csv").write_text("id,warm,sold\n500,3,2.5\n", encoding="utf-8")
    ingest(project)
    assert why(project, "rolls")["changed since"] == ["data: sales@2 came since first was made from sales"]
    made = palan(project, capsys, "build", "rolls")
    assert made["steps"] == {"executed": [*ALL[:2], *ALL[3:]], "replayed": ["look at rolls"]}
    assert why(project, made["version"])["changed"] == ["data: second@1, 120 rows -> second@2, 121 rows"]


def test_a_step_that_fails_is_not_recorded(project: Project) -> None:
    with pytest.raises(ZeroDivisionError), running(project, "try", "x") as journal:
        journal.step("divide", {}, lambda: 1 / 0)
    assert project.store.records.find(Step, name="divide") == []
    (run,) = project.store.records.find(Run, flow="try")
    assert (run.status, run.reason) == ("failed", "ZeroDivisionError: division by zero")
    with running(project, "try", "x") as journal:
        assert journal.step("divide", {}, lambda: (1, 2)) == [1, 2]  # as it will be read back
    with running(project, "try", "x") as journal:
        assert journal.step("divide", {}, lambda: "not called") == [1, 2]
        assert journal.replayed == ["divide"]


# --- leases ---


@on_both
def test_two_at_once_on_one_thing_is_a_conflict(project: Project) -> None:
    with running(project, "build", "rolls"), pytest.raises(Conflict, match="another process is at work on build:rolls"), running(project, "build", "rolls"):
        pass
    with running(project, "build", "rolls"):
        pass
    assert [run.status for run in project.store.records.find(Run, flow="build")] == ["done", "done"]


@on_both
def test_a_long_step_keeps_its_lease(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "LEASE", timedelta(seconds=0.3))
    with running(project, "build", "rolls") as journal:
        time.sleep(0.7)
        assert project.store.records.lease(journal.lease.name, "thief", timedelta(seconds=1), now=utcnow()) is None
        assert journal.step("long", {}, lambda: 1) == 1


@on_both
def test_a_zombie_cannot_record(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "_beat", lambda *arguments: None)  # frozen: its heart stands still
    records = project.store.records
    with pytest.raises(LeaseLost), running(project, "build", "rolls") as zombie:
        later = utcnow() + timedelta(minutes=1)
        monkeypatch.setattr(journals, "utcnow", lambda: later)
        with running(project, "build", "rolls") as heir:
            with pytest.raises(LeaseLost):
                zombie.step("fit", {"n": 1}, lambda: "zombie")
            assert records.find(Step, name="fit") == []
            with pytest.raises(LeaseLost):
                zombie.note(metrics={"loss": 0.0})
            assert heir.step("fit", {"n": 1}, lambda: "heir") == "heir"
        assert zombie.step("fit", {"n": 1}, lambda: "zombie") == "heir"  # what is recorded may be read
        zombie.step("other", {"n": 2}, lambda: "zombie")
    assert [(step.name, recorded(step)) for step in records.find(Step) if not step.name.startswith("verify")] == [("fit", "heir")]
    assert sorted(run.status for run in records.find(Run, flow="build")) == ["done", "killed"]


FROZEN = """
import sys, time
from datetime import timedelta
from palan.flows import journal
from palan.flows.build import FOLDS
from palan.flows.project import open_project
journal.LEASE = timedelta(seconds=0.4)
project = open_project(sys.argv[1])
with journal.running(project, "build", "rolls") as mine:
    def work():
        print("working", flush=True)
        sys.stdin.readline()
        return "zombie"
    mine.step("fit", {}, work)
"""


@on_both
def test_a_process_that_was_frozen_and_thawed_cannot_write_over_its_successor(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "LEASE", timedelta(seconds=0.4))
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    frozen = subprocess.Popen([sys.executable, "-c", FROZEN, str(project.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert frozen.stdout is not None and frozen.stdout.readline() == "working\n"
    frozen.send_signal(signal.SIGSTOP)
    with running(project, "build", "rolls", wait=10) as heir:
        assert heir.step("fit", {}, lambda: "heir") == "heir"
        frozen.send_signal(signal.SIGCONT)
        _, errors = frozen.communicate("go on\n", timeout=30)
        assert frozen.returncode == 1 and "LeaseLost" in errors
        assert heir.step("more", {}, lambda: "heir") == "heir"  # it lost nothing by it
    steps = {step.name: recorded(step) for step in project.store.records.find(Step)}
    assert (steps["fit"], steps["more"]) == ("heir", "heir")


@on_both
def test_nobody_waits_for_a_lease_of_a_process_that_is_no_more(project: Project) -> None:
    code = FROZEN.replace("sys.stdin.readline()", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)").replace("seconds=0.4", "seconds=60")
    subprocess.run([sys.executable, "-c", code, str(project.root)], stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(SOURCES)}, check=False)
    assert [run.status for run in project.store.records.find(Run, flow="build")] == ["running"]
    started = time.monotonic()
    with running(project, "build", "rolls") as heir:
        heir.step("fit", {}, lambda: 1)
    assert time.monotonic() - started < 5
    assert sorted(run.status for run in project.store.records.find(Run, flow="build")) == ["done", "killed"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only where /proc tells of processes")
def test_a_process_that_ended_is_no_more_though_nobody_asked_for_its_end(project: Project) -> None:
    code = FROZEN.replace("sys.stdin.readline()", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)").replace("seconds=0.4", "seconds=60")
    killed = subprocess.Popen([sys.executable, "-c", code, str(project.root)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(SOURCES)})
    assert killed.stdout is not None and killed.stdout.read() == b"working\n"
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # it ended, and stays a zombie
    try:
        started = time.monotonic()
        with running(project, "build", "rolls") as heir:
            heir.step("fit", {}, lambda: 1)
        assert time.monotonic() - started < 5
    finally:
        killed.wait()
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as alive:
        assert not journals._died(f"{journals._machine()}:{alive.pid}:1")
        alive.communicate()


@on_both
def test_two_runs_that_do_one_step_at_once_agree_on_its_value(project: Project) -> None:
    start, values = threading.Barrier(2), []

    def work(name: str) -> str:
        start.wait()
        return name

    def run(name: str) -> None:
        with running(project, "try", name) as journal:
            values.append(journal.step("both", {}, lambda: work(name)))

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(values)) == 1 and len(project.store.records.find(Step, name="both")) == 1
