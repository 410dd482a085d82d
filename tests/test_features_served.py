"""Features of a model from palan.toml to production: learnt with, served with, packaged, checked and edited."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from palan.errors import NotFound, PalanError
from palan.flows import packages
from palan.flows.build import build
from palan.flows.check import check
from palan.flows.ingest import ingest
from palan.flows.project import Project, open_project
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
