"""Answer: validate, repair, route, ask the version's worker, check, write to the log, and only then answer."""

from __future__ import annotations

import asyncio
import queue
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from palan.core import Field, Schema, Version, new_id
from palan.data import repair
from palan.data.inputs import Inputs, Request, check_value, to_frame
from palan.decisions import log
from palan.decisions.nouns import Decision, Outcome
from palan.errors import Busy, Invalid, ModelFailed, NotFound, PalanError, nearest
from palan.flows.config import ModelConfig
from palan.flows.packages import find_version, open_worker
from palan.flows.project import Project
from palan.models.contract import SHAPE, Incumbent, Kind, Result, Violation
from palan.releases.nouns import Arm, Release
from palan.releases.route import Route, route

if TYPE_CHECKING:
    import polars as pl

    from palan.engines.lanes import Worker

POLL_SECONDS = 0.5
"""How often a release that another process changed is looked for."""

WAITING = 128
"""Requests of one model that may wait for its worker; the next one is told to come again."""

_FAILURES = ("error", "licence", "timeout", "no_solution", "cancelled")
"""Verdicts that say nothing about the instance itself, so that another model may still answer it."""


@dataclass(slots=True)
class Lane:
    """One version, warm in a worker of its own. It is closed when it is retired and nobody uses it any more."""

    version: Version
    schema: Schema
    worker: Worker
    users: int = 0
    retired: bool = False


@dataclass(frozen=True, slots=True)
class Serving:
    """What answers for one model from now on: swapped as one reference, so every request sees one release whole."""

    config: ModelConfig
    release: Release
    inputs: Inputs
    lanes: Mapping[str, Lane]
    time: str  # the event time column, for repairs

    @property
    def champion(self) -> Lane:
        return self.lanes[self.release.champion.version]


@dataclass(frozen=True, slots=True)
class _Answered:
    """What one part of a request came to."""

    version: str
    status: str
    outputs: Any = None
    violations: tuple[Violation, ...] = ()
    result: Mapping[str, Any] = field(default_factory=dict)
    degraded: str = ""
    seconds: float = 0.0
    error: ModelFailed | None = None


class Deciders:
    """Every released model of a project, warm. Safe to use from many threads."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.trouble: dict[str, str] = {}
        self.shed: dict[str, int] = defaultdict(int)  # shadow answers that were given up, a model
        self._serving: dict[str, Serving] = {}
        self._lock = threading.Lock()  # guards users and retired of lanes, and the counts below
        self._refreshing = threading.Lock()
        self._waiting: dict[str, int] = defaultdict(int)
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._shadows: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=256)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    # -- following the releases --

    @property
    def models(self) -> dict[str, Serving]:
        """The models that are served now, by name."""
        return dict(self._serving)

    def refresh(self, model: str = "", *, needed: Callable[[str], bool] | None = None) -> None:
        """Serve what is released now. New versions are warm before they take over; old ones finish what they began.

        A version that cannot be opened changes nothing: what was served stays, and `trouble` says why.
        """
        with self._refreshing:
            releases = self.project.store.records.find(Release, **({"model": model} if model else {}))
            changed = [each for each in releases if each.model in self.project.config.models and (needed is None or needed(each.model)) and self._is_news(each)]
            if not changed:
                return
            with ThreadPoolExecutor(max_workers=2, thread_name_prefix="warm") as pool:
                for release, error in zip(changed, pool.map(self._load, changed), strict=True):
                    if error is None:
                        self.trouble.pop(release.model, None)
                    else:
                        self.trouble[release.model] = error

    def follow(self) -> None:
        """Serve every release, and each change of one within a second, until `close`."""
        self.refresh()
        for target, name in ((self._follow, "follow releases"), (self._answer_shadows, "shadows")):
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Let requests under way end, then end the workers."""
        self._stop.set()
        if self._threads:
            self._shadows.put(None)
        for pool in self._pools.values():
            pool.shutdown(wait=True)
        for thread in self._threads:
            thread.join(timeout=10)
        for serving in self._serving.values():
            self._retire(serving.lanes.values())
        self._serving = {}

    def _is_news(self, release: Release) -> bool:
        known = self._serving.get(release.model)
        return known is None or known.release != release

    def _follow(self) -> None:
        tried: dict[str, tuple[Release, float]] = {}

        def again(model: str) -> bool:
            # What failed to open is tried again every ten seconds, or at once when the release changes.
            release = self.project.store.records.get(Release, model)
            before, when = tried.get(model, (None, 0.0))
            if before == release and model in self.trouble and time.monotonic() - when < 10:
                return False
            if release:
                tried[model] = (release, time.monotonic())
            return True

        while not self._stop.wait(POLL_SECONDS):
            try:
                self.refresh(needed=again)
            except PalanError as error:
                self.project.tell(f"releases could not be read: {error.what}")

    def _load(self, release: Release) -> str | None:
        known = self._serving.get(release.model)
        config = self.project.model(release.model)
        lanes: dict[str, Lane] = {}
        opened: list[Lane] = []
        try:
            for arm in release.arms:
                kept = known.lanes.get(arm.version) if known else None
                if kept is None:
                    version = find_version(self.project, arm.version)
                    kept = Lane(version, signature(version), open_worker(self.project, version))
                    opened.append(kept)
                lanes[arm.version] = kept
        except PalanError as error:
            for lane in opened:
                lane.worker.close()
            self.project.tell(f"{release.model}: {error.what}")
            return error.what
        champion = lanes[release.champion.version]
        schema = _widened(champion.schema, [lane.schema for lane in lanes.values()])
        inputs = known.inputs if known and known.inputs.schema == schema else Inputs(schema, key=config.key)
        data = self.project.config.data.get(config.data)
        self._serving[release.model] = Serving(config, release, inputs, lanes, data.time if data else "")
        if known:
            self._retire(lane for ref, lane in known.lanes.items() if ref not in lanes)
        return None

    def _retire(self, lanes: Any) -> None:
        with self._lock:
            idle = []
            for lane in lanes:
                lane.retired = True
                if lane.users == 0:
                    idle.append(lane)
        for lane in idle:
            lane.worker.close()

    # -- answering --

    async def answer(self, model: str, body: bytes, *, caller: str = "") -> dict[str, Any]:
        """Answer one request body in a thread of its model's own, so that a slow model delays no other.

        Raises:
            NotFound: the model is unknown or not released.
            Invalid: the input does not fit; `field`, `value` and reason say where.
            Busy: too many requests wait for this model already.
            ModelFailed: neither the version nor its fallbacks answered.
        """
        return await self._in_pool(model, lambda: self.decide(model, body, caller=caller))

    async def answer_value(self, model: str, value: Any, keys: Sequence[str] | None = None, *, caller: str = "") -> dict[str, Any]:
        """Answer Python values, as `answer` does for a body."""
        return await self._in_pool(model, lambda: self.decide(model, value=value, keys=keys, caller=caller))

    async def _in_pool(self, model: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        self._find(model)
        with self._lock:
            if self._waiting[model] >= WAITING:
                raise Busy(f"{WAITING} requests wait for {model} already", "try again in a second")
            self._waiting[model] += 1
            pool = self._pools.get(model)
            if pool is None:
                pool = self._pools[model] = ThreadPoolExecutor(max_workers=4, thread_name_prefix=f"decide {model}")
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        finally:
            with self._lock:
                self._waiting[model] -= 1

    def decide(self, model: str, body: bytes = b"", *, value: Any = None, keys: Sequence[str] | None = None, caller: str = "") -> dict[str, Any]:
        """Answer a JSON body, or Python values: rows (a DataFrame, dicts, columns) or one instance.

        Raises: as `answer`.
        """
        serving = self._find(model)
        request = serving.inputs.read(body) if value is None else serving.inputs.take(value, keys)
        if SHAPE[_kind(serving.champion.version)] == "instance":
            return self._decide_instance(serving, request, caller)
        return self._decide_rows(serving, request, caller)

    def _find(self, model: str) -> Serving:
        serving = self._serving.get(model)
        if serving is None:
            self.project.model(model)
            if model in self.trouble:
                raise Busy(f"{model} cannot be served: {self.trouble[model]}", f"palan status {model}")
            raise NotFound(f"{model} is not released", f"palan release {model}")
        return serving

    def _decide_rows(self, serving: Serving, request: Request, caller: str) -> dict[str, Any]:
        now = self.project.clock()
        id = new_id(now)
        frame = to_frame(request.columns, serving.inputs.schema)
        repaired = _repaired(frame, serving, now)
        decisions: list[Decision] = []
        ids = [""] * request.rows
        parts = _parts(serving.release, request, id)
        for number, (way, rows) in enumerate(parts):
            # The first part carries the request's id; further ones, answered by another arm, their own.
            name = id if number == 0 else new_id(now)
            whole = len(rows) == request.rows
            answered = self._ask(serving, way.arm, lambda lane, rows=rows, whole=whole: _ask_rows(lane, repaired if whole else repaired[rows]))
            decisions.append(
                Decision(
                    id=name,
                    time=now,
                    model=serving.config.name,
                    version=answered.version,
                    epoch=serving.release.epoch,
                    arm=way.arm.role,
                    propensity=way.propensity,
                    rows=len(rows),
                    # What was sent, not what was repaired: the log must be able to tell when a feed is right again.
                    inputs=dict(request.columns) if whole else {column: [values[row] for row in rows] for column, values in request.columns.items()},
                    outputs=answered.outputs,
                    keys=None if request.keys is None else [request.keys[row] for row in rows],
                    status=answered.status,
                    seconds=answered.seconds,
                    violations=_plain_violations(answered.violations),
                    degraded=answered.degraded,
                    caller=caller,
                )
            )
            for place, row in enumerate(rows):
                ids[row] = f"{name}-{place}"
            if answered.error:
                self._log(serving, decisions)
                raise answered.error
        self._log(serving, decisions)
        for arm in parts[0][0].shadows:
            self._shadow(serving, decisions[0], arm, lambda lane: _ask_rows(lane, repaired), request)
        return _rows_answer(request, decisions, [rows for _, rows in parts], ids)

    def _decide_instance(self, serving: Serving, request: Request, caller: str) -> dict[str, Any]:
        now = self.project.clock()
        id = new_id(now)
        way = route(serving.release, request.keys[0] if request.keys else id)
        answered = self._ask(serving, way.arm, lambda lane: solve(lane.worker, request.instance, self._limit(lane.version.model)))
        decision = instance_decision(
            id, now, serving.config.name, request, answered.version, serving.release.epoch, way.arm.role, way.propensity, answered.status, answered.outputs, answered.violations, answered.result, answered.degraded, answered.seconds, caller
        )
        self._log(serving, [decision])
        if answered.error:
            raise answered.error
        for arm in way.shadows:
            self._shadow(serving, decision, arm, lambda lane: solve(lane.worker, request.instance, self._limit(lane.version.model)), request)
        return instance_answer(decision)

    def _limit(self, model: str) -> float | None:
        limit = self.project.model(model).time_limit
        return limit.total_seconds() if limit else None

    def _ask(self, serving: Serving, arm: Arm, work: Callable[[Lane], _Answered]) -> _Answered:
        """Ask the arm's version; if it fails, the champion (for a canary), then the fallback models, in that order."""
        reasons: list[str] = []
        first: _Answered | None = None
        for lane in self._chain(serving, arm):
            with self._lock:
                lane.users += 1
            try:
                answered = work(lane)
            except ModelFailed as error:
                answered = _Answered(lane.version.ref, error.status, error=error)
            except Invalid as error:
                answered = _Answered(lane.version.ref, "invalid_input", error=ModelFailed(f"{lane.version.ref} does not take this input: {error.what}", error.hint, status="invalid_input"))
            finally:
                with self._lock:
                    lane.users -= 1
                    close = lane.retired and lane.users == 0
                if close:
                    lane.worker.close()
            if problem := _problem(answered):
                reasons.append(f"{lane.version.ref} {problem}")
                # The first try stays the answer if no other does better: a plan with a violation beats none.
                first = first if first is not None and first.error is None else answered if first is None or answered.error is None else first
                continue
            return replace(answered, degraded="; ".join(reasons)) if reasons else answered
        if first is None:
            raise NotFound(f"{serving.config.name} has no version to answer", f"palan release {serving.config.name}")
        if first.error and len(reasons) > 1:
            return replace(first, error=ModelFailed("; ".join(reasons), first.error.hint, status=first.error.status, log=first.error.log))
        return first

    def _chain(self, serving: Serving, arm: Arm) -> Iterator[Lane]:
        yield serving.lanes[arm.version]
        if arm.role != "champion":
            yield serving.champion
        seen = {serving.config.name}
        name = serving.config.fallback
        while name and name not in seen and (other := self._serving.get(name)):
            yield other.champion
            seen.add(name)
            name = other.config.fallback

    def _log(self, serving: Serving, decisions: Sequence[Decision]) -> None:
        try:
            self.project.store.blocks.append(f"decisions/{serving.config.name}", [log.encode(each) for each in decisions])
        except PalanError as error:
            raise Busy(f"the decision could not be recorded, so it is not given: {error.what}", error.hint) from error

    # -- shadows: after the answer, on a bounded queue that sheds and counts --

    def _shadow(self, serving: Serving, seen: Decision, arm: Arm, work: Callable[[Lane], _Answered], request: Request) -> None:
        def run() -> None:
            answered = self._ask(replace(serving, config=replace(serving.config, fallback="")), replace(arm, role="champion"), work)
            inputs = dict(request.columns) if request.columns else seen.inputs
            shadow = msgspec.structs.replace(
                seen, version=answered.version, arm="shadow", propensity=1.0, rows=request.rows, inputs=inputs, keys=list(request.keys) if request.keys else None, outputs=answered.outputs, status=answered.status, violations=_plain_violations(answered.violations), result=dict(answered.result), degraded="", seconds=answered.seconds
            )
            self.project.store.blocks.append(f"shadows/{serving.config.name}", [log.encode(shadow)])

        try:
            if self._threads:
                self._shadows.put_nowait(run)
            else:
                run()
        except queue.Full:
            self.shed[serving.config.name] += 1

    def _answer_shadows(self) -> None:
        while (work := self._shadows.get()) is not None:
            try:
                work()
            except PalanError as error:
                self.project.tell(f"a shadow could not answer: {error.what}")


def decide(project: Project, model: str, rows: Any = None, instance: Any = None, *, keys: Sequence[str] | None = None) -> dict[str, Any]:
    """Answer once, in this process, exactly as the server would: same routing, same repairs, same log.

    Args:
        project: an open project.
        model: its name in palan.toml.
        rows: a DataFrame, a list of dicts or a dict of lists, for a model of rows.
        instance: a dict, for a model of instances.
        keys: the caller's own name of each row.

    Raises: as `Deciders.answer`.
    """
    config = project.model(model)
    if (rows is None) == (instance is None):
        raise PalanError("decide takes either rows or an instance", f"palan decide {model} --help")
    wanted, name = {model}, config.fallback
    while name and name not in wanted:
        wanted.add(name)
        name = project.model(name).fallback
    deciders = Deciders(project)
    try:
        deciders.refresh(needed=lambda each: each in wanted)
        return deciders.decide(model, value=rows if instance is None else instance, keys=keys, caller=project.actor)
    finally:
        deciders.close()


# -- outcomes -----------------------------------------------------------------------------------------------------------


class _Told(msgspec.Struct, forbid_unknown_fields=True):
    value: Any
    id: str = ""
    key: str | int = ""


class _ToldColumns(msgspec.Struct, forbid_unknown_fields=True):
    values: list[Any]
    ids: list[str] = []
    keys: list[str | int] = []


class _ToldRows(msgspec.Struct, forbid_unknown_fields=True):
    outcomes: list[_Told]


_ID = re.compile(r"[0-9a-hjkmnp-tv-z]{26}-\d+")


def read_outcomes(body: bytes) -> tuple[list[Any], list[str], list[str]]:
    """Return values, ids and keys of `{"outcomes": [{"key"|"id", "value"}]}` or `{"keys"|"ids": [...], "values": [...]}`.

    Raises:
        Invalid: neither form fits.
    """
    form = 'send {"outcomes": [{"key": "...", "value": ...}]} or {"keys": [...], "values": [...]}'
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the body is not JSON: {error}", form, field="body") from None
    try:
        if isinstance(value, dict) and "outcomes" in value:
            told = msgspec.convert(value, _ToldRows).outcomes
            return [each.value for each in told], [each.id for each in told], [str(each.key) for each in told]
        columns = msgspec.convert(value, _ToldColumns)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        raise Invalid(f"{place.strip('`$.') or 'body'}: {what}", form, field=place.strip("`$.") or "body") from None
    return columns.values, columns.ids, [str(key) for key in columns.keys]


def outcomes(project: Project, model: str, values: Sequence[Any], *, ids: Sequence[str] = (), keys: Sequence[str] = ()) -> int:
    """Record what really happened, for decision ids or for the caller's keys, and return how many were told.

    Telling again is a correction: the last one told counts. Outcomes of rows that were never decided are kept too,
    because the decision may be told of later, or by another process.

    Raises:
        NotFound: no such model.
        Invalid: a value does not fit the outcome column, or has no id and no key.
    """
    config = project.model(model)
    each = _outcome_field(project, config)
    for name, given in (("ids", ids), ("keys", keys)):
        if given and len(given) != len(values):
            raise Invalid(f"there are {len(given)} {name} for {len(values)} values", "send one for each value", field=name, value=len(given))
    if not values:
        raise Invalid("there is no outcome in the request", 'send {"outcomes": [{"key": "...", "value": ...}]}', field="outcomes", value=[])
    for index, value in enumerate(values):
        id = ids[index] if ids else ""
        if not id and not (keys and keys[index]):
            raise Invalid(f"outcomes[{index}] has neither id nor key", "say which decision it is the outcome of", field=f"outcomes[{index}]")
        if id and not _ID.fullmatch(id):
            raise Invalid(f'outcomes[{index}].id is "{id}", which is no decision id', 'the id of row 0 of a decision is "<decision>-0"', field=f"outcomes[{index}].id", value=id)
        check_value(value, each, f"outcomes[{index}].value")
    told = Outcome(time=project.clock(), model=model, ids=list(ids), keys=list(keys), values=list(values))
    project.store.blocks.append(f"outcomes/{model}", [log.encode(told)])
    return len(values)


def _outcome_field(project: Project, config: ModelConfig) -> Field:
    from palan.data.contract import parse

    data = project.config.data.get(config.data)
    if data and config.outcome:
        for each in parse(data.name, data.table).columns:
            if each.name == config.outcome:
                # What happened may lie outside the range that the past knew; only its type is sure.
                return Field("value", each.type, nullable=True)
    return Field("value", "any", nullable=True)


# -- pure parts ---------------------------------------------------------------------------------------------------------


def signature(version: Version) -> Schema:
    """Return what a version takes."""
    return msgspec.convert(version.manifest["signature"], Schema)


def _kind(version: Version) -> Kind:
    return version.kind  # type: ignore[return-value]  # a version is only ever built of a known kind


def _widened(champion: Schema, others: Sequence[Schema]) -> Schema:
    """Return the champion's schema and, as columns that may be left out, what other arms take besides."""
    extra = {each.name: replace(each, nullable=True) for schema in others for each in schema.fields if each.name not in champion.names}
    return replace(champion, fields=(*champion.fields, *extra.values()))


def _parts(release: Release, request: Request, id: str) -> list[tuple[Route, list[int]]]:
    """Group the rows of a request by the arm that answers each; the champion's part, if any, comes first."""
    if release.canary is None:
        return [(route(release, id), list(range(request.rows)))]
    groups: dict[str, tuple[Route, list[int]]] = {}
    for row in range(request.rows):
        way = route(release, (request.keys and request.keys[row]) or f"{id}-{row}")
        groups.setdefault(way.arm.version, (way, []))[1].append(row)
    return sorted(groups.values(), key=lambda part: part[0].arm.role != "champion")


def _repaired(frame: pl.DataFrame, serving: Serving, now: datetime) -> pl.DataFrame:
    if not serving.release.repairs:
        return frame
    try:
        return repair.apply(frame, serving.release.repairs, serving.time, now=now)
    except PalanError as error:
        raise ModelFailed(f"a repair of {serving.config.name} cannot be applied: {error.what}", f"palan status {serving.config.name}") from error


def _ask_rows(lane: Lane, frame: pl.DataFrame) -> _Answered:
    started = time.perf_counter()
    rows = frame.select(lane.schema.names)
    outputs = lane.worker.decide(rows)
    violations = lane.worker.check(rows, outputs)
    return _Answered(lane.version.ref, "ok", outputs.to_dict(as_series=False), tuple(violations), seconds=time.perf_counter() - started)


def solve(worker: Worker, instance: Any, time_limit: float | None, *, on_incumbent: Callable[[Incumbent], None] | None = None) -> _Answered:
    """Solve one instance in a worker and return what it came to, with its independent check."""
    raise NotImplementedError


def _problem(answered: _Answered) -> str:
    """Say why another model should be asked, or nothing."""
    if answered.error:
        return f"failed: {answered.error.what}"
    if answered.outputs is None and answered.status in _FAILURES:
        return f"gave no answer ({answered.status})"
    if answered.result and answered.violations:
        return f"breaks a rule: {answered.violations[0].rule}"
    return ""


def _plain_violations(violations: Sequence[Violation]) -> list[dict[str, Any]]:
    return [{"rule": each.rule, "where": each.where, "amount": each.amount, "message": each.message} for each in violations]


def _rows_answer(request: Request, decisions: Sequence[Decision], parts: Sequence[Sequence[int]], ids: Sequence[str]) -> dict[str, Any]:
    first = decisions[0]
    columns: dict[str, list[Any]] = {}
    for decision, rows in zip(decisions, parts, strict=True):
        for name, values in decision.outputs.items():
            column = columns.setdefault(name, [None] * request.rows)
            for row, value in zip(rows, values, strict=True):
                column[row] = value
    # The answer has the form of the question: columns for columns, one entry a row for rows.
    outputs: Any = columns
    if not request.columnar:
        outputs = columns["output"] if list(columns) == ["output"] else [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    answer = {
        "decision": first.id,
        "model": first.model,
        "version": first.version,
        "arm": first.arm,
        "propensity": first.propensity,
        "rows": request.rows,
        "status": first.status,
        "outputs": outputs,
    }
    if len(decisions) > 1:
        answer["ids"] = list(ids)
        answer["parts"] = [
            {"decision": each.id, "version": each.version, "arm": each.arm, "propensity": each.propensity, "rows": list(rows)} for each, rows in zip(decisions, parts, strict=True)
        ]
    violations = [violation for each in decisions for violation in each.violations]
    degraded = "; ".join(each.degraded for each in decisions if each.degraded)
    return {**answer, **({"violations": violations} if violations else {}), **({"degraded": degraded} if degraded else {})}


def instance_decision(
    id: str,
    now: datetime,
    model: str,
    request: Request,
    version: str,
    epoch: int,
    arm: str,
    propensity: float,
    status: str,
    outputs: Any,
    violations: Sequence[Violation],
    result: Mapping[str, Any],
    degraded: str,
    seconds: float,
    caller: str,
) -> Decision:
    """Return the log entry of one answered instance."""
    return Decision(
        id=id,
        time=now,
        model=model,
        version=version,
        epoch=epoch,
        arm=arm,
        propensity=propensity,
        rows=1,
        inputs=request.instance,
        outputs=outputs,
        keys=list(request.keys) if request.keys else None,
        status=status,
        seconds=seconds,
        violations=_plain_violations(violations),
        result=dict(result),
        degraded=degraded,
        caller=caller,
    )


def instance_answer(decision: Decision) -> dict[str, Any]:
    """Return what the caller of an instance model is told."""
    answer = {
        "decision": decision.id,
        "model": decision.model,
        "version": decision.version,
        "arm": decision.arm,
        "propensity": decision.propensity,
        "status": decision.status,
        "output": decision.outputs,
        **decision.result,
        "violations": decision.violations,
        "seconds": decision.seconds,
    }
    return {**answer, "degraded": decision.degraded} if decision.degraded else answer
