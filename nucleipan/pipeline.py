"""What happens to a tile: read, transform, network, decode, file.

On a GPU the three stages overlap, each in a thread of its own, so that the slowest sets the pace::

    view.read + transform  ->  network  ->  decode + tile file

On a CPU the network alone keeps all cores busy, and all of them wait for one that is taken away. There a few tiles go
through the network one after the other; then, while it rests, they are decoded and the next are read, a tile a core.

A tile is done when its file is there: any process may compute any tile at any time, twice if need be, and nothing has
to be told to anybody. ``TileJob`` holds what a process must know for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from monai.transforms import Compose

from nucleipan.classes import GLASS_NAME, VOID_ID, PanopticClasses
from nucleipan.errors import ModelError
from nucleipan.geometry import Box
from nucleipan.network.fusion import decode_tile
from nucleipan.network.inference import FlipAverage, InferenceNetwork, Network, Outputs, choose_device, rest
from nucleipan.network.quantize import Quantization
from nucleipan.network.regions import RegionNet
from nucleipan.network.weights import Model
from nucleipan.panoptic import PanopticTile
from nucleipan.slide import QualityMap, SlideView, TissueMask, at_mpp, open_slide
from nucleipan.stitch import StitchContext, tile_record, write_record
from nucleipan.tiles import Tile
from nucleipan.transforms import SlideTiles

INT8 = "openvino-int8"
BACKENDS = ("auto", "torch", "openvino", INT8)

_AHEAD = 1
# Tiles that wait for being decoded: each holds 100 MB or so.
_MOST_TOGETHER = 4

_T = TypeVar("_T")
_U = TypeVar("_U")


@dataclass(frozen=True, eq=False)
class TileJob:
    """What a process must know to compute tiles of a run; it can be sent to another machine.

    Attributes:
        slide: path of the slide, and ``mpp``, its pixel size where that was given by the user.
        folder: where the files of finished tiles go. Both must be reachable from where tiles are computed.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``, of the machine that computes.
        backend: ``torch``, ``openvino`` or ``openvino-int8`` (these compute on the CPU only).
        n_threads: of the network on a CPU; None leaves it to torch.
        quality: what of the tissue cannot be judged and becomes void; None judges all of it.
        network: replaces the model's own network.
        transform: builds the transforms that turn a tile into the network's input.
    """

    slide: Path
    mpp: float | None
    folder: Path
    context: StitchContext
    tissue: TissueMask
    model: Model
    device: str = "auto"
    backend: str = "torch"
    flips: bool = False
    n_threads: int | None = None
    network: Network | None = None
    transform: Callable[[SlideView], Compose] | None = None
    quality: QualityMap | None = None

    def void(self, box: Box) -> np.ndarray | None:
        """bool[h, w], pixels of ``box`` that become void; None where there are none."""
        if self.quality is None or not self.quality.has_void(box):
            return None
        return self.quality.void(box)

    def needs_network(self, box: Box) -> bool:
        """Whether ``box`` holds tissue that is not void."""
        if not self.tissue.any_in(box):
            return False
        void = self.void(box)
        return void is None or bool((self.tissue.cut(box) & ~void).any())


def choose_backend(name: str, device: str, model: Model | None = None) -> str:
    """The backend for a device; ``auto`` is OpenVINO on a CPU, in floats, if it is installed and knows the network.

    Raises:
        ModelError: there is no such backend, it is not installed, or it does not run on the device or the model.
    """
    is_cpu = choose_device(device).type == "cpu"
    is_installed = find_spec("openvino") is not None
    is_traceable = model is None or not isinstance(model.network, RegionNet)
    if name == "auto":
        return "openvino" if is_cpu and is_installed and is_traceable else "torch"
    if name not in BACKENDS:
        raise ModelError(f"backend {name!r} is unknown; use {', '.join(BACKENDS)}")
    if name == "torch":
        return name
    if not is_traceable:
        raise ModelError(f"backend {name} has no Mask R-CNN, which this model is; use torch")
    if not is_installed:
        raise ModelError(f"backend {name} is not installed; pip install 'nucleipan[openvino]', or use torch")
    if not is_cpu:
        raise ModelError(f"backend {name} computes on the CPU; device {device!r} needs torch")
    if name == INT8 and model is not None:
        _quantization(model)
    return name


def compute_tiles(
    job: TileJob, tiles: Sequence[Tile], view: SlideView | None = None, are_last: bool = False
) -> Iterator[Tile]:
    """Segment ``tiles`` and write their files; yields each tile when its file is there.

    ``view`` is the job's slide in the job's grid if it is open already. After tiles that ``are_last`` the network gives
    back the memory it works in: stitching needs some too.

    Raises:
        SlideError: the slide cannot be read.
        StoreError: a file cannot be written.
        ModelError: the device does not exist.
    """
    if view is None:
        with open_slide(job.slide) as slide:
            yield from _compute(job, tiles, at_mpp(slide, job.model.info.mpp, job.mpp), are_last)
    else:
        yield from _compute(job, tiles, view, are_last)


def write_empty(job: TileJob, tile: Tile) -> None:
    """Write the file of a tile of glass and void: nothing to compute."""
    h, w = tile.outer.shape
    classes, void = job.model.info.classes, job.void(tile.outer)
    none = np.zeros((0, len(classes.things)), np.float32)
    stuff = np.full((h, w), glass_id(classes), np.uint8)
    if void is not None:
        stuff[void] = VOID_ID
    empty = PanopticTile(tile, stuff, np.zeros((h, w), np.int32), none, none[:, 0])
    write_record(job.folder, tile_record(empty, job.context))


def glass_id(classes: PanopticClasses) -> int:
    """Id of the class ``background``, 0 (void) where a model has none."""
    return next((c.id for c in classes.stuff if c.name == GLASS_NAME), 0)


def _compute(job: TileJob, tiles: Sequence[Tile], view: SlideView, are_last: bool) -> Iterator[Tile]:
    if job.n_threads is not None:
        torch.set_num_threads(job.n_threads)
    network = job.network or _ready(job.model, job.device, job.backend, job.flips, job.n_threads)
    dataset = SlideTiles(view, tiles, job.transform(view) if job.transform else None)

    def compute(item: dict[str, Any]) -> tuple[dict[str, Any], Outputs]:
        return item, network(torch.as_tensor(item.pop("image"))[None])

    def finish(work: tuple[dict[str, Any], Outputs]) -> Tile:
        item, outputs = work
        panoptic = _decode(item["tile"], outputs, job, view.mpp)
        # Transforms that do not begin with ours leave no pixels: then stains are not measured.
        write_record(job.folder, tile_record(panoptic, job.context, item.get("pixels")))
        return item["tile"]

    run = _in_turns if choose_device(job.device).type == "cpu" else _side_by_side
    try:
        yield from run(len(tiles), dataset.__getitem__, compute, finish)
    finally:
        if are_last:
            rest(network)


def _side_by_side(
    n: int, read: Callable[[int], _T], compute: Callable[[_T], _U], finish: Callable[[_U], Tile]
) -> Iterator[Tile]:
    """Items 0 to n - 1 through three stages that overlap; the first error stops everything."""
    with ThreadPoolExecutor(1, "read") as reading, ThreadPoolExecutor(1, "decode") as decoding:
        items = _in_order(reading, read, range(n))
        yield from _in_order(decoding, finish, map(compute, items))


def _in_turns(
    n: int, read: Callable[[int], _T], compute: Callable[[_T], _U], finish: Callable[[_U], Tile]
) -> Iterator[Tile]:
    """The same, with nothing beside ``compute``; what else there is is done for a few items at once."""
    n_together = min(_MOST_TOGETHER, torch.get_num_threads())
    with ThreadPoolExecutor(n_together, "tile") as pool:
        coming = [pool.submit(read, i) for i in range(min(n_together, n))]
        for first in range(n_together, n + n_together, n_together):
            # No list of items is kept: each is let go as soon as it is used.
            finished = deque(compute(coming.pop(0).result()) for _ in range(len(coming)))
            tiles = [pool.submit(finish, finished.popleft()) for _ in range(len(finished))]
            coming = [pool.submit(read, i) for i in range(first, min(first + n_together, n))]
            yield from (tile.result() for tile in tiles)


@lru_cache(maxsize=1)
def _ready(model: Model, device: str, backend: str, flips: bool, n_threads: int | None) -> Network:
    """The model's network, prepared; kept for the next slide or the next few tiles."""
    if isinstance(model.network, RegionNet):
        if flips:
            raise ModelError(f"{model.info.name}: regions of mirror images cannot be averaged; leave flips out")
        return InferenceNetwork(model.network, choose_device(device))
    if backend in ("openvino", INT8):
        from nucleipan.network.openvino import OpenVinoNetwork

        quantization = _quantization(model) if backend == INT8 else None
        network: Callable[[torch.Tensor], Any] = OpenVinoNetwork(model.network, n_threads, quantization)
    else:
        network = InferenceNetwork(model.network, choose_device(device))
    return FlipAverage(network) if flips else network


def _quantization(model: Model) -> Quantization:
    if model.quantization is None:
        raise ModelError(
            f"{model.info.name} was never measured for {INT8}; fine-tune or retrain it with this version, or use "
            "--backend openvino"
        )
    return model.quantization


def _in_order(pool: ThreadPoolExecutor, work: Callable[[_T], _U], items: Iterable[_T]) -> Iterator[_U]:
    """Results of ``work`` in order, with at most `_AHEAD` items under way; the first error stops everything."""
    pending: deque[Future[_U]] = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) > _AHEAD:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _decode(tile: Tile, outputs: Outputs, job: TileJob, mpp: float) -> PanopticTile:
    """Decode, with glass and void settled by the maps: whether a tile was skipped must not show in the result."""
    info, on_tissue = job.model.info, job.tissue.cut(tile.outer)
    if not on_tissue.all():
        outputs = outputs.without_nuclei(torch.from_numpy(~on_tissue))
    panoptic = decode_tile(outputs, tile, info.classes, mpp, info.decode)
    panoptic.stuff[~on_tissue] = glass_id(info.classes)
    void = job.void(tile.outer)
    return panoptic if void is None else panoptic.without(void)
