"""Which of our classes a number in somebody's labels covers.

Data sets number their classes as they like, and often know fewer than a model. The classes scored are therefore the
*truth's*: groups of our class names, one group per distinct meaning. A prediction is translated into groups by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile

from nucleipan.documents import json_value, plain_bytes
from nucleipan.errors import DataError, reason

PLANE_SUFFIXES = (".png", ".tif", ".tiff", ".npy")


@dataclass(frozen=True)
class Part:
    """A folder of class numbers, the file that names them and the number that needs no name: nobody knows."""

    folder: str
    names_file: str
    unknown: int


_MAX_BYTES = 2**26

CLASSES = Part("classes", "class_names.json", unknown=0)
TISSUE = Part("tissue", "tissue_names.json", unknown=255)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The classes scored, 1, 2, ...: each a group of names.

    ``of_code`` int16[256] maps a folder's numbers to them: 0 = nobody knows, -1 = a number without a name.
    """

    groups: tuple[tuple[str, ...], ...]
    of_code: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(" + ".join(group) for group in self.groups)

    def id_of(self, name: str) -> int:
        """Scored class of a class name, 0 if none."""
        return next((i for i, group in enumerate(self.groups, start=1) if name in group), 0)


def read_vocabulary(part: Part, truth: Path, pred: Path, *, has_stores: bool) -> Vocabulary:
    """What can be scored of ``part``; empty, with a note, where truth and prediction cannot be compared."""
    nothing = Vocabulary((), np.zeros(256, np.int16))
    if not (truth / part.folder).is_dir():
        return nothing
    if not has_stores and not (pred / part.folder).is_dir():
        return replace(nothing, notes=(f"{part.folder} not scored: {pred} has no {part.folder}/",))
    names_file = truth / part.names_file
    if names_file.is_file():
        return _grouped(read_names(names_file), part, names_file)
    if has_stores:
        note = f"{part.folder} not scored: {names_file} is missing, which says what the numbers in {part.folder}/ mean"
        return replace(nothing, notes=(note,))
    # Two label layouts without names can only be meant to use the same numbers.
    return _grouped({code: (f"class {code}",) for code in _codes_used(part, truth)}, part, names_file)


def read_names(path: Path) -> dict[int, tuple[str, ...]]:
    """Names by number; an empty tuple for null."""
    names = {}
    for code, value in read_json_object(path).items():
        listed = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(n, str) for n in listed):
            raise DataError(f"{path}: {code!r} must be a name, a list of names or null; found {value!r}")
        names[_code(code, path)] = tuple(dict.fromkeys(listed))
    return names


def _grouped(names: Mapping[int, tuple[str, ...]], part: Part, path: Path) -> Vocabulary:
    groups: list[tuple[str, ...]] = []
    of_code = np.full(256, -1, np.int16)
    of_code[part.unknown] = 0
    for code, group in sorted(names.items()):
        same = [i for i, g in enumerate(groups, start=1) if set(g) == set(group)]
        clash = [g for g in groups if set(g) & set(group) and set(g) != set(group)]
        if clash:
            raise DataError(f"{path}: {group} and {clash[0]} overlap; two numbers must cover equal or disjoint classes")
        if group and not same:
            groups.append(group)
        of_code[code] = (same or [len(groups)])[0] if group else 0
    return Vocabulary(tuple(groups), of_code)


def _codes_used(part: Part, truth: Path) -> list[int]:
    used: set[int] = set()
    for path in sorted((truth / part.folder).iterdir()):
        if path.suffix == ".json":
            used.update(_code(v, path) for v in read_json_object(path).values())
        elif path.suffix in PLANE_SUFFIXES:
            used.update(np.unique(read_plane(path)).tolist())
    return sorted(used - {part.unknown})


def _code(value: Any, path: Path) -> int:
    try:
        code = int(value)
    except (TypeError, ValueError):
        code = -1
    if not 0 <= code <= 255:
        raise DataError(f"{path}: a class number is an integer from 0 to 255; found {value!r}")
    return code


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: the file cannot be read or is no JSON object.
    """
    try:
        value = json_value(plain_bytes(path, _MAX_BYTES))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {reason(error)}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object; found {type(value).__name__}")
    return value


def read_plane(path: Path) -> np.ndarray:
    """Integer plane [h, w] of a PNG, TIFF or NPY file.

    Raises:
        DataError: it is unreadable, or not one plane of integers.
    """
    try:
        if path.suffix == ".png":
            plane = imagecodecs.png_decode(path.read_bytes())
        elif path.suffix == ".npy":
            plane = np.load(path, allow_pickle=False)
        else:
            plane = tifffile.imread(path)
    except (ValueError, RuntimeError, OSError, tifffile.TiffFileError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if plane.ndim != 2 or plane.dtype.kind not in "iub":
        raise DataError(f"{path} must hold one plane of integers; found shape {plane.shape}, {plane.dtype}")
    return plane
