"""Short names of flags: each gives the configuration of its long form."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Capture, output, refused, table

from noisystudent.cli.aliases import ALIASES, CONFIGURED, expand
from noisystudent.cli.fields import NO_IMAGES, NO_LOOP, configure, take_fields
from noisystudent.config import Config
from noisystudent.config.run import input_side, learners

VALUES = {"--imgsz": "64", "--batch": "48", "--epochs": "7", "--model": "resnet18"}


def config(*words: str) -> Config:
    fields, rest = take_fields(expand(["run", *words]))
    assert rest == ["run"]
    return configure("folder", NO_LOOP, NO_IMAGES, fields)[0]


@pytest.mark.parametrize("short", VALUES)
def test_a_short_name_is_its_long_form(short: str) -> None:
    value = VALUES[short]
    long = config(*(word for flag in ALIASES[short] for word in (flag, value)))
    assert config(short, value) == config(f"{short}={value}") == long != config()


def test_short_names_set_teacher_and_students() -> None:
    every = config(*(word for pair in VALUES.items() for word in pair))
    for learner in learners(every).values():
        assert input_side(every, learner) == 64
        assert (learner.model.name, learner.train.batch_size) == ("resnet18", 48)
        assert (learner.train.epochs, learner.train.steps) == (7, None)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(["short", "long"]), short=st.integers(1, 99), long=st.integers(1, 99))
def test_the_later_of_two_flags_for_one_field_wins(order: list[str], short: int, long: int) -> None:
    words = {"short": ["--batch", str(short)], "long": ["--student.train.batch_size", str(long)]}
    found = config(*words[order[0]], *words[order[1]])
    last = long if order[-1] == "long" else short
    assert {student.train.batch_size for student in found.students} == {last}
    assert found.teacher.train.batch_size == short


def test_o_is_out_and_values_are_left_as_they_are() -> None:
    assert expand(["predict", "run", "-o", "a.csv"]) == ["predict", "run", "--out", "a.csv"]
    words = ["export", "run", "--model", "x", "--out=-o"]
    assert expand(words) == words, "only commands with fields have the other short names"


def test_help_and_fields_name_them(capsys: Capture) -> None:
    for command in CONFIGURED:
        text = " ".join(output(capsys, command, "--help").split())
        assert all(f"{short} for {', '.join(flags)}" in text for short, flags in ALIASES.items()), command
    assert "-o for --out" in output(capsys, "export", "--help")
    assert "Short name" not in output(capsys, "report", "--help")
    rows = table(output(capsys, "fields"))
    shown: dict[str, Any] = {
        flag[2:]: short for short, flags in ALIASES.items() for flag in flags if "." in flag
    }
    assert shown == {
        name: row.rpartition("Short: ")[2].rstrip(".") for name, row in rows.items() if "Short: " in row
    }


def test_a_short_name_without_a_value_or_of_another_command_is_one_line(capsys: Capture) -> None:
    assert "--batch needs a value: --batch VALUE" in refused(capsys, 2, "plan", "--batch")
    assert "--imgsz" in refused(capsys, 2, "report", "run", "--imgsz", "8")
    assert "teacher.train.epochs is 'many'" in refused(capsys, 2, "plan", "--epochs", "many")
