"""The notebooks run as their readers run them, on less data, and each is the same in both of its files.

All run in one folder, one after the other, as they would beside each other on a disk: what ``segment_a_slide`` writes
is what others read.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from nucleipan.store import PanopticStore
from nucleipan.synthetic import SyntheticScene, write_slide

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.py"))
FIRST = "segment_a_slide"

_TWO_STEPS = (
    'SETTINGS = ["schedule.steps=2", "schedule.batch_size=1", "schedule.crop=64", "schedule.workers=0", '
    '"schedule.log_every=1"]'
)
# Parameters that make a run brief, put after those of the notebook.
BRIEF = {
    "segment_a_slide": "FIELD, DETAIL = Box(0, 0, 256, 384), Box(100, 100, 200, 250)",
    "read_a_store": "N_SHUFFLES = 19",
    "fine_tune": f"SIDE = 192\n{_TWO_STEPS}",
    "compare_models": "N_IMAGES, SIDE = 3, 192",
    "correct_and_improve": f"SHAPE, FIELD = (256, 256), Box(0, 0, 192, 192)\n{_TWO_STEPS}",
    "on_a_cluster": "TILE, N_WORKERS = 256, 1",
}


def source(name: str) -> Any:
    """The notebook as its text file has it."""
    return jupytext.read(NOTEBOOKS / f"{name}.py")


def generated(name: str) -> Any:
    """The notebook as programs for notebooks open it."""
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def executed(name: str, folder: Path) -> Any:
    """The notebook after a run in ``folder``, with the parameters of ``BRIEF``."""
    notebook = generated(name)
    after = 1 + next(k for k, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    notebook.cells.insert(after, nbformat.v4.new_code_cell(BRIEF[name]))
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    return client.execute()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all of them run, with a slide in the place of the sample."""
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "demo").mkdir()
    write_slide(SyntheticScene((384, 512), seed=5), folder / "demo" / "sample.svs")
    return folder


@pytest.fixture(scope="module")
def first(folder: Path) -> Any:
    """The first notebook after its run, on whose store others rely."""
    return executed(FIRST, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_shows_pictures(name: str, first: Any, folder: Path) -> None:
    notebook = first if name == FIRST else executed(name, folder)
    shown = [output for cell in code_cells(notebook) for output in cell.outputs]
    printed = "".join(o.text for o in shown if o.output_type == "stream")
    assert re.findall(r"\w+Warning: .*", printed) == []
    assert sum("image/png" in o.get("data", {}) for o in shown) >= 1


@pytest.mark.slow
def test_the_first_leaves_a_store_that_the_others_read(first: Any, folder: Path) -> None:
    store = PanopticStore.open(folder / "demo" / "sample.ome.zarr")
    printed = "".join(o.text for c in code_cells(first) for o in c.outputs if o.output_type == "stream")
    assert store.n_nuclei > 0
    assert f"{store.n_nuclei} nuclei with nucleipan-fast" in printed


def test_all_are_listed() -> None:
    assert set(NAMES) == set(BRIEF) == {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    readme = (NOTEBOOKS / "README.md").read_text()
    assert set(re.findall(r"\]\((\w+)\.ipynb\)", readme)) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_both_files_are_the_same_notebook(name: str) -> None:
    pair = [
        [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]
        for notebook in (source(name), generated(name))
    ]
    assert pair[0] == pair[1], f"run `make notebooks`: notebooks/{name}.ipynb is not what its .py says"


@pytest.mark.parametrize("name", NAMES)
def test_no_output_is_kept(name: str) -> None:
    kept = [cell.source for cell in code_cells(generated(name)) if cell.outputs or cell.execution_count is not None]
    assert kept == [], f"clear the outputs of notebooks/{name}.ipynb, or remove it and run `make notebooks`"


@pytest.mark.parametrize("name", NAMES)
def test_it_begins_with_a_question_and_has_one_cell_of_parameters(name: str) -> None:
    cells = source(name).cells
    title, question = cells[0].source.split("\n\n")[:2]
    assert title.startswith("# ")
    assert question.startswith("*")
    assert "?*" in question
    assert sum("parameters" in cell.metadata.get("tags", ()) for cell in cells) == 1


@pytest.mark.parametrize("name", NAMES)
def test_only_public_names_are_used(name: str) -> None:
    tree = ast.parse("\n".join(cell.source for cell in code_cells(source(name))))
    imported = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    attributes = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert any(path.startswith("nucleipan.") for path in imported)
    assert [path for path in (*imported, *attributes) if re.search(r"(^|\.)_", path)] == []


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    text = "\n".join(cell.source for cell in source(name).cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\(([^)#]+)", text)
    assert [t for t in targets if not t.startswith("https://") and not (NOTEBOOKS / t).exists()] == []
