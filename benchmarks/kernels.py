"""How many kernels does a training step launch?

    python benchmarks/kernels.py
    python benchmarks/kernels.py --cases wrn28_2@32 resnet50@224

On a GPU the profiler counts one step after the warm-ups: kernels that ran, copies and fills, and calls of the
host that launched them; a replayed CUDA graph is one call. On a CPU only the eager step can be counted: the
calls of operators that compute, each at least one kernel on a GPU. `ours` and `plain` are those of
benchmarks/step.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from step import bench_of, cases, ours, plain
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from noisystudent.runtime import resolve_device

_WARM_UPS = 6  # steps; the captured form captures in the fourth
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")


class Counted(TorchDispatchMode):
    """Counts operators that compute something; views only describe memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        returns = func._schema.returns
        view = any(value.alias_info is not None and not value.alias_info.is_write for value in returns)
        memory = func._schema.name.rpartition("::")[2].startswith(("empty", "new_empty"))
        self.calls += not (view or memory)
        return func(*args, **(kwargs or {}))


def on_cpu(step: Callable[[int], None]) -> str:
    with Counted() as counted:
        step(_WARM_UPS)
    return f"{counted.calls:7,} operators"


def on_gpu(step: Callable[[int], None]) -> str:
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiler:
        step(_WARM_UPS)
        torch.cuda.synchronize()
    events = profiler.events() or []
    device = [event.name for event in events if event.device_type == DeviceType.CUDA]
    copies = sum(name.startswith(("Memcpy", "Memset")) for name in device)
    launches = sum(event.name.startswith(_LAUNCHES) for event in events)
    return f"{len(device) - copies:7,} kernels {copies:5,} copies {launches:7,} launches"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cases", nargs="+", default=["wrn28_2@32", "resnet50@224"], help="model@side")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    forms = ("eager", "compiled", "captured") if device.type == "cuda" else ("eager",)
    print(f"torch {torch.__version__}, {device}")
    for name, case in cases(arguments.cases, device).items():
        bench = bench_of(case, device)
        print(f"\n{name}, batch {case.labeled + case.pool}")
        for form in forms:
            print(f"  ours, {form:10}{count(ours(bench, form), device)}")
        print(f"  {'plain':16}{count(plain(bench), device)}")


def count(step: Callable[[int], None], device: torch.device) -> str:
    """Counts of one step after the warm-ups."""
    for number in range(_WARM_UPS):
        step(number)
    return on_gpu(step) if device.type == "cuda" else on_cpu(step)


if __name__ == "__main__":
    main()
