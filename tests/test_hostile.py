"""Slides made to do harm: to fill the memory, to never end, to be taken for something else."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from hostile_data import LAUGHS, Evil

from nucleipan.errors import SlideError
from nucleipan.geometry import Box
from nucleipan.slide import ArraySlide, at_mpp, describe, is_slide, open_slide, tissue_mask
from nucleipan.slide import _types as types

WRONG_SIZES = ("1e-9", "1e9", "-0.5", "nan", "inf", "1e999", "0")


@pytest.fixture(autouse=True)
def ends_soon() -> Any:
    began = time.process_time()
    yield
    assert time.process_time() - began < 10


def refuse(path: Path, *words: str) -> None:
    """Opening, or at latest reading a corner, must fail with one line that holds all words."""
    with pytest.raises(SlideError) as caught, open_slide(path) as slide:
        slide.read(0, Box(0, 0, 1, 1))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    for word in (str(path), *words):
        assert word in message


def write_tiff(path: Path, tiles: list[bytes], shape: tuple[int, int], tile: tuple[int, int], **tags: int) -> None:
    """A grey TIFF whose directory says what it is told, whatever the tiles are."""
    n = len(tiles)
    *starts, lists = itertools.accumulate(map(len, tiles), initial=8)
    directory = lists + 8 * n
    entries = {256: shape[1], 257: shape[0], 258: 8, 259: 1, 262: 1, 277: 1, 322: tile[1], 323: tile[0]}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    rows = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items()]
    sizes = [len(t) for t in tiles]
    rows.append(struct.pack("<HHII", 324, 4, n, lists if n > 1 else starts[0]))
    rows.append(struct.pack("<HHII", 325, 4, n, lists + 4 * n if n > 1 else sizes[0]))
    rows.sort(key=lambda row: struct.unpack_from("<H", row))
    body = b"".join(tiles) + struct.pack(f"<{2 * n}I", *starts, *sizes)
    link = struct.pack("<I", 0)
    path.write_bytes(
        b"II*\0" + struct.pack("<I", directory) + body + struct.pack("<H", len(rows)) + b"".join(rows) + link
    )


def jpeg(frame: bytes, n_scans: int = 1) -> bytes:
    return b"\xff\xd8" + frame + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * n_scans + b"\xff\xd9"


def frame_of(side: int, marker: int = 0xC0) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">HBHHB", 11, 8, side, side, 1) + b"\1\x11\0"


# TIFF


@pytest.mark.parametrize(
    ("shape", "tile", "word"),
    [
        ((10**6, 10**6), (256, 256), "lists 1 tiles"),
        ((64, 2**31 - 1), (64, 2**31 - 16), "in one piece"),
        ((64, 64), (2**31, 2**31), "2147483648"),
        ((64, 64), (0, 0), "pixels"),
        ((64, 64), (64, 0), "pixels"),
    ],
)
def test_directories_that_claim_the_impossible(
    tmp_path: Path, shape: tuple[int, int], tile: tuple[int, int], word: str
) -> None:
    write_tiff(tmp_path / "a.tif", [bytes(4096)], shape, tile)
    refuse(tmp_path / "a.tif", word)


def test_tiles_of_one_pixel(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", [b"\0"] * 260**2, (260, 260), (1, 1))
    refuse(tmp_path / "a.tif", "67,600 tiles of 1 pixels")


@pytest.mark.parametrize(("tag", "value"), [(324, 2**32 - 1), (324, 2**31), (325, 2**32 - 1), (325, 2**31)])
def test_tiles_beyond_the_file(tmp_path: Path, tag: int, value: int) -> None:
    write_tiff(tmp_path / "a.tif", [bytes(4096)], (64, 64), (64, 64))
    data = bytearray((tmp_path / "a.tif").read_bytes())
    at = data.index(struct.pack("<HHI", tag, 4, 1))
    data[at + 8 : at + 12] = struct.pack("<I", value)
    (tmp_path / "a.tif").write_bytes(data)
    refuse(tmp_path / "a.tif", "truncated")


@pytest.mark.parametrize(
    "data",
    [jpeg(b"\0\0" + frame_of(60_000)), jpeg(frame_of(64, 0xC2), n_scans=600_000), jpeg(b"")],
    ids=["hidden frame", "endless scans", "no frame"],
)
def test_jpeg_tiles_that_hide_what_they_are(tmp_path: Path, data: bytes) -> None:
    write_tiff(tmp_path / "a.tif", [data], (64, 64), (64, 64), t259=7)
    refuse(tmp_path / "a.tif")


def test_an_image_in_the_jpeg_tables(tmp_path: Path) -> None:
    data = jpeg(frame_of(60_000))
    write_tiff(tmp_path / "a.tif", [data], (64, 64), (64, 64), t259=7, t347=8)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    at = content.index(struct.pack("<HHI", 347, 4, 1))
    content[at : at + 8] = struct.pack("<HHI", 347, 7, len(data))
    (tmp_path / "a.tif").write_bytes(content)
    refuse(tmp_path / "a.tif")


def pyramid(path: Path) -> bytearray:
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(np.zeros((128, 128, 3), np.uint8), photometric="rgb", tile=(64, 64), subifds=1, metadata=None)
        tiff.write(np.zeros((64, 64, 3), np.uint8), photometric="rgb", tile=(64, 64), subfiletype=1, metadata=None)
    return bytearray(path.read_bytes())


def test_directories_in_a_circle(tmp_path: Path) -> None:
    data = pyramid(tmp_path / "a.tif")
    first = struct.unpack_from("<I", data, 4)[0]
    n_tags = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * n_tags, first)
    (tmp_path / "a.tif").write_bytes(data)
    refuse(tmp_path / "a.tif", "stack of 64")


def test_a_subdirectory_that_is_its_parent(tmp_path: Path) -> None:
    data = pyramid(tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        tag, first = tiff.pages[0].tags[330], tiff.pages[0].offset
    struct.pack_into("<I", data, tag.valueoffset, first)
    (tmp_path / "a.tif").write_bytes(data)
    with open_slide(tmp_path / "a.tif") as slide:
        assert [level.shape for level in slide.levels] == [(128, 128)]


def test_thousands_of_directories(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", [bytes(4096)], (64, 64), (64, 64))
    data = bytearray((tmp_path / "a.tif").read_bytes())
    first = struct.unpack_from("<I", data, 4)[0]
    one = data[first:-4]
    for _ in range(5000):
        data[-4:] = struct.pack("<I", len(data)) + one + bytes(4)
    (tmp_path / "a.tif").write_bytes(data)
    refuse(tmp_path / "a.tif", "stack of 64")


# Pixel sizes and texts


@pytest.mark.parametrize("value", WRONG_SIZES)
def test_pixel_sizes_that_no_microscope_has(tmp_path: Path, value: str) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    aperio = f"Aperio Image\r\n64x64 |AppMag = {value}|MPP = {value}"
    tifffile.imwrite(tmp_path / "a.svs", pixels, photometric="rgb", tile=(64, 64), metadata=None, description=aperio)
    sizes = f'PhysicalSizeX="{value}" PhysicalSizeY="{value}"'
    ome = f'<OME xmlns="x"><Image><Pixels SizeC="3" SizeZ="1" SizeT="1" {sizes}/></Image></OME>'
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", metadata=None, description=ome)
    write_zarr(tmp_path / "a.zarr", scale=[1, float(value), float(value)])
    for name in ("a.svs", "a.tif", "a.zarr"):
        with open_slide(tmp_path / name) as slide:
            assert slide.mpp is None
            assert slide.objective is None or np.isfinite(slide.objective)
        json.dumps(describe(tmp_path / name), allow_nan=False)


@pytest.mark.parametrize("numerator", [0, 1, 2**32 - 1])
def test_resolution_tags_that_no_microscope_has(tmp_path: Path, numerator: int) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    resolution = ((numerator, 1), (numerator, 1))
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb", metadata=None, resolution=resolution, resolutionunit=3
    )
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.mpp is None


def test_entities_of_ome_xml_are_not_expanded(tmp_path: Path) -> None:
    text = f'{LAUGHS}]><OME><Image Name="&m;"><Pixels SizeC="3" PhysicalSizeX="0.5" PhysicalSizeY="0.5"/></Image></OME>'
    pixels = np.zeros((64, 64, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", metadata=None, description=text)
    with open_slide(tmp_path / "a.tif") as slide:
        assert (slide.format, slide.mpp) == ("TIFF", None)


def test_a_slide_of_two_metres_is_none(tmp_path: Path) -> None:
    slide = ArraySlide(tmp_path / "a", np.zeros((1, 30_000, 3), np.uint8), mpp=20)
    with pytest.raises(SlideError, match="0 x 600 mm"):
        at_mpp(slide, 20)


# PNG and JPEG


def test_a_jpeg_with_endless_scans(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(frame_of(8000, 0xC2), n_scans=50))
    refuse(tmp_path / "a.jpg", "progressive")


def test_transparency_is_laid_on_white_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (50, 7, 4), np.uint8)
    whole = types.to_rgb(Path("a"), rgba)
    monkeypatch.setattr(types, "_WHITE_ROWS_PX", 20)
    np.testing.assert_array_equal(types.to_rgb(Path("a"), rgba), whole)


# OME-Zarr


def write_zarr(
    path: Path, shape: tuple[int, ...] = (3, 64, 64), scale: list[float] | None = None, **options: Any
) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=options.pop("zarr_format", 3))
    group.create_array("0", shape=shape, dtype="u1", **{"chunks": shape, "fill_value": 9, **options})
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "cyx"]
    transformations = [{"type": "scale", "scale": scale or [1, 0.5, 0.5]}]
    datasets = [{"path": "0", "coordinateTransformations": transformations}]
    document = {"multiscales": [{"axes": axes, "datasets": datasets}]}
    group.attrs.update({"ome": document} if group.metadata.zarr_format == 3 else document)


def test_a_plane_of_a_million_times_a_million(tmp_path: Path) -> None:
    """Nothing but its fill value is in the file: known at once, and never read whole."""
    write_zarr(tmp_path / "a.zarr", (3, 10**6, 10**6), [1, 0.25, 0.25], chunks=(3, 1024, 1024))
    assert describe(tmp_path / "a.zarr")["shape"] == [10**6, 10**6]
    with open_slide(tmp_path / "a.zarr") as slide:
        assert (slide.read(0, Box(10**6 - 5, 10**6 - 5, 10**6, 10**6)) == 9).all()
        with pytest.raises(SlideError, match="pyramidal"):
            tissue_mask(at_mpp(slide, 0.5))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"shape": (3, 2**15, 2**15), "chunks": (3, 2**15, 2**14)}, "in one piece"),
        ({"shape": (3, 2**15, 2**15), "chunks": (3, 512, 512), "shards": (3, 2**15, 2**14)}, "in one piece"),
        ({"shape": (3, 300, 300), "chunks": (1, 1, 1)}, "270,000 chunks"),
    ],
)
def test_chunks_that_nobody_can_read(tmp_path: Path, options: dict[str, Any], word: str) -> None:
    write_zarr(tmp_path / "a.zarr", **options)
    refuse(tmp_path / "a.zarr", word)


def nested(document: dict[str, Any]) -> str:
    return "[" * 200_000


def without_object(document: dict[str, Any]) -> str:
    return json.dumps(document | {"attributes": [1]})


def with_many_levels(document: dict[str, Any]) -> str:
    multiscale = document["attributes"]["ome"]["multiscales"][0]
    multiscale["datasets"] *= 10_000
    return json.dumps(document)


def with_a_long_name(document: dict[str, Any]) -> str:
    document["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = "x" * 100_000
    return json.dumps(document)


def with_a_long_axis(document: dict[str, Any]) -> str:
    document["attributes"]["ome"]["multiscales"][0]["axes"][1]["name"] = [0] * 70_000
    return json.dumps(document)


def with_a_huge_scale(document: dict[str, Any]) -> str:
    dataset = document["attributes"]["ome"]["multiscales"][0]["datasets"][0]
    dataset["coordinateTransformations"][0]["scale"] = [1, 10**400, 1]
    return json.dumps(document)


@pytest.mark.parametrize(
    "change", [nested, without_object, with_many_levels, with_a_long_name, with_a_long_axis, with_a_huge_scale]
)
def test_ngff_metadata_that_do_harm(tmp_path: Path, change: Callable[[dict[str, Any]], str]) -> None:
    write_zarr(tmp_path / "a.zarr")
    path = tmp_path / "a.zarr" / "zarr.json"
    path.write_text(change(json.loads(path.read_text())))
    is_slide(tmp_path / "a.zarr")
    refuse(tmp_path / "a.zarr")


@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_pickled_chunks_are_not_unpickled(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    write_zarr(tmp_path / "a.zarr", zarr_format=2)
    document = json.loads((tmp_path / "a.zarr/0/.zarray").read_text()) | {"filters": None, "compressor": None}
    document[place] = [{"id": "pickle"}] if place == "filters" else {"id": "pickle"}
    (tmp_path / "a.zarr/0/.zarray").write_text(json.dumps(document))
    (tmp_path / "a.zarr/0/0.0.0").write_bytes(pickle.dumps(Evil(tmp_path / "trace")))
    refuse(tmp_path / "a.zarr")
    assert not (tmp_path / "trace").exists()


# What is no file


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.svs")
    assert not is_slide(tmp_path / "a.svs")
    refuse(tmp_path / "a.svs", "neither a file nor a folder")
    write_zarr(tmp_path / "a.zarr")
    for name in ("0/zarr.json", "zarr.json"):
        (tmp_path / "a.zarr" / name).unlink()
        os.mkfifo(tmp_path / "a.zarr" / name)
        refuse(tmp_path / "a.zarr")


def test_names_that_no_file_can_have() -> None:
    for name in ("a" * 300, "a\0b"):
        assert not is_slide(name)
        with pytest.raises(SlideError):
            open_slide(name)


def test_dicom_frames_beyond_the_file(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    header = pydicom.dataset.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3"
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.Rows = header.Columns = 16
    header.TotalPixelMatrixRows = header.TotalPixelMatrixColumns = 16 * 2**11
    header.NumberOfFrames, header.SamplesPerPixel, header.PhotometricInterpretation = 2**22, 1, "MONOCHROME2"
    header.BitsAllocated, header.PixelData = 8, bytes(256)
    header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    refuse(tmp_path / "a.dcm", "claims 4,194,304 frames")


def test_a_png_of_few_bytes_and_many_pixels(tmp_path: Path) -> None:
    data = imagecodecs.png_encode(np.zeros((20, 20, 3), np.uint8))
    (tmp_path / "a.png").write_bytes(data[:16] + struct.pack(">II", 16_000, 16_000) + data[24:])
    refuse(tmp_path / "a.png", "damaged")


def retagged(path: Path, **changes: tuple[int, int]) -> None:
    """A JPEG-tiled SVS whose entries ``t<tag>`` have the given type and value."""
    description = "Aperio Image\r\n256x256 |AppMag = 20|MPP = 0.5"
    pixels = np.zeros((256, 256, 3), np.uint8)
    tifffile.imwrite(
        path, pixels, photometric="rgb", tile=(64, 64), compression="jpeg", metadata=None, description=description
    )
    with tifffile.TiffFile(path) as tiff:
        places = {name: tiff.pages[0].tags[int(name[1:])].offset for name in changes}
    data = bytearray(path.read_bytes())
    for name, (kind, value) in changes.items():
        struct.pack_into("<H", data, places[name] + 2, kind)
        if value >= 0:
            struct.pack_into("<I", data, places[name] + 8, value)
    path.write_bytes(data)


def test_openslide_is_not_asked_for_what_would_end_the_process(tmp_path: Path) -> None:
    """It aborts where there is no memory for a tile; found by fuzzing."""
    retagged(tmp_path / "a.svs", t262=(3, 0), t323=(4, 2**31 - 1))
    with pytest.raises(SlideError, match="2147483647 x 64 pixels must be decoded in one piece"):
        open_slide(tmp_path / "a.svs")


@pytest.mark.parametrize("tag", [324, 325])
@pytest.mark.parametrize("kind", [9, 11], ids=["signed", "floating"])
def test_places_that_are_no_whole_numbers(tmp_path: Path, tag: int, kind: int) -> None:
    retagged(tmp_path / "a.svs", **{f"t{tag}": (kind, -1)})
    data = bytearray((tmp_path / "a.svs").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.svs") as tiff:
        at = tiff.pages[0].tags[tag].valueoffset
    struct.pack_into("<i" if kind == 9 else "<f", data, at, -5)
    (tmp_path / "a.svs").write_bytes(data)
    refuse(tmp_path / "a.svs")
