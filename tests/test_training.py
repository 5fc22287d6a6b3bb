"""Training: what partial labels mean, that ids survive geometry, that a run can be stopped and continued."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
import yaml

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.config import load_train_config
from nucleipan.errors import ConfigError, DataError
from nucleipan.geometry import Box
from nucleipan.network.model import HeadOutputs
from nucleipan.network.weights import load_model
from nucleipan.synthetic import SyntheticScene, write_truth
from nucleipan.training.augment import RandScaledCropd, training_transform
from nucleipan.training.config import AugmentationConfig
from nucleipan.training.data import CoverTable, read_source
from nucleipan.training.fit import fit, learning_rate, train_model
from nucleipan.training.losses import Batch, mask_loss, offset_loss, semantic_loss
from nucleipan.training.mixture import Mixture
from nucleipan.training.targets import offset_targets

K = len(DEFAULT_CLASSES)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two synthetic images in the layout of annotated sets: nuclei with classes, tissue, texture."""
    root = tmp_path_factory.mktemp("data")
    for seed, stem in enumerate(("a", "b")):
        scene = SyntheticScene((96, 128), seed=seed)
        write_truth(scene, root / "nuclei", stem)
        rgb = scene.rgb(Box(0, 0, 96, 128))
        for folder in (root / "nuclei" / "images", root / "tissue" / "images", root / "texture" / "STR"):
            folder.mkdir(parents=True, exist_ok=True)
            imagecodecs.imwrite(folder / f"{stem}.png", rgb)
        (root / "tissue" / "labels").mkdir(exist_ok=True)
        imagecodecs.imwrite(root / "tissue" / "labels" / f"{stem}.png", scene.stuff(Box(0, 0, 96, 128)))
    splits = {
        "nuclei": {"train": ["a", "b"], "val": ["b"]},
        "tissue": {"train": ["a"], "val": []},
        "texture": {"train": ["STR/b", "XXX/b"], "val": []},
    }
    (root / "splits.json").write_text(json.dumps(splits))
    return root


def write_config(data: Path, folder: Path, **changes) -> Path:
    document = {
        "name": "tiny",
        "data_root": str(data),
        "splits": str(data / "splits.json"),
        "output": str(folder / "run"),
        "initial_weights": "random",
        "validate_on": ["nuclei"],
        "network": {"instance_channels": 8, "semantic_channels": 8},
        "schedule": {"steps": 4, "batch_size": 2, "crop": 64, "warmup_steps": 2, "checkpoint_every": 2},
        "sources": [
            {
                "folder": "nuclei",
                "kind": "nuclei",
                "mpp": 0.5,
                "weight": 1.0,
                "codes": {str(c.id): [c.name] for c in DEFAULT_CLASSES.things},
            },
            {"folder": "tissue", "kind": "tissue", "mpp": 0.5, "weight": 0.5, "codes": {"9": ["stroma"]}},
            {"folder": "texture", "kind": "texture", "mpp": 0.5, "weight": 0.5, "codes": {"STR": ["stroma"]}},
        ],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document | changes))
    return path


# -- what labels mean -------------------------------------------------------------------------------------------


def test_covers(data):
    covers = CoverTable(DEFAULT_CLASSES)
    config = load_train_config(write_config(data, data))
    nuclei, tissue, texture = (
        read_source(s, data, json.loads((data / "splits.json").read_text())[s.folder]["train"], covers)
        for s in config.sources
    )
    allowed = covers.allowed()
    assert allowed[0].all(), "code 0 says nothing"
    image, ids, cover = nuclei[0].load()
    assert image.shape == (*ids.shape, 3)
    np.testing.assert_array_equal(ids > 0, cover != covers.stuff)
    classes = json.loads((data / "nuclei" / "classes" / "a.json").read_text())
    for i in np.unique(ids)[1:]:
        assert np.flatnonzero(allowed[cover[ids == i][0]]).tolist() == [classes[str(i)] - 1]
    labels = imagecodecs.imread(data / "tissue" / "labels" / "a.png")
    _, ids, cover = tissue[0].load()
    assert not ids.any()
    np.testing.assert_array_equal(cover == 0, labels != 9)
    assert [s.name for s in texture] == ["texture/STR/b"], "a subfolder without a code is left aside"


def batch(cover: torch.Tensor, covers: CoverTable, **kw) -> Batch:
    b, h, w = cover.shape
    fields = {
        "image": torch.zeros(b, 3, h, w),
        "nucleus": torch.zeros(b, 1, h, w),
        "has_nuclei": torch.ones(b, 1, h, w, dtype=torch.bool),
        "offsets": torch.zeros(b, 2, h, w),
        "offset_weights": torch.zeros(b, 1, h, w),
    }
    return Batch(**(fields | kw), cover=cover, allowed=torch.from_numpy(covers.allowed()), thing_code=covers.things)


def outputs(semantic: torch.Tensor, nucleus: float = -5.0) -> HeadOutputs:
    b, _, h, w = semantic.shape
    return HeadOutputs(semantic, torch.full((b, 1, h, w), nucleus), torch.zeros(b, 2, h, w))


def test_semantic_loss_is_the_log_of_the_sum_of_what_a_label_covers():
    covers = CoverTable(DEFAULT_CLASSES)
    code = covers.code(["stroma", "lymphoid"])
    logits = torch.randn(1, K, 8, 8)
    out = HeadOutputs(logits, torch.full((1, 1, 16, 16), -5.0), torch.zeros(1, 2, 16, 16))
    got = semantic_loss(out, batch(torch.full((1, 16, 16), code), covers), 1.0)
    p = logits.softmax(1)[:, [DEFAULT_CLASSES.by_name(n).id - 1 for n in ("stroma", "lymphoid")]].sum(1)
    torch.testing.assert_close(got, -p.log().mean())


def test_unlabelled_pixels_give_no_loss_and_no_gradient():
    covers = CoverTable(DEFAULT_CLASSES)
    logits = torch.randn(1, K, 8, 8, requires_grad=True)
    out = HeadOutputs(logits, torch.zeros(1, 1, 16, 16, requires_grad=True), torch.zeros(1, 2, 16, 16))
    b = batch(torch.zeros(1, 16, 16, dtype=torch.long), covers, has_nuclei=torch.zeros(1, 1, 16, 16, dtype=torch.bool))
    loss = semantic_loss(out, b, 3.0) + offset_loss(out.offsets, b)
    assert loss == 0
    loss.backward()
    assert logits.grad.abs().max() == 0
    annotated = batch(torch.zeros(1, 16, 16, dtype=torch.long), covers)
    assert mask_loss(out.nucleus, annotated) > mask_loss(out.nucleus - 9, annotated)


def test_a_tissue_map_teaches_things_where_the_network_sees_a_nucleus():
    """Calling everything a nucleus must not satisfy a tissue map, and a nucleus in tumour is no error."""
    covers = CoverTable(DEFAULT_CLASSES)
    cover = torch.full((1, 16, 16), covers.code(["tumour epithelium"]))
    unknown = {"has_nuclei": torch.zeros(1, 1, 16, 16, dtype=torch.bool)}
    says_thing, says_tumour = torch.zeros(1, K, 8, 8), torch.zeros(1, K, 8, 8)
    says_thing[:, 0], says_tumour[:, 6] = 9, 9
    for nucleus, right, wrong in ((-5.0, says_tumour, says_thing), (5.0, says_thing, says_tumour)):
        losses = [
            semantic_loss(
                HeadOutputs(s, torch.full((1, 1, 16, 16), nucleus), torch.zeros(1, 2, 16, 16)),
                batch(cover, covers, **unknown),
                1.0,
            )
            for s in (right, wrong)
        ]
        assert losses[0] < 0.1 < 5 < losses[1]


def test_every_nucleus_weighs_the_same_in_the_offsets():
    ids = np.zeros((32, 32), np.int64)
    ids[2:5, 2:5], ids[10:30, 10:30] = 1, 2
    offsets, weights = offset_targets(ids)
    assert weights[ids == 1].sum() == pytest.approx(1)
    assert weights[ids == 2].sum() == pytest.approx(1)
    y, x = np.mgrid[:32, :32]
    np.testing.assert_allclose((offsets[0] + y)[ids == 1], 3)
    np.testing.assert_allclose((offsets[1] + x)[ids == 2], 19.5)
    assert not offsets[:, ids == 0].any()


# -- augmentation -----------------------------------------------------------------------------------------------


def test_ids_survive_geometry():
    """No id is invented or lost to interpolation, above 2**16 too, and image, ids and codes stay on each other."""
    rng = np.random.default_rng(0)
    ids = rng.choice([0, 7, 300, 70_000], (1, 60, 90))
    item = {
        "image": torch.from_numpy(np.repeat((ids % 251).astype(np.uint8), 3, 0)),
        "ids": torch.from_numpy(ids),
        "cover": torch.from_numpy((ids % 5).astype(np.uint8)),
        "mpp": 0.5,
        "has_instances": True,
    }
    chain = training_transform(64, 0.5, AugmentationConfig(scale=(1.0, 1.0), stain=0, low_resolution=0, noise=0))
    chain.transforms = tuple(t for t in chain.transforms if type(t).__name__ != "RandStainJitterd")
    chain.set_random_state(3)
    for _ in range(8):
        out = chain(item)
        seen, crop = out["seen"][0].numpy(), out["ids"][0].numpy()
        assert set(np.unique(crop)) <= {0, 7, 300, 70_000}
        np.testing.assert_array_equal(out["cover"][0].numpy()[seen], (crop % 5)[seen])
        np.testing.assert_allclose(out["image"][0].numpy()[seen] * 255, (crop % 251)[seen], atol=1e-3)


@pytest.mark.parametrize("mpp", [0.25, 1.0])
def test_crops_are_at_the_networks_scale(mpp):
    """A square of 20 um is 40 pixels at 0.5 um, whatever the image's own resolution."""
    side = round(20 / mpp)
    ids = torch.zeros(1, 200, 200, dtype=torch.long)
    ids[:, 50 : 50 + side, 50 : 50 + side] = 1
    item = {"image": (ids * 200).expand(3, -1, -1).to(torch.uint8), "ids": ids, "cover": ids, "mpp": mpp}
    out = RandScaledCropd(1024, 0.5, (1.0, 1.0))(item)
    area = int((out["ids"] == 1).sum())
    assert abs(area - 1600) <= 80
    assert out["image"].shape == (3, 1024, 1024)
    assert out["seen"].sum() == (200 * mpp / 0.5) ** 2


# -- configuration and runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("schedule.step=3", "unknown key; did you mean steps"),
        ("schedule.steps=-1", "schedule.steps"),
        ("schedule", "expected key=value"),
        ("name.x=1", "name is a value"),
        ("mpp=0", "mpp"),
    ],
)
def test_wrong_configurations_say_what_and_where(data, tmp_path, override, match):
    with pytest.raises(ConfigError, match=match):
        load_train_config(write_config(data, tmp_path), [override])


def test_yaml_that_is_no_mapping(tmp_path):
    path = tmp_path / "a.yaml"
    for text, match in (("- 1", "expected a mapping"), ("a: [", "not valid YAML"), ("!!python/name:os.system", "YAML")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=match):
            load_train_config(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_train_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", ["fast", "debug_cpu"])
def test_shipped_configurations_are_valid(name):
    config = load_train_config(Path(__file__).parents[1] / "configs" / f"{name}.yaml")
    covers = CoverTable(DEFAULT_CLASSES)
    for source in config.sources:
        for names in source.codes.values():
            covers.code(names)


def test_data_errors_name_the_file(data, tmp_path):
    covers = CoverTable(DEFAULT_CLASSES)
    source = load_train_config(write_config(data, tmp_path)).sources[0]
    with pytest.raises(DataError, match="no image called nobody"):
        read_source(source, data, ["nobody"], covers)
    with pytest.raises(DataError, match="data folder is missing"):
        read_source(source, tmp_path / "elsewhere", ["a"], covers)
    with pytest.raises(DataError, match="has no entry in codes"):
        read_source(source.model_copy(update={"codes": {"99": ("stroma",)}}), data, ["a"], covers)


def test_a_run_stops_and_continues_and_becomes_a_model(data, tmp_path):
    path = write_config(data, tmp_path)
    half = fit(load_train_config(path, ["schedule.steps=2"]), DEFAULT_CLASSES, CPU)
    assert half.step == 2
    weights = train_model(load_train_config(path), DEFAULT_CLASSES, CPU)
    assert json.loads((tmp_path / "run" / "state.json").read_text()) == {"step": 4}
    model = load_model(weights)
    assert model.info.classes == DEFAULT_CLASSES
    moved = [not torch.equal(a, b) for a, b in zip(model.network.parameters(), half.network.parameters(), strict=True)]
    assert any(moved)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(0 <= line["nuclei pq"] <= 1 for line in lines)


def test_the_stream_of_crops_is_determined_by_the_seed(data, tmp_path):
    config = load_train_config(write_config(data, tmp_path))
    covers = CoverTable(DEFAULT_CLASSES)
    samples = read_source(config.sources[0], data, ["a"], covers)

    def first(seed: int) -> torch.Tensor:
        transform = training_transform(64, 0.5, config.augmentation)
        return next(iter(Mixture([(1.0, samples)], transform, seed)))["image"]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_learning_rate_rises_then_falls_to_zero(data, tmp_path):
    schedule = load_train_config(write_config(data, tmp_path)).schedule.model_copy(update={"steps": 100})
    rates = [learning_rate(s, schedule) for s in range(101)]
    assert max(rates) == pytest.approx(schedule.learning_rate)
    assert rates[0] < rates[1]
    assert all(a >= b for a, b in pairwise(rates[2:]))
    assert rates[-1] == pytest.approx(0, abs=1e-9)
