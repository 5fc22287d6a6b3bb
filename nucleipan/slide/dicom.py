"""DICOM whole-slide microscopy, one file or a folder with the files of one slide.

Complete slides are wsidicom's. Files it refuses because attributes of the standard are missing (converters leave
out image type, optical path, functional groups, ...) are still read when their frames tile the image in raster
order: there is only one way to put them together. Both packages come with the optional extra ``dicom``.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from nucleipan.errors import SlideError, reason
from nucleipan.geometry import Box
from nucleipan.slide._types import Level, check_region, make_levels, mean_mpp, to_rgb


class _Pixels(Protocol):
    """What ``DicomSlide`` needs from either package; ``shapes`` finest first, spacing (x, y) in micrometres."""

    shapes: list[tuple[int, int]]
    spacing_um: tuple[float, float] | None
    compression: str | None

    def read(self, level: int, box: Box) -> np.ndarray: ...
    def close(self) -> None: ...


def is_dicom(head: bytes) -> bool:
    """Whether the first bytes (132 at least) of a file are those of a DICOM file."""
    return head[128:132] == b"DICM"


def dicom_files(folder: Path) -> list[Path]:
    """DICOM files directly in ``folder``, by content, in order of name."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file():
            with path.open("rb") as file:
                if is_dicom(file.read(132)):
                    found.append(path)
    return found


class DicomSlide:
    """A ``Slide`` of DICOM files. ``path`` is what the user named, ``files`` the DICOM files it stands for.

    Raises:
        SlideError: the extra is not installed, the files are of several slides, or neither package can read them.
    """

    objective: float | None = None

    def __init__(self, path: Path, files: list[Path]) -> None:
        self.path = path
        self._pixels = _open_pixels(path, files)
        try:
            self.levels: tuple[Level, ...] = make_levels(path, self._pixels.shapes)
        except SlideError:
            self._pixels.close()
            raise
        self.format: str = "DICOM whole-slide microscopy"
        self.mpp: float | None = mean_mpp(*(self._pixels.spacing_um or (None, None)))
        self.compression: str | None = self._pixels.compression

    def read(self, level: int, box: Box) -> np.ndarray:
        check_region(self, level, box)
        return to_rgb(self.path, self._pixels.read(level, box))

    def close(self) -> None:
        self._pixels.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_pixels(path: Path, files: list[Path]) -> _Pixels:
    try:
        import pydicom
        import wsidicom
        from wsidicom.errors import WsiDicomNotFoundError, WsiDicomNotSupportedError

        from nucleipan.slide._dicom_raster import RasterDicomPixels
    except ImportError as error:
        raise SlideError(
            f"{path}: is a DICOM slide, which needs the optional packages of the extra 'dicom'; "
            "install them with: pip install 'nucleipan[dicom]'"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # texts longer than the standard allows: not our concern
            _check_one_series(path, files, pydicom)
            try:
                return _WsiDicomPixels(path, wsidicom.WsiDicom.open(files))
            except (WsiDicomNotFoundError, WsiDicomNotSupportedError) as error:
                if len(files) != 1:
                    raise SlideError(f"{path}: holds no DICOM slide wsidicom can read ({reason(error)})") from error
                return RasterDicomPixels(path, files[0])
    except SlideError:
        raise
    except Exception as error:  # both packages raise whatever they like on damaged files
        raise SlideError(
            f"{path}: cannot be read as DICOM slide ({reason(error)}); copy or download it again"
        ) from error


def _check_one_series(path: Path, files: list[Path], pydicom: Any) -> None:
    series = {
        str(pydicom.dcmread(f, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"]).get("SeriesInstanceUID"))
        for f in files
    }
    if len(series) > 1:
        raise SlideError(f"{path}: holds {len(series)} DICOM series; expected the files of one slide; name one file")


class _WsiDicomPixels:
    """Levels of the first pyramid of an open ``wsidicom.WsiDicom``."""

    def __init__(self, path: Path, slide: Any) -> None:
        self._path, self._slide = path, slide
        self._levels = sorted(slide.levels, key=lambda level: level.level)
        self.shapes = [(int(level.size.height), int(level.size.width)) for level in self._levels]
        spacing = self._levels[0].pixel_spacing
        self.spacing_um: tuple[float, float] | None = (spacing.width * 1000, spacing.height * 1000)
        self.compression: str | None = None

    def read(self, level: int, box: Box) -> np.ndarray:
        try:
            region = self._slide.read_region(
                (box.x0, box.y0), self._levels[level].level, (box.width, box.height), threads=1
            )
        except Exception as error:  # wsidicom and its codecs raise whatever they like on damaged frames
            raise SlideError(
                f"{self._path}: {box} of level {level} cannot be read ({reason(error)}); damaged file"
            ) from error
        return np.asarray(region)

    def close(self) -> None:
        self._slide.close()
