"""One delivery and what came before it, as every check of a delivery looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray

from palan.data.nouns import Repair
from palan.data.relations import Floats

Flags = NDArray[np.bool_]

ALWAYS = datetime(1, 1, 1, tzinfo=UTC)
"""Since when a fault of rows without a time has been there: as long as the rows."""

BLOCKS = 12
"""Stretches of the history that are compared with one another: what they do among themselves is healthy."""

CATEGORIES = 500
"""Different values of a text column, beyond which it names single things."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Healthy rows, oldest first, and the rows in question, in the order of their time where they have one."""

    history: pl.DataFrame
    batch: pl.DataFrame
    time: str | None

    @property
    def block(self) -> NDArray[np.int64]:
        """The stretch that each row of the history is in."""
        return np.arange(self.history.height) * BLOCKS // max(self.history.height, 1)

    @property
    def numbers(self) -> list[str]:
        return [name for name in self._both if all(frame.schema[name].is_numeric() for frame in (self.history, self.batch))]

    @property
    def words(self) -> list[str]:
        return [name for name in self._both if all(is_text(frame.schema[name]) for frame in (self.history, self.batch))]

    @property
    def _both(self) -> list[str]:
        return [name for name in self.batch.columns if name in self.history.columns and name != self.time]

    def since(self, row: int) -> datetime:
        """Return the time of a row of the batch, from which a fault that begins there holds."""
        if self.time is None or not self.batch.height:
            return ALWAYS
        found: datetime | None = self.batch[self.time][row]
        return ALWAYS if found is None else found


def matrix(frame: pl.DataFrame, names: Sequence[str]) -> Floats:
    """Return columns of numbers as rows x columns, NaN where there is none."""
    rows = frame.select(pl.col(name).cast(pl.Float64) for name in names).to_numpy().astype(np.float64)
    rows[~np.isfinite(rows)] = np.nan
    return rows


def is_text(dtype: pl.DataType) -> bool:
    return dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum)


def quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def best_start(gain: Floats) -> tuple[int, float]:
    """Return the row from which on to the end the gain is largest, and that gain."""
    if not len(gain):
        return 0, 0.0
    sums = np.cumsum(gain[::-1])[::-1]
    start = int(np.argmax(sums))
    return start, float(sums[start])


def mapping(column: str, pairs: Sequence[tuple[str, str]], since: datetime, reason: str) -> Repair:
    """Return the repair that gives new names their old ones back. Of an old value under several names the first is its inverse."""
    cases = " ".join(f"WHEN {literal(new)} THEN {literal(old)}" for new, old in pairs)
    first = {old: new for new, old in reversed(pairs)}
    back = " ".join(f"WHEN {literal(old)} THEN {literal(new)}" for old, new in first.items())
    name = quoted(column)
    return Repair(column, f"CASE {name} {cases} ELSE {name} END", f"CASE {name} {back} ELSE {name} END", since, None, reason)
