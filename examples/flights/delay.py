"""How likely is it that a flight does not leave within fifteen minutes of its schedule?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import ThreadpoolController

from features import CATEGORIES, NUMBERS
from palan.models.contract import Violation

MOST = 200  # values of one category that are told apart; the library takes 255
CERTAIN = 1e-4  # no flight is ever surer than this, so that one surprise cannot outweigh a month

# One core is enough for a hundred thousand rows; threads that wait for each other on a busy machine took ten times longer.
ONE_CORE = ThreadpoolController()


@dataclass
class Delay:
    """Gradient-boosted trees over schedule, aircraft and weather."""

    learning_rate: float = 0.1
    iterations: int = 40
    leaves: int = 31
    seed: int = 0

    def fit(self, data: pl.DataFrame) -> None:
        """Learn from departures with their outcome `late` (0 or 1); rows without it are left out."""
        known = data.filter(pl.col("late").is_not_null())
        self.codes_ = {name: common_values(known[name]) for name in CATEGORIES}
        self.trees_ = HistGradientBoostingClassifier(
            learning_rate=self.learning_rate,
            max_iter=self.iterations,
            max_leaf_nodes=self.leaves,
            min_samples_leaf=100,
            categorical_features=list(range(len(CATEGORIES))),
            early_stopping=False,
            random_state=self.seed,
        )
        with ONE_CORE.limit(limits=1):
            self.trees_.fit(self._matrix(known), known["late"].cast(pl.Int8).to_numpy())

    def decide(self, rows: pl.DataFrame) -> np.ndarray:
        """Return the probability of a late departure for each row, shape (n,)."""
        if rows.is_empty():
            return np.empty(0)
        with ONE_CORE.limit(limits=1):
            both = np.asarray(self.trees_.predict_proba(self._matrix(rows)))
        return both[:, 1].clip(CERTAIN, 1 - CERTAIN)

    def check(self, rows: pl.DataFrame, decisions: pl.DataFrame) -> Iterator[Violation]:
        """A probability lies between zero and one, and there is one for each row."""
        values = decisions.to_series(0).cast(pl.Float64).to_numpy()
        if len(values) != rows.height:
            yield Violation("one answer a row", amount=abs(len(values) - rows.height))
        for index in np.flatnonzero(~((values >= 0) & (values <= 1))):
            yield Violation("a probability", f"row {index}", message=f"{values[index]} is not between 0 and 1")

    def score(self, decisions: pl.DataFrame, outcomes: pl.Series) -> np.ndarray:
        """Return the log loss of each decision in nats, shape (n,)."""
        probability = decisions.to_series(0).cast(pl.Float64).to_numpy().clip(CERTAIN, 1 - CERTAIN)
        late = np.asarray(outcomes, dtype=float)
        return np.asarray(-np.where(late > 0.5, np.log(probability), np.log1p(-probability)))

    def _matrix(self, rows: pl.DataFrame) -> np.ndarray:
        """Return the inputs as numbers: category codes first (0 for a value never seen in training), nulls as NaN."""
        codes = [
            pl.col(name).cast(pl.String).replace_strict(self.codes_[name], list(range(1, len(self.codes_[name]) + 1)), default=0, return_dtype=pl.Float64)
            for name in CATEGORIES
        ]
        return rows.select(*codes, *(pl.col(name).cast(pl.Float64) for name in NUMBERS)).fill_null(np.nan).to_numpy()


def common_values(column: pl.Series) -> list[str]:
    """Return the most frequent values, most frequent first, ties by name."""
    counts = column.drop_nulls().cast(pl.String).value_counts(name="n").sort("n", column.name, descending=[True, False])
    return counts[column.name].head(MOST).to_list()
