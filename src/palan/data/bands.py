"""Rules about a delivery as a whole: what they ask is counted batch by batch, and no row is set apart for them.

Everything is counted exactly, in a few numbers a rule, whatever the number of rows: whether a quantile lies in a band
is told by how many values lie below the ends of the band.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from typing import Literal

import msgspec
import polars as pl

from palan.core import FieldType
from palan.data.contract import OPEN, Band, Column, Contract, band_text, quantile, share_text


class TableRule(msgspec.Struct, frozen=True):
    """A rule over the delivery as a whole."""

    rule: str
    holds: bool
    text: str
    severity: Literal["warn", "stop"] = "warn"
    column: str = ""


class Bands:
    """Counts what the bands of a contract ask of the rows that hold, and how new the newest of them is."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._types: dict[str, FieldType] = {field.name: field.type for field in contract.columns}
        self._asked = {name: asked for each in contract.more for name, asked in _asked(each, self._types[each.name])}
        self._sums = dict.fromkeys(self._asked, 0.0)
        self._newest: datetime | date | None = None

    def add(self, rows: pl.DataFrame, *, gone: bool = False) -> None:
        """Count the next rows; or, `gone`, take back some that turned out not to hold."""
        if self._asked and rows.height:
            found = rows.lazy().select(asked.cast(pl.Float64).alias(name) for name, asked in self._asked.items()).collect().row(0)
            for name, value in zip(self._asked, found, strict=True):
                self._sums[name] += -(value or 0.0) if gone else value or 0.0
        if self._contract.fresh and not gone and rows.height:
            newest = rows[self._contract.time].max()
            if isinstance(newest, date) and (self._newest is None or newest > self._newest):
                self._newest = newest

    def rules(self, now: datetime | None) -> Iterator[TableRule]:
        """Yield what holds of all rows that were counted. `now` is when they came; None asks not how new they are."""
        for each in self._contract.more:
            yield from self._column(each)
        fresh = self._contract.fresh
        if fresh and now:
            at = self._newest if isinstance(self._newest, datetime) else None if self._newest is None else datetime.combine(self._newest, datetime.min.time(), UTC)
            age = None if at is None else now - at
            said = "no row has a time" if at is None or age is None else f"the newest row is of {at:%Y-%m-%d %H:%M}, {_days(age.total_seconds())} old"
            holds = age is not None and age <= fresh
            yield TableRule("fresh", holds, said if holds else f"{said}: more than {_days(fresh.total_seconds())}", _how(self._contract.severity.get("fresh")))

    def _column(self, each: Column) -> Iterator[TableRule]:
        name = each.name
        values, nulls = self._sums.get(f"{name} values", 0.0), self._sums.get(f"{name} nulls", 0.0)

        def rule(kind: str, which: str, said: str, holds: bool) -> TableRule:
            return TableRule(f"{which} of {name}", holds, said, _how(each.severity.get(kind)), name)

        if each.nulls != OPEN:
            share = nulls / (values + nulls) if values + nulls else 0.0
            yield rule("nulls", "nulls", f"{share * 100:.3g}% of {name} is missing{_where(share, each.nulls, share_text)}", _within(share, each.nulls))
        if not values:
            which = [("mean", "mean")] if each.mean != OPEN else []
            which += [("quantiles", word) for word in each.quantiles] + [("shares", f"share {value}") for value in each.shares]
            for kind, what in which:
                yield rule(kind, what, f"{what} of {name} cannot be told: it has no values", False)
            return
        if each.mean != OPEN:
            mean = self._sums[f"{name} sum"] / values
            yield rule("mean", "mean", f"the mean of {name} is {mean:.6g}{_where(mean, each.mean, band_text)}", _within(mean, each.mean))
        for word, band in each.quantiles.items():
            least = quantile(word) * values
            below, upto = self._sums[f"{name} below {word}"], self._sums[f"{name} upto {word}"]
            low, high = band[0] is None or below < least, band[1] is None or upto >= least
            where = f"within {band_text(band)}" if low and high else f"{'above' if low else 'below'} {band_text(band)}"
            yield rule("quantiles", word, f"{word} of {name} is {where}", low and high)
        for value, band in each.shares.items():
            share = self._sums[f"{name} is {value}"] / values
            yield rule("shares", f"share {value}", f"{share * 100:.3g}% of {name} is {value}{_where(share, band, share_text)}", _within(share, band))


def _asked(each: Column, kind: FieldType) -> Iterator[tuple[str, pl.Expr]]:
    """Yield what has to be counted in each batch for the bands of a column."""
    value, name = pl.col(each.name), each.name
    if each.nulls != OPEN or each.mean != OPEN or each.quantiles or each.shares:
        yield f"{name} values", value.count()
        yield f"{name} nulls", value.null_count()
    if each.mean != OPEN:
        yield f"{name} sum", value.cast(pl.Float64).sum()
    for word, (low, high) in each.quantiles.items():
        yield f"{name} below {word}", (value < low).sum() if low is not None else pl.lit(0)
        yield f"{name} upto {word}", (value <= high).sum() if high is not None else pl.lit(0)
    for share in each.shares:
        yield f"{name} is {share}", (value.cast(pl.String) == share).sum() if kind != "str" else (value == share).sum()


def _within(value: float, band: Band) -> bool:
    return (band[0] is None or value >= band[0]) and (band[1] is None or value <= band[1])


def _where(value: float, band: Band, text: Callable[[Band], str]) -> str:
    said = text(band)
    if _within(value, band):
        return f", within {said}"
    return f", {'below' if band[0] is not None and value < band[0] else 'above'} {said}"


def _how(severity: str | None) -> Literal["warn", "stop"]:
    return "stop" if severity == "stop" else "warn"


def _days(seconds: float) -> str:
    """Return an age for a person: `36 hours`, `3.2 days`."""
    hours = seconds / 3600
    return f"{math.floor(hours * 10) / 10:g} hours" if hours < 72 else f"{hours / 24:.3g} days"
