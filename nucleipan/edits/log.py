"""All corrections of a store: read on top of the original, appended, undone.

::

    <store>/edits/000001.tif          one edit each, in the order they were made, see ``nucleipan.edits.edit_file``
    <store>/edits/000002.undone.tif   one that was undone: kept as a trace, without effect, its ids never given again
    <store>/edits/checked.json        fields that somebody has looked through, see ``nucleipan.edits.checked``

The guarantee: nothing outside ``edits/`` is ever written, and what is read is the original with the pixels that the
edits touch, at every level of the pyramid (a coarse pixel is a fine one, so both agree exactly). Undoing restores what
was there. A file is whole or not there, so a killed program loses at most the edit it was about to save.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from nucleipan.edits.checked import CheckedField, read_checked, write_checked
from nucleipan.edits.edit import Edit, EditError, SavedEdit
from nucleipan.edits.edit_file import checked_text, write_edit
from nucleipan.edits.folder import edit_files, exclusive, misfit, read_edits
from nucleipan.edits.originals import Originals
from nucleipan.edits.rows import EditedTable
from nucleipan.edits.state import EMPTY, State
from nucleipan.errors import StoreError
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore


@dataclass
class EditLog:
    """The edits of one store. Reading methods are those of ``PanopticStore`` and may run in other threads meanwhile.

    Attributes:
        store: the original.
        undone: edits without effect.
        checked: fields that somebody has looked through, in the order they were marked.
    """

    store: PanopticStore
    undone: tuple[SavedEdit, ...] = ()
    checked: tuple[CheckedField, ...] = ()
    _state: State = field(default=EMPTY, repr=False)
    originals: Originals = field(init=False, repr=False)
    _table: EditedTable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.originals = Originals(self.store)
        self._table = EditedTable(self.originals)

    @classmethod
    def open(cls, store: PanopticStore) -> EditLog:
        """The edits of ``store``; none where nobody made any.

        Raises:
            StoreError: a file is damaged, missing, of another store, or does not fit those before it.
        """
        active, undone = read_edits(store)
        return cls(store, tuple(undone), read_checked(store), State.of(active))

    # What was done

    @property
    def folder(self) -> Path:
        return self.store.edits_folder

    @property
    def edits(self) -> tuple[SavedEdit, ...]:
        """Those in effect, in the order they were made."""
        return self._state.saved

    @property
    def next_id(self) -> int:
        """The first id that no nucleus of the store, edited, undone or not, ever had."""
        made = (max(s.edit.made, default=0) for s in (*self.edits, *self.undone))
        return max([self.store.n_nuclei, *made]) + 1

    def append(self, edit: Edit, author: str | None = None) -> SavedEdit:
        """Save ``edit`` and let it take effect; without ``author`` in the name of the user who is logged in.

        Raises:
            EditError: it was not made for the nuclei as they are now.
            StoreError: it cannot be written, or another program has changed the edits meanwhile.
        """
        problem = misfit(edit, self.store, self.has, self.next_id - 1)
        if problem is None and not np.array_equal(self.instances(edit.box), edit.before):
            problem = "its pixels are no longer as they were when it was made"
        if problem:
            raise EditError(f"the {edit.kind} does not fit: {problem}; make it again")
        saved = SavedEdit(len(self.edits) + len(self.undone) + 1, author_or_user(author), now(), edit)
        with self._exclusive():
            write_edit(self._path(saved.number), saved, self.store)
        self._state = self._state.followed_by(saved)
        return saved

    def undo(self) -> SavedEdit:
        """Take back the last edit in effect; it stays as a trace under another name.

        Raises:
            EditError: there is none.
            StoreError: its file cannot be renamed, or another program has changed the edits meanwhile.
        """
        if not self.edits:
            raise EditError(f"{self.store.path.name} has no edit to undo")
        last = self.edits[-1]
        path = self._path(last.number)
        with self._exclusive():
            try:
                os.replace(path, path.with_suffix(".undone.tif"))
            except OSError as error:
                raise StoreError(f"{path}: cannot be renamed ({error.strerror or error}); permit writing") from error
        self.undone = (*self.undone, last)
        self._state = State.of(self.edits[:-1])
        return last

    def mark_checked(self, box: Box, author: str | None = None) -> CheckedField:
        """Note that every nucleus in ``box`` (level-0 pixels of the store) is now as it should be.

        Raises:
            EditError: the box is empty or leaves the store.
            StoreError: the note cannot be written.
        """
        if box.is_empty or not Box.of_shape(self.store.shape).contains(box):
            raise EditError(f"{box} is not a part of the store, which spans {self.store.shape}; choose one inside")
        marked = CheckedField(box, author_or_user(author), now())
        self._write_checked((*self.checked, marked))
        return marked

    def unmark_checked(self, marked: CheckedField) -> None:
        """Take such a note back; nothing happens if it is not there.

        Raises:
            StoreError: it cannot be written.
        """
        self._write_checked(tuple(c for c in self.checked if c != marked))

    # What is there

    def instances(self, box: Box | None = None, level: int = 0) -> np.ndarray:
        """As ``PanopticStore.instances``, with the edits."""
        ids = self.store.instances(box, level)
        return self._state.overlaid(ids, box or Box.of_shape(ids.shape), 2**level)

    def class_map(self, box: Box | None = None, level: int = 0) -> np.ndarray:
        """As ``PanopticStore.class_map``, with the edits.

        Where a nucleus is gone, the pixel has the tissue that the nucleus lay in.
        """
        classes, state = self.store.class_map(box, level), self._state
        box = box or Box.of_shape(classes.shape)
        if not state.meets(box, 2**level):
            return classes
        original = self.originals.known(self.store.instances(box, level))
        ids = state.overlaid(original.copy(), box, 2**level)
        other = np.nonzero((ids != original) | np.isin(ids, state.known))
        ids, original = ids[other], original[other]
        tissue = np.where(original > 0, self.originals.tissue_of[original], classes[other])
        classes[other] = np.where(ids > 0, state.classes_of(ids, self.originals.class_of), tissue)
        return classes

    def nuclei(self, columns: Sequence[str] | None = None, box: Box | None = None) -> pa.Table:
        """As ``PanopticStore.nuclei``, with the edits; see ``nuclei_batches``."""
        batches = list(self.nuclei_batches(columns, box))
        return pa.concat_tables(batches) if batches else self.store.nuclei_schema(columns).empty_table()

    def nuclei_batches(self, columns: Sequence[str] | None = None, box: Box | None = None) -> Iterator[pa.Table]:
        """As ``PanopticStore.nuclei_batches``, with the edits.

        Of nuclei whose pixels changed, class, area, shape, place, outline and tissue are measured anew; everything
        else (score, probabilities, stains, distances) is null. A nucleus that only got another class keeps the rest.

        Raises:
            StoreError: there is no such column.
        """
        return self._table.batches(self._state, columns, box)

    def has(self, nucleus: int) -> bool:
        """Whether there is a nucleus of that id now."""
        if nucleus in self._state.removed:
            return False
        return 1 <= nucleus <= self.store.n_nuclei or nucleus in self._state.class_of

    def class_of(self, nucleus: int) -> int:
        """Class id of a nucleus.

        Raises:
            EditError: there is no such nucleus.
        """
        self._check(nucleus)
        return int(self._state.class_of.get(nucleus) or self.originals.class_of[nucleus])

    def box_of(self, nucleus: int) -> Box:
        """The bounding box of a nucleus, in level-0 pixels of the store.

        Raises:
            EditError: there is no such nucleus.
        """
        self._check(nucleus)
        if nucleus in self._state.patch_of:
            return self._state.patch_of[nucleus].box
        return self.originals.box_of(nucleus)

    @property
    def changed(self) -> tuple[int, ...]:
        """Ids of nuclei that are new, or have another outline or class than in the original, ascending."""
        return tuple(self._state.known.tolist())

    @property
    def removed(self) -> frozenset[int]:
        """Ids that were nuclei, of the original or made by an edit in effect, and are no more."""
        return self._state.removed

    def _check(self, nucleus: int) -> None:
        if not self.has(nucleus):
            raise EditError(f"{self.store.path.name} has no nucleus {nucleus}; choose one that is there")

    # The folder

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.tif"

    def _write_checked(self, checked: tuple[CheckedField, ...]) -> None:
        with self._exclusive():
            write_checked(self.store, checked)
        self.checked = checked

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the right to write the folder, which is as this log knows it.

        Raises:
            StoreError: another program holds it or has changed the folder, or it cannot be written.
        """
        known = {s.number: False for s in self.edits} | {s.number: True for s in self.undone}
        with exclusive(self.folder):
            found = {number: is_undone for number, is_undone, _ in edit_files(self.folder)}
            if found != known or read_checked(self.store) != self.checked:
                raise StoreError(f"{self.folder} was changed by another program; open the store again")
            yield


def author_or_user(author: str | None) -> str:
    """``author``, or the name of the user who is logged in.

    Raises:
        EditError: it is longer than 200 characters or not printable.
    """
    if author is None or not author.strip():
        try:
            return checked_text(getpass.getuser())
        except (KeyError, OSError, ImportError, ValueError):  # an account without a name
            return "unknown"
    try:
        return checked_text(author.strip())
    except ValueError as error:
        raise EditError(f"author: {error}") from error


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
