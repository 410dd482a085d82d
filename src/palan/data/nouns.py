"""Data as the store keeps it: immutable versions made of parts, and the rows that broke a rule."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec


class DataVersion(msgspec.Struct, frozen=True):
    """One immutable state of a named table: the blobs of its Parquet `parts`, in order, without the rows that `masks` hide.

    A mask is a blob of row numbers, counted from 0, as little-endian 32-bit integers. Where `masks` is None, as in versions
    of before there were any, of the rows with one key the last one counts.
    """

    id: str
    data: str
    number: int
    time: datetime
    parts: tuple[str, ...]
    rows: int
    added: int
    run: str
    sources: Mapping[str, str] = {}  # file name -> digest: ingested once
    verdict: Mapping[str, Any] = {}
    masks: Mapping[str, tuple[str, ...]] | None = None

    @property
    def ref(self) -> str:
        return f"{self.data}@{self.number}"


class Quarantine(msgspec.Struct, frozen=True):
    """Rows of one ingested file that broke a rule: a Parquet blob with the rows, their line and their reasons.

    `reason` is why a person decided so, "" where a delivery or a changed contract did. Of rows that a person took in,
    `taken` is the part of the table where they stand, and `palan_row` in the blob where in it.
    """

    id: str
    data: str
    time: datetime
    source: str
    blob: str
    rows: int
    reasons: Mapping[str, int]
    status: str = "open"  # open | fixed | accepted | dropped | repaired
    taken: str = ""
    reason: str = ""


class Repair(msgspec.Struct, frozen=True):
    """An invertible change that puts a column right: `expression` is Polars SQL over the broken row."""

    column: str
    expression: str
    inverse: str
    since: datetime
    until: datetime | None = None
    reason: str = ""
