"""Every kind of edit of a real project: whether its steps are done again, and whether `palan why` names what changed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from palan.flows import packages
from palan.flows.build import build
from palan.flows.ingest import ingest
from palan.flows.project import Project, open_project
from palan.flows.why import why

TOML = """
[project]
name = "rolls"

[data.sales]
source = "feed/*.csv"
key = ["id"]
columns = { id = "int", warm = "float", sold = "float" }

[models.rolls]
model = "rolls.py:Rolls"
data = "sales"
inputs = ["warm"]
outcome = "sold"
key = "id"
params = { bread = 1.0 }
"""

ROLLS = '''
from dataclasses import dataclass

import ovenware
from counting import total
from scaling import scaled, traced

FLOOR = 0.5


def middle(values, least=0.0):
    # the mean of all
    mean = total(values) / max(len(values), 1)
    return max(mean, least, FLOOR)


@dataclass
class Rolls:
    """Bakes."""

    bread: float = 1.0
    most = 1000.0

    def fit(self, data):
        self.level = float(middle(data["sold"]))

    @traced
    def decide(self, rows):
        return (rows["warm"] * 0 + scaled(min(self.level, self.most))).to_numpy() * ovenware.HEAT
'''

COUNTING = "def total(values):\n    return values.sum()\n\n\ndef unused(values):\n    return values.max()\n"

SCALING = '''
def times(factor):
    def scaled(value):
        return value * factor
    return scaled


def traced(function):
    return function


scaled = times(2.0)
'''


def baker(folder: Path) -> Project:
    (folder / "feed").mkdir(parents=True)
    for name, text in {"palan.toml": TOML, "rolls.py": ROLLS, "counting.py": COUNTING, "scaling.py": SCALING}.items():
        (folder / name).write_text(text, encoding="utf-8")
    rows = [f"{number},{number % 30},{number % 7 + 0.5}" for number in range(60)]
    (folder / "feed" / "sales.csv").write_text("\n".join(["id,warm,sold", *rows]) + "\n", encoding="utf-8")
    project = open_project(folder)
    ingest(project)
    return project


def installed(folder: Path, version: str) -> None:
    """Put a distribution where Python finds it, as pip would."""
    for old in folder.glob("ovenware-*"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    folder.mkdir(exist_ok=True)
    (folder / "ovenware.py").write_text("HEAT = 1.0\n", encoding="utf-8")
    about = folder / f"ovenware-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ovenware\nVersion: {version}\n", encoding="utf-8")
    (about / "RECORD").write_text(f"ovenware.py,,\novenware-{version}.dist-info/METADATA,,\n", encoding="utf-8")
    importlib.invalidate_caches()
    packages._distributions.cache_clear()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))  # for the workers
        patch.setattr(sys, "path", [str(folder), *sys.path])
        installed(folder, "1.0")
        yield folder
    packages._distributions.cache_clear()


@pytest.fixture(scope="module")
def project(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = baker(tmp_path_factory.mktemp("baker") / "rolls")
    build(project, "rolls")
    yield project
    project.store.records.close()


def edit(project: Project, file: str, old: str, new: str) -> Callable[[], None]:
    """Edit a file and return what takes the edit back."""
    path = project.root / file
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, (file, old)
    path.write_text(text.replace(old, new), encoding="utf-8")
    return lambda: path.write_text(text, encoding="utf-8") and None


FIT = "fit rolls"

COUNT = [
    pytest.param("rolls.py", "max(mean, least, FLOOR)", "min(mean, least, FLOOR)", "rolls.py:middle was edited", id="a helper"),
    pytest.param("rolls.py", "float(middle(", "2 * float(middle(", "rolls.py:Rolls was edited", id="a method"),
    pytest.param("rolls.py", "FLOOR = 0.5", "FLOOR = 0.7", "rolls.py:FLOOR was edited", id="a constant"),
    pytest.param("rolls.py", "least=0.0", "least=1.0", "rolls.py:middle was edited", id="a default argument"),
    pytest.param("scaling.py", "    return function", "    return staticmethod(function) and function", "scaling.py:traced was edited", id="a decorator's code"),
    pytest.param("rolls.py", "    @traced\n", "", "rolls.py:Rolls was edited", id="a decorator that goes"),
    pytest.param("counting.py", "values.sum()", "values.sum() + 1", "counting.py:total was edited", id="an imported module of ours"),
    pytest.param("scaling.py", "times(2.0)", "times(3.0)", "scaling.py:scaled was edited", id="a closure variable"),
    pytest.param("scaling.py", "value * factor", "value + factor", "scaling.py:times was edited", id="what makes a closure"),
    pytest.param("rolls.py", "most = 1000.0", "most = 2000.0", "rolls.py:Rolls was edited", id="a class attribute"),
    pytest.param("rolls.py", "bread: float = 1.0", "bread: float = 2.0", "rolls.py:Rolls was edited", id="a field"),
]


@pytest.mark.parametrize(("file", "old", "new", "named"), COUNT)
def test_an_edit_of_what_counts_is_done_again_and_named(project: Project, file: str, old: str, new: str, named: str) -> None:
    back = edit(project, file, old, new)
    try:
        assert f"code: {named}" in why(project, "rolls")["changed since"]
        assert FIT in build(project, "rolls")["steps"]["executed"]
        changed = why(project, FIT)["changed"]
        assert f"code: {named}" in changed
        assert {line.partition(":")[0] for line in changed} == {"code"}
        assert FIT in build(project, "rolls")["steps"]["replayed"]
    finally:
        back()
    assert build(project, "rolls")["steps"]["executed"] == []  # as it was: recorded


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        pytest.param("rolls.py", "# the mean of all", "# the mean of all that were sold", id="a comment"),
        pytest.param("rolls.py", '"""Bakes."""', '"""Bakes rolls."""', id="a docstring"),
        pytest.param("rolls.py", "FLOOR = 0.5", "\n\n\n\nFLOOR = 0.5", id="a moved line"),
        pytest.param("rolls.py", "import ovenware\nfrom counting import total\n", "from counting import total\nimport ovenware\n", id="imports in another order"),
        pytest.param("rolls.py", "    mean = total(values) / max(len(values), 1)\n    return max(mean,", "    mid = total(values) / max(len(values), 1)\n    return max(mid,", id="a renamed local"),
        pytest.param("counting.py", "values.max()", "values.min()", id="a function that nothing uses"),
    ],
)
def test_an_edit_that_changes_nothing_is_taken_as_recorded(project: Project, file: str, old: str, new: str) -> None:
    before = why(project, "rolls")["changed since"]
    back = edit(project, file, old, new)
    try:
        assert why(project, "rolls")["changed since"] == before
        assert build(project, "rolls")["steps"]["executed"] == []
    finally:
        back()


def test_another_version_of_a_library_is_done_again_and_named(project: Project, library: Path) -> None:
    installed(library, "1.1")
    try:
        assert FIT in build(project, "rolls")["steps"]["executed"]
        assert why(project, FIT)["changed"] == ["code: distribution ovenware 1.0 -> 1.1"]
    finally:
        installed(library, "1.0")
    assert build(project, "rolls")["steps"]["executed"] == []


def test_seed_and_parameters_are_done_again_and_named(project: Project) -> None:
    assert FIT in build(project, "rolls", seed=7)["steps"]["executed"]
    assert why(project, FIT)["changed"] == ["seed: 0 -> 7"]
    assert FIT in build(project, "rolls", params={"bread": 3.0})["steps"]["executed"]
    assert why(project, FIT)["changed"] == ["params: bread 1.0 -> 3.0"]


def test_new_rows_are_done_again_and_named(library: Path, tmp_path: Path) -> None:
    project = baker(tmp_path / "rolls")
    build(project, "rolls")
    (project.root / "feed" / "more.csv").write_text("id,warm,sold\n500,3,2.5\n", encoding="utf-8")
    ingest(project)
    assert FIT in build(project, "rolls")["steps"]["executed"]
    assert why(project, FIT)["changed"] == ["data: sales@1 -> sales@2"]


def test_recorded_steps_of_a_build_give_the_same_when_they_are_done_again(project: Project) -> None:
    made = build(project, "rolls", verify=1.0)
    assert made["steps"]["executed"] == [] and FIT in made["steps"]["replayed"]
