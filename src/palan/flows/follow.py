"""`palan.follow`: log what works by itself, such as a search, a training, a solve or an environment.

What is followed is known by the module of its class, which is loaded if somebody has such an object: nothing is imported for
it. It is made to report through the library's own callbacks; where there are none, a method of this one object is replaced
until the run ends. A fault of logging does no harm to the work that is followed: it is told once, and following stops.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from math import isfinite
from types import FunctionType
from typing import Any

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
    if run is None:
        run = start(experiment, **options)
    elif options:
        run.params(options)
    log = _Log(run, frozenset(options))
    log.now(attach, log, what)
    return run


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

    def __init__(self, run: LiveRun, told: frozenset[str] = frozenset()) -> None:
        self.run, self.told, self.over = run, told, False
        run.before_end.append(self._end)  # called last: what was added first is

    def _end(self) -> None:
        self.over = True

    def now(self, report: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what a report returns; None if it failed."""
        try:
            return report(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 the work goes on without
            if not self.over:
                self.over = True
                _tell(error)
                with suppress(Exception):
                    self.run.tags(following=f"stopped: {error}"[:LONGEST])

    def safe(self, report: Callable[..., Any]) -> Callable[..., Any]:
        """Return a report that raises nothing, and is made only as long as nothing failed and the run goes on."""
        return lambda *args, **kwargs: None if self.over else self.now(report, *args, **kwargs)

    def params(self, values: Mapping[str, Any]) -> None:
        """Tell parameters of what is followed, but those that the user told. One seed is called so, whatever a library calls it."""
        named = {names.SEED if name == "random_state" and isinstance(value, int) else name: value for name, value in values.items() if value is not None}
        if found := {name: value for name, value in _simple(named).items() if name not in self.told and value != ""}:
            self.run.params(found)

    def part(self, name: str) -> AbstractContextManager[LiveRun | None]:
        """A run within the run, around a block; none where it cannot begin."""
        run = self.safe(start)(self.run.experiment, name=name, parent=self.run)
        return self.inside(run) if run is not None else nullcontext()

    @contextmanager
    def inside(self, run: LiveRun) -> Iterator[LiveRun]:
        """As the `with` block of a run, whose end does no harm either."""
        run.__enter__()
        try:
            yield run
        except BaseException:
            self.now(run.__exit__, *sys.exc_info())
            raise
        self.now(run.__exit__, None, None, None)


def _tell(error: Exception) -> None:
    sys.stderr.write(f"palan: following stopped: {error or type(error).__name__}\npalan: what was followed goes on\n")


Attach = Callable[[_Log, Any], None]


def _around(log: _Log, what: Any, name: str, call: Callable[..., Any]) -> None:
    """Let `call(method, ...)` stand for a method of one object until the run ends.

    The object gets a class of its own, which says that it is the one that it was: so what is cloned, copied or pickled from the
    object is as if nobody followed it, in whatever format.
    """
    kind: Any = type(what)
    known, method = what.__class__, getattr(kind, name)

    @functools.wraps(method)
    def around(self: Any, *args: Any, **kwargs: Any) -> Any:
        inner = method.__get__(self)
        return inner(*args, **kwargs) if log.over else call(inner, *args, **kwargs)

    def reduced(self: Any, protocol: Any) -> Any:
        made = kind.__reduce_ex__(self, protocol)
        return made if isinstance(made, str) else (made[0], tuple(known if each is type(self) else each for each in made[1]), *made[2:])

    members = {name: around, "__reduce_ex__": reduced, "__class__": property(lambda self: known), "__slots__": (), "__module__": kind.__module__, _LOG: log}
    of = object.__dict__["__class__"]  # how a class is set, whatever it says of itself
    of.__set__(what, type(kind)(kind.__name__, (kind,), members))

    def undo() -> None:
        log.over = True
        while (its := vars(type(what)).get(_LOG)) is not None and its.over:  # another run may still follow it
            of.__set__(what, type(what).__base__)

    log.run.before_end.append(undo)


_LOG = "_palan_log"


def _after(log: _Log, what: Any, name: str, report: Callable[..., None]) -> None:
    """Report what a method of an object returned, and what it was given, after each call."""
    reported = log.safe(report)

    def call(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        made = inner(*args, **kwargs)
        reported(made, *args, **kwargs)
        return made

    _around(log, what, name, call)


def _calling(callback: Any, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call with one more callback, before all others: one of them may end the work."""
    signature = inspect.signature(inner)
    if "callbacks" in signature.parameters:
        given = signature.bind_partial(*args, **kwargs)
        given.arguments["callbacks"] = [callback, *(given.arguments.get("callbacks") or ())]
        return inner(*given.args, **given.kwargs)
    if any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values()):
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
        if bound != self.bound and isfinite(bound) and time.monotonic() - self.told >= BOUND_SECONDS:
            with self._lock:
                self.bound = bound
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
    return {name: value if isinstance(value, int | float) else (value if isinstance(value, str) else repr(value))[:LONGEST] for name, value in plain.items()}


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
                part.end("failed", "a score of it is no number: a fit failed")

    def run_search(inner: Callable[..., Any], evaluate: Callable[..., Any], **kwargs: Any) -> Any:
        def evaluated(*args: Any, **more: Any) -> Any:
            results = evaluate(*args, **more)
            log.safe(judged)(results)
            return results

        parts.clear()
        return inner(evaluated, **kwargs)

    def fitted(_: Any, *args: Any, **kwargs: Any) -> None:
        results = search.cv_results_
        for place, part in enumerate(parts):  # a place among all is known now
            if ranks := _numbers({name: values[place] for name, values in results.items() if name.startswith("rank_")}):
                part.log(ranks)
        log.run.log(_numbers({names.OBJECTIVE: getattr(search, "best_score_", None), "candidates": len(results["params"])}))
        _chosen(log.run, {f"best.{name}": value for name, value in getattr(search, "best_params_", {}).items()})

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
        log.params({"estimator": type(estimator).__name__, **estimator.get_params(deep=False)})

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
    one = len(study.directions) == 1
    log.params({"sampler": type(study.sampler).__name__, "pruner": type(study.pruner).__name__, "study": study.study_name})
    log.params({"direction": ", ".join(each.name.lower() for each in study.directions)})
    better = [0]
    seen: set[int] = set()

    def best() -> Any:
        with suppress(ValueError):  # none is complete, or none holds to the constraints
            return study.best_trial if one else None
        return None

    def finished(_: Any, frozen: Any) -> None:
        """Optuna calls it after each trial; it knows what is best, of several processes and under constraints too."""
        if frozen.state.name == "COMPLETE" and (found := best()) is not None and found.number == frozen.number:
            better[0] += 1
            log.run.log({names.OBJECTIVE: found.value, names.INCUMBENTS: better[0]}, step=found.number)

    def tell(run: LiveRun, trial: Any, values: list[float] | None) -> None:
        _chosen(run, trial.params)
        if trial.user_attrs:
            run.tags(_simple(trial.user_attrs))
        if values:
            named = [names.OBJECTIVE] if one else study.metric_names or [f"{names.OBJECTIVE}.{place}" for place in range(len(values))]
            run.log(dict(zip(named, values, strict=True)))

    def tried(objective: Callable[[Any], Any], trial: Any) -> Any:
        pruned, values = None, None
        with log.part(f"trial {trial.number}") as part:
            if part is None:
                return objective(trial)
            log.now(_reporting, log, part, trial)
            try:
                value = objective(trial)
                values = _values(value, len(study.directions))
            except optuna.TrialPruned as error:
                pruned = error
                log.safe(part.tags)({names.STATUS: "pruned"})
            finally:
                log.safe(tell)(part, trial, values)
        if pruned:
            raise pruned
        if values is None:
            log.safe(part.end)("failed", f"the objective returned {value!r:.200}")
        return value

    def optimize(inner: Callable[..., Any], func: Callable[[Any], Any], *args: Any, **kwargs: Any) -> Any:
        return _calling(log.safe(finished), inner, functools.partial(tried, func), *args, **kwargs)

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
            tell(part, frozen, frozen.values if state == "COMPLETE" else None)
            if state == "PRUNED":
                part.tags({names.STATUS: "pruned"})
        if state == "FAIL":
            part.end("failed", "it was told to have failed, or with a value that is no number")
        finished(study, frozen)

    _around(log, study, "optimize", optimize)
    _after(log, study, "tell", told)
    if (found := best()) is not None:  # the study goes on from before
        log.run.log({names.OBJECTIVE: found.value, names.INCUMBENTS: 0}, step=found.number)


def _reporting(log: _Log, part: LiveRun, trial: Any) -> None:
    """Log what a trial reports, once for a step, as Optuna takes it."""
    steps: set[int] = set()

    def told(value: Any, step: Any) -> None:
        if int(step) not in steps:
            steps.add(int(step))
            part.log(reported=float(value), step=int(step))

    def report(inner: Callable[..., None], value: Any, step: Any) -> None:
        inner(value, step)
        log.safe(told)(value, step)

    _around(_Log(part), trial, "report", report)


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
    ours = _Log(run, frozenset(options)) if run is not None else None

    def trained(log: _Log, *args: Any, **kwargs: Any) -> Any:
        log.safe(told)(log, *args, **kwargs)
        made = _calling(_reporter(log, library), function, *args, **kwargs)
        log.safe(_ended_training)(log.run, made)
        return made

    def told(log: _Log, *args: Any, **kwargs: Any) -> None:
        log.params(inspect.signature(function).bind_partial(*args, **kwargs).arguments.get("params") or {})

    @functools.wraps(function)
    def followed(*args: Any, **kwargs: Any) -> Any:
        if ours is not None:
            return function(*args, **kwargs) if ours.over else trained(ours, *args, **kwargs)
        try:
            log = _Log(start(experiment, **options), frozenset(options))
        except NotFound:
            raise  # there is no project: the user wants to know before the training
        except Exception as error:  # noqa: BLE001 a disk that is full since is no reason not to train
            _tell(error)
            return function(*args, **kwargs)
        with log.inside(log.run):
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
    log.params({names.SEED: highs.getOptionValue("random_seed")[1], names.INSTANCE: highs.getLp().model_name_})

    def improved(event: Any) -> None:
        progress.solution(float(event.data_out.objective_function_value), float(event.data_out.mip_dual_bound))

    def passed(event: Any) -> None:
        progress.better_bound(float(event.data_out.mip_dual_bound))

    subscribed = [(highs.cbMipImprovingSolution, log.safe(improved)), (highs.cbMipInterrupt, log.safe(passed))]
    for event, callback in subscribed:
        event.subscribe(callback)

    def ended() -> None:
        for event, callback in subscribed:
            event.unsubscribe(callback)
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

    log.run.before_end.append(log.safe(ended))


_NO_PLAN = ("infeasible", "unbounded", "invalid_input", "error")
"""Statuses that leave neither a plan nor a bound to speak of."""

_CP_SAT = {"OPTIMAL": "optimal", "FEASIBLE": "feasible", "INFEASIBLE": "infeasible", "MODEL_INVALID": "invalid_input", "UNKNOWN": "no_solution"}


def _cp_sat(log: _Log, solver: Any) -> None:
    progress = _Progress(log.run)
    log.params({names.SEED: solver.parameters.random_seed})
    running = threading.local()

    def solve(inner: Callable[..., Any], model: Any, solution_callback: Any = None) -> Any:
        if getattr(running, "inside", False):  # the old name of the method calls the new one
            return inner(model, solution_callback)
        running.inside = True
        has_objective = log.now(model.has_objective)
        log.safe(log.params)({names.INSTANCE: model.name})

        def found(seen: Any) -> None:
            progress.solution(*(seen.objective_value, seen.best_objective_bound) if has_objective else (None, None))

        try:
            with _beside(solver, solution_callback, log.safe(found), log.safe(progress.better_bound)) as callback:
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
        bound = solver.best_objective_bound if has_objective and status not in _NO_PLAN else None
        progress.ended(status, f"CP-SAT {sys.modules['ortools'].__version__}", objective, bound)

    for name in ("solve", "Solve"):
        if hasattr(solver, name):
            _around(log, solver, name, solve)


@contextmanager
def _beside(solver: Any, given: Any, solution: Callable[..., None], bound: Callable[..., None]) -> Iterator[Any]:
    """Give a callback that tells of each solution, beside the one that was given; and of each bound, likewise."""
    base = sys.modules["ortools.sat.python.cp_model"].CpSolverSolutionCallback
    before = solver.best_bound_callback

    def both_bounds(value: float) -> None:
        bound(value)
        before(value)

    def both_solutions() -> None:
        solution(given)
        method()

    method = given.on_solution_callback if given is not None else lambda: None
    solver.best_bound_callback = bound if before is None else both_bounds
    try:
        if given is None:
            yield type("Reporter", (base,), {"on_solution_callback": solution})()
        else:
            given.on_solution_callback = both_solutions
            yield given
    finally:
        solver.best_bound_callback = before
        if given is not None:
            given.on_solution_callback = method


_SCIP = {
    "optimal": "optimal",
    "infeasible": "infeasible",
    "unbounded": "unbounded",
    "timelimit": "timeout",
    "userinterrupt": "cancelled",
    "terminate": "cancelled",
    "memlimit": "error",
}


def _scip(log: _Log, model: Any) -> None:
    scip = sys.modules["pyscipopt"]
    kinds = [scip.SCIP_EVENTTYPE.BESTSOLFOUND, getattr(scip.SCIP_EVENTTYPE, "DUALBOUNDIMPROVED", scip.SCIP_EVENTTYPE.NODESOLVED)]
    progress = _Progress(log.run)
    log.params({names.SEED: model.getParam("randomization/randomseedshift"), names.INSTANCE: model.getProbName()})

    def seen(event: Any) -> None:
        if event.getType() == kinds[0]:
            progress.solution(model.getPrimalbound(), model.getDualbound())
        else:
            progress.better_bound(model.getDualbound())

    report = log.safe(seen)  # which does nothing once the run has ended: a handler cannot be taken out of a model again

    class Handler(scip.Eventhdlr):  # type: ignore[misc, name-defined]
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
            report(event)

    model.includeEventhdlr(Handler(), f"palan-{log.run.id}", "tells palan of solutions and bounds")

    def ended() -> None:
        solved = model.getStatus()
        if solved == "unknown":
            return  # nothing was solved
        status = _SCIP.get(solved, "no_solution")
        has_plan = model.getNSols() > 0 and status not in _NO_PLAN
        objective = model.getObjVal() if has_plan else None
        bound = None if status in _NO_PLAN else model.getDualbound()
        progress.ended("feasible" if has_plan and status != "optimal" else status, f"SCIP {model.version()}", objective, bound)

    log.run.before_end.append(log.safe(ended))


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
    total, length = 0.0, 0

    def reset(_: Any, *args: Any, seed: Any = None, **kwargs: Any) -> None:
        nonlocal total, length
        total, length = 0.0, 0
        seeded(seed)

    def step(seen: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal total, length
        total, length = total + float(seen[1]), length + 1
        if seen[2] or seen[3]:
            ended(total, length)
            total, length = 0.0, 0

    _after(log, env, "reset", reset)
    _after(log, env, "step", step)


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
        counted = ~fresh
        returns[counted] += np.asarray(seen[1], dtype=float)[counted]
        lengths[counted] += 1
        fresh[:] = False
        for place in np.flatnonzero(np.logical_or(seen[2], seen[3]) & counted):
            ended(returns[place], lengths[place])
            returns[place], lengths[place], fresh[place] = 0.0, 0, rests

    _around(log, envs, "reset", reset)
    _after(log, envs, "step", step)


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
