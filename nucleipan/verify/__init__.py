"""Is a store what it was when it was finished, and does it agree with itself?

Three questions, in this order:

1. Every file is as its checksum says, none is missing and none too many.
2. Every chunk of labels can be read, and the coarser levels are strided copies of the finest.
3. Table and raster tell the same of every nucleus: id, class, pixels, bounding box, centroid.

The first finds every changed bit. The others find what checksums cannot: a store that was wrong when they were made,
or one of an earlier version, which has none. A store is read twice, a shard at a time; memory holds 120 bytes for
every nucleus and no plane. Corrections (``edits/``) have digests of their own, which are looked at where they are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nucleipan.errors import StoreError
from nucleipan.progress import Progress
from nucleipan.store import CHECKSUMS, Finding, PanopticStore, damaged_files, read_checksums
from nucleipan.verify.agreement import disagreements
from nucleipan.verify.pixels import PixelCount, open_pyramids
from nucleipan.verify.rows import TABLE, read_rows

__all__ = ["Verification", "verify_store"]


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found. A store is sound if there are no ``findings``.

    Attributes:
        n_files: with checksums; None for a store of an earlier version, which has none.
        n_nuclei: rows of the table.
        n_pixels: of the finest level.
    """

    path: Path
    findings: tuple[Finding, ...]
    n_files: int | None = None
    n_nuclei: int = 0
    n_pixels: int = 0


def verify_store(path: str | Path, progress: Progress | None = None) -> Verification:
    """Look at every file, pixel and row of the finished store at ``path``; nothing is changed.

    Where files that hold nuclei are damaged, or others are missing, table and pixels are not looked at: they would
    differ for that reason.

    Raises:
        StoreError: there is no finished store of nucleipan's, or its kind cannot be told.
    """
    path = Path(path)
    progress = progress or (lambda done, total, step: None)
    if not path.is_dir() or path.name.endswith(".partial"):
        PanopticStore.open(path)  # says why not
    findings = damaged_files(path, progress)
    if any(_holds_nuclei(finding.file) for finding in findings):
        return Verification(path, tuple(findings))
    try:
        store = PanopticStore.open(path)
    except StoreError:
        if findings:
            return Verification(path, tuple(findings))
        raise
    findings += _contradictions(store, progress)
    sums = read_checksums(path)
    n_files = None if sums is None else len(sums)
    return Verification(path, tuple(findings), n_files, store.n_nuclei, store.shape[0] * store.shape[1])


def _holds_nuclei(file: str) -> bool:
    return file in ("zarr.json", TABLE, CHECKSUMS, ".") or file.startswith("labels/")


def _contradictions(store: PanopticStore, progress: Progress) -> list[Finding]:
    """What is wrong with pixels and rows."""
    pyramids, found = open_pyramids(store)
    rows, found_in_rows = read_rows(store)
    found += found_in_rows
    if pyramids is None or rows is None:
        return found
    count = PixelCount.of(store, pyramids, rows)
    count.run(progress)
    found += count.findings.values()
    return found + disagreements(store, rows, count) if count.is_complete else found
