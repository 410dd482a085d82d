"""What could be done about an alarm: candidates for any kind of model, each to be tried by replay.

The menu is generous and judges nothing: which candidate is worth its cost is measured, not guessed from the diagnosis.
The order is from cheap to dear; of equals, the first is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

import msgspec

from palan.core import stamp
from palan.data.nouns import Repair

Action = Literal["nothing", "roll back", "retrain", "rework data", "end repair", "recalibrate", "change model", "fallback", "edit rule"]
ACTIONS: tuple[Action, ...] = ("nothing", "rework data", "end repair", "roll back", "recalibrate", "retrain", "change model", "fallback", "edit rule")

COSTS: Mapping[Action, tuple[str, ...]] = {
    "nothing": (),
    "rework data": ("review", "switch"),
    "end repair": ("review", "switch"),
    "roll back": ("review", "switch"),
    "recalibrate": ("review", "train", "switch"),
    "retrain": ("review", "train", "switch"),
    "change model": ("review", "train", "switch"),
    "fallback": ("review", "switch"),
    "edit rule": ("review", "switch"),
}
"""Which of the configured costs each action has to earn back."""

RECENT_DAYS = (60, 28)
"""Windows of recent data to retrain on, besides all of it: shorter ones forget faster and learn from less."""


class Cause(Protocol):
    """The part of a diagnosis that the menu reads."""

    @property
    def kind(self) -> str: ...
    @property
    def since(self) -> datetime | None: ...
    @property
    def columns(self) -> Sequence[str]: ...


class Fault(Protocol):
    """The part of a data hypothesis that the menu reads."""

    @property
    def columns(self) -> Sequence[str]: ...
    @property
    def text(self) -> str: ...
    @property
    def confidence(self) -> float: ...
    @property
    def repairs(self) -> Sequence[Repair]: ...
    @property
    def ends_repair(self) -> bool: ...


class Candidate(msgspec.Struct, frozen=True):
    """One remedy to try. `detail` holds the plain values that carry it out; `sentence` is what it would do."""

    name: str
    action: Action
    detail: Mapping[str, Any] = {}
    sentence: str = ""


NOTHING = Candidate("nothing", "nothing", {}, "leave everything as it is")


def menu(
    *,
    kind: str,
    diagnosis: Cause,
    hypotheses: Sequence[Fault] = (),
    has_previous: bool,
    can_fit: bool,
    active_repairs: Sequence[Repair] = (),
    alternatives: Sequence[Mapping[str, Any]] = (),
    can_recalibrate: bool = False,
    least_confidence: float = 0.2,
) -> list[Candidate]:
    """Return the candidates, "nothing" first, without two of one name.

    Args:
        kind: the model's kind.
        hypotheses: what the data doctor proposes; unlikely ones (below `least_confidence`) are not worth a replay.
        has_previous: there is a champion before this one to go back to.
        can_fit: the model learns from data.
        active_repairs: repairs now applied to its inputs.
        alternatives: other models, parameters or tables that the project declares: `{"name", "action"?, ...}`; the
            action is "change model" unless it says "fallback" or "edit rule". Everything else goes into the detail.
        can_recalibrate: its outputs are probabilities or amounts that can be mapped onto recent outcomes.
    """
    found = [NOTHING]
    likely = [fault for fault in hypotheses if fault.confidence >= least_confidence]
    found += _repairs([fault for fault in likely if fault.repairs and not fault.ends_repair])
    found += _endings(active_repairs, [fault.columns for fault in likely if fault.ends_repair])
    if has_previous:
        found.append(Candidate("roll back", "roll back", {}, "go back to the champion before this one"))
    if can_recalibrate:
        days = RECENT_DAYS[-1]
        found.append(Candidate("recalibrate", "recalibrate", {"window": f"recent {days}d"}, f"map the outputs onto the outcomes of the last {days} days"))
    if can_fit:
        found += _retrainings(diagnosis.since)
    found += [_alternative(other, kind) for other in alternatives]
    if kind == "rules" and not any(candidate.action == "edit rule" for candidate in found):
        where = ", ".join(diagnosis.columns[:3])
        said = f"look at the rows that read {where}" if where else "look at the rows that fire most"
        found.append(Candidate("edit rule", "edit rule", {"columns": list(diagnosis.columns)}, f"{said}; a person has to write the new row"))
    return list({candidate.name: candidate for candidate in reversed(found)}.values())[::-1]


def _repairs(faults: Sequence[Fault]) -> list[Candidate]:
    """One candidate for each fault, and one for all of them where they touch different columns."""
    singles = []
    for fault in faults:
        names = ", ".join(dict.fromkeys(repair.column for repair in fault.repairs))
        how = "; ".join(f"{repair.column} = {repair.expression}" for repair in fault.repairs)
        singles.append(Candidate(f"rework data: {names}", "rework data", {"repairs": [plain(repair) for repair in fault.repairs]}, f"{fault.text}: {how}"))
    columns = [repair.column for fault in faults for repair in fault.repairs]
    if len(faults) < 2 or len(columns) != len(set(columns)):
        return singles
    together = [plain(repair) for fault in faults for repair in fault.repairs]
    return [*singles, Candidate("rework data: all", "rework data", {"repairs": together}, f"repair {', '.join(columns)} together")]


def _endings(active: Sequence[Repair], found_right: Sequence[Sequence[str]]) -> list[Candidate]:
    """What the doctor found to be right again comes first: a column that the model hardly uses is ended with its fellows."""
    columns = list(dict.fromkeys(repair.column for repair in active))
    groups = [[name for name in columns if name in found] for found in found_right]
    together = [
        Candidate(f"end repair: {', '.join(names)}", "end repair", {"columns": names}, f"stop repairing {', '.join(names)}, which the feed sends right again")
        for names in groups
        if len(names) > 1
    ]
    singles = [
        Candidate(f"end repair: {repair.column}", "end repair", {"columns": [repair.column]}, f"stop applying {repair.column} = {repair.expression}") for repair in active
    ]
    if len(columns) > 1 and columns not in groups:
        # A feed is usually mended as it broke: all columns at once.
        together.append(Candidate("end repair: all", "end repair", {"columns": columns}, f"stop repairing {', '.join(columns)}"))
    return [*together, *singles]


def _retrainings(since: datetime | None) -> list[Candidate]:
    found = [Candidate("retrain on everything", "retrain", {"window": "all"}, "learn again from all data")]
    for days in RECENT_DAYS:
        found.append(Candidate(f"retrain on {days} days", "retrain", {"window": f"recent {days}d"}, f"learn again from the last {days} days only"))
    if since is not None:
        found.append(Candidate(f"retrain since {since:%Y-%m-%d}", "retrain", {"window": "since", "since": stamp(since)}, "learn only from what came after the change"))
    return found


def _alternative(other: Mapping[str, Any], kind: str) -> Candidate:
    name = str(other["name"])
    action: Action = "edit rule" if kind == "rules" else "change model"
    if other.get("action") in ACTIONS:
        action = other["action"]
    detail = {key: value for key, value in other.items() if key not in ("action", "sentence")}
    said = {"fallback": f"let {name} answer", "edit rule": f"use the table {name}"}.get(action, f"use {name} in its place")
    return Candidate(f"{action}: {name}", action, detail, str(other.get("sentence", said)))


def plain(repair: Repair) -> dict[str, Any]:
    """Return a repair as plain values, times as text."""
    return {
        "column": repair.column,
        "expression": repair.expression,
        "inverse": repair.inverse,
        "since": stamp(repair.since),
        "until": None if repair.until is None else stamp(repair.until),
        "reason": repair.reason,
    }
