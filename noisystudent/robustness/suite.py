"""Test models on clean, corrupted, perturbed and attacked images.

Corrupted and perturbed images are generated once for all models, attacked images for each model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from noisystudent.errors import InputError
from noisystudent.metrics import scores
from noisystudent.robustness import attacks, measures
from noisystudent.robustness.images import LabeledBatch, SuiteImages
from noisystudent.robustness.results import Results
from noisystudent.runtime import batch_size_for, on_host

TESTS = ("clean", "calibration", "c", "p", "c-extra", "p-extra", "fgsm", "pgd")
"""Tests that can be run on any labelled images."""

_CORRUPTED = ("c", "c-extra")
_FRAMES = 512  # largest number of frames in one forward pass
_ATTACKED_ON_CPU, _ATTACKED = 2**20, 2**22
"""Pixels per channel attacked at a time: 20 images of side 224 on a CPU, 83 on a GPU. The batches are smaller
than for a forward pass, because a gradient needs the activations of every layer in memory."""


class Model(Protocol):
    """Interface that the suite needs from a model, which must be in evaluation mode."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Images (B, 3, S, S) uint8 -> logits (B, K)."""

    @property
    def differentiable(self) -> nn.Module | None:
        """(B, 3, S, S) float32 pixels in 0 to 255 -> float32 logits with gradients; None: no gradients."""


Models = Mapping[str, Model]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Tests to run, and their options.

    Attributes:
        tests: some of `TESTS`.
        severities: severities of the corruptions.
        seed: seed of the random numbers in the attacks.
        ece_bins: number of bins of the expected calibration error.
    """

    tests: tuple[str, ...]
    severities: tuple[int, ...]
    seed: int
    ece_bins: int

    def includes(self, key: str) -> bool:
        """True if the result with this key belongs to the plan."""
        test, *parts = key.split("/")
        return test in self.tests and (test not in _CORRUPTED or int(parts[1]) in self.severities)


def run_tests(
    models: Models,
    images: SuiteImages,
    plan: Plan,
    results: Mapping[str, Results],
    *,
    save: Callable[[], None],
    progress: Callable[[int, int], None],
) -> None:
    """Run the tests of `plan` and add their results to `results`; parts that are there already are skipped.

    Args:
        models: models by name.
        images: test images.
        plan: tests to run.
        results: results by model name; changed in place.
        save: called after every part of a test, so that a stopped run keeps the results computed so far.
        progress: called with (parts done, all parts).

    Raises:
        InputError: an unknown test, or an attack on a model without gradients.
    """
    parts = list(_parts(plan, images))
    for done, (test, name) in enumerate(parts):
        progress(done, len(parts))
        missing = {key: model for key, model in models.items() if not _has(results[key], plan, test, name)}
        if missing:
            for key, part in _RUN[test](missing, images, plan, test, name).items():
                results[key].update(part)
            save()
    progress(len(parts), len(parts))


def _parts(plan: Plan, images: SuiteImages) -> Iterator[tuple[str, str]]:
    """(test, name of the part) of every part. The name is a corruption or perturbation, otherwise empty."""
    names = {
        "c": images.corruptions,
        "c-extra": measures.EXTRA_CORRUPTIONS,
        "p": measures.PERTURBATIONS,
        "p-extra": measures.EXTRA_PERTURBATIONS,
    }
    for test in plan.tests:
        if test not in TESTS:
            raise InputError(f"there is no test {test!r}; choose one of {', '.join(TESTS)}")
        yield from ((test, name) for name in names.get(test, ("",)))


def _has(results: Results, plan: Plan, test: str, name: str) -> bool:
    """True if the results of this part are complete."""
    if test in _CORRUPTED:
        return all(f"{test}/{name}/{severity}" in results for severity in plan.severities)
    start = f"{test}/{name}/" if name else f"{test}/"
    return any(key == test or key.startswith(start) for key in results)


def _clean(models: Models, images: SuiteImages, plan: Plan, test: str, name: str) -> dict[str, Results]:
    """Clean accuracy and calibration, both from one pass over the images.

    With both tests in the plan, the part that comes first computes the results of both.
    """
    results: dict[str, Results] = {}
    for key, model in models.items():
        logits, labels = _all_logits(model, images.clean())
        results[key] = {}
        if "clean" in plan.tests:
            results[key]["clean"] = logits.argmax(axis=1) == labels
        if "calibration" in plan.tests:
            numbers = scores.calibration(_softmax(logits), labels, plan.ece_bins)
            results[key] |= {f"calibration/{metric}": np.array(value) for metric, value in numbers.items()}
    return results


def _corrupted(models: Models, images: SuiteImages, plan: Plan, test: str, name: str) -> dict[str, Results]:
    """Right or wrong for each image of one corruption, at every severity of the plan."""
    results: dict[str, Results] = {key: {} for key in models}
    for severity in plan.severities:
        for key, hits in _hits(models, images.corrupted(name, severity)).items():
            results[key][f"{test}/{name}/{severity}"] = hits
    return results


def _perturbed(models: Models, images: SuiteImages, plan: Plan, test: str, name: str) -> dict[str, Results]:
    """Flip probability, top-5 distance and Zipf distance of each sequence of one perturbation."""
    noise = measures.against_first(name)
    rows: dict[str, list[tuple[float, ...]]] = {key: [] for key in models}

    def predicted() -> Iterator[Tensor]:  # (B, T, K) of each model in turn
        for frames in images.perturbed(name):
            parts = frames.flatten(0, 1).split(batch_size_for(frames.shape[-1], _FRAMES, frames.device))
            for model in models.values():
                logits = torch.cat([_logits(model, part) for part in parts])
                yield logits.unflatten(0, frames.shape[:2])

    for key, logits in zip(cycle(models), on_host(predicted()), strict=False):
        for sequence in logits[:, None]:  # (1, T, K): one sequence at a time, for a result of each
            top = measures.top5(sequence)
            flips = measures.flip_probability(top[..., 0], noise)
            rows[key].append((flips, measures.t5d(top, noise), measures.zipf(sequence, noise)))
    kinds = [f"{test}/{name}/{kind}" for kind in ("flips", "t5d", "zipf")]
    return {key: dict(zip(kinds, np.array(each, np.float32).T, strict=True)) for key, each in rows.items()}


def _fgsm(models: Models, images: SuiteImages, plan: Plan, test: str, name: str) -> dict[str, Results]:
    """Right or wrong for each image under FGSM, at every eps of the sweep."""

    def attack(
        logits: attacks.Logits, batch: Tensor, labels: Tensor, rows: NDArray[np.int64]
    ) -> list[Tensor]:
        return attacks.fgsm_sweep(logits, batch, labels)

    names = [f"fgsm/{eps:g}" for eps in attacks.FGSM_SWEEP]
    return _attacked(models, images, names, attack)


def _pgd(models: Models, images: SuiteImages, plan: Plan, test: str, name: str) -> dict[str, Results]:
    """Right or wrong for each image under PGD, without and with a random start."""

    def attack(
        logits: attacks.Logits, batch: Tensor, labels: Tensor, rows: NDArray[np.int64]
    ) -> list[Tensor]:
        start = attacks.RandomStart(plan.seed, rows.tolist())
        plain = attacks.pgd(logits, batch, labels, attacks.PGD_EPS)
        return [plain, attacks.pgd(logits, batch, labels, attacks.PGD_EPS, random_start=start)]

    names = [f"pgd/{attacks.PGD_EPS:g}", f"pgd/{attacks.PGD_EPS:g}-random"]
    return _attacked(models, images, names, attack)


_Attack = Callable[[attacks.Logits, Tensor, Tensor, NDArray[np.int64]], list[Tensor]]


def _attacked(
    models: Models, images: SuiteImages, names: Sequence[str], attack: _Attack
) -> dict[str, Results]:
    """Right or wrong for each image under an attack on the tested model itself (white box)."""
    results: dict[str, Results] = {}
    for key, model in models.items():
        logits = model.differentiable
        if logits is None:
            raise InputError(
                f"{key} has no gradients (an ONNX file never has); leave out fgsm and pgd, or --flip"
            )
        hits = [_Hits() for _ in names]
        first = 0
        for batch, labels in attack_batches(images.clean()):
            rows = np.arange(first, first + len(labels))
            truth = torch.from_numpy(labels).to(batch.device)
            for name_hits, attacked in zip(hits, attack(logits, batch, truth, rows), strict=True):
                # Evaluated in the precision in which the attack was computed.
                with torch.no_grad(), attacks.fp32(batch.device):
                    name_hits.add(_logits(logits, attacked), labels)
            first += len(labels)
        results[key] = {name: part.result() for name, part in zip(names, hits, strict=True)}
    return results


def attack_batches(batches: Iterable[LabeledBatch]) -> Iterator[LabeledBatch]:
    """The same images in batches small enough for the memory that an attack needs."""
    for images, labels in batches:
        limit = _ATTACKED_ON_CPU if images.device.type == "cpu" else _ATTACKED
        size = max(1, limit // images[0, 0].numel())
        for start in range(0, len(images), size):
            yield images[start : start + size], labels[start : start + size]


class _Hits:
    """Whether each image is predicted right. The predictions stay on the device until all are made."""

    def __init__(self) -> None:
        self._predicted: list[Tensor] = []
        self._labels: list[NDArray[np.int64]] = []

    def add(self, logits: Tensor, labels: NDArray[np.int64]) -> None:
        """Add a batch: logits (B, K) and labels (B,)."""
        self._predicted.append(logits.argmax(dim=1))
        self._labels.append(labels)

    def result(self) -> NDArray[np.bool_]:
        """(N,) True for the images of all batches that are predicted right. Waits for the device once."""
        return np.asarray(torch.cat(self._predicted).cpu().numpy() == np.concatenate(self._labels))


def _hits(models: Models, batches: Iterable[LabeledBatch]) -> dict[str, NDArray[np.bool_]]:
    """(N,) bool for each model: True for the images that it predicts right."""
    hits = {key: _Hits() for key in models}
    for images, labels in batches:
        for key, model in models.items():
            hits[key].add(_logits(model, images), labels)
    return {key: each.result() for key, each in hits.items()}


def _all_logits(
    model: Model, batches: Iterable[LabeledBatch]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits (N, K) and labels (N,) of all batches."""
    labels: list[NDArray[np.int64]] = []

    def predicted() -> Iterator[Tensor]:
        for images, part in batches:
            labels.append(part)
            yield _logits(model, images)

    logits = np.concatenate(list(on_host(predicted())))
    return logits, np.concatenate(labels)


def _logits(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Logits (B, K) float32 on the device of the model."""
    return model(images).detach().float()


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))  # the largest is exp(0): no overflow
    probs /= probs.sum(axis=1, keepdims=True)
    return np.asarray(probs)


_RUN: Mapping[str, Callable[[Models, SuiteImages, Plan, str, str], dict[str, Results]]] = {
    "clean": _clean,
    "calibration": _clean,
    "c": _corrupted,
    "c-extra": _corrupted,
    "p": _perturbed,
    "p-extra": _perturbed,
    "fgsm": _fgsm,
    "pgd": _pgd,
}
