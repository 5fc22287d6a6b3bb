"""What every slide reader offers, and the checks they share.

A reader turns one file format into levels of 8-bit RGB pixels. It never resamples, never invents a pixel size and
never returns a pixel that is not in the file: what cannot be read is a ``SlideError``. File contents are not
trusted: a size that a header claims is checked before anything of that size is allocated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from nucleipan.errors import RegionError, SlideError
from nucleipan.geometry import Box

MAX_SIDE = 2**31 - 1
MAX_DECODED_PIXELS = 2**28
"""Most pixels that are ever decoded in one piece (a flat image, a strip, a chunk): 0.8 GB as RGB."""
_MAX_PIECES, _MAX_SMALL_PIECES, _SMALL_PX = 2**24, 2**16, 64
_WHITE_ROWS_PX = 2**22

# Whole-slide scanners make pixels of 0.1 to 1 um, their overviews up to about 16; what lies beyond is a printing
# resolution (72 dpi is 353 um) that some writer filled in.
MIN_CREDIBLE_MPP, MAX_CREDIBLE_MPP = 0.05, 20.0


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a pyramid.

    Attributes:
        shape: height and width in pixels of this level.
        downsample: level-0 pixels per pixel of this level, mean of both axes; 1.0 for level 0.
    """

    shape: tuple[int, int]
    downsample: float


class Slide(Protocol):
    """An open slide. Holds a file handle, so it cannot be pickled: open it again in every worker process.

    Attributes:
        path: what was opened.
        format: name of the format for people, such as ``Aperio SVS (TIFF)``.
        levels: from full resolution (index 0) to the coarsest.
        mpp: micrometres per pixel of level 0, mean of both axes; None when the file does not say, or says
            something that cannot be a pixel size (axes that differ by more than 5 %, 72 dpi).
        objective: magnification of the objective, None when the file does not say.
        compression: name of the pixel compression, None when unknown.
    """

    @property
    def path(self) -> Path: ...
    @property
    def format(self) -> str: ...
    @property
    def levels(self) -> tuple[Level, ...]: ...
    @property
    def mpp(self) -> float | None: ...
    @property
    def objective(self) -> float | None: ...
    @property
    def compression(self) -> str | None: ...

    def read(self, level: int, box: Box) -> np.ndarray:
        """Pixels of ``box``, in pixels of that level, as uint8[h, w, 3] RGB; transparency lies on white.

        May be called from several threads at once.

        Raises:
            RegionError: there is no such level, or ``box`` is not inside it.
            SlideError: the pixels are damaged or missing in the file.
        """
        ...

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_levels(path: Path, shapes: Sequence[tuple[int, int]]) -> tuple[Level, ...]:
    """Levels of the given ``(height, width)``, finest first.

    Writers round a level's size up or down. Where an integer downsample explains both sides it is taken as exact,
    otherwise the mean ratio of the sides is.

    Raises:
        SlideError: there is no level, a side is not positive or too large, or the levels do not shrink.
    """
    if not shapes:
        raise SlideError(f"{path}: holds no image; expected a slide with at least one level")
    for h, w in shapes:
        check_shape(path, h, w)
    for finer, coarser in itertools.pairwise(shapes):
        if coarser[0] > finer[0] or coarser[1] > finer[1] or coarser == finer:
            raise SlideError(f"{path}: level of {coarser} after one of {finer}; expected levels that shrink")
    return tuple(Level(s, 1.0 if i == 0 else _downsample(shapes[0], s)) for i, s in enumerate(shapes))


def _downsample(full: tuple[int, int], shape: tuple[int, int]) -> float:
    ratio = (full[0] / shape[0] + full[1] / shape[1]) / 2
    k = round(ratio)
    if all(abs(f - s * k) < k for f, s in zip(full, shape, strict=True)):
        return float(k)
    return ratio


def check_shape(path: Path, height: int, width: int) -> None:
    """Refuse sizes that no slide has.

    Raises:
        SlideError: a side is zero, negative or 2**31 and more.
    """
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise SlideError(
            f"{path}: claims to be {height} x {width} pixels; expected sides from 1 to {MAX_SIDE}; the file is damaged"
        )


def check_decodable(path: Path, height: int, width: int, what: str) -> None:
    """Refuse to decode in one piece what would not fit into memory.

    Raises:
        SlideError: more than ``MAX_DECODED_PIXELS``, or not a possible size at all.
    """
    check_shape(path, height, width)
    if height * width > MAX_DECODED_PIXELS:
        raise SlideError(
            f"{path}: {what} of {height} x {width} pixels must be decoded in one piece; at most "
            f"{MAX_DECODED_PIXELS:,} pixels can be; convert the image to a tiled pyramidal TIFF"
        )


def check_pieces(path: Path, n: int, n_pixels: int, what: str) -> None:
    """Refuse images in so many pieces, or so small ones, that looking at a part of them takes minutes.

    Raises:
        SlideError: ``n`` tiles, strips or chunks of ``n_pixels`` are too many.
    """
    if n > _MAX_PIECES or (n > _MAX_SMALL_PIECES and n_pixels < _SMALL_PX):
        raise SlideError(
            f"{path}: consists of {n:,} {what} of {n_pixels:,} pixels; expected fewer and larger ones; convert it to a "
            "TIFF with tiles of 256 x 256"
        )


def check_region(slide: Slide, level: int, box: Box) -> None:
    """Raise ``RegionError`` unless ``slide`` has ``level`` and ``box`` lies inside it, not empty."""
    if not 0 <= level < len(slide.levels):
        raise RegionError(f"{slide.path}: level {level} asked for; it has levels 0 to {len(slide.levels) - 1}")
    whole = Box.of_shape(slide.levels[level].shape)
    if box.is_empty or not whole.contains(box):
        raise RegionError(f"{slide.path}: {box} is not a part of level {level}, which spans {whole}")


def mean_mpp(x: float | None, y: float | None) -> float | None:
    """One pixel size from those of the axes, in micrometres; either may be missing.

    None when there is none, when it is not a credible pixel size, or when the axes differ by more than 5 %: the
    file then contradicts itself, and the user has to say.
    """
    sizes = [float(v) for v in (x, y) if v is not None]
    if not sizes or not all(math.isfinite(v) and MIN_CREDIBLE_MPP <= v <= MAX_CREDIBLE_MPP for v in sizes):
        return None
    if max(sizes) > 1.05 * min(sizes):
        return None
    return sum(sizes) / len(sizes)


def to_rgb(path: Path, pixels: np.ndarray) -> np.ndarray:
    """uint8[h, w], [h, w, 1], [h, w, 2], [h, w, 3] or [h, w, 4] as uint8[h, w, 3].

    Two and four channels end with straight (not premultiplied) alpha and are laid on white.

    Raises:
        SlideError: anything else.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4:
        raise SlideError(
            f"{path}: pixels are {pixels.dtype} with shape {pixels.shape}; expected 8-bit RGB or grey; "
            "convert the image to 8-bit RGB"
        )
    if pixels.shape[2] in (2, 4):
        pixels = _on_white(pixels[..., :-1], pixels[..., -1:])
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels)


def _on_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    if (alpha == 255).all():
        return color
    out = np.empty(color.shape, np.uint8)
    n_rows = max(1, _WHITE_ROWS_PX // color.shape[1])
    for y in range(0, color.shape[0], n_rows):
        rows = slice(y, y + n_rows)
        a = alpha[rows].astype(np.uint16)
        out[rows] = (color[rows] * a + (255 - a) * np.uint16(255) + np.uint16(127)) // np.uint16(255)
    return out
