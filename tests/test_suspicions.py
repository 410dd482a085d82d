"""A delivery that means something else than before is told at ingest, remembered with the version, and forgotten once it is put right."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from palan.data.nouns import Repair
from palan.drift.nouns import Alarm
from palan.errors import Invalid, NotAdmitted, NotFound
from palan.flows import deliveries, tables
from palan.flows.accept import accept
from palan.flows.build import build
from palan.flows.check import check
from palan.flows.config import ModelConfig
from palan.flows.ingest import ingest
from palan.flows.init import TEMPLATES
from palan.flows.log import log
from palan.flows.project import Project, open_project
from palan.flows.react import suspected_inputs
from palan.flows.release import release
from palan.flows.status import status
from palan.flows.why import why
from palan.models.contract import KINDS

TOML = """
[data.weather]
source = "feed/*.csv"
key = ["origin", "time_hour"]
time = "time_hour"
columns = { origin = "str in EWR JFK LGA", time_hour = "time", temp = "float? LOW..120 °F", dewp = "float? -60..100 °F", humid = "float? 0..100 %", wind_speed = "float? 0..1500 mph", pressure = "float? 900..1080 hPa" }
"""
COLUMNS = ["origin", "time_hour", "temp", "dewp", "humid", "wind_speed", "pressure"]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    opened = configured(tmp_path)
    yield opened
    opened.store.records.close()


def configured(root: Path, low: str = "-30") -> Project:
    (root / "palan.toml").write_text(TOML.replace("LOW", low), encoding="utf-8")
    (root / "feed").mkdir(exist_ok=True)
    return open_project(root)


@pytest.fixture
def months(flights_example: Path) -> list[pl.DataFrame]:
    return [pl.read_parquet(flights_example / "data" / f"weather-2013-{month:02d}.parquet").select(COLUMNS) for month in (8, 9, 10, 11, 12)]


def celsius(frame: pl.DataFrame, since: str = "", until: str = "9") -> pl.DataFrame:
    wrong = pl.col("time_hour").is_between(pl.lit(since), pl.lit(until), closed="left")
    return frame.with_columns(pl.when(wrong).then(((pl.col(name) - 32) / 1.8).round(2)).otherwise(name).alias(name) for name in ("temp", "dewp"))


def deliver(project: Project, name: str, frame: pl.DataFrame) -> dict[str, object]:
    frame.write_csv(project.root / "feed" / f"{name}.csv")
    (report,) = ingest(project)
    return report


def suspected(project: Project) -> list[tuple[str, tuple[str, ...], str]]:
    return [(each.kind, tuple(sorted(each.columns)), str(each.since.date())) for each in tables.suspicions(project, "weather")]


def test_another_unit_is_told_where_it_comes_in_and_forgotten_once_it_is_put_right(project: Project, months: list[pl.DataFrame]) -> None:
    for name, frame in zip("89a", months, strict=False):
        assert deliver(project, name, frame)["warnings"] == []
    report = deliver(project, "b", celsius(months[3]))
    assert report["warnings"] == [
        'suspect: temp and dewp are in °C instead of °F since 2013-11-01: temp × 9/5 + 32 brings temp back; dewp × 9/5 + 32 brings dewp back'
    ]
    assert report["next"] == "palan why weather@4"
    assert suspected(project) == [("unit", ("dewp", "temp"), "2013-11-01")]
    assert "suspect: temp and dewp" in log(project)["entries"][-1]["reason"]
    assert "°C instead of °F" in status(project)["data"][0]["why"]
    assert "°C instead of °F" in why(project, "weather")["suspected"][0]
    assert deliver(project, "c", months[4])["warnings"] == []  # the feed is right again: the month of the fault is no history
    assert suspected(project) == [("unit", ("dewp", "temp"), "2013-11-01")]
    since = datetime(2013, 11, 1, tzinfo=UTC)
    model = ModelConfig("delay", model="delay.py:Delay", data="weather", inputs=("temp", "dewp", "humid"))
    during, after = (Alarm("a", "delay", since, "page", "open", since + timedelta(days=day), since + timedelta(days=day + 7), "", "concept change") for day in (5, 40))
    assert len(suspected_inputs(project, model, [], during)) == 1
    assert suspected_inputs(project, model, [], after) == []  # a fault that was over explains nothing that came later
    repairs = [Repair(column, "", "", since) for column in ("temp", "dewp")]
    assert suspected_inputs(project, model, repairs, during) == []
    assert tables.suspicions(project, "weather", repairs=repairs) == []
    assert len(tables.suspicions(project, "weather", repairs=repairs[:1])) == 1
    assert deliver(project, "b", months[3])["warnings"] == []
    assert suspected(project) == []


def test_what_only_a_look_at_the_delivery_tells_is_told_as_well(project: Project, months: list[pl.DataFrame]) -> None:
    for name, frame in zip("89a", months, strict=False):
        assert deliver(project, name, frame)["warnings"] == []
    november = months[3].filter(pl.col("time_hour") < "2013-12-01")
    (warning,) = deliver(project, "b", november.with_columns(pl.col("pressure").floor()))["warnings"]  # type: ignore[misc]
    assert warning.startswith("suspect: pressure has lost its decimals since 2013-11-")
    assert [(kind, columns) for kind, columns, _ in suspected(project)] == [("truncated", ("pressure",))]
    assert deliver(project, "b", november)["warnings"] == []
    assert suspected(project) == []
    (warning,) = deliver(project, "c", months[4].filter((pl.col("origin") != "LGA") | (pl.col("time_hour") < "2013-12-20")))["warnings"]  # type: ignore[misc]
    assert "no row says origin LGA since 2013-12-20" in warning
    assert suspected(project) == [("partial", ("origin",), "2013-12-20")]


def test_a_fault_that_its_range_keeps_out_in_part_is_told_all_the_same(tmp_path: Path, months: list[pl.DataFrame]) -> None:
    strict = configured(tmp_path, low="5")  # of the °C values about half lie within
    for name, frame in zip("89a", months, strict=False):
        deliver(strict, name, frame)
    report = deliver(strict, "b", celsius(months[3], since="2013-11-12"))
    assert report["quarantined"] and report["rows"]
    assert suspected(strict) == [("unit", ("dewp", "temp"), "2013-11-12")]


def test_a_fault_that_goes_on_stays_one_suspicion_and_never_becomes_the_norm(project: Project, months: list[pl.DataFrame]) -> None:
    wrong = celsius(pl.concat(months), since="2013-10-10")
    deliver(project, "0", wrong.filter(pl.col("time_hour") < "2013-10-01"))
    for day in range(1, 29, 7):  # small deliveries, of a week each
        week = pl.col("time_hour").is_between(pl.lit(f"2013-10-{day:02d}"), pl.lit(f"2013-10-{day + 7:02d}"), closed="left")
        deliver(project, f"w{day}", wrong.filter(week))
    assert suspected(project) == [("unit", ("dewp", "temp"), "2013-10-10")]
    deliver(project, "b", wrong.filter(pl.col("time_hour").is_between(pl.lit("2013-10-29"), pl.lit("2013-12-01"), closed="left")))
    assert suspected(project) == [("unit", ("dewp", "temp"), "2013-10-10")]
    assert tables.suspicions(project, "weather")[0].evidence["through"] > "2013-11"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        pytest.param([pl.col("load") * 1000], "load is 1000 times too large", id="a thousand times"),
        pytest.param([pl.when(pl.int_range(pl.len()) % 9 == 4).then(-9999.0).otherwise("load").alias("load")], "load says -9999", id="a value for none"),
        pytest.param([pl.col("line").alias("site"), pl.col("site").alias("line")], "line and site are exchanged", id="words exchanged"),
        pytest.param([pl.col("line").replace({"north": "N"})], "line has new names for old values", id="new names"),
        pytest.param([pl.col("load") * 1.3], "", id="a busy month"),
    ],
)
def test_what_a_delivery_means_is_asked_of_every_kind_of_column(tmp_path: Path, broken: list[pl.Expr], said: str) -> None:
    columns = 'columns = { at = "time", load = "float", line = "str", site = "str" }'
    (tmp_path / "palan.toml").write_text(f'[data.weather]\nsource = "feed/*.csv"\ntime = "at"\n{columns}\n', encoding="utf-8")
    (tmp_path / "feed").mkdir()
    project = open_project(tmp_path)
    chance, start = random.Random(3), datetime(2026, 1, 1, tzinfo=UTC)
    days = [start + timedelta(hours=hour) for hour in range(24 * 60)]
    lines, sites = ([chance.choice(words) for _ in days] for words in (["north", "south"], ["aa", "bb", "cc"]))
    frame = pl.DataFrame({"at": days, "load": [round(chance.gammavariate(4, 100), 1) for _ in days], "line": lines, "site": sites})
    assert deliver(project, "1", frame.head(24 * 45))["warnings"] == []
    report = deliver(project, "2", frame.slice(24 * 45, 24 * 14).with_columns(broken))
    assert [said in str(each) for each in report["warnings"]] == ([True] if said else [])  # type: ignore[attr-defined]
    one = deliver(project, "3", frame.tail(1))  # a row does not make a day
    assert (one["rows"], one["warnings"]) == (1, [])


@pytest.mark.parametrize("kind", KINDS)
def test_of_the_data_of_a_template_nothing_is_suspected(kind: str, tmp_path: Path) -> None:
    from palan.flows.init import init

    init(tmp_path, kind=kind)
    assert (TEMPLATES / kind).is_dir()
    reports = ingest(open_project(tmp_path))
    assert reports and all(each["rows"] and each["warnings"] == [] for each in reports)


def test_a_file_is_read_again_only_where_it_may_have_changed(project: Project, months: list[pl.DataFrame], monkeypatch: pytest.MonkeyPatch) -> None:
    path = project.root / "feed" / "a.csv"
    read: list[str] = []
    opening = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **kwargs: (read.append(self.name), opening(self, *args, **kwargs))[1])
    deliver(project, "a", months[0])
    ingest(project)
    assert read.count("a.csv") == 3  # for its digest and for its rows, and once more: written a moment before it was read: it may have been written once more since
    os.utime(path, ns=(0, path.stat().st_mtime_ns - 2 * deliveries.SETTLED))
    ingest(project)
    read.clear()
    assert ingest(project)[0]["text"] == "nothing new"
    assert "a.csv" not in read
    corrected = path.read_bytes().replace(b"EWR,2013-08-01T04:00:00Z,7", b"EWR,2013-08-01T04:00:00Z,6")
    path.write_bytes(corrected)
    assert ingest(project)[0]["corrections"] > 0
    (project.root / ".palan" / "delivered" / "weather.json").write_text("{broken")
    assert ingest(project)[0]["text"] == "nothing new"


MODEL = """

class Damp:
    def fit(self, data):
        self.usual = float(data["humid"].mean())

    def decide(self, rows):
        return [self.usual + 0.1 * (temp or 0.0) for temp in rows["temp"]]

    def score(self, decisions, outcomes):
        return abs(decisions["output"].to_numpy() - outcomes)
"""


def test_a_version_that_learnt_from_suspect_rows_does_not_pass(project: Project, months: list[pl.DataFrame]) -> None:
    (project.root / "damp.py").write_text(MODEL, encoding="utf-8")
    with (project.root / "palan.toml").open("a", encoding="utf-8") as file:
        file.write('\n[models.damp]\nmodel = "damp.py:Damp"\ndata = "weather"\ninputs = ["temp", "dewp"]\noutcome = "humid"\ngates = ["champion"]\n')
    opened = open_project(project.root)
    for number, month in enumerate(months[:3]):
        deliver(opened, f"{number}", month)
    assert build(opened, "damp")["version"] == "damp@1"
    assert [each["gate"] for each in check(opened, "damp@1")["findings"]] == ["champion"]
    release(opened, "damp", version="1", force=True, reason="the first one")

    deliver(opened, "3", celsius(months[3]))
    build(opened, "damp")
    report = check(opened, "damp@2")
    assert report["verdict"] == "fail"
    (finding,) = [each for each in report["findings"] if each["gate"] == "data"]
    assert finding["text"].startswith("it learnt from rows that are suspect: ") and "°C" in finding["text"]
    with pytest.raises(NotAdmitted, match="does not pass its gate data"):
        release(opened, "damp", version="2")

    deliver(opened, "3", months[3])
    build(opened, "damp")
    assert "data" not in [each["gate"] for each in check(opened, "damp@3")["findings"]]
    opened.store.records.close()


def test_a_suspicion_that_is_no_fault_is_accepted_with_a_reason(project: Project, months: list[pl.DataFrame]) -> None:
    for name, frame in zip("89a", months, strict=False):
        deliver(project, name, frame)
    with pytest.raises(NotFound, match="nothing is suspected of weather"):
        accept(project, "weather", reason="it is a new station")
    deliver(project, "b", celsius(months[3]))
    with pytest.raises(Invalid, match="without a reason"):
        accept(project, "weather", reason=" ")
    with pytest.raises(NotFound, match=r"of weather\.humid"):
        accept(project, "weather", column="humid", reason="it is a new station")
    rows = tables.find_data_version(project, "weather")
    assert "palan accept weather" in why(project, "weather")["to do"]

    made = accept(project, "weather", column="temp", reason="the station was moved")
    assert made["version"] == "weather@5" and "°C instead of °F" in made["accepted"][0]
    assert suspected(project) == []
    assert tables.find_data_version(project, "weather").parts == rows.parts
    entry = log(project)["entries"][-1]
    assert (entry["verb"], entry["subject"], entry["reason"]) == ("accepted", "weather@5", "the station was moved")
    told = why(project, "weather")
    assert told["suspected"] == [] and told["accepted"][0].endswith("the station was moved") and told["to do"] == ""
    assert "°C" not in status(project)["data"][0]["why"]

    report = deliver(project, "c", celsius(months[4]))  # it goes on, and stays accepted
    assert report["warnings"] == [] and suspected(project) == [] and report["next"] != f"palan why {report['version']}"
    deliver(project, "b", months[3])
    deliver(project, "c", months[4])
    assert suspected(project) == []
