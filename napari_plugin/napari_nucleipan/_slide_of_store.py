"""Which slide a store was made from, if it is still there.

A store names its slide and knows its fingerprint. Pixels of another slide under these nuclei would be worse than
none, so a slide is used only if it is the very one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nucleipan.errors import SlideError
from nucleipan.slide import Slide, open_slide
from nucleipan.slide.fingerprint import fingerprint
from nucleipan.store import PanopticStore


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
    beside, note = _beside(store), ""
    if beside is not None:
        try:
            return FoundSlide(open_slide_of(store, beside), False, "")
        except SlideError as error:
            note = str(error)
    inside = open_slide(store.path)
    whole = (store.slide.get("height"), store.slide.get("width"))
    is_whole = inside.levels[0].shape == whole
    name = store.slide.get("name", "the slide")
    note = note or f"{name} does not lie beside {store.path.name}"
    return FoundSlide(inside, not is_whole, "" if is_whole else note)


def open_slide_of(store: PanopticStore, path: Path) -> Slide:
    """Open ``path`` if it is the slide that ``store`` was made from.

    Raises:
        SlideError: it cannot be read, or is another slide.
    """
    slide = open_slide(path)
    try:
        _check(slide, store, path)
    except SlideError:
        slide.close()
        raise
    return slide


def is_slide_of(store: PanopticStore, path: Path) -> bool:
    """Whether the file is the one that ``store`` was made from."""
    return path.exists() and fingerprint(path) == store.slide.get("fingerprint")


def _check(slide: Slide, store: PanopticStore, path: Path) -> None:
    if not is_slide_of(store, path):
        raise SlideError(
            f"{path}: is not the slide that {store.path.name} was made from (its fingerprint differs); "
            f"expected {store.slide.get('name', 'another one')}"
        )
    factor = store.level0_per_pixel
    expected = tuple(side * factor for side in store.shape)
    if any(abs(a - b) > factor for a, b in zip(slide.levels[0].shape, expected, strict=True)):
        raise SlideError(f"{path}: has {slide.levels[0].shape} pixels, {store.path.name} tells of about {expected}")


def _beside(store: PanopticStore) -> Path | None:
    """A file of the recorded name beside the store; the name is taken as a name, never as a path."""
    name = store.slide.get("name")
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
        return None
    path = store.path.absolute().parent / name
    return path if path.exists() else None
