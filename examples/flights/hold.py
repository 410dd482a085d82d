"""At a hub: wait a little longer for passengers from a late flight, or leave without them?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import polars as pl

from palan.errors import PalanError
from palan.models.contract import Violation

LEAVE, HOLD = 0, 1
STEP = 5  # minutes between two decisions
LONGEST = 60  # minutes after which everybody leaves
OBSERVED = ["waited", "inbound_delay", "change_minutes", "transferring", "aboard", "next_service"]
DELAY_EDGES = np.array([0, 15, 30, 60, 120])  # minutes of inbound delay: a flight's hope to make up time depends on it
KEPT_BACK = 4000  # connections of the odd weeks, on which the policy is judged and never learns


@dataclass
class Hold:
    """Hold while waiting is expected to cost fewer passenger minutes than it saves.

    `fit` learns how much of its delay a flight makes up (or adds) on the way, by the delay with which it left. Given
    that, all that can be learned while holding is that the flight has not come yet, so the best policy is a time until
    which to hold, and trying each of the twelve is exact dynamic programming.
    """

    caution: float = 1.0  # weight of a waiting passenger's minute against a stranded passenger's

    def fit(self, data: pl.DataFrame) -> None:
        """Learn from the even weeks of recorded connections; keep the odd ones for `environment`."""
        week = pl.col("scheduled").dt.week()
        learned, kept = data.filter(week % 2 == 0), data.filter(week % 2 == 1)
        made_up = (learned["arr_delay"] - learned["inbound_delay"]).to_numpy()
        place = np.digitize(learned["inbound_delay"].to_numpy(), DELAY_EDGES)
        levels = (np.arange(200) + 0.5) / 200
        groups = [made_up[place == index] for index in range(len(DELAY_EDGES) + 1)]
        # a group of which little was seen borrows from all flights
        self.made_up_ = np.array([np.quantile(group if len(group) >= 50 else made_up, levels) for group in groups])
        late = kept.filter(pl.col("arr_delay") > pl.col("change_minutes"))
        self.kept_back_ = late.tail(KEPT_BACK).select(*OBSERVED, "arr_delay").to_numpy().astype(np.int64)

    def act(self, observation: np.ndarray) -> int:
        """Return HOLD (1) or LEAVE (0) for one observation, the OBSERVED numbers in their order."""
        waited, inbound_delay, change_minutes, transferring, aboard, next_service = map(float, observation)
        if waited >= LONGEST or transferring <= 0:
            return LEAVE
        arrivals = inbound_delay + self.made_up_[np.digitize(inbound_delay, DELAY_EDGES)] - change_minutes
        still = arrivals[arrivals > waited]
        if still.size == 0:
            return LEAVE
        until = np.arange(waited + STEP, LONGEST + STEP, STEP).clip(max=LONGEST)[:, None]
        waiting = aboard * self.caution * (np.minimum(still, until) - waited).mean(axis=1)
        stranded = transferring * next_service * (still > until).mean(axis=1)
        return HOLD if (waiting + stranded).min() < transferring * next_service else LEAVE

    def environment(self) -> gymnasium.Env[np.ndarray, Any]:
        """Return the simulation of connections that `fit` kept back."""
        if not hasattr(self, "kept_back_"):
            raise PalanError("hold has not been fitted, so it knows no connections to be judged on", "palan build hold")
        return Connections(self.kept_back_)

    def baselines(self) -> dict[str, Callable[[np.ndarray], int]]:
        """Return two rules that dispatchers use: a fixed wait, and a wait for whoever is said to be close."""
        return {
            "hold up to 15 minutes": lambda observation: HOLD if observation[0] < 15 else LEAVE,
            "hold if expected within 15 minutes": lambda observation: HOLD if observation[1] - observation[2] <= 15 and observation[0] < 15 else LEAVE,
        }

    def check(self, rows: pl.DataFrame, decisions: pl.DataFrame) -> Iterator[Violation]:
        """An action is to hold or to leave, and nobody holds for more than an hour."""
        for index, (action, waited) in enumerate(zip(decisions.to_series(0), rows["waited"], strict=True)):
            if action not in (LEAVE, HOLD):
                yield Violation("hold or leave", f"row {index}", message=f"{action} is neither 0 nor 1")
            elif action == HOLD and waited >= LONGEST:
                yield Violation("at most an hour", f"row {index}", float(waited - LONGEST + STEP))


class Connections(gymnasium.Env[np.ndarray, Any]):
    """One episode is one connection whose passengers are not there yet when their next flight should leave.

    The reward is minus the passenger hours lost: by those aboard while they wait, and by those left behind until the
    next service. How late the inbound flight comes is what was recorded; the policy sees only how late it left.
    """

    def __init__(self, connections: np.ndarray) -> None:
        self.connections = connections
        self.observation_space = gymnasium.spaces.Box(-2000.0, 2000.0, (len(OBSERVED),), np.float64)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        row = self.connections[self.np_random.integers(len(self.connections))]
        self.state = row[:-1].astype(np.float64)
        self.arrival = float(row[-1] - row[2])  # minutes after the onward flight's schedule
        return self.state.copy(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        waited, _, _, transferring, aboard, next_service = self.state
        if action == LEAVE or waited >= LONGEST:
            return self.state.copy(), -transferring * next_service / 60, True, False, {}
        held = min(self.arrival, waited + STEP) - waited
        self.state[0] = waited + STEP
        lost = aboard * held
        arrived = self.arrival <= waited + STEP
        gone = not arrived and waited + STEP >= LONGEST
        if gone:
            lost += transferring * next_service
        return self.state.copy(), -lost / 60, arrived or gone, False, {}
