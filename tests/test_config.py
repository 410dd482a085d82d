"""palan.toml is read strictly: every mistake names its line, the reason and the nearest name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from palan.cli import main
from palan.errors import PalanError
from palan.flows.config import ENVIRONMENT, load
from palan.flows.project import open_project

GOOD = """[project]
name = "flights"

[data.weather]
source = "feed/*.csv"
key = ["id"]
time = "at"
checks = ["dewp <= temp"]
rows = "1..100"
[data.weather.columns]
id = "str"
at = "time"
temp = "float? -30..120 °F"
dewp = "float?"
late = "int 0..1"

[models.delay]
model = "delay.py:Delay"
data = "weather"
inputs = ["temp", "dewp"]
outcome = "late"
key = "id"
params = { rate = 0.1 }
gates = ["golden"]
fallback = "plain"
time_limit = "50ms"
[models.delay.release]
canary = "20% for 7d"
[models.delay.watch]
window = "7d"
false_pages = "1 per 180d"
[models.delay.react]
approve = "auto"
costs = { review = 0.5 }
horizon = "28d"

[models.plain]
model = "plain.csv"
"""


GATES = """
[models.gates]
model = "gates.py:Gates"
kind = "program"
golden = "golden/gates.json"
gates = ["golden", "latency 6s"]
"""


def read(tmp_path: Path, text: str, environment: dict[str, str] | None = None):  # type: ignore[no-untyped-def]
    path = tmp_path / "palan.toml"
    path.write_text(text, encoding="utf-8")
    return load(path, environment or {})


def test_a_good_file_says_what_it_says(tmp_path: Path) -> None:
    config = read(tmp_path, GOOD)
    delay = config.models["delay"]
    assert (config.name, config.store, delay.inputs, delay.params) == ("flights", ".palan", ("temp", "dewp"), {"rate": 0.1})
    assert delay.time_limit is not None and delay.time_limit.total_seconds() == 0.05
    assert delay.release.canary is not None and delay.release.canary[0] == 0.2 and delay.release.canary[1].days == 7
    assert (delay.watch.false_pages.days, delay.react.approve, delay.react.costs) == (180, "auto", {"review": 0.5})
    assert config.models["plain"].watch.window.days == 7


@pytest.mark.parametrize(
    ("old", "new", "line", "what", "hint"),
    [
        pytest.param("[project]\n", "[projekt]\n", 1, "projekt: unknown key", 'did you mean "project"?', id="a table"),
        pytest.param('name = "flights"', 'nam = "flights"', 2, "nam: unknown key", 'did you mean "name"?', id="a key of the project"),
        pytest.param('name = "flights"', "name = 3", 2, "name: 3 is not a text in quotes", 'name = "..."', id="a name that is a number"),
        pytest.param('name = "flights"', 'store = ""', 2, "store: '' is not a text", 'store = "..."', id="no store"),
        pytest.param('source = "feed', 'sourc = "feed', 5, "sourc: unknown key", 'did you mean "source"?', id="a key of data"),
        pytest.param('source = "feed/*.csv"\n', "", 4, "has to name either a source or a transform", 'source = "feed/*.csv"', id="no source"),
        pytest.param('key = ["id"]', 'key = "id"', 6, "key: 'id' is not a list of texts", "the columns that identify a row", id="a text for a list"),
        pytest.param("[data.weather.columns]\n", "columns = 3\n[data.other]\nsource='x'\n[data.other.columns]\n", 10, "columns: 3 is not a table", "", id="columns that are no table"),
        pytest.param('model = "delay.py:Delay"\n', "", 17, "does not say what decides", 'model = "delay.py:Class"', id="no model"),
        pytest.param('data = "weather"', 'data = "wether"', 19, 'data: there is no data "wether"', 'did you mean "weather"?', id="unknown data"),
        pytest.param('inputs = ["temp", "dewp"]', 'inputs = ["temp", "dewpoint"]', 20, 'inputs: data "weather" has no column "dewpoint"', 'did you mean "dewp"?', id="an input that is no column"),
        pytest.param('outcome = "late"', 'outcome = "lat"', 21, 'outcome: data "weather" has no column "lat"', 'did you mean "late"?', id="an outcome that is no column"),
        pytest.param('key = "id"\n', 'key = "ident"\n', 22, 'key: data "weather" has no column "ident"', 'did you mean "id"?', id="a key that is no column"),
        pytest.param("params = { rate = 0.1 }", "params = 0.1", 23, "params: 0.1 is not a table", "parameters", id="params that are no table"),
        pytest.param('fallback = "plain"', 'fallback = "plane"', 25, 'fallback: there is no model "plane"', 'did you mean "plain"?', id="an unknown fallback"),
        pytest.param('fallback = "plain"', 'fallback = "delay"', 25, "fallback: a model is no fallback of its own", "", id="its own fallback"),
        pytest.param('time_limit = "50ms"', 'time_limit = "fast"', 26, "time_limit: 'fast' is not a duration", "deadline", id="no duration"),
        pytest.param('time_limit = "50ms"', "time_limit = -1", 26, "time_limit: -1 is not a duration", "deadline", id="a time before now"),
        pytest.param('time_limit = "50ms"', "time_limit = inf", 26, "time_limit: inf is not a duration", "deadline", id="for ever"),
        pytest.param('time_limit = "50ms"', "time_limit = nan", 26, "time_limit: nan is not a duration", "deadline", id="no number"),
        pytest.param('time_limit = "50ms"', 'time_limit = "0s"', 26, "time_limit: '0s' is not a duration above zero", "deadline", id="no time at all"),
        pytest.param('time_limit = "50ms"', 'time_limt = "50ms"', 26, "time_limt: unknown key", 'did you mean "time_limit"?', id="a key of a model"),
        pytest.param('time_limit = "50ms"', 'kind = "estimater"', 26, "kind: 'estimater' is not one of", "estimator, program", id="an unknown kind"),
        pytest.param('canary = "20% for 7d"', 'canary = "20%"', 28, "canary: '20%' is not a share and a time", "20% for 7d", id="half a canary"),
        pytest.param('canary = "20% for 7d"', 'canary = "120% for 7d"', 28, "canary: '120% for 7d' is not a share", "20% for 7d", id="more than all"),
        pytest.param("[models.delay.release]", "[models.delay.relase]", 27, "relase: unknown key", 'did you mean "release"?', id="an unknown table of a model"),
        pytest.param('window = "7d"', 'window = "99999999999w"', 30, "window: '99999999999w' is not a duration", "windows", id="longer than time"),
        pytest.param('window = "7d"', 'windw = "7d"', 30, "windw: unknown key", 'did you mean "window"?', id="a key of the watch"),
        pytest.param('"1 per 180d"', '"2 per 180d"', 31, "false_pages: '2 per 180d' is not an alarm budget", "1 per 180d", id="another budget"),
        pytest.param('approve = "auto"', 'approve = "yes"', 33, "approve: 'yes' is not one of ask, auto", "ask a person", id="an unknown approval"),
        pytest.param("{ review = 0.5 }", '{ review = "cheap" }', 34, "costs: {'review': 'cheap'} is not a table of numbers", "", id="a cost that is no number"),
        pytest.param("{ review = 0.5 }", "{ revew = 0.5 }", 34, "costs: {'revew': 0.5} is not made of review, train, switch (did you mean \"review\"?)", "", id="an unknown cost"),
        pytest.param("{ review = 0.5 }", "{ review = nan }", 34, "costs: {'review': nan} is not a table of numbers", "", id="a cost of no number"),
        pytest.param('inputs = ["temp", "dewp"]', "inputs = []", 20, "inputs: [] is not a list of names", "the columns that a caller sends", id="no inputs"),
        pytest.param('inputs = ["temp", "dewp"]', 'inputs = ["temp", ""]', 20, "inputs: ['temp', ''] is not a list of names", "the columns", id="an input without a name"),
        pytest.param('inputs = ["temp", "dewp"]', 'inputs = ["temp", "temp"]', 20, "inputs: ['temp', 'temp'] is not a list of different names", "the columns", id="an input twice"),
        pytest.param('key = ["id"]', 'key = ["id", "id"]', 6, "key: ['id', 'id'] is not a list of different names", "identify a row", id="a key twice"),
        pytest.param('gates = ["golden"]', 'segments = ["tmp"]', 24, 'segments: "tmp" is none of the inputs', 'did you mean "temp"?', id="an unknown segment"),
        pytest.param('gates = ["golden"]', 'gates = ["nope"]', 24, 'gates: no gate "nope"', "gates are: champion", id="an unknown gate"),
        pytest.param('gates = ["golden"]', 'gates = ["golden", "latncy 5s"]', 24, 'gates: no gate "latncy"', 'did you mean "latency"?', id="a gate of nearly a name"),
        pytest.param('gates = ["golden"]', 'gates = ["latency -1"]', 24, 'gates: gate latency: limit cannot be "-1"', "limit=50ms", id="a limit below zero"),
        pytest.param('gates = ["golden"]', 'gates = ["latency 0ms"]', 24, 'gates: gate latency: limit cannot be "0ms"', "limit=50ms", id="a limit of zero"),
        pytest.param('gates = ["golden"]', 'gates = ["champion margin=nan"]', 24, 'gates: gate champion: margin cannot be "nan"', "margin=0.002", id="a margin of no number"),
        pytest.param('gates = ["golden"]', 'gates = ["champion margn=1"]', 24, 'gates: gate champion does not take "margn"', 'did you mean "margin"?', id="an unknown option of a gate"),
        pytest.param('gates = ["golden"]', 'golden = "nope.json"', 24, "golden: there is no file nope.json", "write golden cases there", id="golden cases that are not there"),
        pytest.param('window = "7d"', 'window = "1s"', 30, "window: '1s' is not a window of 1h at least", "windows", id="a window of a moment"),
        pytest.param('window = "7d"', 'window = "20w"', 30, "window: is longer than the reference", "reference", id="a window longer than what is normal"),
        pytest.param('"1 per 180d"', '"1 per 13d"', 31, "false_pages: is less than two windows", "1 per 180d", id="a page each window"),
        pytest.param("[models.plain]", '[models."plain v2"]', 37, '"plain v2" is no name', "letters, digits, _ and -", id="a name with a space"),
        pytest.param("[data.weather]\n", '[data."a@1"]\nsource = "x"\n[data.weather]\n', 4, '"a@1" is no name', "letters, digits", id="a name with an @"),
    ],
)
def test_a_mistake_names_its_line_the_reason_and_what_to_write(tmp_path: Path, old: str, new: str, line: int, what: str, hint: str) -> None:
    assert GOOD.count(old) >= 1
    with pytest.raises(PalanError) as refused:
        read(tmp_path, GOOD.replace(old, new, 1))
    assert f"palan.toml line {line}: " in refused.value.what
    assert what in refused.value.what
    assert hint in refused.value.hint and refused.value.hint
    assert "\n" not in refused.value.what


@pytest.mark.parametrize(
    "text",
    [
        'models.delay.watch.windw = "7d"\nmodels.delay.model = "x.py:X"\n',
        '[models]\ndelay = { model = "x.py:X", watch = { windw = "7d" } }\n',
        '[models.delay]\nmodel = "x.py:X"\nwatch.windw = "7d"\n',
    ],
)
def test_a_mistake_in_a_table_that_is_written_inline_or_with_dots(tmp_path: Path, text: str) -> None:
    with pytest.raises(PalanError, match=r"palan.toml line \d: \[models.delay.watch\] windw: unknown key"):
        read(tmp_path, text)


def test_what_is_no_toml_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(PalanError, match=r"palan.toml is not TOML: .*line 5"):
        read(tmp_path, GOOD.replace('source = "feed/*.csv"', 'source = "feed/*.csv'))
    with pytest.raises(PalanError, match="is not TOML"):
        read(tmp_path, GOOD + '\n[models.plain]\nmodel = "twice.csv"\n')
    (tmp_path / "palan.toml").write_bytes(b'name = "caf\xe9"')
    with pytest.raises(PalanError, match="is not TOML"):
        load(tmp_path / "palan.toml", {})
    with pytest.raises(PalanError, match=r"there is no .*missing\.toml"):
        load(tmp_path / "missing.toml", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(PalanError, match="cannot be read: Is a directory"):
        load(tmp_path / "folder", {})


def test_golden_cases_are_looked_for_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / "gate.json").write_text("[]", encoding="utf-8")
    with pytest.raises(PalanError, match=r"palan.toml line 5: \[models.gates\] golden: there is no file golden/gates.json") as refused:
        read(tmp_path, GATES)
    assert refused.value.hint == 'did you mean "golden/gate.json"?'
    (tmp_path / "golden" / "gate.json").rename(tmp_path / "golden" / "gates.json")
    assert read(tmp_path, GATES).models["gates"].gates == ("golden", "latency 6s")


def test_palan_config_says_who_set_what(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "palan.toml").write_text(GOOD, encoding="utf-8")

    def shown() -> dict[str, tuple[object, str]]:
        with pytest.raises(SystemExit) as ended:
            main(["--project", str(tmp_path), "config", "--json"])
        assert ended.value.code == 0
        return {row["name"]: (row["value"], row["by"]) for row in json.loads(capsys.readouterr().out)}

    rows = shown()
    assert rows["project.name"] == ("flights", "palan.toml")
    assert rows["project.store"] == (".palan", "default")
    assert rows["models.delay.watch.window"] == ("7d", "palan.toml")
    assert rows["models.plain.watch.window"][1] == "default"
    assert rows["data.weather.rows"] == ("1..100", "palan.toml")
    assert set(ENVIRONMENT) <= set(rows) and rows["PALAN_STORE"] == (None, "environment")

    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("PALAN_STORE", str(elsewhere))
    rows = shown()
    assert rows["project.store"] == (str(elsewhere), "PALAN_STORE")
    assert (elsewhere / "palan.db").is_file()

    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--project", str(tmp_path), "config"])
    table = capsys.readouterr().out
    assert "project.store" in table and "PALAN_STORE" in table


def test_palan_store_wins_over_the_file_and_an_empty_one_does_not(tmp_path: Path) -> None:
    text = GOOD.replace('name = "flights"', 'name = "flights"\nstore = "kept"')
    assert read(tmp_path, text).store == "kept"
    assert read(tmp_path, text, {"PALAN_STORE": "other"}).store == "other"
    assert read(tmp_path, text, {"PALAN_STORE": ""}).store == "kept"


def test_the_project_is_found_from_below_and_by_palan_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "palan.toml").write_text(GOOD, encoding="utf-8")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert open_project().root == tmp_path.resolve()
    monkeypatch.chdir("/")
    with pytest.raises(PalanError, match="there is no palan project in /"):
        open_project()
    monkeypatch.setenv("PALAN_PROJECT", str(tmp_path))
    assert open_project().root == tmp_path.resolve()
    with pytest.raises(PalanError):  # an argument wins, and is not looked for above
        open_project(below)
