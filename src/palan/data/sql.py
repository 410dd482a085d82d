"""Reading SQL: which tables a query names, and the named expressions of a file of features. Nothing is run here."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from palan.core import digest
from palan.errors import PalanError

_TOKEN = re.compile(r"(?P<blank>\s+)|(?P<note>--[^\n]*|/\*.*?\*/)|(?P<text>'(?:[^']|'')*')|(?P<name>\"(?:[^\"]|\"\")*\"|`[^`]*`)|(?P<word>[^\W\d]\w*)|(?P<mark>\d[\w.]*|.)", re.DOTALL)
_KEPT = re.compile(r"('(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/)", re.DOTALL)  # texts, names and notes: no number is in them
_FLOAT = re.compile(r"(?<![\w.])(\d+\.\d*|\.\d+)(?![\w.])")
_ENDS = {"where", "group", "having", "order", "limit", "offset", "union", "except", "intersect", "window", "qualify", "select", "on", "using", "set"}
"""Words after which a comma no longer parts the tables of a FROM."""
_ARGUMENTS = {"extract", "substring", "trim", "overlay", "position"}  # FROM stands within them, and names no table


class Token(msgspec.Struct, frozen=True):
    kind: str  # note, text, name, word or mark
    text: str
    line: int
    place: int  # in the query

    def says(self, *words: str) -> bool:
        return self.kind in ("word", "mark") and self.text.lower() in words

    @property
    def plain(self) -> str:
        """The name that a word or a name in quotes is."""
        return self.text if self.kind == "word" else self.text[1:-1].replace('""', '"')


class Sql(msgspec.Struct, frozen=True):
    """An expression in SQL: what it says, what it is for, and where it stands."""

    text: str
    about: str = ""
    place: str = ""  # "features.sql line 4"


def tokens(text: str) -> Iterator[Token]:
    """Yield what a query is made of, without blanks."""
    line = 1
    for found in _TOKEN.finditer(text):
        if found.lastgroup != "blank":
            yield Token(found.lastgroup or "", found.group(), line, found.start())
        line += found.group().count("\n")


def meaning(text: str) -> str:
    """Return the digest of a query without its notes and its layout."""
    return digest("\0".join(each.text for each in tokens(text) if each.kind != "note").encode())


def with_floats(text: str) -> str:
    """Return an expression in which 1.5 is a float, as it is in Python: SQL knows it as a decimal, which few functions take."""
    return "".join(_FLOAT.sub(r"\g<0>e0", part) if place % 2 == 0 else part for place, part in enumerate(_KEPT.split(text)))


def names(text: str) -> set[str]:
    """Return all names in a query: of tables, columns, functions and its own words."""
    return {each.plain for each in tokens(text) if each.kind in ("word", "name")}


def relations(text: str) -> dict[str, int]:
    """Return the tables that a query reads, with the line where each is named first; not those that it makes itself (WITH)."""
    said = [each for each in tokens(text) if each.kind != "note"]
    own = {one.plain for one, two, three in zip(said, said[1:], said[2:], strict=False) if one.kind in ("word", "name") and two.says("as") and three.says("(")}
    found: dict[str, int] = {}
    froms: list[bool | None] = [False]  # of each open parenthesis whether a FROM goes on in it; None: FROM means something else there
    for place, each in enumerate(said):
        before = said[place - 1] if place else None
        if each.says("("):
            froms.append(None if before and before.says(*_ARGUMENTS) else False)
        elif each.says(")"):
            froms = froms[:-1] or [False]
        elif each.says("from", "join") and froms[-1] is not None and not (before and before.says("distinct") and place > 1 and said[place - 2].says("is", "not")):
            froms[-1] = True
        elif each.says(*_ENDS) and froms[-1]:
            froms[-1] = False
        elif each.kind in ("word", "name") and froms[-1] and before and before.says("from", "join", ",", "lateral") and not each.says("lateral"):
            calls = place + 1 < len(said) and said[place + 1].says("(")  # a function that makes a table
            if not calls and each.plain not in own:
                found.setdefault(each.plain, each.line)
    return found


def expressions(text: str, file: str) -> dict[str, Sql]:
    """Return the expressions of a file, `expression AS name` with commas between them, with SELECT and FROM around them or not.

    Raises:
        PalanError: one has no name, or a name stands twice.
    """
    found: dict[str, Sql] = {}
    for part in _parts(text):
        said = [each for each in part if each.kind != "note"]
        if not said:
            continue
        place = f"{file} line {said[0].line}"
        if len(said) < 3 or not said[-2].says("as") or said[-1].kind not in ("word", "name"):
            shown = " ".join(each.text for each in said[:8])
            raise PalanError(f"{place}: this expression has no name: {shown[:60]}", "delay > 15 AND origin = 'JFK' AS late,")
        name = said[-1].plain
        if name in found:
            raise PalanError(f"{place}: {name} is there already, at {found[name].place}", "give one of them another name")
        about = " ".join(each.text.removeprefix("--").strip() for each in part if each.kind == "note" and each.text.startswith("--"))
        found[name] = Sql(text[said[0].place : said[-2].place].strip(), about, place)
    return found


def _parts(text: str) -> list[list[Token]]:
    """Return what stands between the commas of a select list."""
    depth, parts = 0, [list[Token]()]
    for each in tokens(text):
        part = parts[-1]
        depth += each.says("(", "[") - each.says(")", "]")
        if depth == 0 and each.says(","):
            parts.append([])
        elif depth == 0 and (each.says(";") or (each.says("from") and not (part and part[-1].says("distinct")))):
            break
        elif each.kind == "note" and not part and len(parts) > 1 and parts[-2] and parts[-2][-1].line == each.line:
            parts[-2].append(each)  # at the end of a line, after the comma: of what stands on that line
        elif not (depth == 0 and each.says("select") and all(one.kind == "note" for one in part)):
            part.append(each)
    return parts
