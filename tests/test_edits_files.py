"""Files of edits are small pictures that anyone can read, and none that is not whole and our own is believed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from filelock import FileLock
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.edits import EditError, EditLog, delete_nuclei, redraw_nucleus
from nucleipan.edits import edit_file as edit_file_module
from nucleipan.errors import StoreError
from nucleipan.geometry import Box
from nucleipan.stitch import StitchContext
from nucleipan.store import PanopticStore
from nucleipan.tiles import TileGrid

SHAPE = (120, 140)
CONTEXT = StitchContext(TileGrid(SHAPE, Box.of_shape(SHAPE), 100, 50, 1), 1.0)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> PanopticStore:
    folder = tmp_path_factory.mktemp("files")
    return stitch_oracle(folder / "slide.ome.zarr", random_truth(SHAPE, 60), CONTEXT)[0]


@pytest.fixture
def log(template: PanopticStore, tmp_path: Path) -> EditLog:
    path = shutil.copytree(template.path, tmp_path / "slide.ome.zarr")
    log = EditLog.open(PanopticStore.open(path))
    for nucleus in (3, 5, 8):
        log.append(delete_nuclei(log, [nucleus]), "A")
    return log


def reopened(log: EditLog) -> EditLog:
    return EditLog.open(PanopticStore.open(log.store.path))


def file_of(log: EditLog, number: int) -> Path:
    return log.folder / f"{number:06d}.tif"


# The format


def test_a_file_is_as_documented(log: EditLog) -> None:
    """Read with tifffile and json alone."""
    edit = log.edits[1].edit
    with tifffile.TiffFile(file_of(log, 2)) as file:
        before, after = (page.asarray() for page in file.pages)
        document = json.loads(file.pages.first.description)
        assert all(page.dtype == np.uint32 and page.compression.name == "ADOBE_DEFLATE" for page in file.pages)
    np.testing.assert_array_equal(before, edit.before)
    np.testing.assert_array_equal(after, edit.after)
    digest = document.pop("sha256")
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    pixels = before.astype("<u4").tobytes() + after.astype("<u4").tobytes()
    assert digest == hashlib.sha256(text.encode() + pixels).hexdigest()
    assert document == {
        "nucleipan_edit": 1, "number": 2, "kind": "delete", "author": "A", "time": log.edits[1].time.isoformat(),
        "ids": [5], "classes": {}, "box": [edit.box.y0, edit.box.x0, edit.box.y1, edit.box.x1],
        "store": {"slide": "ab12", "model": "00", "shape": list(SHAPE), "n_nuclei": log.store.n_nuclei},
    }  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (8, 3), (8, 4), (3, 8)])
def test_boxes_of_any_shape_survive(log: EditLog, shape: tuple[int, int]) -> None:
    """Also those a TIFF library may take for RGB, or squeeze."""
    free = np.argwhere(~_occupied(log.store, shape))[0].tolist()
    ring = np.array([[0.0, 0], [0, shape[1]], [shape[0], shape[1]], [shape[0], 0]]) + free
    saved = log.append(redraw_nucleus(log, ring - 1e-6, None, 2))
    inner = saved.edit.after
    log.append(delete_nuclei(log, saved.edit.made))
    assert log.edits[-1].edit.box.shape == shape
    again = reopened(log)
    np.testing.assert_array_equal(again.edits[-2].edit.after, inner)
    np.testing.assert_array_equal(again.instances(), log.instances())


def _occupied(store: PanopticStore, shape: tuple[int, int]) -> np.ndarray:
    """Corners at which a box of ``shape`` meets a nucleus; slow and obvious."""
    ids = store.instances()
    taken = np.ones(SHAPE, bool)
    for y in range(1, SHAPE[0] - shape[0]):
        for x in range(1, SHAPE[1] - shape[1]):
            taken[y, x] = ids[y - 1 : y + shape[0] + 1, x - 1 : x + shape[1] + 1].any()
    return taken


# What is not believed


def test_no_byte_changes_unnoticed(log: EditLog) -> None:
    path = file_of(log, 2)
    whole, known = path.read_bytes(), log.instances()
    noticed = 0
    for k in range(0, len(whole), 7):
        path.write_bytes(whole[:k] + bytes([whole[k] ^ 0x41]) + whole[k + 1 :])
        try:
            found = reopened(log)
        except StoreError as error:
            noticed += str(path) in str(error)
        else:
            np.testing.assert_array_equal(found.instances(), known)
            assert found.edits[1].edit.ids == (5,)
    assert noticed > 40  # others are bytes without a meaning: padding, the resolution


@pytest.mark.parametrize("length", [0, 1, 8, 100, 400])
def test_cut_files_are_refused(log: EditLog, length: int) -> None:
    path = file_of(log, 1)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(StoreError, match=re.escape(f"{path}: is no whole edit")):
        reopened(log)


def test_other_pictures_are_refused(log: EditLog) -> None:
    for description in (None, "no json", "[1]", '{"a": 1}', '{"nucleipan_edit": 1, "box": ' + "[" * 5000):
        tifffile.imwrite(file_of(log, 3), np.zeros((5, 5), np.uint32), description=description)
        with pytest.raises(StoreError, match="is no whole edit"):
            reopened(log)


def test_an_edit_of_another_store_is_refused(log: EditLog, tmp_path: Path) -> None:
    other = stitch_oracle(tmp_path / "other.ome.zarr", random_truth(SHAPE, 50, seed=3), CONTEXT)[0]
    shutil.copytree(log.folder, other.path / "edits")
    with pytest.raises(StoreError, match=r"other\.ome\.zarr.*000001\.tif: is an edit of another store"):
        EditLog.open(other)
    shutil.rmtree(other.path / "edits")
    log.mark_checked(Box(0, 0, 50, 50))
    (other.path / "edits").mkdir()
    shutil.copy(log.folder / "checked.json", other.path / "edits")
    with pytest.raises(StoreError, match=r"checked\.json"):
        EditLog.open(other)


def signed(log: EditLog, number: int, change: Callable[[dict[str, Any], np.ndarray], Any]) -> None:
    """Rewrite a file with changes, and a checksum that fits: what somebody with ill intent would do."""
    path = file_of(log, number)
    with tifffile.TiffFile(path) as file:
        document = json.loads(file.pages.first.description)
        planes = np.stack([page.asarray() for page in file.pages])
    document.pop("sha256")
    changed = change(document, planes)
    planes = changed if isinstance(changed, np.ndarray) else planes
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    document["sha256"] = hashlib.sha256(text + planes.astype("<u4").tobytes()).hexdigest()
    with tifffile.TiffWriter(path) as file:
        for k, plane in enumerate(planes):
            file.write(
                plane, photometric="minisblack", metadata=None, contiguous=False,
                description=json.dumps(document) if k == 0 else None,
            )  # fmt: skip


HOSTILE: dict[str, Callable[[dict[str, Any], np.ndarray], Any]] = {
    "version": lambda d, p: d.update(nucleipan_edit=2),
    "version text": lambda d, p: d.update(nucleipan_edit="1"),
    "number": lambda d, p: d.update(number=7),
    "kind": lambda d, p: d.update(kind="explode"),
    "no kind": lambda d, p: d.pop("kind"),
    "author": lambda d, p: d.update(author="\u202e" + "x" * 500),
    "author number": lambda d, p: d.update(author=5),
    "time": lambda d, p: d.update(time="yesterday"),
    "time without zone": lambda d, p: d.update(time="2026-01-01T00:00:00"),
    "box": lambda d, p: d.update(box=[0, 0, 10**9, 10**9]),
    "box outside": lambda d, p: d.update(box=[-5, 0, d["box"][2] - d["box"][0] - 5, d["box"][3] - d["box"][1]]),
    "box of text": lambda d, p: d.update(box="0,0,1,1"),
    "ids": lambda d, p: d.update(ids=[4]),
    "ids that never were": lambda d, p: d.update(ids=[10**6]),
    "ids negative": lambda d, p: d.update(ids=[-5]),
    "class that is tissue": lambda d, p: d.update(kind="redraw", classes={"5": 9}),
    "class list": lambda d, p: d.update(classes=[1]),
    "pixels of others": lambda d, p: np.full_like(p, 7),
    "pixels signed": lambda d, p: p.astype(np.int32),
    "one page": lambda d, p: p[:1],
    "three pages": lambda d, p: np.concatenate([p, p[:1]]),
    "other shape": lambda d, p: p[:, :-1],
    "id far away": lambda d, p: (
        d.update(kind="redraw", ids=[], classes={"4000000000": 1}),
        np.stack([p[0], np.where(p[0] == 0, np.uint32(4000000000), p[0])]),
    )[1],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused(log: EditLog, what: str) -> None:
    signed(log, 2, lambda d, p: None)
    assert len(reopened(log).edits) == 3  # the rewriting itself is fine
    signed(log, 2, HOSTILE[what])
    with pytest.raises(StoreError, match="edits") as caught:
        reopened(log)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_bomb_is_refused_before_it_goes_off(log: EditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that claims another size than the box is not decoded."""
    signed(log, 2, lambda d, p: np.zeros((2, 3000, 3000), np.uint32))
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(StoreError, match=r"000001\.tif|000002\.tif"):
        edit_file_module.read_edit(file_of(log, 2), log.store)


def test_a_missing_edit_is_noticed(log: EditLog) -> None:
    file_of(log, 2).unlink()
    with pytest.raises(StoreError, match=r"expected edit number 2, found 000003\.tif"):
        reopened(log)


def test_an_edit_there_twice_is_noticed(log: EditLog) -> None:
    shutil.copy(file_of(log, 2), log.folder / "000002.undone.tif")
    with pytest.raises(StoreError, match="expected edit number 3, found 000002"):
        reopened(log)


def test_edits_out_of_order_are_noticed(log: EditLog) -> None:
    merged = log.append(redraw_nucleus(log, np.array([[0.0, 0], [40, 0], [40, 40], [0, 40]]), None, 1)).edit
    log.append(delete_nuclei(log, merged.made))
    file_of(log, 4).rename(log.folder / "000004.undone.tif")
    with pytest.raises(StoreError, match="edit number 5 does not follow"):
        reopened(log)


def test_files_of_others_are_left_alone(log: EditLog) -> None:
    for name in (".DS_Store", "notes.txt", "1.tif", ".0123.000004.tif"):
        (log.folder / name).write_text("mine")
    assert len(reopened(log).edits) == 3
    log.append(delete_nuclei(log, [9]))
    assert (log.folder / "notes.txt").read_text() == "mine"


# Programs that are killed, and several at once


def test_a_killed_program_leaves_the_edits_before(log: EditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    before = log.instances()
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        log.append(delete_nuclei(log, [9]))
    monkeypatch.undo()
    for one in (log, reopened(log)):
        np.testing.assert_array_equal(one.instances(), before)
        assert len(one.edits) == 3
    log.append(delete_nuclei(log, [9]))
    assert reopened(log).removed == {3, 5, 8, 9}


def test_a_full_disk_is_said(log: EditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tifffile.TiffWriter, "write", full)
    with pytest.raises(StoreError, match=r"000004\.tif: cannot be written \(No space left on device\)"):
        log.append(delete_nuclei(log, [9]))
    assert len(log.edits) == 3


def test_a_store_that_cannot_be_written_is_said(
    template: PanopticStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EditLog.open(PanopticStore.open(shutil.copytree(template.path, tmp_path / "slide.ome.zarr")))

    def refused(self: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(StoreError, match=r"cannot be written \(Permission denied\); copy the store"):
        log.append(delete_nuclei(log, [9]))


def test_two_programs_do_not_overwrite_each_other(log: EditLog) -> None:
    other = reopened(log)
    other.append(delete_nuclei(other, [9]), "B")
    for write in (
        lambda: log.append(delete_nuclei(log, [11])),
        log.undo,
        lambda: log.mark_checked(Box(0, 0, 9, 9)),
    ):
        with pytest.raises(StoreError, match="changed by another program"):
            write()
    assert reopened(log).removed == {3, 5, 8, 9}
    again = reopened(log)
    again.mark_checked(Box(0, 0, 9, 9))
    with pytest.raises(StoreError, match="changed by another program"):
        other.append(delete_nuclei(other, [11]))


def test_a_program_waits_for_another(log: EditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileLock(log.folder / ".lock"):
        monkeypatch.setattr("nucleipan.edits.folder._PATIENCE_S", 0.1)
        with pytest.raises(StoreError, match="being written by another program"):
            log.append(delete_nuclei(log, [9]))
    log.append(delete_nuclei(log, [9]))
    assert log.removed == {3, 5, 8, 9}


def _append_many(path: Path, first: int, results: Any) -> None:
    n = 0
    for nucleus in range(first, 60, 2):
        try:
            log = EditLog.open(PanopticStore.open(path))
            log.append(delete_nuclei(log, [nucleus]))
            n += 1
        except (StoreError, EditError):
            continue
    results.put(n)


def test_many_programs_at_once_leave_a_whole_log(template: PanopticStore, tmp_path: Path) -> None:
    path = shutil.copytree(template.path, tmp_path / "slide.ome.zarr")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_append_many, args=(path, first, results)) for first in (1, 2)]
    for worker in workers:
        worker.start()
    n = sum(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    log = EditLog.open(PanopticStore.open(path))
    assert len(log.edits) == n == len(log.removed)
    assert n > 0


# Checked fields


def test_checked_fields_are_kept(log: EditLog) -> None:
    first = log.mark_checked(Box(0, 0, 50, 60), "A")
    second = log.mark_checked(Box(50, 0, 120, 60), "B")
    assert reopened(log).checked == (first, second)
    log.unmark_checked(first)
    assert reopened(log).checked == (second,)
    for wrong in (Box(0, 0, 0, 5), Box(0, 0, 121, 5), Box(-1, 0, 5, 5)):
        with pytest.raises(EditError, match="not a part of the store"):
            log.mark_checked(wrong)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"checked_fields": 1}', '{"checked_fields": 2, "store": {}, "fields": []}', "[" * 10**5, "\xff"],
)
def test_damaged_lists_of_fields_are_refused(log: EditLog, text: str) -> None:
    (log.folder / "checked.json").write_bytes(text.encode("latin1"))
    with pytest.raises(StoreError, match=r"checked\.json: does not list"):
        reopened(log)


def test_fields_that_leave_the_store_are_refused(log: EditLog) -> None:
    log.mark_checked(Box(0, 0, 50, 60))
    path = log.folder / "checked.json"
    path.write_text(path.read_text().replace("60", "600"))
    with pytest.raises(StoreError, match=r"checked\.json: does not list"):
        reopened(log)


def test_numbers_go_on_after_an_undone_edit(log: EditLog) -> None:
    log.undo()
    log.append(delete_nuclei(log, [8, 11]))
    assert [s.number for s in reopened(log).edits] == [1, 2, 4]
