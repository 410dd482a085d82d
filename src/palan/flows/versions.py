"""Every state that a table had: listed, read as it was, compared with another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palan.core import counted, stamp
from palan.data.nouns import DataVersion
from palan.errors import Conflict, PalanError
from palan.flows import tables
from palan.flows.project import Project

if TYPE_CHECKING:
    import polars as pl

SHOWN = 20
"""Changed rows that a difference lists."""

SAMPLE = 20_000
"""Rows that a profile looks at, of each side."""

SAMPLED_PARTS = 16

BINS = 12

_OLD, _NEW = "palan_old:", "palan_new:"


def versions(project: Project, data: str = "", *, limit: int = 50) -> list[dict[str, Any]]:
    """Return the versions of a table, the newest first; without a name the newest one of each table.

    Raises:
        NotFound: palan.toml has no such table.
    """
    if data:
        project.data(data)
        found = project.store.records.find(DataVersion, order="-number", limit=limit, data=data)
    else:
        found = [newest for name in project.config.data if (newest := tables.latest(project, name))]
    return [told(each) for each in found]


def told(version: DataVersion) -> dict[str, Any]:
    """Return the figures of one version."""
    reports = version.verdict.get("files", [version.verdict])
    return {
        "data": version.ref,
        "made": stamp(version.time),
        "rows": version.rows,
        "added": version.added,
        "corrections": sum(report.get("corrections", 0) for report in reports),
        "quarantined": sum(report.get("bad", 0) for report in reports),
        "parts": len(version.parts),
        "masked": len(version.masks or {}),
        "run": version.run,
    }


def export(project: Project, ref: str, path: Path) -> dict[str, Any]:
    """Write a version's rows to a file that ends in .parquet, .csv or .ndjson, in memory that does not grow with them.

    Raises:
        NotFound: there is no such table or version.
        Conflict: the file is there already.
        PalanError: another ending, or a place that cannot be written.
    """
    version = tables.find_data_version(project, ref)
    rows = tables.scan(project, version)
    sinks: dict[str, Callable[[Path], object]] = {".parquet": rows.sink_parquet, ".csv": rows.sink_csv, ".ndjson": rows.sink_ndjson}
    sink = sinks.get(path.suffix.lower())
    if sink is None:
        raise PalanError(f"{path.name} ends in none of .parquet, .csv and .ndjson", f"palan data export {ref} {path.stem or 'rows'}.parquet")
    if path.exists():
        raise Conflict(f"{path} is there already", "choose another name, or remove it first")
    temp = path.with_name(f".{path.name}.tmp")
    try:
        sink(temp)
        temp.replace(path)
    except OSError as error:
        raise PalanError(f"{path} cannot be written: {error.strerror or error}", f"check its folder, space and rights: df {path.parent}") from error
    finally:
        temp.unlink(missing_ok=True)
    return {"data": version.ref, "rows": version.rows, "file": str(path), "bytes": path.stat().st_size}


def difference(project: Project, old: str, new: str, *, shown: int = SHOWN) -> dict[str, Any]:
    """Return what lies between two versions of a table: columns, and rows added, removed and changed, told apart by key.

    Only what the two do not share is read: parts that one of them has alone, and rows that one of them hides. Without a key
    a changed row is one that was removed and one that was added.

    Returns:
        `columns` {added, removed, retyped}, `rows` {before, after, added, removed, changed}, `changed` (how many rows, by
        column) and `examples`: up to `shown` rows with their key and what each changed cell was and is.

    Raises:
        NotFound: there is no such table or version.
        Conflict: they are versions of two tables.
    """
    import polars as pl

    before, after = (tables.find_data_version(project, ref) for ref in (old, new))
    if before.data != after.data:
        raise Conflict(f"{before.ref} and {after.ref} are versions of two tables", f"palan data diff {before.data}@{before.number} {before.data}")
    contract = tables.contract_of(project, after.data)
    schemas = [tables.scan(project, each).collect_schema() for each in (before, after)]
    gone, came = _apart(project, before, after)
    key = [name for name in after.verdict.get("key", contract.key) if name in gone.columns and name in came.columns]
    shared = [name for name in schemas[1].names() if name in schemas[0] and name not in key]
    changed: dict[str, int] = {}
    examples: list[dict[str, Any]] = []
    moved = 0
    if key and gone.height and came.height:
        both = gone.select(*key, *(pl.col(name).alias(_OLD + name) for name in shared)).join(
            came.select(*key, *(pl.col(name).alias(_NEW + name) for name in schemas[1].names() if name not in key)), on=key, how="inner", nulls_equal=True
        )
        differs = [_differs(both, name).alias(name) for name in shared]
        differs += [pl.col(_NEW + name).is_not_null().alias(name) for name in schemas[1].names() if name not in schemas[0]]
        flags = both.select(differs) if differs else pl.DataFrame()
        changed = {name: count for name, count in zip(flags.columns, flags.sum().row(0), strict=True) if count} if flags.width else {}
        real = both.filter(flags.select(pl.any_horizontal(pl.all())).to_series()) if flags.width else both.clear()
        moved = both.height
        examples = list(_examples(real.sort(key).head(shown), key, schemas[1].names()))
        count = real.height
    else:
        count = 0
    found = {
        "from": before.ref,
        "to": after.ref,
        "columns": {
            "added": {name: str(dtype) for name, dtype in schemas[1].items() if name not in schemas[0]},
            "removed": {name: str(dtype) for name, dtype in schemas[0].items() if name not in schemas[1]},
            "retyped": {name: [str(schemas[0][name]), str(dtype)] for name, dtype in schemas[1].items() if name in schemas[0] and schemas[0][name] != dtype},
        },
        "rows": {"before": before.rows, "after": after.rows, "added": came.height - moved, "removed": gone.height - moved, "changed": count},
        "changed": dict(sorted(changed.items(), key=lambda item: -item[1])),
        "examples": examples,
    }
    return {**found, "text": _text(found)}


def apart(project: Project, before: DataVersion, after: DataVersion) -> int:
    """Return how many rows a difference of the two would read at most: those of parts that they do not share, or that they hide otherwise."""
    import polars as pl

    masks = [each.masks or {} for each in (before, after)]
    alone = {part for part in {*before.parts, *after.parts} if part not in before.parts or part not in after.parts or masks[0].get(part, ()) != masks[1].get(part, ())}
    return sum(int(each.item()) for each in pl.collect_all([tables.scan_frame(project, part).select(pl.len()) for part in sorted(alone)]))


def profile(project: Project, ref: str, *, shown: int = 10) -> dict[str, Any]:
    """Return what a version brought beside what was there before: of each column its type, nulls and how its values lie.

    Of either side at most `SAMPLE` rows are read, from the beginnings of parts that lie evenly among all: what is told of them
    is told of a sample. `of` has how many rows that are.

    Raises:
        NotFound: there is no such table or version.
    """
    version = tables.find_data_version(project, ref)
    before = tables.find_data_version(project, f"{version.data}@{version.number - 1}") if version.number > 1 else None
    old = [part for part in version.parts if before and part in set(before.parts)]
    new = [part for part in version.parts if part not in set(old)]
    came, was = (_sample(project, version, parts) for parts in (new or old, old if new else []))
    sides = [side for side in (was, came) if side is not None]
    columns = [{"name": name, "type": str(dtype), "sides": _lie([side[name] if side is not None and name in side.columns else None for side in (was, came)])} for name, dtype in (sides[-1].schema.items() if sides else ())]
    return {"columns": columns, "of": [side.height if side is not None else 0 for side in (was, came)], "sample": came.head(shown).rows(named=True) if came is not None else []}


def _sample(project: Project, version: DataVersion, parts: Sequence[str]) -> pl.DataFrame | None:
    """Return the first rows of parts that lie evenly among these."""
    if not parts:
        return None
    chosen = parts if len(parts) <= SAMPLED_PARTS else [parts[len(parts) * place // SAMPLED_PARTS] for place in range(SAMPLED_PARTS)]
    masks, contract = version.masks or {}, tables.contract_of(project, version.data)
    import polars as pl

    each = [tables.scan_parts(project, [part], {part: masks.get(part, ())}, contract).head(SAMPLE // len(chosen)) for part in chosen]
    return pl.concat(pl.collect_all(each), how="diagonal_relaxed")


def _lie(sides: Sequence[pl.Series | None]) -> list[dict[str, Any] | None]:
    """Return of each side its nulls, and how its values lie: shares of equal bins of both for figures and times, else the most frequent ones."""
    import polars as pl

    lines = [_figures(each) if each is not None else None for each in sides]
    ends = [float(end) for each in lines if each is not None for end in (each.min(), each.max()) if isinstance(end, float)]
    low, high = (min(ends), max(ends)) if ends else (0.0, 0.0)
    step = (high / BINS - low / BINS) or 1.0
    told: list[dict[str, Any] | None] = []
    for side, line in zip(sides, lines, strict=True):
        if side is None:
            told.append(None)
            continue
        rows: dict[str, Any] = {"nulls": side.null_count() / (len(side) or 1), "bins": [], "low": None, "high": None, "top": []}
        values = side.drop_nulls()
        if line is not None and len(line):
            counts = dict(((line - low) / step).floor().clip(0, BINS - 1).cast(pl.Int64).value_counts().iter_rows())
            rows |= {"bins": [counts.get(place, 0) / len(line) for place in range(BINS)], "low": values.min(), "high": values.max()}
        elif len(values) and not values.dtype.is_nested():
            rows["top"] = [(value, count / len(values)) for value, count in values.cast(pl.String, strict=False).value_counts(sort=True).head(4).iter_rows()]
        told.append(rows)
    return told


def _figures(values: pl.Series) -> pl.Series | None:
    """Return what can lie on a line as finite figures, or nothing where the values are no such."""
    import polars as pl

    if not (values.dtype.is_numeric() or values.dtype.is_temporal()):
        return None
    known = values.drop_nulls()
    figures = (known if known.dtype.is_numeric() else known.to_physical()).cast(pl.Float64, strict=False)
    return figures.filter(figures.is_finite())


def _apart(project: Project, before: DataVersion, after: DataVersion) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the rows that only one of two versions has, those of the first first; a row that both have is in neither, or in both."""
    import numpy as np
    import polars as pl

    if before.masks is None or after.masks is None:  # of before there were masks: which rows count is not written down
        return tables.read(project, before), tables.read(project, after)
    contract = tables.contract_of(project, after.data)
    sides: list[list[pl.LazyFrame]] = [[], []]
    for side, mine, other in ((0, before, after), (1, after, before)):
        for part in mine.parts:
            masks = (mine.masks or {}).get(part, ())
            if part not in other.parts:
                sides[side].append(tables.scan_parts(project, [part], {part: masks}, contract))
            elif (others := (other.masks or {}).get(part, ())) != masks:
                alone = np.setdiff1d(tables.mask_of(project, others), tables.mask_of(project, masks))
                rows = pl.Series(alone, dtype=pl.UInt32)
                if len(rows):
                    sides[side].append(tables.scan_frame(project, part, numbered=True).filter(pl.col(tables.ROW).is_in(rows.implode())).drop(tables.ROW))
    schemas = [tables.scan(project, version).collect_schema() for version in (before, after)]
    gone, came = sides
    read = pl.collect_all([*gone, *came])  # at once: a part is decoded by one core
    return _stacked(schemas[0], read[: len(gone)]), _stacked(schemas[1], read[len(gone) :])


def _stacked(schema: pl.Schema, frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    import polars as pl

    return pl.concat([pl.DataFrame(schema=schema), *frames], how="diagonal_relaxed")


def _differs(both: pl.DataFrame, name: str) -> pl.Expr:
    import polars as pl

    old, new = pl.col(_OLD + name), pl.col(_NEW + name)
    if both.schema[_OLD + name] == both.schema[_NEW + name]:
        return old.ne_missing(new)
    return old.cast(pl.String, strict=False).ne_missing(new.cast(pl.String, strict=False))


def _examples(rows: pl.DataFrame, key: Sequence[str], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for row in rows.iter_rows(named=True):
        cells = {name: [row.get(_OLD + name), row[_NEW + name]] for name in names if name not in key and row.get(_OLD + name) != row[_NEW + name]}
        yield {"key": {name: row[name] for name in key}, "cells": cells}


def _text(found: Mapping[str, Any]) -> str:
    rows, columns = found["rows"], found["columns"]
    words = [f"{counted(rows[what], 'row')} {what}" for what in ("added", "removed", "changed") if rows[what]] or ["the same rows"]
    words += [f"{'columns' if len(columns[what]) > 1 else 'column'} {', '.join(columns[what])} {what}" for what in ("added", "removed", "retyped") if columns[what]]
    return f"{found['from']} -> {found['to']}: {', '.join(words)}"
