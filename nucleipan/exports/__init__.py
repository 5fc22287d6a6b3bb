"""Exports: one file per format, each reads a finished store and writes one file or folder.

A new format is a new file with a function like the others, and an entry and a case here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nucleipan.errors import ConfigError, DataError
from nucleipan.exports.options import ExportOptions

if TYPE_CHECKING:
    from nucleipan.store import PanopticStore

__all__ = ["FORMATS", "OF_RESULTS", "ExportOptions", "Format", "export_store"]


@dataclass(frozen=True)
class Format:
    """``suffix``: of a store's export, after its stem. ``extra``: of nucleipan, what must be installed for it.

    ``counts``: what it consists of, for people. ``of_corrections``: of what somebody corrected, not of what was found.
    """

    suffix: str
    extra: str | None = None
    counts: str = "nuclei"
    of_corrections: bool = False


FORMATS = {
    "geojson": Format(".geojson.gz"),
    "csv": Format(".csv.gz"),
    "parquet": Format(".parquet"),
    "h5ad": Format(".h5ad", "spatial"),
    "spatialdata": Format(".spatialdata.zarr", "spatial"),
    "coco-panoptic": Format(".coco"),
    "cityscapes": Format(".cityscapes"),
    "ome-tiff": Format(".ome.tiff"),
    "dicom-seg": Format(".seg.dcm", "dicom"),
    "dicom-ann": Format(".ann.dcm", "dicom"),
    "training": Format(".training", counts="fields", of_corrections=True),
}
OF_RESULTS = tuple(name for name, format in FORMATS.items() if not format.of_corrections)
"""Formats of what was found, which can be written as soon as it was."""


def export_store(store: PanopticStore, name: str, path: str | Path, options: ExportOptions | None = None) -> int:
    """Write ``store`` to ``path`` in the format ``name``; returns how many nuclei (or fields) were written.

    Args:
        store: as segmented (``PanopticStore.open``) or with corrections (``open_corrected``).
        name: one of ``nucleipan.exports.FORMATS``, such as ``geojson``.
        path: file or folder to write; folders above it are made.
        options: a region of interest, in level-0 pixels, and the slide, which some formats need.

    Raises:
        ConfigError: there is no such format, or the extra that it needs is not installed.
        RegionError: the region of interest leaves the slide.
        StoreError: a file of the store is not as it was written: of a damaged store nothing is written.
        DataError: the file cannot be written, or the format cannot hold this store.
    """
    from nucleipan.store import refuse_damaged

    path, options = Path(path), options or ExportOptions()
    try:
        refuse_damaged(store.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return _write(store, name, path, options)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); choose another name") from error
    except ModuleNotFoundError as error:
        extra = FORMATS[name].extra
        raise ConfigError(f"{name} needs the package {error.name}; pip install 'nucleipan[{extra}]'") from error


def _write(store: PanopticStore, name: str, path: Path, options: ExportOptions) -> int:
    match name:
        case "geojson":
            from nucleipan.exports.geojson import export_geojson

            return export_geojson(store, path, options.roi)
        case "csv":
            from nucleipan.exports.table import export_csv

            return export_csv(store, path, options.roi)
        case "parquet":
            from nucleipan.exports.table import export_parquet

            return export_parquet(store, path, options.roi)
        case "h5ad":
            from nucleipan.exports.anndata import export_h5ad

            return export_h5ad(store, path, options.roi)
        case "spatialdata":
            from nucleipan.exports.spatialdata import export_spatialdata

            return export_spatialdata(store, path, options.roi)
        case "coco-panoptic":
            from nucleipan.exports.coco import export_coco

            return export_coco(store, path, options)
        case "cityscapes":
            from nucleipan.exports.cityscapes import export_cityscapes

            return export_cityscapes(store, path, options)
        case "ome-tiff":
            from nucleipan.exports.ome_tiff import export_ome_tiff

            return export_ome_tiff(store, path, options)
        case "dicom-seg":
            from nucleipan.exports.dicom_seg import export_dicom_seg

            return export_dicom_seg(store, path, options)
        case "dicom-ann":
            from nucleipan.exports.dicom_ann import export_dicom_ann

            return export_dicom_ann(store, path, options)
        case "training":
            from nucleipan.edits import EditLog, export_training

            if options.slide is None or options.roi is not None:
                raise ConfigError("training data are the checked fields of the slide; pass --slide, and no --roi")
            return export_training(EditLog.open(store), options.slide, path)
        case _:
            raise ConfigError(f"unknown export format {name!r}; known: {', '.join(FORMATS)}")
