"""Models that MLflow's clients registered. `palan status` lists them: nothing else is loaded here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar

import msgspec

STAGES = ("None", "Staging", "Production", "Archived")
GONE = "Deleted_Internal"
"""The stage of a version that was deleted."""


PROMPT = "mlflow.prompt.is_prompt"
"""The tag of what is a prompt: MLflow's clients keep prompts among models, and ask for either."""


class RegisteredModel(msgspec.Struct, frozen=True):
    """A name in MLflow's registry; an alias names one of its versions."""

    name: str
    time: datetime
    updated: datetime
    description: str = ""
    tags: Mapping[str, str] = {}
    aliases: Mapping[str, int] = {}


class ModelVersion(msgspec.Struct, frozen=True):
    """One version of a registered model: where it lies (`source`), and the run or the logged model that it came from."""

    KEY: ClassVar[tuple[str, ...]] = ("model", "number")

    model: str
    number: int
    time: datetime
    updated: datetime
    source: str
    run: str = ""
    logged: str = ""
    stage: str = "None"
    description: str = ""
    link: str = ""
    tags: Mapping[str, str] = {}
