"""A run: one attempt, with everything needed to repeat it, and its durable steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt of a flow. `status` is running | done | failed | killed; `token` is the fence of its holder's lease."""

    id: str
    flow: str
    subject: str
    status: str
    time: datetime
    ended: datetime | None = None
    holder: str = ""
    token: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    data: Mapping[str, int] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A recorded step. `id` is its content key; `parts` are the digests that made the key, so `why` can tell what changed."""

    id: str
    run: str
    name: str
    value: Any
    parts: Mapping[str, Any]
    time: datetime
    seconds: float
