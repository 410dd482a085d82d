"""The windows that decisions are judged in: one rule for whoever judges them and whoever says that one is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

ANCHOR = datetime(1970, 1, 5, tzinfo=UTC)
"""Windows are counted from a Monday, so that those of seven days are calendar weeks."""

SLACK = timedelta(days=1)
"""How late into a window the first decision may come for it to count as whole."""

MUCH = 20
"""Decisions a window from which on none at all is no chance: at that rate, once in half a thousand million windows."""


def window_start(time: datetime, length: timedelta) -> datetime:
    """Return the start of the window that a time lies in."""
    return ANCHOR + (time - ANCHOR) // length * length


def first_window(first: datetime, length: timedelta) -> datetime:
    """Return the start of the first whole window of a model whose first decision is of this time."""
    start = window_start(first, length)
    # Where it went live in the middle of one: half a window is unlike any whole one.
    return start + length if first - start >= min(SLACK, length / 7) else start


def ended_windows(first: datetime, length: timedelta, now: datetime) -> list[datetime]:
    """Return the starts of the whole windows that have ended, oldest first."""
    start = first_window(first, length)
    return [start + place * length for place in range(int((now - start) / length))]
