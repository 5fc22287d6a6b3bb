"""Tiles computed elsewhere give the same store, and workers may die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_segment import SHAPE, files, model, oracle, reference, slide  # noqa: F401  (fixtures)
from torch import Tensor

from nucleipan.errors import ConfigError, StoreError
from nucleipan.network.model import HeadOutputs
from nucleipan.network.weights import load_model
from nucleipan.segment import SegmentOptions, segment_slide

pytest.importorskip("distributed")
from distributed import LocalCluster

from nucleipan.cluster import Cluster, connected_cluster, local_cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with local_cluster(3) as processes:
        yield processes


def test_there_are_as_many_workers_as_were_asked_for(cluster: Cluster) -> None:
    assert len(cluster.client.scheduler_info(n_workers=-1)["workers"]) == 3


class DiesOnce:
    """The oracle, which kills its own process the first time it is called anywhere."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(self, image: Tensor) -> HeadOutputs:
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return oracle(image)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("dead")


class Fails:
    def __call__(self, image: Tensor) -> HeadOutputs:
        raise StoreError("the disk is on fire")


@pytest.mark.parametrize("tile", [128, 192])
def test_workers_write_the_same_store(cluster, slide, reference, tmp_path, tile):  # noqa: F811
    result = segment_slide(slide, tmp_path, model(), SegmentOptions(tile=tile), network=oracle, executor=cluster)
    assert result.n_computed == result.n_tiles == -(-SHAPE[0] // tile) * -(-SHAPE[1] // tile)
    assert files(result.store.path) == files(reference.store.path)


def test_a_worker_that_dies_is_replaced(cluster, slide, reference, tmp_path):  # noqa: F811
    network = DiesOnce(tmp_path / "died")
    result = segment_slide(slide, tmp_path, model(), SegmentOptions(tile=64), network=network, executor=cluster)
    assert (tmp_path / "died").exists()
    assert files(result.store.path) == files(reference.store.path)


def test_what_a_worker_raises_arrives_and_the_run_can_go_on(cluster, slide, reference, tmp_path):  # noqa: F811
    options = SegmentOptions(tile=128)
    with pytest.raises(StoreError, match="the disk is on fire"):
        segment_slide(slide, tmp_path, model(), options, network=Fails(), executor=cluster)
    result = segment_slide(slide, tmp_path, model(), options, network=oracle, executor=cluster)
    assert files(result.store.path) == files(reference.store.path)


def test_a_real_model_travels_by_name(cluster, slide, tmp_path):  # noqa: F811
    here = segment_slide(slide, tmp_path / "here", load_model("nucleipan-fast"), SegmentOptions(tile=256))
    there = segment_slide(
        slide, tmp_path / "there", load_model("nucleipan-fast"), SegmentOptions(tile=256), executor=cluster
    )
    assert files(here.store.path).keys() == files(there.store.path).keys()
    assert here.store.n_nuclei == there.store.n_nuclei


def test_workers_that_end_late_do_not_fail_a_run(monkeypatch):
    class EndsLate(LocalCluster):
        def close(self, timeout=None):
            super().close(timeout)
            raise TimeoutError

    monkeypatch.setattr("nucleipan.cluster.LocalCluster", EndsLate)
    with local_cluster(1) as cluster:
        assert cluster.client.submit(abs, -1).result() == 1
    assert cluster.client.status == "closed"


def test_nobody_at_the_address_is_said():
    with pytest.raises(ConfigError, match="no dask scheduler answers"), connected_cluster("tcp://127.0.0.1:9"):
        pass
