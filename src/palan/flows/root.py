"""Where the project is. It loads nothing else, so that `palan` in any folder answers at once."""

from __future__ import annotations

import os
from pathlib import Path

from palan.errors import NotFound

FILE = "palan.toml"


def find_root(start: Path | str | None = None) -> Path:
    """Return the nearest folder, from `start` upwards, that holds a palan.toml.

    Raises:
        NotFound: there is none.
    """
    given = start or os.environ.get("PALAN_PROJECT")
    folder = Path(given or ".").resolve()
    if folder.is_file():
        folder = folder.parent
    for place in (folder, *folder.parents) if not given else (folder,):
        if (place / FILE).is_file():
            return place
    raise NotFound(f"there is no palan project in {folder}", "palan init   (or: cd to a folder with a palan.toml)")
