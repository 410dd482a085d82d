"""The server is killed while clients decide, tell outcomes, queue jobs and log runs over HTTP, and is started again each time."""

from __future__ import annotations

import http.client
import json
import random
import socket
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from crash.report import Found, palan
from palan.decisions.nouns import Job
from palan.flows.fold import fold
from palan.flows.history import decisions, outcomes
from palan.flows.project import Project, open_project
from palan.flows.runs import curves, run_page
from palan.flows.verify import verify
from queue_project import INSTANCE, make

MLFLOW = "/api/2.0/mlflow"


class Client(threading.Thread):
    """One program that talks to the server, and notes what was answered with 2xx."""

    def __init__(self, port: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.port, self.name, self.dice = port, f"c{seed}", random.Random(seed)
        self.done: dict[str, list[Any]] = {each: [] for each in ("decision", "outcome", "job", "batch", "file")}
        self.wrong: list[str] = []
        self.run_id = ""
        self.number = 0
        self.stopped = threading.Event()
        self.connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        try:
            self.talk()
        except Exception as error:  # noqa: BLE001  # an answer that no client expects: a finding
            self.wrong.append(f"{self.name} ended: {error!r}")

    def talk(self) -> None:
        while not self.stopped.is_set():
            self.number += 1
            try:
                self.act(self.number)
            except (OSError, http.client.HTTPException):  # it was killed before it answered: nothing was acknowledged
                self.connection = None
                time.sleep(0.05)

    def ask(self, method: str, path: str, body: Any) -> Any:
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        told = answer.read()
        if answer.status == 503:  # it is starting or stopping
            raise OSError("busy")
        if answer.status >= 300:
            self.wrong.append(f"{method} {path} was answered with {answer.status}: {told[:300]!r}")
            raise OSError("wrong")
        return json.loads(told)

    def act(self, number: int) -> None:
        key = f"{self.name}-{number}"
        if not self.run_id:
            made = self.ask("POST", f"{MLFLOW}/runs/create", {"experiment_id": "0", "start_time": 1, "run_name": self.name})
            self.run_id = made["run"]["info"]["run_id"]
        match self.dice.choice(["decide", "decide", "outcome", "batch", "batch", "file", "job"]):
            case "decide":
                rows = [{"people": number % 12, "desk": "A", "temp": 50.0, "id": key}]
                self.done["decision"].append((key, self.ask("POST", "/v1/models/wait/decide", {"rows": rows})["decision"]))
            case "outcome" if self.done["decision"]:
                of = self.done["decision"][-1][0]
                self.ask("POST", "/v1/models/wait/outcomes", {"outcomes": [{"key": of, "value": float(number)}]})
                self.done["outcome"].append((of, float(number)))
            case "batch":
                metrics = [{"key": name, "value": float(number), "timestamp": 1, "step": number} for name in ("loss", "twice")]
                self.ask("POST", f"{MLFLOW}/runs/log-batch", {"run_id": self.run_id, "metrics": metrics, "params": [{"key": f"p{number}", "value": key}], "tags": [{"key": f"t{number}", "value": key}]})
                self.done["batch"].append(number)
            case "file":
                data = self.dice.randbytes(self.dice.randrange(1, 50_000))
                self.ask("PUT", f"/api/2.0/mlflow-artifacts/artifacts/0/{self.run_id}/artifacts/{key}", data)
                self.done["file"].append((key, len(data)))
            case "job" if self.dice.random() < 0.2:
                self.done["job"].append(self.ask("POST", "/v1/models/plan_fast/jobs", {"instance": INSTANCE})["id"])


def kills_of_the_server(root: Path, seed: int, count: int, clients: int = 4) -> Found:
    """Kill it so many times, at random instants once it answers again."""
    dice = random.Random(seed)
    make(root / "queue", "wait", "plan_fast").store.records.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    talking = [Client(port, seed * 1000 + number) for number in range(clients)]
    for each in talking:
        each.start()
    found = Found()
    try:
        for _ in range(count):
            before = heard(talking)
            server = up(root / "queue", port)
            while server.poll() is None and heard(talking) == before and dice.random() > 0.002:  # now and then before it has answered anybody
                time.sleep(0.01)
            time.sleep(dice.uniform(0.0, 1.0))
            server.kill()
            server.communicate()
            found.blows += 1
        server = up(root / "queue", port)  # and once in good order
        time.sleep(0.5)
        for each in talking:
            each.stopped.set()
        for each in talking:
            each.join(60)
        server.terminate()
        server.communicate()
    finally:
        for each in talking:
            each.stopped.set()
        if server.poll() is None:
            server.kill()
            server.communicate()
    project = open_project(root / "queue")
    fold(project)
    for each in talking:
        found.acknowledged({kind: len(done) for kind, done in each.done.items()})
        found.lost += each.wrong
        found.lost += missing(project, each)
    found.lost += twice_or_half(project)
    found.lost += [f"verify: {each['what']}" for each in verify(project)["findings"]]
    return found


def heard(talking: list[Client]) -> int:
    return sum(len(done) for each in talking for done in each.done.values())


def up(root: Path, port: int) -> subprocess.Popen[bytes]:
    server = palan(root, "up", "--port", port)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert server.poll() is None, server.communicate()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return server
        except OSError:
            time.sleep(0.02)
    raise AssertionError("the server never came up")


def missing(project: Project, client: Client) -> list[str]:
    ids = {each.id for each in decisions(project, "wait")}
    found = [f"the decision {id} of {key} is gone" for key, id in client.done["decision"] if id not in ids]
    told: dict[str, list[float]] = {}
    for each in outcomes(project, "wait"):
        for key, value in zip(each.keys, each.values, strict=False):
            told.setdefault(str(key), []).append(value)
    found += [f"the outcome {value} of {key} is gone" for key, value in client.done["outcome"] if value not in told.get(key, [])]
    jobs = {each.id for each in project.store.records.find(Job)}
    found += [f"the job {id} is gone" for id in client.done["job"] if id not in jobs]
    if not client.run_id:
        return found
    page = run_page(project, client.run_id)
    by_metric = []
    for metric in ("loss", "twice"):
        (drawn,) = curves(project, [client.run_id], metric, points=10_000_000)
        by_metric.append(Counter(drawn["steps"]))
        found += [f"the point {step} of {client.name} is {value}" for step, value in zip(drawn["steps"], drawn["values"], strict=True) if value != float(step)]
    for number in client.done["batch"]:
        parts = (*(points[number] == 1 for points in by_metric), page["params"].get(f"p{number}") == f"{client.name}-{number}", page["tags"].get(f"t{number}") == f"{client.name}-{number}")
        found += [] if all(parts) else [f"of the batch {number} of {client.name} there are only {parts}"]
    for step in by_metric[0] | by_metric[1]:  # those that were not acknowledged too: all of one, or nothing
        parts = (*(points[step] == 1 for points in by_metric), f"p{step}" in page["params"], f"t{step}" in page["tags"])
        found += [] if all(parts) else [f"the batch {step} of {client.name} is there by half: {parts}"]
    files = {each["path"]: each for each in page["artifacts"]}
    for name, size in client.done["file"]:
        kept = files.get(name)
        if kept is None or len(project.store.blobs.get(kept["blob"])) != size:
            found.append(f"the file {name} is gone")
    return found


def twice_or_half(project: Project) -> list[str]:
    ids = Counter(each.id for each in decisions(project, "wait"))
    found = [f"the decision {id} is there {count} times" for id, count in ids.items() if count > 1]
    return found + [f"the decision {each.id} has no output" for each in decisions(project, "wait") if not each.outputs]
