"""Policies: act(observation) for one step; a gymnasium environment, where there is one, to judge them in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from palan.errors import MissingExtra, ModelFailed, PalanError
from palan.models.contract import Violation
from palan.models.estimator import not_finite
from palan.models.user import UserModel, bare, frame_of, guarded, plain

MOST_STEPS = 100_000
MOST_CONSTANTS = 12


class Policy(UserModel):
    """Answers rows by one action each."""

    kind = "policy"

    def decide(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the action of each row in the column `output` (or the columns of the dict that `act` returns).

        A model that has `decide(rows)` answers the batch itself. `act` is given a dict where its argument is annotated
        as one or where a column is not a number; else a float array in the order of the columns.

        Raises:
            ModelFailed: its code raised.
        """
        if callable(getattr(self.model, "decide", None)):
            return frame_of(self.call("decide", rows), rows.height, self.model, "decide")
        act = self._act()
        observations: Any = rows.iter_rows(named=True) if self._wants_dict(rows) else rows.cast(pl.Float64).to_numpy()
        with guarded(self.model, "act"):
            actions = [act(observation) for observation in observations]
        plain_actions = plain(actions, "the actions")
        if plain_actions and isinstance(plain_actions[0], dict):
            return frame_of(plain_actions, rows.height, self.model, "act")
        return pl.DataFrame({"output": pl.Series("output", plain_actions)})

    def check(self, input: Any, output: Any) -> list[Violation]:
        """Return the model's own violations, and each action that is null, NaN or infinite."""
        return not_finite(output) + super().check(input, output)

    def _act(self) -> Callable[[Any], Any]:
        act: Callable[[Any], Any] = bare(self.model) or self.model.act
        return act

    def _wants_dict(self, rows: pl.DataFrame) -> bool:
        hints = {name: hint for name, hint in getattr(self._act(), "__annotations__", {}).items() if name != "return"}
        hint = str(next(iter(hints.values()), "")).lower()
        if "dict" in hint or "mapping" in hint:
            return True
        return "array" not in hint and not all(dtype.is_numeric() or dtype == pl.Boolean for dtype in rows.dtypes)

    def evaluate(self, episodes: int, seed: int) -> dict[str, list[float]]:
        """Return the return of each episode for the policy and its baselines, in the model's own environment.

        Baselines are uniformly random actions, every constant action of a small discrete space, and what the model's
        `baselines()` adds (name -> function of the observation). Episode `i` starts from the same seed for all of them,
        so that their returns can be compared pair by pair.

        Raises:
            PalanError: the model has no `environment()`.
            ModelFailed: its code raised, or an episode did not end within 100 000 steps.
        """
        if not callable(getattr(self.model, "environment", None)):
            raise PalanError(f"{self.name} has no environment() to be judged in", "give it environment(self) that returns a gymnasium.Env")
        env = self.call("environment")
        if not (hasattr(env, "reset") and hasattr(env, "step") and hasattr(env, "action_space")):
            raise ModelFailed(f"{self.name}.environment returned a {type(env).__name__}", "return a gymnasium.Env")
        contenders: dict[str, Callable[[Any], Any]] = {"policy": self._act()}
        contenders["random"] = lambda observation: env.action_space.sample()
        for action in _constants(env.action_space):
            contenders[f"always {action}"] = _always(action)
        if callable(getattr(self.model, "baselines", None)):
            contenders.update(self.call("baselines"))
        return {name: [self._episode(env, act, seed + i, name) for i in range(episodes)] for name, act in contenders.items()}

    def _episode(self, env: Any, act: Callable[[Any], Any], seed: int, name: str) -> float:
        with guarded(self.model, f"environment ({name})"):
            env.action_space.seed(seed)
            observation, _ = env.reset(seed=seed)
            total = 0.0
            for _ in range(MOST_STEPS):
                observation, reward, terminated, truncated, _ = env.step(act(observation))
                total += float(reward)
                if terminated or truncated:
                    return total
        raise ModelFailed(f"an episode of {self.name} did not end within {MOST_STEPS} steps", "wrap the environment in gymnasium.wrappers.TimeLimit")


def _always(action: int) -> Callable[[Any], Any]:
    return lambda observation: action


def _constants(space: Any) -> list[int]:
    """Return the actions of a small discrete space; none for any other space."""
    try:
        import gymnasium
    except ImportError as error:
        raise MissingExtra("gymnasium", "gym", "judging a policy in its environment") from error
    if not isinstance(space, gymnasium.spaces.Discrete) or int(space.n) > MOST_CONSTANTS:
        return []
    return [int(space.start) + i for i in range(int(space.n))]
