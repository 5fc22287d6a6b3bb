"""Whether a result can be relied on: what a store's own numbers say about the slide and the scan.

Models are sure of themselves on slides unlike any they have seen. A few numbers tell such slides, whatever the model
thinks: how much of the tissue cannot be judged, how it is stained, and how large and how many its nuclei are, which
betrays a wrong pixel size. Limits are those of the training images of nucleipan-accurate and nucleipan-fast
(``benchmarks/plausibility.py`` measures them); they apply to the models that come with nucleipan only, of which
nucleipan-open learnt from some of these images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nucleipan.measure.stains import STAIN_VECTORS
from nucleipan.store import PanopticStore

#: What a store's quality calls tissue that cannot be judged, in words.
UNUSABLE_IN_WORDS = {"out_of_focus": "out of focus", "folded": "folded", "pen": "under pen"}

_OWN_MODELS = "nucleipan-"
_FEW = 20  # nuclei, whose median says nothing
# Fat, which has fewest nuclei, has more than this; less tissue may be a crumb.
_LEAST_PER_MM2, _LEAST_TISSUE_MM2 = 30, 0.05
_LEAST_SHARE = 0.0005

# Means of training images' tissue: the least 0.5th and the largest 99.5th percentile of a set, tiles of one texture
# (fat alone, say) left out.
STAIN_RANGES = {
    "haematoxylin": (-0.06, 0.73, "optical density"),
    "eosin": (-0.04, 0.53, "optical density"),
    "the plane of both": (-9.0, 27.0, "degrees"),
}
# Least and most of their images' median area of an annotated nucleus.
AREA_RANGE_UM2 = (7.5, 61.0)


def stain_of(density: tuple[float, float, float]) -> dict[str, float]:
    """Of tissue of a mean density in R, G, B, by the names of ``STAIN_RANGES``: density of the stains, and the angle
    between its colour and all that can be mixed of them (brown DAB is 37 degrees away from it)."""
    haematoxylin, eosin, residual = STAIN_VECTORS / np.linalg.norm(STAIN_VECTORS, axis=1, keepdims=True)
    found = np.array(density)
    h, e, _ = found @ np.linalg.inv([haematoxylin, eosin, residual])
    normal = np.cross(haematoxylin, eosin)
    sine = found @ normal / max(1e-9, float(np.linalg.norm(normal) * np.linalg.norm(found)))
    return dict(zip(STAIN_RANGES, (float(h), float(e), float(np.degrees(np.arcsin(sine)))), strict=True))


def notes_of(store: PanopticStore) -> list[str]:
    """What the user should know before trusting ``store``, each a sentence about the slide, without the words "the
    slide"; usually there is nothing."""
    quality = store.quality
    notes = list(_unusable(quality, store.config))
    if str(store.model.get("name")).startswith(_OWN_MODELS):
        notes += _stain(quality.get("density"))
        notes += _size(store) or _number(store.n_nuclei, quality.get("tissue_mm2"))
    return notes


def _unusable(quality: dict[str, Any], config: dict[str, Any]) -> Iterator[str]:
    shares = ((quality.get(kind, 0.0), what) for kind, what in UNUSABLE_IN_WORDS.items())
    said = [f"{100 * share:.1f} % of its tissue {what}" for share, what in shares if _is_share(share)]
    if said:
        yield f"has {' and '.join(said)}, {'segmented' if config.get('all_tissue') else 'void'} in the result"


def _is_share(value: Any) -> bool:
    """A store may say anything."""
    return isinstance(value, float) and value >= _LEAST_SHARE


def _stain(density: Any) -> Iterator[str]:
    if not (isinstance(density, list) and len(density) == 3 and all(isinstance(v, float) for v in density)):
        return  # no tissue
    for name, found in stain_of((density[0], density[1], density[2])).items():
        least, most, unit = STAIN_RANGES[name]
        if not least <= found <= most:
            yield (
                f"is stained unlike the images that nucleipan's models learnt from: {name} {found:.3g} ({unit}), there "
                f"{least:.3g} to {most:.3g}; check the result"
            )


def _size(store: PanopticStore) -> list[str]:
    areas = store.nuclei(["area_um2"])["area_um2"].to_numpy()
    if len(areas) < _FEW:
        return []
    median, (least, most) = float(np.median(areas)), AREA_RANGE_UM2
    if least <= median <= most:
        return []
    mpp = store.slide.get("mpp")
    return [
        f"has nuclei of {median:.0f} um2 (median) at {mpp} um per pixel, expected {least:.0f} to {most:.0f}; is the "
        "pixel size right? See --mpp"
    ]


def _number(n_nuclei: int, tissue_mm2: Any) -> list[str]:
    """At a wrong pixel size hardly any nuclei are found: there is nothing then to measure."""
    if not isinstance(tissue_mm2, float) or tissue_mm2 < _LEAST_TISSUE_MM2 or n_nuclei >= _LEAST_PER_MM2 * tissue_mm2:
        return []
    return [
        f"has {n_nuclei} nuclei on {tissue_mm2:.2f} mm2 of tissue; is the pixel size right (see --mpp), and is it H&E?"
    ]
