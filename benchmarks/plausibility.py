"""How training images are stained, and how large their nuclei are: the limits that ``nucleipan.plausible`` knows.

    python benchmarks/plausibility.py --data ../shared/data

For stain, every training image with a known pixel size: mean optical density of its tissue, in cells of 8 µm as in a
run, as haematoxylin, eosin and the angle to what can be mixed of both. For size, every training image with at least 20
annotated nuclei: the median of their areas. Printed are least, most and percentiles of all images of a set, each
image counting once, and the largest share of an image that would become void.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np

from nucleipan.plausible import stain_of
from nucleipan.slide import ArraySlide, at_mpp, quality_map, tissue_mask

#: Pixel size of each set, micrometres; those with nuclei first.
SETS = {
    "nuclei/monuseg_train": 0.25, "nuclei/consep_train": 0.25, "nuclei/tnbc": 0.25, "nuclei/dsb2018_he": 0.25,
    "nuclei/nucls_sample": 0.25, "tissue/glas_train": 0.62, "tissue/ebhi": 1.0, "tissue/wsss4luad": 1.0,
    "tissue/kather2016": 0.495, "tissue/crc_he": 0.5, "tissue/crc_thumbs": 1.04, "tissue/osteosarcoma": 1.0,
}  # fmt: skip
FEWEST = 20
SHARES = (0, 0.5, 5, 50, 95, 99.5, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="train")
    args = parser.parse_args()

    splits = json.loads((args.data / "splits.json").read_text())
    print(f"set{'':25s}images  what{'':15s}" + "".join(f"{share:>8g} %" for share in SHARES) + "  unusable")
    for name, mpp in SETS.items():
        paths = list(images(args.data / name, splits[name][args.split]))
        if not paths:
            continue
        stains, unusable = zip(*(judged(path, mpp) for path in paths), strict=True)
        found = [stain for stain in stains if stain]
        for what in found[0]:
            show(name, what, [stain[what] for stain in found], max(unusable))
        areas = [area for path in paths if (area := median_area(path, mpp)) is not None]
        if areas:
            show(name, "area_um2", areas, max(unusable))


def images(folder: Path, stems: list[str]) -> Iterator[Path]:
    """The image of each stem, wherever in the set it lies."""
    by_stem = {p.stem: p for p in folder.rglob("*") if p.suffix in (".jpg", ".png") and "labels" not in p.parts}
    yield from (by_stem[Path(stem).stem] for stem in stems if Path(stem).stem in by_stem)


def judged(path: Path, mpp: float) -> tuple[dict[str, float] | None, float]:
    """How an image is stained, and the share of tissue that would be void, in an image."""
    with ArraySlide(path, imagecodecs.imread(path)[..., :3], mpp=mpp) as slide:
        view = at_mpp(slide, mpp)
        quality = quality_map(view, tissue_mask(view))
    unusable = float((quality.kinds > 1).sum() / max(1, (quality.kinds > 0).sum()))
    return None if quality.density is None else stain_of(quality.density), unusable


def median_area(path: Path, mpp: float) -> float | None:
    """Of annotated nuclei, in um2; None where there are few or none."""
    labels = path.parent.parent / "labels" / f"{path.stem}.png"
    if not labels.is_file() or "nuclei" not in path.parts:
        return None
    counts = np.bincount(imagecodecs.imread(labels).ravel())[1:]
    counts = counts[counts > 0]
    return float(np.median(counts)) * mpp**2 if len(counts) >= FEWEST else None


def show(name: str, what: str, values: list[float], unusable: float) -> None:
    shown = "".join(f"{value:10.3f}" for value in np.percentile(values, SHARES))
    print(f"{name:28s}{len(values):6d}  {what:17s}{shown}  {100 * unusable:6.2f} %", flush=True)


if __name__ == "__main__":
    main()
