"""Find out what is wrong with one delivery, compared with the rows before it, and how to put it right.

The other doctor, `palan.data.doctor`, looks at days within a table. This one looks at a delivery as it came, before or
after it was typed: it needs no time column and no weeks of history, and speaks of columns and rows as well as of values.
Each check is about what healthy rows do not do; what one check has explained, the next one no longer sees.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from palan.data.doctor import Hypothesis
from palan.data.faults import clock, columns, labels, numbers, rows, values
from palan.data.faults.delivery import BLOCKS, Delivery
from palan.data.repair import mend

LEAST = 10 * BLOCKS
"""Rows of history without which nothing is usual."""

CHECKS: tuple[Callable[[Delivery, set[str]], list[Hypothesis]], ...] = (
    labels.exchanged,
    labels.relabelled,
    rows.missing_groups,
    values.defaults,
    values.truncated,
    numbers.examine,
    values.stuck,
)
"""What is looked for, in this order: each is told of which columns something was said already."""


def diagnose(history: pl.DataFrame, batch: pl.DataFrame, *, time: str | None = None) -> list[Hypothesis]:
    """Return what may be wrong with a delivery, most credible first; usually nothing.

    Args:
        history: healthy rows before it, oldest first.
        batch: the rows as delivered, in whatever columns and types they came.
        time: the column with the event time, where there is one.
    """
    found = columns.renamed(history, batch)
    batch = mend(batch, found, None)
    retyped = columns.retyped(history, batch)
    found += retyped
    batch = mend(batch, retyped, None)
    if history.height < LEAST or not batch.height:
        return found
    timed = time if time is not None and all(time in frame.columns and frame.schema[time].is_temporal() for frame in (history, batch)) else None
    if timed is not None:
        history, batch = history.drop_nulls(timed), batch.drop_nulls(timed)
    twice = rows.duplicated(Delivery(history, batch, timed))
    found += twice
    batch = mend(batch, twice, timed)
    moved = clock.shifted(Delivery(history, batch, timed))
    batch = mend(batch, moved, timed)
    if timed is not None:
        batch = batch.sort(timed, maintain_order=True)
    delivery = Delivery(history, batch, timed)
    gone = [] if moved else rows.missing_hours(delivery)
    found += moved + gone
    told: set[str] = set()
    for check in CHECKS:
        new = [one for one in check(delivery, told) if not told & set(one.columns)]
        told |= {name for one in new for name in one.columns}
        found += new
    return sorted(found, key=lambda one: -one.confidence)
