"""Take the pictures of the napari plugin in ``docs/images``: the real window, a real slide, a user's own clicks.

    python docs/screenshots.py SLIDE STORE [--out docs/images] [--only NAME...]

The pictures in the documentation show CMU-1-Small-Region.svs (`nucleipan sample`), segmented with
``--model nucleipan-accurate``. Both files stay as they are: what is corrected is a copy. Needs a display; without one:
``xvfb-run -a -s "-screen 0 1600x1000x24" python docs/screenshots.py ...``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import napari
import numpy as np
from napari_nucleipan._correct import CorrectWidget
from napari_nucleipan._correct_form import CLASS, MERGE, SPLIT
from napari_nucleipan._explore import ExploreWidget
from napari_nucleipan._layers import open_slide_in, open_store
from napari_nucleipan._nuclei import nuclei_view
from napari_nucleipan._segment import SegmentWidget
from napari_nucleipan._segment_form import VISIBLE
from PIL import Image
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QWidget

WINDOW, WINDOW_WITH_WIDGET = (1100, 720), (1360, 850)
N_EXACT = 64
_SETTLE_S = 0.5
_LONGEST_S = 120.0

Place = tuple[float, float]
"""(y, x) in micrometres from the slide's corner."""


@dataclass(frozen=True)
class Stage:
    """A window, and what may be shown in it; ``take`` takes the picture."""

    viewer: napari.Viewer
    slide: Path
    store: Path
    take: Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--only", nargs="*", choices=sorted(PICTURES), default=list(PICTURES))
    args = parser.parse_args()
    slide, store, out = args.slide.absolute(), args.store.absolute(), args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # where pictures that need files of their own write them
        for name in args.only:
            take_picture(name, slide, store, out / f"napari-{name}.png")


def take_picture(name: str, slide: Path, store: Path, path: Path) -> None:
    viewer = napari.Viewer(title="nucleipan", show=True, show_welcome_screen=False)
    viewer.window.resize(*WINDOW)
    settle()
    PICTURES[name](Stage(viewer, slide, store, lambda: save(viewer, path)))
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    viewer.close()
    settle()


# What is in the pictures


def whole(stage: Stage) -> None:
    open_store(stage.viewer, stage.store, stage.slide)
    stage.viewer.reset_view()
    point_at(stage.viewer, (495, 594))
    stage.take()


def tissue(stage: Stage) -> None:
    open_store(stage.viewer, stage.store, stage.slide)
    look_at(stage.viewer, (500, 640), 2.5)
    point_at(stage.viewer, (495, 594))
    stage.take()


def nuclei(stage: Stage) -> None:
    open_store(stage.viewer, stage.store, stage.slide)
    look_at(stage.viewer, (560, 612), 9.0)
    point_at(stage.viewer, (560, 612))
    stage.take()


def segment(stage: Stage) -> None:
    """What is visible, half done."""
    open_slide_in(stage.viewer, stage.slide)
    widget = SegmentWidget(stage.viewer)
    dock(stage.viewer, "Segment", widget)
    look_at(stage.viewer, (500, 600), 1.6)
    widget.form.area.setCurrentText(VISIBLE)
    widget.form.out.setText("results")
    widget.form.model.setCurrentText("nucleipan-accurate")
    widget.form.tile.setValue(256)
    widget.start_button.click()
    wait_until(lambda: widget.bar.maximum() > 1 and widget.bar.value() >= 0.4 * widget.bar.maximum())
    stage.take()
    widget.cancel_button.click()
    wait_until(lambda: not widget.is_running)


def explore(stage: Stage) -> None:
    """Nuclei of a middling size, and one of them chosen in the table."""
    open_store(stage.viewer, stage.store, stage.slide)
    widget = ExploreWidget(stage.viewer)
    dock(stage.viewer, "Explore", widget)
    look_at(stage.viewer, (500, 600), 3.0)
    columns = widget.form.columns
    columns.setCurrentIndex(columns.findData("area_um2"))
    columns.activated.emit(columns.currentIndex())
    widget.form.filters["area_um2"].low.setValue(25)
    widget.form.filters["area_um2"].high.setValue(90)
    widget.form.only_visible.setChecked(True)
    widget.form.table.sortByColumn(widget.model.columns.index("area_um2"), Qt.SortOrder.DescendingOrder)
    settle()
    widget.form.table.selectRow(2)
    settle()
    place = stage.viewer.scene.camera.center
    point_at(stage.viewer, (place[-2], place[-1]))
    stage.take()


def correct(stage: Stage) -> None:
    """A nucleus split, another given its class, and two about to be merged."""
    store = Path(shutil.copytree(stage.store, stage.store.name))
    open_store(stage.viewer, store, stage.slide)
    widget = CorrectWidget(stage.viewer)
    dock(stage.viewer, "Correct", widget)
    look_at(stage.viewer, (640, 622), 7.0)
    widget.form.author.setText("A. Pathologist")
    widget.form.tools[CLASS].click()
    widget.form.classes.setCurrentText("connective")
    drag(stage.viewer, [(596, 623)])
    widget.form.tools[SPLIT].click()
    drag(stage.viewer, [(616, 628), (618, 642)])
    widget.form.tools[MERGE].click()
    drag(stage.viewer, [(585, 608), (588, 610), (591, 612), (595, 613)], is_released=False)
    point_at(stage.viewer, (646, 625))
    stage.take()


# By name, in the order in which they are taken.
PICTURES: dict[str, Callable[[Stage], None]] = {
    "whole": whole,
    "tissue": tissue,
    "nuclei": nuclei,
    "segment": segment,
    "explore": explore,
    "correct": correct,
}


# The user's hand


def dock(viewer: napari.Viewer, name: str, widget: QWidget) -> None:
    viewer.window.resize(*WINDOW_WITH_WIDGET)
    viewer.window.add_dock_widget(widget, name=name, area="right")
    settle()


def look_at(viewer: napari.Viewer, place: Place, zoom: float) -> None:
    """``zoom`` is in pixels of the screen per micrometre."""
    viewer.scene.camera.center, viewer.scene.camera.zoom = (0, *place), zoom
    settle()


def point_at(viewer: napari.Viewer, place: Place) -> None:
    """Put the pointer on the nucleus that is next to ``place``: the status bar tells of it."""
    view = nuclei_view(viewer)
    assert view is not None
    centres = np.stack([view.column(f"centroid_{axis}") for axis in "yx"], 1) * view.level0_mpp
    nearest = np.nanargmin(np.hypot(*(centres - place).T))
    viewer.mouse_over_canvas = True
    viewer.cursor.position = view.centroid(int(nearest))


def drag(viewer: napari.Viewer, path: list[Place], is_released: bool = True) -> None:
    """Drag the mouse; with a single place, click."""
    canvas = viewer.window._qt_viewer.canvas.native
    camera = viewer.scene.camera
    middle = np.array([canvas.height(), canvas.width()]) / 2
    points = [QPoint(round(x), round(y)) for y, x in (np.array(path) - camera.center[-2:]) * camera.zoom + middle]
    button = Qt.MouseButton.LeftButton
    QTest.mousePress(canvas, button, pos=points[0])
    for point in points[1:]:
        QTest.mouseMove(canvas, point)
        settle(0.1)
    if is_released:
        QTest.mouseRelease(canvas, button, pos=points[-1])
    settle()


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + _LONGEST_S
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing came of it in {_LONGEST_S:.0f} s")
        settle(0.05)


def settle(seconds: float = _SETTLE_S) -> None:
    """Let the window finish what it is doing."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.02)


def save(viewer: napari.Viewer, path: Path) -> None:
    """The window as a PNG of few colours, small enough for a repository."""
    settle()
    shown = Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)[..., :3])
    # Those that fill areas, and those of outlines, are kept as they are.
    colours, counts = np.unique(np.asarray(shown).reshape(-1, 3), axis=0, return_counts=True)
    exact = colours[np.argsort(-counts)[:N_EXACT]].tobytes()
    others = shown.quantize(256 - N_EXACT, Image.Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette(exact + bytes(others[: 3 * (256 - N_EXACT)]))
    shown.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
