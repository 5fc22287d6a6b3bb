"""README, docs and CONTRIBUTING tell the truth: commands exist, code compiles, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import textwrap
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import typer

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "_build" not in path.parts
}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SHELL = ("bash", "sh", "console")
# In lists they are indented; what {such} a block holds is not for us.
_BLOCK = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, *languages: str) -> list[str]:
    return [textwrap.dedent(inside) for _, language, inside in _BLOCK.findall(text) if language in languages]


def commands(text: str, program: str) -> list[list[str]]:
    """Arguments of every line in a shell block that calls ``program``."""
    lines = [line for block in blocks(text, *SHELL) for line in block.splitlines()]
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [w[1:] for w in words if w and w[0] == program]


def mentioned(text: str) -> list[list[str]]:
    """Command lines in running text; they may leave out what is needed."""
    found = [shlex.split(line)[1:] for line in re.findall(r"`(nucleipan [^`\n]+)`", text)]
    return [arguments for arguments in found if "--help" not in arguments]


def of_all_pages(find) -> list:
    """What ``find`` finds in each page, with an id that names the page."""
    return [pytest.param(each, id=f"{page}: {_shown(each)}") for page, text in PAGES.items() for each in find(text)]


def _shown(found: str | list[str]) -> str:
    return " ".join(found) if isinstance(found, list) else found.partition("\n")[0]


def parse(arguments: list[str]) -> None:
    """Raises a usage error if the command, an option or a needed argument does not exist; runs nothing."""
    if arguments == ["--version"]:
        return
    group = typer.main.get_command(app)
    assert arguments[0] in group.commands, f"nucleipan {arguments[0]}: no such command"  # type: ignore[attr-defined]
    group.commands[arguments[0]].make_context(arguments[0], arguments[1:])  # type: ignore[attr-defined]


def test_there_is_something_to_test() -> None:
    assert len(commands(README, "nucleipan")) >= 5
    assert blocks(README, "python")
    named = {a[0] for a in commands(README, "nucleipan")}
    assert named == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("arguments", of_all_pages(lambda text: commands(text, "nucleipan")))
def test_command_lines_parse(arguments: list[str]) -> None:
    parse(arguments)


@pytest.mark.parametrize("arguments", of_all_pages(mentioned))
def test_commands_in_running_text_exist(arguments: list[str]) -> None:
    try:
        parse(arguments)
    except Exception as error:
        # Typer's or click's, which depends on Typer's version.
        if type(error).__name__ != "MissingParameter":
            raise


@pytest.mark.parametrize("wrong", [["segment", "a.svs"], ["segment", "a.svs", "--out", "b", "--fast"], ["export", "a"]])
def test_wrong_command_lines_would_be_noticed(wrong: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)missing|no such option"):
        parse(wrong)


@pytest.mark.parametrize("target", of_all_pages(lambda text: [a[0] for a in commands(text, "make")]))
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("names", of_all_pages(lambda text: re.findall(r"'(?:\.|nucleipan)\[([\w,]+)\]'", text)))
def test_extras_exist(names: str) -> None:
    assert set(names.split(",")) <= set(EXTRAS)


@pytest.mark.parametrize("code", of_all_pages(lambda text: blocks(text, "python")))
def test_python_code_compiles_and_its_names_exist(code: str) -> None:
    tree = ast.parse(code)
    compile(tree, "page", "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = _imported(node.module or "")
            assert [a.name for a in node.names if not _has(module, a.name)] == []
        elif isinstance(node, ast.Import):
            for alias in node.names:
                _imported(alias.name)


def _has(module: ModuleType, name: str) -> bool:
    """Whether ``from module import name`` works; modules below it are imported for that."""
    return hasattr(module, name) or importlib.util.find_spec(f"{module.__name__}.{name}") is not None


def _imported(name: str):
    """Our own modules must be there; of others that are not installed nothing can be said."""
    return importlib.import_module(name) if name.startswith("nucleipan") else pytest.importorskip(name)


def test_python_code_in_the_readme_is_short() -> None:
    assert all(len([line for line in code.splitlines() if line.strip()]) <= 10 for code in blocks(README, "python"))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    targets = set(re.findall(r"\]\(([^)#\s]+)", _BLOCK.sub("", PAGES[page])))
    folder = (ROOT / page).parent
    assert [t for t in targets if not t.startswith("https://") and not (folder / t).exists()] == []


@pytest.mark.parametrize("name", [c.name for c in DEFAULT_CLASSES.classes])
def test_every_class_is_named(name: str) -> None:
    assert name in " ".join(README.split())


def test_the_example_of_an_export_fits_the_code() -> None:
    (diff,) = blocks(PAGES["CONTRIBUTING.md"], "diff")
    changed, _, added = diff.partition("--- /dev/null")
    there = (ROOT / "nucleipan/exports/__init__.py").read_text().splitlines()
    assert [line for line in changed.splitlines() if line.startswith(" ") and line[1:] not in there] == []
    compile("\n".join(line[1:] for line in added.splitlines()[2:]), "points.py", "exec")


def test_the_python_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a drawn slide, one block after the other, as a reader would."""
    from nucleipan import SegmentOptions, load_model, segment_slide
    from nucleipan.synthetic import SyntheticScene, write_slide

    monkeypatch.chdir(tmp_path)
    write_slide(SyntheticScene((640, 640)), tmp_path / "slide.svs", levels=1)
    options = SegmentOptions(device="cpu", backend="torch")
    made = segment_slide(tmp_path / "slide.svs", tmp_path / "results", load_model("nucleipan-fast"), options)
    names: dict[str, object] = {}
    for code in blocks(PAGES["docs/guide/python.md"], "python"):
        exec(code, names)
    assert names["table"].num_rows == made.store.n_nuclei > 0  # type: ignore[attr-defined]
    assert names["pixels"].shape == (*names["ids"].shape, 3)  # type: ignore[attr-defined]
    assert (tmp_path / "field.png").is_file()
    assert names["result"].n_computed > 0  # type: ignore[attr-defined]
