"""The pages of data: tables with their contracts and versions, one version, two beside each other, quarantine, lineage."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace
from starlette.datastructures import QueryParams

from palan.core import counted, stamp, whole
from palan.data.contract import column_toml
from palan.errors import NotFound
from palan.flows import examine, lineage, quarantine, status, tables, versions
from palan.flows.project import Project

SHOWN = 20
"""Rows of a quarantine on one page, and files named of one version."""

APART = 2_000_000
"""Rows of parts that two versions do not share up to which a page compares them: beyond, the command does."""


def tables_view(project: Project) -> dict[str, Any]:
    """Return every table of palan.toml with its newest version."""
    return {"frame": status.frame(project), "data": [status.data_line(project, name) for name in project.config.data]}


def table_view(project: Project, name: str) -> dict[str, Any]:
    """Return one table: what is promised of it, what each version brought, what waits, what is suspected.

    Only records are read, none of its rows.

    Raises:
        NotFound: palan.toml has no such table.
    """
    config = project.data(name)
    contract = tables.contract_of(project, name)
    newest = tables.latest(project, name)
    suspected = [each for each in tables.suspicions(project, name, accepted=True) if tables.ACCEPTED not in each.evidence] if newest else []
    found = versions.versions(project, name)
    line = status.data_line(project, name)
    fresh = contract.fresh.total_seconds() if contract.fresh else None
    return {
        "frame": status.frame(project),
        "line": line,
        "name": name,
        "source": config.source or config.transform,
        "made": bool(config.transform),
        "key": contract.key,
        "time": contract.time,
        "checks": contract.checks,
        "fresh": fresh,
        "columns": [{"name": each.name, "meaning": contract.told(each.name).meaning, "unit": each.unit, "said": column_toml(each, replace(contract.told(each.name), meaning="")), "key": each.name in contract.key} for each in contract.columns],
        "versions": found,
        "marks": dict(list(newest.sources.items())[-SHOWN:]) if newest else {},
        "sources": len(newest.sources) if newest else 0,
        "warnings": [rule["text"] for report in newest.verdict.get("files", [newest.verdict]) for rule in report.get("table", ()) if not rule["holds"] and rule["text"] not in line["why"]][:SHOWN] if newest else [],
        "waiting": next(iter(quarantine.overview(project, name)), None),
        "repairs": [f"palan data repair {each}" for each in tables.inputs_of(project, name) or [name] if suspected and tables.suspicions(project, each, accepted=True)],
        "suspected": [{"text": examine.said(each), "sure": each.confidence, "since": stamp(each.since), "repaired": each.evidence.get(tables.REPAIRED, ""), "repairs": [{"column": one.column, "expression": one.expression} for one in each.repairs]} for each in suspected],
    }


def version_view(project: Project, name: str, number: str) -> dict[str, Any]:
    """Return one version: what it brought, beside what was there, and some of its rows.

    Raises:
        NotFound: no such table or version.
    """
    project.data(name)
    version = tables.find_data_version(project, f"{name}@{number}")
    told = versions.told(version)
    found = versions.profile(project, version.ref)
    contract = tables.contract_of(project, name)
    reports = version.verdict.get("files", [version.verdict])
    return {
        "frame": status.frame(project),
        "name": name,
        "number": version.number,
        "told": told,
        **found,
        "meanings": {each.name: " ".join(filter(None, [contract.told(each.name).meaning, f"in {each.unit}" if each.unit else ""])) for each in contract.columns},
        "broken": [{"rule": rule["rule"], "count": rule["count"], "example": str(rule.get("example") or ""), "severity": rule.get("severity", "")} for report in reports for rule in report.get("broken", ())],
        "warnings": [rule["text"] for report in reports for rule in report.get("table", ()) if not rule["holds"]],
    }


def diff_view(project: Project, name: str, query: QueryParams) -> dict[str, Any]:
    """Return what lies between two versions of a table, or the command where that is too much for a page.

    Raises:
        NotFound: no such table or version.
    """
    project.data(name)
    newest = tables.find_data_version(project, name)
    new = whole(query.get("new", str(newest.number)), "new", 1, 10**9)
    old = whole(query.get("old", str(max(1, new - 1))), "old", 1, 10**9)
    before, after = (tables.find_data_version(project, f"{name}@{number}") for number in (old, new))
    apart = versions.apart(project, before, after)
    found = versions.difference(project, before.ref, after.ref) if apart <= APART else None
    return {"frame": status.frame(project), "name": name, "old": old, "new": new, "newest": newest.number, "apart": apart, "found": found, "command": f"palan data diff {before.ref} {after.ref}"}


def _asked(query: QueryParams) -> quarantine.Asked:
    return quarantine.Asked(rule=query.get("rule", ""), file=query.get("file", ""), all=not (query.get("rule") or query.get("file")))


def quarantine_view(project: Project, name: str, query: QueryParams) -> dict[str, Any]:
    """Return the rows of a table that wait, with the cells that break a rule, and what to type.

    Raises:
        NotFound: no such table, file or rule.
    """
    about = next(iter(quarantine.overview(project, name, decided_too=True)))
    rule, file = query.get("rule", ""), query.get("file", "")
    found: Mapping[str, Any] = quarantine.show(project, name, _asked(query), limit=SHOWN) if about["rows"] else {"rows": 0, "shown": [], "next": ""}
    return {"frame": status.frame(project), "name": name, "about": about, "rule": rule, "file": file, "found": found}


def quarantine_csv(project: Project, name: str, query: QueryParams) -> str:
    """Return the rows that wait as they came, as `palan data quarantine show --csv` has them.

    Raises:
        NotFound: no such table, file or rule.
    """
    project.data(name)
    if not quarantine.waiting(project, name):
        return "palan_file,palan_line,palan_rules\n"
    shown = quarantine.show(project, name, _asked(query), limit=quarantine.LISTED)["shown"]
    names = list(dict.fromkeys(column for each in shown for column in each["row"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["palan_file", "palan_line", "palan_rules", *names])
    writer.writerows([each["file"], each["line"], "; ".join(each["rules"]), *(each["row"].get(column) for column in names)] for each in shown)
    return text.getvalue()


def lineage_view(project: Project, subject: str) -> dict[str, Any]:
    """Return where each column of a table, or each input of a model, comes from.

    Raises:
        NotFound: nothing is called so, or no version of it was made yet.
    """
    name = subject.partition("@")[0]
    if name not in project.config.models and name not in project.config.data:
        raise NotFound(f'no table and no model "{name}"', "palan status")
    found = lineage.lineage(project, subject)
    behind: dict[str, list[str]] = {}
    for source, made in found.edges:
        behind.setdefault(made, []).append(source)
    return {
        "frame": status.frame(project),
        "subject": subject,
        "model": name in project.config.models,
        "found": found,
        "lines": [{"id": each.id, "kind": each.kind, "of": each.of, "about": each.about, "behind": behind.get(each.id, []), "delivered": each.kind == "column" and each.of in project.config.data and not project.config.data[each.of].transform} for each in found.nodes],
        "text": f"{counted(len(found.nodes), 'node')}, {counted(len(found.edges), 'line')} between them",
    }
