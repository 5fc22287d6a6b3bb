"""What is fuzzed: for each target, how small valid files are made, and what is then done with a wrong one."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import scipy.io
import tifffile
import zarr

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.datasets import LAYOUTS, checked
from nucleipan.describe import describe_path
from nucleipan.edits import open_corrected
from nucleipan.errors import NucleipanError, RegionError
from nucleipan.geometry import Box
from nucleipan.slide import ArraySlide, at_mpp, open_slide, tissue_mask
from nucleipan.store import damaged_files
from nucleipan.verify import verify_store

Read = Callable[[Path], object]
_SIDE = 256


@dataclass(frozen=True)
class Target:
    """``make`` fills a folder with valid files and folders; ``read`` is what is done with one of them."""

    make: Callable[[Path], None]
    read: Read


def picture(side: int = _SIDE) -> np.ndarray:
    """uint8[h, w, 3], smooth and with some dark discs."""
    y, x = np.mgrid[:side, :side]
    rgb = np.stack([(y // 2) % 200 + 50, (x // 2) % 200 + 50, (x + y) // 4 % 200 + 50], -1)
    rgb[(y % 32 - 16) ** 2 + (x % 32 - 16) ** 2 < 80] //= 2
    return rgb.astype(np.uint8)


def labels(side: int = _SIDE) -> np.ndarray:
    """uint16[h, w], the discs of ``picture``, numbered."""
    y, x = np.mgrid[:side, :side]
    is_disc = (y % 32 - 16) ** 2 + (x % 32 - 16) ** 2 < 80
    return np.where(is_disc, 1 + y // 32 * (side // 32) + x // 32, 0).astype(np.uint16)


# Slides


def make_tiffs(folder: Path) -> None:
    folder.mkdir()
    rgb = picture()
    aperio = "Aperio Image Library v11\r\n256x256 |AppMag = 20|MPP = 0.4990"
    write = partial(tifffile.imwrite, photometric="rgb", tile=(64, 64), metadata=None)
    for compression in ("jpeg", "deflate", "lzw", "zstd", "jpeg2000", "webp", "packbits", "lzma", None):
        write(folder / f"{compression}.tif", rgb, compression=compression, resolution=(20000, 20000), resolutionunit=3)
    write(folder / "big.tif", rgb, bigtiff=True, compression="jpeg")
    write(folder / "a.svs", rgb, compression="jpeg", description=aperio)
    tifffile.imwrite(folder / "strips.tif", rgb, photometric="rgb", rowsperstrip=16, compression="deflate")
    tifffile.imwrite(folder / "planar.tif", np.moveaxis(rgb, -1, 0), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(folder / "imagej.tif", rgb, imagej=True)
    with tifffile.TiffWriter(folder / "pyramid.tif") as tiff:
        for level in range(3):
            part = rgb[:: 2**level, :: 2**level]
            tiff.write(part, photometric="rgb", tile=(64, 64), subfiletype=int(level > 0), metadata=None)
    with tifffile.TiffWriter(folder / "a.ome.tif", ome=True) as tiff:
        about = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeXUnit": "µm"}
        tiff.write(rgb, photometric="rgb", tile=(64, 64), subifds=1, metadata=about)
        tiff.write(rgb[::2, ::2], photometric="rgb", tile=(64, 64), subfiletype=1)


def make_flats(folder: Path) -> None:
    folder.mkdir()
    rgb = picture()
    rgba = np.dstack([rgb, rgb[..., 0]])
    for name, pixels in (("rgb", rgb), ("grey", rgb[..., 0]), ("rgba", rgba)):
        (folder / f"{name}.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
    (folder / "a.jpg").write_bytes(imagecodecs.jpeg_encode(rgb))
    (folder / "grey.jpg").write_bytes(imagecodecs.jpeg_encode(np.ascontiguousarray(rgb[..., 0])))


def make_zarrs(folder: Path) -> None:
    folder.mkdir()
    planes = np.moveaxis(picture(), -1, 0)
    for version in (2, 3):
        group = zarr.open_group(folder / f"v{version}.zarr", mode="w", zarr_format=version)
        sharding = {"shards": (3, 128, 128)} if version == 3 else {}
        for level in range(2):
            part = planes[:, :: 2**level, :: 2**level]
            group.create_array(str(level), data=np.ascontiguousarray(part), chunks=(3, 64, 64), **sharding)
        document = _multiscales()
        group.attrs.update({"ome": {"version": "0.5", **document}} if version == 3 else document)


def _multiscales() -> dict[str, Any]:
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": a, "type": "space", "unit": "micrometer"} for a in "yx"]
    datasets = [
        {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": [1.0, 0.5 * 2**k, 0.5 * 2**k]}]}
        for k in range(2)
    ]
    return {"multiscales": [{"name": "a", "axes": axes, "datasets": datasets}]}


def make_dicoms(folder: Path) -> None:
    """Uncompressed and JPEG frames of 64 x 64 that tile the image, without the attributes that wsidicom wants."""
    import pydicom

    folder.mkdir()
    frames = picture().reshape(4, 64, 4, 64, 3).swapaxes(1, 2).reshape(16, 64, 64, 3)
    for name, syntax in (("native", pydicom.uid.ExplicitVRLittleEndian), ("jpeg", pydicom.uid.JPEGBaseline8Bit)):
        header = pydicom.dataset.Dataset()
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
        header.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        header.file_meta.TransferSyntaxUID = syntax
        header.SOPClassUID, header.SOPInstanceUID = header.file_meta.MediaStorageSOPClassUID, "1.2.3"
        header.SeriesInstanceUID, header.Modality = "1.2.5", "SM"
        header.DimensionOrganizationType = "TILED_FULL"
        header.Rows = header.Columns = 64
        header.TotalPixelMatrixRows = header.TotalPixelMatrixColumns = _SIDE
        header.NumberOfFrames = len(frames)
        header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, "RGB", 0
        header.BitsAllocated = header.BitsStored = 8
        header.HighBit, header.PixelRepresentation = 7, 0
        header.ImagedVolumeWidth = header.ImagedVolumeHeight = _SIDE * 0.5 / 1000
        if name == "jpeg":
            header.PixelData = pydicom.encaps.encapsulate([imagecodecs.jpeg_encode(f) for f in frames])
        else:
            header.PixelData = frames.tobytes()
        header.save_as(folder / f"{name}.dcm", enforce_file_format=True)


def read_slide(path: Path) -> None:
    """As ``nucleipan info`` and the beginning of ``nucleipan segment``."""
    described = describe_path(path)
    json.dumps(described)
    with open_slide(path) as slide:
        for level, of_slide in enumerate(slide.levels[:4]):
            h, w = of_slide.shape
            for box in (Box(0, 0, min(h, 256), min(w, 256)), Box(max(0, h - 100), max(0, w - 100), h, w)):
                assert slide.read(level, box).shape == (*box.shape, 3)
        tissue_mask(at_mpp(slide, 0.5, None if slide.mpp else 0.5))


# Stores


def make_store(folder: Path) -> None:
    from exports import write_store

    folder.mkdir()
    write_store(folder / "a.ome.zarr", 1, 1)


def read_store(path: Path) -> None:
    """As ``nucleipan info`` and ``verify``, and what a viewer looks at first."""
    with suppress(NucleipanError):
        damaged_files(path)
    json.dumps(describe_path(path))
    store = open_corrected(path)
    with suppress(NucleipanError):
        verify_store(path)
    with suppress(NucleipanError):
        store.nuclei(["class", "bbox"], Box(0, 0, 100, 100))
    with suppress(RegionError):  # smaller than that
        store.instances(Box(0, 0, 256, 256))
        store.class_map(Box(0, 0, 256, 256), store.n_levels - 1)


# Weights and configurations: what these import takes seconds


def weights() -> Target:
    from nucleipan.network.build import build_network
    from nucleipan.network.fusion import DecodeConfig
    from nucleipan.network.model import PanopticNetConfig
    from nucleipan.network.weights import ModelInfo, load_model, save_model

    def make(folder: Path) -> None:
        folder.mkdir()
        tiny = PanopticNetConfig(instance_channels=(8, 8, 8, 8), semantic_channels=8)
        info = ModelInfo("tiny", 0.5, 128, DEFAULT_CLASSES, tiny, DecodeConfig(), "CC0", ("nothing (none)",))
        save_model(build_network(tiny, DEFAULT_CLASSES), info, folder / "tiny.safetensors")

    return Target(make, load_model)


def configs() -> Target:
    from nucleipan.config import load_train_config

    def make(folder: Path) -> None:
        folder.mkdir()
        for path in sorted((Path(__file__).parent.parent / "configs").glob("*.yaml")):
            (folder / path.name).write_text(path.read_text())

    return Target(make, load_train_config)


# Data sets


def make_datasets(folder: Path) -> None:
    rgb, ids = picture(), labels()
    numbers = np.unique(ids)[1:].tolist()
    _png(folder / "nuclei/images/a.png", rgb)
    _png(folder / "nuclei/labels/a.png", ids)
    _text(folder / "nuclei/classes/a.json", json.dumps({str(i): 1 + i % 5 for i in numbers}))
    _png(folder / "qupath/a.png", rgb)
    _text(folder / "qupath/a.geojson", json.dumps(_features()))
    _png(folder / "coco-panoptic/images/a.png", rgb)
    _png(folder / "coco-panoptic/panoptic_val/a.png", np.dstack([ids % 256, ids // 256, ids * 0]).astype(np.uint8))
    _text(folder / "coco-panoptic/panoptic_val.json", json.dumps(_coco(numbers)))
    _png(folder / "monuseg/Tissue Images/a.png", rgb)
    vertices = "\n".join(f'<Vertex X="{x}" Y="{y}" />' for x, y in ((3, 3), (90, 3), (90, 90.5)))
    regions = f"<Regions>\n<Region>\n<Vertices>\n{vertices}\n</Vertices>\n</Region>\n</Regions>"
    _text(
        folder / "monuseg/Annotations/a.xml", f"<Annotations>\n<Annotation>\n{regions}\n</Annotation>\n</Annotations>"
    )
    _png(folder / "consep/Train/Images/a.png", rgb)
    (folder / "consep/Train/Labels").mkdir(parents=True)
    arrays = {"inst_map": ids.astype(float), "type_map": (ids > 0).astype(float)}
    arrays |= {"inst_type": np.ones((len(numbers), 1)), "inst_centroid": np.zeros((len(numbers), 2))}
    scipy.io.savemat(folder / "consep/Train/Labels/a.mat", arrays, do_compression=True)
    _pannuke(folder / "pannuke/Fold 1", rgb, ids)


def _pannuke(folder: Path, rgb: np.ndarray, ids: np.ndarray) -> None:
    masks = np.zeros((1, *ids.shape, 6))
    masks[0, ..., 0], masks[0, ..., 5] = ids, ids == 0
    for name, array in (("images", rgb[None].astype(float)), ("masks", masks)):
        (folder / name / "fold1").mkdir(parents=True)
        np.save(folder / name / "fold1" / f"{name}.npy", array)


def _features() -> dict[str, Any]:
    def feature(kind: str, name: str, ring: list[list[float]]) -> dict[str, Any]:
        properties = {"objectType": kind, "classification": {"name": name, "color": [1, 2, 3]}}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        return {"type": "Feature", "id": "5d0f", "geometry": geometry, "properties": properties}

    square = [[10, 10], [10, 40.5], [40, 40], [40, 10], [10, 10]]
    found = [
        feature("detection", "Tumor", square),
        feature("annotation", "Stroma", [[2 * v for v in p] for p in square]),
    ]
    return {"type": "FeatureCollection", "features": [*found, feature("annotation", "Region*", square)]}


def _coco(numbers: list[int]) -> dict[str, Any]:
    segments = [{"id": i, "category_id": 1, "iscrowd": 0} for i in numbers]
    return {
        "images": [{"id": 0, "file_name": "a.png"}],
        "annotations": [{"image_id": 0, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "x", "isthing": 1}],
    }


def _png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read_dataset(path: Path) -> None:
    for item in LAYOUTS[path.name](path)[:3]:
        checked(item, allow_empty=True)


def slides(make: Callable[[Path], None]) -> Target:
    # Compiled code is loaded here, once, and not by the process of every input.
    tissue_mask(at_mpp(ArraySlide(Path("warm"), picture(), mpp=0.25), 0.5))
    if make is make_dicoms:
        importlib.import_module("wsidicom")
        importlib.import_module("nucleipan.slide._dicom_raster")
    return Target(make, read_slide)


TARGETS: dict[str, Callable[[], Target]] = {
    "open-slide": partial(slides, make_tiffs),
    "open-flat": partial(slides, make_flats),
    "open-zarr": partial(slides, make_zarrs),
    "open-dicom": partial(slides, make_dicoms),
    "open-store": partial(Target, make_store, read_store),
    "dataset": partial(Target, make_datasets, read_dataset),
    "weights": weights,
    "config": configs,
}
