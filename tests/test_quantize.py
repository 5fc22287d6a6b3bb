"""Int8: close to floats, corrected without bias, kept in weights files, refused where it was not measured."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_cli import Cli, cli
from torch import Tensor, nn

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.errors import ModelError
from nucleipan.geometry import Box
from nucleipan.network.build import build_network
from nucleipan.network.fusion import DecodeConfig
from nucleipan.network.inference import fold_batch_norm
from nucleipan.network.model import PanopticNet, PanopticNetConfig
from nucleipan.network.quantize import Quantization, measure_quantization, quantized
from nucleipan.network.two_scale import TwoScaleConfig, TwoScaleNet
from nucleipan.network.weights import Model, ModelInfo, load_model, save_model
from nucleipan.pipeline import choose_backend
from nucleipan.segment import SegmentOptions, segment_slide
from nucleipan.store import PanopticStore
from nucleipan.synthetic import SyntheticScene, write_slide

__all__ = ["cli"]  # the fixture

TINY = PanopticNetConfig(instance_channels=(8, 8, 8, 8), semantic_channels=8)
INFO = ModelInfo("tiny", 0.5, 32, DEFAULT_CLASSES, TINY, DecodeConfig(), "CC0-1.0", ("nothing",))
NAME = "instance_head.predict"


def tissue(seed: int, side: int = 64) -> Tensor:
    """uint8[2, 3, side, side] of a synthetic slide."""
    rgb = SyntheticScene((side, 2 * side), seed=seed).rgb(Box(0, 0, side, 2 * side))
    return torch.from_numpy(np.stack(np.split(rgb, 2, 1))).permute(0, 3, 1, 2).contiguous()


def with_statistics(network: PanopticNet | TwoScaleNet) -> PanopticNet | TwoScaleNet:
    """Every BatchNorm has those of synthetic tissue, as after a training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a mean over all that was seen
            module.train()
    with torch.no_grad():
        for seed in range(4):
            network(tissue(seed, 128) / 255)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> PanopticNet:
    torch.manual_seed(0)
    tiny = build_network(TINY, DEFAULT_CLASSES)
    assert isinstance(tiny, PanopticNet)
    with_statistics(tiny)
    return tiny


@pytest.fixture(scope="module")
def quantization(network: PanopticNet) -> Quantization:
    return measure_quantization(network, [tissue(seed) for seed in range(4)])


@pytest.fixture
def weights(network: PanopticNet, quantization: Quantization, tmp_path: Path) -> Path:
    save_model(network, INFO, tmp_path / "tiny.safetensors", quantization)
    return tmp_path / "tiny.safetensors"


def without_correction(quantization: Quantization) -> Quantization:
    found = quantization.convolutions.items()
    return Quantization({name: replace(each, correction=torch.zeros_like(each.correction)) for name, each in found})


@torch.no_grad()
def heads(network: nn.Module, image: Tensor) -> dict[str, Tensor]:
    return vars(network(image / 255))


# What is computed


def test_outputs_are_close_to_floats(network, quantization):
    exact, int8 = heads(network, tissue(9)), heads(quantized(network, quantization), tissue(9))
    for name, wanted in exact.items():
        error = ((int8[name] - wanted).square().mean().sqrt() / wanted.std()).item()
        assert 0 < error < 0.2, (name, error)


def test_the_first_convolutions_stay_in_floats(network, quantization):
    convolutions = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    assert convolutions - quantization.convolutions.keys() == {
        f"backbone.{name}" for name in ("stem.1", "stages.0.0._depthwise_conv", "stages.0.0._project_conv")
    }
    assert all(found.low <= 0 < found.high for found in quantization.convolutions.values())


def test_corrected_channels_are_right_on_average(network, quantization):
    """On the images measured, each convolution given what it is given in floats: the mean error goes altogether."""
    images = torch.cat([tissue(seed) for seed in range(4)])
    corrected = mean_errors(network, quantization, images)
    uncorrected = mean_errors(network, without_correction(quantization), images)
    assert uncorrected.abs().max() > 0.01
    torch.testing.assert_close(corrected, torch.zeros_like(corrected), rtol=0, atol=1e-4)


def mean_errors(network: PanopticNet, quantization: Quantization, images: Tensor) -> Tensor:
    """Of each channel of each convolution, in standard deviations of the convolution's output."""
    folded, int8 = fold_batch_norm(network), quantized(network, quantization)
    errors: list[Tensor] = []

    def compare(rounded: nn.Module, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        errors.append((rounded(inputs[0]) - output).mean((0, 2, 3)) / output.std())

    for name in quantization.convolutions:
        folded.get_submodule(name).register_forward_hook(partial(compare, int8.get_submodule(name)))
    heads(folded, images)
    return torch.cat(errors)


def test_ranges_are_means_over_images_and_hold_zero():
    class Bright(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(1))
            self.only = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.only(x)

    images = [torch.full((2, 3, 4, 4), 0.25), torch.cat([torch.full((1, 3, 4, 4), v) for v in (0.5, 1.0)])]
    found = measure_quantization(Bright(), images).convolutions["only"]  # type: ignore[arg-type]
    assert (found.low, found.high) == (0.0, 0.5)


def test_two_scales():
    torch.manual_seed(0)
    network = build_network(TwoScaleConfig(fine=TINY, coarse=TINY), DEFAULT_CLASSES)
    assert isinstance(network, TwoScaleNet)
    with_statistics(network)
    quantization = measure_quantization(network, [tissue(0)])
    assert {"backbone.stem.1", "coarse_backbone.stem.1"}.isdisjoint(quantization.convolutions)
    assert any(name.startswith("coarse_head.") for name in quantization.convolutions)
    exact, int8 = heads(network, tissue(0)), heads(quantized(network, quantization), tissue(0))
    assert (int8["nucleus"] - exact["nucleus"]).square().mean().sqrt() < 0.3 * exact["nucleus"].std()


# In a file


def same(a: Quantization | None, b: Quantization | None) -> bool:
    assert a is not None
    assert b is not None
    pairs = [(each, b.convolutions[name]) for name, each in a.convolutions.items()]
    return a.convolutions.keys() == b.convolutions.keys() and all(
        np.float32([x.low, x.high]).tolist() == np.float32([y.low, y.high]).tolist()
        and torch.equal(x.correction, y.correction)
        for x, y in pairs
    )


def test_a_file_keeps_it(network, quantization, weights, tmp_path):
    model = load_model(weights)
    assert same(model.quantization, quantization)
    save_model(model.network, INFO, tmp_path / "again.safetensors", model.quantization)
    assert (tmp_path / "again.safetensors").read_bytes() == weights.read_bytes()
    save_model(network, INFO, tmp_path / "without.safetensors")
    assert load_model(tmp_path / "without.safetensors").quantization is None


def test_other_processes_get_it(network, quantization):
    unsaved = Model(INFO, network, quantization=quantization)
    assert same(copy.copy(unsaved).quantization, quantization)  # goes the way of a pickle


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t | {"int8.nowhere.range": torch.zeros(2)}, "1 unknown .int8.nowhere.range"),
        (lambda t: t | {"int8.mean.range": torch.zeros(2)}, "1 unknown .int8.mean.range"),
        (lambda t: t | {f"int8.{NAME}.scale": torch.zeros(2)}, f"1 unknown .int8.{NAME}.scale"),
        (lambda t: {k: v for k, v in t.items() if k != f"int8.{NAME}.range"}, f"1 missing .int8.{NAME}.range"),
        (lambda t: {k: v for k, v in t.items() if k != f"int8.{NAME}.correction"}, f"1 missing .int8.{NAME}.corr"),
        (lambda t: t | {f"int8.{NAME}.range": torch.zeros(3)}, f"1 misfitting .int8.{NAME}.range is"),
        (lambda t: t | {f"int8.{NAME}.correction": torch.zeros(1)}, f"1 misfitting .int8.{NAME}.correction is"),
        (lambda t: t | {f"int8.{NAME}.range": torch.zeros(2, dtype=torch.int64)}, "1 misfitting"),
        (lambda t: t | {f"int8.{NAME}.range": torch.tensor([0.0, torch.inf])}, "1 not finite"),
        (lambda t: t | {f"int8.{NAME}.range": torch.tensor([0.0, 1e300], dtype=torch.float64)}, "1 not finite"),
        (lambda t: t | {f"int8.{NAME}.correction": torch.full((12,), torch.nan)}, "1 not finite"),
        (lambda t: t | {f"int8.{NAME}.range": torch.tensor([0.5, 1.0])}, "1 int8 ranges without zero .*0.5 to 1.0"),
        (lambda t: t | {f"int8.{NAME}.range": torch.tensor([1.0, -1.0])}, "1 int8 ranges without zero"),
    ],
)
def test_what_does_not_fit_is_refused(
    weights: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], match: str
) -> None:
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(weights)), weights, metadata)
    with pytest.raises(ModelError, match=match):
        load_model(weights)


# As a backend


def test_a_model_without_it_is_refused(network, quantization):
    pytest.importorskip("openvino")
    assert choose_backend("openvino-int8", "cpu", Model(INFO, network, None, quantization)) == "openvino-int8"
    assert choose_backend("auto", "cpu", Model(INFO, network, None, quantization)) == "openvino"
    with pytest.raises(ModelError, match="tiny was never measured for openvino-int8; fine-tune or retrain"):
        choose_backend("openvino-int8", "cpu", Model(INFO, network))


def test_a_missing_openvino_is_said(monkeypatch):
    monkeypatch.setattr("nucleipan.pipeline.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"openvino-int8 is not installed; pip install 'nucleipan\[openvino\]'"):
        choose_backend("openvino-int8", "cpu")


def test_the_command(cli: Cli, network: PanopticNet, weights: Path, tmp_path: Path) -> None:
    """Without int8 in the weights it fails and says what to do; with it, the store says so and is made alike again."""
    pytest.importorskip("openvino")
    write_slide(SyntheticScene((128, 160), seed=5), tmp_path / "good.tiff", levels=1)
    save_model(network, INFO, tmp_path / "without.safetensors")
    command = ("segment", tmp_path / "good.tiff", "--out", tmp_path, "--device", "cpu", "--backend", "openvino-int8")
    refused = cli(*command, "--model", tmp_path / "without.safetensors")
    assert (refused.code, "use --backend openvino" in refused.stderr) == (1, True)
    done = cli(*command, "--model", weights)
    assert done.code == 0, done.stderr
    store = tmp_path / "good.ome.zarr"
    assert PanopticStore.open(store).config["backend"] == "openvino-int8"
    assert "openvino" in PanopticStore.open(store).attributes["made_with"]
    again = cli("segment", "--like", store, tmp_path / "good.tiff", "--out", tmp_path / "again", "--model", weights)
    assert again.code == 0, again.stderr
    lists = [(path / "checksums.sha256").read_text() for path in (store, tmp_path / "again" / "good.ome.zarr")]
    assert lists[0] == lists[1]
    other = cli(*command[:-1], "openvino", "--model", weights)
    assert (other.code, "belongs to another run" in other.stderr) == (1, True)


def test_nuclei_are_those_of_floats(tmp_path):
    pytest.importorskip("openvino")
    model = load_model("nucleipan-fast")
    assert isinstance(model.network, PanopticNet)
    if model.quantization is None:
        model = replace(model, quantization=measure_quantization(model.network, [tissue(s, 192) for s in range(4)]))
    write_slide(SyntheticScene((384, 384), seed=7), tmp_path / "scene.tiff", levels=1)
    stores = [
        segment_slide(
            tmp_path / "scene.tiff", tmp_path / backend, model, SegmentOptions(device="cpu", backend=backend)
        ).store
        for backend in ("openvino", "openvino-int8")
    ]
    floats, int8 = (store.instances()[:] for store in stores)
    assert not np.array_equal(floats, int8)
    n_same = matched(floats, int8)
    assert n_same >= 0.95 * max(store.n_nuclei for store in stores) > 20


def matched(a: np.ndarray, b: np.ndarray) -> int:
    """Number of pairs with an IoU above one half, of which each nucleus has one at most."""
    pairs, common = np.unique(np.stack([a, b])[:, (a > 0) & (b > 0)], axis=1, return_counts=True)
    union = np.bincount(a.ravel())[pairs[0]] + np.bincount(b.ravel())[pairs[1]] - common
    return int((common > 0.5 * union).sum())
