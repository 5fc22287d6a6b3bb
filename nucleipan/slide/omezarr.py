"""OME-Zarr (NGFF 0.4 on zarr v2, 0.5 on zarr v3): multiscale RGB images.

Axes may come in any order NGFF allows; there must be one channel axis of length 3 (or 1: grey, 4: RGBA) and every
other non-spatial axis must have length 1. A chunk that is absent has the array's fill value: that is what zarr
means by it, and nothing here can tell it from a lost one.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import zarr

from nucleipan.documents import json_value, plain_bytes
from nucleipan.errors import SlideError, reason
from nucleipan.geometry import Box
from nucleipan.slide._tiff_metadata import UM_PER_UNIT
from nucleipan.slide._types import Level, check_decodable, check_pieces, check_region, make_levels, mean_mpp, to_rgb

_MAX_LEVELS = 64
_MAX_DOCUMENT_BYTES = 2**24


def is_ome_zarr(path: Path) -> bool:
    """Whether ``path`` is a folder that holds a zarr group with NGFF image metadata."""
    return path.is_dir() and _image_metadata(path) is not None


class OmeZarrSlide:
    """A ``Slide`` of the first multiscale image of an OME-Zarr group.

    Raises:
        SlideError: the metadata are incomplete or contradictory, or the image is not 8-bit RGB in one plane.
    """

    objective: float | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        found = _image_metadata(path)
        if found is None:
            raise SlideError(f"{path}: has no NGFF multiscales metadata; expected an OME-Zarr image group")
        folder, metadata = found
        try:
            multiscale = metadata["multiscales"][0]
            axes = [str(a["name"] if isinstance(a, dict) else a) for a in multiscale["axes"]]
            units = {str(a["name"]): a.get("unit") for a in multiscale["axes"] if isinstance(a, dict)}
            names = [_inside(path, str(d["path"])) for d in multiscale["datasets"]]
            scale = _scale(multiscale)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise SlideError(f"{path}: NGFF metadata lack or garble {reason(error)}; write the image again") from error
        if len(names) > _MAX_LEVELS:
            raise SlideError(
                f"{path}: lists {len(names)} levels; expected at most {_MAX_LEVELS}; write the image again"
            )
        self._axes = axes
        self._arrays = [_open_array(path, folder, name) for name in names]
        self._check_arrays()
        y, x = axes.index("y"), axes.index("x")
        self.levels: tuple[Level, ...] = make_levels(path, [(a.shape[y], a.shape[x]) for a in self._arrays])
        self.mpp: float | None = _mpp(scale, units, y, x)
        self.format: str = f"OME-Zarr (zarr v{self._arrays[0].metadata.zarr_format})"
        codecs = [type(c).__name__.removesuffix("Codec") for c in self._arrays[0].compressors]
        self.compression: str | None = ", ".join(codecs) or "uncompressed"

    def read(self, level: int, box: Box) -> np.ndarray:
        check_region(self, level, box)
        spatial = {"y": slice(box.y0, box.y1), "x": slice(box.x0, box.x1)}
        index = tuple(spatial.get(a, slice(None) if a == "c" else 0) for a in self._axes)
        try:
            pixels = np.asarray(self._arrays[level][index])
        except Exception as error:  # zarr's codecs raise whatever they like on damaged chunks
            raise SlideError(
                f"{self.path}: {box} of level {level} cannot be read ({reason(error)}); damaged chunk"
            ) from error
        kept = [a for a in self._axes if a in "cyx"]
        order = [kept.index(a) for a in "yxc" if a in kept]
        return to_rgb(self.path, pixels.transpose(order))

    def close(self) -> None:
        self._arrays = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_arrays(self) -> None:
        axes = self._axes
        if "y" not in axes or "x" not in axes or len(set(axes)) != len(axes) or not self._arrays:
            raise SlideError(f"{self.path}: axes are {axes!s:.80}; expected an image with y, x and a channel axis c")
        for array in self._arrays:
            if array.ndim != len(axes) or array.dtype != np.uint8:
                raise SlideError(
                    f"{self.path}: array {array.name} is {array.dtype} with {array.ndim} axes; "
                    f"expected 8-bit RGB with axes {axes!s:.80}"
                )
            sizes = dict(zip(axes, array.shape, strict=True))
            others = {a: n for a, n in sizes.items() if a not in "cyx" and n != 1}
            if others or sizes.get("c", 1) not in (1, 3, 4):
                raise SlideError(
                    f"{self.path}: array {array.name} has axes {sizes}; expected one RGB plane (c = 3); "
                    "extract the plane you want"
                )
            n_chunks = math.prod(-(-n // side) for n, side in zip(array.shape, array.chunks, strict=True))
            check_pieces(self.path, n_chunks, math.prod(array.chunks), "chunks")
            shards = getattr(array, "shards", None) or array.chunks
            for chunk in (array.chunks, shards):
                check_decodable(self.path, math.prod(chunk), 1, "a chunk")


def _image_metadata(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """Folder and NGFF attributes of the image at ``path``, or of its first series (bioformats2raw layout)."""
    attributes = _attributes(path)
    if attributes is None:
        return None
    if "multiscales" in attributes:
        return path, attributes
    if "bioformats2raw.layout" in attributes:
        attributes = _attributes(path / "0")
        if attributes is not None and "multiscales" in attributes:
            return path / "0", attributes
    return None


def _attributes(folder: Path) -> dict[str, Any] | None:
    """The group's NGFF attributes: those under ``ome`` (0.5), or all of ``.zattrs`` (0.4)."""
    for name in ("zarr.json", ".zattrs"):
        try:
            document = json_value(plain_bytes(folder / name, _MAX_DOCUMENT_BYTES))
        except (OSError, ValueError):
            continue
        if name == "zarr.json":
            document = _entry(_entry(document, "attributes"), "ome")
        if isinstance(document, dict):
            return document
    return None


def _entry(document: Any, key: str) -> Any:
    return document.get(key) if isinstance(document, dict) else None


def _inside(path: Path, name: str) -> str:
    """A dataset's path, refused where it would lead out of the group."""
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise SlideError(
            f"{path}: dataset path {name[:80]!r} leads out of the image; the metadata are not to be trusted"
        )
    return name


def _open_array(path: Path, folder: Path, name: str) -> zarr.Array[Any]:
    try:
        for document in ("zarr.json", ".zarray"):
            if (folder / name / document).exists():
                plain_bytes(folder / name / document, _MAX_DOCUMENT_BYTES)
        return zarr.open_array(folder / name, mode="r")
    except Exception as error:  # zarr raises KeyError, ValueError, ... on damaged metadata
        raise SlideError(
            f"{path}: level {name[:80]!r} cannot be opened ({reason(error)}); copy the folder again"
        ) from error


def _scale(multiscale: dict[str, Any]) -> list[float] | None:
    """Scale of level 0 along every axis: its own transformation times the multiscale's."""
    holders = (multiscale["datasets"][0], multiscale)
    transformations = [t for holder in holders for t in holder.get("coordinateTransformations") or []]
    scales = [[float(v) for v in t["scale"]] for t in transformations if t["type"] == "scale"]
    if not scales or any(len(s) != len(multiscale["axes"]) for s in scales):
        return None
    return [math.prod(values) for values in zip(*scales, strict=True)]


def _mpp(scale: list[float] | None, units: dict[str, Any], y: int, x: int) -> float | None:
    """None unless both axes name a unit of length: NGFF leaves the unit of an axis without one open."""
    um = [UM_PER_UNIT.get(str(units.get(axis))) for axis in "xy"]
    if scale is None or um[0] is None or um[1] is None:
        return None
    return mean_mpp(scale[x] * um[0], scale[y] * um[1])
