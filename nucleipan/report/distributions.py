"""How the measurements of nuclei are distributed, class by class, without holding them.

Which measurements there are is read from the table's schema: its numbers, less those that place or name a nucleus. A
first pass finds their ranges, a second fills fine histograms (``N_FINE`` bins), from which quantiles and the coarser
bins of a figure are taken. A quantile is thus exact to the width of a fine bin.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from nucleipan.report.frame import Frame
from nucleipan.report.tally import numbers
from nucleipan.store.columns import is_number

N_FINE = 2**14
_MAX_SHOWN = 9
_LARGEST = 1e12
"""Values beyond are no measurements of a nucleus, and would leave the others one bin."""

# Shown first and in this order, where the table has them; others follow in its own order.
_TITLES = {
    "area_um2": "Area (µm²)",
    "perimeter_um": "Perimeter (µm)",
    "axis_major_length_um": "Major axis (µm)",
    "axis_minor_length_um": "Minor axis (µm)",
    "eccentricity": "Eccentricity (0: round, 1: a line)",
    "solidity": "Solidity (1: no dents)",
    "haematoxylin_od_mean": "Haematoxylin, mean (optical density)",
    "eosin_od_mean": "Eosin, mean (optical density)",
    "distance_to_nearest_um": "Distance to the nearest nucleus (µm)",
    "score": "Score (0: no nucleus, 1: surely one)",
}
_NO_MEASUREMENT = re.compile(r"(.*_)?id|probability_.*|centroid.*|bbox.*|score|n_.*|.*_px|orientation.*")
_UNITS = {"_um": " (µm)", "_um2": " (µm²)"}


@dataclass(frozen=True)
class Distribution:
    """Fine histograms of one measurement.

    Attributes:
        column: of the table.
        low, high: the range of the bins, which holds all values.
        counts: int64[T, N_FINE], by thing class.
    """

    column: str
    low: float
    high: float
    counts: np.ndarray

    @property
    def title(self) -> str:
        """The measurement and its unit for people."""
        if self.column in _TITLES:
            return _TITLES[self.column]
        for suffix, unit in _UNITS.items():
            if self.column.endswith(suffix):
                return _words(self.column.removesuffix(suffix)) + unit
        return _words(self.column)

    def quantiles(self, row: int | None, shares: tuple[float, ...]) -> list[float]:
        """Values below which ``shares`` of a class (of all nuclei without one) lie; NaN where there are none."""
        counts = self.counts.sum(0) if row is None else self.counts[row]
        running, edges = np.concatenate([[0], np.cumsum(counts)]), np.linspace(self.low, self.high, N_FINE + 1)
        if running[-1] == 0:
            return [np.nan] * len(shares)
        return [float(np.interp(share * running[-1], running, edges)) for share in shares]

    def binned(self, low: float, high: float, n: int) -> tuple[np.ndarray, np.ndarray]:
        """At most ``n`` equal bins between ``low`` and ``high``, widened to fine bins: int64[T, n] and the edges."""
        step = (self.high - self.low) / N_FINE
        first = int(np.clip(np.floor((low - self.low) / step), 0, N_FINE - 1))
        last = int(np.clip(np.ceil((high - self.low) / step), first + 1, N_FINE))
        per_bin = -(-(last - first) // n)
        starts = np.arange(first, last, per_bin)
        edges = self.low + step * np.append(starts, min(starts[-1] + per_bin, N_FINE))
        inside = self.counts[:, : starts[-1] + per_bin]
        return np.add.reduceat(inside, starts, axis=1), edges


def distributions(frame: Frame) -> dict[str, Distribution]:
    """The distributions of the table's measurements, those worth showing first, and of ``score``; by column."""
    columns = _measurements(frame.store.nuclei_schema())
    ranges = _ranges(frame, columns)
    columns = [name for name in columns if np.isfinite(ranges[name]).all()]
    found = {name: np.zeros(len(frame.things) * N_FINE, np.int64) for name in columns}
    for table in frame.store.nuclei_batches(["class_id", *columns]):
        thing = frame.row_of_thing[numbers(table["class_id"]).astype(np.int64)]
        for name, counts in found.items():
            values = numbers(table[name])
            is_known = np.abs(values) < _LARGEST
            low, high = ranges[name]
            index = np.clip((values[is_known] - low) * (N_FINE / (high - low)), 0, N_FINE - 1).astype(np.int64)
            counts += np.bincount(thing[is_known] * N_FINE + index, minlength=len(counts))
    return {name: Distribution(name, *ranges[name], found[name].reshape(-1, N_FINE)) for name in columns}


def _measurements(schema: pa.Schema) -> list[str]:
    numeric = [f.name for f in schema if is_number(f.type) and not _NO_MEASUREMENT.fullmatch(f.name)]
    first = [name for name in _TITLES if name in numeric]
    shown = [*first, *(name for name in numeric if name not in first)][:_MAX_SHOWN]
    return [*shown, *(["score"] if "score" in schema.names else [])]


def _ranges(frame: Frame, columns: list[str]) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each column, never equal; infinite where it has no value."""
    ranges = dict.fromkeys(columns, (np.inf, -np.inf))
    for table in frame.store.nuclei_batches(columns):
        for name in columns:
            values = numbers(table[name])
            values = values[np.abs(values) < _LARGEST]
            low, high = ranges[name]
            ranges[name] = float(values.min(initial=low)), float(values.max(initial=high))
    return {name: (low, high if high > low else low + max(1.0, abs(low))) for name, (low, high) in ranges.items()}


def _words(name: str) -> str:
    words = name.replace("_", " ").strip()
    return words[:1].upper() + words[1:]
