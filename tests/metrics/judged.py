"""Models with known errors on made-up images, and the verdict on them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisystudent.config import EvaluateConfig
from noisystudent.metrics import verdict
from noisystudent.metrics.reasons import RunFacts

N, K = 2000, 5
LABELS = np.arange(N) % K
# Nothing to complain about: a large pool, well used, right, and judged on a test set.
FACTS = RunFacts(
    test="test",
    classes=("ant", "bee", "cat", "dog", "eel"),
    num_labeled=100,
    pool_size=2000,
    kept=(300,) * K,
    pseudo_accuracy=0.95,
)

Probs = NDArray[np.float32]


def model(wrong: slice | NDArray[np.int64], confidence: float | None = None) -> Probs:
    """Probabilities that are wrong on the given images, by default as confident as they are right."""
    predicted = LABELS.copy()
    predicted[wrong] = (predicted[wrong] + 1) % K
    sure = float((predicted == LABELS).mean()) if confidence is None else confidence
    probs = np.full((N, K), (1 - sure) / (K - 1), dtype=np.float32)
    probs[np.arange(N), predicted] = sure
    return probs


GOOD, FAIR, POOR = model(slice(0, 200)), model(slice(100, 500)), model(slice(100, 600))


def judge(
    student: Probs,
    teacher: Probs,
    control: Probs | None,
    facts: RunFacts = FACTS,
    same_compute: Probs | None = None,
    linear_probe: Probs | None = None,
    **settings: Any,
) -> dict[str, Any]:
    config, more = EvaluateConfig(**settings), {"same_compute": same_compute, "linear_probe": linear_probe}
    if linear_probe is not None:
        facts = dataclasses.replace(facts, probe="control-probe")
    return verdict.judge(student, teacher, control, LABELS, facts=facts, config=config, seed=0, **more)


def texts(found: dict[str, Any]) -> str:
    return json.dumps([found["sentence"], found["reasons"], found["scope"]]).lower()
