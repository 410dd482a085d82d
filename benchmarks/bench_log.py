"""How many decisions can be written and read per second? On the disk that holds the temporary folder."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from measure import machine, rate, report, times

from palan.decisions.log import decisions_between, encode, to_frame
from palan.decisions.nouns import Decision
from palan.stores.segments import SegmentBlocks

random = Random(7)
TIME = datetime(2026, 1, 1, tzinfo=UTC)


def decision(number: int, rows: int) -> Decision:
    """A request like those of the flights example: 17 columns, a third of them text."""
    inputs = {f"number_{i}": [random.random() for _ in range(rows)] for i in range(12)}
    inputs |= {f"text_{i}": [random.choice(["EWR", "JFK", "LGA"]) for _ in range(rows)] for i in range(5)}
    return Decision(
        id=f"d{number:08}", time=TIME, model="delay", version="delay@1", epoch=1, arm="champion", propensity=1.0, rows=rows,
        inputs=inputs, outputs={"output": [random.random() for _ in range(rows)]}, keys=[f"{number}-{i}" for i in range(rows)],
    )  # fmt: skip


machine("msgspec", "polars")
with tempfile.TemporaryDirectory() as folder:
    blocks = SegmentBlocks(Path(folder))
    one = [decision(number, 1) for number in range(2000)]

    def append_each() -> None:
        for each in one:
            blocks.append("decisions/one", [encode(each)])

    rate("append, one row each, in the kernel before the answer", len(one), times(append_each), "decisions/s")

    some = one[:50]

    def append_durably() -> None:
        for each in some:
            blocks.append("decisions/durable", [encode(each)], durable=True)

    rate("append, one row each, on the disk before the answer", len(some), times(append_durably, repeat=5), "decisions/s")

    batches = [encode(decision(number, 800)) for number in range(300)]
    with_batches = SegmentBlocks(Path(folder) / "batches")
    rate("append, 300 requests of 800 rows", 240_000, times(lambda: with_batches.append("d", batches), repeat=3), "rows/s")
    blocks.close()
    with_batches.close()

    read = SegmentBlocks(Path(folder) / "read")
    read.append("d", batches)

    def load() -> int:
        return to_frame(decisions_between(frame.data for frame in read.scan("d"))).height

    rows = load()
    seconds = times(load, repeat=3)
    rate(f"read {rows:,} rows back as one data frame", rows, seconds, "rows/s")
    report("the same", seconds, "s")
    read.close()
