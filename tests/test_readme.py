"""The README tells the truth: its commands exist, its code compiles, its links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

from nucleipan.classes import DEFAULT_CLASSES
from nucleipan.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> list[str]:
    return [text for language, text in _BLOCK.findall(README) if language in languages]


def commands(program: str) -> list[list[str]]:
    """Arguments of every line in a shell block that calls ``program``."""
    lines = [line for block in blocks("bash", "sh", "console") for line in block.splitlines()]
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [w[1:] for w in words if w and w[0] == program]


def mentioned() -> list[list[str]]:
    """Command lines in running text that are complete enough to parse."""
    found = [shlex.split(text)[1:] for text in re.findall(r"`(nucleipan [^`\n]+)`", README)]
    return [arguments for arguments in found if "--help" not in arguments]


def parse(arguments: list[str]) -> None:
    """Raises a usage error if the command, an option or a needed argument does not exist; runs nothing."""
    group = typer.main.get_command(app)
    assert arguments[0] in group.commands, f"nucleipan {arguments[0]}: no such command"  # type: ignore[attr-defined]
    group.commands[arguments[0]].make_context(arguments[0], arguments[1:])  # type: ignore[attr-defined]


def test_there_is_something_to_test() -> None:
    assert len(commands("nucleipan")) >= 5
    assert blocks("python")
    assert {a[0] for a in commands("nucleipan")} == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("arguments", [*commands("nucleipan"), *mentioned()], ids=" ".join)
def test_command_lines_parse(arguments: list[str]) -> None:
    parse(arguments)


@pytest.mark.parametrize("wrong", [["segment", "a.svs"], ["segment", "a.svs", "--out", "b", "--fast"], ["export", "a"]])
def test_wrong_command_lines_would_be_noticed(wrong: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)missing|no such option"):
        parse(wrong)


@pytest.mark.parametrize("target", [a[0] for a in commands("make")])
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_code_compiles_and_its_names_exist(code: str) -> None:
    tree = ast.parse(code)
    compile(tree, "README.md", "exec")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert [a.name for a in node.names if not hasattr(module, a.name)] == []
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert target.startswith("https://") or (ROOT / target).exists()


@pytest.mark.parametrize("name", [c.name for c in DEFAULT_CLASSES.classes])
def test_every_class_is_named(name: str) -> None:
    assert name in " ".join(README.split())
