"""The pages of data: somebody opens a table, what came, what was refused, what changed, and where it comes from."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import polars as pl
import pytest

from palan.flows import quarantine, tables, versions
from palan.flows.ingest import ingest
from palan.flows.journal import running
from palan.flows.lineage import Lineage, Node
from palan.flows.project import Project, open_project
from palan.flows.serve import serving
from palan.web import drawn
from test_web_pages import read

NASTY = "<script>alert(1)</script>🚀 شمال"
TOML = """
[project]
name = "weather"
[data.weather]
source = "feed/*"
key = ["place", "at"]
time = "at"
fresh = "2d"
checks = ["dewp <= temp"]
[data.weather.columns]
place = "str"
at = "time"
temp = { type = "float -30..50 °F", meaning = "of the air, <b>not</b> of the ground" }
dewp = "float?"
[data.legs]
transform = "made.py:legs"
[data.legs.columns]
place = "str"
spread = "float?"
[data.none]
source = "none/*"
[data.none.columns]
x = "int"
"""
MADE = """
import polars as pl

def legs(weather: pl.LazyFrame) -> pl.LazyFrame:
    return weather.select("place", spread=pl.col("temp") - pl.col("dewp"))
"""


def rows(first: int, count: int) -> str:
    return "place,at,temp,dewp\n" + "".join(f"P{at % 5},2026-01-{1 + at // 600:02d}T{at // 25 % 24:02d}:{at % 25:02d}Z,{at % 40},{at % 40 - 3}\n" for at in range(first, first + count))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Three deliveries: a clean one, one with broken and hostile rows, one that corrects a row."""
    root = tmp_path_factory.mktemp("data")
    (root / "feed").mkdir()
    (root / "palan.toml").write_text(TOML, encoding="utf-8")
    (root / "made.py").write_text(MADE, encoding="utf-8")
    opened = open_project(root)
    (root / "feed" / "a.csv").write_text(rows(0, 1200), encoding="utf-8")
    ingest(opened)
    broken = "".join(f"{NASTY},2026-02-{1 + at % 28:02d}T{at // 28:02d}:00Z,{'warm' if at % 2 else 999},1\n" for at in range(300))
    (root / "feed" / "b.csv").write_text(rows(1200, 600) + broken + f"{NASTY},2026-01-09T00:00Z,40,3\n", encoding="utf-8")
    ingest(opened)
    (root / "feed" / "c.csv").write_text("place,at,temp,dewp\nP0,2026-01-01T00:00Z,39,1\n", encoding="utf-8")
    ingest(opened)
    with running(opened, "build", "legs") as journal:
        tables.current(opened, "legs", journal)
    yield opened
    opened.store.records.close()


@pytest.fixture(scope="module")
def site(project: Project) -> Iterator[httpx.Client]:
    with serving(project, port=0) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


PAGES = [
    "/data",
    "/data/weather",
    "/data/legs",
    "/data/none",
    "/data/none/quarantine",
    "/data/weather/quarantine",
    "/data/weather/quarantine?file=feed/b.csv",
    "/data/weather/versions/1",
    "/data/weather/versions/2",
    "/data/weather/diff",
    "/data/weather/diff?old=1&new=2",
    "/data/legs/versions/1",
    "/lineage/weather",
    "/lineage/legs",
]


def test_every_page_is_whole_and_takes_no_name_for_markup(site: httpx.Client) -> None:
    for address in PAGES:
        answer = site.get(address)
        assert answer.status_code == 200, (address, answer.text)
        page = read(answer.text)
        assert page.forbidden == [], address
        assert sorted(set(page.ids)) == sorted(page.ids), f"an id stands twice: {address}"
        assert set(page.refs) <= set(page.ids), address
        assert "<script>alert" not in answer.text and "<b>not" not in answer.text
        assert all(field.get("id") in page.labelled for field in page.inputs)


def test_what_is_not_there_is_said_with_what_there_is(site: httpx.Client) -> None:
    for address in ("/data/wether", "/data/weather/versions/99", "/data/weather/versions/x", "/data/wether/quarantine", "/lineage/wether", "/data/none/diff", "/data/weather/quarantine?rule=nothing"):
        answer = site.get(address)
        assert answer.status_code in (400, 404, 422), (address, answer.status_code)
        assert "Traceback" not in answer.text and "<h1" in answer.text
    assert site.get("/data/weather/diff?old=x").status_code in (400, 422)


def test_a_table_says_what_the_command_line_says(site: httpx.Client, project: Project) -> None:
    page = site.get("/data/weather").text
    for each in versions.versions(project, "weather"):
        assert f'<a href="/data/weather/versions/{each["data"].rpartition("@")[2]}">{each["data"]}</a>' in page
        assert f'data-label="Refused">{each["quarantined"]:,}<' in page
    (about,) = quarantine.overview(project, "weather")
    assert about["rows"] == 300 and f'quarantine">{about["rows"]} rows</a>' in page
    assert "°F" in page and "of the air" in page


def test_rows_in_quarantine_have_their_offending_cell_marked_and_a_command(site: httpx.Client, project: Project) -> None:
    page = site.get("/data/weather/quarantine").text
    assert page.count("<mark>999<") == 10 and page.count("<mark>warm<") == 10
    assert "palan data quarantine fix weather" in page
    rule = quarantine.overview(project, "weather")[0]["rules"][0]
    narrowed = site.get(f"/data/weather/quarantine?rule={quote(rule['rule'])}").text
    assert f"Shown: {rule['rows']} rows" in narrowed and len(set(re.findall("<mark>(.*?)<", narrowed))) == 1
    table = list(csv.reader(io.StringIO(site.get("/data/weather/quarantine.csv").text)))
    assert len(table) == 301 and table[0][:3] == ["palan_file", "palan_line", "palan_rules"] and table[1][3] == NASTY
    assert len(list(csv.reader(io.StringIO(site.get(f"/data/weather/quarantine.csv?rule={quote(rule['rule'])}").text)))) == rule["rows"] + 1
    assert site.get("/data/none/quarantine.csv").text == "palan_file,palan_line,palan_rules\n"


def test_two_versions_differ_as_the_command_says(site: httpx.Client, project: Project) -> None:
    newest = site.get("/data/weather/diff").text
    found = versions.difference(project, "weather@2", "weather@3")
    assert found["rows"]["changed"] == 1 and found["text"].replace(">", "&gt;") in newest
    assert "<code>temp</code> 0.0 → 39.0" in newest or "<code>temp</code> 0 → 39" in newest


def test_a_profile_tells_what_came_beside_what_was_there(project: Project) -> None:
    found = versions.profile(project, "weather@2")
    assert found["of"] == [1200, 601]
    temp = next(each for each in found["columns"] if each["name"] == "temp")
    assert [side["low"] for side in temp["sides"]] == [0.0, 0.0] and all(abs(sum(side["bins"]) - 1) < 1e-9 for side in temp["sides"])
    place = next(each for each in found["columns"] if each["name"] == "place")
    assert place["sides"][0]["top"][0][1] == pytest.approx(0.2)


def test_values_without_end_and_columns_of_one_side_are_told() -> None:
    odd = versions._lie([pl.Series([1.0, float("inf"), float("nan"), None]), pl.Series([2.0, 3.0])])
    assert odd[0] is not None and odd[0]["nulls"] == 0.25 and sum(odd[0]["bins"]) == 1
    assert versions._lie([None, pl.Series(["a", "a", "b"])])[1]["top"] == [("a", 2 / 3), ("b", 1 / 3)]  # type: ignore[index]
    assert versions._lie([pl.Series([], dtype=pl.Float64), pl.Series([None], dtype=pl.Float64)])[1]["nulls"] == 1.0  # type: ignore[index]


def test_lineage_stands_in_order_and_leads_on() -> None:
    nodes = (Node("t.a", "column", "t", "a"), Node("m: f", "feature", "m", NASTY, "about"), Node("m@1", "model", "m", "m@1"))
    found = Lineage(nodes, (("t.a", "m: f"), ("m: f", "m@1"), ("t.a", "m@1")), {})
    assert drawn.depths(found) == {"t.a": 0, "m: f": 1, "m@1": 2}
    text = drawn.lineage(found)
    assert text.count("<path") == 3 and 'href="/data/t"' in text and 'href="/models/m"' in text and "<script" not in text
    assert drawn.depths(Lineage(nodes[:2], (("t.a", "m: f"), ("m: f", "t.a")), {})), "a circle ends"
    many = tuple(Node(f"t.{at}", "column", "t", str(at)) for at in range(drawn.MOST + 1))
    assert drawn.lineage(Lineage(many, (("t.1", "t.2"),), {})) == ""


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1280, "light")])
def test_in_a_browser_every_page_fits(chromium: Any, site: httpx.Client, width: int, scheme: Any) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab = context.new_page()
    for address in [each for each in PAGES if "legs/" not in each and "none" not in each and "?" not in each]:
        tab.goto(str(site.base_url).rstrip("/") + address)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, address
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    for _ in range(20):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.closest('.lineage') !== null"):
            break
    assert tab.evaluate("document.activeElement.getAttribute('href')") == "/data/weather", "a column in the drawing is reached by keys"
    context.close()
