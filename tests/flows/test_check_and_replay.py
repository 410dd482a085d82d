"""Judging a version before it answers, and showing what a change would do to what was really asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from loop_project import BAGS, Loop, edit, ledger, live, opened
from palan.errors import ModelFailed, NotFound, PalanError
from palan.flows.build import build
from palan.flows.check import check
from palan.flows.decide import decide, outcomes
from palan.flows.project import Project
from palan.flows.release import release
from palan.flows.replay import replay
from palan.flows.why import why
from palan.gates.nouns import Evidence

PLAYED = 5


@pytest.fixture(scope="module")
def made(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after it answered for five days, and solved both bags."""
    folder = tmp_path_factory.mktemp("check")
    with live(folder / "played", built) as loop:
        loop.play(PLAYED)
        for number, bag in enumerate(BAGS):
            decide(loop.project, "pack", instance=bag, keys=[f"bag {number}"])
    return folder / "played"


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Project:
    return copy(made, tmp_path / "p")


@pytest.fixture
def loop(made: Path, tmp_path: Path) -> Iterator[Loop]:
    with live(tmp_path / "p", made) as loop:
        yield loop


def copy(made: Path, folder: Path) -> Project:
    shutil.copytree(made, folder)
    project = opened(folder)
    project.clock.now += timedelta(days=PLAYED)  # type: ignore[attr-defined]
    return project


def again(project: Project) -> Project:
    """Open the project again, as the next command does after palan.toml was edited."""
    return opened(project.root, project.clock())


def finding(report: dict[str, Any], gate: str) -> dict[str, Any]:
    return next(each for each in report["findings"] if each["gate"] == gate)


# -- check ---------------------------------------------------------------------------------------------------------------


def test_a_worse_candidate_fails_the_champion_gate_and_a_better_one_passes_it(project: Project) -> None:
    blind = build(project, "eta", params={"blind": True})["version"]
    report = check(project, blind)
    assert report["verdict"] == "fail"
    assert report["against"] == "eta@1"
    assert finding(report, "champion")["verdict"] == "fail"
    assert finding(report, "champion")["figures"]["losses"]["candidate"] > 2 * finding(report, "champion")["figures"]["losses"]["champion"]

    with pytest.raises(PalanError, match="does not pass its gate") as refused:
        release(project, "eta", version="2")
    assert f"palan check {blind}" in refused.value.hint

    release(project, "eta", version="2", share=1.0, force=True, reason="to have something worse in place")
    better = check(project, "eta@1")
    assert finding(better, "champion")["verdict"] == "pass"
    assert finding(better, "champion")["figures"]["difference"]["high"] < 0
    assert better["verdict"] == "pass"


def test_what_the_gates_found_is_kept_with_the_version(project: Project) -> None:
    build(project, "eta", params={"blind": True})
    before = len(ledger(project))
    report = check(project, "eta")
    kept = project.store.records.find(Evidence, version="eta@2")
    assert {(each.gate, each.verdict, each.text) for each in kept} == {(each["gate"], each["verdict"], each["text"]) for each in report["findings"]}
    assert all(each.against == "eta@1" for each in kept)
    assert [each.verb for each in ledger(project)[before:]] == ["checked"]
    assert ledger(project)[-1].reason.startswith("fail: ")


def test_a_narrower_signature_fails(project: Project) -> None:
    edit(project.root, "palan.toml", 'load = "int 0..500"', 'load = "int 0..100"')
    project = again(project)
    build(project, "eta")
    report = check(project, "eta@2")
    assert finding(report, "schema_compatible")["verdict"] == "fail"
    assert "load" in finding(report, "schema_compatible")["text"]
    assert report["verdict"] == "fail"


def test_a_wider_signature_passes(project: Project) -> None:
    edit(project.root, "palan.toml", 'load = "int 0..500"', 'load = "int 0..900"')
    project = again(project)
    build(project, "eta")
    assert finding(check(project, "eta@2"), "schema_compatible")["verdict"] == "pass"


def test_a_new_input_that_no_caller_sends_yet_is_judged_and_not_a_crash(project: Project) -> None:
    edit(project.root, "palan.toml", 'inputs = ["temp", ', 'inputs = ["hour", "temp", ')
    edit(project.root, "palan.toml", 'minutes = "float 0.."', 'minutes = "float 0.."\nhour = "int 0..23"')
    rows = pl.read_csv(project.root / "feed" / "trips.csv").with_columns(hour=pl.col("at").str.slice(11, 2).cast(pl.Int64))
    rows.write_csv(project.root / "feed" / "trips-with-hour.csv")
    golden = json.loads((project.root / "golden.json").read_text())
    (project.root / "golden.json").write_text(json.dumps([{**case, "input": {**case["input"], "hour": 9}} for case in golden]))
    project = again(project)
    from palan.flows.ingest import ingest

    ingest(project)
    made = build(project, "eta")
    assert made["version"] == "eta@2"
    report = check(project, "eta@2")
    assert {each["gate"] for each in report["findings"]} == {"schema_compatible", "golden", "champion", "latency", "decision_diff"}
    assert finding(report, "latency")["verdict"] == "pass"
    assert finding(report, "golden")["verdict"] == "pass"
    assert finding(report, "champion")["verdict"] == "pass"
    with pytest.raises(PalanError, match="hour") as refused:
        replay(project, "eta@2")
    assert "--on" in refused.value.hint


def test_golden_cases_fail_when_an_answer_changes(project: Project) -> None:
    assert finding(check(project, "eta@1"), "golden")["verdict"] == "pass"
    build(project, "eta", params={"extra": 2.5})
    found = finding(check(project, "eta@2"), "golden")
    assert found["verdict"] == "fail"
    assert found["text"].startswith("5 of 5 golden cases differ")


def test_a_golden_case_that_cannot_be_read_fails_with_its_place(project: Project) -> None:
    cases = json.loads((project.root / "golden.json").read_text())
    cases[1]["input"]["temp"] = "warm"
    (project.root / "golden.json").write_text(json.dumps(cases))
    found = finding(check(project, "eta@1"), "golden")
    assert found["verdict"] == "fail"
    assert "temp" in found["text"]


def test_a_model_that_breaks_on_recorded_rows_fails_and_the_check_goes_on(project: Project) -> None:
    """What was asked for last differs from all that it learnt from: it breaks there, and there only."""
    edit(project.root, "eta.py", "return self._features(rows) @", "assert not (rows['load'] == 499).any(), 'so many'\n        return self._features(rows) @")
    decide(project, "eta", rows=[{"temp": 50.0, "dewp": 40.0, "humid": 70.0, "wind": 5.0, "load": 499, "line": "A"}], keys=["many"])
    build(project, "eta")
    report = check(project, "eta@2")
    assert report["verdict"] == "fail"
    assert finding(report, "decision_diff")["verdict"] == "fail"
    assert "so many" in finding(report, "decision_diff")["text"]
    assert finding(report, "golden")["verdict"] == "pass"


def test_an_edit_that_is_not_built_is_named_when_its_champion_is_checked(project: Project) -> None:
    report = check(project, "eta")
    assert finding(report, "champion")["text"] == "eta@1 is the champion itself: build what is to be compared with it"
    assert report["next"] == ""

    edit(project.root, "eta.py", "self.weights = ", "self.note = 1\n        self.weights = ")
    report = check(project, "eta")
    assert finding(report, "champion")["text"].startswith("eta@1 is the champion itself; eta.py:Eta")
    assert finding(report, "champion")["text"].endswith(" was edited since, and is not built yet")
    assert report["next"] == "palan build eta"
    build(project, "eta")
    assert check(project, "eta@2")["next"] in ("palan release eta@2", "")


def test_cannot_tell_where_there_is_nothing_to_tell_from(made: Path, tmp_path: Path) -> None:
    project = copy(made, tmp_path / "p")
    report = check(project, "eta@1")  # the champion itself
    assert finding(report, "champion")["verdict"] == "cannot tell"
    assert report["verdict"] == "pass"  # the other gates could tell

    edit(project.root, "palan.toml", 'gates = ["schema_compatible", "golden", "champion margin=0.01", "latency 500ms", "decision_diff most=100%"]', 'gates = ["champion"]')
    report = check(again(project), "eta@1")
    assert report["verdict"] == "cannot tell"

    edit(project.root, "palan.toml", 'golden = "golden.json"\n', "")
    edit(project.root, "palan.toml", 'gates = ["champion"]', 'gates = ["golden"]')
    assert check(again(project), "eta@1")["verdict"] == "cannot tell"


def test_the_champion_gate_learns_only_from_before_the_rows_that_it_judges_on(loop: Loop) -> None:
    """A candidate that has seen the held-back outcomes is judged by its twin that has not."""
    edit(loop.project.root, "eta.py", "self.weights = ", "self.seen = [str(each) for each in data['at'].dt.date().unique().to_list()]\n        self.weights = ")
    loop.day += timedelta(days=PLAYED)
    loop.play(12)
    made = build(loop.project, "eta")
    assert made["data"]["until"] > "2026-05-15"
    report = check(loop.project, "eta@2")
    figures = finding(report, "champion")["figures"]["difference"]
    assert figures["rows"] == 7 * 150  # the holdout, all of them decided and told
    from palan.flows.journal import recorded
    from palan.runs.run import Step

    fits = loop.project.store.records.find(Step, name=f"fit eta until {loop.day - timedelta(days=9):%Y-%m-%d}")
    assert len(fits) == 1
    assert recorded(fits[0])["until"] < fits[0].parts["until"]


def test_every_learning_begins_anew(project: Project) -> None:
    """A fit() that adds to what it knows must not carry the rows of one block of the reference into the next."""
    edit(project.root, "eta.py", "self.weights = ", "assert not hasattr(self, 'weights'), 'learnt twice'\n        self.weights = ")
    made = build(project, "eta")
    assert made["version"] == "eta@2"
    assert made["metrics"]["loss"] == pytest.approx(1.6, abs=0.1)


def test_plans_are_judged_on_the_real_instances(project: Project) -> None:
    worse = check(project, "pack@1")
    assert finding(worse, "feasibility")["verdict"] == "pass"
    assert build(project, "pack", params={"by_weight": True})["version"] == "pack@2"
    better = finding(check(project, "pack@2"), "champion")
    assert better["figures"]["losses"]["candidate"] < better["figures"]["losses"]["champion"]


def test_plans_that_break_a_rule_fail(project: Project) -> None:
    edit(project.root, "pack.py", "if weights[item] <= room:", "if True:")
    build(project, "pack")
    report = check(project, "pack@2")
    assert report["verdict"] == "fail"
    assert "the bag holds it" in finding(report, "feasibility")["text"]


def test_an_instance_that_only_the_champion_solves_is_a_loss(project: Project) -> None:
    edit(project.root, "pack.py", "values, weights = ", "if len(instance['values']) == 4:\n            return None\n        values, weights = ")
    build(project, "pack")
    told = finding(check(project, "pack@2"), "champion")
    assert told["verdict"] == "fail"
    assert told["text"].startswith("it has no plan where pack@1 has one: ")
    assert len(told["figures"]["lost"]) == 1


def test_a_change_of_plans_shows_where_no_objective_tells_which_is_better(project: Project) -> None:
    edit(project.root, "pack.py", "def objective(", "def worth(")
    told = finding(check(project, build(project, "pack")["version"]), "champion")
    assert told["verdict"] == "cannot tell"
    assert told["text"] == "pack@2 reports no objective: give it objective(instance, plan)"
    release(project, "pack", version="2")

    same = finding(check(project, build(project, "pack", seed=1)["version"]), "decision_diff")
    assert (same["verdict"], same["figures"]["changed"]) == ("pass", 0)
    report = check(project, build(project, "pack", params={"by_weight": True})["version"])
    assert "pack@4 reports no objective" in finding(report, "champion")["text"]
    diff = finding(report, "decision_diff")
    assert diff["figures"]["changed"] == 2
    assert diff["text"].startswith("2 of 2 instances change (100.00%); the most in ")
    assert "becomes {'taken': [1, 2" in diff["text"]

    edit(project.root, "pack.py", "def worth(", "def objective(")
    told = finding(check(project, build(project, "pack")["version"]), "champion")
    assert told["text"].startswith("the champion pack@2 reports no objective: ")


# -- replay --------------------------------------------------------------------------------------------------------------


def test_an_edit_in_the_working_tree_names_how_many_answers_change_and_which(project: Project) -> None:
    edit(project.root, "eta.py", "+ self.extra", "+ np.where(rows['line'].to_numpy() == 'C', 3.0 + rows['load'].to_numpy() / 100, 0.0)")
    report = replay(project, "eta@.", on="last:600")
    from palan.flows import history

    rows = history.frame(project, "eta", None).tail(600)
    lines = rows.filter(pl.col("line") == "C")
    assert report["rows"] == 600
    assert report["changed"] == lines.height
    assert report["share"] == pytest.approx(lines.height / 600)
    most = lines.sort("load", descending=True).row(0, named=True)
    assert report["examples"][0]["key"] == most["key"] or report["examples"][0]["size"] == pytest.approx(3 + most["load"] / 100)
    assert {each["key"] for each in report["examples"]} <= set(lines["key"])
    assert f"{lines.height} of 600" in report["text"]


def test_an_unchanged_working_tree_changes_nothing(project: Project) -> None:
    report = replay(project, "eta@.")
    assert report["version"] == "eta@1"
    assert report["changed"] == 0
    assert report["loss"]["gain"] == 0


def test_losses_are_paired_where_outcomes_are_known(project: Project) -> None:
    build(project, "eta", params={"extra": 1.0})
    report = replay(project, "eta@2", on="last:5d")
    known = 150 * (PLAYED - 2)  # the last two days' outcomes are not told yet
    assert report["rows"] == 150 * PLAYED
    assert report["loss"]["rows"] == known
    assert report["loss"]["gain"] == pytest.approx(report["loss"]["against"] - report["loss"]["version"])
    assert report["loss"]["low"] < report["loss"]["gain"] < report["loss"]["high"] < 0
    assert "; lost 0." in report["text"] and "a decision against eta@1 (90% interval: a loss of 0." in report["text"]
    turned = replay(project, "eta@1", on="last:5d", against="eta@2")
    assert turned["loss"]["gain"] == pytest.approx(-report["loss"]["gain"])


def test_against_what_was_really_answered(project: Project) -> None:
    same = replay(project, "eta@1", against="logged")
    assert (same["against"], same["changed"]) == ("logged", 0)
    build(project, "eta", params={"extra": 1.0})
    assert replay(project, "eta@2", on="last:50", against="logged")["changed"] == 50


@pytest.mark.parametrize(
    ("on", "rows"),
    [("last:100", 100), ("last:2d", 300), ("2026-05-05..2026-05-07", 300), ("2026-05-06..", 450), ("..2026-05-05", 150), ("2026-05..2026-06", 750)],
)
def test_the_forms_of_a_window(made: Path, on: str, rows: int) -> None:
    project = opened(made)
    project.clock.now += timedelta(days=PLAYED)  # type: ignore[attr-defined]
    assert replay(project, "eta@1", on=on)["rows"] == rows


@pytest.mark.parametrize("on", ["yesterday", "last:", "last:0", "last:-3", "last:0d", "last:7w", "2026-13-01..", "..nonsense", "missing.csv", ""])
def test_a_window_that_cannot_be_read_names_the_forms(made: Path, on: str) -> None:
    with pytest.raises(PalanError, match="names no window") as refused:
        replay(opened(made), "eta@1", on=on)
    assert "--on last:1000" in refused.value.hint


@pytest.mark.parametrize("on", ["2025-01-01..2025-02-01", "2026-05-09..", "2026-05-07..2026-05-05"])
def test_an_empty_window_says_so(made: Path, on: str) -> None:
    with pytest.raises(NotFound, match="no decision of eta"):
        replay(opened(made), "eta@1", on=on)


def test_a_file_of_rows(loop: Loop) -> None:
    project = loop.project
    day = loop.world.day(loop.day + timedelta(days=30))
    day.write_csv(project.root / "rows.csv", datetime_format="%Y-%m-%dT%H:%M:%SZ")
    build(project, "eta", params={"blind": True})
    report = replay(project, "eta@2", file=project.root / "rows.csv")
    assert report["rows"] == 150
    assert report["loss"]["rows"] == 150
    assert report["loss"]["gain"] < -0.5
    assert report["examples"][0]["key"] in set(day["id"])
    with pytest.raises(PalanError, match="nothing was ever answered"):
        replay(project, "eta@2", file=project.root / "rows.csv", against="logged")
    day.drop("minutes", "id", "at").write_csv(project.root / "bare.csv")
    assert "loss" not in replay(project, "eta@2", file=project.root / "bare.csv")


def test_a_file_that_does_not_fit_is_named(loop: Loop) -> None:
    project = loop.project
    loop.world.day(loop.day).drop("wind").write_csv(project.root / "rows.csv", datetime_format="%Y-%m-%dT%H:%M:%SZ")
    with pytest.raises(PalanError, match="wind"):
        replay(project, "eta@1", file=project.root / "rows.csv")
    (project.root / "empty.csv").write_text("")
    with pytest.raises(PalanError):
        replay(project, "eta@1", file=project.root / "empty.csv")
    with pytest.raises(PalanError, match="instances"):
        replay(project, "pack@1", file=project.root / "rows.csv")


def test_instances_are_solved_again(project: Project) -> None:
    build(project, "pack", params={"by_weight": True})
    report = replay(project, "pack@2", on="last:20")
    assert (report["against"], report["rows"], report["changed"]) == ("pack@1", 2, 2)
    gained = [each["after"] - each["before"] for each in report["objectives"]]
    assert gained == [2.0, 1.0]
    same = replay(project, "pack@1", on="last:1")
    assert (same["against"], same["rows"], same["changed"]) == ("logged", 1, 0)


def test_a_row_without_an_answer_has_no_loss(loop: Loop) -> None:
    """A batch on which the model failed is in the log, and its outcome may well be told."""
    edit(loop.project.root, "eta.py", "return self._features(rows) @", "assert rows['load'].max() < 499\n        return self._features(rows) @")
    build(loop.project, "eta")
    release(loop.project, "eta", version="2", share=1.0, force=True, reason="one that can fail")
    row = {"temp": 50.0, "dewp": 40.0, "humid": 70.0, "wind": 5.0, "load": 499, "line": "A"}
    with pytest.raises(ModelFailed):
        decide(loop.project, "eta", rows=[row], keys=["unanswered"])
    outcomes(loop.project, "eta", [40.0], keys=["unanswered"])
    report = replay(loop.project, "eta@1", on="last:5d", against="logged")
    assert report["loss"]["rows"] == 150 * (PLAYED - 2)


def test_replay_changes_nothing(project: Project) -> None:
    before = len(ledger(project))
    replay(project, "eta@1")
    replay(project, "pack@1", on="last:5")
    assert len(ledger(project)) == before


# -- why -----------------------------------------------------------------------------------------------------------------


def test_why_of_a_decision_shows_the_instance_and_the_plan(project: Project) -> None:
    """Both bags are lists under names, as columns are: they must come back whole."""
    made = decide(project, "pack", instance=BAGS[0])
    told = why(project, made["decision"])
    assert (told["kind"], told["model"], told["version"], told["inputs"]) == ("decision", "pack", "pack@1", BAGS[0])
    assert told["outputs"] == made["outputs"]
    assert why(project, f"{made['decision']}-0") == told


def test_why_of_a_decision_shows_its_row(project: Project) -> None:
    rows = [{"temp": 50.0, "dewp": 40.0, "humid": 60.0, "wind": wind, "load": 100, "line": "A"} for wind in (5.0, 20.0)]
    made = decide(project, "eta", rows=rows)
    told = why(project, f"{made['decision']}-1")
    assert (told["inputs"], told["outputs"]) == (rows[1], {"output": made["outputs"][1]})
