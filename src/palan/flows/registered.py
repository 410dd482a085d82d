"""Models that MLflow's clients registered, as palan shows them beside its own: to read, not to release."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from palan.core import stamp
from palan.errors import NotFound
from palan.runs.registered import PROMPT, STAGES, ModelVersion, RegisteredModel

if TYPE_CHECKING:
    from palan.flows.project import Project

SHOWN = 500
"""Models, and versions of one, that are shown: those that changed last, the newest."""


def models(project: Project) -> list[dict[str, Any]]:
    """Return the registered models that changed last; prompts are none, though MLflow's clients keep them there."""
    every = project.store.records.find(RegisteredModel, order="-updated")
    return [_model(project, each) for each in islice((each for each in every if each.tags.get(PROMPT) != "true"), SHOWN)]


def model(project: Project, name: str) -> dict[str, Any]:
    """Return one registered model with its newest versions.

    Raises:
        NotFound: no client registered one of this name.
    """
    found = project.store.records.get(RegisteredModel, name)
    if found is None:
        raise NotFound(f'no model "{name}"', "palan status")
    return {**_model(project, found), "description": found.description, "tags": dict(found.tags), "versions": versions(project, name), "next": _bring(project, name)}


def versions(project: Project, name: str) -> list[dict[str, Any]]:
    """Return the newest versions that clients registered under a name; none where there is no such model."""
    found = project.store.records.get(RegisteredModel, name)
    return [_version(found, each) for each in _newest(project, name, SHOWN)] if found else []


def known(project: Project, name: str, number: str = "") -> NotFound | None:
    """Return what to tell who asks palan to use a registered model, or version, as its own; None where there is none.

    A version is named by its number or by an alias.
    """
    records = project.store.records
    model = records.get(RegisteredModel, name)
    if model is not None and number in model.aliases:
        number = str(model.aliases[number])
    there = model is not None
    if number:
        there = number.isdecimal() and len(number) < 18 and bool(records.find(ModelVersion, model=name, number=int(number), stage=list(STAGES), limit=1))
    what = f"{name}@{number}" if number else name
    return NotFound(f"{what} was registered by an MLflow client: palan serves what it has built", _bring(project, name)) if there else None


def _bring(project: Project, name: str) -> str:
    """Return how palan gets a model of its own under this name."""
    first = "" if name in project.config.models else f"declare [models.{name}] in palan.toml with its code (docs/how-to/bring-your-own-model.md), then: "
    return f"{first}palan build {name}"


def _newest(project: Project, name: str, limit: int) -> list[ModelVersion]:
    return project.store.records.find(ModelVersion, order="-number", limit=limit, model=name, stage=list(STAGES))


def _model(project: Project, each: RegisteredModel) -> dict[str, Any]:
    newest = _newest(project, each.name, 1)
    return {
        "name": each.name,
        "newest": f"{each.name}@{newest[0].number}" if newest else None,
        "aliases": {alias: f"{each.name}@{number}" for alias, number in sorted(each.aliases.items())},
        "updated": stamp(each.updated),
    }


def _version(model: RegisteredModel, each: ModelVersion) -> dict[str, Any]:
    return {
        "ref": f"{model.name}@{each.number}",
        "number": each.number,
        "time": stamp(each.time),
        "aliases": sorted(alias for alias, number in model.aliases.items() if number == each.number),
        "stage": "" if each.stage == "None" else each.stage,
        "run": each.run,
        "source": each.source,
        "description": each.description,
    }
