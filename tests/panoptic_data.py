"""Tiny scenes with known segments, written in the published layouts of COCO panoptic, Cityscapes and PASTIS."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.datasets import cityscapes, pastis
from nucleipan.geometry import Box
from nucleipan.stitch import StitchContext
from nucleipan.store import PanopticStore
from nucleipan.tiles import TileGrid

SHAPE = (64, 96)


@dataclass(frozen=True)
class Segment:
    name: str
    is_thing: bool
    is_crowd: bool = False


@dataclass(frozen=True)
class Scene:
    """``plane`` int[h, w] says which of ``segments`` a pixel belongs to, counting from 1; 0 is void."""

    image: np.ndarray
    plane: np.ndarray
    segments: tuple[Segment, ...]


def make_scene(seed: int, things: Sequence[str], stuff: Sequence[str], *, has_crowd: bool = True) -> Scene:
    """Rectangles of every thing class, twice, on bands of stuff; void below, a crowd of the first thing at the right.

    Every class has its own grey value, so that there is something to learn.
    """
    rng = np.random.default_rng(seed)
    plane = np.repeat(np.arange(SHAPE[0]) * len(stuff) // SHAPE[0] + 1, SHAPE[1]).reshape(SHAPE)
    segments = [Segment(name, is_thing=False) for name in stuff]
    cells = rng.permutation([(y, x) for y in range(2, 50, 16) for x in range(2, 80, 16)])
    for name, (y, x) in zip([*things, *things], cells, strict=False):
        segments.append(Segment(name, is_thing=True))
        plane[y : y + rng.integers(9, 14), x : x + rng.integers(9, 14)] = len(segments)
    if has_crowd:
        segments.append(Segment(things[0], is_thing=True, is_crowd=True))
        plane[:, 86:] = len(segments)
    plane[60:] = 0
    names = ["", *stuff, *things]
    grey = np.array([0, *(20 + 200 * names.index(s.name) // len(names) for s in segments)])[plane]
    noise = rng.integers(-8, 9, (*SHAPE, 3))
    return Scene((grey[..., None] + noise).clip(0, 255).astype(np.uint8), plane, tuple(segments))


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))


def write_json(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


# -- COCO ---------------------------------------------------------------------------------------------------------


def coco_id(k: int) -> int:
    """A 24-bit id that uses all three bytes, as COCO's colours do."""
    return 70_001 * k


def rgb_of(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)


def coco_categories(scenes: Sequence[Scene]) -> list[dict[str, Any]]:
    kinds = sorted({(not s.is_thing, s.name) for scene in scenes for s in scene.segments})
    return [
        {"id": 3 * k + 1, "name": name, "isthing": int(not is_stuff), "color": [9 * k, 40, 200]}
        for k, (is_stuff, name) in enumerate(kinds)
    ]


def write_coco_panoptic(path: Path, scenes: dict[Any, Scene], categories: list[dict[str, Any]] | None = None) -> None:
    """The JSON ``path`` and its PNGs; with ``categories``, which it then does not repeat, a file of results."""
    known = coco_categories(list(scenes.values())) if categories is None else categories
    id_of = {c["name"]: c["id"] for c in known}
    document: dict[str, Any] = {"annotations": []}
    for image_id, scene in scenes.items():
        present = set(np.unique(scene.plane).tolist())
        segments = [
            {
                "id": coco_id(k),
                "category_id": id_of[s.name],
                "iscrowd": int(s.is_crowd),
                "area": 0,
                "bbox": [0, 0, 1, 1],
            }
            for k, s in enumerate(scene.segments, start=1)
            if k in present
        ]
        name = f"{image_id:012d}" if isinstance(image_id, int) else image_id
        document["annotations"].append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments})
        write_png(path.with_suffix("") / f"{name}.png", rgb_of(coco_id(1) * scene.plane))
    if categories is None:
        document["categories"] = known
        document["images"] = [{"id": i, "file_name": f"{i:012d}.png", "height": 64, "width": 96} for i in scenes]
    write_json(path, document)


def write_coco(folder: Path, scenes: dict[int, Scene], part: str = "val2017") -> None:
    """``annotations/panoptic_<part>.json``, its PNGs and ``<part>/`` with the images."""
    write_coco_panoptic(folder / "annotations" / f"panoptic_{part}.json", scenes)
    for image_id, scene in scenes.items():
        write_png(folder / part / f"{image_id:012d}.png", scene.image)


# -- Cityscapes ---------------------------------------------------------------------------------------------------


def instance_values(scene: Scene) -> np.ndarray:
    """uint16[h, w] as gtFine has it; void is 0, *unlabeled*."""
    id_of = {label.name: label.id for label in cityscapes.LABELS.values()}
    values, n_of = [0], dict.fromkeys(id_of, 0)
    for s in scene.segments:
        is_instance = s.is_thing and not s.is_crowd
        values.append(1000 * id_of[s.name] + n_of[s.name] if is_instance else id_of[s.name])
        n_of[s.name] += is_instance
    return np.array(values, np.uint16)[scene.plane]


def write_cityscapes(folder: Path, scenes: dict[str, Scene], split: str = "val") -> None:
    """Frames are called ``city_sequence_frame``."""
    for frame, scene in scenes.items():
        city = frame.split("_")[0]
        write_png(folder / "leftImg8bit" / split / city / f"{frame}_leftImg8bit.png", scene.image)
        write_png(folder / "gtFine" / split / city / f"{frame}_gtFine_instanceIds.png", instance_values(scene))
        write_png(folder / "gtFine" / split / city / f"{frame}_gtFine_color.png", scene.image)


def write_values(folder: Path, frame: str, values: np.ndarray) -> None:
    """One instance image of any values, as in ``gtFine/val``."""
    city = frame.split("_")[0]
    write_png(folder / "gtFine" / "val" / city / f"{frame}_gtFine_instanceIds.png", values.astype(np.uint16))


# -- PASTIS -------------------------------------------------------------------------------------------------------


def pastis_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """uint8[3, h, w] and int32[h, w]: what is neither parcel nor background is a void parcel."""
    classes, parcels = [pastis.VOID], [900]
    for k, s in enumerate(scene.segments, start=1):
        is_background = s.name == "Background"
        classes.append(0 if is_background else pastis.VOID if s.is_crowd else pastis.CLASSES.index(s.name))
        parcels.append(0 if is_background else 7 * k)
    plane = np.array(classes, np.uint8)[scene.plane]
    return np.stack([plane, plane * 0, plane * 0]), np.array(parcels, np.int32)[scene.plane]


def series_of(image: np.ndarray) -> np.ndarray:
    """int16[5, 10, h, w]: on three dates the image in reflectances, once a cloud, once its shadow."""
    bands = np.full((10, *image.shape[:2]), 1234, np.int16)
    bands[[2, 1, 0]] = np.rint(image.transpose(2, 0, 1) * (3000 / 255))
    return np.stack([bands, np.full_like(bands, 10000), bands, np.zeros_like(bands), bands])


def write_pastis_labels(folder: Path, scenes: dict[int, Scene]) -> None:
    for name in ("ANNOTATIONS", "INSTANCE_ANNOTATIONS"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for patch, scene in scenes.items():
        target, parcels = pastis_labels(scene)
        np.save(folder / "ANNOTATIONS" / f"TARGET_{patch}.npy", target)
        np.save(folder / "ANNOTATIONS" / f"ParcelIDs_{patch}.npy", parcels)
        np.save(folder / "INSTANCE_ANNOTATIONS" / f"INSTANCES_{patch}.npy", parcels)


def write_pastis(folder: Path, scenes: dict[int, Scene], folds: Sequence[int] = (1,)) -> None:
    """Patches belong to ``folds`` in turn."""
    write_pastis_labels(folder, scenes)
    (folder / "DATA_S2").mkdir()
    features = []
    for k, (patch, scene) in enumerate(scenes.items()):
        np.save(folder / "DATA_S2" / f"S2_{patch}.npy", series_of(scene.image))
        properties = {"ID_PATCH": patch, "Fold": folds[k % len(folds)], "dates-S2": {"0": 20180924}}
        features.append({"type": "Feature", "id": str(patch), "properties": properties, "geometry": None})
    write_json(folder / "metadata.geojson", {"type": "FeatureCollection", "features": features})
    write_json(folder / "NORM_S2_patch.json", {"Fold_1": {"mean": [0] * 10, "std": [1] * 10}})


# -- stores -------------------------------------------------------------------------------------------------------


def oracle_store(path: Path, level0_per_pixel: float = 1.0) -> PanopticStore:
    """A store of 96 x 128 pixels with the embedded models' classes."""
    shape = (96, 128)
    context = StitchContext(TileGrid(shape, Box.of_shape(shape), 64, 64, 1), level0_per_pixel)
    return stitch_oracle(path, random_truth(shape, 25), context)[0]


# -- classes of each ----------------------------------------------------------------------------------------------

STREET = (("car", "person"), ("road", "sky", "vegetation"))
FIELDS = (("Corn", "Meadow", "Beet"), ("Background",))
