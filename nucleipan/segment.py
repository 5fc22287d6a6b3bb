"""From a slide to its panoptic store: the one function that knows every stage.

    open_slide -> at_mpp -> TileGrid -> read + transform -> network -> decode -> tile file     (per tile)
    assemble -> publish                                                                        (once)

What happens to a tile is in ``pipeline``; an ``Executor`` says where. A tile is done when its file is there, so a run
that was stopped continues with the tiles that are missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from monai.transforms import Compose

from nucleipan import __version__
from nucleipan.errors import ConfigError, RegionError
from nucleipan.geometry import Box
from nucleipan.network.inference import Network
from nucleipan.network.runtime import runtime
from nucleipan.network.weights import Model, ModelInfo
from nucleipan.pipeline import TileJob, choose_backend, compute_tiles, write_empty
from nucleipan.plausible import notes_of
from nucleipan.progress import Progress
from nucleipan.slide import QualityMap, Slide, SlideView, at_mpp, open_slide, quality_map, tissue_mask
from nucleipan.slide.fingerprint import fingerprint
from nucleipan.slide.metadata import scanner_metadata
from nucleipan.slide.quality import UNUSABLE, USABLE
from nucleipan.stitch import Overview, StitchContext, StitchSummary, StoreLayout, assemble, finished_tiles
from nucleipan.store import PanopticStore, StoreSpec, exclusive, open_or_resume
from nucleipan.tiles import DEFAULT_TILE, Tile, TileGrid

#: Computes tiles of a job and yields each when its file is there, in any order.
Executor = Callable[[TileJob, Sequence[Tile]], Iterable[Tile]]

_OVERVIEW_SIDE = 4096
_SAME_MPP = 0.05


@dataclass(frozen=True)
class SegmentOptions:
    """How to segment; what is not given is chosen.

    Attributes:
        mpp: micrometres per pixel of the slide's full resolution, overruling what the slide says.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        backend: ``torch``, ``openvino`` or ``openvino-int8`` (CPU only), or ``auto``: OpenVINO on a CPU if it is
            installed, in floats.
        roi: part of the slide to segment, in level-0 pixels; the store spans the whole slide all the same.
        tile: side of a tile's core, in pixels of the model's grid.
        overwrite: replace a store of another run instead of refusing.
        with_image: put the whole image into the store, not only an overview.
        flips: average over the four mirror images of every tile.
        all_tissue: segment what is under pen, folded or out of focus too, instead of leaving it void.
        keep_metadata: put what the slide's file says (scanner, dates, perhaps the patient) into the store.
    """

    mpp: float | None = None
    device: str = "auto"
    backend: str = "auto"
    roi: Box | None = None
    tile: int = DEFAULT_TILE
    overwrite: bool = False
    with_image: bool = False
    flips: bool = False
    all_tissue: bool = False
    keep_metadata: bool = False


@dataclass(frozen=True)
class SegmentResult:
    """What a run did.

    Attributes:
        store: the finished store, open.
        n_tiles: how many tiles were needed.
        n_computed: how many of them went through the network now.
        redundancy: pixels computed over pixels kept.
        seconds: of the whole run.
        notes: what the user should know before trusting the result, one line each.
        summary: what stitching found; None when the finished store was already there.
    """

    store: PanopticStore
    n_tiles: int
    n_computed: int
    redundancy: float
    seconds: float
    notes: tuple[str, ...]
    summary: StitchSummary | None


def segment_slide(
    path: str | Path,
    out: str | Path,
    model: Model,
    options: SegmentOptions | None = None,
    *,
    network: Network | None = None,
    transform: Callable[[SlideView], Compose] | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> SegmentResult:
    """Segment one slide into ``out/<stem>.ome.zarr``.

    Args:
        path: any slide or flat image that ``open_slide`` reads.
        out: folder for the store; made if it is missing. An unfinished run of the same kind in it is resumed.
        model: see ``load_model``; the slide is read at its pixel size.
        options: the defaults of ``SegmentOptions`` if not given.
        network: replaces the model's own network (an oracle in tests, another runtime).
        transform: builds the transforms that turn a tile into the network's input; see ``nucleipan.transforms``.
            Neither is part of what identifies a run: after changing one, start anew with ``overwrite``.
        executor: computes the tiles elsewhere (see ``nucleipan.cluster``); in this process by default.
        progress: called after every tile with the number done, the number in all and the name of the step.

    Returns:
        The finished store and what was done for it; a store that was finished before is not computed again.

    Raises:
        SlideError, MissingPixelSizeError, RegionError: the slide cannot be used as asked.
        StoreError: the output belongs to another run or cannot be written.
        ModelError: the device does not exist, or the backend does not suit it or the model.
    """
    path, out = Path(path), Path(out)
    options = options or SegmentOptions()
    progress = progress or (lambda done, total, step: None)
    options = replace(options, backend=choose_backend(options.backend, options.device, model))
    began = time.perf_counter()
    target = store_path(path, out)
    with open_slide(path) as slide, exclusive(target):
        view = at_mpp(slide, model.info.mpp, options.mpp)
        grid = plan_tiles(view, options, model.info.margin)
        notes = list(_notes(slide, view, options))
        run = open_or_resume(target, _spec(slide, view, grid, model.info, options), options.overwrite)
        if run.is_finished:
            return _result(PanopticStore.open(run.path), grid, 0, began, notes, None)
        context, tissue = StitchContext(grid, view.level0_per_pixel, mpp=view.mpp), tissue_mask(view)
        quality = quality_map(view, tissue)
        job = TileJob(
            path.absolute(), options.mpp, run.tiles_folder.absolute(), context, tissue, model,
            options.device, options.backend, options.flips, network=network, transform=transform,
            quality=None if options.all_tissue else quality,
        )  # fmt: skip
        n_computed = _compute_missing(job, grid, executor or partial(compute_tiles, view=view, are_last=True), progress)
        progress(0, 1, "stitching")
        attributes = run.attributes() | _provenance(options) | {"quality": _shares(quality, grid.extent)}
        layout = StoreLayout(path.name, model.info.classes, view.mpp, attributes=attributes)
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


def _compute_missing(job: TileJob, grid: TileGrid, executor: Executor, progress: Progress) -> int:
    """Every tile that has no file yet. Returns how many went through the network."""
    done = {(t.row, t.col) for t in finished_tiles(job.folder, grid)}
    busy = []
    for tile in grid:
        if (tile.row, tile.col) in done:
            continue
        if job.needs_network(tile.outer):
            busy.append(tile)
        else:
            write_empty(job, tile)
    n_before = len(grid) - len(busy)
    progress(n_before, len(grid), "segmenting")
    for n, _ in enumerate(executor(job, busy), 1):
        progress(n_before + n, len(grid), "segmenting")
    return len(busy)


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
            "mpp": options.mpp or slide.mpp,
            "fingerprint": fingerprint(slide.path),
        },
        model={"name": info.name, "sha256": info.sha256, "licence": info.licence},
        config={
            "nucleipan": __version__,
            "decode": info.decode.model_dump(mode="json"),
            "with_image": options.with_image,
            "flips": options.flips,
            "all_tissue": options.all_tissue,
            "backend": options.backend,
        },
        classes=info.classes,
        shape=view.shape,
        mpp=view.mpp,
        level0_per_pixel=view.level0_per_pixel,
        extent=grid.extent,
        core=grid.core,
        margin=grid.margin,
        metadata=scanner_metadata(slide.path) if options.keep_metadata else None,
    )


def _provenance(options: SegmentOptions) -> dict[str, Any]:
    """What ``again`` needs beside the spec; two runs that differ in it alone are the same run."""
    roi = options.roi
    return {
        "made_with": runtime(options.device, options.backend),
        "roi": None if roi is None else [roi.y0, roi.x0, roi.y1, roi.x1],
    }


def _shares(quality: QualityMap, extent: Box) -> dict[str, Any]:
    """How much tissue there is in ``extent``, shares of it that cannot be judged, and how the rest is stained."""
    mm2 = {name: quality.area_mm2(kind, extent) for name, kind in UNUSABLE.items()}
    tissue_mm2 = quality.area_mm2(USABLE, extent) + sum(mm2.values())
    return {
        "tissue_mm2": round(tissue_mm2, 6),
        **{name: round(area / tissue_mm2, 6) if tissue_mm2 else 0.0 for name, area in mm2.items()},
        "density": None if quality.density is None else [round(v, 4) for v in quality.density],
    }


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
    notes: list[str],
    summary: StitchSummary | None,
) -> SegmentResult:
    all_notes = (*notes, *notes_of(store))
    seconds = time.perf_counter() - began
    return SegmentResult(store, len(grid), n_computed, grid.redundancy, seconds, all_notes, summary)
