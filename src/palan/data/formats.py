"""How the texts of a delivery were written, found out from the whole file, and the same rows in the plain form that is judged.

The plain form is what a program writes: `1234.5`, `2013-02-01T10:30:00Z`, `true`, and nothing for a missing value. A file
that holds only that is never looked at here. What reads two ways is not guessed: its row is marked for quarantine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import polars as pl

from palan.data.contract import Contract
from palan.data.reading import BROKEN, Layout

NULLS = ("NA", "N/A", "n/a", "na", "NULL", "Null", "null", "None", "none", "nil", "-", "--", "?", ".", "#N/A")
"""Words for a missing value in a column that may be missing and is no text, unless `nulls` names others."""

_YES = ("true", "t", "yes", "y", "1", "on", "ja", "j", "oui", "si", "sí", "wahr", "vrai", "x")
_NO = ("false", "f", "no", "n", "0", "off", "nein", "non", "falsch", "faux")
_PLAIN_BOOL = ("true", "t", "yes", "1", "false", "f", "no", "0")

# no group begins with 0: 0.123 has a fraction
_SPACED = r"[1-9]\d{0,2}(?:['’]\d{3})+|[1-9]\d{0,2}(?:[ \x{a0}\x{202f}]\d{3})+"
_NUMBERS = {
    ".": rf"^[+-]?(?:\d+|[1-9]\d{{0,2}}(?:,\d{{3}})+|{_SPACED})(?:\.\d+)?(?:[eE][+-]?\d+)?$",
    ",": rf"^[+-]?(?:\d+|[1-9]\d{{0,2}}(?:\.\d{{3}})+|{_SPACED})(?:,\d+)?(?:[eE][+-]?\d+)?$",
}
_OTHER = {".": ",", ",": "."}
_DAY_MONTH = r"^(\d{1,2})[/.-](\d{1,2})[/.-](\d{4})(?:[ T]+(\d.*))?$"
_YEAR_FIRST = r"^(\d{4})[/.](\d{1,2})[/.](\d{1,2})(?:[ T]+(\d.*))?$"
_COMPACT = r"^((?:19|20)\d\d)(\d\d)(\d\d)$"
_ISO = r"^\d{4}-\d\d-\d\d"
_SECONDS, _MILLISECONDS = r"^\d{9,10}$", r"^\d{12,13}$"


class Written(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the values of a column were written. `forms` counts the values of each form, `nulls` the words for a missing one.

    `decimal` is the sign before a fraction and `dates` whether day (`dmy`) or month (`mdy`) comes first; either is "?" where
    values read two ways and nothing tells which, and "" where nothing depends on it. `why` is what it was decided by.
    """

    decimal: str = ""
    dates: str = ""
    why: str = ""
    forms: Mapping[str, int] = {}
    nulls: Mapping[str, int] = {}

    @property
    def plain(self) -> bool:
        return not self.nulls and self.decimal in ("", ".") and not any(form not in _PLAIN_FORMS for form in self.forms)

    @property
    def text(self) -> str:
        said = {"": "", "?": "numbers that read two ways", ".": "decimal point", ",": "decimal comma"}[self.decimal]
        order = {"": "", "?": "dates that read two ways", "dmy": "day before month", "mdy": "month before day"}[self.dates]
        return said or order


_PLAIN_FORMS = ("1234.5", "yyyy-mm-dd", "true/false", "unread")

History = Mapping[str, Written]


def settled(contract: Contract, history: History) -> bool:
    """Tell whether palan.toml or the deliveries before say that texts are to be read in another way than the plain one."""
    return bool(contract.decimal or contract.dates or contract.nulls) or any(each.decimal == "," for each in history.values())


def survey(frames: Iterable[pl.DataFrame], contract: Contract, history: History) -> dict[str, Written]:
    """Find out from all rows how each column is written; columns that are plain are left out."""
    counts: dict[str, dict[str, int]] = {field.name: {} for field in contract.columns}
    words: dict[str, dict[str, int]] = {field.name: {} for field in contract.columns}
    for frame in frames:
        for field in contract.columns:
            if frame.schema.get(field.name) != pl.String:
                continue
            text = frame[field.name].str.strip_chars()
            null = text.is_in(list(_nulls(contract, field.nullable, field.type)))
            for word, count in text.filter(null).value_counts().iter_rows():
                words[field.name][word] = words[field.name].get(word, 0) + count
            values = text.filter(~null & (text != "")).alias("text").to_frame()
            for form, count in values.select(_forms(field.type)).row(0, named=True).items() if values.height else ():
                counts[field.name][form] = counts[field.name].get(form, 0) + (count or 0)
    numbers = {field.name: _decimal(counts[field.name], contract, history.get(field.name), field.type) for field in contract.columns if field.type in ("int", "float")}
    sign = _shared(each for each, why in numbers.values() if why)
    order = _shared(each for field in contract.columns if field.type in ("date", "time") for each, why in [_order(counts[field.name], contract, history.get(field.name))] if why)
    found: dict[str, Written] = {}
    for field in contract.columns:
        forms = counts[field.name]
        decimal, dates, why = "", "", ""
        if field.name in numbers:
            decimal, why = numbers[field.name]
            if decimal == "?" and sign:
                decimal, why = sign, "the other columns of the file"
        if field.type in ("date", "time"):
            dates, why = _order(forms, contract, history.get(field.name))
            if dates == "?" and order:
                dates, why = order, "the other columns of the file"
        written = Written(decimal, dates, why, _told(forms, decimal, dates), words[field.name])
        if not written.plain:
            found[field.name] = written
    return found


def doubtful(frame: pl.DataFrame, contract: Contract) -> bool:
    """Tell whether a whole number is written as a fraction of thousandths: 12.000 may be twelve thousand."""
    columns = [pl.col(field.name) for field in contract.columns if field.type == "int" and frame.schema.get(field.name) == pl.String]
    return bool(columns) and any(frame.lazy().select(each.str.contains(r"\.\d{3}$").any() for each in columns).collect().row(0))


def changed(found: Mapping[str, Written], history: History) -> list[str]:
    """Say which columns are written in another way than in the deliveries before."""
    return [
        f"{name} has {each.text}, before it had {history[name].text}"
        for name, each in found.items()
        if name in history and each.text and history[name].text and each.text != history[name].text
    ]


def plainly(frames: Iterator[pl.DataFrame], contract: Contract, found: Mapping[str, Written]) -> Iterator[pl.DataFrame]:
    """Yield the rows with their texts in the plain form: what cannot be read stays as it came, what reads two ways is marked."""
    if not found:
        yield from frames
        return
    for frame in frames:
        columns, marks = [], []
        for field in contract.columns:
            written = found.get(field.name)
            if written is None or frame.schema.get(field.name) != pl.String:
                continue
            text = pl.col(field.name).str.strip_chars()
            if field.type in ("int", "float") and written.decimal in ("?", ","):
                wrong = _reads_two_ways(text) if written.decimal == "?" else text.str.contains(_NUMBERS["."]) & ~text.str.contains(_NUMBERS[","])
                said = "reads two ways" if written.decimal == "?" else "has a decimal point, the file a decimal comma"
                marks.append(pl.when(wrong).then(pl.lit(f'{field.name} {said}: decimal = "," or "." in [data.{contract.name}]')))
            if written.dates == "?":
                wrong = text.str.contains(_DAY_MONTH) & (_part(text, 1) <= 12) & (_part(text, 2) <= 12)
                marks.append(pl.when(wrong).then(pl.lit(f'{field.name} reads two ways: dates = "dmy" or "mdy" in [data.{contract.name}]')))
            null = text.is_in(list(_nulls(contract, field.nullable, field.type)))
            columns.append(pl.when(~null).then(_plain(field.type, text, pl.col(field.name), written)).alias(field.name))
        if marks:
            came = pl.col(BROKEN) if BROKEN in frame.columns else pl.lit(None, pl.String)
            columns.append(pl.coalesce(came, *marks).alias(BROKEN))
        yield frame.with_columns(columns)


def report(layout: Layout, found: Mapping[str, Written]) -> dict[str, Any]:
    """Return how a file was read, as plain values."""
    return {**msgspec.to_builtins(layout), "columns": {name: msgspec.to_builtins(each) for name, each in found.items()}}


def history_of(reports: Iterable[Mapping[str, Any]]) -> dict[str, Written]:
    """Return how columns were written in the deliveries before, of which the last one counts."""
    columns = [(name, msgspec.convert(each, Written)) for told in reports for name, each in told.get("columns", {}).items()]
    return {name: each for name, each in columns if "?" not in (each.decimal, each.dates)}


def _nulls(contract: Contract, nullable: bool, kind: str) -> tuple[str, ...]:
    if contract.nulls:
        return contract.nulls
    return NULLS if nullable and kind != "str" else ()


def _part(text: pl.Expr, number: int) -> pl.Expr:
    return text.str.extract(_DAY_MONTH, number).cast(pl.Int64)


def _reads_two_ways(text: pl.Expr) -> pl.Expr:
    return text.str.contains(_NUMBERS["."]) & text.str.contains(_NUMBERS[","]) & text.str.contains(r"[.,]")


def _forms(kind: str) -> list[pl.Expr]:
    """Return how many values have each form. A number or date that reads two ways is counted as such."""
    text = pl.col("text")
    if kind in ("int", "float"):
        point, comma = (text.str.contains(_NUMBERS[sign]) for sign in ".,")
        both = _reads_two_ways(text)
        told = {"point": point & ~comma, "comma": comma & ~point}
        if kind == "int":  # a whole number has no fraction: 1.234 is one with groups, 1.000 may be either
            fraction = both & ~text.str.ends_with("000")
            told = {"point": told["point"] | (fraction & text.str.contains(",", literal=True)), "comma": told["comma"] | (fraction & text.str.contains(".", literal=True))}
            both = both & ~fraction
        spaced = text.str.contains(r"\d['’ \x{a0}\x{202f}]\d") & (point | comma)
        told |= {"two ways, point": both & text.str.contains(".", literal=True), "two ways, comma": both & text.str.contains(",", literal=True), "spaced": spaced, "grouped": point & text.str.contains(",", literal=True) & ~both}
    elif kind in ("date", "time"):
        first, second, dotted = _part(text, 1), _part(text, 2), text.str.contains(r"^\d{1,2}\.")
        daymonth = text.str.contains(_DAY_MONTH)
        told = {
            "yyyy-mm-dd": text.str.contains(_ISO),
            "dmy": daymonth & (((first > 12) & (second <= 12)) | (dotted & (second <= 12))),
            "mdy": daymonth & (second > 12) & (first <= 12),
            "two ways": daymonth & ~dotted & (first <= 12) & (second <= 12),
            "yyyy/mm/dd": text.str.contains(_YEAR_FIRST),
            "yyyymmdd": text.str.contains(_COMPACT),
        }
        told |= {"epoch seconds": text.str.contains(_SECONDS), "epoch milliseconds": text.str.contains(_MILLISECONDS)} if kind == "time" else {}
    elif kind == "bool":
        word = text.str.to_lowercase()
        told = {"true/false": word.is_in(_PLAIN_BOOL), "other words": word.is_in([*_YES, *_NO]) & ~word.is_in(_PLAIN_BOOL)}
    else:
        return [pl.len().alias("text")]
    return [flag.sum().alias(form) for form, flag in told.items()]


def _decimal(count: Mapping[str, int], contract: Contract, before: Written | None, kind: str) -> tuple[str, str]:
    """Return the sign before a fraction and what says so; "?" where nothing does and something depends on it."""
    point, comma = count.get("point", 0), count.get("comma", 0)
    doubtful = count.get("two ways, point", 0), count.get("two ways, comma", 0)
    if contract.decimal:
        return contract.decimal, f"decimal in [data.{contract.name}]"
    if max(point, comma) > 20 * min(point, comma):
        return ("." if point > comma else ","), f"{max(point, comma):,} values that read one way"
    if point or comma:
        return ("?" if any(doubtful) else "."), ""  # of both kinds: what is not plain goes to quarantine
    if before and before.decimal in (".", ",") and any(doubtful):
        return before.decimal, "the deliveries before"
    if doubtful[1] or (doubtful[0] and kind == "int"):
        return "?", ""
    return ("." if doubtful[0] else ""), ""


def _order(count: Mapping[str, int], contract: Contract, before: Written | None) -> tuple[str, str]:
    """Return what comes first in a date, and what says so; "?" where nothing does and something depends on it."""
    dmy, mdy = count.get("dmy", 0), count.get("mdy", 0)
    if not (dmy or mdy or count.get("two ways")):
        return "", ""
    if contract.dates:
        return contract.dates, f"dates in [data.{contract.name}]"
    if max(dmy, mdy) > 20 * min(dmy, mdy):
        return ("dmy" if dmy > mdy else "mdy"), f"{max(dmy, mdy):,} values that read one way"
    if before and before.dates in ("dmy", "mdy") and not (dmy or mdy):
        return before.dates, "the deliveries before"
    return "?", ""


def _shared(found: Iterable[str]) -> str:
    """Return what all columns of which it is known agree on."""
    kinds = {each for each in found if each not in ("", "?")}
    return kinds.pop() if len(kinds) == 1 else ""


def _told(count: Mapping[str, int], decimal: str, dates: str) -> dict[str, int]:
    """Return how many values were written in each form, under names that a person knows."""
    names = {"point": "1234.5", "comma": "1234,5", "spaced": "1 234", "grouped": "1,234", "two ways, point": "1.234", "two ways, comma": "1,234", "dmy": "dd/mm/yyyy", "mdy": "mm/dd/yyyy", "two ways": {"dmy": "dd/mm/yyyy", "mdy": "mm/dd/yyyy"}.get(dates, "two ways")}
    if decimal == ".":
        names["two ways, point"] = "1234.5"
    told: dict[str, int] = {}
    for form, found in count.items():
        if found and form != "text":
            told[names.get(form, form)] = told.get(names.get(form, form), 0) + found
    return told


def _plain(kind: str, text: pl.Expr, came: pl.Expr, written: Written) -> pl.Expr:
    """Return the text in its plain form, as it came where it has none."""
    if kind in ("int", "float"):
        sign = written.decimal if written.decimal in (".", ",") else "."
        whole = text.str.replace_all(rf"[{_OTHER[sign]}'’ \x{{a0}}\x{{202f}}]", "")
        readable = text.str.contains(_NUMBERS[sign]) & (pl.lit(True) if written.decimal != "?" else ~_reads_two_ways(text))
        return pl.when(readable).then(whole.str.replace(",", ".", literal=True) if sign == "," else whole).otherwise(came)
    if kind == "bool":
        word = text.str.to_lowercase()
        return pl.when(word.is_in(_YES)).then(pl.lit("true")).when(word.is_in(_NO)).then(pl.lit("false")).otherwise(came)
    if kind in ("date", "time"):
        day, month = ("2", "1") if written.dates == "mdy" else ("1", "2")
        turned = came
        for pattern, parts in ((_DAY_MONTH, "day and month"), (_YEAR_FIRST, ""), (_COMPACT, "")):
            year, months, days = (3, int(month), int(day)) if parts else (1, 2, 3)
            date = pl.concat_str(text.str.extract(pattern, year), text.str.extract(pattern, months).str.zfill(2), text.str.extract(pattern, days).str.zfill(2), separator="-")
            clock = text.str.extract(pattern, 4).str.replace(r"^(\d):", "0${1}:").fill_null("") if pattern != _COMPACT else pl.lit("")
            whole = date + pl.when(clock != "").then(pl.lit("T") + clock).otherwise(pl.lit(""))
            there = date.str.to_date("%Y-%m-%d", strict=False).is_not_null()
            if pattern == _DAY_MONTH and written.dates == "?":  # of a date that reads one way, nothing is open
                there &= text.str.contains(r"^\d{1,2}\.")
            turned = pl.when(there).then(whole).otherwise(turned)
        if kind == "time":
            for pattern, unit in ((_SECONDS, 1_000_000), (_MILLISECONDS, 1000)):
                moment = pl.from_epoch(text.cast(pl.Int64, strict=False) * unit, time_unit="us").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
                turned = pl.when(text.str.contains(pattern)).then(moment).otherwise(turned)
        return turned
    return came
