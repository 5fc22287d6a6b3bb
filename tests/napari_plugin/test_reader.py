"""Opening slides and stores in napari: what comes in, where it lies, how little is read, what the user is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari")

import tifffile
from example_store import LEVEL0_PER_PIXEL, MPP, SHAPE, Example, name_slide
from hypothesis import given
from hypothesis import strategies as st
from napari.utils.notifications import Notification, notification_manager
from napari_nucleipan._chunks import CHUNK, ChunkCache, ChunkedLevel, LazyLevel, RecentlyUsed
from napari_nucleipan._colouring import N_COLOURS
from napari_nucleipan._layers import (
    SLIDE_KEY,
    STORE_KEY,
    open_slide_in,
    open_store,
    show_slide_instead,
    slide_layers,
)
from napari_nucleipan._levels import slide_levels
from napari_nucleipan._nuclei import NucleiView, nuclei_view
from napari_nucleipan._reader import get_slide_reader, get_store_reader
from PIL import Image
from qtpy.QtWidgets import QApplication
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.errors import SlideError, StoreError
from nucleipan.geometry import Box
from nucleipan.slide import ArraySlide, Level
from nucleipan.slide.fingerprint import fingerprint
from nucleipan.stitch import StitchContext
from nucleipan.store import PanopticStore
from nucleipan.tiles import TileGrid


@pytest.fixture
def notes() -> list[Notification]:
    """What the user is told during the test."""
    notification_manager.records.clear()
    return notification_manager.records


def messages() -> list[str]:
    return [n.message for n in notification_manager.records]


# What comes in


def test_napari_opens_a_store(make_napari_viewer, example: Example) -> None:
    viewer = make_napari_viewer()
    viewer.open(str(example.store), plugin="nucleipan")
    slide, classes, nuclei = viewer.layers
    assert [layer.name for layer in viewer.layers] == ["slide.tif", "slide classes", "slide nuclei"]
    assert (slide.visible, classes.visible, nuclei.visible) == (True, False, True)
    assert nuclei.contour == 1
    assert nuclei_view(viewer).store.path == example.store
    assert slide.rgb
    assert slide.multiscale
    assert [layer.metadata.get(STORE_KEY) for layer in viewer.layers] == [None, example.store, example.store]
    assert slide.metadata[SLIDE_KEY] == example.slide
    assert np.array_equal(classes.data[0][...], example.classes)


def test_napari_opens_a_slide(make_napari_viewer, example: Example) -> None:
    viewer = make_napari_viewer()
    (layer,) = viewer.open(str(example.slide), plugin="nucleipan")
    assert layer.metadata[SLIDE_KEY] == example.slide
    assert np.array_equal(layer.data[0][...], example.image)
    assert nuclei_view(viewer) is None


def test_readers_take_what_is_theirs(example: Example, tmp_path: Path) -> None:
    text = tmp_path / "notes.svs"
    text.write_text("no slide")
    store, slide = str(example.store), str(example.slide)
    assert get_store_reader(store)
    assert get_slide_reader(slide)
    assert [get_store_reader(p) for p in (slide, str(text), str(tmp_path), [store])] == [None] * 4
    assert [get_slide_reader(p) for p in (store, str(text), str(tmp_path), [slide])] == [None] * 4


def test_menu_has_sample_data(make_napari_viewer) -> None:
    viewer = make_napari_viewer()
    viewer.open_sample("nucleipan", "synthetic")
    view = nuclei_view(viewer)
    assert view.store.n_nuclei > 300
    # The store tells the truth: nuclei are darker than what is around them.
    inside = view.levels[0][...] > 0
    grey = viewer.layers[0].data[0][...].mean(2)
    assert grey[inside].mean() < grey[~inside].mean() - 30


# Where it lies


def test_all_layers_share_their_corners_and_micrometres(make_napari_viewer, example: Example) -> None:
    viewer = make_napari_viewer()
    layers = open_store(viewer, example.store)
    size_um = [side * MPP for side in example.instances.shape]
    for layer in layers:
        # The corner of the first pixel and that of the last.
        shape = np.array(layer.data[0].shape[:2])
        assert layer.data_to_world([-0.5, -0.5]) == pytest.approx([0, 0], abs=1e-9)
        assert layer.data_to_world(shape - 0.5) == pytest.approx(size_um)
        assert {str(unit) for unit in layer.units} == {"micrometer"}


# One micrometre is ``zoom`` pixels of the screen: finer than the slide, finer than the nuclei, coarser than both.
@pytest.mark.parametrize(("zoom", "least"), [(7.0, 0.999), (3.0, 0.999), (0.7, 0.8)])
def test_nuclei_cover_their_image(make_napari_viewer, example: Example, zoom: float, least: float) -> None:
    """In the window: where the slide is dark there is a nucleus, to the pixel; on coarse levels but for borders."""
    viewer = make_napari_viewer(show=True)
    slide, _, nuclei = open_store(viewer, example.store)
    nuclei.contour, nuclei.opacity = 0, 1
    slide.interpolation2d = "nearest"  # as labels always are; blurred edges would move what counts as dark
    height, width = (side * MPP for side in SHAPE)
    viewer.scene.camera.zoom = zoom
    viewer.scene.camera.center = (0, height / 2 + 0.1, width / 2 + 0.1)  # no pixel of the screen is between two others
    slide.visible, nuclei.visible = True, False
    dark = middle(window(viewer), height * zoom, width * zoom)[..., 1] < 120
    slide.visible, nuclei.visible = False, True
    drawn = middle(window(viewer), height * zoom, width * zoom).max(2) > 100
    assert dark.sum() > 1000
    assert (dark & drawn).sum() / (dark | drawn).sum() >= least


def middle(shown: np.ndarray, height: float, width: float) -> np.ndarray:
    """The part of the window in which there is a slide of that size."""
    cut = [max(10, int((n - side) / 2) + 3) for n, side in zip(shown.shape, (height, width), strict=False)]
    return shown[cut[0] : -cut[0], cut[1] : -cut[1]]


def window(viewer) -> np.ndarray:
    """What the canvas shows, int[h, w, 3]."""
    for _ in range(3):
        QApplication.processEvents()
    return viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)


# How little is read


class EndlessSlide:
    """A slide of 60,000 x 80,000 pixels at 0.25 um that counts what is read."""

    path, format, mpp, objective, compression = Path("endless.svs"), "test", 0.25, None, None
    levels = (Level((60_000, 80_000), 1.0), Level((15_000, 20_000), 4.0), Level((1875, 2500), 32.0))

    def __init__(self) -> None:
        self.n_read = [0] * len(self.levels)
        self.is_open = True

    def read(self, level: int, box: Box) -> np.ndarray:
        assert Box.of_shape(self.levels[level].shape).contains(box)
        self.n_read[level] += box.area
        return np.full((*box.shape, 3), 40 * level, np.uint8)

    def close(self) -> None:
        self.is_open = False


def test_a_slide_is_read_where_the_window_is(make_napari_viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = EndlessSlide()
    monkeypatch.setattr("napari_nucleipan._layers.open_slide", lambda path: slide)
    viewer = make_napari_viewer(show=True)
    open_slide_in(viewer, "endless.svs")
    viewer.reset_view()
    window(viewer)
    assert slide.n_read[:2] == [0, 0]
    assert slide.n_read[2] <= 2 * 1875 * 2500
    height, width = viewer.window._qt_viewer.canvas.native.height(), viewer.window._qt_viewer.canvas.native.width()
    viewer.scene.camera.center, viewer.scene.camera.zoom = (0, 7000, 9000), 4.0
    window(viewer)
    most = (height + 2 * CHUNK) * (width + 2 * CHUNK)
    assert 0 < slide.n_read[0] <= 2 * most  # zoomed and moved in two steps
    before = sum(slide.n_read)
    viewer.scene.camera.center = (0, 7000, 9000 + width * 0.25 / 4)
    window(viewer)
    # A quarter of the window further, a column of chunks is new, or two.
    assert sum(slide.n_read) - before <= 2 * CHUNK * (height + 2 * CHUNK)


def test_a_store_is_read_where_it_is_asked_for(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, Box | None]] = []
    original = PanopticStore.instances

    def counted(self: PanopticStore, box: Box | None = None, level: int = 0) -> np.ndarray:
        read.append((level, box))
        return original(self, box, level)

    monkeypatch.setattr(PanopticStore, "instances", counted)
    view = NucleiView(PanopticStore.open(example.store))
    view.colour_by("area_um2")
    assert read == []
    part = view.levels[0][600:610, 1050:1060]
    assert np.array_equal(part // N_COLOURS, example.instances[600:610, 1050:1060])
    assert read == [(0, Box(512, 1024, 640, 1100))]
    view.colour_by("class")
    assert np.array_equal(view.levels[0][600:610, 1050:1060] // N_COLOURS, part // N_COLOURS)
    assert len(read) == 1  # pixels that were read stay read


def test_levels_go_down_to_the_screen_and_average() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (3000, 2100, 3), np.uint8)
    levels = slide_levels(ArraySlide(Path("a.png"), image, mpp=0.5))
    shapes = [(3000, 2100, 3), (1500, 1050, 3), (750, 525, 3), (375, 263, 3)]
    assert [level.shape for level in levels] == shapes
    assert np.array_equal(levels[0][1000:1010, 7], image[1000:1010, 7])
    mean = image[:1200, :800].reshape(600, 2, 400, 2, 3).mean((1, 3))
    assert np.abs(levels[1][:600, :400] - mean).max() <= 1


@pytest.mark.parametrize("shape", [(300, 300), (1, 40), (513, 1)])
def test_small_slides_and_stores_open(make_napari_viewer, tmp_path: Path, shape: tuple[int, int]) -> None:
    """They have a single level, which napari would take for no pyramid."""
    truth = random_truth(shape, 30)
    grid = TileGrid(shape, Box.of_shape(shape), 512, 0, 1)
    store = stitch_oracle(tmp_path / "small.ome.zarr", truth, StitchContext(grid, 1.0))[0]
    assert store.n_levels == 1
    viewer = make_napari_viewer()
    _, classes, nuclei = open_store(viewer, store.path)
    for layer, plane in ((nuclei, store.instances()), (classes, store.class_map())):
        values = [level[...] for level in layer.data]
        shown = values if layer is classes else [np.where(v > 0, (v - 1) // N_COLOURS, 0) for v in values]
        assert np.array_equal(shown[0], plane)
        assert np.array_equal(shown[1], plane[::2, ::2])
    path = tmp_path / "small.png"
    Image.fromarray(truth.image).save(path)
    (slide,) = open_slide_in(viewer, path)
    assert np.array_equal(slide.data[0][...], truth.image)


def test_a_slide_is_closed_when_its_levels_are_gone() -> None:
    slide = EndlessSlide()
    levels = slide_levels(slide)
    assert slide.is_open
    del levels
    assert not slide.is_open


@given(st.data())
def test_a_lazy_level_is_its_array(data: st.DataObject) -> None:
    array = np.random.default_rng(1).integers(0, 255, (1100, 1030, 3), np.uint8)
    cache = ChunkCache(max_bytes=data.draw(st.sampled_from([1, 1 << 20, 1 << 28])))
    whole = Box.of_shape((1100, 1030))
    level = LazyLevel(ChunkedLevel(0, array.shape, lambda box: array[box.slices(whole)], cache, np.uint8(0)))
    for _ in range(3):
        key = tuple(data.draw(indices(n)) for n in data.draw(st.sampled_from([array.shape, array.shape[:2], (1100,)])))
        assert np.array_equal(level[key], array[key])
    assert np.array_equal(level[..., 0], array[..., 0])
    assert np.array_equal(np.asarray(level), array)
    assert np.asarray(level) is np.asarray(level)
    assert not np.shares_memory(np.array(level), np.asarray(level))


def indices(n: int) -> st.SearchStrategy[int | slice]:
    end = st.none() | st.integers(-n - 5, n + 5)
    return st.integers(-n, n - 1) | st.builds(slice, end, end, st.none() | st.integers(1, 7))


def test_what_was_used_last_is_kept() -> None:
    cache = RecentlyUsed(max_bytes=30)
    for k in range(3):
        cache.put(k, np.full(10, k, np.uint8))
    cache.get(0)
    cache.put(3, np.zeros(10, np.uint8))
    assert [cache.get(k) is not None for k in range(4)] == [True, False, True, True]
    cache.put(0, np.zeros(25, np.uint8))  # in the place of what had this name
    assert [cache.get(k) is not None for k in range(4)] == [True, False, False, False]


# What the user is told


def test_a_slide_without_pixel_size_is_shown_in_pixels(make_napari_viewer, tmp_path: Path, notes: list) -> None:
    path = tmp_path / "plain.png"
    Image.fromarray(np.full((50, 60, 3), 200, np.uint8)).save(path)
    (layer,) = open_slide_in(make_napari_viewer(), path)
    assert tuple(layer.scale) == (1, 1)
    assert "plain.png carries no pixel size" in messages()[0]


def test_a_store_without_its_slide_shows_the_overview_and_asks(
    make_napari_viewer, example_copy: Example, notes: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = example_copy.slide.rename(example_copy.slide.parent / "elsewhere.tif")
    viewer = make_napari_viewer()
    open_store(viewer, example_copy.store)
    assert viewer.layers[0].name == "slide overview"
    assert SLIDE_KEY not in viewer.layers[0].metadata
    assert viewer.layers[0].metadata[STORE_KEY] == example_copy.store
    (note,) = [n for n in notes if "slide.tif" in n.message]
    assert "overview" in note.message
    ((label, choose),) = note.actions
    assert label == "Find slide..."

    monkeypatch.setattr("qtpy.QtWidgets.QFileDialog.getOpenFileName", lambda *_: ("", ""))
    choose(None)
    assert viewer.layers[0].name == "slide overview"
    monkeypatch.setattr("qtpy.QtWidgets.QFileDialog.getOpenFileName", lambda *_: (str(moved), ""))
    choose(None)
    assert [layer.name for layer in viewer.layers] == ["elsewhere.tif", "slide classes", "slide nuclei"]
    assert np.array_equal(viewer.layers[0].data[0][...], example_copy.image)


def test_the_overview_lies_where_the_slide_would(make_napari_viewer, example_copy: Example) -> None:
    example_copy.slide.unlink()
    viewer = make_napari_viewer()
    overview = open_store(viewer, example_copy.store)[0]
    assert overview.data_to_world([-0.5, -0.5]) == pytest.approx([0, 0], abs=1e-9)
    assert overview.scale == pytest.approx([2.0, 2.0])  # as the store says of its image


def test_another_slide_is_never_shown_below_the_nuclei(
    make_napari_viewer, example_copy: Example, notes: list, tmp_path: Path
) -> None:
    other = tmp_path / "other.tif"
    tifffile.imwrite(other, example_copy.image + 1, photometric="rgb")
    shutil.copy(other, example_copy.slide)  # a changed file under the old name
    viewer = make_napari_viewer()
    layers = open_store(viewer, example_copy.store)
    assert layers[0].name == "slide overview"
    assert "content differs" in messages()[-1]
    with pytest.raises(SlideError, match="content differs"):
        show_slide_instead(viewer.layers, layers[0], other)
    with pytest.raises(SlideError, match="content differs"):
        open_store(viewer, example_copy.store, other)
    assert len(viewer.layers) == 3


def test_a_slide_that_was_given_is_used(make_napari_viewer, example_copy: Example, tmp_path: Path) -> None:
    moved = example_copy.slide.rename(tmp_path / "elsewhere.tif")
    layers = open_store(make_napari_viewer(), example_copy.store, moved)
    assert layers[0].metadata[SLIDE_KEY] == moved


def test_a_recorded_name_is_no_path(make_napari_viewer, example_copy: Example) -> None:
    elsewhere = example_copy.store.parent / "sub"
    elsewhere.mkdir()
    moved = example_copy.slide.rename(elsewhere / "slide.tif")
    name_slide(example_copy.store, "sub/slide.tif", fingerprint(moved), example_copy.image.shape[:2])
    assert open_store(make_napari_viewer(), example_copy.store)[0].name == "slide overview"


def test_pixel_sizes_of_the_store_count(make_napari_viewer, example: Example) -> None:
    slide = open_store(make_napari_viewer(), example.store)[0]
    assert slide.scale == pytest.approx([MPP / LEVEL0_PER_PIXEL] * 2)


def test_unfinished_and_foreign_folders_are_refused(make_napari_viewer, tmp_path: Path) -> None:
    (tmp_path / "x.ome.zarr.partial").mkdir()
    for name in ("x.ome.zarr", "x.ome.zarr.partial", "none"):
        with pytest.raises(StoreError):
            open_store(make_napari_viewer(), tmp_path / name)


def test_what_cannot_be_read_is_told_once_and_stays_grey(notes: list) -> None:
    class Damaged(EndlessSlide):
        def read(self, level: int, box: Box) -> np.ndarray:
            raise SlideError("endless.svs: tile 7 is damaged")

    levels = slide_levels(Damaged())
    assert (levels[0][0:600, 0:600] == 128).all()
    assert (levels[1][5000:5010, :10] == 128).all()
    assert messages() == ["endless.svs: tile 7 is damaged"]


def test_slide_layers_raise_for_what_is_no_slide(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(b"nothing")
    with pytest.raises(SlideError):
        slide_layers(path)
