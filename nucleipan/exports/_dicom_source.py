"""The DICOM slide that an exported object refers to.

A DICOM object about a slide belongs to the slide's patient and study and lies on one of its images. All of that comes
from the headers of the slide's own files: without a DICOM slide there is no DICOM export. Two things are supplied where
a file lacks them: the pixel size, from the store, and an identifier of its frame of reference.

What is taken from a header is listed here, and nothing else is: attributes that the standard requires of every object
of a patient and study (PS3.3 C.7.1.1 and C.7.2.1), that tell one patient from another or that they were de-identified,
the glass slide (C.7.6.22, if whole), the scanner, and the geometry. Free texts, addresses, ages, institutions and other
patient data stay where they are. Values that the standard does not allow for a date, a time or a sex are left empty,
as if unknown.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.uid import VLWholeSlideMicroscopyImageStorage
from pydicom.valuerep import DA, TM

from nucleipan.errors import DataError, NucleipanError, SlideError, reason
from nucleipan.exports._dicom_terms import uid_of
from nucleipan.slide import open_slide
from nucleipan.slide.dicom import dicom_files, is_dicom
from nucleipan.store import PanopticStore
from nucleipan.store.origin import check_origin, in_grid

_IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_PATIENT = (
    "IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    # Required where the patient is an animal.
    "PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence",
    "BreedRegistrationSequence", "ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization",
)  # fmt: skip
_SPECIMEN = (
    "ContainerIdentifier", "IssuerOfTheContainerIdentifierSequence", "ContainerTypeCodeSequence",
    "SpecimenDescriptionSequence",
)  # fmt: skip
_IMAGE = (
    "Modality", "FrameOfReferenceUID", "PositionReferenceIndicator", "ImageOrientationSlide",
    "TotalPixelMatrixOriginSequence", "TotalPixelMatrixRows", "TotalPixelMatrixColumns", "Rows", "Columns",
    "NumberOfFrames", "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
    "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions",
)  # fmt: skip
_TAKEN = _IDENTITY + _MAY_BE_EMPTY + _PATIENT + _SPECIMEN + _IMAGE
_LOOKED_AT = (
    "ImageType", "SharedFunctionalGroupsSequence", "ImagedVolumeDepth", "SOPInstanceUIDOfConcatenationSource"
)  # fmt: skip

# Flavours in the type of images that may be in the same series and are no level of its pyramid (PS3.3 C.8.12.4.1.1).
_OTHER_IMAGES = frozenset({"LABEL", "OVERVIEW", "LOCALIZER"})

# Beyond this the file and the store contradict each other; it is also how far the axes of a slide may differ.
_SAME_SPACING = 0.05


@dataclass(frozen=True, eq=False)
class SourceImage:
    """One image (a level) of a DICOM slide.

    Attributes:
        header: what an object that refers to the image may take from it; completed with empty values where only those
            are missing, so that it can be given to highdicom.
        spacing_mm: between rows and between columns; None where the file does not say.
        thickness_mm: of what was imaged; None where the file does not say.
    """

    header: Dataset
    spacing_mm: tuple[float, float] | None
    thickness_mm: float | None


@dataclass(frozen=True, eq=False)
class DicomSource:
    """The images of a DICOM slide that a store's pixels and outlines relate to.

    Attributes:
        path: of the slide, as the user named it.
        full: the image of full resolution, in whose pixels outlines are.
        grid: the image that the store's pixels were made from.
        ratio: pixels of ``grid`` per pixel of the store and axis; 1 where they are the same.
    """

    path: Path
    full: SourceImage
    grid: SourceImage
    ratio: float


def dicom_source(store: PanopticStore, path: Path | None) -> DicomSource:
    """The images of the DICOM slide at ``path``, one file or a folder, that ``store`` was made from.

    Raises:
        DataError: there is no path, it is no DICOM slide, or its header lacks what identifies it.
        SlideError: the slide cannot be read, or is not the one that the store was made from.
    """
    if path is None:
        raise DataError(
            f"{store.path}: DICOM exports refer to the images of a DICOM slide and carry its patient and study; "
            "pass the DICOM slide that was segmented with --slide"
        )
    with open_slide(path) as slide:
        view = in_grid(store, slide)
        full, grid = slide.levels[0].shape, slide.levels[view.level].shape
        files = _series(path, is_pyramid=len(slide.levels) > 1)
        # A slide of several files was named by one of them, or by their folder.
        check_origin(store, slide, path, *files, *([path.parent] if len(files) > 1 else []))
    return DicomSource(path, _image(path, files, full), _image(path, files, grid), view.scale)


@contextmanager
def referring_to(source: DicomSource) -> Iterator[None]:
    """Around the making of an object from the headers of ``source``.

    Raises:
        DataError: highdicom or pydicom cannot carry over what is in them.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # values longer than the standard allows: the slide's
            yield
    except NucleipanError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{source.path}: its header cannot be referred to ({reason(error)}); convert it again with another tool"
        ) from error


def _series(path: Path, is_pyramid: bool) -> list[Path]:
    """The files at ``path``, one or a folder's, and for a pyramid those beside it; all of one series."""
    if path.is_dir():
        files = dicom_files(path)
    else:
        with path.open("rb") as file:
            files = [path] if is_dicom(file.read(132)) else []
        if files and is_pyramid:
            files += [beside for beside in dicom_files(path.parent) if beside != path]
    if not files:
        raise DataError(
            f"{path}: is no DICOM slide, and DICOM exports need one to refer to; convert it to DICOM and segment that, "
            "or choose another format, such as geojson"
        )
    series = [_read(file, ("SeriesInstanceUID",)).get("SeriesInstanceUID") for file in files]
    return [file for file, uid in zip(files, series, strict=True) if uid == series[0]]


def _read(file: Path, keywords: tuple[str, ...]) -> Dataset:
    """Those attributes of a DICOM file, decoded; what is not asked for is not parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # texts longer than the standard allows: not our concern
            header = dcmread(file, stop_before_pixels=True, specific_tags=list(keywords))
            header.decode()
            return header
    except Exception as error:  # pydicom raises whatever it likes on damaged files
        raise SlideError(f"{file}: its DICOM header is damaged ({reason(error)}); copy or download it again") from error


def _image(path: Path, files: list[Path], shape: tuple[int, int]) -> SourceImage:
    """The first image of ``shape`` that shows the specimen, not label or glass."""
    for file in files:
        header = _read(file, _TAKEN + _LOOKED_AT)
        kind = header.get("ImageType") or []
        is_other = not _OTHER_IMAGES.isdisjoint([kind] if isinstance(kind, str) else kind)
        matrix = header.get("TotalPixelMatrixRows"), header.get("TotalPixelMatrixColumns")
        if matrix == shape and not is_other:
            return SourceImage(_completed(file, header), _spacing_mm(header), _thickness_mm(header))
    raise DataError(
        f"{path}: none of its files holds the image of {shape[1]} x {shape[0]} pixels; pass the folder with all of them"
    )


def _completed(file: Path, header: Dataset) -> Dataset:
    """What is taken from ``header``."""
    for keyword in _IDENTITY:
        if not header.get(keyword):
            raise DataError(f"{file}: lacks {keyword}, which an object that refers to it must repeat; convert it again")
    if header.SOPClassUID != VLWholeSlideMicroscopyImageStorage:
        raise DataError(f"{file}: is a {header.SOPClassUID.name}; expected a VL Whole Slide Microscopy Image")
    has_specimen = all(header.get(keyword) for keyword in ("ContainerIdentifier", "SpecimenDescriptionSequence"))
    taken = Dataset()
    for keyword in _TAKEN:
        if keyword in header and (has_specimen or keyword not in _SPECIMEN):
            taken.add(header[keyword])
    for keyword in _MAY_BE_EMPTY:
        if keyword not in taken or not _is_allowed(keyword, str(taken[keyword].value or "")):
            setattr(taken, keyword, "")
    if not taken.get("FrameOfReferenceUID"):
        taken.FrameOfReferenceUID = uid_of("frame of reference", str(taken.SeriesInstanceUID))
    # Parts of a concatenation are referred to by the image that was divided (PS3.3 C.37.1.2.1.1).
    taken.SOPInstanceUID = header.get("SOPInstanceUIDOfConcatenationSource") or taken.SOPInstanceUID
    return taken


def _is_allowed(keyword: str, value: str) -> bool:
    if keyword == "PatientSex":
        return value in ("", "M", "F", "O")
    if keyword.endswith(("Date", "Time")):
        try:
            (DA if keyword.endswith("Date") else TM)(value)
        except ValueError:
            return False
    return True


def _spacing_mm(header: Dataset) -> tuple[float, float] | None:
    try:
        rows, columns = (float(value) for value in _measures(header).PixelSpacing)
    except (AttributeError, IndexError, TypeError, ValueError):
        return None
    return (rows, columns) if all(math.isfinite(v) and v > 0 for v in (rows, columns)) else None


def _thickness_mm(header: Dataset) -> float | None:
    """Slice thickness, else the depth of the imaged volume (which is in micrometres)."""
    try:
        thickness = float(_measures(header).SliceThickness)
    except (AttributeError, IndexError, TypeError, ValueError):
        thickness = float(header.get("ImagedVolumeDepth") or 0) / 1000
    return thickness if math.isfinite(thickness) and thickness > 0 else None


def _measures(header: Dataset) -> Dataset:
    return header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


def spacing_mm(source: DicomSource, store: PanopticStore) -> tuple[float, float]:
    """Spacing of the rows and columns of ``source.grid``: the file's own, the store's where it does not say.

    Raises:
        DataError: file and store contradict each other by more than 5 %.
    """
    own = store.mpp / source.ratio / 1000
    found = source.grid.spacing_mm
    if found is None:
        return own, own
    if abs(sum(found) / 2 - own) > _SAME_SPACING * own:
        raise DataError(
            f"{source.path}: says {1000 * sum(found) / 2:.4g} um per pixel, the store was made with {1000 * own:.4g} "
            "(--mpp); a segmentation could not both lie on the slide and have its true size: correct the slide's "
            "Pixel Spacing and segment it again"
        )
    return found


def origin_mm(source: DicomSource, spacing: tuple[float, float]) -> tuple[float, float, float]:
    """Where the centre of the store's first pixel lies in the slide's frame of reference (x, y, and z as the file has).

    The origin of a pixel matrix is the place of its pixel 1\\1 (PS3.3 C.8.12.14), of the centre of it as for every
    image: a pixel made of ``ratio`` x ``ratio`` has its own centre further in.

    Raises:
        DataError: the header does not say where the slide lies.
    """
    try:
        origin = source.grid.header.TotalPixelMatrixOriginSequence[0]
        x, y = float(origin.XOffsetInSlideCoordinateSystem), float(origin.YOffsetInSlideCoordinateSystem)
        z = float(origin.get("ZOffsetInSlideCoordinateSystem") or 0)
        along_row, along_column = (_cosines(source)[k : k + 2] for k in (0, 3))
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"{source.path}: lacks TotalPixelMatrixOriginSequence or ImageOrientationSlide, or they are malformed; a "
            "segmentation cannot be placed on it: convert it again with another tool"
        ) from error
    shift = (source.ratio - 1) / 2
    x += shift * (along_row[0] * spacing[1] + along_column[0] * spacing[0])
    y += shift * (along_row[1] * spacing[1] + along_column[1] * spacing[0])
    return x, y, z


def _cosines(source: DicomSource) -> list[float]:
    """Direction of the rows and of the columns of ``source.grid``, three numbers each."""
    values = [float(value) for value in source.grid.header.ImageOrientationSlide]
    if len(values) != 6 or not all(math.isfinite(value) for value in values):
        raise ValueError("an orientation has six numbers")
    return values
