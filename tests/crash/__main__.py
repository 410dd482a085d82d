"""`make crash`: every part of the campaign, or one, and a table of what was found."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from crash.database import kills_of_postgresql
from crash.disk import full_disk
from crash.faults import faults
from crash.ingest import kills_of_ingest, kills_of_ingest_at_scale
from crash.journal import kills_of_commands
from crash.locks import foreign_lock, foreign_lock_on_postgresql
from crash.migrations import kills_of_migrations, kills_of_migrations_on_postgresql
from crash.remote import kills_of_remote
from crash.report import Found
from crash.server import kills_of_the_server
from crash.writers import kills_of_writers


class Part(msgspec.Struct, frozen=True):
    """One part: what it does, how often by default, and in which unit."""

    act: Callable[[Path, int, int], Found]
    count: int
    unit: str


PARTS = {
    "writers": Part(kills_of_writers, 1000, "writers killed, 8 at once, and readers beside them"),
    "server": Part(kills_of_the_server, 50, "kills of palan up"),
    "remote": Part(kills_of_remote, 100, "kills of clients of another machine and of their server"),
    "journal": Part(kills_of_commands, 100, "kills of build, ingest and tick"),
    "ingest": Part(kills_of_ingest, 1000, "kills of palan ingest and of who decides about quarantine, while files are written"),
    "ingest-at-scale": Part(kills_of_ingest_at_scale, 150, "the same on PostgreSQL and S3"),
    "postgresql": Part(kills_of_postgresql, 50, "restarts and kills of PostgreSQL"),
    "disk": Part(full_disk, 60, "full disks"),
    "lock": Part(foreign_lock, 60, "seconds of a foreign lock"),
    "lock-postgresql": Part(foreign_lock_on_postgresql, 60, "seconds of a foreign lock"),
    "faults": Part(faults, 100_000, "calls that fail, are cut short or are the last one: all there are"),
    "migrations": Part(kills_of_migrations, 200, "kills of a migration, and as many calls of it that fail"),
    "migrations-postgresql": Part(kills_of_migrations_on_postgresql, 60, "kills of a migration, each third one of the server"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make crash ARGS=...", epilog="; ".join(f"{name}: {part.count:,} {part.unit}" for name, part in PARTS.items()))
    parser.add_argument("--only", choices=PARTS, action="append", help="one part (may be given again)")
    parser.add_argument("--count", type=int, help="how often, instead of each part's own number")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--folder", type=Path, help="where the stores are made; else the folder for temporary files")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    rows, lost = [], 0
    for name, part in PARTS.items():
        if asked.only and name not in asked.only:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="palan-crash-", dir=asked.folder) as folder:
            found = part.act(Path(folder), asked.seed, asked.count or part.count)
        rows.append((name, found, time.monotonic() - began))
        print(line(*rows[-1]), flush=True)
        for each in found.lost:
            print(f"    {each}", flush=True)
        lost += len(found.lost)
    print("\n".join(["", f"{'part':<22} {'blows':>7} {'lost':>5} {'seconds':>8}  acknowledged", *(line(*row) for row in rows)]))
    sys.exit(1 if lost else 0)


def line(name: str, found: Found, seconds: float) -> str:
    if found.skipped:
        return f"{name:<22} skipped: {found.skipped}"
    kept = ", ".join(f"{count:,} {what}" for what, count in sorted(found.kept.items()) if count)
    return f"{name:<22} {found.blows:>7,} {len(found.lost):>5,} {seconds:>8.0f}  {kept}"


if __name__ == "__main__":
    main()
