"""Repeats a measurement and prints the median with its range: one line per figure."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version
from time import perf_counter

AS_JSON = "--json" in sys.argv


def times(work: Callable[[], object], *, repeat: int = 7) -> list[float]:
    """Return the seconds of each repetition; the first one, which warms caches, does not count."""
    work()
    found = []
    for _ in range(repeat):
        start = perf_counter()
        work()
        found.append(perf_counter() - start)
    return found


def report(what: str, values: list[float], unit: str) -> None:
    """Print one figure."""
    middle, least, most = statistics.median(values), min(values), max(values)
    if AS_JSON:
        print(json.dumps({"what": what, "median": middle, "least": least, "most": most, "unit": unit, "n": len(values)}))
    else:
        print(f"  {what:<58} {shown(middle):>10} {unit:<12} ({shown(least)} to {shown(most)})")


def shown(value: float) -> str:
    """Three digits that mean something: 8,150 and 19.4 and 0.948."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{float(f'{value:.3g}'):,.{digits}f}"


def rate(what: str, count: int, seconds: list[float], unit: str) -> None:
    """Print how many per second, from the seconds that `count` of them took."""
    report(what, [count / each for each in seconds], unit)


def machine(*libraries: str) -> None:
    """Print where the figures come from."""
    told = {"cpus": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine(), **{name: version(name) for name in libraries}}
    print(json.dumps({"machine": told}) if AS_JSON else "  " + ", ".join(f"{name} {value}" for name, value in told.items()))
