"""The command line: parse, call one library function, print.

Heavy imports wait until a command needs them, so that ``--help`` answers at once and commands that only read a
store never load torch. Exit codes: 0 all done; 1 at least one input failed (the others are finished); 2 wrong usage.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nucleipan.errors import ConfigError, DataError, ModelError, NucleipanError, printable
from nucleipan.exports import FORMATS, OF_RESULTS
from nucleipan.tiles import DEFAULT_TILE

if TYPE_CHECKING:
    from nucleipan.geometry import Box
    from nucleipan.segment import SegmentOptions
    from nucleipan.store import PanopticStore

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Panoptic nuclei segmentation of whole-slide H&E images. Research use only, not for diagnosis.",
)


Original = Annotated[
    bool, typer.Option("--original", help="The nuclei as they were segmented, without what people corrected.")
]


def main() -> None:
    """Entry point of ``nucleipan``."""
    try:
        app()
    except NucleipanError as error:
        print(f"nucleipan: {printable(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, (ConfigError, ModelError)) else 1)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from nucleipan import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def segment(
    context: typer.Context,
    inputs: Annotated[
        list[Path], typer.Argument(metavar="SLIDE_OR_FOLDER...", help="Slides, images, or folders of them.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results, <stem>.ome.zarr each.")],
    model: Annotated[
        str,
        typer.Option(help="An embedded model (see `nucleipan models`), a weights file, or auto: by the pixel size."),
    ] = "auto",
    mpp: Annotated[
        float | None,
        typer.Option(help="Micrometres per pixel at full resolution, if the slide does not say (or says wrong)."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    backend: Annotated[
        str,
        typer.Option(
            help="torch, openvino (CPU), openvino-int8 (CPU, faster, nearly the same nuclei), or auto: openvino on a "
            "CPU if it is installed."
        ),
    ] = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Processes that share this machine's cores or GPUs.")] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Compute on the workers of this dask scheduler (an address or a file)."),
    ] = None,
    roi: Annotated[
        str | None, typer.Option(metavar="Y0,X0,Y1,X1", help="Segment this part only, in full-resolution pixels.")
    ] = None,
    tile: Annotated[
        int, typer.Option(help="Side of a tile in pixels of the model's grid; smaller needs less memory.")
    ] = DEFAULT_TILE,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results of another run.")] = False,
    with_image: Annotated[bool, typer.Option("--with-image", help="Put the whole image into the store.")] = False,
    flips: Annotated[
        bool, typer.Option("--flips", help="Average over mirror images: a little more accurate, four times slower.")
    ] = False,
    all_tissue: Annotated[
        bool,
        typer.Option(
            "--all-tissue", help="Segment out-of-focus, folded and pen-marked tissue too, which else is void."
        ),
    ] = False,
    keep_metadata: Annotated[
        bool,
        typer.Option("--keep-metadata", help="Put what the slide's file says into the store; it may name the patient."),
    ] = False,
    like: Annotated[
        Path | None, typer.Option(metavar="STORE", help="Run a slide again as this store was: the same bytes.")
    ] = None,
    export: Annotated[
        str | None, typer.Option(help=f"Also write these formats, comma separated: {', '.join(OF_RESULTS)}.")
    ] = None,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Also write a picture with the outlines, <stem>.overlay.png.")
    ] = False,
) -> None:
    """Segment slides into panoptic stores."""
    from nucleipan.batch import BatchOptions, find_slides, segment_batch
    from nucleipan.segment import SegmentOptions

    if mpp is not None and not 0.01 <= mpp <= 100:
        raise ConfigError(f"--mpp {mpp}: expected micrometres per pixel from 0.01 to 100, such as 0.25")
    options = SegmentOptions(
        mpp=mpp, device=device, backend=backend, roi=_parse_roi(roi), tile=tile, overwrite=overwrite,
        with_image=with_image, flips=flips, all_tissue=all_tissue, keep_metadata=keep_metadata,
    )  # fmt: skip
    if workers > 1 and scheduler is not None:
        raise ConfigError("--workers starts processes here, --scheduler uses those of a cluster; pass one of them")
    slides = find_slides(inputs)
    if like is not None:
        model, options = _options_like(like, slides, _asked(context, options, model))
    wanted = BatchOptions(out, model, options, _parse_exports(export), overlay, workers, scheduler)
    n_failed = segment_batch(slides, wanted)
    if n_failed:
        raise typer.Exit(1)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A slide, image or store.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a slide or a store is."""
    from nucleipan.describe import describe_path, print_description

    description = describe_path(path)
    if as_json:
        print(json.dumps(description, indent=1))
    else:
        print_description(description)


@app.command()
def models() -> None:
    """List the embedded models."""
    from nucleipan.network.weights import embedded_models, read_model_info

    for name, path in embedded_models().items():
        m = read_model_info(path)
        print(f"{name}  {m.mpp} um/px  {path.stat().st_size / 1e6:.1f} MB  weights: {m.licence}")
        print(f"    things: {', '.join(c.name for c in m.classes.things)}")
        print(f"    stuff:  {', '.join(c.name for c in m.classes.stuff)}")
        print(f"    trained on: {', '.join(m.trained_on)}")


@app.command()
def sample(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where to put the slide, e.g. sample.svs.")],
) -> None:
    """Get a real slide to try (CMU-1-Small-Region, 2 MB); offline, draw a synthetic one with known truth."""
    from nucleipan.sample import fetch_sample

    result = fetch_sample(out)
    print(printable(result.message))


@app.command()
def export(
    store: Annotated[Path, typer.Argument(help="A store, <stem>.ome.zarr.")],
    format: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")],
    out: Annotated[Path, typer.Option(help="File or folder to write.")],
    roi: Annotated[
        str | None, typer.Option(metavar="Y0,X0,Y1,X1", help="Write this part only, in full-resolution pixels.")
    ] = None,
    slide: Annotated[
        Path | None, typer.Option(help="The slide itself, for formats that show it or refer to it.")
    ] = None,
    original: Original = False,
) -> None:
    """Write a store in another format."""
    from nucleipan.exports import ExportOptions, export_store

    if format not in FORMATS:
        raise ConfigError(f"--format {format}: expected one of {', '.join(FORMATS)}")
    n = export_store(_open_store(store, original), format, out, ExportOptions(_parse_roi(roi), slide))
    print(printable(f"{out}: {n} {FORMATS[format].counts}"))


@app.command()
def report(
    store: Annotated[Path, typer.Argument(help="A store, <stem>.ome.zarr.")],
    out: Annotated[Path, typer.Option(help="Page to write, FILE.html.")],
    slide: Annotated[
        Path | None, typer.Option(help="The slide, for example fields; looked for beside the store by default.")
    ] = None,
    original: Original = False,
) -> None:
    """Write a page about a store for any browser: maps, tables, measurements and example fields."""
    from nucleipan.report import write_report
    from nucleipan.store import refuse_damaged

    opened = _open_store(store, original)
    refuse_damaged(store)
    write_report(opened, out, slide)
    print(printable(out))


@app.command()
def verify(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE...", help="Stores, <stem>.ome.zarr.")],
) -> None:
    """Check stores for damage: every file, pixel and row."""
    from nucleipan.verify.shown import verify_stores

    if verify_stores(stores):
        raise typer.Exit(1)


@app.command()
def evaluate(
    pred: Annotated[Path, typer.Option(help="Folder of stores or label images.")],
    truth: Annotated[Path, typer.Option(help="Folder with labels/ and, where known, classes/ or tissue/.")],
    as_json: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Score predictions: PQ, SQ, RQ, AJI, Dice, F1 and per-class figures."""
    from rich.console import Console

    from nucleipan.evaluate import evaluate_folders

    result = evaluate_folders(pred, truth)
    result.print_table(Console())
    if as_json is not None:
        try:
            as_json.write_text(json.dumps(result.to_json(), indent=1))
        except OSError as error:
            raise DataError(f"{as_json}: cannot be written ({error.strerror}); choose another file") from error


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file; see configs/.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a value, e.g. schedule.steps=100."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Train a model; a run that was interrupted continues."""
    from nucleipan.config import load_train_config
    from nucleipan.errors import ConfigError

    try:
        from nucleipan.training.fit import train_model
    except ModuleNotFoundError as error:
        raise ConfigError(f"training needs the package {error.name}; pip install 'nucleipan[train]'") from error
    path = train_model(load_train_config(config, set_ or ()), device)
    print(printable(f"weights: {path}"))


@app.command()
def view(
    slide: Annotated[Path, typer.Argument(help="A slide, image or store.")],
    store: Annotated[Path | None, typer.Argument(help="Its store; looked for beside the slide by default.")] = None,
) -> None:
    """Open a slide, its nuclei and tissue in napari."""
    try:
        from napari_nucleipan._view import view as view_in_napari
    except ImportError as error:
        raise NucleipanError(
            f"viewing needs napari and a Qt binding ({error}); pip install 'nucleipan[napari]' 'PySide6<6.12'"
        ) from error
    view_in_napari(slide, store)


def _asked(context: typer.Context, options: SegmentOptions, model: str) -> dict[str, Any]:
    """What the command line itself says, by the names of ``SegmentOptions`` and ``model``."""
    values = vars(options) | {"model": model}
    given = {name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")}
    return {name: value for name, value in values.items() if name in given}


def _options_like(store: Path, slides: list[Path], asked: dict[str, Any]) -> tuple[str, SegmentOptions]:
    """Model and options of a store, to run its slide again."""
    from nucleipan.again import run_like
    from nucleipan.store import PanopticStore

    if len(slides) != 1:
        raise ConfigError(f"--like runs the slide of a store again; found {len(slides)} slides; pass that one alone")
    like = run_like(PanopticStore.open(store), slides[0], asked)
    for note in like.notes:
        print(f"nucleipan: {slides[0]}: {note}", file=sys.stderr)
    return like.model, like.options


def _open_store(path: Path, is_original: bool) -> PanopticStore:
    from nucleipan.edits import open_corrected
    from nucleipan.store import PanopticStore

    return PanopticStore.open(path) if is_original else open_corrected(path)


def _parse_roi(text: str | None) -> Box | None:
    from nucleipan.geometry import Box

    if text is None:
        return None
    try:
        y0, x0, y1, x1 = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--roi {text}: expected four whole numbers Y0,X0,Y1,X1 in full-resolution pixels") from None
    return Box(y0, x0, y1, x1)


def _parse_exports(text: str | None) -> tuple[str, ...]:
    formats = tuple(f.strip() for f in (text or "").split(",") if f.strip())
    unknown = [f for f in formats if f not in OF_RESULTS]
    if unknown:
        raise ConfigError(f"unknown export format {', '.join(unknown)}; known: {', '.join(OF_RESULTS)}")
    return formats
