"""`palan check`: judge a version by its gates, and keep the evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from palan.core import Version, new_id, stamp
from palan.errors import ModelFailed, PalanError
from palan.flows import build as builds
from palan.flows import history, packages, replay, tables
from palan.flows.config import ModelConfig
from palan.flows.journal import Journal, running
from palan.flows.log import evidence_digest
from palan.flows.project import Project, record
from palan.gates.nouns import Evidence, Finding
from palan.models.contract import SHAPE, Kind
from palan.releases.nouns import Release
from palan.runs import names as reserved

if TYPE_CHECKING:
    import polars as pl

    from palan.engines.lanes import Worker
    from palan.gates.spec import GateSpec
    from palan.models.contract import Result

DEFAULTS: Mapping[Kind, tuple[str, ...]] = {
    "estimator": ("schema_compatible", "golden", "champion", "latency 100ms", "decision_diff most=100%"),
    "rules": ("schema_compatible", "golden", "table_checks", "latency 100ms", "decision_diff most=100%"),
    "policy": ("schema_compatible", "beats_baselines", "latency 100ms"),
    "program": ("schema_compatible", "feasibility", "bound_sane", "champion", "latency", "decision_diff most=100%"),
    "heuristic": ("schema_compatible", "feasibility", "champion", "latency", "decision_diff most=100%"),
}
"""What holds where palan.toml names no gates."""

RECENT = 2000
EPISODES = 200
TIMED, WARM, ROUNDS = 60, 5, 3
"""Answers that are timed in one round, those before them that warm the worker up, and rounds until one is in time."""


def check(project: Project, model: str, *, against: str = "champion") -> dict[str, Any]:
    """Judge a version ("delay", "delay@3"; without a number the latest) by the model's gates against the champion.

    Returns {"version", "against", "verdict": pass | fail | cannot tell, "findings": [...], "next"}; each finding is kept
    as evidence with the version. "cannot tell" is no pass: it says what was missing.

    Raises:
        NotFound: no such model or version.
        PalanError: a gate that palan.toml spells wrongly.
    """
    name, _, number = model.partition("@")
    config = project.model(name)
    version = packages.find_version(project, model if number else f"{name}@latest")
    with running(project, "check", version.ref, wait=30) as journal:
        findings, other = judge(project, config, version, journal, against=against)
        verdict = keep(project, version, other, findings)
    return {
        "version": version.ref,
        "against": other.ref if other else "",
        "verdict": verdict,
        "findings": [
            {"gate": each.gate, "verdict": each.verdict, "text": each.text, "figures": dict(each.figures)} for each in findings
        ],
        "next": _next(project, version, verdict),
    }


def _next(project: Project, version: Version, verdict: str) -> str:
    if _is_champion(project, version):
        return f"palan build {version.model}" if packages.edited(project, version) else ""
    return f"palan release {version.ref}" if verdict == "pass" else ""


def _is_champion(project: Project, version: Version) -> bool:
    release = project.store.records.get(Release, version.model)
    return release is not None and release.champion.version == version.ref


def overall(findings: Sequence[Finding]) -> str:
    """fail when any gate fails, pass when all that could be judged pass and at least one could, else cannot tell."""
    verdicts = {each.verdict for each in findings}
    if "fail" in verdicts:
        return "fail"
    return "pass" if "pass" in verdicts else "cannot tell"


def keep(project: Project, version: Version, other: Version | None, findings: Sequence[Finding]) -> str:
    """Write each finding down with the version that it judged, and all of them into the ledger; return the verdict."""
    now = project.clock()
    verdict, against = overall(findings), other.ref if other else ""
    told = ", ".join(f"{each.gate} {each.verdict}" for each in findings)
    evidence = [Evidence(new_id(now), version.ref, against, each.gate, each.verdict, each.text, each.figures, now) for each in findings]
    with project.store.records.transaction(durable=True):
        for each in evidence:
            project.store.records.add(each)
        record(project, "checked", version.ref, f"{verdict}: {told}", against=against, evidence={each.id: evidence_digest(each) for each in evidence})
    return verdict


class _Bench(msgspec.Struct):
    """What the gates of one check share: instances are solved once, workers stay warm."""

    project: Project
    config: ModelConfig
    version: Version
    champion: Version | None
    journal: Journal
    _solved: dict[str, dict[str, Result]] = {}
    fired: set[Any] = set()

    def worker(self, version: Version) -> Worker:
        return packages.warm_worker(self.project, version)

    def recent(self) -> pl.DataFrame:
        """The last decisions that were logged; rows of the model's data while there are none."""
        logged = replay.looked_up(self.project, self.version, history.frame(self.project, self.config.name, history.schema_of(self.version.manifest)).tail(RECENT))
        return logged if self.takes(logged) or not self.config.data else self.reference().tail(RECENT)

    def takes(self, logged: pl.DataFrame) -> bool:
        """Tell whether there are logged rows that hold everything this version takes: callers may not send a new column yet."""
        return logged.height > 0 and all(name in logged.columns for name in history.schema_of(self.version.manifest).names)

    def reference(self) -> pl.DataFrame:
        """Rows of the model's data in the shape of the log."""
        import polars as pl

        from palan.data.verdict import read_time
        from palan.flows import pasts

        data = tables.current(self.project, self.config.data, self.journal)
        rows = tables.training(self.project, self.config.name, data)
        time = tables.contract_of(self.project, self.config.data).time
        looked = pasts.of(self.version.manifest)
        rows = pasts.with_pasts(self.project, rows, time, looked, pasts.sources(self.project, self.journal, looked))
        names = history.schema_of(self.version.manifest).names
        return rows.select(
            *names,
            id=pl.int_range(pl.len()).cast(pl.String),
            key=pl.col(self.config.key).cast(pl.String) if self.config.key else pl.lit(None, pl.String),
            time=read_time(time, rows.schema[time]) if time else pl.lit(self.project.clock()),
            outcome=pl.col(self.config.outcome) if self.config.outcome else pl.lit(None),
        ).sort("time")

    def note_rules(self, outputs: pl.DataFrame) -> None:
        """Note which rules fired in answers of the version that is judged."""
        from palan.models.table import FIRED

        if self.version.kind == "rules" and FIRED in outputs.columns:
            rules = outputs[FIRED]
            self.fired.update((rules.explode() if rules.dtype.is_nested() else rules).drop_nulls())

    def solved(self, version: Version) -> dict[str, Result]:
        if version.id not in self._solved:
            limit = self.config.time_limit.total_seconds() if self.config.time_limit else None
            worker = self.worker(version)
            documents = builds.instances(self.project, self.config)
            self._solved[version.id] = {
                name: worker.solve(document, seed=version.manifest["seed"], time_limit=limit) for name, document in documents.items()
            }
        return self._solved[version.id]

    def solved_already(self, version: Version) -> dict[str, Result]:
        """Return what the gates had solved; nothing is solved for this."""
        return self._solved.get(version.id, {})


def judge(
    project: Project, config: ModelConfig, version: Version, journal: Journal, *, against: str = "champion"
) -> tuple[list[Finding], Version | None]:
    """Run the gates and return what each found, and the version that it was compared with."""
    from palan.gates.spec import parse

    kind: Kind = version.kind  # type: ignore[assignment]
    specs = [parse(text) for text in config.gates or DEFAULTS[kind]]
    other = _other(project, config, version, against)
    bench = _Bench(project, config, version, other, journal)
    findings = [*_suspected(bench), *_features(bench)]
    for spec in specs:
        try:
            found = GATES[spec.name](bench, spec)
        except ModelFailed as error:
            found = Finding(spec.name, "fail", f"it could not be judged: {error.what}")
        if found is not None:
            project.tell(f"{version.ref} {found.gate}: {found.verdict}: {found.text}")
            findings.append(found)
    if journal.run.flow == "check":
        journal.note(**_told(bench, findings))
    return findings, other


def _told(bench: _Bench, findings: Sequence[Finding]) -> dict[str, dict[str, Any]]:
    """Return what was seen of the version under the names that mean the same in every run."""
    version = bench.version
    params: dict[str, Any] = {reserved.SEED: version.manifest["seed"]} if version.kind in ("program", "heuristic", "policy") else {}
    metrics: dict[str, float] = {}
    tags: dict[str, str] = {}
    if results := bench.solved_already(version):
        # Of several instances: the means, the widest gap, and every status that there was.
        each = [reserved.of_a_solve(result.objective, result.bound, len(result.incumbents)) for result in results.values()]
        for name, of in ((reserved.OBJECTIVE, fmean), (reserved.BOUND, fmean), (reserved.GAP, max), (reserved.INCUMBENTS, sum)):
            if values := [one[name] for one in each if name in one]:
                metrics[name] = float(of(values))
        tags[reserved.STATUS] = ", ".join(sorted({result.status for result in results.values()}))
        if solvers := sorted({str(result.evidence["solver"]) for result in results.values() if "solver" in result.evidence}):
            tags[reserved.SOLVER] = ", ".join(solvers)
        params[reserved.INSTANCE] = next(iter(results)) if len(results) == 1 else f"{len(results)} instances"
    if bench.fired:
        metrics[reserved.RULES_FIRED] = float(len(bench.fired))
    for found in findings:
        if found.figures.get("return") is not None:
            metrics[reserved.RETURN] = float(found.figures["return"])
    return {"params": params, "metrics": metrics, "tags": {**bench.journal.run.tags, **tags}}


def _suspected(bench: _Bench) -> list[Finding]:
    """Refuse a version that learnt from rows that the data doctor suspects, and that nothing puts right: no comparison on
    such rows can be trusted."""
    learnt = bench.version.manifest["data"]
    if not bench.config.data or not learnt.get("until"):
        return []
    found = [each for each in tables.suspicions(bench.project, bench.config.data, repairs=_repairs(bench)) if stamp(each.since) <= learnt["until"]]
    if not found:
        return []
    text = "; ".join(each.text for each in found[:3])
    return [Finding("data", "fail", f"it learnt from rows that are suspect: {text}", {"suspicions": len(found), "command": f"palan why {bench.config.data}"})]


def _features(bench: _Bench) -> list[Finding]:
    """Replay recorded rows both ways: what is learnt from as a batch is what is asked for one row."""
    if "features" not in bench.version.manifest:
        return []
    recent = bench.recent()
    rows = replay.inputs_of(bench.version, recent)
    found = bench.worker(bench.version).parity(rows)
    count, first = found["different"], next(iter(found["shown"]), None)
    if first is None:
        if not rows.height:
            return [Finding("features", "cannot tell", "there are no rows to compare on")]
        same = f"{found['values']:,} values of features are the same as a batch and for one row"
        return [_late(bench, recent, rows) or Finding("features", "pass", same, {"values": found["values"]})]
    text = f"{count:,} of {found['values']:,} values of features are others for one row than in a batch: {first['feature']} of row {first['row'] + 1} is {first['one']}, in the batch {first['batch']}"
    return [Finding("features", "fail", text, found)]


def _late(bench: _Bench, recent: pl.DataFrame, rows: pl.DataFrame) -> Finding | None:
    """Refuse a version that learns from what is not known yet when it decides: what was looked up then is not what the tables tell of that time now."""
    from palan.flows import pasts

    looked = pasts.of(bench.version.manifest)
    if not looked or "status" not in recent.columns:  # nothing is looked up, or nothing was decided with it yet
        return None
    was = rows.select([each.name for each in looked])
    count = pasts.differences(was, pasts.looked_up_now(bench.project, bench.config, recent, looked))
    name, most = max(count.items(), key=lambda each: each[1], default=("", 0))
    if most <= LATE * rows.height:
        return None
    past = next(each.past for each in looked if each.name == name)
    text = f"{name} was another value in {most:,} of {rows.height:,} decisions than {past.table} tells of that time now: its rows become known later than {past.time} says"
    return Finding("features", "fail", text, {"late": count, "rows": rows.height})


def _other(project: Project, config: ModelConfig, version: Version, against: str) -> Version | None:
    if against != "champion":
        return packages.find_version(project, against)
    release = project.store.records.get(Release, config.name)
    if release is None or release.champion.version == version.ref:
        return None
    return packages.find_version(project, release.champion.version)


def _champion(bench: _Bench, spec: GateSpec) -> Finding | None:
    from palan.gates import rules

    if bench.champion is None:
        return Finding("champion", "cannot tell", _alone(bench.project, bench.version))
    if SHAPE[bench.version.kind] == "instance":
        ours, theirs = bench.solved(bench.version), bench.solved(bench.champion)
        pairs = [(_cost(ours[name]), _cost(theirs[name])) for name in ours]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if lost := [name for name in ours if ours[name].output is None and theirs[name].output is not None]:
            shown = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
            return Finding("champion", "fail", f"it has no plan where {bench.champion.ref} has one: {shown}", {"lost": lost})
        if not known:
            return Finding("champion", "cannot tell", _incomparable(bench, ours, theirs))
        return rules.champion([a for a, _ in known], [b for _, b in known], margin=spec.options.get("margin", 0.0))
    if "score" not in bench.version.manifest["verbs"]:
        return Finding("champion", "cannot tell", "the model has no score(), so its decisions have no loss")
    rows = held_back(bench)
    if not rows.height:
        return Finding("champion", "cannot tell", "no outcome is known to compare on")
    first = rows["time"].min()
    losses = []
    for version in (bench.version, bench.champion):
        try:
            with replay.learnt_until(bench.project, bench.journal, version, first) as worker:  # type: ignore[arg-type]
                losses.append(replay.answer(worker, version, rows, _repairs(bench)).losses)
        except PalanError as error:
            if version.id != bench.champion.id:
                raise
            return Finding("champion", "cannot tell", f"the champion cannot answer these rows: {error.what}")
    candidate, champion = losses
    if candidate is None or champion is None:
        return Finding("champion", "cannot tell", "no outcome is known to compare on")
    segments = {name: rows[name].to_list() for name in bench.config.segments if name in rows.columns}
    return rules.champion(
        candidate.to_numpy(),
        champion.to_numpy(),
        margin=spec.options.get("margin", 0.0),
        confidence=spec.options.get("confidence", 0.95),
        days=rows["time"].dt.date().to_list(),
        segments=segments,
    )


def _alone(project: Project, version: Version) -> str:
    """Say why there is nothing to compare a version with; what was edited since it was built is not in it."""
    if not _is_champion(project, version):
        return "there is no champion to compare with yet"
    edits = packages.edited(project, version)
    shown = ", ".join(edits[:3]) + (f" and {len(edits) - 3} more" if len(edits) > 3 else "")
    return f"{version.ref} is the champion itself" + (f"; {shown} was edited since, and is not built yet" if edits else ": build what is to be compared with it")


def _incomparable(bench: _Bench, ours: Mapping[str, Result], theirs: Mapping[str, Result]) -> str:
    """Say why no instance has an objective of both: one of them tells none of its plans, or they solve different ones."""
    if _silent(ours):
        return f"{bench.version.ref} reports no objective: give it objective(instance, plan)"
    if _silent(theirs):
        return f"the champion {bench.champion.ref if bench.champion else ''} reports no objective: what is released after {bench.version.ref} can be compared with it"
    return "no instance that both solve"


def _silent(results: Mapping[str, Result]) -> bool:
    return any(each.output is not None and each.objective is None for each in results.values())


def _cost(result: Result) -> float | None:
    if result.objective is None:
        return None
    return -result.objective if result.sense == "maximize" else result.objective


def _repairs(bench: _Bench) -> Any:
    release = bench.project.store.records.get(Release, bench.config.name)
    return release.repairs if release else ()


def held_back(bench: _Bench) -> pl.DataFrame:
    """Return the newest rows with a known outcome, over the model's `holdout`: from the log, else from its data."""
    import polars as pl

    rows = history.frame(bench.project, bench.config.name, history.schema_of(bench.version.manifest))
    known = rows.filter(pl.col("outcome").is_not_null()) if rows.height else rows
    if (known.height < 100 or not bench.takes(known)) and bench.config.data and bench.config.outcome:
        known = bench.reference().filter(pl.col("outcome").is_not_null())
    if not known.height:
        return known
    for each in filter(None, (bench.version, bench.champion)):
        known = replay.looked_up(bench.project, each, known)
    newest: Any = known["time"].max()
    return known.filter(pl.col("time") > newest - bench.config.react.holdout)


def _golden(bench: _Bench, spec: GateSpec) -> Finding | None:
    from palan.data.inputs import Inputs, to_frame
    from palan.gates import rules

    cases = builds.golden_cases(bench.project, bench.config)
    if not cases:
        return rules.golden([], []) if bench.config.gates else None
    worker = bench.worker(bench.version)
    if SHAPE[bench.version.kind] == "instance":
        return rules.golden(cases, [worker.solve(case["input"]).output for case in cases])
    schema = history.schema_of(bench.version.manifest)
    try:
        asked = Inputs(schema).take([{name: case["input"].get(name) for name in schema.names} for case in cases])
        outputs: pl.DataFrame = worker.decide(to_frame(asked.columns, schema))
    except PalanError as error:
        return Finding("golden", "fail", f"the golden cases cannot be decided: {error.what}")
    bench.note_rules(outputs)
    got = outputs["output"].to_list() if outputs.columns == ["output"] else outputs.to_dicts()
    return rules.golden(cases, got)


def _latency(bench: _Bench, spec: GateSpec) -> Finding | None:
    from palan.gates import rules

    if SHAPE[bench.version.kind] == "instance":
        limit = spec.options.get("limit") or (
            bench.config.time_limit.total_seconds() * 1.1 + 0.5 if bench.config.time_limit else 60.0
        )
        return rules.latency([each.seconds for each in bench.solved(bench.version).values()], limit)
    rows = bench.recent()
    if not rows.height:
        return Finding("latency", "cannot tell", "no rows to time")
    inputs = replay.inputs_of(bench.version, rows)
    worker = bench.worker(bench.version)
    limit, found = spec.options.get("limit", 0.1), []
    for turn in range(ROUNDS):  # a machine that is busy for a moment slows one round, a slow model all of them
        seconds = []
        for index in range(TIMED + (0 if turn else WARM)):
            row = inputs[index % rows.height]
            started = perf_counter()
            queued = worker.queued()  # what others do on this machine is no fault of the model
            answered = worker.decide(row)
            queued = worker.queued() - queued
            seconds.append(perf_counter() - started - queued)
            bench.note_rules(answered)
        found.append(rules.latency(seconds[-TIMED:], limit))
        if found[-1].verdict == "pass":
            return found[-1]
    return min(found, key=lambda each: each.figures["p95"])


def _schema(bench: _Bench, spec: GateSpec) -> Finding | None:
    from palan.gates import rules

    if bench.champion is None:
        return None
    return rules.schema_compatible(history.sent_schema(bench.champion.manifest), history.sent_schema(bench.version.manifest))


def _diff(bench: _Bench, spec: GateSpec) -> Finding | None:
    from palan.gates import rules

    if bench.champion is None:
        return None
    most, tolerance = spec.options.get("most"), spec.options.get("tolerance", 1e-9)
    if SHAPE[bench.version.kind] == "instance":
        ours, theirs = bench.solved(bench.version), bench.solved(bench.champion)
        plans = [[each[name].output for name in ours] for each in (theirs, ours)]
        return rules.decision_diff(*plans, keys=list(ours), what="instances", most=most, tolerance=tolerance)
    rows = bench.recent()
    if not rows.height:
        return Finding("decision_diff", "cannot tell", "no decision was logged yet")
    asked, repairs = rows.drop("outcome"), _repairs(bench)
    try:
        old = replay.answer(bench.worker(bench.champion), bench.champion, asked, repairs).outputs
    except PalanError as error:
        return Finding("decision_diff", "cannot tell", f"the champion cannot answer these rows: {error.what}")
    new = replay.answer(bench.worker(bench.version), bench.version, asked, repairs).outputs
    bench.note_rules(new)
    keys = rows["key"].fill_null(rows["id"]).to_list()
    return rules.decision_diff(old, new, keys=keys, most=most, tolerance=tolerance)


def _feasibility(bench: _Bench, spec: GateSpec) -> Finding | None:
    from palan.gates import rules

    return rules.feasibility({name: each.violations for name, each in bench.solved(bench.version).items()})


def _bound(bench: _Bench, spec: GateSpec) -> Finding | None:
    from palan.gates import rules

    found = [
        rules.bound_sane(each.objective, each.bound, each.sense, **spec.options) for each in bench.solved(bench.version).values()
    ]
    rank = {"fail": 0, "cannot tell": 1, "pass": 2}
    return min(found, key=lambda each: rank[each.verdict]) if found else Finding("bound_sane", "cannot tell", "no instance was solved")


def _table(bench: _Bench, spec: GateSpec) -> Finding | None:
    from palan.gates import rules

    if "table" not in bench.version.manifest["verbs"]:
        return Finding("table_checks", "cannot tell", "these rules are code, not a table that can be read") if bench.config.gates else None
    return rules.table_checks(bench.worker(bench.version).table(history.schema_of(bench.version.manifest)))


def _baselines(bench: _Bench, spec: GateSpec) -> Finding | None:
    from palan.gates import rules

    if "evaluate" not in bench.version.manifest["verbs"]:
        return Finding("beats_baselines", "cannot tell", "the policy has no environment() to be judged in")
    returns = bench.worker(bench.version).evaluate(EPISODES, seed=bench.version.manifest["seed"])
    own = returns.pop("policy")
    return rules.beats_baselines(own, returns, **spec.options)


LATE = 0.05
"""The share of decisions for which something may have been looked up that the tables tell otherwise later: corrections, late rows."""

GATES: Mapping[str, Callable[[_Bench, GateSpec], Finding | None]] = {
    "champion": _champion,
    "golden": _golden,
    "feasibility": _feasibility,
    "bound_sane": _bound,
    "latency": _latency,
    "decision_diff": _diff,
    "schema_compatible": _schema,
    "table_checks": _table,
    "beats_baselines": _baselines,
}
"""Gate name -> how its figures are gathered. A gate that has nothing to judge (no champion yet) returns None."""

