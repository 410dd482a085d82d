"""Beginning a project: from a template of each kind, around code that is there, around a decision table."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from commands import typed
from palan.errors import NotFound, PalanError
from palan.flows.config import load
from palan.flows.init import TEMPLATES, found_in, init
from palan.models.contract import KINDS


def needs(kind: str) -> None:
    for library in {"program": ["highspy"], "policy": ["gymnasium"]}.get(kind, []):
        pytest.importorskip(library)


@pytest.mark.parametrize("kind", KINDS)
def test_template_runs_as_its_own_last_line_says(kind: str, tmp_path: Path) -> None:
    needs(kind)
    made = typed(tmp_path, f"palan init --kind {kind} --into shop")
    assert made.code == 0, made.errors
    line = made.out.splitlines()[-1].removeprefix("next: ")
    assert line.startswith("cd shop && palan ingest && palan build ")
    assert [part.split()[1] for part in line.split(" && ")[1:]] == ["ingest", "build", "check", "release", "decide"]
    done = typed(tmp_path, line)
    assert done.code == 0, done.errors
    verdicts = [part.split()[0] for part in done.out.splitlines() if part.startswith("  ") and part.split()[:1] in (["pass"], ["fail"])]
    assert "fail" not in verdicts
    assert verdicts.count("pass") >= 2, done.out
    open_questions = [part for part in done.out.splitlines() if part.startswith("  cannot tell")]
    assert all("there is no champion" in part for part in open_questions), open_questions
    answered = done.out[done.out.rindex("next: palan status") :].partition("\n")[2]
    assert json.loads(answered), answered
    status = typed(tmp_path / "shop", "palan status --json")
    assert status.code == 0, status.errors
    model = json.loads(status.out)["models"][0]
    assert (model["kind"], model["verdict"], model["decisions"] >= 1) == (kind, "learning", True)


def test_templates_are_short_and_know_no_foreign_file() -> None:
    for kind in KINDS:
        folder = TEMPLATES / kind
        files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert {path.name for path in files} >= {"palan.toml", "example.json"}
        for path in files:
            if path.suffix in (".py", ".toml"):
                assert len([line for line in path.read_text().splitlines() if line.strip()]) <= 50, path
        assert sum(path.stat().st_size for path in files) < 60_000


def test_default_is_an_estimator_named_after_its_folder(tmp_path: Path) -> None:
    made = init(tmp_path / 'a "quoted" name')
    config = load(tmp_path / 'a "quoted" name' / "palan.toml")
    assert config.name == 'a "quoted" name'
    assert list(config.models) == ["rentals"]
    assert sorted(Path(each) for each in made["files"]) == sorted(path for path in (tmp_path / 'a "quoted" name').rglob("*") if path.is_file())


def test_missing_library_comes_first_in_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palan.flows.init.find_spec", lambda name: None)
    assert 'pip install "palan[highs]" && palan ingest' in init(tmp_path / "van", kind="program")["next"]
    assert "pip install" not in init(tmp_path / "rentals")["next"]


# -- nothing is lost -------------------------------------------------------------------------------------------------


def test_existing_project_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "palan.toml").write_text("[project]\n")
    with pytest.raises(PalanError, match="overwrites nothing") as refused:
        init(tmp_path)
    assert "palan init --into" in refused.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["palan.toml"]
    done = typed(tmp_path, "palan init")
    assert (done.code, len(done.errors.splitlines())) == (2, 2)


def test_a_file_in_the_way_is_kept_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "rentals.py").write_text("mine = True\n")
    with pytest.raises(PalanError, match=r"rentals\.py is there already"):
        init(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rentals.py"]
    assert (tmp_path / "rentals.py").read_text() == "mine = True\n"


@pytest.mark.parametrize("after", range(6))
def test_killed_init_is_simply_done_again(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import palan.flows.init as module

    real, count = module.write_atomically, [0]

    def dies(path: Path, data: bytes) -> None:
        if count[0] == after:
            raise KeyboardInterrupt
        count[0] += 1
        real(path, data)

    monkeypatch.setattr(module, "write_atomically", dies)
    with pytest.raises(KeyboardInterrupt):
        init(tmp_path)
    assert not (tmp_path / "palan.toml").exists()  # written last: a half-made project is none
    monkeypatch.setattr(module, "write_atomically", real)
    init(tmp_path)
    assert load(tmp_path / "palan.toml").models


def test_own_gitignore_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*.log\n")
    init(tmp_path)
    assert (tmp_path / ".gitignore").read_text() == "*.log\n"


def test_folder_that_is_a_file_is_a_clear_mistake(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(PalanError, match="cannot be used") as refused:
            init(folder)
        assert refused.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_rights_is_a_clear_mistake(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PalanError, match="cannot be used") as refused:
            init(tmp_path / "new")
        assert "chmod" in refused.value.hint
    finally:
        tmp_path.chmod(0o700)


def test_disk_that_refuses_is_a_clear_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("palan.flows.init.write_atomically", refuses)
    with pytest.raises(PalanError, match="Permission denied") as refused:
        init(tmp_path)
    assert "chmod" in refused.value.hint


def test_unknown_kind_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(PalanError) as refused:
        init(tmp_path, kind="heuristics")
    assert refused.value.hint == 'did you mean "heuristic"?'


# -- around a table ------------------------------------------------------------------------------------------------

SALES = "Order Id;day;shop;temp;member;note;price;sold\n" + "".join(
    f"{number};2025-{1 + number // 28:02d}-{1 + number % 28:02d};{['Lyon', 'Nice'][number % 2]};{'' if number % 40 == 3 else 'n/a' if number % 70 == 9 else number % 30 / 2};{['yes', 'no'][number % 3 // 2]};note {number};{number % 9},5;{40 + number % 30}\n"
    for number in range(200)
)


def test_a_table_that_lies_there_becomes_the_data_and_a_model_of_it_runs(tmp_path: Path) -> None:
    (tmp_path / "my sales.csv").write_text(SALES)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    made = typed(tmp_path, "palan init")
    assert made.code == 0, made.errors
    assert "my sales.csv was taken, other.csv was not; to take another: palan init other.csv --into ANOTHER-FOLDER" in made.out
    config = load(tmp_path / "palan.toml")
    data, model = config.data["my_sales"], config.models["sold"]
    assert (data.source, data.key, data.time) == ("my sales.csv", ("Order Id",), "day")
    assert data.columns == {"Order Id": "int", "day": "date", "shop": "str", "temp": "float?", "member": "bool", "note": "str", "price": "float", "sold": "int"}
    assert (model.inputs, model.outcome, model.key) == (("shop", "temp", "member", "price"), "sold", "Order Id")
    text = (tmp_path / "palan.toml").read_text()
    assert '8 of 200 empty ("n/a")' in text and "TODO: guessed" in text
    done = typed(tmp_path, made.out.splitlines()[-1].removeprefix("next: "))
    assert done.code == 0, done.out + done.errors
    assert "my_sales@1: 200 new rows, 0 in quarantine" in done.out and "sold@1: pass" in done.out


def test_another_table_is_taken_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "my sales.csv").write_text(SALES)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b[1].csv").write_text("n,x,y\n1,0,0.5\n2,1,0.7\n")
    init(tmp_path / "new", source=str(tmp_path / "data" / "b[1].csv"))
    config = load(tmp_path / "new" / "palan.toml")
    assert list(config.data) == ["b_1"] and list((tmp_path / "new").glob(config.data["b_1"].source)) == [tmp_path / "new" / "b[1].csv"]
    assert (config.models["y"].inputs, config.data["b_1"].key) == (("x",), ("n",))


def test_a_table_of_words_asks_what_decides(tmp_path: Path) -> None:
    (tmp_path / "words.csv").write_text("a,b\nx,y\nz,\n")
    made = init(tmp_path)
    config = load(tmp_path / "palan.toml")
    assert (config.data["words"].columns, dict(config.models)) == ({"a": "str", "b": "str?"}, {})
    assert any(each.startswith("model: words.csv has no column of numbers") for each in made["missing"])


def test_a_model_never_has_the_name_of_its_data(tmp_path: Path) -> None:
    (tmp_path / "sold.csv").write_text("x,sold\n1,2\n1,3\n")
    init(tmp_path)
    config = load(tmp_path / "palan.toml")
    assert (list(config.data), list(config.models)) == (["sold"], ["sold_model"])
    for kind in KINDS:
        config = load(TEMPLATES / kind / "palan.toml")
        assert not set(config.data) & set(config.models)


def test_another_kind_leaves_the_table_alone(tmp_path: Path) -> None:
    (tmp_path / "sold.csv").write_text("x,sold\n1,2\n1,3\n")
    made = init(tmp_path, kind="rules")
    assert "shipping" in load(tmp_path / "palan.toml").models
    assert "sold.csv was left alone" in made["missing"][0]


def test_code_and_the_table_beside_it_come_together(tmp_path: Path) -> None:
    (tmp_path / "notebook.py").write_text(NOTEBOOK.replace('raise SystemExit("this file must be read, never run")', "").replace(' + rows.select("fair")', ' + rows["fair"]'))
    (tmp_path / "bakery.csv").write_text("day,weekday,fair,sold\n" + "".join(f"2025-01-{day + 1:02d},{day % 7},{day % 2},{80 + day}\n" for day in range(30)))
    init(tmp_path, source=str(tmp_path / "notebook.py"))
    config = load(tmp_path / "palan.toml")
    model = config.models["demand"]
    assert (model.data, model.inputs, model.outcome, model.key) == ("bakery", ("weekday", "fair"), "sold", "day")
    done = typed(tmp_path, "palan ingest && palan build demand")
    assert done.code == 0 and "demand@1 (estimator)" in done.out, done.errors


# -- around Python ---------------------------------------------------------------------------------------------------

NOTEBOOK = '''
"""Somebody's notebook, exported."""
from dataclasses import dataclass
import polars as pl
raise SystemExit("this file must be read, never run")

def helper(rows): return rows

@dataclass
class Demand:
    """How much will be sold."""
    extra: float = 0.0

    def fit(self, data):
        self.mean_ = data.group_by("weekday").agg(pl.col("sold").mean())

    def decide(self, rows):
        return rows["weekday"] * 0 + rows.select("fair") + self.extra
'''


def test_python_file_is_read_not_run_and_its_columns_are_found(tmp_path: Path) -> None:
    (tmp_path / "notebook.py").write_text(NOTEBOOK)
    made = init(tmp_path, source=str(tmp_path / "notebook.py"))
    config = load(tmp_path / "palan.toml")
    model = config.models["demand"]
    assert (model.model, model.data, model.inputs) == ("notebook.py:Demand", "history", ("weekday", "fair"))
    assert set(config.data["history"].columns) == {"weekday", "fair", "sold"}
    assert {each.partition(":")[0] for each in made["missing"]} == {"data", "score", "check", "golden"}
    text = (tmp_path / "palan.toml").read_text()
    assert '# outcome = "sold"' in text
    assert "Demand has no score(" in text
    assert (tmp_path / "notebook.py").read_text() == NOTEBOOK


def test_project_around_code_runs_once_the_gaps_are_filled(tmp_path: Path) -> None:
    """The file that init wrote is right as it stands but for the data: with data it builds."""
    (tmp_path / "notebook.py").write_text(NOTEBOOK.replace('raise SystemExit("this file must be read, never run")', "").replace(' + rows.select("fair")', ' + rows["fair"]'))
    typed(tmp_path, "palan init notebook.py")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sold.csv").write_text("weekday,fair,sold\n" + "".join(f"{day % 7},{day % 2},{80 + day}\n" for day in range(40)))
    done = typed(tmp_path, "palan ingest && palan build demand")
    assert done.code == 0, done.errors
    assert "demand@1 (estimator)" in done.out


def test_source_elsewhere_is_copied_in(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text("def decide(rows):\n    return rows['x']\n")
    made = init(tmp_path / "project", source=str(tmp_path / "models.py"))
    assert (tmp_path / "project" / "models.py").read_text() == (tmp_path / "models.py").read_text()
    assert str(tmp_path / "project" / "models.py") in made["files"]


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("class A:\n def formulate(self, instance): ...", [("A", "program", False)]),
        ("class A:\n def act(self, observation): ...", [("A", "policy", False)]),
        ("class A:\n def decide(self, instance, ctx): ...", [("A", "heuristic", False)]),
        ("class A:\n def decide(self, rows, verbose=False): ...", [("A", "rules", False)]),
        ("class B:\n def fit(self, data): ...\nclass A(B):\n def decide(self, rows): ...", [("A", "estimator", False)]),
        ("class A:\n def fit(self, X, y): ...\n def predict(self, X): ...", [("A", "estimator", False)]),
        ("class _Hidden:\n def decide(self, rows): ...\nclass Plan: ...", []),
        ("class A(A):\n def decide(self, rows): ...", [("A", "rules", False)]),
        ("def solve(instance, ctx): ...\ndef _inner(rows): ...", [("solve", "heuristic", False)]),
        ("def offer(rows): ...", [("offer", "rules", False)]),
        ("def predict(table): ...\ndef mean(numbers): ...", [("predict", "rules", True)]),
        ("import sklearn.ensemble as e\nmodel = e.HistGradientBoostingClassifier()", [("model", "estimator", False)]),
        ("x = 1\nprint(x)", []),
        ("class A:\n def decide(self, instance): ...", [("A", "heuristic", False)]),
        ("def schedule(jobs):\n return sorted(jobs)", [("schedule", "heuristic", False)]),
        ("def late(jobs):\n return 0\ndef schedule(jobs):\n return late(jobs)\ndef show(plan):\n print(plan)", [("schedule", "heuristic", False)]),
        ("def plan(instance):\n return {}", [("plan", "heuristic", False)]),
        ("import highspy as h\ndef build(x):\n return h.Highs()\ndef plan(instance):\n return build(instance)", [("plan", "program", False)]),
        ("from highspy import Highs\ndef plan(jobs):\n return Highs()\nclass Note: ...", [("plan", "program", False)]),
        ("def plan(instance):\n from highspy import Highs\n return Highs()", [("plan", "program", False)]),
        ("import highspy\ndef plan(instance):\n return {}", [("plan", "heuristic", False)]),
    ],
)
def test_verbs_tell_the_kind_as_the_adapter_will(code: str, found: list[tuple[str, str, bool]]) -> None:
    assert [(each.name, each.kind, each.declare) for each in found_in(code)] == found


PLAIN = """
def lateness(jobs, order):
    return sum(jobs[name] for name in order)


def {name}({argument}):
    order = sorted({argument}, key={argument}.get)
    return {{"order": order, "late": lateness({argument}, order)}}
"""


@pytest.mark.parametrize(("name", "argument"), [("schedule", "jobs"), ("plan", "instance")])
def test_a_plain_function_of_one_instance_decides_as_it_is(name: str, argument: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(PLAIN.format(name=name, argument=argument))
    made = init(tmp_path, source=str(tmp_path / "model.py"))
    assert any(each.startswith("objective:") for each in made["missing"])
    (tmp_path / "instances").mkdir()
    (tmp_path / "instances" / "one.json").write_text('{"paint": 3, "saw": 1}')
    done = typed(tmp_path, f"palan build {name} && palan check {name} && palan release {name} && palan decide {name} --input instances/one.json")
    assert done.code == 0, done.errors
    assert f"{name}@1 (heuristic)" in done.out
    assert json.loads(done.out[done.out.rindex("next: palan status") :].partition("\n")[2]) == {"order": ["saw", "paint"], "late": 4}


def test_a_script_that_reads_its_file_is_told_what_to_move(tmp_path: Path) -> None:
    code = "import polars as pl\n\nCUSTOMERS = pl.read_csv('customers.csv')\n\n\ndef decide(rows):\n    return rows['x']\n\n\nif __name__ == '__main__':\n    print(pl.read_csv('other.csv'))\n"
    (tmp_path / "churn.py").write_text(code)
    (told,) = [each for each in init(tmp_path, source=str(tmp_path / "churn.py"))["missing"] if "churn.py" in each]
    assert told.startswith("churn.py line 3: pl.read_csv('customers.csv') runs whenever palan imports the file")
    assert '__name__ == "__main__"' in told


@pytest.mark.parametrize("kind", ["estimator", "program", "heuristic", "policy"])
def test_reading_a_template_agrees_with_building_it(kind: str) -> None:
    (code,) = TEMPLATES.joinpath(kind).glob("*.py")
    (model,) = load(TEMPLATES / kind / "palan.toml").models.values()
    found = {each.name: each.kind for each in found_in(code.read_text())}
    assert found[model.model.partition(":")[2]] == kind


def test_model_of_instances_asks_for_instances(tmp_path: Path) -> None:
    (tmp_path / "plan.py").write_text("class Plan:\n    def formulate(self, instance): ...\n")
    made = init(tmp_path, source=str(tmp_path / "plan.py"))
    config = load(tmp_path / "palan.toml")
    assert (config.models["plan"].instances, dict(config.data)) == ("instances/*.json", {})
    assert any(each.startswith("instances:") for each in made["missing"])
    assert made["next"].endswith("palan build plan")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.py", "", "defines nothing that decides"),
        ("broken.py", "def decide(rows:\n", "line 1 is not Python"),
        ("latin.py", "x = 'ä'".encode("latin-1"), "is not UTF-8"),
        ("nul.py", b"x = 1\x00", "is not Python"),
        ("table.csv", "a,b\n", "has a header and no rows"),
        ("notes.txt", "hello", "neither Python nor a table"),
    ],
)
def test_source_that_is_no_model_says_why_and_writes_nothing(name: str, content: str | bytes, said: str, tmp_path: Path) -> None:
    source = tmp_path / name
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PalanError, match=said) as refused:
        init(tmp_path / "project", source=str(source))
    assert refused.value.hint
    assert not (tmp_path / "project").exists()


def test_missing_source_names_the_nearest_file(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("")
    with pytest.raises(NotFound) as refused:
        init(tmp_path, source=str(tmp_path / "modle.py"))
    assert refused.value.hint == 'did you mean "model.py"?'


# -- around a decision table -----------------------------------------------------------------------------------------

TABLE = '''# hit: unique
delay,origin,member,-> offer,-> amount
>= 180,-,-,hotel,250
(60..180),"EWR,JFK",true,meal,20
(60..180),"EWR,JFK",false,voucher,10
(60..180),"not(EWR,JFK)",-,voucher,10
<= 60,-,-,nothing,0
'''


def test_decision_table_becomes_a_project_that_runs(tmp_path: Path) -> None:
    (tmp_path / "care.csv").write_text(TABLE)
    made = init(tmp_path, source=str(tmp_path / "care.csv"))
    cases = json.loads((tmp_path / "golden" / "care.json").read_text())
    assert [case["output"] for case in cases] == [
        {"offer": "hotel", "amount": 250},
        {"offer": "meal", "amount": 20},
        {"offer": "voucher", "amount": 10},
        {"offer": "voucher", "amount": 10},
        {"offer": "nothing", "amount": 0},
    ]
    assert made["missing"]
    done = typed(tmp_path.parent, made["next"])
    assert done.code == 0, done.errors
    assert "pass  table_checks" in done.out
    assert '"offer": "hotel"' in done.out


def test_golden_cases_of_odd_cells_are_answers_of_the_table(tmp_path: Path) -> None:
    """null, lone negations, open ends, a column that nothing depends on."""
    (tmp_path / "odd.csv").write_text("a,b,c,-> x\nnull,!= other,-,1\n< 5,\"not(other, other 0)\",-,2\n> 5,-,-,3\n(1..2),u,-,4\n")
    init(tmp_path, source=str(tmp_path / "odd.csv"))
    cases = json.loads((tmp_path / "golden" / "odd.json").read_text())
    assert [case["output"]["x"] for case in cases][:3] == [1, 2, 3]
    assert cases[0]["input"]["a"] is None


def test_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "care.csv").write_text(TABLE)
    with pytest.raises(PalanError, match="of kind rules, not policy"):
        init(tmp_path, source=str(tmp_path / "care.csv"), kind="policy")
