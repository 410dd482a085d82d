"""A contract as a document of the Open Data Contract Standard v3, and back.

What the standard has a word for is said in it; what only palan knows is a quality rule of engine `palan` or a custom
property, so that nothing is lost on the way back. What a document says besides is named, never silently dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from palan.core import Field, FieldType
from palan.data.contract import OPEN, Band, Column, Contract, band_text, share_text
from palan.errors import PalanError, nearest

API = "v3.1.0"
_TYPES: dict[str, str] = {"int": "integer", "float": "number", "bool": "boolean", "str": "string", "time": "timestamp", "date": "date"}
_KINDS: dict[str, FieldType] = {"integer": "int", "number": "float", "boolean": "bool", "string": "str", "timestamp": "time", "date": "date", "time": "str"}
_UNITS = {"d": 86_400, "h": 3600, "m": 60}


def to_odcs(contract: Contract, *, version: str, id: str) -> dict[str, Any]:
    """Return the document of a contract."""
    table: dict[str, Any] = {"name": contract.name, "logicalType": "object", "physicalType": "table", "properties": [_property(contract, field) for field in contract.columns]}
    quality = [{"type": "library", "metric": "rowCount", **_must(contract.rows)}] if contract.rows != OPEN else []
    for check in contract.checks:
        how = contract.severity.get(check)
        quality.append({"type": "custom", "engine": "palan", "implementation": {"check": check}, **({"severity": how} if how else {})})
    own = {name: how for name, how in contract.severity.items() if name not in contract.checks}
    custom = _custom(source=contract.source, transform=contract.transform, time=contract.time, severity=own)
    table |= {name: said for name, said in (("quality", quality), ("customProperties", custom)) if said}
    document: dict[str, Any] = {"apiVersion": API, "kind": "DataContract", "id": id, "name": contract.name, "version": version, "status": "active", "schema": [table]}
    if contract.fresh:
        seconds = int(contract.fresh.total_seconds())
        unit = next(unit for unit, size in _UNITS.items() if seconds % size == 0)
        document["slaProperties"] = [{"property": "latency", "value": seconds // _UNITS[unit], "unit": unit, "element": f"{contract.name}.{contract.time}"}]
    return document


def _property(contract: Contract, field: Field) -> dict[str, Any]:
    more = contract.told(field.name)
    found: dict[str, Any] = {"name": field.name, "logicalType": _TYPES[field.type], "physicalType": field.type, "required": not field.nullable}
    if field.name in contract.key:
        found |= {"primaryKey": True, "primaryKeyPosition": contract.key.index(field.name) + 1}
    if more.unique:
        found["unique"] = True
    if more.meaning:
        found["description"] = more.meaning
    least, most = field.length
    options = {"minimum": field.minimum, "maximum": field.maximum, "minLength": least, "maxLength": most, "pattern": field.pattern or None}
    if any(each is not None for each in options.values()):
        found["logicalTypeOptions"] = {name: int(each) if isinstance(each, float) and each.is_integer() else each for name, each in options.items() if each is not None}
    if more.of:
        found["relationships"] = [{"type": "foreignKey", "to": more.of}]
    quality = list(_quality(field, more))
    custom = _custom(unit=field.unit, severity=dict(more.severity))
    return found | {name: said for name, said in (("quality", quality), ("customProperties", custom)) if said}


def _quality(field: Field, more: Column) -> Iterator[dict[str, Any]]:
    if field.values:
        yield {"type": "library", "metric": "invalidValues", "arguments": {"validValues": list(field.values)}, "mustBe": 0}
    if more.nulls != OPEN:
        yield {"type": "library", "metric": "nullValues", "unit": "percent", **_must((None if more.nulls[0] is None else round(more.nulls[0] * 100, 10), None if more.nulls[1] is None else round(more.nulls[1] * 100, 10)))}
    ours: dict[str, Any] = {"rising": True} if more.rising else {}
    ours |= {"mean": band_text(more.mean)} if more.mean != OPEN else {}
    ours |= {"quantiles": {each: band_text(band) for each, band in more.quantiles.items()}} if more.quantiles else {}
    ours |= {"shares": {each: share_text(band) for each, band in more.shares.items()}} if more.shares else {}
    for name, said in ours.items():
        yield {"type": "custom", "engine": "palan", "implementation": {name: said}}


def _must(band: Band) -> dict[str, Any]:
    low, high = (int(end) if isinstance(end, float) and end.is_integer() else end for end in band)
    if low is None:
        return {"mustBeLessOrEqualTo": high}
    if high is None:
        return {"mustBeGreaterOrEqualTo": low}
    return {"mustBe": low} if low == high else {"mustBeBetween": [low, high]}


def _custom(**said: Any) -> list[dict[str, Any]]:
    return [{"property": name, "value": value} for name, value in said.items() if value]


class _Reader:
    """Takes what is known out of a document, and remembers what nobody asked for."""

    def __init__(self) -> None:
        self.left: list[str] = []

    def rest(self, where: str, said: Mapping[str, Any], known: Sequence[str]) -> None:
        self.left += [f"{where}{name}" for name, value in said.items() if name not in known and value not in (None, "", [], {}, False)]


def from_odcs(document: Mapping[str, Any], *, table: str = "") -> tuple[str, dict[str, Any], list[str]]:
    """Read a table of a document: its name, what `[data.NAME]` says of it, and the places in the document that palan has no word for.

    Raises:
        PalanError: there is no such table, or several and none is named.
    """
    reader, tables = _Reader(), list(document.get("schema") or ())
    names = [each["name"] for each in tables]
    if not tables or (table and table not in names) or (not table and len(tables) > 1):
        what = f'the document has no table "{table}"' if table else f"the document has {len(tables) or 'no'} tables"
        raise PalanError(what, f"{nearest(table, names) or f'--table {names[0]}'}; it has {', '.join(names[:12])}" if names else "a document with a schema")
    found = next(each for each in tables if not table or each["name"] == table)
    where = f"schema {found['name']}: "
    reader.rest("", document, ("apiVersion", "kind", "id", "name", "version", "status", "schema", "slaProperties"))
    reader.rest(where, found, ("id", "name", "logicalType", "physicalType", "properties", "quality", "customProperties"))
    said: dict[str, Any] = {}
    custom = _read_custom(reader, where, found, ("source", "transform", "time", "severity"))
    said |= {name: value for name, value in custom.items() if name != "severity"}
    severity = dict(custom.get("severity", {}))
    rules = []
    for rule in found.get("quality", ()):
        how, own = rule.get("severity"), rule.get("implementation")
        if rule.get("metric") == "rowCount" and (band := _band(rule)) and rule.get("unit") != "percent":
            said["rows"] = band
        elif rule.get("engine") == "palan" and isinstance(own, Mapping) and "check" in own:
            rules.append({"check": own["check"], **({"severity": how} if how else {})})
        else:
            reader.left.append(f"{where}quality {rule.get('name') or rule.get('metric') or rule.get('rule') or rule.get('type', 'rule')}")
    said |= {"rules": rules} if rules else {}
    columns = [(each["name"], _column(reader, f"{where}{each['name']}: ", each)) for each in found.get("properties", ())]
    said["columns"] = {name: column for name, column in columns if column}
    keys = sorted((each.get("primaryKeyPosition", 0), number, each["name"]) for number, each in enumerate(found.get("properties", ())) if each.get("primaryKey") and each["name"] in said["columns"])
    said |= {"key": [name for _, _, name in keys]} if keys else {}
    for each in document.get("slaProperties") or ():
        unit = {"d": "d", "day": "d", "days": "d", "h": "h", "m": "m"}.get(str(each.get("unit")))
        if each.get("property") == "latency" and unit and said.get("time") and each.get("element") == f"{found['name']}.{said['time']}" and float(each["value"]).is_integer():
            said["fresh"] = f"{int(each['value'])}{unit}"
        else:
            reader.left.append(f"slaProperties {each.get('property')}")
    said |= {"severity": severity} if severity else {}
    return found["name"], said, reader.left


_KNOWN = ("id", "name", "logicalType", "physicalType", "required", "primaryKey", "primaryKeyPosition", "unique", "description", "logicalTypeOptions", "relationships", "quality", "customProperties")


def _column(reader: _Reader, where: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return a column as a table of palan.toml, nothing of one that is nested."""
    kind = _KINDS.get(said.get("logicalType", "string"))
    if kind is None:
        reader.left.append(f"{where}a column of type {said['logicalType']}")
        return {}
    reader.rest(where, said, [each for each in _KNOWN if each != "primaryKeyPosition" or said.get("primaryKey")] + (["primaryKeyPosition", "partitionKeyPosition"] if said.get("primaryKeyPosition", -1) == -1 else []))
    found: dict[str, Any] = {"type": kind + ("" if said.get("required") or said.get("primaryKey") else "?")}
    found |= {"meaning": said["description"]} if said.get("description") else {}
    found |= {"unique": True} if said.get("unique") and kind in ("int", "str", "time", "date") else {}
    options = said.get("logicalTypeOptions", {})
    if kind in ("int", "float") and (band := (options.get("minimum"), options.get("maximum"))) != OPEN:
        found["range"] = band_text(band)
    if kind == "str" and (sizes := (options.get("minLength"), options.get("maxLength"))) != OPEN:
        found["length"] = band_text(sizes)
    found |= {"matches": options["pattern"]} if kind == "str" and options.get("pattern") else {}
    reader.rest(f"{where}logicalTypeOptions ", options, ("minimum", "maximum") if kind in ("int", "float") else ("minLength", "maxLength", "pattern") if kind == "str" else ())
    for relation in said.get("relationships", ()):
        if "of" not in found and isinstance(relation.get("to"), str) and "." in relation["to"] and "/" not in relation["to"]:
            found["of"] = relation["to"]
            reader.rest(f"{where}relationships ", relation, ("type", "to"))
        else:
            reader.left.append(f"{where}relationships {relation.get('to')}")
    for rule in said.get("quality", ()):
        known = _rule(rule, kind, nullable=found["type"].endswith("?"))
        found |= known
        if not known:
            reader.left.append(f"{where}quality {rule.get('name') or rule.get('metric') or rule.get('rule') or rule.get('type', 'rule')}")
    if "in" in found:  # which says more than a shape
        reader.left += [f"{where}logicalTypeOptions {name}" for name, key in (("pattern", "matches"), ("length", "length")) if found.pop(key, None)]
    return found | _read_custom(reader, where, said, ("unit", "severity"))


def _rule(rule: Mapping[str, Any], kind: str, *, nullable: bool) -> dict[str, Any]:
    """Return what a quality rule of a column says, nothing of one that palan has no word for."""
    own, values = rule.get("implementation"), (rule.get("arguments") or {}).get("validValues")
    if rule.get("engine") == "palan" and isinstance(own, Mapping):
        return dict(own)
    if rule.get("metric") == "invalidValues" and rule.get("mustBe") == 0 and isinstance(values, list) and kind in ("str", "int"):
        return {"in": [str(each) for each in values]}
    if rule.get("metric") == "nullValues" and nullable and (rule.get("unit") == "percent" or rule.get("mustBe") == 0):
        band = _band(rule)
        return {"nulls": "..".join(f"{end}%" if end else "" for end in band.split(".."))} if band else {}
    return {}


def _band(rule: Mapping[str, Any]) -> str:
    if "mustBeBetween" in rule:
        return band_text(tuple(rule["mustBeBetween"]))
    low, high = rule.get("mustBeGreaterOrEqualTo", rule.get("mustBe")), rule.get("mustBeLessOrEqualTo", rule.get("mustBe"))
    return band_text((low, high)) if (low, high) != (None, None) else ""


def _read_custom(reader: _Reader, where: str, said: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    custom = {each["property"]: each["value"] for each in said.get("customProperties") or ()}
    reader.left += [f"{where}customProperties {name}" for name in custom if name not in known]
    return {name: value for name, value in custom.items() if name in known}
