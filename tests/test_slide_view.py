"""``SlideView`` against a naive resampling of the whole level, and its promise about boxes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleipan.errors import MissingPixelSizeError, RegionError, SlideError
from nucleipan.geometry import Box
from nucleipan.slide import Level, at_mpp, tissue_mask
from nucleipan.slide import view as view_module
from nucleipan.slide._types import check_region


class ArraySlide:
    """A slide in memory: the seam that lets resampling be tested without files."""

    format = "array"
    objective = None
    compression = None

    def __init__(self, image: np.ndarray, mpp: float | None, downsamples: tuple[int, ...] = (1,)) -> None:
        self.path, self.mpp = Path("array"), mpp
        self.arrays = [np.ascontiguousarray(image[::d, ::d]) for d in downsamples]
        pairs = zip(self.arrays, downsamples, strict=True)
        self.levels = tuple(Level((a.shape[0], a.shape[1]), float(d)) for a, d in pairs)
        self.most_pixels_read = 0

    def read(self, level: int, box: Box) -> np.ndarray:
        check_region(self, level, box)
        self.most_pixels_read = max(self.most_pixels_read, box.area)
        return self.arrays[level][box.y0 : box.y1, box.x0 : box.x1].copy()

    def close(self) -> None: ...

    def __enter__(self) -> ArraySlide:
        return self

    def __exit__(self, *_: object) -> None: ...


def noise(h: int, w: int) -> np.ndarray:
    return np.random.default_rng(h * w).integers(0, 256, (h, w, 3), np.uint8)


def naive_area(image: np.ndarray, scale: float, shape: tuple[int, int]) -> np.ndarray:
    """float64: every pixel the mean of the area it covers, pixel by pixel with exact edges."""

    def weights(n_out: int, n_in: int) -> np.ndarray:
        matrix = np.zeros((n_out, n_in))
        for i in range(n_out):
            for k in range(n_in):
                matrix[i, k] = max(0.0, min((i + 1) * scale, k + 1) - max(i * scale, k))
        return matrix / matrix.sum(1, keepdims=True)

    rows, cols = weights(shape[0], image.shape[0]), weights(shape[1], image.shape[1])
    return np.einsum("ik,klc,jl->ijc", rows, image.astype(float), cols)


def naive_bilinear(image: np.ndarray, scale: float, shape: tuple[int, int]) -> np.ndarray:
    out = np.empty((*shape, 3))
    h, w = image.shape[:2]
    for i in range(shape[0]):
        for j in range(shape[1]):
            y, x = min(max((i + 0.5) * scale - 0.5, 0), h - 1), min(max((j + 0.5) * scale - 0.5, 0), w - 1)
            y0, x0 = int(y), int(x)
            y1, x1, fy, fx = min(y0 + 1, h - 1), min(x0 + 1, w - 1), y - int(y), x - int(x)
            top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
            out[i, j] = top * (1 - fy) + (image[y1, x0] * (1 - fx) + image[y1, x1] * fx) * fy
    return out


@pytest.mark.parametrize("mpp", [0.25, 0.26, 0.5, 0.49, 0.74, 1.0, 4.1])
def test_integer_scales_are_exact_box_means(mpp: float) -> None:
    image = noise(67, 81)
    view = at_mpp(ArraySlide(image, 0.25), mpp)
    factor = round(mpp / 0.25)
    assert view.scale == factor
    assert view.mpp == 0.25 * factor
    assert view.shape == (math.floor(67 / factor + 0.5), math.floor(81 / factor + 0.5))
    found = view.read(Box.of_shape(view.shape))
    expected = np.floor(naive_area(image, factor, view.shape) + 0.5 + 1e-9)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mpp", [0.33, 0.4, 0.61, 0.87, 1.13])
def test_fractional_scales_are_area_means(mpp: float) -> None:
    image = noise(67, 81)
    view = at_mpp(ArraySlide(image, 0.25), mpp)
    assert view.mpp == pytest.approx(mpp)
    assert not view.is_upsampled
    found = view.read(Box.of_shape(view.shape))
    assert np.abs(found - naive_area(image, view.scale, view.shape)).max() < 1.2


@pytest.mark.parametrize("mpp", [0.23, 0.2, 0.125, 0.06])
def test_upsampling_is_bilinear_and_says_so(mpp: float) -> None:
    image = noise(23, 31)
    view = at_mpp(ArraySlide(image, 0.25), mpp)
    assert view.is_upsampled
    found = view.read(Box.of_shape(view.shape))
    assert np.abs(found - naive_bilinear(image, view.scale, view.shape)).max() < 1.6


@settings(max_examples=120, deadline=None)
@given(
    st.floats(0.07, 3.0),
    st.integers(5, 90),
    st.integers(5, 90),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.integers(1, 3000),
)
def test_a_pixel_never_depends_on_its_box(
    mpp: float, h: int, w: int, part: tuple[float, float, float, float], strip: int
) -> None:
    view = at_mpp(ArraySlide(noise(h, w), 0.25), mpp)
    whole = Box.of_shape(view.shape)
    full = view.read(whole)
    ys, xs = sorted(round(p * view.shape[0]) for p in part[:2]), sorted(round(p * view.shape[1]) for p in part[2:])
    box = Box(min(ys[0], view.shape[0] - 1), min(xs[0], view.shape[1] - 1), ys[1], xs[1])
    box = Box(box.y0, box.x0, max(box.y1, box.y0 + 1), max(box.x1, box.x0 + 1))
    expected = full[box.slices(whole)]
    np.testing.assert_array_equal(view.read(box), expected)
    with pytest.MonkeyPatch.context() as patch:  # read strip by strip
        patch.setattr(view_module, "_MAX_SOURCE_PIXELS", strip)
        np.testing.assert_array_equal(view.read(box), expected)


@settings(max_examples=100, deadline=None)
@given(st.floats(0.07, 20.0), st.integers(40, 3000), st.integers(40, 3000))
def test_nothing_beyond_half_a_pixel_is_lost(mpp: float, h: int, w: int) -> None:
    view = at_mpp(ArraySlide(np.zeros((1, 1, 3), np.uint8), 0.25), 0.25)
    slide = ArraySlide(np.zeros((1, 1, 3), np.uint8), 0.25)
    slide.levels = (Level((h, w), 1.0),)
    view = at_mpp(slide, mpp)
    for n, size in zip(view.shape, (h, w), strict=True):
        assert abs(n - size / view.scale) <= max(0.5, 1 - size / view.scale) + 1e-9


def test_the_coarsest_level_that_is_fine_enough() -> None:
    slide = ArraySlide(noise(320, 320), 0.25, (1, 4, 16))
    for mpp, level, scale in (
        (0.25, 0, 1),
        (0.5, 0, 2),
        (0.97, 1, 1),
        (1.0, 1, 1),
        (2.0, 1, 2),
        (4.0, 2, 1),
        (8.0, 2, 2),
    ):
        view = at_mpp(slide, mpp)
        assert (view.level, view.scale) == (level, scale)
        assert view.level0_per_pixel == pytest.approx(mpp / 0.25, rel=0.05)


def test_given_pixel_size_overrules() -> None:
    assert at_mpp(ArraySlide(noise(9, 9), 0.25), 0.5, slide_mpp=0.5).scale == 1
    assert at_mpp(ArraySlide(noise(9, 9), None), 0.5, slide_mpp=0.25).scale == 2


def test_missing_pixel_size_names_the_option() -> None:
    with pytest.raises(MissingPixelSizeError, match="--mpp"):
        at_mpp(ArraySlide(noise(9, 9), None), 0.5)


@pytest.mark.parametrize("bad", [0.0, -0.5, math.nan, math.inf, 0.001, 1000.0])
def test_absurd_pixel_sizes(bad: float) -> None:
    slide = ArraySlide(noise(9, 9), 0.25)
    with pytest.raises(SlideError, match="pixel size"):
        at_mpp(slide, bad)
    with pytest.raises(SlideError, match="pixel size"):
        at_mpp(slide, 0.5, slide_mpp=bad)


def test_too_coarse_a_slide_is_refused() -> None:
    assert at_mpp(ArraySlide(noise(9, 9), 2.0), 0.5).is_upsampled
    with pytest.raises(SlideError, match="too coarse"):
        at_mpp(ArraySlide(noise(9, 9), 2.2), 0.5)


def test_boxes_outside_are_refused() -> None:
    view = at_mpp(ArraySlide(noise(40, 60), 0.25), 0.5)
    for bad in (Box(0, 0, 21, 30), Box(-1, 0, 5, 5), Box(3, 3, 3, 9)):
        with pytest.raises(RegionError):
            view.read(bad)


def test_large_boxes_are_read_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_module, "_MAX_SOURCE_PIXELS", 10_000)
    slide = ArraySlide(noise(800, 900), 0.25)
    view = at_mpp(slide, 2.0)
    view.read(Box.of_shape(view.shape))
    assert slide.most_pixels_read <= 10_000


def tissue_picture() -> np.ndarray:
    """Glass with a pink disc of 300 um radius, at 1 um per pixel."""
    y, x = np.mgrid[:1200, :1600]
    image = np.full((1200, 1600, 3), 243, np.int16)
    image[np.hypot(y - 500, x - 700) < 300] = (222, 160, 190)
    image += np.random.default_rng(0).integers(-4, 5, image.shape, np.int16)
    return np.clip(image, 0, 255).astype(np.uint8)


def test_tissue_is_found_and_grown() -> None:
    view = at_mpp(ArraySlide(tissue_picture(), 1.0), 1.0)
    tissue = tissue_mask(view)
    assert tissue.any_in(Box(490, 690, 510, 710))
    assert tissue.any_in(Box(500, 1020, 510, 1030))  # within 50 um of the edge
    assert not tissue.any_in(Box(0, 0, 100, 100))
    assert not tissue.any_in(Box(500, 1150, 510, 1160))
    assert 0.14 < tissue.fraction < 0.3
    every = [tissue.any_in(Box(y, x, y + 200, x + 200)) for y in range(0, 1200, 200) for x in range(0, 1600, 200)]
    assert 0 < sum(every) < len(every)


@pytest.mark.parametrize(
    ("color", "fraction"), [((243, 243, 243), 0), ((255, 255, 255), 0), ((200, 120, 160), 1), ((233, 205, 222), 1)]
)
def test_slides_of_one_kind(color: tuple[int, int, int], fraction: int) -> None:
    image = np.clip(np.array(color) + np.random.default_rng(0).integers(-6, 7, (900, 900, 3)), 0, 255).astype(np.uint8)
    assert tissue_mask(at_mpp(ArraySlide(image, 0.5), 0.5)).fraction == fraction


def test_a_flat_image_smaller_than_a_mask_pixel() -> None:
    tissue = tissue_mask(at_mpp(ArraySlide(np.full((5, 7, 3), 120, np.uint8), 0.25), 0.25))
    assert tissue.any_in(Box(0, 0, 5, 7))
    assert tissue.any_in(Box(4, 6, 5, 7))


def test_the_last_pixels_of_a_view_have_a_mask_pixel() -> None:
    view = at_mpp(ArraySlide(np.full((1013, 1029, 3), 120, np.uint8), 0.5), 0.5)
    tissue = tissue_mask(view)
    assert tissue.any_in(Box(1012, 1028, 1013, 1029))
    assert not tissue.any_in(Box(2000, 2000, 2001, 2001))


@pytest.mark.shared
def test_tissue_of_a_real_slide(shared_slides: Path) -> None:
    from nucleipan.slide import open_slide

    with open_slide(shared_slides / "TCGA-V5-A7RE-tissue.svs") as slide:
        view = at_mpp(slide, 0.5)
        tissue = tissue_mask(view)
    assert 0.4 < tissue.fraction < 0.55
    assert tissue.any_in(Box(2000, 3500, 2100, 3600))
    assert not tissue.any_in(Box(100, 100, 1000, 1000))
