"""A caller sends something wrong: the answer names the field, the value, the reason and what to send instead."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from random import Random
from typing import Any

import httpx
import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palan.core import Field, Schema, stamp, unstamp, whole
from palan.data.inputs import DEPTH, Inputs, check_plain, infer_schema, problems, to_frame
from palan.errors import Invalid
from palan.flows.history import decisions
from palan.flows.serve import Site
from palan.http.guard import BODY_BYTES, Door, refuse
from palan.web.routes import application
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


# --- what is whole, plain and within bounds ------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_plain_values_are_those_that_can_be_logged_and_sent() -> None:
    for good in (nested(DEPTH), 2**63 - 1, -(2**63), {"a": [1.5, None, True, "x"]}):
        check_plain(good, "x")
    for bad, field in (({"a": [0, 2**63]}, "x.a[1]"), (-(2**63) - 1, "x"), ([float("nan")], "x[0]"), (nested(DEPTH + 2), "x" + "[0]" * (DEPTH + 1))):
        with pytest.raises(Invalid) as caught:
            check_plain(bad, "x")
        assert caught.value.field == field
    open_rows = Inputs(Schema("rows", (Field("x", "any"),)))
    for sent, place in ((nested(DEPTH + 2), "rows[1].x" + "[0]" * (DEPTH + 1)), ({"a": 2**64}, "rows[1].x.a")):
        for read in (lambda rows: open_rows.read(msgspec.json.encode({"rows": rows})), open_rows.take):
            with pytest.raises(Invalid) as caught:
                read([{"x": 1}, {"x": sent}])
            assert caught.value.field == place
    round_about: list[Any] = []
    round_about.append(round_about)
    with pytest.raises(Invalid, match="nested more than"):
        open_rows.take({"x": [round_about]})


def test_one_reader_of_whole_numbers_and_one_of_times() -> None:
    assert whole("007", "limit", 1, 10) == 7
    for text in ("²", "٣", "9" * 5000, "", "-1", "1.0", "11", " 1"):
        with pytest.raises(Invalid, match="limit is"):
            whole(text, "limit", 1, 10)
    assert stamp(unstamp("0001-01-01")) == "0001-01-01T00:00:00.000000Z"
    assert unstamp(stamp(unstamp("0033-04-03T15:00:00Z"))) == datetime(33, 4, 3, 15, tzinfo=UTC)
    for text in ("9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"):
        with pytest.raises(ValueError, match="years 1 to 9999"):
            unstamp(text)


def test_a_time_that_utc_cannot_say_is_no_time() -> None:
    with pytest.raises(Invalid) as caught:
        INPUTS.read(body(scheduled="9999-12-31T23:59:59-23:59"))
    assert caught.value.field == "rows[1].scheduled"
    assert INPUTS.read(body(scheduled="2013-05-01t10:00:00z")).columns["scheduled"][1] == datetime(2013, 5, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("path", "sent", "field"),
    [
        ("/v1/models/plan/decide", {"instance": {**INSTANCE, "room": 2**64}}, "instance.room"),
        ("/v1/models/plan/decide", {"instance": {**INSTANCE, "values": [3.0, 2**64, 8.0]}}, "instance.values[1]"),
        ("/v1/models/plan/decide", {"instance": {**INSTANCE, "values": [3.0, -(2**63) - 1, 8.0]}}, "instance.values[1]"),
        ("/v1/models/plan/decide", {"instance": {**INSTANCE, "mood": nested(500)}}, "instance.mood"),
        ("/v1/models/plan/jobs", {"instance": {**INSTANCE, "values": [3.0, 2**64, 8.0]}}, "instance.values[1]"),
        ("/v1/models/wait/decide", {"rows": [{**VISIT, "people": nested(900)}]}, "rows[0].people"),
        ("/v1/models/wait/decide", {"rows": [{**VISIT, "people": 10**300}]}, "rows[0].people"),
        ("/v1/build", {"model": "wait", "seed": 2**64}, "seed"),
        ("/v1/build", {"model": "wait", "seed": -1}, "seed"),
        ("/v1/build", {"model": "wait", "params": {"most": 2**64}}, "params.most"),
        ("/v1/build", {"model": "wait", "params": {"most": nested(900)}}, "params.most" + "[0]" * DEPTH),
        ("/v1/build", {"model": "wait", "since": "9999-12-31T23:59:59-23:59"}, "since"),
        ("/v1/build", {"model": "wait", "since": "0001-01-01T00:00:00+23:59"}, "since"),
        ("/v1/release", {"model": "wait", "share": 0.2, "wait": "P999999999D"}, "wait"),
    ],
)
def test_what_cannot_be_carried_is_refused_at_the_door(served: Served, path: str, sent: dict[str, Any], field: str) -> None:
    response = served.http.post(path, json=sent)
    assert (response.status_code, response.json()["field"]) == (422, field)
    assert response.json()["hint"]


@pytest.mark.parametrize("on", ["x" * 100_000, "feed/visits.csv", "../queue/feed/visits.csv", "/etc/passwd", "9999-12-31T23:59:59-23:59..", "\0"])
def test_over_http_a_replay_is_of_a_window_and_never_of_a_file(served: Served, on: str) -> None:
    response = served.http.post("/v1/replay", json={"model": "wait", "on": on})
    assert response.status_code == 400
    assert "names no window" in response.json()["error"] and len(response.content) < 400
    assert served.http.post("/v1/replay", json={"model": "wait", "file": "feed/visits.csv"}).status_code == 422


@pytest.mark.parametrize("number", ["²", "9" * 5000, "-1", "1e3", "٣"])
def test_numbers_in_an_address_are_read_strictly(served: Served, number: str) -> None:
    for path, name in (("/v1/log", "limit"), ("/v1/jobs", "limit"), ("/ledger", "page")):
        assert served.http.get(path, params={name: number}).status_code == 422


def raw(served: Served, sent: bytes) -> None:
    with socket.create_connection((served.http.base_url.host, served.http.base_url.port)) as connection:
        connection.sendall(sent)


@pytest.mark.parametrize("chunked", [False, True])
def test_half_a_request_is_none(served: Served, chunked: bool) -> None:
    """The bytes that came are a whole document; that the sender died before the end of its request is known all the same."""
    row = json.dumps({"rows": [{**VISIT, "id": "half"}]}).encode()
    told = json.dumps({"keys": ["half"], "values": [1.0]}).encode()
    before = len(list(served.project.store.blocks.scan("outcomes/wait")))
    for name, sent in (("decide", row), ("outcomes", told)):
        framing = f"transfer-encoding: chunked\r\n\r\n{len(sent):x}\r\n" if chunked else f"content-length: {len(sent) + 50}\r\n\r\n"
        raw(served, f"POST /v1/models/wait/{name} HTTP/1.1\r\nhost: localhost\r\n{framing}".encode() + sent + (b"\r\n" if chunked else b""))
    assert served.decide("wait", rows=[{**VISIT, "id": "whole"}]).status_code == 200
    time.sleep(0.3)
    keys = [key for each in decisions(served.project, "wait") for key in each.keys or ()]
    assert "half" not in keys and "whole" in keys
    assert len(list(served.project.store.blocks.scan("outcomes/wait"))) == before


def test_too_large_a_body_is_told_to_who_is_still_sending(served: Served) -> None:
    connection = http.client.HTTPConnection(served.http.base_url.host, served.http.base_url.port, timeout=30)
    connection.request("POST", "/v1/models/wait/decide", body=bytes(BODY_BYTES + (8 << 20)))
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["code"]) == (413, "too_large")
    connection.close()


@pytest.mark.parametrize("path", ["/ui/stop/x", "/v1/check", "/v1/models/wait/decide"])
def test_too_many_chunks_are_told_on_every_path(path: str, served: Served) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(66):
            yield bytes(1 << 20)

    response = served.http.post(path, content=chunks())
    assert (response.status_code, response.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize("host", ["[::1", "[::1]x", "[]", "localhost:port", "localhost:1:2", "::1]", "a@localhost", ""])
def test_a_host_that_is_none_is_not_let_in(host: str) -> None:
    refusal = refuse("/", {b"host": host}, Door())
    assert refusal is not None and refusal[0] == 421
    for good in ("localhost", "127.0.0.1:7070", "[::1]", "[::1]:7070", "LOCALHOST:1"):
        assert refuse("/", {b"host": good}, Door()) is None


HOSTILE: tuple[Any, ...] = (
    None, True, 0, -1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**4000, 1.5, 1e308, "", "²", "\0", "x" * 5000, "../../etc/passwd", "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59", "P99999999D", "wait", "wait@²", "last:99999d", "..", [], {}, nested(70), nested(400), {"a": nested(900)}, [{}], "🦆", "NaN",
)  # fmt: skip
NAMES = ("rows", "instance", "keys", "key", "outcomes", "values", "ids", "inputs", "outputs", "id", "name", "shape", "datatype", "data", "value", "model", "people", "desk", "temp")
VERBS = {"build": ("seed", "since", "params"), "check": ("against", "model"), "replay": ("on", "against"), "why": ("subject",), "release": ("version", "share", "wait", "reason"), "watch": ("model",)}


def mutated(value: Any, random: Random) -> Any:
    """Return the value with hostile ones in some of its places."""
    if random.random() < 0.15:
        return random.choice(HOSTILE)
    if isinstance(value, dict):
        found = {name: mutated(item, random) for name, item in value.items() if random.random() > 0.05}
        return found if random.random() > 0.1 else {**found, random.choice(NAMES): random.choice(HOSTILE)}
    return [mutated(item, random) for item in value] if isinstance(value, list) else value


def request_of(random: Random) -> tuple[str, str, dict[str, str], bytes]:
    tensors = [{"name": "people", "datatype": "INT64", "shape": [1], "data": [10]}, {"name": "desk", "datatype": "BYTES", "shape": [1, 1], "data": [["A"]]}, {"name": "id", "datatype": "BYTES", "shape": [1], "data": ["k"]}]
    posts: tuple[tuple[str, Any], ...] = (
        ("/v1/models/wait/decide", {"rows": [VISIT, VISIT], "keys": ["a", 7]}),
        ("/v1/models/wait/decide", {"rows": {name: [value] for name, value in VISIT.items()}}),
        ("/v1/models/plan_fast/decide", {"instance": INSTANCE, "key": "k"}),
        ("/v1/models/wait/outcomes", {"outcomes": [{"key": "a", "value": 1.5}, {"id": "0" * 26 + "-0", "value": None}]}),
        ("/v1/models/plan/outcomes", {"keys": ["a", 1], "values": [{"a": 1}, 2]}),
        ("/v2/models/wait/infer", {"inputs": tensors, "id": "x", "outputs": [{"name": "output"}]}),
    )
    query = {random.choice(("limit", "page", "subject", "verify", "model", "time_limit", "reason")): str(random.choice(("²", "9" * 5000, "-1", "nan", "\0", "x", "")))}
    if random.random() < 0.25:
        path = random.choice(("/v1/log", "/v1/jobs", "/ledger", "/v1/jobs/{}", "/jobs/{}", "/models/{}", "/alarms/{}", "/ui/{}/x", "/v1/models/{}", "/v2/models/{}", "/v2/models/wait/versions/{}", "/static/{}", "/{}"))
        return "GET", path.format(random.choice(("²", "%00", "%ff", "..%2f..", "wait", "x" * 3000, "9" * 5000, "%F0%9F%A6%86"))), query, b""
    if random.random() < 0.3:
        verb = random.choice(list(VERBS))
        sent: Any = {"model": "wait" if verb == "replay" else "nobody", random.choice(VERBS[verb]): random.choice(HOSTILE)}
        path = f"/v1/{verb}"
    elif random.random() < 0.1:
        path, sent = f"/ui/{random.choice(('stop', 'rollback', 'approve', '²'))}/x", random.choice(HOSTILE)
    else:
        path, sent = random.choice(posts)
        sent = mutated(sent, random)
    data = msgspec.json.encode(sent)
    if random.random() < 0.2:  # and now the bytes
        place = random.randrange(len(data) + 1)
        data = random.choice((data[:place], data[:place] + bytes([random.randrange(256)]) + data[place + 1 :], b"[" * 2000 + data, data + b"\xed\xa0\x80", b"\xff\xfe" + data))
    return "POST", path, query if random.random() < 0.2 else {}, data


def test_whatever_is_sent_the_server_has_an_answer(served: Served) -> None:
    """Hundreds of malformed requests, drawn with a seed: none makes the application stumble (5xx)."""
    site = Site(served.project, "http://localhost", served.server.deciders, served.server.runner, (), "", "secret")
    random = Random(20130501)

    async def ask() -> list[int]:
        seen = []
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application(site)), base_url="http://localhost") as client:
            for _ in range(700):
                method, path, query, data = request_of(random)
                response = await client.request(method, path, params=query or None, content=data)
                assert response.status_code < 500, (method, path, query, data[:300], response.text)
                seen.append(response.status_code)
        return seen

    with ThreadPoolExecutor(1) as own:  # a browser that another test opened has its loop in this thread
        seen = own.submit(asyncio.run, ask()).result()
    assert {200, 400, 404, 422} <= set(seen)  # it got past the door, and was let in now and then
