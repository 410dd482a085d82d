"""Runs side by side, as plain values: which of their values tell them apart, and which repeat one another with another seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import msgspec

from palan.core import natural
from palan.runs.search import Both, Compare, Condition, Field, Not, Order

Told = Mapping[str, Any]
"""A run as `palan runs --json` has it: {"run", "params", "metrics", "tags", ...}."""

SEED = "seed"
"""The parameter that tells repetitions of one and the same trial apart."""


def value_of(run: Told, column: str) -> Any:
    """Return what a run has for "metrics.loss" or "params.lr", None where it lacks it."""
    kind, _, key = column.partition(".")
    return run[kind].get(key)


def asked(where: Condition | None, order: Sequence[Order] = ()) -> list[str]:
    """Return the columns that a search is about, in the order in which they are named."""
    named = [*fields_of(where), *(each.field for each in order)]
    return list(dict.fromkeys(f"{field.kind}s.{field.key}" for field in named if field.kind != "attribute"))


def fields_of(where: Condition | None) -> Iterable[Field]:
    """Yield all that a search is about."""
    match where:
        case Compare(field):
            yield field
        case Not(item):
            yield from fields_of(item)
        case Both(items):
            for each in items:
                yield from fields_of(each)


def columns(runs: Sequence[Told], first: Sequence[str] = ()) -> list[str]:
    """Return the params and metrics that runs have, those that matter first: what was asked for, then what differs.

    Of those that differ metrics and parameters take turns, those that most runs have first; what some lack and is the same in
    the others comes after them.
    """
    ranked: dict[str, list[tuple[int, int, str]]] = {}
    for kind in ("metrics", "params"):
        found: dict[str, list[Any]] = {}
        for run in runs:
            for key, value in run[kind].items():
                found.setdefault(key, []).append(value)
        ranked[kind] = [(_sameness(found[key], len(runs)), -len(found[key]), f"{kind}.{key}") for key in sorted(found, key=natural)]
        ranked[kind].sort(key=lambda each: each[:2])
    every = {name for each in ranked.values() for _, _, name in each}
    turns = [each for same in (0, 1, 2) for pair in zip_longest(*([name for rank, _, name in each if rank == same] for each in ranked.values())) for each in pair if each]
    return list(dict.fromkeys([*(name for name in first if name in every or name.startswith("tags.")), *turns]))


def _sameness(values: Sequence[Any], runs: int) -> int:
    """Return 0 for values that differ, 1 for one that some runs lack, 2 for one that all share; of a single run nothing is shared."""
    if runs == 1 or any(value != values[0] for value in values):
        return 0
    return 1 if len(values) < runs else 2


class Repeated(msgspec.Struct, frozen=True):
    """Runs that share every parameter but the seed. `params` are those that tell the group from the others."""

    params: Mapping[str, str | None]
    runs: Mapping[str, Told]  # seed -> run, the first one of a seed


def repeated(runs: Sequence[Told]) -> list[Repeated]:
    """Return groups of runs that are repetitions of one another, in the order of their first run; runs without a seed are in none."""
    groups: dict[tuple[tuple[str, str], ...], dict[str, Told]] = {}
    for run in runs:
        if SEED in run["params"]:
            rest = tuple(sorted((key, value) for key, value in run["params"].items() if key != SEED))
            groups.setdefault(rest, {}).setdefault(run["params"][SEED], run)
    shared = set.intersection(*(set(each) for each in groups)) if groups else set()
    names = sorted({key for each in groups for key, value in each if (key, value) not in shared}, key=natural)
    return [Repeated({name: dict(rest).get(name) for name in names}, seeds) for rest, seeds in groups.items()]
