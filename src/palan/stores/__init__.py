"""Where things are kept: one address opens records, blocks and blobs."""

from __future__ import annotations

from pathlib import Path

from palan.errors import PalanError
from palan.stores.contract import Store


def open_store(address: str, root: Path) -> Store:
    """Open the store at `address`: a folder, relative to the project's `root`.

    Raises:
        PalanError: the folder cannot be written, or the address is of a kind that this palan does not know.
    """
    if "://" in address:
        raise PalanError(f'the store "{address}" is of an unknown kind', 'in palan.toml: [project] store = ".palan"')
    from palan.stores.files import FileBlobs
    from palan.stores.segments import SegmentBlocks
    from palan.stores.sqlite import SQLiteRecords

    folder = root / address
    return Store(SQLiteRecords(folder / "palan.db"), SegmentBlocks(folder / "blocks"), FileBlobs(folder / "blobs"))
