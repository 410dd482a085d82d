"""How two contracts of a table differ, and what a difference means for rows that are stored and for those who read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from palan.core import Field
from palan.data.contract import OPEN, Band, Column, Contract, band_text, column_text

Kind = Literal["full", "backward", "forward", "breaking", "semantic"]

MEANS: dict[Kind, str] = {
    "full": "rows of before and of now are read alike",
    "backward": "rows of before still hold; who reads may meet what was not there before",
    "forward": "who reads meets nothing new; rows of before may not hold",
    "breaking": "neither holds",
    "semantic": "the same values mean something else",
}


class Change(msgspec.Struct, frozen=True):
    """One difference. `unsafe`: who reads the column may not work with it as it is now."""

    column: str
    text: str
    kind: Kind
    unsafe: bool = False


def changes(old: Contract, new: Contract) -> list[Change]:
    """Return what differs from one contract to the next, column by column, then what is said of the table."""
    found = [change for name in dict.fromkeys([*old.names, *new.names]) for change in _column(old, new, name)]
    return [*found, *_table(old, new)]


def _column(old: Contract, new: Contract, name: str) -> Iterator[Change]:
    if name not in new.names:
        yield Change(name, f"{name} ({column_text(old.field(name))}) is no longer asked for", "breaking", unsafe=True)
        return
    now = new.field(name)
    if name not in old.names:
        kind: Kind = "full" if now.nullable else "forward"
        yield Change(name, f"{name} ({column_text(now)}) is new{'' if now.nullable else ', and deliveries without it are refused'}", kind)
        return
    was = old.field(name)
    if was.type != now.type:
        wider = (was.type, now.type) in (("int", "float"), ("date", "time"))
        yield Change(name, f"{name} is {now.type}, and was {was.type}", "backward" if wider else "breaking", unsafe=not wider)
    if was.nullable != now.nullable:
        yield Change(name, f"{name} may {'now' if now.nullable else 'no longer'} be missing", "backward" if now.nullable else "forward", unsafe=now.nullable)
    if was.unit != now.unit:
        yield Change(name, f"{name} is in {now.unit or 'no unit'}, and was in {was.unit or 'no unit'}", "semantic", unsafe=True)
    if was.type == now.type:
        yield from _values(was, now)
    yield from _more(old.told(name), new.told(name))


def _values(was: Field, now: Field) -> Iterator[Change]:
    name = now.name
    for what, old, new in (("range", (was.minimum, was.maximum), (now.minimum, now.maximum)), ("length", was.length, now.length)):
        if old != new:
            yield Change(name, f"{what} of {name} is {_band(new)}, and was {_band(old)}", _widening(_inside(old, new), _inside(new, old)))
    if was.values != now.values:
        gone, more = [each for each in was.values if each not in now.values], [each for each in now.values if each not in was.values]
        free = not was.values or not now.values
        said = "; ".join(part for part in (f"new: {' '.join(more)}" if more else "", f"gone: {' '.join(gone)}" if gone else "") if part) or "in another order"
        wider = not now.values if free else not gone
        narrower = not was.values if free else not more
        # a value that a model never met is what it cannot decide by
        yield Change(name, f"values of {name}, {said}", _widening(wider, narrower), unsafe=bool(more or not now.values) and bool(was.values))
    if was.pattern != now.pattern:
        yield Change(name, f"{name} matches {now.pattern or 'nothing in particular'}, and matched {was.pattern or 'nothing in particular'}", _widening(not now.pattern, not was.pattern))


def _more(was: Column, now: Column) -> Iterator[Change]:
    name = now.name
    if was.meaning != now.meaning and was.meaning and now.meaning:
        yield Change(name, f'{name} means "{now.meaning}", and meant "{was.meaning}"', "semantic", unsafe=True)
    elif was.meaning != now.meaning:
        yield Change(name, f"the meaning of {name} is {'written down' if now.meaning else 'no longer written down'}", "full")
    pairs: tuple[tuple[str, Any, Any], ...] = (("unique", was.unique, now.unique), ("rising", was.rising, now.rising))
    for what, old, new in pairs:
        if old != new:
            yield Change(name, f"{name} {'has' if new else 'no longer has'} to be {what}", "forward" if new else "backward")
    if was.of != now.of:
        yield Change(name, f"{name} is of {now.of or 'no other table'}, and was of {was.of or 'none'}", _widening(not now.of, not was.of))
    if (was.nulls, was.mean, was.quantiles, was.shares, was.severity) != (now.nulls, now.mean, now.quantiles, now.shares, now.severity):
        yield Change(name, f"bands or severities of {name} are others", "full")


def _table(old: Contract, new: Contract) -> Iterator[Change]:
    if old.key != new.key:
        yield Change("", f"the key is {', '.join(new.key) or 'none'}, and was {', '.join(old.key) or 'none'}", "breaking", unsafe=True)
    if old.time != new.time:
        yield Change("", f"the time is {new.time or 'none'}, and was {old.time or 'none'}", "breaking", unsafe=True)
    for check in (*old.checks, *new.checks):
        if (check in old.checks) != (check in new.checks):
            yield Change("", f"check {check} {'is new' if check in new.checks else 'is gone'}", "forward" if check in new.checks else "backward")
    if (old.rows, old.fresh, old.severity) != (new.rows, new.fresh, new.severity):
        yield Change("", "rows, fresh or severities are others", "full")


def _inside(inner: Band, outer: Band) -> bool:
    (low, high), (least, most) = inner, outer
    return (least is None or (low is not None and low >= least)) and (most is None or (high is not None and high <= most))


def _widening(wider: bool, narrower: bool) -> Kind:
    if wider and narrower:
        return "full"
    return "backward" if wider else "forward" if narrower else "breaking"


def _band(band: Band) -> str:
    return "open" if band == OPEN else band_text(band)
