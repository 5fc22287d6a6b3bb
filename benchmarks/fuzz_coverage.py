"""Our own parsers under coverage-guided fuzzing: bytes that reach new lines are kept and changed further.

    pip install atheris      (not a dependency of nucleipan; Linux, CPython)
    python benchmarks/fuzz_coverage.py description -max_total_time=60

Everything after the target is libFuzzer's. A parser may refuse with the errors that its callers turn into those of
nucleipan; anything else stops the run with the input that did it. For whole files, see ``fuzz.py``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["nucleipan"]):
    from nucleipan.classes import DEFAULT_CLASSES, PanopticClasses
    from nucleipan.datasets import _outlines
    from nucleipan.datasets.qupath import _read
    from nucleipan.documents import json_value, xml_root
    from nucleipan.errors import NucleipanError
    from nucleipan.geometry import Box
    from nucleipan.slide._headers import claimed_shape, is_endless_jpeg
    from nucleipan.slide._tiff_metadata import aperio_value, parse_ome
    from nucleipan.store.checksums import FileSum, _parsed, _render
    from nucleipan.store.spec import StoreSpec

_FILE = Path(tempfile.mkdtemp()) / "a.geojson"


def description(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    parse_ome(text)
    parse_ome("<OME " + text)
    aperio_value(text, "MPP")


def headers(data: bytes) -> None:
    for magic in (b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"\xff\x4f\xff\x51"):
        claimed_shape(magic + data)
        is_endless_jpeg(magic + data)


def checksums(data: bytes) -> None:
    with suppress(ValueError):
        _parsed(data)


def spec(data: bytes) -> None:
    with suppress(ValueError):
        document = json_value(data)
        if isinstance(document, dict):
            StoreSpec.from_dict(document)
        elif isinstance(document, list):
            PanopticClasses.from_list(document)


def xml(data: bytes) -> None:
    with suppress(ValueError):
        xml_root(data.decode("utf-8", "replace"))


def geojson(data: bytes) -> None:
    _FILE.write_bytes(data)
    with suppress(NucleipanError):
        for outline in _read(_FILE)[1]:
            _outlines.check_effort([outline], _FILE, outline.box)


_OME = '<OME xmlns="x"><Image><Pixels SizeC="3" SizeZ="1" PhysicalSizeX="0.5" PhysicalSizeXUnit="mm"/></Image></OME>'
_SPEC = StoreSpec({"name": "a"}, {"name": "b"}, {}, DEFAULT_CLASSES, (64, 64), 0.5, 1.0, Box(0, 0, 64, 64), 64, 32)
_SQUARE = {"type": "Polygon", "coordinates": [[[1, 1], [9, 1], [9, 9], [1, 1]]]}
_REGION = {"geometry": _SQUARE, "properties": {"objectType": "annotation", "classification": {"name": "Region*"}}}
#: What is fuzzed, and valid inputs to begin with.
TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "description": (description, [b"Aperio Image\r\n1x1 |AppMag = 20|MPP = 0.4990", _OME.encode()]),
    "headers": (headers, [bytes.fromhex("ffe00004aabbffc2000b08004000400101110000ffda0008010100003f00ffd9")]),
    "checksums": (checksums, [_render({"zarr.json": FileSum(5, "0a" * 32), "0/c/0/0/0": FileSum(7, "0b" * 32)})]),
    "spec": (spec, [json.dumps(_SPEC.to_dict()).encode(), json.dumps(DEFAULT_CLASSES.to_list()).encode()]),
    "xml": (xml, [_OME.encode()]),
    "geojson": (geojson, [json.dumps({"features": [_REGION, _REGION]}).encode()]),
}


def main() -> None:
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"expected one of {', '.join(TARGETS)}, then options of libFuzzer")
    parse, seeds = TARGETS[name]
    corpus = Path(tempfile.mkdtemp())
    for k, seed in enumerate(seeds):
        (corpus / f"{k}").write_bytes(seed)
    atheris.Setup([*sys.argv, str(corpus)], parse)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
