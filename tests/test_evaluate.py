"""Folders of labels and stores in, scores out."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import imagecodecs
import numpy as np
import pyarrow as pa
import pytest
import tifffile
from rich.console import Console
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.classes import DEFAULT_CLASSES, PanopticClasses
from nucleipan.errors import DataError
from nucleipan.evaluate import evaluate_folders, evaluate_pairs, reading
from nucleipan.geometry import Box
from nucleipan.metrics import pair_centroids, pair_centroids_globally
from nucleipan.metrics.grids import nearest_pixels
from nucleipan.stitch import StitchContext
from nucleipan.tiles import TileGrid

WHOLE = Box(0, 0, 64, 64)
NAMES = {"1": "neoplastic", "2": ["inflammatory"], "3": ["connective", "dead or other"], "5": None, "7": "neoplastic"}


def nuclei(side: int = 64, step: int = 16) -> np.ndarray:
    """uint16 squares of 8 x 8 on a grid, ids in raster order."""
    cell = np.zeros((step, step), np.uint16)
    cell[4:12, 4:12] = 1
    n = side // step
    return np.kron(np.arange(1, n * n + 1, dtype=np.uint16).reshape(n, n), cell)


def write_plane(path: Path, plane: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(plane))
    elif path.suffix == ".npy":
        np.save(path, plane)
    else:
        tifffile.imwrite(path, plane)


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_truth(folder: Path, stems: tuple[str, ...] = ("a", "b")) -> np.ndarray:
    """Nuclei of classes 1, 2, 1, 2, ... on tissue 1 | 2, with names."""
    plane = nuclei()
    tissue = np.ones((64, 64), np.uint8)
    tissue[:, 32:] = 2
    tissue[:4] = 255
    for stem in stems:
        write_plane(folder / "labels" / f"{stem}.png", plane)
        write_json(folder / "classes" / f"{stem}.json", {str(i): 1 + i % 2 for i in range(1, 17)})
        write_plane(folder / "tissue" / f"{stem}.png", tissue)
    write_json(folder / "class_names.json", {"1": "neoplastic", "2": "inflammatory"})
    write_json(folder / "tissue_names.json", {"1": ["tumour epithelium", "necrosis or debris"], "2": "stroma"})
    return plane


@dataclass(frozen=True)
class FakeStore:
    """What evaluation asks of a store."""

    ids: np.ndarray
    plane: np.ndarray
    class_of: dict[int, int]
    classes: PanopticClasses = DEFAULT_CLASSES
    level0_per_pixel: float = 1.0
    extent: Box = WHOLE

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.ids.shape
        return height, width

    @property
    def spec(self) -> FakeStore:
        return self

    def instances(self) -> np.ndarray:
        return self.ids.astype(np.uint32)

    def class_map(self) -> np.ndarray:
        return self.plane.astype(np.uint8)

    def nuclei(self, columns: list[str]) -> pa.Table:
        table = {"id": list(self.class_of), "class_id": list(self.class_of.values())}
        table["tissue_id"] = [7 if i % 4 in (1, 2) else 9 for i in self.class_of]
        return pa.table(table).select(columns)


def perfect_store(step: int = 1) -> FakeStore:
    """What ``write_truth`` wrote, in a grid ``step`` times as coarse."""
    ids = nuclei()
    class_of = {i: 1 + i % 2 for i in range(1, 17)}
    lut = np.array([0, *class_of.values()])
    tissue = np.where(np.arange(64) < 32, 7, 9)[None].repeat(64, 0)
    planes = ids[::step, ::step], np.where(ids > 0, lut[ids], tissue)[::step, ::step]
    return FakeStore(*planes, class_of, level0_per_pixel=step, extent=Box.of_shape(planes[0].shape))


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, FakeStore]:
    """A folder ``pred`` whose stores are the ones put into this dictionary by stem."""
    contents: dict[str, FakeStore] = {}
    monkeypatch.setattr(reading, "_open_store", lambda path: contents[path.name.removesuffix(".ome.zarr")])
    for stem in "abc":
        (tmp_path / "pred" / f"{stem}.ome.zarr").mkdir(parents=True)
        contents[stem] = perfect_store()
    return contents


def test_labels_against_themselves_are_perfect(tmp_path: Path) -> None:
    write_truth(tmp_path)
    evaluation = evaluate_folders(tmp_path, tmp_path)
    assert set(evaluation.summary().values()) == {1.0}
    assert evaluation.classes == ("neoplastic", "inflammatory")
    assert evaluation.tissues == ("tumour epithelium + necrosis or debris", "stroma")
    assert evaluation.notes == evaluation.unmatched_predictions == ()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".npy"])
def test_planes_of_every_format(tmp_path: Path, suffix: str) -> None:
    write_truth(tmp_path / "truth", ("a",))
    write_plane(tmp_path / "pred" / "labels" / f"a{suffix}", nuclei())
    evaluation = evaluate_folders(tmp_path / "pred", tmp_path / "truth")
    assert evaluation.summary()["PQ"] == 1.0
    assert any("classes not scored" in note for note in evaluation.notes)
    assert any("tissue not scored" in note for note in evaluation.notes)


@pytest.mark.parametrize("step", [1, 2])
def test_stores_are_scored_by_class_name_at_any_scale(tmp_path: Path, stores: dict[str, FakeStore], step: int) -> None:
    write_truth(tmp_path / "truth")
    stores |= {stem: perfect_store(step) for stem in stores}
    evaluation = evaluate_folders(tmp_path / "pred", tmp_path / "truth")
    assert set(evaluation.summary().values()) == {1.0}
    assert evaluation.unmatched_predictions == ("c",)
    assert [i.scale for i in evaluation.images] == [step, step]


def test_a_wrong_class_costs_the_class_and_not_the_nucleus(tmp_path: Path, stores: dict[str, FakeStore]) -> None:
    write_truth(tmp_path / "truth", ("a",))
    good = perfect_store()
    stores["a"] = FakeStore(good.ids, good.plane, good.class_of | {1: 1, 3: 4})  # both are inflammatory in truth
    evaluation = evaluate_folders(tmp_path / "pred", tmp_path / "truth")
    assert evaluation.summary()["PQ"] == evaluation.summary()["Fd"] == 1.0
    neoplastic, inflammatory = evaluation.class_qualities
    assert (neoplastic.tp, neoplastic.fp, neoplastic.fn) == (8, 1, 0)
    assert (inflammatory.tp, inflammatory.fp, inflammatory.fn) == (6, 0, 2)
    assert evaluation.classification[0].f1 == pytest.approx(16 / (16 + 2))
    assert evaluation.classification[1].f1 == pytest.approx(12 / (12 + 4))


def test_numbers_can_share_and_lack_a_meaning(tmp_path: Path, stores: dict[str, FakeStore]) -> None:
    write_plane(tmp_path / "truth" / "labels" / "a.png", nuclei())
    write_json(tmp_path / "truth" / "classes" / "a.json", {str(i): (1, 2, 3, 5, 7)[i % 5] for i in range(1, 16)})
    write_json(tmp_path / "truth" / "class_names.json", NAMES)
    good = perfect_store()
    stores["a"] = FakeStore(good.ids, good.plane, {i: (1, 2, 4, 5, 1)[i % 5] for i in range(1, 17)})
    evaluation = evaluate_folders(tmp_path / "pred", tmp_path / "truth")
    assert evaluation.classes == ("neoplastic", "inflammatory", "connective + dead or other")
    # Nucleus 16 has no class and number 5 means nobody knows: neither is held against any class.
    assert evaluation.summary()["mPQ+"] == evaluation.summary()["mean Fc"] == 1.0


def test_predictions_may_have_names_of_their_own(tmp_path: Path) -> None:
    write_truth(tmp_path / "truth", ("a",))
    write_truth(tmp_path / "pred", ("a",))
    write_json(tmp_path / "pred" / "class_names.json", {"1": "inflammatory", "2": "neoplastic"})
    assert evaluate_folders(tmp_path / "pred", tmp_path / "truth").summary()["mPQ+"] == 0.0


def test_what_cannot_be_scored_is_said(tmp_path: Path, stores: dict[str, FakeStore]) -> None:
    write_truth(tmp_path / "truth")
    (tmp_path / "truth" / "class_names.json").unlink()
    write_json(tmp_path / "truth" / "tissue_names.json", {"1": "tumor", "2": "stroma"})
    evaluation = evaluate_folders(tmp_path / "pred", tmp_path / "truth")
    assert evaluation.classes == ()
    assert "class_names.json is missing" in evaluation.notes[0]
    assert "no prediction knows 'tumor'" in evaluation.notes[1]
    stores["a"] = replace(stores["a"], extent=Box(0, 0, 64, 32))
    assert "a is segmented only in" in evaluate_folders(tmp_path / "pred", tmp_path / "truth").notes[2]


def test_mistakes_are_named(tmp_path: Path) -> None:
    truth, pred = tmp_path / "truth", tmp_path / "pred"
    with pytest.raises(DataError, match="holds neither"):
        evaluate_folders(pred, truth)
    write_truth(truth)
    write_plane(pred / "labels" / "b.png", nuclei())
    with pytest.raises(DataError, match=r"1 of 2 truths have no prediction.*: a"):
        evaluate_folders(pred, truth)
    write_plane(pred / "labels" / "a.png", nuclei()[:48])
    with pytest.raises(DataError, match=r"a: .*\(48, 64\).*\(64, 64\)"):
        evaluate_folders(pred, truth)
    write_json(truth / "class_names.json", {"1": "neoplastic"})
    with pytest.raises(DataError, match=r"numbers \[2\]"):
        evaluate_folders(truth, truth)
    write_json(truth / "class_names.json", NAMES | {"4": "connective"})
    with pytest.raises(DataError, match="overlap"):
        evaluate_folders(truth, truth)


def test_tissue_alone_is_enough(tmp_path: Path, stores: dict[str, FakeStore]) -> None:
    tissue = np.where(np.arange(64) < 48, 1, 2)[None].repeat(64, 0).astype(np.uint8)
    write_plane(tmp_path / "truth" / "tissue" / "a.png", tissue)
    write_json(tmp_path / "truth" / "tissue_names.json", {"1": "tumour epithelium", "2": "stroma"})
    evaluation = evaluate_folders(tmp_path / "pred", tmp_path / "truth")
    summary = evaluation.summary()
    assert math.isnan(summary["PQ"])
    assert summary["tissue accuracy"] == pytest.approx(0.75)
    assert summary["tissue balanced accuracy"] == pytest.approx((32 / 48 + 1) / 2)


def test_json_and_tables(tmp_path: Path) -> None:
    write_truth(tmp_path)
    (tmp_path / "labels" / "empty.png").write_bytes(imagecodecs.png_encode(np.zeros((64, 64), np.uint16)))
    write_json(tmp_path / "classes" / "empty.json", {})
    write_plane(tmp_path / "tissue" / "empty.png", np.full((64, 64), 255, np.uint8))
    evaluation = evaluate_folders(tmp_path, tmp_path)
    document = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert document["summary"]["PQ"] == 1.0
    assert [i["PQ"] for i in document["images"]] == [1.0, 1.0, None]
    assert document["classes"]["inflammatory"]["TP"] == 16
    assert document["mistakes"]["merged"] == {"count": 0, "per true nucleus": 0.0}
    assert [i["mistakes"]["missed"]["count"] for i in document["images"]] == [0, 0, 0]
    console = Console(file=io.StringIO(), width=200)
    evaluation.print_table(console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("AJI+", "mPQ+", "bPQ", "Fd", "Fc", "inflammatory", "stroma", "empty", "panoptic PQ"):
        assert word in printed


def test_arrays_without_files() -> None:
    ids = nuclei().astype(np.int32)
    plane = np.where(ids > 0, 1 + ids % 2, 0)
    by_id = np.array([0] + [1 + i % 2 for i in range(1, 17)])
    evaluation = evaluate_pairs([("x", ids, plane, ids, by_id)], classes=("one", "two"), radius_px=6)
    assert set(evaluation.summary().values()) == {1.0}
    with pytest.raises(DataError, match="x: nucleus 16"):
        evaluate_pairs([("x", ids, plane, ids, by_id[:-1])], classes=("one", "two"))
    with pytest.raises(DataError, match=r"expected 0\.\.1"):
        evaluate_pairs([("x", ids, plane, ids, by_id)], classes=("one",))


def test_means_and_pools_differ_as_the_papers_say() -> None:
    """One image of one perfect nucleus and one of 16 nuclei without a prediction, classes apart."""
    ids, nothing = nuclei(), np.zeros((64, 64), np.uint16)
    single = np.where(ids == 1, ids, 0)
    classes = np.full(17, 2)
    classes[1] = 1
    pairs = [
        ("one", single, classes, single, classes),
        ("many", nothing, classes, ids, classes),
        ("none", nothing, classes, nothing, classes),
    ]
    summary = evaluate_pairs(pairs, classes=("a", "b")).summary()
    assert summary["PQ"] == summary["bPQ"] == 0.5
    assert summary["PQ pooled"] == pytest.approx(1 / (1 + 8))
    assert summary["mPQ"] == 0.5
    assert summary["mPQ+"] == pytest.approx((1 / 1.5 + 0) / 2)


@pytest.mark.parametrize(("pred", "true"), [((500, 400), (1000, 800)), ((501, 334), (1001, 667)), ((80, 60), (40, 30))])
def test_nearest_pixels_hold_the_centres(pred: tuple[int, int], true: tuple[int, int]) -> None:
    rows, cols, scale = nearest_pixels(pred, true)
    assert scale == pytest.approx(true[0] / pred[0], rel=0.01)
    for index, n_pred, n_true in ((rows, pred[0], true[0]), (cols, pred[1], true[1])):
        centres = (np.arange(n_true) + 0.5) * n_pred / n_true
        assert ((index <= centres) & (centres < index + 1)).all()


@pytest.mark.parametrize(("tall", "wide"), [((199, 51), (101, 25)), ((51, 199), (25, 101)), ((205, 49), (101, 25))])
def test_which_grid_is_finer_is_told_by_all_its_pixels(tall: tuple[int, int], wide: tuple[int, int]) -> None:
    """Shapes that lost up to a pixel of the coarser grid, more along one axis than along the other."""
    assert nearest_pixels(tall, wide)[2] == pytest.approx(0.5, rel=0.03)
    assert nearest_pixels(wide, tall)[2] == pytest.approx(2, rel=0.03)


def test_mpq_is_listed_where_kinds_are_known() -> None:
    ids, kinds = nuclei(), np.ones(17, int)
    kinds[0] = 0
    with_kinds = evaluate_pairs([("a", ids, kinds, ids, kinds)], classes=("a",))
    without = evaluate_pairs([("a", ids, None, ids, None)])
    for document, listed in ((with_kinds.to_json(), True), (without.to_json(), False)):
        assert ("mPQ" in document["summary"]) == listed
        assert all(("mPQ" in row) == listed for row in document["images"])


def test_the_slide_scale_wins_over_the_ratio_of_rounded_shapes() -> None:
    rows, _, scale = nearest_pixels((501, 501), (1001, 1001), 2.0)
    assert scale == 2.0
    np.testing.assert_array_equal(rows, np.arange(1001) // 2)
    assert nearest_pixels((500, 500), (1000, 1000), 4.0)[2] == 2.0


def test_a_stitched_store_of_the_truth_is_perfect(tmp_path: Path) -> None:
    """A real store at half the truth's resolution: ids, classes by name and tissue under nuclei all survive."""
    truth = random_truth((150, 190), 60)
    context = StitchContext(TileGrid((150, 190), Box(0, 0, 150, 190), 80, 64, 1), level0_per_pixel=2.0)
    stitch_oracle(tmp_path / "pred" / "slide.ome.zarr", truth, context)
    twice = np.ones((2, 2), np.uint8)
    write_plane(tmp_path / "truth" / "labels" / "slide.tif", np.kron(truth.instances, twice).astype(np.uint32))
    class_of = DEFAULT_CLASSES.thing_ids[truth.probabilities.argmax(1)]
    write_json(tmp_path / "truth" / "classes" / "slide.json", {str(i): int(c) for i, c in enumerate(class_of, 1)})
    stuff = np.where(truth.instances > 0, 255, truth.stuff)
    write_plane(tmp_path / "truth" / "tissue" / "slide.png", np.kron(stuff, twice).astype(np.uint8))
    for part, classes in (("class", DEFAULT_CLASSES.things), ("tissue", DEFAULT_CLASSES.stuff)):
        write_json(tmp_path / "truth" / f"{part}_names.json", {str(c.id): c.name for c in classes})
    evaluation = evaluate_folders(tmp_path / "pred", tmp_path / "truth")
    assert set(evaluation.summary().values()) == {1.0}
    assert evaluation.images[0].scale == 2.0
    assert evaluation.notes == ()


def test_the_pairing_of_published_tables_can_be_asked_for() -> None:
    """Two nuclei on a line of which global pairing finds none; the document says which pairing was used."""
    true, pred = np.zeros((2, 120, 6), np.uint16)
    true[2, 2], true[57, 2] = 1, 2
    pred[52, 2], pred[107, 2] = 1, 2
    found = [evaluate_pairs([("x", pred, None, true, None)], pair=p) for p in (pair_centroids, pair_centroids_globally)]
    assert [e.summary()["Fd"] for e in found] == [0.5, 0.0]
    assert found[1].to_json()["pairing"] == "pair_centroids_globally"


def test_evaluation_needs_no_torch() -> None:
    code = "import sys, nucleipan.evaluate, nucleipan.overlay; print({'torch', 'monai'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
