"""What an export may need beside the store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nucleipan.geometry import Box


@dataclass(frozen=True)
class ExportOptions:
    """What an export may need beside the store.

    Attributes:
        roi: the part to write, in level-0 pixels; all of it by default. A nucleus belongs to a part if its centroid
            lies in it. Formats of pixels hold every pixel of the part, and so nuclei that its border cuts.
        slide: the slide that the store was made from.
    """

    roi: Box | None = None
    slide: Path | None = None
