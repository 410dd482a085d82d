"""What MLflow's clients keep beside runs: experiments, datasets, logged models. What they register: `registered.py`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

import msgspec

from palan.runs.search import Both, Condition, Field, Not, Order


class Experiment(msgspec.Struct, frozen=True):
    """What runs of one subject belong to: its name is their `subject`, its number what MLflow's clients call it by."""

    number: int
    name: str
    time: datetime
    updated: datetime
    deleted: datetime | None = None
    tags: Mapping[str, str] = {}


class Input(msgspec.Struct, frozen=True):
    """What a run read or made: a "dataset", a "model" that it used, or an "output", a model that it logged."""

    KEY: ClassVar[tuple[str, ...]] = ("run", "kind", "name", "digest")

    run: str
    kind: str
    name: str
    digest: str
    about: Mapping[str, Any] = {}


class ModelMetric(msgspec.Struct, frozen=True):
    """The last value of a metric that a run measured of a logged model, on a dataset if it says so. `time` is in milliseconds."""

    key: str
    value: str
    time: int
    step: int
    run: str
    dataset: str = ""
    digest: str = ""

    @property
    def number(self) -> float:
        """The value: kept as text, because it may be NaN or infinite."""
        return float(self.value)


class LoggedModel(msgspec.Struct, frozen=True):
    """A model that was logged with MLflow 3; `status` is PENDING, READY or FAILED."""

    id: str
    experiment: int
    name: str
    kind: str
    run: str
    status: str
    time: datetime
    updated: datetime
    deleted: datetime | None = None
    reason: str = ""
    tags: Mapping[str, str] = {}
    params: Mapping[str, str] = {}
    metrics: tuple[ModelMetric, ...] = ()


Found = str | float | None
Look = Callable[[Field], Found | tuple[float, ...]]
"""Returns what a field is for one thing, None where it has none; several numbers where one of them is enough."""


def holds(where: Condition | None, look: Look) -> bool:
    """Tell whether a condition holds for one thing. A comparison with something that it does not have is false."""
    match where:
        case None:
            return True
        case Not(item):
            return not holds(item, look)
        case Both(items, every):
            return (all if every else any)(holds(item, look) for item in items)
    found = look(where.field)
    if where.op == "null":
        return found is None
    if found is None:
        return False
    if isinstance(found, tuple):
        return any(_compared(each, where.op, value) for each in found for value in where.values)
    if where.op in ("like", "ilike"):
        pattern = "".join(".*" if part == "%" else "." if part == "_" else re.escape(part) for part in re.split("([%_])", str(where.values[0])))
        return re.fullmatch(pattern, str(found), re.DOTALL | (re.IGNORECASE if where.op == "ilike" else 0)) is not None
    return any(_compared(found, where.op, value) for value in where.values)


def _compared(found: str | float, op: str, value: Any) -> bool:
    if not isinstance(found, str):
        try:
            value = float(value)
        except (TypeError, ValueError):
            return False
    else:
        value = str(value)
    match op:
        case "=" | "in":
            return bool(found == value)
        case "!=":
            return bool(found != value)
        case "<":
            return bool(found < value)
        case "<=":
            return bool(found <= value)
        case ">":
            return bool(found > value)
        case _:
            return bool(found >= value)


def ordered(things: Sequence[Any], order: Sequence[Order], look: Callable[[Any, Field], str | float | None]) -> list[Any]:
    """Return things in the order of several keys; what lacks a key comes last, whatever the direction."""
    found = list(things)
    for each in reversed(order):
        having = [thing for thing in found if look(thing, each.field) is not None]
        lacking = [thing for thing in found if look(thing, each.field) is None]
        having.sort(key=lambda thing: look(thing, each.field), reverse=each.descending)  # type: ignore[arg-type, return-value]
        found = having + lacking
    return found
