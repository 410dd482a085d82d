"""In the evening: how many boxes of ten to order, which come before the shop opens?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import polars as pl

Numbers = npt.NDArray[np.float64]
BOX, MOST = 10, 8


@dataclass
class Stock:
    """Order up to what is sold on such a day, and some more because an empty shelf costs more than a full one."""

    spare: float = 1.0  # standard deviations

    def fit(self, data: pl.DataFrame) -> None:
        days = data.group_by("weekday").agg(pl.col("sold").mean().alias("mean"), pl.col("sold").std().alias("sd")).sort("weekday")
        self.level_ = (days["mean"] + self.spare * days["sd"]).to_numpy()
        self.sold_ = [data.filter(pl.col("weekday") == day)["sold"].to_list() for day in range(1, 8)]

    def act(self, observation: Numbers) -> int:
        weekday, on_hand = int(observation[0]), float(observation[1])
        return int(np.clip(np.ceil((self.level_[weekday - 1] - on_hand) / BOX), 0, MOST))

    def environment(self) -> gymnasium.Env[Numbers, np.int64]:
        return Shop(self.sold_)


class Shop(gymnasium.Env[Numbers, np.int64]):
    """Two weeks of the shop. A customer who finds nothing costs 3, a piece that stays a night costs 0.2."""

    def __init__(self, sold: list[list[int]]) -> None:
        self.sold = sold
        self.observation_space = gymnasium.spaces.Box(0.0, 500.0, (2,), np.float64)
        self.action_space = gymnasium.spaces.Discrete(MOST + 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Numbers, dict[str, Any]]:
        super().reset(seed=seed)
        self.day, self.on_hand = 0, 40
        return np.array([1.0, self.on_hand]), {}

    def step(self, action: np.int64) -> tuple[Numbers, float, bool, bool, dict[str, Any]]:
        wanted = int(self.np_random.choice(self.sold[self.day % 7]))
        stock = self.on_hand + BOX * int(action)
        self.on_hand, self.day = max(stock - wanted, 0), self.day + 1
        cost = 3.0 * max(wanted - stock, 0) + 0.2 * self.on_hand
        return np.array([1.0 + self.day % 7, self.on_hand]), -cost, self.day == 14, False, {}
