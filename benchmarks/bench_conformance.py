"""Does a tool say of every delivery what is true of it, in whatever form it comes, and which rows are wrong?

The kinds of cells of tests/test_conformance.py that other tools can be asked too: a rule, a form of input, a delivery whose
verdict is known. Each tool judges in an environment of its own (`make peers`), with what its documentation has for the rule.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
from measure import AS_JSON, machine

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

NAN, INF = float("nan"), float("inf")
FORMS = ("eager", "lazy", "csv", "parquet", "ndjson", "stream")
TOOLS = ("pandera", "dataframely", "pointblank", "great_expectations")

# rule -> the contract, values that hold, values that do not
RULES: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "not null": ({"columns": {"n": "int", "x": "float"}}, [0.5, -2.0], [None]),
    "not NaN": ({"columns": {"n": "int", "x": "float"}}, [0.5, -2.0], [NAN]),
    "finite": ({"columns": {"n": "int", "x": "float"}}, [0.5, 1e300], [INF, -INF]),
    "range": ({"columns": {"n": "int", "x": "float? -10..10"}}, [-10.0, 10.0, 0.25, None], [10.000001, -1e300, INF, NAN]),
    "range from": ({"columns": {"n": "int", "x": "int? 0.."}}, [0, 2**40, None], [-1]),
    "values": ({"columns": {"n": "int", "x": "str? in A B"}}, ["A", "B", None], ["a", "C"]),
    "pattern": ({"columns": {"n": "int", "x": "str?"}, "checks": ["REGEXP_LIKE(x, '^[A-Z]{2}$')"]}, ["AB", "ZZ", None], ["ab", "ABC", "A"]),
    "unique": ({"columns": {"n": "int", "x": "int"}, "key": ["x"]}, [], []),
    "number as text": ({"columns": {"n": "int", "x": "int"}}, ["5", "-7"], ["x", "1.5"]),
    "two columns": ({"columns": {"n": "int", "x": "int?", "y": "int?"}, "checks": ["y <= x"]}, [(2, 1), (2, 2), (None, 2), (2, None)], [(1, 2), (-5, 0)]),
    "rows": ({"rows": "2..4", "columns": {"n": "int"}}, [], []),
}


def deliveries(rule: str, good: list[Any], bad: list[Any]) -> list[tuple[str, list[Any], list[int], bool]]:
    """Return what each is called, its values, which of them are wrong, and whether it passes."""
    if rule == "rows":
        return [(f"{height} rows", [None] * height, [], 2 <= height <= 4) for height in (1, 2, 4, 5)]
    if rule == "unique":
        clean = list(range(100, 112))
        return [("clean", clean, [], True), ("beside one another", [*clean, 111], [11, 12], False), ("far apart", [7, *clean, 7], [0, 13], False), ("three", [7, 7, 7], [0, 1, 2], False)]
    found = [("clean", good * 5, [], True), ("one clean row", good[:1], [], True)]
    for each in bad:
        found += [(f"{each} alone", [each], [0], False), (f"{each} first", [each, *good * 4], [0], False), (f"{each} last", [*good * 4, each], [len(good) * 4], False)]
    mixed = [*good, *bad] * 3
    return [*found, ("mixed", mixed, [place for place in range(len(mixed)) if place % (len(good) + len(bad)) >= len(good)], False)]


def cells(folder: Path) -> list[dict[str, Any]]:
    from test_conformance import csv_of, ndjson_of

    found = []
    for rule, (table, good, bad) in RULES.items():
        names = list(table["columns"])
        for what, values, wrong, passes in deliveries(rule, good, bad):
            rows = [{"n": number, **dict(zip(names[1:], value if isinstance(value, tuple) else (value,), strict=False))} for number, value in enumerate(values)]
            kinds = {"float": pl.Float64, "int": pl.Int64, "str": pl.String}
            schema = {name: pl.String if rule == "number as text" and name == "x" else kinds[text.split()[0].removesuffix("?")] for name, text in table["columns"].items()}
            frame = pl.DataFrame(rows, schema=schema)
            stem = folder / f"{len(found)}"
            frame.write_parquet(stem.with_suffix(".parquet"))
            stem.with_suffix(".csv").write_bytes(csv_of(rows, names))
            stem.with_suffix(".ndjson").write_bytes(ndjson_of(rows, names))
            for form in FORMS:
                suffix = form if form in ("csv", "ndjson") else "parquet"
                found.append({"rule": rule, "form": form, "what": what, "file": str(stem.with_suffix(f".{suffix}")), "wrong": wrong, "passes": passes, "table": table})
    return found


def palan(cell: dict[str, Any]) -> tuple[str, list[int]]:
    from palan.data.contract import parse
    from test_conformance import in_batches, in_memory, of_file, sliced

    contract, path = parse("table", {"source": "x", **cell["table"]}), Path(cell["file"])
    if cell["form"] in ("csv", "parquet", "ndjson"):
        verdict, bad, _ = of_file(path.suffix, path.read_bytes(), contract)
    elif cell["form"] == "stream":
        verdict, bad, _ = in_batches(contract, lambda: sliced(pl.read_parquet(path)))
    else:
        verdict, bad, _ = in_memory(contract, pl.scan_parquet(path) if cell["form"] == "lazy" else pl.read_parquet(path))
    return ("fail" if verdict.bad or verdict.warnings else "pass"), sorted(bad)


def judged(cell: dict[str, Any], says: str, rows: list[int]) -> str:
    """Return what the answer to a cell is worth."""
    if says == "no way":
        return "not expressible"
    if says not in ("pass", "fail"):
        return "error"
    if says == "pass":
        return "right" if cell["passes"] else "silent pass"
    if cell["passes"]:
        return "false alarm"
    if cell["rule"] == "rows":  # no single row is wrong
        return "right"
    return "right" if set(rows) == set(cell["wrong"]) else "rows missing" if set(rows) < set(cell["wrong"]) else "other rows"


OUTCOMES = ("right", "silent pass", "false alarm", "rows missing", "other rows", "error", "not expressible")


def main() -> None:
    machine("polars")
    python = os.environ.get("PEERS_DATA", str(HERE.parent / ".venv-peers-data" / "bin" / "python"))
    with tempfile.TemporaryDirectory() as place:
        asked = cells(Path(place))
        answers: dict[str, list[Any]] = {"palan": [palan(cell) for cell in asked]}
        for tool in TOOLS if Path(python).exists() else ():
            told = subprocess.run([python, str(HERE / "conformance_peers.py")], input=json.dumps({"tool": tool, "cells": asked}), capture_output=True, text=True, check=True)
            answers[tool] = json.loads(told.stdout.splitlines()[-1])
    if len(answers) == 1:
        print("  the other tools are not there: make peers")
    table = {tool: Counter(judged(cell, *answer) for cell, answer in zip(asked, told, strict=True)) for tool, told in answers.items()}
    if AS_JSON:
        print(json.dumps(table))
        return
    print(f"  {len(asked)} cells: {len(RULES)} rules, {len(FORMS)} forms")
    print(f"  {'':<20}" + "".join(f"{outcome:>17}" for outcome in OUTCOMES))
    for tool, counts in table.items():
        print(f"  {tool:<20}" + "".join(f"{counts[outcome] or '':>17}" for outcome in OUTCOMES))
    for tool, told in answers.items():
        odd = Counter((cell["rule"], cell["form"], judged(cell, *answer)) for cell, answer in zip(asked, told, strict=True) if judged(cell, *answer) != "right")
        for rule in RULES:
            by_outcome: dict[str, list[str]] = {}
            for (name, form, outcome), count in odd.items():
                if name == rule:
                    by_outcome.setdefault(outcome, []).append(f"{form} {count}")
            for outcome, forms in by_outcome.items():
                print(f"    {tool}, {rule}: {outcome} ({', '.join(forms)})")
        if "--errors" in sys.argv:
            for text in sorted({answer[0] for answer in told} - {"pass", "fail", "no way"}):
                print(f"      {text}")
    assert table["palan"]["right"] == len(asked)


if __name__ == "__main__":
    main()
