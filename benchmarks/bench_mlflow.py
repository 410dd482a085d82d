"""How fast is MLflow's own client, unmodified, through palan's server, and how small is the server?

The client's own ceiling comes first: the same calls to a server that answers `{}` to whatever it is asked. With
`PEERS=/path/to/python` of an environment that has mlflow, its server does the same work in the same run.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter, sleep

from measure import machine, report

PEERS = os.environ.get("PEERS", "")
CALLS, BATCHES = 1000, 20
TICK = os.sysconf("SC_CLK_TCK")

CLIENT = """
import json, sys, time
import mlflow
from mlflow.entities import Metric
url, run, calls, batches = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
client = mlflow.MlflowClient(url, url)
run = run or client.create_run("0").info.run_id
batch = [Metric(f"m{number % 10}", number / 7, 1700000000000 + number, number // 10) for number in range(1000)]
client.log_metric(run, "warm", 1.0)
client.log_batch(run, batch[:10])
print("ready", flush=True)
sys.stdin.readline()
wall, cpu = time.perf_counter(), time.process_time()
for step in range(calls):
    client.log_metric(run, "loss", 1 / (step + 1), step=step)
one, own = time.perf_counter() - wall, time.process_time() - cpu
wall = time.perf_counter()
for _ in range(batches):
    client.log_batch(run, batch)
many = time.perf_counter() - wall
print(json.dumps({"calls": calls / one, "own": 1000 * own / max(calls, 1), "points": 1000 * batches / many if batches else 0}))
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


def main() -> None:
    machine("mlflow-skinny", "msgspec", "uvicorn")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        port = free()
        with running([sys.executable, "-c", TRIVIAL, str(port)], folder, port, "/"):
            print("a server that answers {} to everything: the client's own ceiling")
            clients(port, run="x" * 32)
        (folder / "palan.toml").write_text('[project]\nname = "bench"\n', encoding="utf-8")
        port = free()
        print("palan up")
        served([sys.executable, "-m", "palan.cli", "up", "--port", str(port)], folder, port, "/api/2.0/mlflow/server-info", CALLS, BATCHES)
        if PEERS:
            port = free()
            print("mlflow server")
            command = [str(Path(PEERS).parent / "mlflow"), "server", "--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
            served(command, folder, port, "/health", CALLS // 10, BATCHES // 4)


def served(command: list[str], folder: Path, port: int, path: str, calls: int, batches: int) -> None:
    begun = perf_counter()
    with running(command, folder, port, path) as process:
        report("from its start to its first answer", [perf_counter() - begun], "s")
        before = used(process.pid)
        clients(port, calls=calls, batches=0)
        report("  the server's processor for one call", [1e3 * (used(process.pid) - before) / calls], "ms")
        before = used(process.pid)
        clients(port, calls=0, batches=batches)
        report("  points for one second of the server's processor", [1000 * batches / (used(process.pid) - before)], "points/s")
        clients(port, calls=calls, batches=0, count=4)
        family = tree(process.pid)
        report("processes of the server", [len(family)], "")
        report("their memory after the load, private and shared once", [sum(memory(each) for each in family) / 1e6], "MB")


def clients(port: int, *, run: str = "", calls: int = CALLS, batches: int = BATCHES, count: int = 1) -> None:
    """Let one client, or several at once, log; all begin together."""
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
    command = [sys.executable, "-c", CLIENT, f"http://127.0.0.1:{port}", run, str(calls // count), str(batches // count)]
    started = [subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(count)]
    for each in started:
        assert each.stdout and each.stdin
        while each.stdout.readline() not in ("ready\n", ""):
            pass
    for each in started:
        assert each.stdin
        each.stdin.write("\n")
        each.stdin.flush()
    told = [json.loads(each.communicate()[0].splitlines()[-1]) for each in started]
    who = "one client" if count == 1 else f"{count} clients at once"
    if calls:
        report(f"{who}: log_metric", [sum(each["calls"] for each in told)], "calls/s")
        report("  the client's own processor for one call", [sum(each["own"] for each in told) / count], "ms")
    if batches:
        report(f"{who}: log_batch of 1,000 points", [sum(each["points"] for each in told)], "points/s")


@contextmanager
def running(command: list[str], folder: Path, port: int, path: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server; the block begins with its first answer."""
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not answers(port, path):
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended before it answered")
            sleep(0.01)
        yield process
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
    """Return the seconds of processor that a process and its children have used."""
    fields = [Path(f"/proc/{each}/stat").read_text(encoding="ascii").rpartition(")")[2].split() for each in tree(pid)]
    return sum(int(each[11]) + int(each[12]) for each in fields) / TICK


def memory(pid: int) -> int:
    """Return the bytes that a process holds: what several share is counted once among them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
