"""How the command line shows runs: tables that fit the terminal, and curves as one line of characters."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from palan.cli.show import paint, say
from palan.core import counted, figure
from palan.flows.runs import SHORT
from palan.runs.beside import asked, columns, value_of
from palan.runs.search import parse, parse_order

if TYPE_CHECKING:
    from palan.flows.project import Project

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-=+*%#"
GAP = 2
WIDEST = 24
"""Characters of a cell that are shown."""

NAMED = 3
"""Parameters that a group of runs is named by."""

SEEDS = 20
"""Differences between groups that are printed, what is sure first."""

DRAWN = 8
"""Runs, and metrics, whose curves are drawn side by side."""

_COLOURS = {"done": "green", "failed": "red", "killed": "red", "running": "yellow"}

FIRST = """no run is tracked yet. To log the first one:
  import palan

  with palan.start("trees", lr=0.1) as run:
      run.log(loss=0.3)"""


class Column(msgspec.Struct, frozen=True):
    """A title, a text for each row, and whether they are numbers and stand to the right."""

    title: str
    cells: list[str]
    right: bool = False

    def width(self) -> int:
        from rich.cells import cell_len

        return max(cell_len(text) for text in (self.title, *self.cells))


def listed(found: Mapping[str, Any], search: str, order: Sequence[str], flow: str, limit: int) -> None:
    """Print what a search found as a table, and how to go on."""
    told = found["runs"]
    if found["reading"]:
        say("more was logged than is read: the next palan runs goes on with it")
    if not told:
        say(FIRST if not search and flow == "track" else "no run is like that")
        say("next: palan runs")
        return
    print_table(_columns(told, asked(parse(search), parse_order(order))))
    say(f"next: {_continued(search, order, flow, limit, found['next']) if found['next'] else 'palan runs show ' + short(told[0]['run'])}")


def _continued(search: str, order: Sequence[str], flow: str, limit: int, token: str) -> str:
    given = [search] if search else []
    given += [part for key in order for part in ("--order", key)]
    given += [*(["--flow", flow] if flow != "track" else []), *(["--limit", str(limit)] if limit != 50 else []), "--after", token]
    return f"palan runs {' '.join(_typed(each) for each in given)}"


def _typed(text: str) -> str:
    """Return a word as one types it in a shell: in double quotes where that is enough, as searches hold single ones."""
    plain = shlex.quote(text)
    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\!') else plain


def _columns(told: Sequence[Mapping[str, Any]], first: Sequence[str]) -> list[Column]:
    """Return the columns of a list of runs that fit, in their order: what matters has its place before what is nice to know."""
    own = {
        "run": Column("run", [short(each["run"]) for each in told]),
        "name": Column("name", [cut(each["name"]) for each in told]),
        "experiment": Column("experiment", [cut(each["experiment"]) for each in told]),
        "status": Column("status", [each["status"] for each in told]),
        "started": Column("started", [each["started"][:16].replace("T", " ") for each in told]),
    }
    if not any(own["name"].cells):
        del own["name"]
    values = {name: value_column(told, name) for name in columns(told, first)}
    leading = list(values)[:2]
    kept: list[str] = []
    left = terminal_width() + GAP
    for name in dict.fromkeys(["run", "status", "name", *leading, "experiment", "started", *values]):
        column = own.get(name) or values.get(name)
        if column is None:
            continue
        if column.width() + GAP <= left:
            kept.append(name)
            left -= column.width() + GAP
        elif name not in own:
            break  # a value that matters less must not stand where one that matters more had no room
    return [each for name, each in {**own, **values}.items() if name in kept]


def value_column(told: Sequence[Mapping[str, Any]], name: str) -> Column:
    """Return what each run has of "metrics.loss"; the title has the kind only where it is needed."""
    values = [value_of(each, name) for each in told]
    return Column(cut(name.partition(".")[2]), [cell(value) for value in values], all(is_number(value) for value in values))


def is_number(value: Any) -> bool:
    if value is None:
        return True
    try:
        float(value)
    except ValueError:
        return False
    return True


def cell(value: Any) -> str:
    if value is None:
        return "–"
    return figure(value) if isinstance(value, float) else cut(str(value))


def cut(text: str, size: int = WIDEST) -> str:
    """Return a text that a terminal can show in one line: nothing in it moves the cursor or changes a colour."""
    from rich.cells import cell_len, set_cell_size

    safe = "".join(each if each.isprintable() else "·" for each in text)
    return safe if cell_len(safe) <= size else set_cell_size(safe, size - 1).rstrip() + "…"


def short(id: str) -> str:
    return id[-SHORT:]


def terminal_width() -> int:
    return max(20, shutil.get_terminal_size((100, 24)).columns)


def sent(found: Sequence[Mapping[str, Any]]) -> None:
    """Print what left this machine, and why the rest did not."""
    if not found:
        say("nothing waits to be sent")
    for each in found:
        say(f"{each['server']}: {each['sent']:,} bytes sent" + (f", {each['waiting']:,} bytes wait: {each['why'] or 'its process still tracks, and sends'}" if each["waiting"] else ""))


def print_table(table: Sequence[Column]) -> None:
    """Print columns side by side, numbers to the right."""
    from rich.cells import cell_len

    widths = [each.width() for each in table]

    def line(cells: Sequence[str], styles: Callable[[str], str]) -> str:
        padded = []
        for text, column, width in zip(cells, table, widths, strict=True):
            space = " " * (width - cell_len(text))
            padded.append(space + styles(text) if column.right else styles(text) + space)
        return (" " * GAP).join(padded).rstrip()

    say(line([each.title for each in table], lambda text: paint(text, "dim")))
    for row in zip(*(each.cells for each in table), strict=True):
        say(line(row, lambda text: paint(text, _COLOURS.get(text, ""))))


def shown(project: Project, page: Mapping[str, Any]) -> None:
    """Print one run: what it was given, what it measured, what it made, what it takes to repeat it."""
    title = f"{cut(page['name'], 60)}  " if page["name"] else ""
    say(f"{title}{page['run']}")
    say(f"{page['flow']} of {cut(page['experiment'], 60)}: {paint(page['status'], _COLOURS.get(page['status'], ''))}{': ' + cut(page['reason'], 200) if page['reason'] else ''}")
    say(f"started {page['started'][:19].replace('T', ' ')}{', ended ' + page['ended'][:19].replace('T', ' ') if page['ended'] else ''} (UTC)")
    if page["deleted"]:
        say(f"deleted {page['deleted'][:19].replace('T', ' ')}: palan runs restore {short(page['run'])}")
    if page["parent"]:
        say(f"part of {short(page['parent'])}")
    for part in ("params", "tags"):
        _pairs(part, {key: cell(value) if is_number(value) else cut(value, 200) for key, value in page[part].items()})
    if page["curves"]:
        say("\nmetrics")
        curves = [each for each in page["curves"] if each["points"] > 1]
        table = [Column("", [cut(each["metric"]) for each in page["curves"]])]
        table += [Column(name, [cell(each[name]) for each in page["curves"]], True) for name in ("last", "min", "max")]
        table.append(Column("points", [f"{each['points']:,}" for each in page["curves"]], True))
        left = terminal_width() - sum(each.width() + GAP for each in table)
        while left < 0 and len(table) > 2:
            left += table.pop().width() + GAP
        if curves and left >= 8:
            lines = [spark(drawn(project, page["run"], each["metric"], min(left, 60))) if each["points"] > 1 else "" for each in page["curves"]]
            table.append(Column("", lines))
        print_table(table)
    _pairs("files", {each["path"]: f"{each['size']:,} bytes" for each in page["artifacts"]})
    _pairs("parts", {short(each["run"]): f"{each['status']} {cut(each['name'])}" for each in page["children"]})
    again = {"code": page["code"][:12], **{f"data {name}": f"{name}@{number}" for name, number in page["data"].items()}, **page["environment"]}
    _pairs("to repeat it", {name: cut(str(value), 200) for name, value in again.items() if value})
    say(f"next: {_next(page)}")


def put_aside(made: Mapping[str, Any], verb: str) -> None:
    """Print which runs were deleted or restored, and the way back."""
    for each in made["runs"][:DRAWN]:
        say(f"{verb}d {short(each['run'])}  {cut(each['name'] or each['experiment'], 60)}")
    if len(made["runs"]) > DRAWN:
        say(f"… and {len(made['runs']) - DRAWN:,} more")
    if not made["runs"]:
        say(f"nothing to {verb}")
    elif verb == "delete":
        say(f"next: palan runs restore {short(made['runs'][0]['run'])}   or for good, after a day: palan gc")
    else:
        say("next: palan runs")


def _next(page: Mapping[str, Any]) -> str:
    if page["flow"] == "track":
        return f"palan runs {_typed('experiment = ' + _quoted(page['experiment']))}"
    return f"palan runs --flow {page['flow']}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _pairs(title: str, pairs: Mapping[str, str]) -> None:
    if not pairs:
        return
    from rich.cells import cell_len

    say(f"\n{title}")
    names = {name: cut(name, 60) for name in pairs}
    width = min(WIDEST, max(cell_len(each) for each in names.values()))
    for name, value in pairs.items():
        say(f"  {names[name]}{' ' * max(0, width - cell_len(names[name]))}  {value}".rstrip())


def drawn(project: Project, run: str, metric: str, points: int) -> list[float | None]:
    """Return a curve in so many numbers: the middle of each stretch, of a flow's own run none."""
    from palan.errors import NotFound
    from palan.flows.runs import curve

    try:
        found = curve(project, run, metric, points=points)
    except NotFound:
        return []
    if "values" in found:
        return list(found["values"])
    return [None if low is None or high is None else (low + high) / 2 for low, high in zip(found["least"], found["largest"], strict=True)]


def spark(values: Sequence[float | None], low: float | None = None, high: float | None = None) -> str:
    """Return a curve as one line of characters, a blank where there is no number."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = min(known) if low is None else low, max(known) if high is None else high
    bars = BARS if _can_show(BARS) else ASCII_BARS
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if value is None else bars[round((value - low) * scale)] for value in values)


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def compared(project: Project, told: Mapping[str, Any]) -> None:
    """Print runs side by side, what differs first: a column for each run where they fit, else a row."""
    runs = told["runs"]
    titles = [short(each["run"]) for each in runs]
    rows: dict[str, list[Any]] = {name: [each[name] for each in runs] for name in ("name", "experiment", "status") if len({each[name] for each in runs}) > 1}
    for part in ("params", "metrics", "tags", "about"):
        rows |= {name if part in ("params", "metrics") else f"{part}.{name}": values for name, values in told["differ"][part].items()}
    table = [Column("", [cut(name, 40) for name in rows])]
    table += [Column(title, [cell(values[place]) for values in rows.values()], True) for place, title in enumerate(titles)]
    if sum(each.width() + GAP for each in table) <= terminal_width() + GAP:
        print_table(table)
    else:
        turned = [Column("run", titles), *(Column(cut(name), [cell(value) for value in values], all(is_number(value) for value in values)) for name, values in rows.items())]
        left = terminal_width() + GAP
        kept = []
        for column in turned:
            if column.width() + GAP > left:
                break
            left -= column.width() + GAP
            kept.append(column)
        print_table(kept)
        if len(kept) < len(turned):
            say(f"… and {len(turned) - len(kept):,} more that differ: palan runs compare --json")
    words = {"params": "param", "metrics": "metric", "tags": "tag", "about": "surrounding"}
    same = [counted(len(told["same"][part]), word) for part, word in words.items() if told["same"][part]]
    if same:
        say(f"the same in all: {', '.join(same)}")
    _overlaid(project, told, titles)
    if told["seeds"]:
        say("\nseed by seed")
        for each in told["seeds"][:SEEDS]:
            say(f"  {cut(each['metric'], 40)}, {_group(each['group'])} against {_group(each['against'])}: {each['text']}")
        if len(told["seeds"]) > SEEDS:
            say(f"  … and {len(told['seeds']) - SEEDS:,} more: palan runs compare --json")
    say(f"next: palan runs show {titles[0]}")


def _group(params: Mapping[str, str | None]) -> str:
    named = [f"{name}={cell(value)}" for name, value in params.items()]
    return " ".join([*named[:NAMED], *([f"and {len(named) - NAMED} more"] if len(named) > NAMED else [])]) or "the same params"


def _overlaid(project: Project, told: Mapping[str, Any], titles: Sequence[str]) -> None:
    """Print the curves that differ under one another, each metric on one scale."""
    if len(titles) > DRAWN:
        return
    width = min(60, terminal_width() - SHORT - GAP - GAP - 10)
    for metric in list(told["differ"]["metrics"])[:DRAWN]:
        lines = [drawn(project, each["run"], metric, max(8, width)) for each in told["runs"]]
        known = [value for line in lines for value in line if value is not None]
        if max(len(line) for line in lines) < 2 or not known:
            continue
        say(f"\n{cut(metric, 60)}, {figure(min(known))} to {figure(max(known))}")
        for title, line in zip(titles, lines, strict=True):
            if line:
                say(f"  {title}  {spark(line, min(known), max(known))}")
