"""How the command line shows things: lines, colours where a person reads them, JSON for other programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from palan.flows.project import Project

FINE, ACT, BROKEN = 0, 1, 2

_STYLES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33}
_COLOURS = {"pass": "green", "right": "green", "fail": "red", "wrong": "red", "attention": "yellow", "cannot tell": "yellow"}


def say(text: str, to: TextIO | None = None) -> None:
    """Print a line (to standard output) that is there at once, also in a pipe."""
    stream = to or sys.stdout
    stream.write(f"{text}\n")
    stream.flush()


def plain() -> bool:
    """Tell whether the user wants no colours at all: NO_COLOR is set to anything (https://no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))


def paint(text: str, *styles: str, to: TextIO | None = None) -> str:
    """Return the text in colour, in a terminal; as it is in a pipe or a file, or under NO_COLOR."""
    codes = [str(_STYLES[style]) for style in styles if style in _STYLES]
    return f"\033[{';'.join(codes)}m{text}\033[0m" if codes and not plain() and (to or sys.stdout).isatty() else text


def verdict(word: str) -> str:
    return paint(word, _COLOURS.get(word, ""), "bold")


def tell(message: str) -> None:
    """Say on the way what is being done."""
    say(paint(message, "dim", to=sys.stderr), sys.stderr)


def complain(what: str, hint: str) -> None:
    """Say what is wrong and what to type next, in three lines at the most."""
    lines = [line for line in what.splitlines() if line.strip()][:2]
    say(paint("\n".join(lines) or "something went wrong", "red", to=sys.stderr), sys.stderr)
    if hint:
        say(f"hint: {hint.splitlines()[0]}", sys.stderr)


def print_value(value: Any, json: bool, show: Callable[[Any], None]) -> None:
    """Show a value to a person, or print it as JSON."""
    if not json:
        show(value)
        return
    import msgspec

    say(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def where(folder: str | None = None) -> int:
    """Say where the user is and what to do next."""
    from palan.errors import NotFound
    from palan.flows.root import find_root

    try:
        root = find_root(folder)
    except NotFound:
        say("palan takes any decision model from a notebook to production, and keeps it right there.\n")
        say("This folder is no project yet. To begin:")
        say("  palan init              make one here")
        say("  palan init model.py     make one around code that you have")
        say("  palan demo              see the whole loop on a year of real flights")
        return FINE
    project = open_alone(str(root))
    say(f"project {root}")
    status(project)
    return FINE


def open_alone(folder: str | None = None) -> Project:
    """Open a project in a process that does nothing else, sooner.

    msgspec asks typing_extensions for what Python 3.11 has in typing; with all that it loads, that is a sixth of the start.
    """
    sys.modules.setdefault("typing_extensions", None)  # type: ignore[arg-type]  # Python's own way to say: not there
    try:
        from palan.flows.project import open_project
    finally:
        if sys.modules["typing_extensions"] is None:
            del sys.modules["typing_extensions"]
    return open_project(folder)


def status(project: Project, as_json: bool = False) -> int:
    """Show the state of the whole project; return the exit code."""
    from palan.flows.status import status as verb

    home = verb(project)
    print_value(home, as_json, _home)
    return ACT if home["dead"] or any(each["verdict"] == "wrong" for each in (*home["models"], *home["data"])) else FINE


def _home(home: Mapping[str, Any]) -> None:
    model_lines(home["models"])
    for each in home["registered"]:
        registered_line(each)
    for each in home["data"]:
        _line(each["verdict"], f"  data {each['name']}: {each['why']}")
        if each["command"]:
            say(f"    {each['command']}")
    for each in home["dead"]:
        _line("wrong", f"  step {each['step']} is dead after {each['attempts']} attempts: {each['why']}")
        say(f"    {each['command']}")
    if home["command"]:
        say(f"next: {home['command']}")


def model_lines(models: Sequence[Mapping[str, Any]]) -> None:
    for each in models:
        notes = each["notes"]
        said = f"; {notes} note{'' if notes == 1 else 's'}, see palan log {each['name']}" if notes else ""
        _line(each["verdict"], f"  {each['name']} ({each['kind']}): {each['why']}{said}")
        if step := each["next"]:
            reason = f": {step['reason']}" if step["reason"] != each["why"] else ""
            say(_wrapped(f"    {step['text']}{reason}"))
            say(f"    {step['command']}")


def registered_line(model: Mapping[str, Any]) -> None:
    named = "".join(f", {alias} is {ref}" for alias, ref in model["aliases"].items())
    say(_wrapped(f"registered by an MLflow client  {model['newest'] or model['name'] + ' (no version)'}{named}"))


def registered_versions(versions: Sequence[Mapping[str, Any]]) -> None:
    for each in versions:
        told = [", ".join(each["aliases"]), each["stage"], f"run {each['run']}" if each["run"] else "", each["time"][:10], each["source"]]
        say(_wrapped(f"  {each['ref']}: {'; '.join(part for part in told if part)}"))


def _line(word: str, rest: str) -> None:
    say(verdict(word) + _wrapped(word + rest)[len(word) :])


def _wrapped(text: str) -> str:
    """Break a line between words where a terminal is narrower; in a pipe a line stays one."""
    if not sys.stdout.isatty():
        return text
    asked = os.environ.get("COLUMNS", "")
    width = max(20, int(asked) if asked.isdecimal() and asked.isascii() else os.get_terminal_size(sys.stdout.fileno()).columns)
    if len(text) <= width:
        return text
    import textwrap  # with what it loads, only where a line is broken

    return textwrap.fill(text, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
