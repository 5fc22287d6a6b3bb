"""What is shown below a store's nuclei: its slide, if it is still there, or the overview in the store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nucleipan.errors import SlideError
from nucleipan.slide import Slide, open_slide
from nucleipan.store import PanopticStore
from nucleipan.store.origin import has_whole_image, open_slide_of, slide_beside


@dataclass(frozen=True)
class FoundSlide:
    """The pixels to show below a store's nuclei.

    Attributes:
        slide: open; the overview in the store where ``is_overview``.
        is_overview: whether the slide itself was not found.
        note: for people, why it was not; else empty.
    """

    slide: Slide
    is_overview: bool
    note: str


def find_slide(store: PanopticStore, given: Path | None = None) -> FoundSlide:
    """The slide given, the one beside the store, the whole image in the store, or the store's overview.

    Raises:
        SlideError: the slide given is not the store's, or nothing can be read.
    """
    if given is not None:
        return FoundSlide(open_slide_of(store, given), False, "")
    beside, note = slide_beside(store), ""
    if beside is not None:
        try:
            return FoundSlide(open_slide_of(store, beside), False, "")
        except SlideError as error:
            note = str(error)
    inside, is_whole = open_slide(store.path), has_whole_image(store)
    name = store.slide.get("name", "the slide")
    note = note or f"{name} does not lie beside {store.path.name}"
    return FoundSlide(inside, not is_whole, "" if is_whole else note)
