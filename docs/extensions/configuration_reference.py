"""A reference of configuration files, made from the pydantic models that check them.

    ```{configuration} nucleipan.training.config.TrainConfig
    ```

becomes a section for the model and one for every model below it, each once, in the order in which they are met. A
field is described where it is declared: name, type, what it may be, default, and its ``description``.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from docutils import nodes
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_SIMPLE = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", type(None): "null"}
_BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "multiple_of": "multiple of"}
_LENGTHS = {"min_length": "at least", "max_length": "at most"}


class Configuration(SphinxDirective):
    """The sections of a model and of all models below it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].rpartition(".")
        pages = []
        for model in models_below(getattr(import_module(module), name)):
            section = nodes.section(ids=[anchor(model)])
            section += nodes.title(text=title(model))
            section += self.parse_text_to_nodes(section_text(model))
            self.state.document.note_explicit_target(section)
            pages.append(section)
        return pages


def models_below(model: type[BaseModel]) -> list[type[BaseModel]]:
    """``model`` and those its fields mention, each once, parents first."""
    found = [model]
    for each in found:  # grows meanwhile
        for field in each.model_fields.values():
            found += [m for m in _models_in(field.annotation) if m not in found]
    return found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def title(model: type[BaseModel]) -> str:
    return model.__name__.removesuffix("Config")


def anchor(model: type[BaseModel]) -> str:
    return f"config-{title(model).lower()}"


def section_text(model: type[BaseModel]) -> str:
    """Markdown: what the model is, and a table of its fields."""
    lines = [model.__doc__ or "", "", "| key | what it is | value | default |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        value = _cell(shown_type(field.annotation, shown_bounds(field.metadata)))
        lines.append(f"| `{name}` | {_cell(field.description or '')} | {value} | {_cell(shown_default(field))} |")
    return "\n".join(line.strip() for line in "\n".join(lines).splitlines()).replace("``", "`")


def shown_type(annotation: Any, bounds: str = "") -> str:
    """A type as whoever writes YAML thinks of it, with its bounds; models are links to their sections."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return shown_type(arguments[0], shown_bounds(arguments[1:]) + bounds)
    if origin in (Union, types.UnionType):
        of_value = " or ".join(shown_type(a) for a in arguments if a is not type(None))
        return f"{of_value}{bounds} or null" if type(None) in arguments else of_value + bounds
    return _plain_type(annotation, origin, arguments) + bounds


def _plain_type(annotation: Any, origin: Any, arguments: tuple[Any, ...]) -> str:
    if origin is Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of: {shown_type(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)}: {shown_type(arguments[0])}"
    if origin is dict:
        return f"mapping of {shown_type(arguments[0])} to {shown_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{title(annotation)}](#{anchor(annotation)})"
    return _SIMPLE[annotation]


def shown_bounds(metadata: Any) -> str:
    """`` > 0, ≤ 16``, and lengths and patterns, of a field's or an annotation's constraints; empty without any."""
    numbers, others = [], []
    for constraint in (inner for each in metadata for inner in (*getattr(each, "metadata", ()), each)):
        numbers += [f"{sign} {v}" for k, sign in _BOUNDS.items() if (v := getattr(constraint, k, None)) is not None]
        others += [f", {word} {v}" for k, word in _LENGTHS.items() if (v := getattr(constraint, k, None)) is not None]
        if (pattern := getattr(constraint, "pattern", None)) is not None:
            others.append(f", like `{pattern}`")
    return (f" {', '.join(numbers)}" if numbers else "") + "".join(others)


def shown_default(field: FieldInfo) -> str:
    if field.is_required():
        return "**needed**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{json.dumps(value)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("configuration", Configuration)
    return {"parallel_read_safe": True}
