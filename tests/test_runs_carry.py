"""Carrying runs: from one project to another as one file, and from MLflow's stores."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest

import palan.flows.carry as carrying
from palan.cli import main
from palan.errors import Busy, Conflict, Corrupt, NotFound, PalanError
from palan.flows.carry import MANIFEST, export_runs, import_runs
from palan.flows.fold import fold
from palan.flows.log import log
from palan.flows.mlflow import Tracking
from palan.flows.project import Project, open_project
from palan.flows.runs import curve, run_page, search
from palan.flows.track import start
from palan.flows.verify import verify
from palan.runs.mlflow import Experiment, Input
from palan.runs.run import Artifact, Run

MLFLOW = 'no MLflow: pip install "mlflow-skinny" sqlalchemy alembic'


def made(folder: Path, name: str = "routing") -> Project:
    folder.mkdir(exist_ok=True)
    (folder / "palan.toml").write_text(f'[project]\nname = "{name}"\n', encoding="utf-8")
    return open_project(folder)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return made(tmp_path / "here")


@pytest.fixture
def other(tmp_path: Path) -> Project:
    return made(tmp_path / "there", "elsewhere")


def logged(project: Project) -> list[str]:
    """Runs of all sorts: nested, failed, with long curves, files, odd values."""
    with start("routes", name="outer", project=project, lr=1e-3, model="trees") as outer:
        for step in range(5000):
            outer.log(loss=1 / (step + 1), gap=float(step % 7))
        outer.log({"val/loss": float("nan")}, step=-3)
        outer.log(alone=float("inf"))
        outer.artifact(b"weights", "model/weights.bin")
        outer.artifact(b"", "empty")
        outer.tags(stage="draft", team="north")
        with start("routes", name="inner", project=project, depth="é" * 3000) as inner:
            inner.log(loss=0.5)
    with pytest.raises(ZeroDivisionError), start("other", project=project) as failed:
        1 / 0  # noqa: B018
    return [outer.id, inner.id, failed.id]


def everything(project: Project) -> list[dict[str, Any]]:
    found = []
    for run in search(project, order=["time"])["runs"]:
        page = run_page(project, run["run"])
        curves = {each["metric"]: {**curve(project, run["run"], each["metric"], points=10**6)} for each in page["curves"]}
        found.append({**page, "drawn": curves})
    return found


def test_exported_runs_are_the_same_in_another_project(project: Project, other: Project, tmp_path: Path) -> None:
    ids = logged(project)
    project.store.records.put(Input(ids[0], "dataset", "flights", "d1", {"dataset": {"name": "flights"}, "tags": []}))
    going = start("routes", name="going on", project=project)
    told = export_runs(project, tmp_path / "runs.zip")
    assert (told["runs"], told["running"]) == (3, 1)
    brought = import_runs(other, tmp_path / "runs.zip")
    assert (brought["runs"], brought["known"], brought["blobs"]) == (3, 0, told["blobs"])
    going.end()
    there = everything(other)
    assert there == [each for each in everything(project) if each["run"] != going.id]
    assert [each["run"] for each in there] == ids
    assert there[1]["parent"] == ids[0]
    assert [other.store.records.get(Run, id).ended for id in ids] == [project.store.records.get(Run, id).ended for id in ids]  # type: ignore[union-attr]
    assert other.store.records.find(Input) == project.store.records.find(Input)
    (weights,) = other.store.records.find(Artifact, run=ids[0], path="model/weights.bin")
    assert other.store.blobs.get(weights.blob) == b"weights"
    assert verify(other)["findings"] == []


def test_importing_twice_adds_nothing(project: Project, other: Project, tmp_path: Path) -> None:
    logged(project)
    export_runs(project, tmp_path / "runs.zip")
    import_runs(other, tmp_path / "runs.zip")
    before = everything(other), log(other)["total"]
    again = import_runs(other, tmp_path / "runs.zip")
    assert (again["runs"], again["known"]) == (0, 3)
    assert (everything(other), log(other)["total"]) == before
    assert import_runs(project, tmp_path / "runs.zip")["runs"] == 0
    assert [each["sentence"].split(" ", 3)[3] for each in log(other, verify=True)["entries"]] == ["import runs.zip"]
    assert log(other, verify=True)["breaks"] == []


def test_a_search_exports_what_it_finds_and_what_is_nested_in_it(project: Project, tmp_path: Path) -> None:
    outer, inner, _ = logged(project)
    export_runs(project, tmp_path / "some.zip", "params.model = 'trees'")
    with zipfile.ZipFile(tmp_path / "some.zip") as packed:
        assert {name for name in packed.namelist() if name.startswith("runs/")} == {f"runs/{outer}", f"runs/{inner}"}
    with pytest.raises(PalanError, match="wrong"):
        export_runs(project, tmp_path / "wrong.zip", "wrong ==")
    assert not (tmp_path / "wrong.zip").exists()
    with pytest.raises(Conflict, match=r"some\.zip already"):
        export_runs(project, tmp_path / "some.zip")
    with pytest.raises(NotFound, match="mkdir"):
        export_runs(project, tmp_path / "none" / "some.zip")


def test_a_damaged_file_is_refused_whole(project: Project, other: Project, tmp_path: Path) -> None:
    logged(project)
    whole = tmp_path / "runs.zip"
    export_runs(project, whole)
    data = whole.read_bytes()
    for cut in (0, 10, len(data) // 2, len(data) - 1):
        (tmp_path / "bad.zip").write_bytes(data[:cut])
        with pytest.raises(Corrupt, match=r"bad\.zip"):
            import_runs(other, tmp_path / "bad.zip")
    refused, target = 0, made(tmp_path / "flip")
    for at in range(40, len(data) - 40, max(1, len(data) // 60)):
        (tmp_path / "bad.zip").write_bytes(data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :])
        try:
            import_runs(target, tmp_path / "bad.zip")
            target = made(tmp_path / f"flip{at}")
        except Corrupt:
            refused += 1
    assert refused >= 55  # a few bytes of a zip are times and rights, which mean nothing here
    _, _, members = _members(whole)
    for name in members:
        with zipfile.ZipFile(tmp_path / "changed.zip", "w") as packed:
            for each, content in members.items():
                packed.writestr(each, content + b" " if each == name and name != MANIFEST else content)
        if name != MANIFEST:
            with pytest.raises(Corrupt, match=name[:12]):
                import_runs(other, tmp_path / "changed.zip")
    assert search(other)["runs"] == []
    assert not list(other.store.blobs.names())


def _members(path: Path) -> tuple[Path, list[str], dict[str, bytes]]:
    with zipfile.ZipFile(path) as packed:
        return path, packed.namelist(), {name: packed.read(name) for name in packed.namelist()}


def test_a_fault_of_the_store_is_not_told_as_damage_of_the_file(project: Project, other: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged(project)
    export_runs(project, tmp_path / "all.zip")

    def fails(*_: object) -> str:
        raise EOFError("the store's own")

    monkeypatch.setattr(type(other.store.blobs), "put", fails)
    with pytest.raises(EOFError, match="the store's own"):
        import_runs(other, tmp_path / "all.zip")


def test_what_leads_out_of_a_run_is_refused(project: Project, other: Project, tmp_path: Path) -> None:
    import hashlib

    import msgspec

    from palan.runs.points import event

    logged(project)
    export_runs(project, tmp_path / "runs.zip", "name = 'inner'")
    _, _, members = _members(tmp_path / "runs.zip")
    (name,) = [each for each in members if each.startswith("runs/")]
    digest = next(each for each in members if each.startswith("blobs/")).removeprefix("blobs/")
    id = name.removeprefix("runs/")
    for added in (event(id, 1, "artifact", {"../../etc/x": (digest, 1)}), event("0" * 26, 1, "tag", {"a": "b"}), event(id, 1, "artifact", {"x": ("0" * 64, 1)})):
        frames = msgspec.msgpack.encode([*msgspec.msgpack.decode(members[name]), added])
        manifest = json.loads(members[MANIFEST])
        manifest["files"][name] = [len(frames), hashlib.sha256(frames).hexdigest()]
        with zipfile.ZipFile(tmp_path / "odd.zip", "w") as packed:
            for each, content in {**members, name: frames, MANIFEST: json.dumps(manifest).encode()}.items():
                packed.writestr(each, content)
        with pytest.raises(Corrupt, match=r"odd\.zip"):
            import_runs(other, tmp_path / "odd.zip")
    assert search(other)["runs"] == []


@pytest.mark.parametrize("stage", ["take", "record"])
def test_an_import_killed_in_the_middle_is_as_if_not_begun(project: Project, other: Project, tmp_path: Path, stage: str) -> None:
    logged(project)
    export_runs(project, tmp_path / "runs.zip")
    code = f"""
    import os, signal
    from palan.flows import carry
    from palan.flows.project import open_project
    done = carry.{stage}
    def killed(*args, **kwargs):
        done(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    carry.{stage} = killed
    carry.import_runs(open_project("."), {str(tmp_path / "runs.zip")!r})
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=other.root, check=False, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert search(other)["runs"] == []
    assert log(other)["total"] == 0
    assert import_runs(other, tmp_path / "runs.zip")["runs"] == 3
    assert everything(other) == everything(project)
    assert log(other, verify=True)["breaks"] == []


def test_an_export_killed_in_the_middle_leaves_no_file_of_its_name(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged(project)

    def refused(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(carrying.os, "fsync", refused)
        with pytest.raises(PalanError, match="No space left"):
            export_runs(project, tmp_path / "runs.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]


def test_the_commands_say_what_they_did(project: Project, other: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logged(project)
    file = str(tmp_path / "runs.zip")

    def palan(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return int(ended.value.code or 0)

    assert palan("--project", str(project.root), "runs", "export", file, "experiment = 'routes'") == 0
    assert "2 runs" in capsys.readouterr().out
    assert palan("--project", str(other.root), "runs", "import", file) == 0
    assert "2 new runs" in capsys.readouterr().out
    assert palan("--project", str(other.root), "runs", "import", file, "--json") == 0
    assert json.loads(capsys.readouterr().out)["known"] == 2
    for wrong in ("nothing.zip", "sqlite:///none.db", str(tmp_path), str(project.root / "palan.toml"), f"sqlite:///{project.root / 'palan.toml'}", f"sqlite:///{project.root}/.palan/palan.db"):
        assert palan("--project", str(other.root), "runs", "import", wrong) == 2
        told = capsys.readouterr().err
        assert "hint:" in told and len(told.splitlines()) <= 3


# MLflow

SCRIPT = """
import json, sys, time
import mlflow
from mlflow import MlflowClient
mlflow.set_tracking_uri(sys.argv[1])
client = MlflowClient()
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
for number, name in enumerate(["exp: é, # 1", "second # one"]):
    mlflow.set_experiment(name)
    mlflow.set_experiment_tag("mlflow.note.content", "about it:\\nin 'two' lines")
    for place in range(4):
        with mlflow.start_run(run_name=f"run {number}-{place}") as run:
            mlflow.log_params({"model": "ab"[place % 2], "depth": place, "a/b": "it's: 1", "unicode": "é"})
            for step in range(place + 1):
                mlflow.log_metric("loss", 1 / (step + place + 1), step=step)
            if place % 3 == 0:
                mlflow.log_metric("val/acc", place / 10)
            mlflow.log_metric("odd", [float("nan"), float("inf"), 1.0, float("-inf")][place])
            if place < 3:
                mlflow.log_metric("none", [float("nan"), 2.0, float("nan")][place])
            if place == 2:
                mlflow.set_tag("note", "two\\nlines\\n")
                mlflow.log_param("long", "é" * 6000)
                data = Dataset("flights: é", "d1", "local", json.dumps({"uri": "x"}), "{}", "{}")
                client.log_inputs(run.info.run_id, datasets=[DatasetInput(data, [InputTag("mlflow.data.context", "training")])])
            mlflow.set_tag("stage", "draft" if place < 2 else "final")
            if place == 1:
                with mlflow.start_run(nested=True, run_name="nested"):
                    mlflow.log_text("kept", "notes/a.txt")
                    mlflow.log_text("", "empty.txt")
failed = client.create_run("1" if sys.argv[1].startswith("sqlite") else run.info.experiment_id, run_name="failed")
client.set_terminated(failed.info.run_id, "FAILED")
going = client.create_run(run.info.experiment_id, run_name="going")
gone = client.create_run(run.info.experiment_id, run_name="gone")
client.delete_run(gone.info.run_id)
gone = client.create_experiment("gone with its runs")
client.create_run(gone)
client.delete_experiment(gone)
client.log_batch(going.info.run_id, [Metric("late", 1.0, 1_700_000_000_000_000_000, 0)])  # nanoseconds for milliseconds

experiments = [each.experiment_id for each in client.search_experiments()]
def found(filter, order=None):
    return [each.info.run_id for each in client.search_runs(experiments, filter, order_by=order, max_results=500)]
runs = client.search_runs(experiments, "", max_results=500)
out = {
    "runs": {each.info.run_id: {
        "name": each.info.run_name, "status": each.info.status, "start": each.info.start_time, "end": each.info.end_time,
        "params": each.data.params, "tags": each.data.tags, "metrics": {k: repr(v) for k, v in each.data.metrics.items()},
        "loss": [[p.step, p.value, p.timestamp] for p in client.get_metric_history(each.info.run_id, "loss")],
    } for each in runs},
    "searches": [[f, o, found(f, o)] for f, o in json.loads(sys.argv[2])],
}
print("=" + json.dumps(out))
"""

SEARCHES: list[tuple[str, list[str] | None]] = [
    ("metrics.loss < 0.2", None),
    ("metrics.loss < 0.2 and params.model = 'b'", None),
    ("params.depth = '3'", None),
    ("tags.stage != 'draft'", None),
    ("params.model = 'b' and metrics.`val/acc` >= 0.3", None),
    ("attributes.run_name LIKE 'run 1-%'", None),
    ("tags.`mlflow.runName` ILIKE 'RUN 0%'", None),
    ("params.unicode = 'é'", None),
    ("metrics.loss > 0", ["metrics.loss ASC"]),
    ("metrics.loss > 0", ["metrics.`val/acc` DESC", "metrics.loss ASC"]),
    ("", ["metrics.none ASC", "attributes.run_name DESC", "attributes.start_time ASC"]),
    ("attributes.run_name LIKE 'run%'", ["metrics.none DESC", "metrics.loss ASC", "params.depth DESC"]),
    ("dataset.name = 'flights: é' and dataset.context = 'training'", ["start_time ASC"]),
]


@pytest.mark.parametrize("kind", ["database", "folder"])
def test_runs_of_mlflow_are_found_by_the_same_searches(project: Project, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("mlflow", reason=MLFLOW)
    if kind == "database":
        pytest.importorskip("sqlalchemy", reason=MLFLOW)
        pytest.importorskip("alembic", reason=MLFLOW)
    folder, empty = tmp_path / "old", made(tmp_path / "empty")
    folder.mkdir()
    address = f"sqlite:///{folder}/mlflow.db" if kind == "database" else f"file://{folder}/mlruns"
    environment = {**os.environ, "MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    ran = subprocess.run([sys.executable, "-c", SCRIPT, address, json.dumps(SEARCHES)], cwd=folder, env=environment, text=True, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
    theirs = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("="))[1:])
    moved = tmp_path / "moved"
    if kind == "folder":
        shutil.move(folder / "mlruns", moved)  # its meta.yaml still names the old place
    source = address if kind == "database" else str(moved)

    brought = import_runs(project, source)
    assert (brought["runs"], brought["deleted"], brought["missing"]) == (len(theirs["runs"]), 2 if kind == "database" else 1, 0)
    assert (brought["runs"], import_runs(project, source)["runs"]) == (12, 0)

    ours = {run["tags"]["mlflow.runId"]: run for run in search(project, limit=500)["runs"]}
    assert ours.keys() == theirs["runs"].keys()
    for id, run in theirs["runs"].items():
        mine = ours[id]
        assert mine["params"] == run["params"]
        assert {name: value for name, value in mine["tags"].items() if name != "mlflow.runId"} == run["tags"]
        assert {name: repr(float("nan") if value is None else value) for name, value in mine["metrics"].items()} == run["metrics"]
        assert mine["name"] == run["name"]
        record = project.store.records.get(Run, mine["run"])
        assert record and record.time.timestamp() * 1000 == pytest.approx(run["start"], abs=0.01)
        if run["end"]:
            assert record.ended and record.ended.timestamp() * 1000 == pytest.approx(run["end"], abs=0.01)
        assert record.status == {"FINISHED": "done", "FAILED": "failed", "RUNNING": "killed"}[run["status"]]
        if run["loss"]:
            drawn = curve(project, mine["run"], "loss")
            assert list(map(list, zip(drawn["steps"], drawn["values"], [time // 1_000_000 for time in drawn["times"]], strict=True))) == run["loss"]
    groups = {each.name: each for each in project.store.records.find(Experiment)}
    assert {name: each.tags for name, each in groups.items() if name != "Default"} == {name: {"mlflow.note.content": "about it:\nin 'two' lines"} for name in ("exp: é, # 1", "second # one")}
    wire = Tracking(project)  # what MLflow's clients are told from now on
    numbers = [str(each.number) for each in groups.values()]
    by_id = {run["run"]: id for id, run in ours.items()}
    for where, order, expected in theirs["searches"]:
        if not where.startswith("dataset"):
            mine_found = [run["tags"]["mlflow.runId"] for run in search(project, where, order=order or [], limit=500)["runs"]]
            assert mine_found == expected if order else sorted(mine_found) == sorted(expected), where
        told, _ = wire.search(numbers, where, "ACTIVE_ONLY", 500, order or [], "")
        assert expected and [by_id[run.id] for run in told] == expected, where
    (nested,) = [run for run in ours.values() if run["name"] == "nested" and run["experiment"] == "second # one"]
    (outer,) = [run for run in ours.values() if run["run"] == nested["parent"]]
    assert outer["name"] == "run 1-1"
    kept = {each.path: project.store.blobs.get(each.blob) for each in project.store.records.find(Artifact, run=nested["run"])}
    assert kept == {"notes/a.txt": b"kept", "empty.txt": b""}
    fold(project)
    assert verify(project)["findings"] == []
    (refused_database if kind == "database" else refused_folder)(empty, Path(source.removeprefix("sqlite:///")))


def refused_database(project: Project, whole: Path) -> None:
    """What is no whole database of MLflow's is named as what it is, and nothing of it is imported."""

    def refused(bad: Path, error: type[PalanError], says: str) -> None:
        with pytest.raises(error, match=says) as told:
            import_runs(project, f"sqlite:///{bad}")
        assert told.value.hint and len(told.value.what) < 400
        assert search(project)["runs"] == []

    data, bad = whole.read_bytes(), project.root / "bad.db"
    for cut in (1000, len(data) // 2, len(data) - 5000):
        bad.write_bytes(data[:cut])
        refused(bad, Corrupt, "damaged")
    for number, (statement, error, says) in enumerate((
        ("drop table inputs", PalanError, "mlflow db upgrade|no such table: inputs"),
        ("update metrics set timestamp = 'x'", Corrupt, "damaged"),
        ("update tags set value = cast(x'ff' || zeroblob(5000) as text)", Corrupt, "damaged"),
    )):
        changed = project.root / f"{number}.db"
        changed.write_bytes(data)
        with sqlite3.connect(changed) as db:
            db.execute(statement)
        db.close()
        refused(changed, error, says)
    bad.write_bytes(data)
    other = sqlite3.connect(bad, isolation_level=None)
    other.execute("begin exclusive")
    refused(bad, Busy, "locked by another program")
    other.execute("rollback")
    other.execute("pragma journal_mode = wal")
    other.execute("begin immediate")
    other.execute("update runs set name = 'half of a change'")
    assert import_runs(project, f"sqlite:///{bad}")["runs"] == 12  # as before the change: who writes it is not waited for
    assert not [run for run in search(project)["runs"] if run["name"] == "half of a change"]
    other.close()


def refused_folder(project: Project, whole: Path) -> None:
    runs = sorted(path.parent for path in whole.glob("*/*/meta.yaml") if len(path.parent.name) == 32 and (path.parent / "metrics" / "loss").exists())
    for place, content in (
        (runs[0] / "meta.yaml", b""),
        (runs[0] / "meta.yaml", b"\xff\xfe"),
        (runs[0] / "meta.yaml", None),
        (runs[0].parent / "meta.yaml", None),
        (runs[0] / "metrics" / "loss", b"1700000000000 0.1 0\n17000"),
        (runs[0] / "params" / "model", b"\xff\xfe"),
        (next(whole.glob("*/datasets/*/meta.yaml")), None),
    ):
        kept = place.read_bytes()
        place.unlink() if content is None else place.write_bytes(content)
        with pytest.raises(Corrupt, match=str(place.parent if content is None else place)) as told:
            import_runs(project, str(whole))
        assert told.value.hint and search(project)["runs"] == []
        place.write_bytes(kept)
