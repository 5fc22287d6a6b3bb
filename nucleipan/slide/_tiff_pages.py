"""Pixels of one TIFF page, segment by segment.

A segment is a tile or a strip. Only the segments under a box are read and decoded; the last ones decoded are kept,
since neighbouring reads share them. A segment that the file does not hold in full is an error. A segment of zero
bytes is different: that is how TIFF writers say "nothing was scanned here", and it is white, as OpenSlide shows it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from nucleipan.errors import SlideError, reason
from nucleipan.geometry import Box
from nucleipan.slide._headers import JPEG_END, claimed_shape, is_endless_jpeg
from nucleipan.slide._types import check_decodable, check_pieces, check_shape

JPEG = 7
# Compressions that decode to the same pixels as the reference readers. 33003 (Aperio's YCbCr JPEG 2000, with
# subsampled chroma) and 6 (old-style JPEG) are OpenSlide's.
COMPRESSIONS = {
    1: "uncompressed",
    5: "LZW",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
}
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _YCBCR = 0, 1, 2, 6


class UnsupportedTiffError(SlideError):
    """A sound TIFF whose pixels this reader cannot decode; another one may."""


@dataclass(frozen=True, slots=True)
class TiffSource:
    """What the pages of one open file share. ``lock`` guards the file's position."""

    path: Path
    file: tifffile.FileHandle
    lock: threading.Lock
    cache: SegmentCache


class SegmentCache:
    """The segments decoded last, up to ``max_bytes``; at least one is kept. Thread-safe."""

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._items: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> np.ndarray | None:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def put(self, key: tuple[int, int], segment: np.ndarray) -> None:
        with self._lock:
            if key in self._items:
                return
            self._items[key] = segment
            self._n_bytes += segment.nbytes
            while self._n_bytes > self._max_bytes and len(self._items) > 1:
                self._n_bytes -= self._items.popitem(last=False)[1].nbytes


class TiffPagePixels:
    """Reads boxes of ``page``.

    Raises:
        UnsupportedTiffError: the page is not 8-bit RGB or grey, or its compression is not one of ours.
        SlideError: the page contradicts itself, or its segments lie beyond the end of the file.
    """

    def __init__(self, source: TiffSource, page: tifffile.TiffPage) -> None:
        self._source, self._page = source, page
        self.shape = (int(page.imagelength), int(page.imagewidth))
        self.n_samples = int(page.samplesperpixel)
        self._is_planar = self.n_samples > 1 and int(page.planarconfig) == 2
        check_shape(source.path, *self.shape)
        self._check_pixels()
        rows = page.tilelength if page.is_tiled else min(page.rowsperstrip, self.shape[0])
        cols = page.tilewidth if page.is_tiled else self.shape[1]
        self._segment_shape = (int(rows), int(cols))
        check_decodable(source.path, *self._segment_shape, "a tile" if page.is_tiled else "a strip")
        self._grid = (-(-self.shape[0] // self._segment_shape[0]), -(-self.shape[1] // self._segment_shape[1]))
        self._check_segments()
        self._tables = page.jpegtables
        if self._tables and claimed_shape(self._tables) is not None:
            raise SlideError(f"{source.path}: its JPEG tables hold an image; the file is damaged")
        self._decode = page.decode  # a closure that tifffile builds by reading the file: here, not in a thread

    @property
    def compression(self) -> str:
        return COMPRESSIONS[int(self._page.compression)]

    def read(self, box: Box) -> np.ndarray:
        """uint8[h, w, samples] of ``box``, which lies inside the page."""
        out = np.empty((*box.shape, self.n_samples), np.uint8)
        h, w = self._segment_shape
        for row in range(box.y0 // h, (box.y1 - 1) // h + 1):
            for col in range(box.x0 // w, (box.x1 - 1) // w + 1):
                where = Box(row * h, col * w, (row + 1) * h, (col + 1) * w)
                part = where.clipped(box)
                for plane in range(self.n_samples if self._is_planar else 1):
                    channels = slice(plane, plane + 1) if self._is_planar else slice(None)
                    segment = self._segment((plane * self._grid[0] + row) * self._grid[1] + col)
                    out[(*part.slices(box), channels)] = segment[part.slices(where)]
        if self._page.photometric == _MIN_IS_WHITE:
            np.subtract(255, out, out=out)
        return out

    def _segment(self, index: int) -> np.ndarray:
        """uint8[h, w, samples]; segments of the last row and column may be cut at the page's border."""
        key = (self._page.offset, index)
        segment = self._source.cache.get(key)
        if segment is None:
            segment = self._decoded(index)
            self._source.cache.put(key, segment)
        return segment

    def _decoded(self, index: int) -> np.ndarray:
        offset, size = self._page.dataoffsets[index], self._page.databytecounts[index]
        n_channels = 1 if self._is_planar else self.n_samples
        if size == 0:
            white = 0 if self._page.photometric == _MIN_IS_WHITE else 255
            return np.full((*self._segment_shape, n_channels), white, np.uint8)
        with self._source.lock:
            self._source.file.seek(offset)
            data = self._source.file.read(size)
        self._check_data(index, data, size)
        try:
            segment = self._decode(data, index, jpegtables=self._tables)[0]
        except Exception as error:  # codecs raise whatever they like on damaged bytes
            raise SlideError(
                f"{self._where(index)} cannot be decoded ({reason(error)}); the file is damaged"
            ) from error
        if segment is None or segment.ndim != 4 or segment.dtype != np.uint8 or segment.shape[3] != n_channels:
            raise SlideError(f"{self._where(index)} does not decode to 8-bit pixels; the file is damaged")
        return segment[0]

    def _check_data(self, index: int, data: bytes, size: int) -> None:
        if len(data) < size:
            raise SlideError(f"{self._where(index)} lies beyond the end of the file; the file is truncated")
        claimed = claimed_shape(data)
        if claimed is not None and claimed[0] * claimed[1] > 4 * self._segment_shape[0] * self._segment_shape[1]:
            raise SlideError(f"{self._where(index)} claims {claimed} pixels, expected {self._segment_shape}")
        if self._page.compression != JPEG:
            return
        # libjpeg fills what is missing with grey and only warns, and finds frames where claimed_shape does not look.
        if claimed is None or JPEG_END not in data:
            raise SlideError(f"{self._where(index)} ends in the middle; the file is damaged")
        if is_endless_jpeg(data):
            raise SlideError(f"{self._where(index)} has too many scans; the file is damaged")

    def _where(self, index: int) -> str:
        kind = "tile" if self._page.is_tiled else "strip"
        return f"{self._source.path}: {kind} {index} of the image of {self.shape[0]} x {self.shape[1]} pixels"

    def _check_pixels(self) -> None:
        page, path = self._page, self._source.path
        if page.dtype != np.uint8 or page.bitspersample != 8 or self.n_samples not in (1, 2, 3, 4):
            raise UnsupportedTiffError(
                f"{path}: holds {self.n_samples} channels of {page.bitspersample}-bit {page.dtype}; "
                "expected 8-bit RGB or grey; convert the image to 8-bit RGB"
            )
        if page.compression not in COMPRESSIONS:
            raise UnsupportedTiffError(f"{path}: TIFF compression {page.compression!r} is not supported")
        expected = (_MIN_IS_WHITE, _MIN_IS_BLACK) if self.n_samples < 3 else (_RGB, _YCBCR)
        if page.photometric not in expected or (page.photometric == _YCBCR and page.compression != JPEG):
            raise UnsupportedTiffError(
                f"{path}: colours are stored as {page.photometric!r}; expected RGB, grey or JPEG's YCbCr; "
                "convert the image to RGB"
            )
        if page.imagedepth != 1:
            raise UnsupportedTiffError(f"{path}: is a volume of depth {page.imagedepth}; expected a single plane")

    def _check_segments(self) -> None:
        page, path = self._page, self._source.path
        expected = self._grid[0] * self._grid[1] * (self.n_samples if self._is_planar else 1)
        if not len(page.dataoffsets) == len(page.databytecounts) == expected:
            raise SlideError(
                f"{path}: lists {len(page.dataoffsets)} tiles of {len(page.databytecounts)} sizes for an image that "
                f"needs {expected}; the file is damaged"
            )
        if not all(type(n) is int and n >= 0 for n in (*page.dataoffsets, *page.databytecounts)):
            raise SlideError(f"{path}: places and sizes of its tiles are no whole numbers; the file is damaged")
        kind = "tiles" if page.is_tiled else "strips"
        check_pieces(path, expected, self._segment_shape[0] * self._segment_shape[1], kind)
        end = max(offset + size for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True))
        if end > self._source.file.size:
            raise SlideError(
                f"{path}: pixel data should reach to byte {end:,}, the file ends at {self._source.file.size:,}; "
                "it is truncated: copy or download it again"
            )
        # Deflate expands 1000-fold at most: bounded input bounds what a hostile segment can unpack to.
        raw = self._segment_shape[0] * self._segment_shape[1] * self.n_samples
        if max(page.databytecounts) > 2 * raw + (1 << 16):
            raise SlideError(f"{path}: a tile of {max(page.databytecounts):,} bytes for {raw:,} of pixels; damaged")
