"""What do eleven features of one row cost, beside Polars and scikit-learn, and what a batch?"""

from __future__ import annotations

import math
import warnings
from datetime import UTC, datetime
from importlib.util import find_spec
from random import Random
from time import process_time

import numpy as np
import polars as pl
from measure import machine, report

from palan.data.scalar import compile_rows

warnings.simplefilter("ignore")
ROUNDS = 7
delay, distance, seats, origin, hour = (pl.col(name) for name in ("delay", "distance", "seats", "origin", "hour"))
SCHEMA: dict[str, pl.DataType] = {"delay": pl.Float64(), "distance": pl.Float64(), "seats": pl.Int64(), "origin": pl.String(), "hour": pl.Int64(), "at": pl.Datetime("us", "UTC")}
FEATURES = {
    "delay_log": (delay + 60).log1p(),
    "delay_scaled": (delay - 12.6) / 40.2,
    "distance_scaled": (distance - 1040.0) / 733.0,
    "distance_root": distance.sqrt(),
    "far": distance > 1000,
    "seats_known": seats.fill_null(150),
    "origin_code": origin.replace_strict({"EWR": 0, "JFK": 1, "LGA": 2}, default=3),
    "is_jfk": origin == "JFK",
    "rush": hour.is_between(16, 20),
    "hour_sin": (hour * 0.2617993877991494).sin(),
    "per_seat": distance / pl.col("seats_known"),
}
random = Random(7)
rows = [{"delay": max(-50.0, random.gauss(10, 40)), "distance": random.uniform(100, 2600), "seats": random.choice([55, 149, 200]), "origin": random.choice(["EWR", "JFK", "LGA"]), "hour": random.randrange(24), "at": datetime(2013, 5, 1, random.randrange(24), tzinfo=UTC)} for _ in range(1000)]
frame = pl.DataFrame(rows, schema=SCHEMA)
nullable = compile_rows(FEATURES, SCHEMA, strict=True)
required = compile_rows(FEATURES, SCHEMA, required=list(SCHEMA), strict=True)
for row, batch in zip(rows, nullable.rows(rows), strict=True):
    for name, value in nullable.row(row).items():
        wanted = batch[name]
        assert value == wanted or (isinstance(wanted, float) and math.nextafter(value, wanted) == wanted), (name, value, wanted)
    assert nullable.row(row) == required.row(row)


def through_polars(row: dict[str, object]) -> object:
    one = pl.DataFrame({name: [row[name]] for name in nullable.columns}, schema={name: SCHEMA[name] for name in nullable.columns})
    return nullable.batch(one.lazy()).collect().row(0)


work = {"compiled, any column may be null": (nullable.row, 20), "compiled, no column is ever null": (required.row, 20), "one row through Polars": (through_polars, 0)}
if find_spec("sklearn"):
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

    transformer = ColumnTransformer([("scaled", StandardScaler(), ["delay", "distance"]), ("log", FunctionTransformer(np.log1p), ["hour"]), ("root", FunctionTransformer(np.sqrt), ["distance"]), ("origin", OneHotEncoder(handle_unknown="ignore"), ["origin"]), ("seats", "passthrough", ["seats"])])
    transformer.fit(pd.DataFrame(rows))
    work["scikit-learn's ColumnTransformer (fewer features)"] = (lambda row: transformer.transform(pd.DataFrame([row])), 0)

machine("polars", *(["scikit-learn"] if find_spec("sklearn") else []))
for name, module in (("Hamilton", "hamilton"), ("Ibis", "ibis"), ("DuckDB", "duckdb"), ("scikit-learn", "sklearn")):
    if not find_spec(module):
        print(f"  not installed, not measured: {name}")

# In turns, and CPU time: a neighbour on the machine burdens all alike.
found: dict[str, list[float]] = {name: [] for name in work}
for _ in range(ROUNDS):
    for name, (call, times) in work.items():
        part = rows * times if times else rows[:40]
        start = process_time()
        for row in part:
            call(row)
        found[name].append((process_time() - start) / len(part) * 1e6)
for name, values in found.items():
    report(name, values, "µs a row")
least = {name: min(values) for name, values in found.items()}
for name in list(work)[2:]:
    report(f"{name} / compiled", [least[name] / least["compiled, any column may be null"]], "times")

crossing = (10, 20, 50, 100, 200, 500, 1000)
for count in crossing:
    part = rows[:count]
    start = process_time()
    for _ in range(20):
        [nullable.row(row) for row in part]
    single = (process_time() - start) / 20
    start = process_time()
    for _ in range(20):
        nullable.batch(pl.DataFrame(part, schema=SCHEMA).lazy()).select(list(FEATURES)).collect().to_dicts()
    report(f"{count} rows: batch / one by one", [(process_time() - start) / 20 / single], "times")
