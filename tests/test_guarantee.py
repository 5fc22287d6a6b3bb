"""The tile guarantee with the shipped model on a real slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nucleipan.metrics import overlaps
from nucleipan.metrics.quality import instance_quality
from nucleipan.network.weights import DEFAULT_MODEL, embedded_models, load_model
from nucleipan.segment import SegmentOptions, segment_slide
from nucleipan.synthetic import SyntheticScene, write_slide


def test_the_default_model_is_embedded():
    assert DEFAULT_MODEL in embedded_models()
    assert embedded_models()[DEFAULT_MODEL].stat().st_size < 20e6


def agreement(slide: Path, out: Path, tiles: tuple[int, int]) -> tuple[int, float, float]:
    """Nuclei with the larger tile, RQ between the two (one-to-one at IoU > 0.5), share of equal class pixels."""
    model = load_model()
    stores = [segment_slide(slide, out / str(t), model, SegmentOptions(tile=t)).store for t in tiles]
    table = overlaps(*(s.instances().astype(np.int64) for s in stores))
    same_class = float((stores[0].class_map() == stores[1].class_map()).mean())
    return len(table.true.ids), instance_quality(table).rq, same_class


@pytest.mark.slow
def test_the_tile_does_not_show_on_a_synthetic_slide(tmp_path):
    write_slide(SyntheticScene((640, 900), seed=4), tmp_path / "slide.tiff", levels=1)
    # Tissue is judged by a wider surrounding than the margin holds: the guarantee is about nuclei.
    n, rq, _ = agreement(tmp_path / "slide.tiff", tmp_path, (256, 1024))
    assert n > 50
    assert rq >= 0.99


@pytest.mark.shared
@pytest.mark.slow
def test_tiles_of_512_and_1024_give_the_same_nuclei(shared_slides, tmp_path):
    n, rq, same_class = agreement(shared_slides / "CMU-1-Small-Region.svs", tmp_path, (512, 1024))
    assert n > 1000
    assert rq >= 0.998
    assert same_class > 0.95
