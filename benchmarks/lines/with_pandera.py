"""The job with pandera: verify each new file of feed/, append the rows that hold, keep the others with their reasons."""

import json
import sys
from pathlib import Path

import pandera.polars as pa
import polars as pl

ROOT = Path(sys.argv[1])
TABLE, QUARANTINE, SEEN = ROOT / "trips.parquet", ROOT / "quarantine", ROOT / "seen.json"

schema = pa.DataFrameSchema(
    {
        "id": pa.Column(pl.Int64, unique=True),
        "at": pa.Column(pl.Datetime("us", "UTC")),
        "code": pa.Column(pl.String, pa.Check.str_matches("^[A-Z0-9]{6}$")),
        "carrier": pa.Column(pl.String, pa.Check.isin(["AA", "UA", "DL", "WN", "B6", "EV"])),
        "plane": pa.Column(pl.Int64, pa.Check.in_range(0, 4999)),
        "dep": pa.Column(pl.Float64),
        "arr": pa.Column(pl.Float64),
        "dist": pa.Column(pl.Float64, pa.Check.in_range(0, 6000)),
        "temp": pa.Column(pl.Float64, pa.Check.in_range(-100, 150), nullable=True),
        "wind": pa.Column(pl.Float64, pa.Check.ge(0)),
        "seats": pa.Column(pl.Int64, pa.Check.in_range(1, 900)),
        "note": pa.Column(pl.String),
    },
    checks=pa.Check(lambda data: data.lazyframe.select(pl.col("arr") >= pl.col("dep") - 400), name="arr >= dep - 400"),
)
types = {name: column.dtype.type for name, column in schema.columns.items()}


def read(path):
    """Return the rows as text, and in their types with the reasons of cells that cannot be read: a failed coercion names no row."""
    raw = pl.read_csv(path, infer_schema=False).with_row_index("row")
    casts = [pl.col(name).str.to_datetime(strict=False, time_zone="UTC", time_unit="us") if name == "at" else pl.col(name).cast(kind, strict=False) for name, kind in types.items()]
    typed = raw.with_columns(casts)
    unread = [(row, f"{name} is not {kind}") for name, kind in types.items() for row in raw.filter(raw[name].is_not_null() & typed[name].is_null())["row"]]
    return raw, typed, unread


def verify(path):
    raw, typed, found = read(path)
    try:
        schema.validate(typed.drop("row"), lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases.drop_nulls("index")
        found += [(row, f"{column}: {check}") for row, column, check in cases.select("index", "column", "check").iter_rows()]
    reasons = pl.DataFrame(found, schema={"row": pl.UInt32, "reason": pl.String}, orient="row").group_by("row").agg(pl.col("reason").unique())
    bad = raw.join(reasons, on="row").with_columns(line=pl.col("row") + 2, file=pl.lit(path.name))
    return typed.join(reasons, on="row", how="anti").drop("row"), bad.drop("row")


seen = json.loads(SEEN.read_text()) if SEEN.exists() else {}
QUARANTINE.mkdir(exist_ok=True)
for path in sorted((ROOT / "feed").glob("*.csv")):
    if seen.get(path.name) == path.stat().st_mtime_ns:
        continue
    good, bad = verify(path)
    table = pl.concat([pl.read_parquet(TABLE), good]) if TABLE.exists() else good
    table.unique("id", keep="last", maintain_order=True).write_parquet(TABLE.with_suffix(".new"))
    bad.write_parquet(QUARANTINE / f"{path.stem}.parquet")
    TABLE.with_suffix(".new").replace(TABLE)
    seen[path.name] = path.stat().st_mtime_ns
    SEEN.write_text(json.dumps(seen))
    print(f"{path.name}: {good.height} good, {bad.height} in quarantine")
