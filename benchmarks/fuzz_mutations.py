"""One file made wrong: its bytes, or what its format means by them.

Random bytes rarely get past the first check of a format. So, where the format is known, an entry of a TIFF directory,
a value of a JSON document, a chunk of a PNG or a word of a text is replaced by something that has hurt readers before,
and everything around it (offsets, lengths, check sums) is kept right.
"""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

_INTEGERS = (
    0, 1, 2, 7, 16, 255, 256, 4096, 32768, 65535, 65536, 100_000, 10**6, 2**24, 2**29,
    2**31 - 1, 2**31, 2**32 - 1, 2**63,
)  # fmt: skip
_TEXTS = (
    "", "0", "-1", "1e999", "nan", "../../../etc/passwd", "/etc/passwd", "a" * 300, "x\0y",
    "\x1b[2J\r\nforged", "9" * 5000,
    "=1+1", "<b>", "\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"), "\N{RIGHT-TO-LEFT OVERRIDE}",
)  # fmt: skip
_WORDS = (
    "&a [*b, *b]", "*a", "!!python/object/apply:os.system [id]", "[[[[[[", "{", "}", ":", "- ", "? [a]", "!!int 9:9:9",
    "2001-99-99", "!!binary x", "<<: *a", "<!DOCTYPE a [<!ENTITY b 'c'>]>", "&b;", "<", "/>", '"', "é", "\t", "\x01",
)  # fmt: skip


def mutated(data: bytes, name: str, random: Random) -> bytes:
    """``data`` of a file called ``name``, changed in one to four places."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = _change(data, name, random)
    return data


def _change(data: bytes, name: str, random: Random) -> bytes:
    if random.random() < 0.25:
        return _bytes(data, random)
    try:
        return _by_content(data, name)(data, random)
    except (
        ValueError,
        IndexError,
        OverflowError,
        struct.error,
        OSError,
        EOFError,
        RecursionError,
        zlib.error,
    ):  # wrong already
        return _bytes(data, random)


def _by_content(data: bytes, name: str) -> Callable[[bytes, Random], bytes]:
    if data[:4] in (b"II*\0", b"II+\0"):
        return _tiff
    if data.startswith(b"\x89PNG"):
        return _png
    if name.endswith(".safetensors"):
        return _safetensors
    if name.endswith(".gz"):
        return _packed
    if name.endswith((".json", ".geojson", ".zattrs", ".zarray", ".zgroup", ".jsonl")):
        return _json
    if name.endswith((".yaml", ".xml", ".sha256")):
        return _text
    return _bytes


def _bytes(data: bytes, random: Random) -> bytes:
    """Half of all changes in the first or last kilobyte, where headers are."""
    if not data:
        return random.randbytes(8)
    at = random.randrange(len(data))
    if random.random() < 0.5:
        at = random.choice((random.randrange(min(1024, len(data))), max(0, len(data) - 1 - random.randrange(1024))))
    match random.randrange(6):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
        case 1:
            n = random.choice((1, 2, 4, 8))
            number = (random.choice(_INTEGERS) % 256**n).to_bytes(n, random.choice(("little", "big")))
            return data[:at] + number + data[at + n :]
        case 2:
            return data[:at]
        case 3:
            return data[:at] + data[at + random.randrange(64) :]
        case 4:
            return data[:at] + data[at : at + random.randrange(1, 256)] * random.choice((2, 50)) + data[at:]
        case _:
            n = random.randrange(1, 64)
            return data[:at] + random.choice((bytes(n), b"\xff" * n, random.randbytes(n))) + data[at + n :]


def _tiff(data: bytes, random: Random) -> bytes:
    """A field of an entry, or a link from one directory to the next, of a little-endian TIFF."""
    is_big = data[2] == 43
    number, entry, link, n_tags = ("<Q", 20, 8, 8) if is_big else ("<I", 12, 4, 2)
    directories, at = [], struct.unpack_from(number, data, 8 if is_big else 4)[0]
    links = [8 if is_big else 4]
    while 0 < at < len(data) and at not in directories and len(directories) < 50:
        directories.append(at)
        n = int.from_bytes(data[at : at + n_tags], "little")
        links.append(at + n_tags + n * entry)
        at = struct.unpack_from(number, data, links[-1])[0]
    out = bytearray(data)
    if random.random() < 0.1:
        aim = random.choice((*directories, random.randrange(len(data)), *_INTEGERS))
        struct.pack_into(number, out, random.choice(links), aim % 256**link)
        return bytes(out)
    directory = random.choice(directories)
    n = int.from_bytes(data[directory : directory + n_tags], "little")
    at = directory + n_tags + random.randrange(n) * entry
    value = random.choice((*_INTEGERS, *directories, random.randrange(len(data))))
    match random.randrange(6):
        case 0:
            struct.pack_into("<H", out, at, random.choice((256, 257, 258, 259, 262, 273, 277, 284, 322, 323, 330, 347)))
        case 1:
            struct.pack_into("<H", out, at + 2, random.randrange(19))
        case 2:
            struct.pack_into(number, out, at + 4, value % 256**link)
        case 3:  # what the entry points to, if it does
            aim = struct.unpack_from(number, data, at + 4 + link)[0] % len(data)
            struct.pack_into("<I", out, aim, value % 2**32)
        case _:
            struct.pack_into(number, out, at + 4 + link, value % 256**link)
    return bytes(out)


def _png(data: bytes, random: Random) -> bytes:
    """The content of a chunk, with its check sum made right."""
    starts, at = [], 8
    while at + 12 <= len(data):
        starts.append(at)
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    at = random.choice(starts)
    n = int.from_bytes(data[at : at + 4], "big")
    body = data[at + 4 : at + 8] + _bytes(data[at + 8 : at + 8 + n], random)
    length = random.choice((len(body) - 4, len(body) - 4, 2**31 - 1)).to_bytes(4, "big")
    return data[:at] + length + body + zlib.crc32(body).to_bytes(4, "big") + data[at + 12 + n :]


def _safetensors(data: bytes, random: Random) -> bytes:
    """A value of the header or of the document that nucleipan keeps in it, or the header's length."""
    n = int.from_bytes(data[:8], "little")
    if random.random() < 0.1:
        return (random.choice(_INTEGERS)).to_bytes(8, "little") + data[8:]
    header = json.loads(data[8 : 8 + n])
    if random.random() < 0.7 and "__metadata__" in header:
        own = header["__metadata__"]
        own["nucleipan"] = _json(own["nucleipan"].encode(), random).decode("utf-8", "replace")
        text = json.dumps(header).encode()
    else:
        text = _json(data[8 : 8 + n], random)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + n :]


def _packed(data: bytes, random: Random) -> bytes:
    return gzip.compress(_json(gzip.decompress(data), random), 1)


def _json(data: bytes, random: Random) -> bytes:
    """One value of the document replaced, taken out or repeated."""
    document = json.loads(data)
    places = list(_places(document))
    if not places or random.random() < 0.05:
        return _nested(random) if random.random() < 0.5 else json.dumps(_value(random, [])).encode()
    holder, key = random.choice(places)
    match random.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.extend([holder[key]] * random.choice((1, 100)))
        case 2:
            text = json.dumps(document)
            return text.replace(json.dumps(holder[key]), _nested(random).decode(), 1).encode()
        case _:
            holder[key] = _value(random, places)
    return json.dumps(document).encode()


def _places(document: Any) -> Any:
    keys = document.keys() if isinstance(document, dict) else range(len(document) if isinstance(document, list) else 0)
    for key in keys:
        yield document, key
        yield from _places(document[key])


def _value(random: Random, places: list[Any]) -> Any:
    sign = random.choice((1, 1, -1))
    plain = (
        sign * random.choice(_INTEGERS), float("nan"), sign * float("inf"), sign * 1e-9, 1e9, 0.5, None, True, [], {},
        [[]], [0] * 70_000, {"": {}}, random.choice(_TEXTS), random.choice(_TEXTS), random.choice(_INTEGERS), 10**400,
    )  # fmt: skip
    if places and random.random() < 0.2:
        holder, key = random.choice(places)
        return json.loads(json.dumps(holder[key]))
    return random.choice(plain)


def _nested(random: Random) -> bytes:
    n = random.choice((500, 100_000))
    return random.choice((b"[" * n + b"]" * n, b'{"a":' * n + b"1" + b"}" * n, b"[" * n))


def _text(data: bytes, random: Random) -> bytes:
    """One word replaced, or a line repeated."""
    lines = data.decode("utf-8", "replace").split("\n")
    k = random.randrange(len(lines))
    words = lines[k].split(" ")
    match random.randrange(4):
        case 0:
            lines[k:k] = [lines[k]] * random.choice((1, 1000))
        case 1:
            lines.insert(k, random.choice(_WORDS))
        case _:
            words[random.randrange(len(words))] = random.choice((*_WORDS, *_TEXTS, str(random.choice(_INTEGERS))))
            lines[k] = " ".join(words)
    return "\n".join(lines).encode("utf-8", "replace")


def mutate_one_file(source: Path, random: Random) -> None:
    """Change ``source``, a file or one file of a folder."""
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    documents = [p for p in files if p.suffix in (".json", ".geojson", ".xml", ".mat") or p.name.startswith(".z")]
    path = random.choice(documents if documents and random.random() < 0.6 else files)
    path.write_bytes(mutated(path.read_bytes(), path.name, random))
