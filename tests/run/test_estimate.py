from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisystudent.config import Config
from noisystudent.errors import InputError
from noisystudent.run import estimate
from noisystudent.run.estimate import RunPlan, StageEstimate

ESTIMATES = st.lists(
    st.builds(
        StageEstimate,
        stage=st.text("abc-123", min_size=1),
        steps=st.integers(0, 10**6),
        seconds=st.floats(0, 1e6),
        images_per_second=st.floats(0, 1e5),
        peak_bytes=st.integers(0, 2**40),
        disk_bytes=st.integers(0, 2**40),
    ),
    min_size=1,
)


@given(stages=ESTIMATES)
def test_the_whole_is_the_sum_of_the_stages(stages: list[StageEstimate]) -> None:
    whole = estimate.whole(stages)
    assert whole.seconds == pytest.approx(sum(one.seconds for one in stages))
    assert (whole.steps, whole.disk_bytes) == (
        sum(one.steps for one in stages),
        sum(one.disk_bytes for one in stages),
    )
    assert whole.peak_bytes == max(one.peak_bytes for one in stages)
    images = sum(one.seconds * one.images_per_second for one in stages)
    assert whole.seconds * whole.images_per_second == pytest.approx(images)
    content = json.loads(estimate.as_json(stages, Config()))
    assert [StageEstimate(**one) for one in content["stages"]] == stages
    assert StageEstimate(**content["whole"]) == whole


@given(stages=ESTIMATES, memory=st.integers(1, 2**40))
def test_a_run_is_refused_if_and_only_if_a_stage_does_not_fit(
    stages: list[StageEstimate], memory: int
) -> None:
    fields = {one.stage: f"{one.stage}.train.accumulate" for one in stages}
    fits = all(one.peak_bytes <= memory for one in stages)
    line = estimate.too_large(RunPlan(stages=tuple(stages), memory=memory, fields=fields))
    assert (line is None) == fits
    assert estimate.too_large(RunPlan(stages=tuple(stages), memory=None, fields=fields)) is None


@given(amount=st.integers(1, 10_000), unit=st.sampled_from([("m", 60), ("h", 3_600), ("d", 86_400)]))
def test_durations_are_read(amount: int, unit: tuple[str, int]) -> None:
    assert estimate.seconds_of(f"{amount}{unit[0]}", "--budget") == amount * unit[1]


@pytest.mark.parametrize("text", ["2", "h", "0h", "-2h", "2x", "2 hours", "", "1e3h", "infh"])
def test_other_durations_are_one_line(text: str) -> None:
    with pytest.raises(InputError, match="; give a number above 0 and a unit, such as 90m"):
        estimate.seconds_of(text, "--budget")


def test_a_row_of_the_whole_comes_last_unless_all_is_done() -> None:
    states = [("data", "done", "data"), ("teacher", "to do", "iteration-0/teacher")]
    stages = [StageEstimate(stage="teacher", steps=3, seconds=7200.0, images_per_second=9.6, disk_bytes=2048)]
    figures = ("2.0 h", "-", "2.0 KiB", "10")
    assert estimate.planned_rows(states, stages) == [
        (*states[0], "-", "-", "-", "-"),
        (*states[1], *figures),
        ("whole", "", "", *figures),
    ]
    assert [row[0] for row in estimate.planned_rows(states, [])] == ["data", "teacher"]
