"""Reading data: a version's rows (merge on read), tables made by a transformation, and what a model learns from."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from palan.core import digest_of, is_whole
from palan.data import contract as contracts
from palan.data.nouns import DataVersion, Repair
from palan.errors import NotFound, PalanError, nearest
from palan.flows import packages
from palan.flows.project import Project

if TYPE_CHECKING:
    import polars as pl

    from palan.data.doctor import Hypothesis
    from palan.flows.journal import Journal


_one_at_a_time = threading.RLock()

SUSPECT = "suspect"
"""Where a data version keeps what the data doctor suspects, in its verdict."""

ACCEPTED = "accepted"
"""Where a suspicion that somebody took for no fault keeps the reason, in its evidence."""


def contract_of(project: Project, name: str) -> contracts.Contract:
    """Return the contract of a table, as palan.toml declares it."""
    return contracts.parse(name, project.data(name).table)


def latest(project: Project, name: str) -> DataVersion | None:
    """Return the newest version of a table, None when nothing was ingested or built."""
    found = project.store.records.find(DataVersion, order="-number", limit=1, data=name)
    return found[0] if found else None


def find_data_version(project: Project, ref: str) -> DataVersion:
    """Return a data version by "weather" (the newest) or "weather@3".

    Raises:
        NotFound: there is no such table or version.
    """
    name, _, number = ref.partition("@")
    project.data(name)
    if not number:
        newest = latest(project, name)
        if newest is None:
            raise NotFound(f'data "{name}" is empty', f"palan ingest {name}")
        return newest
    found = project.store.records.find(DataVersion, data=name, number=int(number) if is_whole(number) and len(number) < 19 else -1)
    if not found:
        known = [each.ref for each in project.store.records.find(DataVersion, order="-number", limit=5, data=name)]
        raise NotFound(f"there is no {ref}", f"known: {', '.join(known)}" if known else f"palan ingest {name}")
    return found[0]


def read(project: Project, version: DataVersion) -> pl.DataFrame:
    """Return a version's rows; of rows with one key the one that was delivered last.

    The key is the one that the version was made with: what a version holds does not change with palan.toml.
    """
    import polars as pl

    contract = contract_of(project, version.data)
    if not version.parts:
        return pl.DataFrame({field.name: [] for field in contract.columns})
    if len(version.parts) == 1:
        return load_frame(project, version.parts[0])
    return merged(project, version.parts, version.verdict.get("key", contract.key), contract)


def merged(project: Project, parts: Sequence[str], key: Sequence[str], contract: contracts.Contract) -> pl.DataFrame:
    """Return the rows of these parts, one at least; of rows with one key the one in the last part."""
    import polars as pl

    from palan.data.verdict import alike

    frame = pl.concat(alike([load_frame(project, part) for part in parts], contract), how="diagonal_relaxed")
    known = [name for name in key if name in frame.columns]
    return frame.unique(subset=known, keep="last", maintain_order=True) if known else frame


def store_frame(project: Project, frame: pl.DataFrame) -> str:
    """Keep a table as a Parquet blob and return its digest."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return project.store.blobs.put(buffer.getvalue())


def load_frame(project: Project, blob: str, columns: Sequence[str] = ()) -> pl.DataFrame:
    """Return a table, or of these columns those that it has."""
    import polars as pl

    data = io.BytesIO(project.store.blobs.get(blob))
    known = [name for name in columns if name in pl.read_parquet_schema(data)] if columns else None
    return pl.read_parquet(data, columns=known)


def scan_frame(project: Project, blob: str) -> pl.LazyFrame:
    """Return a table of which only what is asked for will be read."""
    import polars as pl

    return pl.scan_parquet(io.BytesIO(project.store.blobs.get(blob)))


def add_version(
    project: Project,
    data: str,
    *,
    parts: Sequence[str],
    rows: int,
    added: int,
    run: str,
    sources: Mapping[str, str],
    verdict: Mapping[str, Any],
) -> DataVersion:
    """Record the next version of a table, or return the newest one if it is the same. To be called in a transaction."""
    newest = latest(project, data)
    same = newest and newest.parts == tuple(parts) and dict(newest.sources) == dict(sources)
    if newest and same and newest.verdict.get("contract") == verdict.get("contract"):
        return newest
    number = newest.number + 1 if newest else 1
    version = DataVersion(
        digest_of([data, number, list(parts), dict(sources)]),
        data,
        number,
        project.clock(),
        tuple(parts),
        rows,
        added,
        run,
        dict(sources),
        dict(verdict),
    )
    project.store.records.add(version)
    return version


def current(project: Project, name: str, journal: Journal, *, above: tuple[str, ...] = ()) -> DataVersion:
    """Return the newest version of a table; one that is made by a transformation is made now if its inputs changed.

    Raises:
        NotFound: an input was never ingested.
        PalanError: the transformation is not a function of known tables, or what it made breaks its contract.
    """
    config = project.data(name)
    if not config.transform:
        return find_data_version(project, name)
    if name in above:
        circle = " -> ".join([*above[above.index(name) :], name])
        raise PalanError(f"these tables are made of one another: {circle}", "let one of them have a source")
    code = packages.code_of(project, config.transform)
    inputs = _arguments(project, config.transform)
    versions = {each: current(project, each, journal, above=(*above, name)) for each in inputs}
    parts = {
        "code": code.to_dict(),
        "inputs": {each: version.id for each, version in versions.items()},
        "contract": digest_of(config.table),
    }
    with _one_at_a_time:  # of two trials that need the same table one makes it
        made = journal.step(f"transform {name}", parts, lambda: _transform(project, name, versions))
    with project.store.records.transaction():
        journal.fence()
        return add_version(
            project,
            name,
            parts=[made["blob"]],
            rows=made["rows"],
            added=made["rows"],
            run=journal.run.id,
            sources={each: version.ref for each, version in versions.items()},
            verdict=made["verdict"],
        )


def _transform(project: Project, name: str, versions: Mapping[str, DataVersion]) -> dict[str, Any]:
    from palan.data.verdict import verify
    from palan.engines.lanes import Worker
    from palan.engines.worker import TRANSFORMATION

    config = project.data(name)
    folder, _ = packages.stage(project, packages.code_of(project, config.transform))
    with Worker(folder, config.transform, kind=TRANSFORMATION, watched=True) as worker:
        frame = worker.transform({each: read(project, version) for each, version in versions.items()})
        for path in packages.undeclared(project, worker):
            project.tell(packages.unnoticed(config.transform, path))
    checked = verify(frame, contract_of(project, name))
    if checked.verdict.bad:
        raise PalanError(
            f'{config.transform} made rows that break the contract of "{name}": {checked.verdict.text}',
            f"put {config.transform} right, or [data.{name}.columns] in palan.toml",
        )
    project.tell(f"{name}: {checked.good.height:,} rows made by {config.transform}")
    return {"blob": store_frame(project, checked.good), "rows": checked.good.height, "verdict": checked.verdict.to_dict()}


def _arguments(project: Project, entry: str) -> list[str]:
    import ast

    file, _, name = entry.partition(":")
    for node in ast.parse(packages.sources(project.root)[file]).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            names = [each.arg for each in node.args.args]
            for each in names:
                if each not in project.config.data:
                    hint = nearest(each, project.config.data) or "name each argument as a [data.NAME]"
                    raise PalanError(f'{entry} takes "{each}", which is no data of this project', hint)
            return names
    raise PalanError(f"{entry} is not a plain function", f"define {name}(…) with data names as arguments in {file}")


def inputs_of(project: Project, data: str) -> list[str]:
    """Return the tables that a table is made of; of one that is ingested none."""
    transform = project.data(data).transform
    return _arguments(project, transform) if transform else []


def suspicions(project: Project, data: str, *, repairs: Sequence[Repair] = (), accepted: bool = False) -> list[Hypothesis]:
    """Return what the data doctor suspects of a table, or of the tables that it is made of, as they are now.

    A suspicion stands until its rows are delivered again and do not bear it out, or until somebody accepts it: of those only
    `accepted` tells. `evidence["through"]` is the last day on which it was seen, `repairs` what would put it right. What
    these repairs, such as those of a release, put right is left out.
    """
    if inputs := inputs_of(project, data):
        found = [each for name in inputs for each in suspicions(project, name, repairs=repairs, accepted=accepted)]
        return [each for place, each in enumerate(found) if each not in found[:place]]
    newest = latest(project, data)
    kept = newest.verdict.get(SUSPECT) if newest else None
    if not kept:
        return []
    import msgspec

    from palan.data.doctor import Hypothesis

    right = [(repair.column, repair.since, repair.until) for repair in repairs]
    return [
        each
        for each in msgspec.convert(kept, list[Hypothesis])
        if (accepted or ACCEPTED not in each.evidence)
        and not all(any(name == column and since <= each.since and (until is None or (each.until and each.until <= until)) for column, since, until in right) for name in each.columns)
    ]


def repaired(frame: pl.DataFrame, repairs: Sequence[Repair], time: str) -> pl.DataFrame:
    """Return the rows as the release's repairs put them right."""
    if not repairs or not time:
        return frame
    from palan.data.repair import apply

    return apply(frame, repairs, time)


def training(
    project: Project,
    model: str,
    version: DataVersion,
    *,
    repairs: Sequence[Repair] = (),
    since: datetime | None = None,
    until: datetime | None = None,
) -> pl.DataFrame:
    """Return the rows that a model may learn from: ingested ones and answered ones whose outcome is known.

    `since` (inclusive) and `until` (exclusive) bound the event time of both.
    """
    import polars as pl

    time = contract_of(project, version.data).time
    with _one_at_a_time:
        frame = _learnable(project, model, version, repairs)
    if time and since is not None:
        frame = frame.filter(pl.col(time) >= since)
    if time and until is not None:
        frame = frame.filter(pl.col(time) < until)
    return frame


_last: dict[str, tuple[str, Any]] = {}
"""The rows that each model could learn from when it last learnt: trials differ in their bounds only."""


def _learnable(project: Project, model: str, version: DataVersion, repairs: Sequence[Repair]) -> pl.DataFrame:
    """Return all rows of a data version, and the answered ones that it does not hold yet, put right by the repairs."""
    import polars as pl

    from palan.flows import history

    config = project.model(model)
    told = len(history.outcomes(project, model))
    about = [config.outcome, config.key, config.inputs, project.data(version.data).table]
    name, state = f"{project.root} {model}", digest_of([version.id, told, repairs, about])
    known = _last.get(name)  # read once: another trial may put its own rows there meanwhile
    if known is not None and known[0] == state:
        return known[1]  # type: ignore[no-any-return]
    contract = contract_of(project, version.data)
    time, key = contract.time, config.key
    frame = read(project, version)
    if config.outcome:
        frame = frame.filter(pl.col(config.outcome).is_not_null())
    newest: Any = frame[time].max() if time and frame.height else None
    logged = history.learnable(project, model, since=newest) if time and config.outcome and key else None
    if logged is not None and logged.height:
        names = {key: "palan_key", time: "palan_time", config.outcome: "palan_outcome", **{name: name for name in config.inputs}}
        typed = logged.select(
            (pl.col(logged_as) if logged_as in logged.columns else pl.lit(None)).cast(frame.schema[name], strict=False).alias(name)
            for name, logged_as in names.items()
            if name in frame.columns
        )
        # Rows that were answered before callers sent an input hold no value of it: nothing can be learnt from them.
        typed = typed.drop_nulls([name for name in config.inputs if name in typed.columns and not contract.field(name).nullable])
        frame = pl.concat([frame, typed.join(frame.select(key), on=key, how="anti")], how="diagonal_relaxed")
    frame = repaired(frame, repairs, time)
    _last[name] = (state, frame)
    return frame
