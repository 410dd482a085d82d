"""The search language: what it reads, and how it points at what it cannot."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palan.errors import PalanError
from palan.runs.search import Both, Compare, Condition, Field, Not, Order, parse, parse_order

LOSS, MODEL = Field("metric", "loss"), Field("param", "model")


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("", None),
        ("  ", None),
        ("metrics.loss < 0.3", Compare(LOSS, "<", (0.3,))),
        ("metric.loss<=-1e-3", Compare(LOSS, "<=", (-0.001,))),
        ("min(metrics.loss) > 1", Compare(Field("metric", "loss", "min"), ">", (1.0,))),
        ("params.model = 'trees'", Compare(MODEL, "=", ("trees",))),
        ('params."learning rate" != "it""s"', Compare(Field("param", "learning rate"), "!=", ('it"s',))),
        ("params.`a b` = 'it''s'", Compare(Field("param", "a b"), "=", ("it's",))),
        ("params.lr < 0.1", Compare(Field("param", "lr"), "<", (0.1,))),
        ("params.lr >= '0.1'", Compare(Field("param", "lr"), ">=", (0.1,))),
        ("metrics.val/loss = 1", Compare(Field("metric", "val/loss"), "=", (1.0,))),
        ("metrics.a.b.c = 1", Compare(Field("metric", "a.b.c"), "=", (1.0,))),
        ("tags.mlflow.runName LIKE 'a%'", Compare(Field("tag", "mlflow.runName"), "like", ("a%",))),
        ("attributes.start_time > 1704067200000", Compare(Field("attribute", "time"), ">", (datetime(2024, 1, 1, tzinfo=UTC),))),
        ("time >= '2024-01-01'", Compare(Field("attribute", "time"), ">=", (datetime(2024, 1, 1, tzinfo=UTC),))),
        ("Status = 'done'", Compare(Field("attribute", "status"), "=", ("done",))),
        ("run_id IN ('a', 'b')", Compare(Field("attribute", "id"), "in", ("a", "b"))),
        ("metrics.loss IS NULL", Compare(LOSS, "null")),
        ("metrics.loss is not null", Not(Compare(LOSS, "null"))),
        ("params.model NOT IN ('a')", Both((Not(Compare(MODEL, "in", ("a",))), Not(Compare(MODEL, "null"))), every=True)),
        ("NOT NOT metrics.loss = 1", Not(Not(Compare(LOSS, "=", (1.0,))))),
        ("params.fast = true", Compare(Field("param", "fast"), "=", ("true",))),
    ],
)
def test_what_it_reads(text: str, tree: Condition | None) -> None:
    assert parse(text) == tree


def test_and_binds_closer_than_or_and_parentheses_closest() -> None:
    one, two, three = (Compare(Field("metric", name), "=", (1.0,)) for name in "abc")
    assert parse("metrics.a = 1 or metrics.b = 1 and metrics.c = 1") == Both((one, Both((two, three), every=True)), every=False)
    assert parse("(metrics.a = 1 or metrics.b = 1) and metrics.c = 1") == Both((Both((one, two), every=False), three), every=True)


@pytest.mark.parametrize(
    ("text", "at", "why"),
    [
        ("metrics.loss", 13, "a comparison is expected"),
        ("metrics.loss <", 15, "a value is expected"),
        ("metrics.loss < abc", 16, "a number or a text in quotes"),
        ("metrics.loss < 'abc'", 16, "compared with a number"),
        ("metrics.loss LIKE 'a'", 19, "LIKE is for text"),
        ("metrics.loss < 1 AND", 21, "something to compare"),
        ("metrics.loss < 1 metrics.b = 2", 18, "AND, OR or the end"),
        ("(metrics.loss < 1", 18, "a ) is missing"),
        ("params.a = 'open", 12, "this quote is not closed"),
        ("params.a in 'x'", 13, "a list in parentheses"),
        ("params.a in ('x'", 17, "a , or a ) is expected"),
        ("loss < 1", 1, 'a run has no "loss"'),
        ("metrcs.loss < 1", 1, 'there is no "metrcs"'),
        ("time > 'soon'", 8, "this is no time"),
        ("params.a = 1; drop table run", 13, "does not belong in a search"),
        ("params.a is nul", 13, "NULL is expected"),
        ("and", 1, "a name is expected"),
    ],
)
def test_an_error_points_at_the_character(text: str, at: int, why: str) -> None:
    with pytest.raises(PalanError) as refused:
        parse(text)
    first, shown = refused.value.what.splitlines()
    assert f"at character {at}:" in first
    assert why in first
    assert shown == text[: at - 1] + "→" + text[at - 1 :]
    assert refused.value.hint


def test_order_by_several_keys() -> None:
    assert parse_order(["metrics.loss DESC", "attributes.start_time asc", "params.`a b`"]) == [
        Order(LOSS, descending=True),
        Order(Field("attribute", "time")),
        Order(Field("param", "a b")),
    ]
    with pytest.raises(PalanError, match="ASC, DESC or the end"):
        parse_order(["metrics.loss downwards"])


@given(st.text(max_size=60))
def test_no_text_breaks_it(text: str) -> None:
    try:
        parse(text)
    except PalanError as refused:
        assert "at character" in refused.what


def test_what_mlflow_calls_a_status_is_understood() -> None:
    assert parse("attributes.status = 'FINISHED' and status IN ('KILLED', 'failed')") == parse("status = 'done' AND status IN ('killed', 'failed')")
    assert parse("status LIKE 'FIN%'") != parse("status LIKE 'done%'") and parse("tags.status = 'FINISHED'") != parse("tags.status = 'done'")
