"""How much do scanners and laboratories change the result? Validation images, perturbed, and the PQ that is left.

    python benchmarks/robustness.py --model nucleipan-fast --data ../shared/data --set nuclei/monuseg_train nuclei/tnbc

Every image is changed as a condition says, segmented as a slide is, in one tile, and scored against the truth in the
truth's own grid: class-agnostic PQ of nuclei, mean over images. The conditions:

- *scan at 0.4 / 0.6 mpp*: the scene resampled to that pixel size, which the model is told.
- *0.4 / 0.6 mpp declared 0.5*: the same pixels, said to have 0.5 um. A real error of scale: nuclei look 1.25 times as
  large, or 0.83.
- *stains*, *haematoxylin*: optical density of both stains or of one times 1.2 or 0.8, the residual left alone (stain
  vectors of Ruifrok & Johnston 2001).
- *JPEG 50*: compressed once more at the image's own pixel size, chroma halved (4:2:0).
- *blur*: Gaussian, sigma 0.5 um, which is 1 px at 0.5 mpp.

Never run it on images a model was trained on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from skimage.color import hed_from_rgb, rgb_from_hed
from skimage.filters import gaussian

from nucleipan.geometry import Box
from nucleipan.metrics import instance_quality, overlaps
from nucleipan.metrics.grids import nearest_pixels
from nucleipan.network.fusion import decode_tile
from nucleipan.network.inference import InferenceNetwork, choose_device
from nucleipan.network.weights import Model, load_model
from nucleipan.slide import Slide, at_mpp, open_slide
from nucleipan.tiles import TileGrid
from nucleipan.transforms import SlideTiles

#: Pixel size of the images of all sets with nuclei, micrometres.
NATIVE_MPP = 0.25


@dataclass(frozen=True)
class Scan:
    """Pixels uint8[h, w, 3] and the pixel size they are said to have."""

    pixels: np.ndarray
    mpp: float


#: Turns the native scan into a perturbed one.
Condition = Callable[[Scan], Scan]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nucleipan-fast", help="name or weights file")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", dest="sets", nargs="+", default=["nuclei/monuseg_train"], help="folders in --data")
    parser.add_argument("--split", default="val")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()

    splits = json.loads((args.data / "splits.json").read_text())
    model = load_model(args.model)
    network = InferenceNetwork(model.network, choose_device(args.device))
    results = {}
    for folder in args.sets:
        results[folder] = judge_set(model, network, args.data / folder, splits[folder][args.split])
        Console(width=100).print(as_table(f"{folder} ({args.split}, {model.info.name})", results[folder]))
        if args.out is not None:
            args.out.write_text(json.dumps({"model": model.info.name, "split": args.split, "sets": results}, indent=1))


def conditions() -> dict[str, Condition]:
    """By name, the unchanged scan first."""
    found: dict[str, Condition] = {"clean": lambda scan: scan}
    for mpp in (0.4, 0.6):
        found[f"scan at {mpp} mpp"] = partial(rescanned, mpp=mpp, declared=mpp)
    for mpp in (0.4, 0.6):
        found[f"{mpp} mpp declared 0.5"] = partial(rescanned, mpp=mpp, declared=0.5)
    for factor in (1.2, 0.8):
        found[f"stains {factor - 1:+.0%}"] = partial(restained, haematoxylin=factor, eosin=factor)
    for factor in (1.2, 0.8):
        found[f"haematoxylin {factor - 1:+.0%}"] = partial(restained, haematoxylin=factor, eosin=1.0)
    return found | {"JPEG 50, 4:2:0": recompressed, "blur 0.5 um": blurred}


def rescanned(scan: Scan, mpp: float, declared: float) -> Scan:
    """The scene in pixels of ``mpp`` micrometres, each the mean of its area, said to have ``declared``."""
    with opened(scan) as slide:
        view = at_mpp(slide, mpp, scan.mpp)
        return Scan(view.read(Box.of_shape(view.shape)), declared)


def restained(scan: Scan, haematoxylin: float, eosin: float) -> Scan:
    """Optical density of the stains times a factor each; a factor of 1 changes nothing but 0 to 1."""
    density = -np.log(np.maximum(scan.pixels, 1) / 255)  # [h, w, 3]
    stains = density @ hed_from_rgb * (haematoxylin, eosin, 1.0)
    light = np.exp(-(stains @ rgb_from_hed))
    return Scan(np.clip(np.rint(light * 255), 0, 255).astype(np.uint8), scan.mpp)


def recompressed(scan: Scan, quality: int = 50) -> Scan:
    encoded = imagecodecs.jpeg_encode(scan.pixels, level=quality, subsampling="420")
    return Scan(imagecodecs.jpeg_decode(encoded), scan.mpp)


def blurred(scan: Scan, sigma_um: float = 0.5) -> Scan:
    smooth = gaussian(scan.pixels, sigma=sigma_um / scan.mpp, preserve_range=True, channel_axis=-1)
    return Scan(np.rint(smooth).astype(np.uint8), scan.mpp)


def judge_set(model: Model, network: InferenceNetwork, folder: Path, stems: list[str]) -> dict[str, dict[str, float]]:
    """PQ of every condition, mean over images, and its relative change from the clean one in percent."""
    results: dict[str, dict[str, float]] = {}
    for name, change in conditions().items():
        pq = float(np.nanmean([quality_of(model, network, folder, stem, change) for stem in stems]))
        clean = results["clean"]["PQ"] if results else pq
        results[name] = {"PQ": pq, "change %": 100 * (pq / clean - 1)}
    return results


def quality_of(model: Model, network: InferenceNetwork, folder: Path, stem: str, change: Condition) -> float:
    """Class-agnostic PQ of one perturbed image in the truth's grid; nan where there are no nuclei."""
    true = imagecodecs.imread(folder / "labels" / f"{stem}.png")
    native = Scan(imagecodecs.imread(folder / "images" / f"{stem}.jpg")[..., :3], NATIVE_MPP)
    pred = segment(model, network, change(native))
    rows, cols, _ = nearest_pixels(pred.shape, true.shape)
    return instance_quality(overlaps(pred[np.ix_(rows, cols)], true)).pq


def segment(model: Model, network: InferenceNetwork, scan: Scan) -> np.ndarray:
    """int32[h, w], nuclei at the model's pixel size, the image being one tile."""
    with opened(scan) as slide:
        view = at_mpp(slide, model.info.mpp, scan.mpp)
        grid = TileGrid(view.shape, Box.of_shape(view.shape), core=max(view.shape), margin=0)
        outputs = network(torch.as_tensor(SlideTiles(view, grid)[0]["image"])[None])
        return decode_tile(outputs, grid.tile(0, 0), model.info.classes, view.mpp, model.info.decode).instances


@contextmanager
def opened(scan: Scan) -> Iterator[Slide]:
    """The scan as a slide, by way of a lossless file: what users' images go through."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.png"
        path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(scan.pixels)))
        with open_slide(path) as slide:
            yield slide


def as_table(title: str, results: dict[str, dict[str, float]]) -> Table:
    table = Table("condition", title=title, title_justify="left")
    for column in ("PQ", "change %"):
        table.add_column(column, justify="right")
    for name, row in results.items():
        table.add_row(name, f"{row['PQ']:.4f}", f"{row['change %']:+.1f}")
    return table


if __name__ == "__main__":
    main()
