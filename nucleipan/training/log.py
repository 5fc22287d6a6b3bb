"""One JSON object a line in ``log.jsonl``: losses every so many steps, scores after each validation.

Lines of an interrupted run stay; new ones follow.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class LossLog(Callback):
    """Averages the losses of ``every`` steps, and of those before the last, into a line."""

    def __init__(self, path: Path, every: int) -> None:
        self._path, self._every = path, every
        self._sums: dict[str, float] = {}
        self._count = 0
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, value in outputs.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._count += 1
        if trainer.global_step % self._every == 0 or trainer.global_step == trainer.max_steps:
            seconds = (time.perf_counter() - self._since) / self._count
            means = {name: round(total / self._count, 5) for name, total in self._sums.items()}
            self._write(trainer, {"step": trainer.global_step, "s_per_step": round(seconds, 3)} | means)
            self._sums.clear()
            self._count, self._since = 0, time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        scores = {k: round(float(v), 4) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        self._write(trainer, {"step": trainer.global_step} | scores)

    def _write(self, trainer: pl.Trainer, line: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            with self._path.open("a") as file:
                print(json.dumps(line), file=file)
