"""What identifies a run, and how two of them differ."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

from nucleipan.classes import PanopticClasses
from nucleipan.errors import StoreError, reason
from nucleipan.geometry import Box

STORE_VERSION = 1
_METADATA = "metadata"


@dataclass(frozen=True)
class StoreSpec:
    """What identifies a run: two runs with equal specs write equal stores.

    Attributes:
        slide: name, size, mpp, fingerprint.
        metadata: what else the slide's file says, see ``slide.metadata``; None unless it was asked to be kept. It may
            name a patient, so it is in no error.
        model: name, sha256, licence.
        config: the resolved configuration, JSON-ready.
        classes: of the model.
        shape: height and width of the view.
        mpp: micrometres per pixel of the view.
        level0_per_pixel: level-0 slide pixels per pixel of the view.
        extent: the part of the view that is segmented.
        core, margin: of the tiles.
    """

    slide: dict[str, Any]
    model: dict[str, Any]
    config: dict[str, Any]
    classes: PanopticClasses
    shape: tuple[int, int]
    mpp: float
    level0_per_pixel: float
    extent: Box
    core: int
    margin: int
    metadata: dict[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, as kept in ``run.json`` and in the store's attributes."""
        extent = self.extent
        slide = self.slide if self.metadata is None else self.slide | {_METADATA: self.metadata}
        document = {
            "version": STORE_VERSION, "slide": slide, "model": self.model, "config": self.config,
            "classes": self.classes.to_list(), "shape": self.shape, "mpp": self.mpp,
            "level0_per_pixel": self.level0_per_pixel, "extent": [extent.y0, extent.x0, extent.y1, extent.x1],
            "core": self.core, "margin": self.margin,
        }  # fmt: skip
        return json.loads(json.dumps(document))

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> StoreSpec:
        """Inverse of ``to_dict``; unknown entries are left aside.

        Raises:
            StoreError: an entry is missing or malformed, or the version is newer than this program's.
        """
        version = document.get("version")
        if not isinstance(version, int) or version > STORE_VERSION:
            raise StoreError(f"store version {version} is newer than {STORE_VERSION}; update nucleipan to read it")
        try:
            slide = dict(_object(document, "slide"))
            metadata = slide.pop(_METADATA, None)
            spec = cls(
                slide=slide,
                model=_object(document, "model"),
                config=_object(document, "config"),
                classes=PanopticClasses.from_list(document["classes"]),
                shape=_sides(document["shape"]),
                mpp=_pixel_size(document, "mpp"),
                level0_per_pixel=_pixel_size(document, "level0_per_pixel"),
                extent=Box(*(_count(side) for side in document["extent"])),
                core=_count(document["core"]),
                margin=_count(document["margin"]),
                metadata=None if metadata is None else {str(k): str(v) for k, v in dict(metadata).items()},
            )
            if spec.extent.is_empty or not Box.of_shape(spec.shape).contains(spec.extent):
                raise ValueError(f"its extent {document['extent']} is no part of its shape {document['shape']}")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StoreError(f"store attributes are malformed ({reason(error)}); segment the slide again") from error
        return spec

    def differences(self, other: StoreSpec) -> list[str]:
        """``field: mine here, theirs there`` for each entry that differs, in order; empty for equal specs."""
        mine, theirs = _flat(self._identity()), _flat(other._identity())
        return [
            f"{key}: {mine.get(key, 'nothing')!r} here, {theirs.get(key, 'nothing')!r} there"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]

    def _identity(self) -> dict[str, Any]:
        """``to_dict`` with the fact that metadata are kept in the place of what they say."""
        return replace(self, metadata=None if self.metadata is None else {"is": "kept"}).to_dict()


def _object(document: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(document[name], dict):
        raise ValueError(f"its {name} is {document[name]!r:.40}")
    return document[name]


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"expected a number of pixels; found {str(value)[:40]!r}")
    return value


def _sides(value: Any) -> tuple[int, int]:
    height, width = (_count(side) for side in value)
    return height, width


def _pixel_size(document: dict[str, Any], name: str) -> float:
    value = document[name]
    if type(value) not in (int, float) or not (math.isfinite(value) and 1e-3 <= value <= 1e4):
        raise ValueError(f"its {name} is {value!r:.40}")
    return value


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    if not isinstance(value, dict):
        return {key: value}
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{key}.{name}" if key else str(name))
    return flat
