"""A run that is killed, stopped or maimed at any moment ends, when it is called again, with the same bits."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass

import numpy as np
import pytest
import sets
from engine import COUNT, SEED, Box, Call, Outcome, Strike, hold, lawless, untouched
from reference import Reference, References, again
from results import differences
from totals import count

pytestmark = pytest.mark.slow

CHAINS = max(4, COUNT // 5)
"""Number of runs; each is struck up to three times."""


@dataclass(frozen=True)
class Kind:
    """A kind of strike.

    Attributes:
        number: the signal.
        target: a name in `zygote.TARGETS`.
        moment: "operation", "seconds" or "size".
        times: signals in succession.
        configurations: names of the configurations in which it can happen; empty for all.
    """

    number: signal.Signals
    target: str = "process"
    moment: str = "operation"
    times: int = 1
    configurations: tuple[str, ...] = ()


WORKERS = ("tar, streamed by workers",)
HELPERS = ("worker", "forkserver", "tracker")
KINDS = {
    "SIGKILL before an operation": Kind(signal.SIGKILL),
    "SIGKILL after a time": Kind(signal.SIGKILL, moment="seconds"),
    "SIGKILL within a write": Kind(signal.SIGXFSZ, moment="size"),
    "SIGKILL to the group": Kind(signal.SIGKILL, "group", configurations=WORKERS),
    "SIGKILL to a worker": Kind(signal.SIGKILL, "worker", configurations=WORKERS),
    "SIGKILL to the forkserver": Kind(signal.SIGKILL, "forkserver", configurations=WORKERS),
    "SIGKILL to the resource tracker": Kind(signal.SIGKILL, "tracker", configurations=WORKERS),
    "SIGTERM before an operation": Kind(signal.SIGTERM),
    "SIGTERM to the group": Kind(signal.SIGTERM, "group", configurations=WORKERS),
    "SIGTERM after a time": Kind(signal.SIGTERM, moment="seconds"),
    "SIGINT before an operation": Kind(signal.SIGINT),
    "SIGINT to the group": Kind(signal.SIGINT, "group", configurations=WORKERS),
    "SIGINT twice": Kind(signal.SIGINT, times=2),
    "SIGHUP before an operation": Kind(signal.SIGHUP),
    "SIGHUP to the group": Kind(signal.SIGHUP, "group", configurations=WORKERS),
}


def drawn(kind: Kind, rng: np.random.Generator, reference: Reference) -> Strike:
    """Draw the moment of a strike; most fall in the first half, so that a chain has several."""
    share = float(rng.beta(1.0, 2.0)) * (0.5 if kind.target in HELPERS else 1.0)  # the judge needs no helpers
    number = int(kind.number)
    if kind.moment == "operation":
        operation = 1 + int(share * reference.operations)
        return Strike(number, kind.target, operation=operation, times=kind.times)
    if kind.moment == "seconds":
        return Strike(number, kind.target, seconds=share * reference.seconds)
    return Strike(number, size=int(np.exp(rng.uniform(np.log(100), np.log(2_000_000)))))


def expected(kind: Kind, configuration: str, outcome: Outcome, box: Box) -> tuple[int, ...]:
    """Exit codes that are right after a strike of this kind."""
    if outcome.strikes == 0:
        # Python ignores SIGXFSZ in the processes that it starts. If one of them is the first to write beyond
        # the size, for example shared memory, its write fails, and the run ends with one line.
        return (0, 1) if kind.moment == "size" and configuration in WORKERS else (0,)
    if kind.target in HELPERS:
        return (0, 1)  # it goes on without the process, or it ends with one line
    if kind.number in (signal.SIGKILL, signal.SIGXFSZ):
        return (-kind.number,)
    codes: tuple[int, ...] = (0, 75)  # 0: the signal came after the last moment at which a run stops
    if kind.times > 1:
        codes += (130,)
    if kind.moment == "seconds" and not (box.path / "run" / ".noisystudent").exists():
        codes += (-kind.number, 130)  # before the program had begun
    return codes


def cases() -> list[tuple[str, str, int]]:
    """Return (kind, configuration, seed) of each chain: all kinds in turn, each in all configurations."""
    chains, kinds = [], random.Random(SEED).sample(list(KINDS), len(KINDS))
    for number in range(CHAINS):
        name = kinds[number % len(KINDS)]
        names = KINDS[name].configurations or tuple(sets.CONFIGURATIONS)
        chains.append((name, names[number // len(KINDS) % len(names)], SEED * 10_000 + number))
    return chains


@pytest.mark.parametrize("name, configuration, seed", cases(), ids=lambda value: str(value))
def test_a_struck_run_ends_with_the_same_bits(
    request: pytest.FixtureRequest, references: References, box: Box, name: str, configuration: str, seed: int
) -> None:
    kind, rng, reference = KINDS[name], np.random.default_rng(seed), references[configuration]
    strikes, broken, call = 0, list[str](), Call(())
    for attempt in range(4):
        strike = drawn(kind, rng, reference) if attempt < 3 else None
        with untouched(box) as changed:
            call, outcome = again(references.zygote, reference, box, strike)
        codes = expected(kind, configuration, outcome, box)
        strikes += outcome.strikes > 0
        where = f"attempt {attempt + 1}, {strike}: "
        # A process that ends at once cannot empty its temporary folder.
        whole = min(codes) >= 0 and outcome.code != 130
        broken += [where + text for text in (*lawless(outcome, codes), *(changed if whole else ()))]
        if outcome.code == 0:
            break
    count(request, f"kill: {name}", strikes)
    broken += differences(box.path / "run", reference.results)
    hold(call, outcome, broken, box)
