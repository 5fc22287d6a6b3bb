"""TIFF, Aperio SVS and OME-TIFF, flat or pyramidal.

tifffile parses the directories, its codecs decode single tiles: three to four times faster than OpenSlide, and
the same pixels. Which pages are levels is decided here: the largest page is level 0; OME-TIFF keeps its levels in
SubIFDs, Aperio in the other *tiled* pages (thumbnail, label and macro are stripped), plain TIFF in SubIFDs and in
pages flagged as reduced. A page of another aspect ratio is never a level.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import tifffile

from nucleipan.errors import SlideError, reason
from nucleipan.geometry import Box
from nucleipan.slide._tiff_metadata import OmePixels, aperio_value, is_aperio, parse_ome, resolution_mpp
from nucleipan.slide._tiff_pages import SegmentCache, TiffPagePixels, TiffSource, UnsupportedTiffError
from nucleipan.slide._types import Level, check_region, make_levels, mean_mpp, to_rgb

_MAX_PAGES = 64  # of the top level; a pyramid with its associated images has fewer than twenty
_REDUCED, _MACRO = 1, 8  # bits of NewSubfileType; Aperio marks its macro image 9


class TiffSlide:
    """A ``Slide`` read through tifffile.

    Raises:
        UnsupportedTiffError: a sound TIFF, but not with pixels this reader can decode.
        SlideError: damaged, truncated, or not a single RGB image.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._tiff = tifffile.TiffFile(path)
        except Exception as error:  # tifffile raises struct.error, ValueError, ... on damaged headers
            raise SlideError(f"{path}: is not a readable TIFF ({reason(error)}); copy or download it again") from error
        try:
            self._open()
        except SlideError:
            self._tiff.close()
            raise
        except Exception as error:
            self._tiff.close()
            raise SlideError(f"{path}: its TIFF directory is damaged ({reason(error)}); copy it again") from error

    def _open(self) -> None:
        pages = _top_pages(self._tiff)
        if not pages:
            raise SlideError(f"{self.path}: is a TIFF without images; the file is damaged")
        _check_chain(self.path, self._tiff, pages[-1])
        base = max(pages, key=lambda p: int(p.imagelength) * int(p.imagewidth))
        ome = parse_ome(pages[0].description)
        _check_single(self.path, self._tiff, pages, base, ome)
        source = TiffSource(self.path, self._tiff.filehandle, threading.Lock(), SegmentCache())
        planes = _planes(self.path, pages, base, ome)
        columns = [[TiffPagePixels(source, p) for p in _pyramid(plane, pages, ome)] for plane in planes]
        self._levels = list(zip(*columns, strict=True))
        self.levels: tuple[Level, ...] = make_levels(self.path, [level[0].shape for level in self._levels])
        self.compression: str | None = self._levels[0][0].compression
        self.format: str = _format(self._tiff, base, ome)
        self.mpp: float | None = _mpp(base, ome)
        self.objective: float | None = ome.objective if ome else aperio_value(base.description, "AppMag")

    def read(self, level: int, box: Box) -> np.ndarray:
        check_region(self, level, box)
        planes = [pixels.read(box) for pixels in self._levels[level]]
        return to_rgb(self.path, planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2))

    def close(self) -> None:
        self._tiff.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _top_pages(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    pages: list[tifffile.TiffPage] = []
    for i in range(_MAX_PAGES):
        try:
            page = tiff.pages[i]
        except IndexError:
            break
        pages.append(page.aspage())
    return pages


def _check_chain(path: Path, tiff: tifffile.TiffFile, last: tifffile.TiffPage) -> None:
    """Refuse a file whose chain of directories goes on beyond its end: tifffile would just stop there."""
    kind, file = tiff.tiff, tiff.filehandle
    file.seek(last.offset)
    n_tags = int.from_bytes(file.read(kind.tagnosize), "little" if kind.byteorder == "<" else "big")
    file.seek(last.offset + kind.tagnosize + n_tags * kind.tagsize)
    following = int.from_bytes(file.read(kind.offsetsize), "little" if kind.byteorder == "<" else "big")
    if following >= file.size:
        raise SlideError(
            f"{path}: its next directory should be at byte {following:,}, the file ends at {file.size:,}; "
            "it is truncated: copy or download it again"
        )


def _check_single(
    path: Path,
    tiff: tifffile.TiffFile,
    pages: list[tifffile.TiffPage],
    base: tifffile.TiffPage,
    ome: OmePixels | None,
) -> None:
    """Refuse stacks: which of their planes is the slide would be a guess."""
    if ome is not None:
        samples = int(base.samplesperpixel)
        n_planes = ome.n_planes * (max(1, ome.n_channels // samples) if samples > 1 else 1)
    elif tiff.is_imagej:
        n_planes = int((tiff.imagej_metadata or {}).get("images", 1))
    elif is_aperio(base):
        n_planes = 1
    elif tiff.is_shaped and tiff.shaped_metadata:
        n_planes = math.prod(tiff.shaped_metadata[0]["shape"]) // math.prod(base.shape)
    else:
        n_planes = sum(p.shape == base.shape and not p.subfiletype & _REDUCED for p in pages)
    if n_planes != 1:
        raise SlideError(f"{path}: is a stack of {n_planes} images of one size; expected one; extract the one you want")


def _planes(
    path: Path, pages: list[tifffile.TiffPage], base: tifffile.TiffPage, ome: OmePixels | None
) -> list[tifffile.TiffPage]:
    """Pages that make up level 0: one, or one per channel where OME-TIFF keeps channels apart."""
    if ome is None or int(base.samplesperpixel) > 1 or ome.n_channels == 1:
        return [base]
    planes = pages[: ome.n_channels]
    if ome.n_channels != 3 or len(planes) != 3 or any(p.shape != base.shape for p in planes):
        raise UnsupportedTiffError(
            f"{path}: holds {ome.n_channels} channels in separate images; expected RGB; is it an H&E slide?"
        )
    return planes


def _pyramid(
    plane: tifffile.TiffPage, pages: list[tifffile.TiffPage], ome: OmePixels | None
) -> list[tifffile.TiffPage]:
    """``plane`` and its reduced copies, finest first."""
    candidates = [p.aspage() for p in plane.pages] if plane.subifds and plane.pages is not None else []
    if ome is None:
        candidates += [p for p in pages if p is not plane and _is_marked_level(p, plane)]
    levels = {plane.shape: plane}
    for page in candidates:
        if page.dtype == plane.dtype and page.samplesperpixel == plane.samplesperpixel and _is_reduced(page, plane):
            levels.setdefault(page.shape, page)
    return sorted(levels.values(), key=lambda p: -p.imagewidth)


def _is_marked_level(page: tifffile.TiffPage, base: tifffile.TiffPage) -> bool:
    if is_aperio(base):
        return bool(page.is_tiled)
    return bool(page.subfiletype & _REDUCED and not page.subfiletype & _MACRO)


def _is_reduced(page: tifffile.TiffPage, base: tifffile.TiffPage) -> bool:
    """Whether ``page`` is smaller than ``base`` by the same factor on both axes, up to rounding."""
    h, w = page.imagelength, page.imagewidth
    if not (0 < h <= base.imagelength and 0 < w < base.imagewidth):
        return False
    fy, fx = base.imagelength / h, base.imagewidth / w
    return abs(fy - fx) <= fx * (1.5 / h + 1.5 / w + 0.002)


def _format(tiff: tifffile.TiffFile, base: tifffile.TiffPage, ome: OmePixels | None) -> str:
    if ome is not None:
        return "OME-TIFF"
    if is_aperio(base):
        return "Aperio SVS (TIFF)"
    return "BigTIFF" if tiff.is_bigtiff else "TIFF"


def _mpp(base: tifffile.TiffPage, ome: OmePixels | None) -> float | None:
    """From the most specific statement there is; resolution tags speak only where nothing else does."""
    if ome is not None and ome.mpp is not None:
        return ome.mpp
    named = aperio_value(base.description, "MPP")
    if named is not None:
        return mean_mpp(named, None)
    return resolution_mpp(base)
