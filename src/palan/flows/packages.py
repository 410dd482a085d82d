"""Versions on disk: the sources they came from, the folder they run in, the worker that holds them."""

from __future__ import annotations

import atexit
import hashlib
import hmac
import os
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palan.core import Version, canonical, digest_of
from palan.errors import Corrupt, NotFound, PalanError, nearest
from palan.flows import registered
from palan.flows.log import is_whole
from palan.flows.project import Project, key
from palan.ledger import Entry

if TYPE_CHECKING:
    from palan.engines.lanes import Worker
    from palan.runs.closure import Closure

_NOT_SOURCES = {"__pycache__", "node_modules", "site-packages", "build", "dist"}


def sources(root: Path) -> dict[str, str]:
    """Return the project's own Python files: path relative to the root -> text.

    Raises:
        PalanError: a file or a folder that cannot be read, or a file that is not UTF-8 text.
    """
    found = {}
    try:
        for path in _python_files(root, root):
            try:
                found[path.relative_to(root).as_posix()] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise PalanError(f"{path} is not UTF-8 text: {error.reason}", "save it as UTF-8") from error
    except OSError as error:
        raise PalanError(f"{error.filename} cannot be read: {error.strerror}", f"chmod u+r {error.filename}") from error
    return found


def _python_files(folder: Path, root: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in _NOT_SOURCES or path.is_symlink():
            continue
        if path.is_dir():
            if (path / "pyvenv.cfg").exists() or (path != root and (path / "palan.toml").exists()):
                continue  # an environment, or a project of its own
            yield from _python_files(path, root)
        elif path.suffix == ".py":
            yield path


@cache
def _distributions() -> Mapping[str, list[str]]:
    from importlib import metadata

    return metadata.packages_distributions()


def version_of(name: str) -> tuple[str, str] | None:
    """Return the distribution and version that an import name comes from."""
    from importlib import metadata

    found = _distributions().get(name, [name])  # a distribution that is installed in place lists no files of its own
    try:
        return found[0], metadata.version(found[0])
    except metadata.PackageNotFoundError:
        return None


def code_of(project: Project, entry: str, features: str = "") -> Closure:
    """Return the closure of `file.py:Name`, or of a table file: its bytes are its code. The file of its features belongs to it.

    Raises:
        NotFound: there is no such file or name.
    """
    from msgspec import structs

    from palan.data import sql
    from palan.runs.closure import Closure, closure

    file, _, name = entry.partition(":")
    path = project.root / file
    if file.endswith(".py"):
        if ":" not in entry:
            raise PalanError(f'"{entry}" does not name what decides', f'model = "{entry}:Class"')
        in_sql = features.endswith(".sql")
        found = closure(entry, sources(project.root), version_of, whole=[features] if features and not in_sql else [])
        if in_sql:
            made = {f"{features}:{each}": sql.meaning(one.text) for each, one in sql.expressions(text_of(project, features), features).items()}
            found = structs.replace(found, parts={**found.parts, **made}, files=(*found.files, features))
        return found
    if file.endswith(".sql"):
        installed = version_of(name) if name else None
        return Closure(entry, {file: sql.meaning(text_of(project, file))}, (file,), dict([installed]) if installed else {})
    if features:
        raise PalanError(f"{file} is a table, which has no features", "make them in a transformation: [data.NAME] transform, or let a model in Python read the table")
    if not path.is_file():
        near = nearest(file, (each.name for each in project.root.iterdir()))
        raise NotFound(f"there is no {path}", near or "check `model =` in palan.toml")
    return Closure(entry, {file: hashlib.sha256(path.read_bytes()).hexdigest()}, (file,), {})


def text_of(project: Project, file: str) -> str:
    """Return the text of a file of the project.

    Raises:
        NotFound: there is no such file.
        PalanError: it is no text.
    """
    try:
        return (project.root / file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PalanError(f"{file} is not UTF-8 text: {error.reason}", "save it as UTF-8") from None
    except OSError:
        raise NotFound(f"there is no {file} in the project", nearest(file, (each.name for each in project.root.iterdir())) or "check palan.toml") from None


def closure_of(version: Version) -> Closure:
    """Return the closure that a version was built from, as its manifest tells it."""
    from palan.runs.closure import Closure

    manifest = version.manifest
    own = ("palan", "python")
    return Closure(manifest["entry"], dict(manifest["closure"]), tuple(manifest["code"]), {name: each for name, each in manifest["environment"].items() if name not in own})


def edited(project: Project, version: Version) -> list[str]:
    """Name what of a version's code and parameters reads otherwise in the folder now: "delay.py:Delay.fit", "learning_rate"."""
    config = project.model(version.model)
    code, params = dict(code_of(project, config.model, config.features).parts), config.params
    before = version.manifest["closure"]
    known = version.manifest["params"]
    return [
        *(name for name in sorted({*code, *before}) if code.get(name) != before.get(name)),
        *(name for name in sorted(params) if known.get(name) != params[name]),
    ]


def environment(code: Closure) -> dict[str, str]:
    """Return what the version needs installed: distributions by name, and Python."""
    import platform
    from importlib import metadata

    own = {name: metadata.version(name) for name in ("palan", "polars", "numpy")}
    return {**own, **code.distributions, "python": platform.python_version()}


def sign(project: Project, manifest: Mapping[str, Any]) -> str:
    """Return the HMAC-SHA256 of the manifest under the project's key."""
    return hmac.new(key(project), canonical(manifest), hashlib.sha256).hexdigest()


def find_version(project: Project, ref: str) -> Version:
    """Return a version by "model@3", "model@latest", "model" (its champion, else its latest) or the start of its id.

    Raises:
        NotFound: with the versions that there are.
        Corrupt: what is stored under this name is not what was built.
    """
    from palan.releases.nouns import Release

    records = project.store.records
    name, _, number = ref.partition("@")
    project.model(name)
    found = records.find(Version, order="-number", model=name)
    if not found:
        raise (number and registered.known(project, name, number)) or NotFound(f"{name} has no version yet", f"palan build {name}")
    if not number:
        release = records.get(Release, name)
        number = release.champion.version.partition("@")[2] if release else "latest"
    for version in found:
        if number in ("latest", str(version.number)) or (len(number) >= 6 and version.id.startswith(number)):
            return proven(project, version)
    known = ", ".join(version.ref for version in found[:5])
    raise (number and registered.known(project, name, number)) or NotFound(f"there is no {name}@{number}", f"known: {known}")


def proven(project: Project, version: Version) -> Version:
    """Return the version if it is what the ledger tells was built under its name.

    Raises:
        Corrupt: it is not.
    """
    built = project.store.records.find(Entry, subject=version.ref, verb="built", limit=1)
    if not is_whole(version) or not built or built[0].detail.get("id") != version.id:
        raise Corrupt(f"{version.ref} is not what was built here: it was changed behind palan's back", f"palan log --verify, then: palan build {version.model}")
    return version


def materialise(project: Project, version: Version) -> Path:
    """Unpack a version into a folder of its own and return it. Every byte is checked on the way.

    Raises:
        Corrupt: the manifest was changed, or was not signed by this project's key.
    """
    manifest = dict(version.manifest)
    signed = manifest.pop("signed", "")
    if digest_of(manifest) != version.id or not hmac.compare_digest(signed, sign(project, manifest)):
        raise Corrupt(
            f"{version.ref} is not what was built here: its manifest does not match its id and signature",
            f"palan build {version.model}",
        )
    return unpack(project, version.id, {**manifest["code"], **_state_files(manifest["state"])})


def _state_files(state: Mapping[str, str]) -> dict[str, str]:
    return {f".state/{name}": blob for name, blob in state.items()}


def unpack(project: Project, name: str, files: Mapping[str, str]) -> Path:
    """Lay blobs out as files below the cache folder `name`; what is there already is checked, and put right."""
    folder = project.folder / "cache" / "versions" / name[:32]
    for path, blob in files.items():
        place = folder / path
        if not place.is_file() or hashlib.sha256(place.read_bytes()).hexdigest() != blob:
            project.store.blobs.get(blob, place)
    return folder


def stage(project: Project, code: Closure) -> tuple[Path, dict[str, str]]:
    """Store the closure's files as blobs and lay them out; return the folder and {path: blob}."""
    blobs = {path: project.store.blobs.put((project.root / path).read_bytes()) for path in code.files}
    return unpack(project, digest_of(blobs), blobs), blobs


def undeclared(project: Project, worker: Worker) -> list[str]:
    """Return which files a worker has read of which palan.toml knows nothing: relative to the project, where they lie in it."""
    root, found = project.root.resolve(), [Path(each) for each in worker.reads(project.root, project.folder)]
    globs = [*(each.source for each in project.config.data.values()), *(each.instances for each in project.config.models.values()), *(each.golden for each in project.config.models.values())]
    declared = {path.resolve() for each in filter(None, globs) for path in root.glob(each)} if found else set()
    return [str(path.relative_to(root) if path.is_relative_to(root) else path) for path in found if path not in declared]


def unnoticed(entry: str, path: str) -> str:
    """Say what it means that a file is read which is not declared, and how to declare it."""
    name = re.sub(r"\W+", "_", Path(path).stem)
    there = f'[data.{name}] source = "{path}"' if not Path(path).is_absolute() else f"put it into the project, and [data.{name}] source = ..."
    return f"{entry.partition(':')[0]} read {path}, which palan does not know: a change of it will not be noticed; in palan.toml: {there}"


WARM = 4
"""How many versions a process keeps warm for replays and the watch; the least used one is closed first."""

LEARNERS = 2
"""How many trials learn at a time."""

_warm: OrderedDict[tuple[str, str], Worker] = OrderedDict()
_warming = threading.Lock()


def warm_worker(project: Project, version: Version) -> Worker:
    """Return a worker of this version that this process keeps: whoever asks next has it at once. Do not close it."""
    with _warming:
        name = (str(project.root), version.id)
        worker = _warm.get(name)
        if worker is None:
            worker = _warm[name] = open_worker(project, version)
        _warm.move_to_end(name)
        while len(_warm) > WARM:
            _warm.popitem(last=False)[1].close()
        return worker


@atexit.register
def _close_warm() -> None:
    while _warm:
        _warm.popitem()[1].close()


def same_environment(version: Version) -> None:
    """Refuse a version that other distributions are installed for than it was built with.

    Raises:
        PalanError: one is missing or of another version; the hint installs it.
    """
    wheels = _wheels()
    for name, wanted in version.manifest["environment"].items():
        if name in ("palan", "python", "polars", "numpy") or wheels.get(_plain(name)) == wanted:
            continue
        if (found := _installed(name)) != wanted:
            raise PalanError(
                f"{version.ref} was built with {name} {wanted}, here it is {found}",
                f'pip install "{name}=={wanted}"   (or: palan build {version.model})',
            )


def _installed(name: str) -> str:
    """Return the version of a distribution, "missing" when there is none: exact whatever installed it, and slow to load."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _wheels() -> Mapping[str, str]:
    """Return name -> version of installed wheels, as their folders are named: quick, and nearly always all that is asked."""
    found: dict[str, str] = {}
    for place in reversed(sys.path):  # the first on the path is the one that is imported
        with suppress(OSError):
            found.update(_wheels_in(place, Path(place).stat().st_mtime_ns))
    return found


@lru_cache(maxsize=64)
def _wheels_in(place: str, _changed: int) -> Mapping[str, str]:
    with os.scandir(place or ".") as entries:
        parts = [each.name.removesuffix(".dist-info").partition("-") for each in entries if each.name.endswith(".dist-info")]
    return {_plain(name): version for name, _, version in parts}


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def open_worker(project: Project, version: Version) -> Worker:
    """Return a worker that holds this version, ready to decide.

    Raises:
        PalanError: a distribution that the version was built with is missing or another one.
    """
    from palan.engines.lanes import Worker

    same_environment(version)
    manifest = version.manifest
    folder = materialise(project, version)
    state = {name: (folder / ".state" / name).read_bytes() for name in manifest["state"]}
    return Worker(
        folder,
        manifest["entry"],
        kind=manifest["kind"],
        params=manifest["params"],
        state=state,
        inputs=[field["name"] for field in manifest["signature"]["fields"]],
        outcome=manifest["outcome"],
        features=prepared_of(manifest),
    )


def prepared_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a worker needs to make the features of a version; nothing where it has none."""
    if "features" not in manifest:
        return {}
    told = manifest["features"]
    return {"file": told["file"], "columns": {field["name"]: field["type"] for field in manifest["signature"]["fields"]}, "tables": told["tables"]}
