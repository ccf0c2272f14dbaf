"""The command line, with one function for each command: it parses, calls the package and prints."""

from __future__ import annotations

import errno
import io
import itertools
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from cyclopts import App, CycloptsError

from noisystudent.cli import aliases, loop, parts, screen
from noisystudent.cli.ablate import ablate
from noisystudent.cli.doctor import doctor
from noisystudent.cli.fields import take_fields
from noisystudent.distributed import is_main_process
from noisystudent.errors import (
    EndedElsewhere,
    InputError,
    NoisyStudentError,
    RunError,
    brief,
    first_line,
    is_utf8,
    printable,
)
from noisystudent.run import launch

__all__ = ["main"]


class _App(App):
    """An app whose completion in bash offers files where it knows no names: images may be files or URLs."""

    def generate_completion(self, *, prog_name: str | None = None, shell: Any = None) -> str:
        script: str = super().generate_completion(prog_name=prog_name, shell=shell)
        return script.replace("\ncomplete -F ", "\ncomplete -o default -F ")


app = _App(
    name="noisystudent",
    help="Noisy Student self-training: train an image classifier on labelled and unlabelled images, and test "
    "whether the unlabelled images made it better.",
    version_flags=["--version"],
    help_format="plaintext",
    help_epilogue="Every configuration field is a flag of run, demo, train, plan, check and ablate, such as "
    "--teacher.train.epochs 30. The most common ones have short names: --imgsz, --batch, --epochs, --model. "
    "-o is --out. label takes --pseudo_label.FIELD, select --selection.FIELD, and embed --augment.FIELD. "
    "`noisystudent fields` lists the fields, and `noisystudent recipes` lists the recipes. With "
    "--offline, or HF_HUB_OFFLINE=1, nothing is downloaded. With --debug, errors have a traceback.",
)
COMMANDS: tuple[Callable[..., None], ...] = (*loop.COMMANDS, ablate, *parts.COMMANDS, doctor)
for place, command in enumerate(COMMANDS):  # the help lists the commands in this order, not by name
    app.command(command, sort_key=place, help_epilogue=aliases.help_text(command))
app.register_install_completion_command(
    help="Let the Tab key complete commands, flags and files, in bash, zsh, fish or powershell."
)
_NARROWEST = 20  # columns of a terminal
_OUT_OF_MEMORY = (
    "can't allocate memory",  # torch on a CPU
    "out of memory",  # torch on a GPU
    "Unable to instantiate PyTypeObject",  # torch: a type of the autograd graph
    "without setting an exception",  # Python: a library has lost its MemoryError
    "without exception set",
    "could not create a primitive",  # oneDNN
    "can't start new thread",  # Python: there is no memory for the stack
    "Failed to launch worker thread",  # Arrow
)


def main(tokens: Sequence[str] | None = None) -> None:
    """Run one command.

    Exit codes: 0 if it succeeded, 2 for a wrong call, 1 for a failed run, 75 if a signal stopped it, and 130
    if it was interrupted.

    Args:
        tokens: arguments. None: those of the process.
    """
    tokens = list(sys.argv[1:] if tokens is None else tokens)
    # These may stand anywhere, so they are taken out before the command parses its own flags.
    debug, offline = "--debug" in tokens, "--offline" in tokens
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # also for the processes of `ablate`
    try:
        _open_streams()
        try:
            _run([token for token in tokens if token not in ("--debug", "--offline")])
        finally:
            _flush()  # an error of standard output is named before what follows from it
    except NoisyStudentError as error:
        silent = isinstance(error, EndedElsewhere) or launch.is_ended_by_launcher(error)
        _fail(str(error), error.exit_code, debug, silent=silent)
    except CycloptsError as error:
        _fail(str(error), InputError.exit_code, debug)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to resume", 130, debug)
    except BrokenPipeError:
        _fail_broken_pipe(debug)
    except SystemExit as error:  # rich and the help text of cyclopts end so, without a line
        if isinstance(error.__context__, BrokenPipeError):
            _fail_broken_pipe(debug)
        raise
    except Exception as error:
        _fail(_unexpected(error), 1, debug)


def _run(tokens: list[str]) -> None:
    """Parse the arguments, call the command, and pass the configuration fields if it has this parameter."""
    _check_values(tokens)
    fields, rest = take_fields(aliases.expand(tokens))
    if rest[:1] == ["predict"]:  # cyclopts takes - for an option
        rest = [screen.STANDARD_INPUT if token == "-" else token for token in rest]
    command, bound, unparsed = app.parse_args(rest, exit_on_error=False, print_error=False)
    if "fields" in unparsed:  # a parameter of type `Fields`, which cyclopts does not parse
        command(*bound.args, **bound.kwargs, fields=fields)
    elif fields:
        name, _ = fields[0]
        raise InputError(f"--{name}: {' '.join(rest[:1])} takes no configuration fields")
    else:
        command(*bound.args, **bound.kwargs)


def _check_values(tokens: list[str]) -> None:
    """Refuse values that are not UTF-8, and empty ones.

    An empty value comes from an empty shell variable, and as a path it would be the current folder.

    Raises:
        InputError: a value is empty or not UTF-8.
    """
    for before, token in itertools.pairwise(["", *tokens]):
        if not token:
            raise InputError(f"the value after {before or 'noisystudent'!r} is empty; give a name there")
        if not is_utf8(token):
            raise InputError(f"{token!r} is not UTF-8; rename the file, or write the name in UTF-8")
        if token.startswith("--") and token.endswith("="):
            raise InputError(f"{token[:-1]} is empty; give {token[:-1]} VALUE")


def _open_streams() -> None:
    """Make standard output and error usable for any text.

    Raises:
        InputError: standard output is closed. Results would be lost, or go into a file that is opened later.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: otherwise the next file that is opened has this number, and is written to
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
    if sys.stdout is None:
        raise InputError("standard output is closed; redirect it, for example with > /dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal of another encoding shows escapes for what it cannot show, as on standard error.
        sys.stdout.reconfigure(errors="backslashreplace")
    columns = shutil.get_terminal_size().columns
    if "COLUMNS" in os.environ or columns < _NARROWEST:  # rich breaks text to lines of 0 columns without end
        os.environ["COLUMNS"] = str(max(columns, _NARROWEST))


def _flush() -> None:
    """Write out all of standard output.

    Raises:
        BrokenPipeError: the program that reads it has ended.
        RunError: it cannot be written.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_output()
        raise RunError(f"standard output cannot be written: {error.strerror}") from error


def _discard_output() -> None:
    """Let Python write the rest of standard output to nowhere when it ends; it would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail_broken_pipe(debug: bool) -> NoReturn:
    _discard_output()
    _fail("standard output was closed by the program that reads it (broken pipe)", RunError.exit_code, debug)


def _unexpected(error: Exception) -> str:
    """Line for an error that no code has foreseen."""
    if _is_out_of_memory(error):
        reason = "" if isinstance(error, MemoryError) else f" ({first_line(error)})"
        return f"there is not enough memory{reason}; free some, or give fewer data.workers or smaller batches"
    if isinstance(error, ImportError):  # also where memory is too short to load a library
        return f"a library cannot be loaded: {error}; free memory, or install it again"
    if isinstance(error, OSError) and error.errno is not None:  # of a path, or of standard output
        return f"{error.filename or 'a file, or standard output,'} cannot be used: {error.strerror}"
    return f"{type(error).__name__}: {error} (--debug shows where)"  # a bug


def _is_out_of_memory(error: Exception) -> bool:
    """Return True if memory was too short: libraries have many errors for it."""
    known = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    return known or any(text in str(error) for text in _OUT_OF_MEMORY)


def _fail(message: str, code: int, debug: bool, *, silent: bool = False) -> NoReturn:
    """Print an error in one line, unless another process has printed it, and exit."""
    if debug:
        traceback.print_exc()
    # A wrong call is wrong in all processes, and a signal goes to all of them.
    line = f"noisystudent: {brief(printable(' '.join(message.split())))}"
    if not silent and (code == RunError.exit_code or is_main_process()) and not launch.is_repeated(line):
        print(line, file=sys.stderr)
    sys.exit(code)
