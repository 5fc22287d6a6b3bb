"""Does the tile size show in the result? One slide, segmented with several tile sizes, compared nucleus by nucleus.

    python benchmarks/tiling.py ../shared/data/slides/CMU-1-Small-Region.svs --tiles 512 1024 2048 --out out/tiling

Prints, for each tile size against the largest, the share of nuclei that have a partner at IoU > 0.5 (2 TP over all
nuclei of both), the share with exactly the same pixels, the pixels with the same class, the redundant arithmetic of
the margins, and the time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from nucleipan.metrics import overlaps
from nucleipan.metrics.quality import instance_quality
from nucleipan.network.weights import load_model
from nucleipan.segment import SegmentOptions, segment_slide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--tiles", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--model", default="nucleipan-fast")
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    model = load_model(args.model)
    results = {}
    for tile in sorted(args.tiles):
        options = SegmentOptions(mpp=args.mpp, tile=tile, overwrite=True)
        results[tile] = segment_slide(args.slide, args.out / str(tile), model, options)
    largest = max(results)
    reference = results[largest].store
    true, true_classes = reference.instances().astype(np.int64), reference.class_map()
    print(f"{args.slide.name}, {model.info.name}, margin {model.info.margin}, against tiles of {largest}")
    print("tile  nuclei  one-to-one  identical  class plane  redundancy  seconds")
    for tile, result in results.items():
        pred = result.store.instances().astype(np.int64)
        table = overlaps(pred, true)
        quality = instance_quality(table)
        identical = int((table.ious == 1).sum()) / max(1, len(table.true.ids))
        same_class = float((result.store.class_map() == true_classes).mean())
        print(
            f"{tile:4d}  {result.store.n_nuclei:6d}  {quality.rq:10.4%}  {identical:9.4%}  {same_class:11.4%}"
            f"  {result.redundancy:9.3f}x  {result.seconds:7.1f}"
        )


if __name__ == "__main__":
    main()
