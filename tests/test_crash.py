"""A short crash campaign: `make crash` is the long one."""

from __future__ import annotations

from pathlib import Path

from crash.writers import campaign


def test_nothing_acknowledged_is_lost_in_a_few_kills(tmp_path: Path) -> None:
    found = campaign(tmp_path, kills=8, seed=11, writers=4)
    assert (found["kills"], found["lost"]) == (8, 0)
    assert found["points"] > 0
