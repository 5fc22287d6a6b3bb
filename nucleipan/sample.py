"""A slide to try the program on: OpenSlide's public test slide, or a synthetic one where there is no network.

What arrives is checked against the known checksum and put in place in one step, so an interrupted or tampered
download never looks like a slide. The fallback is not silent: the result says what was made and why.
"""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nucleipan.errors import DataError
from nucleipan.files import whole_file
from nucleipan.synthetic import SyntheticScene, write_slide, write_truth

SAMPLE_URL = "https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio/CMU-1-Small-Region.svs"
SAMPLE_SHA256 = "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"
SAMPLE_BYTES = 1_938_955
_TIMEOUT_S = 20.0
_SYNTHETIC_SHAPE = (2048, 2560)


class _Response(Protocol):
    def read(self, n: int, /) -> bytes: ...


Opener = Callable[..., AbstractContextManager[_Response]]
"""Called like ``urllib.request.urlopen(url, timeout=seconds)``."""


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What ``fetch_sample`` left behind.

    Attributes:
        path: the slide.
        is_synthetic: whether it was generated because the download failed.
        truth: folder with the known truth of a synthetic slide (``labels``, ``classes``, ``tissue``), else None.
        message: one line for the user: what the slide is, and why if it is synthetic.
    """

    path: Path
    is_synthetic: bool
    truth: Path | None
    message: str


def fetch_sample(path: str | Path, *, opener: Opener = urllib.request.urlopen) -> SampleResult:
    """Put a small slide at ``path``, replacing what is there.

    Raises:
        DataError: the folder does not exist or cannot be written to.
    """
    path = Path(path)
    if not path.parent.is_dir() or path.is_dir():
        raise DataError(f"{path}: expected the name of a file to write, in a folder that exists")
    try:
        data = _download(opener)
    except (OSError, ValueError) as error:  # no network, HTTP errors, timeouts; a wrong checksum
        return _synthetic(path, reason=str(error) or type(error).__name__)
    with whole_file(path) as temporary:
        temporary.write_bytes(data)
    return SampleResult(path, False, None, f"{path}: Aperio test slide CMU-1-Small-Region from {SAMPLE_URL}")


def _download(opener: Opener) -> bytes:
    """The slide's bytes; ``ValueError`` where they are not the ones expected."""
    with opener(SAMPLE_URL, timeout=_TIMEOUT_S) as response:
        parts, n_bytes = [], 0
        while n_bytes <= SAMPLE_BYTES and (part := response.read(1 << 16)):
            parts.append(part)
            n_bytes += len(part)
    data = b"".join(parts)
    if hashlib.sha256(data).hexdigest() != SAMPLE_SHA256:
        raise ValueError(f"what {SAMPLE_URL} sent is not the expected file (checksum differs)")
    return data


def _synthetic(path: Path, reason: str) -> SampleResult:
    scene = SyntheticScene(_SYNTHETIC_SHAPE, seed=3)
    truth = path.with_name(f"{path.stem}_truth")
    with whole_file(path) as temporary:
        write_slide(scene, temporary)
    write_truth(scene, truth, stem=path.stem)
    message = f"{path}: synthetic slide, its truth in {truth}; the real sample could not be downloaded ({reason})"
    return SampleResult(path, True, truth, message)
