"""Runs are tracked on another machine: its processes are killed, and so is the server that they are sent to."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

from crash.report import Found
from palan.flows.fold import fold
from palan.flows.runs import curves, run_page, search
from palan.flows.send import send
from palan.flows.verify import verify
from test_track_remote import Machines

CLIENT = """
import palan
run = palan.start("routes")
print(run.id, flush=True)
step = 0
while True:
    for _ in range(50):
        run.log(loss=float(step), twice=2.0 * step)
        step += 1
    run.artifact(str(step).encode(), f"{step}.txt")
    print(step, flush=True)
"""


def kills_of_remote(root: Path, seed: int, count: int) -> Found:
    """Kill so many clients, four at a time, and the server before most of them."""
    dice, found = random.Random(seed), Found()
    machines = Machines(root)
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(machines.spool.parent)
    server = machines.up()
    told: dict[str, int] = {}
    try:
        while found.blows < count:
            clients = [machines.python(CLIENT) for _ in range(4)]
            ids = [client.stdout.readline().strip() for client in clients if client.stdout]
            time.sleep(dice.uniform(0.0, 1.0))
            if dice.random() < 0.7:
                server.kill()
                server.wait()
                found.blows += 1
            time.sleep(dice.uniform(0.0, 0.5))
            for id, client in zip(ids, clients, strict=True):
                client.kill()
                steps = client.communicate()[0].split()
                told[id] = int(steps[-1]) if steps else 0
                found.blows += 1
                time.sleep(dice.uniform(0.0, 0.2))
                if server.poll() is not None and dice.random() < 0.5:
                    server = machines.up()
            if server.poll() is not None:
                server = machines.up()
        waiting = [each for each in send() if each["waiting"]]
        found.lost += [f"it was never sent: {each}" for each in waiting]
        found.lost += missing(machines, told)
        found.acknowledged({"run": len(told), "point": sum(told.values()), "file": sum(told.values()) // 50})
    finally:
        os.environ.pop("XDG_STATE_HOME") if before is None else os.environ.update(XDG_STATE_HOME=before)
        ended(machines.processes)
    return found


def missing(machines: Machines, told: dict[str, int]) -> list[str]:
    project, lost = machines.project, list[str]()
    fold(project)
    for id, least in told.items():
        by_metric = {metric: curves(project, [id], metric, points=10**7)[0] for metric in ("loss", "twice")}
        for metric, factor in (("loss", 1.0), ("twice", 2.0)):
            values = by_metric[metric]["values"]
            if list(values) != [factor * step for step in range(len(values))] or len(values) < least:
                lost.append(f"of {least} points of {metric} of {id} there are {len(values)}, or others")
        files = {each["path"]: each["blob"] for each in run_page(project, id)["artifacts"]}
        for step in range(50, least + 1, 50):
            if f"{step}.txt" not in files or project.store.blobs.get(files[f"{step}.txt"]) != str(step).encode():
                lost.append(f"the file {step}.txt of {id} is gone")
    lost += [f"{each['run']} is told as {each['status']}" for each in search(project, limit=10_000)["runs"] if each["status"] != "killed"]
    return lost + [f"verify: {each['what']}" for each in verify(project)["findings"]]


def ended(processes: list[subprocess.Popen[str]]) -> None:
    for each in processes:
        if each.poll() is None:
            each.kill()
        each.communicate()
