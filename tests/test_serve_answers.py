"""A request comes in: the right version answers it, it is in the log before the answer, and a release change loses none."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from palan.data.nouns import Repair
from palan.errors import Conflict, NotFound, PalanError
from palan.releases import route as routing
from palan.releases.nouns import Release

NOW = datetime(2013, 5, 1, tzinfo=UTC)
WEEK = NOW + timedelta(days=7)


def released(share: float = 0.0) -> Release:
    release = routing.start(None, "delay", "delay@1", time=NOW)
    return routing.canary(release, "delay", "delay@2", share, WEEK, time=NOW) if share else release


def test_a_key_always_meets_the_same_version_and_the_shares_hold() -> None:
    release = released(0.2)
    keys = [f"flight-{index}" for index in range(20_000)]
    chosen = [routing.route(release, key) for key in keys]
    assert chosen == [routing.route(replace(release, epoch=9, reason="another day"), key) for key in keys]
    canary = [each for each in chosen if each.arm.role == "canary"]
    # 20 000 draws at 20 %: five standard deviations are 283.
    assert abs(len(canary) - 4_000) < 283
    assert {each.propensity for each in canary} == {0.2}
    assert {each.propensity for each in chosen if each.arm.role == "champion"} == {0.8}


def test_a_wider_canary_keeps_its_keys_and_another_one_draws_others() -> None:
    keys = [f"flight-{index}" for index in range(5_000)]

    def taken(release: Release) -> set[str]:
        return {key for key in keys if routing.route(release, key).arm.role == "canary"}

    narrow = released(0.2)
    wide = routing.canary(narrow, "delay", "delay@2", 0.5, WEEK, time=NOW)
    assert taken(narrow) < taken(wide)
    other = routing.canary(released(), "delay", "delay@3", 0.2, WEEK, time=NOW)
    # Independent draws: 20 % of the keys of one canary are in the other.
    assert 0.1 < len(taken(narrow) & taken(other)) / len(taken(narrow)) < 0.3


def test_the_life_of_a_release() -> None:
    first = released()
    assert (first.epoch, first.champion.version, routing.route(first, "k").propensity) == (1, "delay@1", 1.0)
    trial = routing.canary(first, "delay", "delay@2", 0.2, WEEK, time=NOW)
    assert (trial.epoch, trial.until, routing.state(trial)) == (2, WEEK, "canary")
    won = routing.promote(trial, "delay", time=WEEK)
    assert (won.epoch, won.champion.version, won.previous, won.until) == (3, "delay@2", "delay@1", None)
    back = routing.roll_back(won, "delay", time=WEEK)
    assert (back.epoch, back.champion.version, back.previous) == (4, "delay@1", "")
    dropped = routing.roll_back(trial, "delay", time=WEEK)
    assert (dropped.champion.version, dropped.canary, dropped.champion.share) == ("delay@1", None, 1.0)


def test_moves_that_make_no_sense_are_refused_with_the_way_out() -> None:
    for move in (routing.promote, routing.roll_back):
        with pytest.raises(NotFound, match="delay is not released"):
            move(None, "delay", time=NOW)
    with pytest.raises(PalanError, match="nothing to roll back to"):
        routing.roll_back(released(), "delay", time=NOW)
    with pytest.raises(Conflict, match="no canary to promote"):
        routing.promote(released(), "delay", time=NOW)
    with pytest.raises(Conflict, match="delay@2 is the canary"):
        routing.start(released(0.2), "delay", "delay@3", time=NOW)
    with pytest.raises(Conflict, match="delay@2 is the canary"):
        routing.canary(released(0.2), "delay", "delay@3", 0.2, None, time=NOW)
    with pytest.raises(Conflict, match="already the champion"):
        routing.canary(released(), "delay", "delay@1", 0.2, None, time=NOW)
    with pytest.raises(PalanError, match="between 0% and 100%"):
        routing.canary(released(), "delay", "delay@2", 1.0, None, time=NOW)


def test_repairs_and_shadows_stay_when_the_champion_changes() -> None:
    repair = Repair("temp", "temp * 9 / 5 + 32", "(temp - 32) * 5 / 9", since=NOW)
    release = routing.shadow(routing.set_repairs(released(), "delay", [repair], time=NOW), "delay", ["delay@3"], time=NOW)
    assert routing.route(release, "k").shadows == (release.arms[1],)
    won = routing.promote(routing.canary(release, "delay", "delay@2", 0.5, WEEK, time=NOW), "delay", time=WEEK)
    assert won.repairs == (repair,)
    assert [(arm.version, arm.role) for arm in won.arms] == [("delay@2", "champion"), ("delay@3", "shadow")]
    with pytest.raises(Conflict, match="cannot be its shadow"):
        routing.shadow(won, "delay", ["delay@2"], time=NOW)
