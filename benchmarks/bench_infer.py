"""How often does a contract that was inferred from good rows stop the next good delivery?

Real tables, delivered month by month: a contract is inferred from one month, or from all months before, and judges the next.
Whatever it says of the next month is a false alarm, be it a row in quarantine or a band. Beside it a naive profile: what was seen
is what may be. Then the same contracts judge deliveries with a fault in them, for one that says nothing is never wrong.
`PALAN_TEST_DATA` is where the tables lie.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
from measure import machine

from palan.data.contract import Contract, parse
from palan.data.infer import infer
from palan.data.verdict import verify

STREAMS = Path(os.environ.get("PALAN_TEST_DATA", "../shared/data")) / "streams"
TABLES = {"flights": "time_hour", "weather": "time_hour", "bikes": "ts", "traffic": "date_time"}


def months(name: str) -> list[pl.DataFrame]:
    """Return the good months of a table, at most 13 of the newest that follow one another."""
    rows = pl.read_parquet(STREAMS / f"{name}.parquet")
    rows = rows.with_columns(pl.col(TABLES[name]).str.slice(0, 7).alias("month of delivery"))
    parts = rows.partition_by("month of delivery", maintain_order=False, as_dict=True)
    least = sorted(part.height for part in parts.values())[len(parts) // 2] / 5  # the ends of a table are no months
    whole = [part.drop("month of delivery") for _, part in sorted(parts.items(), key=lambda pair: str(pair[0])) if part.height > least]
    return whole[-14:-1] if len(whole) > 13 else whole


def tolerant(batches: Sequence[pl.DataFrame], time: str) -> Contract:
    return parse("x", {"source": "x", **_tables(infer(batches, time=time).text("x"))})


def _tables(text: str) -> dict[str, object]:
    head, _, columns = text.partition("[data.x.columns]\n")
    return {**tomllib.loads(head), "columns": tomllib.loads(columns)}


def naive(batches: Sequence[pl.DataFrame], time: str) -> Contract:
    """Return what a profile says: the range, the set and the nulls that were seen."""
    seen, columns = pl.concat(batches, how="vertical_relaxed"), {}
    for column in seen.iter_columns():
        null = "?" if column.null_count() else ""
        if column.dtype.is_numeric():
            columns[column.name] = f"{'int' if column.dtype.is_integer() else 'float'}{null} {column.min()}..{column.max()}"
        elif column.n_unique() <= 20 and column.drop_nulls().len():
            columns[column.name] = f"str{null} in " + " ".join(f'"{value}"' for value in column.drop_nulls().unique())
        else:
            columns[column.name] = f"str{null}"
    return parse("x", {"source": "x", "columns": columns})


def alarms(contract: Contract, batch: pl.DataFrame) -> list[str]:
    verdict = verify(batch, contract).verdict
    return [f"{rule.count} x {rule.rule}" for rule in verdict.broken] + verdict.warnings


def faults(batch: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return the delivery with what commonly goes wrong in one of its columns of numbers or words."""
    numbers = [c.name for c in batch.iter_columns() if c.dtype.is_numeric() and c.n_unique() > 30][:4]
    words = [c.name for c in batch.iter_columns() if c.dtype == pl.String and 2 <= c.n_unique() <= 20 and c.null_count() == 0][:2]
    found = {}
    for name in numbers:
        column = pl.col(name)
        found[f"{name} × 1000"] = batch.with_columns((column * 1000).alias(name))
        found[f"{name} half missing"] = batch.with_columns(pl.when(pl.int_range(pl.len()) % 2 > 0).then(column).alias(name))
        found[f"{name} -99999 for 1 in 50"] = batch.with_columns(pl.when(pl.int_range(pl.len()) % 50 > 0).then(column).otherwise(-99999).alias(name))
    for name in words:
        found[f"{name} in lower case with a space"] = batch.with_columns((pl.col(name).str.to_lowercase() + " ").alias(name))
    found["a tenth of the rows"] = batch[: max(1, batch.height // 12)]
    return found


def main() -> None:
    machine("polars")
    found: dict[str, list[int]] = {}
    total = caught = 0
    ways: dict[str, Callable[[Sequence[pl.DataFrame], str], Contract]] = {"naive": naive, "inferred": tolerant}
    for name, time in TABLES.items():
        batches = months(name)
        for way, make in ways.items():
            for base in ("one month", "all months before"):
                said = 0
                for number in range(1 if base == "one month" else 3, len(batches)):
                    history = batches[number - 1 : number] if base == "one month" else batches[:number]
                    contract = make(history, time)
                    told = alarms(contract, batches[number])
                    said += bool(told)
                    if told and way == "inferred":
                        print(f"  {name} {batches[number][time].min()} by {base}: {'; '.join(told)[:300]}")
                    if way == "inferred" and base == "all months before" and number in (4, 8):
                        seen = {fault: bool(set(alarms(contract, broken)) - set(told)) for fault, broken in faults(batches[number]).items()}
                        total, caught = total + len(seen), caught + sum(seen.values())
                        print(*(f"  not seen: {name} {fault}" for fault, hit in seen.items() if not hit), sep="\n")
                    found.setdefault(f"{way:<9} from {base}", [0, 0])[1] += 1
                found[f"{way:<9} from {base}"][0] += said
    for what, (said, pairs) in found.items():
        print(f"{what}: {said} false alarms on {pairs} good months")
    print(f"faults seen by the inferred contracts: {caught} of {total}")


if __name__ == "__main__":
    main()
