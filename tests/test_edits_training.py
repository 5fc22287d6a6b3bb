"""Corrected fields are training data that ``nucleipan train`` reads as they were meant."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from hypothesis import given
from hypothesis import strategies as st
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.config import load_train_config
from nucleipan.datasets import checked, read_nuclei
from nucleipan.edits import (
    EditLog,
    change_class,
    delete_nuclei,
    export_training,
    training_fields,
)
from nucleipan.edits.training_data import _without_overlaps
from nucleipan.errors import ConfigError, DataError, RegionError, SlideError
from nucleipan.exports import ExportOptions, export_store
from nucleipan.geometry import Box
from nucleipan.slide import open_slide
from nucleipan.slide.fingerprint import fingerprint
from nucleipan.stitch import StitchContext
from nucleipan.store import PanopticStore
from nucleipan.tiles import TileGrid
from nucleipan.training.data import CoverTable, read_samples
from nucleipan.training.fit import train_model

SHAPE = (300, 420)
WHOLE = Box.of_shape(SHAPE)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, (*SHAPE, 3), np.uint8)
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64), resolution=(2e4, 2e4), resolutionunit="CENTIMETER")
    return path


@pytest.fixture
def log(slide: Path, tmp_path: Path) -> EditLog:
    context = StitchContext(TileGrid(SHAPE, WHOLE, 500, 50, 1), 1.0)
    store = stitch_oracle(tmp_path / "slide.ome.zarr", random_truth(SHAPE, 250), context, shard=512)[0]
    return EditLog.open(of_slide(store, slide))


def of_slide(store: PanopticStore, slide: Path) -> PanopticStore:
    record = {"name": slide.name, "mpp": 0.5, "fingerprint": fingerprint(slide)}
    return replace(store, spec=replace(store.spec, slide=record))


def touched(log: EditLog) -> list[Box]:
    return [saved.edit.box for saved in log.edits]


# Which fields


def test_fields_lie_around_edits(log: EditLog) -> None:
    log.append(delete_nuclei(log, [10]))
    log.append(delete_nuclei(log, [200]))
    fields = training_fields(log, 128)
    assert all(max(f.shape) <= 128 and min(f.shape) >= 64 and WHOLE.contains(f) for f in fields)
    for box in touched(log):
        assert sum(f.clipped(box).area for f in fields) == box.area
    assert all(any(not f.clipped(box).is_empty for box in touched(log)) for f in fields)
    assert not overlaps(fields)
    assert fields == sorted(fields)


def test_checked_fields_come_before_edits(log: EditLog) -> None:
    log.append(delete_nuclei(log, [200]))
    log.mark_checked(Box(0, 0, 150, 200))
    log.mark_checked(Box(70, 100, 250, 300))
    fields = training_fields(log, 128)
    covered = np.zeros(SHAPE, int)
    for field in fields:
        covered[field.slices(WHOLE)] += 1
    expected = np.zeros(SHAPE, int)
    expected[:150, :200] = 1
    expected[70:250, 100:300] = 1
    np.testing.assert_array_equal(covered, expected)


def test_without_anything_to_export_it_says_so(log: EditLog, slide: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing is edited or marked"):
        export_training(log, slide, tmp_path / "out")
    log.append(delete_nuclei(log, [10]))
    for size in (0, 63, 10**6):
        with pytest.raises(DataError, match="expected 64 to 4096"):
            training_fields(log, size)
    log.undo()
    with pytest.raises(DataError, match="nothing is edited or marked"):
        training_fields(log)
    assert not (tmp_path / "out").exists()


BOXES = st.builds(lambda y, x, h, w: Box(y, x, y + h, x + w), *[st.integers(0, 200)] * 2, *[st.integers(64, 200)] * 2)


@given(st.lists(BOXES, max_size=6))
def test_no_pixel_is_in_two_fields(boxes: list[Box]) -> None:
    apart = _without_overlaps(boxes)
    assert not overlaps(apart)
    assert all(any(box.contains(part) for box in boxes) for part in apart)
    assert not boxes or apart[0] == boxes[0]


def overlaps(boxes: list[Box]) -> bool:
    return any(not a.clipped(b).is_empty for k, a in enumerate(boxes) for b in boxes[:k])


# What is in them


def test_fields_are_read_as_they_were_corrected(log: EditLog, slide: Path, tmp_path: Path) -> None:
    log.append(delete_nuclei(log, [10]))
    log.append(change_class(log, [11], 1 + log.class_of(11) % 5))
    log.mark_checked(Box(0, 0, 200, 420))
    n = export_training(log, slide, tmp_path / "data" / "corrected", 210)
    items = read_nuclei(tmp_path / "data" / "corrected")
    assert n == len(items) == 2
    with open_slide(slide) as opened:
        pixels = opened.read(0, WHOLE)
    for item, box in zip(items, training_fields(log, 210), strict=True):
        assert item.name == f"slide_y{box.y0:06d}_x{box.x0:06d}"
        found = checked(item)
        ids = log.instances(box)
        np.testing.assert_array_equal(found.image, pixels[box.slices(WHOLE)])
        assert found.ids is not None
        np.testing.assert_array_equal(found.ids > 0, ids > 0)
        pairs = np.unique(np.stack([ids, found.ids], -1).reshape(-1, 2), axis=0)
        assert len(pairs) == len(np.unique(ids)) == len(np.unique(found.ids))  # one to one, cut ones included
        assert sorted(np.unique(found.ids)) == list(range(len(pairs)))
        assert {int(new): found.code_of_id[int(new)] for old, new in pairs if old} == {
            int(new): str(log.class_of(int(old))) for old, new in pairs if old
        }


def test_a_field_full_of_nuclei_has_no_zero(log: EditLog, slide: Path, tmp_path: Path) -> None:
    box = log.box_of(int(np.argmax(np.bincount(log.instances().ravel())[1:])) + 1)
    middle = Box((box.y0 + box.y1) // 2, (box.x0 + box.x1) // 2, (box.y0 + box.y1) // 2 + 2, (box.x0 + box.x1) // 2 + 2)
    assert (log.instances(middle) > 0).all()
    export_training(log, slide, tmp_path / "out", boxes=[middle])
    (item,) = read_nuclei(tmp_path / "out")
    assert set(np.unique(checked(item).ids)) == {1}


def test_a_field_without_nuclei_is_one(log: EditLog, slide: Path, tmp_path: Path) -> None:
    log.append(delete_nuclei(log, np.unique(log.instances())[1:].tolist()))
    log.mark_checked(Box(0, 0, 100, 100))
    export_training(log, slide, tmp_path / "data" / "empty")
    samples = read_samples(config_of(tmp_path, "empty"), CoverTable(DEFAULT_CLASSES))
    (sample,) = samples.train["empty"]
    assert not sample.ids.any()
    assert sample.known.all()


# What training makes of it


def config_of(root: Path, folder: str, **changes: Any) -> Any:
    """A configuration with the sources of README.txt, as a user would paste them."""
    readme = (root / "data" / folder / "README.txt").read_text()
    sources = yaml.safe_load(readme[readme.index("sources:") :])
    document = {
        "name": "tiny", "data_root": str(root / "data"), "output": str(root / "run"), "initial_weights": "random",
        "validation": 0.0, "schedule": {"steps": 1, "batch_size": 1, "crop": 64, "workers": 1, "log_every": 1},
    }  # fmt: skip
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(document | sources | changes))
    return load_train_config(path)


def test_the_readme_is_a_configuration(log: EditLog, slide: Path, tmp_path: Path) -> None:
    log.append(delete_nuclei(log, [10]), "Dr. A")
    n = export_training(log, slide, tmp_path / "data" / "corrected", 128)
    config = config_of(tmp_path, "corrected")
    (source,) = config.sources
    assert (source.folder, source.layout, source.mpp) == ("corrected", "nuclei", 0.5)
    covers = CoverTable(DEFAULT_CLASSES)
    samples = read_samples(config, covers).train["corrected"]
    assert len(samples) == n
    allowed = covers.allowed()
    for sample, item in zip(
        sorted(samples, key=lambda s: s.name), read_nuclei(tmp_path / "data" / "corrected"), strict=True
    ):
        found = checked(item)
        cover, ids = sample.cover[0].numpy(), found.ids
        for local, code in found.code_of_id.items():
            (code_here,) = np.unique(cover[ids == local])
            assert np.flatnonzero(allowed[code_here]).tolist() == [int(code) - 1]
    readme = (tmp_path / "data" / "corrected" / "README.txt").read_text()
    for part in ("0.5 micrometres", "Dr. A", "nobody marked them as checked", "oracle", "3 = connective"):
        assert part in readme
    log.mark_checked(Box(0, 0, 100, 100), "Dr. B")
    export_training(log, slide, tmp_path / "data" / "checked")
    assert "marked as checked, by Dr. B" in (tmp_path / "data" / "checked" / "README.txt").read_text()


def test_names_of_any_kind_are_quoted(log: EditLog, slide: Path, tmp_path: Path) -> None:
    classes = DEFAULT_CLASSES.to_list()
    classes[0]["name"] = 'tumour: "yes" # or [no]'
    renamed = type(DEFAULT_CLASSES).from_list(classes)
    log = EditLog.open(replace(log.store, spec=replace(log.store.spec, classes=renamed)))
    log.append(delete_nuclei(log, [10]))
    export_training(log, slide, tmp_path / "data" / "a: [b] #c")
    config = config_of(tmp_path, "a: [b] #c")
    assert config.sources[0].folder == "a: [b] #c"
    assert config.sources[0].codes["1"] == (classes[0]["name"],)


@pytest.mark.slow
def test_a_model_trains_on_corrections(log: EditLog, slide: Path, tmp_path: Path) -> None:
    log.mark_checked(WHOLE)
    export_training(log, slide, tmp_path / "data" / "corrected", 128)
    tiny = {"instance_channels": [8, 8, 8, 8], "semantic_channels": 8}
    weights = train_model(config_of(tmp_path, "corrected", network=tiny), "cpu")
    assert weights.suffix == ".safetensors"
    log_lines = [json.loads(text) for text in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log_lines if "loss" in line]
    assert losses
    assert np.isfinite(losses).all()


def test_they_are_a_format_of_exports(log: EditLog, slide: Path, tmp_path: Path) -> None:
    log.append(delete_nuclei(log, [10]))
    log.mark_checked(Box(0, 0, 200, 420))
    out = tmp_path / "data" / "corrected"
    assert export_store(log.store, "training", out, ExportOptions(slide=slide)) == len(read_nuclei(out)) == 1
    for options in (ExportOptions(), ExportOptions(Box(0, 0, 100, 100), slide)):
        with pytest.raises(ConfigError, match="pass --slide, and no --roi"):
            export_store(log.store, "training", tmp_path / "other", options)


# What is refused


def test_only_its_own_slide_will_do(log: EditLog, slide: Path, tmp_path: Path) -> None:
    log.append(delete_nuclei(log, [10]))
    other = tmp_path / "other.tif"
    tifffile.imwrite(other, np.zeros((*SHAPE, 3), np.uint8), resolution=(2e4, 2e4), resolutionunit="CENTIMETER")
    with pytest.raises(SlideError, match="is not the slide that"):
        export_training(log, other, tmp_path / "out")
    with pytest.raises(SlideError, match="no such file"):
        export_training(log, tmp_path / "none.tif", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*out*"))


def test_what_is_there_is_not_replaced(log: EditLog, slide: Path, tmp_path: Path) -> None:
    log.append(delete_nuclei(log, [10]))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists already"):
        export_training(log, slide, tmp_path / "out")
    with pytest.raises(RegionError):
        export_training(log, slide, tmp_path / "new", boxes=[Box(0, 0, 999, 999)])
    assert not (tmp_path / "new").exists()
