"""What a part of the campaign found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

TESTS = Path(__file__).resolve().parents[1]
SOURCES = TESTS.parent / "src"


class Found(msgspec.Struct):
    """How many blows fell, what was acknowledged by kind, and a sentence for each thing that was lost, torn or told badly."""

    blows: int = 0
    kept: Counter[str] = msgspec.field(default_factory=Counter)
    lost: list[str] = []
    skipped: str = ""

    def acknowledged(self, kinds: Iterable[str] | Mapping[str, int]) -> None:
        self.kept.update(kinds)


def launched(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Start a program that tells through a pipe what was acknowledged."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCES), str(TESTS)])}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment)


def palan(root: Path, *words: object) -> subprocess.Popen[bytes]:
    """Start one command of palan's on a project."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.Popen([sys.executable, "-m", "palan.cli", "--project", str(root), *map(str, words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
