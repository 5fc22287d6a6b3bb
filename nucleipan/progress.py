"""How far long work is: what those who do it call, and a bar for those who wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

#: Called with how much is done, how much there is, and the name of the step.
Progress = Callable[[int, int, str], None]


def columns(text: ProgressColumn) -> tuple[ProgressColumn, ...]:
    """``text``, a bar, and the time; for ``rich.progress.Progress``."""
    from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

    return text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()


@contextmanager
def terminal_bar(name: str) -> Iterator[Progress | None]:
    """A bar on stderr that goes when it is done; None where that is no terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TextColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with Bar(*columns(TextColumn("{task.description}", markup=False)), console=console, transient=True) as bar:
        task = bar.add_task(name, total=None)

        def update(done: int, total: int, step: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{name}: {step}")

        yield update
