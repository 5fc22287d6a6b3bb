"""The class of every pixel as a DICOM Label Map Segmentation (Supplement 243, part of the standard since 2024).

One segment per class, tissue and kinds of nuclei alike; a pixel's value is its segment's number, which is the class's
id in the store, 0 where nothing was segmented. The image has the store's own pixels: its frame of reference is the
slide's, its pixel spacing and origin say how large they are and where they lie. It refers to the image of the pyramid
that the store's pixels were made from, whose grid is the same wherever the model's pixel size is the scanner's.
Individual nuclei are not in it: that is what ``dicom-ann`` is for.

highdicom makes the header, for one empty frame. The frames (512 x 512, TILED_FULL: all of them, row by row) are then
written one after the other, compressed without loss (JPEG-LS), so that memory holds one frame, whatever the size of the
slide. The limit is the format's: offsets of frames have 32 bits, so that compressed frames may add up to 4 GiB.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from highdicom import PixelMeasuresSequence, PlanePositionSequence
from highdicom.frame import encode_frame
from highdicom.seg import Segmentation, SegmentDescription
from pydicom import Dataset, dcmwrite
from pydicom.uid import JPEGLSLossless

from nucleipan.classes import VOID_NAME, PanopticClass
from nucleipan.errors import DataError
from nucleipan.exports._dicom_source import DicomSource, dicom_source, origin_mm, referring_to, spacing_mm
from nucleipan.exports._dicom_terms import (
    add_modifier,
    algorithm,
    algorithm_type,
    category_and_type,
    color,
    identity,
    settle,
    text,
    uid_of,
)
from nucleipan.exports.options import ExportOptions
from nucleipan.exports.tiling import raster_box
from nucleipan.files import whole_file
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore

_SIDE = 512
_MAX_OFFSET = 2**32 - 1
_ITEM, _END = struct.pack("<HH", 0xFFFE, 0xE000), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
_PIXEL_DATA = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)


def export_dicom_seg(store: PanopticStore, path: Path, options: ExportOptions) -> int:
    """Write the class plane of ``store`` to ``path``, all of it or ``options.roi`` (the rest is 0 then).

    Returns:
        0: the file holds no nucleus as an object.

    Raises:
        RegionError: the region of interest leaves the slide or is smaller than a pixel of the store.
        DataError: ``options.slide`` is not the DICOM slide that the store was made from, or its header does not allow
            to place a segmentation on it, or the file would become too large.
        SlideError: the slide cannot be read.
    """
    box = raster_box(store, options.roi)
    source = dicom_source(store, options.slide)
    header = _header(store, source, options.roi)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        with referring_to(source):
            dcmwrite(file, header, enforce_file_format=True)
        _write_frames(file, path, _frames(store, box), header.NumberOfFrames)
    return 0


def _header(store: PanopticStore, source: DicomSource, roi: Box | None) -> Dataset:
    """Everything but the pixels."""
    with referring_to(source):
        header = _one_frame(store, source, roi)
    del header.PixelData
    header.SegmentSequence[0].SegmentLabel = VOID_NAME
    header.TotalPixelMatrixRows, header.TotalPixelMatrixColumns = store.shape
    header.NumberOfFrames = -(-store.shape[0] // _SIDE) * -(-store.shape[1] // _SIDE)
    header.DimensionOrganizationSequence[0].DimensionOrganizationUID = uid_of("dimensions", str(header.SOPInstanceUID))
    settle(header)
    return header


def _one_frame(store: PanopticStore, source: DicomSource, roi: Box | None) -> Segmentation:
    """The first frame of the segmentation, empty, as an image of its own."""
    spacing, thickness = spacing_mm(source, store), source.grid.thickness_mm
    referred, groups = Dataset(), Dataset()
    referred.update(source.grid.header)
    groups.PixelMeasuresSequence = PixelMeasuresSequence(spacing, thickness)
    referred.SharedFunctionalGroupsSequence = [groups]
    segments = [_segment(c, store) for c in store.classes.classes]
    return Segmentation(
        [referred], np.zeros((1, _SIDE, _SIDE), np.uint8), "LABELMAP", segments,
        transfer_syntax_uid=JPEGLSLossless, omit_empty_frames=False, dimension_organization_type="TILED_FULL",
        pixel_measures=PixelMeasuresSequence([v * source.ratio for v in spacing], thickness),
        plane_positions=[PlanePositionSequence("SLIDE", origin_mm(source, spacing), (1, 1))],
        content_label="CLASSES", content_description=text(f"Class of every pixel, by {store.model.get('name')}"),
        **identity(store, referred, "nucleipan classes", roi),
    )  # fmt: skip


def _segment(c: PanopticClass, store: PanopticStore) -> SegmentDescription:
    category, kind = category_and_type(c)
    segment = SegmentDescription(
        c.id, text(c.name), category, kind, algorithm_type(store), algorithm(store), display_color=color(c)
    )
    add_modifier(segment.SegmentedPropertyTypeCodeSequence[0], "SegmentedPropertyTypeModifierCodeSequence", c)
    return segment


def _frames(store: PanopticStore, box: Box) -> Iterator[bytes]:
    """All frames row by row, 0 outside ``box`` and beyond the image."""
    for y in range(0, store.shape[0], _SIDE):
        for x in range(0, store.shape[1], _SIDE):
            frame = Box(y, x, y + _SIDE, x + _SIDE)
            pixels = np.zeros(frame.shape, np.uint8)
            inside = frame.clipped(box)
            if not inside.is_empty:
                pixels[inside.slices(frame)] = store.class_map(inside)
            yield encode_frame(
                pixels, transfer_syntax_uid=JPEGLSLossless, bits_allocated=8, bits_stored=8,
                photometric_interpretation="MONOCHROME2", pixel_representation=0,
            )  # fmt: skip


def _write_frames(file: IO[bytes], path: Path, frames: Iterator[bytes], n: int) -> None:
    """Append encapsulated pixel data (PS3.5 A.4): a table with the offsets of ``n`` frames, and an item for each."""
    file.write(_PIXEL_DATA + _ITEM + struct.pack("<I", 4 * n))
    table, offset, offsets = file.tell(), 0, []
    file.write(bytes(4 * n))
    for frame in frames:
        if offset > _MAX_OFFSET:
            raise DataError(f"{path}: more than 4 GiB of frames, which the format cannot address; export parts (--roi)")
        offsets.append(offset)
        offset += file.write(_ITEM + struct.pack("<I", len(frame) + len(frame) % 2) + frame + bytes(len(frame) % 2))
    file.write(_END)
    file.seek(table)
    file.write(np.array(offsets, "<u4").tobytes())
