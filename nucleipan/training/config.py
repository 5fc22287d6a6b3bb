"""One training run, described whole: classes, data and what their codes mean, network, losses, schedule.

A *code* is what a data set's annotators wrote; it covers one class of ours or several ("stroma, which here holds
muscle too"), and what no code says is unknown, never background.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nucleipan.classes import PanopticClass, PanopticClasses
from nucleipan.datasets import Layout
from nucleipan.datasets.coco_document import Category, read_categories
from nucleipan.network.build import NetworkConfig
from nucleipan.network.fusion import DecodeConfig


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassConfig(_Frozen):
    """A class of your own. Ids count from 1 in the order of the list."""

    name: str = Field(description="what stores, tables and exports call it")
    is_thing: bool = Field(description="a kind of nucleus; else a kind of tissue")
    color: tuple[int, int, int] = Field(description="sRGB, 0-255")


class SourceConfig(_Frozen):
    """One data set.

    Which images train and which validate: ``train`` and ``val`` if given, else the run's ``splits`` file, else a
    share of the images (``validation``).
    """

    folder: str = Field(description="below the run's data_root")
    layout: Layout = Field(description="how the files are laid out; see nucleipan.datasets")
    mpp: float = Field(gt=0, description="micrometres per pixel of the images; for photos 1, in the run's mpp too")
    weight: float = Field(1.0, ge=0, description="share of the crops drawn, relative to the other sources")
    codes: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="the annotators' code -> classes of ours it may mean"
    )
    codes_are_names: bool = Field(False, description="a code that ``codes`` lacks is the name of a class of ours")
    kinds: tuple[str, ...] = Field(
        (), description="what a nucleus that ``codes`` say nothing of may be (none named: any kind)"
    )
    train: tuple[str, ...] | None = Field(None, description="names of training images; * and ? are wildcards")
    val: tuple[str, ...] | None = Field(None, description="names of validation images, likewise")
    allow_empty: bool = Field(False, description="accept label images without any nucleus")
    in_memory: bool = Field(True, description="false: read training images when they are drawn, for large sets")
    licence: str = Field("not stated", description="terms of the data; goes into the header of the weights")


class ScheduleConfig(_Frozen):
    """AdamW with linear warm-up and a cosine to zero; the weights kept are an exponential moving average."""

    steps: int = Field(gt=0, description="of the optimizer")
    batch_size: int = Field(8, gt=0, description="crops per step and device")
    crop: int = Field(256, ge=64, multiple_of=32, description="side of a crop, in pixels of the run's mpp")
    learning_rate: float = Field(1e-3, gt=0, description="at its highest, after the warm-up")
    weight_decay: float = Field(0.02, ge=0, description="of AdamW; biases and BatchNorm's parameters have none")
    warmup_steps: int = Field(200, ge=0, description="steps until the learning rate is at its highest")
    ema_decay: float = Field(0.998, ge=0, lt=1, description="share of the average that a step leaves as it was")
    frozen_norm: bool = Field(
        False,
        description="BatchNorm goes by the initial weights' statistics, as it will when the model is used, instead of "
        "each batch's; for fine-tuning with small batches",
    )
    seed: int = Field(0, ge=0, description="of first weights, crops, augmentation and what is dropped at random")
    log_every: int = Field(50, gt=0, description="steps between lines of log.jsonl")
    checkpoint_every: int = Field(500, gt=0, description="steps between states that an interrupted run continues from")
    validate_every: int = Field(500, gt=0, description="steps between validations on validate_on")
    early_stopping: int | None = Field(
        None, gt=0, description="stop after so many validations without a better mean PQ, and keep the best weights"
    )
    devices: int = Field(1, gt=0, description="GPUs (or CPU processes) that train together, each its own batch")
    workers: int = Field(1, ge=0, description="processes that prepare crops, per device")
    precision: Literal["auto", "bf16", "float32"] = Field("auto", description="auto: bf16 where it is fast")


class AugmentationConfig(_Frozen):
    """What is changed at random in a crop, besides flips and quarter turns. Chances are per crop."""

    scale: tuple[float, float] = Field((0.7, 1.4), description="range of the random change of scale")
    elastic: float = Field(0.0, ge=0, le=1, description="chance of a smooth random deformation")
    stain: float = Field(0.25, ge=0, description="spread of the stain jitter in optical density")
    low_resolution: float = Field(0.1, ge=0, le=1, description="chance of being seen as if scanned coarser")
    blur: float = Field(0.1, ge=0, le=1, description="chance of being out of focus")
    noise: float = Field(0.15, ge=0, le=1, description="chance of Gaussian noise")
    jpeg: float = Field(0.15, ge=0, le=1, description="chance of JPEG artefacts")


class LossConfig(_Frozen):
    """Weights of the terms. Those that only a network of regions has count once each; ``offsets`` it has not."""

    semantic: float = Field(1.0, ge=0, description="weight of the class of every pixel")
    mask: float = Field(1.0, ge=0, description="weight of what is a nucleus and what is none")
    offsets: float = Field(3.0, ge=0, description="weight of the way to the centre of the nucleus")
    thing_pixel: float = Field(3.0, gt=0, description="weight of a nucleus pixel in the semantic loss")
    hardest: float = Field(1.0, gt=0, le=1, description="share of the pixels, the worst, that the semantic loss is of")


class TrainConfig(_Frozen):
    """A complete run; see ``configs/`` for examples.

    ``mpp``, ``network``, ``decode`` and ``classes`` default to those of the initial weights, or else to 0.5 and this
    version's defaults.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="of the weights file")
    data_root: Path = Field(description="folder that the sources' folders are in; relative paths count from the file")
    splits: Path | None = Field(None, description="JSON: folder -> {train: [names], val: [names]}")
    validation: float = Field(0.2, ge=0, lt=1, description="share of a source's images to validate on, without splits")
    output: Path = Field(description="folder for checkpoints, logs and the weights that come out")
    initial_weights: str = Field(
        "imagenet",
        description="imagenet, random, the name of an embedded model, or a weights file: what fits by name and shape",
    )
    coarse_weights: str | None = Field(
        None, description="of a two-scale network: the model for twice the pixel size, which is not trained further"
    )
    train_only: tuple[str, ...] = Field(
        (),
        description="parts of the network, such as instance_head; the others stay as they are (none named: all train)",
    )
    trained_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the trained weights in those that come out, the rest being those of the initial model, "
        "where it has them: less learns less and forgets less (WiSE-FT, arXiv 2109.01903)",
    )
    licence: str = Field("not stated", description="terms of the trained weights")
    classes: tuple[ClassConfig, ...] | None = Field(None, description="your own classes")
    classes_from: Path | None = Field(None, description="instead, a COCO panoptic JSON: its categories are the classes")
    mpp: float | None = Field(None, gt=0, description="micrometres per pixel the network works at")
    network: NetworkConfig | None = Field(None, description="its instance head and its size")
    decode: DecodeConfig | None = Field(None, description="how the network's outputs become nuclei and tissue")
    calibrate: bool = Field(
        True, description="when training ends, fit the score of nuclei, and the least one kept, on training images"
    )
    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="the data sets")
    augmentation: AugmentationConfig = Field(AugmentationConfig(), description="random changes of the crops")
    loss: LossConfig = Field(LossConfig(), description="weights of the loss's terms")
    schedule: ScheduleConfig = Field(description="steps, batches, learning rate, validation")
    validate_on: tuple[str, ...] = Field((), description="sources with nuclei whose val images are scored")

    @model_validator(mode="after")
    def _check_validation(self) -> TrainConfig:
        unknown = sorted(set(self.validate_on) - {s.folder for s in self.sources})
        if unknown:
            raise ValueError(f"validate_on names no source: {', '.join(unknown)}")
        if self.schedule.early_stopping and not self.validate_on:
            raise ValueError("early_stopping needs validate_on")
        if self.trained_share < 1 and self.initial_weights in ("imagenet", "random"):
            raise ValueError(
                "trained_share needs initial_weights of a model; imagenet's and random ones know no nuclei"
            )
        if self.classes is not None and self.classes_from is not None:
            raise ValueError("classes and classes_from are two answers to one question; give one of them")
        return self

    @cached_property
    def own_classes(self) -> PanopticClasses | None:
        """The classes that the file declares, or those of the JSON that it names; ids in their order.

        Raises:
            DataError: the JSON cannot be read or is none of COCO's.
            ConfigError: the classes contradict each other.
        """
        named: Sequence[ClassConfig | Category] | None = self.classes
        if self.classes_from is not None:
            named = read_categories(self.classes_from)
        if named is None:
            return None
        return PanopticClasses(tuple(PanopticClass(i, c.name, c.is_thing, c.color) for i, c in enumerate(named, 1)))
