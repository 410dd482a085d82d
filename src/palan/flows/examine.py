"""Ask the data doctor about what was delivered, before anything learns from it: does it still mean what it meant?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec

from palan.core import unstamp
from palan.data.contract import Contract
from palan.flows import tables
from palan.flows.project import Project

if TYPE_CHECKING:
    import polars as pl

    from palan.data.doctor import Hypothesis
    from palan.data.nouns import Repair

HISTORY = 42
"""Healthy days that a stretch is compared with."""

OLDEST = timedelta(days=112)
"""How far back they may lie: beyond, it was another season."""

STRETCH = 15
"""Days that are judged together: in more, a change hides in the season; in one, weather looks like a change."""

ENOUGH = 28
"""Healthy days without which nothing is usual."""

FAR = 10.0
"""Times the largest distance that history shows between its own stretches, beyond which a number speaks for itself."""

DENSE = 12
"""Rows a day without which a day of numbers has no shape."""

NAMES = 500
"""Different values of a text column, beyond which it names single things, and none of them is missed."""

DAILY = 2000
"""Rows of a day that are looked at: of more, a sample by their keys, which has the same shape."""

THIN = 0.02
"""The share of a day's rows below which a correction changes nothing of what that day looks like."""

OF_A_DELIVERY = ("categories", "clock", "truncated", "sentinel", "partial")
"""What only a look at the delivery as a whole tells. Units, signs and columns exchanged are told from day to day."""

MONTH = 31
"""Days, the newest ones, that are looked at as one delivery."""

DECIDED = {tables.ACCEPTED, tables.REPAIRED}
"""What a person, or the policy of a table, has decided of a suspicion is kept under one of these."""

LATE = timedelta(days=3)
"""For so long rows may stay out before they are missed."""

EARLIEST, LATEST = date(1900, 1, 1), date(2200, 1, 1)
"""Days between which a time is no slip."""

LEAST = 7
MOST = 26
"""Stretches that one ingest judges, the newest ones: a year."""


def examine(
    project: Project, contract: Contract, before: Sequence[str], parts: Sequence[str], broken: Sequence[str], known: Sequence[Hypothesis]
) -> tuple[list[Hypothesis], list[Hypothesis]]:
    """Return what is suspected of a table now, and what of it these deliveries say.

    Args:
        before: the blobs that the table had.
        parts: those that were added. Their rows stand for stored ones of the same key.
        broken: blobs of rows that went to quarantine: a changed unit may have put a part of them out of their range.
        known: what was suspected before; what lies in the days that are judged now is judged anew.
    """
    import polars as pl

    from palan.data import doctor
    from palan.data.repair import apply
    from palan.data.verdict import typed

    columns = _columns(project, contract)
    if not contract.time or not columns or not (parts or broken):
        return list(known), []
    names = list(dict.fromkeys([contract.time, *contract.key, *columns]))
    refused = [_has(typed(tables.load_frame(project, blob), contract), names, contract) for blob in broken]
    new = _counted(project, contract, parts, refused)
    if not new:
        return list(known), []
    spared = [_sparing(each, parts, min(new), max(new)) for each in known]  # a correction of a few rows changes no day
    stored = _counted(project, contract, before, first=min(new), last=max(new))
    touched = sorted(day for day, count in new.items() if count >= THIN * max(count, stored.get(day, 0)))
    if not touched:
        return spared, []
    end = touched[-1]
    each_of = max(1, round(max(max(new[day], stored.get(day, 0)) for day in touched) / DAILY))
    came = [_sampled(project, part, names, contract, each_of) for part in parts] + [_every(frame.lazy(), contract, each_of).collect() for frame in refused]
    rows = doctor.dated(pl.concat(came), contract.time).filter(pl.col(doctor.DAY).is_between(touched[0], end))
    columns = [name for name in columns if rows.schema[name] != pl.String or rows[name].n_unique() <= NAMES]
    days = doctor.days_of(rows)
    if not days:
        return spared, []
    first = days[0]
    begin = min(first, days[-1] - timedelta(days=LEAST - 1))
    rows, days = _with_stored(project, contract, rows, before, names, begin, days[-1], each_of)
    judged = [day for day in days if day >= begin][-MOST * STRETCH :]
    if not judged:  # too few rows to make a day beside those that are stored
        return spared, []
    still: list[Hypothesis] = []
    after: list[Hypothesis] = []
    for each in known:
        if not (judged[0] <= each.since.date() and _through(each) <= judged[-1]):
            left, right = _around(each, touched[0], end)
            still, after = [*still, *left], [*after, *right]
    told: list[Hypothesis] = []

    def beside(stretch: Sequence[date]) -> tuple[pl.DataFrame, pl.DataFrame] | None:
        """Return the healthy rows before these days, what is suspected of them put right, and the rows of these days."""
        lost = [(each.since.date(), _through(each)) for each in (*still, *told) if not each.repairs or each.kind == "clock"]
        healthy = [day for day in days if stretch[0] - OLDEST <= day < stretch[0] and not any(first <= day <= last for first, last in lost)][-HISTORY:]
        if len(healthy) < ENOUGH:
            return None
        day = pl.col(doctor.DAY)
        past = apply(rows.filter(day.is_in(healthy)), [repair for each in (*still, *told) for repair in while_seen(each) if repair.column != contract.time], contract.time)
        return past, rows.filter(day.is_between(stretch[0], stretch[-1]))

    for stretch in _stretches(judged):
        frames = beside(stretch)
        if frames is None:
            continue
        past, window = frames
        for each in doctor.hypotheses(past, window, time=contract.time, columns=columns):
            if _is_certain(each, window.height / len(stretch), contract) and not (each.kind == "nulls" and set(each.columns) <= _outcomes(project)):
                through = each.until.date() - timedelta(days=1) if each.until else stretch[-1]
                told = _joined(told, [_marked(each, through)])
    newest = judged[-MONTH:]
    frames = beside(newest)
    if frames is not None:
        told = _with_the_delivery(told, *frames, contract, columns, newest[-1])
    told = [as_decided(each, known) for each in told]
    suspect = [each if any(_same(each, one) and one.since < end_of(each) for one in told) else _sparing(each, parts, min(new), max(new)) for each in _joined(still, [*told, *after])]
    return suspect, [each for each in told if _through(each) >= first and not DECIDED & set(each.evidence)]


def _with_the_delivery(told: Sequence[Hypothesis], past: pl.DataFrame, window: pl.DataFrame, contract: Contract, columns: Sequence[str], through: date) -> list[Hypothesis]:
    """Add what the newest rows show beside those before them that no day shows by itself, of columns not spoken of yet; and say
    of what the days told since which row it is so."""
    from palan.data.faults.diagnose import diagnose
    from palan.data.verdict import read_as

    frames = [frame.sort(contract.time, maintain_order=True).select(contract.time, *columns) for frame in (past, window)]
    spoken = {name for each in told for name in each.columns}
    every = diagnose(*frames, time=contract.time)
    found = [each for each in every if each.kind in OF_A_DELIVERY and not spoken & set(each.columns)]
    # a supplier may be some days late
    newest: datetime = read_as("time", window[contract.time]).max()  # type: ignore[assignment]
    found = [each for each in found if each.kind != "partial" or newest - each.since >= LATE]
    return _joined([_dated(each, every) for each in told], [_marked(each, through) for each in found])


def _dated(each: Hypothesis, found: Sequence[Hypothesis]) -> Hypothesis:
    """Return a suspicion since the row on which it began, where the look at rows says the same of its columns as that at days."""
    same = [one for one in found if one.kind == each.kind and set(one.columns) <= set(each.columns) and abs(one.since - each.since) < timedelta(days=2)]
    if {name for one in same for name in one.columns} != set(each.columns):
        return each
    since, sure = min(one.since for one in same), max(each.confidence, min(one.confidence for one in same))  # two looks that agree
    if since.date() != each.since.date():
        since = each.since
    return replace(each, since=since, confidence=sure, repairs=tuple(msgspec.structs.replace(repair, since=since) for repair in each.repairs))


def _sparing(each: Hypothesis, parts: Sequence[str], first: date, last: date) -> Hypothesis:
    """Return a suspicion that says nothing of these parts, though they are about its days: unless it is said of them anew."""
    if last < each.since.date() or _through(each) < first:
        return each
    return replace(each, evidence={**each.evidence, tables.BUT: [*each.evidence.get(tables.BUT, ()), *parts]})


def _around(each: Hypothesis, first: date, last: date) -> tuple[list[Hypothesis], list[Hypothesis]]:
    """Return what a suspicion says of the days before, and of those after, days that were delivered anew: of these it has to be said anew."""
    if last < each.since.date() or _through(each) < first:
        return [each], []
    left = [_marked(each, first - timedelta(days=1))] if each.since.date() < first else []
    since = datetime.combine(last + timedelta(days=1), clock(), UTC)
    rest = replace(each, since=since, repairs=tuple(msgspec.structs.replace(repair, since=since) for repair in each.repairs))
    return left, [rest] if since.date() <= _through(each) else []


def said(each: Hypothesis) -> str:
    """Say a suspicion in one line, with what would bring the column back."""
    from palan.data.faults.words import plain

    named = each.kind in ("categories", "renamed", "swap")  # what is said of them says what would put them right
    brings = "" if named else "; ".join(f"{plain(repair.expression)} brings {repair.column} back" for repair in each.repairs[:2])
    return "suspect: " + each.text.partition(": put right")[0] + (f": {brings}" if brings else "")


def _columns(project: Project, contract: Contract) -> list[str]:
    """Return the columns that have a meaning to lose: no times, and no numbers that only name a row."""
    return [field.name for field in contract.columns if field.type == "str" or (field.type in ("int", "float") and field.name not in contract.key)]


def _is_certain(each: Hypothesis, rows_a_day: float, contract: Contract) -> bool:
    """Tell whether more speaks for it than that the numbers moved: a warning of clean data is soon read by nobody.

    A watch may ask for a remedy to be tried; here nothing is tried. So a number's new unit has to show in what other
    columns say of it, or in the steps of its instrument, and be no other than the contract's unit can turn into.
    """
    if each.kind in ("sentinel", "categories"):
        return True
    if rows_a_day < DENSE:
        return False
    if each.kind in ("nulls", "stuck"):
        return each.kind == "nulls" or (float(each.evidence["before"]) >= LEAST and each.evidence["values"] == 1)
    if "relations" not in each.evidence:  # two columns of words that exchanged their values
        return True
    units = [contract.field(name).unit for name in each.columns]
    if each.kind == "unit" and any(unit and f"instead of {unit}" not in each.text for unit in units):
        return False
    related = any(found["before"] > 1 >= found["after"] for found in each.evidence.get("relations", ()))
    on_steps = any(before < 0.4 and after > 0.6 for before, after in each.evidence.get("lattice", {}).values())
    before, after = (each.evidence[name].values() for name in ("before", "after"))
    return related or on_steps or (min(before) >= FAR and max(after) <= 1)


def _outcomes(project: Project) -> set[str]:
    """Return the columns that are known only later: of the newest rows they are missing, and that is no fault."""
    return {model.outcome for model in project.config.models.values() if model.outcome}


def _has(frame: pl.DataFrame, names: Sequence[str], contract: Contract) -> pl.DataFrame:
    import polars as pl

    from palan.data.verdict import dtype_of, typed

    frame = typed(frame.select(name for name in names if name in frame.columns), contract)
    return frame.select(pl.col(name) if name in frame.columns else pl.lit(None, dtype_of(contract.field(name))).alias(name) for name in names)


def _counted(
    project: Project, contract: Contract, parts: Sequence[str], more: Sequence[pl.DataFrame] = (), *, first: date = EARLIEST, last: date = LATEST
) -> dict[date, int]:
    """Return how many rows each of these days has; only their times are read, and of files that say so that they have none nothing."""
    import polars as pl

    from palan.data.verdict import read_time

    found: dict[date, int] = {}
    for rows in (*(tables.scan_frame(project, part) for part in parts), *(frame.lazy() for frame in more)):
        schema = rows.collect_schema()
        if contract.time in schema:
            day = read_time(contract.time, schema[contract.time]).dt.date().alias("day")
            if schema[contract.time] == pl.Datetime("us", "UTC"):
                rows = rows.filter(pl.col(contract.time).is_between(datetime.combine(first, clock(), UTC), datetime.combine(last, clock.max, UTC)))
            for when, count in rows.select(day).filter(pl.col("day").is_between(first, last)).group_by("day").len().collect().iter_rows():
                found[when] = found.get(when, 0) + count
    return found


def _sampled(project: Project, part: str, names: Sequence[str], contract: Contract, each_of: int) -> pl.DataFrame:
    return _has(_every(tables.scan_frame(project, part), contract, each_of, names).collect(), names, contract)


def _every(rows: pl.LazyFrame, contract: Contract, each_of: int, names: Sequence[str] = ()) -> pl.LazyFrame:
    """Return these columns of one row in so many, the same ones whatever part they are in: by their keys."""
    import polars as pl

    known = rows.collect_schema().names()
    if each_of > 1:
        key = [name for name in contract.key if name in known]
        number = pl.struct(key).hash() if len(key) > 1 else pl.col(key[0]).hash() if key else pl.int_range(pl.len())
        rows = rows.filter(number % each_of == 0)
    return rows.select([name for name in names if name in known]) if names else rows


def _with_stored(
    project: Project, contract: Contract, rows: pl.DataFrame, before: Sequence[str], names: Sequence[str], begin: date, end: date, each_of: int
) -> tuple[pl.DataFrame, list[date]]:
    """Return the rows with the stored ones of these days and of a history before them, newest parts first, and all their days."""
    import polars as pl

    from palan.data import doctor

    key, first = list(contract.key), min(rows[doctor.DAY].unique().to_list())
    seen: set[date] = set()
    for part in reversed(before):
        stored = doctor.dated(_sampled(project, part, names, contract, each_of), contract.time)
        stored = stored.filter(pl.col(doctor.DAY).is_between(begin - OLDEST, end))
        days = stored[doctor.DAY].unique().to_list()
        if key and days and max(days) >= first:
            stored = stored.join(rows, on=key, how="anti", nulls_equal=True)
            days = stored[doctor.DAY].unique().to_list()
        rows = pl.concat([rows, stored])
        seen |= {day for day in days if day < begin}
        if len(seen) > HISTORY + LEAST and days and max(days) < begin:
            break
    rows = rows.sort(contract.time)
    return rows, doctor.days_of(rows)


def _stretches(days: Sequence[date]) -> list[Sequence[date]]:
    count = -(-len(days) // STRETCH)
    ends = [round(len(days) * number / count) for number in range(count + 1)]
    return [days[first:last] for first, last in pairwise(ends)]


def _through(each: Hypothesis) -> date:
    """Return the last day on which it was seen."""
    return unstamp(each.evidence["through"]).date()


def end_of(each: Hypothesis) -> datetime:
    """Return the end of the last day on which it was seen."""
    return datetime.combine(_through(each) + timedelta(days=1), clock(), UTC)


def while_seen(each: Hypothesis) -> list[Repair]:
    """Return its repairs, for the days on which it was seen: what is suspected must not become what is usual."""
    return [msgspec.structs.replace(repair, until=end_of(each)) for repair in each.repairs]


def _marked(each: Hypothesis, through: date, **changes: Any) -> Hypothesis:
    return replace(each, evidence={**each.evidence, "through": through.isoformat()}, **changes)


def _joined(earlier: Sequence[Hypothesis], later: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Return all of them, where one that goes on in a later stretch is the same one."""
    found = list(earlier)
    for each in later:
        place = next((number for number, old in enumerate(found) if goes_on(old, each)), None)
        if place is None:
            found.append(each)
        else:
            old = found[place]
            repairs = tuple(msgspec.structs.replace(repair, until=each.until) for repair in old.repairs)
            found[place] = _marked(old, max(_through(old), _through(each)), until=each.until, repairs=repairs)
    return found


def as_decided(each: Hypothesis, known: Sequence[Hypothesis]) -> Hypothesis:
    """Return a suspicion as somebody decided about the one that it is, or goes on with: as no fault, or as one to be put right."""
    decided = (old for old in known if DECIDED & set(old.evidence))
    old = next((old for old in decided if _same(old, each) and old.since - timedelta(days=2) <= each.since and each.since.date() <= _through(old) + timedelta(days=2)), None)
    if old is None:
        return each
    if tables.ACCEPTED in old.evidence:
        return replace(each, evidence={**each.evidence, tables.ACCEPTED: old.evidence[tables.ACCEPTED]})
    if not _puts_right(old, each):  # it is another fault now: nobody has accepted this repair
        return each
    since = old.since if abs(old.since - each.since) < timedelta(days=2) else each.since
    repairs = tuple(msgspec.structs.replace(repair, since=since) for repair in old.repairs)
    return replace(each, since=since, repairs=repairs, evidence={**each.evidence, "mapping": old.evidence.get("mapping", {}), tables.REPAIRED: old.evidence[tables.REPAIRED]})


def _puts_right(old: Hypothesis, each: Hypothesis) -> bool:
    """Tell whether a repair that was accepted is the one that is proposed, or names more values than that."""
    if each.kind == "categories" and old.evidence.get("mapping") and each.evidence.get("mapping"):
        return set(each.evidence["mapping"].items()) <= set(old.evidence["mapping"].items())
    return {(repair.column, repair.expression) for repair in old.repairs} == {(repair.column, repair.expression) for repair in each.repairs}


def _same(old: Hypothesis, each: Hypothesis) -> bool:
    return (old.kind, sorted(old.columns)) == (each.kind, sorted(each.columns))


def goes_on(old: Hypothesis, each: Hypothesis) -> bool:
    return _same(old, each) and old.since.date() <= each.since.date() and each.since.date() <= _through(old) + timedelta(days=2)
