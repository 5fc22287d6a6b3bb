"""What a path holds, for people: a slide or a panoptic store."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from nucleipan.edits import open_corrected
from nucleipan.errors import printable
from nucleipan.slide import describe
from nucleipan.store import PanopticStore


def describe_path(path: Path) -> dict[str, Any]:
    """JSON-ready description of a slide (as ``nucleipan.slide.describe``) or of a finished store.

    Raises:
        SlideError, StoreError: it is neither, or damaged.
    """
    if path.name.endswith((".ome.zarr", ".ome.zarr.partial")) and _is_store(path):
        return _describe_store(open_corrected(path))
    return describe(path)


def print_description(description: dict[str, Any]) -> None:
    """Name and value a line; lists of records as indented lines."""
    for key, value in description.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            print(f"{key}:")
            for item in value:
                print("  " + "  ".join(f"{k} {_text(v)}" for k, v in item.items()))
        elif isinstance(value, dict):
            print(f"{key}:")
            for name, item in value.items():
                print(f"  {printable(name)}: {_text(item)}")
        else:
            print(f"{key}: {_text(value)}")


def _is_store(path: Path) -> bool:
    return path.name.endswith(".partial") or (path / "nuclei.parquet").is_file() or not path.exists()


def _describe_store(store: PanopticStore) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for table in store.nuclei_batches(["class"]):  # never all of them at once
        counts.update({str(c["values"]): c["counts"] for c in table["class"].value_counts().to_pylist()})
    return {
        "path": str(store.path),
        "format": "nucleipan panoptic store (OME-Zarr 0.5)",
        "shape": list(store.shape),
        "mpp": store.mpp,
        "slide": store.slide,
        "model": store.model,
        **({"corrections": store.corrections} if store.corrections else {}),
        "n_nuclei": store.n_nuclei,
        "nuclei": dict(counts.most_common()),
        "classes": ", ".join(c.name for c in store.classes.classes),
    }


def _text(value: Any) -> str:
    if value is None:
        return "not stated"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return " x ".join(_text(v) for v in value)
    return printable(value)
