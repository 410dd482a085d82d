"""What a caller sends, held against the schema of the version that will answer: typed values in, or `Invalid` with the place.

Good input takes one pass of compiled msgspec decoders. Only when that pass refuses is the input walked again in
Python, because the second walk can say what the first cannot: the value, the nearest valid name, the allowed range.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from itertools import chain
from types import GenericAlias, NoneType
from typing import Annotated, Any, Literal

import msgspec
import polars as pl
from msgspec.structs import replace

from palan.core import Field, Schema, utc
from palan.errors import Invalid, nearest

_INT64 = (-(2**63), 2**63 - 1)
DEPTH = 64
"""How deep lists and objects may lie in one another: what lies deeper could not be logged, sent to a worker or shown."""
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "time": 'a time such as "2013-05-01T14:00:00Z"',
    "date": 'a date such as "2013-05-01"',
    "list": "a list",
    "map": "an object",
    "any": "a value",
}
DTYPES: Mapping[str, pl.DataType] = {
    "int": pl.Int64(),
    "float": pl.Float64(),
    "bool": pl.Boolean(),
    "str": pl.String(),
    "time": pl.Datetime("us", "UTC"),
    "date": pl.Date(),
}


class Request(msgspec.Struct, frozen=True):
    """One validated request: `columns` of equal length, or one `instance`. `columnar` tells how the caller wrote rows."""

    rows: int
    columns: Mapping[str, list[Any]] = {}
    instance: Any = None
    keys: tuple[str, ...] | None = None
    columnar: bool = False


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    rows: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    instance: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    keys: list[str | int] | None = None
    key: str | int | None = None


_envelope = msgspec.json.Decoder(_Envelope)


class Inputs:
    """The compiled form of one schema. `key` names the caller's own identifier of a row, which may come with the inputs."""

    def __init__(self, schema: Schema, *, key: str = "") -> None:
        self.schema = schema
        self.key = key
        self._key_field = key if key and key not in schema.names else ""
        # Only what these hold is looked at a second time: the decoders know the exact types of all the rest.
        self._open = tuple(each for each in schema.fields if _holds_open(each))
        members = [_member(each, kept=schema.shape == "instance") for each in schema.fields]
        if schema.shape == "instance":
            self._instance = _struct("Instance", members)
            self._decode_instance = msgspec.json.Decoder(self._instance)
            return
        extra: list[tuple[str, Any, Any]] = [(self._key_field, str | int | None, None)] if self._key_field else []
        self._row = _struct("Row", [*members, *extra])
        # A column that may be null may also be left out; it is then null in every row.
        columns = [(name, _list_of(kind), msgspec.NODEFAULT if default is msgspec.NODEFAULT else None) for name, kind, default in [*members, *extra]]
        self._columns = _struct("Columns", [(name, kind if default is msgspec.NODEFAULT else kind | None, default) for name, kind, default in columns])
        self._decode_rows = msgspec.json.Decoder(_list_of(self._row))
        self._decode_columns = msgspec.json.Decoder(self._columns)

    def read(self, body: bytes) -> Request:
        """Decode and validate a JSON body: `{"rows": [{...}]}`, `{"rows": {"column": [...]}}` or `{"instance": {...}}`.

        Raises:
            Invalid: the body is no JSON, or a value does not fit; `field` is its path, such as "rows[0].temp".
        """
        envelope = _opened(body)
        raw = self._payload(envelope)
        name = "rows" if self.schema.shape == "rows" else "instance"
        columnar = raw[:1] == b"{"
        try:
            if name == "instance":
                self._decode_instance.decode(raw)
                keys = None if envelope.key is None else (str(envelope.key),)
                # The plain decoding keeps the caller's own types and order: it is what the model is given.
                instance = msgspec.json.decode(raw)
                for each in self._open:
                    check_plain(instance.get(each.name), f"{name}.{each.name}")
                return Request(rows=1, instance=instance, keys=keys)
            return self._request(self._decode_columns.decode(raw) if columnar else self._decode_rows.decode(raw), envelope.keys)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise self._explained(parsed(raw, name), name, error) from None

    def take(self, value: Any, keys: Sequence[str] | None = None) -> Request:
        """Validate Python values: rows as a DataFrame, a list of dicts or a dict of lists; or one instance.

        Raises:
            Invalid: as `read`; non-finite numbers are refused too.
        """
        if isinstance(value, pl.DataFrame):
            value = value.to_dict(as_series=False)
        name = "rows" if self.schema.shape == "rows" else "instance"
        value = _plain(value)
        try:
            if name == "instance":
                check_plain(value, name)
                msgspec.convert(value, self._instance)
                return Request(rows=1, instance=value, keys=tuple(keys) if keys else None)
            kind = self._columns if isinstance(value, dict) else _list_of(self._row)
            request = self._request(msgspec.convert(value, kind), keys)
        except (msgspec.ValidationError, RecursionError) as error:
            raise self._explained(value, name, error) from None
        for each in self.schema.fields:
            if each.type == "float":
                for index, number in enumerate(request.columns[each.name]):
                    if number is not None and not math.isfinite(number):
                        raise _unfit(f"rows[{index}].{each.name}", number, "a finite number", "send null where the value is not known")
        return request

    def _payload(self, envelope: _Envelope) -> bytes:
        given, other = (envelope.rows, envelope.instance) if self.schema.shape == "rows" else (envelope.instance, envelope.rows)
        shape, wrong = ("rows", "instance") if self.schema.shape == "rows" else ("instance", "rows")
        if isinstance(given, msgspec.UnsetType):
            sent = f'this model takes "{shape}", not "{wrong}"' if not isinstance(other, msgspec.UnsetType) else f'the request has no "{shape}"'
            raise Invalid(sent, _form(self.schema), field=shape)
        if not isinstance(other, msgspec.UnsetType):
            raise Invalid(f'this model takes "{shape}", not "{wrong}"', _form(self.schema), field=wrong)
        return bytes(given)

    def _request(self, decoded: Any, keys: Sequence[str | int] | None) -> Request:
        columnar = not isinstance(decoded, list)
        attributes = {name: f"f{index}" for index, name in enumerate([*self.schema.names, *([self._key_field] if self._key_field else [])])}
        if columnar:
            columns = {name: getattr(decoded, attribute) for name, attribute in attributes.items()}
            lengths = {name: len(values) for name, values in columns.items() if values is not None}
            rows = max(lengths.values(), default=0)
            for name, length in lengths.items():
                if length != rows:
                    raise Invalid(f"rows.{name} has {length} values, another column has {rows}", "every column needs one value a row", field=f"rows.{name}", value=length)
            columns = {name: [None] * rows if values is None else values for name, values in columns.items()}
        else:
            rows = len(decoded)
            columns = {name: [getattr(row, attribute) for row in decoded] for name, attribute in attributes.items()}
        if rows == 0:
            raise Invalid("rows is empty", "send at least one row", field="rows", value=[])
        for each in self._open:
            if not _is_plain(columns[each.name]):
                for index, value in enumerate(columns[each.name]):
                    check_plain(value, f"rows[{index}].{each.name}")
        for each in self.schema.fields:
            if each.type == "time":
                columns[each.name] = _utc_times(columns[each.name], each)
            if each.type in ("float", "time", "date") and (each.values or (each.type != "float" and (each.minimum is not None or each.maximum is not None))):
                for index, value in enumerate(columns[each.name]):
                    for problem in _problems(value, each, f"rows[{index}].{each.name}"):
                        raise problem
        own = columns.pop(self._key_field) if self._key_field else columns.get(self.key) if self.key else None
        if keys is not None and len(keys) != rows:
            raise Invalid(f"there are {len(keys)} keys for {rows} rows", "send one key a row, or none", field="keys", value=len(keys))
        given = keys if keys is not None else own
        known = given is not None and any(key is not None for key in given)
        return Request(rows=rows, columns=columns, keys=tuple("" if key is None else str(key) for key in given) if known and given is not None else None, columnar=columnar)

    def _explained(self, value: Any, name: str, error: Exception) -> Invalid:
        for problem in problems(value, self.schema, key=self._key_field):
            return problem
        for problem in _unplain(value, name):  # a float that was sent as a whole number beyond all bounds
            return problem
        return Invalid(f"{name} cannot be read: {error}", _form(self.schema), field=name)


def problems(value: Any, schema: Schema, *, key: str = "") -> Iterator[Invalid]:
    """Walk decoded JSON against the schema and yield every misfit in the order of the document."""
    top = Field("", "map", fields=schema.fields)
    if schema.shape == "instance":
        yield from _problems(value, top, "instance")
        return
    if isinstance(value, list):
        row = replace(top, fields=(*schema.fields, *_key_fields(key)))
        for index, each in enumerate(value):
            yield from _problems(each, row, f"rows[{index}]")
        return
    if not isinstance(value, dict):
        yield _unfit("rows", value, "a list of objects, or an object of columns", _form(schema))
        return
    fields = {each.name: each for each in (*schema.fields, *_key_fields(key))}
    yield from _names(value, fields, "rows")
    for name, each in fields.items():
        column = value.get(name)
        if name in value and isinstance(column, list):
            for index, item in enumerate(column):
                yield from _problems(item, each, f"rows.{name}[{index}]")
        elif name in value and not (column is None and each.nullable):
            yield _unfit(f"rows.{name}", column, "a list with one value a row", "")


def check_values(values: Sequence[Any], field: Field, path: str) -> None:
    """Hold decoded JSON values against a field.

    Raises:
        Invalid: one does not fit; `path` is its place, with {} where its number belongs.
    """
    if field.type == "any" and _is_plain(list(values)):
        return
    for index, value in enumerate(values):
        for problem in _problems(value, field, path.format(index)):
            raise problem


def check_plain(value: Any, path: str) -> None:
    """Refuse what JSON and Python can say, and a log, a worker or an answer cannot carry.

    Raises:
        Invalid: a whole number beyond 64 bits, a number that is not finite, or what is nested too deep; with its place.
    """
    if not _is_plain(value):
        for problem in _unplain(value, path):
            raise problem


def parsed(raw: bytes, name: str) -> Any:
    """Return the value of a JSON document; `name` is what the message calls it.

    Raises:
        Invalid: it is no JSON, or no JSON of UTF-8 text and finite numbers.
    """
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        hint = "the nesting is too deep" if isinstance(error, RecursionError) else "check the JSON: numbers must be finite and text must be UTF-8"
        raise Invalid(f"{name} is not JSON: {error}", hint, field=name) from None


def to_frame(columns: Mapping[str, Sequence[Any]], schema: Schema) -> pl.DataFrame:
    """Return the columns as a DataFrame with the exact dtype of each field (Int64, Float64, Datetime in UTC, ...)."""
    return pl.DataFrame([_series(each, columns[each.name]) for each in schema.fields])


def infer_schema(examples: Sequence[Mapping[str, Any]]) -> Schema:
    """Return the instance schema that all examples fit.

    Types are unified over everything seen (int with float is float, anything else mixed is any); a field is nullable
    where it was null or absent. An object used as a dictionary, whose keys are data rather than names, becomes a map
    with an `item`: its keys differ between the objects seen, or there are more than twelve, and all values share a type.
    No range or set is inferred: a handful of instances says little about what else may come.

    Raises:
        Invalid: there is no example, or one is no object.
    """
    if not examples:
        raise Invalid("a schema needs at least one example instance", "put one in the folder that `instances` names", field="instances")
    for index, each in enumerate(examples):
        if not isinstance(each, Mapping):
            raise _unfit(f"instances[{index}]", each, "an object", "an instance is a JSON object")
    return Schema("instance", _member_fields([dict(each) for each in examples]))


# --- compiled decoders ---------------------------------------------------------------------------------------------


def _struct(title: str, members: Sequence[tuple[str, Any, Any]]) -> type[msgspec.Struct]:
    # Attributes are numbered because a column may be called "class" or "dep delay"; `rename` keeps the caller's names.
    fields = [(f"f{index}", kind) if default is msgspec.NODEFAULT else (f"f{index}", kind, default) for index, (_, kind, default) in enumerate(members)]
    names = {f"f{index}": name for index, (name, _, _) in enumerate(members)}
    return msgspec.defstruct(title, fields, rename=names, forbid_unknown_fields=True, kw_only=True, gc=False)


def _member(each: Field, *, kept: bool) -> tuple[str, Any, Any]:
    return each.name, _type(each, kept=kept), None if each.nullable else msgspec.NODEFAULT


def _list_of(kind: Any) -> Any:
    return GenericAlias(list, (kind,))


def _type(each: Field, *, kept: bool) -> Any:
    """Return what a decoder holds values against. `kept` says that they go on as they were sent, not as they were decoded."""
    kind: Any
    if each.type == "int":
        if each.values:
            kind = Literal[tuple(int(value) for value in each.values)]
        else:
            low = _INT64[0] if each.minimum is None else max(_INT64[0], math.ceil(each.minimum))
            high = _INT64[1] if each.maximum is None else min(_INT64[1], math.floor(each.maximum))
            kind = Annotated[int, msgspec.Meta(ge=low, le=high)]
    elif each.type == "float":
        kind = Annotated[float, msgspec.Meta(ge=each.minimum, le=each.maximum)]
        if kept:  # then a whole number stays one, and has to fit 64 bits
            kind = _type(replace(each, type="int", nullable=False, values=()), kept=kept) | kind
    elif each.type == "str":
        kind = Literal[each.values] if each.values else Annotated[str, _meta(each)] if _bounded(each) else str
    elif each.type == "list":
        kind = _list_of(_type(each.item, kept=kept)) if each.item else list[Any]
    elif each.type == "map" and (each.fields or not each.item):
        kind = _struct("Map", [_member(member, kept=kept) for member in each.fields]) if each.fields else dict[str, Any]
    elif each.type == "map" and each.item:
        kind = GenericAlias(dict, (str, _type(each.item, kept=kept)))
    else:
        kind = {"bool": bool, "time": datetime, "date": date, "any": Any}[each.type]
    return kind | None if each.nullable and kind is not Any else kind


def _bounded(each: Field) -> bool:
    return bool(each.pattern) or each.length != (None, None)


def _meta(each: Field) -> msgspec.Meta:
    """Return what a decoder asks of a text; of one with a set of values as well, the second walk asks it."""
    return msgspec.Meta(pattern=in_python(each.pattern) or None, min_length=each.length[0], max_length=each.length[1])


def in_python(pattern: str) -> str:
    """Return a contract's regular expression as Python reads it: there `$` would also stand before a last line break."""
    return re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]])*\]|\$", lambda found: r"\Z" if found[0] == "$" else found[0], pattern, flags=re.DOTALL)


def _opened(body: bytes) -> _Envelope:
    try:
        return _envelope.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if not body.strip():
            raise Invalid("the request has no body", 'send JSON such as {"rows": [{...}]}', field="body") from None
        if not isinstance(error, msgspec.ValidationError):
            raise Invalid(f"the body is not JSON: {error}", 'send JSON such as {"rows": [{...}]}', field="body") from None
        value = parsed(body, "body")
        if not isinstance(value, dict):
            raise _unfit("body", value, "an object", 'send {"rows": [...]} or {"instance": {...}}') from None
        for unknown in _names(value, {name: Field(name, "any", nullable=True) for name in _Envelope.__struct_fields__}, ""):
            raise unknown from None
        wrong = "keys" if "keys" in value and _envelope_misfit({"keys": value["keys"]}) else "key"
        raise _unfit(wrong, value.get(wrong), "text or a whole number" if wrong == "key" else "a list of text or whole numbers", "") from None


def _envelope_misfit(part: dict[str, Any]) -> bool:
    try:
        msgspec.convert(part, _Envelope)
    except msgspec.ValidationError:
        return True
    return False


# --- the second walk, for words ------------------------------------------------------------------------------------


def _problems(value: Any, each: Field, path: str) -> Iterator[Invalid]:
    if value is None:
        if not each.nullable and each.type != "any":
            yield Invalid(f"{path} is null", f"send {_expected(each)}", field=path, value=None)
        return
    if not _fits(value, each):
        yield _unfit(path, value, _expected(each), "")
        return
    if _is_open(each):
        yield from _unplain(value, path)
    elif each.type == "list" and each.item:
        for index, item in enumerate(value):
            yield from _problems(item, each.item, f"{path}[{index}]")
    elif each.type == "map" and each.fields:
        yield from _names(value, {member.name: member for member in each.fields}, path)
        for member in each.fields:
            if member.name in value:
                yield from _problems(value[member.name], member, f"{path}.{member.name}")
    elif each.type == "map" and each.item:
        for name, item in value.items():
            yield from _problems(item, each.item, f"{path}.{name}")
    elif each.values and str(value) not in each.values and not (each.type == "float" and value in [float(text) for text in each.values]):
        hint = nearest(str(value), each.values) or f"known values: {_listed(each.values)}"
        yield Invalid(f"{path} is {_shown(value)}, which is not in the set", hint, field=path, value=value)
    elif each.pattern and not re.search(in_python(each.pattern), value):
        yield Invalid(f"{path} is {_shown(value)}, which does not match {each.pattern}", f"send {_expected(each)}", field=path, value=value)
    elif each.length[0] is not None and len(value) < each.length[0]:
        yield Invalid(f"{path} has {len(value)} characters, and {each.length[0]} are the least", f"send {_expected(each)}", field=path, value=value)
    elif each.length[1] is not None and len(value) > each.length[1]:
        yield Invalid(f"{path} has {len(value)} characters, and {each.length[1]} are the most", f"send {_expected(each)}", field=path, value=value)
    elif each.minimum is not None and _number(value) < each.minimum:
        yield Invalid(f"{path} is {_shown(value)}, below {_bound(each.minimum, each)}", f"send {_expected(each)}", field=path, value=value)
    elif each.maximum is not None and _number(value) > each.maximum:
        yield Invalid(f"{path} is {_shown(value)}, above {_bound(each.maximum, each)}", f"send {_expected(each)}", field=path, value=value)


def _is_open(each: Field) -> bool:
    return each.type == "any" or (each.type in ("list", "map") and not each.item and not each.fields)


def _holds_open(each: Field) -> bool:
    return _is_open(each) or any(map(_holds_open, (*each.fields, *([each.item] if each.item else []))))


def _fits(value: Any, each: Field) -> bool:
    match each.type:
        case "int":
            return isinstance(value, int) and not isinstance(value, bool) and _INT64[0] <= value <= _INT64[1]
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1.7976931348623157e308 and math.isfinite(value)
        case "bool":
            return isinstance(value, bool)
        case "str":
            return isinstance(value, str)
        case "time":
            return _time_of(value) is not None
        case "date":
            return isinstance(value, date) or (isinstance(value, str) and _converts(value, date))
        case "list":
            return isinstance(value, list)
        case "map":
            return isinstance(value, dict)
        case _:
            return True


def _converts(text: str, kind: type) -> bool:
    try:
        msgspec.convert(text, kind)
    except msgspec.ValidationError:
        return False
    return True


def _time_of(value: Any) -> datetime | None:
    """Return the time in UTC that a value says, None where it says none."""
    try:
        return utc(msgspec.convert(value, datetime)) if isinstance(value, str | datetime) else None
    except ValueError:
        return None


def _names(value: Mapping[str, Any], fields: Mapping[str, Field], path: str) -> Iterator[Invalid]:
    prefix = f"{path}." if path else ""
    for name in value:
        if name not in fields:
            hint = nearest(str(name), fields) or f"known fields: {_listed(list(fields))}"
            yield Invalid(f"{prefix}{name} is not a field of this input", hint, field=f"{prefix}{name}", value=value[name])
    for name, each in fields.items():
        if name not in value and not each.nullable:
            yield Invalid(f"{prefix}{name} is missing", f"send {_expected(each)}", field=f"{prefix}{name}")


def _key_fields(key: str) -> tuple[Field, ...]:
    # A key may be text or a whole number; "any" lets both pass and the decoder has already refused the rest.
    return (Field(key, "any", nullable=True),) if key else ()


def _unfit(path: str, value: Any, expected: str, hint: str) -> Invalid:
    return Invalid(f"{path} is {_shown(value)}, not {expected}", hint or f"send {expected}", field=path, value=value)


def _expected(each: Field) -> str:
    words = _WORDS[each.type]
    unit = f" {each.unit}" if each.unit else ""
    if each.values:
        words = f"one of {_listed(each.values)}"
    elif each.minimum is not None and each.maximum is not None:
        words += f" from {each.minimum:g} to {each.maximum:g}{unit}"
    elif each.minimum is not None:
        words += f" of at least {each.minimum:g}{unit}"
    elif each.maximum is not None:
        words += f" of at most {each.maximum:g}{unit}"
    words += f" that matches {each.pattern}" if each.pattern else ""
    return f"{words}, or null" if each.nullable else words


def _bound(bound: float, each: Field) -> str:
    return f"{bound:g} {each.unit}" if each.unit else f"{bound:g}"


def _number(value: Any) -> float:
    time = _time_of(value)
    return time.timestamp() if time else float(value) if isinstance(value, int | float) else value.toordinal()


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int) and abs(value) >> 64:
        return f"a number of {value.bit_length()} bits"  # Python writes none of more than 4300 digits
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _form(schema: Schema) -> str:
    if schema.shape == "instance":
        return f'send {{"instance": {{...}}}} with {_listed(schema.names)}'
    return f'send {{"rows": [{{...}}]}} with {_listed(schema.names)}'


# --- values --------------------------------------------------------------------------------------------------------


def _series(each: Field, values: Sequence[Any]) -> pl.Series:
    dtype = DTYPES.get(each.type)
    return pl.Series(each.name, values, dtype=dtype) if dtype is not None else pl.Series(each.name, values, strict=False)


def _utc_times(times: Sequence[datetime | None], each: Field) -> list[datetime | None]:
    try:
        return [None if time is None else utc(time) for time in times]
    except ValueError:
        for index, time in enumerate(times):
            if time is not None and _time_of(time) is None:
                raise _unfit(f"rows[{index}].{each.name}", time, "a time of the years 1 to 9999 in UTC", "") from None
        raise


def _plain(value: Any, depth: int = 0) -> Any:
    """Return lists and dicts as deep as they may lie: arrays and numpy scalars offer `tolist`, tuples are lists in JSON."""
    if depth > DEPTH + 2:  # rows of columns lie two deep themselves
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    unpack: Callable[[], Any] | None = None if isinstance(value, str | int | float | NoneType | datetime | date) else getattr(value, "tolist", None)
    return unpack() if unpack else value


def _is_plain(value: Any) -> bool:
    """Tell whether `_unplain` would find nothing: level by level instead of place by place, which is much faster."""
    items = [value]
    for _ in range(DEPTH + 2):
        whole = [item for item in items if isinstance(item, int)]
        if whole and not (_INT64[0] <= min(whole) and max(whole) <= _INT64[1]):
            return False
        if not all(map(math.isfinite, [item for item in items if isinstance(item, float)])):
            return False
        inner = [item for item in items if isinstance(item, dict | list)]
        if not inner:
            return True
        items = list(chain.from_iterable(item.values() if isinstance(item, dict) else item for item in inner))
    return False


def _unplain(value: Any, path: str, depth: int = 0) -> Iterator[Invalid]:
    if isinstance(value, dict | list):
        if depth > DEPTH:
            yield Invalid(f"{path} is nested more than {DEPTH} deep", "lay it out flatter", field=path)
            return
        places = ((f".{name}", item) for name, item in value.items()) if isinstance(value, dict) else ((f"[{index}]", item) for index, item in enumerate(value))
        for place, item in places:
            yield from _unplain(item, path + place, depth + 1)
    elif isinstance(value, int) and not _INT64[0] <= value <= _INT64[1]:
        yield _unfit(path, value, "a whole number within 64 bits", "send it as text, or as a number with a point")
    elif isinstance(value, float) and not math.isfinite(value):
        yield _unfit(path, value, "a finite number", "send null where the value is not known")


# --- inference -----------------------------------------------------------------------------------------------------


def _member_fields(objects: Sequence[Mapping[str, Any]]) -> tuple[Field, ...]:
    names = list(dict.fromkeys(name for each in objects for name in each))
    return tuple(_unified(name, [each[name] for each in objects if name in each], absent=any(name not in each for each in objects)) for name in names)


def _unified(name: str, seen: Iterable[Any], *, absent: bool = False) -> Field:
    values = list(seen)
    present = [value for value in values if value is not None]
    nullable = absent or len(present) < len(values)
    types = {_type_name(value) for value in present}
    if types == {"int", "float"}:
        return Field(name, "float", nullable)
    if len(types) != 1:
        return Field(name, "any", nullable=True)
    kind = types.pop()
    if kind == "list":
        items = [item for value in present for item in value]
        return Field(name, "list", nullable, item=_unified("item", items) if items else None)
    if kind == "map":
        return _map(name, present, nullable)
    return Field(name, kind, nullable)  # type: ignore[arg-type]


def _map(name: str, objects: Sequence[Mapping[str, Any]], nullable: bool) -> Field:
    every = set().union(*objects)
    shared = set(objects[0]).intersection(*objects)
    item = _unified("item", [value for each in objects for value in each.values()])
    if every and item.type != "any" and (len(every) > 12 or len(shared) * 2 < len(every)):
        return Field(name, "map", nullable, item=item)
    return Field(name, "map", nullable, fields=_member_fields(objects))


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    for kind, name in ((int, "int"), (float, "float"), (str, "str"), (list, "list"), (dict, "map")):
        if isinstance(value, kind):
            return name
    raise Invalid(f"an instance holds a {type(value).__name__}, which JSON cannot carry", "use numbers, text, lists and objects", value=repr(value))
