"""Verifying for people: a bar while it lasts, a line for each finding, a line for each sound store."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from nucleipan.errors import StoreError, printable
from nucleipan.store import Progress
from nucleipan.verify import Verification, verify_store


def verify_stores(paths: Sequence[Path]) -> int:
    """Verify every store; sound ones are said on stdout, findings on stderr. Returns how many are not sound."""
    n_unsound = 0
    for path in paths:
        try:
            with _shown_progress(printable(path.name)) as progress:
                result = verify_store(path, progress)
        except StoreError as error:
            n_unsound += 1
            print(f"nucleipan: {printable(error)}", file=sys.stderr)
            continue
        for finding in result.findings:
            print(printable(f"nucleipan: {path / finding.file}: {finding.what}; {finding.advice}"), file=sys.stderr)
        if result.findings:
            n_unsound += 1
        else:
            print(printable(_line(result)), flush=True)
    return n_unsound


def _line(result: Verification) -> str:
    files = (
        "no checksums (an earlier version wrote it), table and raster agree"
        if result.n_files is None
        else f"{result.n_files:,} files"
    )
    return f"{result.path}: ok, {files}, {result.n_nuclei:,} nuclei, {result.n_pixels / 1e6:,.1f} Mpx"


@contextmanager
def _shown_progress(name: str) -> Iterator[Progress | None]:
    """A bar on a terminal, nothing in a log: the lines are the result."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=None)

        def update(done: int, total: int, step: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{name}: {step}")

        yield update
