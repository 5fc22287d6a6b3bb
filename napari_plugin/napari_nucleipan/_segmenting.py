"""One run of the segmentation, away from the window: what is asked for, what is told meanwhile, how it ends.

No Qt and, until a run begins, no torch: importing that takes seconds, which only the worker's thread may spend. A run
is stopped by raising from the callback that ``segment_slide`` calls after every tile, so that it leaves what a killed
run leaves: the finished tiles, from which the next run goes on.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from napari_nucleipan._live import LiveNuclei
from nucleipan.errors import NucleipanError
from nucleipan.geometry import Box
from nucleipan.tiles import DEFAULT_TILE

if TYPE_CHECKING:
    from nucleipan.network.weights import Model
    from nucleipan.pipeline import TileJob
    from nucleipan.segment import SegmentResult
    from nucleipan.tiles import Tile

AUTO_MODEL = "auto"
DEVICES = ("auto", "cpu", "cuda")
BACKENDS = ("auto", "torch", "openvino", "openvino-int8")

# How messages for the command line read where there are fields instead of options.
_FIELDS = (
    ("pass the micrometres per pixel", "enter the micrometres per pixel"),
    ("with --mpp", "in the field Pixel size"),
    ("--mpp", "the pixel size"),
    ("pass --overwrite to start anew", "tick the box below to start anew"),
    ("with --overwrite", "with the box below ticked"),
    ("another --out", "another output folder"),
    ("a smaller --tile", "smaller tiles"),
    ("(--tile)", "(Tile)"),
    ("; see `nucleipan models`", ""),
    ("use --backend openvino", "use the backend openvino"),
    ("run the same command again", "press Segment again"),
)
_OTHER_EXTENT = re.compile(r"extent: \[[^]]*\] here, \[[^]]*\] there")


@dataclass(frozen=True)
class Request:
    """What to segment, and how; fields as those of ``nucleipan.segment.SegmentOptions``.

    Attributes:
        out: folder in which the store is written.
        model: name of an embedded model, path of a weights file, or ``auto``: by the pixel size.
    """

    slide: Path
    out: Path
    model: str = AUTO_MODEL
    mpp: float | None = None
    device: str = "auto"
    backend: str = "auto"
    tile: int = DEFAULT_TILE
    roi: Box | None = None
    overwrite: bool = False


class Report(Protocol):
    """Whom a run tells how it goes on. Called in the thread of the run."""

    def progress(self, done: int, total: int, step: str) -> None: ...

    def begun(self, live: LiveNuclei) -> None: ...

    def is_stopped(self) -> bool: ...


@dataclass(frozen=True)
class Stopped:
    """A run that was stopped; ``n_done`` of ``n_tiles`` are kept, or of none if it had not got so far."""

    n_done: int
    n_tiles: int


@dataclass(frozen=True)
class Refused:
    """A run that cannot be, for a reason that the user can do something about."""

    error: NucleipanError


class _StopRunError(Exception):
    pass


def segment(request: Request, report: Report) -> SegmentResult | Stopped | Refused:
    """Segment a slide, or the part that is asked for, into ``<out>/<stem>.ome.zarr``."""
    told = [0, 0]

    def progress(done: int, total: int, step: str) -> None:
        if step == "segmenting":
            told[:] = done, total
        report.progress(done, total, step)
        is_joined = step == "stitching" and done == total  # nothing is left to do but a renaming
        if report.is_stopped() and not is_joined:
            raise _StopRunError

    def compute(job: TileJob, tiles: Sequence[Tile]) -> Iterator[Tile]:
        missing = set(tiles)
        live = LiveNuclei(
            job.folder, job.context, job.model.info.classes, [t for t in job.context.grid if t not in missing]
        )
        report.begun(live)
        for tile in compute_tiles(job, tiles, are_last=True):
            live.add(tile)
            yield tile

    try:
        progress(0, 0, "loading the model")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch and monai say to their own developers
            from nucleipan.pipeline import compute_tiles
            from nucleipan.segment import SegmentOptions, segment_slide
        model = _load(*_model_of(request))
        progress(0, 0, "looking for tissue")
        options = SegmentOptions(
            request.mpp, request.device, request.backend, request.roi, request.tile, request.overwrite
        )
        return segment_slide(request.slide, request.out, model, options, executor=compute, progress=progress)
    except _StopRunError:
        return Stopped(*told)
    except NucleipanError as error:
        return Refused(error.with_traceback(None))  # which holds on to the slide and to threads


def embedded_models() -> list[str]:
    """Names of the models that come with nucleipan, without loading what reads them."""
    files = (resources.files("nucleipan") / "weights").iterdir()
    return sorted(f.name.removesuffix(".safetensors") for f in files if f.name.endswith(".safetensors"))


def in_window(message: object) -> str:
    """An error's message, or a note, where fields stand for options."""
    text = str(message)
    for option, words in _FIELDS:
        text = text.replace(option, words)
    return _OTHER_EXTENT.sub("it is of another area", text)


def can_be_replaced(error: Exception) -> bool:
    """Whether replacing what is in the output folder would help."""
    return "--overwrite" in str(error)


class Pace:
    """How fast tiles come, seen from the first one: until that, the network is being made ready."""

    def __init__(self) -> None:
        self._n_found: int | None = None
        self._first: tuple[float, int] | None = None

    def describe(self, done: int, total: int, now: float | None = None) -> str:
        """As ``3.2 tiles/s, 12 s left``; empty as long as nothing is known."""
        now = time.monotonic() if now is None else now
        if self._n_found is None:
            self._n_found = done
        if self._first is None:
            if done > self._n_found:
                self._first = now, done
            return ""
        seconds, n = now - self._first[0], done - self._first[1]
        if n <= 0 or seconds <= 0:
            return ""
        rate = n / seconds
        pace = f"{rate:.1f} tiles/s" if rate >= 1 else f"{1 / rate:.1f} s per tile"
        return f"{pace}, {_duration((total - done) / rate)} left"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _model_of(request: Request) -> tuple[str, int]:
    """The model's name or path, and what tells one version of a file from the next."""
    from nucleipan.network.weights import DEFAULT_MODEL, model_for
    from nucleipan.slide import open_slide

    if request.model != AUTO_MODEL:
        path = Path(request.model)
        return request.model, path.stat().st_mtime_ns if path.is_file() else 0
    mpp = request.mpp
    if mpp is None:
        with open_slide(request.slide) as slide:
            mpp = slide.mpp
    return DEFAULT_MODEL if mpp is None else model_for(mpp), 0  # without a pixel size the slide is refused


@lru_cache(maxsize=1)
def _load(name_or_path: str, version: int) -> Model:
    """The model used last, kept: its network stays ready for the next field."""
    from nucleipan.network.weights import load_model

    return load_model(name_or_path)
