"""A second, short training: labelled images as they are, at another resolution, with a frozen beginning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from noisystudent import inference, planning
from noisystudent.config import ModelConfig
from noisystudent.data.prepare import open_dataset
from noisystudent.data.sources import open_sources
from noisystudent.errors import InputError
from noisystudent.graph import build_graph
from noisystudent.models.registry import build_model
from noisystudent.report.read import read_run
from noisystudent.self_training import learner
from noisystudent.self_training.context import Context
from noisystudent.self_training.teaching import finetuned
from noisystudent.train.optim import lr_at

SECOND = ("student.finetune", {"epochs": 2, "resolution": 24, "frozen_blocks": 1})


@pytest.fixture(scope="module")
def longer(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finetune") / "run"
    tiny.run(tiny.config(images, SECOND), out)
    return out


def lessons(images: Path, out: Path, *fields: tuple[str, Any]) -> tuple[learner.Lesson, learner.Lesson]:
    """The student's first lesson and its second."""
    config = tiny.config(images, *fields)
    graph = build_graph(config, "", out)
    dataset = open_dataset(out / "data", config.data, open_sources(config.data))
    voice, stop = tiny.Heard(), tiny.StopFlag()
    context = Context(
        config=config,
        run=out,
        graph=graph,
        dataset=dataset,
        device=torch.device("cpu"),
        stop=stop,
        voice=voice,
    )
    model = graph.iterations[0].student
    first = context.lesson(config.students[0], model.training.path, "iteration-1")
    return first, finetuned(first, model)


def test_weights_that_are_replaced_are_not_asked_for(images: Path, tmp_path: Path) -> None:
    """None were published of this network: to look for them would be an error."""
    fields = [("student.init", "teacher"), ("control", False)]
    plain, asking = (
        tiny.config(images, *fields, *more) for more in ((), [("student.model.pretrained", True)])
    )
    for name, config in (("plain", plain), ("asking", asking)):
        tiny.run(config, tmp_path / name)
    model = "iteration-1/student"
    assert tiny.weights(tmp_path / "plain", model) == tiny.weights(tmp_path / "asking", model)


def test_the_first_training_is_what_it_would_be_without_the_second(finished: Path, longer: Path) -> None:
    for model in ("iteration-0/teacher", "iteration-1/student", "iteration-1/control"):
        assert tiny.weights(longer, model) == tiny.weights(finished, model)


def test_what_is_frozen_stays_and_the_rest_learns(longer: Path) -> None:
    before, after = (
        load_file(longer / "iteration-1" / folder / "model.safetensors")
        for folder in ("student", "student/finetune")
    )
    same = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.startswith(("body.stem.", "body.down1."))}
    assert frozen and frozen <= same
    learnt = {name for name in before if name.endswith((".weight", ".running_mean"))} - frozen
    assert learnt.isdisjoint(same)


def test_the_second_training_sees_labelled_images_as_they_are(images: Path, longer: Path) -> None:
    _, second = lessons(images, longer, SECOND)
    noise = learner._noise(build_model(second.learner.model, 3, 24), second)
    clean = second.dataset.labeled
    for step, batch in enumerate(learner._batches(second, 0, 6)):
        assert len(batch.labels) == 6 and len(batch.pool_targets) == 0
        noise.draw(batch, step)
        assert torch.equal(noise.apply(batch.images), batch.images)
        views = {view.numpy().tobytes() for view in clean.views(torch.arange(len(clean)).numpy(), 24)}
        assert {image.numpy().tobytes() for image in batch.images} <= views


def test_the_learning_rate_is_the_tail_of_the_first(images: Path, longer: Path) -> None:
    first, second = lessons(images, longer, SECOND)
    assert second.lr is not None and first.total_steps == 12 and second.total_steps == 6
    train = first.learner.train
    expected = [lr_at(step, train, first.steps_per_epoch, 12) for step in range(6, 12)]
    assert [second.lr(step) for step in range(6)] == expected
    _, own = lessons(images, longer, ("student.finetune", {"steps": 4, "lr": 0.5}))
    assert own.lr is None and own.learner.train.lr == 0.5


def test_the_second_training_is_judged_beside_the_first_and_speaks(longer: Path) -> None:
    models = json.loads((longer / "iteration-1" / "evaluation.json").read_text())["models"]
    assert set(models) == {
        f"{role}{when}" for role in ("student", "control") for when in ("", " before finetuning")
    }
    assert models["student"] != models["student before finetuning"]
    assert inference.load_predictor(longer).model.resolution == 24
    assert "student-1-finetune" in {row[0] for row in planning.recorded(longer)}


def test_a_second_training_that_is_not_asked_for_any_more_does_not_speak(
    images: Path, longer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(longer, out)
    student = out / "iteration-1" / "student"
    said = tiny.run(tiny.config(images, ("control", False)), out)
    assert inference.find_model(out) == student / "model.safetensors"
    assert {model.role for model in read_run(out).models if model.iteration == 1} == {"student"}
    assert sum("not asked for any more; kept in" in line for line in said) == 3
    said = tiny.run(tiny.config(images, SECOND), out)
    assert inference.find_model(out) == student / "finetune" / "model.safetensors"
    assert not any("steps of" in line for line in said), "all of it comes back"


def test_another_second_training_redoes_no_first(images: Path, longer: Path) -> None:
    config = tiny.config(images, SECOND, ("student.finetune.epochs", 3))
    sources = open_sources(config.data)
    states = {row[0]: row[1] for row in planning.states(planning.plan(config, sources, longer), longer)}
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
    with pytest.raises(InputError, match=r"finetune.frozen_blocks is 99; .* blocks"):
        model.freeze(99)
