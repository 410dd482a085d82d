"""What does it cost to check a request against a schema?"""

from __future__ import annotations

import json
from random import Random

from measure import machine, rate, report, times

from palan.core import Field, Schema
from palan.data.inputs import Inputs, to_frame

random = Random(7)
numbers = [Field(f"number_{i}", "float", nullable=i % 2 == 0, minimum=0.0, maximum=1.0) for i in range(12)]
texts = [Field(f"text_{i}", "str", values=("EWR", "JFK", "LGA")) for i in range(5)]
schema = Schema("rows", (*numbers, *texts))
inputs = Inputs(schema)


def row() -> dict[str, object]:
    return {**{each.name: random.random() for each in numbers}, **{each.name: random.choice(each.values) for each in texts}}


machine("msgspec", "polars")
for count in (1, 100, 10_000):
    rows = [row() for _ in range(count)]
    as_objects = json.dumps({"rows": rows}).encode()
    as_columns = json.dumps({"rows": {name: [each[name] for each in rows] for name in schema.names}}).encode()
    loops = max(1, 2000 // count)
    for form, body in (("objects", as_objects), ("columns", as_columns)):

        def check(body: bytes = body, loops: int = loops) -> None:
            for _ in range(loops):
                inputs.read(body)

        seconds = times(check)
        if count == 1:
            report(f"check one row of 17 columns, as {form}", [each / loops * 1e6 for each in seconds], "µs")
        else:
            rate(f"check {count:,} rows of 17 columns, as {form}", count * loops, seconds, "rows/s")

columns = inputs.read(as_columns).columns
rate("make the data frame of 10,000 rows", 10_000, times(lambda: to_frame(columns, schema)), "rows/s")
