"""The slide that a store was made from, if it is still there.

A store names its slide and knows its fingerprint. Pixels of another slide under these nuclei, or its patient beside
them, would be worse than none, so a slide is used only if it is the very one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nucleipan.errors import SlideError
from nucleipan.slide import Slide, SlideView, at_mpp, open_slide
from nucleipan.slide.fingerprint import fingerprint
from nucleipan.store.reader import PanopticStore


@contextmanager
def slide_in_grid(store: PanopticStore, path: Path) -> Iterator[SlideView]:
    """The slide at ``path`` in the store's own pixels.

    Raises:
        SlideError: it cannot be read, or is not the slide that the store was made from.
    """
    with open_slide_of(store, path) as slide:
        yield in_grid(store, slide)


def in_grid(store: PanopticStore, slide: Slide) -> SlideView:
    """``slide``, which the store was made from, in the store's pixels."""
    return at_mpp(slide, store.mpp, store.mpp / store.level0_per_pixel)


def open_slide_of(store: PanopticStore, path: Path) -> Slide:
    """Open ``path`` if it is the slide that ``store`` was made from.

    Raises:
        SlideError: it cannot be read, or is another slide.
    """
    slide = open_slide(path)
    try:
        check_origin(store, slide, path)
    except BaseException:
        slide.close()
        raise
    return slide


def check_origin(store: PanopticStore, slide: Slide, path: Path, *also: Path) -> None:
    """Refuse any slide but the store's own, by content and size.

    ``path`` is how the user named it; ``also`` how it may have been named before, such as another file of its folder.

    Raises:
        SlideError: it is another slide.
    """
    if not any(is_slide_of(store, name) for name in dict.fromkeys((slide.path, path, *also))):
        raise SlideError(
            f"{path}: is not the slide that {store.path.name} was made from ({store.slide.get('name')}): its content "
            "differs; choose that one"
        )
    shape = in_grid(store, slide).shape
    if shape != store.shape:
        raise SlideError(
            f"{path}: has {shape} pixels in the grid of {store.path.name}, which has {store.shape}; choose the slide "
            "that it was made from"
        )


def is_slide_of(store: PanopticStore, path: Path) -> bool:
    """Whether the content of ``path`` is that of the slide that ``store`` was made from."""
    return path.exists() and fingerprint(path) == store.slide.get("fingerprint")


def slide_beside(store: PanopticStore) -> Path | None:
    """What lies beside the store under the name of its slide, which is taken as a name and never as a path."""
    name = store.slide.get("name")
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
        return None
    path = store.path.absolute().parent / name
    return path if path.exists() else None


def has_whole_image(store: PanopticStore) -> bool:
    """Whether the store's own picture is the slide at full resolution (``--with-image``)."""
    return store.image().shape[1:] == (store.slide.get("height"), store.slide.get("width"))
