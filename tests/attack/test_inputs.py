"""Whatever is given to the program, it answers with a result or with one line, in bounded time and memory."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import inputs_arrays
import inputs_calls
import inputs_images
import inputs_recipes
import inputs_tables
import inputs_tars
import pytest
from engine import COUNT, SEED, Box, Call, Outcome, hold, lawless, untouched
from inputs import Input
from reference import References
from totals import count

pytestmark = pytest.mark.slow

KINDS: dict[str, Callable[[], list[Input]]] = {
    "image": inputs_images.inputs,
    "tar": inputs_tars.inputs,
    "Parquet": inputs_tables.inputs,
    "npz": inputs_arrays.inputs,
    "recipe": inputs_recipes.inputs,
    "call": inputs_calls.inputs,
}


def cases() -> list[tuple[str, Input]]:
    """Return (kind, input) of COUNT inputs, or of all there are; drawn with SEED from all kinds."""
    every = [(kind, one) for kind, inputs in KINDS.items() for one in inputs()]
    random.Random(SEED).shuffle(every)
    return every[:COUNT]


CASES = cases()


def refusals(one: Input, outcome: Outcome, out: Path) -> list[str]:
    """Return which laws of this one input are broken."""
    broken = []
    if one.refused is True and outcome.code == 0:
        broken.append("it was used without a word, but it is wrong")
    if one.refused is False and outcome.code != 0:
        broken.append("it is right, but it was refused")
    if one.bad and outcome.code == 0:
        ledger = out / "ledger.csv"
        listed = ledger.read_text(errors="replace") if ledger.exists() else ""
        if one.bad not in listed + outcome.err:
            broken.append(f"{one.bad} cannot be read, but it is not named")
    return broken


@pytest.mark.parametrize("kind, one", CASES, ids=[f"{kind}-{one.name}" for kind, one in CASES])
def test_an_input_gives_a_result_or_one_line(
    request: pytest.FixtureRequest, references: References, box: Box, kind: str, one: Input
) -> None:
    reference = references["folder"]
    shutil.copytree(reference.run.parent / "user", box.user, dirs_exist_ok=True)
    shutil.copytree(reference.run, box.user / "run")
    one.make(box.user)
    out = box.path / "out"
    call = Call(one.filled(box.user, out), fault=one.fault)
    with untouched(box, *one.made) as changed:
        outcome = references.zygote.run(call, box)
    count(request, f"input: {kind}", 1, one.name)
    broken = lawless(outcome) + changed + refusals(one, outcome, out)
    hold(call, outcome, broken, box)
