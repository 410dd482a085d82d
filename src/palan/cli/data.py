"""How the command line shows tables and their versions."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from palan.cli.runs import Column, cut, print_table, terminal_width
from palan.cli.show import paint, say
from palan.core import counted

if TYPE_CHECKING:
    from palan.flows.project import Project

MANY = 24
"""Columns of a row in quarantine that are shown; of a wider one those that break a rule."""

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


def in_quarantine(found: Sequence[Mapping[str, Any]]) -> None:
    """Print what waits in quarantine, and where each rule is written."""
    if not found:
        say("nothing is in quarantine")
    width = terminal_width()
    for each in found:
        say(f"{paint(each['data'], 'bold')}: {counted(each['rows'], 'row')} in quarantine")
        for rule in each["rules"]:
            _row(f"{rule['rows']:>9,}  {rule['rule']}", rule["contract"], width)
        for file in each["files"]:
            _row(f"{file['rows']:>9,}  in {file['file']}", f"came {file['came'][:16].replace('T', ' ')}", width)
        for one in each.get("decided", ()):
            _row(f"{one['rows']:>9,}  {one['was']} by hand, in {one['file']}", one["reason"], width)
        if each["next"]:
            say(f"next: {each['next']}, or change the rule, then: palan ingest {each['data']}")


def in_quarantine_csv(found: Sequence[Mapping[str, Any]]) -> None:
    """Print the same for another program: a line for each rule and file; a row that breaks two rules is in two of them."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["data", "file", "rule", "rows"])
    writer.writerows([each["data"], file["file"], rule, rows] for each in found for file in each["files"] for rule, rows in file["rules"].items())


def quarantined(found: Mapping[str, Any]) -> None:
    """Print rows with the cells marked that break a rule: in colour, and by a sign that a pipe keeps."""
    say(f"{found['data']}: {counted(found['rows'], 'row')} in quarantine")
    width = terminal_width()
    for each in found["shown"]:
        marks = each["marks"]
        loose = [rule for rule in each["rules"] if not any(rule in rules for rules in marks.values())]
        say(paint(cut(f"{each['file']} line {each['line']}{': ' if loose else ''}{'; '.join(loose)}", width), "bold"))
        cells = each["row"] if len(each["row"]) <= MANY else each["cells"]
        wide = min(max((len(name) for name in [*cells, *marks]), default=0), max(8, width // 4))
        for name, value in {**cells, **{name: None for name in marks if name not in cells}}.items():
            rules = marks.get(name, [])
            text = f"{'!' if rules else ' '} {cut(name, wide):<{wide}}  {'nothing' if value is None else cut(str(value), max(8, width - wide - 6))}"
            _row(f"  {text}", "; ".join(rules), width, *(["red", "bold"] if rules else []))
        if len(each["row"]) > len(cells):
            say(f"    and {len(each['row']) - len(cells):,} other columns: --json")
    if found["rows"] > len(found["shown"]):
        say(f"… and {found['rows'] - len(found['shown']):,} more: --rows {found['rows']}")
    if found["next"]:
        say(f"next: {found['next']}")


def quarantined_csv(found: Mapping[str, Any]) -> None:
    """Print the rows as they came, for another program."""
    names = list(dict.fromkeys(name for each in found["shown"] for name in each["row"]))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["palan_file", "palan_line", "palan_rules", *names])
    writer.writerows([each["file"], each["line"], "; ".join(each["rules"]), *(each["row"].get(name) for name in names)] for each in found["shown"])


def decided(found: Mapping[str, Any]) -> None:
    """Print what became of rows in quarantine, or would become."""
    say(f"{found['version'] or found['data']}: {found['text']}")
    width = terminal_width()
    for each in found["examples"] if found["dry run"] else ():
        cells = ", ".join(f"{name} {' -> '.join(_cell(value) for value in values)}" for name, values in each["cells"].items())
        _row(f"  {each['file']} line {each['line']}: {cells or '; '.join(each['rules'])}", f"still: {'; '.join(each['still'])}" if each["still"] else "", width)
    if found["dry run"] and found["picked"] > len(found["examples"]):
        say(f"  … and {found['picked'] - len(found['examples']):,} more")
    if found["waiting"] and not found["dry run"]:
        say(f"  in quarantine: {found['waiting']:,}")
    if found["dry run"] and found["rows"]:
        say("next: the same without --dry-run, with a --reason")
    elif found["next"]:
        say(f"next: {found['next']}")


def _row(text: str, note: str, width: int, *styles: str) -> None:
    """Print a line with a note at its end, or below where it is too narrow for both."""
    shown = cut(text, width)
    say(paint(shown, *styles) + (f"  {paint(note, 'dim')}" if note and len(shown) + 2 + len(note) <= width else ""))
    if note and len(shown) + 2 + len(note) > width:
        say(paint(cut(f"      {note}", width), "dim"))


def proposed(data: str, found: Sequence[Mapping[str, Any]]) -> None:
    """Print what is suspected of a table: in words, with figures before and after, and what to type."""
    if not found:
        say(f"nothing is suspected of {data}")
    width = terminal_width()
    for each in found:
        state = paint("put right", "green", "bold") if each["repaired"] else paint("suspected", "yellow", "bold")
        _folded(f"{state}: {each['text']}", width, "")
        _folded(f"since {each['since'][:16].replace('T', ' ')}, seen until {each['through']}; sure: {each['sure']:.0%}", width)
        for repair in each["repairs"]:
            _folded(f"repair: {repair['column']} = {repair['expression']}", width)
        for figure in each["figures"]:
            _folded(f"{figure['column']}, {figure['what']}:", width)
            for when, words in (("before", "before"), ("came", "as it came"), ("right", "put right")):
                _folded(f"{words:<10}  {figure[when]}", width, "    ")
        for row in each["rows"]:
            cells = ", ".join(f"{name} {_cell(old)} -> {_cell(new)}" for name, (old, new) in row["cells"].items())
            _folded(f"{' '.join(row['row'].values())}: {cells}", width)
        if each["repaired"]:
            _folded(f"because: {each['repaired']}", width)
        for line in each["contract"]:
            _folded(f"or, if it stays so, {line}", width)
        _folded(f"next: {each['next']}", width)
        if not each["repaired"]:
            _folded(f"or, if it is no fault: palan accept {data} --reason WHY", width)


def _folded(text: str, width: int, indent: str = "  ") -> None:
    """Print a text in lines that fit the terminal."""
    import textwrap

    for line in textwrap.wrap(text, max(24, width), initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False):
        say(line)


def repaired(made: Mapping[str, Any]) -> None:
    """Print what became of a table once a repair was accepted, or taken back."""
    for each in made["repaired"]:
        say(f"{'taken back' if made['undo'] else 'put right'}: {each}")
    say(f"{made['version']}: {made['text']}; in the ledger: {made['reason']}")
    say(f"next: palan data diff {made['before']} {made['version']}" + ("" if made["undo"] else f"   or take it back: palan data repair {made['data']} --undo --reason WHY"))
