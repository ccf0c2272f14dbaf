"""A finished run directory with realistic numbers and no training: ten classes, three iterations."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fake_robustness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from noisystudent.run.lock import MARKER
from noisystudent.run.rundir import RunDir

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOSTILE = '<script>alert("1")</script>\'"><img src=x onerror=alert(2)>'
SKILL = {"teacher": (0.62,), "student": (0.0, 0.80, 0.88, 0.915), "control": (0.66,) * 4}

CONFIG = """\
name: cifar10-4k
seed: 0
control: same_steps
teacher:
  model: {name: wrn28_2, dropout: 0.2}
  augment: {policy: randaugment, magnitude: 15}
  train: {epochs: 400, batch_size: 512}
students:
"""
STUDENT = """\
- unlabeled_ratio: 4
  selection: {mode: paper, threshold: 0.3}
"""

VERDICT: dict[str, Any] = {
    "set": "test",
    "level": 0.95,
    "sentence": "The student improved: on 4,000 test images it is right on 91.53%, +29.47 points against "
    "the first teacher (95% interval +27.96 to +31.01, p = 3.1e-205) and +25.12 points against "
    "the control trained on labels alone (95% interval +23.64 to +26.65, p = 0.00042).",
    "headline": [
        "The pool helped.",
        "The last student gets 91.53 % of 4,000 test images: 29.47 points above the teacher "
        "(significant), 25.12 points above the control (significant).",
        "Another training seed would change the figures.",
    ],
    "improved": True,
    "state": "improved",
    "comparisons": {
        "teacher": dict(
            difference=0.2947, low=0.2796, high=0.3101, p_value=3.1e-205, wins=1243, losses=64, n=4000
        ),
        "control": dict(
            difference=0.2512, low=0.2364, high=0.2665, p_value=0.00042, wins=1087, losses=83, n=4000
        ),
    },
    "reasons": [
        "The pseudo-labels of the last iteration are right on 89.4% of the pool, 95.1% of the kept.",
        "The student is better calibrated than its teacher: ECE 0.031 against 0.118.",
        "Seven of ten classes gained more than 20 points; no class lost.",
    ],
}


def write_run(run: Path, classes: Sequence[str] = CLASSES, iterations: int = 3, images: int = 400) -> Path:
    """Write every file that the report reads; the same bytes each time."""
    rng = np.random.Generator(np.random.Philox(7))
    (run / "data").mkdir(parents=True)
    (run / MARKER).touch()
    (run / "config.yaml").write_text(CONFIG + STUDENT * iterations)
    environment = {"python": "3.11.7", "torch": "2.14.1", "device": "NVIDIA H100 80GB HBM3", "processes": 1}
    write_json(run / "environment.json", environment)
    write_data(run / "data", classes)
    for index in range(iterations + 1):
        roles = ["teacher"] if index == 0 else ["student", *(["control"] if index == iterations else [])]
        folder = run / f"iteration-{index}"
        scores = {role: write_model(folder / role, role, index, len(classes), images, rng) for role in roles}
        evaluation: dict[str, Any] = {"models": scores}
        if index:
            evaluation |= pool_summary(index, classes, rng)
            shown = gallery(classes, rng)
            shown |= {"mistakes": mistakes(classes, rng)} if index == iterations else {}
            write_json(folder / "gallery.json", shown)
        write_json(folder / "evaluation.json", evaluation)
    fake_robustness.add(run, images)
    write_json(run / "verdict.json", VERDICT)
    return run


def write_hostile_run(run: Path) -> Path:
    """A run of one iteration whose names, wherever a name of others stands, are HTML with scripts."""
    classes = (HOSTILE, "</script><script>alert(3)</script>", "a & b", "{{ 7 * 7 }}", *CLASSES[:6])
    write_run(run, classes=classes, iterations=1)
    write_selection(run, 1, 400)
    (run / "config.yaml").write_text(f"name: {HOSTILE}\n")
    write_json(run / "environment.json", {HOSTILE: HOSTILE})
    verdict = {"sentence": HOSTILE, "reasons": [HOSTILE], "comparisons": {HOSTILE: None}, "improved": None}
    write_json(run / "verdict.json", verdict)
    row = HOSTILE.replace('"', '""')
    (run / "data" / "ledger.csv").write_text(f'set,id,reason\n"{row}","{row}","{row}"\n')
    thumbnails = json.loads((run / "iteration-1" / "gallery.json").read_text())
    thumbnails["classes"][0]["images"][0] |= {"id": HOSTILE, "truth": HOSTILE + "!", "jpeg": f'A" {HOSTILE}'}
    thumbnails["mistakes"]["images"][0] |= {"id": HOSTILE, "jpeg": f'A" {HOSTILE}'}
    write_json(run / "iteration-1" / "gallery.json", thumbnails)
    return run


def write_selection(run: Path, index: int, images: int) -> NDArray[np.float32]:
    """A selection that keeps all images of a pool, whose labels take turns; returns their confidences."""
    confidence = np.linspace(0.2, 1, images).astype(np.float32)
    columns = {
        "label": pa.array(np.arange(images) % len(CLASSES), pa.int32()),
        "confidence": pa.array(confidence),
        "repeats": pa.array(np.ones(images), pa.int32()),
        "reason": pa.array(["kept"] * images),
    }
    pq.write_table(pa.table(columns), RunDir(run).iteration(index).selection)
    return confidence


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_data(folder: Path, classes: Sequence[str]) -> None:
    dataset = {
        "classes": list(classes),
        "counts": {"labeled": 4000, "val": 500, "test": 10000, "pool": 45500},
        "notes": ["No val was given: 500 labeled images were set aside, stratified by class."],
    }
    write_json(folder / "dataset.json", dataset)
    reasons = ("truncated JPEG", "0 bytes", "image of 1 x 1 pixels", "not an image")
    ledger = [f"pool,photos/{i:05d}.jpg,{reasons[i % 4]}" for i in range(230)]
    (folder / "ledger.csv").write_text("set,id,reason\n" + "\n".join(ledger) + "\n")
    leaks = [f"pool,photos/{i:05d}.jpg,{('test', 'val')[i % 2]},{classes[0]}/{i}.png" for i in range(9)]
    (folder / "leaks.csv").write_text("set,id,found_in,id_there\n" + "\n".join(leaks) + "\n")


def write_model(
    folder: Path, role: str, index: int, classes: int, images: int, rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    folder.mkdir(parents=True)
    skill = SKILL[role][index]
    write_metrics(folder / "metrics.jsonl", skill, 20_000 if index == 0 else 30_000, rng)
    scores = {}
    for name in ("val", "test"):
        labels = np.arange(images, dtype=np.int64) % classes
        predicted = np.where(
            rng.random(images) < skill, labels, (labels + rng.choice([1, 2, 2, 7], images)) % classes
        )
        confidence = np.clip(rng.beta(6, 1.3, images) * (0.75 + 0.3 * skill), 1.2 / classes, 0.995)
        probs = np.repeat(((1 - confidence) / (classes - 1))[:, None], classes, axis=1)
        probs[np.arange(images), predicted] = confidence
        np.savez(folder / f"predictions-{name}.npz", probs=probs.astype(np.float32), labels=labels)
        scores[name] = {
            "top1": float((predicted == labels).mean()),
            "top5": 1 - (1 - skill) / 9,
            "nll": float(-np.log(probs[np.arange(images), labels]).mean()),
            "ece": float(abs(confidence.mean() - skill)),
            "brier": float(((probs - np.eye(classes)[labels]) ** 2).sum(axis=1).mean()),
        }
    return scores


def write_metrics(path: Path, skill: float, steps: int, rng: np.random.Generator) -> None:
    lines: list[dict[str, float]] = []
    for step in range(250, steps + 1, 250):
        done = step / steps
        loss = 2.3 * np.exp(-4 * done) + 0.35 * (1.2 - skill) + 0.03 * rng.standard_normal()
        rates = {"lr": 0.03 * (1 - done), "images_per_second": 5400.0}
        lines.append({"step": step, "epoch": step / 78, "loss": float(loss), **rates})
        if step % (steps // 10) == 0:
            top1 = skill * (1 - 0.6 * np.exp(-5 * done)) + 0.008 * rng.standard_normal()
            lines.append({"step": step, "val_top1": float(top1), "val_nll": float(loss)})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def pool_summary(index: int, classes: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
    edges = np.linspace(0, 1, 21)
    shape = np.exp((4 + index) * edges[:-1]) * (edges[:-1] >= 0.1) + 120 * (edges[:-1] >= 0.1)
    counts = (45_500 * shape / shape.sum()).astype(int)
    kept = np.where(edges[:-1] >= 0.3, counts, 0)
    predicted = rng.integers(2500, 6500, len(classes))
    above = (predicted * 0.93).astype(int)
    quota = int(above.mean())
    rows: list[dict[str, Any]] = [
        {
            "class": name,
            "predicted": int(p),
            "above_threshold": int(a),
            "kept": int(min(a, quota)),
            "total": quota,
            "min_confidence": float(0.3 + 0.2 * rng.random() * (a > quota)),
        }
        for name, p, a in zip(classes, predicted, above, strict=True)
    ]
    distinct = sum(row["kept"] for row in rows)
    return {
        "pseudo_labels": {
            "confidence_histogram": {
                "edges": edges.tolist(),
                "counts": counts.tolist(),
                "kept": kept.tolist(),
            },
            "accuracy": 0.62 + 0.09 * index,
            "kept_accuracy": 0.72 + 0.075 * index,
            "mean_confidence": 0.71 + 0.05 * index,
        },
        "selection": {
            "classes": rows,
            "coverage": distinct / 45_500,
            "kept": distinct,
            "total": quota * len(classes),
        },
    }


def gallery(classes: Sequence[str], rng: np.random.Generator, images: int = 12) -> dict[str, Any]:
    def entry(index: int, rank: int) -> dict[str, Any]:
        confidence = 0.99 - 0.07 * rank
        wrong = rng.random() > confidence + 0.1
        return {
            "confidence": confidence,
            "kept": confidence >= 0.3,
            "reason": "kept" if confidence >= 0.3 else "below_threshold",
            "junk": rank == 1,
            "agreement": 1.0 if confidence >= 0.5 else 2 / 3,
            "id": f"photos/{index}-{rank:04d}.jpg",
            "truth": classes[(index + 3) % len(classes)] if wrong else classes[index],
            "jpeg": thumbnail(index, rng),
        }

    return {
        "classes": [
            {"class": name, "images": [entry(index, rank) for rank in range(images)]}
            for index, name in enumerate(classes)
        ]
    }


def mistakes(classes: Sequence[str], rng: np.random.Generator, images: int = 9) -> dict[str, Any]:
    def entry(index: int) -> dict[str, Any]:
        truth, wrong = (classes[(index + shift) % len(classes)] for shift in (0, 1))
        predicted = {"teacher": [wrong, 0.4], "student": [wrong, 0.9], "control": [truth, 0.6]}
        name = f"{truth}/{index:04d}.png"
        return {"id": name, "truth": truth, "predicted": predicted, "jpeg": thumbnail(index, rng)}

    return {"set": "test", "total": 34, "images": [entry(index) for index in range(images)]}


def thumbnail(kind: int, rng: np.random.Generator) -> str:
    """A 32 x 32 JPEG in base64: a shape on a plain ground; its form depends on the class."""
    ground, ink = (tuple(int(v) for v in rng.integers(low, high, 3)) for low, high in ((120, 250), (10, 140)))
    image = Image.new("RGB", (32, 32), ground)
    draw = ImageDraw.Draw(image)
    left, top = (int(v) for v in rng.integers(3, 10, 2))
    box = (left, top, left + 18, top + 18)
    if kind % 3 == 0:
        draw.ellipse(box, fill=ink)
    elif kind % 3 == 1:
        draw.rectangle(box, fill=ink)
    else:
        draw.regular_polygon((left + 9, top + 9, 10), 3 + kind % 5, fill=ink, rotation=int(rng.integers(90)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
