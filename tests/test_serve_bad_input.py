"""A caller sends something wrong: the answer names the field, the value, the reason and what to send instead."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palan.core import Field, Schema
from palan.data.inputs import Inputs, infer_schema, problems, to_frame
from palan.errors import Invalid
from queue_project import GOOD as VISIT
from queue_project import INSTANCE, Served

pytest_plugins = ["queue_server"]

SCHEMA = Schema(
    "rows",
    (
        Field("carrier", "str", values=("UA", "AA", "B6")),
        Field("temp", "float", nullable=True, minimum=-30, maximum=120, unit="°F"),
        Field("hour", "int", minimum=0, maximum=23),
        Field("class", "bool"),
        Field("scheduled", "time", nullable=True),
        Field("day", "date", nullable=True),
    ),
)
GOOD = {"carrier": "UA", "temp": 41, "hour": 14, "class": True, "scheduled": "2013-05-01T10:00:00-04:00", "day": "2013-05-01", "id": "a"}
INPUTS = Inputs(SCHEMA, key="id")


def body(**changes: Any) -> bytes:
    return msgspec.json.encode({"rows": [GOOD, {**GOOD, **changes}]})


def test_good_rows_become_exact_types_in_both_forms() -> None:
    as_rows = INPUTS.read(body(id=7))
    columns = {name: [GOOD[name], GOOD[name]] for name in GOOD if name != "id"}
    as_columns = INPUTS.read(msgspec.json.encode({"rows": columns, "keys": ["a", 7]}))
    assert as_rows.columns == as_columns.columns
    assert as_rows.keys == as_columns.keys == ("a", "7")
    assert (as_rows.columnar, as_columns.columnar) == (False, True)
    frame = to_frame(as_rows.columns, SCHEMA)
    assert frame.schema == {
        "carrier": pl.String(),
        "temp": pl.Float64(),
        "hour": pl.Int64(),
        "class": pl.Boolean(),
        "scheduled": pl.Datetime("us", "UTC"),
        "day": pl.Date(),
    }
    assert frame.row(0) == ("UA", 41.0, 14, True, datetime(2013, 5, 1, 14, tzinfo=UTC), date(2013, 5, 1))


def test_what_may_be_null_may_be_left_out() -> None:
    request = INPUTS.read(b'{"rows": [{"carrier": "UA", "hour": 1, "class": false}]}')
    assert request.columns["temp"] == [None]
    assert request.keys is None
    assert INPUTS.read(b'{"rows": {"carrier": ["UA"], "hour": [1], "class": [false]}}').columns == request.columns


@pytest.mark.parametrize(
    ("changes", "field", "value", "says"),
    [
        ({"temp": 300}, "rows[1].temp", 300, "above 120 °F"),
        ({"temp": -31.5}, "rows[1].temp", -31.5, "below -30 °F"),
        ({"temp": "41"}, "rows[1].temp", "41", "not a number from -30 to 120 °F"),
        ({"carrier": "ua"}, "rows[1].carrier", "ua", "not in the set"),
        ({"carrier": None}, "rows[1].carrier", None, "is null"),
        ({"hour": 14.5}, "rows[1].hour", 14.5, "not a whole number"),
        ({"hour": True}, "rows[1].hour", True, "is true, not a whole number"),
        ({"hour": 24}, "rows[1].hour", 24, "above 23"),
        ({"hour": 2**70}, "rows[1].hour", 2**70, "not a whole number"),
        ({"class": 1}, "rows[1].class", 1, "not true or false"),
        ({"scheduled": "yesterday"}, "rows[1].scheduled", "yesterday", "not a time"),
        ({"day": "2013-02-30"}, "rows[1].day", "2013-02-30", "not a date"),
        ({"tmep": 3}, "rows[1].tmep", 3, "not a field"),
        ({"temp": [1]}, "rows[1].temp", [1], "is a list"),
        ({"temp": {}}, "rows[1].temp", {}, "is an object"),
    ],
)
def test_each_misfit_is_named(changes: dict[str, Any], field: str, value: Any, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        INPUTS.read(body(**changes))
    assert caught.value.field == field
    assert caught.value.value == value
    assert says in caught.value.what
    assert caught.value.hint


def test_a_misspelled_field_is_told_the_right_one() -> None:
    with pytest.raises(Invalid, match="tmep is not a field") as caught:
        INPUTS.read(body(tmep=3))
    assert caught.value.hint == 'did you mean "temp"?'
    with pytest.raises(Invalid, match=r"rows\[0\].hour is missing"):
        INPUTS.read(b'{"rows": [{"carrier": "UA", "class": true}]}')


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        (b"", "body"),
        (b"  ", "body"),
        (b"{", "body"),
        (b"\xff\xfe\x00", "body"),
        (b"[]", "body"),
        (b"3", "body"),
        (b'{"row": []}', "row"),
        (b'{"rows": []}', "rows"),
        (b'{"rows": {}}', "rows.carrier"),
        (b'{"rows": null}', "rows"),
        (b'{"rows": 5}', "rows"),
        (b'{"rows": [5]}', "rows[0]"),
        (b'{"instance": {}}', "rows"),
        (b'{"rows": [], "instance": {}}', "instance"),
        (b'{"rows": {"carrier": ["UA"], "hour": [1, 2], "class": [true]}}', "rows.carrier"),
        (b'{"rows": {"carrier": ["UA"], "hour": 1, "class": [true]}}', "rows.hour"),
        (b'{"rows": {"carrier": ["UA"], "hour": ["1"], "class": [true]}}', "rows.hour[0]"),
        (b'{"rows": [{"carrier": "UA", "hour": 1, "class": true}], "keys": ["a", "b"]}', "keys"),
        (b'{"rows": [{"carrier": "UA", "hour": 1, "class": true}], "keys": [1.5]}', "keys"),
        (b'{"rows": [{"carrier": "UA", "hour": 1, "class": true, "temp": NaN}]}', "body"),
        (b'{"rows": [{"carrier": "UA", "hour": 1, "class": true, "temp": 1e999}]}', "rows"),
        (b'{"rows": [{"carrier": "U\xff", "hour": 1, "class": true}]}', "rows"),
        (b'{"rows": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "body"),
    ],
)
def test_a_broken_request_is_refused_with_its_place(sent: bytes, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        INPUTS.read(sent)
    assert caught.value.field == field


def test_python_values_are_held_to_the_same_schema() -> None:
    rows = [{name: value for name, value in GOOD.items() if name != "day"}]
    assert INPUTS.take(rows).columns["temp"] == [41.0]
    frame = pl.DataFrame({"carrier": ["UA"], "temp": [41.0], "hour": [14], "class": [True], "scheduled": [datetime(2013, 5, 1, 14)], "day": [date(2013, 5, 1)]})  # noqa: DTZ001 - a caller may well send a naive time
    assert INPUTS.take(frame).columns["scheduled"] == [datetime(2013, 5, 1, 14, tzinfo=UTC)]
    assert INPUTS.take({**frame.to_dict(as_series=False), "hour": np.array([14])}).columns["hour"] == [14]
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(Invalid) as caught:
            INPUTS.take([{**GOOD, "temp": wrong}])
        assert caught.value.field == "rows[0].temp"


def test_instances_are_checked_to_the_bottom() -> None:
    examples: list[dict[str, Any]] = [
        {"airport": "EWR", "gates": [{"id": "A1", "group": 1}], "delays": {"f1": 3, "f2": 4.5}, "note": None},
        {"airport": "JFK", "gates": [{"id": "B1", "group": 2, "wide": True}], "delays": {"f9": 1}},
    ]
    schema = infer_schema(examples)
    kinds = {each.name: (each.type, each.nullable) for each in schema.fields}
    assert kinds == {"airport": ("str", False), "gates": ("list", False), "delays": ("map", False), "note": ("any", True)}
    inputs = Inputs(schema)
    for each in examples:
        assert inputs.read(msgspec.json.encode({"instance": each})).instance == each
        assert inputs.take(each).instance == each

    def refused(**changes: Any) -> str:
        with pytest.raises(Invalid) as caught:
            inputs.read(msgspec.json.encode({"instance": {**examples[0], **changes}}))
        return caught.value.field

    assert refused(gates=[{"id": "A1", "group": 1}, {"id": "A2", "group": "1"}]) == "instance.gates[1].group"
    assert refused(gates=[{"id": "A1", "grp": 1}]) == "instance.gates[0].grp"
    assert refused(delays={"f7": "late"}) == "instance.delays.f7"
    assert refused(airport=None) == "instance.airport"
    with pytest.raises(Invalid, match="finite"):
        inputs.take({**examples[0], "delays": {"f1": float("inf")}})
    with pytest.raises(Invalid, match='takes "instance"'):
        inputs.read(b'{"rows": []}')


def test_a_dictionary_of_one_big_example_is_open_to_other_keys() -> None:
    schema = infer_schema([{"delays": {f"f{index}": index for index in range(20)}}])
    assert schema.fields[0].item == Field("item", "int")
    with pytest.raises(Invalid, match="at least one example"):
        infer_schema([])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5) | st.sampled_from(["UA", "2013-05-01", "2013-05-01T00:00:00Z"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["carrier", "temp", "id", "x"]), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["carrier", "temp", "hour", "class", "scheduled", "day"]), JSON)
def test_the_fast_and_the_explaining_walk_agree(name: str, value: Any) -> None:
    """Whatever the decoder refuses, the second walk explains; whatever it takes, the second walk has nothing to say."""
    rows = [{**GOOD, name: value}]
    explained = list(problems(rows, SCHEMA, key="id"))
    try:
        INPUTS.read(msgspec.json.encode({"rows": rows}))
    except Invalid as error:
        assert explained, error
        assert error.field.startswith(f"rows[0].{name}")
    else:
        assert not explained


@pytest.mark.parametrize(
    ("path", "sent", "status", "said"),
    [
        ("/v1/models/wait/decide", {"rows": [{**VISIT, "temp": 300}]}, 422, {"code": "invalid", "field": "rows[0].temp", "value": 300, "reason": "rows[0].temp is 300, above 120 °F"}),
        ("/v1/models/wait/decide", {"rows": [{**VISIT, "poeple": 1}]}, 422, {"field": "rows[0].poeple", "hint": 'did you mean "people"?'}),
        ("/v1/models/plan/decide", {"instance": {**INSTANCE, "weights": [1, "2", 3]}}, 422, {"field": "instance.weights[1]", "value": "2"}),
        ("/v1/models/plan/decide", {"rows": []}, 422, {"field": "instance"}),
        ("/v1/models/wiat/decide", {"rows": []}, 404, {"code": "not_found", "error": 'no model "wiat"'}),
        ("/v1/check", {"model": "wait", "aginst": "x"}, 422, {"code": "invalid"}),
        ("/v1/check", {}, 422, {"code": "invalid"}),
        ("/v1/check", {"model": 3}, 422, {"field": "model"}),
        ("/v1/chekc", {"model": "wait"}, 404, {"hint": 'did you mean "check"?'}),
        ("/v1/check", {"model": "nobody"}, 404, {"code": "not_found"}),
        ("/v1/why", {"subject": "nothing"}, 404, {"code": "not_found"}),
    ],
)
def test_over_http_every_mistake_is_told_with_what_to_do(served: Served, path: str, sent: dict[str, Any], status: int, said: dict[str, Any]) -> None:
    response = served.http.post(path, json=sent)
    body = response.json()
    assert response.status_code == status, body
    assert {name: body[name] for name in said} == said
    assert body["hint"]


@pytest.mark.parametrize("sent", [b"", b"\x00", b"null", b"[[[[", b'{"rows": 1e400}', b'{"rows": [{"people": 1}]}' * 2, b'{"instance": ' + b"[" * 50_000, "ünï".encode("utf-16")])
def test_no_bytes_make_the_server_stumble(served: Served, sent: bytes) -> None:
    for path in ("/v1/models/wait/decide", "/v1/models/plan/decide", "/v1/models/plan/jobs", "/v1/models/wait/outcomes", "/v2/models/wait/infer", "/v1/check", "/v1/nothing", "/v1/models/%00/decide"):
        response = served.http.post(path, content=sent)
        assert 400 <= response.status_code < 500, (path, response.text)
        assert {"error", "code", "hint"} <= set(response.json())


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/models/wait/decide", 405), ("DELETE", "/v1/status", 405), ("GET", "/v1/none/such", 404), ("PATCH", "/v2/models/wait/infer", 405)])
def test_wrong_methods_and_paths_are_told_as_such(served: Served, method: str, path: str, status: int) -> None:
    response = served.http.request(method, path)
    assert (response.status_code, set(response.json())) == (status, {"error", "code", "hint"})
