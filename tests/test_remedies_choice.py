"""An alarm is answered by what replay vouches for: candidates for every kind, and nothing when nothing is worth it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pytest

from palan.data.doctor import Hypothesis
from palan.data.nouns import Repair
from palan.drift.diagnose import Diagnosis
from palan.errors import PalanError
from palan.models.contract import KINDS
from palan.remedies.choose import Choice, Trial, choose
from palan.remedies.menu import ACTIONS, COSTS, NOTHING, Candidate, menu

SINCE = datetime(2013, 9, 3, tzinfo=UTC)
CELSIUS = Repair("temp", "temp * 1.8 + 32", "(temp - 32) / 1.8", SINCE, None, "°C where °F is declared")
DEWP = Repair("dewp", "dewp * 1.8 + 32", "(dewp - 32) / 1.8", SINCE)
CONCEPT = Diagnosis("concept change", "the same inputs lose more", SINCE, ("temp",))


def fault(*repairs: Repair, confidence: float = 0.9, ends: bool = False) -> Hypothesis:
    return Hypothesis("unit", tuple(repair.column for repair in repairs), SINCE, confidence, "°C where °F is declared", tuple(repairs), None, ends)


def names(candidates: list[Candidate]) -> list[str]:
    return [candidate.name for candidate in candidates]


# --- the menu -----------------------------------------------------------------------------------------------------


def test_the_menu_of_an_estimator_has_everything_that_applies():
    found = menu(
        kind="estimator",
        diagnosis=CONCEPT,
        hypotheses=[fault(CELSIUS), fault(DEWP, confidence=0.05)],
        has_previous=True,
        can_fit=True,
        active_repairs=[],
        alternatives=[{"name": "deeper", "params": {"depth": 8}}],
        can_recalibrate=True,
    )
    assert names(found) == [
        "nothing",
        "rework data: temp",
        "roll back",
        "recalibrate",
        "retrain on everything",
        "retrain on 60 days",
        "retrain on 28 days",
        "retrain since 2013-09-03",
        "change model: deeper",
    ]
    assert found[1].detail["repairs"][0] == {
        "column": "temp",
        "expression": "temp * 1.8 + 32",
        "inverse": "(temp - 32) / 1.8",
        "since": "2013-09-03T00:00:00.000000Z",
        "until": None,
        "reason": "°C where °F is declared",
    }
    assert found[-1].detail == {"name": "deeper", "params": {"depth": 8}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_menu_that_can_be_kept_as_json(kind):
    other = {"name": "gates_fast", "action": "fallback"} if kind in ("program", "heuristic") else {"name": "other"}
    found = menu(kind=kind, diagnosis=CONCEPT, hypotheses=[fault(CELSIUS)], has_previous=True, can_fit=kind in ("estimator", "policy"), active_repairs=[DEWP], alternatives=[other])
    assert found[0] is NOTHING
    assert {"rework data: temp", "end repair: dewp", "roll back"} <= set(names(found))
    assert all(candidate.action in ACTIONS and candidate.sentence for candidate in found)
    assert any(candidate.action == {"program": "fallback", "heuristic": "fallback", "rules": "edit rule"}.get(kind, "retrain") for candidate in found)
    assert json.loads(json.dumps([candidate.detail for candidate in found])) == [candidate.detail for candidate in found]


def test_several_faults_and_several_repairs_are_also_treated_together():
    found = menu(kind="program", diagnosis=CONCEPT, hypotheses=[fault(CELSIUS), fault(DEWP)], has_previous=False, can_fit=False)
    assert names(found) == ["nothing", "rework data: temp", "rework data: dewp", "rework data: all"]
    found = menu(kind="program", diagnosis=CONCEPT, hypotheses=[fault(CELSIUS, ends=True)], has_previous=False, can_fit=False, active_repairs=[CELSIUS, DEWP])
    assert names(found) == ["nothing", "end repair: all", "end repair: temp", "end repair: dewp"]
    rival = Repair("temp", "temp * 10", "temp / 10", SINCE)
    found = menu(kind="program", diagnosis=CONCEPT, hypotheses=[fault(CELSIUS), fault(rival)], has_previous=False, can_fit=False)
    assert "rework data: all" not in names(found)
    assert len(set(names(found))) == len(found)


def test_rules_without_another_table_name_the_rows_to_look_at():
    found = menu(kind="rules", diagnosis=CONCEPT, has_previous=False, can_fit=False)
    assert names(found) == ["nothing", "edit rule"]
    assert "rows that read temp" in found[1].sentence
    given = menu(kind="rules", diagnosis=CONCEPT, has_previous=False, can_fit=False, alternatives=[{"name": "care-2.csv"}])
    assert names(given) == ["nothing", "edit rule: care-2.csv"]


def test_every_action_has_its_costs():
    assert set(COSTS) == set(ACTIONS)


# --- the choice ---------------------------------------------------------------------------------------------------

DAYS = np.repeat(np.arange(14), 100)


@dataclass
class Maker:
    rng: np.random.Generator

    def __call__(self, name: str, gain: float, *, action: str = "retrain", noise: float = 0.3, refused: str = "") -> Trial:
        """A trial whose true gain is `gain` a decision; days share half of their luck."""
        luck = self.rng.normal(size=14)[DAYS] * noise / 10
        return Trial(Candidate(name, action, {}, name), -gain + luck + noise * self.rng.normal(size=1400), DAYS, 1.0, refused)  # type: ignore[arg-type]


@pytest.fixture
def make() -> Maker:
    return Maker(np.random.default_rng(1))


def row(choice: Choice, name: str) -> dict[str, object]:
    return dict(next(item for item in choice.rows if item["name"] == name))


def test_the_surest_gain_wins_not_the_luckiest(make):
    sure = make("rework data: temp", 0.10, action="rework data", noise=0.1)
    lucky = make("retrain on 28 days", 0.15, noise=3.0)
    choice = choose([sure, lucky], horizon_decisions=60_000)
    assert choice.name == "rework data: temp"
    assert 0 < choice.net_low < choice.gain
    assert choice.reason.startswith("gained 0.1")
    assert "over the next 60,000 decisions" in choice.reason
    assert "Next best: retrain on 28 days" in choice.reason
    assert [item["chosen"] for item in choice.rows] == [True, False, False]
    assert row(choice, "rework data: temp")["verdict"] == "worth it"


def test_nothing_is_chosen_when_no_gain_is_vouched_for(make):
    choice = choose([make("retrain on everything", 0.002), make("roll back", -0.2, action="roll back")])
    assert choice.name == "nothing"
    assert choice.rows[0]["name"] == "nothing" and choice.rows[0]["chosen"]
    assert "may be chance" in choice.reason or choice.reason.startswith("no candidate")
    assert row(choice, "roll back")["verdict"] == "makes it worse"


def test_a_gain_below_its_cost_is_not_taken(make):
    trial = make("retrain on everything", 0.05, noise=0.05)
    assert choose([trial]).name == "retrain on everything"
    choice = choose([trial], costs={"review": 0.05, "train": 0.04, "switch": 0.01})
    assert choice.name == "nothing"
    assert row(choice, "retrain on everything")["verdict"] == "not worth its cost"
    assert "before its cost of 0.1" in choice.reason
    back = Trial(Candidate("roll back", "roll back"), trial.losses, trial.days)
    assert choose([trial, back], costs={"train": 0.1}).name == "roll back"  # the same gain, without training


def test_of_equals_the_first_is_taken(make):
    trial = make("a", 0.1)
    twin = Trial(Candidate("b", "retrain"), trial.losses, trial.days)
    assert choose([trial, twin]).name == "a"
    assert choose([twin, trial]).name == "b"


def test_worthless_candidates_are_chosen_in_at_most_one_of_ten_alarms():
    rng = np.random.default_rng(2)
    chosen = 0
    for _ in range(200):
        common = rng.normal(size=14)[DAYS] * 0.05
        trials = [Trial(Candidate(f"c{i}", "retrain"), common + rng.normal(size=14)[DAYS] * 0.05 + 0.2 * rng.normal(size=1400), DAYS) for i in range(6)]
        chosen += choose(trials).name != "nothing"
    assert chosen / 200 <= 0.10


def test_a_gain_of_six_standard_errors_is_found():
    found = 0
    for seed in range(60):
        make = Maker(np.random.default_rng(seed))
        found += choose([make("good", 0.07), *(make(f"c{i}", 0.0) for i in range(5))]).name == "good"
    assert found >= 54


def test_what_failed_a_gate_or_was_not_tried_is_shown_and_never_chosen(make):
    refused = make("retrain on 28 days", 0.5, refused="failed gate golden: case 2 differs")
    untried = Trial(Candidate("edit rule", "edit rule", {}, "a person has to write the row"))
    broken = Trial(Candidate("change model: x", "change model"), np.full(1400, np.nan), DAYS)
    choice = choose([refused, untried, broken])
    assert choice.name == "nothing"
    assert row(choice, "retrain on 28 days")["verdict"] == "failed gate golden: case 2 differs"
    assert row(choice, "retrain on 28 days")["gain"] == pytest.approx(0.5, abs=0.05)
    assert row(choice, "edit rule")["verdict"].startswith("not tried")
    assert "not finite" in str(row(choice, "change model: x")["verdict"])
    assert "no candidate can be judged" in choice.reason


def test_two_days_of_outcomes_are_too_few(make):
    losses = np.full(200, -1.0)
    choice = choose([Trial(Candidate("retrain", "retrain"), losses, np.repeat([1, 2], 100))])
    assert choice.name == "nothing"
    assert "2 days of outcomes, 3 are needed" in choice.reason


def test_a_candidate_that_changes_no_decision_is_no_gain():
    choice = choose([Trial(Candidate("roll back", "roll back"), np.zeros(1400), DAYS)])
    assert choice.name == "nothing"
    assert row(choice, "roll back")["verdict"] == "decides exactly as now"


def test_no_candidates_at_all():
    assert choose([]).reason == "there is no other candidate"
    assert choose([Trial(NOTHING)]).name == "nothing"


def test_the_choice_repeats_itself_and_its_table_is_plain(make):
    trials = [make("a", 0.03), make("b", 0.02)]
    assert choose(trials, method="bootstrap", seed=3) == choose(trials, method="bootstrap", seed=3)
    assert json.loads(json.dumps(list(choose(trials).rows))) == list(choose(trials).rows)


def test_trials_of_different_decisions_and_unknown_costs_are_refused(make):
    short = Trial(Candidate("short", "retrain"), np.zeros(10), np.arange(10))
    with pytest.raises(PalanError, match="different numbers of decisions"):
        choose([make("a", 0.1), short])
    with pytest.raises(PalanError, match='no cost "trian"'):
        choose([], costs={"trian": 1.0})
    with pytest.raises(PalanError, match="no evidence"):
        choose([], confidence=0.3)
