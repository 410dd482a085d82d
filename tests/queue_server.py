"""The fixture of a running server, apart from the project it serves, so that both can be imported as they are."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from palan.flows.build import build
from palan.flows.serve import serving
from queue_project import Served, make


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """All three models, released and answering at a free port. Tests put the release back as they found it."""
    project = make(tmp_path_factory.mktemp("served") / "queue", "wait", "plan_fast", "plan")
    build(project, "wait", params={"per_degree": 1.0}, reason="another version to route to")
    with serving(project, port=0, token="") as server, httpx.Client(base_url=server.url, timeout=30) as client:
        yield Served(project, server, client)
