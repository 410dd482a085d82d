"""`palan watch`: compare each window of decisions with what is normal, and open an alarm where harm or a fault shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from palan.core import Version, digest_of, new_id, stamp, unstamp
from palan.data.nouns import Repair
from palan.drift.nouns import Alarm
from palan.errors import NotFound
from palan.flows import history, packages, replay, tables
from palan.flows.config import ModelConfig
from palan.flows.deliveries import silence
from palan.flows.journal import Journal, running
from palan.flows.project import Project, record
from palan.flows.windows import MUCH, ended_windows, window_start
from palan.ledger import Entry
from palan.models.contract import SHAPE
from palan.releases import route
from palan.releases.nouns import Release

if TYPE_CHECKING:
    import polars as pl

    from palan.data.doctor import Hypothesis
    from palan.drift.calibrate import Judged, LossWindow, Thresholds
    from palan.drift.diagnose import Diagnosis
    from palan.drift.profile import Reference

AGAIN = 8
"""How many windows back late outcomes are still looked for."""

HISTORY_WEEKS = 4
"""How far back the data doctor looks for what is usual."""

SURE = 0.5
"""Confidence from which on a hypothesis of the data doctor counts as a fault."""

EXAMINED = 64
"""How many of the doctor's findings a process remembers."""

_examined: dict[str, list[Any]] = {}

ENDS_REPAIR = "ends_repair"
"""Marks the alarm of a feed that is right again while its repair still stands."""

SILENT = "silent"
"""Marks the alarm of a model that nobody asks any more."""

VERSION = "version"
"""Under which an alarm keeps the version that was judged."""

LEARNING = 12
"""Windows of its own that a model without a reference is learnt from."""


class Normal(msgspec.Struct):
    """What is normal for a version: frozen bins, thresholds, and the rows they came from."""

    reference: Reference
    thresholds: Thresholds
    rows: pl.LazyFrame


class Case(msgspec.Struct):
    """What is judged: the decisions of a model under its release, and what is normal for its champion."""

    config: ModelConfig
    version: Version
    release: Release
    normal: Normal
    rows: pl.DataFrame


def watch(project: Project, model: str = "") -> list[dict[str, Any]]:
    """Judge every window that ended and was not judged with all its outcomes yet, of one model or of all released ones.

    Returns one report a model: its newest window's lane and sentence, the alarms that opened or changed, and how many
    pages are open. A page needs harm or a data fault; everything else is a digest.

    Raises:
        NotFound: no such model, or it is not released.
    """
    records = project.store.records
    if model:
        project.model(model)
        if records.get(Release, model) is None:
            raise NotFound(f"{model} is not released, so there is nothing to watch", f"palan release {model}")
    reports = []
    for name in [model] if model else project.config.models:
        release = records.get(Release, name)
        if release is not None:
            reports.append(_watch(project, project.model(name), release))
    return reports


def _watch(project: Project, config: ModelConfig, release: Release) -> dict[str, Any]:
    version = packages.find_version(project, release.champion.version)
    judged: list[dict[str, Any]] = []
    alarms: list[Alarm] = []
    seen = frames(project, config.name)
    if _due(project, config, version, seen):  # a lease and a run are for who has something to judge
        with running(project, "watch", config.name, wait=30) as journal:
            seen = frames(project, config.name)
            judged, alarms = _judged(project, config, version, release, seen, journal)
    newest = seen[max(seen)] if seen else None
    pages = project.store.records.find(Alarm, model=config.name, lane="page", status="open")
    return {
        "model": config.name,
        "lane": newest["lane"] if newest else "learning",
        "text": newest["text"] if newest else "no window of decisions has ended yet",
        "windows": judged,
        "alarms": [_line(each) for each in {each.id: each for each in alarms}.values()],
        "open": len(pages),
    }


def _judged(
    project: Project, config: ModelConfig, version: Version, release: Release, seen: dict[str, dict[str, Any]], journal: Journal
) -> tuple[list[dict[str, Any]], list[Alarm]]:
    """Judge the windows that are due; return what was seen in each (`seen` learns it too), and the alarms it led to."""
    length = config.watch.window
    judged, alarms = [], []
    due = _due(project, config, version, seen)
    rows = decided(project, config, version, release, since=None if _own_reference(version) else _enough(due[0])) if due else None
    case = None
    if rows is not None and rows.height:
        case = Case(config, version, release, normal_of(project, config, version, rows, journal), rows)
    for since in due:
        until, before = since + length, seen.get(stamp(since - length))
        if before is not None and not before["n"] and (rows is None or not _within(rows, since, until).height):
            # The silence goes on, and there is nothing new to judge.
            frame = {**before, "since": stamp(since), "until": stamp(until), "first": stamp(since) not in seen}
            alarm = _silent(project, config, before["text"], since, until) if before["lane"] == "digest" else None
        elif case is not None:
            frame, alarm = _judge(project, case, since, until, seen)
        else:
            continue
        project.store.blocks.append(f"watch/{config.name}", [msgspec.msgpack.encode(frame)])
        seen[frame["since"]] = frame
        judged.append(frame)
        if alarm is not None:
            alarms.append(alarm)
    return judged, alarms


def _within(rows: pl.DataFrame, since: datetime, until: datetime) -> pl.DataFrame:
    import polars as pl

    return rows.filter(pl.col("time").is_between(since, until, closed="left"))


def _line(alarm: Alarm) -> dict[str, Any]:
    return {
        "id": alarm.id,
        "lane": alarm.lane,
        "status": alarm.status,
        "what": alarm.what,
        "diagnosis": alarm.diagnosis,
        "because": alarm.evidence.get("because", alarm.what),
        "since": stamp(alarm.since),
        "seen": stamp(alarm.time),
    }


def frames(project: Project, model: str) -> dict[str, dict[str, Any]]:
    """Return the newest judgement of each window, by the window's start."""
    return {each["since"]: each for each in history.stream(project, f"watch/{model}", msgspec.msgpack.decode)}


def _own_reference(version: Version) -> bool:
    """Tell whether what is normal has to be learnt from the model's own first windows."""
    return not version.manifest["reference"]


def _enough(due: datetime) -> datetime:
    """Return how far back decisions are needed to judge a window: the doctor's history, and a month for the diagnosis."""
    return due - timedelta(weeks=HISTORY_WEEKS + 1)


def _due(project: Project, config: ModelConfig, version: Version, seen: Mapping[str, Mapping[str, Any]]) -> list[datetime]:
    """Return the starts of the windows to judge: ended, with decisions, new or with outcomes told since."""
    import polars as pl

    logged = history.decisions(project, config.name)
    if not logged:
        return []
    length, now = config.watch.window, project.clock()
    first = min(each.time for each in logged)
    windows = ended_windows(first, length, now)
    due = [since for since in windows if stamp(since) not in seen]
    incomplete = [since for since in windows[-AGAIN:] if since not in due and seen[stamp(since)]["outcomes"] < seen[stamp(since)]["n"]]
    if incomplete:
        rows = history.frame(project, config.name, history.schema_of(version.manifest), since=incomplete[0]).select("time", "outcome")
        for since in incomplete:
            known = rows.filter(pl.col("time").is_between(since, since + length, closed="left"))["outcome"].is_not_null().sum()
            if known != seen[stamp(since)]["outcomes"]:
                due.append(since)
    return sorted(due)


def decided(
    project: Project, config: ModelConfig, version: Version, release: Release, *, since: datetime | None = None
) -> pl.DataFrame | None:
    """Return every decision (since a time) with inputs as the model saw them, outputs, and `loss` where the outcome is known."""
    import polars as pl

    schema = history.schema_of(version.manifest)
    if SHAPE[version.kind] == "instance":
        return _solves(project, config, version, since)
    rows = history.frame(project, config.name, schema, since=since)
    if not rows.height:
        return None
    raw = rows.filter(pl.col("arm") != "shadow").sort("time", maintain_order=True)
    rows = tables.repaired(raw, release.repairs, "time")
    names = replay.output_columns(rows, version)
    outputs = rows.select(names).rename({name: name.removeprefix("output.") for name in names})
    known, otherwise = rows["outcome"], _otherwise(project, config, release, raw)
    if otherwise is not None:
        known = pl.select(pl.when(~otherwise).then(known)).to_series()
    losses = replay.losses_of(packages.warm_worker(project, version), outputs, known) if "score" in version.manifest["verbs"] else None
    rows = rows.rename({name: f"output.{name.removeprefix('output.')}" for name in names})
    return rows.with_columns(loss=losses if losses is not None else pl.lit(None, pl.Float64))


def _otherwise(project: Project, config: ModelConfig, release: Release, raw: pl.DataFrame) -> pl.Series | None:
    """Tell which rows were answered under other repairs than those in force now; None where there never was any.

    A repair holds from the day on which the fault began, which is before it was found. What the answers in between lost
    says nothing about what is answered today: without this a mended feed would look like a world that changed.
    """
    import polars as pl

    verbs = [route.REPAIRED, route.REPAIR_ENDED]
    told = [each for each in project.store.records.find(Entry, order="seq", verb=verbs) if each.detail["model"] == config.name]
    if not told:
        return None
    stages: list[tuple[int, list[Repair]]] = [(0, [])]
    for each in told:
        repairs = [msgspec.convert({"inverse": "", **one}, Repair, strict=False) for one in each.detail["repairs"]]
        stages.append((each.detail["epoch"], repairs))
    found = pl.Series([False] * raw.height, dtype=pl.Boolean)
    for (epoch, repairs), (end, _) in pairwise(stages):
        here = raw["epoch"].is_between(epoch, end, closed="left")
        columns = dict.fromkeys(each.column for each in (*repairs, *release.repairs) if each.column in raw.columns)
        if not columns or not here.any():
            continue
        part = raw.filter(here)
        then, now = tables.repaired(part, repairs, "time"), tables.repaired(part, release.repairs, "time")
        differs = pl.select(pl.any_horizontal(then[name].ne_missing(now[name]) for name in columns)).to_series()
        found = found.scatter(here.arg_true(), differs)
    return found


def _solves(project: Project, config: ModelConfig, version: Version, since: datetime | None) -> pl.DataFrame | None:
    """Return one row a solve: its size, verdict, objective, gap, time and KPIs, and its realised loss."""
    import polars as pl

    from palan.decisions import log

    logged = history.decisions(project, config.name, since=since)
    if not logged:
        return None
    outcomes = history.outcomes(project, config.name)
    frame = log.to_frame(logged, outcomes, history.schema_of(version.manifest))
    by_id, by_key = log.told(outcomes)
    losses: list[float | None] = []
    known_outcome: list[int | None] = []
    for each in logged:
        outcome = by_id.get(f"{each.id}-0", by_key.get(each.keys[0]) if each.keys else None)
        known_outcome.append(None if outcome is None else 1)
        known = outcome is not None and each.outputs is not None and "score" in version.manifest["verbs"]
        losses.append(packages.warm_worker(project, version).score(each.outputs, outcome)[0] if known else None)
    sizes = {
        f"size.{name}": [len(each.inputs[name]) if isinstance(each.inputs.get(name), list) else None for each in logged]
        for name in history.schema_of(version.manifest).names
        if any(isinstance(each.inputs.get(name), list) for each in logged)
    }
    gap = (pl.col("objective") - pl.col("bound")).abs() / pl.max_horizontal(pl.col("objective").abs(), pl.lit(1e-9))
    return frame.drop("outcome").with_columns(
        gap.alias("gap"),
        pl.Series("seconds", [each.seconds for each in logged]),
        pl.Series("loss", losses, dtype=pl.Float64),
        pl.Series("outcome", known_outcome, dtype=pl.Int64),
        *(pl.Series(name, values, dtype=pl.Int64) for name, values in sizes.items()),
    )


def watched_columns(version: Version, rows: pl.DataFrame) -> list[str]:
    """Return the columns that are profiled: inputs and outputs of rows; verdict, figures and sizes of solves."""
    if SHAPE[version.kind] == "instance":
        fixed = ["status", "objective", "gap", "seconds"]
        return [name for name in rows.columns if name in fixed or name.startswith(("kpi.", "size."))]
    inputs = history.schema_of(version.manifest).names
    return [name for name in rows.columns if name in inputs or name.startswith("output.")]


def normal_of(
    project: Project, config: ModelConfig, version: Version, rows: pl.DataFrame, journal: Journal
) -> Normal:
    """Return what is normal for this version: learnt from its build's reference, else from its first own windows."""
    from palan.drift.calibrate import Thresholds
    from palan.drift.profile import Reference

    blob = version.manifest["reference"]
    start = window_start(rows["time"].min(), config.watch.window)  # type: ignore[arg-type]
    own = rows.clear() if blob else rows.filter(rows["time"] < start + LEARNING * config.watch.window)
    # A reference is read when it is needed: while the log is short, and to split a loss.
    reference = tables.scan_frame(project, blob) if blob else own.lazy()
    known = reference.collect_schema().names()
    columns = [name for name in watched_columns(version, rows) if name in known]
    parts = {
        "version": version.id,
        "window": config.watch.window.total_seconds(),
        "budget": config.watch.false_pages.total_seconds(),
        "rows": own.height,
        "known": own["loss"].count(),
        "columns": columns,
    }
    kept = journal.step(f"calibrate {config.name}", parts, lambda: _calibrate(project, config, reference.collect(), columns))
    found = msgspec.msgpack.decode(project.store.blobs.get(kept["blob"]), type=tuple[Reference, Thresholds])
    return Normal(found[0], found[1], reference)


def _calibrate(project: Project, config: ModelConfig, reference: pl.DataFrame, columns: Sequence[str]) -> dict[str, str]:
    import polars as pl

    from palan.drift import calibrate, profile

    length = config.watch.window
    bins = profile.freeze(reference, columns)
    profiles, losses = [], []
    newest = reference["time"].max()
    for since in _starts(reference, length):
        window = reference.filter(pl.col("time").is_between(since, since + length, closed="left"))
        whole = newest is not None and since + length <= newest + timedelta(days=1)  # type: ignore[operator]
        if window.height == 0 or not whole:
            continue
        profiles.append(profile.profile(window, bins))
        loss = loss_window(window)
        if loss is not None:
            losses.append(loss)
    budget = min(length / config.watch.false_pages, 0.5)
    thresholds = calibrate.calibrate(profiles, losses if "loss" in reference.columns else None, budget=budget)
    return {"blob": project.store.blobs.put(msgspec.msgpack.encode((bins, thresholds)))}


def _starts(rows: pl.DataFrame, length: timedelta) -> list[datetime]:
    first, last = rows["time"].min(), rows["time"].max()
    if first is None or last is None:
        return []
    start = window_start(first, length)  # type: ignore[arg-type]
    if start < first - length / 7:  # type: ignore[operator]
        start += length  # a window that the rows begin in the middle of is no whole one
    found = []
    while start <= last:  # type: ignore[operator]
        found.append(start)
        start += length
    return found


def loss_window(rows: pl.DataFrame) -> LossWindow | None:
    """Return the mean loss of the rows whose outcome is known, with the standard error that their days give it."""
    from palan.drift.calibrate import LossWindow

    if "loss" not in rows.columns:
        return None
    known = rows["loss"].drop_nulls()
    if not known.len():
        return None
    spread = known.std()
    error = float(spread) / known.len() ** 0.5 if spread is not None else None  # type: ignore[arg-type]
    return LossWindow(mean=float(known.mean()), rows=known.len(), error=error)  # type: ignore[arg-type]


def _judge(
    project: Project, case: Case, since: datetime, until: datetime, seen: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], Alarm | None]:
    import polars as pl

    from palan.drift import calibrate, profile

    config, normal = case.config, case.normal
    window = _within(case.rows, since, until)
    loss = loss_window(window.filter(pl.col("arm").is_in(["champion", "job"])))
    faults = hypotheses(case, since, until, seen)
    judged = calibrate.judge(profile.profile(window, normal.reference), loss, normal.thresholds, faults, unit=config.watch.unit)
    frame = {
        "since": stamp(since),
        "until": stamp(until),
        "n": window.height,
        "loss": judged.loss,
        "outcomes": int(window["outcome"].is_not_null().sum()),
        "threshold": judged.loss_threshold,
        "usual": judged.loss_usual,
        "lane": "learning" if judged.lane == "none" and judged.learning else judged.lane,
        "fault": bool([each for each in faults if each.confidence >= SURE]),
        "repairs": digest_of(case.release.repairs),
        "columns": [
            {"column": each.name, "distance": each.distance, "threshold": each.threshold, "text": each.text, "changed": each.changed}
            for each in judged.columns[:12]
        ],
        "text": judged.text,
        "first": stamp(since) not in seen,
    }
    if not window.height:  # whatever was wrong before is neither over nor going on
        if judged.lane == "none":
            return frame, None
        usual = normal.thresholds.rows.usual if normal.thresholds.rows else 0
        if usual < MUCH:  # none at all may be chance
            return frame, None
        said = silence(usual, until - since)
        return {**frame, "lane": "digest", "text": said}, _silent(project, config, said, since, until)
    _calm(project, case, judged, since)
    if judged.lane == "none":
        return frame, None
    diagnosis = _diagnose(case, window, since, until, judged, faults)
    alarm = _raise(project, case, judged, diagnosis, since, until, faults)
    if diagnosis.kind == "data fault" and diagnosis.since and alarm.since < diagnosis.since:
        # The doctor sees one window, and would say that the fault began with it.
        frame["text"] = judged.text.replace(diagnosis.text, alarm.what, 1)
    return frame, alarm


def hypotheses(case: Case, since: datetime, until: datetime, seen: Mapping[str, Mapping[str, Any]]) -> list[Hypothesis]:
    """Ask the data doctor about a window, against the healthy weeks before it."""
    import polars as pl

    from palan.data import doctor

    version, release, normal, rows = case.version, case.release, case.normal, case.rows
    if SHAPE[version.kind] == "instance":
        columns = [name for name in watched_columns(version, rows) if name.startswith("size.")]
    else:
        columns = history.schema_of(version.manifest).names
    if not columns or not set(columns) <= set(normal.rows.collect_schema().names()):
        return []
    sick = [
        (unstamp(each["since"]), unstamp(each["until"]))
        for each in seen.values()
        if each.get("fault") and each.get("repairs") == digest_of(release.repairs)  # else they were put right since
    ]
    begin = since - timedelta(weeks=HISTORY_WEEKS)
    span = pl.col("time").is_between(begin, since, closed="left")
    before = normal.rows.filter(span, pl.col("time") < rows["time"].min())  # a version that learnt from the log holds it too
    past = pl.concat([before.select("time", *columns), rows.lazy().filter(span).select("time", *columns)], how="vertical_relaxed").collect()
    for first, last in sick:
        past = past.filter(~pl.col("time").is_between(first, last, closed="left"))
    window = rows.filter(pl.col("time").is_between(since, until, closed="left")).select("time", *columns)
    if not past.height or not window.height:
        return []
    active = [repair for repair in release.repairs if repair.until is None or repair.until > since]
    # Late outcomes bring a window back, with the inputs that it had: the doctor need not look at them again.
    # The rows themselves are the key: two projects of one process may hold as many of them.
    content = [int(each.hash_rows().sum()) for each in (past, window)]
    asked = digest_of([columns, stamp(since), stamp(until), *content, release.repairs, sick])
    if asked not in _examined:
        if len(_examined) >= EXAMINED:
            _examined.clear()
        _examined[asked] = doctor.hypotheses(past, window, time="time", columns=columns, active=active)
    return _examined[asked]


def _diagnose(
    case: Case, window: pl.DataFrame, since: datetime, until: datetime, judged: Judged, faults: Sequence[Hypothesis]
) -> Diagnosis:
    import polars as pl

    from palan.drift import diagnose, profile

    normal, release = case.normal, case.release
    # When it began shows in the loss and in the column that moved most: the others need not be counted day by day.
    most = {each.name: normal.reference.columns[each.name] for each in judged.changed[:1]}
    reference = profile.Reference(normal.reference.id, most)
    recent = case.rows.filter(pl.col("time").is_between(since - 4 * (until - since), until, closed="left")).select("time", "loss", *most)
    losses, profiles, volume = {}, {}, {}
    for (day,), part in recent.group_by(pl.col("time").dt.date()):
        assert isinstance(day, date)
        loss = loss_window(part)
        if loss is not None:
            losses[day] = loss
        profiles[day] = profile.profile(part, reference)
        volume[day] = part.height
    split = None
    known = window.filter(pl.col("loss").is_not_null())
    names = normal.rows.collect_schema().names()
    inputs = [name for name in history.schema_of(case.version.manifest).names if name in names]
    if judged.loss_high and known.height and "loss" in names and inputs:
        moved = [each.name for each in judged.columns if each.name in inputs][:3]
        before = normal.rows.filter(pl.col("loss").is_not_null()).select(*inputs, "loss").collect()
        split = diagnose.split_loss(
            before.select(inputs),
            before["loss"].to_numpy(),
            known.select(inputs),
            known["loss"].to_numpy(),
            moved or inputs[:3],
            days=known["time"].dt.date().to_list(),
        )
    recently = [release] if release.previous and release.time >= since - (until - since) else []
    return diagnose.diagnose(
        judged=judged,
        hypotheses=faults,
        loss_by_day=losses,
        profiles_by_day=profiles,
        releases_since=recently,
        volume=volume,
        split=split,
        unit=case.config.watch.unit,
    )


def _raise(
    project: Project, case: Case, judged: Judged, diagnosis: Diagnosis, since: datetime, until: datetime, faults: Sequence[Hypothesis]
) -> Alarm:
    """Open an alarm, or add the window to the open one that says the same. A page makes the open digests moot."""
    from palan.drift.diagnose import title, when

    records, config = project.store.records, case.config
    now = project.clock()
    because = judged.text if diagnosis.text in judged.text else f"{diagnosis.text}; {judged.text}"
    evidence = {**_plain(diagnosis.evidence), "because": because, VERSION: case.version.ref}
    if any(each.ends_repair and each.confidence >= SURE for each in faults):
        evidence[ENDS_REPAIR] = True
    before = _continued(project, config, judged.lane, diagnosis.kind, diagnosis.columns, since)
    with records.transaction(durable=True):
        if before is not None:
            newer = until >= before.until
            # A fault goes on as it began: a later window knows its own first day only.
            kept = newer and diagnosis.kind != "data fault"
            changed = replace(
                before,
                # An answered alarm opens again when it goes on, not when late outcomes only say the same again.
                status="open" if until > before.until else before.status,
                until=max(before.until, until),
                what=title(judged, diagnosis, before.since, before.time) if kept else before.what,
                diagnosis=diagnosis.kind,
                columns=diagnosis.columns,
                evidence={**evidence, "because": because if kept else before.evidence.get("because", because)},
            )
            records.put(changed)
            return changed
        began = diagnosis.since or since
        what = title(judged, diagnosis, began, now)
        alarm = Alarm(new_id(now), config.name, now, judged.lane, "open", began, until, what, diagnosis.kind, diagnosis.columns, evidence)
        records.put(alarm)
        if judged.lane == "page":
            for each in records.find(Alarm, model=config.name, lane="digest", status="open"):
                _close(project, each, f"the page of {now:%Y-%m-%d} says more")
        record(
            project,
            "paged" if judged.lane == "page" else "noted",
            config.name,
            f"{diagnosis.kind} {when(began, now)}: {diagnosis.text}",
            alarm=alarm.id,
            since=stamp(began),
            until=stamp(until),
        )
    project.tell(f"{config.name}: {judged.lane}: {what}")
    return alarm


def _silent(project: Project, config: ModelConfig, what: str, since: datetime, until: datetime) -> Alarm:
    """Open an alarm of its own for a model that nobody asks any more, or let the open one go on."""
    records, now = project.store.records, project.clock()
    for each in records.find(Alarm, model=config.name, lane="digest", status="open"):
        if SILENT in each.evidence:
            changed = replace(each, until=max(each.until, until))
            records.put(changed)
            return changed
    alarm = Alarm(new_id(now), config.name, now, "digest", "open", since, until, what, "volume change", (), {SILENT: True, "because": what})
    with records.transaction(durable=True):
        records.put(alarm)
        record(project, "noted", config.name, f"{alarm.diagnosis}: {what}", alarm=alarm.id, since=stamp(since), until=stamp(until))
    project.tell(f"{config.name}: {what}")
    return alarm


def _continued(
    project: Project, config: ModelConfig, lane: str, diagnosis: str, columns: tuple[str, ...], since: datetime
) -> Alarm | None:
    """Return the alarm that a window goes on with: the open digest, or a page that reached this window.

    A data fault and a loss are two matters, and a fault of other columns is a third; how a loss is explained may change
    from one week to the next without it being another alarm.
    """
    for each in project.store.records.find(Alarm, order="-time", model=config.name, lane=lane, status=["open", "answered"]):
        if SILENT in each.evidence:
            continue
        if lane == "digest":
            return each
        alike = each.columns == columns if diagnosis == "data fault" else each.diagnosis != "data fault"
        if alike and (each.diagnosis == "data fault") == (diagnosis == "data fault") and each.until >= since:
            return each
    return None


def _calm(project: Project, case: Case, judged: Judged, since: datetime) -> None:
    """Close what a later window shows to be over.

    A page is over after a window without harm or fault. A digest is over after a window as usual, after one in which
    none of its columns is moved any more, and when another version answers, which has learnt anew what is normal.
    """
    moved = {each.name for each in judged.changed}
    for alarm in project.store.records.find(Alarm, model=case.config.name, status="open"):
        if alarm.until > since:
            continue
        if judged.lane == "none" or (alarm.lane == "page" and judged.lane == "digest"):
            _close(project, alarm, "the window after it is as usual")
        elif alarm.lane == "digest" and SILENT in alarm.evidence:
            _close(project, alarm, "it is asked again")
        elif alarm.lane == "digest" and alarm.evidence.get(VERSION, case.version.ref) != case.version.ref:
            _close(project, alarm, f"{case.version.ref} answers now, and has learnt anew what is normal")
        elif alarm.lane == "digest" and moved.isdisjoint(alarm.columns) and (moved or alarm.columns):
            _close(project, alarm, f"{', '.join(alarm.columns[:3])} moved back" if alarm.columns else "other things moved since")


def _close(project: Project, alarm: Alarm, reason: str) -> None:
    """Close an alarm, with the reason in the ledger."""
    with project.store.records.transaction(durable=True):
        project.store.records.put(replace(alarm, status="closed"))
        record(project, "closed", alarm.model, f"{alarm.what} is over: {reason}", alarm=alarm.id)


def _plain(value: Any) -> Any:
    """Return plain values with times as text, so that the store can keep them as they are."""
    return msgspec.json.decode(msgspec.json.encode(value))
