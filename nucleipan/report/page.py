"""From a store to the bytes of its page.

What files say is hostile: a slide may be called ``<script>``. The template escapes everything it prints, characters
that do not print (which could reverse or hide text) are replaced, and the page forbids itself to run scripts and to
load anything (Content-Security-Policy), so that a mistake here would still be harmless.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from nucleipan.classes import PanopticClass
from nucleipan.errors import SlideError, reason
from nucleipan.report import figures
from nucleipan.report.content import facts_of, numbers_of, warnings_of
from nucleipan.report.distributions import Distribution, distributions
from nucleipan.report.fields import choose_fields
from nucleipan.report.frame import Frame, frame_of
from nucleipan.report.pictures import data_uri, field_picture, overviews
from nucleipan.report.slides import Pixels, slide_of
from nucleipan.report.tally import FIELD_UM, Tally, count
from nucleipan.report.text import printable
from nucleipan.store import PanopticStore


def render_page(store: PanopticStore, slide: Path | None = None) -> bytes:
    """The page about ``store``, UTF-8.

    Raises:
        StoreError: the store contradicts itself.
        SlideError: ``slide`` cannot be read, or is not the one that the store was made from.
    """
    frame = frame_of(store)
    tally, measured = count(frame), distributions(frame)
    numbers = numbers_of(frame, tally, measured)
    with slide_of(frame, slide) as pixels:
        chosen = choose_fields(frame, tally)
        try:
            shown = [field_picture(pixels.slide, frame, field) for field in chosen] if pixels.slide else []
            views = overviews(frame, pixels.slide, chosen if pixels.slide else [])
        except SlideError as error:
            if slide is not None:
                raise
            said = reason(error).replace(str(pixels.slide.path), pixels.slide.path.name) if pixels.slide else ""
            pixels = Pixels(None, f"The slide beside the store is damaged ({said}).")
            shown, views = [], overviews(frame, None, [])
    document = _environment().get_template("page.html.j2").render(
        name=store.slide.get("name") or store.path.name.removesuffix(".ome.zarr"),
        frame=frame, tally=tally, numbers=numbers, views=views, fields=shown, no_fields=pixels.note,
        warnings=warnings_of(frame, tally), facts=facts_of(frame, tally), field_um=FIELD_UM,
        maps=_maps(frame, tally), bars=_bars(frame, tally), ridges=_ridges(frame, measured),
        smoothing_um=figures.smoothing_um(tally.maps), bin_um=tally.maps.bin_um[0], tail=figures.TAIL,
    )  # fmt: skip
    return document.encode("utf-8")


def _maps(frame: Frame, tally: Tally) -> list[dict[str, Any]]:
    """A density map of all nuclei and of each kind that was found."""
    found = [k for k in range(len(frame.things)) if tally.by_bin[k].any()]
    kinds: list[tuple[PanopticClass | None, Any]] = [(frame.things[k], tally.by_bin[k]) for k in found]
    if len(found) > 1:
        kinds.insert(0, (None, tally.by_bin.sum(0)))
    maps = []
    for thing, counts in kinds:
        density = figures.densities(counts, tally.maps)
        svg = figures.heat_map(density, tally.is_tissue, tally.maps)
        maps.append({"thing": thing, "n": int(counts.sum()), "source": data_uri(svg, "image/svg+xml")})
    return maps


def _bars(frame: Frame, tally: Tally) -> str | None:
    svg = figures.composition(frame, tally.counts) if tally.n_nuclei else None
    return data_uri(svg, "image/svg+xml") if svg else None


def _ridges(frame: Frame, measured: dict[str, Distribution]) -> list[dict[str, str]]:
    return [
        {"title": d.title, "source": data_uri(figures.ridges(d, frame), "image/svg+xml")}
        for d in measured.values()
        if d.counts.any()
    ]


# Printing


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nucleipan", "report"), autoescape=True, undefined=jinja2.StrictUndefined,
        finalize=_finalized, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "count": _count,
        "number": _number,
        "density": _density,
        "mm2": _mm2,
        "percent": _percent,
        "rgb": _rgb,
    }
    return environment


def _finalized(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, markupsafe.Markup) else value


def _count(value: int) -> str:
    return f"{value:,}"


def _number(value: float | None, decimals: int = 0) -> str:
    """``value`` with so many decimals; what these cannot show is said to be less than they can."""
    if value is None:
        return "–"
    least = 10.0**-decimals
    return f"< {least:g}" if 0 < abs(value) < least / 2 else f"{value:,.{decimals}f}"


def _density(value: float | None) -> str:
    """Per mm2, with a decimal for small numbers."""
    return _number(value, 1 if value is not None and 0 < value < 10 else 0)


def _mm2(value: float) -> str:
    return _number(value, 1 if value >= 100 else 3)


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    return f"{_number(100 * share, 1)} %"


def _rgb(c: PanopticClass) -> str:
    return f"rgb({c.color[0]},{c.color[1]},{c.color[2]})"
