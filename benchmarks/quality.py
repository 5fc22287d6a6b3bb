"""Are pen, folds and blur found, and is good tissue kept? A slide degraded in known ways, and folders of good images.

    python benchmarks/quality.py ../shared/data/slides/CMU-1-Small-Region.svs --kept ../shared/data/tissue/kather2016

*Blur*: the left half of the slide, Gaussian of a standard deviation in µm. Printed are the share of the half's tissue
that becomes void, that of the other half (both 100 µm away from the border), the nuclei that the model finds in the
half all the same, and those that remain when the map is used. *Pen*: a stroke of 150 µm, four fifths opaque, across
tissue and glass; printed is the share of the stroke on either that becomes void, and that of tissue further than 60 µm
away. *Fold*: a strip in which the slide lies on a part of itself from 350 µm away; printed is the share of what is
tissue in both layers that becomes void, and that of other tissue. *Kept*: images of a folder at 0.5 µm per pixel, side
by side as one slide, a line for each subfolder.
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
from nucleipan.slide.quality import GLASS, UNUSABLE

SIGMAS_UM = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0)
INKS = {"green": (20, 150, 80), "blue": (30, 70, 180), "black": (25, 25, 30), "red": (210, 30, 50)}
OPACITY = 0.8
FOLD_WIDTHS_UM = (50.0, 100.0, 200.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--model", default="nucleipan-fast")
    parser.add_argument("--mpp", type=float, help="of the slide's full resolution, if it does not say")
    parser.add_argument("--no-blur", action="store_true", help="leave out what takes long: nuclei under blur")
    parser.add_argument("--kept", type=Path, nargs="*", default=[], help="folders of images that are good")
    args = parser.parse_args()

    with open_slide(args.slide) as slide:
        view = at_mpp(slide, max(0.5, args.mpp or slide.mpp or 0.5), slide_mpp=args.mpp)
        rgb, mpp = view.read(Box.of_shape(view.shape)), view.mpp
    quality, _ = judged(rgb, mpp)
    print(f"as it is: {shares(quality)}")
    if not args.no_blur:
        model = load_model(args.model)
        print("blur um  called blurred  other half  nuclei  left by the map")
        for sigma_um in SIGMAS_UM:
            print(blur_line(rgb, mpp, sigma_um, model), flush=True)
    print("ink     on tissue  on glass  other tissue")
    for name, ink in INKS.items():
        print(pen_line(rgb, mpp, name, ink), flush=True)
    print("fold um  found  other tissue")
    for width_um in FOLD_WIDTHS_UM:
        print(fold_line(rgb, mpp, width_um), flush=True)
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


def stroke(shape: tuple[int, ...], mpp: float, width_um: float) -> tuple[np.ndarray, np.ndarray]:
    """bool[h, w], a wavy line from left to right, and the distance from it in micrometres."""
    height, width = shape[:2]
    y, x = np.mgrid[:height, :width]
    inside = np.abs(y - height / 2 - 0.3 * height * np.sin(6 * x / width)) * mpp < width_um / 2
    return inside, ndimage.distance_transform_edt(~inside) * mpp


def pen_line(rgb: np.ndarray, mpp: float, name: str, ink: tuple[int, int, int]) -> str:
    is_stroke, away = stroke(rgb.shape, mpp, 150)
    paint, light = np.array(ink) / 255, rgb / 255
    before, on_tissue = judged(rgb, mpp)
    drawn = np.where(is_stroke[..., None], light * (1 - OPACITY + OPACITY * paint), light)
    quality, _ = judged(np.rint(255 * drawn).astype(np.uint8), mpp)
    box = Box.of_shape(is_stroke.shape)
    void, others = quality.void(box), quality.void(box) & ~before.void(box)
    on_glass = share(void, ~on_tissue & is_stroke)
    rest = share(others, on_tissue & (away > 60))
    return f"{name:7s} {share(void, on_tissue & is_stroke):9.1%}  {on_glass:8.1%}  {rest:12.2%}"


def fold_line(rgb: np.ndarray, mpp: float, width_um: float) -> str:
    inside, away = stroke(rgb.shape, mpp, width_um)
    under = np.roll(rgb, (round(300 / mpp), round(180 / mpp)), (0, 1))
    folded = np.where(inside[..., None], np.rint(rgb / 255 * under), rgb).astype(np.uint8)
    before, is_tissue = judged(rgb, mpp)
    quality, _ = judged(folded, mpp)
    box = Box.of_shape(inside.shape)
    is_double = inside & is_tissue & judged(under, mpp)[1]
    found, others = share(quality.void(box), is_double), quality.void(box) & ~before.void(box)
    return f"{width_um:7.0f}  {found:5.1%}  {share(others, is_tissue & (away > 60)):12.2%}"


def kept_line(folder: Path) -> str:
    """All images of a folder as one slide."""
    images = [imagecodecs.imread(p)[..., :3] for p in sorted(folder.glob("*.jpg"))]
    side = min(min(i.shape[:2]) for i in images)
    n = max(1, int(len(images) ** 0.5))
    rows = [np.concatenate([i[:side, :side] for i in images[k : k + n]], 1) for k in range(0, n * n, n)]
    quality, _ = judged(np.concatenate(rows), 0.5)
    return f"{folder.parent.name}/{folder.name}: {n * n} images, {shares(quality)}"


def shares(quality: QualityMap) -> str:
    n_tissue = max(1, int((quality.kinds > GLASS).sum()))
    return ", ".join(f"{name} {(quality.kinds == kind).sum() / n_tissue:.2%}" for name, kind in UNUSABLE.items())


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
