"""The weeks after a release: what pages and what does not, what is done about it, and whether that was right."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from loop_project import Loop, celsius, crowded, detour, edit, ledger, live, living
from palan.core import stamp
from palan.data.nouns import Repair
from palan.errors import NotFound, PalanError
from palan.flows.build import build
from palan.flows.react import react
from palan.flows.release import release
from palan.flows.settle import _without
from palan.flows.tick import tick
from palan.flows.watch import frames, watch
from palan.flows.why import why
from palan.ledger import Entry
from palan.remedies.menu import plain
from palan.remedies.nouns import Remedy
from palan.runs.run import Run

QUIET = 24
"""Days without anything: three whole weeks, and three days of the fourth."""


@pytest.fixture(scope="module")
def quiet(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after 24 days in which nothing happened, watched every day."""
    with live(tmp_path_factory.mktemp("quiet") / "p", built) as loop:
        loop.play(QUIET, each=lambda: tick(loop.project))
        return loop.project.root


@pytest.fixture
def loop(quiet: Path, tmp_path: Path) -> Iterator[Loop]:
    with going_on(quiet, tmp_path / "p", QUIET) as loop:
        yield loop


def going_on(folder: Path, into: Path, days: int, *edits: tuple[str, str]) -> AbstractContextManager[Loop]:
    shutil.copytree(folder, into)
    for old, new in edits:
        edit(into, "palan.toml", old, new)
    return living(into, days)


# -- watch ---------------------------------------------------------------------------------------------------------------


def test_weeks_like_the_ones_before_raise_nothing(loop: Loop) -> None:
    assert loop.alarms() == []
    judged = frames(loop.project, "eta")
    assert [each[:10] for each in sorted(judged)] == ["2026-05-04", "2026-05-11", "2026-05-18"]
    assert {each["lane"] for each in judged.values()} == {"none"}
    assert all(each["n"] == 7 * 150 for each in judged.values())
    assert all(each["loss"] < each["threshold"] for each in judged.values())


def test_nothing_is_judged_twice_for_nothing(loop: Loop) -> None:
    stream = lambda: len(list(loop.project.store.blocks.scan("watch/eta")))  # noqa: E731
    before = stream()
    looked = lambda: len(loop.project.store.records.find(Run, flow="watch"))  # noqa: E731
    runs = looked()
    assert watch(loop.project, "eta")[0]["windows"] == []
    tick(loop.project)
    assert stream() == before
    assert looked() == runs, "no lease is taken where nothing is due"


def test_late_outcomes_judge_a_window_again(built: Path, tmp_path: Path) -> None:
    with live(tmp_path / "p", built) as loop:
        loop.play(8, truth=detour, told=False)
        first = watch(loop.project, "eta")[0]
        assert [each["outcomes"] for each in first["windows"]] == [0]
        assert first["windows"][0]["loss"] is None
        assert loop.alarms(lane="page") == []
        for day in sorted(loop.sent)[:6]:
            loop.tell(day)
        again = watch(loop.project, "eta")[0]
        assert [(each["outcomes"], each["first"]) for each in again["windows"]] == [(900, False)]
        assert [each.diagnosis for each in loop.alarms(lane="page")] == ["concept change"]
        loop.tell(sorted(loop.sent)[0])  # told again, the same: no news
        assert watch(loop.project, "eta")[0]["windows"] == []


def test_a_broken_unit_pages_as_a_data_fault_with_its_columns_and_its_day(loop: Loop) -> None:
    began = loop.day
    loop.play(5, feed=celsius)
    report = watch(loop.project, "eta")[0]
    assert report["lane"] == "page"
    assert report["open"] == 1
    page = loop.alarms(lane="page")[0]
    assert page.diagnosis == "data fault"
    assert set(page.columns) == {"temp", "dewp"}
    assert page.since.date() == began
    assert page.what == f"temp and dewp are in °C instead of °F since {began} (seen {page.time:%Y-%m-%d})"
    assert (ledger(loop.project)[-1].verb, f"data fault since {began} (seen {page.time:%Y-%m-%d}): " in ledger(loop.project)[-1].reason) == ("paged", True)
    told = why(loop.project, page.id[:10])["text"]
    assert told.startswith(f"eta: {page.what}\n")
    assert "nothing was tried yet: palan react eta" in told
    assert "{" not in told


def test_another_world_pages_as_a_concept_change(loop: Loop) -> None:
    began = loop.day
    loop.play(7, truth=detour)
    watch(loop.project, "eta")
    page = loop.alarms(lane="page")[0]
    assert page.diagnosis == "concept change"
    assert page.since.date() == began
    assert page.evidence["split"]["concept"] > 0.5 * page.evidence["split"]["total"]


def test_other_inputs_without_harm_are_a_digest(loop: Loop) -> None:
    loop.play(11, feed=crowded, truth=crowded_truth)
    watch(loop.project, "eta")
    assert loop.alarms(lane="page") == []
    digest = loop.alarms(lane="digest")[0]
    assert digest.diagnosis == "input shift"
    assert "load" in digest.columns
    assert react(loop.project, "eta")["remedies"] == []  # nobody is called for it
    assert len(digest.what) <= 80
    assert digest.what.startswith("load moved since 2026-05-")
    assert f"(seen {digest.time:%Y-%m-%d})" in digest.what


def test_a_digest_is_closed_when_its_columns_moved_back_and_when_another_version_answers(loop: Loop) -> None:
    loop.play(11, feed=crowded, truth=crowded_truth)
    watch(loop.project, "eta")
    first = loop.alarms(lane="digest")[0]
    build(loop.project, "eta", params={"extra": 0.001})
    release(loop.project, "eta", version="2", force=True, share=1.0, reason="nearly the same")
    loop.play(14, feed=crowded, truth=crowded_truth)
    watch(loop.project, "eta")
    entries = [each for each in ledger(loop.project) if each.verb == "closed"]
    assert [(each.detail["alarm"], each.reason) for each in entries] == [(first.id, f"{first.what} is over: eta@2 answers now, and has learnt anew what is normal")]
    again = loop.alarms(lane="digest", status="open")
    assert len(again) == 1
    loop.play(14)
    watch(loop.project, "eta")
    assert loop.alarms(lane="digest", status="open") == []
    last = ledger(loop.project)[-1]
    assert (last.verb, last.detail["alarm"]) == ("closed", again[0].id)
    assert " is over: " in last.reason


def test_windows_that_nobody_asked_in_are_one_alarm_of_their_own(loop: Loop) -> None:
    loop.play(7, feed=crowded, truth=crowded_truth)
    watch(loop.project, "eta")
    before = loop.alarms(lane="digest")[0]
    loop.project.clock.now += timedelta(weeks=12)  # type: ignore[attr-defined]
    report = watch(loop.project, "eta")[0]
    silent = [each for each in report["windows"] if not each["n"]]
    assert len(silent) >= 10
    assert report["text"].startswith("nobody asks it any more: 0 decisions where ")
    assert report["text"].endswith(" a week are usual")
    said = [each["what"] for each in report["alarms"]]
    assert said.count(report["text"]) == 1
    assert len(said) <= 2
    after = {each.id: each for each in loop.alarms(lane="digest")}
    kept = after.pop(before.id)
    assert (kept.diagnosis, kept.status) == (before.diagnosis, "open")
    assert (kept.columns, kept.evidence["because"]) != ((), "")
    assert "nobody" not in kept.what
    (quiet,) = after.values()
    assert (quiet.diagnosis, quiet.what, stamp(quiet.until)) == ("volume change", report["text"], silent[-1]["until"])
    loop.project.clock.now += timedelta(weeks=1)  # type: ignore[attr-defined]
    assert [each["id"] for each in watch(loop.project, "eta")[0]["alarms"]] == [quiet.id]
    assert len(loop.alarms(lane="digest")) == 2


def crowded_truth(rows: pl.DataFrame) -> pl.DataFrame:
    """What the crowd does to the minutes; the feed adds the crowd itself."""
    return rows.with_columns(minutes=crowded(rows)["minutes"])


def test_a_model_that_is_not_released_cannot_be_watched(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "p")
    edit(tmp_path / "p", "palan.toml", "[models.pack]", '[models.other]\nmodel = "eta.py:Eta"\ndata = "trips"\n\n[models.pack]')
    with living(tmp_path / "p") as loop:
        with pytest.raises(NotFound, match="other is not released") as refused:
            watch(loop.project, "other")
        assert refused.value.hint == "palan release other"
        with pytest.raises(NotFound, match='no model "eat"'):
            watch(loop.project, "eat")


# -- react: a data fault ---------------------------------------------------------------------------------------------------


def test_a_broken_unit_is_reworked_confirmed_and_ended_when_the_feed_is_right_again(loop: Loop) -> None:
    began = loop.day
    loop.play(19, feed=celsius, each=lambda: tick(loop.project))
    reworked = loop.remedies()[0]
    assert reworked.action["action"] == "rework data"
    assert {each["column"] for each in reworked.action["repairs"]} == {"temp", "dewp"}
    assert all(each["since"][:10] == str(began) for each in reworked.action["repairs"])
    assert reworked.predicted > 10  # type: ignore[operator]
    tried = {row["name"]: row for row in reworked.candidates}
    assert tried[reworked.choice]["gain"] == max(row["gain"] for row in tried.values() if row["gain"] is not None)
    assert "nothing" in tried
    assert loop.error() < 2  # what is answered is right although the feed still is not
    assert reworked.status == "confirmed"
    assert reworked.realised == pytest.approx(reworked.predicted, rel=0.3)
    assert [each.diagnosis for each in loop.alarms(lane="page")] == ["data fault"]  # and the mended weeks open no other page

    right_again = loop.day
    loop.play(21, each=lambda: tick(loop.project))
    assert [(each.action["action"], each.status) for each in loop.remedies()] == [("rework data", "confirmed"), ("end repair", "confirmed")]
    assert {each.column: each.until.date() for each in loop.release.repairs if each.until} == {"temp": right_again, "dewp": right_again}
    assert loop.error() < 2
    assert all(each.since.date() >= began for each in loop.alarms())
    verbs = [(each.verb, each.detail.get("remedy", "")) for each in ledger(loop.project) if each.verb in ("chose", "repaired", "ended the repair of", "confirmed")]
    assert [verb for verb, _ in verbs] == ["chose", "repaired", "confirmed", "chose", "ended the repair of", "confirmed"]
    assert "a decision against the data as they came (90% interval: a gain of " in next(each.reason for each in ledger(loop.project) if each.verb == "confirmed")
    assert loop.release.reason.startswith(f"end of the repair of temp, dewp at {right_again}: ")
    told = why(loop.project, loop.alarms(lane="page")[0].id)["text"]
    assert f"*{reworked.choice}: +" in told
    assert "confirmed: rework data" in told
    assert "{" not in told


def test_a_dry_run_tries_and_changes_nothing(loop: Loop) -> None:
    loop.play(9, feed=celsius, each=lambda: watch(loop.project, "eta") if loop.day.weekday() == 0 else None)
    before, release_before = len(ledger(loop.project)), loop.release
    report = react(loop.project, "eta", dry_run=True)
    assert report["remedies"][0]["status"] == "tried"
    assert report["remedies"][0]["choice"].startswith("rework data")
    assert len(ledger(loop.project)) == before
    assert loop.release == release_before
    assert loop.remedies() == []
    assert loop.alarms(lane="page")[0].status == "open"


def test_with_ask_a_person_approves_or_rejects(quiet: Path, tmp_path: Path) -> None:
    with going_on(quiet, tmp_path / "p", QUIET, ('approve = "auto"', 'approve = "ask"')) as loop:
        loop.play(9, feed=celsius, each=lambda: tick(loop.project))
        assert [each.status for each in loop.remedies()] == ["proposed"]
        assert loop.release.repairs == ()
        assert "--approve" in react(loop.project, "eta")["text"]  # asked again, it only waits

        react(loop.project, "eta", reject=True, reason="let me look first")
        assert [each.status for each in loop.remedies()] == ["rejected"]
        assert (ledger(loop.project)[-1].verb, ledger(loop.project)[-1].reason) == ("rejected", "let me look first")
        with pytest.raises(NotFound, match="waits for an answer"):
            react(loop.project, "eta", approve=True)

        loop.play(8, feed=celsius, each=lambda: tick(loop.project))
        assert [each.status for each in loop.remedies()] == ["rejected", "proposed"]  # the fault goes on, so it is asked again
        assert loop.error() > 10
        react(loop.project, "eta", approve=True, reason="it is °C")
        assert [each.status for each in loop.remedies()] == ["rejected", "released"]
        loop.play(1, feed=celsius)
        assert loop.error() < 2


def test_what_a_killed_process_had_approved_is_carried_out_once(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    from palan.flows import react as reacting

    loop.play(9, feed=celsius, each=lambda: watch(loop.project, "eta") if loop.day.weekday() == 0 else None)

    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(reacting.releases, "set_repairs", kill)
        with pytest.raises(Killed):
            react(loop.project, "eta")
    assert [each.status for each in loop.remedies()] == ["approved"]
    assert loop.release.repairs == ()
    tick(loop.project)
    assert [each.status for each in loop.remedies()] == ["released"]
    assert len(loop.release.repairs) == 2
    # Killed after the change and before the note of it: found done, not done twice.
    from msgspec.structs import replace

    loop.project.store.records.put(replace(loop.remedies()[0], status="approved"))
    tick(loop.project)
    assert [each.status for each in loop.remedies()] == ["released"]
    assert len(loop.release.repairs) == 2


# -- react: another world ----------------------------------------------------------------------------------------------------


def test_another_world_is_learnt_gated_tried_as_a_canary_and_promoted(loop: Loop) -> None:
    edit(loop.project.root, "eta.py", "+ self.extra", "+ 1000.0")  # an edit that somebody is in the middle of
    loop.play(35, truth=detour, each=lambda: tick(loop.project))
    learnt = next(each for each in loop.remedies() if each.action["action"] == "retrain")
    version = f"eta@{learnt.action['version']}"
    assert learnt.status == "confirmed"
    assert learnt.realised > 0  # type: ignore[operator]
    assert loop.release.champion.version != "eta@1"
    verbs = [(each.verb, each.subject) for each in ledger(loop.project)]
    order = [("built", version), ("checked", version), ("released", f"{version} as a canary of 50%"), ("promoted", version)]
    places = [verbs.index(each) for each in order]
    assert places == sorted(places)
    assert loop.error() < 2.2
    assert any(each.diagnosis == "concept change" for each in loop.alarms(lane="page"))


def test_when_nothing_helps_nothing_is_done_with_its_reason_and_a_growing_rest(loop: Loop) -> None:
    """Minutes at random: no remedy can learn them."""
    def noisy(rows: pl.DataFrame) -> pl.DataFrame:
        seed = (rows["at"][0].date() - date(2026, 1, 1)).days
        return rows.with_columns(minutes=(pl.col("minutes") + pl.Series(np.random.default_rng(seed).normal(0, 9, rows.height))).clip(0))

    loop.play(56, truth=noisy, each=lambda: tick(loop.project))
    remedies = loop.remedies()
    assert len(remedies) >= 2
    assert {each.status for each in remedies} == {"nothing"}
    assert all(each.reason and not each.reason.startswith("nothing") for each in remedies)
    assert all({"nothing", "retrain on everything"} <= {row["name"] for row in each.candidates} for each in remedies)
    assert loop.release.champion.version == "eta@1"
    assert len({each.alarm for each in remedies}) == 1  # one story, not one a week
    rests = [later.time - earlier.time for earlier, later in pairwise(remedies)]
    assert rests == sorted(rests)
    assert len(remedies) <= 5  # eight weeks of it: the rest grows
    assert [each.verb for each in ledger(loop.project) if each.verb == "decided to do nothing for"] == ["decided to do nothing for"] * len(remedies)


def test_a_canary_that_turns_out_worse_is_rolled_back(loop: Loop) -> None:
    build(loop.project, "eta", params={"extra": 3.0})
    release(loop.project, "eta", version="2", force=True, reason="it looked better on paper")
    assert loop.release.canary is not None
    loop.play(3, each=lambda: tick(loop.project))
    assert loop.release.canary is not None  # its time is not over
    loop.play(3, each=lambda: tick(loop.project))
    assert loop.release.canary is None
    assert loop.release.champion.version == "eta@1"
    entry = next(each for each in ledger(loop.project) if each.verb == "rolled back")
    assert "against the champion" in entry.reason
    assert loop.remedies() == []  # it was a person's canary: no remedy is called failed for it


def test_a_canary_of_a_person_does_not_decide_the_fate_of_a_repair(loop: Loop) -> None:
    loop.play(10, feed=celsius, each=lambda: tick(loop.project))
    assert [each.status for each in loop.remedies()] == ["released"]
    build(loop.project, "eta", params={"extra": 3.0})
    release(loop.project, "eta", version="2", force=True, reason="it looked better on paper")
    loop.play(6, feed=celsius, each=lambda: tick(loop.project))
    assert loop.release.champion.version == "eta@1"
    loop.play(4, feed=celsius, each=lambda: tick(loop.project))
    assert [each.status for each in loop.remedies()] == ["confirmed"]


def test_a_canary_without_outcomes_gets_more_time_and_is_then_dropped(loop: Loop) -> None:
    build(loop.project, "eta", params={"extra": 0.001})
    release(loop.project, "eta", version="2", force=True, reason="nearly the same")
    first = loop.release.until
    loop.play(5, told=False, each=lambda: tick(loop.project))
    assert loop.release.canary is not None
    assert loop.release.until > first  # type: ignore[operator]
    loop.play(9, told=False, each=lambda: tick(loop.project))
    assert loop.release.canary is None
    assert loop.release.champion.version == "eta@1"
    assert [each.verb for each in loop.project.store.records.find(Entry, order="seq", verb="extended")] == ["extended", "extended"]


def test_many_outcomes_of_one_day_are_too_few_to_keep_a_canary(loop: Loop) -> None:
    build(loop.project, "eta", params={"extra": 0.001})
    release(loop.project, "eta", version="2", force=True, share=0.9, wait=timedelta(days=4), reason="nearly the same")
    loop.play(3, told=False)
    loop.tell(min(day for day in loop.sent if day >= loop.day - timedelta(days=3)))
    loop.play(12, told=False, each=lambda: tick(loop.project))
    said = [each.reason for each in ledger(loop.project) if each.verb == "extended"]
    assert len(said) == 2
    assert all(" outcomes on 1 day are too few to judge the canary by" in each for each in said)
    assert loop.release.champion.version == "eta@1"
    assert "outcomes on 1 day are too few to keep it" in loop.release.reason


def test_a_version_that_went_live_without_a_canary_is_judged_by_the_one_before_it(loop: Loop) -> None:
    build(loop.project, "eta", params={"extra": 3.0})
    release(loop.project, "eta", version="2", force=True, share=1.0, reason="learnt again")
    action = {"name": "retrain on everything", "action": "retrain", "version": "2"}
    loop.project.store.records.put(Remedy("01remedy", "01alarm", "eta", loop.project.clock(), "released", "retrain on everything", "gained 1", (), action, 1.0))
    loop.play(10, each=lambda: tick(loop.project))
    (remedy,) = loop.remedies()
    assert (remedy.status, loop.release.champion.version) == ("rolled back", "eta@1")
    assert remedy.realised < -0.1  # type: ignore[operator]
    assert loop.release.reason.startswith("lost ")
    assert "a decision against eta@1 (90% interval: a loss of " in loop.release.reason


def test_taking_a_repair_back_leaves_the_later_ones() -> None:
    began = datetime(2026, 5, 1, tzinfo=UTC)
    older = Repair("temp", '"temp" * 1.8 + 32', '("temp" - 32) / 1.8', began)
    newer = Repair("wind", '"wind" * 2', '"wind" / 2', began + timedelta(days=20))
    remedy = Remedy("01", "01", "eta", began, "released", "rework data: temp", "", (), {"action": "rework data", "repairs": [plain(older)]})
    assert _without([older, newer], remedy) == [newer]


def test_react_needs_a_release(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "p")
    edit(tmp_path / "p", "palan.toml", "[models.pack]", '[models.other]\nmodel = "eta.py:Eta"\ndata = "trips"\n\n[models.pack]')
    with living(tmp_path / "p") as loop, pytest.raises(PalanError, match="other is not released"):
        react(loop.project, "other")
