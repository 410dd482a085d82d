"""Runs and experiments as MLflow's clients know them: what they log is appended like any run's, what they ask is folded first."""

from __future__ import annotations

import base64
import binascii
import math
import posixpath
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import replace

from palan.core import new_id, utcnow
from palan.errors import Busy, Conflict, Invalid, NotFound, PalanError
from palan.flows.fold import KILLED, STREAM, TRACK, fold, tracked
from palan.flows.project import Project, record
from palan.flows.track import LONGEST
from palan.runs.mlflow import Experiment, Input, LoggedModel, ModelMetric, holds, ordered
from palan.runs.points import Names, event
from palan.runs.run import Curve, Keyset, Run, Value
from palan.runs.search import ATTRIBUTES, STATUSES, Both, Compare, Condition, Field, Not, parse, parse_order

VIEWS = ("ACTIVE_ONLY", "DELETED_ONLY", "ALL")
NAME, PARENT = "mlflow.runName", "mlflow.parentRunId"
UNKNOWN = "unknown"  # what a client calls a user that it was not told
MOST_METRICS, MOST_PARAMS, MOST_TAGS, LONGEST_KEY, LONGEST_NAME, LONGEST_DIGEST, MOST_RUNS = 1000, 100, 100, 250, 500, 36, 50_000
FRESH = 0.25  # seconds after which a run is looked up again: another server of the same store may have deleted it
KEPT = 10_000  # runs, and sets of names, that are known without a look into the store

_NAME = re.compile(r"[/\w.\- :]*")
_USER = Field("tag", "mlflow.user")
_RUN = {**ATTRIBUTES, "user_id": "user", "dataset_name": "dataset.name", "dataset_digest": "dataset.digest", "dataset_context": "dataset.context", "artifact_uri": "artifact_uri"}
_DATASET = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\bdatasets?\.(name|digest|context)\b")
_HINT = "see docs/how-to/use-mlflow-clients.md"


class Metric(msgspec.Struct, gc=False):
    """One point as a client sends it; `timestamp` is in milliseconds."""

    key: str = ""
    value: float | None = None
    timestamp: int | float | None = None
    step: int = 0
    model_id: str = ""
    dataset_name: str = ""
    dataset_digest: str = ""


class Pair(msgspec.Struct, gc=False):
    """A parameter, or a tag."""

    key: str = ""
    value: str = ""


class Known(msgspec.Struct):
    """What is remembered of a run that is written to."""

    deleted: bool
    params: dict[str, str]
    looked: float = 0.0
    folded: float = 0.0  # when its parameters were last brought up to date


def invalid(what: str, field: str = "") -> Invalid:
    return Invalid(what, _HINT, field=field)


def missing(field: str) -> Invalid:
    return invalid(f"Missing value for required parameter '{field}'. See the API docs for more information about request parameters.", field)


def lacking(what: str) -> NotFound:
    return NotFound(what, _HINT)


def millis(time: datetime | None) -> int | None:
    return None if time is None else round(time.timestamp() * 1000)


def page_token(place: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(list(place))).decode()


def page_place(token: str) -> list[Any]:
    """Return the place that a page token stands for.

    Raises:
        Invalid: it was not given out here.
    """
    if not token:
        return []
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(token.encode()), type=list[str | int | float | None])
    except (binascii.Error, msgspec.DecodeError, UnicodeError, ValueError):
        raise invalid("Invalid page token, could not base64-decode", "page_token") from None


def check_name(name: str, where: str, what: str) -> None:
    """Refuse a name that MLflow's own stores refuse."""
    if not _NAME.fullmatch(name):
        raise invalid(
            f'Invalid value "{_escaped(name)}" for parameter \'{where}\' supplied: Names may only contain alphanumerics, underscores (_), dashes (-), '
            "periods (.), spaces ( ), colon(:) and slashes (/).",
            where,
        )
    norm = posixpath.normpath(name)
    if norm != name or norm == "." or norm.startswith(("..", "/")):
        raise invalid(
            f"Invalid value \"{name}\" for parameter '{where}' supplied: Names may be treated as files in certain cases, and must not resolve to other "
            f"names when treated as such. This name would resolve to '{norm}'",
            where,
        )
    if len(name) > LONGEST_KEY:
        raise invalid(f"'{what}' exceeds the maximum length of {LONGEST_KEY} characters", where)


def _escaped(text: str) -> str:
    return msgspec.json.encode(text).decode()[1:-1]


class Tracking:
    """The runs of one project, for clients of MLflow. What is logged is kept once a call returns."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.records = project.store.records
        self._append = tracked(project).append
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._names: dict[tuple[str, ...], Names] = {}
        self._lock = threading.RLock()

    # -- writing: no database but for the first call about a run

    def knows(self, run: str, *, params: bool = False) -> Known | None:
        """Return what is remembered of a run, if that will do for a write to it, or for one of parameters."""
        found = self._known.get(run)
        return found if found is not None and time.monotonic() - (found.folded if params else found.looked) < FRESH else None

    def known(self, run: str, *, params: bool = False) -> Known:
        """Return what is remembered of a run, after a look into the store if the last one was a while ago.

        Only for parameters, and for the first look, is folded what others logged: a client that logs a metric after the
        other would have its own points folded four times a second.
        """
        if found := self.knows(run, params=params):
            return found
        with self._lock:
            found = self._known.get(run)
            known, folding = found or Known(deleted=False, params={}), params or found is None
            try:
                told = self.run(run) if folding else self.records.get(Run, run)
                for each in self.records.find(Value, run=run, kind="param") if folding else ():
                    known.params.setdefault(each.key, each.text or "")
            except (NotFound, Busy):
                if found is None:
                    raise
                told = None  # it began here and is not folded yet, or somebody else has the database for himself
            if told is not None:
                known.deleted = told.deleted is not None
                if told.status == "killed" and told.reason == KILLED:  # its client is alive: it was the server that ended
                    self.tell(run, "resume", {})
            return self._remember(run, known, folded=folding)

    def _remember(self, run: str, known: Known, *, folded: bool = True) -> Known:
        with self._lock:
            known.looked = time.monotonic()
            if folded:
                known.folded = known.looked
            self._known[run] = known
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            return known

    def writable(self, run: str, *, params: bool = False) -> Known:
        """Return what is remembered of a run that may be written to.

        Raises:
            NotFound: there is no such run.
            Invalid: it was deleted.
        """
        found = self.known(run, params=params)
        if found.deleted:
            raise invalid(f"The run {run} must be in the 'active' state. Current state is deleted.")
        return found

    def tell(self, run: str, verb: str, body: Any, ns: int = 0) -> None:
        self._append(STREAM, (event(run, ns or time.time_ns(), verb, body),))

    def log(self, run: str, metrics: Sequence[Metric], params: Sequence[Pair] = (), tags: Sequence[Pair] = (), *, batch: bool = True) -> None:
        """Log points, parameters and tags, all or nothing.

        Raises:
            Invalid: a name, a value or a count that MLflow refuses too, or a parameter that has another value already.
        """
        for count, most, what in ((len(metrics), MOST_METRICS, "metrics"), (len(params), MOST_PARAMS, "params"), (len(tags), MOST_TAGS, "tags")):
            if count > most:
                raise invalid(f"A batch logging request can contain at most {most} {what}. Got {count} {what}. Please split up {what} across multiple requests and try again.")
        if (count := len(metrics) + len(params) + len(tags)) > MOST_METRICS:
            what = "metrics, params, and tags"
            raise invalid(f"A batch logging request can contain at most {MOST_METRICS} {what}. Got {count} {what}. Please split up {what} across multiple requests and try again.")
        _check_metrics(metrics, batch)
        _check_keys(params, "params" if batch else "", "Param key")
        _check_keys(tags, "tags" if batch else "", "")
        known = self.writable(run, params=bool(params))
        frames = self._points(run, metrics)
        ns = time.time_ns()
        if params:
            new = _new_params(run, known.params, params, batch)
            if new:
                frames.append(event(run, ns, "param", new))
        if tags:
            frames.append(event(run, ns, "tag", {each.key: each.value[:LONGEST] for each in tags}))
            frames += [event(run, ns, "name", each.value) for each in tags if each.key == NAME]
        if frames:
            self._append(STREAM, frames)
        if params:
            known.params |= new
        if of_models := [each for each in metrics if each.model_id]:
            self._measured(run, of_models)

    def _points(self, run: str, metrics: Sequence[Metric]) -> list[bytes]:
        """Return the frames of points: those of one moment and step are one, as long as no name comes twice."""
        rows: list[tuple[int, int, dict[str, float]]] = []
        last_ms, last_step, last = -1, 0, dict[str, float]()
        for each in metrics:
            key, step, ms, value = each.key, each.step, int(each.timestamp or 0), 0.0 if each.value is None else each.value
            if ms == last_ms and step == last_step and key not in last:
                last[key] = value
            else:
                last_ms, last_step, last = ms, step, {key: value}
                rows.append((ms, step, last))
        frames: list[bytes] = []
        fresh: dict[tuple[str, ...], Names] = {}
        id = run.encode()
        for ms, step, values in rows:
            keys = tuple(values)
            names = self._names.get(keys) or fresh.get(keys)
            if names is None:
                names = fresh[keys] = Names(keys)
            frames.append(names.point(id, step, ms * 1_000_000, values.values()))
        if fresh:
            if len(self._names) > KEPT:
                self._names.clear()
            # Known to others only once it is written: a name told twice does no harm, one that is told too late would.
            self._append(STREAM, [names.frame for names in fresh.values()])
            self._names |= fresh
        return frames

    def _measured(self, run: str, metrics: Sequence[Metric]) -> None:
        """Keep the last values that a run measured of logged models."""
        for id in dict.fromkeys(each.model_id for each in metrics):
            with self.records.transaction():
                model = self.records.get(LoggedModel, id)
                if model is None:
                    continue
                last = {(each.key, each.run, each.dataset, each.digest): each for each in model.metrics}
                for each in metrics:
                    if each.model_id == id:
                        new = ModelMetric(each.key, repr(each.value), int(each.timestamp or 0), each.step, run, each.dataset_name, each.dataset_digest)
                        place = new.key, new.run, new.dataset, new.digest
                        before = last.get(place)
                        if before is None or (before.step, before.time, before.number) <= (new.step, new.time, new.number):
                            last[place] = new
                self.records.put(replace(model, metrics=tuple(last.values())))

    def untag(self, run: str, key: str) -> None:
        self.writable(run)
        fold(self.project)
        if not self.records.find(Value, run=run, kind="tag", key=key, limit=1):
            raise lacking(f"No tag with name: {key} in run with id {run}")
        self.tell(run, "untag", [key])

    def create_run(self, experiment: str, name: str, start: int, user: str, tags: Sequence[Pair]) -> Run:
        """Begin a run of an experiment.

        Raises:
            NotFound: there is no such experiment.
            Invalid: it was deleted, or two names are given.
        """
        of = self.experiment(experiment)
        if of.deleted:
            raise invalid(f"The experiment {of.number} must be in the 'active' state. Current state is deleted.")
        given = {each.key: each.value[:LONGEST] for each in tags}
        _check_keys(tags, "tags", "")
        if name and given.get(NAME, name) != name:
            raise invalid(f"Both 'run_name' argument and 'mlflow.runName' tag are specified, but with different values (run_name='{name}', mlflow.runName='{given[NAME]}').")
        now = utcnow()
        id = new_id(now)
        name = name or given.get(NAME, "") or f"run-{id[-8:].lower()}"
        given[NAME] = name
        if user and user != UNKNOWN:
            given.setdefault("mlflow.user", user)
        ns = start * 1_000_000 or time.time_ns()
        about = {"name": name, "parent": given.get(PARENT, "")}
        self._append(STREAM, (event(id, ns, "start", {"experiment": of.name, "about": about, "files": {}}), event(id, ns, "tag", given)))
        self._remember(id, Known(deleted=False, params={}))
        return Run(id, TRACK, of.name, "running", datetime.fromtimestamp(ns / 1e9, UTC), name=name, parent=about["parent"], tags=given)

    def update_run(self, id: str, status: str, end: int, name: str) -> Run:
        self.writable(id)
        if name:
            self._append(STREAM, (event(id, time.time_ns(), "name", name), event(id, time.time_ns(), "tag", {NAME: name})))
        if status in ("RUNNING", "SCHEDULED"):
            self.tell(id, "resume", {})
        elif status in STATUSES:
            self.tell(id, "end", {"status": STATUSES[status], "reason": ""}, end * 1_000_000)
        return self.run(id)

    def put_aside(self, id: str, *, deleted: bool) -> None:
        """Delete a run, or restore it: it stays where it is, and is found only by who asks for deleted ones."""
        run = self.run(id)
        with self.records.transaction(durable=True):
            self._mark([run], utcnow() if deleted else None)
            if (run.deleted is not None) != deleted:
                record(self.project, "delete" if deleted else "restore", run.id, "by a client of MLflow", runs=[run.id])

    def _mark(self, runs: Sequence[Run], deleted: datetime | None) -> None:
        with self.records.transaction():
            self.records.put(*(replace(run, deleted=deleted) for run in runs if (run.deleted is None) != (deleted is None)))
        with self._lock:
            for run in runs:
                if run.id in self._known:
                    self._known[run.id].deleted = deleted is not None

    # -- reading

    def run(self, id: str) -> Run:
        """Return a run.

        Raises:
            NotFound: there is none.
        """
        fold(self.project)
        found = self.records.get(Run, id)
        if found is None or found.flow != TRACK:
            raise lacking(f"Run with id={id} not found")
        return found

    def values(self, ids: Sequence[str]) -> dict[str, list[Value]]:
        return self._of_runs(Value, ids)

    def inputs(self, ids: Sequence[str]) -> dict[str, list[Input]]:
        return self._of_runs(Input, ids)

    def _of_runs(self, noun: Any, ids: Sequence[str]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for at in range(0, len(ids), 500):
            for each in self.records.find(noun, run=list(ids[at : at + 500])):
                found.setdefault(each.run, []).append(each)
        return found

    def put_inputs(self, run: str, inputs: Iterable[Input]) -> None:
        self.writable(run)
        for each in inputs:
            self.records.add(each)  # what was told first of a dataset stays

    def search(self, experiments: Sequence[str], where: str, view: str, limit: int, order: Sequence[str], token: str) -> tuple[list[Run], str]:
        """Return the runs of some experiments that a filter finds, and the token of the next page."""
        fold(self.project)
        after = page_place(token)
        numbers = {_experiment_number(each) for each in experiments}
        told, keys = parse(_DATASET.sub(lambda each: f"attributes.dataset_{each[1]}" if each[1] else each[0], where), _RUN), parse_order(order, _RUN)
        names = tuple(each.name for each in self._experiments() if each.number in numbers)
        if not names:
            return [], ""
        parts: list[Condition] = [Compare(Field("attribute", "flow"), "=", (TRACK,)), Compare(Field("attribute", "subject"), "in", names)]
        parts += _viewed(view)
        parts += [_own_words(told, self._with_dataset)] if told else []
        found = self.records.search(Run, Both(tuple(parts), every=True), [replace(key, field=_USER if key.field.key == "user" else key.field, as_text=True) for key in keys], after=after, limit=limit + 1)
        shown = found[:limit]
        return [run for run, _ in shown], page_token(shown[-1][1]) if len(found) > limit else ""

    def _with_dataset(self, where: Compare) -> Compare:
        """Return the runs that read a dataset of which a comparison holds."""
        found = (each.run for each in self.records.find(Input, kind="dataset") if holds(where, partial(_of_dataset, each)))
        return Compare(Field("attribute", "id"), "in", tuple(dict.fromkeys(found)) or ("",))

    def history(self, run: str, key: str) -> list[tuple[int, int, float]]:
        """Return every point of a metric as (milliseconds, step, value), in that order."""
        fold(self.project)
        return self._history(run, key, [each.id for each in self.records.find(Keyset) if key in each.names])

    def _history(self, run: str, key: str, keysets: Sequence[str]) -> list[tuple[int, int, float]]:
        from palan.runs import points

        found: list[tuple[int, int, float]] = []
        for at in range(0, len(keysets), 500):
            for part in self.records.find(Curve, run=run, keyset=list(keysets[at : at + 500])):
                block = points.unpack(part.data, [key])
                found += zip((block.times // 1_000_000).tolist(), block.steps.tolist(), block.values[0].tolist(), strict=True)
        # a point that was sent twice, as after a lost answer, is one
        return sorted(dict.fromkeys(found), key=lambda each: (each[0], each[1], -math.inf if math.isnan(each[2]) else each[2]))

    def sampled(self, runs: Sequence[str], key: str, low: int | None, high: int | None, most: int) -> list[tuple[str, int, int, float]]:
        """Return points of a metric of several runs as (run, milliseconds, step, value): those of at most `most` steps, and of the
        first and the last step of each run."""
        fold(self.project)
        keysets = [each.id for each in self.records.find(Keyset) if key in each.names]
        curves = {run: [each for each in self._history(run, key, keysets) if (low is None or each[1] >= low) and (high is None or each[1] <= high)] for run in runs}
        steps = sorted({step for curve in curves.values() for _, step, _ in curve})
        kept = {step for curve in curves.values() if curve for step in (min(each[1] for each in curve), max(each[1] for each in curve))}
        kept |= set(steps if len(steps) <= most else [steps[place * len(steps) // most] for place in range(most)])
        return [(run, ms, step, value) for run, curve in curves.items() for ms, step, value in sorted(curve, key=lambda each: each[1::-1]) if step in kept]

    # -- experiments

    def _experiments(self) -> list[Experiment]:
        found = self.records.find(Experiment)
        if not any(each.number == 0 for each in found):
            self.records.add(Experiment(0, "Default", utcnow(), utcnow()))  # or another client's call just did
            found = self.records.find(Experiment)
        return found

    def experiments(self) -> list[Experiment]:
        """Return all experiments, the newest first."""
        fold(self.project)
        return sorted(self._experiments(), key=lambda each: (each.time, each.number), reverse=True)

    def experiment(self, id: str) -> Experiment:
        """Return an experiment by its number.

        Raises:
            Invalid: that is no number.
            NotFound: there is none.
        """
        number = _experiment_number(id)
        found = self.records.get(Experiment, number)
        if found is None:
            found = next((each for each in self.experiments() if each.number == number), None)
        if found is None:
            raise lacking(f"No Experiment with id={id} exists")
        return found

    def experiment_named(self, name: str) -> Experiment:
        found = next((each for each in self.experiments() if each.name == name), None)
        if found is None:
            raise lacking(f"Could not find experiment with name '{name}'")
        return found

    def create_experiment(self, name: str, tags: Sequence[Pair]) -> Experiment:
        """Make an experiment.

        Raises:
            Conflict: there is one of this name, perhaps a deleted one.
        """
        if len(name) > LONGEST_NAME:
            raise invalid(f"'name' exceeds the maximum length of {LONGEST_NAME} characters", "name")
        _check_keys(tags, "", "")
        fold(self.project)
        with self.records.transaction():
            if any(each.name == name for each in self._experiments()):
                raise Conflict(f"Experiment(name={name}) already exists.", _HINT)
            last = self.records.find(Experiment, order="-number", limit=1)
            made = Experiment(last[0].number + 1, name, utcnow(), utcnow(), tags={each.key: each.value for each in tags})
            self.records.put(made)
        return made

    def rename_experiment(self, id: str, name: str) -> None:
        """Give an experiment another name; its runs follow."""
        fold(self.project)
        with self.records.transaction():
            before = self.experiment(id)
            if before.deleted:
                raise PalanError("Cannot rename a non-active experiment.", _HINT)
            if any(each.number != before.number for each in self.records.find(Experiment, name=name, limit=1)):
                raise Conflict(f"Experiment(name={name}) already exists.", _HINT)
            self.records.put(replace(before, name=name, updated=utcnow()))
            self.records.put(*(replace(run, subject=name) for run in self._runs_of(before)))

    def _runs_of(self, experiment: Experiment) -> list[Run]:
        return self.records.find(Run, flow=TRACK, subject=experiment.name)

    def put_experiment_aside(self, id: str, *, deleted: bool) -> None:
        """Delete an experiment with its runs, or restore it with them."""
        fold(self.project)
        with self.records.transaction():
            found = self.experiment(id)
            if (found.deleted is not None) == deleted:
                raise lacking(f"No Experiment with id={id} exists")
            now = utcnow()
            self.records.put(replace(found, deleted=now if deleted else None, updated=now))
            self._mark(self._runs_of(found), now if deleted else None)

    def tag_experiment(self, id: str, key: str, value: str | None) -> None:
        """Set a tag, or remove it if there is no value."""
        if value is not None:
            check_name(key, "key", "key")
        with self.records.transaction():
            found = self.experiment(id)
            if found.deleted:
                raise invalid(f"The experiment {id} must be in the 'active' state. Current state is deleted.")
            tags = dict(found.tags)
            if value is None and tags.pop(key, None) is None:
                raise lacking(f"No tag with name: {key} in experiment with id {id}")
            if value is not None:
                tags[key] = value
            self.records.put(replace(found, tags=tags))

    def search_experiments(self, where: str, view: str, limit: int, order: Sequence[str], token: str) -> tuple[list[Experiment], str]:
        kept = {"DELETED_ONLY": (True,), "ALL": (True, False)}.get(view, (False,))
        every = [each for each in self.experiments() if (each.deleted is not None) in kept]
        return searched(every, _of_experiment, EXPERIMENT, where, limit, order, token)


EXPERIMENT = {"experiment_id": "experiment_id", "name": "name", "creation_time": "created", "last_update_time": "updated"}


def _of_experiment(each: Experiment, field: Field) -> str | float | None:
    if field.kind == "tag":
        return each.tags.get(field.key)
    return {"experiment_id": str(each.number), "name": each.name, "created": millis(each.time), "updated": millis(each.updated)}.get(field.key)


def searched(things: Sequence[Any], look: Callable[[Any, Field], str | float | None], attributes: Mapping[str, str], where: str, limit: int, order: Sequence[str], token: str) -> tuple[list[Any], str]:
    """Return the page of few things that a filter finds, in the order that is asked for, and the token of the next one."""
    told = parse(where, attributes)
    found = ordered([each for each in things if holds(told, partial(look, each))], parse_order(order, attributes), look)
    return paged(found, limit, token)


def paged(found: Sequence[Any], limit: int, token: str) -> tuple[list[Any], str]:
    place = page_place(token)
    begin = int(place[0]) if place and isinstance(place[0], int) and place[0] >= 0 else 0
    return list(found[begin : begin + limit]), page_token([begin + limit]) if len(found) > begin + limit else ""


def _of_dataset(each: Input, field: Field) -> str | None:
    if field.key == "dataset.context":
        return next((tag["value"] for tag in each.about.get("tags", ()) if tag["key"] == "mlflow.data.context"), None)
    return each.digest if field.key == "dataset.digest" else each.name


def _experiment_number(id: str) -> int:
    if not re.fullmatch(r"-?\d{1,18}", id):
        raise invalid(f"Invalid experiment ID '{id}'. Experiment ID must be a valid integer.")
    return int(id)


def _check_keys(pairs: Sequence[Pair], of: str, what: str) -> None:
    """Refuse keys of parameters or tags; `of` is the field of a batch that they are in."""
    for place, each in enumerate(pairs):
        where = f"{of}[{place}].key" if of else "key"
        if not each.key:
            raise missing(where)
        check_name(each.key, where, what or where)


def _check_metrics(metrics: Sequence[Metric], batch: bool) -> None:
    checked = set()
    for place, each in enumerate(metrics):
        where = f"metrics[{place}]." if batch else ""
        if not each.key:
            raise missing(f"{where}key")
        if each.value is None:
            raise missing(f"{where}value")
        if each.timestamp is None:
            raise missing(f"{where}timestamp")
        if each.key not in checked:
            checked.add(each.key)
            check_name(each.key, f"{where}name", "Metric name")
        if not 0 <= each.timestamp < (1 << 63) // 1_000_000:
            raise invalid(f"Invalid value {each.timestamp} for parameter '{where}timestamp' supplied: metric '{each.key}' (value={each.value}). Timestamp must be a nonnegative long (64-bit integer) ")
        if not -(1 << 63) <= each.step < 1 << 63:
            raise invalid(f"Invalid value {each.step} for parameter '{where}step' supplied: metric '{each.key}' (value={each.value}). Step must be a valid long (64-bit integer).")


def _new_params(run: str, before: Mapping[str, str], params: Sequence[Pair], batch: bool) -> dict[str, str]:
    """Return the parameters that were not logged before.

    Raises:
        Invalid: one has another value already, or comes twice.
    """
    new: dict[str, str] = {}
    twice = [each.key for each in params if each.key in new or new.setdefault(each.key, each.value[:LONGEST]) is None]
    if twice:
        raise invalid(f"Duplicate parameter keys have been submitted: {sorted(set(twice))}. Please ensure the request contains only one param value per param key.")
    changed = [{"key": key, "old_value": before[key], "new_value": value} for key, value in new.items() if before.get(key, value) != value]
    if changed and batch:
        raise invalid(f"Changing param values is not allowed. Params were already logged='{changed}' for run ID='{run}'.")
    if changed:
        each = changed[0]
        raise invalid(
            f"Changing param values is not allowed. Param with key='{each['key']}' was already logged with value='{each['old_value']}' for run ID='{run}'. "
            f"Attempted logging new value '{each['new_value']}'."
        )
    return {key: value for key, value in new.items() if key not in before}


def _run_of(uri: str) -> str:
    """Return the run whose artefacts are at this place, "" if they are nobody's."""
    found = re.fullmatch(r"mlflow-artifacts:/\d+/(\w+)/artifacts", uri)
    return found[1] if found else ""


def _viewed(view: str) -> list[Condition]:
    deleted = Compare(Field("attribute", "deleted"), "null")
    return [] if view == "ALL" else [Not(deleted) if view == "DELETED_ONLY" else deleted]


def _own_words(where: Condition, with_dataset: Callable[[Compare], Compare]) -> Condition:
    """Return a filter with palan's words for what a run's status is, its user, and the datasets that it read."""
    match where:
        case Not(item):
            return Not(_own_words(item, with_dataset))
        case Both(items, every):
            return Both(tuple(_own_words(each, with_dataset) for each in items), every)
        case Compare(Field("attribute", key)) if key.startswith("dataset."):
            return with_dataset(where)
        case Compare(Field("attribute", "artifact_uri"), op, values):
            if op not in ("=", "!=", "in"):
                raise invalid(f"artifact_uri is found by =, != and IN here, not by {op.upper()}: ask for attributes.run_id", "filter")
            return Compare(Field("attribute", "id"), op, tuple(_run_of(str(each)) for each in values))
        case Compare(Field("attribute", "user"), op, values):
            return Compare(_USER, op, values)
        case Compare(Field("attribute", "status"), "like" | "ilike"):
            return Compare(where.field, "in", tuple(own for word, own in STATUSES.items() if holds(where, lambda _, word=word: word)) or ("",))  # type: ignore[misc]
        case Compare(Field("attribute", "status"), op, values):
            return Compare(where.field, op, tuple(STATUSES.get(str(each).upper(), str(each)) for each in values))
    return where
