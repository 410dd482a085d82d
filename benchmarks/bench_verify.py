"""How long does it take to judge ten million rows of twelve columns by a dozen rules, beside streaming Polars written by hand?

Each runs alone in a process of its own, in turns, and has to find every broken row. `ROWS=1000000` makes it shorter.
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
ROUNDS = 3

OURS = """
contract = parse("trips", {
    "source": "x", "key": ["id"], "checks": ["arr >= dep - 400", "REGEXP_LIKE(code, '^[A0-9]{6}$')"],
    "columns": {
        "id": "int", "at": "time", "code": "str", "carrier": "str in AA UA DL WN B6 EV", "plane": "int 0..4999", "dep": "float",
        "arr": "float", "dist": "float 0..6000", "temp": "float? -100..150", "wind": "float 0..", "seats": "int", "note": "str",
    },
})
with open(sys.argv[1], "rb") as file:
    twice = keys_twice([key_hashes(rows, contract) for rows in keys_alone(file, ".parquet", contract)])
    file.seek(0)
    judge = Judge(contract, twice=twice)
    bad = [judge.take(batch)[1] for batch in batches(file, ".parquet", contract)]
bad.append(judge.settle()[0])
found = sum(rows.height for rows in bad)
assert found == judge.verdict(0).bad
"""

BY_HAND = """
rows = pl.scan_parquet(sys.argv[1])
twice = rows.group_by("id").len().filter(pl.col("len") > 1).select("id").collect(engine="streaming")["id"]
rules = {
    "code": ~pl.col("code").str.contains("^[A0-9]{6}$"), "carrier": ~pl.col("carrier").is_in(["AA", "UA", "DL", "WN", "B6", "EV"]),
    "plane": ~pl.col("plane").is_between(0, 4999), "dist": ~pl.col("dist").is_between(0, 6000), "temp": ~pl.col("temp").is_between(-100, 150),
    "wind": pl.col("wind") < 0, "arr": pl.col("arr") < pl.col("dep") - 400, "key": pl.col("id").is_in(twice.implode()),
    **{f"{name} missing": pl.col(name).is_null() for name in ("id", "at", "seats", "note")},
}
flagged = rows.with_columns(rule.fill_null(False).alias("rule " + name) for name, rule in rules.items())
names = ["rule " + name for name in rules]
why = pl.concat_list(pl.when(pl.col(name)).then(pl.lit(name)) for name in names).list.drop_nulls()
bad = flagged.filter(pl.any_horizontal(names)).with_columns(why.alias("why"))
bad, counts = pl.collect_all([bad, flagged.select(pl.col(names).sum())], engine="streaming")
found = bad.height
"""

FRAME = """
import json, sys, time
import polars as pl
{imports}
wall, cpu = time.perf_counter(), time.process_time()
{body}
peak = next(int(line.split()[1]) / 1e3 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu, peak, found]))
"""
IMPORTS = "from palan.data.contract import parse\nfrom palan.data.reading import batches, keys_alone\nfrom palan.data.verdict import Judge, key_hashes, keys_twice"


def make(path: Path) -> int:
    """Write rows of which some break each rule; return how many are broken."""
    random = np.random.default_rng(1)
    numbers, broken = np.arange(ROWS), ROWS // 20_000
    frame = pl.DataFrame(
        {
            "id": numbers,
            "at": pl.Series(numbers * 3_000_000 + 1_577_836_800_000_000).cast(pl.Datetime("us", "UTC")),
            "code": pl.Series(random.integers(0, 17_576, ROWS)).cast(pl.String).str.pad_start(6, "A"),
            "carrier": np.array(["AA", "UA", "DL", "WN", "B6", "EV"])[random.integers(0, 6, ROWS)],
            "plane": random.integers(0, 5000, ROWS),
            "dep": random.normal(10, 30, ROWS),
            "arr": random.normal(12, 32, ROWS),
            "dist": random.integers(50, 5000, ROWS).astype(float),
            "temp": pl.Series(random.normal(50, 10, ROWS)).zip_with(pl.Series(random.random(ROWS) > 0.03), pl.Series([None], dtype=pl.Float64).new_from_index(0, ROWS)),
            "wind": random.exponential(8, ROWS),
            "seats": random.integers(1, 400, ROWS),
            "note": np.array(["ok", "late", "cancelled"])[random.integers(0, 3, ROWS)],
        }
    )
    chosen = random.choice(ROWS // 2, 5 * broken, replace=False).reshape(5, broken) * 2
    faults = {"code": pl.lit("bad code"), "carrier": pl.lit("XX"), "plane": pl.lit(9999), "dist": pl.lit(-1.0), "seats": pl.lit(None)}
    number = pl.col("id")
    frame = frame.with_columns(pl.when(number.is_in(pl.Series(rows).implode())).then(fault).otherwise(name).alias(name) for (name, fault), rows in zip(faults.items(), chosen, strict=True))
    twice = pl.Series(random.choice(ROWS // 4, broken, replace=False) * 4 + 1)  # odd rows break no other rule, nor the even ones before them
    free = pl.Series(np.setdiff1d(twice.to_numpy() + 2, [], assume_unique=True))
    frame = frame.with_columns(pl.when(number.is_in(free.implode())).then(number - 2).otherwise(number).alias("id"))
    frame.write_parquet(path)
    return 5 * broken + 2 * broken


def main() -> None:
    machine("polars", "numpy")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "trips.parquet"
        expected = make(path)
        print(f"{ROWS:,} rows, 12 columns, {expected:,} of them broken, {path.stat().st_size / 1e6:.0f} MB of Parquet")
        found: dict[str, list[list[float]]] = {"palan": [], "Polars by hand": []}
        for _ in range(ROUNDS):
            for name, body, imports in (("palan", OURS, IMPORTS), ("Polars by hand", BY_HAND, "")):
                told = json.loads(subprocess.run([sys.executable, "-c", FRAME.format(imports=imports, body=body), str(path)], check=True, capture_output=True, text=True).stdout)
                assert told[3] == expected, (name, told[3], expected)
                found[name].append(told)
    for name, each in found.items():
        print(name)
        report("  wall", [told[0] for told in each], "s")
        report("  processor", [told[1] for told in each], "s")
        report("  peak memory", [told[2] for told in each], "MB")
    report("palan takes times the wall of Polars by hand", [ours[0] / theirs[0] for ours, theirs in zip(*found.values(), strict=True)], "x")


if __name__ == "__main__":
    main()
