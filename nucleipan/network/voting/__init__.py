"""Centre voting: from a nucleus mask and offsets to instances.

Every nucleus pixel jumps by its offset, and from where it lands again: offsets near the centre are the most exact, so
a second and third jump gather what a first one scattered. Landings are counted; local maxima of the smoothed count are
centres; each pixel belongs to the nearest centre around its landing; of each instance the largest piece is kept::

    pixel --offsets--> landing --histogram--> votes --smooth, local max--> centres
    pixel --offsets--> landing --nearest centre within reach--> instance --largest piece, minimum area--> nucleus

Everything is integer arithmetic after the landing, and ties go to the position that comes first in raster order:
the result is deterministic, independent of where a tile was cut (as long as it sees the nucleus whole), and
the same in both implementations of the vote, ``cpu`` (numba, one thread, releases the GIL) and ``tensor`` (torch, for
GPUs). Pieces are told apart on the CPU.
The smoothing kernel is binomial, [1, 4, 6, 4, 1] in each axis.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class VotingConfig(BaseModel):
    """Centre voting. Sizes are in pixels of the working grid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    jumps: int = Field(
        3,
        ge=1,
        le=16,
        description="how often a pixel follows the offset of where it is; a jump off all nuclei is its last",
    )
    peak_radius: int = Field(4, ge=1, le=64, description="two centres are further apart than this, in y or in x")
    reach: int = Field(6, ge=1, le=64, description="how far from its centre a pixel may land")
    min_votes: int = Field(
        3, ge=1, description="how high a centre must be: as many votes as reach it when all land in one point"
    )
    min_area: int = Field(20, ge=1, description="smaller instances are dropped, in pixels")
    threshold: float = Field(0.0, description="nucleus logit above which a pixel votes")

    @property
    def min_score(self) -> int:
        """``min_votes`` landing in one point, after smoothing."""
        return self.min_votes * PEAK_WEIGHT


#: Weight of the middle of the smoothing kernel: a point of n votes smooths to 36 n.
PEAK_WEIGHT = 36
