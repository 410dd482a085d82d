"""How fast is MLflow's own client, unmodified, through palan's server, and how small is the server?

All servers run at once and take turns, in rounds: a machine changes its speed within seconds, so a ratio is one of the same
round. The client's own ceiling is a server that answers `{}` to whatever it is asked, an empty application on uvicorn is what
the transport costs, and with `PEERS=/path/to/python` of an environment that has mlflow, its server takes its turn too.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter, sleep
from typing import NamedTuple

from measure import machine, report

PEERS = os.environ.get("PEERS", "")
ROUNDS, SECONDS, CLIENTS = 5, 0.6, 4
TICK = os.sysconf("SC_CLK_TCK")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet", "MLFLOW_ASYNC_LOGGING_BUFFERING_SECONDS": "1"}

CLIENT = """
import json, sys, time
import mlflow
from mlflow.entities import Metric
batch = [Metric(f"m{number % 10}", number / 7, 1700000000000 + number, number // 10) for number in range(1000)]
known = {}
def one_by_one(client, run, until):
    count = 0
    while time.perf_counter() < until:
        client.log_metric(run, "loss", 1 / (count + 1), step=count)
        count += 1
    return count
def in_batches(client, run, until):
    count = 0
    while not count or time.perf_counter() < until:
        client.log_batch(run, batch)
        count += len(batch)
    return count
def later(client, run, until):
    sent = []
    while time.perf_counter() < until:
        sent.append(client.log_metric(run, "later", 1 / (len(sent) + 1), step=len(sent), synchronous=False))
    for each in sent:
        each.wait()
    return len(sent)
print("ready", flush=True)
for line in sys.stdin:
    what, url, run, seconds = json.loads(line)
    if url not in known:
        client = mlflow.MlflowClient(url, url)
        known[url] = client, run or client.create_run("0").info.run_id
        client.log_metric(known[url][1], "warm", 1.0)
    begun, own = time.perf_counter(), time.process_time()
    count = globals()[what](*known[url], begun + seconds)
    print(json.dumps([count, time.perf_counter() - begun, time.process_time() - own]), flush=True)
"""

TRIVIAL = """
import asyncio, sys
class Yes(asyncio.Protocol):
    def connection_made(self, transport): self.transport, self.rest = transport, b""
    def data_received(self, data):
        self.rest += data
        head, found, body = self.rest.partition(b"\\r\\n\\r\\n")
        size = next((int(line[15:]) for line in head.lower().split(b"\\r\\n") if line.startswith(b"content-length:")), 0)
        if found and len(body) >= size:
            self.rest = body[size:]
            self.transport.write(b"HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\ncontent-length: 2\\r\\n\\r\\n{}")
async def main():
    server = await asyncio.get_running_loop().create_server(Yes, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()
asyncio.run(main())
"""

EMPTY = """
import sys, uvicorn
async def app(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json"), (b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False, lifespan="off", ws="none", timeout_keep_alive=30)
"""

WHATS = {
    "one_by_one": ("log_metric, one client", "calls/s", 1),
    "in_batches": ("log_batch of 1,000 points, one client", "points/s", 1),
    "later": ("log_metric with synchronous=False, buffered for a second, one client", "points/s", 1),
    "one_by_one, all": (f"log_metric, {CLIENTS} clients", "calls/s", CLIENTS),
    "in_batches, all": (f"log_batch of 1,000 points, {CLIENTS} clients", "points/s", CLIENTS),
}


class Server(NamedTuple):
    """A server that runs; with no `run` its clients begin one."""

    name: str
    port: int
    pid: int
    run: str = ""


def main() -> None:
    machine("mlflow-skinny", "msgspec", "uvicorn")
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        first: dict[str, list[float]] = {}
        for turn in range(ROUNDS - 1):
            with running("palan", Path(place) / f"{turn}", first):
                pass
        names = ["{}", "uvicorn", "palan", *(["mlflow"] if PEERS else [])]
        servers = [stack.enter_context(running(name, Path(place) / name.strip("{}"), first)) for name in names]
        clients = [stack.enter_context(client()) for _ in range(CLIENTS)]
        speeds, costs = rounds(servers, clients)
        for what, (title, unit, _) in WHATS.items():
            print(title)
            for each in servers:
                report(f"  {each.name}", speeds[what, each.name], unit)
            for name in names[3:]:
                report(f"  palan to {name}", ratios(speeds[what, "palan"], speeds[what, name]), "x")
            report("  palan to the client's ceiling", ratios(speeds[what, "palan"], speeds[what, "{}"]), "x")
            for each in servers:
                report(f"  {each.name}: the server's processor for 1,000 of them", [1e6 * cost for cost in costs[what, each.name]], "ms")
        print("the servers")
        for each in servers[2:]:
            family = tree(each.pid)
            report(f"  {each.name}: from its start to its first answer", first[each.name], "s")
            report(f"  {each.name}: processes", [len(family)], "")
            report(f"  {each.name}: memory after the load, private and shared once", [sum(memory(one) for one in family) / 1e6], "MB")


Figures = dict[tuple[str, str], list[float]]


def rounds(servers: Sequence[Server], clients: Sequence[subprocess.Popen[str]]) -> tuple[Figures, Figures]:
    """Return of each kind of work and server how many a second it took in, and the seconds of its processor for 1,000 of them."""
    speeds, costs = Figures(), Figures()
    for turn in range(ROUNDS + 1):
        for what, (_, _, count) in WHATS.items():
            for each in servers if turn % 2 else servers[::-1]:
                before = used(each.pid)
                told = together(clients[:count], [what.partition(",")[0], f"http://127.0.0.1:{each.port}", each.run, SECONDS])
                if turn:  # the first one begins runs and fills caches
                    speeds.setdefault((what, each.name), []).append(sum(done / seconds for done, seconds, _ in told))
                    costs.setdefault((what, each.name), []).append((used(each.pid) - before) / sum(done for done, _, _ in told))
    return speeds, costs


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def together(clients: Sequence[subprocess.Popen[str]], asked: Sequence[object]) -> list[tuple[int, float, float]]:
    """Let clients do the same at once; return what each did, in how many seconds, and in how many of its processor."""
    for each in clients:
        assert each.stdin
        each.stdin.write(json.dumps(asked) + "\n")
        each.stdin.flush()
    told = []
    for each in clients:
        assert each.stdout
        told.append(tuple(json.loads(each.stdout.readline())))
    return told


@contextmanager
def client() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", CLIENT], env=ENVIRONMENT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        while process.stdout.readline() not in ("ready\n", ""):
            pass
        yield process
        process.terminate()


@contextmanager
def running(name: str, folder: Path, first: dict[str, list[float]]) -> Iterator[Server]:
    """Run a server; the block begins with its first answer, and `first` is told after how many seconds that was."""
    folder.mkdir(exist_ok=True)
    (folder / "palan.toml").write_text('[project]\nname = "bench"\n', encoding="utf-8")
    port = free()
    command, path = {
        "{}": ([sys.executable, "-c", TRIVIAL, str(port)], "/"),
        "uvicorn": ([sys.executable, "-c", EMPTY, str(port)], "/"),
        "palan": ([sys.executable, "-m", "palan.cli", "up", "--port", str(port)], "/api/2.0/mlflow/server-info"),
        "mlflow": (
            [f"{Path(PEERS).absolute().parent}/mlflow", "server", "--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"],
            "/health",
        ),
    }[name]
    begun = perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not answers(port, path):
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended before it answered")
            sleep(0.01)
        first.setdefault(name, []).append(perf_counter() - begun)
        yield Server(name, port, process.pid, "" if name in ("palan", "mlflow") else "x" * 32)
    finally:
        process.terminate()
        process.wait(30)


def answers(port: int, path: str) -> bool:
    try:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False


def free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def tree(pid: int) -> list[int]:
    """Return a process with all that it began."""
    children = (Path(f"/proc/{pid}/task/{pid}/children")).read_text(encoding="ascii").split()
    return [pid, *(each for child in children for each in tree(int(child)))]


def used(pid: int) -> float:
    """Return the seconds of processor that a process and its children have used, those that have ended too."""
    fields = [Path(f"/proc/{each}/stat").read_text(encoding="ascii").rpartition(")")[2].split() for each in tree(pid)]
    return sum(int(field) for each in fields for field in each[11:15]) / TICK


def memory(pid: int) -> int:
    """Return the bytes that a process holds: what several share is counted once among them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
