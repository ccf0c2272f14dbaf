"""Ways to run a step with the same results: eager or compiled, and each of them also as one CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from noisystudent.console import Progress
from noisystudent.errors import RunError, first_line, root_cause
from noisystudent.records import Batch
from noisystudent.runtime import COMPILATION_SECONDS, capture, release_memory
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.parallel import batchnorm_buffers
from noisystudent.train.step import BatchTooLarge, TrainStep

Advance = Callable[[TrainState, Batch], None]

# Compilation pays if the steps that are left save more time than it takes. A compiled step is assumed to
# save this much, compared with an eager one in a CUDA graph, for networks such as Wide ResNet-28-2 and
# ResNet-50 on a large GPU; it was not measured.
_SAVED_SECONDS = 0.006
WORTH_COMPILING = round(COMPILATION_SECONDS / _SAVED_SECONDS)  # number of steps

# In the first steps libraries choose kernels and allocate buffers, which a CUDA graph cannot capture.
_WARM_UPS = 3


def forms_to_try(execution: str, on_gpu: bool, steps: int) -> list[str]:
    """Forms in the order in which they are tried.

    Args:
        execution: `train.execution`.
        on_gpu: True if the steps run on a CUDA device.
        steps: number of steps that are left.

    Raises:
        RunError: the form needs a CUDA device.
    """
    if execution.startswith("captured") and not on_gpu:
        raise RunError(f"train.execution is {execution}, which needs a CUDA device; choose compiled or eager")
    if execution != "auto":
        return [execution]
    if not on_gpu:  # compilation takes a minute, which a training of a few minutes does not save
        return ["eager"]
    uncompiled = ["captured-eager", "eager"]
    return uncompiled if steps < WORTH_COMPILING else ["captured", "captured-eager", "compiled", "eager"]


class Executor:
    """Runs steps in the fastest form that works on this machine.

    Args:
        step: definition of a step.
        state: state that the steps change.
        progress: prints the form and why, the seconds of compilation, and the reason if a form fails.
        steps: number of steps that are left, or of those of one kind (`TrainStep.kind`) if there are several;
            with `execution: auto` they decide about compilation.

    Raises:
        RunError: the form in `train.execution` does not work on this machine.
    """

    def __init__(self, step: TrainStep, state: TrainState, progress: Progress, steps: int) -> None:
        self._step, self._state, self._progress = step, state, progress
        self._least_parts = step.config.accumulate
        self._on_gpu = state.window.is_cuda
        execution = step.config.execution if state.whole is None else "eager"
        self._forms = forms_to_try(execution, self._on_gpu, steps)
        if execution == "auto" and self._forms[0] == "captured-eager":
            progress.say(
                f"Execution of steps: captured-eager. {steps:,} steps are left, and compilation pays from"
                f" {WORTH_COMPILING:,} on."
            )
        self._advance: Advance = step.advance  # built for the first batch
        self._steps_done = 0  # in the current form
        self._kind: tuple[int, int, bool] | None = None

    def __call__(self, batch: Batch) -> None:
        """Run step `state.step` without host synchronisation.

        Steps of another kind are compiled or captured again. So a training has few kinds, each of many steps.
        """
        kind = self._step.kind(self._state.step, batch)
        # Another number of processes may have stored more parts than this process has images of a batch.
        most = _most_parts(batch, self._step.everyone.size)
        parts = max(self._least_parts, min(self._state.parts, most))
        if (kind, parts) != (self._kind, self._step.config.accumulate):
            self._kind, self._step = kind, _in_parts(self._step, parts)
            self._advance, self._steps_done = self._build(self._forms[0]), 0
        self._step.prepare(self._state, batch)
        # A batch that does not fit is forwarded again. Memory is short in the first steps if it ever is.
        statistics = batchnorm_buffers(self._state.model) if self._steps_done <= _WARM_UPS else []
        before, done = [buffer.clone() for buffer in statistics], False
        while not done:
            try:
                if self._steps_done > _WARM_UPS:  # the step after the warm-ups captures, so it can fail too
                    self._advance(self._state, batch)
                else:
                    self._try(batch)
                done = True
            except BatchTooLarge as error:
                self._divide(batch, error)
                for buffer, value in zip(statistics, before, strict=True):
                    buffer.copy_(value)
        self._steps_done += 1
        self._state.step += 1

    def _divide(self, batch: Batch, error: BatchTooLarge) -> None:
        """Compute this batch and all later ones in twice as many parts.

        Raises:
            OutOfMemoryError: a part would have one image, the loss is of the whole batch, or other processes
                share the step and go on with it.
        """
        teacher, parts = self._step.teacher, 2 * self._step.config.accumulate
        size = self._step.everyone.size
        if size > 1 or parts > _most_parts(batch, size) or (teacher is not None and teacher.fairness):
            raise root_cause(error) from None
        self._state.optimizer.zero_grad(set_to_none=True)
        self._state.parts, self._step = parts, _in_parts(self._step, parts)
        self._advance, self._steps_done = self._build(self._forms[0]), 0
        release_memory()
        self._progress.say(
            f"Execution of steps: a batch does not fit into the memory ({first_line(error)}); it is computed"
            f" in {parts} parts, as with train.accumulate {parts}."
        )

    def _try(self, batch: Batch) -> None:
        """Run one of the first steps, in the next form if this one fails.

        The compiler may be missing, or a CUDA graph may not be able to capture the model.
        """
        while (failure := self._failure(batch)) is not None:
            self._next_form(failure)

    def _failure(self, batch: Batch) -> RuntimeError | None:
        """Run one of the first steps, and return its error if another form may not have it."""
        form, start = self._forms[0], time.perf_counter()
        try:
            self._advance(self._state, batch)
        except BatchTooLarge:  # another form does not help
            raise
        except RuntimeError as error:
            cause = root_cause(error)
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            if form == "eager":  # an error of the step itself
                raise
            return error
        if self._steps_done == 0 and form in ("captured", "compiled"):
            seconds = time.perf_counter() - start
            self._progress.say(f"Execution of steps: {form}. Compilation took {seconds:.1f} s.")
        return None

    def _next_form(self, error: RuntimeError) -> None:
        """Switch to the next form. Compilation or capture failed, so the state has not changed."""
        reason = first_line(root_cause(error))
        failed, *self._forms = self._forms
        if not self._forms:
            raise RunError(
                f"train.execution is {failed}, which fails on this machine ({reason}); choose eager"
            ) from error
        self._progress.say(
            f"Execution of steps: {failed} fails on this machine ({reason}); using {self._forms[0]}."
        )
        # Gradients of a capture that failed are in the memory of its graph.
        self._state.optimizer.zero_grad(set_to_none=True)
        self._advance, self._steps_done = self._build(self._forms[0]), 0

    def _build(self, form: str) -> Advance:
        """Function that runs a prepared step in this form."""
        step = self._step
        if form in ("captured", "compiled"):
            # Models of earlier students would count towards the limit of recompilations.
            torch.compiler.reset()
            step = step.compiled(self._on_gpu)
        captured = form in ("captured", "captured-eager")
        return _Captured(step.advance, self._state.window.device) if captured else step.advance


def _most_parts(batch: Batch, processes: int) -> int:
    """Largest number of parts in which each part of a batch has images of each kind in every process.

    All processes get the same number.
    """
    fewest = [count // processes for count in batch.counts if count]  # of a process, see `Group.rows`
    return min(*fewest, sum(fewest) // 2)  # batch norm needs two images


def _in_parts(step: TrainStep, parts: int) -> TrainStep:
    """The step with batches in this number of parts."""
    return replace(step, config=replace(step.config, accumulate=parts))


class _Captured:
    """A step that is captured once as a CUDA graph and then replayed, with one launch per step.

    All tensors that it reads and changes must keep their memory. Only the batch may be elsewhere: it is
    copied into the memory of the first batch.
    """

    def __init__(self, advance: Advance, device: torch.device) -> None:
        self._advance = advance
        self._inputs: Batch | None = None
        self._graph = torch.cuda.CUDAGraph()
        self._stream = torch.cuda.Stream(device)
        self._warm_ups = 0

    def __call__(self, state: TrainState, batch: Batch) -> None:
        if self._inputs is None:
            # Each warm-up is a real step of the training, so that no batch is used twice.
            if self._warm_ups < _WARM_UPS:
                self._warm_up(state, batch)
                return
            names = ("images", "labels", "pool_targets")
            self._inputs = replace(batch, **{name: getattr(batch, name).clone() for name in names})
            with capture(self._graph, self._stream):
                self._advance(state, self._inputs)
        # The graph reads each batch from here, so its shapes cannot change.
        for name in ("images", "labels", "pool_targets"):
            getattr(self._inputs, name).copy_(getattr(batch, name))
        self._graph.replay()

    def _warm_up(self, state: TrainState, batch: Batch) -> None:
        """Run an ordinary step on a separate stream, as torch requires before a capture."""
        main = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            self._advance(state, batch)
        main.wait_stream(self._stream)
        self._warm_ups += 1
