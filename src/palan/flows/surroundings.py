"""What a run has to be repeated with: code, commit and changes, distributions, data versions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from palan.core import canonical, digest_of
from palan.data.nouns import DataVersion
from palan.flows.project import Project

LOCKS = ("uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "requirements.txt")


def surroundings(project: Project) -> dict[str, Any]:
    """Return the fields of a run that say how to repeat it: {"code", "data", "environment"}; what is long is kept as blobs."""
    blobs = project.store.blobs
    environment = {"python": ".".join(str(each) for each in sys.version_info[:3]), "distributions": blobs.put(canonical(_distributions()))}
    lock = next((project.root / name for name in LOCKS if (project.root / name).is_file()), None)
    if lock is not None:
        environment |= {"lock": lock.name, "lock.blob": blobs.put(lock)}
    if commit := _git(project.root, "rev-parse", "HEAD").decode().strip():
        environment["git.commit"] = commit
        if changes := _git(project.root, "diff", "HEAD", "--binary"):
            environment["git.diff"] = blobs.put(changes)
    script = Path(getattr(sys.modules.get("__main__"), "__file__", None) or "")
    if script.suffix == ".py" and script.is_file() and "site-packages" not in script.parts:
        environment |= {"script": script.name, "script.blob": blobs.put(script)}
    newest = {each.data: each.number for each in project.store.records.find(DataVersion, order="number")}
    return {"code": digest_of(_sources(project.root)), "data": newest, "environment": environment}


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
