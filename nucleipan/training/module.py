"""The training as a Lightning module: what a step computes, what a validation scores and shows."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Self

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from nucleipan.errors import ConfigError
from nucleipan.network.inference import InferenceNetwork
from nucleipan.network.model import PanopticNet
from nucleipan.network.regions import RegionNet
from nucleipan.network.two_scale import TwoScaleNet
from nucleipan.overlay import render_overlay
from nucleipan.training.config import ScheduleConfig, TrainConfig
from nucleipan.training.data import Sample
from nucleipan.training.losses import Batch, total_loss
from nucleipan.training.region_losses import region_losses
from nucleipan.training.start import Start
from nucleipan.training.validate import Segmenter, nuclei_quality

#: What early stopping and the choice of the best weights look at: the mean over sets of their mean PQ.
MONITORED = "val/pq"
# Steps differ in their random numbers by a multiple of this prime.
_SEED_STRIDE = 1_000_003


class PanopticTraining(pl.LightningModule):
    """Losses in, averaged weights out. ``network`` is trained in place."""

    def __init__(self, config: TrainConfig, start: Start) -> None:
        super().__init__()
        self.config = config
        self.start = start
        self.network = start.network
        self._segmenter: Segmenter | None = None
        self._scores: dict[str, list[tuple[float, float, float]]] = {}
        self.train()  # Lightning keeps the modes that it finds

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        schedule = self.config.schedule
        trained = [p for p in self.network.parameters() if p.requires_grad]
        # One-dimensional parameters are biases and BatchNorm's: decaying them would only cost accuracy.
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": schedule.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate)
        scheduler = LambdaLR(optimizer, partial(learning_rate_factor, schedule=schedule))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.network.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and self._is_frozen(module):
                module.eval()
        return self

    def _is_frozen(self, norm: torch.nn.modules.batchnorm._BatchNorm) -> bool:
        return self.config.schedule.frozen_norm or not any(p.requires_grad for p in norm.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = _identity(self.config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found, own = checkpoint.get("run", {}), _identity(self.config)
        differing = [key for key in own if own[key] != found.get(key)]
        if differing:
            raise ConfigError(
                f"{self.config.output}: holds an unfinished or finished run with other {', '.join(differing)}; "
                "choose another output, or remove last.safetensors there to start afresh"
            )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # What a step drops at random depends on its number alone, so that an interrupted run repeats nothing.
        torch.manual_seed((self.config.schedule.seed + 1) * _SEED_STRIDE + self.global_step * 64 + self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Every weighted term of the loss, and their sum as ``loss``."""
        image = batch.image.to(memory_format=torch.channels_last)
        match self.network:
            case PanopticNet() | TwoScaleNet():
                out = self.network(image)
                with torch.autocast(self.device.type, enabled=False):
                    terms = total_loss(out, batch, self.config.loss)
            case RegionNet():
                terms = region_losses(self.network, image, batch, self.config.loss)
        self.log_dict({f"train/{k}": v.detach() for k, v in terms.items()}, batch_size=len(batch.image))
        return {"loss": terms.pop("total")} | {k: v.detach() for k, v in terms.items()}

    def on_validation_epoch_start(self) -> None:
        network = InferenceNetwork(self.network, self.device)
        self._segmenter = Segmenter(network, self.start.classes, self.start.mpp, self.start.decode)
        self._scores = {}

    def validation_step(self, batch: tuple[str, Sample], batch_idx: int) -> None:
        folder, sample = batch
        assert self._segmenter is not None
        image, found = self._segmenter(sample)
        quality = nuclei_quality(found, sample)
        if folder not in self._scores:  # one picture a set
            self._show(folder, image, found)
        self._scores.setdefault(folder, []).append((quality.pq, quality.sq, quality.rq))

    def on_validation_epoch_end(self) -> None:
        means = {folder: np.nanmean(scores, axis=0) for folder, scores in self._scores.items()}
        for folder, values in means.items():
            self.log_dict({f"val/{folder} {n}": float(v) for n, v in zip(("pq", "sq", "rq"), values, strict=True)})
        self.log(MONITORED, float(np.mean([pq for pq, _, _ in means.values()])))

    def _show(self, folder: str, image: np.ndarray, found: Any) -> None:
        """Outlines on the first image of a set, for TensorBoard."""
        if not isinstance(self.logger, TensorBoardLogger):
            return
        classes = np.concatenate([[0], self.start.classes.thing_ids[found.probabilities.argmax(1)]])
        picture = render_overlay(image, found.instances, classes, self.start.classes)
        self.logger.experiment.add_image(folder, picture, self.global_step, dataformats="HWC")


class MovingAverage(WeightAveraging):
    """Exponential moving average whose memory is short at first, so that the initial weights are soon forgotten."""

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=partial(_average, decay=decay))


def _identity(config: TrainConfig) -> dict[str, Any]:
    """What must not change between an interruption and its continuation."""
    identity = config.model_dump(mode="json", exclude={"name", "output", "data_root", "splits", "licence"})
    for key in ("steps", "workers", "log_every", "checkpoint_every", "validate_every", "early_stopping"):
        del identity["schedule"][key]
    return identity


def learning_rate_factor(step: int, schedule: ScheduleConfig) -> float:
    """Linear warm-up from 1 / warmup_steps to 1, then half a cosine to zero."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _average(average: list[Tensor], current: list[Tensor], n_averaged: Tensor | int, decay: float) -> None:
    n = float(n_averaged)
    weight = 1 - min(decay, (1 + n) / (10 + n))
    for a, c in zip(average, current, strict=True):
        if a.is_floating_point():
            a.lerp_(c.to(a.dtype), weight)
        else:
            a.copy_(c)
