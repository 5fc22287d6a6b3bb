"""A store is finished or resumable, never in between, and tells whose it is."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from stitch_oracle import Truth, finish, oracle_tile, random_truth, spec_of, stitch_oracle

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.errors import RegionError, StoreError
from nucleipan.geometry import Box
from nucleipan.stitch import StitchContext, finished_tiles, tile_record, write_record
from nucleipan.store import PanopticStore, StoreSpec, damaged_files, open_or_resume, partial_path
from nucleipan.tiles import TileGrid

SHAPE = (220, 260)
CONTEXT = StitchContext(TileGrid(SHAPE, Box.of_shape(SHAPE), 100, 50, 1), 2.0)
SPEC = spec_of(CONTEXT.grid)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return random_truth(SHAPE, 250)


@pytest.fixture(scope="module")
def template(truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    return stitch_oracle(tmp_path_factory.mktemp("store") / "slide.ome.zarr", truth, CONTEXT)[0]


@pytest.fixture
def finished(template: PanopticStore, tmp_path: Path) -> PanopticStore:
    shutil.copytree(template.path, tmp_path / "slide.ome.zarr")
    return PanopticStore.open(tmp_path / "slide.ome.zarr")


def compute(folder: Path, truth: Truth) -> None:
    for tile in CONTEXT.grid:
        write_record(folder, tile_record(oracle_tile(truth, tile), CONTEXT))


# Specs


def test_a_spec_survives_json() -> None:
    again = StoreSpec.from_dict(json.loads(json.dumps(SPEC.to_dict())))
    assert again.differences(SPEC) == []
    assert again == SPEC


def test_differences_name_the_field() -> None:
    other = spec_of(CONTEXT.grid, config={"decode": {"threshold": 0.4}}, mpp=0.25)
    assert SPEC.differences(other) == ["config.decode.threshold: 0.5 here, 0.4 there", "mpp: 0.5 here, 0.25 there"]


# Starting and resuming


def test_a_run_starts_empty_and_resumes_with_its_tiles(tmp_path: Path, truth: Truth) -> None:
    path = tmp_path / "out" / "slide.ome.zarr"
    run = open_or_resume(path, SPEC)
    assert (run.is_finished, run.is_resumed) == (False, False)
    assert finished_tiles(run.tiles_folder, CONTEXT.grid) == []
    compute(run.tiles_folder, truth)
    again = open_or_resume(path, SPEC, overwrite=True)
    assert again.is_resumed
    assert finished_tiles(again.tiles_folder, CONTEXT.grid) == list(CONTEXT.grid)


def test_an_unfinished_run_of_another_kind_is_refused_or_discarded(tmp_path: Path, truth: Truth) -> None:
    path = tmp_path / "slide.ome.zarr"
    compute(open_or_resume(path, SPEC).tiles_folder, truth)
    other = spec_of(CONTEXT.grid, model={"name": "large", "sha256": "00", "licence": "Apache-2.0"})
    with pytest.raises(StoreError, match=r"model.name: 'large' here, 'oracle' there; pass --overwrite"):
        open_or_resume(path, other)
    run = open_or_resume(path, other, overwrite=True)
    assert not run.is_resumed
    assert finished_tiles(run.tiles_folder, CONTEXT.grid) == []


def test_a_damaged_run_file_is_refused_or_discarded(tmp_path: Path) -> None:
    path = tmp_path / "slide.ome.zarr"
    run = open_or_resume(path, SPEC)
    (run.folder / "run.json").write_text("{")
    with pytest.raises(StoreError, match=r"damaged run\.json"):
        open_or_resume(path, SPEC)
    assert not open_or_resume(path, SPEC, overwrite=True).is_resumed


def test_a_finished_store_says_so(finished: PanopticStore) -> None:
    assert open_or_resume(finished.path, SPEC).is_finished
    with pytest.raises(StoreError, match=r"slide\.fingerprint: 'zz' here, 'ab12' there"):
        open_or_resume(finished.path, spec_of(CONTEXT.grid, slide=SPEC.slide | {"fingerprint": "zz"}))


def test_something_else_under_the_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slide.ome.zarr"
    path.mkdir()
    with pytest.raises(StoreError, match="not written by nucleipan"):
        open_or_resume(path, SPEC)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written") as caught:
        open_or_resume(tmp_path / "file" / "slide.ome.zarr", SPEC)
    assert "\n" not in str(caught.value)


# Finishing


def test_overwriting_keeps_the_old_store_until_the_new_one_is_whole(finished: PanopticStore, truth: Truth) -> None:
    other = dataclasses.replace(truth, scores=truth.scores / 2)
    run = open_or_resume(finished.path, SPEC, overwrite=True)
    compute(run.tiles_folder, other)
    assert PanopticStore.open(finished.path).n_nuclei == finished.n_nuclei
    with pytest.raises(StoreError, match="not complete"):
        run.publish()
    store, _ = finish(finished.path, run.tiles_folder, CONTEXT, overwrite=True)
    np.testing.assert_array_equal(store.nuclei(["score"])["score"].to_numpy(), truth.scores / 2)
    assert [p.name for p in finished.path.parent.iterdir()] == [finished.path.name]


def test_what_people_corrected_is_never_replaced(finished: PanopticStore, truth: Truth) -> None:
    run = open_or_resume(finished.path, SPEC, overwrite=True)
    compute(run.tiles_folder, truth)
    finished.edits_folder.mkdir()
    open_or_resume(finished.path, SPEC, overwrite=True)  # an empty folder is no correction
    (finished.edits_folder / "000001.tif").write_bytes(b"work of an hour")
    with pytest.raises(StoreError, match="corrections that people made"):
        open_or_resume(finished.path, SPEC, overwrite=True)
    with pytest.raises(StoreError, match="corrections that people made"):  # made while the slide was segmented again
        finish(finished.path, run.tiles_folder, CONTEXT, overwrite=True)
    assert (finished.edits_folder / "000001.tif").read_bytes() == b"work of an hour"
    (run.folder / "zarr.json").touch()
    with pytest.raises(StoreError, match="corrections that people made"):
        run.publish()
    assert open_or_resume(finished.path, SPEC).is_finished


@pytest.mark.parametrize("killed_after", range(5))
@pytest.mark.parametrize("is_replacing", [False, True])
def test_publication_killed_anywhere_ends_well(
    finished: PanopticStore, monkeypatch: pytest.MonkeyPatch, killed_after: int, is_replacing: bool
) -> None:
    path = finished.path
    shutil.copytree(path, partial_path(path))
    if not is_replacing:
        shutil.rmtree(path)
    (partial_path(path) / "tiles").mkdir()
    (partial_path(path) / "tiles" / "x").touch()
    (partial_path(path) / "run.json").write_text(json.dumps(SPEC.to_dict()))
    run = open_or_resume(path, SPEC, overwrite=True)
    assert run.is_resumed

    steps = 0

    def dying(action: object) -> object:
        def act(*args: object, **options: object) -> object:
            nonlocal steps
            steps += 1
            if steps > killed_after:
                raise KeyboardInterrupt
            return action(*args, **options)  # type: ignore[operator]

        return act

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dying(Path.unlink))
        patch.setattr(os, "rename", dying(os.rename))
        patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
        with contextlib.suppress(KeyboardInterrupt):
            run.publish()
    again = open_or_resume(path, SPEC)
    if killed_after < 2:  # the checksums are listed, the run is still one to resume
        assert again.is_resumed or again.is_finished
        again = open_or_resume(path, SPEC, overwrite=True)
        assert again.is_resumed
        again.publish()
    else:
        assert again.is_finished
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]
    assert PanopticStore.open(path).n_nuclei == finished.n_nuclei
    assert not (path / "tiles").exists()
    assert damaged_files(path) == []


# Reading


def test_what_a_store_tells(finished: PanopticStore) -> None:
    assert finished.shape == SHAPE
    assert finished.mpp == 0.5
    assert finished.classes == DEFAULT_CLASSES
    assert (finished.slide["name"], finished.model["name"]) == ("slide.svs", "oracle")
    assert finished.config == {"decode": {"threshold": 0.5}}
    assert finished.n_levels == 1
    assert finished.overview().shape == (100, 125, 3)
    assert finished.attributes["stitching"]["n_nuclei"] == finished.n_nuclei


def test_boxes_and_levels(finished: PanopticStore) -> None:
    box = Box(13, 27, 150, 201)
    np.testing.assert_array_equal(finished.instances(box), finished.instances()[13:150, 27:201])
    np.testing.assert_array_equal(finished.class_map(box), finished.class_map()[13:150, 27:201])
    with pytest.raises(RegionError, match="leaves the image"):
        finished.instances(Box(0, 0, 221, 10))
    with pytest.raises(RegionError, match="level 1 is outside"):
        finished.instances(level=1)


def test_a_viewport_query_equals_a_filter(finished: PanopticStore) -> None:
    rows = finished.nuclei().to_pylist()
    for box in (Box(50, 60, 120, 100), Box(0, 0, *SHAPE), Box(219, 259, 220, 260), Box(-50, -50, 0, 0)):
        expected = [
            row["id"]
            for row in rows
            if row["bbox"]["xmin"] < box.x1 * 2
            and row["bbox"]["xmax"] > box.x0 * 2
            and row["bbox"]["ymin"] < box.y1 * 2
            and row["bbox"]["ymax"] > box.y0 * 2
        ]
        found = finished.nuclei(["id", "class"], box)
        assert found["id"].to_pylist() == expected
        assert found.column_names == ["id", "class"]
    with pytest.raises(StoreError, match="no column 'size'"):
        finished.nuclei(["size"])


def test_a_viewport_reads_few_row_groups(finished: PanopticStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, i: int, **options: object) -> object:
        read.append(i)
        return original(self, i, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    finished.nuclei(["id"], Box(0, 0, 10, 260))
    assert read == [0]


def test_the_table_is_geoparquet(finished: PanopticStore) -> None:
    schema = pq.read_schema(finished.path / "nuclei.parquet")
    geo = json.loads(schema.metadata[b"geo"])
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    column = geo["columns"]["geometry"]
    assert (column["encoding"], column["geometry_types"], column["crs"]) == ("WKB", ["Polygon"], None)
    assert column["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    assert "probability_non_neoplastic_epithelial" in schema.names
    assert str(schema.field("class").type).startswith("dictionary<values=string")
    table = finished.nuclei()
    names = [finished.classes.by_id(k).name for k in table["class_id"].to_pylist()]
    assert table["class"].to_pylist() == names


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: shutil.rmtree(p), "does not exist"),
        (lambda p: p.rename(partial_path(p)), "is not finished"),
        (lambda p: (p / "zarr.json").unlink(), "no zarr group"),
        (lambda p: (p / "nuclei.parquet").unlink(), r"lacks nuclei\.parquet"),
        (lambda p: shutil.rmtree(p / "labels" / "classes"), "lacks labels/classes/0"),
        (lambda p: _edit(p, lambda a: a.pop("nucleipan")), "not written by nucleipan"),
        (lambda p: _edit(p, lambda a: a["nucleipan"].update(version=99)), "version 99 is newer"),
        (lambda p: _edit(p, lambda a: a["nucleipan"].pop("extent")), "malformed"),
    ],
)
def test_what_is_wrong_with_a_store_is_said(finished: PanopticStore, damage: object, message: str) -> None:
    damage(finished.path)  # type: ignore[operator]
    with pytest.raises(StoreError, match=message):
        PanopticStore.open(finished.path)


def _edit(path: Path, change: object) -> None:
    document = json.loads((path / "zarr.json").read_text())
    change(document["attributes"])  # type: ignore[operator]
    (path / "zarr.json").write_text(json.dumps(document))


def test_reading_and_stitching_need_no_torch() -> None:
    code = (
        "import sys, nucleipan.store, nucleipan.stitch, nucleipan.exports;"
        "sys.exit(bool({'torch', 'monai'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
