"""A remedy: the candidates for an alarm, what each would have been worth, and the one that was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec


class Remedy(msgspec.Struct, frozen=True):
    """`status` is proposed | approved | released | confirmed | rolled back | rejected | nothing."""

    id: str
    alarm: str
    model: str
    time: datetime
    status: str
    choice: str
    reason: str
    candidates: tuple[Mapping[str, Any], ...] = ()  # see remedies.choose.Trial
    action: Mapping[str, Any] = {}
    predicted: float | None = None  # gain a decision, in the model's own loss: positive is better
    realised: float | None = None  # the same, measured since
