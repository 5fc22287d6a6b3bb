"""One contract for every slide format: a box is the same pixels as that part of the whole level."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr

from nucleipan.errors import RegionError, SlideError
from nucleipan.geometry import Box
from nucleipan.slide import Slide, describe, is_slide, open_slide
from nucleipan.slide.dicom import DicomSlide
from nucleipan.slide.openslide import OpenSlideSlide

SHAPE = (301, 410)
MPP = 0.4


def picture(shape: tuple[int, int] = SHAPE) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    noise = np.random.default_rng(0).integers(0, 30, (*shape, 3))
    smooth = np.stack([120 + 80 * np.sin(y / 17), 120 + 80 * np.cos(x / 23), (x + y) % 200], axis=-1)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def halved(image: np.ndarray) -> np.ndarray:
    h, w = image.shape[0] // 2, image.shape[1] // 2
    return image[: 2 * h, : 2 * w].reshape(h, 2, w, 2, 3).mean((1, 3)).round().astype(np.uint8)


def as_ycbcr(rgb: np.ndarray) -> np.ndarray:
    """JFIF's full-range YCbCr, which is what tifffile wants to be given for photometric 'ycbcr'."""
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    return np.clip(np.rint(rgb @ matrix.T + [0, 128, 128]), 0, 255).astype(np.uint8)


def write_tiff_pyramid(path: Path, **options: Any) -> None:
    image = picture()
    with tifffile.TiffWriter(path) as tiff:
        for level in range(3):
            tiff.write(
                as_ycbcr(image) if options.get("photometric") == "ycbcr" else image,
                tile=(64, 64),
                photometric=options.get("photometric", "rgb"),
                compression=options.get("compression"),
                planarconfig="contig",
                subfiletype=1 if level else 0,
                resolution=(1e4 / MPP / 2**level,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            image = halved(image)


def write_ome_tiff(path: Path, subifds: int = 2, **options: Any) -> None:
    image = picture()
    metadata = {"axes": "YXS", "PhysicalSizeX": MPP * 1000, "PhysicalSizeXUnit": "nm"}
    metadata |= {"PhysicalSizeY": MPP * 1000, "PhysicalSizeYUnit": "nm"}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(image, tile=(64, 64), photometric="rgb", subifds=subifds, metadata=metadata, compression="deflate")
        for _ in range(subifds):
            image = halved(image)
            tiff.write(image, tile=(64, 64), photometric="rgb", subfiletype=1, metadata=None, compression="deflate")


def write_ome_planes(path: Path) -> None:
    planes = np.moveaxis(picture(), -1, 0)
    metadata = {"axes": "CYX", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP}
    tifffile.imwrite(path, planes, ome=True, photometric="minisblack", tile=(64, 64), metadata=metadata)


def write_ome_zarr(path: Path, zarr_format: int = 3, axes: str = "cyx", channels: int = 3) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    image, datasets = picture(), []
    for level in range(2):
        planes = np.moveaxis(image, -1, 0)[:channels]
        order = [("cyx").index(a) for a in axes if a in "cyx"]
        data = planes.transpose(order)[tuple(slice(None) if a in "cyx" else None for a in axes)]
        array = group.create_array(str(level), shape=data.shape, dtype="u1", chunks=[min(64, n) for n in data.shape])
        array[:] = data
        scale = [MPP * 2**level if a in "yx" else 1.0 for a in axes]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
        image = halved(image)
    kinds = {"t": "time", "c": "channel"}
    described = [{"name": a, "type": kinds.get(a, "space")} for a in axes]
    for axis in described:
        if axis["type"] == "space":
            axis["unit"] = "micrometer"
    metadata = {"multiscales": [{"axes": described, "datasets": datasets, "version": "0.4"}]}
    group.attrs.update({"ome": metadata | {"version": "0.5"}} if zarr_format == 3 else metadata)


def write_grey_tiff(path: Path) -> None:
    tifffile.imwrite(path, picture()[..., 0], compression="lzw", rowsperstrip=32, resolution=(72, 72))


def write_rgba_png(path: Path) -> None:
    alpha = np.full((*SHAPE, 1), 255, np.uint8)
    alpha[:50] = 0
    path.write_bytes(imagecodecs.png_encode(np.concatenate([picture(), alpha], axis=2)))


FORMATS: dict[str, tuple[Callable[[Path], None], int, float | None, bool]] = {
    # name: writer, levels, mpp, lossless
    "tiff-jpeg": (lambda p: write_tiff_pyramid(p, compression="jpeg", photometric="ycbcr"), 3, MPP, False),
    "tiff-jpeg-rgb": (lambda p: write_tiff_pyramid(p, compression="jpeg"), 3, MPP, False),
    "tiff-deflate": (lambda p: write_tiff_pyramid(p, compression="deflate"), 3, MPP, True),
    "tiff-lzw": (lambda p: write_tiff_pyramid(p, compression="lzw"), 3, MPP, True),
    "tiff-raw": (write_tiff_pyramid, 3, MPP, True),
    "tiff-jpeg2000": (lambda p: write_tiff_pyramid(p, compression="jpeg2000"), 3, MPP, True),
    "ome-tiff": (write_ome_tiff, 3, MPP, True),
    "ome-tiff-planes": (write_ome_planes, 1, MPP, True),
    "ome-zarr-0.4": (lambda p: write_ome_zarr(p, 2, "tczyx"), 2, MPP, True),
    "ome-zarr-0.5": (lambda p: write_ome_zarr(p, 3), 2, MPP, True),
    "ome-zarr-yxc": (lambda p: write_ome_zarr(p, 3, "yxc"), 2, MPP, True),
    "png": (lambda p: p.write_bytes(imagecodecs.png_encode(picture())) and None, 1, None, True),
    "jpeg": (lambda p: p.write_bytes(imagecodecs.jpeg_encode(picture(), 95)) and None, 1, None, False),
}


@pytest.fixture(scope="module", params=FORMATS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("slide") / "slide.xyz"  # the name must not matter
    FORMATS[request.param][0](path)
    return path, request.param


@pytest.fixture
def slide(made: tuple[Path, str]) -> Iterator[Slide]:
    with open_slide(made[0]) as opened:
        yield opened


def check_contract(slide: Slide) -> None:
    assert slide.levels[0].downsample == 1
    downsamples = [level.downsample for level in slide.levels]
    assert downsamples == sorted(set(downsamples))
    for number, level in enumerate(slide.levels):
        h, w = level.shape
        whole = slide.read(number, Box(0, 0, h, w))
        assert whole.dtype == np.uint8
        assert whole.shape == (h, w, 3)
        corner = Box(h - h // 3, w - w // 3, h, w)
        for box in (Box(0, 0, 1, 1), corner, Box(h // 3, w // 4, h // 3 + 70, w // 4 + 90), Box(h - 1, 0, h, w)):
            box = box.clipped(Box(0, 0, h, w))
            np.testing.assert_array_equal(slide.read(number, box), whole[box.slices(Box(0, 0, h, w))])
        for bad in (Box(0, 0, h + 1, w), Box(-1, 0, 3, 3), Box(5, 5, 5, 9), Box(h, w, h + 1, w + 1)):
            with pytest.raises(RegionError):
                slide.read(number, bad)
    with pytest.raises(RegionError):
        slide.read(len(slide.levels), Box(0, 0, 1, 1))


def test_contract(slide: Slide) -> None:
    check_contract(slide)


def test_pixels_levels_and_mpp(slide: Slide, made: tuple[Path, str]) -> None:
    _, n_levels, mpp, is_lossless = FORMATS[made[1]]
    assert len(slide.levels) == n_levels
    assert slide.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-3))
    assert [level.downsample for level in slide.levels] == [2.0**i for i in range(n_levels)]
    found = slide.read(0, Box.of_shape(SHAPE)).astype(int)
    error = np.abs(found - picture())
    assert error.max() == 0 if is_lossless else error.mean() < 16


def test_describe(made: tuple[Path, str]) -> None:
    facts = describe(made[0])
    assert facts["shape"] == list(SHAPE)
    assert facts["file_size_bytes"] > 0
    assert facts["compression"]
    assert len(facts["levels"]) == FORMATS[made[1]][1]


def test_recognised_by_content(made: tuple[Path, str]) -> None:
    assert is_slide(made[0])
    assert not is_slide(made[0].parent)
    assert not is_slide(made[0].parent / "absent")


@pytest.mark.parametrize("options", [{"compression": "jpeg"}, {"compression": "jpeg", "photometric": "ycbcr"}])
def test_openslide_agrees(tmp_path: Path, options: dict[str, str]) -> None:
    path = tmp_path / "slide.tif"
    write_tiff_pyramid(path, **options)
    with OpenSlideSlide(path) as oracle, open_slide(path) as ours:
        check_contract(oracle)
        assert oracle.mpp == pytest.approx(ours.mpp)
        assert oracle.levels == ours.levels
        for level, described in enumerate(ours.levels[:1]):
            box = Box.of_shape(described.shape)
            np.testing.assert_array_equal(ours.read(level, box), oracle.read(level, box))


def test_ome_zarr_holding_one_channel_is_grey(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path / "grey.zarr", channels=1)
    with open_slide(tmp_path / "grey.zarr") as slide:
        pixels = slide.read(0, Box.of_shape(SHAPE))
    np.testing.assert_array_equal(pixels, np.repeat(picture()[..., :1], 3, axis=2))


def test_grey_tiff_is_rgb_and_72_dpi_is_no_pixel_size(tmp_path: Path) -> None:
    write_grey_tiff(tmp_path / "grey.tif")
    with open_slide(tmp_path / "grey.tif") as slide:
        check_contract(slide)
        assert slide.mpp is None
        pixels = slide.read(0, Box.of_shape(SHAPE))
    np.testing.assert_array_equal(pixels, np.repeat(picture()[..., :1], 3, axis=2))


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    write_rgba_png(tmp_path / "image.png")
    with open_slide(tmp_path / "image.png") as slide:
        pixels = slide.read(0, Box.of_shape(SHAPE))
    assert (pixels[:50] == 255).all()
    np.testing.assert_array_equal(pixels[50:], picture()[50:])


def test_aperio_description_and_associated_images(tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    words = "Aperio Image Library v11\r\n410x301 (64x64) JPEG|AppMag = 40|MPP = 0.2520"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(picture(), tile=(64, 64), photometric="rgb", compression="deflate", description=words, metadata=None)
        tiff.write(halved(picture()), photometric="rgb", description="Aperio thumbnail", metadata=None)
        tiff.write(halved(halved(picture())), tile=(64, 64), photometric="rgb", metadata=None, compression="deflate")
        tiff.write(picture((90, 300)), photometric="rgb", subfiletype=9, description="Aperio macro", metadata=None)
    with open_slide(path) as slide:
        assert [level.downsample for level in slide.levels] == [1, 4]
        assert (slide.mpp, slide.objective, slide.format) == (0.252, 40, "Aperio SVS (TIFF)")


def test_pixel_sizes_that_contradict_each_other_are_none(tmp_path: Path) -> None:
    options = {"tile": (64, 64), "photometric": "rgb", "resolutionunit": "CENTIMETER", "metadata": None}
    for y_mpp, expected in ((0.51, 0.505), (0.6, None)):
        tifffile.imwrite(tmp_path / "a.tif", picture(), resolution=(1e4 / 0.5, 1e4 / y_mpp), **options)
        with open_slide(tmp_path / "a.tif") as slide:
            assert slide.mpp == (None if expected is None else pytest.approx(expected))


def test_empty_tiles_are_white(tmp_path: Path) -> None:
    tiles = (t for t in [picture((64, 64)), None, None, picture((64, 64))])
    tifffile.imwrite(
        tmp_path / "sparse.tif", tiles, shape=(128, 128, 3), dtype=np.uint8, tile=(64, 64), photometric="rgb",
        compression="deflate", metadata=None,
    )  # fmt: skip
    with open_slide(tmp_path / "sparse.tif") as slide:
        pixels = slide.read(0, Box(0, 0, 128, 128))
    assert (pixels[:64, 64:] == 255).all()
    np.testing.assert_array_equal(pixels[64:, 64:], picture((64, 64)))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "mpp", "n_levels"),
    [("CMU-1-Small-Region.svs", 0.499, 1), ("TCGA-CR-7395-TS1.svs", None, 2), ("TCGA-V5-A7RE-tissue.svs", 0.2485, 3)],
)
def test_real_slides_equal_openslide(shared_slides: Path, name: str, mpp: float | None, n_levels: int) -> None:
    path = shared_slides / name
    with open_slide(path) as ours, OpenSlideSlide(path) as oracle:
        assert ours.mpp == oracle.mpp == mpp
        assert ours.levels == oracle.levels
        assert len(ours.levels) == n_levels
        h, w = ours.levels[0].shape
        for box in (Box(0, 0, 400, 500), Box(h // 2, w // 2, h // 2 + 700, w // 2 + 600), Box(h - 300, w - 301, h, w)):
            np.testing.assert_array_equal(ours.read(0, box), oracle.read(0, box))


@pytest.mark.shared
def test_real_dicom_is_put_together(shared_slides: Path) -> None:
    pytest.importorskip("wsidicom")
    with open_slide(shared_slides / "small_dicom.dcm") as slide:
        assert slide.levels[0].shape == (2638, 3236)
        assert slide.mpp is None  # its two axes contradict each other
        check_contract(slide)
        # Frames continue each other: a seam is no rougher than the rows beside it.
        rows = slide.read(0, Box(480, 0, 520, 3236)).astype(int)
    steps = np.abs(np.diff(rows, axis=0)).mean((1, 2))
    assert steps[19] < 1.5 * np.median(steps)


def write_dicom(path: Path, level: int = 0, *, complete: bool = True) -> np.ndarray:
    """One level of a slide in uncompressed frames of 64 x 64, as TILED_FULL or without the attributes that say so."""
    pydicom = pytest.importorskip("pydicom")
    image = picture() if level == 0 else halved(picture())
    (h, w), n = image.shape[:2], 64
    padded = np.pad(image, ((0, -h % n), (0, -w % n), (0, 0)))
    frames = padded.reshape(padded.shape[0] // n, n, padded.shape[1] // n, n, 3).swapaxes(1, 2)
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{level + 1}"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header = pydicom.dataset.Dataset()
    header.file_meta = meta
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
    header.Modality = "SM"
    header.Rows = header.Columns = n
    header.TotalPixelMatrixRows, header.TotalPixelMatrixColumns = h, w
    header.TotalPixelMatrixFocalPlanes = 1
    header.NumberOfFrames = frames.shape[0] * frames.shape[1]
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, "RGB", 0
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit, header.PixelRepresentation = 7, 0
    header.ImagedVolumeWidth, header.ImagedVolumeHeight = w * MPP * 2**level / 1000, h * MPP * 2**level / 1000
    header.ImagedVolumeDepth = 0.001
    if complete:
        header.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED" if level else "NONE"]
        header.DimensionOrganizationType = "TILED_FULL"
        header.NumberOfOpticalPaths = 1
        measures, shared, optical = (pydicom.dataset.Dataset() for _ in range(3))
        measures.PixelSpacing = [MPP * 2**level / 1000] * 2
        measures.SliceThickness = 0.001
        shared.PixelMeasuresSequence = [measures]
        header.SharedFunctionalGroupsSequence = [shared]
        optical.OpticalPathIdentifier = "0"
        header.OpticalPathSequence = [optical]
        header.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
        header.SpecimenLabelInImage, header.FocusMethod, header.ExtendedDepthOfField = "NO", "AUTO", "NO"
    else:
        frames = frames.swapaxes(0, 1)  # column by column, which nothing in the file says
    header.PixelData = frames.tobytes()
    header.save_as(path, enforce_file_format=True)
    return image


def test_complete_dicom_slides(tmp_path: Path) -> None:
    pytest.importorskip("wsidicom")
    images = [write_dicom(tmp_path / f"{level}.dcm", level) for level in range(2)]
    files = [tmp_path / "0.dcm", tmp_path / "1.dcm"]
    for slide in (open_slide(tmp_path), DicomSlide(tmp_path, files)):
        with slide:
            check_contract(slide)
            assert slide.mpp == pytest.approx(MPP)
            assert [level.downsample for level in slide.levels] == [1, 2]
            for level, image in enumerate(images):
                np.testing.assert_array_equal(slide.read(level, Box.of_shape(image.shape[:2])), image)


def test_dicom_whose_order_only_the_picture_tells(tmp_path: Path) -> None:
    pytest.importorskip("wsidicom")
    image = write_dicom(tmp_path / "a.dcm", complete=False)
    with open_slide(tmp_path / "a.dcm") as slide:
        check_contract(slide)
        assert slide.mpp == pytest.approx(MPP, rel=1e-3)
        np.testing.assert_array_equal(slide.read(0, Box.of_shape(SHAPE)), image)


def test_dicom_of_several_slides(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    for name in "ab":
        write_dicom(tmp_path / f"{name}.dcm", complete=False)
    other = pydicom.dcmread(tmp_path / "b.dcm")
    other.SeriesInstanceUID = "1.2.99"
    other.save_as(tmp_path / "b.dcm")
    with pytest.raises(SlideError, match="2 DICOM series"):
        open_slide(tmp_path)


def test_threads_read_the_same(slide: Slide) -> None:
    boxes = [Box(y, x, y + 100, x + 100) for y in (0, 90, 200) for x in (0, 120, 300)]
    expected = [slide.read(0, box) for box in boxes]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, wanted in zip(pool.map(lambda b: slide.read(0, b), boxes), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)


def test_dicom_without_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "slide.dcm"
    path.write_bytes(bytes(128) + b"DICM" + bytes(64))
    monkeypatch.setitem(sys.modules, "wsidicom", None)
    with pytest.raises(SlideError, match=r"nucleipan\[dicom\]"):
        open_slide(path)
