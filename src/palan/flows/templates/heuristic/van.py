"""Which parcels does the van take today? A heuristic in plain Python, as good as its time allows."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from palan import Context, Violation

Instance = Mapping[str, Any]


@dataclass
class Van:
    """Fill the van by value for the room and the time that a parcel takes, again and again with some noise."""

    rounds: int = 400
    noise: float = 0.3
    sense = "maximize"  # no parameter: it has no type

    def fit(self, data: pl.DataFrame) -> None:
        self.minutes_ = dict(data.group_by("area").agg(pl.col("minutes").mean()).sort("area").iter_rows())

    def decide(self, instance: Instance, ctx: Context) -> dict[str, Any]:
        dice, best = random.Random(ctx.seed), self.fill(instance, lambda: 1.0)
        for _ in range(self.rounds):
            if ctx.cancelled():  # the deadline, or a caller who wants the best so far
                break
            plan = self.fill(instance, lambda: dice.uniform(1 - self.noise, 1 + self.noise))
            if plan["objective"] > best["objective"]:
                best = plan
                ctx.incumbent(output=best, objective=best["objective"])  # kept even if this process is killed
        return best

    def fill(self, instance: Instance, weight: Any) -> dict[str, Any]:
        kg, minutes, taken = float(instance["capacity_kg"]), float(instance["minutes"]), []
        for each in sorted(instance["parcels"], key=lambda each: -weight() * each["value"] / self.share(instance, each)):
            if each["kg"] <= kg and self.minutes_[each["area"]] <= minutes:
                kg, minutes = kg - each["kg"], minutes - self.minutes_[each["area"]]
                taken.append(each)
        return {"take": sorted(each["id"] for each in taken), "objective": sum(each["value"] for each in taken)}

    def share(self, instance: Instance, parcel: Mapping[str, Any]) -> float:
        return float(parcel["kg"] / instance["capacity_kg"] + self.minutes_[parcel["area"]] / instance["minutes"])

    def objective(self, instance: Instance, plan: Mapping[str, Any]) -> float:
        return float(sum(each["value"] for each in instance["parcels"] if each["id"] in plan["take"]))

    def check(self, instance: Instance, plan: Mapping[str, Any]) -> Iterator[Violation]:
        """Judge the plan against the data, not against the search."""
        over = sum(each["kg"] for each in instance["parcels"] if each["id"] in plan["take"]) - instance["capacity_kg"]
        if over > 1e-6:
            yield Violation("fits into the van", amount=over)
