from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from noisystudent.errors import InputError, RunError
from noisystudent.metrics import scores
from noisystudent.robustness import measures, summary
from noisystudent.robustness.images import SuiteImages, generated
from noisystudent.robustness.results import Results, load_results, save_results, stratified
from noisystudent.robustness.suite import TESTS, Plan, run_tests

SIDE, COUNT, CLASSES = 16, 12, 3


class Model:
    """A function as a model; with gradients unless it has none."""

    def __init__(self, logits: Callable[[Tensor], Tensor], gradients: bool = True) -> None:
        self.logits, self.gradients = logits, gradients

    def __call__(self, images: Tensor) -> Tensor:
        return self.logits(images)

    @property
    def differentiable(self) -> Any:
        return self.logits if self.gradients else None


def random_images(batch: int = 5) -> SuiteImages:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 3, SIDE, SIDE), dtype=torch.uint8, generator=draws)
    labels = np.arange(COUNT) % CLASSES
    return generated(lambda: images.split(batch), lambda: images.split(batch), labels, seed=0, frost=None)


def linear(seed: int) -> Model:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, CLASSES, bias=False)).eval()
    return Model(lambda images: net(images.float() / 255 - 0.5))


def plan(*tests: str, severities: tuple[int, ...] = (1, 5)) -> Plan:
    return Plan(tests=tests, severities=severities, seed=0, ece_bins=15)


def nothing(*_: object) -> None:
    """Neither saves nor prints."""


def results_of(
    models: Mapping[str, Model], wanted: Plan, batch: int = 5, found: dict[str, Results] | None = None
) -> dict[str, Results]:
    """The results of a plan, added to what was found before."""
    found = {name: {} for name in models} if found is None else found
    run_tests(models, random_images(batch), wanted, found, save=nothing, progress=nothing)
    return found


def same(one: Results, other: Results) -> None:
    assert one.keys() == other.keys()
    for key, values in one.items():
        np.testing.assert_array_equal(values, other[key], err_msg=key)


def test_every_test_has_a_result_for_every_image() -> None:
    found = results_of({"m": linear(0)}, plan(*TESTS))["m"]
    corruptions = {"c": {*measures.CORRUPTIONS} - {"frost"}, "c-extra": {*measures.EXTRA_CORRUPTIONS}}
    for test, names in corruptions.items():
        assert {key for key in found if key.startswith(f"{test}/")} == {
            f"{test}/{name}/{severity}" for name in names for severity in (1, 5)
        }
    for test, sequences in (("p", measures.PERTURBATIONS), ("p-extra", measures.EXTRA_PERTURBATIONS)):
        assert {key for key in found if key.startswith(f"{test}/")} == {
            f"{test}/{name}/{kind}" for name in sequences for kind in ("flips", "t5d", "zipf")
        }
    assert {key for key in found if "fgsm" in key} == {f"fgsm/{eps}" for eps in (2, 4, 8, 16)}
    assert all(
        values.shape == ((COUNT,) if "calibration" not in key else ()) for key, values in found.items()
    )


def test_calibration_is_the_metrics_of_the_clean_images_beside_accuracy_or_alone() -> None:
    batches = [(linear(0)(images), labels) for images, labels in random_images().clean()]
    probs = torch.cat([logits for logits, _ in batches]).softmax(dim=1).detach().numpy()
    expected = scores.calibration(probs, np.concatenate([labels for _, labels in batches]), 15)
    alone = results_of({"m": linear(0)}, plan("calibration"))["m"]
    assert {key: float(value) for key, value in alone.items()} == {
        f"calibration/{name}": pytest.approx(value, abs=1e-6) for name, value in expected.items()
    }
    beside = results_of({"m": linear(0)}, plan("clean", "calibration"))["m"]
    same(beside, results_of({"m": linear(0)}, plan("clean"))["m"] | alone)


def test_one_pass_over_the_clean_images_gives_accuracy_and_calibration() -> None:
    model, seen = linear(0), list[int]()

    def counted(images: Tensor) -> Tensor:
        seen.append(len(images))
        return model(images)

    results_of({"m": Model(counted)}, plan("clean", "calibration"))
    assert sum(seen) == COUNT


def test_neither_batches_nor_other_models_change_a_result() -> None:
    alone = results_of({"m": linear(0)}, plan(*TESTS))["m"]
    beside = results_of({"first": linear(1), "m": linear(0)}, plan(*TESTS), batch=12)["m"]
    same(alone, beside)


def test_what_is_there_is_not_measured_again_and_every_part_is_saved() -> None:
    whole = results_of({"m": linear(0)}, plan("clean", "c", "fgsm"))["m"]
    found: dict[str, Results] = {"m": {}}
    saves = 0

    class Killed(BaseException):
        pass

    def save() -> None:
        nonlocal saves
        saves += 1
        if saves == 7:
            raise Killed

    wanted = plan("clean", "c", "fgsm")
    with pytest.raises(Killed):
        run_tests({"m": linear(0)}, random_images(), wanted, found, save=save, progress=nothing)
    before = set(found["m"])
    assert before < set(whole)

    def never(images: Tensor) -> Tensor:
        raise AssertionError("measured again")

    results_of({"m": Model(never)}, wanted, found={"m": dict(whole)})
    same(results_of({"m": linear(0)}, wanted, found=found)["m"], whole)


def test_attacks_do_harm_and_more_with_a_larger_bound() -> None:
    found = summary.summarize(results_of({"m": linear(0)}, plan("clean", "fgsm", "pgd"))["m"])
    sweep = [found["fgsm"][eps]["value"] for eps in ("2", "4", "8", "16")]
    assert sorted(sweep, reverse=True) == sweep
    assert found["clean"]["value"] >= sweep[0] > sweep[-1]
    assert found["pgd"]["16"]["value"] <= sweep[-1]


def test_a_model_without_gradients_is_an_error_before_its_attack_and_keeps_the_rest() -> None:
    found: dict[str, Results] = {"m": {}}
    model = Model(linear(0).logits, gradients=False)
    with pytest.raises(InputError, match=r"m has no gradients \(an ONNX file never has\); leave out fgsm"):
        results_of({"m": model}, plan("clean", "fgsm"), found=found)
    assert list(found["m"]) == ["clean"]


def test_attacks_in_small_batches_give_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient keeps what every layer made of every image: a batch for labelling is too much for it."""
    whole = results_of({"m": linear(0)}, plan("fgsm", "pgd"), batch=12)["m"]
    monkeypatch.setattr("noisystudent.robustness.suite._ATTACKED_ON_CPU", 4 * SIDE**2)
    model, seen = linear(0), list[int]()

    def logits(images: Tensor) -> Tensor:
        seen.append(len(images))
        return model(images)

    same(results_of({"m": Model(logits)}, plan("fgsm", "pgd"), batch=12)["m"], whole)
    assert max(seen) == 4


def test_neither_tf32_nor_autocast_rounds_an_attack() -> None:
    parts: Any = torch.backends
    backends, model, seen = (parts.cudnn.conv, parts.cudnn.rnn, parts.cuda.matmul), linear(0), list[bool]()

    def logits(images: Tensor) -> Tensor:
        seen.extend(backend.fp32_precision != "ieee" for backend in backends)
        seen.append(torch.is_autocast_enabled("cpu"))
        return model(images)

    before = [backend.fp32_precision for backend in backends]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results_of({"m": Model(logits)}, plan("fgsm"))
    assert seen and not any(seen)
    assert [backend.fp32_precision for backend in backends] == before


def test_each_sequence_is_measured_as_defined() -> None:
    found = results_of({"m": linear(0)}, plan("p"))["m"]
    frames = torch.cat(list(random_images().perturbed("tilt")))
    logits = linear(0)(frames.flatten(0, 1)).detach().numpy().reshape(*frames.shape[:2], -1)
    for row, sequence in enumerate(logits[:, None]):
        top = measures.top5(sequence)
        assert found["p/tilt/flips"][row] == pytest.approx(measures.flip_probability(top[..., 0], False))
        assert found["p/tilt/t5d"][row] == pytest.approx(measures.t5d(top, False))
        assert found["p/tilt/zipf"][row] == pytest.approx(measures.zipf(sequence, False))


def test_an_unknown_test_is_named() -> None:
    with pytest.raises(
        InputError, match="there is no test 'x'; choose one of clean, calibration, c, p, c-extra"
    ):
        results_of({"m": linear(0)}, plan("x"))


# --- summaries ---


def test_a_summary_is_the_definitions_on_the_same_results() -> None:
    results = results_of({"m": linear(0)}, plan("clean", "c", "p"))["m"]
    found = summary.summarize(results)
    errors = [error for cells in found["c"]["errors"].values() for error in cells.values()]
    assert found["clean"]["value"] == pytest.approx(results["clean"].mean())
    assert found["c"]["value"] == pytest.approx(np.mean(errors))
    assert found["p"]["value"] == pytest.approx(np.mean(list(found["p"]["flips"].values())))
    assert found["c"]["low"] <= found["c"]["value"] <= found["c"]["high"]


def test_extra_tests_have_their_parts_and_enter_no_mean_ratio_or_difference() -> None:
    wanted = plan("clean", "c", "p", "c-extra", "p-extra")
    first, second = results_of({"a": linear(0), "b": linear(3)}, wanted).values()
    plain = {key: values for key, values in first.items() if "extra" not in key}
    found = summary.summarize(first)
    errors, flips = found.pop("c-extra"), found.pop("p-extra")
    assert errors == {
        "errors": {
            name: {str(severity): 1 - first[f"c-extra/{name}/{severity}"].mean() for severity in (1, 5)}
            for name in measures.EXTRA_CORRUPTIONS
        }
    }
    assert flips["flips"] == {
        name: pytest.approx(first[f"p-extra/{name}/flips"].mean()) for name in measures.EXTRA_PERTURBATIONS
    }
    assert found == summary.summarize(plain)
    assert summary.differences(first, second) == summary.differences(plain, second)


def test_a_model_against_itself_is_one_and_against_another_the_reciprocal_order() -> None:
    found = results_of({"a": linear(0), "b": linear(3)}, plan("clean", "c", "p"))
    own, other = (summary.summarize(found[name]) for name in ("a", "b"))
    itself = summary.ratios(own, own)
    assert itself["mce"] == pytest.approx(1) and itself["mfr"] == pytest.approx(1)
    cell = summary.difference(found["a"], found["b"], "c")
    assert cell["value"] == pytest.approx(own["c"]["value"] - other["c"]["value"])
    back = summary.difference(found["b"], found["a"], "c")
    assert (back["low"], back["high"]) == pytest.approx((-cell["high"], -cell["low"]))


def test_alexnet_divided_by_itself_is_one() -> None:
    found = summary.ratios(summary.alexnet(), summary.alexnet())
    assert found == {"mce": pytest.approx(1), "relative_mce": pytest.approx(1), "mfr": pytest.approx(1)}


def test_a_perfect_rival_gives_no_ratio() -> None:
    perfect = {"c": {"errors": {"fog": {"1": 0.0}}}, "p": {"flips": {"rotate": 0.0}}}
    own = {"c": {"errors": {"fog": {"1": 0.5}}}, "p": {"flips": {"rotate": 0.5}}}
    assert summary.ratios(own, perfect) == {"mce": None, "mfr": None}


# --- kept on disk ---


@pytest.mark.parametrize("severities", [(1, 5), (1,)])
def test_after_another_plan_a_plan_finds_what_it_finds_alone(severities: tuple[int, ...]) -> None:
    found = results_of({"m": linear(0)}, plan("clean", "c", "fgsm", severities=(5,)))
    changed = plan("clean", "c", severities=severities)
    results_of({"m": linear(0)}, changed, found=found)
    included = {key: values for key, values in found["m"].items() if changed.includes(key)}
    same(included, results_of({"m": linear(0)}, changed)["m"])


def test_results_come_back_for_the_same_images_and_plan_only(tmp_path: Path) -> None:
    found = results_of({"m": linear(0)}, plan("clean", "calibration", "fgsm"))["m"]
    save_results(tmp_path / "m.npz", found, "these images")
    same(load_results(tmp_path / "m.npz", "these images"), found)
    assert load_results(tmp_path / "m.npz", "others") == {}
    assert load_results(tmp_path / "none.npz", "these images") == {}
    (tmp_path / "m.npz").write_bytes((tmp_path / "m.npz").read_bytes()[:100])
    with pytest.raises(RunError, match=r"m\.npz cannot be read"):
        load_results(tmp_path / "m.npz", "these images")


# --- the sample ---


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 120), st.integers(0, 3))
def test_a_sample_has_every_class_by_its_share(sizes: list[int], count: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rows: NDArray[np.int64] = stratified(labels, count, seed)
    assert len(rows) == min(count, len(labels)) and (np.diff(rows) > 0).all()
    taken = np.bincount(labels[rows], minlength=len(sizes))
    share = np.array(sizes) * len(rows) / len(labels)
    assert (np.abs(taken - share) <= 1).all()
    assert np.array_equal(rows, stratified(labels, count, seed))
