"""A resolution and options belong to the network that a recipe names, not to one that replaces it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import yaml

from noisystudent import recipes
from noisystudent.config import Config
from noisystudent.errors import InputError

RAW: dict[str, Any] = {
    "data": {"resolution": 64},
    "teacher": {
        "model": {"name": "resnet18", "resolution": 96, "options": {"global_pool": "max"}},
        "train": {"steps": 1},
    },
    "student": {"model": {"name": "resnet26", "resolution": 112}},
    "students": [{}, {"model": {"name": "resnet34", "resolution": 128}}],
}


def resolutions(config: Config) -> list[int | None]:
    return [learner.model.resolution for learner in (config.teacher, *config.students)]


def test_the_small_network_of_a_newcomer_has_small_images_throughout() -> None:
    fields = [("data.resolution", 64), ("student.model.name", "resnet8_64")]
    config = recipes.load("folder", fields)
    assert {student.model.name for student in config.students} == {"resnet8_64"}
    assert {student.model.resolution or config.data.resolution for student in config.students} == {64}


@pytest.mark.parametrize(
    "fields, expected",
    [
        ([], [96, 112, 128]),
        ([("data.resolution", 32)], [96, 112, 128]),
        ([("student.model.name", "resnet50")], [96, None, None]),
        ([("student.model.name", "resnet34")], [96, None, 128]),
        ([("student", {"model": {"name": "resnet50"}})], [96, None, None]),
        ([("students.1.model.name", "resnet50")], [96, 112, None]),
        ([("teacher.model.name", "resnet50")], [None, 112, 128]),
        ([("students", 3), ("student.model.name", "resnet50")], [96, None, None, None]),
        ([("students", 3)], [96, 112, 112, 112]),
        ([("student.model.name", "resnet50"), ("student.model.resolution", 80)], [96, 80, 80]),
        ([("student.model.name", "resnet50"), ("students.0.model.resolution", 80)], [96, 80, None]),
        ([("student.model.name", "resnet50"), ("student.model.name", "resnet34")], [96, None, 128]),
    ],
)
def test_a_resolution_is_of_a_network(fields: list[tuple[str, Any]], expected: list[int | None]) -> None:
    assert resolutions(recipes.resolve(RAW, fields)) == expected


def test_the_order_of_flags_has_no_effect() -> None:
    fields = [
        ("student.model.name", "resnet50"), ("student.model.resolution", 80), ("data.resolution", 32),
        ("teacher.model.name", "resnet10t"), ("teacher.model.options", {"act_layer": "silu"}),
    ]  # fmt: skip
    configs = [recipes.resolve(RAW, order) for order in itertools.permutations(fields)]
    assert all(config == configs[0] for config in configs)
    assert resolutions(configs[0]) == [None, 80, 80]
    assert configs[0].teacher.model.options == {"act_layer": "silu"}


def test_an_inherited_resolution_is_of_a_network() -> None:
    inherits: dict[str, Any] = {**RAW, "student": {}, "students": [{}, {"model": {"resolution": 128}}]}
    assert resolutions(recipes.resolve(inherits)) == [96, 96, 128]
    assert resolutions(recipes.resolve(inherits, [("student.model.name", "resnet50")])) == [96, None, None]
    assert resolutions(recipes.resolve(inherits, [("teacher.model.name", "resnet50")])) == [None] * 3


def test_options_are_of_a_network() -> None:
    config = recipes.resolve(RAW, [("teacher.model.name", "resnet50")])
    assert config.teacher.model.options == {}
    assert recipes.resolve(RAW).teacher.model.options == {"global_pool": "max"}


def test_a_recipe_is_not_changed_by_its_overrides() -> None:
    before = repr(RAW)
    recipes.resolve(RAW, [("student.model.name", "resnet50"), ("teacher.model.resolution", 32)])
    assert repr(RAW) == before


def test_a_written_configuration_is_overridden_like_its_recipe() -> None:
    """So flags that are given again when a run is resumed change nothing."""
    fields = [("student.model.name", "resnet50"), ("student.model.resolution", 80)]
    config = recipes.resolve(RAW, fields)
    written = yaml.safe_load(recipes.dump(config))
    for again in (fields, fields[:1], fields[1:], []):
        assert recipes.resolve(written, again) == config


@pytest.mark.parametrize(
    "given, students, expected",
    [
        ([0.3, 0.5, 1.0], 2, [0.3, 0.5]),
        ([0.3, 0.5, 1.0], 5, [0.3, 0.5, 1.0, 1.0, 1.0]),
        ([0.3, None], 3, [0.3, None, None]),
        (0.4, 2, [0.4, 0.4]),
    ],
)
def test_a_list_has_one_top_fraction_for_each_student(
    given: object, students: int, expected: list[float | None]
) -> None:
    raw = {**RAW, "students": students, "student": {"selection": {"top_fraction": given}}}
    config = recipes.resolve(raw)
    assert [student.selection.top_fraction for student in config.students] == expected
    assert recipes.resolve(yaml.safe_load(recipes.dump(config))) == config
    plain = {**raw, "student": {}}
    assert recipes.resolve(plain, [("student.selection.top_fraction", given)]) == config
    own = recipes.resolve(raw, [("students.1.selection.top_fraction", 0.9)])
    assert [student.selection.top_fraction for student in own.students] == [expected[0], 0.9, *expected[2:]]


@pytest.mark.parametrize(
    "given, reason", [([], "must be a number"), ([0.3, 2], "at most 1"), (["a"], "must be")]
)
def test_a_wrong_list_of_top_fractions_is_one_line(given: object, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        recipes.resolve(RAW, [("student.selection.top_fraction", given)])


@pytest.mark.parametrize("field", [[], [("student.train.steps", 3)]])
def test_a_number_of_students_keeps_those_of_a_list(field: list[tuple[str, Any]]) -> None:
    """As in the config.yaml of a run, which has no `student`. The order of the fields has no effect."""
    recorded = yaml.safe_load(recipes.dump(recipes.resolve(RAW)))
    first, last = recipes.resolve(recorded, field).students
    assert first != last
    for number, kept in enumerate([(), (first,), (first, last), (first, last, last)]):
        for fields in ([*field, ("students", number)], [("students", number), *field]):
            assert recipes.resolve(recorded, fields).students == kept


def test_a_list_without_students_has_no_settings_for_one() -> None:
    recorded = yaml.safe_load(recipes.dump(recipes.resolve(RAW, [("students", 0)])))
    assert recipes.resolve(recorded, [("students", 0)]).students == ()
    assert len(recipes.resolve(recorded, [("students", [{}])]).students) == 1
    with pytest.raises(InputError, match="students is 2, and there is no student whose settings"):
        recipes.resolve(recorded, [("students", 2)])
