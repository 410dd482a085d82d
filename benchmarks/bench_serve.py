"""How many requests per second, and how long does one take, with every decision logged? Client and server share the machine."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from time import perf_counter
from urllib.parse import urlsplit

from measure import machine, rate, report

COLUMNS = 17
MODEL = '''
from dataclasses import dataclass

import polars as pl


@dataclass
class Line:
    """The least that an estimator can be, so that what is measured is palan."""

    def fit(self, data: pl.DataFrame) -> None:
        self.mean_ = float(data["y"].mean())

    def decide(self, rows: pl.DataFrame):
        return rows["x_0"] * 0.5 + self.mean_
'''
SERVER = """
from palan.flows.project import open_project
from palan.flows.serve import serve

serve(open_project("."), port=0, ready=lambda server: print(server.url, flush=True))
"""


def make_project(folder: Path) -> None:
    """A project with one released model."""
    from palan.flows.build import build
    from palan.flows.ingest import ingest
    from palan.flows.project import open_project
    from palan.flows.release import release

    names = [f"x_{i}" for i in range(COLUMNS)]
    random = Random(7)
    (folder / "line.py").write_text(MODEL)
    lines = [",".join([*names, "y"])] + [",".join(f"{random.random():.6f}" for _ in range(COLUMNS + 1)) for _ in range(1000)]
    (folder / "table.csv").write_text("\n".join(lines))
    columns = "\n".join(f'{name} = "float"' for name in [*names, "y"])
    (folder / "palan.toml").write_text(
        f'[project]\nname = "bench"\n[data.table]\nsource = "table.csv"\n[data.table.columns]\n{columns}\n'
        f'[models.line]\nmodel = "line.py:Line"\ndata = "table"\ninputs = {json.dumps(names)}\noutcome = "y"\n'
    )
    project = open_project(folder)
    ingest(project)
    build(project, "line")
    release(project, "line", force=True, reason="measured only")


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int]]:
    """Serve the project from a process of its own."""
    child = subprocess.Popen([sys.executable, "-c", SERVER], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert child.stdout
        url = urlsplit(child.stdout.readline().strip())
        yield url.hostname or "", url.port or 0
    finally:
        child.terminate()
        child.wait(20)


def ask(address: tuple[str, int], body: bytes, count: int) -> list[float]:
    """Return the seconds of each of `count` requests over one connection."""
    connection = HTTPConnection(*address)
    seconds = []
    for _ in range(count):
        start = perf_counter()
        connection.request("POST", "/v1/models/line/decide", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        told = answer.read()
        assert answer.status == 200, told
        seconds.append(perf_counter() - start)
    connection.close()
    return seconds


machine("uvicorn", "uvloop", "msgspec", "polars")
random = Random(7)
with tempfile.TemporaryDirectory() as temporary:
    make_project(Path(temporary))
    with served(Path(temporary)) as address:
        for rows, count, callers in ((1, 1000, 1), (1, 2000, 8), (100, 400, 1), (1000, 100, 1)):
            body = json.dumps({"rows": [{f"x_{i}": random.random() for i in range(COLUMNS)} for _ in range(rows)]}).encode()
            ask(address, body, 20)
            what = f"{rows:,} row{'s' if rows > 1 else ''} a request, {callers} caller{'s' if callers > 1 else ''}"
            rates, seconds = [], []
            for _ in range(5):
                start = perf_counter()
                with ThreadPoolExecutor(callers) as pool:
                    found = list(pool.map(lambda _: ask(address, body, count // callers), range(callers)))  # noqa: B023
                rates.append(count / (perf_counter() - start))
                seconds.append(sorted(each for one in found for each in one))
            report(f"{what}: rate", rates, "requests/s")
            if rows > 1:
                rate("the same", rows, [1 / each for each in rates], "rows/s")
            report(f"{what}: half are answered within", [each[len(each) // 2] * 1000 for each in seconds], "ms")
            report(f"{what}: 99 % are answered within", [each[int(len(each) * 0.99)] * 1000 for each in seconds], "ms")
