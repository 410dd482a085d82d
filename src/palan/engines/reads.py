"""Notice which files a model reads of which palan knows nothing: it could not notice that one of them changed."""

from __future__ import annotations

import glob
import os
import sys
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import polars as pl

from palan import errors

_READERS = ("read_csv", "scan_csv", "read_parquet", "scan_parquet", "read_json", "read_ndjson", "scan_ndjson", "read_ipc", "scan_ipc", "read_excel", "read_avro")
"""What Polars opens outside of Python, where no audit hook sees it. Nor does one see what other compiled libraries open."""

_SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/lib64", "/bin")
_CACHES = (".cache", ".config", ".local/share")

_opened: dict[str, None] = {}


def watch() -> None:
    """Note from now on every file that this process opens to read. It cannot be undone: only for workers that do not serve."""
    if _opened:
        return
    _opened[os.devnull] = None
    sys.addaudithook(_hook)
    for name in _READERS:
        setattr(pl, name, _noting(getattr(pl, name)))


def _hook(event: str, given: tuple[Any, ...]) -> None:
    if event == "open":
        path, _, flags = given
        if isinstance(path, str | bytes) and not flags & (os.O_WRONLY | os.O_RDWR):
            _opened[os.path.abspath(os.fsdecode(path))] = None  # noqa: PTH100  # a Path would cost more than the rest


def _noting(read: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(read)
    def noted(*args: Any, **more: Any) -> Any:
        source = args[0] if args else more.get("source")
        if isinstance(source, str | Path):
            _opened[os.path.abspath(source)] = None  # noqa: PTH100
        return read(*args, **more)

    return noted


def unknown(root: Path, known: list[Path]) -> list[str]:
    """Return what was read, but for what lies in a `known` folder, is of Python, a library or the system, or only passes by.

    Below `root`, the project, nothing passes by, even where the project lies among temporary files.
    """
    homes = [*known, *map(Path, (sys.prefix, sys.base_prefix)), *(Path(each) for each in sys.path if each and Path(each) != root), Path(errors.__file__).parents[1], *map(Path, _SYSTEM)]
    passing = [Path(tempfile.gettempdir()), *(Path.home() / each for each in _CACHES)]
    mine, others, brief = root.resolve(), {each.resolve() for each in homes}, {each.resolve() for each in passing}
    found = []
    for name in _opened:
        path = Path(name).resolve()
        above = set(path.parents)
        if above & others or not (path.is_file() or glob.has_magic(name)) or (above & brief and mine not in above):
            continue
        found.append(str(path))
    return sorted(set(found))
