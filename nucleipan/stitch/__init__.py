"""Joining tiles into one slide, every nucleus exactly once.

Two phases, no locks, any order, any number of processes::

    PanopticTile --tile_record--> TileRecord --write_record--> one file per tile        (phase 1, per tile)
    all tile files --assemble--> labels, pyramids, nuclei.parquet, metadata             (phase 2, once)

A tile is done when its file exists; that is all an interrupted run needs to know. Phase 2 is a function of the set
of tile files alone. When every tile sees what its neighbours see, the store does not depend on how the slide was
tiled: ids are 1..N in raster order of the nuclei's centres.

The extent obeys the same rule as a core: a nucleus centred in it is kept whole, also where it reaches over its border;
one centred outside is left out, and the tissue it lies on is shown. So the stores of adjoining extents add up.
"""

from nucleipan.stitch.assemble import Overview, StitchSummary, StoreLayout, assemble
from nucleipan.stitch.record import (
    Measures,
    StitchContext,
    TileRecord,
    finished_tiles,
    read_columns,
    tile_path,
    tile_record,
    write_record,
)

__all__ = [
    "Measures",
    "Overview",
    "StitchContext",
    "StitchSummary",
    "StoreLayout",
    "TileRecord",
    "assemble",
    "finished_tiles",
    "read_columns",
    "tile_path",
    "tile_record",
    "write_record",
]
