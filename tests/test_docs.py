"""The pages: their commands are parsed by the command line, and their error lines are those of the code."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import draw
import generated
import pytest
from tiny import Capture, output

from noisystudent import recipes
from noisystudent.cli import COMMANDS, app, screen
from noisystudent.cli.aliases import expand
from noisystudent.cli.fields import student_section, take_fields

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = {command.__name__ for command in COMMANDS}
CHEAP = {"recipes", "fields", "--help", "--version"}


def code(text: str) -> Iterator[str]:
    """Every line of code and every span of code in a page."""
    fenced = False
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()
        else:
            yield from re.findall(r"`([^`]+)`", line)


def commands(path: Path) -> set[str]:
    """What follows `noisystudent` in the code of a page."""
    found = set()
    for line in code(path.read_text(encoding="utf-8")):
        match = re.match(r"(?:.*\| |torchrun .* -m )?noisystudent (.+)", line)
        if match and not re.match(r"[A-Z]+\b|$", match[1]):  # `noisystudent COMMAND`
            found.add(match[1])
    return found


def arguments(command: str) -> list[str]:
    """The arguments of a command without `…`, except where it is the value of a flag."""
    tokens = shlex.split(command, comments=True)
    return [
        token
        for before, token in zip(["", *tokens], tokens, strict=False)
        if token != "…" or before[:2] == "--"
    ]


def parse(tokens: list[str]) -> None:
    """Parse a command as `noisystudent.cli` does, and check the values of its configuration fields."""
    tokens = [token for token in tokens if token not in ("--debug", "--offline")]
    fields, rest = take_fields(expand(tokens))
    rest = [screen.STANDARD_INPUT if token == "-" else token for token in rest]
    command, bound, unparsed = app.parse_args(rest, exit_on_error=False, print_error=False)
    if not fields:
        return
    assert "fields" in unparsed
    sections = {"label": "pseudo_label", "select": "selection", "embed": "augment"}
    if command.__name__ in sections:
        student_section(sections[command.__name__], fields)
    else:
        named = next(iter(bound.args), None)
        recipes.load(named if named in recipes.names() else "folder", fields)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_command_of_a_page_is_one_of_the_command_line(path: Path, capsys: Capture) -> None:
    for command in sorted(commands(path)):
        tokens = arguments(command)
        if CHEAP & set(tokens[:2]):
            assert output(capsys, *tokens), command
        elif len(tokens) == 1:
            assert tokens[0] in NAMES | {"--install-completion"}, command
        else:
            parse(tokens)


def test_the_pages_name_every_command() -> None:
    named = {command.split()[0] for path in PAGES for command in commands(path)}
    assert named >= NAMES - {"demo"} and "make demo" in (ROOT / "README.md").read_text(encoding="utf-8")


def literals() -> str:
    """Every text in the code of the package, with `…` for what is filled in."""
    found = []
    for path in sorted((ROOT / "noisystudent").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_the_error_lines_of_the_page_are_those_of_the_code() -> None:
    text = literals()
    lines = re.findall(
        r"^    (.+)$", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert len(lines) > 30
    lost = {piece for line in lines for piece in line.split("…") if piece.strip() and piece not in text}
    assert lost == set()


def test_figures_show_the_numbers_of_the_tables() -> None:
    """`python docs/figures/draw.py` writes them again."""
    assert {path.name for path in draw.FOLDER.glob("*.svg")} == {path.name for path in draw.files()}
    for path, content in draw.files().items():
        assert path.read_text(encoding="utf-8") == content, path.name


def test_every_figure_of_a_recipe_is_in_a_table() -> None:
    assert generated.MEASURED.keys() | generated.NOTES.keys() <= {*recipes.names(), *recipes.matrices()}
    text = generated.all_recipes()
    assert "| noisy student | 3 | 58.5 |" in text and "| digits, 50 labels" in text
    with pytest.raises(ValueError, match="no row starts with"):
        generated.excerpt("README.md", "Measured", "no such row")


def prose(text: str) -> str:
    """A page without its code, its links and the names in it."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)


AMERICAN = re.compile(r"\b(?:un)?label(?:ed|ing|er)s?\b")  # titles of papers have a capital


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda path: path.stem)
def test_prose_has_one_spelling_of_labelled(path: Path) -> None:
    """The names of flags and fields have the other one."""
    assert AMERICAN.findall(prose(path.read_text(encoding="utf-8"))) == []


def test_help_texts_have_one_spelling_of_labelled() -> None:
    texts = [meaning for _, _, meaning in recipes.field_help()]
    texts += [inspect.getdoc(command) or "" for command in COMMANDS]
    for text in texts:
        words = re.sub(r"`[^`]*`|--[\w.-]+|\w+\.\w+|^\w+$", "", text, flags=re.MULTILINE)
        assert AMERICAN.findall(words) == [], text
