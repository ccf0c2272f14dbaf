"""Forms of a forward pass: eager, compiled, or captured as a CUDA graph; and its batch size on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from noisystudent.console import Progress
from noisystudent.errors import first_line, root_cause
from noisystudent.records import Predict
from noisystudent.runtime import COMPILATION_SECONDS, capture

WORTH_COMPILING = 500_000
"""Number of images from which a compilation saves more time than it takes, on a CPU."""

# On a GPU the time of an image differs by a factor of a thousand between networks. A compilation is assumed
# to save this share of the eager time.
_SAVED = 0.2

MEASURED_BATCHES = 64
"""Number of batches from which a GPU measures batch sizes, which takes the time of up to eight of them."""

_MOST_PIXELS = 2**26  # of one channel in a batch: the loader holds several batches of 200 MB for each worker
_FASTER = 1.02  # a batch size is doubled if that gives more images per second by this factor
_MEMORY = 0.75  # share of the GPU's memory that may be in use; the loader and the graph need some, too
_WARM_UPS, _TIMED = 2, 2  # passes; in the first ones libraries choose kernels and allocate buffers


class Forward:
    """A forward pass in the first of several forms that works on this machine.

    The forms give equal logits up to rounding.

    Args:
        forms: functions from images (B, 3, S, S) uint8 to logits (B, K) by name, the fastest first. The last
            is the eager one.
        batch_size: number of images that all but the last form take. A `Captured` one also takes fewer, but
            more than half. Other batches go to the last form: a new size would need a new compilation.
        progress: shows a message if a form fails.
    """

    def __init__(self, forms: dict[str, Predict], batch_size: int, progress: Progress) -> None:
        self._forms, self._batch_size, self._progress = list(forms.items()), batch_size, progress

    def __call__(self, images: Tensor) -> Tensor:
        """Compute the logits (B, K) of images (B, 3, S, S) uint8."""
        while len(self._forms) > 1:
            name, forward = self._forms[0]
            # A graph runs at full size, so to fill it up pays only above a half.
            fewest = self._batch_size // 2 + 1 if isinstance(forward, Captured) else self._batch_size
            if not fewest <= len(images) <= self._batch_size:
                break
            try:
                return forward(images)
            except RuntimeError as error:
                del self._forms[0]
                self._progress.say(
                    f"The model cannot be {name} here ({first_line(root_cause(error))});"
                    f" it runs {self._forms[0][0]}."
                )
        return self._forms[-1][1](images)


class Captured:
    """A forward pass that is recorded once, for batches of one size, and then replayed with one launch.

    A smaller batch, such as the last one, fills the first rows. The other rows keep older images, and their
    logits are not returned: in evaluation mode no image depends on another.
    """

    def __init__(self, forward: Predict, batch_size: int) -> None:
        self._forward, self._batch_size = forward, batch_size
        self._images: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Compute the logits of at most `batch_size` images on the device of the model."""
        if self._images is None:
            static = images.new_zeros((self._batch_size, *images.shape[1:]))
            static[: len(images)].copy_(images)
            self._replay, self._logits = record(partial(self._forward, static), images.device)
            self._images = static
        self._images[: len(images)].copy_(images)
        self._replay()
        return self._logits[: len(images)].clone()  # the next replay writes to the same memory


def captured(forms: dict[str, Predict], batch_size: int) -> dict[str, Predict]:
    """Each of these forms captured, by name, and last the eager one as it is."""
    names = {name: "captured" if name == "eager" else f"{name} and captured" for name in forms}
    eager = {"eager": forms["eager"]}
    return {names[name]: Captured(forward, batch_size) for name, forward in forms.items()} | eager


def record(work: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """Record the kernels of `work` as a CUDA graph.

    Returns:
        A function that runs them again on the memory of the recording, and their output, which each run
        writes anew.

    Raises:
        RuntimeError: `work` does something that a graph cannot hold. The current stream is as before.
    """
    graph, side, main = torch.cuda.CUDAGraph(), torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            work()
    with capture(graph, side):
        output = work()
    main.wait_stream(side)
    return graph.replay, output


def worth_compiling(images: int, seconds: float | None) -> bool:
    """True if the compilation for this many images saves more time than it takes.

    Args:
        images: number of images.
        seconds: measured seconds of an image on a GPU. None: the device is a CPU.
    """
    return images >= WORTH_COMPILING if seconds is None else images * seconds * _SAVED > COMPILATION_SECONDS


def most_images(images: int, side: int) -> int:
    """Largest batch size to try for a number of images of this side."""
    return min(images // MEASURED_BATCHES, _MOST_PIXELS // side**2)


def fastest_batch_size(seconds: Callable[[int], float], start: int, most: int) -> tuple[int, float]:
    """Find the batch size with the most images per second.

    It is doubled from `start` until that gives less than 2 % more, or memory is short. If memory is short for
    `start`, it is halved.

    Args:
        seconds: batch size -> seconds of a forward pass; raises OutOfMemoryError if memory is short.
        start: first batch size.
        most: largest batch size, unless `start` is larger.

    Returns:
        The batch size, and the seconds of an image.

    Raises:
        OutOfMemoryError: memory is short for a single image.
    """
    size, best = start, _of_an_image(seconds, start)
    while best is None and size > 1:
        size //= 2
        best = _of_an_image(seconds, size)
    if best is None:
        raise torch.OutOfMemoryError("the memory of the GPU is too small for a single image")
    while start <= size <= most // 2:
        doubled = _of_an_image(seconds, 2 * size)
        if doubled is None or doubled * _FASTER > best:
            break
        size, best = 2 * size, doubled
    return size, best


def _of_an_image(seconds: Callable[[int], float], size: int) -> float | None:
    """Seconds of an image in a batch of this size; None if memory is short."""
    try:
        return seconds(size) / size
    except torch.OutOfMemoryError:
        return None


def seconds_on_gpu(forward: Predict, device: torch.device, side: int, size: int) -> float:
    """Seconds of a forward pass of `size` random images; the time does not depend on the pixels.

    Raises:
        OutOfMemoryError: more than three quarters of the memory would be in use.
    """
    draws = torch.Generator(device).manual_seed(0)
    images = torch.empty((size, 3, side, side), dtype=torch.uint8, device=device).random_(generator=draws)
    torch.cuda.reset_peak_memory_stats(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(_WARM_UPS):
        forward(images)
    start.record(torch.cuda.current_stream(device))
    for _ in range(_TIMED):
        forward(images)
    end.record(torch.cuda.current_stream(device))
    end.synchronize()
    if torch.cuda.max_memory_allocated(device) > _MEMORY * torch.cuda.mem_get_info(device)[1]:
        raise torch.OutOfMemoryError(f"batches of {size} images leave no memory for anything else")
    return float(start.elapsed_time(end)) / 1000 / _TIMED
