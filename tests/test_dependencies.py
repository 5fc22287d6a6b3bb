"""What the files of versions and the page of licences say fits what pyproject.toml asks for."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ASKED = [
    requirement
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for requirement in map(Requirement, lines)
    if requirement.name != PROJECT["name"]
]
FILES = ("constraints-cpu.txt", "constraints/known-good.txt", "constraints/lowest.txt")
KNOWN_GOOD, LOWEST = FILES[1:]
PAGE = ROOT / "docs/licences.md"
# Of these a licence makes what is linked with them its own; the lesser one does not.
STRONG = re.compile(r"(?<!L)GPL|(?<!Lesser )General Public|Affero")


def pins(file: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): Version(pin) for name, pin in (line.split("==") for line in lines)}


def rows(*titles: str) -> dict[str, str]:
    """Licence of each package in these tables of the page."""
    sections = dict(re.findall(r"^## (.*)\n\n((?:\|.*\n)+)", PAGE.read_text(), re.MULTILINE))
    lines = [line for title in titles for line in sections[title].splitlines()[2:]]
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
    return {name: licence for name, licence, *_ in cells}


def must_be_strong(licence: str) -> bool:
    """Whether the expression leaves no choice but a GPL or AGPL."""
    chosen = re.sub(r"[\w.-]+(?: OR [\w.-]+)+", lambda m: min(m[0].split(" OR "), key=_is_strong), licence)
    return _is_strong(chosen)


def _is_strong(licence: str) -> bool:
    return bool(STRONG.search(licence))


@pytest.mark.parametrize("file", FILES)
def test_lines_are_name_and_version(file: str) -> None:
    other = re.compile(r"(?!#|[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.!]*$)")
    assert [line for line in (ROOT / file).read_text().splitlines() if other.match(line)] == []


@pytest.mark.parametrize("file", [KNOWN_GOOD, LOWEST])
@pytest.mark.parametrize("requirement", ASKED, ids=str)
def test_pins_are_of_all_that_is_asked_for_and_allowed(file: str, requirement: Requirement) -> None:
    pin = pins(file)[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin, prereleases=True)


@pytest.mark.parametrize("requirement", ASKED, ids=str)
def test_lowest_versions_are_the_lower_bounds(requirement: Requirement) -> None:
    """As exactly as the bound is written, and the same as the build of PyTorch for all other tests."""
    (bound,) = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
    if requirement.name == "torch":
        bound = pins("constraints-cpu.txt")["torch"]
    pin = pins(LOWEST)[canonicalize_name(requirement.name)]
    assert pin.release[: len(bound.release)] == bound.release


def test_all_files_pin_the_same_pytorch() -> None:
    assert len({pins(file)["torch"] for file in FILES}) == 1


def test_licences_of_all_that_is_asked_for_are_listed() -> None:
    listed = rows("With every installation", "With extras", "To test and to document")
    assert {canonicalize_name(r.name) for r in ASKED} - set(listed) == set()
    assert {name for name, licence in listed.items() if not licence} == set()


def test_nothing_for_users_is_under_the_gpl() -> None:
    licences = rows("With every installation", "With extras")
    assert {name: licence for name, licence in licences.items() if must_be_strong(licence)} == {}


@pytest.mark.parametrize(
    ("licence", "strong"),
    [
        ("MIT", False),
        ("LGPL-2.1-only AND (BSD-3-Clause OR GPL-2.0-only)", False),
        ("GNU Lesser General Public License v3 (LGPLv3)", False),
        ("GPL-3.0-only", True),
        ("MIT AND GPL-2.0-or-later", True),
        ("GPL-2.0-only OR AGPL-3.0-only", True),
        ("GNU General Public License v3 (GPLv3)", True),
        ("GNU Affero General Public License v3", True),
    ],
)
def test_a_gpl_would_be_noticed(licence: str, strong: bool) -> None:
    assert must_be_strong(licence) is strong


def test_the_page_is_what_its_script_writes(tmp_path: Path) -> None:
    """Where the versions of the page are installed; licences change between versions."""
    if any(installed(name) != pin for name, pin in pins(KNOWN_GOOD).items()):
        pytest.skip(f"other versions are installed than those of {KNOWN_GOOD}")
    done = subprocess.run(
        [sys.executable, ROOT / "docs/licences.py", "--out", tmp_path / "licences.md"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "licences.md").read_text() == PAGE.read_text()


def installed(name: str) -> Version | None:
    """Without what the build is called, such as ``+cpu``."""
    try:
        return Version(Version(version(name)).public)
    except PackageNotFoundError:
        return None
