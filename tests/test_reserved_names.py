"""What a check saw of a version is searched alike for every kind of model."""

from __future__ import annotations

from pathlib import Path

import pytest

from palan.flows.build import build
from palan.flows.check import check
from palan.flows.ingest import ingest
from palan.flows.init import init
from palan.flows.project import open_project
from palan.flows.runs import search


@pytest.mark.parametrize(
    ("kind", "library", "wanted"),
    [
        ("program", "highspy", "tags.status = 'optimal' AND tags.solver LIKE 'HiGHS %' AND metrics.gap < 0.01 AND metrics.objective IS NOT NULL AND params.seed IS NOT NULL AND params.instance IS NOT NULL"),
        ("heuristic", "numpy", "tags.status IS NOT NULL AND metrics.objective IS NOT NULL AND metrics.incumbents > 0 AND params.seed IS NOT NULL"),
        ("policy", "gymnasium", "metrics.return IS NOT NULL AND params.seed IS NOT NULL"),
        ("rules", "numpy", "metrics.`rules fired` > 1"),
    ],
)
def test_a_check_is_found_by_what_it_saw(kind: str, library: str, wanted: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    init(tmp_path / "shop", kind=kind)
    project = open_project(tmp_path / "shop")
    ingest(project)
    (model,) = project.config.models
    check(project, build(project, model)["version"])
    found = search(project, wanted, flow="check")["runs"]
    assert [each["experiment"] for each in found] == [f"{model}@1"], search(project, flow="check")["runs"]
    assert search(project, f"NOT ({wanted})", flow="check")["runs"] == []
