"""Blobs on a real S3 server: the suite, large files, two writers, kills, and everything that can be wrong with an address."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from msgspec.structs import replace

from palan.core import digest
from palan.errors import Corrupt, NotFound, PalanError
from palan.flows.backup import backup, restore
from palan.flows.config import load
from palan.flows.gc import SEGMENTS, gc
from palan.flows.project import open_project, record
from palan.flows.track import start
from palan.flows.verify import verify
from palan.stores.contract import Blobs
from palan.stores.files import FileBlobs
from palan.testing import BlobsSuite
from postgres import Database
from s3_server import ACCESS, BUCKET, SECRET

obstore = pytest.importorskip("obstore", reason="obstore is not installed")
s3 = pytest.importorskip("palan.stores.s3")

SOURCES = Path(__file__).resolve().parent.parent / "src"


@pytest.fixture(autouse=True)
def credentials(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {"AWS_ENDPOINT_URL": s3_address, "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)


def address(folder: Path) -> str:
    """A prefix of its own for each test."""
    return f"s3://{BUCKET}/{digest(str(folder).encode())[:16]}/blobs"


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def written(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


class TestS3(BlobsSuite):
    def open(self, folder: Path) -> Blobs:
        return s3.S3Blobs(address(folder))

    def damage(self, folder: Path, key: str) -> None:
        store = s3.S3Blobs(address(folder))._store
        data = bytearray(bytes(obstore.get(store, key).bytes()))
        data[3] ^= 0x10
        obstore.put(store, key, bytes(data))


# --- large, at once, killed ---


def test_a_large_file_goes_and_comes_in_parts(tmp_path: Path) -> None:
    blobs, given = s3.S3Blobs(address(tmp_path)), written(tmp_path / "given", 3 * s3.PART + 5)
    key = blobs.put(given)
    assert key == digest(given.read_bytes()) == blobs.put(given.read_bytes())
    blobs.get(key, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == given.read_bytes() == blobs.get(key)
    obstore.put(blobs._store, key, given.read_bytes()[:-1])  # one byte is missing
    with pytest.raises(Corrupt, match=rf"{key}, and has [0-9a-f]{{64}}"):
        blobs.get(key, tmp_path / "never")
    assert not (tmp_path / "never").exists()
    blobs.put(given)
    assert blobs.verify(key) == given.stat().st_size


def test_what_nothing_names_is_swept_in_two_steps_and_what_is_put_in_between_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "palan.toml").write_text(f'[project]\nname = "x"\nblobs = "{address(tmp_path)}"\n')
    project, now = open_project(tmp_path), datetime.now(UTC)
    blobs = project.store.blobs

    def swept(days: float) -> list[str]:
        return [each["blob"] for each in gc(replace(project, clock=lambda: now + timedelta(days=days)))["blobs"]]

    def aside() -> list[str]:
        return [each["path"] for page in obstore.list(blobs._store, prefix="aside") for each in page]

    with start("x", project=project) as run:
        kept = run.artifact(b"weights", "model.bin")
    loose, again = blobs.put(b"loose"), blobs.put(b"contended")
    assert swept(0.9) == []
    copy, put = obstore.copy, obstore.put

    def copying(store: Any, name: str, to: str) -> None:
        copy(store, name, to)
        if to == f"aside/{again}":  # it comes in the worst moment: the blob was found old, and is about to go
            assert s3.S3Blobs(address(tmp_path)).put(b"contended") == again

    with monkeypatch.context() as patched:
        patched.setattr(obstore, "copy", copying)
        assert sorted(swept(2)) == sorted([loose, again])
    assert again not in blobs.names() and {f"aside/{loose}", f"aside/{again}"} == set(aside())
    with start("y", project=project) as run:
        run._tell("artifact", {"named": (again, 9)})  # whoever had put it names it now
    assert swept(2.1) == [] and again in blobs.names()
    assert swept(4) == [] and aside() == [] and set(blobs.names()) >= {kept, again}
    assert blobs.get(again) == b"contended" and blobs.get(kept) == b"weights" and not blobs.has(loose)
    assert verify(project)["findings"] == []

    blobs.remove(again, now + timedelta(days=2))
    assert blobs.get(again) == b"contended"  # what was put aside is read as before
    written: list[str] = []
    monkeypatch.setattr(obstore, "put", lambda store, name, *args, **how: (written.append(how.get("mode", "anew")), put(store, name, *args, **how))[1])
    for hours, how in ((0.5, ["create"]), (1.5, ["create", "anew"])):  # an old one is written again, so that it tells when it was put
        monkeypatch.setattr(s3, "utcnow", lambda hours=hours: datetime.now(UTC) + timedelta(hours=hours))
        written.clear()
        assert blobs.put(b"contended") == again and written == how


def test_a_file_that_changes_while_it_is_stored_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs, given, real = s3.S3Blobs(address(tmp_path)), written(tmp_path / "given", 2 * s3.PART), s3.chunks
    reads = []

    def changing(path: Path) -> Iterator[bytes]:
        reads.append(path)
        if len(reads) == 2:
            with given.open("ab") as file:
                file.write(b"more")
        return real(path)

    monkeypatch.setattr(s3, "chunks", changing)
    with pytest.raises(PalanError, match="was changed while it was stored"):
        blobs.put(given)
    assert list(blobs.names()) == []


PUT = """
import sys
from pathlib import Path
from palan.stores.s3 import S3Blobs
blobs = S3Blobs(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(*[blobs.put(Path(name)) for name in sys.argv[2:]])
"""


def test_two_processes_store_the_same_blobs_at_once(tmp_path: Path) -> None:
    given = [written(tmp_path / "small", 1000), written(tmp_path / "large", 2 * s3.PART)]
    command = [sys.executable, "-c", PUT, address(tmp_path), *map(str, given)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    told = []
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        output, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
        told.append(output.split())
    keys = [digest(each.read_bytes()) for each in given]
    assert told == [keys] * 3
    blobs = s3.S3Blobs(address(tmp_path))
    assert sorted(blobs.names()) == sorted(keys) and [blobs.verify(key) for key in keys] == [1000, 2 * s3.PART]


KILLED = """
import os, sys
from pathlib import Path
from palan.stores import s3
real, reads = s3.chunks, []
def chunks(path):
    reads.append(path)
    for number, chunk in enumerate(real(path)):
        if len(reads) == 2 and number == 30:
            os.kill(os.getpid(), 9)
        yield chunk
s3.chunks = chunks
s3.S3Blobs(sys.argv[1]).put(Path(sys.argv[2]))
"""


def test_a_put_that_was_killed_leaves_nothing_half(tmp_path: Path) -> None:
    given = written(tmp_path / "given", 5 * s3.PART)
    killed = python(KILLED, address(tmp_path), given)
    _, errors = killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL, errors
    blobs, key = s3.S3Blobs(address(tmp_path)), digest(given.read_bytes())
    assert not blobs.has(key) and list(blobs.names()) == []
    assert blobs.put(given) == key and blobs.verify(key) == 5 * s3.PART


MEMORY = r"""
import re, sys
from pathlib import Path
from palan.stores.files import FileBlobs
if sys.argv[1] == "files":
    blobs = FileBlobs(Path(sys.argv[3]) / "blobs")
else:
    from palan.stores.s3 import S3Blobs
    blobs = S3Blobs(sys.argv[1])
key = blobs.put(Path(sys.argv[2]))
blobs.get(key, Path(sys.argv[3]) / "back")
assert blobs.put(Path(sys.argv[2])) == key
print(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of one process: its ru_maxrss begins at that of the parent")
@pytest.mark.parametrize("kind", ["files", "s3"])
def test_a_blob_larger_than_the_memory_it_takes(tmp_path: Path, kind: str) -> None:
    given = written(tmp_path / "given", 128 << 20)
    process = python(MEMORY, "files" if kind == "files" else address(tmp_path), given, tmp_path)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert int(output) < 100, f"{output} MB for a blob of 128 MB"


# --- what can be wrong ---


def refused(folder: Path) -> PalanError:
    with pytest.raises(PalanError) as error:
        s3.S3Blobs(address(folder))
    assert SECRET not in str(error.value) and "\n" not in error.value.what and error.value.hint
    return error.value


@pytest.mark.parametrize(
    ("name", "value", "what", "hint"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong-secret", r"refused the credentials \(SignatureDoesNotMatch\)", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_ACCESS_KEY_ID", "nobody", r"refused the credentials \(InvalidAccessKeyId\)", "AWS_ACCESS_KEY_ID"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "no S3 server answers at http://127.0.0.1:9", "AWS_ENDPOINT_URL"),
        ("AWS_ENDPOINT_URL", "127.0.0.1:9", "AWS_ENDPOINT_URL is no address", "export AWS_ENDPOINT_URL="),
        ("AWS_ENDPOINT_URL", "https://me:hidden@127.0.0.1", "AWS_ENDPOINT_URL is no address of a server$", "export AWS_ENDPOINT_URL="),
    ],
)
def test_what_is_wrong_with_server_or_credentials_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, what: str, hint: str) -> None:
    import re

    monkeypatch.setenv(name, value)
    error = refused(tmp_path)
    assert re.search(what, error.what) and hint in error.hint and "wrong-secret" not in str(error)


def test_a_bucket_that_is_not_there_is_said(s3_address: str) -> None:
    with pytest.raises(PalanError, match=f'{s3_address} has no bucket "none-such"'):
        s3.S3Blobs("s3://none-such/x")


def test_a_blob_that_is_not_there_is_no_missing_bucket(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"blob 000000000000 is not in {address(tmp_path)}"):
        s3.S3Blobs(address(tmp_path)).get("0" * 64)


class Careless(BaseHTTPRequestHandler):
    """A server that takes no notice of conditions, or sends half of what it promised."""

    protocol_version = "HTTP/1.1"
    heeds = False

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(412 if self.heeds else 200)
        self.send_header("ETag", '"0"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        for name, value in {"ETag": '"0"', "Content-Length": "2000", "Last-Modified": "Sun, 01 Mar 2026 12:00:00 GMT"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"x" * 1000)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Careless]]:
    kind = type("Server", (Careless,), {})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.server_port}")
    yield kind
    listening.shutdown()
    listening.server_close()
    thread.join()


def test_a_server_that_ignores_create_if_absent_is_refused(tmp_path: Path, careless: type[Careless]) -> None:
    assert "ignores create-if-absent" in refused(tmp_path).what


def test_a_body_that_was_cut_on_the_way_is_not_taken(tmp_path: Path, careless: type[Careless]) -> None:
    careless.heeds = True
    blobs, into = s3.S3Blobs(address(tmp_path)), tmp_path / "into"
    for place in (None, into):
        with pytest.raises(PalanError):
            blobs.get(digest(b"x" * 2000), place)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_fork_is_told_that_it_cannot_use_the_connection(tmp_path: Path) -> None:
    code = """
import os, sys
from palan.errors import PalanError
from palan.stores.s3 import S3Blobs
blobs = S3Blobs(sys.argv[1])
if os.fork() == 0:
    try:
        blobs.put(b"x")
    except PalanError as error:
        print(error.what, flush=True)
    os._exit(0)
os.wait()
print(blobs.has(blobs.put(b"x")))
"""
    output, errors = python(code, address(tmp_path)).communicate(timeout=60)
    assert output.splitlines() == ["a forked process cannot use the S3 connection of its parent", "True"], errors


# --- a project on it ---


@pytest.mark.parametrize("value", ["s3:/blobs", "S3://b", "gs://blobs/x", "s3://blobs/x?key=hidden", "s3://me:hidden@blobs/x", "s3://blobs/../x y"])
def test_an_address_that_is_none_is_refused_with_its_line_and_not_shown(tmp_path: Path, value: str) -> None:
    (tmp_path / "palan.toml").write_text(f'[project]\nname = "p"\nblobs = "{value}"\n')
    with pytest.raises(PalanError) as error:
        load(tmp_path / "palan.toml", {})
    assert "palan.toml line 3: [project] blobs" in error.value.what and 's3://bucket/prefix' in error.value.hint
    assert "hidden" not in str(error.value)


def palan(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "palan.cli", *words], cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCES)})


def test_a_project_keeps_its_versions_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "parcels"
    made = palan(tmp_path, "init", "--kind", "rules", "--into", str(folder))
    assert made.returncode == 0, made.stderr
    file = folder / "palan.toml"
    file.write_text(file.read_text().replace("[project]\n", f'[project]\nblobs = "{address(tmp_path)}"\n'))
    for words in ("ingest", "build shipping", "release shipping --force --reason measured", "decide shipping --input example.json"):
        done = palan(folder, *words.split())
        assert done.returncode == 0, done.stderr
    assert not (folder / ".palan" / "blobs").exists()
    assert list(s3.S3Blobs(address(tmp_path)).names())
    shown = palan(folder, "config")
    assert "project.blobs" in shown.stdout and SECRET not in shown.stdout
    saved = palan(folder, "backup", str(tmp_path / "palan.tar"))
    assert saved.returncode == 0, saved.stderr
    (folder / ".palan").rename(folder / ".palan.old")
    file.write_text(file.read_text().replace(address(tmp_path), address(folder)))  # another bucket, so to speak
    back = palan(folder, "restore", str(tmp_path / "palan.tar"))
    assert back.returncode == 0 and "damaged" not in back.stdout, back.stderr
    assert set(s3.S3Blobs(address(folder)).names()) == set(s3.S3Blobs(address(tmp_path)).names())
    assert not (folder / ".palan" / "blobs").exists()
    again = palan(folder, "decide", "shipping", "--input", "example.json")
    assert again.returncode == 0, again.stderr
    clean = palan(folder, "verify")
    assert clean.returncode == 0, clean.stdout
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    for words in (["status"], ["status", "--debug"]):
        wrong = palan(folder, *words)
        assert "another-secret" not in wrong.stdout + wrong.stderr and SECRET not in wrong.stderr
    wrong = palan(folder, "status")
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) <= 3 and "SignatureDoesNotMatch" in wrong.stderr


def test_segments_of_a_database_are_shipped_there(tmp_path: Path, postgres: Database) -> None:
    pytest.importorskip("psycopg")
    (tmp_path / "palan.toml").write_text(f'[project]\nname = "ship"\nstore = "{postgres.of(tmp_path)}"\nblobs = "{address(tmp_path)}"\n', encoding="utf-8")
    project = open_project(tmp_path)
    record(project, "build", "m@1")
    blocks, frames = project.store.blocks, [b"%d" % number for number in range(SEGMENTS * 10)]
    for number in range(SEGMENTS):
        blocks.append("decisions/m", frames[number * 10 : number * 10 + 10])
        getattr(blocks, "close", lambda: None)()
    while any(blocks.writers("decisions/m").values()):
        time.sleep(0.01)  # their ends are seen in a moment
    assert gc(project)["streams"] == [{"stream": "decisions/m", "segments": SEGMENTS, "frames": len(frames)}]
    blocks.append("decisions/m", [b"later"])
    assert [frame.data for frame in blocks.scan("decisions/m")] == [*frames, b"later"]
    (blob,) = blocks.blobs()
    assert set(project.store.blobs.names()) == {blob}
    assert gc(project, older_than=timedelta(0))["blobs"] == [] and verify(project)["findings"] == []
    assert verify(project)["unnamed"] == 0
    back = tmp_path / "back"
    restored = back / "palan.toml"
    back.mkdir()
    restored.write_text('[project]\nname = "ship"\n', encoding="utf-8")
    restore(backup(project, tmp_path / "saved.tar")["file"], back)
    assert [frame.data for frame in open_project(back).store.blocks.scan("decisions/m")] == [*frames, b"later"]
    obstore.delete(s3.S3Blobs(address(tmp_path))._store, blob)
    again = open_project(tmp_path)
    assert [blob in each for each in again.store.blocks.lost()] == [True]
    with pytest.raises(Corrupt, match="cannot be read"):
        list(again.store.blocks.scan("decisions/m"))
    assert any(blob in each["what"] for each in verify(again)["findings"])


def test_without_the_library_the_extra_is_named(tmp_path: Path) -> None:
    code = "import sys; sys.modules['obstore'] = None\nfrom pathlib import Path\nfrom palan.stores import open_store\nopen_store('.palan', Path(sys.argv[1]), 's3://blobs/x')"
    _, errors = python(code, tmp_path).communicate(timeout=60)
    assert errors.endswith('palan.errors.MissingExtra: a store on S3 needs obstore, which is not installed\nhint: pip install "palan[s3]"\n')


def test_files_and_s3_name_the_same_blob_alike(tmp_path: Path) -> None:
    given = written(tmp_path / "given", 2 * s3.PART)
    assert FileBlobs(tmp_path / "blobs").put(given) == s3.S3Blobs(address(tmp_path)).put(given)
