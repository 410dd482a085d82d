"""What of seeded faults in real data does the data doctor find, name and put right; and what does it say of healthy data?

Data sets and seeds are split: the doctor was made with the even seeds of weather, flights and traffic in sight. The odd
seeds of these, and all of bikes and census, are held out.

    bench_doctor.py                  everything, in both halves
    bench_doctor.py seen             only the half that tuning may look at, each miss shown
    bench_doctor.py seen codes,case  only these kinds
    bench_doctor.py from=900         five other seeds, from that one on; the first look at them is the honest one
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from time import process_time
from typing import NamedTuple

import msgspec
import polars as pl
from faults import INJECTORS, TABLES, Fault, Table, cases, clean_pairs
from measure import machine, report

from palan.data.doctor import Hypothesis
from palan.data.faults.delivery import ALWAYS
from palan.data.faults.diagnose import diagnose
from palan.data.repair import mend

SEEN = ("weather", "flights", "traffic")
SEEDS = 5

CLASS = {
    **dict.fromkeys(["column_added"], "added"),
    **dict.fromkeys(["column_removed"], "removed"),
    **dict.fromkeys(["column_renamed"], "renamed"),
    **dict.fromkeys(["decimal_comma", "thousands", "date_format"], "retyped"),
    **dict.fromkeys(["times_thousand", "cents", "fahrenheit_celsius", "miles_km", "speed", "minutes_hours", "years_months", "one_supplier_unit"], "unit"),
    **dict.fromkeys(["time_zone", "daylight_saving"], "clock"),
    **dict.fromkeys(["case", "codes", "translation", "split", "merge", "mojibake"], "categories"),
    "default_for_null": "sentinel",
    "stuck": "stuck",
    **dict.fromkeys(["decimals_cut", "text_cut"], "truncated"),
    "duplicated": "duplicated",
    "sign_flip": "sign",
    "swapped": "swap",
    "partial": "partial",
}
SAME = {"scale": "unit"}  # a factor of ten is a unit too


class Judged(NamedTuple):
    table: str
    kind: str
    seed: int
    right: bool
    also: bool  # something else was said as well
    dated: bool
    exact: bool | None  # None: no inverse exists
    seconds: float


def judge(table: Table, kind: str, seed: int, fault: Fault) -> Judged:
    start = process_time()
    found = diagnose(fault.history, fault.batch, time=table.time)
    seconds = process_time() - start
    first = found[0] if found else None
    right = first is not None and SAME.get(first.kind, first.kind) == CLASS[kind] and frozenset(first.columns) == fault.columns
    dated = right and first is not None and (fault.first is None or first.since == ALWAYS or abs((first.since - fault.first).total_seconds()) <= 86400)
    exact = None if fault.clean is None else equal(mend(fault.batch, found, table.time), fault.clean, fault.tolerance)
    if "seen" in sys.argv and (not right or exact is False or len(found) > 1):
        print(f"    {table.name} {kind} {seed} {sorted(fault.columns)} since {fault.first}: exact {exact}, said {[(one.kind, one.columns, one.text, round(one.confidence, 2)) for one in found]}")
    return Judged(table.name, kind, seed, right, len(found) > 1, dated, exact, seconds)


def equal(mended: pl.DataFrame, clean: pl.DataFrame, tolerance: dict[str, float]) -> bool:
    """Tell whether every column holds again what it held, numbers within what the supplier's rounding has lost."""
    if set(mended.columns) != set(clean.columns) or mended.height != clean.height:
        return False
    return all(same(mended[name], clean[name], tolerance.get(name, 1e-9)) for name in clean.columns)


def same(one: pl.Series, other: pl.Series, tolerance: float) -> bool:
    if not (one.is_null() == other.is_null()).all():
        return False
    if one.dtype.is_numeric() and other.dtype.is_numeric():
        return bool(((one.cast(pl.Float64) - other.cast(pl.Float64)).abs().drop_nulls() <= tolerance).all())
    return one.dtype == other.dtype and one.equals(other)


def alarms(table: Table, look: Callable[[pl.DataFrame, pl.DataFrame], list[Hypothesis]]) -> tuple[int, int, list[float]]:
    """Return how many clean pairs there are, of how many something is said, and the seconds each took."""
    pairs, false, seconds = 0, 0, []
    for history, batch in clean_pairs(table):
        start = process_time()
        found = look(history, batch)
        seconds.append(process_time() - start)
        pairs, false = pairs + 1, false + bool(found)
        if found and "seen" in sys.argv:
            print(f"    false alarm: {table.name} {batch[table.time].min() if table.time else ''} {[(one.kind, one.columns, one.text, round(one.confidence, 2)) for one in found]}")
    return pairs, false, seconds


def share(of: list[bool]) -> str:
    return f"{sum(of):>4}/{len(of):<4}{sum(of) / max(len(of), 1):>5.0%}"


def told(what: str, judged: list[Judged]) -> None:
    exact = [one.exact for one in judged if one.exact is not None]
    dated = [one.dated for one in judged if one.right]
    print(f"  {what:<28} right {share([one.right for one in judged])}   exact {share(exact)}   dated {share(dated)}   more said {share([one.also for one in judged])}")


def main() -> None:
    seen_only = "seen" in sys.argv
    first = next((int(part.removeprefix("from=")) for part in sys.argv[1:] if part.startswith("from=")), 0)
    kinds = next((part.split(",") for part in sys.argv[1:] if part != "seen" and "=" not in part), list(INJECTORS))
    halves: dict[str, list[Judged]] = defaultdict(list)
    clean: dict[str, tuple[int, int]] = {}
    seconds: list[float] = []
    machine("polars", "numpy")
    for name, make in TABLES.items():
        if seen_only and name not in SEEN:
            continue
        table = make()
        for kind, seed, fault in cases(table, range(0, 5, 2) if seen_only else range(first, first + SEEDS), kinds):
            half = "seen" if name in SEEN and seed % 2 == 0 and not first else "held out" if not first else "fresh seeds"
            halves[half].append(judge(table, kind, seed, fault))
        if set(kinds) == set(INJECTORS) or "clean" in kinds:
            pairs, false, spent = alarms(table, lambda history, batch, time=table.time: diagnose(history, batch, time=time))  # type: ignore[misc]
            clean[name] = (pairs, false)
            seconds += spent
    for half, judged in halves.items():
        print(f"{half}: {len(judged)} cases")
        for kind in INJECTORS:
            if some := [one for one in judged if one.kind == kind]:
                told(kind, some)
        for name in TABLES:
            if some := [one for one in judged if one.table == name]:
                told(f"all of {name}", some)
        told("all", judged)
        seconds += [one.seconds for one in judged]
    for name, (pairs, false) in clean.items():
        print(f"  false alarms on clean batches of {name:<10} {false} of {pairs}")
    if seconds:
        report("CPU time of a batch, all cases", seconds, "s")


if __name__ == "__main__":
    msgspec.json.encode([])  # the import is ready before the clock runs
    main()
