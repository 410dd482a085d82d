"""The built project that the tests of the loop copy, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from loop_project import make


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models built, checked and released; nothing was answered yet. To be copied, not to be changed."""
    return make(tmp_path_factory.mktemp("loop") / "built")
