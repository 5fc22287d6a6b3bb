"""What a training run says: a progress bar on a terminal, and one JSON object a line in ``log.jsonl``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_EVERY = 50


class TrainLog:
    """Averages the losses of `_EVERY` steps into a line. Lines of an interrupted run stay; new ones follow."""

    def __init__(self, path: Path, step: int, n_steps: int) -> None:
        self._file = path.open("a")
        self._sums: dict[str, float] = {}
        self._count = 0
        self._since = time.perf_counter()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("training", total=n_steps, completed=step)

    def __enter__(self) -> TrainLog:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._file.close()

    def add(self, step: int, losses: dict[str, float]) -> None:
        """Count one step."""
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        self._bar.update(self._task, completed=step, description=f"loss {losses['total']:.3f}")
        if step % _EVERY == 0:
            seconds = (time.perf_counter() - self._since) / self._count
            means = {name: round(total / self._count, 4) for name, total in self._sums.items()}
            self.write({"step": step, "s_per_step": round(seconds, 3)} | means)
            self._sums.clear()
            self._count, self._since = 0, time.perf_counter()

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        print(json.dumps(line), file=self._file, flush=True)
