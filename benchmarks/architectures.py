"""The default network, EfficientPS and AUNet, trained alike: same images, crops, steps and schedule.

    python benchmarks/architectures.py --data ../shared/data --work out/architectures

Two trainings each: on the nuclei sets of ``configs/efficientps.yaml``, judged on their val images, and on synthetic
panoptic scenes, whose tissue is known too, judged on scenes of other seeds. Brief ones: the table compares how fast the
architectures learn and what they cost, not what they could reach. A training that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from skimage.io import imsave
from torch.utils.flop_counter import FlopCounterMode

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.config import load_train_config
from nucleipan.geometry import Box
from nucleipan.metrics import (
    PanopticMap,
    PanopticQuality,
    mean_qualities,
    panoptic_qualities,
    pool,
)
from nucleipan.metrics.grids import nearest_pixels
from nucleipan.network.inference import InferenceNetwork, choose_device
from nucleipan.network.weights import Model, load_model
from nucleipan.synthetic import SyntheticScene
from nucleipan.training.config import LossConfig, SourceConfig, TrainConfig
from nucleipan.training.data import CoverTable, Sample, read_samples
from nucleipan.training.fit import train_model
from nucleipan.training.validate import Segmenter, nuclei_quality

CONFIGS = Path(__file__).parent.parent / "configs"
#: Name -> its file, and what is set on top of it. The default network is trained with its own losses.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("efficientps.yaml", {"network": None, "loss": LossConfig()}),
    "EfficientPS": ("efficientps.yaml", {}),
    "AUNet": ("aunet.yaml", {}),
}
N_SCENES = {"train": 24, "val": 6}
SCENE_SHAPE = (512, 512)
SPEED_SHAPE = (1024, 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where trainings and the table go")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--scene-steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    args.work = args.work.absolute()
    write_scenes(args.work / "scenes")
    rows: dict[str, dict[str, float]] = {}
    for name in ARCHITECTURES:
        model = trained(on_nuclei(name, args), args.device)
        row = {"M parameters": sum(p.numel() for p in model.network.parameters()) / 1e6}
        row |= costs(model, args.device) | judge_nuclei(on_nuclei(name, args), model, args.device)
        scenes = on_scenes(name, args)
        rows[name] = row | judge_scenes(scenes, trained(scenes, args.device), args.device)
        (args.work / "architectures.json").write_text(json.dumps({"steps": args.steps, "rows": rows}, indent=1))
        Console(width=110).print(as_table(rows))


def on_nuclei(name: str, args: argparse.Namespace) -> TrainConfig:
    return configured(name, args, {"data_root": args.data.absolute(), "splits": args.data.absolute() / "splits.json"})


def on_scenes(name: str, args: argparse.Namespace) -> TrainConfig:
    codes = {c.name: (c.name,) for c in DEFAULT_CLASSES.classes}
    parts = {part: tuple(f"panoptic_{part}/{part}{i:02}" for i in range(n)) for part, n in N_SCENES.items()}
    scenes = SourceConfig(folder="scenes", layout="coco-panoptic", mpp=0.5, codes=codes, **parts)
    update = {"data_root": args.work, "splits": None, "sources": (scenes,), "validate_on": ("scenes",)}
    return configured(name, args, update, args.scene_steps)


def configured(name: str, args: argparse.Namespace, update: dict[str, Any], steps: int | None = None) -> TrainConfig:
    file, own = ARCHITECTURES[name]
    config = load_train_config(CONFIGS / file)
    steps = steps or args.steps
    schedule = config.schedule.model_copy(
        update={"steps": steps, "batch_size": args.batch, "warmup_steps": steps // 10, "validate_every": steps}
        | {"ema_decay": 0.99, "learning_rate": 1e-3, "checkpoint_every": 100}
    )
    output = args.work / f"{name}-{'scenes' if 'sources' in update else 'nuclei'}"
    return config.model_copy(update=own | update | {"schedule": schedule, "output": output})


def trained(config: TrainConfig, device: str) -> Model:
    path = config.output / f"{config.name}.safetensors"
    return load_model(path if path.is_file() else train_model(config, device))


def costs(model: Model, device: str) -> dict[str, float]:
    """Arithmetic and time of the network for a megapixel of tissue; the number of regions depends on what is there."""
    image = torch.from_numpy(SyntheticScene(SPEED_SHAPE, seed=1).rgb(Box.of_shape(SPEED_SHAPE)))
    image = image.permute(2, 0, 1)[None].contiguous()
    mpx = SPEED_SHAPE[0] * SPEED_SHAPE[1] / 1e6
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.network(image.float() / 255)
    network, seconds = InferenceNetwork(model.network, choose_device(device)), []
    for _ in range(6):
        began = time.perf_counter()
        network(image)
        if network.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {"GFLOP/Mpx": counter.get_total_flops() / 1e9 / mpx, "s/Mpx": min(seconds[1:]) / mpx}


def judge_nuclei(config: TrainConfig, model: Model, device: str) -> dict[str, float]:
    """Mean over val images, whatever the class; on the set with classes also the mean over classes."""
    row: dict[str, float] = {}
    samples_of, covers = validation(config, model)
    for folder, samples in samples_of.items():
        segment = segmenter(model, device)
        qualities = [nuclei_quality(segment(s)[1], s) for s in samples]
        name = folder.removeprefix("nuclei/").removesuffix("_train")
        row |= {
            f"{name} {k.upper()}": float(np.nanmean([getattr(q, k) for q in qualities])) for k in ("pq", "sq", "rq")
        }
        if any(s.folder == folder and s.codes for s in config.sources):
            row[f"{name} PQ_things"] = mean_qualities(class_by_class(segment, samples, covers)[0])["PQ"]
    return row


def judge_scenes(config: TrainConfig, model: Model, device: str) -> dict[str, float]:
    """Mean over classes of counts pooled over the scenes, as COCO does it."""
    samples, covers = validation(config, model)
    things, stuff = class_by_class(segmenter(model, device), samples["scenes"], covers)
    means = {"": mean_qualities([*things, *stuff]), "_things": mean_qualities(things), "_stuff": mean_qualities(stuff)}
    row = {f"scenes PQ{part}": mean["PQ"] for part, mean in means.items()}
    return row | {f"scenes {k}": means[""][k] for k in ("SQ", "RQ")}


def class_by_class(
    segment: Segmenter, samples: list[Sample], covers: CoverTable
) -> tuple[list[PanopticQuality], list[PanopticQuality]]:
    """Counts of every thing and of every stuff class, pooled over images, in the grid of the truth."""
    classes, found = segment.classes, []
    for sample in samples:
        _, tile = segment(sample)
        true = truth(sample, covers)
        rows, cols, _ = nearest_pixels(tile.instances.shape, true.instances.shape)
        instances = tile.instances[np.ix_(rows, cols)]
        class_of = np.concatenate([[0], classes.thing_ids[tile.probabilities.argmax(1)]])
        plane = np.where(instances > 0, class_of[instances], tile.stuff[np.ix_(rows, cols)])
        pred = PanopticMap(plane, instances)
        found.append(
            panoptic_qualities(pred, true, n_classes=len(classes), thing_ids=[int(i) for i in classes.thing_ids])
        )
    pooled = [pool(c) for c in zip(*found, strict=True)]
    return [pooled[i - 1] for i in classes.thing_ids], [pooled[i - 1] for i in classes.stuff_ids]


def truth(sample: Sample, covers: CoverTable) -> PanopticMap:
    """Exact classes; where any tissue is meant the first one, so that a nucleus there is an error and not void."""
    allowed = covers.allowed()
    class_of_code = np.where(allowed.sum(1) == 1, allowed.argmax(1) + 1, 0)
    class_of_code[covers.stuff] = covers.classes.stuff_ids[0]
    return PanopticMap(class_of_code[sample.cover[0].numpy()], sample.ids[0].numpy())


def validation(config: TrainConfig, model: Model) -> tuple[dict[str, list[Sample]], CoverTable]:
    covers = CoverTable(model.info.classes)
    judged = [s for s in config.sources if s.folder in config.validate_on]
    return read_samples(config.model_copy(update={"sources": tuple(judged)}), covers).val, covers


def segmenter(model: Model, device: str) -> Segmenter:
    info = model.info
    return Segmenter(InferenceNetwork(model.network, choose_device(device)), info.classes, info.mpp, info.decode)


def write_scenes(folder: Path) -> None:
    """Synthetic scenes with their truth in COCO's panoptic layout."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    box, seed = Box.of_shape(SCENE_SHAPE), 0
    names = [{"id": c.id, "name": c.name, "isthing": int(c.is_thing)} for c in DEFAULT_CLASSES.classes]
    for part, n in N_SCENES.items():
        (folder / f"panoptic_{part}").mkdir(exist_ok=True)
        images, annotations = [], []
        for i in range(n):
            seed += 1
            scene, file = SyntheticScene(SCENE_SHAPE, seed=seed), f"{part}{i:02}.png"
            instances, classes = scene.instances(box).astype(np.int64), scene.classes(box).astype(np.int64)
            ids = np.where(instances > 0, instances + 255, classes)  # tissue below 256, nuclei from there on
            present, first, areas = np.unique(ids, return_index=True, return_counts=True)
            segments = [
                {"id": int(s), "category_id": int(classes.flat[at]), "area": int(area), "iscrowd": 0}
                for s, at, area in zip(present, first, areas, strict=True)
                if s
            ]
            imsave(folder / "images" / file, scene.rgb(box), check_contrast=False)
            colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
            imsave(folder / f"panoptic_{part}" / file, colours, check_contrast=False)
            h, w = SCENE_SHAPE
            images.append({"id": seed, "file_name": file, "height": h, "width": w})
            annotations.append({"image_id": seed, "file_name": file, "segments_info": segments})
        document = {"images": images, "annotations": annotations, "categories": names}
        (folder / f"panoptic_{part}.json").write_text(json.dumps(document))


def as_table(rows: dict[str, dict[str, float]]) -> Table:
    table = Table("", *rows)
    for key in next(iter(rows.values())):
        digits = 3 if "PQ" in key or key[-2:] in ("SQ", "RQ") else 2
        table.add_row(key, *(f"{row[key]:.{digits}f}" for row in rows.values()))
    return table


if __name__ == "__main__":
    main()
