"""A search as SQL, for both databases: comparisons become lookups of values, and two plans meet runs in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import isqrt, prod
from typing import Any

import msgspec

from palan.runs.search import Both, Compare, Condition, Field, Not, Order
from palan.stores.sql import Table, build, table

_STATS = {"last": "number", "min": "least", "max": "largest"}


class _Part(msgspec.Struct, frozen=True):
    """A piece of a statement and what is bound in it."""

    text: str
    values: tuple[Any, ...] = ()


def searched(
    rows: Callable[[str, list[Any]], list[Any]], noun: Any, where: Condition | None, order: Sequence[Order], after: Sequence[Any], limit: int
) -> list[tuple[Any, list[Any]]]:
    """Carry out `Records.search` with a function that returns the rows of a statement.

    Two plans: begin with what matches the rarest comparison, and sort what is left; or go along the index of the first
    key and look at each until enough are found. Taken is the one that has to look at less, were all comparisons independent.
    """
    of = table(noun)
    told = _and([_condition(of, where)] if where else [])
    along, counts = True, []
    if indexed := _indexed(where):
        every = rows(" ".join(["select count(*) from", of.name]), [])[0][0] or 1
        # Of one comparison alone it is enough to know that it is met by so many that the order is the better way.
        most = isqrt(limit * every) + 1 if len(indexed) == 1 else None
        counts = [rows(*_count(each, most))[0][0] for each in indexed]
        along = min(counts) > limit / max(prod(count / every for count in counts), 1e-12)
    keys = _keys(of, order)
    plans = _plans(of, keys, order, after) if along else [_rare(of, indexed[counts.index(min(counts))], keys, after)]
    found: list[Any] = []
    for plan in plans:
        if len(found) < limit:
            statement, values = plan.statement(of, told)
            found += rows(statement, [*values, limit - len(found)])
    count = len(of.columns)
    return [(build(noun, of, row[:count]), [*row[count:], row[0]]) for row in found]


def _indexed(where: Condition | None) -> list[Compare]:
    """Return the comparisons that all must hold and that an index of values can answer."""
    if isinstance(where, Both) and where.every:
        return [each for item in where.items for each in _indexed(item)]
    ops = ("=", "<", "<=", ">", ">=", "in")
    if isinstance(where, Compare) and where.op in ops and where.field.kind != "attribute" and where.field.stat == "last":
        return [where]
    return []


def _count(compare: Compare, most: int | None) -> tuple[str, list[Any]]:
    part = _matching(compare)
    if most is None:
        return _of_values("count(*)", part.text), list(part.values)
    return " ".join(["select count(*) from (", _of_values("1", part.text), "limit ?) counted"]), [*part.values, most]


def _of_values(what: str, where: str) -> str:
    return " ".join(["select", what, "from value v where", where])


def _matching(compare: Compare, v: str = "v") -> _Part:
    """Return what holds for the rows of `value`, called `v`, that a comparison is about."""
    field, texts = compare.field, [each for each in compare.values if isinstance(each, str)]
    numbers = [each for each in compare.values if not isinstance(each, str)]
    column = _STATS[field.stat]
    tests = []
    if compare.op == "in":
        tests += [_Part(f"{v}.text in ({_marks(texts)})", tuple(texts))] if texts else []
        tests += [_Part(f"{v}.{column} in ({_marks(numbers)})", tuple(numbers))] if numbers else []
    elif compare.op != "null":
        tests.append(_compared(f"{v}.{column if numbers else 'text'}", compare.op, compare.values[0]))
    return _and([_Part(f"{v}.kind = ? and {v}.key = ?", (field.kind, field.key)), *([_any(tests)] if tests else [])])


def _condition(of: Table, where: Condition) -> _Part:
    match where:
        case Not(item):
            part = _condition(of, item)
            return _Part(f"not {part.text}", part.values)
        case Both(items, every):
            parts = [_condition(of, each) for each in items]
            return _and(parts) if every else _any(parts)
        case Compare(Field("attribute", key), op, values):
            return _attribute(of, key, op, values)
        case _:
            part = _matching(where)
            there = _Part(f"exists ({_of_values('1', f'v.{of.name} = {of.name}.id and {part.text}')})", part.values)
            return _Part(f"not {there.text}", there.values) if where.op == "null" else there


def _attribute(of: Table, key: str, op: str, values: Sequence[Any]) -> _Part:
    column = f"{of.name}.{key}"
    if op == "null":
        return _Part(f"({column} is null or {column} = '')")
    bound = [of.bind(key, each) for each in values]
    part = _Part(f"{column} in ({_marks(bound)})", tuple(bound)) if op == "in" else _compared(column, op, bound[0])
    return _Part(f"coalesce({part.text}, false)", part.values) if key in of.nullable else part


def _compared(column: str, op: str, value: Any) -> _Part:
    match op:
        case "like":
            return _Part(f"{column} like ? escape '\\'", (value,))
        case "ilike":
            return _Part(f"lower({column}) like lower(?) escape '\\'", (value,))
        case _:
            return _Part(f"{column} {op} ?", (value,))


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def _and(parts: Sequence[_Part]) -> _Part:
    known = [each for each in parts if each.text]
    return _Part(" and ".join(f"({each.text})" for each in known), tuple(value for each in known for value in each.values))


def _any(parts: Sequence[_Part]) -> _Part:
    return _Part(f"({' or '.join(each.text for each in parts)})", tuple(value for each in parts for value in each.values))


class _Key(msgspec.Struct, frozen=True):
    """What is ordered by: an expression, and whether it falls. What has none comes last."""

    part: _Part
    falls: bool
    nulls: bool = True

    def order(self, place: int) -> str:
        return f"k{place}{' desc' if self.falls else ''}{' nulls last' if self.nulls else ''}"


class _Plan(msgspec.Struct, frozen=True):
    """One way to meet runs in their order: from where, by which keys, under which conditions."""

    source: str
    keys: tuple[_Key, ...]
    conditions: tuple[_Part, ...] = ()

    def statement(self, of: Table, told: _Part) -> tuple[str, list[Any]]:
        columns = [f"{of.name}.{column}" for column in of.columns] + [f"{key.part.text} as k{place}" for place, key in enumerate(self.keys)]
        where = _and([*self.conditions, told])
        order = ", ".join([*(key.order(place) for place, key in enumerate(self.keys)), f"{of.name}.id"])
        text = " ".join(["select", ", ".join(columns), "from", self.source, *(["where", where.text] if where.text else []), "order by", order, "limit ?"])
        return text, [*(value for key in self.keys for value in key.part.values), *where.values]


def _rare(of: Table, compare: Compare, keys: Sequence[_Key], after: Sequence[Any]) -> _Plan:
    """Begin with what matches a comparison; a cross join says so to SQLite."""
    return _Plan(f"value f cross join {of.name}", tuple(keys), (_Part(f"f.{of.name} = {of.name}.id"), _matching(compare, "f"), *_past(of, keys, after)))


def _plans(of: Table, keys: Sequence[_Key], order: Sequence[Order], after: Sequence[Any]) -> Iterator[_Plan]:
    """Yield the statements that together meet everything in order: along an index those that have the first key come first."""
    first = order[0].field if order and order[0].field.kind != "attribute" and order[0].field.stat == "last" else None
    if first is None:
        yield _Plan(of.name, tuple(keys), _past(of, keys, after))
        return
    if not after or after[0] is not None:
        column = "text" if first.kind == "tag" or (first.kind == "param" and order[0].as_text) else "number"
        there = _Part(f"o.{of.name} = {of.name}.id and o.kind = ? and o.key = ? and o.{column} is not null", (first.kind, first.key))
        rest = (_Key(_Part("null"), falls=False, nulls=False), *keys[2:]) if first.kind == "metric" else keys[1:]  # a number is not NaN
        led = (_Key(_Part(f"o.{column}"), keys[0].falls, nulls=False), *rest)
        yield _Plan(f"value o cross join {of.name}", led, (there, *_past(of, led, after)))
    lacking = _Part(f"{keys[0].part.text} is null", keys[0].part.values)
    yield _Plan(of.name, (_Key(_Part("null"), falls=False, nulls=False), *keys[1:]), (lacking, *(_past(of, keys, after) if after and after[0] is None else ())))


def _past(of: Table, keys: Sequence[_Key], after: Sequence[Any]) -> tuple[_Part, ...]:
    """Return the condition to come after a place, told by the values of its keys and its id."""
    if not after:
        return ()
    past = _Part(f"{of.name}.id > ?", (after[-1],))
    for key, value in reversed(list(zip(keys, after[:-1], strict=True))):
        text, values = key.part.text, key.part.values
        if value is None:
            past = _and([_Part(f"{text} is null", values), past])
            continue
        same = _and([_Part(f"{text} = ?", (*values, value)), past])
        beyond = [_Part(f"{text} {'<' if key.falls else '>'} ?", (*values, value))]
        past = _any([*beyond, *([_Part(f"{text} is null", values)] if key.nulls else []), _Part(f"({same.text})", same.values)])
    return (past,)


def _keys(of: Table, order: Sequence[Order]) -> list[_Key]:
    """Return what is ordered by, at last by time, the newest first."""
    keys = []
    for each in order:
        if each.field.kind == "attribute":
            keys.append(_Key(_Part(f"{of.name}.{each.field.key}"), each.descending, each.field.key in of.nullable))
            continue
        metric = ("number", "text") if each.field.stat == "last" else (_STATS[each.field.stat],)  # NaN comes before what is lacking
        for column in {"metric": metric, "param": ("text",) if each.as_text else ("number", "text"), "tag": ("text",)}[each.field.kind]:
            one = _of_values(f"v.{column}", f"v.{of.name} = {of.name}.id and v.kind = ? and v.key = ?")
            keys.append(_Key(_Part(f"({one})", (each.field.kind, each.field.key)), each.descending))
    return [*keys, _Key(_Part(f"{of.name}.time"), falls=True, nulls=False)]
