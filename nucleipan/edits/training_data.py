"""Corrected fields as a data set that ``nucleipan train`` reads (layout ``nuclei``), to learn from corrections.

::

    images/<stem>_y<row>_x<column>.png    the slide in the store's own pixels
    labels/<stem>_y<row>_x<column>.png    uint16, nuclei 1, 2, ... in the order of their ids, 0 = none
    classes/<stem>_y<row>_x<column>.json  class id of each
    README.txt                            pixel size, what the codes mean, what to paste into a configuration

Training takes every pixel of a field at its word. So fields that somebody marked as checked are exported where there
are any; else those around edits, in which most nuclei are still the model's own. Fields never overlap: what a model
trains on must not be in what it is validated on. Of a nucleus on a field's border the part inside is kept.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nucleipan.edits.log import EditLog
from nucleipan.errors import DataError
from nucleipan.files import whole_folder
from nucleipan.geometry import Box
from nucleipan.slide import SlideView
from nucleipan.store.origin import slide_in_grid

#: Strips narrower than this, left over between fields that overlap, hold no whole nucleus and are not exported.
_MIN_SIDE = 64
_MAX_SIDE = 4096
_MAX_LABEL = 2**16 - 1


def training_fields(log: EditLog, field: int = 512) -> list[Box]:
    """Boxes of level-0 pixels of the store, none larger than ``field`` or overlapping another, in raster order.

    They are the checked fields, cut evenly; or, where none is marked, the squares of an even grid with edits in them.

    Raises:
        DataError: nothing is marked or edited, or ``field`` is not from 64 to 4096.
    """
    if not _MIN_SIDE <= field <= _MAX_SIDE:
        raise DataError(f"fields of {field} pixels were asked for; expected {_MIN_SIDE} to {_MAX_SIDE}")
    if log.checked:
        apart = [part for box in _without_overlaps([c.box for c in log.checked]) for part in _cut(box, field)]
    else:
        edited = [saved.edit.box for saved in log.edits]
        apart = [
            part
            for part in _cut(Box.of_shape(log.store.shape), field)
            if any(not part.clipped(box).is_empty for box in edited)
        ]
    if not apart:
        raise DataError(f"{log.store.path}: nothing is edited or marked as checked; correct nuclei, or mark a field")
    return sorted(apart)


def export_training(
    log: EditLog, slide: Path | str, out: Path | str, field: int = 512, boxes: Sequence[Box] | None = None
) -> int:
    """Write fields to the new folder ``out``; returns how many.

    ``boxes``: those to write, as ``training_fields`` would give them, which is the default.

    Raises:
        DataError: there is nothing to write, or ``out`` exists or cannot be written.
        SlideError: the slide cannot be read, or is not the one that the store was made from.
        RegionError: a box leaves the store.
    """
    wanted = training_fields(log, field) if boxes is None else list(boxes)
    out, stem = Path(out), log.store.path.name.removesuffix(".ome.zarr")
    with slide_in_grid(log.store, Path(slide)) as view, whole_folder(out) as folder:
        for name in ("images", "labels", "classes"):
            (folder / name).mkdir()
        for box in wanted:
            _write_field(log, view, box, folder, f"{stem}_y{box.y0:06d}_x{box.x0:06d}")
        (folder / "README.txt").write_text(_readme(log, out.name, len(wanted)), encoding="utf-8")
    return len(wanted)


def _write_field(log: EditLog, view: SlideView, box: Box, folder: Path, name: str) -> None:
    present, labels = np.unique(log.instances(box), return_inverse=True)
    nuclei = present[present > 0].tolist()
    if len(nuclei) > _MAX_LABEL:
        raise DataError(
            f"{name}: has {len(nuclei):,} nuclei; a label image holds {_MAX_LABEL:,}; choose smaller fields"
        )
    labels = labels.reshape(box.shape) + (0 if 0 in present else 1)
    codes = {str(k): log.class_of(nucleus) for k, nucleus in enumerate(nuclei, 1)}
    Image.fromarray(view.read(box)).save(folder / "images" / f"{name}.png")
    Image.fromarray(labels.astype(np.uint16)).save(folder / "labels" / f"{name}.png")
    (folder / "classes" / f"{name}.json").write_text(json.dumps(codes) + "\n")


def _cut(box: Box, field: int) -> list[Box]:
    """``box`` in rows and columns of parts that differ by a pixel at most and are no larger than ``field``."""
    ys, xs = _even(box.y0, box.height, field), _even(box.x0, box.width, field)
    return [Box(y0, x0, y1, x1) for y0, y1 in itertools.pairwise(ys) for x0, x1 in itertools.pairwise(xs)]


def _even(first: int, size: int, longest: int) -> list[int]:
    n = -(-size // longest)
    return [first + size * k // n for k in range(n + 1)]


def _without_overlaps(boxes: Iterable[Box]) -> list[Box]:
    """Parts of boxes, the earlier ones first: what an earlier one covers is not there again."""
    apart: list[Box] = []
    for box in boxes:
        parts = [box]
        for other in tuple(apart):
            parts = [rest for part in parts for rest in _minus(part, other)]
        apart += parts
    return [part for part in apart if min(part.shape) >= _MIN_SIDE]


def _minus(box: Box, other: Box) -> list[Box]:
    """``box`` without ``other``: up to four boxes."""
    hole = box.clipped(other)
    if hole.is_empty:
        return [box]
    around = [
        Box(box.y0, box.x0, hole.y0, box.x1), Box(hole.y1, box.x0, box.y1, box.x1),
        Box(hole.y0, box.x0, hole.y1, hole.x0), Box(hole.y0, hole.x1, hole.y1, box.x1),
    ]  # fmt: skip
    return [part for part in around if not part.is_empty]


def _readme(log: EditLog, folder: str, n_fields: int) -> str:
    """Class names and the folder's are written as JSON texts, which YAML reads whatever is in them."""
    store, model = log.store, log.store.model
    codes = "".join(f'      "{c.id}": [{json.dumps(c.name)}]\n' for c in store.classes.things)
    people = sorted({s.author for s in log.edits} | {c.author for c in log.checked})
    if log.checked:
        trust = f"Every field was marked as checked, by {', '.join(sorted({c.author for c in log.checked}))}."
    else:
        trust = (
            "The fields lie around edits and nobody marked them as checked: nuclei that were not edited are as the\n"
            "model saw them. Check whole fields and export again for annotations to rely on."
        )
    return f"""Nuclei of {store.slide.get("name")}, corrected by {", ".join(people)}

{n_fields} fields of {store.mpp:g} micrometres per pixel, {len(log.edits)} edits.
{trust}
The nuclei were found by {model.get("name")} (licence: {model.get("licence")}) before they were corrected.

images/   the slide
labels/   16-bit, 0 = no nucleus, else the number of a nucleus, which counts anew in each field
classes/  class of each nucleus:
{"".join(f"          {c.id} = {c.name}{chr(10)}" for c in store.classes.things)}
To train on them, paste this into a configuration whose data_root is the folder above this one, and state the licence
of your images. Names in brackets are classes of the model that you train; change them if it calls them otherwise.

sources:
  - folder: {json.dumps(folder)}
    layout: nuclei
    mpp: {store.mpp:g}
    licence: not stated
    allow_empty: true                  # a field without nuclei says that there are none
    codes:
{codes}"""
