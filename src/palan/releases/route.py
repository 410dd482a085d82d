"""Which version answers: one pure rule per release, and the moves a release may make."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec
from msgspec.structs import replace

from palan.data.nouns import Repair
from palan.errors import Conflict, NotFound, PalanError
from palan.releases.nouns import Arm, Release

State = Literal["none", "champion", "canary"]
Move = Literal["start", "canary", "promote", "roll back", "shadow", "repair"]

TRANSITIONS: Mapping[tuple[State, Move], State] = {
    ("none", "start"): "champion",
    ("champion", "start"): "champion",
    ("champion", "canary"): "canary",
    ("canary", "canary"): "canary",  # the same version with another share or date; another version is refused
    ("canary", "promote"): "champion",
    ("canary", "roll back"): "champion",
    ("champion", "roll back"): "champion",
    ("champion", "shadow"): "champion",
    ("canary", "shadow"): "canary",
    ("champion", "repair"): "champion",
    ("canary", "repair"): "canary",
}


class Route(msgspec.Struct, frozen=True):
    """Where one key goes: the arm that answers, how probable that was, and the shadows that answer unseen."""

    arm: Arm
    propensity: float
    shadows: tuple[Arm, ...] = ()


def route(release: Release, key: str) -> Route:
    """Return the arm for a key: stable for as long as the canary is the same version, uniform over keys.

    A wider canary keeps every key it had, so nobody is thrown back and forth. Another canary draws other keys: the
    hash is salted with its version, so the same customers are not always the first to meet a change.
    """
    shadows = tuple(arm for arm in release.arms if arm.role == "shadow")
    canary = release.canary
    if canary is None or canary.share <= 0:
        return Route(release.champion, 1.0, shadows)
    if position(f"{release.model}\0{canary.version}", key) < canary.share:
        return Route(canary, canary.share, shadows)
    return Route(release.champion, 1.0 - canary.share, shadows)


def position(salt: str, key: str) -> float:
    """Return a number in [0, 1) that depends on salt and key alone and is uniform over keys."""
    return int.from_bytes(hashlib.blake2b(key.encode(), key=hashlib.sha256(salt.encode()).digest(), digest_size=8).digest(), "big") / 2**64


def state(release: Release | None) -> State:
    if release is None:
        return "none"
    return "champion" if release.canary is None else "canary"


def start(release: Release | None, model: str, version: str, *, time: datetime, reason: str = "") -> Release:
    """Make `version` the champion at once, with no canary: a first release, or one without a trial.

    Raises:
        Conflict: a canary is running.
    """
    _allowed(release, "start", model)
    if release is None:
        return Release(model=model, epoch=1, time=time, arms=(Arm(version, "champion", 1.0),), reason=reason)
    if version == release.champion.version:
        raise Conflict(f"{version} is already the champion of {model}", f"palan status {model}")
    arms = (Arm(version, "champion", 1.0), *_shadows(release, without=version))
    return replace(release, epoch=release.epoch + 1, time=time, arms=arms, previous=release.champion.version, until=None, reason=reason)


def canary(release: Release | None, model: str, version: str, share: float, until: datetime | None, *, time: datetime, reason: str = "") -> Release:
    """Give `version` a share of the requests until it is judged; the champion keeps the rest.

    Raises:
        Conflict: another canary is running, or the version is the champion.
        PalanError: there is no champion to compare with, or the share is not between 0 and 1.
    """
    known = _allowed(release, "canary", model)
    if not 0 < share < 1:
        raise PalanError(f"a canary takes a share between 0% and 100%, not {share:.0%}", 'write it as share = "20%"')
    if version == known.champion.version:
        raise Conflict(f"{version} is already the champion of {model}", f"palan status {model}")
    if known.canary and known.canary.version != version:
        raise Conflict(f"{known.canary.version} is the canary of {model} already", f"palan release {model} --promote, or --roll-back")
    arms = (Arm(known.champion.version, "champion", 1.0 - share), Arm(version, "canary", share), *_shadows(known, without=version))
    return replace(known, epoch=known.epoch + 1, time=time, arms=arms, until=until, reason=reason)


def promote(release: Release | None, model: str, *, time: datetime, reason: str = "") -> Release:
    """Make the canary the champion; the champion before it is where a roll-back goes.

    Raises:
        Conflict: no canary is running.
    """
    known = _allowed(release, "promote", model)
    winner = known.canary
    if winner is None:
        raise Conflict(f"{model} has no canary to promote", f"palan release {model}")
    arms = (Arm(winner.version, "champion", 1.0), *_shadows(known))
    return replace(known, epoch=known.epoch + 1, time=time, arms=arms, previous=known.champion.version, until=None, reason=reason)


def roll_back(release: Release | None, model: str, *, time: datetime, reason: str = "") -> Release:
    """Drop the canary if there is one; else return to the champion before this one.

    Raises:
        PalanError: there is no canary and no champion before this one.
    """
    known = _allowed(release, "roll back", model)
    if known.canary:
        arms = (Arm(known.champion.version, "champion", 1.0), *_shadows(known))
        return replace(known, epoch=known.epoch + 1, time=time, arms=arms, until=None, reason=reason)
    if not known.previous:
        raise PalanError(f"{model} has nothing to roll back to: {known.champion.version} is its first champion", f"palan log {model}")
    arms = (Arm(known.previous, "champion", 1.0), *_shadows(known, without=known.previous))
    # The version left behind was left for a reason: a second roll-back must not return to it.
    return replace(known, epoch=known.epoch + 1, time=time, arms=arms, previous="", until=None, reason=reason)


def shadow(release: Release | None, model: str, versions: Sequence[str], *, time: datetime, reason: str = "") -> Release:
    """Let these versions (none: no more) answer every request unseen.

    Raises:
        Conflict: a version answers in the open already.
    """
    known = _allowed(release, "shadow", model)
    seen = [arm for arm in known.arms if arm.role != "shadow"]
    if both := next((version for version in versions if version in {arm.version for arm in seen}), None):
        raise Conflict(f"{both} answers requests for {model} already, it cannot be its shadow", f"palan status {model}")
    arms = (*seen, *(Arm(version, "shadow", 0.0) for version in dict.fromkeys(versions)))
    return replace(known, epoch=known.epoch + 1, time=time, arms=arms, reason=reason)


REPAIRED, REPAIR_ENDED = "repaired", "ended the repair of"
"""What the ledger calls a change of the repairs, by whether fewer are in force after it."""


def repair_verb(before: Sequence[Repair], after: Sequence[Repair]) -> str:
    """Return the word for a change of the repairs."""
    standing = [sum(each.until is None for each in repairs) for repairs in (before, after)]
    return REPAIR_ENDED if standing[1] < standing[0] else REPAIRED


def set_repairs(release: Release | None, model: str, repairs: Sequence[Repair], *, time: datetime, reason: str = "") -> Release:
    """Put these repairs before the model, for champion and canary alike; an empty sequence ends them.

    Raises:
        Conflict: the model is not released.
    """
    known = _allowed(release, "repair", model)
    return replace(known, epoch=known.epoch + 1, time=time, repairs=tuple(repairs), reason=reason)


def _allowed(release: Release | None, move: Move, model: str) -> Release:
    here = state(release)
    if (here, move) not in TRANSITIONS:
        if release is None:
            raise NotFound(f"{model} is not released", f"palan release {model}")
        if here == "canary":
            version = release.canary.version if release.canary else ""
            raise Conflict(f"{version} is the canary of {model}: it has to be promoted or rolled back first", f"palan release {model} --promote, or --roll-back")
        raise Conflict(f"{model} has no canary to {move}", f"palan release {model}")
    return release  # type: ignore[return-value]  # None is allowed for "start" alone, which looks itself


def _shadows(release: Release, without: str = "") -> tuple[Arm, ...]:
    return tuple(arm for arm in release.arms if arm.role == "shadow" and arm.version != without)
