"""`palan release`: say which version answers, by compare-and-set, with the reason in the ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from palan.core import Version, stamp
from palan.data.nouns import Repair
from palan.errors import Conflict, Corrupt, NotAdmitted, PalanError
from palan.flows import packages
from palan.flows.log import evidence_digest, evidence_told, last_told, unlike
from palan.flows.project import Project, record
from palan.gates.nouns import Evidence
from palan.ledger import BROKEN, Entry
from palan.releases import route
from palan.releases.nouns import Release


def release(
    project: Project,
    model: str,
    *,
    version: str = "",
    share: float | None = None,
    wait: timedelta | None = None,
    promote: bool = False,
    roll_back: bool = False,
    force: bool = False,
    reason: str = "",
) -> dict[str, Any]:
    """Make a version the champion, or the canary of a `share` for `wait`; or promote, or roll back.

    Without a version the latest one is meant; without a share the model's own canary policy holds once there is a
    champion. A version whose gates failed or were never asked is refused, unless `force` with a reason.

    Raises:
        NotFound: no such model or version.
        Conflict: somebody else changed the release at the same time, or another canary is running.
        NotAdmitted: the gates do not let the version pass.
    """
    config = project.model(model)
    if promote and roll_back:
        raise PalanError("promote and roll back are opposites", "give one of --promote and --roll-back")
    ref = version if "@" in version else f"{model}@{version or 'latest'}"
    named = packages.find_version(project, ref).ref if version else ""
    if promote:
        return change(
            project,
            model,
            "promoted",
            lambda now: route.promote(_still(now, named, "canary"), model, time=project.clock(), reason=reason),
            reason,
        )
    if roll_back:
        return change(
            project,
            model,
            "rolled back",
            lambda now: route.roll_back(_still(now, named, "answering"), model, time=project.clock(), reason=reason),
            reason,
        )
    chosen = packages.find_version(project, ref)
    if wait and share is None and config.release.canary is None:
        raise PalanError("a canary's time needs its share", f"palan release {ref} --share 20% --for 7d")
    if share is not None and share < 1 and project.store.records.get(Release, model) is None:
        raise PalanError(f"{model} has no champion yet, which would answer the rest", f"palan release {ref}")
    if not force:
        _admit(project, chosen)
    elif not reason:
        raise PalanError("a release against the gates needs a reason", f'palan release {ref} --force --reason "..."')
    now = project.store.records.get(Release, model)
    policy = config.release.canary
    if share is None and now is not None and policy is not None:
        share, wait = policy[0], wait or policy[1]
    if share is None or share >= 1 or now is None:
        return change(
            project,
            model,
            "released",
            lambda now: route.start(now, model, chosen.ref, time=project.clock(), reason=reason),
            reason,
        )
    until = project.clock() + wait if wait else None
    return change(
        project,
        model,
        "released",
        lambda now: route.canary(now, model, chosen.ref, share, until, time=project.clock(), reason=reason),
        reason,
    )


def _still(now: Release | None, named: str, part: str) -> Release | None:
    """Return the release if the version that was named is the one that would move.

    Raises:
        Conflict: another one is there by now: what was meant is not what would happen.
    """
    if now is None or not named:
        return now
    moving = now.canary or (now.champion if part == "answering" else None)
    if moving is None or moving.version != named:
        there = moving.version if moving else f"no canary, {now.champion.version} is champion"
        raise Conflict(f"{named} is not the one that would change: there is {there}", f"palan status {now.model}")
    return now


def set_repairs(project: Project, model: str, repairs: Sequence[Repair], reason: str) -> dict[str, Any]:
    """Put these repairs before the model, from now on."""
    stored = project.store.records.get(Release, model)
    verb = route.repair_verb(stored.repairs if stored else (), repairs)
    return change(
        project, model, verb, lambda now: route.set_repairs(now, model, repairs, time=project.clock(), reason=reason), reason
    )


def change(
    project: Project, model: str, verb: str, move: Callable[[Release | None], Release], reason: str
) -> dict[str, Any]:
    """Apply one move of the state machine and write it down, in one transaction.

    The move starts from the release that the ledger tells. If another one is stored, the ledger says so first, for ever.
    """
    records = project.store.records
    _put_right(project, model)
    with records.transaction(durable=True):
        stored = records.get(Release, model)
        before = last_told(project, model, stored)
        after = move(before)
        if not records.swap(after, epoch=stored.epoch if stored else 0):
            raise Conflict(f"the release of {model} was changed by somebody else at the same time", f"palan status {model}, then try again")
        record(project, verb, _subject(after, before), reason, **summary(after), because=after.reason)
    project.tell(f"{verb} {_subject(after, before)}" + (f": {reason}" if reason else ""))
    return summary(after)


def _put_right(project: Project, model: str) -> None:
    """Store what the ledger tells again, whatever becomes of the move, where somebody changed it behind palan's back."""
    records = project.store.records
    with records.transaction():
        stored = records.get(Release, model)
        known = last_told(project, model, stored)
        if what := unlike(model, stored, known):
            record(project, BROKEN, model, what)
            if known is not None:
                records.put(known)


def _subject(after: Release, before: Release | None) -> str:
    if after.canary and (before is None or before.canary != after.canary):
        return f"{after.canary.version} as a canary of {after.canary.share:.0%}"
    return after.champion.version


def summary(release: Release) -> dict[str, Any]:
    """Return the release as plain values, whole but for its reason: the ledger keeps both, and can tell the release again."""
    return {
        "model": release.model,
        "epoch": release.epoch,
        "time": stamp(release.time),
        "arms": [{"version": arm.version, "role": arm.role, "share": arm.share} for arm in release.arms],
        "previous": release.previous,
        "until": stamp(release.until) if release.until else None,
        "repairs": [
            {
                "column": repair.column,
                "expression": repair.expression,
                "inverse": repair.inverse,
                "since": stamp(repair.since),
                "until": stamp(repair.until) if repair.until else None,
                "reason": repair.reason,
            }
            for repair in release.repairs
        ],
        "detail": dict(release.detail),
    }


def _admit(project: Project, version: Version) -> None:
    evidence = project.store.records.find(Evidence, version=version.ref)
    if not evidence:
        raise NotAdmitted(f"{version.ref} was never checked", f"palan check {version.ref}")
    newest = max(each.time for each in evidence)  # the last check counts, with the gates that it asked
    last = [each for each in evidence if each.time == newest]
    said = [evidence_told(each) for each in project.store.records.find(Entry, verb="checked", subject=version.ref)]
    known = {id: digest for each in said for id, digest in each.items()}
    if not said or not said[-1].keys() <= {each.id for each in last} or any(known.get(each.id) != evidence_digest(each) for each in last):
        raise Corrupt(f"the evidence of {version.ref} is not what its last check wrote down", f"palan log --verify, then: palan check {version.ref}")
    failed = [each for each in last if each.verdict == "fail"]
    if failed:
        raise NotAdmitted(
            f"{version.ref} does not pass its gate {failed[0].gate}: {failed[0].text}",
            f'palan check {version.ref}   (or: palan release {version.ref} --force --reason "...")',
        )
