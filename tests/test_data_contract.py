"""Somebody declares what a table holds, a delivery comes, and every row is judged."""

from __future__ import annotations

import io
import tomllib
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palan.core import Field
from palan.data.contract import Contract, column_text, parse, parse_column, to_schema
from palan.data.infer import infer
from palan.data.reading import LINE, REASONS, parse_file
from palan.data.verdict import verify
from palan.errors import NotFound, PalanError

WEATHER: dict[str, Any] = {
    "source": "feed/weather-*.csv",
    "key": ["origin", "time_hour"],
    "time": "time_hour",
    "checks": ["dewp <= temp + 1"],
    "rows": "2..4000",
    "columns": {
        "origin": "str in EWR JFK LGA",
        "time_hour": "time",
        "temp": "float? -30..120 °F",
        "dewp": "float? -30..100 °F",
        "visib": "float 0..10",
    },
}
HEADER = b"origin,time_hour,temp,dewp,visib\n"


def weather(**changes: Any) -> Contract:
    return parse("weather", {**WEATHER, **changes})


def judge(lines: bytes, contract: Contract | None = None) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    contract = contract or weather()
    checked = verify(parse_file(HEADER + lines, ".csv", contract), contract)
    return checked.good, checked.bad, {rule.rule: rule.count for rule in checked.verdict.broken}


NAIVE = pl.Series(["2013-01-01T00:00", "2013-01-01T05:00"]).str.to_datetime("%Y-%m-%dT%H:%M")


class TestDeclaring:
    def test_a_table_reads_as_fields(self) -> None:
        contract = weather()
        assert contract.field("temp") == Field("temp", "float", nullable=True, minimum=-30, maximum=120, unit="°F")
        assert contract.field("origin").values == ("EWR", "JFK", "LGA")
        assert contract.rows == (2, 4000)
        assert [field.name for field in to_schema(contract, ["visib", "temp"]).fields] == ["visib", "temp"]

    @pytest.mark.parametrize(
        ("text", "said", "hint"),
        [
            ("flaot", '"flaot", which is not a type', "float"),
            ("float 10..1", "upside down", "1..10"),
            ("float 1..x", "is not a range", "0..100"),
            ("float 3", "lone number", "3.."),
            ("str EWR JFK", '"EWR" after the type str', "in EWR JFK"),
            ("str in", "lists no values", "in first"),
            ("str 0..3", "gives a range to a str", "in"),
            ("int in 1 two", '"two"', "str in"),
            ("float in 1 2", "only str and int", "range"),
            ('str in "New York', "open quote", "New York"),
            ("", "needs a text", "float?"),
            (3, "needs a text", "float?"),
        ],
    )
    def test_a_bad_column_says_what_and_how(self, text: object, said: str, hint: str) -> None:
        with pytest.raises(PalanError) as caught:
            parse_column("weather", "temp", text)
        assert said in caught.value.what
        assert 'column "temp" of data "weather"' in caught.value.what
        assert hint in caught.value.hint

    @pytest.mark.parametrize(
        ("change", "said", "hint"),
        [
            ({"sorce": "x"}, 'no setting "sorce"', "source"),
            ({"source": ""}, "exactly one of source and transform", "transform"),
            ({"transform": "f.py:f"}, "exactly one", "source"),
            ({"key": ["orign"]}, 'column "orign"', "origin"),
            ({"key": "origin"}, "list of texts", "key"),
            ({"time": "temp"}, "column of type float", "time"),
            ({"rows": "many"}, "not a band", "500..4000"),
            ({"rows": "9..3"}, "upside down", "3..9"),
            ({"columns": ["temp"]}, "must be a table", "columns"),
        ],
    )
    def test_a_bad_table_says_what_and_how(self, change: dict[str, Any], said: str, hint: str) -> None:
        with pytest.raises(PalanError) as caught:
            weather(**change)
        assert said in caught.value.what
        assert hint in caught.value.hint

    def test_an_unknown_column_names_the_nearest(self) -> None:
        with pytest.raises(NotFound, match="wether") as caught:
            to_schema(weather(), ["wether", "temp"])
        assert "visib" in caught.value.hint
        with pytest.raises(NotFound) as caught:
            to_schema(weather(), ["tmp"])
        assert 'did you mean "temp"?' in caught.value.hint

    @given(
        st.sampled_from(["int", "float"]),
        st.booleans(),
        st.one_of(st.none(), st.integers(-1000, 0)),
        st.one_of(st.none(), st.integers(1, 1000)),
        st.sampled_from(["", "°F", "km per hour"]),
    )
    @settings(max_examples=50, deadline=None)
    def test_text_and_field_are_the_same_thing(self, kind: Any, nullable: bool, low: int | None, high: int | None, unit: str) -> None:
        field = Field("x", kind, nullable, low, high, unit=unit)
        assert parse_column("data", "x", column_text(field)) == field

    @pytest.mark.parametrize(
        ("check", "said"),
        [
            ("dewp <=", "cannot be read"),
            ("dew <= temp", '"dew"'),
            ("SUM(temp) > 3", "not about one row"),
            ("1 = 1", "not about one row"),
            ("temp + 1", "true or false"),
            ("read_csv('/etc/passwd')", "cannot be read"),
        ],
    )
    def test_a_check_that_is_no_row_rule_is_refused(self, check: str, said: str) -> None:
        contract = weather(checks=[check])
        with pytest.raises(PalanError, match="check") as caught:
            verify(parse_file(HEADER, ".csv", contract), contract)
        assert said in caught.value.what


class TestJudging:
    def test_each_broken_row_names_every_rule_it_breaks(self) -> None:
        good, bad, rules = judge(
            b"EWR,2013-01-01T00:00:00Z,39.0,28,10\n"
            b"EWR,2013-01-01T01:00:00Z,warm,28,10\n"
            b"XXX,2013-01-01T02:00:00Z,39,28,\n"
            b"EWR,2013-01-01T03:00:00Z,10,28,10\n"
            b"EWR,2013-01-01T04:00:00Z,nan,28,11\n"
            b"EWR,2013-01-01T05:00:00Z,400,28,10\n"
            b"EWR,yesterday,39,28,10\n"
            b"EWR,2013-01-01T07:00:00Z,,,10\n"
        )
        assert good["time_hour"].to_list() == [datetime(2013, 1, 1, 0, tzinfo=UTC), datetime(2013, 1, 1, 7, tzinfo=UTC)]
        assert good["temp"].to_list() == [39.0, None]
        assert dict(zip(bad[LINE].to_list(), bad[REASONS].to_list(), strict=True)) == {
            3: ["temp is not a float"],
            4: ["origin is not one of EWR JFK LGA", "visib is missing"],
            5: ["check dewp <= temp + 1"],
            6: ["temp is not finite", "visib is outside 0..10"],
            7: ["temp is outside -30..120"],
            8: ["time_hour is not a time"],
        }
        assert rules["temp is not a float"] == 1
        assert bad["temp"].to_list()[0] == "warm", "the quarantine keeps the value as it came"

    def test_a_line_with_too_few_or_too_many_fields_is_not_guessed_at(self) -> None:
        lines = b"EWR,2013-01-01T00:00:00Z,39,28,10\nEWR,2013-01-01T01:00:00Z,39\nEWR,2013-01-01T02:00:00Z,39,28,10,5\n"
        for quoted in (lines, lines.replace(b"EWR", b'"EWR"')):
            good, bad, _ = judge(quoted)
            assert good.height == 1
            assert bad[REASONS].to_list() == [["line has 3 fields, the header has 5"], ["line has 6 fields, the header has 5"]]
            assert bad[LINE].to_list() == [3, 4]

    def test_quoted_cells_may_hold_separators_quotes_and_line_ends(self) -> None:
        contract = parse("notes", {"source": "x", "columns": {"id": "int", "text": "str"}})
        frame = parse_file(b'id,text\r\n1,"a, ""b""\r\nc"\r\n2,plain\r\n', ".csv", contract)
        assert verify(frame, contract).good.rows() == [(1, 'a, "b"\r\nc'), (2, "plain")]
        assert frame[LINE].to_list() == [2, 4]

    def test_one_key_twice(self) -> None:
        same = b"EWR,2013-01-01T00:00:00Z,39,28,10\nEWR,2013-01-01 00:00:00,39.0,28,10\n"
        good, bad, rules = judge(same)
        assert (good.height, bad[LINE].to_list()) == (1, [3])
        assert rules == {"key origin, time_hour repeats an earlier row": 1}
        good, bad, rules = judge(same.replace(b"39.0", b"41"))
        assert (good.height, bad.height) == (0, 2), "nothing says which of the two is right"
        good, bad, rules = judge(same.replace(b"39.0", b"hot"))
        assert (good.height, bad.height) == (1, 1), "a broken row does not take its key from a good one"

    def test_known_keys_are_corrections_and_not_faults(self) -> None:
        contract = weather()
        first = verify(parse_file(HEADER + b"EWR,2013-01-01T00:00:00Z,39,28,10\n", ".csv", contract), contract).good
        again = parse_file(HEADER + b"EWR,2013-01-01T00:00:00Z,40,28,10\nEWR,2013-01-01T01:00:00Z,40,28,10\n", ".csv", contract)
        checked = verify(again, contract, known_keys=first.select("origin", "time_hour"))
        assert (checked.good.height, checked.verdict.corrections) == (2, 1)

    def test_table_rules_never_touch_a_row(self) -> None:
        contract = weather(rows="5..6")
        checked = verify(parse_file(b"origin,time_hour,temp,visib,sky\nEWR,2013-01-01T00:00:00Z,39,10,blue\n", ".csv", contract), contract)
        assert checked.good.height == 1
        assert checked.good.columns == ["origin", "time_hour", "temp", "dewp", "visib", "sky"]
        assert {rule.rule: rule.holds for rule in checked.verdict.table} == {"rows": False, "missing column": False, "extra columns": True}
        assert "1 row, outside 5..6" in checked.verdict.warnings
        assert checked.verdict.to_dict()["good"] == 1

    def test_no_rows_is_a_verdict(self) -> None:
        contract = weather()
        checked = verify(parse_file(HEADER, ".csv", contract), contract)
        assert (checked.good.height, checked.verdict.rows) == (0, 0)
        assert checked.verdict.warnings == ["the delivery has no rows"]
        assert checked.good.schema["time_hour"] == pl.Datetime("us", "UTC")

    def test_a_required_column_that_is_not_there_stops_the_delivery(self) -> None:
        contract = weather()
        with pytest.raises(PalanError, match='no column "visib"') as caught:
            verify(parse_file(b"origin,time_hour,temp,dewp,visibility\n", ".csv", contract), contract)
        assert "visibility" in caught.value.hint

    @pytest.mark.parametrize(
        ("kind", "texts", "values", "broken"),
        [
            ("int", ["3", " 4 ", "3.0", "3.5", "x", "99999999999999999999", ""], [3, 4, 3], 3),
            ("float", ["3", "1e3", "-.5", "1,5", "inf"], [3.0, 1000.0, -0.5], 2),
            ("bool", ["true", "F", "1", "no", "maybe"], [True, False, True, False], 1),
            ("date", ["2013-02-28", "2013-02-30", "28/02/2013"], [date(2013, 2, 28)], 2),
            (
                "time",
                ["2013-01-01T05:00:00Z", "2013-01-01 05:00", "2013-01-01T07:00:00.000+02:00", "2013-01-01 05:00:00 +0000", "2013-01-01T25:00:00Z"],
                [datetime(2013, 1, 1, 5, tzinfo=UTC)] * 4,
                1,
            ),
        ],
    )
    def test_text_is_read_exactly_or_breaks_its_row(self, kind: str, texts: list[str], values: list[Any], broken: int) -> None:
        contract = parse("data", {"source": "x", "columns": {"x": f"{kind}?"}})
        checked = verify(pl.DataFrame({"x": texts}), contract)
        assert checked.good["x"].drop_nulls().to_list() == values
        assert checked.bad.height == broken

    @pytest.mark.parametrize(
        ("kind", "series", "broken"),
        [
            ("int", pl.Series([1.0, 2.5, 1e300]), 2),
            ("int", pl.Series([True, False]), 2),
            ("float", pl.Series([1, 2]), 0),
            ("float", pl.Series([[1.0], [2.0]]), 2),
            ("str", pl.Series([1, 2]), 0),
            ("str", pl.Series(["a", "b"], dtype=pl.Categorical), 0),
            ("str", pl.Series([1.5]), 1),
            ("bool", pl.Series([0, 1, 2]), 1),
            ("time", pl.Series([1, 2]), 2),
            ("time", NAIVE, 0),
            ("date", NAIVE, 1),
        ],
    )
    def test_typed_values_convert_only_without_loss(self, kind: str, series: pl.Series, broken: int) -> None:
        contract = parse("data", {"source": "x", "columns": {"x": kind}})
        checked = verify(series.to_frame("x"), contract)
        assert checked.bad.height == broken
        assert checked.good.height == len(series) - broken

    @given(st.lists(st.tuples(st.sampled_from(["EWR", "X", ""]), st.sampled_from(["1", "x", "", "nan", "900"])), max_size=20))
    @settings(max_examples=60, deadline=None)
    def test_every_row_is_either_good_or_quarantined_with_a_reason(self, rows: list[tuple[str, str]]) -> None:
        contract = parse("data", {"source": "x", "columns": {"a": "str in EWR", "b": "float? 0..100"}})
        checked = verify(pl.DataFrame(rows, schema={"a": pl.String, "b": pl.String}, orient="row"), contract)
        expected = [a == "EWR" and b in ("1", "") for a, b in rows]
        assert checked.good.height == sum(expected)
        assert checked.bad[LINE].to_list() == [number for number, fine in enumerate(expected, start=1) if not fine]
        assert all(len(reasons) for reasons in checked.bad[REASONS].to_list())


class TestReadingFiles:
    def test_parquet_csv_and_ndjson_give_the_same_rows(self) -> None:
        contract = weather()
        rows = pl.DataFrame({"origin": ["EWR"] * 2, "time_hour": ["2013-01-01T00:00:00Z", "2013-01-01T01:00:00Z"], "temp": [39.5, None], "dewp": [1.0, 2.0], "visib": [10, 9]})
        buffer = io.BytesIO()
        rows.write_parquet(buffer)
        files = {".csv": rows.write_csv().encode(), ".ndjson": rows.write_ndjson().encode(), ".parquet": buffer.getvalue()}
        files[".CSV"] = b"\xef\xbb\xbf" + rows.write_csv(separator=";").encode()
        good = [verify(parse_file(data, suffix, contract), contract).good for suffix, data in files.items()]
        assert good[0].height == 2
        assert all(frame.equals(good[0]) for frame in good)

    @pytest.mark.parametrize(
        ("suffix", "data", "said"),
        [
            (".csv", b"", "empty"),
            (".csv", b" \n", "empty"),
            (".csv", b"origin,temp\nEWR,\x00\n", "zero bytes"),
            (".csv", b"origin,temp\n\xc3\xa9,1\nEWR,\xe9\n", "line 3 is not UTF-8"),
            (".csv", b"origin,origin\nEWR,JFK\n", 'two columns of the file are named "origin"'),
            (".csv", b"origin,\nEWR,JFK\n", "column 2 of the file has no name"),
            (".csv", b'origin,temp\n"EWR,1\n', "line 2 is not CSV"),
            (".csv", b"origin,palan_line\nEWR,1\n", "palan uses itself"),
            (".parquet", b"origin,temp\n", "not Parquet"),
            (".parquet", b"PAR1 and then the line went dead", "cut off"),
            (".parquet", b"PAR1 damaged in the middle PAR1", "damaged"),
            (".ndjson", b"origin,temp\n", "no line of the file"),
            (".xlsx", b"PK", "no Excel workbook"),
            (".docx", b"PK", '".docx" cannot be read'),
        ],
    )
    def test_a_file_that_cannot_be_read_says_why(self, suffix: str, data: bytes, said: str) -> None:
        with pytest.raises(PalanError) as caught:
            parse_file(data, suffix, weather())
        assert said in caught.value.what
        assert caught.value.hint

    def test_a_broken_json_line_is_quarantined_alone(self) -> None:
        contract = parse("data", {"source": "x", "columns": {"x": "int", "name": "str"}})
        checked = verify(parse_file(b'{"x": 1, "name": "a"}\n{"x": 2, \n[3]\n{"x": "4", "name": "b"}\n{"x": [5], "name": "c"}\n', ".ndjson", contract), contract)
        assert checked.good.rows() == [(1, "a"), (4, "b")]
        assert checked.bad[LINE].to_list() == [2, 3, 5]
        assert checked.bad[REASONS].to_list() == [["line is not valid JSON"], ["line is not a JSON object"], ["x is not an int"]]


def test_an_inch_is_a_unit_and_no_list_of_values() -> None:
    found = parse_column("weather", "precip", "float 0..10 in")
    assert (found.unit, found.values, found.maximum) == ("in", (), 10.0) and parse_column("weather", "precip", column_text(found)) == found


class TestInferring:
    def test_what_is_inferred_accepts_what_it_saw_and_a_little_more(self) -> None:
        seen = pl.DataFrame(
            {
                "id": list(range(300)),
                "count": [number * 7 % 300 for number in range(300)],
                "origin": ["EWR", "JFK", "LGA"] * 100,
                "temp": [11.0 + number * 7 % 299 / 10 for number in range(299)] + [None],
                "late": [True, False] * 150,
                "time_hour": ["2013-01-01T06:00:00Z"] * 300,
                "seat no": [f"s{number}" for number in range(300)],
            }
        )
        text = infer([seen]).text("seen")
        contract = parse("seen", {"source": "x", **tomllib.loads("[data.seen]\n" + text)["data"]["seen"]})
        assert contract.key == ("id",)
        assert contract.field("origin").values == ("EWR", "JFK", "LGA")
        assert contract.field("time_hour").type == "time"
        assert contract.field("count").minimum == 0, "values that begin at zero have zero as their floor"
        assert contract.field("id").maximum is None, "what counts on has no end"
        assert (contract.field("temp").minimum or 0) < 0, "a cold night is no fault"
        assert "1 of 300 missing" in text
        assert verify(seen, contract).bad.height == 0
        assert verify(seen.with_columns(temp=pl.col("temp") * 100), contract).bad.height > 250

    def test_nothing_is_inferred_from_nothing(self) -> None:
        with pytest.raises(PalanError, match="without rows"):
            infer([pl.DataFrame({"a": []})])
