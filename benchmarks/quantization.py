"""Measure a model for int8 on training images, and how much faster it is in int8 than in floats.

    python benchmarks/quantization.py --data ../shared/data --model nucleipan-fast --out out/nucleipan-fast.safetensors

For weights of a time when training did not measure it; all else in the file stays as it is. The times are of the
network alone on 1024 x 1024 pixels, floats and int8 in turn, the best of each: such a ratio holds on a busy machine
too. What int8 costs in PQ tells ``accuracy.py --backend openvino-int8``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import imagecodecs
import numpy as np
import torch
from torch import Tensor

from nucleipan.errors import ModelError
from nucleipan.network.openvino import OpenVinoNetwork
from nucleipan.network.quantize import measure_quantization
from nucleipan.network.regions import RegionNet
from nucleipan.network.weights import load_model, save_model
from nucleipan.training.data import Sample
from nucleipan.training.quantization import plain_crops

# Sets of the data folder, with their micrometres per pixel.
SETS = {"nuclei/monuseg_train": 0.25, "nuclei/consep_train": 0.25, "nuclei/tnbc": 0.25}
MOST_IMAGES = 12
CROP, SIDE = 256, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="nucleipan-fast", help="a name or a weights file")
    parser.add_argument("--out", type=Path, required=True, help="the weights file to write")
    parser.add_argument("--repeats", type=int, default=6)
    args = parser.parse_args()
    model = load_model(args.model)
    if isinstance(model.network, RegionNet):
        raise ModelError(f"{args.model} is a Mask R-CNN, which does not compute in int8")
    splits = json.loads((args.data / "splits.json").read_text())
    samples = {name: training_images(args.data / name, splits[name]["train"], mpp) for name, mpp in SETS.items()}
    crops = plain_crops(samples, CROP, model.info.mpp)
    quantization = measure_quantization(model.network, crops)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_model(model.network, model.info, args.out, quantization)
    floats, int8 = OpenVinoNetwork(model.network), OpenVinoNetwork(model.network, quantization=quantization)
    best = in_turn((floats, int8), crops[0][:1].repeat(1, 1, SIDE // CROP, SIDE // CROP), args.repeats)
    print(f"{model.info.name}: {best[0]:.3f} s in floats, {best[1]:.3f} s in int8, {best[0] / best[1]:.2f} x as fast")


def training_images(folder: Path, stems: list[str], mpp: float) -> list[Sample]:
    """Some images of a set, spread over it; their annotations are not looked at."""
    chosen = stems[:: -(-len(stems) // MOST_IMAGES)]
    images = (imagecodecs.imread(folder / "images" / f"{stem}.jpg") for stem in chosen)
    return [unannotated(stem, mpp, image) for stem, image in zip(chosen, images, strict=True)]


def unannotated(name: str, mpp: float, image: np.ndarray) -> Sample:
    nothing = torch.zeros((1, *image.shape[:2]), dtype=torch.uint8)
    return Sample(name, mpp, torch.from_numpy(image).permute(2, 0, 1), nothing.int(), nothing, nothing)


def in_turn(networks: tuple[OpenVinoNetwork, ...], image: Tensor, repeats: int) -> list[float]:
    """Seconds of each, the best of ``repeats``; the first call of all, which compiles, does not count."""
    seconds: list[list[float]] = [[] for _ in networks]
    for _ in range(repeats + 1):
        for network, times in zip(networks, seconds, strict=True):
            began = time.perf_counter()
            network(image)
            times.append(time.perf_counter() - began)
    return [min(times[1:]) for times in seconds]


if __name__ == "__main__":
    main()
