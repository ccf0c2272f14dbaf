"""The card of a model of a run, in the format of the Hugging Face hub, from the files of the run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from noisystudent import recipes
from noisystudent.config import Config, LearnerConfig
from noisystudent.config.run import trained_teachers
from noisystudent.errors import InputError, printable, require
from noisystudent.inference.export import Exported
from noisystudent.run.files import read_json
from noisystudent.run.graph import BEFORE
from noisystudent.run.rundir import model_name, place_in_run

Record = dict[str, Any]

# Heading of a number, and the keys that lead to it in the results of a model.
_ROBUSTNESS = (
    ("mean error on corruptions", ("c", "value")),
    ("flip probability under perturbations", ("p", "value")),
    ("top-1 under FGSM, ε = 8", ("fgsm", "8", "value")),
    ("top-1 under PGD, ε = 16", ("pgd", "16", "value")),
)
_LIMITS = (
    "It gives one of its classes to every image, even if the image shows none of them.",
    "Its accuracy on other kinds of images is not known.",
)


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What the files of a run say about one of its models.

    Attributes:
        run: name of the run.
        name: name of the model, for example student-2.
        config: configuration of the run.
        finetuned: these are the weights after a fine-tuning.
        learner: the network of the model, its noise and its training; of a control, those of its student.
        counts: number of images of each set.
        classes: class names.
        scores: {"val" | "test": {top1, nll, ece, brier}} at the temperature of the model. Empty without a
            finished evaluation.
        robustness: results of the tests of robustness; may be empty.
        verdict: content of verdict.json; empty if the run is not finished.
    """

    run: str
    name: str
    finetuned: bool
    config: Config
    learner: LearnerConfig
    counts: Mapping[str, int]
    classes: tuple[str, ...]
    scores: Record
    robustness: Record
    verdict: Record


def of_run(weights: Path) -> TrainedModel:
    """Read what a run says about the model with these weights.

    Raises:
        InputError: the weights are not in a run.
        RunError: a file of the run is damaged.
    """
    place = place_in_run(weights)
    if place is None:
        raise InputError(f"--card describes a model of a run, and {weights} is in none; give a run directory")
    run, iteration, role = place
    config = recipes.resolve(run.read_config(), origin=str(run.config))
    require(
        iteration.index <= len(config.students),
        f"--card: {weights} is of iteration {iteration.index}, and {run.config} has {len(config.students)}"
        " students now; give the model of one of these, or the run directory",
    )
    dataset, evaluation = read_json(run.data.dataset), _record(iteration.evaluation)
    finetuned = weights.absolute() == iteration.model(role).finetune.weights
    before = BEFORE if not finetuned and role + BEFORE in evaluation.get("models", {}) else ""
    scores, calibrated = (evaluation.get(key, {}).get(role + before, {}) for key in ("models", "calibrated"))
    return TrainedModel(
        run=run.path.resolve().name,
        name=model_name(iteration.index, role) + before,
        finetuned=finetuned,
        config=config,
        learner=_learner(config, iteration.index, role),
        counts=dataset["counts"],
        classes=tuple(dataset["classes"]),
        scores={images: of | calibrated.get(images, {}) for images, of in scores.items()},
        robustness=evaluation.get("robustness", {}).get(role, {}),
        verdict=_record(run.verdict),
    )


def _learner(config: Config, iteration: int, role: str) -> LearnerConfig:
    """The section of a model; the trained first teachers are teacher, teacher-2, …, in their order."""
    if iteration:
        return config.students[iteration - 1]
    special = {"filter": config.filter, "pretraining": config.pretrain}.get(role)
    if special is not None:
        return special
    number = role.removeprefix("teacher-")
    return trained_teachers(config)[int(number) - 1 if number.isdecimal() else 0]


def _record(path: Path) -> Record:
    record: Record = read_json(path) if path.is_file() else {}
    return record


def model_card(model: TrainedModel, exported: Exported) -> str:
    """Return the text of README.md: what the model is, how it was trained and measured, and its limits.

    The licence is `unknown`, for the user to fill in: it depends on images and initial weights.
    """
    title = f"{model.run}: {model.learner.model.name}"
    sections = {
        "Use": [f"    {exported.line}", *_items(exported.steps), f"Checked: {exported}."],
        "Data": list(_data(model)),
        "Training": list(_training(model)),
        "Results": list(_results(model)),
        "Robustness": list(_robustness(model)),
        "Limits": _items([*_LIMITS, *map(_sentence, model.verdict.get("reasons", []))]),
    }
    body = [f"# {title}", *_summary(model)]
    for heading, parts in sections.items():
        body += [f"## {heading}", *parts]
    return f"---\n{_header(model, title)}\n---\n\n" + "\n\n".join(body) + "\n"


def _header(model: TrainedModel, title: str) -> str:
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="own",
            dataset_name=f"{images} of {model.run}",
            dataset_split=images,  # the hub keeps one result for each
            metric_type="accuracy",
            metric_value=round(float(of["top1"]), 4),
        )
        for images, of in model.scores.items()
    ]
    data = ModelCardData(
        license="unknown",
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "self-training", "noisy-student"],
        model_name=title,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _summary(model: TrainedModel) -> Iterator[str]:
    yield f"This is {model.name} of a self-training run (Noisy Student, arXiv 1911.04252)."
    if model.verdict.get("sentence"):
        yield _sentence(model.verdict["sentence"])
        if model.verdict.get("scope"):
            yield model.verdict["scope"]
    else:
        yield "The run is not finished, and has no verdict."


def _data(model: TrainedModel) -> Iterator[str]:
    names = {"labeled": "labelled, for training", "pool": "unlabelled", "val": "val, for all choices"}
    rows = [(names.get(name, name), f"{count:,}") for name, count in model.counts.items()]
    yield _table(("images", "number"), rows)
    yield f"{len(model.classes):,} classes:"
    yield f"    {json.dumps([printable(name) for name in model.classes], ensure_ascii=False)}"


def _training(model: TrainedModel) -> Iterator[str]:
    network, augment = model.learner.model, model.learner.augment
    start = network.pretrained if isinstance(network.pretrained, str) else "the weights that timm publishes"
    rows = [
        ("initial weights", start if network.pretrained else "random"),
        ("RandAugment", augment.randaugment or "none"),
        ("crop", augment.crop),
        ("flip", "yes" if augment.flip else "no"),
        ("dropout", f"{network.dropout:g}"),
        ("stochastic depth", f"{network.stochastic_depth:g}"),
        ("students", str(len(model.config.students))),
        ("seed", str(model.config.seed)),
    ]
    yield _table(("noise and training", "value"), rows)
    if network.pretrained:
        yield "The licence of the initial weights applies to these weights, too."


def _results(model: TrainedModel) -> Iterator[str]:
    if not model.scores:
        yield "It was not evaluated yet."
        return
    keys = ("top1", "nll", "ece", "brier")
    rows = [(images, *(f"{of[key]:.4f}" for key in keys)) for images, of in model.scores.items()]
    yield _table(("set", *keys), rows)
    yield "NLL, ECE and Brier score are those of the probabilities at the temperature of the model."


def _robustness(model: TrainedModel) -> Iterator[str]:
    values = ((heading, _at(model.robustness, path)) for heading, path in _ROBUSTNESS)
    rows = [(heading, f"{value:.4f}") for heading, value in values if value is not None]
    yield _table(("measure", "value"), rows) if rows else "Robustness was not measured."
    if rows and model.finetuned:
        yield "It was measured before the fine-tuning, and not of these weights."


def _at(record: Record, path: tuple[str, ...]) -> float | None:
    value: Any = record
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return None if value is None else float(value)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    # A | would end a cell, and a line break the table.
    return "\n".join(
        f"| {' | '.join(printable(cell).replace('|', '/') for cell in line)} |" for line in lines
    )


def _items(sentences: list[str]) -> list[str]:
    return ["\n".join(f"- {sentence}" for sentence in sentences)]


def _sentence(text: str) -> str:
    """The text with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
