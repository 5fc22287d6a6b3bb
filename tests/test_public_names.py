"""The names that users import: all there, all documented, and none of them loads more than it must."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import nucleipan


@pytest.mark.parametrize("name", nucleipan.__all__)
def test_every_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(nucleipan, name)
    assert name in dir(nucleipan)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__module__.startswith("nucleipan.")
        assert len(inspect.getdoc(value) or "") > 20


def test_type_checkers_see_the_same_names() -> None:
    assert nucleipan.__file__
    tree = ast.parse(Path(nucleipan.__file__).with_suffix(".pyi").read_text())
    listed = next(n.value for n in tree.body if isinstance(n, ast.Assign))
    assert sorted(ast.literal_eval(listed)) == sorted(nucleipan.__all__)


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="attribute segment_slides"):
        nucleipan.segment_slides  # noqa: B018


def test_reading_loads_no_network() -> None:
    code = (
        "import sys, nucleipan\n"
        "assert 'numpy' not in sys.modules\n"
        "nucleipan.PanopticStore, nucleipan.open_slide, nucleipan.open_corrected, nucleipan.Box\n"
        "print([m for m in ('torch', 'monai', 'pytorch_lightning', 'napari') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
