"""What a delivery's columns and rows are like, beside those of the deliveries before it: names that changed, rows that came twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from palan.data.contract import Contract
from palan.flows import tables
from palan.flows.examine import DECIDED, as_decided, goes_on
from palan.flows.project import Project

if TYPE_CHECKING:
    import polars as pl

    from palan.data.doctor import Hypothesis

SAMPLE = 20_000
"""Rows of a delivery, and of those before it, that columns are told by."""

TWICE = 0.05
"""The share of rows that were there already, below which they are a coincidence."""

OFTEN = 10
"""How much more often than it was usual before."""


def shapes(project: Project, contract: Contract, before: Sequence[str], reports: Sequence[Mapping[str, Any]], known: Sequence[Hypothesis]) -> tuple[list[Hypothesis], list[Hypothesis], list[str]]:
    """Return what is suspected of the columns and rows of a table's files as a whole, what of it these deliveries say, and what
    else is to be said of their columns.

    Args:
        before: the parts of the table as it came before them.
        reports: what was taken in of each file, in their order.
        known: what was suspected before; of files that came again it is found anew.
    """
    sources = {report["source"] for report in reports}
    suspect = [_about(each, files=files) for each in known if (files := [file for file in each.evidence["files"] if file not in sources])]
    new: list[Hypothesis] = []
    told: list[str] = []
    past = list(before)
    for report in reports:
        if past and (report["parts"] or report["quarantine"]):
            here, said = _columns(project, contract, past, report, {str(each.evidence["now"]): each for each in (*suspect, *known) if each.kind == "renamed"})
            told += said
            if contract.key:
                told += _copies(project, contract, report)
            else:
                here += _twice(project, contract, past, report)
            for each in here:
                each = as_decided(each, known)
                new.append(each)
                suspect = _joined(suspect, each)
        past += report["parts"]
    return suspect, [each for each in new if not DECIDED & set(each.evidence)], told


def _joined(earlier: Sequence[Hypothesis], each: Hypothesis) -> list[Hypothesis]:
    """Return all of them, where one that goes on in a later file is the same one."""
    old = next((old for old in earlier if goes_on(old, each) and old.evidence.get("now") == each.evidence.get("now")), None)
    if old is None:
        return [*earlier, each]
    both = {name: {**old.evidence[name], **each.evidence[name]} for name in ("again",) if name in each.evidence}
    through = max(old.evidence["through"], each.evidence["through"])
    joined = _about(old, **both, through=through, files=[*old.evidence["files"], *each.evidence["files"]])
    return [joined if one is old else one for one in earlier]


def _columns(project: Project, contract: Contract, past: Sequence[str], report: Mapping[str, Any], known: Mapping[str, Hypothesis]) -> tuple[list[Hypothesis], list[str]]:
    """Match columns that are missing with columns that are new; what came under another name before may do so again (`known`)."""
    import polars as pl

    from palan.data.faults.columns import renamed
    from palan.data.faults.words import amended

    came = [tables.scan_frame(project, part) for part in report["parts"]] + [tables.scan_frame(project, each["blob"]) for each in report["quarantine"]]
    names = dict.fromkeys(name for rows in came for name in rows.collect_schema().names() if not name.startswith("palan_"))
    missing = [name for name in contract.names if any(rule["rule"] == "missing column" and f'"{name}"' in rule["text"] for rule in report["verdict"]["table"])]
    earlier = {name for part in past for name in tables.scan_frame(project, part).collect_schema().names()}
    new = [name for name in names if name not in contract.names and (name not in earlier or name in known)]
    if not (missing or new):
        return [], []
    rows = pl.concat([_sample(each, [*contract.names, *new]) for each in came], how="vertical_relaxed").filter(pl.col(contract.time).is_not_null()) if contract.time else None
    if rows is None or not rows.height:
        return [], []
    history = pl.concat([_sample(tables.scan_frame(project, part), contract.names) for part in past[-4:]], how="vertical_relaxed")
    again = [each for name, each in known.items() if name in new and each.columns[0] in missing]
    found = [_in_time(each, contract, rows, report["source"]) for each in again]
    missing = [name for name in missing if name not in [each.columns[0] for each in again]]
    new = [name for name in new if name not in known]
    used = [name for name in contract.names if name not in missing or history[name].null_count() < history.height]
    used = [name for name in used if name not in [each.columns[0] for each in again]]
    batch = rows.select(*(name for name in used if name not in missing), *(_read(rows[name]).alias(name) for name in new))
    told: list[str] = []
    for each in renamed(history.select(used), batch):
        column = each.columns[0]
        if each.kind == "added":
            (line,) = amended(contract, _about(each, type=_type(batch[column])))
            told.append(f"{column} is a new column, kept as it came; to use it, {line}")
        else:
            found.append(_in_time(each, contract, rows, report["source"]))
    return found, told


def _sample(rows: pl.LazyFrame, names: Sequence[str]) -> pl.DataFrame:
    """Return these columns, as text where they came in different types."""
    import polars as pl

    known = rows.collect_schema()
    return rows.tail(SAMPLE).select(pl.col(name) if name in known else pl.lit(None).alias(name) for name in names).collect()


def _read(column: pl.Series) -> pl.Series:
    """Return a column that nothing is known of as numbers, where it holds nothing else."""
    import polars as pl

    if column.dtype != pl.String:
        return column
    read = column.cast(pl.Float64, strict=False)
    return read if read.null_count() <= column.null_count() + 0.01 * column.len() and read.count() else column


def _type(column: pl.Series) -> str:
    return "float" if column.dtype.is_numeric() else "str"


def _about(each: Hypothesis, **evidence: Any) -> Hypothesis:
    return replace(each, evidence={**each.evidence, **evidence})


def _in_time(each: Hypothesis, contract: Contract, rows: pl.DataFrame, source: str) -> Hypothesis:
    """Return what is true of a file as true of the days that it is about, with a repair of the column that reads the new one."""
    from palan.data.faults.delivery import quoted
    from palan.data.nouns import Repair
    from palan.data.verdict import read_time

    times = rows.select(read_time(contract.time, rows.schema[contract.time])).to_series().drop_nulls()
    since: datetime = times.min()  # type: ignore[assignment]
    last: datetime = times.max()  # type: ignore[assignment]
    repairs: tuple[Repair, ...] = ()
    if each.kind == "renamed":
        (old,), now = each.columns, str(each.evidence["now"])
        kind = {"int": "BIGINT", "float": "DOUBLE", "str": "VARCHAR"}.get(contract.field(old).type, "VARCHAR")
        repairs = (Repair(old, f"COALESCE({quoted(old)}, CAST({quoted(now)} AS {kind}))", "NULL", since, None, f"{old} came as {now}"),)
    evidence = {**each.evidence, "through": last.date().isoformat(), "files": [source]}
    return replace(each, since=since, text=f"{each.text.partition(' (in ')[0]} (in {source}, since {since:%Y-%m-%d})", repairs=repairs, reshape=None, evidence=evidence)


def _copies(project: Project, contract: Contract, report: Mapping[str, Any]) -> list[str]:
    """Say of rows in quarantine that they are what was taken in, once more: a key keeps them out, and nothing of them is new."""
    from palan.data.verdict import typed

    rule = f"key {', '.join(contract.key)} repeats an earlier row"
    rows = report["reasons"].get(rule, 0)
    if rows < TWICE * report["verdict"]["rows"] or not report["parts"]:
        return []
    bad = [tables.load_frame(project, each["blob"]) for each in report["quarantine"] if rule in each["reasons"]]
    names = [name for name in contract.names if all(name in each.columns for each in bad)]
    own = tables.scan_parts(project, report["parts"], {}, contract).select(names)
    alike = sum(typed(each, contract).select(names).lazy().join(own, on=names, how="semi", nulls_equal=True).collect().height for each in bad)
    if alike < 0.99 * rows:
        return []
    return [f"{rows:,} rows of {report['source']} came twice, alike in every column: palan data quarantine drop {contract.name} --rule 'key' --reason WHY loses nothing"]


def _twice(project: Project, contract: Contract, past: Sequence[str], report: Mapping[str, Any]) -> list[Hypothesis]:
    """Look for rows that came before, alike in every column: in the same file, or in another one about the same time."""
    import numpy as np
    import polars as pl

    from palan.data.doctor import Hypothesis

    names = list(contract.names)
    new = {part: tables.scan_frame(project, part).select(names).collect() for part in report["parts"]}
    rows = sum(each.height for each in new.values())
    if not rows or not contract.time:
        return []
    every = pl.concat([each[contract.time] for each in new.values()]).drop_nulls()
    since, last = every.min(), every.max()
    at = pl.col(contract.time)
    stored = pl.concat([tables.scan_frame(project, part).select(names) for part in past], how="vertical_relaxed")
    known = stored.filter(at.is_between(pl.lit(since), pl.lit(last))).collect().hash_rows()
    usual = stored.tail(max(rows, 1000)).collect()
    chance = 1 - usual.n_unique() / max(usual.height, 1)
    again: dict[str, str] = {}
    count, first = 0, None
    for part, frame in new.items():
        hashes = frame.hash_rows()
        here = (hashes.is_in(known.implode()) | ~hashes.is_first_distinct()).to_numpy()
        known = pl.concat([known, hashes])
        if here.any():
            again[part] = tables.store_mask(project, np.flatnonzero(here))
            count += int(here.sum())
            first = first or frame[contract.time][int(np.argmax(here))]
    if count < max(TWICE, OFTEN * chance) * rows:
        return []
    text = f"{count} of {rows} rows of {report['source']} had come before, alike in every column; before, {chance:.1%} did"
    evidence = {"statistic": "share of rows that came before", "before": round(count / rows, 4), "after": 0.0, "threshold": TWICE, "through": _day(last), "files": [report["source"]], "again": again}
    return [Hypothesis("duplicated", (), since, 0.99, text, evidence=evidence)]  # type: ignore[arg-type]


def _day(when: Any) -> str:
    found: date = when.date()
    return found.isoformat()
