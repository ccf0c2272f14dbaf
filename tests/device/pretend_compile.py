"""torch.compile on the pretended GPU: traced as one graph by Dynamo, and run operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

_compile, _one_hot = torch.compile, torch.nn.functional.one_hot


def tracing(patch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """From now on functions are compiled; returns the list of the graphs that are traced.

    Dynamo traces with tensors that know neither values nor the pretended device, so the device is the CPU
    meanwhile. A graph break is an error.
    """
    graphs: list[torch.fx.GraphModule] = []
    pretended = {name: Tensor.__dict__[name] for name in ("device", "is_cuda", "is_cpu")}

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)

        def run(*arguments: Any) -> Any:
            with pytest.MonkeyPatch.context() as inner:
                for name, value in pretended.items():
                    inner.setattr(Tensor, name, value)
                device = next(one.device for one in arguments if isinstance(one, Tensor) and one.is_cuda)
                _move(graph, device)
                return graph(*arguments)

        return run

    def compile_function(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled = _compile(function, backend=backend, fullgraph=True, **options)

        def call(*arguments: Any, **named: Any) -> Any:
            with pytest.MonkeyPatch.context() as inner:
                for name in pretended:
                    inner.delattr(Tensor, name)
                inner.setattr(torch.accelerator, "is_available", lambda: False)
                return compiled(*arguments, **named)

        return call

    patch.setattr(torch, "compile", compile_function)
    return graphs


def _move(graph: torch.fx.GraphModule, device: torch.device) -> None:
    """Write the device into the operations that make tensors, and take the CUDA form of one_hot."""
    stale = [node for node in graph.graph.nodes if node.kwargs.get("device") == torch.device("cpu")]
    for node in stale:
        node.kwargs = node.kwargs | {"device": device}
    hot = [node for node in graph.graph.nodes if node.target is _one_hot]
    for node in hot:
        node.target = torch.nn.functional.one_hot
    if stale or hot:
        graph.recompile()
