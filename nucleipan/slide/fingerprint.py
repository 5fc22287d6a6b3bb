"""Telling slides apart without reading them whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

_PART = 1 << 20


def fingerprint(path: Path) -> str:
    """32 hex digits from a slide's size and three of its megabytes (first, middle, last).

    For a folder (OME-Zarr, DICOM), from the names and sizes of its files.
    """
    digest = hashlib.blake2b(digest_size=16)
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()} {file.stat().st_size}\n".encode())
        return digest.hexdigest()
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as slide:
        for start in sorted({0, max(0, size // 2 - _PART // 2), max(0, size - _PART)}):
            slide.seek(start)
            digest.update(slide.read(_PART))
    return digest.hexdigest()
