"""nvImageCodec, as the package calls it: it decodes on the CPU to memory that is on the pretended GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from pretend_gpu import put
from pretend_streams import Fault, current_stream, launch

from noisystudent.data.decode import decode

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Library(ModuleType):
    """The module `nvidia.nvimgcodec` with the calls of its version 0.9.

    Attributes:
        decoded: the files that were decoded.
        change: from a file and its pixels to what is returned for it; None: it cannot be decoded.
    """

    SRGB, GPU_ONLY, HYBRID_CPU_GPU = "srgb", "gpu", "hybrid"

    def __init__(self) -> None:
        super().__init__("nvidia.nvimgcodec")
        self.ColorSpec = self.BackendKind = self
        self.decoded: list[bytes] = []
        self.change: Callable[[bytes, Pixels], Pixels | None] = lambda data, pixels: pixels
        outer = self

        class Decoder:
            def __init__(self, device_id: int, backends: list[str], options: str) -> None:
                assert backends == ["gpu", "hybrid"] and options == ":fancy_upsampling=1"
                self.device = torch.device("cuda", device_id)

            def decode(self, srcs: list[bytes], params: Any, cuda_stream: int) -> list[torch.Tensor | None]:
                if cuda_stream != current_stream(self.device).cuda_stream:
                    raise Fault("the library works in another stream than what follows it")
                assert params == {"apply_exif_orientation": True, "color_spec": "srgb"}
                return [outer.image(data, self.device) for data in srcs]

        self.Decoder = Decoder

    @staticmethod
    def Backend(kind: str) -> str:
        return kind

    @staticmethod
    def DecodeParams(**params: Any) -> dict[str, Any]:
        return params

    def image(self, data: bytes, device: torch.device) -> torch.Tensor | None:
        self.decoded.append(data)
        pixels = self.change(data, decode(data, 10**6).pixels)
        if pixels is None:
            return None
        out = put(torch.from_numpy(pixels.copy()), device)
        launch(current_stream(device), [], [out], "decode")
        return out
