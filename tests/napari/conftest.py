"""What tests of the plugin share: the manifest known to napari, and a slide and a store that are known exactly.

Every test module here begins with ``pytest.importorskip("napari")``: without napari it is skipped. Warnings are errors
here, but for those that napari and vispy cause by themselves.
"""

from __future__ import annotations

import importlib.util
import shutil
import warnings
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
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.filterwarnings("error", *IGNORED))


@pytest.fixture(scope="session", autouse=True)
def _plugin() -> None:
    """The manifest, also where the distribution was installed before it had one.

    napari is imported here, once, because other packages warn while they are imported.
    """
    if importlib.util.find_spec("napari") is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import napari_nucleipan
        import npe2
        from napari import Viewer  # noqa: F401

        plugins = npe2.PluginManager.instance()
        plugins.discover()
        if "nucleipan" not in plugins:
            plugins.register(npe2.PluginManifest.from_file(Path(napari_nucleipan.__file__).parent / "napari.yaml"))


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Do not change its files: take ``example_copy`` for that."""
    return write_example(tmp_path_factory.mktemp("example"))


@pytest.fixture
def example_copy(example: Example, tmp_path: Path) -> Example:
    """The example in a folder of its own, to be changed."""
    store = Path(shutil.copytree(example.store, tmp_path / example.store.name))
    return replace(example, store=store, slide=Path(shutil.copy(example.slide, tmp_path)))
