"""A gate's verdict with its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Verdict = Literal["pass", "fail", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one gate says of one candidate: the verdict, a sentence, and the figures behind it."""

    gate: str
    verdict: Verdict
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A finding as it is kept with the version it judged."""

    id: str
    version: str
    against: str
    gate: str
    verdict: str
    text: str
    figures: Mapping[str, Any]
    time: datetime
