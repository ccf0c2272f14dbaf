"""Imports the libraries, decodes an image and computes on each GPU: a process of its own, which may crash.

Each line of its standard output is a JSON object: a step before it begins, and each finding.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from noisystudent.doctor.findings import Finding
from noisystudent.errors import first_line

_LIBRARIES = (
    *("numpy", "scipy", "sklearn", "PIL", "simplejpeg", "cv2", "torchvision", "timm"),
    *("pyarrow", "duckdb", "faiss", "obstore"),
)
_DRIVER = Path("/proc/driver/nvidia/version")


def main() -> None:
    """Take all steps; a library that does not load hides none of the others."""
    # Libraries print to standard output, too.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")

    def send(record: dict[str, Any]) -> None:
        print(json.dumps(record), file=lines, flush=True)

    def attempt(step: str, check: Callable[[], Iterable[Finding]]) -> None:
        send({"step": step})
        try:
            for finding in check():
                send(asdict(finding))
        except Exception as error:
            value = f"{type(error).__name__}: {first_line(error)}"
            send(asdict(Finding(step, value, "install its packages or its driver again")))

    attempt("GPU", gpus)
    attempt("decoder", decoder)
    for library in _LIBRARIES:
        attempt(f"import {library}", partial(_imported, library))


def _imported(library: str) -> Iterable[Finding]:
    import_module(library)
    return ()


def gpus() -> Iterator[Finding]:
    """Each GPU, after a product of matrices on it: a torch may lack the kernels for it."""
    import torch

    if not torch.cuda.is_available():
        yield Finding("GPU", f"none for torch {torch.__version__}", _why_none(torch))
    for number in range(torch.cuda.device_count()):
        name, device = f"GPU {number}", torch.device("cuda", number)
        properties = torch.cuda.get_device_properties(device)
        ones = torch.ones((64, 64), device=device)
        assert float((ones @ ones).sum()) == 64**3
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
        capability = f"compute capability {properties.major}.{properties.minor}"
        precision = "bf16" if properties.major >= 8 else "fp32 alone"
        yield Finding(
            name,
            f"{properties.name}, {free:.1f} of {total:.1f} GiB free, {capability}, {precision},"
            f" CUDA {torch.version.cuda}",
        )


def _why_none(torch: Any) -> str:
    """What to fix if the machine has a driver for a GPU that torch does not use."""
    if not _DRIVER.exists():
        return ""
    if torch.version.cuda is None:
        return "the machine has an NVIDIA driver, but this torch is for CPUs: install one for CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"the machine has an NVIDIA driver, but torch cannot use it: {first_line(error)}"
    return ""


def decoder() -> Iterator[Finding]:
    """Which decoders read JPEG files, after one was decoded."""
    import torch
    from PIL import Image, features

    from noisystudent.data.decode import decode

    file = io.BytesIO()
    Image.new("RGB", (32, 24), (200, 100, 50)).save(file, format="JPEG")
    assert decode(file.getvalue(), 10_000).size == (24, 32)
    others = [name for name in ("webp", "avif") if features.check(name)]
    value = f"cpu: simplejpeg {metadata.version('simplejpeg')}, Pillow {metadata.version('pillow')}"
    yield Finding("decoder", f"{value} with {', '.join(others) or 'neither webp nor avif'}")
    if torch.cuda.is_available():
        yield _gpu_decoder(torch.device("cuda", 0))


def _gpu_decoder(device: Any) -> Finding:
    """Whether `data.decoder: gpu` can be used; it is a choice, so nothing must be fixed without it."""
    if find_spec("nvidia") is None or find_spec("nvidia.nvimgcodec") is None:
        return Finding("decoder", "gpu: not installed; pip install 'noisystudent[gpu-decode]'")
    from noisystudent.data.gpu_decode import GpuDecoder

    GpuDecoder(device)
    return Finding("decoder", "gpu: nvImageCodec, with --data.decoder gpu")


if __name__ == "__main__":
    main()
