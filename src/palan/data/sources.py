"""Where the rows of a table come from, as `[data.NAME]` in palan.toml says it, and how far they have been fetched.

This file loads no data frame library, so that reading palan.toml stays quick.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, get_args

import msgspec

from palan.errors import Invalid, PalanError, nearest

Kind = Literal["files", "bucket", "web", "api", "sqlite", "postgresql", "function"]
Format = Literal["csv", "parquet", "ndjson", "json", "xlsx", "arrow"]
FORMATS: tuple[Format, ...] = get_args(Format)

KEYS = ("query", "cursor", "start", "lateness", "format", "headers", "params", "records", "next", "page")
"""What `[data.NAME]` says of a source besides its address."""

SECRET = ("headers", "params")
"""What is kept nowhere: it may lead to a secret."""

SINCE = "{since}"
"""Where a query, an address or a parameter takes the cursor from which rows are asked for."""

Mark = datetime | date | int | str
"""How far a cursor has come."""

_URL = re.compile(r"[a-z0-9+]+://(?:(?P<user>[^/@?#:]*)(?::(?P<password>[^/?#]*))?@)?(?P<host>[^/@?#\s]*)(?P<path>[^?#\s]*)(?:\?(?P<query>[^#\s]*))?")
_FUNCTION = re.compile(r"[\w./-]+\.py:[A-Za-z_]\w*")
_VARIABLE = re.compile(r"\$(?:\{[A-Za-z_]\w*\}|[A-Za-z_]\w*)")
_SECRETS = re.compile(r"auth|token|secret|passw|api.?key|apikey|session|cookie|signature|^sig$|credential", re.IGNORECASE)
_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

_SAYS: Mapping[str, tuple[Kind, ...]] = {
    "query": ("sqlite", "postgresql", "function"),
    "cursor": ("sqlite", "postgresql", "function", "api"),
    "start": ("sqlite", "postgresql", "function", "api"),
    "lateness": ("sqlite", "postgresql", "function", "api"),
    "format": ("files", "bucket", "web"),
    "headers": ("web", "api"),
    "params": ("web", "api"),
    "records": ("api",),
    "next": ("api",),
    "page": ("api",),
}
_WHAT: Mapping[Kind, str] = {
    "files": "files of the project",
    "bucket": "a bucket",
    "web": "a file on a web server",
    "api": "pages of JSON",
    "sqlite": "a database",
    "postgresql": "a database",
    "function": "a function",
}


class Source(msgspec.Struct, frozen=True):
    """Where the rows of one table come from.

    `address` is what `source` says, without scheme for SQLite. `cursor` is the column that grows from row to row, by which
    only new rows are fetched; `start` where it begins, and `lateness` how far back from where it has come rows are asked for
    again: text such as "2h" of a time, a number of a whole number. `records`, `next` and `page` say how the pages of a JSON
    API are laid out.
    """

    kind: Kind
    address: str
    query: str = ""
    cursor: str = ""
    start: str = ""
    lateness: str = ""
    format: str = ""
    headers: Mapping[str, str] = {}
    params: Mapping[str, str] = {}
    records: str = ""
    next: str = ""  # with `page`: a token for that parameter, else an address
    page: str = ""

    @property
    def fetched(self) -> bool:
        """Tell whether its rows are asked for; else they lie in files, each of which is delivered whole."""
        return self.kind in ("sqlite", "postgresql", "function", "api")

    @property
    def shown(self) -> str:
        """The address as the records and pages show it: without a query of a web address, which may hold more than a name."""
        return self.address.partition("?")[0] if self.kind in ("web", "api", "postgresql") else ("sqlite:" if self.kind == "sqlite" else "") + self.address

    @property
    def place(self) -> str:
        """What a version calls the cursor of this source: another column counts anew."""
        return f"{self.shown} by {self.cursor}" if self.cursor else self.shown


def parse(name: str, table: Mapping[str, Any]) -> Source:
    """Read the source of one `[data.NAME]` table.

    Raises:
        Invalid: an address that is none, a setting that says nothing of such a source, or a secret that stands in it;
            `field` has the setting.
    """
    address = str(table.get("source", ""))
    kind, plain = _kind(address, table)
    for key in KEYS:
        if key in table and kind not in _SAYS[key]:
            others = " or ".join(dict.fromkeys(_WHAT[each] for each in _SAYS[key]))
            raise Invalid(f"{key} is for {others}, and {_shown(address)} is {_WHAT[kind]}", f"take {key} out of [data.{name}]", field=key)
    texts = {key: table.get(key, "") for key in ("query", "cursor", "start", "lateness", "format", "records", "next", "page")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise Invalid(f"{key} must be a text, found {value!r}", f'{key} = "{value}"', field=key)
    source = Source(kind, plain, **texts, headers=_texts("headers", table.get("headers", {})), params=_texts("params", table.get("params", {})))
    _no_secrets(name, source, address)
    _whole(name, source)
    return source


def _kind(address: str, table: Mapping[str, Any]) -> tuple[Kind, str]:
    scheme, sign, rest = address.partition(":")
    if _FUNCTION.fullmatch(address):
        return "function", address
    if scheme in ("http", "https") and rest.startswith("//"):
        found = _URL.fullmatch(address)
        if not found or not found["host"]:
            raise Invalid(f'source = "{_shown(address)}" names no server', 'source = "https://host/path"', field="source")
        paged = any(key in table for key in ("records", "next", "page", "cursor"))
        ending = _ending(found["path"])
        return ("api" if paged or (ending in ("", "json") and "format" not in table) else "web"), address
    if scheme == "sqlite":
        path = rest.removeprefix("//") if rest.startswith("///") else rest
        if not path or path.startswith("//"):
            raise Invalid(f'source = "{address}" names no file', 'source = "sqlite:shop.db"', field="source")
        return "sqlite", path
    if scheme in ("postgresql", "postgres") and rest.startswith("//"):
        return "postgresql", address
    if scheme in ("s3", "gs", "az") and rest.startswith("//"):
        if not re.fullmatch(r"//[\w.-]+/.*[^/]", rest):
            raise Invalid(f'source = "{_shown(address)}" names no files of a bucket', f'source = "{scheme}://bucket/folder/*.csv"', field="source")
        return "bucket", address
    if sign and "://" in address:
        known = ["https", "s3", "gs", "az", "sqlite", "postgresql"]
        raise Invalid(f'source = "{_shown(address)}" is of an unknown kind', nearest(scheme, known) or 'source = "feed/*.csv", "https://...", "s3://...", "postgresql://...", "sqlite:FILE" or "file.py:function"', field="source")
    return "files", address


def _ending(path: str) -> str:
    """Return what a file is by its name: one of FORMATS, "" of a name that says nothing."""
    word = re.sub(r"\.(gz|zst|bz2|xz)$", "", path.lower()).rpartition(".")[2]
    other = {"jsonl": "ndjson", "feather": "arrow", "ipc": "arrow", "pq": "parquet", "tsv": "csv", "txt": "csv"}
    return word if word in FORMATS else other.get(word, "")


def _texts(key: str, found: object) -> dict[str, str]:
    if not isinstance(found, Mapping) or not all(isinstance(each, str | int | float) and not isinstance(each, bool) for each in found.values()):
        raise Invalid(f"{key} must be a table of texts, found {found!r}", f'{key} = {{ name = "value" }}', field=key)
    return {str(name): str(value) for name, value in found.items()}


def _no_secrets(name: str, source: Source, address: str) -> None:
    """Refuse secrets that are written where everybody reads them. What is refused is not shown."""
    if source.kind not in ("web", "api", "postgresql"):
        return
    found = _URL.fullmatch(address)
    if not found:
        raise Invalid("source is no address that can be read", 'source = "https://host/path"', field="source")
    named = {name: value for name, _, value in (each.partition("=") for each in (found["query"] or "").split("&"))}
    if found["password"] is not None or (found["user"] and source.kind != "postgresql"):
        hint = "export PGPASSWORD=..., or a line in ~/.pgpass" if source.kind == "postgresql" else 'headers = { Authorization = "Bearer $API_TOKEN" }, and export API_TOKEN=...'
        raise Invalid("source has a password in it, which does not belong into a file", hint, field="source")
    for key, pairs in (("source", named), ("headers", source.headers), ("params", source.params)):
        for word, value in pairs.items():
            if _SECRETS.search(word) and not _VARIABLE.search(value):
                raise Invalid(f"{key} has the secret {word} in it, which does not belong into a file", f'{word} = "$NAME" in params or headers of [data.{name}], and export NAME=...', field=key)


def _whole(name: str, source: Source) -> None:
    """Refuse settings that do not go together."""
    if source.kind in ("sqlite", "postgresql") and not source.query:
        raise Invalid("source is a database, of which query says what to take", 'query = "SELECT * FROM orders"', field="source")
    for key in ("start", "lateness"):
        if getattr(source, key) and not source.cursor:
            raise Invalid(f"{key} is about a cursor, and there is none", 'cursor = "updated_at": the column that grows from row to row', field=key)
    if source.format and source.format not in FORMATS:
        raise Invalid(f'format = "{source.format}" is unknown', nearest(source.format, FORMATS) or f"one of {', '.join(FORMATS)}", field="format")
    if SINCE in source.query and not source.start:
        raise Invalid(f"query asks for rows from {SINCE}, and nothing says where that begins", 'start = "2024-01-01"', field="start")
    told = [source.address, source.query, *source.params.values()]
    if any(SINCE in each for each in told) and not source.cursor:
        raise Invalid(f"{SINCE} is where the cursor has come to, and there is none", f'cursor = "updated_at" in [data.{name}]', field="cursor")


def environment(text: str, variables: Mapping[str, str], where: str) -> str:
    """Return a text with `$NAME` and `${NAME}` replaced by these variables.

    Raises:
        PalanError: one of them is not set. Its value is never told.
    """
    def value(found: re.Match[str]) -> str:
        variable = found[0].lstrip("$").strip("{}")
        if variable not in variables:
            raise PalanError(f"{where} asks for the variable {variable}, which is not set", f"export {variable}=...")
        return variables[variable]

    return _VARIABLE.sub(value, text)


def variables_in(text: str) -> list[str]:
    """Return the names of the variables that `environment` would put in."""
    return [found.strip("${}") for found in _VARIABLE.findall(text)]


def mark(text: str, kind: str, where: str = "start") -> Mark:
    """Read how far a cursor has come, as `mark_text` wrote it or a person did. Times without a zone are in UTC.

    Raises:
        Invalid: the text is none of such a column.
    """
    try:
        if kind == "int":
            return int(text)
        if kind == "date":
            return date.fromisoformat(text)
        if kind == "time":
            found = datetime.fromisoformat(text)
            return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as problem:
        such = {"int": "1000", "date": "2024-01-31", "time": "2024-01-31T12:00Z"}[kind]
        raise Invalid(f'{where} = "{text}" is no {kind}, which the cursor is', f'{where} = "{such}"', field=where) from problem
    return text


def mark_text(found: Mark) -> str:
    return found.isoformat() if isinstance(found, date) else str(found)


def since(source: Source, kind: str, known: str) -> Mark | None:
    """Return from where rows are asked for, when the cursor, a column of this type, has come to `known` ("" : nowhere yet).

    Raises:
        Invalid: `start` or `lateness` does not fit the type of the cursor.
    """
    if kind not in ("int", "date", "time", "str"):
        raise Invalid(f'cursor = "{source.cursor}" is a column of type {kind}', "a cursor is an int, a time, a date or a str that only grows", field="cursor")
    late = _lateness(source, kind)
    begin = mark(source.start, kind) if source.start else None
    if not known:
        return begin
    come = mark(known, kind, "the cursor that the newest version keeps")
    try:
        return come if late is None or isinstance(come, str) else come - late  # type: ignore[operator]
    except OverflowError:
        return begin


def _lateness(source: Source, kind: str) -> timedelta | int | None:
    text = source.lateness
    if not text:
        return None
    found = re.fullmatch(rf"(\d+)([{''.join(_AGES)}]?)", text)
    if not found or kind == "str" or bool(found[2]) != (kind in ("time", "date")):
        such = {"int": '"1000", a number of the cursor', "str": "nothing: a text has no distance"}.get(kind, '"2h" or "3d"')
        raise Invalid(f'lateness = "{text}" does not fit the cursor "{source.cursor}" of type {kind}', f"lateness is {such}", field="lateness")
    if kind == "int":
        return int(found[1])
    try:
        length = timedelta(seconds=int(found[1]) * _AGES[found[2]])
    except OverflowError as problem:
        raise Invalid(f'lateness = "{text}" is longer than there is time', 'lateness = "3d"', field="lateness") from problem
    return timedelta(days=-(-length // timedelta(days=1))) if kind == "date" else length


def _shown(address: str) -> str:
    """Return an address without what may be a secret in it."""
    scheme, sign, rest = address.partition("://")
    return f"{scheme}{sign}{rest.partition('?')[0].rpartition('@')[2]}" if sign else address
