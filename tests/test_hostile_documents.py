"""Documents, configurations and weights made to do harm: to run something, fill the memory, or never end."""

from __future__ import annotations

import gzip
import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import safetensors.torch
import torch
from hostile_data import LAUGHS

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.config import load_train_config
from nucleipan.datasets import _documents as documents
from nucleipan.datasets import read_monuseg, read_qupath
from nucleipan.errors import ConfigError, DataError, ModelError
from nucleipan.network.weights import load_model, read_model_info


@pytest.fixture(autouse=True)
def ends_soon() -> Any:
    began = time.process_time()
    yield
    assert time.process_time() - began < 10


# JSON, XML, outlines


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """A folder with an image; its outlines are still to be written."""
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.zeros((1000, 64, 3), np.uint8)))
    return tmp_path


def features(*rings: list[list[float]]) -> str:
    drawn = [
        {"geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {"objectType": "detection"}}
        for ring in rings
    ]
    return json.dumps({"features": drawn})


def test_a_compressed_bomb(annotated: Path) -> None:
    (annotated / "a.geojson.gz").write_bytes(gzip.compress(b"[" + b" " * 2**26 + b"]", 9))
    with pytest.raises(DataError, match="bytes of text"):
        read_qupath(annotated)


def test_more_values_than_memory(annotated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_MAX_VALUES", 1000)
    (annotated / "a.geojson").write_text("[" + "[]," * 1000 + "[]]")
    with pytest.raises(DataError, match=r"2,002 values"):
        read_qupath(annotated)


@pytest.mark.parametrize(
    "rings",
    [
        [[[0, 0], [64, 0], [64, 1000], [0, 1000]]] * 100,
        [[[k % 64, 1000 * (k % 2)] for k in range(20_000)]],
    ],
    ids=["the same square again and again", "up and down and up"],
)
def test_outlines_that_take_minutes_to_draw(annotated: Path, rings: list[list[list[float]]]) -> None:
    (annotated / "a.geojson").write_text(features(*rings))
    with pytest.raises(DataError, match="outlines cover"):
        read_qupath(annotated)[0].load()


def test_entities_of_xml_are_not_expanded(annotated: Path) -> None:
    (annotated / "a.xml").write_text(f"{LAUGHS}]><Annotations>&m;</Annotations>")
    with pytest.raises(DataError, match="entities"):
        read_monuseg(annotated)[0].load()


# Configurations


def doubled(key: str) -> str:
    """Thirty lines that say two to the power of thirty values."""
    lines = ["a0: &a0 1"] + [f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, 31)]
    return "\n".join([*lines, f"{key}: *a30"])


@pytest.mark.parametrize(
    "text",
    [
        doubled("sources"),
        "sources: &a [*a]",
        "x: &a {y: 1}\nsources:\n  <<: [" + "*a, " * 20_000 + "*a]",
        "sources: " + "[" * 5_000,
        "sources: " + "9" * 100_000,
        "sources: 1" + ":1" * 100_000,
        "date: 2001-99-99",
        "sources: !!python/object/apply:os.mkdir [trace]",
        'output: "a\\0b"',
        "\xff\xfe",
        "",
    ],
)
def test_configurations_that_do_harm(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load_train_config(tmp_path / "a.yaml")
    assert len(str(caught.value)) < 2000
    assert not (tmp_path / "trace").exists()


def test_a_configuration_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="no file"):
        load_train_config(tmp_path / "a.yaml")


def test_overrides_that_are_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("sources: []")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_train_config(tmp_path / "a.yaml", ["output=[a"])


# Weights


def weights(path: Path, header: Any, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    text = header if isinstance(header, str) else json.dumps(header)
    safetensors.torch.save_file(tensors or {"a": torch.zeros(1)}, path, metadata={"nucleipan": text})
    return path


@pytest.fixture
def header(tmp_path: Path) -> dict[str, Any]:
    return {
        "format": 1, "name": "x", "mpp": 0.5, "margin": 128, "classes": DEFAULT_CLASSES.to_list(),
        "network": {}, "decode": {}, "licence": "CC0", "trained_on": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"margin": float("inf")},
        {"mpp": -1},
        {"mpp": 1e-9},
        {"classes": [{"id": float("inf"), "name": "a", "is_thing": True, "color": [0, 0, 0]}]},
        {"network": {"dilations": [[1, 1]] * 4 + [[1, 2**40]]}},
        {"network": {"head": ["x"]}},
        {"decode": {"voting": {"peak_radius": 10**9}}},
    ],
)
def test_headers_that_lie(tmp_path: Path, header: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"malformed|header says"):
        read_model_info(weights(tmp_path / "a.safetensors", header | change))


def test_headers_that_are_too_deep_or_too_long(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="too deep"):
        read_model_info(weights(tmp_path / "a.safetensors", "[" * 200_000))
    for length in (2**31, 2**63, 0):
        (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(ModelError, match="safetensors"):
            load_model(tmp_path / "b.safetensors")


def test_tensors_are_judged_before_they_are_read(tmp_path: Path, header: dict[str, Any]) -> None:
    """Gigabytes that are nowhere on the disk."""
    n = 8 * 2**30
    entry = {"mean": {"dtype": "F32", "shape": [n // 4], "data_offsets": [0, n]}}
    text = json.dumps({"__metadata__": {"nucleipan": json.dumps(header)}, **entry}).encode()
    with open(tmp_path / "a.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + n)
    with pytest.raises(ModelError, match=r"misfitting \(mean"):
        load_model(tmp_path / "a.safetensors")


def test_tensors_of_another_kind(tmp_path: Path, header: dict[str, Any]) -> None:
    path = weights(tmp_path / "a.safetensors", header, {"mean": torch.zeros(1, 3, 1, 1).to(torch.float8_e4m3fn)})
    with pytest.raises(ModelError, match="F8_E4M3"):
        load_model(path)
