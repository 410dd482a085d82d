"""How many bicycles will be rented today? Known in the morning: the weekday and the weather forecast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from palan import Violation

Numbers = npt.NDArray[np.float64]


@dataclass
class Rentals:
    """Least squares on weekday, temperature and rain. The fields of the class are its parameters."""

    ridge: float = 1.0

    def fit(self, data: pl.DataFrame) -> None:
        x = features(data)
        self.weights_ = np.linalg.solve(x.T @ x + self.ridge * np.eye(x.shape[1]), x.T @ data["rented"].to_numpy())

    def decide(self, rows: pl.DataFrame) -> Numbers:
        return np.maximum(features(rows) @ self.weights_, 0.0)

    def check(self, rows: pl.DataFrame, decisions: pl.DataFrame) -> Iterator[Violation]:
        """Say what must always hold, whatever was learnt."""
        for place in (decisions["output"] < 0).arg_true():
            yield Violation("never negative", f"row {place}", float(-decisions["output"][place]))

    def score(self, decisions: pl.DataFrame, outcomes: Numbers) -> Numbers:
        """Return how much each answer lost, now that the outcome is known: bicycles too many or too few."""
        return np.asarray(np.abs(decisions["output"].to_numpy() - outcomes))


def features(rows: pl.DataFrame) -> Numbers:
    days = [(rows["weekday"] == day).to_numpy() for day in range(1, 8)]
    return np.column_stack([*days, rows["temp"].to_numpy(), rows["rain"].to_numpy()]).astype(np.float64)
