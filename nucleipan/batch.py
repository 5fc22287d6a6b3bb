"""Many slides in one run: find them, segment each, and never let one stop the others."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nucleipan.edits import corrected
from nucleipan.errors import ConfigError, NucleipanError, printable
from nucleipan.exports import FORMATS, ExportOptions, export_store
from nucleipan.network.weights import DEFAULT_MODEL, Model, load_model, model_for
from nucleipan.overlay import overlay_of_store, save_picture
from nucleipan.pipeline import choose_backend
from nucleipan.progress import Progress, terminal_bar
from nucleipan.segment import Executor, SegmentOptions, SegmentResult, check_tile, segment_slide, store_path
from nucleipan.slide import at_mpp, is_slide, open_slide
from nucleipan.store import PanopticStore, is_own_store
from nucleipan.summary import BatchSummary

AUTO_MODEL = "auto"
_MAX_OVERLAY_PIXELS = 100_000_000
_OVERLAY_SUFFIX = ".overlay.png"
_SLIDE_SUFFIXES = tuple(".svs .tif .tiff .ndpi .mrxs .scn .bif .vms .svslide .dcm .png .jpg .jpeg".split())  # noqa: SIM905


@dataclass(frozen=True)
class BatchOptions:
    """What to do with every slide.

    Attributes:
        out: folder for stores and exports.
        model: name of an embedded model, a weights file, or ``auto``: for each slide the embedded model that fits its
            pixel size.
        exports: formats to write beside each store, e.g. ``("geojson",)``.
        overlay: whether to write a picture with the outlines beside each store.
        workers: processes of this machine that compute tiles; 1 means this one.
        scheduler: address of a dask scheduler whose workers compute the tiles instead.
    """

    out: Path
    model: str
    options: SegmentOptions
    exports: tuple[str, ...] = ()
    overlay: bool = False
    workers: int = 1
    scheduler: str | None = None


def find_slides(inputs: Sequence[Path]) -> list[Path]:
    """Slides named directly, and those that lie in named folders, by content.

    A file in a folder that is called like a slide but is none is kept too: it fails later, instead of being passed
    over in silence. A folder that is itself a slide (OME-Zarr, DICOM) counts as one.

    Raises:
        ConfigError: a folder holds no slide, or two slides would write the same store.
    """
    found: list[Path] = []
    for path in inputs:
        if is_own_store(path):
            raise ConfigError(f"{path}: is a result of nucleipan, not a slide; pass the slide it was made from")
        if path.is_dir() and not is_slide(path):
            inside = sorted(p for p in path.iterdir() if _is_wanted(p))
            if not inside:
                raise ConfigError(f"{path}: holds no slide or image; pass a slide or a folder of slides")
            found += inside
        else:
            found.append(path)
    by_store: dict[Path, Path] = {}
    for path in found:
        target = store_path(path, Path())
        if target in by_store and by_store[target].absolute() != path.absolute():
            raise ConfigError(
                f"{by_store[target]} and {path} would both be written to {target}; run them with different --out"
            )
        by_store[target] = path
    return list(by_store.values())


def _is_wanted(path: Path) -> bool:
    """Whether something in a folder is to be segmented; our own results are not, so that a folder can hold both."""
    if path.name.startswith(".") or path.name.endswith((_OVERLAY_SUFFIX, ".partial", ".replaced")):
        return False
    if path.is_dir():
        return is_slide(path) and not is_own_store(path)
    return is_slide(path) or path.suffix.lower() in _SLIDE_SUFFIXES


def segment_batch(slides: Sequence[Path], batch: BatchOptions) -> int:
    """Segment every slide, the largest first; one line each on stdout, one per failure on stderr.

    Of several slides, ``summary.csv`` in the output folder tells how each fared. Returns how many failed.

    Raises:
        ModelError: the model cannot be loaded (nothing is done then).
        ConfigError: the scheduler does not answer, or the extra for it is not installed.
    """
    check_tile(batch.options.tile)
    choose_backend(batch.options.backend, batch.options.device)
    load = cache(load_model)
    if batch.model != AUTO_MODEL:
        load(batch.model)
    summary = BatchSummary()
    with _executor(batch) as executor:
        for path in sorted(slides, key=_n_bytes, reverse=True):
            try:
                model = load(_model_name(path, batch))
                with terminal_bar(printable(path.name)) as bar:
                    progress = bar or _plain_lines(printable(path.name))
                    result = segment_slide(path, batch.out, model, batch.options, executor=executor, progress=progress)
                _write_extras(path, result.store, batch, model)
            except Exception as error:  # whatever it is, it is counted and said, and the other slides go on
                line = _failure(path, error)
                print(f"nucleipan: {printable(line)}", file=sys.stderr)
                summary.add_failure(path, line)
            else:
                print(printable(_summary_line(path, result)), flush=True)
                for note in result.notes:
                    print(printable(f"nucleipan: {path}: {note}"), file=sys.stderr)
                summary.add(path, result)
            if len(slides) > 1 and batch.out.is_dir():
                summary.write(batch.out / "summary.csv")
    return summary.n_failed


@contextmanager
def _executor(batch: BatchOptions) -> Iterator[Executor | None]:
    """Where tiles are computed; None is here."""
    if batch.workers == 1 and batch.scheduler is None:
        yield None
        return
    try:
        from nucleipan.cluster import connected_cluster, local_cluster
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--workers and --scheduler need the package {error.name}; pip install 'nucleipan[cluster]'"
        ) from error
    with connected_cluster(batch.scheduler) if batch.scheduler else local_cluster(batch.workers) as executor:
        yield executor


def _n_bytes(path: Path) -> int:
    """Size on disk, which tells which slide takes longest well enough; 0 for what is missing."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file())


def _model_name(path: Path, batch: BatchOptions) -> str:
    if batch.model != AUTO_MODEL:
        return batch.model
    with open_slide(path) as slide:
        mpp = batch.options.mpp or slide.mpp
    return DEFAULT_MODEL if mpp is None else model_for(mpp)  # without a pixel size the slide will be refused


def _write_extras(path: Path, store: PanopticStore, batch: BatchOptions, model: Model) -> None:
    stem = store.path.name.removesuffix(".ome.zarr")
    store = corrected(store)  # one that was finished already may have been
    for name in batch.exports:
        export_store(store, name, batch.out / f"{stem}{FORMATS[name].suffix}", ExportOptions(slide=path))
    if batch.overlay:
        n_pixels = store.shape[0] * store.shape[1]
        if n_pixels > _MAX_OVERLAY_PIXELS:
            raise ConfigError(
                f"{path}: an overlay of {n_pixels / 1e6:.0f} Mpx is too large for a picture; use a viewer"
            )
        with open_slide(path) as slide:
            picture = overlay_of_store(store, at_mpp(slide, model.info.mpp, batch.options.mpp))
        save_picture(picture, batch.out / f"{stem}{_OVERLAY_SUFFIX}")


def _summary_line(path: Path, result: SegmentResult) -> str:
    store = result.store
    area_mm2 = store.spec.extent.area * store.mpp**2 / 1e6
    line = f"{path}: {store.n_nuclei} nuclei on {area_mm2:.2f} mm2 -> {store.path}"
    if result.summary is None:
        return f"{line} (was finished already)"
    cut = f", {result.summary.n_cut} reach beyond their tile" if result.summary.n_cut else ""
    return f"{line} ({result.seconds:.1f} s, {result.n_computed} of {result.n_tiles} tiles computed{cut})"


def _failure(path: Path, error: Exception) -> str:
    """One line: our own errors say all there is to say; of others the kind, the first line and what may help."""
    if isinstance(error, NucleipanError):
        return str(error) if str(error).startswith(str(path)) else f"{path}: {error}"
    line = f"{path}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return f"{line}; a smaller --tile needs less memory" if "memory" in line.lower() else line


def _plain_lines(name: str) -> Progress:
    """About ten lines a slide, whatever its size, on stderr."""
    shown = -1

    def update(done: int, total: int, step: str) -> None:
        nonlocal shown
        tenth = 10 * done // max(1, total)
        if step == "segmenting" and tenth != shown:
            shown = tenth
            print(f"{name}: {done}/{total} tiles", file=sys.stderr, flush=True)
        elif step == "stitching" and done == 0:
            print(f"{name}: stitching", file=sys.stderr, flush=True)

    return update
