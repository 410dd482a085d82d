"""A long solve is submitted, watched, stopped with its best answer kept, and survives the process that works on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from palan.cli import main
from palan.core import utcnow
from palan.decisions.nouns import Job
from palan.errors import Conflict, NotFound, PalanError
from palan.flows import jobs
from palan.flows.history import decisions
from palan.flows.jobs import Runner, submit
from palan.flows.journal import MOST
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
    long = {**INSTANCE, "values": [1.0] * 1000, "weights": [1] * 1000}  # too long for the job itself
    bad, good = (submit(project, "plan", instance={**long, "room": room}) for room in (4, 5))
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


@pytest.fixture(params=["sqlite", "postgres"])
def project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """The queue on both databases, for the processes that a test starts as well."""
    if request.param == "postgres":
        monkeypatch.setenv("PALAN_STORE", request.getfixturevalue("postgres").of(tmp_path))
    made = make(tmp_path / "queue", "plan")
    yield made
    made.store.records.close()


def limited(project: Project, limits: str) -> Project:
    """Open the project again with other limits on the jobs of plan."""
    file = project.root / "palan.toml"
    file.write_text(file.read_text(encoding="utf-8") + f"\n[models.plan.jobs]\n{limits}\n", encoding="utf-8")
    return open_project(project.root)


@contextmanager
def worker(project: Project) -> Iterator[subprocess.Popen[bytes]]:
    """Work jobs in another process, which is killed at the end, also one that stands still."""
    with subprocess.Popen([sys.executable, "-c", WORK, str(project.root)], stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(project: Project, seconds: float = 30) -> list[Job]:
    until = time.monotonic() + seconds
    while project.store.records.find(Job, fate=("queued", "running"), limit=1):
        assert time.monotonic() < until, [each.fate for each in project.store.records.find(Job)]
        time.sleep(0.02)
    return project.store.records.find(Job)


def test_of_many_quick_jobs_a_killed_process_loses_none_and_none_is_answered_twice(project: Project) -> None:
    made = [submit(project, "plan", instance={**INSTANCE, "room": 4 + number % 20})["id"] for number in range(150)]
    with worker(project) as first, worker(project) as second:
        while len(project.store.records.find(Job, fate="done")) < 20:
            time.sleep(0.005)
        first.send_signal(signal.SIGKILL)
        found = ended(project)
        second.kill()
    assert [each.id for each in found] == sorted(made) and {each.fate for each in found} == {"done"}
    logged = [each.id for each in decisions(project, "plan")]
    assert len(logged) == len(set(logged)) == 150 and {each.decision for each in found} == set(logged)


def test_a_process_that_was_stopped_and_thaws_answers_nothing_that_another_took_over(project: Project) -> None:
    made = submit(project, "plan", instance=SLOW, time_limit=60.0)["id"]
    with worker(project) as frozen:
        wait_for(project, made, "running")
        frozen.send_signal(signal.SIGSTOP)
        held = project.store.records.find(Job, id=made)[0].holder
        with worker(project) as second:
            until = time.monotonic() + 60  # PostgreSQL ends a transaction in which somebody was frozen after 20 s
            while project.store.records.find(Job, id=made)[0].holder in ("", held):
                assert time.monotonic() < until
                time.sleep(0.02)
            frozen.send_signal(signal.SIGCONT)
            time.sleep(0.5)  # long enough for the thawed one to hear of it, and to write, if it would
            jobs.stop(project, made)
            (found,) = ended(project)
            second.kill()
        frozen.kill()
    assert found.died == 1 and project.store.records.find(Job, id=made) == [found]
    assert [each.id for each in decisions(project, "plan")] == [made]


def test_a_job_that_was_answered_by_a_process_that_died_before_it_said_so_is_done(project: Project) -> None:
    made = submit(project, "plan", instance=INSTANCE)["id"]
    runner = Runner(project)
    runner.start()
    wait_for(project, made, "done")
    runner.close()
    (done,) = project.store.records.find(Job)
    project.store.records.put(replace(done, fate="running", ended=None, status="", result={}, decision="", holder="gone", expires=utcnow()))
    runner = Runner(project)
    runner.start()
    found = wait_for(project, made, "done")
    runner.close()
    assert (found["outputs"], found["objective"], found["decision"]) == ({"taken": [2, 1]}, 13.0, made)
    assert len(decisions(project, "plan")) == 1


def test_a_job_that_takes_its_process_with_it_is_given_up(project: Project) -> None:
    bad, good = (submit(project, "plan", instance=INSTANCE)["id"] for _ in range(2))
    job = project.store.records.find(Job, id=bad)[0]
    project.store.records.put(replace(job, fate="running", holder="gone", expires=utcnow() - timedelta(seconds=1), started=utcnow(), died=MOST - 1))
    runner = Runner(project)
    runner.start()
    assert wait_for(project, bad, "failed")["reason"] == "given up: 5 times in a row its process ended without a word"
    wait_for(project, good, "done")
    runner.close()


def test_a_job_is_stopped_by_another_process_than_the_one_that_works_on_it(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    made = submit(project, "plan", instance=SLOW, time_limit=60.0)["id"]
    with worker(project) as other:
        wait_for(project, made, "running")
        while not jobs.incumbents(project, made):
            time.sleep(0.02)
        with pytest.raises(SystemExit) as left:
            main(["--project", str(project.root), "jobs", "stop", made, "--reason", "good enough"])
        assert left.value.code == 0 and capsys.readouterr().out == f"job {made} is asked to stop\n"
        found = wait_for(project, made, "cancelled")
        other.kill()
    assert found["outputs"] == {"taken": [2]} and found["reason"].endswith("asked to stop: good enough")


def test_the_highest_priority_goes_first_and_of_equal_ones_the_oldest(tmp_path: Path) -> None:
    project = make(tmp_path / "queue", "plan")
    made = {name: submit(project, "plan", instance={**INSTANCE, "room": room}, priority=priority)["id"] for room, (name, priority) in enumerate([("old", 0), ("last", -1), ("new", 0), ("urgent", 5)], 4)}
    runner = Runner(project)
    runner.start()
    ended(project)
    runner.close()
    assert [each.id for each in decisions(project, "plan")] == [made[name] for name in ("urgent", "old", "new", "last")]
    with pytest.raises(PalanError, match="priority is 5000"):
        submit(project, "plan", instance=INSTANCE, priority=5000)


def test_limits_hold_for_a_process_a_queue_and_all_together(project: Project) -> None:
    """Two processes of three threads: four at once in all, and one of each queue."""
    opened = limited(project, "at_once = 4\nper_process = 3\nper_queue = 1")
    for number in range(7):
        submit(opened, "plan", instance={**SLOW, "room": 4 + number}, time_limit=60.0, queue=["lyon", "nice", ""][number % 3])
    runners = [Runner(opened) for _ in range(2)]
    for runner in runners:
        runner.start()
    seen: list[list[Job]] = []
    until = time.monotonic() + 20
    while jobs_left := opened.store.records.find(Job, fate=("queued", "running")):
        assert time.monotonic() < until
        running = [each for each in jobs_left if each.fate == "running"]
        seen.append(running)
        free = [each for each in jobs_left if not each.queue]
        if len(running) == min(4, len(free) + len({each.queue for each in jobs_left if each.queue})):
            for each in running:  # each is at work until it is asked to stop
                if "asked to stop" not in each.reason:
                    jobs.stop(opened, each.id)
        time.sleep(0.02)
    for runner in runners:
        runner.close()
    assert max(len(running) for running in seen) == 4
    assert all(len([each for each in running if each.queue == name]) <= 1 for running in seen for name in ("lyon", "nice"))
    assert all(len([each for each in running if each.holder == holder]) <= 3 for running in seen for holder in {each.holder for each in running})


def test_jobs_are_submitted_worked_and_shown_at_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = make(tmp_path / "queue", "plan")

    def palan(*words: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(["--project", str(project.root), *words])
        printed = capsys.readouterr()
        assert left.value.code == 0, printed.err
        return printed.out

    assert palan("jobs") == "no job was submitted yet\nnext: palan jobs submit MODEL FILE\n"
    out = palan("jobs", "submit", "plan", str(project.root / "instances" / "0.json"), "--priority", "2", "--queue", "lyon", "--time-limit", "5s")
    id = out.split()[1]
    assert out == f"job {id} is queued for plan@1\nnext: palan jobs show {id}\n"
    assert palan("jobs", "work", "--until-empty") == "1 job worked\n"
    shown = palan("jobs", "show", id)
    assert "queue: lyon" in shown and "priority: 2" in shown and "13" in shown
    assert id in palan("jobs", "list", "plan", "--json")
