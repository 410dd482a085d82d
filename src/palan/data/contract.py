"""What a table must hold, as `[data.NAME]` in palan.toml says it.

This file loads no data frame library, so that reading palan.toml stays quick.
"""

from __future__ import annotations

import codecs
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, get_args

import msgspec

from palan.core import Field, FieldType, Schema
from palan.data import sources
from palan.errors import NotFound, PalanError, nearest

TYPES: tuple[FieldType, ...] = ("int", "float", "bool", "str", "time", "date")
KEYS = ("source", *sources.KEYS, "transform", "key", "time", "checks", "rules", "rows", "fresh", "severity", "repair", "columns", "encoding", "decimal", "dates", "nulls")
RESERVED = "palan_"  # columns that palan adds to a quarantined row

Severity = Literal["quarantine", "stop", "warn"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""Keep the rows that break a rule apart; take nothing of the delivery; or take it and say so."""

Band = tuple[float | None, float | None]
OPEN: Band = (None, None)

ROW_RULES = ("type", "missing", "range", "in", "matches", "length", "unique", "rising", "of")
"""Rules of a column that each row keeps or breaks. What breaks one of `FIRM` cannot be taken in, whatever anybody says."""
FIRM = ("type", "missing")
BANDS = ("nulls", "mean", "quantiles", "shares")
"""Rules about a column of the delivery as a whole."""
COLUMN_KEYS = ("type", "range", "in", "matches", "length", "unique", "rising", "of", "unit", "meaning", *BANDS, "severity")

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)"
_RANGE = re.compile(rf"({_NUMBER})?\.\.({_NUMBER})?")
_PART = re.compile(rf"({_NUMBER}%?)?\.\.({_NUMBER}%?)?")
_WORDS = {"unique": 0, "rising": 0, "matches": 1, "length": 1, "of": 1}
_AGES = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Column(msgspec.Struct, frozen=True):
    """What a contract says of a column besides what one value may be: how values stand to others, bands, and what it means.

    `of` is the column of another table, `TABLE.COLUMN`, that has each value. Bands of nulls and shares are fractions,
    of the rows and of the values. `severity` holds what differs from the rule: quarantine for rows, warn for bands.
    """

    name: str
    meaning: str = ""
    unique: bool = False
    rising: bool = False
    of: str = ""
    nulls: Band = OPEN
    mean: Band = OPEN
    quantiles: Mapping[str, Band] = {}
    shares: Mapping[str, Band] = {}
    severity: Mapping[str, Severity] = {}


class Contract(msgspec.Struct, frozen=True):
    """What one table holds. `rows` is the band of rows in one delivered file, either end None when open.

    `more` has the columns of which more is said than their fields can hold. `severity` is that of checks by their text,
    and of `rows` and `fresh`, where it is not the usual one. `fresh` is how old the newest row of a delivery may be.
    `encoding`, `decimal` (`.` or `,`), `dates` (`dmy` or `mdy`) and `nulls` say how texts are written, where that is not to be found out.
    """

    name: str
    columns: tuple[Field, ...] = ()
    key: tuple[str, ...] = ()
    time: str = ""
    checks: tuple[str, ...] = ()
    rows: tuple[int | None, int | None] = (None, None)
    source: str = ""
    transform: str = ""
    more: tuple[Column, ...] = ()
    fresh: timedelta | None = None
    severity: Mapping[str, Severity] = {}
    encoding: str = ""
    decimal: str = ""
    dates: str = ""
    nulls: tuple[str, ...] = ()

    def told(self, name: str) -> Column:
        """Return what is said of a column besides its field."""
        return next((each for each in self.more if each.name == name), Column(name))

    @property
    def names(self) -> list[str]:
        return [field.name for field in self.columns]

    def field(self, name: str) -> Field:
        """Return the column of this name.

        Raises:
            NotFound: the contract has no such column; the nearest one is named.
        """
        for field in self.columns:
            if field.name == name:
                return field
        raise NotFound(f'data "{self.name}" has no column "{name}"', _one_of(name, self.names))


def parse(name: str, table: Mapping[str, Any]) -> Contract:
    """Read the contract of one `[data.NAME]` table.

    Raises:
        PalanError: an unknown key, a wrong type, a rule that cannot be kept, or a column text that cannot be read.
    """
    where = f"[data.{name}]"
    for key in table:
        if key not in KEYS:
            raise PalanError(f'{where} has no setting "{key}"', _one_of(key, KEYS))
    if table.get("repair") not in (None, "", "ask", "auto"):
        raise PalanError(f"{where} repair is {table['repair']!r}", 'repair = "ask" (a person accepts each repair) or repair = "auto" (those that the doctor is sure of are put right as they come)')
    source, transform = _text(where, table, "source"), _text(where, table, "transform")
    if bool(source) == bool(transform):
        raise PalanError(
            f"{where} needs exactly one of source and transform",
            'source = "feed/*.csv" for delivered files, or transform = "features.py:function" for a computed table',
        )
    columns = table.get("columns", {})
    if not isinstance(columns, Mapping):
        raise PalanError(f"{where} columns must be a table", f'[data.{name}.columns] with lines such as temp = "float? -30..120 °F"')
    read = [_column(name, column, said) for column, said in columns.items()]
    fields = tuple(field for field, _ in read)
    for _, more in read:
        if more.of.partition(".")[0] == name:
            raise PalanError(f'column "{more.name}" of data "{name}" is of {more.of}, a column of the same table', "a reference asks another table, such as planes.tailnum")
    names = [field.name for field in fields]
    key_columns = _texts(where, table, "key")
    time = _text(where, table, "time")
    if fields:
        for column in [*key_columns, *([time] if time else [])]:
            if column not in names:
                raise PalanError(f'{where} names column "{column}", which is not among its columns', _one_of(column, names))
    time_type = next((field.type for field in fields if field.name == time), "time")
    if time_type not in ("time", "date"):
        raise PalanError(f'{where} time = "{time}" is a column of type {time_type}', f'{time} = "time" or "date" under [data.{name}.columns]')
    fresh = _age(where, table.get("fresh", ""))
    if fresh and not time:
        raise PalanError(f"{where} fresh asks how old the newest row is, but no column says when a row happened", 'time = "..." names that column')
    checks, severity = _rules(where, table)
    return Contract(
        name=name,
        columns=fields,
        key=key_columns,
        time=time,
        checks=checks,
        rows=_band(where, table.get("rows", "")),
        source=source,
        transform=transform,
        more=tuple(more for _, more in read if more != Column(more.name)),
        fresh=fresh,
        severity=severity,
        encoding=_encoding(where, _text(where, table, "encoding")),
        decimal=_choice(where, table, "decimal", (".", ",")),
        dates=_choice(where, table, "dates", ("dmy", "mdy")),
        nulls=_texts(where, table, "nulls"),
    )


def row_rules(contract: Contract) -> Contract:
    """Return the part of a contract that can be asked of rows wherever they come from: without rules about a delivery,
    or about what other rows of it say."""
    more = tuple(
        msgspec.structs.replace(each, unique=False, rising=False, nulls=OPEN, mean=OPEN, quantiles={}, shares={}, severity=dict.fromkeys((name for name, how in each.severity.items() if how == "warn"), "warn"))
        for each in contract.more
    )
    severity: dict[str, Severity] = {name: how for name, how in contract.severity.items() if how == "warn"}
    return msgspec.structs.replace(contract, rows=(None, None), fresh=None, more=more, severity=severity)


def narrowed(contract: Contract, names: Collection[str]) -> Contract:
    """Return what can be asked of a row of these columns alone."""
    part = row_rules(contract)
    more = tuple(msgspec.structs.replace(each, of="") for each in part.more if each.name in names)
    return msgspec.structs.replace(part, columns=tuple(each for each in contract.columns if each.name in names), more=more, key=(), checks=())


def parse_column(data: str, name: str, said: object) -> Field:
    """Read what one column may hold: `type[?] [range] [length 2..5] [matches 'regex'] [unique] [rising] [of TABLE.COLUMN] [unit | in values]`,
    for example `float? -30..120 °F` or `str in EWR JFK LGA`; or a table of these.

    Raises:
        PalanError: names the column, the text, and the nearest word that would be right.
    """
    return _column(data, name, said)[0]


def _column(data: str, name: str, said: object) -> tuple[Field, Column]:
    where = f'column "{name}" of data "{data}"'
    if name.startswith(RESERVED):
        raise PalanError(f"{where}: names that begin with {RESERVED} are palan's own", "choose another name for the column")
    if not isinstance(said, Mapping):
        pieces = _pieces(where, name, said)
        return _field(where, name, f'"{said}"', pieces), _more(where, name, pieces)
    for key in said:
        if key not in COLUMN_KEYS:
            raise PalanError(f'{where} has no setting "{key}"', _one_of(key, COLUMN_KEYS))
    pieces = _pieces(where, name, said.get("type"))
    for key in ("range", "matches", "length", "of", "unit", "meaning"):
        if key in said:
            pieces[key] = _text(where, said, key)
    for key in ("unique", "rising"):
        if key in said:
            pieces[key] = _flag(where, said, key)
    if "in" in said:
        values = said["in"]
        if not isinstance(values, list) or not all(isinstance(each, str | int) for each in values):
            raise PalanError(f"{where} in must be a list of values, found {values!r}", 'in = ["EWR", "JFK"]')
        pieces["in"] = [str(each) for each in values]
    pieces |= {key: said[key] for key in (*BANDS, "severity") if key in said}
    return _field(where, name, f'type = "{said["type"]}"', pieces), _more(where, name, pieces)


def _pieces(where: str, name: str, text: object) -> dict[str, Any]:
    """Return the words of a column text by what they say."""
    if not isinstance(text, str) or not text.strip():
        raise PalanError(f"{where} needs a text, found {text!r}", f'{name} = "float? 0..100 km"')
    try:
        words = shlex.split(text)
    except ValueError as problem:
        raise PalanError(f'{where}: "{text}" has an open quote', 'write values with spaces as "str in \'New York\' Boston"') from problem
    pieces: dict[str, Any] = {"type": words.pop(0)}
    while words:
        word = words[0]
        if word in _WORDS:
            if len(words) <= _WORDS[word]:
                raise PalanError(f'{where}: "{text}" ends after "{word}"', "str matches '^[A-Z]{3}$', str length 2..5, str of TABLE.COLUMN")
            pieces[word] = words[1] if _WORDS[word] else True
            words = words[1 + _WORDS[word] :]
        elif word == "in" and (len(words) > 1 or "range" not in pieces):  # else it is an inch
            pieces["in"], words = words[1:], []
        elif ".." in word and "range" not in pieces:
            pieces["range"] = words.pop(0)
        else:
            pieces["unit"], words = " ".join(words), []
    return pieces


def _field(where: str, name: str, text: str, pieces: Mapping[str, Any]) -> Field:
    """Return what one value may be."""
    word = pieces["type"]
    kind, nullable = word.removesuffix("?"), word.endswith("?")
    if kind not in TYPES:
        raise PalanError(f'{where}: {text} begins with "{kind}", which is not a type', _one_of(kind, TYPES))
    field_type: FieldType = next(known for known in get_args(FieldType) if known == kind)
    number, unit = kind in ("int", "float"), pieces.get("unit", "")
    values = tuple(pieces.get("in", ()))
    if "in" in pieces:
        if kind not in ("str", "int"):
            raise PalanError(f"{where}: {text} lists values, which only str and int can", "a range such as 0..100 bounds a float")
        if "matches" in pieces or "length" in pieces:
            raise PalanError(f"{where}: {text} lists its values, which says more than matches or length", "take one of them out")
        if not values:
            raise PalanError(f'{where}: {text} lists no values after "in"', f'{name} = "{word} in first second"')
        bad = next((value for value in values if kind == "int" and not re.fullmatch(r"-?\d+", value)), None)
        if bad is not None:
            raise PalanError(f'{where}: "{bad}" in {text} is not a whole number', f'{name} = "str in ..." for text values')
    if "range" in pieces and not number:
        raise PalanError(f"{where}: {text} gives a range to a {kind}", "ranges bound int and float; length 2..5 bounds a str, in lists its values")
    minimum, maximum = _range(where, text, pieces["range"]) if "range" in pieces else OPEN
    if unit and not number:
        first = unit.split()[0]
        close = nearest(first, _WORDS)
        raise PalanError(f'{where}: {text} has "{first}" after the type {kind}', close or f'{name} = "{word} in {unit}" lists values')
    if unit and re.fullmatch(_NUMBER, unit.split()[0]):
        lone = unit.split()[0]
        raise PalanError(f'{where}: {text} has a lone number "{lone}"', f"a range is written {lone}.. or ..{lone} or {lone}..{lone}")
    late = next((each for each in unit.split() if ".." in each or each in _WORDS), "")
    if late:
        raise PalanError(f'{where}: {text} has "{late}" after the unit', "the unit comes last: float? -30..120 °F")
    for key in ("matches", "length"):
        if key in pieces and kind != "str":
            raise PalanError(f"{where}: {text} has {key}, which is about text, and is a {kind}", f'{name} = "str {key} ..."')
    pattern = _pattern(where, pieces["matches"]) if "matches" in pieces else ""
    length = _counts(f"{where} length", pieces.get("length", ""), "2..5")
    return Field(name, field_type, nullable, minimum, maximum, values, unit, pattern=pattern, length=length)


def _more(where: str, name: str, pieces: Mapping[str, Any]) -> Column:
    """Return what is said of a column besides what one value may be."""
    kind, nullable = pieces["type"].removesuffix("?"), pieces["type"].endswith("?")
    of = pieces.get("of", "")
    if of and not re.fullmatch(r"[^.]+\..+", of):
        raise PalanError(f'{where}: of "{of}" is no column of a table', f'{name} = "{pieces["type"]} of planes.tailnum"')
    for key, kinds in {"rising": ("int", "float", "time", "date"), "unique": ("int", "str", "time", "date"), "mean": ("int", "float"), "quantiles": ("int", "float"), "shares": ("str", "int", "bool")}.items():
        if pieces.get(key) and kind not in kinds:
            raise PalanError(f"{where} is a {kind}, of which {key} says nothing", f"{key} is for {', '.join(kinds)}")
    if "nulls" in pieces and not nullable:
        raise PalanError(f"{where} has a band of nulls, but may never be missing", f'type = "{kind}?"')
    bands = {key: _parts(f"{where} {key}", pieces[key], key) for key in ("nulls", "mean") if key in pieces}
    groups: dict[str, dict[str, Band]] = {}
    for key in ("quantiles", "shares"):
        group = pieces.get(key, {})
        if not isinstance(group, Mapping):
            raise PalanError(f"{where} {key} must be a table", '{ p50 = "40..60" }' if key == "quantiles" else '{ AA = "10%..30%" }')
        wrong = next((each for each in group if key == "quantiles" and not quantile(each)), None)
        if wrong is not None:
            raise PalanError(f'{where}: "{wrong}" is no quantile', "p1 to p99.9, such as p50, the median")
        groups[key] = {each: _parts(f"{where} {key} {each}", band, key) for each, band in group.items()}
    said = [key for key in (*ROW_RULES, *BANDS) if key in (*FIRM, *pieces)]
    return Column(
        name,
        pieces.get("meaning", ""),
        pieces.get("unique", False),
        pieces.get("rising", False),
        of,
        **bands,
        quantiles=groups["quantiles"],
        shares=groups["shares"],
        severity=_severities(where, pieces.get("severity", {}), said),
    )


def quantile(word: str) -> float:
    """Return the share of values that lie below `p95`: 0.95; 0 of a word that is none."""
    share = float(word[1:]) / 100 if re.fullmatch(r"p\d\d?(\.\d+)?", word) else 0.0
    return share if share < 1 else 0.0


def _severities(where: str, said: object, rules: Sequence[str]) -> dict[str, Severity]:
    """Read `severity = "stop"` or `severity = { RULE = "stop" }`; return what is not as it would be anyway."""
    found: dict[str, Severity] = {}
    for rule, word in said.items() if isinstance(said, Mapping) else [(each, said) for each in rules]:
        if rule not in rules:
            raise PalanError(f'{where} severity names "{rule}", which is no rule of it', _one_of(rule, rules))
        how = next((known for known in SEVERITIES if known == word), None)
        if how is None:
            raise PalanError(f"{where} severity is {word!r}, which is none", _one_of(str(word), SEVERITIES))
        table = rule in (*BANDS, "rows", "fresh")
        if isinstance(said, Mapping) and ((table and how == "quarantine") or (rule in FIRM and how == "warn")):
            why = "is about the delivery as a whole and sets no row apart" if table else "is what the column can hold, which nobody can wave through"
            raise PalanError(f'{where} severity: {rule} {why}, so it cannot be "{how}"', f"one of {', '.join(each for each in SEVERITIES if each != how)}")
        if (table and how == "stop") or (not table and how != "quarantine" and not (rule in FIRM and how == "warn")):
            found[rule] = how
    return found


def _rules(where: str, table: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, Severity]]:
    """Return the checks of a table, of both forms, and the severity of its rules."""
    checks = list(_texts(where, table, "checks"))
    said = table.get("severity", {})
    if not isinstance(said, Mapping):
        raise PalanError(f"{where} severity must be a table, found {said!r}", 'severity = { rows = "stop", fresh = "warn" }')
    severity = _severities(where, said, [each for each in ("rows", "fresh", "checks") if each in (*table, *(["checks"] if checks else []))])
    how = severity.pop("checks", None)
    if how:
        severity |= dict.fromkeys(checks, how)
    rules = table.get("rules", [])
    if not isinstance(rules, list):
        raise PalanError(f"{where} rules must be a list of tables", f'[[data.NAME.rules]] with check = "..." and severity = "{SEVERITIES[-1]}"')
    for rule in rules:
        if not isinstance(rule, Mapping) or not isinstance(rule.get("check"), str):
            raise PalanError(f"{where} rules: {rule!r} has no check", 'check = "dewp <= temp + 1"')
        unknown = next((key for key in rule if key not in ("check", "severity")), None)
        if unknown is not None:
            raise PalanError(f'{where} rules has no setting "{unknown}"', _one_of(unknown, ("check", "severity")))
        check = rule["check"]
        if check in checks:
            raise PalanError(f'{where}: the check "{check}" is there twice', "write it once, in checks or in rules")
        checks.append(check)
        if "severity" in rule:
            severity |= _severities(f"{where} rules", {check: rule["severity"]}, [check])
    return tuple(checks), severity


def _pattern(where: str, text: str) -> str:
    """Return a regular expression that a frame and a request read alike."""
    try:
        re.compile(text)
    except re.error as problem:
        raise PalanError(f'{where}: "{text}" is no regular expression: {problem}', "str matches '^[A-Z]{3}$'") from problem
    odd = re.search(r"\(\?(?:[=!<(>]|P=)|\\[1-9ZAzGQE]|[*+?}]\+", text)
    if odd:
        raise PalanError(f'{where}: "{text}" has "{odd[0]}", which only some regular expressions know', "write it with classes, groups and repetitions: '^[A-Z]{3}$'")
    return text


def _flag(where: str, table: Mapping[str, Any], key: str) -> bool:
    value = table[key]
    if not isinstance(value, bool):
        raise PalanError(f"{where} {key} must be true or false, found {value!r}", f"{key} = true")
    return value


def _parts(where: str, text: object, key: str) -> Band:
    """Read a band of numbers, or of shares such as `..5%`."""
    share = key in ("nulls", "shares")
    match = _PART.fullmatch(text) if isinstance(text, str) and text != ".." else None
    if not match or ("%" in match[0] and not share):
        raise PalanError(f"{where} = {text!r} is not a band", '"..5%" or "10%..30%"' if share else '"20..90", "20.." or "..90"')
    low, high = (None if end is None else float(end.removesuffix("%")) / (100 if "%" in match[0] else 1) for end in match.groups())
    if (low is not None and high is not None and low > high) or (share and not all(end is None or 0 <= end <= 1 for end in (low, high))):
        raise PalanError(f'{where} = "{text}" is {"no band of shares" if share else "upside down"}', '"..5%" or "10%..30%"' if share else f"{match[2]}..{match[1]}")
    return low, high


def _age(where: str, text: object) -> timedelta | None:
    if text == "":
        return None
    match = re.fullmatch(rf"(\d+)([{''.join(_AGES)}])", text) if isinstance(text, str) else None
    if not match or not int(match[1]):
        raise PalanError(f"{where} fresh = {text!r} is not an age", 'fresh = "36h", "3d" or "2w"')
    return timedelta(seconds=int(match[1]) * _AGES[match[2]])


def column_text(field: Field, more: Column | None = None) -> str:
    """Return the column as it is written in palan.toml, as far as a text can say it: `parse_column` reads it back to the same field."""
    parts = [field.type + ("?" if field.nullable else "")]
    if field.minimum is not None or field.maximum is not None:
        parts.append(band_text((field.minimum, field.maximum)))
    if field.length != OPEN:
        parts += ["length", band_text(field.length)]
    if field.pattern:
        parts += ["matches", shlex.quote(field.pattern)]
    if more:
        parts += [word for word, said in (("unique", more.unique), ("rising", more.rising)) if said]
        parts += ["of", shlex.quote(more.of)] if more.of else []
    if field.values:
        parts += ["in", *(shlex.quote(value) for value in field.values)]
    if field.unit:
        parts.append(field.unit)
    return " ".join(parts)


def column_toml(field: Field, more: Column) -> str:
    """Return all that is said of a column as a value of palan.toml: a text where that can say it, else a table."""
    told: dict[str, Any] = {"meaning": more.meaning} if more.meaning else {}
    told |= {key: share_text(band) if key == "nulls" else band_text(band) for key, band in (("nulls", more.nulls), ("mean", more.mean)) if band != OPEN}
    told |= {"quantiles": {each: band_text(band) for each, band in more.quantiles.items()}} if more.quantiles else {}
    told |= {"shares": {each: share_text(band) for each, band in more.shares.items()}} if more.shares else {}
    told |= {"severity": dict(more.severity)} if more.severity else {}
    text = column_text(field, more)
    return _value({"type": text, **told}) if told else _quoted(text)


def to_toml(contract: Contract) -> str:
    """Return a contract as it is written in palan.toml."""
    said: dict[str, Any] = {name: value for name, value in (("source", contract.source), ("transform", contract.transform)) if value}
    said |= {"key": list(contract.key)} if contract.key else {}
    said |= {"time": contract.time} if contract.time else {}
    said |= {"rows": band_text(contract.rows)} if contract.rows != OPEN else {}
    if contract.fresh:
        seconds = int(contract.fresh.total_seconds())
        unit = next(unit for unit in ("d", "h", "m") if seconds % _AGES[unit] == 0)
        said["fresh"] = f"{seconds // _AGES[unit]}{unit}"
    said |= {name: value for name, value in (("encoding", contract.encoding), ("decimal", contract.decimal), ("dates", contract.dates)) if value}
    said |= {"nulls": list(contract.nulls)} if contract.nulls else {}
    own = {name: how for name, how in contract.severity.items() if name not in contract.checks}
    said |= {"severity": own} if own else {}
    plain = [check for check in contract.checks if check not in contract.severity]
    said |= {"checks": plain} if plain else {}
    rules = [{"check": check, "severity": contract.severity[check]} for check in contract.checks if check in contract.severity]
    said |= {"rules": rules} if rules else {}
    lines = [f"[data.{_name(contract.name)}]", *(f"{name} = {_value(value)}" for name, value in said.items())]
    lines += [f"[data.{_name(contract.name)}.columns]", *(f"{_name(field.name)} = {column_toml(field, contract.told(field.name))}" for field in contract.columns)]
    return "\n".join(lines) + "\n"


def _value(said: object) -> str:
    if isinstance(said, list):
        return "[" + ", ".join(_value(each) for each in said) + "]"
    if isinstance(said, Mapping):
        return "{ " + ", ".join(f"{_name(key)} = {_value(each)}" for key, each in said.items()) + " }"
    return _quoted(str(said))


def _name(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _quoted(key)


def band_text(band: Band) -> str:
    """Return a band as it is written: `20..90`."""
    return f"{_plain(band[0])}..{_plain(band[1])}"


def share_text(band: Band) -> str:
    """Return a band of shares as it is written: `..5%`."""
    low, high = ("" if end is None else f"{_plain(end * 100)}%" for end in band)
    return f"{low}..{high}"


def to_schema(contract: Contract, names: Sequence[str]) -> Schema:
    """Return the schema of a model that takes these columns of the table.

    Raises:
        NotFound: a name that is no column; the nearest one is named.
    """
    return Schema("rows", tuple(contract.field(name) for name in names))


def _range(where: str, text: str, word: str) -> tuple[float | None, float | None]:
    match = _RANGE.fullmatch(word)
    if not match or word == "..":
        raise PalanError(f'{where}: "{word}" in {text} is not a range', "write 0..100, 0.. or ..100")
    low, high = (float(end) if end is not None else None for end in match.groups())
    if low is not None and high is not None and low > high:
        raise PalanError(f'{where}: the range "{word}" in {text} is upside down', f"write {match.group(2)}..{match.group(1)}")
    return low, high


def _band(where: str, text: object) -> tuple[int | None, int | None]:
    return _counts(f"{where} rows", text, "500..4000")


def _counts(where: str, text: object, such: str) -> tuple[int | None, int | None]:
    """Read a band of counts."""
    if text == "":
        return None, None
    match = re.fullmatch(r"(\d+)?\.\.(\d+)?", text) if isinstance(text, str) else None
    if not match or text == "..":
        low, high = such.split("..")
        raise PalanError(f"{where} = {text!r} is not a band of counts", f'"{such}", "{low}.." or "..{high}"')
    least, most = (int(end) if end is not None else None for end in match.groups())
    if least is not None and most is not None and least > most:
        raise PalanError(f'{where} = "{text}" is upside down', f'"{most}..{least}"')
    return least, most


def _text(where: str, table: Mapping[str, Any], key: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise PalanError(f"{where} {key} must be a text, found {value!r}", f'{key} = "..."')
    return value


def _texts(where: str, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise PalanError(f"{where} {key} must be a list of texts, found {value!r}", f'{key} = ["..."]')
    return tuple(value)


def _choice(where: str, table: Mapping[str, Any], key: str, known: Sequence[str]) -> str:
    word = _text(where, table, key)
    if word and word not in known:
        raise PalanError(f'{where} {key} = "{word}" is neither "{known[0]}" nor "{known[1]}"', f'{key} = "{known[1]}"')
    return word


def _encoding(where: str, word: str) -> str:
    """Return the name of an encoding of text as Python knows it."""
    try:
        "".encode(word or "utf-8")
        return codecs.lookup(word).name if word else ""
    except LookupError as problem:
        raise PalanError(f'{where} encoding = "{word}" is no encoding of text', 'encoding = "cp1252", "utf-8", "utf-16"') from problem


def _one_of(name: str, known: Sequence[str]) -> str:
    """Say the nearest valid word, and all of them while they fit on a line."""
    listed = f"one of {', '.join(known)}" if known and len(known) <= 20 else ""
    return "; ".join(part for part in (nearest(name, known), listed) if part)


def _plain(number: float | None) -> str:
    return "" if number is None else f"{number:.10g}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
