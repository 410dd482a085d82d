"""A delivered file, read a piece at a time: what lies where, and every value as it came.

Memory is bounded by the size of a piece, never by that of the file. A line that cannot be read as the others are is kept,
marked in `palan_broken`, for quarantine.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import IO, Any

import msgspec
import numpy as np
import polars as pl

from palan.data.contract import Contract
from palan.errors import PalanError

LINE = "palan_line"
REASONS = "palan_reasons"
BROKEN = "palan_broken"  # set here on a line that has no readable form

WIDEST = 10_000
"""Columns that a delivered file may have: beyond that it is another kind of file, or one on its side."""

PIECE = 32 << 20
"""Bytes of text that are read at a time."""

OBJECTS = 4 << 20
"""Bytes of JSON that are read at a time: as objects they take many times the room."""

LONGEST = 64 << 20
"""Bytes that one row of text may have: beyond, the file is no table, or a quote in it never ends."""

ROWS = 500_000
"""Rows of a Parquet file that are read at a time."""

CONTAINERS = (".json", ".xlsx", ".arrow", ".feather", ".ipc")

_EXACT = 2**53
"""The whole number from which a float no longer holds each."""

_MARKS = ",;\t|"
_BOM = b"\xef\xbb\xbf"


def keys_alone(file: IO[bytes], suffix: str, contract: Contract) -> Iterator[pl.DataFrame]:
    """Read nothing but the key columns of a file, where that costs little; yield nothing where it would not, or a column is not there."""
    if suffix.lower() == ".parquet" and contract.key:
        with suppress(pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):  # what is wrong with the file is said when it is read
            file.seek(0)
            yield from pl.scan_parquet(file).select(contract.key).collect_batches(chunk_size=ROWS, maintain_order=True)


class Layout(msgspec.Struct, omit_defaults=True):
    """How a file is written, filled in while it is read: `skipped` lines came before the header, `renamed` are names of
    columns that differ from the contract's in case or blanks alone."""

    encoding: str = "ascii"
    delimiter: str = ""
    skipped: int = 0
    renamed: dict[str, str] = {}


def batches(file: IO[bytes], suffix: str, contract: Contract, layout: Layout | None = None) -> Iterator[pl.DataFrame]:
    """Read a delivered file, open at its start: `suffix` is .csv, .parquet, .ndjson, .jsonl or one of CONTAINERS; `layout` is told how it is written.

    A batch has the columns as they came (text from a CSV), `palan_line` (the line of each row in the file, counted from 1;
    of Parquet its row) and, of text, `palan_broken`. There is one batch at least, and the first one has every column of a
    CSV or Parquet file.

    Raises:
        PalanError: another suffix, an empty file, bytes that are not such a file, or more than 10,000 columns.
    """
    readers = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".ndjson": _ndjson, ".jsonl": _ndjson}
    where = f'data "{contract.name}"'
    reader = readers.get(suffix.lower())
    if reader is None and suffix.lower() in CONTAINERS:
        from palan.data import containers

        reader = containers.readers()[suffix.lower()]
    if reader is None:
        which = f'files that end in "{suffix}"' if suffix else "files whose name has no ending"
        raise PalanError(f"{where}: {which} cannot be read", "deliver .csv, .parquet, .ndjson, .json, .xlsx or .arrow")
    yield from reader(file, contract, where, layout or Layout())


def parse_file(data: bytes, suffix: str, contract: Contract) -> pl.DataFrame:
    """Read the bytes of a small file at once, as `batches` does."""
    found = list(batches(io.BytesIO(data), suffix, contract))
    return found[0] if len(found) == 1 else pl.concat(found, how="diagonal_relaxed")


# --- CSV -----------------------------------------------------------------------------------------------------------


class _Header(msgspec.Struct, frozen=True):
    names: list[str]
    separator: str


def _csv(file: IO[bytes], contract: Contract, where: str, layout: Layout) -> Iterator[pl.DataFrame]:
    """Read CSV with every value as text, so that each can be judged.

    The separator (comma, semicolon, tab or bar) is the one whose header fits the contract best. A line with too few or
    too many fields is kept and marked.
    """
    header: _Header | None = None
    line = 1
    for piece in _pieces(_as_utf8(file, contract, layout, where), where, contract.name):
        if b"\r" in piece and b'"' not in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        piece = _as_text(piece, line, layout, where, asked=bool(contract.encoding))
        lines = piece.count(b"\n") + (piece[-1:] != b"\n")
        body, begin = piece, line
        if header is None:
            skipped = len(body) - len(body.lstrip(b"\n"))
            body, begin = body[skipped:], begin + skipped
            if not body.strip():
                line += lines
                continue
            before = _preamble(body, contract)
            layout.skipped = body.count(b"\n", 0, before)
            body, begin = body[before:], begin + layout.skipped
            header, size = _header(body, begin, contract, where, layout)
            begin += body.count(b"\n", 0, size)
            body = body[size:]
        yield _no_header(_rows(body, begin, header, where), layout)
        line += lines
    if header is None:
        raise PalanError(f"{where}: the file is empty", "check the delivery and send it again; nothing was taken in")


def _as_utf8(file: IO[bytes], contract: Contract, layout: Layout, where: str) -> Callable[[int], bytes]:
    """Return what reads a file piece by piece as UTF-8, where its encoding is known from its first bytes or from palan.toml."""
    mark = file.read(2)
    file.seek(-len(mark), io.SEEK_CUR)
    layout.encoding = contract.encoding or ("utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "ascii")
    if layout.encoding in ("ascii", "utf-8"):
        return file.read
    decoder = codecs.getincrementaldecoder(layout.encoding)()

    def read(size: int) -> bytes:
        while block := file.read(size):
            if text := _decoded(decoder, block, final=False):
                return text
        return _decoded(decoder, b"", final=True)

    def _decoded(decoder: codecs.IncrementalDecoder, block: bytes, *, final: bool) -> bytes:
        try:
            return decoder.decode(block, final).encode()
        except UnicodeError as problem:
            raise PalanError(f"{where}: the file is not {layout.encoding} text", f"set encoding in [data.{contract.name}], or save the file as UTF-8") from problem

    return read


def _pieces(read: Callable[[int], bytes], where: str, name: str) -> Iterator[bytes]:
    """Yield the text in pieces that end where a row ends."""
    rest, first = b"", True
    while block := read(PIECE):
        if block[-1:] == b"\r":  # a line feed may follow
            block += read(1)
        if first:
            block, first = block.removeprefix(_BOM), False
            _no_other_kind(block, "CSV", where)
        _no_binary(block, where, name)
        if b"\n" not in block:  # as an old Mac ends its lines
            block = block.replace(b"\r", b"\n")
        rest += block
        cut = _last_row_end(rest) if b'"' not in rest or _quotes_enclose(np.frombuffer(rest, np.uint8), _MARKS) else _last_row_end_by_csv(rest)
        if cut:
            yield rest[:cut]
            rest = rest[cut:]
        if len(rest) > LONGEST:
            raise PalanError(
                f"{where}: a row of the file is longer than {LONGEST >> 20} MB", "check that its lines end, and that each quote that opens a field is closed"
            )
    if rest:
        yield rest


def _last_row_end(text: bytes) -> int:
    """Return where the last whole row ends, 0 where none does: a line end between quotes belongs to its field."""
    end = text.rfind(b"\n") + 1
    if not end or text.count(b'"', 0, end) % 2 == 0:
        return end
    codes = np.frombuffer(text, np.uint8)
    quotes, ends = np.flatnonzero(codes == ord('"')), np.flatnonzero(codes == ord("\n"))
    whole = ends[np.searchsorted(quotes, ends) % 2 == 0]
    return int(whole[-1]) + 1 if len(whole) else 0


def _last_row_end_by_csv(text: bytes) -> int:
    """Return the same for text in which quotes stand within fields."""
    read = whole = 0
    csv.field_size_limit(LONGEST)

    def lines() -> Iterator[str]:
        nonlocal read
        for end in _line_ends(text):
            begin, read = read, end
            yield text[begin:end].decode(errors="replace")

    try:
        for _ in csv.reader(lines(), strict=True):
            whole = read
    except csv.Error:
        return whole
    return whole


_OTHER_KINDS = {
    b"PAR1": ("Parquet", "give it its name: mv FILE FILE.parquet"),
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "deliver what lies within: unzip -p FILE > NAME.csv, or save the sheet as CSV"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "save the sheet as CSV"),
    b"SQLite format 3": ("an SQLite database", 'source = "sqlite:FILE", and a query'),
    b"ARROW1": ("an Arrow file", "give it its name: mv FILE FILE.arrow"),
    b"%PDF": ("a PDF", "deliver .csv, .parquet or .ndjson"),
    b"<!doctype html": ("a web page, perhaps one that asks for a log-in or tells an error", "look at it, and deliver .csv, .parquet or .ndjson"),
    b"<html": ("a web page, perhaps one that asks for a log-in or tells an error", "look at it, and deliver .csv, .parquet or .ndjson"),
}


def _no_other_kind(begins: bytes, kind: str, where: str) -> None:
    """Refuse a file that says by its first bytes that it is something else than its name."""
    begins = begins[:100].lstrip()
    for mark, (what, hint) in _OTHER_KINDS.items():
        if begins.startswith(mark) or (mark.startswith(b"<") and begins.lower().startswith(mark)):
            raise PalanError(f"{where}: the file is no {kind} but {what}", hint)


def _no_binary(block: bytes, where: str, name: str) -> None:
    place = block.find(b"\0")
    if place < 0:
        return
    sixteen = next((each for each, at in (("utf-16-le", 1), ("utf-16-be", 0)) if block[at:200:2].count(0) > len(block[at:200:2]) * 0.9), "")
    if sixteen:
        raise PalanError(f"{where}: the file is not CSV text: it holds zero bytes, as UTF-16 without its mark does", f'encoding = "{sixteen}" in [data.{name}]')
    raise PalanError(f"{where}: the file is not CSV text: it holds zero bytes", "deliver .csv, .parquet or .ndjson under their own names")


def _as_text(piece: bytes, line: int, layout: Layout, where: str, *, asked: bool) -> bytes:
    """Return a piece as UTF-8. A file that is not, and holds nothing else of it beyond ASCII, is cp1252: what Windows writes in the West.

    Raises:
        PalanError: some lines are UTF-8 and others are not, or bytes that cp1252 does not know.
    """
    if piece.isascii() or layout.encoding not in ("ascii", "utf-8", "cp1252") or (asked and layout.encoding == "cp1252"):
        return piece
    place = 0
    try:
        piece.decode()
        whole = True
    except UnicodeDecodeError as problem:
        whole, place = False, problem.start
    if whole and layout.encoding != "cp1252":
        layout.encoding = "utf-8"
        return piece
    number = line + piece.count(b"\n", 0, place)
    if whole or layout.encoding == "utf-8" or not _no_utf8(piece):
        raise PalanError(
            f"{where}: line {number} is {'UTF-8' if whole else 'not UTF-8'} text{'' if asked else ', and other lines are not' if whole else ', and other lines are'}",
            'save the file in one encoding, or set encoding = "cp1252"',
        )
    try:
        text = piece.decode("cp1252")
    except UnicodeDecodeError as problem:
        raise PalanError(f"{where}: line {number} is not UTF-8 text, and not cp1252", 'set encoding, such as "latin-1" or "cp1250", in palan.toml') from problem
    layout.encoding = "cp1252"
    return text.encode()


def _no_utf8(piece: bytes) -> bool:
    """Tell whether no line of a piece that holds more than ASCII is UTF-8."""
    return not any(_is_utf8(line) for line in piece.split(b"\n") if not line.isascii())


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _preamble(body: bytes, contract: Contract) -> int:
    """Return how many bytes come before the header: lines that name no column of the contract, before one that names all it needs."""
    needed = {field.name.casefold() for field in contract.columns if not field.nullable} or {field.name.casefold() for field in contract.columns}
    begin = 0
    for number, end in enumerate((*_line_ends(body[:100_000]), len(body))):
        if number == 50 or not needed:
            break
        line = body[begin:end].decode(errors="replace")
        if any(needed <= {cell.strip().strip('"').casefold() for cell in line.strip().split(mark)} for mark in _MARKS):
            return begin if '"' not in body[:begin].decode(errors="replace") else 0
        begin = end
    return 0


def _no_header(rows: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    """Mark the lines that say the names of the columns again, as files put together have them."""
    names = [name for name in rows.columns if name not in (LINE, BROKEN)]
    said = {new: old for old, new in layout.renamed.items()}
    again = rows[names[0]] == said.get(names[0], names[0])
    if not again.any():
        return rows
    header = pl.all_horizontal(pl.col(name).str.strip_chars() == said.get(name, name) for name in names)
    return rows.with_columns(pl.when(header).then(pl.lit("line repeats the header")).otherwise(pl.col(BROKEN)).alias(BROKEN))


def _header(body: bytes, line: int, contract: Contract, where: str, layout: Layout) -> tuple[_Header, int]:
    """Return the names of the columns, and how many bytes say them."""
    first = re.split(r"[\r\n]", body.split(b"\n", 1)[0].decode(), maxsplit=1)[0]
    mark = max(_MARKS, key=lambda mark: len({cell.strip().strip('"').casefold() for cell in first.split(mark)} & {name.casefold() for name in contract.names}))
    not_too_wide(first.count(mark) + 1, where)
    end = next((place for place in _line_ends(body) if body.count(b'"', 0, place) % 2 == 0), len(body))
    (cells,) = _by_csv(body[:end].decode(), mark, line, where)[1] or [[""]]
    came = [name.strip() for name in cells]
    names = as_contract(came, contract)
    layout.delimiter = mark
    layout.renamed = {old: new for old, new in zip(came, names, strict=True) if old != new}
    names_of(names, where)
    return _Header(names, mark), end


def names_of(names: Sequence[str], where: str) -> None:
    """Refuse names of columns under which nobody could find them."""
    if "" in names:
        raise PalanError(f"{where}: column {names.index('') + 1} of the file has no name", "give each column a name in the first line")
    if len(set(names)) < len(names):
        repeated = next(name for name, count in Counter(names).items() if count > 1)
        raise PalanError(f'{where}: two columns of the file are named "{repeated}"', "give each column its own name")
    reserved = next((name for name in names if name in (LINE, BROKEN, REASONS)), None)
    if reserved is not None:
        raise PalanError(f'{where}: the file has a column "{reserved}", a name that palan uses itself', "leave that column out of the delivery")


def as_contract(names: Sequence[str], contract: Contract) -> list[str]:
    """Return the names, as the contract has them where they differ in case or blanks alone and nothing else has that name."""
    missing = {_bare(name): name for name in contract.names if name not in names}
    asked = Counter(_bare(name) for name in names)
    return [missing[_bare(name)] if name not in contract.names and _bare(name) in missing and asked[_bare(name)] == 1 else name for name in names]


def _bare(name: str) -> str:
    return re.sub(r"[\s_]+", "_", name.strip()).casefold()


def _line_ends(text: bytes) -> Iterator[int]:
    place = text.find(b"\n")
    while place >= 0:
        yield place + 1
        place = text.find(b"\n", place + 1)


def _rows(body: bytes, line: int, header: _Header, where: str) -> pl.DataFrame:
    """Return the rows of a piece, each with its line."""
    if not body.strip(b"\n"):
        return _marked(pl.DataFrame(schema=dict.fromkeys(header.names, pl.String)), pl.Series(LINE, [], pl.Int64), None)
    if b'"' not in body:
        return _plain(body, line, header, where)
    frame, laid = None, _layout(body, header.separator, line)
    if laid is not None and (laid.widths == len(header.names)).all():
        frame = _read(body, header, quoted=True)
    if frame is not None and laid is not None and frame.height == len(laid.lines):
        return _marked(frame.select(pl.when(pl.all() != "").then(pl.all())), pl.Series(LINE, laid.lines), None)
    lines, cells = _by_csv(body.decode(), header.separator, line, where)
    return _cut(cells, lines, header)


def _plain(body: bytes, line: int, header: _Header, where: str) -> pl.DataFrame:
    """Return the rows of a piece without quotes: each line is one."""
    if body[-1:] != b"\n":
        body += b"\n"
    count = body.count(b"\n")
    width = len(header.names)
    # Polars refuses a line with too many fields, so none has too few where they are right in all; of blank lines it says nothing
    if body[:1] != b"\n" and b"\n\n" not in body and body.count(header.separator.encode()) == (width - 1) * count:
        frame = _read(body, header, quoted=False)
        if frame is not None and frame.height == count:
            return _marked(frame, pl.int_range(line, line + count, dtype=pl.Int64, eager=True).alias(LINE), None)
    lines = pl.DataFrame({"text": pl.Series(body[:-1].decode().split("\n"), dtype=pl.String)}).with_row_index(LINE, offset=line).filter(pl.col("text") != "")
    widths = (lines["text"].str.count_matches(header.separator, literal=True) + 1).cast(pl.Int64)
    cells = lines["text"].str.splitn(header.separator, width + 1).struct.unnest()
    frame = cells[:, :width].select(pl.when(pl.all() != "").then(pl.all())).rename(dict(zip(cells.columns, header.names, strict=False)))
    return _marked(frame, lines[LINE].cast(pl.Int64), widths)


def _read(body: bytes, header: _Header, *, quoted: bool) -> pl.DataFrame | None:
    """Let Polars read a piece; None where it does not, and its lines have to be looked at one by one."""
    try:
        return pl.read_csv(body, has_header=False, separator=header.separator, quote_char='"' if quoted else None, schema=dict.fromkeys(header.names, pl.String()))
    except pl.exceptions.PolarsError:
        return None


class _Layout(msgspec.Struct, frozen=True):
    lines: Any
    widths: Any


def _layout(body: bytes, separator: str, line: int) -> _Layout | None:
    """Return where each row of quoted text begins and how many fields it has; None where a quote stands within a field."""
    text = np.frombuffer(body if body.endswith(b"\n") else body + b"\n", np.uint8)
    quotes, ends, marks = (np.flatnonzero(text == code) for code in (ord('"'), ord("\n"), ord(separator)))
    if len(quotes) % 2 or not _quotes_enclose(text, separator):
        return None
    inner_ends = np.searchsorted(quotes, ends) % 2 == 1
    rows, marks = ends[~inner_ends], marks[np.searchsorted(quotes, marks) % 2 == 0]
    begins = np.concatenate([[0], rows[:-1] + 1])
    widths = np.diff(np.searchsorted(marks, rows), prepend=0) + 1
    lines = line + np.searchsorted(ends, begins)
    filled = (rows > begins) & ~((rows == begins + 1) & (text[begins] == ord("\r")))
    return _Layout(lines[filled].astype(np.int64), widths[filled])


def _quotes_enclose(text: Any, separators: str) -> bool:
    """Tell whether every quote opens a field, closes one, or is written twice within one."""
    edges = np.zeros(256, np.bool_)
    edges[[ord(each) for each in f'"\r\n{separators}']] = True
    quotes = np.flatnonzero(text == ord('"'))
    opening, closing = quotes[::2], quotes[1::2]
    after = closing[closing + 1 < len(text)] + 1
    return bool(edges[text[opening[opening > 0] - 1]].all() and edges[text[after]].all())


def _by_csv(text: str, separator: str, line: int, where: str) -> tuple[list[int], list[list[str]]]:
    """Return the line and the cells of each row: slowly, and whatever lies in the quotes."""
    csv.field_size_limit(LONGEST)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    begin = line
    try:
        for cells in reader:
            if cells:
                rows.append(cells)
                lines.append(begin)
            begin = line + reader.line_num
    except csv.Error as problem:
        raise PalanError(f"{where}: line {begin} is not CSV: {problem}", "a quote that opens a field must close it; inside, write it twice") from problem
    return lines, rows


def _cut(rows: Sequence[Sequence[str]], lines: Sequence[int], header: _Header) -> pl.DataFrame:
    columns = [
        pl.Series(name, [row[number] if number < len(row) and row[number] != "" else None for row in rows], dtype=pl.String) for number, name in enumerate(header.names)
    ]
    return _marked(pl.DataFrame(columns), pl.Series(LINE, lines, dtype=pl.Int64), pl.Series([len(row) for row in rows], dtype=pl.Int64))


def _marked(rows: pl.DataFrame, lines: pl.Series, widths: pl.Series | None) -> pl.DataFrame:
    """Return the rows with their lines, and of one that has another number of fields than the header what is wrong with it."""
    if widths is None:
        return rows.with_columns(lines, pl.lit(None, pl.String).alias(BROKEN))
    width = pl.col("palan_width")
    reason = pl.format("line has {} fields, the header has {}", width, pl.lit(rows.width))
    return rows.with_columns(lines, widths.alias("palan_width")).with_columns(pl.when(width != rows.width).then(reason).alias(BROKEN)).drop("palan_width")


# --- Parquet -------------------------------------------------------------------------------------------------------


def _parquet(file: IO[bytes], contract: Contract, where: str, layout: Layout) -> Iterator[pl.DataFrame]:
    """Read Parquet in its own types."""
    begins = file.read(4)
    size = file.seek(0, io.SEEK_END)
    if not size:
        raise PalanError(f"{where}: the file is empty", "check the delivery and send it again; nothing was taken in")
    if begins != b"PAR1":
        raise PalanError(f"{where}: the file is not Parquet", "deliver .csv, .parquet or .ndjson under their own names")
    file.seek(-4, io.SEEK_END)
    if file.read(4) != b"PAR1":
        raise PalanError(f"{where}: the Parquet file is cut off after {size} bytes", "deliver it again, whole; nothing was taken in")
    file.seek(0)
    try:
        schema = pl.read_parquet_schema(file)
        not_too_wide(len(schema), where)
        file.seek(0)
        said, first = pl.scan_parquet(file).select(pl.len()).collect().item(), 1
        file.seek(0)
        for batch in pl.scan_parquet(file).collect_batches(chunk_size=ROWS, maintain_order=True):
            if batch.height:
                yield batch.with_columns(pl.int_range(first, first + batch.height, dtype=pl.Int64, eager=True).alias(LINE)) if LINE not in schema else batch
                first += batch.height
        if first - 1 != said:  # what fails within Polars ends the rows without a word
            raise PalanError(f"{where}: the Parquet file is damaged: it says that it has {said:,} rows, and {first - 1:,} can be read", "deliver it again; nothing was taken in")
        if first == 1:
            yield pl.DataFrame(schema=schema)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as problem:
        raise PalanError(f"{where}: the Parquet file is damaged: {first_line(problem)}", "deliver it again; nothing was taken in") from problem


# --- JSON lines ----------------------------------------------------------------------------------------------------


def _ndjson(file: IO[bytes], contract: Contract, where: str, layout: Layout) -> Iterator[pl.DataFrame]:
    """Read one JSON object a line. A line that is no object is kept and marked."""
    last, objects, empty = 0, 0, True
    names: dict[str, None] = {}
    for text in _json_pieces(_as_utf8(file, contract, layout, where), where):
        lines = text.removesuffix(b"\n").split(b"\n")
        rows = json_rows(((number, line) for number, line in enumerate(lines, start=last + 1) if line.strip()), names, where)
        last += len(lines)
        empty = empty and not rows.height
        objects += rows[BROKEN].null_count()
        if rows.height:
            yield rows
    if empty:
        raise PalanError(f"{where}: the file is empty", "check the delivery and send it again; nothing was taken in")
    if not objects:
        raise PalanError(f"{where}: no line of the file is a JSON object", 'one object a line: {"temp": 39.0, ...}')


def json_rows(lines: Iterable[tuple[int, bytes]], names: dict[str, None], where: str) -> pl.DataFrame:
    """Return the rows that these texts are, each with its number; `names` has the columns that came before, and is told of these."""
    records: list[dict[str, Any]] = []
    numbers: list[int] = []
    broken: list[str | None] = []
    for number, line in lines:
        try:
            record = msgspec.json.decode(line)
            problem = None if isinstance(record, dict) else "line is not a JSON object"
        except (msgspec.DecodeError, UnicodeDecodeError):
            record, problem = None, "line is not valid JSON"
        except RecursionError:
            record, problem = None, "line is nested too deep"
        records.append(record if isinstance(record, dict) else {})
        numbers.append(number)
        broken.append(problem)
    here = dict.fromkeys(name for record in records for name in record)
    names.update(here)
    not_too_wide(len(names), where)
    columns = {name: _column([record.get(name) for record in records]) for name in here if name not in (LINE, BROKEN)}
    return pl.DataFrame({**columns, LINE: pl.Series(numbers, dtype=pl.Int64), BROKEN: pl.Series(broken, dtype=pl.String)})


def _json_pieces(read: Callable[[int], bytes], where: str) -> Iterator[bytes]:
    rest, first = [b""], True
    while block := read(OBJECTS):
        if first:
            block, first = block.removeprefix(_BOM), False
            _no_other_kind(block, "JSON", where)
            if re.match(rb"\s*\[\s*\n|\s*\[.*,\s*\n", block[:10_000]):
                raise PalanError(f"{where}: the file is one JSON array, not one object a line", "jq -c '.[]' FILE > NAME.ndjson")
        cut = block.rfind(b"\n") + 1
        if cut:
            yield b"".join([*rest, block[:cut]])
            rest, block = [], block[cut:]
        rest.append(block)
        if sum(map(len, rest)) > LONGEST:
            raise PalanError(f"{where}: a line of the file is longer than {LONGEST >> 20} MB", "write one object a line")
    if any(rest):
        yield b"".join(rest)


def _column(values: list[Any]) -> pl.Series:
    """One JSON column: in its own type where all values share it, else as text to be judged."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int} or (kinds <= {int, float} and not any(type(value) is int and abs(value) > _EXACT for value in values)):
        try:
            return pl.Series(values, dtype=pl.Int64 if kinds == {int} else pl.Float64)
        except (OverflowError, TypeError, pl.exceptions.PolarsError):
            return pl.Series([_json_text(value) for value in values], dtype=pl.String)
    if kinds == {bool}:
        return pl.Series(values, dtype=pl.Boolean)
    return pl.Series([_json_text(value) for value in values], dtype=pl.String)


def _json_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()


def not_too_wide(columns: int, where: str) -> None:
    if columns > WIDEST:
        raise PalanError(
            f"{where}: the file has {columns:,} columns, and at most {WIDEST:,} are read",
            "deliver the columns that are needed; one row a line, not one column a row",
        )


def first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
