"""Pixels of a store, read lazily; what cannot be read is an error that names the file.

A chunk that cannot be decoded makes zarr raise whatever its codec raised, without saying where.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr

from nucleipan.documents import plain_bytes
from nucleipan.errors import StoreError, reason

_MAX_DOCUMENT_BYTES = 2**20
_MAX_PIECE_PIXELS = 2**26
_DO_OVER = "copy the store again from where it is whole, or segment the slide again with --overwrite"
# Of zarr, its codecs and the file system, where data are damaged or their codecs do not fit together.
_DAMAGED = (OSError, RuntimeError, TypeError, ValueError, KeyError, ArithmeticError, MemoryError)


class LabelArray(Protocol):
    """What lazy readers may ask of a level of labels (y, x): a stored array, or one with corrections laid over it."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def chunks(self) -> tuple[int, ...]: ...
    @property
    def shards(self) -> tuple[int, ...] | None: ...
    def __getitem__(self, selection: Any) -> Any: ...


@dataclass(frozen=True)
class StoredArray:
    """A level of labels (y, x) or of the image (c, y, x) in the folder ``path``, read only."""

    path: Path
    array: zarr.Array

    @classmethod
    def open(cls, path: Path) -> StoredArray:
        """Raises StoreError if there is no array in ``path``, or its document is damaged."""
        try:
            plain_bytes(path / "zarr.json", _MAX_DOCUMENT_BYTES)
            # Version 3 has no codec that unpickles.
            array = zarr.open_array(str(path), mode="r", zarr_format=3)
        except Exception as error:  # a document can be wrong in any way
            raise StoreError(f"{path / 'zarr.json'}: describes no array ({reason(error)}); {_DO_OVER}") from error
        pieces = array.shards or array.chunks
        is_possible = all(0 < side < 2**31 for side in array.shape)
        if array.dtype.kind != "u" or not is_possible or math.prod(pieces) > _MAX_PIECE_PIXELS:
            raise StoreError(
                f"{path / 'zarr.json'}: describes {array.dtype} {array.shape} in pieces of {pieces}; expected unsigned "
                f"integers in smaller ones; {_DO_OVER}"
            )
        return cls(path, array)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def chunks(self) -> tuple[int, ...]:
        return self.array.chunks

    @property
    def shards(self) -> tuple[int, ...] | None:
        return self.array.shards

    @property
    def fill_value(self) -> Any:
        return self.array.fill_value

    @property
    def metadata(self) -> Any:
        """The array's document, as zarr understands it."""
        return self.array.metadata

    def __getitem__(self, selection: Any) -> Any:
        """As of a numpy array.

        Raises:
            StoreError: a chunk cannot be read.
        """
        try:
            return self.array[selection]
        except IndexError:
            raise
        except _DAMAGED as error:
            culprit = next((file for file, box in self._shards(selection) if not self._is_readable(box)), self.path)
            raise StoreError(f"{culprit}: is damaged ({reason(error)}); {_DO_OVER}") from error

    def file_of(self, *pixel: int) -> Path:
        """Where a pixel is stored."""
        sides = self.shards or self.chunks
        return self.path.joinpath("c", *(str(k // side) for k, side in zip(pixel, sides, strict=True)))

    def _shards(self, selection: Any) -> Iterator[tuple[Path, tuple[slice, ...]]]:
        """Files that hold what ``selection`` asks for (all, unless it consists of slices), and what is in each."""
        given = selection if isinstance(selection, tuple) else (selection,)
        asked = given if all(isinstance(each, slice) for each in given) else ()
        asked = (*asked, *(slice(None),) * (self.ndim - len(asked)))
        parts = []
        for each, n, side in zip(asked, self.shape, self.shards or self.chunks, strict=True):
            start, stop, _ = each.indices(n)
            parts.append([slice(k, min(k + side, n)) for k in range(start // side * side, stop, side)])
        for box in product(*parts):
            yield self.file_of(*(part.start for part in box)), box

    def _is_readable(self, box: tuple[slice, ...]) -> bool:
        try:
            self.array[box]
        except _DAMAGED:
            return False
        return True
