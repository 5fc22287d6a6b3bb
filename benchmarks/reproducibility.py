"""Does the same slide give the same result? Run twice, with other numbers of threads, and with other tile sizes.

    python benchmarks/reproducibility.py ../shared/data/slides/CMU-1-Small-Region.svs --out out/reproducibility

Every run is a process of its own. Printed for each, against the first: whether all files are the same bytes, the share
of nuclei that have a partner at IoU > 0.5 (2 TP over all nuclei of both), that of nuclei with exactly the same pixels,
and the pixels with the same class. Files of another tile size differ anyhow: the store names its tiles.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nucleipan.metrics import overlaps
from nucleipan.metrics.quality import instance_quality
from nucleipan.store import PanopticStore


@dataclass(frozen=True)
class Setting:
    """How often it was run before (``repeat``), on how many threads, in tiles of what side."""

    repeat: int
    n_threads: int
    tile: int


SETTINGS = (
    Setting(0, 2, 2048),
    Setting(1, 2, 2048),
    Setting(0, 1, 2048),
    Setting(0, 2, 1024),
    Setting(0, 2, 512),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--model", default="nucleipan-fast")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    stores = [segmented(args, setting) for setting in SETTINGS]
    first = stores[0]
    backend = first.config["backend"]
    print(f"{args.slide.name}, {args.model} on {backend}, {first.n_nuclei} nuclei; against the first line")
    print("run  threads  tile  all files  arrays and table  one-to-one  identical  class plane")
    for setting, store in zip(SETTINGS, stores, strict=True):
        files, results = (same_files(first.path, store.path, suffix) for suffix in ("", RESULTS))
        print(
            f"{setting.repeat + 1:3d}  {setting.n_threads:7d}  {setting.tile:4d}  {files:>9s}  {results:>16s}"
            f"  {agreement(first, store)}"
        )


#: Where arrays and table are, and not what is said about them.
RESULTS = ("nuclei.parquet", "/c/")


def segmented(args: argparse.Namespace, setting: Setting) -> PanopticStore:
    """The store of a process with that many threads."""
    out = args.out / f"{setting.repeat}-{setting.n_threads}-{setting.tile}"
    command = [
        sys.executable, "-c", "from nucleipan.cli import main; main()", "segment", str(args.slide), "--out", str(out),
        "--model", args.model, "--backend", args.backend, "--device", "cpu", "--tile", str(setting.tile), "--overwrite",
    ]  # fmt: skip
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(setting.n_threads)})
    return PanopticStore.open(next(out.glob("*.ome.zarr")))


def same_files(a: Path, b: Path, parts: tuple[str, ...] | str) -> str:
    """Whether the files whose names hold one of ``parts`` are the same in both lists of checksums."""
    listed = [(store / "checksums.sha256").read_text().splitlines() for store in (a, b)]
    wanted = [{line for line in lines if any(part in line for part in parts) or not parts} for lines in listed]
    return "same" if wanted[0] == wanted[1] else "differ"


def agreement(a: PanopticStore, b: PanopticStore) -> str:
    table = overlaps(b.instances().astype(np.int64), a.instances().astype(np.int64))
    identical = int((table.ious == 1).sum()) / max(1, len(table.true.ids))
    same_class = float((a.class_map() == b.class_map()).mean())
    return f"{instance_quality(table).rq:10.4%}  {identical:9.4%}  {same_class:11.4%}"


if __name__ == "__main__":
    main()
