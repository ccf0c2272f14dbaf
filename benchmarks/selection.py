"""How long does selecting from 1 to 100 million pseudo-labels of 1,000 classes take, and how much memory?

    python benchmarks/selection.py
    python benchmarks/selection.py --rows 1000000 10000000 --repeats 5

The rows are generated once under --work (2.1 GB for 100 million): parts of 62,500 rows as `label_images`
writes them, without names and probabilities; class sizes fall as rank^-0.7, confidences are the square roots
of uniform numbers. K is 130,000 of every 100 million rows, the threshold 0.3. ours: `select` in mode paper,
official and adaptive, with a reason for every row. ceiling: DuckDB copies the same four columns from those
files to one, and decides nothing. peers: the paper's rule in polars and in pandas, in memory, up to 10
million rows; they must keep what we keep. Every run is a process of its own, with --threads threads; every
repeat runs all in turn. Peak memory is VmHWM; `before` is VmHWM after the imports, which are not timed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_PART, _CLASSES, _THRESHOLD = 62_500, 1_000, 0.3
_PEER_ROWS = 10_000_000
_LIMIT_SECONDS, _LIMIT_MIB = 30, 2_500
Run = dict[str, Any]
"""seconds, processor (seconds), peak and before (MiB), kept and total of one run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks/selection"))
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run is not None:
        print(json.dumps(measured(arguments.run, arguments.work, arguments.rows[0], arguments.threads)))
        return
    generate(arguments.work, max(arguments.rows))
    for rows in arguments.rows:
        compare(arguments.work, rows, arguments.repeats, arguments.threads)


# --- the rows ---


def generate(work: Path, rows: int) -> None:
    """The first `rows` rows as parts; what is there is not made again."""
    (work / "parts").mkdir(parents=True, exist_ok=True)
    missing = [path for path in parts(work, rows) if not path.exists()]
    with Pool(2) as pool:
        for _ in pool.imap_unordered(_write_part, missing, chunksize=8):
            pass


def parts(work: Path, rows: int) -> list[Path]:
    if rows % _PART:
        raise SystemExit(f"--rows {rows}: a multiple of {_PART:,}")
    return [work / "parts" / f"part-{number:05d}.parquet" for number in range(rows // _PART)]


def _write_part(path: Path) -> None:
    from noisystudent.run.rundir import LABELS_FORMAT

    number = int(path.stem.removeprefix("part-"))
    rng = np.random.Generator(np.random.Philox(key=number))
    share = np.arange(1, _CLASSES + 1) ** -0.7
    label = np.searchsorted(np.cumsum(share / share.sum()), rng.random(_PART)).clip(max=_CLASSES - 1)
    confidence = np.sqrt(rng.random(_PART)).clip(min=1 / _CLASSES)
    hashes = pa.py_buffer(rng.bytes(16 * _PART))
    first = number * _PART
    columns = {
        "row": pa.array(np.arange(first, first + _PART)),
        "content_hash": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), _PART, [None, hashes]),
        "label": pa.array(label.astype(np.int32)),
        "confidence": pa.array(confidence.astype(np.float32)),
    }
    about = {"format": LABELS_FORMAT, "first_row": str(first), "rows": str(_PART)}
    table = pa.table(columns).replace_schema_metadata(about | {"num_classes": str(_CLASSES)})
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial, compression="zstd", use_dictionary=["label"])
    partial.rename(path)


def linked(work: Path, rows: int) -> Path:
    """A folder of just these rows."""
    folder = work / f"rows-{rows}"
    folder.mkdir(exist_ok=True)
    for path in parts(work, rows):
        if not (folder / path.name).exists():
            os.link(path, folder / path.name)
    return folder


# --- the contenders: (folder, K, threads, file to write) ---


def _ours(mode: str) -> Callable[[Path, int, int, Path], None]:
    def run(folder: Path, quota: int, threads: int, out: Path) -> None:
        from noisystudent.config import SelectionConfig
        from noisystudent.records import PseudoLabels
        from noisystudent.selection import select

        config = SelectionConfig(mode=mode, threshold=_THRESHOLD, per_class=quota)  # type: ignore[arg-type]
        select(PseudoLabels(folder, _CLASSES), config, seed=0, out=out, threads=threads)

    return run


def _ceiling(folder: Path, quota: int, threads: int, out: Path) -> None:
    import duckdb

    with duckdb.connect(config={"memory_limit": "2GB", "threads": threads}) as connection:
        connection.execute("SET enable_progress_bar = false")
        columns = f"SELECT row, content_hash, label, confidence FROM '{folder}/*.parquet'"
        connection.execute(f"COPY ({columns}) TO '{out}' (FORMAT parquet, COMPRESSION uncompressed)")


def _polars(folder: Path, quota: int, threads: int, out: Path) -> None:
    import polars as pl

    above, place, n = pl.col("above"), pl.col("place"), pl.col("n")
    base = pl.when(n >= quota).then(0).otherwise(quota // n)
    extra = pl.when(n >= quota).then(quota).otherwise(quota % n)
    keys = ["label", "confidence", "content_hash", "row"]
    (
        pl.scan_parquet(folder / "*.parquet")
        .select(keys)
        .sort(keys, descending=[False, True, False, False])
        .with_columns((pl.col("confidence").cast(pl.Float64) > _THRESHOLD).alias("above"))
        .with_columns(
            pl.int_range(pl.len(), dtype=pl.Int64).over("label").alias("place"),
            above.sum().over("label").cast(pl.Int64).alias("n"),
        )
        .with_columns(
            pl.when(above).then(base + (place < extra)).otherwise(0).cast(pl.Int32).alias("repeats")
        )
        .with_columns(
            pl.when(above.not_())
            .then(pl.lit("below_threshold"))
            .when(pl.col("repeats") > 0)
            .then(pl.lit("kept"))
            .otherwise(pl.lit("over_quota"))
            .alias("reason")
        )
        .sort("row")
        .select("row", "content_hash", "label", "confidence", "repeats", "reason")
        .collect()
        .write_parquet(out)
    )


def _pandas(folder: Path, quota: int, threads: int, out: Path) -> None:
    import pandas as pd

    table = pq.read_table(folder, columns=["row", "content_hash", "label", "confidence"]).combine_chunks()
    hashes = table.column("content_hash").chunk(0)
    halves = np.frombuffer(hashes.buffers()[1], ">u8").reshape(-1, 2).astype(np.uint64)
    frame = table.drop_columns("content_hash").to_pandas().assign(high=halves[:, 0], low=halves[:, 1])
    frame = frame.sort_values(
        ["label", "confidence", "high", "low", "row"], ascending=[True, False, True, True, True]
    )
    above = frame["confidence"].astype(np.float64) > _THRESHOLD
    n = above.groupby(frame["label"]).transform("sum")
    place = frame.groupby("label").cumcount()
    some = n.clip(lower=1)
    base, extra = (quota // some).where(n < quota, 0), (quota % some).where(n < quota, quota)
    frame["repeats"] = (base + (place < extra)).where(above, 0).astype(np.int32)
    reason = np.where(~above, "below_threshold", np.where(frame["repeats"] > 0, "kept", "over_quota"))
    frame["reason"] = pd.Categorical(reason)
    frame = frame.sort_values("row")
    written = pa.Table.from_pandas(
        frame[["row", "label", "confidence", "repeats", "reason"]], preserve_index=False
    )
    pq.write_table(written.append_column("content_hash", hashes), out, compression="zstd")


_IMPORTS = {"ceiling": ("duckdb",), "polars": ("polars",), "pandas": ("pandas",)}
RUNS: dict[str, Callable[[Path, int, int, Path], None]] = {
    "paper": _ours("paper"),
    "official": _ours("official"),
    "adaptive": _ours("adaptive"),
    "ceiling": _ceiling,
    "polars": _polars,
    "pandas": _pandas,
}


# --- measuring ---


def measured(name: str, work: Path, rows: int, threads: int) -> Run:
    """Time and memory of one run in this process, and what it kept."""
    folder, out = linked(work, rows), work / "out.parquet"
    out.unlink(missing_ok=True)
    os.sync()  # what the last run wrote is not to be waited for in this one
    for module in _IMPORTS.get(name, ("duckdb", "noisystudent.selection")):
        importlib.import_module(module)
    before = _peak()
    begun, processor = time.perf_counter(), time.process_time()
    RUNS[name](folder, rows // _CLASSES * 13 // 10, threads, out)
    found: Run = {"seconds": time.perf_counter() - begun, "processor": time.process_time() - processor}
    found |= {"before": before, "peak": _peak()}
    if "repeats" in pq.read_schema(out).names:
        found |= _kept(out)
    out.unlink()
    return found


def _kept(selection: Path) -> Run:
    """What a selection keeps, read in batches: a billion rows do not fit in memory at once."""
    kept = total = check = first = 0
    for batch in pq.ParquetFile(selection).iter_batches(columns=["repeats"]):
        repeats = batch.column(0).to_numpy().astype(np.int64)
        kept, total = kept + int((repeats > 0).sum()), total + int(repeats.sum())
        first += len(repeats)
        numbers = np.arange(first - len(repeats) + 1, first + 1)
        check += int((repeats * numbers % 1_000_003).sum())
    return {"kept": kept, "total": total, "check": check}


def _peak() -> float:
    """MiB that this process has held at most."""
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["VmHWM"].split()[0]) / 1024


def compare(work: Path, rows: int, repeats: int, threads: int) -> None:
    names = ["paper", "official", "adaptive", "ceiling"]
    for peer in ("polars", "pandas"):
        if importlib.util.find_spec(peer) is None:
            print(f"{peer} is not installed and left out")
        elif rows <= _PEER_ROWS:
            names.append(peer)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            runs[name].append(_in_process(name, work, rows, threads))
    for peer in names[4:]:
        if [run["check"] for run in runs[peer]] != [run["check"] for run in runs["paper"]]:
            raise SystemExit(f"{peer} keeps other images than `select` does")
    show(rows, runs)


def _in_process(name: str, work: Path, rows: int, threads: int) -> Run:
    command = [sys.executable, __file__, "--run", name, "--work", str(work), "--rows", str(rows)]
    limits = {"POLARS_MAX_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [*command, "--threads", str(threads)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | limits,
    )
    found: Run = json.loads(done.stdout.splitlines()[-1])
    return found


def show(rows: int, runs: dict[str, list[Run]]) -> None:
    """A line a contender: seconds, processor seconds, memory, and seconds over those of `paper`."""
    print(f"\n{rows:,} rows, {len(runs['paper'])} repeats: median (least … greatest)")
    print(f"{'':10}{'seconds':>22}{'processor s':>13}{'peak MiB':>10}{'before':>8}{'seconds / paper':>24}")
    for name, found in runs.items():
        seconds = [run["seconds"] for run in found]
        ratios = [run["seconds"] / ours["seconds"] for run, ours in zip(found, runs["paper"], strict=True)]
        processor = statistics.median(run["processor"] for run in found)
        peak, before = (max(run[key] for run in found) for key in ("peak", "before"))
        memory = f"{peak:10,.0f}{before:8,.0f}"
        print(f"{name:10}{spread(seconds):>22}{processor:13.1f}{memory}{spread(ratios):>24}")
    for mode in ("paper", "official", "adaptive"):
        worst = max(run["seconds"] for run in runs[mode]), max(run["peak"] for run in runs[mode])
        per = statistics.median(run["seconds"] for run in runs[mode]) / rows * 1e6
        verdict = "within" if worst[0] <= _LIMIT_SECONDS and worst[1] <= _LIMIT_MIB else "NOT within"
        print(
            f"{mode}: {per:.2f} s a million rows; {verdict} {_LIMIT_SECONDS} s and {_LIMIT_MIB:,} MiB"
            f" (100 million rows); kept {runs[mode][0]['kept']:,}, with repeats {runs[mode][0]['total']:,}"
        )


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} … {max(values):.2f})"


if __name__ == "__main__":
    main()
