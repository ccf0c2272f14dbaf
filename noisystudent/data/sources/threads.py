"""Calls that wait for a network, in threads: the waiting thread still notices a signal."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import Any, TypeVar

from noisystudent.console import active

THREADS = 16
"""Most calls at once. A request takes some tens of milliseconds, most of it waiting."""
_POLL_SECONDS = 0.2  # between two checks for signals while no result comes

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def in_threads(call: Callable[[Argument], Result], arguments: Iterable[Argument]) -> Generator[Result]:
    """Results of `call` for each argument, in order.

    The threads are daemons: a call that hangs does not keep the program from ending. Close the iterator when
    it is not used to its end, so that no further call is made.

    Raises:
        Stopped: a signal came.
        Exception: as raised by `call`.
    """
    waiting = list(enumerate(arguments))
    waiting.reverse()
    results: queue.SimpleQueue[tuple[int, Any, bool]] = queue.SimpleQueue()

    def work() -> None:
        while True:
            try:
                number, argument = waiting.pop()  # an operation of a list is atomic
            except IndexError:
                return
            try:
                results.put((number, call(argument), True))
            except BaseException as error:  # whatever it is, the waiting thread must not wait for ever
                results.put((number, error, False))

    count = len(waiting)
    for _ in range(min(THREADS, count)):
        threading.Thread(target=work, daemon=True).start()
    early: dict[int, Any] = {}  # results that came before their turn
    try:
        for number in range(count):
            while number not in early:
                at, result, good = _next(results)
                if not good:
                    raise result
                early[at] = result
            yield early.pop(number)
    finally:
        waiting.clear()


def _next(results: queue.SimpleQueue[tuple[int, Any, bool]]) -> tuple[int, Any, bool]:
    while True:
        active().check()
        with suppress(queue.Empty):
            return results.get(timeout=_POLL_SECONDS)
