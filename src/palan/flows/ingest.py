"""`palan ingest`: take in what was delivered, verify every row, keep the broken ones apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from palan.core import Version, counted, digest_of
from palan.data.contract import Contract
from palan.data.nouns import DataVersion, Quarantine
from palan.errors import Busy, Conflict, Corrupt, NotFound, PalanError
from palan.flows import deliveries, examine, fetch, quarantine, repair, tables
from palan.flows.deliveries import REFUSED, failure
from palan.flows.fetch import Arrival, Delivery
from palan.flows.journal import Journal, recorded, running
from palan.flows.project import Project, record
from palan.runs.run import Step

if TYPE_CHECKING:
    import polars as pl

    from palan.data.amend import Told
    from palan.data.doctor import Hypothesis
    from palan.data.formats import Written
    from palan.data.reading import Layout
    from palan.data.verdict import Judge


def ingest(project: Project, data: str = "") -> list[dict[str, Any]]:
    """Take in every file of a table's source (of all tables without a name) that was not taken in before.

    Returns one report per table: `files`, new `rows` and the `total` of the version, `quarantined` rows and those that
    are `waiting` in all, what was `resolved` of them, `warnings`, the `version`, and what to do `next`. Ingesting twice
    adds nothing; a row that is delivered again with the same key is a correction. Of a file that was taken in before and
    has changed, only the rows that differ from what it delivered then are taken. Rows in quarantine that a changed
    contract lets pass are taken in.

    A file that cannot be taken in keeps no other one out, and no other table: the rest is in the store when this raises.
    The failure stays in `palan status` until the table is ingested without one, and is in the ledger once.

    Raises:
        NotFound: no such table, or its source matches no file.
        PalanError: a file that cannot be read as what it is; or a key or a type in palan.toml that was changed and
            does not fit the stored rows, and nothing of that table is taken in then.
    """
    names = [data] if data else _in_order(project)
    if not names:
        raise NotFound("this project declares no data with a source", 'add to palan.toml: [data.NAME] source = "feed/*.csv"')
    reports: list[dict[str, Any]] = []
    errors: list[PalanError] = []
    for name in names:
        try:
            reports.append(_ingest(project, name, named=bool(data)))
        except (Busy, Conflict):
            raise
        except PalanError as error:
            errors.append(error)
    if len(errors) > 1:
        raise PalanError(f"{errors[0].what}\nand so {len(errors) - 1} more of {len(names)} tables: palan status", errors[0].hint)
    if errors:
        raise errors[0]
    return reports


def _in_order(project: Project) -> list[str]:
    """Return the tables that have a source, each after those that its columns refer to."""
    names = [name for name, config in project.config.data.items() if config.source]
    refers = {name: {each.of.partition(".")[0] for each in tables.contract_of(project, name).more if each.of} for name in names}
    ordered: list[str] = []
    while names:
        ready = [name for name in names if not refers[name] & set(names) - {name}] or names
        ordered += ready
        names = [name for name in names if name not in ready]
    return ordered


def _ingest(project: Project, name: str, *, named: bool) -> dict[str, Any]:
    config = project.data(name)
    if not config.source:
        raise PalanError(f'data "{name}" is made by {config.transform}, not ingested', "palan build makes it when it is needed")
    if fetch.source_of(project, name).kind == "files" and not fetch.files(project, name):
        if named:
            raise NotFound(f"nothing matches {config.source} in {project.root}", f"put files there, or change source in [data.{name}]")
        newest = tables.latest(project, name)
        text = f"nothing matches {config.source} in {project.root}"
        return {"data": name, "files": [], "rows": 0, "total": newest.rows if newest else 0, "quarantined": 0, "version": newest.ref if newest else None, "text": text, "next": ""}
    with running(project, "ingest", name, wait=30) as journal:
        try:
            report, errors = _take_in(project, name, journal)
        except (Busy, Conflict):
            raise  # nothing is wrong with the delivery
        except PalanError as error:
            errors = [error]
        if errors:
            raise _refused(project, name, errors, journal)
        return report


def _refused(project: Project, name: str, errors: Sequence[PalanError], journal: Journal) -> PalanError:
    """Keep what failed with the run, for the status; tell the ledger, unless the run before failed with the same."""
    first, more = errors[0], len(errors) - 1
    what = f"{first.what}; and {more} more {'file' if more == 1 else 'files'} of {name} could not be taken in" if more else first.what
    known = digest_of([[each.what, each.hint] for each in errors])
    again = failure(project, name).get(REFUSED) == known
    with project.store.records.transaction(durable=True):
        journal.note(tags={**journal.run.tags, REFUSED: known, "what": what, "hint": first.hint})
        if not again:
            record(project, REFUSED, name, what, failures=[each.what for each in errors])
    for each in errors[1:]:
        project.tell(each.what)
    return PalanError(what, first.hint) if more else first


def _take_in(project: Project, name: str, journal: Journal) -> tuple[dict[str, Any], list[PalanError]]:
    """Take in the deliveries that can be; return the report on them, and why each other one cannot."""
    records = project.store.records
    newest = tables.latest(project, name)
    known = dict(newest.sources) if newest else {}
    parts, masks, stored = repair.as_came(project, newest) if newest else ([], {}, 0)
    contract, said = tables.contract_of(project, name), tables.rules_digest(project, name)
    if newest and newest.verdict.get("contract", said) != said:
        from palan.flows.evolve import contract_diff

        for change in contract_diff(project, name)["changes"]:
            if change["breaks"]:
                project.tell(f"{name}: {change['text']}: may break {', '.join(change['breaks'])}")
    stale = _judge_again(project, contract, newest, said, journal) if newest and newest.parts else ""
    changed = newest is not None and newest.verdict.get("contract", said) != said
    total = stored
    reports: list[dict[str, Any]] = []
    quarantines: list[tuple[Quarantine, int]] = []
    errors: list[PalanError] = []
    seen = deliveries.seen(project, name)
    arrivals = fetch.arrivals(project, contract, newest)
    for arrival in arrivals:
        try:
            # the files before the last are history, whose age says nothing
            asked = contract if arrival is arrivals[-1] else replace(contract, fresh=None)
            delivery, report = _take_one(project, asked, arrival, known, seen, parts, masks, journal)
        except (Busy, Conflict, Corrupt):
            raise  # it is the store that is in the way, not the file
        except PalanError as error:
            errors.append(error)
            continue
        if delivery is None or report is None:
            continue
        source, content = delivery.source, delivery.content
        project.tell(f"{source}: {report['text']}")
        known[delivery.place] = report.get("mark", content)
        parts += report["parts"]
        masks = tables.with_masks(masks, report["masks"])
        for number, kept in enumerate(report["quarantine"]):
            id = digest_of([name, source, content, *([number] if number else [])])[:26]
            quarantines.append((Quarantine(id, name, project.clock(), source, kept["blob"], kept["rows"], kept["reasons"]), len(reports) + 1))
        reports.append({**report, "source": source})
    settled = quarantine.delivered(project, contract, reports)
    at_once = quarantine.put_right(project, contract, quarantines, reports)  # a file, and the one that corrects it
    if changed:
        gone = {each.quarantine.id for each in settled}
        again, taken = quarantine.judged_again(project, contract, parts, masks, journal, but=gone)
        settled += again
        for report in taken:
            parts += report["parts"]
            masks = tables.with_masks(masks, report["masks"])
    else:
        taken = []
    added = sum(each["added"] for each in (*reports, *taken))
    bad = sum(report["bad"] for report in reports)
    suspect, told = _examined(project, contract, newest, parts, reports)
    gone = {each.quarantine.id for each in (*settled, *at_once)}
    laid = repair.lay(project, contract, parts, masks, suspect, came=[new for new, _ in quarantines], but=gone)
    more = laid.righted - (newest.verdict.get(tables.LAID, {}).get("righted", 0) if newest else 0)
    righted = [f"{counted(more, 'row')} put right: {repair.said(suspect)}"] if more > 0 else []
    resolved = [*(each.text for each in (*settled, *at_once) if each.rows), *righted]
    warnings = [*([stale] if stale else []), *told]
    version: DataVersion | None = newest
    if reports or stale or taken:
        over, hidden = laid.over(parts, masks)
        with records.transaction(durable=True):
            journal.fence()
            version = tables.add_version(
                project,
                name,
                parts=over,
                rows=total + added + laid.rows,
                added=added,
                run=journal.run.id,
                sources=known,
                verdict={
                    "key": list(contract.key),
                    "contract": said,
                    "files": [*(_stored(each) for each in warnings), *(report["verdict"] for report in reports)],
                    tables.SUSPECT: [msgspec.to_builtins(each) for each in suspect],
                    tables.LAID: laid.told(),
                },
                masks=hidden,
            )
            quarantine.settle(project, settled)
            for new, _ in quarantines:
                records.put(new)  # one of the same rows may have been resolved before
            quarantine.settle(project, at_once)
            laid.settle(project)
            text = "; ".join([f"{counted(added, 'row')} from {counted(len(reports), 'file')}, {bad:,} in quarantine", *resolved, *warnings])
            changes = [{"source": each.quarantine.source, "status": each.status, "rows": each.rows, "reasons": dict(each.reasons)} for each in (*settled, *at_once) if each.rows]
            record(project, "ingested", version.ref, text, rows=added, quarantined=bad, **({"resolved": changes} if changes else {}))
    deliveries.keep(project, name, seen)
    fetch.swept(project, name)
    waiting = sum(each.rows for each in quarantine.waiting(project, name))
    return {
        "data": name,
        "files": [report["source"].rpartition("/")[2] for report in reports],
        "rows": added,
        "total": version.rows if version else 0,
        "corrections": sum(each["corrections"] for each in (*reports, *taken)),
        "late": sum(each.get("late", 0) for each in reports),
        "quarantined": bad,
        "waiting": waiting,
        "resolved": resolved,
        "version": version.ref if version else None,
        "reasons": _sum(report["reasons"] for report in reports),
        "read": {report["source"]: report["read"] for report in reports},
        "warnings": [*warnings, *(warning for report in reports for warning in report["warnings"])],
        "text": "; ".join([*warnings, *resolved, *(report["text"] for report in reports)]) or "nothing new",
        "next": _next(project, name, version, bool(waiting or any(not examine.DECIDED & set(each.evidence) for each in suspect))),
    }, errors


def _examined(
    project: Project, contract: Contract, newest: DataVersion | None, parts: Sequence[str], reports: Sequence[Mapping[str, Any]]
) -> tuple[list[Hypothesis], list[str]]:
    """Return what the data doctor suspects of the table, and what it says of these deliveries."""
    kept = tables.suspicions(project, contract.name, accepted=True) if newest else []
    if not reports or not contract.time:
        return kept, []
    from palan.flows.shapes import shapes

    before = [part for part in parts if newest and part in set(newest.parts)]
    broken = [each["blob"] for report in reports for each in report["quarantine"]]
    new = [part for report in reports for part in report["parts"]]
    of_files = [each for each in kept if "files" in each.evidence]
    whole, found, said = shapes(project, contract, before, reports, of_files)
    suspect, told = examine.examine(project, contract, before, new, broken, [each for each in kept if each not in of_files])
    # that a column is missing in all rows is said by what became of its name
    spoken = {name for each in whole for name in each.columns}
    suspect, told = ([each for each in every if each.kind != "nulls" or not spoken & set(each.columns)] for every in (suspect, told))
    suspect = repair.by_policy(project, contract.name, [*whole, *suspect])
    told = [each for each in (*found, *told) if any(each is one for one in suspect)]
    return suspect, [*(examine.said(each) for each in told), *said]


def _next(project: Project, name: str, version: DataVersion | None, odd: bool) -> str:
    """Return what to type after an ingest: look at what is odd, build a model that has no version, or see how things are."""
    if version is None:
        return ""
    if odd:
        return f"palan why {version.ref}"
    unbuilt = [model for model, config in project.config.models.items() if _feeds(project, name, config.data)]
    return next((f"palan build {model}" for model in unbuilt if not project.store.records.find(Version, limit=1, model=model)), "palan status")


def _feeds(project: Project, name: str, data: str) -> bool:
    """Tell whether a model that has this data is waiting for this table: as its own, or with others to be made from."""
    return data == name or (bool(data) and bool(project.config.data[data].transform))


def _take_one(
    project: Project,
    contract: Contract,
    arrival: Arrival,
    known: Mapping[str, str],
    seen: dict[str, deliveries.Seen],
    parts: Sequence[str],
    masks: Mapping[str, tuple[str, ...]],
    journal: Journal,
) -> tuple[Delivery | None, dict[str, Any] | None]:
    """Return what was delivered and what was found in it; None for what was taken in as it is."""
    name, came = contract.name, arrival.come(known, seen)
    if came is None:
        return None, None
    table = digest_of(project.config.data[name].table)
    before: dict[str, Any] = {"source": came.place, "content": came.content, "contract": table, "after": list(parts), "masks": dict(masks)}
    if came.rows:
        decided = [*quarantine.decided(project, name), *quarantine.waiting(project, name)]
    else:
        decided = quarantine.decided(project, name, came.source) if came.source in known else []
    if decided:
        before["decided"] = [each.id for each in decided]

    def verify() -> dict[str, Any]:
        found = _verify(project, contract, came, parts, masks, known.get(came.place, ""), decided)
        if came.looked is not None:
            later = deliveries.look(came.path)
            if (later.size, later.changed) == (came.looked.size, came.looked.changed):
                return found
            raise PalanError(f"{came.source} was written while it was read", f"when it is whole: palan ingest {name}")
        return found

    report = journal.step(f"verify {came.place}", before, verify)
    if came.rows and not (report["parts"] or report["bad"]):  # nothing that was asked for is new
        return None, None
    return came, report


def _judge_again(project: Project, contract: Contract, newest: DataVersion, said: str, journal: Journal) -> str:
    """Hold the stored rows against a contract that was changed since; return what they break, "" when nothing.

    Raises:
        PalanError: the key is another one and does not tell the stored rows apart as the old one did, or stored values
            cannot be read as the type that their column has now.
    """
    import polars as pl

    anew = f"or take the files in anew under a name of their own: [data.{contract.name}_2]  palan ingest {contract.name}_2"
    key = list(newest.verdict.get("key", contract.key))
    if contract.key and not set(key) <= set(contract.key):
        rows = tables.scan(project, newest)
        by = [each for each in contract.key if each in rows.collect_schema().names()]
        others = rows.select(by).unique().select(pl.len()).collect(engine="streaming").item() if by else newest.rows
        if others != newest.rows:
            raise PalanError(
                f'data "{contract.name}": key = {_toml(contract.key)} makes {others:,} rows of what is stored, '
                f"and key = {_toml(key)}, by which {newest.ref} was made, {newest.rows:,}",
                f"write key = {_toml(key)} again, {anew}",
            )
    if newest.verdict.get("contract", said) == said:
        return ""
    parts = {"rows": newest.id, "contract": said}
    found = journal.step(f"verify {newest.ref} again", parts, lambda: _again(project, contract, newest))
    if not found["bad"]:
        return ""
    broken = "; ".join(f"{count} x {rule}" for rule, count in found["broken"].items())
    what = f"{found['bad']:,} of {found['rows']:,} stored rows break the contract that palan.toml has now: {broken}"
    if found["unread"]:
        raise PalanError(f'data "{contract.name}": {what}', f"give {', '.join(found['unread'])} the old type again, {anew}")
    return f"{what}; they stay until their file is delivered corrected (then: palan ingest {contract.name})"


def _again(project: Project, contract: Contract, newest: DataVersion) -> dict[str, Any]:
    """Judge the stored rows; of those that a person accepted, only whether their columns can hold them."""
    from palan.data.amend import types_alone
    from palan.data.verdict import again

    by_hand = {each.taken for each in quarantine.decided(project, contract.name) if each.status == "accepted"}
    masks, bad = tables.masks_of(project, newest), 0
    broken: dict[str, int] = {}
    unread: set[str] = set()
    for hand, asked in ((False, contract), (True, types_alone(contract))):
        parts = [part for part in newest.parts if (part in by_hand) == hand]
        if parts:
            stored = tables.scan_parts(project, parts, masks, contract).collect_batches(chunk_size=tables.PART_ROWS)
            verdict, odd = again(stored, asked, tables.known(project, asked))
            bad += verdict.bad
            unread |= set(odd)
            broken |= {rule.rule: rule.count + broken.get(rule.rule, 0) for rule in verdict.broken if rule.severity != "warn"}
    return {"rows": newest.rows, "bad": bad, "broken": broken, "unread": sorted(unread)}


def _stored(stale: str) -> dict[str, Any]:
    """Return what stored rows break in the form of a file's verdict."""
    return {"table": [{"rule": "stored rows", "holds": False, "text": stale, "severity": "warn"}]}


def _toml(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def _delivered_before(project: Project, source: str, parts: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return those of a table's parts that came from one file, in the order of delivery, with the rows in them that were no rows of it."""
    found: dict[str, tuple[str, ...]] = {}
    for step in project.store.records.find(Step, name=f"verify {source}"):
        told = recorded(step)
        for part in told["parts"] if "parts" in told else [told["part"]]:
            found[part] = (told["masks"][part],) if part in told.get("masks", {}) else ()
    return [(part, found[part]) for part in parts if part in found]


def _sum(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for reason, count in each.items():
            total[reason] = total.get(reason, 0) + count
    return total


def _verify(
    project: Project,
    contract: Contract,
    came: Delivery,
    parts: Sequence[str],
    masks: Mapping[str, tuple[str, ...]],
    mark: str,
    decided: Sequence[Quarantine],
) -> dict[str, Any]:
    """Judge a delivery in bounded memory, store its rows, and find out which stored rows they correct."""
    from palan.data import formats
    from palan.data.compressed import expanded
    from palan.data.reading import Layout

    told = quarantine.told(project, contract, decided)
    stored = _stored_before(project, contract, came, parts, masks, mark)
    history = _written_before(project, contract.name)
    layout = Layout()
    try:
        with came.path.open("rb") as raw:
            file = expanded(raw, came.path.name, came.path.stat().st_size)
            judge, good, rejected, repeated, written = _judge(project, contract, came, file, len(parts), stored, told, history, layout)
        hidden = tables.overtaken(project, contract, parts, masks, {part: (repeated[part],) if part in repeated else () for part, _ in good.parts})
        judge.rows += told.met
        verdict = judge.verdict(sum(len(rows) for rows in hidden.values()))
    except (Busy, Conflict, Corrupt):
        raise
    except PalanError as error:
        raise PalanError(f"{came.source}: {error.what}", error.hint) from error
    except OSError as error:
        raise fetch.unreadable(came.source, came.path, error) from error
    if verdict.stops:
        said = "; ".join(verdict.stops)
        raise PalanError(f"{came.source} is refused, and nothing of it is taken in: {said}", f"have it delivered corrected, or change that rule in [data.{contract.name}]; then: palan ingest {contract.name}")
    read, odd = formats.report(layout, written), formats.changed(written, history)
    # what was not asked for is not missing
    missed, gone, fewer = ({}, {}, 0) if came.rows else quarantine.missed(project, contract, decided, told)
    met = [f"{counted(told.met, 'row')} {'known from quarantine' if came.rows else 'as decided before'}"] if told.met else []
    come = _marked(project, contract, [part for part, _ in good.parts], mark) if came.rows else {}
    late = [f"{counted(come['late'], 'late row')}, from before {mark}"] if come.get("late") else []
    return {
        "source": came.source,
        **come,
        "parts": [part for part, _ in good.parts],
        "masks": {**repeated, **{part: tables.store_mask(project, rows) for part, rows in hidden.items()}, **gone},
        **({"missed": missed} if missed else {}),
        "added": judge.written - verdict.corrections - fewer,
        "corrections": verdict.corrections,
        "bad": verdict.bad,
        "quarantine": [{"blob": blob, "rows": rows, "reasons": reasons} for (blob, rows), reasons in zip(rejected.parts, rejected.reasons, strict=True)],
        "reasons": {rule.rule: rule.count for rule in verdict.broken if rule.severity != "warn"},
        "read": read,
        "warnings": [*verdict.warnings, *odd],
        "text": "; ".join([verdict.text, *odd, *late, *met]),
        "verdict": {**verdict.to_dict(), "read": read},
    }


def _written_before(project: Project, name: str) -> dict[str, Written]:
    """Return how the columns of a table were written in the deliveries that it was made from."""
    from palan.data import formats

    versions = reversed(project.store.records.find(DataVersion, order="-number", limit=50, data=name))
    told = [each["read"] for version in versions for each in version.verdict.get("files", []) if "read" in each]
    return formats.history_of(told)


def _stored_before(
    project: Project, contract: Contract, came: Delivery, parts: Sequence[str], masks: Mapping[str, tuple[str, ...]], mark: str
) -> Callable[[], Iterator[pl.DataFrame]] | None:
    """Return what yields the rows that are known: of a file, what it delivered before; of rows that are asked for, what is stored from there on."""
    if came.rows:
        return (lambda: fetch.stored(project, contract, parts, masks, came)) if parts else None
    earlier = _delivered_before(project, came.source, parts) if mark else []
    return (lambda: tables.told(project, contract, earlier)) if earlier else None


def _marked(project: Project, contract: Contract, parts: Sequence[str], mark: str) -> dict[str, Any]:
    """Return how far the cursor has come with these rows, and how many of them came late; nothing where there is no cursor."""
    source = fetch.source_of(project, contract.name)
    return fetch.marked(project, contract, source, parts, mark) if source.cursor else {}


def _judge(
    project: Project,
    contract: Contract,
    came: Delivery,
    file: IO[bytes],
    parts: int,
    stored: Callable[[], Iterator[pl.DataFrame]] | None,
    told: Told,
    history: Mapping[str, Written],
    layout: Layout,
    written: Mapping[str, Written] | None = None,
) -> tuple[Judge, tables.Writer, quarantine.Writer, dict[str, str], Mapping[str, Written]]:
    """Return the judge of a file, the rows that hold, those that do not, masks of the former that turned out to be of the
    latter, and how its columns are written: `written`, or the plain form until a value is met that cannot be read."""
    import polars as pl

    from palan.data import formats
    from palan.data.compressed import suffix_of
    from palan.data.reading import LINE, batches, keys_alone
    from palan.data.verdict import Before, Judge, key_hashes, keys_twice

    suffix = suffix_of(came.path.name)
    open_columns = suffix in (".ndjson", ".jsonl")

    def as_it_came() -> Iterator[pl.DataFrame]:
        file.seek(0)
        return batches(file, suffix, contract, layout)

    def read() -> Iterator[pl.DataFrame]:
        return told.over(fetch.asked_for(formats.plainly(as_it_came(), contract, written or {}), contract, came))

    if written is None and formats.settled(contract, history):
        written = formats.survey(as_it_came(), contract, history)

    known = tables.known(project, contract)
    before = Before(contract, stored) if stored else None
    if before is not None and not contract.key:
        first = Judge(contract, open_columns=open_columns, known=known)
        for batch in read():
            before.hear(first.take(batch)[0])
        before.compare()
    keys = [key_hashes(rows, contract) for rows in keys_alone(file, suffix, contract)]
    judge = Judge(contract, before, open_columns=open_columns, twice=keys_twice(keys) if keys else None, known=known, now=project.clock())
    good, rejected = tables.Writer(project, parts), quarantine.Writer(project)
    for batch in read():
        rows, bad = judge.take(batch)
        if written is None and (judge.unread or formats.doubtful(batch, contract)):
            written = formats.survey(as_it_came(), contract, history)
            return _judge(project, contract, came, file, parts, stored, told, history, layout, written)
        good.add(rows)
        rejected.add(bad)
    good.flush()
    lines = judge.repeated()
    bad, places = judge.settle([rows for batch in read() if (rows := batch.filter(pl.col(LINE).is_in(lines.implode()))).height] if len(lines) else [])
    rejected.add(bad)
    rejected.flush()
    return judge, good, rejected, good.masks(places), written or {}
