"""Columns that came, went, changed their name or are written in another way than before."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

import numpy as np
import polars as pl

from palan.data.doctor import Hypothesis
from palan.data.faults.delivery import ALWAYS, BLOCKS, is_text, matrix, quoted
from palan.data.nouns import Repair
from palan.data.relations import GRID, find_relations
from palan.data.repair import Reshape, mend
from palan.errors import PalanError

DATE_FORMATS = (
    "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y%m%d%H%M%S", "%Y%m%d",
    "%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M", "%d/%m/%Y", "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%d-%m-%Y %H:%M:%S", "%d-%m-%Y %H:%M", "%d-%m-%Y",
    "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %I:%M %p", "%m/%d/%Y", "%d %b %Y %H:%M", "%d %b %Y", "%b %d, %Y",
)  # fmt: skip
MARKS = (",", " ", "\u202f", "\u00a0", "'", "’", ".")
SAMPLE = 6000
"""Rows of the history that say what always held between columns."""
ALIKE = 0.6
"""How alike the content of two columns has to be, from 0 to 1, for one to be the other under a new name."""


def renamed(history: pl.DataFrame, batch: pl.DataFrame) -> list[Hypothesis]:
    """Match columns that are missing with columns that are new, by what is in them and by their names; say what is left over."""
    missing = [name for name in history.columns if name not in batch.columns]
    new = [name for name in batch.columns if name not in history.columns]
    told = _Others(history, batch)
    pairs = sorted(((max(likeness(history[old], batch[name]), told.likeness(old, name)), name_likeness(old, name), old, name) for old in missing for name in new), key=lambda pair: -(pair[0] + 0.5 * pair[1]))
    found = []
    for content, named, old, name in pairs:
        if old not in missing or name not in new or content < (ALIKE if named < 0.8 else ALIKE / 2):
            continue
        missing.remove(old)
        new.remove(name)
        found.append(
            Hypothesis(
                "renamed", (old,), ALWAYS, round(min(0.99, 0.6 + 0.3 * content + 0.1 * named), 3), f"{old} is now called {name}: put right, its values are those of the history",
                evidence={"statistic": "likeness of content, 0 to 1", "before": 0.0, "after": round(content, 3), "threshold": ALIKE, "now": name}, reshape=Reshape(rename={name: old}),
            )
        )  # fmt: skip
    for name in new:
        text = f"{name} is a new column: no column of the history holds anything like it"
        found.append(Hypothesis("added", (name,), ALWAYS, 0.95, text, evidence={"statistic": "new columns", "before": 1, "after": 0, "threshold": 0}, reshape=Reshape(drop=(name,))))
    for old in missing:
        text = f"{old} is no longer delivered, and no new column holds anything like it"
        found.append(Hypothesis("removed", (old,), ALWAYS, 0.95, text, evidence={"statistic": "missing columns", "before": 1, "after": None, "threshold": 0}))
    return found


def likeness(old: pl.Series, new: pl.Series) -> float:
    """Return how alike two columns are in what they hold, from 0 to 1."""
    if old.dtype.is_temporal() or new.dtype.is_temporal():
        return 1.0 if old.dtype == new.dtype else 0.0
    if is_text(old.dtype) and is_text(new.dtype):
        had, has = old.cast(pl.String).drop_nulls(), new.cast(pl.String).drop_nulls()
        return float(has.is_in(had.unique().to_list()).mean() or 0.0)  # type: ignore[arg-type]
    if not (old.dtype.is_numeric() and new.dtype.is_numeric()):
        return 1.0 if old.dtype == new.dtype else 0.0
    was, now = (each.cast(pl.Float64).drop_nulls().to_numpy() for each in (old, new))
    if not len(was) or not len(now):
        return 0.0
    low, high = np.quantile(was, [0.01, 0.99])
    spread = max(float(high - low), 1e-12)
    # a season is in some stretch of the history, hardly in all of it
    apart = min(float(np.abs(np.quantile(part, GRID) - np.quantile(now, GRID)).mean()) for part in (was, *np.array_split(was, 12)) if len(part)) / spread
    shared = float(np.isin(now, np.unique(was)).mean())
    nulls = abs(old.null_count() / old.len() - new.null_count() / new.len())
    return max(0.0, (1 - 3 * apart) * (0.5 + 0.5 * shared) - nulls)


class _Others:
    """What the columns that both have say of one that came under another name: in another season its values are others, and
    what always held between it and the others still holds."""

    def __init__(self, history: pl.DataFrame, batch: pl.DataFrame) -> None:
        self.history, self.batch = history, batch
        self.both = [name for name in batch.columns if name in history.columns and history.schema[name].is_numeric() and batch.schema[name].is_numeric()]

    def likeness(self, old: str, new: str) -> float:
        """Return 0.9 where a relation of the history holds for the new column in the place of the old one, else 0."""
        if not self.both or not self.history.schema[old].is_numeric() or not self.batch.schema[new].is_numeric():
            return 0.0
        rows, now = matrix(self.history, [old, *self.both]), matrix(self.batch, [new, *self.both])
        rows = rows[:: max(1, len(rows) // SAMPLE)]
        day = np.arange(len(rows)) * BLOCKS // max(len(rows), 1)
        for relation in find_relations(rows, day, BLOCKS):
            off = relation.misfit(now, np.zeros(len(now), dtype=np.int64), 1)
            if relation.target == 0 and np.isfinite(off).all() and float(off[0]) <= relation.limit(1):
                return 0.9
        return 0.0


def name_likeness(one: str, other: str) -> float:
    """Return how alike two names are, from 0 to 1: `temp` is short for `temperature`."""
    short, long = sorted((re.sub(r"[^a-z0-9]", "", name.lower()) for name in (one, other)), key=len)
    if short == long:
        return 1.0
    return max(difflib.SequenceMatcher(None, short, long).ratio(), 0.85 if len(short) >= 3 and long.startswith(short) else 0.0)


def retyped(history: pl.DataFrame, batch: pl.DataFrame) -> list[Hypothesis]:
    """Numbers that came as text, times in another form: accepted where nearly all can be read, and what is read fits."""
    found = []
    for name in batch.columns:
        if name not in history.columns or _same_type(history.schema[name], batch.schema[name]):
            continue
        best: tuple[float, str, Repair] | None = None
        for expression, inverse, words in _readings(name, history.schema[name], batch[name]):
            repair = Repair(name, expression, inverse, ALWAYS, None, f"{name} {words}")
            try:
                read = mend(batch.select(name), [Hypothesis("retyped", (name,), ALWAYS, 0.9, "", (repair,))], None)[name]
            except PalanError:  # the text is not of this form
                continue
            if read.dtype != history.schema[name] and not (read.dtype.is_numeric() and history.schema[name].is_numeric()):
                continue
            lost = (read.null_count() - batch[name].null_count()) / max(batch.height, 1)
            fit = _fit(history[name], read) - lost * 10
            if lost <= 0.01 and fit > 0.3 and (best is None or fit > best[0] + 1e-9):
                best = (fit, words, repair)
        if best is not None:
            fit, words, repair = best
            evidence = {"statistic": "likeness of content, 0 to 1", "before": 0.0, "after": round(fit, 3), "threshold": 0.3}
            found.append(Hypothesis("retyped", (name,), ALWAYS, round(0.7 + 0.29 * min(fit, 1.0), 3), f"{name} {words}: read so, it fits the history", (repair,), evidence=evidence))
    return found


def _same_type(one: pl.DataType, other: pl.DataType) -> bool:
    return one == other or (one.is_numeric() and other.is_numeric()) or (is_text(one) and is_text(other)) or (one.is_temporal() and other.is_temporal())


def _readings(name: str, was: pl.DataType, found: pl.Series) -> Iterator[tuple[str, str, str]]:
    """Yield ways to read the column as what it was: expression, inverse and words."""
    column, back = quoted(name), f"CAST({quoted(name)} AS VARCHAR)"
    if was.is_numeric() and is_text(found.dtype):
        kind = "BIGINT" if was.is_integer() else "DOUBLE"
        yield f"TRY_CAST({column} AS {kind})", back, "came as text"
        yield f"TRY_CAST(REPLACE({column}, ',', '.') AS DOUBLE)", f"REPLACE({back}, '.', ',')", "came as text with a decimal comma"
        for mark in MARKS:
            thousands = f"REPLACE({column}, {_text(mark)}, '')"
            if mark != ",":
                yield f"TRY_CAST(REPLACE({thousands}, ',', '.') AS DOUBLE)", back, f"came as text with {mark!r} between thousands and a decimal comma"
            yield f"TRY_CAST({thousands} AS {kind})", back, f"came as text with {mark!r} between thousands"
    if was.is_temporal() and is_text(found.dtype):
        for form in DATE_FORMATS:
            yield f"STRPTIME({column}, {_text(form)})", f"STRFTIME({column}, {_text(form)})", f"came as text of the form {form}"
    if was.is_temporal() and found.dtype.is_numeric():
        for factor, words in ((1_000_000, "seconds"), (1000, "milliseconds"), (1, "microseconds")):
            yield f"CAST(CAST({column} AS BIGINT) * {factor} AS TIMESTAMP)", f"CAST({column} AS BIGINT) / {factor}", f"came as {words} since 1970"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _fit(history: pl.Series, read: pl.Series) -> float:
    if not read.dtype.is_temporal():
        was, now = (each.cast(pl.Float64).drop_nulls().to_numpy() for each in (history, read))
        if not len(was) or not len(now):
            return 0.0
        reach = 0.2 * float(was.max() - was.min())
        inside = float(np.mean((now >= was.min() - reach) & (now <= was.max() + reach)))
        return inside * (0.5 + 0.5 * float(np.isin(now, np.unique(was)).mean()))
    if read.null_count() == read.len():
        return 0.0
    # times go on where the history ended, in order: a day read as a month does neither
    had, has = (each.cast(pl.Datetime("us")).drop_nulls().dt.epoch("s").to_numpy().astype(np.float64) for each in (history, read))
    if not len(had) or not len(has):
        return 0.0
    reach = max(float(had.max() - had.min()), 86400.0)
    ordered = float(np.mean(np.diff(has) >= 0)) if len(has) > 1 else 1.0
    gap = abs(float(has.min() - had.max())) / reach
    span = float(has.max() - has.min()) / reach
    return max(0.0, ordered - min(gap, 0.5) - 0.1 * max(0.0, span - 1))
