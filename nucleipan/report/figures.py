"""The plots of a report, as SVG: functions of counts, drawn without pyplot, so that nothing is shared or left open.

Text is drawn as paths, so a page looks alike everywhere, and never read as mathematics: names of classes and columns
come from files. Class colours are the store's; where colour carries a class, position and a name carry it too. Heat
maps use a scale that darkens evenly from nothing to much, and is read by lightness alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy import ndimage

from nucleipan.classes import PanopticClass
from nucleipan.report.distributions import Distribution
from nucleipan.report.frame import Frame, Grid
from nucleipan.report.text import shortened

SMOOTHING_UM = 50.0
HEAT = "magma_r"
N_BINS = 40
TAIL = 0.005
"""Share of the nuclei beyond the right end of a distribution's axis."""

_LABELLED = 5
"""Share in per cent from which a bar has room for its number."""
_NEAR_ZERO = 0.25
"""A distribution that starts below this share of its end is drawn from 0."""
_WIDE = 0.75
"""Height over width below which a heat map has its colour bar beneath."""

_INK, _MUTED, _RULE, _GLASS = "#1f2933", "#52606d", "#cbd2d9", "#e9edf0"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _MUTED,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "svg.fonttype": "path",
    # Names within the file, which would else be drawn by lot.
    "svg.hashsalt": "nucleipan",
}


def smoothing_um(grid: Grid) -> float:
    """Standard deviation of the Gaussian window that ``densities`` averages with."""
    return max(SMOOTHING_UM, *grid.bin_um)


def densities(counts: np.ndarray, grid: Grid) -> np.ndarray:
    """float64[rows, cols], nuclei per mm2 of slide around every bin; what lies outside the grid has no weight.

    Args:
        counts: int64[rows * cols], nuclei in each bin.
    """
    sigma = [smoothing_um(grid) / side for side in grid.bin_um]
    nuclei, area = (
        ndimage.gaussian_filter(plane, sigma, mode="constant", truncate=3)
        for plane in (counts.reshape(grid.shape).astype(np.float64), grid.areas_mm2)
    )
    return nuclei / area


def heat_map(density: np.ndarray, is_tissue: np.ndarray, grid: Grid) -> bytes:
    """SVG of a density (per mm2) with a colour bar from 0 to its maximum; bins without tissue stay grey."""
    height_mm, width_mm = (side * grid.mpp / 1000 for side in grid.box.shape)
    places = _places(height_mm / width_mm)
    height_in = places.map_in[3]

    def draw(figure: Figure) -> None:
        axes, bar_axes = _axes(figure, places.map_in), _axes(figure, places.bar_in)
        shown, edges_mm = np.ma.masked_array(density, ~is_tissue), [grid.edges_um(axis) / 1000 for axis in (1, 0)]
        top = float(density[is_tissue].max(initial=0)) or 1.0
        mesh = axes.pcolormesh(*edges_mm, shown, cmap=HEAT, vmin=0, vmax=top, rasterized=True)
        axes.set(xlim=(0, width_mm), ylim=(height_mm, 0), facecolor=_GLASS, xlabel="mm")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(min(4, max(1, int(height_in / 0.3)))))
        bar = figure.colorbar(
            mesh, cax=bar_axes, orientation=places.orientation, ticks=MaxNLocator(5), format=FuncFormatter(_tick)
        )
        bar.outline.set_edgecolor(_RULE)
        bar.set_label("nuclei per mm² of slide")

    return _svg(draw, places.size_in)


@dataclass(frozen=True)
class _Places:
    """Where a heat map and its colour bar go: (left, bottom, width, height) in inches."""

    map_in: tuple[float, float, float, float]
    bar_in: tuple[float, float, float, float]
    size_in: tuple[float, float]
    orientation: Literal["vertical", "horizontal"]


def _places(aspect: float) -> _Places:
    """For a map of ``aspect`` (height over width): the bar lies along its longer side, so that its label fits."""
    left, bottom, bar = 0.42, 0.42, 0.12
    if aspect < _WIDE:
        width, height = 2.6, 2.6 * aspect
        above = bottom + bar + 0.45
        places = (left, above, width, height), (left, bottom, width, bar)
        return _Places(*places, (left + width + 0.3, above + height + 0.1), "horizontal")
    width = 1.95 / max(1.0, aspect / 1.6)
    height = width * aspect
    places = (left, bottom, width, height), (left + width + 0.12, bottom, bar, height)
    return _Places(*places, (left + width + 1.05, bottom + height + 0.1), "vertical")


def _tick(value: float, _: object) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def composition(frame: Frame, counts: np.ndarray) -> bytes:
    """SVG with a bar for every tissue that has nuclei, which shares them out among the classes.

    Args:
        counts: int64[T, S].
    """
    totals = counts.sum(0)
    tissues = np.flatnonzero(totals)
    names = [f"{shortened(frame.tissues[k].name)}  (n = {totals[k]:,})" for k in tissues]

    def draw(figure: Figure) -> None:
        left_in = _longest_in(names) + 0.15
        axes = _axes(figure, (left_in, 0.5, 9.6 - left_in - 0.25, 0.4 * len(tissues)))
        places, start = np.arange(len(tissues)), np.zeros(len(tissues))
        for thing, row in zip(frame.things, counts, strict=True):
            share = 100 * row[tissues] / totals[tissues]
            axes.barh(places, share, 0.72, start, color=_rgb(thing), edgecolor="white", linewidth=0.8)
            for place in places[share >= _LABELLED]:
                middle = start[place] + share[place] / 2
                axes.text(middle, place, f"{share[place]:.0f} %", ha="center", va="center", color=_readable_on(thing))
            start += share
        axes.set_yticks(places, names, color=_INK)
        axes.set(xlim=(0, 100), ylim=(len(tissues) - 0.5, -0.5), xlabel="share of the nuclei in the tissue (%)")
        _bare(axes)

    return _svg(draw, (9.6, 0.5 + 0.4 * len(tissues) + 0.05))


def ridges(distribution: Distribution, frame: Frame) -> bytes:
    """SVG with the histogram of every class that has nuclei, one above the other; an upright line marks the median.

    Each is drawn to the same height. The axis ends where ``TAIL`` of all nuclei lie beyond, and starts at 0 where the
    smallest value is not far from it.
    """
    rows = np.flatnonzero(distribution.counts.sum(1))
    names = [shortened(frame.things[row].name) for row in rows]
    (end,) = distribution.quantiles(None, (1 - TAIL,))
    binned, edges = distribution.binned(distribution.low, end, N_BINS)
    start = 0.0 if 0 <= edges[0] < _NEAR_ZERO * edges[-1] else edges[0]

    def draw(figure: Figure) -> None:
        left_in = _longest_in(names) + 0.15
        axes = _axes(figure, (left_in, 0.5, 4.7 - left_in - 0.2, 0.42 * len(rows) + 0.05))
        for place, row in enumerate(rows):
            tops = place - 0.8 * binned[row] / max(1, binned[row].max())
            axes.stairs(tops, edges, baseline=place, fill=True, color=_rgb(frame.things[row]), alpha=0.85)
            axes.stairs(tops, edges, baseline=place, color=_INK, linewidth=0.5)
            (median,) = distribution.quantiles(int(row), (0.5,))
            axes.plot([median, median], [place, place - 0.92], color=_INK, linewidth=1.5, solid_capstyle="butt")
        axes.set_yticks(np.arange(len(rows)) - 0.3, names, color=_INK)
        axes.set(xlim=(start, edges[-1]), ylim=(len(rows) - 0.98, -1.02))
        axes.set_xlabel(shortened(distribution.title, 50))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        _bare(axes)

    return _svg(draw, (4.7, 0.5 + 0.42 * len(rows) + 0.1))


def _svg(draw: Callable[[Figure], None], size_in: tuple[float, float]) -> bytes:
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever the user's own matplotlibrc says
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=size_in, facecolor="none")
        draw(figure)
        out = io.BytesIO()
        figure.savefig(out, format="svg", dpi=200, metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _axes(figure: Figure, place_in: tuple[float, float, float, float]) -> Axes:
    """Axes at (left, bottom, width, height) inches. A layout engine would draw every figure twice to find these."""
    across, down = figure.get_size_inches()
    left, bottom, width, height = place_in
    return figure.add_axes((left / across, bottom / down, width / across, height / down))


def _longest_in(names: Iterable[str]) -> float:
    """Inches that the longest of ``names`` takes as a label."""
    return max(TextPath((0, 0), name, size=_STYLE["font.size"]).get_extents().width for name in names) / 72


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _rgb(c: PanopticClass) -> tuple[float, float, float]:
    r, g, b = (channel / 255 for channel in c.color)
    return r, g, b


def _readable_on(c: PanopticClass) -> str:
    """Black or white, whichever stands out from a class's colour (relative luminance of WCAG 2)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in _rgb(c)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"
