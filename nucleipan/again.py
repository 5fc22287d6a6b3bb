"""Running a slide again as a store says that it was run: ``segment --like STORE``.

A store records what defines its result: model with checksum, pixel size, region, tile, backend and the rest of
``SegmentOptions``, version of nucleipan, kind of device. All of it is taken from there, so that arrays and table come
out byte for byte. What was asked for beside may agree with the store, but not contradict it. Versions of PyTorch,
OpenVINO and NumPy may differ: that is said, since results then agree on nearly all nuclei only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nucleipan import __version__
from nucleipan.errors import ConfigError, ModelError, StoreError
from nucleipan.geometry import Box
from nucleipan.network.runtime import runtime
from nucleipan.network.weights import embedded_models, load_model
from nucleipan.segment import SegmentOptions
from nucleipan.store import PanopticStore
from nucleipan.store.origin import open_slide_of


@dataclass(frozen=True)
class RunLike:
    """How to run again. ``model`` is a name or a weights file; ``notes`` say what is not as it was."""

    model: str
    options: SegmentOptions
    notes: tuple[str, ...]


def run_like(store: PanopticStore, slide: Path, asked: Mapping[str, Any]) -> RunLike:
    """How ``slide`` is run as ``store`` was.

    Args:
        asked: what the user gave beside, by the names of ``SegmentOptions``, and ``model``.

    Raises:
        StoreError: the store was made by another version, or does not say how.
        SlideError: the slide cannot be read, or is another one.
        ConfigError: what was asked for contradicts the store.
        ModelError: the model is not here or differs, or the device is not here.
    """
    _check_version(store)
    open_slide_of(store, slide).close()
    fixed = _fixed_options(store)
    _check_asked(store, asked, fixed)
    model = _model(store, asked.get("model"))
    free = {name: asked[name] for name in ("device", "overwrite") if asked.get(name, "auto") != "auto"}
    options = SegmentOptions(**(fixed | free))
    then, now = store.attributes["made_with"], runtime(options.device, options.backend)
    differences = [f"{name} {now.get(name)} (it had {was})" for name, was in then.items() if now.get(name) != was]
    said = f"is run again with {', '.join(differences)}; nuclei may differ a little"
    return RunLike(model, options, (said,) if differences else ())


def _check_version(store: PanopticStore) -> None:
    version = store.config.get("nucleipan")
    if version != __version__:
        raise StoreError(
            f"{store.path} was made by nucleipan {version}, this is {__version__}; install that version to run it again"
        )
    if not isinstance(store.attributes.get("made_with"), dict) or "roi" not in store.attributes:
        raise StoreError(f"{store.path} does not say how it was made; segment the slide with options of your own")


def _fixed_options(store: PanopticStore) -> dict[str, Any]:
    """What defines the result, by the names of ``SegmentOptions``."""
    roi, config = store.attributes["roi"], store.config
    try:
        return {
            "mpp": store.slide["mpp"],
            "roi": None if roi is None else Box(*roi),
            "tile": store.spec.core,
            "device": store.attributes["made_with"]["device"],
            "backend": config["backend"],
            "flips": config["flips"],
            "all_tissue": config["all_tissue"],
            "with_image": config["with_image"],
            "keep_metadata": store.metadata is not None,
        }
    except (KeyError, TypeError) as error:
        raise StoreError(f"{store.path} does not say how it was made ({error!r}); pass options of your own") from error


def _check_asked(store: PanopticStore, asked: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Refuse options that contradict the store; ``auto`` is what the store says, ``cuda:1`` a kind of ``cuda``."""
    contradictions = [
        f"--{name.replace('_', '-')} {asked[name]} (the store has {value})"
        for name, value in fixed.items()
        if name in asked and asked[name] not in ("auto", value) and not str(asked[name]).startswith(f"{value}:")
    ]
    if contradictions:
        raise ConfigError(f"--like {store.path} contradicts {', '.join(contradictions)}; leave one of them out")


def _model(store: PanopticStore, asked: str | None) -> str:
    """The model of the store, by the name or file that was asked for, or else among those that come with nucleipan."""
    name, expected = store.model.get("name"), store.model.get("sha256")
    if asked in (None, "auto"):
        if name not in embedded_models():
            raise ModelError(f"{store.path} was made with the model {name}; pass its weights file with --model")
        asked = str(name)
    found = load_model(str(asked)).info
    if found.sha256 != expected:
        raise ModelError(
            f"model {asked} has the checksum {found.sha256[:12]}, that of {store.path} ({name}) had "
            f"{str(expected)[:12]}; pass the weights it was made with with --model"
        )
    return str(asked)
