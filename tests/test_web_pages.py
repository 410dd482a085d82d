"""The web pages: somebody opens them in a browser, wide or narrow, and reads whether production is right."""

from __future__ import annotations

import math
import re
import socketserver
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest

from palan.core import stamp
from palan.http.guard import HEADERS
from palan.web import charts, pages, views

START = datetime(2013, 1, 1, 6, tzinfo=UTC)
NOW = datetime(2013, 9, 9, 6, tzinfo=UTC)


def at(days: float, start: datetime = START) -> str:
    return stamp(start + timedelta(days=days))


def frame(**change: Any) -> views.Frame:
    return {"project": "flights", "now": stamp(NOW), "simulated": True, "ledger_ok": True, "ledger_entries": 214, "open_alarms": 2, **change}  # type: ignore[typeddict-item]


def delay_loss(days: int = 251, threshold: float | None = 0.52) -> views.Loss:
    """A wavy year with a bad week at its end, as a delay model sees it."""
    values: list[float | None] = [0.42 + 0.05 * math.sin(day / 19) + 0.035 * math.sin(day * 2.399) + (0.13 if day > days - 9 else 0.0) for day in range(days)]
    values[40:43] = [None, None, None]
    return {
        "times": [at(day) for day in range(days)],
        "values": values,
        "low": [None if value is None else value - 0.025 for value in values],
        "high": [None if value is None else value + 0.025 for value in values],
        "threshold": threshold,
        "usual": None if threshold is None else 0.43,
        "unit": "log loss",
        "marks": [
            {"time": at(12), "kind": "release", "label": "delay@1"},
            {"time": at(96), "kind": "alarm", "label": "shift"},
            {"time": at(101), "kind": "canary", "label": "canary delay@2"},
            {"time": at(108), "kind": "release", "label": "delay@2"},
            {"time": at(181), "kind": "release", "label": "delay@3"},
            {"time": at(243), "kind": "fault", "label": "°C in temp"},
        ],
    }


def traffic(days: int = 28) -> views.Series:
    return {"times": [at(223 + day) for day in range(days)], "values": [880 + 60 * math.sin(day * 0.9) - (180 if day % 7 == 5 else 0) for day in range(days)]}


def quiet_loss(unit: str, level: float, threshold: float | None) -> views.Loss:
    return {"times": [at(195 + day * 7) for day in range(8)], "values": [level * (1 + 0.06 * math.sin(day * 1.7)) for day in range(8)], "threshold": threshold, "usual": level, "unit": unit, "marks": []}


NOTHING: views.Loss = {"times": [], "values": [], "threshold": None, "usual": None, "unit": "loss", "marks": []}


def line(name: str, kind: str, verdict: views.Verdict, why: str, **change: Any) -> views.ModelLine:
    return {
        "name": name,
        "kind": kind,
        "verdict": verdict,
        "why": why,
        "champion": f"{name}@1",
        "champion_since": at(12),
        "canary": None,
        "decisions": 21,
        "window": "7d",
        "degraded": 0,
        "violations": 0,
        "traffic": traffic(),
        "loss": NOTHING,
        "alarm": None,
        "notes": 0,
        "last": {"time": at(12), "text": f"released `{name}@1`", "actor": "ana"},
        "next": None,
        **change,
    }  # type: ignore[typeddict-item]


def delay() -> views.ModelLine:
    return line(
        "delay",
        "estimator",
        "wrong",
        "The weather feed has sent temp and dewp in °C since 1 Sep: its log loss is 0.11 above what is usual.",
        champion="delay@3",
        champion_since=at(181),
        canary={"version": "delay@4", "role": "canary", "share": 0.2, "until": at(255)},
        decisions=5934,
        loss={**delay_loss(), "times": delay_loss()["times"][-56:], "values": delay_loss()["values"][-56:], "low": [], "high": []},
        alarm="01k5v0alarm0delay0sept00001",
        last={"time": at(250.4), "text": "raised a page: data fault in temp, dewp", "actor": "watch"},
        next={
            "text": "Put temp and dewp back to °F for everything since 1 Sep",
            "reason": "Replayed on last week's outcomes it wins 0.104 log loss a decision (0.081 to 0.127). Retraining wins less and costs more.",
            "command": "palan react delay --approve",
            "actions": [{"do": "approve", "subject": "01k5v0remedy", "label": "Approve"}, {"do": "reject", "subject": "01k5v0remedy", "label": "Reject"}],
        },
    )


def entries() -> list[views.EntryLine]:
    said = [
        ("watch", "raised a page for", "delay", "temp and dewp look as if they came in °C since 2013-09-01"),
        ("tick", "tried remedies for", "delay", "7 remedies tried by replay; reworking the data wins 0.104 log loss a decision"),
        ("ana", "ingested", "weather@9", "weather-2013-09.csv: 2 138 rows, 34 to quarantine"),
        ("ana", "released", "delay@3", ""),
        ("tick", "rolled back", "delay", "the canary `delay@2` was 0.004 worse than its champion (0.001 to 0.007)"),
        ("ana", "built", "gates@1", "changed: gates.py:formulate"),
    ]
    return [
        {"seq": 214 - index, "time": at(250.5 - index * 0.6), "actor": actor, "verb": verb, "subject": subject, "reason": reason, "digest": f"{index:x}" * 64, "detail": {}}
        for index, (actor, verb, subject, reason) in enumerate(said)
    ]


def home() -> views.Home:
    return {
        "frame": frame(),
        "models": [
            delay(),
            line(
                "gates",
                "program",
                "attention",
                "Fog on 5 Sep doubled the departures that need a remote stand; the plans stay feasible.",
                decisions=63,
                degraded=2,
                loss=quiet_loss("minutes", 2340, 14_645),
                alarm="01k5v0alarm0gates",
                notes=2,
                next={"text": "Nothing", "reason": "No remedy surely wins anything: the shift is in the volume, the answers to it are right.", "command": "palan react gates --close", "actions": []},
            ),
            line("gates_fast", "heuristic", "right", "Its answers stay within 3.1 % of the program's.", decisions=2, loss=quiet_loss("minutes", 352, 470)),
            line("care", "rules", "right", "No gap, no overlap; 4 of 11 rows fired.", decisions=1207),
            line("hold", "policy", "learning", "9 windows of outcomes, 12 are needed to know what is usual.", decisions=412, loss=quiet_loss("minutes", 7.4, None)),
        ],
        "data": [
            {"name": "weather", "version": 9, "rows": 18_942, "added": 2138, "time": at(249), "quarantined": 34, "verdict": "attention", "why": "34 rows wait in quarantine: `dewp` is above `temp` + 1.", "command": "palan log weather"},
            {"name": "flights", "version": 9, "rows": 252_484, "added": 27_574, "time": at(249), "quarantined": 0, "verdict": "right", "why": "Every row holds.", "command": ""},
            {"name": "departures", "version": 9, "rows": 252_484, "added": 27_574, "time": at(249), "quarantined": 0, "verdict": "right", "why": "Made of flights, weather and planes.", "command": ""},
            {"name": "planes", "version": 1, "rows": 3322, "added": 0, "time": at(1), "quarantined": 0, "verdict": "right", "why": "Every row holds.", "command": ""},
        ],
        "ledger": entries()[:5],
        "registered": [
            {"name": "delay", "newest": "delay@2", "aliases": {"best": "delay@1", "<b>": "delay@2"}, "updated": at(249)},
            {"name": "a name with <b>", "newest": None, "aliases": {}, "updated": at(3)},
        ],
        "dead": [],
        "command": "palan init",
    }


def empty_home() -> views.Home:
    return {"frame": frame(project="new", simulated=False, ledger_ok=None, ledger_entries=0, open_alarms=0), "models": [], "registered": [], "data": [], "ledger": [], "dead": [], "command": "palan init --model estimator"}


def fresh_home() -> views.Home:
    """Declared, nothing done yet."""
    model = line(
        "pricing",
        "estimator",
        "not released",
        "No version was built yet.",
        champion=None,
        champion_since=None,
        decisions=0,
        traffic={"times": [], "values": []},
        last=None,
        next={"text": "Build it", "reason": "It needs `orders`, which came in today.", "command": "palan build pricing", "actions": []},
    )
    return {
        "frame": frame(project="shop", simulated=False, ledger_ok=True, ledger_entries=2, open_alarms=0),
        "models": [model],
        "data": [{"name": "orders", "version": None, "rows": 0, "added": 0, "time": None, "quarantined": 0, "verdict": "empty", "why": "Nothing came in yet.", "command": "palan ingest orders"}],
        "ledger": [],
        "registered": [],
        "dead": [],
        "command": "palan init",
    }


def crowded_home() -> views.Home:
    """Many models with names that nobody can break well, and a reason as long as a paragraph."""
    name = "expected_revenue_of_the_next_twelve_months_by_customer_segment"
    step: views.Step = {"text": f"Retrain `{name}`", "reason": "it wins a little; " * 20, "command": f"palan react {name} --approve --reason because", "actions": [{"do": "approve", "subject": name, "label": f"Approve {name}"}]}
    models = [line(f"{name}_{index}", "estimator", "attention", f"{name} is off. " * 4, loss=delay_loss(30), next=step, last={"time": at(index), "text": f"released {name}@{index}", "actor": "ana"}, decisions=10**9) for index in range(12)]
    dead: list[views.DeadStep] = [{"step": f"watch {name}_{index}", "why": "ModelFailed: no answer within 5 s " * 20, "attempts": 5, "command": f'palan retry "watch {name}_{index}"'} for index in range(2)]
    return {**home(), "frame": frame(project=name), "models": models, "dead": dead}


def gate(name: str, verdict: str, text: str, against: str = "", **figures: Any) -> views.GateLine:
    return {"gate": name, "verdict": verdict, "text": text, "against": against, "figures": figures}  # type: ignore[typeddict-item]


def versions() -> list[views.VersionLine]:
    told = [
        (4, "canary", 249, "retrained on the last 60 days, because of the shift in July", [gate("champion", "pass", "wins 0.009 log loss a decision (0.006 to 0.012) on 26 310 decisions; no origin is worse", "delay@3", low=0.006, high=0.012), gate("golden", "pass", "12 of 12 within their tolerance"), gate("latency", "pass", "p95 is 11 ms, 50 ms are allowed", p95_seconds=0.011)]),
        (3, "champion", 180, "retrained on everything until June", [gate("champion", "pass", "wins 0.021 log loss a decision (0.016 to 0.027)", "delay@2"), gate("golden", "pass", "12 of 12 within their tolerance"), gate("latency", "pass", "p95 is 12 ms, 50 ms are allowed")]),
        (2, "previous", 100, "changed: delay.py:Delay.fit", [gate("champion", "cannot tell", "between 0.003 worse and 0.004 better: 1 900 more decisions would tell", "delay@1"), gate("golden", "fail", "2 of 12 are off: a night flight to SEA was 0.31, is 0.48", "")]),
        (1, "", 12, "first version", []),
    ]
    return [
        {
            "ref": f"delay@{number}",
            "number": number,
            "id": f"{number}e4c1f09" * 8,
            "time": at(day),
            "role": role,
            "data": f"departures@{number * 2}",
            "params": {"learning_rate": 0.1, "iterations": 120},
            "metrics": {"log_loss": 0.4412 - number * 0.01, "auc": 0.7124, "fit_seconds": 1.42},
            "reason": reason,
            "gates": gates,
        }
        for number, role, day, reason, gates in told
    ]


def jobs_list() -> list[views.JobLine]:
    def job(index: int, fate: str, status: str, **change: Any) -> views.JobLine:
        base = {"id": f"01k5v0job{index:017d}", "model": "gates", "version": "gates@1", "fate": fate, "status": status, "time": at(250.9 - index * 0.2), "seconds": 3.2 + index, "objective": 4812.5 - index, "bound": 4790.0 - index, "gap": 0.00467, "about": f"EWR {1 + index} Sep 2013, 342 flights", "priority": 7 * index, "queue": "EWR" if index else ""}
        return {**base, **change}  # type: ignore[typeddict-item,return-value]

    return [
        job(0, "queued", "", seconds=None, objective=None, bound=None, gap=None),
        job(1, "running", "feasible"),
        job(2, "done", "optimal", bound=4810.5, gap=0.0),
        job(3, "failed", "error", objective=None, bound=None, gap=None, about=""),
        job(4, "cancelled", "cancelled"),
    ]


def model(**change: Any) -> views.ModelPage:
    decisions: list[views.DecisionLine] = [
        {
            "id": f"01k5v0dec{index:017d}-0",
            "time": at(250.99 - index / 300),
            "key": f"2013-09-0{1 + index % 8}-UA1{545 + index}-EWR-0515",
            "version": "delay@4" if index % 5 == 1 else "delay@3",
            "arm": "canary" if index % 5 == 1 else "champion",
            "status": "ok",
            "inputs": {"carrier": "UA", "origin": "EWR", "dest": "IAH", "hour": 5 + index, "temp": 21.4 + index, "dewp": 14.0, "precip": None, "seats": 149},
            "outputs": {"probability": 0.08 + index * 0.05},
            "outcome": None if index < 2 else bool(index % 3 == 0),
            "degraded": "delay@4 did not answer in 50 ms" if index == 3 else "",
            "violations": 1 if index == 4 else 0,
        }
        for index in range(9)
    ]
    page: views.ModelPage = {
        "frame": frame(),
        "model": {**delay(), "loss": delay_loss()},
        "about": "The probability that a flight leaves more than 15 minutes late.",
        "means": "the log loss of each decision in nats",
        "arms": [{"version": "delay@3", "role": "champion", "share": 0.8, "until": None}, {"version": "delay@4", "role": "canary", "share": 0.2, "until": at(255)}],
        "repairs": [{"column": "temp", "expression": "temp * 9 / 5 + 32", "since": at(243), "until": None, "reason": "the feed sends °C since 2013-09-01"}],
        "versions": versions(),
        "registered": [{"ref": "delay@2", "number": 2, "time": at(200), "aliases": ["best"], "stage": "Production", "run": "01k5v0alarm0delay0sept00001", "source": "mlflow-artifacts:/1/01k5v0alarm0delay0sept00001/artifacts/model", "description": "<i>by hand</i>"}],
        "releases": [
            {"epoch": 6, "time": at(249), "text": "`delay@4` answers 20% as a canary", "reason": "it passed 3 gates; judged on 13 Sep", "actor": "tick"},
            {"epoch": 5, "time": at(181), "text": "`delay@3` is champion", "reason": "its canary won 0.019 log loss a decision in 7 days", "actor": "tick"},
            {"epoch": 4, "time": at(108), "text": "rolled back to `delay@1`", "reason": "the canary lost", "actor": "tick"},
        ],
        "alarms": [
            {"id": "01k5v0alarm0delay0sept00001", "time": at(250.4), "since": at(243), "model": "delay", "lane": "page", "status": "open", "what": "Loss 0.55 against 0.44 since 1 Sep", "diagnosis": "data fault", "remedy": "rework the data, proposed"},
            {"id": "01k5v0alarm2", "time": at(180), "since": at(176), "model": "delay", "lane": "digest", "status": "closed", "what": "Summer: more storms, more late departures", "diagnosis": "input shift", "remedy": "retrained on everything, confirmed"},
        ],
        "decisions": decisions,
        "jobs": [],
        "signature": [
            {"name": "carrier", "type": "str", "rule": "", "unit": ""},
            {"name": "origin", "type": "str", "rule": "one of EWR, JFK, LGA", "unit": ""},
            {"name": "temp", "type": "float?", "rule": "-30 to 120", "unit": "°F"},
            {"name": "distance", "type": "int", "rule": "at least 0", "unit": "mi"},
        ],
        "shape": "rows",
        "curl": """curl -s http://127.0.0.1:7070/v1/models/delay/decide -H 'content-type: application/json' -d '{"rows": [{"carrier": "UA", "origin": "EWR", "temp": 71.0, "distance": 1400}]}'""",
        "infer": "curl -s http://127.0.0.1:7070/v2/models/delay/infer -H 'content-type: application/json' -d @request.json",
        "actions": [{"do": "rollback", "subject": "delay", "label": "Roll back to delay@2"}],
    }
    return {**page, **change}  # type: ignore[typeddict-item]


def registered() -> views.RegisteredPage:
    name = "expected_revenue_of_the_next_twelve_months_by_customer_segment"
    version: views.RegisteredVersion = {"ref": f"{name}@2", "number": 2, "time": at(200), "aliases": ["best", "<b>"], "stage": "", "run": "", "source": f"s3://bucket/{name}/{name}", "description": ""}
    of: views.RegisteredModel = {"name": name, "newest": f"{name}@2", "aliases": {"best": f"{name}@2"}, "updated": at(200), "description": "<script>", "tags": {"team": "<i>risk</i>"}, "versions": [version], "next": f"palan build {name}"}
    return {"frame": frame(), "model": of}


def bare_model() -> views.ModelPage:
    return model(model=fresh_home()["models"][0], arms=[], repairs=[], versions=[], registered=[], releases=[], alarms=[], decisions=[], jobs=jobs_list(), infer="", actions=[], about="", means="", shape="instance")


def candidate(name: str, action: str, gain: float | None, half: float, cost: float, verdict: str, chosen: bool = False) -> views.Candidate:
    low, high = (None, None) if gain is None else (gain - half, gain + half)
    return {"name": name, "action": action, "gain": gain, "low": low, "high": high, "cost": cost, "net_low": None if low is None else low - cost, "verdict": verdict, "chosen": chosen}


def alarm(**change: Any) -> views.AlarmPage:
    page: views.AlarmPage = {
        "frame": frame(),
        "id": "01k5v0alarm0delay0sept00001",
        "model": "delay",
        "time": at(250.4),
        "lane": "page",
        "status": "open",
        "since": at(243),
        "until": at(250),
        "what": "The weather feed has sent temp and dewp in °C since 1 Sep; `delay` loses 0.11 more per decision",
        "diagnosis": "data fault",
        "because": "`temp` and `dewp` moved together by what the step from °F to °C would move them, within one hour, while humidity and wind stayed. After the inverse both lie where they lay in August.",
        "columns": [
            {"column": "temp", "distance": 0.989, "threshold": 0.37, "changed": True, "text": "median 71.1 °F → 21.4"},
            {"column": "dewp", "distance": 0.87, "threshold": 0.41, "changed": True, "text": "median 62.1 °F → 16.2"},
            {"column": "visib", "distance": 0.08, "threshold": 0.29, "changed": False, "text": "median 10 mi → 10 mi"},
        ],
        "evidence": {"loss_before": 0.441, "loss_after": 0.552, "threshold": 0.518, "decisions": 5934, "shifted_part": 0.104, "concept_part": 0.007, "repair": "temp * 9 / 5 + 32", "confidence": 0.998},
        "loss": {**delay_loss(90), "times": [at(160 + day) for day in range(90)], "marks": [{"time": at(243), "kind": "fault", "label": "°C in temp"}, {"time": at(181), "kind": "release", "label": "delay@3"}]},
        "remedy": "01k5v0remedy",
        "remedy_status": "proposed",
        "candidates": [
            candidate("rework the data: temp and dewp back to °F", "rework data", 0.104, 0.023, 0.0, "surely better, costs nothing", True),
            candidate("retrain on the last 7 days", "retrain", 0.061, 0.031, 0.004, "better, by less"),
            candidate("retrain on the last 60 days", "retrain", 0.012, 0.019, 0.004, "cannot tell: the interval holds 0"),
            candidate("nothing", "nothing", 0.0, 0.0, 0.0, "what all others are measured against"),
            candidate("roll back to delay@2", "roll back", -0.018, 0.011, 0.0, "worse: it reads temp as well"),
            candidate("recalibrate", "recalibrate", None, 0.0, 0.002, "could not be tried: 131 outcomes, 500 are needed"),
        ],
        "choice": "rework the data: temp and dewp back to °F",
        "reason": "Putting the two columns right surely wins 0.081 log loss a decision and costs nothing; the best retraining surely wins 0.026 after its cost, and would have to be undone when the feed is right again.",
        "predicted": 0.104,
        "realised": None,
        "judged": "",
        "unit": "log loss",
        "next": delay()["next"],
        "history": entries()[:2],
    }
    return {**page, **change}  # type: ignore[typeddict-item]


def bare_alarm() -> views.AlarmPage:
    return alarm(lane="digest", columns=[], evidence={}, loss=NOTHING, remedy=None, remedy_status="", candidates=[], choice="", reason="", predicted=None, next=None, history=[])


def untried_alarm() -> views.AlarmPage:
    """A page that just opened."""
    return {**bare_alarm(), "lane": "page"}


def ledger(**change: Any) -> views.LedgerPage:
    page: views.LedgerPage = {"frame": frame(), "entries": entries() * 3, "breaks": [], "verified": stamp(NOW), "head": "ab" * 32, "subject": "", "subjects": ["care", "delay", "gates", "weather"], "page": 2, "pages": 9}
    numbered: list[views.EntryLine] = [{**entry, "seq": 214 - index, "time": at(250.5 - index * 0.3)} for index, entry in enumerate(page["entries"])]
    return {**page, "entries": numbered, **change}  # type: ignore[typeddict-item]


def incumbents() -> list[views.IncumbentLine]:
    found = [(0.11, 21_350.0, None), (0.34, 6210.0, 4401.0), (0.6, 5480.0, 4533.0), (0.9, 5120.0, 4660.0), (1.4, 4977.0, 4701.0), (2.2, 4871.5, 4755.0), (3.1, 4871.5, 4780.0), (3.9, 4812.5, 4790.0)]
    return [{"seconds": seconds, "objective": objective, "bound": bound} for seconds, objective, bound in found]


def job(index: int = 1, **change: Any) -> views.JobPage:
    page: views.JobPage = {
        "frame": frame(),
        "job": jobs_list()[index],
        "started": at(250.7),
        "ended": None,
        "sense": "minimize",
        "unit": "minutes",
        "time_limit": 5.0,
        "incumbents": incumbents(),
        "kpis": {"remote_stands": 4, "tight_turns": 11, "planned_minutes": 4812.5},
        "violations": [],
        "degraded": "",
        "reason": "",
        "decision": "",
        "plan": {"assignments": {f"UA{1500 + index}": f"C{index % 31}" for index in range(60)}, "objective": 4812.5},
        "command": "curl -s http://127.0.0.1:7070/v1/jobs/01k5v0job00000000000000001",
        "actions": [{"do": "stop", "subject": "01k5v0job", "label": "Stop and keep the best"}],
    }
    return {**page, **change}  # type: ignore[typeddict-item]


def failed_job() -> views.JobPage:
    wrong: list[views.ViolationLine] = [{"rule": "one gate, one aircraft", "where": "C12, UA1545 and B6725", "amount": 14.0, "message": "overlap in minutes"}]
    return job(3, incumbents=[], plan=None, kpis={}, violations=wrong, reason="the model raised ValueError at gates.py:41", degraded="the program died", command="", actions=[])


def confirm() -> views.Confirm:
    return {
        "frame": frame(),
        "do": "rollback",
        "subject": "delay",
        "question": "Roll delay back to delay@2?",
        "effects": ["`delay@2` answers every request from now on.", "The canary `delay@4` ends.", "No request fails meanwhile. `palan release delay@3` undoes it."],
        "label": "Roll back",
        "danger": True,
        "command": "palan release delay --rollback",
        "back": "/models/delay",
        "csrf": "3f9a0c",
    }


PAGES: dict[str, tuple[str, Any, Any]] = {
    # name: (HTML, view, its type)
    "home": (pages.home(home()), home(), views.Home),
    "home-empty": (pages.home(empty_home()), empty_home(), views.Home),
    "home-fresh": (pages.home(fresh_home()), fresh_home(), views.Home),
    "home-crowded": (pages.home(crowded_home()), crowded_home(), views.Home),
    "model": (pages.model(model()), model(), views.ModelPage),
    "registered": (pages.registered(registered()), registered(), views.RegisteredPage),
    "model-bare": (pages.model(bare_model()), bare_model(), views.ModelPage),
    "alarm": (pages.alarm(alarm()), alarm(), views.AlarmPage),
    "alarm-bare": (pages.alarm(bare_alarm()), bare_alarm(), views.AlarmPage),
    "alarm-untried": (pages.alarm(untried_alarm()), untried_alarm(), views.AlarmPage),
    "ledger": (pages.ledger(ledger()), ledger(), views.LedgerPage),
    "ledger-broken": (pages.ledger(ledger(breaks=[{"seq": 17, "what": "entry 17 was edited: its content does not match its digest"}], frame=frame(ledger_ok=False))), ledger(), views.LedgerPage),
    "jobs": (pages.jobs({"frame": frame(), "jobs": jobs_list(), "command": ""}), {"frame": frame(), "jobs": jobs_list(), "command": ""}, views.JobsPage),
    "jobs-empty": (pages.jobs({"frame": frame(), "jobs": [], "command": "palan decide gates instances/a.json --job"}), {"frame": frame(), "jobs": [], "command": "x"}, views.JobsPage),
    "job": (pages.job(job()), job(), views.JobPage),
    "job-failed": (pages.job(failed_job()), failed_job(), views.JobPage),
    "confirm": (pages.confirm(confirm()), confirm(), views.Confirm),
    "error": (pages.error(404, 'no model "princing"', 'did you mean "pricing"?', frame()), frame(), views.Frame),
    "error-alone": (pages.error(500, "something broke, and it is in the log as 01k5v0", "`palan log --debug`"), frame(), views.Frame),
}

VOID = {"meta", "link", "input", "br", "wbr", "path", "circle", "line", "rect"}


class Reader(HTMLParser):
    """Reads a page strictly: every tag closed in order; collects what a rule may forbid."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.refs: list[str] = []
        self.forbidden: list[str] = []
        self.addresses: list[str] = []
        self.labelled: set[str] = set()
        self.inputs: list[dict[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if len(named) != len(attrs):
            self.forbidden.append(f"<{tag}> has an attribute twice")
        if "id" in named:
            self.ids.append(named["id"] or "")
        self.forbidden += [f"<{tag} {name}>" for name in named if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in named):
            self.forbidden.append(f"inline <{tag}>")
        for name in ("href", "src", "action"):
            if named.get(name):
                self.addresses.append(named[name] or "")
        for name in ("aria-labelledby", "aria-describedby"):
            self.refs += (named.get(name) or "").split()
        if tag == "label":
            self.labelled.add(named.get("for") or "")
        if tag in ("input", "select"):
            self.inputs.append(named)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}> in {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_whole_and_keeps_to_the_policy(name: str) -> None:
    page = read(PAGES[name][0])
    assert page.forbidden == []
    assert sorted(set(page.ids)) == sorted(page.ids), "an id stands twice"
    assert set(page.refs) <= set(page.ids)
    assert [address for address in page.addresses if not address.startswith(("/", "#")) or address.startswith("//")] == []
    static = {address.removeprefix("/static/") for address in page.addresses if address.startswith("/static/")}
    assert static == {asset for asset in pages.STATIC if asset.startswith(("palan-", "live-", "icon-"))}
    assert all(field.get("type") == "hidden" or field.get("id") in page.labelled for field in page.inputs)


@pytest.mark.parametrize("name", PAGES)
def test_every_view_has_the_declared_shape(name: str) -> None:
    _, view, kind = PAGES[name]
    msgspec.convert(view, kind, strict=True)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_with_all_it_needs_stays_under_150_kilobytes(name: str) -> None:
    html = PAGES[name][0]
    assert len(html.encode()) + sum(len(asset.data) for asset in pages.STATIC.values() if asset.name in html) < 150_000


@pytest.mark.parametrize("name", PAGES)
def test_no_page_shows_the_inside_of_python(name: str) -> None:
    text = read(PAGES[name][0]).text
    assert not re.search(r"\bNone\b|\bnan\b|Undefined|\[object|<built-in|\bdict\(|{'", text)


def test_what_people_wrote_is_shown_and_never_run() -> None:
    nasty = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
    bad = home()
    bad["models"][0] = {**delay(), "name": nasty, "why": nasty, "loss": {**delay_loss(), "unit": nasty, "marks": [{"time": at(50), "kind": "release", "label": nasty}]}}
    worst = model(about=nasty, curl=nasty)
    worst["model"] = bad["models"][0]
    for html in (pages.home(bad), pages.model(worst), pages.error(404, nasty, nasty, frame(project=nasty)), pages.job(job(reason=nasty, plan={nasty: nasty}))):
        assert read(html).forbidden == []
        assert "<script>alert" not in html
        assert "<img" not in html
        assert nasty in read(html).text


def test_the_first_sentence_answers_whether_all_is_right() -> None:
    right = line("a", "rules", "right", "fine")
    assert pages.headline([right]) == ("right", "Everything is right.")
    assert pages.headline([delay(), right]) == ("wrong", "delay is wrong. The other one is right.")
    assert pages.headline(home()["models"]) == ("wrong", "delay is wrong; gates is asking for attention; hold is still learning. The other two are right.")
    many = [line(f"m{index}", "rules", "attention", "") for index in range(4)]
    assert pages.headline(many) == ("attention", "Four models are asking for attention.")
    assert pages.headline([]) == ("not released", "No model yet.")


def test_what_to_do_next_stands_before_the_table() -> None:
    html = PAGES["home"][0]
    assert html.index("Put temp and dewp back") < html.index("palan react delay --approve") < html.index("<table")
    assert 'href="/ui/approve/01k5v0remedy"' in html


@pytest.mark.parametrize(("name", "command"), [("home-empty", "palan init --model estimator"), ("home-empty", "palan ingest"), ("home-fresh", "palan build pricing"), ("home-fresh", "palan ingest orders"), ("model-bare", "palan build pricing"), ("model-bare", "palan release pricing"), ("alarm-untried", "palan react delay"), ("jobs-empty", "palan decide gates instances/a.json --job")])
def test_an_empty_page_names_the_command_that_fills_it(name: str, command: str) -> None:
    assert command in read(PAGES[name][0]).text


def test_a_button_asks_before_it_does() -> None:
    page = PAGES["confirm"][0]
    assert '<form method="post" action="/ui/rollback/delay">' in page
    assert '<input type="hidden" name="csrf" value="3f9a0c">' in page
    for name in ("home", "model", "alarm", "job"):
        assert 'method="post"' not in PAGES[name][0]


def test_the_chosen_remedy_stands_out_and_the_untried_one_says_why() -> None:
    html = PAGES["alarm"][0]
    chosen = re.findall(r'<tr class="chosen">\s*<th scope="row">([^<]+)', html)
    assert [name.strip() for name in chosen] == ["rework the data: temp and dewp back to °F"]
    assert html.count('class="chart interval"') == 5
    assert "131 outcomes, 500 are needed" in html


def test_an_altered_ledger_is_said_on_its_page_and_at_every_foot() -> None:
    html = PAGES["ledger-broken"][0]
    assert "entry 17 was edited" in html
    assert "The ledger was altered." in pages.home({**home(), "frame": frame(ledger_ok=False)})
    assert "the chain holds" in PAGES["home"][0]


def test_a_running_job_keeps_itself_fresh_and_a_done_one_does_not() -> None:
    assert 'data-live="1"' in PAGES["job"][0]
    assert "data-live=" not in PAGES["job-failed"][0]


@pytest.mark.parametrize(
    ("figure", "text"),
    [(None, "–"), (math.nan, "–"), (math.inf, "–"), (0, "0"), (0.4412, "0.441"), (12.34, "12.3"), (-0.0182, "−0.0182"), (4812.5, "4,812"), (2340.0, "2,340"), (14645.3, "14,645"), (27574, "27,574"), (1234567.0, "1,234,567"), (7, "7"), (0.00001, "0.00001"), (99.96, "100")],
)
def test_figures_read_well(figure: float | None, text: str) -> None:
    assert charts.number(figure) == text


@pytest.mark.parametrize(("share", "text"), [(None, "–"), (0.0, "0%"), (0.2, "20%"), (0.0046, "0.5%"), (0.00001, "< 0.1%"), (0.99999, "> 99.9%"), (1.0, "100%")])
def test_shares_are_never_rounded_to_a_false_nothing_or_all(share: float | None, text: str) -> None:
    assert pages.percent(share) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.0008, "0.8 ms"), (0.045, "45 ms"), (3.2, "3.2 s"), (90, "90 s"), (240, "4 min"), (7300, "2 h"), (5 * 86400, "5 days")])
def test_durations_read_well(seconds: float, text: str) -> None:
    assert pages.duration(seconds) == text


@pytest.mark.parametrize(("text", "told"), [("no version was built", "No version was built."), ("delay@1 fails", "delay@1 fails."), ("delay is late", "delay is late."), ("Is it?", "Is it?"), ("", ""), ("see `palan log`", "See `palan log`."), ("suspect: temp", "Suspect: temp."), ("12 of 12", "12 of 12.")])
def test_reasons_read_as_sentences(text: str, told: str) -> None:
    assert pages.prose(text, "delay") == told


@pytest.mark.parametrize(("days", "text"), [(0.00001, "just now"), (0.5, "12 h ago"), (-4, "in 4 days"), (3, "3 days ago"), (100, "1 Jun"), (300, "13 Nov 2012")])
def test_moments_are_told_from_now(days: float, text: str) -> None:
    assert pages.ago(stamp(NOW - timedelta(days=days)), stamp(NOW)) == text


@pytest.mark.parametrize(("text", "told"), [("in °C since 2013-11-01 (seen 2013-11-04)", "in °C since 1 Nov 2013 (seen 4 Nov 2013)"), ("feed/flights-2013-11.parquet, 2013-12-31-US1895", "feed/flights-2013-11.parquet, 2013-12-31-US1895"), ("data/2013-11-01.csv", "data/2013-11-01.csv"), ("`--since 2013-11-01`", "--since 2013-11-01"), ("2013-99-01", "2013-99-01"), ("until 2013-11-01.", "until 1 Nov 2013.")])
def test_days_in_sentences_are_written_as_everywhere_on_the_pages(text: str, told: str) -> None:
    assert "".join(part for _, part in pages.command_parts(text)).replace("\u00a0", " ") == told


@pytest.mark.parametrize(("figures", "told"), [({"wrong": [], "rules": {}, "why": "", "bound": None, "late": 0}, {"late": 0}), ({"faults": [{"kind": "unit", "text": "temp is in °C"}]}, {"faults": "temp is in °C"})])
def test_figures_without_a_value_are_left_out_and_findings_say_their_sentence(figures: dict[str, Any], told: dict[str, Any]) -> None:
    assert pages.told(figures) == told


@pytest.mark.parametrize(("figure", "usual", "text"), [(2549.0, 2127.0, "20% above the usual 2,127"), (0.4, 0.5, "20% below the usual 0.5"), (0.501, 0.5, "as usual (0.5)"), (1.0, 0.0, "usual 0")])
def test_a_figure_is_compared_in_words(figure: float, usual: float, text: str) -> None:
    assert pages.against(figure, usual) == text


@pytest.mark.parametrize(("text", "size", "told"), [("whole", 9, "whole"), ("a loss of 0.0366 to a gain", 20, "a loss of 0.0366 to…"), ("gained 0.0026, by chance", 15, "gained 0.0026…"), ("oneverylongword", 8, "oneveryl"[:7] + "…")])
def test_a_long_text_ends_with_a_whole_word(text: str, size: int, told: str) -> None:
    assert pages.cut(text, size) == told


def test_a_broken_line_says_why_it_is_broken() -> None:
    said = "Where the line is broken"
    assert said in pages.model(model())
    whole = delay_loss()
    whole["values"] = [item or 0.4 for item in whole["values"]]
    assert said not in pages.model(model(model={**delay(), "loss": whole}))


def test_the_keyboard_shows_where_it_is(browser: Any, site: str) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    for name in ("home", "alarm", "ledger", "confirm"):
        tab.goto(f"{site}/{name}")
        for _ in range(8):
            tab.keyboard.press("Tab")
            assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", name
    context.close()


def test_labels_on_a_chart_never_cover_each_other() -> None:
    marks = [(index / 30, f"delay@{index}") for index in range(30)]
    rows = charts.lanes(marks)
    taken: dict[int, float] = {}
    for (x, label), row in zip(marks, rows, strict=True):
        if row is None:
            continue
        width = (len(label) + 2) * 0.021
        start = x - width if x + width > 1 else x
        assert start >= taken.get(row, -1.0)
        taken[row] = start + width
    assert sum(row is not None for row in rows) >= 12


def test_a_chart_of_one_value_of_nothing_and_of_a_flat_line_is_drawn_or_left_out() -> None:
    one: views.Loss = {"times": [at(0)], "values": [0.4], "threshold": None, "usual": None, "unit": "x", "marks": []}
    assert charts.line(one, key="a", title="a") == ""
    assert charts.trend(NOTHING, key="a", title="a") == ""
    assert charts.bars({"times": [at(0)], "values": [0.0]}, key="a", title="a").count("<rect") == 1
    flat: views.Loss = {"times": [at(0), at(1), at(2)], "values": [0.0, 0.0, 0.0], "threshold": 0.0, "usual": None, "unit": "x", "marks": []}
    assert "nan" not in charts.line(flat, key="a", title="a")
    same: list[views.IncumbentLine] = [{"seconds": 0.0, "objective": 0.0, "bound": 0.0}]
    assert "nan" not in charts.steps(same, sense="", key="a", title="a")
    assert charts.steps([], sense="", key="a", title="a") == ""


def test_only_what_lies_above_the_threshold_is_drawn_as_harm() -> None:
    calm = charts.trend({"times": [at(0), at(1)], "values": [0.1, 0.2], "threshold": 0.5, "usual": 0.2, "unit": "", "marks": []}, key="a", title="a")
    high = charts.trend({"times": [at(0), at(1)], "values": [0.1, 0.9], "threshold": 0.5, "usual": 0.2, "unit": "", "marks": []}, key="a", title="a")
    assert 'class="dot harm"' in high
    assert 'class="dot harm"' not in calm


def test_time_axes_of_any_length_have_two_to_eight_labels() -> None:
    for days in (0.05, 0.3, 1, 2, 4, 9, 30, 75, 76, 120, 365, 900, 4000):
        labels = charts.time_ticks(START + timedelta(hours=3), START + timedelta(hours=3, days=days))
        assert 2 <= len(labels) <= 8 or days < 0.1, (days, labels)
        assert len({moment for moment, _ in labels}) == len(labels)


# -- in a real browser -----------------------------------------------------------------------------------------------------


class Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        if self.path.startswith("/static/"):
            kind, data = pages.STATIC[name].type, pages.STATIC[name].data
        elif name in PAGES:
            kind, data = "text/html; charset=utf-8", PAGES[name][0].encode()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("content-type", kind)
        for header, text in HEADERS:
            self.send_header(header.decode(), text.decode())
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def browser(chromium: Any) -> Any:
    return chromium


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    socketserver.TCPServer.allow_reuse_address = True
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


# Text against the nearest opaque ground behind it, as WCAG 2.2 AA asks: 4.5, or 3 for large text.
CONTRAST = """() => {
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a * 255]; };
  const light = (rgb) => { const [r, g, b] = rgb.map((v) => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
  const ground = (node) => { for (; node; node = node.parentElement) { const c = parse(getComputedStyle(node).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    if (node.closest('.hidden, .skip, svg title, svg desc') || ![...node.childNodes].some((each) => each.nodeType === 3 && each.textContent.trim())) continue;
    const style = getComputedStyle(node);
    if (style.visibility === 'hidden' || !node.getClientRects().length) continue;
    const inside = node instanceof SVGElement ? style.fill : style.color;
    const a = light(parse(inside).slice(0, 3)), b = light(ground(node.closest('svg')?.parentElement ?? node).slice(0, 3));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const size = parseFloat(style.fontSize);
    if (ratio < (size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5)) found.push(`${node.tagName}.${node.getAttribute('class')} ${node.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_every_page_fits_is_readable_and_asks_nobody_else(browser: Any, site: str, scheme: str) -> None:
    for width in (1280, 400):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab = context.new_page()
        troubles: list[str] = []
        tab.on("console", lambda message, troubles=troubles: troubles.append(message.text) if message.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error, troubles=troubles: troubles.append(str(error)))
        tab.on("request", lambda request, troubles=troubles: troubles.append(request.url) if not request.url.startswith(site) else None)
        for name in PAGES:
            tab.goto(f"{site}/{name}")
            assert troubles == [], name
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, f"{name} scrolls sideways at {width}"
            assert tab.evaluate(CONTRAST) == [], f"{name} {scheme}"
        context.close()


def test_without_javascript_the_page_says_the_same(browser: Any, site: str) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.goto(f"{site}/home")
    assert tab.get_by_role("heading", level=1).inner_text().strip() == pages.headline(home()["models"])[1]
    tab.get_by_role("link", name="Approve").focus()
    assert tab.get_by_role("link", name="Approve").get_attribute("href") == "/ui/approve/01k5v0remedy"
    context.close()


def test_with_javascript_an_open_page_follows_what_happens(browser: Any, site: str) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.goto(f"{site}/job")
    before = PAGES["job"]
    tab.get_by_text("Figures", exact=True).click()
    try:
        PAGES["job"] = (pages.job(job(reason="stopped by ana")), *before[1:])
        tab.get_by_text("stopped by ana").wait_for(timeout=5000)
        assert tab.evaluate("document.querySelector('details').open"), "what the reader opened was closed under the hand"
        assert tab.evaluate("document.activeElement.tagName") == "SUMMARY", "the keyboard lost its place"
    finally:
        PAGES["job"] = before
    context.close()
