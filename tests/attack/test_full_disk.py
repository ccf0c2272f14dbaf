"""A disk that is full at any write ends the run with one line; with more space, the run ends as any other."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import sets
from engine import COUNT, SEED, Box, Call, hold, lawless, untouched
from reference import References, again
from results import differences
from totals import count

pytestmark = pytest.mark.slow

POINTS = max(3, COUNT // 8)
KINDS = ("bytes", "inodes", "size of a file")


@pytest.fixture
def disk(box: Box) -> Iterator[Callable[[str], None]]:
    """Return a function that mounts a disk with options such as "size=64k" as the run directory, or again."""
    folder = box.path / "run"
    folder.mkdir()

    def mount(options: str) -> None:
        options = f"{'remount,' if folder.is_mount() else ''}{options}"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode != 0:
            pytest.skip("a small disk cannot be mounted here (needs root)")

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


def cases() -> list[tuple[str, str, int]]:
    """Return (kind of limit, configuration, seed) of each point."""
    names = list(sets.CONFIGURATIONS)
    return [
        (KINDS[number % len(KINDS)], names[number // len(KINDS) % len(names)], SEED * 10_000 + number)
        for number in range(POINTS)
    ]


@pytest.mark.parametrize("kind, configuration, seed", cases(), ids=lambda value: str(value))
def test_a_full_disk_is_one_line_and_the_run_resumes(
    request: pytest.FixtureRequest, references: References, box: Box, disk: Callable[[str], None],
    kind: str, configuration: str, seed: int,
) -> None:  # fmt: skip
    reference, rng = references[configuration], np.random.default_rng(seed)
    run, limits, share = box.path / "run", dict[str, int](), float(rng.uniform(0.002, 1.0))
    if kind == "bytes":
        disk(f"size={int(share * reference.size)}")
    elif kind == "inodes":
        files = sum(1 for _ in reference.run.rglob("*"))
        disk(f"size=1g,nr_inodes={3 + int(share * files)}")
    else:
        limits = {"RLIMIT_FSIZE": int(np.exp(rng.uniform(np.log(200), np.log(1_500_000))))}
    call = Call((*reference.words, "--out", str(run)), below=str(run), limits=limits, seconds=600)
    with untouched(box) as changed:
        outcome = references.zygote.run(call, box)
    count(request, f"full disk: {kind}", int(outcome.code != 0))
    broken = lawless(outcome, (0, 1)) + changed
    if outcome.code == 1 and str(run) not in outcome.err:
        broken.append("the line does not name a file")
    if kind != "size of a file":
        disk("size=1g,nr_inodes=100000")
    call, outcome = again(references.zygote, reference, box)
    broken += lawless(outcome, (0,))
    if outcome.code == 0:
        broken += differences(run, reference.results)
    hold(call, outcome, broken, box)


def test_a_reference_is_stable(references: References, box: Box) -> None:
    """Two uninterrupted runs have the same bits: otherwise no comparison here would mean anything."""
    call, outcome = again(references.zygote, references["folder"], box)
    hold(
        call,
        outcome,
        lawless(outcome, (0,)) + differences(box.path / "run", references["folder"].results),
        box,
    )
