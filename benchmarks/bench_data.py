"""How fast are a delivery's rows verified, and a window profiled?"""

from __future__ import annotations

import numpy as np
import polars as pl
from measure import machine, rate, times

from palan.data.contract import parse
from palan.data.reading import parse_file
from palan.data.verdict import verify
from palan.drift.compare import distance
from palan.drift.profile import freeze, profile

ROWS, NUMBERS = 30_000, 12
random = np.random.default_rng(7)
frame = pl.DataFrame(
    {f"number_{i}": random.normal(50, 10, ROWS) for i in range(NUMBERS)} | {f"text_{i}": random.choice(["EWR", "JFK", "LGA"], ROWS) for i in range(3)}
).with_row_index("id")
contract = parse(
    "measured",
    {
        "source": "feed/*.csv",
        "key": ["id"],
        "checks": ["number_0 <= number_1 + 100"],
        "columns": {"id": "int 0..", **{f"number_{i}": "float? -100..200" for i in range(NUMBERS)}, **{f"text_{i}": "str in EWR JFK LGA" for i in range(3)}},
    },
)
csv = frame.write_csv().encode()

machine("polars", "numpy")
rate("read a CSV of 30,000 rows x 16 columns", ROWS, times(lambda: parse_file(csv, ".csv", contract)), "rows/s")
texts = parse_file(csv, ".csv", contract)
assert verify(texts, contract).good.height == ROWS
rate("verify it: types, ranges, sets, keys, one check", ROWS, times(lambda: verify(texts, contract)), "rows/s")
reference = freeze(frame)
rate("profile it against a reference", ROWS, times(lambda: profile(frame, reference)), "rows/s")
first, second = profile(frame[: ROWS // 2], reference), profile(frame[ROWS // 2 :], reference)


def compare() -> None:
    for name, column in first.columns.items():
        distance(column, second.columns[name])


rate("compare two profiles", len(first.columns), times(compare), "columns/s")
