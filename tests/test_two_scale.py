"""The network of two scales: it begins as the fine one, and only its instance head hears the coarse one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.errors import ConfigError, ModelError
from nucleipan.network.build import build_network
from nucleipan.network.fusion import DecodeConfig
from nucleipan.network.model import PanopticNetConfig
from nucleipan.network.two_scale import TwoScaleConfig, TwoScaleNet
from nucleipan.network.weights import ModelInfo, load_model, save_model
from nucleipan.training.config import ScheduleConfig, SourceConfig, TrainConfig
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


def test_it_begins_as_the_fine_network(start: Start, folder: Path) -> None:
    x = torch.rand(1, 3, 128, 192)
    with torch.no_grad():
        two, fine = start.network.eval()(x), load_model(folder / "fine.safetensors").network(x)
    for part in ("semantic", "nucleus", "offsets"):
        torch.testing.assert_close(getattr(two, part), getattr(fine, part))


def test_the_instance_head_hears_the_coarse_answer_in_its_place(start: Start, folder: Path) -> None:
    """With weights that pass on nothing but the coarse logit, the fine one is the coarse one, enlarged."""
    network = start.network.eval()
    assert isinstance(network, TwoScaleNet)
    x = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        coarse = load_model(folder / "coarse.safetensors").network(torch.nn.functional.avg_pool2d(x, 2))
        seen, answers = network._from_afar(torch.nn.functional.avg_pool2d((x - network.mean) / network.std, 2))
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


def test_the_coarse_part_never_trains(folder: Path) -> None:
    config = config_of(folder, train_only=())
    network = build_start(config).network.train()
    assert isinstance(network, TwoScaleNet)
    assert all(p.requires_grad for p in network.backbone.parameters())
    assert not any(
        p.requires_grad or m.training for part in network.coarse for m in part.modules() for p in m.parameters()
    )


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
