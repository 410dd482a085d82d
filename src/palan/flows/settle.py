"""Judging what is on trial: canaries when their time is over, and repairs once outcomes tell."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from palan.core import counted, unstamp
from palan.data.nouns import Repair
from palan.drift.nouns import Alarm
from palan.flows import history, packages, replay
from palan.flows import release as releases
from palan.flows.config import ModelConfig
from palan.flows.project import Project, record
from palan.models.contract import SHAPE
from palan.releases.nouns import Release
from palan.remedies.nouns import Remedy

if TYPE_CHECKING:
    import polars as pl

    from palan.core import Version
    from palan.gates.paired import Interval

EXTENSIONS = 2
"""How often a canary without enough outcomes is given its time again."""

FEWEST = 100
"""Outcomes, below which a trial is given more time."""

FEWEST_BLOCKS = 3
"""Days of outcomes, below which no interval can be told: see gates.paired."""

GOOD = ("ok", "optimal", "feasible")
"""Statuses of a decision that went as it should."""


def settle(project: Project, config: ModelConfig) -> list[Remedy]:
    """Judge what is due: promote or drop a canary, confirm or undo a repair or a roll-back.

    Where answers have a score, paired losses on decisions whose outcome is known judge: what the other side would have
    answered is found by replay. A canary without a score is judged by what it did: violations, failures, fallbacks.
    Returns the remedies whose fate was decided.
    """
    release = project.store.records.get(Release, config.name)
    if release is None:
        return []
    champion = packages.find_version(project, release.champion.version)
    if release.canary is not None:
        return _canary(project, config, release, champion)
    pending = _pending(project, config)
    match pending[0].action["action"] if pending else "":
        case "rework data" | "end repair":
            return _repair(project, config, release, champion, pending[0])
        case "retrain" | "change model":
            return _champion(project, config, release, champion, pending[0])
        case "roll back":
            return _rolled_back(project, config, pending[0])
    return []


def _canary(project: Project, config: ModelConfig, release: Release, champion: Version) -> list[Remedy]:
    if release.until is None or release.canary is None or project.clock() < release.until:
        return []
    import polars as pl

    canary = packages.find_version(project, release.canary.version)
    found: Interval | None = None
    if SHAPE[canary.kind] == "rows" and "score" in canary.manifest["verbs"]:
        rows = _known(project, config, canary.manifest).filter(pl.col("version") == canary.ref)
        enough, size = _enough(rows)
        if not enough and _longer(project, config, release, f"{size} are too few to judge the canary by"):
            return []
        found = _paired(project, rows, (canary, release.repairs), (champion, release.repairs))
        # What was tried three times as long as asked for and still cannot be told from chance has not proved itself.
        better = enough and found is not None and found.mean <= 0
        said = _said(found, "the champion on its own requests", config.watch.unit) + ("" if enough else f"; {size} are too few to keep it")
    else:
        sides = [_conduct(project, config, release, arm) for arm in ("canary", "champion")]
        if not sides[0][1] and _longer(project, config, release, "nobody has asked the canary yet"):
            return []
        better, said = _behaved(*sides)
    if better:
        releases.release(project, config.name, promote=True, reason=said)
    else:
        releases.release(project, config.name, roll_back=True, reason=said)
    # A canary that a person released answers no remedy, and a repair may wait for its own outcomes meanwhile.
    tried = [each for each in _pending(project, config) if f"{config.name}@{each.action.get('version')}" == canary.ref]
    return _conclude(project, tried[0], found, confirmed=better, said=said) if tried else []


def _longer(project: Project, config: ModelConfig, release: Release, reason: str) -> bool:
    """Give a canary its time again; False where it had enough of that."""
    extended = int(release.detail.get("extended", "0"))
    if extended >= EXTENSIONS:
        return False
    length = config.release.canary[1] if config.release.canary else timedelta(days=7)

    def longer(now: Release | None) -> Release:
        known = now or release
        return replace(known, epoch=known.epoch + 1, until=project.clock() + length, detail={**known.detail, "extended": str(extended + 1)})

    releases.change(project, config.name, "extended", longer, reason)
    return True


def _conduct(project: Project, config: ModelConfig, release: Release, arm: str) -> tuple[int, int]:
    """Return how many requests of an arm went wrong since this release, and how many it had."""
    asked = [each for each in history.decisions(project, config.name, since=release.time) if each.arm == arm]
    return sum(1 for each in asked if each.violations or each.degraded or each.status not in GOOD), len(asked)


def _behaved(ours: tuple[int, int], theirs: tuple[int, int]) -> tuple[bool, str]:
    """Judge a canary that has no score by its conduct."""
    if not ours[1]:
        return False, "nobody asked it, so nobody can tell"
    said = f"{ours[0]} of its {ours[1]:,} requests went wrong, against {theirs[0]} of {theirs[1]:,} of the champion; no score says more"
    return ours[0] / ours[1] <= theirs[0] / max(1, theirs[1]), said


def _enough(rows: pl.DataFrame) -> tuple[bool, str]:
    """Tell whether outcomes are enough to tell a change from chance, and how many there are."""
    days = rows["time"].dt.date().n_unique() if rows.height else 0
    size = f"{rows.height:,} outcome{'' if rows.height == 1 else 's'} on {days} day{'' if days == 1 else 's'}"
    return rows.height >= FEWEST and days >= FEWEST_BLOCKS, size


def _said(found: Interval | None, against: str, unit: str) -> str:
    from palan.gates.paired import told

    if found is None:
        return "no outcome came that could tell"
    size = f"{found.rows:,} outcomes on {found.blocks} days"
    return f"{told(-found.high, -found.mean, -found.low, against, unit)}, by {size}"


def _repair(project: Project, config: ModelConfig, release: Release, champion: Version, remedy: Remedy) -> list[Remedy]:
    """Confirm a change of repairs once a window of outcomes after it is known; undo it if it did harm."""
    rows = _since(project, config, champion, remedy)
    if rows is None:
        return []
    before = _without(release.repairs, remedy)
    found = _paired(project, rows, (champion, release.repairs), (champion, before))
    ending = remedy.action["action"] == "end repair"
    said = _said(found, "going on with the repair" if ending else "the data as they came", config.watch.unit)
    # A repair has to prove itself; ending one whose reason is gone is undone only where that surely harms.
    harmless = found is not None and (found.low if ending else found.mean) <= 0
    if not harmless:
        undone = f"the repair of {', '.join(remedy.action['columns'])} goes on" if ending else "the repair is taken back"
        releases.set_repairs(project, config.name, before, f"{undone}: {said}")
    return _conclude(project, remedy, found, confirmed=harmless, said=said)


def _without(repairs: Sequence[Repair], remedy: Remedy) -> list[Repair]:
    """Return the repairs as they were before a remedy changed them."""
    if remedy.action["action"] == "rework data":
        own = {(each["column"], each["expression"], unstamp(each["since"])) for each in remedy.action["repairs"]}
        return [each for each in repairs if (each.column, each.expression, each.since) not in own]
    # Of each column the repair that ended last: earlier ones ended with faults of their own.
    last = {each.column: place for place, each in enumerate(repairs) if each.column in remedy.action["columns"]}
    return [replace(each, until=None) if last.get(each.column) == place else each for place, each in enumerate(repairs)]


def _champion(project: Project, config: ModelConfig, release: Release, champion: Version, remedy: Remedy) -> list[Remedy]:
    """Confirm a version that became champion without a canary, by the one before it; go back to that if it did harm."""
    if champion.ref != f"{config.name}@{remedy.action.get('version')}":
        return _conclude(project, remedy, None, confirmed=False, said=f"it was taken back: {champion.ref} answers")
    rows = _since(project, config, champion, remedy) if release.previous else None
    if rows is None:
        return []
    before = packages.find_version(project, release.previous)
    found = _paired(project, rows, (champion, release.repairs), (before, release.repairs))
    better, said = found is not None and found.mean <= 0, _said(found, before.ref, config.watch.unit)
    if not better:
        releases.release(project, config.name, roll_back=True, reason=said)
    return _conclude(project, remedy, found, confirmed=better, said=said)


def _rolled_back(project: Project, config: ModelConfig, remedy: Remedy) -> list[Remedy]:
    """A roll-back has nothing to be compared with but the watch itself: it is confirmed when a window has passed."""
    if project.clock() < remedy.time + config.watch.window:
        return []
    pages = [each for each in project.store.records.find(Alarm, model=config.name, lane="page", since=remedy.time) if each.time > remedy.time]
    said = f"{counted(len(pages), 'page')} in the window since, and nothing to compare it with"
    return _conclude(project, remedy, None, confirmed=True, said=said)


def _since(project: Project, config: ModelConfig, champion: Version, remedy: Remedy) -> pl.DataFrame | None:
    """Return the decisions with an outcome since a remedy; None until a window has passed and they are enough."""
    import polars as pl

    if project.clock() < remedy.time + config.watch.window or "score" not in champion.manifest["verbs"]:
        return None
    if SHAPE[champion.kind] == "instance":
        return None
    rows = _known(project, config, champion.manifest)
    rows = rows.filter(pl.col("time") >= remedy.time, pl.col("arm") != "shadow") if rows.height else rows
    return rows if _enough(rows)[0] else None


def _known(project: Project, config: ModelConfig, manifest: Any) -> pl.DataFrame:
    import polars as pl

    rows = history.frame(project, config.name, history.schema_of(manifest))
    return rows.filter(pl.col("outcome").is_not_null()).sort("time") if rows.height else rows


def _paired(project: Project, rows: pl.DataFrame, ours: Any, theirs: Any) -> Interval | None:
    from palan.gates.paired import interval

    if not rows.height:
        return None
    losses = [
        replay.answer(packages.warm_worker(project, version), version, rows, repairs).losses for version, repairs in (ours, theirs)
    ]
    if losses[0] is None or losses[1] is None:
        return None
    return interval((losses[0] - losses[1]).to_numpy(), rows["time"].dt.date().to_list(), confidence=0.9)


def _pending(project: Project, config: ModelConfig) -> list[Remedy]:
    """Return the remedies whose fate is open, the newest first."""
    return project.store.records.find(Remedy, order="-time", model=config.name, status="released")


def _conclude(project: Project, pending: Remedy, found: Interval | None, *, confirmed: bool, said: str) -> list[Remedy]:
    remedy = replace(
        pending,
        status="confirmed" if confirmed else "rolled back",
        realised=-found.mean if found is not None else None,
    )
    with project.store.records.transaction(durable=True):
        project.store.records.put(remedy)
        record(project, remedy.status, remedy.model, f"{remedy.choice}: {said}", remedy=remedy.id, realised=remedy.realised)
    project.tell(f"{remedy.model}: {remedy.choice} {remedy.status}: {said}")
    return [remedy]
