# %% [markdown]
# # Segment on a cluster
#
# *A thousand slides, or one that takes too long: what changes when many machines work on it?* Only where tiles are
# computed. The result is the same to the last byte, and this notebook checks it. Needs `pip install
# 'nucleipan[cluster,notebooks]'`; the slide is that of [segment_a_slide](segment_a_slide.ipynb).

# %%
import random
from pathlib import Path

import matplotlib.pyplot as plt
from dask_jobqueue import SLURMCluster
from matplotlib.patches import Rectangle

from nucleipan import SegmentOptions, load_model, segment_slide
from nucleipan.cluster import local_cluster

# %% tags=["parameters"]
SLIDE = Path("demo/sample.svs")
OUT = Path("demo/on_a_cluster")
TILE = 512  # small tiles, so that a small slide has several
N_WORKERS = 2

# %% [markdown]
# ## Here
#
# First in this process, to have something to compare with.

# %%
model = load_model()
options = SegmentOptions(device="cpu", tile=TILE, overwrite=True)
here = segment_slide(SLIDE, OUT / "here", model, options)
print(f"{here.store.n_nuclei} nuclei in {here.n_tiles} tiles")

# %% [markdown]
# ## There
#
# An *executor* is any function that takes tiles and yields each when it is done; a cluster is one. Workers open the
# slide themselves and leave tile files in the output folder, so nothing large travels, and a worker that dies costs
# its tiles only. To show that order is no matter, ours shuffles the tiles first, and notes when each comes back.

# %%
arrived = []


def shuffled(compute):
    """An executor that has ``compute`` do the tiles in random order."""

    def executor(job, tiles):
        for tile in compute(job, random.sample(tiles, len(tiles))):
            arrived.append(tile.core)
            yield tile

    return executor


with local_cluster(N_WORKERS) as cluster:
    there = segment_slide(SLIDE, OUT / "there", model, options, executor=shuffled(cluster))
print(f"{there.store.n_nuclei} nuclei in {there.n_tiles} tiles")

# %% [markdown]
# ## The order in which tiles came
#
# Tiles that hold no tissue need no network; were there any here, they would have no number.

# %%
store = there.store
height, width = store.shape
figure, axes = plt.subplots(figsize=(6, 6 * height / width), layout="constrained")
axes.imshow(store.overview(), extent=(0, width, height, 0))
for number, core in enumerate(arrived, 1):
    shade = plt.colormaps["viridis"](number / len(arrived))
    corner = (core.x0, core.y0)
    axes.add_patch(Rectangle(corner, core.width, core.height, facecolor=shade, alpha=0.4, edgecolor="white"))
    middle = (core.x0 + core.width / 2, core.y0 + core.height / 2)
    axes.text(*middle, number, fontsize=14, color="black", ha="center", va="center", weight="bold")
axes.axis("off")
plt.show()

# %% [markdown]
# ## The same store
#
# A store lists the checksum of each of its files. Both lists are equal, so the stores are, although one was made in
# another order by other processes.

# %%
checksums = [(result.store.path / "checksums.sha256").read_text() for result in (here, there)]
assert checksums[0] == checksums[1], "the stores differ"
print("every file is the same")

# %% [markdown]
# ## On Slurm
#
# What changes is who starts the workers. `SLURMCluster` describes one job; this is the script that it would submit.
# The slide and the output folder must lie where every node sees them under the same path.

# %%
jobs = SLURMCluster(
    queue="gpu",
    processes=1,
    cores=1,
    memory="16GB",
    walltime="02:00:00",
    job_cpu=8,
    job_extra_directives=["--gres=gpu:1"],
    worker_extra_args=["--resources GPU=1"],
)
print(jobs.job_script())
jobs.close()

# %% [markdown]
# On the head node, ask for jobs and hand their cluster to the same function:
#
# ```python
# from dask.distributed import Client
# from nucleipan.cluster import Cluster
#
# jobs.adapt(minimum=1, maximum=16)
# with Client(jobs) as client:
#     for slide in sorted(Path("slides").glob("*.svs")):
#         segment_slide(slide, Path("out"), model, executor=Cluster(client))
# ```
#
# [docs/cluster.md](../docs/cluster.md) has the command lines, several GPUs on one machine, and what may go wrong.
