"""A batch in, a verdict out: rows that keep the contract, rows that do not and why, and what holds of the whole table.

Row rules and table rules are different things. A row rule sends the rows that break it to quarantine; a table rule
(how many rows, which columns) is news about the delivery and never touches a row.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence, Set
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import polars as pl

from palan.core import Field, FieldType
from palan.data.contract import Contract, column_text
from palan.errors import PalanError, nearest

LINE = "palan_line"
REASONS = "palan_reasons"
BROKEN = "palan_broken"  # set by the parsers on a line that has no readable form

WIDEST = 10_000
"""Columns that a delivered file may have: beyond that it is another kind of file, or one on its side."""

_RAW = "palan_raw:"
_RULE = "palan_rule:"
_TIME_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M%#z",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d",
)


class RowRule(msgspec.Struct, frozen=True):
    """A rule over single rows, and how many rows broke it. `example` is the first offending value, as it came."""

    rule: str
    column: str
    count: int
    example: str = ""
    severity: Literal["error"] = "error"


class TableRule(msgspec.Struct, frozen=True):
    """A rule over the delivery as a whole."""

    rule: str
    holds: bool
    text: str
    severity: Literal["warn", "error"] = "warn"


class Verdict(msgspec.Struct, frozen=True):
    """What was delivered. Of the good rows, `unchanged` came in the same file before and say nothing new; `corrections`
    have a key that was already known and replace the older row."""

    data: str
    rows: int
    good: int
    bad: int
    corrections: int
    broken: tuple[RowRule, ...]
    table: tuple[TableRule, ...]
    unchanged: int = 0

    @property
    def warnings(self) -> list[str]:
        return [rule.text for rule in self.table if not rule.holds]

    @property
    def text(self) -> str:
        """One line for a person."""
        parts = [f"{self.rows} rows: {self.good} good, {self.bad} in quarantine"]
        if self.unchanged:
            parts[0] += f", {self.unchanged} as before"
        if self.corrections:
            parts[0] += f", {self.corrections} corrections"
        parts += [f"{rule.count} x {rule.rule}" for rule in self.broken]
        return "; ".join(parts + self.warnings)

    def to_dict(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "rows": self.rows,
            "good": self.good,
            "bad": self.bad,
            "corrections": self.corrections,
            "unchanged": self.unchanged,
            "broken": [
                {"rule": rule.rule, "column": rule.column, "count": rule.count, "example": rule.example, "severity": rule.severity}
                for rule in self.broken
            ],
            "table": [{"rule": rule.rule, "holds": rule.holds, "text": rule.text, "severity": rule.severity} for rule in self.table],
        }


class Checked(msgspec.Struct, frozen=True):
    """`good` has the rows to take in: the contract's columns in their types, then any others. `bad` has the values as they came, `palan_line` and `palan_reasons`."""

    good: pl.DataFrame
    bad: pl.DataFrame
    verdict: Verdict


class _Rule(msgspec.Struct, frozen=True):
    text: str
    column: str
    broken: pl.Expr


def verify(
    frame: pl.DataFrame, contract: Contract, known_keys: pl.DataFrame | None = None, earlier: pl.DataFrame | None = None
) -> Checked:
    """Judge every row of a delivery in one pass of compiled expressions.

    A value that cannot be read as its column's type breaks its row; nothing becomes null silently. A check that gives
    null (because a value is missing) does not break a row, as in SQL. Rows of one key that are equal in every column
    keep the first; rows of one key that differ are all broken, because nothing tells which is right.

    Args:
        frame: the delivery, any height; columns as they came (text from a CSV).
        contract: what must hold.
        known_keys: the key columns of rows that the table already holds: they make corrections, not faults.
        earlier: the rows, verified, that the same file delivered before, one of each key. What it only repeats is left
            out of `good`: another file may have corrected it since.

    Raises:
        PalanError: a column that may not be missing is not there, a check is not a yes/no question about one row, or
            the contract has no columns; or rows without a key are not those of before and more.
    """
    if not contract.columns:
        raise PalanError(f'data "{contract.name}" has no columns to verify', f"[data.{contract.name}.columns] in palan.toml")
    delivered = [name for name in frame.columns if name not in (LINE, BROKEN)]
    declared, here = set(contract.names), set(delivered)
    missing = [field for field in contract.columns if field.name not in here]
    extra = [name for name in delivered if name not in declared]
    for field in missing:
        if not field.nullable:
            raise PalanError(f'data "{contract.name}": the delivery has no column "{field.name}"', _missing_hint(field.name, extra, delivered))
    checks = compile_checks(contract)
    lined = _with_line(frame)
    rules = _row_rules(contract, lined, checks)
    judged = _judge(lined, contract, rules)
    if contract.key:
        rules, judged = _judge_keys(judged, contract, rules)
    flags = [f"{_RULE}{number}" for number in range(len(rules))]
    counts = judged.select(pl.col(flags).sum()).row(0) if flags else ()
    is_bad = judged.select(pl.any_horizontal(flags)).to_series() if flags else pl.Series([False] * judged.height, dtype=pl.Boolean)
    good = judged.filter(~is_bad).select([*contract.names, *extra])
    bad = _quarantine(judged.filter(is_bad), rules, delivered, declared)
    broken = tuple(
        RowRule(rule.text, rule.column, count, _example(judged, flag, rule.column, delivered))
        for rule, flag, count in zip(rules, flags, counts, strict=True)
        if count
    )
    held, corrections = good.height, 0
    if earlier is not None and earlier.height:
        good = _news(good, earlier, contract) if contract.key else _grown(good, earlier, contract)
    if known_keys is not None and contract.key and known_keys.height:
        keys = alike([known_keys.select(contract.key), good.select(contract.key)], contract)[0]
        corrections = good.select(contract.key).join(keys.unique(), on=contract.key, how="semi").height
    table = _table_rules(contract, frame.height, missing, extra)
    return Checked(good, bad, Verdict(contract.name, frame.height, held, bad.height, corrections, broken, table, held - good.height))


def _news(good: pl.DataFrame, earlier: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """Return the rows that differ in some column from each earlier one."""
    earlier = alike([earlier, good], contract)[0]
    marked = [earlier.with_columns(pl.lit(None, pl.UInt32).alias("palan_row")), good.with_row_index("palan_row")]
    try:
        both = pl.concat(marked, how="diagonal_relaxed")
    except pl.exceptions.PolarsError:  # a column outside the contract is of quite another type now: every row differs
        return good
    old = pl.col("palan_row").is_null()
    news = both.filter(~old).join(both.filter(old), on=[name for name in both.columns if name != "palan_row"], how="anti", nulls_equal=True)
    return good[news["palan_row"].sort()]


def _grown(good: pl.DataFrame, earlier: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """Return the rows without those of before, each as often as it was there."""
    old, new = alike([earlier, good], contract)
    names = [name for name in new.columns if not new.schema[name].is_nested()]
    if set(old.columns) == set(new.columns) and all(old.schema[name] == new.schema[name] for name in names):
        old, marked = (each.with_columns(pl.int_range(pl.len()).over(names).alias("palan_copy")) for each in (old, new))
        by = [*names, "palan_copy"]
        if old.join(marked, on=by, how="anti", nulls_equal=True).height == 0:
            return marked.join(old.select(by), on=by, how="anti", nulls_equal=True, maintain_order="left").drop("palan_copy")
    raise PalanError(
        f'the file was taken in before and rows of it have changed, but data "{contract.name}" has no key that tells its old rows from its new ones',
        f'[data.{contract.name}] key = ["..."], or deliver the new rows in a file of their own',
    )


def alike(parts: Sequence[pl.DataFrame], contract: Contract) -> list[pl.DataFrame]:
    """Return the verified tables with each column of the contract in the type that it has in the newest, the last of them."""
    newest: dict[str, pl.DataType] = {}
    for part in parts:
        newest.update(part.schema)
    kinds = {dtype: kind for kind, dtype in _DTYPES.items()}
    wanted = {name: newest[name] for name in contract.names if newest.get(name) in kinds}

    def read_as(part: pl.DataFrame) -> pl.DataFrame:
        other = {name: dtype for name, dtype in part.schema.items() if wanted.get(name, dtype) != dtype}
        casts = [_cast(Field(name, kinds[wanted[name]]), dtype).alias(name) for name, dtype in other.items()]  # type: ignore[arg-type]
        return part.with_columns(casts) if casts else part

    return [read_as(part) for part in parts]


def again(stored: pl.DataFrame, contract: Contract) -> tuple[Verdict, list[str]]:
    """Judge rows that were verified under an older contract by this one: what breaks it, and the columns whose values
    cannot even be read as their new type."""
    absent = [pl.lit(None, pl.Null).alias(field.name) for field in contract.columns if field.name not in stored.columns]
    open_ended = msgspec.structs.replace(contract, key=(), rows=(None, None))
    checked = verify(stored.with_columns(absent), open_ended)
    unread = {f"{field.name} is not {_ARTICLES[field.type]}" for field in contract.columns}
    return checked.verdict, [rule.column for rule in checked.verdict.broken if rule.rule in unread]


def typed(frame: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """Return the contract's columns in their types, as far as the rows have them, whether they hold or not: what cannot be read is null."""
    return frame.select(_cast(field, frame.schema[field.name]).alias(field.name) for field in contract.columns if field.name in frame.columns)


def once_more(bad: pl.DataFrame, contract: Contract, known_keys: pl.DataFrame | None = None) -> Checked | None:
    """Judge rows of one quarantine, as `verify` set them apart, by a contract that may have changed; None where it cannot be asked of them.

    A line that had no readable form, and a copy of a row that was taken, stay what they were.
    """
    repeats = f"key {', '.join(contract.key)} repeats an earlier row"
    copies = bad[REASONS].list.contains(repeats)
    unreadable = pl.col(REASONS).list.eval(pl.element().filter(pl.element().str.starts_with("line "))).list.first()
    delivered = bad.filter(~copies).with_columns(unreadable.alias(BROKEN)).drop(REASONS)
    try:
        checked = verify(delivered, msgspec.structs.replace(contract, rows=(None, None)), known_keys)
    except PalanError:  # a column that the delivery does not have is asked for now
        return None
    rest = pl.concat([as_text(checked.bad.drop(LINE, REASONS)).with_columns(checked.bad[LINE], checked.bad[REASONS]), bad.filter(copies)], how="diagonal_relaxed")
    return msgspec.structs.replace(checked, bad=rest.sort(LINE))


def concerned(reason: str, contract: Contract, columns: Sequence[str]) -> list[str]:
    """Return the columns that a reason in quarantine is about."""
    if reason.startswith("check "):
        try:
            return [name for name in dict.fromkeys(pl.sql_expr(reason.removeprefix("check ")).meta.root_names()) if name in columns]
        except pl.exceptions.PolarsError:
            return []
    if reason.startswith("key "):
        return [name for name in contract.key if name in columns]
    named = [name for name in columns if reason.startswith(f"{name} is ")]
    return [max(named, key=len)] if named else []


def compile_checks(contract: Contract) -> list[pl.Expr]:
    """Return the contract's checks as expressions, each proved to be a yes/no question about one row.

    Raises:
        PalanError: SQL that cannot be read, an unknown column, an aggregate, or an answer that is not true or false.
    """
    # three rows of nulls: an aggregate answers with one value where a row rule answers with three
    probe = pl.DataFrame({field.name: pl.Series([None] * 3, dtype=_DTYPES[field.type]) for field in contract.columns})
    checks = []
    for text in contract.checks:
        where = f'check "{text}" of data "{contract.name}"'
        try:
            expression = pl.sql_expr(text)
            answer = probe.select(expression.alias("answer"))
        except pl.exceptions.ColumnNotFoundError as problem:
            unknown = next((name for name in pl.sql_expr(text).meta.root_names() if name not in contract.names), "")
            raise PalanError(f'{where} names "{unknown}", which is no column', nearest(unknown, contract.names)) from problem
        except pl.exceptions.PolarsError as problem:
            raise PalanError(f"{where} cannot be read: {_first_line(problem)}", 'a check is SQL over one row, such as "dewp <= temp + 1"') from problem
        if answer.height != probe.height or not expression.meta.root_names():
            raise PalanError(f"{where} is not about one row", "checks compare columns of the same row; aggregates are not row rules")
        if answer.schema["answer"] not in (pl.Boolean, pl.Null):
            raise PalanError(f"{where} does not answer true or false", 'write a comparison, such as "dewp <= temp + 1"')
        checks.append(expression)
    return checks


def parse_file(data: bytes, suffix: str, contract: Contract) -> pl.DataFrame:
    """Read the bytes of a delivered file: `suffix` is .csv, .parquet or .ndjson.

    Raises:
        PalanError: another suffix, an empty file, bytes that are not such a file, or more than 10,000 columns.
    """
    readers = {".csv": parse_csv, ".parquet": parse_parquet, ".ndjson": parse_ndjson, ".jsonl": parse_ndjson}
    reader = readers.get(suffix.lower())
    if reader is None:
        which = f'files that end in "{suffix}"' if suffix else "files whose name has no ending"
        raise PalanError(f'data "{contract.name}": {which} cannot be read', "deliver .csv, .parquet or .ndjson")
    if not data.strip():
        raise PalanError(f'data "{contract.name}": the file is empty', "check the delivery and send it again; nothing was taken in")
    return reader(data, contract)


def parse_csv(data: bytes, contract: Contract) -> pl.DataFrame:
    """Read CSV with every value as text, so that `verify` can judge the values; `palan_line` is the line in the file.

    The separator (comma, semicolon, tab or bar) is the one whose header fits the contract best. A line with too few or
    too many fields is kept, marked in `palan_broken`, and will be quarantined.

    Raises:
        PalanError: no bytes, not UTF-8 text, two columns of one name, or a quote that never ends.
    """
    where = f'data "{contract.name}"'
    if not data.strip():
        raise PalanError(f"{where}: the file is empty", "check the delivery and send it again; nothing was taken in")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if b"\0" in data:
        raise PalanError(f"{where}: the file is not CSV text: it holds zero bytes", "deliver .csv, .parquet or .ndjson under their own names")
    try:
        text = data.decode()
    except UnicodeDecodeError as problem:
        line = len(re.findall(rb"\r\n|\r|\n", data[: problem.start])) + 1
        raise PalanError(f"{where}: line {line} is not UTF-8 text", "save the file as UTF-8: iconv -f latin1 -t utf-8") from problem
    quoted = '"' in text
    if not quoted and "\r" in text:  # lines may end as in Windows, or as in an old Mac
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    first = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    separator = max(",;\t|", key=lambda mark: len({cell.strip().strip('"') for cell in first.split(mark)} & set(contract.names)))
    _not_too_wide(first.count(separator) + 1, where)
    names, rows, lines, widths = (_quoted_cells if quoted else _cells)(text, separator, where)
    if len(set(names)) < len(names):
        repeated = next(name for name, count in Counter(names).items() if count > 1)
        raise PalanError(f'{where}: two columns of the file are named "{repeated}"', "give each column its own name")
    reserved = next((name for name in names if name in (LINE, BROKEN, REASONS)), None)
    if reserved is not None:
        raise PalanError(f'{where}: the file has a column "{reserved}", a name that palan uses itself', "leave that column out of the delivery")
    wrong = pl.col("palan_width") != len(names)
    reason = pl.format("line has {} fields, the header has {}", pl.col("palan_width"), pl.lit(len(names)))
    return rows.with_columns(lines, widths).with_columns(pl.when(wrong).then(reason).alias(BROKEN)).drop("palan_width")


def parse_parquet(data: bytes, contract: Contract) -> pl.DataFrame:
    """Read Parquet in its own types.

    Raises:
        PalanError: the bytes are not a whole Parquet file.
    """
    where = f'data "{contract.name}"'
    if data[:4] != b"PAR1":
        raise PalanError(f"{where}: the file is not Parquet", "deliver .csv, .parquet or .ndjson under their own names")
    if data[-4:] != b"PAR1":
        raise PalanError(f"{where}: the Parquet file is cut off after {len(data)} bytes", "deliver it again, whole; nothing was taken in")
    try:
        _not_too_wide(len(pl.read_parquet_schema(io.BytesIO(data))), where)
        return pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, OSError) as problem:
        raise PalanError(f"{where}: the Parquet file is damaged: {_first_line(problem)}", "deliver it again; nothing was taken in") from problem


def parse_ndjson(data: bytes, contract: Contract) -> pl.DataFrame:
    """Read one JSON object a line. A line that is no object is kept, marked in `palan_broken`, and will be quarantined.

    Raises:
        PalanError: no line of the file is a JSON object.
    """
    records: list[dict[str, Any]] = []
    lines: list[int] = []
    broken: list[str | None] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = msgspec.json.decode(line)
            problem = None if isinstance(record, dict) else "line is not a JSON object"
        except (msgspec.DecodeError, UnicodeDecodeError):
            record, problem = None, "line is not valid JSON"
        records.append(record if isinstance(record, dict) else {})
        lines.append(number)
        broken.append(problem)
    if not any(problem is None for problem in broken):
        raise PalanError(f'data "{contract.name}": no line of the file is a JSON object', 'one object a line: {"temp": 39.0, ...}')
    names = list(dict.fromkeys(name for record in records for name in record))
    _not_too_wide(len(names), f'data "{contract.name}"')
    columns = {name: _column([record.get(name) for record in records]) for name in names if name not in (LINE, BROKEN)}
    return pl.DataFrame({**columns, LINE: pl.Series(lines, dtype=pl.Int64), BROKEN: pl.Series(broken, dtype=pl.String)})


def _not_too_wide(columns: int, where: str) -> None:
    if columns > WIDEST:
        raise PalanError(
            f"{where}: the file has {columns:,} columns, and at most {WIDEST:,} are read",
            "deliver the columns that are needed; one row a line, not one column a row",
        )


_DTYPES: dict[str, pl.DataType] = {
    "int": pl.Int64(),
    "float": pl.Float64(),
    "bool": pl.Boolean(),
    "str": pl.String(),
    "time": pl.Datetime("us", "UTC"),
    "date": pl.Date(),
}


def dtype_of(field: Field) -> pl.DataType:
    """Return the Polars type that a column of the contract has once verified.

    Raises:
        KeyError: the field is not a plain column (a list, a map).
    """
    return _DTYPES[field.type]


def read_time(name: str, dtype: pl.DataType) -> pl.Expr:
    """Return the column read as UTC times, whether it holds times, dates or ISO 8601 text; null where it cannot be read."""
    return _cast(Field(name, "time"), dtype)


def read_as(kind: FieldType, column: pl.Series) -> pl.Series:
    """Return the values read as this type, null where one cannot be."""
    return column.to_frame().select(_cast(Field(column.name, kind), column.dtype).alias(column.name)).to_series()


def as_text(frame: pl.DataFrame) -> pl.DataFrame:
    """Return every column as text, whatever it holds: for people to read, and for rows of several files to lie together."""
    return frame.with_columns(_text_of(column) for column in frame.iter_columns())


def _text_of(column: pl.Series) -> pl.Series:
    if isinstance(column.dtype, pl.Duration):
        return column.dt.to_string("polars")
    if not column.dtype.is_nested() and column.dtype not in (pl.Binary, pl.Object):
        return column.cast(pl.String, strict=False)
    words = [value.decode(errors="backslashreplace") if isinstance(value, bytes) else None if value is None else str(value) for value in column]
    return pl.Series(column.name, words, dtype=pl.String)


def empty(contract: Contract) -> pl.DataFrame:
    """Return the verified table without rows."""
    return pl.DataFrame(schema={field.name: dtype_of(field) for field in contract.columns})


def _cells(text: str, separator: str, where: str) -> tuple[list[str], pl.DataFrame, pl.Series, pl.Series]:
    """Split text into the header, cells as text, the line of each row and how many fields it had."""
    # without quotes a line is a row, so the fields of each can be counted, and cut, in one vectorised step
    lines = pl.DataFrame({"text": pl.Series(text.split("\n"), dtype=pl.String)}).with_row_index(LINE, offset=1)
    lines = lines.filter(pl.col("text") != "")
    names = [name.strip() for name in lines["text"][0].split(separator)]
    body = lines.slice(1)
    widths = (body["text"].str.count_matches(separator, literal=True) + 1).cast(pl.Int64).alias("palan_width")
    cells = body["text"].str.splitn(separator, len(names) + 1).struct.unnest()
    rows = cells[:, : len(names)].select(pl.when(pl.all() != "").then(pl.all()))
    return names, _named(rows, names, where), body[LINE].cast(pl.Int64), widths


def _quoted_cells(text: str, separator: str, where: str) -> tuple[list[str], pl.DataFrame, pl.Series, pl.Series]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    begin = 1
    try:
        for cells in reader:
            if cells and not header:
                header = [cell.strip() for cell in cells]
            elif cells:
                rows.append(cells)
                lines.append(begin)
            begin = reader.line_num + 1
    except csv.Error as problem:
        raise PalanError(f"{where}: line {begin} is not CSV: {problem}", "a quote that opens a field must close it; inside, write it twice") from problem
    width = len(header)
    columns = [pl.Series(f"column_{number}", [row[number] if number < len(row) and row[number] != "" else None for row in rows], dtype=pl.String) for number in range(width)]
    widths = pl.Series("palan_width", [len(row) for row in rows], dtype=pl.Int64)
    return header, _named(pl.DataFrame(columns), header, where), pl.Series(LINE, lines, dtype=pl.Int64), widths


def _named(rows: pl.DataFrame, names: Sequence[str], where: str) -> pl.DataFrame:
    if "" in names:
        raise PalanError(f"{where}: column {names.index('') + 1} of the file has no name", "give each column a name in the first line")
    if len(set(names)) < len(names):
        return rows  # the caller names the repeated one
    return rows.rename(dict(zip(rows.columns, names, strict=True)))


def _column(values: list[Any]) -> pl.Series:
    """One JSON column: in its own type where all values share it, else as text for `verify` to judge."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int} or kinds <= {int, float}:
        try:
            return pl.Series(values, dtype=pl.Int64 if kinds == {int} else pl.Float64)
        except (OverflowError, TypeError, pl.exceptions.PolarsError):
            return pl.Series([_json_text(value) for value in values], dtype=pl.String)
    if kinds == {bool}:
        return pl.Series(values, dtype=pl.Boolean)
    return pl.Series([_json_text(value) for value in values], dtype=pl.String)


def _json_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()


def _with_line(frame: pl.DataFrame) -> pl.DataFrame:
    if LINE not in frame.columns:
        frame = frame.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(LINE))
    if BROKEN not in frame.columns:
        frame = frame.with_columns(pl.lit(None, dtype=pl.String).alias(BROKEN))
    return frame


def _judge(frame: pl.DataFrame, contract: Contract, rules: Sequence[_Rule]) -> pl.DataFrame:
    """Add the typed columns under their names, the values as they came under `palan_raw:`, and one flag a rule."""
    present = [field for field in contract.columns if field.name in frame.columns]
    raw = [pl.col(field.name).alias(_RAW + field.name) for field in present]
    typed = [_cast(field, frame.schema[field.name]).alias(field.name) for field in present]
    absent = [pl.lit(None, dtype=_DTYPES[field.type]).alias(field.name) for field in contract.columns if field.name not in frame.columns]
    flags = [rule.broken.fill_null(False).alias(f"{_RULE}{number}") for number, rule in enumerate(rules)]
    return frame.lazy().with_columns(raw + typed + absent).with_columns(flags).collect()


def _row_rules(contract: Contract, frame: pl.DataFrame, checks: Sequence[pl.Expr]) -> list[_Rule]:
    rules = [_Rule(text, "", pl.col(BROKEN) == text) for text in frame.get_column(BROKEN).drop_nulls().unique().sort().to_list()]
    readable = pl.col(BROKEN).is_null()
    for field in contract.columns:
        if field.name not in frame.columns:
            continue
        # raw text of spaces is a missing value, for every type but text itself
        raw, value = _blank_as_null(field, frame.schema[field.name]), pl.col(field.name)
        rules.append(_Rule(f"{field.name} is not {_ARTICLES[field.type]}", field.name, readable & raw.is_not_null() & value.is_null()))
        if not field.nullable:
            rules.append(_Rule(f"{field.name} is missing", field.name, readable & raw.is_null()))
        if field.type == "float":
            rules.append(_Rule(f"{field.name} is not finite", field.name, ~value.is_finite()))
        if field.type in ("time", "date"):
            first, last = _YEARS if field.type == "time" else (each.date() for each in _YEARS)
            rules.append(_Rule(f"{field.name} is outside the years 1 to 9999", field.name, ~value.is_between(first, last)))
        outside = [value < field.minimum] if field.minimum is not None else []
        outside += [value > field.maximum] if field.maximum is not None else []
        if outside:
            finite = value.is_finite() if field.type == "float" else pl.lit(True)
            band = column_text(Field("", field.type, minimum=field.minimum, maximum=field.maximum)).split(" ", 1)[1]
            rules.append(_Rule(f"{field.name} is {_beyond(band)}", field.name, finite & pl.any_horizontal(outside)))
        if field.values:
            listed = " ".join(field.values) if len(field.values) <= 8 else f"the {len(field.values)} listed values"
            rules.append(_Rule(f"{field.name} is not one of {listed}", field.name, ~value.cast(pl.String).is_in(list(field.values))))
    rules += [_Rule(f"check {text}", "", ~check) for text, check in zip(contract.checks, checks, strict=True)]
    return rules


def _judge_keys(judged: pl.DataFrame, contract: Contract, rules: list[_Rule]) -> tuple[list[_Rule], pl.DataFrame]:
    """Judge keys among the rows that are fine so far: a broken row does not take its key from a good one."""
    flags = [f"{_RULE}{number}" for number in range(len(rules))]
    key = list(contract.key)
    name = ", ".join(key)
    fine = ~pl.any_horizontal(flags) if flags else pl.lit(True)
    no_key = fine & pl.any_horizontal(pl.col(key).is_null())
    judged = judged.with_columns(no_key.alias("palan_no_key"), pl.int_range(pl.len()).alias("palan_row"))
    fine_rows = judged.filter(fine & ~pl.col("palan_no_key"))
    twice = fine_rows.filter(pl.struct(key).is_duplicated()) if fine_rows.height else fine_rows
    typed = [column for column in judged.columns if not column.startswith("palan_")]
    repeats, conflicts = pl.Series(dtype=pl.Int64), pl.Series(dtype=pl.Int64)
    if twice.height:
        # typed values decide: "1.0" and "1.00" are the same row told twice
        same = twice.with_columns(pl.struct(typed).n_unique().over(key).alias("palan_kinds"), pl.int_range(pl.len()).over(key).alias("palan_copy"))
        repeats = same.filter((pl.col("palan_kinds") == 1) & (pl.col("palan_copy") > 0))["palan_row"]
        conflicts = same.filter(pl.col("palan_kinds") > 1)["palan_row"]
    key_rules = [
        _Rule(f"key {name} is missing", key[0], pl.col("palan_no_key")),
        _Rule(f"key {name} repeats an earlier row", key[0], pl.col("palan_row").is_in(repeats.implode())),
        _Rule(f"key {name} is on rows that differ", key[0], pl.col("palan_row").is_in(conflicts.implode())),
    ]
    added = [rule.broken.alias(f"{_RULE}{len(rules) + number}") for number, rule in enumerate(key_rules)]
    return rules + key_rules, judged.with_columns(added).drop("palan_no_key", "palan_row")


def _quarantine(bad: pl.DataFrame, rules: Sequence[_Rule], delivered: Sequence[str], declared: Set[str]) -> pl.DataFrame:
    """Return the broken rows as they came, with their line and the rules that they broke."""
    reasons = pl.concat_list([pl.when(pl.col(f"{_RULE}{number}")).then(pl.lit(rule.text)) for number, rule in enumerate(rules)]) if rules else pl.lit([], dtype=pl.List(pl.String))
    return bad.select(
        [pl.col(_RAW + name).alias(name) if name in declared else pl.col(name) for name in delivered] + [pl.col(LINE), reasons.list.drop_nulls().alias(REASONS)]
    )


def _example(judged: pl.DataFrame, flag: str, column: str, delivered: Sequence[str]) -> str:
    if column not in delivered:
        return f"line {judged.filter(pl.col(flag))[LINE][0]}"
    value = _text_of(judged.lazy().filter(pl.col(flag)).select(_RAW + column).head(1).collect().to_series())[0]
    return "" if value is None else str(value)[:80]


def _table_rules(contract: Contract, rows: int, missing: Sequence[Field], extra: Sequence[str]) -> tuple[TableRule, ...]:
    low, high = contract.rows
    rules = []
    if rows == 0:
        rules.append(TableRule("rows", False, "the delivery has no rows"))
    elif low is not None or high is not None:
        holds = (low is None or rows >= low) and (high is None or rows <= high)
        band = f"{'' if low is None else f'{low:,}'}..{'' if high is None else f'{high:,}'}"
        said = f"within {band}" if holds else _beyond(band)
        rules.append(TableRule("rows", holds, f"{rows:,} {'row' if rows == 1 else 'rows'}, {said}"))
    rules += [TableRule("missing column", False, f'column "{field.name}" is not in the delivery and was taken as missing values', "error") for field in missing]
    if extra:  # kept as they came: a contract says what it needs, not all that a supplier may send
        rules.append(TableRule("extra columns", True, f"not in the contract, kept as they came: {_listed(extra)}"))
    return tuple(rules)


def _beyond(band: str) -> str:
    """Say where a value lies that is not in a band: `outside 0..10`, and of one that is open `below 50`."""
    if band.endswith(".."):
        return f"below {band[:-2]}"
    return f"above {band[2:]}" if band.startswith("..") else f"outside {band}"


def _missing_hint(name: str, extra: Sequence[str], delivered: Sequence[str]) -> str:
    close = nearest(name, extra)
    if close:
        return f"the file has an unknown column of a similar name: {close}"
    return f"it has {_listed(delivered)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12:,} more" if len(names) > 12 else "")


_YEARS = (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC))
"""What a time may be in UTC: beyond, no calendar but this library's knows it."""

_ARTICLES = {"int": "an int", "float": "a float", "bool": "true or false", "str": "text", "time": "a time", "date": "a date"}


def _blank_as_null(field: Field, dtype: pl.DataType) -> pl.Expr:
    raw = pl.col(_RAW + field.name)
    if dtype == pl.String and field.type != "str":
        return pl.when(raw.str.strip_chars() != "").then(raw)
    return raw


def _cast(field: Field, dtype: pl.DataType) -> pl.Expr:
    """Read a column as its type; what cannot be read exactly becomes null here, and `_row_rules` tells it from a null."""
    column = pl.col(field.name)
    target = _DTYPES[field.type]
    nothing = pl.lit(None, dtype=target)
    if dtype == pl.Null:
        return nothing
    if isinstance(dtype, pl.Categorical | pl.Enum):
        column, dtype = column.cast(pl.String), pl.String()
    if dtype == pl.String:
        return _cast_text(field, column)
    casts: dict[str, tuple[bool, pl.Expr]] = {
        "int": (dtype.is_integer() or dtype.is_float() or dtype.is_decimal(), _whole(column.cast(pl.Float64), column.cast(pl.Int64, strict=False), dtype)),
        "float": (dtype.is_numeric(), column.cast(pl.Float64, strict=False)),
        "bool": (dtype == pl.Boolean or dtype.is_integer(), pl.when(column.cast(pl.Int64, strict=False).is_in([0, 1])).then(column.cast(pl.Boolean))),
        "str": (dtype.is_integer() or dtype == pl.Boolean or (dtype.is_temporal() and dtype != pl.Duration), column.cast(pl.String)),
        "time": (isinstance(dtype, pl.Datetime) or dtype == pl.Date, _as_utc(column, dtype)),
        "date": (isinstance(dtype, pl.Datetime) or dtype == pl.Date, pl.when(column.cast(pl.Date).cast(pl.Datetime("us")) == _naive(column, dtype)).then(column.cast(pl.Date))),
    }
    fits, expression = casts[field.type]
    return expression if fits else nothing


def _cast_text(field: Field, column: pl.Expr) -> pl.Expr:
    if field.type == "str":
        return column
    text = column.str.strip_chars()
    if field.type == "float":
        return text.cast(pl.Float64, strict=False)
    if field.type == "int":
        # "3.0" is how other tools write a whole number in a column that had a gap
        return pl.coalesce(text.cast(pl.Int64, strict=False), _whole(text.cast(pl.Float64, strict=False), text.cast(pl.Float64, strict=False).cast(pl.Int64, strict=False), pl.Float64()))
    if field.type == "bool":
        word = text.str.to_lowercase()
        return pl.when(word.is_in(["true", "t", "yes", "1"])).then(True).when(word.is_in(["false", "f", "no", "0"])).then(False)
    if field.type == "date":
        return text.str.to_date("%Y-%m-%d", strict=False)
    joined = text.str.replace(r"^(\d{4}-\d\d-\d\d) +", "${1}T", literal=False).str.replace(r" +([+-]\d\d:?\d\d)$", "${1}", literal=False)
    offset = joined.str.replace(r"[zZ]$", "+00:00", literal=False)
    return pl.coalesce([offset.str.to_datetime(form, strict=False, time_zone="UTC", time_unit="us") for form in _TIME_FORMATS])


def _whole(number: pl.Expr, integer: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Take a float as an int only where nothing is lost: no fraction, and below 2**53."""
    return integer if dtype.is_integer() else pl.when((number == number.floor()) & (number.abs() <= 2.0**53)).then(integer)


def _as_utc(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        return column.dt.convert_time_zone("UTC").dt.cast_time_unit("us")
    return column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _naive(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        return column.dt.replace_time_zone(None).cast(pl.Datetime("us"))
    return column.cast(pl.Datetime("us"))


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
