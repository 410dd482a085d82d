"""Files on web servers, and pages of JSON: had whole, or not at all."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from msgspec import Raw

from palan.data import paged
from palan.data.sources import Mark, Source
from palan.engines.servers import CutOff, Server, connected, is_html, kind_of, with_params
from palan.errors import Invalid, PalanError
from palan.flows.deliveries import SETTLED, Seen
from palan.flows.fetch import LOOK_EVERY, room

if TYPE_CHECKING:
    import httpx

PAGE = 256 << 20
"""Bytes that one page may have."""
LONGEST = 6 * 3600.0
"""Seconds that all pages together may take."""
EMPTY = 1000
"""Pages without a row that may follow one another."""

_LINES = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines", "application/jsonlines", "application/json-seq")
_FILES = {"text/csv": "csv", "application/csv": "csv", "application/vnd.apache.parquet": "parquet", "application/vnd.apache.arrow.file": "arrow"}
_FILES["application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"] = "xlsx"
_FILES |= {"application/gzip": "json", "application/x-gzip": "json"}
_OFFSETS = re.compile(r"offset|skip|start", re.IGNORECASE)


def download(source: Source, to: Path, before: Seen | None, data: str) -> Seen | None:
    """Get one file into `to`; None when it is what it was `before`, as far as the server tells, or its bytes do.

    Raises:
        PalanError: it cannot be had, or not whole.
    """
    with connected(source, data) as server, to.open("wb") as file:
        found = _File(server, file, before)
        if not server.get(server.home, found.take, found.asks, found.gained):
            return None
        now = Seen(found.size, found.changed, time.time_ns(), found.sha.hexdigest(), found.etag)
    same = before is not None and (before.content, before.etag, before.changed) == (now.content, now.etag, now.changed)
    return None if same else now


def pages(source: Source, since: Mark | None, to: Path, data: str, most: int | None = None) -> int:
    """Write the rows of a JSON API to `to`, one object a line, as they came; return how many. After `most` rows no page is asked for.

    Raises:
        PalanError: a page cannot be had, is no JSON, or does not say which list the rows are, or the pages do not end.
    """
    with connected(source, data, since) as server, to.open("wb") as file:
        walk = _Walk(server, file)
        url: httpx.URL | None = walk.first()
        end = time.monotonic() + LONGEST
        while url is not None and (most is None or walk.rows < most):
            if time.monotonic() > end:
                raise server.wrong(f"is followed by more after {LONGEST / 3600:g} hours and {walk.rows:,} rows", f"ask for less at a time: cursor, start or params in [data.{data}]")
            server.page += 1
            walk.asked = url
            url = server.get(url, walk.take, lambda: {"Accept": "application/json, application/x-ndjson;q=0.9, */*;q=0.1", "Accept-Encoding": "gzip"})
        return walk.rows


# --- one file ------------------------------------------------------------------------------------------------------


class _File:
    """A file that is being fetched, over as many connections as it takes."""

    def __init__(self, server: Server, file: IO[bytes], before: Seen | None) -> None:
        self._server, self._file, self._before = server, file, before
        self._begin()

    def _begin(self) -> None:
        self.size, self.changed, self.etag, self.sha = 0, 0, "", hashlib.sha256()
        self._total = -1
        self._goes_on = False  # the server can be asked for the rest
        self._file.seek(0)
        self._file.truncate()

    def gained(self) -> int:
        return self.size if self._goes_on else 0

    def asks(self) -> Mapping[str, str]:
        # bytes as they lie there: only of these can the rest be asked for, and the tag is of them
        headers = {"Accept-Encoding": "identity"}
        if self.gained():
            return {**headers, "Range": f"bytes={self.size}-", "If-Range": self.etag}
        if self._before is not None and self._before.etag:
            headers["If-None-Match"] = self._before.etag
        elif self._before is not None and self._before.changed:
            headers["If-Modified-Since"] = format_datetime(datetime.fromtimestamp(self._before.changed // 1_000_000_000, UTC), usegmt=True)
        return headers

    def take(self, answer: httpx.Response) -> bool:
        """Take in what came; False if there is nothing new."""
        if answer.status_code == 304 and self._before is not None and not self.gained():
            return False
        if answer.status_code == 206 and self.gained():
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("content-range", "").strip())
            if not found or int(found[1]) != self.size:
                self._begin()
                raise CutOff("the rest is not what was asked for")
        elif answer.status_code == 416 and self.gained():
            self._begin()
            raise CutOff("the rest is not there any more")
        elif answer.status_code in (200, 203):
            self._begin()
            self._described(answer)
        else:
            raise self._server.refused(answer)
        self._written(answer)
        return True

    def _described(self, answer: httpx.Response) -> None:
        self.etag = answer.headers.get("etag", "")
        changed, now = _since_1970(answer.headers.get("last-modified", "")), _since_1970(answer.headers.get("date", ""))
        # a time of whole seconds says nothing of what is written in the same one
        self.changed = changed if self.etag or changed < (now or time.time_ns()) - SETTLED else 0
        length = answer.headers.get("content-length", "")
        if self._is_zipped or answer.headers.get("content-encoding", "identity").lower() == "identity":
            self._total = int(length) if length.isascii() and length.isdigit() else -1
            self._goes_on = self.etag.startswith('"') and answer.headers.get("accept-ranges", "").lower() != "none"

    @property
    def _is_zipped(self) -> bool:
        """Tell whether the file is compressed itself: some servers then say so of the way it is sent."""
        return self._server.home.path.lower().endswith(".gz")

    def _written(self, answer: httpx.Response) -> None:
        server, looked = self._server, self.size
        room(Path(self._file.name), max(0, self._total - self.size))
        for chunk in server.flowing(answer, as_is=self._is_zipped):
            if not self.size and is_html(chunk):
                raise server.wrong(f"is a page to look at, not a file: {server.shown(chunk)}", f"check source and headers in [data.{server.data}]")
            self._file.write(chunk)
            self.sha.update(chunk)
            self.size += len(chunk)
            if self.size > looked + LOOK_EVERY:
                looked = self.size
                room(Path(self._file.name), 0)
        if self._total >= 0 and self.size != self._total:
            raise CutOff("it was cut off")


def _since_1970(text: str) -> int:
    """Return the nanoseconds of a time as a server writes it; 0 of what is none."""
    try:
        found = parsedate_to_datetime(text)
        return int(found.replace(tzinfo=found.tzinfo or UTC).timestamp()) * 1_000_000_000
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0


# --- pages of JSON -------------------------------------------------------------------------------------------------


class _Walk:
    """The way through the pages of an API, one after another."""

    def __init__(self, server: Server, file: IO[bytes]) -> None:
        self._server, self._file, self._source = server, file, server.source
        self.rows = 0
        self.asked = server.home
        self._records: str | None = self._source.records or None  # None: not yet found out
        self._known: set[str] = set()
        self._last = b""
        self._empty = 0
        self._place = 0

    @property
    def _numbered(self) -> bool:
        return bool(self._source.page and not self._source.next)

    def first(self) -> httpx.URL:
        home, page = self._server.home, self._source.page
        if not self._numbered:
            return self._new(home)
        given = home.params.get(page, "")
        self._place = int(given) if given.isascii() and given.isdigit() else 0 if _OFFSETS.search(page) else 1
        return self._new(with_params(home, {page: str(self._place)}))

    def _new(self, url: httpx.URL) -> httpx.URL:
        """Return an address, unless it was asked before: then the pages would never end."""
        if str(url) in self._known:
            raise self._endless("names a next page that was there before")
        self._known.add(str(url))
        return url

    def _endless(self, what: str) -> PalanError:
        return self._server.wrong(f"{what}: the pages would never end", f"check next and page in [data.{self._server.data}]: does the server know them?")

    def take(self, answer: httpx.Response) -> httpx.URL | None:
        """Write the rows of a page, and return the address of the next one."""
        server = self._server
        if answer.status_code == 204 or (answer.status_code == 404 and server.page > 1 and self._numbered):
            return None
        if answer.status_code not in (200, 203):
            raise server.refused(answer)
        body = self._body(answer)
        try:
            found = self._found(answer, body)
            text = paged.lines(found.rows)
            digest = hashlib.blake2b(text, digest_size=16).digest()
            if found.rows and digest == self._last:
                raise self._endless("has the same rows as the page before")
            self._empty = 0 if found.rows else self._empty + 1
            if self._empty > EMPTY:
                raise self._endless(f"is one of {EMPTY:,} without a row")
            self._last = digest
            if found.rows:
                self._records = found.path
            room(Path(self._file.name), len(body))
            self._file.write(text)
            self.rows += len(found.rows)
            return self._next(answer, body, len(found.rows))
        except Invalid as problem:
            said = f": {server.shown(body)}" if body and problem.field in ("body", "records") else ""
            raise server.wrong(f"{problem.what}{said}", f"{problem.hint or 'look at what it answers'} in [data.{server.data}]") from None

    def _body(self, answer: httpx.Response) -> bytes:
        server, body = self._server, bytearray()
        if (ending := _FILES.get(kind_of(answer))) is not None:
            raise server.wrong(f"is no page of JSON but {kind_of(answer)}", f'format = "{ending}" in [data.{server.data}]')
        for chunk in server.flowing(answer):
            body += chunk
            if len(body) > PAGE:
                raise server.wrong(f"has more than {PAGE >> 20:,} MB", f'ask for less at a time in params of [data.{server.data}], or for lines: format = "ndjson"')
        if is_html(body):
            raise server.wrong(f"is a page to look at, not JSON: {server.shown(bytes(body))}", f"check source and headers in [data.{server.data}]")
        return bytes(body).removeprefix(b"\xef\xbb\xbf")

    def _found(self, answer: httpx.Response, body: bytes) -> paged.Page:
        if kind_of(answer) in _LINES:
            return paged.Page([Raw(line) for line in body.replace(b"\x1e", b"").split(b"\n") if line.strip()], "")
        return paged.page(body, self._records)

    def _next(self, answer: httpx.Response, body: bytes, rows: int) -> httpx.URL | None:
        source, server = self._source, self._server
        if source.next:
            name = paged.token(body, source.next)
            if not name:
                return None
            return self._new(with_params(server.home, {source.page: name}) if source.page else server.following(self.asked, name))
        if source.page:
            self._place += rows if _OFFSETS.search(source.page) else 1
            return self._new(with_params(server.home, {source.page: str(self._place)})) if rows else None
        if (link := answer.links.get("next", {}).get("url")) is not None:
            return self._new(server.following(self.asked, link))
        if server.page == 1 and kind_of(answer) not in _LINES and (told := paged.more(body, self.rows)):
            raise server.wrong(f"says that there is more ({', '.join(told)}), and nothing says how to ask for it", f'next = "{told[0]}", or page = "page", in [data.{server.data}]')
        return None
