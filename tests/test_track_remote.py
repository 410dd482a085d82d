"""Keeping track of trials on another machine: nothing is lost and nothing is there twice, whoever is away or killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from palan.errors import Busy, Conflict, NotFound, PalanError
from palan.flows.fold import KILLED, fold
from palan.flows.project import Project, open_project
from palan.flows.runs import curve, run_page, search
from palan.flows.send import send
from palan.flows.serve import serving
from palan.flows.track import start
from palan.stores import mirrors
from palan.stores.mirrors import Mirrors
from palan.stores.segments import framed

SOURCES = Path(__file__).parents[1] / "src"

STEPS = """
import sys, palan
with palan.start("routes", lr=0.1) as run:
    print(run.id, flush=True)
    for step in range(int(sys.argv[1])):
        run.log(loss=float(step))
    run.artifact(b"weights", "model.bin")
"""


class Machines:
    """A server with its project, and another machine with no project, whose spool lies elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.spool = folder / "state" / "palan"
        self.there = folder / "there"
        for each in (self.home, self.there):
            each.mkdir()
        (self.there / "palan.toml").write_text('[project]\nname = "routing"\n', encoding="utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.project = open_project(self.there)
        self.processes: list[subprocess.Popen[str]] = []

    def environment(self, token: str = "") -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(SOURCES), "XDG_STATE_HOME": str(self.spool.parent), "PALAN_SERVER": self.url, **({"PALAN_TOKEN": token} if token else {})}

    def up(self) -> subprocess.Popen[str]:
        """Start the server, and return once it answers."""
        command = [sys.executable, "-m", "palan.cli", "serve", "--port", str(self.port)]
        process = subprocess.Popen(command, cwd=self.there, env=self.environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.processes.append(process)
        assert process.stdout is not None
        assert "answering" in process.stdout.readline()
        return process

    def python(self, code: str, *arguments: str, token: str = "") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *arguments], cwd=self.home, env=self.environment(token), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.processes.append(process)
        return process

    def palan(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "palan.cli", *arguments], cwd=self.home, env=self.environment(), text=True, capture_output=True, check=False)

    def waits(self) -> list[Path]:
        return [path for path in self.spool.rglob("*") if path.is_file()]


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    made = Machines(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(made.spool.parent))
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def eventually(holds: Callable[[], Any], seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def arrived(machines: Machines) -> bool:
    """Wait until nothing is left on the other machine; a busy one may have no time for it before its process ends."""
    found = eventually(lambda: not send() and not machines.waits())
    fold(machines.project)  # all of it, however long: who looks is shown after half a second what there is
    return bool(found)


def losses(project: Project, run: str) -> list[float]:
    fold(project)
    return list(curve(project, run, "loss", points=10**6)["values"])


@pytest.fixture
def served(machines: Machines) -> Iterator[Machines]:
    """The server in a thread, where nobody kills it."""
    with serving(machines.project, port=machines.port, token=""):
        yield machines


def test_runs_of_another_machine_are_found_on_the_server_like_any_other(served: Machines) -> None:
    machines = served
    code = """
        import palan
        with palan.start("routes", name="first", lr=0.1) as run:
            run.log(loss=0.5)
            run.log(loss=0.25)
            run.tags(team="north")
            run.artifact(b"w" * 3_000_000, "model.bin")
            with palan.start("parts") as part:
                part.log(loss=1.0)
        print(run.id, part.id)
    """
    run, part = machines.python(code).communicate()[0].split()
    assert arrived(machines)
    found = {each["run"]: each for each in search(machines.project, "params.lr = 0.1 or experiment = 'parts'")["runs"]}
    assert [(found[id]["experiment"], found[id]["status"]) for id in (run, part)] == [("routes", "done"), ("parts", "done")]
    assert found[run]["tags"] == {"team": "north"} and losses(machines.project, run) == [0.5, 0.25]
    page = run_page(machines.project, run)
    digest = {each["path"]: each["blob"] for each in page["artifacts"]}["model.bin"]
    assert machines.project.store.blobs.get(digest) == b"w" * 3_000_000
    assert run_page(machines.project, part)["parent"] == run


def test_what_is_logged_while_the_server_is_away_is_sent_once_it_is_there(machines: Machines) -> None:
    run, told = machines.python(STEPS, "100").communicate()
    assert "bytes of runs wait" in told and told.strip().endswith("palan send") and told.count("\n") == 1
    refused = machines.palan("send", "--json")
    assert refused.returncode == 1 and "does not answer" in json.loads(refused.stdout)[0]["why"]
    machines.up()
    client = machines.python(STEPS + "input()", "20")  # a process that tracks sends what others left
    assert eventually(lambda: len([path for path in machines.waits() if path.suffix == ".seg"]) == 1)
    other, _ = client.communicate("\n")
    assert arrived(machines)
    assert losses(machines.project, run.strip()) == [float(step) for step in range(100)]
    assert len(losses(machines.project, other.strip())) == 20


def test_a_wrong_token_is_told_once_and_loses_nothing(machines: Machines) -> None:
    with serving(machines.project, port=machines.port, token="right"):
        run, told = machines.python(STEPS, "10", token="wrong").communicate()
        assert "asks for another token" in told and "PALAN_TOKEN" in told and told.count("\n") <= 2
        assert send()[0]["why"].startswith(f"{machines.url} asks for a token")
        assert send(machines.url, token="right")[0]["waiting"] == 0
    assert len(losses(machines.project, run.strip())) == 10


def test_what_is_no_palan_is_told(served: Machines) -> None:
    machines = served
    machines.url += "/elsewhere"
    _, told = machines.python(STEPS, "10").communicate()
    assert "is no palan that takes runs: it answers 404" in told


def test_a_disk_that_is_full_on_the_server_is_waited_for(machines: Machines) -> None:
    server = machines.up()
    _, most = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (300_000, most))
    run, told = machines.python(STEPS, "20000").communicate()
    assert "cannot be written" in told and "bytes of runs wait" in told
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (most, most))
    assert send()[0]["waiting"] == 0
    assert losses(machines.project, run.strip()) == [float(step) for step in range(20_000)]


@pytest.mark.parametrize(
    ("server", "what"),
    [("ftp://host", "is no address of a server"), ("http://", "is no address"), ("http://me:secret@host", "a name or a password"), ("http://host:port", "is no address")],
)
def test_an_address_that_is_none_is_refused_at_the_start(server: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(PalanError, match=what) as refused:
        start("routes", server=server)
    assert refused.value.hint and "secret" not in str(refused.value)
    with pytest.raises(PalanError, match="not both"):
        start("routes", server="http://host", project=tmp_path)


def test_a_run_is_gone_on_with_if_the_server_knows_it(served: Machines) -> None:
    machines = served
    run, _ = machines.python(STEPS, "3").communicate()
    again = """
        import palan, sys
        with palan.start(resume=sys.argv[1]) as run:
            run.log({"loss": 9.0}, step=3)
        palan.start(resume="01m82qt160n1qzxqdqb5b51akj")
    """
    _, told = machines.python(again, run.strip()).communicate()
    assert "NotFound" in told and "has no run" in told
    assert losses(machines.project, run.strip()) == [0.0, 1.0, 2.0, 9.0]


def test_a_fork_goes_on_with_the_run_and_all_of_it_arrives(served: Machines) -> None:
    machines = served
    code = """
        import multiprocessing, palan
        def work(run, number):
            for step in range(100):
                run.log({f"loss{number}": float(step)})
        with palan.start("routes") as run:
            run.log(loss0=1.0)
            parts = [multiprocessing.get_context("fork").Process(target=work, args=(run, number)) for number in range(3)]
            for part in parts: part.start()
            for part in parts: part.join()
        print(run.id)
    """
    run, _ = machines.python(code).communicate()
    assert arrived(machines)
    assert [curve(machines.project, run.strip(), f"loss{number}")["count"] for number in range(3)] == [101, 100, 100]


def test_who_is_not_heard_of_counts_as_killed_until_it_is_heard_again(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "SILENT_SECONDS", 2.5)
    with serving(machines.project, port=machines.port, token=""):
        client = machines.python('import palan\nrun = palan.start("routes")\nrun.log(loss=1.0)\ninput()\nrun.log(loss=2.0)\nrun.end()\n')

        def status() -> str:
            found = search(machines.project)["runs"]
            return str(found[0]["status"]) if found else ""

        assert eventually(lambda: status() == "running")
        client.send_signal(signal.SIGSTOP)
        assert eventually(lambda: status() == "killed")
        killed = search(machines.project)["runs"][0]
        assert run_page(machines.project, killed["run"])["reason"] == KILLED
        client.send_signal(signal.SIGCONT)
        assert eventually(lambda: status() == "running")
        client.communicate("\n")
        assert arrived(machines) and status() == "done"
        assert losses(machines.project, killed["run"]) == [1.0, 2.0]


def test_kills_of_server_and_clients_lose_nothing_and_double_nothing(machines: Machines) -> None:
    code = """
        import palan, time
        run = palan.start("routes")
        print(run.id, flush=True)
        step = 0
        while True:
            run.log(loss=float(step))
            time.sleep(0.001)
            step += 1
            if step % 50 == 0:
                run.artifact(str(step).encode(), f"{step}.txt")
                print(step, flush=True)
    """
    seed = int(os.environ.get("PALAN_TEST_SEED", "20"))
    chance = random.Random(seed)
    server = machines.up()
    said: dict[str, int] = {}
    for _ in range(2):
        clients = [machines.python(code) for _ in range(2)]
        begun = [client.stdout.readline().strip() for client in clients if client.stdout]
        time.sleep(chance.random())
        server.kill()
        server.wait()
        time.sleep(chance.random() / 2)
        if chance.random() < 0.5:
            server = machines.up()
            time.sleep(chance.random() / 2)
        for run, client in zip(begun, clients, strict=True):
            client.kill()
            steps = client.communicate()[0].split()
            said[run] = int(steps[-1]) if steps else 0
        if server.poll() is not None:
            server = machines.up()
    assert not any(each["waiting"] for each in send()), seed
    for run, least in said.items():
        values = losses(machines.project, run)
        assert values == [float(step) for step in range(len(values))] and len(values) >= least > 0, (seed, run)
        files = {each["path"]: each["blob"] for each in run_page(machines.project, run)["artifacts"]}
        assert all(machines.project.store.blobs.get(files[f"{step}.txt"]) == str(step).encode() for step in range(50, least + 1, 50)), (seed, run)
    assert {each["status"] for each in search(machines.project)["runs"]} == {"killed"}


def cutting(port: int, every: int) -> tuple[socket.socket, list[int]]:
    """Return the door of a way to the server, on which every so manieth answer is lost, and where its cuts are counted."""
    door, cuts, answers = socket.create_server(("127.0.0.1", 0)), [0], [0]

    def carry(one: socket.socket, other: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 20):
                answers[0] += is_answer
                if is_answer and answers[0] % every == 0:
                    cuts[0] += 1
                    break  # the server has done it, and says so to nobody
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def opened() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, server = door.accept()[0], socket.create_connection(("127.0.0.1", port))
                for one, other, is_answer in ((client, server, False), (server, client, True)):
                    threading.Thread(target=carry, args=(one, other, is_answer), daemon=True).start()

    threading.Thread(target=opened, daemon=True).start()
    return door, cuts


def test_answers_that_are_lost_double_nothing(served: Machines) -> None:
    machines = served
    door, cuts = cutting(machines.port, 3)
    machines.url = f"http://127.0.0.1:{door.getsockname()[1]}"
    client = machines.python(STEPS.replace("float(step))", "float(step))\n        if step % 2000 == 0: run.artifact(str(step).encode(), str(step))"), "20000")
    run, _ = client.communicate()
    for _ in range(20):
        left = sum(each["waiting"] for each in send())
        if not left:
            break
    assert left == 0 and cuts[0] > 2
    assert losses(machines.project, run.strip()) == [float(step) for step in range(20_000)]
    assert len(search(machines.project)["runs"]) == 1
    door.close()


def test_a_run_goes_on_when_its_server_was_restarted(machines: Machines) -> None:
    server = machines.up()
    client = machines.python('import palan\nrun = palan.start("routes")\nrun.log(loss=1.0)\ninput()\nrun.log(loss=2.0)\nrun.end()\n')

    def status() -> str:
        return "".join(each["status"] for each in search(machines.project)["runs"])

    assert eventually(lambda: status() == "running")
    server.kill()
    server.wait()
    assert status() == "killed"
    machines.up()
    assert eventually(lambda: status() == "running")
    client.communicate("\n")
    assert arrived(machines) and status() == "done"
    assert losses(machines.project, search(machines.project)["runs"][0]["run"]) == [1.0, 2.0]


SEGMENT = "01m82qt160n1qzxqdqb5b51akj"


def test_a_mirror_takes_every_byte_once_and_none_out_of_turn(tmp_path: Path) -> None:
    one, two = framed(b"one"), framed(b"two")
    here = Mirrors(tmp_path)
    path = tmp_path / f"{SEGMENT}.seg"
    assert here.append(SEGMENT, 5, two) == (0, True) and path.read_bytes() == b""
    assert here.append(SEGMENT, 0, one) == (len(one), False)
    assert here.append(SEGMENT, 0, one + two[:3]) == (len(one) + 3, False)
    with pytest.raises(Conflict, match="other bytes"):
        here.append(SEGMENT, 0, two)
    with pytest.raises(Busy, match="held by another process"):
        Mirrors(tmp_path).append(SEGMENT, 0, one)
    here.close()
    (tmp_path / f"{SEGMENT}.{len(one) + 3}.end").touch()  # somebody took it for dead
    again = Mirrors(tmp_path)
    assert again.append(SEGMENT, len(one) + 3, two[3:]) == (len(one), True)  # what was not whole is asked for again
    assert not list(tmp_path.glob("*.end"))
    assert again.append(SEGMENT, len(one), two, ended=True) == (len(one + two), False)
    assert path.read_bytes() == one + two and (tmp_path / f"{SEGMENT}.{len(one + two)}.end").exists()
    with pytest.raises(NotFound):
        again.append("../../key", 0, one)
    again.close()


def test_a_mirror_that_the_disk_refused_asks_for_all_of_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = framed(b"one"), framed(b"two")
    whole = tmp_path / f"{SEGMENT}.{len(one + two)}.end"

    def refused(fd: int) -> None:
        raise OSError(5, "Input/output error")

    here = Mirrors(tmp_path)
    here.append(SEGMENT, 0, one)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refused)
        with pytest.raises(Busy, match="Input/output error"):
            here.append(SEGMENT, len(one), two, ended=True)
    assert here.append(SEGMENT, len(one), two, ended=True) == (0, False) and not whole.exists()  # the system would say that all is well
    assert here.append(SEGMENT, 0, one + two, ended=True) == (len(one + two), False) and whole.exists()
    here.close()


def test_the_server_keeps_a_blob_only_under_its_own_name(served: Machines) -> None:
    machines = served

    def ask(method: str, path: str, data: bytes = b"") -> int:
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{machines.url}/v1/runs/{path}", data or None, method=method)) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    digest = hashlib.sha256(b"weights").hexdigest()
    assert ask("HEAD", f"blobs/{digest}") == 404
    assert ask("PUT", f"blobs/{digest}", b"other") == 422 and ask("HEAD", f"blobs/{digest}") == 404
    assert ask("PUT", f"blobs/{digest}", b"weights") == 201 and ask("HEAD", f"blobs/{digest}") == 200
    assert ask("POST", f"segments/{SEGMENT}?at=0&format=2", b"x") == 422
    assert ask("POST", "segments/..%2F..%2Fkey?at=0", b"x") == 404
    assert not list(machines.there.glob(".palan/.received-*"))
