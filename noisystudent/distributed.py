"""The processes of one run: which rows and parts are whose, and what they exchange.

Every process runs the same program. Process 0 does alone what is not shared out (`Group.lead`): it decides
which stages are done, and it writes the files that all share.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from noisystudent.errors import EndedElsewhere, NoisyStudentError, RunError, Stopped, first_line, require

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_TIMEOUT = timedelta(days=30)  # others wait while process 0 scans, selects or judges; a dead one ends them
_START = timedelta(minutes=10)  # until every process is here: all are started together
# What gloo, the store and NCCL say of another process that has ended.
_LOST = ("Connection closed", "Connection reset", "Connection was likely", "Broken pipe", "remote process")
_BUCKET = 2**24  # elements that are exchanged at once
_POLL = 0.5  # seconds between two looks at the parent process


class Group:
    """A process alone: every row and every part is its own, and there is nothing to exchange.

    Attributes:
        rank: number of this process, 0 … size-1.
        size: number of processes.
        machine: the ranks of its machine.
    """

    rank = 0
    size = 1
    machine = range(1)

    @property
    def is_main(self) -> bool:
        """True for the process that writes shared files and shows progress."""
        return self.rank == 0

    def rows(self, count: int, ranks: range | None = None) -> slice:
        """The part of this process, or of all `ranks`, of `count` rows; parts differ by one row at most."""
        ranks = range(self.rank, self.rank + 1) if ranks is None else ranks
        return slice(ranks.start * count // self.size, ranks.stop * count // self.size)

    def part(self, values: Any) -> Any:
        """The part of this process of consecutive rows, an array or a tensor; None stays None."""
        return None if values is None else values[self.rows(len(values))]

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """The items that this process works on: every `size`-th one."""
        return items[self.rank :: self.size]

    def lead(self, work: Callable[[], T]) -> T:
        """Let process 0 do some work, alone, when every process is here; all get its result or its error."""
        return work()

    def first(self, work: Callable[[], T]) -> T:
        """Do some work, process 0 before the others, which find what it has downloaded or written."""
        return work()

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, True if it is set in any process."""
        return list(flags)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        return [value]

    def stack(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, which have one shape: (size, …)."""
        return tensor[None]

    def sum(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the processes."""

    def copy(self, *tensors: Tensor) -> None:
        """Give each tensor the values that it has in process 0."""


_alone = Group()
_joined: list[Group] = []  # of this process, innermost last


def group() -> Group:
    """The processes that share this work: those that were joined, or this one alone, as within `lead`."""
    return _joined[-1] if _joined else _alone


class _Processes(Group):
    """The processes that torchrun has started, over torch.distributed.

    A sum is taken in an order that depends on nothing but the shapes, so that equal values have equal sums in
    every step of every call. DistributedDataParallel divides the gradients anew after its first step, so a
    resumed training would differ in its last digits.
    """

    def __init__(self) -> None:
        import torch  # takes seconds, and commands of one process may not need it
        from torch import distributed

        self._torch, self._dist = torch, distributed
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        first = self.rank - int(os.environ.get("LOCAL_RANK", "0")) % local_size()  # %: it may be set alone
        self.machine = range(first, first + local_size())

    def lead(self, work: Callable[[], T]) -> T:
        self.any()  # every process is here: what it had to write is on disk
        outcome: list[Any] = [None, None]  # the result, the error
        if self.is_main:
            _joined.append(_alone)
            try:
                outcome[0] = work()
            except NoisyStudentError as error:
                outcome[1] = error
            finally:
                _joined.pop()
        with _exchange():
            sent = [outcome[0], outcome[1] and (str(outcome[1]), outcome[1].exit_code)]
            self._dist.broadcast_object_list(sent, 0)
        if self.is_main and outcome[1] is not None:
            raise outcome[1]
        if sent[1] is not None:
            raise EndedElsewhere(*sent[1])
        result: T = outcome[0] if self.is_main else sent[0]
        return result

    def first(self, work: Callable[[], T]) -> T:
        made: list[T] = []
        self.lead(lambda: made.append(work()))
        return made[0] if self.is_main else work()

    def any(self, *flags: bool) -> list[bool]:
        votes = self._torch.tensor([0, *flags], device="cpu")
        with _exchange():
            self._dist.all_reduce(votes, self._dist.ReduceOp.MAX)
        return [bool(vote) for vote in votes[1:]]

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        with _exchange():
            self._dist.all_gather_object(values, value)
        return values

    def stack(self, tensor: Tensor) -> Tensor:
        parts = [self._torch.empty_like(tensor) for _ in range(self.size)]
        with _exchange():
            self._dist.all_gather(parts, tensor.contiguous())
        return self._torch.stack(parts)

    def sum(self, *tensors: Tensor) -> None:
        self._each_bucket(tensors, self._dist.all_reduce)

    def copy(self, *tensors: Tensor) -> None:
        self._each_bucket(tensors, lambda bucket: self._dist.broadcast(bucket, 0))

    def _each_bucket(self, tensors: Iterable[Tensor], call: Callable[[Tensor], object]) -> None:
        """Call a function with tensors (n,) that hold some of the tensors each, and copy the results back."""
        for bucket in _buckets(tensors):
            flat = self._torch.cat([tensor.detach().reshape(-1) for tensor in bucket])
            with _exchange():
                call(flat)
            for tensor, part in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                tensor.detach().copy_(part.view(tensor.shape))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Lists of consecutive tensors of one type and device, of at most `_BUCKET` elements unless it is one."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        kind = (tensor.dtype, tensor.device)
        if bucket and (kind != (bucket[0].dtype, bucket[0].device) or size + tensor.numel() > _BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


@contextmanager
def _exchange() -> Iterator[None]:
    """Tell the end of another process from the errors of this one, such as a full memory.

    Raises:
        EndedElsewhere: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _LOST):
            raise
        raise EndedElsewhere(f"another process has ended ({first_line(error)})", Stopped.exit_code) from error


def is_main_process() -> bool:
    """False for all but the first of the processes that torchrun has started, joined or not."""
    return os.environ.get("RANK", "0") == "0"


def local_size() -> int:
    """Number of processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if "RANK" in os.environ else 1


@contextmanager
def joined(gpus: bool = False) -> Iterator[Group]:
    """Join the processes that torchrun has started with this one, within the block.

    Without torchrun this process stays alone. If torchrun is killed, the processes stop as by SIGTERM.

    Args:
        gpus: each process uses the GPU of its number on its machine. False: none touches a GPU.

    Raises:
        InputError: torch is older than 2.7, in which process 0 cannot write a snapshot alone.
        RunError: the processes cannot reach each other, or one of them does not come.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield _alone
        return
    import torch
    from torch import distributed

    require(
        torch.__version__ >= "2.7",  # compared as versions, not as text
        f"several processes need torch 2.7 or newer, and {torch.__version__} is installed; install a newer"
        " one, or leave out --processes",
    )
    _stop_with_parent()
    try:
        if gpus:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        _interruptible(partial(_meet, "cpu:gloo,cuda:nccl" if gpus else "gloo"))
    except RuntimeError as error:
        raise RunError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} cannot join the others"
            f" ({first_line(error)}); see that all are started, and reach {os.environ['MASTER_ADDR']}"
        ) from error
    _joined.append(_Processes())
    try:
        yield _joined[-1]
        distributed.destroy_process_group()  # not after an error: the others may not answer
    finally:
        _joined.pop()


def _meet(backend: str) -> None:
    """Wait until every process is here, and connect them.

    Raises:
        RuntimeError: one does not come, or this one has no way to the others.
    """
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=_START))
    store.set(f"here/{rank}", "")
    store.wait([f"here/{each}" for each in range(size)], _START)  # torchrun's store waits for nobody
    store.set_timeout(_TIMEOUT)  # NCCL uses it in the first exchange
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)


def _interruptible(work: Callable[[], T]) -> T:
    """Call `work` in a thread: Python runs no signal handler while its main thread waits in C++."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result()


def _stop_with_parent() -> None:
    """Start a thread that sends SIGTERM to this process when its parent has ended: nothing else would."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
