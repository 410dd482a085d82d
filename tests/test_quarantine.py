"""Rows that broke a rule are looked at, delivered corrected, or taken in when the rule was wrong; what is left stays."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from palan.cli.commands import cli
from palan.cli.data import quarantined
from palan.data.nouns import Quarantine
from palan.errors import Invalid, PalanError
from palan.flows import quarantine, tables
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



def test_a_file_may_correct_another_one_that_is_taken_in_with_it(project: Project) -> None:
    deliver(project, "one.csv", "EWR,2013-01-01 00:00,20,10\nEWR,2013-01-01 01:00,999,10\nEWR,2013-01-01 02:00,888,10\n")
    deliver(project, "two.csv", "EWR,2013-01-01 01:00,21,10\nEWR,2013-01-01 00:00,777,10\n")
    report = ingest(project)[0]
    assert (temps(project), report["waiting"]) == ([20.0, 21.0], 2)
    assert report["resolved"] == ["1 row of quarantine resolved: rows of feed/one.csv were delivered corrected"]
    assert sorted(lines(project)) == [("feed/one.csv", 4), ("feed/two.csv", 3)]  # what an earlier file said settles nothing

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


# --- what a person decides: palan data quarantine ------------------------------------------------------------------

TENTHS = DIRTY + "EWR,2026-01-01T05:00Z,412,30\nJFK,2026-01-01T06:00Z,4110,30\n"
"""Lines 8 and 9 are in tenths and hundredths of a degree."""


def command(project: Project, *arguments: str, columns: int = 100) -> str:
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(cli, ["-p", str(project.root), "data", "quarantine", *arguments])
    if isinstance(result.exception, PalanError):
        return str(result.exception)
    assert result.exception is None, result.output
    return result.output


def last(project: Project) -> tuple[str, str, str]:
    entry = log(project)["entries"][-1]
    return entry["verb"], entry["subject"], entry["reason"]


def test_what_waits_is_counted_by_rule_and_file_with_the_line_of_palan_toml(project: Project) -> None:
    deliver(project, "one.csv", TENTHS)
    deliver(project, "two.csv", "EWR,2026-01-02T00:00Z,77,30\n")
    ingest(project)
    (found,) = quarantine.overview(project, "weather")
    assert found["rows"] == 8 and found["rules"][0] == {"rule": "temp is outside -30..50", "rows": 5, "contract": 'palan.toml:10 temp = "float -30..50 °F"'}
    assert {each["file"]: each["rows"] for each in found["files"]} == {"feed/one.csv": 7, "feed/two.csv": 1}
    assert "weather,feed/two.csv,temp is outside -30..50,1\n" in command(project, "list", "--csv")
    assert '        5  temp is outside -30..50  palan.toml:10 temp = "float -30..50 °F"\n' in command(project)
    assert "then: palan ingest weather" in command(project, "weather")


def test_a_row_is_shown_with_its_offending_cells_marked_in_any_width(project: Project) -> None:
    deliver(project, "one.csv", TENTHS)
    ingest(project)
    told = command(project, "show", "weather", "--line", "4")
    assert "feed/one.csv line 4\n  ! place  LGA  place is not one of EWR JFK\n    at     2026-01-01T02:00Z\n  ! temp   60  temp is outside -30..50; check dewp <= temp\n" in told
    narrow = command(project, "show", "weather", "--rule", "temp is outside", columns=30)
    assert "  ! temp   60\n      temp is outside -30..5" in narrow and max(map(len, narrow.splitlines()[:-1])) <= 30
    found = quarantine.show(project, "weather", quarantine.Asked(where="temp > 400"))
    assert [(each["line"], each["marks"], each["row"]["temp"]) for each in found["shown"]] == [(line, {"temp": ["temp is outside -30..50"]}, cell) for line, cell in ((8, "412"), (9, "4110"))]
    rows = command(project, "show", "weather", "--csv", "--where", "came.temp = 'warm'").splitlines()
    assert rows == ["palan_file,palan_line,palan_rules,place,at,temp,dewp", "feed/one.csv,3,temp is not a float,EWR,2026-01-01T01:00Z,warm,30"]


def test_cells_are_marked_in_colour_in_a_terminal(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(project, "one.csv", TENTHS)
    ingest(project)
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.delenv("NO_COLOR", raising=False)
    quarantined(quarantine.show(project, "weather", quarantine.Asked(lines=(5,))))
    assert "\033[31;1m  ! temp   52\033[0m  \033[2mtemp is outside -30..50\033[0m\n" in screen.getvalue()


def test_rows_that_are_fixed_by_expression_and_hold_flow_on_and_correct_by_key(project: Project) -> None:
    deliver(project, "none.csv", "EWR,2026-01-01T05:00Z,1,0\n")
    ingest(project)
    deliver(project, "one.csv", TENTHS)
    ingest(project)
    arguments = ("fix", "weather", "--where", "temp > 400", "--set", 'temp = "temp" / 10')
    dry = command(project, *arguments, "--dry-run")
    assert "1 row would be fixed; 1 row stays: 1 x temp is outside -30..50\n" in dry
    assert "line 8: temp 412 -> 41.2\n" in dry and "line 9: temp 4110 -> 411.0  still: temp is outside -30..50\n" in dry
    assert temps(project) == [40.0, 1.0] and "without a reason" in command(project, *arguments)
    assert "weather@3: 1 row fixed, 1 correction; 1 row stays" in command(project, *arguments, "--reason", "tenths of a degree")
    assert temps(project) == [40.0, 41.2] and last(project) == ("fixed", "weather@3", "tenths of a degree")
    detail = log(project)["entries"][-1]["detail"]
    assert detail == {"rows": 1, "rules": {"temp is outside -30..50": 1}, "files": {"feed/one.csv": 1}, "where": "temp > 400", "set": ['temp = "temp" / 10']}
    before = len(log(project)["entries"])
    again = command(project, *arguments, "--where", "temp > 400 and temp < 4000", "--reason", "tenths of a degree")
    assert "no row in quarantine is like that" in again and len(log(project)["entries"]) == before
    found = quarantine.fix(project, "weather", ["temp = CAST(REPLACE(came.temp, 'warm', '44') AS FLOAT)"], quarantine.Asked(where="came.temp = 'warm'"), reason="they wrote words")
    assert (found["rows"], found["version"]) == (1, "weather@4") and sorted(temps(project)) == [40.0, 41.2, 44.0]


def test_what_was_decided_is_not_asked_again_when_the_file_is_read_again(project: Project) -> None:
    deliver(project, "one.csv", TENTHS)
    ingest(project)
    Asked = quarantine.Asked
    quarantine.fix(project, "weather", ['temp = "temp" / 10'], Asked(lines=(8,)), reason="tenths")
    quarantine.accept(project, "weather", Asked(lines=(5,)), reason="a real record")
    quarantine.drop(project, "weather", Asked(lines=(3, 6)), reason="tests")
    assert [line for _, line in lines(project)] == [4, 7, 9] and sorted(temps(project)) == [40.0, 41.2, 52.0]
    deliver(project, "one.csv", TENTHS.replace("Z,40,", "Z,39,").replace("Z,412,", "Z,412.0,") + "EWR,2026-01-01T09:00Z,9,3\n")
    (report,) = ingest(project)
    assert "4 rows as decided before" in report["text"] and (report["rows"], report["corrections"]) == (1, 0)
    assert [line for _, line in lines(project)] == [2, 4, 7, 9]  # lines 2 and 7 tell one key otherwise now
    assert sorted(temps(project)) == [9.0, 40.0, 41.2, 52.0]
    wide = configured(project.root, TOML.replace("-30..50", "-30..9000"))
    deliver(wide, "one.csv", TENTHS)
    ingest(wide)
    assert sorted(temps(wide)) == [9.0, 40.0, 41.2, 52.0, 4110.0]  # and not 412
    deliver(wide, "one.csv", TENTHS.replace("Z,412,", "Z,33,").replace("Z,52,", "Z,34,"))
    assert "tells them anew" in ingest(wide)[0]["text"] and sorted(temps(wide)) == [9.0, 33.0, 34.0, 40.0, 4110.0]
    assert {each.status: each.rows for each in quarantine.decided(wide, "weather")} == {"dropped": 2}


def test_accepted_rows_are_not_put_back_by_a_contract_that_changes(project: Project) -> None:
    deliver(project, "one.csv", TENTHS)
    ingest(project)
    quarantine.accept(project, "weather", quarantine.Asked(where="temp > 50"), reason="a heat wave")
    assert sorted(temps(project)) == [40.0, 52.0, 60.0, 412.0, 4110.0]
    narrow = configured(project.root, TOML.replace("-30..50", "-30..45"))
    (report,) = ingest(narrow)
    assert report["warnings"] == [] and 412.0 in temps(narrow)
    narrower = configured(project.root, TOML.replace("-30..50", "-30..35"))
    assert ingest(narrower)[0]["warnings"] == ["1 of 5 stored rows break the contract that palan.toml has now: 1 x temp is outside -30..35; they stay until their file is delivered corrected (then: palan ingest weather)"]
    retyped = configured(project.root, TOML.replace('temp = "float -30..50 °F"', 'temp = "date"').replace('checks = ["dewp <= temp"]\n', ""))
    with pytest.raises(PalanError, match="5 of 5 stored rows break"):
        ingest(retyped)


def test_what_its_column_cannot_hold_cannot_be_accepted(project: Project) -> None:
    deliver(project, "one.csv", TENTHS + "EWR,2026-01-01T07:00Z,,3\nEWR,,3,3\nEWR,2026-01-01T08:00Z,1,1\nEWR,2026-01-01T08:00Z,2,1\nEWR,2026-01-01T09:00Z,NaN,1\n")
    ingest(project)
    for line, rule in ((3, "temp is not a float"), (6, "line has 3 fields"), (7, "repeats an earlier row"), (10, "temp is missing"), (11, "at is missing"), (14, "temp is not finite")):
        with pytest.raises(Invalid, match="cannot be accepted, for its column cannot hold it: .*" + rule):
            quarantine.accept(project, "weather", quarantine.Asked(lines=(line,)), reason="so be it")
    with pytest.raises(Invalid, match="rows that differ"):
        quarantine.accept(project, "weather", quarantine.Asked(lines=(12, 13)), reason="both")
    assert quarantine.accept(project, "weather", quarantine.Asked(lines=(13,)), reason="the second one")["rows"] == 1
    found = quarantine.accept(project, "weather", quarantine.Asked(all=True), reason="all that can be")
    assert (found["rows"], found["waiting"]) == (5, 6) and temps(project).count(2.0) == 0  # line 12 came before in the file, and was said last
    frame = tables.read(project, tables.find_data_version(project, "weather"))
    assert frame.schema["temp"] == pl.Float64 and frame.select("place", "at").is_unique().all() and not frame["temp"].has_nulls()


def test_without_a_key_a_row_that_was_taken_in_goes_with_the_row_that_it_was_made_of(project: Project) -> None:
    keyless = configured(project.root, TOML.replace('key = ["place", "at"]\n', ""))
    deliver(keyless, "one.csv", TENTHS)
    ingest(keyless)
    quarantine.fix(keyless, "weather", ['temp = "temp" / 10'], quarantine.Asked(where="temp > 400"), reason="tenths")
    quarantine.accept(keyless, "weather", quarantine.Asked(where="temp between 50 and 55"), reason="so it was")
    assert sorted(temps(keyless)) == [40.0, 40.0, 41.2, 52.0]
    deliver(keyless, "one.csv", TENTHS + "JFK,2026-01-03T06:00Z,11,3\n")
    ingest(keyless)
    assert sorted(temps(keyless)) == [11.0, 40.0, 40.0, 41.2, 52.0]
    deliver(keyless, "one.csv", TENTHS.replace("412,", "41.3,").replace("Z,52,", "Z,35,") + "JFK,2026-01-03T06:00Z,11,3\n")
    (report,) = ingest(keyless)
    assert sorted(temps(keyless)) == [11.0, 35.0, 40.0, 40.0, 41.3] and report["total"] == 5
    assert quarantine.decided(keyless, "weather") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("drop", "weather", "--reason", "x"), "it is not said which rows"),
        (("drop", "wether", "--all", "--reason", "x"), 'did you mean "weather"?'),
        (("drop", "weather", "--rule", "tmp is", "--reason", "x"), "no row in quarantine breaks"),
        (("drop", "weather", "--rule", "temp is", "--reason", "x"), '"temp is" begins 2 rules'),
        (("drop", "weather", "--file", "on.csv", "--reason", "x"), 'nothing of "on.csv" is in quarantine'),
        (("accept", "weather", "--where", "tmp > 1", "--reason", "x"), 'did you mean "temp"?'),
        (("accept", "weather", "--where", "temp > AVG(temp)", "--reason", "x"), "is not about one row"),
        (("accept", "weather", "--where", "temp >", "--reason", "x"), "cannot be read"),
        (("accept", "weather", "--where", "temp + 1", "--reason", "x"), "does not answer true or false"),
        (("fix", "weather", "--all", "--set", "temp", "--reason", "x"), "no column = expression"),
        (("fix", "weather", "--all", "--set", "tmp = 1", "--reason", "x"), 'no column "tmp"'),
        (("fix", "weather", "--all", "--set", "temp = place + 1", "--reason", "x"), "cannot be computed"),
        (("fix", "weather", "--all", "--set", "temp = 'hot'", "--reason", "x"), "7 rows would not hold: "),
    ],
)
def test_a_mistake_is_told_and_changes_nothing(project: Project, arguments: tuple[str, ...], said: str) -> None:
    deliver(project, "one.csv", TENTHS)
    ingest(project)
    assert said in command(project, *arguments)
    assert (len(waiting(project, "weather")), len(log(project)["entries"])) == (1, 1)


def test_an_end_at_any_write_leaves_the_old_state_or_the_new_one(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(project, "one.csv", TENTHS)
    ingest(project)
    blobs, records = type(project.store.blobs), type(project.store.records)
    for number in itertools.count(1):
        left = number

        def counted(inner: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
                return inner(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for owner, name in ((blobs, "put"), (records, "put"), (records, "add"), (records, "remove")):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            try:
                quarantine.fix(project, "weather", ['temp = "temp" / 10'], quarantine.Asked(lines=(8,)), reason="tenths")
            except KeyboardInterrupt:
                done = False
            else:
                done = True
        state = (sorted(temps(project)), sum(each.rows for each in waiting(project, "weather")), [each["verb"] for each in log(project)["entries"]])
        new = done or state[2] == ["ingested", "fixed"]
        assert state == (([40.0, 41.2], 6, ["ingested", "fixed"]) if new else ([40.0], 7, ["ingested"])), number
        if new:
            break
    assert number > 5


def test_two_at_once_decide_about_a_row_once(project: Project) -> None:
    deliver(project, "one.csv", TENTHS)
    ingest(project)

    def decide(_: int) -> int:
        mine = open_project(project.root)
        try:
            return int(quarantine.fix(mine, "weather", ['temp = "temp" / 10'], quarantine.Asked(lines=(8,)), reason="tenths")["rows"])
        finally:
            mine.store.records.close()

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(decide, range(2))) == [0, 1]
    assert sorted(temps(project)) == [40.0, 41.2] and [each["verb"] for each in log(project)["entries"]] == ["ingested", "fixed"]


def test_what_is_wrong_beside_other_rows_is_fixed_where_that_is_set(project: Project) -> None:
    unique = configured(project.root, TOML.replace('dewp = "float?"', 'dewp = "float?"\nbadge = "str? unique length 2.."'))
    (unique.root / "feed" / "one.csv").write_text("place,at,temp,dewp,badge\n" + "".join(f"EWR,2026-01-01T0{hour}:00Z,40,30,{badge}\n" for hour, badge in enumerate(("a1", "b2", "b2", "c3"))), encoding="utf-8")
    assert ingest(unique)[0]["reasons"] == {"badge is not unique": 2}
    Asked = quarantine.Asked
    with pytest.raises(Invalid, match="2 rows would not hold: 2 x badge is not unique"):
        quarantine.fix(unique, "weather", ["temp = 41"], Asked(all=True), reason="no help")
    with pytest.raises(Invalid, match="2 x badge is not unique"):
        quarantine.fix(unique, "weather", ["badge = 'd4'"], Asked(all=True), reason="the same again")
    assert quarantine.fix(unique, "weather", ["badge = CONCAT('b', STRFTIME(at, '%H'))"], Asked(lines=(4,)), reason="a slip")["rows"] == 1
    assert quarantine.accept(unique, "weather", Asked(lines=(3,)), reason="the right one")["waiting"] == 0
    frame = tables.read(unique, tables.find_data_version(unique, "weather"))
    assert sorted(frame["badge"]) == ["a1", "b02", "b2", "c3"]
