"""`palan ingest`: take in what was delivered, verify every row, keep the broken ones apart."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from palan.core import digest_of
from palan.data.nouns import DataVersion, Quarantine
from palan.errors import NotFound, PalanError
from palan.flows import tables
from palan.flows.journal import Journal, running
from palan.flows.project import Project, record


def ingest(project: Project, data: str = "") -> list[dict[str, Any]]:
    """Take in every file of a table's source (of all tables without a name) that was not taken in before.

    Returns one report per table: files, rows, quarantined rows, the verdict of each rule, and the version. Ingesting
    twice adds nothing; a row that is delivered again with the same key is a correction.

    Raises:
        NotFound: no such table, or its source matches no file.
        PalanError: a file that cannot be read as what it is; nothing of the table is taken in then.
    """
    names = [data] if data else [name for name, config in project.config.data.items() if config.source]
    if not names:
        raise NotFound("this project declares no data with a source", 'add to palan.toml: [data.NAME] source = "feed/*.csv"')
    return [_ingest(project, name, named=bool(data)) for name in names]


def _ingest(project: Project, name: str, *, named: bool) -> dict[str, Any]:
    config = project.data(name)
    if not config.source:
        raise PalanError(f'data "{name}" is made by {config.transform}, not ingested', "palan build makes it when it is needed")
    try:
        files = sorted(path for path in project.root.glob(config.source) if not path.name.startswith("."))
    except (NotImplementedError, ValueError) as error:
        raise PalanError(
            f'source = "{config.source}" of data "{name}" is no pattern within the project', 'source = "feed/*.csv"'
        ) from error
    if not files:
        if named:
            raise NotFound(f'no file matches source = "{config.source}" of data "{name}"', f"put files there: {project.root}")
        return {"data": name, "files": [], "rows": 0, "quarantined": 0, "version": None, "verdict": {}, "text": "no files yet"}
    with running(project, "ingest", name, wait=30) as journal:
        return _take_in(project, name, files, journal)


def _take_in(project: Project, name: str, files: list[Path], journal: Journal) -> dict[str, Any]:
    records = project.store.records
    newest = tables.latest(project, name)
    known = dict(newest.sources) if newest else {}
    parts = list(newest.parts) if newest else []
    total, reports, quarantines = newest.rows if newest else 0, [], []
    for path in files:
        if not path.is_file():
            raise PalanError(f'{path} is not a file, but matches source of data "{name}"', "move it, or make the source narrower")
        source = path.relative_to(project.root).as_posix()
        try:
            data = path.read_bytes()
        except OSError as error:
            raise PalanError(f"{path} cannot be read: {error.strerror}", f"chmod u+r {path}") from error
        content = hashlib.sha256(data).hexdigest()
        if known.get(source) == content:
            continue
        if source in known and not project.config.data[name].key:
            raise PalanError(
                f'{source} was taken in before and has changed, but data "{name}" has no key that tells its old rows from its new ones',
                f'[data.{name}] key = ["..."], or deliver the new rows in a file of their own',
            )
        contract = digest_of(project.config.data[name].table)
        before = {"source": source, "content": content, "contract": contract, "after": list(parts)}
        report = journal.step(f"verify {source}", before, lambda path=path, data=data, parts=tuple(parts): _verify(  # type: ignore[misc]
            project, name, path, data, parts
        ))
        project.tell(f"{source}: {report['text']}")
        known[source] = content
        if report["part"]:
            parts.append(report["part"])
        total += report["added"]
        if report["quarantine"]:
            id = digest_of([name, source, content])[:26]
            quarantines.append(
                Quarantine(id, name, project.clock(), source, report["quarantine"], report["bad"], report["reasons"])
            )
        reports.append(report)
    added = sum(report["added"] for report in reports)
    bad = sum(report["bad"] for report in reports)
    version: DataVersion | None = newest
    if reports:
        with records.transaction(durable=True):
            journal.fence()
            version = tables.add_version(
                project,
                name,
                parts=parts,
                rows=total,
                added=added,
                run=journal.run.id,
                sources=known,
                verdict={"files": [report["verdict"] for report in reports]},
            )
            for quarantine in quarantines:
                records.add(quarantine)
            text = f"{added:,} rows from {len(reports)} file(s), {bad:,} in quarantine"
            record(project, "ingested", version.ref, text, rows=added, quarantined=bad)
    return {
        "data": name,
        "files": [report["source"] for report in reports],
        "rows": added,
        "corrections": sum(report["corrections"] for report in reports),
        "quarantined": bad,
        "version": version.ref if version else None,
        "reasons": _sum(report["reasons"] for report in reports),
        "warnings": [warning for report in reports for warning in report["warnings"]],
        "text": "; ".join(report["text"] for report in reports) or "nothing new",
    }


def _sum(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for reason, count in each.items():
            total[reason] = total.get(reason, 0) + count
    return total


def _verify(project: Project, name: str, path: Path, data: bytes, parts: tuple[str, ...]) -> dict[str, Any]:
    import polars as pl

    from palan.data.verdict import parse_file, verify

    contract = tables.contract_of(project, name)
    try:
        frame = parse_file(data, path.suffix, contract)
        known = _known_keys(project, list(contract.key), parts)
        checked = verify(frame, contract, known)
    except PalanError as error:
        raise PalanError(f"{path.relative_to(project.root)}: {error.what}", error.hint) from error
    verdict = checked.verdict
    part = tables.store_frame(project, checked.good) if checked.good.height else ""
    bad = checked.bad
    if bad.height:
        bad = bad.with_columns(pl.exclude("palan_line", "palan_reasons").cast(pl.String, strict=False))
    return {
        "source": path.name,
        "part": part,
        "added": verdict.good - verdict.corrections,
        "corrections": verdict.corrections,
        "bad": verdict.bad,
        "quarantine": tables.store_frame(project, bad) if bad.height else "",
        "reasons": {rule.rule: rule.count for rule in verdict.broken},
        "warnings": verdict.warnings,
        "text": verdict.text,
        "verdict": verdict.to_dict(),
    }


def _known_keys(project: Project, key: list[str], parts: tuple[str, ...]) -> Any:
    import polars as pl

    if not key or not parts:
        return None
    frames = [tables.load_frame(project, part) for part in parts]
    have = [frame.select(key) for frame in frames if set(key) <= set(frame.columns)]
    return pl.concat(have, how="vertical_relaxed").unique() if have else None


def quarantined(project: Project, data: str) -> list[Quarantine]:
    """Return what waits in quarantine of one table, newest first."""
    return project.store.records.find(Quarantine, order="-time", data=data, status="open")
