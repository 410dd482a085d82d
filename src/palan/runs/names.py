"""Names that mean the same in every run, whatever made it: so runs of all kinds are searched alike.

What is measured: `objective`, `bound`, `gap`, `incumbents`, `rules fired`, `return`, `length`. Parameters: `instance`, `seed`.
Tags: `status` (how the work ended, in the words of a decision's status), `solver`.
"""

from __future__ import annotations

from math import isfinite

OBJECTIVE = "objective"
BOUND = "bound"
GAP = "gap"
INCUMBENTS = "incumbents"
RULES_FIRED = "rules fired"
RETURN = "return"
LENGTH = "length"

INSTANCE = "instance"
SEED = "seed"

STATUS = "status"
SOLVER = "solver"

RESERVED = (OBJECTIVE, BOUND, GAP, INCUMBENTS, RULES_FIRED, RETURN, LENGTH, INSTANCE, SEED, STATUS, SOLVER)


def of_a_solve(objective: float | None, bound: float | None, incumbents: int | None = None) -> dict[str, float]:
    """Return what is known of a solve under its names: only what is finite, and the gap where both ends of it are."""
    known = {OBJECTIVE: objective, BOUND: bound}
    found = {name: float(value) for name, value in known.items() if value is not None and isfinite(value) and abs(value) < 1e20}
    if len(found) == len(known):
        found[GAP] = abs(found[OBJECTIVE] - found[BOUND]) / max(abs(found[OBJECTIVE]), 1e-9)
    return found if incumbents is None else {**found, INCUMBENTS: float(incumbents)}
