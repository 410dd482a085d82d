"""How long until palan is there? CPU seconds of fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from measure import machine, report

PALAN = str(Path(sys.executable).with_name("palan"))


def cpu(command: list[str]) -> float:
    """CPU milliseconds, user and system, of one process that ends as it should: 0 is fine, 2 is a user's mistake."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode in (0, 2), command
    return (usage.ru_utime + usage.ru_stime) * 1000


machine("click")
for what, command in {
    "python alone": [sys.executable, "-c", "pass"],
    "import palan": [sys.executable, "-c", "import palan"],
    "palan --help": [PALAN, "--help"],
    "palan status, outside any project": [PALAN, "status"],
}.items():
    cpu(command)
    report(what, [cpu(command) for _ in range(11)], "ms CPU")
