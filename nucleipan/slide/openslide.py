"""Everything OpenSlide reads and tifffile does not: MRXS, NDPI, SCN, BIF, Philips, Zeiss, DICOM, ...

OpenSlide takes positions in level 0. Where a level's downsample is not an integer, a level pixel has no integer
position there, and OpenSlide would shift the image by a fraction of a pixel that depends on the box. Such levels
are therefore read in blocks of a fixed grid, so that a pixel has one value whatever box it is read with.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import openslide

from nucleipan.errors import SlideError, reason
from nucleipan.geometry import Box
from nucleipan.slide._types import Level, check_decodable, check_region, make_levels, mean_mpp, to_rgb

_BLOCK = 1024
_NAMES = {
    "aperio": "Aperio SVS",
    "dicom": "DICOM",
    "generic-tiff": "TIFF",
    "hamamatsu": "Hamamatsu",
    "leica": "Leica SCN",
    "mirax": "MIRAX",
    "philips": "Philips TIFF",
    "sakura": "Sakura",
    "trestle": "Trestle TIFF",
    "ventana": "Ventana BIF",
    "zeiss": "Zeiss CZI",
}


def detect_vendor(path: Path) -> str | None:
    """OpenSlide's name for the format of ``path``, None when it does not know it."""
    try:
        return openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError:
        return None


class OpenSlideSlide:
    """A ``Slide`` read through OpenSlide.

    Raises:
        SlideError: OpenSlide cannot read the file.
    """

    compression: str | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._slide = openslide.OpenSlide(path)
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideError(
                f"{path}: cannot be opened by OpenSlide ({reason(error)}); copy or download it again"
            ) from error
        try:
            self.levels: tuple[Level, ...] = make_levels(path, [(h, w) for w, h in self._slide.level_dimensions])
            self._check_tiles()
        except SlideError:
            self._slide.close()
            raise
        properties = self._slide.properties
        vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        self.format: str = f"{_NAMES.get(vendor, vendor)} (OpenSlide)"
        self.mpp: float | None = mean_mpp(
            _number(properties.get(openslide.PROPERTY_NAME_MPP_X)),
            _number(properties.get(openslide.PROPERTY_NAME_MPP_Y)),
        )
        self.objective: float | None = _number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))

    def read(self, level: int, box: Box) -> np.ndarray:
        check_region(self, level, box)
        if float(self._slide.level_downsamples[level]).is_integer():
            return self._region(level, box)
        whole = Box.of_shape(self.levels[level].shape)
        out = np.empty((*box.shape, 3), np.uint8)
        for y in range(box.y0 // _BLOCK * _BLOCK, box.y1, _BLOCK):
            for x in range(box.x0 // _BLOCK * _BLOCK, box.x1, _BLOCK):
                block = Box(y, x, y + _BLOCK, x + _BLOCK).clipped(whole)
                part = block.clipped(box)
                out[part.slices(box)] = self._region(level, block)[part.slices(block)]
        return out

    def _region(self, level: int, box: Box) -> np.ndarray:
        downsample = self._slide.level_downsamples[level]
        location = (round(box.x0 * downsample), round(box.y0 * downsample))
        try:
            rgba = self._slide.read_region(location, level, (box.width, box.height))
        except openslide.OpenSlideError as error:
            raise SlideError(
                f"{self.path}: {box} of level {level} cannot be read ({reason(error)}); damaged file"
            ) from error
        return to_rgb(self.path, np.asarray(rgba))

    def _check_tiles(self) -> None:
        """OpenSlide ends the process where there is no memory for a tile."""
        for level in range(len(self.levels)):
            sides = [
                self._slide.properties.get(f"openslide.level[{level}].tile-{side}") for side in ("height", "width")
            ]
            if None not in sides:
                height, width = (int(_number(side) or 0) for side in sides)
                check_decodable(self.path, height, width, "a tile")

    def close(self) -> None:
        self._slide.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _number(text: str | None) -> float | None:
    try:
        value = None if text is None else float(text)
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) else None
