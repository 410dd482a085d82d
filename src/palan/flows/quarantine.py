"""What becomes of the rows in quarantine: delivered corrected, taken in after all under a changed contract, or still waiting."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from palan.core import digest_of, stamp
from palan.data.contract import Contract
from palan.data.nouns import Quarantine
from palan.flows import tables
from palan.flows.journal import Journal
from palan.flows.project import Project

if TYPE_CHECKING:
    import polars as pl

LISTED = 10_000
"""Rows of one quarantine that are listed at most."""

Counts = Mapping[str, int]


class Settled(msgspec.Struct, frozen=True):
    """What became of one quarantine: the rows that left it and how, and those that stay ("" : none)."""

    quarantine: Quarantine
    status: str  # fixed | accepted
    rows: int
    reasons: Counts
    gone: str  # blob of the rows that left
    rest: str  # blob of the rows that stay
    left: Counts = {}
    because: str = ""

    @property
    def text(self) -> str:
        rows = f"{self.rows:,} row{'' if self.rows == 1 else 's'} of quarantine"
        return f"{rows} {'resolved' if self.status == 'fixed' else 'taken in'}: {self.because}"


def waiting(project: Project, data: str, *, until: datetime | None = None) -> list[Quarantine]:
    """Return what waits in quarantine of one table, newest first; of what came until then."""
    found = project.store.records.find(Quarantine, order="-time", data=data, status="open")
    return [each for each in found if until is None or each.time <= until]


def delivered(project: Project, contract: Contract, reports: Sequence[Mapping[str, Any]]) -> list[Settled]:
    """Return what these deliveries settle: a file that came again stands for itself, and a good row for its key anywhere.

    Of a file that came again, rows that are still broken wait under its new delivery.
    """
    by_source = {report["source"]: report for report in reports}
    parts = {part: (report["masks"][part],) if part in report["masks"] else () for report in reports for part in report["parts"]}
    found = []
    for each in waiting(project, contract.name):
        report = by_source.get(each.source)
        if report is None and not (parts and contract.key):
            continue
        bad = tables.load_frame(project, each.blob)
        if report is not None:
            still = _among(bad, _together(project, report["quarantine"]), contract) if report["quarantine"] else bad.head(0)
            found.append(_settled(project, each, bad, still, "fixed", f"{each.source} was delivered again", keep=False))
        else:
            rest = _without(bad, [tables.scan_parts(project, [part], parts, contract).select(contract.key).collect() for part in parts], contract)
            if rest.height < bad.height:
                found.append(_settled(project, each, bad, rest, "fixed", f"rows of {each.source} were delivered corrected"))
    return [each for each in found if each.rows or not each.rest]


def judged_again(
    project: Project, contract: Contract, parts: Sequence[str], masks: Mapping[str, tuple[str, ...]], journal: Journal, *, but: Collection[str]
) -> tuple[list[Settled], list[dict[str, Any]]]:
    """Hold what waits against the contract as it is now; return what that settles, and a report on the rows taken in."""
    from palan.data.reading import REASONS
    from palan.data.verdict import once_more

    settled, reports = [], []
    for each in waiting(project, contract.name):
        if each.id in but:
            continue
        bad = tables.load_frame(project, each.blob)

        def verify(bad: pl.DataFrame = bad, parts: Sequence[str] = parts, masks: Mapping[str, tuple[str, ...]] = masks) -> dict[str, Any]:
            checked = once_more(bad, contract)
            if checked is None or not checked.good.height:
                return {"parts": []}
            part = tables.store_frame(project, checked.good, part=len(parts))
            hidden = tables.overtaken(project, contract, parts, masks, {part: ()})
            corrections = sum(len(rows) for rows in hidden.values())
            return {
                "parts": [part],
                "masks": {each: tables.store_mask(project, rows) for each, rows in hidden.items()},
                "added": checked.good.height - corrections,
                "corrections": corrections,
                "rest": tables.store_frame(project, checked.bad),
            }

        # under the name of the file: these rows are then among those that it delivered
        made = journal.step(f"verify {each.source}", {"quarantine": each.blob, "contract": digest_of(project.config.data[contract.name].table), "after": list(parts), "masks": dict(masks)}, verify)
        if made["parts"]:
            rest = tables.load_frame(project, made["rest"])
            lost = [reason for reason in each.reasons if reason not in set(rest[REASONS].explode().drop_nulls())]
            because = f"they hold since palan.toml was changed ({', '.join(lost) or 'its rules'})"
            settled.append(_settled(project, each, bad, rest, "accepted", because))
            reports.append({**made, "source": each.source})
            parts, masks = [*parts, *made["parts"]], tables.with_masks(masks, made["masks"])
    return settled, reports


class Writer(tables.Writer):
    """Keeps broken rows as text; `reasons` has of each part how many rows broke which rule."""

    def __init__(self, project: Project) -> None:
        super().__init__(project)
        self.reasons: list[Counts] = []

    def add(self, rows: pl.DataFrame) -> None:
        from palan.data.reading import LINE, REASONS
        from palan.data.verdict import as_text

        super().add(as_text(rows.drop(LINE, REASONS)).with_columns(rows[LINE], rows[REASONS]))

    def kept(self, rows: pl.DataFrame) -> pl.DataFrame:
        from palan.data.reading import LINE

        self.reasons.append(_reasons(rows))
        return rows.sort(LINE)


def settle(project: Project, settled: Collection[Settled]) -> None:
    """Write down what became of the quarantines. To be called in a transaction."""
    for each in settled:
        old = each.quarantine
        if not each.rest:
            project.store.records.put(replace(old, status=each.status))
            continue
        project.store.records.put(replace(old, blob=each.rest, rows=old.rows - each.rows, reasons=each.left))
        id = digest_of([old.id, each.gone])[:26]
        project.store.records.put(replace(old, id=id, blob=each.gone, rows=each.rows, reasons=each.reasons, status=each.status))


def listed(project: Project, waiting: Sequence[Quarantine]) -> list[dict[str, Any]]:
    """Return the rows of these quarantines: file, line, the offending cells, the rules, and the row as it came."""
    from palan.data.reading import LINE, REASONS
    from palan.data.verdict import concerned

    found: list[dict[str, Any]] = []
    for each in waiting:
        contract = tables.contract_of(project, each.data)
        frame = tables.load_frame(project, each.blob).sort(LINE).head(LISTED - len(found))
        columns = [name for name in frame.columns if name not in (LINE, REASONS)]
        about = {reason: concerned(reason, contract, columns) for reason in each.reasons}
        for row in frame.iter_rows(named=True):
            reasons = row[REASONS]
            names = list(dict.fromkeys(name for reason in reasons for name in about.get(reason, ())))
            cells = {name: row[name] for name in names}
            shown = ", ".join(f"{name} = {_shown(value)}" for name, value in cells.items())
            text = f"{each.source} line {row[LINE]}: {shown}{': ' if shown else ''}{'; '.join(reasons)}"
            found.append({"file": each.source, "line": row[LINE], "cells": cells, "rules": reasons, "row": {name: row[name] for name in columns}, "text": text})
    return found


def explain(project: Project, ref: str) -> dict[str, Any]:
    """Tell of a data version what it came from, what is suspected of it, which rows wait, and what can be done."""
    from palan.flows import examine

    version = tables.find_data_version(project, ref)
    before = tables.find_data_version(project, f"{version.data}@{version.number - 1}") if version.number > 1 else None
    newest = tables.latest(project, version.data) == version
    reports = version.verdict.get("files", [version.verdict])
    open_ = waiting(project, version.data, until=version.time)
    every = tables.suspicions(project, version.data, accepted=True) if newest else []
    suspected = [each for each in every if tables.ACCEPTED not in each.evidence]
    return {
        "kind": "data",
        "data": version.ref,
        "made": stamp(version.time),
        "rows": version.rows,
        "added": version.added,
        "came from": [name for name, content in version.sources.items() if before is None or before.sources.get(name) != content],
        "warnings": [str(rule["text"]) for report in reports for rule in report.get("table", []) if not rule["holds"]],
        "suspected": [f"{each.text}; seen until {each.evidence['through']}" for each in suspected],
        "accepted": [f"{each.text}: {each.evidence[tables.ACCEPTED]}" for each in every if each not in suspected],
        "repairs": [examine.said(each) for each in suspected if each.repairs],
        "waiting": sum(each.rows for each in open_),
        "quarantine": listed(project, open_),
        "to do": _to_do(version.data, open_, bool(suspected)),
    }


def _to_do(data: str, open_: Sequence[Quarantine], suspected: bool) -> str:
    files = sorted({each.source for each in open_})
    if files:
        shown = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        return f"put {shown} right, or the rule in [data.{data}] where the rule is wrong; then: palan ingest {data}"
    return f"have the rows delivered as they were before, with their key; then: palan ingest {data}; or, if it is no fault: palan accept {data} --reason WHY" if suspected else ""


def _shown(value: object) -> str:
    return "nothing" if value is None else f'"{str(value)[:60]}"'


def _settled(project: Project, old: Quarantine, bad: pl.DataFrame, rest: pl.DataFrame, status: str, because: str, *, keep: bool = True) -> Settled:
    from palan.data.reading import LINE

    gone = bad.join(rest.select(LINE), on=LINE, how="anti", maintain_order="left")
    kept = tables.store_frame(project, rest) if keep and rest.height else ""
    return Settled(old, status, gone.height, _reasons(gone), tables.store_frame(project, gone) if kept else old.blob, kept, _reasons(rest), because)


def _together(project: Project, rejected: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    import polars as pl

    return pl.concat([tables.load_frame(project, each["blob"]) for each in rejected], how="diagonal_relaxed")


def _reasons(frame: pl.DataFrame) -> dict[str, int]:
    from palan.data.reading import REASONS

    return dict(frame[REASONS].explode().drop_nulls().value_counts(sort=True).iter_rows())


def _among(old: pl.DataFrame, new: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """Return the rows that are still broken: by key where the contract has one, else by line."""
    from palan.data.reading import LINE

    by = [name for name in contract.key if name in old.columns and name in new.columns] or [LINE]
    return old.join(new.select(by).unique(), on=by, how="semi", nulls_equal=True, maintain_order="left")


def _without(bad: pl.DataFrame, keys: Sequence[pl.DataFrame], contract: Contract) -> pl.DataFrame:
    """Return the rows of which no good one with the same key came."""
    import polars as pl

    from palan.data.verdict import alike, typed

    if not set(contract.key) <= set(bad.columns):
        return bad
    own = typed(bad, contract).select(contract.key).with_row_index("palan_row")
    came = pl.concat(alike([*keys, own.drop("palan_row")], contract)[:-1]).unique()
    return bad[own.join(came, on=list(contract.key), how="anti", maintain_order="left")["palan_row"].to_list()]
