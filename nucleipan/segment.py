"""From a slide to its panoptic store: the one function that knows every stage.

    open_slide -> at_mpp -> TileGrid -> read + transform -> network -> decode -> tile file     (per tile)
    assemble -> publish                                                                        (once)

Three threads work side by side: one reads ahead, one runs the network, one decodes and writes. A tile is done when
its file is there, so a run that was stopped continues with the tiles that are missing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from monai.transforms import Compose
from torch import Tensor

from nucleipan import __version__
from nucleipan.classes import PanopticClasses
from nucleipan.errors import ConfigError, RegionError
from nucleipan.geometry import Box
from nucleipan.network.fusion import decode_tile
from nucleipan.network.inference import InferenceNetwork, choose_device
from nucleipan.network.model import HeadOutputs
from nucleipan.network.weights import Model, ModelInfo
from nucleipan.panoptic import PanopticTile
from nucleipan.slide import Slide, SlideView, TissueMask, at_mpp, open_slide, tissue_mask
from nucleipan.slide.fingerprint import fingerprint
from nucleipan.stitch import (
    Overview,
    StitchContext,
    StitchSummary,
    StoreLayout,
    assemble,
    finished_tiles,
    tile_record,
    write_record,
)
from nucleipan.store import PanopticStore, Run, StoreSpec, exclusive, open_or_resume
from nucleipan.tiles import Tile, TileGrid
from nucleipan.transforms import SlideTiles

#: ``network`` of ``segment_slide``: float[B, 3, H, W] in [0, 1] -> HeadOutputs.
Network = Callable[[Tensor], HeadOutputs]
#: Called after every finished tile with the number done, the number in all and the name of the step.
Progress = Callable[[int, int, str], None]

DEFAULT_TILE = 2048
_OVERVIEW_SIDE = 4096
_AHEAD = 2
_SAME_MPP = 0.05

_T = TypeVar("_T")
_U = TypeVar("_U")


@dataclass(frozen=True)
class SegmentOptions:
    """How to segment; what is not given is chosen.

    Attributes:
        mpp: micrometres per pixel of the slide's full resolution, overruling what the slide says.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        roi: part of the slide to segment, in level-0 pixels; the store spans the whole slide all the same.
        tile: side of a tile's core, in pixels of the model's grid.
        overwrite: replace a store of another run instead of refusing.
        with_image: put the whole image into the store, not only an overview.
        flips: average over the four mirror images of every tile.
    """

    mpp: float | None = None
    device: str = "auto"
    roi: Box | None = None
    tile: int = DEFAULT_TILE
    overwrite: bool = False
    with_image: bool = False
    flips: bool = False


@dataclass(frozen=True)
class SegmentResult:
    """What a run did. ``n_tiles`` were needed, ``n_computed`` of them went through the network now; ``summary`` is
    None when the finished store was already there. ``redundancy`` is pixels computed over pixels kept; ``notes`` are
    what the user should know before trusting the result."""

    store: PanopticStore
    n_tiles: int
    n_computed: int
    redundancy: float
    seconds: float
    notes: tuple[str, ...]
    summary: StitchSummary | None


def segment_slide(
    path: Path,
    out: Path,
    model: Model,
    options: SegmentOptions | None = None,
    *,
    network: Network | None = None,
    transform: Callable[[SlideView], Compose] | None = None,
    progress: Progress | None = None,
) -> SegmentResult:
    """Segment one slide into ``out/<stem>.ome.zarr``.

    Args:
        path: any slide or flat image that ``open_slide`` reads.
        network: replaces the model's own network (an oracle in tests, another runtime).
        transform: builds the transforms that turn a tile into the network's input; see ``nucleipan.transforms``.
            Neither is part of what identifies a run: after changing one, start anew with ``overwrite``.

    Raises:
        SlideError, MissingPixelSizeError, RegionError: the slide cannot be used as asked.
        StoreError: the output belongs to another run or cannot be written.
        ModelError: the device does not exist.
    """
    options = options or SegmentOptions()
    progress = progress or (lambda done, total, step: None)
    device = choose_device(options.device)
    began = time.perf_counter()
    target = store_path(path, out)
    with open_slide(path) as slide, exclusive(target):
        view = at_mpp(slide, model.info.mpp, options.mpp)
        grid = plan_tiles(view, options, model.info.margin)
        notes = tuple(_notes(slide, view, options))
        run = open_or_resume(target, _spec(slide, view, grid, model.info, options), options.overwrite)
        if run.is_finished:
            return _result(PanopticStore.open(run.path), grid, 0, began, notes, None)
        context = StitchContext(grid, view.level0_per_pixel)
        network = network or InferenceNetwork(model.network, device, flips=options.flips)
        n_computed = _compute_tiles(run, view, context, _Stages(model.info, network, transform), progress)
        progress(0, 1, "stitching")
        layout = StoreLayout(path.name, model.info.classes, view.mpp, attributes=run.attributes())
        summary = assemble(run.folder, run.tiles_folder, context, layout, _overview(view, options.with_image))
        progress(1, 1, "stitching")
        return _result(run.publish(), grid, n_computed, began, notes, summary)


def plan_tiles(view: SlideView, options: SegmentOptions, margin: int) -> TileGrid:
    """The tiles of a run.

    Raises:
        RegionError: the region of interest is empty or not inside the slide.
        ConfigError: the tile is smaller than 64 or larger than 16384 pixels.
    """
    check_tile(options.tile)
    extent = Box.of_shape(view.shape)
    if options.roi is not None:
        level0 = Box.of_shape(view.slide.levels[0].shape)
        if options.roi.is_empty or not level0.contains(options.roi):
            r = options.roi
            raise RegionError(
                f"ROI {r.y0},{r.x0},{r.y1},{r.x1} is empty or not inside the slide; expected Y0,X0,Y1,X1 in pixels of "
                f"its full resolution, within 0,0,{level0.y1},{level0.x1}"
            )
        extent = options.roi.scaled(1 / view.level0_per_pixel).clipped(extent)
    return TileGrid(view.shape, extent, options.tile, margin)


def check_tile(tile: int) -> None:
    """Raises ConfigError unless a tile of this side is of use."""
    if not 64 <= tile <= 16384:
        raise ConfigError(f"a tile of {tile} pixels was asked for; expected 64 to 16384 (--tile)")


def store_path(slide_path: Path, out: Path) -> Path:
    """Where the store of a slide goes: ``out/<stem>.ome.zarr``."""
    name = slide_path.absolute().name
    for suffix in (".ome.zarr", ".ome.tiff", ".ome.tif"):
        if name.lower().endswith(suffix):
            return out / f"{name[: -len(suffix)]}.ome.zarr"
    return out / f"{Path(name).stem}.ome.zarr"


@dataclass(frozen=True)
class _Stages:
    info: ModelInfo
    network: Network
    transform: Callable[[SlideView], Compose] | None


def _compute_tiles(run: Run, view: SlideView, context: StitchContext, stages: _Stages, progress: Progress) -> int:
    """Every tile that has no file yet: read, segment, write. Returns how many went through the network."""
    tissue = tissue_mask(view)
    done = {(t.row, t.col) for t in finished_tiles(run.tiles_folder, context.grid)}
    todo = [t for t in context.grid if (t.row, t.col) not in done]
    busy = []
    for tile in todo:
        if tissue.any_in(tile.outer):
            busy.append(tile)
        else:
            write_record(run.tiles_folder, tile_record(_glass(tile, stages.info.classes), context))
    n_before = len(context.grid) - len(busy)
    progress(n_before, len(context.grid), "segmenting")
    transform = stages.transform(view) if stages.transform else None
    tiles = SlideTiles(view, busy, transform)

    def finish(item: tuple[Tile, HeadOutputs]) -> None:
        tile, outputs = item
        panoptic = _decode(tile, outputs, tissue, view.mpp, stages.info)
        write_record(run.tiles_folder, tile_record(panoptic, context))

    def compute(items: Iterable[dict[str, Any]]) -> Iterator[tuple[Tile, HeadOutputs]]:
        for item in items:
            yield item["tile"], stages.network(torch.as_tensor(item["image"])[None])

    with ThreadPoolExecutor(1, "read") as reading, ThreadPoolExecutor(1, "decode") as decoding:
        images = _in_order(reading, tiles.__getitem__, range(len(busy)))
        for n, _ in enumerate(_in_order(decoding, finish, compute(images)), 1):
            progress(n_before + n, len(context.grid), "segmenting")
    return len(busy)


def _in_order(pool: ThreadPoolExecutor, work: Callable[[_T], _U], items: Iterable[_T]) -> Iterator[_U]:
    """Results of ``work`` in order, with at most `_AHEAD` items under way; the first error stops everything."""
    pending: deque[Future[_U]] = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) > _AHEAD:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _decode(tile: Tile, outputs: HeadOutputs, tissue: TissueMask, mpp: float, info: ModelInfo) -> PanopticTile:
    """Decode, with glass settled by the tissue mask: whether a tile was skipped must not show in the result."""
    on_tissue = tissue.cut(tile.outer)
    if on_tissue.all():
        return decode_tile(outputs, tile, info.classes, mpp, info.decode)
    h, w = tile.outer.shape
    nucleus = outputs.nucleus.clone()
    glass = torch.from_numpy(~on_tissue).to(nucleus.device)
    nucleus[0, 0, :h, :w][glass] = -torch.inf
    panoptic = decode_tile(
        HeadOutputs(outputs.semantic, nucleus, outputs.offsets), tile, info.classes, mpp, info.decode
    )
    panoptic.stuff[~on_tissue] = glass_id(info.classes)
    return panoptic


def _glass(tile: Tile, classes: PanopticClasses) -> PanopticTile:
    """A tile without tissue."""
    h, w = tile.outer.shape
    none = np.zeros((0, len(classes.things)), np.float32)
    stuff = np.full((h, w), glass_id(classes), np.uint8)
    return PanopticTile(tile, stuff, np.zeros((h, w), np.int32), none, none[:, 0])


def glass_id(classes: PanopticClasses) -> int:
    """Id of the class ``background``, 0 (void) where a model has none."""
    return next((c.id for c in classes.stuff if c.name == "background"), 0)


def _overview(view: SlideView, with_image: bool) -> Overview:
    level0_mpp = view.mpp / view.level0_per_pixel
    longest_um = max(view.shape) * view.mpp
    mpp = level0_mpp if with_image else max(view.mpp, longest_um / _OVERVIEW_SIDE)
    image = at_mpp(view.slide, mpp, level0_mpp)
    return Overview(image.shape, image.mpp, image.read)


def _spec(slide: Slide, view: SlideView, grid: TileGrid, info: ModelInfo, options: SegmentOptions) -> StoreSpec:
    height, width = slide.levels[0].shape
    return StoreSpec(
        slide={
            "name": slide.path.name,
            "format": slide.format,
            "width": width,
            "height": height,
            "mpp": view.mpp / view.level0_per_pixel,
            "fingerprint": fingerprint(slide.path),
        },
        model={"name": info.name, "sha256": info.sha256, "licence": info.licence},
        config={
            "nucleipan": __version__,
            "decode": info.decode.model_dump(mode="json"),
            "with_image": options.with_image,
            "flips": options.flips,
        },
        classes=info.classes,
        shape=view.shape,
        mpp=view.mpp,
        level0_per_pixel=view.level0_per_pixel,
        extent=grid.extent,
        core=grid.core,
        margin=grid.margin,
    )


def _notes(slide: Slide, view: SlideView, options: SegmentOptions) -> Iterator[str]:
    if options.mpp is not None and slide.mpp is not None and abs(options.mpp / slide.mpp - 1) > _SAME_MPP:
        yield f"says {slide.mpp:.4g} um per pixel; --mpp {options.mpp:.4g} is used instead"
    if view.is_upsampled:
        level0_mpp = view.mpp / view.level0_per_pixel
        yield f"has {level0_mpp:.4g} um per pixel and was enlarged to the model's {view.mpp:.4g}; expect less"


def _result(
    store: PanopticStore,
    grid: TileGrid,
    n_computed: int,
    began: float,
    notes: tuple[str, ...],
    summary: StitchSummary | None,
) -> SegmentResult:
    seconds = time.perf_counter() - began
    return SegmentResult(store, len(grid), n_computed, grid.redundancy, seconds, notes, summary)
