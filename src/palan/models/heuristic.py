"""Heuristics: plain Python that decides one instance, where it takes a ctx within its deadline, publishing its best answer so far."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import isinf
from time import monotonic
from typing import Any

from palan.errors import ModelFailed
from palan.models.contract import Context, Incumbent, Result, Status
from palan.models.user import UserModel, bare, guarded, plain


class Heuristic(UserModel):
    """Answers one instance by `decide(instance, ctx)` or `decide(instance)`, or by a plain function of the same arguments."""

    kind = "heuristic"

    def solve(self, instance: Any, ctx: Context) -> Result:
        """Return the plan with status `feasible`; if the model returns None, its last incumbent.

        The objective is `objective(instance, plan)` where the model has one, else that of its last incumbent.

        Raises:
            ModelFailed: its code raised, or the plan is not plain.
        """
        kept: list[Incumbent] = []

        def keep(found: Incumbent) -> None:
            # a search goes on changing its plan in place: what was published must not change with it
            output = plain(found.output) if found.output is not None else None
            kept.append(Incumbent(monotonic() - ctx.started, _number(found.objective), _number(found.bound), output))
            ctx.incumbent(output, kept[-1].objective, kept[-1].bound)

        left = ctx.remaining()
        inner = Context(seed=ctx.seed, time_limit=None if isinf(left) else left, on_incumbent=keep, is_cancelled=ctx.cancelled)
        own = bare(self.model)
        with guarded(self.model, "decide"):
            asked = self.model.decide if own is None else own
            answer = asked(instance, inner) if _takes_context(asked) else asked(instance)
        if type(answer).__module__.partition(".")[0] == "highspy":
            raise ModelFailed(f"{self.name} returned a {type(answer).__name__} to be solved, and a heuristic returns its plan", 'set kind = "program"')
        best = kept[-1] if kept else None
        if answer is None and best is not None:
            answer = best.output
        if answer is None:
            status: Status = "timeout" if ctx.remaining() == 0 else "no_solution"
            return Result(status, seconds=monotonic() - ctx.started)
        output = plain(answer)
        objective = best.objective if best is not None else None
        if callable(getattr(self.model, "objective", None)):
            objective = _number(self.call("objective", instance, output))
        return Result(
            "feasible",
            output,
            objective=objective,
            bound=best.bound if best is not None else None,
            sense=getattr(self.model, "sense", "minimize") if objective is not None else "",
            kpis=kpis_of(output),
            violations=tuple(self.check(instance, output)),
            seconds=monotonic() - ctx.started,
            incumbents=tuple(kept),
        )


def _takes_context(function: Callable[..., Any]) -> bool:
    """Tell whether a function asks for more than the instance: a second argument that it needs, or one called ctx."""
    try:
        arguments = list(inspect.signature(function).parameters.values())
    except ValueError:  # it is not written in Python, and does not say
        return True
    positional = [each for each in arguments if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    second = positional[1] if len(positional) > 1 else None
    if second is None:
        return any(each.kind == each.VAR_POSITIONAL for each in arguments)
    return second.default is second.empty or second.name in ("ctx", "context")


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def kpis_of(output: Any) -> dict[str, float]:
    """Return the numbers that a plan reports under `kpis`."""
    kpis = output.get("kpis") if isinstance(output, dict) else None
    return {name: float(v) for name, v in kpis.items() if isinstance(v, int | float)} if isinstance(kpis, dict) else {}
