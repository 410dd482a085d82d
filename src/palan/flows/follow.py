"""`palan.follow`: log what works by itself, such as a search, a training, a solve or an environment.

What is followed is known by the module of its class, which is loaded if somebody has such an object: nothing is imported for
it. It is made to report through the library's own callbacks; where there are none, a method of this one object is replaced
until the run ends. A fault of logging inside a solver never unwinds through it: it is raised when the run ends.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from types import FunctionType
from typing import Any

from palan.errors import Invalid
from palan.flows.track import LiveRun, start
from palan.runs import names

BOUND_SECONDS = 0.2
"""How often a better bound alone is told."""

LONGEST = 1000
"""Characters of a parameter that is no number and no text, such as an estimator within a search."""


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
    attach(run, what, frozenset(options))
    return run


Attach = Callable[[LiveRun, Any, frozenset[str]], None]


def _way(what: Any) -> Attach:
    for klass in type(what).__mro__:
        for module, name, _, attach in _FOLLOWED:
            if klass.__name__ == name and klass.__module__.partition(".")[0] == module:
                return attach
    raise Invalid(f"palan cannot follow {type(what).__module__}.{type(what).__qualname__}", f"give {_known()}; or log by yourself: palan.start")


def _known() -> str:
    return ", ".join(dict.fromkeys(said for _, _, said, _ in _FOLLOWED)) + ", or their functions train and cv"


class _Around:
    """Stands in the place of a method of one object. A pickle of that object holds the method itself."""

    def __init__(self, what: Any, name: str, call: Callable[..., Any]) -> None:
        self._place, self._call, self._inner = (what, name), call, getattr(what, name)
        functools.update_wrapper(self, self._inner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._inner, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, self._place


def _around(run: LiveRun, what: Any, name: str, call: Callable[..., Any]) -> None:
    """Let `call(method, ...)` stand for a method of an object until the run ends."""
    before, mine = vars(what).get(name), _Around(what, name, call)
    setattr(what, name, mine)

    def undo() -> None:
        if vars(what).get(name) is not mine:  # somebody else stands around it since
            return
        if before is None:
            delattr(what, name)
        else:
            setattr(what, name, before)

    run.before_end.append(undo)


class _Caught:
    """Keeps the first fault of callbacks, which must not unwind through a solver, until the run ends."""

    def __init__(self, run: LiveRun) -> None:
        self.first: Exception | None = None
        run.before_end.append(self._raise)

    def _raise(self) -> None:
        if self.first is not None:
            raise self.first

    def __call__(self, callback: Callable[..., None]) -> Callable[..., None]:
        def safe(*args: Any) -> None:
            if self.first is None:
                try:
                    callback(*args)
                except Exception as error:  # noqa: BLE001 raised when the run ends
                    self.first = error

        return safe


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
        self.objective, self.bound = objective, bound
        self._tell()
        self.run.tags({names.STATUS: status, names.SOLVER: solver})

    def _tell(self) -> None:
        self.told = time.monotonic()
        self.run.log(names.of_a_solve(self.objective, self.bound, self.incumbents))


def _simple(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as they are kept: what is neither a number nor a text as the beginning of what it prints."""
    return {name: value if isinstance(value, str | int | float) else repr(value)[:LONGEST] for name, value in values.items() if value is not None}


def _params(run: LiveRun, values: Mapping[str, Any], told: frozenset[str] = frozenset()) -> None:
    if found := {name: value for name, value in _simple(values).items() if name not in told and value != ""}:
        run.params(found)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    import numpy as np

    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _part(run: LiveRun, name: str) -> LiveRun:
    return start(run.experiment, name=name, parent=run)


# scikit-learn


def _search(run: LiveRun, search: Any, told: frozenset[str]) -> None:
    """One run for each candidate, once all are judged, with its scores and a curve of them over the splits."""
    _params(run, {"estimator": type(search.estimator).__name__, "search": type(search).__name__, "cv": search.cv, "scoring": search.scoring}, told)

    def fit(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        fitted = inner(*args, **kwargs)
        results = search.cv_results_
        columns = {name: values for name, values in results.items() if name != "params" and not name.startswith(("param_", "split"))}
        splits = {name: values for name, values in results.items() if name.startswith("split")}
        for place, params in enumerate(results["params"]):
            with _part(run, f"candidate {place}") as part:
                _params(part, params)
                for split, scores in sorted(_by_split(splits, place).items()):
                    part.log(scores, step=split)
                part.log(_numbers({name: values[place] for name, values in columns.items()}))
        run.log(_numbers({names.OBJECTIVE: getattr(search, "best_score_", None), "candidates": len(results["params"])}))
        if hasattr(search, "best_params_"):
            _params(run, {f"best.{name}": value for name, value in search.best_params_.items()})
        return fitted

    _around(run, search, "fit", fit)


def _by_split(splits: Mapping[str, Any], place: int) -> dict[int, dict[str, float]]:
    """Return the scores of one candidate by split: "split0_test_score" is `test_score` at 0."""
    found: dict[int, dict[str, float]] = {}
    for name, values in splits.items():
        number, _, score = name.removeprefix("split").partition("_")
        found.setdefault(int(number), {})[score] = float(values[place])
    return found


_CURVES = ("loss_curve_", "validation_scores_", "train_score_", "validation_score_", "oob_scores_", "lower_bounds_", "scores_")
"""What estimators of scikit-learn keep of their iterations."""

_FIGURES = ("n_iter_", "best_loss_", "best_validation_score_", "inertia_", "lower_bound_", "oob_score_", "n_features_in_")


def _estimator(run: LiveRun, estimator: Any, told: frozenset[str]) -> None:
    """The parameters, and after each fit what the estimator kept of its iterations."""
    import numpy as np

    def fit(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        _params(run, {"estimator": type(estimator).__name__, **estimator.get_params(deep=False)}, told)
        fitted = inner(*args, **kwargs)
        kept = {name.rstrip("_"): np.asarray(getattr(estimator, name, ())) for name in _CURVES if getattr(estimator, name, None) is not None}
        curves = {name: values.astype(float) for name, values in kept.items() if values.ndim == 1 and values.size and values.dtype.kind in "fiu"}
        for step in range(max((len(values) for values in curves.values()), default=0)):
            run.log({name: float(values[step]) for name, values in curves.items() if step < len(values)}, step=step)
        figures = {name.rstrip("_"): np.max(getattr(estimator, name)) for name in _FIGURES if getattr(estimator, name, None) is not None}
        if figures := _numbers(figures):
            run.log(figures)
        return fitted

    _around(run, estimator, "fit", fit)


# Optuna


def _study(run: LiveRun, study: Any, told: frozenset[str]) -> None:
    """One run for each trial, live: what the objective itself starts is a part of it. The run of the study follows the best."""
    optuna = sys.modules["optuna"]
    one = len(study.directions) == 1
    _params(run, {"sampler": type(study.sampler).__name__, "pruner": type(study.pruner).__name__, "study": study.study_name}, told)
    _params(run, {"direction": ", ".join(each.name.lower() for each in study.directions)}, told)
    best: list[float] = []
    lock = threading.Lock()

    def called(values: Iterable[Any]) -> dict[str, float]:
        given = list(values)
        if one:
            return {names.OBJECTIVE: given[0]}
        return dict(zip(study.metric_names or [f"{names.OBJECTIVE}.{place}" for place in range(len(given))], given, strict=True))

    def completed(number: int, values: Mapping[str, float]) -> None:
        if not one:
            return
        value, least = values[names.OBJECTIVE], study.directions[0].name == "MINIMIZE"
        with lock:
            if not best or (value < best[-1] if least else value > best[-1]):
                best.append(value)
                run.log({names.OBJECTIVE: value, names.INCUMBENTS: len(best)}, step=number)

    def tried(objective: Callable[[Any], Any], trial: Any) -> Any:
        part, pruned = _part(run, f"trial {trial.number}"), None

        def report(inner: Callable[..., None], value: float, step: int) -> None:
            inner(value, step)
            part.log(reported=value, step=step)

        _around(part, trial, "report", report)
        with part:
            try:
                value = objective(trial)
            except optuna.TrialPruned as error:
                pruned = error
                part.tags({names.STATUS: "pruned"})
            finally:
                _params(part, trial.params)
            values = [] if pruned else list(value) if isinstance(value, list | tuple) else [value]
            sound = len(values) == len(study.directions) and all(_is_number(each) and each == each for each in values)
            if sound:
                part.log(called(float(each) for each in values))
                completed(trial.number, called(float(each) for each in values))
        if pruned:
            raise pruned
        if not sound:
            part.end("failed", f"the objective returned {value!r:.200}")
        return value

    def optimize(inner: Callable[..., Any], func: Callable[[Any], Any], *args: Any, **kwargs: Any) -> Any:
        return inner(functools.partial(tried, func), *args, **kwargs)

    def tell(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        frozen = inner(*args, **kwargs)
        state = frozen.state.name.lower()
        part = _part(run, f"trial {frozen.number}")
        _params(part, frozen.params)
        for step, value in sorted(frozen.intermediate_values.items()):
            part.log(reported=value, step=step)
        if state == "complete":
            part.log(called(frozen.values))
            completed(frozen.number, called(frozen.values))
        elif state == "pruned":
            part.tags({names.STATUS: state})
        part.end("failed" if state == "fail" else "done")
        return frozen

    _around(run, study, "optimize", optimize)
    _around(run, study, "tell", tell)


# LightGBM and XGBoost


def _training(function: FunctionType, experiment: str, run: LiveRun | None, options: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function, made to log every evaluation of every call."""
    library = function.__module__.partition(".")[0]
    if library not in ("lightgbm", "xgboost") or function.__name__ not in ("train", "cv"):
        raise Invalid(f"palan cannot follow {function.__module__}.{function.__name__}", f"give {_known()}; or track a function of your own: @palan.track")
    reporter = _lightgbm_reporter if library == "lightgbm" else _xgboost_reporter

    def trained(live: LiveRun, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        _params(live, params, frozenset(options))
        made = function(params, *args, **{**kwargs, "callbacks": [*(kwargs.get("callbacks") or []), reporter(live)]})
        _ended_training(live, made)
        return made

    @functools.wraps(function)
    def followed(params: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        if run is not None:
            return trained(run, params, *args, **kwargs)
        with start(experiment, **options) as live:
            return trained(live, params, *args, **kwargs)

    return followed


def _ended_training(run: LiveRun, made: Any) -> None:
    best = getattr(made, "best_iteration", None)  # a property that raises where there was no early stopping
    if isinstance(best, int) and best > 0:
        run.log(best_iteration=best)


def _lightgbm_reporter(run: LiveRun) -> Callable[[Any], None]:
    def report(env: Any) -> None:  # it comes before early stopping, which ends the training by an exception
        values = {}
        for data, metric, value, _, *spread in env.evaluation_result_list or ():
            values[f"{data}/{metric}"] = float(value)
            if spread:
                values[f"{data}/{metric}/std"] = float(spread[0])
        if values:
            run.log(values, step=env.iteration)

    return report


def _xgboost_reporter(run: LiveRun) -> Any:
    class Reporter(sys.modules["xgboost"].callback.TrainingCallback):  # type: ignore[misc]  # it takes instances of its own class only
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            values = {}
            for data, metrics in evals_log.items():
                for metric, history in metrics.items():
                    mean, *spread = history[-1] if isinstance(history[-1], tuple) else (history[-1],)
                    values[f"{data}/{metric}"] = float(mean)
                    if spread:
                        values[f"{data}/{metric}/std"] = float(spread[0])
            if values:
                run.log(values, step=epoch)
            return False

    return Reporter()


def _lightgbm(run: LiveRun, model: Any, told: frozenset[str]) -> None:
    def fit(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        _params(run, {"estimator": type(model).__name__, **model.get_params(deep=False)}, told)
        fitted = inner(*args, **{**kwargs, "callbacks": [*(kwargs.get("callbacks") or []), _lightgbm_reporter(run)]})
        _ended_training(run, model.booster_)
        return fitted

    _around(run, model, "fit", fit)


def _xgboost(run: LiveRun, model: Any, told: frozenset[str]) -> None:
    def fit(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        params = model.get_params(deep=False)
        own = params.pop("callbacks", None)
        _params(run, {"estimator": type(model).__name__, **params}, told)
        model.set_params(callbacks=[*(own or []), _xgboost_reporter(run)])
        try:
            fitted = inner(*args, **kwargs)
        finally:
            model.set_params(callbacks=own)  # a clone or a pickle of the model must not drag the run along
        _ended_training(run, model)
        return fitted

    _around(run, model, "fit", fit)


# Solvers


def _highs(run: LiveRun, highs: Any, told: frozenset[str]) -> None:
    from palan.models.highs import STATUS

    kinds = sys.modules["highspy"].HighsModelStatus
    progress, caught = _Progress(run), _Caught(run)
    _params(run, {names.SEED: highs.getOptionValue("random_seed")[1], names.INSTANCE: highs.getLp().model_name_}, told)

    def improved(event: Any) -> None:
        progress.solution(float(event.data_out.objective_function_value), float(event.data_out.mip_dual_bound))

    def passed(event: Any) -> None:
        progress.better_bound(float(event.data_out.mip_dual_bound))

    subscribed = [(highs.cbMipImprovingSolution, caught(improved)), (highs.cbMipInterrupt, caught(passed))]
    for event, callback in subscribed:
        event.subscribe(callback)

    def ended() -> None:
        for event, callback in subscribed:
            event.unsubscribe(callback)
        solved, info = highs.getModelStatus(), highs.getInfo()
        if solved == kinds.kNotset:
            return  # nothing was solved
        has_plan = info.primal_solution_status == sys.modules["highspy"].kSolutionStatusFeasible
        proven = solved == kinds.kOptimal
        status = ("optimal" if proven else "feasible") if has_plan and solved != kinds.kUnbounded else STATUS.get(solved, "no_solution")
        objective = float(info.objective_function_value) if has_plan else None
        whole = bool(len(highs.getLp().integrality_))
        bound = float(info.mip_dual_bound) if whole else objective if proven else None
        progress.ended(status, f"HiGHS {highs.version()}", objective, bound)

    run.before_end.append(ended)


_CP_SAT = {"OPTIMAL": "optimal", "FEASIBLE": "feasible", "INFEASIBLE": "infeasible", "MODEL_INVALID": "invalid_input", "UNKNOWN": "no_solution"}


def _cp_sat(run: LiveRun, solver: Any, told: frozenset[str]) -> None:
    progress, caught = _Progress(run), _Caught(run)
    _params(run, {names.SEED: solver.parameters.random_seed}, told)
    reporter = caught(lambda seen: progress.solution(seen.objective_value, seen.best_objective_bound))
    running = threading.local()

    def solve(inner: Callable[..., Any], model: Any, solution_callback: Any = None) -> Any:
        if getattr(running, "inside", False):  # the old name of the method calls the new one
            return inner(model, solution_callback)
        running.inside = True
        _params(run, {names.INSTANCE: model.name}, told)
        try:
            with _reporting(solver, solution_callback, reporter, caught(progress.better_bound)) as callback:
                status = inner(model, callback)
        finally:
            running.inside = False
        found = _CP_SAT.get(solver.status_name(status), "no_solution")
        has_plan = found in ("optimal", "feasible")
        version = sys.modules["ortools"].__version__
        progress.ended(found, f"CP-SAT {version}", solver.objective_value if has_plan else None, solver.best_objective_bound if has_plan else None)
        return status

    for name in ("solve", "Solve"):
        if hasattr(solver, name):
            _around(run, solver, name, solve)


@contextmanager
def _reporting(solver: Any, given: Any, solution: Callable[..., None], bound: Callable[..., None]) -> Iterator[Any]:
    """Give a callback that tells of each solution, beside the one that was given; and of each bound, likewise."""
    base = sys.modules["ortools.sat.python.cp_model"].CpSolverSolutionCallback
    callback, before = given, solver.best_bound_callback
    if given is None:
        callback = type("Reporter", (base,), {"on_solution_callback": solution})()
    else:
        method = given.on_solution_callback

    def both_bounds(value: float) -> None:
        bound(value)
        before(value)

    def both_solutions() -> None:
        solution(given)
        method()

    solver.best_bound_callback = bound if before is None else both_bounds
    try:
        if given is not None:
            given.on_solution_callback = both_solutions
        yield callback
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


def _scip(run: LiveRun, model: Any, told: frozenset[str]) -> None:
    scip = sys.modules["pyscipopt"]
    kinds = [scip.SCIP_EVENTTYPE.BESTSOLFOUND, getattr(scip.SCIP_EVENTTYPE, "DUALBOUNDIMPROVED", scip.SCIP_EVENTTYPE.NODESOLVED)]
    progress, caught = _Progress(run), _Caught(run)
    _params(run, {names.SEED: model.getParam("randomization/randomseedshift"), names.INSTANCE: model.getProbName()}, told)
    over: list[bool] = []

    def seen(event: Any) -> None:
        if over:
            return  # a handler cannot be taken out of a model again
        if event.getType() == kinds[0]:
            progress.solution(model.getPrimalbound(), model.getDualbound())
        else:
            progress.better_bound(model.getDualbound())

    report = caught(seen)

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

    model.includeEventhdlr(Handler(), f"palan-{run.id}", "tells palan of solutions and bounds")

    def ended() -> None:
        over.append(True)
        solved = model.getStatus()
        if solved == "unknown":
            return  # nothing was solved
        has_plan = model.getNSols() > 0
        status = _SCIP.get(solved, "no_solution")
        status = "feasible" if has_plan and status not in ("optimal", "unbounded") else status
        objective, bound = (model.getObjVal(), model.getDualbound()) if has_plan else (None, None)
        progress.ended(status, f"SCIP {model.version()}", objective, bound)

    run.before_end.append(ended)


# gymnasium


def _environment(run: LiveRun, env: Any, told: frozenset[str]) -> None:
    """Return and length of each episode; of a vector of environments those of each, as they end."""
    import numpy as np

    _params(run, {names.INSTANCE: getattr(env.spec, "id", "")}, told)
    many = getattr(env, "num_envs", 0)
    mode = getattr(env.metadata.get("autoreset_mode"), "value", "") if env.metadata else ""
    returns, lengths = np.zeros(many or 1), np.zeros(many or 1, dtype=int)
    fresh = np.zeros(many or 1, dtype=bool)  # the step after an episode only resets: it belongs to none
    episodes = [0]

    def reset(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("seed") is not None and not episodes[0]:
            _params(run, {names.SEED: kwargs["seed"]}, told)
        told_of = (kwargs.get("options") or {}).get("reset_mask")
        which = slice(None) if told_of is None else told_of
        returns[which], lengths[which], fresh[which] = 0.0, 0, False
        return inner(*args, **kwargs)

    def step(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        seen = inner(*args, **kwargs)
        counted = ~fresh
        returns[counted] += np.atleast_1d(np.asarray(seen[1], dtype=float))[counted]
        lengths[counted] += 1
        fresh[:] = False
        for place in np.flatnonzero(np.atleast_1d(np.logical_or(seen[2], seen[3])) & counted):
            run.log({names.RETURN: returns[place], names.LENGTH: lengths[place]}, step=episodes[0])
            episodes[0] += 1
            returns[place], lengths[place] = 0.0, 0
            fresh[place] = many > 0 and mode == "NextStep"
        return seen

    _around(run, env, "reset", reset)
    _around(run, env, "step", step)


_FOLLOWED: tuple[tuple[str, str, str, Attach], ...] = (
    ("lightgbm", "LGBMModel", "an estimator of LightGBM or XGBoost", _lightgbm),
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
