"""Files and pages of JSON from real web servers that fail in every way: had whole, each row once, and no secret told."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from palan.data import paged, sources
from palan.data.sources import Source
from palan.errors import Invalid, PalanError
from palan.flows import contracts, fetch, tables
from palan.flows import web as flow
from palan.flows.fetch import _whole
from palan.flows.ingest import ingest
from palan.flows.project import Project, open_project

pytest.importorskip("httpx", reason='no httpx: pip install "palan[http]"')
from palan.engines import servers

SOURCES = Path(__file__).resolve().parent.parent / "src"
TOKEN = "correct horse/battery+staple"


class Request:
    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self.headers = handler.headers
        self.path = urlsplit(handler.path).path
        self.params = dict(parse_qsl(urlsplit(handler.path).query, keep_blank_values=True))
        self.url = handler.path


class Answer:
    """What is sent: `cut` bytes of the body at most, and it `waits` before each of its pieces."""

    def __init__(self, body: bytes | str = b"", status: int = 200, cut: int | None = None, waits: float = 0, chunked: bool = False, **headers: str) -> None:
        self.body = body.encode() if isinstance(body, str) else body
        self.status, self.cut, self.waits, self.chunked = status, cut, waits, chunked
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


Says = Callable[[Request], Answer]


class Web:
    """A server of this process: what each path says, and what it was asked."""

    def __init__(self) -> None:
        self.says: dict[str, Says] = {}
        self.asked: list[Request] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                request = Request(self)
                web.asked.append(request)
                answer = web.says.get(request.path, lambda _: Answer("nothing here", 404))(request)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                elif answer.status != 304 and "Content-Length" not in answer.headers:
                    self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                body = answer.body if answer.cut is None else answer.body[: answer.cut]
                try:
                    for place in range(0, len(body), 1 if answer.waits else 65536):
                        if answer.waits:
                            time.sleep(answer.waits)
                        piece = body[place : place + (1 if answer.waits else 65536)]
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if answer.chunked else piece)
                        self.wfile.flush()
                    if answer.chunked and answer.cut is None:
                        self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    self.close_connection = True
                if answer.cut is not None:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, address: Any) -> None:
                """Nothing: that the other side leaves is what is tested."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def servers_of_module() -> Iterator[tuple[Web, Web]]:
    first, second = Web(), Web()
    yield first, second
    first.close()
    second.close()


@pytest.fixture
def web(servers_of_module: tuple[Web, Web], monkeypatch: pytest.MonkeyPatch) -> Web:
    for each in servers_of_module:
        each.says, each.asked = {}, []
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(servers, "PAUSE", 0.005)
    monkeypatch.setenv("API_TOKEN", TOKEN)
    return servers_of_module[0]


@pytest.fixture
def other(web: Web, servers_of_module: tuple[Web, Web]) -> Web:
    """A server on another host, as far as addresses go."""
    return servers_of_module[1]


TOML = """
[data.orders]
source = "http://127.0.0.1:{port}{path}"
key = ["id"]
{more}
[data.orders.columns]
id = "int"
price = "float"
"""


@contextmanager
def shop(root: Path, web: Web, path: str, more: str = "", columns: str = "") -> Iterator[Project]:
    (root / "palan.toml").write_text(TOML.format(port=web.port, path=path, more=more) + columns)
    project = open_project(root)
    try:
        yield project
    finally:
        project.store.records.close()


def source(web: Web, path: str, more: str = "") -> Source:
    return sources.parse("orders", tomllib.loads(TOML.format(port=web.port, path=path, more=more))["data"]["orders"])


def taken(project: Project) -> list[tuple[Any, ...]]:
    version = tables.latest(project, "orders")
    return sorted(tables.read(project, version).select("id", "price").rows()) if version else []


def csv(rows: int, begin: int = 0) -> bytes:
    return ("id,price\n" + "".join(f"{id},{id / 4}\n" for id in range(begin, begin + rows))).encode()


def given(rows: int, begin: int = 0) -> list[tuple[int, float]]:
    return [(id, id / 4) for id in range(begin, begin + rows)]


def refused(asked: Project | Callable[[], object], what: str) -> PalanError:
    with pytest.raises(PalanError) as caught:
        ingest(asked, "orders") if isinstance(asked, Project) else asked()
    error = caught.value
    assert re.search(what, str(error)), str(error)
    assert error.hint and "\n" not in error.what and TOKEN not in str(error) and "horse" not in str(error), str(error)
    return error


# --- files ---------------------------------------------------------------------------------------------------------


def file_of(body: bytes, etag: str = "", changed: str = "", **headers: str) -> Says:
    """A file as servers have it: with a tag, a time, and parts of it."""

    def says(request: Request) -> Answer:
        told = {**({"ETag": etag} if etag else {}), **({"Last_Modified": changed} if changed else {}), **headers}
        if etag and request.headers.get("If-None-Match") == etag:
            return Answer(status=304, **told)
        if changed and not etag and request.headers.get("If-Modified-Since") == changed:
            return Answer(status=304, **told)
        if (part := request.headers.get("Range")) and request.headers.get("If-Range") == etag:
            begin = int(part.removeprefix("bytes=").removesuffix("-"))
            return Answer(body[begin:], 206, Content_Range=f"bytes {begin}-{len(body) - 1}/{len(body)}", **told)
        return Answer(body, **told)

    return says


@pytest.mark.parametrize("how", [{"etag": '"1"'}, {"etag": 'W/"1"'}, {"changed": "Mon, 01 Jan 2024 10:00:00 GMT"}, {}])
def test_a_file_is_taken_in_once_and_again_where_it_changes(tmp_path: Path, web: Web, how: dict[str, str]) -> None:
    web.says["/orders.csv"] = file_of(csv(3), **how)
    with shop(tmp_path, web, "/orders.csv") as project:
        first = ingest(project, "orders")[0]
        assert (first["total"], taken(project)) == (3, given(3))
        assert ingest(project, "orders")[0]["text"] == "nothing new"
        assert len(web.asked) == 2
        if how:
            assert web.asked[1].headers.get("If-None-Match" if "etag" in how else "If-Modified-Since") == next(iter(how.values()))
        web.says["/orders.csv"] = file_of(csv(5).replace(b"1,0.25", b"1,9.5"), **{"etag": '"2"'} if "etag" in how else {})
        report = ingest(project, "orders")[0]
        assert (report["rows"], report["corrections"], report["total"]) == (2, 1, 5)
        assert not list((tmp_path / ".palan" / "spool").iterdir())


def test_a_time_of_the_same_second_is_not_trusted(tmp_path: Path, web: Web) -> None:
    changed = format_datetime(datetime.now(UTC), usegmt=True)
    web.says["/orders.csv"] = file_of(csv(3), changed=changed)
    with shop(tmp_path, web, "/orders.csv") as project:
        ingest(project, "orders")
        web.says["/orders.csv"] = file_of(csv(4), changed=changed)
        assert ingest(project, "orders")[0]["total"] == 4


def test_a_body_that_is_cut_is_asked_for_from_there_and_never_taken_in_part(tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "PROGRESS", 1)
    whole = file_of(csv(30_000), '"1"')
    cuts = iter([100_000, 50_000, 0, 7, 1, 80_000])

    def says(request: Request) -> Answer:
        answer = whole(request)
        answer.cut = next(cuts, None)
        return answer

    web.says["/orders.csv"] = says
    with shop(tmp_path, web, "/orders.csv") as project:
        assert ingest(project, "orders")[0]["total"] == 30_000
        assert web.asked[1].headers["Range"] == "bytes=100000-" and web.asked[1].headers["If-Range"] == '"1"'
        assert len(web.asked) == 7 and taken(project) == given(30_000)
        assert [each.headers.get("Range") for each in web.asked[3:]] == ["bytes=150000-", "bytes=150007-", "bytes=150008-", "bytes=230008-"]


def test_a_file_that_is_replaced_between_two_parts_is_had_anew(tmp_path: Path, web: Web) -> None:
    versions = [Answer(csv(3000), ETag='"1"', cut=9000), Answer(csv(4000, 7), ETag='"2"')]
    web.says["/orders.csv"] = lambda _: versions.pop(0)
    with shop(tmp_path, web, "/orders.csv") as project:
        assert ingest(project, "orders")[0]["total"] == 4000
        assert taken(project) == given(4000, 7)


def test_a_body_that_is_always_cut_is_refused_and_what_was_there_stays(tmp_path: Path, web: Web) -> None:
    web.says["/orders.csv"] = file_of(csv(2))
    with shop(tmp_path, web, "/orders.csv") as project:
        ingest(project, "orders")
        for how in ({}, {"chunked": True}):
            web.says["/orders.csv"] = lambda _, how=how: Answer(csv(5000), cut=20_000, **how)
            web.asked.clear()
            refused(project, "broken off before all of it came")
            assert len(web.asked) == servers.TRIES and taken(project) == given(2)
        web.says["/orders.csv"] = lambda _: Answer(csv(5000), chunked=True)
        assert ingest(project, "orders")[0]["total"] == 5000


def test_what_may_pass_is_asked_again_when_the_server_wants(tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    answers = [Answer("busy", 408), Answer("busy", 429, Retry_After="7"), Answer("busy", 500, Retry_After=soon), Answer("busy", 503), Answer(csv(3))]
    web.says["/orders.csv"] = lambda _: answers.pop(0)
    waits: list[float] = []
    monkeypatch.setattr(servers.time, "sleep", waits.append)
    with shop(tmp_path, web, "/orders.csv") as project:
        assert ingest(project, "orders")[0]["total"] == 3
    assert waits[:2] == [0.005, 7.0] and 95 < waits[2] <= 100 and waits[3] == 0.04


NO_FILES = [
    (Answer("<html>Sorry, <b>closed</b><script>x</script></html>", 500, Content_Type="text/html"), "answered 500 Internal Server Error: Sorry, closed\n", 5),
    (Answer("slow down", 429, Retry_After="3600"), "answered 429 .*\nhint: it asks to wait 3,600 s", 1),
    (Answer("no", 501), "answered 501", 1),
    (Answer(json.dumps({"error": f"{TOKEN} is unknown"}), 401, Content_Type="application/json"), r"answered 401 Unauthorized: .*\*\*\* is unknown.*\nhint: check API_TOKEN", 1),
    (Answer("gone", 404), "answered 404", 1),
    (Answer("<!DOCTYPE html><title>Log in</title> please", Content_Type="text/html"), "is a page to look at, not a file: Log in please", 1),
    (Answer(csv(3), Content_Encoding="br"), "comes as 'br', which was not asked for", 1),
    (Answer(gzip.compress(csv(3))[:-9], Content_Encoding="gzip"), "broken off before all of it came", 5),
    (Answer(csv(3), Content_Length="3000000000000000"), "cannot be written: .* do not fit into", 1),
    (Answer(status=206, body=csv(3)), "answered 206", 1),
    (Answer(status=304), "answered 304", 1),
    (Answer(status=301, Location="/orders.csv"), "redirected more than 5 times", 6),
    (Answer(status=301, Location="file:///etc/passwd"), "no address of a web server", 1),
    (Answer(status=301, Location="mailto:a@shop.example"), "no address of a web server", 1),
]


def test_what_is_no_file_is_told_and_nothing_is_taken_in(tmp_path: Path, web: Web) -> None:
    secret = 'headers = { Authorization = "Bearer $API_TOKEN" }'
    asked, to = source(web, "/orders.csv", secret), tmp_path / "file"
    for answer, what, tries in NO_FILES:
        web.says["/orders.csv"] = lambda _, answer=answer: answer
        web.asked.clear()
        refused(lambda: _whole(to, lambda temp: flow.download(asked, temp, None, "orders")), what)
        assert (len(web.asked), list(tmp_path.iterdir())) == (tries, []), what
        assert {each.headers["Authorization"] for each in web.asked} == {f"Bearer {TOKEN}"}
    with shop(tmp_path, web, "/orders.csv", secret) as project:
        web.says["/orders.csv"] = lambda _: Answer(f"no {TOKEN} here", 403, Content_Type="text/plain")
        refused(project, r"answered 403 Forbidden: no \*\*\* here")
        web.says["/orders.csv"] = lambda _: Answer(b"")
        refused(project, "the file is empty")
        assert taken(project) == []
        web.says["/orders.csv"] = file_of(csv(3))
        assert ingest(project, "orders")[0]["total"] == 3
        assert not any(b"horse" in path.read_bytes() for path in (tmp_path / ".palan").rglob("*") if path.is_file())


def test_a_server_that_says_nothing_or_next_to_nothing_is_left(tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "SILENT_SECONDS", 0.15)
    monkeypatch.setattr(servers, "TRIES", 2)
    web.says["/orders.csv"] = lambda _: Answer(csv(1000), waits=0.01)
    with shop(tmp_path, web, "/orders.csv") as project:
        refused(project, "sends less than 1,000 bytes a second")
        web.says["/orders.csv"] = lambda _: Answer(csv(1000), waits=0.6, cut=1)
        refused(project, "does not answer within 0.15 s")


def test_a_server_that_is_not_there_is_told(tmp_path: Path, web: Web) -> None:
    with socket.socket() as taken_port:
        taken_port.bind(("127.0.0.1", 0))
        (tmp_path / "palan.toml").write_text(TOML.format(port=taken_port.getsockname()[1], path="/orders.csv", more=""))
        project = open_project(tmp_path)
        refused(project, "cannot be reached: .*[Cc]onnection refused")
        project.store.records.close()


def test_a_file_that_is_compressed_on_the_way_or_in_itself_is_read(tmp_path: Path, web: Web) -> None:
    web.says["/orders.csv"] = lambda _: Answer(gzip.compress(csv(1000)) + gzip.compress(csv(1000, 1000).partition(b"\n")[2]), Content_Encoding="gzip", ETag='"1"')
    with shop(tmp_path, web, "/orders.csv") as project:
        assert ingest(project, "orders")[0]["total"] == 2000
        assert web.asked[0].headers["Accept-Encoding"] == "identity"
    web.says["/more.csv.gz"] = lambda _: Answer(gzip.compress(csv(3000)), Content_Encoding="gzip", Content_Type="application/x-gzip")
    with shop(tmp_path, web, "/more.csv.gz") as project:
        assert ingest(project, "orders")[0]["total"] == 3000


def test_a_format_says_what_an_address_does_not(tmp_path: Path, web: Web) -> None:
    import io

    import polars as pl

    buffer = io.BytesIO()
    pl.DataFrame({"id": [1, 2], "price": [0.25, 0.5]}).write_parquet(buffer)
    web.says["/export"] = lambda request: Answer(buffer.getvalue() if request.params == {"table": "orders", "key": TOKEN} else b"", Content_Type="text/html")
    with shop(tmp_path, web, "/export?table=orders", 'format = "parquet"\nparams = { key = "$API_TOKEN" }') as project:
        assert ingest(project, "orders")[0]["total"] == 2
        version = tables.latest(project, "orders")
        assert version is not None and list(version.sources) == [f"http://127.0.0.1:{web.port}/export"]


# --- redirects and secrets -----------------------------------------------------------------------------------------


def test_a_redirect_is_followed_and_takes_no_secret_to_another_host(tmp_path: Path, web: Web, other: Web, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    web.says["/orders.csv"] = lambda _: Answer(status=302, Location="/there")
    web.says["/there"] = lambda _: Answer(status=307, Location=f"http://localhost:{other.port}/file")
    other.says["/file"] = file_of(csv(3))
    secrets = 'headers = { Authorization = "Bearer $API_TOKEN", X-Tenant = "acme" }\nparams = { key = "$API_TOKEN" }'
    with shop(tmp_path, web, "/orders.csv", secrets) as project:
        assert ingest(project, "orders")[0]["total"] == 3
        assert [each.headers.get("Authorization") for each in web.asked] == [f"Bearer {TOKEN}"] * 2
        assert web.asked[0].params == {"key": TOKEN} and web.asked[1].params == {}
        (request,) = other.asked
        assert "Authorization" not in request.headers and "X-Tenant" not in request.headers and not request.params
        web.says["/there"] = lambda _: Answer(status=302, Location=f"http://localhost:{other.port}/file?key=correct%20horse%2Fbattery%2Bstaple")
        refused(project, "redirected to another host, and would take a secret along")
        assert len(other.asked) == 1
    assert "horse" not in caplog.text


def test_where_a_secret_may_go(web: Web) -> None:
    import httpx

    home = httpx.URL("http://shop.example/orders")
    for address, same in {
        "http://shop.example:80/x": True, "https://shop.example/x": True, "http://shop.example:81/x": False, "https://shop.example:444/": False,
        "http://shop.example.evil/": False, "http://a.shop.example/": False, "http://SHOP.example/": True,
    }.items():  # fmt: skip
        assert servers.is_same(home, httpx.URL(address)) is same, address
    assert not servers.is_same(httpx.URL("https://shop.example/"), home)


def test_https_never_leads_to_http(web: Web) -> None:
    from palan.data.sources import Source

    with servers.connected(Source("web", "https://shop.example/orders.csv"), "orders") as server:
        with pytest.raises(PalanError, match="from https to http"):
            server._redirected(server.home, "http://shop.example/orders.csv")
        assert str(server.following(server.home, "http://shop.example/orders.csv?page=2")) == "https://shop.example/orders.csv?page=2"


def test_a_variable_that_cannot_be_sent_is_told_without_its_value(tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    with shop(tmp_path, web, "/orders.csv", 'headers = { Authorization = "$API_TOKEN" }') as project:
        for value in ("hors\ne", " horse", "hörse"):
            monkeypatch.setenv("API_TOKEN", value)
            assert "check API_TOKEN" in refused(project, "cannot be sent").hint
        monkeypatch.delenv("API_TOKEN")
        assert "API_TOKEN" in refused(project, "is not set").hint and not web.asked


# --- pages of JSON -------------------------------------------------------------------------------------------------


def rows_of(ids: range) -> list[dict[str, Any]]:
    return [{"id": id, "price": id / 4} for id in ids]


def said(value: Any, **headers: str) -> Answer:
    return Answer(json.dumps(value, indent=1), Content_Type="application/json; charset=utf-8", **headers)


def linked(request: Request) -> Answer:
    at = int(request.params.get("page", 0))
    return said(rows_of(range(at, at + 5)), Link=f'<?page={at - 5}>; rel="prev", <?page={at + 5}>; rel="next"' if at < 10 else "")


def addressed(request: Request) -> Answer:
    at = int(request.params.get("after", 0))
    to = f"http://{request.headers['Host']}/orders?after={at + 5}"
    return said({"meta": {"tags": ["a"], "next": to if at < 10 else None}, "data": {"orders": rows_of(range(at, at + 5))}})


def with_token(request: Request) -> Answer:
    at = int(request.params.get("cursor", "=0/")[1:-1])
    more = {"next_cursor": f"={at + 5}/", "has_more": True} if at < 10 else {"next_cursor": "", "has_more": False}
    return said({"orders": rows_of(range(at, at + 5)), "response_metadata": more} if request.params["key"] == TOKEN else {"error": "no key"})


def by_number(request: Request) -> Answer:
    number = int(request.params["page"])
    return said({"total": 15, "limit": 5, "items": rows_of(range(number * 5 - 5, min(number * 5, 15)))})


def by_offset(request: Request) -> Answer:
    at = int(request.params["offset"])
    return said([{"page": 1}, rows_of(range(at, min(at + 4, 15)))])


def numbered_until_404(request: Request) -> Answer:
    number = int(request.params["p"])
    return said(rows_of(range(number * 5, number * 5 + 5))) if number < 3 else Answer('{"detail": "Invalid page."}', 404)


PAGED = {
    "a link in the header": ("", linked, 3),
    "an address in the page": ('next = "meta.next"\nrecords = "data.orders"', addressed, 3),
    "a token": ('next = "response_metadata.next_cursor"\npage = "cursor"\nparams = { key = "$API_TOKEN" }', with_token, 3),
    "a number": ('page = "page"', by_number, 4),
    "an offset": ('page = "offset"\nrecords = "1"', by_offset, 5),
    "a number from 0 to what is not there": ('page = "p"\nparams = { p = 0 }', numbered_until_404, 4),
}


def test_pages_are_fetched_to_the_last_one_however_they_are_named(tmp_path: Path, web: Web) -> None:
    for how, (more, says, asked) in PAGED.items():
        web.says["/orders"] = says
        web.asked.clear()
        assert flow.pages(source(web, "/orders", more), None, tmp_path / "rows", "orders") == 15, how
        rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
        assert (rows, len(web.asked)) == (rows_of(range(15)), asked), how
    with shop(tmp_path, web, "/orders", more) as project:
        report = ingest(project, "orders")[0]
        assert (report["total"], report["waiting"]) == (15, 0) and taken(project) == given(15)
        assert ingest(project, "orders")[0]["text"] == "nothing new"
        assert not list((tmp_path / ".palan" / "spool").iterdir())


def test_only_rows_from_the_cursor_on_are_asked_for_and_what_comes_besides_is_known(tmp_path: Path, web: Web) -> None:
    begin, upto = datetime(2024, 3, 1, tzinfo=UTC), 10

    def says(request: Request) -> Answer:
        since = datetime.fromisoformat(request.params.get("since", "1970-01-01T00:00:00+00:00"))
        at = int(request.params.get("page", 1)) * 4 - 4
        ids = [id for id in range(upto) if begin + timedelta(hours=id) >= since]
        rows = [{"at": (begin + timedelta(hours=id)).isoformat(), **rows_of(range(id, id + 1))[0]} for id in ids[at : at + 4]]
        return said({"rows": rows})

    web.says["/orders"] = says
    more = 'page = "page"\ncursor = "at"\nlateness = "2h"\nparams = { since = "{since}" }'
    with shop(tmp_path, web, "/orders", more, 'at = "time"\n') as project:
        assert ingest(project, "orders")[0]["total"] == 10
        assert all("since" not in each.params for each in web.asked)
        upto = 13
        web.asked.clear()
        report = ingest(project, "orders")[0]
        assert (report["rows"], report["total"], report["late"]) == (3, 13, 0)
        assert [each.params["since"] for each in web.asked] == ["2024-03-01T07:00:00+00:00"] * 3
        upto = 14
        report = ingest(project, "orders")[0]  # what comes besides is left
        assert (report["rows"], report["total"]) == (1, 14)
    (tmp_path / "palan.toml").write_text((tmp_path / "palan.toml").read_text().replace('params = { since = "{since}" }', 'start = "2024-03-01T05:00Z"'))
    project = open_project(tmp_path)
    web.asked.clear()
    assert ingest(project, "orders")[0]["text"] == "nothing new" and len(web.asked) == 5
    project.store.records.close()


def test_no_number_loses_a_digit(tmp_path: Path, web: Web) -> None:
    web.says["/orders"] = lambda _: Answer('[{"id": 9007199254740993, "price": 0.1, "text": "a\\nb", "more": {"x": [1.50,\r\n 2]}}, {"id": 9223372036854775807, "price": 1e3, "text": "é"}, {"id": 1.0, "price": 2}]')
    with shop(tmp_path, web, "/orders", "", 'text = "str?"\n') as project:
        assert ingest(project, "orders")[0]["total"] == 3
        assert taken(project) == [(1, 2.0), (9007199254740993, 0.1), (9223372036854775807, 1000.0)]
        spooled = tmp_path / "spooled"
        flow.pages(fetch.source_of(project, "orders"), None, spooled, "orders")
        assert spooled.read_bytes().startswith(b'{"id": 9007199254740993, "price": 0.1, "text": "a\\nb", "more": {"x": [1.50,   2]}}\n')


NO_PAGES: list[tuple[Says | Answer, str, str]] = [
    (said({"orders": rows_of(range(3)), "next": "/orders?page=2"}), "", r'says that there is more \(next\), and nothing says how to ask for it\nhint: next = "next"'),
    (said({"orders": rows_of(range(3)), "paging": {"total": 250, "limit": 3}}), "", r"says that there is more \(paging.total\)"),
    (said({"orders": rows_of(range(3)), "has_more": True}), "", r"says that there is more \(has_more\)"),
    (said({"a": rows_of(range(3)), "b": rows_of(range(2))}), "", "has several lists: a, b: "),
    (said({"error": "quota of correct horse/battery+staple"}), "", r"page 1 of .* says that something is wrong: .*quota of \*\*\*"),
    (said({"orders": rows_of(range(3))}), 'records = "data"', r"has no list at data: .*\nhint: its lists are at orders"),
    (said({"data": None, "message": "no"}), 'records = "data.orders"', "has no list at data.orders"),
    (Answer("<html><title>Log in</title>", Content_Type="application/json"), "", "is a page to look at, not JSON: Log in"),
    (Answer("id,price", Content_Type="text/csv"), "", 'is no page of JSON but text/csv\nhint: format = "csv"'),
    (Answer("oops"), "", "is no JSON: oops"),
    (Answer('[{"id": 1}, {"id": 2'), "", "is no JSON"),
    (Answer(json.dumps(rows_of(range(900))), cut=300), "", "broken off before all of it came"),
    (said([*rows_of(range(3))]), 'page = "page"', "page 2 of .* has the same rows as the page before: the pages would never end"),
    (lambda request: said(rows_of(range(1 + ("a=1" in request.url))), Link=f'<?{"a=1" if "a=1" not in request.url else "b=1"}>; rel="next"'), "", "page 3 of .*names a next page that was there before"),
    (lambda request: said({"rows": [], "next": f"n{request.params.get('cursor', '')}"}), 'records = "rows"\nnext = "next"\npage = "cursor"', "is one of 20 without a row: the pages would never end"),
    (said({"rows": rows_of(range(3)), "next": {"page": 2}}), 'records = "rows"\nnext = "next"', "has no text at next"),
    (said({"rows": rows_of(range(3)), "next": "http://localhost:1/x"}), 'records = "rows"\nnext = "next"', "names a next page on another host"),
    (said({"rows": rows_of(range(3)), "next": "file:///etc/passwd"}), 'records = "rows"\nnext = "next"', "names a next page that has no address"),
    (Answer(gzip.compress(b"[" + b" " * 3_000_000), Content_Encoding="gzip"), "", "has more than 1 MB"),
]


def test_what_is_no_page_or_has_no_end_is_told_and_nothing_is_taken_in(tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "EMPTY", 20)
    monkeypatch.setattr(flow, "PAGE", 1 << 20)
    for answer, more, what in NO_PAGES:
        web.says["/orders"] = answer if callable(answer) else lambda _, answer=answer: answer
        asked = source(web, "/orders", f'headers = {{ Authorization = "Bearer $API_TOKEN" }}\n{more}')
        refused(lambda asked=asked: _whole(tmp_path / "rows", lambda temp: flow.pages(asked, None, temp, "orders")), what)
        assert not list(tmp_path.iterdir())


def test_pages_without_end_are_left(tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "LONGEST", 0.1)
    web.says["/orders"] = lambda request: said(rows_of(range(int(request.params["page"]), int(request.params["page"]) + 2)))
    refused(lambda: flow.pages(source(web, "/orders", 'page = "page"'), None, tmp_path / "rows", "orders"), r"page \d+ of .* is followed by more after .* rows\nhint: ask for less")


def test_a_page_without_rows_is_no_mistake(tmp_path: Path, web: Web) -> None:
    with shop(tmp_path, web, "/orders", 'records = "data.items"') as project:
        for empty in ({"data": {"items": []}}, {"data": {"items": None}, "message": "ok"}, {"data": {}}, {"kind": "orders"}):
            web.says["/orders"] = lambda _, empty=empty: said(empty)
            assert ingest(project, "orders")[0]["text"] == "nothing new"
        web.says["/orders"] = lambda _: Answer(status=204)
        assert ingest(project, "orders")[0]["text"] == "nothing new"
        web.says["/orders"] = lambda _: said({"data": {"items": [1, 2, 3]}})
        refused(project, "no line of the file is a JSON object")
        web.says["/orders"] = lambda _: Answer('{"id": 1, "price": 1}\n\n{"id": 2, "price": 2}\n', Content_Type="application/x-ndjson")
        assert ingest(project, "orders")[0]["total"] == 2


def test_a_secret_goes_with_each_page_and_to_no_other_host(tmp_path: Path, web: Web) -> None:
    def says(request: Request) -> Answer:
        at = int(request.params.get("page", 0))
        return said({"rows": rows_of(range(at, at + 5)), "links": {"next": f"/orders?page={at + 5}" if at < 10 else None}})

    web.says["/orders"] = says
    with shop(tmp_path, web, "/orders", 'next = "links.next"\nparams = { key = "$API_TOKEN", size = 5 }\nheaders = { X-Key = "$API_TOKEN" }') as project:
        assert ingest(project, "orders")[0]["total"] == 15
    assert [each.params["key"] for each in web.asked] == [TOKEN] * 3 == [each.headers["X-Key"] for each in web.asked]
    assert [each.params.get("size") for each in web.asked] == ["5", None, None]


def test_data_add_looks_at_what_is_on_the_web(tmp_path: Path, web: Web) -> None:
    web.says["/orders.csv.gz"] = file_of(gzip.compress(csv(300)))
    web.says["/orders"] = lambda request: said({"rows": rows_of(range(int(request.params["page"]) * 100, int(request.params["page"]) * 100 + 100))})
    (tmp_path / "palan.toml").write_text("")
    fetch_most, fetch.SAMPLE = fetch.SAMPLE, 250
    try:
        for name, address, settings in (("files", "/orders.csv.gz", {}), ("pages", "/orders", {"page": "page"})):
            project = open_project(tmp_path)
            added = contracts.add(project, name, {"source": f"http://127.0.0.1:{web.port}{address}", **settings, "key": ["id"]})
            assert added["rows"] == 250 and 'id = "int' in added["lines"] and 'price = ' in added["lines"], added["lines"]
            project.store.records.close()
    finally:
        fetch.SAMPLE = fetch_most
    assert len(web.asked) == 4
    project = open_project(tmp_path)
    assert ingest(project, "files")[0]["total"] == 300 and not list((tmp_path / ".palan" / "spool").iterdir())
    project.store.records.close()


@pytest.mark.parametrize(
    ("body", "path", "rows"),
    [
        (b'{"data":{"items":[{"a":1}]}}', "data.items", 1),
        (b'{"@odata.nextLink":"x","value":[{"a":1},{"a":2}]}', None, 2),
        (b'{"tags":["a"],"rows":[{"a":1}]}', None, 1),
        (b'[]', None, 0),
        (b'[{"page":1},[{"a":1}]]', "1", 1),
        (b'{"rows":[]}', None, 0),
        (b'{"rows":[],"errors":[],"tags":["a"]}', None, 0),
        (b'{"rows":[{"a":1}],"error":null,"warnings":["w"]}', None, 1),
    ],
)
def test_where_rows_are_in_a_page(body: bytes, path: str | None, rows: int) -> None:
    assert len(paged.page(body, path).rows) == rows
    assert paged.token(b'{"@odata.nextLink":"x"}', "@odata.nextLink") == "x" and paged.token(b'{"a":{"b":7}}', "a.b") == "7"
    for wrong in (b"[" * 100_000, b'{"rows":[],"errors":[{"code":7}]}', b'{"rows":[{"a":1}],"error":"half of it"}', b'{"a":[{}],"b":[{}]}', b'{"tags":["a"]}', b'"a"', b"", b"nan"):
        with pytest.raises(Invalid):
            paged.page(wrong, None)


# --- deaths --------------------------------------------------------------------------------------------------------


def test_killed_while_it_fetches_the_next_ingest_has_each_row_once(tmp_path: Path, web: Web) -> None:
    reached = threading.Event()

    def dies_at(says: Says, number: int) -> Says:
        def killing(request: Request) -> Answer:
            if len(web.asked) == number:
                reached.set()
                time.sleep(0.3)
            return says(request)

        return killing

    web.says["/orders"] = dies_at(by_number, 3)
    web.says["/orders.csv"] = dies_at(file_of(csv(3000), '"1"'), 1)
    for path, more, rows in (("/orders", 'page = "page"', 15), ("/orders.csv", "", 3000)):
        web.asked.clear()
        reached.clear()
        with shop(tmp_path, web, path, more):
            pass
        child = subprocess.Popen([sys.executable, "-c", "from palan.cli import main; main()", "ingest", "orders"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SOURCES)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert reached.wait(30)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        with shop(tmp_path, web, path, more) as project:
            assert ingest(project, "orders")[0]["total"] == rows and taken(project) == given(rows)
            assert ingest(project, "orders")[0]["text"] == "nothing new"
            assert not list((tmp_path / ".palan" / "spool").iterdir())
