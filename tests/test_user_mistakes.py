"""Every mistake that a user can make costs at most three lines, one of them a hint, and loses nothing."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import Answer, palan
from palan.flows.build import build
from palan.flows.ingest import ingest
from palan.flows.log import log
from palan.flows.project import open_project
from palan.ledger import Entry

SOURCES = Path(__file__).resolve().parent.parent / "src"

TOML = """[project]
name = "bakery"

[data.sales]
source = "feed/*.csv"
key = ["id"]
columns = { id = "int", warm = "float", sold = "float" }

[models.rolls]
model = "rolls.py:Rolls"
data = "sales"
inputs = ["warm"]
outcome = "sold"
key = "id"

[models.plan]
model = "plan.py:Plan"
instances = "instances/*.json"

[models.learner]
model = "learner.py:Learner"
data = "sales"
inputs = ["warm"]
outcome = "sold"

[models.slow]
model = "slow.py:Slow"
data = "sales"
inputs = ["warm"]
outcome = "sold"
"""

FILES = {
    "palan.toml": TOML,
    "feed/sales.csv": "id,warm,sold\n" + "".join(f"{number},{number % 9},{number % 5}\n" for number in range(60)),
    "rolls.py": "class Rolls:\n    def fit(self, data):\n        self.mean = float(data['sold'].mean())\n\n    def decide(self, rows):\n        return (rows['warm'] * 0 + self.mean).to_numpy()\n",
    "plan.py": "import highspy\n\n\nclass Plan:\n    def formulate(self, instance):\n        return highspy.Highs()\n",
    "learner.py": "from sklearn.linear_model import LinearRegression\n\n\nclass Learner:\n    def fit(self, data):\n        self.model = LinearRegression()\n",
    "slow.py": "import time\n\n\nclass Slow:\n    def fit(self, data):\n        time.sleep(60)\n\n    def decide(self, rows):\n        return [0.0] * rows.height\n",
    "instances/one.json": '{"size": 3}',
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "bakery"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    yield root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One project with data taken in, that mistakes may be made in as long as they change nothing."""
    root = tmp_path_factory.mktemp("made") / "bakery"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    project = open_project(root)
    ingest(project)
    project.store.records.close()
    return root


def start(folder: Path, *arguments: str, before: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
    known = {**os.environ, "PYTHONPATH": str(SOURCES), **environment}
    command = [*before, sys.executable, "-m", "palan.cli", *arguments]
    return subprocess.Popen(command, cwd=folder, env=known, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def refused(folder: Path, *arguments: str, before: tuple[str, ...] = (), **environment: str) -> str:
    """Run a command that is a mistake; check the manners of the answer, and return it."""
    told = asked(folder, *arguments, before=before, **environment)
    assert told.code == 2, (arguments, told)
    lines = [line for line in told.errors.splitlines() if line.strip()]
    assert "Traceback" not in told.out + told.errors, told.errors
    assert told.out == "", (arguments, told.out)
    assert 2 <= len(lines) <= 3, (arguments, told.errors)
    assert lines[-1].startswith("hint: ") and len(lines[-1]) > 8, (arguments, told.errors)
    return "\n".join(lines)


def asked(folder: Path, *arguments: str, before: tuple[str, ...] = (), **environment: str) -> Answer:
    """Run a command: in a process of its own where something goes before it, or where Python is to find other libraries."""
    if not before and "PYTHONPATH" not in environment:
        return palan(folder, *arguments, **environment)
    process = start(folder, *arguments, before=before, **environment)
    out, errors = process.communicate(timeout=60)
    return Answer(process.returncode, out, errors)


def exit_code(folder: Path, *arguments: str) -> int:
    return palan(folder, *arguments).code


def content(folder: Path) -> dict[str, bytes]:
    """Return the user's own files, and what the store holds, to see that both are as they were."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and ".palan" not in path.parts}
    if (folder / ".palan" / "palan.db").exists():
        with sqlite3.connect(folder / ".palan" / "palan.db") as db:
            for table in ("data_version", "quarantine", "version", "release", "entry"):
                found[table] = repr(db.execute(f"select * from {table}").fetchall()).encode()
    return found


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["biuld", "rolls"], ['palan has no verb "biuld"', 'did you mean "build"?'], id="a typo in a verb"),
        pytest.param(["build", "rols"], ['no model "rols"', 'did you mean "rolls"?'], id="an unknown model"),
        pytest.param(["build", "rolls", "--sede", "3"], ["--sede", "palan build --help"], id="an unknown option"),
        pytest.param(["build"], ["MODEL", "palan build --help"], id="an argument that is missing"),
        pytest.param(["build", "rolls", "--seed", "many"], ["many", "palan build --help"], id="a word for a number"),
        pytest.param(["build", "rolls", "--since", "yesterday"], ['"yesterday" is no date', "2013-05-01"], id="no date"),
        pytest.param(["build", "rolls", "--param", "rate"], ['"rate" sets no parameter', "--param learning_rate=0.05"], id="a parameter without a value"),
        pytest.param(["build", "rolls", "--param", "rate=1"], ["rate"], id="a parameter that the model does not have"),
        pytest.param(["ingest", "sails"], ['no data "sails"', 'did you mean "sales"?'], id="unknown data"),
        pytest.param(["check", "rolls"], ["rolls has no version yet", "palan build rolls"], id="a check of nothing"),
        pytest.param(["release", "rolls@7"], ["rolls has no version yet", "palan build rolls"], id="a release of nothing"),
        pytest.param(["decide", "rolls", "--input", "none.json"], ["none.json cannot be read", "JSON file"], id="an input that is not there"),
        pytest.param(["decide", "rolls", "--input", "rolls.py"], ["rolls.py is not JSON"], id="an input that is no JSON"),
        pytest.param(["outcomes", "rolls", "--input", "rolls.py"], ["rolls.py is not JSON"], id="outcomes that are no JSON"),
        pytest.param(["watch", "rolls"], ["rolls"], id="a watch of nothing"),
        pytest.param(["why", "roll"], ['nothing here is called "roll"', 'did you mean "rolls"?'], id="why of nothing"),
        pytest.param(["--project", "nowhere", "status"], ["there is no palan project in", "palan init"], id="a project that is not there"),
        pytest.param(["init", "rolls.py"], ["init overwrites nothing"], id="init where a project is"),
        pytest.param(["init", "gone.py", "--into", "else"], ["gone.py"], id="init around a file that is not there"),
        pytest.param(["up", "--every", "0"], ["--every 0 is no time", "above zero"], id="no time between ticks"),
        pytest.param(["up", "--every", "nan"], ["--every nan is no time"], id="a time between ticks that is none"),
        pytest.param(["why", "x-²"], ['nothing here is called "x-²"'], id="a row that is no number"),
        pytest.param(["build", "rolls", "--seed", "99999999999999999999999999"], ["the seed is beyond 64 bits", "from 0 to 4294967295"], id="a seed that is too large"),
        pytest.param(["build", "rolls", "--param", "rate=18446744073709551616"], ["params.rate", "within 64 bits"], id="a parameter that is too large"),
        pytest.param(["build", "rolls", "--param", "rate=" + "[" * 900 + "]" * 900], ["params.rate", "nested more than 64 deep"], id="a parameter that is too deep"),
        pytest.param(["build", "rolls", "--since", "9999-12-31T23:59:59-23:59"], ["is no date", "2013-05-01"], id="a time after the last year"),
        pytest.param(["replay", "rolls", "--on", "0001-01-01T00:00:00+23:59.."], ["rolls has no version yet"], id="a replay of nothing"),
        pytest.param(["log", "--limit", "99999999999999999999"], ["--limit", "palan log --help"], id="a limit that no table has"),
        pytest.param(["serve", "--port", "70000"], ['the port is "70000"', "from 0 to 65535"], id="a port that no machine has"),
        pytest.param(["serve", "--host", "a..b"], ["a..b"], id="an address that is none"),
        pytest.param(["why", "\udcff\udcfe"], ['"\\xff\\xfe" is not text in UTF-8'], id="bytes for a subject"),
        pytest.param(["build", "rolls", "--reason", "\udcff"], ["is not text in UTF-8"], id="bytes for a reason"),
        pytest.param(["build", "rolls", "--param", "ridge=\udcff"], ["is not text in UTF-8"], id="bytes for a parameter"),
        pytest.param(["check", "rolls", "--against", "\udcff"], ["is not text in UTF-8"], id="bytes for a version"),
        pytest.param(["serve", "--host", "0.0.0.0"], ["can be reached from other machines", "PALAN_TOKEN"], id="an open address without a token"),
    ],
)
def test_a_mistake_on_the_command_line(made: Path, arguments: list[str], says: list[str]) -> None:
    before = content(made)
    told = refused(made, *arguments)
    for each in says:
        assert each in told
    assert content(made) == before


def test_no_project(tmp_path: Path) -> None:
    assert "there is no palan project in" in refused(tmp_path, "status")
    assert list(tmp_path.iterdir()) == []  # nothing was made by asking


def test_a_broken_palan_toml(folder: Path) -> None:
    (folder / "palan.toml").write_text(TOML.replace('name = "bakery"', "name = bakery"), encoding="utf-8")
    assert "palan.toml is not TOML: Invalid value (at line 2, column 8)" in refused(folder, "status")
    (folder / "palan.toml").write_text(TOML.replace("outcome", "outcme", 1), encoding="utf-8")
    told = refused(folder, "build", "rolls")
    assert "palan.toml line 13: [models.rolls] outcme: unknown key" in told and 'did you mean "outcome"?' in told


def test_an_empty_file_and_a_wrong_column(made: Path) -> None:
    before = content(made)
    for text, says in (("", "the file is empty"), ("id,warn,sold\n900,1,1\n", 'no column "warm"')):
        path = made / "feed" / "new.csv"
        path.write_text(text, encoding="utf-8")
        assert says in refused(made, "ingest")
        path.unlink()
    after = content(made)
    assert [entry.verb for entry in open_project(made).store.records.find(Entry)][-2:] == ["refused", "refused"]
    assert {**after, "entry": b""} == {**before, "entry": b""}


def test_a_file_whose_name_has_no_ending(folder: Path) -> None:
    (folder / "palan.toml").write_text(TOML.replace("feed/*.csv", "feed/x"), encoding="utf-8")
    (folder / "feed" / "x").write_text("id,warm,sold\n1,1,1\n", encoding="utf-8")
    assert "files whose name has no ending cannot be read" in refused(folder, "ingest")


def test_code_with_a_syntax_error_and_code_that_raises(folder: Path) -> None:
    ingest(open_project(folder))
    before = content(folder)
    good = FILES["rolls.py"]
    for text, says in (
        (good.replace("self, data)", "self, data"), "rolls.py line 2: '(' was never closed"),
        (good.replace("['sold']", "['slod']"), "rolls.py"),
        (good.replace("data['sold'].mean()", "1 / 0"), "division by zero"),
        ("raise RuntimeError('not today')\n" + good, "not today"),
        (good.replace("Rolls", "Roll"), "rolls.py defines no Rolls"),
        (good + "\n    def score(self, decisions, outcomes):\n        return outcomes * float('nan')\n", "score() of rolls.py:Rolls gives no finite number for 20 of 20 rows"),
        (good.replace("return (", "import os; os._exit(7); return ("), "rolls"),
    ):
        (folder / "rolls.py").write_text(text, encoding="utf-8")
        told = refused(folder, "build", "rolls")
        assert says in told, told
    (folder / "rolls.py").write_text(good, encoding="utf-8")
    assert content(folder) == before
    assert exit_code(folder, "build", "rolls") == 0


def test_a_script_that_reads_its_file_when_it_is_imported(folder: Path) -> None:
    ingest(open_project(folder))
    (folder / "rolls.py").write_text("open('customers.csv')\n" + FILES["rolls.py"], encoding="utf-8")
    told = refused(folder, "build", "rolls")
    assert "customers.csv" in told
    assert 'put reading and fitting below if __name__ == "__main__":' in told and "[data.NAME]" in told


BLOCKER = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.split(".")[0])


sys.meta_path.insert(0, Blocked())
for name in list(sys.modules):
    if name.split(".")[0] in {blocked!r}:
        del sys.modules[name]
"""


def without(tmp_path: Path, *libraries: str) -> str:
    """Return a PYTHONPATH in which these libraries cannot be imported, as if they were not installed."""
    place = tmp_path / "blocker"
    place.mkdir()
    (place / "sitecustomize.py").write_text(BLOCKER.format(blocked=set(libraries)), encoding="utf-8")
    return f"{place}{os.pathsep}{SOURCES}"


@pytest.mark.parametrize(("model", "library"), [("plan", "highspy"), ("learner", "sklearn")])
def test_a_library_that_is_not_installed(made: Path, tmp_path: Path, model: str, library: str) -> None:
    before = content(made)
    told = refused(made, "build", model, PYTHONPATH=without(tmp_path, library, "skops"))
    assert library in told and "not installed" in told and "pip install" in told
    assert content(made) == before


def test_a_port_that_is_taken(made: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        told = refused(made, "serve", "--port", str(port))
        assert f"port {port} is taken" in told and f"--port {port + 1}" in told
    for port in ("web", "²", "9" * 5000, "70000"):
        assert f'PALAN_PORT is "{port[:30]}' in refused(made, "serve", PALAN_PORT=port)
    assert "is not text in UTF-8" in refused(made, "serve", PALAN_HOST="\udcff")


LOOK = """
import click
from palan.cli.commands import _table, cli
from palan.cli.show import tell, verdict

@cli.command()
def look():
    _table([{"a": 1}], {"a": "title"})
    tell("on the way")
    print(verdict("wrong"))
    click.secho("red", fg="red")

cli.main(["look"], standalone_mode=False)
"""


@pytest.mark.parametrize(("wish", "coloured"), [(None, True), ("", True), ("1", False), ("0", False)])
def test_no_color_takes_every_colour_away(made: Path, wish: str | None, coloured: bool) -> None:
    """In a terminal, and whoever paints: palan's own lines, click's, and rich's tables."""
    known = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")} | {"PYTHONPATH": str(SOURCES), "TERM": "xterm-256color"}
    reader, writer = pty.openpty()
    environment = known if wish is None else {**known, "NO_COLOR": wish}
    for command in ([sys.executable, "-m", "palan.cli", "status"], [sys.executable, "-c", LOOK]):
        process = subprocess.Popen(command, cwd=made, env=environment, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer)
        process.wait(timeout=60)
        shown = os.read(reader, 65_536).decode()
        assert "Traceback" not in shown, shown
        assert ("\x1b[" in shown) is coloured, shown
    os.close(reader)
    os.close(writer)


def test_a_folder_that_may_not_be_written(folder: Path) -> None:
    before: tuple[str, ...] = ()
    if os.getuid() == 0:  # the superuser may write anything: give that right up
        if not shutil.which("setpriv"):
            pytest.skip("root writes everywhere, and there is no setpriv")
        before = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
    folder.chmod(0o555)
    told = refused(folder, "build", "rolls", before=before)
    folder.chmod(0o755)
    assert "cannot be written" in told and "chmod" in told
    assert not (folder / ".palan").exists()
    (folder / "palan.toml").chmod(0)
    told = refused(folder, "status", before=before)
    assert "palan.toml cannot be read" in told and "chmod" in told


def test_a_damaged_store_and_a_newer_one(folder: Path) -> None:
    open_project(folder).store.records.close()
    path = folder / ".palan" / "palan.db"
    with sqlite3.connect(path) as db:
        db.execute("pragma user_version = 99")
    assert "pip install --upgrade palan" in refused(folder, "log")
    path.write_bytes(b"this was a database once " * 100)
    assert "palan.db is damaged" in refused(folder, "status")


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_two_palan_up_on_one_project_and_a_build_beside_one(folder: Path) -> None:
    ingest(open_project(folder))
    up = start(folder, "up", "--port", "0")
    try:
        assert first_line(up).startswith("up at http://127.0.0.1:")
        told = refused(folder, "up", "--port", "0")
        assert "is up already, in another process" in told
        assert exit_code(folder, "build", "rolls") == 0  # they work side by side
    finally:
        up.send_signal(signal.SIGTERM)
        _, errors = up.communicate(timeout=30)
    assert up.returncode == 0 and "Traceback" not in errors, errors
    again = start(folder, "up", "--port", "0")  # nobody has to wait for the one that ended
    assert first_line(again).startswith("up at ")
    again.send_signal(signal.SIGINT)
    _, errors = again.communicate(timeout=30)
    assert again.returncode == 0 and "Traceback" not in errors, errors


def test_ctrl_c_in_the_middle_of_a_build(folder: Path) -> None:
    project = open_project(folder)
    ingest(project)
    before = content(folder)
    building = start(folder, "build", "slow")
    assert building.stderr is not None and "learns from 60 rows" in building.stderr.readline()
    time.sleep(0.2)
    os.killpg(building.pid, signal.SIGINT)  # a terminal tells the whole group: the worker hears it as well
    out, errors = building.communicate(timeout=30)
    assert (building.returncode, out, errors.strip()) == (130, "", "stopped")
    assert content(folder) == before
    assert exit_code(folder, "build", "rolls") == 0
    assert log(project, verify=True)["breaks"] == []


@pytest.mark.parametrize("lines", [0, 1])
def test_a_reader_that_has_seen_enough(made: Path, lines: int) -> None:
    process = start(made, "config", "--json")
    assert process.stdout is not None and process.stderr is not None
    for _ in range(lines):
        process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert (process.wait(timeout=30), errors) == (0, "")


def test_the_whole_traceback_is_there_for_who_asks(made: Path) -> None:
    process = start(made, "--debug", "build", "rols")
    _, errors = process.communicate(timeout=60)
    assert "Traceback" in errors and "NotFound" in errors
    assert process.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("build", "rols", "--json"), {"error": 'no model "rols"', "code": "not_found"}),
        (("build", "--json"), {"error": "Missing argument 'MODEL'.", "hint": "palan build --help"}),
    ],
    ids=["an error", "wrong usage"],
)
def test_a_program_reads_an_error_as_json(made: Path, arguments: tuple[str, ...], error: dict[str, str]) -> None:
    process = start(made, *arguments)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert json.loads(out).items() >= error.items()
    assert "hint: " in errors


def test_what_the_gates_do_not_admit_is_no_breakdown(folder: Path) -> None:
    project = open_project(folder)
    ingest(project)
    build(project, "rolls")
    process = start(folder, "release", "rolls", "--json")
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 1, "there is something to do; nothing is broken"
    assert json.loads(out) == {"error": "rolls@1 was never checked", "code": "not_admitted", "hint": "palan check rolls@1"}
    assert errors == "rolls@1 was never checked\nhint: palan check rolls@1\n"


def test_the_traceback_of_the_own_code_is_there_for_who_asks(folder: Path) -> None:
    ingest(open_project(folder))
    (folder / "rolls.py").write_text(FILES["rolls.py"].replace("data['sold'].mean()", "self._mean(data)") + "\n    def _mean(self, data):\n        return 1 / 0\n", encoding="utf-8")
    assert "--debug shows the whole traceback" in refused(folder, "build", "rolls")
    _, errors = start(folder, "--debug", "build", "rolls").communicate(timeout=60)
    assert "in fit\n    self.mean = float(self._mean(data))" in errors
    assert "in _mean\n    return 1 / 0" in errors


INFEASIBLE = """
import highspy


class Plan:
    def formulate(self, instance):
        model = highspy.Highs()
        hours = model.addVariable(lb=0, name="hours")
        model.addConstr(hours <= instance["most"], name="most hours")
        model.addConstr(hours >= instance["least"], name="least hours")
        return model
"""


def test_an_instance_without_a_plan_says_why(folder: Path) -> None:
    (folder / "plan.py").write_text(INFEASIBLE, encoding="utf-8")
    (folder / "instances" / "one.json").write_text('{"most": 8, "least": 3}', encoding="utf-8")
    (folder / "tight.json").write_text('{"most": 3, "least": 8}', encoding="utf-8")
    assert [exit_code(folder, verb, "plan") for verb in ("build", "check", "release")] == [0, 0, 0]
    assert exit_code(folder, "decide", "plan", "--input", "instances/one.json") == 0
    process = start(folder, "decide", "plan", "--input", "tight.json")
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.startswith("decision ")) == (1, True)
    assert out.startswith("infeasible: these cannot hold together: ") and "least hours" in out and "most hours" in out
    process = start(folder, "decide", "plan", "--input", "tight.json", "--json")
    assert '"infeasible"' in process.communicate(timeout=60)[0]
    assert process.returncode == 1


def test_tables_made_of_one_another(folder: Path) -> None:
    circle = '[data.one]\ntransform = "t.py:one"\ncolumns = { id = "int" }\n[data.two]\ntransform = "t.py:two"\ncolumns = { id = "int" }\n'
    (folder / "palan.toml").write_text(TOML.replace('data = "sales"', 'data = "one"').replace('inputs = ["warm"]\noutcome = "sold"\n', "").replace('key = "id"\n', "") + circle, encoding="utf-8")
    (folder / "t.py").write_text("def one(two):\n    return two\n\n\ndef two(one):\n    return one\n", encoding="utf-8")
    assert "one -> two -> one" in refused(folder, "build", "rolls")


def test_every_error_of_the_system_names_its_file(made: Path) -> None:
    assert "Is a directory" in refused(made, "decide", "rolls", "--input", "feed")


# --- the store itself: lost, closed, read-only or full ---

READING = (["status"], ["log"], ["log", "--verify"], ["why", "rolls"], ["config"], [])


@pytest.fixture
def built(made: Path, tmp_path: Path) -> Path:
    """A project with a version, its database closed in good order."""
    root = tmp_path / "built" / "bakery"
    shutil.copytree(made, root)
    assert exit_code(root, "build", "rolls") == 0
    return root


def bounded() -> tuple[str, ...]:
    """Return what goes before a command so that rights are asked of it."""
    if os.getuid() != 0:
        return ()
    if not shutil.which("setpriv"):
        pytest.skip("root reads and writes everywhere, and there is no setpriv")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")


def answered(folder: Path, *arguments: str, before: tuple[str, ...] = ()) -> str:
    process = start(folder, *arguments, before=before)
    out, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 1) and "Traceback" not in errors, (arguments, process.returncode, errors)
    return out


KILLED = """
import os, sys
from palan.flows.project import open_project, record
record(open_project(sys.argv[1]), "noted", "rolls", "just before the kill")
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_project_that_may_only_be_read(built: Path, killed: bool) -> None:
    before = bounded()
    if killed:  # the last commits are in SQLite's log
        subprocess.run([sys.executable, "-c", KILLED, str(built)], env={**os.environ, "PYTHONPATH": str(SOURCES)}, check=False)
        assert (built / ".palan" / "palan.db-wal").stat().st_size > 0
    expected = "just before the kill" if killed else "built rolls@1"
    paths = [*built.rglob("*"), built]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        for arguments in READING:
            answered(built, *arguments, before=before)
        assert expected in answered(built, "log", before=before)
        assert "0 breaks" in answered(built, "log", "--verify", before=before)
        for arguments in (["ingest"], ["build", "rolls"], ["release", "rolls@1", "--force", "--reason", "x"]):
            told = refused(built, *arguments, before=before)
            assert "cannot be written" in told and "hint: chmod " in told
    finally:
        for path in reversed(paths):
            path.chmod(0o755)


def test_a_disk_that_is_full(built: Path) -> None:
    before = ("prlimit", "--fsize=0")
    if not shutil.which("prlimit"):
        pytest.skip("there is no prlimit")
    for arguments in READING:
        answered(built, *arguments, before=before)
    assert "0 breaks" in answered(built, "log", "--verify", before=before)
    for arguments in (["ingest"], ["build", "rolls"], ["release", "rolls@1", "--force", "--reason", "x"]):
        told = refused(built, *arguments, before=before)
        assert "no space left for the store" in told and "hint: free some space (df " in told
    assert exit_code(built, "release", "rolls@1", "--force", "--reason", "there is room again") == 0


def test_a_key_that_is_gone_or_closed(built: Path) -> None:
    key = built / ".palan" / "key"
    whole = key.read_bytes()
    assert exit_code(built, "release", "rolls@1", "--force", "--reason", "first") == 0
    (built / "row.json").write_text('[{"warm": 3}]', encoding="utf-8")
    key.chmod(0)
    for arguments in (["build", "rolls", "--seed", "3"], ["decide", "rolls", "--input", "row.json"]):
        told = refused(built, *arguments, before=bounded())
        assert "key cannot be read or made: Permission denied" in told and ("chmod u+r" in told or arguments[0] == "decide"), told
    key.unlink()
    for arguments in (["build", "rolls", "--seed", "3"], ["decide", "rolls", "--input", "row.json"]):
        told = refused(built, *arguments)
        assert "key is gone: ledger and versions are signed with it" in told and ("restore it from a backup" in told or arguments[0] == "decide"), told
    assert "key is gone" in answered(built, "log", "--verify") and not key.exists()
    key.write_bytes(whole)
    assert "0 breaks" in answered(built, "log", "--verify")


def test_a_store_whose_folder_is_closed(built: Path) -> None:
    before = bounded()
    folder = built / ".palan"
    folder.chmod(0)
    told = refused(built, "status", before=before)
    folder.chmod(0o755)
    assert "cannot be written" in told and f"chmod -R u+rwX {folder}" in told


def test_a_store_whose_database_is_gone(built: Path) -> None:
    for path in (built / ".palan").glob("palan.db*"):
        path.unlink()
    for arguments in (["status"], ["log", "--verify"], ["ingest"]):
        told = refused(built, *arguments)
        assert "palan.db is gone, with the ledger, but key and blobs are there" in told and "restore it from a backup" in told
    assert not (built / ".palan" / "palan.db").exists()


def test_a_record_that_is_damaged(built: Path) -> None:
    assert exit_code(built, "release", "rolls@1", "--force", "--reason", "first") == 0
    (built / "row.json").write_text('[{"warm": 3}]', encoding="utf-8")
    kept = built.parent / "kept"
    shutil.copytree(built / ".palan", kept)
    for statement, arguments, says in (
        ("update version set manifest = '{}'", ["build", "rolls"], "rolls@1 is not what was built here"),
        ("update version set manifest = 'x'", ["status"], 'is damaged at manifest'),
        ("update release set arms = '[]'", ["status"], 'the release "rolls" is damaged'),
        ("update release set arms = '[]'", ["decide", "rolls", "--input", "row.json"], 'the release "rolls" is damaged'),
        ("update release set time = 'garbage'", ["log", "--verify"], 'the release "rolls" is damaged at time'),
        ("update step set value = 'null'", ["build", "rolls"], 'the step "look at rolls" is damaged at value'),
        ("update step set value = '{\"x\": 1}'", ["build", "rolls"], 'the step "look at rolls" is damaged at value'),
        ("update step set parts = 'x'", ["why", "fit rolls"], "is damaged at parts"),
        ("update data_version set time = 'x'", ["status"], "is damaged at time"),
    ):
        db = sqlite3.connect(built / ".palan" / "palan.db", isolation_level=None)
        db.execute(statement)
        db.close()
        told = refused(built, *arguments)
        assert says in told, (statement, arguments, told)
        shutil.rmtree(built / ".palan")
        shutil.copytree(kept, built / ".palan")
