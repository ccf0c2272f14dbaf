"""The command line: one command a stage; parses, calls, prints. No logic."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from noisystudent.errors import InputError, NoisyStudentError

if TYPE_CHECKING:
    from noisystudent.config import Config
    from noisystudent.console import Terminal
    from noisystudent.runtime import StopFlag

app = App(
    name="noisystudent",
    help="Labelled images and a pile of unlabelled ones in; a better classifier, and the proof of it, out.",
    version_flags=["--version"],
    help_epilogue="Any field of the configuration is a flag: --teacher.train.epochs 30. "
    "`noisystudent fields` lists them, `noisystudent recipes` lists the recipes.",
)
_overrides: list[tuple[str, Any]] = []

Folders = Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)]
Out = Annotated[
    Path | None, Parameter(help="Run directory; default runs/<recipe>. An existing one is gone on with.")
]
Seed = Annotated[int | None, Parameter(help="Everything random follows from it.")]


def main(tokens: Sequence[str] | None = None) -> None:
    """Run one command; exit 0 when done, 2 for a wrong call, 1 for a failed run, 75 when stopped by a signal."""
    given = list(sys.argv[1:] if tokens is None else tokens)
    debug = "--debug" in given
    try:
        rest = _take_overrides([token for token in given if token != "--debug"])
        app(rest, exit_on_error=False, print_error=False, result_action="return_value")
    except NoisyStudentError as error:
        _fail(str(error), error.exit_code, debug)
    except CycloptsError as error:
        _fail(" ".join(str(error).split()), InputError.exit_code, debug)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to resume", 130, debug)
    except Exception as error:
        _fail(f"{type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)", 1, debug)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"noisystudent: {message}", file=sys.stderr)
    sys.exit(code)


def _take_overrides(tokens: list[str]) -> list[str]:
    """Set aside `--section.field value` pairs; what is left is for the command itself."""
    _overrides.clear()
    rest: list[str] = []
    queue = iter(tokens)
    for token in queue:
        name, equals, value = token.partition("=")
        if not (name.startswith("--") and "." in name):
            rest.append(token)
            continue
        if not equals:
            value = next(queue, "")
        if not value:
            raise InputError(f"{name} needs a value: {name} VALUE")
        try:
            _overrides.append((name[2:].replace("-", "_"), yaml.safe_load(value)))
        except yaml.YAMLError as error:
            raise InputError(f"{name} {value!r} is not valid YAML") from error
    return rest


@app.command
def run(
    recipe: str = "folder",
    /,
    *,
    labeled: Folders = (),
    unlabeled: Folders = (),
    val: Folders = (),
    test: Folders = (),
    out: Out = None,
    seed: Seed = None,
    students: int | None = None,
) -> None:
    """Teacher, pseudo-labels, selection, students, control, verdict, report. Run it again to go on or to redo what changed.

    Parameters
    ----------
    recipe
        A recipe's name or a YAML file.
    labeled
        Labelled images: <class>/<image> folders, tar shards, Parquet, .npz.
    unlabeled
        The pool: any nested folders, tar shards, Parquet, .npz.
    val
        Labelled images for choices; split off the labels when not given.
    test
        Labelled images for the verdict.
    students
        How many students, one after the other.
    """
    config, folder = _configure(recipe, labeled, unlabeled, val, test, out, seed, students)
    from noisystudent.data.sources import open_sources

    _run(config, open_sources(config.data), folder)


@app.command
def demo(*, out: Out = None, seed: Seed = None) -> None:
    """The whole loop on scikit-learn's digits, ten labels a class, in minutes on two CPU cores."""
    from noisystudent.demo import digits

    config, folder = _configure("demo", (), (), (), (), out, seed, None)
    _run(config, digits(config.seed), folder)


@app.command
def plan(
    recipe: str = "folder",
    /,
    *,
    labeled: Folders = (),
    unlabeled: Folders = (),
    val: Folders = (),
    test: Folders = (),
    out: Out = None,
    seed: Seed = None,
    students: int | None = None,
) -> None:
    """What `run` with the same arguments would do, stage by stage, and why."""
    from noisystudent import self_training
    from noisystudent.data.sources import open_sources

    config, folder = _configure(recipe, labeled, unlabeled, val, test, out, seed, students)
    graph = self_training.plan(config, open_sources(config.data), folder)
    _table(("stage", "state", "where"), self_training.states(graph, folder))


@app.command
def status(run: Path, /) -> None:
    """Where a run stands."""
    from noisystudent import self_training

    _table(("stage", "state", "seconds", "finished"), self_training.recorded(run))


@app.command
def check(
    *,
    labeled: Folders,
    unlabeled: Folders = (),
    val: Folders = (),
    test: Folders = (),
    out: Path = Path("runs/check"),
) -> None:
    """Audit the images: unreadable files, duplicates, leaks into val or test, class counts. Trains nothing."""
    from noisystudent import self_training
    from noisystudent.data.sources import open_sources

    config, _ = _configure("folder", labeled, unlabeled, val, test, out, None, None)
    with _voice(None) as (voice, stop):
        for line in self_training.audit(config, open_sources(config.data), out, stop=stop, voice=voice):
            voice.say(line)


@app.command
def train(
    recipe: str = "folder",
    /,
    *,
    labeled: Folders,
    val: Folders = (),
    test: Folders = (),
    out: Out = None,
    seed: Seed = None,
) -> None:
    """Train the recipe's teacher on the labels alone."""
    from noisystudent.data.sources import open_sources

    config, folder = _configure(recipe, labeled, (), val, test, out, seed, 0)
    _run(config, open_sources(config.data), folder)


@app.command
def label(model: Path, /, *, unlabeled: Folders, out: Path) -> None:
    """Let a trained model label a pool: Parquet parts of class, confidence and probabilities.

    Parameters
    ----------
    model
        A run directory, a model folder or a model.safetensors.
    unlabeled
        The pool.
    out
        Folder of the Parquet parts.
    """
    from noisystudent import inference
    from noisystudent.data.sources import open_source

    predictor = inference.load_predictor(model)
    with _voice(None) as (voice, stop):
        source = open_source(unlabeled, labeled=False)
        labels, bad = inference.label(
            predictor, source, _section("pseudo_label"), out, stop=stop, voice=voice
        )
        voice.say(f"pseudo-labels: {labels.path}")
    _tell_bad(bad)


@app.command
def select(labels: Path, /, *, out: Path, seed: int = 0) -> None:
    """Select from pseudo-labels: threshold, per-class balance, a reason for every image.

    Parameters
    ----------
    labels
        A folder that `label` wrote.
    out
        The Parquet file to write.
    """
    from noisystudent import inference
    from noisystudent.selection import select as select_images
    from noisystudent.selection import summary

    selection = select_images(inference.read_labels(labels), _section("selection"), seed=seed, out=out)
    found = summary(selection)
    print(f"{found['unique']:,} of {found['images']:,} images kept, {found['total']:,} with repeats: {out}")


@app.command
def evaluate(model: Path, /, *, data: Folders) -> None:
    """Top-1, top-5, NLL, ECE and Brier score of a trained model on labelled images."""
    from noisystudent import inference
    from noisystudent.data.sources import open_source

    predictor = inference.load_predictor(model)
    with _voice(None) as (voice, stop):
        scores = inference.evaluate(predictor, open_source(data, labeled=True), stop=stop, voice=voice)
    _table(("metric", "value"), [(name, f"{value:.4f}") for name, value in scores.items()])


@app.command
def predict(
    model: Path,
    images: Annotated[tuple[str, ...], Parameter(required=True)],
    /,
    *,
    out: Path | None = None,
    format: Literal["csv", "json", "parquet"] | None = None,  # noqa: A002
) -> None:
    """Class and probabilities of images; unreadable ones are named and get no row.

    Parameters
    ----------
    model
        A run directory, a model folder or a model.safetensors.
    images
        Files, folders, tar shards, Parquet.
    out
        Where to write; standard output when not given.
    format
        csv, json or parquet; default: by the ending of --out, else csv.
    """
    from noisystudent import inference, predictions
    from noisystudent.data.sources import open_source

    predictor = inference.load_predictor(model)
    with _voice(None) as (voice, stop):
        found = inference.predict(predictor, open_source(images, labeled=False), stop=stop, voice=voice)
    predictions.write(found, predictor.classes, out, format)
    _tell_bad(found.bad)


@app.command
def report(run: Path, /) -> None:
    """Rebuild report.html from the files of a run."""
    from noisystudent.report import build

    print(build(run))


@app.command
def export(run: Path, /, *, out: Path, format: Literal["safetensors", "timm"] = "safetensors") -> None:  # noqa: A002
    """Write the last student so that timm loads it by name; checks what it wrote.

    Parameters
    ----------
    run
        A run directory or a model folder.
    out
        The file to write.
    format
        safetensors: timm.create_model(NAME, num_classes=K, checkpoint_path=FILE).
    """
    from noisystudent.export import export as write

    print(write(run, out))


@app.command
def recipes(name: str | None = None, /) -> None:
    """List the recipes, or print one."""
    from noisystudent import recipes as shelf

    if name is not None:
        print(shelf.text(name))
    else:
        _table(
            ("recipe", "what it is"), [(n, shelf.text(n).splitlines()[0].lstrip("# ")) for n in shelf.names()]
        )


@app.command
def fields() -> None:
    """Every field of the configuration, with its default and meaning."""
    from noisystudent import recipes as shelf

    _table(("field", "default", "meaning"), shelf.field_help())


def _configure(
    recipe: str,
    labeled: tuple[str, ...],
    unlabeled: tuple[str, ...],
    val: tuple[str, ...],
    test: tuple[str, ...],
    out: Path | None,
    seed: int | None,
    students: int | None,
) -> tuple[Config, Path]:
    from noisystudent import recipes as shelf

    named = {"data.labeled": labeled, "data.unlabeled": unlabeled, "data.val": val, "data.test": test}
    given: list[tuple[str, Any]] = [(field, list(paths)) for field, paths in named.items() if paths]
    given += [(field, n) for field, n in (("seed", seed), ("students", students)) if n is not None]
    config = shelf.load(recipe, given + _overrides)
    return config, out or Path("runs") / config.name


def _section(name: str) -> Any:
    """The student's `name` section with the overrides of this call, written `--name.field value`."""
    from noisystudent import recipes as shelf

    given = [(f"student.{field}", value) for field, value in _overrides]
    return getattr(shelf.resolve({"students": 1}, given, origin="command line").students[0], name)


def _run(config: Config, sources: Any, folder: Path) -> None:
    from noisystudent import self_training
    from noisystudent.report import build
    from noisystudent.rundir import read_json

    with _voice(folder / "run.log") as (voice, stop):
        voice.say(f"run: {folder}")
        self_training.self_train(config, sources, folder, stop=stop, voice=voice)
        page = build(folder)
        _table(("model", "set", "top-1", "top-5", "NLL", "ECE"), self_training.scores(folder))
        verdict = read_json(folder / "verdict.json")
        for line in (verdict["sentence"], *verdict["reasons"], f"report: {page}"):
            voice.say(line)


@contextmanager
def _voice(log: Path | None) -> Iterator[tuple[Terminal, StopFlag]]:
    from noisystudent.console import Terminal
    from noisystudent.runtime import stop_on_signal

    voice = Terminal(log)
    with stop_on_signal() as stop:
        try:
            yield voice, stop
        finally:
            voice.close()


def _tell_bad(bad: list[tuple[str, str]]) -> None:
    for name, reason in bad:
        print(f"noisystudent: {name}: {reason}; it has no row", file=sys.stderr)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table as wide as its content where the output is not a terminal, so that it can be read by programs."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    width = None if sys.stdout.isatty() else 160
    Console(highlight=False, width=width).print(table)
