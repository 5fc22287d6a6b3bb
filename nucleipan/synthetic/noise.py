"""Random numbers that follow from a seed and a place, in any order: what makes a scene a function."""

from __future__ import annotations

import numpy as np


def smooth(t: np.ndarray) -> np.ndarray:
    return t * t * (3 - 2 * t)


def mix(row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """uint64 keys of whole-numbered lattice points (or pixels), broadcast; both may be negative."""
    r = np.floor(row).astype(np.int64).astype(np.uint64)
    c = np.floor(col).astype(np.int64).astype(np.uint64)
    return (r << np.uint64(32)) ^ (c & np.uint64(0xFFFFFFFF))


def uniform(seed: int, stream: int, key: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) per key: splitmix64 (Steele et al., OOPSLA 2014) as a counter-based generator."""
    start = (seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    z = (key + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(start)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).astype(np.float64) * 2.0**-64
