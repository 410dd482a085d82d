"""How the command line shows tables and their versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from palan.cli.runs import Column, print_table
from palan.cli.show import paint, say

if TYPE_CHECKING:
    from palan.flows.project import Project

ACROSS = 60
"""Characters of one changed cell that are shown."""


def listed(project: Project, found: Sequence[Mapping[str, Any]], name: str) -> None:
    """Print versions as a table, and what to look at next."""
    if not found:
        say(f'data "{name}" is empty' if name else "no table has rows yet")
        say(f"next: palan ingest {name}".rstrip() if name or project.config.data else "next: add [data.NAME] to palan.toml: docs/how-to/add-data.md")
        return
    numbers = ("rows", "added", "corrections", "quarantined")
    print_table([Column("version", [each["data"] for each in found]), *(Column(what, [f"{each[what]:,}" for each in found], right=True) for what in numbers), Column("made", [each["made"] for each in found])])
    newest = found[0]["data"]
    say(f"next: palan data diff {found[1]['data']} {newest}" if name and len(found) > 1 else f"next: palan why {newest}")


def compared(found: Mapping[str, Any]) -> None:
    """Print what lies between two versions."""
    say(found["text"])
    for what, sign in (("added", "+"), ("removed", "-")):
        for name, kind in found["columns"][what].items():
            say(f"  {sign} column {name}: {kind}")
    for name, (old, new) in found["columns"]["retyped"].items():
        say(f"  column {name}: {old} -> {new}")
    if found["changed"]:
        say("changed: " + ", ".join(f"{name} in {count:,}" for name, count in found["changed"].items()))
    for each in found["examples"]:
        key = " ".join(str(value) for value in each["key"].values())
        cells = ", ".join(f"{name} {_cell(old)} -> {_cell(new)}" for name, (old, new) in each["cells"].items())
        say(f"  {paint(key, 'bold')}: {cells}")
    if found["rows"]["changed"] > len(found["examples"]):
        say(f"  and {found['rows']['changed'] - len(found['examples']):,} more: palan data diff {found['from']} {found['to']} --rows {found['rows']['changed']}")


def _cell(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= ACROSS else text[: ACROSS - 1] + "…"
