"""Fixtures shared by all tests. Data are made in the tests; the development slides are used where they exist."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_slides() -> Path:
    """Folder of real slides beside the checkout; the test is skipped where there is none."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "slides"
    if not folder.is_dir():
        pytest.skip("the development slides are not beside this checkout")
    return folder
