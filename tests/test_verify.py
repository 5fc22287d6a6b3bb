"""Damage to a store is found wherever it is, named, and goes no further."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.cli import main
from nucleipan.edits import EditLog, delete_nuclei
from nucleipan.errors import StoreError
from nucleipan.exports import FORMATS, OF_RESULTS, ExportOptions, export_store
from nucleipan.geometry import Box
from nucleipan.stitch import StitchContext
from nucleipan.store import CHECKSUMS, PanopticStore, damaged_files, read_checksums, refuse_damaged
from nucleipan.store.checksums import FileSum, _render, write_checksums
from nucleipan.tiles import TileGrid
from nucleipan.verify import verify_store

SHAPE = (150, 1100)  # two levels of several shards each
SHARD = "labels/nuclei/0/c/0/3"
FILES = (
    "zarr.json", "labels/zarr.json", "labels/nuclei/zarr.json", "labels/classes/0/zarr.json", "0/zarr.json",
    SHARD, "labels/nuclei/1/c/0/2", "labels/classes/0/c/1/5", "labels/classes/1/c/0/0", "0/c/0/0/0", "nuclei.parquet",
    CHECKSUMS,
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store; not to be changed."""
    context = StitchContext(TileGrid(SHAPE, Box.of_shape(SHAPE), 128, 64, 1), 2.0)
    path = tmp_path_factory.mktemp("verify") / "slide.ome.zarr"
    return stitch_oracle(path, random_truth(SHAPE, 300), context)[0].path


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(sound, tmp_path / "slide.ome.zarr"))


def flip(path: Path, bit: int) -> bytes:
    """Change one bit of a file; returns what it held."""
    before = path.read_bytes()
    after = bytearray(before)
    after[bit // 8] ^= 1 << bit % 8
    path.write_bytes(after)
    return before


def files_of(findings: object) -> list[str]:
    return [finding.file for finding in findings]  # type: ignore[attr-defined]


# Checksums


def test_a_sound_store_is_sound(sound: Path) -> None:
    found = verify_store(sound)
    files = {p.relative_to(sound).as_posix() for p in sound.rglob("*") if p.is_file()} - {CHECKSUMS}
    assert found.findings == ()
    assert (found.n_files, found.n_pixels) == (len(files), SHAPE[0] * SHAPE[1])
    assert found.n_nuclei == PanopticStore.open(sound).n_nuclei > 100
    assert set(read_checksums(sound) or ()) == files
    assert set(FILES) - {CHECKSUMS} <= files, "the tests below change files that exist"


def test_progress_counts_files_and_shards(sound: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    verify_store(sound, lambda done, total, step: seen.setdefault(step, []).append((done, total)))
    n_files, n_shards = len(read_checksums(sound) or ()), 2 * 9
    assert seen["checksums"] == [(k + 1, n_files) for k in range(n_files)]
    assert seen["pixels"] == [(k + 1, n_shards) for k in range(n_shards)]


def test_equal_stores_have_equal_lists(sound: Path, tmp_path: Path) -> None:
    context = StitchContext(TileGrid(SHAPE, Box.of_shape(SHAPE), 256, 64, 1), 2.0)  # tiles of another size
    other = stitch_oracle(tmp_path / "slide.ome.zarr", random_truth(SHAPE, 300), context)[0].path
    here, there = read_checksums(sound) or {}, read_checksums(other) or {}
    assert {name for name in here | there if here.get(name) != there.get(name)} == {"zarr.json"}, "names the tiling"
    before = (other / CHECKSUMS).read_bytes()
    write_checksums(other)
    assert (other / CHECKSUMS).read_bytes() == before


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_the_list_is_one_for_sha256sum(store: Path) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        command = ["sha256sum", "--check", "--strict", "--quiet", CHECKSUMS]
        return subprocess.run(command, cwd=store, capture_output=True, text=True, check=False)

    assert (run().returncode, run().stdout, run().stderr) == (0, "", "")
    flip(store / SHARD, 77)
    assert run().returncode == 1
    assert SHARD in run().stdout


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_flipped_bit_is_found(store: Path, data: st.DataObject) -> None:
    files = sorted(p for p in store.rglob("*") if p.is_file())
    path = data.draw(st.sampled_from(files))
    before = flip(path, data.draw(st.integers(0, 8 * path.stat().st_size - 1)))
    try:
        assert files_of(damaged_files(store)) == [path.relative_to(store).as_posix()]
        with pytest.raises(StoreError, match=path.name):
            refuse_damaged(store)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("file", FILES)
def test_flipped_bits_of_every_kind_of_file_are_found(store: Path, file: str) -> None:
    """First and last ones, where headers and indices are, and some between."""
    n = 8 * (store / file).stat().st_size
    bits = np.random.default_rng(0).integers(0, n, 20).tolist()
    for bit in (0, 7, n - 8, n - 1, *bits):
        before = flip(store / file, bit)
        assert files_of(verify_store(store).findings) == [file]
        (store / file).write_bytes(before)
    assert verify_store(store).findings == ()


def test_every_single_bit_of_a_list_counts(tmp_path: Path) -> None:
    for name in ("zarr.json", "labels/nuclei/0/c/0/0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    write_checksums(tmp_path)
    assert damaged_files(tmp_path) == []
    for bit in range(8 * (tmp_path / CHECKSUMS).stat().st_size):
        before = flip(tmp_path / CHECKSUMS, bit)
        with pytest.raises(StoreError, match=r"is damaged \("):
            read_checksums(tmp_path)
        (tmp_path / CHECKSUMS).write_bytes(before)


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def link(path: Path) -> None:
    """To a file of the same content outside the store."""
    outside = next(p for p in path.parents if p.name.endswith(".ome.zarr")).parent / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)


def pipe(path: Path) -> None:
    """Which would be read for ever."""
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [remove, cut, empty, lengthen, link, pipe, folder])
def test_files_that_are_not_what_they_were_are_named(store: Path, file: str, harm: Callable[[Path], None]) -> None:
    harm(store / file)
    (finding,) = verify_store(store).findings
    assert finding.file == file
    assert "; copy the store again" in str(finding)
    with pytest.raises(StoreError, match=file):
        refuse_damaged(store)


@pytest.mark.parametrize("extra", ["labels/nuclei/0/c/9/9", "labels/nuclei/0/c/0/3.bak", "7/zarr.json", "notes.txt"])
def test_files_too_many_are_named(store: Path, extra: str) -> None:
    (store / extra).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(store / SHARD, store / extra)
    (finding,) = verify_store(store).findings
    assert (finding.file, finding.advice) == (extra, "remove it, or put it elsewhere")


def test_an_empty_folder_that_looks_like_a_level_is_named(store: Path) -> None:
    (store / "labels/nuclei/9").mkdir()
    assert files_of(verify_store(store).findings) == ["labels/nuclei/9"]


def test_what_systems_and_people_leave_is_no_damage(store: Path) -> None:
    (store / ".DS_Store").touch()
    (store / "labels/@eaDir").mkdir()
    (store / "labels/@eaDir/x").touch()
    log = EditLog.open(PanopticStore.open(store))
    log.append(delete_nuclei(log, [1]))
    assert verify_store(store).findings == ()


def test_all_damage_is_named_at_once(store: Path) -> None:
    (store / SHARD).unlink()
    flip(store / "nuclei.parquet", 900)
    shutil.copyfile(store / "labels/classes/0/c/0/3", store / "labels/classes/0/c/1/99")
    assert files_of(verify_store(store).findings) == ["labels/classes/0/c/1/99", SHARD, "nuclei.parquet"]
    with pytest.raises(StoreError, match=r"labels/classes/0/c/1/99: does not .*2 more: nucleipan verify"):
        refuse_damaged(store)


@pytest.mark.parametrize("name", ["../outside", "labels/../../outside", "/etc/hostname", "labels/..", "..\\outside"])
def test_a_list_leads_to_no_file_outside(store: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = store.parent / "outside"
    outside.write_text("not of the store")
    sums = dict(read_checksums(store) or {}) | {name: FileSum(16, "0" * 64)}
    (store / CHECKSUMS).write_bytes(_render(sums))
    monkeypatch.setattr("nucleipan.store.checksums._digest", lambda path: pytest.fail(f"{path} was read"))
    (finding,) = damaged_files(store)
    assert finding.file == CHECKSUMS
    with pytest.raises(StoreError, match=CHECKSUMS):
        PanopticStore.open(store)


def test_a_linked_folder_is_not_followed(store: Path) -> None:
    shutil.move(store / "labels/nuclei/0", store.parent / "outside")
    (store / "labels/nuclei/0").symlink_to(store.parent / "outside")
    found = {finding.file: finding.what for finding in damaged_files(store)}
    assert found["labels/nuclei/0"] == "does not belong to the store"
    assert found[SHARD] == "is missing"


def test_a_store_reached_through_a_link_is_a_store(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "link.ome.zarr").symlink_to(sound)
    assert verify_store(tmp_path / "link.ome.zarr").findings == ()


def test_what_is_no_part_of_a_store_is_not_published(store: Path) -> None:
    (store / "labels/nuclei/0/c/0/a b").touch()
    with pytest.raises(StoreError, match=r"a b: has a name that no part of a store has"):
        write_checksums(store)
    (store / "labels/nuclei/0/c/0/a b").unlink()
    link(store / SHARD)
    with pytest.raises(StoreError, match=r"0/3: cannot be read \(it is a link\)"):
        write_checksums(store)


# Reading


@pytest.mark.parametrize("harm", [remove, empty])
def test_what_would_look_like_glass_is_no_store(store: Path, harm: Callable[[Path], None]) -> None:
    """zarr takes a missing shard for one of zeros."""
    harm(store / SHARD)
    with pytest.raises(StoreError, match=f"lacks {SHARD}"):
        PanopticStore.open(store)


@pytest.mark.parametrize(
    "file", ["zarr.json", "labels/classes/0/zarr.json", SHARD, "labels/classes/0/c/1/5", "nuclei.parquet"]
)
def test_reading_damage_ends_in_our_error_or_not_at_all(store: Path, file: str) -> None:
    rng, n_noticed = np.random.default_rng(1), 0
    for _ in range(40):
        before = flip(store / file, int(rng.integers(8 * (store / file).stat().st_size)))
        try:
            damaged = PanopticStore.open(store)
            damaged.instances()
            damaged.class_map()
            damaged.nuclei()
        except StoreError:
            n_noticed += 1
        (store / file).write_bytes(before)
    assert n_noticed > 5, "documents, indices and most of the packed pixels"


def undecodable(store: Path, file: str) -> None:
    """Damage ``file`` so that zarr notices; other bits may change pixels and nothing more."""
    path, level = store / file, store.joinpath(*Path(file).parts[:-3])
    for bit in range(80, 80000, 8):
        before = flip(path, bit)
        try:
            zarr.open_array(str(level), mode="r")[...]
        except (RuntimeError, ValueError):
            return
        path.write_bytes(before)
    raise AssertionError("no such bit")


def test_a_chunk_that_cannot_be_decoded_names_its_file(store: Path) -> None:
    undecodable(store, SHARD)
    opened = PanopticStore.open(store)
    with pytest.raises(StoreError, match=f"{SHARD}: is damaged"):
        opened.instances()
    with pytest.raises(StoreError, match=f"{SHARD}: is damaged"):
        opened.array("nuclei")[10:140, 380:1000]
    with pytest.raises(StoreError, match=f"{SHARD}: is damaged"):
        opened.array("nuclei")[...]
    assert opened.instances(Box(0, 0, 150, 384)).any()


def test_a_damaged_page_of_the_table_names_the_file(store: Path) -> None:
    table = pq.read_table(store / "nuclei.parquet")
    pq.write_table(table, store / "nuclei.parquet", compression="zstd", row_group_size=50, write_page_checksum=True)
    path, n_noticed = store / "nuclei.parquet", 0
    n_bits = 8 * (path.stat().st_size - int.from_bytes(path.read_bytes()[-8:-4], "little") - 8)
    for bit in np.random.default_rng(2).integers(40, n_bits, 100).tolist():
        before = flip(path, bit)
        try:
            assert PanopticStore.open(store).nuclei().equals(table), "a changed table is never read"
        except StoreError:
            n_noticed += 1
        path.write_bytes(before)
    assert n_noticed > 70, "what is noticed nowhere changes nothing that is read"


# Table against raster: checksums are right, contents are not


def rewrite(store: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    path = store / "nuclei.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    write_checksums(store)


def with_value(column: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value(values[row]) if callable(value) else value
        kind = table.schema.field(column).type
        array = pa.array(values, kind.value_type).dictionary_encode() if pa.types.is_dictionary(kind) else values
        return table.set_column(table.column_names.index(column), table.schema.field(column), pa.array(array, kind))

    return change


def without_row(row: int) -> Callable[[pa.Table], pa.Table]:
    return lambda table: pa.concat_tables([table.slice(0, row), table.slice(row + 1)])


def with_other_class(table: pa.Table) -> pa.Table:
    """Of row 11, number and name."""
    class_id = table["class_id"][11].as_py() % 5 + 1
    name = dict(zip(table["class_id"].to_pylist(), table["class"].to_pylist(), strict=True))[class_id]
    return with_value("class", 11, name)(with_value("class_id", 11, class_id)(table))


def moved(side: str) -> Callable[[dict[str, float]], dict[str, float]]:
    return lambda bbox: bbox | {side: bbox[side] + 2}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_row(16), ["in the raster, no row: nucleus 17", "ids are not 1, 2, 3", "rows, .* were written"]),
        (lambda table: table.slice(0, table.num_rows - 1), ["in the raster, no row: nucleus", "rows, .* were written"]),
        (lambda table: pa.concat_tables([table, table.slice(4, 1)]), ["more than one row: nucleus 5", "ids", "rows"]),
        (lambda table: table.take([1, 0, *range(2, table.num_rows)]), ["in this order"]),
        (with_value("id", 6, 100_000), ["no row: nucleus 7", "no pixel: nucleus 100000", "ids are not"]),
        (with_value("id", 6, 2**32 - 1), ["no row: nucleus 7", "no pixel: nucleus 4294967295", "ids are not"]),
        (with_value("id", 6, 0), ["no row: nucleus 7", "no pixel: nucleus 0", "ids are not"]),
        (with_other_class, ["class is not that of the raster: nucleus 12"]),
        (with_value("class", 3, "stroma"), ["class or tissue is none of the store's: nucleus 4"]),
        (with_value("tissue_id", 3, 2), ["class or tissue is none of the store's: nucleus 4"]),
        (with_value("area_um2", 8, lambda area: area + 0.25), ["area is not that of the raster: nucleus 9"]),
        (with_value("area_um2", 8, None), ["area is not that of the raster: nucleus 9"]),
        *((with_value("bbox", 8, moved(side)), ["bounding box is .*: nucleus 9"]) for side in ("xmin", "ymax")),
        (with_value("centroid_x", 8, lambda x: x + 0.1), ["centroid is not that of the raster: nucleus 9"]),
        (lambda table: table.drop_columns(["area_um2"]), ["cannot be read"]),
        (lambda table: table.slice(0, 0), ["in the raster, no row: .* nuclei \\(1, 2, 3, ...\\)", "0 rows"]),
    ],
)  # fmt: skip
def test_a_table_that_contradicts_the_raster(
    store: Path, change: Callable[[pa.Table], pa.Table], said: list[str]
) -> None:
    rewrite(store, change)
    findings = verify_store(store).findings
    assert set(files_of(findings)) == {"nuclei.parquet"}
    assert len(findings) == len(said), findings
    for finding, pattern in zip(findings, said, strict=True):
        assert re.search(pattern, finding.what), finding


def repaint(store: Path, level: str, change: Callable[[np.ndarray], None]) -> None:
    """Change the pixels of ``level``, such as ``nuclei/0``, under right checksums."""
    array = zarr.open_array(str(store / "labels" / level))
    pixels = array[...]
    change(pixels)
    array[...] = pixels
    write_checksums(store)


def at(value: int, y: int = 40, x: int = 300) -> Callable[[np.ndarray], None]:
    def change(pixels: np.ndarray) -> None:
        pixels[y, x] = value

    return change


def an_odd_pixel(store: Path, is_nucleus: bool) -> tuple[int, int]:
    """One that is in the finest level only."""
    ids = PanopticStore.open(store).instances()
    y, x = np.nonzero((ids > 0) == is_nucleus)
    k = np.flatnonzero((y % 2 == 1) & (x % 2 == 1))[10]
    return int(y[k]), int(x[k])


def test_a_pixel_taken_from_a_nucleus(store: Path) -> None:
    y, x = an_odd_pixel(store, True)
    tissue = PanopticStore.open(store).spec.classes.stuff[0].id
    nucleus = PanopticStore.open(store).instances()[y, x]
    repaint(store, "nuclei/0", at(0, y, x))
    repaint(store, "classes/0", at(tissue, y, x))
    found = [finding.what for finding in verify_store(store).findings]
    assert f"area is not that of the raster: nucleus {nucleus}" in found
    assert f"centroid is not that of the raster: nucleus {nucleus}" in found


def test_a_pixel_of_a_nucleus_with_another_class(store: Path) -> None:
    y, x = an_odd_pixel(store, True)
    nucleus = PanopticStore.open(store).instances()[y, x]
    repaint(store, "classes/0", at(9, y, x))
    (finding,) = verify_store(store).findings
    assert finding.what == f"class is not that of the raster: nucleus {nucleus}"


@pytest.mark.parametrize("class_id", [1, 15, 255])
def test_a_pixel_of_tissue_with_a_class_of_nuclei_or_none(store: Path, class_id: int) -> None:
    y, x = an_odd_pixel(store, False)
    repaint(store, "classes/0", at(class_id, y, x))
    (finding,) = verify_store(store).findings
    assert finding.file == f"labels/classes/0/c/{y // 128}/{x // 128}"
    assert finding.what.startswith("1 pixels outside all nuclei")


@pytest.mark.parametrize("nucleus", [5000, 2**32 - 1])
def test_a_nucleus_that_is_in_the_raster_only(store: Path, nucleus: int) -> None:
    repaint(store, "nuclei/0", at(nucleus, *an_odd_pixel(store, False)))
    assert [f.what for f in verify_store(store).findings] == [f"in the raster, no row: nucleus {nucleus}"]


@pytest.mark.parametrize("level", ["nuclei/1", "classes/1"])
@pytest.mark.parametrize(("y", "x", "shard"), [(0, 0, "0/0"), (74, 549, "0/4"), (30, 300, "0/2")])
def test_a_coarse_pixel_that_is_no_copy(store: Path, level: str, y: int, x: int, shard: str) -> None:
    repaint(store, level, at(200, y, x))
    (finding,) = verify_store(store).findings
    assert finding.file == f"labels/{level}/c/{shard}"
    assert "differs from the finest level" in finding.what


def test_chunks_that_cannot_be_read_under_right_checksums(store: Path) -> None:
    files = [SHARD, "labels/nuclei/1/c/0/2", "labels/classes/0/c/1/5"]
    for file in files:
        undecodable(store, file)
    write_checksums(store)
    findings = verify_store(store).findings
    assert sorted(files_of(findings)) == sorted(files)
    assert all(finding.what.startswith("cannot be read (") for finding in findings)


def test_levels_of_another_kind_under_right_checksums(store: Path) -> None:
    shutil.rmtree(store / "labels/classes/1")
    zarr.create_array(str(store / "labels/classes/1"), shape=(75, 549), dtype=np.uint8, chunks=(32, 32))
    (store / "labels/nuclei/1/zarr.json").write_text('{"zarr_format": 3}')
    write_checksums(store)
    findings = verify_store(store).findings
    assert files_of(findings) == ["labels/nuclei/1/zarr.json", "labels/classes/1/zarr.json"]
    assert findings[1].what == "says uint8 (75, 549), not uint8 (75, 550)"


# Stores without checksums


def as_of_an_earlier_version(store: Path) -> None:
    (store / CHECKSUMS).unlink()
    document = json.loads((store / "zarr.json").read_text())
    del document["attributes"]["nucleipan"]["checksums"]
    (store / "zarr.json").write_text(json.dumps(document))


def test_earlier_versions_had_no_checksums(store: Path) -> None:
    as_of_an_earlier_version(store)
    found = verify_store(store)
    assert (found.findings, found.n_files) == ((), None)
    assert found.n_nuclei > 100
    refuse_damaged(store)
    (store / SHARD).unlink()
    whats = [finding.what for finding in verify_store(store).findings]
    assert any(what.startswith("no pixel: ") for what in whats)
    assert any("differs from the finest level" in what for what in whats)


def test_a_list_that_was_written_is_missed(store: Path) -> None:
    (store / CHECKSUMS).unlink()
    (finding,) = verify_store(store).findings
    assert (finding.file, finding.what) == (CHECKSUMS, "is missing")
    with pytest.raises(StoreError, match=r"checksums\.sha256: is missing"):
        PanopticStore.open(store)


# Exports and the command line


class Cli:
    """Runs command lines in this process; gives exit code, stdout and stderr."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["nucleipan", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = self._capsys.readouterr()
        return int(stop.value.code or 0), out, err


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


def flip_one(path: Path) -> None:
    flip(path, 8 * (path.stat().st_size // 2) + 3)


@pytest.mark.parametrize("name", OF_RESULTS)
@pytest.mark.parametrize(
    ("harm", "file"),
    [(flip_one, file) for file in FILES] + [(remove, SHARD), (remove, "nuclei.parquet"), (cut, SHARD)],
)
def test_no_format_is_written_from_a_damaged_store(
    store: Path, name: str, harm: Callable[[Path], None], file: str
) -> None:
    opened, out = PanopticStore.open(store), store.parent / "out" / "nuclei"
    harm(store / file)
    with pytest.raises(StoreError, match=file):
        export_store(opened, name, out, ExportOptions())
    assert not out.parent.exists()


def rename_unfinished(store: Path) -> Path:
    return store.rename(store.with_name(store.name + ".partial"))


def leave_unfinished(store: Path) -> Path:
    rename_unfinished(store)
    return store


def make_newer(store: Path) -> Path:
    document = json.loads((store / "zarr.json").read_text())
    document["attributes"]["nucleipan"]["version"] = 99
    (store / "zarr.json").write_text(json.dumps(document))
    return store


def make_foreign(store: Path) -> Path:
    document = json.loads((store / "zarr.json").read_text())
    del document["attributes"]["nucleipan"]
    (store / "zarr.json").write_text(json.dumps(document))
    return store


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (rename_unfinished, "is an unfinished run; segment the slide again to resume it"),
        (leave_unfinished, "is not finished; segment the slide again to resume it"),
        (make_newer, "store version 99 is newer than 1; update nucleipan to read it"),
        (make_foreign, "was not written by nucleipan"),
    ],
)
def test_no_format_is_written_from_what_is_no_finished_store(
    cli: Cli, store: Path, name: str, change: Callable[[Path], Path], said: str
) -> None:
    out = store.parent / "out"
    out.mkdir()
    code, printed, err = cli("export", change(store), "--format", name, "--out", out / "nuclei", "--slide", store)
    assert (code, printed) == (1, "")
    assert said in err
    assert len(err.splitlines()) == 1
    assert list(out.iterdir()) == []


def test_an_export_stops_at_a_chunk_that_cannot_be_decoded(store: Path) -> None:
    files = {0: "labels/classes/0/c/0/3", 1: "labels/classes/1/c/0/1"}
    for file in files.values():
        undecodable(store, file)
    write_checksums(store)
    (store.parent / "out").mkdir()
    for name, level in {"geojson": 1, "coco-panoptic": 0, "cityscapes": 0, "ome-tiff": 0}.items():
        with pytest.raises(StoreError, match=f"{files[level]}: is damaged"):
            export_store(PanopticStore.open(store), name, store.parent / "out" / "nuclei")
    assert list((store.parent / "out").iterdir()) == []


def test_spatialdata_too_stops_there(store: Path) -> None:
    pytest.importorskip("spatialdata")
    undecodable(store, SHARD)
    write_checksums(store)
    with pytest.raises(StoreError, match=f"{SHARD}: is damaged"):
        export_store(PanopticStore.open(store), "spatialdata", store.parent / "out" / "nuclei")
    assert list((store.parent / "out").iterdir()) == []


def test_the_command_says_what_is_sound(cli: Cli, sound: Path, store: Path) -> None:
    n_files, n_nuclei = len(read_checksums(sound) or ()), PanopticStore.open(sound).n_nuclei
    assert cli("verify", sound) == (0, f"{sound}: ok, {n_files} files, {n_nuclei} nuclei, 0.2 Mpx\n", "")
    as_of_an_earlier_version(store)
    code, out, err = cli("verify", store)
    assert (code, err) == (0, "")
    assert out.startswith(
        f"{store}: ok, no checksums (an earlier version wrote it), table and raster agree, {n_nuclei} "
    )


def test_the_command_names_all_damage_and_goes_on(cli: Cli, sound: Path, store: Path) -> None:
    (store / SHARD).unlink()
    flip(store / "nuclei.parquet", 900)
    code, out, err = cli("verify", store, store.parent / "nowhere.ome.zarr", sound)
    assert code == 1
    assert [line.split(": ok")[0] for line in out.splitlines()] == [str(sound)]
    again = "copy the store again from where it is whole, or segment the slide again with --overwrite"
    assert err.splitlines() == [
        f"nucleipan: {store / SHARD}: is missing; {again}",
        f"nucleipan: {store / 'nuclei.parquet'}: its content has changed; {again}",
        f"nucleipan: {store.parent / 'nowhere.ome.zarr'} does not exist",
    ]


def test_what_is_no_store_is_said(cli: Cli, sound: Path, tmp_path: Path) -> None:
    (tmp_path / "a.ome.zarr").mkdir()
    shutil.copytree(sound, tmp_path / "b.ome.zarr.partial")
    for path, said in (
        ("a.ome.zarr", "no zarr group"),
        ("b.ome.zarr.partial", "unfinished"),
        ("b.ome.zarr", "not fini"),
    ):
        code, out, err = cli("verify", tmp_path / path)
        assert (code, out) == (1, "")
        assert said in err
        assert len(err.splitlines()) == 1
    assert cli("verify")[0] == 2


@pytest.mark.parametrize("command", [["report"], ["export", "--format", "csv"]])
def test_other_commands_refuse_damage(cli: Cli, store: Path, command: list[str]) -> None:
    flip(store / SHARD, 900)
    code, out, err = cli(command[0], store, *command[1:], "--out", store.parent / "result")
    assert (code, out) == (1, "")
    assert err.startswith(f"nucleipan: {store / SHARD}: its content has changed; ")
    assert len(err.splitlines()) == 1
    assert not (store.parent / "result").exists()
