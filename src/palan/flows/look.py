"""Look at a table that somebody has, and say it as palan.toml says it: columns, types, what may be empty, key and time."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from palan.core import Field, FieldType
from palan.data.contract import RESERVED, Contract, column_text
from palan.errors import PalanError

if TYPE_CHECKING:
    import polars as pl

LINES = (".csv", ".ndjson", ".jsonl")
ENDINGS = (*LINES, ".parquet", ".json", ".xlsx", ".arrow", ".feather")
MOST = 100_000
"""Rows of a table that are looked at."""

SOME = 10_000
"""Cells of a column that tell which types it may have."""

MOSTLY = 0.8
"""Share of readable cells from which a column is of a type, and the others are to wait in quarantine."""

WORDS = 50
"""Different values of a text column that a model is offered as an input."""

_NUMBERS: tuple[FieldType, ...] = ("int", "float", "bool")


class Column(msgspec.Struct, frozen=True):
    field: Field
    note: str
    values: int  # different ones
    odd: int  # cells that are not of its type


class Looked(msgspec.Struct, frozen=True):
    """What was seen of one table: its path in the project, a name for it, and its columns."""

    path: str
    name: str
    rows: int
    whole: bool
    columns: tuple[Column, ...]
    first: Mapping[str, Any] = {}  # row, of those that are whole

    @property
    def key(self) -> str:
        for place, each in enumerate(self.columns):
            named = place == 0 or each.field.name.lower() in ("id", "key") or each.field.name.lower().endswith(("_id", "_key"))
            if named and each.field.type in ("int", "str", "date", "time") and not each.field.nullable and not each.odd and each.values == self.rows > 1:
                return each.field.name
        return ""

    @property
    def time(self) -> str:
        return next((each.field.name for each in self.columns if each.field.type in ("date", "time")), "")

    @property
    def outcome(self) -> str:
        """Guess what is to be told: the last column of numbers."""
        able = [each.field.name for each in self.columns if each.field.type in _NUMBERS and each.field.name != self.key]
        return able[-1] if len(able) > 1 or (able and self.inputs_for(able[-1])) else ""

    def inputs_for(self, outcome: str) -> list[str]:
        """Return the columns that a model may be offered to tell this one."""
        return [
            each.field.name
            for each in self.columns
            if each.field.name not in (outcome, self.key, self.time) and (each.field.type in _NUMBERS or (each.field.type == "str" and each.values <= WORDS))
        ]


def tables_in(root: Path) -> list[Path]:
    """Return the tables that lie in a folder, and in its folder data."""
    return [path for folder in (root, root / "data") if folder.is_dir() for path in sorted(folder.iterdir()) if path.suffix.lower() in ENDINGS and path.is_file()]


def look(path: Path, shown: str) -> Looked:
    """Read a table, a large one in part.

    Raises:
        PalanError: it is not what its name says, or has no rows.
    """
    name = "".join(each if each.isalnum() and each.isascii() else "_" for each in path.stem).strip("_") or "table"
    try:
        frame, whole = rows_in(path, MOST)
    except PalanError as error:
        raise PalanError(f"{shown}{'' if error.what.startswith('cannot be read') else ':'} {error.what}", f"{error.hint.partition('; nothing was taken')[0]}; or begin beside it: palan init --into ANOTHER-FOLDER") from error
    if not frame.height:
        raise PalanError(f"{shown} has a header and no rows", "put some rows there that are as they will come")
    columns = tuple(column_of(frame.get_column(each)) for each in frame.columns if not each.startswith(RESERVED))
    return Looked(shown, name, frame.height, whole, columns, _first(frame, columns))


def data_part(table: Looked, name: str) -> str:
    """Return the `[data.NAME]` table of palan.toml."""
    key, time = table.key, table.time
    seen = f"{table.rows:,} rows" if table.whole else f"its first {table.rows:,} rows"
    lines = [
        f"[data.{name}]",
        f"source = {json.dumps(glob.escape(table.path), ensure_ascii=False):<28} # the columns below are as {seen} have them; more files: a pattern such as \"feed/*.csv\"",
        f"key = {json.dumps([key], ensure_ascii=False):<31} # no value of it comes twice; the same key again is a correction" if key else '# key = ["id"]                      # what identifies a row; the same key again is a correction',
        f"time = {json.dumps(time, ensure_ascii=False):<30} # when a row happened" if time else '# time = "day"                      # when a row happened: the watch and honest comparisons need it',
        f"[data.{name}.columns]".ljust(37) + "# type[?] [range | in values] [unit]; ? may be empty",
    ]
    pairs = [(f"{toml_key(each.field.name)} = {json.dumps(column_text(each.field), ensure_ascii=False)}", each.note) for each in table.columns]
    return "\n".join([*lines, *(f"{text:<36} # {note}" for text, note in pairs)]) + "\n"


def toml_key(name: str) -> str:
    return name if name.isidentifier() and name.isascii() else json.dumps(name, ensure_ascii=False)


def rows_in(path: Path, most: int) -> tuple[pl.DataFrame, bool]:
    """Return the first rows of a file as they came, so many at most and without lines that cannot be read, and whether they are all.

    Raises:
        PalanError: it cannot be read as what its name says.
    """
    import polars as pl

    from palan.data.compressed import expanded, suffix_of
    from palan.data.reading import BROKEN, LINE, batches

    found: list[pl.DataFrame] = []
    try:
        with path.open("rb") as raw:
            file, suffix = expanded(raw, path.name, path.stat().st_size), suffix_of(path.name)
            begins = file.readline(1 << 20) if suffix in LINES else b""
            file.seek(0)
            # a contract that asks nothing of a file but the columns that its text begins with
            asked = Contract(path.stem, tuple(Field(each, "str", True) for each in header(begins)) if begins else ())
            for batch in batches(file, suffix, asked):
                found.append(batch.filter(batch[BROKEN].is_null()) if BROKEN in batch.columns else batch)
                if sum(each.height for each in found) > most:
                    break
    except OSError as error:
        raise PalanError(f"cannot be read: {error.strerror}", f"ls -l {path}") from error
    except PalanError as error:
        raise PalanError(error.what.removeprefix(f'data "{path.stem}": '), error.hint) from error
    frame = pl.concat(found, how="diagonal_relaxed").drop(LINE, BROKEN, strict=False)
    return frame.head(most), frame.height <= most


def header(data: bytes) -> list[str]:
    first = data.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n").splitlines()[:1]
    text = first[0].decode(errors="replace") if first else ""
    mark = max(",;\t|", key=text.count)
    return [cell.strip().strip('"') for cell in text.split(mark)]


def column_of(column: pl.Series) -> Column:
    import polars as pl

    from palan.data.formats import NULLS

    cells = column.cast(pl.String, strict=False).replace("", None) if column.dtype == pl.String else column
    if column.dtype == pl.String:
        cells = pl.select(pl.when(cells.str.strip_chars() != "").then(cells)).to_series()
    words, empty = cells.drop_nulls(), cells.null_count()
    known = words.filter(~words.str.strip_chars().is_in(NULLS)) if words.dtype == pl.String else words
    kinds: tuple[FieldType, ...] = ("int", "float", "bool", "date", "time")
    if words.dtype.is_float() or words.dtype.is_decimal():
        kinds = ("float",)  # whole numbers as yet
    some = known.gather_every(max(1, len(known) // SOME))  # a cell that cannot be read as a type costs much
    kinds = tuple(kind for kind in kinds if len(some) - cells_as(kind, some).null_count() >= MOSTLY / 2 * len(some))
    read = {kind: cells_as(kind, known) for kind in kinds} if len(known) else {}
    good = {kind: len(values) - values.null_count() for kind, values in read.items()}
    kind: FieldType = "str"
    for each in kinds:
        if good.get(each, 0) > (good[kind] if kind != "str" else 0) and good[each] >= MOSTLY * len(known):
            kind = each
    if kind == "str":  # there it may be a word as any other
        known = words
    missing = words.filter(words.str.strip_chars().is_in(NULLS)).unique(maintain_order=True).to_list() if len(known) < len(words) else []
    odd = len(known) - good[kind] if kind != "str" else 0
    values = read[kind].drop_nulls() if kind != "str" else known.cast(pl.String, strict=False)
    empty += len(words) - len(known)
    notes = [f"{empty:,} of {len(cells):,} empty{_listed(missing)}" if empty else "never empty"]
    if kind in ("int", "float", "date", "time") and len(values):
        ends: tuple[Any, Any] = (values.min(), values.max())
        low, high = (str(each)[:10] if kind in ("date", "time") else f"{each:.6g}" for each in ends)
        notes.insert(0, f"{low} to {high}")
    elif kind == "str" and len(known):
        notes.insert(0, f"{values.n_unique():,} different values")
        notes += _almost(values)
    if odd:
        strange = known.filter(read[kind].is_null()).cast(pl.String, strict=False).unique(maintain_order=True).head(3).to_list()
        notes.append(f"{odd:,} cells are none: their rows will wait in quarantine{_listed(strange)}")
    return Column(Field(column.name, kind, bool(empty) or not len(known)), ", ".join(notes), values.n_unique(), odd)


def cells_as(kind: FieldType, cells: pl.Series) -> pl.Series:
    """Return cells read as this type, in the form that most of them have, null where one cannot be."""
    import polars as pl

    from palan.data import formats
    from palan.data.verdict import read_as

    plain = read_as(kind, cells)
    if cells.dtype != pl.String or kind in ("str", "bool") or plain.null_count() == cells.null_count():
        return plain
    contract = Contract("", (Field(cells.name, kind, True),))
    written = formats.survey([cells.to_frame()], contract, {})
    return read_as(kind, next(formats.plainly(iter([cells.to_frame()]), contract, written))[cells.name]) if written else plain


def _listed(cells: Sequence[object]) -> str:
    return f" ({', '.join(json.dumps(str(each)[:20], ensure_ascii=False) for each in cells[:3])})" if cells else ""


def _almost(words: pl.Series) -> list[str]:
    """Say of text that it would be dates, were it told how they are meant."""
    pattern = r"^\d{1,2}[./-]\d{1,2}[./-]\d{4}"
    return ['dates that read two ways: date reads them, with dates = "dmy" or "mdy"'] if words.str.contains(pattern).sum() >= MOSTLY * len(words) else []


def _first(frame: pl.DataFrame, columns: Sequence[Column]) -> dict[str, Any]:
    import polars as pl

    some = frame.head(1000)
    rows = pl.DataFrame({each.field.name: cells_as(each.field.type, some[each.field.name]) for each in columns})
    return next(iter(rows.drop_nulls().head(1).to_dicts() or rows.head(1).to_dicts()), {})
