"""What fails again and again is not tried for ever, and what is done to the world outside is done once, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from palan.cli import main
from palan.errors import Conflict, LeaseLost, ModelFailed, NotFound, PalanError
from palan.flows import journal as journals
from palan.flows.journal import DIED, MOST, dead, retry, running
from palan.flows.log import log
from palan.flows.project import Project, open_project
from palan.runs.run import Attempt, Step

SOURCES = Path(__file__).resolve().parent.parent / "src"


@pytest.fixture(params=["sqlite", "postgres"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    store = request.getfixturevalue("postgres").of(tmp_path) if request.param == "postgres" else ".palan"
    (tmp_path / "palan.toml").write_text(f'[project]\nname = "small"\nstore = "{store}"\n', encoding="utf-8")
    opened = open_project(tmp_path)
    yield opened
    opened.store.records.close()


def child(program: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


# --- attempts ---

DIES = """
import os, signal, sys
from palan.flows.journal import running
from palan.flows.project import open_project
with running(open_project(sys.argv[1]), "try", "it") as journal:
    journal.step("heavy", {"n": 1}, lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_step_that_takes_its_process_with_it_is_given_up_and_can_be_tried_again(project: Project) -> None:
    for _ in range(1 + MOST):  # attempts are written down, and counted, once a process has died
        assert dead(project) == []
        died = child(DIES, project.root)
        died.communicate(timeout=30)
        assert died.returncode == -signal.SIGKILL
    stopped = child(DIES, project.root)
    _, errors = stopped.communicate(timeout=30)
    assert stopped.returncode == 1 and f'the step "heavy" is dead after {MOST} attempts: {DIED}' in errors
    assert 'hint: put that right, then: palan retry "heavy"' in errors
    assert [each.name for each in dead(project)] == ["heavy"]
    with pytest.raises(NotFound, match='no step "havy" is dead\nhint: did you mean "heavy"'):
        retry(project, "havy")
    assert retry(project, "heavy") == {"step": "heavy", "reasons": [DIED]}
    assert log(project)["entries"][0]["verb"] == "retried"
    with running(project, "try", "it") as journal:
        assert journal.step("heavy", {"n": 1}, lambda: "lighter now") == "lighter now"
    assert project.store.records.find(Attempt) == []


def fails(reason: str) -> str:
    raise ModelFailed(reason, status="timeout")


def test_status_and_why_tell_of_what_is_given_up(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    def palan(*arguments: str) -> tuple[object, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["--project", str(project.root), *arguments])
        printed = capsys.readouterr()
        return ended.value.code, printed.out + printed.err

    for _ in range(MOST):
        assert palan("status")[0] == 0
        with pytest.raises(ModelFailed), running(project, "try", "it") as journal:
            journal.step("fit", {"n": 1}, lambda: fails("it took 60 s"))
    code, text = palan("status")
    assert code == 1 and 'step fit is dead after 5 attempts: it took 60 s\n    palan retry "fit"\n' in text
    code, text = palan("why", "fit")
    assert code == 0 and "tried: 5 times in a row without an end" in text and 'palan retry "fit"' in text
    assert palan("retry", "fit") == (0, "fit will be tried again; before: it took 60 s\n")
    assert palan("status")[0] == 0
    assert palan("retry", "fit") == (2, 'no step "fit" is dead\nhint: palan status\n')


def test_a_model_that_fails_in_a_row_is_given_up_and_another_step_is_not(project: Project) -> None:
    told: list[str] = []
    project.tell = told.append
    for number in range(MOST):
        with pytest.raises(ModelFailed), running(project, "try", "it") as journal:
            journal.step("fit", {"n": 1}, lambda number=number: fails(f"too slow {number}"))
    assert told == [f'the step "fit" is dead after {MOST} attempts; palan retry "fit"']
    called: list[str] = []
    with pytest.raises(PalanError, match=f"dead after .* too slow {MOST - 1}"), running(project, "try", "it") as journal:
        journal.step("fit", {"n": 1}, lambda: called.append("again"))
    assert called == []
    with running(project, "try", "it") as journal:  # other data, other code: another step
        assert journal.step("fit", {"n": 2}, lambda: 2) == 2


def test_what_a_user_can_put_right_does_not_count_and_what_succeeds_begins_anew(project: Project) -> None:
    def wrong() -> None:
        raise PalanError("there are no rows")

    for _ in range(MOST + 1):
        with pytest.raises(PalanError, match="no rows"), running(project, "try", "it") as journal:
            journal.step("fit", {}, wrong)
    for _ in range(MOST - 1):
        with pytest.raises(ModelFailed), running(project, "try", "it") as journal:
            journal.step("fit", {}, lambda: fails("slow"))
    for _ in range(MOST + 1):
        with pytest.raises(KeyboardInterrupt), running(project, "try", "it") as journal:
            journal.step("fit", {}, lambda: signal.raise_signal(signal.SIGINT))
    (attempt,) = project.store.records.find(Attempt)
    assert attempt.count == MOST - 1
    with running(project, "try", "it") as journal:
        journal.step("fit", {}, lambda: 1)
    assert project.store.records.find(Attempt) == []


def test_what_others_do_at_the_same_time_has_not_failed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many runs as may fail need one table at once: none of them takes the others for dead."""
    monkeypatch.setattr(journals, "_bury", lambda *given: True)  # as after a death: each attempt is written down
    with running(project, "try", "first") as first:

        def nested(number: int) -> int:
            with running(project, "try", f"other {number}") as other:
                return other.step("shared", {}, lambda: nested(number + 1) if number < MOST + 2 else 7)

        assert first.step("shared", {}, lambda: nested(1)) == 7
    assert dead(project) == [] and len(project.store.records.find(Step, name="shared")) == 1


# --- effects ---


class Outside:
    """A real side effect: each POST appends its key to a file, GET says whether it is in it. It refuses nothing twice."""

    def __init__(self, file: Path) -> None:
        self.file = file
        outside = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with outside.file.open("a") as lines:
                    lines.write(self.path[1:] + "\n")
                self.answer(b'"sent"')

            def do_GET(self) -> None:
                self.answer(b'"sent"' if self.path[1:] in outside.lines() else b"null")

            def answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def lines(self) -> list[str]:
        return self.file.read_text().splitlines() if self.file.exists() else []


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    one = Outside(tmp_path / "sent.txt")
    one.thread.start()
    yield one
    one.server.shutdown()
    one.thread.join()
    one.server.server_close()


SENDS = """
import json, os, signal, sys, urllib.request
from palan.flows import journal as journals
from palan.flows.journal import Journal, running
from palan.flows.project import open_project

folder, url, instant = sys.argv[1:]

def at(name):
    if name == instant:
        print(name, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

def ask(key, method):
    with urllib.request.urlopen(urllib.request.Request(f"{url}/{key}", method=method)) as answer:
        return json.load(answer)

def do(key):
    at("noted, not begun")
    answer = ask(key, "POST")
    at("done, not recorded")
    return answer

def check(key):
    at("asked on recovery")
    return ask(key, "GET")

begin, keep = Journal._begin, Journal._record
def begins(self, *given, **more):
    at("before the intent")
    found = begin(self, *given, **more)
    at("noted, not committed")
    return found
def records(self, *given, **more):
    value = keep(self, *given, **more)
    at("recorded")
    return value
Journal._begin, Journal._record = begins, records
with running(open_project(folder), "try", "it") as journal:
    print(journal.effect("tell", {"month": 5}, do, check))
"""

INSTANTS = ["before the intent", "noted, not committed", "noted, not begun", "done, not recorded", "recorded"]


@pytest.mark.parametrize("instant", INSTANTS)
def test_killed_between_any_two_instants_an_effect_is_done_once(project: Project, outside: Outside, instant: str) -> None:
    killed = child(SENDS, project.root, outside.url, instant)
    out, errors = killed.communicate(timeout=30)
    assert (killed.returncode, out) == (-signal.SIGKILL, f"{instant}\n"), errors
    assert len(outside.lines()) == (instant in ("done, not recorded", "recorded"))
    if "noted, not begun" in instant or "done" in instant:  # and killed again, while it asks
        killed = child(SENDS, project.root, outside.url, "asked on recovery")
        assert killed.communicate(timeout=30)[0] == "asked on recovery\n"
    for _ in range(2):
        recovered = child(SENDS, project.root, outside.url, "never")
        out, errors = recovered.communicate(timeout=30)
        assert (recovered.returncode, out) == (0, "sent\n"), errors
    assert len(outside.lines()) == 1
    assert project.store.records.find(Attempt) == []


def test_an_effect_that_failed_half_way_is_asked_for_before_it_is_done_again(project: Project) -> None:
    sent: list[str] = []

    def do(key: str) -> str:
        sent.append(key)
        raise ConnectionResetError("the line broke")

    def check(key: str) -> str | None:
        return "found there" if key in sent else None

    with pytest.raises(ConnectionResetError), running(project, "try", "it") as journal:
        journal.effect("tell", {}, do, check)
    with running(project, "try", "it") as journal:
        assert journal.effect("tell", {}, do, check) == "found there"
    with running(project, "try", "it") as journal:
        assert journal.effect("tell", {}, do, check) == "found there" and journal.replayed == ["tell"]
    assert len(sent) == 1


def test_an_effect_given_up_is_still_asked_for_when_it_is_tried_again(project: Project) -> None:
    sent: list[str] = []

    def unknown(key: str) -> str | None:
        raise ConnectionRefusedError("nobody answers")

    def do(key: str) -> str:
        sent.append(key)
        raise ConnectionResetError("the line broke")

    for number in range(MOST):
        with pytest.raises(ConnectionError), running(project, "try", "it") as journal:
            journal.effect("tell", {}, do, unknown)
        assert len(sent) == 1, number
    with pytest.raises(PalanError, match="is dead after"), running(project, "try", "it") as journal:
        journal.effect("tell", {}, do, unknown)
    retry(project, "tell")
    with running(project, "try", "it") as journal:
        assert journal.effect("tell", {}, do, lambda key: "found there" if key in sent else None) == "found there"
    assert len(sent) == 1


def test_two_flows_do_not_the_same_effect_at_once(project: Project) -> None:
    def do(key: str) -> str:
        with pytest.raises(Conflict, match='another process is at "tell"'), running(project, "try", "two") as other:
            other.effect("tell", {}, lambda key: "twice", lambda key: None)
        return "once"

    with running(project, "try", "one") as journal:
        assert journal.effect("tell", {}, do, lambda key: None) == "once"


FROZEN = """
import sys
from datetime import timedelta
from palan.flows import journal
from palan.flows.project import open_project
journal.LEASE = timedelta(seconds=0.4)
with journal.running(open_project(sys.argv[1]), "try", "it") as mine:
    print("ready", flush=True)
    sys.stdin.readline()
    mine.effect("tell", {}, lambda key: print("sent"), lambda key: None)
"""


def test_a_frozen_holder_that_lost_its_lease_does_nothing_when_it_thaws(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    monkeypatch.setattr(journals, "LEASE", timedelta(seconds=0.4))
    frozen = child(FROZEN, project.root)
    assert frozen.stdout is not None and frozen.stdout.readline() == "ready\n"
    frozen.send_signal(signal.SIGSTOP)
    with running(project, "try", "it", wait=10):
        frozen.send_signal(signal.SIGCONT)
        out, errors = frozen.communicate("\n", timeout=30)
        assert frozen.returncode == 1 and out == "" and LeaseLost.__name__ in errors


# --- doing recorded steps again ---


def test_recorded_steps_are_done_again_for_proof(project: Project) -> None:
    drawn = iter(range(100))
    for share in (0.0, 1.0):
        with running(project, "try", "it", verify=share) as journal:
            assert journal.step("same", {}, lambda: {"rows": 3}) == {"rows": 3}
    with running(project, "try", "it") as journal:
        assert journal.step("other", {}, lambda: {"rows": 3, "drawn": next(drawn)})["drawn"] == 0
    with running(project, "try", "it", verify=0.0) as journal:
        assert journal.step("other", {}, lambda: {"rows": 3, "drawn": next(drawn)})["drawn"] == 0
    with pytest.raises(PalanError, match='the step "other" gives another value than it recorded at drawn'), running(project, "try", "it", verify=1.0) as journal:
        journal.step("other", {}, lambda: {"rows": 3, "drawn": next(drawn)})
    calls: list[int] = []
    for number in range(200):
        with running(project, "try", "many") as journal:
            journal.step("count", {"number": number}, lambda: 0)
    with running(project, "try", "many", verify=0.2) as journal:
        for number in range(200):
            journal.step("count", {"number": number}, lambda number=number: calls.append(number) or 0)
    assert 10 < len(calls) < 90  # of 200, one in five
