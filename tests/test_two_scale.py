"""The network of two scales: its nuclei begin as the fine one's, its tissue is the coarse one's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nucleipan.classes import DEFAULT_CLASSES, PanopticClass, PanopticClasses
from nucleipan.errors import ConfigError, ModelError
from nucleipan.network.build import build_network
from nucleipan.network.fusion import DecodeConfig
from nucleipan.network.layers import upsample
from nucleipan.network.model import PanopticNetConfig
from nucleipan.network.two_scale import TwoScaleConfig, TwoScaleNet
from nucleipan.network.weights import ModelInfo, load_model, save_model
from nucleipan.training.config import ClassConfig, ScheduleConfig, SourceConfig, TrainConfig
from nucleipan.training.module import PanopticTraining
from nucleipan.training.start import Start, build_start

TINY = PanopticNetConfig(instance_channels=(8, 8, 8, 8), semantic_channels=8)
TWO = TwoScaleConfig(fine=TINY, coarse=TINY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a fine and a coarse network with statistics that are not the identity."""
    path = tmp_path_factory.mktemp("weights")
    for seed, name in enumerate(("fine", "coarse")):
        torch.manual_seed(seed)
        network = build_network(TINY, DEFAULT_CLASSES).train()
        with torch.no_grad():
            network(torch.rand(2, 3, 96, 96))
        info = ModelInfo(name, 0.25, 128, DEFAULT_CLASSES, TINY, DecodeConfig(), "CC0", (f"{name} (CC0)",))
        save_model(network, info, path / f"{name}.safetensors")
    return path


def config_of(folder: Path, **more: object) -> TrainConfig:
    given = {
        "name": "two", "data_root": folder, "output": folder / "run", "network": TWO,
        "initial_weights": str(folder / "fine.safetensors"), "coarse_weights": str(folder / "coarse.safetensors"),
        "train_only": ("instance_head",), "sources": (SourceConfig(folder="x", layout="nuclei", mpp=0.25),),
        "schedule": ScheduleConfig(steps=1),
    }  # fmt: skip
    return TrainConfig(**(given | more))


@pytest.fixture
def start(folder: Path) -> Start:
    return build_start(config_of(folder))


def test_its_nuclei_begin_as_those_of_the_fine_network(start: Start, folder: Path) -> None:
    x = torch.rand(1, 3, 128, 192)
    with torch.no_grad():
        two, fine = start.network.eval()(x), load_model(folder / "fine.safetensors").network(x)
    for part in ("nucleus", "offsets"):
        torch.testing.assert_close(getattr(two, part), getattr(fine, part))
    things = [c.id - 1 for c in DEFAULT_CLASSES.things]
    torch.testing.assert_close(two.semantic.softmax(1)[:, things], fine.semantic.softmax(1)[:, things])


def test_its_tissue_is_that_of_the_coarse_network(start: Start, folder: Path) -> None:
    """Given that a pixel is no nucleus, probabilities are those of the coarse network, enlarged."""
    x = torch.rand(1, 3, 128, 192)
    with torch.no_grad():
        two = start.network.eval()(x)
        coarse = load_model(folder / "coarse.safetensors").network(torch.nn.functional.avg_pool2d(x, 2))
    stuff = [c.id - 1 for c in DEFAULT_CLASSES.stuff]
    expected = upsample(coarse.semantic, 2)[:, stuff].softmax(1)
    torch.testing.assert_close(two.semantic[:, stuff].softmax(1), expected)


def test_without_tissue_classes_the_semantic_part_is_the_fine_one() -> None:
    names = PanopticClasses(tuple(PanopticClass(i, f"kind {i}", True, (0, 0, i)) for i in (1, 2)))
    network = build_network(TWO, names)
    assert isinstance(network, TwoScaleNet)
    semantic = torch.rand(1, 2, 4, 4)
    assert network._with_tissue(semantic, torch.rand(1, 2, 4, 4)) is semantic


def test_the_instance_head_hears_the_coarse_answer_in_its_place(start: Start, folder: Path) -> None:
    """With weights that pass on nothing but the coarse logit, the fine one is the coarse one, enlarged."""
    network = start.network.eval()
    assert isinstance(network, TwoScaleNet)
    x = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        coarse = load_model(folder / "coarse.safetensors").network(torch.nn.functional.avg_pool2d(x, 2))
        seen, answers, _ = network._from_afar(torch.nn.functional.avg_pool2d((x - network.mean) / network.std, 2))
    torch.testing.assert_close(answers[:, :1] * 4, coarse.nucleus.clamp(-8, 8))
    torch.testing.assert_close(answers[:, 1:] * 8, coarse.offsets)
    assert seen.shape == (1, 8, 32, 32)


def test_only_the_named_part_is_trained(folder: Path) -> None:
    config = config_of(folder)
    module = PanopticTraining(config, build_start(config))
    network = module.network
    assert isinstance(network, TwoScaleNet)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    (optimizer,) = [module.configure_optimizers()["optimizer"]]
    module.train()
    out = network(torch.rand(2, 3, 128, 128))
    (out.nucleus.square().mean() + out.offsets.square().mean() + out.semantic.square().mean()).backward()
    optimizer.step()
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(k.startswith("instance_head.") for k in changed), "weights and statistics of all else stay"


def test_of_the_coarse_network_only_tissue_is_trained(folder: Path) -> None:
    config = config_of(folder, train_only=())
    network = build_start(config).network.train()
    assert isinstance(network, TwoScaleNet)
    network(torch.rand(2, 3, 128, 128)).semantic.square().mean().backward()
    assert all(p.grad is not None for p in network.coarse_semantic_head.parameters())
    assert all(p.requires_grad for p in network.backbone.parameters())
    assert not any(
        p.requires_grad or m.training for part in network.frozen for m in part.modules() for p in m.parameters()
    )


def test_tissues_of_the_same_name_are_taken_over_from_both(folder: Path) -> None:
    """With classes of one's own: rows by name, in the fine and in the coarse classifier."""
    own = tuple(
        ClassConfig(name=name, is_thing=name == "neoplastic", color=(1, 2, 3))
        for name in ("stroma", "glass", "neoplastic")
    )
    network = build_start(config_of(folder, classes=own)).network
    row_of = {c.name: c.id - 1 for c in DEFAULT_CLASSES.classes}
    for part, name in (("semantic_head", "fine"), ("coarse_semantic_head", "coarse")):
        rows = getattr(network, part).classify.weight
        given = load_model(folder / f"{name}.safetensors").network.semantic_head.classify.weight
        torch.testing.assert_close(rows[[0, 2]], given[[row_of["stroma"], row_of["neoplastic"]]])
        assert not torch.isclose(rows[1], given).all(1).flatten(1).any(), "a new tissue begins at random"


def test_what_was_seen_is_handed_down(start: Start) -> None:
    assert start.trained_on == ("fine (CC0)", "coarse (CC0)")


def test_sizes_must_suit_both_scales(start: Start) -> None:
    with pytest.raises(ValueError, match="multiples of 64"):
        start.network(torch.rand(1, 3, 96, 128))


def test_round_trip(start: Start, tmp_path: Path) -> None:
    info = ModelInfo("two", 0.25, 128, DEFAULT_CLASSES, TWO, DecodeConfig(), "CC0", ())
    save_model(start.network, info, tmp_path / "two.safetensors")
    read = load_model(tmp_path / "two.safetensors")
    assert read.info.network == TWO
    assert isinstance(read.network, TwoScaleNet)


@pytest.mark.parametrize(
    ("more", "error", "match"),
    [
        ({"train_only": ("head",)}, ConfigError, "train_only: the network has no head; its parts are .*instance_head"),
        ({"network": TINY}, ConfigError, "coarse_weights: only a two-scale network"),
        ({"network": TwoScaleConfig(fine=TINY)}, ModelError, "coarse.safetensors: its instance_head is not that"),
    ],
)
def test_what_does_not_fit_is_refused(
    folder: Path, more: dict[str, object], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        build_start(config_of(folder, **more))
