"""The pixels that a report shows: those of the slide, if it is there, and those of the store's overview."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import zarr
from PIL import Image

from nucleipan.errors import SlideError, StoreError
from nucleipan.geometry import Box
from nucleipan.report.frame import Frame
from nucleipan.slide import Slide, at_mpp, open_slide
from nucleipan.store.origin import has_whole_image, open_slide_of, slide_beside

FINEST_MPP = 0.25
"""Fields are shown at the slide's full resolution, but not finer than this."""

OVERVIEW_PX = 1400
_COARSE_PX = 700


@dataclass(frozen=True)
class Pixels:
    """Where a report's fields come from: ``slide``, or None and ``note`` says why there is none."""

    slide: Slide | None
    note: str


@contextmanager
def slide_of(frame: Frame, given: Path | None) -> Iterator[Pixels]:
    """The slide of a store, open: the one given, the one beside the store, or the image inside it.

    Raises:
        SlideError: the given one cannot be read or is another one.
    """
    store = frame.store
    if given is not None:
        with open_slide_of(store, given) as slide:
            yield Pixels(slide, "")
        return
    beside = slide_beside(store)
    places: list[tuple[Path, Callable[[Path], Slide]]]
    places = [(beside, partial(open_slide_of, store))] if beside is not None else []
    places += [(store.path, open_slide)] if has_whole_image(store) else []
    notes = []
    for path, opened in places:
        try:
            slide = opened(path)
        except SlideError as error:
            # The page may travel: it names files, not folders.
            notes.append(f"{path.name} was found but cannot be used: {str(error).removeprefix(f'{path}: ')}.")
            continue
        with slide:
            yield Pixels(slide, "")
        return
    yield Pixels(None, " ".join(notes) or "The slide was not at hand: it does not lie beside the store.")


def field_pixels(slide: Slide, frame: Frame, box: Box) -> tuple[np.ndarray, tuple[float, float, float]]:
    """uint8[h, w, 3] of ``box`` (pixels of the store's view) at full resolution, and its corner and scale.

    Returns:
        The picture, and (y, x, step): its corner and its pixel in level-0 pixels.

    Raises:
        SlideError: the slide is damaged there.
    """
    view = at_mpp(slide, max(FINEST_MPP, frame.level0_mpp), frame.level0_mpp)
    wanted = box.scaled(frame.store.level0_per_pixel / view.level0_per_pixel).clipped(Box.of_shape(view.shape))
    step = view.level0_per_pixel
    return view.read(wanted), (wanted.y0 * step, wanted.x0 * step, step)


def overview_pixels(frame: Frame, slide: Slide | None, box: Box, longest_px: int = OVERVIEW_PX) -> np.ndarray:
    """uint8[h, w, 3], ``box`` (pixels of the view) with at most ``longest_px`` along its longer side.

    It comes from the coarsest level of the store's own image that has as many pixels there; where none has even
    ``_COARSE_PX`` of a small part, from the slide.

    Raises:
        StoreError: the store's image is none.
        SlideError: the slide is damaged there.
    """
    levels = [_root_level(frame, level) for level in range(frame.store.n_levels)]
    crops = [_scaled(box, frame.store.shape, array.shape[1:]) for array in levels]
    enough = [level for level, crop in enumerate(crops) if max(crop.shape) >= longest_px]
    level = enough[-1] if enough else 0
    if slide is not None and max(crops[level].shape) < min(_COARSE_PX, max(box.shape)):
        mpp = max(frame.level0_mpp, max(box.shape) * frame.store.mpp / longest_px)
        view = at_mpp(slide, mpp, frame.level0_mpp)
        return _at_most(view.read(_scaled(box, frame.store.shape, view.shape)), longest_px)
    crop = crops[level]
    return _at_most(np.moveaxis(np.asarray(levels[level][:, crop.y0 : crop.y1, crop.x0 : crop.x1]), 0, -1), longest_px)


def _root_level(frame: Frame, level: int) -> zarr.Array:
    """The store's own image, lazily: [3, h, w]."""
    path = frame.store.path / str(level)
    array = frame.store.image(level).array
    if array.ndim != 3 or array.shape[0] != 3 or array.dtype != np.uint8 or min(array.shape) < 1:
        raise StoreError(f"{path} is {array.dtype} {array.shape}; expected an RGB image; segment the slide again")
    return array


def _scaled(box: Box, of: tuple[int, int], to: tuple[int, ...]) -> Box:
    """``box`` of an image of shape ``of`` in one of shape ``to`` that shows the same; at least one pixel."""
    y0, x0 = (min(start * n // m, n - 1) for start, n, m in zip((box.y0, box.x0), to, of, strict=True))
    y1, x1 = (-(-end * n // m) for end, n, m in zip((box.y1, box.x1), to, of, strict=True))
    return Box(y0, x0, max(y1, y0 + 1), max(x1, x0 + 1))


def _at_most(pixels: np.ndarray, longest_px: int) -> np.ndarray:
    factor = longest_px / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    height, width = (max(1, round(side * factor)) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX, reducing_gap=None))
