"""OpenVINO computes what PyTorch computes, on tiles of any size."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
import torch

from nucleipan.errors import ModelError
from nucleipan.geometry import Box
from nucleipan.network.inference import FlipAverage, InferenceNetwork, rest
from nucleipan.network.weights import load_model
from nucleipan.pipeline import choose_backend
from nucleipan.segment import SegmentOptions, segment_slide
from nucleipan.slide import at_mpp, open_slide
from nucleipan.synthetic import SyntheticScene, write_slide
from nucleipan.tiles import TileGrid
from nucleipan.transforms import SlideTiles

pytest.importorskip("openvino")
from nucleipan.network.openvino import OpenVinoNetwork


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> list[torch.Tensor]:
    path = tmp_path_factory.mktemp("slide") / "scene.tif"
    write_slide(SyntheticScene((320, 384), seed=4), path, levels=1)
    with open_slide(path) as slide:
        view = at_mpp(slide, 0.5)
        whole = Box.of_shape(view.shape)
        grids = [TileGrid(view.shape, whole, core, 32) for core in (192, 384)]
        scanned = [torch.as_tensor(SlideTiles(view, grid)[0]["image"])[None] for grid in grids]
        return [*scanned, scanned[0] / 255]


def test_outputs_are_those_of_torch(tiles):
    model = load_model("nucleipan-fast")
    exact = model.network.eval()
    here, there = InferenceNetwork(model.network, torch.device("cpu")), OpenVinoNetwork(model.network, n_threads=1)
    assert len({t.shape for t in tiles}) > 1
    for image in tiles:
        with torch.no_grad():
            truth = exact(image if image.is_floating_point() else image / 255)
        for name in ("nucleus", "semantic", "offsets"):
            wanted, torchs, ours = (getattr(out, name) for out in (truth, here(image), there(image)))
            assert ours.dtype == torch.float32
            assert ours.shape == wanted.shape
            allowed = 1.5 * (torchs - wanted).abs().mean() + 1e-3
            assert (ours - wanted).abs().mean() <= allowed, f"{name}: farther from float32 than PyTorch's own bf16"
        agree = ((there(image).nucleus > 0) == (truth.nucleus > 0)).float().mean()
        assert agree > 0.995


def test_outputs_stay_when_the_next_tile_is_computed(tiles):
    network = OpenVinoNetwork(load_model("nucleipan-fast").network)
    first = network(tiles[0])
    kept = first.nucleus.clone()
    network(tiles[1])
    assert torch.equal(first.nucleus, kept)


@pytest.mark.parametrize("wrap", [lambda network: network, FlipAverage])
def test_a_network_that_rests_gives_memory_back(wrap):
    """Less than half of what it works in stays, and the next tile has the same outputs."""
    network, image = wrap(OpenVinoNetwork(load_model("nucleipan-fast").network)), torch.zeros((1, 3, 64, 64))
    network(image)
    before = _resident_mb()
    large = torch.from_numpy(np.random.default_rng(0).random((1, 3, 1024, 1024), np.float32))
    first = network(large)
    working = _resident_mb()
    rest(network)
    assert working - before > 200
    assert _resident_mb() - before < (working - before) / 2
    assert all(map(torch.equal, vars(network(large)).values(), vars(first).values()))


def test_a_whole_slide_ends_with_the_network_at_rest(tmp_path, monkeypatch):
    rested: list[int] = []
    monkeypatch.setattr(OpenVinoNetwork, "rest", lambda self: rested.append(len(list(tmp_path.rglob("*.tile")))))
    path = tmp_path / "scene.tif"
    write_slide(SyntheticScene((320, 384), seed=4), path, levels=1)
    result = segment_slide(path, tmp_path, load_model("nucleipan-fast"), SegmentOptions(tile=128, backend="openvino"))
    assert rested == [result.n_tiles], "once, after all tiles and before they are joined"


def _resident_mb() -> float:
    return psutil.Process().memory_info().rss / 2**20


def test_nobody_is_told(monkeypatch):
    telemetry = pytest.importorskip("openvino_telemetry")
    told: list[tuple] = []
    for name in ("start_session", "send_event", "send_error", "send_stack_trace"):
        monkeypatch.setattr(telemetry.Telemetry, name, lambda *args, **kwargs: told.append(args))
    OpenVinoNetwork(load_model("nucleipan-fast").network)(torch.zeros((1, 3, 64, 64), dtype=torch.uint8))
    assert not told


def test_which_backend_is_used(monkeypatch):
    assert choose_backend("auto", "cpu") == "openvino"
    assert choose_backend("torch", "cpu") == "torch"
    with pytest.raises(ModelError, match="use auto, torch, openvino"):
        choose_backend("onnx", "cpu")
    monkeypatch.setattr("nucleipan.pipeline.find_spec", lambda name: None)
    assert choose_backend("auto", "cpu") == "torch"
    with pytest.raises(ModelError, match=r"pip install 'nucleipan\[openvino\]'"):
        choose_backend("openvino", "cpu")
