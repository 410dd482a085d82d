"""What a run is repeated with: code, commit and changes, distributions, data versions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from palan.core import canonical, digest_of
from palan.data.nouns import DataVersion
from palan.flows.root import FILE
from palan.stores.contract import Blobs, Records

LOCKS = ("uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "requirements.txt")

FOLDER = "about"
"""Where the artefacts of a run lie that tell how to repeat it."""


def surroundings(root: Path, blobs: Blobs, records: Records | None = None) -> tuple[dict[str, Any], dict[str, tuple[str, int]]]:
    """Return the fields of a run that say how to repeat it, and what is long as artefacts: path -> (blob, bytes).

    Args:
        root: the folder of a project; or one whose code is of no project, which is told by the script alone.
        blobs: where the artefacts are put.
        records: those of the project, which know the newest data versions.
    """
    environment = {"python": ".".join(str(each) for each in sys.version_info[:3])}
    files: dict[str, Path | bytes] = {"distributions.json": canonical(_distributions())}
    lock = next((root / name for name in LOCKS if (root / name).is_file()), None)
    if lock is not None:
        files[lock.name] = lock
    if commit := _git(root, "rev-parse", "HEAD").decode().strip():
        environment["git.commit"] = commit
        if changes := _git(root, "diff", "HEAD", "--binary"):
            files["changes.diff"] = changes
    script = Path(getattr(sys.modules.get("__main__"), "__file__", None) or "")
    if script.suffix == ".py" and script.is_file() and "site-packages" not in script.parts:
        environment["script"] = script.name
        files[script.name] = script
    newest = {each.data: each.number for each in records.find(DataVersion, order="number")} if records is not None else {}
    code = _sources(root) if (root / FILE).is_file() else script.read_text(encoding="utf-8") if script.name in files else ""
    about = {"code": digest_of(code) if code else "", "data": newest, "environment": environment}
    return about, {f"{FOLDER}/{name}": (blobs.put(what), len(what) if isinstance(what, bytes) else what.stat().st_size) for name, what in files.items()}


def _distributions() -> dict[str, str]:
    from importlib import metadata

    found = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    return dict(sorted((name, version) for name, version in found.items() if name))


def _sources(root: Path) -> dict[str, str]:
    from palan.flows.packages import sources

    return sources(root)


def _git(root: Path, *arguments: str) -> bytes:
    """Return what git says of the folder, nothing where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""
