"""Somebody says more of a table than types and ranges: patterns, references, bands, what a column means, and how grave each is."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from palan.core import Field, Schema
from palan.data.contract import Column, Contract, column_toml, narrowed, parse, to_toml
from palan.data.evolution import changes
from palan.data.infer import infer as infer_contract
from palan.data.inputs import Inputs, in_python
from palan.data.reading import LINE, REASONS
from palan.data.verdict import Checked, Judge, once_more, verify
from palan.errors import Invalid, PalanError
from palan.flows import tables
from palan.flows.contracts import export, read_document
from palan.flows.contracts import infer as infer_files
from palan.flows.evolve import contract_diff
from palan.flows.ingest import ingest
from palan.flows.project import open_project

NOW = datetime(2026, 1, 10, 12, tzinfo=UTC)


def table(columns: dict[str, Any], **more: Any) -> Contract:
    return parse("trips", {"source": "x.csv", "columns": columns, **more})


def judge(columns: dict[str, Any], rows: dict[str, list[Any]], *, known: dict[str, pl.Series] | None = None, now: datetime | None = None, **more: Any) -> Checked:
    return verify(pl.DataFrame(rows), table(columns, **more), known=known, now=now)


def counts(checked: Checked) -> dict[str, int]:
    return {rule.rule: rule.count for rule in checked.verdict.broken}


def told(checked: Checked) -> dict[str, bool]:
    return {rule.rule: rule.holds for rule in checked.verdict.table}


class TestDeclaring:
    @pytest.mark.parametrize(
        "said",
        [
            "str matches '^[A-Z]{3}$'",
            "str? length 2..5 matches '^ [a-z]+$' unique",
            "time rising",
            "int 1.. unique rising of planes.number km per hour",
            "str of 'planes.tail number' in 'New York' B",
            {"type": "float? -30..120 °F", "meaning": 'air at "2 m"', "nulls": "..5%", "mean": "20..90", "quantiles": {"p50": "10..20", "p99.9": "..40"}, "severity": {"range": "warn", "mean": "stop"}},
            {"type": "str", "shares": {"New York": "10%..30%"}, "severity": {"type": "stop", "shares": "stop"}},
        ],
    )
    def test_what_is_written_is_read_back(self, said: Any) -> None:
        contract = table({"x": said})
        written = column_toml(contract.field("x"), contract.told("x"))
        again = table(tomllib.loads(f"x = {written}"))
        assert (again.field("x"), again.told("x")) == (contract.field("x"), contract.told("x"))
        assert isinstance(said, dict) or again.told("x").severity == {}

    def test_a_table_and_a_text_say_the_same(self) -> None:
        short = table({"t": "float? -30..120 °F", "c": "str length 3..3 unique of a.b", "s": "str in A B"})
        long = table({"t": {"type": "float?", "range": "-30..120", "unit": "°F"}, "c": {"type": "str", "length": "3..3", "unique": True, "of": "a.b"}, "s": {"type": "str", "in": ["A", "B"]}})
        assert short == long

    @pytest.mark.parametrize(
        ("said", "what", "hint"),
        [
            ("str matches '('", "no regular expression", "matches"),
            ("str matches '(?=a)b'", "only some regular expressions", "classes"),
            ("str matches", 'ends after "matches"', "matches"),
            ("int matches '1'", "about text", "str matches"),
            ("str length 5..2", "upside down", "2..5"),
            ("str length long", "band of counts", "2..5"),
            ("str uniqe", '"uniqe" after the type str', '"unique"'),
            ("bool unique", "says nothing", "int, str"),
            ("float °F -30..120", '"-30..120" after the unit', "last"),
            ("str rising", "says nothing", "time"),
            ("str of planes", "no column of a table", "planes.tailnum"),
            ("str of trips.y", "the same table", "planes.tailnum"),
            ("str matches 'A' in A B", "lists its values", "take one"),
            ({"type": "float", "rang": "1..2"}, 'no setting "rang"', '"range"'),
            ({"range": "1..2"}, "needs a text", "float"),
            ({"type": "float", "nulls": "..5%"}, "may never be missing", "float?"),
            ({"type": "float?", "nulls": "5"}, "not a band", "..5%"),
            ({"type": "float?", "nulls": "..500%"}, "no band of shares", "10%"),
            ({"type": "float", "mean": "9..1"}, "upside down", "1..9"),
            ({"type": "float", "mean": "..5%"}, "not a band", "20..90"),
            ({"type": "str", "mean": "1..9"}, "says nothing", "int, float"),
            ({"type": "float", "quantiles": {"q5": "1..2"}}, '"q5" is no quantile', "p50"),
            ({"type": "float", "unique": "yes"}, "true or false", "unique = true"),
            ({"type": "float", "severity": "wran"}, "which is none", '"warn"'),
            ({"type": "float", "severity": {"rnage": "warn"}}, "no rule of it", "type"),
            ({"type": "float", "mean": "1..2", "severity": {"mean": "quarantine"}}, "sets no row apart", "stop, warn"),
            ({"type": "float", "severity": {"type": "warn"}}, "wave through", "quarantine, stop"),
        ],
    )
    def test_a_bad_column_says_what_and_how(self, said: Any, what: str, hint: str) -> None:
        with pytest.raises(PalanError) as caught:
            table({"x": said})
        assert what in caught.value.what
        assert 'column "x" of data "trips"' in caught.value.what
        assert hint in caught.value.hint

    @pytest.mark.parametrize(
        ("more", "what", "hint"),
        [
            ({"fresh": "3d"}, "no column says when", "time ="),
            ({"fresh": "soon", "time": "t"}, "not an age", "3d"),
            ({"rules": [{"severity": "warn"}]}, "has no check", "check ="),
            ({"rules": [{"check": "a > 1", "sevrity": "warn"}]}, 'no setting "sevrity"', "severity"),
            ({"rules": [{"check": "a > 1"}], "checks": ["a > 1"]}, "there twice", "once"),
            ({"severity": {"rows": "quarantine"}, "rows": "1.."}, "sets no row apart", "stop"),
            ({"severity": {"row": "stop"}, "rows": "1.."}, "no rule of it", '"rows"'),
        ],
    )
    def test_a_bad_table_says_what_and_how(self, more: dict[str, Any], what: str, hint: str) -> None:
        with pytest.raises(PalanError) as caught:
            table({"a": "int", "t": "time"}, **more)
        assert what in caught.value.what
        assert hint in caught.value.hint

    def test_a_reference_that_nobody_can_follow_is_refused(self) -> None:
        with pytest.raises(PalanError, match=r"planes\.tail, of which nothing is known"):
            verify(pl.DataFrame({"x": ["a"]}), table({"x": "str of planes.tail"}))


class TestRowRules:
    def test_each_row_names_what_it_breaks(self) -> None:
        found = judge({"x": "str? length 2..3 matches '^[A-Z]+$'"}, {"x": ["AB", "ABCD", "abcd", "A", "ÄÖ", "AB\n", None]})
        assert counts(found) == {"x is outside 2..3 characters long": 3, "x is no match of ^[A-Z]+$": 3}
        assert dict(found.bad.select(LINE, pl.col(REASONS).list.len()).iter_rows()) == {2: 1, 3: 2, 4: 1, 5: 1, 6: 1}

    def test_references_are_read_as_the_column_is(self) -> None:
        found = judge({"x": "int? of planes.number"}, {"x": ["1", "02", "3", None]}, known={"planes.number": pl.Series(["1", "2", None])})
        assert found.bad[LINE].to_list() == [3]
        assert counts(found) == {"x is not in planes.number": 1}

    def test_rows_that_share_a_unique_value_are_all_set_apart(self) -> None:
        found = judge({"id": "int", "x": "str? unique"}, {"id": [1, 2, 2, 3, 4, 5], "x": ["a", "b", "b", "a", None, None]}, key=["id"])
        assert dict(found.bad.select(LINE, REASONS).iter_rows()) == {1: ["x is not unique"], 3: ["key id repeats an earlier row"], 4: ["x is not unique"]}

    @pytest.mark.parametrize("size", [1, 3, 1000])
    def test_batches_find_what_one_look_would(self, size: int) -> None:
        random = np.random.default_rng(size)
        rows = pl.DataFrame({"id": random.permutation(500), "u": random.integers(0, 3000, 500), "t": np.arange(500) + random.integers(0, 2, 500) * 3, "v": random.normal(5, 1, 500)})
        rows = rows.with_columns(pl.when(pl.col("id") % 7 > 0).then("t").alias("t"))
        contract = table(
            {"id": "int", "u": "int unique", "t": "int? rising", "v": {"type": "float 2.5..", "mean": "4..6", "quantiles": {"p90": "5..6"}}}, key=["id"], rules=[{"check": "v < 7", "severity": "warn"}]
        )
        judged = Judge(contract)
        bad = [judged.take(rows[begin : begin + size].with_columns(pl.int_range(begin + 1, begin + 1 + min(size, 500 - begin), dtype=pl.Int64).alias(LINE)))[1] for begin in range(0, 500, size)]
        lines = judged.repeated()
        bad.append(judged.settle([rows.with_columns(pl.int_range(1, 501, dtype=pl.Int64).alias(LINE)).filter(pl.col(LINE).is_in(lines.implode()))])[0])
        # by hand: each number is below the last one above that is there; what breaks no other rule is unique
        values = rows["t"].to_list()
        falls = {n + 1 for n, v in enumerate(values) if v is not None and (above := [u for u in values[:n] if u is not None]) and v < above[-1]}
        low = {n + 1 for n, v in enumerate(rows["v"]) if v < 2.5}
        hold = [n for n in range(500) if n + 1 not in falls | low]
        seen = rows["u"].gather(hold).to_list()
        twice = {n + 1 for n in hold if seen.count(rows["u"][n]) > 1}
        assert {line for frame in bad for line in frame[LINE]} == falls | low | twice
        verdict = judged.verdict(0)
        kept = rows["v"].gather([n for n in hold if n + 1 not in twice])
        assert {rule.rule: rule.count for rule in verdict.broken} == {"u is not unique": len(twice), "t is not rising": len(falls), "v is below 2.5": len(low), "check v < 7": int((rows["v"] >= 7).sum())}
        assert [rule.text for rule in verdict.table if rule.rule == "mean of v"] == [f"the mean of v is {kept.mean():.6g}, within 4..6"]

    def test_what_warns_is_taken_in_and_what_stops_is_told_apart(self) -> None:
        columns = {"a": {"type": "int 0..9", "severity": "warn"}, "b": {"type": "int? 0..9", "severity": {"type": "stop"}}, "c": "int 0..9"}
        found = judge(columns, {"a": [1, 99, 99], "b": ["1", "x", "99"], "c": [1, 1, 99]}, rules=[{"check": "a < 50", "severity": "stop"}])
        assert found.good.height == 1
        assert found.verdict.warnings == ["2 x a is outside 0..9, taken in"]
        assert found.verdict.stops == ["1 x b is not an int (x)", "2 x check a < 50 (line 2)"]
        assert found.bad[REASONS].to_list() == [["b is not an int", "check a < 50"], ["b is outside 0..9", "c is outside 0..9", "check a < 50"]]

    def test_what_broke_a_rule_about_other_rows_does_not_hold_alone(self) -> None:
        contract = table({"x": "int unique", "t": "int rising"})
        bad = verify(pl.DataFrame({"x": [1, 1, 2, 3], "t": [1, 2, 3, 1]}), contract).bad
        again = once_more(bad, contract)
        assert again is not None and again.good.height == 0 and again.bad.height == 3
        free = once_more(bad, table({"x": "int", "t": "int"}))
        assert free is not None and free.good.height == 3

    def test_a_part_of_the_columns_is_judged_without_the_rest(self) -> None:
        contract = table({"x": {"type": "str unique of a.b length ..3", "severity": "stop"}, "y": "int rising", "t": "time"}, checks=["y > 1"], fresh="1d", time="t")
        found = verify(pl.DataFrame({"x": ["a", "a", "long"]}), narrowed(contract, ["x"]))
        assert counts(found) == {"x is above 3 characters long": 1}
        assert found.verdict.stops == []


class TestTableRules:
    def test_bands_hold_or_are_told_and_set_no_row_apart(self) -> None:
        columns = {
            "v": {"type": "float?", "nulls": "..20%", "mean": "20..90", "quantiles": {"p50": "1..2", "p75": "2.."}},
            "s": {"type": "str?", "shares": {"A": "50%..", "B": "..10%"}},
        }
        found = judge(columns, {"v": [1.0, 2.0, 3.0, None], "s": ["A", "A", "B", None]})
        assert found.good.height == 4
        assert told(found) == {"nulls of v": False, "mean of v": False, "p50 of v": True, "p75 of v": True, "share A of s": True, "share B of s": False}
        assert found.verdict.warnings == ["25% of v is missing, above ..20%", "the mean of v is 2, below 20..90", "33.3% of s is B, above ..10%"]

    @pytest.mark.parametrize("word", ["p1", "p50", "p90", "p99.9"])
    def test_a_quantile_is_told_exactly(self, word: str) -> None:
        values = np.round(np.random.default_rng(3).normal(0, 10, 997), 1)
        exact = float(np.quantile(values, float(word[1:]) / 100, method="inverted_cdf"))
        for band, holds in ((f"{exact}..{exact}", True), (f"{exact + 0.05}..", False), (f"..{exact - 0.05}", False)):
            found = judge({"v": {"type": "float", "quantiles": {word: band}}}, {"v": values.tolist()})
            assert told(found) == {f"{word} of v": holds}

    def test_a_column_without_values_keeps_no_band(self) -> None:
        found = judge({"v": {"type": "float?", "mean": "0..1", "severity": "stop"}}, {"v": [None, None]})
        assert found.verdict.stops == ["mean of v cannot be told: it has no values"]

    def test_freshness_is_asked_of_the_newest_row_that_holds(self) -> None:
        columns, rows = {"at": "time", "x": "int"}, {"at": ["2026-01-08T12:00Z", "2026-01-10T00:00Z"], "x": ["1", "bad"]}
        assert told(judge(columns, rows, time="at", fresh="2d", now=NOW)) == {"fresh": True}
        stale = judge(columns, rows, time="at", fresh="47h", now=NOW, severity={"fresh": "stop"})
        assert stale.verdict.stops == ["the newest row is of 2026-01-08 12:00, 48 hours old: more than 47 hours"]
        assert told(judge(columns, rows, time="at", fresh="1d")) == {}
        assert told(judge({"at": "date"}, {"at": ["2026-01-09"]}, time="at", fresh="1d", now=NOW)) == {"fresh": False}

    def test_too_few_rows_can_stop(self) -> None:
        assert verify(pl.DataFrame({"x": [1]}), table({"x": "int"}, rows="2..", severity={"rows": "stop"})).verdict.stops == ["1 row, below 2"]


class TestServing:
    FIELD = Field("code", "str", pattern="^[A-Z$]{2,4}$", length=(None, 3))

    @pytest.mark.parametrize(("code", "said"), [("ab", "does not match"), ("ABCD", "4 characters, and 3"), ("AB\n", "does not match"), ("", "does not match")])
    def test_a_request_keeps_the_same_rules(self, code: str, said: str) -> None:
        inputs = Inputs(Schema("rows", (self.FIELD,)))
        assert inputs.take([{"code": "A$"}]).columns["code"] == ["A$"]
        with pytest.raises(Invalid) as caught:
            inputs.take([{"code": code}])
        assert said in caught.value.what
        assert caught.value.field == "rows[0].code"

    @pytest.mark.parametrize("pattern", ["^a$", r"^a\$$", "^[$]$", r"^[\]$]$", "a|b$", r"^\\$", "[^$]$"])
    def test_frames_and_requests_read_a_pattern_alike(self, pattern: str) -> None:
        import re

        texts = ["a", "a\n", "$", "]", "b", "b\n", "a$", "\\", "\\\n", "x", ""]
        assert pl.Series(texts).str.contains(pattern).to_list() == [bool(re.search(in_python(pattern), text)) for text in texts]


TOML = """
[data.trips]
source = "feed/trips-*.csv"
key = ["id"]
time = "at"
fresh = "3d"
rules = [{ check = "id > 0", severity = "warn" }]
[data.trips.columns]
id = "int"
at = "time"
plane = { type = "str of planes.tail", severity = "stop" }
load = { type = "float?", nulls = "..50%", mean = "10..20", severity = { mean = "stop" } }

[data.planes]
source = "feed/planes.csv"
columns = { tail = "str matches '^N[0-9]+$'" }
"""


class TestTakingIn:
    def test_what_stops_takes_nothing_in_and_what_warns_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "palan.toml").write_text(TOML)
        feed = tmp_path / "feed"
        feed.mkdir()
        (feed / "planes.csv").write_text("tail\nN1\nN2\nX3\n")
        (feed / "trips-1.csv").write_text("id,at,plane,load\n1,2026-01-01T00:00Z,N1,15\n2,2026-01-01T01:00Z,N1,\n")
        (feed / "trips-2.csv").write_text("id,at,plane,load\n-3,2026-01-02T00:00Z,N2,15\nx,2026-01-02T01:00Z,N2,10\n")
        project = open_project(tmp_path)
        project.clock = lambda: NOW
        reports = {each["data"]: each for each in ingest(project)}
        assert reports["planes"]["quarantined"] == 1
        assert (reports["trips"]["rows"], reports["trips"]["quarantined"]) == (3, 1)
        # of two files only the last is asked how new it is
        assert reports["trips"]["warnings"] == ["1 x check id > 0, taken in", "the newest row is of 2026-01-02 00:00, 8.5 days old: more than 3 days"]
        for name, rows, said in (("3", "4,2026-01-09T00:00Z,N9,15\n", "1 x plane is not in planes.tail (N9)"), ("4", "5,2026-01-09T00:00Z,N1,99\n", "the mean of load is 99, above 10..20")):
            path = feed / f"trips-{name}.csv"
            path.write_text("id,at,plane,load\n" + rows + "6,2026-01-09T00:00Z,N1,\n")
            with pytest.raises(PalanError) as caught:
                ingest(project, "trips")
            assert f"feed/trips-{name}.csv is refused, and nothing of it is taken in: {said}" in caught.value.what
            path.unlink()
        newest = tables.latest(project, "trips")
        assert newest is not None and newest.rows == 3
        assert tables.read(project, newest)["id"].to_list() == [1, 2, -3]

    def test_a_reference_names_what_is_not_there(self, tmp_path: Path) -> None:
        (tmp_path / "feed").mkdir()
        (tmp_path / "feed" / "trips-1.csv").write_text("id,at,plane,load\n")
        for broken, said in ((("of planes.tail", "of plane.tail"), 'there is no data "plane"'), (("feed/planes.csv", "feed/none.csv"), "planes is empty")):
            (tmp_path / "palan.toml").write_text(TOML.replace(*broken))
            with pytest.raises(PalanError) as caught:
                ingest(open_project(tmp_path), "trips")
            assert said in caught.value.what


def test_a_column_of_which_nothing_more_is_said_has_no_rules() -> None:
    contract = table({"x": "int"})
    assert contract.more == ()
    assert contract.told("x") == Column("x")
    assert contract.fresh is None and table({"t": "time"}, time="t", fresh="2w").fresh == timedelta(weeks=2)


class TestInferring:
    def test_good_batches_keep_what_was_inferred_and_faults_do_not(self) -> None:
        random = np.random.default_rng(5)

        def batch(month: int, rows: int = 400) -> pl.DataFrame:
            level = 50 + 10 * np.sin(month / 2)
            return pl.DataFrame(
                {
                    "at": [datetime(2025, month, 1, tzinfo=UTC) + timedelta(hours=int(hour)) for hour in range(rows)],
                    "month": [month] * rows,
                    "tail": [f"N{number}{'ABC'[number % 3]}" for number in random.integers(100, 999, rows)],
                    "temp": random.normal(level, 5, rows),
                    "rain": random.exponential(1, rows) * (random.random(rows) < 0.2),
                }
            ).with_columns(pl.when(pl.Series(random.random(rows)) > 0.03).then("temp").alias("temp"))

        for history in ([batch(1)], [batch(1), batch(2), batch(3), batch(4)]):
            text = infer_contract(history, time="at").text("x")
            contract = parse("x", {"source": "x", "time": "at", **tomllib.loads("[data.x]\n" + text)["data"]["x"]})
            assert contract.field("tail").pattern == "^[A-Z][0-9]{3}[A-Z]$"
            assert contract.field("month").maximum is None and contract.field("rain").minimum == 0
            assert not contract.field("at").nullable and contract.field("temp").nullable
            following = batch(5)
            clean = verify(following, contract).verdict
            assert (clean.bad, clean.warnings) == (0, [])
            temp = pl.col("temp")
            for fault, said in ((temp * 1000, "temp is outside"), (pl.when(pl.int_range(pl.len()) % 2 > 0).then(temp), "of temp is missing")):
                assert said in verify(following.with_columns(fault.alias("temp")), contract).verdict.text
        assert "4 batches of 400 to 400" in text and "widened" in text

    def test_files_of_a_table_tell_its_contract(self, tmp_path: Path) -> None:
        (tmp_path / "palan.toml").write_text('[data.trips]\nsource = "feed/*.csv"\n')
        (tmp_path / "feed").mkdir()
        for number in range(3):
            lines = [f"{number * 200 + line},2026-0{number + 1}-01,{line % 7}.5" for line in range(200)]
            (tmp_path / "feed" / f"{number}.csv").write_text("id,day,load\n" + "\n".join(lines) + "\n")
        found = infer_files(open_project(tmp_path), "trips")
        contract = parse("trips", {"source": "x", **tomllib.loads("[data.trips]\n" + found["toml"])["data"]["trips"]})
        assert contract.key == ("id",)
        assert [(field.name, field.type) for field in contract.columns] == [("id", "int"), ("day", "date"), ("load", "float")]
        with pytest.raises(PalanError, match=r"none\.csv cannot be read"):
            infer_files(open_project(tmp_path), "trips", ["none.csv"])


FULL = parse(
    "weather",
    {
        "source": "feed/weather-*.csv",
        "key": ["origin", "at"],
        "time": "at",
        "fresh": "36h",
        "rows": "500..4000",
        "severity": {"rows": "stop"},
        "checks": ["dewp <= temp + 1"],
        "rules": [{"check": "temp > -60", "severity": "warn"}],
        "columns": {
            "origin": "str in EWR 'New York'",
            "at": "time rising",
            "temp": {"type": "float? -30..120.5 °F", "meaning": "air temperature at 2 m", "nulls": "..5%", "mean": "20..90", "quantiles": {"p50": "10..20"}, "severity": {"mean": "stop", "range": "warn"}},
            "dewp": "float?",
            "code": "str length 3..3 matches '^[A-Z]{3}$' unique of stations.code",
            "wind": {"type": "int 0..", "shares": {"0": "1%..30%"}},
            "day": {"type": "date?", "nulls": "10%..20%"},
        },
    },
)


class TestOpenDataContract:
    def test_a_contract_comes_back_as_it_was(self, tmp_path: Path) -> None:
        (tmp_path / "palan.toml").write_text(to_toml(FULL))
        project = open_project(tmp_path)
        assert tables.contract_of(project, "weather") == FULL
        path = tmp_path / "weather.odcs.yaml"
        assert export(project, "weather", path)["columns"] == 7
        again = read_document(path)
        assert again["left out"] == []
        assert parse("weather", tomllib.loads(again["toml"])["data"]["weather"]) == FULL
        with pytest.raises(PalanError, match="there already"):
            export(project, "weather", path)

    def test_a_document_of_somebody_else_is_read_and_what_is_left_out_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "orders.yaml"
        path.write_text(
            """
apiVersion: v3.0.2
kind: DataContract
id: orders-1
version: 2.0.0
status: active
contractCreatedTs: 2024-05-01T10:00:00Z
team: [{username: ceo}]
slaProperties: [{property: retention, value: 3, unit: y}]
schema:
- name: lines
- name: orders
  physicalName: dw.orders
  properties:
  - {name: line, logicalType: integer, primaryKey: true, primaryKeyPosition: 2}
  - {name: order, logicalType: string, primaryKey: true, primaryKeyPosition: 1, logicalTypeOptions: {minLength: 8, format: uuid}}
  - name: price
    logicalType: number
    classification: public
    description: in euros
    logicalTypeOptions: {minimum: 0}
    quality:
    - {type: library, metric: nullValues, mustBeLessThan: 5, unit: percent}
    - {type: text, description: fair}
  - {name: address, logicalType: object, properties: [{name: street, logicalType: string}]}
"""
        )
        found = read_document(path, table="orders")
        contract = parse("orders", tomllib.loads(found["toml"])["data"]["orders"])
        assert contract.key == ("order", "line")
        assert contract.columns == (Field("line", "int"), Field("order", "str", length=(8, None)), Field("price", "float", True, minimum=0.0))
        assert contract.told("price").meaning == "in euros"
        assert found["left out"] == [
            "contractCreatedTs",
            "team",
            "schema orders: physicalName",
            "schema orders: order: logicalTypeOptions format",
            "schema orders: price: classification",
            "schema orders: price: quality nullValues",
            "schema orders: price: quality text",
            "schema orders: address: a column of type object",
            "slaProperties retention",
        ]
        with pytest.raises(PalanError, match="2 tables") as caught:
            read_document(path)
        assert "--table lines" in caught.value.hint

    @pytest.mark.parametrize(
        ("text", "said"),
        [("a: [", "cannot be read"), ("- 1", "no ODCS document"), ("kind: DataContract", "no ODCS document"), ("apiVersion: v3.0.2\nkind: DataContract\nid: a\nversion: 1.0.0\nstatus: a\nextra: 1", "extra")],
    )
    def test_what_is_no_document_is_refused(self, tmp_path: Path, text: str, said: str) -> None:
        path = tmp_path / "x.yaml"
        path.write_text(text)
        with pytest.raises(PalanError, match=said):
            read_document(path)


class TestEvolving:
    @pytest.mark.parametrize(
        ("before", "after", "kind", "unsafe"),
        [
            ("float", None, "breaking", True),
            (None, "float?", "full", False),
            (None, "float", "forward", False),
            ("int", "float", "backward", False),
            ("float", "int", "breaking", True),
            ("float", "float?", "backward", True),
            ("float?", "float", "forward", False),
            ("float 0..9", "float 0..10", "backward", False),
            ("float 0..9", "float 1..9", "forward", False),
            ("float 0..9", "float 5..", "breaking", False),
            ("float °F", "float °C", "semantic", True),
            ("str in A B", "str in A B C", "backward", True),
            ("str in A B", "str in A", "forward", False),
            ("str in A B", "str in B A", "full", False),
            ("str", "str in A", "forward", False),
            ("str matches '^A'", "str", "backward", False),
            ("str length ..3", "str length ..2", "forward", False),
            ("int", "int unique", "forward", False),
            ("int rising", "int", "backward", False),
            ("int", "int of a.b", "forward", False),
            ({"type": "float", "meaning": "gross"}, {"type": "float", "meaning": "net"}, "semantic", True),
            ({"type": "float", "mean": "1..2"}, {"type": "float", "mean": "1..3"}, "full", False),
        ],
    )
    def test_each_change_is_of_one_kind(self, before: Any, after: Any, kind: str, unsafe: bool) -> None:
        old, new = (table({"k": "int", **({"x": said} if said else {})}) for said in (before, after))
        assert [(change.column, change.kind, change.unsafe) for change in changes(old, new)] == [("x", kind, unsafe)]
        assert changes(new, new) == []

    def test_a_change_names_whom_it_breaks_before_it_happens(self, tmp_path: Path) -> None:
        (tmp_path / "palan.toml").write_text(
            TOML
            + """
[data.summary]
transform = "made.py:summary"
columns = { load = "float" }
[models.price]
model = "model.py:Price"
data = "trips"
features = "features.py"
inputs = ["plane"]
[models.late]
model = "model.py:Price"
data = "summary"
inputs = ["load"]
"""
        )
        (tmp_path / "made.py").write_text("def summary(trips):\n    return trips.select('load')\n")
        (tmp_path / "features.py").write_text("def heavy(load):\n    return load > 10\n\ndef very(heavy):\n    return heavy\n\ndef other(plane):\n    return plane\n")
        (tmp_path / "model.py").write_text("class Price:\n    def decide(self, rows):\n        return rows\n")
        feed = tmp_path / "feed"
        feed.mkdir()
        (feed / "planes.csv").write_text("tail\nN1\n")
        (feed / "trips-1.csv").write_text("id,at,plane,load\n1,2026-01-01T00:00Z,N1,15\n")
        project = open_project(tmp_path)
        ingest(project)
        assert contract_diff(project, "trips")["changes"] == []
        assert "no version" in contract_diff(project, "summary")["text"]
        text = (tmp_path / "palan.toml").read_text()
        (tmp_path / "palan.toml").write_text(text.replace('load = { type = "float?"', 'load = { type = "float? kg"').replace("tail = \"str matches '^N[0-9]+$'\"", 'code = "str?"'))
        project = open_project(tmp_path)
        found = contract_diff(project, "trips")
        assert [(each["kind"], each["breaks"]) for each in found["changes"]] == [("semantic", ["model price", "feature heavy of model price", "feature very of model price", "transformation summary", "model late"])]
        assert found["text"].startswith("1 change since trips@1, which may break model price, feature heavy of model price")
        assert contract_diff(project, "planes")["breaks"] == ["data trips"]
        told: list[str] = []
        project.tell = told.append
        (feed / "trips-2.csv").write_text("id,at,plane,load\\n2,2026-01-01T00:00Z,N1,15\\n")
        ingest(project, "trips")
        assert told[0].startswith("trips: load is in kg, and was in no unit: may break model price, feature heavy")
        assert contract_diff(project, "trips")["changes"] == []
