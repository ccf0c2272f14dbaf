"""The linear probe among the controls: what it is, when it is trained, and what it leaves alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tiny
import yaml
from option_trainer import Killed

from noisystudent import recipes
from noisystudent.config import Config, controls
from noisystudent.config.controls import linear_probe, probe_is_teacher, trained_controls
from noisystudent.console import Progress
from noisystudent.errors import InputError
from noisystudent.inference.load import load_predictor
from noisystudent.metrics import scores
from noisystudent.run.build import build_graph
from noisystudent.run.graph import Graph
from noisystudent.run.rundir import ModelDir, RunDir
from noisystudent.self_training import self_train
from noisystudent.self_training.checks import check_config
from noisystudent.self_training.context import Context
from noisystudent.self_training.folds import _with_decay

PROBE = "iteration-1/control-probe"
ALL = ("same_steps", "linear_probe")


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    """A probe of fewer steps, with snapshots on the way."""
    few = dataclasses.replace(controls._TRAIN, steps=60, checkpoint_steps=20, log_steps=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controls, "_TRAIN", few)
        yield


@pytest.fixture(scope="module")
def weights(finished: Path) -> str:
    """A file of pretrained weights."""
    return str(finished / "iteration-0" / "teacher" / "model.safetensors")


@pytest.fixture(scope="module")
def given(images: Path, weights: str) -> Config:
    """A run that starts from them."""
    return tiny.config(images, ("teacher.model.pretrained", weights), ("teacher.train.lr", 0.5))


@pytest.fixture(scope="module")
def out(given: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its finished directory. Not to be changed."""
    out = tmp_path_factory.mktemp("probe") / "run"
    tiny.run(given, out)
    return out


def graph(config: Config) -> Graph:
    return build_graph(config, tiny.LISTING, RunDir(Path("run")))


def fingerprints(config: Config) -> dict[str, str]:
    return {stage.name: stage.fingerprint for stage in graph(config).stages()}


def test_the_probe_sees_no_image_of_the_pool(out: Path) -> None:
    assert sorted(path.name for path in (out / "embeddings").iterdir() if path.is_dir()) == [
        "labeled",
        "test",
        "val",
    ]
    verdict = json.loads((out / "verdict.json").read_text())
    assert list(verdict["comparisons"]) == ["teacher", "control", "control-probe"]


def test_the_probe_predicts_as_the_network_in_its_file(images: Path, out: Path) -> None:
    probs, labels = scores.load_predictions(ModelDir(out / PROBE).predictions("test"))
    _, dataset = tiny.opened(images, out)
    assert dataset.test is not None
    network = load_predictor(out / PROBE, "cpu").probs(dataset.test)
    assert np.abs(network - probs).max() < 5e-3 and len(labels) == len(dataset.test)


def test_the_probe_is_a_first_teacher_with_the_same_settings(
    given: Config, out: Path, tmp_path: Path
) -> None:
    """Both are heads on the features of the labelled images alone, so only one is trained."""
    probe = linear_probe(given)
    assert probe is not None
    short = dataclasses.replace(probe.train, steps=5)
    student = dataclasses.replace(given.students[0], model=probe.model, augment=probe.augment, train=short)
    heads = dataclasses.replace(given, teacher=probe, students=(student,))
    assert probe_is_teacher(heads) and trained_controls(heads) == ("same_steps",)
    tiny.run(heads, tmp_path)
    assert tiny.weights(tmp_path, "iteration-0/teacher") == tiny.weights(out, PROBE)
    for name in ("val", "test"):
        one, other = (
            scores.load_predictions(ModelDir(folder).predictions(name))
            for folder in (tmp_path / "iteration-0" / "teacher", out / PROBE)
        )
        assert np.array_equal(one.probs, other.probs) and np.array_equal(one.labels, other.labels)
    assert not (tmp_path / PROBE).exists()
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert list(verdict["comparisons"]) == ["teacher", "control"]
    if verdict["comparisons"]["teacher"]["difference"] <= 0:
        assert "the first teacher, a linear probe on the labels alone, is " in verdict["sentence"]


class _Interrupted(tiny.Remembered):
    """Stands for SIGKILL in the given part of a run."""

    def __init__(self, task: str, at: int) -> None:
        super().__init__()
        self._task, self._at = task, at

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        if task == self._task and done >= self._at:
            raise Killed


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted(given: Config, out: Path, tmp_path: Path) -> None:
    for task, at in (("embeddings of val", 1), ("control-probe-1", 50)):
        with pytest.raises(Killed):
            self_train(given, tmp_path, progress=_Interrupted(task, at))
    assert any((tmp_path / PROBE).rglob("step-*")), "it goes on from a snapshot"
    tiny.run(given, tmp_path)
    assert tiny.weights(tmp_path, PROBE) == tiny.weights(out, PROBE)
    assert (tmp_path / "verdict.json").read_bytes() == (out / "verdict.json").read_bytes()


# --- what the probe leaves alone, from the configuration ---


def test_without_pretrained_weights_nothing_changes(images: Path) -> None:
    plain = tiny.config(images)
    assert plain.control == ("same_steps",) and linear_probe(plain) is None
    named = tiny.config(images, ("control", ["same_steps"]))
    assert plain == named and fingerprints(plain) == fingerprints(named)
    assert not graph(plain).embeddings
    with pytest.raises(
        InputError, match="neither the last student nor the teacher starts from other weights"
    ):
        tiny.config(images, ("control", ["linear_probe"]))


def test_the_probe_changes_no_other_stage(images: Path, given: Config) -> None:
    assert given.control == ALL
    without = fingerprints(dataclasses.replace(given, control=("same_steps",)))
    found = fingerprints(given)
    assert found.keys() - without.keys() == {"embeddings", "control-probe-1"}
    assert {name for name in without if without[name] != found[name]} == {"judgement"}


def test_the_verdict_is_made_again_if_the_teacher_is_now_the_probe(images: Path, weights: str) -> None:
    config = tiny.config(images, ("teacher.model.pretrained", weights), *FEATURES)
    found, without = fingerprints(config), fingerprints(dataclasses.replace(config, control=("same_steps",)))
    assert found.keys() == without.keys()
    assert {name for name in without if without[name] != found[name]} == {"judgement"}


def test_a_resolved_configuration_says_what_is_trained(given: Config) -> None:
    assert recipes.resolve(yaml.safe_load(recipes.dump(given))) == given


UNUSED: list[tuple[str, Any]] = [
    ("teacher.model.pretrained", False),
    ("student.model.pretrained", True),
    ("student.init", "teacher"),
]
FEATURES: list[tuple[str, Any]] = [("teacher.train.features", True), ("student.train.features", True)]


@pytest.mark.parametrize(
    ("fields", "kinds", "caches"),
    [
        # the first teacher is a linear head on the network of the student
        (FEATURES, ("same_steps",), [True]),
        # it is another head, so the probe is trained on the same features
        ([*FEATURES, ("teacher.model.head", "mlp")], ALL, [True]),
        ([*FEATURES, ("ensemble", 2)], ALL, [True]),
        # the last student has another network, which has features of its own, without the pool
        (
            [*FEATURES, ("student.model.name", "resnet8_32"), ("student.train.features", False)],
            ALL,
            [True, False],
        ),
        ([("teacher.train.features", True), ("student.train.features", False)], ("same_steps",), [True]),
        ([("student.init", "teacher")], ALL, [False]),  # it descends from the teacher
        (UNUSED, ("same_steps",), []),  # of the student, whose weights are the teacher's
        ([("control", ["same_compute"])], ("same_compute",), []),
        ([("students", 0)], (), []),
    ],
)
def test_the_probe_is_trained_where_nothing_else_is_one(
    images: Path, weights: str, fields: list[tuple[str, Any]], kinds: tuple[str, ...], caches: list[bool]
) -> None:
    config = tiny.config(images, ("teacher.model.pretrained", weights), *fields)
    assert trained_controls(config) == kinds
    pools = ["pool" not in stage.inputs for stage in graph(config).embeddings.values()]
    assert pools == caches
    probe = linear_probe(config)
    if probe is not None:
        assert probe.train.features and probe.model.head == "linear"
        assert probe.model.name == config.students[-1].model.name


def test_the_probe_of_a_head_has_the_settings_of_the_head(images: Path, weights: str) -> None:
    head = [("teacher.model.pretrained", weights), *FEATURES, ("teacher.model.head", "mlp"), ("folds", 2)]
    config = tiny.config(images, *head)
    probe = linear_probe(config)
    assert probe is not None and probe.train == config.teacher.train
    (_, model) = graph(config).iterations[-1].controls
    assert "out_of_fold" in model.training.inputs, "its weight decay is chosen by the folds, too"


@pytest.mark.parametrize("other", [False, True])
def test_the_folds_change_the_weight_decay_of_a_probe_with_the_settings_of_the_teacher_alone(
    images: Path, weights: str, other: bool
) -> None:
    fields = [("teacher.model.pretrained", weights), *FEATURES, ("teacher.model.head", "mlp"), ("folds", 2)]
    student = {"model": {"name": "resnet8_32", "pretrained": weights}} if other else {}
    config = tiny.config(images, *fields, ("students", [student]))
    out, nothing = RunDir(Path("run")), cast(Any, None)
    context = Context(
        config=config, run=out, graph=graph(config), dataset=nothing, device=nothing, progress=Progress()
    )
    changed = _with_decay(context, 10 * config.teacher.train.weight_decay, {})
    (_, probe) = changed.graph.iterations[-1].controls
    before = linear_probe(config)
    assert before is not None and probe.config == linear_probe(changed.config)
    assert probe.config.train.weight_decay == before.train.weight_decay * (1 if other else 10)
    assert ("out_of_fold" in probe.training.inputs) is not other


def test_a_network_that_can_have_no_probe_is_named_before_any_image_is_read(images: Path) -> None:
    config = tiny.config(images, ("teacher.model", {"name": "levit_128s", "pretrained": True, "dropout": 0}))
    with pytest.raises(InputError, match="classifier of levit_128s is not a single linear layer; leave lin"):
        check_config(config, pool=True)
