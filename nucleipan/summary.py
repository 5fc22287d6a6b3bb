"""``summary.csv`` of a batch: one row a slide, for a spreadsheet or a script."""

from __future__ import annotations

import csv
from pathlib import Path

from nucleipan.errors import printable
from nucleipan.files import defused, whole_file
from nucleipan.segment import SegmentResult
from nucleipan.slide.quality import UNUSABLE

_COLUMNS = (
    "slide", "status", "store", "nuclei", "area_mm2", "seconds", "tiles", "tiles_computed", "mpp", "model",
    *UNUSABLE, "notes",
)  # fmt: skip


class BatchSummary:
    """The rows so far; ``write`` after each slide, so that a batch that is stopped leaves what it did."""

    def __init__(self) -> None:
        self.n_failed = 0
        self._rows: list[dict[str, str | int]] = []

    def add(self, slide: Path, result: SegmentResult) -> None:
        """A slide that was segmented, now or earlier."""
        store = result.store
        quality = store.quality  # shares of the tissue
        self._add(
            slide=str(slide),
            status="done" if result.summary else "was done",
            store=str(store.path),
            nuclei=store.n_nuclei,
            area_mm2=f"{store.spec.extent.area * store.mpp**2 / 1e6:.4f}",
            seconds=f"{result.seconds:.1f}",
            tiles=result.n_tiles,
            tiles_computed=result.n_computed,
            mpp=f"{store.mpp:.4f}",
            model=store.model["name"],
            **{kind: f"{quality[kind]:.4f}" for kind in UNUSABLE if kind in quality},
            notes="; ".join(result.notes),
        )

    def add_failure(self, slide: Path, why: str) -> None:
        """A slide that failed."""
        self.n_failed += 1
        self._add(slide=str(slide), status="failed", notes=why)

    def write(self, path: Path) -> None:
        """Raises DataError if the file cannot be written."""
        with whole_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(self._rows)

    def _add(self, **row: str | int) -> None:
        self._rows.append({k: _cell(str(v)) for k, v in row.items()})


def _cell(text: str) -> str:
    """``text`` on one line, and never a formula: file names come from outside."""
    return defused(printable(text))
