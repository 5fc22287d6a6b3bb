"""DICOM frames that tile an image without saying where they lie, for files wsidicom refuses.

Frames are found through the item headers of the encapsulated pixel data (PS3.5, A.4), one fragment per frame, and
decoded when a box needs them. A file that says TILED_FULL has its frames row by row. One that says nothing may have
them row by row or column by column: both are in use, and the picture itself tells, since neighbouring frames
continue each other. Where it does not tell, and where frames carry positions of their own, the file is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from pydicom.encaps import parse_basic_offsets, parse_fragments

from nucleipan.errors import SlideError, reason
from nucleipan.geometry import Box
from nucleipan.slide._headers import JPEG_END, claimed_shape, is_endless_jpeg
from nucleipan.slide._types import check_decodable, check_pieces, check_shape

_NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"}
_JPEG = "1.2.840.10008.1.2.4.50"
_JPEG2000 = {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"}
_SEAMS = 64
"""Seams looked at to tell the order of the frames."""


class RasterDicomPixels:
    """Reads one DICOM file whose frames tile the total pixel matrix without gaps.

    Raises:
        SlideError: it is not such a file, not 8-bit RGB or grey, damaged or truncated.
    """

    def __init__(self, path: Path, file: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file = file.open("rb")
        try:
            self._read_header(file.stat().st_size)
        except SlideError:
            self.close()
            raise
        except Exception as error:  # pydicom raises whatever it likes on damaged files
            self.close()
            raise SlideError(
                f"{path}: its DICOM header is damaged ({reason(error)}); copy or download it again"
            ) from error

    def _read_header(self, file_size: int) -> None:
        header = pydicom.dcmread(self._file, stop_before_pixels=True)
        self._syntax = str(header.file_meta.TransferSyntaxUID)
        self._frame = (int(header.Rows), int(header.Columns))
        self._n_samples = int(header.SamplesPerPixel)
        self._is_rgb = str(header.PhotometricInterpretation) == "RGB"
        height, width = int(header.TotalPixelMatrixRows), int(header.TotalPixelMatrixColumns)
        check_shape(self._path, height, width)
        check_decodable(self._path, *self._frame, "a frame")
        self.shapes = [(height, width)]
        n_rows, n_cols = -(-height // self._frame[0]), -(-width // self._frame[1])
        n_frames = n_rows * n_cols
        check_pieces(self._path, n_frames, self._frame[0] * self._frame[1], "frames")
        self._check_layout(header, n_frames, file_size)
        self.spacing_um = _spacing_um(header, height, width)
        self.compression: str | None = "JPEG" if self._syntax == _JPEG else None
        self._offsets, self._sizes = self._frames(n_frames)
        if self._offsets[-1] + self._sizes[-1] > file_size:
            raise SlideError(f"{self._path}: ends before its last frame; it is truncated: copy or download it again")
        is_stated = header.get("DimensionOrganizationType") == "TILED_FULL"
        self._place = _by_rows(n_cols) if is_stated or 1 in (n_rows, n_cols) else self._seen_order(n_rows, n_cols)

    def _seen_order(self, n_rows: int, n_cols: int) -> Callable[[int, int], int]:
        """The order in which neighbouring frames continue each other; refused where neither clearly does."""
        orders = (_by_rows(n_cols), _by_columns(n_rows))
        by_rows, by_columns = (self._seam_contrast(place, n_rows, n_cols) for place in orders)
        if max(by_rows, by_columns) < 1.5 * min(by_rows, by_columns) or by_rows == by_columns:
            raise SlideError(
                f"{self._path}: does not say in which order its frames lie, and the picture does not tell; "
                "convert it again with a tool that writes TILED_FULL"
            )
        return orders[0] if by_rows < by_columns else orders[1]

    def _seam_contrast(self, place: Callable[[int, int], int], n_rows: int, n_cols: int) -> float:
        """Mean absolute difference of the pixels on both sides of evenly spread seams between columns of frames."""
        seams = [(row, col) for row in range(n_rows) for col in range(n_cols - 1)]
        contrasts = []
        for row, col in seams[:: max(1, len(seams) // _SEAMS)]:
            rows = slice(0, min(self._frame[0], self.shapes[0][0] - row * self._frame[0]))
            left = self._decoded(place(row, col))[rows, -1].astype(int)
            right = self._decoded(place(row, col + 1))[rows, 0].astype(int)
            contrasts.append(float(np.abs(left - right).mean()))
        return float(np.mean(contrasts))

    def _check_layout(self, header: pydicom.Dataset, n_frames: int, file_size: int) -> None:
        path = self._path
        if n_frames > file_size:  # before anything is listed by frame
            raise SlideError(
                f"{path}: claims {n_frames:,} frames, and has {file_size:,} bytes; it is damaged: copy it again"
            )
        if int(header.BitsAllocated) != 8 or self._n_samples not in (1, 3) or header.get("PlanarConfiguration", 0):
            raise SlideError(f"{path}: is not 8-bit RGB or grey with interleaved channels; convert it")
        if self._syntax not in _NATIVE | _JPEG2000 | {_JPEG}:
            raise SlideError(f"{path}: DICOM transfer syntax {self._syntax} is not supported; convert it to JPEG")
        sparse = (
            "PerFrameFunctionalGroupsSequence" in header and header.get("DimensionOrganizationType") != "TILED_FULL"
        )
        if sparse or int(header.get("NumberOfFrames", 1)) != n_frames:
            raise SlideError(
                f"{path}: lacks attributes of a DICOM slide, and its {header.get('NumberOfFrames', 1)} frames are not "
                f"the {n_frames} that would tile it; convert it again with another tool"
            )

    def _frames(self, n_frames: int) -> tuple[list[int], list[int]]:
        """Position and length of every frame in the file, which stands at the pixel data element."""
        start = self._file.tell() + (8 if self._syntax == "1.2.840.10008.1.2" else 12)
        self._file.seek(start)
        if self._syntax in _NATIVE:
            size = self._frame[0] * self._frame[1] * self._n_samples
            return [start + i * size for i in range(n_frames)], [size] * n_frames
        parse_basic_offsets(self._file)
        n_fragments, items = parse_fragments(self._file)
        if n_fragments != n_frames:
            raise SlideError(
                f"{self._path}: {n_fragments} fragments hold {n_frames} frames; expected one each; damaged"
            )
        sizes = []
        for item in items:
            self._file.seek(item + 4)
            sizes.append(int.from_bytes(self._file.read(4), "little"))
        return [item + 8 for item in items], sizes

    def read(self, level: int, box: Box) -> np.ndarray:
        """uint8[h, w, samples]; ``level`` is 0."""
        out = np.empty((*box.shape, self._n_samples), np.uint8)
        h, w = self._frame
        for row in range(box.y0 // h, (box.y1 - 1) // h + 1):
            for col in range(box.x0 // w, (box.x1 - 1) // w + 1):
                where = Box(row * h, col * w, (row + 1) * h, (col + 1) * w)
                part = where.clipped(box)
                out[part.slices(box)] = self._decoded(self._place(row, col))[part.slices(where)]
        return out

    def _decoded(self, index: int) -> np.ndarray:
        with self._lock:
            self._file.seek(self._offsets[index])
            data = self._file.read(self._sizes[index])
        shape = (*self._frame, self._n_samples)
        if len(data) != self._sizes[index] or claimed_shape(data) not in (None, self._frame):
            raise SlideError(f"{self._path}: frame {index} is cut off or of the wrong size; the file is damaged")
        if self._syntax == _JPEG and (claimed_shape(data) is None or is_endless_jpeg(data) or JPEG_END not in data):
            raise SlideError(f"{self._path}: frame {index} ends in the middle; the file is damaged")
        try:
            return np.asarray(self._decode(data)).reshape(shape)
        except Exception as error:  # codecs raise whatever they like on damaged bytes
            raise SlideError(
                f"{self._path}: frame {index} cannot be decoded ({reason(error)}); damaged file"
            ) from error

    def _decode(self, data: bytes) -> Any:
        if self._syntax in _NATIVE:
            return np.frombuffer(data, np.uint8)
        if self._syntax == _JPEG:
            # An Adobe or JFIF marker in the frame says how its colours are coded; the header's word counts without.
            has_marker = b"Adobe" in data[:64] or b"JFIF" in data[:32]
            return imagecodecs.jpeg_decode(data, colorspace="RGB" if self._is_rgb and not has_marker else None)
        return imagecodecs.jpeg2k_decode(data)

    def close(self) -> None:
        self._file.close()


def _by_rows(n_cols: int) -> Callable[[int, int], int]:
    return lambda row, col: row * n_cols + col


def _by_columns(n_rows: int) -> Callable[[int, int], int]:
    return lambda row, col: col * n_rows + row


def _spacing_um(header: pydicom.Dataset, height: int, width: int) -> tuple[float, float] | None:
    """(x, y) from the pixel measures, else from the size of the imaged volume."""
    try:
        measures = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        y, x = (float(v) for v in measures.PixelSpacing)  # millimetres, row spacing first
        return x * 1000, y * 1000
    except (AttributeError, IndexError, ValueError, TypeError):
        pass
    if "ImagedVolumeWidth" not in header or "ImagedVolumeHeight" not in header:
        return None
    return float(header.ImagedVolumeWidth) * 1000 / width, float(header.ImagedVolumeHeight) * 1000 / height
