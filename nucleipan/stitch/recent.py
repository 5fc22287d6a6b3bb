"""What was read of the tiles used lately: phase 2 goes over the slide in raster order and asks for each tile often."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """``read(tile)`` of the tiles used last, as many as ``budget`` has room for by ``size_of``; one at least."""

    def __init__(self, read: Callable[[int], T], size_of: Callable[[T], int], budget: int) -> None:
        self._read, self._size_of, self._budget = read, size_of, budget
        self._kept: OrderedDict[int, T] = OrderedDict()
        self._size = 0

    def get(self, tile: int) -> T:
        if tile in self._kept:
            self._kept.move_to_end(tile)
            return self._kept[tile]
        found = self._kept[tile] = self._read(tile)
        self._size += self._size_of(found)
        while self._size > self._budget and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._size -= self._size_of(dropped)
        return found
