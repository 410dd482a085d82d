"""What do versions of a table cost: an append, a scattered correction, a look at an old one, the difference of two, and many writers?

The table has ten million rows of twelve columns (`ROWS=1000000` makes it shorter). One percent is appended and a tenth of a percent,
scattered over all of it, is corrected, each as a delivered file that `palan ingest` reads, verifies and keeps. With
`PEERS=/path/to/python` of an environment that has deltalake and polars the same is done there, as its users would: `write_deltalake` to append,
`merge` by the key to correct, `DeltaTable(version=...)` to look back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from measure import machine, report

ROWS = int(os.environ.get("ROWS", "10_000_000"))
PEERS = os.environ.get("PEERS", "")
WRITERS, COMMITS = 4, 10

TOML = """
[project]
name = "versions"
[data.trips]
source = "feed/*.parquet"
key = ["id"]
time = "at"
columns = { id = "int", at = "time", code = "str", carrier = "str in AA UA DL WN B6 EV" }
"""

TIMED = """
import json, os, resource, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
size = lambda place: sum(each.stat().st_size for each in Path(place).rglob("*") if each.is_file())
def timed(what, work, place=None):
    before = size(place) if place else 0
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    print(json.dumps([what, time.perf_counter() - wall, time.process_time() - cpu, (size(place) - before) / 1e6 if place else 0.0]), flush=True)
    return found
"""

INGEST = """
from palan.flows.ingest import ingest
from palan.flows.project import open_project
project = open_project(folder)
timed(sys.argv[2], lambda: ingest(project), folder / ".palan")
"""
LOOK = """
import polars as pl
from palan.flows import tables
from palan.flows.project import open_project
project = open_project(folder)
def look():
    return tables.scan(project, tables.find_data_version(project, "trips@1")).select(pl.col("delay").mean()).collect().item()
timed(sys.argv[2], look)
"""
DIFF = """
from palan.flows.project import open_project
from palan.flows.versions import difference
project = open_project(folder)
found = timed(sys.argv[2], lambda: difference(project, "trips@1", "trips@3"))
assert (found["rows"]["added"], found["rows"]["changed"]) == (int(sys.argv[3]), int(sys.argv[4])), found["rows"]
"""

DELTA = """
import polars as pl
from deltalake import DeltaTable, write_deltalake
table = str(folder / "delta")
feed = folder / "feed"
timed("first", lambda: write_deltalake(table, pl.read_parquet(feed / "a.parquet").to_arrow()), folder / "delta") if not Path(table).exists() else None
timed("append", lambda: write_deltalake(table, pl.read_parquet(feed / "b.parquet").to_arrow(), mode="append"), folder / "delta")
def correct():
    rows = pl.read_parquet(feed / "c.parquet").to_arrow()
    DeltaTable(table).merge(rows, predicate="t.id = s.id", source_alias="s", target_alias="t").when_matched_update_all().when_not_matched_insert_all().execute()
timed("correct", correct, folder / "delta")
timed("look", lambda: pl.scan_delta(table, version=0).select(pl.col("delay").mean()).collect().item())
"""


def frame(first: int, count: int, step: int = 1) -> pl.DataFrame:
    random = np.random.default_rng(first + step)
    numbers = first + step * np.arange(count)
    return pl.DataFrame(
        {
            "id": numbers,
            "at": pl.Series(numbers * 3_000_000 + 1_577_836_800_000_000).cast(pl.Datetime("us", "UTC")),
            "code": pl.Series(random.integers(0, 17_576, count)).cast(pl.String).str.pad_start(6, "A"),
            "carrier": np.array(["AA", "UA", "DL", "WN", "B6", "EV"])[random.integers(0, 6, count)],
            "plane": random.integers(0, 5000, count),
            **{name: random.normal(10, 30, count) for name in ("delay", "arr", "dist", "temp", "wind")},
            "seats": random.integers(50, 300, count),
            "note": np.array(["", "late crew", "weather", "inbound"])[random.integers(0, 4, count)],
        }
    )


def run(program: str, *arguments: object, python: str = sys.executable) -> list[tuple[str, float, float, float]]:
    done = subprocess.run([python, "-c", TIMED + program, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return [tuple(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]


def told(who: str, what: str, rows: list[tuple[str, float, float, float]], *, disk: bool = True) -> None:
    report(f"{who}: {what}", [each[1] for each in rows], "s")
    if disk:
        report(f"{who}: {what}: grown by", [each[3] for each in rows], "MB")


def writers(folder: Path) -> None:
    """Let some processes deliver and ingest a file each, again and again, and look whether any of it is lost."""
    program = """
import polars as pl
from palan.flows.ingest import ingest
from palan.flows.project import open_project
project = open_project(folder)
number, commits, first = map(int, sys.argv[2:5])
for turn in range(commits):
    rows = pl.scan_parquet(folder / "feed" / "a.parquet").head(100).with_columns(id=pl.lit(first + (number * commits + turn) * 100) + pl.int_range(100)).collect()
    rows.write_parquet(folder / f"w{number}-{turn}.parquet")
    (folder / f"w{number}-{turn}.parquet").rename(folder / "feed" / f"w{number}-{turn}.parquet")
    ingest(project)
"""
    work = [subprocess.Popen([sys.executable, "-c", TIMED + program, str(folder), str(number), str(COMMITS), str(10 * ROWS)], stderr=subprocess.PIPE, text=True) for number in range(WRITERS)]
    failed = [each.communicate()[1][-500:] for each in work if each.wait()]
    print(f"  {WRITERS} processes x {COMMITS} commits: {len(failed)} failed {failed[:1] or ''}")


def main() -> None:
    machine("polars")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "palan.toml").write_text(TOML, encoding="utf-8")
        feed = folder / "feed"
        feed.mkdir()
        more, corrected = ROWS // 100, ROWS // 1000
        frame(0, ROWS).write_parquet(feed / "a.parquet")
        told("palan", f"{ROWS:,} rows", run(INGEST, folder, "first"))
        frame(ROWS, more).write_parquet(feed / "b.parquet")
        told("palan", "1% appended", run(INGEST, folder, "append"))
        frame(0, corrected, step=1000).with_columns(delay=pl.lit(1.0)).write_parquet(feed / "c.parquet")
        told("palan", "0.1% corrected, scattered", run(INGEST, folder, "correct"))
        told("palan", "a look at the first version, of a new process, the first time of a day", run(LOOK, folder, "look"), disk=False)
        told("palan", "the same, then", [run(LOOK, folder, "look")[0] for _ in range(5)], disk=False)
        told("palan", "rows that differ from the first to the third version", [run(DIFF, folder, "diff", more, corrected)[0] for _ in range(3)], disk=False)
        if PEERS:
            for what, *figures in run(DELTA, folder, python=PEERS):
                told("deltalake", what, [(what, *figures)], disk=what != "look")
        writers(folder)
        done = subprocess.run([sys.executable, "-m", "palan.cli", "--project", str(folder), "data", "export", "trips", str(folder / "out.parquet")], capture_output=True, text=True, check=False)
        found = pl.scan_parquet(folder / "out.parquet").select(pl.len()).collect().item() if not done.returncode else done.stderr
        print(f"  rows then: {found:,}, of {ROWS + more + WRITERS * COMMITS * 100:,}")


main()
