"""What every data set is read into, whatever its layout.

An ``Item`` is one annotated image that has not been read yet; loading it gives an ``Annotated``. Codes are what the
annotators wrote ("Epithelial", "3"), as text; what they mean in our classes is the training configuration's business.
What a set does not mark is unknown: no ``ids`` means that nobody marked nuclei, not that there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nucleipan.errors import DataError

#: Instance ids are kept below this: larger ones are either a mistake or a format nobody can hold in 16 bits.
MAX_ID = 65535


@dataclass(frozen=True, eq=False)
class Annotated:
    """Pixels of one image and all that is known about them.

    Attributes:
        image: uint8[h, w, 3], RGB.
        ids: int32[h, w], 0 where there is no nucleus; None where nuclei are not annotated.
        code_of_id: class code of each nucleus that has one.
        regions: uint8[h, w], index into ``region_codes``; None where tissue is not annotated.
        region_codes: class code of each region index; None = not annotated there.
        unknown: bool[h, w], where ``ids`` say nothing, neither "nucleus" nor "none"; None = they hold everywhere.
    """

    image: np.ndarray
    ids: np.ndarray | None = None
    code_of_id: Mapping[int, str] = field(default_factory=dict)
    regions: np.ndarray | None = None
    region_codes: tuple[str | None, ...] = ()
    unknown: np.ndarray | None = None


@dataclass(frozen=True)
class Item:
    """One annotated image of a data set.

    Attributes:
        name: unique within the set; splits refer to it.
        path: the file that errors name.
        load: reads it; raises DataError, or SlideError for an unreadable image.
        may_be_empty: whether an image without any nucleus is normal in this set; else it is taken for a mistake.
    """

    name: str
    path: Path
    load: Callable[[], Annotated] = field(repr=False)
    may_be_empty: bool = False


def checked(item: Item, *, allow_empty: bool = False) -> Annotated:
    """``item.load()``, refused where it contradicts itself.

    Raises:
        DataError: sizes differ, nothing is annotated, no nucleus where some are expected, or an instance id is
            negative or above 65535.
    """
    found = item.load()
    image = found.image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"{item.path}: expected an 8-bit RGB image; found {image.dtype} {image.shape}")
    planes = (("label image", found.ids), ("tissue map", found.regions), ("mask of what is unknown", found.unknown))
    for what, plane in planes:
        if plane is not None and plane.shape != image.shape[:2]:
            raise DataError(f"{item.path}: {what} is {plane.shape}, its image {image.shape[:2]}")
    if found.ids is None and found.regions is None:
        raise DataError(f"{item.path}: nothing is annotated; leave the image out or annotate nuclei or tissue")
    if found.ids is not None and found.ids.size:
        low, high = int(found.ids.min()), int(found.ids.max())
        if low < 0 or high > MAX_ID:
            raise DataError(
                f"{item.path}: instance ids run from {low} to {high}; expected 0 to {MAX_ID}; renumber them"
            )
        if high == 0 and not (allow_empty or item.may_be_empty):
            raise DataError(f"{item.path}: the label image is empty; leave it out, or set allow_empty if that is true")
    if found.regions is not None and int(found.regions.max(initial=0)) >= len(found.region_codes):
        raise DataError(f"{item.path}: tissue index {int(found.regions.max())} has no code")
    return found
