"""The documentation builds without a warning, and what is made from the code is complete and current."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

import nucleipan
from nucleipan.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, timeout=900, env=os.environ | {"PYTHONPATH": paths}, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("sphinx", "myst_parser", "furo", "pytorch_lightning"):
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("site")
    done = run("-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-d", out / "trees", DOCS, out / "html")
    assert done.returncode == 0, done.stderr
    return out / "html"


@pytest.mark.slow
def test_public_names_are_described(site: Path) -> None:
    page = (site / "reference/api.html").read_text()
    described = set(re.findall(r'<dt class="sig sig-object py" id="nucleipan\.(\w+)"', page))
    assert described == set(nucleipan.__all__)


@pytest.mark.slow
def test_every_key_of_a_configuration_is_listed(site: Path) -> None:
    page = re.sub(r"<[^>]*>", "", (site / "reference/configuration.html").read_text())
    assert [key for model in models_of(TrainConfig) for key in model.model_fields if key not in page] == []


@pytest.mark.slow
def test_pages_need_no_network(site: Path) -> None:
    loaded = re.compile(r"<(?:script|img|iframe)[^>]+src=\"(?:https?:)?//|<link[^>]+href=\"(?:https?:)?//")
    assert [page.name for page in site.rglob("*.html") if loaded.search(page.read_text())] == []


@pytest.mark.slow
def test_modules_are_drawn(site: Path) -> None:
    page = (site / "architecture.html").read_text()
    drawing = page[page.index('<svg class="modules"') : page.index("</svg>", page.index('<svg class="modules"'))]
    assert {"cli", "segment", "stitch", "errors"} <= set(re.findall(r">(\w+)</text>", drawing))


def models_of(model: type[BaseModel]) -> set[type[BaseModel]]:
    """Models that a model's schema mentions, itself included, found by name."""
    names = {model.__name__, *model.model_json_schema()["$defs"]}
    found, waiting = {model}, list(BaseModel.__subclasses__())
    while waiting:
        each = waiting.pop()
        waiting += each.__subclasses__()
        if each.__name__ in names and each.__module__.startswith("nucleipan."):
            found.add(each)
    return found


@pytest.mark.parametrize("model", sorted(models_of(TrainConfig), key=lambda m: m.__name__), ids=lambda m: m.__name__)
def test_every_key_says_what_it_is(model: type[BaseModel]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []
    assert model.__doc__


def test_drawings_are_what_their_script_makes(tmp_path: Path) -> None:
    done = run(DOCS / "drawings", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    made = {path.name: path.read_text() for path in tmp_path.glob("*.svg")}
    assert made == {path.name: path.read_text() for path in (DOCS / "images").glob("*.svg")}


def test_every_drawing_and_picture_is_shown() -> None:
    pages = "".join(
        path.read_text() for path in (*DOCS.rglob("*.md"), ROOT / "README.md") if "_build" not in path.parts
    )
    assert [path.name for path in (DOCS / "images").iterdir() if f"images/{path.name}" not in pages] == []
