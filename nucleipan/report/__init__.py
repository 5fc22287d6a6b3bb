"""One HTML page about one store, for people who read slides and not programs.

The page is a single file: no script, nothing from the network, pictures inside. It needs the extra ``report``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nucleipan.errors import ConfigError
from nucleipan.files import whole_file

if TYPE_CHECKING:
    from nucleipan.store import PanopticStore


def write_report(store: PanopticStore, path: str | Path, slide: str | Path | None = None) -> None:
    """Write the page about ``store`` to ``path``; the same store and slide give the same file.

    Example fields are shown if there is a slide to cut them from: ``slide``, or without one a file of the recorded
    name beside the store, or the image in the store.

    Raises:
        ConfigError: the extra ``report`` is not installed.
        StoreError: the store contradicts itself.
        SlideError: ``slide`` cannot be read, or is not the one that the store was made from.
        DataError: the page cannot be written.
    """
    try:
        from nucleipan.report.page import render_page
    except ModuleNotFoundError as error:
        raise ConfigError(f"a report needs the package {error.name}; pip install 'nucleipan[report]'") from error
    page = render_page(store, None if slide is None else Path(slide))
    with whole_file(Path(path)) as temporary:
        temporary.write_bytes(page)
