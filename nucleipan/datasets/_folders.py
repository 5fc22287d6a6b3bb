"""Files that belong together: images and their labels by stem, items by name."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from nucleipan.datasets.annotated import Item
from nucleipan.errors import DataError

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".tif", ".tiff")


def visible(folder: Path) -> list[Path]:
    """What ``folder`` holds, sorted; nothing where there is no such folder.

    Hidden files are left out, and what archives made on macOS add: a twin ``._name`` of every file, in ``__MACOSX``.
    """
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))


def subfolders(folder: Path) -> list[Path]:
    return [p for p in visible(folder) if p.is_dir()]


def by_stem(suffixes: Collection[str], *folders: Path) -> dict[str, Path]:
    """Files of ``folders`` with one of ``suffixes`` (lower case), by stem.

    Raises:
        DataError: two files share a stem.
    """
    found: dict[str, Path] = {}
    for path in (p for folder in folders for p in visible(folder) if p.suffix.lower() in suffixes):
        if path.stem in found:
            raise DataError(f"{path}: {found[path.stem]} has the same stem; keep one of the two")
        found[path.stem] = path
    return found


def paired(images: Mapping[str, Path], labels: Mapping[str, Path], label_folder: Path) -> list[tuple[str, Path, Path]]:
    """Stem, image and label of every image.

    Raises:
        DataError: one has no partner.
    """
    for stem in sorted(images.keys() - labels.keys()):
        raise DataError(f"{images[stem]}: {label_folder} has no file called {stem}; annotate the image or remove it")
    for stem in sorted(labels.keys() - images.keys()):
        raise DataError(f"{labels[stem]}: there is no image called {stem}; add it or remove this file")
    return [(stem, images[stem], labels[stem]) for stem in sorted(images)]


def listed(folder: Path, items: Iterable[Item], expected: str) -> list[Item]:
    """``items`` by name; ``expected`` says in words what the layout looks like.

    Raises:
        DataError: there is none, or two share a name.
    """
    found = sorted(items, key=lambda item: item.name)
    if not found:
        what = "holds no annotated image" if folder.is_dir() else "is not a folder"
        raise DataError(f"{folder}: {what}; expected {expected}")
    for one, other in itertools.pairwise(found):
        if one.name == other.name:
            raise DataError(f"{other.path}: {one.path} is called {one.name}, too; rename one of the two")
    return found
