"""The command line asked within this process: all that somebody types and reads, without the start of an interpreter each time."""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from unittest.mock import patch

from palan.cli import main


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command says, and how it ends; what it says in one place stands in `out` alone."""

    code: int
    out: str
    errors: str


def palan(folder: Path, *arguments: str, one_place: bool = False, **environment: str) -> Answer:
    """Run a command in a folder, with nothing to read and nobody who watches, until it exits."""
    with contextlib.ExitStack() as stack:
        stdin = stack.enter_context(Path(os.devnull).open(encoding="utf-8"))
        # As an interpreter opens them: what cannot be said in UTF-8 fails on the one and is escaped on the other.
        out = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
        errors = out if one_place else stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace"))
        with contextlib.chdir(folder), patch.dict(os.environ, environment), patch("sys.stdin", stdin), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            try:
                main(list(arguments))
            except SystemExit as end:
                code = int(end.code or 0)
        return Answer(code, _read(out), "" if one_place else _read(errors))


def is_typed(line: str) -> bool:
    """Tell whether `typed` understands a line: commands of palan, each after the one before went well."""
    return not any(mark in line for mark in "|<>$;*`") and all(part.split()[0] in ("palan", "cd") for part in line.split(" && "))


def typed(folder: Path, line: str, *, one_place: bool = False, **environment: str) -> Answer:
    """Run a line as a shell would, from a folder."""
    told = Answer(0, "", "")
    for verb, *words in map(shlex.split, line.split(" && ")):
        if verb == "cd":
            folder /= words[0]
            continue
        assert verb == "palan", line
        more = palan(folder, *words, one_place=one_place, **environment)
        told = Answer(more.code, told.out + more.out, told.errors + more.errors)
        if told.code:
            break
    return told


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
