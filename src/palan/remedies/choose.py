"""Which remedy is worth it: the largest gain, net of its cost, that the evidence vouches for.

Each candidate was replayed over the same held-back decisions as "nothing". The one with the best estimate is often the
luckiest; the one with the best lower bound, corrected for how many were tried, is one to act on. When no lower bound
is above zero, the answer is to do nothing, and to say why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from palan.core import figure
from palan.errors import PalanError
from palan.gates.paired import FEWEST_BLOCKS, between, gained, interval
from palan.remedies.menu import COSTS, NOTHING, Candidate


class Trial(msgspec.Struct, frozen=True):
    """A candidate as replay measured it.

    `losses`: shape (n,), its loss minus the loss of doing nothing on each held-back decision (negative: it helps);
    empty where it could not be tried. `days`: shape (n,), the day of each decision. `refused`: the gate it failed, in
    a sentence, or empty. `seconds`: what the trial took.
    """

    candidate: Candidate
    losses: npt.ArrayLike = ()
    days: Sequence[Any] | npt.NDArray[Any] | None = None
    seconds: float = 0.0
    refused: str = ""


class Choice(msgspec.Struct, frozen=True):
    """The chosen candidate, the table of all of them (plain values, best first) and the reason in a sentence or two.

    `gain` is what it is expected to gain a decision before its cost, `net_low` what of that is vouched for after it.
    """

    candidate: Candidate
    reason: str
    rows: tuple[Mapping[str, Any], ...]
    gain: float = 0.0
    net_low: float = 0.0

    @property
    def name(self) -> str:
        return self.candidate.name


def cost_of(candidate: Candidate, costs: Mapping[str, float]) -> float:
    """Return what an action costs per decision over the horizon, in the model's own loss."""
    return float(sum(costs.get(part, 0.0) for part in COSTS[candidate.action]))


def choose(
    trials: Sequence[Trial],
    *,
    costs: Mapping[str, float] | None = None,
    horizon_decisions: float = 0.0,
    confidence: float = 0.9,
    seed: int = 0,
    method: str = "t",
    presumed: Sequence[str] = (),
    unit: str = "",
) -> Choice:
    """Choose the trial with the largest lower bound of gain minus cost, or nothing.

    Args:
        trials: in the order of the menu; "nothing" may be among them or not.
        costs: review, train and switch, per decision over the horizon, in the unit of the loss.
        horizon_decisions: how many decisions the remedy is expected to serve; only for the totals that are shown.
        confidence: the chance that no candidate is chosen which is not worth its cost, over all candidates together
            (Bonferroni). Days are the blocks, and neighbours may resemble each other: see gates.paired.interval.
        method: "t", or "bootstrap" over days with `seed`.
        presumed: names of candidates that bear no burden of proof, the best first: ending a repair whose reason is gone.
            Where nothing surely pays, the first of them that does not surely harm is chosen.
        unit: what the loss counts, such as minutes; only for the sentence.

    Raises:
        PalanError: an unknown cost, a confidence outside (0.5, 1), or trials that were not made on the same decisions.
    """
    costs = costs or {}
    unknown = sorted(set(costs) - {"review", "train", "switch"})
    if unknown:
        raise PalanError(f'there is no cost "{unknown[0]}"', "costs are: review, train, switch")
    if not 0.5 < confidence < 1.0:
        raise PalanError(f"a confidence of {confidence:g} is no evidence", "use a confidence between 0.5 and 1, for example 0.9")
    others = [trial for trial in trials if trial.candidate.action != "nothing"]
    tried = [trial for trial in others if np.size(trial.losses)]
    if len({np.size(trial.losses) for trial in tried}) > 1:
        raise PalanError("the candidates were tried on different numbers of decisions", "replay all of them over the same window")
    rows = [_row(trial, costs, horizon_decisions, confidence, max(len(tried), 1), seed, method) for trial in others]
    chosen = max((i for i, row in enumerate(rows) if row["eligible"]), key=lambda i: (rows[i]["net_low"], -i), default=None)
    if chosen is not None and rows[chosen]["net_low"] <= 0.0:
        chosen = None
    excused = _excused(rows, presumed) if chosen is None else None
    if excused is not None:
        rows[excused]["verdict"] = "the reason for the repair is gone, and ending it is not shown to harm"
        table = [{**rows[excused], "chosen": True}, _nothing(False, rows), *({**row, "chosen": False} for i, row in enumerate(rows) if i != excused)]
        return Choice(others[excused].candidate, rows[excused]["verdict"], tuple(table), rows[excused]["gain"] or 0.0, rows[excused]["net_low"] or 0.0)
    ranked = sorted(range(len(rows)), key=lambda i: (i != chosen, not rows[i]["eligible"], -(rows[i]["net_low"] if rows[i]["net_low"] is not None else -np.inf), i))
    table = [{**rows[i], "chosen": i == chosen} for i in ranked]
    table.insert(0 if chosen is None else 1, _nothing(chosen is None, rows))
    if chosen is None:
        return Choice(NOTHING, _why_nothing([row for row in table if row["action"] != "nothing"], confidence, unit), tuple(table))
    best = rows[chosen]
    return Choice(others[chosen].candidate, _why(best, table, len(tried), confidence, horizon_decisions, unit), tuple(table), best["gain"], best["net_low"])


def _excused(rows: Sequence[Mapping[str, Any]], presumed: Sequence[str]) -> int | None:
    """Return the first presumed candidate that was not refused by a gate and does not surely harm."""
    for name in presumed:
        for place, row in enumerate(rows):
            if row["name"] == name and (row["high"] is None or row["high"] > 0.0):
                return place
    return None


def _row(trial: Trial, costs: Mapping[str, float], horizon: float, confidence: float, count: int, seed: int, method: str) -> dict[str, Any]:
    candidate = trial.candidate
    cost = cost_of(candidate, costs)
    row: dict[str, Any] = {
        "name": candidate.name,
        "action": candidate.action,
        "sentence": candidate.sentence,
        "gain": None,
        "low": None,
        "high": None,
        "cost": cost,
        "net_low": None,
        "total": None,
        "decisions": int(np.size(trial.losses)),
        "days": 0,
        "seconds": trial.seconds,
        "eligible": False,
        "verdict": "",
    }
    losses = np.asarray(trial.losses, dtype=np.float64).reshape(-1)
    if not len(losses):
        return row | {"verdict": trial.refused or "not tried: no replay can measure it"}
    if not np.isfinite(losses).all():
        return row | {"verdict": trial.refused or "refused: some of its losses are not finite numbers"}
    found = interval(-losses, trial.days, confidence=1.0 - 2.0 * (1.0 - confidence) / count, serial=trial.days is not None, method=method, seed=seed)
    row |= {"gain": found.mean, "days": found.blocks, "total": (found.mean - cost) * horizon}
    if found.blocks < FEWEST_BLOCKS:
        return row | {"verdict": trial.refused or f"cannot tell: {found.blocks} days of outcomes, {FEWEST_BLOCKS} are needed"}
    row |= {"low": found.low, "high": found.high, "net_low": found.low - cost}
    if trial.refused:
        return row | {"verdict": trial.refused}
    return row | {"eligible": True, "verdict": _verdict(losses, found.mean, found.low, found.high, cost)}


def _verdict(losses: npt.NDArray[np.float64], mean: float, low: float, high: float, cost: float) -> str:
    if not losses.any():
        return "decides exactly as now"
    if low > cost:
        return "worth it"
    if high < 0.0:
        return "makes it worse"
    if high <= cost:
        return "not worth its cost"
    if low > 0.0:
        return "helps, but perhaps not enough for its cost"
    return "may help or may not" if mean > cost else "no gain shown"


def _nothing(chosen: bool, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    decisions = max((row["decisions"] for row in rows), default=0)
    days = max((row["days"] for row in rows), default=0)
    zero: dict[str, Any] = dict.fromkeys(("gain", "low", "high", "cost", "net_low", "total", "seconds"), 0.0)
    return {**zero, "name": NOTHING.name, "action": NOTHING.action, "sentence": NOTHING.sentence, "decisions": decisions, "days": days, "eligible": True, "verdict": "the yardstick", "chosen": chosen}


def _why(best: Mapping[str, Any], table: Sequence[Mapping[str, Any]], count: int, confidence: float, horizon: float, unit: str) -> str:
    after = f" after its cost of {figure(best['cost'], 3)}" if best["cost"] else ""
    among = f", the best of {count} that were tried" if count > 1 else ""
    text = (
        f"{gained(best['gain'], unit)} a decision over {best['days']} held-back days, "
        f"surely at least {figure(best['net_low'], 3)}{after} ({confidence:.0%} confidence{among})"
    )
    if horizon:
        text += f"; that is about {figure(best['total'], 3)} over the next {horizon:,.0f} decisions"
    second = next((row for row in table if row["eligible"] and not row["chosen"] and row["action"] != "nothing"), None)
    if second is not None:
        sure = f"surely at least {figure(second['net_low'], 3)}" if second["net_low"] > 0 else "which may be chance"
        text += f". Next best: {second['name']}, {gained(second['gain'])}, {sure}"
    return text


def _why_nothing(rows: Sequence[Mapping[str, Any]], confidence: float, unit: str) -> str:
    eligible = [row for row in rows if row["eligible"]]
    if not rows:
        return "there is no other candidate"
    if not eligible:
        return f"no candidate can be judged ({rows[0]['name']}: {rows[0]['verdict']})"
    best = max(eligible, key=lambda row: row["gain"] - row["cost"])
    cost = f" before its cost of {figure(best['cost'], 3)}" if best["cost"] else ""
    over = f"the best candidate, {best['name']}, {gained(best['gain'], unit)} a decision{cost} over {best['days']} held-back days"
    if best["gain"] <= best["cost"]:
        return f"no candidate is worth its cost: {over}" if best["gain"] > 0 else f"no candidate gains anything: {over}"
    chance = between(best["net_low"], best["high"] - best["cost"])
    return f"{over}, which may be chance: with {confidence:.0%} confidence over {len(eligible)} candidates it is {chance}" + (" after its cost" if cost else "")
