"""An alarm: what changed, since when, where, and what kind of change it looks like."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

DIAGNOSES = ("data fault", "input shift", "concept change", "release change", "volume change", "unknown")


class Alarm(msgspec.Struct, frozen=True):
    """`lane` is page (harm or fault) or digest (ranked news). `status` is open | answered | closed."""

    id: str
    model: str
    time: datetime
    lane: str
    status: str
    since: datetime
    until: datetime
    what: str  # one sentence
    diagnosis: str  # one of DIAGNOSES
    columns: tuple[str, ...] = ()
    evidence: Mapping[str, Any] = {}
