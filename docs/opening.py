"""Draw the picture that README opens with: a slide, its nuclei by class over its tissue, and a field as it is drawn.

    python docs/opening.py SLIDE STORE [--out docs/images/opening.jpg]

It shows CMU-1-Small-Region.svs (`nucleipan sample`), segmented with ``--model nucleipan-accurate``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from nucleipan import Box, PanopticClasses, PanopticStore, SlideView, at_mpp, open_slide, render_overlay
from nucleipan.overlay import legend, save_picture

HEIGHT_PX, GAP_PX = 620, 12
FIELD_UM = 110.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images" / "opening.jpg")
    parser.add_argument(
        "--field", type=float, nargs=2, default=(600.0, 300.0), metavar=("Y", "X"), help="corner, in um"
    )
    args = parser.parse_args()
    store = PanopticStore.open(args.store)
    with open_slide(args.slide) as slide:
        save_picture(opening(store, at_mpp(slide, store.mpp), *args.field), args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


def opening(store: PanopticStore, view: SlideView, y_um: float, x_um: float) -> np.ndarray:
    """uint8[h, w, 3]: the whole slide beside its map; a field, with outlines; below, the names of the colours."""
    whole, (y, x), side = (
        Box.of_shape(view.shape),
        (round(v / store.mpp) for v in (y_um, x_um)),
        round(FIELD_UM / store.mpp),
    )
    field = Box(y, x, y + side, x + side)
    image, classes = view.read(whole), store.class_map(whole)
    cut = np.s_[field.y0 : field.y1, field.x0 : field.x1]
    raw = image[cut]
    outlined = render_overlay(raw, store.instances(field), classes[cut], store.classes, thickness=2, stuff=classes[cut])
    panels = [scaled(p) for p in (framed(image, field), framed(mapped(classes, store.classes), field), outlined)]
    gap = np.full((HEIGHT_PX, GAP_PX, 3), 255, np.uint8)
    strip = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], 1)
    return np.concatenate([strip, legend(store.classes, set(np.unique(classes).tolist()), width=strip.shape[1])])


def mapped(classes: np.ndarray, names: PanopticClasses) -> np.ndarray:
    """Nuclei in full colour on tissue in pale."""
    colors = names.colors.astype(np.float64)
    for c in names.stuff:
        colors[c.id] = 0.45 * colors[c.id] + 0.55 * 255
    colors[0] = 255
    return colors.round().astype(np.uint8)[classes]


def framed(picture: np.ndarray, field: Box) -> np.ndarray:
    """With a black frame around the field, wide enough to be seen when the picture is made small."""
    picture, width = picture.copy(), max(2, picture.shape[0] // 250)
    inside = np.zeros(picture.shape[:2], bool)
    inside[max(0, field.y0 - width) : field.y1 + width, max(0, field.x0 - width) : field.x1 + width] = True
    inside[field.y0 : field.y1, field.x0 : field.x1] = False
    picture[inside] = 0
    return picture


def scaled(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    size = round(width * HEIGHT_PX / height), HEIGHT_PX
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


if __name__ == "__main__":
    main()
