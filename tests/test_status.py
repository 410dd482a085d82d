"""Is everything right, and if not, what to do: verdicts from what was recorded, in the dicts that the pages are given."""

from __future__ import annotations

import socket
import subprocess
import sys
import types
import typing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, is_typeddict

import msgspec
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from palan.cli.commands import cli
from palan.cli.show import status as show_status
from palan.core import Field, Schema, Version, digest_of, stamp
from palan.data.nouns import DataVersion, Quarantine, Repair
from palan.decisions import log
from palan.decisions.nouns import Decision, Job, Outcome
from palan.drift.nouns import Alarm
from palan.errors import Corrupt, NotFound, PalanError
from palan.flows import packages
from palan.flows.address import Serving, announced
from palan.flows.ingest import ingest
from palan.flows.log import evidence_digest
from palan.flows.project import Project, open_project, record
from palan.flows.release import change, release
from palan.flows.status import alarm_page, frame, model_page, status
from palan.gates.nouns import Evidence
from palan.releases import route
from palan.remedies.nouns import Remedy
from palan.web import pages, views

NOW = datetime(2013, 6, 1, 12, tzinfo=UTC)

TOML = """
[project]
name = "shop"
[data.sales]
source = "sales/*.csv"
key = ["id"]
[data.sales.columns]
id = "str"
temp = "float? -30..50 °C"
shop = "str in north south"
sold = "int 0.."
[models.demand]
model = "demand.py:Demand"
data = "sales"
inputs = ["temp", "shop"]
outcome = "sold"
key = "id"
"""
CODE = '''
class Demand:
    """How much will be sold.

    More about it.
    """

    def fit(self, data): ...
    def decide(self, rows): ...
'''
SCHEMA = Schema("rows", (Field("temp", "float", True, -30.0, 50.0, unit="°C"), Field("shop", "str", values=("north", "south"))))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project whose clock stands at noon of 1 June 2013. Nothing was done in it yet."""
    (tmp_path / "palan.toml").write_text(TOML)
    (tmp_path / "demand.py").write_text(CODE)
    return open_project(tmp_path, clock=lambda: NOW, actor="tester")


def ingested(project: Project, rows: int = 100, verdict: dict[str, Any] | None = None) -> None:
    project.store.records.add(DataVersion("d1", "sales", 1, NOW, ("part",), rows, rows, "run", {}, verdict or {}))


def built(project: Project, number: int = 1, schema: Schema = SCHEMA, kind: str = "estimator", model: str = "demand", **changes: Any) -> Version:
    manifest = {
        "format": 1,
        "model": model,
        "number": number,
        "kind": kind,
        "verbs": ["fit"],
        "params": {"extra": number},
        "code": {"demand.py": project.store.blobs.put(CODE.encode())},
        "state": {},
        "metrics": {"loss": 0.5},
        "signature": msgspec.to_builtins(schema),
        "environment": {"polars": "0.0.1"},
        "data": {"ref": "sales@1"},
        **changes,
    }
    signed = {**manifest, "signed": packages.sign(project, manifest)}
    version = Version(digest_of(manifest), model, number, kind, signed, "run", NOW)
    project.store.records.add(version)
    record(project, "built", version.ref, "a first try", id=version.id, run="run")
    return version


def checked(project: Project, number: int = 1, verdict: str = "pass") -> None:
    told = Evidence(f"e{number}", f"demand@{number}", "", "golden", verdict, "all 3 match" if verdict == "pass" else "1 differs", {}, NOW)
    project.store.records.add(told)
    record(project, "checked", told.version, f"{verdict}: golden {verdict}", evidence={told.id: evidence_digest(told)})


def released(project: Project) -> None:
    ingested(project)
    built(project)
    checked(project)
    release(project, "demand", reason="the first")


def decided(project: Project, number: int = 1, rows: int = 3, *, ago: timedelta = timedelta(hours=1), **changes: Any) -> Decision:
    made = Decision(
        id=f"{number:026d}",
        time=NOW - ago,
        model="demand",
        version="demand@1",
        epoch=1,
        propensity=1.0,
        **{
            "arm": "champion",
            "rows": rows,
            "inputs": {"temp": [float(row) for row in range(rows)], "shop": ["north"] * rows},
            "outputs": {"output": [10.0 * row for row in range(rows)]},
            "keys": [f"k{number}-{row}" for row in range(rows)],
            **changes,
        },
    )
    project.store.blocks.append("decisions/demand", [log.encode(made)])
    return made


def watched(project: Project, *, ago: int = 7, lane: str = "none", loss: float | None = 0.4, threshold: float | None = 0.6, text: str = "as usual") -> None:
    since = NOW - timedelta(days=ago)
    columns = [{"column": "temp", "distance": 0.7, "threshold": 0.2, "text": "temp (70% of its rows)", "changed": True}]
    seen = {"since": stamp(since), "until": stamp(since + timedelta(days=7)), "n": 9, "loss": loss, "outcomes": 9, "threshold": threshold, "lane": lane, "columns": columns, "text": text}
    project.store.blocks.append("watch/demand", [msgspec.msgpack.encode(seen)])


def alarmed(project: Project, lane: str = "page", state: str = "open") -> Alarm:
    alarm = Alarm(f"01alarm{lane}", "demand", NOW, lane, state, NOW - timedelta(days=7), NOW, "loss 0.9, usually 0.4", "data fault", ("temp",), {"because": "temp is °F now", "loss": 0.9, "columns": []})
    project.store.records.put(alarm)
    record(project, "paged", "demand", "data fault: temp is °F now", alarm=alarm.id)
    return alarm


def proposed(project: Project, alarm: Alarm, state: str = "proposed") -> Remedy:
    tried = [{"name": "rework data: temp", "action": "rework data", "gain": 0.5, "low": 0.4, "high": 0.6, "cost": 0.0, "net_low": 0.4, "verdict": "worth it", "chosen": True, "seconds": 1.0}, {"name": "nothing", "action": "nothing", "gain": 0.0, "low": 0.0, "high": 0.0, "cost": 0.0, "net_low": 0.0, "verdict": "the yardstick", "chosen": False}]
    remedy = Remedy("01remedy", alarm.id, "demand", NOW, state, "rework data: temp", "gained 0.5 a decision", tuple(tried), {}, 0.5)
    project.store.records.put(remedy)
    record(project, "proposed", "demand", "rework data: temp", alarm=alarm.id, remedy=remedy.id)
    return remedy


def line(project: Project) -> dict[str, Any]:
    return fits(status(project), views.Home)["models"][0]


def fits(value: Any, hint: Any, at: str = "view") -> Any:
    """Return the value if it is exactly of the type, members of dicts and all; else say where it is not."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_typeddict(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        optional = {name for name, each in hints.items() if get_origin(each) is NotRequired}
        assert isinstance(value, dict), at
        assert set(hints) - optional <= set(value) <= set(hints), f"{at}: {set(value) ^ set(hints)}"
        for name, each in hints.items():
            if name in value:
                fits(value[name], get_args(each)[0] if name in optional else each, f"{at}.{name}")
    elif origin is Literal:
        assert value in arguments, f"{at}: {value!r}"
    elif origin in (Union, types.UnionType):
        if value is None:
            assert type(None) in arguments, at
        else:
            fits(value, next(each for each in arguments if each is not type(None)), at)
    elif origin is list:
        assert isinstance(value, list), at
        for place, each in enumerate(value):
            fits(each, arguments[0], f"{at}[{place}]")
    elif origin is dict:
        assert isinstance(value, dict), at
        for name, each in value.items():
            fits(each, arguments[1], f"{at}.{name}")
    else:
        assert isinstance(value, (int, float) if hint is float else hint), f"{at}: {value!r} is no {hint}"
        assert hint is not int or not isinstance(value, bool), at
    return value


# -- verdicts and the next step --------------------------------------------------------------------------------------


def test_each_step_towards_a_release_names_the_next_command(project: Project) -> None:
    found = line(project)
    assert (found["verdict"], found["next"]["command"], found["kind"]) == ("not released", "palan ingest", "estimator")
    assert "nothing of sales" in found["why"]
    ingested(project)
    assert line(project)["next"]["command"] == "palan build demand"
    built(project)
    assert line(project)["next"]["command"] == "palan check demand@1"
    checked(project)
    found = line(project)
    assert (found["verdict"], found["next"]["command"]) == ("not released", "palan release demand@1")
    release(project, "demand", reason="the first")
    found = line(project)
    assert (found["verdict"], found["next"]["command"], found["champion"]) == ("not asked", "palan serve", "demand@1")
    assert found["champion_since"] == stamp(NOW)
    assert found["last"] == {"time": stamp(NOW), "text": "released demand@1", "actor": "tester"}


def test_version_that_fails_its_gates_is_not_proposed(project: Project) -> None:
    ingested(project)
    built(project)
    checked(project, verdict="fail")
    found = line(project)
    assert found["next"]["command"] == "palan build demand"
    assert "golden: 1 differs" in found["why"]


def test_released_model_learns_until_windows_can_be_judged(project: Project) -> None:
    released(project)
    decided(project)
    found = line(project)
    assert (found["verdict"], found["next"]) == ("learning", None)
    assert "2013-06-10" in found["why"]  # the first whole week
    decided(project, 2, ago=timedelta(days=9))
    assert line(project)["next"] is None  # `palan watch` would find none that is whole
    decided(project, 3, ago=timedelta(days=20))
    assert line(project)["next"]["command"] == "palan watch demand"
    watched(project, lane="learning", threshold=None, text="still learning what is normal: seen 3 of 8 windows")
    found = line(project)
    assert (found["verdict"], found["next"]) == ("learning", None)
    assert "3 of 8" in found["why"]


def test_quiet_window_is_right(project: Project) -> None:
    released(project)
    decided(project)
    watched(project, text="loss 0.4: normal")
    found = line(project)
    assert (found["verdict"], found["why"], found["next"], found["alarm"]) == ("right", "loss 0.4: normal", None, None)
    assert (found["loss"]["values"], found["loss"]["threshold"]) == ([0.4], 0.6)


def test_windows_left_unwatched_are_named(project: Project) -> None:
    released(project)
    decided(project)
    decided(project, 2, ago=timedelta(days=45))
    watched(project, ago=40)
    assert line(project)["next"]["command"] == "palan watch demand"


def test_a_model_that_was_never_asked_is_to_be_called_where_it_is_served(project: Project) -> None:
    released(project)
    assert line(project)["next"]["command"] == "palan serve"
    found = fits(status(project, "http://127.0.0.1:8123"), views.Home)["models"][0]
    assert found["next"]["command"].startswith("curl http://127.0.0.1:8123/v1/models/demand/decide -d ")
    with announced(project, "http://127.0.0.1:9191"):
        assert line(project)["next"]["command"].startswith("curl http://127.0.0.1:9191/v1/models/demand/decide ")
        page = model_page(project, "demand")
        assert page["curl"].startswith("curl http://127.0.0.1:9191/")
        assert page["infer"].startswith("curl http://127.0.0.1:9191/v2/")
    assert line(project)["next"]["command"] == "palan serve"
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    place = project.folder / "cache" / "serving"
    place.write_bytes(msgspec.json.encode(Serving("http://127.0.0.1:9191", socket.gethostname(), int(ended.stdout))))
    assert line(project)["next"]["command"] == "palan serve"  # that server was killed


def test_a_model_that_nobody_asks_any_more_sends_to_its_callers(project: Project) -> None:
    released(project)
    for day in range(12, 40):
        decided(project, day, 30, ago=timedelta(days=day))
    found = line(project)
    assert (found["verdict"], found["why"]) == ("wrong", "nobody asks it any more: 0 decisions where 210 a week are usual")
    assert "callers" in found["next"]["text"] and "2013-05-20" in found["next"]["reason"]
    alarmed(project, "digest")  # what moved before is not what matters now
    assert "nobody asks it" in line(project)["why"]
    later = line(replace(project, clock=lambda: NOW + timedelta(days=100)))  # no news any more, and nothing to do
    assert (later["verdict"], later["why"], later["next"]) == ("not asked", "nobody has asked it since 2013-05-20", None)
    decided(project, 1)
    assert "nobody asks it" not in line(project)["why"]


def test_outcomes_of_no_decision_are_said_to_wait(project: Project) -> None:
    released(project)
    decided(project)

    def told(text: str, *options: str) -> str:
        done = CliRunner().invoke(cli, ["--project", str(project.root), "outcomes", "demand", "--input", "-", *options], input=text)
        assert done.exit_code == 0, done.output
        return done.output

    assert told('{"k1-0": 4, "nobody": 5}') == "2 outcomes of demand: 1 matched, 1 is waiting for a decision\n"
    assert told('{"k1-0": 4, "k1-2": 5}') == "2 outcomes of demand\n"
    assert msgspec.json.decode(told('{"a": 4, "b": 5}', "--json")) == {"model": "demand", "told": 2, "matched": 0}


def test_a_model_that_is_seldom_asked_may_be_asked_nothing(project: Project) -> None:
    released(project)
    for day in range(12, 40):
        decided(project, day, 1, ago=timedelta(days=day))
    assert "nobody asks it" not in line(project)["why"]


def test_open_page_is_wrong_and_asks_for_remedies(project: Project) -> None:
    released(project)
    decided(project)
    watched(project, lane="page", loss=0.9)
    alarm = alarmed(project)
    found = line(project)
    assert (found["verdict"], found["alarm"], found["next"]["command"]) == ("wrong", alarm.id, "palan react demand")
    assert status(project)["frame"]["open_alarms"] == 1
    assert [mark["kind"] for mark in found["loss"]["marks"] if mark["label"] == "data fault"] == ["fault"]


def test_proposed_remedy_waits_for_a_person(project: Project) -> None:
    released(project)
    decided(project)
    alarm = alarmed(project, state="answered")
    remedy = proposed(project, alarm)
    found = line(project)
    assert (found["verdict"], found["alarm"], found["next"]["command"]) == ("attention", alarm.id, "palan react demand --approve")
    assert [each["do"] for each in found["next"]["actions"]] == ["approve", "reject"]
    project.store.records.put(replace(remedy, status="rejected"))
    watched(project)
    assert line(project)["verdict"] == "right"


def test_a_digest_is_a_note_that_changes_no_verdict_and_ages(project: Project) -> None:
    released(project)
    decided(project)
    watched(project, text="loss 0.4: normal")
    digest = alarmed(project, "digest")
    project.store.records.put(replace(digest, until=NOW + timedelta(days=1)))
    found = line(project)
    assert (found["verdict"], found["next"], found["alarm"], found["notes"]) == ("right", None, None, 1)
    assert frame(project)["open_alarms"] == 0
    assert ">1 note</a>" in pages.home(status(project))
    assert alarm_page(project, digest.id)["next"] is None
    assert line(replace(project, clock=lambda: NOW + timedelta(days=30)))["notes"] == 0, "after four weeks it is no news"
    ahead = replace(project, clock=lambda: NOW + timedelta(days=2))
    assert line(ahead)["notes"] == 1
    built(project, 2)
    checked(project, 2)
    release(ahead, "demand", version="2")
    assert line(ahead)["notes"] == 0, "another release answers since"
    alarmed(project, "page")
    found = line(project)
    assert (found["verdict"], found["next"]["command"]) == ("wrong", "palan react demand")
    assert frame(project)["open_alarms"] == 1


def test_models_beside_one_that_works_ask_for_no_first_request(project: Project) -> None:
    (project.root / "palan.toml").write_text(TOML + '[models.other]\nmodel = "demand.py:Demand"\n')
    both = open_project(project.root, clock=lambda: NOW, actor="tester")
    released(both)
    built(both, model="other")
    change(both, "other", "released", lambda now: route.start(now, "other", "other@1", time=NOW), "the first")
    found = status(both)["models"]
    assert [(each["verdict"], each["next"]["command"]) for each in found] == [("not asked", "palan serve")] * 2
    assert pages.headline(found) == ("not asked", "No model is asked at present.")
    decided(both)
    watched(both)
    found = status(both)["models"]
    assert [(each["verdict"], each["next"]) for each in found] == [("right", None), ("not asked", None)]
    later = status(replace(both, clock=lambda: NOW + timedelta(days=1000)))["models"]
    assert [(each["verdict"], each["next"]) for each in later] == [("not asked", None)] * 2
    assert pages.headline(found) == ("right", "Everything that is asked is right; other is not asked.")


def test_canary_is_shown_and_judged_when_due(project: Project) -> None:
    released(project)
    decided(project)
    watched(project)
    built(project, 2)
    assert line(project)["next"]["command"] == "palan check demand@2"
    checked(project, 2)
    found = line(project)
    assert (found["verdict"], found["next"]["command"]) == ("right", "palan release demand@2")
    release(project, "demand", version="2", share=0.2, wait=timedelta(days=7))
    found = line(project)
    assert found["canary"] == {"version": "demand@2", "role": "canary", "share": 0.2, "until": stamp(NOW + timedelta(days=7))}
    assert (found["verdict"], found["next"], found["champion_since"]) == ("right", None, stamp(NOW))
    assert "20%" in found["why"]
    later = replace(project, clock=lambda: NOW + timedelta(days=8))
    assert line(later)["next"]["command"] == "palan tick"
    release(project, "demand", roll_back=True)
    assert line(project)["next"] is None  # it was tried and taken back: nobody proposes it again


@pytest.mark.parametrize("fault", ["forged", "library", "lost file"])
def test_champion_that_could_not_be_opened_is_wrong(fault: str, project: Project) -> None:
    ingested(project)
    changes: dict[str, Any] = {"library": {"environment": {"no-such-thing": "1.0"}}, "lost file": {"state": {"weights": "0" * 64}}}.get(fault, {})
    version = built(project, **changes)
    checked(project)
    release(project, "demand", reason="the first")
    if fault == "forged":
        project.store.records.put(replace(version, manifest={**version.manifest, "params": {"extra": 99}}))
    found = line(project)
    assert found["verdict"] == "wrong"
    said = {"forged": "changed after it was built", "library": "no-such-thing 1.0, here it is missing", "lost file": "lacks a file"}[fault]
    assert said in found["why"]
    assert found["next"]["command"].startswith("pip install" if fault == "library" else "palan build demand")


def test_damaged_log_of_one_model_hides_no_other(project: Project) -> None:
    (project.root / "palan.toml").write_text(TOML + '[models.other]\nmodel = "demand.py:Demand"\n')
    released(project)
    decided(project)
    (segment,) = (project.folder / "blocks" / "decisions" / "demand").glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(bytes(data))
    damaged, other = fits(status(open_project(project.root)), views.Home)["models"]
    assert (damaged["verdict"], other["verdict"]) == ("wrong", "not released")
    assert "is damaged" in damaged["why"]


def test_requests_without_an_answer_are_wrong(project: Project) -> None:
    released(project)
    watched(project)
    decided(project)
    for number in range(2, 5):
        decided(project, number, outputs=None, status="error")
    found = line(project)
    assert (found["verdict"], found["why"]) == ("wrong", "3 of its last 4 requests got no answer (error)")
    for number in range(5, 9):
        decided(project, number, status="timeout")  # out of time, but with the best plan so far
    assert line(project)["verdict"] == "right"


# -- figures ---------------------------------------------------------------------------------------------------------


def test_traffic_counts_rows_of_the_window_and_of_each_day(project: Project) -> None:
    released(project)
    decided(project, 1, 5, ago=timedelta(days=9))
    decided(project, 2, 4, ago=timedelta(days=1), degraded="demand@2 failed")
    decided(project, 3, 3, violations=[{"rule": "r", "where": "row 0"}, {"rule": "q", "where": "row 0"}, {"rule": "r", "where": "row 2"}])
    decided(project, 4, 100, arm="shadow")
    found = line(project)
    assert (found["decisions"], found["degraded"], found["violations"], found["window"]) == (7, 4, 2, "7d")
    assert found["traffic"]["times"][0] == "2013-05-23T00:00:00.000000Z"
    assert found["traffic"]["values"] == [5.0, *[0.0] * 7, 4.0, 3.0]
    decided(project, 5, 2)  # what comes later is added to what was read
    assert line(project)["decisions"] == 9


def test_count_is_kept_for_the_next_process_and_survives_its_loss(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import palan.flows.status as module

    monkeypatch.setattr(module, "SAVED_AFTER", 0)
    released(project)
    decided(project, 1, 5)
    before = line(project)
    kept = project.folder / "cache" / "traffic" / "demand"
    assert kept.is_file()
    decided(project, 2, 2)
    again = replace(project, store=open_project(project.root).store)
    assert line(again)["decisions"] == before["decisions"] + 2
    assert model_page(again, "demand")["decisions"][0]["id"] == f"{2:026d}-1"
    for broken in (b"", b"\x81", b"garbage"):
        kept.write_bytes(broken)
        fresh = replace(project, store=open_project(project.root).store)
        assert line(fresh)["decisions"] == before["decisions"] + 2


def test_data_says_what_it_holds_and_what_waits(project: Project) -> None:
    found = status(project)["data"][0]
    assert (found["verdict"], found["command"], found["version"]) == ("empty", "palan ingest sales", None)
    assert status(project)["command"] == "palan ingest"
    ingested(project, 2876)
    found = fits(status(project), views.Home)["data"][0]
    assert (found["verdict"], found["why"], found["command"]) == ("right", "all 2,876 rows hold", "")
    project.store.records.add(Quarantine("q", "sales", NOW, "a.csv", "blob", 34, {"dewp <= temp + 1": 30, "temp is null": 4}))
    found = status(project)["data"][0]
    assert found["command"] == "palan why sales"
    assert (found["verdict"], found["quarantined"], found["why"]) == ("attention", 34, "34 rows are in quarantine, most because dewp <= temp + 1; all 2,876 rows hold")
    later = status(replace(project, clock=lambda: NOW + timedelta(days=29)))["data"][0]
    assert (later["verdict"], later["why"]) == ("right", "all 2,876 rows hold; 34 rows are in quarantine, most because dewp <= temp + 1")


def test_delivery_of_odd_size_is_attention(project: Project) -> None:
    ingested(project, verdict={"files": [{"table": [{"rule": "rows", "holds": False, "text": "12 rows, 500..4000 are usual", "severity": "warn"}]}]})
    found = status(project)["data"][0]
    assert (found["verdict"], found["why"]) == ("attention", "12 rows, 500..4000 are usual")


@pytest.mark.parametrize("stored", ["[]", "nonsense", '{"files": 3}', '{"files": [{"table": [{"holds": false}]}]}', '{"files": [7]}'])
def test_a_stored_verdict_of_another_shape_is_told_as_damage(project: Project, stored: str) -> None:
    ingested(project)
    records: Any = project.store.records
    records._db.execute("update data_version set verdict = ?", (stored,))
    with pytest.raises(Corrupt, match="damaged") as told:
        status(project)
    assert "backup" in told.value.hint


def test_status_in_a_narrow_terminal_breaks_between_words_and_says_all_without_colour(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    released(project)
    decided(project)
    watched(project, text="loss 0.4129 a decision, 15% below the usual 0.4879 (limit 0.6222); 2 of 18 columns moved")
    digest = alarmed(project, "digest")
    project.store.records.put(replace(digest, until=NOW + timedelta(days=1)))
    show_status(project)
    wide = capsys.readouterr().out.splitlines()
    assert wide[0].startswith("right  demand (estimator): loss 0.4129") and wide[0].endswith("; 1 note, see palan log demand")
    assert wide[1] == "right  data sales: all 100 rows hold"
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    show_status(project)
    narrow = capsys.readouterr().out
    assert max(len(each) for each in narrow.splitlines()) <= 50 and "\033" not in narrow
    assert " ".join(narrow.split()) == " ".join(" ".join(wide).split())


def test_a_reason_that_was_just_said_is_not_said_again(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    ingested(project)
    show_status(project)
    told = capsys.readouterr().out.splitlines()
    assert told[:3] == ["not released  demand (estimator): no version of it was built yet", "    Build demand", "    palan build demand"]


def test_a_delivery_that_failed_is_wrong_until_it_is_taken_in(project: Project) -> None:
    (project.root / "sales").mkdir()
    file = project.root / "sales" / "new.csv"
    file.write_text("id,temp,store,sold\na,1,north,2\n")
    for _ in range(2):
        with pytest.raises(PalanError):
            ingest(project)
    home = fits(status(project), views.Home)
    found = home["data"][0]
    assert (found["verdict"], found["command"]) == ("wrong", "palan ingest sales")
    assert 'sales/new.csv: data "sales": the delivery has no column "shop"' in found["why"]
    assert [each["verb"] for each in home["ledger"]] == ["refused"]
    assert pages.headline(home["models"], home["data"])[0] == "wrong"
    page = pages.home(home)
    assert "no column" in page and "palan ingest sales" in page and "sales" in page.partition("</h1>")[0].rpartition("<h1")[2]
    assert show_status(project) == 1
    file.unlink()
    (project.root / "sales" / "right.csv").write_text("id,temp,shop,sold\na,1,north,2\n")
    ingest(project)
    assert status(project)["data"][0]["verdict"] == "right"
    assert show_status(project) == 0


def test_frame_tells_a_replay_and_a_broken_ledger(project: Project) -> None:
    record(project, "built", "demand@1")
    assert fits(frame(project), views.Frame) == {"project": "shop", "now": stamp(NOW), "simulated": True, "ledger_ok": True, "ledger_entries": 1, "open_alarms": 0}
    assert frame(open_project(project.root))["simulated"] is False
    records: Any = project.store.records
    records._db.execute("drop trigger entry_is_never_edited")
    records._db.execute("update entry set reason = 'another' where seq = 1")
    assert frame(project)["ledger_ok"] is False


def test_project_without_models_says_how_to_begin(tmp_path: Path) -> None:
    (tmp_path / "palan.toml").write_text("")
    found = fits(status(open_project(tmp_path)), views.Home)
    assert (found["models"], found["command"].split()[:2]) == ([], ["palan", "init"])


# -- the pages -------------------------------------------------------------------------------------------------------


def full(project: Project) -> Alarm:
    """Everything at once: two versions, a canary, a repair, decisions with outcomes, a job, a proposed remedy."""
    released(project)
    built(project, 2)
    checked(project, 2)
    repairs = [Repair("temp", "(temp - 32) / 1.8", "temp * 1.8 + 32", NOW - timedelta(days=3), None, "it was °F")]
    change(project, "demand", "repaired", lambda now: route.set_repairs(now, "demand", repairs, time=NOW, reason="it was °F"), "it was °F")
    release(project, "demand", version="2", share=0.2, wait=timedelta(days=7))
    decided(project, 1, 3, ago=timedelta(hours=2))
    decided(project, 2, 12, violations=[{"rule": "r", "where": "output[3]"}])
    told = Outcome(time=NOW, model="demand", ids=["", f"{1:026d}-0"], keys=["k2-11", ""], values=[7, 5])
    project.store.blocks.append("outcomes/demand", [log.encode(told)])
    watched(project, ago=14)
    watched(project, lane="page", loss=0.9)
    alarm = alarmed(project, state="answered")
    proposed(project, alarm)
    return alarm


def test_model_page_holds_all_that_the_page_shows(project: Project) -> None:
    full(project)
    page = fits(model_page(project, "demand"), views.ModelPage)
    assert page["about"] == "How much will be sold."
    assert [(each["version"], each["role"]) for each in page["arms"]] == [("demand@1", "champion"), ("demand@2", "canary")]
    assert [(each["ref"], each["role"], each["reason"]) for each in page["versions"]] == [("demand@2", "canary", "a first try"), ("demand@1", "champion", "a first try")]
    assert [each["text"] for each in page["releases"]] == ["canary demand@2 takes 20%", "repair of temp", "demand@1 is champion"]
    assert page["actions"] == [{"do": "rollback", "subject": "demand", "label": "Take demand@2 off"}]
    assert [(each["name"], each["type"], each["rule"], each["unit"]) for each in page["signature"]] == [("temp", "float?", "-30 to 50", "°C"), ("shop", "str", "one of north, south", "")]
    assert page["alarms"][0]["remedy"] == "rework data: temp (proposed)"
    assert [mark["kind"] for mark in page["model"]["loss"]["marks"]] == ["fault", "release", "repair", "canary"]
    assert "/v1/models/demand/decide" in page["curl"]
    assert '"datatype":"FP64"' in page["infer"]
    assert pages.model(page).count("demand@2") > 1


def test_the_end_of_a_repair_reads_unlike_its_beginning(project: Project) -> None:
    released(project)
    decided(project)
    watched(project)
    active = Repair("temp", "(temp - 32) / 1.8", "temp * 1.8 + 32", NOW - timedelta(days=6), None, "it was °F")
    for days, repair, why in ((5, active, "it was °F"), (2, replace(active, until=NOW - timedelta(days=2)), "it is °C again")):
        then = replace(project, clock=lambda days=days: NOW - timedelta(days=days))
        change(then, "demand", "repaired", lambda now, repair=repair, why=why, then=then: route.set_repairs(now, "demand", [repair], time=then.clock(), reason=why), why)
    page = model_page(project, "demand")
    assert [each["text"] for each in page["releases"]] == ["end of repair of temp", "repair of temp", "demand@1 is champion"]
    assert [(mark["kind"], mark["label"]) for mark in page["model"]["loss"]["marks"]] == [("repair", "repair begins"), ("repair", "repair ends"), ("release", "demand@1")]


def test_what_a_loss_means_is_told_by_the_first_line_of_its_score(project: Project) -> None:
    assert model_page(project, "demand")["means"] == ""
    told = CODE + '    def score(self, decisions, outcomes):\n        """Return the euros lost by each decision, shape (n,)."""\n'
    ingested(project)
    built(project, code={"demand.py": project.store.blobs.put(told.encode())})
    checked(project)
    release(project, "demand")
    page = fits(model_page(project, "demand"), views.ModelPage)
    assert page["means"] == "the euros lost by each decision"
    assert "The euros lost by each decision. Lower is better" in pages.model(page)


def test_rules_that_learn_from_no_rows_say_so(project: Project) -> None:
    ingested(project)
    built(project, kind="rules", metrics={}, data={})
    page = model_page(project, "demand")
    assert "no training data" in pages.model(page)


def test_years_of_silence_do_not_press_the_chart_into_a_corner(project: Project) -> None:
    released(project)
    decided(project, ago=timedelta(days=400))
    for ago in range(7 * 57, 0, -7):
        watched(project, ago=ago, loss=0.4 if ago > 380 else None)
    found = line(project)
    assert (len([each for each in found["loss"]["values"] if each is not None]), len(found["loss"]["values"])) == (3, 11)
    assert (found["verdict"], found["next"]) == ("not asked", None)


def test_newest_decisions_come_with_outcomes_by_key_and_by_id(project: Project) -> None:
    full(project)
    decisions = model_page(project, "demand")["decisions"]
    assert len(decisions) == 12
    first = decisions[0]
    assert (first["id"], first["key"], first["outcome"], first["outputs"]) == (f"{2:026d}-11", "k2-11", 7, 110.0)
    assert first["inputs"] == {"temp": 11.0, "shop": "north"}
    assert [each["violations"] for each in decisions] == [0] * 8 + [1, 0, 0, 0]
    assert decisions[1]["outcome"] is None
    decided(project, 3, 1, ago=timedelta(days=30))  # an old one that was logged late is not among the newest
    assert model_page(project, "demand")["decisions"][0]["id"] == first["id"]


def test_example_call_is_answered_by_the_schema_that_it_is_made_from(project: Project) -> None:
    """Before any decision the row is made from the ranges; the served schema takes it."""
    from palan.data.inputs import Inputs

    released(project)
    curl = model_page(project, "demand")["curl"]
    body = curl.partition(" -d ")[2].strip("'").encode()
    assert Inputs(SCHEMA).read(body).columns == {"temp": [-30.0], "shop": ["north"]}


def test_instances_show_scalars_objective_and_nested_inputs(project: Project) -> None:
    nested = Schema("instance", (Field("day", "str"), Field("flights", "list", item=Field("", "map", fields=(Field("id", "str"), Field("gate", "int", True))))))
    ingested(project)
    built(project, schema=nested, kind="program")
    checked(project)
    release(project, "demand")
    decided(project, 1, 1, inputs={"day": "2013-05-01", "flights": [{"id": "a", "gate": None}]}, outputs={"plan": [1] * 1000}, keys=None, status="optimal", result={"objective": 12.5, "kpis": {"late": 3}})
    project.store.records.put(Job("01job", "demand", "demand@1", "queued", NOW, "blob", result={"about": "2013-05-01, 1 flight"}))
    page = fits(model_page(project, "demand"), views.ModelPage)
    assert page["decisions"][0]["inputs"] == {"day": "2013-05-01"}
    assert page["decisions"][0]["outputs"] == {"objective": 12.5, "late": 3}
    assert [each["name"] for each in page["signature"]] == ["day", "flights", "flights[].id", "flights[].gate"]
    assert (page["shape"], page["infer"], page["jobs"][0]["about"]) == ("instance", "", "2013-05-01, 1 flight")


def test_model_that_was_never_built_has_a_page(project: Project) -> None:
    page = fits(model_page(project, "demand"), views.ModelPage)
    assert (page["about"], page["curl"], page["versions"]) == ("How much will be sold.", "palan build demand", [])
    with pytest.raises(NotFound, match='no model "demnad"'):
        model_page(project, "demnad")


def test_alarm_page_holds_diagnosis_trials_and_history(project: Project) -> None:
    alarm = full(project)
    page = fits(alarm_page(project, alarm.id), views.AlarmPage)
    assert (page["because"], page["evidence"], page["diagnosis"]) == ("temp is °F now", {"loss": 0.9}, "data fault")
    assert [(each["name"], each["chosen"], each["net_low"]) for each in page["candidates"]] == [("rework data: temp", True, 0.4), ("nothing", False, 0.0)]
    assert [each["verb"] for each in page["history"]] == ["paged", "proposed"]
    assert page["columns"] == [{"column": "temp", "distance": 0.7, "threshold": 0.2, "text": "70% of its rows", "changed": True}]
    assert page["loss"]["values"] == [0.4, 0.9]
    assert page["next"]["command"] == "palan react demand --approve"
    assert "rework data" in pages.alarm(page)
    assert alarm_page(project, alarm.id[:8])["id"] == alarm.id
    with pytest.raises(NotFound):
        alarm_page(project, "nothing")


def test_columns_of_an_alarm_are_as_they_were_when_it_was_raised(project: Project) -> None:
    released(project)
    watched(project)
    alarm = alarmed(project)
    told = [{"name": "temp", "distance": 0.7, "threshold": 0.2}, {"name": "shop", "distance": 0.1, "threshold": 0.3}]
    project.store.records.put(replace(alarm, evidence={**alarm.evidence, "columns": told, "split": {"total": 0.5, "inputs": 0.1}}))
    page = fits(alarm_page(project, alarm.id), views.AlarmPage)
    assert [(each["column"], each["changed"], each["text"]) for each in page["columns"]] == [("temp", True, "70% of its rows"), ("shop", False, "")]
    assert page["evidence"] == {"loss": 0.9}


def test_home_page_draws_what_status_says(project: Project) -> None:
    full(project)
    home = fits(status(project), views.Home)
    html = pages.home(home)
    assert "palan react demand --approve" in html
    assert home["ledger"][0]["verb"] == "proposed"


# -- much ------------------------------------------------------------------------------------------------------------


def test_long_log_is_counted_row_by_row(project: Project) -> None:
    """400 requests of 900 rows; the window of seven days ends within them."""
    released(project)
    values = [float(row) for row in range(900)]
    columns = {"inputs": {"temp": values, "shop": ["north"] * 900}, "outputs": {"output": values}, "keys": [f"2013-05-01-{row}" for row in range(900)]}
    for number in range(400):
        decided(project, number, 900, ago=timedelta(hours=number), **columns)
    assert status(project)["models"][0]["decisions"] == 900 * 169
    assert status(project)["models"][0]["decisions"] == 900 * 169, "and the same from what was counted before"


def test_status_loads_no_data_frame_library(project: Project) -> None:
    full(project)
    code = "import sys; from palan.cli import main\ntry: main(['status', '--json'])\nexcept SystemExit: pass\nprint({'polars', 'numpy', 'jinja2', 'uvicorn'} & set(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=project.root, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"
    assert '"demand"' in done.stdout
