"""The decision log: how decisions and outcomes are written as frames, and read back as one table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, repeat
from typing import Any

import msgspec
import numpy as np
import polars as pl

from palan.core import Schema
from palan.data.inputs import DTYPES
from palan.decisions.nouns import Decision, Outcome

_encoder = msgspec.msgpack.Encoder()
_decisions = msgspec.msgpack.Decoder(Decision)
_outcomes = msgspec.msgpack.Decoder(Outcome)

_ROW = re.compile(r"(?:\brow |\[)(\d+)\]?$")

META = ("id", "key", "time", "version", "epoch", "arm", "propensity", "status")
"""The columns that every row of the log has, before its inputs and outputs."""


def encode(noun: Decision | Outcome) -> bytes:
    """Return the frame of a decision or an outcome: msgpack, times as timestamps."""
    return _encoder.encode(noun)


def decode_decision(data: bytes) -> Decision:
    return _decisions.decode(data)


def decode_outcome(data: bytes) -> Outcome:
    return _outcomes.decode(data)


def decisions_between(frames: Iterable[bytes], since: datetime | None = None, until: datetime | None = None) -> list[Decision]:
    """Decode the decisions with since <= time < until."""
    found = map(_decisions.decode, frames)
    return [each for each in found if (since is None or each.time >= since) and (until is None or each.time < until)]


def told(outcomes: Iterable[Outcome]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the outcome of each decision id and of each caller's key; the last one told counts."""
    by_id: dict[str, Any] = {}
    by_key: dict[str, Any] = {}
    for each in outcomes:
        by_id.update((name, value) for name, value in zip(each.ids, each.values, strict=False) if name)
        by_key.update((name, value) for name, value in zip(each.keys, each.values, strict=False) if name)
    return by_id, by_key


def to_frame(decisions: Sequence[Decision], outcomes: Sequence[Outcome] = (), schema: Schema | None = None) -> pl.DataFrame:
    """Return one row per decided row: `META`, the inputs, the outputs, `degraded`, `violations` (count) and `outcome`.

    The outcome is the last one told for the row's id or for its key, null while none is known. With `schema` the inputs
    have its exact dtypes. An input or output whose name is taken by another column is called `input.NAME` or
    `output.NAME`. For instances (`schema.shape` is "instance") there is one row a decision; the documents stay in the
    decisions, and objective, bound and KPIs (`kpi.NAME`) stand in their place.
    """
    instances = schema is not None and schema.shape == "instance"
    rows = np.fromiter((each.rows for each in decisions), dtype=np.int64, count=len(decisions))
    total = int(rows.sum())
    owner = np.repeat(np.arange(len(decisions)), rows)
    place = np.arange(total) - np.repeat(np.cumsum(rows) - rows, rows)

    def spread(name: str, values: Sequence[Any], dtype: pl.DataType) -> pl.Series:
        return pl.Series(name, values, dtype=dtype).gather(owner)

    series = [
        spread("id", [each.id for each in decisions], pl.String()) + "-" + pl.Series(place).cast(pl.String),
        pl.Series("key", list(chain.from_iterable(each.keys or repeat(None, each.rows) for each in decisions)), dtype=pl.String()),
        spread("time", [each.time.astimezone(UTC) for each in decisions], pl.Datetime("us", "UTC")),
        spread("version", [each.version for each in decisions], pl.String()),
        spread("epoch", [each.epoch for each in decisions], pl.Int64()),
        spread("arm", [each.arm for each in decisions], pl.String()),
        spread("propensity", [each.propensity for each in decisions], pl.Float64()),
        spread("status", [each.status for each in decisions], pl.String()),
    ]
    taken = set(META) | {"degraded", "violations", "outcome"}
    if instances:
        for name in ("objective", "bound"):
            series.append(pl.Series(name, [each.result.get(name) for each in decisions], dtype=pl.Float64(), strict=False))
        kpis = [each.result.get("kpis") or {} for each in decisions]
        series += [pl.Series(f"kpi.{name}", [each.get(name) for each in kpis], dtype=pl.Float64(), strict=False) for name in dict.fromkeys(chain.from_iterable(kpis))]
    else:
        types = {each.name: DTYPES.get(each.type) for each in schema.fields} if schema else {}
        for prefix, parts in (("input", [each.inputs for each in decisions]), ("output", [each.outputs for each in decisions])):
            for name, values in _stacked(parts, decisions).items():
                label = f"{prefix}.{name}" if name in taken else name
                taken.add(label)
                series.append(_series(label, values, types.get(name) if prefix == "input" else None))
    series.append(spread("degraded", [each.degraded for each in decisions], pl.String()))
    series.append(_violations(decisions, rows, total))
    return with_outcomes(pl.DataFrame(series), told_frame(outcomes))


def told_frame(outcomes: Sequence[Outcome]) -> pl.DataFrame:
    """Return one row per outcome that was told, in order: `by_id`, `by_key` ("" where it was not by that), `value`."""
    values = list(chain.from_iterable(each.values for each in outcomes))
    return pl.DataFrame(
        [
            pl.Series("by_id", list(chain.from_iterable(each.ids or repeat("", len(each.values)) for each in outcomes)), dtype=pl.String),
            pl.Series("by_key", list(chain.from_iterable(each.keys or repeat("", len(each.values)) for each in outcomes)), dtype=pl.String),
            _series("value", values, None),
        ]
    )


def with_outcomes(frame: pl.DataFrame, told: pl.DataFrame, last: pl.Series | None = None) -> pl.DataFrame:
    """Return the rows with `outcome` as it was told last (`last_told`), null where nothing was."""
    if not told.height:
        return frame.with_columns(outcome=pl.lit(None))
    return frame.with_columns(told["value"].gather(last_told(frame, told) if last is None else last).alias("outcome"))


def last_told(frame: pl.DataFrame, told: pl.DataFrame) -> pl.Series:
    """Return for each row which outcome was told last of it, by its id or by its key; null where none was."""
    rows = frame.lazy().select("id", "key").with_row_index("row")
    found = []
    for by, name in (("by_id", "id"), ("by_key", "key")):
        table = told.lazy().with_row_index("told").filter(pl.col(by) != "")
        if told.height > frame.height:  # of a year's outcomes only those of these rows need be grouped
            table = table.join(rows, left_on=by, right_on=name, how="semi")
        found.append(rows.join(table.group_by(by).agg(pl.col("told").max()), left_on=name, right_on=by).select("row", "told"))
    last = pl.concat(found).group_by("row").agg(pl.col("told").max()).collect()
    return pl.repeat(None, frame.height, dtype=pl.UInt32, eager=True).scatter(last["row"], last["told"])


def _stacked(parts: Sequence[Any], decisions: Sequence[Decision]) -> dict[str, list[Any]]:
    """Lay the columns of all decisions end to end; a column that a decision lacks is null in its rows."""
    tables: list[Mapping[str, list[Any]]] = [part if isinstance(part, dict) else {"output": part} if part is not None else {} for part in parts]
    names = dict.fromkeys(chain.from_iterable(tables))
    # A failed batch has inputs and no outputs; a constant broadcast by mistake must not shift the rows of others.
    return {name: list(chain.from_iterable(_column(table.get(name), each.rows) for table, each in zip(tables, decisions, strict=True))) for name in names}


def _column(values: Any, rows: int) -> Iterable[Any]:
    return values if isinstance(values, list) and len(values) == rows else repeat(None, rows)


def _series(name: str, values: list[Any], dtype: pl.DataType | None) -> pl.Series:
    if dtype is not None:
        # msgpack has no date of its own: it comes back as ISO text.
        return pl.Series(name, values, dtype=pl.String()).str.to_date() if dtype == pl.Date and any(isinstance(value, str) for value in values) else pl.Series(name, values, dtype=dtype, strict=False)
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {int, float}:
        return pl.Series(name, values, dtype=pl.Float64(), strict=False)
    if kinds == {datetime}:
        return pl.Series(name, values, dtype=pl.Datetime("us", "UTC"))
    if len(kinds) > 1 or kinds & {dict, list}:  # a document a row: as columns it would be a column for every name in it
        return pl.Series(name, [None if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode() for value in values], dtype=pl.String())
    try:
        return pl.Series(name, values, dtype=None if kinds else pl.Null(), strict=True)
    except TypeError:  # whole numbers of which some fit 64 bits only with a sign, others only without
        return pl.Series(name, values, dtype=pl.Int128())


def _violations(decisions: Sequence[Decision], rows: np.ndarray[Any, Any], total: int) -> pl.Series:
    """Count violations per row: `where` ends in the row's number ("row 3", "output[3]"); any other place counts for row 0."""
    counts = np.zeros(total, dtype=np.int64)
    starts = np.cumsum(rows) - rows
    for index, each in enumerate(decisions):
        for violation in each.violations:
            place = _ROW.search(str(violation.get("where", "")))
            row = int(place[1]) if place else 0
            if row < each.rows:
                counts[starts[index] + row] += 1
    return pl.Series("violations", counts)
