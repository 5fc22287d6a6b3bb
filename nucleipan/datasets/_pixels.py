"""Images and planes of numbers, refused before they are decoded where their size cannot be right."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from nucleipan.errors import DataError, reason
from nucleipan.geometry import Box
from nucleipan.slide import open_slide

MAX_PIXELS = 100_000_000


def read_rgb(path: Path, box: Box | None = None, advice: str = "cut it into smaller images") -> np.ndarray:
    """uint8[h, w, 3], full resolution of ``box`` or of all of an image or slide; ``advice`` is for one too large.

    Raises:
        DataError: more than 100 megapixels are asked for, or some that the image does not have.
        SlideError: the image cannot be read.
    """
    with open_slide(path) as slide:
        whole = Box.of_shape(slide.levels[0].shape)
        box = whole if box is None else box
        if not whole.contains(box):
            raise DataError(f"{path}: spans {whole}, what is annotated {box}; check that they belong together")
        if box.area > MAX_PIXELS:
            raise DataError(
                f"{path}: {box.height} x {box.width} pixels are annotated as one image; expected at most "
                f"{MAX_PIXELS // 10**6} megapixels; {advice}"
            )
        return slide.read(0, box)


def read_plane(path: Path, shape: tuple[int, int] | None) -> np.ndarray:
    """Integers [h, w] of a PNG or TIFF, which must have the ``shape`` of its image, if there is one.

    Raises:
        DataError: it has not, is damaged, is no single plane of integers, or has more than 100 megapixels.
    """
    read = _png_plane if path.suffix.lower() == ".png" else _tiff_plane
    try:
        plane = read(path, shape)
    except DataError:
        raise
    except Exception as error:  # codecs raise whatever they like on damaged bytes
        raise DataError(f"{path}: the label image cannot be read ({reason(error)}); write it again") from error
    if plane.ndim != 2 or plane.dtype.kind not in "iub":
        raise DataError(
            f"{path}: expected one plane of integers; found {plane.dtype} {plane.shape}; save it as a grey PNG or TIFF"
        )
    return plane


def _png_plane(path: Path, shape: tuple[int, int] | None) -> np.ndarray:
    data = path.read_bytes()
    kind, width, height = struct.unpack(">4sII", data[12:24])  # the first chunk
    if kind != b"IHDR":
        raise ValueError("it is no PNG")
    _check_shape(path, (height, width), shape)
    return imagecodecs.png_decode(data)


def _tiff_plane(path: Path, shape: tuple[int, int] | None) -> np.ndarray:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0].aspage()
        _check_shape(path, page.shape, shape)
        return page.asarray()


def _check_shape(path: Path, found: tuple[int, ...], expected: tuple[int, int] | None) -> None:
    if expected is None:
        if math.prod(found) > MAX_PIXELS:
            raise DataError(f"{path}: label image is {found}; expected at most {MAX_PIXELS // 10**6} megapixels")
    elif found != expected:
        raise DataError(f"{path}: label image is {found}, its image {expected}; check that they belong together")


def mapped_numbers(path: Path, axes: tuple[int | str, ...]) -> np.ndarray:
    """The numbers in a file of ``np.save``, on disk; of ``axes`` an integer is a size, a text names one of any size.

    Nothing is unpickled, and a header that claims more than the file holds costs no memory.

    Raises:
        DataError: it is missing, damaged, an archive, or holds something else.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError, MemoryError) as error:
        raise DataError(f"{path}: is not a readable array of numbers ({reason(error)}); copy it again") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: is an archive of arrays; expected a single one, as np.save writes it")
    sizes = zip(array.shape, axes, strict=False)
    has_shape = array.ndim == len(axes) and all(n > 0 if isinstance(axis, str) else n == axis for n, axis in sizes)
    if array.dtype.kind not in "biuf" or not has_shape:
        form = ", ".join(map(str, axes))
        raise DataError(f"{path}: expected numbers [{form}]; found {array.dtype} {array.shape}")
    return array


def whole_numbers(path: Path, what: str, numbers: np.ndarray) -> np.ndarray:
    """``numbers`` as int32; MATLAB and numpy users keep ids as floats as often as not.

    Raises:
        DataError: one is negative, 2**31 or more, or not whole.
    """
    if numbers.dtype.kind not in "biuf":
        raise DataError(f"{path}: {what} is of type {numbers.dtype}; expected whole numbers")
    if numbers.size == 0:
        return numbers.astype(np.int32)
    low, high = numbers.min(), numbers.max()
    is_possible = low >= 0 and high < 2**31  # False for NaN
    if not is_possible or (numbers.dtype.kind == "f" and (numbers != np.rint(numbers)).any()):
        raise DataError(f"{path}: {what} has values from {low} to {high}; expected whole numbers from 0 to 2147483647")
    return numbers.astype(np.int32)


def codes_of_present(ids: np.ndarray, codes: Mapping[int, str]) -> dict[int, str]:
    """The entries of ``codes`` whose id occurs in ``ids``."""
    return {i: codes[i] for i in np.unique(ids).tolist() if i in codes and i != 0}
