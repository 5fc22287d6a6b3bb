"""Imports point down, commands load only what they need, and nothing reads data in a way that could run it.

The layers are written here once; a module that is not in the table fails the test, so that a new one must be placed.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from stitch_oracle import random_truth, stitch_oracle

import nucleipan
from nucleipan.geometry import Box
from nucleipan.stitch import StitchContext
from nucleipan.synthetic import SyntheticScene, write_slide
from nucleipan.tiles import TileGrid

ROOT = Path(nucleipan.__file__).parent

# A unit is a top-level module or package. It may import units of lower layers, and nothing of its own layer but what
# CHAINS grants.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "geometry", "classes", "files", "documents"}),  # values
    frozenset({"tiles", "ngff"}),  # arithmetic and documents
    frozenset({"measure", "slide", "panoptic", "polygons", "synthetic", "sample"}),  # images in, tiles out
    frozenset(
        {"network", "transforms", "stitch", "store", "metrics", "datasets"}
    ),  # one job each, unaware of the others
    # jobs put together
    frozenset(
        {
            "pipeline",
            "segment",
            "cluster",
            "evaluate",
            "edits",
            "exports",
            "overlay",
            "report",
            "describe",
            "training",
            "verify",
        }
    ),
    frozenset({"config"}),
    frozenset({"summary", "batch", "cli"}),
)
# In each chain, a unit may import those before it.
CHAINS = (
    ("errors", "geometry", "classes"),
    ("errors", "files"),
    ("synthetic", "sample"),
    ("pipeline", "segment", "cluster"),
    ("edits", "exports", "describe"),
    ("overlay", "training"),
    ("summary", "batch", "cli"),
)

NUMPY_ONLY = LAYERS[0] | LAYERS[1]
MAY_IMPORT = {
    "torch": {"network", "transforms", "pipeline", "training"},
    "monai": {"network", "transforms", "pipeline", "segment", "training"},
    "pytorch_lightning": {"training"},
    "yaml": {"config"},
    "typer": {"cli"},
    "distributed": {"cluster"},
    "openvino": {"network"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
}


@dataclass(frozen=True)
class Import:
    """``module`` of ours imports ``target``, at ``line``; also where only type checkers see it."""

    module: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


@cache
def trees() -> dict[str, ast.Module]:
    """Syntax trees by dotted module name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = [ROOT.name, *path.relative_to(ROOT).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


@cache
def imports() -> tuple[Import, ...]:
    return tuple(i for module, tree in trees().items() for i in imports_of(module, tree))


def imports_of(module: str, tree: ast.Module) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module}:{node.lineno}: relative import"
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            for alias in node.names:
                # `from package import module` imports the module, `from module import name` the module it is in.
                inner = f"{node.module}.{alias.name}"
                yield Import(module, inner if inner in trees() else node.module, node.lineno)


def unit(module: str) -> str:
    """Top-level part of a module of ours; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def layer(name: str) -> int:
    return next(i for i, units in enumerate(LAYERS) if name in units)


def is_granted(importer: str, imported: str) -> bool:
    """Whether a chain lets ``importer`` import ``imported``, of the same layer."""
    return any(
        importer in chain and imported in chain and chain.index(imported) < chain.index(importer) for chain in CHAINS
    )


def ours() -> list[Import]:
    """Imports from one unit into another."""
    return [i for i in imports() if i.target.split(".")[0] == ROOT.name and unit(i.target) not in ("", unit(i.module))]


def test_every_unit_has_one_layer() -> None:
    placed = [name for units in LAYERS for name in units]
    assert len(placed) == len(set(placed))
    assert set(placed) == {unit(m) for m in trees()} - {""}


def test_imports_point_down() -> None:
    wrong = [
        str(i)
        for i in ours()
        if layer(unit(i.target)) > layer(unit(i.module))
        or (layer(unit(i.target)) == layer(unit(i.module)) and not is_granted(unit(i.module), unit(i.target)))
    ]
    assert wrong == []


def test_modules_import_no_circles() -> None:
    graph: dict[str, set[str]] = {m: set() for m in trees()}
    for i in imports():
        if i.target in graph and i.target != i.module:
            graph[i.module].add(i.target)
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)  # raises CycleError, which names them


def test_private_modules_stay_private() -> None:
    wrong = [str(i) for i in ours() if any(part.startswith("_") for part in i.target.split(".")[2:])]
    assert wrong == []


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_heavy_packages_have_their_places(package: str) -> None:
    allowed = MAY_IMPORT[package]
    wrong = [str(i) for i in imports() if i.target.split(".")[0] == package and unit(i.module) not in allowed]
    assert wrong == []


def test_lowest_layers_need_numpy_only() -> None:
    allowed = sys.stdlib_module_names | {"numpy", ROOT.name}
    wrong = [str(i) for i in imports() if unit(i.module) in NUMPY_ONLY and i.target.split(".")[0] not in allowed]
    assert wrong == []


# Data are data


FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system"}


def test_no_module_runs_what_it_reads() -> None:
    wrong = [str(i) for i in imports() if i.target.split(".")[0] in FORBIDDEN_IMPORTS]
    for module, tree in trees().items():
        wrong += [f"{module}:{c.lineno} calls {ast.unparse(c)}" for c in ast.walk(tree) if is_unsafe(c)]
    assert wrong == []


def is_unsafe(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
    if name == "torch.load":
        return given.get("weights_only") != "True"
    if name in ("np.load", "numpy.load"):
        return given.get("allow_pickle", "False") != "False"
    return name in FORBIDDEN_CALLS or given.get("shell") == "True"


@pytest.mark.parametrize(
    ("code", "unsafe"),
    [
        ("torch.load(p)", True),
        ("torch.load(p, weights_only=False)", True),
        ("torch.load(p, weights_only=True)", False),
        ("np.load(p)", False),
        ("np.load(p, allow_pickle=True)", True),
        ("yaml.load(t, Loader)", True),
        ("yaml.safe_load(t)", False),
        ("eval(text)", True),
        ("network.eval()", False),
    ],
)
def test_unsafe_calls_are_recognised(code: str, unsafe: bool) -> None:
    assert any(is_unsafe(node) for node in ast.walk(ast.parse(code))) == unsafe


# What a command loads


READERS = (
    "store", "slide", "exports", "evaluate", "metrics", "overlay", "report", "describe", "stitch", "panoptic", "sample",
    "edits", "verify",
)  # fmt: skip
HEAVY = {"torch", "monai"}


# Runs several command lines, given as JSON, in one interpreter.
RUN_COMMANDS = """
import json, sys
from nucleipan.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["nucleipan", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, (arguments, stop.code)
"""


def modules_after(code: str, *arguments: str) -> set[str]:
    """Top-level names in ``sys.modules`` of a fresh interpreter after ``code``."""
    report = "\nimport sys\nprint('\\n' + ' '.join({m.partition('.')[0] for m in sys.modules}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", code + report, *arguments],
        capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def modules_after_commands(*commands: list[str]) -> set[str]:
    return modules_after(RUN_COMMANDS, json.dumps(commands))


def test_importing_the_package_loads_nothing() -> None:
    assert modules_after("import nucleipan") & {"numpy", "torch", "monai", "zarr", "typer", "yaml"} == set()


def test_help_loads_the_command_line_only() -> None:
    loaded = modules_after_commands(["--help"], ["segment", "--help"], ["train", "--help"])
    assert loaded & {"numpy", "torch", "monai", "zarr", "pyarrow", "numba", "scipy", "tifffile"} == set()


def test_readers_load_no_deep_learning() -> None:
    assert modules_after("\n".join(f"import nucleipan.{name}" for name in READERS)) & HEAVY == set()


def test_commands_that_read_load_no_deep_learning(tmp_path: Path) -> None:
    shape = (96, 128)
    context = StitchContext(TileGrid(shape, Box.of_shape(shape), 64, 32, 1), 2.0)
    store = stitch_oracle(tmp_path / "slide.ome.zarr", random_truth(shape, 20), context)[0].path
    slide, out = tmp_path / "slide.tif", tmp_path / "nuclei.geojson"
    write_slide(SyntheticScene((64, 96)), slide, levels=1)
    export = ["export", str(store), "--format", "geojson", "--out", str(out)]
    commands = (["info", str(slide)], ["info", str(store), "--json"], ["verify", str(store)], export)
    assert modules_after_commands(*commands) & HEAVY == set()
    assert out.is_file()
