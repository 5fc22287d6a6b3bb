"""``segment --like STORE``: the same bytes again, and nothing else without saying so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_cli import SHAPE, Cli, cli, write_model

from nucleipan import again
from nucleipan.store import PanopticStore
from nucleipan.synthetic import SyntheticScene, write_slide

__all__ = ["cli"]  # the fixture

# None of them the default.
OPTIONS = ("--roi", "16,32,208,240", "--tile", "128", "--mpp", "0.51", "--flips", "--with-image", "--backend", "torch")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A slide and weights."""
    folder = tmp_path_factory.mktemp("files")
    write_slide(SyntheticScene(SHAPE, seed=5), folder / "good.tiff", levels=1)
    return folder / "good.tiff", write_model(folder / "tiny.safetensors", 0)


@pytest.fixture
def store(cli: Cli, files: tuple[Path, Path], tmp_path: Path) -> Path:
    slide, model = files
    assert cli("segment", slide, "--out", tmp_path, "--model", model, "--device", "cpu", *OPTIONS).code == 0
    return tmp_path / "good.ome.zarr"


def changed(store: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy whose attributes are others; its checksums no longer fit, which opening does not look at."""
    path = Path(shutil.copytree(store, store.parent / "changed.ome.zarr"))
    document = json.loads((path / "zarr.json").read_text())
    change(document["attributes"]["nucleipan"])
    (path / "zarr.json").write_text(json.dumps(document))
    return path


def test_the_same_bytes_again(cli: Cli, files: tuple[Path, Path], store: Path, tmp_path: Path) -> None:
    slide, model = files
    done = cli("segment", "--like", store, slide, "--out", tmp_path / "again", "--model", model)
    assert done.code == 0, done.stderr
    assert "nuclei may differ" not in done.stderr
    lists = [(path / "checksums.sha256").read_text() for path in (store, tmp_path / "again" / "good.ome.zarr")]
    assert lists[0].count("\n") > 10
    assert lists[0] == lists[1]
    made = PanopticStore.open(tmp_path / "again" / "good.ome.zarr")
    assert (made.spec.core, made.mpp, made.config["flips"], made.n_nuclei > 0) == (128, 0.51, True, True)


def test_what_contradicts_is_refused(cli: Cli, files: tuple[Path, Path], store: Path, tmp_path: Path) -> None:
    slide, model = files
    like = ("segment", "--like", store, slide, "--out", tmp_path / "again", "--model", model)
    agreeing = cli(*like, "--tile", "128", "--roi", "16,32,208,240", "--backend", "auto", "--device", "cpu")
    assert agreeing.code == 0, agreeing.stderr
    for options in (["--tile", "2048"], ["--mpp", "0.5"], ["--roi", "0,0,64,64"], ["--keep-metadata"]):
        refused = cli(*like, *options)
        assert refused.code == 2
        assert f"contradicts {options[0]} " in refused.complaint
    both = cli(*like[:3], slide, store.parent / "other.tiff", *like[4:])
    assert (both.code, "found 2 slides" in both.complaint) == (2, True)


def test_another_slide_model_or_version(cli: Cli, files: tuple[Path, Path], store: Path, tmp_path: Path) -> None:
    slide, model = files
    out = ("--out", tmp_path / "again")
    write_slide(SyntheticScene(SHAPE, seed=6), tmp_path / "good.tiff", levels=1)
    other = cli("segment", "--like", store, tmp_path / "good.tiff", *out, "--model", model)
    assert (other.code, "is not the slide that" in other.complaint) == (1, True)
    unnamed = cli("segment", "--like", store, slide, *out)
    assert (unnamed.code, "pass its weights file with --model" in unnamed.complaint) == (2, True)
    wrong = cli("segment", "--like", store, slide, *out, "--model", write_model(tmp_path / "tiny.safetensors", 1))
    assert (wrong.code, "has the checksum" in wrong.complaint) == (2, True)
    older = changed(store, lambda found: found["config"].update(nucleipan="0.0.1"))
    refused = cli("segment", "--like", older, slide, *out, "--model", model)
    assert (refused.code, "was made by nucleipan 0.0.1" in refused.complaint) == (1, True)
    assert not (tmp_path / "again").exists()


def test_a_backend_that_is_missing(
    cli: Cli, files: tuple[Path, Path], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, model = files
    other = changed(store, lambda found: found["config"].update(backend="openvino"))
    monkeypatch.setattr("nucleipan.pipeline.find_spec", lambda name: None)
    monkeypatch.setattr("nucleipan.network.runtime.version", lambda name: "0")
    refused = cli("segment", "--like", other, slide, "--out", tmp_path / "again", "--model", model)
    assert refused.code == 2
    assert "backend openvino is not installed" in refused.stderr


def test_other_versions_are_said(files: tuple[Path, Path], store: Path) -> None:
    slide, model = files
    older = changed(store, lambda found: found["made_with"].update(torch="2.7.0"))
    like = again.run_like(PanopticStore.open(older), slide, {"model": str(model)})
    assert len(like.notes) == 1
    assert "(it had 2.7.0); nuclei may differ a little" in like.notes[0]
