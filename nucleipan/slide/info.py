"""What there is to know about a slide without looking at its pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nucleipan.slide.metadata import scanner_metadata
from nucleipan.slide.opening import open_slide


def describe(path: str | Path) -> dict[str, Any]:
    """JSON-ready facts: ``path, format, file_size_bytes, shape, mpp, objective, compression, levels, metadata``.

    ``shape`` is (height, width) of level 0, ``mpp`` its micrometres per pixel; ``levels`` holds shape, downsample and
    mpp of each; ``metadata`` is all else that the file says and may name a patient. What the file does not say is None.
    The size of a folder is that of all files in it.

    Raises:
        SlideError: the slide cannot be opened.
    """
    path = Path(path)
    with open_slide(path) as slide:
        return {
            "path": str(path),
            "format": slide.format,
            "file_size_bytes": _size(path),
            "shape": list(slide.levels[0].shape),
            "mpp": slide.mpp,
            "objective": slide.objective,
            "compression": slide.compression,
            "levels": [
                {
                    "shape": list(level.shape),
                    "downsample": level.downsample,
                    "mpp": None if slide.mpp is None else slide.mpp * level.downsample,
                }
                for level in slide.levels
            ],
            "metadata": scanner_metadata(path),
        }


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size
