"""Models as MLflow's clients register and log them: names with versions, stages, aliases and tags; logged models.

These are names that clients give and move. What palan releases are its own versions, which gates have judged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import replace

from palan.core import new_id, utcnow
from palan.errors import Conflict
from palan.flows.mlflow import Pair, Tracking, check_name, invalid, lacking, millis, missing, paged, searched
from palan.runs.mlflow import LoggedModel, ModelMetric, holds, ordered
from palan.runs.registered import GONE, PROMPT, STAGES, ModelVersion, RegisteredModel
from palan.runs.search import Field, parse, parse_order

_HINT = "see docs/how-to/use-mlflow-clients.md"
LONGEST_TAG = 100_000
NOWHERE = "dummy-source"
"""Where a version of a prompt lies, as clients say: its text is in a tag."""
_ALIAS = re.compile(r"[\w\-]+")

MODEL = {"name": "name", "creation_timestamp": "created", "last_updated_timestamp": "updated", "timestamp": "updated"}
VERSION = {
    "name": "name", "version_number": "version_number", "run_id": "run_id", "source_path": "source", "source": "source",
    "creation_timestamp": "created", "last_updated_timestamp": "updated",
}  # fmt: skip
LOGGED = {
    "name": "name", "model_id": "id", "model_type": "kind", "status": "status", "source_run_id": "run",
    "creation_timestamp": "created", "creation_time": "created", "last_updated_timestamp": "updated", "last_updated_time": "updated",
}  # fmt: skip


class OnDataset(msgspec.Struct, gc=False):
    """A dataset that something was measured on; without a digest each of its name."""

    dataset_name: str = ""
    dataset_digest: str = ""


class By(OnDataset, gc=False):
    """What logged models are ordered by: a metric may be that on one dataset."""

    field_name: str = ""
    ascending: bool = True


class Registry:
    """The registered and the logged models of one project."""

    def __init__(self, tracking: Tracking) -> None:
        self.tracking = tracking
        self.records = tracking.records

    # -- registered models

    def model(self, name: str) -> RegisteredModel:
        found = self.records.get(RegisteredModel, name)
        if found is None:
            raise lacking(f"Registered Model with name={name} not found")
        return found

    def create(self, name: str, description: str, tags: Sequence[Pair]) -> RegisteredModel:
        _check_model_name(name)
        _check_tags(tags)
        now = utcnow()
        made = RegisteredModel(name, now, now, description, {each.key: each.value for each in tags})
        if not self.records.add(made):
            raise Conflict(f"Registered Model (name={name}) already exists.", _HINT)
        return made

    def rename(self, name: str, new: str) -> RegisteredModel:
        _check_model_name(new)
        with self.records.transaction():
            before = self.model(name)
            if new != name and self.records.get(RegisteredModel, new) is not None:
                raise Conflict(f"Registered Model (name={new}) already exists.", _HINT)
            after = replace(before, name=new, updated=utcnow())
            versions = self.records.find(ModelVersion, model=name)
            self.records.remove(RegisteredModel, (name,))
            for each in versions:
                self.records.remove(ModelVersion, (name, each.number))
            self.records.put(after, *(replace(each, model=new) for each in versions))
        return after

    def describe(self, name: str, description: str) -> RegisteredModel:
        return self._change(name, updated=utcnow(), description=description)

    def _change(self, name: str, **changes: Any) -> RegisteredModel:
        with self.records.transaction():
            after = replace(self.model(name), **changes)
            self.records.put(after)
        return after

    def delete(self, name: str) -> None:
        with self.records.transaction():
            self.model(name)
            for each in self.records.find(ModelVersion, model=name):
                self.records.remove(ModelVersion, (name, each.number))
            self.records.remove(RegisteredModel, (name,))

    def tag(self, name: str, key: str, value: str | None) -> None:
        """Set a tag of a model, or remove it if there is no value."""
        with self.records.transaction():
            self._change(name, tags=_tagged(self.model(name).tags, key, value))

    def search(self, where: str, limit: int, order: Sequence[str], token: str) -> tuple[list[RegisteredModel], str]:
        return searched(self.records.find(RegisteredModel), _of_model, MODEL, where, limit, order, token)

    # -- their versions

    def versions(self, name: str) -> list[ModelVersion]:
        """Return all versions of a model, the oldest first."""
        return sorted((each for each in self.records.find(ModelVersion, model=name) if each.stage != GONE), key=lambda each: each.number)

    def latest(self, name: str, stages: Sequence[str] = ()) -> list[ModelVersion]:
        """Return the newest version of each stage."""
        self.model(name)
        wanted = [_stage(each) for each in stages] or STAGES
        return list({each.stage: each for each in self.versions(name) if each.stage in wanted}.values())

    def version(self, name: str, number: str | int) -> ModelVersion:
        if not re.fullmatch(r"\d{1,18}", str(number)):
            raise invalid(f"Parameter 'version' must be an integer, got '{number}'.", "version")
        found = self.records.find(ModelVersion, model=name, number=int(number), limit=1)
        if not found or found[0].stage == GONE:
            raise lacking(f"Model Version (name={name}, version={number}) not found")
        return found[0]

    def create_version(self, name: str, source: str, run: str, logged: str, description: str, link: str, tags: Sequence[Pair]) -> ModelVersion:
        """Register a model that was logged; versions are numbered from 1, whoever registers at the same time."""
        if source != NOWHERE or not any(each.key == PROMPT and each.value == "true" for each in tags):
            self._check_source(source, run)
        _check_tags(tags)
        if source.startswith("models:/m-"):
            logged = logged or source.removeprefix("models:/")
        if logged:
            run = self.logged(logged).run or run
        now = utcnow()
        with self.records.transaction():
            self.model(name)
            last = self.records.find(ModelVersion, model=name, order="-number", limit=1)
            number = last[0].number + 1 if last else 1
            made = ModelVersion(name, number, now, now, source, run, logged, description=description, link=link, tags={each.key: each.value for each in tags})
            self.records.put(made)
            self._change(name, updated=now)
        return made

    def original(self, version: ModelVersion) -> ModelVersion:
        """Return the version that this one is a copy of, itself if it is none."""
        copied = re.fullmatch(r"models:/([^/]+)/(\d+)", version.source)
        return self.original(self.version(copied[1], copied[2])) if copied and (copied[1], int(copied[2])) != (version.model, version.number) else version

    def _check_source(self, source: str, run: str) -> None:
        """Refuse a source that is a path of some machine, or that belongs to another run than it says."""
        scheme, colon, rest = source.partition(":")
        if not colon or scheme.lower() == "file":
            raise invalid(
                f"Invalid model version source: '{source}'. To use a local path as a model version source, the run_id request parameter has to be specified "
                "and the local path has to be contained within the artifact directory of the run specified by the run_id.", "source"
            )  # fmt: skip
        if ".." in rest.split("/"):
            raise invalid(f"Invalid model version source: '{source}'. The source must not contain '..'.", "source")
        if scheme == "mlflow-artifacts" and not re.match(rf"/+\d+/(?:{re.escape(run) or '(?!)'}|models/m-\w+)/artifacts(?:/|$)", rest):
            raise invalid(f"Invalid model version source: '{source}'. The run_id request parameter must identify the resource that contains the source.", "source")

    def change_version(self, name: str, number: str | int, **changes: Any) -> ModelVersion:
        with self.records.transaction():
            after = replace(self.version(name, number), updated=utcnow(), **changes)
            self.records.put(after)
        return after

    def move(self, name: str, number: str, stage: str, *, archive: bool) -> ModelVersion:
        """Put a version into a stage; with `archive` those that are in it are archived."""
        target = _stage(stage)
        if archive and target not in ("Staging", "Production"):
            raise invalid(f"Model version transition cannot archive existing model versions because '{target}' is not an Active stage. Valid stages are ['Staging', 'Production']")
        with self.records.transaction():
            after = self.change_version(name, number, stage=target)
            for each in self.versions(name) if archive else ():
                if each.stage == target and each.number != after.number:
                    self.change_version(name, each.number, stage="Archived")
        return after

    def delete_version(self, name: str, number: str) -> None:
        with self.records.transaction():
            gone, model = self.version(name, number), self.model(name)
            # Its number is never given again: who asks for it is told that it is gone, and gets no other model.
            self.records.put(replace(gone, stage=GONE, source="", run="", logged="", description="", link="", tags={}))
            self._change(name, updated=utcnow(), aliases={alias: each for alias, each in model.aliases.items() if each != gone.number})

    def tag_version(self, name: str, number: str, key: str, value: str | None) -> None:
        with self.records.transaction():
            before = self.version(name, number)
            self.records.put(replace(before, tags=_tagged(before.tags, key, value)))

    def alias(self, name: str, alias: str, number: str) -> None:
        """Let an alias name a version; it may have named another before.

        Raises:
            Invalid: the alias is reserved, or has other characters than letters, digits, _ and -.
        """
        if not _ALIAS.fullmatch(alias):
            raise invalid(f"Invalid alias name: '{alias}'. Names may only contain alphanumerics, underscores (_), and dashes (-).", "alias")
        if alias.lower() == "latest":
            raise invalid("'latest' alias name (case insensitive) is reserved.", "alias")
        if re.fullmatch(r"[vV]\d+", alias):
            raise invalid(f"Version alias name '{alias}' is reserved.", "alias")
        if len(alias) > 255:
            raise invalid("'Registered model alias name' exceeds the maximum length of 255 characters", "alias")
        with self.records.transaction():
            found = self.version(name, number)
            self._change(name, aliases={**self.model(name).aliases, alias: found.number})

    def unalias(self, name: str, alias: str) -> None:
        with self.records.transaction():
            self._change(name, aliases={each: number for each, number in self.model(name).aliases.items() if each != alias})

    def aliased(self, name: str, alias: str) -> ModelVersion:
        model = self.model(name)
        if alias.lower() == "latest" and (every := self.versions(name)):
            return every[-1]
        if alias not in model.aliases:
            raise invalid(f"Registered model alias {alias} not found.", "alias")
        return self.version(name, model.aliases[alias])

    def aliases(self, version: ModelVersion) -> list[str]:
        return [alias for alias, number in self.model(version.model).aliases.items() if number == version.number]

    def search_versions(self, where: str, limit: int, order: Sequence[str], token: str) -> tuple[list[ModelVersion], str]:
        every = sorted((each for each in self.records.find(ModelVersion) if each.stage != GONE), key=lambda each: (each.model, -each.number))
        if not order:
            every.sort(key=lambda each: each.updated, reverse=True)
        return searched(every, _of_version, VERSION, where, limit, order, token)

    # -- logged models

    def logged(self, id: str) -> LoggedModel:
        found = self.records.get(LoggedModel, id)
        if found is None or found.deleted:
            raise lacking(f"Logged model with ID '{id}' not found.")
        return found

    def log(self, experiment: str, name: str, kind: str, run: str, params: Sequence[Pair], tags: Sequence[Pair]) -> LoggedModel:
        """Begin to log a model: its files follow, then how it went."""
        if any(sign in name for sign in ("/", ":", ".", "%", '"', "'")):
            raise invalid(
                f"Invalid model name ({name!r}) provided. Model name must be a non-empty string and cannot contain the following characters: "
                "('/', ':', '.', '%', '\"', \"'\")", "name"
            )  # fmt: skip
        of = self.tracking.experiment(experiment)
        now = utcnow()
        id = new_id(now)
        made = LoggedModel(
            f"m-{UUID(int=_number(id)).hex}", of.number, name or f"model-{id[-8:].lower()}", kind, run, "PENDING", now, now,
            params={each.key: each.value for each in params}, tags={each.key: each.value for each in tags},
        )  # fmt: skip
        self.records.put(made)
        return made

    def change_logged(self, id: str, *, status: str = "", params: Sequence[Pair] = (), tags: Sequence[Pair] = (), deleted: datetime | None = None) -> LoggedModel:
        with self.records.transaction():
            before = self.logged(id)
            after = replace(
                before, status=status or before.status, deleted=deleted, updated=utcnow(),
                params={**before.params, **{each.key: each.value for each in params}}, tags={**before.tags, **{each.key: each.value for each in tags}},
            )  # fmt: skip
            self.records.put(after)
        return after

    def untag_logged(self, id: str, key: str) -> None:
        with self.records.transaction():
            before = self.logged(id)
            if key not in before.tags:
                raise lacking(f"No tag with key '{key}' found for model with ID '{id}'.")
            self.records.put(replace(before, tags=_tagged(before.tags, key, None)))

    def search_logged(self, experiments: Sequence[str], where: str, limit: int, order: Sequence[By], token: str, datasets: Sequence[OnDataset] = ()) -> tuple[list[LoggedModel], str]:
        """Return the logged models that a filter finds; with datasets only what was measured on one of them counts.

        Raises:
            Invalid: a dataset has no name.
        """
        if not all(each.dataset_name for each in datasets):
            raise invalid("`dataset_name` in the `datasets` clause must be specified.", "datasets")
        numbers = [int(each) for each in experiments if each.isdecimal()]
        told = parse(where, LOGGED)
        found = [
            each for each in self.records.find(LoggedModel, experiment=numbers)
            if not each.deleted and (not datasets or _measured(each, datasets)) and holds(told, partial(_of_logged, each, datasets))
        ]  # fmt: skip
        found.sort(key=lambda each: (each.time, each.id), reverse=True)
        for by in reversed(order):
            of = (OnDataset(by.dataset_name, by.dataset_digest),) if by.dataset_name or by.dataset_digest else ()
            found = ordered(found, parse_order([f"{by.field_name} {'ASC' if by.ascending else 'DESC'}"], LOGGED), partial(_ordering, of))
        return paged(found, limit, token)


def _number(id: str) -> int:
    """Return the 128 bits of a new id, so that ids of logged models rise with time too."""
    return int("".join(f"{'0123456789abcdefghjkmnpqrstvwxyz'.index(letter):05b}" for letter in id.lower()), 2) & (1 << 128) - 1


def _check_model_name(name: str) -> None:
    if not name.strip():
        raise missing("name")
    if "/" in name or ":" in name:
        raise invalid(f"Invalid model name '{name}'. Names cannot contain '/' or ':'.", "name")


def _stage(stage: str) -> str:
    found = {each.lower(): each for each in STAGES}.get(stage.lower())
    if found is None:
        raise invalid(f"Invalid Model Version stage: {stage}. Value must be one of {', '.join(STAGES)}.", "stage")
    return found


def _tagged(tags: Mapping[str, str], key: str, value: str | None) -> dict[str, str]:
    if value is None:
        return {name: each for name, each in tags.items() if name != key}
    _check_tags([Pair(key, value)])
    return {**tags, key: value}


def _check_tags(tags: Sequence[Pair]) -> None:
    for each in tags:
        check_name(each.key, "key", "key")
        if len(each.value) > LONGEST_TAG:
            raise invalid(f"'value' exceeds the maximum length of {LONGEST_TAG} characters", "value")


def _of_model(each: RegisteredModel, field: Field) -> str | float | None:
    if field.kind == "tag":
        return each.tags.get(field.key, "false" if field.key == PROMPT else None)
    return {"name": each.name, "created": millis(each.time), "updated": millis(each.updated)}.get(field.key)


def _of_version(each: ModelVersion, field: Field) -> str | float | None:
    if field.kind == "tag":
        return each.tags.get(field.key, "false" if field.key == PROMPT else None)
    found: dict[str, str | float | None] = {
        "name": each.model, "version_number": each.number, "run_id": each.run, "source": each.source, "created": millis(each.time), "updated": millis(each.updated),
    }  # fmt: skip
    return found.get(field.key)


def _measured(each: LoggedModel, datasets: Sequence[OnDataset]) -> list[ModelMetric]:
    """Return what was measured of a model, on one of some datasets if there are any."""
    return [
        metric for metric in each.metrics
        if not datasets or any(of.dataset_name in ("", metric.dataset) and of.dataset_digest in ("", metric.digest) for of in datasets)
    ]  # fmt: skip


def _ordering(datasets: Sequence[OnDataset], each: LoggedModel, field: Field) -> str | float | None:
    """Return what a model is ordered by: of a metric the value that was measured last."""
    if field.kind != "metric":
        found = _of_logged(each, datasets, field)
        return None if isinstance(found, tuple) else found
    measured = sorted((metric for metric in _measured(each, datasets) if metric.key == field.key), key=lambda metric: metric.run)
    return max(measured, key=lambda metric: (metric.time, metric.step)).number if measured else None


def _of_logged(each: LoggedModel, datasets: Sequence[OnDataset], field: Field) -> str | float | tuple[float, ...] | None:
    match field.kind:
        case "tag":
            return each.tags.get(field.key)
        case "param":
            return each.params.get(field.key)
        case "metric":
            return tuple(metric.number for metric in _measured(each, datasets) if metric.key == field.key) or None
    found: dict[str, str | float | None] = {
        "name": each.name, "id": each.id, "kind": each.kind, "status": each.status, "run": each.run, "created": millis(each.time), "updated": millis(each.updated),
    }  # fmt: skip
    return found.get(field.key)
