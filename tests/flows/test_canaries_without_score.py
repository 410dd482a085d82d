"""A canary whose answers have no score is judged by its conduct: violations, failures, fallbacks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from palan.flows.build import build
from palan.flows.check import check
from palan.flows.decide import decide
from palan.flows.demo import SimulatedClock
from palan.flows.log import log
from palan.flows.project import Project, open_project
from palan.flows.release import release
from palan.flows.tick import tick
from palan.releases.nouns import Release

TABLE = "# hit: first\ntotal,-> percent\n>= 100,10\n-,0\n"
PLAN = """from palan.models.contract import Violation


class Plan:
    def decide(self, instance, ctx):
        return {{"order": {order}}}

    def check(self, instance, plan):
        if sorted(plan["order"]) != sorted(instance["stops"]):
            yield Violation("every stop once")
"""
TOML = """
[models.discount]
model = "discount.csv"
golden = "golden.json"
release = { canary = "50% for 7d" }

[models.plan]
model = "plan.py:Plan"
kind = "heuristic"
instances = "instances/*.json"
time_limit = "2s"
gates = ["latency 2s"]
release = { canary = "50% for 7d" }
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "palan.toml").write_text(TOML)
    (tmp_path / "discount.csv").write_text(TABLE)
    (tmp_path / "golden.json").write_text('[{"input": {"total": 20}, "output": {"percent": 0}}]')
    (tmp_path / "plan.py").write_text(PLAN.format(order='sorted(instance["stops"])'))
    (tmp_path / "instances").mkdir()
    (tmp_path / "instances" / "one.json").write_text('{"stops": ["b", "a"]}')
    made = open_project(tmp_path, clock=SimulatedClock(datetime(2026, 3, 2, tzinfo=UTC)))
    for name in ("discount", "plan"):
        build(made, name)
        check(made, name)
        release(made, name)
    return made


def canary_of(project: Project, name: str) -> str | None:
    found = project.store.records.get(Release, name)
    assert found is not None
    return found.canary.version if found.canary else None


def changed(project: Project, name: str) -> None:
    build(project, name, reason="an edit")
    check(project, f"{name}@latest")
    release(project, name, version="2", force=True, reason="to see it live")
    assert canary_of(project, name) == f"{name}@2"


def a_week_later(project: Project) -> None:
    assert isinstance(project.clock, SimulatedClock)
    project.clock.now += timedelta(days=7, minutes=1)
    tick(project)


def last(project: Project, name: str) -> str:
    return str(log(project, name)["entries"][-1]["sentence"])


def test_rules_that_behave_are_promoted(project: Project) -> None:
    (project.root / "discount.csv").write_text(TABLE.replace("10", "12"))
    changed(project, "discount")
    for number in range(40):
        decide(project, "discount", rows=[{"total": number * 5}], keys=[f"order {number}"])
    a_week_later(project)
    assert canary_of(project, "discount") is None
    assert project.store.records.get(Release, "discount").champion.version == "discount@2"  # type: ignore[union-attr]
    assert "0 of its" in last(project, "discount")


def test_a_plan_that_breaks_more_rules_than_the_champions_is_rolled_back(project: Project) -> None:
    (project.root / "plan.py").write_text(PLAN.format(order='instance["stops"][:1]'))
    changed(project, "plan")
    for number in range(16):
        decide(project, "plan", instance={"stops": ["b", "a", str(number)]}, keys=[f"tour {number}"])
    a_week_later(project)
    assert canary_of(project, "plan") is None
    assert project.store.records.get(Release, "plan").champion.version == "plan@1"  # type: ignore[union-attr]
    assert "requests went wrong, against 0 of" in last(project, "plan")


def test_a_canary_that_nobody_asks_gets_more_time_and_then_goes(project: Project) -> None:
    (project.root / "discount.csv").write_text(TABLE.replace("10", "12"))
    changed(project, "discount")
    for _ in range(2):
        a_week_later(project)
        assert canary_of(project, "discount") == "discount@2"
        assert "nobody has asked the canary yet" in last(project, "discount")
    a_week_later(project)
    assert canary_of(project, "discount") is None
    assert project.store.records.get(Release, "discount").champion.version == "discount@1"  # type: ignore[union-attr]
