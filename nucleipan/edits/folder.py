"""The folder ``edits`` of a store: which files are there, and whether they follow from each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from nucleipan.edits.edit import MAX_ID, Edit, SavedEdit
from nucleipan.edits.edit_file import read_edit
from nucleipan.errors import StoreError
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore

_PATIENCE_S = 5.0
_NAME = re.compile(r"(\d{6,9})(\.undone)?\.tif")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the right to write ``folder``, which is made if it is missing.

    Raises:
        StoreError: another program holds it, or it cannot be written.
    """
    # The file stays: removed, one who waits for it and one who makes it anew would both hold a lock.
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(exist_ok=True)
        lock.acquire(timeout=_PATIENCE_S)
    except Timeout as error:
        raise StoreError(f"{folder} is being written by another program; try again") from error
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written ({error.strerror or error}); copy the store to where you may write"
        ) from error
    try:
        yield
    finally:
        lock.release()


def edit_files(folder: Path) -> list[tuple[int, bool, Path]]:
    """Number, whether it is undone, and path of every edit in the folder, in order; other files are left aside."""
    if not folder.is_dir():
        return []
    matches = [(m, path) for path in folder.iterdir() if (m := _NAME.fullmatch(path.name))]
    return sorted((int(m[1]), m[2] is not None, path) for m, path in matches)


def read_edits(store: PanopticStore) -> tuple[list[SavedEdit], list[SavedEdit]]:
    """Edits in effect and those undone.

    Raises:
        StoreError: a file is damaged, missing, there twice, of another store, or does not follow from those before it.
    """
    active: list[SavedEdit] = []
    undone: list[SavedEdit] = []
    for expected, (number, is_undone, path) in enumerate(edit_files(store.edits_folder), 1):
        if number != expected:
            raise StoreError(
                f"{store.path / 'edits'}: expected edit number {expected}, found {path.name}; later edits build on "
                "earlier ones: restore the folder from a copy"
            )
        saved = read_edit(path, store)
        if saved.number != number:
            raise StoreError(f"{path}: is edit number {saved.number}; give it back its name")
        (undone if is_undone else active).append(saved)
    _check_chain(store, active, undone)
    return active, undone


def _check_chain(store: PanopticStore, active: Iterable[SavedEdit], undone: Sequence[SavedEdit]) -> None:
    """Refuse edits that do not build on each other.

    Raises:
        StoreError: one changes a nucleus that was not there, or makes one under an id that was in use.
    """
    made, ended, largest = set[int](), set[int](), store.n_nuclei

    def has(nucleus: int) -> bool:
        return nucleus not in ended and (nucleus <= store.n_nuclei or nucleus in made)

    is_undone = {saved.number for saved in undone}
    for saved in sorted((*active, *undone), key=lambda s: s.number):
        edit = saved.edit
        if saved.number not in is_undone:
            problem = misfit(edit, store, has, largest)
            if problem:
                raise StoreError(
                    f"{store.path / 'edits'}: edit number {saved.number} does not follow from those before it "
                    f"({problem}); restore the folder from a copy"
                )
            made |= edit.made
            ended |= edit.ended
        largest = max([largest, *edit.made])


def misfit(edit: Edit, store: PanopticStore, has: Callable[[int], bool], largest: int) -> str | None:
    """Why an edit cannot follow others, if it cannot; ``has``: what is there, ``largest``: the last id given."""
    missing = [i for i in edit.ids if not has(i)]
    if missing:
        return f"there is no nucleus {missing[0]}"
    if edit.made and sorted(edit.made) != list(range(largest + 1, largest + 1 + len(edit.made))):
        return f"new nuclei are numbered {sorted(edit.made)}, the next free number is {largest + 1}"
    if largest + len(edit.made) > MAX_ID:
        return f"there is no number left for a new nucleus, after {largest}"
    if not Box.of_shape(store.shape).contains(edit.box):
        return f"{edit.box} leaves the store"
    unknown = set(edit.classes.values()) - set(store.classes.thing_ids.tolist())
    return f"class {min(unknown)} is no kind of nucleus" if unknown else None
