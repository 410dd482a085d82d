"""A small project that the serving tests build for real: an estimator of waiting times, and a plan with a fallback."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from palan.flows.build import build
from palan.flows.ingest import ingest
from palan.flows.project import Project, open_project
from palan.flows.release import release
from palan.flows.serve import Server

TOML = """
[project]
name = "queue"

[data.visits]
source = "feed/*.csv"
key = ["id"]
time = "at"
[data.visits.columns]
id = "str"
at = "time"
people = "int 0..500"
desk = "str in A B C"
temp = "float? -30..120 °F"
minutes = "float 0.."

[models.wait]
model = "wait.py:Wait"
data = "visits"
inputs = ["people", "desk", "temp"]
outcome = "minutes"
key = "id"

[models.plan]
model = "plan.py:Plan"
instances = "instances/*.json"
fallback = "plan_fast"
time_limit = "2s"

[models.plan_fast]
model = "plan.py:Fast"
instances = "instances/*.json"
"""

WAIT = '''
"""Waiting times by desk and temperature."""
from dataclasses import dataclass

import polars as pl

from palan.models.contract import Violation


@dataclass
class Wait:
    """Minutes a visitor waits."""
    per_degree: float = 0.01
    most: float = 1000.0

    def fit(self, data):
        self.rate = float(data["minutes"].sum() / max(1, data["people"].sum()))

    def decide(self, rows):
        if rows.height and rows["people"].max() == 13:
            raise ValueError("thirteen at the table")
        return (rows["people"] * self.rate + rows["temp"].fill_null(0.0) * self.per_degree).to_numpy()

    def check(self, rows, decisions):
        for row in range(rows.height):
            if decisions["output"][row] > self.most:
                yield Violation("no wait is so long", f"row {row}", decisions["output"][row] - self.most)

    def score(self, decisions, outcomes):
        return (decisions["output"] - pl.Series(outcomes)).abs().to_numpy()
'''

PLAN = '''
"""Fill a bag: take items in order of value while they fit."""
import os
import time
from dataclasses import dataclass

from palan.models.contract import Violation


def worth(instance, taken):
    return float(sum(instance["values"][item] for item in taken))


def fill(instance):
    taken, room = [], instance["room"]
    for item in sorted(range(len(instance["values"])), key=lambda item: -instance["values"][item]):
        if instance["weights"][item] <= room:
            taken.append(item)
            room -= instance["weights"][item]
    return taken


class Base:
    sense = "maximize"

    def objective(self, instance, plan):
        return worth(instance, plan["taken"])

    def check(self, instance, plan):
        over = sum(instance["weights"][item] for item in plan["taken"]) - instance["room"]
        if over > 0:
            yield Violation("the bag holds it", "bag", over)


@dataclass
class Plan(Base):
    seconds: float = 0.0

    def decide(self, instance, ctx):
        mood = instance.get("mood")
        if mood == "die":
            os._exit(3)
        if mood == "heavy":
            return {"taken": list(range(len(instance["values"])))}
        taken = fill(instance)
        if mood == "sleep":
            ctx.incumbent({"taken": taken[:1]}, worth(instance, taken[:1]))
            while not ctx.cancelled():
                time.sleep(0.01)
            return None
        if mood == "stuck":
            ctx.incumbent({"taken": taken[:1]}, worth(instance, taken[:1]))
            time.sleep(60)
        for count in range(1, len(taken) + 1):
            ctx.incumbent({"taken": taken[:count]}, worth(instance, taken[:count]))
        return {"taken": taken}


@dataclass
class Fast(Base):
    def decide(self, instance, ctx):
        if instance.get("everyone_fails"):
            raise RuntimeError("no luck either")
        return {"taken": fill(instance)}
'''

INSTANCE = {"bag": "blue", "values": [3.0, 5.0, 8.0], "weights": [2, 3, 4], "room": 7, "mood": None, "everyone_fails": None}
GOOD = {"people": 10, "desk": "A", "temp": 50.0, "id": "v1"}


def write(folder: Path) -> Path:
    """Lay out the project's files, with one delivery of data."""
    (folder / "feed").mkdir(parents=True)
    (folder / "instances").mkdir()
    (folder / "palan.toml").write_text(TOML, encoding="utf-8")
    (folder / "wait.py").write_text(WAIT, encoding="utf-8")
    (folder / "plan.py").write_text(PLAN, encoding="utf-8")
    rows = [f"r{index},2026-01-{1 + index % 28:02d}T08:00:00Z,{index % 40},{'ABC'[index % 3]},{40 + index % 20},{2 * (index % 40)}" for index in range(200)]
    (folder / "feed" / "visits.csv").write_text("\n".join(["id,at,people,desk,temp,minutes", *rows]) + "\n", encoding="utf-8")
    examples = [INSTANCE, {**INSTANCE, "mood": "ok", "everyone_fails": True}]
    for number, each in enumerate(examples):
        (folder / "instances" / f"{number}.json").write_text(json.dumps(each), encoding="utf-8")
    return folder


def make(folder: Path, *models: str) -> Project:
    """Write the project, build the models and make them champions (the gates are another test's matter)."""
    project = open_project(write(folder))
    if "wait" in models:
        ingest(project)
    for model in models:
        build(project, model)
        release(project, model, version="1", force=True, reason="first version")
    return project


@dataclass
class Served:
    """The project while its server runs in this process."""

    project: Project
    server: Server
    http: httpx.Client

    def decide(self, model: str, **body: Any) -> httpx.Response:
        return self.http.post(f"/v1/models/{model}/decide", json=body)
