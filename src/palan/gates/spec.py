"""How a gate is written in palan.toml: `champion margin=0.002`, `latency 50ms`, `golden`.

This file loads no data frame library, so that every line is checked whenever palan.toml is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import msgspec

from palan.errors import PalanError, nearest

GATES: Mapping[str, str] = {
    "champion": "mean loss on the same decisions at most `margin` above the champion's, and no segment harmed",
    "golden": "every golden case gives its expected output, within its tolerance",
    "feasibility": "the independent check finds no violation in any plan",
    "bound_sane": "no objective is better than its proven bound, and the recomputed objective is the reported one",
    "latency": "95% of the decisions are answered within the limit",
    "decision_diff": "at most this share of recent decisions changes",
    "schema_compatible": "every request that callers may send today is still accepted",
    "table_checks": "the decision table has no gap, conflict, shadowed or dead row",
    "beats_baselines": "mean return above every baseline by at least `margin` over seeded episodes",
}


class GateSpec(msgspec.Struct, frozen=True):
    """One line of `gates = [...]`: the gate's name and its numbers (seconds, shares as fractions)."""

    name: str
    options: Mapping[str, float] = {}


_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _tolerance(text: str) -> float:
    number = _number(text)
    if number < 0.0:
        raise ValueError(text)
    return number


def _seconds(text: str) -> float:
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    seconds = _number(digits) * _SECONDS[text[len(digits) :] or "s"]
    if seconds <= 0.0:
        raise ValueError(text)
    return seconds


def _share(text: str) -> float:
    share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    if not 0.0 <= share <= 1.0:
        raise ValueError(text)
    return share


def _confidence(text: str) -> float:
    share = _share(text)
    if not 0.5 < share < 1.0:  # at a half a coin would do, and nothing is certain
        raise ValueError(text)
    return share


# The first option of a gate may be written without its name: "latency 50ms".
_OPTIONS: Mapping[str, Mapping[str, tuple[Callable[[str], float], str]]] = {
    "champion": {"margin": (_number, "0.002"), "confidence": (_confidence, "95%")},
    "golden": {},
    "feasibility": {},
    "bound_sane": {"tolerance": (_tolerance, "1e-6")},
    "latency": {"limit": (_seconds, "50ms")},
    "decision_diff": {"most": (_share, "5%"), "tolerance": (_tolerance, "0.01")},
    "schema_compatible": {},
    "table_checks": {},
    "beats_baselines": {"margin": (_number, "0"), "confidence": (_confidence, "95%")},
}


def parse(text: str) -> GateSpec:
    """Read one gate, such as `champion margin=0.002`, `latency 50ms` or `golden`.

    Raises:
        PalanError: unknown gate, unknown option, or a value that cannot be read; names what would do.
    """
    words = text.split()
    if not words:
        raise PalanError("a gate is empty", "write one of: " + ", ".join(GATES))
    name = words[0]
    if name not in GATES:
        raise PalanError(f'no gate "{name}"', nearest(name, GATES) or "gates are: " + ", ".join(GATES))
    known = _OPTIONS[name]
    options: dict[str, float] = {}
    for place, word in enumerate(words[1:]):
        option, equals, value = word.partition("=")
        if not equals:
            option, value = (next(iter(known), "") if place == 0 else ""), word
        if option not in known:
            said = f'"{option}"' if option else f'"{word}"'
            raise PalanError(f"gate {name} does not take {said}", nearest(option, known) or (f"it takes: {', '.join(known)}" if known else "it takes no options"))
        read, example = known[option]
        try:
            options[option] = read(value)
        except (ValueError, KeyError):
            raise PalanError(f'gate {name}: {option} cannot be "{value}"', f"for example {option}={example}") from None
    return GateSpec(name, options)
