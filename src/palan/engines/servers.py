"""Web servers that are asked for what they have (extra `http`): again where that helps, and within bounds of time.

What `headers`, `params` and the address hold of variables is sent to the server that `source` names and to no other, and
stands in no error and no log.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from html import escape
from typing import TypeVar
from urllib.parse import quote, quote_plus, unquote, urlencode

import msgspec

from palan.data.sources import SINCE, Mark, Source, environment, mark_text, variables_in
from palan.errors import MissingExtra, PalanError

try:
    import httpx
except ImportError as error:
    raise MissingExtra("httpx", "http", "a source on a web server") from error

T = TypeVar("T")

CutOff = httpx.RemoteProtocolError
"""What came is not all, or not what was asked for: asking again may help."""

CONNECT_SECONDS = 10.0
SILENT_SECONDS = 60.0
"""How long a server may send nothing."""
SLOWEST = 1000
"""Bytes a second that have to come in each such time."""

TRIES = 5
"""How often one request is made, when what went wrong may pass."""
PAUSE = 0.5
"""Seconds before the second try; each further one waits twice as long."""
PATIENCE = 120.0
"""Seconds that all tries of one request may take, whatever the server asks for."""
PROGRESS = 1 << 20
"""Bytes that have to come before an answer may be broken off as often again."""

REDIRECTS = 5
CHUNK = 1 << 20
SHOWN = 200
"""Characters of an answer that an error shows."""
SECRET = 8
"""Characters from which on the value of a variable may be told from a word that stands there by chance."""

_FINAL = (501, 505, 511)
_LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy", "httpcore.socks")  # tell addresses and headers, with what is secret in them
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy")


@contextmanager
def connected(source: Source, data: str, since: Mark | None = None) -> Iterator[Server]:
    """Give the server of a source, to be asked for rows from `since` on.

    Raises:
        PalanError: a variable that the source names is not set, or what it makes cannot be sent.
    """
    try:
        trusted = _trusted(os.environ.get("SSL_CERT_FILE", ""), os.environ.get("SSL_CERT_DIR", ""))
        client = httpx.Client(verify=trusted, timeout=httpx.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS), headers={"User-Agent": "palan"}, follow_redirects=False)
    except (OSError, ValueError, ImportError, httpx.InvalidURL):
        raise PalanError(f'data "{data}": the proxy or the certificates that the environment names cannot be used', f"check SSL_CERT_FILE, {', '.join(_PROXIES[:3])}") from None
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for each in loggers:
        each.addFilter(_unlogged)
    try:
        with client:
            yield Server(source, data, client, since)
    finally:
        for each in loggers:
            each.removeFilter(_unlogged)


@cache
def _trusted(file: str, folder: str) -> ssl.SSLContext:
    """Return which certificates are trusted, as these variables have it: to read them takes longer than many a request."""
    return httpx.create_ssl_context()


def _unlogged(record: logging.LogRecord) -> bool:
    return False


class Server:
    """The server that a source names, and whoever it sends us on to."""

    def __init__(self, source: Source, data: str, client: httpx.Client, since: Mark | None) -> None:
        self.source, self.data, self._client = source, data, client
        self.page = 0
        where = f"[data.{data}]"
        told = [source.address, *source.headers.values(), *source.params.values()]
        self._variables = list(dict.fromkeys(name for text in told for name in variables_in(text)))
        self._secrets = {os.environ[name] for name in self._variables if os.environ.get(name)}
        self._headers = {name: environment(value, os.environ, where) for name, value in source.headers.items()}
        for name, value in self._headers.items():
            if not (name + value).isascii() or not (name + value).isprintable() or value != value.strip():
                raise PalanError(f"{where} headers: what {name} would be cannot be sent", f"check {', '.join(self._variables) or name}: a line end, a blank or an accent stands in it")
        begin = "" if since is None else mark_text(since)
        # what asks for rows from a moment on is left out where there is none yet
        params = {name: environment(value, os.environ, where).replace(SINCE, begin) for name, value in source.params.items() if begin or SINCE not in value}
        self._keys = {name: params[name] for name, value in source.params.items() if name in params and variables_in(value)}
        self.home = with_params(self._address(begin), params)

    def _address(self, begin: str) -> httpx.URL:
        path, mark, query = self.source.address.partition("?")
        where = f"source of data {self.data}"
        if SINCE in path and not begin:
            raise PalanError(f"{where} asks for rows from {SINCE}, and nothing says where that begins", 'start = "2024-01-01"')
        parts = [each for each in query.split("&") if begin or SINCE not in each]
        quoted = {name: quote(value, safe="") for name, value in os.environ.items()}
        text = environment(path, os.environ, where) + mark + environment("&".join(parts), quoted, where)
        try:
            return httpx.URL(text.replace(SINCE, quote(begin, safe="")))
        except httpx.InvalidURL:
            raise PalanError(f"{where} is no address", 'source = "https://host/path"') from None

    def wrong(self, what: str, hint: str = "") -> PalanError:
        page = f"page {self.page} of " if self.page else ""
        return PalanError(f"{page}{self.source.shown} {what}", hint or f"palan ingest {self.data}")

    def get(self, url: httpx.URL, take: Callable[[httpx.Response], T], ask: Callable[[], Mapping[str, str]], gained: Callable[[], int] = lambda: 0) -> T:
        """Get an answer and let it be taken; again where what went wrong may pass. `gained` bytes are not asked for again.

        Raises:
            PalanError: there is no answer, or none that can be taken.
        """
        tries, begun, had = 0, time.monotonic(), gained()
        while True:
            asked = 0.0
            try:
                with self._answer(url, ask()) as answer:
                    if not _may_pass(answer.status_code):
                        return take(answer)
                    asked, problem = _asked_to_wait(answer), self.refused(answer)
            except httpx.InvalidURL:
                raise self.wrong("is redirected to what is no address of a web server", f"check source in [data.{self.data}]") from None
            except httpx.TransportError as error:
                problem, passes = self._failed(error)
                if not passes:
                    raise problem from None
            if gained() >= had + PROGRESS:
                tries, begun, had = 0, time.monotonic(), gained()
            wait = max(PAUSE * 2**tries, asked)
            tries += 1
            if tries == TRIES or time.monotonic() + wait > begun + PATIENCE:
                raise problem
            time.sleep(wait)

    @contextmanager
    def _answer(self, url: httpx.URL, ask: Mapping[str, str]) -> Iterator[httpx.Response]:
        for _ in range(REDIRECTS + 1):
            headers = httpx.Headers(dict(ask))
            headers.update(self._headers if is_same(self.home, url) else {})
            answer = self._client.send(self._client.build_request("GET", url, headers=headers), stream=True)
            try:
                if not answer.has_redirect_location:
                    yield answer
                    return
                url = self._redirected(url, answer.headers["location"])
            finally:
                answer.close()
        raise self.wrong(f"is redirected more than {REDIRECTS} times", f"check source in [data.{self.data}]")

    def _redirected(self, url: httpx.URL, to: str) -> httpx.URL:
        found = self.joined(url, to, "is redirected")
        if url.scheme == "https" and found.scheme == "http":
            raise self.wrong("is redirected from https to http, where everybody could read along", f"check source in [data.{self.data}]")
        secrets = [each for each in self._secrets if len(each) >= SECRET]
        if not is_same(self.home, found) and any(secret in text for secret in secrets for text in (str(found), unquote(str(found)))):
            raise self.wrong("is redirected to another host, and would take a secret along", "send it in headers, not in params")
        return found

    def following(self, url: httpx.URL, to: str) -> httpx.URL:
        """Return the address of the next page, as an answer from `url` names it.

        Raises:
            PalanError: it is on another host.
        """
        found = self.joined(url, to, "names a next page")
        if found.scheme == "http" and self.home.scheme == "https" and found.host == self.home.host:
            found = found.copy_with(scheme="https", port=self.home.port)  # a server behind another one does not know better
        if not is_same(self.home, found):
            raise self.wrong("names a next page on another host", f"check source and next in [data.{self.data}]")
        return with_params(found, {name: value for name, value in self._keys.items() if name not in found.params})

    def joined(self, url: httpx.URL, to: str, how: str) -> httpx.URL:
        try:
            found = url.join(to)
        except (httpx.InvalidURL, ValueError):
            found = httpx.URL("")
        if found.scheme not in ("http", "https") or not found.host:
            raise self.wrong(f"{how} to what is no address of a web server" if how.startswith("is") else f"{how} that has no address", f"check source and next in [data.{self.data}]")
        return found

    def flowing(self, answer: httpx.Response, *, as_is: bool = False) -> Iterator[bytes]:
        """Yield the body in pieces of bounded size, expanded if it was compressed on the way.

        Raises:
            PalanError: it is compressed in a way that nobody asked for.
            CutOff: it ends before its end, or comes so slowly that it never would.
        """
        coding = answer.headers.get("content-encoding", "identity").strip().lower()
        if coding in ("identity", "") or as_is:
            yield from _in_time(answer)
            return
        if coding not in ("gzip", "x-gzip"):
            raise self.wrong(f"comes as {self.scrubbed(coding)[:40]!r}, which was not asked for", "have it sent as it is, or as gzip")
        unzip = zlib.decompressobj(31)
        try:
            for chunk in _in_time(answer):
                while chunk:
                    if unzip.eof:  # there may be several parts
                        unzip = zlib.decompressobj(31)
                    if text := unzip.decompress(chunk, CHUNK):
                        yield text
                    chunk = unzip.unconsumed_tail or unzip.unused_data
            while not unzip.eof and (text := unzip.decompress(b"", CHUNK)):
                yield text
        except zlib.error:
            raise CutOff("the compressed body is damaged") from None
        if not unzip.eof:
            raise CutOff("the compressed body was cut off")

    def _failed(self, error: httpx.TransportError) -> tuple[PalanError, bool]:
        """Return what is wrong with the connection, and whether it may pass."""
        text = self.scrubbed(str(error))[:SHOWN]
        if found := re.search(r"certificate verify failed: ([^(]+)", text):
            return self.wrong(f"has a certificate that is not trusted: {found[1].strip()}", "export SSL_CERT_FILE=/path/to/ca.pem, if it is of an authority of your own"), False
        if "location header" in text:
            return self.wrong("is redirected to what is no address of a web server", f"check source in [data.{self.data}]"), False
        if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
            return self.wrong("cannot be asked for like that", f"check source and headers in [data.{self.data}]"), False
        proxies = [name for name in _PROXIES if os.environ.get(name)]
        check = f"check {', '.join(['the network', *proxies])}, then: palan ingest {self.data}"
        if isinstance(error, httpx.TimeoutException):
            seconds = CONNECT_SECONDS if isinstance(error, httpx.ConnectTimeout) else SILENT_SECONDS
            return self.wrong(text if text.startswith("sends") else f"does not answer within {seconds:g} s", check), True
        if isinstance(error, httpx.ProxyError):
            return self.wrong(f"is not let through by the proxy ({text})", check), False
        if re.search(r"Name or service not known|nodename nor servname|No address associated|getaddrinfo", text):
            return self.wrong("is on a host that nobody knows", f"check source in [data.{self.data}] and the network"), False
        if isinstance(error, httpx.ConnectError):
            return self.wrong(f"cannot be reached: {text}", check), True
        return self.wrong("was broken off before all of it came", check), True

    def refused(self, answer: httpx.Response) -> PalanError:
        """Return what a status says that is none of success."""
        status, data, body = answer.status_code, self.data, self._excerpt(answer)
        hint = f"palan ingest {data}, later"
        if status in (401, 403):
            hint = f"check {', '.join(self._variables)}" if self._variables else f'headers = {{ Authorization = "Bearer $API_TOKEN" }} in [data.{data}], and export API_TOKEN=...'
        elif status in (404, 410) or 300 <= status < 400:
            hint = f"check source in [data.{data}]"
        elif status == 429 and (seconds := _asked_to_wait(answer)):
            hint = f"it asks to wait {seconds:,.0f} s, then: palan ingest {data}"
        elif 400 <= status < 500 and not _may_pass(status):
            hint = f"check source and params in [data.{data}]"
        reason = f" {answer.reason_phrase}" if answer.reason_phrase.isprintable() else ""
        return self.wrong(f"answered {status}{self.scrubbed(reason)[:40].rstrip()}{f': {body}' if body else ''}", hint)

    def _excerpt(self, answer: httpx.Response) -> str:
        """Return the beginning of an answer, if it is text; of a page its words."""
        kind = kind_of(answer)
        if not (kind.startswith("text/") or kind.endswith(("json", "xml"))):
            return ""
        body = b""
        with suppress(httpx.HTTPError, PalanError):  # what came is enough
            for chunk in self.flowing(answer):
                body += chunk
                if len(body) > 16 * 1024:
                    break
        return self.shown(body)

    def shown(self, body: bytes) -> str:
        """Return the beginning of a body as an error shows it: of a page of HTML its words."""
        text = self.scrubbed(body[: 32 * 1024].decode(errors="replace"))
        if is_html(body):
            text = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", text, flags=re.IGNORECASE | re.DOTALL)
        text = " ".join("".join(each if each.isprintable() else " " for each in text).split())
        return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"

    def scrubbed(self, text: str) -> str:
        """Return a text of the server's without the secrets, however it writes them."""
        forms = {form for each in self._secrets for form in (each, quote(each, safe=""), quote(each), quote_plus(each), escape(each), msgspec.json.encode(each).decode()[1:-1])}
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, "***")
        return text


def is_same(home: httpx.URL, url: httpx.URL) -> bool:
    """Tell whether what is meant for one address may be sent to the other: the same server, or itself behind https."""
    if (home.host, home.scheme, _port(home)) == (url.host, url.scheme, _port(url)):
        return True
    return home.host == url.host and (home.scheme, _port(home), url.scheme, _port(url)) == ("http", 80, "https", 443)


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def with_params(url: httpx.URL, params: Mapping[str, str]) -> httpx.URL:
    """Return an address with these parameters in the place of those of the same name; the others stay as they are written."""
    if not params:
        return url
    parts = [each for each in url.query.decode("ascii").split("&") if each and unquote(each.partition("=")[0]) not in params]
    return url.copy_with(query="&".join([*parts, urlencode(params, quote_via=quote)]).encode("ascii"))


def kind_of(answer: httpx.Response) -> str:
    """Return what a server says that its answer is."""
    return str(answer.headers.get("content-type", "")).partition(";")[0].strip().lower()


def is_html(body: bytes | bytearray) -> bool:
    """Tell whether this is a page to look at, by its first bytes."""
    return body[:400].removeprefix(b"\xef\xbb\xbf").lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


def _may_pass(status: int) -> bool:
    return status in (408, 425, 429) or (status >= 500 and status not in _FINAL)


def _asked_to_wait(answer: httpx.Response) -> float:
    """Return the seconds after which the server wants to be asked again."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        then = parsedate_to_datetime(text)
        return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0


def _in_time(answer: httpx.Response) -> Iterator[bytes]:
    """Yield the body as it comes, unless that is hardly at all."""
    begun, came = time.monotonic(), 0
    for chunk in answer.iter_raw():
        came += len(chunk)
        if (passed := time.monotonic() - begun) > SILENT_SECONDS:
            if came < SLOWEST * passed:
                raise httpx.ReadTimeout(f"sends less than {SLOWEST:,} bytes a second")
            begun, came = time.monotonic(), 0
        yield chunk
