"""Links to public names, whatever module they are written in.

Users import ``nucleipan.Box``; a signature that mentions it names ``nucleipan.geometry.Box``, where it is written. Both
lead to the one description there is. What is not public is shown without a link.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import nucleipan


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.Element) -> nodes.Node | None:
    """The reference to a public name by its last part; plain text for other names of ours in signatures."""
    target: Any = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target:
        return None
    name = target.rpartition(".")[2]
    if name in nucleipan.__all__ and target != f"nucleipan.{name}":
        node["reftarget"] = f"nucleipan.{name}"
        domain = env.domains.python_domain
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", node["reftarget"], node, shown)
    return shown if node.get("reftype") == "class" and name not in nucleipan.__all__ else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
