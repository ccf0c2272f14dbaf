"""Models on corrupted, perturbed and attacked images: every picture is made once and shown to all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.errors import InputError
from noisystudent.evaluate import attacks, metrics, robustness
from noisystudent.evaluate.answers import Answers
from noisystudent.evaluate.pictures import Labeled, Pictures

TESTS = ("clean", "calibration", "c", "p", "fgsm", "pgd")
"""What is measured on any labeled images."""

_FRAMES = 512  # of sequences in one forward pass
_SHOWN = 2**24
"""Pixels a channel shown to a model at a time, 334 images of 224."""
_ATTACKED_ON_CPU, _ATTACKED = 2**20, 2**22
"""Pixels a channel attacked at a time, 20 and 83 images of 224: a gradient keeps what every layer made."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to be measured.

    Attributes:
        predict: (B, 3, S, S) uint8 -> logits (B, K) of any floating type, in evaluation mode.
        logits: (B, 3, S, S) float32 pixels in 0 to 255 -> float32 logits with gradients; None where the model
            has none.
    """

    predict: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked for.

    Attributes:
        tests: some of `TESTS`.
        severities: of the corruptions.
        seed: of everything random in the attacks.
    """

    tests: tuple[str, ...]
    severities: tuple[int, ...]
    seed: int


def stress(
    subjects: Mapping[str, Subject],
    pictures: Pictures,
    plan: Plan,
    answers: Mapping[str, Answers],
    save: Callable[[], None],
    progress: Callable[[int, int], None],
) -> None:
    """Fill `answers` of each subject with what `plan` asks for; what is there already is not done again.

    Args:
        subjects: the models, by name.
        pictures: what they are shown.
        plan: which tests.
        answers: by the same names; gains a key at a time.
        save: called after every part of a test, so that what was computed is kept.
        progress: told (parts done, parts).

    Raises:
        InputError: an unknown test, or an attack on a model without gradients.
    """
    parts = list(_parts(plan, pictures))
    for done, (kind, name) in enumerate(parts):
        progress(done, len(parts))
        missing = {key: one for key, one in subjects.items() if not _has(answers[key], plan, kind, name)}
        if missing:
            for key, found in _DO[kind](missing, pictures, plan, name).items():
                answers[key].update(found)
            save()
    progress(len(parts), len(parts))


def _parts(plan: Plan, pictures: Pictures) -> Iterator[tuple[str, str]]:
    for test in plan.tests:
        if test not in TESTS:
            raise InputError(f"there is no test {test!r}; choose of {', '.join(TESTS)}")
        if test == "c":
            yield from ((test, name) for name in pictures.corruptions)
        elif test == "p":
            yield from ((test, name) for name in robustness.PERTURBATIONS)
        else:
            yield test, ""


def asked(answers: Answers, plan: Plan) -> Answers:
    """Those that `plan` asks for: a file may hold more, of an earlier plan."""

    def wanted(key: str) -> bool:
        test, *parts = key.split("/")
        return test in plan.tests and (test != "c" or int(parts[1]) in plan.severities)

    return {key: values for key, values in answers.items() if wanted(key)}


def _has(answers: Answers, plan: Plan, kind: str, name: str) -> bool:
    if kind == "c":
        return all(f"c/{name}/{severity}" in answers for severity in plan.severities)
    start = f"{kind}/{name}/" if name else kind
    return any(key == start or key.startswith(f"{start.rstrip('/')}/") for key in answers)


def _clean(subjects: Mapping[str, Subject], pictures: Pictures, plan: Plan, name: str) -> dict[str, Answers]:
    return {key: {"clean": hits} for key, hits in _hits(subjects, pictures.clean()).items()}


def _calibration(
    subjects: Mapping[str, Subject], pictures: Pictures, plan: Plan, name: str
) -> dict[str, Answers]:
    found: dict[str, Answers] = {}
    for key, subject in subjects.items():
        said = [(_host(subject.predict(images)), labels) for images, labels in pictures.clean()]
        logits, labels = (np.concatenate(part) for part in zip(*said, strict=True))
        probs = np.exp(logits - logits.max(axis=1, keepdims=True))
        probs /= probs.sum(axis=1, keepdims=True)
        numbers = {
            "nll": metrics.nll(probs, labels),
            "brier": metrics.brier(probs, labels),
            "ece": metrics.ece(probs, labels),
            "rms": metrics.rms_calibration(probs, labels),
            "aurra": metrics.aurra(probs, labels),
        }
        if len(probs) >= 2 * metrics.RMS_BIN:
            numbers["rms_official"] = metrics.rms_official(probs, labels)
        found[key] = {f"calibration/{metric}": np.array(value) for metric, value in numbers.items()}
    return found


def _corrupted(
    subjects: Mapping[str, Subject], pictures: Pictures, plan: Plan, name: str
) -> dict[str, Answers]:
    found: dict[str, Answers] = {key: {} for key in subjects}
    for severity in plan.severities:
        for key, hits in _hits(subjects, pictures.corrupted(name, severity)).items():
            found[key][f"c/{name}/{severity}"] = hits
    return found


def _perturbed(
    subjects: Mapping[str, Subject], pictures: Pictures, plan: Plan, name: str
) -> dict[str, Answers]:
    noise = robustness.against_first(name)
    moved: dict[str, list[tuple[float, ...]]] = {key: [] for key in subjects}
    for frames in pictures.perturbed(name):
        for key, subject in subjects.items():
            parts = frames.flatten(0, 1).split(at_once(frames.shape[-1], _FRAMES))
            said = [_host(subject.predict(part)) for part in parts]
            logits = np.concatenate(said).reshape(*frames.shape[:2], -1)  # (B, T, K)
            for one in logits[:, None]:
                top = robustness.top5(one)
                flips = robustness.flip_probability(top[..., 0], noise)
                moved[key].append((flips, robustness.t5d(top, noise), robustness.zipf(one, noise)))
    kinds = [f"p/{name}/{kind}" for kind in ("flips", "t5d", "zipf")]
    return {key: dict(zip(kinds, np.array(each, np.float32).T, strict=True)) for key, each in moved.items()}


def _fgsm(subjects: Mapping[str, Subject], pictures: Pictures, plan: Plan, name: str) -> dict[str, Answers]:
    def attack(
        logits: attacks.Logits, images: Tensor, labels: Tensor, rows: NDArray[np.int64]
    ) -> list[Tensor]:
        return attacks.fgsm_sweep(logits, images, labels)

    names = [f"fgsm/{eps:g}" for eps in attacks.FGSM_SWEEP]
    return _attacked(subjects, pictures, names, attack)


def _pgd(subjects: Mapping[str, Subject], pictures: Pictures, plan: Plan, name: str) -> dict[str, Answers]:
    def attack(
        logits: attacks.Logits, images: Tensor, labels: Tensor, rows: NDArray[np.int64]
    ) -> list[Tensor]:
        start = attacks.RandomStart(plan.seed, rows.tolist())
        plain = attacks.pgd(logits, images, labels, attacks.PGD_EPS)
        return [plain, attacks.pgd(logits, images, labels, attacks.PGD_EPS, random_start=start)]

    names = [f"pgd/{attacks.PGD_EPS:g}", f"pgd/{attacks.PGD_EPS:g}-random"]
    return _attacked(subjects, pictures, names, attack)


_Attack = Callable[[attacks.Logits, Tensor, Tensor, NDArray[np.int64]], list[Tensor]]


def _attacked(
    subjects: Mapping[str, Subject], pictures: Pictures, names: Sequence[str], attack: _Attack
) -> dict[str, Answers]:
    """Each subject is shown images made against itself."""
    found: dict[str, Answers] = {}
    for key, subject in subjects.items():
        if subject.logits is None:
            raise InputError(f"{key} gives no gradients, as an ONNX file never does; leave out fgsm and pgd")
        hits: list[list[NDArray[np.bool_]]] = [[] for _ in names]
        first = 0
        for images, labels in few(pictures.clean()):
            rows = np.arange(first, first + len(labels))
            truth = torch.from_numpy(labels).to(images.device)
            for own, moved in zip(hits, attack(subject.logits, images, truth, rows), strict=True):
                with torch.no_grad(), attacks.fp32(images.device):
                    own.append(_host(subject.logits(moved)).argmax(axis=1) == labels)
            first += len(labels)
        found[key] = {name: np.concatenate(own) for name, own in zip(names, hits, strict=True)}
    return found


def at_once(side: int, most: int) -> int:
    """How many images of this side a model is shown at a time: `most`, or fewer where they are large."""
    return max(1, min(most, _SHOWN // side**2))


def few(batches: Iterable[Labeled]) -> Iterator[Labeled]:
    """The same images, no more at a time than an attack has memory for."""
    for images, labels in batches:
        limit = _ATTACKED_ON_CPU if images.device.type == "cpu" else _ATTACKED
        size = max(1, limit // images[0, 0].numel())
        for start in range(0, len(images), size):
            yield images[start : start + size], labels[start : start + size]


def _hits(subjects: Mapping[str, Subject], batches: Iterable[Labeled]) -> dict[str, NDArray[np.bool_]]:
    """(N,) whether each subject is right."""
    found: dict[str, list[NDArray[np.bool_]]] = {key: [] for key in subjects}
    for images, labels in batches:
        for key, subject in subjects.items():
            found[key].append(_host(subject.predict(images)).argmax(axis=1) == labels)
    return {key: np.concatenate(hits) for key, hits in found.items()}


def _host(logits: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = logits.detach().float().cpu().numpy()
    return found


_DO: Mapping[str, Callable[[Mapping[str, Subject], Pictures, Plan, str], dict[str, Answers]]] = {
    "clean": _clean,
    "calibration": _calibration,
    "c": _corrupted,
    "p": _perturbed,
    "fgsm": _fgsm,
    "pgd": _pgd,
}
