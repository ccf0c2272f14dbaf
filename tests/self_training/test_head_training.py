"""The training of a head: its limit is logistic regression, and folds choose its weight decay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from noisystudent.config import Config, LearnerConfig, ModelConfig, TrainConfig
from noisystudent.console import Progress
from noisystudent.metrics import scores
from noisystudent.models.heads import Head
from noisystudent.records import Batch
from noisystudent.run.build import build_graph
from noisystudent.run.rundir import ModelDir, RunDir
from noisystudent.self_training.context import Context
from noisystudent.self_training.folds import _with_decay
from noisystudent.self_training.heads import FeatureNoise, of_head
from noisystudent.train.loop import fit
from noisystudent.train.losses import joint_loss
from noisystudent.train.step import TrainStep

CLASSES, WIDTH = 3, 8


@pytest.mark.parametrize("decay", [1e-2, 1e-1])
def test_a_linear_head_without_noise_converges_to_logistic_regression(tmp_path: Path, decay: float) -> None:
    """Same L2, on weights and bias; probabilities to 1e-4 (of the folded layer, on raw features)."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % CLASSES
    means = rng.normal(0, 1, (CLASSES, WIDTH))
    raw = (means[labels] + rng.normal(0, 1.5, (90, WIDTH))) * 4 + 10
    features = torch.from_numpy(raw.astype(np.float32))
    head = Head("linear", WIDTH, CLASSES, dropout=0.0, name="test", resolution=1)
    head.standardize(features)
    train = of_head(
        TrainConfig(
            steps=1500,
            batch_size=256,
            lr=0.2,
            weight_decay=decay,
            schedule="constant",
            warmup_epochs=0,
            label_smoothing=0.0,
            ema_decay=0.0,
        )
    )
    learner = LearnerConfig(model=ModelConfig(dropout=0.0), train=train)
    batch = Batch(features, torch.from_numpy(labels), torch.empty((0, CLASSES)))
    noise = FeatureNoise(head, learner, 0)
    step = TrainStep(
        noise=noise, lr=lambda _step: 0.2, config=train, num_classes=CLASSES, dtype=torch.float32
    )
    trained = fit(
        head,
        lambda start, stop: noise.batches(iter([batch] * (stop - start)), start),
        step,
        total_steps=1500,
        steps_per_epoch=1,
        folder=ModelDir(tmp_path),
        progress=Progress(),
    )
    assert isinstance(trained, Head)
    standardized = ((features - head.centre) / head.scale).double().numpy()
    with_ones = np.concatenate([standardized, np.ones((90, 1))], axis=1)
    exact = LogisticRegression(C=1 / (90 * decay), fit_intercept=False, tol=1e-10, max_iter=10_000)
    expected = exact.fit(with_ones, labels).predict_proba(with_ones)
    layer = torch.nn.Linear(WIDTH, CLASSES)
    layer.load_state_dict(trained.folded())
    with torch.no_grad():
        probs = layer(features).softmax(dim=1).numpy()
    assert np.abs(probs - expected).max() < 1e-4


@settings(max_examples=30)
@given(seed=st.integers(0, 999), share=st.floats(0, 1), hard=st.booleans())
def test_the_loss_of_a_blend_is_the_blend_of_the_losses(seed: int, share: float, hard: bool) -> None:
    """Cross-entropy is linear in the target."""
    torch.manual_seed(seed)
    logits, labels = torch.randn(6, 3), torch.randint(0, 3, (2,))
    targets = torch.rand(4, 3).softmax(dim=1)
    partner = torch.tensor([1, 0, 4, 5, 2, 3])

    def loss(labels: torch.Tensor, targets: torch.Tensor, blend: Any = None) -> torch.Tensor:
        return joint_loss(
            logits, labels, targets, smoothing=0.1, hard_pool=hard, normalization="joint", blend=blend
        )

    blended = loss(labels, targets, (partner, torch.full((6,), share)))
    others = loss(labels[partner[:2]], targets[partner[2:] - 2])
    assert torch.allclose(blended, share * loss(labels, targets) + (1 - share) * others, atol=1e-5)


# --- folds ---

FOLDS = 3


def config(images: Path, *fields: tuple[str, Any]) -> Config:
    train: dict[str, Any] = {"features": True, "lr": 1.0, "steps": 30}
    return tiny.config(images, ("teacher.train", {**tiny.RECIPE["teacher"]["train"], **train}), *fields)


@pytest.fixture(scope="module")
def folded(many: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("folds") / "run"
    return out, tiny.run(config(many, ("folds", FOLDS)), out)


def test_folds_choose_the_weight_decay_with_the_lowest_loss(folded: tuple[Path, list[str]]) -> None:
    out, lines = folded
    result = json.loads((out / "iteration-0" / "out-of-fold.stage.json").read_text())["result"]
    losses, decays = result["nll"], [5e-6, 5e-5, 5e-4, 5e-3, 5e-2]
    assert result["weight_decay"] == pytest.approx(decays[int(np.argmin(losses))])
    assert any(line.startswith("out-of-fold: the weight decay of heads is ") for line in lines)
    probs, labels = scores.load_predictions(out / "iteration-0" / "out-of-fold.npz")
    assert -np.log(probs[np.arange(60), labels]).mean() == pytest.approx(min(losses), rel=1e-5)


def test_the_models_have_the_chosen_weight_decay(
    many: Path, folded: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Given from the start, without folds, it gives the same teacher and control, bit for bit."""
    out, _ = folded
    result = json.loads((out / "iteration-0" / "out-of-fold.stage.json").read_text())["result"]
    tiny.run(config(many, ("teacher.train.weight_decay", result["weight_decay"])), tmp_path)
    for model in ("iteration-0/teacher", "iteration-1/control"):
        assert tiny.weights(tmp_path, model) == tiny.weights(out, model)


def test_the_chosen_weight_decay_is_not_that_of_a_network_that_is_fine_tuned(many: Path) -> None:
    given = config(many, ("folds", FOLDS), ("students", [{}, {"finetune": {"steps": 2}}]))
    nothing = cast(Any, None)
    context = Context(
        config=given,
        run=RunDir(Path("run")),
        graph=build_graph(given, tiny.LISTING, RunDir(Path("run"))),
        dataset=nothing,
        device=nothing,
        progress=Progress(),
    )
    decay = given.teacher.train.weight_decay
    changed = _with_decay(context, 100 * decay, {})
    students = [one.student.config.train.weight_decay for one in changed.graph.iterations]
    controls = [model.config.train.weight_decay for model in changed.graph.iterations[-1].controls]
    assert (students, controls) == ([100 * decay, decay], [decay])


def test_folds_store_heads_without_the_backbone(folded: tuple[Path, list[str]]) -> None:
    heads = sorted((folded[0] / "iteration-0").glob("fold-*/weight-decay-*/model.safetensors"))
    assert len(heads) == FOLDS * 5
    assert all(load_file(head).keys() == {"fc.weight", "fc.bias"} for head in heads)


@pytest.mark.slow
def test_a_given_weight_decay_stays_without_choice(many: Path, tmp_path: Path) -> None:
    tiny.run(config(many, ("folds", FOLDS), ("choose", False)), tmp_path)
    assert (tmp_path / "iteration-0" / "fold-1" / "model.safetensors").is_file()
    assert not list(tmp_path.glob("iteration-0/fold-*/weight-decay-*"))
