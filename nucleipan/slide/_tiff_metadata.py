"""Pixel size, objective and planes from a TIFF's own words.

Three dialects: Aperio's description (``|MPP = 0.4990|AppMag = 20``), OME-XML, and the resolution tags, which
count only when they are a pixel size a microscope can have.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass

import tifffile

from nucleipan.documents import xml_root
from nucleipan.slide._types import mean_mpp

# Micrometres in one unit of ResolutionUnit (TIFF 6.0; 4 and 5 are tifffile's and libtiff's extensions).
_UM_PER_TIFF_UNIT = {2: 25_400.0, 3: 10_000.0, 4: 1_000.0, 5: 1.0}
# OME-XML and NGFF spell units differently; both default to or demand an explicit one.
UM_PER_UNIT = {
    "m": 1e6, "meter": 1e6, "cm": 1e4, "centimeter": 1e4, "mm": 1e3, "millimeter": 1e3, "nm": 1e-3, "nanometer": 1e-3,
    "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "micrometer": 1.0, "micrometre": 1.0, "\\u00B5m": 1.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OmePixels:
    """The ``Pixels`` element of the first image of an OME-XML document. ``n_planes`` counts Z times T."""

    n_channels: int
    n_planes: int
    mpp: float | None
    objective: float | None


def is_aperio(page: tifffile.TiffPage) -> bool:
    return page.description.startswith("Aperio ")


def aperio_value(description: str, key: str) -> float | None:
    """Number behind ``|key = `` in an Aperio description."""
    found = re.search(rf"\|\s*{key}\s*=\s*([0-9.eE+-]+)", description)
    return _number(found.group(1)) if found else None


def resolution_mpp(page: tifffile.TiffPage) -> float | None:
    """Micrometres per pixel from XResolution, YResolution and ResolutionUnit, when credible."""
    um = _UM_PER_TIFF_UNIT.get(int(page.tags.valueof(296, 2) or 0))
    if um is None:
        return None
    sizes = []
    for tag in (282, 283):
        value = page.tags.valueof(tag)
        if not isinstance(value, tuple) or len(value) != 2 or not value[0] or not value[1]:
            return None
        sizes.append(um * value[1] / value[0])
    return mean_mpp(*sizes)


def parse_ome(description: str) -> OmePixels | None:
    """First image of an OME-XML document; None when the text is not OME-XML with pixels."""
    if "<OME" not in description[:4096]:
        return None
    try:
        root = xml_root(description)
        pixels = root.find(".//{*}Image/{*}Pixels")
        if pixels is None:
            return None
        counts = {k: int(pixels.get(f"Size{k}", "1")) for k in "CZT"}
    except ValueError:
        return None
    objective = root.find(".//{*}Objective[@NominalMagnification]")
    return OmePixels(
        n_channels=counts["C"],
        n_planes=counts["Z"] * counts["T"],
        mpp=mean_mpp(_ome_size(pixels, "X"), _ome_size(pixels, "Y")),
        objective=None if objective is None else _number(objective.get("NominalMagnification", "")),
    )


def _ome_size(pixels: ET.Element, axis: str) -> float | None:
    value = _number(pixels.get(f"PhysicalSize{axis}", ""))
    um = UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    return None if value is None or um is None else value * um


def _number(text: str) -> float | None:
    """None for what is no finite number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
