"""Synthetic slides on disk: a pyramidal TIFF and, beside it, the truth.

The scene itself (``SyntheticScene``) is a function of position; here it is written tile by tile, so that the slide
may be far larger than memory. The truth has the layout that ``nucleipan.evaluate`` reads: ``labels/<stem>`` with
the instance ids, ``classes/<stem>.json`` with the class id of each, ``tissue/<stem>`` and the names of both.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.errors import DataError
from nucleipan.geometry import Box
from nucleipan.synthetic.scene import SyntheticScene

_FACTOR = 4  # between levels, as Aperio's scanners do it
_MAX_PNG_PIXELS = 1 << 26
_Reader = Callable[[Box], np.ndarray]


def write_slide(
    scene: SyntheticScene, path: str | Path, *, levels: int = 3, tile: int = 256, compression: str = "jpeg"
) -> None:
    """Write ``scene`` as a tiled pyramidal TIFF, each level four times coarser, with its pixel size in the tags.

    ``compression`` is one of tifffile's names ("jpeg", "deflate", "lzw", "none", ...). Levels that would be empty
    are left out. Coarse levels wait in a temporary file beside ``path``; memory holds a few tiles.

    Raises:
        DataError: ``levels`` < 1, or ``tile`` is not a positive multiple of 16.
    """
    if levels < 1 or tile < 16 or tile % 16:
        raise DataError(f"a pyramid needs levels >= 1 and tiles of a multiple of 16; found {levels}, {tile}")
    path = Path(path)
    is_big = scene.shape[0] * scene.shape[1] * 3 > 2**31
    shape: tuple[int, int] = scene.shape
    read: _Reader = scene.rgb
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch, tifffile.TiffWriter(path, bigtiff=is_big) as tiff:
        for level in range(levels):
            coarse_shape = (shape[0] // _FACTOR, shape[1] // _FACTOR)
            is_last = level == levels - 1 or min(coarse_shape) < 1
            coarse = None if is_last else _scratch(Path(scratch) / f"{level}", coarse_shape)
            tiff.write(
                _tiles(read, shape, tile, coarse),
                shape=(*shape, 3),
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb",
                compression=None if compression == "none" else compression,
                compressionargs={"level": 90} if compression == "jpeg" else None,
                subfiletype=1 if level else 0,
                resolution=(1e4 / scene.mpp / _FACTOR**level,) * 2,
                resolutionunit="CENTIMETER",
                description=None if level else f"nucleipan synthetic slide, seed {scene.seed}",
                metadata=None,
                software="nucleipan",
            )
            if coarse is None:
                break
            shape, read = coarse_shape, _reader(coarse)


def write_truth(scene: SyntheticScene, folder: str | Path, stem: str = "synthetic") -> None:
    """Write instances, their classes and the tissue of the whole ``scene`` in the layout ``nucleipan evaluate`` reads.

    Up to 2**26 pixels and ids below 65536 go to PNG (instances 16-bit), larger scenes to tiled deflate TIFF
    (instances 32-bit). Nuclei that others cover completely are not listed.
    """
    folder = Path(folder)
    for name in ("labels", "classes", "tissue"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if scene.shape[0] * scene.shape[1] <= _MAX_PNG_PIXELS and scene.max_id < 2**16:
        whole = Box.of_shape(scene.shape)
        labels = imagecodecs.png_encode(scene.instances(whole).astype(np.uint16))
        (folder / "labels" / f"{stem}.png").write_bytes(labels)
        (folder / "tissue" / f"{stem}.png").write_bytes(imagecodecs.png_encode(scene.stuff(whole)))
    else:
        _write_plane(folder / "labels" / f"{stem}.tif", scene.shape, scene.instances, np.uint32)
        _write_plane(folder / "tissue" / f"{stem}.tif", scene.shape, scene.stuff, np.uint8)
    classes = {str(i): c for i, c in sorted(_classes_by_id(scene).items())}
    (folder / "classes" / f"{stem}.json").write_text(json.dumps(classes), encoding="utf-8")
    for name, members in (("class_names", DEFAULT_CLASSES.things), ("tissue_names", DEFAULT_CLASSES.stuff)):
        names = {str(c.id): c.name for c in members}
        (folder / f"{name}.json").write_text(json.dumps(names), encoding="utf-8")


def _boxes(shape: tuple[int, int], tile: int) -> Iterator[Box]:
    for y in range(0, shape[0], tile):
        for x in range(0, shape[1], tile):
            yield Box(y, x, y + tile, x + tile).clipped(Box.of_shape(shape))


def _tiles(read: _Reader, shape: tuple[int, int], tile: int, coarse: np.ndarray | None) -> Iterator[np.ndarray]:
    """Tiles in file order, cut ones padded with their border; each also leaves its share of the next level."""
    for box in _boxes(shape, tile):
        pixels = read(box)
        if coarse is not None:
            h, w = box.height // _FACTOR, box.width // _FACTOR
            blocks = pixels[: h * _FACTOR, : w * _FACTOR].reshape(h, _FACTOR, w, _FACTOR, 3)
            y, x = box.y0 // _FACTOR, box.x0 // _FACTOR
            coarse[y : y + h, x : x + w] = np.rint(blocks.mean(axis=(1, 3), dtype=np.float32))
        yield np.pad(pixels, ((0, tile - box.height), (0, tile - box.width), (0, 0)), mode="edge")


def _scratch(path: Path, shape: tuple[int, int]) -> np.ndarray:
    return np.memmap(path, np.uint8, mode="w+", shape=(*shape, 3))


def _reader(pixels: np.ndarray) -> _Reader:
    return lambda box: np.asarray(pixels[box.y0 : box.y1, box.x0 : box.x1])


def _write_plane(path: Path, shape: tuple[int, int], read: _Reader, dtype: type[np.unsignedinteger]) -> None:
    tile = 256
    padded = (np.pad(read(box), ((0, tile - box.height), (0, tile - box.width))) for box in _boxes(shape, tile))
    tifffile.imwrite(
        path,
        padded,
        shape=shape,
        dtype=dtype,
        tile=(tile, tile),
        photometric="minisblack",
        compression="deflate",
        bigtiff=math.prod(shape) > 2**29,
    )


def _classes_by_id(scene: SyntheticScene) -> dict[int, int]:
    found: dict[int, int] = {}
    for box in _boxes(scene.shape, 256):
        instances, classes = scene.instances(box), scene.classes(box)
        ids, first = np.unique(instances, return_index=True)
        found.update(zip(ids.tolist(), classes.ravel()[first].tolist(), strict=True))
    found.pop(0, None)
    return found
