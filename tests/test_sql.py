"""Tables and features written in SQL: read, run by Polars or DuckDB, traced to their columns, and refused at the right line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from palan.data.features import features
from palan.data.sql import expressions, meaning, relations, with_floats
from palan.engines import sql
from palan.errors import ModelFailed, NotFound, PalanError
from palan.flows import packages, tables
from palan.flows.build import build
from palan.flows.check import check
from palan.flows.ingest import ingest
from palan.flows.lineage import lineage as lineage_of
from palan.flows.project import open_project
from palan.flows.why import why

TOML = """
[project]
name = "line"
[data.flights]
source = "feed/flights.csv"
key = ["id"]
columns = { id = "int", at = "time", origin = "str", distance = "int", delay = "float?" }
[data.airports]
source = "feed/airports.csv"
key = ["code"]
columns = { code = "str", altitude = "float", opened = "int" }
[data.legs]
transform = "legs.sql"
key = ["id"]
time = "at"
columns = { id = "int", at = "time", origin = "str", height = "float", distance = "float", delay = "float" }
[models.delay]
model = "delay.py:Delay"
data = "legs"
inputs = ["origin", "height", "distance"]
outcome = "delay"
key = "id"
features = "features.sql"
"""
LEGS = """-- departures that took place
WITH known AS (SELECT code, altitude * 0.3048 AS height FROM airports)
SELECT id, "at", origin, height,
  CAST(distance AS DOUBLE) AS distance, delay
FROM flights
JOIN known ON code = origin
WHERE delay IS NOT NULL
"""
FEATURES = """SELECT
  ln(distance + 1) AS far,  -- how far, on a scale of factors
  CASE WHEN origin = 'JFK' THEN 1.5 ELSE 0.5 END AS weight,
  far * weight / 2 + height % 100.5 AS both
"""
DELAY = """
import polars as pl


class Delay:
    def fit(self, data):
        self.mean = float((data["delay"] * data["weight"]).mean())

    def decide(self, rows):
        return rows.select(output=self.mean + pl.col("both"))
"""
FRAMES = {"flights": pl.DataFrame({"id": [1, 2], "origin": ["JFK", "EWR"], "delay": [3.5, None], "odd name": [1, 2]}), "airports": pl.DataFrame({"code": ["JFK"], "altitude": [13.0]})}


def test_a_table_and_features_in_sql_go_the_way_of_all_others(tmp_path: Path) -> None:
    (tmp_path / "feed").mkdir()
    rows = 200
    number = pl.int_range(rows, eager=True).alias("id")
    origin = pl.when(pl.col("id") % 3 == 0).then(pl.lit("EWR")).otherwise(pl.lit("JFK"))
    frame = pl.DataFrame(number).with_columns(at=pl.datetime(2013, 1, 1, time_zone="UTC") + pl.duration(hours=pl.col("id")), origin=origin, distance=pl.col("id") * 37 % 2000, delay=pl.when(pl.col("id") % 10 > 0).then(pl.col("id") % 7 * 1.0))
    frame.write_csv(tmp_path / "feed" / "flights.csv")
    (tmp_path / "feed" / "airports.csv").write_text("code,altitude,opened\nJFK,13.0,1948\nEWR,18.0,1928\n", encoding="utf-8")
    for name, text in (("palan.toml", TOML), ("legs.sql", LEGS), ("features.sql", FEATURES), ("delay.py", DELAY)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    told: list[str] = []
    project = open_project(tmp_path, tell=told.append)
    ingest(project)
    first = build(project, "delay")
    assert not [each for each in told if "features.sql" in each]  # every expression has a compiled form
    version = packages.find_version(project, first["version"])
    assert version.manifest["features"]["made"]["far"]["about"] == "how far, on a scale of factors"
    assert {"features.sql:far", "features.sql:both"} <= set(version.manifest["closure"]) and "features.sql" in version.manifest["code"]
    legs = tables.find_data_version(project, "legs")
    assert legs.rows == 180 and tables.read(project, legs)["height"].max() == pytest.approx(18 * 0.3048)
    lineage = legs.verdict["lineage"]
    assert lineage["columns"]["height"] == ["airports.altitude"] and lineage["columns"]["distance"] == ["flights.distance"]
    assert lineage["rows"] == ["airports.code", "flights.delay", "flights.origin"]
    assert "height of airports.altitude" in why(project, "legs")["columns"] and why(project, "legs")["rows by"] == lineage["rows"]
    drawn = lineage_of(project, "delay")
    assert {("airports.altitude", "legs.height"), ("legs.height", "delay: both"), ("delay: far", "delay: both"), ("flights.distance", "legs.distance"), ("delay: both", "delay@1"), ("legs.origin", "delay@1")} <= set(drawn.edges)
    assert {each.id for each in drawn.nodes} == {each for edge in drawn.edges for each in edge} and drawn.rows["legs"] == tuple(lineage["rows"])
    (found,) = [each for each in check(project, "delay@1")["findings"] if each["gate"] == "features"]
    assert found["verdict"] == "pass" and found["figures"]["values"] == 540
    with packages.open_worker(project, version) as worker:
        asked = pl.DataFrame({"origin": ["JFK", "EWR"], "height": [4.0, 5.0], "distance": [99.0, 1.0]})
        assert worker.decide(asked[0]).equals(worker.decide(asked)[0])

    (tmp_path / "features.sql").write_text("-- a note\n" + FEATURES, encoding="utf-8")
    assert not build(project, "delay")["steps"]["executed"]  # a note is no edit
    (tmp_path / "features.sql").write_text(FEATURES.replace("ln(distance + 1)", "ln(distance + 2)"), encoding="utf-8")
    assert packages.edited(project, version) == ["features.sql:far"]
    assert build(project, "delay")["version"] == "delay@3"
    assert {"code: features.sql:far was edited", "feature: both gives another value"} <= set(why(project, "delay@3")["changed"])

    (tmp_path / "palan.toml").write_text(TOML.replace('"legs.sql"', '"legs.sql:duckdb"'), encoding="utf-8")
    project = open_project(tmp_path)
    build(project, "delay")
    other = tables.find_data_version(project, "legs")
    assert tables.read(project, other).sort("id").equals(tables.read(project, legs).sort("id"))
    assert other.verdict["lineage"] == lineage

    for broken, error, what in [
        (LEGS.replace("FROM flights", "FROM fligths"), PalanError, 'legs.sql line 5 reads "fligths", which is no data of this project'),
        (LEGS.replace("delay\n", "dealy\n"), ModelFailed, 'legs.sql line 4: Binder Error: Referenced column "dealy"'),
    ]:
        (tmp_path / "legs.sql").write_text(broken, encoding="utf-8")
        with pytest.raises(error) as caught:
            build(project, "delay")
        assert caught.value.what.startswith(what) and caught.value.hint.startswith("did you mean")
    (tmp_path / "legs.sql").unlink()
    with pytest.raises(NotFound, match=r"there is no legs\.sql in the project"):
        build(project, "delay")


@pytest.mark.parametrize(
    ("query", "engine", "what"),
    [
        ("SELECT id,\n origen FROM flights", "polars", 'f.sql line 2: unable to find column "origen"'),
        ("SELECT id\nFROM flights\nWHER delay > 3", "polars", "f.sql line 3: "),
        ("SELECT foo(id) FROM flights", "polars", "unsupported function 'foo'"),
        ("SELEC id", "duckdb", "f.sql line 1: Parser Error"),
        ("SELECT * FROM read_csv('/etc/hostname')", "duckdb", "Permission Error"),
        ("SELECT * FROM flights; DROP VIEW flights", "duckdb", "f.sql is not one SELECT"),
        ("COPY flights TO 'out.csv'", "duckdb", "f.sql is not one SELECT"),
        ("SELECT 1", "duckbd", 'there is no "duckbd" to run f.sql'),
    ],
)
def test_a_wrong_query_is_told_with_its_line(query: str, engine: str, what: str) -> None:
    with pytest.raises(PalanError) as caught:
        sql.made(query, "f.sql", engine, FRAMES)
    assert what in caught.value.what and caught.value.hint


@pytest.mark.parametrize("engine", sql.ENGINES)
def test_what_a_query_reads_is_told_by_column(engine: str) -> None:
    query = 'SELECT id, "odd name" * 2 AS twice, count(*) OVER (PARTITION BY origin) AS many, altitude FROM flights LEFT JOIN airports ON origin = code'
    frame, lineage = sql.made(query, "f.sql", engine, FRAMES)
    assert frame.sort("id")["twice"].to_list() == [2, 4] and frame.sort("id")["altitude"].to_list() == [13.0, None]
    assert lineage["columns"]["twice"] == ["flights.odd name"] and "flights.origin" in lineage["columns"]["many"]
    assert lineage["columns"]["altitude"] == ["airports.altitude"]


def test_which_columns_a_function_of_tables_reads() -> None:
    def joined(flights: Any, airports: Any) -> Any:
        return flights.join(airports, left_on="origin", right_on="code", how="left").select("id", high=pl.col("altitude") > 3)

    assert sql.of_function(joined, FRAMES)["columns"] == {"id": ["flights.id"], "high": ["airports.altitude"]}


@pytest.mark.parametrize(
    ("query", "read"),
    [
        ("SELECT a, b FROM x CROSS JOIN unnest(x.l) AS u(v), y ORDER BY a, b", {"x": 1, "y": 1}),
        ("WITH w AS (SELECT a\nFROM raw) SELECT extract(hour FROM at) FROM w, \"odd name\" o", {"raw": 2, "odd name": 2}),
        ("SELECT 1 FROM a WHERE b IS DISTINCT FROM c AND d IN (SELECT e FROM f) -- FROM g\n AND h = 'FROM i'", {"a": 1, "f": 1}),
    ],
)
def test_which_tables_a_query_names(query: str, read: dict[str, int]) -> None:
    assert relations(query) == read


def test_expressions_of_a_file_have_names_places_and_notes() -> None:
    found = expressions("-- of delays\nSELECT delay >= 15 AND code = 'J,F' AS late, -- a quarter\n a IS DISTINCT FROM b AS \"odd one\" FROM rows;", "f.sql")
    assert {name: (each.text, each.about, each.place) for name, each in found.items()} == {
        "late": ("delay >= 15 AND code = 'J,F'", "of delays a quarter", "f.sql line 2"),
        "odd one": ("a IS DISTINCT FROM b", "", "f.sql line 3"),
    }
    for text, what in (("a > 1", "f.sql line 1: this expression has no name: a > 1"), ("a AS x,\nb AS x", "f.sql line 2: x is there already, at f.sql line 1")):
        with pytest.raises(PalanError) as caught:
            expressions(text, "f.sql")
        assert caught.value.what == what
    with pytest.raises(PalanError, match=r"f\.sql line 1: the feature \"late\" is no SQL expression: unsupported function 'lnn'"):
        features(expressions("lnn(delay) AS late", "f.sql"), {"delay": pl.Float64()})
    assert meaning("a  +b -- x") == meaning("a + b") != meaning("a - b")
    assert with_floats("a*1.5 + '2.5' || \"c1.5\" + .5 + t1.x + 1.5e3 + 2") == "a*1.5e0 + '2.5' || \"c1.5\" + .5e0 + t1.x + 1.5e3 + 2"
