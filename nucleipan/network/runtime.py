"""What a network runs on: kind of device, format of its numbers, versions of what computes.

None of it makes two runs different ones: a store begun on one machine may be finished on another. But the same slide
and model give the same bytes only where these are the same too, so stores say what they were made with.
"""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from nucleipan.network.inference import best_dtype, choose_device


def runtime(device: str, backend: str) -> dict[str, str]:
    """Name -> value, of this process; ``device`` is ``cpu`` or ``cuda``, ``numbers`` the format of activations.

    Raises:
        ModelError: the device does not exist here.
    """
    chosen = choose_device(device)
    found = {
        "device": chosen.type,
        "numbers": str(best_dtype(chosen)).removeprefix("torch."),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "torch": torch.__version__,
    }
    return found | ({"openvino": version("openvino")} if backend.startswith("openvino") else {})
