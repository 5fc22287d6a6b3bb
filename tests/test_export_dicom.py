"""DICOM exports, read again with highdicom: the same pixels, outlines, ids and areas, on the right image of the slide.

The slides are written here, complete as a scanner's would be: patient, study, specimen, equipment, geometry.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import shapely
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.edits import EditLog, delete_nuclei, open_corrected
from nucleipan.errors import DataError, RegionError, SlideError
from nucleipan.exports import ExportOptions
from nucleipan.geometry import Box
from nucleipan.slide import open_slide
from nucleipan.slide.fingerprint import fingerprint
from nucleipan.stitch import StitchContext
from nucleipan.store import PanopticStore
from nucleipan.tiles import TileGrid

highdicom = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")

from highdicom.ann import annread  # noqa: E402
from highdicom.seg import segread  # noqa: E402
from highdicom.spatial import PixelToReferenceTransformer  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402

from nucleipan.exports._dicom_terms import SCHEME  # noqa: E402
from nucleipan.exports.dicom_ann import ID_CONCEPT, export_dicom_ann  # noqa: E402
from nucleipan.exports.dicom_seg import export_dicom_seg  # noqa: E402

STORE_MPP = 0.5
TILE = 256
SERIES = "1.2.826.0.1.3680043.8.498.45787841905188114249150281231985621"
UMLAUT = "Müller^Jörg"


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def write_image(
    path: Path, shape: tuple[int, int], mpp: float, origin: tuple[float, float], changes: Callable[[Dataset], None]
) -> None:
    """One image of a slide, TILED_FULL and uncompressed, of a colour that differs from tile to tile."""
    n_rows, n_cols = (-(-side // TILE) for side in shape)
    level = int(path.stem[-1])
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = pydicom.uid.VLWholeSlideMicroscopyImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = f"{SERIES}.{level}"
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "RESAMPLED" if level else "NONE"]
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = UMLAUT, "P-17", "19500131", "F"
    ds.PatientAge, ds.PatientAddress, ds.InstitutionName = "074Y", "Lindenstraße 1", "Pathologie"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3.4", SERIES, "1.2.3.5"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20240229", "101500", "S1", "A1"
    ds.ReferringPhysicianName, ds.PositionReferenceIndicator = "", "SLIDE_CORNER"
    ds.Manufacturer, ds.ManufacturerModelName = "Scanner Works", "S 1"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "0815", "1.0"
    ds.ContentDate, ds.ContentTime, ds.AcquisitionDateTime = "20240229", "101500", "20240229101500"
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "SM", 1, level + 1
    ds.ContainerIdentifier, ds.IssuerOfTheContainerIdentifierSequence = "SLIDE-7", []
    ds.ContainerTypeCodeSequence = [code("433466003", "SCT", "Microscope slide")]
    specimen = Dataset()
    specimen.SpecimenIdentifier, specimen.SpecimenUID = "SLIDE-7-Ä", "1.2.3.6"
    specimen.IssuerOfTheSpecimenIdentifierSequence, specimen.SpecimenPreparationSequence = [], []
    ds.SpecimenDescriptionSequence = [specimen]
    ds.Rows = ds.Columns = TILE
    ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns = shape
    ds.TotalPixelMatrixFocalPlanes = ds.NumberOfOpticalPaths = 1
    ds.NumberOfFrames, ds.DimensionOrganizationType = n_rows * n_cols, "TILED_FULL"
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.ImagedVolumeWidth, ds.ImagedVolumeHeight = shape[1] * mpp / 1000, shape[0] * mpp / 1000
    ds.ImagedVolumeDepth, ds.VolumetricProperties = 4.0, "VOLUME"
    ds.SpecimenLabelInImage, ds.FocusMethod, ds.ExtendedDepthOfField = "NO", "AUTO", "NO"
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    ds.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    place = Dataset()
    place.XOffsetInSlideCoordinateSystem, place.YOffsetInSlideCoordinateSystem = origin
    place.ZOffsetInSlideCoordinateSystem = 0
    ds.TotalPixelMatrixOriginSequence = [place]
    measures, shared, optical = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1000] * 2, 0.004
    shared.PixelMeasuresSequence = [measures]
    ds.SharedFunctionalGroupsSequence = [shared]
    optical.OpticalPathIdentifier = "0"
    optical.IlluminationTypeCodeSequence = [code("111744", "DCM", "Brightfield illumination")]
    ds.OpticalPathSequence = [optical]
    changes(ds)
    colours = np.random.default_rng(level).integers(0, 255, (n_rows * n_cols, 1, 1, 3), np.uint8)
    ds.PixelData = np.broadcast_to(colours, (n_rows * n_cols, TILE, TILE, 3)).tobytes()
    ds.save_as(path, enforce_file_format=True)


@dataclass(frozen=True)
class Case:
    """A slide of images with these ``mpps``, and a store of it at ``STORE_MPP``."""

    slide: Path
    store: PanopticStore
    mpps: tuple[float, ...]


def make_case(
    folder: Path,
    mpps: tuple[float, ...] = (0.25, 0.5),
    shape: tuple[int, int] = (540, 620),
    changes: Callable[[Dataset], None] = lambda ds: None,
) -> Case:
    """``shape`` is the store's. The corner of the pixel matrix lies at 20 mm, 40 mm at all levels."""
    slide = folder / "slide"
    slide.mkdir(parents=True)
    for level, mpp in enumerate(mpps):
        pixels = tuple(round(side * STORE_MPP / mpp) for side in shape)
        write_image(slide / f"{level}.dcm", pixels, mpp, (20 - mpp / 2000, 40 - mpp / 2000), changes)
    return Case(slide, store_of(slide, folder / "slide.ome.zarr", shape, STORE_MPP / mpps[0]), mpps)


def store_of(slide: Path, path: Path, shape: tuple[int, int], level0_per_pixel: float) -> PanopticStore:
    grid = TileGrid(shape, Box.of_shape(shape), 128, 64, 1)
    context = StitchContext(grid, level0_per_pixel)
    stitch_oracle(path, random_truth(shape, 400), context)
    with open_slide(slide) as opened:
        (height, width), seen = opened.levels[0].shape, opened.path
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["nucleipan"]["slide"] = {
        "name": slide.name, "width": width, "height": height,
        "mpp": STORE_MPP / level0_per_pixel, "fingerprint": fingerprint(seen),
    }  # fmt: skip
    (path / "zarr.json").write_text(json.dumps(document))
    return PanopticStore.open(path)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("dicom"))


@pytest.fixture(scope="module")
def seg_file(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seg") / "classes.dcm"
    assert export_dicom_seg(case.store, path, ExportOptions(slide=case.slide)) == 0
    return path


@pytest.fixture(scope="module")
def ann_file(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ann") / "nuclei.dcm"
    assert export_dicom_ann(case.store, path, ExportOptions(slide=case.slide)) == case.store.n_nuclei
    return path


def header_of(case: Case, level: int) -> Dataset:
    return pydicom.dcmread(case.slide / f"{level}.dcm", stop_before_pixels=True)


def pixels_of(path: Path) -> np.ndarray:
    return segread(path).get_total_pixel_matrix(combine_segments=True)


def annotations_in(path: Path) -> dict[int, tuple[str, np.ndarray, float]]:
    """Class label, corners and area by id."""
    found = {}
    for group in annread(path).AnnotationGroupSequence:
        names, values, units = group.get_measurements()
        column = {name: k for k, name in enumerate(names)}
        areas, ids = values[:, column[codes_area()]], values[:, column[ID_CONCEPT]]
        assert units[column[codes_area()]].value == "um2"
        for nucleus, polygon, area in zip(ids, group.get_graphic_data("2D"), areas, strict=True):
            found[int(nucleus)] = (group.label, polygon, float(area))
    return found


def codes_area() -> object:
    return highdicom.sr.CodedConcept("42798000", "SCT", "Area")


# Segmentation


def test_segmentation_holds_every_pixel(case: Case, seg_file: Path) -> None:
    assert not np.array_equal(case.store.class_map(), np.zeros(case.store.shape))
    np.testing.assert_array_equal(pixels_of(seg_file), case.store.class_map())


def test_segmentation_refers_to_the_image_with_its_grid(case: Case, seg_file: Path) -> None:
    seg, level = segread(seg_file), header_of(case, 1)
    assert [uid[2] for uid in seg.get_source_image_uids()] == [level.SOPInstanceUID]
    assert seg.FrameOfReferenceUID == level.FrameOfReferenceUID
    assert (seg.TotalPixelMatrixRows, seg.TotalPixelMatrixColumns) == case.store.shape
    assert (level.TotalPixelMatrixRows, level.TotalPixelMatrixColumns) == case.store.shape
    ours, theirs = (ds.TotalPixelMatrixOriginSequence[0] for ds in (seg, level))
    assert ours.XOffsetInSlideCoordinateSystem == theirs.XOffsetInSlideCoordinateSystem
    assert ours.YOffsetInSlideCoordinateSystem == theirs.YOffsetInSlideCoordinateSystem
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert list(measures.PixelSpacing) == [STORE_MPP / 1000] * 2


@pytest.mark.parametrize("mpps", [(0.25, 0.5), (0.25,), (0.37,), (1.0,), (0.25, 1.0)])
def test_segmentation_lies_where_the_slide_does(tmp_path: Path, mpps: tuple[float, ...]) -> None:
    case = make_case(tmp_path, mpps, (150, 170))
    path = tmp_path / "classes.dcm"
    export_dicom_seg(case.store, path, ExportOptions(slide=case.slide))
    corners = np.array([[0, 0], [169, 0], [0, 149], [80, 90]])  # column, row
    found = pixel_to_mm(pydicom.dcmread(path))(corners)
    # The centre of a store's pixel in pixels of the slide; the transformer takes whole ones, so it is done by hand.
    level0 = header_of(case, 0)
    spacing, origin = case.mpps[0] / 1000, level0.TotalPixelMatrixOriginSequence[0]
    centres = (corners + 0.5) * case.store.level0_per_pixel - 0.5
    np.testing.assert_allclose(found[:, 0], origin.XOffsetInSlideCoordinateSystem - spacing * centres[:, 1], atol=1e-8)
    np.testing.assert_allclose(found[:, 1], origin.YOffsetInSlideCoordinateSystem - spacing * centres[:, 0], atol=1e-8)
    np.testing.assert_array_equal(pixels_of(path), case.store.class_map())


def pixel_to_mm(ds: Dataset) -> Callable[[np.ndarray], np.ndarray]:
    return PixelToReferenceTransformer.for_image(ds, for_total_pixel_matrix=True)


def test_segments_are_the_classes(case: Case, seg_file: Path) -> None:
    seg = segread(seg_file)
    void, *segments = seg.SegmentSequence
    assert (void.SegmentNumber, void.SegmentLabel) == (0, "void")
    for segment, c in zip(segments, DEFAULT_CLASSES.classes, strict=True):
        assert (segment.SegmentNumber, segment.SegmentLabel) == (c.id, c.name)
        shown = highdicom.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue).to_rgb(clip=True)
        np.testing.assert_allclose(shown, c.color, atol=1)
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        if kind.CodingSchemeDesignator != SCHEME:
            kind = kind.SegmentedPropertyTypeModifierCodeSequence[0]
        assert kind.CodingSchemeDesignator == SCHEME
        assert (kind.get("CodeValue") or kind.LongCodeValue) == c.name
        made_by = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert made_by.AlgorithmName == f"nucleipan {case.store.model['name']}"
    types = {s.SegmentLabel: s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in segments if "CodeValue" in
             s.SegmentedPropertyTypeCodeSequence[0]}  # fmt: skip
    assert {types[c.name] for c in DEFAULT_CLASSES.things} == {"84640000"}  # nucleus
    assert (types["lymphoid"], types["adipose"], types["mucus"]) == ("6969002", "55603005", "mucus")


def test_segmentation_of_a_region_keeps_the_grid(case: Case, tmp_path: Path) -> None:
    roi = Box(300, 200, 1080, 1100)
    export_dicom_seg(case.store, tmp_path / "a.dcm", ExportOptions(roi, case.slide))
    expected = np.zeros(case.store.shape, np.uint8)
    expected[150:540, 100:550] = case.store.class_map(Box(150, 100, 540, 550))
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.dcm"), expected)
    with pytest.raises(RegionError, match="ROI"):
        export_dicom_seg(case.store, tmp_path / "b.dcm", ExportOptions(Box(0, 0, 2000, 10), case.slide))


def test_segmentation_larger_than_its_offsets(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nucleipan.exports.dicom_seg._MAX_OFFSET", 100)
    with pytest.raises(DataError, match="4 GiB"):
        export_dicom_seg(case.store, tmp_path / "a.dcm", ExportOptions(slide=case.slide))
    assert list(tmp_path.iterdir()) == []


# Annotations


def test_annotations_are_the_nuclei(case: Case, ann_file: Path) -> None:
    table = case.store.nuclei()
    found = annotations_in(ann_file)
    assert sorted(found) == table["id"].to_pylist()
    names = {c.id: c.name for c in case.store.classes.things}
    outlines = shapely.from_wkb(table["geometry"].to_numpy())
    for k, nucleus in enumerate(table["id"].to_pylist()):
        label, polygon, area = found[nucleus]
        assert label == names[table["class_id"][k].as_py()]
        assert area == pytest.approx(table["area_um2"][k].as_py(), rel=1e-6)
        # No point twice: DICOM closes polygons by itself.
        expected = shapely.get_coordinates(outlines[k].exterior)[:-1]
        np.testing.assert_allclose(polygon, expected, atol=1e-4)


def test_annotation_groups_are_the_classes_that_occur(case: Case, ann_file: Path) -> None:
    ann = annread(ann_file)
    present = sorted(set(case.store.nuclei()["class_id"].to_pylist()))
    assert [g.label for g in ann.AnnotationGroupSequence] == [case.store.classes.by_id(k).name for k in present]
    for group, class_id in zip(ann.AnnotationGroupSequence, present, strict=True):
        c = case.store.classes.by_id(class_id)
        kind = group.AnnotationPropertyTypeCodeSequence[0]
        assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("84640000", "SCT")
        modifier = kind.AnnotationPropertyTypeModifierCodeSequence[0]
        assert (modifier.get("CodeValue") or modifier.LongCodeValue) == c.name
        assert group.algorithm_identification.name == f"nucleipan {case.store.model['name']}"


def test_annotations_refer_to_full_resolution(case: Case, ann_file: Path) -> None:
    ann = annread(ann_file)
    assert (ann.AnnotationCoordinateType, ann.PixelOriginInterpretation) == ("2D", "VOLUME")
    assert ann.ReferencedImageSequence[0].ReferencedSOPInstanceUID == header_of(case, 0).SOPInstanceUID


def test_annotations_lie_on_the_segmentation(case: Case, seg_file: Path, ann_file: Path) -> None:
    """In millimetres on the glass; half a pixel of the slide would be 0.000125."""
    to_mm = highdicom.spatial.ImageToReferenceTransformer.for_image(header_of(case, 0), for_total_pixel_matrix=True)
    of_pixel = pixel_to_mm(pydicom.dcmread(seg_file))
    found = annotations_in(ann_file)
    ids = case.store.instances()
    exact = shapely.from_wkb(case.store.nuclei(["geometry"])["geometry"].to_numpy())
    shifts = []
    for nucleus, (_, polygon, area) in found.items():
        y, x = np.nonzero(ids == nucleus)
        whole = exact[nucleus - 1].area / case.store.level0_per_pixel**2 > 0.95 * (len(y) - 1)
        if whole and not exact[nucleus - 1].interiors and len(y) > 50:
            centre = shapely.Polygon(polygon).centroid
            on_glass = to_mm(np.array([[centre.x, centre.y]]))[0]
            shifts.append(on_glass - of_pixel(np.stack([x, y], 1)).mean(0))
            assert area == pytest.approx(len(y) * STORE_MPP**2, rel=1e-5)
    assert len(shifts) > 50
    np.testing.assert_allclose(np.mean(shifts, 0), 0, atol=1e-5)


def test_annotations_of_a_region(case: Case, tmp_path: Path) -> None:
    roi = Box(0, 0, 500, 700)
    table = case.store.nuclei(["id", "centroid_x", "centroid_y"])
    inside = {
        i for i, x, y in zip(*(table[c].to_pylist() for c in table.column_names), strict=True) if x < 700 and y < 500
    }
    n = export_dicom_ann(case.store, tmp_path / "a.dcm", ExportOptions(roi, case.slide))
    assert n == len(inside)
    assert annotations_in(tmp_path / "a.dcm").keys() == inside


def test_annotations_that_the_format_cannot_hold(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = case.store.nuclei()["bbox"][0].as_py()
    none = Box(0, 0, 1, 1)
    assert first["ymin"] > 1 or first["xmin"] > 1
    with pytest.raises(DataError, match="no nuclei in this region"):
        export_dicom_ann(case.store, tmp_path / "a.dcm", ExportOptions(none, case.slide))
    for limit in ("_MAX_ID", "_MAX_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(f"nucleipan.exports.dicom_ann.{limit}", 300)
            with pytest.raises(DataError, match="do not fit"):
                export_dicom_ann(case.store, tmp_path / "a.dcm", ExportOptions(slide=case.slide))
    assert list(tmp_path.iterdir()) == []


# What both say of the slide

EXPORTS = [export_dicom_seg, export_dicom_ann]


@pytest.mark.parametrize("name", ["seg_file", "ann_file"])
def test_patient_and_study_are_the_slides_and_nothing_else(
    case: Case, name: str, request: pytest.FixtureRequest
) -> None:
    ds, slide = pydicom.dcmread(request.getfixturevalue(name)), header_of(case, 0)
    for keyword in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
        "StudyID", "AccessionNumber", "ReferringPhysicianName", "ContainerIdentifier",
    ):  # fmt: skip
        assert ds[keyword].value == slide[keyword].value, keyword
    assert ds.SpecimenDescriptionSequence[0].SpecimenIdentifier == "SLIDE-7-Ä"
    for keyword in ("PatientAge", "PatientAddress", "InstitutionName"):
        assert keyword in slide
        assert keyword not in ds
    assert "Lindenstra" not in str(ds)
    assert "Pathologie" not in str(ds)
    assert ds.SeriesInstanceUID != slide.SeriesInstanceUID
    assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID


@pytest.mark.parametrize("export", EXPORTS)
def test_equal_stores_give_equal_files(case: Case, tmp_path: Path, export: Callable[..., int]) -> None:
    for name in "ab":
        export(case.store, tmp_path / name, ExportOptions(slide=case.slide))
    export(case.store, tmp_path / "c", ExportOptions(Box(0, 0, 900, 900), case.slide))
    first, again, part = (pydicom.dcmread(tmp_path / name, stop_before_pixels=True) for name in "abc")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert first.SOPInstanceUID == again.SOPInstanceUID != part.SOPInstanceUID
    assert pydicom.uid.UID(first.SOPInstanceUID).is_valid


def test_what_people_corrected_is_another_object(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    log = EditLog.open(case.store)
    log.append(delete_nuclei(log, [3]))
    options, corrected = ExportOptions(slide=case.slide), open_corrected(case.store.path)
    for export in EXPORTS:
        export(case.store, tmp_path / "a", options)
        export(corrected, tmp_path / "b", options)
        found, other = pydicom.dcmread(tmp_path / "a"), pydicom.dcmread(tmp_path / "b")
        assert found.SOPInstanceUID != other.SOPInstanceUID
        for ds, how in ((found, "AUTOMATIC"), (other, "SEMIAUTOMATIC")):
            for part in ds.get("SegmentSequence", ()):
                assert part.SegmentAlgorithmType == how
            for part in ds.get("AnnotationGroupSequence", ()):
                assert part.AnnotationGroupGenerationType == how
    assert set(annotations_in(tmp_path / "b")) == set(range(1, case.store.n_nuclei + 1)) - {3}
    export_dicom_seg(corrected, tmp_path / "b", options)
    np.testing.assert_array_equal(pixels_of(tmp_path / "b"), corrected.class_map())


@pytest.mark.parametrize("export", EXPORTS)
def test_an_export_that_fails_leaves_nothing(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Callable[..., int]
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{export.__module__}.{'encode_frame' if export is export_dicom_seg else 'dcmwrite'}", fails)
    with pytest.raises(KeyboardInterrupt):
        export(case.store, tmp_path / "a.dcm", ExportOptions(slide=case.slide))
    assert list(tmp_path.iterdir()) == []


def test_one_file_stands_for_its_pyramid(case: Case, seg_file: Path, tmp_path: Path) -> None:
    export_dicom_seg(case.store, tmp_path / "a.dcm", ExportOptions(slide=case.slide / "0.dcm"))
    assert (tmp_path / "a.dcm").read_bytes() == seg_file.read_bytes()


def test_an_overview_is_no_level(tmp_path: Path) -> None:
    case = make_case(tmp_path, shape=(150, 170))
    overview = pydicom.dcmread(case.slide / "1.dcm")
    overview.ImageType = ["ORIGINAL", "PRIMARY", "OVERVIEW", "NONE"]
    overview.SOPInstanceUID = overview.file_meta.MediaStorageSOPInstanceUID = f"{SERIES}.9"
    overview.save_as(case.slide / "0_overview.dcm")
    export_dicom_seg(case.store, tmp_path / "a.dcm", ExportOptions(slide=case.slide))
    assert [uid[2] for uid in segread(tmp_path / "a.dcm").get_source_image_uids()] == [
        header_of(case, 1).SOPInstanceUID
    ]


@pytest.mark.parametrize("export", EXPORTS)
def test_only_the_dicom_slide_of_the_store_will_do(case: Case, tmp_path: Path, export: Callable[..., int]) -> None:
    path = tmp_path / "out" / "a.dcm"
    with pytest.raises(DataError, match="--slide"):
        export(case.store, path, ExportOptions())
    with pytest.raises(SlideError, match="no such file"):
        export(case.store, path, ExportOptions(slide=tmp_path / "gone.dcm"))
    with pytest.raises(DataError, match="is no DICOM slide"):
        export(case.store, path, ExportOptions(slide=case.store.path))
    other = make_case(tmp_path / "other", changes=lambda ds: setattr(ds, "PatientID", "P-18"))
    with pytest.raises(SlideError, match="not the slide that"):
        export(case.store, path, ExportOptions(slide=other.slide))
    assert not path.parent.exists()


def test_headers_that_say_too_little(tmp_path: Path) -> None:
    def drop(ds: Dataset) -> None:
        del ds.TotalPixelMatrixOriginSequence
        del ds.SpecimenDescriptionSequence
        del ds.AccessionNumber
        ds.PatientSex, ds.StudyDate = "U", "2024"

    case = make_case(tmp_path, shape=(150, 170), changes=drop)
    options = ExportOptions(slide=case.slide)
    with pytest.raises(DataError, match="TotalPixelMatrixOriginSequence"):
        export_dicom_seg(case.store, tmp_path / "a.dcm", options)
    export_dicom_ann(case.store, tmp_path / "b.dcm", options)
    ds = pydicom.dcmread(tmp_path / "b.dcm")
    assert [str(ds[keyword].value or "") for keyword in ("PatientSex", "StudyDate", "AccessionNumber")] == [""] * 3
    assert "ContainerIdentifier" not in ds  # a part of the specimen module would be wrong without the rest


def test_a_pixel_size_that_the_slide_contradicts(tmp_path: Path) -> None:
    def coarser(ds: Dataset) -> None:
        ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.0003, 0.0003]

    case = make_case(tmp_path, (0.25,), (150, 170), changes=coarser)
    with pytest.raises(DataError, match="Pixel Spacing"):
        export_dicom_seg(case.store, tmp_path / "a.dcm", ExportOptions(slide=case.slide))
    assert export_dicom_ann(case.store, tmp_path / "b.dcm", ExportOptions(slide=case.slide)) == case.store.n_nuclei


@pytest.mark.shared
def test_real_slide_without_pixel_size_study_and_frame_of_reference(shared_slides: Path, tmp_path: Path) -> None:
    slide = shared_slides / "small_dicom.dcm"
    store = store_of(slide, tmp_path / "slide.ome.zarr", (660, 809), 4)
    for export in EXPORTS:
        export(store, tmp_path / export.__name__, ExportOptions(slide=slide))
    np.testing.assert_array_equal(pixels_of(tmp_path / "export_dicom_seg"), store.class_map())
    assert sorted(annotations_in(tmp_path / "export_dicom_ann")) == store.nuclei()["id"].to_pylist()
    seg = pydicom.dcmread(tmp_path / "export_dicom_seg")
    assert list(seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing) == [STORE_MPP / 1000] * 2
    assert seg.SourceImageSequence[0].ReferencedSOPInstanceUID == pydicom.dcmread(slide).SOPInstanceUID


# dciodvfy of 2022 does not know Label Map Segmentation, which is of 2024, and asks for an attribute that 2D annotations
# must not have as if it were there (the file holds none). Private coding schemes are only warned of.
KNOWN_MESSAGES = (
    "SegmentNumber not monotonically increasing",
    "Information Object Not found",
    "<CommonZCoordinateValue> = <>",
)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("name", ["seg_file", "ann_file"])
def test_dciodvfy_finds_no_error(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    assert [line for line in errors if not any(message in line for message in KNOWN_MESSAGES)] == []
    assert not any(
        "CommonZCoordinateValue" in group for group in pydicom.dcmread(path).get("AnnotationGroupSequence", ())
    )
