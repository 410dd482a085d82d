"""`palan.follow`: log what works by itself, such as a search, a training, a solve or an environment.

What is followed is known by the module of its class, which is loaded if somebody has such an object: nothing is imported for
it. It is made to report through the library's own callbacks; where there are none, a method of this one object is replaced
until the run ends. A fault of logging does no harm to the work that is followed: it is told once, and following stops.
"""

from __future__ import annotations

import functools
import inspect
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from math import isfinite
from types import FunctionType
from typing import Any, cast
from weakref import WeakKeyDictionary

import msgspec

from palan.errors import Invalid, NotFound
from palan.flows.track import LiveRun, start
from palan.runs import names

BOUND_SECONDS = 0.2
"""How often a better bound alone is told."""

LONGEST = 1000
"""Characters of a parameter that is no number, such as an estimator within a search."""

GAP = 1e-4
"""A solve that stops at a wider gap, as its limits let it, has found a feasible plan, not the optimum."""


def follow(what: Any, experiment: str = "", /, *, run: LiveRun | None = None, **options: Any) -> Any:
    """Follow what works by itself, and log it in a run, which ends with its `with` block, or by `end`.

    Of a training function (`lightgbm.train`, `xgboost.train`, their `cv`) one comes back that logs each call as a run.

    Args:
        what: a search or an estimator of scikit-learn, a study of Optuna, an estimator or a training function of LightGBM or
            XGBoost, a HiGHS model, a CP-SAT solver, a SCIP model, or an environment of gymnasium.
        experiment: what is tried, as `palan.start` takes it.
        run: log into this run, until it ends, and begin none. Then options are parameters of it.
        options: as `palan.start` takes them.

    Raises:
        Invalid: it is nothing that palan can follow.
    """
    if isinstance(what, FunctionType):
        return _training(what, experiment, run, options)
    attach = _way(what)
    log = _begun(experiment, options) if run is None else _into(run, options)
    log.now(attach, log, what)
    return log.run


def _way(what: Any) -> Attach:
    for klass in type(what).__mro__:
        for module, name, _, attach in _FOLLOWED:
            if klass.__name__ == name and klass.__module__.partition(".")[0] == module:
                return attach
    raise Invalid(f"palan cannot follow {type(what).__module__}.{type(what).__qualname__}", f"give {_known()}; or log by yourself: palan.start")


def _known() -> str:
    return ", ".join(dict.fromkeys(said for _, _, said, _ in _FOLLOWED)) + ", or their functions train and cv"


class _Log:
    """What is followed reports through it. The first fault is told, and ends the reports; none reaches the work itself."""

    def __init__(self, run: LiveRun, told: Collection[str] = ()) -> None:
        self.run, self.told, self.over, self.fault = run, frozenset(told), False, ""
        self._lock = threading.Lock()
        run.before_end.append(self._end)  # called last: what was added first is

    def _end(self) -> None:
        self.over = True
        self._mark()

    def _mark(self) -> None:
        if self.fault:
            with suppress(Exception):  # it may be why
                self.run.tags(following=f"stopped: {self.fault}"[:LONGEST])

    def now(self, report: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what a report returns; None if it failed."""
        try:
            return report(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 the work goes on without
            self.fail(error)

    def fail(self, error: Exception) -> None:
        with self._lock:  # of several threads one tells
            told, self.over, self.fault = self.fault, True, self.fault or _said(error)
        if not told:
            _tell(error)
            self._mark()

    def safe(self, report: Callable[..., Any]) -> Callable[..., Any]:
        """Return a report that raises nothing, and is made only as long as nothing failed and the run goes on."""
        return lambda *args, **kwargs: None if self.over else self.now(report, *args, **kwargs)

    def params(self, values: Mapping[str, Any]) -> None:
        """Tell parameters of what is followed, but those that the user told. One seed is called so, whatever a library calls it."""
        simple = _simple({name: value for name, value in values.items() if value is not None})
        named = {names.SEED if name == "random_state" and isinstance(value, int) else name: value for name, value in simple.items()}
        if found := {name: value for name, value in named.items() if name not in self.told and value != ""}:
            self.run.params(found)

    def part(self, name: str) -> AbstractContextManager[LiveRun | None]:
        """A run within the run; none where it cannot begin."""
        run = self.safe(start)(self.run.experiment, name=name, parent=self.run)
        if run is None:
            return nullcontext()
        run.place = msgspec.structs.replace(run.place, courier=None)  # the end of the whole waits until all has arrived, no part of it
        return _Quiet.made(run, self)


class _Quiet(LiveRun):
    """A run whose end is no more of an exception than any other report: what was followed is done, and must not be lost for it."""

    following: _Log

    @staticmethod
    def made(run: LiveRun, log: _Log) -> LiveRun:
        run.__class__ = _Quiet
        cast(_Quiet, run).following = log
        return run

    def end(self, status: str = "done", reason: str = "") -> None:
        try:
            super().end(status, reason)
        except Invalid:
            raise  # it is no status
        except Exception as error:  # noqa: BLE001 it is told
            self.following.fail(error)


def _begun(experiment: str, options: Mapping[str, Any]) -> _Log:
    log = _Log(start(experiment, **options), options)
    _Quiet.made(log.run, log)
    return log


def _into(run: LiveRun, options: Mapping[str, Any]) -> _Log:
    if options:
        run.params(options)
    return _Log(run, options)


def _tell(error: Exception) -> None:
    sys.stderr.write(f"palan: following stopped: {_said(error)}\npalan: what was followed goes on\n")


def _said(error: Exception) -> str:
    return " ".join(str(error).partition("\nhint: ")[0].split()) or type(error).__name__


Attach = Callable[[_Log, Any], None]


def _around(log: _Log, what: Any, name: str, call: Callable[..., Any]) -> None:
    """Let `call(method, ...)` stand for a method of one object until the run ends."""
    _become(what, _standing_in(log, type(what), what.__class__, name, call))

    def undo() -> None:
        log.over = True
        while (its := vars(type(what)).get(_LOG)) is not None and its.over:  # another run may still follow it
            _become(what, type(what).__base__)

    log.run.before_end.append(undo)


def _standing_in(log: _Log, kind: Any, known: type, name: str, call: Callable[..., Any]) -> Any:
    """Return a class as the one of an object is, but for one method.

    It says that it is the one that it was: so what is cloned, copied or pickled from the object is as if nobody followed it, in
    whatever format.
    """
    method = getattr(kind, name)

    @functools.wraps(method)
    def around(self: Any, *args: Any, **kwargs: Any) -> Any:
        inner = method.__get__(self)
        return inner(*args, **kwargs) if log.over else call(inner, *args, **kwargs)

    def reduced(self: Any, protocol: Any) -> Any:
        made = kind.__reduce_ex__(self, protocol)
        return made if isinstance(made, str) else (made[0], tuple(known if each is type(self) else each for each in made[1]), *made[2:])

    members = {name: around, "__reduce_ex__": reduced, "__class__": property(lambda self: known), "__slots__": (), "__module__": kind.__module__, _LOG: log}
    return type(kind)(kind.__name__, (kind,), members)


def _become(what: Any, kind: Any) -> None:
    object.__dict__["__class__"].__set__(what, kind)  # whatever it says of its class itself


_LOG = "_palan_log"


def _after(log: _Log, what: Any, name: str, report: Callable[..., None]) -> None:
    """Report what a method of an object returned, and what it was given, after each call."""

    def call(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        made = inner(*args, **kwargs)
        if not log.over:
            log.now(report, made, *args, **kwargs)
        return made

    _around(log, what, name, call)


def _calling(callback: Any, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call with one more callback, before all others: one of them may end the work."""
    taken = inspect.signature(inner).parameters
    if "callbacks" in taken and (place := [*taken].index("callbacks")) < len(args):
        args = *args[:place], [callback, *(args[place] or ())], *args[place + 1 :]
    elif "callbacks" in taken or any(each.kind is each.VAR_KEYWORD for each in taken.values()):
        kwargs["callbacks"] = [callback, *(kwargs.get("callbacks") or ())]
    return inner(*args, **kwargs)


class _Progress:
    """Curves of a solve: each better solution, and better bounds in between, but not more often than somebody looks."""

    def __init__(self, run: LiveRun) -> None:
        self.run, self.incumbents, self.told = run, 0, 0.0
        self.objective: float | None = None
        self.bound: float | None = None
        self._lock = threading.Lock()  # solvers call from threads of their own

    def solution(self, objective: float, bound: float | None) -> None:
        with self._lock:
            self.incumbents, self.objective, self.bound = self.incumbents + 1, objective, bound
            self._tell()

    def better_bound(self, bound: float) -> None:
        if bound != self.bound and isfinite(bound):
            with self._lock:
                self.bound = bound
                if time.monotonic() - self.told >= BOUND_SECONDS:
                    self._tell()

    def ended(self, status: str, solver: str, objective: float | None, bound: float | None) -> None:
        found = names.of_a_solve(objective, bound)
        if status == "optimal" and found.get(names.GAP, 0.0) > GAP:
            status = "feasible"
        self.objective, self.bound = objective, bound
        self._tell()
        self.run.tags({names.STATUS: status, names.SOLVER: solver})

    def _tell(self) -> None:
        self.told = time.monotonic()
        self.run.log(names.of_a_solve(self.objective, self.bound, self.incumbents))


def _simple(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as they are kept: what is neither a number nor a text as the beginning of what it prints."""
    import numpy as np

    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
    return {name: value if isinstance(value, int | float) else _text(value)[:LONGEST] for name, value in plain.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))  # where it lies is no choice


def _chosen(run: LiveRun, values: Mapping[str, Any]) -> None:
    """Tell what one of many attempts was given: None is a choice too."""
    if values:
        run.params(_simple(values))


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    import numpy as np

    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


# scikit-learn


def _search(log: _Log, search: Any) -> None:
    """One run for each candidate, once those beside it are judged, with its scores and a curve of them over the splits."""
    log.params({"estimator": type(search.estimator).__name__, "search": type(search).__name__, "cv": search.cv, "scoring": search.scoring, "random_state": getattr(search, "random_state", None)})
    parts: list[LiveRun] = []

    def judged(results: Mapping[str, Any]) -> None:
        """Log those that were not there before: a search that halves judges again and again."""
        columns = {name: values for name, values in results.items() if name != "params" and not name.startswith(("param_", "split", "rank_"))}
        splits = {name: values for name, values in results.items() if name.startswith("split")}
        for place in range(len(parts), len(results["params"])):
            with log.part(f"candidate {place}") as part:
                if part is None:
                    return
                parts.append(part)
                _chosen(part, results["params"][place])
                for split, scores in sorted(_by_split(splits, place).items()):
                    part.log(scores, step=split)
                scores = _numbers({name: values[place] for name, values in columns.items()})
                part.log(scores)
            if any(score != score for score in scores.values()):
                part.end("failed", "a score of it is no number")

    def run_search(inner: Callable[..., Any], evaluate: Callable[..., Any], **kwargs: Any) -> Any:
        def evaluated(*args: Any, **more: Any) -> Any:
            results = evaluate(*args, **more)
            log.safe(judged)(results)
            return results

        parts.clear()
        return inner(evaluated, **kwargs)

    def fitted(_: Any, *args: Any, **kwargs: Any) -> None:
        results = search.cv_results_
        judged(results)  # by a search that does not judge as those of scikit-learn itself do
        for place, part in enumerate(parts):  # a place among all is known now
            if ranks := _numbers({name: values[place] for name, values in results.items() if name.startswith("rank_")}):
                part.log(ranks)
        log.run.log(_numbers({names.OBJECTIVE: getattr(search, "best_score_", None), "candidates": len(results["params"])}))
        _chosen(log.run, {f"best.{name}": value for name, value in getattr(search, "best_params_", {}).items()})
        parts.clear()

    _around(log, search, "_run_search", run_search)
    _after(log, search, "fit", fitted)


def _by_split(splits: Mapping[str, Any], place: int) -> dict[int, dict[str, float]]:
    """Return the scores of one candidate by split: "split0_test_score" is `test_score` at 0."""
    found: dict[int, dict[str, float]] = {}
    for name, values in splits.items():
        number, _, score = name.removeprefix("split").partition("_")
        found.setdefault(int(number), {})[score] = float(values[place])
    return found


_CURVES = ("loss_curve_", "validation_scores_", "train_score_", "validation_score_", "oob_scores_", "lower_bounds_")
"""What estimators of scikit-learn keep of their iterations."""

_FIGURES = ("n_iter_", "best_loss_", "best_validation_score_", "inertia_", "lower_bound_", "oob_score_", "n_features_in_")


def _estimator(log: _Log, estimator: Any) -> None:
    """The parameters, and after each fit what the estimator kept of its iterations."""
    import numpy as np

    def fitted() -> None:
        kept = {name.rstrip("_"): np.asarray(getattr(estimator, name, ())) for name in _CURVES if getattr(estimator, name, None) is not None}
        curves = {name: values.astype(float) for name, values in kept.items() if values.ndim == 1 and values.size and values.dtype.kind in "fiu"}
        for step in range(max((len(values) for values in curves.values()), default=0)):
            log.run.log({name: float(values[step]) for name, values in curves.items() if step < len(values)}, step=step)
        figures = {name.rstrip("_"): np.max(getattr(estimator, name)) for name in _FIGURES if getattr(estimator, name, None) is not None}
        if figures := _numbers(figures):
            log.run.log(figures)

    _fitting(log, estimator, fitted)


def _fitting(log: _Log, estimator: Any, report: Callable[[], None], fit: Callable[..., Any] = lambda inner, *args, **kwargs: inner(*args, **kwargs)) -> None:
    """Tell the parameters of an estimator as each fit begins, and report once it is done."""

    def tell() -> None:
        given = estimator.get_params(deep=False)
        log.params({**given, "estimator.estimator": given.get("estimator"), "estimator": type(estimator).__name__})

    def told(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        log.safe(tell)()
        made = fit(inner, *args, **kwargs)
        log.safe(report)()
        return made

    _around(log, estimator, "fit", told)


# Optuna


def _study(log: _Log, study: Any) -> None:
    """One run for each trial, live: what the objective itself starts is a part of it. The run of the study follows the best."""
    optuna = sys.modules["optuna"]
    many = len(study.directions)  # to ask a study may be to ask a database: not for each trial
    log.params({"sampler": type(study.sampler).__name__, "pruner": type(study.pruner).__name__, "study": study.study_name})
    log.params({"direction": ", ".join(each.name.lower() for each in study.directions)})
    best = _Best(log, study)
    kinds: dict[type, Any] = {}  # to make a class takes longer than a trial
    tries: dict[int, _Try] = {}
    seen: set[int] = set()
    called: list[str] = []

    def tell(tried: _Try, trial: Any, values: list[float] | None) -> None:
        tried.choose(trial)
        if trial.user_attrs:
            tried.run.tags(_simple(trial.user_attrs))
        if values:
            called[:] = called or ([names.OBJECTIVE] if many == 1 else study.metric_names or [f"{names.OBJECTIVE}.{place}" for place in range(many)])
            tried.run.log(dict(zip(called, values, strict=True)))
            if many == 1:
                best.perhaps(trial.number, values[0])

    def report(inner: Any, value: Any, step: Any) -> None:
        inner(value, step)
        if (this := tries.get(inner.__self__.number)) is not None:
            log.safe(this.report)(inner.__self__, value, step)

    def reporting(trial: Any) -> None:
        kind = type(trial)
        if kind not in kinds:
            kinds[kind] = _standing_in(log, kind, trial.__class__, "report", report)
        _become(trial, kinds[kind])

    def tried(objective: Callable[[Any], Any], trial: Any) -> Any:
        pruned, values = None, None
        log.safe(best.look)()
        with log.part(f"trial {trial.number}") as part:
            if part is None:
                return objective(trial)
            this = tries[trial.number] = _Try(part)
            log.now(reporting, trial)
            try:
                value = objective(trial)
                values = _values(value, many)
            except optuna.TrialPruned as error:
                pruned = error
                log.safe(part.tags)({names.STATUS: "pruned"})
            finally:
                log.safe(tell)(this, trial, values)
                del tries[trial.number]
        if pruned:
            raise pruned
        if values is None:
            log.safe(part.end)("failed", f"the objective returned {value!r:.200}")
        return value

    def optimize(inner: Callable[..., Any], func: Callable[[Any], Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return inner(functools.partial(tried, func), *args, **kwargs)
        finally:
            log.safe(best.look)(last=True)

    def told(frozen: Any, *args: Any, **kwargs: Any) -> None:
        if frozen.number in seen:  # it may be told twice, if the user says so
            return
        seen.add(frozen.number)
        state = frozen.state.name
        with log.part(f"trial {frozen.number}") as part:
            if part is None:
                return
            for step, value in sorted(frozen.intermediate_values.items()):
                part.log(reported=value, step=step)
            tell(_Try(part), frozen, frozen.values if state == "COMPLETE" else None)
            if state == "PRUNED":
                part.tags({names.STATUS: "pruned"})
        if state == "FAIL":
            part.end("failed", "it was told to have failed, or with a value that is no number")
        best.look()

    _around(log, study, "optimize", optimize)
    _after(log, study, "tell", told)


class _Try:
    """What is told of a trial already: a value for each step once, as Optuna takes it, and what was chosen as soon as it reports."""

    def __init__(self, run: LiveRun) -> None:
        self.run, self.chosen = run, 0
        self.steps: set[int] = set()

    def choose(self, trial: Any) -> None:
        if len(chosen := trial.params) > self.chosen:  # a trial only ever chooses more
            self.chosen = len(chosen)
            self.run.params(_simple(chosen))

    def report(self, trial: Any, value: Any, step: Any) -> None:
        if not self.chosen:
            self.choose(trial)
        if int(step) not in self.steps:
            self.steps.add(int(step))
            self.run.log(reported=float(value), step=int(step))


class _Best:
    """The best trial of a study, as Optuna knows it: of several processes, and under constraints.

    It is asked only of trials that may be the best, and as their thread goes on to the next: then they are told to it, and a
    question to a database costs more than many an objective.
    """

    def __init__(self, log: _Log, study: Any) -> None:
        self.log, self.study, self.better = log, study, 0
        self.least = study.directions[0].name == "MINIMIZE"
        self.value: float | None = None
        self.waiting: dict[int, int] = {}  # by thread
        if len(study.directions) == 1 and (found := self._known()) is not None:  # the study goes on from before
            log.run.log({names.OBJECTIVE: found.value, names.INCUMBENTS: 0}, step=found.number)

    def _known(self) -> Any:
        with suppress(ValueError):  # none is complete, or none holds to the constraints
            found = self.study.best_trial
            self.value = found.value
            return found
        return None

    def perhaps(self, number: int, value: float) -> None:
        if self.value is None or (value < self.value if self.least else value > self.value):
            self.waiting[threading.get_ident()] = number

    def look(self, last: bool = False) -> None:
        mine = threading.get_ident()
        numbers = {number for thread, number in list(self.waiting.items()) if last or thread == mine}
        if numbers and (found := self._known()) is not None and found.number in numbers:
            self.better += 1
            self.log.run.log({names.OBJECTIVE: found.value, names.INCUMBENTS: self.better}, step=found.number)
        for thread in [mine] if not last else list(self.waiting):
            self.waiting.pop(thread, None)


def _values(returned: Any, many: int) -> list[float] | None:
    """Return what an objective returned as Optuna reads it; None if that is a failed trial."""
    with suppress(TypeError, ValueError):
        values = [float(each) for each in (returned if isinstance(returned, Sequence) else [returned])]
        return values if len(values) == many and all(each == each for each in values) else None
    return None


# LightGBM and XGBoost


def _training(function: FunctionType, experiment: str, run: LiveRun | None, options: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function, made to log every evaluation of every call."""
    library = function.__module__.partition(".")[0]
    if library not in ("lightgbm", "xgboost") or function.__name__ not in ("train", "cv"):
        raise Invalid(f"palan cannot follow {function.__module__}.{function.__name__}", f"give {_known()}; or track a function of your own: @palan.track")
    ours = _into(run, options) if run is not None else None

    def trained(log: _Log, *args: Any, **kwargs: Any) -> Any:
        log.safe(told)(log, args[0] if args else kwargs.get("params"))
        made = _calling(_reporter(log, library), function, *args, **kwargs)
        log.safe(_ended_training)(log.run, made)
        return made

    def told(log: _Log, params: Any) -> None:
        log.params(dict(params or {}))

    @functools.wraps(function)
    def followed(*args: Any, **kwargs: Any) -> Any:
        if ours is not None:
            return function(*args, **kwargs) if ours.over else trained(ours, *args, **kwargs)
        try:
            log = _begun(experiment, options)
        except NotFound:
            raise  # there is no project: the user wants to know before the training
        except Exception as error:  # noqa: BLE001 a disk that is full since is no reason not to train
            _tell(error)
            return function(*args, **kwargs)
        with log.run:
            return trained(log, *args, **kwargs)

    return followed


def _ended_training(run: LiveRun, made: Any) -> None:
    best = getattr(made, "best_iteration", None)  # a property that raises where there was no early stopping
    if isinstance(best, int) and (best > 0 or (best == 0 and type(made).__module__.startswith("xgboost"))):  # LightGBM says 0 or -1 for none
        run.log(best_iteration=best)


def _reporter(log: _Log, library: str) -> Any:
    if library == "lightgbm":
        return log.safe(functools.partial(_lightgbm_evaluated, log.run))
    evaluated = log.safe(functools.partial(_xgboost_evaluated, log.run))

    class Reporter(sys.modules["xgboost"].callback.TrainingCallback):  # type: ignore[misc]  # it takes instances of its own class only
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            evaluated(epoch, evals_log)
            return False

    return Reporter()


def _lightgbm_evaluated(run: LiveRun, env: Any) -> None:
    values = {}
    for data, metric, value, _, *spread in env.evaluation_result_list or ():
        values[f"{data}/{metric}"] = float(value)
        if spread:
            values[f"{data}/{metric}/std"] = float(spread[0])
    if values:
        run.log(values, step=env.iteration)


def _xgboost_evaluated(run: LiveRun, epoch: int, evals_log: Any) -> None:
    values = {}
    for data, metrics in evals_log.items():
        for metric, history in metrics.items():
            mean, *spread = history[-1] if isinstance(history[-1], tuple) else (history[-1],)
            values[f"{data}/{metric}"] = float(mean)
            if spread:
                values[f"{data}/{metric}/std"] = float(spread[0])
    if values:
        run.log(values, step=epoch)


def _lightgbm(log: _Log, model: Any) -> None:
    _fitting(log, model, lambda: _ended_training(log.run, model.booster_), functools.partial(_calling, _reporter(log, "lightgbm")))


def _xgboost(log: _Log, model: Any) -> None:
    def fit(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        own = model.callbacks
        model.callbacks = [_reporter(log, "xgboost"), *(own or ())]
        try:
            return inner(*args, **kwargs)
        finally:
            model.callbacks = own  # a clone or a pickle of the model must not drag the run along

    _fitting(log, model, lambda: _ended_training(log.run, model), fit)


# Solvers


def _highs(log: _Log, highs: Any) -> None:
    from palan.models.highs import STATUS

    kinds = sys.modules["highspy"].HighsModelStatus
    progress = _Progress(log.run)

    def known() -> None:
        log.params({names.SEED: highs.getOptionValue("random_seed")[1], names.INSTANCE: highs.getLp().model_name_})

    def improved(event: Any) -> None:
        progress.solution(float(event.data_out.objective_function_value), float(event.data_out.mip_dual_bound))

    def bounded(event: Any) -> None:
        progress.better_bound(float(event.data_out.mip_dual_bound))

    report, asked, stopped = log.safe(bounded), list[int](), [False]

    def passed(event: Any) -> None:
        report(event)
        if asked or stopped[0]:  # it keeps that it was stopped, for the next solve too
            event.interrupt(bool(asked))
            stopped[0] = bool(asked)

    def solve(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with nullcontext() if highs.HandleKeyboardInterrupt else _patiently(asked):
            return inner(*args, **kwargs)

    subscribed = [(highs.cbMipImprovingSolution, log.safe(improved)), (highs.cbMipInterrupt, passed)]
    known()
    for event, callback in subscribed:
        event.subscribe(callback)

    def ended() -> None:
        for event, callback in subscribed:
            event.unsubscribe(callback)
        known()  # the model may have been read since
        solved, info = highs.getModelStatus(), highs.getInfo()
        if solved == kinds.kNotset:
            return  # nothing was solved
        proven = solved in (kinds.kOptimal, kinds.kModelEmpty)
        status = "optimal" if proven else STATUS.get(solved, "no_solution")
        has_plan = proven or (info.primal_solution_status == sys.modules["highspy"].kSolutionStatusFeasible and status not in _NO_PLAN)
        objective = float(info.objective_function_value) if has_plan else None
        whole = bool(len(highs.getLp().integrality_)) and solved != kinds.kModelEmpty
        bound = float(info.mip_dual_bound) if whole and status not in _NO_PLAN else objective if proven else None
        progress.ended("feasible" if has_plan and not proven else status, f"HiGHS {highs.version()}", objective, bound)

    for name in ("solve", "run"):
        _around(log, highs, name, solve)
    log.run.before_end.append(log.safe(ended))


@contextmanager
def _patiently(asked: list[int]) -> Iterator[None]:
    """Let Ctrl-C ask for an end first, and raise once that has come: out of a callback it would unwind through the solver, and break it."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if asked:
            asked.clear()
            before(signal.SIGINT, None)


_NO_PLAN = ("infeasible", "unbounded", "invalid_input", "error")
"""Statuses that leave neither a plan nor a bound to speak of."""

_CP_SAT = {"OPTIMAL": "optimal", "FEASIBLE": "feasible", "INFEASIBLE": "infeasible", "MODEL_INVALID": "invalid_input", "UNKNOWN": "no_solution"}


def _cp_sat(log: _Log, solver: Any) -> None:
    progress = _Progress(log.run)
    base = sys.modules["ortools.sat.python.cp_model"].CpSolverSolutionCallback
    running = threading.local()

    def solve(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        told: tuple[Any, ...] = ()
        with suppress(TypeError):  # it is called in a wrong way, and says so itself
            told = inspect.signature(inner).bind(*args, **kwargs).args
        model, given = (*told, None, None)[:2]
        if getattr(running, "inside", False) or not hasattr(model, "has_objective") or not isinstance(given, base | None):
            return inner(*args, **kwargs)  # the old name of the method calls the new one
        running.inside = True
        has_objective = log.now(model.has_objective)
        log.safe(log.params)({names.SEED: solver.parameters.random_seed, names.INSTANCE: model.name})
        progress.objective = progress.bound = None

        def found(seen: Any) -> None:
            progress.solution(*(seen.objective_value, seen.best_objective_bound) if has_objective else (None, None))

        try:
            with _beside(base, solver, given, log.safe(found), log.safe(progress.better_bound)) as callback:
                status = inner(model, callback)
        finally:
            running.inside = False
        log.safe(ended)(solver.status_name(status), has_objective)
        return status

    def ended(told: str, has_objective: bool) -> None:
        status = _CP_SAT.get(told, "no_solution")
        if status == "no_solution" and solver.wall_time >= 0.9 * solver.parameters.max_time_in_seconds:
            status = "timeout"
        has_plan = status in ("optimal", "feasible")
        objective = solver.objective_value if has_plan and has_objective else None
        knows = has_plan or progress.bound is not None  # where it had no time to find a bound, it says 0
        bound = solver.best_objective_bound if has_objective and knows and status not in _NO_PLAN else None
        progress.ended(status, f"CP-SAT {sys.modules['ortools'].__version__}", objective, bound)

    for name in ("solve", "Solve"):
        if hasattr(solver, name):
            _around(log, solver, name, solve)


@contextmanager
def _beside(base: Any, solver: Any, given: Any, solution: Callable[..., None], bound: Callable[..., None]) -> Iterator[Any]:
    """Give a callback that tells of each solution, beside the one that was given; and of each bound, likewise."""
    before, own = solver.best_bound_callback, None

    def both_bounds(value: float) -> None:
        bound(value)
        before(value)

    def both_solutions() -> None:
        solution(given)
        method()

    solver.best_bound_callback = bound if before is None else both_bounds
    try:
        if given is None:
            yield type("Reporter", (base,), {"on_solution_callback": solution})()
        else:
            own, method = vars(given).get("on_solution_callback"), given.on_solution_callback
            given.on_solution_callback = both_solutions
            yield given
    finally:
        solver.best_bound_callback = before
        if given is not None:
            del given.on_solution_callback
        if own is not None:
            given.on_solution_callback = own


_SCIP = {
    "optimal": "optimal",
    "infeasible": "infeasible",
    "unbounded": "unbounded",
    "timelimit": "timeout",
    "userinterrupt": "cancelled",
    "terminate": "cancelled",
    "memlimit": "error",
}


_handlers: WeakKeyDictionary[Any, dict[str, Callable[[Any], None]]] = WeakKeyDictionary()
"""By SCIP model, to whom its handler of events reports: it can neither be taken out of a model, nor be put in once that is being solved."""


def _scip(log: _Log, model: Any) -> None:
    scip = sys.modules["pyscipopt"]
    progress = _Progress(log.run)

    def known() -> None:
        log.params({names.SEED: model.getParam("randomization/randomseedshift"), names.INSTANCE: model.getProbName()})

    def seen(event: Any) -> None:
        if event.getType() == scip.SCIP_EVENTTYPE.BESTSOLFOUND:
            progress.solution(model.getPrimalbound(), model.getDualbound())
        else:
            progress.better_bound(model.getDualbound())

    def ended() -> None:
        _handlers.get(model, {}).pop(log.run.id, None)
        known()  # the problem may have been read since
        solved = model.getStatus()
        if solved == "unknown":
            return  # nothing was solved
        status = _SCIP.get(solved, "no_solution")
        has_plan = model.getNSols() > 0 and status not in _NO_PLAN
        objective = model.getObjVal() if has_plan else None
        bound = None if status in _NO_PLAN else model.getDualbound()
        progress.ended("feasible" if has_plan and status != "optimal" else status, f"SCIP {model.version()}", objective, bound)

    log.run.before_end.append(log.safe(ended))
    known()
    if model not in _handlers and model.getStage() <= scip.SCIP_STAGE.PROBLEM:
        reports = _handlers[model] = {}
        model.includeEventhdlr(_scip_handler(scip, reports), "palan", "tells palan of solutions and bounds")
    if model in _handlers:
        _handlers[model][log.run.id] = log.safe(seen)


def _scip_handler(scip: Any, reports: Mapping[str, Callable[[Any], None]]) -> Any:
    kinds = [scip.SCIP_EVENTTYPE.BESTSOLFOUND, getattr(scip.SCIP_EVENTTYPE, "DUALBOUNDIMPROVED", scip.SCIP_EVENTTYPE.NODESOLVED)]

    class Handler(scip.Eventhdlr):  # type: ignore[misc]  # it takes instances of its own class only
        def eventinit(self) -> None:
            for kind in kinds:
                self.model.catchEvent(kind, self)

        def eventexit(self) -> None:
            try:
                for kind in kinds:
                    self.model.dropEvent(kind, self)
            except ReferenceError:
                return  # the model itself is going: before PySCIPOpt 6 a handler only knew a weak reference to it

        def eventexec(self, event: Any) -> None:
            for report in [*reports.values()]:
                report(event)

    return Handler()


# gymnasium


def _environment(log: _Log, env: Any) -> None:
    """Return and length of each episode; of a vector of environments those of each, as they end."""
    log.params({names.INSTANCE: getattr(env.spec, "id", "")})
    episodes = [0]

    def ended(total: float, length: int) -> None:
        log.run.log({names.RETURN: total, names.LENGTH: length}, step=episodes[0])
        episodes[0] += 1

    def seeded(seed: Any) -> None:
        if seed is not None and not episodes[0]:
            log.params({names.SEED: seed})

    (_many if hasattr(env, "num_envs") else _single)(log, env, seeded, ended)


def _single(log: _Log, env: Any, seeded: Callable[[Any], None], ended: Callable[[float, int], None]) -> None:
    total, length, fresh, rests = 0.0, 0, False, _resets_itself(env)

    def reset(_: Any, *args: Any, seed: Any = None, **kwargs: Any) -> None:
        nonlocal total, length, fresh
        total, length, fresh = 0.0, 0, False
        seeded(seed)

    def step(seen: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal total, length, fresh
        if fresh:
            fresh = False
            return
        reward = seen[1]
        total, length = total + float(reward.item() if hasattr(reward, "item") else reward), length + 1
        if seen[2] or seen[3]:
            ended(total, length)
            total, length, fresh = 0.0, 0, rests

    _after(log, env, "reset", reset)
    _after(log, env, "step", step)


def _resets_itself(env: Any) -> bool:
    """Whether the step after an episode only resets, and belongs to none."""
    while env is not None and type(env).__name__ != "Autoreset":
        env = getattr(env, "env", None)
    return env is not None


def _many(log: _Log, envs: Any, seeded: Callable[[Any], None], ended: Callable[[float, int], None]) -> None:
    import numpy as np

    mode = envs.metadata.get("autoreset_mode", "NextStep")  # before gymnasium 1.1 there was no other
    rests = getattr(mode, "value", mode) == "NextStep"
    returns, lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=int)
    fresh = np.zeros(envs.num_envs, dtype=bool)  # the step after an episode only resets: it belongs to none

    def cleared(seed: Any = None, options: Mapping[str, Any] | None = None) -> None:
        which = (options or {}).get("reset_mask", slice(None))
        returns[which], lengths[which], fresh[which] = 0.0, 0, False
        seeded(seed)

    def reset(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        log.safe(cleared)(*args, **kwargs)  # before, for it takes the mask out of the options
        return inner(*args, **kwargs)

    def step(seen: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal returns, lengths
        rewards, over = np.asarray(seen[1], dtype=float), np.logical_or(seen[2], seen[3])
        if fresh.any():
            over &= ~fresh
            returns += np.where(fresh, 0.0, rewards)
            lengths += ~fresh
            fresh[:] = False
        else:
            returns += rewards
            lengths += 1
        if over.any():
            for place in np.flatnonzero(over):
                ended(returns[place], lengths[place])
            returns[over], lengths[over], fresh[over] = 0.0, 0, rests

    waits = hasattr(type(envs), "step_wait")  # with others meanwhile: to step and to reset is to ask for it, and to wait
    _around(log, envs, "reset_async" if waits else "reset", reset)
    _after(log, envs, "step_wait" if waits else "step", step)


_FOLLOWED: tuple[tuple[str, str, str, Attach], ...] = (
    ("lightgbm", "LGBMModel", "an estimator of LightGBM or XGBoost", _lightgbm),
    ("xgboost", "XGBRFClassifier", "an estimator of LightGBM or XGBoost", _estimator),  # a forest takes no callbacks
    ("xgboost", "XGBRFRegressor", "an estimator of LightGBM or XGBoost", _estimator),
    ("xgboost", "XGBModel", "an estimator of LightGBM or XGBoost", _xgboost),
    ("sklearn", "BaseSearchCV", "a search or an estimator of scikit-learn", _search),
    ("sklearn", "BaseEstimator", "a search or an estimator of scikit-learn", _estimator),
    ("optuna", "Study", "a study of Optuna", _study),
    ("highspy", "Highs", "a HiGHS model", _highs),
    ("ortools", "CpSolver", "a CP-SAT solver", _cp_sat),
    ("pyscipopt", "Model", "a SCIP model", _scip),
    ("gymnasium", "Env", "an environment of gymnasium", _environment),
    ("gymnasium", "VectorEnv", "an environment of gymnasium", _environment),
)
"""Module, class, what to call it, and how it is followed; of several that fit, the class nearest to the object's own."""
