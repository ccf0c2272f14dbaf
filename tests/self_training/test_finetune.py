"""Fine-tuning: labelled images without noise, at another resolution, with frozen first blocks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from noisystudent.config import ModelConfig
from noisystudent.console import Progress
from noisystudent.data.prepare import open_dataset
from noisystudent.data.sources import listing_fingerprint, open_sources
from noisystudent.errors import InputError, Stopped
from noisystudent.inference.load import find_model, load_predictor
from noisystudent.models.registry import build_model
from noisystudent.report.read import read_run
from noisystudent.run import status
from noisystudent.run.build import build_graph
from noisystudent.run.rundir import RECORD, RunDir
from noisystudent.self_training import self_train, training
from noisystudent.self_training.context import Context
from noisystudent.self_training.noise import TrainingNoise
from noisystudent.self_training.training import Training
from noisystudent.train.optim import lr_at

SECOND = ("student.finetune", {"epochs": 2, "resolution": 24, "frozen_blocks": 1})


@pytest.fixture(scope="module")
def longer(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finetune") / "run"
    tiny.run(tiny.config(images, SECOND), out)
    return out


def trainings(images: Path, out: Path, *fields: tuple[str, Any]) -> tuple[Training, Training]:
    """Return the first training of the student and its fine-tuning."""
    config, run = tiny.config(images, *fields), RunDir(out)
    context = Context(
        config=config,
        run=run,
        graph=build_graph(config, tiny.LISTING, run),
        dataset=open_dataset(run.data, config.data, open_sources(config.data)),
        device=torch.device("cpu"),
        progress=Progress(),
    )
    return context.trainings(context.graph.iterations[0].student)


def test_weights_that_are_replaced_are_not_downloaded(images: Path, tmp_path: Path) -> None:
    """No weights were published for this network, so a search for them would be an error."""
    fields = [("student.init", "teacher"), ("control", "none")]
    for name, more in (("plain", []), ("pretrained", [("student.model.pretrained", True)])):
        tiny.run(tiny.config(images, *fields, *more), tmp_path / name)
    model = "iteration-1/student"
    assert tiny.weights(tmp_path / "plain", model) == tiny.weights(tmp_path / "pretrained", model)


def test_the_first_training_does_not_depend_on_the_second(finished: Path, longer: Path) -> None:
    for model in ("iteration-0/teacher", "iteration-1/student", "iteration-1/control"):
        assert tiny.weights(longer, model) == tiny.weights(finished, model)


def test_frozen_blocks_do_not_change_and_all_others_do(longer: Path) -> None:
    before, after = (
        load_file(longer / "iteration-1" / folder / "model.safetensors")
        for folder in ("student", "student/finetune")
    )
    same = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.startswith(("body.stem.", "body.down1."))}
    assert frozen and frozen <= same
    learned = {name for name in before if name.endswith((".weight", ".running_mean"))} - frozen
    assert learned.isdisjoint(same)


def test_the_second_training_gets_labelled_images_without_noise(images: Path, longer: Path) -> None:
    _, second = trainings(images, longer, SECOND)
    model = build_model(second.learner.model, 3, 24)
    noise = TrainingNoise(model, second.learner, second.policy, second.seed, second.resolution)
    clean = second.dataset.labeled
    views = {view.numpy().tobytes() for view in clean.views(np.arange(len(clean)), 24)}
    seen = list(noise.batches(training.batches(second, None, 0, 6), 0))
    assert len(seen) == 6
    for step, batch in enumerate(seen):
        assert len(batch.labels) == 6 and len(batch.pool_targets) == 0
        noise.draw(batch, step)
        assert torch.equal(noise.apply(batch.images), batch.images)
        assert {image.numpy().tobytes() for image in batch.images} <= views


def test_the_learning_rate_is_the_tail_of_the_first(images: Path, longer: Path) -> None:
    first, second = trainings(images, longer, SECOND)
    assert second.lr is not None and first.total_steps == 12 and second.total_steps == 6
    train = first.learner.train
    expected = [lr_at(step, train, first.steps_per_epoch, 12) for step in range(6, 12)]
    assert [second.lr(step) for step in range(6)] == expected
    _, own = trainings(images, longer, ("student.finetune", {"steps": 4, "lr": 0.5}))
    assert own.lr is None and own.learner.train.lr == 0.5


def test_the_second_training_is_evaluated_beside_the_first_and_its_model_is_used(longer: Path) -> None:
    models = json.loads((longer / "iteration-1" / "evaluation.json").read_text())["models"]
    assert set(models) == {
        f"{role}{when}" for role in ("student", "control") for when in ("", " before finetuning")
    }
    assert models["student"] != models["student before finetuning"]
    assert load_predictor(longer).resolution == 24
    assert "student-1-finetune" in {row[0] for row in status.recorded(RunDir(longer))}


def test_a_second_training_that_is_not_configured_any_more_is_not_used(
    images: Path, longer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(longer, out)
    student = out / "iteration-1" / "student"
    lines = tiny.run(tiny.config(images, ("control", "none")), out)
    assert find_model(out) == student / "model.safetensors"
    assert {model.role for model in read_run(RunDir(out)).models if model.iteration == 1} == {"student"}
    assert sum("not in the configuration any more; kept in" in line for line in lines) == 3
    lines = tiny.run(tiny.config(images, SECOND), out)
    assert find_model(out) == student / "finetune" / "model.safetensors"
    assert not any("steps of" in line for line in lines), "every stage is moved back, none is trained again"


def test_a_second_training_is_put_aside_without_the_first(images: Path, longer: Path, tmp_path: Path) -> None:
    """Together they would come back together, and another configuration would use the second."""
    out = Path(shutil.copytree(longer, tmp_path / "run"))

    def stop(*_: object) -> None:
        raise Stopped("a signal")

    with pytest.raises(Stopped):
        self_train(tiny.config(images, ("student.train.lr", 3.0)), out, take_over=stop)
    aside = {
        path.relative_to(out / "superseded").parts[0]: path.parent.name
        for path in (out / "superseded").rglob(f"student/**/{RECORD}")
    }
    assert sorted(aside.values()) == ["finetune", "student"], "each in a folder of its own"


def test_a_change_of_the_second_training_does_not_repeat_the_first(images: Path, longer: Path) -> None:
    config, run = tiny.config(images, SECOND, ("student.finetune.epochs", 3)), RunDir(longer)
    graph = build_graph(config, listing_fingerprint(open_sources(config.data)), run)
    states = {row[0]: row[1] for row in status.states(graph, run)}
    redone = {name for name, state in states.items() if state != "done"}
    assert redone == {"student-1-finetune", "control-1-finetune", "judgement"}


@pytest.mark.parametrize(
    ("name", "blocks", "last"),
    [
        ("resnet8_16", 4, "body.block2"),
        ("wrn10_1", 3, "body.group3.0"),
        ("test_efficientnet", 1, "blocks.0.0"),
    ],
)
def test_blocks_are_frozen_in_order_whatever_the_network(name: str, blocks: int, last: str) -> None:
    model = build_model(ModelConfig(name=name, dropout=0.0, stochastic_depth=0.5), 3, 32)
    model.freeze(blocks)
    parameters = dict(model.net.named_parameters())
    frozen = {key for key, parameter in parameters.items() if not parameter.requires_grad}
    assert any(key.startswith(f"{last}.") for key in frozen)
    assert parameters.keys() - frozen >= {"fc.weight"} or "classifier.weight" in parameters.keys() - frozen
    model.train()
    inside = model.net.get_submodule(last)
    assert not inside.training and model.net.training
    model.noise.draw(0, 0, torch.ones(50, dtype=torch.bool))
    rates = {path.mask.min().item() for path in model.noise._paths if path.mask is not None}
    assert rates <= {0.0, 1.0}
    with pytest.raises(InputError, match=r"train.frozen_blocks is 99; .* blocks"):
        model.freeze(99)


def test_a_network_with_tables_for_its_resolution_is_fine_tuned_at_another(
    images: Path, tmp_path: Path
) -> None:
    fields = {"name": "test_coatnet", "resolution": 64, "stochastic_depth": 0.0}
    config = tiny.config(
        images,
        *((f"teacher.model.{field}", value) for field, value in fields.items()),
        ("teacher.train", {"steps": 2, "lr": 0.001}),
        ("teacher.finetune", {"steps": 1, "resolution": 96}),
        ("students", 0),
        ("control", "none"),
    )
    self_train(config, tmp_path / "run")
    assert load_predictor(tmp_path / "run", "cpu").resolution == 96
