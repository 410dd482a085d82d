"""A model that an MLflow client registered is seen in palan: on the command line, in JSON, on the pages, apart from palan's own."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest
from click.testing import CliRunner

from palan.cli.commands import cli
from palan.errors import NotFound
from palan.flows.mlflow import Tracking
from palan.flows.mlflow_registry import Registry
from palan.flows.packages import find_version
from palan.flows.project import Project, open_project
from palan.flows.serve import serving
from palan.flows.status import registered_page, status
from palan.flows.track import start
from palan.web import views
from test_status import CODE, TOML, fits


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """`fraud` has three versions, of which the last was deleted; `demand` is a model of palan's too; `empty` has none."""
    root = tmp_path_factory.mktemp("registered")
    (root / "palan.toml").write_text(TOML, encoding="utf-8")
    (root / "demand.py").write_text(CODE, encoding="utf-8")
    project = open_project(root)
    with start("fit", project=project) as run:
        run.log(loss=0.3)
    registry = Registry(Tracking(project))
    for name in ("empty", "demand", "fraud"):
        registry.create(name, "Who pays with <b>another's</b> card.", [])
        for number in range(0 if name == "empty" else 3):
            registry.create_version(name, f"mlflow-artifacts:/0/{run.id}/artifacts/m", run.id, "", f"try {number + 1}", "", [])
    registry.alias("fraud", "best", "1")
    registry.alias("demand", "good", "1")
    registry.move("fraud", "2", "Production", archive=True)
    registry.delete_version("fraud", "3")
    return project


def palan(project: Project, *command: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["--project", str(project.root), *command])
    return done.exit_code, done.output


def test_they_stand_in_the_status_of_the_project_named_like_versions(project: Project) -> None:
    home = fits(status(project), views.Home)
    assert {each["name"]: (each["newest"], each["aliases"]) for each in home["registered"]} == {"fraud": ("fraud@2", {"best": "fraud@1"}), "demand": ("demand@3", {"good": "demand@1"}), "empty": (None, {})}
    assert [each["name"] for each in home["models"]] == ["demand"]  # no model of palan's own came of it
    told = palan(project, "status")[1]
    assert "registered by an MLflow client  fraud@2, best is fraud@1\n" in told
    assert "registered by an MLflow client  empty (no version)\n" in told


def test_the_status_of_one_lists_its_versions(project: Project) -> None:
    code, told = palan(project, "status", "fraud")
    assert code == 0
    assert "  fraud@2: Production; run " in told
    assert "  fraud@1: best; run " in told
    assert "fraud@3" not in told
    page: Any = msgspec.json.decode(palan(project, "status", "fraud", "--json")[1])
    fits(page, views.RegisteredPage)
    assert page["model"]["versions"] == registered_page(project, "fraud")["model"]["versions"]
    assert [(each["ref"], each["aliases"], each["stage"], each["description"]) for each in page["model"]["versions"]] == [("fraud@2", [], "Production", "try 2"), ("fraud@1", ["best"], "", "try 1")]


def test_a_model_of_palans_own_shows_both_apart(project: Project) -> None:
    told = palan(project, "status", "demand")[1]
    own, _, theirs = told.partition("registered by MLflow clients under the same name")
    assert "demand (estimator)" in own
    assert "demand@3" not in own
    assert "demand@3" in theirs


@pytest.mark.parametrize("command", [("release", "fraud@2"), ("check", "fraud@2"), ("build", "fraud"), ("release", "fraud", "--roll-back"), ("watch", "fraud")])
def test_a_verb_that_needs_a_version_of_palans_says_what_it_is_and_what_to_do(project: Project, command: tuple[str, ...]) -> None:
    refused = CliRunner().invoke(cli, ["--project", str(project.root), *command]).exception
    assert isinstance(refused, NotFound)
    assert refused.what == "fraud was registered by an MLflow client: palan serves what it has built"
    assert refused.hint == "declare [models.fraud] in palan.toml with its code (docs/how-to/bring-your-own-model.md), then: palan build fraud"


def test_a_version_that_only_a_client_registered_is_told_apart_from_palans_own(project: Project) -> None:
    for ref, what in (("demand@good", "demand@1 was registered by an MLflow client"), ("demand@bad", "demand has no version yet"), ("demand@2", "demand@2 was registered by an MLflow client"), ("demand@9", "demand has no version yet"), ("demand", "demand has no version yet")):
        with pytest.raises(NotFound, match=what):
            find_version(project, ref)
    with pytest.raises(NotFound, match='no model "nobody"'):
        find_version(project, "nobody@2")


def test_the_pages_show_them_with_a_way_to_their_runs(project: Project) -> None:
    with serving(project, port=0) as server, httpx.Client(base_url=server.url, timeout=60) as browser:
        home = browser.get("/").text
        assert 'href="/models/fraud"' in home
        assert 'href="/models/demand#registered"' in home
        page = browser.get("/models/fraud")
        assert page.status_code == 200
        assert "registered by an MLflow client" in page.text
        assert "<b>another" not in page.text
        run = registered_page(project, "fraud")["model"]["versions"][0]["run"]
        assert f'href="/runs/{run}"' in page.text
        assert browser.get(f"/runs/{run}").status_code == 200
        assert "apart from the versions above" in browser.get("/models/demand").text
        assert browser.get("/models/nobody").status_code == 404
        asked = browser.post("/v1/models/fraud/decide", json={"rows": [{}]})
        assert asked.status_code == 404
        assert "registered by an MLflow client" in asked.json()["error"]
