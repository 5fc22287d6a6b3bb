"""Exports: one file per format, each reads a finished store and writes one file or folder.

A new format is a new file with a function like the others, and an entry and a case here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nucleipan.errors import ConfigError, DataError

if TYPE_CHECKING:
    from nucleipan.geometry import Box
    from nucleipan.store import PanopticStore


@dataclass(frozen=True)
class Format:
    """``suffix``: of a store's export, after its stem. ``extra``: of nucleipan, what must be installed for it."""

    suffix: str
    extra: str | None = None


@dataclass(frozen=True)
class ExportOptions:
    """What an export may need beside the store.

    Attributes:
        roi: the part to write, in level-0 pixels; all of it by default. A nucleus belongs to a part if its centroid
            lies in it.
        slide: the slide that the store was made from.
    """

    roi: Box | None = None
    slide: Path | None = None


FORMATS = {
    "geojson": Format(".geojson.gz"),
}


def export_store(store: PanopticStore, name: str, path: Path, options: ExportOptions | None = None) -> int:
    """Write ``store`` to ``path`` in the format ``name``; returns how many nuclei were written.

    Raises:
        ConfigError: there is no such format, or the extra that it needs is not installed.
        RegionError: the region of interest leaves the slide.
        DataError: the file cannot be written, or the format cannot hold this store.
    """
    options = options or ExportOptions()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        match name:
            case "geojson":
                from nucleipan.exports.geojson import export_geojson

                return export_geojson(store, path, options.roi)
            case _:
                raise ConfigError(f"unknown export format {name!r}; known: {', '.join(FORMATS)}")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); choose another name") from error
    except ModuleNotFoundError as error:
        extra = FORMATS[name].extra
        raise ConfigError(f"{name} needs the package {error.name}; pip install 'nucleipan[{extra}]'") from error
