"""Every SQL statement that palan runs, by name. Identifiers come from the nouns' own fields; values are always bound."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import msgspec

from palan.core import stamp, unstamp
from palan.errors import Corrupt

TAKE_LEASE = """
insert into lease (name, holder, token, expires) values (:name, :holder, 1, :expires)
on conflict (name) do update set
  token = case when lease.holder = :holder then lease.token else lease.token + 1 end,
  holder = :holder,
  expires = :expires
where lease.holder = :holder or lease.expires <= :now
returning token
"""
FREE_LEASE = "update lease set holder = '', expires = '' where name = :name and token = :token"

Encode = Callable[[Any], Any]


class Table(msgspec.Struct, frozen=True):
    """How one noun lies in its table: the statements, and a codec per column."""

    name: str
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    encoders: tuple[Encode, ...]
    decoders: tuple[Encode, ...]
    insert: str
    replace: str
    insert_new: str
    swap: str
    select: str

    def row(self, noun: object) -> list[Any]:
        return [encode(getattr(noun, column)) for column, encode in zip(self.columns, self.encoders, strict=True)]

    @property
    def key(self) -> str:
        return self.keys[0]

    def bind(self, column: str, value: object) -> Any:
        return self.encoders[self.columns.index(column)](value)


def _same(value: Any) -> Any:
    return value


def _only(*kinds: type) -> Encode:
    """Return what lets a value of these kinds through: a column of SQLite may hold any."""

    def decode(value: Any) -> Any:
        if type(value) not in kinds:
            raise TypeError(f"{value!r:.40} is not {' or '.join(kind.__name__ for kind in kinds)}")
        return value

    return decode


def _codec(hint: Any) -> tuple[Encode, Encode]:
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    plain = {part for part in (typing.get_args(hint) if union else (hint,)) if part is not type(None)}
    if plain == {datetime}:
        return (lambda v: None if v is None else stamp(v)), (lambda v: None if v is None else unstamp(v))
    if plain == {bool}:
        return _same, (lambda v: None if v is None else bool(v))
    if plain <= {str, int, float, bytes}:
        return _same, _only(*plain, *([type(None)] if union else []))
    if typing.get_origin(hint) is typing.Literal:
        return _same, _same
    encoder, decoder = msgspec.json.Encoder(), msgspec.json.Decoder(hint)

    def encode(value: Any) -> str:
        text = encoder.encode(value)
        decoder.decode(text)  # what could not be read back (a NaN among numbers) is refused now, not for ever after
        return text.decode()

    return encode, decoder.decode


def table(noun: type) -> Table:
    """Return the table of a noun, worked out once."""
    return _table(noun)


@cache
def _table(noun: Any) -> Table:
    """Return the table of a noun: its class name in snake case, its first field the key, or the fields that its `KEY` names."""
    fields = msgspec.structs.fields(noun)
    columns = tuple(field.name for field in fields)
    codecs = [_codec(field.type) for field in fields]
    name, keys = re.sub(r"(?<!^)([A-Z])", r"_\1", noun.__name__).lower(), getattr(noun, "KEY", columns[:1])
    marks = ", ".join("?" * len(columns))
    insert = " ".join(["insert into", name, "(", ", ".join(columns), ") values (", marks, ")"])
    update = ", ".join(f"{column} = excluded.{column}" for column in columns if column not in keys)
    assign = ", ".join(f"{column} = ?" for column in columns)
    return Table(
        name=name,
        keys=keys,
        columns=columns,
        encoders=tuple(encode for encode, _ in codecs),
        decoders=tuple(decode for _, decode in codecs),
        insert=insert,
        replace=" ".join([insert, "on conflict (", ", ".join(keys), ") do update set", update]),
        insert_new=" ".join([insert, "on conflict do nothing"]),
        swap=" ".join(["update", name, "set", assign, "where", keys[0], "= ? and epoch = ?"]),
        select=" ".join(["select", ", ".join(columns), "from", name]),
    )


def find(
    of: Table,
    where: dict[str, object],
    order: str,
    limit: int | None,
    since: datetime | None,
    until: datetime | None,
) -> tuple[str, list[Any]]:
    """Return the statement and its values for `Records.find`."""
    clauses: list[str] = []
    values: list[Any] = []

    def clause(column: str, test: str, bound: Iterable[Any]) -> None:
        clauses.append(f"{column} {test}")
        values.extend(bound)

    for column, value in where.items():
        if column not in of.columns:
            raise TypeError(f"{of.name} has no field {column}")
        if value is None:
            clause(column, "is null", [])
        elif isinstance(value, list | tuple):
            marks = ", ".join("?" * len(value))
            clause(column, f"in ({marks})", [of.bind(column, each) for each in value])
        else:
            clause(column, "= ?", [of.bind(column, value)])
    if since is not None:
        clause("time", ">= ?", [stamp(since)])
    if until is not None:
        clause("time", "< ?", [stamp(until)])
    by = order.lstrip("-") or of.key
    if by not in of.columns:
        raise TypeError(f"{of.name} has no field {by}")
    direction = " desc" if order.startswith("-") else ""
    ordered = [f"{name}{direction}" for name in dict.fromkeys((by, *of.keys))]
    parts = [of.select]
    if clauses:
        parts += ["where", " and ".join(clauses)]
    parts += ["order by", ", ".join(ordered)]
    if limit is not None:
        parts.append("limit ?")
        values.append(limit)
    return " ".join(parts), values


PAGE = 500
"""How many rows a walk holds in memory at a time."""


def page(of: Table, after: object = None) -> tuple[str, list[Any]]:
    """Return the statement, and its values, for the rows that follow the key `after`, in the order of their keys."""
    where, values = (f"where {of.key} > ?", [after]) if after is not None else ("", [])
    return f"{of.select} {where} order by {of.key} limit {PAGE}", values


def build(noun: type, of: Table, row: Sequence[Any]) -> Any:
    """Return the noun that a row holds.

    Raises:
        Corrupt: a value is not of the kind that is written there.
    """
    column = of.columns[0]
    try:
        values = {}
        for column, decode, value in zip(of.columns, of.decoders, row, strict=True):
            values[column] = decode(value)
        return noun(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise Corrupt(f'the {of.name} "{row[0]}" is damaged at {column}: {error}', "restore palan.db from a backup") from error
