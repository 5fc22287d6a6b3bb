"""Verifying for people: a bar while it lasts, a line for each finding, a line for each sound store."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from nucleipan.errors import StoreError, printable
from nucleipan.progress import terminal_bar
from nucleipan.verify import Verification, verify_store


def verify_stores(paths: Sequence[Path]) -> int:
    """Verify every store; sound ones are said on stdout, findings on stderr. Returns how many are not sound."""
    n_unsound = 0
    for path in paths:
        try:
            with terminal_bar(printable(path.name)) as progress:
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
