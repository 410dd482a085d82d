"""What a model is to palan: four verbs, a result with a status, violations, and a context for long work.

A model is a plain Python class; its dataclass fields are its parameters. Which verbs it has tells its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Literal

import msgspec

Kind = Literal["estimator", "program", "rules", "heuristic", "policy"]
KINDS: tuple[Kind, ...] = ("estimator", "program", "rules", "heuristic", "policy")

Status = Literal[
    "optimal",
    "feasible",
    "infeasible",
    "unbounded",
    "no_solution",
    "invalid_input",
    "error",
    "licence",
    "cancelled",
    "timeout",
]
STATUSES: tuple[Status, ...] = (
    "optimal",
    "feasible",
    "infeasible",
    "unbounded",
    "no_solution",
    "invalid_input",
    "error",
    "licence",
    "cancelled",
    "timeout",
)
SHAPE: Mapping[str, Literal["rows", "instance"]] = {
    "estimator": "rows",
    "rules": "rows",
    "policy": "rows",
    "program": "instance",
    "heuristic": "instance",
}


class Violation(msgspec.Struct, frozen=True):
    """Something that must always hold and does not. `amount` is by how much, in the rule's own unit."""

    rule: str
    where: str = ""
    amount: float = 0.0
    message: str = ""


class Incumbent(msgspec.Struct, frozen=True):
    """A best-so-far answer of a running solve; `seconds` since its start, `bound` where one is known."""

    seconds: float
    objective: float | None
    bound: float | None = None
    output: Any = None


class Result(msgspec.Struct, frozen=True):
    """The answer to one instance, whatever decided it."""

    status: Status
    output: Any = None
    objective: float | None = None
    bound: float | None = None
    sense: Literal["minimize", "maximize", ""] = ""
    kpis: Mapping[str, float] = {}
    explain: Mapping[str, Any] = {}
    evidence: Mapping[str, Any] = {}
    violations: tuple[Violation, ...] = ()
    seconds: float = 0.0
    incumbents: tuple[Incumbent, ...] = ()

    @property
    def gap(self) -> float | None:
        """Relative distance of objective and bound, as MIP solvers define it: |objective - bound| / max(|objective|, 1e-9)."""
        if self.objective is None or self.bound is None:
            return None
        return abs(self.objective - self.bound) / max(abs(self.objective), 1e-9)


class Context:
    """What a long-running model may ask and tell: its seed, its deadline, its best answer so far."""

    def __init__(
        self,
        *,
        seed: int = 0,
        time_limit: float | None = None,
        on_incumbent: Callable[[Incumbent], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.seed = seed
        self.started = monotonic()
        self.deadline = self.started + time_limit if time_limit is not None else float("inf")
        self.incumbents: list[Incumbent] = []
        self._on_incumbent = on_incumbent
        self._is_cancelled = is_cancelled

    def remaining(self) -> float:
        """Seconds until the deadline, never below zero."""
        return max(0.0, self.deadline - monotonic())

    def cancelled(self) -> bool:
        """True when the caller wants the best answer so far now."""
        return monotonic() >= self.deadline or (self._is_cancelled is not None and self._is_cancelled())

    def incumbent(self, output: Any = None, objective: float | None = None, bound: float | None = None) -> None:
        """Publish a best-so-far answer: it is kept even if this process is killed."""
        found = Incumbent(monotonic() - self.started, objective, bound, output)
        self.incumbents.append(found)
        if self._on_incumbent:
            self._on_incumbent(found)
