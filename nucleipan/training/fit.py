"""The training loop: mixture in, exponential moving average of the weights out.

bf16 autocast and channels_last on CPU and GPU alike. State is written every ``checkpoint_every`` steps, tensors as
safetensors and counters as JSON, each replaced atomically; a run that finds its own state continues from it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from nucleipan.classes import PanopticClasses
from nucleipan.errors import DataError, ModelError
from nucleipan.network.backbone import load_imagenet_weights
from nucleipan.network.inference import InferenceNetwork
from nucleipan.network.model import INSTANCE_REACH_PX, PanopticNet, build_network
from nucleipan.network.weights import ModelInfo, load_model, save_model
from nucleipan.training.augment import training_transform
from nucleipan.training.config import ScheduleConfig, TrainConfig
from nucleipan.training.data import CoverTable, Sample, read_source
from nucleipan.training.log import TrainLog
from nucleipan.training.losses import Batch, total_loss
from nucleipan.training.mixture import Mixture, collate
from nucleipan.training.validate import mean_quality


@dataclass
class TrainState:
    """Everything that changes during a run."""

    network: nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    step: int = 0

    def save(self, folder: Path) -> None:
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.module.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
        _write_at_once(
            folder / "state.safetensors", lambda p: save_file({k: v.contiguous() for k, v in tensors.items()}, p)
        )
        _write_at_once(folder / "state.json", lambda p: p.write_text(json.dumps({"step": self.step})))

    def restore(self, folder: Path) -> None:
        """Continue from ``folder`` if it holds a state."""
        if not (folder / "state.json").is_file():
            return
        tensors = load_file(folder / "state.safetensors")
        self.network.load_state_dict(_with_prefix(tensors, "network."))
        self.average.module.load_state_dict(_with_prefix(tensors, "average."))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _with_prefix(tensors, "optimizer.").items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step = json.loads((folder / "state.json").read_text())["step"]
        self.average.n_averaged.fill_(self.step)


def read_samples(
    config: TrainConfig, split: str, covers: CoverTable, only: Collection[str] | None = None
) -> dict[str, list[Sample]]:
    """Samples by folder, of every source or of those whose folder is in ``only``.

    Raises:
        DataError: the splits file lacks a source, or a source is inconsistent.
    """
    splits = json.loads(config.splits.read_text())
    missing = [s.folder for s in config.sources if s.folder not in splits]
    if missing:
        raise DataError(f"{config.splits}: no split for {', '.join(missing)}; found {', '.join(splits)}")
    return {
        s.folder: read_source(s, config.data_root, splits[s.folder][split], covers)
        for s in config.sources
        if only is None or s.folder in only
    }


def fit(config: TrainConfig, classes: PanopticClasses, device: torch.device) -> TrainState:
    """Train to ``config.schedule.steps`` and return the final state (also saved in ``config.output``)."""
    config.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.schedule.seed)
    covers = CoverTable(classes)
    samples = read_samples(config, "train", covers)
    state = _initial_state(config, classes, device)
    state.restore(config.output)
    batches = _batches(config, samples, covers, state.step)
    judged = read_samples(config, "val", covers, only=config.validate_on)

    def validate() -> dict[str, float]:
        network = InferenceNetwork(cast(PanopticNet, state.average.module), device)
        return {
            f"{folder} {name}": value
            for folder, images in judged.items()
            for name, value in mean_quality(network, images, classes, config.mpp, config.decode).items()
        }

    _train(config, state, batches, device, validate)
    return state


def train_model(config: TrainConfig, classes: PanopticClasses, device: torch.device) -> Path:
    """``fit``, then the averaged weights as a weights file, ``<output>/<name>.safetensors``."""
    state = fit(config, classes, device)
    info = ModelInfo(
        name=config.name,
        mpp=config.mpp,
        margin=INSTANCE_REACH_PX,
        classes=classes,
        network=config.network,
        decode=config.decode,
        licence=config.licence,
        trained_on=tuple(f"{s.folder} ({s.licence})" for s in config.sources),
    )
    path = config.output / f"{config.name}.safetensors"
    save_model(cast(PanopticNet, state.average.module), info, path)
    return path


def _initial_state(config: TrainConfig, classes: PanopticClasses, device: torch.device) -> TrainState:
    network = build_network(config.network, classes)
    _initialise(network, config.initial_weights)
    network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    schedule = config.schedule
    average = AveragedModel(network, multi_avg_fn=partial(_average, decay=schedule.ema_decay), use_buffers=True)
    decay = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return TrainState(network, average, torch.optim.AdamW(groups, lr=schedule.learning_rate))


def _initialise(network: PanopticNet, source: str) -> None:
    """Fill ``network`` from what the configuration names; layers of other shape (other classes) stay random."""
    if source == "random":
        return
    if source == "imagenet":
        load_imagenet_weights(network.backbone)
        return
    given, own = load_model(source).network.state_dict(), network.state_dict()
    fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise ModelError(f"initial_weights: {source}: no tensor fits the network; check the network's configuration")
    network.load_state_dict(fitting, strict=False)


def _batches(config: TrainConfig, samples: dict[str, list[Sample]], covers: CoverTable, start: int) -> Iterator[Batch]:
    schedule = config.schedule
    transform = training_transform(schedule.crop, config.mpp, config.augmentation)
    # A run that continues draws other crops than the ones it has seen.
    mixture = Mixture([(s.weight, samples[s.folder]) for s in config.sources], transform, schedule.seed + start)
    allowed = torch.from_numpy(covers.allowed())
    loader = DataLoader(
        mixture,
        batch_size=schedule.batch_size,
        num_workers=1,
        prefetch_factor=4,
        collate_fn=partial(collate, allowed=allowed, thing_code=covers.things),
    )
    return iter(loader)


def _train(
    config: TrainConfig,
    state: TrainState,
    batches: Iterator[Batch],
    device: torch.device,
    validate: Callable[[], dict[str, float]],
) -> None:
    schedule = config.schedule
    state.network.train()
    with TrainLog(config.output / "log.jsonl", state.step, schedule.steps) as log:
        while state.step < schedule.steps:
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(state.step, schedule)
            terms = _step(config, state, next(batches), device)
            state.step += 1
            log.add(state.step, {name: float(value) for name, value in terms.items()})
            is_last = state.step == schedule.steps
            if state.step % schedule.checkpoint_every == 0 or is_last:
                state.save(config.output)
            if state.step % schedule.validate_every == 0 or is_last:
                log.write(validate() | {"step": state.step})


def _step(config: TrainConfig, state: TrainState, batch: Batch, device: torch.device) -> dict[str, Tensor]:
    batch = batch.to(device)
    image = batch.image.to(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16):
        out = state.network(image)
    terms = total_loss(out, batch, config.loss)
    state.optimizer.zero_grad(set_to_none=True)
    terms["total"].backward()
    nn.utils.clip_grad_norm_(state.network.parameters(), 5.0)
    state.optimizer.step()
    state.average.update_parameters(state.network)
    return {k: v.detach() for k, v in terms.items()}


def learning_rate(step: int, schedule: ScheduleConfig) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _average(average: list[Tensor], current: list[Tensor], n_averaged: Tensor, decay: float) -> None:
    """Exponential moving average whose memory is short at first, so that the initial weights are soon forgotten."""
    n = float(n_averaged)
    weight = 1 - min(decay, (1 + n) / (10 + n))
    for a, c in zip(average, current, strict=True):
        if a.is_floating_point():
            a.lerp_(c.to(a.dtype), weight)
        else:
            a.copy_(c)


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _write_at_once(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)
