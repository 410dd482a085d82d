"""What was known before a row: from the tables for rows to learn from, from memory for a request; one definition of both."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from palan.core import Field, digest_of
from palan.data.nouns import DataVersion
from palan.data.past import Known, Past, join_past
from palan.flows import tables
from palan.flows.config import ModelConfig
from palan.flows.journal import Journal
from palan.flows.project import Project

if TYPE_CHECKING:
    import polars as pl


class Looked(msgspec.Struct, frozen=True):
    """A column that is looked up: its name, its type as a contract names it, and what it is."""

    name: str
    type: str
    past: Past

    @property
    def field(self) -> Field:
        return Field(self.name, self.type, nullable=True)  # type: ignore[arg-type]


def looked_of(told: Iterable[Mapping[str, Any]]) -> tuple[Looked, ...]:
    """Read what a worker tells, and a manifest keeps, of the columns that are looked up."""
    return msgspec.convert(list(told), tuple[Looked, ...])


def of(manifest: Mapping[str, Any]) -> tuple[Looked, ...]:
    """Return the columns that a version looks up."""
    return looked_of(manifest.get("features", {}).get("pasts", ()))


def sources(project: Project, journal: Journal, looked: Sequence[Looked]) -> dict[str, DataVersion]:
    """Return the newest version of each table that is looked into."""
    return {name: tables.current(project, name, journal) for name in dict.fromkeys(each.past.table for each in looked)}


def ids(versions: Mapping[str, DataVersion]) -> dict[str, str]:
    """Return what a step that looks into these versions depends on."""
    return {name: version.id for name, version in versions.items()}


def with_pasts(project: Project, rows: pl.DataFrame, time: str, looked: Sequence[Looked], versions: Mapping[str, DataVersion]) -> pl.DataFrame:
    """Return the rows with each column that is looked up: what was known before the time of the row."""

    from palan.data.inputs import DTYPES
    from palan.data.verdict import read_time

    if not looked:
        return rows
    moment = "palan_moment"
    asked = rows.with_columns(read_time(time, rows.schema[time]).alias(moment))
    for each in looked:
        known = _read(project, versions[each.past.table], each.past)
        found = join_past(asked.select(moment, *each.past.by), moment, {each.name: each.past}, {each.past.table: known})
        rows = rows.with_columns(found[each.name].cast(DTYPES[each.type]))
    return rows


def looked_up_now(project: Project, config: ModelConfig, rows: pl.DataFrame, looked: Sequence[Looked]) -> pl.DataFrame:
    """Return what the tables tell now of the time before each recorded row: a column for each that is looked up."""
    time = project.data(config.data).time if config.data else ""
    versions = {name: tables.find_data_version(project, name) for name in {each.past.table for each in looked}}
    return with_pasts(project, rows, time if time in rows.columns else "time", looked, versions).select([each.name for each in looked])


def differences(was: pl.DataFrame, now: pl.DataFrame) -> dict[str, int]:
    """Return in how many rows each column differs, but for the last digits of a float; columns without any are left out."""
    import polars as pl

    found = {}
    for name in was.columns:
        one, other = was[name], now[name]
        same = one.eq_missing(other)
        if one.dtype.is_float():
            close = (one - other).abs() <= 1e-9 * pl.select(pl.max_horizontal(one.abs(), other.abs())).to_series() + 1e-12
            same = same | close.fill_null(False)
        if count := int((~same).sum()):
            found[name] = count
    return found


def _read(project: Project, version: DataVersion, past: Past) -> pl.DataFrame:
    from palan.data.verdict import read_time

    rows = tables.scan(project, version).select(*dict.fromkeys([*past.by, past.time, past.column]))
    return rows.with_columns(read_time(past.time, rows.collect_schema()[past.time]).alias(past.time)).collect()


class Memory:
    """What the tables know, in memory, for requests: laid out once for all versions that look it up, and anew after each ingest.

    A row of a table takes 16 bytes for each column that is looked up. All rows are kept: who asks may tell any time.
    """

    def __init__(self, project: Project) -> None:
        self.project = project
        self._known: dict[str, tuple[str, Known]] = {}  # digest of what is looked up -> data version, what is known
        self._lock = threading.Lock()

    def hold(self, looked: Iterable[Looked]) -> None:
        """Hold these, as the newest versions of the tables have them; what is held and has not changed is kept."""
        with self._lock:
            wanted = {_digest(each.past): each.past for each in looked}
            newest = {name: tables.latest(self.project, name) for name in {past.table for past in wanted.values()}}
            new = {
                key: (version.id, Known.of(past, _read(self.project, version, past)))
                for key, past in wanted.items()
                if (version := newest[past.table]) is not None and self._known.get(key, ("", None))[0] != version.id
            }
            if new:
                self._known = {**self._known, **new}  # at once: no request sees half of an ingest

    def ask(self, looked: Sequence[Looked], frame: pl.DataFrame, time: str, now: datetime) -> pl.DataFrame:
        """Return the rows with each column that is looked up: before the row's own time where it tells one, else before now."""
        import polars as pl

        from palan.data.inputs import DTYPES

        held = self._known
        moments = frame[time].to_list() if time in frame.columns else [None] * frame.height
        series = []
        for each in looked:
            _, known = held.get(_digest(each.past), ("", None))
            rows = frame.select(each.past.by).iter_rows(named=True) if each.past.by else ({} for _ in moments)
            nothing = 0 if each.past.how == "count" else None
            values = [nothing if known is None else known.ask(row, at or now) for row, at in zip(rows, moments, strict=True)]
            series.append(pl.Series(each.name, values, dtype=DTYPES[each.type]))
        return frame.with_columns(series)


def _digest(past: Past) -> str:
    return digest_of(msgspec.to_builtins(past))
