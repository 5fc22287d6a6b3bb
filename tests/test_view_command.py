"""``nucleipan view`` where it opens no window: one line of help or of complaint, and nothing else in need of napari."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nucleipan

PLUGIN_TESTS = Path(__file__).parent / "napari_plugin"
RUN = "from nucleipan.cli import main; sys.argv = ['nucleipan', *sys.argv[1:]]; main()"
# As if what comes with the extra were not installed: it is looked for where nothing was installed.
WITHOUT_NAPARI = """
import sys
from importlib.machinery import PathFinder

class OnlyOutsideOfPackages:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in ("napari", "npe2", "qtpy", "vispy", "PySide6", "pytestqt"):
            return None
        found = PathFinder.find_spec(name, [folder for folder in sys.path if "-packages" not in folder])
        if found is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found

sys.meta_path.insert(0, OnlyOutsideOfPackages)
"""


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(nucleipan.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", "import sys; " + code, *arguments],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | {"PYTHONPATH": path} | environment,
    )  # fmt: skip


@pytest.mark.parametrize("before", [WITHOUT_NAPARI, "sys.modules['qtpy'] = None\n"], ids=["napari", "Qt binding"])
def test_what_is_missing_is_said_and_how_to_get_it(before: str, tmp_path: Path) -> None:
    done = run(before + RUN, "view", str(tmp_path / "slide.svs"))
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "pip install 'nucleipan[napari]'" in line
    assert "PySide6" in line


def test_errors_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("napari")
    done = run(RUN, "view", str(tmp_path / "none.svs"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("nucleipan: ")
    assert "none.svs" in line


def test_napari_waits_until_it_is_needed() -> None:
    done = run("import atexit; atexit.register(lambda: print('napari' in sys.modules)); " + RUN, "--help")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "False"
    assert "view" in done.stdout


def test_without_napari_the_plugin_s_tests_are_skipped() -> None:
    """Not a matter of course: a folder of tests that is called like a package may be taken for it."""
    tests = "import pytest; sys.exit(pytest.main(['-p', 'no:cacheprovider', '-q', *sys.argv[1:]]))"
    done = run(WITHOUT_NAPARI + tests, str(PLUGIN_TESTS), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    n_files = len(list(PLUGIN_TESTS.glob("test_*.py")))
    assert done.stdout.splitlines()[-1].startswith(f"{n_files} skipped in "), done.stdout + done.stderr
