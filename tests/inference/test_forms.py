"""A captured forward pass agrees with an eager one, and the batch size is the fastest that fits.

Without a GPU a recording is stood in for by a function that does the same work on the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import Remembered
from torch import Tensor

from noisystudent.config import ModelConfig
from noisystudent.inference import forms
from noisystudent.inference.forms import Captured, Forward, fastest_batch_size, worth_compiling
from noisystudent.inference.predictor import Predictor, predict_probs
from noisystudent.models.classifier import Classifier
from noisystudent.models.registry import build_model
from noisystudent.records import Predict

SIZE = 8


def replayed(work: Callable[[], Tensor], _device: object) -> tuple[Callable[[], None], Tensor]:
    output = work()

    def replay() -> None:
        output.copy_(work())

    return replay, output


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "record", replayed)


def logits(images: Tensor) -> Tensor:
    """(B, 4); no image depends on another."""
    return images.flatten(1).float() @ torch.linspace(-1, 1, 4 * images[0].numel()).reshape(-1, 4)


def random_images(count: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=draws)


def forward(fast: Predict, progress: Remembered) -> Forward:
    return Forward({"captured": fast, "eager": logits}, SIZE, progress)


# --- captured ---


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("counts", [(8, 8, 8), (5, 8, 7), (8, 3), (12, 8, 1)])
def test_a_replay_is_the_eager_pass_for_any_batch(counts: tuple[int, ...]) -> None:
    progress, batches = Remembered(), [random_images(count, seed) for seed, count in enumerate(counts)]
    predict = forward(Captured(logits, SIZE), progress)
    found = [predict(batch) for batch in batches]  # a later replay leaves earlier logits as they are
    for batch, own in zip(batches, found, strict=True):
        torch.testing.assert_close(own, logits(batch))
    assert progress.lines == []


@pytest.mark.usefixtures("recorded")
def test_only_more_than_half_a_batch_is_filled_up() -> None:
    sizes: list[int] = []

    def watched(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return logits(images)

    predict = Forward({"captured": Captured(watched, SIZE), "eager": watched}, SIZE, Remembered())
    for count in (SIZE, 5, 4, 9):
        del sizes[:]
        predict(random_images(count))
        assert {*sizes} == {SIZE if count in (SIZE, 5) else count}


def test_a_failed_recording_names_its_origin_and_the_next_form_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(work: Callable[[], Tensor], _device: object) -> Any:
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nlong story")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(forms, "record", fails)
    progress, images = Remembered(), random_images(SIZE)
    predict = forward(Captured(logits, SIZE), progress)
    for _ in range(2):
        assert torch.equal(predict(images), logits(images))
    reason = "operation not permitted when stream is capturing"
    assert progress.lines == [f"The model cannot be captured here ({reason}); it runs eager."]


def test_an_error_of_the_model_itself_is_raised() -> None:
    def broken(_images: Tensor) -> Tensor:
        raise RuntimeError("of the model")

    with pytest.raises(RuntimeError, match="of the model"):
        Forward({"compiled": broken, "eager": broken}, SIZE, Remembered())(random_images(SIZE))


# --- batch size ---


class Device:
    """A GPU with room for `room` images, on which a pass takes `launch` + size seconds."""

    def __init__(self, launch: float, room: int) -> None:
        self.launch, self.room = launch, room
        self.tried: list[int] = []

    def seconds(self, size: int) -> float:
        self.tried.append(size)
        if size > self.room:
            raise torch.OutOfMemoryError("no room")
        return self.launch + size


@given(st.floats(0, 1e5), st.integers(1, 5000), st.integers(1, 600), st.integers(1, 5000))
def test_the_batch_size_fits_and_no_tried_one_is_much_faster(
    launch: float, room: int, start: int, most: int
) -> None:
    device = Device(launch, room)
    size, seconds = fastest_batch_size(device.seconds, start, most)
    assert seconds == device.seconds(size) / size and size in device.tried
    assert max(device.tried) <= max(most, start)
    fitting = [tried for tried in device.tried if tried <= room]
    assert all(seconds <= device.seconds(tried) / tried * 1.02 for tried in fitting)
    if start > room:
        assert size <= room < 2 * size + 1
    elif launch == 0:
        assert size == start, "nothing is gained by a larger batch"


def test_the_batch_size_grows_until_memory_or_the_images_end() -> None:
    assert fastest_batch_size(Device(1e9, 5000).seconds, 512, 10**6)[0] == 4096
    assert fastest_batch_size(Device(1e9, 10**9).seconds, 512, 3000)[0] == 2048
    assert fastest_batch_size(Device(1e9, 100).seconds, 512, 3000)[0] == 64
    with pytest.raises(torch.OutOfMemoryError, match="too small for a single image"):
        fastest_batch_size(Device(0, 0).seconds, 512, 3000)


@pytest.mark.parametrize(("seconds", "fewest"), [(None, 500_000), (1e-3, 300_000), (1e-5, 30_000_000)])
def test_compilation_pays_from_a_number_of_images_that_depends_on_their_time(
    seconds: float | None, fewest: int
) -> None:
    assert worth_compiling(fewest + 1, seconds)
    assert not worth_compiling(fewest - 1, seconds)


def prepared(
    monkeypatch: pytest.MonkeyPatch, images: int, most: int | None = None, *, seconds: float
) -> tuple[list[str], int, list[str]]:
    """Names of the forms, batch size and lines for a GPU that is not there, so nothing is computed on it.

    A pass takes 5 ms and `seconds` for each image.
    """
    monkeypatch.setattr(forms, "seconds_on_gpu", lambda *arguments: 5e-3 + arguments[-1] * seconds)
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    progress, predictor = (
        Remembered(),
        Predictor(models=(network(),), classes=(), device=torch.device("cuda")),
    )
    ready, size = predictor.prepared(images, most, progress=progress)
    assert ready.batch_size == size and ready.device == predictor.device
    return (
        ([] if ready._forward is None else [name for name, _ in ready._forward._forms]),
        size,
        progress.lines,
    )


def network() -> Classifier:
    return build_model(ModelConfig(name="resnet8_16"), 3, 16, seed=0).eval()


def test_a_gpu_measures_for_many_images_and_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepared(monkeypatch, 64 * 256 - 1, seconds=1e-5) == ([], 256, [])
    line = "resnet8_16: batches of 8,192 images, 94,248 images/s."
    assert prepared(monkeypatch, 10**6, seconds=1e-5) == (["captured", "eager"], 8192, [line])
    assert prepared(monkeypatch, 10**6, 1000, seconds=1e-5)[1] == 512
    assert prepared(monkeypatch, 64 * 600, seconds=1e-5)[1] == 512
    names, size, _ = prepared(monkeypatch, 10**6, seconds=1e-2)
    assert (names, size) == (["compiled and captured", "captured", "eager"], 256)


# --- on a GPU ---

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
_FORMS = [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("options", [{}, {"flip": True, "scales": (1.0, 1.5)}])
@pytest.mark.parametrize(("dtype", "tolerance"), _FORMS)
@pytest.mark.parametrize("compiles", [False, True])
def test_every_form_agrees_on_a_gpu_and_does_not_wait(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float, options: Any, compiles: bool
) -> None:
    monkeypatch.setattr(forms, "worth_compiling", lambda *_: compiles)
    device, progress = torch.device("cuda"), Remembered()
    model = network().to(device).to(memory_format=torch.channels_last)
    eager = Predictor(models=(model, model), classes=(), device=device, dtype=dtype, **options)
    fast, size = eager.prepared(10**6, progress=progress)
    draws = torch.Generator().manual_seed(0)
    shape = (2 * size + size - 1, 3, 16, 16)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draws).to(device)
    fast(images[:size])  # compiles and captures
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = predict_probs(fast, images.split(size))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = predict_probs(eager, images.split(size))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert len(progress.lines) == 1, progress.lines


@pytest.mark.gpu
@needs_gpu
def test_a_model_that_cannot_be_captured_runs_eager_on_the_stream_of_before() -> None:
    def waits(images: Tensor) -> Tensor:
        return logits(images.cpu()).to(images.device)

    progress, images, stream = Remembered(), random_images(SIZE).cuda(), torch.cuda.current_stream()
    predict = Forward({"captured": Captured(waits, SIZE), "eager": waits}, SIZE, progress)
    assert torch.equal(predict(images), waits(images)) and torch.cuda.current_stream() == stream
    (line,) = progress.lines
    assert "cannot be captured here" in line and "captur" in line.partition("(")[2]


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_says_how_long_a_pass_takes_and_that_memory_is_short() -> None:
    device = torch.device("cuda")
    assert 0 < forms.seconds_on_gpu(lambda images: images.float(), device, 16, 64) < 1
    with pytest.raises(torch.OutOfMemoryError):
        forms.seconds_on_gpu(lambda images: images.float(), device, 1024, 2**20)
