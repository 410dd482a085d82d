"""No silent pass: each rule of a contract gives the same verdict, the same counts and all failing rows, in whatever form rows come.

A cell is a rule, a form of input and a set of rows whose verdict is written down by hand. A rule without cells fails here:
`test_every_rule_has_cells` reads which rules there are from the code that judges.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

import palan
from palan.core import Field
from palan.data import reading, sources
from palan.data.contract import BANDS as TABLE_BANDS
from palan.data.contract import KEYS, ROW_RULES, TYPES, Contract, parse
from palan.data.reading import LINE, REASONS, batches, keys_alone
from palan.data.verdict import Judge, Verdict, key_hashes, keys_twice, verify
from palan.errors import PalanError

Row = dict[str, Any]
NAN, INF = float("nan"), float("inf")


Rows = list[tuple[Row, tuple[str, ...]]]


class Case(msgspec.Struct, frozen=True):
    """A contract, and rows with what each of them breaks; `inorder`: the rows are a whole delivery, since one judges another.

    `csv` is what a value breaks there where it is another than elsewhere: CSV has no empty text. `warned` is counted, and
    keeps no row out.
    """

    rules: tuple[str, ...]  # as test_every_rule_has_cells names them
    table: dict[str, Any]
    rows: Rows
    csv: dict[str, tuple[str, ...]] = {}
    inorder: bool = False
    warned: tuple[str, ...] = ()


def column(rules: str, text: str, values: Sequence[tuple[Any, str]], csv: dict[str, tuple[str, ...]] | None = None) -> Case:
    return Case(tuple(rules.split(", ")), {"columns": {"n": "int", "x": text}}, [({"x": value}, (why,) if why else ()) for value, why in values], csv or {})


def rows(names: str, *told: tuple[Any, ...]) -> Rows:
    """Return rows of these columns; what stands behind the values of a row is what it breaks."""
    columns = names.split()
    return [(dict(zip(columns, values, strict=False)), tuple(values[len(columns) :])) for values in told]


MISSING, TYPED = "{name} is missing", "{name} is not {_ARTICLES[field.type]}"
UTC_NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NEW_YEAR, NEXT_DAY = date(2026, 1, 1), date(2026, 1, 2)
LAST = "9999-12-31T23:59:00-05:00"

CASES: dict[str, Case] = {
    "int": column(MISSING, "int", [(0, ""), (5, ""), (-3, ""), (2**53 + 1, ""), (None, "x is missing")]),
    "int as text": column(
        f"{MISSING}, {TYPED}",
        "int",
        [("5", ""), (" 7 ", ""), ("9.0", ""), ("x", "x is not an int"), ("1.5", "x is not an int"), ("nan", "x is not an int"), ("9" * 20, "x is not an int"), ("", "x is missing"), ("  ", "x is missing"), (None, "x is missing")],
    ),
    "int as float": column(f"{MISSING}, {TYPED}", "int", [(1.0, ""), (-4.0, ""), (2.5, "x is not an int"), (NAN, "x is not an int"), (INF, "x is not an int"), (None, "x is missing")]),
    "float": column(f"{MISSING}, {{name}} is not finite", "float", [(0.5, ""), (-2.0, ""), (1e300, ""), (NAN, "x is not finite"), (INF, "x is not finite"), (-INF, "x is not finite"), (None, "x is missing")]),
    "float?": column("{name} is not finite", "float?", [(0.5, ""), (None, ""), (NAN, "x is not finite"), (INF, "x is not finite")]),
    "float as text": column(
        f"{MISSING}, {TYPED}, {{name}} is not finite",
        "float",
        [("0.5", ""), ("1e3", ""), (" -2 ", ""), ("x", "x is not a float"), ("1.2.3", "x is not a float"), ("NaN", "x is not finite"), ("inf", "x is not finite"), ("", "x is missing"), (None, "x is missing")],
    ),
    "bool": column(MISSING, "bool", [(True, ""), (False, ""), (None, "x is missing")]),
    "bool as text": column(f"{MISSING}, {TYPED}", "bool", [("true", ""), ("No", ""), ("0", ""), ("T", ""), ("2", "x is not true or false"), ("maybe", "x is not true or false"), ("", "x is missing")]),
    "str": column(MISSING, "str", [("a", ""), (" ", ""), ("é", ""), ("null", ""), ('"', ""), ("a,b", ""), ("", ""), (None, "x is missing")], {"": ("x is missing",)}),
    "str?": column(MISSING, "str?", [("a", ""), ("", ""), (None, "")]),
    "time": column(MISSING, "time", [(UTC_NOON, ""), (datetime(1, 1, 1, tzinfo=UTC), ""), (None, "x is missing")]),
    "time as text": column(
        f"{MISSING}, {TYPED}, {{name}} is outside the years 1 to 9999",
        "time",
        [("2026-01-01T00:00Z", ""), ("2026-01-01 05:00:00", ""), ("2026-01-01", ""), ("2026-01-01T00:00:00+02:00", ""), ("x", "x is not a time"), ("2026-13-01", "x is not a time"), (LAST, "x is outside the years 1 to 9999"), ("", "x is missing"), (None, "x is missing")],
    ),
    "date": column(MISSING, "date", [(date(2026, 1, 31), ""), (date(1, 1, 1), ""), (None, "x is missing")]),
    "date as text": column(
        f"{MISSING}, {TYPED}, {{name}} is outside the years 1 to 9999",
        "date?",
        [("2026-01-31", ""), ("2026-02-30", "x is not a date"), ("x", "x is not a date"), ("0000-12-31", "x is outside the years 1 to 9999"), ("", ""), (None, "")],
    ),
    "range": column(
        f"_range_text, {MISSING}, {{name}} is not finite",
        "float -10..10",
        [(-10.0, ""), (10.0, ""), (0.0, ""), (10.000001, "x is outside -10..10"), (-1e300, "x is outside -10..10"), (None, "x is missing"), (NAN, "x is not finite"), (INF, "x is not finite")],
    ),
    "range from": column("_range_text", "int? 0..", [(0, ""), (2**60, ""), (-1, "x is below 0"), (None, "")]),
    "range to": column("_range_text", "int ..9", [(9, ""), (-(2**60), ""), (10, "x is above 9"), (None, "x is missing")]),
    "range as text": column("_range_text", "float 0..1", [("0", ""), ("1.0", ""), ("1.5", "x is outside 0..1"), ("warm", "x is not a float"), ("NaN", "x is not finite")]),
    "values": column("_values_text", "str in A 'B C'", [("A", ""), ("B C", ""), ("a", "x is not one of A B C"), ("", "x is not one of A B C"), (None, "x is missing")], {"": ("x is missing",)}),
    "values of int": column("_values_text", "int? in 1 2", [(1, ""), (2, ""), (3, "x is not one of 1 2"), (None, "")]),
    "many values": column("_values_text", "str in a b c d e f g h i", [("i", ""), ("j", "x is not one of the 9 listed values")]),
    "check": Case(
        ("check {text}",),
        {"columns": {"n": "int", "a": "float?", "b": "int?"}, "checks": ["b <= a", "a <> 7"]},
        rows("a b", (2.0, 1), (1.0, 2, "check b <= a"), (None, 2), (2.0, None), (7.0, 9, "check b <= a", "check a <> 7"), (NAN, 1, "a is not finite"), (INF, 1, "a is not finite")),
    ),
    "check of text": Case(
        ("check {text}",), {"columns": {"n": "int", "x": "str?"}, "checks": ["REGEXP_LIKE(x, '^[A-Z]{2}$')"]}, rows("x", ("AB",), (None,), ("ab", "check REGEXP_LIKE(x, '^[A-Z]{2}$')"))
    ),
    "length": column("_length_text", "str? length 2..3", [("ab", ""), ("éé", ""), ("日本語", ""), (None, ""), ("a", "x is outside 2..3 characters long"), ("abcd", "x is outside 2..3 characters long")]),
    "length to": column("_length_text", "str length ..3", [("abc", ""), ("", ""), ("abcd", "x is above 3 characters long"), (None, "x is missing")], {"": ("x is missing",)}),
    "pattern": column("_pattern_text", "str? matches '^[A-Z]{2}$'", [("AB", ""), (None, ""), ("ab", "x is no match of ^[A-Z]{2}$"), ("ABC", "x is no match of ^[A-Z]{2}$"), ("", "x is no match of ^[A-Z]{2}$")], {"": ()}),
    "pattern anywhere": column("_pattern_text", "str matches '[0-9]'", [("a1b", ""), ("ab", "x is no match of [0-9]"), (None, "x is missing")]),
    "reference": column("{name} is not in {more.of}", "str? of other.name", [("AA", ""), ("UA", ""), (None, ""), ("aa", "x is not in other.name"), ("XX", "x is not in other.name")]),
    "reference of numbers": column("{name} is not in {more.of}", "int of other.id", [(1, ""), (2**53 + 1, ""), (3, "x is not in other.id"), (None, "x is missing")]),
    "rising": Case(
        ("{name} is not rising",),
        {"columns": {"n": "int", "x": "time? rising"}},
        rows("x", *((None if day is None else datetime(2026, 1, day, tzinfo=UTC), *why) for day, *why in ((2,), (2,), (None,), (1, "x is not rising"), (3,), (None,), (2, "x is not rising"), (9,)))),
        inorder=True,
    ),
    "rising numbers": Case(("{name} is not rising",), {"columns": {"n": "int", "x": "float rising"}}, rows("x", (1.0,), (0.5, "x is not rising"), (0.75,), (None, "x is missing"), (0.5, "x is not rising")), inorder=True),
    "unique": Case(
        ("{each.name} is not unique",),
        {"columns": {"n": "int", "x": "str? unique", "y": "float"}},
        rows("x y", ("a", 1.0), ("b", 1.0, "x is not unique"), (None, 1.0), ("c", 1.0), ("b", 2.0, "x is not unique"), (None, 1.0), ("c", NAN, "y is not finite"), ("b", 1.0, "x is not unique")),
        inorder=True,
    ),
    "unique beside a key": Case(
        ("{each.name} is not unique",),
        {"columns": {"k": "int", "x": "int unique"}, "key": ["k"]},
        rows("k x", (1, 1), (2, 2, "x is not unique"), (1, 1, "key k repeats an earlier row"), (3, 2, "x is not unique"), (4, 4, "key k is on rows that differ"), (4, 5, "key k is on rows that differ"), (6, 6)),
        inorder=True,
    ),
    "warned": Case(
        ("_range_text", "check {text}"),
        {"columns": {"n": "int", "x": {"type": "float 0..10", "severity": {"range": "warn"}}}, "rules": [{"check": "x <> 7", "severity": "warn"}, {"check": "x <> 8"}]},
        rows("x", (1.0,), (11.0, "x is outside 0..10"), (7.0, "check x <> 7"), (8.0, "check x <> 8"), (None, "x is missing"), (NAN, "x is not finite")),
        warned=("x is outside 0..10", "check x <> 7"),
    ),
    "key": Case(
        ("key {name} repeats an earlier row", "key {name} is on rows that differ"),
        {"columns": {"k": "int", "v": "float"}, "key": ["k"]},
        rows(
            "k v", (1, 0.5), (2, 0.5), (1, 0.5, "key k repeats an earlier row"), (3, 1.0, "key k is on rows that differ"), (4, NAN, "v is not finite"), (4, 2.0),
            (3, 2.0, "key k is on rows that differ"), (1, 0.5, "key k repeats an earlier row"), (None, 2.0, "k is missing"), (9, 2.0),
        ),
        inorder=True,
    ),
    "key of two, that may be missing": Case(
        ("key {', '.join(key)} is missing", "key {name} is on rows that differ"),
        {"columns": {"k": "str?", "at": "date?", "v": "int"}, "key": ["k", "at"]},
        rows(
            "k at v", ("a", NEW_YEAR, 1), ("a", NEXT_DAY, 1, "key k, at is on rows that differ"), (None, NEW_YEAR, 1, "key k, at is missing"),
            ("a", NEXT_DAY, 2, "key k, at is on rows that differ"), ("b", None, 2, "key k, at is missing"), ("b", NEXT_DAY, 2),
        ),
        inorder=True,
    ),
}


# --- the forms in which rows come ----------------------------------------------------------------------------------

KNOWN = {"other.name": pl.Series(["AA", "UA", None]), "other.id": pl.Series([1, 2, 2**53 + 1])}
"""What the tables hold that a column may refer to."""

NOW = datetime(2026, 1, 10, 12, tzinfo=UTC)

Judged = tuple[Verdict, dict[int, list[str]], int]
"""The verdict, what each broken row breaks (rows counted from 0), and how many rows are to be taken in."""


def found(verdict: Verdict, bad: pl.DataFrame, good: int, first: int = 1) -> Judged:
    return verdict, {line - first: reasons for line, reasons in bad.select(LINE, REASONS).iter_rows()}, good


def in_memory(contract: Contract, frame: pl.DataFrame | pl.LazyFrame) -> Judged:
    checked = verify(frame, contract, known=KNOWN, now=NOW)
    return found(checked.verdict, checked.bad, checked.good.height)


def in_batches(contract: Contract, read: Callable[[], Iterator[pl.DataFrame]], twice: pl.Series | None = None, *, first: int = 1, open_columns: bool = False) -> Judged:
    """Judge as an ingest does: batch after batch, then once more the rows whose keys came twice."""
    judge = Judge(contract, open_columns=open_columns, twice=twice, known=KNOWN, now=NOW)
    good, bad = 0, []
    for batch in read():
        held, broken = judge.take(batch)
        good += held.height
        bad.append(broken)
    again = judge.repeated()
    broken, places = judge.settle([rows for batch in read() if (rows := batch.filter(pl.col(LINE).is_in(again.implode()))).height] if len(again) else [])
    rows = pl.concat([each.select(LINE, REASONS) for each in (*bad, broken)])
    return found(judge.verdict(0), rows, good - len(places), first)


def frame_of(rows: Sequence[Row], names: Sequence[str]) -> pl.DataFrame:
    """Return rows as a data frame: of text where a column holds texts, else of what its values are."""
    columns = []
    for name in names:
        values = [row.get(name) for row in rows]
        texts = any(isinstance(value, str) for value in values)
        columns.append(pl.Series(name, [value if value is None or not texts else str(value) for value in values], strict=False))
    return pl.DataFrame(columns)


def sliced(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield batches of any height, none among them."""
    lined = frame.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(LINE))
    yield lined[:0]
    begin = 0
    for height in (1, 5, 0, 10**9):
        yield lined[begin : begin + height]
        begin += height


def csv_of(rows: Sequence[Row], names: Sequence[str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([["" if row.get(name) is None else _written(row[name]) for name in names] for row in rows])
    return _ended(text.getvalue().encode(), rows)


def ndjson_of(rows: Sequence[Row], names: Sequence[str]) -> bytes:
    return _ended(b"".join(json.dumps({name: row.get(name) if isinstance(row.get(name), int | None) or _is_plain(row.get(name)) else _written(row[name]) for name in names}).encode() + b"\n" for row in rows), rows)


def _ended(text: bytes, rows: Sequence[Row]) -> bytes:
    """Return a file whose last line ends, or does not, as files do."""
    return text.removesuffix(b"\n") if len(rows) % 2 else text


def _is_plain(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, float) and abs(value) < INF)


def _written(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime | date) else str(value)


def of_file(suffix: str, data: bytes, contract: Contract) -> Judged:
    file = io.BytesIO(data)
    keys = [key_hashes(rows, contract) for rows in keys_alone(file, suffix, contract)]

    def read() -> Iterator[pl.DataFrame]:
        file.seek(0)
        return batches(file, suffix, contract)

    return in_batches(contract, read, keys_twice(keys) if keys else None, first=2 if suffix == ".csv" else 1, open_columns=suffix == ".ndjson")


def parquet_of(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, row_group_size=4)
    return buffer.getvalue()


FORMS: dict[str, Callable[[Contract, Sequence[Row], Sequence[str]], Judged]] = {
    "eager": lambda contract, rows, names: in_memory(contract, frame_of(rows, names)),
    "lazy": lambda contract, rows, names: in_memory(contract, frame_of(rows, names).lazy()),
    "text": lambda contract, rows, names: in_memory(contract, pl.read_csv(csv_of(rows, names), schema=dict.fromkeys(names, pl.String()))),
    "stream": lambda contract, rows, names: in_batches(contract, lambda: sliced(frame_of(rows, names))),
    "csv": lambda contract, rows, names: of_file(".csv", csv_of(rows, names), contract),
    "parquet": lambda contract, rows, names: of_file(".parquet", parquet_of(frame_of(rows, names)), contract),
    "ndjson": lambda contract, rows, names: of_file(".ndjson", ndjson_of(rows, names), contract),
}


def deliveries(case: Case, seed: str) -> Iterator[tuple[str, Rows]]:
    """Yield clean and dirty deliveries of a case: many rows, none, rows alone, one dirty row among clean ones at either end."""
    clean = [row for row in case.rows if not row[1]]
    dirty = [row for row in case.rows if row[1]]
    if case.inorder:
        yield "all", case.rows
    else:
        yield "clean", clean * 2
        yield "mixed", random.Random(seed).sample([*case.rows, *case.rows], k=2 * len(case.rows))
        yield "first", [*dirty[:1], *clean * 2]
        yield "last", [*clean * 2, *dirty[-1:]]
        yield "only a clean one", clean[:1]
        yield "only a dirty one", case.rows[-1:]
    yield "nothing", []


@pytest.mark.parametrize("form", FORMS)
def test_each_rule_gives_the_right_verdict_on_each_delivery(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE", 150)  # bytes: rows of one delivery come in many pieces
    monkeypatch.setattr(reading, "OBJECTS", 150)
    monkeypatch.setattr(reading, "ROWS", 9)
    wrong, cells = [], 0
    for place, (name, case) in enumerate(CASES.items()):
        contract = parse("table", {"source": "x", **case.table})
        for number, (what, delivery) in enumerate(deliveries(case, name)):
            if number > 1 and (place + number + list(FORMS).index(form)) % 3:  # of the small ones, each form has every third: all of them are many
                continue
            given = [{**({"n": number} if "n" in contract.names else {}), **row} for number, (row, _) in enumerate(delivery)]
            expected = {number: sorted(_broken(case, form, row, reasons)) for number, (row, reasons) in enumerate(delivery)}
            expected = {number: reasons for number, reasons in expected.items() if reasons}
            cells += 1
            try:
                verdict, bad, good = FORMS[form](contract, given, contract.names)
            except PalanError as error:
                if not (form == "ndjson" and not given and "is empty" in error.what):
                    wrong.append(f"{name}, {what}: {error.what}")
                continue
            counts = Counter(reason for reasons in expected.values() for reason in reasons)
            expected = {number: kept for number, reasons in expected.items() if (kept := [reason for reason in reasons if reason not in case.warned])}
            told = {
                "rows": {number: sorted(reasons) for number, reasons in bad.items()} == expected,
                "counts": {rule.rule: rule.count for rule in verdict.broken} == counts,
                "totals": (verdict.rows, verdict.good, verdict.bad, good) == (len(given), len(given) - len(expected), len(expected), len(given) - len(expected)),
                "empty": (not given) == any(not rule.holds and rule.rule == "rows" for rule in verdict.table),
            }
            if not all(told.values()):
                wrong.append(f"{name}, {what}: {[part for part, right in told.items() if not right]}: {bad} instead of {expected}; {verdict.text}")
    assert not wrong, f"{len(wrong)} of {cells} cells:\n" + "\n".join(wrong[:10])
    assert cells > 100


def _broken(case: Case, form: str, row: Row, reasons: tuple[str, ...]) -> tuple[str, ...]:
    return case.csv.get(row["x"], reasons) if form in ("csv", "text") and isinstance(row.get("x"), str) else reasons


# a table, the values of its column x, and what holds of the delivery
DELIVERIES: list[tuple[dict[str, Any], list[Any], dict[str, bool]]] = [
    *(({"x": {"type": "float?", "nulls": "..25%"}}, values, {"nulls of x": holds}) for values, holds in (([1.0, None, 2.0, 3.0], True), ([1.0, None, None], False), ([1.0], True), ([None], False))),
    *(({"x": {"type": "float? 0..9", "mean": "2..3"}}, values, {"mean of x": holds}) for values, holds in (([2.0, None, 4.0], True), ([2.0, 5.0], False), ([1.5], False), ([3.0], True), ([2.0, NAN, 10.0], True), ([None], False))),
    *(({"x": {"type": "int", "quantiles": {"p50": "2..3", "p90": "..9"}}}, values, {"p50 of x": median, "p90 of x": high}) for values, median, high in (([1, 2, 3, 9], True, True), ([1, 1, 1, 9], False, True), ([2] * 8 + [99, 99], True, False), ([2], True, True))),
    *(({"x": {"type": "str?", "shares": {"A": "50%.."}}}, values, {"share A of x": holds}) for values, holds in ((["A", "B", None], True), (["A", "B", "B"], False), (["a"], False), ([None], False))),
    *(({"x": "time"}, [day], {"fresh": holds}) for day, holds in ((datetime(2026, 1, 9, 12, tzinfo=UTC), True), (datetime(2026, 1, 9, 11, tzinfo=UTC), False))),
]


@pytest.mark.parametrize("form", FORMS)
def test_bands_hold_or_not_of_a_delivery_in_any_form(form: str) -> None:
    wrong = []
    for columns, values, expected in DELIVERIES:
        fresh = {"fresh": "1d", "time": "x"} if "fresh" in expected else {}
        for severity in ("warn", "stop") if form in ("eager", "stream") else ("stop",):
            how = {"severity": {"fresh": severity}} if fresh else {}
            said = columns if fresh else {"x": {**columns["x"], "severity": {kind: severity for kind in ("nulls", "mean", "quantiles", "shares") if kind in columns["x"]}}}
            contract = parse("table", {"source": "x", "columns": {"n": "int", **said}, **fresh, **how})
            verdict, _, good = FORMS[form](contract, [{"n": number, "x": value} for number, value in enumerate(values)], ["n", "x"])
            told = {rule.rule: rule.holds for rule in verdict.table}
            loud = verdict.stops if severity == "stop" else verdict.warnings
            if told != expected or bool(loud) == all(expected.values()) or good != len([value for value in values if value != 10.0 and value == value]):
                wrong.append(f"{columns} {severity} {values}: {told}, {good} rows")
    assert not wrong, "\n".join(wrong)


HEIGHTS = [("2..4", (1, 2, 4, 5)), ("3..", (2, 3)), ("..3", (3, 4))]


@pytest.mark.parametrize("form", FORMS)
def test_rules_about_a_whole_delivery_touch_no_row_in_any_form(form: str) -> None:
    names = ["n", "x"]
    for band, heights in HEIGHTS:
        contract = parse("table", {"source": "x", "rows": band, "columns": {"n": "int", "x": "str"}})
        low, high = contract.rows
        for height in heights:
            verdict, bad, good = FORMS[form](contract, [{"n": number, "x": "a"} for number in range(height)], names)
            (rule,) = (rule for rule in verdict.table if rule.rule == "rows")
            assert rule.holds == ((low is None or height >= low) and (high is None or height <= high)), (band, height)
            assert (bad, good, bool(verdict.warnings)) == ({}, height, not rule.holds)
    contract = parse("table", {"source": "x", "columns": {"n": "int", "x": "str", "gone": "float? 0..1"}})
    verdict, bad, good = FORMS[form](contract, [{"n": 1, "x": "a", "more": "b"}], ["n", "x", "more"])
    assert {(rule.rule, rule.holds) for rule in verdict.table} == {("missing column", False), ("extra columns", True)} and (bad, good) == ({}, 1)
    needed = parse("table", {"source": "x", "columns": {"n": "int", "x": "str", "gone": "float 0..1"}})
    with pytest.raises(PalanError, match='has no column "gone"'):
        FORMS[form](needed, [{"n": 1, "x": "a"}], names)


@pytest.mark.parametrize(
    ("suffix", "data", "lines"),
    [
        (".csv", b"n,x\n1,a\n2\n3,c\n4,d,e\n", {1: ["line has 1 fields, the header has 2"], 3: ["line has 3 fields, the header has 2"]}),
        (".ndjson", b'{"n": 1, "x": "a"}\n[2]\n{"n": 3, "x": "c"}\n{"n": \n', {1: ["line is not a JSON object"], 3: ["line is not valid JSON"]}),
    ],
)
def test_a_line_that_cannot_be_read_is_broken_and_counted(suffix: str, data: bytes, lines: dict[int, list[str]]) -> None:
    verdict, bad, good = of_file(suffix, data, parse("table", {"source": "x", "columns": {"n": "int", "x": "str"}}))
    assert (bad, good, verdict.rows, sum(rule.count for rule in verdict.broken)) == (lines, 2, 4, 2)


def test_what_is_no_frame_is_refused_and_a_check_that_asks_other_rows_too() -> None:
    contract = parse("table", {"source": "x", "columns": {"n": "int 0..5"}})
    for odd in ({"n": [9]}, [{"n": 9}], None, frame_of([{"n": 9}], ["n"])["n"]):
        with pytest.raises(PalanError, match="is no Polars frame"):
            verify(odd, contract)  # type: ignore[arg-type]
    for text in ("n <= AVG(n) + 100", "SUM(n) OVER () > 1", "COUNT(*) > n", "n >= QUANTILE_CONT(n, 0.5)", "n > LAG(n) OVER (ORDER BY n)"):
        with pytest.raises(PalanError, match="is not about one row"):
            verify(frame_of([{"n": 1}], ["n"]), parse("table", {"source": "x", "columns": {"n": "int"}, "checks": [text]}))


# --- no rule without cells -----------------------------------------------------------------------------------------

TABLE_RULES = {"rows", "missing column", "extra columns", "fresh", "{which} of {name}"}
LINES = {"text"}  # what is wrong with a line of a file is a text of its reader: test_a_line_that_cannot_be_read_is_broken_and_counted
OF_READING = {"source", "transform", "encoding", "decimal", "dates", "nulls"}  # where rows come from and how text becomes values: no rules
COUNTED = {"rule.text"}  # not a rule but the count of one


def test_every_rule_has_cells() -> None:
    """Whoever adds a rule to the code that judges, or a setting to the contract, adds its cells here."""
    written: dict[str, set[str]] = {"_Rule": set(), "RowRule": set(), "TableRule": set()}
    texts = [path.read_text(encoding="utf-8") for path in (Path(palan.__file__).parent / "data").glob("*.py")]
    for text in texts:
        for node in ast.walk(ast.parse(text)) if "Rule(" in text else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in written:
                written[node.func.id].add(_named(node.args[0]))
    have = {rule for case in CASES.values() for rule in case.rules}
    assert not written["_Rule"] - have - LINES, f"rules of rows without cells in CASES: {sorted(written['_Rule'] - have - LINES)}"
    assert not have - written["_Rule"], f"cells of rules that are not: {sorted(have - written['_Rule'])}"
    assert written["RowRule"] == COUNTED
    assert written["TableRule"] == TABLE_RULES, f"rules of tables without cells: {sorted(written['TableRule'] - TABLE_RULES)}"
    rules = {"key", "time", "checks", "rules", "rows", "fresh", "severity", "repair", "columns"}
    elsewhere = rules | OF_READING | set(sources.KEYS)
    assert set(KEYS) == elsewhere, f"settings of [data.NAME] without cells: {sorted(set(KEYS) ^ elsewhere)}"
    assert {*ROW_RULES, *TABLE_BANDS} == {"type", "missing", "range", "in", "matches", "length", "unique", "rising", "of", "nulls", "mean", "quantiles", "shares"}, "a rule of a column without cells"
    assert set(Field.__struct_fields__) == {"name", "type", "nullable", "minimum", "maximum", "values", "unit", "item", "fields", "pattern", "length"}, "a part of a column without cells"
    kinds = {parse("table", {"source": "x", **case.table}).columns[-1].type for case in CASES.values()}
    assert kinds == set(TYPES), f"types without cells: {set(TYPES) - kinds}"


def _named(node: ast.expr) -> str:
    """Return how a rule is named in the code: its text with what stands in braces, or the function that makes it."""
    if isinstance(node, ast.Call):
        return ast.unparse(node.func)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{" + ast.unparse(part.value) + "}" for part in node.values if isinstance(part, ast.Constant | ast.FormattedValue))
    return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)
