"""Writes the generated parts of docs/reference again: `make docs`.

A page keeps its own words; what lies between `<!-- generated: NAME -->` and `<!-- end -->` comes from the code.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

REFERENCE = Path(__file__).resolve().parent / "reference"
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def cli_group() -> click.Group:
    """Return the command line's root, whatever palan.cli.commands calls it."""
    module = importlib.import_module("palan.cli.commands")
    groups = [value for value in vars(module).values() if isinstance(value, click.Group)]
    nested = {id(command) for group in groups for command in group.commands.values()}
    return next(group for group in groups if id(group) not in nested)


def commands(group: click.Group, prefix: str = "palan") -> Iterator[tuple[str, click.Command]]:
    """Yield each command that is shown in help, with its full name, in the order of help."""
    context = click.Context(group, info_name=prefix)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        full = f"{prefix} {name}"
        yield full, command
        if isinstance(command, click.Group):
            yield from commands(command, full)


def command_help(name: str, command: click.Command) -> str:
    """Return the help as a terminal of 80 columns shows it."""
    *above, last = name.split()
    group = cli_group()
    # As a user gets it: the names of the help option are the group's, and its commands inherit them.
    parent = None if command is group else click.Context(group, info_name=" ".join(above), **group.context_settings)
    own = {**command.context_settings, "terminal_width": 80, "max_content_width": 80}
    context = click.Context(command, parent=parent, info_name=last, **own)
    lines = click.unstyle(command.get_help(context)).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip()


def cli() -> str:
    group = cli_group()
    parts = [f"```text\n{command_help('palan', group)}\n```\n"]
    for name, command in commands(group):
        parts.append(f"## {name}\n\n```text\n{command_help(name, command)}\n```\n")
    return "\n".join(parts)


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(header), line(tuple("---" for _ in header)), *(line(row) for row in rows)]) + "\n"


def default_text(value: object) -> str:
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
        for unit, length in (("d", 86400), ("h", 3600), ("s", 1)):
            if seconds >= length and seconds % length == 0:
                return f'`"{seconds / length:g}{unit}"`'
        return f'`"{seconds * 1000:g}ms"`'
    return "" if value in (None, "", (), [], {}) else f"`{value!r}`".replace("'", '"')


def settings_of(cls: Any) -> list[tuple[str, str, str]]:
    """Return (key, default, meaning) of every setting that a table of palan.toml may hold."""
    from palan.flows.config import options

    return [
        (f"`{name}`", '`"1 per 180d"`' if name == "false_pages" else default_text(default), option.help)
        for name, option, default in options(cls)
        if option
    ]


def palan_toml() -> str:
    from palan.flows import config

    tables = {
        "[data.NAME]": config.DataConfig,
        "[models.NAME]": config.ModelConfig,
        "[models.NAME.release]": config.ReleasePolicy,
        "[models.NAME.watch]": config.WatchPolicy,
        "[models.NAME.react]": config.ReactPolicy,
    }
    parts = [f"### {title}\n\n{table(('key', 'default', 'what it says'), settings_of(cls))}" for title, cls in tables.items()]
    return "\n".join(parts)


def environment() -> str:
    from palan.flows.config import ENVIRONMENT

    return table(("variable", "what it sets"), [(f"`{name}`", text) for name, text in ENVIRONMENT.items()])


def error_classes() -> list[type[Exception]]:
    from palan import errors

    return [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.PalanError)]


def errors() -> str:
    rows = []
    for cls in error_classes():
        parent = "" if cls.__bases__[0] is Exception else f"`{cls.__bases__[0].__name__}`"
        rows.append((f"`{cls.__name__}`", parent, " ".join((cls.__doc__ or "").split())))
    return table(("error", "is a", "means"), rows)


def gates() -> str:
    from palan.gates.spec import GATES

    return table(("gate", "what must hold"), [(f"`{name}`", text) for name, text in GATES.items()])


def verbs() -> str:
    from palan.http.api import VERBS

    return table(("route", "what it does"), [(f"`POST /v1/{name}`", text) for name, text in VERBS.items()])


def public_names() -> list[str]:
    import palan

    return sorted(palan.__all__)


def signature_text(name: str, value: Any) -> str:
    """Return `def name(...) -> type` as it would be written in code, one argument a line where it is long."""
    signature, written = inspect.signature(value), getattr(value, "__annotations__", {})
    parts, named_only = [], False
    for each in signature.parameters.values():
        if each.kind is each.KEYWORD_ONLY and not named_only:
            parts.append("*")
            named_only = True
        annotation = "" if each.annotation is each.empty else f": {annotation_text(written.get(each.name, each.annotation))}"
        default = "" if each.default is each.empty else f" = {value_text(each.default)}"
        star = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        parts.append(f"{star}{each.name}{annotation}{default}")
    returns = "" if inspect.isclass(value) or signature.return_annotation is signature.empty else f" -> {annotation_text(signature.return_annotation)}"
    word = "class" if inspect.isclass(value) else "def"
    line = f"{word} {name}({', '.join(parts)}){returns}"
    return line if len(line) <= 100 else f"{word} {name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"


def annotation_text(annotation: Any) -> str:
    return annotation.__name__ if type(annotation) is type else str(annotation).replace("typing.", "")


def value_text(value: Any) -> str:
    """A default as code; one that only a program can make (a function, a factory) by its name or as an ellipsis."""
    if callable(value):
        return getattr(value, "__name__", "...")
    return "..." if repr(value).startswith("<") else repr(value).replace("'", '"')


def prose(text: str) -> str:
    """A docstring as Markdown: its sections `Args:` and `Raises:` become lists."""
    lines = []
    for line in text.splitlines():
        item = re.match(r"    (\w[\w, ]*): (.*)", line)
        if item:
            lines.append(f"- `{item[1]}`: {item[2]}")
        elif line.startswith("        "):
            lines.append(f"  {line.strip()}")
        else:
            lines += [line, ""] if re.fullmatch(r"(Args|Raises|Returns|Yields):", line) else [line]
    return "\n".join(lines)


def python() -> str:
    import palan

    parts = []
    for name in public_names():
        value = getattr(palan, name)
        text = inspect.getdoc(value) or ""
        parts.append(f"## palan.{name}\n\n```python\n{signature_text(name, value)}\n```\n\n{prose(text)}\n")
    return "\n".join(parts)


GENERATORS: dict[str, Callable[[], str]] = {
    "cli": cli,
    "palan_toml": palan_toml,
    "environment": environment,
    "errors": errors,
    "gates": gates,
    "verbs": verbs,
    "python": python,
}


def render(text: str) -> str:
    """Return the page with its generated parts written again; everything else stays."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{GENERATORS[found[2]]()}\n{found[3]}", text)


def main() -> int:
    for path in sorted(REFERENCE.glob("*.md")):
        old = path.read_text(encoding="utf-8")
        new = render(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(f"wrote docs/reference/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
