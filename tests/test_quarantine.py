"""Rows that broke a rule are looked at, delivered corrected, or taken in when the rule was wrong; what is left stays."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from palan.cli.commands import cli
from palan.data.nouns import Quarantine
from palan.flows import tables
from palan.flows.ingest import ingest
from palan.flows.log import log
from palan.flows.project import Project, open_project
from palan.flows.quarantine import waiting
from palan.flows.why import why

TOML = """
[data.weather]
source = "feed/*"
key = ["place", "at"]
time = "at"
checks = ["dewp <= temp"]
[data.weather.columns]
place = "str in EWR JFK"
at = "time"
temp = "float -30..50 °F"
dewp = "float?"
"""
HEAD = "place,at,temp,dewp\n"
DIRTY = (
    "EWR,2026-01-01T00:00Z,40,30\n"
    "EWR,2026-01-01T01:00Z,warm,30\n"
    "LGA,2026-01-01T02:00Z,60,70\n"
    "EWR,2026-01-01T03:00Z,52,30\n"
    "EWR,2026-01-01T04:00Z,41\n"
    "EWR,2026-01-01T00:00Z,40.0,30\n"
)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    (tmp_path / "feed").mkdir()
    opened = configured(tmp_path, TOML)
    yield opened
    opened.store.records.close()


def configured(root: Path, text: str) -> Project:
    (root / "palan.toml").write_text(text, encoding="utf-8")
    return open_project(root)


def deliver(project: Project, name: str, rows: str) -> None:
    (project.root / "feed" / name).write_text(HEAD + rows, encoding="utf-8")


def temps(project: Project) -> list[float]:
    return tables.read(project, tables.find_data_version(project, "weather")).sort("at")["temp"].to_list()


def lines(project: Project) -> list[tuple[str, int]]:
    return [(each["file"], each["line"]) for each in why(project, "weather")["quarantine"]]


def test_what_waits_is_listed_with_the_cells_that_are_wrong_and_what_to_do(project: Project) -> None:
    deliver(project, "one.csv", DIRTY)
    (report,) = ingest(project)
    assert (report["quarantined"], report["waiting"], report["next"]) == (5, 5, "palan why weather@1")
    found = why(project, "weather@1")
    assert (found["kind"], found["rows"], found["waiting"], found["came from"]) == ("data", 1, 5, ["feed/one.csv"])
    assert [each["text"] for each in found["quarantine"]] == [
        'feed/one.csv line 3: temp = "warm": temp is not a float',
        'feed/one.csv line 4: place = "LGA", temp = "60", dewp = "70": place is not one of EWR JFK; temp is outside -30..50; check dewp <= temp',
        'feed/one.csv line 5: temp = "52": temp is outside -30..50',
        "feed/one.csv line 6: line has 3 fields, the header has 4",
        'feed/one.csv line 7: place = "EWR", at = "2026-01-01T00:00Z": key place, at repeats an earlier row',
    ]
    assert found["quarantine"][0]["row"] == {"place": "EWR", "at": "2026-01-01T01:00Z", "temp": "warm", "dewp": "30"}
    assert "put feed/one.csv right, or the rule in [data.weather]" in found["to do"] and "palan ingest weather" in found["to do"]


def test_a_person_sees_twenty_rows_and_another_program_all(project: Project) -> None:
    deliver(project, "one.csv", "".join(f"EWR,2026-01-01T{hour:02d}:{minute}0Z,99,30\n" for hour in range(24) for minute in range(3)))
    told = CliRunner().invoke(cli, ["-p", str(project.root), "ingest"])
    assert "  72 x temp is outside -30..50\nnext: palan why weather@1\n" in told.output
    shown = CliRunner().invoke(cli, ["-p", str(project.root), "why", "weather@1"]).output
    assert shown.count("temp is outside") == 20 and "… and 52 more: palan why weather@1 --json" in shown
    assert CliRunner().invoke(cli, ["-p", str(project.root), "why", "weather@1", "--json"]).output.count('"line"') == 72


def test_a_file_that_is_delivered_corrected_resolves_its_rows(project: Project) -> None:
    deliver(project, "one.csv", DIRTY)
    ingest(project)
    deliver(project, "one.csv", DIRTY.replace("warm", "44").replace("Z,41\n", "Z,41,33\n"))
    (report,) = ingest(project)
    assert (report["rows"], report["quarantined"], report["waiting"]) == (2, 3, 3)
    assert report["resolved"] == ["2 rows of quarantine resolved: feed/one.csv was delivered again"]
    assert temps(project) == [40.0, 44.0, 41.0] and [line for _, line in lines(project)] == [4, 5, 7]
    entry = log(project)["entries"][-1]
    assert "2 rows of quarantine resolved" in entry["reason"]
    assert entry["detail"]["resolved"] == [
        {"source": "feed/one.csv", "status": "fixed", "rows": 2, "reasons": {"temp is not a float": 1, "line has 3 fields, the header has 4": 1}}
    ]
    deliver(project, "one.csv", DIRTY)  # broken again, as it was at first: it waits again
    ingest(project)
    assert [line for _, line in lines(project)] == [3, 4, 5, 6, 7]


def test_a_corrected_row_in_another_file_resolves_the_one_with_its_key(project: Project) -> None:
    deliver(project, "one.csv", DIRTY)
    ingest(project)
    deliver(project, "two.csv", "EWR,2026-01-01T03:00:00Z,45,30\nEWR,2026-01-01T09:00Z,45,30\n")
    (report,) = ingest(project)
    assert report["resolved"] == ["1 row of quarantine resolved: rows of feed/one.csv were delivered corrected"]
    assert lines(project) == [("feed/one.csv", line) for line in (3, 4, 6, 7)]
    kept = {each.status: each.rows for each in project.store.records.find(Quarantine)}
    assert kept == {"open": 4, "fixed": 1}


def test_a_rule_that_was_wrong_takes_in_the_rows_that_hold_now(project: Project) -> None:
    deliver(project, "one.csv", DIRTY)
    ingest(project)
    wide = configured(project.root, TOML.replace("-30..50", "-30..60"))
    (report,) = ingest(wide)
    assert (report["version"], report["rows"], report["quarantined"], report["waiting"]) == ("weather@2", 1, 0, 4)
    assert report["resolved"] == ["1 row of quarantine taken in: they hold since palan.toml was changed (temp is outside -30..50)"]
    assert temps(wide) == [40.0, 52.0] and [line for _, line in lines(wide)] == [3, 4, 6, 7]
    assert "temp is outside" not in " ".join(each["text"] for each in why(wide, "weather")["quarantine"])
    assert "taken in" in log(wide)["entries"][-1]["reason"]
    assert ingest(wide)[0]["text"] == "nothing new"
    wider = configured(project.root, TOML.replace("-30..50", "-30..60").replace("EWR JFK", "EWR JFK LGA").replace('checks = ["dewp <= temp"]\n', ""))
    assert ingest(wider)[0]["rows"] == 1 and temps(wider) == [40.0, 60.0, 52.0]
    deliver(project, "one.csv", DIRTY)
    assert ingest(wider)[0]["text"] == "nothing new"
    assert tables.find_data_version(wider, "weather").rows == 3


def test_a_row_that_was_corrected_since_is_not_undone_by_a_wider_rule(project: Project) -> None:
    deliver(project, "one.csv", DIRTY)
    ingest(project)
    deliver(project, "two.csv", "EWR,2026-01-01T03:00Z,45,30\n")
    ingest(project)
    wide = configured(project.root, TOML.replace("-30..50", "-30..60"))
    assert ingest(wide)[0]["rows"] == 0
    assert temps(wide) == [40.0, 45.0]


def test_without_a_key_a_corrected_file_brings_the_rows_that_were_missing(project: Project) -> None:
    keyless = configured(project.root, TOML.replace('key = ["place", "at"]\n', ""))
    deliver(keyless, "one.csv", DIRTY)
    ingest(keyless)
    deliver(keyless, "one.csv", DIRTY.replace("warm", "44"))
    (report,) = ingest(keyless)
    assert (report["rows"], report["resolved"]) == (1, ["1 row of quarantine resolved: feed/one.csv was delivered again"])
    wide = configured(project.root, TOML.replace('key = ["place", "at"]\n', "").replace("-30..50", "-30..60"))
    assert ingest(wide)[0]["rows"] == 1
    deliver(wide, "one.csv", DIRTY.replace("warm", "44").replace("LGA", "JFK").replace("60,70", "60,50"))
    assert ingest(wide)[0]["rows"] == 1  # and not once more what the wider rule took in
    assert sorted(temps(wide)) == [40.0, 40.0, 44.0, 52.0, 60.0]


def test_rows_that_came_as_parquet_are_judged_again_as_they_were(project: Project) -> None:
    buffer = io.BytesIO()
    at = [datetime(2026, 1, 1, hour, 30, tzinfo=UTC) for hour in range(2)]
    frame = pl.DataFrame({"place": ["EWR", "JFK"], "at": at, "temp": [52.25, 51.125], "dewp": [None, 1.5]}).with_columns(pl.col("at").dt.convert_time_zone("America/New_York"))
    frame.write_parquet(buffer)
    (project.root / "feed" / "one.parquet").write_bytes(buffer.getvalue())
    assert ingest(project)[0]["quarantined"] == 2
    wide = configured(project.root, TOML.replace("-30..50", "-30..60"))
    assert ingest(wide)[0]["rows"] == 2 and waiting(wide, "weather") == []
    assert tables.read(wide, tables.find_data_version(wide, "weather")).sort("at").rows() == [("EWR", at[0], 52.25, None), ("JFK", at[1], 51.125, 1.5)]
