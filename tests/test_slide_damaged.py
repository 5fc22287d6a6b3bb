"""Slides that must be refused, each with one line that names the file and says what to do."""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr

from nucleipan.errors import SlideError
from nucleipan.geometry import Box
from nucleipan.slide import open_slide


def noise(h: int, w: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (h, w, channels), np.uint8)


def refuse(path: Path, *words: str) -> None:
    """Opening, or at latest reading everything, must fail with one line that holds all words."""
    with pytest.raises(SlideError) as caught, open_slide(path) as slide:
        slide.read(0, Box.of_shape(slide.levels[0].shape))
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


def write_tiff(path: Path, **options: Any) -> None:
    tifffile.imwrite(path, noise(300, 400), tile=(64, 64), photometric="rgb", metadata=None, **options)


def test_missing_file(tmp_path: Path) -> None:
    refuse(tmp_path / "absent.svs", "no such file")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.svs").touch()
    refuse(tmp_path / "a.svs", "empty")


def test_text_file_with_a_slide_name(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_text("not a slide, just words\n" * 50)
    refuse(tmp_path / "a.svs", "not an image of a known format", "expected")


def test_plain_folder(tmp_path: Path) -> None:
    refuse(tmp_path, "folder")


@pytest.mark.parametrize("keep", [6, 200, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("compression", ["jpeg", "deflate", None])
def test_truncated_tiff(tmp_path: Path, keep: float, compression: str | None) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, compression=compression)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    refuse(path)


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_tile_overwritten_with_zeros(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, compression=compression)
    with tifffile.TiffFile(path) as tiff:
        offset, size = tiff.pages[0].dataoffsets[7], tiff.pages[0].databytecounts[7]
    data = bytearray(path.read_bytes())
    data[offset + size // 2 : offset + size] = bytes(size - size // 2)
    path.write_bytes(data)
    refuse(path, "tile 7")


def test_jpeg_tile_that_claims_a_huge_image(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        offset, size = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xc0", offset, offset + size)
    data[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
    path.write_bytes(data)
    refuse(path, "claims")


@pytest.mark.parametrize("claimed", [0, 2**31, 2**32 - 1])
def test_absurd_tiff_size(tmp_path: Path, claimed: int) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path)
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[0].tags[256]
    data = bytearray(path.read_bytes())
    data[tag.offset + 2 : tag.offset + 12] = struct.pack("<HII", 4, 1, claimed)
    path.write_bytes(data)
    refuse(path)


@pytest.mark.parametrize("dtype", ["uint16", "float32", "bool"])
def test_pixels_that_are_not_8_bit(tmp_path: Path, dtype: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(64, 64).astype(dtype), photometric="rgb")
    refuse(tmp_path / "a.tif", "expected 8-bit RGB or grey")


def test_stack_of_images(tmp_path: Path) -> None:
    for options in ({}, {"imagej": True}, {"ome": True}):
        tifffile.imwrite(tmp_path / "a.tif", np.stack([noise(64, 64)] * 4), photometric="rgb", **options)
        refuse(tmp_path / "a.tif", "stack of 4")


def test_fluorescence_channels(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.stack([noise(64, 64)[..., 0]] * 5), ome=True, metadata={"axes": "CYX"})
    refuse(tmp_path / "a.tif", "5 channels")


def test_palette_and_cmyk_tiff(tmp_path: Path) -> None:
    colormap = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", noise(64, 64)[..., 0], photometric="palette", colormap=colormap)
    refuse(tmp_path / "a.tif", "colours")
    tifffile.imwrite(tmp_path / "b.tif", noise(64, 64, 4), photometric="separated")
    refuse(tmp_path / "b.tif", "colours")


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("keep", [30, 0.5, 0.98])
def test_truncated_flat_image(tmp_path: Path, kind: str, keep: float) -> None:
    data = getattr(imagecodecs, f"{kind}_encode")(noise(200, 200))
    path = tmp_path / "a.xyz"
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    refuse(path)


def test_16_bit_png(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(noise(20, 20).astype(np.uint16)))
    refuse(tmp_path / "a.png", "expected 8-bit")


@pytest.mark.parametrize("side", [0, 60_000, 2**31 - 1])
def test_png_that_claims_a_huge_image(tmp_path: Path, side: int) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "a.png").write_bytes(body + b"\0\0\0\0IEND\xaeB`\x82")
    refuse(tmp_path / "a.png", "pixels")


def write_zarr(path: Path, shape: tuple[int, ...] = (3, 64, 64), dtype: str = "u1", **changes: Any) -> None:
    group = zarr.open_group(path, mode="w")
    group.create_array("0", shape=shape, dtype=dtype, chunks=shape)
    axes = [{"name": a, "type": "space"} for a in changes.get("axes", "cyx")]
    multiscale = {"axes": axes, "datasets": [{"path": changes.get("dataset", "0")}]}
    group.attrs["ome"] = {"multiscales": changes.get("multiscales", [multiscale])}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"dtype": "u2"}, "8-bit RGB"),
        ({"shape": (7, 64, 64)}, "one RGB plane"),
        ({"shape": (5, 3, 64, 64), "axes": "zcyx"}, "one RGB plane"),
        ({"axes": "abc"}, "axes"),
        ({"dataset": "../../etc"}, "leads out"),
        ({"dataset": "/etc"}, "leads out"),
        ({"dataset": "9"}, "cannot be opened"),
        ({"multiscales": []}, "NGFF"),
        ({"multiscales": [{"axes": 3}]}, "NGFF"),
        ({"shape": (3, 2**31, 2**31)}, "pixels"),
    ],
)
def test_ome_zarr_metadata(tmp_path: Path, options: dict[str, Any], word: str) -> None:
    write_zarr(tmp_path / "a.zarr", **options)
    refuse(tmp_path / "a.zarr", word)


def test_damaged_zarr_chunk(tmp_path: Path) -> None:
    write_zarr(tmp_path / "a.zarr")
    group = zarr.open_group(tmp_path / "a.zarr", mode="r+")
    group["0"][:] = np.moveaxis(noise(64, 64), -1, 0)
    chunk = tmp_path / "a.zarr" / "0" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:500])
    refuse(tmp_path / "a.zarr", "damaged chunk")


def test_zarr_json_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text("{")
    refuse(tmp_path, "folder")
    (tmp_path / "zarr.json").write_text(json.dumps([1, 2]))
    refuse(tmp_path, "folder")


@pytest.mark.shared
def test_real_broken_slide(shared_slides: Path) -> None:
    refuse(shared_slides / "broken.svs", "expected")


@pytest.mark.shared
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.999])
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "small_dicom.dcm"])
def test_truncated_real_slide(shared_slides: Path, tmp_path: Path, name: str, keep: float) -> None:
    data = (shared_slides / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(keep * len(data))])
    refuse(tmp_path / name)


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_random_damage_never_surprises(tmp_path: Path, compression: str) -> None:
    """Whatever bytes are changed: pixels of the right shape or a ``SlideError``, nothing else."""
    write_tiff(tmp_path / "a.tif", compression=compression)
    original = (tmp_path / "a.tif").read_bytes()
    random = np.random.default_rng(5)
    for _ in range(60):
        data = bytearray(original)
        # Most damage goes to the directory, which lies at both ends of the file.
        for at in random.choice([random.integers(0, 700), random.integers(0, len(data))], 3):
            data[at] = random.integers(0, 256)
        (tmp_path / "b.tif").write_bytes(data)
        with contextlib.suppress(SlideError), open_slide(tmp_path / "b.tif") as slide:
            h, w = slide.levels[0].shape
            box = Box(0, 0, min(h, 300), min(w, 400))
            assert slide.read(0, box).shape == (*box.shape, 3)
