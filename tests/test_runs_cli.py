"""`palan runs`: somebody looks for a run in a terminal, opens it, and puts it beside others."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from palan.cli.runs import spark
from palan.core import natural
from palan.flows.build import build
from palan.flows.ingest import ingest
from palan.flows.init import init
from palan.flows.project import Project, open_project
from palan.flows.runs import by_seed, run_page
from palan.flows.track import start
from palan.runs.beside import columns, repeated

SOURCES = Path(__file__).parents[1] / "src"
NASTY = "<b>\x1b[31mred\n🚀" + "n" * 250


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two models, each with four seeds, and one run with names that nobody should choose."""
    root = tmp_path_factory.mktemp("runs")
    (root / "palan.toml").write_text('[project]\nname = "routing"\n', encoding="utf-8")
    project = open_project(root)
    for model, level in (("trees", 0.3), ("net", 0.5)):
        for seed in range(4):
            with start("routes", name=f"{model} {seed}", project=project, model=model, seed=seed, rate=0.1) as run:
                for step in range(200):
                    run.log(loss=level + seed * 0.01 + 1 / (step + 1), gap=2.0)
                run.artifact(b"weights", "model.bin")
    with start("odd", name=NASTY, project=project, **{"k" * 250: NASTY}) as run:
        run.log({"m" * 250: 1.0})
    return project


def palan(project: Project, *arguments: str, code: int = 0, columns: int = 120) -> str:
    """Run `palan runs …` as a user would, and return what it printed, errors included."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "COLUMNS": str(columns), "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-m", "palan.cli", "runs", *arguments], cwd=project.root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("next:")]


def test_the_list_shows_what_differs_and_names_what_to_type_next(project: Project) -> None:
    title, *lines = rows(palan(project, "experiment = 'routes'", "--order", "metrics.loss"))
    assert title.split()[:5] == ["run", "name", "experiment", "status", "started"]
    assert title.split().index("loss") < title.split().index("gap")
    assert [line.split("  ")[1].strip() for line in lines] == [*(f"trees {seed}" for seed in range(4)), *(f"net {seed}" for seed in range(4))]
    id = lines[0].split()[0]
    assert f"next: palan runs show {id}" in palan(project, "--order", "metrics.loss")
    assert "trees 0" in palan(project, "show", id)


@pytest.mark.parametrize("width", [50, 80, 200])
def test_every_line_fits_the_terminal_and_no_name_commands_it(project: Project, width: int) -> None:
    for arguments in ([], ["--flow", ""], ["--order", "params.seed desc"]):
        text = palan(project, *arguments, columns=width)
        assert all(cell_len(line) <= width for line in rows(text)), text
        assert "\x1b" not in text
    assert "·[31mred·🚀" in palan(project, "experiment = 'odd'", columns=80)


def test_what_is_searched_for_stands_first(project: Project) -> None:
    title = rows(palan(project, "params.rate = 0.1 AND metrics.gap > 1", columns=70))[0].split()
    assert title.index("rate") < title.index("gap")


def test_a_list_that_goes_on_says_how(project: Project) -> None:
    first = palan(project, "metrics.gap > 1", "--order", "metrics.loss", "--limit", "5")
    command = next(line for line in first.splitlines() if line.startswith("next: palan runs ")).removeprefix("next: palan runs ")
    import shlex

    again = palan(project, *shlex.split(command))
    shown = [line.split()[0] for text in (first, again) for line in rows(text)[1:]]
    assert len(shown) == len(set(shown)) == 8


def test_json_has_everything(project: Project) -> None:
    found = json.loads(palan(project, "params.model = 'net'", "--json", "--limit", "2"))
    assert len(found["runs"]) == 2 and found["next"]
    assert found["runs"][0]["params"] == {"model": "net", "seed": "3", "rate": "0.1"}


def test_an_empty_list_says_how_to_log_the_first_run(tmp_path: Path, project: Project) -> None:
    (tmp_path / "palan.toml").write_text('[project]\nname = "new"\n', encoding="utf-8")
    assert "palan.start(" in palan(open_project(tmp_path))
    assert "no run is like that" in palan(project, "metrics.loss > 100")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["metrics.loss <"], "metrics.loss <→"),
        (["metrics.loss < 'low'"], "metrics.loss < →'low'"),
        (["--order", "loss"], "→loss"),
        (["shwo"], 'did you mean "show"?'),
        (["show", "nothing"], 'no run "nothing"'),
        (["compare", "trees 0"], "one run cannot be compared"),
        (["--after", "x"], "is no place in a search"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_a_mistake_is_marked_in_three_lines(project: Project, arguments: list[str], said: str) -> None:
    text = palan(project, *arguments, code=2)
    assert said in text
    assert "hint: " in text
    assert len(text.splitlines()) <= 3


def test_a_run_shows_its_values_curves_files_and_how_to_repeat_it(project: Project) -> None:
    text = palan(project, "show", "trees 2")
    for each in ("trees 2", "routes: done", "model  trees", "model.bin", "about/distributions.json", "python"):
        assert each in text
    (loss,) = [line for line in text.splitlines() if line.startswith("loss")]
    assert loss.split()[:5] == ["loss", "0.325", "0.325", "1.32", "200"]
    assert "█" in loss and loss.rstrip().endswith("▁")
    assert all(cell_len(line) <= 50 for line in palan(project, "show", "trees 2", columns=50).split("\nmetrics\n")[1].splitlines()[:3])
    palan(project, "show", NASTY.split("\n")[0], code=2)


def test_curves_are_drawn_in_ascii_where_nothing_else_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spark([0.0, None, 1.0]) in ("▁ █", "_ #")
    assert spark([2.0, 2.0]) in ("▁▁", "__")
    assert spark([]) == ""

    class Plain:
        encoding = "ascii"

    monkeypatch.setattr(sys, "stdout", Plain())
    assert spark([0.0, None, 1.0]) == "_ #"


def test_runs_side_by_side_say_what_differs_first(project: Project) -> None:
    text = palan(project, "compare", "trees 0", "net 0")
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["name", "model", "loss"]
    assert lines[3].split() == ["loss", "0.305", "0.505"]
    assert "the same in all: 2 params, 1 metric" in text
    assert sum("█" in line for line in lines) >= 1


def test_with_several_seeds_the_difference_is_paired(project: Project) -> None:
    names = [f"{model} {seed}" for model in ("trees", "net") for seed in range(4)]
    text = palan(project, "compare", *names)
    assert "loss, model=net against model=trees: higher by 0.2 (0.2 to 0.2) over 4 seeds" in text
    assert "gap, model=net against model=trees: the same over 4 seeds" in text
    told = json.loads(palan(project, "compare", *names[:2], *names[4:6], "--json"))
    assert [(each["metric"], each["seeds"], each["low"]) for each in told["seeds"]] == [("loss", 2, None), ("gap", 2, None)]
    assert "too few seeds" in told["seeds"][0]["text"]


def test_the_paired_statistics_are_those_of_scipy() -> None:
    from scipy import stats

    chance = random.Random(3)
    levels = {"a": 0.0, "b": 1.2, "c": 0.1}
    measured = {name: [level + chance.gauss(0, 1) for _ in range(9)] for name, level in levels.items()}
    runs = [{**told(model=name, seed=str(seed)), "metrics": {"loss": value}} for name, values in measured.items() for seed, value in enumerate(values)]
    found = {each["group"]["model"]: each for each in by_seed(runs)}
    alone = {name: stats.ttest_rel(measured[name], measured["a"]) for name in "bc"}
    for name, each in found.items():
        assert each["against"] == {"model": "a"} and each["seeds"] == 9
        low, high = alone[name].confidence_interval(0.95)
        assert (each["low"], each["high"]) == pytest.approx((low, high), rel=1e-6)
    small, large = sorted("bc", key=lambda name: alone[name].pvalue)
    assert found[small]["p"] == pytest.approx(min(1.0, 2 * alone[small].pvalue), rel=1e-6)  # Holm: of two the smaller counts twice
    assert found[large]["p"] == pytest.approx(max(found[small]["p"], alone[large].pvalue), rel=1e-6)


def test_what_tells_a_group_apart_is_all_that_names_it() -> None:
    runs = [{**told(model=model, depth=depth, lr="1", seed=str(seed)), "metrics": {"loss": float(depth) + seed * 0.1}} for model, depth in (("a", "1"), ("a", "2"), ("b", "1")) for seed in range(4)]
    assert next((each["group"], each["against"]) for each in by_seed(runs)) == ({"depth": "2"}, {"depth": "1"})
    assert {tuple(each["group"]) for each in by_seed(runs)} == {("depth",), ("model",)}


def test_many_runs_stand_in_rows(project: Project) -> None:
    names = [f"{model} {seed}" for model in ("trees", "net") for seed in range(4)]
    text = palan(project, "compare", *names, columns=60)
    table = text.split("the same in all")[0].splitlines()
    assert table[0].split()[:3] == ["run", "name", "model"]
    assert len(table) >= 9 and all(len(line) <= 60 for line in table[:9])


def told(**values: Any) -> dict[str, Any]:
    return {"run": "r", "params": values, "metrics": {}, "tags": {}}


def test_what_differs_comes_before_what_some_lack_and_what_all_share() -> None:
    runs = [{**told(a="1", b="1", c="1"), "metrics": {"x": 1.0}}, {**told(a="1", b="2"), "metrics": {"x": 1.0}}, {**told(a="1", b="2", c="1"), "metrics": {"x": 2.0}}]
    assert columns(runs) == ["metrics.x", "params.b", "params.c", "params.a"]
    assert columns(runs, ["params.a", "params.z"])[0] == "params.a"
    assert columns(runs[:1]) == ["metrics.x", "params.a", "params.b", "params.c"]
    assert columns([]) == []


def test_runs_that_share_all_but_the_seed_are_a_group() -> None:
    groups = repeated([told(a="1", b="x", seed="0"), told(a="2", b="x", seed="0"), told(a="1", b="x", seed="1"), told(a="1", b="x")])
    assert [(dict(each.params), list(each.runs)) for each in groups] == [({"a": "1"}, ["0", "1"]), ({"a": "2"}, ["0"])]
    assert repeated([]) == []


def test_what_the_verbs_did_is_found_the_same_way(tmp_path: Path) -> None:
    init(tmp_path, kind="estimator")
    made = open_project(tmp_path)
    ingest(made)
    built = build(made, "rentals", params={"ridge": 0.25})
    name, value = next(iter(built["metrics"].items()))
    assert "rentals" in palan(made, "--flow", "build", f"metrics.`{name}` <= {value + 1e-6} AND params.ridge = 0.25")
    assert "no run is like that" in palan(made, "--flow", "build", f"metrics.`{name}` < {value - 1e-3}")
    assert "no run is tracked yet" in palan(made)
    id = json.loads(palan(made, "--flow", "build", "--json"))["runs"][0]["run"]
    assert json.loads(palan(made, "show", id, "--json"))["params"]["ridge"] == "0.25"


def test_names_are_in_the_order_in_which_people_count(project: Project) -> None:
    with start("counting", project=project, option_10=1, option_2=1, Option_3=1) as run:
        run.log(m10=1.0, m9=2.0)
        run.artifact(b"x", "plan-12.json")
        run.artifact(b"y", "plan-7.json")
    page = run_page(project, run.id)
    assert [name for name in page["params"] if "option" in name.lower()] == ["option_2", "Option_3", "option_10"]
    assert [each["metric"] for each in page["curves"]] == ["m9", "m10"] == list(page["metrics"])
    assert [each["path"] for each in page["artifacts"] if each["path"].startswith("plan")] == ["plan-7.json", "plan-12.json"]
    assert sorted(["a2b10", "a2b9", "a", "٣", "a12345678901234567890123"], key=natural) == ["a", "a2b9", "a2b10", "a12345678901234567890123", "٣"]
