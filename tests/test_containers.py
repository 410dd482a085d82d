"""Workbooks, Arrow files and JSON lists are read as they come, cell by cell, and refused where they are not what they say."""

from __future__ import annotations

import io
import json
import zipfile
from datetime import date, datetime
from typing import Any

import openpyxl
import polars as pl
import pytest

from palan.data.contract import parse
from palan.data.reading import LINE, Layout, batches
from palan.data.verdict import verify
from palan.errors import PalanError

CONTRACT = parse("sales", {"source": "feed/*", "columns": {"id": "int", "day": "date", "price": "float? 0..100"}})


def _read(data: bytes, suffix: str, layout: Layout | None = None) -> pl.DataFrame:
    return pl.concat(list(batches(io.BytesIO(data), suffix, CONTRACT, layout)), how="diagonal_relaxed")


def _book(**sheets: list[list[Any]]) -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def test_a_workbook_is_read_below_its_header_with_the_row_of_each_line() -> None:
    layout = Layout()
    data = _book(
        Notes=[["made by hand"]],
        March=[["Sales of March"], [], ["ID ", "day", None, "price", "note"], [1, date(2024, 3, 1), None, 1.5, "a"], [], [2, datetime.fromisoformat("2024-03-02 10:30"), None, "n/a", "007"], ["x", "2024-03-03", None, 500, None]],
    )
    rows = _read(data, ".xlsx", layout)
    assert rows.columns == ["id", "day", "price", "note", LINE] and rows[LINE].to_list() == [4, 6, 7]
    assert rows["day"].to_list() == ["2024-03-01", "2024-03-02 10:30:00", "2024-03-03"] and rows["note"].to_list() == ["a", "007", None]
    assert layout.skipped == 2 and layout.renamed == {"ID": "id"}
    checked = verify(rows, CONTRACT)
    assert checked.good["id"].to_list() == [1] and checked.bad[LINE].to_list() == [6, 7]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty"),
        (b"id,day,price\n1,2024-03-01,2\n", "no Excel workbook"),
        (_book(A=[["id", "day"], [1, 2]], B=[["id", "day"], [1, 2]]), "sheets A and B both"),
        (_book(A=[["x"], [1]], B=[["y"], [1]]), "none of the sheets A, B"),
        (_book(A=[]), "workbook is empty"),
        (_book(A=[["id", "day", "day"], [1, 2, 3]]), 'two columns of the file are named "day"'),
        (_book(A=[["id", "day", None], [1, 2, 3]]), "column 3 of the file has no name"),
        (_book(A=[["id", "day"], [1, 2]])[:-200], "no Excel workbook, or cut off"),
    ],
)
def test_what_is_no_workbook_with_these_columns_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(PalanError, match=what) as error:
        _read(data, ".xlsx")
    assert error.value.hint


def test_a_zip_that_expands_beyond_measure_is_refused_before_it_does() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bomb, bomb.open("xl/worksheets/sheet1.xml", "w", force_zip64=True) as sheet:
        for _ in range(1100):
            sheet.write(bytes(1 << 20))
    with pytest.raises(PalanError, match="expands to 1,100 MB"):
        _read(file.getvalue(), ".xlsx")


@pytest.mark.parametrize("form", ["file", "stream"])
def test_arrow_is_read_in_its_own_types(form: str) -> None:
    frame = pl.DataFrame({"id": [1, 2], "day": [date(2024, 3, 1), date(2024, 3, 2)], "price": [1.5, None]})
    file = io.BytesIO()
    (frame.write_ipc if form == "file" else frame.write_ipc_stream)(file)
    assert _read(file.getvalue(), ".arrow").drop(LINE).equals(frame)
    assert _read(file.getvalue(), ".feather")[LINE].to_list() == [1, 2]
    with pytest.raises(PalanError, match="damaged"):
        _read(file.getvalue()[: len(file.getvalue()) // 2], ".arrow")
    empty = io.BytesIO()
    frame.clear().write_ipc(empty)
    assert _read(empty.getvalue(), ".arrow").columns == ["id", "day", "price"]


def test_json_is_one_list_or_an_object_with_one() -> None:
    rows = [{"id": 1, "day": "2024-03-01", "price": 0.1}, {"id": 2, "day": None, "more": {"a": [1]}}, 3]
    for data in (json.dumps(rows), json.dumps({"count": 3, "items": rows})):
        found = _read(data.encode(), ".json")
        assert found["id"].to_list() == [1, 2, None] and found["more"].to_list()[1] == '{"a":[1]}'
        assert found["palan_broken"].to_list() == [None, None, "line is not a JSON object"] and found[LINE].to_list() == [1, 2, 3]
    assert _read(b"[]", ".json").height == 0
    long = json.dumps([{"id": 12345678901234567890 + number, "day": "x" * 100} for number in range(60_000)])
    found = _read(long.encode(), ".json")
    assert found.height == 60_000 and found["id"][-1] == str(12345678901234567890 + 59_999) and found[LINE][-1] == 60_000


@pytest.mark.parametrize(("data", "what"), [(b" ", "empty"), (b"[1, 2", "not JSON"), (b'{"a": [], "b": []}', "2 lists in it: a, b"), (b"7", "not JSON"), (b'{"a": 1}', "0 lists"), (b"[" * 200_000, "not JSON"), (b"\xff\xfe[", "not JSON")])
def test_other_json_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(PalanError, match=what):
        _read(data, ".json")
