"""Images that are read a chunk at a time, as napari wants them: arrays that are not there.

napari asks a pyramid level for what the window shows, and asks again for all of it when the window moves by more than
a chunk. Chunks that were read are kept, so that only new ones cost anything; what is kept is bounded in bytes, for all
levels of an image together. napari calls from the window's thread: a chunk that cannot be read must not end in an
exception there, once per redraw. It stays grey, and the user is told why, once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from itertools import groupby
from threading import Lock
from typing import Any

import numpy as np
from napari.utils.notifications import show_error

from nucleipan.errors import NucleipanError, reason
from nucleipan.geometry import Box

CHUNK = 256


class RecentlyUsed:
    """The values that were used last, at most ``max_bytes`` by their ``nbytes``; may be asked by several threads."""

    def __init__(self, max_bytes: int = 1 << 28) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._n_bytes = 0
        self._lock = Lock()

    def get(self, key: Hashable) -> Any:
        """The value, None if it is not kept."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: Hashable, value: Any) -> None:
        with self._lock:
            old = self._kept.pop(key, None)
            self._n_bytes += value.nbytes - (0 if old is None else old.nbytes)
            self._kept[key] = value
            while self._n_bytes > self._max_bytes and len(self._kept) > 1:
                self._n_bytes -= self._kept.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._n_bytes = 0


class ChunkCache(RecentlyUsed):
    """The chunks of all levels of one image, and what its user was told about those that cannot be read."""

    def __init__(self, max_bytes: int = 1 << 28) -> None:
        super().__init__(max_bytes)
        self._told: set[str] = set()

    def tell(self, error: BaseException) -> None:
        """Show an error to the user unless the same one was shown before."""
        message = reason(error)
        if message not in self._told:
            self._told.add(message)
            show_error(message)


class ChunkedLevel:
    """One level of a pyramid, of which any box can be had.

    Args:
        index: of the level; tells the chunks of levels that share ``cache`` apart.
        shape: (h, w) or (h, w, channels).
        read: gives the pixels of any box inside the level.
        filler: what a chunk holds that cannot be read.
    """

    def __init__(
        self, index: int, shape: tuple[int, ...], read: Callable[[Box], np.ndarray], cache: ChunkCache, filler: Any
    ) -> None:
        self.shape, self.dtype = shape, np.dtype(type(filler))
        self._index, self._read, self._cache, self._filler = index, read, cache, filler

    def forget(self) -> None:
        """Free what was read, of all levels of the image."""
        self._cache.clear()

    def region(self, box: Box) -> np.ndarray:
        """The pixels of ``box``, which must lie inside the level."""
        out = np.empty((*box.shape, *self.shape[2:]), self.dtype)
        for place, chunk in self._chunks_of(box):
            part = place.clipped(box)
            out[part.slices(box)] = chunk[part.slices(place)]
        return out

    def _chunks_of(self, box: Box) -> Iterator[tuple[Box, np.ndarray]]:
        if box.is_empty:
            return
        columns = range(box.x0 // CHUNK, -(-box.x1 // CHUNK))
        for row in range(box.y0 // CHUNK, -(-box.y1 // CHUNK)):
            found = {column: self._cache.get((self._index, row, column)) for column in columns}
            missing = [column for column in columns if found[column] is None]
            # Neighbours in one read: a slide's reader and zarr each spread it over several threads.
            for _, run in groupby(enumerate(missing), lambda item: item[1] - item[0]):
                found |= self._load(row, [column for _, column in run])
            yield from ((self._place(row, column), chunk) for column, chunk in found.items() if chunk is not None)

    def _load(self, row: int, columns: list[int]) -> dict[int, np.ndarray]:
        """Read the chunks of neighbouring columns, and keep them."""
        whole = self._place(row, columns[0], columns[-1])
        try:
            pixels = self._read(whole)
        except (NucleipanError, OSError, ValueError) as error:
            self._cache.tell(error)
            pixels = np.full((*whole.shape, *self.shape[2:]), self._filler, self.dtype)
        loaded = {}
        for column in columns:
            # A copy: a view would keep the pixels of the whole run alive.
            loaded[column] = pixels[self._place(row, column).slices(whole)].astype(self.dtype, copy=True)
            self._cache.put((self._index, row, column), loaded[column])
        return loaded

    def _place(self, row: int, column: int, last: int | None = None) -> Box:
        """Box of a chunk, or of the chunks of a row from ``column`` to ``last``."""
        end = (column if last is None else last) + 1
        box = Box(row * CHUNK, column * CHUNK, (row + 1) * CHUNK, end * CHUNK)
        return box.clipped(Box.of_shape((self.shape[0], self.shape[1])))


class LazyLevel:
    """A level as napari shows it: ``shape``, ``dtype`` and indexing of an array, without its memory.

    napari 0.9 materialises the coarsest level once and keeps the array, for the thumbnail too. So a level gives out
    one array as its whole, always the same, and ``update`` writes what is now to be shown into it.

    Args:
        level: where the pixels come from.
        shown: what is shown in place of pixels; may give something else later on.
        dtype: of what is shown.
    """

    def __init__(
        self,
        level: ChunkedLevel,
        shown: Callable[[np.ndarray], np.ndarray] | None = None,
        dtype: np.dtype | None = None,
    ) -> None:
        self.shape, self.ndim, self.dtype = level.shape, len(level.shape), dtype or level.dtype
        self.size = int(np.prod(level.shape, dtype=np.int64))
        self.chunks = (CHUNK, CHUNK, *level.shape[2:])
        self._level, self._shown = level, shown
        self._whole: np.ndarray | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        (y, x), steps = _spans(key, self.shape)
        pixels = self._level.region(Box(y.start, x.start, y.stop, x.stop))[steps]
        return pixels if self._shown is None else self._shown(pixels)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self._whole is None:
            self._whole = self[...]
        return self._whole.astype(dtype or self.dtype, copy=bool(copy))

    def __deepcopy__(self, memo: dict) -> LazyLevel:
        """napari copies the data of a layer that is duplicated; a file is still the same file."""
        return self

    def forget(self) -> None:
        """Free what was read, of all levels of the image."""
        self._level.forget()

    def update(self) -> None:
        """Write what is now to be shown into the array that was given out."""
        if self._whole is not None:
            self._whole[...] = self[...]


def _spans(key: Any, shape: tuple[int, ...]) -> tuple[list[range], tuple[Any, ...]]:
    """The rows and the columns to read for an index, and the index into what was read."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * (len(shape) - len(keys) + 1)
    keys += [slice(None)] * (len(shape) - len(keys))
    spans: list[range] = []
    steps: list[slice | int] = []
    for k, n in zip(keys[:2], shape, strict=False):
        if isinstance(k, slice):
            start, stop, step = k.indices(n)
            if step < 1:
                raise IndexError(f"index {key}: steps must be positive")
            spans.append(range(start, max(start, stop)))
            steps.append(slice(None, None, step))
        else:
            i = range(n)[k]
            spans.append(range(i, i + 1))
            steps.append(0)
    return spans, (*steps, *keys[2:])
