"""What tests of the plugin share: the manifest known to napari, and a slide and a store that are known exactly.

Every test module here begins with ``pytest.importorskip("napari")``: without napari it is skipped. Warnings are errors
here, but for those that napari and vispy cause by themselves. Nothing that a test has started may outlive it.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from example_store import Example, write_example

# What napari's and vispy's own code warns of.
IGNORED = (
    "ignore::DeprecationWarning:vispy",
    "ignore::DeprecationWarning:napari",
    "ignore::DeprecationWarning:npe2",
    "ignore::FutureWarning:napari",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    has_screen = not sys.platform.startswith("linux") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.filterwarnings("error", *IGNORED))
            if not has_screen:  # Qt would end the process; pytest-xvfb makes a screen where it finds Xvfb
                item.add_marker(pytest.mark.skip(reason="windows need a screen, or Xvfb"))


@pytest.fixture(scope="session", autouse=True)
def _plugin() -> None:
    """The manifest, also where the distribution was installed before it had one.

    napari is imported here, once, because other packages warn while they are imported. napari looks for garbage
    before and after every viewer, which takes a second where it has to look through all that was imported.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import napari_nucleipan
        import npe2
        from napari import Viewer  # noqa: F401

        plugins = npe2.PluginManager.instance()
        plugins.discover()
        if "nucleipan" not in plugins:
            plugins.register(npe2.PluginManifest.from_file(Path(napari_nucleipan.__file__).parent / "napari.yaml"))
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_goes_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No worker, thread or timer of ours outlives its test."""
    from qtpy.QtCore import QThreadPool, QTimer

    timers: list[weakref.ref[QTimer]] = []
    start = QTimer.start

    def started(timer: QTimer, *arguments: object) -> None:
        if "napari_nucleipan" in sys._getframe(1).f_code.co_filename:
            timers.append(weakref.ref(timer))
        start(timer, *arguments)

    monkeypatch.setattr(QTimer, "start", started)
    yield
    pool = QThreadPool.globalInstance()
    assert pool.waitForDone(10_000), f"{pool.activeThreadCount()} workers go on"
    assert not [timer for timer in map(_alive, timers) if timer is not None and timer.isActive()], "a timer goes on"


def _alive(timer: weakref.ref) -> object:
    """What is left of a timer, None if Qt has deleted it."""
    from qtpy.compat import isalive

    found = timer()
    return found if found is not None and isalive(found) else None


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Do not change its files: take ``example_copy`` for that."""
    return write_example(tmp_path_factory.mktemp("example"))


@pytest.fixture
def example_copy(example: Example, tmp_path: Path) -> Example:
    """The example in a folder of its own, to be changed."""
    store = Path(shutil.copytree(example.store, tmp_path / example.store.name))
    return replace(example, store=store, slide=Path(shutil.copy(example.slide, tmp_path)))
