"""How the documentation is built: ``make docs``, which needs no network.

Pages are Markdown that reads well without being built. Three parts are made from the code, so that they cannot differ
from it: the diagram of the modules, the reference of configurations and that of the public names.
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
# The package itself, the extensions, and the table of layers that the tests enforce.
sys.path[:0] = [str(DOCS.parent), str(DOCS / "extensions"), str(DOCS.parent / "tests")]

import nucleipan  # noqa: E402

project = "nucleipan"
author = copyright = "the nucleipan authors"
release = version = nucleipan.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "configuration_reference",
    "module_diagram",
    "pages_elsewhere",
    "public_names",
]
exclude_patterns = ["_build", "drawings", "extensions"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Other packages' names would need their documentation, and with it the network.
nitpick_ignore_regex = [("py:.*", r"(?!nucleipan\b).*")]

html_theme = "furo"
html_title = f"nucleipan {release}"
html_static_path = ["static"]
html_css_files = ["nucleipan.css"]
html_show_sourcelink = False
html_show_copyright = False
