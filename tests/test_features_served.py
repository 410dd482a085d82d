"""Features of a model from palan.toml to production: learnt with, served with, packaged, checked and edited."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from palan.data.past import before, join_past
from palan.errors import Invalid, NotFound, PalanError
from palan.flows import history, packages, tables
from palan.flows.build import build
from palan.flows.check import check
from palan.flows.decide import Deciders, decide
from palan.flows.history import sent_schema
from palan.flows.ingest import ingest
from palan.flows.project import Project, open_project
from palan.flows.release import release
from palan.flows.replay import replay
from palan.flows.why import why

TOML = """
[project]
name = "line"
[data.flights]
source = "feed/*.csv"
key = ["id"]
time = "at"
columns = { id = "int", at = "time", origin = "str in EWR JFK", distance = "float 0..5000", delay = "float" }
[models.delay]
model = "delay.py:Delay"
data = "flights"
inputs = ["origin", "distance", "at"]
outcome = "delay"
key = "id"
features = "features.py"
"""
FEATURES = '''
import polars as pl


def far(distance: pl.Expr) -> pl.Expr:
    """How far, on a scale of factors."""
    return (distance + 1).log()


def far_scaled(far: pl.Expr, middle: float) -> pl.Expr:
    return far - middle


def hour(at: pl.Expr) -> pl.Expr:
    return at.dt.convert_time_zone("America/New_York").dt.hour()


def usual(origin: pl.Expr, delays: dict) -> pl.Expr:
    return origin.replace_strict(delays, default=0.0, return_dtype=pl.Float64)


def fit(frame: pl.DataFrame) -> dict:
    by = frame.group_by("origin").agg(pl.col("delay").mean()).sort("origin")
    return {"middle": frame.select((pl.col("distance") + 1).log().mean()).item(), "delays": dict(by.iter_rows())}
'''
DELAY = """
import polars as pl


class Delay:
    factor: float = 1.0

    def fit(self, data):
        rows = data.select("far_scaled", "delay").drop_nulls()
        self.slope = float((rows["far_scaled"] * rows["delay"]).mean())

    def decide(self, rows):
        return rows.select(output=pl.col("usual") + self.slope * pl.col("far_scaled") + 0.1 * pl.col("hour"))

    def score(self, decisions, outcomes):
        return (decisions["output"].to_numpy() - outcomes) ** 2
"""


def lay(folder: Path, *, features: str = FEATURES, delay: str = DELAY, toml: str = TOML, rows: int = 400) -> Project:
    (folder / "palan.toml").write_text(toml, encoding="utf-8")
    (folder / "features.py").write_text(features, encoding="utf-8")
    (folder / "delay.py").write_text(delay, encoding="utf-8")
    (folder / "feed").mkdir()
    number = pl.int_range(rows, eager=True)
    frame = pl.DataFrame({"id": number}).with_columns(
        at=pl.datetime(2013, 1, 1, time_zone="UTC") + pl.duration(hours=pl.col("id")),
        origin=pl.when(pl.col("id") % 3 == 0).then(pl.lit("EWR")).otherwise(pl.lit("JFK")),
        distance=(pl.col("id") * 37 % 2000 + 100).cast(float),
    )
    frame.with_columns(delay=pl.col("distance").log() * 3 + (pl.col("id") % 7)).write_csv(folder / "feed" / "one.csv")
    project = open_project(folder)
    ingest(project)
    return project


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a version, which nobody changes."""
    project = lay(tmp_path_factory.mktemp("line"))
    build(project, "delay")
    return project


def sent(project: Project) -> pl.DataFrame:
    return pl.read_csv(project.root / "feed" / "one.csv").select("origin", "distance", pl.col("at").str.to_datetime(time_zone="UTC").dt.cast_time_unit("us"))


def test_a_model_learns_and_decides_with_its_features(built: Project) -> None:
    version = packages.find_version(built, "delay@1")
    told = version.manifest["features"]
    assert {name: (each["columns"], each["constants"]) for name, each in told["made"].items()} == {
        "far": (["distance"], []),
        "far_scaled": (["distance"], ["middle"]),
        "hour": (["at"], []),
        "usual": (["origin"], ["delays"]),
    }
    assert told["made"]["far"]["about"] == "How far, on a scale of factors."
    assert set(told["constants"]) == {"middle", "delays"}
    kept = json.loads(built.store.blobs.get(version.manifest["state"]["features.json"]))
    assert kept == told["constants"]
    assert "features.py:far" in version.manifest["closure"] and "features.py" in version.manifest["code"]

    rows = sent(built).head(50)
    with packages.open_worker(built, version) as worker:
        together = worker.decide(rows)
        alone = pl.concat([worker.decide(rows[place]) for place in range(rows.height)])
        again = worker.parity(rows)
    assert together.equals(alone)
    assert again == {"values": 200, "different": 0, "shown": []}
    assert "feature: far of distance: How far, on a scale of factors." in why(built, "delay@1")["depends on"]


def test_checking_replays_rows_both_ways(built: Project) -> None:
    (found,) = [each for each in check(built, "delay@1")["findings"] if each["gate"] == "features"]
    assert found["verdict"] == "pass" and found["figures"] == {"values": 1600}


def test_a_feature_that_looks_at_other_rows_passes_no_check(tmp_path: Path) -> None:
    project = lay(tmp_path, features=FEATURES.replace("(distance + 1).log()", "distance / distance.mean()"))
    checked = check(project, build(project, "delay")["version"])
    (found,) = [each for each in checked["findings"] if each["gate"] == "features"]
    assert checked["verdict"] == found["verdict"] == "fail"
    assert found["figures"]["different"] > 700 and "far of row 1 is 1.0, in the batch 0." in found["text"]


def test_an_edit_of_a_feature_is_another_version_and_its_replay_shows_what_it_does(tmp_path: Path) -> None:
    project = lay(tmp_path)
    first = build(project, "delay")
    assert not build(project, "delay")["new"]
    place = project.root / "features.py"
    place.write_text("# why not\n" + place.read_text(), encoding="utf-8")
    assert not build(project, "delay")["steps"]["executed"]  # a comment is no edit
    place.write_text(place.read_text().replace("dt.hour()", "dt.hour() // 2"), encoding="utf-8")
    assert packages.edited(project, packages.find_version(project, first["version"])) == ["features.py:hour"]
    shown = replay(project, "delay@.", file=project.root / "feed" / "one.csv", against=first["version"])
    assert shown["changed"] > 350
    second = build(project, "delay")
    assert second["new"] and second["version"] == "delay@3"
    one, two = (packages.find_version(project, each["version"]).manifest["features"]["made"] for each in (first, second))
    assert [name for name in one if one[name]["digest"] != two[name]["digest"]] == ["hour"]
    assert why(project, second["version"])["changed"] == ["code: features.py:hour was edited", "feature: hour gives another value"]


def test_an_object_of_scikit_learn_is_given_the_features_alone(tmp_path: Path) -> None:
    project = lay(tmp_path, delay="from sklearn.linear_model import Ridge\n\nmodel = Ridge(alpha=0.5)\n", toml=TOML.replace("delay.py:Delay", "delay.py:model"))
    version = packages.find_version(project, build(project, "delay")["version"])
    with packages.open_worker(project, version) as worker:
        rows = sent(project).head(5)
        assert worker.decide(rows).equals(pl.concat([worker.decide(rows[place]) for place in range(5)]))
    assert check(project, version.ref)["verdict"] != "fail"


def test_rules_may_have_features_with_constants_that_are_fitted(tmp_path: Path) -> None:
    rules = "import polars as pl\n\n\ndef decide(rows):\n    return rows.select(output=pl.col('usual') > 20)\n"
    project = lay(tmp_path, delay=rules, toml=TOML.replace("delay.py:Delay", "delay.py:decide"))
    version = packages.find_version(project, build(project, "delay")["version"])
    assert version.kind == "rules" and set(version.manifest["state"]) == {"features.json"}
    with packages.open_worker(project, version) as worker:
        assert worker.decide(sent(project).head(3)).height == 3


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("distance: pl.Expr", "distanse: pl.Expr"), 'the feature "far" reads "distanse", which is no column, feature or constant'),
        (("distance: pl.Expr", "delay: pl.Expr"), 'the feature "far" reads "delay", which is no column'),  # the outcome is known only later
        (('return at.dt.convert', 'return at.dtt.convert'), "AttributeError: 'Expr' object has no attribute 'dtt' (features.py:15"),
        (('"middle": frame', '"middle": 1e999, "most": frame'), 'the constant "middle" is not finite'),
        (("-> pl.Expr", "-> object"), "features.py has no feature functions"),
        (("import polars as pl", "import polars as pl\nimport no_such_library"), "features.py needs no_such_library, which is not installed"),
    ],
)
def test_what_is_wrong_with_features_is_told_at_the_build(tmp_path: Path, change: tuple[str, str], what: str) -> None:
    project = lay(tmp_path, features=FEATURES.replace(*change))
    with pytest.raises(PalanError) as refused:
        build(project, "delay")
    assert what in refused.value.what


def test_a_file_of_features_that_is_not_there_and_a_model_that_takes_no_rows(tmp_path: Path) -> None:
    project = lay(tmp_path)
    (project.root / "palan.toml").write_text(TOML.replace('"features.py"', '"feature.py"'), encoding="utf-8")
    with pytest.raises(NotFound, match=r"there is no feature\.py in the project"):
        build(open_project(project.root), "delay")
    solve = "def plan(instance, ctx):\n    return {}\n"
    (project.root / "delay.py").write_text(solve, encoding="utf-8")
    (project.root / "palan.toml").write_text(TOML.replace("delay.py:Delay", "delay.py:plan"), encoding="utf-8")
    with pytest.raises(PalanError, match="features are made of rows, and it solves an instance"):
        build(open_project(project.root), "delay")


# --- what was known before ---

LOOKED = FEATURES.replace("import polars as pl\n", "from datetime import timedelta\n\nimport polars as pl\n\nfrom palan.data.past import Past, before, last\n", 1) + '''

def recent() -> Past:
    """How late flights from there were in the last two days."""
    return before("mean", "flights", "delay", by=["origin"], time="at", within=timedelta(days=2))


def newest() -> Past:
    return last("flights", "distance", by=["origin"], time="at")


def surprising(recent: pl.Expr, usual: pl.Expr) -> pl.Expr:
    return recent - usual
'''
GUESS = DELAY.replace("return rows.select(output=", "return rows.select('recent', 'newest', output=").replace("0.1 * pl.col(\"hour\")", "pl.col('surprising').fill_null(0.0)")


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a released version that looks back."""
    project = lay(tmp_path_factory.mktemp("looking"), features=LOOKED, delay=GUESS)
    build(project, "delay")
    release(project, "delay", version="1", force=True, reason="to look back")
    return project


def test_what_was_known_before_is_the_same_for_learning_and_for_a_request(looking: Project) -> None:
    version = packages.find_version(looking, "delay@1")
    told = version.manifest["features"]
    assert [(each["name"], each["type"]) for each in told["pasts"]] == [("recent", "float"), ("newest", "float")]
    assert list(told["tables"]) == ["flights"] and told["made"]["surprising"]["columns"] == ["origin", "recent"]
    assert [each.name for each in sent_schema(version.manifest).fields] == ["origin", "distance", "at"]

    rows = sent(looking)
    flights = tables.read(looking, tables.find_data_version(looking, "flights"))
    past = before("mean", "flights", "delay", by=["origin"], time="at", within=timedelta(days=2))
    expected = join_past(rows, "at", {"recent": past}, {"flights": flights})["recent"]
    answered = decide(looking, "delay", rows)
    assert pl.Series(answered["outputs"]["recent"]).to_list() == pytest.approx(expected.to_list())
    assert answered["outputs"]["recent"][:2] == [None, None] and answered["outputs"]["recent"][3] is not None
    (logged,) = history.decisions(looking, "delay")[-1:]
    assert logged.inputs["recent"] == answered["outputs"]["recent"] and set(logged.inputs) == {"origin", "distance", "at", "recent", "newest"}
    again = replay(looking, "delay@1", on="last:400", against="logged")
    assert again["changed"] == 0


def test_a_time_at_which_nothing_was_known_yet_passes_no_check(tmp_path: Path) -> None:
    project = lay(tmp_path, features=LOOKED, delay=GUESS)
    build(project, "delay")
    release(project, "delay", version="1", force=True, reason="to look back")
    late = sent(project).tail(20).with_columns(pl.col("at") + timedelta(days=1))
    assert decide(project, "delay", late)["rows"] == 20
    (found,) = [each for each in check(project, "delay@1")["findings"] if each["gate"] == "features"]
    assert found["verdict"] == "pass"  # what was looked up for all twenty is what the table tells now
    # rows that happened before these requests arrive after them
    known = pl.read_csv(project.root / "feed" / "one.csv").tail(20).with_columns(pl.col("id") + 1000, pl.col("at").str.replace("2013-01-17", "2013-01-18"), delay=99.0)
    known.write_csv(project.root / "feed" / "late.csv")
    ingest(project)
    (found,) = [each for each in check(project, "delay@1")["findings"] if each["gate"] == "features"]
    assert found["verdict"] == "fail" and found["figures"]["late"]["recent"] > 10
    assert "tells of that time now: its rows become known later than at says" in found["text"]


def test_who_asks_cannot_say_what_was_known(looking: Project) -> None:
    with pytest.raises(Invalid, match="recent"):
        decide(looking, "delay", [{"origin": "JFK", "distance": 10.0, "at": "2013-01-05T00:00:00Z", "recent": 3.0}])


def test_a_server_knows_what_was_ingested_since(looking: Project) -> None:
    row = {"origin": "EWR", "distance": 500.0, "at": "2013-03-01T00:00:00Z"}
    deciders = Deciders(looking)
    deciders.follow()
    try:
        assert deciders.decide("delay", value=[row])["outputs"][0]["recent"] != 44.0
        (looking.root / "feed" / "two.csv").write_text("id,at,origin,distance,delay\n9001,2013-02-28T12:00:00Z,EWR,900.0,44.0\n9002,2013-03-01T00:00:00Z,EWR,901.0,50.0\n", encoding="utf-8")
        ingest(looking)
        until = time.monotonic() + 20
        while (found := deciders.decide("delay", value=[row])["outputs"][0])["recent"] != 44.0:
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        deciders.close()
    assert (found["recent"], found["newest"]) == (44.0, 900.0)  # never the row's own moment


def test_an_edit_that_looks_back_further_can_be_replayed_on_what_was_decided_without_it(looking: Project) -> None:
    if len(history.decisions(looking, "delay")) < 300:
        decide(looking, "delay", sent(looking))
    place = looking.root / "features.py"
    before_it = place.read_text(encoding="utf-8")
    try:
        place.write_text(before_it + "\n\ndef seen() -> Past:\n    return before('count', 'flights', 'delay', by=[], time='at')\n", encoding="utf-8")
        (looking.root / "delay.py").write_text(GUESS.replace("+ self.slope", "+ pl.col('seen') * 0 + self.slope"), encoding="utf-8")
        shown = replay(looking, "delay@.", on="last:300", against="logged")
    finally:
        place.write_text(before_it, encoding="utf-8")
        (looking.root / "delay.py").write_text(GUESS, encoding="utf-8")
    assert shown["rows"] == 300 and shown["changed"] == 0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (('"flights", "delay"', '"flihgts", "delay"'), '"recent" looks into "flihgts", which is no data with columns'),
        (('"flights", "delay"', '"flights", "late"'), '"recent" looks up "late" in flights, which has no such column'),
        (('by=["origin"], time="at", within', 'by=["id"], time="at", within'), '"recent" is looked up by "id", which is not sent by callers'),
        (('time="at", within', 'time="distance", within'), '"recent" looks up by the time "distance" of flights, which is a float'),
        (('"mean", "flights", "delay"', '"mean", "flights", "origin"'), '"recent": there is no mean of a str'),
        (("def recent()", "def recent(days)"), '"recent" looks up the past, and takes an argument'),
        (("-> Past:\n    return last", "-> Past:\n    return 3, last"), '"newest" made tuple, not a Past'),
    ],
)
def test_what_cannot_be_looked_up_is_told_at_the_build(built: Project, change: tuple[str, str], what: str) -> None:
    assert change[0] in LOOKED
    (built.root / "features.py").write_text(LOOKED.replace(*change), encoding="utf-8")
    with pytest.raises(PalanError) as refused:
        build(built, "delay")
    (built.root / "features.py").write_text(FEATURES, encoding="utf-8")
    assert what in refused.value.what


# --- steps that are no expressions ---

STEPS = FEATURES.replace("import polars as pl\n", "import numpy as np\nimport polars as pl\nfrom sklearn.compose import ColumnTransformer\nfrom sklearn.pipeline import Pipeline, make_pipeline\nfrom sklearn.preprocessing import OneHotEncoder, StandardScaler\n", 1) + '''

def placed(far: pl.Expr, distance: pl.Expr, origin: pl.Expr) -> ColumnTransformer:
    """How far, scaled, and from where."""
    return ColumnTransformer([("far", StandardScaler(), [far, distance]), ("at", OneHotEncoder(handle_unknown="ignore", sparse_output=False), [origin])])


def spread(distance, far_scaled) -> Pipeline:
    return make_pipeline(StandardScaler())


def digits(distance: pl.Series) -> pl.Series:
    return pl.Series([len(str(each)) for each in distance], dtype=pl.Int64)
'''


def test_scikit_learns_transformers_are_steps_with_their_cost(tmp_path: Path) -> None:
    model = "from sklearn.linear_model import Ridge\n\nmodel = Ridge(alpha=0.5)\n"
    project = lay(tmp_path, features=STEPS, delay=model, toml=TOML.replace("delay.py:Delay", "delay.py:model"), rows=120)
    told: list[str] = []
    project = open_project(project.root, tell=told.append)
    version = packages.find_version(project, build(project, "delay")["version"])
    slow = [each for each in told if "opaque step" in each]
    assert len(slow) == 3 and all(each.endswith("µs") for each in slow)
    made = version.manifest["features"]["made"]
    assert made["placed"]["columns"] == ["origin", "distance"] and made["placed"]["about"] == "How far, scaled, and from where."
    assert {"features/placed/state.json", "features/spread/state.json", "features.json"} <= set(version.manifest["state"])
    assert not any("pickle" in name for name in version.manifest["state"])
    rows = sent(project)
    with packages.open_worker(project, version) as worker:
        alone = pl.concat([worker.decide(rows[place]) for place in range(40)])["output"]
        assert worker.decide(rows.head(40))["output"].to_list() == pytest.approx(alone.to_list(), rel=1e-9)
        found = worker.parity(rows)
    # four expressions of 120 rows, and seven columns that steps made of 50: far and distance, two origins, two that are spread, digits
    assert (found["values"], found["different"]) == (4 * 120 + 7 * 50, 0)
    assert check(project, version.ref)["verdict"] != "fail"
    assert not build(project, "delay")["steps"]["executed"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("def spread(distance,", "def spread(distanse,"), 'the step "spread" reads "distanse", which is no column or feature'),
        (("dtype=pl.Int64)", "dtype=pl.Int64).head(1)"), "an opaque step gave 1 rows of 1 columns"),
    ],
)
def test_what_is_wrong_with_a_step_is_told_at_the_build(built: Project, change: tuple[str, str], what: str) -> None:
    assert change[0] in STEPS
    (built.root / "features.py").write_text(STEPS.replace(*change), encoding="utf-8")
    with pytest.raises(PalanError) as refused:
        build(built, "delay")
    (built.root / "features.py").write_text(FEATURES, encoding="utf-8")
    assert what in refused.value.what


def test_a_step_or_a_compiled_form_that_answers_otherwise_for_one_row_passes_no_check(tmp_path: Path) -> None:
    # A step that looks at the other rows of its batch, and a compiler that is broken: nothing but the check sees either.
    own = STEPS.replace("len(str(each)) for each in distance", "len(distance) for each in distance")
    project = lay(tmp_path, features=own + "\n\nimport sys\nscalar = sys.modules['palan.data.scalar']\nscalar._HELPERS['_ln'] = lambda value: scalar._ln(value) * (1 + 2e-15)\n", rows=120)
    (found,) = [each for each in check(project, build(project, "delay")["version"])["findings"] if each["gate"] == "features"]
    assert found["verdict"] == "fail" and {each["feature"] for each in found["figures"]["shown"]} <= {"far", "far_scaled", "digits"}
    assert found["figures"]["different"] > 120
