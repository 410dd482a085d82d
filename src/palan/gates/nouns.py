"""A gate's verdict with its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

Verdict = Literal["pass", "fail", "cannot tell"]


class Finding(msgspec.Struct, frozen=True):
    """What one gate says of one candidate: the verdict, a sentence, and the figures behind it."""

    gate: str
    verdict: Verdict
    text: str
    figures: Mapping[str, Any] = {}


class Evidence(msgspec.Struct, frozen=True):
    """A finding as it is kept with the version it judged."""

    id: str
    version: str
    against: str
    gate: str
    verdict: str
    text: str
    figures: Mapping[str, Any]
    time: datetime
