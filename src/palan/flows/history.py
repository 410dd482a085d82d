"""What was decided, and what became of it: the log read back, incrementally, as tables."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import msgspec

from palan.core import Field, Schema, digest_of
from palan.flows.project import Project
from palan.stores.contract import Blocks

if TYPE_CHECKING:
    import polars as pl

    from palan.decisions.nouns import Decision, Outcome


class _Read(msgspec.Struct):
    """How far one stream was read, and what was in it."""

    position: dict[str, int] = {}
    items: list[Any] = []


_cache: WeakKeyDictionary[Blocks, dict[str, _Read]] = WeakKeyDictionary()
_tables: WeakKeyDictionary[Blocks, dict[str, tuple[int, Any]]] = WeakKeyDictionary()
_joined: WeakKeyDictionary[Blocks, dict[str, tuple[int, Any]]] = WeakKeyDictionary()
_lock = threading.Lock()

CHUNKS = 32
"""Pieces that a kept table may be in: each piece costs a little at every query, putting them together copies all."""


def decisions(
    project: Project, model: str, *, since: datetime | None = None, until: datetime | None = None
) -> list[Decision]:
    """Return the logged decisions with since <= time < until, in the order in which they were read from the log."""
    from palan.decisions import log

    found = stream(project, f"decisions/{model}", log.decode_decision)
    return [each for each in found if (since is None or each.time >= since) and (until is None or each.time < until)]


def matched(project: Project, model: str, names: Sequence[str], by: str) -> int:
    """Return how many of these names (`by` "key" or "id") are of a decision in the log."""
    wanted, found = set(names), set[str]()
    for each in decisions(project, model):
        own = (each.keys or []) if by == "key" else [f"{each.id}-{row}" for row in range(each.rows)]
        found.update(wanted.intersection(own))
    return sum(name in found for name in names)


def outcomes(project: Project, model: str) -> list[Outcome]:
    """Return what was told of this model's decisions, in the order in which it was read from the log."""
    from palan.decisions import log

    return stream(project, f"outcomes/{model}", log.decode_outcome)


def stream(project: Project, stream: str, decode: Any) -> list[Any]:
    """Return a stream's items; only what was appended since the last call is read and decoded."""
    with _lock:
        read = _cache.setdefault(project.store.blocks, {}).setdefault(stream, _Read())
        for frame in project.store.blocks.scan(stream, read.position):
            read.items.append(decode(frame.data))
            read.position[frame.segment] = frame.end
        return list(read.items)


def schema_of(manifest: Any) -> Schema:
    """Return what a version decides on, as it is logged: what callers send, and what is looked up for its features."""
    sent = sent_schema(manifest)
    looked = manifest.get("features", {}).get("pasts", ())
    return msgspec.structs.replace(sent, fields=(*sent.fields, *(Field(each["name"], each["type"], nullable=True) for each in looked))) if looked else sent


def sent_schema(manifest: Any) -> Schema:
    """Return what callers of a version send."""
    return msgspec.convert(manifest["signature"], Schema)


def frame(
    project: Project, model: str, schema: Schema | None, *, since: datetime | None = None, until: datetime | None = None
) -> pl.DataFrame:
    """Return one row per decided row with inputs as they were sent, outputs and the outcome where it is known.

    Rows that were read before are kept as a table: only what was logged since the last call is laid out anew.
    """
    import polars as pl

    from palan.decisions import log

    name = f"{model} {digest_of(schema)}"
    table = _laid_out(project, name, decisions(project, model), lambda new: log.to_frame(new, (), schema).drop("outcome"))
    told = _laid_out(project, f"{model} outcomes", outcomes(project, model), log.told_frame)
    table = log.with_outcomes(table, told, _last_told(project, name, table, told))
    if since is not None:
        table = table.filter(pl.col("time") >= since)
    if until is not None:
        table = table.filter(pl.col("time") < until)
    return table


def _last_told(project: Project, name: str, table: pl.DataFrame, told: pl.DataFrame) -> pl.Series:
    """Return which outcome was told last of each row; rows and outcomes that were joined before are not joined again."""
    import polars as pl

    from palan.decisions import log

    with _lock:
        known = _joined.setdefault(project.store.blocks, {})
        outcomes: int
        last: pl.Series
        outcomes, last = known.get(name, (0, pl.Series(dtype=pl.UInt32)))
        if last.len() > table.height or outcomes > told.height:  # another thread has read on meanwhile
            return log.last_told(table, told)
        if told.height > outcomes:
            newer = log.last_told(table[: last.len()], told[outcomes:]) + outcomes
            last = pl.select(pl.coalesce(newer, last).cast(pl.UInt32)).to_series()
        if table.height > last.len():
            last = pl.concat([last, log.last_told(table[last.len() :], told).cast(pl.UInt32)])
        known[name] = (told.height, last)
        return last


def _laid_out(project: Project, name: str, items: list[Any], lay_out: Callable[[list[Any]], pl.DataFrame]) -> pl.DataFrame:
    """Return the items as one table; what was laid out before is kept."""
    import polars as pl

    with _lock:
        tables = _tables.setdefault(project.store.blocks, {})
        count: int
        table: pl.DataFrame | None
        count, table = tables.get(name, (0, None))
        if table is None or count < len(items):
            new = lay_out(items[count:])
            if table is None or not table.height:
                table = new
            elif table.schema == new.schema:
                table = table.vstack(new)
            else:
                try:
                    table = pl.concat([table, new], how="diagonal_relaxed")
                except pl.exceptions.PolarsError:  # a column changed its type on the way: lay all of it out again
                    table = lay_out(items)
            if table.n_chunks() > CHUNKS:
                table = table.rechunk()
            tables[name] = (len(items), table)
        return table


def learnable(project: Project, model: str, since: datetime | None = None) -> pl.DataFrame | None:
    """Return answered rows whose outcome is known, with `palan_key`, `palan_time`, `palan_outcome` and the inputs.

    None when nothing was answered yet.
    """
    import polars as pl

    logged = frame(project, model, None, since=since)
    if not logged.height:
        return None
    logged = logged.filter(pl.col("outcome").is_not_null(), pl.col("key").is_not_null()).sort("time")
    return logged.rename({"key": "palan_key", "time": "palan_time", "outcome": "palan_outcome"}).unique(
        "palan_key", keep="last", maintain_order=True
    )
