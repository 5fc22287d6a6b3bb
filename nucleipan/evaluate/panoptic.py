"""Score predictions against a truth in a panoptic format (COCO, Cityscapes, PASTIS), as the formats' owners do.

Predictions may be

- stores, ``<stem>.ome.zarr``: classes by name, grids of another scale are brought to the truth's;
- COCO results: a JSON with its PNGs. For Cityscapes an ``image_id`` is ``city_sequence_frame``, for PASTIS the patch,
  and a ``category_id`` is the id of the label or class there;
- files in the truth's own layout.

Every image of the truth needs one; only parts of PASTIS (folds) of which no prediction exists are left out, because it
is scored fold by fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nucleipan.datasets.coco_document import find_coco_documents, read_coco_document
from nucleipan.errors import DataError
from nucleipan.evaluate.formats import PanopticTruth, ReadMap, Shape, TruthImage, coco_readers, only_document
from nucleipan.evaluate.reading import STORE_SUFFIX
from nucleipan.metrics.grids import nearest_pixels
from nucleipan.metrics.panoptic_evaluation import PanopticEvaluation, evaluate_segments
from nucleipan.metrics.quality import SegmentMap


class _Predictions(NamedTuple):
    """What reads them by name, and what to know; stores go by stems, the others by the truth's own names."""

    readers: Mapping[str, ReadMap]
    are_stores: bool = False
    notes: tuple[str, ...] = ()


def evaluate_panoptic(pred: Path, truth: PanopticTruth) -> PanopticEvaluation:
    """Score every image of ``truth``.

    Raises:
        DataError: an image has no prediction, or a file is missing, damaged, or of another shape or unknown classes.
    """
    found = _open_predictions(pred, truth)
    name_of = {key: _name_in(found, key, image) for key, image in truth.images.items()}
    parts = {truth.images[key].part for key, name in name_of.items() if name is not None}
    scored = {key: name_of[key] for key, image in truth.images.items() if not parts or image.part in parts}
    missing = [key for key, name in scored.items() if name is None]
    if missing or not scored:
        listed = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise DataError(f"{len(missing)} of {len(scored)} truths have no prediction in {pred}: {listed}")
    readers = {key: found.readers[name] for key, name in scored.items() if name is not None}
    result = evaluate_segments(_read(truth, readers), truth.classes)
    unmatched = sorted(found.readers.keys() - set(scored.values()))
    left_out = [] if len(scored) == len(truth.images) else [f"only {', '.join(sorted(parts))} is scored"]
    return replace(result, unmatched_predictions=tuple(unmatched), notes=(*left_out, *found.notes))


def _read(truth: PanopticTruth, readers: Mapping[str, ReadMap]) -> Iterator[tuple[str, SegmentMap, SegmentMap]]:
    for key, read_pred in readers.items():
        true = truth.images[key].read(None)
        height, width = true.ids.shape
        yield key, read_pred((height, width)), true


def _name_in(found: _Predictions, key: str, image: TruthImage) -> str | None:
    names = image.stems if found.are_stores else (key,)
    return next((name for name in names if name in found.readers), None)


def _open_predictions(pred: Path, truth: PanopticTruth) -> _Predictions:
    stores = {p.name.removesuffix(STORE_SUFFIX): p for p in sorted(pred.glob(f"*{STORE_SUFFIX}"))}
    if stores:
        readers = {stem: partial(_store_map, path, truth) for stem, path in stores.items()}
        return _Predictions(readers, are_stores=True, notes=_store_notes(list(stores.values()), truth))
    documents = [pred] if pred.suffix == ".json" else find_coco_documents(pred)
    if documents:
        document = read_coco_document(only_document(pred, documents), {c.id: c for c in truth.categories})
        return _Predictions(coco_readers(document, truth.categories))
    readers_here = {} if truth.read_layout is None else truth.read_layout(pred)
    if not readers_here:
        own = "" if truth.read_layout is None else ", nor files in the layout of the truth"
        raise DataError(f"{pred} holds neither <stem>{STORE_SUFFIX} nor a panoptic JSON with its PNGs{own}")
    return _Predictions(readers_here)


def _store_map(path: Path, truth: PanopticTruth, shape: Shape | None) -> SegmentMap:
    """Nuclei are segments with their ids, every stuff class is one."""
    from nucleipan.store import PanopticStore

    store = PanopticStore.open(path)
    number_of = {c.name: k for k, c in enumerate(truth.categories, start=1)}
    scored = np.zeros(256, np.int64)
    for c in store.classes.classes:
        scored[c.id] = number_of.get(c.name, 0)
    instances, nuclei = store.instances(), store.nuclei(columns=["id", "class_id"])
    first_stuff = max(store.last_id, int(instances.max(initial=0))) + 1
    classes = np.zeros(first_stuff + 256, np.int64)
    classes[nuclei["id"].to_numpy()] = scored[nuclei["class_id"].to_numpy()]
    classes[first_stuff:] = scored
    ids = np.where(instances > 0, instances, store.class_map().astype(np.int64) + first_stuff)
    if shape is not None and ids.shape != shape:
        try:
            rows, cols, _ = nearest_pixels(store.shape, shape, store.level0_per_pixel)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        ids = ids[np.ix_(rows, cols)]
    return SegmentMap(ids, classes, np.zeros(len(classes), bool))


def _store_notes(paths: list[Path], truth: PanopticTruth) -> tuple[str, ...]:
    from nucleipan.store import PanopticStore

    known = {c.name for path in paths for c in PanopticStore.open(path).classes.classes}
    lacking = [c.name for c in truth.categories if c.name not in known]
    if not lacking:
        return ()
    return (f"no prediction knows {', '.join(map(repr, lacking))}; they know: {', '.join(sorted(known))}",)
