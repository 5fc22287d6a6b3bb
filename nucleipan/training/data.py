"""Annotated images in memory, and what their annotations mean in our classes.

Every sample ends as the same three things: an image, instance ids (or "this set does not say"), and a *cover
code* per pixel. A cover code is a row of ``CoverTable``: the set of classes the pixel may have. Code 0 allows
everything, which is how "not annotated" is said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nucleipan.classes import PanopticClasses
from nucleipan.datasets import LAYOUTS, Annotated, Item, checked
from nucleipan.documents import json_value, plain_bytes
from nucleipan.errors import ConfigError, DataError
from nucleipan.training.config import SourceConfig, TrainConfig

_UNKNOWN = 0


class CoverTable:
    """Which classes each cover code allows; codes are handed out on first use, 0 = all.

    ``things`` is the code of "some kind of nucleus", ``stuff`` that of "some kind of tissue, not a nucleus".
    """

    def __init__(self, classes: PanopticClasses) -> None:
        self.classes = classes
        self._codes: dict[frozenset[int], int] = {frozenset(c.id for c in classes.classes): _UNKNOWN}
        self.things = self.code_of_ids(classes.thing_ids)
        # Without any kind of tissue, what is no nucleus has no class to be taught.
        self.stuff = self.code_of_ids(classes.stuff_ids) if len(classes.stuff_ids) else _UNKNOWN

    def code(self, names: Iterable[str]) -> int:
        """The code that allows exactly the classes called ``names``."""
        return self.code_of_ids(self.classes.by_name(n).id for n in names)

    def code_of_ids(self, ids: Iterable[int]) -> int:
        key = frozenset(int(i) for i in ids)
        code = self._codes.setdefault(key, len(self._codes))
        if code > 255:
            raise DataError("more than 255 different sets of classes are covered by the data's codes")
        return code

    def allowed(self) -> np.ndarray:
        """bool[n_codes, K]."""
        table = np.zeros((len(self._codes), len(self.classes)), bool)
        for ids, code in self._codes.items():
            table[code, [i - 1 for i in ids]] = True
        return table


@dataclass(frozen=True)
class SourceCovers:
    """What one source's annotations mean, as cover codes.

    Attributes:
        of_code: by the annotators' code.
        uncoded: of a nucleus that has none.
    """

    of_code: dict[str, int]
    uncoded: int


@dataclass(frozen=True, eq=False)
class Sample:
    """One annotated image, ready to be cropped.

    Attributes:
        mpp: micrometres per pixel.
        image: uint8[3, h, w].
        ids: int32[1, h, w], counting from 1 without gaps; zeros where nuclei are not annotated.
        cover: uint8[1, h, w].
        known: uint8[1, h, w], 1 where nuclei are annotated (what has no id there is no nucleus).
    """

    name: str
    mpp: float
    image: Tensor = field(repr=False)
    ids: Tensor = field(repr=False)
    cover: Tensor = field(repr=False)
    known: Tensor = field(repr=False)


@dataclass(frozen=True)
class SampleSets:
    """Samples by source folder. ``val`` holds only the sources that a run validates on."""

    train: dict[str, Sequence[Sample]]
    val: dict[str, list[Sample]]


def read_samples(config: TrainConfig, covers: CoverTable) -> SampleSets:
    """Everything a run trains and validates on, read and checked before the first step.

    Of sources that are not kept in memory only the first image is: enough to find a mistake in the configuration.

    Raises:
        DataError: files are missing, unreadable or contradict each other, or a source is left without images.
        ConfigError: a code is mapped to an unknown class, or the splits do not fit the sources.
    """
    splits = _read_splits(config)
    train: dict[str, Sequence[Sample]] = {}
    val: dict[str, list[Sample]] = {}
    for source in config.sources:
        meaning = _source_covers(source, covers)
        chosen = split_items(source, _items(config, source), splits, config.validation)
        if source.in_memory:
            train[source.folder] = _samples(chosen.train, source, meaning, covers)
        else:
            train[source.folder] = _SamplesOnDisk(chosen.train, source, meaning, covers)
            _ = train[source.folder][:1]
        if source.folder in config.validate_on:
            val[source.folder] = _samples(chosen.val, source, meaning, covers)
    _check_not_empty(config, train, val)
    return SampleSets(train, val)


@dataclass(frozen=True)
class Split:
    train: list[Item]
    val: list[Item]


def split_items(source: SourceConfig, items: Sequence[Item], splits: dict[str, Any] | None, share: float) -> Split:
    """Who trains and who validates, by the source's own lists, the splits file, or ``share`` of the images.

    Without lists, images are ordered by a hash of their names: adding images later moves hardly any across.

    Raises:
        ConfigError: a list matches no image, or one image is in both.
    """
    if source.train is not None or source.val is not None:
        val = _matching(source, items, source.val or ())
        train = [i for i in items if i not in val] if source.train is None else _matching(source, items, source.train)
    elif splits is not None:
        train, val = (_matching(source, items, splits[source.folder].get(part, ())) for part in ("train", "val"))
    else:
        ranked = sorted(items, key=lambda i: hashlib.sha256(i.name.encode()).digest())
        n_val = round(share * len(ranked))
        val, train = ranked[:n_val], ranked[n_val:]
    both = sorted({i.name for i in train} & {i.name for i in val})
    if both:
        raise ConfigError(f"{source.folder}: {', '.join(both[:3])} would be trained and validated on; keep them apart")
    return Split(train, val)


def to_sample(item: Item, source: SourceConfig, meaning: SourceCovers, covers: CoverTable) -> Sample | None:
    """Read one image; None if nothing it says is mapped to a class of ours.

    Raises:
        DataError: it contradicts itself, or a nucleus has a class that the source does not map.
    """
    found = checked(item, allow_empty=source.allow_empty)
    cover = np.full(found.image.shape[:2], _UNKNOWN, np.uint8)
    if found.regions is not None:
        cover = np.array([meaning.of_code.get(c, _UNKNOWN) if c else _UNKNOWN for c in found.region_codes], np.uint8)[
            found.regions
        ]
    ids, known = np.zeros(cover.shape, np.int32), np.zeros(cover.shape, bool)
    if found.ids is not None:
        ids, cover_of_id = _cover_of_ids(item, found, meaning)
        known = np.ones(cover.shape, bool) if found.unknown is None else ~found.unknown
        is_bare = known & (ids == 0) & (cover == _UNKNOWN)
        cover = np.where(ids > 0, cover_of_id[ids], np.where(is_bare, covers.stuff, cover))
    elif not cover.any():
        return None
    return Sample(
        name=f"{source.folder}/{item.name}",
        mpp=source.mpp,
        image=torch.from_numpy(np.ascontiguousarray(found.image.transpose(2, 0, 1))),
        ids=torch.from_numpy(ids)[None],
        cover=torch.from_numpy(cover.astype(np.uint8))[None],
        known=torch.from_numpy(known.astype(np.uint8))[None],
    )


def _cover_of_ids(item: Item, found: Annotated, meaning: SourceCovers) -> tuple[np.ndarray, np.ndarray]:
    """int32[h, w] ids without gaps, and the cover code of each."""
    assert found.ids is not None
    old_ids, flat = np.unique(np.concatenate([[0], found.ids.ravel()]), return_inverse=True)
    cover = np.full(len(old_ids), meaning.uncoded, np.uint8)
    for new, old in enumerate(old_ids.tolist()):
        code = found.code_of_id.get(old)
        if code is None or not meaning.of_code:
            continue
        if code not in meaning.of_code:
            known = ", ".join(sorted(meaning.of_code))
            raise DataError(f"{item.path}: class {code!r} has no entry in codes; found {known}")
        cover[new] = meaning.of_code[code]
    return flat[1:].reshape(found.ids.shape).astype(np.int32), cover


def _items(config: TrainConfig, source: SourceConfig) -> list[Item]:
    folder = config.data_root / source.folder
    if not folder.is_dir():
        raise DataError(f"{folder}: data folder is missing; set data_root to where the data lie")
    return LAYOUTS[source.layout](folder)


def _samples(items: Sequence[Item], source: SourceConfig, meaning: SourceCovers, covers: CoverTable) -> list[Sample]:
    return [s for s in (to_sample(item, source, meaning, covers) for item in items) if s is not None]


@dataclass(frozen=True, eq=False)
class _SamplesOnDisk(Sequence[Sample]):
    """Samples that are read whenever they are asked for."""

    items: Sequence[Item]
    source: SourceConfig
    meaning: SourceCovers
    covers: CoverTable

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._read(item) for item in self.items[index]]
        return self._read(self.items[index])

    def _read(self, item: Item) -> Sample:
        sample = to_sample(item, self.source, self.meaning, self.covers)
        if sample is None:
            raise DataError(f"{item.path}: codes map nothing in it to a class of ours; name the images in train")
        return sample


def _source_covers(source: SourceConfig, covers: CoverTable) -> SourceCovers:
    classes = covers.classes
    of_code = {c.name: covers.code([c.name]) for c in classes.classes} if source.codes_are_names else {}
    try:
        of_code |= {code: covers.code(names) for code, names in source.codes.items()}
    except ConfigError as error:
        raise ConfigError(f"sources: {source.folder}: codes: {error}") from error
    if not source.kinds:
        return SourceCovers(of_code, covers.things)
    try:
        kinds = [classes.by_name(name) for name in source.kinds]
    except ConfigError as error:
        raise ConfigError(f"sources: {source.folder}: kinds: {error}") from error
    tissues = [c.name for c in kinds if not c.is_thing]
    if tissues:
        raise ConfigError(f"sources: {source.folder}: kinds: {', '.join(tissues)} is tissue; name kinds of nuclei only")
    return SourceCovers(of_code, covers.code(source.kinds))


_MAX_SPLITS_BYTES = 2**26


def _read_splits(config: TrainConfig) -> dict[str, Any] | None:
    if config.splits is None:
        return None
    try:
        splits = json_value(plain_bytes(config.splits, _MAX_SPLITS_BYTES))
        asked = [s.folder for s in config.sources if s.train is None and s.val is None]
        missing = [folder for folder in asked if not isinstance(splits[folder]["train"], list)]
    except OSError as error:
        raise DataError(f"{config.splits}: splits cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{config.splits}: expected JSON, folder -> {{train: [names], val: [names]}} ({error})"
        ) from error
    except KeyError as error:
        raise DataError(f"{config.splits}: has no entry for {error}; found {', '.join(splits)}") from error
    if missing:
        raise DataError(f"{config.splits}: train of {', '.join(missing)} is no list of names")
    return splits


def _matching(source: SourceConfig, items: Sequence[Item], patterns: Sequence[str]) -> list[Item]:
    chosen: dict[str, Item] = {}
    for pattern in patterns:
        hits = [i for i in items if i.name == pattern or fnmatchcase(i.name, pattern)]
        if not hits:
            known = ", ".join(i.name for i in items[:3])
            raise ConfigError(f"{source.folder}: no image is called {pattern!r}; found {known}, ...")
        chosen |= {i.name: i for i in hits}
    return list(chosen.values())


def _check_not_empty(config: TrainConfig, train: dict[str, Sequence[Sample]], val: dict[str, list[Sample]]) -> None:
    for source in config.sources:
        if source.weight > 0 and not train[source.folder]:
            raise DataError(f"{config.data_root / source.folder}: no image to train on; check train, val and codes")
    for folder, samples in val.items():
        if not samples or not all(s.known.any() for s in samples):
            raise DataError(f"{config.data_root / folder}: validate_on needs validation images with annotated nuclei")
