"""A long solve is submitted, watched, stopped with its best answer kept, and survives the process that works on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from palan.decisions.nouns import Job
from palan.errors import Conflict, NotFound
from palan.flows import jobs
from palan.flows.history import decisions
from palan.flows.jobs import Runner, submit
from palan.flows.project import Project, open_project
from queue_project import INSTANCE, Served, make

pytest_plugins = ["queue_server"]

SLOW = {**INSTANCE, "mood": "sleep"}


def wait_for(project: Project, id: str, *fates: str, seconds: float = 20) -> dict[str, Any]:
    until = time.monotonic() + seconds
    while (found := jobs.job(project, id))["fate"] not in fates:
        assert time.monotonic() < until, f"job is {found['fate']}: {found['reason']}"
        time.sleep(0.02)
    return found


def test_a_job_is_solved_with_its_incumbents_and_logged_as_a_decision(served: Served) -> None:
    response = served.http.post("/v1/models/plan/jobs", json={"instance": INSTANCE})
    assert response.status_code == 202
    made = response.json()
    assert (made["fate"], made["version"], made["about"]) == ("queued", "plan@1", "blue, 3 values, 3 weights")
    found = wait_for(served.project, made["id"], "done")
    assert (found["status"], found["objective"], found["outputs"]) == ("feasible", 13.0, {"taken": [2, 1]})
    assert [each["objective"] for each in found["incumbents"]] == [8.0, 13.0]
    entry = next(each for each in decisions(served.project, "plan") if each.id == found["decision"])
    assert (entry.inputs, entry.outputs, entry.caller) == (INSTANCE, {"taken": [2, 1]}, f"job {made['id']}")
    assert served.http.get(f"/v1/jobs/{made['id']}").json()["outputs"] == {"taken": [2, 1]}
    assert made["id"] in [each["id"] for each in served.http.get("/v1/jobs", params={"model": "plan"}).json()["jobs"]]


def test_submitting_twice_under_one_key_makes_one_job(served: Served) -> None:
    def send(instance: dict[str, Any], key: str) -> Any:
        return served.http.post("/v1/models/plan/jobs", json={"instance": instance}, headers={"Idempotency-Key": key})

    first, second = send(INSTANCE, "monday").json(), send(INSTANCE, "monday").json()
    assert first["id"] == second["id"]
    assert send(INSTANCE, "tuesday").json()["id"] != first["id"]
    clash = send({**INSTANCE, "room": 9}, "monday")
    assert (clash.status_code, clash.json()["code"]) == (409, "conflict")


def test_stopping_keeps_the_best_answer_so_far(served: Served) -> None:
    made = served.http.post("/v1/models/plan/jobs?time_limit=60", json={"instance": SLOW}).json()
    running = wait_for(served.project, made["id"], "running")
    assert running["time_limit"] == 60
    while not jobs.incumbents(served.project, made["id"]):
        time.sleep(0.02)
    began = time.monotonic()
    assert served.http.post(f"/v1/jobs/{made['id']}/stop", params={"reason": "good enough"}).status_code == 200
    found = wait_for(served.project, made["id"], "cancelled")
    assert time.monotonic() - began < 5
    assert (found["outputs"], found["objective"]) == ({"taken": [2]}, 8.0)
    assert found["reason"].endswith("asked to stop: good enough")
    again = served.http.post(f"/v1/jobs/{made['id']}/stop")
    assert (again.status_code, again.json()["code"]) == (409, "conflict")


def test_a_job_whose_model_dies_fails_with_the_reason(served: Served) -> None:
    made = served.http.post("/v1/models/plan/jobs", json={"instance": {**INSTANCE, "mood": "die"}}).json()
    found = wait_for(served.project, made["id"], "failed")
    assert "exit code 3" in found["reason"]
    assert (found["outputs"], found["decision"]) == (None, "")


def test_a_job_that_cannot_be_begun_fails_and_holds_up_no_other(tmp_path: Path) -> None:
    project = make(tmp_path / "queue", "plan")
    bad, good = (submit(project, "plan", instance={**INSTANCE, "room": room}) for room in (4, 5))
    request = project.store.records.find(Job, id=bad["id"])[0].request
    blob = next((project.folder / "blobs").rglob(request))
    blob.chmod(0o644)
    blob.write_bytes(b"{}")
    runner = Runner(project)
    runner.start()
    try:
        wait_for(project, good["id"], "done")
        found = project.store.records.find(Job, id=bad["id"])[0]
        assert (found.fate, request in found.reason) == ("failed", True)
    finally:
        runner.close()


def test_what_cannot_be_a_job_is_refused(served: Served) -> None:
    post = served.http.post
    wrong = post("/v1/models/plan/jobs", json={"instance": {**INSTANCE, "values": ["x"]}})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "instance.values[0]")
    assert post("/v1/models/wait/jobs", json={"rows": []}).status_code == 400
    assert post("/v1/models/nobody/jobs", json={"instance": {}}).status_code == 404
    assert post("/v1/models/plan/jobs?time_limit=soon", json={"instance": INSTANCE}).status_code == 422
    assert post("/v1/models/plan/jobs?time_limit=-1", json={"instance": INSTANCE}).status_code == 400
    assert served.http.get("/v1/jobs/none").status_code == 404
    assert served.http.get("/v1/jobs?limit=many").json()["field"] == "limit"


def test_a_queued_job_is_stopped_at_once(tmp_path: Path) -> None:
    project = make(tmp_path / "queue", "plan")
    made = submit(project, "plan", instance=INSTANCE)
    assert jobs.stop(project, made["id"])["fate"] == "cancelled"
    with pytest.raises(Conflict, match="cancelled already"):
        jobs.stop(project, made["id"])
    with pytest.raises(NotFound):
        jobs.stop(project, "none")


WORK = """
import sys, time
from palan.flows.jobs import Runner
from palan.flows.project import open_project
runner = Runner(open_project(sys.argv[1]), lease=1.0)
runner.start()
print("working", flush=True)
time.sleep(60)
"""


def test_a_killed_process_loses_no_job(tmp_path: Path) -> None:
    project = make(tmp_path / "queue", "plan")
    made = submit(project, "plan", instance=SLOW, time_limit=60.0)
    with subprocess.Popen([sys.executable, "-c", WORK, str(project.root)], stdout=subprocess.PIPE, env=os.environ) as worker:
        wait_for(project, made["id"], "running")
        while not jobs.incumbents(project, made["id"]):
            time.sleep(0.02)
        worker.send_signal(signal.SIGKILL)
    dead = jobs.job(project, made["id"])
    assert dead["fate"] == "running"
    other = open_project(project.root)
    runner = Runner(other, lease=1.0)
    runner.start()
    try:
        until = time.monotonic() + 15
        # The successor queues it again, and its own attempt begins with no incumbent of the dead one.
        while (found := jobs.job(project, made["id"]))["started"] in (None, dead["started"]) or not found["incumbents"]:
            assert time.monotonic() < until
            time.sleep(0.05)
        jobs.stop(project, made["id"])
        found = wait_for(project, made["id"], "cancelled")
        assert found["outputs"] == {"taken": [2]}
        assert len(found["incumbents"]) == 1
    finally:
        runner.close()


def test_a_runner_that_ends_in_good_order_puts_its_job_back(tmp_path: Path) -> None:
    project = make(tmp_path / "queue", "plan")
    made = submit(project, "plan", instance=SLOW, time_limit=60.0)
    runner = Runner(project)
    runner.start()
    wait_for(project, made["id"], "running")
    while not jobs.incumbents(project, made["id"]):
        time.sleep(0.02)
    runner.close()
    found = jobs.job(project, made["id"])
    assert (found["fate"], found["outputs"]) == ("queued", None)
