"""Which version answers changes by one move at a time, after a check, and the ledger says it all."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from palan.cli import main
from palan.core import Version, digest_of
from palan.data.nouns import Repair
from palan.errors import Busy, Conflict, Corrupt, NotFound, PalanError
from palan.flows import packages
from palan.flows.build import build
from palan.flows.check import check
from palan.flows.decide import Deciders, decide
from palan.flows.log import evidence_digest, log
from palan.flows.project import Project, open_project, record
from palan.flows.release import release, set_repairs
from palan.gates.nouns import Evidence
from palan.releases.nouns import Release
from palan.releases.route import route

SOURCES = Path(__file__).resolve().parent.parent / "src"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

TOML = """
[models.price]
model = "price.py:decide"
golden = "golden.json"
gates = ["golden"]
"""


def told(project: Project, *versions: int, verdict: str = "pass", gate: str = "golden", minute: int = 0) -> None:
    """Lay down versions with the evidence of a check, as `build` and `check` do."""
    for number in versions:
        manifest = {"model": "price", "kind": "rules", "number": number}
        version = Version(digest_of(manifest), "price", number, "rules", manifest, f"r{number}", NOON)
        if project.store.records.add(version):
            record(project, "built", version.ref, id=version.id, run=version.run)
        found = Evidence(f"{number} {gate} {minute}", version.ref, "", gate, verdict, f"{gate} said {verdict}", {}, NOON + timedelta(minutes=minute))
        project.store.records.add(found)
        record(project, "checked", version.ref, f"{verdict}: {gate} {verdict}", evidence={found.id: evidence_digest(found)})


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    (tmp_path / "palan.toml").write_text(TOML, encoding="utf-8")
    (tmp_path / "price.py").write_text("RATE = 2\n\n\ndef decide(rows):\n    return rows['amount'] * RATE\n", encoding="utf-8")
    (tmp_path / "golden.json").write_text('[{"input": {"amount": 3}, "output": 6}]', encoding="utf-8")
    ticks = iter(range(10_000))
    opened = open_project(tmp_path, clock=lambda: NOON + timedelta(seconds=next(ticks)), actor="ada")
    yield opened
    opened.store.records.close()


def arms(project: Project) -> dict[str, tuple[str, float]]:
    found = project.store.records.get(Release, "price")
    return {arm.version: (arm.role, arm.share) for arm in found.arms} if found else {}


def story(project: Project) -> list[tuple[str, str, str]]:
    """Return what the ledger tells of releases, after the proof that it holds."""
    found = log(project, verify=True, limit=1000)
    assert found["breaks"] == []
    return [(entry["verb"], entry["subject"], entry["reason"]) for entry in found["entries"] if "arms" in entry["detail"]]


# --- with real builds and checks ---


def test_a_release_needs_a_check_that_passed(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotFound, match="price has no version yet\nhint: palan build price"):
        release(project, "price")
    assert build(project, "price")["version"] == "price@1"
    with pytest.raises(PalanError, match="price@1 was never checked\nhint: palan check price@1"):
        release(project, "price")
    assert check(project, "price")["verdict"] == "pass"
    release(project, "price", reason="the first one")
    assert arms(project) == {"price@1": ("champion", 1.0)}

    (project.root / "price.py").write_text("RATE = 3\n\n\ndef decide(rows):\n    return rows['amount'] * RATE\n", encoding="utf-8")
    assert build(project, "price")["version"] == "price@2"
    assert check(project, "price")["verdict"] == "fail"
    with pytest.raises(PalanError, match="price@2 does not pass its gate golden"):
        release(project, "price")
    with pytest.raises(SystemExit) as ended:
        main(["--project", str(project.root), "release", "price@2", "--force"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-2:] == ["a release against the gates needs a reason", 'hint: palan release price@2 --force --reason "..."']
    assert arms(project) == {"price@1": ("champion", 1.0)}
    release(project, "price", version="2", force=True, reason="the price really rose")
    assert arms(project) == {"price@2": ("champion", 1.0)}
    release(project, "price", roll_back=True, reason="it did not")
    assert arms(project) == {"price@1": ("champion", 1.0)}
    assert story(project) == [
        ("released", "price@1", "the first one"),
        ("released", "price@2", "the price really rose"),
        ("rolled back", "price@1", "it did not"),
    ]


# --- what a check has to have said ---


def test_the_last_check_counts_with_the_gates_that_it_asked(project: Project) -> None:
    told(project, 1, verdict="fail")
    with pytest.raises(PalanError, match="does not pass its gate golden: golden said fail"):
        release(project, "price")
    told(project, 1, gate="latency", minute=5)  # golden is no gate any more
    release(project, "price")
    told(project, 2, minute=0)
    told(project, 2, verdict="fail", minute=9)  # it passed once, and does not any more
    with pytest.raises(PalanError, match="does not pass"):
        release(project, "price", version="2")


# --- canary, promotion, roll-back ---


def test_canary_promote_and_roll_back(project: Project) -> None:
    told(project, 1, 2, 3)
    release(project, "price", version="1", reason="first")
    made = release(project, "price", version="2", share=0.2, wait=timedelta(days=7), reason="try it")
    assert arms(project) == {"price@1": ("champion", 0.8), "price@2": ("canary", 0.2)}
    found = project.store.records.get(Release, "price")
    assert found is not None and found.until is not None and made["until"] is not None and (found.until - found.time).days >= 6
    keys = [f"k{number}" for number in range(2000)]
    first = {key for key in keys if route(found, key).arm.role == "canary"}
    assert 0.15 < len(first) / 2000 < 0.25
    release(project, "price", version="2", share=0.5, reason="more")
    wider = project.store.records.get(Release, "price")
    assert wider is not None and first <= {key for key in keys if route(wider, key).arm.role == "canary"}
    with pytest.raises(Conflict, match="price@2 is the canary of price already"):
        release(project, "price", version="3", share=0.1)
    with pytest.raises(Conflict, match="has to be promoted or rolled back first"):
        release(project, "price", version="3")
    release(project, "price", promote=True, reason="it is better")
    assert arms(project) == {"price@2": ("champion", 1.0)}
    release(project, "price", version="3", share=0.1)
    release(project, "price", roll_back=True, reason="it is worse")  # the canary goes
    assert arms(project) == {"price@2": ("champion", 1.0)}
    release(project, "price", roll_back=True, reason="both are worse")  # the champion goes
    assert arms(project) == {"price@1": ("champion", 1.0)}
    with pytest.raises(PalanError, match="nothing to roll back to"):
        release(project, "price", roll_back=True)
    assert story(project) == [
        ("released", "price@1", "first"),
        ("released", "price@2 as a canary of 20%", "try it"),
        ("released", "price@2 as a canary of 50%", "more"),
        ("promoted", "price@2", "it is better"),
        ("released", "price@3 as a canary of 10%", ""),
        ("rolled back", "price@2", "it is worse"),
        ("rolled back", "price@1", "both are worse"),
    ]
    epochs = [entry["detail"]["epoch"] for entry in log(project)["entries"] if "arms" in entry["detail"]]
    assert epochs == list(range(1, 8))


def test_the_models_own_canary_policy_holds_once_there_is_a_champion(project: Project) -> None:
    (project.root / "palan.toml").write_text(TOML + '[models.price.release]\ncanary = "20% for 7d"\n', encoding="utf-8")
    strict = open_project(project.root, clock=project.clock)
    told(strict, 1, 2)
    release(strict, "price", version="1")
    assert arms(strict) == {"price@1": ("champion", 1.0)}
    release(strict, "price", version="2")
    assert arms(strict) == {"price@1": ("champion", 0.8), "price@2": ("canary", 0.2)}
    release(strict, "price", roll_back=True)
    release(strict, "price", version="2", share=1.0)
    assert arms(strict) == {"price@2": ("champion", 1.0)}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        pytest.param({"promote": True}, "price is not released", id="promote before a release"),
        pytest.param({"roll_back": True}, "price is not released", id="roll back before a release"),
        pytest.param({"promote": True, "roll_back": True}, "opposites", id="both"),
        pytest.param({"version": "9"}, "there is no price@9", id="a version that is not there"),
        pytest.param({"version": "1", "share": 0.2}, "no champion yet", id="a share of nothing"),
        pytest.param({"version": "1", "wait": timedelta(days=7)}, "a canary's time needs its share", id="a time without a share"),
    ],
)
def test_moves_that_make_no_sense_are_refused_and_nothing_is_written(project: Project, options: dict[str, object], what: str) -> None:
    told(project, 1)
    with pytest.raises(PalanError, match=what):
        release(project, "price", **options)  # type: ignore[arg-type]
    assert arms(project) == {} and story(project) == []


def test_a_named_version_is_the_one_that_moves_or_nothing_does(project: Project) -> None:
    told(project, 1, 2, 3)
    release(project, "price", version="1")
    with pytest.raises(Conflict, match="price@2 is not the one that would change: there is no canary"):
        release(project, "price", version="2", promote=True)
    release(project, "price", version="3", share=0.1)
    with pytest.raises(Conflict, match="there is price@3"):
        release(project, "price", version="2", promote=True)
    with pytest.raises(Conflict, match="there is price@3"):
        release(project, "price", version="2", roll_back=True)
    release(project, "price", version="3", promote=True)
    release(project, "price", version="3", roll_back=True)
    assert arms(project) == {"price@1": ("champion", 1.0)}


def test_the_same_champion_twice_is_refused(project: Project) -> None:
    told(project, 1)
    release(project, "price")
    with pytest.raises(Conflict, match="price@1 is already the champion"):
        release(project, "price")
    assert len(story(project)) == 1


def test_repairs_come_and_go_with_their_reason_and_survive_a_promotion(project: Project) -> None:
    told(project, 1, 2)
    release(project, "price", version="1")
    repair = Repair("amount", "amount * 1000", "amount / 1000", NOON)
    set_repairs(project, "price", [repair], "the till sends thousands")
    release(project, "price", version="2", share=0.5)
    release(project, "price", promote=True)
    found = project.store.records.get(Release, "price")
    assert found is not None and found.repairs == (repair,)
    set_repairs(project, "price", [], "the till is right again")
    found = project.store.records.get(Release, "price")
    assert found is not None and found.repairs == ()
    assert [each[0] for each in story(project)] == ["released", "repaired", "released", "promoted", "ended the repair of"]


# --- races ---


def test_of_many_that_promote_at_once_one_does(project: Project) -> None:
    told(project, 1, 2)
    release(project, "price", version="1")
    release(project, "price", version="2", share=0.5)
    others = [open_project(project.root) for _ in range(6)]
    start, outcomes = threading.Barrier(len(others)), []

    def promote(each: Project) -> None:
        start.wait()
        try:
            release(each, "price", promote=True, reason="mine")
            outcomes.append("promoted")
        except Conflict:
            outcomes.append("conflict")

    threads = [threading.Thread(target=promote, args=(each,)) for each in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["conflict"] * 5 + ["promoted"]
    assert [each[0] for each in story(project)] == ["released", "released", "promoted"]


RACER = """
import sys
from palan.errors import PalanError
from palan.flows.project import open_project
from palan.flows.release import release
project, mine = open_project(sys.argv[1]), sys.argv[2]
for _ in range(12):
    for options in ({"version": mine, "share": 0.3}, {"promote": True}, {"roll_back": True}):
        try:
            release(project, "price", reason=mine, **options)
        except PalanError:
            pass
"""


def test_processes_that_release_against_one_another_leave_one_consistent_story(project: Project) -> None:
    told(project, 1, 2, 3, 4)
    release(project, "price", version="1")
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    racers = [subprocess.Popen([sys.executable, "-c", RACER, str(project.root), each], stderr=subprocess.PIPE, text=True, env=environment) for each in "234"]
    for racer in racers:
        _, errors = racer.communicate(timeout=60)
        assert racer.returncode == 0, errors
    found = log(project, verify=True, limit=10_000)
    assert found["breaks"] == []
    moves = [entry for entry in found["entries"] if "arms" in entry["detail"]]
    assert [entry["detail"]["epoch"] for entry in moves] == list(range(1, len(moves) + 1))  # one entry per change
    last = project.store.records.get(Release, "price")
    assert last is not None and last.epoch == len(moves)
    assert [(arm.version, arm.role, arm.share) for arm in last.arms] == [(arm["version"], arm["role"], arm["share"]) for arm in found["entries"][-1]["detail"]["arms"]]
    assert abs(sum(arm.share for arm in last.arms) - 1) < 1e-9


def test_the_command_says_what_became_of_it(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    told(project, 1, 2)

    def palan(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["--project", str(project.root), *arguments])
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    assert palan("release", "price@1") == (0, "price@1 is champion with 100% of the requests\nnext: palan status price\n", "")
    code, out, _ = palan("release", "price@2", "--share", "20%", "--for", "7d")
    assert (code, out.splitlines()[:2]) == (0, ["price@1 is champion with 80% of the requests", "price@2 is canary with 20% of the requests"])
    code, out, _ = palan("release", "price", "--promote", "--json")
    assert (code, json.loads(out)["arms"]) == (0, [{"version": "price@2", "role": "champion", "share": 1.0}])
    assert palan("release", "price", "--share", "lots")[0::2] == (2, '"lots" is not a share such as "20%" or 0.2\nhint: palan release --help\n')
    assert palan("release", "price", "--promote")[0] == 2


# --- a release, a version or evidence that was changed behind palan's back ---


def behind(project: Project, statement: str) -> None:
    """Change the database as somebody would who knows SQL and the schema."""
    db = sqlite3.connect(project.folder / "palan.db", isolation_level=None)
    db.execute(statement)
    db.close()


def broken(project: Project) -> list[str]:
    return [each["what"] for each in log(project, verify=True)["breaks"]]


def two(project: Project) -> None:
    """Build, check and release two versions, the second one at last."""
    for rate in (2, 3):
        (project.root / "price.py").write_text(f"RATE = {rate}\n\n\ndef decide(rows):\n    return rows['amount'] * RATE\n", encoding="utf-8")
        (project.root / "golden.json").write_text(f'[{{"input": {{"amount": 3}}, "output": {3 * rate}}}]', encoding="utf-8")
        build(project, "price")
        check(project, "price")
        release(project, "price", reason=f"rate {rate}")


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("update release set arms = replace(arms, 'price@2', 'price@1')", "price@1 as champion of 100% is stored, the ledger tells price@2 as champion of 100%"),
        ("delete from release", "none is stored, the ledger tells price@2 as champion of 100%"),
        ("update release set epoch = 99", "it differs from what the ledger tells"),
        ("update release set previous = 'price@2'", "it differs from what the ledger tells"),
        ("update release set time = '2031-01-01T00:00:00.000000Z'", "it differs from what the ledger tells"),
        ("update release set reason = 'bob said so'", "it differs from what the ledger tells"),
        ("""update release set repairs = '[{"column":"amount","expression":"amount * 9","inverse":"amount","since":"2026-01-01T00:00:00Z"}]'""", "it differs from what the ledger tells"),
    ],
)
def test_a_release_that_the_ledger_does_not_tell_is_not_obeyed(project: Project, statement: str, what: str) -> None:
    two(project)
    deciders = Deciders(project)
    deciders.refresh()
    try:
        assert broken(project) == []
        assert deciders.decide("price", value=[{"amount": 3}])["outputs"] == [9]
        behind(project, statement)
        assert broken(project) == [f"the release of price was changed behind palan's back: {what}"]
        deciders.refresh()
        assert deciders.decide("price", value=[{"amount": 3}])["outputs"] == [9]  # what was served before stays
        if not statement.startswith("delete"):
            assert what in deciders.trouble["price"]
            with pytest.raises(Busy, match="price cannot be served: the release of price was changed behind palan's back"):
                decide(project, "price", rows=[{"amount": 3}])
        release(project, "price", version="1", force=True, reason="on with the work")
        deciders.refresh()
        assert deciders.trouble == {} and deciders.decide("price", value=[{"amount": 3}])["outputs"] == [6]
    finally:
        deciders.close()
    now = project.store.records.get(Release, "price")
    assert now is not None and (now.epoch, now.previous, now.repairs) == (3, "price@2", ())  # it went on from what the ledger tells
    (kept,) = broken(project)
    assert kept.endswith(f"tells of a break before it: the release of price was changed behind palan's back: {what}")


def test_the_release_that_the_ledger_tells_is_put_back_even_if_nothing_moves(project: Project) -> None:
    two(project)
    behind(project, "update release set arms = replace(arms, 'price@2', 'price@1')")
    with pytest.raises(Conflict, match="price@2 is already the champion"):
        release(project, "price", version="2")
    assert arms(project) == {"price@2": ("champion", 1.0)} and len(broken(project)) == 1


def test_evidence_that_its_check_did_not_write_admits_nothing(project: Project) -> None:
    told(project, 1, 2)
    told(project, 3, verdict="fail")
    behind(project, "update evidence set verdict = 'pass' where version = 'price@3'")
    behind(project, "delete from evidence where version = 'price@2'")
    assert sorted(broken(project)) == ["evidence of price@2, which entry 4 tells of, is not there", "the evidence of price@3 about its gate golden is not what its check wrote down"]
    with pytest.raises(Corrupt, match="the evidence of price@3 is not what its last check wrote down\nhint: palan log --verify, then: palan check price@3"):
        release(project, "price", version="3")
    with pytest.raises(PalanError, match="price@2 was never checked"):
        release(project, "price", version="2")
    project.store.records.add(Evidence("extra", "price@1", "", "latency", "pass", "made up", {}, NOON))
    with pytest.raises(Corrupt, match="the evidence of price@1"):
        release(project, "price", version="1")


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("update version set number = 7 where number = 1", "price@7 was edited: entry 1 tells of it as price@1"),
        ("update version set run = 'r9' where number = 1", "price@1 was edited: entry 1 tells of it as price@1"),
        ("update version set kind = 'policy' where number = 1", "price@1 was edited: its manifest does not match its id"),
        ("update version set manifest = '{}' where number = 1", "price@1 was edited: its manifest does not match its id"),
        ("delete from version where number = 1", "price@1, which entry 1 tells of, is not there"),
    ],
)
def test_a_version_that_was_not_built_under_its_name_is_found(project: Project, statement: str, what: str) -> None:
    told(project, 1, 2)
    behind(project, statement)
    assert broken(project) == [what]
    if "delete" not in statement and "run" not in statement:
        with pytest.raises(PalanError, match=r"price@. is not what was built here|there is no price@1"):
            packages.find_version(project, "price@1")


def test_two_versions_that_changed_places_are_not_taken_for_one_another(project: Project) -> None:
    two(project)
    for number, other in ((1, 9), (2, 1), (9, 2)):
        behind(project, f"update version set number = {other} where number = {number}")
    with pytest.raises(Busy, match="price@2 is not what was built here: it was changed behind palan's back"):
        decide(project, "price", rows=[{"amount": 3}])
    assert len(broken(project)) == 2
