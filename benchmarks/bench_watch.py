"""How long does it take to look after a model: the data doctor, a month's profile, a long log's status, a large table's check?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from time import process_time

import numpy as np
import polars as pl
from measure import machine, report

from palan.core import Field, Schema
from palan.data.doctor import hypotheses
from palan.decisions.log import encode
from palan.decisions.nouns import Decision, Outcome
from palan.drift.profile import freeze, profile
from palan.flows import history
from palan.flows.build import build
from palan.flows.check import check
from palan.flows.project import open_project
from palan.flows.release import release
from palan.flows.status import status
from palan.models.table import check_table, parse

random = np.random.default_rng(7)
START = datetime(2026, 1, 5, tzinfo=UTC)


def cpu(work: Callable[[], object], *, repeat: int = 5) -> list[float]:
    """Return the CPU seconds of each repetition, of all threads; the first one does not count."""
    found = []
    for _ in range(repeat + 1):
        start = process_time()
        work()
        found.append(process_time() - start)
    return found[1:]


def weather(rows: int, columns: int = 15) -> pl.DataFrame:
    """Hours of a place: columns that belong together, columns that do not, and two of words."""
    hour = np.arange(rows) * (35 * 24 / rows)
    temp = 60 + 15 * np.sin(hour / 24 * 2 * np.pi) + np.repeat(random.normal(0, 8, rows // 600 + 1), 600)[:rows] + random.normal(0, 2, rows)
    dewp = temp - random.gamma(4, 3, rows)
    related = {"temp": temp.round(1), "dewp": dewp.round(1), "humid": (100 - 2.5 * (temp - dewp)).round(1)}
    free = {f"number_{place}": random.gamma(2, 10, rows).round(2) for place in range(columns - 5)}
    words = {name: random.choice(["EWR", "JFK", "LGA"], rows) for name in ("origin", "carrier")}
    return pl.DataFrame({"time": [START + timedelta(hours=float(each)) for each in hour], **related, **free, **words})


def doctor() -> None:
    rows = weather(30_000)
    split = START + timedelta(weeks=4)
    past, week = rows.filter(pl.col("time") < split), rows.filter(pl.col("time") >= split)
    celsius = week.with_columns((pl.col("temp", "dewp") - 32) / 1.8)
    assert [each.kind for each in hypotheses(past, celsius, time="time")] == ["unit"]
    report("the doctor on 30,000 rows x 15 columns, as usual", cpu(lambda: hypotheses(past, week, time="time")), "CPU s")
    report("the same, with temp and dewp in °C", cpu(lambda: hypotheses(past, celsius, time="time")), "CPU s")


def month() -> None:
    columns: dict[str, np.ndarray] = {f"number_{place}": random.normal(50, 10, 1_000_000) for place in range(16)}
    columns |= {f"text_{place}": random.choice([f"{word:03}" for word in range(300)], 1_000_000) for place in range(4)}
    rows = pl.DataFrame(columns)
    reference = freeze(rows[:100_000])
    report("profile 1,000,000 rows x 20 columns", cpu(lambda: profile(rows, reference), repeat=3), "CPU s")


TOML = """
[project]
name = "measured"

[models.fee]
model = "fee.csv"
golden = "golden.json"
"""


def long_log(batches: int = 300, rows: int = 1000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "palan.toml").write_text(TOML)
        (root / "fee.csv").write_text("delay, distance, -> fee\n>= 60, -, 20\n-, >= 1000, 5\n-, -, 0\n")
        (root / "golden.json").write_text('[{"input": {"delay": 90.5, "distance": 200.5}, "output": {"fee": 20}}]')
        project = open_project(root, clock=lambda: START + timedelta(days=batches))
        version = build(project, "fee", reason="measured")["version"]
        check(project, version)
        release(project, "fee", reason="measured")
        for number in range(batches):
            keys = [f"{number}-{row}" for row in range(rows)]
            inputs = {name: random.gamma(2, 30, rows).tolist() for name in ("delay", "distance")}
            asked = START + timedelta(days=number)
            told = Outcome(time=asked, model="fee", ids=[], keys=keys, values=[0.0] * rows)
            decision = Decision(id=f"d{number:08}", time=asked, model="fee", version=version, epoch=1, arm="champion", propensity=1.0, rows=rows, inputs=inputs, outputs={"fee": [0] * rows}, keys=keys)
            project.store.blocks.append("decisions/fee", [encode(decision)])
            project.store.blocks.append("outcomes/fee", [encode(told)])
        start = process_time()
        status(project)
        report(f"the status of a project with {batches} x {rows} decisions, read first", [process_time() - start], "CPU s")
        report("the same, again", cpu(lambda: status(project)), "CPU s")
        start = process_time()
        assert history.frame(project, "fee", None)["outcome"].count() == batches * rows
        report("its log as a table with outcomes, laid out first", [process_time() - start], "CPU s")
        report("the same, again", cpu(lambda: history.frame(project, "fee", None)), "CPU s")


def table(rules: int = 1000) -> str:
    """A table as people write them: the narrow rules first, then the wide ones, and one for all that is left."""
    pick = Random(7)

    def interval(most: int, width: int) -> str:
        low = pick.randrange(most)
        return f"[{low}..{low + pick.randrange(1, width)})" if pick.random() < 0.8 else "-"

    written = []
    for number in range(rules - 1):
        words = f'"{",".join(pick.sample("ABCDEF", 2))}"' if pick.random() < 0.7 else "-"
        cells = [interval(1000, 60), interval(1000, 100), interval(100, 30), interval(100, 40), words]
        written.append((cells.count("-"), ", ".join([*cells, str(number)])))
    return "\n".join(["# hit: first", "a, b, c, d, e, -> x", *(line for _, line in sorted(written, key=lambda each: each[0])), "-, -, -, -, -, -1"])


def rules() -> None:
    large = parse(table())
    domain = Schema("rows", (*(Field(name, "float", minimum=0, maximum=1100) for name in "abcd"), Field("e", "str", values=tuple("ABCDEF"))))
    report("check 1,000 rules for gaps and rules that never win", cpu(lambda: check_table(large, domain), repeat=3), "CPU s")


machine("polars", "numpy")
doctor()
month()
long_log()
rules()
