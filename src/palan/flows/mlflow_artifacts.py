"""Artefacts as MLflow's clients know them: files by a path that begins with an experiment and a run, or a logged model."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import unquote

from palan.flows.fold import STREAM, fold, tracked
from palan.flows.mlflow import invalid, lacking
from palan.flows.project import Project
from palan.runs.points import event
from palan.runs.run import Artifact


def place(path: str) -> tuple[str, str]:
    """Return whose file a path of the proxy means, and the path within: a run's, a logged model's, or nobody's.

    Raises:
        Invalid: the path leads out of what it begins with.
    """
    parts = sound(path).split("/")
    if len(parts) >= 4 and parts[1] == "models" and parts[3] == "artifacts":
        return parts[2], "/".join(parts[4:])
    if len(parts) >= 3 and parts[2] == "artifacts":
        return parts[1], "/".join(parts[3:])
    return "", "/".join(parts)


def sound(path: str) -> str:
    """Return a path without slashes at its ends.

    Raises:
        Invalid: it is absolute, or leads upwards, however often it was quoted.
    """
    plain, before = path, ""
    while plain != before:
        plain, before = unquote(plain), plain
    if plain.startswith("/") or "\\" in plain or not plain.isprintable() or any(part in (".", "..") for part in plain.split("/")) or "//" in plain:
        raise invalid("Invalid path")
    return path.strip("/")


def keep(project: Project, path: str, file: Path) -> None:
    """Keep a file by its path; one that was there is replaced."""
    owner, name = place(path)
    if not name:
        raise invalid("Invalid path")
    digest = project.store.blobs.put(file)
    body = {name: (digest, file.stat().st_size)}
    tracked(project).append(STREAM, (event(owner, time.time_ns(), "artifact", body),))


def find(project: Project, path: str) -> Artifact:
    """Return the file with this path.

    Raises:
        NotFound: there is none.
    """
    owner, name = place(path)
    fold(project)
    found = project.store.records.find(Artifact, run=owner, path=name, limit=1)
    if not found:
        raise lacking(f"No such artifact: '{path}'")
    return found[0]


def listed(project: Project, owner: str, path: str) -> list[tuple[str, int | None]]:
    """Return what lies directly in a folder of a run or a logged model: (path from its root, size), a folder without one."""
    fold(project)
    folder = f"{path}/" if path else ""
    found: dict[str, int | None] = {}
    for each in project.store.records.find(Artifact, run=owner):
        if each.path.startswith(folder):
            first, deeper, _ = each.path[len(folder) :].partition("/")
            found[folder + first] = None if deeper else each.size
    return sorted(found.items())


def forget(project: Project, path: str) -> None:
    """Remove a file, or all that lies in a folder; the bytes stay until somebody sweeps the store."""
    owner, name = place(path)
    fold(project)
    for each in project.store.records.find(Artifact, run=owner):
        if each.path == name or not name or each.path.startswith(f"{name}/"):
            project.store.records.remove(Artifact, (owner, each.path))
