"""Data comes in once, every row judged; what cannot be read changes nothing."""

from __future__ import annotations

import io
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from palan.data import reading
from palan.data.nouns import DataVersion, Quarantine
from palan.errors import NotFound, PalanError
from palan.flows import tables
from palan.flows.deliveries import failure
from palan.flows.ingest import ingest
from palan.flows.log import log
from palan.flows.project import Project, open_project
from palan.flows.quarantine import waiting as quarantined
from palan.runs.run import Step

SOURCES = Path(__file__).resolve().parent.parent / "src"

TOML = """
[data.weather]
source = "feed/*"
key = ["place", "at"]
time = "at"
checks = ["dewp <= temp"]
rows = "2..1000"
[data.weather.columns]
place = "str in EWR JFK"
at = "time"
temp = "float -30..120 °F"
dewp = "float?"
"""

HEAD = "place,at,temp,dewp\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project that reads in small pieces and stores in small parts, as it does with large files."""
    for place, name, size in ((reading, "PIECE", 40), (reading, "OBJECTS", 40), (reading, "ROWS", 1), (tables, "PART_ROWS", 2)):
        monkeypatch.setattr(place, name, size)
    (tmp_path / "palan.toml").write_text(TOML, encoding="utf-8")
    (tmp_path / "feed").mkdir()
    opened = open_project(tmp_path)
    yield opened
    opened.store.records.close()


def deliver(project: Project, name: str, content: str | bytes) -> Path:
    path = project.root / "feed" / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(project: Project, name: str = "weather") -> pl.DataFrame:
    return tables.read(project, tables.find_data_version(project, name))


def broken(project: Project) -> pl.DataFrame:
    """Return the rows in quarantine, in the order of their lines."""
    return pl.concat(tables.load_frame(project, each.blob) for each in quarantined(project, "weather")).sort("palan_line")


def hours(first: int, last: int, temp: float = 40.0) -> str:
    return "".join(f"EWR,2026-01-01T{hour:02d}:00:00Z,{temp + hour / 10},30\n" for hour in range(first, last))


def test_ingesting_twice_adds_nothing(project: Project) -> None:
    deliver(project, "one.csv", HEAD + hours(0, 5))
    (first,) = ingest(project)
    assert (first["version"], first["rows"], first["quarantined"], first["files"]) == ("weather@1", 5, 0, ["one.csv"])
    before = len(project.store.records.find(Step))
    (again,) = ingest(project)
    assert (again["version"], again["rows"], again["files"], again["text"]) == ("weather@1", 0, [], "nothing new")
    (project.root / "feed" / "one.csv").touch()
    ingest(project, "weather")
    assert len(project.store.records.find(DataVersion)) == 1
    assert len(project.store.records.find(Step)) == before
    assert [entry["verb"] for entry in log(project)["entries"]] == ["ingested"]
    deliver(project, "two.csv", HEAD + hours(5, 8))
    (more,) = ingest(project)
    assert (more["version"], more["rows"], more["files"]) == ("weather@2", 3, ["two.csv"])
    assert rows(project).height == 8 and rows(project, "weather@1").height == 5  # the old version stays readable


def test_a_row_that_comes_again_is_a_correction(project: Project) -> None:
    deliver(project, "one.csv", HEAD + hours(0, 5))
    ingest(project)
    deliver(project, "two.csv", HEAD + hours(3, 7, temp=60.0))
    (report,) = ingest(project)
    assert (report["rows"], report["corrections"]) == (2, 2)
    frame = rows(project).sort("at")
    assert frame["temp"].to_list() == [40.0, 40.1, 40.2, 60.3, 60.4, 60.5, 60.6]
    newest = tables.latest(project, "weather")
    assert newest is not None and (newest.rows, newest.added) == (7, 2)
    deliver(project, "one.csv", HEAD + hours(0, 5, temp=80.0))  # a file that was delivered anew, under its old name
    (report,) = ingest(project)
    assert (report["rows"], report["corrections"]) == (0, 5)
    assert rows(project).height == 7


def test_bad_rows_go_to_quarantine_with_their_line_their_values_and_their_reasons(project: Project) -> None:
    deliver(
        project,
        "one.csv",
        HEAD
        + hours(0, 2)
        + "EWR,2026-01-01T02:00:00Z,warm,30\n"
        + "LGA,2026-01-01T03:00:00Z,400,30\n"
        + "EWR,2026-01-01T04:00:00Z,20,30\n"
        + "EWR,2026-01-01T05:00:00Z,41\n"
        + ",2026-01-01T06:00:00Z,41,30\n",
    )
    (report,) = ingest(project)
    assert (report["rows"], report["quarantined"]) == (2, 5)
    kept = quarantined(project, "weather")
    assert {(each.source, each.status) for each in kept} == {("feed/one.csv", "open")} and sum(each.rows for each in kept) == 5
    bad = broken(project)
    assert bad["palan_line"].to_list() == [4, 5, 6, 7, 8]
    assert bad["temp"].to_list()[:3] == ["warm", "400", "20"]  # as they came
    reasons = bad["palan_reasons"].to_list()
    assert "temp" in reasons[0][0] and len(reasons[1]) == 2 and "dewp <= temp" in reasons[2][0]
    assert "3 fields" in reasons[3][0] and "place" in reasons[4][0]
    assert sum(sum(each.reasons.values()) for each in kept) == sum(len(each) for each in reasons) == sum(report["reasons"].values())
    ingest(project)
    assert project.store.records.find(Quarantine) == kept[::-1]
    (entry,) = log(project)["entries"]
    assert entry["reason"] == "2 rows from 1 file, 5 in quarantine" and entry["detail"] == {"rows": 2, "quarantined": 5}


def test_a_file_of_bad_rows_only_is_taken_in_as_such(project: Project) -> None:
    deliver(project, "one.csv", HEAD + "XXX,never,hot,\n" * 3)
    (report,) = ingest(project)
    assert (report["rows"], report["quarantined"], report["version"]) == (0, 3, "weather@1")
    assert rows(project).height == 0 and list(rows(project).columns)[:4] == ["place", "at", "temp", "dewp"]
    assert ingest(project)[0]["files"] == []
    deliver(project, "two.csv", HEAD + hours(0, 2))
    ingest(project)
    assert rows(project).height == 2


def frame() -> pl.DataFrame:
    return pl.DataFrame({"place": ["EWR", "JFK"], "at": ["2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"], "temp": [40.0, 41.5], "dewp": [30.0, None]})


def test_every_kind_of_file_gives_the_same_rows(project: Project) -> None:
    parquet, lines = io.BytesIO(), io.BytesIO()
    frame().with_columns(pl.col("at").str.to_datetime(time_zone="UTC")).write_parquet(parquet)
    frame().write_ndjson(lines)
    text = frame().write_csv()
    found = []
    for name, content in {
        "a.csv": text,
        "b.parquet": parquet.getvalue(),
        "c.ndjson": lines.getvalue(),
        "d.csv": "\ufeff" + text.replace(",", ";").replace("\n", "\r\n"),
        "e.CSV": text.replace("EWR", '"EWR"'),
    }.items():
        path = deliver(project, name, content)
        (report,) = ingest(project)
        assert report["quarantined"] == 0, (name, report)
        assert (report["rows"], report["corrections"]) == ((2, 0) if name == "a.csv" else (0, 2))
        found.append(rows(project).sort("at"))
        path.unlink()
    assert all(each.equals(found[0]) for each in found)
    assert found[0]["temp"].to_list() == [40.0, 41.5] and found[0].schema["at"] == pl.Datetime("us", "UTC")


def whole_parquet() -> bytes:
    buffer = io.BytesIO()
    frame().write_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        pytest.param("new.csv", b"", "is empty", id="an empty file"),
        pytest.param("new.csv", b" \n\n", "is empty", id="blank lines"),
        pytest.param("new.csv", b"place,at,dewp\nEWR,2026-01-01T00:00:00Z,1\n", 'no column "temp"', id="a column that is missing"),
        pytest.param("new.csv", b"place,at,tmp,dewp\nEWR,2026-01-01T00:00:00Z,1,1\n", 'no column "temp"', id="a column of another name"),
        pytest.param("new.csv", b"place,at,temp,temp,dewp\nEWR,2026-01-01T00:00:00Z,1,2,1\n", 'named "temp"', id="two columns of one name"),
        pytest.param("new.csv", bytes(range(256)) * 8, "holds zero bytes", id="a binary file"),
        pytest.param("new.csv", HEAD.encode() + b"EWR,2026-01-01T00:00:00Z,40,caf\xe9\nEWR,2026-01-01T01:00:00Z,40,caf\xc3\xa9\n", "line 3 is UTF-8 text, and other lines are not", id="Latin-1 among UTF-8"),
        pytest.param("new.csv", HEAD.encode() + b'"EWR,2026-01-01T00:00:00Z,40,30\n', "quote", id="a quote that never ends"),
        pytest.param("new.parquet", whole_parquet()[:-9], "cut off", id="a truncated Parquet file"),
        pytest.param("new.parquet", b"PAR1" + bytes(60) + b"PAR1", "damaged", id="a damaged Parquet file"),
        pytest.param("new.parquet", HEAD.encode(), "not Parquet", id="CSV called Parquet"),
        pytest.param("new.ndjson", b"<html>\n", "is no JSON but a web page", id="HTML called NDJSON"),
        pytest.param("new.pdf", b"PK\x03\x04", "cannot be read", id="a kind that is not known"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_keeps_no_other_out(project: Project, name: str, content: bytes, what: str) -> None:
    deliver(project, "a.csv", HEAD + hours(0, 3))
    ingest(project)
    deliver(project, "b.csv", HEAD + hours(3, 5))
    path = deliver(project, name, content)
    with pytest.raises(PalanError, match=what) as refused:
        ingest(project)
    assert f"feed/{name}" in refused.value.what and refused.value.hint
    assert path.read_bytes() == content
    assert tables.find_data_version(project, "weather").ref == "weather@2" and rows(project).height == 5
    assert quarantined(project, "weather") == []
    path.unlink()
    assert ingest(project)[0]["text"] == "nothing new"


def test_one_bad_file_keeps_neither_another_file_nor_another_table_out(project: Project) -> None:
    second = TOML.replace("[data.weather", "[data.late").replace("feed/*", "late/*")
    (project.root / "palan.toml").write_text(TOML + second, encoding="utf-8")
    (project.root / "late").mkdir()
    both = open_project(project.root)
    renamed = HEAD.replace("temp", "celsius")
    deliver(both, "1.csv", renamed + hours(0, 2))
    deliver(both, "2.csv", HEAD + hours(2, 4))
    deliver(both, "3.csv", renamed + hours(4, 6))
    deliver(both, "4.csv", HEAD + hours(6, 9))
    (both.root / "late" / "1.csv").write_text(HEAD + hours(0, 1), encoding="utf-8")
    with pytest.raises(PalanError, match=r'feed/1\.csv: .*no column "temp".*; and 1 more file of weather could not be taken in'):
        ingest(both)
    assert (rows(both).height, rows(both, "late").height) == (5, 1)
    deliver(both, "1.csv", HEAD + hours(0, 2))
    deliver(both, "3.csv", HEAD + hours(4, 6))
    assert [each["rows"] for each in ingest(both)] == [4, 0]
    assert rows(both).height == 9


def test_a_delivery_that_fails_is_in_the_ledger_once_for_each_time_that_it_fails_anew(project: Project) -> None:
    def verbs() -> list[str]:
        return [f"{each['verb']} {each['subject']}" for each in log(project)["entries"]]

    bad = HEAD.replace("temp", "celsius") + hours(0, 2)
    deliver(project, "1.csv", bad)
    for _ in range(3):
        with pytest.raises(PalanError, match='no column "temp"'):
            ingest(project)
    assert verbs() == ["refused weather"]
    assert 'feed/1.csv' in failure(project, "weather")["what"]
    deliver(project, "2.csv", HEAD + hours(2, 4))
    with pytest.raises(PalanError, match='no column "temp"'):
        ingest(project)  # the others go on, and it is the same failure
    assert sorted(verbs()) == ["ingested weather@1", "refused weather"]
    deliver(project, "1.csv", HEAD + hours(0, 2))
    ingest(project)
    assert failure(project, "weather") == {}
    deliver(project, "3.csv", bad)
    with pytest.raises(PalanError, match='no column "temp"'):
        ingest(project)
    assert verbs().count("refused weather") == 2


def test_odd_sources(project: Project) -> None:
    said = f"nothing matches feed/* in {project.root}"
    assert ingest(project) == [{"data": "weather", "files": [], "rows": 0, "total": 0, "quarantined": 0, "version": None, "text": said, "next": ""}]
    with pytest.raises(NotFound, match=re.escape(said)):
        ingest(project, "weather")
    with pytest.raises(NotFound, match='no data "wether"'):
        ingest(project, "wether")
    (project.root / "feed" / "folder.csv").mkdir()
    with pytest.raises(PalanError, match="is not a file"):
        ingest(project)
    (project.root / "palan.toml").write_text(TOML.replace("feed/*", "/etc/*"), encoding="utf-8")
    with pytest.raises(PalanError, match="no pattern within the project"):
        ingest(open_project(project.root))


def test_few_rows_are_a_warning_and_no_row_is_touched(project: Project) -> None:
    deliver(project, "one.csv", HEAD + hours(0, 1))
    (report,) = ingest(project)
    assert (report["rows"], report["quarantined"]) == (1, 0)
    assert len(report["warnings"]) == 1 and "2" in report["warnings"][0]


def test_without_a_key_a_file_may_grow_but_rows_that_changed_are_refused_because_nothing_tells_them_apart(project: Project) -> None:
    (project.root / "palan.toml").write_text(TOML.replace('key = ["place", "at"]\n', ""), encoding="utf-8")
    keyless = open_project(project.root)
    deliver(project, "one.csv", HEAD + hours(0, 3))
    ingest(keyless)
    for changed in (hours(0, 2), hours(0, 2) + hours(2, 3, temp=50.0), "XXX,never,hot,\n"):
        deliver(project, "one.csv", HEAD + changed)
        with pytest.raises(PalanError, match=r"feed/one\.csv: the file was taken in before and rows of it have changed") as refused:
            ingest(keyless)
        assert "key = " in refused.value.hint and rows(keyless).height == 3
    deliver(project, "one.csv", HEAD + hours(3, 4) + hours(0, 3) + hours(2, 3))  # in any order; the same row twice is two rows
    (report,) = ingest(keyless)
    assert (report["rows"], report["corrections"], rows(keyless).height) == (2, 0, 5)
    deliver(project, "two.csv", HEAD + hours(3, 4))
    assert ingest(keyless)[0]["rows"] == 1


def test_a_contract_that_changed_is_asked_of_new_files_and_old_ones_stay_readable(project: Project) -> None:
    deliver(project, "one.csv", HEAD + hours(0, 3))
    ingest(project)
    changed = TOML.replace('dewp = "float?"', 'dewp = "float?"\nwind = "int?"').replace('key = ["place", "at"]', 'key = ["place", "at", "wind"]')
    (project.root / "palan.toml").write_text(changed, encoding="utf-8")
    later = open_project(project.root)
    deliver(project, "two.csv", "place,at,temp,dewp,wind\nEWR,2026-01-02T00:00:00Z,40,30,5\nEWR,2026-01-02T01:00:00Z,40,30,6\n")
    (report,) = ingest(later)
    assert report["rows"] == 2
    frame = rows(later).sort("at")
    assert frame["wind"].to_list() == [None, None, None, 5, 6]


def temps(project: Project) -> list[float]:
    return rows(project).sort("at")["temp"].to_list()


def test_a_file_that_comes_again_corrects_only_what_it_says_anew(project: Project) -> None:
    deliver(project, "1.csv", HEAD + hours(0, 3))
    deliver(project, "2.csv", HEAD + hours(0, 2, temp=60.0))
    ingest(project)
    assert temps(project) == [60.0, 60.1, 40.2]
    deliver(project, "1.csv", HEAD + hours(0, 4))  # one row more; the others are as 1.csv told them before 2.csv did better
    (report,) = ingest(project)
    assert (report["rows"], report["corrections"]) == (1, 0) and "3 as before" in report["text"]
    assert temps(project) == [60.0, 60.1, 40.2, 40.3]
    deliver(project, "1.csv", HEAD + hours(0, 1, temp=70.0) + hours(1, 4))
    (report,) = ingest(project)
    assert (report["rows"], report["corrections"]) == (0, 1)
    assert temps(project) == [70.0, 60.1, 40.2, 40.3]
    deliver(project, "1.csv", HEAD + hours(0, 4))  # what it said first is news again: it said something else since
    (report,) = ingest(project)
    assert (report["rows"], report["corrections"]) == (0, 1)
    assert temps(project) == [40.0, 60.1, 40.2, 40.3]
    newest = tables.latest(project, "weather")
    assert newest is not None and newest.rows == rows(project).height == 4


def test_a_column_that_is_added_to_a_file_makes_its_rows_news(project: Project) -> None:
    deliver(project, "1.csv", HEAD + hours(0, 2))
    ingest(project)
    deliver(project, "1.csv", "place,at,temp,dewp,note\nEWR,2026-01-01T00:00:00Z,40.0,30,\nEWR,2026-01-01T01:00:00Z,40.1,30,checked\n")
    (report,) = ingest(project)
    assert (report["rows"], report["corrections"]) == (0, 1)
    assert rows(project).sort("at")["note"].to_list() == [None, "checked"]


def changed(project: Project, *pairs: tuple[str, str]) -> Project:
    text = TOML
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (project.root / "palan.toml").write_text(text, encoding="utf-8")
    return open_project(project.root)


def test_a_key_that_makes_one_row_of_two_is_refused_and_nothing_is_lost(project: Project) -> None:
    deliver(project, "1.csv", HEAD + "EWR,2026-01-01T00:00:00Z,40,30\n")
    deliver(project, "2.csv", HEAD + "JFK,2026-01-01T00:00:00Z,41,30\n")
    ingest(project)
    other = changed(project, ('key = ["place", "at"]', 'key = ["at"]'))
    assert rows(other).height == 2  # what a version holds does not hang on the file
    deliver(project, "3.csv", HEAD + hours(5, 7))
    with pytest.raises(PalanError, match=re.escape('key = ["at"] makes 1 rows of what is stored, and key = ["place", "at"], by which weather@1 was made, 2')) as refused:
        ingest(other)
    assert 'write key = ["place", "at"] again' in refused.value.hint and "palan ingest weather_2" in refused.value.hint
    assert rows(other).height == 2 and len(other.store.records.find(DataVersion)) == 1
    anew = changed(project, ("[data.weather]", "[data.weather_2]"), ("[data.weather.columns]", "[data.weather_2.columns]"), ('key = ["place", "at"]', 'key = ["at"]'))
    assert ingest(anew)[0]["corrections"] == 1  # as the hint says


def test_a_contract_that_was_tightened_is_held_against_the_stored_rows_once(project: Project) -> None:
    deliver(project, "1.csv", HEAD + hours(0, 3) + hours(3, 5, temp=90.0))
    ingest(project)
    said = "2 of 5 stored rows break the contract that palan.toml has now: 2 x temp is outside -30..50"
    tight = changed(project, ("-30..120", "-30..50"))
    (report,) = ingest(tight)
    assert report["files"] == [] and said in report["text"] and said in report["warnings"][0] and "palan ingest weather" in report["text"]
    assert report["version"] == "weather@2" and rows(tight).height == 5  # told, not taken away
    assert said in log(tight)["entries"][-1]["reason"]
    assert ingest(tight)[0]["text"] == "nothing new"
    deliver(project, "1.csv", HEAD + hours(0, 5))  # delivered corrected
    (report,) = ingest(tight)
    assert (report["rows"], report["corrections"], report["warnings"]) == (0, 2, [])
    wide = changed(project, ("-30..120", "-90..190"))
    assert ingest(wide)[0]["text"] == "nothing new" and tables.find_data_version(wide, "weather").ref == "weather@3"


def test_a_column_that_is_declared_later_is_read_as_its_type_or_refused(project: Project) -> None:
    head = HEAD.replace("dewp", "dewp,wind")
    deliver(project, "1.csv", head + "EWR,2026-01-01T00:00:00Z,40,30,5\nEWR,2026-01-01T01:00:00Z,40,30,\n")
    ingest(project)
    assert rows(project)["wind"].to_list() == ["5", None]  # no contract says more
    declared = changed(project, ('dewp = "float?"', 'dewp = "float?"\nwind = "int?"'))
    deliver(project, "2.csv", head + "EWR,2026-01-01T01:00:00Z,40,30,7\nEWR,2026-01-01T02:00:00Z,40,30,8\n")
    (report,) = ingest(declared)
    assert (report["corrections"], report["warnings"]) == (1, [])
    assert rows(declared).schema["wind"] == pl.Int64 and rows(declared).sort("at")["wind"].to_list() == [5, 7, 8]
    truth = changed(project, ('dewp = "float?"', 'dewp = "float?"\nwind = "bool?"'))
    with pytest.raises(PalanError, match=r"3 of 3 stored rows break the contract .* 3 x wind is not true or false") as refused:
        ingest(truth)
    assert "give wind the old type again" in refused.value.hint
    assert rows(truth).sort("at")["wind"].to_list() == [5, 7, 8]


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"], ids=["an old Mac", "Windows", "Unix"])
@pytest.mark.parametrize("quote", ["", '"'], ids=["plain", "quoted"])
def test_lines_may_end_as_they_do_anywhere(project: Project, end: str, quote: str) -> None:
    text = (HEAD + hours(0, 3) + "EWR,2026-01-01T09:00:00Z,warm,30\n").replace("EWR", f"{quote}EWR{quote}")
    deliver(project, "one.csv", text.replace("\n", end).encode())
    (report,) = ingest(project)
    assert (report["rows"], report["quarantined"]) == (3, 1)
    assert broken(project)["palan_line"].to_list() == [5]


def test_a_time_that_no_calendar_knows_is_no_time(project: Project) -> None:
    times = ["9999-12-31T23:59:59-23:59", "-2025-01-01T00:00:00Z", "-2025-01-01", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59.999999Z", "0001-01-01"]
    deliver(project, "one.csv", HEAD + "".join(f"EWR,{time},40,30\n" for time in times))
    (report,) = ingest(project)
    assert (report["rows"], report["quarantined"], report["reasons"]) == (2, 4, {"at is outside the years 1 to 9999": 4})
    assert sorted(each.year for each in rows(project)["at"].to_list()) == [1, 9999]
    assert broken(project)["at"].to_list() == times[:4]
    buffer = io.BytesIO()
    far = pl.Series("at", [2**61]).cast(pl.Datetime("us", "UTC"))
    pl.DataFrame({"place": ["EWR"], "at": far, "temp": [40.0], "dewp": [30.0]}).write_parquet(buffer)
    deliver(project, "two.parquet", buffer.getvalue())
    assert ingest(project)[0]["reasons"] == {"at is outside the years 1 to 9999": 1}


def test_a_file_with_thousands_of_columns_is_read_and_one_with_more_is_refused(project: Project) -> None:
    def wide(columns: int) -> str:
        names = [f"c{number}" for number in range(columns)]
        return HEAD.strip() + "," + ",".join(names) + "\nEWR,2026-01-01T00:00:00Z,40,30," + ",".join("1" * columns) + "\n"

    deliver(project, "one.csv", wide(3000))
    (report,) = ingest(project)
    assert report["rows"] == 1 and rows(project).width == 3004
    for name in ("c0", "temp"):
        deliver(project, "two.csv", wide(9000).replace(",c8999", f",{name}"))
        with pytest.raises(PalanError, match=f'two columns of the file are named "{name}"'):
            ingest(project)
    deliver(project, "two.csv", wide(100_000))
    with pytest.raises(PalanError, match="the file has 100,004 columns, and at most 10,000 are read"):
        ingest(project)


ODD = {
    "a list": pl.Series([[1, 2], None]),
    "a list of lists": pl.Series([[["a"]], [[]]]),
    "a struct": pl.Series([{"a": 1}, {"a": None}]),
    "a duration": pl.Series([timedelta(days=1), None]),
    "a duration of ages": pl.Series([2**62, 1]).cast(pl.Duration("ms")),
    "bytes": pl.Series([b"\xff\xfe", b"plain"]),
    "a time of day": pl.Series([1, 2]).cast(pl.Time),
    "a decimal": pl.Series(["1.5", "2.5"]).cast(pl.Decimal(10, 2)),
    "nothing": pl.Series([None, None]),
}


@pytest.mark.parametrize("values", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("kind", ["int", "str", "float", "bool", "time", "date"])
def test_a_parquet_column_of_any_type_is_judged_and_shown(project: Project, kind: str, values: pl.Series) -> None:
    text = TOML.replace('dewp = "float?"', f'odd = "{kind}"').replace('checks = ["dewp <= temp"]\n', "")
    (project.root / "palan.toml").write_text(text, encoding="utf-8")
    odd = open_project(project.root)
    buffer = io.BytesIO()
    frame().drop("dewp").with_columns(values.alias("odd"), values.alias("extra")).write_parquet(buffer)
    deliver(project, "one.parquet", buffer.getvalue())
    (report,) = ingest(odd)
    assert report["rows"] + report["quarantined"] == 2
    if report["quarantined"]:
        (kept,) = quarantined(odd, "weather")
        bad = tables.load_frame(odd, kept.blob)
        assert bad.schema["odd"] == bad.schema["extra"] == pl.String
        assert bad["odd"].null_count() == values.null_count()


@pytest.mark.parametrize("values", ODD.values(), ids=ODD.keys())
def test_rows_are_compared_whatever_they_hold(project: Project, values: pl.Series) -> None:
    for rounds, compression in enumerate(("zstd", "gzip")):
        buffer = io.BytesIO()
        frame().with_columns(values.alias("extra")).write_parquet(buffer, compression=compression)  # type: ignore[arg-type]
        deliver(project, "one.parquet", buffer.getvalue())
        (report,) = ingest(project)
        assert (report["rows"], report["corrections"], len(report["files"])) == (0 if rounds else 2, 0, 1)
    assert rows(project)["extra"].to_list() == values.to_list() if values.dtype != pl.Duration("ms") else rows(project).height == 2


def test_a_file_name_that_is_no_text_is_refused(project: Project) -> None:
    deliver(project, "a.csv", HEAD + hours(0, 2))
    path = Path(os.fsdecode(os.fsencode(project.root / "feed") + b"/caf\xe9.csv"))
    path.write_text(HEAD + hours(2, 3), encoding="utf-8")
    with pytest.raises(PalanError, match=r"the name of feed/caf\\xe9\.csv is not UTF-8 text") as refused:
        ingest(project)
    assert refused.value.hint.startswith("rename the file") and str(refused.value).encode()
    assert rows(project).height == 2
    path.rename(project.root / "feed" / "cafe.csv")
    assert ingest(project)[0]["rows"] == 1


def test_a_killed_ingest_goes_on_with_the_file_it_was_at(project: Project) -> None:
    for number in range(6):
        body = "".join(f"EWR,2026-01-{day:02d}T{hour:02d}:{minute:02d}:00Z,{40 + number},30\n" for day in range(1, 29) for hour in range(24) for minute in range(number, 60, 6))
        deliver(project, f"{number}.csv", HEAD + body)
    command = [sys.executable, "-m", "palan.cli", "--project", str(project.root), "ingest"]
    chance, kills = random.Random(4), 0
    for _ in range(12):
        before = {step.name: step.id for step in project.store.records.find(Step)}
        taking = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(SOURCES)})
        try:
            _, errors = taking.communicate(timeout=chance.uniform(0.3, 1.2) if kills < 4 else 60)
        except subprocess.TimeoutExpired:
            taking.send_signal(signal.SIGKILL)
            taking.communicate()
            kills += 1
        after = {step.name: step.id for step in project.store.records.find(Step)}
        assert before.items() <= after.items()
        if taking.returncode != -signal.SIGKILL:
            assert taking.returncode == 0, errors
            break
    (version,) = project.store.records.find(DataVersion)
    assert version.rows == rows(project).height == 28 * 24 * 60
    assert len(version.parts) == len(version.sources) == len(project.store.records.find(Step)) == 6
    assert len(log(project, verify=True)["entries"]) == 1


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_delivered_in_whatever_order_the_table_is_what_was_said_last(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    for place, name, sizes in ((reading, "PIECE", (30, 1 << 20)), (tables, "PART_ROWS", (1, 3, 1000))):
        monkeypatch.setattr(place, name, chance.choice(sizes))
    (tmp_path / "palan.toml").write_text('[data.t]\nsource = "feed/*"\nkey = ["k"]\ncolumns = { k = "int", v = "int 0..50", w = "str?" }\n', encoding="utf-8")
    (tmp_path / "feed").mkdir()
    opened = open_project(tmp_path)
    table: dict[int, tuple[int, int, str]] = {}
    files: dict[str, list[tuple[int, int, str]]] = {}
    said: dict[str, dict[int, tuple[int, int, str]]] = {"a": {}, "b": {}, "c": {}}
    for _ in range(5):
        delivered = chance.sample("abc", 2)
        for name in sorted(delivered):
            more = [(chance.randrange(8), chance.choice([1, 2, 3, 99]), chance.choice(["", "x", "y"])) for _ in range(chance.randrange(1, 9))]
            files[name] = [*files.get(name, [])[chance.choice([0, 1, 100]) :], *more]
            (tmp_path / "feed" / f"{name}.csv").write_text("k,v,w\n" + "".join(f"{k},{v},{w}\n" for k, v, w in files[name]), encoding="utf-8")
            for key in {row[0] for row in files[name]}:
                rows = {row for row in files[name] if row[0] == key and row[1] <= 50}
                if len(rows) == 1 and said[name].get(key) not in rows:  # what a file only repeats may have been corrected by another since
                    table[key] = said[name][key] = rows.pop()
        (report,) = ingest(opened, "t")
        newest = tables.latest(opened, "t")
        found = {row[0]: (*row[:2], row[2] or "") for row in tables.read(opened, newest).rows()} if newest else {}
        assert found == table
        assert report["total"] == len(table) and (newest is None or tables.scan(opened, newest).select(pl.len()).collect().item() == len(table))
    opened.store.records.close()
