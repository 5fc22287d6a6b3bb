"""An edit on disk: one small TIFF, whole or not there.

::

    page 0            uint32, deflate: ids in the box before
    page 1            uint32, deflate: ids in the box afterwards; equal pixels are not touched
    ImageDescription  JSON (of page 0):
        nucleipan_edit  1, the version of this format
        store           whose ids these are: {"slide": fingerprint, "model": sha256, "shape": [h, w], "n_nuclei": n}
        number          counts the edits of the store from 1; also the file's name
        kind            merge, split, delete, redraw or class
        author, time    text, and UTC in ISO 8601
        ids             the nuclei it ends or changes
        classes         {"id": class id}, the nuclei it makes or changes
        box             [y0, x0, y1, x1], half-open, level-0 pixels of the store
        sha256          of the JSON without this entry (keys sorted, no spaces), then both pages' little-endian bytes

Any image program shows the pixels; nothing is unpickled, and nothing is decoded before its size is known to be right.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from nucleipan.edits.edit import MAX_ID, MAX_SIDE, Edit, SavedEdit
from nucleipan.errors import StoreError, reason
from nucleipan.files import whole_file
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore

_VERSION = 1
_MAX_TEXT = 200


def identity_of(store: PanopticStore) -> dict[str, Any]:
    """What tells a store's ids from another's, JSON-ready."""
    return {
        "slide": store.slide.get("fingerprint"),
        "model": store.model.get("sha256"),
        "shape": list(store.shape),
        "n_nuclei": store.n_nuclei,
    }


def write_edit(path: Path, saved: SavedEdit, store: PanopticStore) -> None:
    """Write ``path`` in one atomic step.

    Raises:
        StoreError: it cannot be written.
    """
    edit = saved.edit
    planes = np.stack([edit.before, edit.after]).astype("<u4")
    document = {
        "nucleipan_edit": _VERSION, "store": identity_of(store), "number": saved.number, "kind": edit.kind,
        "author": saved.author, "time": saved.time.isoformat(), "ids": list(edit.ids),
        "classes": {str(i): c for i, c in sorted(edit.classes.items())}, "box": _corners(edit.box),
    }  # fmt: skip
    text = json.dumps(document | {"sha256": _digest(document, planes)})
    with whole_file(path, StoreError) as temporary, tifffile.TiffWriter(temporary, byteorder="<") as file:
        for page, plane in enumerate(planes):
            file.write(
                plane, photometric="minisblack", compression="zlib", metadata=None, software=False,
                description=text if page == 0 else None, contiguous=False,
            )  # fmt: skip


def read_edit(path: Path, store: PanopticStore) -> SavedEdit:
    """The edit in ``path``; that it fits the edits before it is the log's to judge.

    Raises:
        StoreError: the file is damaged, of another store, of a newer version, or contradicts itself.
    """
    try:
        with tifffile.TiffFile(path) as file:
            document = json.loads(file.pages.first.description)
            if not isinstance(document, dict) or "nucleipan_edit" not in document:
                raise ValueError("it carries no description of an edit")
            _check_origin(path, document, store)
            box = _box(document["box"], store)
            planes = _planes(file, box)
        if document.pop("sha256", None) != _digest(document, planes):
            raise ValueError("its contents do not match their checksum")
        return _saved(document, box, planes, store)
    except StoreError:
        raise
    except Exception as error:  # codecs raise whatever they like on damaged bytes
        raise StoreError(
            f"{path}: is no whole edit ({reason(error)}); restore it from a copy, or move it and all later ones away"
        ) from error


def checked_text(value: Any) -> str:
    """``value`` if it is a printable text of reasonable length.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= _MAX_TEXT:
        raise ValueError(f"expected a text of 1 to {_MAX_TEXT} printable characters; found {str(value)[:40]!r}")
    return value


def checked_time(value: Any) -> datetime:
    """The instant that ISO 8601 ``value`` names, in UTC.

    Raises:
        ValueError: it names none.
    """
    time = datetime.fromisoformat(checked_text(value))
    if time.tzinfo is None:
        raise ValueError(f"time {value!r} has no time zone")
    return time.astimezone(UTC)


def checked_box(corners: Any, store: PanopticStore) -> Box:
    """The box with ``corners`` y0, x0, y1, x1.

    Raises:
        ValueError: it is none, empty, or not inside the store.
    """
    if not isinstance(corners, list) or len(corners) != 4 or any(type(c) is not int for c in corners):
        raise ValueError(f"expected a box of four whole numbers; found {str(corners)[:40]}")
    box = Box(*corners)
    if box.is_empty or not Box.of_shape(store.shape).contains(box):
        raise ValueError(f"{box} is not a part of the store, which spans {store.shape}")
    return box


def _corners(box: Box) -> list[int]:
    return [box.y0, box.x0, box.y1, box.x1]


def _digest(document: dict[str, Any], planes: np.ndarray) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode() + planes.astype("<u4").tobytes()).hexdigest()


def _check_origin(path: Path, document: dict[str, Any], store: PanopticStore) -> None:
    version, found, own = document["nucleipan_edit"], document.get("store"), identity_of(store)
    if type(version) is not int or version > _VERSION:
        raise StoreError(f"{path}: has version {version}, newer than {_VERSION}; update nucleipan to read it")
    if found != own:
        raise StoreError(f"{path}: is an edit of another store ({found}, here {own}); move it back to its own")


def _box(corners: Any, store: PanopticStore) -> Box:
    box = checked_box(corners, store)
    if max(box.shape) > MAX_SIDE:
        raise ValueError(f"{box} has a side of more than {MAX_SIDE} pixels")
    return box


def _planes(file: tifffile.TiffFile, box: Box) -> np.ndarray:
    """uint32[2, h, w]."""
    pages = [file.pages[k].aspage() for k in range(min(3, len(file.pages)))]
    if [(p.shape, p.dtype) for p in pages] != [(box.shape, np.dtype(np.uint32))] * 2:
        raise ValueError(f"expected two pages of uint32{list(box.shape)}")
    return np.stack([page.asarray() for page in pages])


def _saved(document: dict[str, Any], box: Box, planes: np.ndarray, store: PanopticStore) -> SavedEdit:
    ids, classes, number = document["ids"], document["classes"], document["number"]
    if not isinstance(ids, list) or any(type(i) is not int or not 0 < i <= MAX_ID for i in ids):
        raise ValueError(f"expected a list of ids; found {str(ids)[:40]}")
    if not isinstance(classes, dict) or any(type(c) is not int for c in classes.values()):
        raise ValueError(f"expected a class by id; found {str(classes)[:40]}")
    class_of = {int(i): c for i, c in classes.items()}
    if not all(0 < i <= MAX_ID for i in class_of) or not set(class_of.values()) <= set(
        store.classes.thing_ids.tolist()
    ):
        raise ValueError(f"a nucleus or class that cannot be: {str(classes)[:40]}")
    edit = Edit(document["kind"], tuple(ids), class_of, box, planes[0], planes[1])
    return SavedEdit(number, checked_text(document["author"]), checked_time(document["time"]), edit)
