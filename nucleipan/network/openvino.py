"""The network on OpenVINO: on a CPU two to three times as fast as on PyTorch.

OpenVINO plans all buffers of a network at once and uses them again, where PyTorch asks the system for fresh memory
layer by layer; and it fuses more. It plans for one size of image: with sizes left open it needs twice the memory.
Needs the extra ``openvino``.
"""

from __future__ import annotations

import warnings

import numpy as np
import openvino
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from openvino.preprocess import PrePostProcessor
from torch import Tensor, nn

from nucleipan.network.inference import best_dtype, fold_batch_norm
from nucleipan.network.model import HeadOutputs, PanopticNet
from nucleipan.network.quantize import Quantization, quantized
from nucleipan.network.two_scale import TwoScaleNet

_EXAMPLE = (1, 3, 64, 64)


class OpenVinoNetwork:
    """``uint8[B, 3, H, W]``, or float in [0, 1], -> float32 ``HeadOutputs``, on the CPU.

    bf16 where the processor computes in it, else float32. ``n_threads`` limits the threads; all cores by default. It
    is compiled, in about 0.3 s, for each image that has not the size of the one before. With a ``quantization``, the
    convolutions in it compute in int8.
    """

    def __init__(
        self,
        network: PanopticNet | TwoScaleNet,
        n_threads: int | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        fused = _Outputs(fold_batch_norm(network) if quantization is None else quantized(network, quantization))
        with torch.no_grad(), warnings.catch_warnings():
            # The check of the tile's size is not traced, and tracing itself is called old.
            warnings.simplefilter("ignore")
            self._graph = _graph_of(fused)
        dtype = best_dtype(torch.device("cpu"))
        self._options: dict[str, str | bool] = {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype is torch.bfloat16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            # Every process would pin its threads to the same first cores, and to those that read and decode.
            "ENABLE_CPU_PINNING": False,
        }
        if n_threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = str(n_threads)
        self._core = openvino.Core()
        self._ready_for: tuple[torch.Size, torch.dtype] | None = None
        self._request: openvino.InferRequest | None = None

    def __call__(self, image: Tensor) -> HeadOutputs:
        if image.dtype != torch.uint8:
            image = image.float()
        pixels = np.ascontiguousarray(image.permute(0, 2, 3, 1).numpy())
        results = self._request_for(image).infer([pixels], share_inputs=True)
        # The request's own memory is used again for the next tile.
        return HeadOutputs(*(torch.from_numpy(results[i].copy()) for i in range(3)))

    def rest(self) -> None:
        """Give back the memory of the last tile, 1 GB and more; the next one takes it again."""
        self._request, self._ready_for = None, None

    def _request_for(self, image: Tensor) -> openvino.InferRequest:
        """The network compiled for images like this one; memory of the former size is given back first."""
        if self._request is None or self._ready_for != (image.shape, image.dtype):
            self._request, self._ready_for = None, (image.shape, image.dtype)
            compiled = self._core.compile_model(self._accepting(image), "CPU", self._options)
            self._request = compiled.create_infer_request()
        return self._request

    def _accepting(self, image: Tensor) -> openvino.Model:
        """The graph for images of this size and type, channels last."""
        graph = self._graph.clone()
        graph.reshape(list(image.shape))
        steps = PrePostProcessor(graph)
        is_scanned = image.dtype == torch.uint8
        steps.input().tensor().set_layout(openvino.Layout("NHWC"))
        steps.input().tensor().set_element_type(openvino.Type.u8 if is_scanned else openvino.Type.f32)
        steps.input().model().set_layout(openvino.Layout("NCHW"))
        if is_scanned:
            steps.input().preprocess().convert_element_type(openvino.Type.f32).scale(255.0)
        return steps.build()


def _graph_of(network: nn.Module) -> openvino.Model:
    """The network, traced. (``openvino.convert_model`` does the same, but reports each call to its makers.)"""
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(network, example_input=torch.zeros(_EXAMPLE))  # must outlive the conversion
    return frontend.convert(frontend.load(decoder))


class _Outputs(nn.Module):
    """Outputs as a tuple, which can be traced."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = self.network(image)
        return out.semantic, out.nucleus, out.offsets
