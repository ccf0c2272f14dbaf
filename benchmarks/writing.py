"""How fast are labels written when the model costs nothing? Rows a second for 10 and 1,000 classes.

    python benchmarks/writing.py
    python benchmarks/writing.py --rows 10000000 --repeats 5

ours: `label_images` of --rows blank images by a model that has its answers ready, 32 probabilities a row
kept of 1,000. ceiling: pyarrow writes the finished part as often, in one thread. plain: the loop one would
write: softmax, topk, a list of arrays, one Parquet file for 65,536 images; on a tenth of the rows. Every
repeat times all in turn; ratios are taken within a repeat: median (least … greatest).
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from label import Contender, alternate, show
from torch import Tensor

from noisystudent.config import PseudoLabelConfig
from noisystudent.console import Progress
from noisystudent.pseudo_label import label_images

_PART = 65_536
_LOGITS = 64  # different batches of answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 1_000])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks/writing"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for classes in arguments.classes:
        writing(classes, arguments)


def writing(classes: int, arguments: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    shape = (_LOGITS, arguments.batch, classes)
    logits = torch.from_numpy(4 * rng.standard_normal(shape, np.float32))
    contenders: dict[str, Contender] = {
        "ours": timed(lambda n: write_ours(logits, n, arguments)),
        "plain": timed(lambda n: write_plain(logits, n, arguments)),
    }
    contenders["ours"](_PART)
    table = pq.read_table(arguments.work / "labels" / "part-00000.parquet")
    contenders["ceiling"] = timed(lambda n: write_table(table, n, arguments))
    counts = {"ours": arguments.rows, "ceiling": arguments.rows, "plain": max(_PART, arguments.rows // 10)}
    times = alternate(contenders, counts, arguments.repeats)
    size = sum(path.stat().st_size for path in (arguments.work / "labels").iterdir()) / arguments.rows
    print(f"\nwriting: {arguments.rows:,} rows of {classes:,} classes, {size:.0f} bytes a row on disk")
    show(times, "ceiling")
    slowest = min(times["ours"])
    print(f"{'':10}over 200,000 rows a second in every repeat: {'yes' if slowest > 200_000 else 'NO'}")


def timed(work: Callable[[int], None]) -> Contender:
    def seconds(rows: int) -> float:
        begun = time.perf_counter()
        work(rows)
        return time.perf_counter() - begun

    return seconds


def write_ours(logits: Tensor, rows: int, arguments: argparse.Namespace) -> None:
    """Pixels are read by nobody; a batch's first pixel counts the batches, so that answers differ."""
    batch = arguments.batch
    names = [f"train/{number // 1000:05d}/{number:09d}.jpg" for number in range(_PART)]
    hashes = np.random.default_rng(1).integers(0, 256, (rows, 16), dtype=np.uint8)
    blank = torch.zeros((batch, 3, 1, 1), dtype=torch.uint8)
    numbers = iter(range(rows))
    out = arguments.work / "labels"
    shutil.rmtree(out, ignore_errors=True)
    label_images(
        lambda count, most: (lambda images: logits[next(numbers) % _LOGITS, : len(images)], batch),
        lambda requests: (blank[: len(own)] for own in requests),
        lambda own: names[: len(own)],
        hashes,
        num_classes=logits.shape[2],
        config=PseudoLabelConfig(batch_size=batch),
        out=out,
        task="labels",
        progress=Progress(),
    )


def write_table(table: pa.Table, rows: int, arguments: argparse.Namespace) -> None:
    for _ in range(rows // len(table)):
        pq.write_table(
            table, arguments.work / "ceiling.parquet", compression="zstd", use_dictionary=["label"]
        )


def write_plain(logits: Tensor, rows: int, arguments: argparse.Namespace) -> None:
    count = arguments.batch
    for _ in range(rows // _PART):
        held: list[tuple[Any, Any]] = []
        for number in range(_PART // count):
            found = logits[number % _LOGITS].softmax(dim=1).topk(min(32, logits.shape[2]), dim=1)
            held.append((found.indices.int().numpy(), found.values.half().numpy()))
        classes, probs = (np.concatenate(arrays) for arrays in zip(*held, strict=True))
        columns = {"label": classes[:, 0], "top_classes": list(classes), "top_probs": list(probs)}
        pq.write_table(pa.table(columns), arguments.work / "plain.parquet", compression="zstd")


if __name__ == "__main__":
    main()
