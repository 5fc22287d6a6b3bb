"""The window that ``nucleipan view`` opens; what the command says where it opens none is in ``test_view_command``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("napari")

import napari
import npe2
from example_store import Example, name_slide
from napari.utils.notifications import notification_manager
from napari_nucleipan._view import WIDGETS, open_window

from nucleipan.errors import SlideError, StoreError


@pytest.fixture
def opened(make_napari_viewer: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """``open_window`` with a viewer that the test framework closes."""
    monkeypatch.setattr(napari, "Viewer", lambda title: make_napari_viewer(title=title))
    return open_window


def names(viewer: Any) -> list[str]:
    return [layer.name for layer in viewer.layers]


WITH_STORE = ["slide.tif", "slide classes", "slide nuclei"]


def test_a_slide_and_its_store(opened: Callable, example_copy: Example, tmp_path: Path) -> None:
    slide = example_copy.slide.rename(tmp_path / "moved.tif")
    assert names(opened(slide, example_copy.store)) == ["moved.tif", *WITH_STORE[1:]]


def test_the_store_beside_a_slide_is_found(opened: Callable, example: Example) -> None:
    viewer = opened(example.slide)
    assert names(viewer) == WITH_STORE
    assert viewer.layers.selection.active is viewer.layers[-1]
    assert "slide.tif" in viewer.title


def test_a_store_of_another_slide_is_not_taken(opened: Callable, example_copy: Example) -> None:
    name_slide(example_copy.store, "slide.tif", "0" * 32, example_copy.image.shape[:2])
    assert names(opened(example_copy.slide)) == ["slide.tif"]


def test_a_damaged_store_beside_is_told_of(opened: Callable, example_copy: Example) -> None:
    (example_copy.store / "nuclei.parquet").unlink()
    notification_manager.records.clear()
    assert names(opened(example_copy.slide)) == ["slide.tif"]
    assert "nuclei.parquet" in notification_manager.records[0].message


def test_a_store_alone(opened: Callable, example: Example) -> None:
    assert names(opened(example.store)) == WITH_STORE


def test_widgets_are_docked(opened: Callable, example: Example) -> None:
    viewer = opened(example.slide)
    assert [name.partition(" (")[0] for name in viewer.window.dock_widgets] == list(WIDGETS)


def test_a_widget_that_fails_is_told_of(opened: Callable, example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "napari_nucleipan._explore", None)
    command = npe2.PluginManager.instance().commands._commands["nucleipan.explore"]
    monkeypatch.setattr(command, "function", None)  # another test may have imported it
    notification_manager.records.clear()
    viewer = opened(example.slide)
    assert [name.partition(" (")[0] for name in viewer.window.dock_widgets] == ["Segment", "Correct"]
    (note,) = notification_manager.records
    assert note.message.startswith("Explore cannot be opened: ")


def test_what_cannot_be_read_opens_no_window(opened: Callable, example: Example, tmp_path: Path) -> None:
    other = Path(shutil.copy(example.slide, tmp_path / "other.tif"))
    with other.open("ab") as file:
        file.write(b"more")
    with pytest.raises(SlideError, match="is not the slide that"):
        opened(other, example.store)
    with pytest.raises(SlideError):
        opened(tmp_path / "none.svs")
    with pytest.raises(StoreError):
        opened(example.slide, tmp_path)
