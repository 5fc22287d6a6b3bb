"""Take the pictures of the napari plugin in ``docs/images``, of the real window.

    python docs/screenshots.py SLIDE STORE [--out docs/images] [--only NAME...]

Needs a display; without one: ``xvfb-run -a -s "-screen 0 1600x1000x24" python docs/screenshots.py ...``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import napari
from napari_nucleipan._layers import open_store
from napari_nucleipan._nuclei import nuclei_view
from PIL import Image
from qtpy.QtWidgets import QApplication

WINDOW = (1100, 720)
N_COLOURS = 128
_SETTLE_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--only", nargs="*", choices=sorted(PICTURES), default=sorted(PICTURES))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        viewer = napari.Viewer(title="nucleipan", show=True, show_welcome_screen=False)
        viewer.window.resize(*WINDOW)
        settle()
        open_store(viewer, args.store, args.slide)
        PICTURES[name](viewer)
        path = args.out / f"napari-{name}.png"
        save(viewer, path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        viewer.close()


def look_at(viewer: napari.Viewer, y_um: float, x_um: float, zoom: float) -> None:
    """``zoom`` is in pixels of the screen per micrometre."""
    viewer.scene.camera.center, viewer.scene.camera.zoom = (0, y_um, x_um), zoom


def point_at(viewer: napari.Viewer, nucleus: int) -> None:
    """Put the pointer on a nucleus: the status bar tells of it."""
    view = nuclei_view(viewer)
    assert view is not None
    viewer.mouse_over_canvas = True
    viewer.cursor.position = view.centroid(nucleus)


def whole(viewer: napari.Viewer) -> None:
    viewer.reset_view()
    point_at(viewer, 458)


def tissue(viewer: napari.Viewer) -> None:
    look_at(viewer, 500, 640, 2.5)
    point_at(viewer, 458)


def nuclei(viewer: napari.Viewer) -> None:
    look_at(viewer, 485, 595, 9.0)
    point_at(viewer, 458)


# By name of the picture: what is done in a window that shows the slide and its nuclei.
PICTURES: dict[str, Callable[[napari.Viewer], None]] = {"whole": whole, "tissue": tissue, "nuclei": nuclei}


def save(viewer: napari.Viewer, path: Path) -> None:
    """The window as a PNG of few colours, small enough for a repository."""
    settle()
    pixels = viewer.screenshot(canvas_only=False, flash=False)[..., :3]
    few = Image.fromarray(pixels).quantize(N_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def settle() -> None:
    """Let the window finish what it is doing."""
    end = time.monotonic() + _SETTLE_S
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.02)


if __name__ == "__main__":
    main()
