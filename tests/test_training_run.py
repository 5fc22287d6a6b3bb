"""A run: its configuration, its data, what it starts from, and that it can be killed and continued."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
import yaml
from panoptic_data import STREET, make_scene, write_coco
from safetensors.torch import load_file, save_file

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.config import load_train_config
from nucleipan.errors import ConfigError, DataError, ModelError
from nucleipan.geometry import Box
from nucleipan.network.weights import load_model
from nucleipan.synthetic import SyntheticScene, write_truth
from nucleipan.training.augment import training_transform
from nucleipan.training.checkpoint import SafetensorsCheckpoints
from nucleipan.training.config import AugmentationConfig, SourceConfig
from nucleipan.training.data import CoverTable, read_samples
from nucleipan.training.fit import train_model
from nucleipan.training.mixture import Mixture, StepBatches
from nucleipan.training.module import learning_rate_factor
from nucleipan.training.start import build_start

CONFIGS = Path(__file__).parents[1] / "configs"
TINY = {"instance_channels": [8, 8, 8, 8], "semantic_channels": 8}


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
    (root / "texture" / "XXX").mkdir()
    imagecodecs.imwrite(root / "texture" / "XXX" / "c.png", rgb)
    splits = {
        "nuclei": {"train": ["a"], "val": ["b"]},
        "tissue": {"train": ["a"], "val": []},
        "texture": {"train": ["STR/b", "XXX/c"], "val": []},
    }
    (root / "splits.json").write_text(json.dumps(splits))
    return root


def write_config(data: Path, folder: Path, **changes) -> Path:
    labels = data / "tissue" / "labels" / "a.png"
    tissue = str(imagecodecs.imread(labels).max()) if labels.is_file() else "9"
    document = {
        "name": "tiny",
        "data_root": str(data),
        "splits": str(data / "splits.json"),
        "output": str(folder / "run"),
        "initial_weights": "random",
        "validate_on": ["nuclei"],
        "network": TINY,
        "schedule": {
            "steps": 4,
            "batch_size": 2,
            "crop": 64,
            "warmup_steps": 2,
            "log_every": 1,
            "checkpoint_every": 2,
            "validate_every": 4,
            "workers": 0,
        },
        "sources": [
            {
                "folder": "nuclei",
                "layout": "nuclei",
                "mpp": 0.5,
                "codes": {str(c.id): [c.name] for c in DEFAULT_CLASSES.things},
            },
            {"folder": "tissue", "layout": "tissue", "mpp": 0.5, "weight": 0.5, "codes": {tissue: ["stroma"]}},
            {"folder": "texture", "layout": "texture", "mpp": 0.5, "weight": 0.5, "codes": {"STR": ["stroma"]}},
        ],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document | changes))
    return path


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses_of(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in log_of(run) if "loss" in line}


# -- configuration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("schedule.step=3", "unknown key; did you mean steps"),
        ("schedule.steps=-1", "schedule.steps"),
        ("schedule", "expected key=value"),
        ("name.x=1", "name is a value"),
        ("name=../elsewhere", "name"),
        ("mpp=0", "mpp"),
        ("validate_on=[nobody]", "validate_on names no source: nobody"),
        ("sources=[]", "sources"),
        ("sources.9.mpp=1", "no entry of a list of 3"),
        ("sources.0.mpp=-1", "sources.0.mpp"),
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


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_are_valid(path, tmp_path):
    config = load_train_config(path)
    if config.classes_from is not None:  # the data set's
        write_coco(tmp_path, {1: make_scene(0, *STREET)})
        config = load_train_config(path, [f"classes_from={tmp_path / 'annotations' / config.classes_from.name}"])
    covers = CoverTable(config.own_classes or DEFAULT_CLASSES)
    for source in config.sources:
        for names in filter(None, (*source.codes.values(), source.kinds)):
            covers.code(names)


# -- data -------------------------------------------------------------------------------------------------------


def test_annotations_become_covers(data, tmp_path):
    covers = CoverTable(DEFAULT_CLASSES)
    samples = read_samples(load_train_config(write_config(data, tmp_path)), covers)
    allowed = covers.allowed()
    assert allowed[0].all(), "code 0 says nothing"
    (nuclei,), (tissue,), (texture,) = samples.train.values()
    ids, cover = nuclei.ids[0].numpy(), nuclei.cover[0].numpy()
    assert nuclei.image.shape == (3, *ids.shape)
    np.testing.assert_array_equal(ids > 0, cover != covers.stuff)
    classes = json.loads((data / "nuclei" / "classes" / "a.json").read_text())
    labels = imagecodecs.imread(data / "nuclei" / "labels" / "a.png")
    for i in np.unique(labels)[1:]:
        assert len(np.unique(ids[labels == i])) == 1, "renumbered, no more"
        assert np.flatnonzero(allowed[cover[labels == i][0]]).tolist() == [classes[str(i)] - 1]
    tissue_labels = imagecodecs.imread(data / "tissue" / "labels" / "a.png")
    assert not tissue.ids.any()
    np.testing.assert_array_equal(tissue.cover[0].numpy() > 0, tissue_labels == tissue_labels.max())
    assert texture.name == "texture/STR/b", "a subfolder without a code is left aside"
    assert [s.name for s in samples.val["nuclei"]] == ["nuclei/b"]


def with_kinds(data: Path, tmp_path: Path, kinds: list[str]) -> Path:
    """The nuclei of which only the first has a code, the others being of ``kinds``."""
    shutil.copytree(data / "nuclei", tmp_path / "nuclei")
    for path in (tmp_path / "nuclei" / "classes").iterdir():
        codes = json.loads(path.read_text())
        path.write_text(json.dumps(dict(list(codes.items())[:1])))
    document = yaml.safe_load(write_config(data, tmp_path).read_text())
    sources = [document["sources"][0] | {"kinds": kinds, "train": ["a"], "val": ["b"]}]
    return write_config(data, tmp_path, sources=sources, data_root=str(tmp_path))


def test_nuclei_without_a_code_are_of_the_kinds_their_source_names(data, tmp_path):
    kinds = ["connective", "neoplastic"]
    covers = CoverTable(DEFAULT_CLASSES)
    (sample,) = read_samples(load_train_config(with_kinds(data, tmp_path, kinds)), covers).train["nuclei"]
    labels = imagecodecs.imread(data / "nuclei" / "labels" / "a.png")
    ((coded, code),) = json.loads((tmp_path / "nuclei" / "classes" / "a.json").read_text()).items()
    allowed, cover = covers.allowed(), sample.cover[0].numpy()
    others = [i for i in np.unique(labels)[1:] if i != int(coded)]
    assert others
    assert np.flatnonzero(allowed[cover[labels == int(coded)][0]]).tolist() == [code - 1]
    for i in others:
        found = {DEFAULT_CLASSES.classes[j].name for j in np.flatnonzero(allowed[cover[labels == i][0]])}
        assert found == set(kinds)


@pytest.mark.parametrize(
    ("kinds", "match"), [(["stroma"], "nuclei: kinds: stroma is tissue"), (["nobody"], "nuclei: kinds: .*nobody")]
)
def test_kinds_are_kinds_of_nuclei(data, tmp_path, kinds, match):
    with pytest.raises(ConfigError, match=match):
        read_samples(load_train_config(with_kinds(data, tmp_path, kinds)), CoverTable(DEFAULT_CLASSES))


@pytest.mark.parametrize(
    ("source", "changes", "train", "val"),
    [
        ({"train": ["a"], "val": ["b"]}, {}, ["a"], ["b"]),
        ({"val": ["?"], "train": ["a"]}, {}, None, "both"),
        ({"val": ["b*"]}, {}, ["a"], ["b"]),
        ({"train": ["nobody"]}, {}, None, "no image is called 'nobody'"),
        ({}, {"splits": None, "validation": 0.5}, 1, 1),
    ],
)
def test_who_trains_and_who_validates(data, tmp_path, source, changes, train, val):
    document = yaml.safe_load(write_config(data, tmp_path).read_text())
    sources = [document["sources"][0] | source]
    config = load_train_config(write_config(data, tmp_path, sources=sources, **changes))
    if train is None:
        match = "trained and validated" if val == "both" else val
        with pytest.raises(ConfigError, match=match):
            read_samples(config, CoverTable(DEFAULT_CLASSES))
        return
    samples = read_samples(config, CoverTable(DEFAULT_CLASSES))
    for found, expected in ((samples.train["nuclei"], train), (samples.val["nuclei"], val)):
        names = [s.name.split("/")[1] for s in found]
        assert (len(names) if isinstance(expected, int) else names) == expected


def broken(data: Path, tmp_path: Path, what: str) -> Path:
    """A copy of the nuclei with one fault."""
    folder = tmp_path / "data" / "nuclei"
    for part in ("images", "labels", "classes"):
        (folder / part).mkdir(parents=True)
    for file in (data / "nuclei").rglob("a.*"):
        if file.parent.name in ("images", "labels", "classes"):
            (folder / file.relative_to(data / "nuclei")).write_bytes(file.read_bytes())
    labels = imagecodecs.imread(folder / "labels" / "a.png").astype(np.uint16)
    label = folder / "labels" / "a.png"
    if what == "size":
        imagecodecs.imwrite(label, labels[:-1])
    if what == "empty":
        imagecodecs.imwrite(label, labels * 0)
    if what == "large":
        label.unlink()
        imagecodecs.imwrite(
            folder / "labels" / "a.tif", np.where(labels > 0, 65536 + labels.astype(np.uint32), 0).astype(np.uint32)
        )
    if what == "unlabelled":
        label.unlink()
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("size", r"a\.png.*\(95, 128\).*\(96, 128\)"),
        ("empty", r"a\.png.*empty"),
        ("large", r"a\.(png|tif).*expected 0 to 65535"),
        ("unlabelled", r"a"),
    ],
)
def test_contradictions_stop_a_run_before_its_first_step(data, tmp_path, what, match):
    source = {"folder": "nuclei", "layout": "nuclei", "mpp": 0.5, "train": ["a"]}
    root = broken(data, tmp_path, what)
    path = write_config(root, tmp_path, sources=[source], splits=None, validate_on=[])
    with pytest.raises(DataError, match=match):
        train_model(load_train_config(path), "cpu")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def initial(data, tmp_path_factory) -> Path:
    """Weights of a run of one step."""
    path = write_config(data, tmp_path_factory.mktemp("initial"), calibrate=False, validate_on=[])
    return train_model(load_train_config(path, ["schedule.steps=1"]), "cpu")


def test_initial_weights_keep_their_share(data, tmp_path, initial):
    """What comes out lies on the line from the initial weights to the trained ones."""
    changes = {"initial_weights": str(initial), "calibrate": False, "validate_on": []}
    path = write_config(data, tmp_path, trained_share=0.25, **changes)
    shared = load_model(train_model(load_train_config(path), "cpu")).network.state_dict()
    before = load_model(initial).network.state_dict()
    trained = SafetensorsCheckpoints().load_checkpoint(tmp_path / "run" / "last.safetensors")["state_dict"]
    assert sum(not torch.equal(value, trained[f"network.{name}"]) for name, value in before.items()) > 100
    for name, value in before.items():
        after = trained[f"network.{name}"]
        if value.is_floating_point():
            torch.testing.assert_close(shared[name], 0.75 * value + 0.25 * after, rtol=3e-3, atol=3e-4)


def test_what_is_new_has_no_initial_share(data, tmp_path, initial):
    same = build_start(load_train_config(write_config(data, tmp_path, initial_weights=str(initial))))
    assert same.taken_over.keys() == same.network.state_dict().keys()
    classes = [{"name": c.name, "is_thing": c.is_thing, "color": c.color} for c in DEFAULT_CLASSES.classes[:-1]]
    classes.append({"name": "something new", "is_thing": False, "color": (1, 2, 3)})
    own = build_start(load_train_config(write_config(data, tmp_path, initial_weights=str(initial), classes=classes)))
    new = {"semantic_head.classify.weight", "semantic_head.classify.bias"}
    assert own.taken_over.keys() == own.network.state_dict().keys() - new


def test_a_share_needs_something_to_share_with(data, tmp_path):
    with pytest.raises(ConfigError, match="trained_share needs initial_weights of a model"):
        load_train_config(write_config(data, tmp_path, trained_share=0.5))


def test_errors_in_mapping_and_folders_name_the_place(data, tmp_path):
    def run(**change) -> None:
        document = yaml.safe_load(write_config(data, tmp_path).read_text())
        path = write_config(data, tmp_path, validate_on=[], sources=[document["sources"][0] | change])
        read_samples(load_train_config(path), CoverTable(DEFAULT_CLASSES))

    with pytest.raises(ConfigError, match="nuclei: codes: unknown class 'strma'"):
        run(codes={"1": ["strma"]})
    with pytest.raises(DataError, match=r"a.*has no entry in codes"):
        run(codes={"99": ["stroma"]})
    with pytest.raises(DataError, match="has no entry for 'elsewhere'"):
        run(folder="elsewhere")
    with pytest.raises(DataError, match="data folder is missing"):
        run(folder="elsewhere", train=["a"])


# -- crops ------------------------------------------------------------------------------------------------------


def test_crop_k_follows_from_the_seed_and_k_alone(data, tmp_path):
    config = load_train_config(write_config(data, tmp_path))
    samples = read_samples(config, CoverTable(DEFAULT_CLASSES)).train["nuclei"]

    def crops(seed: int) -> Mixture:
        return Mixture([(1.0, samples)], training_transform(64, 0.5, config.augmentation), seed)

    forwards, backwards = crops(1), crops(1)
    first = [forwards[k]["image"] for k in range(6)]
    second = [backwards[k]["image"] for k in reversed(range(6))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in pairwise(first))
    assert not torch.equal(crops(2)[0]["image"], first[0])


def test_devices_share_the_steps_without_overlap():
    def numbers(start: int, rank: int, world: int) -> list[int]:
        batches = iter(StepBatches(4, start, rank, world))
        return [k for _ in range(3) for k in next(batches)]

    assert sorted(numbers(0, 0, 2) + numbers(0, 1, 2)) == list(range(24))
    assert numbers(0, 0, 1)[4:] == numbers(1, 0, 1)[:-4], "a run that continues takes the crops that come next"


def test_learning_rate_rises_then_falls_to_zero(data, tmp_path):
    schedule = load_train_config(write_config(data, tmp_path)).schedule.model_copy(update={"steps": 100})
    rates = [learning_rate_factor(s, schedule) for s in range(101)]
    assert max(rates) == pytest.approx(1)
    assert rates[0] < rates[1]
    assert all(a >= b for a, b in pairwise(rates[2:]))
    assert rates[-1] == pytest.approx(0, abs=1e-9)


# -- runs -------------------------------------------------------------------------------------------------------


def test_debug_run_has_the_same_losses_as_ever(data, tmp_path):
    """Golden losses: a change of network, losses, crops or loop that was not meant shows here."""
    overrides = [f"data_root={data}", f"output={tmp_path}", "sources.0.folder=nuclei", "sources.0.mpp=0.5"]
    # Adam's first steps follow the signs of gradients, so that what is rounded differently on another processor grows
    # with the length of the steps.
    config = load_train_config(CONFIGS / "debug_cpu.yaml", [*overrides, "schedule.learning_rate=0.0001"])
    path = train_model(config, "cpu")
    assert load_model(path).quantization is not None
    golden = {1: 2.05211, 2: 2.0522, 3: 3.83465, 4: 4.37277}
    losses = losses_of(tmp_path)
    assert losses[1] == pytest.approx(golden[1], rel=1e-4)
    assert losses == pytest.approx(golden, rel=1e-2)


def test_a_killed_run_continues_to_the_same_losses(data, tmp_path):
    """Killed after its third step, with the state of the second on disk."""
    whole = write_config(data, tmp_path)
    train_model(load_train_config(whole, [f"output={tmp_path / 'whole'}"]), "cpu")
    killed = write_config(data, tmp_path, output=str(tmp_path / "killed"))
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from nucleipan.config import load_train_config\n"
        "from nucleipan.training import fit, log\n"
        "write = log.LossLog._write\n"
        "def die(self, trainer, line):\n"
        "    write(self, trainer, line)\n"
        "    if trainer.global_step == 3: os.kill(os.getpid(), 9)\n"
        "log.LossLog._write = die\n"
        "fit.train_model(load_train_config(Path(sys.argv[1])), 'cpu')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(killed)], capture_output=True, timeout=300)
    assert done.returncode == -9, done.stderr.decode()[-2000:]
    weights = train_model(load_train_config(killed), "cpu")
    steps = [line["step"] for line in log_of(tmp_path / "killed") if "loss" in line]
    assert steps == [1, 2, 3, 3, 4], "went on from the state of step 2"
    assert losses_of(tmp_path / "killed") == pytest.approx(losses_of(tmp_path / "whole"), rel=1e-4)
    for a, b in zip(*(load_file(p).values() for p in (weights, tmp_path / "whole" / "tiny.safetensors")), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    score = log_of(tmp_path / "killed")[-1]
    assert 0 <= score["val/nuclei pq"] <= 1
    assert score["val/pq"] == score["val/nuclei pq"]


def test_frozen_norm_keeps_the_statistics_of_the_initial_weights(data, tmp_path):
    changes = ["schedule.frozen_norm=true", "schedule.validate_every=2"]
    config = load_train_config(write_config(data, tmp_path), changes)
    before = build_start(config).network.state_dict()
    trained = load_file(train_model(config, "cpu"))
    statistics = [k for k in before if k.endswith(("running_mean", "running_var"))]
    assert len(statistics) > 10
    assert [k for k in statistics if not torch.equal(trained[k], before[k])] == []


def test_another_run_is_not_continued(data, tmp_path):
    path = write_config(data, tmp_path, validate_on=[])
    train_model(load_train_config(path, ["schedule.steps=1"]), "cpu")
    with pytest.raises(ConfigError, match="run with other loss; choose another output"):
        train_model(load_train_config(path, ["loss.mask=2"]), "cpu")


def test_a_run_that_no_longer_improves_stops_and_keeps_its_best(data, tmp_path):
    changes = {"validate_every": 1, "early_stopping": 1, "steps": 50, "learning_rate": 1e-9, "log_every": 50}
    document = yaml.safe_load(write_config(data, tmp_path).read_text())
    path = write_config(data, tmp_path, schedule=document["schedule"] | changes)
    weights = train_model(load_train_config(path), "cpu")
    assert weights.is_file()
    assert len(log_of(tmp_path / "run")) < 10


def test_finetuning_takes_other_classes_by_changing_the_configuration_only(data, tmp_path):
    """Rows of classes with the same name are taken over; the weights that come out segment with the new classes."""
    own = [
        {"name": "neoplastic", "is_thing": True, "color": [255, 0, 0]},
        {"name": "blue cell", "is_thing": True, "color": [0, 0, 255]},
    ]
    source = {
        "folder": "nuclei",
        "layout": "nuclei",
        "mpp": 0.5,
        "codes": {"1": ["neoplastic"]} | {str(k): ["blue cell"] for k in range(2, 6)},
    }
    document = yaml.safe_load(write_config(data, tmp_path).read_text())
    del document["network"]
    document |= {"initial_weights": "nucleipan-fast", "classes": own, "sources": [source]}
    document["schedule"]["steps"] = 1
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    config = load_train_config(path)
    start, given = build_start(config), load_model("nucleipan-fast")
    assert (start.mpp, start.decode) == (given.info.mpp, given.info.decode)
    rows = start.network.semantic_head.classify.weight
    trained = given.network.semantic_head.classify.weight
    assert torch.equal(rows[0], trained[given.info.classes.by_name("neoplastic").id - 1])
    assert torch.equal(start.network.instance_head.predict.weight, given.network.instance_head.predict.weight)
    model = load_model(train_model(config, "cpu"))
    assert [c.name for c in model.info.classes.classes] == ["neoplastic", "blue cell"]


# -- checkpoints ------------------------------------------------------------------------------------------------


def test_checkpoints_come_back_as_they_were(tmp_path):
    state = {
        "step": 3,
        "state_dict": {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(2)},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0), "betas": (0.9, 0.99)}}, "x": None}],
        "text": ["a", True, 1.5, {}],
    }
    io = SafetensorsCheckpoints()
    io.save_checkpoint(state, tmp_path / "a.safetensors")
    found = io.load_checkpoint(tmp_path / "a.safetensors")
    assert str(found) == str(state)
    assert torch.equal(found["state_dict"]["a"], state["state_dict"]["a"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_checkpoints_that_are_none_are_refused(tmp_path):
    io = SafetensorsCheckpoints()
    (tmp_path / "text").write_text("no")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    for name, match in (("text", "cannot be read"), ("other", "is no checkpoint"), ("none", "cannot be read")):
        with pytest.raises(ModelError, match=match):
            io.load_checkpoint(tmp_path / name)
    with pytest.raises(TypeError, match="found object"):
        io.save_checkpoint({"a": object()}, tmp_path / "x")


def test_augmentation_and_sources_refuse_nonsense():
    with pytest.raises(ValueError, match="elastic"):
        AugmentationConfig(elastic=2)
    with pytest.raises(ValueError, match="layout"):
        SourceConfig(folder="a", layout="nobody", mpp=0.5)
