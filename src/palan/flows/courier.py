"""A thread that carries on, again and again, what a process has written to where it belongs."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable

from palan.errors import PalanError

EVERY = 0.5
"""Seconds between two rounds: what was logged is seen elsewhere about so much later."""
PATIENCE = 2.0
"""Seconds that it may fail before it says so: a server that restarts is nothing to tell of."""
LONGEST = 5.0
"""Seconds between two rounds that fail, after some."""


_ALL: weakref.WeakSet[Courier] = weakref.WeakSet()


def _after_fork() -> None:
    for each in _ALL:
        each.after_fork()


os.register_at_fork(after_in_child=_after_fork)


class Courier:
    """Calls `carry`: when that returns, all that was there as it began has arrived; it raises where it cannot go on."""

    def __init__(self, carry: Callable[[], object], name: str, *, every: float = EVERY, note: str = "") -> None:
        self.carry = carry
        self.name = name
        self.every = every
        self.note = note  # what is said once besides what is wrong
        self.why = ""  # the last round failed, and why
        self._told = ""
        self.after_fork()
        _ALL.add(self)

    def after_fork(self) -> None:
        """Have nothing begun: the threads of a process are not in its forks."""
        self._lock = threading.Lock()
        self._goes = False

    def begin(self) -> None:
        """Begin, unless it goes already in this process."""
        if self._goes:
            return
        with self._lock:
            if not self._goes:
                self._wake = threading.Event()
                self._turn = threading.Condition()
                self._begun = self._done = 0
                self._is_last = False
                self._failed = 0
                self._goes = True
                threading.Thread(target=self._run, name=self.name, daemon=True).start()

    def settle(self, seconds: float, *, last: bool = False) -> bool:
        """Wait until all that is there now has arrived, but not for long, and not at all where the last round failed.

        With `last` it is tried once more even so.
        """
        self.begin()
        with self._turn:
            self._is_last = last  # whoever asks for the last time says himself what is wrong
            if self._failed and not last:
                return False
            needed = self._begun + 1
            self._wake.set()
            return self._turn.wait_for(lambda: self._done >= needed, seconds) and not self._failed

    def _run(self) -> None:
        since = time.monotonic()
        while True:
            self._wake.clear()
            with self._turn:
                self._begun += 1
            why = self._try()
            with self._turn:
                self._failed = self._failed + 1 if why else 0
                self.why, self._done = why, self._begun
                self._turn.notify_all()
            if not why:
                self._told, since = "", time.monotonic()
            elif time.monotonic() > since + PATIENCE and not self._is_last and why != self._told:
                self._told = why
                sys.stderr.write(f"palan: {why}{self.note}\n")
            self._wake.wait(min(self.every * 2 ** min(self._failed, 8), max(LONGEST, self.every)))

    def _try(self) -> str:
        try:
            self.carry()
        except PalanError as error:
            return f"{error.what} ({error.hint})" if error.hint else error.what
        except OSError as error:
            return str(error)
        except Exception as error:  # a mistake of palan's own must not end it: what was logged is kept, and tried again
            logging.getLogger("palan").exception("what was logged could not be carried on; it is tried again")
            return repr(error)
        return ""
