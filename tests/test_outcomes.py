"""Outcomes come back late, by decision id or by the caller's key: the last one told counts."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx
import polars as pl
import pytest

from palan.core import Field, Schema
from palan.decisions import log
from palan.decisions.nouns import Decision, Outcome
from palan.errors import Invalid, NotFound
from palan.flows.decide import outcomes
from palan.flows.history import frame as history
from palan.flows.history import schema_of
from palan.flows.packages import find_version
from queue_project import GOOD, Served

pytest_plugins = ["queue_server"]

NOW = datetime(2013, 5, 1, tzinfo=UTC)


def decision(id: str, **changes: Any) -> Decision:
    fields: dict[str, Any] = {
        "id": id,
        "time": NOW,
        "model": "delay",
        "version": "delay@1",
        "epoch": 3,
        "arm": "champion",
        "propensity": 0.8,
        "rows": 2,
        "inputs": {"carrier": ["UA", None], "temp": [41.5, 40], "day": [date(2013, 5, 1)] * 2},
        "outputs": {"output": [0.25, 0.5]},
        "keys": [f"{id}-first", f"{id}-second"],
    }
    return Decision(**{**fields, **changes})


def outcome(values: list[Any], *, ids: list[str] | None = None, keys: list[str] | None = None) -> Outcome:
    return Outcome(time=NOW, model="delay", ids=ids or [], keys=keys or [], values=values)


def test_a_frame_comes_back_as_it_was_written() -> None:
    told = outcome([True], ids=["a-0"])
    assert log.decode_outcome(log.encode(told)) == told
    written = decision("a", inputs={"carrier": ["UA", None], "scheduled": [NOW, NOW]})
    assert log.decode_decision(log.encode(written)) == written
    frames = [log.encode(decision(str(day), time=NOW + timedelta(days=day))) for day in range(4)]
    assert [each.id for each in log.decisions_between(frames, NOW + timedelta(days=1), NOW + timedelta(days=3))] == ["1", "2"]


def test_the_log_reads_as_one_row_per_decided_row() -> None:
    schema = Schema("rows", (Field("carrier", "str", True), Field("temp", "float"), Field("day", "date")))
    stored = [log.decode_decision(log.encode(each)) for each in (decision("a"), decision("b", keys=None, arm="canary"))]
    frame = log.to_frame(stored, schema=schema)
    assert frame["id"].to_list() == ["a-0", "a-1", "b-0", "b-1"]
    assert frame["key"].to_list() == ["a-first", "a-second", None, None]
    assert frame["arm"].to_list() == ["champion", "champion", "canary", "canary"]
    assert frame["temp"].to_list() == [41.5, 40.0, 41.5, 40.0]
    assert (frame.schema["temp"], frame.schema["day"], frame.schema["output"]) == (pl.Float64, pl.Date, pl.Float64)
    assert frame["outcome"].null_count() == 4


def test_the_last_outcome_told_counts_whichever_name_it_was_told_for() -> None:
    decisions = [decision("a"), decision("b")]
    told = [
        outcome([False, True], keys=["a-first", "a-second"]),
        outcome([True, True], ids=["a-0", "b-1"]),
        outcome([False], keys=["b-second"]),
        outcome([True], keys=["nobody"]),
    ]
    assert log.to_frame(decisions, told)["outcome"].to_list() == [True, True, None, False]
    by_id, by_key = log.told(told)
    assert by_id == {"a-0": True, "b-1": True}
    assert by_key["b-second"] is False


def test_one_key_decided_twice_gets_its_outcome_twice() -> None:
    decisions = [decision("a", keys=["x", "y"]), decision("b", keys=["y", "z"])]
    frame = log.to_frame(decisions, [outcome([12.5, 3], keys=["y", "z"])])
    assert frame["outcome"].to_list() == [None, 12.5, 12.5, 3.0]


def test_columns_that_differ_between_requests_are_null_where_missing() -> None:
    failed = decision("b", inputs={"carrier": ["AA", "AA"], "wind": [1, 2]}, outputs=None, status="error")
    frame = log.to_frame([decision("a"), failed])
    assert frame["wind"].to_list() == [None, None, 1, 2]
    assert frame["output"].to_list() == [0.25, 0.5, None, None]
    assert frame["status"].to_list() == ["ok", "ok", "error", "error"]


def test_a_name_that_is_taken_is_qualified_not_overwritten() -> None:
    frame = log.to_frame([decision("a", inputs={"key": [1, 2], "amount": [3, 4]}, outputs={"amount": [5, 6]})])
    assert frame["input.key"].to_list() == [1, 2]
    assert frame["amount"].to_list() == [3, 4]
    assert frame["output.amount"].to_list() == [5, 6]


def test_violations_are_counted_on_their_row() -> None:
    violations = [{"rule": "range", "where": "row 1"}, {"rule": "range", "where": "output[1]"}, {"rule": "batch", "where": "everywhere"}]
    assert log.to_frame([decision("a", violations=violations)])["violations"].to_list() == [1, 2]


def test_instances_show_their_figures() -> None:
    solved = decision("a", rows=1, inputs={"flights": []}, outputs={"assignments": {}}, keys=None, status="optimal", result={"objective": 12.0, "bound": 11.5, "kpis": {"remote": 2}})
    frame = log.to_frame([solved], [outcome([{"f1": 3}], ids=["a-0"])], Schema("instance", ()))
    assert frame.select("status", "objective", "bound", "kpi.remote").row(0) == ("optimal", 12.0, 11.5, 2.0)
    assert frame["outcome"].to_list() == ['{"f1":3}'], "a document is one value, not a column for every name in it"


def test_an_empty_log_is_an_empty_table() -> None:
    frame = log.to_frame([], [outcome([True], ids=["a-0"])])
    assert frame.height == 0
    assert set(log.META) < set(frame.columns)


def test_outcomes_come_back_over_http_in_both_forms_and_by_both_names(served: Served) -> None:
    rows = [{**GOOD, "id": f"told-{index}"} for index in range(3)]
    answer = served.decide("wait", rows=rows).json()

    def tell(**body: Any) -> Any:
        return served.http.post("/v1/models/wait/outcomes", json=body)

    assert tell(keys=["told-0", "told-1"], values=[11.5, 12]).json() == {"model": "wait", "told": 2}
    assert tell(outcomes=[{"key": "told-1", "value": 13}, {"id": f"{answer['decision']}-2", "value": None}]).json()["told"] == 2
    seen = history(served.project, "wait", schema_of(find_version(served.project, "wait@1").manifest)).filter(pl.col("id").str.starts_with(answer["decision"]))
    assert seen.sort("id")["outcome"].to_list() == [11.5, 13.0, None]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body"),
        ({"outcomes": []}, "outcomes"),
        ({"outcomes": [{"value": 1}]}, "outcomes[0]"),
        ({"outcomes": [{"key": "a"}]}, "outcomes[0]"),
        ({"outcomes": [{"key": "a", "value": "long"}]}, "outcomes[0].value"),
        ({"outcomes": [{"key": "a", "value": 1}, {"key": "b", "value": True}]}, "outcomes[1].value"),
        ({"outcomes": [{"key": "a", "value": 1, "minutes": 2}]}, "outcomes[0]"),
        ({"outcomes": [{"id": "a", "value": 1}]}, "outcomes[0].id"),
        ({"keys": ["a"], "values": [1, 2]}, "keys"),
        ({"keys": ["a"], "values": 1}, "values"),
        ({"outcomes": [{"key": 1.5, "value": 1}]}, "outcomes[0].key"),
        ({"outcomes": [{"key": "a", "value": 1}], "values": [1]}, "body"),
    ],
)
def test_outcomes_that_do_not_fit_are_refused_with_their_place(served: Served, body: dict[str, Any], field: str) -> None:
    response = served.http.post("/v1/models/wait/outcomes", json=body)
    assert (response.status_code, response.json()["field"]) == (422, field)


@pytest.mark.parametrize(("value", "field"), [(2**64, "outcomes[1].value"), ({"minutes": [1, -(2**63) - 1]}, "outcomes[1].value.minutes[1]"), (json.loads("[" * 900 + "]" * 900), "outcomes[1].value" + "[0]" * 65)])
def test_an_outcome_of_any_form_can_be_written_and_read(served: Served, value: Any, field: str) -> None:
    """The outcome of a plan may be anything; what the log could not hold is refused with its place."""
    response = served.http.post("/v1/models/plan/outcomes", json={"keys": ["a", "b"], "values": [1, value]})
    assert (response.status_code, response.json()["field"]) == (422, field)
    assert served.http.post("/v1/models/plan/outcomes", json={"keys": ["a", "b"], "values": [2**63 - 1, {"late": [3]}]}).json()["told"] == 2


def test_numbers_of_a_models_own_making_can_be_read_together() -> None:
    frame = log.to_frame([decision("a", outputs={"output": [-1, 2**64 - 1]})])
    assert frame["output"].to_list() == [-1, 2**64 - 1]


def test_everybody_else_is_answered_while_a_year_of_outcomes_is_told(served: Served) -> None:
    """900 000 outcomes were read and checked on the event loop: for seconds nobody was answered at all."""
    count = 300_000
    body = b'{"outcomes":[' + b",".join(b'{"key":"f-%d","value":1.5}' % index for index in range(count)) + b"]}"
    waits: list[float] = []
    url = str(served.http.base_url)
    done = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            client.get("/healthz")
            while not done.is_set():
                before = time.perf_counter()
                client.get("/healthz")
                waits.append(time.perf_counter() - before)

    asking = threading.Thread(target=ask)
    asking.start()
    before = time.perf_counter()
    told = served.http.post("/v1/models/wait/outcomes", content=body)
    seconds = time.perf_counter() - before
    done.set()
    asking.join()
    assert told.json() == {"model": "wait", "told": count}
    assert max(waits) < seconds * 0.6, (max(waits), seconds)


def test_outcomes_of_nobody_are_refused(served: Served) -> None:
    with pytest.raises(NotFound):
        outcomes(served.project, "wiat", [1], keys=["a"])
    with pytest.raises(Invalid):
        outcomes(served.project, "wait", [], keys=[])
    assert served.http.post("/v1/models/wiat/outcomes", json={"keys": ["a"], "values": [1]}).status_code == 404
    assert served.http.post("/v1/models/wait/outcomes", content=b"\xff").status_code == 422
