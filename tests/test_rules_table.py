"""A person writes rules into a table: it says where they contradict one another or leave a gap, and answers batches."""

from __future__ import annotations

import itertools
import random
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palan.core import Field, Schema
from palan.errors import PalanError
from palan.models.table import Table, check_table, decide, parse, read_cell, unsettled

CARE = """# hit: first
delay,      origin,      -> offer, -> amount, # why
>= 180,     ,            hotel,    250,       the night is lost
[15..180),  "EWR,JFK",   voucher,  20,
[15..180),  not(EWR),    voucher,  10,
< 15,       -,           nothing,  0,         on time
"""
DOMAIN = Schema("rows", (Field("delay", "float", minimum=0, maximum=2000), Field("origin", "str", values=("EWR", "JFK", "LGA"))))


def answers(text: str, **columns: list[Any]) -> dict[str, list[Any]]:
    return decide(parse(text), pl.DataFrame(columns)).to_dict(as_series=False)


def kinds(findings: list[dict[str, Any]]) -> list[tuple[str, list[int]]]:
    return [(finding["kind"], finding["rules"]) for finding in findings]


def test_the_first_rule_that_holds_answers() -> None:
    got = answers(CARE, delay=[180.0, 179.9, 20.0, 3.0], origin=["LGA", "JFK", "LGA", "EWR"])
    assert got == {"offer": ["hotel", "voucher", "voucher", "nothing"], "amount": [250, 20, 10, 0], "rule": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("cell", "yes", "no"),
    [
        (">= 15", [15, 16.5], [14.9]),
        ("> 15", [15.1], [15]),
        ("<=-2", [-2, -9], [0]),
        ("!= 3", [2.9, 4], [3]),
        ("= 3", [3], [2]),
        ("[0..15)", [0, 14.9], [15, -0.1]),
        ("(0..15]", [0.1, 15], [0, 15.1]),
        ("0..15", [0, 15], [16]),
        ("1,2,5", [1, 5], [3]),
        ("not(1,2)", [3, 1.5], [1, 2]),
        ("1e3", [1000], [1]),
        ("-", [1, -1], []),
        ("EWR,JFK", ["EWR", "JFK"], ["LGA", "ewr"]),
        ("not(EWR)", ["LGA"], ["EWR"]),
        ("!= EWR", ["LGA"], ["EWR"]),
        ("007", ["007"], ["7"]),
        ("true", [True], [False]),
    ],
)
def test_each_form_of_cell(cell: str, yes: list[Any], no: list[Any]) -> None:
    values = [float(value) if type(value) is int else value for value in yes + no]
    got = answers(f'x, -> y\n"{cell}", hit\n', x=values)["y"]
    assert got == ["hit"] * len(yes) + [None] * len(no)


def test_no_value_is_no_reason_to_fire() -> None:
    got = answers("x, -> y\n!= 3, other\nnull, none\n", x=[None, 4.0, float("nan")])
    assert got["y"] == ["none", "other", None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("x, -> y\n", "has no rule"),
        ("x, y\n1, 2\n", "names no output"),
        ("x, x, -> y\n1, 2, 3\n", "'x' twice"),
        ("x, -> rule\n1, 2\n", "cannot be called 'rule'"),
        ("x, -> y\n1, 2\n>= fifteen, 3\n", "line 3, column x: 'fifteen' after >= is not a number"),
        ("x, -> y\n[1..0], 3\n", "line 2, column x: '[1..0]' holds no number"),
        ("x, -> y\n[1..b], 3\n", "cannot read the interval '[1..b]'"),
        ("x, -> y\n>= 1, 3\nEWR, 4\n", "line 3, column x: 'EWR' does not go with the other cells, which are numbers"),
        ("x, z, -> y\n1,2,3\nEWR,JFK,LGA,4\n", "line 3 has 4 cells, the header has 3"),
        ("# hit: fist\nx, -> y\n1, 2\n", "unknown hit policy 'fist'"),
        ("# hit: first sum\nx, -> y\n1, 2\n", "cannot be followed by 'sum'"),
        ("# hit: collect sum\nx, -> y\n1, a\n", "needs numbers in '-> y'"),
        ("# hit: priority\nx, -> y\n1, 2\n", "no column of that name"),
    ],
)
def test_a_bad_table_is_refused_with_its_line_and_column(text: str, words: str) -> None:
    with pytest.raises(PalanError) as refused:
        parse(text, "care.csv")
    assert words in refused.value.what
    assert refused.value.what.startswith("care.csv")
    assert refused.value.hint


def test_binary_is_not_a_table() -> None:
    with pytest.raises(PalanError, match="not UTF-8"):
        parse(b"\xff\xfe\x00x", "care.csv")


def test_a_table_written_by_a_spreadsheet_is_read() -> None:
    table = parse(b'\xef\xbb\xbf# hit: unique,,\r\nx,-> y,# note\r\n"a,b",1,"two\r\nlines"\r\n,,\r\nc,2.5,\r\n')
    assert (table.hit, len(table)) == ("unique", 2)
    assert decide(table, pl.DataFrame({"x": ["b", "c"]}))["y"].to_list() == [1.0, 2.5]


def test_a_column_of_another_type_is_refused() -> None:
    table = parse(CARE)
    with pytest.raises(PalanError, match="compares 'delay' with a number, but the column is of type String"):
        decide(table, pl.DataFrame({"delay": ["late"], "origin": ["EWR"]}))
    with pytest.raises(PalanError) as refused:
        decide(table, pl.DataFrame({"dealy": [1.0], "origin": ["EWR"]}))
    assert refused.value.hint == 'did you mean "dealy"?'


def test_unique_answers_nothing_where_two_rules_fire_and_says_so() -> None:
    table = parse("# hit: unique\nx, -> y\n<= 5, low\n>= 5, high\n")
    rows = pl.DataFrame({"x": [1.0, 5.0, 9.0, None]})
    assert decide(table, rows)["y"].to_list() == ["low", None, "high", None]
    assert [(v.rule, v.where, v.amount) for v in unsettled(table, rows)] == [
        ("a rule fires for every row", "row 3", 1.0),
        ("only one rule fires for a row", "row 1", 1.0),
    ]


def test_any_minds_only_rules_that_disagree() -> None:
    table = parse("# hit: any\nx, -> y\n<= 5, a\n>= 5, a\n>= 9, b\n")
    rows = pl.DataFrame({"x": [5.0, 9.0]})
    assert decide(table, rows)["y"].to_list() == ["a", "a"]
    assert [(v.rule, v.where) for v in unsettled(table, rows)] == [("rules that fire for the same row agree", "row 1")]
    assert kinds(check_table(table, Schema("rows", ()))) == [("overlap", [2, 3])]


def test_the_highest_priority_wins() -> None:
    table = parse("# hit: priority\nx, priority, -> y\n-, 1, rest\n>= 5, 3, high\n>= 2, 2, middle\n>= 7, 0, never\n")
    assert decide(table, pl.DataFrame({"x": [0, 3, 8]}))["y"].to_list() == ["rest", "middle", "high"]
    assert kinds(check_table(table, Schema("rows", ()))) == [("shadowed", [4])]


def test_collect_gathers_or_adds_up() -> None:
    rules = "x, -> fee\n>= 1, 10\n>= 2, 5\n"
    assert answers("# hit: collect\n" + rules, x=[0, 1, 2])["fee"] == [[], [10], [10, 5]]
    assert answers("# hit: collect sum\n" + rules, x=[0, 1, 2])["fee"] == [0, 10, 15]
    assert answers("# hit: collect max\n" + rules, x=[0, 2])["fee"] == [None, 10]
    assert answers("# hit: collect count\n" + rules, x=[0, 2])["fee"] == [0, 2]


def test_an_empty_batch_keeps_its_columns() -> None:
    got = decide(parse(CARE), pl.DataFrame(schema={"delay": pl.Float64, "origin": pl.String}))
    assert (got.height, got.columns) == (0, ["offer", "amount", "rule"])


def test_a_complete_table_has_no_findings() -> None:
    assert check_table(parse(CARE), DOMAIN) == []


def test_null_is_a_gap_where_the_contract_allows_it() -> None:
    nullable = Schema("rows", (Field("delay", "float", nullable=True, minimum=0), DOMAIN.fields[1]))
    (gap,) = check_table(parse(CARE), nullable)[:1]
    assert gap["kind"] == "gap"
    assert gap["example"]["delay"] is None


def test_a_gap_between_two_ends_is_found_to_the_point() -> None:
    table = parse("x, -> y\n< 5, a\n> 5, b\n")
    (gap,) = check_table(table, Schema("rows", (Field("x", "float"),)))
    assert gap["example"] == {"x": 5.0}
    whole = parse("x, -> y\n<= 4, a\n>= 5, b\n")
    assert check_table(whole, Schema("rows", (Field("x", "int"),))) == [], "there is no whole number between 4 and 5"
    assert kinds(check_table(whole, Schema("rows", (Field("x", "float"),)))) == [("gap", [])]


def test_every_gap_is_told_as_wide_as_it_is() -> None:
    table = parse("delay, origin, -> y\n[0..15), EWR, a\n[20..30], -, b\n")
    domain = Schema("rows", (Field("delay", "float", minimum=0), Field("origin", "str", values=("EWR", "JFK", "LGA"))))
    assert [each["text"] for each in check_table(table, domain)] == [
        "no rule fires for delay [0..20) or above 30, origin JFK or LGA",
        "no rule fires for delay [15..20) or above 30",
    ]
    apart = check_table(parse("x, y, -> z\n1, a, b\n"), Schema("rows", (Field("x", "int"), Field("y", "str"))))
    assert [each["text"] for each in apart] == ["no rule fires for x below 1 or above 1", "no rule fires for y anything else"]


def test_a_word_that_no_rule_names_is_a_gap_unless_the_set_is_closed() -> None:
    table = parse("origin, -> y\nEWR, a\n\"JFK,LGA\", b\n")
    assert check_table(table, Schema("rows", (Field("origin", "str", values=("EWR", "JFK", "LGA")),))) == []
    (gap,) = check_table(table, Schema("rows", (Field("origin", "str"),)))
    assert gap["example"]["origin"] not in ("EWR", "JFK", "LGA")


def test_a_rule_behind_several_others_together_is_shadowed() -> None:
    table = parse("x, y, -> z\n< 5, -, a\n>= 5, < 3, b\n-, >= 3, c\n[0..9], [0..9], never\n-, -, never\n")
    findings = check_table(table, Schema("rows", (Field("x", "float"), Field("y", "float"))))
    assert kinds(findings) == [("shadowed", [4]), ("shadowed", [5])]
    assert findings[0]["lines"] == [5]
    assert "never wins" in findings[0]["text"]


def test_a_rule_outside_the_domain_is_dead() -> None:
    table = parse("x, -> y\n< 0, a\n-, b\n")
    assert kinds(check_table(table, Schema("rows", (Field("x", "float", minimum=0),)))) == [("dead", [1])]


def test_cells_that_do_not_fit_the_contract_are_refused() -> None:
    with pytest.raises(PalanError, match="'delay' that cannot be compared with its type str"):
        check_table(parse(CARE), Schema("rows", (Field("delay", "str"),)))


NUMBER_CELLS = ["-", "< 1", "<= 1", ">= 1", "[0..2)", "(0..2]", "1", "0,2", "not(1)", "!= 2", "> 2"]
TEXT_CELLS = ["-", "A", '"A,B"', "not(A)", "not(C)", "C"]
FLAG_CELLS = ["-", "true", "false"]
SMALL = Schema("rows", (Field("n", "float", minimum=-1, maximum=3), Field("t", "str", values=("A", "B", "C")), Field("f", "bool", nullable=True)))
EVERYWHERE = list(itertools.product([-1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, 3], "ABC", [True, False, None]))


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(NUMBER_CELLS), st.sampled_from(TEXT_CELLS), st.sampled_from(FLAG_CELLS), st.sampled_from("xy")), min_size=1, max_size=9),
    st.sampled_from(["first", "unique", "any"]),
)
def test_the_exact_check_agrees_with_trying_every_input(rules: list[tuple[str, str, str, str]], hit: str) -> None:
    def quoted(cell: str) -> str:
        return cell if cell.startswith('"') or "," not in cell else f'"{cell}"'

    text = f"# hit: {hit}\nn, t, f, -> y\n" + "".join(",".join(map(quoted, rule)) + "\n" for rule in rules)
    table = parse(text)
    rows = pl.DataFrame(EVERYWHERE, schema={"n": pl.Float64, "t": pl.String, "f": pl.Boolean}, orient="row")
    fires = [set(single(table, r, rows)) for r in range(len(table))]
    findings = check_table(table, SMALL)

    dead = {r + 1 for r, fired in enumerate(fires) if not fired}
    assert {f["rules"][0] for f in findings if f["kind"] == "dead"} == dead
    gaps = set(range(rows.height)) - set.union(*fires)
    assert any(f["kind"] == "gap" for f in findings) == bool(gaps)
    for finding in findings:
        if finding["kind"] in ("gap", "overlap"):
            example = pl.DataFrame([finding["example"]], schema={"n": pl.Float64, "t": pl.String, "f": pl.Boolean})
            for r in finding["rules"]:
                assert single(table, r - 1, example)
            if finding["kind"] == "gap":
                assert not any(single(table, r, example) for r in range(len(table)))
    if hit == "first":
        shadowed = {r + 1 for r, fired in enumerate(fires) if fired and fired <= set().union(*fires[:r])}
        assert {f["rules"][0] for f in findings if f["kind"] == "shadowed"} == shadowed
    else:
        pairs = {
            (a + 1, b + 1)
            for a, b in itertools.combinations(range(len(table)), 2)
            if fires[a] & fires[b] and (hit == "unique" or table.rules[a].outputs != table.rules[b].outputs)
        }
        found = {tuple(f["rules"]) for f in findings if f["kind"] == "overlap"}
        assert found == pairs or (len(found) == 20 and found <= pairs)


def single(table: Table, rule: int, rows: pl.DataFrame) -> list[int]:
    """Return the rows for which this one rule fires."""
    alone = Table(table.name, "first", "", table.inputs, table.outputs, (table.rules[rule],))
    return [i for i, fired in enumerate(decide(alone, rows)["rule"].to_list()) if fired]


def test_a_thousand_rules_are_checked() -> None:
    rng = random.Random(0)
    lines = ["# hit: first", "a, b, c, d, -> x"]
    for number in range(1000):
        low = rng.randrange(0, 1000)
        words = ",".join(rng.sample("ABCDEF", 3))
        lines.append(f'[{low}..{low + rng.randrange(1, 300)}), [{rng.randrange(0, 500)}..{rng.randrange(500, 1000)}], "{words}", >= {rng.randrange(100)}, {number}')
    table = parse("\n".join(lines))
    findings = check_table(table, Schema("rows", ()))
    assert {"gap", "shadowed"} <= {finding["kind"] for finding in findings}


@given(st.text(max_size=20))
def test_no_cell_crashes_the_reader(text: str) -> None:
    try:
        read_cell(text)
    except ValueError as error:
        assert str(error)
