"""Which parcels does the van take today? A program, solved by HiGHS; each call decides one day."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import highspy
import polars as pl

from palan import Violation

Instance = Mapping[str, Any]


@dataclass
class Van:
    """Take or leave each parcel: the most value that fits into the van and into the shift."""

    slack: float = 0.0  # minutes of the shift that are kept free

    def fit(self, data: pl.DataFrame) -> None:
        self.minutes_ = dict(data.group_by("area").agg(pl.col("minutes").mean()).sort("area").iter_rows())

    def formulate(self, instance: Instance) -> highspy.Highs:
        model, parcels = highspy.Highs(), instance["parcels"]
        take = [model.addBinary(obj=each["value"]) for each in parcels]
        model.addConstr(sum(x * each["kg"] for x, each in zip(take, parcels, strict=True)) <= instance["capacity_kg"])
        minutes = sum(x * self.minutes_[each["area"]] for x, each in zip(take, parcels, strict=True))
        model.addConstr(minutes <= instance["minutes"] - self.slack)
        model.changeObjectiveSense(highspy.ObjSense.kMaximize)
        return model

    def interpret(self, instance: Instance, solution: Any) -> dict[str, Any]:
        taken = [each for x, each in zip(solution.col_value, instance["parcels"], strict=True) if x > 0.5]
        return {"take": [each["id"] for each in taken], "objective": sum(each["value"] for each in taken)}

    def check(self, instance: Instance, plan: Mapping[str, Any]) -> Iterator[Violation]:
        """Judge the plan against the data, not against the solver."""
        taken = [each for each in instance["parcels"] if each["id"] in plan["take"]]
        over = sum(each["kg"] for each in taken) - instance["capacity_kg"]
        if over > 1e-6:
            yield Violation("fits into the van", amount=over)
