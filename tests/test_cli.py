"""The command line: what it prints, what it leaves behind and how it exits.

Everything a user may get wrong ends in one line on stderr that names the culprit and says what to do; exit code 1 means
an input failed and the others are done, 2 that the command itself makes no sense. The network is tiny and untrained:
what it finds does not matter here.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch

import nucleipan
from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.cli import main
from nucleipan.edits import EditLog, delete_nuclei
from nucleipan.network.build import build_network
from nucleipan.network.fusion import DecodeConfig
from nucleipan.network.model import PanopticNetConfig
from nucleipan.network.weights import ModelInfo, save_model
from nucleipan.store import PanopticStore
from nucleipan.synthetic import SyntheticScene, write_slide

SHAPE = (224, 256)


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """The one line on stderr."""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        return lines[0]


class Cli:
    """Runs command lines in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path) -> Outcome:
        self._monkeypatch.setattr(sys, "argv", ["nucleipan", *map(str, arguments)])
        self._capsys.readouterr()
        code: str | int | None = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        captured = self._capsys.readouterr()
        return Outcome(int(code or 0), captured.out, captured.err)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    return Cli(monkeypatch, capsys)


def write_model(path: Path, seed: int) -> Path:
    config = PanopticNetConfig(instance_channels=(8, 8, 8, 8), semantic_channels=8)
    torch.manual_seed(seed)
    network = build_network(config, DEFAULT_CLASSES).eval()
    with torch.no_grad():
        network.instance_head.predict.bias[:4] += 2.0  # sees nuclei, so that tables and exports are not empty
    info = ModelInfo(path.stem, 0.5, 32, DEFAULT_CLASSES, config, DecodeConfig(), "CC0-1.0", ("nothing",))
    save_model(network, info, path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two untrained models of one shape."""
    folder = tmp_path_factory.mktemp("models")
    return write_model(folder / "tiny.safetensors", 0), write_model(folder / "other.safetensors", 1)


@pytest.fixture(scope="module")
def model(models: tuple[Path, Path]) -> Path:
    return models[0]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "good.tiff"
    write_slide(SyntheticScene(SHAPE, seed=5), path, levels=1)
    return path


@pytest.fixture(scope="module")
def segmented(slide: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what ``segment`` makes of the good slide; not to be changed."""
    out = tmp_path_factory.mktemp("segmented")
    arguments = [
        "segment",
        slide,
        "--out",
        out,
        "--model",
        model,
        "--device",
        "cpu",
        "--export",
        "geojson",
        "--overlay",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nucleipan", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return out


@pytest.fixture
def finished(segmented: Path, tmp_path: Path) -> Path:
    """A copy of ``segmented`` that a test may change."""
    return Path(shutil.copytree(segmented, tmp_path / "finished"))


def nothing_finished(out: Path) -> bool:
    return not out.exists() or not list(out.glob("*.ome.zarr")) + list(out.glob("*.geojson*")) + list(out.glob("*.png"))


# What works


def test_help_names_every_command(cli: Cli) -> None:
    shown = cli("--help")
    assert shown.code == 0
    for command in ("segment", "export", "report", "evaluate", "train", "info", "models", "sample"):
        assert command in shown.stdout
        assert cli(command, "--help").code == 0


def test_version(cli: Cli) -> None:
    assert cli("--version") == Outcome(0, f"{nucleipan.__version__}\n", "")


def test_info_of_a_slide(cli: Cli, slide: Path) -> None:
    shown = cli("info", slide)
    assert (shown.code, shown.stderr) == (0, "")
    assert "shape: 224 x 256" in shown.stdout
    facts = json.loads(cli("info", slide, "--json").stdout)
    assert facts["shape"] == list(SHAPE)
    assert facts["mpp"] == pytest.approx(0.5)


def test_segment_writes_store_export_and_picture(segmented: Path) -> None:
    assert {p.name for p in segmented.iterdir()} == {"good.ome.zarr", "good.geojson.gz", "good.overlay.png"}
    store = PanopticStore.open(segmented / "good.ome.zarr")
    assert store.shape == SHAPE
    assert store.model["name"] == "tiny"
    assert store.n_nuclei > 0
    features = json.loads(gzip.decompress((segmented / "good.geojson.gz").read_bytes()))["features"]
    assert sum(f["properties"]["objectType"] == "detection" for f in features) == store.n_nuclei
    picture = imagecodecs.imread(segmented / "good.overlay.png")
    assert picture.shape[0] > SHAPE[0]  # the legend is below
    assert picture.shape[1] == SHAPE[1]


def test_info_of_a_store(cli: Cli, segmented: Path) -> None:
    shown = cli("info", segmented / "good.ome.zarr")
    assert (shown.code, shown.stderr) == (0, "")
    assert "n_nuclei" in shown.stdout
    assert json.loads(cli("info", segmented / "good.ome.zarr", "--json").stdout)["mpp"] == pytest.approx(0.5)


def test_export(cli: Cli, segmented: Path, tmp_path: Path) -> None:
    done = cli("export", segmented / "good.ome.zarr", "--format", "geojson", "--out", tmp_path / "nuclei.geojson")
    assert (done.code, done.stderr) == (0, "")
    plain = gzip.decompress((segmented / "good.geojson.gz").read_bytes())
    assert (tmp_path / "nuclei.geojson").read_bytes() == plain


def test_corrections_are_exported_unless_the_original_is_asked_for(cli: Cli, segmented: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(segmented / "good.ome.zarr", tmp_path / "good.ome.zarr"))
    log = EditLog.open(PanopticStore.open(store))
    log.append(delete_nuclei(log, [1]), "somebody")
    n = log.store.n_nuclei
    out = tmp_path / "nuclei.csv"
    for options, expected in (([], n - 1), (["--original"], n)):
        assert cli("export", store, "--format", "csv", "--out", out, *options).stdout == f"{out}: {expected} nuclei\n"
    found = json.loads(cli("info", store, "--json").stdout)
    assert (found["n_nuclei"], found["corrections"]["authors"]) == (n - 1, ["somebody"])


def test_a_finished_store_is_left_as_it_is(cli: Cli, slide: Path, model: Path, finished: Path) -> None:
    table = finished / "good.ome.zarr" / "nuclei.parquet"
    before = table.stat().st_mtime_ns
    done = cli("segment", slide, "--out", finished, "--model", model, "--device", "cpu")
    assert done.code == 0
    assert "finished already" in done.stdout
    assert table.stat().st_mtime_ns == before


def test_each_slide_gets_the_embedded_model_for_its_pixel_size(cli: Cli, slide: Path, tmp_path: Path) -> None:
    for mpp, name in ((0.25, "nucleipan-accurate"), (0.5, "nucleipan-fast")):
        out = tmp_path / name
        assert cli("segment", slide, "--out", out, "--mpp", mpp, "--device", "cpu").code == 0
        store = PanopticStore.open(out / "good.ome.zarr")
        assert store.model["name"] == name
        assert store.mpp == pytest.approx(mpp)


# Slides that fail: exit code 1


def test_a_failed_slide_does_not_stop_the_others(cli: Cli, slide: Path, model: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    shutil.copy(slide, folder / "z_good.tiff")
    (folder / "a_cut.tiff").write_bytes(slide.read_bytes()[:1000])
    done = cli("segment", folder, "--out", out, "--model", model, "--device", "cpu")
    assert done.code == 1
    complaints = [line for line in done.stderr.splitlines() if line.startswith("nucleipan: ")]
    assert len(complaints) == 1
    assert str(folder / "a_cut.tiff") in complaints[0]
    assert str(out / "z_good.ome.zarr") in done.stdout
    assert sorted(p.name for p in out.iterdir()) == ["summary.csv", "z_good.ome.zarr"]
    PanopticStore.open(out / "z_good.ome.zarr")


def test_the_largest_slide_comes_first_and_all_are_in_the_summary(
    cli: Cli, slide: Path, model: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "slides", tmp_path / "out"
    folder.mkdir()
    write_slide(SyntheticScene((SHAPE[0] * 2, SHAPE[1] * 2), seed=6), folder / "z_large.tiff", levels=1)
    shutil.copy(slide, folder / "a_small.tiff")
    (folder / "=HYPERLINK(1).tif").write_bytes(b"no slide")
    done = cli("segment", folder, "--out", out, "--model", model)
    assert done.code == 1
    assert [Path(line.split(":")[0]).name for line in done.stdout.splitlines()] == ["z_large.tiff", "a_small.tiff"]
    with open(out / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(Path(r["slide"]).name, r["status"]) for r in rows] == [
        ("z_large.tiff", "done"), ("a_small.tiff", "done"), ("=HYPERLINK(1).tif", "failed"),
    ]  # fmt: skip
    assert int(rows[0]["nuclei"]) == PanopticStore.open(out / "z_large.ome.zarr").n_nuclei > 0
    assert "expected TIFF" in rows[2]["notes"]
    again = cli("segment", folder / "a_small.tiff", "--out", out, "--model", model)
    assert "was finished already" in again.stdout
    assert len((out / "summary.csv").read_text().splitlines()) == 4, "a single slide leaves the summary alone"


def test_workers_of_this_machine(cli: Cli, slide: Path, model: Path, segmented: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    done = cli("segment", slide, "--out", tmp_path, "--model", model, "--device", "cpu", "--workers", "2")
    assert done.code == 0, done.stderr
    here, there = (PanopticStore.open(p / "good.ome.zarr") for p in (segmented, tmp_path))
    assert here.nuclei().equals(there.nuclei())
    both = cli("segment", slide, "--out", tmp_path, "--workers", "2", "--scheduler", "tcp://127.0.0.1:9")
    assert both.code == 2
    assert "pass one of them" in both.stderr


def refused(cli: Cli, slide: Path, model: Path | str, out: Path, *options: str, code: int = 1) -> str:
    """Run ``segment`` on what must fail; returns its one line, having checked that nothing looks finished."""
    done = cli("segment", slide, "--out", out, "--model", model, "--device", "cpu", *options)
    assert (done.code, done.stdout) == (code, ""), done.stderr
    assert nothing_finished(out)
    assert done.complaint.startswith("nucleipan: ")
    return done.complaint


@pytest.mark.parametrize(("content", "said"), [(b"", "empty"), (b"not a slide, a letter\n" * 40, "expected TIFF")])
def test_files_that_are_no_slides(cli: Cli, model: Path, tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "slide.svs"
    path.write_bytes(content)
    line = refused(cli, path, model, tmp_path / "out")
    assert str(path) in line
    assert said in line


def test_a_missing_file(cli: Cli, model: Path, tmp_path: Path) -> None:
    assert "no such file" in refused(cli, tmp_path / "nowhere.svs", model, tmp_path / "out")


@pytest.mark.shared
def test_the_broken_slide(cli: Cli, shared_slides: Path, model: Path, tmp_path: Path) -> None:
    assert "broken.svs" in refused(cli, shared_slides / "broken.svs", model, tmp_path / "out")


def test_an_image_without_pixel_size_needs_mpp(cli: Cli, model: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "flat.png", tmp_path / "out"
    path.write_bytes(imagecodecs.png_encode(np.full((96, 96, 3), 245, np.uint8)))
    line = refused(cli, path, model, out)
    assert "pixel size" in line
    assert "--mpp" in line
    done = cli("segment", path, "--out", out, "--model", model, "--device", "cpu", "--mpp", "0.5")
    assert done.code == 0
    assert "0 nuclei" in done.stdout


@pytest.mark.parametrize("roi", ["0,0,99999,99999", "-8,0,64,64", "64,64,64,128", "128,64,64,128"])
def test_a_region_outside_the_slide(cli: Cli, slide: Path, model: Path, tmp_path: Path, roi: str) -> None:
    line = refused(cli, slide, model, tmp_path / "out", f"--roi={roi}")
    assert roi in line
    assert f"0,0,{SHAPE[0]},{SHAPE[1]}" in line


def test_an_output_folder_that_cannot_be_written(cli: Cli, slide: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = refused(cli, slide, model, tmp_path / "file" / "out")
    assert "cannot be written" in line
    assert "--out" in line
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_store_of_another_model_is_kept(cli: Cli, slide: Path, models: tuple[Path, Path], finished: Path) -> None:
    store = finished / "good.ome.zarr"
    done = cli("segment", slide, "--out", finished, "--model", models[1], "--device", "cpu")
    assert done.code == 1
    assert "another run" in done.complaint
    assert "model.name" in done.complaint
    assert "--overwrite" in done.complaint
    assert PanopticStore.open(store).model["name"] == "tiny"
    done = cli("segment", slide, "--out", finished, "--model", models[1], "--device", "cpu", "--overwrite")
    assert done.code == 0
    assert PanopticStore.open(store).model["name"] == "other"
    assert not store.with_name("good.ome.zarr.partial").exists()


def test_something_else_in_the_place_of_the_store(cli: Cli, slide: Path, model: Path, tmp_path: Path) -> None:
    store = tmp_path / "good.ome.zarr"
    store.mkdir()
    (store / "letter.txt").write_text("keep me")
    done = cli("segment", slide, "--out", tmp_path, "--model", model, "--device", "cpu")
    assert done.code == 1
    assert str(store) in done.complaint
    assert [p.name for p in store.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("command", [["info"], ["export", "--format", "geojson", "--out", "x.geojson"]])
def test_a_missing_store(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli(command[0], tmp_path / "nowhere.ome.zarr", *command[1:])
    assert done.code == 1
    assert "nowhere.ome.zarr does not exist" in done.complaint
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_cannot_be_written(cli: Cli, segmented: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    target = tmp_path / "file" / "nuclei.geojson"
    done = cli("export", segmented / "good.ome.zarr", "--format", "geojson", "--out", target)
    assert done.code == 1
    assert str(target) in done.complaint


def test_scores_without_predictions(cli: Cli, tmp_path: Path) -> None:
    done = cli("evaluate", "--pred", tmp_path, "--truth", tmp_path)
    assert done.code == 1
    assert str(tmp_path) in done.complaint


def test_a_fresh_process_prints_one_line_too(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.svs").touch()
    root = str(Path(nucleipan.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", "from nucleipan.cli import main; main()", "segment", tmp_path / "empty.svs",
         "--out", tmp_path / "out", "--model", model],
        capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"PYTHONPATH": root},
    )  # fmt: skip
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "empty.svs: is empty" in outcome.complaint


# Commands that make no sense: exit code 2, before anything is done


@pytest.mark.parametrize("mpp", ["0", "-0.25", "nan", "inf"])
def test_impossible_pixel_sizes(cli: Cli, slide: Path, model: Path, tmp_path: Path, mpp: str) -> None:
    assert "--mpp" in refused(cli, slide, model, tmp_path / "out", "--mpp", mpp, code=2)


@pytest.mark.parametrize("roi", ["0,0,64", "a,b,c,d", "0;0;64;64", "", "0,0,6.5,64"])
def test_malformed_regions(cli: Cli, slide: Path, model: Path, tmp_path: Path, roi: str) -> None:
    line = refused(cli, slide, model, tmp_path / "out", f"--roi={roi}", code=2)
    assert "--roi" in line
    assert "Y0,X0,Y1,X1" in line


@pytest.mark.parametrize("name", ["tiny-typo", "https://example.org/model.safetensors"])
def test_unknown_models(cli: Cli, slide: Path, tmp_path: Path, name: str) -> None:
    assert name in refused(cli, slide, name, tmp_path / "out", code=2)


def test_weights_that_are_no_safetensors(cli: Cli, slide: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    line = refused(cli, slide, path, tmp_path / "out", code=2)
    assert str(path) in line
    assert "safetensors" in line


def test_weights_of_another_program(cli: Cli, slide: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    assert "nucleipan header" in refused(cli, slide, path, tmp_path / "out", code=2)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_unknown_devices(cli: Cli, slide: Path, model: Path, tmp_path: Path, device: str) -> None:
    out = tmp_path / "out"
    done = cli("segment", slide, "--out", out, "--model", model, "--device", device)
    assert (done.code, done.stdout) == (2, "")
    assert repr(device) in done.complaint
    assert "cpu" in done.complaint
    assert not out.exists()


@pytest.mark.parametrize("formats", ["shapefile", "geojson,shapefile"])
def test_unknown_export_formats(cli: Cli, slide: Path, model: Path, tmp_path: Path, formats: str) -> None:
    line = refused(cli, slide, model, tmp_path / "out", "--export", formats, code=2)
    assert "shapefile" in line
    assert "known: geojson" in line


@pytest.mark.parametrize("format_", ["shapefile", "geojson,shapefile", ""])
def test_unknown_format_of_export(cli: Cli, segmented: Path, tmp_path: Path, format_: str) -> None:
    done = cli("export", segmented / "good.ome.zarr", f"--format={format_}", "--out", tmp_path / "nuclei")
    assert done.code == 2
    assert "geojson" in done.complaint
    assert not (tmp_path / "nuclei").exists()


def test_tiles_of_no_use(cli: Cli, slide: Path, model: Path, tmp_path: Path) -> None:
    assert "--tile" in refused(cli, slide, model, tmp_path / "out", "--tile", "8", code=2)


def test_a_folder_without_slides(cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("nothing here")
    line = refused(cli, tmp_path / "in", model, tmp_path / "out", code=2)
    assert str(tmp_path / "in") in line


def test_two_slides_of_one_name(cli: Cli, slide: Path, model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(slide, tmp_path / name / slide.name)
    done = cli("segment", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out", "--model", model)
    assert (done.code, done.stdout) == (2, "")
    assert str(tmp_path / "a" / slide.name) in done.complaint
    assert "--out" in done.complaint


def test_the_same_slide_named_twice_is_one(cli: Cli, segmented: Path, slide: Path, model: Path) -> None:
    done = cli("segment", slide, slide.parent, "--out", segmented, "--model", model, "--device", "cpu")
    assert done.code == 0
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [["segment"], ["segment", "slide.svs"], ["segment", "a.svs", "--out", "b", "--flag"], ["fly"]]
)
def test_wrong_usage(cli: Cli, arguments: list[str]) -> None:
    done = cli(*arguments)
    assert (done.code, done.stdout) == (2, "")
    assert "Usage:" in done.stderr


def test_a_wrong_training_configuration(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("name: x\nsteps: 5\n")
    done = cli("train", config)
    assert done.code == 2
    assert str(config) in done.complaint
    assert cli("train", tmp_path / "nowhere.yaml").code == 2
    assert "key=value" in cli("train", config, "--set", "steps").complaint


def test_models_lists_what_comes_with_the_package(
    cli: Cli, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nucleipan.network import weights

    monkeypatch.setattr(weights, "_EMBEDDED", models[0].parent)
    shown = cli("models")
    assert (shown.code, shown.stderr) == (0, "")
    for name in ("tiny", "other", "neoplastic", "stroma", "CC0-1.0"):
        assert name in shown.stdout
