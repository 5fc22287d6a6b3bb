"""The numbers of a report, arranged as the page shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nucleipan import __version__
from nucleipan.classes import PanopticClass
from nucleipan.plausible import UNUSABLE_IN_WORDS, notes_of
from nucleipan.report.distributions import Distribution
from nucleipan.report.frame import Frame
from nucleipan.report.tally import Tally

_MANY_ON_GLASS = 0.05
_UPSAMPLED = 1.05


@dataclass(frozen=True)
class Cell:
    """Nuclei of one kind in one place. ``share`` of all nuclei there, 0 to 1; None where there is nothing to share."""

    count: int
    share: float | None
    per_mm2: float | None


@dataclass(frozen=True)
class ClassRow:
    """A kind of nucleus, or all: how many, their area (10th, 50th and 90th percentile) and median score."""

    thing: PanopticClass | None
    all: Cell
    area_um2: list[float] | None
    score: float | None


@dataclass(frozen=True)
class TissueRow:
    """A kind of tissue. ``share`` of the tissue's area, None for what is no tissue; ``cells`` by kind of nucleus."""

    tissue: PanopticClass
    mm2: float
    share: float | None
    all: Cell
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Numbers:
    """What a report says in figures.

    Attributes:
        n_nuclei: rows of the table.
        total: all nuclei; per mm2 of tissue, or of slide where the model knows no tissue.
        tissue_mm2: area of all tissue, background and void left out.
    """

    n_nuclei: int
    total: ClassRow
    tissue_mm2: float
    classes: tuple[ClassRow, ...]
    tissues: tuple[TissueRow, ...]


def numbers_of(frame: Frame, tally: Tally, measured: dict[str, Distribution]) -> Numbers:
    """Arrange counts; tissues without area and without nuclei are left out."""
    n, tissue_mm2 = tally.n_nuclei, float(tally.tissue_mm2[: frame.n_tissues].sum())
    base_mm2 = tissue_mm2 if frame.n_tissues else frame.extent_mm2

    def class_row(row: int | None) -> ClassRow:
        area = _quantiles(measured.get("area_um2"), row, (0.1, 0.5, 0.9))
        score = _quantiles(measured.get("score"), row, (0.5,))
        of_row = n if row is None else int(tally.counts[row].sum())
        thing = None if row is None else frame.things[row]
        return ClassRow(thing, _cell(of_row, n, base_mm2), area, score[0] if score else None)

    tissues = []
    for k, tissue in enumerate(frame.tissues):
        mm2, in_tissue = float(tally.tissue_mm2[k]), int(tally.counts[:, k].sum())
        if mm2 > 0 or in_tissue:
            share = mm2 / tissue_mm2 if k < frame.n_tissues and tissue_mm2 > 0 else None
            cells = tuple(_cell(int(count), in_tissue, mm2) for count in tally.counts[:, k])
            tissues.append(TissueRow(tissue, mm2, share, _cell(in_tissue, n, mm2), cells))
    classes = tuple(class_row(row) for row in range(len(frame.things)))
    return Numbers(n, class_row(None), tissue_mm2, classes, tuple(tissues))


def warnings_of(frame: Frame, tally: Tally) -> list[str]:
    """What the reader should know before trusting the numbers, a sentence or two each."""
    store, found = frame.store, []
    stitching = _entries(store.attributes.get("stitching"))
    n_cut = stitching.get("n_cut")
    if isinstance(n_cut, int) and n_cut > 0:
        found.append(
            f"{n_cut:,} nuclei reach beyond the context that the model saw around them; their outlines may be cut off."
        )
    recorded = stitching.get("n_nuclei")
    if corrections := store.corrections:
        people = ", ".join(corrections["authors"])
        found.append(
            f"People corrected the nuclei (corrections: {corrections['edits']:,}, by {people}). "
            "Numbers and outlines are those after the last one."
        )
    elif recorded is not None and recorded != tally.n_nuclei:
        found.append(f"The store says it holds {recorded} nuclei, its table holds {tally.n_nuclei:,}.")
    if not frame.is_whole_slide():
        found.append("Only a part of the slide was segmented; all numbers and maps are of this part.")
    if frame.level0_mpp > store.mpp * _UPSAMPLED:
        found.append(
            f"The slide has {frame.level0_mpp:.4g} µm per pixel and was enlarged to the model's {store.mpp:.4g}; "
            "small nuclei and fine borders are less reliable."
        )
    found += [f"The slide {note}." for note in notes_of(store)]
    if tally.n_nuclei == 0:
        found.append("No nuclei were found.")
    on_glass = int(tally.counts[:, frame.n_tissues :].sum())
    if frame.n_tissues and on_glass > _MANY_ON_GLASS * tally.n_nuclei:
        found.append(f"{on_glass:,} nuclei ({100 * on_glass / tally.n_nuclei:.0f} %) lie outside all tissue.")
    return found


def facts_of(frame: Frame, tally: Tally) -> list[tuple[str, list[tuple[str, str]]]]:
    """How the result came about: groups of names and values."""
    store, extent = frame.store, frame.store.spec.extent
    slide, model, config = store.slide, store.model, store.config
    height, width = slide.get("height"), slide.get("width")
    part = "the whole slide" if frame.is_whole_slide() else f"y {extent.y0}–{extent.y1}, x {extent.x0}–{extent.x1}"
    return [
        (
            "Slide",
            [
                ("Name", _text(slide.get("name"))),
                ("Format", _text(slide.get("format"))),
                ("Size", f"{width} × {height} pixels" if width and height else "not recorded"),
                ("Pixel size", f"{frame.level0_mpp:.4g} µm at full resolution"),
                ("Fingerprint", _text(slide.get("fingerprint"))),
            ],
        ),
        (
            "Model",
            [
                ("Name", _text(model.get("name"))),
                ("Licence of the weights", _text(model.get("licence"))),
                ("Weights (SHA-256)", _text(model.get("sha256"))),
                ("nucleipan", f"{_text(config.get('nucleipan'))} (this page: {__version__})"),
            ],
        ),
        (
            "Settings",
            [
                ("Pixel size of the analysis", f"{store.mpp:.4g} µm"),
                ("Segmented", f"{part} ({frame.extent_mm2:.4g} mm²)"),
                ("Areas of tissue", _plane_use(tally.plane_step)),
                ("Tiles", f"{store.spec.core} pixels and {store.spec.margin} of context on every side"),
                *((key, _text(value)) for key, value in _flat(config) if key != "nucleipan"),
            ],
        ),
        ("Tissue that can be judged", _judged(store.quality)),
        ("Joining the tiles", _stitching(_entries(store.attributes.get("stitching")))),
    ]


def _plane_use(step: int) -> str:
    return "measured on every pixel" if step == 1 else f"measured on one pixel in {step} × {step}"


def _judged(found: dict[str, Any]) -> list[tuple[str, str]]:
    shares = [(text, found[key]) for key, text in UNUSABLE_IN_WORDS.items() if isinstance(found.get(key), float)]
    return [(text.capitalize(), f"{100 * share:.2f} % of the tissue") for text, share in shares]


def _stitching(found: dict[str, Any]) -> list[tuple[str, str]]:
    meanings = {
        "n_tiles": "Tiles",
        "n_seam": "Nuclei on a seam between tiles, kept once",
        "n_contested": "Nuclei that lost pixels to a neighbour",
        "n_vanished": "Of these, nuclei that lost all their pixels",
        "n_cut": "Nuclei that reach beyond the context of their tile",
    }
    return [(text, _text(found[key])) for key, text in meanings.items() if key in found]


def _cell(count: int, of: int, mm2: float) -> Cell:
    return Cell(count, count / of if of else None, count / mm2 if mm2 > 0 else None)


def _quantiles(distribution: Distribution | None, row: int | None, shares: tuple[float, ...]) -> list[float] | None:
    if distribution is None:
        return None
    values = distribution.quantiles(row, shares)
    return None if np.isnan(values).any() else values


def _entries(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(name, value)]
    return [pair for key, item in value.items() for pair in _flat(item, f"{name}.{key}" if name else str(key))]


def _text(value: Any) -> str:
    if value is None or value == "":
        return "not recorded"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
