"""When snapshots are taken, and how they are written while the training goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

from noisystudent.console import Progress
from noisystudent.distributed import group
from noisystudent.errors import RunError
from noisystudent.run.rundir import ModelDir
from noisystudent.runtime import packed_bytes, packed_views
from noisystudent.train import checkpoint, journal
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.parallel import full

_SECONDS = 60.0  # between two snapshots if the number of steps is not set


class Snapshots:
    """Snapshots of one training. The state is copied between two steps, and a thread writes the copy.

    Use it as a context manager: at its end the last snapshot is on the disk.

    Args:
        state: state of the training.
        folder: folder of the training.
        steps: number of steps between two snapshots. None: one a minute, or fewer if writing takes longer.
        progress: prints why a snapshot was not written if the training ends because of another error.

    Attributes:
        step: step of the last snapshot; at first, the step of `state`.
    """

    def __init__(self, state: TrainState, folder: ModelDir, steps: int | None, progress: Progress) -> None:
        self._state, self._folder, self._steps, self._progress = state, folder, steps, progress
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshot")
        self._writing: Future[None] | None = None
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._since = time.monotonic()
        self.step = state.step

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()  # waits for the snapshot
        try:
            self.wait()
        except RunError as unwritten:
            if error is None:
                raise
            self._progress.say(str(unwritten))

    def due(self) -> bool:
        """True if a snapshot is to be taken after the next step.

        Raises:
            RunError: the last snapshot could not be written.
        """
        if self._writing is not None and self._writing.done():
            self.wait()
        if self._steps is not None:
            return (self._state.step + 1) % self._steps == 0
        return self._writing is None and time.monotonic() - self._since >= _SECONDS

    def take(self) -> None:
        """Copy the state, and start to write the copy. All processes call it, and one of them writes.

        Raises:
            RunError: the last snapshot could not be written, or metrics.jsonl is gone.
        """
        self.wait()  # its copy is in the same memory
        tensors = checkpoint.contents(self._state)
        self.step, self._since = self._state.step, time.monotonic()
        copies = self._copy(tensors)
        if not group().is_main:
            return
        copied = None
        if self._state.window.is_cuda:
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(self._state.window.device))
        # The file is read now, because the training appends to it.
        self._writing = self._thread.submit(
            self._write, copies, copied, journal.content(self._folder.metrics)
        )

    def wait(self) -> None:
        """Wait until the last snapshot is written.

        Raises:
            RunError: the disk is full or cannot be written. The earlier snapshots are still there.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, copies: dict[str, Tensor], copied: torch.cuda.Event | None, metrics: bytes) -> None:
        if copied is not None:
            copied.synchronize()
        checkpoint.write(copies, self._folder.checkpoints, metrics)

    def _copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of whole tensors on the CPU in process 0, nothing in the others.

        Sharded tensors are gathered one after the other by all processes, and none stays on a device, which
        need not have memory for all of them.
        """
        copies = self._allocate(tensors) if group().is_main else {}
        for name, tensor in tensors.items():
            if copies:
                copies[name].copy_(full(tensor), non_blocking=True)
            else:
                full(tensor)
        return copies

    def _allocate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Places of copies, all in one memory, which is pinned on a GPU so that the host does not wait."""
        size = packed_bytes(tensors.values())
        if len(self._memory) != size:
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=self._state.window.is_cuda)
        return dict(zip(tensors, packed_views(self._memory, tensors.values()), strict=True))
