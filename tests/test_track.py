"""Keeping track of trials: what was logged is there, from any process, also after it was killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import palan
from palan.errors import Invalid, NotFound, PalanError
from palan.flows import fold as fold_module
from palan.flows.fold import KILLED, fold, following
from palan.flows.project import Project, open_project
from palan.flows.runs import compare, curve, run_page, search
from palan.flows.surroundings import MOST
from palan.flows.track import start, track
from palan.runs.run import Curve, Run, Value
from palan.stores import segments

SOURCES = Path(__file__).parents[1] / "src"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "palan.toml").write_text('[project]\nname = "routing"\n', encoding="utf-8")
    return open_project(tmp_path)


def python(project: Project, code: str, *arguments: str) -> subprocess.Popen[str]:
    """Run a script in the project's folder, as a user would."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], cwd=project.root, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def only(project: Project) -> dict[str, Any]:
    (found,) = search(project)["runs"]
    return found


def test_what_a_run_logs_is_found_again(project: Project) -> None:
    with start("routes", name="first", project=project, lr=1e-3, model="trees") as run:
        run.params({"depth": 6, "features": ["a", "b"], "shuffle": True})
        for step in range(5):
            run.log(loss=1.0 / (step + 1), gap=float(step))
        run.log({"val/loss": 0.5}, step=100)
        run.log(loss=0.1)
        run.tags(stage="draft", team="north")
        run.tags(stage="final", team=None)
    found = only(project)
    assert (found["experiment"], found["name"], found["status"]) == ("routes", "first", "done")
    assert found["params"] == {"lr": "0.001", "model": "trees", "depth": "6", "features": '["a","b"]', "shuffle": "true"}
    assert found["metrics"] == {"loss": 0.1, "gap": 4.0, "val/loss": 0.5}
    assert found["tags"] == {"stage": "final"}
    page = run_page(project, run.id[:20])
    assert page["curves"][1] == {"metric": "loss", "last": 0.1, "min": 0.1, "max": 1.0, "points": 6, "step": 101}
    assert curve(project, run.id, "loss") | {"times": []} == {
        "run": run.id, "metric": "loss", "count": 6, "steps": [0, 1, 2, 3, 4, 101], "times": [], "values": [1.0, 0.5, 1 / 3, 0.25, 0.2, 0.1],
    }  # fmt: skip


def test_a_block_is_a_run(project: Project) -> None:
    with palan.run("routing", project=project, lr=0.1) as run:
        run.log(loss=0.3)
    assert [each["run"] for each in search(project, "params.lr = 0.1 AND metrics.loss < 1")["runs"]] == [run.id]


def test_an_empty_project_has_no_runs(project: Project) -> None:
    assert search(project) == {"runs": [], "next": "", "reading": False}
    with pytest.raises(NotFound, match="palan runs"):
        run_page(project, "nothing")


def test_without_a_project_it_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="palan init"):
        start("routes", project=tmp_path)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda run: run.log(loss="low"), "loss is 'low', which is no number"),
        (lambda run: run.log(loss=None), "loss is None, which is no number"),
        (lambda run: run.log(loss=0.1, step="x"), "the step is 'x'"),
        (lambda run: run.log(loss=0.1, step=2**70), "the step is 11"),
        (lambda run: run.log(), "nothing is logged"),
        (lambda run: run.log({"a\nb": 1.0}), "no name of a metric"),
        (lambda run: run.params(big="x" * 100_000), "big has 100,000 characters"),
        (lambda run: run.artifact("missing.bin"), "there is no file missing.bin"),
        (lambda run: run.artifact(b"x"), "bytes need a path"),
        (lambda run: run.artifact(b"x", "../up"), "leads out of the run"),
        (lambda run: run.figure("x"), "str is no figure"),
        (lambda run: run.end("gone"), '"gone" is no end of a run'),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name_and_loses_nothing(project: Project, wrong: Any, what: str) -> None:
    run = start("routes", project=project)
    run.log(loss=0.5, step=3)
    with pytest.raises(PalanError) as refused:
        wrong(run)
    assert what in refused.value.what and refused.value.hint
    run.log(loss=0.25)
    run.end()
    assert curve(project, run.id, "loss")["values"] == [0.5, 0.25]


def test_numbers_of_every_kind_are_kept(project: Project) -> None:
    import numpy as np

    run = start(project=project)
    for value in (1, True, np.float32(0.5), np.int64(7), float("nan"), float("inf"), -float("inf")):
        run.log(x=value)
    assert curve(project, run.id, "x")["values"] == [1.0, 1.0, 0.5, 7.0, None, None, None]
    found = project.store.records.find(Value, run=run.id)[0]
    assert (found.number, found.least, found.largest, found.count) == (-float("inf"), -float("inf"), float("inf"), 7)
    run.log(x=float("nan"))
    fold(project)
    found = project.store.records.find(Value, run=run.id)[0]
    assert (found.text, found.number) == ("NaN", None)


def test_the_last_value_is_the_one_of_the_largest_step(project: Project) -> None:
    run = start(project=project)
    run.log(loss=0.1, step=10)
    fold(project)
    run.log(loss=0.9, step=2)
    assert only(project)["metrics"] == {"loss": 0.1}
    run.log(loss=0.7, step=10)
    assert only(project)["metrics"] == {"loss": 0.7}
    assert curve(project, run.id, "loss")["steps"] == [2, 10, 10]


def test_an_error_ends_the_run_as_failed_and_goes_on(project: Project) -> None:
    with pytest.raises(ZeroDivisionError), start(project=project) as run:
        run.log(loss=1 / 0)
    assert (only(project)["status"], only(project)["reason"]) == ("failed", "ZeroDivisionError: division by zero")
    with pytest.raises(KeyboardInterrupt), start(project=project):
        raise KeyboardInterrupt
    assert search(project)["runs"][0]["status"] == "killed"


def test_runs_within_runs(project: Project) -> None:
    with start("tune", name="search", project=project) as outer:
        for depth in (2, 4):
            with start("tune", name=f"depth {depth}", project=project, depth=depth) as inner:
                inner.log(loss=1.0 / depth)
    page = run_page(project, outer.id)
    assert [each["name"] for each in page["children"]] == ["depth 2", "depth 4"]
    assert run_page(project, inner.id)["parent"] == outer.id
    assert start(project=project).id and search(project)["runs"][0]["parent"] == ""


def test_a_run_is_gone_on_with(project: Project) -> None:
    run = start("routes", project=project)
    run.log(loss=0.5)
    run.end("failed", "out of memory")
    assert only(project)["status"] == "failed"
    again = start(resume=run.id, project=project)
    assert (only(project)["status"], only(project)["reason"], only(project)["ended"]) == ("running", "", None)
    again.log(loss=0.25, step=1)
    again.end()
    assert only(project)["status"] == "done"
    assert curve(project, run.id, "loss")["values"] == [0.5, 0.25]
    with pytest.raises(NotFound, match='no run "none"'):
        start(resume="none", project=project)


def test_files_tables_and_figures_are_kept(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("a", encoding="utf-8")
    (folder / "deep" / "b.txt").write_text("b", encoding="utf-8")

    class Figure:
        def savefig(self, buffer: Any, format: str) -> None:
            buffer.write(b"\x89PNG")

    with start(project=project) as run:
        run.artifact(folder / "a.txt")
        run.artifact(folder)
        run.artifact(b"bytes", "model/weights.bin")
        table = run.table(pl.DataFrame({"x": [1, 2]}), "rows")
        run.table([{"x": 1}], "more.parquet")
        run.figure(Figure(), "loss.svg")
    page = run_page(project, run.id)
    kept = [each["path"] for each in page["artifacts"] if not each["path"].startswith("about/")]
    assert kept == ["a.txt", "loss.png", "model/weights.bin", "more.parquet", "out/a.txt", "out/deep/b.txt", "rows.parquet"]
    assert pl.read_parquet(project.store.blobs.get(table))["x"].to_list() == [1, 2]


def test_a_function_is_tracked(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)

    @track
    def tune(depth: int, rate: float = 0.1, rows: Any = None) -> dict[str, Any]:
        return {"loss": depth * rate, "model": "not a number"}

    @track(experiment="other")
    def fails() -> float:
        raise ValueError("no data")

    assert tune(3)["loss"] == pytest.approx(0.3)
    found = only(project)
    assert (found["experiment"], found["params"], found["metrics"]) == ("tune", {"depth": "3", "rate": "0.1", "rows": "null"}, {"loss": pytest.approx(0.3)})
    with pytest.raises(ValueError, match="no data"):
        fails()
    assert search(project, "experiment = 'other'")["runs"][0]["reason"] == "ValueError: no data"


def test_a_run_says_what_it_needs_to_be_repeated(project: Project) -> None:
    git = ["git", "-C", str(project.root), "-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    (project.root / "train.py").write_text("import palan\nwith palan.start('routes') as run:\n    run.log(loss=0.1)\n", encoding="utf-8")
    for command in (["init", "-q"], ["add", "train.py"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    (project.root / "train.py").write_text((project.root / "train.py").read_text(encoding="utf-8") + "# more\n", encoding="utf-8")
    (project.root / "requirements.txt").write_text("polars\n", encoding="utf-8")
    done = subprocess.run([sys.executable, "train.py"], cwd=project.root, env={**os.environ, "PYTHONPATH": str(SOURCES)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    page = run_page(project, only(project)["run"])
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert (page["environment"]["git.commit"], page["environment"]["script"]) == (head, "train.py")
    files = {each["path"]: project.store.blobs.get(each["blob"]) for each in page["artifacts"]}
    assert b"+# more" in files["about/changes.diff"]
    assert json.loads(files["about/distributions.json"])["polars"] == pl.__version__
    assert files["about/requirements.txt"] == b"polars\n"
    assert files["about/train.py"] == (project.root / "train.py").read_bytes()


def test_what_no_commit_has_is_kept_with_the_run_and_a_huge_change_is_cut(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-C", str(project.root), "-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    code = "import helper, palan\nwith palan.start('routes') as run:\n    run.log(loss=helper.loss())\n"

    def kept(*words: str) -> dict[str, Any]:
        done = subprocess.run([sys.executable, *words], cwd=project.root, env={**os.environ, "PYTHONPATH": str(SOURCES)}, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        page = run_page(project, search(project)["runs"][0]["run"])
        return {"environment": page["environment"], **{each["path"]: project.store.blobs.get(each["blob"]) for each in page["artifacts"]}}

    (project.root / "train.py").write_text(code, encoding="utf-8")
    (project.root / "helper.py").write_text("def loss():\n    return 0.1\n", encoding="utf-8")
    sources = {"helper.py": "def loss():\n    return 0.1\n"}
    assert json.loads(kept("train.py")["about/sources.json"]) == sources  # no repository
    assert json.loads(kept("-c", code)["about/sources.json"]) == {**sources, "train.py": code}  # and no script
    subprocess.run([*git, "init", "-q"], check=True)
    assert json.loads(kept("train.py")["about/sources.json"]) == sources  # no commit yet
    (project.root / "big.txt").write_text("", encoding="utf-8")
    for command in (["add", "train.py", "big.txt"], ["commit", "-qm", "first"], ["checkout", "-q", "--detach"]):
        subprocess.run([*git, *command], check=True)
    (project.root / "big.txt").write_text("a line of data\n" * 2_000_000, encoding="utf-8")
    found = kept("train.py")
    assert json.loads(found["about/sources.json"]) == sources  # it is in no commit
    assert len(found["about/changes.diff"]) == MOST and found["environment"]["changes.diff"] == "cut after its first 16 MB"
    subprocess.run([*git, "add", "helper.py"], check=True)
    subprocess.run([*git, "commit", "-qam", "second"], check=True)
    assert not {"about/sources.json", "about/changes.diff"} & set(kept("train.py"))
    monkeypatch.setenv("PATH", "")
    found = kept("train.py")
    assert "git.commit" not in found["environment"] and json.loads(found["about/sources.json"]) == sources


def test_cpu_and_memory_are_sampled_where_asked_for(project: Project) -> None:
    run = start(project=project, system=0.02)
    deadline = time.monotonic() + 20
    while not only(project)["metrics"] and time.monotonic() < deadline:
        time.sleep(0.02)
    run.end()
    assert only(project)["metrics"]["system.memory"] > 1


# -- other processes -----------------------------------------------------------------------------------------------------


WRITER = """
import sys, palan
run = palan.start("routes", worker=int(sys.argv[1]))
for step in range(int(sys.argv[2])):
    run.log(loss=float(step), gap=1.0)
    if step % 50 == 0:
        print(step, flush=True)
sys.stdin.readline()
run.end()
"""


def test_a_killed_process_loses_nothing_and_its_run_is_killed(project: Project) -> None:
    writer = python(project, WRITER, "1", "1000000")
    assert writer.stdout is not None
    while int(said := writer.stdout.readline()) < 500:
        pass
    assert only(project)["status"] == "running"
    writer.send_signal(signal.SIGKILL)
    acknowledged = [int(said), *(int(line) for line in writer.stdout)][-1]
    writer.wait()
    found = only(project)
    assert (found["status"], found["reason"]) == ("killed", KILLED)
    told = curve(project, found["run"], "loss", points=10_000_000)
    assert told["count"] > acknowledged
    assert told["values"] == [float(step) for step in range(told["count"])]
    last = project.store.records.find(Value, run=found["run"], key="loss")[0].time
    assert project.store.records.get(Run, found["run"]).ended.timestamp() == pytest.approx(last / 1e9, abs=1e-3)  # type: ignore[union-attr]


def test_many_processes_log_while_others_look(project: Project) -> None:
    writers = [python(project, WRITER, str(number), "3000") for number in range(4)]
    running = True
    while running:
        running = any(len(each["metrics"]) < 2 or each["metrics"]["loss"] < 2999 for each in search(project)["runs"]) or len(search(project)["runs"]) < 4
        assert not any(writer.poll() for writer in writers)
    assert {each["status"] for each in search(project)["runs"]} == {"running"}
    for writer in writers:
        _, errors = writer.communicate("\n", timeout=60)
        assert (writer.returncode, errors) == (0, "")
    found = search(project, order=["params.worker"])["runs"]
    assert [each["params"]["worker"] for each in found] == ["0", "1", "2", "3"]
    assert {each["status"] for each in found} == {"done"}
    for each in found:
        assert curve(project, each["run"], "loss", points=5000)["values"] == [float(step) for step in range(3000)]


def test_a_fold_that_is_killed_is_as_if_not_begun(project: Project) -> None:
    run = start(project=project)
    for step in range(60_000):
        run.log(loss=float(step))
    for _ in range(4):
        folding = python(project, "from palan.flows.project import open_project\nfrom palan.flows.fold import fold\nprint(flush=True)\nfold(open_project('.'))\n")
        assert folding.stdout is not None
        folding.stdout.readline()
        time.sleep(0.03)
        folding.kill()
        folding.wait()
        count = sum(each.points for each in project.store.records.find(Curve))
        values = project.store.records.find(Value, kind="metric")
        assert count == (values[0].count if values else 0)
    fold(project)
    assert fold(project) == 0
    assert curve(project, run.id, "loss", points=100_000)["values"] == [float(step) for step in range(60_000)]


def test_a_look_takes_a_moment_and_the_next_one_goes_on(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_module, "PATIENCE", 0.0)
    monkeypatch.setattr(fold_module, "AT_ONCE", 1000)
    monkeypatch.setattr(segments, "WINDOW", 4096)
    run = start("long", project=project)
    for step in range(500):
        run.log(loss=float(step))
    last = start("last", project=project)
    assert [(each["experiment"], each["metrics"]["loss"] < 499) for each in search(project)["runs"]] == [("long", True)]
    assert run_page(project, last.id)["reading"] is False  # a run that is asked for is waited for
    for step in range(500, 1000):
        run.log(loss=float(step))
    seen = [search(project)]
    while seen[-1]["reading"]:
        seen.append(search(project))
    assert 5 < len(seen) < 100 and seen[0]["reading"]
    losses = [found["runs"][1]["metrics"]["loss"] for found in seen]
    assert losses == sorted(losses) and losses[-1] == 999
    assert fold(project) == 0
    assert curve(project, run.id, "loss", points=1000)["values"] == [float(step) for step in range(1000)]


def test_somebody_who_serves_reads_what_is_logged_by_itself(project: Project) -> None:
    with following(project):
        run = start(project=project)
        run.log(loss=1.0)
        until = time.monotonic() + 30
        while not project.store.records.find(Curve) and time.monotonic() < until:
            time.sleep(0.05)
    assert project.store.records.find(Value, run=run.id)[0].number == 1.0
    assert fold(project) == 0


def test_frames_of_many_kinds_and_lengths_come_in_their_order(project: Project) -> None:
    dice = random.Random(3)
    runs = [start(f"e{number}", project=project) for number in range(3)]
    told: dict[str, list[list[float]]] = {run.id: [[], [], []] for run in runs}
    last: dict[str, str] = {}
    for _ in range(40):
        run, width = dice.choice(runs), dice.randrange(3)
        for _ in range(dice.choice((1, 2, 100))):
            value = dice.random()
            run.log({f"m{width}.{number}": value for number in range(width + 1)})
            told[run.id][width].append(value)
        run.tags(last=value)
        last[run.id] = repr(value)
        if dice.random() < 0.2:
            fold(project)
    for run in runs:
        found = run_page(project, run.id)
        for width, values in enumerate(told[run.id]):
            if values:
                assert curve(project, run.id, f"m{width}.0", points=10_000)["values"] == values
                assert found["metrics"][f"m{width}.{width}"] == values[-1]
        assert found["tags"].get("last") == last.get(run.id)


def logs_in_a_fork(root: str) -> None:
    with start("child", project=root) as run:
        run.log(loss=2.0)


def test_a_forked_child_logs_for_itself(project: Project) -> None:
    run = start("parent", project=project.root)
    run.log(loss=1.0)
    child = multiprocessing.get_context("fork").Process(target=logs_in_a_fork, args=(str(project.root),))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    run.log(loss=1.5)
    found = {each["experiment"]: each for each in search(project)["runs"]}
    assert (found["child"]["status"], found["child"]["metrics"]) == ("done", {"loss": 2.0})
    assert (found["parent"]["status"], found["parent"]["metrics"]) == ("running", {"loss": 1.5})


# -- looking ---------------------------------------------------------------------------------------------------------------


def test_searches_orders_and_pages(project: Project) -> None:
    for number in range(25):
        with start("ab"[number % 2], project=project, depth=number) as run:
            run.log(loss=(number * 7) % 25 / 25)
    found = search(project, "experiment = 'a' and metrics.loss < 0.5", order=["metrics.loss"])["runs"]
    assert [each["metrics"]["loss"] for each in found] == sorted(number * 7 % 25 / 25 for number in range(0, 25, 2) if number * 7 % 25 / 25 < 0.5)
    seen: list[str] = []
    after = ""
    while True:
        page = search(project, order=["params.depth desc"], limit=10, after=after)
        seen += [each["params"]["depth"] for each in page["runs"]]
        after = page["next"]
        if not after:
            break
    assert seen == [str(number) for number in reversed(range(25))]
    with pytest.raises(PalanError, match="→"):
        search(project, "metrics.loss <")
    for wrong in ("x", "é", "eA=="):
        with pytest.raises(Invalid, match="no place in a search"):
            search(project, after=wrong)


def test_a_long_curve_keeps_its_extremes(project: Project) -> None:
    run = start(project=project)
    for step in range(20_000):
        run.log(loss=-5.0 if step == 7_777 else 9.0 if step == 15_000 else step / 20_000, other=0.0)
    drawn = curve(project, run.id, "loss", points=100)
    assert len(drawn["steps"]) <= 100 and drawn["count"] == 20_000
    assert (min(drawn["least"]), max(drawn["largest"])) == (-5.0, 9.0)
    place = drawn["least"].index(-5.0)
    assert drawn["steps"][place] <= 7_777 < drawn["steps"][place + 1]
    run.log(loss=1.5, other=1.0)
    run.log(loss=2.5, other=1.0)
    assert curve(project, run.id, "loss", after=20_000)["values"] == [1.5, 2.5]
    with pytest.raises(NotFound, match='has no metric "lost"'):
        curve(project, run.id, "lost")


def test_a_metric_that_is_logged_with_others_and_alone_is_one_curve(project: Project) -> None:
    run = start(project=project)
    for step in range(10):
        if step % 2:
            run.log(loss=float(step))
        else:
            run.log(loss=float(step), gap=0.0)
        if step % 3 == 0:
            fold(project)
    assert curve(project, run.id, "loss")["values"] == [float(step) for step in range(10)]
    assert curve(project, run.id, "loss", after=8)["values"] == [8.0, 9.0]


def test_what_differs_comes_first(project: Project) -> None:
    made = []
    for depth in (2, 4):
        with start("a", name=f"depth {depth}", project=project, depth=depth, rate=0.1) as run:
            run.log(loss=1.0 / depth)
        made.append(run.id)
    told = compare(project, ["depth 2", made[1]])
    assert told["differ"]["params"] == {"depth": ["2", "4"]}
    assert told["differ"]["metrics"] == {"loss": [0.5, 0.25]}
    assert told["same"]["params"] == {"rate": "0.1"}
    assert [each["name"] for each in told["runs"]] == ["depth 2", "depth 4"]
    with pytest.raises(Invalid, match="one run cannot be compared"):
        compare(project, [made[0]])
    with start("a", name="depth 2", project=project):
        pass
    with pytest.raises(NotFound, match='more than one run is called "depth 2"'):
        compare(project, ["depth 2", made[1]])


def test_damage_hides_only_what_it_hit(project: Project) -> None:
    for number in range(3):
        writer = python(project, f"import palan\nwith palan.start('routes', number={number}) as run:\n    for step in range(50):\n        run.log(loss=float(step))\n")
        assert writer.communicate(timeout=60)[1] == ""
    segments = sorted((project.folder / "blocks" / "runs").glob("*.seg"))
    data = bytearray(segments[1].read_bytes())
    data[len(data) // 2] ^= 1
    segments[1].write_bytes(data)
    found = search(project, order=["params.number"])["runs"]
    assert [each["params"]["number"] for each in found] == ["0", "1", "2"]
    counts = [curve(project, each["run"], "loss")["count"] for each in found]
    assert (counts[0], counts[2]) == (50, 50) and counts[1] == 49
