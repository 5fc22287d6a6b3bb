"""Stores, links and names made to do harm: to lie, to write elsewhere, to forge what people read."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile_data import Evil
from stitch_oracle import random_truth, spec_of, stitch_oracle

from nucleipan.cli import main
from nucleipan.config import load_train_config
from nucleipan.errors import NucleipanError, StoreError, printable
from nucleipan.exports import export_store
from nucleipan.geometry import Box
from nucleipan.network.weights import load_model
from nucleipan.stitch import StitchContext
from nucleipan.store import PanopticStore, exclusive, open_or_resume
from nucleipan.store.arrays import StoredArray
from nucleipan.summary import BatchSummary
from nucleipan.tiles import TileGrid

SHAPE = (96, 128)
GRID = TileGrid(SHAPE, Box.of_shape(SHAPE), 64, 32, 1)
FORGING = "a\nnucleipan: all is well\x1b[2J\r\N{RIGHT-TO-LEFT OVERRIDE}.png"


# Stores


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "a.ome.zarr"
    return stitch_oracle(path, random_truth(SHAPE, 20), StitchContext(GRID, 2.0))[0].path


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "a.ome.zarr"))


@pytest.mark.parametrize(
    "change",
    [
        {"mpp": "0.5"}, {"mpp": -1}, {"mpp": float("nan")}, {"level0_per_pixel": 0}, {"shape": [2**40, 5]},
        {"shape": ["a", "b"]}, {"extent": [0, 0, 10**6, 10**6]}, {"extent": [0.5, 0, 1, 1]}, {"core": None},
        {"slide": [1]}, {"model": "x"}, {"config": None}, {"classes": [{"id": float("inf")}]}, {"version": "9"},
    ],
)  # fmt: skip
def test_store_attributes_that_lie(store: Path, change: dict[str, Any]) -> None:
    document = json.loads((store / "zarr.json").read_text())
    document["attributes"]["nucleipan"] |= change
    (store / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError):
        PanopticStore.open(store)


def test_pickled_labels_are_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    (tmp_path / "0").mkdir()
    filters = [{"id": "vlen-utf8"}, {"id": "pickle"}]
    document = {
        "shape": [64, 64], "chunks": [64, 64], "dtype": "|O", "fill_value": "", "order": "C", "filters": filters,
        "dimension_separator": ".", "compressor": None, "zarr_format": 2,
    }  # fmt: skip
    (tmp_path / "0" / ".zarray").write_text(json.dumps(document))
    (tmp_path / "0" / "0.0").write_bytes(pickle.dumps(Evil(tmp_path / "trace")))
    with pytest.raises(StoreError):
        _ = StoredArray.open(tmp_path / "0")[:5, :5]
    assert not (tmp_path / "trace").exists()


def test_label_arrays_of_impossible_sizes(store: Path) -> None:
    path = store / "labels/nuclei/0/zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": [10**400, 5]}))
    with pytest.raises(StoreError):
        StoredArray.open(path.parent)


def test_label_arrays_that_lie(store: Path) -> None:
    path = store / "labels/nuclei/0/zarr.json"
    document = json.loads(path.read_text())
    document["chunk_grid"]["configuration"]["chunk_shape"] = [2**20, 2**20]
    document["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match="smaller ones"):
        StoredArray.open(path.parent)


def test_codecs_that_do_not_fit_together(store: Path) -> None:
    """Opened without complaint, refused where it is read; found by fuzzing."""
    path = store / "labels/nuclei/0/zarr.json"
    document = json.loads(path.read_text())
    document["codecs"][0]["configuration"]["codecs"].reverse()
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match="damaged"):
        _ = StoredArray.open(path.parent)[:5, :5]


# Links


@pytest.mark.parametrize("suffix", ["", ".partial", ".replaced", ".partial/labels"])
def test_a_run_follows_no_link(tmp_path: Path, suffix: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "tiles").mkdir(parents=True)
    (elsewhere / "zarr.json").write_text("{}")
    (elsewhere / "tiles" / "precious").write_text("precious")
    out, name = tmp_path / "out", f"a.ome.zarr{suffix}"
    (out / name).parent.mkdir(parents=True)
    (out / name).symlink_to(elsewhere)
    for overwrite in (False, True):
        with pytest.raises(StoreError, match="is a link"):
            open_or_resume(out / "a.ome.zarr", spec_of(GRID), overwrite)
    assert (elsewhere / "tiles" / "precious").read_text() == "precious"
    assert {p.name for p in elsewhere.iterdir()} == {"tiles", "zarr.json"}


def test_a_lock_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".a.ome.zarr.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match="is a link"), exclusive(tmp_path / "a.ome.zarr"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_an_output_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert not open_or_resume(tmp_path / "out" / "a.ome.zarr", spec_of(GRID)).is_resumed
    assert (tmp_path / "disk" / "a.ome.zarr.partial" / "run.json").is_file()


def test_an_export_replaces_a_link_and_follows_none(store: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a.csv").symlink_to(tmp_path / "precious")
    export_store(PanopticStore.open(store), "csv", tmp_path / "a.csv")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "a.csv").is_symlink()


# Names


def test_what_is_printed_is_one_line_that_can_be_seen() -> None:
    assert printable(FORGING) == r"a\nnucleipan: all is well\x1b[2J\r\u202e.png"
    assert printable("\udcff") == r"\udcff"
    assert printable("Präparat 3\N{NO-BREAK SPACE}µm.svs") == "Präparat 3\N{NO-BREAK SPACE}µm.svs"


def test_names_forge_no_rows_and_no_formulas(tmp_path: Path) -> None:
    summary = BatchSummary()
    for name in (FORGING, "=cmd()", " =cmd()", "\t=cmd()"):
        summary.add_failure(Path(name), f"{name}: failed")
    summary.write(tmp_path / "summary.csv")
    text = (tmp_path / "summary.csv").read_text()
    assert text.count("\n") == 5
    assert all(c.isprintable() or c == "\n" for c in text)
    with open(tmp_path / "summary.csv", newline="") as file:
        slides = [row["slide"] for row in csv.DictReader(file)]
    assert slides == [printable(FORGING), "'=cmd()", "' =cmd()", r"\t=cmd()"]


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["nucleipan", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_info_of_a_forging_name_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / FORGING).write_bytes(b"no image")
    code, out, err = run(capsys, monkeypatch, "info", tmp_path / FORGING)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert all(c.isprintable() or c == "\n" for c in err)


def test_info_of_a_store_prints_no_control_characters(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads((store / "zarr.json").read_text())
    document["attributes"]["nucleipan"]["slide"] = {"name": FORGING, FORGING: [FORGING]}
    (store / "zarr.json").write_text(json.dumps(document))
    code, out, _ = run(capsys, monkeypatch, "info", store)
    assert code == 0
    assert printable(FORGING) in out
    assert all(c.isprintable() or c == "\n" for c in out)
    assert not any(line.startswith("nucleipan: all is well") for line in out.splitlines())


def test_segment_says_one_line_for_each_hostile_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    (slides / FORGING).write_bytes(b"no image")
    (slides / "[red]x.tif").write_bytes(b"II*\0" + bytes(4))
    (slides / ("a" * 251 + ".png")).write_bytes(b"\x89PNG\r\n\x1a\n")
    os.mkfifo(slides / "b.svs")
    code, _, err = run(capsys, monkeypatch, "segment", slides, "--out", tmp_path / "out", "--device", "cpu")
    lines = err.splitlines()
    assert code == 1
    assert len(lines) == 4
    assert all(line.startswith("nucleipan: ") and "Traceback" not in line for line in lines)
    assert all(c.isprintable() or c == "\n" for c in err)


def test_errors_are_ours(tmp_path: Path) -> None:
    """The promise of this file, for a document of every kind that is another kind."""
    (tmp_path / "a").write_bytes(pickle.dumps(Evil(tmp_path / "trace")))
    for read in (load_model, load_train_config, PanopticStore.open):
        with pytest.raises(NucleipanError):
            read(tmp_path / "a")
    assert not (tmp_path / "trace").exists()
