"""What was found and what a repair does, in words and figures that somebody understands who has never seen a quantile."""

from __future__ import annotations

import re
from typing import Any

import polars as pl

from palan.core import Field
from palan.data.contract import Contract, column_toml
from palan.data.doctor import Hypothesis
from palan.data.faults.delivery import is_text

NAMED = 5
"""Values of a column of words that are named."""


def plain(expression: str) -> str:
    """Return an expression of SQL as one would write it by hand: `temp × 9/5 + 32`."""
    text = re.sub(r'"((?:[^"]|"")*)"', lambda found: found[1].replace('""', '"'), expression)
    text = re.sub(r"(\d+)\.0\b", r"\1", text)
    text = re.sub(r" \* (\d+) / (\d+)", r" × \1/\2", text).replace(" * ", " × ").replace("-1 × ", "-")
    if found := re.fullmatch(r"CASE (.+?) ((?:WHEN '.*?' THEN '.*?' ?)+)ELSE \1 END", text):
        pairs = re.findall(r"WHEN '(.*?)' THEN '(.*?)'", found[2])
        return ", ".join(f"{new} becomes {old}" for new, old in pairs)
    if found := re.fullmatch(r"NULLIF\((.+), \1\)", text):
        return "nothing, for all of it"
    if found := re.fullmatch(r"NULLIF\((.+), (.+)\)", text):
        return f"nothing where {found[1]} is {found[2]}"
    if found := re.fullmatch(r"COALESCE\((.+?), CAST\((.+) AS \w+\)\)", text):
        return f"what came as {found[2]}"
    if found := re.fullmatch(r"CASE WHEN (.+) THEN (.+) ELSE (.+) END", text):
        there = "nothing" if found[2] == "NULL" else found[2]
        return f"{there} where {found[1]}"
    return text


def beside(name: str, before: pl.Series, came: pl.Series, right: pl.Series) -> dict[str, Any]:
    """Return one statistic of a column three times: as it was before, as it came, and as the repair makes it."""
    what, tell = _statistic(before, came, right)
    return {"column": name, "what": what, "before": tell(before), "came": tell(came), "right": tell(right)}


def _statistic(before: pl.Series, came: pl.Series, right: pl.Series) -> tuple[str, Any]:
    missing = [each.null_count() / max(each.len(), 1) for each in (before, came, right)]
    if abs(missing[1] - missing[2]) > 0.001:
        return "missing", lambda each: f"{each.null_count() / max(each.len(), 1):.1%}"
    if is_text(before.dtype):
        return "values", _most
    if before.dtype.is_temporal():
        return "between", lambda each: f"{each.min()} and {each.max()}"
    return "half of them between", _middle


def _most(values: pl.Series) -> str:
    counts = values.drop_nulls().cast(pl.String).value_counts(sort=True, name="palan_rows")
    names = sorted(counts[values.name].head(NAMED).to_list())
    return ", ".join(names) + (" …" if counts.height > NAMED else "")


def _middle(values: pl.Series) -> str:
    known = values.cast(pl.Float64).drop_nulls().drop_nans()
    ends = [known.quantile(share, "linear") for share in (0.25, 0.75)]
    return " and ".join("nothing" if end is None else f"{end:.4g}" for end in ends)


def amended(contract: Contract, each: Hypothesis) -> list[str]:
    """Return what to change in the contract instead, where the supplier means to go on so: lines for palan.toml."""
    (column, *_) = each.columns or ("",)
    where = f"in [data.{contract.name}.columns]"
    known = next((field for field in contract.columns if field.name == column), None)
    if each.kind == "renamed" and known is not None:
        now = str(each.evidence["now"])
        return [f"{where}: {now} = {column_toml(Field(now, known.type, known.nullable, known.minimum, known.maximum, known.values, unit=known.unit), contract.told(column))} instead of {column}"]
    if each.kind == "removed" and known is not None:
        return [f"{where}: take {column} out"]
    if each.kind == "added":
        return [f'{where}: {column} = "{each.evidence["type"]}?"']
    return []
