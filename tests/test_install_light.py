"""Installing and starting palan stays light, and an installed wheel holds all that a checkout does."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = {"numpy", "polars", "msgspec", "uvicorn", "uvloop", "httptools", "starlette", "jinja2", "click", "rich"}
HEAVY = {"numpy", "polars", "sklearn", "highspy", "gymnasium", "scipy", "uvicorn", "starlette", "jinja2", "asyncio", "rich"}


def needs(name: str, extras: frozenset[str] = frozenset()) -> list[Requirement]:
    """The requirements of an installed distribution that apply here, with these extras."""
    found = [Requirement(text) for text in distribution(name).requires or []]
    asked = extras or {""}
    return [each for each in found if not each.marker or any(each.marker.evaluate({"extra": extra}) for extra in asked)]


def whole_install(name: str) -> set[str]:
    """Every distribution that `pip install NAME` brings, itself among them."""
    todo: list[tuple[str, frozenset[str]]] = [(canonicalize_name(name), frozenset())]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        each = todo.pop()
        if each not in seen:
            seen.add(each)
            todo += [(canonicalize_name(need.name), frozenset(need.extras)) for need in needs(*each)]
    return {name for name, _ in seen}


def test_required_dependencies_are_these_ten() -> None:
    assert {canonicalize_name(each.name) for each in needs("palan")} == REQUIRED


def test_whole_install_is_at_most_twenty_distributions() -> None:
    found = whole_install("palan")
    assert found >= REQUIRED
    assert len(found) <= 20, sorted(found)


def test_count_of_distributions_follows_the_requirements_of_requirements() -> None:
    assert {"h11", "markupsafe", "anyio"} <= whole_install("palan")
    assert len(whole_install("pytest")) > 1


SLOW = {"click", "dataclasses", "inspect", "ast", "typing_extensions", "email", "zipfile", "tempfile", "shutil", "difflib", "secrets", "urllib.request"}
"""What a quick answer has no use for, and what was once on its way."""


def modules_after(code: str, folder: Path | None = None) -> set[str]:
    """Modules, and their packages, that are loaded once a fresh interpreter has run the code."""
    script = f"{code}\nimport sys\nprint('\\n' + ' '.join({{*sys.modules, *(name.split('.')[0] for name in sys.modules)}}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def modules_of(*words: str, folder: Path) -> set[str]:
    """What `palan WORDS` has loaded when it ends."""
    code = f"import sys\nsys.argv = {['palan', *words]}\nfrom palan.cli import main\ntry:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0"
    return modules_after(code, folder)


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose model is released and was asked."""
    folder = tmp_path_factory.mktemp("light") / "parcels"
    palan = [sys.executable, "-m", "palan.cli"]
    subprocess.run([*palan, "init", "--kind", "rules", "--into", str(folder)], check=True, capture_output=True)
    for words in ("ingest", "build shipping", "release shipping --force --reason measured", "decide shipping --input example.json"):
        subprocess.run([*palan, *words.split()], cwd=folder, check=True, capture_output=True)
    return folder


def test_import_palan_loads_no_heavy_library() -> None:
    loaded = modules_after("import palan")
    assert "palan" in loaded
    assert not loaded & HEAVY, sorted(loaded & HEAVY)


def test_command_line_loads_no_heavy_library() -> None:
    loaded = modules_after("import palan.cli.commands")
    assert "click" in loaded
    assert not loaded & {"numpy", "polars", "sklearn", "highspy", "uvicorn", "starlette", "jinja2"}


@pytest.mark.parametrize("words", [[], ["status"], ["status", "--json"]], ids=["bare", "status", "json"])
def test_state_of_a_project_is_told_without_what_only_other_commands_need(words: list[str], answering: Path) -> None:
    loaded = modules_of(*words, folder=answering)
    assert {"palan.flows.status", "msgspec", "sqlite3"} <= loaded
    assert not loaded & (HEAVY | SLOW), sorted(loaded & (HEAVY | SLOW))


def test_palan_outside_a_project_loads_next_to_nothing(tmp_path: Path) -> None:
    loaded = modules_of(folder=tmp_path)
    assert not loaded & (HEAVY | SLOW | {"msgspec", "sqlite3", "tomllib"}), sorted(loaded)


def test_help_loads_no_verb(tmp_path: Path) -> None:
    loaded = modules_of("--help", folder=tmp_path)
    assert "click" in loaded
    assert not loaded & (HEAVY | {"msgspec", "sqlite3", "palan.flows"})


def test_status_answers_the_same_at_the_door_and_by_its_command(answering: Path) -> None:
    palan = [sys.executable, "-m", "palan.cli"]
    told = [subprocess.run([*palan, *words], cwd=answering, check=True, capture_output=True, text=True).stdout for words in (["status"], ["-p", ".", "status"], [])]
    assert told[0] == told[1]
    assert told[2] == f"project {answering}\n{told[0]}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="hatchling is not installed: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_wheel_holds_every_file_of_the_package_and_the_example(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder, prefix in ((ROOT / "src" / "palan", "palan"), (ROOT / "examples" / "flights", "palan/_examples/flights")):
        listed = subprocess.run(["git", "ls-files", "."], cwd=folder, capture_output=True, text=True)
        if listed.returncode:
            pytest.skip("not a git checkout, so there is no list of files to compare with")
        here = {f"{prefix}/{name}" for name in listed.stdout.splitlines() if (folder / name).is_file()}
        assert here, folder
        assert not here - inside, sorted(here - inside)


def test_wheel_holds_nothing_of_a_project_that_ran(wheel: Path) -> None:
    inside = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in inside if "/.palan/" in name or "__pycache__" in name or "/feed/" in name]
    assert wheel.stat().st_size < 8_000_000


def test_installed_wheel_finds_its_example(wheel: Path, tmp_path: Path) -> None:
    """The package alone on a path, far from the checkout: the demo's files are there."""
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    code = "import palan, pathlib; print(pathlib.Path(palan.__file__).parent)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(target)}, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    package = Path(done.stdout.strip())
    assert package == target / "palan"
    assert (package / "_examples" / "flights" / "palan.toml").is_file()
