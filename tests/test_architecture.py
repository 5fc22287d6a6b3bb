"""Imports point down, commands load only what they need, and nothing reads data in a way that could run it.

The layers are written in ``layers``; a module that is in none fails the test, so that a new one must be placed.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from layers import LAYERS, PACKAGE, imports, is_granted, layer, ours, trees, unit
from stitch_oracle import random_truth, stitch_oracle

from nucleipan.geometry import Box
from nucleipan.stitch import StitchContext
from nucleipan.synthetic import SyntheticScene, write_slide
from nucleipan.tiles import TileGrid

NUMPY_ONLY = (LAYERS[0].units | LAYERS[1].units) - {"progress"}  # its bar is of rich
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


def test_every_unit_has_one_layer() -> None:
    placed = [name for each in LAYERS for name in each.units]
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
    allowed = sys.stdlib_module_names | {"numpy", PACKAGE.name}
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
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])}
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
