"""PNG and JPEG: a slide of one level, decoded once and kept in memory.

Neither format can be read in parts. The size in the header is checked before the pixels are decoded, and a JPEG
must reach its end marker: decoders fill what is missing with grey. (Single-image TIFF is read by ``tiff``.)
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import imagecodecs
import numpy as np

from nucleipan.errors import SlideError, reason
from nucleipan.geometry import Box
from nucleipan.slide._headers import JPEG_END, JPEG_MAGIC, PNG_MAGIC, claimed_shape, is_endless_jpeg
from nucleipan.slide._types import MAX_DECODED_PIXELS, Level, check_decodable, check_region, make_levels, to_rgb


def is_flat(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a PNG or JPEG."""
    return head.startswith((PNG_MAGIC, JPEG_MAGIC))


class ArraySlide:
    """A ``Slide`` of one level whose pixels are already in memory: uint8[h, w, 3], RGB.

    ``path`` is what errors call it. Reading gives copies.
    """

    objective: float | None = None

    def __init__(
        self, path: Path, pixels: np.ndarray, *, mpp: float | None = None, format: str = "array", compression: str = ""
    ) -> None:
        self.path = path
        self.format = format
        self.mpp = mpp
        self.compression: str | None = compression or None
        self.levels: tuple[Level, ...] = make_levels(path, [pixels.shape[:2]])
        self._pixels: np.ndarray | None = pixels

    def read(self, level: int, box: Box) -> np.ndarray:
        check_region(self, level, box)
        if self._pixels is None:
            raise SlideError(f"{self.path}: was closed; open it again")
        return self._pixels[box.y0 : box.y1, box.x0 : box.x1].copy()

    def close(self) -> None:
        self._pixels = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_flat(path: Path) -> ArraySlide:
    """Decode a PNG or JPEG file. Such files carry no pixel size that could be trusted: ``mpp`` is None.

    Raises:
        SlideError: damaged, truncated, too large to decode in one piece, or not 8-bit.
    """
    if path.stat().st_size > 4 * MAX_DECODED_PIXELS:
        raise SlideError(f"{path}: is too large for a flat image; convert it to a tiled pyramidal TIFF")
    data = path.read_bytes()
    is_png = data.startswith(PNG_MAGIC)
    name = "PNG" if is_png else "JPEG"
    claimed = claimed_shape(data)
    if claimed is None or (not is_png and not _reaches_end(data)):
        raise SlideError(f"{path}: the {name} ends in the middle; copy or download it again")
    check_decodable(path, *claimed, "an image")
    if is_endless_jpeg(data):
        raise SlideError(f"{path}: is a progressive JPEG of too many pixels and scans; convert it to a baseline JPEG")
    try:
        pixels = imagecodecs.png_decode(data) if is_png else imagecodecs.jpeg_decode(data)
    except Exception as error:  # codecs raise whatever they like on damaged bytes
        raise SlideError(f"{path}: the {name} cannot be decoded ({reason(error)}); it is damaged") from error
    if not is_png and pixels.shape[2:] not in ((), (3,)):
        raise SlideError(f"{path}: is a JPEG of {pixels.shape[2]} inks; expected RGB or grey; convert it to RGB")
    return ArraySlide(path, to_rgb(path, pixels), format=name, compression="deflate" if is_png else "JPEG")


def _reaches_end(data: bytes) -> bool:
    """Whether an end marker follows the last start of a scan (embedded thumbnails have markers of their own)."""
    return data.rfind(JPEG_END) > data.rfind(b"\xff\xda")
