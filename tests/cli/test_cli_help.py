"""What the command line prints about itself: help, recipes, fields, tracebacks."""

from __future__ import annotations

import typing
from collections.abc import Iterator

import pytest
from tiny import Capture, output, table

from noisystudent.cli import COMMANDS, main
from noisystudent.config import Config, StudentConfig
from noisystudent.recipes import field_help


def test_recipes_lists_and_prints(capsys: Capture) -> None:
    rows = table(output(capsys, "recipes"))
    assert {"demo", "folder", "imagenet-l2", "svhn", "cifar10-4000", "cifar10-cpu"} <= rows.keys()
    assert "name: demo" in output(capsys, "recipes", "demo").splitlines()


def test_fields_lists_every_field_with_its_meaning(capsys: Capture) -> None:
    rows = table(output(capsys, "fields"))
    assert len(rows) == len(field_help()) > 60
    assert rows["student.selection.threshold"].startswith("0.3 Smallest confidence that is kept")
    unexplained = [name for name, _, meaning in field_help() if not meaning]
    assert unexplained == []
    assert {"seed", "device", "name", "control"} <= rows.keys()
    assert all(hasattr(Config(), name.split(".")[0]) for name in rows if not name.startswith("student."))


def choices(hint: object) -> Iterator[str]:
    """The values of the `Literal` in a type hint."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        yield from map(str, inner)
        return
    for one in inner:
        yield from choices(one)


def test_the_meaning_of_a_field_names_all_its_choices() -> None:
    lost: dict[tuple[str, str], str] = {}
    for name, _, meaning in field_help():
        *sections, field = name.split(".")
        owner: object = Config()
        for section in sections:
            owner = StudentConfig() if section == "student" else getattr(owner, section, None)
        if owner is not None:  # sections that are not there by default have the fields of others
            hint = typing.get_type_hints(type(owner))[field]
            lost |= {(name, choice): meaning for choice in choices(hint) if choice not in meaning}
    assert lost == {}


def test_help_names_every_command_and_fields_are_flags(capsys: Capture) -> None:
    text = output(capsys, "--help")
    names = [command.__name__ for command in COMMANDS]
    assert len(names) == 19
    for name in names:
        assert f"│ {name} " in text
        own = output(capsys, name, "--help")
        assert own.startswith(f"Usage: noisystudent {name}")
    assert "--labeled" in output(capsys, "run", "--help")
    assert output(capsys, "--version").strip().count(".") == 2


def test_every_top_level_field_is_a_flag_of_run(capsys: Capture) -> None:
    text = output(capsys, "run", "--help")
    for name, _, _ in field_help():
        if "." not in name:
            assert f"--{name.replace('_', '-')}" in text


def test_debug_shows_where(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["status", "/no/run", "--debug"])
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert "Traceback" in text and text.splitlines()[-1].startswith("noisystudent: /no/run")
