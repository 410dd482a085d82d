"""A plain beginning: least squares on the columns of your table. Make it your own; nothing of it comes from palan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

NUMBERS = ["NUMBERS"]
WORDS = ["WORDS"]
OUTCOME = "OUTCOME"


@dataclass
class Model:
    """The fields of the class are its parameters."""

    ridge: float = 1.0

    def fit(self, data: pl.DataFrame) -> None:
        self.usual_ = {name: float(np.nan_to_num(np.nanmean(data[name].cast(pl.Float64).to_numpy()))) for name in NUMBERS}
        self.words_ = {name: sorted(data[name].drop_nulls().unique().to_list()) for name in WORDS}
        x = self.features(data)
        self.weights_ = np.linalg.solve(x.T @ x + self.ridge * np.eye(x.shape[1]), x.T @ data[OUTCOME].cast(pl.Float64).to_numpy())

    def decide(self, rows: pl.DataFrame) -> npt.NDArray[np.float64]:
        return np.asarray(self.features(rows) @ self.weights_)

    def score(self, decisions: pl.DataFrame, outcomes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return how much each answer lost, now that the outcome is known."""
        return np.asarray(np.abs(decisions["output"].to_numpy() - np.asarray(outcomes, dtype=float)))

    def features(self, rows: pl.DataFrame) -> npt.NDArray[np.float64]:
        numbers = [rows[name].cast(pl.Float64).fill_nan(None).fill_null(self.usual_[name]).to_numpy() for name in NUMBERS]
        words = [(rows[name] == word).fill_null(False).to_numpy() for name in WORDS for word in self.words_[name]]
        return np.column_stack([np.ones(rows.height), *numbers, *words]).astype(np.float64)
