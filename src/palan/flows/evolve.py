"""What a change of a contract breaks, told before it happens."""

from __future__ import annotations

import ast
from typing import Any

from palan.core import counted
from palan.data.contract import parse
from palan.data.evolution import MEANS, changes
from palan.flows import packages, tables
from palan.flows.project import Project


def contract_diff(project: Project, name: str) -> dict[str, Any]:
    """Return how the contract in palan.toml differs from the one that the newest version was judged by, of which kind each
    change is, and whom it breaks: models, their features, transformations and tables that refer to a column.

    Raises:
        NotFound: no such table.
    """
    contract, newest = tables.contract_of(project, name), tables.latest(project, name)
    judged = newest.verdict.get(tables.JUDGED) if newest else None
    if newest is None or judged is None:
        said = f"{newest.ref} was made before contracts were kept" if newest else f"{name} has no version"
        return {"data": name, "against": newest.ref if newest else None, "changes": [], "breaks": [], "text": f"{said}: there is nothing to compare with"}
    found = changes(parse(name, judged), contract)
    told = [
        {"column": each.column, "text": each.text, "kind": each.kind, "means": MEANS[each.kind], "breaks": _users(project, name, each.column) if each.unsafe else []} for each in found
    ]
    breaks = list(dict.fromkeys(user for each in told for user in each["breaks"]))
    text = f"{counted(len(told), 'change')} since {newest.ref}" + (f", which may break {', '.join(breaks)}" if breaks else "")
    return {"data": name, "against": newest.ref, "changes": told, "breaks": breaks, "text": text}


def _users(project: Project, data: str, column: str) -> list[str]:
    """Return who reads a column of a table; without a column, of the table at all."""
    found = []
    for name, model in project.config.models.items():
        named = {*model.inputs, *model.segments, model.outcome, model.key}
        made = _features(project, model.features, column) if model.features else []
        if model.data == data and (not column or column in named or made or not model.inputs):
            found.append(f"model {name}")
            found += [f"feature {each} of model {name}" for each in made]
    for name, config in project.config.data.items():
        if config.transform and _reads(project, config.transform, data, column):
            found.append(f"transformation {name}")
            found += [f"model {model.name}" for model in project.config.models.values() if model.data == name]
        elif config.source and column and any(each.of == f"{data}.{column}" for each in tables.contract_of(project, name).more):
            found.append(f"data {name}")
    return list(dict.fromkeys(found))


def _functions(project: Project, entry: str) -> list[ast.FunctionDef]:
    source = packages.sources(project.root).get(entry.partition(":")[0])
    return [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)] if source else []


def _features(project: Project, file: str, column: str) -> list[str]:
    """Return the features that ask for a column by its name, and those that are made of them."""
    asked = {node.name: {each.arg for each in node.args.args} for node in _functions(project, file)}
    found: list[str] = []
    while more := [name for name, names in asked.items() if name not in found and names & {column, *found}]:
        found += more
    return found


def _reads(project: Project, entry: str, data: str, column: str) -> bool:
    """Tell whether a transformation takes a table, and names the column."""
    for node in _functions(project, entry):
        if node.name == entry.partition(":")[2] and data in {each.arg for each in node.args.args}:
            words = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}
            words |= {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
            return not column or column in words
    return False
