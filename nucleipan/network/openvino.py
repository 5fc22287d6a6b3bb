"""The network on OpenVINO: on a CPU two to three times as fast as on PyTorch.

OpenVINO plans all buffers of a network at once and uses them again, where PyTorch asks the system for fresh memory
layer by layer; and it fuses more. Needs the extra ``openvino``.
"""

from __future__ import annotations

import copy
import warnings

import numpy as np
import openvino
import torch
from torch import Tensor, nn

from nucleipan.network.inference import best_dtype, fold_batch_norm
from nucleipan.network.model import HeadOutputs, PanopticNet

_EXAMPLE = (1, 3, 64, 64)


class OpenVinoNetwork:
    """``float[1, 3, H, W]`` -> float32 ``HeadOutputs``, on the CPU, with its own copy of the weights.

    bf16 where the processor computes in it, else float32. ``n_threads`` limits the threads; all cores by default.
    """

    def __init__(self, network: PanopticNet, n_threads: int | None = None) -> None:
        fused = _Outputs(fold_batch_norm(copy.deepcopy(network).eval()))
        with torch.no_grad(), warnings.catch_warnings():
            # The check of the tile's size is not traced, and tracing itself is called old.
            warnings.simplefilter("ignore")
            graph = openvino.convert_model(
                fused, example_input=torch.zeros(_EXAMPLE), input=[("image", [1, 3, -1, -1])]
            )
        dtype = best_dtype(torch.device("cpu"))
        options: dict[str, str | bool] = {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype is torch.bfloat16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            # Every process would pin its threads to the same first cores, and to those that read and decode.
            "ENABLE_CPU_PINNING": False,
        }
        if n_threads is not None:
            options["INFERENCE_NUM_THREADS"] = str(n_threads)
        self._request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()

    def __call__(self, image: Tensor) -> HeadOutputs:
        results = self._request.infer([np.ascontiguousarray(image.numpy(), np.float32)])
        # The request's own memory is used again for the next tile.
        return HeadOutputs(*(torch.from_numpy(results[i].copy()) for i in range(3)))


class _Outputs(nn.Module):
    """Outputs as a tuple, which can be traced."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = self.network(image)
        return out.semantic, out.nucleus, out.offsets
