"""The documentation says everything there is, nothing that is not, and its examples run."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import msgspec
import pytest

from commands import is_typed, typed

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "palan"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("palan_docs_generate", DOCS / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generator = load_generator()


def reference(name: str) -> str:
    return (DOCS / "reference" / name).read_text(encoding="utf-8")


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- what the code has, the docs have -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((DOCS / "reference").glob("*.md")), ids=page_id)
def test_generated_parts_are_what_the_code_says_now(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert generator.render(text) == text, "the code has changed since: make docs"


def test_every_generator_is_used_by_a_page() -> None:
    used = {found[2] for path in (DOCS / "reference").glob("*.md") for found in generator.BLOCK.finditer(path.read_text(encoding="utf-8"))}
    assert used == set(generator.GENERATORS)


def test_every_command_and_option_is_in_the_reference() -> None:
    page = reference("cli.md")
    found = list(generator.commands(generator.cli_group()))
    assert len(found) >= 10
    for name, command in found:
        assert f"## {name}\n" in page, name
        section = page.split(f"## {name}\n")[1].split("\n## ")[0]
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert any(spelling in section for spelling in option.opts), f"{name} {option.opts}"


def test_every_command_says_what_it_is_for_with_an_example_and_can_print_json() -> None:
    for name, command in generator.commands(generator.cli_group()):
        if isinstance(command, click.Group):
            continue
        assert len((command.help or "").split()) >= 5, f"{name} does not say what it is for"
        examples = generator.command_help(name, command).partition("Example:")[2]
        assert name in re.sub(r"palan --project \S+ ", "palan ", examples), f"{name} shows no example"
        if name not in ("palan serve", "palan up"):  # they print nothing but where they are, and do not end
            assert any("--json" in each.opts for each in command.params), f"{name} has no --json"


def test_every_public_name_is_in_the_reference() -> None:
    import palan

    page = reference("python.md")
    assert len(palan.__all__) >= 5
    for name in palan.__all__:
        assert f"## palan.{name}\n" in page, name


def test_every_public_function_and_class_says_what_it_does() -> None:
    import palan

    for name in palan.__all__:
        value = getattr(palan, name)
        if callable(value):
            assert inspect.getdoc(value), f"palan.{name} has no docstring"


def test_every_error_is_in_the_reference_and_there_are_ten_at_most() -> None:
    page = reference("errors.md")
    names = {cls.__name__ for cls in generator.error_classes()}
    elsewhere = {
        node.name
        for path in SOURCE.rglob("*.py")
        if path.name != "errors.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and {ast.unparse(base).split(".")[-1] for base in node.bases} & names
    }
    assert {"PalanError", "NotFound", "Invalid"} <= names
    assert not [name for name in names | elsewhere if f"`{name}`" not in page]
    assert len(names | elsewhere) <= 10


def test_every_environment_variable_is_in_the_reference_and_there_are_ten_at_most() -> None:
    page = reference("config.md")
    used = {name for path in SOURCE.rglob("*.py") for name in re.findall(r"[\"'](PALAN_[A-Z_]+)[\"']", path.read_text(encoding="utf-8"))}
    assert "PALAN_TOKEN" in used
    assert len(used) <= 10
    for name in used:
        assert f"| `{name}` |" in page, name


def test_every_key_of_palan_toml_is_in_the_reference() -> None:
    from palan.data.contract import KEYS
    from palan.flows import config

    page = reference("palan-toml.md")
    for cls in (config.DataConfig, config.ModelConfig, config.ReleasePolicy, config.WatchPolicy, config.ReactPolicy):
        keys = [name for name, option, _ in config.options(cls) if option]
        assert keys
        for key in keys:
            assert f"| `{key}` |" in page, f"{cls.__name__}.{key}"
    assert all(f"| `{key}` |" in page for key in KEYS)


def test_every_gate_is_in_the_reference() -> None:
    from palan.gates.spec import GATES

    page = reference("palan-toml.md")
    assert GATES
    assert all(f"| `{name}` |" in page for name in GATES)


def test_every_route_is_in_the_reference_and_every_one_there_exists() -> None:
    from palan.flows.serve import Site
    from palan.http import api, decide, runs
    from palan.web import routes

    nobody: Any = SimpleNamespace()  # routes are only listed: nothing of the site is asked
    site = Site(**{each.name: nobody for each in msgspec.structs.fields(Site)})
    listed = {(method, route.path) for route in [*runs.routes(nobody), *api.routes(site), *routes.routes(site)] for method in (route.methods or ()) if method != "HEAD" or route.methods == {"HEAD"}}
    listed.remove(("POST", "/v1/{verb}"))
    listed |= {("POST", f"/v1/{verb}") for verb in api.VERBS}
    for path in ("/v1/models/{model}/decide", "/v1/models/{model}/outcomes"):
        assert decide.hot(nobody, {"type": "http", "method": "POST", "path": path}) is not None
        listed.add(("POST", path))
    documented = set(re.findall(r"^\| `(GET|HEAD|POST|PUT|DELETE) (/[^`\s]*)` \|", reference("http.md"), re.M))
    assert not listed - documented, f"not in docs/reference/http.md: {sorted(listed - documented)}"
    assert not documented - listed, f"only in docs/reference/http.md: {sorted(documented - listed)}"


NOUN_FILES = [*sorted(SOURCE.glob("*/nouns.py")), SOURCE / "runs" / "run.py"]


def test_every_noun_is_in_the_glossary() -> None:
    page = reference("glossary.md")
    defined = {word.strip().lower() for line in re.findall(r"^(\*\*.+?):", page, re.M) for word in re.findall(r"\*\*(.+?)\*\*", line)}
    names = {node.name for path in NOUN_FILES for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)}
    assert {"Decision", "Alarm", "Release"} <= names
    words = {re.sub(r"(?<!^)(?=[A-Z])", " ", name).lower() for name in names} | {"version", "gate", "ledger", "data", "model", "project"}
    assert not words - defined, f"not in the glossary: {sorted(words - defined)}"


# --- what the docs say, there is ----------------------------------------------------------------------------------


def prose_and_console(text: str) -> Iterator[str]:
    """The parts of a page where a command may be named: inline code and console blocks."""
    fenced = re.compile(r"^[ ]*```(\w*)[^\n]*\n(.*?)^[ ]*```", re.M | re.S)
    for language, body in fenced.findall(text):
        if language == "console":
            yield from (line.strip()[2:] for line in body.splitlines() if line.strip().startswith("$ "))
    yield from re.findall(r"`([^`\n]+)`", fenced.sub("", text))


def test_every_command_and_option_that_a_page_names_exists() -> None:
    found = dict(generator.commands(generator.cli_group()))
    options = {name: {"--help"} | {spelling for each in command.params for spelling in (*each.opts, *each.secondary_opts)} for name, command in found.items()}
    named, wrong = 0, []
    for path in PAGES:
        for part in prose_and_console(path.read_text(encoding="utf-8")):
            for name, rest in re.findall(r"(?:^|&& |bin/)(palan [a-z][a-z-]*)([^&|]*)", part):
                named += 1
                words = [name, *rest.split()[:2]]
                command = next((each for count in (3, 2) if (each := " ".join(words[:count])) in found), name)
                if name not in found:
                    wrong.append(f"{page_id(path)}: {part}")
                wrong += [f"{page_id(path)}: {part}: {option}" for option in re.findall(r"(?<!\S)(--[a-z-]+)", rest) if option not in options.get(command, {option})]
    assert named > 20
    assert not wrong, "no such command or option:\n" + "\n".join(wrong)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown sites make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(path: Path) -> list[str]:
    return re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", path.read_text(encoding="utf-8"))


def test_every_link_leads_somewhere() -> None:
    wrong = []
    for path in PAGES:
        for link in links(path):
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            if not target.exists() or (anchor and anchor not in anchors(target)):
                wrong.append(f"{page_id(path)} links to {link}")
    assert not wrong, "\n".join(wrong)


def test_every_page_is_reached_from_the_index() -> None:
    todo, seen = [DOCS / "index.md"], set()
    while todo:
        page = todo.pop()
        if page not in seen and page.suffix == ".md" and page.is_relative_to(DOCS):
            seen.add(page)
            todo += [(page.parent / link.partition("#")[0]).resolve() for link in links(page) if link.partition("#")[0]]
    assert set(DOCS.rglob("*.md")) == seen


def test_every_file_of_the_repository_that_a_page_names_exists() -> None:
    pattern = r"(?<![\w/])((?:src/palan|tests|docs|examples|benchmarks)/[\w./-]+\.\w+)"
    named = [(page_id(path), name) for path in PAGES for name in re.findall(pattern, path.read_text(encoding="utf-8"))]
    assert len(named) > 10
    missing = [f"{page} names {name}" for page, name in named if not (ROOT / name).exists()]
    assert not missing, "\n".join(missing)


# --- the examples run ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block that is marked: `run` executes it, `file=NAME` writes it to that file first."""

    line: int
    language: str
    mark: str
    text: str


def marked_blocks(text: str) -> list[Block]:
    blocks = []
    for found in re.finditer(r"^([ ]*)```(\w+) (run|file=\S+)[ ]*\n(.*?)^\1```", text, re.M | re.S):
        line = text[: found.start()].count("\n") + 1
        blocks.append(Block(line, found[2], found[3], textwrap.dedent(found[4])))
    return blocks


def console_steps(text: str) -> list[tuple[str, list[str]]]:
    """Commands, each with the lines that it has to print."""
    steps: list[tuple[str, list[str]]] = []
    for line in text.rstrip().splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        else:
            steps[-1][1].append(line)
    return steps


def as_shown(shown: list[str]) -> re.Pattern[str]:
    """The pattern of what a page shows: `...` stands for anything, and spaces at the ends do not count."""
    lines = [r"(?:.*\n)*?" if line.strip() == "..." else re.escape(line.rstrip()).replace(r"\.\.\.", ".*?") + r"[ ]*\n" for line in shown]
    return re.compile("".join(lines))


def run_line(line: str, folder: Path) -> tuple[int, str]:
    """Type a line, in a real shell if it asks for more than palan; return the exit code and what is printed."""
    if is_typed(line):
        told = typed(folder, line, one_place=True, COLUMNS="100")
        return told.code, told.out
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env={**os.environ, "PATH": path, "COLUMNS": "100"}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stdout


def run_console(block: Block, folder: Path) -> None:
    for command, shown in console_steps(block.text):
        code, printed = run_line(command, folder)
        # A page may show a mistake and what palan says of it; a command without its output has to work.
        assert code in ((0, 1, 2) if shown else (0, 1)), f"line {block.line}: {command}\n{printed}"
        if shown:
            assert as_shown(shown).fullmatch(printed), f"line {block.line}: {command}\nshown:\n" + "\n".join(shown) + f"\nprinted:\n{printed}"


RUNNABLE = [path for path in PAGES if any(block.mark == "run" for block in marked_blocks(path.read_text(encoding="utf-8")))]


@pytest.mark.parametrize("path", RUNNABLE, ids=page_id)
def test_examples_run_and_print_what_the_page_shows(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "example"}
    for block in marked_blocks(path.read_text(encoding="utf-8")):
        if block.mark.startswith("file="):
            file = tmp_path / block.mark.removeprefix("file=")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile("\n" * block.line + block.text, str(path), "exec"), namespace)
        else:
            assert block.language == "console", f"line {block.line}: do not know how to run {block.language}"
            run_console(block, tmp_path)


def test_pages_with_examples_are_found() -> None:
    assert DOCS / "how-to" / "add-data.md" in RUNNABLE


def test_a_wrong_output_on_a_page_is_noticed() -> None:
    assert as_shown(["a", "...", "z 1... s"]).fullmatch("a\nb\nc\nz 12.5 s\n")
    assert not as_shown(["a"]).fullmatch("b\n")
    assert not as_shown(["a"]).fullmatch("a\nb\n")
    with pytest.raises(AssertionError, match="shown"):
        run_console(Block(1, "console", "run", "$ echo one\ntwo\n"), ROOT)
