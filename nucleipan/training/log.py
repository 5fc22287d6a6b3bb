"""What a run says: a progress bar on a terminal, and one JSON object a line in ``log.jsonl``.

The log holds losses every so many steps and scores after each validation. Lines of an interrupted run stay; new ones
follow.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import Progress, TextColumn

from nucleipan.progress import columns


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


class StepBar(Callback):
    """Steps done and to come, on a terminal. Lightning's bars count epochs, and a run here is a number of steps."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        text = TextColumn("{task.description}")
        self._bar = Progress(*columns(text), console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("training", total=None)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._bar.update(self._task, total=trainer.max_steps, completed=trainer.global_step)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._bar.update(self._task, completed=trainer.global_step, description=f"loss {float(outputs['loss']):.3f}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if "val/pq" in trainer.callback_metrics and not self._bar.disable:
            score = float(trainer.callback_metrics["val/pq"])
            self._bar.console.print(f"step {trainer.global_step}: mean PQ of validation images {score:.3f}")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._bar.stop()
