"""Who watches a training changes nothing in it, and lets a GPU wait once a second at most."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from test_fit import assert_same_tensors, lines
from tiny_training import Killed, Training, kill_at

Make = Callable[..., Training]


@pytest.mark.parametrize("kill", [None, 9])
def test_the_bar_changes_no_bit_of_weights_and_log(training: Make, kill: int | None, bar: None) -> None:
    shown: list[tuple[int, float]] = []

    def show(step: int, loss: float) -> None:
        shown.append((step, loss))

    blind, followed = training("blind"), training("followed", changes={"show": show})
    averaged = blind.run()
    if kill is not None:
        with pytest.raises(Killed):
            training("followed", changes={"show": show, "batches": kill_at(kill)}).run()
    assert_same_tensors(followed.run(), averaged)
    assert_same_tensors(followed.model, blind.model)
    assert lines(followed) == lines(blind)
    assert {step for step, _ in shown} == set(range(1, 25)), "at each step, because no second has to pass"
    losses = dict(shown)  # the last of a step is that of the log
    assert {line["step"]: line["loss"] for line in lines(blind)}.items() <= losses.items()


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is shown after every step."""
    monkeypatch.setattr("noisystudent.train.log._SHOWN_SECONDS", 0.0)


def test_the_loss_is_looked_at_once_a_second(training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, shown = iter(range(10**6)), list[int]()
    monkeypatch.setattr("noisystudent.train.log.time.perf_counter", lambda: next(seconds) / 10)
    training(log_steps=24, changes={"show": lambda step, _: shown.append(step)}).run()
    looks = next(seconds) / 10
    assert shown[0] == 1 and shown[-1] == 24
    assert 2 < len(shown) <= looks + 1
