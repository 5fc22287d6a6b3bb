"""Files and folders that are whole when they have their name.

A program can be killed while it writes, and a disk can be full. Everything is therefore written under another name
in the same folder and renamed when it is complete: who finds a file finds all of it, and what was there before stays
until then.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from nucleipan.errors import DataError, NucleipanError, reason

FORMULA = r"^(\s*[=+\-@]|[\t\r\n])"
"""How a cell of a CSV file begins that spreadsheets run."""


def defused(cell: str) -> str:
    """``cell`` as a spreadsheet shows it, with an apostrophe before what it would run."""
    return re.sub(FORMULA, r"'\1", cell)


@contextmanager
def whole_file(path: Path, error: type[NucleipanError] = DataError) -> Iterator[Path]:
    """A name to write to; when the block ends well, it becomes ``path``, replacing what is there.

    The name ends like ``path``, for writers that decide by the suffix. The folder must exist.

    Raises:
        error: the file cannot be written (any ``OSError`` in the block).
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as failure:
        raise error(_cannot_write(path, failure)) from failure
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def whole_folder(path: Path, error: type[NucleipanError] = DataError) -> Iterator[Path]:
    """A new folder to fill; when the block ends well, it is called ``path``.

    Raises:
        error: ``path`` exists already (it is never replaced), or the folder cannot be written.
    """
    if path.exists():
        raise error(f"{path}: exists already and would not be replaced whole; remove it or choose another name")
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.rename(temporary, path)
    except OSError as failure:
        raise error(_cannot_write(path, failure)) from failure
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def open_to_write(path: Path) -> Iterator[IO[bytes]]:
    """``path``, compressed without a time stamp where it ends in ``.gz``: equal content gives equal files."""
    with open(path, "wb") as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", 5, raw, mtime=0) as packed:
                yield cast(IO[bytes], packed)
        else:
            yield raw


def _cannot_write(path: Path, failure: OSError) -> str:
    why = failure.strerror or reason(failure)
    return f"{path}: cannot be written ({why}); free space, permit writing, or choose another name"
