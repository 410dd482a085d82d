"""Answer: validate, repair, route, ask the version's worker, check, write to the log, and only then answer."""

from __future__ import annotations

import asyncio
import math
import queue
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from palan.core import Field, FieldType, Schema, Version, new_id
from palan.data import repair
from palan.data.inputs import Inputs, Request, check_values, to_frame
from palan.decisions import log
from palan.decisions.nouns import Decision, Outcome
from palan.errors import Busy, Corrupt, Invalid, ModelFailed, NotFound, PalanError
from palan.flows.config import DataConfig, ModelConfig
from palan.flows.history import schema_of
from palan.flows.log import forged
from palan.flows.packages import find_version, open_worker
from palan.flows.project import Project
from palan.flows.tables import contract_of
from palan.models.contract import SHAPE, Incumbent, Kind, Violation
from palan.models.estimator import not_finite
from palan.releases.nouns import Arm, Release
from palan.releases.route import Route, route

if TYPE_CHECKING:
    import polars as pl

    from palan.engines.lanes import Worker
    from palan.flows.pasts import Looked, Memory

POLL_SECONDS = 0.5
"""How often a release that another process changed is looked for."""

WAITING = 128
"""Requests of one model that may wait for its worker; the next one is told to come again."""

ROWS_SECONDS = 30.0
"""How long a batch of rows may take where the model sets no time_limit."""

_FAILURES = ("error", "licence", "timeout", "no_solution", "cancelled")
"""Verdicts that say nothing about the instance itself, so that another model may still answer it."""


class Lane(msgspec.Struct):
    """One version, warm in a worker of its own. It is closed when it is retired and nobody uses it any more."""

    version: Version
    schema: Schema  # what it is given: what callers send, and what is looked up
    worker: Worker
    checks: bool = True
    outputs: dict[str, str] = {}  # name -> field type, of a model of rows
    looked: tuple[Looked, ...] = ()  # columns that are looked up for it
    look_up: Callable[[pl.DataFrame, datetime], pl.DataFrame] | None = None
    users: int = 0
    retired: bool = False


class Serving(msgspec.Struct, frozen=True):
    """What answers for one model from now on: swapped as one reference, so every request sees one release whole."""

    config: ModelConfig
    release: Release
    inputs: Inputs
    lanes: Mapping[str, Lane]
    time: str  # the event time column, for repairs

    @property
    def champion(self) -> Lane:
        return self.lanes[self.release.champion.version]


class Answered(msgspec.Struct, frozen=True):
    """What one version made of a part of a request. `result` holds the figures of a solve, and is empty for rows."""

    version: str
    status: str
    outputs: Any = None
    violations: tuple[Violation, ...] = ()
    result: Mapping[str, Any] = {}
    degraded: str = ""
    seconds: float = 0.0
    error: ModelFailed | None = None
    looked: Mapping[str, list[Any]] = {}  # what was looked up for it, a column each


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
        self._memory: Memory | None = None  # made where a version looks something up
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
            releases = [each for each in self.project.store.records.find(Release) if each.model in self.project.config.models and model in ("", each.model)]
            changed = [each for each in releases if self._is_news(each) and (needed is None or needed(each.model))]
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
            if self._memory is not None:
                try:
                    self._memory.hold(each for serving in self.models.values() for lane in serving.lanes.values() for each in lane.looked)
                except PalanError as error:
                    self.project.tell(f"what was ingested could not be looked up: {error.what}")

    def _load(self, release: Release) -> str | None:
        known = self._serving.get(release.model)
        config = self.project.model(release.model)
        lanes: dict[str, Lane] = {}
        opened: list[Lane] = []
        try:
            if what := forged(self.project, release):
                raise Corrupt(what, f"palan log --verify, then: palan release {release.model}")
            for arm in release.arms:
                kept = known.lanes.get(arm.version) if known else None
                if kept is None:
                    version = find_version(self.project, arm.version)
                    # Without a check of the model's own, answers are looked at here, which spares a trip to the worker.
                    kept = Lane(version, schema_of(version.manifest), open_worker(self.project, version), "check" in version.manifest["verbs"] or version.kind == "rules")
                    self._remember(kept, self.project.config.data.get(config.data))
                    opened.append(kept)
                    kept.worker.open()
                    kept.outputs = _outputs(kept)
                lanes[arm.version] = kept
        except PalanError as error:
            for lane in opened:
                lane.worker.close()
            self.project.tell(f"{release.model}: {error.what}")
            return error.what
        champion = lanes[release.champion.version]
        schema = _widened(signature(champion.version), [signature(lane.version) for lane in lanes.values()])
        inputs = known.inputs if known and known.inputs.schema == schema else Inputs(schema, key=config.key)
        data = self.project.config.data.get(config.data)
        with self._lock:
            self._serving[release.model] = Serving(config, release, inputs, lanes, data.time if data else "")
        if known:
            self._retire(lane for ref, lane in known.lanes.items() if ref not in lanes)
        return None

    def _remember(self, lane: Lane, data: DataConfig | None) -> None:
        """Hold in memory what a version looks up."""
        if not lane.version.manifest.get("features", {}).get("pasts"):
            return
        from palan.flows import pasts

        self._memory = memory = self._memory or pasts.Memory(self.project)
        lane.looked = pasts.of(lane.version.manifest)
        memory.hold(lane.looked)
        lane.look_up = lambda frame, now: memory.ask(lane.looked, frame, data.time if data else "", now)

    def _retire(self, lanes: Iterable[Lane]) -> None:
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
        with self._using(model) as (serving, fallbacks):
            request = serving.inputs.read(body) if value is None else serving.inputs.take(value, keys)
            if SHAPE[_kind(serving.champion.version)] == "instance":
                return self._decide_instance(serving, fallbacks, request, caller)
            return self._decide_rows(serving, fallbacks, request, caller)

    @contextmanager
    def _using(self, model: str) -> Iterator[tuple[Serving, list[Lane]]]:
        """Hold what serves a model now, and its fallbacks: no lane is closed under a request, whatever is released meanwhile."""
        with self._lock:
            serving = self._find(model)
            fallbacks, seen, name = [], {model}, serving.config.fallback
            while name and name not in seen and (other := self._serving.get(name)):
                fallbacks.append(other.champion)
                seen.add(name)
                name = other.config.fallback
            held = [*serving.lanes.values(), *fallbacks]
            for lane in held:
                lane.users += 1
        try:
            yield serving, fallbacks
        finally:
            with self._lock:
                for lane in held:
                    lane.users -= 1
                idle = [lane for lane in held if lane.retired and lane.users == 0]
            for lane in idle:
                lane.worker.close()

    def _find(self, model: str) -> Serving:
        serving = self._serving.get(model)
        if serving is None:
            self.project.model(model)
            if model in self.trouble:
                raise Busy(f"{model} cannot be served: {self.trouble[model]}", f"palan status {model}")
            raise NotFound(f"{model} is not released", f"palan release {model}")
        return serving

    def _decide_rows(self, serving: Serving, fallbacks: Sequence[Lane], request: Request, caller: str) -> dict[str, Any]:
        model = serving.config.name
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
            answered = _ask(_chain(serving, way.arm, fallbacks), partial(_ask_rows, frame=repaired if whole else repaired[rows], limit=self._limit(model) or ROWS_SECONDS, now=now))
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
                    inputs={**(request.columns if whole else {column: [values[row] for row in rows] for column, values in request.columns.items()}), **answered.looked},
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
            self._shadow(decisions[0], arm, partial(_ask_rows, frame=repaired, limit=self._limit(model) or ROWS_SECONDS, now=now), request)
        return _rows_answer(request, decisions, [rows for _, rows in parts], ids)

    def _decide_instance(self, serving: Serving, fallbacks: Sequence[Lane], request: Request, caller: str) -> dict[str, Any]:
        now = self.project.clock()
        id = new_id(now)
        way = route(serving.release, request.keys[0] if request.keys else id)
        ask = partial(ask_instance, instance=request.instance, limit=self._limit(serving.config.name))
        answered = _unanswered(_ask(_chain(serving, way.arm, fallbacks), ask))
        decision = instance_decision(
            id, now, serving.config.name, request, answered.version, serving.release.epoch, way.arm.role, way.propensity, answered.status, answered.outputs, answered.violations, answered.result, answered.degraded, answered.seconds, caller
        )
        self._log(serving, [decision])
        if answered.error:
            raise answered.error
        for arm in way.shadows:
            self._shadow(decision, arm, ask, request)
        return instance_answer(decision)

    def _limit(self, model: str) -> float | None:
        limit = self.project.model(model).time_limit
        return limit.total_seconds() if limit else None

    def _log(self, serving: Serving, decisions: Sequence[Decision]) -> None:
        try:
            self.project.store.blocks.append(f"decisions/{serving.config.name}", [log.encode(each) for each in decisions])
        except PalanError as error:
            raise Busy(f"the decision could not be recorded, so it is not given: {error.what}", error.hint) from error

    # -- shadows: after the answer, on a bounded queue that sheds and counts --

    def _shadow(self, seen: Decision, arm: Arm, work: Callable[[Lane], Answered], request: Request) -> None:
        def run() -> None:
            with self._using(seen.model) as (now, _):
                if arm.version not in now.lanes:
                    return  # it was taken off meanwhile
                answered = _ask([now.lanes[arm.version]], work)
            inputs = {**request.columns, **answered.looked} if request.columns else seen.inputs
            shadow = msgspec.structs.replace(
                seen, version=answered.version, arm="shadow", propensity=1.0, rows=request.rows, inputs=inputs, keys=list(request.keys) if request.keys else None, outputs=answered.outputs, status=answered.status, violations=_plain_violations(answered.violations), result=dict(answered.result), degraded="", seconds=answered.seconds
            )
            self.project.store.blocks.append(f"shadows/{seen.model}", [log.encode(shadow)])

        try:
            if self._threads:
                self._shadows.put_nowait(run)
            else:
                run()
        except queue.Full:
            self.shed[seen.model] += 1

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


class _Told(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    value: Any
    id: str = ""
    key: str | int = ""


class _Outcomes(msgspec.Struct, forbid_unknown_fields=True):
    """Either `outcomes`, or `values` with their `ids` or `keys`."""

    outcomes: list[_Told] | msgspec.UnsetType = msgspec.UNSET
    values: list[Any] | msgspec.UnsetType = msgspec.UNSET
    ids: list[str] = []
    keys: list[str | int] = []


_outcomes = msgspec.json.Decoder(_Outcomes)

_ID = re.compile(r"[0-9a-hjkmnp-tv-z]{26}-\d+")


def read_outcomes(body: bytes) -> tuple[list[Any], list[str], list[str]]:
    """Return values, ids and keys of `{"outcomes": [{"key"|"id", "value"}]}` or `{"keys"|"ids": [...], "values": [...]}`.

    Raises:
        Invalid: neither form fits.
    """
    form = 'send {"outcomes": [{"key": "...", "value": ...}]} or {"keys": [...], "values": [...]}'
    try:
        sent = _outcomes.decode(body)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        raise Invalid(f"{place.strip('`$.') or 'body'}: {what}", form, field=place.strip("`$.") or "body") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the body is not JSON: {error}", form, field="body") from None
    told = sent.outcomes
    if told is not msgspec.UNSET and sent == _Outcomes(outcomes=told):
        return [each.value for each in told], [each.id for each in told], [str(each.key) for each in told]
    if sent.values is msgspec.UNSET or told is not msgspec.UNSET:
        raise Invalid("body: neither outcomes alone nor values with their ids or keys", form, field="body")
    return sent.values, sent.ids, [str(key) for key in sent.keys]


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
    for index in range(len(values)):
        id = ids[index] if ids else ""
        if not id and not (keys and keys[index]):
            raise Invalid(f"outcomes[{index}] has neither id nor key", "say which decision it is the outcome of", field=f"outcomes[{index}]")
        if id and not _ID.fullmatch(id):
            raise Invalid(f'outcomes[{index}].id is "{id}", which is no decision id', 'the id of row 0 of a decision is "<decision>-0"', field=f"outcomes[{index}].id", value=id)
    check_values(values, each, "outcomes[{}].value")
    told = Outcome(time=project.clock(), model=model, ids=list(ids), keys=list(keys), values=list(values))
    project.store.blocks.append(f"outcomes/{model}", [log.encode(told)])
    return len(values)


def _outcome_field(project: Project, config: ModelConfig) -> Field:
    if config.data in project.config.data and config.outcome:
        for each in contract_of(project, config.data).columns:
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


def _chain(serving: Serving, arm: Arm, fallbacks: Sequence[Lane]) -> list[Lane]:
    """Return who is asked, in order: the arm's version, for a canary the champion, then the fallback models."""
    first = [serving.lanes[arm.version]]
    return [*first, *([] if arm.role == "champion" else [serving.champion]), *fallbacks]


def _ask(chain: Sequence[Lane], work: Callable[[Lane], Answered]) -> Answered:
    """Ask one lane after the other until one answers well; say in `degraded` why it was not the first."""
    reasons: list[str] = []
    best: Answered | None = None
    for lane in chain:
        try:
            answered = work(lane)
        except ModelFailed as error:
            answered = Answered(lane.version.ref, error.status, error=error)
        problem = _problem(answered)
        if not problem:
            return replace(answered, degraded="; ".join([*reasons, *filter(None, [answered.degraded])]))
        reasons.append(f"{lane.version.ref} {problem}")
        # Where none does well, a plan with a violation beats none, and the earlier one beats the later.
        if best is None or (best.outputs is None and answered.outputs is not None):
            best = answered
    if best is None:
        raise NotFound("nothing is released that could answer", "palan status")
    if best.error and len(reasons) > 1:
        return replace(best, error=ModelFailed("; ".join(reasons), best.error.hint, status=best.error.status, log=best.error.log))
    return replace(best, degraded="; ".join(reasons) if best.version != chain[0].version.ref else best.degraded)


def _problem(answered: Answered) -> str:
    """Say why another model should be asked, or nothing."""
    if answered.error:
        return f"failed: {answered.error.what}"
    if answered.outputs is None and answered.status in _FAILURES:
        return f"gave no answer ({answered.status})"
    if answered.result and answered.violations:
        return f"breaks a rule: {answered.violations[0].rule}"
    return ""


def _unanswered(answered: Answered) -> Answered:
    """Make a solve that ended without any plan, for a reason that is not the instance's, the failure that it is."""
    if answered.error or answered.outputs is not None or answered.status not in _FAILURES:
        return answered
    why = answered.degraded or f"{answered.version} gave no answer ({answered.status})"
    hint = "raise time_limit, or give the model a fallback" if answered.status in ("timeout", "no_solution") else "palan status"
    return replace(answered, error=ModelFailed(why, hint, status=answered.status))


def _ask_rows(lane: Lane, frame: pl.DataFrame, limit: float, now: datetime) -> Answered:
    started = time.perf_counter()
    if lane.look_up is not None:
        frame = lane.look_up(frame, now)
    missing = [name for name in lane.schema.names if name not in frame.columns]
    if missing:
        raise ModelFailed(f"{lane.version.ref} needs the column {missing[0]}, which this model's callers do not send", "palan check", status="invalid_input")
    rows = frame if frame.columns == lane.schema.names else frame.select(lane.schema.names)
    outputs = lane.worker.decide(rows, time_limit=limit)
    violations = lane.worker.check(rows, outputs, time_limit=limit) if lane.checks else not_finite(outputs)
    looked = {each.name: frame[each.name].to_list() for each in lane.looked}
    return Answered(lane.version.ref, "ok", outputs.to_dict(as_series=False), tuple(violations), seconds=time.perf_counter() - started, looked=looked)


def ask_instance(
    lane: Lane, instance: Any, limit: float | None, on_incumbent: Callable[[Incumbent], None] | None = None, is_cancelled: Callable[[], bool] | None = None
) -> Answered:
    """Solve one instance in a lane; the worker has checked the plan, also one that was all there was at the deadline."""
    result = lane.worker.solve(instance, time_limit=limit, on_incumbent=on_incumbent, is_cancelled=is_cancelled)
    figures = {
        "objective": _finite(result.objective),
        "bound": _finite(result.bound),
        "gap": _finite(result.gap),
        "sense": result.sense,
        "kpis": dict(result.kpis),
        "explain": dict(result.explain),
        "evidence": dict(result.evidence),
        "incumbents": [{"seconds": each.seconds, "objective": _finite(each.objective), "bound": _finite(each.bound)} for each in result.incumbents],
    }
    return Answered(lane.version.ref, result.status, result.output, result.violations, figures, str(result.evidence.get("degraded", "")), result.seconds)


def _outputs(lane: Lane) -> dict[str, str]:
    """Return the names and types of what a model of rows answers, by asking it about no rows; this also warms it up."""
    if lane.schema.shape == "instance":
        return {}
    try:
        empty = lane.worker.decide(to_frame({name: [] for name in lane.schema.names}, lane.schema), time_limit=ROWS_SECONDS)
    except ModelFailed:
        return {}  # a model that cannot take an empty batch may well take others
    return {each.name: _type_name(each.dtype) for each in empty.get_columns()}


def _type_name(dtype: pl.DataType) -> FieldType:
    if dtype.is_float():
        return "float"
    if dtype.is_integer():
        return "int"
    return {"Boolean": "bool", "String": "str", "Datetime": "time", "Date": "date", "List": "list", "Struct": "map"}.get(dtype.base_type().__name__, "any")  # type: ignore[return-value]


def _finite(number: float | None) -> float | None:
    """Return the number, or None where a solver says infinity for "nothing known"."""
    return number if number is not None and math.isfinite(number) else None


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
        "outputs": decision.outputs,
        **decision.result,
        "violations": decision.violations,
        "seconds": decision.seconds,
    }
    return {**answer, "degraded": decision.degraded} if decision.degraded else answer
