"""What is measured of a nucleus: its shape, its stains, what lies around it.

Every number comes from exact integer sums or from coordinates of the whole view, so that it does not depend on where
a tile was cut or in which order pixels were visited. Lengths are in pixels of the plane that was given.
"""

from nucleipan.measure.borders import distance_to_other_class
from nucleipan.measure.completion import Completed, complete_covered
from nucleipan.measure.neighbours import distance_to_nearest
from nucleipan.measure.shape import SHAPE_COLUMNS, measure_shapes
from nucleipan.measure.stains import STAIN_COLUMNS, STAIN_VECTORS, Rings, measure_stains

__all__ = [
    "SHAPE_COLUMNS",
    "STAIN_COLUMNS",
    "STAIN_VECTORS",
    "Completed",
    "Rings",
    "complete_covered",
    "distance_to_nearest",
    "distance_to_other_class",
    "measure_shapes",
    "measure_stains",
]
