"""`palan build`: from the user's code and data to an immutable version with the evidence of how it was made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from palan.core import Schema, Version, digest_of, stamp
from palan.data.nouns import DataVersion, Repair
from palan.errors import Invalid, NotFound, PalanError
from palan.flows import packages, tables
from palan.flows.config import ModelConfig
from palan.flows.journal import Journal, running
from palan.flows.project import Project, record
from palan.models.contract import SHAPE
from palan.releases.nouns import Release
from palan.runs.closure import Closure

if TYPE_CHECKING:
    import polars as pl

    from palan.engines.lanes import Worker

    Lend = Callable[[], AbstractContextManager[Worker]]

FOLDS = 3
"""Blocks of time for the reference: each is answered by a model that did not see it."""


def build(
    project: Project,
    model: str,
    *,
    params: Mapping[str, Any] | None = None,
    since: datetime | None = None,
    seed: int = 0,
    reason: str = "",
    verify: float = 0.0,
) -> dict[str, Any]:
    """Make a version: package the code and, where the model has fit(), what it learns from the newest data.

    Every step is recorded under what it depends on: a build that was killed goes on where it was, and one that changes
    nothing returns the version that there is. `since` bounds the rows that it learns from; `params` override palan.toml.
    `verify` is the share of recorded steps that are done again, for proof that they still give the same.

    Raises:
        NotFound: no such model, file, class or data.
        Invalid: a seed that is no whole number of 32 bits, or a parameter that cannot be kept.
        PalanError: what the user has to put right in code, data or palan.toml; or a step that is dead, or gives another value when it is done again.
        ModelFailed: the model's own code raised.
        Conflict: another process builds the same model.
    """
    from palan.data.inputs import check_plain

    project.model(model)
    if not 0 <= seed < 2**32:  # what numpy, and every library that builds on it, takes
        raise Invalid(f"the seed is {seed:,}" if abs(seed) < 2**64 else "the seed is beyond 64 bits", f"a whole number from 0 to {2**32 - 1}", field="seed", value=seed)
    check_plain(dict(params or {}), "params")
    with running(project, "build", model, verify=verify, tags={"reason": reason} if reason else {}) as journal:
        version, new = make(project, model, journal, params=params or {}, since=since, seed=seed, reason=reason)
    return {
        "version": version.ref,
        "id": version.id,
        "kind": version.kind,
        "new": new,
        "params": dict(version.manifest["params"]),
        "data": dict(version.manifest["data"]),
        "metrics": dict(journal.run.metrics),
        "steps": {"executed": journal.executed, "replayed": journal.replayed},
        "run": journal.run.id,
    }


def make(
    project: Project,
    model: str,
    journal: Journal,
    *,
    params: Mapping[str, Any],
    since: datetime | None,
    seed: int,
    reason: str = "",
    like: Version | None = None,
) -> tuple[Version, bool]:
    """Make the version inside a run and write it into the ledger; return it, and whether it is new.

    With `like` it has that version's code and parameters instead of those that lie in the folder now: what learns again
    by itself must not take half an edit into production.
    """
    from palan.engines.lanes import Worker
    from palan.flows import pasts

    config = project.model(model)
    if like is None:
        code = packages.code_of(project, config.model, config.features)
        folder, files = packages.stage(project, code)
    else:
        code, files = packages.closure_of(like), dict(like.manifest["code"])
        folder = packages.unpack(project, digest_of(files), files)
    merged = {**(config.params if like is None else like.manifest["params"]), **params}
    data = tables.current(project, config.data, journal) if config.data else None
    release = project.store.records.get(Release, model)
    repairs = release.repairs if release else ()
    opening = prepared(project, config, data)
    # Started only where a step has to be done: a build that changes nothing runs no code of the user.
    lend = partial(Worker, folder, code.entry, kind=config.kind, params=merged, inputs=config.inputs, outcome=config.outcome, features=opening)

    def look() -> dict[str, Any]:
        with lend(watched=True) as worker:
            return {**worker.open(), "reads": packages.undeclared(project, worker)}

    def learn(data: DataVersion) -> dict[str, Any]:
        with lend(watched=True) as worker:
            return {**fit(project, model, worker, data, repairs, known, since=since, seed=seed), "reads": packages.undeclared(project, worker)}

    def sample() -> pl.DataFrame | None:
        """Return a row as callers send it, to measure on what features cost."""
        if data is None:
            return None
        rows = tables.training(project, model, data, repairs=repairs, since=since).head(1)
        return pasts.with_pasts(project, rows, tables.contract_of(project, data.data).time, looked, known)

    def described(state: Mapping[str, str]) -> dict[str, Any]:
        with lend() as worker:
            worker.restore({name: project.store.blobs.get(blob) for name, blob in state.items()})
            told = worker.features(sample())
        for slow in told.pop("slow"):
            project.tell(f"{config.features}: {slow}")
        used = {each.past.table for each in pasts.looked_of(told["pasts"])}
        return {"file": config.features, "tables": {name: columns for name, columns in opening["tables"].items() if name in used}, **told}

    about = journal.step(f"look at {model}", {"code": code.to_dict(), "params": merged, "kind": config.kind}, look)
    kind = about["kind"]
    looked = pasts.looked_of(about.get("pasts", ()))
    known = pasts.sources(project, journal, looked)
    basis = {
        "code": code.to_dict(),
        "params": merged,
        "data": data.id if data else "",
        "since": stamp(since) if since else "",
        "logged": _logged(project, config),
        "repairs": digest_of(repairs),
        "inputs": list(config.inputs),
        "outcome": config.outcome,
        "key": config.key,
        "contract": digest_of(project.data(config.data).table) if config.data else "",
        "seed": seed,
        **({"pasts": pasts.ids(known)} if known else {}),
    }
    learnt: dict[str, Any] = {"state": {}, "rows": 0, "since": "", "until": ""}
    if "fit" in about["verbs"] and data is None:
        raise PalanError(f"{config.model} has fit(), but {model} names no data", f'in palan.toml: [models.{model}] data = "..."')
    if data is not None and "fit" in about["verbs"]:
        learnt = journal.step(f"fit {model}", basis, lambda: learn(data))
    reference: dict[str, Any] = {"blob": "", "metrics": {}}
    if data is not None and SHAPE[kind] == "rows":
        reference = journal.step(
            f"reference {model}", {**basis, "folds": FOLDS}, lambda: _reference(project, config, about, lend, data, learnt, repairs, known, since, seed)
        )
    takes = signature(project, config, kind, data)
    for path in dict.fromkeys([*about.get("reads", ()), *learnt.get("reads", ())]):
        project.tell(packages.unnoticed(config.model, path))
    journal.note(
        params=merged,
        metrics={**reference["metrics"], **({"rows": float(learnt["rows"])} if learnt["rows"] else {})},
        code=code.digest,
        data={data.data: data.number} if data else {},
        environment=packages.environment(code),
    )
    manifest = _manifest(config, kind, about, code, files, merged, learnt, reference, takes, data, seed)
    if opening:
        manifest["features"] = journal.step(f"features {model}", {"code": code.to_dict(), "columns": opening["columns"], "state": learnt["state"]}, lambda: described(learnt["state"]))
    return _register(project, model, kind, manifest, journal, reason)


def _manifest(
    config: ModelConfig,
    kind: str,
    about: Mapping[str, Any],
    code: Closure,
    files: Mapping[str, str],
    params: Mapping[str, Any],
    learnt: Mapping[str, Any],
    reference: Mapping[str, Any],
    signature: Schema,
    data: DataVersion | None,
    seed: int,
) -> dict[str, Any]:
    return {
        "format": 1,
        "model": config.name,
        "kind": kind,
        "entry": code.entry,
        "verbs": list(about["verbs"]),
        "params": dict(params),
        "seed": seed,
        "code": dict(files),
        "closure": dict(code.parts),
        "state": dict(learnt["state"]),
        "reference": reference["blob"],
        "metrics": dict(reference["metrics"]),
        "signature": msgspec.to_builtins(signature),
        "outcome": config.outcome,
        "key": config.key,
        "environment": packages.environment(code),
        "data": {"ref": data.ref, "id": data.id, "rows": learnt["rows"], "since": learnt["since"], "until": learnt["until"]} if data else {},
    }


def _register(
    project: Project, model: str, kind: str, manifest: dict[str, Any], journal: Journal, reason: str
) -> tuple[Version, bool]:
    records = project.store.records
    id = digest_of(manifest)
    with records.transaction(durable=True):
        journal.fence()
        known = records.get(Version, id)
        if known is not None:
            return packages.proven(project, known), False
        newest = records.find(Version, order="-number", limit=1, model=model)
        number = newest[0].number + 1 if newest else 1
        signed = {**manifest, "signed": packages.sign(project, manifest)}
        version = Version(id, model, number, kind, signed, journal.run.id, project.clock())
        records.add(version)
        record(project, "built", version.ref, reason, id=version.id, run=journal.run.id, metrics=journal.run.metrics)
    project.tell(f"built {version.ref}")
    return version, True


def _logged(project: Project, config: ModelConfig) -> int:
    """Return how many answered rows the model may learn from beyond its data: part of what a fit depends on."""
    if not (config.data and config.outcome and config.key):
        return 0
    from palan.flows import history

    return sum(len(each.values) for each in history.outcomes(project, config.name))


def fit(
    project: Project,
    model: str,
    worker: Worker,
    data: DataVersion,
    repairs: Sequence[Repair],
    known: Mapping[str, DataVersion],
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Let a worker learn from the rows of `since <= time < until`; return the state as blobs, and the rows it learnt from.

    `known` are the versions of the tables that its features look into.
    """
    from palan.data.verdict import read_time
    from palan.flows import pasts

    rows = tables.training(project, model, data, repairs=repairs, since=since, until=until)
    if not rows.height:
        raise NotFound(f"there are no rows for {model} to learn from", f"palan ingest   (then: palan build {model})")
    project.tell(f"{model} learns from {rows.height:,} rows")
    time = tables.contract_of(project, data.data).time
    state = worker.fit(pasts.with_pasts(project, rows, time, pasts.looked_of(worker.open().get("pasts", ())), known), seed=seed)
    newest = rows.select(read_time(time, rows.schema[time])).to_series().max() if time else None
    return {
        "state": {name: project.store.blobs.put(file) for name, file in state.items()},
        "rows": rows.height,
        "since": stamp(since) if since else "",
        "until": stamp(newest) if isinstance(newest, datetime) else "",
    }


def _reference(
    project: Project,
    config: ModelConfig,
    about: Mapping[str, Any],
    lend: Lend,
    data: DataVersion,
    learnt: Mapping[str, Any],
    repairs: Sequence[Repair],
    known: Mapping[str, DataVersion],
    since: datetime | None,
    seed: int,
) -> dict[str, Any]:
    """Answer the training rows as they would have been answered live: what "normal" looks like for the watch.

    A model that learns answers each block of time after learning from the others; its losses are those of unseen rows.
    """
    import polars as pl

    from palan.flows import pasts

    rows = tables.training(project, config.name, data, repairs=repairs, since=since)
    contract = tables.contract_of(project, config.data)
    if contract.time:
        rows = rows.sort(contract.time)
    looked = pasts.looked_of(about.get("pasts", ()))
    rows = pasts.with_pasts(project, rows, contract.time, looked, known)
    learns = "fit" in about["verbs"] and bool(config.outcome)
    blocks = _blocks(rows, FOLDS) if learns else [rows]
    if learns and len(blocks) < FOLDS:
        return {"blob": "", "metrics": {}}  # too few rows to hold any back

    def answered(index: int) -> pl.DataFrame:
        with lend() as worker:
            if learns:
                worker.fit(pl.concat([other for place, other in enumerate(blocks) if place != index]), seed=seed)
            else:
                worker.restore({name: project.store.blobs.get(blob) for name, blob in learnt["state"].items()})
            return _answer(config, about, worker, blocks[index], contract.time)

    with ThreadPoolExecutor(max_workers=packages.LEARNERS, thread_name_prefix="reference") as pool:
        table = pl.concat(pool.map(answered, range(len(blocks))))
    metrics = {}
    if "loss" in table.columns:
        metrics["loss"] = float(table["loss"].mean())  # type: ignore[arg-type]
        project.tell(f"{config.name}: loss {metrics['loss']:.4f} on rows that it did not see")
    return {"blob": tables.store_frame(project, table), "metrics": metrics}


def _blocks(rows: pl.DataFrame, count: int) -> list[pl.DataFrame]:
    size = rows.height // count
    if size == 0:
        return [rows]
    return [rows[place * size : (place + 1) * size if place < count - 1 else rows.height] for place in range(count)]


def _answer(
    config: ModelConfig, about: Mapping[str, Any], worker: Worker, rows: pl.DataFrame, time: str
) -> pl.DataFrame:
    import polars as pl

    from palan.data.verdict import read_time

    inputs = rows.select(*config.inputs, *(each["name"] for each in about.get("pasts", ()))) if config.inputs else rows
    outputs = worker.decide(inputs)
    kept = [name for name in dict.fromkeys((time, config.key)) if name and name not in inputs.columns]
    answer = pl.concat([rows.select(kept), inputs, outputs.rename({name: f"output.{name}" for name in outputs.columns})], how="horizontal")
    if time:
        answer = answer.with_columns(read_time(time, answer.schema[time]).alias("time"))
    if config.outcome and "score" in about["verbs"]:
        losses = pl.Series("loss", worker.score(outputs, rows[config.outcome]), dtype=pl.Float64)
        lost = losses.len() - losses.is_finite().sum()
        if lost:
            raise PalanError(
                f"score() of {config.model} gives no finite number for {lost:,} of {losses.len():,} rows",
                "a loss is a number for every decision: clip what may become infinite",
            )
        answer = answer.with_columns(losses)
    return answer


def prepared(project: Project, config: ModelConfig, data: DataVersion | None) -> dict[str, Any]:
    """Return what a worker needs to make the model's features; nothing where it has none."""
    if not config.features:
        return {}
    tables_of = {name: {field.name: field.type for field in tables.contract_of(project, name).columns} for name in project.config.data}
    return {
        "file": config.features,
        "columns": {field.name: field.type for field in signature(project, config, "rules", data).fields},
        "tables": {name: columns for name, columns in tables_of.items() if columns},
    }


def signature(project: Project, config: ModelConfig, kind: Any, data: DataVersion | None) -> Schema:
    """Return what callers have to send: from the contract of the model's data, its instances, or its golden cases.

    Raises:
        PalanError: none of these is there.
    """
    from palan.data.contract import to_schema
    from palan.data.inputs import infer_schema

    if SHAPE[kind] == "instance":
        documents = instances(project, config)
        if not documents:
            raise PalanError(
                f"{config.name} decides instances, but none is there to learn their shape from",
                f'in palan.toml: [models.{config.name}] instances = "instances/*.json"',
            )
        return infer_schema(list(documents.values()))
    if config.data and config.inputs:
        return to_schema(tables.contract_of(project, config.data), list(config.inputs))
    if config.data:
        contract = tables.contract_of(project, config.data)
        return to_schema(contract, [name for name in contract.names if name not in (config.outcome, config.key, contract.time)])
    golden = golden_cases(project, config)
    if golden:
        found = infer_schema([case["input"] for case in golden])
        return Schema("rows", found.fields)
    raise PalanError(
        f"nothing says what {config.name} takes",
        f'in palan.toml: [models.{config.name}] data = "..." and inputs = [...], or golden = "golden.json"',
    )


def instances(project: Project, config: ModelConfig) -> dict[str, Any]:
    """Return the model's real instances: file name -> document.

    Raises:
        PalanError: a file that is not JSON, with its line.
    """
    found = {}
    for path in sorted(project.root.glob(config.instances)) if config.instances else []:
        try:
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise PalanError(f"{path} is not JSON: {error}", "put that line right") from error
    return found


def golden_cases(project: Project, config: ModelConfig) -> list[dict[str, Any]]:
    """Return the model's golden cases: {"input", "output", "tolerance"}.

    Raises:
        NotFound: the file is not there.
        PalanError: it is not a list of such cases.
    """
    if not config.golden:
        return []
    path = project.root / config.golden
    if not path.is_file():
        raise NotFound(f"there is no {path}", f"write golden cases, or remove golden from [models.{config.name}]")
    try:
        cases = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PalanError(f"{path} is not JSON: {error}", "put that line right") from error
    if not isinstance(cases, list) or not all(isinstance(case, dict) and "input" in case for case in cases):
        raise PalanError(f"{path} is no list of golden cases", '[{"input": {...}, "output": ..., "tolerance": 0.01}]')
    return cases
