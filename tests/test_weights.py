"""Weights files: what is written is read, and what does not fit is refused with the difference."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.errors import ModelError
from nucleipan.network.build import build_network
from nucleipan.network.fusion import DecodeConfig
from nucleipan.network.model import PanopticNetConfig
from nucleipan.network.weights import ModelInfo, load_model, read_model_info, save_model

TINY = PanopticNetConfig(instance_channels=(8, 8, 8, 8), semantic_channels=8)


@pytest.fixture
def weights(tmp_path):
    info = ModelInfo("tiny", 0.5, 128, DEFAULT_CLASSES, TINY, DecodeConfig(), "CC0", ("nothing (none)",))
    path = tmp_path / "tiny.safetensors"
    save_model(build_network(TINY, DEFAULT_CLASSES), info, path)
    return path


def rewrite(path, change_tensors=lambda t: t, change_header=lambda h: h):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["nucleipan"])
    tensors = change_tensors(load_file(path))
    save_file(tensors, path, metadata={"nucleipan": json.dumps(change_header(header))})


def test_round_trip(weights):
    model = load_model(weights)
    assert model.info.name == "tiny"
    assert model.info.classes == DEFAULT_CLASSES
    assert model.info.trained_on == ("nothing (none)",)
    assert len(model.info.sha256) == 64
    for name, tensor in load_file(weights).items():
        torch.testing.assert_close(model.network.state_dict()[name], tensor, check_dtype=False)
    assert read_model_info(weights).network == TINY


def test_convolutions_are_stored_in_half_precision(tmp_path):
    network = build_network(TINY, DEFAULT_CLASSES)
    info = ModelInfo("tiny", 0.5, 128, DEFAULT_CLASSES, TINY, DecodeConfig(), "CC0", ())
    save_model(network, info, tmp_path / "tiny.safetensors")
    read = load_model(tmp_path / "tiny.safetensors").network.state_dict()
    for name, tensor in network.state_dict().items():
        is_convolution = tensor.ndim == 4 and name.endswith("weight")
        assert read[name].dtype == tensor.dtype
        torch.testing.assert_close(read[name], tensor, rtol=2**-11 if is_convolution else 0, atol=4e-8)
    save_model(load_model(tmp_path / "tiny.safetensors").network, info, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "tiny.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "mean"}, "1 missing .mean"),
        (lambda t: t | {"extra": torch.zeros(1)}, "1 unknown .extra"),
        (lambda t: t | {"mean": torch.zeros(1, 4, 1, 1)}, "1 misfitting .mean is"),
        (lambda t: t | {"mean": torch.full((1, 3, 1, 1), float("nan"))}, "1 not finite .mean"),
    ],
)
def test_tensors_that_do_not_fit(weights, change, match):
    rewrite(weights, change_tensors=change)
    with pytest.raises(ModelError, match=match):
        load_model(weights)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda h: h | {"classes": h["classes"][:-1]}, "misfitting"),
        (lambda h: h | {"format": 99}, "upgrade"),
        (lambda h: h | {"mpp": float("nan")}, "mpp"),
        (lambda h: {k: v for k, v in h.items() if k != "mpp"}, "malformed"),
        (lambda h: h | {"network": {"layers": 9}}, "malformed"),
        (lambda h: h | {"network": {"semantic_channels": 10**9}}, "malformed"),
    ],
)
def test_headers_that_do_not_fit(weights, change, match):
    rewrite(weights, change_header=change)
    with pytest.raises(ModelError, match=match):
        load_model(weights)


def test_only_safetensors(tmp_path, weights):
    pickled = tmp_path / "weights.pt"
    pickled.write_bytes(pickle.dumps({"mean": 1}))
    with pytest.raises(ModelError, match="safetensors only"):
        load_model(pickled)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match="not a readable safetensors"):
        load_model(torn)
    save_file({"a": torch.zeros(1)}, foreign := tmp_path / "foreign.safetensors")
    with pytest.raises(ModelError, match="no nucleipan header"):
        load_model(foreign)


def test_unknown_model_names_what_there_is():
    with pytest.raises(ModelError, match="neither an embedded model"):
        load_model("no-such-model")
