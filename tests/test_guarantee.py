"""The tile guarantee with the shipped model on a real slide."""

from __future__ import annotations

import numpy as np
import pytest

from nucleipan.metrics import overlaps
from nucleipan.metrics.quality import instance_quality
from nucleipan.network.weights import DEFAULT_MODEL, embedded_models, load_model
from nucleipan.segment import SegmentOptions, segment_slide


def test_the_default_model_is_embedded():
    assert DEFAULT_MODEL in embedded_models()
    assert embedded_models()[DEFAULT_MODEL].stat().st_size < 20e6


@pytest.mark.shared
@pytest.mark.slow
def test_tiles_of_512_and_1024_give_the_same_nuclei(shared_slides, tmp_path):
    model = load_model()
    stores = [
        segment_slide(
            shared_slides / "CMU-1-Small-Region.svs", tmp_path / str(tile), model, SegmentOptions(tile=tile)
        ).store
        for tile in (512, 1024)
    ]
    table = overlaps(*(s.instances().astype(np.int64) for s in stores))
    assert len(table.true.ids) > 1000
    assert instance_quality(table).rq >= 0.998
    assert (stores[0].class_map() == stores[1].class_map()).mean() > 0.98
