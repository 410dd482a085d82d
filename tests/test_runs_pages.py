"""The pages of runs: somebody searches, opens a run, puts runs side by side, and takes tables and files away."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import msgspec
import pytest
from starlette.datastructures import QueryParams

from palan.flows import runs as flow
from palan.flows.project import Project, open_project
from palan.flows.serve import serving
from palan.flows.status import frame
from palan.flows.track import LiveRun, start
from palan.web import charts, pages, views
from palan.web import runs as building
from test_web_pages import read

NASTY = '<script>alert(1)</script>"><img src=x onerror=alert(1)>🚀'
LONG = "k" * 250


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A sweep of 200 runs, one of 20,000 points, one with names that nobody should choose."""
    root = tmp_path_factory.mktemp("runs")
    (root / "palan.toml").write_text('[project]\nname = "routing"\n', encoding="utf-8")
    project = open_project(root)
    for number in range(200):
        with start("sweep", name=f"sweep {number}", project=project, lr=1 / (3 + number), model="trees" if number % 2 else "net", seed=number // 2, **{f"p{at}": str(number * at) for at in range(20)}) as run:
            for step in range(20):
                run.log({"loss": number / 100 + 1 / (step + 1), "acc": 0.5, **{f"m{at}": float(number + at) for at in range(10)}}, step=step)
    with start("big", name="long", project=project, rate=0.5) as run:
        for step in range(20_000):
            run.log(walk=float(step % 977) if step != 12_345 else 5000.0, step=step)
        run.artifact(b"<script>alert(1)</script>", "page of mine.html")
        with start("big", name="part", project=project):
            pass
    with start("odd", name=NASTY, project=project, **{NASTY: NASTY, LONG: "x" * 3000}) as run:
        for value in (1.0, 2.0, 3.0):
            run.log({LONG: value, NASTY: value, "=1+1": float("nan"), "endless": value if value < 3 else -math.inf})
        run.tags({NASTY: "=HYPERLINK(1)"})
    return project


@pytest.fixture(scope="module")
def going_on(project: Project) -> LiveRun:
    run = start("live", name="goes on", project=project, lr=0.1)
    run.log(loss=0.5)
    run.log(loss=0.25)
    return run


@pytest.fixture(scope="module")
def site(project: Project, going_on: LiveRun) -> Iterator[httpx.Client]:
    with serving(project, port=0) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def id_of(project: Project, name: str) -> str:
    return flow.find_run(project, name).id


def addresses(project: Project) -> dict[str, str]:
    sweep = [("q", "experiment = 'sweep'")]
    return {
        "list": "/runs",
        "search": f"/runs?{urlencode([('q', 'metrics.loss < 0.5'), ('order', 'metrics.loss desc'), ('show', 'metrics.acc')])}",
        "wrong": f"/runs?{urlencode([('q', 'metrics.loss <')])}",
        "none": f"/runs?{urlencode([('q', 'metrics.loss > 99999')])}",
        "run": f"/runs/{id_of(project, 'sweep 7')}",
        "long": f"/runs/{id_of(project, 'long')}",
        "odd": f"/runs/{id_of(project, NASTY)}",
        "live": f"/runs/{id_of(project, 'goes on')}",
        "two": f"/runs/compare?run={id_of(project, 'sweep 7')}&run={id_of(project, NASTY)}",
        "many": f"/runs/compare?{urlencode(sweep)}",
    }


NAMES = ["list", "search", "wrong", "none", "run", "long", "odd", "live", "two", "many"]


@pytest.mark.parametrize("name", NAMES)
def test_every_page_is_whole_light_and_keeps_to_the_policy(site: httpx.Client, project: Project, name: str) -> None:
    answer = site.get(addresses(project)[name])
    assert answer.status_code == 200
    page = read(answer.text)
    assert page.forbidden == []
    assert sorted(set(page.ids)) == sorted(page.ids), "an id stands twice"
    assert set(page.refs) <= set(page.ids)
    assert [address for address in page.addresses if not address.startswith(("/", "#", "?")) or address.startswith("//")] == []
    assert all(field.get("id") in page.labelled for field in page.inputs)
    assert len(answer.content) + sum(len(asset.data) for asset in pages.STATIC.values() if re.search(f' (src|href)="/static/{asset.name}"', answer.text)) < 150_000
    assert "<script>alert" not in answer.text and "<img" not in answer.text


def test_every_view_has_the_declared_shape(project: Project, going_on: LiveRun) -> None:
    around: Any = frame(project)
    msgspec.convert(building.runs_view(project, around, QueryParams("")), views.RunsPage, strict=True)
    msgspec.convert(building.run_view(project, around, "long", QueryParams("")), views.RunPage, strict=True)
    msgspec.convert(building.compare_view(project, around, QueryParams([("q", "experiment = 'sweep'")])), views.ComparePage, strict=True)


def test_the_address_is_the_state_of_a_list(site: httpx.Client) -> None:
    page = read(site.get(f"/runs?{urlencode([('q', 'params.model = ' + repr('net')), ('order', 'metrics.loss'), ('show', 'metrics.loss'), ('show', 'params.lr')])}").text)
    assert [page.inputs[at].get("value") for at in (0, 1)] == ["params.model = 'net'", "metrics.loss"]
    following = next(each for each in page.addresses if "after=" in each)
    assert "order=metrics.loss" in following and "show=params.lr" in following
    first = [each for each in page.addresses if each.startswith("/runs/0")]
    second = [each for each in read(site.get(following).text).addresses if each.startswith("/runs/0")]
    assert len(first) == 50 and len(second) == 50 and not set(first) & set(second)
    assert any(each.startswith("/runs?") and "order=metrics.loss+desc" in each for each in page.addresses), "the title orders the other way"


def test_a_mistake_is_marked_and_an_empty_list_says_what_to_do(site: httpx.Client, project: Project, tmp_path: Path) -> None:
    assert "metrics.loss <→" in read(site.get(addresses(project)["wrong"]).text).text
    assert "No run is like that" in site.get(addresses(project)["none"]).text
    (tmp_path / "palan.toml").write_text('[project]\nname = "new"\n', encoding="utf-8")
    empty = open_project(tmp_path)
    around: Any = frame(empty)
    assert "palan.start(" in read(pages.runs(building.runs_view(empty, around, QueryParams("")))).text


@pytest.mark.parametrize("address", ["/runs/nothing", "/runs/compare?run=nothing&run=sweep+1", "/runs/compare?run=sweep+1", "/runs/nothing/values.csv"])
def test_what_is_not_there_is_a_page_that_says_so(site: httpx.Client, address: str) -> None:
    answer = site.get(address)
    assert answer.status_code in (404, 422) and "palan runs" in answer.text


def test_a_run_has_its_values_files_parts_and_how_to_repeat_it(site: httpx.Client, project: Project) -> None:
    text = read(site.get(addresses(project)["long"]).text).text
    for each in ("walk", "5,000", "20,000", "rate", "page of mine.html", "about/distributions.json", "part", "python", f"palan runs show {id_of(project, 'long')}"):
        assert each in text
    assert 'class="line c0"' in site.get(addresses(project)["long"]).text, "the curve is there without JavaScript"


def test_a_file_is_saved_and_never_shown(site: httpx.Client, project: Project) -> None:
    answer = site.get(f"/v1/runs/{id_of(project, 'long')}/artifacts/{quote('page of mine.html')}")
    assert answer.content == b"<script>alert(1)</script>"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["x-content-type-options"] == "nosniff"
    for wrong in ("nothing", "../../etc/passwd", "%2e%2e/palan.toml"):
        assert site.get(f"/v1/runs/{id_of(project, 'long')}/artifacts/{wrong}").status_code == 404


def test_a_curve_comes_in_stretches_that_keep_extremes_and_a_range_comes_finer(site: httpx.Client, project: Project) -> None:
    address = f"/v1/runs/{id_of(project, 'long')}/curve"
    whole = site.get(address, params={"metric": "walk", "points": 100}).json()
    assert whole["count"] == 20_000 and len(whole["steps"]) <= 100 and max(whole["largest"]) == 5000.0
    part = site.get(address, params={"metric": "walk", "points": 100, "low": 12_300, "high": 12_399}).json()
    assert part["steps"] == list(range(12_300, 12_400)) and part["values"][45] == 5000.0
    middle = site.get(address, params={"metric": "walk", "points": 50, "low": 12_000, "high": 13_000}).json()
    assert 25 <= len(middle["steps"]) <= 50 and middle["steps"][0] == 12_000 and max(middle["largest"]) == 5000.0
    assert site.get(address, params={"metric": "walk", "points": 100, "low": 90_000, "high": 90_001}).json()["values"] == []
    assert site.get(address, params={"metric": "walk", "after": 19_998}).json()["values"] == [float(step % 977) for step in (19_998, 19_999)]
    for wrong in ({}, {"metric": "walk", "points": "x"}, {"metric": "walk", "low": "--1"}):
        assert site.get(address, params=wrong).status_code == 422
    assert site.get(address, params={"metric": "none"}).status_code == 404


def test_steps_that_go_back_are_found_in_a_range(project: Project) -> None:
    with start("back", project=project) as run:
        for step in [*range(5000), *range(100, 200)]:
            run.log(x=float(step), step=step)
    found = flow.curve(project, run.id, "x", low=150, high=151)
    assert found["values"] == [150.0, 150.0, 151.0, 151.0]


def test_the_api_says_the_same_as_the_flows(site: httpx.Client, project: Project) -> None:
    asked = site.get("/v1/runs", params={"q": "metrics.loss < 0.1", "order": "metrics.loss", "limit": 3}).json()
    assert asked == msgspec.to_builtins(flow.search(project, "metrics.loss < 0.1", order=["metrics.loss"], limit=3))
    ids = [id_of(project, name) for name in ("sweep 1", "sweep 2")]
    assert site.get("/v1/runs/compare", params={"run": ids}).json() == msgspec.to_builtins(flow.compare(project, ids))
    assert site.get(f"/v1/runs/{ids[0]}").json()["params"]["model"] == "trees"
    assert [each["run"] for each in site.get("/v1/runs/curves", params={"metric": "loss", "run": ids}).json()["curves"]] == ids


def test_every_table_can_be_taken_away_and_no_cell_is_a_formula(site: httpx.Client, project: Project) -> None:
    def table(address: str) -> list[list[str]]:
        answer = site.get(address)
        assert answer.headers["content-type"].startswith("text/csv") and "attachment" in answer.headers["content-disposition"]
        return list(csv.reader(io.StringIO(answer.text)))

    found = table(f"/runs.csv?{urlencode([('q', 'experiment = ' + repr('sweep'))])}")
    assert len(found) == 201 and {"params.p19", "metrics.m9"} <= set(found[0])
    rows = table(f"/runs/compare.csv?run={id_of(project, 'sweep 1')}&run={id_of(project, 'sweep 2')}")
    assert ["params", "model", "trees", "net"] in rows
    odd = table(f"/runs/{id_of(project, NASTY)}/values.csv")
    assert ["tag", NASTY, "'=HYPERLINK(1)", "", "", ""] in odd
    assert not any(cell.startswith(("=", "@")) for row in odd for cell in row)


def test_a_comparison_says_what_differs_first_and_what_is_sure(site: httpx.Client, project: Project) -> None:
    names = [f"sweep {number}" for number in range(8)]
    text = read(site.get("/runs/compare?" + urlencode([("run", id_of(project, name)) for name in names])).text).text
    assert text.index("What differs") < text.index("The same in all")
    assert "8 runs side by side" in text
    with start("s", name="a", project=project, model="a", seed=0), start("s", name="b", project=project, model="b", seed=0):
        pass
    pairs = []
    for model, level in (("a", 1.0), ("b", 2.0)):
        for seed in range(4):
            with start("seeds", project=project, model=model, seed=seed) as run:
                run.log(loss=level + seed)
            pairs.append(("run", run.id))
    text = site.get("/runs/compare?" + urlencode(pairs)).text
    assert re.search("Seed by seed.*>loss<.*<td>model b</td><td>model a</td><td>higher by 1", text, re.DOTALL)


def test_many_lines_are_drawn_in_little_space() -> None:
    curves = [{"steps": list(range(8)), "values": [float(at + line) for at in range(8)]} for line in range(200)]
    drawing = charts.curves(curves, key="a", title="a")
    assert len(drawing) < 20_000 and drawing.count("<path") == 24
    assert charts.curves([{"steps": [1, 2], "values": [None, None]}], key="a", title="a") == ""
    assert "nan" not in charts.curves([{"steps": [3], "values": [0.0]}], key="a", title="a")
    for values in product((0.0, 1.0, math.inf, -math.inf, math.nan, 1e308, -1e308, 5e-324), repeat=3):
        for curve in ({"steps": [0, 1, 2], "values": values}, {"steps": [0, 1, 2], "least": values, "largest": values}):
            drawn = charts.curves([curve], key="a", title="a")
            assert bool(drawn) == any(abs(value) < 1e300 for value in values) and "inf" not in drawn and "nan" not in drawn


def test_in_a_browser_curves_are_drawn_zoomed_and_followed(chromium: Any, site: httpx.Client, project: Project, going_on: LiveRun) -> None:
    asked: list[str] = []
    said: list[str] = []
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    base = str(site.base_url).rstrip("/")
    tab.goto(base + addresses(project)["long"])
    tab.wait_for_selector(".uplot canvas")
    box = tab.locator(".u-over").bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 40)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 40, steps=4)
    tab.mouse.up()
    tab.wait_for_selector(".whole:visible")
    assert any("low=" in each and "high=" in each for each in asked)
    tab.click(".whole")
    tab.wait_for_selector(".whole", state="hidden")
    tab.goto(base + addresses(project)["live"])
    tab.wait_for_selector(".uplot canvas")
    going_on.log(loss=0.125)
    tab.wait_for_selector("#part-metrics td:text-is('0.125')", timeout=20_000)
    with tab.expect_request(lambda request: "after=3" in request.url, timeout=20_000):
        pass  # after 2 points it asked for those past them, and now for those past the third
    assert any("after=2" in each for each in asked)
    tab.goto(base + "/runs")
    going_on.log(loss=0.0625)
    tab.wait_for_selector("tr[data-running] td:text-is('0.0625')", timeout=20_000)
    before = len(asked)
    tab.goto(base + addresses(project)["many"])
    tab.wait_for_selector(".closer:visible")
    assert not any("curves" in each or ("uplot" in each and each.endswith(".js")) for each in asked[before:]), "of many runs nothing more is asked for than what is read"
    tab.click(".closer")
    tab.wait_for_selector(".uplot canvas")
    tab.wait_for_selector(".closer", state="hidden")
    assert said == []
    assert all(each.startswith((base, "blob:", "data:")) for each in asked)
    context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_in_a_browser_every_page_fits(chromium: Any, site: httpx.Client, project: Project, width: int, scheme: str) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab = context.new_page()
    for name, address in addresses(project).items():
        tab.goto(str(site.base_url).rstrip("/") + address)
        tab.wait_for_load_state("load")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    context.close()


def test_times_are_told_from_the_clock_of_the_project(project: Project) -> None:
    around: Any = {**frame(project), "now": "2200-01-01T00:00:00Z"}
    html = pages.runs(building.runs_view(project, around, QueryParams("")))
    assert f"{datetime.now(UTC).year}" in read(html).text
