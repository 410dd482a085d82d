"""`palan accept`: what the data doctor suspects of a table is no fault, says a person. The ledger keeps who was overruled, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from palan.core import digest_of
from palan.errors import Conflict, Invalid, NotFound
from palan.flows import examine, tables
from palan.flows.project import Project, record


def accept(project: Project, data: str, *, column: str = "", reason: str = "") -> dict[str, Any]:
    """Take what is suspected of a table for what it means now: neither `status` nor `check` holds it against it any more.

    It makes a new data version of the same rows. A suspicion that goes on in later deliveries stays accepted; another one,
    or one that comes back after the rows were delivered otherwise, is told anew.

    Args:
        column: only what is suspected of this column.
        reason: why, for the ledger.

    Raises:
        NotFound: there is no such table, or nothing like that is suspected of it.
        Conflict: the table is made of others: what is suspected is suspected of them.
        Invalid: there is no reason.
    """
    made_of = sorted(tables.inputs_of(project, data))
    if made_of:
        raise Conflict(f'"{data}" is made of {" and ".join(made_of)}', f"palan accept {made_of[0]} --reason WHY")
    before = tables.find_data_version(project, data)
    if not reason.strip():
        raise Invalid("a suspicion is not set aside without a reason", f'palan accept {data} --reason "the station was moved"', field="reason")
    with project.store.records.transaction(durable=True):
        version = tables.find_data_version(project, data)
        if version.id != before.id:
            raise Conflict(f"{data} was ingested meanwhile", f"palan why {data}")
        told = [each for each in tables.suspicions(project, data) if not column or column in each.columns]
        if not told:
            raise NotFound(f"nothing is suspected of {data}{f'.{column}' if column else ''}", f"palan why {data}")
        which = [_which(msgspec.to_builtins(each)) for each in told]
        kept = [_accepted(each, reason) if _which(each) in which else each for each in version.verdict[tables.SUSPECT]]
        said = {examine.said(each) for each in told}
        files = [each for each in version.verdict.get("files", ()) if not (each.get("table") and all(rule["text"] in said for rule in each["table"]))]
        number = version.number + 1
        id = digest_of([data, number, list(version.parts), dict(version.sources)])
        after = msgspec.structs.replace(version, id=id, number=number, time=project.clock(), added=0, verdict={**version.verdict, "files": files, tables.SUSPECT: kept})
        project.store.records.add(after)
        record(project, "accepted", after.ref, reason, suspicions=[{"text": each.text, "columns": list(each.columns)} for each in told])
    return {"data": data, "version": after.ref, "accepted": [each.text for each in told], "reason": reason}


def _which(kept: Mapping[str, Any]) -> list[Any]:
    return [kept["kind"], sorted(kept["columns"]), kept["since"]]


def _accepted(kept: Mapping[str, Any], reason: str) -> dict[str, Any]:
    return {**kept, "evidence": {**kept["evidence"], tables.ACCEPTED: reason}}
