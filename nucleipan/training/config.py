"""One training run, described whole: network, classes of the data, mixture, schedule.

A *code* is what a data set's annotators wrote; it covers one class of ours or several ("stroma, which here holds
muscle too"), and what no code says is unknown, never background.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from nucleipan.network.fusion import DecodeConfig
from nucleipan.network.model import NetworkConfig


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceConfig(_Frozen):
    """One data set.

    ``kind`` says how it is laid out below ``folder``:

    - ``nuclei``: ``images/``, ``labels/`` (instance ids), optionally ``classes/*.json``; ``codes`` maps the JSON's
      class numbers.
    - ``tissue``: ``images/``, ``labels/`` (a code per pixel); ``codes`` maps pixel codes, others are unknown.
    - ``texture``: one subfolder per class, the whole image is that class; ``codes`` maps subfolder names.
    """

    folder: str
    kind: Literal["nuclei", "tissue", "texture"]
    mpp: float = Field(gt=0, description="micrometres per pixel of the images")
    weight: float = Field(ge=0, description="share of the samples drawn, relative to the other sources")
    codes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    licence: str = Field("not stated", description="terms of the data; goes into the header of the weights")


class ScheduleConfig(_Frozen):
    """AdamW with linear warm-up and a cosine to zero; the shipped weights are an exponential moving average."""

    steps: int = Field(gt=0)
    batch_size: int = Field(8, gt=0)
    crop: int = Field(256, ge=64, multiple_of=32)
    learning_rate: float = Field(1.5e-3, gt=0)
    weight_decay: float = Field(0.02, ge=0)
    warmup_steps: int = Field(200, ge=0)
    ema_decay: float = Field(0.998, ge=0, lt=1)
    seed: int = 0
    checkpoint_every: int = Field(500, gt=0)
    validate_every: int = Field(1000, gt=0)


class AugmentationConfig(_Frozen):
    scale: tuple[float, float] = Field((0.75, 1.35), description="range of the random change of scale")
    stain: float = Field(0.15, ge=0, description="spread of the stain jitter in optical density")
    low_resolution: float = Field(0.25, ge=0, le=1, description="chance of being seen as if scanned coarser")
    noise: float = Field(0.2, ge=0, le=1)


class LossConfig(_Frozen):
    semantic: float = Field(1.0, ge=0)
    mask: float = Field(1.0, ge=0)
    offsets: float = Field(2.0, ge=0)
    thing_pixel: float = Field(3.0, gt=0, description="weight of a nucleus pixel in the semantic loss")


class TrainConfig(_Frozen):
    """A complete run; see ``configs/`` for examples."""

    name: str
    mpp: float = Field(0.5, gt=0, description="micrometres per pixel the network works at")
    data_root: Path
    splits: Path = Field(description="JSON: folder -> {train: [stems], val: [stems]}")
    output: Path
    initial_weights: str = Field(
        "imagenet",
        description="imagenet, random, the name of an embedded model, or a weights file: what fits by name and shape",
    )
    licence: str = Field("not stated", description="terms of the trained weights")
    network: NetworkConfig = NetworkConfig()
    decode: DecodeConfig = DecodeConfig()
    sources: tuple[SourceConfig, ...]
    augmentation: AugmentationConfig = AugmentationConfig()
    loss: LossConfig = LossConfig()
    schedule: ScheduleConfig
    validate_on: tuple[str, ...] = Field((), description="nuclei sources whose val images are scored while training")
