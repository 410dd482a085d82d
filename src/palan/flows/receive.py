"""Take in what is tracked on other machines: bytes of their segments, and the blobs that these name."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from palan.errors import Invalid
from palan.flows.fold import STREAM, revive
from palan.flows.project import Project
from palan.flows.send import FORMAT
from palan.stores.mirrors import Mirrors

UPLOAD = timedelta(minutes=10)
"""How long a process may say nothing while its blob, all of which is here, is put away."""


class Receiver:
    """What one server takes in. An answer means that what was sent is in the kernel, or on the disk where it was the last."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self._mirrors = Mirrors(project.folder / "blocks" / STREAM)

    def take(self, segment: str, at: int, data: bytes, *, ended: bool = False, format: int = FORMAT) -> dict[str, int]:
        """Append bytes to the mirror of a segment, and return how many it has: fewer than `at` where some before are missing.

        Raises:
            Invalid: they are of a format that this palan does not know.
            Busy: the disk is full.
            Conflict: the mirror has other bytes in their place.
        """
        if format != FORMAT:
            raise Invalid(f"runs of format {format} were sent, and this server takes format {FORMAT}", "have the same palan on both machines: pip install -U palan", field="format", value=format)
        size, is_new = self._mirrors.append(segment, at, data, ended=ended)
        if is_new:
            revive(self.project, segment.partition("_")[0])
        return {"has": size}

    def has(self, digest: str) -> bool:
        """Tell whether a blob is here, which then counts as put now: it is about to be named."""
        return self.project.store.blobs.touch(digest)

    def keep(self, file: Path, segment: str) -> None:
        """Keep a blob that came whole; the process of the segment lives, although it waits."""
        self._mirrors.hear(segment, UPLOAD.total_seconds())
        try:
            self.project.store.blobs.put(file)
        finally:
            self._mirrors.hear(segment)

    def hear(self, segment: str) -> None:
        """Note that the process of a segment is there, though what it sends is no segment."""
        self._mirrors.hear(segment)
