"""A delivery means something else: what would put it right is proposed with figures, accepted, versioned, and taken back again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from palan.data.nouns import Repair
from palan.data.repair import but_for
from palan.errors import Invalid, NotFound
from palan.flows import quarantine, tables
from palan.flows.build import build
from palan.flows.check import check
from palan.flows.ingest import ingest
from palan.flows.log import log
from palan.flows.project import Project, open_project
from palan.flows.release import release, set_repairs
from palan.flows.repair import proposed, repair

COLUMNS = ["origin", "time_hour", "temp", "dewp", "humid", "pressure"]
TOML = """
[data.weather]
source = "feed/*.csv"
key = ["origin", "time_hour"]
time = "time_hour"
columns = { origin = "str in EWR JFK LGA", time_hour = "time", temp = "float? -30..120 °F", dewp = "float? -60..100 °F", humid = "float? 0..100 %", pressure = "float? 900..1080 hPa" }
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    opened = configured(tmp_path)
    yield opened
    opened.store.records.close()


def configured(root: Path, toml: str = TOML) -> Project:
    (root / "palan.toml").write_text(toml, encoding="utf-8")
    (root / "feed").mkdir(exist_ok=True)
    return open_project(root)


@pytest.fixture(scope="module")
def months(flights_example: Path) -> dict[str, pl.DataFrame]:
    whole = pl.concat([pl.read_parquet(flights_example / "data" / f"weather-2013-{month:02d}.parquet").select(COLUMNS) for month in (8, 9, 10, 11, 12)])
    november = pl.col("time_hour").str.starts_with("2013-11")
    return {"past": whole.filter(pl.col("time_hour") < "2013-11"), "11": whole.filter(november), "12": whole.filter(pl.col("time_hour") >= "2013-12")}


def deliver(project: Project, name: str, frame: pl.DataFrame) -> dict[str, object]:
    frame.write_csv(project.root / "feed" / f"{name}.csv")
    (report,) = ingest(project)
    return report


def celsius(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(((pl.col(name) - 32) / 1.8).round(2) for name in ("temp", "dewp"))


def stored(project: Project, month: str = "11") -> pl.DataFrame:
    rows = tables.read(project, tables.find_data_version(project, "weather"))
    return rows.filter(pl.col("time_hour").dt.strftime("%m") == month).sort("origin", "time_hour")


def is_right(found: pl.DataFrame, meant: pl.DataFrame, off: float = 0.02) -> bool:
    meant = meant.sort("origin", "time_hour")
    return found.height == meant.height and all(
        (found[name].is_null() == meant[name].is_null()).all() and ((found[name] - meant[name]).abs().max() or 0.0) <= off  # type: ignore[operator]
        for name in ("temp", "dewp", "humid", "pressure")
    )


def test_a_wrong_unit_is_put_right_goes_on_being_put_right_and_is_taken_back(project: Project, months: dict[str, pl.DataFrame]) -> None:
    deliver(project, "past", months["past"])
    assert proposed(project, "weather") == []
    half = pl.col("time_hour") < "2013-11-16"
    deliver(project, "b1", celsius(months["11"].filter(half)))
    as_came = stored(project)
    (found,) = proposed(project, "weather")
    assert [each["expression"] for each in found["repairs"]] == ["temp × 9/5 + 32", "dewp × 9/5 + 32"]
    assert found["sure"] >= 0.9 and found["next"] == "palan data repair weather --column temp --apply --reason WHY"
    before, came, right = (float(found["figures"][0][when].split(" ")[0]) for when in ("before", "came", "right"))
    assert found["figures"][0]["column"] == "temp" and abs(right - before) < 15 < abs(came - before)
    assert found["rows"][0]["cells"]["temp"][1] == pytest.approx(found["rows"][0]["cells"]["temp"][0] * 1.8 + 32, abs=0.001)
    with pytest.raises(Invalid, match="without a reason"):
        repair(project, "weather")
    with pytest.raises(NotFound, match=r"nothing of weather\.humid can be put right"):
        repair(project, "weather", column="humid", reason="they say so")

    made = repair(project, "weather", reason="they say so")
    assert (made["version"], made["righted"], made["rows"]) == ("weather@3", as_came.height, tables.find_data_version(project, "weather@2").rows)
    assert is_right(stored(project), months["11"].filter(half))
    assert tables.suspicions(project, "weather") == [] and proposed(project, "weather")[0]["repaired"] == "they say so"
    assert tables.read(project, tables.find_data_version(project, "weather@2")).filter(pl.col("time_hour").dt.month() == 11).sort("origin", "time_hour").equals(as_came)

    report = deliver(project, "b2", celsius(months["11"].filter(~half)))  # the same fault goes on: nobody is asked again
    assert report["warnings"] == [] and "put right: temp and dewp are in °C" in str(report["resolved"])
    assert is_right(stored(project), months["11"])
    report = deliver(project, "c", months["12"])  # the feed is right again: nothing is done to it
    assert report["resolved"] == [] and is_right(stored(project, "12"), months["12"], off=0.0)

    taken = repair(project, "weather", undo=True, reason="it was the weather")
    assert taken["righted"] == 0
    assert stored(project).filter(pl.col("time_hour") < datetime(2013, 11, 16, tzinfo=UTC)).equals(as_came) and is_right(stored(project, "12"), months["12"], off=0.0)
    assert [each.columns for each in tables.suspicions(project, "weather")] == [("temp", "dewp")]
    assert [(each["verb"], each["reason"]) for each in log(project)["entries"] if each["verb"] in ("repaired", "took back")] == [("repaired", "they say so"), ("took back", "it was the weather")]
    with pytest.raises(NotFound, match="nothing of weather was put right"):
        repair(project, "weather", undo=True, reason="once more")

    repair(project, "weather", reason="they say so after all")
    deliver(project, "b1", months["11"].filter(half))  # what was delivered right stands for itself
    deliver(project, "b2", months["11"].filter(~half))
    assert is_right(stored(project), months["11"], off=0.0) and proposed(project, "weather") == []


@pytest.mark.parametrize("policy", ["ask", "auto"])
def test_rows_that_their_range_kept_out_come_in_once_they_are_right(tmp_path: Path, months: dict[str, pl.DataFrame], policy: str) -> None:
    project = configured(tmp_path, TOML.replace("time = ", f'repair = "{policy}"\ntime = ', 1))
    deliver(project, "past", months["past"])
    wrong = months["11"].with_columns(pl.col("origin").str.to_lowercase(), (pl.col("pressure") / 10).round(2))
    report = deliver(project, "b", wrong)
    if policy == "ask":
        assert (report["rows"], report["waiting"]) == (0, wrong.height)
        assert stored(project).height == 0
        rest = months["11"]["pressure"].null_count()  # each other row breaks another rule as well
        assert repair(project, "weather", column="origin", reason="they say so")["righted"] == rest == wrong.height - sum(each.rows for each in quarantine.waiting(project, "weather"))
        made = repair(project, "weather", reason="they say so")
        assert made["righted"] == wrong.height
    assert is_right(stored(project), months["11"]) and stored(project)["origin"].unique().sort().to_list() == ["EWR", "JFK", "LGA"]
    assert quarantine.waiting(project, "weather") == []
    again = deliver(project, "c", months["12"])
    assert again["waiting"] == 0 and is_right(stored(project), months["11"])
    repair(project, "weather", undo=True, reason="it was no fault")
    assert sum(each.rows for each in quarantine.waiting(project, "weather")) == wrong.height and stored(project).height == 0
    deliver(project, "b", months["11"])
    assert is_right(stored(project), months["11"], off=0.0) and quarantine.waiting(project, "weather") == []
    project.store.records.close()


def test_a_column_under_another_name_is_found_and_flows_again(project: Project, months: dict[str, pl.DataFrame]) -> None:
    deliver(project, "past", months["past"])
    report = deliver(project, "b", months["11"].rename({"temp": "x17"}).with_columns(station=pl.lit("v2")))
    assert "suspect: temp is now called x17" in str(report["warnings"]) and "station is a new column" in str(report["warnings"])
    (found,) = proposed(project, "weather")
    assert found["repairs"][0]["expression"] == "what came as x17" and found["contract"] == ['in [data.weather.columns]: x17 = "float? -30..120 °F" instead of temp']
    repair(project, "weather", reason="the new logger calls it so")
    assert is_right(stored(project), months["11"], off=0.0)
    report = deliver(project, "c", months["12"].rename({"temp": "x17"}).drop("humid"))
    assert [each for each in report["warnings"] if "suspect" in each] == ["suspect: humid is no longer delivered, and no new column holds anything like it (in feed/c.csv, since 2013-12-01)"]  # type: ignore[attr-defined]
    assert stored(project, "12")["temp"].to_list() == months["12"].sort("origin", "time_hour")["temp"].to_list()
    repair(project, "weather", column="temp", undo=True, reason="another sensor")
    assert stored(project)["temp"].null_count() == months["11"].height
    deliver(project, "c", months["12"])
    deliver(project, "b", months["11"])
    assert tables.suspicions(project, "weather") == [] and is_right(stored(project), months["11"], off=0.0)


def test_rows_that_came_twice_count_once_and_a_key_says_so_by_itself(tmp_path: Path, months: dict[str, pl.DataFrame]) -> None:
    project = configured(tmp_path, TOML.replace('key = ["origin", "time_hour"]\n', ""))
    deliver(project, "past", months["past"])
    assert deliver(project, "a", months["11"])["warnings"] == []
    assert "had come before, alike in every column" in str(deliver(project, "b", months["11"])["warnings"])
    assert stored(project).height == 2 * months["11"].height
    repair(project, "weather", reason="the supplier sent it twice")
    assert is_right(stored(project), months["11"], off=0.0)
    assert deliver(project, "c", months["12"])["warnings"] == [] and is_right(stored(project), months["11"], off=0.0)
    repair(project, "weather", undo=True, reason="they were two stations")
    assert stored(project).height == 2 * months["11"].height
    project.store.records.close()
    keyed = configured(tmp_path / "keyed") if (tmp_path / "keyed").mkdir() is None else project
    deliver(keyed, "past", months["past"])
    report = deliver(keyed, "b", pl.concat([months["11"], months["11"]]))
    assert "came twice, alike in every column" in str(report["warnings"]) and tables.suspicions(keyed, "weather") == []
    keyed.store.records.close()


MODEL = """

class Damp:
    def fit(self, data):
        self.usual = float(data["temp"].mean())

    def decide(self, rows):
        return [self.usual for _ in rows["temp"]]

    def score(self, decisions, outcomes):
        return abs(decisions["output"].to_numpy() - outcomes)
"""


def test_no_model_learns_the_fault_nor_the_same_repair_twice(project: Project, months: dict[str, pl.DataFrame]) -> None:
    (project.root / "damp.py").write_text(MODEL, encoding="utf-8")
    with (project.root / "palan.toml").open("a", encoding="utf-8") as file:
        file.write('\n[models.damp]\nmodel = "damp.py:Damp"\ndata = "weather"\ninputs = ["temp", "dewp"]\noutcome = "humid"\ngates = ["champion"]\n')
    opened = open_project(project.root)
    deliver(opened, "past", months["past"])
    build(opened, "damp")
    check(opened, "damp@1")
    release(opened, "damp", version="1", force=True, reason="the first one")
    deliver(opened, "b", celsius(months["11"]))
    build(opened, "damp")
    assert [each["verdict"] for each in check(opened, "damp@2")["findings"] if each["gate"] == "data"] == ["fail"]
    repair(opened, "weather", reason="they say so")
    build(opened, "damp")
    assert [each for each in check(opened, "damp@3")["findings"] if each["gate"] == "data"] == []
    # the release puts right what is answered; of the table the same rows are right already
    since = datetime(2013, 11, 1, tzinfo=UTC)
    set_repairs(opened, "damp", [Repair("temp", '"temp" * 9.0 / 5.0 + 32.0', '("temp" - 32.0) * 5.0 / 9.0', since)], "the same fault")
    repairs = [Repair("temp", '"temp" * 9.0 / 5.0 + 32.0', "", since)]
    learnt = tables.training(opened, "damp", tables.find_data_version(opened, "weather"), repairs=repairs)
    assert float(learnt["temp"].max() or 0) < 120  # type: ignore[arg-type]
    meant = pl.concat([months["past"], months["11"]]).filter(pl.col("humid").is_not_null())["temp"].mean()
    assert learnt["temp"].mean() == pytest.approx(meant, abs=0.01)
    opened.store.records.close()


def test_of_two_repairs_over_one_span_the_later_one_is_left_out_there() -> None:
    day = datetime(2026, 1, 1, tzinfo=UTC)
    days = [day + timedelta(days=number) for number in range(5)]
    one = Repair("temp", "a", "b", days[1])
    spans = [(each.since, each.until) for each in but_for([one], [Repair("temp", "x", "y", days[2], days[3]), Repair("dewp", "x", "y", days[1])])]
    assert spans == [(days[1], days[2]), (days[3], None)]
    assert but_for([one], [Repair("temp", "x", "y", days[0])]) == []
