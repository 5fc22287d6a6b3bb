"""What a file says about its slide beyond size and pixel size: scanner, dates, operators, and often the patient.

Descriptions of a TIFF, OME-XML and DICOM attributes hold names and case numbers as often as not. Nothing else in the
package reads them, and nothing keeps them unless somebody asks (``segment --keep-metadata``). Associated images (label,
macro) are never read at all.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import openslide
import tifffile

from nucleipan.errors import SlideError, reason
from nucleipan.slide.dicom import dicom_files, is_dicom
from nucleipan.slide.openslide import detect_vendor

MAX_VALUE = 8192
"""Characters of a value that are kept."""

MAX_TOTAL = 65536
"""Characters of all names and values; MIRAX files have thousands of entries."""

_LEFT_OUT = "(left out)"
_ASCII_TAG = 2
_MAX_PAGES = 64


def scanner_metadata(path: str | Path) -> dict[str, str]:
    """Name -> text as OpenSlide, the text tags of a TIFF, or DICOM attributes have them; empty where there are none.

    Long values end in an ellipsis. What is beyond ``MAX_TOTAL`` is left out, and the entry ``(left out)`` counts it.

    Raises:
        SlideError: the file cannot be read.
    """
    path = Path(path)
    try:
        return _bounded(_entries(path))
    except Exception as error:  # three packages raise whatever they like on damaged files
        raise SlideError(f"{path}: its metadata cannot be read ({type(error).__name__}: {reason(error)})") from error


def _entries(path: Path) -> Iterator[tuple[str, str]]:
    files = dicom_files(path) if path.is_dir() else [path]
    if not files:
        return
    if detect_vendor(files[0]) is not None:
        try:
            with openslide.OpenSlide(files[0]) as slide:
                yield from sorted(slide.properties.items())
            return
        except openslide.OpenSlideError:
            pass  # it knows the format, but not this file: the other packages may
    with files[0].open("rb") as file:
        head = file.read(132)
    if head.startswith((b"II", b"MM")):
        yield from _tiff_entries(files[0])
    elif is_dicom(head):
        yield from _dicom_entries(files[0])


def _tiff_entries(path: Path) -> Iterator[tuple[str, str]]:
    with tifffile.TiffFile(path) as tiff:
        for number, page in zip(range(_MAX_PAGES), tiff.pages, strict=False):
            for tag in page.aspage().tags:
                if tag.dtype == _ASCII_TAG and str(tag.value).strip("\0 "):
                    yield f"page {number} {tag.name}", str(tag.value)


def _dicom_entries(path: Path) -> Iterator[tuple[str, str]]:
    try:
        import pydicom
    except ImportError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they quote values
        yield from _dataset_entries(pydicom.dcmread(path, stop_before_pixels=True), "")


def _dataset_entries(dataset: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for element in dataset:
        name = prefix + (element.keyword or str(element.tag))
        if element.VR == "SQ":
            for number, item in enumerate(element.value):
                yield from _dataset_entries(item, f"{name}[{number}].")
        elif not isinstance(element.value, bytes) and str(element.value):
            yield name, str(element.value)


def _bounded(entries: Iterable[tuple[str, str]]) -> dict[str, str]:
    kept: dict[str, str] = {}
    n_characters = n_left_out = 0
    for name, value in entries:
        text = value if len(value) <= MAX_VALUE else f"{value[: MAX_VALUE - 1]}…"
        n_characters += len(name) + len(text)
        if n_characters > MAX_TOTAL:
            n_left_out += 1
        else:
            kept[name] = text
    return kept | ({_LEFT_OUT: f"{n_left_out} entries"} if n_left_out else {})
