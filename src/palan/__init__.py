"""palan takes any decision model from a notebook to production and keeps it right there.

Every verb of the command line is a function of the same name: `palan.build(palan.open_project("."), "delay")`.
Nothing heavy is loaded before a verb needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Context": "palan.models.contract",
    "PalanError": "palan.errors",
    "Result": "palan.models.contract",
    "Violation": "palan.models.contract",
    "backup": "palan.flows.backup",
    "build": "palan.flows.build",
    "check": "palan.flows.check",
    "compare": "palan.flows.runs",
    "config": "palan.flows.config",
    "decide": "palan.flows.decide",
    "demo": "palan.flows.demo",
    "export_runs": "palan.flows.carry",
    "follow": "palan.flows.follow",
    "gc": "palan.flows.gc",
    "import_runs": "palan.flows.carry",
    "ingest": "palan.flows.ingest",
    "init": "palan.flows.init",
    "log": "palan.flows.log",
    "open_project": "palan.flows.project",
    "outcomes": "palan.flows.decide",
    "react": "palan.flows.react",
    "release": "palan.flows.release",
    "replay": "palan.flows.replay",
    "restore": "palan.flows.backup",
    "retry": "palan.flows.journal",
    "run": "palan.flows.track",
    "search": "palan.flows.runs",
    "serve": "palan.flows.serve",
    "start": "palan.flows.track",
    "status": "palan.flows.status",
    "tick": "palan.flows.tick",
    "track": "palan.flows.track",
    "up": "palan.flows.up",
    "verify": "palan.flows.verify",
    "watch": "palan.flows.watch",
    "why": "palan.flows.why",
}
"""Public name -> the module that defines it (PEP 562)."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'palan' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
