"""Scores of panoptic nuclei segmentation, as the papers that introduced them define them.

``overlaps`` turns two instance maps into one sparse table; every score is a short function of it.
"""

from nucleipan.metrics.detection import (
    ClassificationCounts,
    DetectionCounts,
    classification_counts,
    detection_counts,
    pair_centroids,
    pair_centroids_globally,
)
from nucleipan.metrics.evaluation import Evaluation, ImageScores, NucleusScores
from nucleipan.metrics.jaccard import aji, aji_plus, dice
from nucleipan.metrics.mistakes import Mistakes, count_mistakes
from nucleipan.metrics.overlaps import Overlaps, Segments, overlaps
from nucleipan.metrics.quality import (
    PanopticMap,
    PanopticQuality,
    SegmentMap,
    class_qualities,
    instance_quality,
    mean_pq,
    mean_pq_of_present,
    mean_qualities,
    panoptic_qualities,
    pool,
    segment_qualities,
)
from nucleipan.metrics.scoring import ImagePair, evaluate_pairs
from nucleipan.metrics.tissue import PixelConfusion, pixel_confusion

__all__ = [
    "ClassificationCounts",
    "DetectionCounts",
    "Evaluation",
    "ImagePair",
    "ImageScores",
    "Mistakes",
    "NucleusScores",
    "Overlaps",
    "PanopticMap",
    "PanopticQuality",
    "PixelConfusion",
    "SegmentMap",
    "Segments",
    "aji",
    "aji_plus",
    "class_qualities",
    "classification_counts",
    "count_mistakes",
    "detection_counts",
    "dice",
    "evaluate_pairs",
    "instance_quality",
    "mean_pq",
    "mean_pq_of_present",
    "mean_qualities",
    "overlaps",
    "pair_centroids",
    "pair_centroids_globally",
    "panoptic_qualities",
    "pixel_confusion",
    "pool",
    "segment_qualities",
]
