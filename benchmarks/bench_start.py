"""How long until palan is there? CPU milliseconds, user and system, of fresh processes that a user waits for."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import machine, report

PALAN = str(Path(sys.executable).with_name("palan"))
# Compiled code is kept, as it is for every user: a machine on which nothing may be kept measures the compiler.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "PALAN_PROJECT")}


def cpu(command: list[str], folder: Path) -> float:
    child = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, command
    return (usage.ru_utime + usage.ru_stime) * 1000


def project(folder: Path) -> Path:
    """A project whose model is built and released."""
    subprocess.run([PALAN, "init", "--kind", "rules", "--into", str(folder)], env=ENVIRONMENT, check=True, capture_output=True)
    for words in (["ingest"], ["build", "shipping"], ["release", "shipping", "--force", "--reason", "to be asked"], ["decide", "shipping", "--input", "example.json"]):
        subprocess.run([PALAN, *words], cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)
    return folder


with tempfile.TemporaryDirectory() as temp:
    outside, inside = Path(temp) / "outside", project(Path(temp) / "inside")
    outside.mkdir()
    asked = {
        "python alone": ([sys.executable, "-c", "pass"], outside),
        "import palan": ([sys.executable, "-c", "import palan"], outside),
        "palan, outside any project": ([PALAN], outside),
        "palan, in a project": ([PALAN], inside),
        "palan --help": ([PALAN, "--help"], outside),
        "palan status": ([PALAN, "status"], inside),
    }
    machine("click", "msgspec")
    found: dict[str, list[float]] = {what: [] for what in asked}
    for turn in range(21):  # in turns, so that a busy minute is not one command's alone
        for what, (command, folder) in asked.items():
            spent = cpu(command, folder)
            if turn:
                found[what].append(spent)
    for what, values in found.items():
        report(what, values, "ms CPU")
