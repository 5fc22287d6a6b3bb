"""Make the drawings of the concepts, which lie in ``docs/images`` so that they show where nothing is built.

    python docs/drawings [--out docs/images]

Where a drawing shows what the package computes (tiles, views, votes), the package computes it. A test fails if a
picture is not what this makes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pixels
import seams
import storage
import voting

DRAWINGS = {
    "panoptic": pixels.panoptic,
    "pixel-grid": pixels.pixel_grid,
    "tiles": pixels.tiles,
    "centre-voting": voting.centre_voting,
    "stitching": seams.stitching,
    "store": storage.store,
    "resume": storage.resume,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "images")
    out = parser.parse_args().out
    for name, draw in DRAWINGS.items():
        (out / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
