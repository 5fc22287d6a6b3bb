"""Training on panoptic formats with the shipped configurations: one epoch, then segment and evaluate, by commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import panoptic_data as made
import pytest
from panoptic_data import FIELDS, STREET, make_scene
from typer.testing import CliRunner

from nucleipan.cli import app
from nucleipan.config import load_train_config
from nucleipan.datasets import write_composites
from nucleipan.errors import ConfigError, DataError
from nucleipan.network.weights import load_model
from nucleipan.training.data import CoverTable, read_samples

CONFIGS = Path(__file__).parents[1] / "configs"
TINY = [
    *("initial_weights=random", "network.instance_channels=[8,8,8,8]", "network.semantic_channels=8"),
    *("schedule.steps=2", "schedule.batch_size=2", "schedule.crop=64", "schedule.warmup_steps=1"),
    *("schedule.validate_every=2", "schedule.log_every=1", "schedule.workers=0", "schedule.precision=float32"),
]
FRAMES = ("aachen_000000_000019", "bonn_000001_000019", "ulm_000002_000019", "jena_000003_000019")


def write_coco(root: Path) -> Path:
    """Four images to train on and two to validate on; returns the folder of the latter."""
    made.write_coco(root / "coco", {k: make_scene(k, *STREET) for k in (1, 2, 3, 4)}, "train2017")
    made.write_coco(root / "coco", {k: make_scene(k, *STREET) for k in (139, 142)})
    return root / "coco" / "val2017"


def write_cityscapes(root: Path) -> Path:
    made.write_cityscapes(root / "cityscapes", {f: make_scene(k, *STREET) for k, f in enumerate(FRAMES)}, "train")
    made.write_cityscapes(root / "cityscapes", {"lindau_000000_000019": make_scene(5, *STREET)})
    return root / "cityscapes" / "leftImg8bit" / "val" / "lindau"


def write_pastis(root: Path) -> Path:
    scenes = {10000 + k: make_scene(k, *FIELDS) for k in range(5)}
    (root / "pastis").mkdir()
    made.write_pastis(root / "pastis", scenes, folds=(1, 2, 3, 4, 5))
    write_composites(root / "pastis", root / "pictures", folds=[5])
    return root / "pictures"


Case = tuple[str, Callable[[Path], Path], str, list[str]]
CASES: dict[str, Case] = {
    # configuration, writer, truth of what the writer returns, overrides
    "coco": (
        "coco_panoptic", write_coco, "coco/annotations/panoptic_val2017.json",
        ["classes_from={}/coco/annotations/panoptic_train2017.json"],
    ),
    "cityscapes": ("cityscapes", write_cityscapes, "cityscapes/gtFine/val", ["mpp=1"]),
    "pastis": ("pastis", write_pastis, "pastis", []),
}  # fmt: skip


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def overrides(root: Path, case: Case) -> list[str]:
    return [*TINY, f"data_root={root}", f"output={root / 'run'}", *(o.format(root) for o in case[3])]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_published_layout_trains_and_evaluates(case: Case, tmp_path: Path) -> None:
    name, write, truth, _ = case
    images = write(tmp_path)
    settings = [word for o in overrides(tmp_path, case) for word in ("--set", o)]
    run("train", CONFIGS / f"{name}.yaml", *settings, "--device", "cpu")
    (weights,) = (tmp_path / "run").glob(f"{load_train_config(CONFIGS / f'{name}.yaml').name}.safetensors")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert any("val/pq" in line for line in lines)
    run("segment", images, "--out", tmp_path / "out", "--model", weights, "--mpp", "1", "--backend", "torch")
    run("evaluate", "--pred", tmp_path / "out", "--truth", tmp_path / truth, "--json", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert 0 <= scores["summary"]["panoptic PQ"] <= 1
    known = {c.name for c in load_model(str(weights)).info.classes.classes}
    assert known == set(scores["panoptic"]["things"]) | set(scores["panoptic"]["stuff"])
    assert scores["notes"] == (["only fold 5 is scored"] if name == "pastis" else [])
    assert len(scores["images"]) == len(list(images.iterdir()))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_samples_teach_the_classes_of_the_segments(case: Case, tmp_path: Path) -> None:
    """Things have ids and their class, stuff its class; void and crowds allow everything and are not looked at."""
    name, write, _, _ = case
    write(tmp_path)
    config = load_train_config(CONFIGS / f"{name}.yaml", overrides(tmp_path, case))
    assert config.own_classes is not None
    covers = CoverTable(config.own_classes)
    (samples,) = read_samples(config, covers).train.values()
    scene = make_scene({"coco": 1}.get(config.sources[0].folder, 0), *(FIELDS if name == "pastis" else STREET))
    sample = samples[0]
    np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), scene.image)
    allowed = covers.allowed()[sample.cover[0].numpy()]  # [h, w, K]
    for k, segment in enumerate((None, *scene.segments)):
        where = scene.plane == k
        if segment is None or segment.is_crowd:
            assert allowed[where].all()
            assert not sample.known[0].numpy()[where].any()
            continue
        expected = np.arange(len(config.own_classes)) == config.own_classes.by_name(segment.name).id - 1
        assert (allowed[where] == expected).all()
        assert sample.known[0].numpy()[where].all()
        assert (sample.ids[0].numpy()[where] > 0).all() == segment.is_thing


def test_samples_on_disk_are_those_in_memory(tmp_path: Path) -> None:
    case = CASES["cityscapes"]
    write_cityscapes(tmp_path)
    path = CONFIGS / "cityscapes.yaml"
    sets = []
    for in_memory in (False, True):
        config = load_train_config(path, [*overrides(tmp_path, case), f"sources.0.in_memory={in_memory}"])
        assert config.own_classes is not None
        sets.append(read_samples(config, CoverTable(config.own_classes)).train["cityscapes"])
    on_disk, in_memory = sets
    assert len(on_disk) == len(in_memory) == len(FRAMES)
    assert on_disk[0] is not on_disk[0], "read anew"
    for one, other in zip(on_disk, in_memory, strict=True):
        assert (one.name, one.mpp) == (other.name, other.mpp)
        for key in ("image", "ids", "cover", "known"):
            np.testing.assert_array_equal(getattr(one, key), getattr(other, key))


def test_what_is_wrong_shows_before_the_first_step(tmp_path: Path) -> None:
    """Also where images stay on disk: files are looked for, and the first image is read."""
    write_cityscapes(tmp_path)
    path, given = CONFIGS / "cityscapes.yaml", overrides(tmp_path, CASES["cityscapes"])

    def read(*more: str) -> None:
        config = load_train_config(path, [*given, *more])
        assert config.own_classes is not None
        read_samples(config, CoverTable(config.own_classes))

    with pytest.raises(
        DataError, match=r"aachen_000000_000019_gtFine_instanceIds\.png: class 'car' has no entry in codes"
    ):
        read("sources.0.codes={person: [person]}", "sources.0.codes_are_names=false")
    with pytest.raises(ConfigError, match="cityscapes: no image is called 'test/"):
        read("sources.0.train=[test/*]")
    (tmp_path / "cityscapes" / "leftImg8bit" / "train" / "ulm" / f"{FRAMES[2]}_leftImg8bit.png").unlink()
    with pytest.raises(DataError, match=rf"{FRAMES[2]}_gtFine_instanceIds\.png: there is no image called {FRAMES[2]}"):
        read()


def test_codes_may_mean_several_classes_where_names_do_not_fit(tmp_path: Path) -> None:
    """What ``codes`` says wins over the name."""
    write_cityscapes(tmp_path)
    given = overrides(tmp_path, CASES["cityscapes"])
    config = load_train_config(CONFIGS / "cityscapes.yaml", [*given, "sources.0.codes={car: [car, truck, bus]}"])
    assert config.own_classes is not None
    covers = CoverTable(config.own_classes)
    samples = read_samples(config, covers).train["cityscapes"]
    sample = samples[0]
    found = {tuple(np.flatnonzero(row).tolist()) for row in covers.allowed()[np.unique(sample.cover[sample.ids > 0])]}
    names = config.own_classes
    assert found == {tuple(names.by_name(n).id - 1 for n in group) for group in (["car", "truck", "bus"], ["person"])}


def test_maps_that_say_nothing_are_refused_on_disk_too(tmp_path: Path) -> None:
    made.write_png(tmp_path / "tissue" / "images" / "a.png", np.zeros((64, 64, 3), np.uint8))
    made.write_png(tmp_path / "tissue" / "labels" / "a.png", np.ones((64, 64), np.uint8))
    source = "sources=[{folder: tissue, layout: tissue, mpp: 1, in_memory: false, train: [a], codes: {'7': [road]}}]"
    given = [*overrides(tmp_path, CASES["cityscapes"]), source, "validate_on=[]"]
    config = load_train_config(CONFIGS / "cityscapes.yaml", given)
    assert config.own_classes is not None
    with pytest.raises(DataError, match=r"a\.png: codes map nothing in it to a class of ours"):
        read_samples(config, CoverTable(config.own_classes))


def test_classes_are_given_once() -> None:
    with pytest.raises(ConfigError, match="classes and classes_from are two answers to one question"):
        load_train_config(CONFIGS / "cityscapes.yaml", ["classes_from=a.json"])
    config = load_train_config(CONFIGS / "coco_panoptic.yaml")
    assert config.classes_from == CONFIGS / "data" / "coco" / "annotations" / "panoptic_val2017.json"
    with pytest.raises(DataError, match=r"panoptic_val2017\.json: cannot be read"):
        _ = config.own_classes
