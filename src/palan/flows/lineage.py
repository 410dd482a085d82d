"""Where each column comes from: of a table down to what was delivered, of a model down to the tables that it learnt from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from palan.core import Version
from palan.data.nouns import DataVersion
from palan.flows import tables
from palan.flows.packages import find_version
from palan.flows.project import Project

Kind = Literal["column", "feature", "model"]


class Node(msgspec.Struct, frozen=True):
    """A column of a table ("legs.height"), a feature of a model ("delay: far"), or the model itself ("delay@3")."""

    id: str
    kind: Kind
    of: str  # the table or the model
    name: str
    about: str = ""


class Lineage(msgspec.Struct, frozen=True):
    """What comes from what: each edge leads from a node to one that is made of it. `rows` has, of each table that is made
    of others, the columns that decide which rows it has."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]
    rows: Mapping[str, tuple[str, ...]]


def lineage(project: Project, subject: str) -> Lineage:
    """Return where the columns of a table ("legs", "legs@4") or the inputs of a model ("delay", "delay@3") come from.

    Of a table that is made by a function that is given its rows, and not tables yet to be read, only the table is known.

    Raises:
        NotFound: nothing is called so, or no version of it was made yet.
    """
    nodes: dict[str, Node] = {}
    edges: dict[tuple[str, str], None] = {}
    rows: dict[str, tuple[str, ...]] = {}
    if subject.partition("@")[0] in project.config.models:
        version = find_version(project, subject)
        for node, behind in _of_model(version):
            nodes[node.id] = node
            edges |= dict.fromkeys((each, node.id) for each in behind)
        wanted = [each for pair in edges for each in pair if each not in nodes]
        learnt: str = version.manifest["data"].get("ref", "")
    else:
        found = tables.find_data_version(project, subject)
        learnt = found.ref
        wanted = [f"{found.data}.{column}" for column in tables.scan(project, found).collect_schema()]
    asked = set[str]()
    while wanted:
        id = wanted.pop(0)
        if id in asked:
            continue
        asked.add(id)
        table, _, column = id.partition(".")
        made = _table(project, learnt if learnt.partition("@")[0] == table else table)
        nodes[id] = Node(id, "column", table, column)
        traced: Mapping[str, Any] = made.verdict.get(tables.LINEAGE) or {} if made else {}
        if traced:
            rows[table] = tuple(traced["rows"])
        behind = traced.get("columns", {}).get(column, ())
        edges |= dict.fromkeys((each, id) for each in behind)
        wanted += behind
    return Lineage(tuple(nodes.values()), tuple(edges), rows)


def _table(project: Project, ref: str) -> DataVersion | None:
    return tables.find_data_version(project, ref) if ref.partition("@")[0] in project.config.data else None


def _of_model(version: Version) -> Iterator[tuple[Node, list[str]]]:
    """Yield a model's features and the model, each with the nodes that it is made of."""
    manifest = version.manifest
    table = manifest["data"].get("ref", "").partition("@")[0]
    made: Mapping[str, Any] = manifest.get("features", {}).get("made", {})
    pasts = {each["name"]: each["past"] for each in manifest.get("features", {}).get("pasts", ())}

    def called(name: str) -> str:
        return f"{version.model}: {name}" if name in made or name in pasts else f"{table}.{name}"

    constants = set(manifest.get("features", {}).get("constants", ()))
    for name, past in pasts.items():
        looked = [past["column"], *past["by"], past["time"]]
        yield Node(called(name), "feature", version.model, name, f"{past['how']} of {past['table']}.{past['column']} before"), [f"{past['table']}.{each}" for each in looked]
    for name, each in made.items():
        yield Node(called(name), "feature", version.model, name, each["about"]), [called(one) for one in each["inputs"] if one not in constants]
    inputs = [field["name"] for field in manifest["signature"]["fields"]]
    yield Node(version.ref, "model", version.model, version.ref), [called(each) for each in [*made, *pasts, *inputs]]
