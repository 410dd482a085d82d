"""How long does it take to judge ten million rows of twelve columns by a dozen rules, beside streaming Polars written by hand,
dataframely, Pointblank, pandera and Great Expectations?

Each runs alone in a process of its own, in turns, as its documentation has it, and has to name every broken row: what it
finds is printed. palan and Polars by hand also ask a rising time, a reference to another table and bands (rows, mean, median,
share of nulls, freshness), which most of the others cannot say. `ROWS=1000000` makes it shorter. The other tools take part after `make peers`.
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
PEER_ROUNDS = int(os.environ.get("PEER_ROUNDS", "1"))

OURS = """
contract = parse("trips", {
    "source": "x", "key": ["id"], "time": "at", "fresh": "4w", "rows": "1..", "checks": ["arr >= dep - 400"],
    "columns": {
        "id": "int", "at": "time rising", "code": "str matches '^[A0-9]{6}$'", "carrier": "str in AA UA DL WN B6 EV", "plane": "int 0..4999 of planes.number",
        "dep": "float", "arr": "float", "dist": "float 0..6000", "temp": {"type": "float? -100..150", "nulls": "..10%", "mean": "40..60", "quantiles": {"p50": "40..60"}},
        "wind": "float 0..", "seats": "int", "note": "str",
    },
})
with open(sys.argv[1], "rb") as file:
    twice = keys_twice([key_hashes(rows, contract) for rows in keys_alone(file, ".parquet", contract)])
    file.seek(0)
    judge = Judge(contract, twice=twice, known={"planes.number": pl.Series(range(5000))}, now=datetime(2021, 1, 1, tzinfo=UTC))
    bad = [judge.take(batch)[1] for batch in batches(file, ".parquet", contract)]
bad.append(judge.settle()[0])
found = sum(rows.height for rows in bad)
verdict = judge.verdict(0)
assert found == verdict.bad
assert [rule.rule for rule in verdict.table if rule.holds] == ["rows", "nulls of temp", "mean of temp", "p50 of temp", *(["fresh"] if judge.rows > 9_500_000 else [])], verdict.table
"""

BY_HAND = """
rows = pl.scan_parquet(sys.argv[1])
twice = rows.group_by("id").len().filter(pl.col("len") > 1).select("id").collect(engine="streaming")["id"]
rules = {
    "code": ~pl.col("code").str.contains("^[A0-9]{6}$"), "carrier": ~pl.col("carrier").is_in(["AA", "UA", "DL", "WN", "B6", "EV"]),
    "plane": ~pl.col("plane").is_between(0, 4999), "dist": ~pl.col("dist").is_between(0, 6000), "temp": ~pl.col("temp").is_between(-100, 150),
    "wind": pl.col("wind") < 0, "arr": pl.col("arr") < pl.col("dep") - 400, "key": pl.col("id").is_in(twice.implode()),
    "known plane": ~pl.col("plane").is_in(list(range(5000))), "rising": pl.col("at") < pl.col("at").shift(1),
    **{f"{name} missing": pl.col(name).is_null() for name in ("id", "at", "seats", "note")},
}
flagged = rows.with_columns(rule.fill_null(False).alias("rule " + name) for name, rule in rules.items())
names = ["rule " + name for name in rules]
why = pl.concat_list(pl.when(pl.col(name)).then(pl.lit(name)) for name in names).list.drop_nulls()
bad = flagged.filter(pl.any_horizontal(names)).with_columns(why.alias("why"))
temp = pl.col("temp")
bands = [pl.len().alias("rows"), temp.mean().alias("mean"), temp.null_count().alias("nulls"), (temp < 40).sum().alias("below"), (temp <= 60).sum().alias("up to"), pl.col("at").max().alias("newest")]
bad, counts = pl.collect_all([bad, flagged.select(pl.col(names).sum(), *bands)], engine="streaming")
found = bad.height
"""

DATAFRAMELY = """
class Trips(dy.Schema):
    id = dy.Int64(primary_key=True)
    at = dy.Datetime(time_zone="UTC")
    code = dy.String(regex="^[A0-9]{6}$")
    carrier = dy.String(check=lambda column: column.is_in(["AA", "UA", "DL", "WN", "B6", "EV"]))
    plane = dy.Int64(min=0, max=4999)
    dep = dy.Float64()
    arr = dy.Float64()
    dist = dy.Float64(min=0, max=6000)
    temp = dy.Float64(nullable=True, min=-100, max=150)
    wind = dy.Float64(min=0)
    seats = dy.Int64()
    note = dy.String()

    @dy.rule()
    def leaves_first(cls):
        return pl.col("arr") >= pl.col("dep") - 400

good, failure = Trips.filter(pl.read_parquet(sys.argv[1]))
counts, bad = failure.counts(), failure.invalid()
found = bad.height
"""

POINTBLANK = """
plan = (
    pb.Validate(pl.read_parquet(sys.argv[1]))
    .col_vals_not_null(["id", "at", "seats", "note"])
    .rows_distinct("id")
    .col_vals_regex("code", "^[A0-9]{6}$")
    .col_vals_in_set("carrier", ["AA", "UA", "DL", "WN", "B6", "EV"])
    .col_vals_between("plane", 0, 4999)
    .col_vals_between("dist", 0, 6000)
    .col_vals_between("temp", -100, 150, na_pass=True)
    .col_vals_ge("wind", 0)
    .col_vals_expr(pl.col("arr") >= pl.col("dep") - 400)
    .interrogate(collect_extracts=False)
)
found = plan.get_sundered_data(type="fail").height
"""

PANDERA = """
schema = pa.DataFrameSchema(
    {
        "id": pa.Column(pl.Int64, unique=True),
        "at": pa.Column(pl.Datetime("us", "UTC")),
        "code": pa.Column(pl.String, pa.Check.str_matches("^[A0-9]{6}$")),
        "carrier": pa.Column(pl.String, pa.Check.isin(["AA", "UA", "DL", "WN", "B6", "EV"])),
        "plane": pa.Column(pl.Int64, pa.Check.in_range(0, 4999)),
        "dep": pa.Column(pl.Float64),
        "arr": pa.Column(pl.Float64),
        "dist": pa.Column(pl.Float64, pa.Check.in_range(0, 6000)),
        "temp": pa.Column(pl.Float64, pa.Check.in_range(-100, 150), nullable=True),
        "wind": pa.Column(pl.Float64, pa.Check.ge(0)),
        "seats": pa.Column(pl.Int64),
        "note": pa.Column(pl.String),
    },
    checks=pa.Check(lambda data: data.lazyframe.select(pl.col("arr") >= pl.col("dep") - 400)),
)
try:
    schema.validate(pl.read_parquet(sys.argv[1]), lazy=True)
    found = 0
except pa.errors.SchemaErrors as error:
    found = error.failure_cases["index"].drop_nulls().n_unique()
"""

PANDERA_LAZY = PANDERA.replace("pl.read_parquet(sys.argv[1]), lazy=True)", "pl.scan_parquet(sys.argv[1]), lazy=True).collect(engine='streaming')")

GREAT_EXPECTATIONS = """
logging.disable(logging.CRITICAL)
context = gx.get_context(mode="ephemeral")
context.variables.progress_bars = {"globally": False, "metric_calculations": False}
suite = gx.ExpectationSuite(
    "trips",
    expectations=[
        *(gxe.ExpectColumnValuesToNotBeNull(column=name) for name in ("id", "at", "seats", "note")),
        gxe.ExpectColumnValuesToBeUnique(column="id"),
        gxe.ExpectColumnValuesToMatchRegex(column="code", regex="^[A0-9]{6}$"),
        gxe.ExpectColumnValuesToBeInSet(column="carrier", value_set=["AA", "UA", "DL", "WN", "B6", "EV"]),
        gxe.ExpectColumnValuesToBeBetween(column="plane", min_value=0, max_value=4999),
        gxe.ExpectColumnValuesToBeBetween(column="dist", min_value=0, max_value=6000),
        gxe.ExpectColumnValuesToBeBetween(column="temp", min_value=-100, max_value=150),
        gxe.ExpectColumnValuesToBeBetween(column="wind", min_value=0),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="arr", column_B="earliest", or_equal=True),
    ],
)
frame = pd.read_parquet(sys.argv[1])
frame["earliest"] = frame["dep"] - 400
batch = context.data_sources.add_pandas("pandas").add_dataframe_asset("trips").add_batch_definition_whole_dataframe("whole").get_batch(batch_parameters={"dataframe": frame})
results = batch.validate(suite, result_format={"result_format": "COMPLETE"})
found = len(set().union(*(each.result.get("unexpected_index_list") or [] for each in results.results)))
"""

PEERS = {
    "dataframely": (DATAFRAMELY, "import dataframely as dy"),
    "Pointblank": (POINTBLANK, "import pointblank as pb"),
    "pandera": (PANDERA, "import pandera.polars as pa"),
    "pandera, lazy": (PANDERA_LAZY, "import pandera.polars as pa"),
    "Great Expectations": (GREAT_EXPECTATIONS, "import logging\nimport pandas as pd\nimport great_expectations as gx\nimport great_expectations.expectations as gxe"),
}

FRAME = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
import polars as pl
{imports}
wall, cpu = time.perf_counter(), time.process_time()
{body}
peak = next(int(line.split()[1]) / 1e3 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu, peak, found]))
"""
IMPORTS = "from datetime import UTC, datetime\nfrom palan.data.contract import parse\nfrom palan.data.reading import batches, keys_alone\nfrom palan.data.verdict import Judge, key_hashes, keys_twice"


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


def runs() -> dict[str, tuple[str, str, str, int]]:
    """Return what takes part: the Python, the program and its imports, and how often."""
    found = {"palan": (sys.executable, OURS, IMPORTS, ROUNDS), "Polars by hand": (sys.executable, BY_HAND, "", ROUNDS)}
    python = os.environ.get("PEERS_DATA", str(Path(__file__).parent.parent / ".venv-peers-data" / "bin" / "python"))
    if Path(python).exists():
        found |= {name: (python, body, imports, PEER_ROUNDS) for name, (body, imports) in PEERS.items()}
    else:
        print("  the other tools are not there: make peers")
    return found


def main() -> None:
    machine("polars", "numpy")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "trips.parquet"
        expected = make(path)
        print(f"{ROWS:,} rows, 12 columns, {expected:,} of them broken, {path.stat().st_size / 1e6:.0f} MB of Parquet")
        asked = runs()
        found: dict[str, list[list[float]]] = {name: [] for name in asked}
        for number in range(ROUNDS):
            for name, (python, body, imports, rounds) in asked.items():
                if number < rounds:
                    child = subprocess.run([python, "-c", FRAME.format(imports=imports, body=body), str(path)], check=True, capture_output=True, text=True)
                    found[name].append(json.loads(child.stdout.splitlines()[-1]))
    for name, each in found.items():
        print(f"{name}: {int(each[0][3]):,} of {expected:,} broken rows named")
        for place, (what, unit) in enumerate((("wall", "s"), ("processor", "s"), ("peak memory", "MB"))):
            report(f"  {what}", [told[place] for told in each], unit)
            if name != "palan":
                report(f"  {what}, times that of palan in the same round", [theirs[place] / ours[place] for theirs, ours in zip(each, found["palan"], strict=False)], "x")
    assert all(told[3] == expected for name in ("palan", "Polars by hand") for told in found[name])


if __name__ == "__main__":
    main()
