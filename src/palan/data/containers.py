"""Delivered files that are not lines of text: Excel workbooks, Arrow files, and JSON that is one list."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

import msgspec
import polars as pl

from palan.data.compressed import EXPANSION, LEAST
from palan.data.contract import Contract
from palan.data.reading import (
    LINE,
    OBJECTS,
    ROWS,
    Layout,
    as_contract,
    first_line,
    json_rows,
    names_of,
    not_too_wide,
)
from palan.errors import MissingExtra, PalanError

if TYPE_CHECKING:
    import fastexcel

MOST = 1 << 30
"""Bytes of a file that has to be read at once."""

ABOVE = 50
"""Rows of a sheet among which the header is looked for."""


def arrow(file: IO[bytes], contract: Contract, where: str, layout: Layout) -> Iterator[pl.DataFrame]:
    """Read an Arrow file (Feather version 2) or stream in its own types."""
    mark = file.read(6)
    file.seek(0)
    if not mark:
        raise PalanError(f"{where}: the file is empty", "check the delivery and send it again; nothing was taken in")
    try:
        rows = pl.scan_ipc(file) if mark == b"ARROW1" else pl.read_ipc_stream(file).lazy()
        schema = rows.collect_schema()
        not_too_wide(len(schema), where)
        first = 1
        for batch in rows.collect_batches(chunk_size=ROWS, maintain_order=True):
            if batch.height:
                yield _numbered(batch, first)
                first += batch.height
        if first == 1:
            yield pl.DataFrame(schema=schema)
    except (pl.exceptions.PolarsError, OSError) as problem:
        raise PalanError(f"{where}: the file is damaged, or not Arrow: {first_line(problem)}", "deliver it again, whole; nothing was taken in") from problem


def _numbered(batch: pl.DataFrame, first: int) -> pl.DataFrame:
    return batch if LINE in batch.columns else batch.with_columns(pl.int_range(first, first + batch.height, dtype=pl.Int64, eager=True).alias(LINE))


def json(file: IO[bytes], contract: Contract, where: str, layout: Layout) -> Iterator[pl.DataFrame]:
    """Read JSON that is a list of objects, or an object with one such list in it. What is a line elsewhere is the place in the list."""
    data = file.read(MOST + 1)
    if len(data) > MOST:
        raise PalanError(f"{where}: the file has more than {MOST >> 20:,} MB, and one list of JSON has to be read at once", "deliver .ndjson: one object a line")
    if not data.strip():
        raise PalanError(f"{where}: the file is empty", "check the delivery and send it again; nothing was taken in")
    try:
        records = _list_in(data.removeprefix(b"\xef\xbb\xbf"), where)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise PalanError(f"{where}: the file is not JSON: {first_line(problem)}", "deliver a list of objects, or .ndjson: one object a line") from problem
    if not records:
        yield pl.DataFrame(schema=dict.fromkeys(contract.names, pl.String))
    names: dict[str, None] = {}
    begin, size = 0, 0
    for end, record in enumerate(records, start=1):
        size += len(bytes(record))
        if size >= OBJECTS or end == len(records):
            yield json_rows(((number, bytes(each)) for number, each in enumerate(records[begin:end], start=begin + 1)), names, where)
            begin, size = end, 0


def _list_in(data: bytes, where: str) -> list[msgspec.Raw]:
    whole = msgspec.json.decode(data, type=list[msgspec.Raw] | dict[str, msgspec.Raw])
    if isinstance(whole, list):
        return whole
    lists = {name: each for name, each in whole.items() if bytes(each).lstrip()[:1] == b"["}
    if len(lists) != 1:
        raise PalanError(f"{where}: the file is one JSON object with {len(lists)} lists in it{': ' + ', '.join(lists) if lists else ''}", "deliver a list of objects, or .ndjson: one object a line")
    return msgspec.json.decode(bytes(next(iter(lists.values()))), type=list[msgspec.Raw])


def xlsx(file: IO[bytes], contract: Contract, where: str, layout: Layout) -> Iterator[pl.DataFrame]:
    """Read the sheet of a workbook that has the columns of the contract, every cell as text, with the row of each line.

    Raises:
        MissingExtra: fastexcel is not installed.
        PalanError: no workbook, more than one such sheet, or a column without a name.
    """
    try:
        import fastexcel
    except ImportError:
        raise MissingExtra("fastexcel", "excel", "an Excel workbook") from None
    data = _within_bounds(file, where)
    try:
        book = fastexcel.read_excel(data)
        name, header = _sheet(book, contract, where)
        rows = _cells(book, name, header)
    except fastexcel.FastExcelError as problem:
        raise PalanError(f"{where}: the file is damaged, or no Excel workbook: {first_line(problem)}", "open it, save it again as .xlsx, and deliver that") from problem
    layout.skipped = header
    yield _named(rows, contract, header, where, layout)


def _within_bounds(file: IO[bytes], where: str) -> bytes:
    """Return the bytes of a workbook that does not expand beyond all measure."""
    data = file.read(MOST + 1)
    if not data:
        raise PalanError(f"{where}: the file is empty", "check the delivery and send it again; nothing was taken in")
    try:
        size = sum(each.file_size for each in zipfile.ZipFile(io.BytesIO(data)).infolist())
    except zipfile.BadZipFile as problem:
        raise PalanError(f"{where}: the file is no Excel workbook, or cut off", "open it, save it again as .xlsx, and deliver that") from problem
    if len(data) > MOST or size > max(len(data) * EXPANSION, LEAST):
        raise PalanError(f"{where}: the workbook expands to {size >> 20:,} MB", "deliver so much as .csv or .parquet")
    return data


def _cells(book: fastexcel.ExcelReader, sheet: str, skip: int, rows: int | None = None) -> pl.DataFrame:
    found = book.load_sheet(sheet, header_row=None, skip_rows=skip, n_rows=rows, dtypes="string")
    return pl.DataFrame(found)


def _sheet(book: fastexcel.ExcelReader, contract: Contract, where: str) -> tuple[str, int]:
    """Return the sheet that has the columns, and how many rows stand above its header."""
    needed = {field.name.casefold() for field in contract.columns if not field.nullable} or {name.casefold() for name in contract.names}
    heads = {name: _cells(book, name, 0, ABOVE) for name in book.sheet_names}
    filled = {name: head for name, head in heads.items() if head.height}
    found = {}
    for name, head in filled.items():
        for number, row in enumerate(head.iter_rows()):
            if needed and needed <= {str(cell).strip().casefold() for cell in row if cell is not None}:
                found[name] = number
                break
    if len(found) > 1:
        raise PalanError(f"{where}: the sheets {' and '.join(found)} both have the columns", "deliver a workbook with one of them each")
    if found:
        return next(iter(found.items()))
    if not filled:
        raise PalanError(f"{where}: the workbook is empty", "check the delivery and send it again; nothing was taken in")
    if len(filled) > 1 and contract.columns:
        raise PalanError(f"{where}: none of the sheets {', '.join(filled)} has the columns of the contract", f"they are {', '.join(sorted(contract.names))}")
    widths = {name: [sum(cell is not None for cell in row) for row in head.iter_rows()] for name, head in filled.items()}
    name = max(widths, key=lambda name: sum(widths[name]))
    return name, widths[name].index(max(widths[name]))  # a title above has fewer cells


def _named(rows: pl.DataFrame, contract: Contract, header: int, where: str, layout: Layout) -> pl.DataFrame:
    """Return the rows below the header, under its names, each with its row in the sheet; without blank ones."""
    cells, body = rows.row(0), rows[1:]
    filled = [place for place, cell in enumerate(cells) if cell is not None or body.to_series(place).null_count() < body.height]
    came = ["" if cells[place] is None else str(cells[place]).strip() for place in filled]
    names = as_contract(came, contract)
    layout.renamed = {old: new for old, new in zip(came, names, strict=True) if old != new}
    names_of(names, where)
    found = body[:, filled]
    found.columns = names
    lined = found.with_columns(pl.int_range(header + 2, header + 2 + found.height, dtype=pl.Int64).alias(LINE)).filter(~pl.all_horizontal(pl.col(names).is_null()))
    # a workbook knows times, of which a day is the midnight
    return lined.with_columns(pl.col(names).str.replace(r"^(\d{4}-\d\d-\d\d) 00:00:00$", "${1}"))


def readers() -> dict[str, Any]:
    """Return what reads a file of each ending."""
    return {".arrow": arrow, ".feather": arrow, ".ipc": arrow, ".json": json, ".xlsx": xlsx}
