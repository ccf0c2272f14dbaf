"""CIFAR-10 with few labels: a recipe over several seeds, against its teacher and its control.

    python benchmarks/cifar10.py cifar10-cpu  --labels 1000
    python benchmarks/cifar10.py cifar10-4000 --labels 4000 --seeds 0 1 2

Lays the images out as folders under --work: `labeled/<class>/`, `pool/real/<class>/`, `pool/junk/` (1,000
images of classes CIFAR-10 lacks) and `test/<class>/`, runs the recipe once a seed, and prints one table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tarfile
import time
from collections import defaultdict
from pathlib import Path

import duckdb
from demo import test_scores
from table import show

_SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
_JUNK, _WRONG_TAGS = 1000, 0.4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--labels", type=int, default=4000, help="labelled images, balanced over the classes")
    parser.add_argument("--pool", type=int, help="real pool images; default: all that are not labelled")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    add_sources(parser)
    arguments, overrides = parser.parse_known_args()
    layout = lay_out(arguments.data, arguments.junk, arguments.work, arguments.labels, arguments.pool)
    rows = []
    for seed in arguments.seeds:
        run = arguments.work / "runs" / f"{arguments.recipe}-{arguments.labels}-{seed}"
        started = time.perf_counter()
        command = [sys.executable, "-m", "noisystudent", "run", arguments.recipe, "--out", str(run)]
        command += ["--labeled", str(layout / "labeled"), "--unlabeled", str(layout / "pool")]
        command += [
            "--test",
            str(layout / "test"),
            "--seed",
            str(seed),
            "--data.pool_truth",
            "true",
            *overrides,
        ]
        subprocess.run(command, check=True)
        rows.append({"seed": seed, "seconds": time.perf_counter() - started, **read(run)})
    show(rows)


def add_sources(parser: argparse.ArgumentParser) -> None:
    """--data, --junk and --work, the first three of `lay_out`."""
    parser.add_argument(
        "--data",
        type=Path,
        default=_SHARED / "cifar10",
        help="folder with train.tar.xz and test.tar.xz, of <set>/<class>/<image>, and labeled-4000.txt",
    )
    parser.add_argument(
        "--junk",
        type=Path,
        default=_SHARED / "tinyimagenet" / "other-classes.tar.xz",
        help="archive of images of other classes, the strangers of the pool",
    )
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks/cifar10"), help="what is made")


def lay_out(data: Path, junk: Path, work: Path, labels: int, pool: int | None) -> Path:
    """Folders of images, made once: the first of labeled-4000.txt in each class, the rest is the pool.

    `all/` has the labels of both; `tagged/` is the pool in folders of which four in ten name a wrong class.
    """
    target = work / f"labels-{labels}-pool-{pool or 'all'}"
    if (target / "done").exists():
        return target
    unpacked = work / "unpacked"
    for archive in (data / "train.tar.xz", data / "test.tar.xz"):
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
    with tarfile.open(junk) as tar:
        tar.extractall(unpacked / "junk", filter="data")
    chosen = _balanced((data / "labeled-4000.txt").read_text().split(), labels)
    named = {str(p.relative_to(unpacked)): p for p in sorted((unpacked / "train").glob("*/*"))}
    rest = [name for name in named if name not in set((data / "labeled-4000.txt").read_text().split())]
    rest += [name for name in (data / "labeled-4000.txt").read_text().split() if name not in set(chosen)]
    for name in chosen:
        _link(named[name], target / "labeled" / Path(name).relative_to("train"))
    rest = rest if pool is None else _balanced(rest, pool)
    for name in rest:
        _link(named[name], target / "pool" / "real" / Path(name).relative_to("train"))
    for name in (*chosen, *rest):
        _link(named[name], target / "all" / Path(name).relative_to("train"))
    classes, draw = sorted({name.split("/")[1] for name in named}), random.Random(0)
    for name in rest:
        own = classes.index(name.split("/")[1])
        shift = draw.randrange(1, len(classes)) if draw.random() < _WRONG_TAGS else 0
        tag = classes[(own + shift) % len(classes)]
        _link(named[name], target / "tagged" / tag / name.replace("/", "-"))
    strangers = sorted(p for p in (unpacked / "junk").rglob("*") if p.is_file())
    for path in strangers[:: max(1, len(strangers) // _JUNK)][:_JUNK]:
        _link(path, target / "pool" / "junk" / f"{path.parent.name}-{path.name}")
    for path in (unpacked / "test").glob("*/*"):
        _link(path, target / "test" / path.relative_to(unpacked / "test"))
    (target / "done").touch()
    return target


def _balanced(names: list[str], count: int) -> list[str]:
    by_class: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_class[name.split("/")[1]].append(name)
    return [name for members in by_class.values() for name in members[: count // len(by_class)]]


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        os.link(source, target)


def read(run: Path) -> dict[str, object]:
    """Test accuracies of every model, and how often real and junk images were kept by the last selection."""
    found = test_scores(run)
    for folder in sorted(run.glob("iteration-*/selection.parquet")):
        query = """
            SELECT ids.id LIKE '%junk/%' AS stranger, avg((s.repeats > 0)::INT) FROM read_parquet(?) s
            JOIN read_parquet(?) ids USING (row) GROUP BY stranger"""
        kept = dict(
            duckdb.execute(query, [str(folder), str(folder.parent / "labels" / "*.parquet")]).fetchall()
        )
        name = folder.parent.name.removeprefix("iteration-")
        found[f"kept-real-{name}"], found[f"kept-junk-{name}"] = kept.get(False), kept.get(True)
        accuracy = json.loads((folder.parent / "evaluation.json").read_text())["pseudo_labels"].get(
            "kept_accuracy"
        )
        found[f"kept-accuracy-{name}"] = accuracy
    return found


if __name__ == "__main__":
    main()
