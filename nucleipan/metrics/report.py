"""Figures as rows of tables and documents; knows scores, but not how they were summed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nucleipan.metrics.detection import ClassificationCounts
from nucleipan.metrics.mistakes import Mistakes
from nucleipan.metrics.quality import PanopticQuality
from nucleipan.metrics.tissue import PixelConfusion

if TYPE_CHECKING:
    from rich.table import Table


def quality_row(q: PanopticQuality) -> dict[str, float]:
    return {"PQ": q.pq, "SQ": q.sq, "RQ": q.rq, "TP": q.tp, "FP": q.fp, "FN": q.fn}


def mistake_rows(mistakes: Mistakes, quality: PanopticQuality) -> dict[str, dict[str, float]]:
    """By kind of mistake: how many there are, and for each nucleus of the truth."""
    n_true = quality.n_true or float("nan")
    return {name: {"count": n, "per true nucleus": n / n_true} for name, n in asdict(mistakes).items()}


def class_rows(
    names: Sequence[str], qualities: Sequence[PanopticQuality], counts: Sequence[ClassificationCounts]
) -> dict[str, dict[str, float]]:
    """By nucleus class; empty without qualities."""
    return {
        name: quality_row(q) | {"Fc": c.f1, "Fc as printed": c.f1_as_printed}
        for name, q, c in zip(names, qualities, counts, strict=False)
    }


def tissue_rows(names: Sequence[str], tissue: PixelConfusion | None) -> dict[str, dict[str, float]]:
    """By tissue class."""
    if tissue is None:
        return {}
    pixels = tissue.counts.sum(axis=1)
    return {
        name: {"Dice": dice, "recall": recall, "pixels": int(n)}
        for name, dice, recall, n in zip(names, tissue.dices, tissue.recalls, pixels, strict=True)
    }


def as_table(title: str, first: str, rows: dict[str, dict[str, Any]], columns: Sequence[str] | None = None) -> Table:
    """A rich table; ``columns`` are those of the first row unless given."""
    from rich.table import Table
    from rich.text import Text

    columns = columns or list(next(iter(rows.values()), {}))
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(Text(name), *(_cell(row.get(column)) for column in columns))
    return table


def _cell(value: float | None) -> str:
    if value is None or value != value:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def without_nan(value: Any) -> Any:
    """A copy of nested dicts and lists in which nan, which JSON lacks, is None."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and value != value else value
