"""From the user's class, function or object to the adapter of its kind: the verbs that it has tell which."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
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
    if not kind and known == "heuristic" and inputs and inspect.isfunction(entry) and len(_inputs(entry, method=False)) == 1:
        raise _untold(entry)  # who names columns means rows, and a heuristic is given an instance
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
        names = _inputs(entry.decide, method=isinstance(entry, type))
        if len(names) >= 2 or names == ["instance"]:
            return "heuristic"
        return "estimator" if "fit" in verbs else "rules"
    if verbs & {"predict", "predict_proba"}:
        return "estimator"
    raise PalanError(
        f"{user.name_of(entry)} is no model: it has none of decide, formulate, act, predict",
        "give it decide(self, rows), decide(self, instance), formulate(self, instance) or act(self, observation)",
    )


def _kind_of_function(entry: FunctionType) -> Kind:
    """A function of `rows` is rules, of an `observation` a policy; any other decides one instance, by a solver or by itself."""
    names = _inputs(entry, method=False)
    if len(names) == 2 and names[1] in ("ctx", "context"):
        return "heuristic"
    if len(names) != 1 or (names[0] not in TOLD and names[0] != "instance" and entry.__name__ in ("decide", "predict")):
        raise _untold(entry)
    return TOLD.get(names[0]) or ("program" if SOLVER in _modules_of(entry, set()) else "heuristic")


TOLD: Mapping[str, Kind] = {"rows": "rules", "observation": "policy"}
"""What the name of a function's only argument tells."""

SOLVER = "highspy"
"""A function of one instance that works with it is a program, and any other a heuristic."""


def _untold(entry: FunctionType) -> PalanError:
    called = f"{entry.__name__}({', '.join(_inputs(entry, method=False))})"
    return PalanError(f"the arguments of {called} do not tell its kind", f"set kind to one of {', '.join(KINDS)}, or call its argument rows, instance or observation")


def _modules_of(function: FunctionType, seen: set[FunctionType]) -> set[str]:
    """Return the top-level packages that a function names or imports, with those of the functions beside it that it calls."""
    seen.add(function)
    found: set[str] = set()
    folder = Path(function.__code__.co_filename).parent
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, FunctionType) and Path(value.__code__.co_filename).parent == folder:
            found |= _modules_of(value, seen) if value not in seen else set()
        elif isinstance(value, ModuleType):
            found.add(value.__name__.partition(".")[0])
        else:  # what is not global may be a module that is imported inside
            found.add(name if value is None else str(getattr(value, "__module__", "")).partition(".")[0])
    return found


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names(each)


def _inputs(function: Any, *, method: bool) -> list[str]:
    """Return the names of the arguments without a default, `self` apart."""
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [p.name for p in inspect.signature(function).parameters.values() if p.kind in named and p.default is inspect.Parameter.empty]
    return found[1:] if method else found
