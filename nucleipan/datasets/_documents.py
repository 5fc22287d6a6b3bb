"""JSON, XML and MATLAB files from outside, refused before they can do harm.

Nothing is unpickled, no entity is expanded and no size is believed that a file merely claims.
"""

from __future__ import annotations

import codecs
import gzip
import io
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from nucleipan.datasets._pixels import MAX_PIXELS
from nucleipan.documents import json_value, plain_bytes, xml_root
from nucleipan.errors import DataError, reason

MAX_BYTES = 2**28
# What a value takes as an object, 100 bytes at most of most, bounds how many there may be in 2 GB.
_MAX_VALUES = 2**24
_MAX_EXPANSION = 200  # of a compressed text; outlines of nuclei shrink to a tenth
_MIN_EXPANDED = 2**20


def read_json(path: Path) -> Any:
    """The value in a JSON file, compressed if its name ends in ``.gz``.

    Raises:
        DataError: it cannot be read, is no JSON, nests too deeply, or would fill the memory.
    """
    text = _text(path)
    # Every value but the first of a list or object follows a comma; objects are the largest.
    n_values = text.count(",") + text.count("[") + 3 * text.count("{")
    if n_values > _MAX_VALUES:
        raise DataError(
            f"{path}: holds about {n_values:,} values; expected at most {_MAX_VALUES:,}; split it, or export less"
        )
    try:
        return json_value(text)
    except ValueError as error:
        raise DataError(f"{path}: is not valid JSON ({reason(error)}); write it again") from error


def json_list(path: Path, document: Any, key: str) -> list[dict[str, Any]]:
    """``document[key]``, which must be a list of objects."""
    value = document.get(key) if isinstance(document, dict) else None
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise DataError(f"{path}: expected an object with a list of objects {key!r}; found {_short(value)}")
    return value


def json_by_id(
    path: Path, document: Any, key: str, id_key: str, read_id: Callable[[Path, dict[str, Any], str], Any] | None = None
) -> dict[Any, dict[str, Any]]:
    """The objects in the list ``document[key]`` by their ``id_key``, which must differ; by ``json_int`` if not told."""
    found: dict[Any, dict[str, Any]] = {}
    for entry in json_list(path, document, key):
        number = (read_id or json_int)(path, entry, id_key)
        if number in found:
            raise DataError(f"{path}: two of its {key} have {id_key} {number}; expected one")
        found[number] = entry
    return found


def json_int(path: Path, entry: dict[str, Any], key: str) -> int:
    """``entry[key]``, which must be an integer that is not negative and fits in 32 bits."""
    value = entry.get(key)
    if type(value) is not int or not 0 <= value < 2**31:
        raise DataError(f"{path}: {key!r} must be an integer from 0 to 2147483647; found {_short(value)}")
    return value


def json_id(path: Path, entry: dict[str, Any], key: str) -> int | str:
    """``entry[key]``, which must be an integer as for ``json_int``, or text that is not empty."""
    value = entry.get(key)
    if isinstance(value, str) and value:
        return value
    if type(value) is not int:
        raise DataError(f"{path}: {key!r} must be an integer or text; found {_short(value)}")
    return json_int(path, entry, key)


def json_text(path: Path, entry: dict[str, Any], key: str) -> str:
    """``entry[key]``, which must be text that is not empty."""
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{path}: {key!r} must be text; found {_short(value)}")
    return value


def read_xml(path: Path) -> ET.Element:
    """The root of an XML file without a document type.

    Raises:
        DataError: it cannot be read, is no XML, or declares a document type or entities.
    """
    text = _text(path)
    if text.count("<") + text.count("=") > _MAX_VALUES:
        raise DataError(f"{path}: holds more than {_MAX_VALUES:,} elements and attributes; split it")
    try:
        return xml_root(text)
    except ValueError as error:
        raise DataError(f"{path}: is not valid XML ({reason(error)}); export it again") from error


def read_mat(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Those of the variables ``names`` that a MATLAB file holds.

    Raises:
        DataError: it cannot be read, is of version 7.3 (HDF5), or a variable is larger than any image.
    """
    try:
        sizes = {name: size for name, size, _ in scipy.io.whosmat(str(path), appendmat=False) if name in names}
        if any(np.prod(size, dtype=float) > MAX_PIXELS for size in sizes.values()):
            raise DataError(f"{path}: claims variables of {sizes}; expected at most {MAX_PIXELS} numbers each")
        found = scipy.io.loadmat(str(path), appendmat=False, variable_names=list(sizes)) if sizes else {}
    except DataError:
        raise
    except NotImplementedError as error:
        raise DataError(f"{path}: is a MATLAB 7.3 file; expected version 7 or older; save it with -v7") from error
    except Exception as error:  # scipy raises whatever it likes on damaged bytes
        raise DataError(f"{path}: is not a readable MATLAB file ({reason(error)}); copy it again") from error
    return {name: np.asarray(found[name]) for name in sizes}


def _text(path: Path) -> str:
    try:
        data = plain_bytes(path, MAX_BYTES)
        if path.suffix == ".gz":
            limit = min(MAX_BYTES, max(_MIN_EXPANDED, _MAX_EXPANSION * len(data)))
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                data = file.read(limit + 1)
            if len(data) > limit:
                raise DataError(f"{path}: holds more than {limit:,} bytes of text; split it")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({reason(error)}); copy it again") from error
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({reason(error)}); save it as UTF-8") from error


def _short(value: Any) -> str:
    return repr(value)[:80]
