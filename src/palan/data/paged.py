"""A page of JSON as an API answers with it: where its rows are, what the next page is called, and whether there is one.

Rows stay the text that they came as, so that no number loses a digit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec
from msgspec import Raw

from palan.errors import Invalid

T = TypeVar("T")

_NEXT = re.compile(r"(@odata\.)?next(_?(page|cursor|link|links|url|uri|href|token|offset|marker)){0,2}|has_?(more|next)(_?pages?)?|is_?truncated|more", re.IGNORECASE)
_TOTAL = re.compile(r"(total|num)_?(count|items|results|rows|records|found|elements|hits)|total|count", re.IGNORECASE)
_SIZE = re.compile(r"page|per_?page|page_?(size|number|num|no)|limit|offset|skip|start", re.IGNORECASE)
_ERROR = re.compile(r"errors?|fault|exception", re.IGNORECASE)
_WRONG = re.compile(r"errors?|fault|exception|message|detail|code|reason", re.IGNORECASE)
_NOTHING = (b"null", b"false", b"0", b'""', b"[]", b"{}")
_PAGES = re.compile(r"(total_?)?pages|(page|num)_?(count|pages)|last_?page", re.IGNORECASE)


class Page(msgspec.Struct, frozen=True):
    """The rows of a page; `path` leads to them, "" where the page is their list."""

    rows: Sequence[Raw]
    path: str


def page(body: bytes, path: str | None) -> Page:
    """Find the rows of a page, at `path` or, where that is None, in the one list of objects that there is.

    Raises:
        Invalid: no JSON, or no such list, or several; `field` is "body" or "records".
    """
    _decoded(Raw(body), Raw)
    if path is not None:
        found = at(body, path)
        if (rows := _list(found)) is not None:
            return Page(rows, path)
        if path and _is_object(Raw(body)) and _may_be_empty(body, found):
            return Page([], path)
        raise Invalid(f"has no list at {path}" if path else "is no list", f"its lists are at {', '.join(_lists(body)) or 'no place'}: records", field="records")
    if (rows := _list(Raw(body))) is not None and not any(_list(row) is not None for row in rows[:2]):
        return Page(rows, "")
    lists = _lists(body)
    likely = _likely(lists)
    empty = [place for place, rows in lists.items() if not rows]
    if _says(body, _ERROR):
        raise Invalid("says that something is wrong", "", field="records")
    if not (likely or empty):
        raise Invalid("has no list of rows", "", field="records")
    if len(likely) > 1:
        raise Invalid(f"has several lists: {', '.join(likely[:8])}", f'records = "{likely[0]}"', field="records")
    return Page(lists[(likely or empty)[0]], (likely or empty)[0])


def at(body: bytes, path: str) -> Raw | None:
    """Return what stands at a path such as `meta.next`, a number being a place in a list; None where nothing does.

    Raises:
        Invalid: the body is no JSON; `field` is "body".
    """
    here: Raw | None = Raw(body)
    rest = path
    while rest and here is not None:
        name, _, rest = rest.partition(".")
        if (items := _list(here)) is not None:
            here = items[int(name)] if name.isdecimal() and int(name) < len(items) else None
            continue
        members = _object(here)
        if name not in members and rest:  # a name may have a point in it, as @odata.nextLink
            name, rest = (f"{name}.{rest}", "") if f"{name}.{rest}" in members else (name, rest)
        here = members.get(name)
    return here


def token(body: bytes, path: str) -> str:
    """Return what the next page is called, "" at the end.

    Raises:
        Invalid: what stands there is no name; `field` is "next".
    """
    found = at(body, path)
    value = None if found is None else msgspec.json.decode(found)
    if value is None or value is False or value == "":
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and value is not True:
        return str(value)
    raise Invalid(f"has no text at {path}", f"next is where the next page is named: {', '.join(more(body, 0)) or 'see the manual of the API'}", field="next")


def more(body: bytes, rows: int) -> list[str]:
    """Return where a page says that it is not the last one, of which `rows` were taken so far."""
    found = []
    for place, members in _objects(body):
        for name, raw in members.items():
            text = bytes(raw).strip()
            number = int(text) if text.isdigit() and len(text) < 16 else 0
            named = text[:1] in b'"{' and text not in (b'""', b"{}")
            counts = _TOTAL.fullmatch(name) is not None and any(_SIZE.fullmatch(each) for each in members)
            if (_NEXT.fullmatch(name) and (named or text == b"true" or number)) or (counts and number > rows) or (_PAGES.fullmatch(name) and number > 1):
                found.append(f"{place}{name}")
    return found


def lines(rows: Sequence[Raw]) -> bytes:
    """Return the rows, each as one line. What ends a line within one stands between its values."""
    text = b"".join([b"\n".join(rows), b"\n" if rows else b""])
    if text.count(b"\n") == len(rows) and b"\r" not in text:
        return text
    return b"".join(bytes(row).replace(b"\n", b" ").replace(b"\r", b" ") + b"\n" for row in rows)


def _objects(body: bytes) -> Iterator[tuple[str, dict[str, Raw]]]:
    """Yield the object that a page is, and those right within it, each with the path to what it holds."""
    outer = _object(Raw(body))
    yield "", outer
    for name, raw in outer.items():
        yield f"{name}.", _object(raw)


def _lists(body: bytes) -> dict[str, list[Raw]]:
    """Return the lists of a page by their path: the outermost, of objects in objects."""
    whole = _list(Raw(body))
    if whole is not None:
        return {str(place): rows for place, each in enumerate(whole) if (rows := _list(each)) is not None}
    return {f"{place}{name}": rows for place, members in _objects(body) for name, raw in members.items() if (rows := _list(raw)) is not None}


def _likely(lists: dict[str, list[Raw]]) -> list[str]:
    return [place for place, rows in lists.items() if rows and _is_object(rows[0])]


def _may_be_empty(body: bytes, found: Raw | None) -> bool:
    """Tell whether a page, having this in the place of the list, has no rows: it may then leave out their list, but says no more."""
    if found is None:
        return not _says(body, _WRONG) and not _likely(_lists(body))
    return bytes(found).strip() == b"null" and not _says(body, _ERROR)


def _says(body: bytes, names: re.Pattern[str]) -> bool:
    """Tell whether a page has something under one of these names."""
    return any(names.fullmatch(name) and bytes(raw).strip() not in _NOTHING for name, raw in _object(Raw(body)).items())


def _is_object(raw: Raw) -> bool:
    return bytes(raw).lstrip()[:1] == b"{"


def _object(raw: Raw) -> dict[str, Raw]:
    return _decoded(raw, dict[str, Raw]) if _is_object(raw) else {}


def _list(raw: Raw | None) -> list[Raw] | None:
    return _decoded(raw, list[Raw]) if raw is not None and bytes(raw).lstrip()[:1] == b"[" else None


def _decoded(raw: Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise Invalid("is no JSON", "", field="body") from problem
