"""A release: which version answers which share of the requests for one model."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from palan.data.nouns import Repair


class Arm(msgspec.Struct, frozen=True):
    """One version's part: `role` is champion | canary | shadow, `share` its fraction of the requests (a shadow has 0)."""

    version: str  # "delay@3"
    role: str
    share: float


class Release(msgspec.Struct, frozen=True):
    """The routing of one model. `epoch` rises with every change: the compare-and-set of promotion and roll-back."""

    model: str
    epoch: int
    time: datetime
    arms: tuple[Arm, ...]
    previous: str = ""  # the champion before this one: where a roll-back goes
    until: datetime | None = None  # when a canary is due to be judged
    repairs: tuple[Repair, ...] = ()
    reason: str = ""
    detail: Mapping[str, str] = {}

    def __post_init__(self) -> None:
        if sum(arm.role == "champion" for arm in self.arms) != 1:
            raise ValueError("a release has one champion")

    @property
    def champion(self) -> Arm:
        return next(arm for arm in self.arms if arm.role == "champion")

    @property
    def canary(self) -> Arm | None:
        return next((arm for arm in self.arms if arm.role == "canary"), None)
