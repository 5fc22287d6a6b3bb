"""Lightning's checkpoints as safetensors: tensors in the body, everything else as JSON in the header.

Lightning would pickle them. A run can be continued from a file that somebody sent, and a pickle runs what it holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nucleipan.documents import json_value
from nucleipan.errors import ModelError
from nucleipan.files import whole_file

_HEADER_KEY = "nucleipan_training"
_TENSOR, _PAIRS, _TUPLE = "__tensor__", "__pairs__", "__tuple__"


class SafetensorsCheckpoints(CheckpointIO):
    """Writes each checkpoint in one piece: a run killed while writing leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        tensors: dict[str, Tensor] = {}
        header = json.dumps(_to_json(checkpoint, tensors))
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_bytes(save(tensors, metadata={_HEADER_KEY: header}))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Raises ModelError if the file is damaged or none of ours."""
        try:
            with safe_open(path, framework="pt") as file:
                header = (file.metadata() or {}).get(_HEADER_KEY)
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            if header is None:
                raise ModelError(f"{path}: is no checkpoint of a training run; remove it to start afresh")
            return _from_json(json_value(header), tensors)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{path}: checkpoint cannot be read ({error}); remove it to start afresh") from error

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class KeepState(Callback):
    """Saves the whole state every so many steps, and apart from it the state that scored best, if asked for.

    Lightning's own callback decides by metrics that exist only after a validation when to save; a run must be
    able to continue whether it validates or not.
    """

    def __init__(self, folder: Path, every: int, monitor: str | None = None) -> None:
        self.last, self.best = folder / "last.safetensors", folder / "best.safetensors"
        self._every, self._monitor = every, monitor
        self._best_score = float("-inf")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self._every == 0 or trainer.global_step == trainer.max_steps:
            trainer.save_checkpoint(self.last)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._monitor is None:
            return
        score = float(trainer.callback_metrics[self._monitor])
        if score > self._best_score:
            self._best_score = score
            trainer.save_checkpoint(self.best)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self._best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best_score = state_dict["best_score"]


def _to_json(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON form of nested containers; tensors move to ``tensors`` under a number."""
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: key}
    if isinstance(value, Mapping):
        return {_PAIRS: [[_to_json(k, tensors), _to_json(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_to_json(v, tensors) for v in value]}
    if isinstance(value, list):
        return [_to_json(v, tensors) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a checkpoint holds tensors, numbers, text and containers; found {type(value).__name__}")


def _from_json(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_from_json(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == _TENSOR:
        return tensors[content]
    if kind == _TUPLE:
        return tuple(_from_json(v, tensors) for v in content)
    return {_from_json(k, tensors): _from_json(v, tensors) for k, v in content}
