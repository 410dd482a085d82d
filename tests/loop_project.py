"""A small project with a year of its own: trips whose minutes depend on the weather, told days after they were asked for.

The weather has a season, days that resemble their neighbours, and columns that belong together, so that a broken unit
can be told from a cold spell. The model is plain numpy, so its workers start at once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from palan.drift.nouns import Alarm
from palan.flows.build import build
from palan.flows.check import check
from palan.flows.decide import Deciders, outcomes
from palan.flows.demo import SimulatedClock
from palan.flows.ingest import ingest
from palan.flows.project import Project, open_project
from palan.flows.release import release
from palan.ledger import Entry
from palan.releases.nouns import Release
from palan.remedies.nouns import Remedy

FIRST = date(2026, 1, 5)  # a Monday
LIVE = date(2026, 5, 4)  # 17 whole weeks later
TRIPS = 150
LATE = timedelta(days=2)

TOML = """
[project]
name = "trips"

[data.trips]
source = "feed/*.csv"
key = ["id"]
time = "at"
[data.trips.columns]
id = "str"
at = "time"
temp = "float -30..130 °F"
dewp = "float -40..110 °F"
humid = "float 0..100 %"
wind = "float 0..90 mph"
load = "int 0..500"
line = "str in A B C"
minutes = "float 0.."

[models.eta]
model = "eta.py:Eta"
data = "trips"
inputs = ["temp", "dewp", "humid", "wind", "load", "line"]
outcome = "minutes"
key = "id"
golden = "golden.json"
gates = ["schema_compatible", "golden", "champion margin=0.01", "latency 500ms", "decision_diff most=100%"]
segments = ["line"]
[models.eta.release]
canary = "50% for 4d"
[models.eta.watch]
window = "7d"
false_pages = "1 per 180d"
[models.eta.react]
approve = "auto"
holdout = "7d"
cooldown = "3d"
horizon = "28d"

[models.pack]
model = "pack.py:Pack"
instances = "instances/*.json"
"""

ETA = '''
"""Minutes of a trip, by least squares on the weather and the load."""
from dataclasses import dataclass

import numpy as np


@dataclass
class Eta:
    """Minutes that a trip takes."""
    blind: bool = False
    extra: float = 0.0

    def _features(self, rows):
        weather = [rows[name].cast(float).to_numpy() for name in ("temp", "wind")]
        if self.blind:
            weather = [np.zeros_like(column) for column in weather]
        lines = [(rows["line"] == name).cast(float).to_numpy() for name in ("B", "C")]
        return np.column_stack([np.ones(rows.height), rows["load"].cast(float).to_numpy() / 10, *lines, *weather])

    def fit(self, data):
        self.weights = np.linalg.lstsq(self._features(data), data["minutes"].to_numpy(), rcond=None)[0].tolist()

    def decide(self, rows):
        return self._features(rows) @ np.array(self.weights) + self.extra

    def score(self, decisions, outcomes):
        return np.abs(decisions["output"].to_numpy() - np.array(outcomes, dtype=float))
'''

PACK = '''
"""Fill a bag with the items that are worth most, or most for their weight."""
from dataclasses import dataclass

from palan.models.contract import Violation


@dataclass
class Pack:
    by_weight: bool = False
    sense = "maximize"

    def objective(self, instance, plan):
        return float(sum(instance["values"][item] for item in plan["taken"]))

    def check(self, instance, plan):
        over = sum(instance["weights"][item] for item in plan["taken"]) - instance["room"]
        if over > 0:
            yield Violation("the bag holds it", "bag", over)

    def score(self, plan, outcome):
        return float(outcome["best"] - outcome["worth"])

    def decide(self, instance, ctx):
        values, weights = instance["values"], instance["weights"]
        order = sorted(range(len(values)), key=lambda item: -values[item] / (weights[item] if self.by_weight else 1))
        taken, room = [], instance["room"]
        for item in order:
            if weights[item] <= room:
                taken.append(item)
                room -= weights[item]
        return {"taken": sorted(taken)}
'''

BAGS = [
    {"values": [10.0, 6.0, 6.0], "weights": [10, 5, 5], "room": 10},
    {"values": [9.0, 5.0, 5.0, 1.0], "weights": [8, 4, 4, 1], "room": 9},
]

Change = Callable[[pl.DataFrame], pl.DataFrame]


class World:
    """The trips of any day from `FIRST` on, the same for one seed however often they are asked for."""

    def __init__(self, seed: int = 7, days: int = 280) -> None:
        rng = np.random.default_rng(seed)
        mild, gap, gust = np.zeros(days), np.zeros(days), np.zeros(days)
        for day in range(1, days):
            mild[day] = 0.7 * mild[day - 1] + rng.normal(0, 5)
            gap[day] = 0.6 * gap[day - 1] + rng.normal(0, 0.35)
            gust[day] = 0.5 * gust[day - 1] + rng.normal(0, 0.3)
        season = 52 + 12 * np.sin(2 * np.pi * (np.arange(days) - 60) / 365)
        hour = np.sort(rng.integers(5, 23, (days, TRIPS)), axis=1)
        temp = (season + mild)[:, None] + 7 * np.sin(np.pi * (hour - 8) / 14) + rng.normal(0, 1, (days, TRIPS))
        apart = 10 * np.exp(gap)[:, None] * (1 + 0.3 * np.sin(np.pi * (hour - 8) / 14)) + rng.normal(0, 0.5, (days, TRIPS)).clip(-2, 2)
        apart = apart.clip(0.5, 60)
        self.hour = hour
        self.temp = temp.round(1)
        self.dewp = (temp - apart).round(1)
        self.humid = (100 * np.exp(-apart / 28) + rng.normal(0, 0.5, (days, TRIPS))).clip(1, 100).round(1)
        self.wind = (9 * np.exp(gust[:, None] + rng.normal(0, 0.25, (days, TRIPS)))).clip(0, 60).round(1)
        self.load = rng.poisson(40, (days, TRIPS))
        self.line = rng.choice(["A", "B", "C"], (days, TRIPS), p=[0.5, 0.3, 0.2])
        self.noise = rng.normal(0, 2, (days, TRIPS))

    def day(self, day: date) -> pl.DataFrame:
        at = (day - FIRST).days
        frame = pl.DataFrame(
            {
                "id": [f"{day}-{number}" for number in range(TRIPS)],
                "at": [datetime.combine(day, time(int(hour)), UTC) for hour in self.hour[at]],
                "temp": self.temp[at],
                "dewp": self.dewp[at],
                "humid": self.humid[at],
                "wind": self.wind[at],
                "load": self.load[at],
                "line": self.line[at],
            }
        )
        return frame.with_columns(minutes=(expected() + pl.Series(self.noise[at])).clip(0).round(2))


def expected() -> pl.Expr:
    """The minutes that a trip takes on average: long in the cold and in the wind."""
    line = pl.when(pl.col("line") == "B").then(4.0).when(pl.col("line") == "C").then(9.0).otherwise(0.0)
    return 60 - 0.4 * pl.col("temp") + 0.25 * pl.col("wind") + 0.1 * pl.col("load") + line


def celsius(rows: pl.DataFrame) -> pl.DataFrame:
    """The fault: the feed sends °C for °F."""
    return rows.with_columns(((pl.col(name) - 32) / 1.8).round(2) for name in ("temp", "dewp"))


def detour(rows: pl.DataFrame) -> pl.DataFrame:
    """The world changed: lines B and C take longer for the same inputs."""
    return rows.with_columns(minutes=pl.col("minutes") + pl.when(pl.col("line") == "A").then(0.0).otherwise(8.0))


def crowded(rows: pl.DataFrame) -> pl.DataFrame:
    """Other inputs, the same relation: more people on every trip."""
    more = 12
    return rows.with_columns(load=pl.col("load") + more, minutes=pl.col("minutes") + 0.1 * more)


def same(rows: pl.DataFrame) -> pl.DataFrame:
    return rows


@dataclass(slots=True)
class Loop:
    """The project while it is live: its clock, its callers, and what it should know later."""

    project: Project
    clock: SimulatedClock
    world: World
    deciders: Deciders
    day: date = LIVE
    sent: dict[date, pl.DataFrame] = field(default_factory=dict)

    def play(self, days: int, *, feed: Change = same, truth: Change = same, told: bool = True, each: Callable[[], Any] | None = None) -> list[Any]:
        """Let days pass: callers ask with what the feed gives them, outcomes come two days late, then `each` is called at noon."""
        done = []
        for _ in range(days):
            self.clock.now = datetime.combine(self.day, time(12), UTC)
            actual = truth(self.world.day(self.day))
            self.sent[self.day] = actual
            seen = feed(actual)
            self.deciders.refresh()
            columns = seen.select("temp", "dewp", "humid", "wind", "load", "line").to_dict(as_series=False)
            self.deciders.decide("eta", value=columns, keys=seen["id"].to_list())
            if told and self.day - LATE in self.sent:
                self.tell(self.day - LATE)
            if each is not None:
                done.append(each())
            self.day += timedelta(days=1)
        return done

    def tell(self, day: date) -> None:
        rows = self.sent[day]
        outcomes(self.project, "eta", rows["minutes"].to_list(), keys=rows["id"].to_list())

    def error(self) -> float:
        """Return how far, in minutes, what is answered now lies from the truth of the newest day that was asked for."""
        from palan.flows import history

        day = max(self.sent)
        logged = history.frame(self.project, "eta", None, since=datetime.combine(day, time(), UTC))
        return float((logged["output"] - self.sent[day].join(logged, left_on="id", right_on="key", maintain_order="right")["minutes"]).abs().mean())  # type: ignore[arg-type]

    def alarms(self, **where: Any) -> list[Alarm]:
        return self.project.store.records.find(Alarm, order="time", model="eta", **where)

    def remedies(self, **where: Any) -> list[Remedy]:
        return self.project.store.records.find(Remedy, order="time", model="eta", **where)

    @property
    def release(self) -> Release:
        found = self.project.store.records.get(Release, "eta")
        assert found is not None
        return found


def ledger(project: Project) -> list[Entry]:
    return project.store.records.find(Entry, order="seq")


def write(folder: Path, world: World) -> Path:
    """Lay out the project's files, with everything that happened before it goes live in one delivery."""
    (folder / "feed").mkdir(parents=True)
    (folder / "instances").mkdir()
    (folder / "palan.toml").write_text(TOML, encoding="utf-8")
    (folder / "eta.py").write_text(ETA, encoding="utf-8")
    (folder / "pack.py").write_text(PACK, encoding="utf-8")
    past = pl.concat(world.day(FIRST + timedelta(days=day)) for day in range((LIVE - FIRST).days))
    past.write_csv(folder / "feed" / "trips.csv", datetime_format="%Y-%m-%dT%H:%M:%SZ")
    cases = past.filter(pl.col("line") == "A").sample(5, seed=1).with_columns(output=expected())
    golden = [
        {"input": {name: row[name] for name in ("temp", "dewp", "humid", "wind", "load", "line")}, "output": row["output"], "tolerance": 1.0}
        for row in cases.iter_rows(named=True)
    ]
    (folder / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    for number, bag in enumerate(BAGS):
        (folder / "instances" / f"{number}.json").write_text(json.dumps(bag), encoding="utf-8")
    return folder


def make(folder: Path) -> Path:
    """Build, check and release both models, once for all tests of a module: they work on copies."""
    write(folder, World())
    project = opened(folder)
    ingest(project)
    for model in ("eta", "pack"):
        made = build(project, model)
        verdict = check(project, made["version"])
        assert verdict["verdict"] == "pass", verdict
        release(project, model, reason="the first one")
    return folder


def opened(folder: Path, now: datetime | None = None) -> Project:
    return open_project(folder, clock=SimulatedClock(now or datetime.combine(LIVE, time(6), UTC)), actor="test")


def edit(folder: Path, file: str, old: str, new: str) -> None:
    """Change a file of the project, as its owner would."""
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text, f"{old!r} is not in {file}"
    (folder / file).write_text(text.replace(old, new), encoding="utf-8")


@contextmanager
def live(folder: Path, made: Path) -> Iterator[Loop]:
    """Copy the built project and let it answer."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    with living(folder) as loop:
        yield loop


@contextmanager
def living(folder: Path, days: int = 0) -> Iterator[Loop]:
    """Let the project in a folder answer, on its own, `days` after it went live."""
    day = LIVE + timedelta(days=days)
    project = opened(folder, datetime.combine(day, time(6), UTC))
    clock = project.clock
    assert isinstance(clock, SimulatedClock)
    deciders = Deciders(project)
    try:
        deciders.refresh()
        world = World()
        sent = {each: world.day(each) for each in (LIVE + timedelta(days=n) for n in range(days))}
        yield Loop(project, clock, world, deciders, day, sent)
    finally:
        deciders.close()
