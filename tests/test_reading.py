"""A file is the same table whatever the pieces that it is read in, and the same as Python's own csv reads it."""

from __future__ import annotations

import csv
import io
import random

import polars as pl
import pytest

from palan.data import reading
from palan.data.contract import Contract, parse
from palan.data.reading import BROKEN, LINE, batches, parse_file
from palan.data.verdict import Judge, key_hashes, keys_twice, verify
from palan.errors import PalanError

PLAIN = ["1", "", "x y", "5", "é", "-1.50"]
QUOTED = ['"q"', '"a""b"', '"l\nm"', '"c,d"', '""', '"cr\r\nlf"']
LOOSE = ['5" pipe', ' "z"', 'a"b"c']


def table() -> Contract:
    return parse("table", {"source": "x", "columns": {"a": "str?", "b": "str?"}})


def written(chance: random.Random, cells: list[str]) -> str:
    end = chance.choice(["\n", "\r\n"])
    lines = (",".join(chance.choice(cells) for _ in range(chance.choice([2, 2, 2, 2, 1, 3]))) + chance.choice([end, end, end + end]) for _ in range(25))
    text = "a,b" + end + "".join(lines)
    return text.rstrip() if chance.random() < 0.3 else text


@pytest.mark.parametrize("cells", [PLAIN, PLAIN + QUOTED, PLAIN + QUOTED + LOOSE], ids=["plain", "quoted", "quotes within fields"])
@pytest.mark.parametrize("seed", range(25))
def test_a_csv_is_read_as_python_reads_it_in_pieces_of_any_size(cells: list[str], seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = written(random.Random(seed), cells)
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row][1:]
    expected = [tuple(cell or None for cell in [*row, None, None][:2]) for row in rows]
    found = []
    for size in (1 << 20, 7, 60):
        monkeypatch.setattr(reading, "PIECE", size)
        found.append(parse_file(text.encode(), ".csv", table()))
    assert found[0].select("a", "b").rows() == expected
    assert [text is not None for text in found[0][BROKEN]] == [len(row) != 2 for row in rows]
    assert all(each.equals(found[0]) for each in found)


def test_each_row_has_the_line_on_which_it_begins() -> None:
    frame = parse_file(b'\na,b\n\n"1","two\nlines"\n3\n\n4,5\n', ".csv", table())
    assert frame[LINE].to_list() == [4, 6, 8]
    assert frame[BROKEN].to_list() == [None, "line has 1 fields, the header has 2", None]
    frame = parse_file(b'{"a": "1"}\n\n[]\n{"b": "2"}', ".ndjson", table())
    assert frame[LINE].to_list() == [1, 3, 4]


def test_a_row_without_an_end_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE", 1000)
    monkeypatch.setattr(reading, "OBJECTS", 1000)
    monkeypatch.setattr(reading, "LONGEST", 5000)
    endless = io.BytesIO(b"a,b\n1," + b"x" * 100_000)
    with pytest.raises(PalanError, match="a row of the file is longer than"):
        list(batches(endless, ".csv", table()))
    assert endless.tell() < 10_000
    with pytest.raises(PalanError, match="a row of the file is longer than"):
        list(batches(io.BytesIO(b'a,b\n1,"' + b"x\n" * 50_000), ".csv", table()))
    with pytest.raises(PalanError, match="a line of the file is longer than"):
        list(batches(io.BytesIO(b'{"a": "' + b"x" * 100_000), ".ndjson", table()))


def test_what_is_judged_in_batches_is_judged_as_a_whole() -> None:
    chance = random.Random(3)
    contract = parse("sales", {"source": "x", "key": ["id"], "checks": ["low <= high"], "columns": {"id": "int", "low": "float 0..", "high": "float?", "shop": "str in A B"}})
    rows = [
        {"id": str(chance.randrange(300)), "low": chance.choice(["1", "2.0", "-1", "nan", "x"]), "high": chance.choice(["2", "1.5", None]), "shop": chance.choice("ABC")} for _ in range(400)
    ]
    whole = pl.DataFrame(rows, schema=dict.fromkeys(rows[0], pl.String)).with_columns(pl.int_range(2, 402, dtype=pl.Int64, eager=True).alias(LINE))
    expected = verify(whole, contract)
    reasons = dict(expected.bad["palan_reasons"].explode().value_counts().iter_rows())
    assert {f"key id {each}" for each in ("repeats an earlier row", "is on rows that differ")} <= set(reasons)
    hashes = keys_twice([key_hashes(batch, contract) for batch in whole.iter_slices(50)])
    for judge in (Judge(contract), Judge(contract, twice=hashes)):  # of keys that are known beforehand, the rows are held back
        good, bad = [], []
        for batch in whole.iter_slices(37):
            kept, broken = judge.take(batch)
            good.append(kept)
            bad.append(broken)
        lines = judge.repeated()
        broken, places = judge.settle([whole.filter(pl.col(LINE).is_in(lines.implode()))] if len(lines) else [])
        bad.append(broken)
        left = pl.concat(good).with_row_index("place").filter(~pl.col("place").is_in(places.tolist())).drop("place")
        assert left.equals(expected.good) and pl.concat(bad).sort(LINE).equals(expected.bad)
        assert judge.verdict(0) == expected.verdict
        assert judge.rows == left.height + judge.bad
