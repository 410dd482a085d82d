"""`palan replay`: run any version over recorded decisions; the decision diff, and the loss where outcomes are known."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import to_builtins

from palan.core import Schema, Version, digest_of, stamp, unstamp
from palan.data.nouns import Repair
from palan.errors import NotFound, PalanError
from palan.flows import history, packages, tables
from palan.flows.config import ModelConfig
from palan.flows.journal import Journal, running
from palan.flows.project import Project
from palan.models.contract import SHAPE
from palan.releases.nouns import Release

if TYPE_CHECKING:
    import polars as pl

    from palan.decisions.nouns import Decision
    from palan.engines.lanes import Worker
    from palan.models.contract import Result

ANSWERED = "what was answered then"
"""What "logged" means, in a sentence."""

SOLVES = 20
"""How many instances one replay solves at the most, newest first."""


class Answered(msgspec.Struct, frozen=True):
    """What a version answers over a set of rows: its outputs, and the loss of each row whose outcome is known."""

    outputs: pl.DataFrame
    losses: pl.Series | None


def replay(project: Project, model: str, *, on: str = "last:1000", file: Path | None = None, against: str = "champion") -> dict[str, Any]:
    """Run a version ("delay@3", "delay@latest", or "delay@." for the working tree) over recorded decisions.

    `on` is "last:1000" (rows), "last:7d" or "2013-05-01..2013-06-01" (half open); or the rows of a `file` are taken
    instead. Its answers are compared with those of `against`: "champion", a version, or "logged", which is what was
    answered then. Where nothing is released, or the champion solves its own instances again, that is logged too.

    Returns the decision diff with its largest changes first and, where outcomes are known, what it gained a decision,
    with its interval.

    Raises:
        NotFound: no such version, or no decision in the window.
    """
    name, _, number = model.partition("@")
    config = project.model(name)
    with ExitStack() as stack:
        if number == ".":
            version, worker = working_tree(project, config, stack)
        else:
            version, worker = packages.find_version(project, model if number else f"{name}@latest"), None
        if SHAPE[version.kind] == "instance":
            if file:
                raise PalanError(f"{name} decides instances, so a file of rows cannot be replayed", f"palan replay {version.ref} --on last:20")
            return _replay_instances(project, config, version, on, against)
        rows = _file_rows(project, config, history.sent_schema(version.manifest), file) if file else _logged_rows(project, config, version, on)
        rows = looked_up(project, version, rows)
        return _replay_rows(project, config, version, worker, rows, file.name if file else on, against)


def working_tree(project: Project, config: ModelConfig, stack: ExitStack) -> tuple[Version, Worker | None]:
    """Return the code as it lies in the folder as a version that is not kept, and a worker that learnt what the champion did.

    It learns from the champion's rows and no later ones: so the diff shows what the edit does, not what another week of
    data does, and no loss is measured on rows that were learnt. Where nothing was edited it is the champion itself.
    """
    from palan.engines.lanes import Worker
    from palan.flows import build as builds

    if not project.store.records.find(Version, model=config.name, limit=1):
        builds.build(project, config.name, reason="replay of the working tree")
    like = packages.find_version(project, config.name)
    code = packages.code_of(project, config.model, config.features)
    same_inputs = not config.inputs or list(config.inputs) == history.sent_schema(like.manifest).names
    if same_inputs and dict(code.parts) == like.manifest["closure"] and {**like.manifest["params"], **config.params} == like.manifest["params"]:
        return like, None
    folder, files = packages.stage(project, code)
    journal = stack.enter_context(running(project, "replay", config.name, wait=30))
    data = tables.current(project, config.data, journal) if config.data else None
    features = builds.prepared(project, config, data)
    with Worker(folder, config.model, kind=config.kind, params=dict(config.params), inputs=config.inputs, outcome=config.outcome, features=features) as opened:
        about = opened.open()
    manifest = {
        **{name: value for name, value in like.manifest.items() if name != "signed"},
        "kind": about["kind"],
        "entry": config.model,
        "verbs": list(about["verbs"]),
        "params": dict(config.params),
        "code": dict(files),
        "closure": dict(code.parts),
        "state": {},
        "signature": to_builtins(builds.signature(project, config, about["kind"], data)),
        "outcome": config.outcome,
        "data": {**like.manifest["data"], "until": ""},
        "environment": packages.environment(code),
    }
    manifest.pop("features", None)
    if features:
        manifest["features"] = {"file": config.features, "tables": features["tables"], "pasts": about["pasts"]}
    version = Version(digest_of(manifest), config.name, 0, about["kind"], {**manifest, "signed": packages.sign(project, manifest)}, journal.run.id, project.clock())
    if "fit" not in about["verbs"]:
        return version, None
    learnt = like.manifest["data"]
    newest = unstamp(learnt["until"]) + timedelta(microseconds=1) if learnt.get("until") else project.clock()
    return version, stack.enter_context(learnt_until(project, journal, version, newest, since=unstamp(learnt["since"]) if learnt.get("since") else None))


def _name(version: Version) -> str:
    return version.ref if version.number else f"{version.model}@."


def _replay_rows(project: Project, config: ModelConfig, version: Version, worker: Worker | None, rows: pl.DataFrame, on: str, against: str) -> dict[str, Any]:
    outputs, losses = _of(project, version, rows, worker)
    other_outputs, other_losses, other = _against(project, config, rows, against, version, worker)
    from palan.gates import paired, rules

    finding = rules.decision_diff(other_outputs, outputs, keys=_keys(rows), tolerance=1e-9)
    report: dict[str, Any] = {"version": _name(version), "against": other, "on": on, "rows": rows.height, **finding.figures}
    report["text"] = finding.text
    if losses is not None and other_losses is not None:
        known = losses.is_not_null() & other_losses.is_not_null()
        difference = (losses - other_losses).filter(known)
        if difference.len():
            found = paired.interval(difference.to_numpy(), rows["time"].dt.date().filter(known).to_list(), serial=True)
            report["loss"] = {
                "rows": difference.len(),
                "version": losses.filter(known).mean(),
                "against": other_losses.filter(known).mean(),
                "gain": -found.mean,
                "low": _finite(-found.high),
                "high": _finite(-found.low),
            }
            gained = paired.told(-found.high, -found.mean, -found.low, ANSWERED if other == "logged" else other, config.watch.unit)
            report["text"] += f"; {gained}, by {difference.len():,} outcomes"
    return report


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None


def _keys(rows: pl.DataFrame) -> list[str]:
    import polars as pl

    return rows.select(pl.coalesce("key", "id")).to_series().to_list()


def _logged_rows(project: Project, config: ModelConfig, version: Version, on: str) -> pl.DataFrame:
    """Return the recorded rows that `on` names: id, key, time, inputs, outcome."""
    schema = history.schema_of(version.manifest)
    last, since, until = window(on, project)
    rows = history.frame(project, config.name, schema, since=since, until=until).sort("time", maintain_order=True)
    if last:
        rows = rows.tail(last)
    if not rows.height:
        raise NotFound(f"no decision of {config.name} was logged in {on}", f"palan serve   (then: palan decide {config.name})")
    return rows


def looked_up(project: Project, version: Version, rows: pl.DataFrame) -> pl.DataFrame:
    """Return recorded rows with what the version looks up and was not recorded with them: as the tables tell it now, of the time before the row."""
    from palan.flows import pasts

    missing = [each for each in pasts.of(version.manifest) if each.name not in rows.columns or (each.past.how != "count" and rows[each.name].null_count() == rows.height)]
    if not missing or not rows.height:
        return rows
    return rows.with_columns(pasts.looked_up_now(project, project.model(version.model), rows, missing))


def _file_rows(project: Project, config: ModelConfig, schema: Schema, path: Path) -> pl.DataFrame:
    """Return the rows of a file that keep the contract of the model's data, in the shape of the log.

    Raises:
        PalanError: the model names no data, a column is missing, or no row is good.
    """
    import polars as pl

    from palan.data.contract import narrowed
    from palan.data.reading import parse_file
    from palan.data.verdict import read_time, verify

    if not config.data:
        raise PalanError(f"{config.name} names no data, so nothing says how to read {path.name}", f'in palan.toml: [models.{config.name}] data = "..."')
    contract = tables.contract_of(project, config.data)
    wanted = [name for name in (*schema.names, config.outcome, config.key, contract.time) if name]
    part = narrowed(contract, wanted)
    parsed = parse_file(path.read_bytes(), path.suffix, contract)
    missing = [name for name in schema.names if name not in parsed.columns]
    if missing:
        raise PalanError(f"{path.name} has no column {missing[0]}, which {config.name} needs", f"it has {', '.join(parsed.columns[:12])}")
    optional = [each.name for each in part.columns if each.name not in parsed.columns]
    checked = verify(parsed, narrowed(part, [name for name in part.names if name not in optional]))
    if not checked.good.height:
        raise PalanError(f"no row of {path.name} can be replayed: {checked.verdict.text}", "palan replay --help")
    rows, here = checked.good, checked.good.columns
    return rows.select(
        pl.int_range(pl.len()).cast(pl.String).alias("id"),
        (pl.col(config.key).cast(pl.String) if config.key in here else pl.lit(None, pl.String)).alias("key"),
        (read_time(contract.time, rows.schema[contract.time]) if contract.time in here else pl.lit(project.clock())).alias("time"),
        *(pl.col(name).alias(f"input.{name}" if name in ("id", "key", "time", "outcome") else name) for name in schema.names),
        (pl.col(config.outcome) if config.outcome in here else pl.lit(None)).alias("outcome"),
    )


def window(on: str, project: Project) -> tuple[int | None, datetime | None, datetime | None]:
    """Read "last:1000", "last:7d" or "2013-05-01..2013-06-01" (either end may be open).

    Raises:
        PalanError: it is none of these.
    """
    if found := re.fullmatch(r"last:([1-9]\d{0,8})", on):
        return int(found[1]), None, None
    if found := re.fullmatch(r"last:([1-9]\d{0,4})d", on):
        return None, project.clock() - timedelta(days=int(found[1])), None
    first, dots, second = on.partition("..")
    try:
        if dots:
            return None, _date(first), _date(second)
    except ValueError:
        pass
    shown = on if len(on) <= 80 else f"{on[:77]}..."
    raise PalanError(f'"{shown}" names no window of decisions', 'write --on last:1000, last:7d, 2013-05-01..2013-06-01 or a file')


def _date(text: str) -> datetime | None:
    if not text:
        return None
    return unstamp(f"{text}-01" if re.fullmatch(r"\d{4}-\d{2}", text) else text)


def _against(
    project: Project, config: ModelConfig, rows: pl.DataFrame, against: str, version: Version, worker: Worker | None
) -> tuple[pl.DataFrame, pl.Series | None, str]:
    release = project.store.records.get(Release, config.name)
    if against == "champion" and release is None:
        against = "logged"
    if against == "logged" and "status" not in rows.columns:
        raise PalanError("nothing was ever answered for the rows of a file", f"palan replay {version.ref} --against {config.name}@1")
    if against != "logged":
        other = packages.find_version(project, release.champion.version if against == "champion" and release else against)
        outputs, losses = _of(project, other, rows)
        return outputs, losses, other.ref
    names = output_columns(rows, version)
    logged = rows.select(names).rename({name: name.removeprefix("output.") for name in names})
    return logged, losses_of(worker or packages.warm_worker(project, version), logged, rows["outcome"]), "logged"


def output_columns(rows: pl.DataFrame, version: Version) -> list[str]:
    """Return the columns of the log that hold what was answered."""
    inputs = set(history.schema_of(version.manifest).names)
    first = rows.columns.index("status") + 1
    return [name for name in rows.columns[first : rows.columns.index("degraded")] if name not in inputs and not name.startswith("input.")]


def _of(project: Project, version: Version, rows: pl.DataFrame, worker: Worker | None = None) -> tuple[pl.DataFrame, pl.Series | None]:
    release = project.store.records.get(Release, version.model)
    found = answer(worker or packages.warm_worker(project, version), version, rows, release.repairs if release else ())
    return found.outputs, found.losses


def answer(worker: Worker, version: Version, rows: pl.DataFrame, repairs: Sequence[Repair] = ()) -> Answered:
    """Let a worker answer recorded rows, put right by `repairs`, and score them where the outcome is known.

    Raises:
        PalanError: the version needs a column that the recorded callers did not send.
    """
    outputs = worker.decide(inputs_of(version, rows, repairs))
    return Answered(outputs, losses_of(worker, outputs, rows["outcome"]) if "outcome" in rows.columns else None)


def inputs_of(version: Version, rows: pl.DataFrame, repairs: Sequence[Repair] = ()) -> pl.DataFrame:
    """Return what a version takes of recorded rows, under its own names, put right by `repairs`.

    Raises:
        PalanError: a column was not recorded.
    """
    import polars as pl

    names = history.schema_of(version.manifest).names
    # The log calls an input that has the name of one of its own columns "input.NAME".
    found = {name: f"input.{name}" if f"input.{name}" in rows.columns else name for name in names}
    missing = [name for name, column in found.items() if column not in rows.columns]
    if missing:
        raise PalanError(f"{version.ref} needs the column {missing[0]}, which these decisions were made without", f"palan check {version.ref} --against {version.model}@1, or replay a file of rows: --on rows.csv")
    at = "palan_time"
    inputs = rows.select(pl.col("time").alias(at), *(pl.col(column).alias(name) for name, column in found.items()))
    return tables.repaired(inputs, repairs, at).select(names)


def losses_of(worker: Worker, outputs: pl.DataFrame, outcomes: pl.Series) -> pl.Series | None:
    """Return the loss of each row, null where the outcome is not known; None where nothing can be scored."""
    import polars as pl

    # A row that got no answer has no loss, whatever became of it.
    known = outcomes.is_not_null() & outputs.select(pl.any_horizontal(pl.all().is_not_null())).to_series()
    if "score" not in worker.verbs or not known.any():
        return None
    scores = pl.Series(worker.score(outputs.filter(known), outcomes.filter(known)), dtype=pl.Float64)
    places = known.arg_true()
    empty = pl.Series("loss", [None] * outcomes.len(), dtype=pl.Float64)
    return empty.scatter(places, scores)


@contextmanager
def learnt_until(
    project: Project,
    journal: Journal,
    version: Version,
    until: datetime,
    *,
    since: datetime | None = None,
    params: Any = None,
    repairs: Sequence[Repair] = (),
) -> Iterator[Worker]:
    """Lend a worker with the version's own code that has learnt only from rows before `until`: its twin.

    A version that never saw a row from `until` on is its own twin; a model without fit() always is.
    """
    from palan.engines.lanes import Worker
    from palan.flows import pasts
    from palan.flows.build import fit

    manifest = version.manifest
    own = params is None and since is None and not repairs
    seen = manifest["data"].get("until", "")
    if "fit" not in manifest["verbs"] or (own and seen and seen < stamp(until)):
        yield packages.warm_worker(project, version)
        return
    config = project.model(version.model)
    data = tables.current(project, config.data, journal)
    known = pasts.sources(project, journal, pasts.of(manifest))
    merged = {**manifest["params"], **(params or {})}
    if own and manifest["data"]["since"]:
        since = unstamp(manifest["data"]["since"])
    folder = packages.unpack(project, digest_of(manifest["code"]), manifest["code"])
    opening: dict[str, Any] = {
        "kind": config.kind,
        "params": merged,
        "inputs": config.inputs,
        "outcome": manifest["outcome"],
        "features": packages.prepared_of(manifest),
    }
    parts = {
        "code": manifest["closure"],
        "params": merged,
        "data": data.id,
        "since": stamp(since) if since else "",
        "until": stamp(until),
        "logged": sum(len(each.values) for each in history.outcomes(project, version.model)),
        "repairs": digest_of(repairs),
        "seed": manifest["seed"],
        **({"pasts": pasts.ids(known)} if known else {}),
    }
    with Worker(folder, manifest["entry"], **opening) as worker:
        fresh: list[bool] = []

        def work() -> dict[str, Any]:
            fresh.append(True)
            return fit(project, version.model, worker, data, repairs, known, since=since, until=until, seed=manifest["seed"])

        learnt = journal.step(f"fit {version.model} until {until:%Y-%m-%d}", parts, work)
        if not fresh:
            worker.restore({name: project.store.blobs.get(blob) for name, blob in learnt["state"].items()})
        yield worker


def _replay_instances(project: Project, config: ModelConfig, version: Version, on: str, against: str) -> dict[str, Any]:
    last, since, until = window(on, project)
    logged = history.decisions(project, config.name, since=since, until=until)[-(last or SOLVES) :][-SOLVES:]
    if not logged:
        raise NotFound(f"no decision of {config.name} was logged in {on}", f"palan decide {config.name} --input instance.json")
    release = project.store.records.get(Release, config.name)
    other = None
    if against != "logged" and (release or against != "champion"):
        other = packages.find_version(project, release.champion.version if against == "champion" and release else against)
    results = solve_all(project, version, config, logged)
    others = solve_all(project, other, config, logged) if other and other.id != version.id else None
    from palan.gates import rules

    before = [each.output for each in others] if others else [each.outputs for each in logged]
    finding = rules.decision_diff(before, [each.output for each in results], keys=[each.id for each in logged])
    was = [each.objective for each in others] if others else [each.result.get("objective") for each in logged]
    return {
        "version": _name(version),
        "against": other.ref if other and others else "logged",
        "on": on,
        "rows": len(logged),
        **finding.figures,
        "objectives": [
            {"decision": each.id, "before": old, "after": new.objective, "status": new.status, "seconds": new.seconds}
            for each, old, new in zip(logged, was, results, strict=True)
        ],
        "text": finding.text,
    }


def solve_all(project: Project, version: Version, config: ModelConfig, logged: Sequence[Decision]) -> list[Result]:
    """Let a version solve recorded instances again, under the model's own time limit and seed."""
    limit = config.time_limit.total_seconds() if config.time_limit else None
    with packages.open_worker(project, version) as worker:
        return [worker.solve(each.inputs, seed=version.manifest["seed"], time_limit=limit) for each in logged]
