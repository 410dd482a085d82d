"""A request comes in: the right version answers it, it is in the log before the answer, and a release change loses none."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import polars as pl
import pytest
from msgspec.structs import replace

from palan.data.nouns import Repair
from palan.decisions import log
from palan.decisions.nouns import Decision
from palan.errors import Conflict, NotFound, PalanError
from palan.flows.decide import decide
from palan.flows.history import decisions
from palan.flows.packages import find_version
from palan.flows.release import change, release, set_repairs
from palan.flows.serve import serving
from palan.http.guard import Door, refuse
from palan.releases import route as routing
from palan.releases.nouns import Release
from processes import children, gone
from queue_project import GOOD, INSTANCE, Served, make

pytest_plugins = ["queue_server"]

NOW = datetime(2013, 5, 1, tzinfo=UTC)
WEEK = NOW + timedelta(days=7)


def released(share: float = 0.0) -> Release:
    release = routing.start(None, "delay", "delay@1", time=NOW)
    return routing.canary(release, "delay", "delay@2", share, WEEK, time=NOW) if share else release


def test_a_key_always_meets_the_same_version_and_the_shares_hold() -> None:
    release = released(0.2)
    keys = [f"flight-{index}" for index in range(20_000)]
    chosen = [routing.route(release, key) for key in keys]
    assert chosen == [routing.route(replace(release, epoch=9, reason="another day"), key) for key in keys]
    canary = [each for each in chosen if each.arm.role == "canary"]
    # 20 000 draws at 20 %: five standard deviations are 283.
    assert abs(len(canary) - 4_000) < 283
    assert {each.propensity for each in canary} == {0.2}
    assert {each.propensity for each in chosen if each.arm.role == "champion"} == {0.8}


def test_a_wider_canary_keeps_its_keys_and_another_one_draws_others() -> None:
    keys = [f"flight-{index}" for index in range(5_000)]

    def taken(release: Release) -> set[str]:
        return {key for key in keys if routing.route(release, key).arm.role == "canary"}

    narrow = released(0.2)
    wide = routing.canary(narrow, "delay", "delay@2", 0.5, WEEK, time=NOW)
    assert taken(narrow) < taken(wide)
    other = routing.canary(released(), "delay", "delay@3", 0.2, WEEK, time=NOW)
    # Independent draws: 20 % of the keys of one canary are in the other.
    assert 0.1 < len(taken(narrow) & taken(other)) / len(taken(narrow)) < 0.3


def test_the_life_of_a_release() -> None:
    first = released()
    assert (first.epoch, first.champion.version, routing.route(first, "k").propensity) == (1, "delay@1", 1.0)
    trial = routing.canary(first, "delay", "delay@2", 0.2, WEEK, time=NOW)
    assert (trial.epoch, trial.until, routing.state(trial)) == (2, WEEK, "canary")
    won = routing.promote(trial, "delay", time=WEEK)
    assert (won.epoch, won.champion.version, won.previous, won.until) == (3, "delay@2", "delay@1", None)
    back = routing.roll_back(won, "delay", time=WEEK)
    assert (back.epoch, back.champion.version, back.previous) == (4, "delay@1", "")
    dropped = routing.roll_back(trial, "delay", time=WEEK)
    assert (dropped.champion.version, dropped.canary, dropped.champion.share) == ("delay@1", None, 1.0)


def test_moves_that_make_no_sense_are_refused_with_the_way_out() -> None:
    for move in (routing.promote, routing.roll_back):
        with pytest.raises(NotFound, match="delay is not released"):
            move(None, "delay", time=NOW)
    with pytest.raises(PalanError, match="nothing to roll back to"):
        routing.roll_back(released(), "delay", time=NOW)
    with pytest.raises(Conflict, match="no canary to promote"):
        routing.promote(released(), "delay", time=NOW)
    with pytest.raises(Conflict, match="delay@2 is the canary"):
        routing.start(released(0.2), "delay", "delay@3", time=NOW)
    with pytest.raises(Conflict, match="delay@2 is the canary"):
        routing.canary(released(0.2), "delay", "delay@3", 0.2, None, time=NOW)
    with pytest.raises(Conflict, match="already the champion"):
        routing.canary(released(), "delay", "delay@1", 0.2, None, time=NOW)
    with pytest.raises(PalanError, match="between 0% and 100%"):
        routing.canary(released(), "delay", "delay@2", 1.0, None, time=NOW)


def test_repairs_and_shadows_stay_when_the_champion_changes() -> None:
    repair = Repair("temp", "temp * 9 / 5 + 32", "(temp - 32) * 5 / 9", since=NOW)
    release = routing.shadow(routing.set_repairs(released(), "delay", [repair], time=NOW), "delay", ["delay@3"], time=NOW)
    assert routing.route(release, "k").shadows == (release.arms[1],)
    won = routing.promote(routing.canary(release, "delay", "delay@2", 0.5, WEEK, time=NOW), "delay", time=WEEK)
    assert won.repairs == (repair,)
    assert [(arm.version, arm.role) for arm in won.arms] == [("delay@2", "champion"), ("delay@3", "shadow")]
    with pytest.raises(Conflict, match="cannot be its shadow"):
        routing.shadow(won, "delay", ["delay@2"], time=NOW)


def logged(served: Served, id: str, model: str = "wait") -> Decision:
    return next(each for each in decisions(served.project, model) if each.id == id)


@pytest.fixture
def restored(served: Served) -> Iterator[Served]:
    """Whatever the test releases, wait@1 answers alone again afterwards."""
    yield served
    now = served.project.store.records.get(Release, "wait")
    assert now is not None
    change(served.project, "wait", "restored", lambda _: replace(now, epoch=now.epoch + 1, arms=(routing.Arm("wait@1", "champion", 1.0),), repairs=(), previous=""), "")
    served.server.deciders.refresh()


def test_rows_are_answered_and_logged_as_they_were_sent(served: Served) -> None:
    answer = served.decide("wait", rows=[GOOD, {"people": 0, "desk": "C", "temp": None, "id": 17}]).json()
    assert answer["outputs"] == [pytest.approx(20.5), 0.0]
    assert (answer["model"], answer["version"], answer["arm"], answer["propensity"], answer["status"]) == ("wait", "wait@1", "champion", 1.0, "ok")
    entry = logged(served, answer["decision"])
    assert entry.inputs == {"people": [10, 0], "desk": ["A", "C"], "temp": [50.0, None]}
    assert (entry.keys, entry.rows, entry.outputs) == (["v1", "17"], 2, {"output": answer["outputs"]})


def test_columns_are_answered_in_columns(served: Served) -> None:
    answer = served.decide("wait", rows={"people": [10, 20], "desk": ["A", "B"]}, keys=["x", "y"]).json()
    assert answer["outputs"] == {"output": [20.0, 40.0]}
    assert logged(served, answer["decision"]).keys == ["x", "y"]


def test_the_same_answer_without_a_server(served: Served) -> None:
    frame = pl.DataFrame({"people": [10], "desk": ["A"], "temp": [50.0]})
    answer = decide(served.project, "wait", frame, keys=["here"])
    assert answer["outputs"]["output"] == [pytest.approx(20.5)]
    assert logged(served, answer["decision"]).caller == served.project.actor


def test_an_instance_is_answered_with_its_figures(served: Served) -> None:
    answer = served.decide("plan", instance=INSTANCE, key="monday").json()
    assert (answer["status"], answer["outputs"], answer["objective"], answer["version"]) == ("feasible", {"taken": [2, 1]}, 13.0, "plan@1")
    assert [each["objective"] for each in answer["incumbents"]] == [8.0, 13.0]
    entry = logged(served, answer["decision"], "plan")
    assert (entry.inputs, entry.keys, entry.result["objective"]) == (INSTANCE, ["monday"], 13.0)


@pytest.mark.parametrize(("mood", "why"), [("die", "ended with exit code 3"), ("heavy", "breaks a rule: the bag holds it")])
def test_the_fallback_answers_when_the_model_fails_or_breaks_a_rule(served: Served, mood: str, why: str) -> None:
    answer = served.decide("plan", instance={**INSTANCE, "mood": mood}).json()
    assert (answer["version"], answer["outputs"]) == ("plan_fast@1", {"taken": [2, 1]})
    assert why in answer["degraded"]
    assert logged(served, answer["decision"], "plan").degraded == answer["degraded"]


def test_the_best_plan_so_far_is_the_answer_at_the_deadline(served: Served) -> None:
    answer = served.decide("plan", instance={**INSTANCE, "mood": "sleep"}).json()
    assert (answer["version"], answer["outputs"], answer["objective"]) == ("plan@1", {"taken": [2]}, 8.0)


def test_a_model_that_fails_is_a_502_with_the_line_and_is_in_the_log(served: Served) -> None:
    before = len(decisions(served.project, "wait"))
    response = served.decide("wait", rows=[{**GOOD, "people": 13}])
    assert response.status_code == 502
    body = response.json()
    assert (body["code"], body["status"]) == ("model_failed", "error")
    assert "thirteen at the table" in body["error"]
    assert "Traceback" not in response.text
    entry = decisions(served.project, "wait")[before]
    assert (entry.status, entry.outputs, entry.inputs["people"]) == ("error", None, [13])
    assert served.decide("wait", rows=[GOOD]).status_code == 200
    nobody = served.decide("plan", instance={**INSTANCE, "mood": "die", "everyone_fails": True})
    assert nobody.status_code == 502
    assert "plan@1 failed" in nobody.json()["error"]
    assert "plan_fast@1 failed" in nobody.json()["error"]


def test_violations_are_told_with_the_answer(served: Served) -> None:
    answer = served.decide("wait", rows=[GOOD, {**GOOD, "people": 500}]).json()
    assert answer["outputs"][1] == pytest.approx(1000.5)
    assert answer["violations"] == [{"rule": "no wait is so long", "where": "row 1", "amount": pytest.approx(0.5), "message": ""}]
    frame = log.to_frame([logged(served, answer["decision"])])
    assert frame["violations"].to_list() == [0, 1]


def test_a_batch_is_shared_between_champion_and_canary_by_key(restored: Served) -> None:
    release(restored.project, "wait", version="2", share=0.3, force=True, reason="trial")
    restored.server.deciders.refresh()
    rows = [{**GOOD, "id": f"key-{index}"} for index in range(60)]
    answer = restored.decide("wait", rows=rows).json()
    assert [part["arm"] for part in answer["parts"]] == ["champion", "canary"]
    assert sorted(row for part in answer["parts"] for row in part["rows"]) == list(range(60))
    for part in answer["parts"]:
        expected = 20.5 if part["version"] == "wait@1" else 70.0
        assert [answer["outputs"][row] for row in part["rows"]] == pytest.approx([expected] * len(part["rows"]))
        entry = logged(restored, part["decision"])
        assert (entry.version, entry.arm, entry.propensity) == (part["version"], part["arm"], part["propensity"])
        assert entry.keys == [f"key-{row}" for row in part["rows"]]
        assert [answer["ids"][row] for row in part["rows"]] == [f"{part['decision']}-{place}" for place in range(len(part["rows"]))]
    again = restored.decide("wait", rows=rows).json()
    assert [part["rows"] for part in again["parts"]] == [part["rows"] for part in answer["parts"]]


def test_a_repair_is_applied_before_the_model_and_the_log_keeps_what_was_sent(restored: Served) -> None:
    repair = Repair("temp", "temp * 9.0 / 5.0 + 32.0", "(temp - 32.0) * 5.0 / 9.0", since=NOW)
    set_repairs(restored.project, "wait", [repair], "the sensor sends °C")
    restored.server.deciders.refresh()
    answer = restored.decide("wait", rows=[{**GOOD, "temp": 10.0}]).json()
    assert answer["outputs"] == [pytest.approx(20.5)]
    assert logged(restored, answer["decision"]).inputs["temp"] == [10.0]


def test_a_shadow_answers_unseen(restored: Served) -> None:
    change(restored.project, "wait", "shadowed", lambda now: routing.shadow(now, "wait", ["wait@2"], time=NOW), "look first")
    restored.server.deciders.refresh()
    answer = restored.decide("wait", rows=[GOOD]).json()
    assert answer["outputs"] == [pytest.approx(20.5)]
    until = time.monotonic() + 5
    shadows: list[Decision] = []
    while not shadows and time.monotonic() < until:
        shadows = [log.decode_decision(frame.data) for frame in restored.project.store.blocks.scan("shadows/wait")]
        time.sleep(0.02)
    assert [(each.id, each.version, each.arm, each.outputs) for each in shadows] == [(answer["decision"], "wait@2", "shadow", {"output": [pytest.approx(70.0)]})]


def test_releases_change_under_load_and_no_request_fails(restored: Served) -> None:
    """Another process releases (here: the store alone is written); the server follows within a second."""
    seen: list[tuple[int, str]] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(base_url=restored.server.url, timeout=30) as client:
            count = 0
            while not stop.is_set():
                count += 1
                response = client.post("/v1/models/wait/decide", json={"rows": [{**GOOD, "id": f"{number}-{count}"}]})
                seen.append((response.status_code, response.json().get("version", response.text)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()

    def met(version: str, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if seen and seen[-1][1] == version:
                return True
            time.sleep(0.01)
        return False

    try:
        for _ in range(2):
            change(restored.project, "wait", "released", lambda now: routing.start(now, "wait", "wait@2", time=NOW), "")
            assert met("wait@2", 10)
            change(restored.project, "wait", "rolled back", lambda now: routing.roll_back(now, "wait", time=NOW), "")
            assert met("wait@1", 10)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {code for code, _ in seen} == {200}
    assert {version for _, version in seen} == {"wait@1", "wait@2"}


def test_a_model_is_released_over_http_and_answers_at_once(restored: Served) -> None:
    body = {"model": "wait", "version": "2", "share": 1.0, "force": True, "reason": "over HTTP"}
    assert restored.http.post("/v1/release", json=body).json()["arms"] == [{"version": "wait@2", "role": "champion", "share": 1.0}]
    assert restored.decide("wait", rows=[GOOD]).json()["version"] == "wait@2"
    rolled = restored.http.post("/v1/release", json={"model": "wait", "roll_back": True})
    assert rolled.status_code == 200
    assert restored.decide("wait", rows=[GOOD]).json()["version"] == "wait@1"
    again = restored.http.post("/v1/release", json={"model": "wait", "roll_back": True})
    assert (again.status_code, again.json()["code"]) == (400, "refused")
    entries = restored.http.get("/v1/log", params={"subject": "wait"}).json()["entries"]
    assert "over HTTP" in [each["reason"] for each in entries]


def test_what_is_served_is_described_exactly(served: Served) -> None:
    document = served.http.get("/openapi.json").json()
    schema = document["paths"]["/v1/models/wait/decide"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    row = schema["properties"]["rows"]["anyOf"][0]["items"]
    assert row["required"] == ["people", "desk"]
    assert row["properties"]["people"] == {"type": "integer", "minimum": 0, "maximum": 500}
    assert row["properties"]["desk"]["enum"] == ["A", "B", "C"]
    assert row["properties"]["temp"] == {"type": ["number", "null"], "minimum": -30, "maximum": 120, "description": "in °F"}
    assert set(row["properties"]) == {"people", "desk", "temp", "id"}
    for name in ("wait", "plan"):
        example = document["paths"][f"/v1/models/{name}/decide"]["post"]["requestBody"]["content"]["application/json"]["example"]
        assert served.server.deciders.models[name].inputs.read(msgspec.json.encode(example)).rows == 1
    models = {each["name"]: each for each in served.http.get("/v1/models").json()["models"]}
    assert (models["wait"]["champion"], models["wait"]["kind"], models["plan"]["kind"]) == ("wait@1", "estimator", "heuristic")
    one = served.http.get("/v1/models/wait").json()
    assert [each["ref"] for each in one["versions"]] == ["wait@2", "wait@1"]
    assert [each["name"] for each in one["inputs"]["fields"]] == ["people", "desk", "temp"]


def test_who_may_not_pass_is_refused_at_the_door(served: Served) -> None:
    def status(method: str = "GET", path: str = "/healthz", **headers: str) -> int:
        return served.http.request(method, path, headers=headers).status_code

    assert status() == 200
    assert status(host="localhost") == 200
    assert status(host="evil.example") == 421
    assert status(host="127.0.0.1.evil.example:7070") == 421
    assert status(origin=served.server.url) == 200
    assert status(origin="http://127.0.0.1:1") == 403
    assert status(origin="http://localhost:7070") == 403
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
        assert status(method, origin="https://evil.example") == 403
    assert status(origin="null") == 403
    response = served.decide("wait", rows=[GOOD])
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_body_that_is_too_large_is_refused_whether_or_not_it_says_so(served: Served) -> None:
    large = b"x" * ((64 << 20) + 1)
    assert served.http.post("/v1/models/wait/decide", content=large).status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(65):
            yield b"x" * (1 << 20)

    for path in ("/v1/models/wait/decide", "/v1/check"):
        try:
            assert served.http.post(path, content=chunks()).status_code == 413
        except httpx.WriteError:  # the server answered and closed while we were still sending
            assert served.http.get("/healthz").status_code == 200


def test_a_token_is_asked_for_on_every_route_but_health() -> None:
    door = Door(token="sesame")
    host = {b"host": "localhost"}
    assert refuse("/healthz", host, door) is None
    for header, passes in [("Bearer sesame", True), ("Basic OnNlc2FtZQ==", True), ("Bearer other", False), ("Basic !!", False), ("sesame", False), ("", False)]:
        refusal = refuse("/v1/status", {**host, b"authorization": header}, door)
        assert (refusal is None) is passes
        assert refusal is None or refusal[0] == 401
    behind = Door(hosts=(), token="sesame")
    named = {b"host": "palan.example", b"authorization": "Bearer sesame"}
    assert refuse("/", named, behind) is None
    assert refuse("/", {**named, b"origin": "https://palan.example"}, behind) is None
    other = refuse("/", {**named, b"origin": "https://evil.example"}, behind)
    assert other is not None
    assert other[0] == 403


def test_an_address_that_others_reach_needs_a_token_and_a_taken_port_is_said(served: Served) -> None:
    with pytest.raises(PalanError, match="needs a token") as caught, serving(served.project, "0.0.0.0", 0, token=""):
        pass
    assert "PALAN_TOKEN" in caught.value.hint
    port = int(served.server.url.rpartition(":")[2])
    with pytest.raises(PalanError, match=f"port {port} is taken"), serving(served.project, port=port):
        pass
    with pytest.raises(PalanError, match="no address of this machine"), serving(served.project, "127.0.0.256", 0, token="x"):
        pass


def test_a_model_that_is_not_released_says_how_to_release_it(tmp_path: Path) -> None:
    project = make(tmp_path / "queue")
    with pytest.raises(NotFound, match="wait is not released"):
        decide(project, "wait", [GOOD])
    with pytest.raises(NotFound, match='no model "wiat"') as caught:
        decide(project, "wiat", [GOOD])
    assert "wait" in caught.value.hint


def test_every_page_is_at_its_address(served: Served) -> None:
    job = served.http.post("/v1/models/plan/jobs", json={"instance": INSTANCE}).json()["id"]
    served.decide("wait", rows=[GOOD])
    for path, says in [("/", "queue"), ("/models/wait", "wait@1"), ("/models/plan", "plan@1"), ("/ledger", "released"), ("/jobs", "plan"), (f"/jobs/{job}", "plan@1")]:
        page = served.http.get(path)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8"), page.text
        assert says in page.text, path
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        for asset in re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text):
            assert served.http.get(asset).status_code == 200
    for path, code in [("/models/wiat", 404), ("/alarms/none", 404), ("/jobs/none", 404), ("/ledger?page=x", 422), ("/nowhere", 404), ("/static/none.css", 404), ("/ui/explode/wait", 404), ("/ui/approve/none", 404)]:
        page = served.http.get(path)
        assert page.status_code == code, path
        assert "Traceback" not in page.text


def test_a_form_asks_first_and_only_this_servers_own_form_is_obeyed(restored: Served) -> None:
    release(restored.project, "wait", version="2", share=1.0, force=True, reason="to be taken back")
    question = restored.http.get("/ui/rollback/wait")
    assert "wait@1" in question.text
    csrf = re.search(r'name="csrf" value="([^"]+)"', question.text)
    assert csrf
    forged = restored.http.post("/ui/rollback/wait", data={"csrf": "guess", "reason": "x"})
    assert forged.status_code == 409
    elsewhere = restored.http.post("/ui/rollback/wait", data={"csrf": csrf[1]}, headers={"origin": "https://evil.example"})
    assert elsewhere.status_code == 403
    assert restored.http.get("/v1/models/wait").json()["release"]["arms"][0]["version"] == "wait@2"
    done = restored.http.post("/ui/rollback/wait", data={"csrf": csrf[1], "reason": "it waits too long"})
    assert (done.status_code, done.headers["location"]) == (303, "/models/wait")
    assert restored.decide("wait", rows=[GOOD]).json()["version"] == "wait@1"
    assert restored.http.get("/v1/log", params={"subject": "wait"}).json()["entries"][-1]["reason"] == "it waits too long"
    assert restored.http.post("/ui/rollback/wait", data={"csrf": csrf[1]}).status_code == 409


SERVE = """
import sys
from palan.flows.project import open_project
from palan.flows.serve import serve
serve(open_project(sys.argv[1]), port=0, ready=lambda server: print(server.url, flush=True))
"""


def test_sigterm_lets_requests_end_and_leaves_no_process(served: Served) -> None:
    with subprocess.Popen([sys.executable, "-c", SERVE, str(served.project.root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout
        url = server.stdout.readline().strip()
        answers: list[httpx.Response] = []
        slow = threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/v1/models/plan/decide", json={"instance": {**INSTANCE, "mood": "sleep"}}, timeout=30)))
        assert httpx.post(f"{url}/v1/models/wait/decide", json={"rows": [GOOD]}, timeout=30).status_code == 200
        slow.start()
        time.sleep(0.5)
        templates = children(server.pid)
        workers = [pid for template in templates for pid in children(template)]
        server.send_signal(signal.SIGTERM)
        slow.join()
        errors = server.communicate(timeout=30)[1]
    assert answers[0].json()["outputs"] == {"taken": [2]}
    assert server.returncode == 0, errors
    assert "Traceback" not in errors
    assert len(workers) == 3
    assert all(gone(pid) for pid in (*workers, *templates))


def test_a_version_that_cannot_be_opened_keeps_the_others_from_nothing(tmp_path: Path) -> None:
    project = make(tmp_path / "queue", "plan", "plan_fast")
    code = find_version(project, "plan@1").manifest["code"]["plan.py"]
    shutil.rmtree(project.folder / "cache")
    blob = next(path for path in (project.folder / "blobs").rglob(code))
    whole = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(whole.replace(b"Fill a bag", b"Burn a bag"))
    with serving(project, port=0) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        response = client.post("/v1/models/plan/decide", json={"instance": INSTANCE})
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert "cannot be served" in response.json()["error"]
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/healthz").status_code == 200
        blob.write_bytes(whole)
        server.deciders.refresh()
        assert client.post("/v1/models/plan/decide", json={"instance": INSTANCE}).status_code == 200
        assert client.get("/v2/health/ready").json() == {"ready": True}


def test_a_person_rolls_back_in_a_real_browser(restored: Served, chromium: Any) -> None:
    release(restored.project, "wait", version="2", share=1.0, force=True, reason="to be taken back by hand")
    restored.server.deciders.refresh()
    page = chromium.new_page(java_script_enabled=False)
    try:
        page.goto(f"{restored.server.url}/models/wait")
        page.get_by_role("link", name=re.compile("Roll back")).first.click()
        page.get_by_label("Reason").fill("seen on the page")
        page.get_by_role("button", name="Roll back").click()
        assert page.url == f"{restored.server.url}/models/wait"
        assert "seen on the page" in page.content()
    finally:
        page.close()
    assert restored.decide("wait", rows=[GOOD]).json()["version"] == "wait@1"
