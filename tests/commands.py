"""The command line asked within this process: all that somebody types and reads, without the start of an interpreter each time."""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from unittest.mock import patch

from palan.cli import main


@dataclass(frozen=True, slots=True)
class Answer:
    code: int
    out: str
    errors: str


def palan(folder: Path, *arguments: str, **environment: str) -> Answer:
    """Run a command in a folder, with nothing to read and nobody who watches, until it exits."""
    with contextlib.ExitStack() as stack:
        stdin = stack.enter_context(Path(os.devnull).open(encoding="utf-8"))
        # As an interpreter opens them: what cannot be said in UTF-8 fails on the one and is escaped on the other.
        out = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
        errors = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace"))
        with contextlib.chdir(folder), patch.dict(os.environ, environment), patch("sys.stdin", stdin), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            try:
                main(list(arguments))
            except SystemExit as end:
                code = int(end.code or 0)
        return Answer(code, _read(out), _read(errors))


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
