"""Draw the picture that README opens with: a slide, its nuclei by class over its tissue, and a field as it is drawn.

    python docs/opening.py SLIDE STORE [--out docs/images/opening.jpg]

It shows a part of TCGA-V5-A7RE of The Cancer Genome Atlas (open access), segmented with ``nucleipan-accurate``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nucleipan import Box, PanopticClasses, PanopticStore, SlideView, at_mpp, open_slide, render_overlay
from nucleipan.overlay import legend, save_picture

HEIGHT_PX, GAP_PX = 560, 10
#: Corners and sides, in micrometres, (y, x).
PART_UM, PART_SIDE_UM = (0.0, 1190.0), 1920.0
FIELD_UM, FIELD_SIDE_UM = (870.0, 2090.0), 150.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images" / "opening.jpg")
    parser.add_argument("--field", type=float, nargs=2, default=FIELD_UM, metavar=("Y", "X"), help="corner, in um")
    args = parser.parse_args()
    store = PanopticStore.open(args.store)
    with open_slide(args.slide) as slide:
        view = at_mpp(slide, store.mpp)
        part = square(store, PART_UM, PART_SIDE_UM).clipped(Box.of_shape(view.shape))
        save_picture(opening(store, view, part, square(store, args.field, FIELD_SIDE_UM)), args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


def square(store: PanopticStore, corner_um: Sequence[float], side_um: float) -> Box:
    """In the store's pixels."""
    y, x, side = (round(v / store.mpp) for v in (*corner_um, side_um))
    return Box(y, x, y + side, x + side)


def opening(store: PanopticStore, view: SlideView, part: Box, field: Box) -> np.ndarray:
    """uint8[h, w, 3]: ``part`` of the slide beside its map; ``field`` with outlines; below, what the colours mean."""
    image, classes = view.read(part), store.class_map(part)
    cut = field.slices(within=part)
    outlined = render_overlay(image[cut], store.instances(field), classes[cut], store.classes, thickness=2)
    panels = [scaled(p) for p in (framed(image, cut), framed(mapped(classes, store.classes), cut), outlined)]
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


def framed(picture: np.ndarray, cut: tuple[slice, slice]) -> np.ndarray:
    """With a black frame around what ``cut`` holds, wide enough to be seen when the picture is made small."""
    framed, width = picture.copy(), max(2, picture.shape[0] // 200)
    framed[tuple(slice(max(0, side.start - width), side.stop + width) for side in cut)] = 0
    framed[cut] = picture[cut]
    return framed


def scaled(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    size = round(width * HEIGHT_PX / height), HEIGHT_PX
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


if __name__ == "__main__":
    main()
