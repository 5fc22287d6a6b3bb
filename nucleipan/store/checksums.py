"""``checksums.sha256``: size and SHA-256 of every file of a finished store, so that damage is found and named.

::

    # nucleipan checksums 1; also for: sha256sum -c checksums.sha256
    # 1033 bytes
    6b86b273ff34fce1...  labels/classes/0/c/0/0
    ...
    # sha256 of the lines above: 4e07408562bedb8b...

It is written last, from what is then on disk, sorted: equal stores have equal lists. The list ends with its own
digest, so that a damaged list is not taken for damaged files; who wants to know that nobody changed a store on purpose
keeps that digest elsewhere. The root's attributes say that there is a list, so that a lost one is missed; stores of
earlier versions say nothing and have none.

Names in the list are only compared with names that are found in the folder, and links are never followed: a list from
elsewhere leads to no file outside the store. What people correct (``edits/``) changes, and is not in the list.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nucleipan.documents import json_value
from nucleipan.errors import StoreError, reason
from nucleipan.files import whole_file
from nucleipan.progress import Progress

CHECKSUMS = "checksums.sha256"
EDITS = "edits"

_SAME_AGAIN = "copy the store again from where it is whole, or segment the slide again with --overwrite"
_TITLE = f"# nucleipan checksums 1; also for: sha256sum -c {CHECKSUMS}\n"
_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)*", re.ASCII)
_ENTRY = re.compile(rf"# (0|[1-9]\d*) bytes\n([0-9a-f]{{64}})  ({_NAME.pattern})\n", re.ASCII)
_LAST = "# sha256 of the lines above: "
# What a finished run keeps of its folder; work files go before the store gets its name.
_KEPT = re.compile(r"(zarr\.json|nuclei\.parquet|labels/.+|\d+/.+)", re.ASCII)
# Operating systems and file servers leave these anywhere, besides hidden files.
_OF_SYSTEMS = frozenset({"Thumbs.db", "desktop.ini", "@eaDir"})
_MAX_LIST_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a store. ``file`` is relative to it, ``advice`` what to do."""

    file: str
    what: str
    advice: str = _SAME_AGAIN

    def __str__(self) -> str:
        return f"{self.file}: {self.what}; {self.advice}"


@dataclass(frozen=True, slots=True)
class FileSum:
    """What the list says of a file."""

    n_bytes: int
    sha256: str


def write_checksums(folder: Path) -> None:
    """List the files of the complete store in ``folder``, replacing an earlier list.

    Raises:
        StoreError: a file is no plain one, has a name that no part of a store has, or cannot be read; the list cannot
            be written.
    """
    sums: dict[str, FileSum] = {}
    for name, path in _found(folder):
        if not _KEPT.fullmatch(name):
            continue
        if not _NAME.fullmatch(name):
            raise StoreError(f"{path}: has a name that no part of a store has; remove it and run again")
        try:
            sums[name] = FileSum(_size(path), _digest(path))
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror or error}); run again to resume") from error
    with whole_file(folder / CHECKSUMS, StoreError) as temporary:
        temporary.write_bytes(_render(sums))


def read_checksums(folder: Path) -> dict[str, FileSum] | None:
    """The list by file name; None where there is none and none was promised: an earlier version wrote the store.

    Raises:
        StoreError: the list is missing or damaged.
    """
    try:
        return _read(folder)
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder / CHECKSUMS}: {_wrong_with_list(error)}; {_SAME_AGAIN}") from error


def absent_files(folder: Path) -> list[str]:
    """Names in the list whose files are gone or empty, which a reader would take for pixels without nuclei.

    Raises:
        StoreError: as ``read_checksums``.
    """
    return [name for name in read_checksums(folder) or () if not _has_content(folder / name)]


def damaged_files(folder: Path, progress: Progress | None = None) -> list[Finding]:
    """Every file of the store that is not as it was written, each once, in the order of names.

    A file that is cut short is told by its size; all others are read once, in pieces. Of a store that an earlier
    version wrote nothing is known.
    """
    try:
        sums = _read(folder)
    except (OSError, ValueError) as error:
        return [Finding(CHECKSUMS, _wrong_with_list(error))]
    if sums is None:
        return []
    try:
        found = dict(_found(folder))
    except OSError as error:
        return [Finding(".", f"a folder cannot be read ({error.strerror or error})", "permit reading")]
    missing = sums.keys() - found.keys()
    findings = [Finding(name, "is missing") for name in missing]
    for name in found.keys() - sums.keys():
        is_folder = found[name].is_dir() and not found[name].is_symlink()
        if not (is_folder and any(lost.startswith(f"{name}/") for lost in missing)):
            findings.append(Finding(name, "does not belong to the store", "remove it, or put it elsewhere"))
    present = sorted(sums.keys() & found.keys())
    for n, name in enumerate(present, 1):
        what = _damage(found[name], sums[name])
        findings += [Finding(name, what)] if what else []
        if progress is not None:
            progress(n, len(present), "checksums")
    return sorted(findings, key=lambda finding: finding.file)


def refuse_damaged(folder: Path) -> None:
    """Raise StoreError if a file of the store is not as it was written: nothing is to be made from such a store.

    Everything is read once: 0.2 s for a million nuclei, of which an export is the work of many seconds.
    """
    findings = damaged_files(folder)
    if findings:
        first, n_more = findings[0], len(findings) - 1
        more = f" ({n_more} more: nucleipan verify {folder})" if n_more else ""
        raise StoreError(f"{folder / first.file}: {first.what}{more}; {first.advice}")


def _read(folder: Path) -> dict[str, FileSum] | None:
    """As ``read_checksums``; raises OSError or ValueError."""
    path = folder / CHECKSUMS
    try:
        if _size(path) > _MAX_LIST_BYTES:
            raise ValueError("it is too long")
        return _parsed(path.read_bytes())
    except FileNotFoundError:
        if _is_promised(folder):
            raise
        return None


def _wrong_with_list(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return f"is damaged ({(isinstance(error, OSError) and error.strerror) or reason(error)})"


def _render(sums: dict[str, FileSum]) -> bytes:
    lines = [f"# {s.n_bytes} bytes\n{s.sha256}  {name}\n" for name, s in sorted(sums.items())]
    above = (_TITLE + "".join(lines)).encode()
    return above + f"{_LAST}{hashlib.sha256(above).hexdigest()}\n".encode()


def _parsed(text: bytes) -> dict[str, FileSum]:
    """Raises ValueError unless ``text`` is, to the byte, what ``_render`` gives, of names inside a store."""
    entries = _ENTRY.findall(text.decode("ascii"))
    sums = {name: FileSum(int(n_bytes), sha256) for n_bytes, sha256, name in entries}
    if _render(sums) != text:
        raise ValueError("it does not match its own digest")
    if any(part in (".", "..") for name in sums for part in name.split("/")):
        raise ValueError("it names a file outside the store")
    return sums


def _found(folder: Path, above: str = "") -> Iterator[tuple[str, Path]]:
    """Names and paths of all that lies in a store and is no folder with something in it; links are not followed."""
    with os.scandir(folder) as children:
        entries = [c for c in children if not (c.name.startswith(".") or c.name in _OF_SYSTEMS)]
    if above and not entries:
        yield above.removesuffix("/"), folder
    for entry in entries:
        if not above and entry.name in (EDITS, CHECKSUMS):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _found(Path(entry.path), f"{above}{entry.name}/")
        else:
            yield above + entry.name, Path(entry.path)


def _damage(path: Path, expected: FileSum) -> str:
    """What is wrong with a file; empty if nothing is."""
    try:
        n_bytes = _size(path)
        if n_bytes != expected.n_bytes:
            return f"has {n_bytes} bytes, {expected.n_bytes} were written"
        return "" if _digest(path) == expected.sha256 else "its content has changed"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _size(path: Path) -> int:
    """Raises OSError for anything but a plain file; reading a pipe would never end, and a link leads anywhere."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is a link" if stat.S_ISLNK(status.st_mode) else "it is no file")
    return status.st_size


def _digest(path: Path) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _has_content(path: Path) -> bool:
    try:
        return _size(path) > 0
    except OSError:
        return False


def _is_promised(folder: Path) -> bool:
    try:
        document = json_value((folder / "zarr.json").read_bytes())
        return bool(document["attributes"]["nucleipan"]["checksums"] == CHECKSUMS)
    except (OSError, ValueError, KeyError, TypeError):
        return False
