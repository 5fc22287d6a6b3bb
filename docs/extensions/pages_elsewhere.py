"""Pages whose text lies outside of ``docs``: model cards beside their weights, the changelog at the root.

Where nothing is built, a link leads to the file itself. Here it is turned into one to the page that includes the file.
"""

from __future__ import annotations

from sphinx.application import Sphinx

#: Beginning of a link, as seen from ``docs``, and what it is within it.
ELSEWHERE = {
    "](../nucleipan/weights/": "](models/",
    "](../CONTRIBUTING.md": "](contributing.md",
    "](../CHANGELOG.md": "](changelog.md",
}


def redirect(app: Sphinx, page: str, source: list[str]) -> None:
    if "/" not in page:
        for link, target in ELSEWHERE.items():
            source[0] = source[0].replace(link, target)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", redirect)
    return {"parallel_read_safe": True}
