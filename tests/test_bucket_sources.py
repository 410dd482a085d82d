"""Files in a bucket of a real S3 server: each taken in once, again where it is replaced, and nothing in part."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from palan.core import digest
from palan.data.sources import parse
from palan.errors import Invalid, PalanError
from palan.flows import contracts, tables
from palan.flows.ingest import ingest
from palan.flows.project import Project, open_project
from s3_server import ACCESS, BUCKET, SECRET

obstore = pytest.importorskip("obstore", reason='no obstore: pip install "palan[s3]"')
buckets = pytest.importorskip("palan.flows.buckets")

SOURCES = Path(__file__).resolve().parent.parent / "src"

TOML = """
[data.orders]
source = "{source}"
key = ["id"]
[data.orders.columns]
id = "int"
price = "float"
"""


@pytest.fixture(autouse=True)
def credentials(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {"AWS_ENDPOINT_URL": s3_address, "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(buckets, "PAUSE", 0.01)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A folder in the bucket for each test."""
    return digest(str(tmp_path).encode())[:16]


@pytest.fixture
def bucket() -> Any:
    return obstore.store.S3Store(BUCKET, client_options={"allow_http": True})


def shop(root: Path, source: str) -> Project:
    (root / "palan.toml").write_text(TOML.format(source=source))
    return open_project(root)


def csv(rows: int, begin: int = 0) -> bytes:
    return ("id,price\n" + "".join(f"{id},{id / 4}\n" for id in range(begin, begin + rows))).encode()


def taken(project: Project) -> list[tuple[Any, ...]]:
    version = tables.latest(project, "orders")
    return sorted(tables.read(project, version).select("id", "price").rows()) if version else []


def refused(asked: Callable[[], object], what: str) -> PalanError:
    with pytest.raises(PalanError, match=what) as caught:
        asked()
    assert caught.value.hint and "\n" not in caught.value.what and SECRET not in str(caught.value)
    return caught.value


def test_each_object_is_taken_in_once_and_again_where_it_is_replaced(tmp_path: Path, bucket: Any, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rows, begin in (("2024/a.csv", 3, 0), ("2024/deep/b c.csv", 3, 3), ("2024/ü 100%+.csv", 2, 6), ("2024/.hidden.csv", 1, 90), ("2024/notes.txt", 1, 91), ("2024x/c.csv", 1, 92)):
        obstore.put(bucket, f"{folder}/{name}", csv(rows, begin))
    gets: list[str] = []
    download = buckets.download
    monkeypatch.setattr(buckets, "download", lambda source, remote, *rest: gets.append(remote.name) or download(source, remote, *rest))
    project = shop(tmp_path, f"s3://{BUCKET}/{folder}/2024/**/*.csv")
    try:
        refused(lambda: ingest(shop(tmp_path, f"s3://{BUCKET}/{folder}/2023/*.csv"), "orders"), "nothing matches s3://")
        assert ingest(project, "orders")[0]["total"] == 8 and len(gets) == 3
        version = tables.latest(project, "orders")
        assert version is not None and f"s3://{BUCKET}/{folder}/2024/ü 100%+.csv" in version.sources
        assert ingest(project, "orders")[0]["text"] == "nothing new" and len(gets) == 3
        obstore.put(bucket, f"{folder}/2024/a.csv", csv(3).replace(b"1,0.25", b"1,9.5"))
        obstore.put(bucket, f"{folder}/2024/d.csv", csv(2, 20))
        report = ingest(project, "orders")[0]
        assert (report["rows"], report["corrections"], report["total"], len(gets)) == (2, 1, 10, 5)
        obstore.delete(bucket, f"{folder}/2024/a.csv")  # what is gone has been taken in
        assert ingest(project, "orders")[0]["text"] == "nothing new" and len(taken(project)) == 10
        (tmp_path / ".palan" / "delivered" / "orders.json").unlink()  # the note only spares the way
        assert ingest(project, "orders")[0]["text"] == "nothing new" and len(gets) == 8
        assert not list((tmp_path / ".palan" / "spool").iterdir())
    finally:
        project.store.records.close()


def test_a_listing_of_many_pages_is_read_to_its_end(bucket: Any, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    async def fill() -> None:
        await asyncio.gather(*(obstore.put_async(bucket, f"{folder}/many/{number:05d}.csv", b"id\n") for number in range(1234)))

    asyncio.run(fill())
    found = buckets.listed(parse("orders", {"source": f"s3://{BUCKET}/{folder}/many/*.csv"}), "orders")
    assert [each.key for each in found] == [f"{folder}/many/{number:05d}.csv" for number in range(1234)]
    assert len(buckets.listed(parse("orders", {"source": f"s3://{BUCKET}/{folder}/many/0[!1-9]?[0-4]7.csv"}), "orders")) == 50
    one = parse("orders", {"source": f"s3://{BUCKET}/{folder}/many/00007.csv"})
    assert [(each.size, bool(each.etag)) for each in buckets.listed(one, "orders")] == [(3, True)]


def test_an_object_that_changes_or_goes_while_it_is_fetched_is_told(tmp_path: Path, bucket: Any, folder: str) -> None:
    source = parse("orders", {"source": f"s3://{BUCKET}/{folder}/*.csv"})
    for name in ("a", "b"):
        obstore.put(bucket, f"{folder}/{name}.csv", csv(3))
    first, second = buckets.listed(source, "orders")
    obstore.put(bucket, f"{folder}/a.csv", csv(4))
    obstore.delete(bucket, f"{folder}/b.csv")
    refused(lambda: buckets.download(source, first, tmp_path / "a", "orders"), "a.csv was replaced while it was fetched")
    refused(lambda: buckets.download(source, second, tmp_path / "b", "orders"), "b.csv went while it was fetched")


def test_data_add_looks_at_what_lies_in_a_bucket(tmp_path: Path, bucket: Any, folder: str) -> None:
    for number in range(6):
        obstore.put(bucket, f"{folder}/{number}.csv", csv(100, number * 100))
    (tmp_path / "palan.toml").write_text("")
    project = open_project(tmp_path)
    added = contracts.add(project, "orders", {"source": f"s3://{BUCKET}/{folder}/*.csv", "key": ["id"]})
    project.store.records.close()
    assert added["rows"] == 400 and 'rows = "' in added["lines"]
    project = open_project(tmp_path)
    assert ingest(project, "orders")[0]["total"] == 600
    project.store.records.close()


@pytest.mark.parametrize(
    ("name", "value", "what", "hint"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "refused the credentials", "AWS_ACCESS_KEY_ID"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "no server answers at http://127.0.0.1:9", "AWS_ENDPOINT_URL"),
        ("BUCKET", "none-such", 'there is no bucket "none-such"', "check source"),
    ],
)
def test_what_is_wrong_with_a_bucket_is_told(monkeypatch: pytest.MonkeyPatch, folder: str, name: str, value: str, what: str, hint: str) -> None:
    monkeypatch.setenv(name, value)
    source = parse("orders", {"source": f"s3://{value if name == 'BUCKET' else BUCKET}/{folder}/*.csv"})
    assert hint in refused(lambda: buckets.listed(source, "orders"), what).hint


def test_an_address_that_is_no_bucket_is_refused() -> None:
    for address in ("s3://bucket", "s3://bucket/", "s3://bucket/feed/", "s3://me:hidden@bucket/*.csv", "gs:///x"):
        with pytest.raises(Invalid, match="names no files of a bucket") as caught:
            parse("orders", {"source": address})
        assert "hidden" not in str(caught.value)
    for address in ("s3://bucket/a b?.csv", "gs://bucket/x.csv", "az://container/x/**/*.parquet"):
        assert parse("orders", {"source": address}).kind == "bucket"


# --- faults --------------------------------------------------------------------------------------------------------


class Faulty(BaseHTTPRequestHandler):
    """A server that sends what it promised only in part, and takes no notice of conditions."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    body, etag, cuts, asked = csv(200_000), '"1"', [0], [""]

    def do_GET(self) -> None:
        begin = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
        Faulty.asked.append(self.headers.get("Range", ""))
        self.send_response(206 if begin else 200)
        for name, value in {"Content-Length": len(self.body) - begin, "Content-Range": f"bytes {begin}-{len(self.body) - 1}/{len(self.body)}", "ETag": self.etag, "Last-Modified": "Mon, 01 Jan 2024 10:00:00 GMT"}.items():
            self.send_header(name, str(value))
        self.end_headers()
        cut = self.cuts.pop(0) if self.cuts else len(self.body)
        self.wfile.write(self.body[begin : begin + cut])
        self.close_connection = True

    def do_HEAD(self) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": len(self.body), "ETag": self.etag, "Last-Modified": "Mon, 01 Jan 2024 10:00:00 GMT"}.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    yield
    server.shutdown()
    server.server_close()


def test_an_object_that_comes_in_pieces_is_had_whole_and_never_of_two_states(tmp_path: Path, faulty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    source = parse("orders", {"source": "s3://any/orders.csv"})
    (remote,) = buckets.listed(source, "orders")
    Faulty.cuts, Faulty.asked = [1_000_000, 10, 500_000], []
    buckets.download(source, remote, tmp_path / "a", "orders")
    assert (tmp_path / "a").read_bytes() == Faulty.body and len(Faulty.asked) > 1
    Faulty.etag = '"2"'
    refused(lambda: buckets.download(source, remote, tmp_path / "a", "orders"), "was replaced while it was fetched")
    monkeypatch.setattr(buckets, "TRIES", 1)
    Faulty.etag, Faulty.cuts = '"1"', [0] * 100
    refused(lambda: buckets.download(source, remote, tmp_path / "a", "orders"), "no server answers at .*, or not to the end")


def test_killed_while_it_fetches_the_next_ingest_goes_on_and_has_each_row_once(tmp_path: Path, bucket: Any, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        obstore.put(bucket, f"{folder}/{number}.csv", csv(2000, number * 2000))
    shop(tmp_path, f"s3://{BUCKET}/{folder}/*.csv").store.records.close()
    code = "import os, signal, palan.flows.buckets as b; real = b.download\ndef get(s, r, *a):\n    '3.csv' in r.key and os.kill(os.getpid(), signal.SIGKILL)\n    return real(s, r, *a)\nb.download = get\nfrom palan.cli import main; main()"
    child = subprocess.run([sys.executable, "-c", code, "ingest", "orders"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SOURCES)}, capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    gets: list[str] = []
    download = buckets.download
    monkeypatch.setattr(buckets, "download", lambda source, remote, *rest: gets.append(remote.key[-5:]) or download(source, remote, *rest))
    project = open_project(tmp_path)
    assert taken(project) == []
    assert ingest(project, "orders")[0]["total"] == 10_000 == len(set(taken(project)))
    assert gets == ["3.csv", "4.csv"]
    assert ingest(project, "orders")[0]["text"] == "nothing new"
    assert not list((tmp_path / ".palan" / "spool").iterdir())
    project.store.records.close()
