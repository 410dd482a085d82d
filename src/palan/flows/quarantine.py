"""What becomes of the rows in quarantine: delivered corrected, taken in after all under a changed contract, decided by a
person (`palan data quarantine`), or still waiting."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec.structs import replace

from palan.core import counted, digest_of, stamp
from palan.data.contract import Contract, column_toml, row_rules
from palan.data.nouns import DataVersion, Quarantine
from palan.errors import Conflict, Invalid, NotFound, nearest
from palan.flows import tables
from palan.flows.journal import Journal, running
from palan.flows.project import Project, record

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from palan.data.amend import Pick, Told

REPAIRED = "repaired"
"""The status of rows that hold only as a repair puts them right: they wait again when it is taken back."""

LISTED = 10_000
"""Rows of one quarantine that are listed at most."""

Counts = Mapping[str, int]


class Settled(msgspec.Struct, frozen=True):
    """What became of one quarantine: the rows that left it and how, and those that stay ("" : none)."""

    quarantine: Quarantine
    status: str  # fixed | accepted | repaired
    rows: int
    reasons: Counts
    gone: str  # blob of the rows that left
    rest: str  # blob of the rows that stay
    left: Counts = {}
    because: str = ""
    taken: str = ""  # as in Quarantine, where a person decided so
    reason: str = ""

    @property
    def text(self) -> str:
        rows = f"{self.rows:,} row{'' if self.rows == 1 else 's'} of quarantine"
        return f"{rows} {'resolved' if self.status == 'fixed' else 'taken in'}: {self.because}"


def waiting(project: Project, data: str, *, until: datetime | None = None, repaired: bool = False) -> list[Quarantine]:
    """Return what waits in quarantine of one table, newest first; of what came until then; `repaired`: and what would but for a repair."""
    found = project.store.records.find(Quarantine, order="-time", data=data, status=["open", *([REPAIRED] if repaired else [])])
    return [each for each in found if until is None or each.time <= until]


def delivered(project: Project, contract: Contract, reports: Sequence[Mapping[str, Any]]) -> list[Settled]:
    """Return what these deliveries settle: a file that came again stands for itself, and a good row for its key anywhere.

    Of a file that came again, rows that are still broken wait under its new delivery.
    """
    by_source = {report["source"]: report for report in reports}
    found = [_told_anew(project, decision, blob, report["source"]) for report in reports for decision, blob in report.get("missed", {}).items()]
    others = []
    for each in waiting(project, contract.name, repaired=True):
        report = by_source.get(each.source)
        if report is None:
            others.append((each, 0))
        else:
            bad = tables.load_frame(project, each.blob)
            still = _among(bad, _together(project, report["quarantine"]), contract) if report["quarantine"] else bad.head(0)
            found.append(parted(project, each, bad, still, "fixed", f"{each.source} was delivered again", keep=False))
    found += put_right(project, contract, others, reports)
    return [each for each in found if each.rows or not each.rest]


def put_right(project: Project, contract: Contract, open_: Sequence[tuple[Quarantine, int]], reports: Sequence[Mapping[str, Any]]) -> list[Settled]:
    """Return what good rows settle of these quarantines, by their keys: of each, those of the reports from this number on."""
    import polars as pl

    from palan.data.verdict import alike_casts, typed

    key = list(contract.key)
    came = [
        tables.scan_parts(project, [part], {part: (report["masks"][part],) if part in report["masks"] else ()}, contract).select(*key, pl.lit(number).alias("palan_at"))
        for number, report in enumerate(reports)
        for part in report["parts"]
    ]
    asked = []
    for number, (each, after) in enumerate(open_ if key and came else ()):
        rows = tables.load_frame(project, each.blob, key)
        if set(key) <= set(rows.columns):
            asked.append(typed(rows, contract).select(key).with_row_index("palan_row").with_columns(pl.lit(number).alias("palan_of"), pl.lit(after).alias("palan_after")))
    if not asked:
        return []
    own = pl.concat(asked)
    casts = alike_casts([*(each.collect_schema() for each in came), own.schema], replace(contract, columns=tuple(contract.field(name) for name in key)))
    both = pl.concat([each.with_columns(cast) for each, cast in zip(came, casts, strict=False)]).join(own.lazy().with_columns(casts[-1]), on=key)
    hit = both.filter(pl.col("palan_at") >= pl.col("palan_after")).select("palan_of", "palan_row").unique().collect(engine="streaming")
    found = []
    for number, rows in sorted((of, rows) for (of,), rows in hit.group_by("palan_of")):
        each = open_[number][0]
        bad = tables.load_frame(project, each.blob)
        rest = bad.filter(~pl.int_range(pl.len(), dtype=pl.UInt32).is_in(rows["palan_row"].implode()))
        found.append(parted(project, each, bad, rest, "fixed", f"rows of {each.source} were delivered corrected"))
    return found


def judged_again(
    project: Project, contract: Contract, parts: Sequence[str], masks: Mapping[str, tuple[str, ...]], journal: Journal, *, but: Collection[str]
) -> tuple[list[Settled], list[dict[str, Any]]]:
    """Hold what waits against the contract as it is now; return what that settles, and a report on the rows taken in."""
    from palan.data import formats
    from palan.data.reading import REASONS
    from palan.data.verdict import once_more

    settled, reports = [], []
    known = tables.known(project, contract)
    for each in waiting(project, contract.name, repaired=True):
        if each.id in but:
            continue
        bad = tables.load_frame(project, each.blob)

        def verify(bad: pl.DataFrame = bad, parts: Sequence[str] = parts, masks: Mapping[str, tuple[str, ...]] = masks) -> dict[str, Any]:
            written = formats.survey([bad], contract, {})  # a setting may tell now what reads two ways
            checked = once_more(next(formats.plainly(iter([bad]), contract, written)), contract, known)
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
            settled.append(parted(project, each, bad, rest, "accepted", because))
            reports.append({**made, "source": each.source})
            parts, masks = [*parts, *made["parts"]], tables.with_masks(masks, made["masks"])
    return settled, reports


def decided(project: Project, data: str, source: str = "") -> list[Quarantine]:
    """Return the rows that a person decided about, of one file or of all: fixed, accepted or dropped."""
    found = project.store.records.find(Quarantine, order="time", data=data, status=["fixed", "accepted", "dropped"])
    return [each for each in found if each.reason and source in ("", each.source)]


def told(project: Project, contract: Contract, decisions: Sequence[Quarantine]) -> Told:
    """Return what leaves the rows of these decisions out when their file is read again: nobody is asked twice."""
    from palan.data.amend import Told

    return Told(contract, (tables.load_frame(project, each.blob) for each in decisions))


def missed(project: Project, contract: Contract, decisions: Sequence[Quarantine], told: Told) -> tuple[dict[str, str], dict[str, str], int]:
    """Return which rows of each decision their file does not tell any more, as masks; what of the table to hide for it, and how many rows.

    A row that was taken in goes with the row that it was made of, unless its key tells what it is now.
    """
    import numpy as np

    gone, rows = told.missed(), 0
    found: dict[str, str] = {}
    hidden: dict[str, NDArray[np.uint32]] = {}
    for each in decisions:
        mine, gone = gone[: each.rows], gone[each.rows :]
        if not mine.any() or each.status == "dropped":
            continue
        found[each.id] = tables.store_mask(project, np.flatnonzero(mine))
        if not contract.key:
            places = tables.load_frame(project, each.blob, [tables.ROW])[tables.ROW].to_numpy()[mine]
            hidden[each.taken] = places if each.taken not in hidden else np.concatenate([hidden[each.taken], places])
            rows += len(places)
    return found, {part: tables.store_mask(project, np.sort(places)) for part, places in hidden.items()}, rows


def _told_anew(project: Project, decision: str, blob: str, source: str) -> Settled:
    import polars as pl

    (old,) = project.store.records.find(Quarantine, id=decision)
    rows, gone = tables.load_frame(project, old.blob), pl.Series(tables.mask_of(project, [blob]))
    number = pl.int_range(pl.len(), dtype=pl.UInt32)
    left, rest = rows.filter(number.is_in(gone.implode())), rows.filter(~number.is_in(gone.implode()))
    kept = tables.store_frame(project, rest) if rest.height else ""
    because = f"{source} tells them anew, which {'were' if left.height > 1 else 'was'} {old.status} by hand"
    return Settled(old, "fixed", left.height, _reasons(left), tables.store_frame(project, left) if kept else old.blob, kept, _reasons(rest), because)


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
        if not each.rest and not each.reason:
            project.store.records.put(replace(old, status=each.status, taken="", reason=""))
            continue
        if each.rest:
            project.store.records.put(replace(old, status="open", blob=each.rest, rows=old.rows - each.rows, reasons=each.left))
        else:  # the same delivery may come again, and its id with it: what a person said of these rows stays
            project.store.records.remove(Quarantine, (old.id,))
        id = digest_of([old.id, each.gone])[:26]
        project.store.records.put(replace(old, id=id, blob=each.gone, rows=each.rows, reasons=each.reasons, status=each.status, taken=each.taken, reason=each.reason))


def listed(project: Project, waiting: Sequence[Quarantine]) -> list[dict[str, Any]]:
    """Return the rows of these quarantines: file, line, the offending cells, the rules, and the row as it came."""
    from palan.data.reading import LINE

    found: list[dict[str, Any]] = []
    for each in waiting:
        contract = tables.contract_of(project, each.data)
        frame = tables.load_frame(project, each.blob).sort(LINE).head(LISTED - len(found))
        marks = _Marks(contract)
        for row in frame.iter_rows(named=True):
            told = marks.of(each.source, row)
            shown = ", ".join(f"{name} = {_shown(value)}" for name, value in told["cells"].items())
            text = f"{each.source} line {told['line']}: {shown}{': ' if shown else ''}{'; '.join(told['rules'])}"
            found.append({**{what: told[what] for what in ("file", "line", "cells", "rules", "row")}, "text": text})
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
    suspected = [each for each in every if not examine.DECIDED & set(each.evidence)]
    return {
        "kind": "data",
        "data": version.ref,
        "made": stamp(version.time),
        "rows": version.rows,
        "added": version.added,
        "came from": [name for name, content in version.sources.items() if before is None or before.sources.get(name) != content],
        **_traced(version),
        "warnings": [str(rule["text"]) for report in reports for rule in report.get("table", []) if not rule["holds"]],
        "suspected": [f"{each.text}; seen until {each.evidence['through']}" for each in suspected],
        "accepted": [f"{each.text}: {each.evidence[tables.ACCEPTED]}" for each in every if tables.ACCEPTED in each.evidence],
        "put right": [f"{examine.said(each).removeprefix('suspect: ')}: {each.evidence[tables.REPAIRED]}" for each in every if tables.REPAIRED in each.evidence],
        "repairs": [examine.said(each) for each in suspected if each.repairs],
        "waiting": sum(each.rows for each in open_),
        "quarantine": listed(project, open_),
        "to do": _to_do(version.data, open_, bool(suspected)),
    }


def _traced(version: DataVersion) -> dict[str, list[str]]:
    """Say of a table that is made of others which of their columns each of its columns is made of, and which decide its rows."""
    found: Mapping[str, Any] = version.verdict.get(tables.LINEAGE) or {}
    if not found:
        return {}
    return {"columns": [f"{name} of {', '.join(behind) or 'nothing'}" for name, behind in found["columns"].items()], "rows by": found["rows"]}


# --- palan data quarantine ----------------------------------------------------------------------------------------

Verb = Literal["fix", "accept", "drop"]

_DONE: Mapping[Verb, str] = {"fix": "fixed", "accept": "accepted", "drop": "dropped"}

CHUNK = 100_000
"""Rows of a quarantine that are looked at at a time."""

SHOWN = 20
"""Rows that are shown of what would become of them."""


class Asked(msgspec.Struct, frozen=True):
    """Which rows somebody means: all of these must hold. `where` is SQL over a row, `rule` what it breaks, `file` where it came from."""

    where: str = ""
    rule: str = ""
    file: str = ""
    lines: tuple[int, ...] = ()
    all: bool = False


def overview(project: Project, data: str = "", *, decided_too: bool = False) -> list[dict[str, Any]]:
    """Return what waits in quarantine, per table, rule and file; rows that break several rules are counted under each.

    Returns one report per table: `rows`, `rules` (with the place of each in palan.toml) and `files`; with `decided_too`
    also what was `decided` about by a person, and why.

    Raises:
        NotFound: palan.toml has no such table.
    """
    if data:
        project.data(data)
    found = []
    for name in [data] if data else project.config.data:
        open_ = waiting(project, name)
        if not (open_ or data or (decided_too and decided(project, name))):
            continue
        contract = tables.contract_of(project, name)
        rules, files = _sums(each.reasons for each in open_), dict.fromkeys(each.source for each in open_)
        report: dict[str, Any] = {
            "data": name,
            "rows": sum(each.rows for each in open_),
            "rules": [{"rule": rule, "rows": rows, "contract": _place(project, contract, rule)} for rule, rows in rules.items()],
            "files": [{"file": file, "came": stamp(mine[0].time), "rows": sum(each.rows for each in mine), "rules": _sums(each.reasons for each in mine)} for file in files if (mine := [each for each in open_ if each.source == file])],
        }
        if decided_too:
            report["decided"] = [{"file": each.source, "rows": each.rows, "was": each.status, "reason": each.reason, "rules": dict(each.reasons)} for each in decided(project, name)]
        found.append({**report, "next": f"palan data quarantine show {name}" if open_ else ""})
    return found


def show(project: Project, data: str, asked: Asked | None = None, *, limit: int = SHOWN) -> dict[str, Any]:
    """Return rows in quarantine, each with its cells as they came, which of them break which rule, and its place.

    Raises:
        NotFound: no such table, file or rule.
        PalanError: `where` cannot be asked of these rows.
    """
    contract = tables.contract_of(project, data)
    from palan.data.reading import LINE

    asked, rows = asked or Asked(), 0
    found: list[dict[str, Any]] = []
    whole = not (asked.where or asked.rule or asked.lines)  # how many there are is written down
    for each, pick in _meant(project, data, asked):
        marks = _Marks(contract)
        rows += each.rows if whole else 0
        for chunk in [tables.scan_frame(project, each.blob).head(limit - len(found)).collect()] if whole else _picked(project, each, pick, contract):
            rows += 0 if whole else chunk.height
            found += [marks.of(each.source, row) for row in chunk.sort(LINE).head(limit - len(found)).iter_rows(named=True)]
    return {"data": data, "rows": rows, "shown": found, "next": _ways_out(data, asked) if rows else ""}


def fix(project: Project, data: str, sets: Sequence[str], asked: Asked, *, reason: str = "", dry_run: bool = False) -> dict[str, Any]:
    """Put cells of rows in quarantine right (`temp = "temp" / 10`: SQL over the row), and take in the rows that hold then.

    They make a new version; one with a key that is known is a correction. Rows that still break a rule stay as they came.

    Returns `picked` rows, how many were taken (`rows`), `corrections`, what the others `still` break, `examples` with each
    changed cell as it came and as it would be, the `version`, and how many rows are `waiting`.

    Raises:
        NotFound: no such table, file, rule or column.
        Invalid: no reason is given, no rows are named, or none of them would hold.
        PalanError: an expression that cannot be computed.
        Conflict: palan.toml was changed and not held against what is stored yet.
    """
    from palan.data.amend import setting

    if not sets:
        raise Invalid("nothing is to be set", f"palan data quarantine fix {data} --where ... --set 'COLUMN = EXPRESSION' --reason WHY", field="set")
    return _decide(project, data, "fix", asked, [setting(each) for each in sets], reason, dry_run)


def accept(project: Project, data: str, asked: Asked, *, reason: str = "", dry_run: bool = False) -> dict[str, Any]:
    """Take rows in although they break a rule. What its column cannot hold (another type, nothing where something must be) cannot be.

    They are not judged again, neither when their file is read again nor when the contract changes. Returns and raises as `fix`.
    """
    return _decide(project, data, "accept", asked, [], reason, dry_run)


def drop(project: Project, data: str, asked: Asked, *, reason: str = "", dry_run: bool = False) -> dict[str, Any]:
    """Set rows aside for good: they do not come back when their file is read again. Returns and raises as `fix`."""
    return _decide(project, data, "drop", asked, [], reason, dry_run)


class _Outcome(msgspec.Struct):
    """What becomes of the rows of one quarantine that were picked."""

    quarantine: Quarantine
    picked: int
    lines: pl.Series  # of those that leave it
    rules: Counts  # which they break
    good: pl.DataFrame | None = None  # the same rows as they are taken in
    still: Counts = {}
    examples: list[dict[str, Any]] = []
    rows: int = 0


def _decide(project: Project, data: str, verb: Verb, asked: Asked, sets: Sequence[tuple[str, str]], reason: str, dry_run: bool) -> dict[str, Any]:
    contract = tables.contract_of(project, data)
    if not dry_run and not reason.strip():
        raise Invalid("nothing is decided without a reason, for the ledger", f'palan data quarantine {verb} {data} ... --reason "the sensor counts tenths"', field="reason")
    if asked == Asked():
        raise Invalid("it is not said which rows", "--where 'temp > 500', --rule, --file with --line, or --all", field="where")
    if dry_run:
        outcomes = [_without_rows(_outcome(project, contract, verb, each, pick, sets)) for each, pick in _meant(project, data, asked)]
        return _report(project, data, verb, outcomes, dry_run=True)
    with running(project, "quarantine", data, exclusive=f"ingest:{data}", wait=30) as journal:
        newest = tables.find_data_version(project, data)
        said = tables.rules_digest(project, data)
        if verb != "drop" and newest.verdict.get("contract", said) != said:
            raise Conflict(f"[data.{data}] in palan.toml was changed since {newest.ref}", f"palan ingest {data}")
        taking = _Taking(project, contract, newest, _DONE[verb], reason)
        outcomes = []
        for each, pick in reversed(_meant(project, data, asked)):  # the oldest first: of one key the newest says what it is
            taking.make_room(each.rows)
            outcome = _outcome(project, contract, verb, each, pick, sets)
            taking.add(outcome)
            outcomes.append(_without_rows(outcome))
        taking.flush()
        report = _report(project, data, verb, outcomes, corrections=taking.corrections, dry_run=False)
        if not taking.settled:
            return report
        with project.store.records.transaction(durable=True):
            journal.fence()
            if tables.find_data_version(project, data).id != newest.id:
                raise Conflict(f"{data} was changed meanwhile", f"palan data quarantine {data}")
            version = taking.version(journal) if verb != "drop" else newest
            settle(project, taking.settled)
            detail = {"where": asked.where, "rule": asked.rule, "file": asked.file, "lines": list(asked.lines), "set": [f"{name} = {text}" for name, text in sets]}
            files = _sums({each.quarantine.source: each.rows} for each in taking.settled)
            record(project, _DONE[verb], version.ref, reason, rows=report["rows"], rules=report["rules"], files=files, **{what: value for what, value in detail.items() if value})
        waiting_now = sum(each.rows for each in waiting(project, data))
        return {**report, "version": version.ref, "total": version.rows, "reason": reason, "waiting": waiting_now, "next": f"palan data quarantine {data}" if waiting_now else "palan status"}


def _meant(project: Project, data: str, asked: Asked) -> list[tuple[Quarantine, Pick]]:
    """Return the quarantines, the newest first, in which such rows may be, and which of their rows."""
    from palan.data.amend import Pick

    open_ = waiting(project, data)
    files = list(dict.fromkeys(each.source for each in open_))
    named = [file for file in files if asked.file in (file, file.rpartition("/")[2])] if asked.file else files
    if asked.file and not named and open_:
        raise NotFound(f'nothing of "{asked.file}" is in quarantine', nearest(asked.file, files) or f"palan data quarantine {data}")
    if asked.lines and len(named) > 1:
        raise Invalid(f"rows of {len(named)} files wait, and each has such lines", f"--file {named[0]} --line {asked.lines[0]}", field="file")
    known = list(_sums(each.reasons for each in open_))
    rules = [rule for rule in known if rule == asked.rule] or [rule for rule in known if rule.startswith(asked.rule)]
    if asked.rule and not rules and open_:
        raise NotFound(f'no row in quarantine breaks "{asked.rule}"', nearest(asked.rule, known) or f"palan data quarantine {data}")
    if asked.rule and len(rules) > 1:
        raise Invalid(f'"{asked.rule}" begins {len(rules)} rules', f"one of: {'; '.join(rules[:5])}", field="rule")
    pick = Pick(asked.where, rules[0] if asked.rule and rules else "", asked.lines)
    return [(each, pick) for each in open_ if each.source in named and (not pick.rule or pick.rule in each.reasons)]


def _picked(project: Project, each: Quarantine, pick: Pick, contract: Contract) -> Iterator[pl.DataFrame]:
    from palan.data.amend import picked

    for chunk in tables.scan_frame(project, each.blob).collect_batches(chunk_size=CHUNK, maintain_order=True):
        rows = picked(chunk, pick, contract)
        if rows.height:
            yield rows


def _outcome(project: Project, contract: Contract, verb: Verb, each: Quarantine, pick: Pick, sets: Sequence[tuple[str, str]]) -> _Outcome:
    import polars as pl

    from palan.data.amend import changed, types_alone
    from palan.data.reading import LINE, REASONS
    from palan.data.verdict import Judge, concerned, of_others

    chunks = list(_picked(project, each, pick, contract))
    rows = pl.concat(chunks) if chunks else pl.DataFrame(schema={LINE: pl.Int64, REASONS: pl.List(pl.String)})
    chunks = []
    picked = rows.height
    if verb == "drop" or not picked:
        return _Outcome(each, picked, rows[LINE], _reasons(rows), examples=_examples(rows, each, contract, pl.DataFrame(), []), rows=picked)
    bad, good = [], []
    touched = {name for name, _ in sets}
    # a copy stays one, whatever else it says, and so does what is wrong beside other rows, unless it is that which is set
    stays = [rule for rule in (of_others(contract)[:1] if verb == "accept" else of_others(contract)) if not touched & set(concerned(rule, contract, contract.names))]
    copies = pl.col(REASONS).list.set_intersection(pl.lit(stays, dtype=pl.List(pl.String))).list.len() > 0
    bad, rows = [rows.filter(copies)], rows.filter(~copies)
    asked = types_alone(contract) if verb == "accept" else replace(row_rules(contract), more=tuple(replace(one, unique=contract.told(one.name).unique) for one in row_rules(contract).more))
    judge = Judge(asked, open_columns=True, known=tables.known(project, asked))
    before = changed(rows.head(SHOWN), sets, contract)
    for begin in range(0, rows.height, CHUNK):
        held, broken = judge.take(changed(rows[begin : begin + CHUNK], sets, contract))
        good.append(held)
        bad.append(broken)
    taken = pl.concat(good, how="diagonal_relaxed") if good else pl.DataFrame()
    again = judge.repeated()
    if len(again):
        broken, places = judge.settle([changed(rows.filter(pl.col(LINE).is_in(again.implode())), sets, contract)])
        taken = taken.filter(~pl.int_range(pl.len(), dtype=pl.Int64).is_in(pl.Series(places).implode()))
        bad.append(broken)
    stay = pl.concat([part.select(LINE, REASONS) for part in bad])
    gone = rows.filter(~pl.col(LINE).is_in(stay[LINE].implode()))
    return _Outcome(each, picked, gone[LINE], _reasons(gone), taken, _reasons(stay), _examples(rows, each, contract, before, sets, stay), gone.height)


def _without_rows(outcome: _Outcome) -> _Outcome:
    """Return what is told of it in the end: the rows themselves would fill the memory."""
    return replace(outcome, lines=outcome.lines.clear(), good=None)


def _examples(
    rows: pl.DataFrame, each: Quarantine, contract: Contract, after: pl.DataFrame, sets: Sequence[tuple[str, str]], stay: pl.DataFrame | None = None
) -> list[dict[str, Any]]:
    """Return the first of the rows that were picked: what its changed cells, or those that break a rule, are and would be, and what it would still break."""
    from palan.data.reading import LINE, REASONS
    from palan.data.verdict import as_text

    first, marks = rows.head(SHOWN), _Marks(contract)
    new = as_text(after.select(list(dict.fromkeys(name for name, _ in sets)))).to_dicts() if sets else [{}] * first.height
    still = dict(stay.filter(stay[LINE].is_in(first[LINE].implode())).select(LINE, REASONS).iter_rows()) if stay is not None else {}
    told = []
    for row, values in zip(first.iter_rows(named=True), new, strict=True):
        marked = marks.of(each.source, row)
        cells = {name: [row.get(name), value] for name, value in values.items()} or {name: [value] for name, value in marked["cells"].items()}
        told.append({"file": each.source, "line": row[LINE], "cells": cells, "rules": marked["rules"], "still": still.get(row[LINE], [])})
    return told


class _Taking:
    """Gathers rows that are taken in, into as few parts of the table as may be, and what is to be written down of each quarantine."""

    def __init__(self, project: Project, contract: Contract, newest: DataVersion, status: str, reason: str) -> None:
        self.project, self.contract, self.newest, self.status, self.reason = project, contract, newest, status, reason
        from palan.flows import repair

        self.parts, self.masks, self.stored = repair.as_came(project, newest)
        self.settled: list[Settled] = []
        self.rows = self.corrections = 0
        self._waiting: list[_Outcome] = []

    def add(self, outcome: _Outcome) -> None:
        if outcome.rows and outcome.good is None:
            self._settle(outcome, "", None)
        elif outcome.rows:
            self._waiting.append(outcome)

    def make_room(self, rows: int) -> None:
        """Keep what waits, where there may soon be too much of it for one part, and it is not just a few rows."""
        waiting = sum(each.rows for each in self._waiting)
        if waiting > tables.PART_ROWS // 4 and waiting + rows > tables.PART_ROWS:
            self.flush()

    def flush(self) -> None:
        import polars as pl

        goods = [each.good for each in self._waiting if each.good is not None]
        if not goods:
            return
        rows = pl.concat(goods, how="diagonal_relaxed")
        key = self.contract.key
        last = rows.select(pl.struct(key).is_last_distinct()).to_series() if key else pl.repeat(True, rows.height, eager=True)
        places = pl.select(pl.when(last).then(last.cum_sum() - 1).cast(pl.UInt32)).to_series()
        part = tables.store_frame(self.project, rows.filter(last), part=len(self.parts))
        hidden = tables.overtaken(self.project, self.contract, self.parts, self.masks, {part: ()})
        corrected = sum(len(each) for each in hidden.values())
        self.masks = tables.with_masks(self.masks, {name: tables.store_mask(self.project, each) for name, each in hidden.items()})
        self.parts.append(part)
        self.corrections += corrected
        self.rows += int(last.sum()) - corrected
        for each in self._waiting:
            here, places = places[: each.rows], places[each.rows :]
            self._settle(each, part, here)
        self._waiting = []

    def _settle(self, outcome: _Outcome, part: str, places: pl.Series | None) -> None:
        import polars as pl

        from palan.data.reading import LINE

        old, rows, among = outcome.quarantine, tables.scan_frame(self.project, outcome.quarantine.blob), pl.col(LINE).is_in(outcome.lines.implode())
        gone = rows.filter(among)
        if places is not None:
            gone = gone.join(pl.LazyFrame({LINE: outcome.lines, tables.ROW: places}), on=LINE, how="left", maintain_order="left")
        rest = self._stored(rows.filter(~among)) if outcome.rows < old.rows else ""
        left = {reason: count - outcome.rules.get(reason, 0) for reason, count in old.reasons.items() if count > outcome.rules.get(reason, 0)}
        self.settled.append(Settled(old, self.status, outcome.rows, outcome.rules, self._stored(gone), rest, left, taken=part, reason=self.reason))

    def _stored(self, rows: pl.LazyFrame) -> str:
        buffer = io.BytesIO()
        rows.sink_parquet(buffer, compression="zstd")
        return self.project.store.blobs.put(buffer.getvalue())

    def version(self, journal: Journal) -> DataVersion:
        """Record the version that has these rows. To be called in a transaction."""
        warned = [rule for report in self.newest.verdict.get("files", ()) for rule in report.get("table", ()) if not rule["holds"]]
        from palan.flows import repair

        data = self.newest.data
        laid = repair.lay(self.project, self.contract, self.parts, self.masks, tables.suspicions(self.project, data, accepted=True), but={each.quarantine.id for each in self.settled})
        verdict = {**self.newest.verdict, "files": [{"corrections": self.corrections, "bad": 0, "table": warned}], tables.LAID: laid.told()}
        parts, masks = laid.over(self.parts, self.masks)
        laid.settle(self.project)
        return tables.add_version(self.project, data, parts=parts, rows=self.stored + self.rows + laid.rows, added=self.rows, run=journal.run.id, sources=self.newest.sources, verdict=verdict, masks=masks)


def _report(project: Project, data: str, verb: Verb, outcomes: Sequence[_Outcome], *, corrections: int = 0, dry_run: bool) -> dict[str, Any]:
    picked, rows = sum(each.picked for each in outcomes), sum(each.rows for each in outcomes)
    still = _sums(each.still for each in outcomes)
    broken = "; ".join(f"{count:,} x {reason}" for reason, count in still.items())
    if picked and not rows and not dry_run:
        if verb == "accept":
            raise Invalid(f"{counted(picked, 'row')} cannot be accepted, for its column cannot hold it: {broken}", f"palan data quarantine fix {data} ... --set, or another type in [data.{data}]", field="where")
        raise Invalid(f"{counted(picked, 'row')} would not hold: {broken}", f"palan data quarantine fix {data} ... --dry-run shows what they would be", field="set")
    would = f"would be {_DONE[verb]}" if dry_run else _DONE[verb]
    text = f"{counted(rows, 'row')} {would}" if picked else "no row in quarantine is like that"
    text += f", {counted(corrections, 'correction')}" if corrections else ""
    text += f"; {counted(picked - rows, 'row')} {'stay' if picked - rows > 1 else 'stays'}: {broken}" if picked > rows else ""
    return {
        "data": data,
        "verb": verb,
        "dry run": dry_run,
        "picked": picked,
        "rows": rows,
        "corrections": corrections,
        "rules": _sums(each.rules for each in outcomes),
        "still": still,
        "examples": [example for each in outcomes for example in each.examples][:SHOWN],
        "version": None,
        "waiting": sum(each.rows for each in waiting(project, data)),
        "text": text,
        "next": "" if picked else f"palan data quarantine {data}",
    }


class _Marks:
    """Tells of rows in quarantine which of their cells break which rule."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._about: dict[str, list[str]] = {}

    def of(self, source: str, row: Mapping[str, Any]) -> dict[str, Any]:
        from palan.data.reading import LINE, REASONS
        from palan.data.verdict import concerned

        columns = [name for name in row if not name.startswith("palan_")]
        marks: dict[str, list[str]] = {}
        for reason in row[REASONS]:
            about = self._about.setdefault(reason, concerned(reason, self._contract, columns))
            for name in about:
                marks.setdefault(name, []).append(reason)
        return {
            "file": source,
            "line": row[LINE],
            "rules": row[REASONS],
            "cells": {name: row[name] for name in marks if name in columns},
            "marks": marks,
            "row": {name: row[name] for name in columns},
        }


def _place(project: Project, contract: Contract, rule: str) -> str:
    """Return where palan.toml says what a rule is about: `palan.toml:9 temp = "float -30..50"`."""
    from palan.data.verdict import concerned

    about = [name for name in concerned(rule, contract, contract.names) if not rule.startswith(("check ", "key "))]
    text = (project.root / "palan.toml").read_text(encoding="utf-8").splitlines()
    begin = next((number for number, line in enumerate(text) if line.strip().startswith(f"[data.{contract.name}")), 0)
    setting = about[0] if about else "checks" if rule.startswith("check ") else "key" if rule.startswith("key ") else ""
    if not setting:
        return ""
    sought = (setting, f'"{setting}"', f"'{setting}'")
    line = next((number for number, line in enumerate(text[begin:], begin + 1) if line.partition("=")[0].strip() in sought), begin + 1)
    said = f"{setting} = {column_toml(contract.field(setting), contract.told(setting))}" if about else f"{setting} of [data.{contract.name}]"
    return f"palan.toml:{line} {said}"


def _ways_out(data: str, asked: Asked) -> str:
    which = f" --rule '{asked.rule}'" if asked.rule else f" --where '{asked.where}'" if asked.where else ""
    return f"palan data quarantine fix {data}{which or ' --where ...'} --set 'COLUMN = EXPRESSION' --dry-run"


def _sums(counts: Iterable[Counts]) -> dict[str, int]:
    """Return sums by what was counted, the largest first."""
    total: dict[str, int] = {}
    for each in counts:
        for what, count in each.items():
            total[what] = total.get(what, 0) + count
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _to_do(data: str, open_: Sequence[Quarantine], suspected: bool) -> str:
    files = sorted({each.source for each in open_})
    if files:
        shown = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        return f"put {shown} right, or the rule in [data.{data}] where the rule is wrong; then: palan ingest {data}; or decide by hand: palan data quarantine show {data}"
    return f"have the rows delivered as they were before, with their key; then: palan ingest {data}; or, if it is no fault: palan accept {data} --reason WHY" if suspected else ""


def _shown(value: object) -> str:
    return "nothing" if value is None else f'"{str(value)[:60]}"'


def parted(project: Project, old: Quarantine, bad: pl.DataFrame, rest: pl.DataFrame, status: str, because: str, *, keep: bool = True) -> Settled:
    """Return what is to be written down of a quarantine of which all rows but the rest leave."""
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
