"""Whoever is to hear of a page hears of it once, and of its end, whatever answers or dies in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from palan.drift.nouns import Alarm
from palan.errors import PalanError
from palan.flows.config import load
from palan.flows.journal import MOST, dead
from palan.flows.project import Project, open_project
from palan.flows.tick import tick

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
PAGE = Alarm("a1", "delay", NOON, "page", "open", NOON, NOON, "the loss rose by a third", "concept change")


class Address:
    """What takes messages: an answer for each, and what it knows of a key."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.answers = 200
        self.knows = True
        address = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if address.answers == 200:
                    address.sent.append((self.headers["Idempotency-Key"], body))
                self.answer(address.answers)

            def do_GET(self) -> None:
                key = self.headers["Idempotency-Key"]
                self.answer(200, key if address.knows and key in [sent for sent, _ in address.sent] else "")

            def answer(self, status: int, key: str = "") -> None:
                self.send_response(status)
                if key:
                    self.send_header("Idempotency-Key", key)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?room=1"


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[Address]:
    one = Address()
    thread = threading.Thread(target=one.server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("HOOK", one.url)
    yield one
    one.server.shutdown()
    thread.join()
    one.server.server_close()


@pytest.fixture(params=["sqlite", "postgres"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    store = request.getfixturevalue("postgres").of(tmp_path) if request.param == "postgres" else ".palan"
    (tmp_path / "palan.toml").write_text(f'[project]\nname = "air"\nstore = "{store}"\nnotify = "$HOOK"\n', encoding="utf-8")
    opened = open_project(tmp_path)
    opened.store.records.put(PAGE)
    yield opened
    opened.store.records.close()


def at(project: Project, minutes: float) -> list[str]:
    """Tick so many minutes after noon."""
    return [each["text"] for each in tick(replace(project, clock=lambda: NOON + timedelta(minutes=minutes)))]


def test_a_page_is_told_once_and_so_is_its_end(project: Project, address: Address) -> None:
    project.store.records.put(replace(PAGE, id="a2", lane="digest"), replace(PAGE, id="a3", time=NOON - timedelta(days=40)), replace(PAGE, id="a4", status="closed"))
    assert at(project, 1) == ["told opened of delay; told opened of delay; told closed of delay"]
    assert at(project, 2) == []
    (key, first), (_, other), (_, end) = address.sent
    assert (first["text"], first["event"], first["next"]) == ("air: delay: the loss rose by a third", "opened", "palan why a1")
    assert (other["alarm"], other["event"], end["alarm"], end["event"]) == ("a4", "opened", "a4", "closed")
    project.store.records.put(replace(PAGE, status="closed"))
    assert at(project, 3) == ["told closed of delay"]
    assert len({each for each, _ in address.sent} | {key}) == 4


def test_an_address_that_does_not_answer_is_tried_again_later_and_later_and_then_given_up(project: Project, address: Address) -> None:
    address.answers = 503
    tried = []
    for minute in range(120):
        if said := at(project, minute):
            assert said == ["failed: [project] notify: the address answered 503"]
            tried.append(minute)
    assert tried == [0, 1, 5, 21, 85] and len(tried) == MOST
    assert [each.name for each in dead(project)] == ["notify opened a1"]
    address.answers = 200
    assert at(project, 200) == [] and address.sent == []


KILLED = """
import os, signal, sys
from palan.flows import notify
from palan.flows.project import open_project
from palan.flows.tick import tick
post = notify._post
def dies(*given):
    if sys.argv[2] == "after":
        post(*given)
    os.kill(os.getpid(), signal.SIGKILL)
notify._post = dies
from palan.core import unstamp
from msgspec.structs import replace
tick(replace(open_project(sys.argv[1]), clock=lambda: unstamp("2026-05-04T12:00:00Z")))
"""


@pytest.mark.parametrize(("instant", "knows", "copies"), [("before", True, 1), ("after", True, 1), ("after", False, 2)])
def test_a_process_that_died_while_it_told_is_asked_after(project: Project, address: Address, instant: str, knows: bool, copies: int) -> None:
    """Only an address that can be asked under the key hears it once: any other hears it again, under the same key."""
    died = subprocess.run([sys.executable, "-c", KILLED, str(project.root), instant], check=False, env={**os.environ}, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    address.knows = knows
    assert at(project, 2) == ["told opened of delay"]
    assert len(address.sent) == copies and len({key for key, _ in address.sent}) == 1


def test_what_is_no_address_is_refused_without_showing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "palan.toml"
    file.write_text('[project]\nname = "air"\nnotify = "ftp://secret"\n', encoding="utf-8")
    with pytest.raises(PalanError, match=r"line 3: \[project\] notify: is no address") as refused:
        load(file)
    assert "secret" not in str(refused.value)
    monkeypatch.delenv("HOOK", raising=False)
    file.write_text('[project]\nname = "air"\nnotify = "$HOOK"\n', encoding="utf-8")
    project = open_project(tmp_path)
    project.store.records.put(PAGE)
    assert at(project, 1) == ["failed: [project] notify = $HOOK, and that variable holds no address"]
