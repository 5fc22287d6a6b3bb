"""The segment widget, driven as a user drives it: fields, buttons, and what is seen meanwhile and afterwards.

The network is an oracle that reads the truth from the pixels' colours (red: class, green and blue: offset to the
nucleus's centre), so that what is found is known exactly. Where a test wants to look at a run that is going on, the
oracle waits for it.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari")

import pyarrow.parquet as pq
import tifffile
import torch
from napari.layers import Image, Labels
from napari.utils.notifications import notification_manager
from napari_nucleipan import _segmenting
from napari_nucleipan._field import drawn_box, use_pixel_size, visible_box
from napari_nucleipan._layers import open_slide_in
from napari_nucleipan._live import LiveNuclei
from napari_nucleipan._nuclei import nuclei_view
from napari_nucleipan._segment import LIVE_NAME, SegmentWidget
from napari_nucleipan._segment_form import DRAWN, VISIBLE, WHOLE
from napari_nucleipan._segmenting import BACKENDS, Pace, embedded_models
from stitch_oracle import Truth, cut, oracle_tile, random_truth, truth_in

import nucleipan.network.weights
import nucleipan.segment
from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.errors import RegionError
from nucleipan.geometry import Box
from nucleipan.network.build import build_network
from nucleipan.network.fusion import DecodeConfig
from nucleipan.network.model import HeadOutputs, PanopticNetConfig
from nucleipan.network.voting import VotingConfig
from nucleipan.network.weights import Model, ModelInfo, load_model
from nucleipan.pipeline import BACKENDS as ALL_BACKENDS
from nucleipan.segment import SegmentOptions, segment_slide, store_path
from nucleipan.stitch import StitchContext, tile_path, tile_record, write_record
from nucleipan.store import PanopticStore
from nucleipan.synthetic import SyntheticScene, write_slide
from nucleipan.tiles import Tile, TileGrid

SHAPE = (700, 1100)
MPP = 0.5
TILE = 256
STROMA = DEFAULT_CLASSES.by_name("stroma").id
RED = 200  # of class 0: bright, as in tissue; else it would be pen


# Data


def truth(shape: tuple[int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Discs on a jittered grid: int ids in raster order of the grid, uint8 pixels [h, w, 3] that tell of them."""
    rng = np.random.default_rng(3)
    ids, rgb = np.zeros(shape, np.int32), np.full((*shape, 3), 128, np.uint8)
    rgb[..., 0] = RED + STROMA
    grid_y, grid_x = np.mgrid[: shape[0], : shape[1]]
    n = 0
    for y in range(16, shape[0] - 16, 26):
        for x in range(16, shape[1] - 16, 26):
            n += 1
            cy, cx = y + int(rng.integers(-4, 5)), x + int(rng.integers(-4, 5))
            box = np.s_[cy - 8 : cy + 9, cx - 8 : cx + 9]
            inside = (grid_y[box] - cy) ** 2 + (grid_x[box] - cx) ** 2 <= rng.integers(16, 60)
            ids[box][inside] = n
            rgb[box][inside, 0] = RED + 1 + n % 5
            rgb[box][inside, 1] = (128 + cy - grid_y[box])[inside]
            rgb[box][inside, 2] = (128 + cx - grid_x[box])[inside]
    return ids, rgb


def oracle(image: torch.Tensor) -> HeadOutputs:
    """What ``truth`` wrote into the pixels, uint8 or float in [0, 1]."""
    colours = image.float() if image.dtype == torch.uint8 else (image * 255).round()
    classes = colours[:, :1] - RED
    semantic = torch.nn.functional.one_hot(classes[:, 0].long() - 1, len(DEFAULT_CLASSES)).permute(0, 3, 1, 2)
    is_nucleus = classes <= len(DEFAULT_CLASSES.things)
    semantic = semantic * 20.0 - 10
    semantic[:, STROMA - 1] = torch.where(is_nucleus[:, 0], 0.0, semantic[:, STROMA - 1])
    return HeadOutputs(semantic, torch.where(is_nucleus, 10.0, -10.0), colours[:, 1:] - 128)


def oracle_model(name_or_path: str | Path = "oracle") -> Model:
    decode = DecodeConfig(voting=VotingConfig(peak_radius=4, reach=4, min_votes=1, min_area=1), min_stuff_um2=0)
    config = PanopticNetConfig(instance_channels=(8, 8, 8, 8), semantic_channels=8)
    info = ModelInfo(str(name_or_path), MPP, 32, DEFAULT_CLASSES, config, decode, "none", (), sha256=str(name_or_path))
    return Model(info, build_network(config, DEFAULT_CLASSES))


def write_tiff(path: Path, mpp: float | None = MPP, shape: tuple[int, int] = SHAPE) -> Path:
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp,) * 2, "resolutionunit": 3}
    tifffile.imwrite(path, truth(shape)[1], tile=(256, 256), photometric="rgb", compression="deflate", **resolution)
    return path


def contents(store: Path) -> dict[str, bytes]:
    """Every chunk of the arrays, and the table."""
    found = {p.relative_to(store).as_posix(): p.read_bytes() for p in store.rglob("c/**/*") if p.is_file()}
    return found | {"table": repr(pq.read_table(store / "nuclei.parquet").to_pydict()).encode()}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiff(tmp_path_factory.mktemp("slide") / "slide.tif")


@pytest.fixture(scope="module")
def reference(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    """The whole slide by ``segment_slide`` itself, never interrupted."""
    options = SegmentOptions(tile=TILE)
    return segment_slide(slide, tmp_path_factory.mktemp("out"), oracle_model(), options, network=oracle).store


class Gate:
    """An oracle that computes ``n`` tiles and then waits until it is opened."""

    def __init__(self, n: int) -> None:
        self.left, self.opened = n, threading.Event()

    def __call__(self, image: torch.Tensor) -> HeadOutputs:
        self.left -= 1
        if self.left < 0:
            assert self.opened.wait(60)
        return oracle(image)


@pytest.fixture
def use_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[torch.Tensor], HeadOutputs]], None]]:
    """Segment with an oracle model, and the given network in the place of the model's."""

    def use(network: Callable[[torch.Tensor], HeadOutputs]) -> None:
        monkeypatch.setattr(nucleipan.segment, "segment_slide", partial(segment_slide, network=network))
        monkeypatch.setattr(nucleipan.network.weights, "load_model", oracle_model)
        _segmenting._load.cache_clear()

    use(oracle)
    yield use
    _segmenting._load.cache_clear()  # the next test may want the model itself


@pytest.fixture
def viewer(make_napari_viewer):
    return make_napari_viewer()


@pytest.fixture
def widget(viewer, slide, tmp_path, use_network, qtbot):
    """On the slide, with a small tile and a folder of its own."""
    open_slide_in(viewer, slide)
    made = SegmentWidget(viewer)
    qtbot.addWidget(made)
    made.form.out.setText(str(tmp_path / "out"))
    made.form.tile.setValue(TILE)
    made.form.model.setCurrentText("nucleipan-fast")
    notification_manager.records.clear()
    return made


def run(widget: SegmentWidget, qtbot, area: str | None = None) -> None:
    if area is not None:
        widget.form.area.setCurrentText(area)
    widget.start_button.click()
    qtbot.waitUntil(lambda: not widget.is_running, timeout=60_000)


def names(viewer) -> list[str]:
    return [layer.name for layer in viewer.layers]


def said(widget: SegmentWidget) -> str:
    return widget.message.text().replace("\u200b", "")


def told() -> list[str]:
    """Errors that napari showed."""
    return [str(n.message) for n in notification_manager.records if n.severity.value == "error"]


def show_box(viewer, layer, box: Box) -> None:
    """Move the camera so that the canvas shows ``box``, of the canvas's proportions, in pixels of the layer."""
    scale = float(layer.scale[-1])
    viewer.scene.camera.center = (0, (box.y0 + box.y1) / 2 * scale, (box.x0 + box.x1) / 2 * scale)
    viewer.scene.camera.zoom = viewer.canvas.size[0] / (box.height * scale)


def tile_files(folder: Path, known: Truth, context: StitchContext) -> list[Tile]:
    """All tiles of a grid, their files written."""
    tiles = list(context.grid)
    for tile in tiles:
        write_record(folder, tile_record(oracle_tile(known, tile), context, cut(known.image, tile.outer)))
    return tiles


def partition_of(ids: np.ndarray) -> set[bytes]:
    """The instances of a label image as a set of pixel sets."""
    flat = ids.ravel()
    order = np.argsort(flat, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(flat[order])) + 1)
    return {g.tobytes() for g in groups if flat[g[0]]}


# Parts


def test_live_nuclei_are_the_truth(tmp_path):
    shape = (331, 297)
    known = random_truth(shape, 120, seed=2)
    context = StitchContext(TileGrid(shape, Box.of_shape(shape), 96, 32, 1), 2.0, seam_px=4, mpp=0.5)
    tiles = list(context.grid)
    for tile in tiles:
        write_record(
            tmp_path,
            tile_record(oracle_tile(known, tile), context, known.image[tile.outer.slices(Box.of_shape(shape))]),
        )
    live = LiveNuclei(tmp_path, context, DEFAULT_CLASSES, tiles[:3])
    for tile in tiles[3:]:
        live.add(tile)
    found = live.levels[0][:]
    ids, classes, _ = truth_in(known, Box.of_shape(shape))
    assert partition_of(found) == partition_of(ids)
    n = len(DEFAULT_CLASSES.things)
    np.testing.assert_array_equal(((found - 1) % n + 1)[found > 0], classes[found > 0])
    for step in (2, 4, 8, 16, 32):
        coarse = Box(0, 0, -(-shape[0] // step), -(-shape[1] // step))
        np.testing.assert_array_equal(live.paint(coarse, step), found[::step, ::step])
    part = Box(37, 55, 210, 220)
    np.testing.assert_array_equal(live.levels[0][37:210, 55:220], found[part.slices(Box.of_shape(shape))])


def test_live_nuclei_grow_and_end(tmp_path):
    shape = (1500, 1200)
    known = random_truth(shape, 60, seed=4)
    context = StitchContext(TileGrid(shape, Box.of_shape(shape), 512, 64), mpp=0.5)
    tiles = list(context.grid)
    for tile in tiles:
        write_record(
            tmp_path,
            tile_record(oracle_tile(known, tile), context, known.image[tile.outer.slices(Box.of_shape(shape))]),
        )
    live = LiveNuclei(tmp_path, context, DEFAULT_CLASSES)
    kept = np.asarray(live.levels[-1])
    assert not kept.any()
    for i, tile in enumerate(tiles, 1):
        live.add(tile)
        live.update()
        assert live.n_tiles == i
    step = 2 ** (len(live.levels) - 1)
    np.testing.assert_array_equal(kept, live.levels[0][::step, ::step])
    assert kept.any()
    for tile in tiles:
        tile_path(tmp_path, tile).unlink()
    fresh = LiveNuclei(tmp_path, context, DEFAULT_CLASSES, tiles)
    assert not fresh.levels[0][:].any()


def test_the_live_cache_forgets(tmp_path, monkeypatch):
    """With room for hardly a plane everything is read again and again, and is the same."""
    shape = (200, 180)
    known = random_truth(shape, 50, seed=6)
    context = StitchContext(TileGrid(shape, Box.of_shape(shape), 64, 32, 1), mpp=0.5)
    tiles = list(context.grid)
    for tile in tiles:
        write_record(
            tmp_path,
            tile_record(oracle_tile(known, tile), context, known.image[tile.outer.slices(Box.of_shape(shape))]),
        )
    roomy = LiveNuclei(tmp_path, context, DEFAULT_CLASSES, tiles)
    monkeypatch.setattr("napari_nucleipan._live._KEPT_MB", 0)
    narrow = LiveNuclei(tmp_path, context, DEFAULT_CLASSES, tiles)
    whole = Box.of_shape(shape)
    for _ in range(2):
        np.testing.assert_array_equal(narrow.paint(whole, 1), roomy.paint(whole, 1))


def test_what_is_offered_is_what_there_is():
    assert embedded_models() == list(nucleipan.network.weights.embedded_models())
    assert BACKENDS == ALL_BACKENDS


def test_the_widget_is_there_without_torch():
    code = "import napari_nucleipan._segment, sys; assert not {'torch', 'monai'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_pace():
    pace = Pace()
    assert pace.describe(5, 100, 0.0) == ""  # 5 were there from an earlier run
    assert pace.describe(6, 100, 60.0) == ""  # the first one includes what it takes to get ready
    assert pace.describe(16, 100, 65.0) == "2.0 tiles/s, 42 s left"
    assert pace.describe(17, 1000, 82.0) == "2.0 s per tile, 32 min 46 s left"
    assert pace.describe(17, 10000, 82.0) == "2.0 s per tile, 5 h 32 min left"


# What to segment


def test_visible_area_in_pixels(viewer, slide):
    layer = open_slide_in(viewer, slide)[0]
    height, width = viewer.canvas.size
    box = Box(100, 200, 300, 200 + round(200 * width / height))
    show_box(viewer, layer, box)
    found = visible_box(viewer, layer)
    assert np.abs(np.subtract((found.y0, found.x0, found.y1, found.x1), (box.y0, box.x0, box.y1, box.x1))).max() <= 1
    show_box(viewer, layer, Box(-5000, -5000, 20000, 20000))
    assert visible_box(viewer, layer) == Box(0, 0, *SHAPE)
    show_box(viewer, layer, Box(5000, 5000, 5100, 5100))
    with pytest.raises(RegionError, match="not in view"):
        visible_box(viewer, layer)


def test_visible_area_where_the_world_has_finer_units(viewer, slide):
    layer = open_slide_in(viewer, slide)[0]
    viewer.add_image(np.zeros((4, 4)), scale=(10, 10), units=("nm", "nm"), name="fine")
    height, width = viewer.canvas.size
    box = Box(100, 200, 300, 200 + round(200 * width / height))
    show_box(viewer, layer, box)
    viewer.scene.camera.center = tuple(1000 * c for c in viewer.scene.camera.center)
    viewer.scene.camera.zoom /= 1000
    found = visible_box(viewer, layer)
    assert np.abs(np.subtract((found.y0, found.x0, found.y1, found.x1), (box.y0, box.x0, box.y1, box.x1))).max() <= 1


def test_visible_area_needs_the_plain_view(viewer, slide):
    layer = open_slide_in(viewer, slide)[0]
    viewer.dims.order = viewer.dims.order[::-1]
    with pytest.raises(RegionError, match="2D view"):
        visible_box(viewer, layer)


def test_drawn_region_in_pixels(viewer, slide):
    layer = open_slide_in(viewer, slide)[0]
    with pytest.raises(RegionError, match="no region is drawn"):
        drawn_box(viewer, layer)
    # On a layer of other scale and unit: the rectangle of pixels 40..200, 60..300, in millimetres.
    mm = MPP / 1000
    corners = np.array([(40, 60), (40, 300), (200, 300), (200, 60)]) * mm
    shapes = viewer.add_shapes([corners], shape_type="rectangle", units=("mm", "mm"))
    assert drawn_box(viewer, layer) == Box(40, 60, 200, 300)
    shapes.add([corners + 100 * mm], shape_type="rectangle")
    shapes.selected_data = set()
    assert drawn_box(viewer, layer) == Box(140, 160, 300, 400), "the last one counts"
    shapes.selected_data = {0}
    assert drawn_box(viewer, layer) == Box(40, 60, 200, 300), "the selected one counts"
    shapes.data = [corners - 1]
    with pytest.raises(RegionError, match="outside the slide"):
        drawn_box(viewer, layer)


def test_a_plain_world_becomes_one_of_micrometres(viewer, slide):
    """Whatever is where: what the camera shows, and what is drawn, stays on the same pixels."""
    image = viewer.add_image(truth()[1], rgb=True, translate=(7, 3))
    other = viewer.add_points([(57.5, 83.5)])
    before = image.world_to_data(other.data_to_world((57.5, 83.5)))
    viewer.scene.camera.center, viewer.scene.camera.zoom = (0, 200, 300), 4.0
    seen = visible_box(viewer, image)
    use_pixel_size(viewer, image, 0.25)
    assert visible_box(viewer, image) == seen
    np.testing.assert_allclose(image.world_to_data(other.data_to_world((57.5, 83.5))), before)
    np.testing.assert_allclose(image.data_to_world((-0.5, -0.5)), 0, atol=1e-9)
    assert [str(u) for layer in viewer.layers for u in layer.units] == ["micrometer"] * 4
    np.testing.assert_allclose(image.scale, 0.25)
    places = [(tuple(layer.scale), tuple(layer.translate)) for layer in viewer.layers]
    use_pixel_size(viewer, image, 0.25)
    assert places == [(tuple(layer.scale), tuple(layer.translate)) for layer in viewer.layers]


# Runs


def test_whole_slide(widget, viewer, slide, tmp_path, reference, use_network, qtbot):
    gate = Gate(5)
    use_network(gate)
    assert widget.form.slide.currentText() == slide.name
    assert widget.form.mpp.placeholderText() == "0.5 (from the slide)"
    assert widget.form.out.placeholderText() == str(slide.parent)
    widget.form.area.setCurrentText(WHOLE)
    widget.start_button.click()
    assert widget.is_running
    assert not widget.form.isEnabled()
    qtbot.waitUntil(lambda: widget._live is not None and widget._n_shown >= 1, timeout=60_000)
    shown = viewer.layers[LIVE_NAME]
    assert isinstance(shown, Labels)
    so_far = shown.data[0][:]
    missing = PanopticStore.open(reference.path).instances() > 0
    assert 0 < np.count_nonzero(so_far) < np.count_nonzero(missing)
    np.testing.assert_allclose(
        shown.data_to_world((-0.5, -0.5)), viewer.layers[0].data_to_world((-0.5, -0.5)), atol=1e-9
    )
    qtbot.waitUntil(lambda: "of 15 tiles" in widget.pace.text(), timeout=10_000)
    assert widget.bar.maximum() == 15
    gate.opened.set()
    qtbot.waitUntil(lambda: not widget.is_running, timeout=60_000)
    store = store_path(slide, tmp_path / "out")
    assert contents(store) == contents(reference.path)
    assert names(viewer) == ["slide.tif", "slide classes", "slide nuclei"]
    assert nuclei_view(viewer).store.path == store
    assert f"{reference.n_nuclei:,} nuclei found in" in said(widget)
    assert told() == []
    assert widget.start_button.isEnabled()
    run(widget, qtbot)
    assert "nuclei found already" in said(widget)
    assert names(viewer) == ["slide.tif", "slide classes", "slide nuclei"]


def test_visible_area(widget, viewer, slide, tmp_path, reference, qtbot):
    height, width = viewer.canvas.size
    box = Box(200, 300, 360, 300 + round(160 * width / height))
    show_box(viewer, viewer.layers[0], box)
    run(widget, qtbot, VISIBLE)
    store = PanopticStore.open(store_path(slide, tmp_path / "out"))
    assert store.spec.extent == visible_box(viewer, viewer.layers[0])
    assert abs(store.spec.extent.area / box.area - 1) < 0.03
    assert 0 < store.n_nuclei < reference.n_nuclei
    assert partition_of(store.instances()) <= partition_of(reference.instances())
    assert "slide nuclei" in names(viewer)


def test_drawn_region(widget, viewer, slide, tmp_path, qtbot):
    widget.form.draw_button.click()
    assert widget.form.area.currentText() == DRAWN
    layer = viewer.layers.selection.active
    assert layer.mode == "add_rectangle"
    run(widget, qtbot)
    assert "no region is drawn" in said(widget)
    assert told() == [said(widget)]
    layer.add([[(100, 120), (100, 400), (300, 400), (300, 120)]], shape_type="rectangle")
    widget.form.draw_button.click()
    assert len(viewer.layers) == 2, "one layer for regions is enough"
    run(widget, qtbot)
    store = PanopticStore.open(store_path(slide, tmp_path / "out"))
    # Drawn through the centres of pixels 100 and 300, which are half in.
    assert store.spec.extent == Box(100, 120, 301, 401)
    assert names(viewer) == ["slide.tif", "region to segment", "slide classes", "slide nuclei"]


@pytest.mark.parametrize("n", [0, 1, 7])
def test_cancel_and_resume_is_as_if_never_stopped(widget, viewer, slide, tmp_path, reference, use_network, qtbot, n):
    gate = Gate(n)
    use_network(gate)
    assert widget.resume_button.isHidden()
    widget.form.area.setCurrentText(WHOLE)
    widget.start_button.click()
    qtbot.waitUntil(lambda: gate.left < 0, timeout=60_000)
    widget.cancel_button.click()
    assert not widget.cancel_button.isEnabled()
    assert widget.is_running, "the tile that is under way is finished"
    gate.opened.set()
    qtbot.waitUntil(lambda: not widget.is_running, timeout=60_000)
    target = store_path(slide, tmp_path / "out")
    assert not target.exists()
    assert target.with_name(target.name + ".partial").is_dir()
    assert said(widget).startswith("Stopped. ")
    assert "Resume" in said(widget)
    assert names(viewer) == ["slide.tif", LIVE_NAME], "what was found stays in view"
    assert viewer.layers[LIVE_NAME].data[0][:].any()
    assert told() == []
    seen: list[torch.Tensor] = []
    use_network(lambda image: seen.append(image) or oracle(image))
    # The fields may have changed since; what was begun goes on.
    widget.form.area.setCurrentText(VISIBLE)
    widget.resume_button.click()
    qtbot.waitUntil(lambda: not widget.is_running, timeout=60_000)
    assert 0 < len(seen) < 15
    assert contents(target) == contents(reference.path)
    assert widget.resume_button.isHidden()
    assert names(viewer) == ["slide.tif", "slide classes", "slide nuclei"]


def test_a_run_before_its_first_tile_can_be_stopped(widget, monkeypatch, qtbot):
    waiting = threading.Event()

    def slow(name: str) -> Model:
        assert waiting.wait(60)
        return oracle_model(name)

    monkeypatch.setattr(nucleipan.network.weights, "load_model", slow)
    _segmenting._load.cache_clear()
    widget.form.area.setCurrentText(WHOLE)
    widget.start_button.click()
    widget.cancel_button.click()
    waiting.set()
    qtbot.waitUntil(lambda: not widget.is_running, timeout=60_000)
    assert "No tile was finished" in said(widget)


# Errors


def test_another_run_is_replaced_only_when_asked(widget, viewer, slide, tmp_path, qtbot):
    run(widget, qtbot, WHOLE)
    target = store_path(slide, tmp_path / "out")
    before = contents(target)
    widget.form.draw_button.click()
    viewer.layers.selection.active.add([[(100, 100), (100, 300), (300, 300), (300, 100)]], shape_type="rectangle")
    run(widget, qtbot)
    assert "belongs to another run; it is of another area; tick the box below" in said(widget)
    assert told() == [said(widget)]
    assert not widget.overwrite.isHidden()
    assert not widget.overwrite.isChecked()
    assert contents(target) == before
    run(widget, qtbot)
    assert contents(target) == before, "not ticked"
    widget.overwrite.setChecked(True)
    widget.form.out.setText(str(tmp_path / "elsewhere"))
    assert widget.overwrite.isHidden(), "consent was for one store"
    assert not widget.overwrite.isChecked()
    widget.form.out.setText(str(tmp_path / "out"))
    run(widget, qtbot)
    widget.overwrite.setChecked(True)
    run(widget, qtbot)
    assert PanopticStore.open(target).spec.extent == Box(100, 100, 301, 301)
    assert sorted(names(viewer)) == ["region to segment", "slide classes", "slide nuclei", "slide.tif"]
    assert nuclei_view(viewer).n_ids == PanopticStore.open(target).n_nuclei + 1


def test_a_slide_without_pixel_size(viewer, tmp_path, use_network, qtbot):
    path = write_tiff(tmp_path / "bare.tif", mpp=None)
    viewer.add_layer(Image(truth()[1], rgb=True, metadata={"nucleipan_slide": path}, name="bare"))
    widget = SegmentWidget(viewer)
    qtbot.addWidget(widget)
    notification_manager.records.clear()
    assert "needed" in widget.form.mpp.placeholderText()
    run(widget, qtbot, WHOLE)
    assert "enter the micrometres per pixel" in said(widget)
    assert told() == [said(widget)]
    widget.form.mpp.setText("five")
    run(widget, qtbot)
    assert "pixel size 'five'" in said(widget)
    widget.form.mpp.setText("0,5")
    run(widget, qtbot)
    store = PanopticStore.open(tmp_path / "bare.ome.zarr")  # beside the slide, since nothing else was said
    assert store.n_nuclei > 100
    assert store.mpp == MPP
    assert names(viewer) == ["bare", "bare classes", "bare nuclei"]
    for layer in viewer.layers:
        np.testing.assert_allclose(layer.scale, MPP)
        assert [str(u) for u in layer.units] == ["micrometer"] * 2


def test_a_flat_image_opened_by_napari(viewer, tmp_path, use_network, qtbot):
    from PIL import Image as Picture

    path = tmp_path / "field.png"
    Picture.fromarray(truth((300, 300))[1]).save(path)
    viewer.open(path, plugin="napari")
    viewer.add_image(np.zeros((300, 300)), name="from no file")
    widget = SegmentWidget(viewer)
    qtbot.addWidget(widget)
    assert [widget.form.slide.itemText(i) for i in range(widget.form.slide.count())] == ["field"]
    widget.form.mpp.setText("0.5")
    run(widget, qtbot, WHOLE)
    nuclei = viewer.layers["field nuclei"]
    inside = np.argwhere(truth((300, 300))[0])[0]
    assert nuclei.get_value(viewer.layers["field"].data_to_world(inside), world=True)


def test_a_layer_that_is_not_the_slide_is_refused(viewer, slide, use_network, qtbot):
    viewer.add_layer(Image(truth()[1][::2, ::2], rgb=True, metadata={"nucleipan_slide": slide}, name="half"))
    widget = SegmentWidget(viewer)
    qtbot.addWidget(widget)
    run(widget, qtbot, WHOLE)
    assert "shows 350 x 550 pixels, but slide.tif holds 700 x 1100" in said(widget)


def test_no_slide(viewer, tmp_path, qtbot):
    widget = SegmentWidget(viewer)
    qtbot.addWidget(widget)
    run(widget, qtbot)
    assert "no slide is open" in said(widget)
    gone = tmp_path / "gone.tif"
    viewer.add_layer(Image(np.zeros((8, 8, 3), np.uint8), rgb=True, metadata={"nucleipan_slide": gone}))
    run(widget, qtbot)
    assert "there is no such file" in said(widget)
    viewer.layers.clear()
    run(widget, qtbot)
    assert "no slide is open" in said(widget)


@pytest.mark.parametrize("field", ["model", "device", "out"])
def test_errors_from_the_run_reach_the_user(widget, monkeypatch, tmp_path, field, qtbot):
    expected = {"model": "not a readable safetensors file", "device": "cuda:77", "out": "another output folder"}[field]
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    if field == "model":
        monkeypatch.setattr(nucleipan.network.weights, "load_model", load_model)
        widget.form.add_weights(bad)
    elif field == "device":
        widget.form.device.setEditText("cuda:77")
    else:
        widget.form.out.setText(str(bad))
    run(widget, qtbot, WHOLE)
    assert expected in said(widget)
    assert told() == [said(widget)]
    assert "--" not in said(widget)
    widget.form.model.setCurrentText("nucleipan-fast")
    widget.form.device.setCurrentText("auto")
    widget.form.out.setText(str(tmp_path / "good"))
    monkeypatch.setattr(nucleipan.network.weights, "load_model", oracle_model)
    run(widget, qtbot)
    assert "nuclei found in" in said(widget)


def test_what_nobody_foresaw_reaches_the_user(widget, viewer, use_network, qtbot, capsys):
    def breaks(image: torch.Tensor) -> HeadOutputs:
        raise RuntimeError("CUDA out of memory\nand so on")

    use_network(breaks)
    with qtbot.captureExceptions() as caught:
        run(widget, qtbot, WHOLE)
    assert said(widget) == "RuntimeError: CUDA out of memory; smaller tiles need less memory"
    assert any("out of memory" in text for text in told()) or caught
    assert names(viewer) == ["slide.tif"]
    use_network(oracle)
    run(widget, qtbot)
    assert "nuclei found in" in said(widget)


# The window around it


def test_slides_come_and_go(widget, viewer, slide, tmp_path, qtbot):
    second = open_slide_in(viewer, write_tiff(tmp_path / "second.tif", 0.25))[0]
    assert [widget.form.slide.itemText(i) for i in range(widget.form.slide.count())] == ["slide.tif", "second.tif"]
    assert widget.form.slide.currentText() == "slide.tif", "the choice stays"
    widget.form.slide.setCurrentText("second.tif")
    assert widget.form.mpp.placeholderText() == "0.25 (from the slide)"
    second.name = "renamed"
    assert widget.form.slide.currentText() == "renamed"
    viewer.layers.remove(second)
    assert widget.form.slide.currentText() == "slide.tif"


def test_a_slide_closed_while_it_is_segmented(widget, viewer, tmp_path, use_network, qtbot):
    gate = Gate(2)
    use_network(gate)
    widget.form.area.setCurrentText(WHOLE)
    widget.start_button.click()
    qtbot.waitUntil(lambda: LIVE_NAME in names(viewer), timeout=60_000)
    viewer.layers.clear()
    gate.opened.set()
    qtbot.waitUntil(lambda: not widget.is_running, timeout=60_000)
    assert names(viewer) == ["slide.tif", "slide classes", "slide nuclei"]


def test_a_viewer_closed_while_it_segments(make_napari_viewer, slide, tmp_path, use_network, qtbot):
    gate = Gate(2)
    use_network(gate)
    viewer = make_napari_viewer()
    open_slide_in(viewer, slide)
    dock, widget = viewer.window.add_plugin_dock_widget("nucleipan", "Segment")
    widget.form.out.setText(str(tmp_path / "out"))
    widget.form.tile.setValue(TILE)
    widget.form.area.setCurrentText(WHOLE)
    widget.start_button.click()
    qtbot.waitUntil(lambda: gate.left < 0, timeout=60_000)
    worker = widget._run.worker
    stop = widget._run.stop
    del widget, dock
    viewer.close()
    qtbot.waitUntil(stop.is_set, timeout=10_000)
    gate.opened.set()
    qtbot.waitUntil(lambda: not worker.is_running, timeout=60_000)
    assert (tmp_path / "out/slide.ome.zarr.partial").is_dir()


def test_a_widget_that_was_closed_leaves_the_viewer_alone(viewer, slide, qtbot):
    dock, _ = viewer.window.add_plugin_dock_widget("nucleipan", "Segment")
    viewer.window.remove_dock_widget(dock)
    del dock
    qtbot.wait(50)
    open_slide_in(viewer, slide)
    viewer.layers.clear()


@pytest.mark.slow
def test_the_real_model_on_a_small_region(viewer, tmp_path, qtbot):
    path = tmp_path / "he.tif"
    write_slide(SyntheticScene((1100, 2200)), path, levels=1)
    layer = open_slide_in(viewer, path)[0]
    widget = SegmentWidget(viewer)
    qtbot.addWidget(widget)
    widget.form.model.setCurrentText("nucleipan-fast")
    widget.form.draw_button.click()
    viewer.layers.selection.active.add([[(300, 300), (300, 555), (555, 555), (555, 300)]], shape_type="rectangle")
    run(widget, qtbot)
    assert "nuclei found in" in said(widget)
    store = PanopticStore.open(tmp_path / "he.ome.zarr")
    assert store.model["name"] == "nucleipan-fast"
    assert store.n_nuclei > 5
    assert layer in viewer.layers
