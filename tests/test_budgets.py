"""What keeps the code small enough to read: lengths, docstrings, no machine's paths."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "noisystudent").rglob("*.py"))
EVERYTHING = [*PACKAGE, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]

FILE_LINES, FUNCTION_LINES = 500, 60
LOOPS = {"noisystudent/train/loop.py:fit": 80}
POSITIONAL = 5
PROSE = r"ask(ed|ing)|said|found|spoke|speaker|turn|lesson|teach|teaching|pen|voice|telling|told|showing"


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{name(path)}:{node.name}", (node.end_lineno or 0) - node.lineno + 1


def test_files_are_short() -> None:
    assert len(PACKAGE) > 60
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in EVERYTHING}
    assert {path: lines for path, lines in lengths.items() if lines > FILE_LINES} == {}


def test_functions_are_short() -> None:
    found = [one for path in EVERYTHING for one in functions(path)]
    long = {where: lines for where, lines in found if lines > LOOPS.get(where, FUNCTION_LINES)}
    assert long == {}


def test_functions_have_few_positional_parameters() -> None:
    """The severities of a corruption are rows of a published table, whose columns are these parameters.

    Kernels of Triton cannot have keyword-only parameters.
    """
    many = {}
    for path in PACKAGE:
        if path.parent.name in ("corruptions", "perturbations"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and "triton.jit" not in map(
                ast.unparse, node.decorator_list
            ):
                positional = [one.arg for one in (*node.args.posonlyargs, *node.args.args)]
                own = [one for one in positional if one not in ("self", "cls")]
                if len(own) > POSITIONAL:
                    many[f"{name(path)}:{node.name}"] = own
    assert many == {}


def bound_names(tree: ast.AST) -> Iterator[str]:
    """Names of everything that a module defines: variables, attributes, parameters, functions, classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_names_are_terms_of_the_field(path: Path) -> None:
    """Names that tell a story instead of naming what they hold."""
    names = {path.stem, *bound_names(ast.parse(path.read_text(encoding="utf-8")))}
    words = {word for one in names for word in re.sub("(?<=[a-z])(?=[A-Z])", "_", one).lower().split("_")}
    assert {word for word in words if re.fullmatch(PROSE, word)} == set()


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_a_module_opens_with_one_sentence(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text, "no docstring"
    first = " ".join(text.split("\n\n")[0].split())
    assert first.endswith((".", ":")), first
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", first)
    assert len(sentences) == 1, sentences


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_no_path_or_device_of_a_machine(path: Path) -> None:
    """Strings only: a path in a docstring's example is one too many as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.search(r"(?<![\w.<])/(home|root|work|tmp|mnt|data|usr|opt|Users)/", node.value)
            assert not re.fullmatch(r"cuda:\d+", node.value)
