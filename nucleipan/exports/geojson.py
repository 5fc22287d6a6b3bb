"""Nuclei as GeoJSON detections for QuPath (File > Import objects) and anything that reads a FeatureCollection.

Coordinates are level-0 slide pixels, as QuPath's own, rounded to a hundredth. Features are written as the table
is read, a row group at a time, so that a slide of any size needs little memory; a name that ends in ``.gz`` is
compressed. The ids are UUIDs made from the slide, the model and the nucleus's id: the same store gives the same file.
"""

from __future__ import annotations

import gzip
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import shapely

from nucleipan.exports.selection import nuclei_in
from nucleipan.files import whole_file
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore

_NAMESPACE = uuid.UUID("6f2d3f5e-5d0c-5b5e-9a53-0f6f2f1c7a11")


def export_geojson(store: PanopticStore, path: Path | str, roi: Box | None = None) -> int:
    """Write the nuclei of ``store``, or those in ``roi`` (level-0 pixels), to ``path``; returns how many."""
    n = 0
    with whole_file(Path(path)) as temporary, _opened(temporary) as file:
        file.write(b'{"type": "FeatureCollection", "features": [')
        for table in nuclei_in(store, roi):
            for feature in _features(table, store):
                file.write(b",\n" if n else b"\n")
                file.write(json.dumps(feature, separators=(",", ":")).encode())
                n += 1
        file.write(b"\n]}\n")
    return n


def _features(table: pa.Table, store: PanopticStore) -> Iterator[dict[str, Any]]:
    namespace = uuid.uuid5(_NAMESPACE, json.dumps([store.slide, store.model, store.config], sort_keys=True))
    things = store.classes.things
    columns = [name for name in table.column_names if name.startswith("probability_")]
    titles = [f"probability {thing.name}" for thing in things]
    probabilities = np.stack([table[name].to_numpy() for name in columns], 1)
    areas, scores = table["area_um2"].to_numpy(), table["score"].to_numpy()
    polygons = shapely.from_wkb(table["geometry"].to_numpy())
    for k, (nucleus, class_id) in enumerate(zip(table["id"].to_pylist(), table["class_id"].to_pylist(), strict=True)):
        thing = store.classes.by_id(class_id)
        measurements = {"Area um^2": round(float(areas[k]), 3), "score": round(float(scores[k]), 4)}
        measurements |= {title: round(float(p), 4) for title, p in zip(titles, probabilities[k], strict=True)}
        yield {
            "type": "Feature",
            "id": str(uuid.uuid5(namespace, str(nucleus))),
            "geometry": {"type": "Polygon", "coordinates": _rings(polygons[k])},
            "properties": {
                "objectType": "detection",
                "name": str(nucleus),
                "classification": {"name": thing.name, "color": list(thing.color)},
                "measurements": measurements,
            },
        }


def _rings(polygon: shapely.Polygon) -> list[list[list[float]]]:
    return [shapely.get_coordinates(ring).round(2).tolist() for ring in (polygon.exterior, *polygon.interiors)]


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """``path`` to write to, compressed without a time stamp where it ends in ``.gz``."""
    with open(path, "wb") as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", 5, raw, mtime=0) as packed:
                yield cast(IO[bytes], packed)
        else:
            yield raw
