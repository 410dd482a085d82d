"""`palan release`: say which version answers, by compare-and-set, with the reason in the ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from palan.core import Version, stamp
from palan.data.nouns import Repair
from palan.errors import Conflict, PalanError
from palan.flows import packages
from palan.flows.project import Project, record
from palan.gates.nouns import Evidence
from palan.releases import route
from palan.releases.nouns import Release

ATTEMPTS = 5


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
        PalanError: the gates do not let the version pass.
    """
    config = project.model(model)
    if promote and roll_back:
        raise PalanError("promote and roll back are opposites", "give one of --promote and --roll-back")
    if promote:
        return change(project, model, "promoted", lambda now: route.promote(now, model, time=project.clock(), reason=reason), reason)
    if roll_back:
        return change(
            project, model, "rolled back", lambda now: route.roll_back(now, model, time=project.clock(), reason=reason), reason
        )
    ref = version if "@" in version else f"{model}@{version or 'latest'}"
    chosen = packages.find_version(project, ref)
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


def set_repairs(project: Project, model: str, repairs: Sequence[Repair], reason: str) -> dict[str, Any]:
    """Put these repairs before the model, from now on."""
    return change(
        project, model, "repaired", lambda now: route.set_repairs(now, model, repairs, time=project.clock(), reason=reason), reason
    )


def change(
    project: Project, model: str, verb: str, move: Callable[[Release | None], Release], reason: str
) -> dict[str, Any]:
    """Apply one move of the state machine and write it down, in one transaction."""
    records = project.store.records
    for _ in range(ATTEMPTS):
        before = records.get(Release, model)
        after = move(before)
        with records.transaction(durable=True):
            if not records.swap(after, epoch=before.epoch if before else 0):
                continue  # somebody else was first: look again, and decide again
            record(project, verb, _subject(after, before), reason, **summary(after))
        project.tell(f"{verb} {_subject(after, before)}" + (f": {reason}" if reason else ""))
        return summary(after)
    raise Conflict(f"the release of {model} keeps changing under us", f"palan status {model}, then try again")


def _subject(after: Release, before: Release | None) -> str:
    if after.canary and (before is None or before.canary != after.canary):
        return f"{after.canary.version} as a canary of {after.canary.share:.0%}"
    return after.champion.version


def summary(release: Release) -> dict[str, Any]:
    """Return the routing as plain values."""
    return {
        "model": release.model,
        "epoch": release.epoch,
        "arms": [{"version": arm.version, "role": arm.role, "share": arm.share} for arm in release.arms],
        "previous": release.previous,
        "until": stamp(release.until) if release.until else None,
        "repairs": [
            {
                "column": repair.column,
                "expression": repair.expression,
                "since": stamp(repair.since),
                "until": stamp(repair.until) if repair.until else None,
            }
            for repair in release.repairs
        ],
    }


def _admit(project: Project, version: Version) -> None:
    evidence = project.store.records.find(Evidence, version=version.ref)
    if not evidence:
        raise PalanError(f"{version.ref} was never checked", f"palan check {version.ref}")
    newest: dict[str, Evidence] = {}
    for each in sorted(evidence, key=lambda each: each.time):
        newest[each.gate] = each
    failed = [each for each in newest.values() if each.verdict == "fail"]
    if failed:
        raise PalanError(
            f"{version.ref} does not pass its gate {failed[0].gate}: {failed[0].text}",
            f'palan check {version.ref}   (or: palan release {version.ref} --force --reason "...")',
        )
