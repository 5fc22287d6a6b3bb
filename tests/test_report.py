"""The report says what the store says, whatever names are in it, and is one file that needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stitch_oracle import Truth, oracle_tile, random_truth, spec_of

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.edits import EditLog, delete_nuclei, open_corrected
from nucleipan.errors import DataError, SlideError, StoreError
from nucleipan.geometry import Box
from nucleipan.report import distributions as distributions_module
from nucleipan.report import fields as fields_module
from nucleipan.report import tally as tally_module
from nucleipan.report import write_report
from nucleipan.report.distributions import Distribution, distributions
from nucleipan.report.fields import MAX_FIELDS, choose_fields
from nucleipan.report.figures import densities
from nucleipan.report.frame import Grid, frame_of
from nucleipan.report.tally import count
from nucleipan.slide import SlideView, open_slide
from nucleipan.slide.fingerprint import fingerprint
from nucleipan.stitch import Overview, StitchContext, StoreLayout, assemble, tile_record, write_record
from nucleipan.store import PanopticStore, open_or_resume
from nucleipan.synthetic import SyntheticScene, write_slide
from nucleipan.tiles import TileGrid

SHAPE = (300, 420)
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@dataclass
class Page:
    """What a reader of the page meets: tables by id as rows of cell texts, and everything a browser would act on."""

    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [values for name, values in self.tags if name == tag]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self._rows: list[list[str]] | None = None
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.page.tags.append((tag, values))
        self._in_style = tag == "style"
        if tag == "table":
            self._rows = self.page.tables.setdefault(values["id"], [])
        elif self._rows is not None and tag == "tr":
            self._rows.append([])
        elif self._rows is not None and tag in ("td", "th"):
            self._rows[-1].append("")
        elif self._rows is not None and tag == "small":
            self._rows[-1][-1] += "|"

    def handle_endtag(self, tag: str) -> None:
        self._rows = None if tag == "table" else self._rows
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if not self._in_style:
            self.page.texts.append(data)
        if self._rows and self._rows[-1]:
            self._rows[-1][-1] = " ".join(f"{self._rows[-1][-1]} {data}".split())


def read(path: Path) -> Page:
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader.page


def make_store(
    path: Path, truth: Truth, extent: Box | None = None, image: np.ndarray | None = None, **changes: object
) -> PanopticStore:
    """An errorless store of ``truth``, whose overview is half its size if not ``image`` at full resolution."""
    shape = truth.stuff.shape
    grid = TileGrid(shape, extent or Box.of_shape(shape), 150, 64, 1)
    context = StitchContext(grid, 2.0)
    folder = path.with_name(path.name + ".tiles")
    folder.mkdir(parents=True)
    for tile in grid:
        write_record(folder, tile_record(oracle_tile(truth, tile), context))
    spec = spec_of(grid, **{"slide": {"name": "slide.svs", "height": 2 * shape[0], "width": 2 * shape[1]}} | changes)
    run = open_or_resume(path, spec, False)
    rgb = np.random.default_rng(0).integers(100, 255, (shape[0] // 2, shape[1] // 2, 3), np.uint8)
    overview = Overview.of_array(rgb, 1.0) if image is None else Overview.of_array(image, 0.25)
    layout = StoreLayout("slide", DEFAULT_CLASSES, spec.mpp, 32, 128, 50, run.attributes())
    assemble(run.folder, folder, context, layout, overview)
    return run.publish()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    return make_store(tmp_path_factory.mktemp("report") / "slide.ome.zarr", random_truth(SHAPE, 500))


@pytest.fixture(scope="module")
def with_slide(tmp_path_factory: pytest.TempPathFactory) -> tuple[PanopticStore, Path]:
    """A store and the slide it belongs to, in another folder."""
    folder = tmp_path_factory.mktemp("with_slide")
    slide = folder / "slides" / "case.tif"
    slide.parent.mkdir()
    write_slide(SyntheticScene((2 * SHAPE[0], 2 * SHAPE[1])), slide, levels=2)
    recorded = {"name": slide.name, "height": 2 * SHAPE[0], "width": 2 * SHAPE[1], "fingerprint": fingerprint(slide)}
    return make_store(folder / "out" / "case.ome.zarr", random_truth(SHAPE, 500), slide=recorded), slide


@pytest.fixture(scope="module")
def page(store: PanopticStore, tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_report(store, path)
    return read(path)


def edited(store: PanopticStore, folder: Path, change: Callable[[dict[str, Any]], None]) -> PanopticStore:
    """A copy of a store with other attributes."""
    path = folder / store.path.name
    shutil.copytree(store.path, path)
    document = json.loads((path / "zarr.json").read_text())
    change(document["attributes"]["nucleipan"])
    (path / "zarr.json").write_text(json.dumps(document))
    return PanopticStore.open(path)


def with_table(store: PanopticStore, folder: Path, change: Callable[[pa.Table], pa.Table]) -> PanopticStore:
    """A copy of a store with another table."""
    path = folder / store.path.name
    shutil.copytree(store.path, path)
    (path / "nuclei.parquet").unlink()
    pq.write_table(change(store.nuclei()), path / "nuclei.parquet", row_group_size=50)
    return PanopticStore.open(path)


def number(text: str) -> float:
    return float(text.replace(",", "").removesuffix(" %"))


# What it says


def test_kinds_of_nuclei_are_those_of_the_table(store: PanopticStore, page: Page) -> None:
    table = store.nuclei(["class", "area_um2", "score"])
    names = np.array(table["class"].to_pylist())
    areas, scores = table["area_um2"].to_numpy(), table["score"].to_numpy()
    rows = {row[0]: row[1:] for row in page.tables["classes"][1:]}
    assert list(rows) == [*(c.name for c in DEFAULT_CLASSES.things), "all"]
    for name, row in rows.items():
        mine = np.ones(len(names), bool) if name == "all" else names == name
        assert number(row[0]) == mine.sum()
        assert number(row[1]) == pytest.approx(100 * mine.mean(), abs=0.051)
        assert number(row[3]) == pytest.approx(np.median(areas[mine]), abs=0.6)
        assert number(row[5]) == pytest.approx(np.median(scores[mine]), abs=0.01)
    assert number(rows["all"][0]) == store.n_nuclei
    assert f"{store.n_nuclei} nuclei" in page.text


def slow_areas_mm2(store: PanopticStore) -> dict[str, float]:
    """Area by tissue, pixel by pixel: of a nucleus, the tissue that the table names."""
    classes, instances = store.class_map().ravel(), store.instances().ravel()
    tissue_of = np.concatenate([[0], store.nuclei(["tissue_id"])["tissue_id"].to_numpy()])
    tissue = np.where(instances > 0, tissue_of[instances], classes)
    pixels = np.bincount(tissue, minlength=256)
    return {c.name: pixels[c.id] * store.mpp**2 / 1e6 for c in store.classes.stuff if pixels[c.id]}


def test_tissues_have_their_areas_and_nuclei(store: PanopticStore, page: Page) -> None:
    expected = slow_areas_mm2(store)
    assert sum(expected.values()) == pytest.approx(SHAPE[0] * SHAPE[1] * 0.25e-6)
    tissue = np.array(store.nuclei(["tissue"])["tissue"].to_pylist())
    rows = {row[0]: row[1:] for row in page.tables["areas"][1:]}
    assert set(rows) == set(expected)
    total = sum(area for name, area in expected.items() if name != "background")
    for name, row in rows.items():
        n = (tissue == name).sum()
        assert number(row[0]) == pytest.approx(expected[name], abs=5e-4)
        assert number(row[2]) == n
        assert number(row[3]) == pytest.approx(n / expected[name], abs=0.51)
        if name == "background":
            assert row[1] == "–"
        else:
            assert number(row[1]) == pytest.approx(100 * expected[name] / total, abs=0.051)
    per_mm2 = number(page.tables["classes"][-1][3])
    assert per_mm2 == pytest.approx(store.n_nuclei / total, abs=0.51)


def test_composition_counts_every_nucleus_once(store: PanopticStore, page: Page) -> None:
    table = store.nuclei(["class", "tissue"])
    pairs = list(zip(table["tissue"].to_pylist(), table["class"].to_pylist(), strict=True))
    areas = slow_areas_mm2(store)
    head, *rows = page.tables["composition"]
    total = 0
    for name, *cells in rows:
        in_tissue = sum(tissue == name for tissue, _ in pairs)
        for thing, cell in zip(head[1:], cells, strict=True):
            n, share, per_mm2 = re.fullmatch(r"([\d,]+)\| ?(.+) % · (.+)", cell).groups()  # type: ignore[union-attr]
            assert number(n) == pairs.count((name, thing))
            assert number(share) == pytest.approx(100 * number(n) / in_tissue, abs=0.051)
            assert number(per_mm2) == pytest.approx(number(n) / areas[name], abs=0.51)
            total += int(number(n))
    assert total == store.n_nuclei


def test_it_names_the_slide_the_model_and_the_settings(store: PanopticStore, page: Page) -> None:
    assert page.text.count("Research use only. Not for diagnosis.") == 2
    for text in ("slide.svs", "oracle", "Apache-2.0", "decode.threshold", "0.5 µm", "slide.ome.zarr"):
        assert text in page.text


def test_warnings_come_from_the_store(store: PanopticStore, tmp_path: Path) -> None:
    def change(attributes: dict[str, Any]) -> None:
        attributes["stitching"] |= {"n_cut": 1234, "n_nuclei": 7}
        attributes["level0_per_pixel"] = 0.5

    write_report(edited(store, tmp_path, change), tmp_path / "page.html")
    text = read(tmp_path / "page.html").text
    assert "1,234 nuclei reach beyond the context" in text
    assert f"says it holds 7 nuclei, its table holds {store.n_nuclei}" in text
    assert "1 µm per pixel and was enlarged to the model's 0.5" in text


def test_what_people_corrected_is_reported(tmp_path: Path) -> None:
    store = make_store(tmp_path / "slide.ome.zarr", random_truth((300, 260), 150))
    log = EditLog.open(store)
    log.append(delete_nuclei(log, [3, 4]), "Dr. <b>Who</b>")
    write_report(open_corrected(store.path), tmp_path / "page.html")
    text = read(tmp_path / "page.html").text
    assert "People corrected the nuclei (corrections: 1, by Dr. <b>Who</b>)" in text
    assert f"{store.n_nuclei - 2} nuclei" in text
    assert "its table holds" not in text


def test_a_part_of_a_slide(tmp_path: Path) -> None:
    extent = Box(40, 60, 240, 300)
    store = make_store(tmp_path / "slide.ome.zarr", random_truth(SHAPE, 500), extent)
    write_report(store, tmp_path / "page.html")
    page = read(tmp_path / "page.html")
    assert "Only a part of the slide was segmented" in page.text
    assert number(page.tables["classes"][-1][1]) == store.n_nuclei > 100
    # Nuclei on the edge reach a little beyond.
    assert count(frame_of(store)).tissue_mm2.sum() == pytest.approx(extent.area * 0.25e-6, rel=0.03)
    marks = [values for values in page.attributes("rect") if values.get("class") == "mark"]
    image = page.attributes("image")[-1]
    shares = [float(marks[0][side]) / float(image[axis]) for side, axis in (("x", "width"), ("y", "height"))]
    assert shares == pytest.approx([60 / SHAPE[1], 40 / SHAPE[0]])


def test_without_nuclei(tmp_path: Path) -> None:
    nothing = random_truth(SHAPE, 1)
    none = Truth(np.zeros(SHAPE, np.int32), nothing.stuff, nothing.probabilities[:0], nothing.scores[:0])
    write_report(make_store(tmp_path / "slide.ome.zarr", none), tmp_path / "page.html")
    page = read(tmp_path / "page.html")
    assert "No nuclei were found." in page.text
    assert [row[1] for row in page.tables["classes"][1:]] == ["0"] * (len(DEFAULT_CLASSES.things) + 1)
    assert "composition" not in page.tables


def test_a_model_that_knows_no_tissue(store: PanopticStore, tmp_path: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        none = pa.array(np.zeros(len(table), np.uint8))
        return table.set_column(table.schema.get_field_index("tissue_id"), "tissue_id", none)

    def no_stuff(attributes: dict[str, Any]) -> None:
        attributes["classes"] = [c for c in attributes["classes"] if c["is_thing"]]

    (tmp_path / "a").mkdir()
    changed = edited(with_table(store, tmp_path / "a", change), tmp_path, no_stuff)
    write_report(changed, tmp_path / "page.html")
    page = read(tmp_path / "page.html")
    assert number(page.tables["classes"][-1][3]) == pytest.approx(
        store.n_nuclei / (SHAPE[0] * SHAPE[1] * 0.25e-6), abs=0.51
    )
    assert "areas" not in page.tables


# How it counts


def test_nothing_is_read_whole(store: PanopticStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the whole table was asked for")

    sizes = []
    read_box = PanopticStore.class_map

    def measured(self: PanopticStore, box: Box | None = None, level: int = 0) -> np.ndarray:
        sizes.append(Box.of_shape(self.shape).area if box is None else box.area)
        return read_box(self, box, level)

    monkeypatch.setattr(PanopticStore, "nuclei", refuse)
    monkeypatch.setattr(PanopticStore, "class_map", measured)
    monkeypatch.setattr(tally_module, "_STRIP_PIXELS", 2**12)
    tally = count(frame_of(store))
    assert max(sizes) <= 2**12 < SHAPE[0] * SHAPE[1]
    assert tally.n_nuclei == store.n_nuclei


def test_large_planes_are_counted_on_a_coarser_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (1100, 1300)
    store = make_store(tmp_path / "slide.ome.zarr", random_truth(shape, 900))
    exact, fine = slow_areas_mm2(store), count(frame_of(store))
    monkeypatch.setattr(tally_module, "_MAX_PLANE_PIXELS", shape[0] * shape[1] // 2)
    coarse = count(frame_of(store))
    assert (fine.plane_step, coarse.plane_step) == (1, 2)
    for c, of_fine, of_coarse in zip(frame_of(store).tissues, fine.tissue_mm2, coarse.tissue_mm2, strict=True):
        assert of_fine == pytest.approx(exact.get(c.name, 0))
        assert of_coarse == pytest.approx(of_fine, rel=0.03)
    np.testing.assert_array_equal(fine.counts, coarse.counts)
    assert (fine.is_tissue == coarse.is_tissue).mean() > 0.99


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.1, 3), st.floats(1, 300), st.floats(1, 300))
def test_a_grid_covers_its_box_once(height: int, width: int, mpp: float, height_um: float, width_um: float) -> None:
    grid = Grid(Box(7, 11, 7 + height, 11 + width), (height_um, width_um), mpp)
    assert grid.areas_mm2.shape == grid.shape
    assert grid.areas_mm2.min() > 0
    assert grid.areas_mm2.sum() == pytest.approx(height * width * mpp**2 / 1e6)
    y, x = np.mgrid[7 : 7 + height, 11 : 11 + width] + 0.5
    bins = grid.bins(y.ravel(), x.ravel())
    assert bins.min() >= 0
    assert bins.max() < grid.n_bins


def test_even_nuclei_have_an_even_density() -> None:
    grid = Grid(Box(0, 0, 333, 511), (20.0, 30.0), 0.5)
    per_mm2 = 4321.0
    np.testing.assert_allclose(densities(per_mm2 * grid.areas_mm2.ravel(), grid), per_mm2)


def test_the_densest_place_is_where_the_nuclei_are() -> None:
    grid = Grid(Box(0, 0, 2000, 2000), (10.0, 10.0), 0.5)
    counts = np.zeros(grid.shape, np.int64)
    counts[30, 70] = 5
    density = densities(counts.ravel(), grid)
    assert np.unravel_index(density.argmax(), density.shape) == (30, 70)
    assert (density * grid.areas_mm2).sum() == pytest.approx(5, rel=0.01)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=200), st.integers(1, 50))
def test_histograms_give_quantiles_and_lose_nothing(values: list[float], n_bins: int) -> None:
    data = np.array(values)
    low, high = float(data.min()), float(max(data.max(), data.min() + 1))
    counts, _ = np.histogram(data, distributions_module.N_FINE, (low, high))
    distribution = Distribution("area_um2", low, high, counts[None])
    step = (high - low) / distributions_module.N_FINE
    for share in (0.1, 0.5, 0.9):
        (found,) = distribution.quantiles(0, (share,))
        assert (data <= found + step).mean() >= share - 1e-9
        assert (data < found - step).mean() <= share + 1e-9
    binned, edges = distribution.binned(low, high, n_bins)
    assert binned.sum() == len(data)
    assert len(edges) == binned.shape[1] + 1 <= n_bins + 1
    assert edges[0] == pytest.approx(low)


def test_measurements_are_found_in_the_schema(store: PanopticStore, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dents = rng.uniform(0, 1, store.n_nuclei).astype(np.float32)

    def change(table: pa.Table) -> pa.Table:
        keep = ["id", "class_id", "score", "area_um2", "centroid_x", "centroid_y", "bbox", "tissue_id", "geometry"]
        table = table.select(keep)
        table = table.append_column("number_of_dents", pa.array(dents, mask=dents > 0.9))
        table = table.append_column("solidity", pa.array(dents))
        table = table.append_column("empty", pa.array(np.full(len(table), np.nan)))
        return table.append_column("note", pa.array(["text"] * len(table)))

    measured = distributions(frame_of(with_table(store, tmp_path, change)))
    assert list(measured) == ["area_um2", "solidity", "number_of_dents", "score"]
    assert measured["solidity"].counts.sum() == store.n_nuclei
    assert measured["number_of_dents"].counts.sum() == (dents <= 0.9).sum()
    assert measured["number_of_dents"].title == "Number of dents"


# Fields


def test_fields_are_where_the_most_nuclei_are(store: PanopticStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tally_module, fields_module):
        monkeypatch.setattr(module, "FIELD_UM", 25.0)
    frame = frame_of(store)
    fields = choose_fields(frame, count(frame))
    assert 6 <= len(fields) <= MAX_FIELDS
    assert fields == choose_fields(frame, count(frame))
    table = store.nuclei(["class", "tissue", "centroid_x", "centroid_y"])
    names, tissues = (np.array(table[column].to_pylist()) for column in ("class", "tissue"))
    # 300 x 420 pixels of 0.5 um are 6 x 8 bins of 50 x 52.5 pixels, of two level-0 pixels each.
    y, x = (table["centroid_" + axis].to_numpy() for axis in "yx")
    bins = (y // 100).astype(int) * 8 + (x // 105).astype(int)
    bins_of_fields = [f.box.y0 // 50 * 8 + int(f.box.x0 // 52.5) for f in fields]
    assert len(set(bins_of_fields)) == len(fields)
    for f, here in zip(fields, bins_of_fields, strict=True):
        assert f.box.shape == (50, 50)
        assert Box.of_shape(store.shape).contains(f.box)
        for reason in f.reason.split(", "):
            kind = re.fullmatch(r"most (.+) nuclei", reason)
            tissue = re.fullmatch(r"most nuclei in (.+)", reason)
            assert kind or tissue or reason == "among the most nuclei"
            mine = names == kind[1] if kind else tissues == tissue[1] if tissue else np.ones(len(names), bool)
            counts = np.bincount(bins[mine], minlength=48)
            assert counts[here] >= (counts.max() if kind or tissue else np.sort(counts)[-MAX_FIELDS])


def test_outlines_lie_on_the_slide(with_slide: tuple[PanopticStore, Path], tmp_path: Path) -> None:
    store, slide = with_slide
    write_report(store, tmp_path / "page.html", slide)
    page = read(tmp_path / "page.html")
    frame = frame_of(store)
    fields = choose_fields(frame, count(frame))
    pictures = page.attributes("image")
    assert len(pictures) == 2 + len(fields)  # after the two overviews
    box = fields[0].box.scaled(2.0)
    with open_slide(slide) as pixels:
        expected = pixels.read(0, box).astype(np.float64)
    shown = decoded(pictures[2]["href"])
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).mean() < 6  # JPEG
    drawn = [values for values in page.attributes("path") if values.get("class") == "outline"]
    table = store.nuclei(["class", "geometry"], fields[0].box)
    polygons, names = shapely.from_wkb(table["geometry"].to_numpy()), np.array(table["class"].to_pylist())
    for values in drawn[: len(set(names))]:
        thing = next(c for c in DEFAULT_CLASSES.things if values["stroke"] == "rgb({},{},{})".format(*c.color))
        found = [ring_of(ring) for ring in values["d"].split("Z") if ring]
        for polygon in polygons[names == thing.name]:
            ring = shapely.Polygon(shapely.get_coordinates(polygon.exterior) - (box.x0, box.y0))
            assert max(ring.intersection(other).area / ring.union(other).area for other in found) > 0.95


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))), np.float64)


def ring_of(path: str) -> shapely.Polygon:
    return shapely.Polygon([tuple(map(float, point.split())) for point in path.removeprefix("M").split("L")])


# The slide


def n_fields(path: Path) -> int:
    return sum(values.get("class") == "field" for values in read(path).attributes("figure"))


def test_a_slide_beside_the_store_is_found(with_slide: tuple[PanopticStore, Path], tmp_path: Path) -> None:
    store, slide = with_slide
    write_report(store, tmp_path / "without.html")
    assert n_fields(tmp_path / "without.html") == 0
    assert "it does not lie beside the store" in read(tmp_path / "without.html").text
    beside = store.path.parent / slide.name
    shutil.copy(slide, beside)
    try:
        write_report(store, tmp_path / "beside.html")
    finally:
        beside.unlink()
    write_report(store, tmp_path / "given.html", slide)
    assert n_fields(tmp_path / "given.html") >= 1
    assert (tmp_path / "beside.html").read_bytes() == (tmp_path / "given.html").read_bytes()


def test_the_image_in_the_store_is_a_slide(tmp_path: Path) -> None:
    image = np.full((2 * SHAPE[0], 2 * SHAPE[1], 3), 255, np.uint8)
    image[:, SHAPE[1] :] = (200, 100, 150)
    store = make_store(tmp_path / "slide.ome.zarr", random_truth(SHAPE, 500), image=image)
    write_report(store, tmp_path / "page.html")
    assert n_fields(tmp_path / "page.html") >= 1
    frame = frame_of(store)
    box = choose_fields(frame, count(frame))[0].box.scaled(2.0)
    shown = decoded(read(tmp_path / "page.html").attributes("image")[2]["href"])
    assert np.abs(shown - image[box.y0 : box.y1, box.x0 : box.x1]).mean() < 6


def test_another_slide_is_never_shown(with_slide: tuple[PanopticStore, Path], tmp_path: Path) -> None:
    store, slide = with_slide
    other = store.path.parent / slide.name
    write_slide(SyntheticScene((2 * SHAPE[0], 2 * SHAPE[1]), seed=5), other, levels=2)
    try:
        with pytest.raises(SlideError, match=r"not the slide that .* was made from"):
            write_report(store, tmp_path / "page.html", other)
        assert not (tmp_path / "page.html").exists()
        write_report(store, tmp_path / "page.html")
    finally:
        other.unlink()
    assert n_fields(tmp_path / "page.html") == 0
    text = read(tmp_path / "page.html").text
    assert "case.tif was found but cannot be used" in text
    assert str(store.path.parent) not in text
    with pytest.raises(SlideError, match="no such file"):
        write_report(store, tmp_path / "page.html", tmp_path / "nothing.svs")


@pytest.mark.parametrize("name", ["../slides/case.tif", "..", "", 5, None, "case.tif\0"])
def test_the_recorded_name_is_no_path(with_slide: tuple[PanopticStore, Path], tmp_path: Path, name: object) -> None:
    store, slide = with_slide
    (tmp_path / "out").mkdir()
    (tmp_path / "slides").mkdir()
    shutil.copy(slide, tmp_path / "slides")
    changed = edited(store, tmp_path / "out", lambda attributes: attributes["slide"].update(name=name))
    write_report(changed, tmp_path / "page.html")
    assert n_fields(tmp_path / "page.html") == 0


def test_a_damaged_slide_spoils_no_report(
    with_slide: tuple[PanopticStore, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, slide = with_slide
    copy = edited(store, tmp_path, lambda attributes: None)
    shutil.copy(slide, tmp_path / slide.name)

    def fails(self: SlideView, box: Box) -> np.ndarray:
        raise SlideError(f"{self.slide.path}: a tile is damaged")

    monkeypatch.setattr(SlideView, "read", fails)
    write_report(copy, tmp_path / "page.html")
    text = read(tmp_path / "page.html").text
    assert "The slide beside the store is damaged (case.tif: a tile is damaged)" in text
    assert number(read(tmp_path / "page.html").tables["classes"][-1][1]) == store.n_nuclei
    with pytest.raises(SlideError, match="a tile is damaged"):
        write_report(copy, tmp_path / "given.html", slide)


# Hostile names


EVIL = (
    "<script>alert(1)</script>",
    "\"onmouseover=alert(1) x='",
    "</title><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}{0$ & ]]> &amp;",
    "\u202egnp.\x07\u200b\udcff",
    "javascript:alert(1)//" + "long " * 200,
)


def is_harmless(page: Page) -> bool:
    """Whether the page runs nothing and loads nothing."""
    if {name for name, _ in page.tags} & {"script", "iframe", "object", "embed", "link", "base", "form", "a"}:
        return False
    for _, values in page.tags:
        if any(name.startswith("on") for name in values):
            return False
        sources = [value for name, value in values.items() if name in ("src", "href", "xlink:href", "data", "action")]
        if not all(value.startswith(("data:image/jpeg;base64,", "data:image/svg+xml;base64,")) for value in sources):
            return False
    return True


@pytest.mark.parametrize("evil", EVIL)
def test_names_from_files_are_only_text(store: PanopticStore, tmp_path: Path, evil: str) -> None:
    def change(attributes: dict[str, Any]) -> None:
        attributes["slide"] |= {"name": evil, "format": evil, "fingerprint": [evil]}
        attributes["model"] = {"name": evil, "licence": {evil: evil}, "sha256": evil}
        attributes["config"] = {evil: evil, "nucleipan": evil, "inner": {evil: [evil]}}
        attributes["stitching"] |= {"n_cut": evil, "n_seam": evil, "n_nuclei": evil}
        for c in attributes["classes"]:
            c["name"] = f"{c['id']}{evil}" if c["name"] != "background" else c["name"]

    write_report(edited(store, tmp_path, change), tmp_path / "page.html")
    page = read(tmp_path / "page.html")
    assert is_harmless(page)
    text = evil.translate(dict.fromkeys([0x202E, 7, 0x200B, 0xDCFF], 0xFFFD))
    shown = " ".join(text.split())
    assert shown in page.text
    assert [name for name, _ in page.tags].count("title") == 1
    assert number(page.tables["classes"][-1][1]) == store.n_nuclei
    assert page.tables["classes"][1][0] == f"1{shown}"


def test_the_check_for_harm_sees_harm() -> None:
    for bad in (
        "<script>1</script>",
        "<p onclick=x>",
        "<img src=http://a.b/c>",
        "<a href=#>",
        "<img src=data:text/html,>",
    ):
        reader = _Reader()
        reader.feed(bad)
        assert not is_harmless(reader.page)


def test_the_page_needs_nothing_else(with_slide: tuple[PanopticStore, Path], tmp_path: Path) -> None:
    store, slide = with_slide
    write_report(store, tmp_path / "page.html", slide)
    document = (tmp_path / "page.html").read_text()
    page = read(tmp_path / "page.html")
    assert is_harmless(page)
    policy = next(values for values in page.attributes("meta") if values.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    style = document[document.index("<style>") : document.index("</style>")]
    assert not re.search(r"url\(|@import|https?:", style)
    assert not re.search(r"https?://", document)
    plots = [values["src"] for values in page.attributes("img")]
    assert len(plots) >= 8
    for plot in plots:
        svg = base64.b64decode(plot.split(",")[1]).decode()
        links = re.findall(r'href="([^"]*)"', svg)
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)


# The file


def test_the_same_store_gives_the_same_page(store: PanopticStore, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_report(store, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_an_interrupted_report_leaves_what_was_there(
    store: PanopticStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    path.write_text("earlier")
    whole = Path.write_bytes

    def half(self: Path, content: bytes) -> int:
        whole(self, content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        write_report(store, path)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_that_cannot_be_written_says_so(store: PanopticStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_report(store, tmp_path / "file" / "page.html")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_named(package: str, tmp_path: Path, store: PanopticStore) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
from pathlib import Path
from nucleipan.errors import ConfigError
from nucleipan.report import write_report
from nucleipan.store import PanopticStore
try:
    write_report(PanopticStore.open({str(store.path)!r}), Path({str(tmp_path / "page.html")!r}))
except ConfigError as error:
    print(error)
assert not {{"torch", "monai", "matplotlib.pyplot"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"a report needs the package {package}; pip install 'nucleipan[report]'"


def test_reports_load_no_deep_learning_and_share_no_plots(store: PanopticStore, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from nucleipan.report import write_report
from nucleipan.store import PanopticStore
write_report(PanopticStore.open({str(store.path)!r}), Path({str(tmp_path / "page.html")!r}))
assert not {{"torch", "monai", "matplotlib.pyplot"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").is_file()


# Stores that make no sense


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mpp": float("nan")}, "its mpp is nan"),
        ({"mpp": "0.5"}, "its mpp is '0.5'"),
        ({"level0_per_pixel": 0}, "its level0_per_pixel is 0"),
        ({"shape": [10**9, 10**9]}, "its shape is"),
        ({"shape": [SHAPE[0], SHAPE[1] + 1]}, "labels/nuclei spans"),
        ({"extent": [0, 0, 10**6, 10]}, "is no part of its shape"),
        ({"extent": [5, 5, 5, 50]}, "is no part of its shape"),
        ({"slide": "slide.svs"}, "its slide is"),
        ({"model": None}, "its model is None"),
    ],
)
def test_contradictions_are_refused(store: PanopticStore, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=re.escape(message)):
        write_report(edited(store, tmp_path, lambda attributes: attributes.update(change)), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("class_id", 7, "class_id 7"),
        ("class_id", 200, "class_id 200"),
        ("tissue_id", 1, "tissue_id 1"),
        ("centroid_x", float("nan"), "no place"),
        ("area_um2", float("inf"), "no area"),
    ],
)
def test_impossible_nuclei_are_refused(
    store: PanopticStore, tmp_path: Path, column: str, value: float, message: str
) -> None:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_numpy().copy()
        values[3] = value
        return table.set_column(table.schema.get_field_index(column), column, pa.array(values))

    with pytest.raises(StoreError, match=message):
        write_report(with_table(store, tmp_path, change), tmp_path / "page.html")


def test_columns_of_another_kind_are_refused(store: PanopticStore, tmp_path: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        text = pa.array(["1"] * len(table))
        return table.set_column(table.schema.get_field_index("class_id"), "class_id", text)

    with pytest.raises(StoreError, match="holds string where numbers belong"):
        write_report(with_table(store, tmp_path, change), tmp_path / "page.html")


def test_damaged_outlines_are_refused(with_slide: tuple[PanopticStore, Path], tmp_path: Path) -> None:
    store, slide = with_slide

    def change(table: pa.Table) -> pa.Table:
        blob = pa.array([b"\x01\x03"] * len(table), pa.binary())
        return table.set_column(table.schema.get_field_index("geometry"), "geometry", blob)

    with pytest.raises(StoreError, match="an outline is damaged"):
        write_report(with_table(store, tmp_path, change), tmp_path / "page.html", slide)


# In a browser


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
def test_a_browser_shows_it(with_slide: tuple[PanopticStore, Path], tmp_path: Path) -> None:
    store, slide = with_slide
    write_report(store, tmp_path / "page.html", slide)
    picture = tmp_path / "page.png"
    subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1120,5000",
            f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", (tmp_path / "page.html").as_uri(),
        ],
        check=True, capture_output=True, timeout=120, env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    shown = np.asarray(Image.open(picture).convert("RGB"))
    rows = np.flatnonzero((shown < 250).any((1, 2)))
    assert rows[-1] > 2500  # all sections, none of which is empty
    assert np.diff(rows).max() < 200
    for thing in DEFAULT_CLASSES.things:
        assert (shown == thing.color).all(2).sum() > 50
    banner = (shown == (0xFF, 0xF8, 0xE1)).all(2)
    assert banner.sum() > 10_000
