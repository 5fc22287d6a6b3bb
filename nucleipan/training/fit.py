"""One run from its configuration to a weights file: data, start, Lightning's trainer, and what it leaves behind.

In ``output``: ``last.safetensors``, from which an interrupted run continues to the same losses as if it had not been
interrupted; ``log.jsonl`` and TensorBoard's files; at the end ``<name>.safetensors``, the averaged weights.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from nucleipan.network.fusion import DecodeConfig
from nucleipan.network.inference import InferenceNetwork, best_dtype, choose_device
from nucleipan.network.quantize import Quantization, measure_quantization
from nucleipan.network.regions import RegionNet
from nucleipan.network.weights import ModelInfo, save_model
from nucleipan.training.augment import training_transform
from nucleipan.training.calibrate import fit_confidence
from nucleipan.training.checkpoint import KeepState, SafetensorsCheckpoints
from nucleipan.training.config import TrainConfig
from nucleipan.training.data import CoverTable, Sample, SampleSets, read_samples
from nucleipan.training.log import LossLog, StepBar
from nucleipan.training.mixture import Mixture, StepBatches, collate
from nucleipan.training.module import MONITORED, MovingAverage, PanopticTraining
from nucleipan.training.quantization import plain_crops
from nucleipan.training.start import Start, build_start
from nucleipan.training.validate import Segmenter


class TrainingData(pl.LightningDataModule):
    """Training crops from the step on that the run has reached, and whole validation images."""

    def __init__(self, config: TrainConfig, start: Start, samples: SampleSets, covers: CoverTable) -> None:
        super().__init__()
        self.config, self.start, self.samples, self.covers = config, start, samples, covers

    def train_dataloader(self) -> DataLoader:
        schedule = self.config.schedule
        transform = training_transform(schedule.crop, self.start.mpp, self.config.augmentation)
        sources = [(s.weight, self.samples.train[s.folder]) for s in self.config.sources]
        trainer = cast(pl.Trainer, self.trainer)
        return DataLoader(
            Mixture(sources, transform, schedule.seed),
            batch_sampler=StepBatches(
                schedule.batch_size, trainer.global_step, trainer.global_rank, trainer.world_size
            ),
            num_workers=schedule.workers,
            prefetch_factor=4 if schedule.workers else None,
            collate_fn=partial(collate, allowed=torch.from_numpy(self.covers.allowed()), thing_code=self.covers.things),
        )

    def val_dataloader(self) -> DataLoader:
        images = [(folder, s) for folder, samples in self.samples.val.items() for s in samples]
        return DataLoader(cast(Any, images), batch_size=None, collate_fn=_as_it_is)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device) if hasattr(batch, "to") else batch


def train_model(config: TrainConfig, device: str = "auto") -> Path:
    """Train, or continue a run that was interrupted, and write the averaged weights.

    Args:
        config: the run.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        ``<output>/<name>.safetensors``.

    Raises:
        DataError, ConfigError, ModelError: something does not fit; nothing has been trained then.
    """
    start = build_start(config)
    covers = CoverTable(start.classes)
    samples = read_samples(config, covers)
    config.output.mkdir(parents=True, exist_ok=True)
    module = PanopticTraining(config, start).to(memory_format=torch.channels_last)
    data = TrainingData(config, start, samples, covers)
    last = config.output / "last.safetensors"
    with _quiet():
        trainer = build_trainer(config, choose_device(device))
        trainer.fit(module, datamodule=data, ckpt_path=last if last.is_file() else None)
    path = config.output / f"{config.name}.safetensors"
    if trainer.is_global_zero:
        _load_averaged(config, start)
        decode = _decode(config, start, samples, choose_device(device))
        save_model(start.network, _info(config, start, decode), path, _quantization(config, start, samples))
    return path


def build_trainer(config: TrainConfig, device: torch.device) -> pl.Trainer:
    """Lightning's trainer as ``config`` describes it."""
    schedule = config.schedule
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=schedule.devices if device.index is None else [device.index],
        strategy="ddp" if schedule.devices > 1 else "auto",
        sync_batchnorm=schedule.devices > 1 and device.type == "cuda",
        use_distributed_sampler=False,
        precision=_precision(config, device),
        max_steps=schedule.steps,
        val_check_interval=min(schedule.validate_every, schedule.steps),
        check_val_every_n_epoch=None,
        limit_val_batches=None if config.validate_on else 0,
        num_sanity_val_steps=0,
        gradient_clip_val=5.0,
        log_every_n_steps=schedule.log_every,
        callbacks=_callbacks(config),
        logger=TensorBoardLogger(config.output, name="", version="tensorboard"),
        plugins=[SafetensorsCheckpoints()],
        enable_model_summary=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )


def _callbacks(config: TrainConfig) -> list[Callback]:
    schedule = config.schedule
    monitor = MONITORED if schedule.early_stopping else None
    callbacks: list[Callback] = [
        MovingAverage(schedule.ema_decay),
        LossLog(config.output / "log.jsonl", schedule.log_every),
        KeepState(config.output, schedule.checkpoint_every, monitor),
        StepBar(),
    ]
    if schedule.early_stopping:
        callbacks.append(EarlyStopping(MONITORED, mode="max", patience=schedule.early_stopping))
    return callbacks


def _precision(config: TrainConfig, device: torch.device) -> Literal["bf16-mixed", "32-true"]:
    wanted = config.schedule.precision
    is_bf16 = wanted == "bf16" or (wanted == "auto" and best_dtype(device) is torch.bfloat16)
    return "bf16-mixed" if is_bf16 else "32-true"


def _load_averaged(config: TrainConfig, start: Start) -> None:
    """The averaged weights of the last step, or of the best validation where a run stops early; the initial ones have
    their share in them."""
    kept = config.output / ("best.safetensors" if config.schedule.early_stopping else "last.safetensors")
    tensors = SafetensorsCheckpoints().load_checkpoint(kept)["state_dict"]
    trained = {k.removeprefix("network."): v for k, v in tensors.items()}
    for name, initial in start.taken_over.items():
        if config.trained_share < 1 and initial.is_floating_point():
            trained[name] = torch.lerp(initial.to(trained[name]), trained[name], config.trained_share)
    start.network.load_state_dict(trained)


def _decode(config: TrainConfig, start: Start, samples: SampleSets, device: torch.device) -> DecodeConfig:
    """The run's decoding, with the score of nuclei fitted to the network as it is now."""
    if not config.calibrate or isinstance(start.network, RegionNet):
        return start.decode
    plain = start.decode.model_copy(update={"confidence": None})
    segment = Segmenter(InferenceNetwork(start.network, device), start.classes, start.mpp, plain)
    return plain.model_copy(update={"confidence": fit_confidence(segment, _trained_on(config, samples))})


def _quantization(config: TrainConfig, start: Start, samples: SampleSets) -> Quantization | None:
    """What the network as it is now needs to compute in int8."""
    if isinstance(start.network, RegionNet):
        return None
    schedule = config.schedule
    crops = plain_crops(_trained_on(config, samples), schedule.crop, start.mpp, schedule.seed)
    return measure_quantization(start.network, crops)


def _trained_on(config: TrainConfig, samples: SampleSets) -> dict[str, Sequence[Sample]]:
    return {s.folder: samples.train[s.folder] for s in config.sources if s.weight > 0}


def _info(config: TrainConfig, start: Start, decode: DecodeConfig) -> ModelInfo:
    own = (f"{s.folder} ({s.licence})" for s in config.sources if s.weight > 0)
    return ModelInfo(
        name=config.name,
        mpp=start.mpp,
        margin=start.network.margin,
        classes=start.classes,
        network=start.network_config,
        decode=decode,
        licence=config.licence,
        trained_on=tuple(dict.fromkeys([*start.trained_on, *own])),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advice on workers and intervals: the configuration decides those."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", module="lightning_fabric")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _as_it_is(item: Any) -> Any:
    return item
