"""Phase 2: from the files of all tiles to the arrays, table and metadata of a panoptic store.

Idempotent: it starts by removing what an earlier, interrupted attempt wrote, reads tile files and changes none. The
root's ``zarr.json`` is written last; a folder that has one is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from nucleipan import ngff
from nucleipan.classes import PanopticClasses
from nucleipan.errors import StoreError
from nucleipan.geometry import Box
from nucleipan.stitch.candidates import Candidates, PlaneCache, load_candidates
from nucleipan.stitch.planes import Painter, Planes, create_levels, every_second, mean_of_four, write_pyramids
from nucleipan.stitch.record import StitchContext
from nucleipan.stitch.resolve import Resolution, resolve
from nucleipan.stitch.table import TableFrame, write_table


@dataclass(frozen=True, slots=True)
class Overview:
    """The RGB image of the store's root: a thumbnail, or the whole slide.

    Attributes:
        shape: height and width.
        mpp: its micrometres per pixel; its corner is the slide's.
        read: gives uint8[h, w, 3] for any box inside it.
    """

    shape: tuple[int, int]
    mpp: float
    read: Callable[[Box], np.ndarray]

    @classmethod
    def of_array(cls, rgb: np.ndarray, mpp: float) -> Overview:
        """An overview that is in memory, uint8[h, w, 3]."""
        whole = Box.of_shape((rgb.shape[0], rgb.shape[1]))
        return cls(whole.shape, mpp, lambda box: rgb[box.slices(whole)])


@dataclass(frozen=True, slots=True)
class StoreLayout:
    """How the store is written.

    Attributes:
        name: of the slide, shown by viewers.
        classes: of the class plane and the table.
        mpp: micrometres per pixel of the view.
        chunk, shard: sides of a zarr chunk and shard in pixels.
        row_group: rows of a parquet row group.
        attributes: further entries of the root's attribute ``nucleipan``.
    """

    name: str
    classes: PanopticClasses
    mpp: float
    chunk: int = 512
    shard: int = 2048
    row_group: int = 32768
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StitchSummary:
    """What stitching found.

    Attributes:
        n_nuclei: rows of the table.
        n_tiles: tiles joined.
        n_cut: nuclei that touch the outer side of the tile that saw them: the margin is too small for them.
        n_seam: nuclei that no tile's core claimed and the seam table kept.
        n_contested: nuclei that lost pixels to another, ``n_vanished`` of them all their pixels.
    """

    n_nuclei: int
    n_tiles: int
    n_cut: int
    n_seam: int
    n_contested: int
    n_vanished: int


def assemble(
    folder: Path, tiles_folder: Path, context: StitchContext, layout: StoreLayout, overview: Overview
) -> StitchSummary:
    """Write the store into ``folder`` from the files of all tiles of ``context.grid`` in ``tiles_folder``.

    Raises:
        StoreError: a tile file is missing or damaged, or the folder cannot be written.
    """
    try:
        return _assemble(folder, tiles_folder, context, layout, overview)
    except OSError as error:
        raise StoreError(f"{folder} cannot be completed ({error.strerror or error}); run again to resume") from error


def _assemble(
    folder: Path, tiles_folder: Path, context: StitchContext, layout: StoreLayout, overview: Overview
) -> StitchSummary:
    _remove_earlier_attempt(folder)
    # "The datasets array MUST have the same number of entries (scale levels) as the original unlabeled image."
    n_levels = ngff.n_levels_for(context.grid.slide_shape)
    frame = TableFrame(layout.classes, layout.mpp, context.level0_per_pixel)
    with ThreadPoolExecutor(1, "beside labels") as pool:
        overview_written = pool.submit(_write_overview, folder, overview, n_levels, layout)
        candidates = load_candidates(tiles_folder, context)
        cache = PlaneCache(tiles_folder, candidates.tiles)
        resolution = resolve(candidates, cache, context.level0_per_pixel)
        table_written = pool.submit(
            write_table, folder / "nuclei.parquet", tiles_folder, candidates, resolution, frame, layout.row_group
        )
        _write_labels(folder, candidates, resolution, cache, context, layout)
        overview_written.result()
        table_written.result()

    summary = _summary(candidates, resolution)
    attributes = ngff.image_attributes(layout.name, overview.mpp, n_levels, layout.mpp)
    attributes["nucleipan"] = layout.attributes | {"stitching": asdict(summary)}
    zarr.create_group(str(folder), attributes=attributes)
    return summary


def _remove_earlier_attempt(folder: Path) -> None:
    """Remove arrays, table and metadata, the root's first: a folder that has one counts as complete."""
    (folder / "zarr.json").unlink(missing_ok=True)
    (folder / "nuclei.parquet").unlink(missing_ok=True)
    shutil.rmtree(folder / "labels", ignore_errors=True)
    for level in folder.glob("[0-9]*"):
        shutil.rmtree(level)


def _write_labels(
    folder: Path, candidates: Candidates, resolution: Resolution, cache: PlaneCache, context: StitchContext,
    layout: StoreLayout,
) -> None:  # fmt: skip
    things = layout.classes.thing_ids[candidates.best_thing[resolution.candidate_of_id]]
    painter = Painter(candidates, resolution, cache, np.concatenate([np.zeros(1, np.uint8), things]))
    shape, labels = context.grid.slide_shape, folder / "labels"
    n_levels, sides = ngff.n_levels_for(shape), (layout.chunk, layout.shard)
    nuclei = create_levels(labels / "nuclei", shape, np.uint32, n_levels, sides)
    classes = create_levels(labels / "classes", shape, np.uint8, n_levels, sides)
    write_pyramids((nuclei, classes), layout.shard, painter.paint, every_second)
    for name, legend in (("nuclei", None), ("classes", layout.classes)):
        attributes = ngff.label_attributes(name, layout.mpp, n_levels, legend)
        zarr.create_group(str(labels / name), attributes=attributes)
    zarr.create_group(str(labels), attributes=ngff.labels_attributes(["nuclei", "classes"]))


def _write_overview(folder: Path, overview: Overview, n_levels: int, layout: StoreLayout) -> None:
    def leaf(box: Box) -> Planes:
        return (np.moveaxis(overview.read(box), -1, 0),)

    levels = create_levels(folder, (3, *overview.shape), np.uint8, n_levels, (layout.chunk, layout.shard))
    write_pyramids((levels,), layout.shard, leaf, mean_of_four)


def _summary(candidates: Candidates, resolution: Resolution) -> StitchSummary:
    nuclei = resolution.candidate_of_id
    n_vanished = int((resolution.rank > 0).sum()) - len(nuclei)
    return StitchSummary(
        n_nuclei=len(nuclei),
        n_tiles=len(candidates.tiles),
        n_cut=int(candidates.is_cut[nuclei].sum()),
        n_seam=int((~candidates.is_owned[nuclei]).sum()),
        n_contested=len(resolution.remainders) + n_vanished,
        n_vanished=n_vanished,
    )
