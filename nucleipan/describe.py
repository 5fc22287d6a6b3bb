"""What a path holds, for people: a slide or a panoptic store."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from nucleipan.edits import open_corrected
from nucleipan.errors import printable
from nucleipan.plausible import notes_of
from nucleipan.slide import describe
from nucleipan.store import PanopticStore

#: Where the description of a store lists all that is in it of the slide, but for the nuclei and tissue found on it.
KEPT = "kept of the slide"


def describe_path(path: Path) -> dict[str, Any]:
    """JSON-ready description of a slide (as ``nucleipan.slide.describe``) or of a finished store.

    Raises:
        SlideError, StoreError: it is neither, or damaged.
    """
    if path.name.endswith((".ome.zarr", ".ome.zarr.partial")) and _is_store(path):
        return _describe_store(open_corrected(path))
    return describe(path)


def print_description(description: dict[str, Any]) -> None:
    """Name and value a line; what is inside a value, and lists of records, as indented lines."""
    _print_entries(description, "")


def _print_entries(entries: dict[str, Any], indent: str) -> None:
    for key, value in entries.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            print(f"{indent}{key}:")
            for item in value:
                print(f"{indent}  " + "  ".join(f"{printable(k)} {_text(v)}" for k, v in item.items()))
        elif isinstance(value, list) and value and isinstance(value[0], str):
            print(f"{indent}{printable(key)}:", *map(_text, value), sep=f"\n{indent}  ")
        elif isinstance(value, dict) and value:
            print(f"{indent}{printable(key)}:")
            _print_entries(value, f"{indent}  ")
        else:
            print(f"{indent}{_text(key)}: {_text(value)}")


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
        KEPT: store.slide | {"overview": _overview(store), "metadata": store.metadata or "not kept"},
        "model": store.model,
        "quality": {key: value for key, value in store.quality.items() if key != "density"},
        "notes": notes_of(store),
        **({"corrections": store.corrections} if store.corrections else {}),
        "n_nuclei": store.n_nuclei,
        "nuclei": dict(counts.most_common()),
        "classes": ", ".join(c.name for c in store.classes.classes),
    }


def _overview(store: PanopticStore) -> str:
    height, width = store.image().shape[1:]
    mpp = store.mpp * store.shape[0] / height
    return f"{height} x {width} pixels of {mpp:.4g} um"


def _text(value: Any) -> str:
    if value is None or value == {}:
        return "not stated"
    if value == []:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return " x ".join(_text(v) for v in value)
    return printable(value)
