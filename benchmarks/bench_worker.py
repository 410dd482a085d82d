"""What does it cost that the model is in another process?"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from measure import machine, rate, report, times

from palan.engines.lanes import Worker

MODEL = """
def decide(rows):
    return rows["x_0"]
"""

machine("polars", "msgspec")
with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "same.py").write_text(MODEL)
    random = np.random.default_rng(7)

    def start() -> None:
        with Worker(Path(folder), "same.py:decide") as fresh:
            fresh.ping()

    report("start a worker and load a model of one line", times(start, repeat=5), "s")
    with Worker(Path(folder), "same.py:decide") as worker:
        loops = 200

        def ping() -> None:
            for _ in range(loops):
                worker.ping()

        report("round trip without a model", [each / loops * 1000 for each in times(ping)], "ms")
        for count in (1, 1000, 100_000):
            rows = pl.DataFrame({f"x_{i}": random.random(count) for i in range(17)})
            each_time = max(1, min(200, 100_000 // count))

            def decide(rows: pl.DataFrame = rows, each_time: int = each_time) -> None:
                for _ in range(each_time):
                    worker.decide(rows)

            seconds = times(decide, repeat=5)
            report(f"decide {count:,} rows of 17 columns", [each / each_time * 1000 for each in seconds], "ms")
            if count > 1:
                rate("the same", count * each_time, seconds, "rows/s")
