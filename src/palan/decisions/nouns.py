"""What was answered, what became of it, and the long solves on the way."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One answered request as it stands in the log: one row, many rows (columns of equal length), or one instance.

    Row `i` of request `id` is decision `id-i`; an instance is decision `id-0`.
    """

    id: str
    time: datetime
    model: str
    version: str
    epoch: int
    arm: str
    propensity: float
    rows: int
    inputs: dict[str, Any]  # column -> values, or the instance itself
    outputs: Any  # column -> values, or the plan
    keys: list[str] | None = None  # the caller's own key of each row, for outcomes
    status: str = "ok"
    seconds: float = 0.0
    violations: list[dict[str, Any]] = []
    result: dict[str, Any] = {}  # objective, bound, gap, kpis of an instance
    degraded: str = ""  # why a fallback answered
    caller: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What really happened, told later: for decision ids or for the caller's keys. The last one told counts."""

    time: datetime
    model: str
    ids: list[str]
    keys: list[str]
    values: list[Any]


class Job(msgspec.Struct, frozen=True):
    """A solve that outlives its request. `fate` is the job's (queued | running | done | failed | cancelled); `status` the solver's."""

    id: str
    model: str
    version: str
    fate: str
    time: datetime
    request: str  # JSON of what was asked, or the blob of it where it is long
    started: datetime | None = None
    ended: datetime | None = None
    status: str = ""
    objective: float | None = None
    bound: float | None = None
    result: Mapping[str, Any] = {}
    decision: str = ""
    idempotency_key: str = ""
    reason: str = ""
    priority: int = 0  # the highest first, then the oldest
    queue: str = ""  # jobs of one name share the limit `per_queue` of their model
    holder: str = ""  # the process that works on it, and
    expires: datetime | None = None  # until when it has to say so again; then another one takes over
    died: int = 0  # processes in a row that ended without a word while they had it
