"""One row at a time answers what the batch answers, and says what it cannot."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime

import polars as pl
import pytest

from expressions import campaign, same
from palan.data.scalar import Deviates, compile_rows
from palan.errors import PalanError

a, s, t = pl.col("a"), pl.col("s"), pl.col("t")
SCHEMA: dict[str, pl.DataType] = {"a": pl.Float64(), "s": pl.String(), "t": pl.Datetime("us", "UTC")}
ROW = {"a": 5.0, "s": "Abc", "t": datetime(2024, 10, 27, 0, 30, tzinfo=UTC)}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_expressions_answer_alike_on_adversarial_rows(seed: int) -> None:
    compiled, _, told, _ = campaign(seed, rounds=150, count=40)
    assert compiled > 80
    assert not told, "\n".join(told)


def test_what_counts_as_the_same_is_strict() -> None:
    assert same(1.0, math.nextafter(1.0, 2.0), pl.Float64())
    assert not same(1.0, 1.0 + 4e-16, pl.Float64())
    assert not same(1, 1.0, pl.Float64())
    assert not same(None, math.nan, pl.Float64())


def test_expressions_share_what_they_have_in_common() -> None:
    scalar = compile_rows({"x": (a + 60).log(), "y": (a + 60).log() * 2, "z": pl.col("y") - 1}, SCHEMA)
    assert scalar.source.count("_ln") == 1
    assert scalar.columns == ("a",)
    found = scalar.row({"a": 5})  # a whole number in a float column
    assert found == {"x": math.log(65), "y": 2 * math.log(65), "z": 2 * math.log(65) - 1}
    assert scalar.row({"a": None}) == {"x": None, "y": None, "z": None}


def test_a_column_that_is_never_null_costs_no_test() -> None:
    assert "None" not in compile_rows({"x": a + 1}, SCHEMA, required=["a"]).source


@pytest.mark.parametrize(
    ("expression", "node"),
    [
        (a.sum(), "Agg.Sum"),
        (a.mean().over("s"), "over"),
        (a.shift(1), "Shift"),
        (s.str.json_path_match("$.x"), "JsonPathMatch"),
        (s.str.contains(r"\bx"), "regular expression"),
        (a.map_elements(lambda x: x, return_dtype=pl.Float64), "map_elements"),
    ],
)
def test_what_cannot_be_compiled_is_named_with_its_cost(expression: pl.Expr, node: str) -> None:
    with pytest.raises(PalanError) as caught:
        compile_rows({"x": expression}, SCHEMA, strict=True)
    assert node in caught.value.what
    assert "400 µs" in caught.value.hint
    assert node in compile_rows({"x": expression}, SCHEMA).refused["x"]


def test_what_is_not_compiled_goes_through_polars() -> None:
    scalar = compile_rows({"day": t.dt.strftime("%d.%m."), "length": pl.col("day").str.len_chars(), "more": a + 1}, SCHEMA)
    assert set(scalar.refused) == {"day", "length"}
    assert scalar.row(ROW) == {"day": "27.10.", "length": 6, "more": 6.0}


def test_an_odd_row_goes_through_polars_and_its_neighbours_do_not() -> None:
    hour = compile_rows({"hour": t.dt.convert_time_zone("Europe/Paris").dt.hour()}, SCHEMA)
    assert hour.row(ROW) == {"hour": 2}
    assert hour.row({"t": datetime(1911, 1, 1, 12, tzinfo=UTC)}) == {"hour": 12}  # Paris had its own nine minutes then
    whole = compile_rows({"n": s.cast(pl.Int64)}, SCHEMA)
    assert whole.row({"s": "007"}) == {"n": 7}
    with pytest.raises(PalanError, match="cannot be computed from this row"):
        whole.row({"s": "seven"})


def test_many_rows_are_a_batch() -> None:
    scalar = compile_rows({"x": (a * 2).sqrt(), "y": s.str.to_uppercase()}, SCHEMA)
    many = [{**ROW, "a": float(number)} for number in range(2100)]
    assert scalar.rows(many) == [scalar.row(row) for row in many]


def test_every_letter_has_the_case_that_polars_gives_it() -> None:
    letters = [chr(point) for point in range(0x20000) if not 0xD800 <= point <= 0xDFFF]
    scalar = compile_rows({"low": s.str.to_lowercase(), "high": s.str.to_uppercase(), "bare": s.str.strip_chars()}, {"s": pl.String()})
    batch = scalar.batch(pl.LazyFrame({"s": letters})).drop("s").collect().to_dicts()
    odd = []
    for letter, expected in zip(letters, batch, strict=True):
        try:
            found = scalar.function({"s": letter})
        except Deviates:
            continue
        if found != expected:
            odd.append((letter, found, expected))
    assert odd == []


def test_a_row_that_does_not_fit_is_told() -> None:
    scalar = compile_rows({"x": a + 1}, SCHEMA)
    with pytest.raises(PalanError, match='no column "a"'):
        scalar.row({"b": 1.0})
    with pytest.raises(PalanError, match=r"cannot be computed|does not fit"):
        scalar.row({"a": "five"})
    with pytest.raises(PalanError, match="does not fit the columns"):
        compile_rows({"x": pl.col("ghost") + 1}, SCHEMA)


def test_dates_come_and_go_as_dates() -> None:
    scalar = compile_rows({"day": t.dt.date(), "week": t.dt.truncate("1w"), "since": t - t.dt.truncate("1d")}, SCHEMA)
    found = scalar.row(ROW)
    assert found["day"] == date(2024, 10, 27)
    assert found["week"] == datetime(2024, 10, 21, tzinfo=UTC)
    assert found["since"].total_seconds() == 1800
