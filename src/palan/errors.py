"""The one small tree of errors: what is wrong, and the next thing to type."""

from __future__ import annotations

from collections.abc import Iterable


class PalanError(Exception):
    """Something that a user can put right: `what` happened and a `hint` of what to do next."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\nhint: {self.hint}" if self.hint else self.what


class NotFound(PalanError):
    """A name or an id that is not there."""


class Invalid(PalanError):
    """An input that does not fit its schema: which `field`, which `value`, and the reason in `what`."""

    def __init__(self, what: str, hint: str = "", *, field: str = "", value: object = None) -> None:
        super().__init__(what, hint)
        self.field = field
        self.value = value


class Conflict(PalanError):
    """Somebody else changed the same thing first, or already holds it."""


class LeaseLost(Conflict):
    """The lease has passed to another holder: nothing more may be recorded under it."""


class NotAdmitted(PalanError):
    """Nothing is broken: the gates, or the lack of their evidence, do not let a version pass. Exit code 1."""


class Busy(PalanError):
    """Nothing is wrong with the request; it cannot be taken right now. Trying again may work."""


class Corrupt(PalanError):
    """Stored bytes are not the bytes that were written: nothing is returned."""


class MissingExtra(PalanError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {library}, which is not installed", f'pip install "palan[{extra}]"')


class ModelFailed(PalanError):
    """The user's model raised, died, or ran out of time; `status` is one of `models.contract.STATUSES`."""

    def __init__(self, what: str, hint: str = "", *, status: str = "error", log: str = "") -> None:
        super().__init__(what, hint)
        self.status = status
        self.log = log


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean "x"?` for the closest known name, or an empty string."""
    import difflib  # only a mistake needs it

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f'did you mean "{close[0]}"?' if close else ""
