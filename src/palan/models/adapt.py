"""From the user's class, function or object to the adapter of its kind: the verbs that it has tell which."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from palan.errors import PalanError, nearest
from palan.models import user
from palan.models.contract import KINDS, Kind
from palan.models.estimator import Estimator
from palan.models.heuristic import Heuristic
from palan.models.policy import Policy
from palan.models.program import Program
from palan.models.rules import Rules
from palan.models.table import Table

__all__ = ["Adapter", "Estimator", "Heuristic", "InstanceAdapter", "Policy", "Program", "RowsAdapter", "Rules", "adapter", "kind_of"]

RowsAdapter = Estimator | Rules | Policy
InstanceAdapter = Program | Heuristic
Adapter = RowsAdapter | InstanceAdapter
"""All have fit, check, score, state, restore, verbs, params; rows kinds have decide(rows), instance kinds solve(instance, ctx)."""

_NEEDS: Mapping[Kind, tuple[str, ...]] = {
    "estimator": ("decide", "predict_proba", "predict"),
    "program": ("formulate",),
    "rules": ("decide",),
    "heuristic": ("decide",),
    "policy": ("act", "decide"),
}


def adapter(
    entry: Any,
    kind: str = "",
    params: Mapping[str, Any] | None = None,
    *,
    inputs: Sequence[str] = (),
    outcome: str = "",
) -> Adapter:
    """Return the adapter for what the user wrote.

    Args:
        entry: a class, a function, a finished object, or a parsed decision table.
        kind: one of `KINDS`; needed only where the verbs cannot tell.
        params: values of its parameters.
        inputs: the columns of X, and
        outcome: the column y, for objects in scikit-learn's style.

    Raises:
        PalanError: an unknown kind or parameter, or verbs that make no kind.
    """
    if kind and kind not in KINDS:
        raise PalanError(f"unknown kind {kind!r} of model", nearest(kind, KINDS) or f"kinds are {', '.join(KINDS)}")
    if isinstance(entry, Table):
        if kind not in ("", "rules"):
            raise PalanError(f"a decision table is a model of kind rules, not {kind}", 'leave kind out, or set kind = "rules"')
        if params:
            raise PalanError("a decision table takes no parameters", "write the values into its cells")
        return Rules(entry)
    known = as_kind(kind) if kind else kind_of(entry)
    model = user.make(entry, params or {})
    if user.bare(model) is None and not any(callable(getattr(model, verb, None)) for verb in _NEEDS[known]):
        wanted = " or ".join(f"{verb}()" for verb in _NEEDS[known])
        raise PalanError(f"{user.name_of(model)} is to be of kind {known} but has no {wanted}", "add it, or change kind")
    if known == "estimator":
        return Estimator(model, inputs=inputs, outcome=outcome)
    if known == "program":
        return Program(model)
    if known == "heuristic":
        return Heuristic(model)
    if known == "policy":
        return Policy(model)
    return Rules(model)


def as_kind(name: str) -> Kind:
    return next(kind for kind in KINDS if kind == name)


def kind_of(entry: Any) -> Kind:
    """Return the kind that the verbs of a class, function or object tell.

    Raises:
        PalanError: they do not tell, or there are none.
    """
    if inspect.isfunction(entry):
        return _kind_of_function(entry)
    verbs = {verb for verb in ("formulate", "act", "fit", "decide", "predict", "predict_proba") if callable(getattr(entry, verb, None))}
    if "formulate" in verbs:
        return "program"
    if "act" in verbs:
        return "policy"
    if "decide" in verbs:
        if len(_inputs(entry.decide, method=isinstance(entry, type))) >= 2:
            return "heuristic"
        return "estimator" if "fit" in verbs else "rules"
    if verbs & {"predict", "predict_proba"}:
        return "estimator"
    raise PalanError(
        f"{user.name_of(entry)} is no model: it has none of decide, formulate, act, predict",
        "give it decide(self, rows), decide(self, instance, ctx), formulate(self, instance) or act(self, observation)",
    )


def _kind_of_function(entry: Any) -> Kind:
    names = _inputs(entry, method=False)
    if len(names) == 2 and names[1] in ("ctx", "context"):
        return "heuristic"
    by_name: dict[str, Kind] = {"rows": "rules", "observation": "policy", "instance": "program"}
    if len(names) == 1 and names[0] in by_name:
        return by_name[names[0]]
    raise PalanError(f"the arguments of {entry.__name__}({', '.join(names)}) do not tell its kind", f"set kind to one of {', '.join(KINDS)}")


def _inputs(function: Any, *, method: bool) -> list[str]:
    """Return the names of the arguments without a default, `self` apart."""
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [p.name for p in inspect.signature(function).parameters.values() if p.kind in named and p.default is inspect.Parameter.empty]
    return found[1:] if method else found
