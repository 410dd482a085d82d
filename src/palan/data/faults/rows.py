"""Rows that came twice, and rows that did not come."""

from __future__ import annotations

import numpy as np
import polars as pl

from palan.data.doctor import Hypothesis
from palan.data.faults.delivery import BLOCKS, CATEGORIES, Delivery, Flags
from palan.data.repair import Reshape

TWICE = 0.05
"""Share of rows that are in the delivery already, below which they are a coincidence."""
CHANCE = 1e-6
"""How unlikely it has to be that rows are absent by chance."""
SUPPLIER = 0.12
"""Share of the rows, below which a value is not missed: small groups come and go."""
DAYS = 3
RECENT = 60
"""Days that say at which hours rows come."""


def duplicated(delivery: Delivery) -> list[Hypothesis]:
    """The same rows, in every column, are delivered twice."""
    batch, history = delivery.batch, delivery.history
    again = ~batch.select(pl.struct(pl.all()).is_first_distinct()).to_series()
    share = float(again.mean() or 0.0)  # type: ignore[arg-type]
    if share < TWICE:
        return []
    sample = history.tail(max(batch.height, 1000))
    usual = 1 - sample.n_unique() / max(sample.height, 1)
    if share < 10 * usual:
        return []
    since = delivery.since(int(np.argmax(again.to_numpy())))
    text = f"{int(again.sum())} of {batch.height} rows came twice, alike in every column; before, {usual:.1%} did"
    evidence = {"statistic": "share of rows that came before in the same delivery", "before": share, "after": 0.0, "threshold": TWICE}
    return [Hypothesis("duplicated", (), since, 0.99, text, evidence=evidence, reshape=Reshape(distinct=True))]


def missing_groups(delivery: Delivery, told: set[str]) -> list[Hypothesis]:
    """A value that was always there is not, and nothing came in its place: its supplier's rows were not delivered."""
    found: list[tuple[float, Hypothesis]] = []
    for name in delivery.words:
        if name in told:
            continue
        had = delivery.history.select(pl.col(name).cast(pl.String).alias("value"), block=delivery.block).drop_nulls("value")
        has = delivery.batch[name].cast(pl.String)
        if not has.len() or had["value"].n_unique() > CATEGORIES or set(has.drop_nulls()) - set(had["value"]):
            continue
        here: list[tuple[float, Hypothesis]] = []
        steady = had.group_by("value").agg(pl.len().alias("rows"), pl.col("block").n_unique().alias("blocks"), _least_share(had).alias("least"))
        for value, rows, blocks, least in steady.iter_rows():
            share = rows / had.height
            if blocks < BLOCKS or least <= 0 or share < SUPPLIER:
                continue
            present = np.flatnonzero((has == value).to_numpy())
            start = int(present[-1]) + 1 if len(present) else 0
            expected = (has.len() - start) * min(share, least) / (1 - share + 1e-9)
            if expected < 20:
                continue
            run = _longest_absence(had["value"] == value)
            # a kind of weather comes and goes: a supplier delivers evenly
            if has.len() - start < 3 * run + 20 or run > 2 * np.log(had.height) / share:
                continue
            text = f"no row says {name} {value} since {delivery.since(start):%Y-%m-%d %H:%M}, which {share:.0%} of the rows did, and nothing came in its place"
            evidence = {"statistic": f"share of rows with {value}", "before": 0.0, "after": None, "threshold": least, "value": value}
            here.append((share * (has.len() - start), Hypothesis("partial", (name,), delivery.since(start), 0.9, text, evidence=evidence)))
        # where several kinds of rows stay out at once, the rows are of another sort
        found += here if len(here) == 1 else []
    return [max(found, key=lambda one: one[0])[1]] if found else []


def _least_share(had: pl.DataFrame) -> pl.Expr:
    """Return the smallest share of a block's rows that has the value."""
    size = had.height / BLOCKS
    return pl.col("block").value_counts(name="palan_rows").struct.field("palan_rows").min() / size


def _longest_absence(present: pl.Series) -> int:
    places = np.flatnonzero(present.to_numpy())
    return int(np.diff(places).max(initial=0))


def missing_hours(delivery: Delivery) -> list[Hypothesis]:
    """Hours of the day that always had rows have none, day after day."""
    if delivery.time is None or not delivery.batch.height:
        return []
    (past, _), (now, now_days) = (_by_hour(frame, delivery.time) for frame in (delivery.history, delivery.batch))
    past = past[-RECENT:]
    if len(past) < 14 or len(now) < DAYS:
        return []
    usual = past.mean(axis=0)
    gone = []
    for hour in np.flatnonzero(usual >= 0.9):
        absent = ~now[:, hour]
        tail = len(absent) - (int(np.flatnonzero(~absent)[-1]) + 1 if (~absent).any() else 0)
        longest = _longest_run(~past[:, hour])
        # the last day may end before this hour
        if (tail >= max(DAYS, 2 * longest + 2) and (1 - usual[hour]) ** tail < CHANCE) or tail == len(now) >= 2 * longest + 5:
            gone.append((int(hour), tail))
    days = max((tail for _, tail in gone), default=0)
    hours = [hour for hour, tail in gone if tail >= days - 1]
    # one hour is summer time, two may be an outage where some days always lacked them
    if not 2 <= len(hours) <= 20 or (len(hours) == 2 and usual[hours].min() < 0.98):
        return []
    since = delivery.batch.filter(pl.col(delivery.time).dt.date() >= pl.lit(now_days[len(now_days) - days]))[delivery.time].min()
    text = f"no rows between {hours[0]} and {hours[-1] + 1} h on {days} days in a row; before, {usual[hours].mean():.0%} of the days had them"
    evidence = {"statistic": "share of days with rows in these hours", "before": 0.0, "after": None, "threshold": float(usual[hours].min()), "hours": hours}
    return [Hypothesis("partial", (delivery.time,), since or delivery.since(0), 0.9, text, evidence=evidence)]  # type: ignore[arg-type]


def _by_hour(frame: pl.DataFrame, time: str) -> tuple[Flags, list[object]]:
    """Return days x 24: whether the hour of the day has rows; and the days."""
    hours = frame.select(day=pl.col(time).dt.date(), hour=pl.col(time).dt.hour()).drop_nulls().unique().sort("day")
    days = hours["day"].unique(maintain_order=True).to_list()
    table = np.zeros((len(days), 24), dtype=bool)
    place = {day: number for number, day in enumerate(days)}
    table[[place[day] for day in hours["day"]], hours["hour"].to_numpy()] = True
    return table, days


def _longest_run(flags: Flags) -> int:
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest
