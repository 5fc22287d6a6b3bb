"""Fields that somebody has looked through: there, what is no nucleus is known to be none.

``<store>/edits/checked.json`` is ``{"checked_fields": 1, "store": ..., "fields": [{"box": [y0, x0, y1, x1], "author":
..., "time": ...}]}``, boxes half-open in level-0 pixels of the store; it is replaced as a whole.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nucleipan.documents import json_value
from nucleipan.edits.edit_file import checked_box, checked_text, checked_time, identity_of
from nucleipan.errors import StoreError, reason
from nucleipan.files import whole_file
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore

_VERSION = 1


@dataclass(frozen=True)
class CheckedField:
    """``box`` in level-0 pixels of the store, who looked through it, and when (UTC)."""

    box: Box
    author: str
    time: datetime


def read_checked(store: PanopticStore) -> tuple[CheckedField, ...]:
    """The fields of ``store``; none where nobody marked any.

    Raises:
        StoreError: the file is damaged or of another store.
    """
    path = _path(store)
    try:
        document = json_value(path.read_bytes())
        if document["checked_fields"] != _VERSION or document["store"] != identity_of(store):
            raise ValueError(f"it is of version {document['checked_fields']} and store {document['store']}")
        return tuple(
            CheckedField(checked_box(f["box"], store), checked_text(f["author"]), checked_time(f["time"]))
            for f in document["fields"]
        )
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path}: does not list checked fields of this store ({reason(error)}); "
            "restore it from a copy, or remove it"
        ) from error


def write_checked(store: PanopticStore, fields: tuple[CheckedField, ...]) -> None:
    """Replace the list.

    Raises:
        StoreError: it cannot be written.
    """
    listed = [
        {"box": [f.box.y0, f.box.x0, f.box.y1, f.box.x1], "author": f.author, "time": f.time.isoformat()}
        for f in fields
    ]
    document = {"checked_fields": _VERSION, "store": identity_of(store), "fields": listed}
    with whole_file(_path(store), StoreError) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n")


def _path(store: PanopticStore) -> Path:
    return store.edits_folder / "checked.json"
