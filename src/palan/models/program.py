"""Programs: formulate(instance) gives a solver's model object; it is solved here, and interpreted by the user's code."""

from __future__ import annotations

import math
from collections.abc import Iterator
from time import monotonic
from typing import Any

from palan.errors import MissingExtra, ModelFailed
from palan.models.contract import Context, Incumbent, Result, Violation
from palan.models.heuristic import kpis_of
from palan.models.user import UserModel, bare, guarded, plain

SUPPORTED = "highspy.Highs"


class Program(UserModel):
    """Answers one instance by solving a mathematical program."""

    kind = "program"

    def solve(self, instance: Any, ctx: Context) -> Result:
        """Formulate, solve within the context, interpret and check.

        Incumbents are streamed with their plans, and better bounds between them without. Without `interpret` the plan is `{column name: value}`.
        The answer's `evidence` tells what the solver said; `explain` names the rows of an infeasible model.

        Raises:
            ModelFailed: the user's code raised, or returned something that is no supported model.
            MissingExtra: HiGHS is not installed.
        """
        broken = next(_not_finite(instance, "instance"), "")
        if broken:
            return self._refused([broken], ctx)
        try:
            from palan.models import highs
        except ImportError as error:
            raise MissingExtra("highspy", "highs", f"solving {self.name}") from error
        own = bare(self.model)
        lost: list[str] = []
        highs.forget_threads()
        try:
            with highs.noticing_nan(lost), guarded(self.model, "formulate"):
                formulated = own(instance) if own is not None else self.model.formulate(instance)
        except ModelFailed:
            if not lost:
                raise
            return self._refused(lost, ctx)
        if not highs.is_model(formulated):
            hint = f"return a {SUPPORTED}: that is the model object that palan solves today"
            if own is not None:
                hint += ', or set kind = "heuristic" where it returns the plan itself'
            raise ModelFailed(f"{self.name}.formulate returned a {type(formulated).__module__}.{type(formulated).__name__}", hint)
        if lost:
            return self._refused(lost, ctx)
        columns = list(formulated.getLp().col_names_)
        kept: list[Incumbent] = []

        def on_solution(solution: Any, objective: float, bound: float | None) -> None:
            output = self._plan(instance, solution, columns)
            kept.append(Incumbent(monotonic() - ctx.started, objective, bound, output))
            ctx.incumbent(output, objective, bound)

        def on_bound(bound: float) -> None:
            # the same plan, known to be closer to the best there is: nothing to interpret again
            kept.append(Incumbent(monotonic() - ctx.started, kept[-1].objective if kept else None, bound))
            ctx.incumbent(None, kept[-1].objective, bound)

        solved = highs.solve(formulated, ctx, on_solution, on_bound)
        output = None if solved.solution is None else self._plan(instance, solved.solution, columns)
        evidence = dict(solved.evidence)
        violations: tuple[Violation, ...] = ()
        if output is not None:
            violations = tuple(self.check(instance, output))
            recomputed = self._recomputed(instance, output)
            if recomputed is not None:
                evidence["recomputed"] = recomputed
        return Result(
            solved.status,
            output,
            objective=solved.objective,
            bound=solved.bound,
            sense=solved.sense,
            kpis=kpis_of(output),
            explain=solved.explain,
            evidence=evidence,
            violations=violations,
            seconds=monotonic() - ctx.started,
            incumbents=tuple(kept),
        )

    @staticmethod
    def _refused(faults: list[str], ctx: Context) -> Result:
        return Result("invalid_input", evidence={"faults": faults[:20], "count": len(faults)}, seconds=monotonic() - ctx.started)

    def _plan(self, instance: Any, solution: Any, columns: list[str]) -> Any:
        if callable(getattr(self.model, "interpret", None)):
            return plain(self.call("interpret", instance, solution))
        return {columns[i] if i < len(columns) and columns[i] else f"column {i}": value for i, value in enumerate(solution.col_value)}

    def _recomputed(self, instance: Any, output: Any) -> float | None:
        """The objective by the user's own reckoning: `objective(instance, plan)`, or what the plan reports."""
        if callable(getattr(self.model, "objective", None)):
            return float(self.call("objective", instance, output))
        told = output.get("objective") if isinstance(output, dict) else None
        return float(told) if isinstance(told, int | float) else None


def _not_finite(value: Any, where: str) -> Iterator[str]:
    """Yield where an instance holds NaN or an infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{where} is {value}"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _not_finite(item, f"{where}[{i}]")
