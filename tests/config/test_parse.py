"""YAML from anybody is read in bounded time and memory, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny import Capture, refused

from noisystudent.config.parse import parse
from noisystudent.errors import InputError


def aliases(last: str) -> str:
    """Seven lists, each with nine aliases of the one before it: `*{last}` stands for 9^8 values."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefg", "bcdefgh", strict=True)]
    return "\n".join([*lines, f"teacher: *{last}"])


BAD: dict[str, tuple[bytes, str]] = {
    "binary": (bytes(range(256)), "is not text in UTF-8; save it as UTF-8"),
    "utf-16": ("teacher: {}".encode("utf-16"), "is not text in UTF-8; save it as UTF-8"),
    "latin-1": ("name: café".encode("latin-1"), "is not text in UTF-8; save it as UTF-8"),
    "refers to itself": (b"teacher: &a {train: *a}", "refers to itself with *a; write the values out"),
    "list in itself": (b"students: &a [*a]", "refers to itself with *a; write the values out"),
    "deep lists": (b"teacher: " + b"[" * 1000 + b"]" * 1000, "nesting"),
    "deep mappings": (
        b"teacher: " + b"{a: " * 1000 + b"1" + b"}" * 1000,
        "has more than 30 levels of nesting; a configuration has 5",
    ),
    "aliases of aliases": (aliases("h").encode(), "has more than 100,000 values, its aliases included"),
    "tag": (b"name: !!binary aGk=", "has the tag 'tag:yaml.org,2002:binary'"),
    "code": (b"name: !!python/name:os.system", "has the tag 'tag:yaml.org,2002:python/name:os.system'"),
    "date": (b"seed: 2001-13-45", "seed is '2001-13-45'; it must be a whole number"),
    "digits": (b"seed: " + b"9" * 5000, "it must be a whole number"),
    "sexagesimal": (b"seed: 1" + b":59" * 100_000, "it must be a whole number"),
    "large": (b"# " + b"x" * 600_000, "is larger than 500,000 bytes"),
    "zero byte": (b'name: "a\\0b"', "has the text 'a\\x00b', which no file or name can have"),
    "students": (b"students: 1000000000", "of at most 100 students"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_recipe_from_anybody_is_one_line(name: str, tmp_path: Path, capsys: Capture) -> None:
    content, expected = BAD[name]
    recipe = tmp_path / "mine.yaml"
    recipe.write_bytes(content)
    line = refused(capsys, 2, "plan", recipe, "--labeled", tmp_path)
    assert expected in line and "mine.yaml" in line and len(line) < 2000


@pytest.mark.parametrize("name", ["refers to itself", "aliases of aliases", "deep mappings"])
def test_a_flag_from_anybody_is_one_line(name: str, capsys: Capture) -> None:
    value = f"{{{BAD[name][0].decode()}}}".replace("\n", ", ")
    line = refused(capsys, 2, "plan", "--teacher.model.options", value)
    assert "--teacher.model.options" in line or "model.options" in line
    assert len(line) < 2000


def test_an_alias_stands_for_its_value() -> None:
    assert parse("a: &a [1, 2]\nb: *a\nc: {<<: &d {e: 3}}", "x") == {"a": [1, 2], "b": [1, 2], "c": {"e": 3}}


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(plain)
def test_what_yaml_writes_is_read_as_it_was(value: object) -> None:
    text = yaml.safe_dump(value)
    try:
        assert parse(text, "x") == value
    except InputError as error:  # the only text that is refused
        assert "\\0" in text and "has the text" in str(error)
