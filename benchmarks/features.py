"""How long does an iteration on cached features take, and how much memory, beside scikit-learn?

    python benchmarks/features.py --rows 10000 100000 --repeats 3

Rows of 384 numbers of 10 classes are generated once under --work and stored as the features of a pool, of
1,000 labelled, 2,000 val and 2,000 test images. ours: the stages of a run, the labelling of the pool by a
trained head, the selection (mode paper, threshold 0.5), the student with dropout and blended features (3
passes over the kept pool images; 30 over 10,000), and its predictions for val. The weights of a whole ViT-S
are written in the end. peers: scikit-learn's LogisticRegression on the labelled rows and the pool rows that
ours selected, with their labels, and SelfTrainingClassifier with one iteration (threshold 0.5) on all rows,
in memory. Every run is a process of its own. `anonymous` is the peak of the memory that it holds for itself
(RssAnon), sampled every 20 ms, less that before its start: imports, and the rows of peers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WIDTH, _CLASSES, _LABELED, _EVALUATED = 384, 10, 1_000, 2_000
_CHUNK = 65_536
_MODEL = {"name": "vit_small_patch16_224", "dropout": 0.1}  # 384 features
Run = dict[str, Any]
"""seconds, anonymous (MiB), accuracy on test, and of ours the seconds of each stage."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks/features"))
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run is not None:
        folder = arguments.work / str(arguments.rows[0])
        print(json.dumps(measured(RUNS[arguments.run], folder, arguments.threads)))
        return
    memory = []
    for rows in arguments.rows:
        generate(arguments.work / str(rows), rows)
        memory.append(show(rows, {name: [] for name in RUNS}, arguments))
    for (fewer, small), (more, large) in pairwise(zip(arguments.rows, memory, strict=True)):
        grown = (large - small) * 2**20 / (more - fewer)
        print(f"\nours from {fewer:,} to {more:,} rows: {grown:,.0f} bytes of anonymous memory an image")


def show(rows: int, runs: dict[str, list[Run]], arguments: argparse.Namespace) -> float:
    for _ in range(arguments.repeats):
        for name, done in runs.items():
            command = [sys.executable, __file__, "--work", arguments.work, "--rows", rows, "--run", name]
            command = [*map(str, command), "--threads", str(arguments.threads)]
            environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
            text = subprocess.check_output(command, text=True, env=environment)
            done.append(json.loads(text.splitlines()[-1]))
    print(f"\n{rows:,} pool rows, {arguments.threads} threads, medians of {arguments.repeats}")
    print(f"{'':24}{'seconds':>9}{'(range)':>16}{'/ ours':>8}{'anonymous MiB':>15}{'test top-1':>12}")
    ours = statistics.median(run["seconds"] for run in runs["ours"])
    for name, done in runs.items():
        seconds = sorted(run["seconds"] for run in done)
        middle = statistics.median(seconds)
        memory, top1 = (statistics.median(run[key] for run in done) for key in ("anonymous", "top1"))
        spread = f"({seconds[0]:.2f}-{seconds[-1]:.2f})"
        print(f"{name:24}{middle:9.2f}{spread:>16}{middle / ours:8.2f}{memory:15.0f}{top1:12.2%}")
    parts = {part: statistics.median(run[part] for run in runs["ours"]) for part in _PARTS}
    print("ours: " + ", ".join(f"{part} {seconds:.2f} s" for part, seconds in parts.items()))
    return float(statistics.median(run["anonymous"] for run in runs["ours"]))


# --- the rows ---


def _rows(key: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows (count, 384) and their classes: ten overlapping clouds."""
    means = np.random.default_rng(0).normal(0, 1, (_CLASSES, _WIDTH)).astype(np.float32)
    rng = np.random.default_rng([1, key])
    labels = rng.integers(0, _CLASSES, count)
    noise = rng.standard_normal((count, _WIDTH), np.float32)
    return 0.14 * means[labels] + noise, labels


def generate(folder: Path, rows: int) -> None:
    """The sets and their features, unless they are there."""
    import torch

    from noisystudent.console import Progress
    from noisystudent.embeddings.embed import embed_images, part_rows
    from noisystudent.embeddings.parts import Layout
    from noisystudent.run.rundir import EmbeddingsDir

    counts = {"labeled": _LABELED, "val": _EVALUATED, "test": _EVALUATED, "pool": rows}
    if (folder / "done").exists():
        return
    for number, (name, count) in enumerate(counts.items()):
        made = [_rows(10_000 * number + at, min(_CHUNK, count - at)) for at in range(0, count, _CHUNK)]
        labels = np.concatenate([label for _, label in made])
        hashes = np.random.default_rng(number).integers(0, 256, (count, 16), dtype=np.uint8)
        _write_index(folder / f"{name}.arrow", name, labels, hashes)
        layout = Layout(count, 1, _WIDTH, part_rows(1, _WIDTH), {})
        values = torch.from_numpy(np.concatenate([value for value, _ in made]))
        embed_images(
            partial(_batches, values),
            lambda rows: [str(row) for row in rows],
            hashes,
            (np.empty(0, np.int64), np.empty(0, np.int64)),
            layout=layout,
            batch_size=4_096,
            out=EmbeddingsDir(folder / "embeddings").features(name).path,
            task=name,
            progress=Progress(),
        )
    (folder / "done").touch()


def _batches(values: Any, requests: Iterator[NDArray[np.int64]]) -> Iterator[Any]:
    return (values[rows][None] for rows in requests)


def _write_index(path: Path, name: str, labels: NDArray[np.int64], hashes: NDArray[np.uint8]) -> None:
    import pyarrow as pa

    from noisystudent.data.index import SCHEMA, writer

    path.parent.mkdir(parents=True, exist_ok=True)
    count, buffer = len(labels), pa.py_buffer(np.ascontiguousarray(hashes))
    unknown = np.full(count, -1, np.int32)
    columns = {
        "id": pa.array([f"{name}/{row:08d}" for row in range(count)]),
        "label": unknown if name == "pool" else labels.astype(np.int32),
        "content_hash": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, buffer]),
    }
    arrays = [pa.array(columns.get(field.name, unknown), field.type) for field in SCHEMA]
    with writer(path, SCHEMA) as append:
        for batch in pa.table(arrays, schema=SCHEMA).to_batches(16_384):
            append(batch)


# --- the contenders ---


def _context(folder: Path, threads: int) -> Any:
    import torch

    from noisystudent.console import Progress
    from noisystudent.data.imageset import ImageSet
    from noisystudent.data.index import Index
    from noisystudent.data.prepare import Dataset
    from noisystudent.recipes import resolve
    from noisystudent.run.build import build_graph
    from noisystudent.run.fingerprint import ListingFingerprint
    from noisystudent.run.rundir import EmbeddingsDir, RunDir
    from noisystudent.self_training.context import Context
    from noisystudent.self_training.heads import frozen_backbone

    torch.set_num_threads(threads)
    device = torch.device("cpu")
    train = {"features": True, "batch_size": 256, "lr": 0.05, "ema_decay": 0.99, "warmup_epochs": 0}
    teacher = {"model": _MODEL, "train": {**train, "steps": 300}, "augment": {"mix": 0.5}}
    passes = max(3, 300_000 // len(Index(folder / "pool.arrow")))
    student = {"unlabeled_ratio": 7, "train": {"pool_epochs": passes}, "selection": {"threshold": 0.5}}
    sections = {"teacher": teacher, "student": student, "students": 1}
    config = resolve({"device": "cpu", "control": "none", **sections}, [])
    classes = tuple(map(str, range(_CLASSES)))
    sets: dict[str, Any] = {
        name: ImageSet(name, classes, Index(folder / f"{name}.arrow"), None, None, 1)  # type: ignore[arg-type]
        for name in ("labeled", "val", "test", "pool")
    }
    run = RunDir(folder)
    graph = build_graph(config, ListingFingerprint("", ""), run)
    (stage,) = graph.embeddings.values()
    progress, dataset = Progress(), Dataset(classes, **sets)
    frozen_backbone(config.teacher.model, EmbeddingsDir(stage.path), classes, 224, seed=0, progress=progress)
    return Context(config=config, run=run, graph=graph, dataset=dataset, device=device, progress=progress)


_PARTS = ("label", "select", "train", "predict")


def _ours(folder: Path, threads: int) -> Iterator[Run]:
    import shutil

    from noisystudent.run.rundir import ModelDir
    from noisystudent.self_training import pool
    from noisystudent.self_training.first_teachers import only
    from noisystudent.self_training.labels import label_pool
    from noisystudent.self_training.predict import predictions
    from noisystudent.self_training.train_stage import train_unchecked

    context = _context(folder, threads)
    for number in (0, 1):
        shutil.rmtree(context.run.iteration(number).path, ignore_errors=True)
    (first,), (iteration,) = context.graph.teachers, context.graph.iterations
    teacher = context.training(context.config.teacher, ModelDir(first.training.path), "iteration-0")
    train_unchecked(context, first.training, teacher)
    yield {}
    seconds = [time.perf_counter()]
    label_pool(context, iteration.labels, only(teacher), iteration.config.pseudo_label)
    seconds.append(time.perf_counter())
    pool.select_images(context, iteration, None, only(teacher))
    seconds.append(time.perf_counter())
    student = pool.student(context, iteration, only(teacher))
    train_unchecked(context, iteration.student.training, student)
    seconds.append(time.perf_counter())
    predictions(student, "val", context.progress)
    seconds.append(time.perf_counter())
    parts = dict(zip(_PARTS, np.diff(seconds).tolist(), strict=True))
    probs, labels = predictions(student, "test", context.progress)
    yield {"top1": float((probs.argmax(axis=1) == labels).mean()), **parts}


def _values(folder: Path, name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from noisystudent.data.index import Index
    from noisystudent.embeddings import Features
    from noisystudent.run.rundir import EmbeddingsDir

    features = Features(EmbeddingsDir(folder / "embeddings").features(name))
    labels = Index(folder / f"{name}.arrow").full("label").astype(np.int64)
    return features(np.arange(len(features))).numpy(), labels


def _logistic(folder: Path, threads: int) -> Iterator[Run]:
    import pyarrow.parquet as pq
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    table = pq.read_table(folder / "iteration-1" / "selection.parquet", columns=["row", "label", "repeats"])
    kept = table.filter(table["repeats"].to_numpy() > 0)
    images, labels = _values(folder, "labeled")
    pool = _values(folder, "pool")[0][kept["row"].to_numpy()]
    given, targets = np.concatenate([images, pool]), np.concatenate([labels, kept["label"].to_numpy()])
    test = _values(folder, "test")
    del images, pool, table
    yield {}
    scaler = StandardScaler(copy=False)
    model = LogisticRegression(max_iter=200).fit(scaler.fit_transform(given), targets)
    yield {"top1": float(model.score(scaler.transform(test[0]), test[1]))}


def _self_training(folder: Path, threads: int) -> Iterator[Run]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.semi_supervised import SelfTrainingClassifier

    images, labels = _values(folder, "labeled")
    pool, unknown = _values(folder, "pool")
    given, targets = np.concatenate([images, pool]), np.concatenate([labels, unknown])
    test = _values(folder, "test")
    del images, pool
    yield {}
    model = SelfTrainingClassifier(LogisticRegression(max_iter=200), threshold=0.5, max_iter=1)
    model.fit(given, targets)
    yield {"top1": float(model.score(*test))}


RUNS: dict[str, Callable[[Path, int], Iterator[Run]]] = {
    "ours": _ours,
    "LogisticRegression": _logistic,
    "SelfTrainingClassifier": _self_training,
}


def _anonymous() -> float:
    """Memory that this process holds for itself, in MiB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) / 1024


def measured(run: Callable[[Path, int], Iterator[Run]], folder: Path, threads: int) -> Run:
    """Prepare a run, then time it."""
    steps, over = run(folder, threads), threading.Event()
    next(steps)
    peak = [_anonymous()]

    def sample() -> None:
        while not over.wait(0.02):
            peak.append(_anonymous())

    threading.Thread(target=sample, daemon=True).start()  # ends with the process if the run fails
    start = time.perf_counter()
    result = next(steps)
    result["seconds"] = time.perf_counter() - start
    over.set()
    return {"anonymous": max(peak) - peak[0], **result}


if __name__ == "__main__":
    main()
