"""What do a million rows in quarantine cost those who decide about them: how long, and how much memory?

Every row of one file breaks a rule. Each command runs in a process of its own, as somebody would type it. `ROWS=3000000` makes it longer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from measure import AS_JSON, machine

ROWS = int(os.environ.get("ROWS", "1_000_000"))
NUMBERS = 8

TOML = "\n".join(
    [
        '[data.sensors]\nsource = "feed/*"\nkey = ["id"]\ntime = "at"\n[data.sensors.columns]\nid = "int"\nat = "time"\nplace = "str in EWR JFK LGA"\ntemp = "float -30..50 °F"',
        *(f'x{number} = "float"' for number in range(NUMBERS)),
    ]
)

COMMANDS = {
    "take the file in": ["ingest"],
    "count by rule and file": ["data", "quarantine", "list"],
    "show 20 of them": ["data", "quarantine", "show", "sensors"],
    "find 1 in 1,000 of them": ["data", "quarantine", "show", "sensors", "--where", "id % 1000 = 7"],
    "try a fix of all of them": ["data", "quarantine", "fix", "sensors", "--all", "--set", "temp = temp / 10", "--dry-run"],
    "drop 1 in 1,000 of them": ["data", "quarantine", "drop", "sensors", "--where", "id % 1000 = 7", "--reason", "tests"],
    "accept 1 in 1,000 of them": ["data", "quarantine", "accept", "sensors", "--where", "id % 1000 = 8", "--reason", "so it was"],
    "fix all the others": ["data", "quarantine", "fix", "sensors", "--all", "--set", "temp = temp / 10", "--reason", "tenths"],
    "read the file again, with one row more": ["ingest"],
}


def make(path: Path) -> None:
    random = np.random.default_rng(1)
    numbers = np.arange(ROWS)
    frame = pl.DataFrame(
        {
            "id": numbers,
            "at": pl.Series(numbers * 1_000_000 + 1_577_836_800_000_000).cast(pl.Datetime("us")).dt.to_string("iso"),
            "place": np.array(["EWR", "JFK", "LGA"])[random.integers(0, 3, ROWS)],
            "temp": np.round(random.uniform(60, 490, ROWS), 1),
            **{f"x{number}": random.normal(size=ROWS) for number in range(NUMBERS)},
        }
    )
    frame.write_csv(path)


def main() -> None:
    machine("polars")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "feed").mkdir()
        (root / "palan.toml").write_text(TOML, encoding="utf-8")
        make(root / "feed" / "one.csv")
        if not AS_JSON:
            print(f"{ROWS:,} rows of {4 + NUMBERS} columns, all of them broken, {(root / 'feed' / 'one.csv').stat().st_size / 1e6:.0f} MB of CSV")
        for name, arguments in COMMANDS.items():
            if "again" in name:
                with (root / "feed" / "one.csv").open("a") as file:
                    file.write(f"{ROWS},2026-01-01T00:00:00,EWR,20.0{',0' * NUMBERS}\n")
            started = time.perf_counter()
            child = subprocess.Popen([str(Path(sys.executable).with_name("palan")), "-p", place, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            told = child.stdout.read().splitlines() if child.stdout else []
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            figures = {"wall": time.perf_counter() - started, "processor": used.ru_utime + used.ru_stime, "peak MB": used.ru_maxrss / 1e3}
            if AS_JSON:
                print(json.dumps({"what": name, "rows": ROWS, **figures}))
            else:
                print(f"{name:<40} {figures['wall']:6.2f} s wall {figures['processor']:6.2f} s CPU {figures['peak MB']:6.0f} MB   {told[0] if told else ''}")
            assert not child.returncode, told


if __name__ == "__main__":
    main()
