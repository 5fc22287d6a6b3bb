"""The only reader of YAML: from a file and overrides to a checked, frozen configuration.

Relative paths in a file are relative to the file, so that a configuration can be run from anywhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from nucleipan.documents import plain_bytes
from nucleipan.errors import ConfigError, reason
from nucleipan.training.config import TrainConfig

_MAX_BYTES = 2**17  # two seconds of parsing
_MAX_NODES = 100_000
_MAX_CHARACTERS = 2000  # of one value; longer numbers take Python minutes, or cannot be printed
_PATH_FIELDS = ("data_root", "splits", "output", "classes_from")


def load_train_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training configuration.

    Args:
        path: YAML file.
        overrides: ``key=value`` with dots for nesting and numbers for entries of lists: ``schedule.steps=100``,
            ``sources.0.weight=2``. Values are YAML.

    Raises:
        ConfigError: the file is missing or no YAML mapping, or a key is unknown or has a wrong value.
    """
    path = Path(path)
    document = _read_mapping(path)
    for override in overrides:
        _set(document, override)
    for name in ("initial_weights", "coarse_weights"):
        weights = document.get(name)
        if isinstance(weights, str) and weights.endswith(".safetensors"):
            document[name] = str(_resolved(path, weights))
    for name in _PATH_FIELDS:
        if isinstance(document.get(name), str):
            document[name] = _resolved(path, document[name])
    try:
        return TrainConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(_explain(e) for e in error.errors())) from error


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        document = _parsed(plain_bytes(path, _MAX_BYTES).decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}); pass a YAML file") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is not valid YAML ({reason(error)})") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values; found {type(document).__name__}")
    return document


def _parsed(text: str) -> Any:
    """What YAML says; raises ValueError if it is none, or repeats so much by aliases that its end is out of reach."""
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        if root is None:
            return None
        if _n_nodes(root, {}) > _MAX_NODES:
            raise ValueError(f"it has more than {_MAX_NODES:,} values, aliases counted as often as they are used")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def _n_nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values there are under ``node``; ``known`` holds those of nodes already counted."""
    if isinstance(node, yaml.ScalarNode) and len(node.value) > _MAX_CHARACTERS:
        raise ValueError(f"it has a value of {len(node.value):,} characters")
    if id(node) not in known:
        known[id(node)] = _MAX_NODES  # until it is counted: one that holds itself is endless
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = [part if isinstance(part, tuple) else (part,) for part in parts]
        known[id(node)] = 1 + sum(_n_nodes(part, known) for pair in pairs for part in pair)
    return known[id(node)]


def _resolved(path: Path, name: str) -> Path:
    """``name`` beside ``path``."""
    try:
        return (path.parent / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{path}: {name[:80]!r} is no name of a file ({reason(error)})") from error


def _set(document: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set {override}: expected key=value, e.g. schedule.steps=100")
    *parents, last = key.split(".")
    place: Any = document
    for parent in parents:
        place = place[_index(override, parent, place)] if isinstance(place, list) else place.setdefault(parent, {})
        if not isinstance(place, dict | list):
            raise ConfigError(f"--set {override}: {parent} is a value, not a group of keys")
    try:
        place[_index(override, last, place) if isinstance(place, list) else last] = _parsed(value)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"--set {override}: {value} is not valid YAML ({reason(error)})") from error


def _index(override: str, text: str, items: list[Any]) -> int:
    if not text.isdecimal() or int(text) >= len(items):
        raise ConfigError(f"--set {override}: {text} is no entry of a list of {len(items)}; entries count from 0")
    return int(text)


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if not where:  # a contradiction between keys
        return str(error["msg"]).removeprefix("Value error, ")
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg']} (found {_short(error['input'])})"
    known = _known_keys()
    close = difflib.get_close_matches(str(error["loc"][-1]), known, 1)
    return f"{where}: unknown key" + (f"; did you mean {close[0]}?" if close else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _known_keys() -> list[str]:
    from nucleipan.training import config as models

    return sorted(
        {
            name
            for model in vars(models).values()
            if isinstance(model, type) and hasattr(model, "model_fields")
            for name in model.model_fields
        }
    )
