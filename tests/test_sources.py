"""Where the rows of a table come from: what palan.toml may say of it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from palan.data import sources
from palan.errors import Invalid, PalanError
from palan.flows import config


@pytest.mark.parametrize(
    ("said", "kind", "shown"),
    [
        ({"source": "feed/*.csv"}, "files", "feed/*.csv"),
        ({"source": "s3://lake/orders/*.parquet"}, "bucket", "s3://lake/orders/*.parquet"),
        ({"source": "https://host/export/all.csv.gz?year=2024"}, "web", "https://host/export/all.csv.gz"),
        ({"source": "https://host/export", "format": "csv"}, "web", "https://host/export"),
        ({"source": "https://host/orders.json"}, "api", "https://host/orders.json"),
        ({"source": "https://host/orders?key=$KEY", "cursor": "at", "params": {"from": "{since}"}}, "api", "https://host/orders"),
        ({"source": "sqlite:shop.db", "query": "SELECT * FROM orders"}, "sqlite", "sqlite:shop.db"),
        ({"source": "sqlite:///var/shop.db", "query": "SELECT * FROM orders"}, "sqlite", "sqlite:/var/shop.db"),
        ({"source": "postgresql://shop@db/shop?sslmode=require", "query": "SELECT 1"}, "postgresql", "postgresql://shop@db/shop"),
        ({"source": "feeds.py:orders", "cursor": "id", "lateness": "1000"}, "function", "feeds.py:orders"),
    ],
)
def test_the_address_says_of_what_kind_a_source_is(said: dict[str, object], kind: str, shown: str) -> None:
    source = sources.parse("orders", said)
    assert (source.kind, source.shown) == (kind, shown)
    assert source.place == (f"{shown} by {source.cursor}" if source.cursor else shown)


@pytest.mark.parametrize(
    ("said", "field", "what"),
    [
        ({"source": "ftp://host/a.csv"}, "source", "unknown kind"),
        ({"source": "https:///a.csv"}, "source", "names no server"),
        ({"source": "sqlite:"}, "source", "names no file"),
        ({"source": "sqlite:shop.db"}, "source", "query says what to take"),
        ({"source": "feed/*.csv", "cursor": "at"}, "cursor", "files of the project"),
        ({"source": "feeds.py:orders", "page": "page"}, "page", "pages of JSON"),
        ({"source": "s3://lake/*.csv", "headers": {"a": "b"}}, "headers", "a bucket"),
        ({"source": "feeds.py:orders", "lateness": "2h"}, "lateness", "there is none"),
        ({"source": "feeds.py:orders", "cursor": 3}, "cursor", "must be a text"),
        ({"source": "https://host/a", "params": {"at": "{since}"}}, "cursor", "there is none"),
        ({"source": "https://host/a", "params": ["at"]}, "params", "must be a table"),
        ({"source": "sqlite:a.db", "query": "SELECT * FROM a WHERE at > {since}", "cursor": "at"}, "start", "nothing says where"),
        ({"source": "https://host/a", "format": "cvs"}, "format", "unknown"),
    ],
)
def test_what_cannot_be_is_said_by_the_setting(said: dict[str, object], field: str, what: str) -> None:
    with pytest.raises(Invalid, match=what) as error:
        sources.parse("orders", said)
    assert error.value.field == field and error.value.hint


@pytest.mark.parametrize(
    "said",
    [
        {"source": "postgresql://shop:hush@db/shop", "query": "SELECT 1"},
        {"source": "postgresql://shop@db/shop?password=hush", "query": "SELECT 1"},
        {"source": "https://me:hush@host/a.csv"},
        {"source": "https://host/a.csv?api_key=hush"},
        {"source": "https://host/a", "headers": {"Authorization": "Bearer hush"}},
        {"source": "https://host/a", "params": {"access_token": "hush"}},
    ],
)
def test_a_secret_in_palan_toml_is_refused_and_not_shown(said: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(Invalid) as error:
        sources.parse("orders", said)
    assert "hush" not in str(error.value)
    lines = [f"{key} = {value!r}".replace("{'", '{ "').replace("': '", '" = "').replace("'}", '" }') for key, value in said.items()]
    (tmp_path / "palan.toml").write_text("\n".join(["[project]", 'name = "shop"', "[data.orders]", *lines]) + "\n")
    with pytest.raises(PalanError, match=r"palan.toml line \d: \[data.orders\]") as error_:
        config.load(tmp_path / "palan.toml", {})
    assert "hush" not in str(error_.value)


def test_a_variable_is_put_in_when_it_is_needed_and_named_when_it_is_not_set() -> None:
    assert sources.environment("Bearer $TOKEN and ${TOKEN}s", {"TOKEN": "hush"}, "headers") == "Bearer hush and hushs"
    with pytest.raises(PalanError, match="the variable TOKEN, which is not set"):
        sources.environment("Bearer $TOKEN", {}, "headers")


@pytest.mark.parametrize(
    ("kind", "known", "lateness", "asked"),
    [
        ("time", "2024-03-01T12:00:00+00:00", "2h", datetime(2024, 3, 1, 10, tzinfo=UTC)),
        ("time", "2024-03-01T12:00:00+02:00", "", datetime(2024, 3, 1, 10, tzinfo=UTC)),
        ("date", "2024-03-01", "3d", date(2024, 2, 27)),
        ("date", "2024-03-01", "1h", date(2024, 2, 29)),
        ("int", "5000", "1000", 4000),
        ("str", "01HZX", "", "01HZX"),
        ("int", "", "1000", 7),
    ],
)
def test_rows_are_asked_for_from_where_the_cursor_has_come(kind: str, known: str, lateness: str, asked: sources.Mark) -> None:
    start = {"time": "2020-01-01", "date": "2020-01-01", "int": "7", "str": "0"}[kind]
    source = sources.parse("orders", {"source": "feeds.py:orders", "cursor": "at", "start": start, **({"lateness": lateness} if lateness else {})})
    found = sources.since(source, kind, known)
    assert found == asked
    assert sources.mark(sources.mark_text(found), kind) == found  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "start", "lateness"), [("time", "soon", ""), ("int", "7", "2h"), ("time", "2020-01-01", "1000"), ("str", "a", "2h"), ("float", "1", ""), ("time", "2020-01-01", "999999999999w")])
def test_a_start_or_lateness_that_does_not_fit_the_cursor_is_refused(kind: str, start: str, lateness: str) -> None:
    source = sources.parse("orders", {"source": "feeds.py:orders", "cursor": "at", "start": start, **({"lateness": lateness} if lateness else {})})
    with pytest.raises(Invalid):
        sources.since(source, kind, "" if start == "soon" else {"time": str(datetime.now(UTC) - timedelta(days=1))}.get(kind, "8"))
