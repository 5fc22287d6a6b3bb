"""The panoptic store on disk: start a run, resume it, finish it.

A run lives in ``<stem>.ome.zarr.partial`` until everything is in it, then takes its final name in one rename: what is
called ``.ome.zarr`` is whole. Killed at any moment, a run leaves one of these, and ``open_or_resume`` knows which::

    .partial with run.json                     unfinished: resumes, tiles already there are kept
    .partial without run.json, with zarr.json  complete, work files removed, not renamed yet: renamed now
    .ome.zarr                                  finished

When it replaces a finished store, the old one is set aside as ``.ome.zarr.replaced`` between the two renames and
removed after them. What makes two runs the same is their ``StoreSpec``, kept in ``run.json`` and later in the
attributes of the store.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nucleipan.documents import json_value, plain_bytes
from nucleipan.errors import StoreError, reason
from nucleipan.files import whole_file
from nucleipan.store.checksums import CHECKSUMS, write_checksums
from nucleipan.store.reader import PanopticStore, edits_folder, is_own_store
from nucleipan.store.spec import StoreSpec

# What a finished store no longer depends on: how it was tiled (the guarantee of stitching), and by which version.
_SETTLED = frozenset({"core", "margin", "config.nucleipan"})
_MAX_RUN_BYTES = 2**24
_DO_OVER = "pass --overwrite to start anew, or choose another output folder"


@dataclass(frozen=True)
class Run:
    """A run that may write. ``path`` is the finished store's, ``folder`` where everything is written before.

    ``is_finished``: the finished store is there with an equal spec; there is nothing to do.
    ``is_resumed``: an earlier, unfinished run of an equal spec was found.
    """

    path: Path
    spec: StoreSpec
    is_finished: bool = False
    is_resumed: bool = False

    @property
    def folder(self) -> Path:
        return partial_path(self.path)

    @property
    def tiles_folder(self) -> Path:
        """Where the files of finished tiles are."""
        return self.folder / "tiles"

    def attributes(self) -> dict[str, Any]:
        """The store's attribute ``nucleipan``, without what stitching adds."""
        return self.spec.to_dict() | {"checksums": CHECKSUMS}

    def publish(self) -> PanopticStore:
        """List the checksums of a complete run, remove its work files and give the store its final name.

        Raises:
            StoreError: the run is not complete, the store that it would replace was corrected meanwhile, or the disk
                is full.
        """
        if not (self.folder / "zarr.json").exists():
            raise StoreError(f"{self.folder} is not complete; run the same command again to finish it")
        _refuse_to_lose_edits(self.path)
        write_checksums(self.folder)
        # run.json goes first, by one unlink: without it the folder counts as complete, with it as unfinished.
        (self.folder / "run.json").unlink(missing_ok=True)
        shutil.rmtree(self.tiles_folder, ignore_errors=True)
        _replace_folder(self.folder, self.path)
        return PanopticStore.open(self.path)


def partial_path(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _replaced_path(path: Path) -> Path:
    return path.with_name(path.name + ".replaced")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the right to write the store ``path``; two processes would publish each other's half-written files.

    Raises:
        StoreError: another process holds it, or the folder cannot be written.
    """
    name = path.with_name(f".{path.name}.lock")
    _refuse_link(name)
    lock = FileLock(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreError(f"{path} is being written by another process; wait for it, or choose another --out") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror or error}); choose another --out") from error
    try:
        yield
    finally:
        lock.release()
        name.unlink(missing_ok=True)


def open_or_resume(path: Path | str, spec: StoreSpec, overwrite: bool = False) -> Run:
    """Start a run that ends in the store ``path``, or take up one that was interrupted.

    With ``overwrite`` a finished store is replaced once the new one is complete, unless somebody has corrected it, and
    an unfinished one of another spec is discarded; an unfinished one of the same spec is resumed all the same.

    Raises:
        StoreError: what is there belongs to another slide, model or configuration, holds corrections, is no store at
            all, or the folder cannot be written.
    """
    path = Path(path)
    folder = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for name in (path, folder, _replaced_path(path), *folder.rglob("*")):
            _refuse_link(name)
        _recover(path, folder)
        if path.exists() and not is_own_store(path):
            raise StoreError(f"{path} was not written by nucleipan and is never replaced; choose another --out")
        if overwrite:
            _refuse_to_lose_edits(path)
        if path.exists() and not overwrite:
            _refuse_other(spec, PanopticStore.open(path).spec, path, _SETTLED)
            return Run(path, spec, is_finished=True)
        is_resumed = _take_up(folder, spec, overwrite)
        (folder / "tiles").mkdir(parents=True, exist_ok=True)
        if not is_resumed:
            _write_json(folder / "run.json", spec.to_dict())
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror or error}); choose another --out") from error
    return Run(path, spec, is_resumed=is_resumed)


def _recover(path: Path, folder: Path) -> None:
    """Finish what a publication that was interrupted had begun."""
    if (folder / "zarr.json").exists() and not (folder / "run.json").exists():
        shutil.rmtree(folder / "tiles", ignore_errors=True)
        _replace_folder(folder, path)
    replaced = _replaced_path(path)
    if replaced.exists():
        if path.exists():
            shutil.rmtree(replaced)
        else:
            os.rename(replaced, path)


def _take_up(folder: Path, spec: StoreSpec, overwrite: bool) -> bool:
    """Whether an unfinished run of an equal spec is in ``folder``; what can be discarded is discarded."""
    if not folder.exists():
        return False
    try:
        _refuse_other(spec, StoreSpec.from_dict(_read_run(folder)), folder)
    except FileNotFoundError:
        return False  # killed before the run was written down: nothing was computed yet
    except StoreError:
        if not overwrite:
            raise
        shutil.rmtree(folder)
        return False
    return True


def _read_run(folder: Path) -> dict[str, Any]:
    try:
        document = json_value(plain_bytes(folder / "run.json", _MAX_RUN_BYTES))
        if isinstance(document, dict):
            return document
        raise ValueError(f"found {type(document).__name__}")
    except ValueError as error:
        raise StoreError(f"{folder} holds a damaged run.json ({reason(error)}); {_DO_OVER}") from error


def _refuse_other(spec: StoreSpec, found: StoreSpec, path: Path, settled: frozenset[str] = frozenset()) -> None:
    differences = [d for d in spec.differences(found) if d.partition(":")[0] not in settled]
    if differences:
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise StoreError(f"{path} belongs to another run; {'; '.join(differences[:3])}{more}; {_DO_OVER}")


def _refuse_link(path: Path) -> None:
    """A run writes, renames and removes below its own names; a link there would make it do so elsewhere."""
    if path.is_symlink():
        raise StoreError(f"{path} is a link, which is never followed; remove it, or choose another --out")


def _refuse_to_lose_edits(path: Path) -> None:
    folder = edits_folder(path)
    if folder.is_dir() and any(not child.name.startswith(".") for child in folder.iterdir()):
        raise StoreError(f"{folder} holds corrections that people made, which would be lost; move {path} elsewhere")


def _replace_folder(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``; what had that name is removed afterwards."""
    replaced = _replaced_path(target)
    if target.exists():
        if replaced.exists():
            shutil.rmtree(replaced)
        os.rename(target, replaced)
    os.rename(source, target)
    if replaced.exists():
        shutil.rmtree(replaced)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    with whole_file(path, StoreError) as temporary:
        temporary.write_text(json.dumps(document, indent=1))
