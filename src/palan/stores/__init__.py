"""Where things are kept: one address opens records, blocks and blobs."""

from __future__ import annotations

from pathlib import Path

from palan.errors import Corrupt, PalanError
from palan.stores.contract import Store


def open_store(address: str, root: Path) -> Store:
    """Open the store at `address`: a folder, relative to the project's `root`.

    Raises:
        PalanError: the folder cannot be opened, or the address is of a kind that this palan does not know.
        Corrupt: the records are gone, but what they belong to is there. A new ledger must not begin over it.
    """
    if "://" in address:
        raise PalanError(f'the store "{address}" is of an unknown kind', 'in palan.toml: [project] store = ".palan"')
    from palan.stores.files import FileBlobs
    from palan.stores.segments import SegmentBlocks
    from palan.stores.sqlite import SQLiteRecords

    folder = root / address
    records = folder / "palan.db"
    left = [name for name in ("key", "blobs", "blocks") if (folder / name).exists()] if _is_missing(records) else []
    if left:
        raise Corrupt(f"{records} is gone, with the ledger, but {' and '.join(left)} are there", f"restore it from a backup; or, to begin anew: mv {folder} {folder}.old")
    return Store(SQLiteRecords(records), SegmentBlocks(folder / "blocks"), FileBlobs(folder / "blobs"))


def _is_missing(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return True
    except OSError:  # it may be there: whoever opens it says what is wrong
        return False
