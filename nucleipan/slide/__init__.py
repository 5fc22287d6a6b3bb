"""Whole-slide images of any format, read as 8-bit RGB in one pixel grid.

``open_slide`` decides by content which reader a path needs; ``at_mpp`` hides the pyramid behind a ``SlideView``
with a single pixel size; ``tissue_mask`` says where on it there is anything to look at, ``quality_map`` where that
can be judged.
"""

from nucleipan.slide._types import Level, Slide
from nucleipan.slide.flat import ArraySlide
from nucleipan.slide.info import describe
from nucleipan.slide.opening import is_slide, open_slide
from nucleipan.slide.quality import QualityMap, quality_map
from nucleipan.slide.tissue import TissueMask, tissue_mask
from nucleipan.slide.view import SlideView, at_mpp

__all__ = [
    "ArraySlide",
    "Level",
    "QualityMap",
    "Slide",
    "SlideView",
    "TissueMask",
    "at_mpp",
    "describe",
    "is_slide",
    "open_slide",
    "quality_map",
    "tissue_mask",
]
