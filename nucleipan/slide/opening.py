"""Which reader a path needs, decided by what is in the file, never by its name.

OME-Zarr folder -> TIFF through tifffile, unless the scanner's dialect is OpenSlide's -> OpenSlide -> DICOM -> PNG, JPEG
"""

from __future__ import annotations

from pathlib import Path

from nucleipan.errors import SlideError
from nucleipan.slide._tiff_pages import UnsupportedTiffError
from nucleipan.slide._types import Slide
from nucleipan.slide.dicom import DicomSlide, dicom_files, is_dicom
from nucleipan.slide.flat import is_flat, open_flat
from nucleipan.slide.omezarr import OmeZarrSlide, is_ome_zarr
from nucleipan.slide.openslide import OpenSlideSlide, detect_vendor
from nucleipan.slide.tiff import TiffSlide

_TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# TIFF dialects that tifffile reads too, and faster. The others keep tiles that overlap, are padded or are missing
# (BIF, Trestle, Philips), or one JPEG for a whole level (NDPI).
_TIFFFILE_VENDORS = (None, "aperio", "generic-tiff")


def open_slide(path: str | Path) -> Slide:
    """Open a whole-slide image, a flat image, a DICOM folder or an OME-Zarr folder.

    Which reader it needs is decided by what is in the file, never by its name. A flat image (PNG, JPEG, TIFF without a
    pyramid) is a slide of one level. Close it, or use it in a ``with`` block.

    Raises:
        SlideError: nothing is there, or no reader can make sense of it; one line that says why.
    """
    path = Path(path)
    if not _exists(path):
        raise SlideError(f"{path}: there is no such file or folder; check the path")
    if path.is_dir():
        return _open_folder(path)
    head = _head(path)
    if not head:
        raise SlideError(f"{path}: is empty (0 bytes); copy or download it again")
    vendor = detect_vendor(path)
    if head.startswith(_TIFF_MAGICS) and vendor in _TIFFFILE_VENDORS:
        try:
            return TiffSlide(path)
        except UnsupportedTiffError:
            if vendor is None:
                raise
    if is_flat(head) and vendor is None:
        return open_flat(path)
    if is_dicom(head):
        return _open_dicom([path], path, vendor)
    if vendor is not None:
        return OpenSlideSlide(path)
    raise SlideError(
        f"{path}: is not an image of a known format (it starts with {head[:8]!r}); expected TIFF, SVS, OME-TIFF, "
        "OME-Zarr, PNG, JPEG, DICOM or a format OpenSlide reads; if it should be one, copy or download it again"
    )


def is_slide(path: str | Path) -> bool:
    """Whether ``path`` looks like something ``open_slide`` reads, from its first bytes; it may still be damaged."""
    path = Path(path)
    try:
        if path.is_dir():
            return is_ome_zarr(path) or bool(dicom_files(path))
        head = _head(path)
    except (SlideError, OSError):
        return False
    return head.startswith(_TIFF_MAGICS) or is_flat(head) or is_dicom(head) or detect_vendor(path) is not None


def _open_folder(path: Path) -> Slide:
    if is_ome_zarr(path):
        return OmeZarrSlide(path)
    files = dicom_files(path)
    if files:
        return _open_dicom(files, path, detect_vendor(files[0]))
    raise SlideError(
        f"{path}: is a folder without NGFF metadata and without DICOM files; expected an OME-Zarr image or the "
        "DICOM files of one slide"
    )


def _open_dicom(files: list[Path], path: Path, vendor: str | None) -> Slide:
    """OpenSlide reads complete DICOM slides (and finds the levels beside a file); wsidicom and pydicom the rest."""
    if vendor is not None:
        try:
            return OpenSlideSlide(files[0])
        except SlideError:
            # OpenSlide names the format before it knows whether it can read it: its refusal is not the last word.
            return DicomSlide(path, files)
    return DicomSlide(path, files)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a name too long for any file
        raise SlideError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def _head(path: Path) -> bytes:
    if not path.is_file():
        raise SlideError(f"{path}: is neither a file nor a folder; expected an image")
    try:
        with path.open("rb") as file:
            return file.read(256)
    except OSError as error:
        raise SlideError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
