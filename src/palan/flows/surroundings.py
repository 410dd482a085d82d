"""What a run is repeated with: code, commit and changes, distributions, data versions."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from palan.core import canonical, digest_of
from palan.data.nouns import DataVersion
from palan.flows.root import FILE
from palan.stores.contract import Blobs, Records

LOCKS = ("uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "requirements.txt")

MOST = 16 << 20
"""Bytes of uncommitted changes that are kept."""

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
            files["changes.diff"] = changes[:MOST]
            if len(changes) > MOST:
                environment["changes.diff"] = f"cut after its first {MOST >> 20} MB"
    script = Path(getattr(sys.modules.get("__main__"), "__file__", None) or "")
    if script.suffix == ".py" and script.is_file() and "site-packages" not in script.parts:
        environment["script"] = script.name
        files[script.name] = script
    newest = {each.data: each.number for each in records.find(DataVersion, order="number")} if records is not None else {}
    code = _sources(root) if (root / FILE).is_file() else {}
    if others := {name: code[name] for name in (_untracked(root) if commit else code) if name in code and root / name != script.resolve()}:
        files["sources.json"] = canonical(others)  # what no commit has
    digest = digest_of(code) if code else digest_of(script.read_text(encoding="utf-8")) if script.name in files else ""
    about = {"code": digest, "data": newest, "environment": environment}
    return about, {f"{FOLDER}/{name}": (blobs.put(what), len(what) if isinstance(what, bytes) else what.stat().st_size) for name, what in files.items()}


def _distributions() -> dict[str, str]:
    from importlib import metadata

    found = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    return dict(sorted((name, version) for name, version in found.items() if name))


def _sources(root: Path) -> dict[str, str]:
    from palan.flows.packages import sources

    return sources(root)


def _untracked(root: Path) -> list[str]:
    return os.fsdecode(_git(root, "ls-files", "--others", "--exclude-standard", "-z", "*.py")).split("\0")


def _git(root: Path, *arguments: str) -> bytes:
    """Return what git says of the folder, a little more than MOST of it at the most; nothing where there is no git or no repository."""
    try:
        with subprocess.Popen(["git", "-C", str(root), *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as git:
            assert git.stdout is not None
            timer = threading.Timer(10, git.kill)
            timer.start()
            try:
                said = git.stdout.read(MOST + 1)
                if len(said) > MOST:
                    git.kill()
                    return said
            finally:
                timer.cancel()
    except OSError:
        return b""
    return said if git.returncode == 0 else b""
