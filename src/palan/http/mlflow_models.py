"""The routes of MLflow's registry and of logged models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from palan.core import utcnow
from palan.flows import mlflow_artifacts as artifacts
from palan.flows.mlflow import Pair, invalid, millis, missing
from palan.flows.mlflow_registry import By, OnDataset, Registry
from palan.http.mlflow_artifacts import files
from palan.runs.mlflow import LoggedModel
from palan.runs.registered import ModelVersion, RegisteredModel

Answer = Mapping[str, Any]
STATUSES = {"LOGGED_MODEL_PENDING": "PENDING", "LOGGED_MODEL_READY": "READY", "LOGGED_MODEL_UPLOAD_FAILED": "FAILED"}
Ask = Callable[[Any], Answer]


class Named(msgspec.Struct, gc=False):
    """Every field that a request about registered models may have."""

    name: str = ""
    new_name: str = ""
    version: str | int = ""
    description: str = ""
    source: str = ""
    run_id: str = ""
    run_link: str = ""
    model_id: str = ""
    stage: str = ""
    stages: list[str] = []
    archive_existing_versions: bool = False
    key: str = ""
    value: str = ""
    alias: str = ""
    tags: list[Pair] = []
    filter: str = ""
    max_results: int | None = None
    order_by: list[str] = []
    page_token: str = ""


class Logged(msgspec.Struct, gc=False):
    """Every field that a request about logged models may have."""

    model_id: str = ""
    experiment_id: str = ""
    experiment_ids: list[str] = []
    name: str = ""
    model_type: str = ""
    source_run_id: str = ""
    status: str | int = ""
    params: list[Pair] = []
    tags: list[Pair] = []
    tag_key: str = ""
    filter: str = ""
    max_results: int | None = None
    order_by: list[By] = []
    datasets: list[OnDataset] = []
    page_token: str = ""
    artifact_directory_path: str = ""


def routes(registry: Registry) -> dict[tuple[str, str], tuple[type, Ask, tuple[str, ...]]]:
    """Return what is asked, how it is answered, and the fields that are needed, for each method and path."""
    return {**_registered(registry), **_versions(registry), **_logged(registry)}


def _limit(asked: int | None, usual: int, most: int) -> int:
    limit = usual if asked is None else asked
    if not 0 < limit <= most:
        raise invalid(f'Invalid value "{limit}" for parameter \'max_results\' supplied: it must be from 1 to {most}', "max_results")
    return limit


def _registered(registry: Registry) -> dict[tuple[str, str], tuple[type, Ask, tuple[str, ...]]]:
    def told(each: RegisteredModel) -> Answer:
        return {"registered_model": _model(registry, each)}

    def search(asked: Named) -> Answer:
        found, following = registry.search(asked.filter, _limit(asked.max_results, 100, 1000), asked.order_by, asked.page_token)
        return {"registered_models": [_model(registry, each) for each in found], "next_page_token": following or None}

    def delete(asked: Named) -> Answer:
        registry.delete(asked.name)
        return {}

    def tag(asked: Named) -> Answer:
        registry.tag(asked.name, asked.key, asked.value)
        return {}

    def untag(asked: Named) -> Answer:
        registry.tag(asked.name, asked.key, None)
        return {}

    def alias(asked: Named) -> Answer:
        registry.alias(asked.name, asked.alias, str(asked.version))
        return {}

    def unalias(asked: Named) -> Answer:
        registry.unalias(asked.name, asked.alias)
        return {}

    def aliased(asked: Named) -> Answer:
        return {"model_version": version_told(registry, registry.aliased(asked.name, asked.alias))}

    def latest(asked: Named) -> Answer:
        return {"model_versions": [version_told(registry, each) for each in registry.latest(asked.name, asked.stages)]}

    return {
        ("POST", "/registered-models/create"): (Named, lambda asked: told(registry.create(asked.name, asked.description, asked.tags)), ("name",)),
        ("POST", "/registered-models/rename"): (Named, lambda asked: told(registry.rename(asked.name, asked.new_name)), ("name", "new_name")),
        ("PATCH", "/registered-models/update"): (Named, lambda asked: told(registry.describe(asked.name, asked.description)), ("name",)),
        ("DELETE", "/registered-models/delete"): (Named, delete, ("name",)),
        ("GET", "/registered-models/get"): (Named, lambda asked: told(registry.model(asked.name)), ("name",)),
        ("GET", "/registered-models/search"): (Named, search, ()),
        ("POST", "/registered-models/get-latest-versions"): (Named, latest, ("name",)),
        ("GET", "/registered-models/get-latest-versions"): (Named, latest, ("name",)),
        ("POST", "/registered-models/set-tag"): (Named, tag, ("name", "key")),
        ("DELETE", "/registered-models/delete-tag"): (Named, untag, ("name", "key")),
        ("POST", "/registered-models/alias"): (Named, alias, ("name", "alias", "version")),
        ("DELETE", "/registered-models/alias"): (Named, unalias, ("name", "alias")),
        ("GET", "/registered-models/alias"): (Named, aliased, ("name", "alias")),
    }


def _versions(registry: Registry) -> dict[tuple[str, str], tuple[type, Ask, tuple[str, ...]]]:
    def told(each: ModelVersion) -> Answer:
        return {"model_version": version_told(registry, each)}

    def create(asked: Named) -> Answer:
        return told(registry.create_version(asked.name, asked.source, asked.run_id, asked.model_id, asked.description, asked.run_link, asked.tags))

    def search(asked: Named) -> Answer:
        found, following = registry.search_versions(asked.filter, _limit(asked.max_results, 10_000, 200_000), asked.order_by, asked.page_token)
        return {"model_versions": [version_told(registry, each) for each in found], "next_page_token": following or None}

    def delete(asked: Named) -> Answer:
        registry.delete_version(asked.name, str(asked.version))
        return {}

    def tag(asked: Named) -> Answer:
        registry.tag_version(asked.name, str(asked.version), asked.key, asked.value)
        return {}

    def untag(asked: Named) -> Answer:
        registry.tag_version(asked.name, str(asked.version), asked.key, None)
        return {}

    def download(asked: Named) -> Answer:
        found = registry.original(registry.version(asked.name, asked.version))
        return {"artifact_uri": model_uri(registry.logged(found.logged)) if found.logged and found.source.startswith("models:/") else found.source}

    return {
        ("POST", "/model-versions/create"): (Named, create, ("name", "source")),
        ("GET", "/model-versions/get"): (Named, lambda asked: told(registry.version(asked.name, asked.version)), ("name", "version")),
        ("PATCH", "/model-versions/update"): (Named, lambda asked: told(registry.change_version(asked.name, asked.version, description=asked.description)), ("name", "version")),
        ("POST", "/model-versions/transition-stage"): (
            Named,
            lambda asked: told(registry.move(asked.name, str(asked.version), asked.stage, archive=asked.archive_existing_versions)),
            ("name", "version", "stage"),
        ),
        ("DELETE", "/model-versions/delete"): (Named, delete, ("name", "version")),
        ("GET", "/model-versions/search"): (Named, search, ()),
        ("GET", "/model-versions/get-download-uri"): (Named, download, ("name", "version")),
        ("POST", "/model-versions/set-tag"): (Named, tag, ("name", "version", "key")),
        ("DELETE", "/model-versions/delete-tag"): (Named, untag, ("name", "version", "key")),
    }


def _logged(registry: Registry) -> dict[tuple[str, str], tuple[type, Ask, tuple[str, ...]]]:
    def create(asked: Logged) -> Answer:
        return logged_told(registry.log(asked.experiment_id or "0", asked.name, asked.model_type, asked.source_run_id, asked.params, asked.tags))

    def finish(asked: Logged) -> Answer:
        word = asked.status if isinstance(asked.status, str) else dict(enumerate(STATUSES, 1)).get(asked.status, "")
        status = STATUSES.get(word)
        if status is None:
            raise missing("status")
        return logged_told(registry.change_logged(asked.model_id, status=status))

    def delete(asked: Logged) -> Answer:
        registry.change_logged(asked.model_id, deleted=utcnow())
        return {}

    def tag(asked: Logged) -> Answer:
        registry.change_logged(asked.model_id, tags=asked.tags)
        return {}

    def untag(asked: Logged) -> Answer:
        registry.untag_logged(asked.model_id, asked.tag_key)
        return {}

    def params(asked: Logged) -> Answer:
        registry.change_logged(asked.model_id, params=asked.params)
        return {}

    def search(asked: Logged) -> Answer:
        found, following = registry.search_logged(asked.experiment_ids, asked.filter, _limit(asked.max_results, 100, 1000), asked.order_by, asked.page_token, asked.datasets)
        return {"models": [logged_told(each)["model"] for each in found], "next_page_token": following or None}

    def directories(asked: Logged) -> Answer:
        model = registry.logged(asked.model_id)
        found = artifacts.listed(registry.tracking.project, model.id, artifacts.sound(asked.artifact_directory_path))
        return {"root_uri": model_uri(model), "files": files(found)}

    return {
        ("POST", "/logged-models"): (Logged, create, ()),
        ("POST", "/logged-models/search"): (Logged, search, ("experiment_ids",)),
        ("GET", "/logged-models/{model_id}"): (Logged, lambda asked: logged_told(registry.logged(asked.model_id)), ("model_id",)),
        ("PATCH", "/logged-models/{model_id}"): (Logged, finish, ("model_id",)),
        ("DELETE", "/logged-models/{model_id}"): (Logged, delete, ("model_id",)),
        ("PATCH", "/logged-models/{model_id}/tags"): (Logged, tag, ("model_id",)),
        ("DELETE", "/logged-models/{model_id}/tags/{tag_key}"): (Logged, untag, ("model_id",)),
        ("POST", "/logged-models/{model_id}/params"): (Logged, params, ("model_id",)),
        ("GET", "/logged-models/{model_id}/artifacts/directories"): (Logged, directories, ("model_id",)),
    }


def _pairs(values: Mapping[str, str]) -> Answer:
    return {"tags": [{"key": key, "value": value} for key, value in values.items()]} if values else {}


def _model(registry: Registry, each: RegisteredModel) -> Answer:
    latest = [version_told(registry, version) for version in registry.latest(each.name)]
    aliases = [{"alias": alias, "version": str(number)} for alias, number in each.aliases.items()]
    return {
        "name": each.name,
        "creation_timestamp": millis(each.time),
        "last_updated_timestamp": millis(each.updated),
        **({"description": each.description} if each.description else {}),
        **({"latest_versions": latest} if latest else {}),
        **_pairs(each.tags),
        **({"aliases": aliases} if aliases else {}),
    }


def version_told(registry: Registry, each: ModelVersion) -> Answer:
    """Return a version in MLflow's form."""
    aliases = registry.aliases(each)
    return {
        "name": each.model,
        "version": str(each.number),
        "creation_timestamp": millis(each.time),
        "last_updated_timestamp": millis(each.updated),
        "current_stage": each.stage,
        "description": each.description,
        "source": each.source,
        "run_id": each.run,
        "status": "READY",
        "run_link": each.link,
        **_pairs(each.tags),
        **({"aliases": aliases} if aliases else {}),
    }


def model_uri(model: LoggedModel) -> str:
    return f"mlflow-artifacts:/{model.experiment}/models/{model.id}/artifacts"


def logged_told(each: LoggedModel) -> dict[str, Any]:
    """Return a logged model in MLflow's form."""
    metrics = [
        {
            "key": metric.key,
            "value": metric.number if abs(metric.number) < float("inf") else {"nan": "NaN", "inf": "Infinity"}.get(metric.value, "-Infinity"),
            "timestamp": metric.time,
            "step": metric.step,
            "run_id": metric.run,
            "model_id": each.id,
            **({"dataset_name": metric.dataset} if metric.dataset else {}),
            **({"dataset_digest": metric.digest} if metric.digest else {}),
        }
        for metric in each.metrics
    ]
    params = [{"key": key, "value": value} for key, value in each.params.items()]
    status = next(word for word, own in STATUSES.items() if own == each.status)
    return {
        "model": {
            "info": {
                "model_id": each.id,
                "experiment_id": str(each.experiment),
                "name": each.name,
                "creation_timestamp_ms": millis(each.time),
                "last_updated_timestamp_ms": millis(each.updated),
                "artifact_uri": model_uri(each),
                "status": status,
                "model_type": each.kind,
                "source_run_id": each.run,
                **_pairs(each.tags),
            },
            "data": {**({"params": params} if params else {}), **({"metrics": metrics} if metrics else {})},
        }
    }
