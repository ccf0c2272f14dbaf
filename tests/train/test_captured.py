"""Laws of a captured step that hold on every device."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_cuda import FakeCuda
from tiny import Remembered
from tiny_training import Training
from torch import Tensor

from noisystudent.console import Progress
from noisystudent.errors import Stopped
from noisystudent.records import Batch
from noisystudent.train import execution
from noisystudent.train.execution import _WARM_UPS, WORTH_COMPILING, _Captured, forms_to_try
from noisystudent.train.step import TrainStep

Make = Callable[..., Training]
GPU = torch.device("cuda:0")
CAPTURE = _WARM_UPS + 1  # number of the step that captures


def batch() -> Batch:
    return Batch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(1).long(), torch.zeros(1, 3))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def run(step: _Captured, steps: int = CAPTURE) -> None:
    state: Any = None  # the steps of these tests change nothing
    for _ in range(steps):
        step(state, batch())


def test_memory_may_be_pinned_while_a_step_is_captured(cuda: FakeCuda) -> None:
    def advance(*_: object) -> None:
        loader = threading.Thread(target=cuda.pin_memory)
        loader.start()
        loader.join()

    run(_Captured(advance, GPU))
    assert cuda.replays == 1


def test_a_step_is_captured_on_its_own_device_whichever_is_current(cuda: FakeCuda) -> None:
    second = torch.device("cuda:1")
    main, used = cuda.current_stream(second), list[Any]()
    run(_Captured(lambda *_: used.append((cuda.device, cuda.current_stream())), second))
    (stream,) = cuda.captured
    assert used == [(second, stream)] * CAPTURE
    assert stream.device == second and set(stream.waited_for) == {main}
    assert cuda.device == torch.device("cuda:0")


def failing(error: Exception) -> Callable[..., None]:
    """A step that runs, but that a graph cannot capture."""
    calls = itertools.count(1)

    def advance(*_: object) -> None:
        if next(calls) == CAPTURE:
            raise error

    return advance


def test_a_capture_that_fails_leaves_the_stream_of_before(cuda: FakeCuda) -> None:
    before = cuda.current_stream()
    with pytest.raises(RuntimeError, match="previous error during capture"):
        run(_Captured(failing(RuntimeError("nonzero is not permitted")), GPU))
    assert cuda.current_stream() is before


def test_warm_ups_and_capture_share_one_stream_in_turn_with_the_main_one(cuda: FakeCuda) -> None:
    main, used = cuda.current_stream(), list[Any]()
    run(_Captured(lambda *_: used.append(cuda.current_stream()), GPU))
    assert len(used) == CAPTURE
    assert len(set(map(id, used))) == 1 and used[0] is not main
    assert used[0].waited_for == [main] * _WARM_UPS and main.waited_for == [used[0]] * _WARM_UPS
    assert cuda.captured == [used[0]]


@pytest.fixture
def captured(training: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], Remembered]:
    """Runs a training that tries a capture, which fails with the given error, and then eager steps."""

    def train(error: Exception) -> Remembered:
        progress = Remembered()
        monkeypatch.setattr(execution, "forms_to_try", lambda *_: ["captured", "eager"])
        calls, advance = itertools.count(1), TrainStep.advance

        def advance_or_fail(self: TrainStep, *arguments: Any) -> None:
            if next(calls) == CAPTURE:
                raise error
            advance(self, *arguments)

        monkeypatch.setattr(TrainStep, "advance", advance_or_fail)
        monkeypatch.setattr(torch, "compile", lambda call, **_: call)
        training("captured", progress=progress).run()
        return progress

    return train


@pytest.mark.parametrize("steps", [1, WORTH_COMPILING - 1, WORTH_COMPILING, 10**6])
def test_auto_compiles_on_a_gpu_if_the_steps_that_are_left_make_up_for_it(steps: int) -> None:
    forms = forms_to_try("auto", True, steps)
    assert forms[0] == ("captured" if steps >= WORTH_COMPILING else "captured-eager")
    assert forms[-1] == "eager" and "captured-eager" in forms  # works where there is no compiler
    assert forms_to_try("auto", False, steps) == ["eager"]


@pytest.mark.parametrize("form", ["eager", "compiled", "captured", "captured-eager"])
def test_a_configured_form_is_the_only_one(form: str) -> None:
    assert forms_to_try(form, True, 1) == [form]


def test_without_a_compiler_steps_are_captured_uncompiled(
    cuda: FakeCuda, training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Callable[..., Any]:
        def fails(*_: object, **_more: object) -> None:  # torch compiles at the first call
            raise RuntimeError("no working C compiler found")

        return fails

    monkeypatch.setattr(execution, "forms_to_try", lambda *_: forms_to_try("auto", True, WORTH_COMPILING))
    monkeypatch.setattr(torch, "compile", broken)
    progress = Remembered()
    training("bare", progress=progress).run()
    assert progress.lines == [
        "Execution of steps: captured fails on this machine (no working C compiler found); using"
        " captured-eager."
    ]
    assert cuda.captured


def test_the_first_error_of_a_failed_capture_is_the_reason_that_is_printed(
    cuda: FakeCuda, captured: Callable[[Exception], Remembered]
) -> None:
    lines = captured(RuntimeError("nonzero is not permitted\nlong story")).lines
    assert lines[-1] == (
        "Execution of steps: captured fails on this machine (nonzero is not permitted); using eager."
    )


def test_a_capture_without_enough_memory_is_an_error_of_memory(
    cuda: FakeCuda, captured: Callable[[Exception], Remembered]
) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="tried to allocate 2 GiB"):
        captured(torch.OutOfMemoryError("tried to allocate 2 GiB"))


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_form_of_a_deterministic_training_does_not_depend_on_where_it_resumes(
    training: Make, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, stopped = list[int](), Progress()

    def forms(execution: str, on_gpu: bool, left: int) -> list[str]:
        steps.append(left)
        return ["eager"]

    def stop(batch: Batch, step: int) -> Tensor:
        if step == 9:
            stopped.stop.signal = "SIGTERM"
        return batch.images

    monkeypatch.setattr(execution, "forms_to_try", forms)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    with pytest.raises(Stopped):
        training(progress=stopped, changes={"augment": stop}, total_steps=24).run()
    training(total_steps=24).run()
    assert steps == ([24, 24] if deterministic else [24, 14])
