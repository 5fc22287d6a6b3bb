"""Tiles of a run on a dask cluster: processes of this machine, or workers of any scheduler.

Only names travel: a worker opens the slide and loads the model itself, writes tile files into the run's folder, and
says which tiles it finished. Slide and folder must therefore lie where all workers see them under the same path. A
worker that dies is replaced by dask and its tiles are computed by another; a file that two of them write is the same
file. Stitching stays with whoever asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from dask.system import CPU_COUNT
from distributed import CancelledError, Client, KilledWorker, LocalCluster, as_completed
from distributed.comm import CommClosedError

from nucleipan.errors import ConfigError, StoreError, reason
from nucleipan.pipeline import TileJob, compute_tiles
from nucleipan.tiles import Tile

# Tiles of one task overlap their stages; tasks must be many enough to keep all workers busy to the end.
_MAX_TILES_PER_TASK = 8
_TASKS_PER_WORKER = 4
_N_RETRIES = 3
_CONNECT_TIMEOUT_S = 10


@dataclass(frozen=True)
class Cluster:
    """An ``Executor`` of ``segment_slide``.

    Attributes:
        n_threads: of each worker's network on a CPU; None leaves it to torch.
    """

    client: Client
    n_threads: int | None = None

    def __call__(self, job: TileJob, tiles: Sequence[Tile]) -> Iterator[Tile]:
        if not tiles:
            return
        job = replace(job, n_threads=self.n_threads)
        n = self._tiles_per_task(len(tiles))
        tasks = [tiles[i : i + n] for i in range(0, len(tiles), n)]
        futures = self.client.map(
            _compute_task, tasks, job=job, pure=False, retries=_N_RETRIES, resources=self._resources(job)
        )
        try:
            for _, finished in as_completed(futures, with_results=True):
                yield from finished
        except KilledWorker as error:
            raise StoreError(
                "several workers died over the same tiles, of too little memory perhaps; "
                "give them more, choose a smaller --tile, and run again to resume"
            ) from error
        except (CommClosedError, TimeoutError, CancelledError) as error:
            raise StoreError(f"the dask cluster is gone ({reason(error)}); run again to resume") from error
        finally:
            self.client.cancel(futures)

    def _tiles_per_task(self, n_tiles: int) -> int:
        n_workers = max(1, len(self.client.scheduler_info(n_workers=-1)["workers"]))
        return min(_MAX_TILES_PER_TASK, max(1, n_tiles // (_TASKS_PER_WORKER * n_workers)))

    def _resources(self, job: TileJob) -> dict[str, int]:
        """One GPU a task, where workers were started with ``--resources GPU=n``."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        has_gpus = any("GPU" in w.get("resources", {}) for w in workers)
        return {"GPU": 1} if has_gpus and job.device != "cpu" else {}


@contextmanager
def local_cluster(n_workers: int) -> Iterator[Cluster]:
    """``n_workers`` processes on this machine that share its cores evenly."""
    n_threads = max(1, CPU_COUNT // n_workers)
    processes = LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=None, memory_limit=None)
    try:
        with Client(processes) as client:
            yield Cluster(client, n_threads)
    finally:
        # On a busy machine a process that was killed may take longer to end than dask waits. Its work is done.
        with suppress(TimeoutError):
            processes.close()


@contextmanager
def connected_cluster(address: str) -> Iterator[Cluster]:
    """The workers of the scheduler at ``address`` (``tcp://host:8786``, or a scheduler file).

    Raises:
        ConfigError: nobody answers there, or the scheduler has no workers.
    """
    where = {"scheduler_file": address} if os.path.isfile(address) else {"address": address}
    try:
        client = Client(**where, timeout=_CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--scheduler {address}: no dask scheduler answers ({reason(error)}); check it") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_CONNECT_TIMEOUT_S)
        except TimeoutError as error:
            raise ConfigError(f"--scheduler {address}: has no workers; start some with `dask worker`") from error
        yield Cluster(client)


def _compute_task(tiles: Sequence[Tile], job: TileJob) -> list[Tile]:
    return list(compute_tiles(job, tiles))
