"""How a step is run: kernel by kernel, compiled, or compiled and captured as one CUDA graph; same numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields

import torch

from noisystudent.errors import RunError, first_line
from noisystudent.records import Batch
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.step import TrainStep

Advance = Callable[[Batch], None]

# In the first steps libraries choose kernels and make buffers, which no graph can record.
_WARM_UPS = 3


class Executor:
    """Takes steps in the fastest form that works here, and says which.

    Args:
        step: what a step is.
        state: what it changes.
        notify: told the form, the seconds of compilation, and why a faster one was given up.

    Raises:
        RunError: `train.execution` names a form that does not work here.
    """

    def __init__(self, step: TrainStep, state: TrainState, notify: Callable[[str], None]) -> None:
        self._step, self._state, self._notify = step, state, notify
        self._on_gpu = state.window.is_cuda
        self._forms = self._asked()
        self._advance = self._build(self._forms[0])
        self._taken = 0

    def __call__(self, batch: Batch) -> None:
        """Take the step `state.step` on a batch of the same shape every time; no host synchronisation."""
        self._step.prepare(self._state, batch)
        if self._taken > _WARM_UPS:
            self._advance(batch)
        else:
            self._try(batch)
        self._taken += 1
        self._state.step += 1

    def _asked(self) -> list[str]:
        """Forms to try, in order."""
        asked = self._step.config.execution
        if asked == "auto":
            # on a CPU a compilation takes a minute, more than it saves in a training of some minutes
            return ["captured", "compiled", "eager"] if self._on_gpu else ["eager"]
        if asked == "captured" and not self._on_gpu:
            raise RunError("train.execution is captured, which needs a CUDA device; choose compiled or eager")
        return [asked]

    def _try(self, batch: Batch) -> None:
        """The first steps show what works: a compiler may be missing, or a model not fit for a graph."""
        form, begun = self._forms[0], time.perf_counter()
        try:
            self._advance(batch)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if form == "eager":
                raise
            self._give_up(first_line(error), error)
            self._try(batch)
            return
        if self._taken == 0 and form != "eager":
            self._notify(f"steps are {form}; compilation took {time.perf_counter() - begun:.1f} s")

    def _give_up(self, reason: str, error: RuntimeError) -> None:
        """On to the next form: compilation or recording failed, before anything ran."""
        failed, *self._forms = self._forms
        if not self._forms:
            raise RunError(
                f"train.execution is {failed}, which fails here ({reason}); choose eager"
            ) from error
        self._notify(f"steps cannot be {failed} here ({reason}); trying {self._forms[0]}")
        self._state.optimizer.zero_grad(
            set_to_none=True
        )  # what a recording began lies in the memory of its graph
        self._advance, self._taken = self._build(self._forms[0]), 0

    def _build(self, form: str) -> Advance:
        apply, forward = self._step.noise.apply, self._step.forward
        if form != "eager":
            torch.compiler.reset()  # earlier students' models count against the limit of recompilations
            forward = torch.compile(forward, dynamic=False)
            if self._on_gpu:  # on a CPU noise works on rows sorted by operation, whose numbers change
                apply = torch.compile(apply, dynamic=False)

        def advance(batch: Batch) -> None:
            self._step.advance(self._state, batch, apply, forward)

        return _Captured(advance) if form == "captured" else advance


class _Captured:
    """Work on a batch that is recorded once as a CUDA graph, then replayed: one launch a step.

    All it reads and changes must stay where it is, but for the batch, which is copied to where the first lay.
    """

    def __init__(self, work: Advance) -> None:
        self._work = work
        self._inputs: Batch | None = None
        self._graph = torch.cuda.CUDAGraph()
        self._warm_ups = 0

    def __call__(self, batch: Batch) -> None:
        if self._inputs is None:
            if self._warm_ups < _WARM_UPS:
                self._warm_up(batch)
                return
            self._inputs = Batch(batch.images.clone(), batch.labels.clone(), batch.pool_targets.clone())
            with torch.cuda.graph(self._graph):
                self._work(self._inputs)
        for name in (field.name for field in fields(Batch)):
            getattr(self._inputs, name).copy_(getattr(batch, name))
        self._graph.replay()

    def _warm_up(self, batch: Batch) -> None:
        """A step like any other, on a stream of its own, as recording asks for."""
        side, main = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            self._work(batch)
        main.wait_stream(side)
        self._warm_ups += 1
