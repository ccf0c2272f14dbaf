"""The command line: one command a stage, which parses, calls and prints, and holds no logic."""

from __future__ import annotations

import itertools
import sys
import traceback
from collections.abc import Callable, Sequence

from cyclopts import App, CycloptsError

from noisystudent.cli import loop, parts
from noisystudent.cli.ablate import ablate
from noisystudent.cli.fields import take_fields
from noisystudent.errors import InputError, NoisyStudentError

__all__ = ["main"]

app = App(
    name="noisystudent",
    help="Labelled images and a pile of unlabelled ones in; a better classifier, and the proof of it, out.",
    version_flags=["--version"],
    help_format="plaintext",
    help_epilogue="Fields of the configuration are flags of all that trains: --teacher.train.epochs 30; "
    "label takes --pseudo_label.FIELD, select --selection.FIELD. `noisystudent fields` lists them, "
    "`noisystudent recipes` the recipes. --debug shows tracebacks.",
)
COMMANDS: tuple[Callable[..., None], ...] = (*loop.COMMANDS, ablate, *parts.COMMANDS)
for place, command in enumerate(COMMANDS):
    app.command(command, sort_key=place)


def main(tokens: Sequence[str] | None = None) -> None:
    """Run one command; exit 0: done, 2: a wrong call, 1: a failed run, 75: stopped by a signal."""
    given = list(sys.argv[1:] if tokens is None else tokens)
    debug = "--debug" in given
    try:
        _run([token for token in given if token != "--debug"])
    except NoisyStudentError as error:
        _fail(str(error), error.exit_code, debug)
    except CycloptsError as error:
        _fail(str(error), InputError.exit_code, debug)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to resume", 130, debug)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1, debug)


def _run(tokens: list[str]) -> None:
    _refuse_empty(tokens)
    fields, rest = take_fields(tokens)
    command, bound, handed = app.parse_args(rest, exit_on_error=False, print_error=False)
    if "fields" in handed:
        command(*bound.args, **bound.kwargs, fields=fields)
    elif fields:
        name, _ = fields[0]
        raise InputError(f"--{name}: {' '.join(rest[:1])} takes no fields of the configuration")
    else:
        command(*bound.args, **bound.kwargs)


def _refuse_empty(tokens: list[str]) -> None:
    """An empty path would mean the current folder; an empty variable of a shell script makes one."""
    for before, token in itertools.pairwise(["", *tokens]):
        if not token:
            raise InputError(f"an empty value stands after {before or 'noisystudent'!r}; give a name there")
        if token.startswith("--") and token.endswith("="):
            raise InputError(f"{token[:-1]} is empty; give {token[:-1]} VALUE")


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"noisystudent: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
