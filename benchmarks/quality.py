"""Are pen and blur found, and is good tissue kept? A slide degraded in known ways, and folders of good images.

    python benchmarks/quality.py ../shared/data/slides/CMU-1-Small-Region.svs --kept ../shared/data/tissue/kather2016

*Blur*: the left half of the slide, Gaussian of a standard deviation in µm. Printed are the share of the half's tissue
that becomes void, that of the other half (both 100 µm away from the border), the nuclei that the model finds in the
half all the same, and those that remain when the map is used. *Pen*: a stroke of 150 µm, four fifths opaque, across
tissue and glass; printed is the share of the stroke on either that becomes void, and that of tissue further than 60 µm
away. *Kept*: images of a folder at 0.5 µm per pixel, side by side as one slide, a line for each subfolder.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from scipy import ndimage

from nucleipan.geometry import Box
from nucleipan.network.weights import Model, load_model
from nucleipan.segment import SegmentOptions, segment_slide
from nucleipan.slide import ArraySlide, QualityMap, at_mpp, open_slide, quality_map, tissue_mask
from nucleipan.slide.quality import OUT_OF_FOCUS, PEN

SIGMAS_UM = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0)
INKS = {"green": (20, 150, 80), "blue": (30, 70, 180), "black": (25, 25, 30), "red": (210, 30, 50)}
OPACITY = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--model", default="nucleipan-fast")
    parser.add_argument("--kept", type=Path, nargs="*", default=[], help="folders of images that are good")
    args = parser.parse_args()

    with open_slide(args.slide) as slide:
        view = at_mpp(slide, slide.mpp or 0.5)
        rgb, mpp = view.read(Box.of_shape(view.shape)), view.mpp
    model = load_model(args.model)
    print("blur um  called blurred  other half  nuclei  left by the map")
    for sigma_um in SIGMAS_UM:
        print(blur_line(rgb, mpp, sigma_um, model), flush=True)
    print("ink     on tissue  on glass  other tissue")
    for name, ink in INKS.items():
        print(pen_line(rgb, mpp, name, ink), flush=True)
    for folder in args.kept:
        for path in sorted({p.parent for p in folder.rglob("*.jpg")}):
            print(kept_line(path), flush=True)


def blur_line(rgb: np.ndarray, mpp: float, sigma_um: float, model: Model) -> str:
    half, rim = rgb.shape[1] // 2, round(100 / mpp)
    degraded, sigma = rgb.copy(), sigma_um / mpp
    if sigma_um:
        degraded[:, :half] = ndimage.gaussian_filter(rgb, (sigma, sigma, 0))[:, :half]
    quality, is_tissue = judged(degraded, mpp)
    void = quality.void(Box.of_shape(is_tissue.shape))
    x, y = centres(degraded, mpp, model)
    is_inside = x < half
    n_left = int((is_inside & ~void[y, x]).sum())
    inside, outside = (share(void[:, s], is_tissue[:, s]) for s in (np.s_[: half - rim], np.s_[half + rim :]))
    return f"{sigma_um:7.1f}  {inside:14.1%}  {outside:10.2%}  {is_inside.sum():6d}  {n_left:15d}"


def pen_line(rgb: np.ndarray, mpp: float, name: str, ink: tuple[int, int, int]) -> str:
    height, width = rgb.shape[:2]
    y, x = np.mgrid[:height, :width]
    is_stroke = np.abs(y - height / 2 - 0.3 * height * np.sin(6 * x / width)) * mpp < 75
    away = ndimage.distance_transform_edt(~is_stroke) * mpp
    paint, light = np.array(ink) / 255, rgb / 255
    on_tissue = judged(rgb, mpp)[1]
    drawn = np.where(is_stroke[..., None], light * (1 - OPACITY + OPACITY * paint), light)
    quality, _ = judged(np.rint(255 * drawn).astype(np.uint8), mpp)
    void = quality.void(Box.of_shape((height, width)))
    parts = (on_tissue & is_stroke, ~on_tissue & is_stroke, on_tissue & (away > 60))
    return f"{name:7s} {share(void, parts[0]):9.1%}  {share(void, parts[1]):8.1%}  {share(void, parts[2]):12.2%}"


def kept_line(folder: Path) -> str:
    """All images of a folder as one slide."""
    images = [imagecodecs.imread(p)[..., :3] for p in sorted(folder.glob("*.jpg"))]
    side = min(min(i.shape[:2]) for i in images)
    n = max(1, int(len(images) ** 0.5))
    rows = [np.concatenate([i[:side, :side] for i in images[k : k + n]], 1) for k in range(0, n * n, n)]
    quality, _ = judged(np.concatenate(rows), 0.5)
    cells = [int((quality.kinds == kind).sum()) for kind in (PEN, OUT_OF_FOCUS)]
    n_tissue = max(1, int((quality.kinds > 0).sum()))
    pen, blurred = (f"{count / n_tissue:.2%}" for count in cells)
    return f"{folder.parent.name}/{folder.name}: {n * n} images, pen {pen}, out of focus {blurred}"


def judged(rgb: np.ndarray, mpp: float) -> tuple[QualityMap, np.ndarray]:
    """The map, and bool[h, w], pixels that absorb light."""
    with ArraySlide(Path("array"), rgb, mpp=mpp) as slide:
        view = at_mpp(slide, mpp)
        return quality_map(view, tissue_mask(view)), ndimage.uniform_filter(rgb.min(-1), round(8 / mpp)) < 220


def centres(rgb: np.ndarray, mpp: float, model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Pixels x, y of all nuclei that the model finds, whatever the map says."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        tifffile.imwrite(path, rgb, photometric="rgb", tile=(256, 256), compression="deflate")
        store = segment_slide(path, Path(folder), model, SegmentOptions(mpp=mpp, all_tissue=True)).store
        table = store.nuclei(["centroid_x", "centroid_y"])
    x, y = (table[name].to_numpy().astype(int) for name in ("centroid_x", "centroid_y"))
    return x, y


def share(mask: np.ndarray, of: np.ndarray) -> float:
    return float((mask & of).sum() / max(1, of.sum()))


if __name__ == "__main__":
    main()
