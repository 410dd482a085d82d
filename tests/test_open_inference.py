"""A client of the Open Inference Protocol asks a model of rows: tensors in, tensors out, 4xx for what does not fit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from palan.flows.history import decisions
from queue_project import Served

pytest_plugins = ["queue_server"]

PEOPLE = {"name": "people", "datatype": "INT64", "shape": [2], "data": [10, 20]}
DESK = {"name": "desk", "datatype": "BYTES", "shape": [2, 1], "data": ["A", "B"]}
TEMP = {"name": "temp", "datatype": "FP32", "shape": [2, 1], "data": [[50.0], [None]]}

DEEP: list[Any] = ["x", json.loads("[" * 900 + "]" * 900)]


def infer(served: Served, *inputs: dict[str, Any], model: str = "wait", **more: Any) -> Any:
    return served.http.post(f"/v2/models/{model}/infer", json={"inputs": list(inputs), **more})


def test_the_server_and_its_models_describe_themselves(served: Served) -> None:
    assert served.http.get("/v2").json()["name"] == "palan"
    assert served.http.get("/v2/health/live").json() == {"live": True}
    assert served.http.get("/v2/health/ready").json() == {"ready": True}
    assert served.http.get("/v2/models/wait/ready").json() == {"name": "wait", "ready": True}
    assert served.http.get("/v2/models/wait").json() == {
        "name": "wait",
        "versions": ["1"],
        "platform": "palan",
        "inputs": [
            {"name": "people", "datatype": "INT64", "shape": [-1]},
            {"name": "desk", "datatype": "BYTES", "shape": [-1]},
            {"name": "temp", "datatype": "FP64", "shape": [-1]},
        ],
        "outputs": [{"name": "output", "datatype": "FP64", "shape": [-1]}],
    }


def test_tensors_are_answered_and_logged_like_any_decision(served: Served) -> None:
    keys = {"name": "id", "datatype": "BYTES", "shape": [2], "data": ["left", "right"]}
    answer = infer(served, PEOPLE, DESK, TEMP, keys, id="mine").json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("wait", "1", "mine")
    assert answer["outputs"] == [{"name": "output", "datatype": "FP64", "shape": [2], "data": [pytest.approx(20.5), 40.0]}]
    entry = next(each for each in decisions(served.project, "wait") if each.id == answer["parameters"]["decision"])
    assert (entry.keys, entry.inputs["temp"]) == (["left", "right"], [50.0, None])


def test_what_may_be_null_may_be_left_out_and_the_champion_may_be_named(served: Served) -> None:
    response = served.http.post("/v2/models/wait/versions/1/infer", json={"inputs": [PEOPLE, DESK], "outputs": [{"name": "output"}]})
    assert response.json()["outputs"][0]["data"] == [20.0, 40.0]


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ([PEOPLE, {**DESK, "name": "dsek"}], "inputs[1].name"),
        ([PEOPLE, DESK, PEOPLE], "inputs[2].name"),
        ([PEOPLE, {**DESK, "datatype": "INT64"}], "inputs[1].datatype"),
        ([{**PEOPLE, "datatype": "FP64"}, DESK], "inputs[0].datatype"),
        ([{**PEOPLE, "shape": [3]}, DESK], "inputs[0].data"),
        ([{**PEOPLE, "shape": [1, 2]}, DESK], "inputs[0].shape"),
        ([{**PEOPLE, "shape": [-2]}, DESK], "inputs[0].shape"),
        ([PEOPLE, {**DESK, "shape": [1], "data": ["A"]}], "inputs[1].shape"),
        ([{**PEOPLE, "data": [1, 2.5]}, DESK], "rows.people[1]"),
        ([{**PEOPLE, "data": [1, 501]}, DESK], "rows.people[1]"),
        ([PEOPLE, {**DESK, "data": ["A", "Z"]}], "rows.desk[1]"),
        ([PEOPLE], "rows.desk"),
        ([{"name": "people"}, DESK], "inputs[0]"),
        ([], "rows.people"),
        ([{**PEOPLE, "data": [1, DEEP[1]]}, DESK], "rows.people[1]"),
        ([{**PEOPLE, "data": [1, 2**64]}, DESK], "rows.people[1]"),
        ([{**PEOPLE, "shape": [2**70]}, DESK], "inputs[0].data"),
        ([PEOPLE, DESK, {"name": "id", "datatype": "BYTES", "shape": [2], "data": DEEP}], "inputs[2].data[1]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_their_place(served: Served, inputs: list[dict[str, Any]], field: str) -> None:
    response = infer(served, *inputs)
    assert response.status_code == 422
    assert response.json()["field"] == field


def test_what_cannot_be_asked_is_refused(served: Served) -> None:
    assert infer(served, PEOPLE, model="wiat").status_code == 404
    assert served.http.post("/v2/models/wait/versions/9/infer", json={"inputs": [PEOPLE, DESK]}).status_code == 404
    instance = infer(served, PEOPLE, model="plan")
    assert (instance.status_code, instance.json()["hint"]) == (422, "POST /v1/models/plan/decide")
    assert served.http.post("/v2/models/wait/infer", content=b"{").status_code == 422
    assert infer(served, PEOPLE, DESK, outputs=[{"name": "minutes"}]).json()["field"] == "outputs[0].name"
