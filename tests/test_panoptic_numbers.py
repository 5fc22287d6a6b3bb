"""The instance number within a class, the first is 0, the second 1; and what the page about it shows runs."""

from __future__ import annotations

import csv
import re
from itertools import count
from pathlib import Path

import numpy as np
import panoptic_data as made
import pytest
from hypothesis import given
from hypothesis import strategies as st
from panoptic_data import FIELDS, make_scene, oracle_store

from nucleipan.exports import ExportOptions, export_store
from nucleipan.panoptic import numbers_in_class

PAGE = Path(__file__).parents[1] / "docs" / "panoptic-formats.md"


def test_the_first_of_a_class_is_zero() -> None:
    ids, classes = np.array([1, 2, 3, 5, 8]), np.array([2, 1, 2, 1, 2])
    assert numbers_in_class(ids, classes).tolist() == [0, 0, 1, 1, 2]
    assert numbers_in_class(ids[::-1], classes[::-1]).tolist() == [2, 1, 1, 0, 0], "by id, not by row"
    assert numbers_in_class(np.zeros(0, np.uint32), np.zeros(0, np.uint8)).tolist() == []


@given(st.dictionaries(st.integers(1, 10**9), st.integers(1, 4)), st.randoms())
def test_every_class_counts_for_itself(class_of: dict[int, int], random: object) -> None:
    rows = list(class_of.items())
    random.shuffle(rows)  # type: ignore[attr-defined]
    numbers = numbers_in_class(np.array([i for i, _ in rows], np.int64), np.array([c for _, c in rows], np.uint8))
    found = {i: int(n) for (i, _), n in zip(rows, numbers, strict=True)}
    counters = {c: count() for c in class_of.values()}
    assert found == {i: next(counters[class_of[i]]) for i in sorted(class_of)}


def test_numbers_of_a_store_are_those_of_its_cityscapes_export(tmp_path: Path) -> None:
    """There an instance of an image is 1000 times its class plus its number; this store is one image."""
    store = oracle_store(tmp_path / "slide.ome.zarr")
    table = store.nuclei(columns=["id", "class_id"])
    ids, classes = table["id"].to_numpy(), table["class_id"].to_numpy()
    values = 1000 * classes.astype(int) + numbers_in_class(ids, classes)
    export_store(store, "cityscapes", tmp_path / "export", ExportOptions())
    rows = list(csv.DictReader((tmp_path / "export" / "instances.csv").open()))
    assert len(rows) == store.n_nuclei
    assert {int(r["nucleus_id"]): int(r["instance_id"]) for r in rows} == dict(zip(ids.tolist(), values, strict=True))


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "pastis").mkdir(parents=True)
    made.write_pastis(tmp_path / "data" / "pastis", {10000: make_scene(0, *FIELDS)}, folds=(5,))
    store = oracle_store(tmp_path / "results" / "slide.ome.zarr")
    pictures, numbers = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(pictures, str(PAGE), "exec"), {})
    assert [p.name for p in (tmp_path / "pictures").iterdir()] == ["S2_10000.png"]
    found: dict[str, np.ndarray] = {}
    exec(compile(numbers, str(PAGE), "exec"), found)
    assert len(found["numbers"]) == store.n_nuclei


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)]+)\)", PAGE.read_text()))
def test_the_links_of_the_page_lead_somewhere(target: str) -> None:
    assert (PAGE.parent / target).is_file()
