"""`palan react`: try the remedies for an alarm by replay, and propose or release the one that surely pays."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from palan.core import Version, counted, new_id, unstamp
from palan.data.nouns import Repair
from palan.drift.nouns import Alarm
from palan.errors import Corrupt, LeaseLost, ModelFailed, NotFound, PalanError
from palan.flows import build as builds
from palan.flows import check as checks
from palan.flows import examine, history, packages, replay, tables, watch
from palan.flows import release as releases
from palan.flows.config import ModelConfig
from palan.flows.journal import Journal, running
from palan.flows.project import Project, record
from palan.flows.settle import settle
from palan.flows.windows import window_start
from palan.models.contract import SHAPE
from palan.releases.nouns import Release
from palan.remedies.nouns import Remedy

if TYPE_CHECKING:
    import polars as pl

    from palan.decisions.nouns import Decision
    from palan.remedies.choose import Choice, Trial
    from palan.remedies.menu import Candidate

FEWEST_ROWS = 200
FEWEST_DAYS = 10
"""Held-back decisions with a known outcome, and days of them, below which no remedy can be told from luck."""

CARRIED_OUT = ("rework data", "end repair", "roll back", "retrain", "change model")
"""What palan does by itself; a fallback made champion or a row of a table is a person's work, and stays a proposal."""

PATIENCE = 4
"""How many windows a page waits for such outcomes before it is answered without them."""


def react(
    project: Project,
    model: str,
    *,
    dry_run: bool = False,
    approve: bool = False,
    reject: bool = False,
    reason: str = "",
) -> dict[str, Any]:
    """Judge what is on trial, then answer the model's open pages.

    Each candidate remedy is tried on the newest decisions whose outcome is known: what would they have lost under it?
    The one with the largest lower bound of gain minus cost is released (approve = "auto") or proposed ("ask");
    "nothing" where none surely pays. With `approve` or `reject` the proposal that waits is carried out or closed.

    Returns {"model", "text", "remedies": [...], "settled": [...]}.

    Raises:
        NotFound: no such model or release, or no proposal to approve.
    """
    config = project.model(model)
    with running(project, "react", model, wait=30) as journal:
        if approve or reject:
            remedy = _answer_proposal(project, config, journal, approve=approve, reason=reason)
            return {"model": model, "text": f"{remedy.choice}: {remedy.status}", "remedies": [plain(remedy)], "settled": []}
        release = project.store.records.get(Release, model)
        if release is None:
            raise NotFound(f"{model} is not released, so nothing can be wrong with it", f"palan release {model}")
        resumed = [] if dry_run else _resume(project, config)
        settled = [] if dry_run else [*resumed, *settle(project, config)]
        alarms = project.store.records.find(Alarm, order="-time", model=model, lane="page", status="open")
        waits = _waits(project, config, alarms[0]) if alarms and not dry_run else ""
        if settled and alarms:
            waits = "what was on trial has just been settled, and the next window tells what it changed"
        if not alarms or waits:
            asked = project.store.records.find(Remedy, order="-time", limit=1, model=model, status="proposed")
            text = f"{model} has no open page: nothing to react to"
            if alarms:
                text = f"{counted(len(alarms), 'page')} waiting: {waits}"
            elif asked:
                text = f"{asked[0].choice} waits for an answer: palan react {model} --approve, or --reject"
            return {"model": model, "text": text, "remedies": [], "settled": [plain(each) for each in settled]}
        remedy = _react(project, config, alarms[0], journal, dry_run=dry_run)
        if not dry_run:
            for other in alarms[1:]:
                project.store.records.put(replace(other, status="answered"))
    text = f"{model}: {alarms[0].what}: {alarms[0].evidence.get('because', alarms[0].diagnosis)}"
    return {"model": model, "text": text, "remedies": [plain(remedy)], "settled": [plain(each) for each in settled]}


def plain(remedy: Remedy) -> dict[str, Any]:
    """Return a remedy as plain values."""
    return msgspec.json.decode(msgspec.json.encode(remedy))  # type: ignore[no-any-return]


def _waits(project: Project, config: ModelConfig, alarm: Alarm) -> str:
    """Say why the model must not be touched now, or an empty string."""
    release = project.store.records.get(Release, config.name)
    if release is not None and release.canary is not None:
        return f"{release.canary.version} is on trial as a canary"
    last = project.store.records.find(Remedy, order="-time", limit=1, model=config.name)
    if last and last[0].status == "proposed":
        return f"a proposal waits for an answer: palan react {config.name} --approve"
    # Each answer that did not end the same alarm doubles the rest: palan does not flap.
    tried = len(project.store.records.find(Remedy, alarm=alarm.id))
    rest = config.react.cooldown * 2 ** max(tried - 1, 0)
    if last and last[0].time + rest > project.clock():
        return f"the last remedy is younger than {rest.days} d"
    held = held_back(project, config, alarm)
    if watch.ENDS_REPAIR in alarm.evidence:
        return ""
    if held is not None and project.clock() < alarm.time + PATIENCE * config.watch.window:
        days = held["time"].dt.date().n_unique()
        enough = min(FEWEST_DAYS, config.react.holdout.days)  # more than a short holdout can never come
        if held.height < FEWEST_ROWS or days < enough:
            return f"outcomes of {counted(days, 'day')} are known, {enough} are needed to tell a remedy from luck"
    return ""


def held_back(project: Project, config: ModelConfig, alarm: Alarm) -> pl.DataFrame | None:
    """Return the newest decided rows with a known outcome, over the model's `holdout`; of a data fault those since it began.

    None for a model of instances, or one that nothing can score.
    """
    import polars as pl

    release = project.store.records.get(Release, config.name)
    assert release is not None
    champion = packages.find_version(project, release.champion.version)
    if SHAPE[champion.kind] == "instance" or "score" not in champion.manifest["verbs"]:
        return None
    rows = history.frame(project, config.name, history.schema_of(champion.manifest))
    known = rows.filter(pl.col("outcome").is_not_null(), pl.col("arm") != "shadow").sort("time") if rows.height else rows
    if known.height:
        newest: Any = known["time"].max()
        known = known.filter(pl.col("time") > newest - config.react.holdout)
    if alarm.diagnosis == "data fault" and known.height:
        known = known.filter(pl.col("time") >= alarm.since)
    return known


def _react(project: Project, config: ModelConfig, alarm: Alarm, journal: Journal, *, dry_run: bool) -> Remedy:
    release = project.store.records.get(Release, config.name)
    assert release is not None
    champion = packages.find_version(project, release.champion.version)
    refused: dict[str, str] = {}
    built: dict[str, str] = {}
    trials = _trials(project, config, release, champion, alarm, journal)
    while True:
        choice = _choose(config, champion, trials, refused, ended=watch.ENDS_REPAIR in alarm.evidence)
        if dry_run or choice.candidate.action not in ("retrain", "change model"):
            break
        version, failed = _candidate_version(project, config, champion, choice.candidate, journal)
        if not failed:
            built["version"] = version
            break
        refused[choice.name] = f"its gate {failed}"
    action = {"name": choice.name, "action": choice.candidate.action, **dict(choice.candidate.detail), **built}
    auto = config.react.approve == "auto" and choice.candidate.action in CARRIED_OUT
    status = "nothing" if choice.candidate.action == "nothing" else ("approved" if auto else "proposed")
    remedy = Remedy(
        new_id(project.clock()),
        alarm.id,
        config.name,
        project.clock(),
        status,
        choice.name,
        choice.reason,
        tuple(watch._plain(dict(row)) for row in choice.rows),
        watch._plain(action),
        choice.gain if status != "nothing" else None,
    )
    if dry_run:
        return replace(remedy, status="tried")
    with project.store.records.transaction(durable=True):
        journal.fence()
        project.store.records.put(remedy)
        project.store.records.put(replace(alarm, status="answered"))
        told = "decided to do nothing for" if status == "nothing" else "chose" if auto else "proposed"
        said = choice.reason if status == "nothing" else f"{choice.name}: {choice.reason}"
        record(project, told, config.name, said, alarm=alarm.id, remedy=remedy.id)
    project.tell(f"{config.name}: {choice.name}: {choice.reason}")
    return _act(project, config, remedy) if status == "approved" else remedy


def _answer_proposal(project: Project, config: ModelConfig, journal: Journal, *, approve: bool, reason: str) -> Remedy:
    waiting = project.store.records.find(Remedy, order="-time", model=config.name, status="proposed")
    if not waiting:
        raise NotFound(f"no remedy of {config.name} waits for an answer", f"palan react {config.name}")
    if approve and waiting[0].action["action"] not in CARRIED_OUT:
        raise PalanError(f'"{waiting[0].choice}" has to be carried out by a person', f'do it, then: palan react {config.name} --reject --reason "done by hand"')
    remedy = replace(waiting[0], status="approved" if approve else "rejected")
    with project.store.records.transaction(durable=True):
        journal.fence()
        project.store.records.put(remedy)
        record(project, remedy.status, config.name, reason or remedy.choice, remedy=remedy.id)
    return _act(project, config, remedy) if approve else remedy


def _resume(project: Project, config: ModelConfig) -> list[Remedy]:
    """Carry out what was approved by a process that died before it had done so."""
    approved = project.store.records.find(Remedy, order="time", model=config.name, status="approved")
    return [_act(project, config, each) for each in approved]


def _is_done(release: Release, remedy: Remedy) -> bool:
    """Tell whether the release is as the remedy makes it: it was killed between the change and the note of it."""
    action = remedy.action
    match action["action"]:
        case "rework data":
            return all(each in release.repairs for each in _repairs(action))
        case "end repair":
            return not any(each.column in action["columns"] and each.until is None for each in release.repairs)
        case "roll back":
            return release.time >= remedy.time and release.reason == remedy.reason
        case _:
            return f"{remedy.model}@{action['version']}" in [arm.version for arm in release.arms if arm.role != "shadow"]


def _act(project: Project, config: ModelConfig, remedy: Remedy) -> Remedy:
    """Carry an approved remedy out. Every action is idempotent: after a crash it is done again, or found done."""
    action = remedy.action
    release = project.store.records.get(Release, config.name)
    assert release is not None
    if _is_done(release, remedy):
        done = replace(remedy, status="released")
        project.store.records.put(done)
        return done
    try:
        match action["action"]:
            case "rework data":
                begun = _repairs(action)
                why = f"repair of {', '.join(each.column for each in begun)} from {min(each.since for each in begun):%Y-%m-%d} on: {remedy.reason}"
                releases.set_repairs(project, config.name, [*release.repairs, *begun], why)
            case "end repair":
                end = _since(project, remedy)
                why = f"end of the repair of {', '.join(action['columns'])} at {end:%Y-%m-%d}: {remedy.reason}"
                releases.set_repairs(project, config.name, _ended(release.repairs, action["columns"], end), why)
            case "roll back":
                releases.release(project, config.name, roll_back=True, reason=remedy.reason)
            case _:
                releases.release(project, config.name, version=action["version"], reason=remedy.choice)
    except (LeaseLost, Corrupt):
        raise
    except PalanError as error:  # the release moved on meanwhile, or a gate says no by now
        kept = replace(remedy, status="rejected", reason=f"{remedy.reason}; not carried out: {error.what}")
        with project.store.records.transaction(durable=True):
            project.store.records.put(kept)
            record(project, "rejected", config.name, f"{remedy.choice}: {error.what}", remedy=remedy.id)
        return kept
    done = replace(remedy, status="released")
    project.store.records.put(done)
    return done


def _since(project: Project, remedy: Remedy) -> datetime:
    alarm = project.store.records.get(Alarm, remedy.alarm)
    return alarm.since if alarm else remedy.time


def _repairs(action: Mapping[str, Any]) -> list[Repair]:
    return [msgspec.convert(each, Repair, strict=False) for each in action["repairs"]]


def _ended(repairs: Sequence[Repair], columns: Sequence[str], at: datetime) -> list[Repair]:
    return [
        replace(each, until=max(at, each.since)) if each.column in columns and each.until is None else each for each in repairs
    ]


# -- trials --------------------------------------------------------------------------------------------------------------


def _choose(
    config: ModelConfig, champion: Version, trials: Sequence[Trial], refused: Mapping[str, str], *, ended: bool
) -> Choice:
    from palan.remedies.choose import choose

    judged = [replace(each, refused=refused.get(each.candidate.name, each.refused)) for each in trials]
    days = {day for each in judged for day in (each.days if each.days is not None else ())}
    daily = max((len(each.losses) for each in judged), default=0) / max(len(days), 1)  # type: ignore[arg-type]
    return choose(
        judged,
        costs=config.react.costs,
        horizon_decisions=daily * config.react.horizon.days,
        seed=champion.manifest["seed"],
        presumed=_presumed(judged) if ended else (),
        unit=config.watch.unit,
    )


def _presumed(trials: Sequence[Trial]) -> list[str]:
    """Name the endings of repairs, in the order of the menu: where the feed is right again they bear no burden of proof."""
    return [each.candidate.name for each in trials if each.candidate.action == "end repair"]


def _menu(project: Project, config: ModelConfig, release: Release, champion: Version, alarm: Alarm, faults: Sequence[Any]) -> list[Candidate]:
    from palan.remedies.menu import menu

    class Cause(msgspec.Struct, frozen=True):
        kind: str
        since: datetime | None
        columns: Sequence[str]

    alternatives = [{"name": config.fallback, "action": "fallback"}] if config.fallback else []
    return menu(
        kind=champion.kind,
        diagnosis=Cause(alarm.diagnosis, alarm.since, alarm.columns),
        hypotheses=faults,
        has_previous=bool(release.previous),
        # A feed that is right again leaves nothing to learn: only its repair is in question.
        can_fit="fit" in champion.manifest["verbs"] and watch.ENDS_REPAIR not in alarm.evidence,
        active_repairs=[each for each in release.repairs if each.until is None],
        alternatives=alternatives,
    )


def _trials(
    project: Project, config: ModelConfig, release: Release, champion: Version, alarm: Alarm, journal: Journal
) -> list[Trial]:
    """Try every candidate on held-back decisions and return its losses against doing nothing."""
    if SHAPE[champion.kind] == "instance":
        return _instance_trials(project, config, release, champion, alarm)
    from palan.remedies.choose import Trial

    candidates = _menu(project, config, release, champion, alarm, _faults(project, config, release, champion, alarm, journal))
    held = held_back(project, config, alarm)
    if held is None or held.height < FEWEST_ROWS:
        why = "the model has no score()" if held is None else f"only {held.height} decisions with a known outcome"
        return [Trial(each, refused=f"not tried: {why}") for each in candidates]
    start: Any = held["time"].min()
    nothing = replay.answer(packages.warm_worker(project, champion), champion, held, release.repairs).losses
    assert nothing is not None
    days = held["time"].dt.date().to_list()

    def trial(candidate: Candidate) -> Trial:
        began = perf_counter()
        try:
            losses = _try(project, config, release, champion, candidate, alarm, held, start, journal)
        except (ModelFailed, NotFound) as error:
            return Trial(candidate, refused=f"could not be tried: {error.what}")
        if losses is None:
            return Trial(candidate, refused=_untried(candidate))
        return Trial(candidate, (losses - nothing).to_numpy(), days, perf_counter() - began)

    with ThreadPoolExecutor(max_workers=packages.LEARNERS, thread_name_prefix="trial") as pool:
        return list(pool.map(trial, [each for each in candidates if each.action != "nothing"]))


def _untried(candidate: Candidate) -> str:
    return {
        "retrain": "not tried: the change is younger than the held-back days",
        "edit rule": "not tried: a person has to write the row",
        "fallback": "not tried: the fallback takes other inputs",
    }.get(candidate.action, "not tried: no replay can measure it")


def _try(
    project: Project,
    config: ModelConfig,
    release: Release,
    champion: Version,
    candidate: Candidate,
    alarm: Alarm,
    held: pl.DataFrame,
    start: datetime,
    journal: Journal,
) -> pl.Series | None:
    """Return what the held-back rows would have lost under a candidate, or None where replay cannot tell."""
    worker, version, repairs = packages.warm_worker(project, champion), champion, tuple(release.repairs)
    with ExitStack() as stack:
        match candidate.action:
            case "rework data":
                repairs = (*repairs, *_repairs(candidate.detail))
            case "end repair":
                repairs = tuple(_ended(repairs, candidate.detail["columns"], alarm.since))
            case "roll back":
                version = packages.find_version(project, release.previous)
                worker = packages.warm_worker(project, version)
            case "retrain":
                since = _learn_since(candidate.detail, start)
                if since is not None and since > start - timedelta(days=7):
                    return None
                worker = stack.enter_context(
                    replay.learnt_until(project, journal, champion, start, since=since, params={}, repairs=repairs)
                )
            case _:
                return None
        return replay.answer(worker, version, held, repairs).losses


def _learn_since(detail: Mapping[str, Any], until: datetime) -> datetime | None:
    """Read the window of a retraining: all, "recent 60d", or since a time."""
    if detail["window"] == "since":
        return unstamp(detail["since"])
    found = re.fullmatch(r"recent (\d+)d", detail["window"])
    return until - timedelta(days=int(found[1])) if found else None


def _faults(
    project: Project, config: ModelConfig, release: Release, champion: Version, alarm: Alarm, journal: Journal
) -> list[Any]:
    """Ask the data doctor again, over the windows that the alarm spans, and add what is suspected of the table that the model learns from."""
    told = suspected_inputs(project, config, release.repairs, alarm)
    rows = watch.decided(project, config, champion, release)
    if rows is None or alarm.diagnosis != "data fault":
        return told
    case = watch.Case(config, champion, release, watch.normal_of(project, config, champion, rows, journal), rows)
    found = watch.hypotheses(case, window_start(alarm.since, config.watch.window), alarm.until, {})
    return [*found, *(each for each in told if not any(set(each.columns) & set(one.columns) for one in found))]


def suspected_inputs(project: Project, config: ModelConfig, repairs: Sequence[Repair], alarm: Alarm) -> list[Any]:
    """Return what is suspected of the inputs in the table that a model learns from, in the time of an alarm: a fault that was over
    before explains nothing. What these repairs put right already is left out."""
    kept = tables.suspicions(project, config.data, repairs=repairs) if config.data else []
    return [each for each in kept if each.repairs and set(each.columns) <= set(config.inputs) and each.since <= alarm.until and alarm.since < examine.end_of(each)]


def _instance_trials(
    project: Project, config: ModelConfig, release: Release, champion: Version, alarm: Alarm
) -> list[Trial]:
    """Let each candidate solve the newest recorded instances again, and score its plans by what really happened."""
    from palan.decisions import log
    from palan.remedies.choose import Trial

    by_id, by_key = log.told(history.outcomes(project, config.name))

    def told(each: Decision) -> Any:
        return by_id.get(f"{each.id}-0", by_key.get(each.keys[0]) if each.keys else None)

    logged = [each for each in history.decisions(project, config.name) if told(each) is not None and each.outputs is not None]
    logged = logged[-replay.SOLVES :]
    candidates = [each for each in _menu(project, config, release, champion, alarm, ()) if each.action != "nothing"]
    if not logged or "score" not in champion.manifest["verbs"]:
        return [Trial(each, refused="not tried: no solved instance has a known outcome") for each in candidates]
    scorer = packages.warm_worker(project, champion)
    nothing = [scorer.score(each.outputs, told(each))[0] for each in logged]
    trials = []
    for candidate in candidates:
        ref = {"roll back": release.previous, "fallback": config.fallback}.get(candidate.action, "")
        if not ref:
            trials.append(Trial(candidate, refused=_untried(candidate)))
            continue
        began = perf_counter()
        results = replay.solve_all(project, packages.find_version(project, ref), config, logged)
        if any(each.output is None for each in results):
            trials.append(Trial(candidate, refused="not every instance got a plan"))
            continue
        losses = [scorer.score(each.output, told(old))[0] - base for each, old, base in zip(results, logged, nothing, strict=True)]
        trials.append(Trial(candidate, losses, [each.time.date() for each in logged], perf_counter() - began))
    return trials


def _candidate_version(
    project: Project, config: ModelConfig, champion: Version, candidate: Candidate, journal: Journal
) -> tuple[str, str]:
    """Build the version that a retraining needs and let the gates judge it; return its name, and the gate it fails."""
    since = _learn_since(candidate.detail, project.clock())
    # Built as it was tried: with the champion's own code, parameters and seed, whatever lies in the folder by now.
    params, seed = candidate.detail.get("params", {}), champion.manifest["seed"]
    version, _ = builds.make(project, config.name, journal, params=params, since=since, seed=seed, reason=candidate.name, like=champion)
    findings, other = checks.judge(project, config, version, journal)
    checks.keep(project, version, other, findings)
    failed = next((f"{each.gate}: {each.text}" for each in findings if each.verdict == "fail"), "")
    return version.ref.partition("@")[2], failed
