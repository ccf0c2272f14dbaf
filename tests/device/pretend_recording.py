"""Whether a step can be recorded: its operations have the same numbers and memory in every step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pretend_graph import tensors_of
from pretend_streams import Fault, place, storage
from torch import Tensor

Entry = tuple[str, str, tuple[object, ...], tuple[object, ...]]
"""Operation, place, numbers, memory."""


class Recording:
    """The operations of one step.

    Args:
        inputs: the batch, which a captured step copies to a place of its own.
        first: recording of an earlier step to compare with; None: there is none.
    """

    def __init__(self, inputs: Iterable[Tensor], first: Recording | None) -> None:
        self.entries: list[Entry] = []
        self._first = first
        self._held: list[object] = []  # storages, so that no identity is used twice
        self._names: dict[int, object] = {}
        for number, tensor in enumerate(inputs):
            self._name(tensor, f"batch {number}")

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note an operation before it runs, and compare it with the one of the earlier step."""
        tensors = list(tensors_of(*args, *kwargs.values()))
        numbers = [one.item() for one in tensors if not one.is_cuda and one.dim() == 0]
        memory = [self._names.get(id(storage(one)), id(storage(one))) for one in tensors if one.is_cuda]
        self._held += [storage(one) for one in tensors]
        entry = (str(func), place(), (*numbers, *_plain(args), *_plain(kwargs.values())), tuple(memory))
        self.entries.append(entry)
        if self._first is not None:
            self._compare(entry, tensors)

    def made(self, out: Any) -> None:
        """Note the result of the operation: memory of this step."""
        for number, tensor in enumerate(tensors_of(out)):
            self._name(tensor, (len(self.entries), number))

    def end(self) -> None:
        """Check that the earlier step had no more operations."""
        if self._first is not None and len(self.entries) < len(self._first.entries):
            name, where, *_ = self._first.entries[len(self.entries)]
            raise Fault(f"the operations of a step changed: {name} at {where} is missing")

    def _name(self, tensor: Tensor, name: object) -> None:
        memory = storage(tensor)
        if id(memory) not in self._names and not any(memory is one for one in self._held[-64:]):
            self._names[id(memory)] = name
            self._held.append(memory)

    def _compare(self, entry: Entry, tensors: list[Tensor]) -> None:
        assert self._first is not None
        at = len(self.entries) - 1
        if at >= len(self._first.entries) or self._first.entries[at][0] != entry[0]:
            before = self._first.entries[at][0] if at < len(self._first.entries) else "no operation"
            raise Fault(f"the operations of a step changed: {entry[0]} at {entry[1]}, where was {before}")
        _, _, numbers, memory = self._first.entries[at]
        if numbers != entry[2]:
            changed = [(old, new) for old, new in zip(numbers, entry[2], strict=False) if old != new]
            raise Fault(f"a Python number of {entry[0]} changed from step to step at {entry[1]}: {changed}")
        if memory != entry[3]:
            on_gpu = [tensor for tensor in tensors if tensor.is_cuda]
            moved = [
                tuple(tensor.shape)
                for tensor, old, new in zip(on_gpu, memory, entry[3], strict=False)
                if old != new
            ]
            raise Fault(f"{entry[0]} uses new memory in each step at {entry[1]}: {moved}")


def _plain(values: Iterable[Any]) -> list[object]:
    """Everything but tensors, also in lists."""
    found: list[object] = []
    for value in values:
        if isinstance(value, list | tuple):
            found += _plain(value)
        elif not isinstance(value, Tensor | torch._C.Generator):
            found.append(value)
    return found
