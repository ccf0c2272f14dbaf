"""A training that diverges stops with its step, its rate and what to change; only finite weights stay."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from tiny_training import Training, broken_average
from torch import nn

from noisystudent.console import Progress
from noisystudent.errors import RunError
from noisystudent.run.rundir import ModelDir
from noisystudent.train import checkpoint

Make = Callable[..., Training]

ADVICE = r"in steps \d+ to \d+, at a learning rate of .*; decrease train\.lr .*train\.clip_norm"


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop_tf", "adamw"])
@pytest.mark.parametrize("lr", [1e2, 1e4, 1e9, 1e20, 1e36, 1e45, 1e300])
def test_any_learning_rate_ends_with_finite_weights_or_with_one_line(
    training: Make, lr: float, optimizer: str
) -> None:
    # As a function of the step, because the configuration refuses rates above 1e6.
    run = training(changes={"lr": lambda _step: lr}, optimizer=optimizer, total_steps=9)
    try:
        averaged = run.run()
    except RunError as error:
        assert re.search(ADVICE, str(error))
    else:
        assert all(tensor.isfinite().all() for tensor in averaged.state_dict().values())


def test_weights_that_overflow_in_the_last_step_are_not_returned(training: Make) -> None:
    """The loss of a step is computed before its update, so it is finite here."""
    with pytest.raises(RunError, match=rf"the norm of the weights became (inf|nan) {ADVICE}"):
        training(changes={"lr": lambda _step: 1e45}, total_steps=1).run()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["conv.weight", "norm.running_var"])
def test_an_average_that_is_not_finite_is_neither_saved_nor_returned(
    training: Make, name: str, value: float
) -> None:
    changes = {"evaluate": broken_average(name, value)}
    run = training(changes=changes, eval_steps=6, checkpoint_steps=7, log_steps=20)
    with pytest.raises(RunError, match=rf"the norm of the moving average of the weights became .* {ADVICE}"):
        run.run()
    assert checkpoint.newest(ModelDir(run.folder).checkpoints, Progress()) is None


def test_an_evaluation_that_fails_names_its_step(training: Make) -> None:
    def fail(_averaged: nn.Module) -> dict[str, float]:
        raise RunError("the output is not finite")

    changes: dict[str, Any] = {"evaluate": fail}
    with pytest.raises(RunError, match="the evaluation after step 6 failed: the output is not finite"):
        training(changes=changes, eval_steps=6).run()
