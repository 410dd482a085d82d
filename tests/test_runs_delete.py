"""Runs that nobody wants any more: put aside, taken back, and freed for good by a sweep."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from palan.cli import main
from palan.core import digest, utcnow
from palan.errors import Invalid, NotFound
from palan.flows.delete import delete, restore
from palan.flows.gc import gc
from palan.flows.log import log
from palan.flows.project import Project, open_project
from palan.flows.runs import find_run, run_page, search
from palan.flows.track import start
from palan.flows.verify import verify
from palan.runs.run import Artifact, Curve, Run, Value
from palan.stores.files import FileBlobs


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """One run with a part, which keep a file of their own and one that the third keeps too."""
    (tmp_path / "palan.toml").write_text('[project]\nname = "sweep"\n', encoding="utf-8")
    project = open_project(tmp_path)
    with start("x", name="outer", project=project, lr=0.1) as run:
        run.log(loss=1.0)
        run.artifact(b"own", "own.bin")
        run.artifact(b"shared", "shared.bin")
        with start("x", name="part", project=project):
            pass
    with start("x", name="other", project=project) as run:
        run.log(loss=2.0)
        run.artifact(b"shared", "shared.bin")
    return project


def names(project: Project, where: str = "") -> set[str]:
    return {each["name"] for each in search(project, where)["runs"]}


def typed(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def aged(project: Project) -> None:
    """Let every blob be as if it had been put days ago."""
    assert isinstance(project.store.blobs, FileBlobs)
    for key in project.store.blobs.names():
        place = project.store.blobs.place(key)
        then = place.stat().st_mtime - 3 * 86400
        os.utime(place, (then, then))


def test_what_is_deleted_is_found_by_who_asks_for_it_and_can_be_taken_back(project: Project) -> None:
    outer = find_run(project, "outer")
    made = delete(project, ["outer"], reason="wrong data")
    assert {each["name"] for each in made["runs"]} == {"outer", "part"}
    assert names(project) == {"other"}
    assert names(project, "deleted IS NOT NULL") == {"outer", "part"}
    assert names(project, "deleted IS NOT NULL or name = 'other'") == {"outer", "part", "other"}
    assert run_page(project, outer.id)["deleted"] is not None
    assert delete(project, ["outer"])["runs"] == []
    (entry,) = log(project)["entries"]
    assert (entry["verb"], entry["reason"], len(entry["detail"]["runs"])) == ("delete", "wrong data", 2)
    assert {each["name"] for each in restore(project, [outer.id])["runs"]} == {"outer", "part"}
    assert names(project) == {"outer", "part", "other"}
    assert [each["verb"] for each in log(project)["entries"]] == ["delete", "restore"]
    assert find_run(project, "outer") == outer
    with pytest.raises(NotFound):
        delete(project, ["outer", "nobody"])
    assert names(project) == {"outer", "part", "other"}


def test_a_sweep_frees_what_was_deleted_long_ago_and_only_its_own_files(project: Project) -> None:
    outer = find_run(project, "outer").id
    delete(project, ["outer"])
    aged(project)
    assert gc(project)["runs"] == []  # it was deleted just now
    project = replace(project, clock=lambda: utcnow() + timedelta(days=2))
    told = gc(project, dry_run=True)
    assert outer in told["runs"] and len(told["runs"]) == 2
    assert names(project, "deleted IS NOT NULL") == {"outer", "part"}
    swept = gc(project)
    assert swept["runs"] == told["runs"]
    assert digest(b"own") in [each["blob"] for each in swept["blobs"]] and digest(b"shared") not in [each["blob"] for each in swept["blobs"]]
    records = project.store.records
    assert [records.find(noun, run=outer) for noun in (Value, Curve, Artifact)] == [[], [], []]
    assert [run.name for run in records.find(Run)] == ["other"]
    with pytest.raises(NotFound):
        restore(project, [outer])
    assert log(project)["entries"][-1]["detail"]["runs"] == told["runs"]
    assert verify(project)["findings"] == []
    assert gc(project)["runs"] == []


def test_what_says_how_a_version_came_to_be_is_not_deleted(project: Project) -> None:
    project.store.records.put(Run("0" * 26, "build", "pricing", "done", project.clock()))
    with pytest.raises(Invalid, match="is a build"):
        delete(project, ["0" * 26])


def test_a_run_that_goes_on_is_deleted_without_its_process_taking_notice(project: Project) -> None:
    with start("x", name="live", project=project) as run:
        run.log(loss=1.0)
        delete(project, ["live"])
        project = replace(project, clock=lambda: utcnow() + timedelta(days=2))
        assert gc(project)["runs"] == []
        run.log(loss=0.5)
    assert names(project, "deleted IS NOT NULL and status = 'done'") == {"live"}
    assert len(gc(project)["runs"]) == 1


def test_the_commands_say_the_way_back(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--project", str(project.root), "runs"]
    assert typed(*[*at, "delete", "other", "--reason", "a mistake"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("deleted ") and "next: palan runs restore " in said and "palan gc" in said
    back = said.split("palan runs restore ")[1].split()[0]
    assert typed(*[*at, "show", back]) == 0
    assert f"palan runs restore {back}" in capsys.readouterr().out
    assert typed(*[*at, "restore", back]) == 0
    assert capsys.readouterr().out.startswith("restored ")
    assert typed(*[*at, "restore", back]) == 0
    assert capsys.readouterr().out.startswith("nothing to restore")
    assert typed(*[*at, "delete", "nobody"]) == 2
