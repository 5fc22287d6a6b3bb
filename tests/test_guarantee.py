"""The tile guarantee with the shipped model on a real slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nucleipan.geometry import Box
from nucleipan.metrics import overlaps
from nucleipan.metrics.quality import instance_quality
from nucleipan.network.weights import DEFAULT_MODEL, embedded_models, load_model, model_for
from nucleipan.segment import SegmentOptions, segment_slide
from nucleipan.synthetic import SyntheticScene, write_slide


def test_the_default_model_is_embedded():
    assert DEFAULT_MODEL in embedded_models()
    assert {model_for(mpp) for mpp in (0.1, 10)} <= embedded_models().keys()
    assert all(path.stat().st_size < 20e6 for path in embedded_models().values())


def test_every_embedded_model_has_a_card_that_the_documentation_shows():
    docs = Path(__file__).parents[1] / "docs"
    index = (docs / "index.md").read_text()
    for name, path in embedded_models().items():
        assert path.with_suffix(".md").read_text().startswith(f"# Model card: {name}\n")
        assert f"models/{name}\n" in index
        assert f"{name}.md" in (docs / "models" / f"{name}.md").read_text()


@pytest.mark.parametrize(
    ("mpp", "model"),
    [
        (0.12, "nucleipan-accurate"),
        (0.2485, "nucleipan-accurate"),
        (0.3, "nucleipan-accurate"),
        (0.35, "nucleipan-fast"),
        (0.499, "nucleipan-fast"),
        (1.0, "nucleipan-fast"),
    ],
)
def test_the_finest_model_that_needs_no_enlarging_is_chosen(mpp, model):
    assert model_for(mpp) == model


def agreement(
    slide: Path, out: Path, tiles: tuple[int, int], model: str = DEFAULT_MODEL, roi: Box | None = None
) -> tuple[int, float, float]:
    """Nuclei with the larger tile, RQ between the two (one-to-one at IoU > 0.5), share of equal class pixels."""
    weights = load_model(model)
    stores = [segment_slide(slide, out / str(t), weights, SegmentOptions(tile=t, roi=roi)).store for t in tiles]
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


@pytest.mark.shared
@pytest.mark.slow
def test_the_tile_does_not_show_with_the_accurate_model(shared_slides, tmp_path):
    roi = Box(2600, 2600, 4600, 4600)
    n, rq, same_class = agreement(
        shared_slides / "TCGA-V5-A7RE-tissue.svs", tmp_path, (512, 1024), "nucleipan-accurate", roi
    )
    assert n > 100
    assert rq >= 0.998
    assert same_class > 0.9
