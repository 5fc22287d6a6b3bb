"""One file of named arrays: what a finished tile leaves on disk.

Written under another name and moved into place, so that a file that exists is whole; every part carries a checksum,
so that one that was damaged afterwards is noticed. Parts are compressed one by one (zstd level 1, which is faster
than memory on label planes) and read one by one: the tables of all tiles are read without touching a plane. ::

    magic 8 | header length u32 | header crc u32 | header json | part | part | ...

No pickle anywhere: a header names dtype and shape, a part is bytes.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nucleipan.documents import json_value
from nucleipan.errors import StoreError
from nucleipan.files import whole_file

_MAGIC = b"npantil3"
_PREFIX = struct.Struct("<8sII")


def write_arrays(path: Path, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write ``arrays`` and the JSON-ready ``meta`` to ``path`` in one atomic step, replacing what is there.

    Raises:
        StoreError: the file cannot be written.
    """
    codec = pa.Codec("zstd", compression_level=1)
    parts, entries, offset = [], [], 0
    for name, array in arrays.items():
        part = codec.compress(np.ascontiguousarray(array).data.cast("B") if array.size else b"", asbytes=True)
        entries.append([name, array.dtype.str, list(array.shape), offset, len(part), zlib.crc32(part)])
        parts.append(part)
        offset += len(part)
    header = json.dumps({"meta": dict(meta), "arrays": entries}).encode()
    with whole_file(path, StoreError) as temporary, open(temporary, "wb") as file:
        file.write(_PREFIX.pack(_MAGIC, len(header), zlib.crc32(header)))
        file.write(header)
        file.writelines(parts)


def read_arrays(path: Path, names: Iterable[str] | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """``meta`` and the arrays called ``names`` (all by default), read-only.

    Raises:
        StoreError: the file is missing, cut short or damaged, or lacks one of the arrays.
    """
    try:
        with open(path, "rb") as file:
            magic, length, crc = _PREFIX.unpack(file.read(_PREFIX.size))
            header = file.read(length)
            if magic != _MAGIC or zlib.crc32(header) != crc:
                raise ValueError("its header does not match its checksum")
            document = json_value(header)
            entries = {entry[0]: entry for entry in document["arrays"]}
            start = file.tell()
            arrays = {}
            for name in entries if names is None else names:
                _, dtype, shape, offset, n_bytes, part_crc = entries[name]
                file.seek(start + offset)
                arrays[name] = _decode(file.read(n_bytes), np.dtype(dtype), shape, part_crc)
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise StoreError(f"{path} is no whole tile file ({error}); run again to compute the tile anew") from error
    return document["meta"], arrays


def _decode(part: bytes, dtype: np.dtype, shape: list[int], crc: int) -> np.ndarray:
    if zlib.crc32(part) != crc:
        raise ValueError("a part does not match its checksum")
    n = int(np.prod(shape, dtype=np.int64))
    if n == 0:
        return np.empty(shape, dtype)
    data = pa.Codec("zstd").decompress(part, decompressed_size=n * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape)
