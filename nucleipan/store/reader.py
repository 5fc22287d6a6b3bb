"""Reading a finished panoptic store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zarr

from nucleipan.classes import PanopticClasses
from nucleipan.documents import json_value, plain_bytes
from nucleipan.errors import RegionError, StoreError, reason
from nucleipan.geometry import Box
from nucleipan.store.arrays import LabelArray, StoredArray
from nucleipan.store.checksums import EDITS, absent_files
from nucleipan.store.spec import StoreSpec

_MAX_DOCUMENT_BYTES = 2**24
_MAX_NUCLEI, _MAX_GROUP_ROWS = 2**28, 2**20
_ARRAYS = ("labels/nuclei/0", "labels/classes/0", "0")
# Of Arrow, where the table is damaged.
_DAMAGED = (pa.ArrowException, OSError, ValueError, MemoryError)


@dataclass(frozen=True)
class PanopticStore:
    """A finished store, read only. Boxes are in pixels of the view (``shape``, ``mpp``) unless a level is named."""

    path: Path
    spec: StoreSpec
    attributes: dict[str, Any]
    """The root's attribute ``nucleipan``: the spec and what stitching found."""

    @classmethod
    def open(cls, path: Path | str) -> PanopticStore:
        """Open the store at ``path``.

        Raises:
            StoreError: it is missing, unfinished, not written by nucleipan, of a newer version, or incomplete. Files
                with other content than they had are not noticed here, see ``refuse_damaged``.
        """
        path = Path(path)
        if path.name.endswith(".partial"):
            raise StoreError(f"{path} is an unfinished run; segment the slide again to resume it")
        if not path.is_dir():
            is_begun = path.with_name(path.name + ".partial").is_dir()
            what = "is not finished; segment the slide again to resume it" if is_begun else "does not exist"
            raise StoreError(f"{path} {what}")
        try:
            plain_bytes(path / "zarr.json", _MAX_DOCUMENT_BYTES)
            attributes = zarr.open_group(str(path), mode="r", zarr_format=3).attrs.asdict().get("nucleipan")
        except Exception as error:  # a document can be wrong in any way
            raise StoreError(
                f"{path} is no zarr group ({reason(error)}); expected a store written by nucleipan"
            ) from error
        if not isinstance(attributes, dict):
            raise StoreError(f"{path} was not written by nucleipan: it has no attribute 'nucleipan'")
        spec = StoreSpec.from_dict(attributes)
        missing = [name for name in _ARRAYS if not (path / name / "zarr.json").exists()]
        missing += [] if (path / "nuclei.parquet").exists() else ["nuclei.parquet"]
        missing = missing or absent_files(path)
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise StoreError(f"{path} lacks {', '.join(missing[:3])}{more}; segment the slide again with --overwrite")
        try:
            _check_table(pq.read_metadata(path / "nuclei.parquet"))
        except _DAMAGED as error:
            raise _damaged_table(path, error) from error
        return cls(path, spec, attributes)

    @property
    def classes(self) -> PanopticClasses:
        """Of the class map and the table; 0 is void."""
        return self.spec.classes

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of the label images."""
        return self.spec.mpp

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the finest label images, which span the whole slide."""
        return self.spec.shape

    @property
    def level0_per_pixel(self) -> float:
        """Pixels of the slide's full resolution, in which the table counts, per pixel of the label images."""
        return self.spec.level0_per_pixel

    @property
    def slide(self) -> dict[str, Any]:
        """JSON-ready: name, format, width, height and mpp of full resolution, fingerprint; never ``metadata``, so that
        what is made from it says no more."""
        return self.spec.slide

    @property
    def metadata(self) -> dict[str, str] | None:
        """What else the slide's file says, if that was kept (``segment --keep-metadata``); it may name a patient."""
        return self.spec.metadata

    @property
    def quality(self) -> dict[str, Any]:
        """How much of the tissue could be judged, as ``segment`` found it; empty in stores of other versions.

        ``tissue_mm2``; shares of it that are void: ``pen``, ``folded``, ``out_of_focus``; ``density`` of the rest, mean
        optical density of R, G and B.
        """
        found = self.attributes.get("quality")
        return found if isinstance(found, dict) else {}

    @property
    def model(self) -> dict[str, Any]:
        """JSON-ready: name, sha256, licence."""
        return self.spec.model

    @property
    def config(self) -> dict[str, Any]:
        """JSON-ready: version, decoding, backend and options that the result depends on."""
        return self.spec.config

    @property
    def edits_folder(self) -> Path:
        """What people corrected, see ``nucleipan.edits``; missing where nobody did."""
        return edits_folder(self.path)

    @cached_property
    def n_levels(self) -> int:
        """Levels of the label pyramids."""
        return sum(1 for child in (self.path / "labels/nuclei").iterdir() if child.name.isdigit())

    @property
    def n_nuclei(self) -> int:
        """Rows of the table."""
        return self._table.metadata.num_rows

    @property
    def last_id(self) -> int:
        """No nucleus has a larger id. Ids are 1, 2, 3, ... as long as nobody has corrected the store."""
        return self.n_nuclei

    @property
    def corrections(self) -> dict[str, Any]:
        """JSON-ready, who corrected how much of what this reads; empty as long as nobody did."""
        return {}

    def array(self, name: str, level: int = 0) -> LabelArray:
        """The array of ``"nuclei"`` or ``"classes"`` (y, x) at a level, for lazy readers.

        Raises:
            RegionError: there is no such level.
            StoreError: its document is damaged; so is a chunk that cannot be read, then or later.
        """
        if not 0 <= level < self.n_levels:
            raise RegionError(f"level {level} is outside the store's levels 0..{self.n_levels - 1}")
        return StoredArray.open(self.path / "labels" / name / str(level))

    def image(self, level: int = 0) -> StoredArray:
        """uint8 (c, y, x), the RGB image of the root at one of its own levels, for lazy readers."""
        return StoredArray.open(self.path / str(level))

    def instances(self, box: Box | None = None, level: int = 0) -> np.ndarray:
        """uint32[h, w], nucleus ids in ``box``, which counts pixels of ``level``; all of it by default.

        Raises:
            RegionError: the box leaves the image or the level does not exist.
            StoreError: a chunk is damaged.
        """
        return _read(self.array("nuclei", level), box)

    def class_map(self, box: Box | None = None, level: int = 0) -> np.ndarray:
        """uint8[h, w], class ids; as ``instances``."""
        return _read(self.array("classes", level), box)

    def overview(self, level: int = 0) -> np.ndarray:
        """uint8[h, w, 3], the RGB image of the root at one of its own levels."""
        return np.moveaxis(np.asarray(self.image(level)[...]), 0, -1)

    def nuclei(self, columns: Sequence[str] | None = None, box: Box | None = None) -> pa.Table:
        """Rows of the table, in order of ids; with ``box``, those whose bounding box meets it.

        Coordinates in the table are level-0 slide pixels: a box pixel is ``level0_per_pixel`` of them. Row groups
        that cannot meet the box are not read.

        Raises:
            StoreError: as ``nuclei_batches``.
        """
        batches = list(self.nuclei_batches(columns, box))
        return pa.concat_tables(batches) if batches else self.nuclei_schema(columns).empty_table()

    def nuclei_batches(self, columns: Sequence[str] | None = None, box: Box | None = None) -> Iterator[pa.Table]:
        """The rows of ``nuclei`` piece by piece, one per row group that meets the box.

        Raises:
            StoreError: there is no such column, or the table is damaged.
        """
        wanted = self.nuclei_schema(columns).names
        if box is None:
            for group in range(self._table.num_row_groups):
                yield self._read_group(group, wanted)
            return
        read = list(dict.fromkeys([*wanted, "bbox"]))
        sides = np.array([box.x0, box.y0, box.x1, box.y1]) * self.level0_per_pixel
        for group in range(self._table.num_row_groups):
            if self._may_meet(group, sides):
                table = self._read_group(group, read)
                yield table.filter(_meets(table["bbox"], sides)).select(wanted)

    @cached_property
    def _table(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path / "nuclei.parquet", memory_map=True, page_checksum_verification=True)
        except _DAMAGED as error:
            raise _damaged_table(self.path, error) from error

    def _read_group(self, group: int, columns: list[str]) -> pa.Table:
        try:
            return self._table.read_row_group(group, columns=columns)
        except _DAMAGED as error:
            raise _damaged_table(self.path, error) from error

    def nuclei_schema(self, columns: Sequence[str] | None = None) -> pa.Schema:
        """Names and types of the table's columns, all or those named.

        Raises:
            StoreError: there is no such column.
        """
        schema = self._table.schema_arrow
        unknown = [name for name in columns or () if name not in schema.names]
        if unknown:
            raise StoreError(f"{self.path} has no column {unknown[0]!r}; it has {', '.join(schema.names)}")
        return schema if columns is None else pa.schema([schema.field(name) for name in columns], schema.metadata)

    def _may_meet(self, group: int, sides: np.ndarray) -> bool:
        """Whether the statistics of a row group allow a bounding box that meets xmin, ymin, xmax, ymax."""
        of_group = self._table.metadata.row_group(group)
        found = {c.path_in_schema: c.statistics for c in map(of_group.column, range(of_group.num_columns))}
        return bool(
            found["bbox.xmin"].min < sides[2]
            and found["bbox.ymin"].min < sides[3]
            and found["bbox.xmax"].max > sides[0]
            and found["bbox.ymax"].max > sides[1]
        )


def _check_table(table: pq.FileMetaData) -> None:
    """Refuse more rows than there can be; a few bytes can claim billions."""
    groups = [table.row_group(k).num_rows for k in range(table.num_row_groups)]
    if not 0 <= table.num_rows <= _MAX_NUCLEI or max(groups, default=0) > _MAX_GROUP_ROWS:
        raise ValueError(f"it claims {table.num_rows:,} rows, {max(groups, default=0):,} in one group")


def _damaged_table(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{path / 'nuclei.parquet'} is damaged ({reason(error)}); segment the slide again with --overwrite"
    )


def _read(array: LabelArray, box: Box | None) -> np.ndarray:
    whole = Box(0, 0, *array.shape)
    box = whole if box is None else box
    if not whole.contains(box):
        raise RegionError(f"{box} leaves the image of {whole.shape}; clip it first")
    return np.asarray(array[box.slices(whole)])


def _meets(bbox: pa.ChunkedArray, sides: np.ndarray) -> pa.ChunkedArray:
    xmin, ymin, xmax, ymax = (pc.struct_field(bbox, name) for name in ("xmin", "ymin", "xmax", "ymax"))
    across = pc.and_(pc.less(xmin, sides[2]), pc.greater(xmax, sides[0]))
    return pc.and_(across, pc.and_(pc.less(ymin, sides[3]), pc.greater(ymax, sides[1])))


def edits_folder(path: Path) -> Path:
    """``PanopticStore.edits_folder`` of the store at ``path``, also of a damaged one."""
    return path / EDITS


def is_own_store(path: Path) -> bool:
    """Whether ``path`` is a finished store, whole or damaged, that nucleipan wrote."""
    try:
        attributes = json_value(plain_bytes(path / "zarr.json", _MAX_DOCUMENT_BYTES)).get("attributes", {})
    except (OSError, ValueError, AttributeError):
        return False
    return isinstance(attributes, dict) and "nucleipan" in attributes
