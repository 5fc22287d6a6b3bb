"""OME-Zarr 0.5 metadata as plain documents (https://ngff.openmicroscopy.org/0.5/).

Nothing here touches a file: the functions return the ``attributes`` of a zarr group. Coordinates are micrometres
with the origin in the centre of the first pixel of the finest label image, as NGFF places samples: index ``i`` of
a level lies at ``scale * i + translation``. A pyramid made by strided copy keeps its samples where they were, so its
levels have no translation; one made by averaging moves them by half a coarse pixel less half a fine one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nucleipan.classes import VOID_ID, VOID_NAME, PanopticClasses

NGFF_VERSION = "0.5"
Attributes = dict[str, Any]


def n_levels_for(shape: tuple[int, int], longest_px: int = 1024) -> int:
    """Levels of a pyramid of factor 2 until the longest side is at most ``longest_px``."""
    n, longest = 1, max(shape)
    while longest > longest_px:
        n, longest = n + 1, -(-longest // 2)
    return n


def multiscales(name: str, mpps: Sequence[float], shifts_um: Sequence[float], has_channels: bool = False) -> Attributes:
    """One multiscale image with a level per entry of ``mpps``; ``shifts_um`` places each level's first sample."""
    space = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    first = [1.0] if has_channels else []
    no_shift = [0.0] if has_channels else []
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {"type": "scale", "scale": [*first, mpp, mpp]},
                {"type": "translation", "translation": [*no_shift, shift, shift]},
            ],
        }
        for level, (mpp, shift) in enumerate(zip(mpps, shifts_um, strict=True))
    ]
    axes = [{"name": "c", "type": "channel"}, *space] if has_channels else space
    return {"name": name, "axes": axes, "datasets": datasets}


def image_attributes(name: str, mpp: float, n_levels: int, grid_mpp: float) -> Attributes:
    """An RGB image with axes c, y, x whose levels are averages; its corner is that of a grid of ``grid_mpp``."""
    mpps = [mpp * 2**level for level in range(n_levels)]
    channels = [
        {"label": label, "color": color, "active": True, "window": {"min": 0, "max": 255, "start": 0, "end": 255}}
        for label, color in (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"))
    ]
    document = multiscales(name, mpps, [(m - grid_mpp) / 2 for m in mpps], has_channels=True)
    omero = {"channels": channels, "rdefs": {"model": "color"}}
    return {"ome": {"version": NGFF_VERSION, "multiscales": [document], "omero": omero}}


def labels_attributes(names: Sequence[str]) -> Attributes:
    """The group ``labels``, which lists the label images in it."""
    return {"ome": {"version": NGFF_VERSION, "labels": list(names)}}


def label_attributes(name: str, mpp: float, n_levels: int, classes: PanopticClasses | None = None) -> Attributes:
    """A label image with axes y, x and levels of strided copies; with ``classes``, its values are class ids."""
    image_label: Attributes = {"version": NGFF_VERSION, "source": {"image": "../../"}}
    if classes is not None:
        image_label |= {"colors": _colors(classes), "properties": _properties(classes)}
    document = multiscales(name, [mpp * 2**level for level in range(n_levels)], [0.0] * n_levels)
    return {"ome": {"version": NGFF_VERSION, "multiscales": [document], "image-label": image_label}}


def _colors(classes: PanopticClasses) -> list[Attributes]:
    void = {"label-value": VOID_ID, "rgba": [0, 0, 0, 0]}
    return [void, *({"label-value": c.id, "rgba": [*c.color, 255]} for c in classes.classes)]


def _properties(classes: PanopticClasses) -> list[Attributes]:
    void = {"label-value": VOID_ID, "class": VOID_NAME, "kind": VOID_NAME}
    kinds = {True: "thing", False: "stuff"}
    return [void, *({"label-value": c.id, "class": c.name, "kind": kinds[c.is_thing]} for c in classes.classes)]
