"""Where the time goes, how it grows with the slide, and how far it is from what this machine can do at best.

    python benchmarks/performance.py stages SLIDE [--model nucleipan-fast]
    python benchmarks/performance.py scaling --gpx 0.1 1 4 --work DIR
    python benchmarks/performance.py workers SLIDE

``stages`` runs each stage alone on every tile of a slide, then the whole, and puts the ceilings beside it: decoding the
slide's JPEG, the network's arithmetic, writing labels. ``scaling`` does whole runs on synthetic slides of growing size
(one scene of 4096 x 4096 px repeated) in processes of their own, with their peak memory and the time of each step.
``workers`` compares one process with two, the same number of threads each. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import imagecodecs
import numpy as np
import tifffile
import torch

from nucleipan.geometry import Box
from nucleipan.network.fusion import decode_tile
from nucleipan.network.weights import Model, load_model
from nucleipan.pipeline import _ready, choose_backend
from nucleipan.segment import SegmentOptions, plan_tiles, segment_slide
from nucleipan.slide import at_mpp, open_slide, tissue_mask
from nucleipan.stitch import StitchContext, tile_record, write_record
from nucleipan.stitch.planes import create_levels, every_second, write_pyramids
from nucleipan.synthetic import SyntheticScene
from nucleipan.tiles import DEFAULT_TILE, Tile
from nucleipan.transforms import SlideTiles

_SCENE = 4096
_TIFF_TILE = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (("stages", stages), ("workers", workers), ("whole", whole)):
        command = commands.add_parser(name)
        command.add_argument("slide", type=Path)
        command.add_argument("--model", default="nucleipan-fast")
        command.add_argument("--tile", type=int, default=DEFAULT_TILE)
        command.add_argument("--backend", default="auto")
        command.add_argument("--repeats", type=int, default=0)
        command.set_defaults(run=run)
    command = commands.add_parser("scaling")
    command.add_argument("--gpx", type=float, nargs="+", default=[0.1, 1.0, 4.0])
    command.add_argument("--model", default="nucleipan-fast")
    command.add_argument("--work", type=Path, required=True, help="folder for the slides, which are kept")
    command.set_defaults(run=scaling)
    args = parser.parse_args()
    args.run(args)


@dataclass
class Clock:
    """Seconds of wall time and of processor time by name, summed."""

    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = self.wall.get(name, 0) + time.perf_counter() - wall
        self.cpu[name] = self.cpu.get(name, 0) + time.process_time() - cpu

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(name):
                return function(*args, **kwargs)

        return timed


# One stage after the other


def stages(args: argparse.Namespace) -> None:
    model, clock = load_model(args.model), Clock()
    network = _ready(model, "auto", choose_backend(args.backend, "auto", model), False, None)
    with tempfile.TemporaryDirectory() as scratch, open_slide(args.slide) as slide:
        view = at_mpp(slide, model.info.mpp)
        grid = plan_tiles(view, SegmentOptions(tile=args.tile), model.info.margin)
        tissue, context = tissue_mask(view), StitchContext(grid, view.level0_per_pixel, mpp=view.mpp)
        tiles = [t for t in grid if tissue.any_in(t.outer)]
        n_pixels = sum(t.core.area for t in tiles)
        for is_warm in (False, True):  # the first tile compiles, and fills caches
            for tile in tiles if is_warm else tiles[:1]:
                with clock("read") if is_warm else _nothing():
                    view.read(tile.outer)
                item = SlideTiles(view, [tile])[0]
                with clock("network") if is_warm else _nothing():
                    outputs = network(torch.as_tensor(item["image"])[None])
                with clock("decode") if is_warm else _nothing():
                    panoptic = decode_tile(outputs, tile, model.info.classes, view.mpp, model.info.decode)
                with clock("stitch (tile)") if is_warm else _nothing():
                    record = tile_record(panoptic, context, item["pixels"])
                with clock("write (tile)") if is_warm else _nothing():
                    write_record(Path(scratch), record)
        with clock("ceiling: labels to zarr"):
            _write_labels_alone(Path(scratch), view.shape)
    with open_slide(args.slide) as slide, clock("ceiling: JPEG of all tissue tiles"):
        _decode_alone(at_mpp(slide, model.info.mpp), tiles)
    whole_run = _whole(args.slide, args.model, args.tile, args.backend, repeats=5)
    print(
        f"{args.slide.name}, {model.info.name}: {len(tiles)} tiles of {args.tile} with tissue, {n_pixels / 1e6:.1f} MP"
    )
    print(f"margins: {sum(t.outer.area for t in tiles) / n_pixels:.2f} x the pixels kept\n")
    print(f"{'alone':<36}    wall s    CPU s    ms/MP")
    for name, wall in clock.wall.items():
        print(f"{name:<36} {wall:9.2f} {clock.cpu[name]:8.2f} {1e3 * wall / (n_pixels / 1e6):8.1f}")
    print(f"\n{'in one run':<36}    wall s    CPU s")
    for name, wall in whole_run["wall"].items():
        print(f"{name:<36} {wall:9.2f} {whole_run['cpu'][name]:8.2f}")
    rest = sum(clock.cpu[n] for n in ("decode", "stitch (tile)", "write (tile)")) + whole_run["cpu"]["assemble"]
    alone = whole_run["network_s"]
    print(f"\nof {len(alone)}, in turn: network alone   " + " ".join(f"{s:6.2f}" for s in alone))
    print("               whole run       " + " ".join(f"{s:6.2f}" for s in whole_run["total_s"]))
    print(f"best total / best network alone     {min(whole_run['total_s']) / min(alone):9.2f}")
    print(f"decode + stitch + write, of all CPU {rest / whole_run['cpu']['total']:9.1%}")
    print(f"peak memory                         {whole_run['peak_gib']:9.2f} GiB")


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _decode_alone(view: Any, tiles: list[Tile]) -> None:
    """Every level pixel under the tiles' cores once, as the slide's format decodes it, nothing resampled."""
    level = Box.of_shape(view.slide.levels[view.level].shape)
    for tile in tiles:
        view.slide.read(view.level, tile.core.scaled(view.scale).clipped(level))


def _write_labels_alone(folder: Path, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    ids = np.kron(rng.integers(0, 50, (128, 128), np.uint32), np.ones((16, 16), np.uint32))
    levels = create_levels(folder / "ceiling", shape, np.uint32, 4, (512, 2048))
    write_pyramids((levels,), 2048, lambda box: (ids[: box.height, : box.width],), every_second)


# Whole runs


def whole(args: argparse.Namespace) -> None:
    """Runs in this process, as JSON on the last line."""
    print(json.dumps(_run(args.slide, args.model, args.tile, args.backend, args.repeats)))


def _whole(slide: Path, model: str, tile: int, backend: str = "auto", repeats: int = 0) -> dict[str, Any]:
    command = [sys.executable, __file__, "whole", str(slide), "--model", model, "--tile", str(tile)]
    command += ["--backend", backend, "--repeats", str(repeats)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _run(slide: Path, model_name: str, tile: int, backend: str, repeats: int) -> dict[str, Any]:
    """Figures of a whole run, the last; ``repeats`` times before, the network alone and a whole run in turn."""
    clock, model = Clock(), load_model(model_name)
    # What assembling is made of, and the mask: the steps whose cost could grow faster than the slide.
    segment, stitching = sys.modules["nucleipan.segment"], sys.modules["nucleipan.stitch.assemble"]
    steps = (
        (segment, "tissue_mask", "tissue mask"),
        (segment, "_compute_missing", "tiles"),
        (segment, "assemble", "assemble"),
        (stitching, "load_candidates", "assemble: candidates"),
        (stitching, "resolve", "assemble: resolve"),
        (stitching, "_write_labels", "assemble: labels"),
        (stitching, "write_table", "assemble: table"),
        (stitching, "_write_overview", "assemble: overview"),
    )
    patches = [mock.patch.object(m, f, clock.around(name, getattr(m, f))) for m, f, name in steps]
    with tempfile.TemporaryDirectory() as out:
        # A first, small run loads and compiles what every process must.
        segment_slide(slide, Path(out) / "small", model, SegmentOptions(roi=_corner(slide), backend=backend))
        network_s, total_s = [], []
        for k in range(repeats):
            network_s.append(_network_alone(slide, model, tile, backend))
            began = time.perf_counter()
            segment_slide(slide, Path(out) / str(k), model, SegmentOptions(tile=tile, backend=backend))
            total_s.append(time.perf_counter() - began)
        for patch in patches:
            patch.start()
        with clock("total"):
            result = segment_slide(slide, Path(out), model, SegmentOptions(tile=tile, backend=backend))
        for patch in patches:
            patch.stop()
        store = result.store
        return {
            "network_s": network_s,
            "total_s": total_s,
            "wall": clock.wall,
            "cpu": clock.cpu,
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "n_nuclei": store.n_nuclei,
            "mm2": store.shape[0] * store.shape[1] * store.mpp**2 / 1e6,
        }


def _network_alone(path: Path, model: Model, tile: int, backend: str) -> float:
    """Seconds that the forward passes of a whole run take with nothing beside them."""
    network, seconds = _ready(model, "auto", choose_backend(backend, "auto", model), False, None), 0.0
    with open_slide(path) as slide:
        view = at_mpp(slide, model.info.mpp)
        tissue = tissue_mask(view)
        tiles = [t for t in plan_tiles(view, SegmentOptions(tile=tile), model.info.margin) if tissue.any_in(t.outer)]
        for item in SlideTiles(view, tiles):
            image = torch.as_tensor(item["image"])[None]
            began = time.perf_counter()
            network(image)
            seconds += time.perf_counter() - began
    return seconds


def _corner(slide: Path) -> Box:
    """A small piece from the middle of a slide."""
    with open_slide(slide) as opened:
        h, w = opened.levels[0].shape
    return Box(h // 2, w // 2, min(h, h // 2 + 512), min(w, w // 2 + 512))


def scaling(args: argparse.Namespace) -> None:
    args.work.mkdir(parents=True, exist_ok=True)
    runs = {gpx: _whole(_synthetic_slide(args.work, gpx), args.model, DEFAULT_TILE) for gpx in args.gpx}
    names = list(dict.fromkeys(n for run in runs.values() for n in run["wall"]))
    print(f"{args.model}, tiles of {DEFAULT_TILE}")
    print(f"{'':<28}" + "".join(f"{gpx:>12g} Gpx" for gpx in runs))
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("mm2", lambda r: f"{r['mm2']:.1f}"),
        ("nuclei", lambda r: f"{r['n_nuclei']:,}"),
        ("peak memory, GiB", lambda r: f"{r['peak_gib']:.2f}"),
        ("s / mm2", lambda r: f"{r['wall']['total'] / r['mm2']:.3f}"),
        *((f"{n}, s", partial(lambda r, n: f"{r['wall'].get(n, 0):.1f}", n=n)) for n in names),
        *((f"{n}, ms / mm2", partial(lambda r, n: f"{1e3 * r['wall'].get(n, 0) / r['mm2']:.1f}", n=n)) for n in names),
    ]
    for title, value in rows:
        print(f"{title:<28}" + "".join(f"{value(run):>16}" for run in runs.values()))


def _synthetic_slide(folder: Path, gpx: float) -> Path:
    """A tiled JPEG pyramid at 0.25 um of about ``gpx`` Gpx: one scene repeated, written without ever being whole."""
    n_y = max(1, round(math.sqrt(gpx * 1e9) / _SCENE))
    n_x = max(1, round(gpx * 1e9 / _SCENE**2 / n_y))
    path = folder / f"synthetic_{n_y}x{n_x}.tif"
    if path.is_file():
        return path
    pixels = SyntheticScene((_SCENE, _SCENE), mpp=0.25, seed=11).rgb(Box(0, 0, _SCENE, _SCENE))
    partial_path = path.with_suffix(".partial")
    with tifffile.TiffWriter(partial_path, bigtiff=True) as tiff:
        for level in range(3):
            part = pixels[:: 4**level, :: 4**level] if level == 0 else _mean(pixels, 4**level)
            side, tile = part.shape[0], min(_TIFF_TILE, part.shape[0])
            encoded = [
                imagecodecs.jpeg_encode(np.ascontiguousarray(part[y : y + tile, x : x + tile]), level=85)
                for y in range(0, side, tile)
                for x in range(0, side, tile)
            ]
            n = side // tile
            tiff.write(
                (encoded[y % n * n + x % n] for y in range(n_y * n) for x in range(n_x * n)),
                shape=(n_y * side, n_x * side, 3),
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=1 if level else 0,
                resolution=(1e4 / (0.25 * 4**level),) * 2,
                resolutionunit="CENTIMETER",
            )
    partial_path.rename(path)
    return path


def _mean(pixels: np.ndarray, f: int) -> np.ndarray:
    h, w = pixels.shape[:2]
    return pixels.reshape(h // f, f, w // f, f, 3).mean((1, 3)).round().astype(np.uint8)


# One process against two


def workers(args: argparse.Namespace) -> None:
    from nucleipan.cluster import Cluster, local_cluster

    model, seconds = load_model(args.model), {}
    for n in (1, 2):
        with local_cluster(n) as processes, tempfile.TemporaryDirectory() as out:
            executor = Cluster(processes.client, n_threads=1)
            for _ in range(2):  # the first run loads and compiles
                began = time.perf_counter()
                segment_slide(
                    args.slide, Path(out), model, SegmentOptions(tile=args.tile, overwrite=True), executor=executor
                )
                seconds[n] = time.perf_counter() - began
    print(f"{args.slide.name}, {args.model}, one thread each: one worker {seconds[1]:.1f} s, two {seconds[2]:.1f} s")
    print(f"ratio {seconds[1] / seconds[2]:.2f}")


if __name__ == "__main__":
    main()
