"""The OME-TIFF is the store at every level, says so in its XML, and is written a few tiles at a time."""

from __future__ import annotations

import shutil
import tracemalloc
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.classes import DEFAULT_CLASSES, PanopticClass, PanopticClasses
from nucleipan.errors import RegionError, StoreError
from nucleipan.exports import ExportOptions, ome_tiff
from nucleipan.exports.ome_tiff import export_ome_tiff
from nucleipan.geometry import Box
from nucleipan.ngff import n_levels_for
from nucleipan.stitch import StitchContext
from nucleipan.store import PanopticStore
from nucleipan.tiles import TileGrid

SHAPE = (601, 2101)
SLIDE = {"name": "slide.svs", "width": 4202, "height": 1202, "mpp": 0.25, "fingerprint": "ab12"}
EVERYTHING = ExportOptions()
OME = {"ome": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    context = StitchContext(TileGrid(SHAPE, Box(0, 40, *SHAPE), 512, 64, 1), 2.0)
    path = tmp_path_factory.mktemp("ome") / "slide.ome.zarr"
    made = stitch_oracle(path, random_truth(SHAPE, 400), context, shard=512)[0]
    return replace(made, spec=replace(made.spec, slide=SLIDE))


def read(store: PanopticStore, name: str, box: Box | None, level: int) -> np.ndarray:
    return store.instances(box, level) if name == "nuclei" else store.class_map(box, level)


def test_every_level_is_the_store_s(store: PanopticStore, tmp_path: Path) -> None:
    assert export_ome_tiff(store, tmp_path / "a.ome.tiff", EVERYTHING) == store.n_nuclei > 300
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as file:
        assert not file.is_bigtiff
        assert [series.name for series in file.series] == ["nuclei", "classes"]
        for series, dtype in zip(file.series, (np.uint32, np.uint8), strict=True):
            assert len(series.levels) == store.n_levels == 3
            for k, level in enumerate(series.levels):
                assert level.dtype == dtype
                np.testing.assert_array_equal(level.asarray(), read(store, series.name, None, k))
                page = level.keyframe
                assert (page.tilelength, page.tilewidth) == (512, 512)
                assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
                assert page.resolution == pytest.approx((2e4 / 2**k, 2e4 / 2**k))
                assert page.resolutionunit == tifffile.RESUNIT.CENTIMETER
        # The pyramid hangs on the two images: a reader that knows no SubIFDs sees these.
        assert [page.shape for page in file.pages] == [SHAPE, SHAPE]


def test_the_xml_says_what_it_is(store: PanopticStore, tmp_path: Path) -> None:
    export_ome_tiff(store, tmp_path / "a.ome.tiff", EVERYTHING)
    text = tifffile.TiffFile(tmp_path / "a.ome.tiff").ome_metadata
    assert text
    root = ET.fromstring(text)
    images = root.findall("ome:Image", OME)
    assert [image.get("Name") for image in images] == ["nuclei", "classes"]
    for k, (image, kind) in enumerate(zip(images, ("uint32", "uint8"), strict=True)):
        pixels = image.find("ome:Pixels", OME)
        assert pixels is not None
        assert (pixels.get("Type"), pixels.get("SizeY"), pixels.get("SizeX")) == (kind, "601", "2101")
        assert [pixels.get(f"Size{axis}") for axis in "CZT"] == ["1", "1", "1"]
        for axis in "XY":
            assert float(pixels.get(f"PhysicalSize{axis}", "")) == store.mpp == 0.5
            assert pixels.get(f"PhysicalSize{axis}Unit") == "µm"
        data = pixels.find("ome:TiffData", OME)
        assert data is not None
        assert data.get("IFD") == str(k)
    assert named_classes(root) == {0: "void"} | {c.id: c.name for c in DEFAULT_CLASSES.classes}


def named_classes(root: ET.Element) -> dict[int, str | None]:
    (note,) = root.findall(".//ome:MapAnnotation[@Namespace='nucleipan/classes']", OME)
    of_image = [ref.get("ID") for ref in root.findall("ome:Image[@Name='classes']/ome:AnnotationRef", OME)]
    assert note.get("ID") in of_image
    return {int(entry.get("K", "")): entry.text for entry in note.findall("ome:Value/ome:M", OME)}


def test_names_from_outside_make_no_broken_xml(store: PanopticStore, tmp_path: Path) -> None:
    classes = PanopticClasses(
        (PanopticClass(1, "a\x00\x0b<&\"'>{images}", True, (1, 2, 3)), *DEFAULT_CLASSES.classes[1:])
    )
    odd = replace(store, spec=replace(store.spec, classes=classes, slide=SLIDE | {"name": "\x08Ä.svs"}))
    export_ome_tiff(odd, tmp_path / "a.ome.tiff", EVERYTHING)
    root = ET.fromstring(tifffile.TiffFile(tmp_path / "a.ome.tiff").ome_metadata or "")
    assert named_classes(root)[1] == "a<&\"'>{images}"


# Level 0 exactly; the levels above from the pixel that holds the corner: 301 // 2, 301 // 4, ...
ROI = Box(103, 603, 1003, 3803)
PART = Box(51, 301, 502, 1902)


def test_a_region_is_cut_out_at_every_level(store: PanopticStore, tmp_path: Path) -> None:
    n = export_ome_tiff(store, tmp_path / "a.ome.tiff", ExportOptions(ROI))
    assert n == len(np.unique(store.instances(PART))) - 1
    assert 0 < n < store.n_nuclei
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as file:
        for series in file.series:
            assert len(series.levels) == 2
            for k, level in enumerate(series.levels):
                y, x = PART.y0 // 2**k, PART.x0 // 2**k
                height, width = -(-PART.height // 2**k), -(-PART.width // 2**k)
                expected = read(store, series.name, Box(y, x, y + height, x + width), k)
                np.testing.assert_array_equal(level.asarray(), expected)
        root = ET.fromstring(file.ome_metadata or "")
    origin = root.find(".//ome:MapAnnotation[@Namespace='nucleipan/origin']", OME)
    assert origin is not None
    values = {entry.get("K"): entry.text for entry in origin.findall("ome:Value/ome:M", OME)}
    assert (values["y_px"], values["x_px"]) == ("51", "301")


@pytest.mark.parametrize("roi", [Box(1199, 4199, 1202, 4202), Box(1, 1, 1202, 4202), Box(0, 0, 1, 1)])
def test_levels_of_a_region_stay_in_the_store(store: PanopticStore, tmp_path: Path, roi: Box) -> None:
    export_ome_tiff(store, tmp_path / "a.ome.tiff", ExportOptions(roi))
    part = roi.scaled(0.5)
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as file:
        assert file.series[0].levels[0].shape == part.shape
        assert len(file.series[0].levels) == n_levels_for(part.shape)


@pytest.mark.parametrize("roi", [Box(0, 0, 1203, 10), Box(5, 5, 5, 9)])
def test_a_region_outside_is_refused(store: PanopticStore, tmp_path: Path, roi: Box) -> None:
    with pytest.raises(RegionError):
        export_ome_tiff(store, tmp_path / "a.ome.tiff", ExportOptions(roi))
    assert list(tmp_path.iterdir()) == []


def test_a_region_of_no_pixel_is_refused(store: PanopticStore, tmp_path: Path) -> None:
    # The grid rounds sizes, so the last part of a pixel may belong to none.
    wider = replace(store, spec=replace(store.spec, slide=SLIDE | {"width": 4203}))
    with pytest.raises(RegionError, match="holds no pixel of the store"):
        export_ome_tiff(wider, tmp_path / "a.ome.tiff", ExportOptions(Box(0, 4202, 10, 4203)))


def test_the_same_store_gives_the_same_file(store: PanopticStore, tmp_path: Path) -> None:
    for name in ("a.ome.tiff", "b.ome.tiff"):
        export_ome_tiff(store, tmp_path / name, EVERYTHING)
    assert (tmp_path / "a.ome.tiff").read_bytes() == (tmp_path / "b.ome.tiff").read_bytes()


# Size


def test_large_files_are_bigtiff(store: PanopticStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ome_tiff, "_CLASSIC_BYTES", 10_000_000)
    export_ome_tiff(store, tmp_path / "a.ome.tiff", EVERYTHING)
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as file:
        assert file.is_bigtiff
        np.testing.assert_array_equal(file.series[0].asarray(), store.instances())
        np.testing.assert_array_equal(file.series[1].levels[2].asarray(), store.class_map(level=2))


@pytest.mark.parametrize(("side", "is_big"), [(24_000, False), (26_000, True)])
def test_what_32_bits_cannot_address_is_large(store: PanopticStore, side: int, is_big: bool) -> None:
    virtual = VoidStore.of(store, (side, side))
    levels = ome_tiff._levels(virtual, Box.of_shape(virtual.shape))
    pixels = 5 * sum((-(-side // 2**k)) ** 2 for k in range(virtual.n_levels))
    assert pixels <= ome_tiff._pixel_bytes(levels) < 1.1 * pixels
    assert (ome_tiff._pixel_bytes(levels) > ome_tiff._CLASSIC_BYTES) == is_big == (pixels > 2**32)


@dataclass(frozen=True)
class VoidStore(PanopticStore):
    """A store of any size without content."""

    @classmethod
    def of(cls, store: PanopticStore, shape: tuple[int, int]) -> VoidStore:
        slide = SLIDE | {"height": 2 * shape[0], "width": 2 * shape[1]}
        return cls(store.path, replace(store.spec, shape=shape, slide=slide), store.attributes)

    @property
    def n_levels(self) -> int:  # type: ignore[override]
        return n_levels_for(self.shape)

    def instances(self, box: Box | None = None, level: int = 0) -> np.ndarray:
        assert box is not None
        return np.zeros(box.shape, np.uint32)

    def class_map(self, box: Box | None = None, level: int = 0) -> np.ndarray:
        return self.instances(box, level).astype(np.uint8)


def test_memory_does_not_hold_a_plane(store: PanopticStore, tmp_path: Path) -> None:
    side = 6144
    tracemalloc.start()
    try:
        export_ome_tiff(VoidStore.of(store, (side, side)), tmp_path / "a.ome.tiff", EVERYTHING)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < side * side * 4 / 2


def test_every_pixel_is_read_once_in_tiles(
    store: PanopticStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    area: Counter[int] = Counter()
    instances = PanopticStore.instances

    def noted(self: PanopticStore, box: Box, level: int = 0) -> np.ndarray:
        assert max(box.shape) <= 512
        area[level] += box.area
        return instances(self, box, level)

    monkeypatch.setattr(PanopticStore, "instances", noted)
    export_ome_tiff(store, tmp_path / "a.ome.tiff", EVERYTHING)
    shapes = [store.array("nuclei", level).shape for level in range(3)]
    assert area == {level: height * width for level, (height, width) in enumerate(shapes)}


# Failures


def test_what_is_there_stays_until_the_new_one_is_whole(
    store: PanopticStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.ome.tiff").write_bytes(b"old")

    def fails(*args: object) -> None:
        raise KeyboardInterrupt

    class_map = PanopticStore.class_map
    monkeypatch.setattr(PanopticStore, "class_map", fails)
    with pytest.raises(KeyboardInterrupt):
        export_ome_tiff(store, tmp_path / "a.ome.tiff", EVERYTHING)
    monkeypatch.setattr(PanopticStore, "class_map", class_map)
    assert (tmp_path / "a.ome.tiff").read_bytes() == b"old"
    export_ome_tiff(store, tmp_path / "a.ome.tiff", EVERYTHING)
    assert tifffile.TiffFile(tmp_path / "a.ome.tiff").is_ome


def test_an_id_that_the_table_lacks_is_refused(store: PanopticStore, tmp_path: Path) -> None:
    copy = replace(store, path=tmp_path / "damaged.ome.zarr")
    shutil.copytree(store.path, copy.path)
    zarr.open_array(str(copy.path / "labels" / "nuclei" / "0"), mode="r+")[300, 300] = 2**31
    with pytest.raises(StoreError, match="holds nucleus 2147483648, its table ends at"):
        export_ome_tiff(copy, tmp_path / "a.ome.tiff", EVERYTHING)
    assert not (tmp_path / "a.ome.tiff").exists()
