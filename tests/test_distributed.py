"""What the processes of a run exchange, and how one learns that another has ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock, call

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from processes import IS_OLD, OLD, environment, free_port, together
from torch.torch_version import TorchVersion

from noisystudent import distributed
from noisystudent.distributed import Group, group, joined
from noisystudent.errors import EndedElsewhere, InputError, RunError, Stopped
from noisystudent.run import launch


class _Of(Group):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@given(count=st.integers(0, 200), size=st.integers(1, 9))
def test_rows_and_parts_are_divided_without_rest(count: int, size: int) -> None:
    everyone = [_Of(rank, size) for rank in range(size)]
    rows = [list(range(count))[each.rows(count)] for each in everyone]
    assert sum(rows, start=[]) == list(range(count))  # noqa: RUF017
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    parts = [part for each in everyone for part in each.own(range(count))]
    assert sorted(parts) == list(range(count))


def exchanged() -> None:
    everyone = group()
    rank, size = everyone.rank, everyone.size
    distributed._BUCKET = 7  # several buckets
    kinds = [torch.float32, torch.float32, torch.float64, torch.int64]
    tensors = [torch.full((n, 3), rank + n).to(kind) for n, kind in enumerate(kinds, start=1)]
    tensors.append(torch.full((2, 3, 4, 4), float(rank)).to(memory_format=torch.channels_last))
    everyone.sum(*tensors)
    total = sum(range(size))
    assert all((tensor == total + size * n).all() for n, tensor in enumerate(tensors[:4], start=1))
    assert (tensors[4] == total).all()
    everyone.copy(mine := torch.tensor([float(rank)]))
    assert mine == 0
    assert everyone.any(rank == 1, False, rank == 0) == [True, False, True]
    assert everyone.gather(f"of {rank}") == [f"of {each}" for each in range(size)]
    assert everyone.stack(torch.tensor([rank, 7])).tolist() == [[each, 7] for each in range(size)]


def of_two_machines() -> tuple[range, slice]:
    os.environ |= {"LOCAL_RANK": str(group().rank % 2), "LOCAL_WORLD_SIZE": "2"}
    own = distributed._Processes()
    return own.machine, own.rows(9, own.machine)


def test_processes_know_what_is_of_their_machine() -> None:
    first, second = (range(2), slice(0, 4)), (range(2, 4), slice(4, 9))
    assert together(4, of_two_machines) == [first, first, second, second]


def test_everything_is_exchanged() -> None:
    together(3, exchanged)
    Group().sum(tensor := torch.ones(2))
    assert tensor.tolist() == [1, 1], "a process alone has the sum"


def led(folder: Path) -> tuple[list[int], int]:
    everyone, calls = group(), list[int]()

    def work() -> str:
        assert group().size == 1, "it is alone"
        group().lead(lambda: calls.append(everyone.rank))
        (folder / "written").write_text("whole")
        return "result"

    assert everyone.lead(work) == "result"
    assert everyone.first(lambda: (folder / "written").read_text()) == "whole"
    for error, code in ((InputError("wrong"), 2), (Stopped("stopped"), 75)):

        def fail(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error) if everyone.is_main else EndedElsewhere) as caught:
            everyone.lead(fail)
        assert caught.value.exit_code == code
    return calls, everyone.any(False).count(True)


def test_process_0_leads_alone_and_all_have_its_result_or_its_error(tmp_path: Path) -> None:
    first, second = together(2, led, tmp_path)
    assert first == ([0], 0)
    assert second == ([], 0)


def asked() -> list[bool]:
    """For each line with which this process ends: does process 0 print it?"""
    launch._MOMENT = timedelta(seconds=0.5)
    answers, other = [], group().rank == 1
    if other:
        answers.append(launch.is_repeated("an error"))
    group().any()
    answers.append(launch.is_repeated("an error"))
    group().any()
    if other:
        answers.append(launch.is_repeated("another error"))
    group().any()
    return answers


def test_process_0_prints_an_error_that_all_have_and_another_one_its_own() -> None:
    assert together(2, asked) == [[False], [False, True, False]]
    assert not launch.is_repeated("an error"), "of a process that is alone"


def left_alone(folder: Path) -> float:
    """Seconds until the death of another process is noticed."""
    if group().rank == 1:
        (folder / "died").touch()
        os._exit(9)
    while not (folder / "died").exists():
        time.sleep(0.01)
    start = time.monotonic()
    with pytest.raises(EndedElsewhere, match="another process has ended"):
        for _ in range(3):
            group().any(False)
    (folder / f"seconds-{group().rank}").write_text(f"{time.monotonic() - start}")
    raise EndedElsewhere("noticed")


def test_the_others_notice_a_dead_process(tmp_path: Path) -> None:
    with pytest.raises((AssertionError, EOFError)):
        together(3, left_alone, tmp_path)
    seconds = [float((tmp_path / f"seconds-{rank}").read_text()) for rank in (0, 2)]
    assert max(seconds) < 30


def test_several_processes_with_an_old_torch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0+cpu"))
    with (
        pytest.raises(InputError, match=r"need torch 2\.7 or newer, and 2\.6\.0\+cpu is installed"),
        joined(),
    ):
        pass
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.10.0"))  # newer, although its text is smaller
    monkeypatch.setattr(distributed, "_stop_with_parent", lambda: None)
    monkeypatch.setattr(distributed, "_meet", Mock(side_effect=RuntimeError("no peer")))
    with pytest.raises(RunError, match=r"process 0 of 2 cannot join the others \(no peer\)"), joined():
        pass


class _Gpus:
    """Stands in for the GPUs of a machine, and for the others of 4 processes, which never come."""

    def __init__(self, patch: pytest.MonkeyPatch, count: int) -> None:
        self.current, self.meet = Mock(), Mock(side_effect=RuntimeError("no peer"))
        patch.setattr(torch.cuda, "is_available", lambda: count > 0)
        patch.setattr(torch.cuda, "device_count", lambda: count)
        patch.setattr(torch.cuda, "set_device", self.current)
        patch.setattr(distributed, "_stop_with_parent", lambda: None)
        patch.setattr(distributed, "_meet", self.meet)


def ended(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    """The line with which a run of 4 processes ends."""
    return tiny.refused(capsys, code, "run", "--labeled", "images", "--processes", 4, *words)


@pytest.mark.parametrize("launched", [False, True])
@pytest.mark.parametrize(("count", "device"), [(1, "auto"), (3, "cuda"), (4, "cuda:2")])
def test_more_processes_than_gpus_end_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    launched: bool,
    count: int,
    device: str,
) -> None:
    """Before any is started, and in each of those that torchrun has started by itself."""
    gpus = _Gpus(monkeypatch, count)
    for name, value in environment(0, 4, 1).items() if launched else ():
        monkeypatch.setenv(name, value)
    line = ended(capsys, 2, "--device", device)
    assert f"--processes {1 if ':' in device else count}, or --device cpu" in line
    gpus.current.assert_not_called()
    gpus.meet.assert_not_called()


@pytest.mark.skipif(IS_OLD, reason=OLD)
@pytest.mark.parametrize(
    ("count", "device", "backend"),
    [(0, "auto", "gloo"), (1, "cpu", "gloo"), (8, "cpu:0", "gloo"), (4, "auto", "cpu:gloo,cuda:nccl")],
)
def test_each_process_has_its_gpu_and_those_of_a_cpu_touch_none(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    count: int,
    device: str,
    backend: str,
) -> None:
    gpus = _Gpus(monkeypatch, count)
    for name, value in (environment(3, 4, 1) | {"RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    assert "cannot join the others (no peer)" in ended(capsys, 1, "--device", device)
    gpus.meet.assert_called_once_with(backend)
    assert gpus.current.mock_calls == ([] if backend == "gloo" else [call(3)])
    if backend != "gloo":
        gpus.current.side_effect = RuntimeError("CUDA error: device is busy\nlong story")
        assert "cannot join the others (CUDA error: device is busy)" in ended(capsys, 1, "--device", device)


@pytest.mark.skipif(IS_OLD, reason=OLD)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_whose_others_never_come_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    for name, value in environment(rank, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_stop_with_parent", lambda: None)
    monkeypatch.setattr(distributed, "_START", timedelta(seconds=1))
    with pytest.raises(RunError, match=f"process {rank} of 2 cannot join the others .* localhost"), joined():
        pass


@pytest.mark.skipif(IS_OLD, reason=OLD)
def test_a_signal_ends_the_waiting_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_stop_with_parent", lambda: None)
    threads = list[threading.Thread]()

    def wait_for_ever(_: str) -> None:
        threads.append(threading.current_thread())
        os.kill(os.getpid(), signal.SIGUSR1)
        threading.Event().wait()

    def end(*_: object) -> None:
        raise Stopped("a signal")

    before = signal.signal(signal.SIGUSR1, end)
    monkeypatch.setattr(distributed, "_meet", wait_for_ever)
    try:
        with pytest.raises(Stopped), joined():
            pass
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert threads != [threading.main_thread()], "which C++ would block"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("Unable to find address for: eth7")]
)
def test_an_error_of_this_process_is_not_the_end_of_another(error: RuntimeError) -> None:
    """It is printed."""
    with pytest.raises(type(error), match=str(error)), distributed._exchange():
        raise error
