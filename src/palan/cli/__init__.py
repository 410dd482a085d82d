"""The door of the command line. `palan` and `palan status` are asked all day: they are answered here, without click.

Exit codes: 0 fine, 1 act, 2 broken.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from palan.errors import ModelFailed, NotAdmitted, PalanError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    from palan.cli.show import FINE, say

    if mine := arguments is None:
        gc.disable()  # a start makes no garbage; a command that goes on to work turns it on
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _readable(arguments)
        code = _answer(arguments)
        sys.stdout.flush()
    except PalanError as error:
        code = _failed(error, arguments)
    except KeyboardInterrupt:
        say("stopped", sys.stderr)
        code = 130
    except BrokenPipeError:  # whoever reads what we print (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FINE
    except OSError as error:
        unforeseen = PalanError(f"{error.filename or 'the system'}: {error.strerror}", "check that it is there and may be used; --debug shows where")
        unforeseen.__cause__ = error
        code = _failed(unforeseen, arguments)
    if mine:
        gc.freeze()  # what is left ends with the process: not to be searched once more
    sys.exit(code)


def _failed(error: PalanError, arguments: Sequence[str]) -> int:
    """Say what is wrong: three lines to a person, all of it to who debugs, JSON to a program; return the exit code."""
    from palan.cli.show import ACT, BROKEN, complain, say

    if "--debug" in arguments:
        import traceback

        # what the user's code raised in a process of its own, with the lines of theirs, comes along as text
        if isinstance(error, ModelFailed) and error.log:
            say(error.log, sys.stderr)
        traceback.print_exception(error)
    else:
        complain(error.what, error.hint)
    if "--json" in arguments:
        import msgspec

        from palan.http.answers import told

        say(msgspec.json.format(msgspec.json.encode(told(error)[1])).decode())
    return ACT if isinstance(error, NotAdmitted) else BROKEN


def _readable(arguments: Sequence[str]) -> None:
    """Refuse bytes that are no text: they could be neither stored, nor hashed, nor shown again."""
    settings = [value for name, value in os.environ.items() if name.startswith("PALAN_")]
    for each in (*arguments, *settings):
        try:
            each.encode()
        except UnicodeEncodeError:
            shown = each.encode(errors="surrogateescape").decode(errors="backslashreplace")
            raise PalanError(f'"{shown}" is not text in UTF-8', "type it in a terminal that is set to UTF-8, or give the file another name") from None


def _answer(arguments: list[str]) -> int:
    """Do what is asked. What needs no parser does not wait for one to load; the commands answer the same."""
    if not arguments:
        from palan.cli.show import where

        return where()
    if arguments not in (["status"], ["status", "--json"]):
        from palan.cli.commands import run

        return run(arguments)
    from palan.cli.show import open_alone, status

    return status(open_alone(), as_json="--json" in arguments)
