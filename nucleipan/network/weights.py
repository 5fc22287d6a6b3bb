"""Weights files: safetensors, with everything needed to use them in the header.

The header's ``nucleipan`` entry is JSON: format version, name, network configuration, decoding, classes, mpp,
licence and what the weights were trained on. A file is refused unless header and tensors agree with each other;
nothing is ever unpickled. Convolutions are stored in half precision, eight times as exact as bf16, in which networks
run: a file is half as large for it. Beside the weights there may be what computing in int8 needs (``int8.*``).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from nucleipan.classes import PanopticClasses
from nucleipan.documents import json_value
from nucleipan.errors import ModelError, reason
from nucleipan.network.build import NetworkConfig, TrainableNetwork, build_network
from nucleipan.network.fusion import DecodeConfig
from nucleipan.network.quantize import Measured, Quantization

FORMAT_VERSION = 1
DEFAULT_MODEL = "nucleipan-fast"
# Those of the embedded models that a slide's pixel size chooses between; the others are taken by name alone.
_CHOSEN_BY_SCALE = ("nucleipan-accurate", DEFAULT_MODEL)
# A slide this much coarser than a model's grid still goes to that model, a little enlarged.
_MAX_ENLARGEMENT = 1.26
_EMBEDDED = Path(__file__).parent.parent / "weights"
_HEADER_KEY = "nucleipan"
# Tensors of a convolution: int8.<name>.range, [low, high], and int8.<name>.correction, [C].
_INT8, _RANGE, _CORRECTION = "int8.", ".range", ".correction"
# Names that safetensors has for what weights may be kept in.
_FLOATS, _INTEGERS = ("F64", "F32", "F16", "BF16"), ("I64", "I32")
_NETWORK: TypeAdapter[Any] = TypeAdapter(NetworkConfig)


@dataclass(frozen=True)
class ModelInfo:
    """What a weights file says about itself.

    Attributes:
        mpp: micrometres per pixel the network expects.
        margin: pixels of context a tile needs for its nuclei to be those of the whole slide.
        licence: terms of the weights. trained_on: the data sets and theirs.
    """

    name: str
    mpp: float
    margin: int
    classes: PanopticClasses
    network: NetworkConfig
    decode: DecodeConfig
    licence: str
    trained_on: tuple[str, ...]
    sha256: str = ""


@dataclass(frozen=True, eq=False)
class Model:
    """A network with trained weights and what is known about it.

    Attributes:
        info: what the weights file says: name, mpp, margin, classes, licence, what it was trained on, sha256.
        network: in evaluation mode, ``float[B, 3, H, W]``, RGB in [0, 1], H and W multiples of 64 -> head outputs.
        source: name of an embedded model or path of the weights file; None if it came from neither. To other
            processes a model is sent by it: they load it themselves, once, and refuse another file of the same name.
        quantization: what computing in int8 needs; None where it was not measured.
    """

    info: ModelInfo
    network: TrainableNetwork
    source: str | None = None
    quantization: Quantization | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source is None:
            return Model, (self.info, self.network, None, self.quantization)
        return _load_same, (self.source, self.info.sha256)


def embedded_models() -> dict[str, Path]:
    """Name -> file of the models that come with the package."""
    return {p.stem: p for p in sorted(_EMBEDDED.glob("*.safetensors"))}


def model_for(mpp: float) -> str:
    """Name of the embedded model for slides of ``mpp`` micrometres per pixel.

    The finest that such a slide feeds without being enlarged, or by a quarter at most; else the coarsest there is.
    The choice is between nucleipan-accurate and nucleipan-fast; others, such as nucleipan-open, are taken by name.
    """
    by_mpp = sorted((read_model_info(name).mpp, name) for name in _CHOSEN_BY_SCALE)
    return next((name for model_mpp, name in by_mpp if mpp <= _MAX_ENLARGEMENT * model_mpp), by_mpp[-1][1])


def load_model(name_or_path: str | Path = DEFAULT_MODEL) -> Model:
    """An embedded model by name, or any weights file (safetensors) by path, with its network on the CPU.

    Nothing is downloaded and nothing unpickled. Without a name it is ``DEFAULT_MODEL``.

    Raises:
        ModelError: no such model; or the file is damaged, not ours, newer than this version, or its tensors are
            not those of the network it describes (the difference is listed).
    """
    path = _resolve(name_or_path)
    with _open(path) as file:
        info = _parse_header(path, file.metadata() or {})
        network = build_network(info.network, info.classes)
        int8 = _int8_expected(network, file)
        _check_shapes(path, file, network.state_dict() | int8)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors |= {name: tensors[name].float() for name in int8}
    _check_finite(path, tensors)
    quantization = _quantization(path, {name: tensors.pop(name) for name in int8})
    network.load_state_dict(tensors)
    info = replace(info, sha256=_digest(path))
    is_embedded = str(name_or_path) in embedded_models()
    return Model(info, network.eval(), str(name_or_path) if is_embedded else str(path.absolute()), quantization)


@lru_cache(maxsize=2)
def _load_same(source: str, sha256: str) -> Model:
    """The model from ``source`` if it is the one that was meant."""
    model = load_model(source)
    if model.info.sha256 != sha256:
        raise ModelError(f"model {source} differs between the machines of this run; install the same version on all")
    return model


def read_model_info(name_or_path: str | Path) -> ModelInfo:
    """The header alone; raises as ``load_model``."""
    path = _resolve(name_or_path)
    with _open(path) as file:
        return _parse_header(path, file.metadata() or {})


def save_model(
    network: TrainableNetwork, info: ModelInfo, path: Path, quantization: Quantization | None = None
) -> None:
    """Write ``network`` with ``info`` as its header (``info.sha256`` is of the file and not written)."""
    header = {
        "format": FORMAT_VERSION,
        "name": info.name,
        "mpp": info.mpp,
        "margin": info.margin,
        "classes": info.classes.to_list(),
        "network": info.network.model_dump(mode="json"),
        "decode": info.decode.model_dump(mode="json"),
        "licence": info.licence,
        "trained_on": list(info.trained_on),
    }
    tensors = {k: _stored(k, v.detach().cpu().contiguous()) for k, v in network.state_dict().items()}
    for name, found in quantization.convolutions.items() if quantization else ():
        tensors[f"{_INT8}{name}{_RANGE}"] = torch.tensor([found.low, found.high])
        tensors[f"{_INT8}{name}{_CORRECTION}"] = found.correction.detach().cpu().contiguous()
    # Not save_file: it makes files that only their owner can read.
    path.write_bytes(save(tensors, metadata={_HEADER_KEY: json.dumps(header)}))


def _stored(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """As it goes into the file: weights of convolutions in half precision, all else as it is."""
    return tensor.half() if name.endswith("weight") and tensor.ndim > 1 else tensor


def _resolve(name_or_path: str | Path) -> Path:
    models = embedded_models()
    if str(name_or_path) in models:
        return models[str(name_or_path)]
    path = Path(name_or_path)
    if not path.is_file():
        raise ModelError(
            f"model {str(name_or_path)!r} is neither an embedded model ({', '.join(models) or 'none'}) nor a weights "
            "file; see `nucleipan models`"
        )
    return path


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, RuntimeError) as error:  # the last of PyTorch, which maps the file
        raise ModelError(
            f"{path}: not a readable safetensors file ({reason(error)}); weights load from safetensors only"
        ) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse_header(path: Path, metadata: dict[str, str]) -> ModelInfo:
    if _HEADER_KEY not in metadata:
        raise ModelError(f"{path}: carries no nucleipan header; expected weights written by nucleipan")
    try:
        header: dict[str, Any] = json_value(metadata[_HEADER_KEY])
        if header["format"] != FORMAT_VERSION:
            raise ModelError(
                f"{path}: weights format {header['format']}, this version reads {FORMAT_VERSION}; upgrade nucleipan"
            )
        mpp, margin = float(header["mpp"]), int(header["margin"])
        if not (math.isfinite(mpp) and 0.01 <= mpp <= 100 and 0 <= margin <= 4096):
            raise ModelError(f"{path}: header says mpp {mpp}, margin {margin}; expected 0.01-100 and 0-4096")
        return ModelInfo(
            name=str(header["name"]),
            mpp=mpp,
            margin=margin,
            classes=PanopticClasses.from_list(header["classes"]),
            network=_NETWORK.validate_python(header["network"]),
            decode=DecodeConfig.model_validate(header["decode"]),
            licence=str(header["licence"]),
            trained_on=tuple(str(s) for s in header["trained_on"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path}: header is malformed ({type(error).__name__}: {reason(error)})") from error


def _check_shapes(path: Path, file: safe_open, expected: dict[str, torch.Tensor]) -> None:
    """Before any tensor is read: a file may hold more than memory does."""
    found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    misfits = [
        f"{k} is {found[k].get_dtype()} {tuple(found[k].get_shape())}, expected {v.dtype} {tuple(v.shape)}"
        for k, v in expected.items()
        if k in found and not _fits(found[k], v)
    ]
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    _refuse(path, {"missing": missing, "unknown": surplus, "misfitting": misfits})


def _int8_expected(network: nn.Module, file: safe_open) -> dict[str, torch.Tensor]:
    """Tensors for int8 as they should be, of the convolutions for which ``file`` has at least one."""
    names, expected = set(file.keys()), dict[str, torch.Tensor]()
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            shapes = {_RANGE: 2, _CORRECTION: module.out_channels}
            both = {f"{_INT8}{name}{kind}": torch.empty(n) for kind, n in shapes.items()}
            if both.keys() & names:
                expected |= both
    return expected


def _quantization(path: Path, tensors: dict[str, torch.Tensor]) -> Quantization | None:
    """What the tensors for int8, whose names and shapes are right, say."""
    names = [key[len(_INT8) : -len(_RANGE)] for key in tensors if key.endswith(_RANGE)]
    ranges = {name: tensors[f"{_INT8}{name}{_RANGE}"].tolist() for name in names}
    empty = [f"{name} from {low} to {high}" for name, (low, high) in ranges.items() if not low <= 0 <= high]
    _refuse(path, {"int8 ranges without zero": empty})
    found = {n: Measured(low, high, tensors[f"{_INT8}{n}{_CORRECTION}"]) for n, (low, high) in ranges.items()}
    return Quantization(found) if found else None


def _fits(found: Any, expected: torch.Tensor) -> bool:
    kinds = _FLOATS if expected.is_floating_point() else _INTEGERS
    return found.get_dtype() in kinds and tuple(found.get_shape()) == tuple(expected.shape)


def _check_finite(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    broken = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    _refuse(path, {"not finite": broken})


def _refuse(path: Path, problems: dict[str, list[str]]) -> None:
    """Raise ModelError if there are any."""
    listed = [
        f"{len(items)} {what} ({', '.join(item[:80] for item in items[:3])}{', ...' if len(items) > 3 else ''})"
        for what, items in problems.items()
        if items
    ]
    if listed:
        raise ModelError(f"{path}: tensors do not fit the network its header describes: {'; '.join(listed)}")
