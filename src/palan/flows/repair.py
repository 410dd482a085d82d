"""`palan data repair`: put the rows right that the data doctor suspects, as a new version of the table; and take it back.

The rows as they came stay where they are. A repair that somebody accepted lays parts over them, with the same rows put
right, and masks those that these stand for. So taking it back costs nothing, and the doctor looks at every delivery as
it came: rows of a feed that is right again are not touched, because nothing is suspected of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from palan.core import counted
from palan.data.contract import Contract, row_rules
from palan.data.nouns import DataVersion, Quarantine, Repair
from palan.errors import Conflict, Invalid, NotFound, PalanError
from palan.flows import examine, quarantine, tables
from palan.flows.journal import Journal, running
from palan.flows.project import Project, record

if TYPE_CHECKING:
    import polars as pl

    from palan.data.doctor import Hypothesis

SHOWN = 3
"""Rows that are shown of what a repair would do."""

SAMPLE = 20_000
"""Rows that a column's values are told by, at most."""

BEFORE = timedelta(days=28)
"""How long before a fault is what was usual: longer ago it was another season."""


class Laid(msgspec.Struct, frozen=True):
    """What accepted repairs make of the rows as they came: parts with rows put right, and masks of those that they stand for."""

    parts: tuple[str, ...] = ()
    masks: Mapping[str, str] = {}
    rows: int = 0  # by how many the table has more, or less, than as it came
    righted: int = 0
    settled: tuple[quarantine.Settled, ...] = ()  # rows of quarantine that hold once they are put right
    reopened: tuple[Quarantine, ...] = ()

    def over(self, parts: Sequence[str], masks: Mapping[str, tuple[str, ...]]) -> tuple[list[str], dict[str, tuple[str, ...]]]:
        """Return the parts and masks of the table as it is read."""
        return [*parts, *self.parts], tables.with_masks(masks, self.masks)

    def told(self) -> dict[str, Any]:
        """Return what a data version keeps of it, so that it can be taken off again."""
        return {"parts": list(self.parts), "masks": dict(self.masks), "rows": self.rows, "righted": self.righted}

    def settle(self, project: Project) -> None:
        """Write down what became of rows in quarantine. To be called in a transaction."""
        for each in self.reopened:
            project.store.records.put(msgspec.structs.replace(each, status="open"))
        quarantine.settle(project, self.settled)


def as_came(project: Project, version: DataVersion) -> tuple[list[str], dict[str, tuple[str, ...]], int]:
    """Return the parts, the masks and the number of a version's rows without what repairs made of them."""
    laid, masks = version.verdict.get(tables.LAID, {}), tables.masks_of(project, version)
    over = set(laid.get("parts", ()))
    kept = {part: tuple(mask for mask in of if mask != laid.get("masks", {}).get(part)) for part, of in masks.items() if part not in over}
    return [part for part in version.parts if part not in over], {part: of for part, of in kept.items() if of}, version.rows - laid.get("rows", 0)


def lay(
    project: Project,
    contract: Contract,
    parts: Sequence[str],
    masks: Mapping[str, tuple[str, ...]],
    suspect: Sequence[Hypothesis],
    *,
    came: Sequence[Quarantine] = (),
    but: Collection[str] = (),
) -> Laid:
    """Put the rows of these parts right by the repairs that were accepted.

    `came` are quarantines that are not recorded yet, `but` those that are settled already.

    A row that breaks the contract once it is put right stays as it came, and so does one whose right key another row has.
    """
    accepted = [each for each in suspect if tables.REPAIRED in each.evidence]
    repaired = [one for one in project.store.records.find(Quarantine, data=contract.name, status=quarantine.REPAIRED) if one.id not in but]
    if not accepted:
        return Laid(reopened=tuple(repaired))
    made: list[str] = []
    hidden: dict[str, str] = {}
    righted = rows = 0
    for number, part in enumerate(parts):
        right, gone = _of_a_part(project, contract, part, masks.get(part, ()), accepted)
        if not right.height and not len(gone):
            continue
        if right.height:
            if set(contract.key) & {repair.column for each in accepted for repair in each.repairs}:
                right = _without_known(project, contract, right, parts, {**masks, part: (*masks.get(part, ()), tables.store_mask(project, right[tables.ROW].to_numpy()))})
            made.append(tables.store_frame(project, right.drop(tables.ROW), part=-1 - number))
        out = [*right[tables.ROW].to_list(), *gone]
        hidden[part] = tables.store_mask(project, _sorted(out))
        righted, rows = righted + len(out), rows - len(gone)
    settled = []
    for each in [*came, *quarantine.waiting(project, contract.name), *repaired]:
        if each.id not in but:
            taken = _of_quarantine(project, contract, each, accepted)
            if taken is None:
                continue
            right, one = taken
            right = _without_known(project, contract, right, [*parts, *made], masks)
            if right.height:
                made.append(tables.store_frame(project, right, part=-1 - len(parts) - len(made)))
            rows, righted = rows + right.height, righted + one.rows
            settled.append(one)
    again = {one.quarantine.id for one in settled}
    return Laid(tuple(made), hidden, rows, righted, tuple(settled), tuple(one for one in repaired if one.id not in again))


def _sorted(places: Sequence[int]) -> Any:
    import numpy as np

    return np.sort(np.array(places, dtype=np.uint32))


def _of_a_part(project: Project, contract: Contract, part: str, masks: Sequence[str], accepted: Sequence[Hypothesis]) -> tuple[pl.DataFrame, list[int]]:
    """Return the rows of a part that are put right, each with its place in it, and the places of rows that came twice."""
    import polars as pl

    from palan.data.repair import apply
    from palan.data.verdict import read_time, verify

    rows = tables.unmasked(project, part, masks, numbered=True)
    at = read_time(contract.time, rows.collect_schema()[contract.time])
    accepted = [each for each in accepted if part not in each.evidence.get(tables.BUT, ())]
    if not accepted:
        return rows.head(0).collect(), []
    begin, end = min(each.since for each in accepted), max(examine.end_of(each) for each in accepted)
    found = rows.filter(at >= begin, at < end).collect()
    gone: list[int] = []
    for each in accepted:
        if each.kind == "duplicated" and part in each.evidence["again"]:
            gone = tables.mask_of(project, [each.evidence["again"][part]]).tolist()
            found = found.filter(~pl.col(tables.ROW).is_in(gone))
    repairs = [repair for each in accepted for repair in examine.while_seen(each) if _has(found, repair)]
    if not found.height or not repairs:
        return found.head(0), gone
    right = apply(found, repairs, contract.time)
    changed = pl.any_horizontal(pl.col(name).ne_missing(found[name]) for name in dict.fromkeys(repair.column for repair in repairs))
    right = right.filter(changed)
    good = verify(right, row_rules(contract), known=tables.known(project, contract)).good if right.height else right
    return good.sort(tables.ROW), gone


def _has(rows: pl.DataFrame, repair: Repair) -> bool:
    """Tell whether the rows have all columns that a repair reads: of a column that came under another name only some files have it."""
    import polars as pl

    return repair.column in rows.columns and set(pl.sql_expr(repair.expression).meta.root_names()) <= set(rows.columns)


def _without_known(project: Project, contract: Contract, right: pl.DataFrame, parts: Sequence[str], masks: Mapping[str, tuple[str, ...]]) -> pl.DataFrame:
    """Return the rows whose key no other row of the table has: one that came right counts."""
    if not contract.key or not parts or not right.height:
        return right
    known = tables.scan_parts(project, parts, masks, contract).select(contract.key).cast(right.select(contract.key).schema)
    return right.lazy().join(known, on=list(contract.key), how="anti", nulls_equal=True, maintain_order="left").collect()


def _of_quarantine(project: Project, contract: Contract, each: Quarantine, accepted: Sequence[Hypothesis]) -> tuple[pl.DataFrame, quarantine.Settled] | None:
    """Return the rows of a quarantine that hold once they are put right, and what is to be written down of it; None where none does."""
    import polars as pl

    from palan.data.reading import LINE, REASONS
    from palan.data.repair import apply, mend
    from palan.data.verdict import concerned, read_time, verify

    bad = tables.load_frame(project, each.blob)
    if contract.time not in bad.columns:
        return None
    read = [one for one in accepted if one.kind == "retyped" and each.source in one.evidence["files"]]
    raw = mend(bad, [one for one in read if all(repair.column in bad.columns for repair in one.repairs)], None)
    rows = _typed(raw, contract)
    repairs = [repair for one in accepted if one not in read for repair in examine.while_seen(one) if _has(rows, repair)]
    right = apply(rows, repairs, contract.time)
    at = read_time(contract.time, right.schema[contract.time])
    columns = {repair.column for one in accepted for repair in one.repairs}
    # only rows with nothing wrong besides, and in which what was to be read could be
    about = {reason: set(concerned(reason, contract, contract.names)) for reason in each.reasons}
    cured = [reason for reason, names in about.items() if names and names <= columns and not reason.startswith(("key ", "line "))]
    begin, end = min(one.since for one in accepted), max(examine.end_of(one) for one in accepted)
    whole = pl.all_horizontal(pl.lit(True), *(pl.col(name).is_not_null() | bad[name].is_null() for name in columns if name in bad.columns and not _empties(accepted, name)))
    mine = bad.select(pl.col(REASONS).list.set_difference(pl.lit(cured, dtype=pl.List(pl.String))).list.len() == 0).to_series()
    right = right.filter(pl.lit(mine), at >= begin, at < end, whole)
    if not right.height:
        return None
    good = verify(right.drop(REASONS).rename({LINE: tables.ROW}), row_rules(contract), known=tables.known(project, contract)).good
    if contract.key:
        good = good.unique(contract.key, keep="first", maintain_order=True)
    if not good.height:
        return None
    rest = bad.filter(~pl.col(LINE).is_in(good[tables.ROW].implode()))
    one = quarantine.parted(project, each, bad, rest, quarantine.REPAIRED, "put right by a repair that was accepted")
    return good.drop(tables.ROW), one


def _typed(raw: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """Return rows of a quarantine with the contract's columns in their types, null where they cannot be read, and any others."""
    import polars as pl

    from palan.data.verdict import dtype_of, typed

    rows = typed(raw, contract).with_columns(raw[name] for name in raw.columns if name not in contract.names)
    return rows.with_columns(pl.lit(None, dtype_of(contract.field(name))).alias(name) for name in contract.names if name not in rows.columns)


def _as_rows(project: Project, contract: Contract, each: Quarantine) -> pl.DataFrame:
    rows = _typed(tables.load_frame(project, each.blob).head(SAMPLE), contract)
    return rows.drop([name for name in rows.columns if name.startswith("palan_")])


def _empties(accepted: Sequence[Hypothesis], column: str) -> bool:
    return any(each.kind in ("sentinel", "stuck") and column in each.columns for each in accepted)


# --- the verb -----------------------------------------------------------------------------------------------------------


def proposed(project: Project, data: str) -> list[dict[str, Any]]:
    """Return what is suspected of a table, each with its repair in words and as an expression, how sure it is, the statistic
    that returns to its history, rows as they came and as they would be, and what to type.

    Raises:
        NotFound: there is no such table or version.
    """
    version = tables.find_data_version(project, data)
    parts, masks, _ = as_came(project, version)
    contract = tables.contract_of(project, version.data)
    return [_proposal(project, contract, parts, masks, each) for each in tables.suspicions(project, version.data, accepted=True) if tables.ACCEPTED not in each.evidence]


def _proposal(project: Project, contract: Contract, parts: Sequence[str], masks: Mapping[str, tuple[str, ...]], each: Hypothesis) -> dict[str, Any]:
    from palan.data.faults.words import amended, plain

    name, column = contract.name, f" --column {each.columns[0]}" if each.columns else ""
    reason = each.evidence.get(tables.REPAIRED, "")
    found: dict[str, Any] = {
        "kind": each.kind,
        "columns": list(each.columns),
        "text": each.text,
        "since": each.since.isoformat(),
        "through": each.evidence["through"],
        "sure": each.confidence,
        "repairs": [{"column": repair.column, "expression": plain(repair.expression), "sql": repair.expression, "inverse": repair.inverse} for repair in each.repairs],
        "repaired": reason,
        "contract": amended(contract, each),
        "figures": [],
        "rows": [],
    }
    if each.repairs:
        found |= _beside(project, contract, parts, masks, each)
    can = bool(each.repairs) or each.kind == "duplicated"
    found["next"] = f'palan data repair {name}{column} --undo --reason WHY' if reason else f"palan data repair {name}{column} --apply --reason WHY" if can else f"have it delivered again; then: palan ingest {name}"
    return found


def _beside(project: Project, contract: Contract, parts: Sequence[str], masks: Mapping[str, tuple[str, ...]], each: Hypothesis) -> dict[str, Any]:
    """Return what is usual of each column, what came, and what the repair makes of it: the same statistic three times; and some rows."""
    import polars as pl

    from palan.data.faults.words import beside
    from palan.data.repair import apply

    rows = tables.scan_parts(project, parts, masks, contract)
    at = pl.col(contract.time)
    before = rows.filter(at < each.since, at >= each.since - BEFORE).tail(SAMPLE).collect()
    came = rows.filter(at >= each.since, at < examine.end_of(each)).head(SAMPLE).collect()
    refused = [_as_rows(project, contract, one) for one in quarantine.waiting(project, contract.name, repaired=True)]
    came = pl.concat([came, *(one for one in refused if contract.time in one.columns)], how="diagonal_relaxed").filter(at >= each.since, at < examine.end_of(each))
    repairs = [repair for repair in examine.while_seen(each) if _has(came, repair)]
    right = apply(came, repairs, contract.time) if repairs else came
    columns = list(dict.fromkeys(repair.column for repair in repairs))
    figures = [beside(name, *(frame[name] for frame in (before, came, right))) for name in columns if name in before.columns]
    differs = pl.any_horizontal(pl.col(name).ne_missing(came[name]) for name in columns) if columns else pl.lit(False)
    places: list[int] = right.select(differs.alias("palan_differs")).to_series().arg_true().to_list() if columns else []
    shown = [name for name in dict.fromkeys([*contract.key, contract.time]) if name not in columns]
    told = [
        {"row": {name: str(came[name][place]) for name in shown}, "cells": {name: [_plain(came[name][place]), _plain(right[name][place])] for name in columns}} for place in places[:SHOWN]
    ]
    return {"figures": figures, "rows": told, "changed": len(places)}


def _plain(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value.isoformat() if isinstance(value, datetime) else value


def repair(project: Project, data: str, *, column: str = "", reason: str = "", undo: bool = False) -> dict[str, Any]:
    """Accept the repairs that are proposed for a table, or take them back: a new version, with the same rows put right.

    Rows that come later, and of which the doctor says the same, are put right as they are taken in. Those that came are kept:
    with `undo` the newest version has them again, and the suspicion with them.

    Args:
        column: only what is suspected of this column.
        reason: why, for the ledger.

    Raises:
        NotFound: there is no such table, or nothing like that is suspected of it, or can be put right.
        Conflict: the table is made of others: what is suspected is suspected of them.
        Invalid: there is no reason.
    """
    made_of = sorted(tables.inputs_of(project, data))
    if made_of:
        raise Conflict(f'"{data}" is made of {" and ".join(made_of)}', f"palan data repair {made_of[0]}")
    if not reason.strip():
        raise Invalid("rows are not changed without a reason, for the ledger", f'palan data repair {data} {"--undo" if undo else "--apply"} --reason "the supplier confirms it"', field="reason")
    with running(project, "repair", data, exclusive=f"ingest:{data}", wait=30) as journal:
        version = tables.find_data_version(project, data)
        contract = tables.contract_of(project, data)
        every = tables.suspicions(project, data, accepted=True)
        meant = [each for each in every if tables.ACCEPTED not in each.evidence and (not column or column in each.columns) and (tables.REPAIRED in each.evidence) == undo and (each.repairs or each.kind == "duplicated")]
        if not meant:
            what = "was put right" if undo else "can be put right"
            raise NotFound(f"nothing of {data}{f'.{column}' if column else ''} {what}", f"palan data repair {data}")
        suspect = [_without_mark(each) if each in meant and undo else _with_mark(each, reason) if each in meant else each for each in every]
        after, laid = _versioned(project, contract, version, suspect, journal, meant, "took back" if undo else "repaired", reason)
    waiting = sum(each.rows for each in quarantine.waiting(project, data))
    text = f"{counted(laid.righted, 'row')} put right" if laid.righted else "all rows as they came"
    return {"data": data, "version": after.ref, "before": version.ref, "undo": undo, "repaired": [examine.said(each).removeprefix("suspect: ") for each in meant], "righted": laid.righted, "rows": after.rows, "waiting": waiting, "text": text, "reason": reason}


POLICY = "by the policy of the table"

SURE = 0.85
"""How sure the doctor has to be of what a policy puts right without asking."""


def by_policy(project: Project, data: str, suspect: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Accept the repairs that need no person, where the table says `repair = "auto"`."""
    if project.data(data).table.get("repair") != "auto":
        return list(suspect)
    return [_with_mark(each, POLICY) if each.repairs and each.confidence >= SURE and not examine.DECIDED & set(each.evidence) else each for each in suspect]


def said(suspect: Sequence[Hypothesis]) -> str:
    """Return what is put right, in short."""
    return "; ".join(f"{each.text.partition(': put right')[0]} ({each.evidence[tables.REPAIRED]})" for each in suspect if tables.REPAIRED in each.evidence)


def _with_mark(each: Hypothesis, reason: str) -> Hypothesis:
    return replace(each, evidence={**each.evidence, tables.REPAIRED: reason})


def _without_mark(each: Hypothesis) -> Hypothesis:
    return replace(each, evidence={name: value for name, value in each.evidence.items() if name != tables.REPAIRED})


def _versioned(
    project: Project, contract: Contract, version: DataVersion, suspect: Sequence[Hypothesis], journal: Journal, meant: Sequence[Hypothesis], verb: str, reason: str
) -> tuple[DataVersion, Laid]:
    parts, masks, rows = as_came(project, version)
    laid = lay(project, contract, parts, masks, suspect)
    if verb == "repaired" and not laid.righted:
        raise PalanError(f"no row of {contract.name} would hold once it is put right", f"palan data repair {contract.name} shows what it would be")
    over, hidden = laid.over(parts, masks)
    files = _told_else(version, meant) if verb == "repaired" else list(version.verdict.get("files", ()))
    verdict = {**version.verdict, "files": files, tables.SUSPECT: [msgspec.to_builtins(each) for each in suspect], tables.LAID: laid.told()}
    with project.store.records.transaction(durable=True):
        journal.fence()
        if tables.find_data_version(project, contract.name).id != version.id:
            raise Conflict(f"{contract.name} was changed meanwhile", f"palan data repair {contract.name}")
        after = tables.add_version(project, contract.name, parts=over, rows=rows + laid.rows, added=rows + laid.rows - version.rows, run=journal.run.id, sources=version.sources, verdict=verdict, masks=hidden)
        laid.settle(project)
        said = [{"text": each.text, "columns": list(each.columns), "repairs": [f"{one.column} = {one.expression}" for one in each.repairs]} for each in meant]
        record(project, verb, after.ref, reason, rows=laid.righted, repairs=said)
    return after, laid


def _told_else(version: DataVersion, meant: Sequence[Hypothesis]) -> list[Any]:
    """Return the reports of a version without what is put right now."""
    said = {examine.said(each) for each in meant}
    return [each for each in version.verdict.get("files", ()) if not (each.get("table") and all(rule["text"] in said for rule in each["table"]))]
