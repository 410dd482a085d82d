"""HiGHS: solve a model object, stream its incumbents, read its status honestly, explain infeasibility."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, Literal

import highspy
import msgspec
import numpy as np
from highspy import HighsModelStatus as Model
from highspy import _core

from palan.models.contract import Context, Status

GAP = 1e-4  # HiGHS's own default: a solve that stops at a wider tolerance has found a feasible plan, not the optimum
WHOLE = 1e-5
IIS_SECONDS = 5.0
BOUND_SECONDS = 0.2  # how often a better bound alone is told
# every way in for numbers: HiGHS drops a NaN coefficient without a word, and the model is then another one
_NUMBERS_IN = [
    *("addRow", "addRows", "addCol", "addCols", "addVar", "addVars", "changeCoeff", "changeColCost", "changeColsCost", "passModel"),
    *("changeColBounds", "changeColsBounds", "changeRowBounds", "changeRowsBounds", "changeObjectiveOffset"),
]

STATUS: dict[Any, Status] = {
    Model.kInfeasible: "infeasible",
    Model.kUnbounded: "unbounded",
    Model.kUnboundedOrInfeasible: "no_solution",
    Model.kTimeLimit: "timeout",
    Model.kInterrupt: "cancelled",
    Model.kModelError: "invalid_input",
    Model.kNotset: "error",
    Model.kLoadError: "error",
    Model.kPresolveError: "error",
    Model.kSolveError: "error",
    Model.kPostsolveError: "error",
    Model.kMemoryLimit: "error",
}


class Solution(msgspec.Struct, frozen=True):
    """What `interpret` is given: the value of each column and row in order, and their duals where there are any.

    Values of integer columns are rounded when they are within 1e-5 of a whole number.
    """

    col_value: list[float]
    row_value: list[float] = []
    col_dual: list[float] = []
    row_dual: list[float] = []


class Solved(msgspec.Struct, frozen=True):
    """A finished solve. `solution` is None when there is none."""

    status: Status
    solution: Solution | None
    objective: float | None
    bound: float | None
    sense: Literal["minimize", "maximize"]
    evidence: dict[str, Any]
    explain: dict[str, Any]


@contextmanager
def noticing_nan(found: list[str]) -> Iterator[None]:
    """Note in the list each NaN that goes into a HiGHS model while the context is open."""
    original = {name: getattr(_core._Highs, name) for name in _NUMBERS_IN if hasattr(_core._Highs, name)}

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(self: Any, *args: Any) -> Any:
            if any(_has_nan(arg) for arg in args):
                found.append(f"{name} was given nan")
            return call(self, *args)

        return wrapper

    for name, call in original.items():
        setattr(_core._Highs, name, watched(name, call))
    try:
        yield
    finally:
        for name, call in original.items():
            setattr(_core._Highs, name, call)


def _has_nan(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, highspy.HighsModel):
        return _has_nan(value.lp_)
    if isinstance(value, highspy.HighsLp):
        return any(_has_nan(part) for part in (value.col_cost_, value.col_lower_, value.col_upper_, value.row_lower_, value.row_upper_, value.a_matrix_.value_))
    if isinstance(value, list | tuple):
        return any(isinstance(item, float) and math.isnan(item) for item in value)
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and bool(np.isnan(value).any())


def faults(lp: Any) -> list[str]:
    """Return the numbers of a model that no solver can take: NaN anywhere, infinite costs or coefficients, no room in bounds."""
    cols, rows = _names(lp.col_names_, lp.num_col_, "column"), _names(lp.row_names_, lp.num_row_, "row")
    found = []
    cost = np.asarray(lp.col_cost_, dtype=float)
    found += [f"the cost of {cols[i]} is {cost[i]}" for i in np.flatnonzero(~np.isfinite(cost))]
    values = np.asarray(lp.a_matrix_.value_, dtype=float)
    for k in np.flatnonzero(~np.isfinite(values)):
        line = int(np.searchsorted(np.asarray(lp.a_matrix_.start_), k, side="right")) - 1
        where = rows[line] if lp.a_matrix_.format_ == highspy.MatrixFormat.kRowwise else cols[line]
        found.append(f"a coefficient in {where} is {values[k]}")
    for names, low, high in ((cols, lp.col_lower_, lp.col_upper_), (rows, lp.row_lower_, lp.row_upper_)):
        lower, upper = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
        broken = np.isnan(lower) | np.isnan(upper) | (lower == np.inf) | (upper == -np.inf)
        found += [f"the bounds of {names[i]} are {lower[i]} and {upper[i]}" for i in np.flatnonzero(broken)]
    if not math.isfinite(lp.offset_):
        found.append(f"the objective's offset is {lp.offset_}")
    return found


def _names(given: Sequence[str], count: int, word: str) -> list[str]:
    return [given[i] if i < len(given) and given[i] else f"{word} {i}" for i in range(count)]


def solve(
    highs: Any,
    ctx: Context,
    on_solution: Callable[[Solution, float, float | None], None],
    on_bound: Callable[[float], None] = lambda bound: None,
) -> Solved:
    """Solve the model within the context: its deadline, seed and wish to stop; one thread, so that a seed means something.

    Args:
        highs: a built `highspy.Highs`. Options that its builder set are kept, a shorter time limit too.
        on_solution: called with each better solution of a mixed-integer model, its objective and the bound then known.
        on_bound: called with a better bound when there is no better solution, at most five times a second.
    """
    lp = highs.getLp()
    sense: Literal["minimize", "maximize"] = "maximize" if lp.sense_ == highspy.ObjSense.kMaximize else "minimize"
    broken = faults(lp)
    if broken:
        return Solved("invalid_input", None, None, None, sense, {"faults": broken[:20], "count": len(broken)}, {})
    whole = np.array([kind == highspy.HighsVarType.kInteger for kind in lp.integrality_], dtype=np.bool_)
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("threads", 1)
    highs.setOptionValue("random_seed", ctx.seed % (2**31 - 1))
    if math.isfinite(ctx.deadline):
        highs.setOptionValue("time_limit", min(float(highs.getOptionValue("time_limit")[1]), max(ctx.remaining(), 0.001)))
    raised: list[Exception] = []
    told = {"at": monotonic(), "bound": math.inf}

    def improved(event: Any) -> None:
        out = event.data_out
        bound = float(out.mip_dual_bound)
        told["at"], told["bound"] = monotonic(), bound
        try:
            on_solution(_solution(np.asarray(out.mip_solution), whole), float(out.objective_function_value), bound if math.isfinite(bound) else None)
        except Exception as error:  # noqa: BLE001 raised again below: an exception must not unwind through the solver
            raised.append(error)
            event.interrupt()

    def asked(event: Any) -> None:
        if raised or ctx.cancelled():
            event.interrupt()

    def asked_in_mip(event: Any) -> None:
        asked(event)
        bound = float(event.data_out.mip_dual_bound)
        if math.isfinite(bound) and bound != told["bound"] and monotonic() - told["at"] >= BOUND_SECONDS:
            told["at"], told["bound"] = monotonic(), bound
            on_bound(bound)

    if whole.any():
        highs.cbMipImprovingSolution.subscribe(improved)
        highs.cbMipInterrupt.subscribe(asked_in_mip)
    highs.cbSimplexInterrupt.subscribe(asked)
    highs.cbIpmInterrupt.subscribe(asked)
    forget_threads()
    highs.run()
    if raised:
        raise raised[0]
    return _read(highs, lp, whole, sense, ctx)


def _solution(values: Any, whole: np.ndarray[Any, np.dtype[np.bool_]], final: Any = None) -> Solution:
    columns = np.array(values, dtype=float)
    if whole.any():
        near = whole & (np.abs(columns - np.round(columns)) <= WHOLE)
        columns[near] = np.round(columns[near])
    if final is None:
        return Solution(columns.tolist())
    return Solution(columns.tolist(), list(final.row_value), list(final.col_dual), list(final.row_dual))


def _read(highs: Any, lp: Any, whole: np.ndarray[Any, np.dtype[np.bool_]], sense: Literal["minimize", "maximize"], ctx: Context) -> Solved:
    info = highs.getInfo()
    told = highs.getModelStatus()
    evidence: dict[str, Any] = {
        "solver": f"HiGHS {highs.version()}",
        "solver_status": highs.modelStatusToString(told),
        "columns": int(lp.num_col_),
        "rows": int(lp.num_row_),
        "integers": int(whole.sum()),
        "nodes": max(0, int(info.mip_node_count)),
        "solver_seconds": float(highs.getRunTime()),
        "seed": ctx.seed,
    }
    has_plan = info.primal_solution_status == highspy.kSolutionStatusFeasible or told == Model.kModelEmpty
    status: Status = STATUS.get(told, "no_solution")
    if status == "cancelled" and ctx.remaining() == 0:
        status = "timeout"  # the interrupt was the deadline's, a moment before the solver's own clock
    if not has_plan or status in ("infeasible", "unbounded", "error"):
        if told in (Model.kOptimal, Model.kModelEmpty):
            status = "error"  # optimal without a feasible point: the solver's numbers do not hold
        explain = explain_infeasible(highs, whole, min(IIS_SECONDS, max(1.0, ctx.remaining()))) if status == "infeasible" else {}
        return Solved(status, None, None, None, sense, evidence, explain)
    objective = float(info.objective_function_value)
    bound: float | None = float(info.mip_dual_bound) if whole.any() else objective if told == Model.kOptimal else None
    if bound is not None and not math.isfinite(bound):
        bound = None
    if told in (Model.kOptimal, Model.kModelEmpty):
        if told == Model.kModelEmpty:
            bound = objective
        gap = abs(objective - bound) if bound is not None else math.inf
        status = "optimal" if gap <= max(1e-6, GAP * abs(objective)) * (1 + 1e-9) else "feasible"
        if status == "feasible":
            evidence["stopped"] = "at the gap tolerance that the model sets"
    else:
        evidence["stopped"] = {"timeout": "at the time limit", "cancelled": "because it was asked to"}.get(status, evidence["solver_status"])
        status = "feasible"
    final = highs.getSolution()
    return Solved(status, _solution(final.col_value, whole, final), objective, bound, sense, evidence, {})


def explain_infeasible(highs: Any, whole: np.ndarray[Any, np.dtype[np.bool_]], seconds: float) -> dict[str, Any]:
    """Return rows that cannot hold together: `{"iis": [names], "irreducible": bool, "integers": bool, "text"}`.

    A linear relaxation that is infeasible is given to HiGHS's own IIS search. Where only whole numbers make the model
    infeasible, rows are dropped in halving chunks as long as it stays so (the deletion filter of Chinneck and Dravnieks
    1991, "Locating minimal infeasible constraint sets in linear programs"), within the seconds.
    """
    lp = highs.getLp()
    rows, cols = _names(lp.row_names_, lp.num_row_, "row"), _names(lp.col_names_, lp.num_col_, "column")
    end = monotonic() + seconds
    relaxed = _copy(lp)
    relaxed.integrality_ = [highspy.HighsVarType.kContinuous] * lp.num_col_
    if _is_infeasible(relaxed, end):
        linear = _silent()
        linear.setOptionValue("time_limit", max(0.1, end - monotonic()))
        linear.setOptionValue("iis_strategy", int(highspy.IisStrategy.kIisStrategyFromLp) | int(highspy.IisStrategy.kIisStrategyIrreducible))
        linear.passModel(relaxed)
        linear.run()
        _, iis = linear.getIis()
        if iis.valid_ and (len(iis.row_index_) or len(iis.col_index_)):
            names = [rows[i] for i in iis.row_index_]
            bounds = [cols[i] for i in iis.col_index_]
            return _explained(names, bounds, irreducible=True, integers=False)
    kept, done = _deletion_filter(lp, end)
    return _explained([rows[i] for i in kept], [], irreducible=done, integers=bool(whole.any()))


def _explained(rows: list[str], bounds: list[str], *, irreducible: bool, integers: bool) -> dict[str, Any]:
    what = ", ".join(rows[:10]) + (" ..." if len(rows) > 10 else "")
    of = f" with the bounds of {', '.join(bounds[:10])}" if bounds else ""
    text = f"these cannot hold together: {what}{of}" if rows else f"the bounds{of.removeprefix(' with the bounds')} cannot hold"
    return {"iis": rows, "bounds": bounds, "irreducible": irreducible, "integers": integers, "text": text}


def forget_threads() -> None:
    """Let the next solve have its own number of threads: HiGHS refuses another than the last one in the process had."""
    _silent().resetGlobalScheduler(True)


def _silent() -> Any:
    made: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    made.setOptionValue("output_flag", False)
    made.setOptionValue("threads", 1)
    return made


def is_model(value: object) -> bool:
    return isinstance(value, highspy.Highs)


def _copy(lp: Any) -> Any:
    holder = _silent()
    holder.passModel(lp)
    return holder.getLp()


def _is_infeasible(lp: Any, end: float) -> bool:
    trial = _silent()
    trial.setOptionValue("time_limit", max(0.01, end - monotonic()))
    trial.passModel(lp)
    trial.run()
    return bool(trial.getModelStatus() == Model.kInfeasible)


def _deletion_filter(lp: Any, end: float) -> tuple[list[int], bool]:
    """Return rows that are infeasible together, and whether each of them is needed for that."""
    lower, upper = list(lp.row_lower_), list(lp.row_upper_)

    def without(dropped: set[int]) -> Any:
        trial = _copy(lp)
        trial.row_lower_ = [-highspy.kHighsInf if i in dropped else low for i, low in enumerate(lower)]
        trial.row_upper_ = [highspy.kHighsInf if i in dropped else high for i, high in enumerate(upper)]
        return trial

    kept = list(range(lp.num_row_))
    size = max(1, len(kept) // 2)
    dropped: set[int] = set()
    while True:
        place = 0
        while place < len(kept):
            if monotonic() >= end:
                return kept, False
            chunk = kept[place : place + size]
            if _is_infeasible(without(dropped | set(chunk)), end):
                dropped |= set(chunk)
                kept = kept[:place] + kept[place + size :]
            else:
                place += size
        if size == 1:
            return kept, True
        size = max(1, size // 2)
