"""A run: one attempt, with everything needed to repeat it, and its durable steps."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec


class Run(msgspec.Struct, frozen=True):
    """One attempt of a flow. `status` is running | done | failed | killed; `token` is the fence of its holder's lease."""

    id: str
    flow: str
    subject: str
    status: str
    time: datetime
    ended: datetime | None = None
    holder: str = ""
    token: int = 0
    params: Mapping[str, Any] = {}
    metrics: Mapping[str, float] = {}
    tags: Mapping[str, str] = {}
    code: str = ""
    data: Mapping[str, int] = {}
    environment: Mapping[str, str] = {}
    reason: str = ""


class Step(msgspec.Struct, frozen=True):
    """A recorded step. `id` is its content key; `parts` are the digests that made the key, so `why` can tell what changed."""

    id: str
    run: str
    name: str
    value: Any
    parts: Mapping[str, Any]
    time: datetime
    seconds: float
