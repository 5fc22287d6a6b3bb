"""An export that stops half-way, for whatever reason, leaves nothing that could be taken for a whole one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.errors import DataError
from nucleipan.exports import FORMATS, OF_RESULTS, ExportOptions, export_store
from nucleipan.geometry import Box
from nucleipan.stitch import StitchContext
from nucleipan.store import PanopticStore
from nucleipan.store.arrays import StoredArray
from nucleipan.store.checksums import write_checksums
from nucleipan.tiles import TileGrid

SHAPE = (150, 1100)  # two levels of several shards each, and six row groups
# All that they write is read before the file is begun, or copied without being read.
READ_FIRST = ("h5ad", "dicom-ann", "parquet")
FAILURES = ((KeyboardInterrupt, KeyboardInterrupt), (OSError, DataError))


NEEDED = {"spatial": "spatialdata", "dicom": "highdicom"}


@dataclass(frozen=True)
class Export:
    """What is exported, and how; a function of the path."""

    name: str
    store: PanopticStore
    options: ExportOptions

    def __call__(self, path: Path) -> int:
        return export_store(self.store, self.name, path, self.options)


@pytest.fixture(scope="module", params=OF_RESULTS)
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Export:
    extra = FORMATS[request.param].extra
    if extra:
        pytest.importorskip(NEEDED[extra])
    folder = tmp_path_factory.mktemp("interrupted")
    if extra == "dicom":
        from test_export_dicom import make_case

        case = make_case(folder, shape=(280, 300))
        write_checksums(case.store.path)  # the slide was entered after it was published
        return Export(request.param, case.store, ExportOptions(slide=case.slide))
    context = StitchContext(TileGrid(SHAPE, Box.of_shape(SHAPE), 256, 64, 1), 2.0)
    store, _ = stitch_oracle(folder / "slide.ome.zarr", random_truth(SHAPE, 300), context)
    return Export(request.param, store, ExportOptions())


@contextmanager
def watched_reads(act: Callable[[int], None]) -> Iterator[None]:
    """``act`` is called before each read of a store's table or pixels, with its number, from 1."""
    n = 0

    def watched(read: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(*arguments: Any) -> Any:
            nonlocal n
            n += 1
            act(n)
            return read(*arguments)

        return replacement

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((PanopticStore, "_read_group"), (StoredArray, "__getitem__")):
            patch.setattr(owner, name, watched(getattr(owner, name)))
        yield


@pytest.mark.parametrize(("failure", "expected"), FAILURES)
def test_an_export_that_stops_leaves_nothing(
    export: Export, tmp_path: Path, failure: type[BaseException], expected: type[BaseException]
) -> None:
    reads: list[int] = []
    with watched_reads(reads.append):
        export(tmp_path / "whole")
    assert (tmp_path / "whole").exists()
    out, has_begun = tmp_path / "out" / "nuclei", []
    out.parent.mkdir()

    def stop_at(last: int) -> Callable[[int], None]:
        def act(n: int) -> None:
            assert not out.exists()
            if n >= last:
                has_begun.append(any(out.parent.iterdir()))
                raise failure

        return act

    for last in sorted({1, 2, len(reads) // 2, len(reads)} & set(reads)):
        with watched_reads(stop_at(last)), pytest.raises(expected):
            export(out)
        assert list(out.parent.iterdir()) == [], f"stopped at read {last} of {len(reads)}"
    assert any(has_begun) or export.name in READ_FIRST


@pytest.mark.parametrize(("failure", "expected"), FAILURES)
def test_so_does_one_that_stops_at_the_last_step(
    export: Export,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: type[BaseException],
    expected: type[BaseException],
) -> None:
    written = []

    def failing(step: Callable[..., None]) -> Callable[..., None]:
        def replacement(source: Path, target: Path) -> None:
            if Path(target) != tmp_path / "nuclei":
                return step(source, target)
            written.append(Path(source).exists())
            raise failure

        return replacement

    for step in ("replace", "rename"):
        monkeypatch.setattr(os, step, failing(getattr(os, step)))
    with pytest.raises(expected):
        export(tmp_path / "nuclei")
    assert written == [True]
    assert list(tmp_path.iterdir()) == []
