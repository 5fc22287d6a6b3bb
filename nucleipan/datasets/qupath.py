"""Images and slides annotated in QuPath (Bankhead et al., Scientific Reports 2017), exported as GeoJSON.

::

    slide.svs      slide.geojson, also .geojson.gz, .json, .json.gz or slide.svs.geojson; any image ``open_slide`` reads

Detections and cells are nuclei: of a cell its nucleus, or its own outline if it has none. (Nuclei drawn by hand are
annotations until a script makes them detections.) Annotations are tissue, coded by their class; where they overlap,
the smaller counts. Those without a class or without an area (points, lines) say nothing about tissue.

Classes that end in ``*`` mean what they mean in QuPath. Each annotation of class ``Region*`` becomes an item of its
own: its bounding box at full resolution, unknown outside the annotation. Without any, the whole image counts as
annotated. What lies in annotations of other such classes (``Ignore*``) is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nucleipan.datasets._documents import json_list, read_json
from nucleipan.datasets._folders import listed, visible
from nucleipan.datasets._outlines import Outline, check_effort, checked_ring, draw_ids, draw_regions, fill
from nucleipan.datasets._pixels import read_rgb
from nucleipan.datasets.annotated import Annotated, Item
from nucleipan.errors import DataError
from nucleipan.geometry import Box
from nucleipan.slide import is_slide

_REGION = "Region*"
_SUFFIXES = (".geojson", ".geojson.gz", ".json", ".json.gz")
_IMAGE_SUFFIXES_OF_TWO = (".ome.tif", ".ome.tiff", ".ome.zarr")

# As versions 0.4 and later, 0.3, and 0.2 spell the type; whatever is of none of these, QuPath takes for an annotation.
_TYPE_KEYS = ("objectType", "object_type")
_NUCLEI = ("detection", "cell", "PathDetectionObject", "PathCellObject")
_IGNORED = ("tile", "tmaCore", "tma_core", "root", "PathTileObject", "TMACoreObject", "PathRootObject")
_WITHOUT_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")


@dataclass(frozen=True)
class _Objects:
    """What one image's file says; ``nuclei`` is None where it holds no detection at all: nobody marked any."""

    nuclei: list[Outline] | None
    tissue: list[Outline]
    ignored: list[Outline]

    def near(self, box: Box) -> _Objects:
        """Those that may reach into ``box``."""
        nuclei = None if self.nuclei is None else [o for o in self.nuclei if o.is_near(box)]
        return _Objects(nuclei, [o for o in self.tissue if o.is_near(box)], [o for o in self.ignored if o.is_near(box)])


def read_qupath(folder: Path) -> list[Item]:
    """Names are ``stem``, or ``stem/y0_x0`` with the corner of each ``Region*``; codes are the classes as text.

    Raises:
        DataError: an image or GeoJSON file lacks its partner, or a file is malformed.
    """
    documents = [p for p in visible(folder) if p.name.lower().endswith(_SUFFIXES)]
    images = [p for p in visible(folder) if p not in documents and is_slide(p)]
    items: list[Item] = []
    for document in documents:
        stem = _without(document.name, _SUFFIXES)
        found = [p for p in images if stem in (p.name, p.stem, _without(p.name, _IMAGE_SUFFIXES_OF_TWO))]
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise DataError(f"{document}: expected one image called {stem} beside it; found {names}")
        items += _items(_without(stem, (found[0].suffix,)), found[0], document)
        images.remove(found[0])
    if images:
        raise DataError(f"{images[0]}: has no GeoJSON file beside it; export its objects from QuPath or remove it")
    return listed(folder, items, "images or slides and, beside each, its objects as QuPath exports them (.geojson)")


def _without(name: str, suffixes: tuple[str, ...]) -> str:
    return next((name[: -len(s)] for s in suffixes if s and name.lower().endswith(s.lower())), name)


def _items(stem: str, image: Path, document: Path) -> Iterator[Item]:
    objects, regions = _read(document)
    if not regions:
        yield Item(stem, document, partial(_load, image, document, objects, None))
    for region in regions:
        # Outlines are kept, not the document: a slide has many regions, and its file may be as large as its image.
        load = partial(_load, image, document, objects.near(region.box), region)
        # Nuclei elsewhere on the slide show that they were marked here, too.
        yield Item(f"{stem}/{region.box.y0}_{region.box.x0}", document, load, may_be_empty=True)


def _load(image: Path, document: Path, objects: _Objects, region: Outline | None) -> Annotated:
    advice = f"in QuPath, draw {_REGION} annotations around what is annotated"
    pixels = read_rgb(image, None if region is None else region.box, advice)
    box = Box.of_shape(pixels.shape[:2]) if region is None else region.box
    ids, codes = (None, {}) if objects.nuclei is None else draw_ids(objects.nuclei, document, box)
    unknown = draw_regions(objects.ignored, document, box)[0] > 0
    if region is not None:
        check_effort([region], document, box)
        unknown |= ~fill(region, box)
    regions, region_codes = draw_regions(objects.tissue, document, box)
    regions[unknown] = 0
    has_tissue = len(region_codes) > 1
    return Annotated(
        pixels,
        ids,
        codes,
        regions if has_tissue else None,
        region_codes if has_tissue else (),
        unknown if unknown.any() else None,
    )


def _read(path: Path) -> tuple[_Objects, list[Outline]]:
    """The objects of one file, and its ``Region*`` annotations."""
    document = read_json(path)
    features = json_list(path, {"features": document} if isinstance(document, list) else document, "features")
    nuclei, annotations = [], []
    for feature, properties in _flat(path, features):
        kind = next((properties[key] for key in _TYPE_KEYS if key in properties), feature.get("id"))
        if kind in _NUCLEI:
            nucleus = feature.get("nucleusGeometry") or feature.get("geometry")
            nuclei.append(Outline(_rings(path, nucleus), _code(path, properties)))
        elif kind not in _IGNORED and _has_area(feature):
            annotations.append(Outline(_rings(path, feature.get("geometry")), _code(path, properties)))
    regions = [o for o in annotations if o.code == _REGION]
    tissue = [o for o in annotations if o.code and not o.code.endswith("*")]
    ignored = [o for o in annotations if o.code and o.code.endswith("*") and o.code != _REGION]
    return _Objects(nuclei or None, tissue, ignored), regions


def _flat(path: Path, features: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Features and their properties; children, which QuPath may nest in the properties, after their parents."""
    for feature in features:
        properties = feature.get("properties") or {}
        if not isinstance(properties, dict):
            raise DataError(f"{path}: a feature's properties are no object; found {str(properties)[:80]!r}")
        yield feature, properties
        if "childObjects" in properties:
            yield from _flat(path, json_list(path, properties, "childObjects"))


def _has_area(feature: dict[str, Any]) -> bool:
    geometry = feature.get("geometry")
    return not (isinstance(geometry, dict) and geometry.get("type") in _WITHOUT_AREA)


def _rings(path: Path, geometry: Any) -> tuple[np.ndarray, ...]:
    kind, parts = (geometry.get("type"), geometry.get("coordinates")) if isinstance(geometry, dict) else (None, None)
    if kind == "Polygon":
        parts = [parts]
    if kind not in ("Polygon", "MultiPolygon") or not isinstance(parts, list) or not parts:
        raise DataError(f"{path}: expected a Polygon or MultiPolygon; found {str(geometry)[:80]!r}")
    if not all(isinstance(rings, list) and rings for rings in parts):
        raise DataError(f"{path}: a {kind} has no rings; found {str(geometry)[:80]!r}")
    return tuple(checked_ring(path, ring) for rings in parts for ring in rings)


def _code(path: Path, properties: dict[str, Any]) -> str | None:
    """The class as QuPath shows it: "Tumor", or "Tumor: Positive" for one derived from another."""
    entry = properties.get("classification") or {}
    names = entry.get("names", [entry.get("name")]) if isinstance(entry, dict) else [entry]
    if not isinstance(names, list) or not all(isinstance(n, str) or n is None for n in names):
        raise DataError(f"{path}: a classification needs a name; found {str(entry)[:80]!r}")
    return ": ".join(n for n in names if n) or None
